//! The keys of leaf channels, over LDK's real `KeysManager`.

use std::fmt;
use std::sync::Arc;

use bitcoin::bip32::{ChildNumber, Xpriv};
use bitcoin::hashes::{Hash, HashEngine, Hmac, HmacEngine, sha256, sha512};
use bitcoin::secp256k1::{All, PublicKey, Scalar, Secp256k1, SecretKey, ecdsa};
use bitcoin::{Amount, Network, Script, ScriptBuf, Transaction};
use lightning::ln::script::ShutdownScript;
use lightning::sign::{InMemorySigner, KeysManager, SignerProvider};
use lightning::util::message_signing;
use zeroize::{Zeroize, Zeroizing};

use crate::ids::{is_leaf, keys_id};
use crate::timeout::{self, TimeoutError};

/// LDK's own path to the key all channels grow from (`KeysManager::new`).
const CHANNEL_MASTER: ChildNumber = ChildNumber::Hardened { index: 3 };

/// Keeps starting times apart from [`crate::ids::LEAF_MARK`], which has bits above these.
const STARTING_TIME_BITS: u64 = u64::MAX >> 8;

/// Whether the node with this id signed the text ([`LeafKeys::sign`]): zbase32 of a recoverable signature.
pub fn is_signed_by(text: &str, signature: &str, node: &PublicKey) -> bool {
    message_signing::verify(text.as_bytes(), signature, node)
}

/// What the LSP signs of a notification to a webhook (LSPS5, bLIP-55): the time and the body as they travel.
pub fn notification_text(timestamp: &str, body: &str) -> String {
    format!("LSPS5: DO NOT SIGN THIS MESSAGE MANUALLY: LSP: At {timestamp} I notify {body}")
}

/// The channel keys of one seed: for leaves a pure function of seed and channel id, for ordinary channels LDK's own.
///
/// Cheap to share and to use from many threads. LDK's half of the secrets is not wiped when dropped (`KeysManager`
/// does not), ours is. Not shown by `Debug`.
pub struct LeafKeys {
    keys_manager: Arc<KeysManager>,
    secp: Secp256k1<All>,
    funding: FundingPath,
}

impl LeafKeys {
    /// Keys of this seed (`keystore`'s `ldk_seed`).
    pub fn new(ldk_seed: &[u8; 32]) -> Self {
        // LDK wants a number here that no other run of this seed has; it calls it a time, but a clock set back or a virtual
        // machine put back to a snapshot would repeat it, and with it LDK's random numbers.
        Self::starting_at(ldk_seed, rand::random(), rand::random())
    }

    fn starting_at(ldk_seed: &[u8; 32], secs: u64, nanos: u32) -> Self {
        let secp = Secp256k1::new();
        let funding = FundingPath::new(&secp, ldk_seed);
        // The last argument makes LDK's payment keys one of a fixed set, found again from the seed alone.
        let keys_manager = KeysManager::new(ldk_seed, secs & STARTING_TIME_BITS, nanos, true);
        Self {
            keys_manager: Arc::new(keys_manager),
            secp,
            funding,
        }
    }

    /// LDK's own manager, for whatever else LDK wants of it (entropy, node signing, sweeping).
    pub fn keys_manager(&self) -> &Arc<KeysManager> {
        &self.keys_manager
    }

    /// The id of the node that has these keys.
    pub fn node_id(&self) -> PublicKey {
        PublicKey::from_secret_key(&self.secp, &self.keys_manager.get_node_secret_key())
    }

    /// Signs a text with the node's key, as Lightning nodes do, for [`is_signed_by`].
    pub fn sign(&self, text: &str) -> String {
        let secret = self.keys_manager.get_node_secret_key();
        message_signing::sign(text.as_bytes(), &secret)
    }

    /// Our funding key of a leaf's channel; `leaf` is our own channel id of it (see the crate's documentation).
    pub fn funding_pubkey(&self, leaf: u128) -> PublicKey {
        let mut secret = self.funding_secret(leaf);
        let key = PublicKey::from_secret_key(&self.secp, &secret);
        secret.non_secure_erase();
        key
    }

    /// The secret behind [`Self::funding_pubkey`], to be handed over when the client has left the factory, and never
    /// before. It gives no other key away: LDK makes each of them by a hash over the seed.
    pub fn funding_secret(&self, leaf: u128) -> SecretKey {
        self.funding.secret(&keys_id(leaf))
    }

    /// Our half of a channel's timeout, signed with SIGHASH_ALL when the tree is signed.
    ///
    /// Refuses what is no timeout: such a signature is a standing permission to take the channel. What the timeout pays
    /// to whom is for the caller to have checked. The signature is of use with exactly this `redeem_script` and `amount`
    /// (BIP-143).
    pub fn sign_timeout(
        &self,
        leaf: u128,
        tx: &Transaction,
        input_index: usize,
        redeem_script: &Script,
        amount: Amount,
    ) -> Result<ecdsa::Signature, TimeoutError> {
        let message = timeout::message(tx, input_index, redeem_script, amount)?;
        let mut secret = self.funding_secret(leaf);
        let signature = self.secp.sign_ecdsa(&message, &secret);
        secret.non_secure_erase();
        Ok(signature)
    }

