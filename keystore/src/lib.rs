//! The encrypted seed, and every key that grows from it. Used by coordinator and signer-client alike.
//!
//! A [`Seed`] is a BIP-39 mnemonic of 24 words (no BIP-39 passphrase), kept in one encrypted file. [`Seed::keys`]
//! binds it to a network and gives [`Keys`]:
//!
//! | key | derivation | what it is for |
//! |---|---|---|
//! | [`Keys::wallet_xpriv`] | BIP-32 master `m` | on-chain wallet; the wallet derives BIP-86 accounts itself, so any BIP-39 wallet finds the coins again |
//! | [`Keys::ldk_seed`] | `m/21331'/net'/1'` | seed of LDK's `KeysManager`; channel keys grow from it and the leaf id |
//! | join master (internal) | `m/21331'/net'/2'` | |
//! | [`Keys::join_secret`] | `H(join master, "superscalar/join/factory" or "superscalar/join/payout", join_nonce)` | the client's keys of one join |
//! | factory master (internal) | `m/21331'/net'/3'` | |
//! | [`Keys::factory_secret`] | `H(factory master, "superscalar/lsp/factory", ceremony id, attempt, fresh)` | the coordinator's key of one attempt |
//!
//! `21331'` is "SS" in ASCII. `net'` is 0 for mainnet, 1 testnet3, 2 testnet4, 3 signet, 4 regtest: no key but the
//! wallet's (where BIP-86's coin type tells them apart) serves two networks.
//!
//! `H(master, tag, fields..)` is the left half of `HMAC-SHA512(master, u8 length of tag || tag || fields || u8 retry)`, all
//! integers big endian, where `retry` counts up from 0 until the result is a valid secp256k1 scalar. It is one-way,
//! like BIP-32's hardened derivation: keys are handed over when a client leaves a factory, and a key that was
//! handed over must give nothing else away.
//!
//! Secrets are wiped when dropped and never shown by `Debug`. What `bitcoin` and `secp256k1` hand out by value (`Xpriv`,
//! `SecretKey`) is the caller's to wipe (`non_secure_erase`).

mod error;
mod keys;
mod passphrase;
mod sealed;
mod seed;
mod words;

pub use error::{PassphraseError, SeedError, WordsError};
pub use keys::{JoinRole, Keys, random_join_nonce};
pub use passphrase::Passphrase;
pub use sealed::KdfCost;
pub use seed::Seed;
pub use words::Words;
