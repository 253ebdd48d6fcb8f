//! The wallet's keys, as the client uses them.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use bitcoin::bip32::Xpriv;
use bitcoin::key::{Keypair, Parity, TapTweak};
use bitcoin::secp256k1::{All, PublicKey, Secp256k1, SecretKey};
use bitcoin::{Network, ScriptBuf};
use channel_host::LeafKeys;
use factory_tree::ids::{ClientId, LeafId};
use keystore::{JoinRole, Keys, Passphrase, Seed, SeedError};

/// Every key of one wallet on one network. Not shown by `Debug`.
pub struct ClientKeys {
    keys: Keys,
    leaf: Arc<LeafKeys>,
    secp: Secp256k1<All>,
    node_id: ClientId,
}

/// The public half of one join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinPublic {
    /// The channel's leaf id.
    pub leaf_id: LeafId,
    /// Factory key.
    pub factory_key: PublicKey,
    /// Channel funding key.
    pub channel_key: PublicKey,
    /// Where timeouts pay.
    pub payout_script: ScriptBuf,
}

/// What is handed over when a factory was left for good: no other secret follows from these. Not shown by `Debug`, wiped when dropped.
pub struct HandoverSecrets {
    /// Factory key.
    pub factory: SecretKey,
    /// Of the payout script's output key, even (BIP-341).
    pub payout: SecretKey,
    /// Funding key of the channel it was born with.
    pub channel: SecretKey,
    /// Those of the channels that were bought there, in the order of the sales.
    pub sold: Vec<SecretKey>,
}

impl fmt::Debug for HandoverSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HandoverSecrets(..)")
    }
}

impl Drop for HandoverSecrets {
    fn drop(&mut self) {
        self.factory.non_secure_erase();
        self.payout.non_secure_erase();
        self.channel.non_secure_erase();
        self.sold.iter_mut().for_each(SecretKey::non_secure_erase);
    }
}

impl ClientKeys {
    /// The keys of this seed.
    ///
    /// # Errors
    /// [`SeedError::Underivable`], for no seed anybody will ever see.
    pub fn new(seed: &Seed, network: Network) -> Result<Self, SeedError> {
        let keys = seed.keys(network)?;
        let leaf = Arc::new(LeafKeys::new(&keys.ldk_seed()));
        let secp = Secp256k1::new();
        let mut node = leaf.keys_manager().get_node_secret_key();
        let node_id = ClientId(PublicKey::from_secret_key(&secp, &node).serialize());
        node.non_secure_erase();
        Ok(Self {
            keys,
            leaf,
            secp,
            node_id,
        })
    }

    /// Unlocks the seed file at `path`. Slow on purpose: call it from a blocking thread.
    ///
    /// # Errors
    /// [`SeedError`] names the file and what to do.
    pub fn unlock(
        path: &Path,
        passphrase: &Passphrase,
        network: Network,
    ) -> Result<Self, SeedError> {
        Self::new(&Seed::open(path, passphrase)?, network)
    }

    /// The network these keys are for.
    #[must_use]
    pub fn network(&self) -> Network {
        self.keys.network()
    }

    /// The account, which is also the Lightning node.
    #[must_use]
    pub const fn node_id(&self) -> ClientId {
        self.node_id
    }

    /// The key that authenticates: the Lightning node's.
    #[must_use]
    pub fn node_key(&self) -> SecretKey {
        self.leaf.keys_manager().get_node_secret_key()
    }

    /// For the on-chain wallet.
    #[must_use]
    pub fn wallet_xpriv(&self) -> Xpriv {
        self.keys.wallet_xpriv()
    }

    /// Channel keys.
    #[must_use]
    pub const fn leaf_keys(&self) -> &Arc<LeafKeys> {
        &self.leaf
    }

    /// The factory key of a join.
    #[must_use]
    pub fn factory_secret(&self, join_nonce: [u8; 16]) -> SecretKey {
        self.keys.join_secret(join_nonce, JoinRole::Factory)
    }

