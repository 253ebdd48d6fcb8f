//! The wallet's secrets, and signing with them.

use std::fmt;
use std::sync::LazyLock;

use bdk_wallet::template::Bip86Public;
use bdk_wallet::{ChangeSet, KeychainKind, LoadError, LoadMismatch, Update, Wallet};
use bitcoin::bip32::{ChildNumber, Fingerprint, Xpriv, Xpub};
use bitcoin::hashes::Hash;
use bitcoin::key::{Keypair, TapTweak};
use bitcoin::secp256k1::{All, Message, Secp256k1};
use bitcoin::sighash::{Prevouts, SighashCache, TapSighashType};
use bitcoin::{Network, NetworkKind, Transaction, TxOut, Witness, taproot};

use super::{Result, WalletError};
use crate::BlockId;

pub(super) static SECP: LazyLock<Secp256k1<All>> = LazyLock::new(Secp256k1::new);

/// Addresses beyond the last that was paid to that are looked for on the chain: factories that were not born, and payments that were not sent,
/// named some that nobody will ever pay to.
const LOOKAHEAD: u32 = 200;

/// The account's private key. Erased when dropped; BDK gets the public one only.
pub(super) struct Keys {
    account: Xpriv,
    master_fingerprint: Fingerprint,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("master_fingerprint", &self.master_fingerprint)
            .finish_non_exhaustive()
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.account.private_key.non_secure_erase();
    }
}

fn failed(error: impl fmt::Display) -> WalletError {
    WalletError::Keys(error.to_string())
}

impl Keys {
    /// Derives the account `m/86'/coin'/0'` (BIP-86).
    pub(super) fn derive(network: Network, master: &Xpriv) -> Result<Self> {
        let coin = if NetworkKind::from(network).is_mainnet() {
            0
        } else {
            1
        };
        let path = [86, coin, 0].map(|index| ChildNumber::Hardened { index });
        let mut account = master.derive_priv(&SECP, &path).map_err(failed)?;
        account.network = network.into();
        Ok(Self {
            account,
            master_fingerprint: master.fingerprint(&SECP),
        })
    }

    fn descriptor(&self, keychain: KeychainKind) -> Bip86Public<Xpub> {
        Bip86Public(
            Xpub::from_priv(&SECP, &self.account),
            self.master_fingerprint,
            keychain,
        )
    }

    pub(super) fn create_wallet(
        &self,
        network: Network,
        birthday: Option<BlockId>,
    ) -> Result<Wallet> {
        let descriptors = (
            self.descriptor(KeychainKind::External),
            self.descriptor(KeychainKind::Internal),
        );
        let mut wallet = Wallet::create(descriptors.0, descriptors.1)
            .network(network)
            .lookahead(LOOKAHEAD)
            .create_wallet_no_persist()
            .map_err(failed)?;
        if let Some(birthday) = birthday.filter(|block| block.height > 0) {
            let block = bdk_wallet::chain::BlockId {
                height: birthday.height,
                hash: birthday.hash,
            };
            let chain = Some(wallet.latest_checkpoint().insert(block));
            wallet
                .apply_update(Update {
                    chain,
                    ..Update::default()
                })
                .map_err(failed)?;
        }
        Ok(wallet)
    }

    pub(super) fn load_wallet(&self, network: Network, stored: ChangeSet) -> Result<Wallet> {
        let load = Wallet::load()
            .descriptor(
                KeychainKind::External,
                Some(self.descriptor(KeychainKind::External)),
            )
            .descriptor(
                KeychainKind::Internal,
                Some(self.descriptor(KeychainKind::Internal)),
            )
            .lookahead(LOOKAHEAD)
            .check_network(network);
        let loaded = load
            .load_wallet_no_persist(stored)
            .map_err(|error| match error {
                LoadError::Mismatch(LoadMismatch::Network { loaded, expected }) => {
                    WalletError::OtherNetwork {
                        expected,
                        found: loaded,
                    }
                }
                LoadError::Mismatch(LoadMismatch::Descriptor { .. }) => WalletError::OtherSeed,
                other => WalletError::Corrupt {
                    cause: other.to_string(),
                },
            })?;
        loaded.ok_or_else(|| WalletError::Corrupt {
            cause: "it is empty".to_owned(),
        })
    }

    /// The key of one of our outputs, tweaked as BIP-86 says.
    pub(super) fn keypair(&self, (keychain, index): (KeychainKind, u32)) -> Result<Keypair> {
        let chain = match keychain {
            KeychainKind::External => 0,
            KeychainKind::Internal => 1,
        };
        let path = [chain, index].map(|index| ChildNumber::Normal { index });
        let mut child = self.account.derive_priv(&SECP, &path).map_err(failed)?;
        let mut untweaked = child.to_keypair(&SECP);
        let keypair = untweaked.tap_tweak(&SECP, None).to_keypair();
        untweaked.non_secure_erase();
        child.private_key.non_secure_erase();
        Ok(keypair)
    }
}

/// Signs by the taproot key path (BIP-341) each input that has a signer, which is erased; the others are left as they are.
pub(super) fn sign_key_path(
    transaction: &mut Transaction,
    prevouts: &[TxOut],
    signers: &[Option<Keypair>],
) -> Result<()> {
    let mut cache = SighashCache::new(&*transaction);
    let mut witnesses = Vec::with_capacity(signers.len());
    for (index, signer) in signers.iter().enumerate() {
        let Some(mut signer) = *signer else {
            witnesses.push(None);
            continue;
        };
        let sighash = cache
            .taproot_key_spend_signature_hash(
                index,
                &Prevouts::All(prevouts),
                TapSighashType::Default,
            )
            .map_err(failed)?;
        let signature = SECP.sign_schnorr(&Message::from_digest(sighash.to_byte_array()), &signer);
        signer.non_secure_erase();
        let signature = taproot::Signature {
            signature,
            sighash_type: TapSighashType::Default,
        };
        witnesses.push(Some(Witness::p2tr_key_spend(&signature)));
    }
    for (input, witness) in transaction.input.iter_mut().zip(witnesses) {
        if let Some(witness) = witness {
            input.witness = witness;
        }
    }
    Ok(())
}
