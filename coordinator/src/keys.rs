//! The coordinator's keys, and the signer of one ceremony.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bitcoin::Script;
use bitcoin::hashes::{Hash, HashEngine, sha256};
use bitcoin::key::Keypair;
use bitcoin::secp256k1::{Message, PublicKey, Secp256k1, SecretKey, ecdsa};
use channel_host::{LeafKeys, PaymentHash, lsp_channel_id};
use factory_tree::ceremony::coordinator::{Blame, LspSigner};
use factory_tree::ceremony::message::Round;
use factory_tree::factory::FactoryTx;
use factory_tree::ids::{Attempt, LeafId, SaleId};
use keystore::{Keys, Seed, SeedError};
use proto::NodeId;
use rand::RngCore;
use rand::rngs::OsRng;
use zeroize::Zeroizing;

/// The randomness of one attempt, drawn and stored before any of its keys is used.
pub type FreshSeed = [u8; 16];

/// Every key of the coordinator.
pub struct NodeKeys {
    keys: Keys,
    leaf_keys: Arc<LeafKeys>,
    node_id: NodeId,
}

impl std::fmt::Debug for NodeKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NodeKeys({})", self.node_id)
    }
}

impl NodeKeys {
    /// The keys of this seed on `network`.
    ///
    /// # Errors
    /// [`SeedError`].
    pub fn new(seed: &Seed, network: bitcoin::Network) -> Result<Self, SeedError> {
        let keys = seed.keys(network)?;
        let leaf_keys = Arc::new(LeafKeys::new(&keys.ldk_seed()));
        // The account is the Lightning node: a client knows one id for both.
        let mut secret = leaf_keys.keys_manager().get_node_secret_key();
        let node_id = NodeId::of(&secret);
        secret.non_secure_erase();
        Ok(Self {
            leaf_keys,
            keys,
            node_id,
        })
    }

    /// The account clients know.
    #[must_use]
    pub const fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// The key behind the node id.
    #[must_use]
    pub fn node_secret(&self) -> SecretKey {
        self.leaf_keys.keys_manager().get_node_secret_key()
    }

    /// For the on-chain wallet.
    #[must_use]
    pub fn wallet_master(&self) -> bitcoin::bip32::Xpriv {
        self.keys.wallet_xpriv()
    }

    /// For channels.
    #[must_use]
    pub fn leaf_keys(&self) -> Arc<LeafKeys> {
        Arc::clone(&self.leaf_keys)
    }

    /// The factory key of one attempt.
    #[must_use]
    pub fn factory_secret(&self, round: Round, fresh: FreshSeed) -> SecretKey {
        self.keys
            .factory_secret(round.ceremony.0, round.attempt.0, fresh)
    }

    /// What promises of just-in-time channels are authenticated with (LSPS2): follows from the seed, so that they outlive a restart.
    #[must_use]
    pub fn jit_promise_key(&self) -> Zeroizing<[u8; 32]> {
        self.derived(b"superscalar/lsps2/promise", &[])
    }

    /// The preimage of the payment for a sale by this quote. It follows from the seed, so that it is in no database. A sale that is begun anew is so
    /// by another quote: an older invoice, which Lightning still takes payments for at its own amount, pays for nothing.
    #[must_use]
    pub fn sale_preimage(&self, sale: SaleId, quote: &str) -> Zeroizing<[u8; 32]> {
        let quote = sha256::Hash::hash(quote.as_bytes()).to_byte_array();
        let of = [sale.0.as_slice(), quote.as_slice()].concat();
        self.derived(b"superscalar/sale/preimage", &of)
    }

    /// The hash that names this payment.
    #[must_use]
    pub fn sale_hash(&self, sale: SaleId, quote: &str) -> PaymentHash {
        PaymentHash(sha256::Hash::hash(&*self.sale_preimage(sale, quote)).to_byte_array())
    }