    /// Everything public of a join's first channel.
    #[must_use]
    pub fn join_public(&self, join_nonce: [u8; 16]) -> JoinPublic {
        let leaf_id = LeafId::derive(&join_nonce, 0);
        let mut secret = self.factory_secret(join_nonce);
        let factory_key = PublicKey::from_secret_key(&self.secp, &secret);
        secret.non_secure_erase();
        JoinPublic {
            leaf_id,
            factory_key,
            channel_key: self.leaf.funding_pubkey(leaf_id.as_u128()),
            payout_script: self.payout_script(join_nonce),
        }
    }

    /// The internal key of a join's payout output.
    #[must_use]
    pub fn payout_keypair(&self, join_nonce: [u8; 16]) -> Keypair {
        let mut secret = self.keys.join_secret(join_nonce, JoinRole::Payout);
        let pair = Keypair::from_secret_key(&self.secp, &secret);
        secret.non_secure_erase();
        pair
    }

    /// The key that signs for a join's payout output: tweaked as BIP-86 says.
    #[must_use]
    pub fn payout_signer(&self, join_nonce: [u8; 16]) -> Keypair {
        let mut internal = self.payout_keypair(join_nonce);
        let signer = internal.tap_tweak(&self.secp, None).to_keypair();
        internal.non_secure_erase();
        signer
    }

    /// The secrets of a join and of what was bought in its factory, for the coordinator that takes that over (protocol.md section 7.3).
    #[must_use]
    pub fn handover_secrets(&self, join_nonce: [u8; 16], bought: &[LeafId]) -> HandoverSecrets {
        let mut payout = self.payout_signer(join_nonce);
        let secret = payout.secret_key();
        // An x-only key stands for the even one of two (BIP-340).
        let even = match payout.x_only_public_key().1 {
            Parity::Even => secret,
            Parity::Odd => secret.negate(),
        };
        payout.non_secure_erase();
        HandoverSecrets {
            factory: self.factory_secret(join_nonce),
            payout: even,
            channel: self
                .leaf
                .funding_secret(LeafId::derive(&join_nonce, 0).as_u128()),
            sold: bought
                .iter()
                .map(|leaf| self.leaf.funding_secret(leaf.as_u128()))
                .collect(),
        }
    }

    /// Where the timeouts of a join pay: BIP-86 P2TR of the payout key.
    #[must_use]
    pub fn payout_script(&self, join_nonce: [u8; 16]) -> ScriptBuf {
        let mut internal = self.payout_keypair(join_nonce);
        let script = ScriptBuf::new_p2tr(&self.secp, internal.x_only_public_key().0, None);
        internal.non_secure_erase();
        script
    }
}

impl fmt::Debug for ClientKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientKeys")
            .field("node_id", &self.node_id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use keystore::KdfCost;

    pub(crate) fn fresh() -> (tempfile::TempDir, ClientKeys) {
        let dir = tempfile::tempdir().unwrap();
        let passphrase = Passphrase::new("correct horse".to_owned()).unwrap();
        let (seed, _words) =
            Seed::create(dir.path().join("seed.json"), &passphrase, KdfCost::Light).unwrap();
        let keys = ClientKeys::new(&seed, Network::Regtest).unwrap();
        (dir, keys)
    }

    #[test]
    fn every_join_has_keys_of_its_own() {
        let (_dir, keys) = fresh();
        let (a, b) = (keys.join_public([1; 16]), keys.join_public([2; 16]));
        assert_ne!(a.factory_key, b.factory_key);
        assert_ne!(a.channel_key, b.channel_key);
        assert_ne!(a.payout_script, b.payout_script);
        assert_ne!(a.leaf_id, b.leaf_id);
        assert_eq!(a, keys.join_public([1; 16]));
    }

    #[test]
    fn debug_shows_no_secret() {
        let (_dir, keys) = fresh();
        let text = format!("{keys:?}");
        assert!(text.contains("node_id") && text.len() < 120, "{text}");
    }
}