    /// Whether the other side's half of a channel's timeout is good: made by `signer`, one of the script's two keys, over what
    /// [`Self::sign_timeout`] would sign, with low S (BIP-146), so that nodes relay it.
    pub fn verify_timeout_signature(
        &self,
        signer: &PublicKey,
        signature: &ecdsa::Signature,
        tx: &Transaction,
        input_index: usize,
        redeem_script: &Script,
        amount: Amount,
    ) -> Result<(), TimeoutError> {
        if !timeout::has_key(redeem_script, signer) {
            return Err(TimeoutError::ForeignKey { signer: *signer });
        }
        let message = timeout::message(tx, input_index, redeem_script, amount)?;
        self.secp
            .verify_ecdsa(&message, signature, signer)
            .map_err(|_| TimeoutError::BadSignature { signer: *signer })
    }
}

impl fmt::Debug for LeafKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LeafKeys(..)")
    }
}

impl SignerProvider for LeafKeys {
    type EcdsaSigner = InMemorySigner;

    /// For a leaf the same at every call, against LDK's advice: one channel per leaf id, ever, is for the stores to keep.
    fn generate_channel_keys_id(&self, inbound: bool, user_channel_id: u128) -> [u8; 32] {
        if is_leaf(user_channel_id) {
            keys_id(user_channel_id)
        } else {
            self.keys_manager
                .generate_channel_keys_id(inbound, user_channel_id)
        }
    }

    fn derive_channel_signer(&self, channel_keys_id: [u8; 32]) -> InMemorySigner {
        self.keys_manager.derive_channel_signer(channel_keys_id)
    }

    fn get_destination_script(&self, channel_keys_id: [u8; 32]) -> Result<ScriptBuf, ()> {
        self.keys_manager.get_destination_script(channel_keys_id)
    }

    fn get_shutdown_scriptpubkey(&self) -> Result<ShutdownScript, ()> {
        self.keys_manager.get_shutdown_scriptpubkey()
    }
}

/// LDK's `derive_channel_keys`, as far as the funding key and no farther. LDK's computes five more secrets and, through two
/// BIP-32 steps, two public keys nobody asked for; a coordinator needs a thousand funding keys within a ceremony.
/// Tests compare the two on many seeds and ids.
struct FundingPath {
    ldk_seed: Zeroizing<[u8; 32]>,
    master_key: Zeroizing<[u8; 32]>,
    master_chain_code: Zeroizing<[u8; 32]>,
}

impl FundingPath {
    fn new(secp: &Secp256k1<All>, ldk_seed: &[u8; 32]) -> Self {
        // The network only changes how such a key is written down.
        let mut master = Xpriv::new_master(Network::Testnet, ldk_seed)
            .and_then(|master| master.derive_priv(secp, &CHANNEL_MASTER))
            .expect("invalid with probability 2^-127, and LDK's KeysManager would refuse this seed likewise");
        let path = Self {
            ldk_seed: Zeroizing::new(*ldk_seed),
            master_key: Zeroizing::new(master.private_key.secret_bytes()),
            master_chain_code: Zeroizing::new(master.chain_code.to_bytes()),
        };
        master.private_key.non_secure_erase();
        path
    }

    fn secret(&self, keys_id: &[u8; 32]) -> SecretKey {
        let child = self.child(keys_id);
        let seed = hash(&[keys_id, &*self.ldk_seed, &*child]);
        let commitment_seed = hash(&[&*seed, b"commitment seed"]);
        let funding = hash(&[&*seed, &*commitment_seed, b"funding key"]);
        SecretKey::from_slice(&*funding)
            .expect("a hash is an invalid scalar with probability 2^-127")
    }

    /// BIP-32's hardened private step, without the parent's fingerprint, which costs a public key.
    fn child(&self, keys_id: &[u8; 32]) -> Zeroizing<[u8; 32]> {
        let [_, _, _, _, a, b, c, d, ..] = *keys_id;
        let hardened = u32::from_be_bytes([a, b, c, d]) | (1 << 31);
        let mut engine = HmacEngine::<sha512::Hash>::new(&*self.master_chain_code);
        engine.input(&[0]);
        engine.input(&*self.master_key);
        engine.input(&hardened.to_be_bytes());
        let mut full = Hmac::from_engine(engine).to_byte_array();
        let mut left = Zeroizing::new([0; 32]);
        left.copy_from_slice(&full[..32]);
        full.zeroize();
        let mut child = Scalar::from_be_bytes(*left)
            .ok()
            .and_then(|tweak| {
                SecretKey::from_slice(&*self.master_key)
                    .ok()?
                    .add_tweak(&tweak)
                    .ok()
            })
            .expect("invalid with probability 2^-127, and LDK panics likewise");
        let bytes = Zeroizing::new(child.secret_bytes());
        child.non_secure_erase();
        bytes
    }
}

fn hash(parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut engine = sha256::Hash::engine();
    parts.iter().for_each(|part| engine.input(part));
    Zeroizing::new(sha256::Hash::from_engine(engine).to_byte_array())
}