    /// The preimage of the payment for an order (LSPS1), as that of a sale.
    #[must_use]
    pub fn lsps1_preimage(&self, order: &str) -> Zeroizing<[u8; 32]> {
        self.derived(b"superscalar/lsps1/preimage", order.as_bytes())
    }

    /// The hash that names this payment.
    #[must_use]
    pub fn lsps1_hash(&self, order: &str) -> PaymentHash {
        PaymentHash(sha256::Hash::hash(&*self.lsps1_preimage(order)).to_byte_array())
    }

    /// A secret for `purpose` and nothing else: a tagged hash (BIP-340) of the node's secret.
    fn derived(&self, purpose: &[u8], of: &[u8]) -> Zeroizing<[u8; 32]> {
        let tag = sha256::Hash::hash(purpose);
        let mut secret = self.node_secret();
        let mut engine = sha256::Hash::engine();
        engine.input(tag.as_ref());
        engine.input(tag.as_ref());
        engine.input(&*Zeroizing::new(secret.secret_bytes()));
        engine.input(of);
        secret.non_secure_erase();
        Zeroizing::new(sha256::Hash::from_engine(engine).to_byte_array())
    }

    /// The node's signature under a blame record.
    #[must_use]
    pub fn sign_blame(&self, round: Round, blame: &Blame) -> [u8; 64] {
        let secp = Secp256k1::new();
        let mut secret = self.node_secret();
        let pair = Keypair::from_secret_key(&secp, &secret);
        secret.non_secure_erase();
        secp.sign_schnorr_no_aux_rand(&blame_digest(round, blame), &pair)
            .serialize()
    }
}

/// What the signature under a blame record covers: a tagged hash (BIP-340) of its fields.
#[must_use]
pub fn blame_digest(round: Round, blame: &Blame) -> Message {
    let tag = sha256::Hash::hash(b"superscalar/blame");
    let mut engine = sha256::Hash::engine();
    engine.input(tag.as_ref());
    engine.input(tag.as_ref());
    engine.input(&round.ceremony.0);
    engine.input(&round.attempt.0.to_be_bytes());
    engine.input(&blame.client.0);
    engine.input(&blame.factory_key.serialize());
    engine.input(blame.txid.as_ref());
    for text in [&blame.sent, &blame.nonce, &blame.sum] {
        engine.input(&(text.len() as u64).to_be_bytes());
        engine.input(text.as_bytes());
    }
    Message::from_digest(sha256::Hash::from_engine(engine).to_byte_array())
}

/// The operating system's randomness.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    OsRng.fill_bytes(&mut bytes);
    bytes
}

/// Signs for one ceremony. What its keys derive from is registered here after it was stored.
#[derive(Debug)]
pub struct CeremonySigner {
    keys: Arc<NodeKeys>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    fresh: HashMap<Attempt, FreshSeed>,
    channels: HashMap<LeafId, u128>,
}

