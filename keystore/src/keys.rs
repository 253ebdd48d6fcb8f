//! Key derivation. The table is in the crate's documentation.

use std::fmt;

use bitcoin::bip32::{ChildNumber, Xpriv};
use bitcoin::hashes::{Hash, HashEngine, Hmac, HmacEngine, sha512};
use bitcoin::secp256k1::{All, Secp256k1, SecretKey};
use bitcoin::{Network, bip32};
use rand::{CryptoRng, RngCore};
use zeroize::{Zeroize, Zeroizing};

use crate::SeedError;

/// BIP-43 purpose of everything but the wallet: "SS" in ASCII.
const PURPOSE: u32 = 0x5353;

const LDK: u32 = 1;
const JOIN: u32 = 2;
const FACTORY: u32 = 3;

/// Which of a client's keys of one join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JoinRole {
    /// Signs the factory's tree (MuSig2).
    Factory,
    /// Receives what the timeouts and poisons pay.
    Payout,
}

impl JoinRole {
    const fn tag(self) -> &'static [u8] {
        match self {
            Self::Factory => b"superscalar/join/factory",
            Self::Payout => b"superscalar/join/payout",
        }
    }
}

/// All keys of one seed on one network. Wiped when dropped, not shown by `Debug`.
pub struct Keys {
    network: Network,
    bip39_seed: Zeroizing<[u8; 64]>,
    ldk_seed: Zeroizing<[u8; 32]>,
    join_master: Zeroizing<[u8; 32]>,
    factory_master: Zeroizing<[u8; 32]>,
}

impl Keys {
    pub(crate) fn new(bip39_seed: &[u8; 64], network: Network) -> Result<Self, SeedError> {
        let secp = Secp256k1::new();
        let master = master(bip39_seed, network).map_err(underivable)?;
        let subkey = |index| subkey(&secp, &master, network, index).map_err(underivable);
        Ok(Self {
            network,
            bip39_seed: Zeroizing::new(*bip39_seed),
            ldk_seed: subkey(LDK)?,
            join_master: subkey(JOIN)?,
            factory_master: subkey(FACTORY)?,
        })
    }

    /// The network these keys are for.
    pub fn network(&self) -> Network {
        self.network
    }

    /// The BIP-32 master key, for the on-chain wallet, which derives its BIP-86 accounts itself. Everything else could be
    /// derived from it too: it goes nowhere but into the wallet's memory.
    pub fn wallet_xpriv(&self) -> Xpriv {
        master(&self.bip39_seed, self.network)
            .expect("the same derivation succeeded when these keys were made")
    }

    /// The seed of LDK's `KeysManager`. The Lightning node id, which is also the account, follows from it.
    pub fn ldk_seed(&self) -> Zeroizing<[u8; 32]> {
        self.ldk_seed.clone()
    }

    /// A client's key of one join. Give every join *and every attempt* a `join_nonce` of its own
    /// ([`random_join_nonce`]): these keys are handed over when the client has left.
    pub fn join_secret(&self, join_nonce: [u8; 16], role: JoinRole) -> SecretKey {
        scalar(&self.join_master, role.tag(), &[&join_nonce])
    }

    /// The coordinator's factory key of one attempt of one ceremony. `fresh` is drawn anew for each attempt and stored
    /// first, so that a store restored from a backup repeats no key.
    pub fn factory_secret(
        &self,
        ceremony_id: [u8; 16],
        attempt: u32,
        fresh: [u8; 16],
    ) -> SecretKey {
        scalar(
            &self.factory_master,
            b"superscalar/lsp/factory",
            &[&ceremony_id, &attempt.to_be_bytes(), &fresh],
        )
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("network", &self.network)
            .finish_non_exhaustive()
    }
}

/// Draws the nonce all keys of one join and attempt grow from.
pub fn random_join_nonce<R: RngCore + CryptoRng>(rng: &mut R) -> [u8; 16] {
    let mut nonce = [0; 16];
    rng.fill_bytes(&mut nonce);
    nonce
}

fn master(bip39_seed: &[u8; 64], network: Network) -> Result<Xpriv, bip32::Error> {
    Xpriv::new_master(network, bip39_seed)
}

fn underivable(error: bip32::Error) -> SeedError {
    SeedError::Underivable {
        reason: error.to_string(),
    }
}

/// `m/21331'/net'/index'`. Wholly hardened: no extended public key of the wallet leads here.
fn subkey(
    secp: &Secp256k1<All>,
    master: &Xpriv,
    network: Network,
    index: u32,
) -> Result<Zeroizing<[u8; 32]>, bip32::Error> {
    let path =
        [PURPOSE, network_number(network), index].map(|index| ChildNumber::Hardened { index });
    let mut key = master.derive_priv(secp, &path)?.private_key;
    let bytes = Zeroizing::new(key.secret_bytes());
    key.non_secure_erase();
    Ok(bytes)
}

const fn network_number(network: Network) -> u32 {
    match network {
        Network::Bitcoin => 0,
        Network::Testnet => 1,
        Network::Testnet4 => 2,
        Network::Signet => 3,
        Network::Regtest => 4,
    }
}

fn scalar(master: &[u8; 32], tag: &[u8], fields: &[&[u8]]) -> SecretKey {
    first_valid(|retry| {
        let mut engine = HmacEngine::<sha512::Hash>::new(master);
        // Tags differ in length; with its length in front none can run into the fields behind another.
        engine.input(&[u8::try_from(tag.len()).expect("tags are constants of at most 255 bytes")]);
        engine.input(tag);
        fields.iter().for_each(|field| engine.input(field));
        engine.input(&[retry]);
        let mut full = Hmac::from_engine(engine).to_byte_array();
        let mut half = Zeroizing::new([0; 32]);
        half.copy_from_slice(&full[..32]);
        full.zeroize();
        half
    })
}

/// The first candidate that is a secret key: all but one in 2^127 are.
fn first_valid(mut candidate: impl FnMut(u8) -> Zeroizing<[u8; 32]>) -> SecretKey {
    (0..=u8::MAX)
        .find_map(|retry| SecretKey::from_slice(&*candidate(retry)).ok())
        .expect("256 independent candidates, each invalid with probability 2^-127")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_scalars_are_skipped() {
        // Zero, the group order n, and 2^256 - 1 are no secret keys; n - 1 is.
        let order = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141";
        let mut n = [0; 32];
        hex::decode_to_slice(order, &mut n).unwrap();
        let mut last = n;
        last[31] -= 1;
        let candidates = [[0; 32], n, [0xff; 32], last, [1; 32]];
        let mut asked = Vec::new();
        let key = first_valid(|retry| {
            asked.push(retry);
            Zeroizing::new(candidates[usize::from(retry)])
        });
        assert_eq!(key.secret_bytes(), last);
        assert_eq!(asked, [0, 1, 2, 3]);
    }
}