impl CeremonySigner {
    /// A signer that knows no attempt yet.
    #[must_use]
    pub fn new(keys: Arc<NodeKeys>) -> Self {
        Self {
            keys,
            known: Mutex::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The randomness of this attempt is stored: its keys may be used. Those of earlier attempts are done with.
    pub fn begin(&self, attempt: Attempt, fresh: FreshSeed) {
        let mut known = self.known();
        known.fresh = HashMap::from([(attempt, fresh)]);
        known.channels.clear();
    }

    /// Whether this attempt's randomness is stored.
    #[must_use]
    pub fn knows(&self, attempt: Attempt) -> bool {
        self.fresh(attempt).is_some()
    }

    /// This attempt's randomness, once it is stored.
    #[must_use]
    pub fn fresh(&self, attempt: Attempt) -> Option<FreshSeed> {
        self.known().fresh.get(&attempt).copied()
    }

    /// The coordinator's funding key of the channel of `leaf`; `None` before the attempt began.
    #[must_use]
    pub fn channel_key(&self, attempt: Attempt, leaf: LeafId) -> Option<PublicKey> {
        let id = {
            let mut known = self.known();
            let id = lsp_channel_id(leaf.0, *known.fresh.get(&attempt)?);
            known.channels.insert(leaf, id);
            id
        };
        Some(self.keys.leaf_keys.funding_pubkey(id))
    }
}

impl LspSigner for CeremonySigner {
    fn factory_secret(&self, round: Round) -> SecretKey {
        let fresh = self.known().fresh.get(&round.attempt).copied();
        // A key from randomness that is not stored could not be found again: the driver refuses to store a proposal made
        // with it (`knows`), so that it signs nothing.
        self.keys
            .factory_secret(round, fresh.unwrap_or_else(random))
    }

    fn sign_channel_timeout(
        &self,
        leaf: LeafId,
        timeout: &FactoryTx,
        witness_script: &Script,
    ) -> Option<ecdsa::Signature> {
        let id = *self.known().channels.get(&leaf)?;
        let amount = timeout.spends.txout.value;
        self.keys
            .leaf_keys
            .sign_timeout(id, &timeout.tx, 0, witness_script, amount)
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::Network;
    use factory_tree::ids::{CeremonyId, ClientId};
    use keystore::{KdfCost, Passphrase};

    fn keys() -> Arc<NodeKeys> {
        let dir = tempfile::tempdir().unwrap();
        let passphrase = Passphrase::new("correct horse".into()).unwrap();
        let (seed, _) =
            Seed::create(dir.path().join("seed.json"), &passphrase, KdfCost::Light).unwrap();
        Arc::new(NodeKeys::new(&seed, Network::Regtest).unwrap())
    }

    fn round(attempt: u32) -> Round {
        Round {
            ceremony: CeremonyId([1; 16]),
            attempt: Attempt(attempt),
        }
    }

    #[test]
    fn keys_follow_from_stored_randomness_only() {
        let keys = keys();
        let signer = CeremonySigner::new(Arc::clone(&keys));
        assert!(!signer.knows(Attempt(1)));
        assert_ne!(
            signer.factory_secret(round(1)),
            signer.factory_secret(round(1))
        );
        assert_eq!(signer.channel_key(Attempt(1), LeafId([7; 16])), None);
        signer.begin(Attempt(1), [2; 16]);
        assert_eq!(
            signer.factory_secret(round(1)),
            keys.factory_secret(round(1), [2; 16])
        );
        let key = signer.channel_key(Attempt(1), LeafId([7; 16])).unwrap();
        signer.begin(Attempt(2), [3; 16]);
        assert!(!signer.knows(Attempt(1)));
        assert_ne!(signer.channel_key(Attempt(2), LeafId([7; 16])), Some(key));
    }

    #[test]
    fn a_blame_record_is_bound_to_every_field() {
        let keys = keys();
        let blame = Blame {
            client: ClientId([2; 33]),
            factory_key: keys.node_secret().public_key(&Secp256k1::new()),
            txid: bitcoin::Txid::all_zeros(),
            sent: "aa".into(),
            nonce: "bb".into(),
            sum: "cc".into(),
        };
        let signature =
            bitcoin::secp256k1::schnorr::Signature::from_slice(&keys.sign_blame(round(1), &blame))
                .unwrap();
        let node = keys.node_secret().x_only_public_key(&Secp256k1::new()).0;
        let valid = |round, blame: &Blame| {
            let message = blame_digest(round, blame);
            Secp256k1::new()
                .verify_schnorr(&signature, &message, &node)
                .is_ok()
        };
        assert!(valid(round(1), &blame));
        assert!(!valid(round(2), &blame));
        assert!(!valid(
            round(1),
            &Blame {
                sent: "aab".into(),
                nonce: "b".into(),
                ..blame.clone()
            }
        ));
    }
}
