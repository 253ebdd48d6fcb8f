//! What the two sides sign.

use core::fmt;
use core::str::FromStr;

use bitcoin::Network;
use bitcoin::blockdata::constants::ChainHash;
use bitcoin::secp256k1::{Keypair, Message, SecretKey, schnorr};
use sha2::{Digest, Sha256};

use super::{AuthError, SECP};
use crate::NodeId;

const SERVER_TAG: &[u8] = b"superscalar/v1/auth/coordinator";
const CLIENT_TAG: &[u8] = b"superscalar/v1/auth/client";

/// 32 bytes that the caller drew from a cryptographic source for this one use.
pub type Fresh = [u8; 32];

/// SHA-256 of a TLS certificate (DER).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CertHash(pub [u8; 32]);

/// A text that is not the hash of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a certificate's SHA-256 is 64 hex digits")]
pub struct CertHashError;

impl CertHash {
    /// What is signed where there is no TLS.
    pub const PLAIN: Self = Self([0; 32]);

    /// The hash of a certificate.
    #[must_use]
    pub fn of(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }
}

impl fmt::Display for CertHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for CertHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CertHash({self})")
    }
}

impl FromStr for CertHash {
    type Err = CertHashError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut hash = [0u8; 32];
        hex::decode_to_slice(text, &mut hash).map_err(|_| CertHashError)?;
        Ok(Self(hash))
    }
}

/// Everything the two sides must agree on. All fields have fixed lengths, so that no two transcripts
/// are hashed from the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transcript {
    /// The protocol version the client asked for.
    pub version: u32,
    /// The network.
    pub network: Network,
    /// The coordinator's TLS certificate, as each side sees it.
    pub cert: CertHash,
    /// The client.
    pub client: NodeId,
    /// The coordinator.
    pub server: NodeId,
    /// Fresh bytes of the client's.
    pub client_nonce: Fresh,
    /// Fresh bytes of the coordinator's.
    pub challenge: Fresh,
}

impl Transcript {
    /// The coordinator's signature; `aux` is BIP-340's auxiliary randomness.
    #[must_use]
    pub fn sign_as_server(&self, secret: &SecretKey, aux: &Fresh) -> schnorr::Signature {
        sign(self.digest(SERVER_TAG), secret, aux)
    }

    /// The client's signature; `aux` is BIP-340's auxiliary randomness.
    #[must_use]
    pub fn sign_as_client(&self, secret: &SecretKey, aux: &Fresh) -> schnorr::Signature {
        sign(self.digest(CLIENT_TAG), secret, aux)
    }

    /// Checks the coordinator's signature.
    ///
    /// # Errors
    /// [`AuthError::Signature`].
    pub fn verify_server(&self, signature: &schnorr::Signature) -> Result<(), AuthError> {
        verify(self.digest(SERVER_TAG), self.server, signature)
    }

    /// Checks the client's signature.
    ///
    /// # Errors
    /// [`AuthError::Signature`].
    pub fn verify_client(&self, signature: &schnorr::Signature) -> Result<(), AuthError> {
        verify(self.digest(CLIENT_TAG), self.client, signature)
    }

    /// BIP-340's tagged hash of all fields. The compressed node ids are hashed because BIP-340 keys
    /// have lost their parity.
    fn digest(&self, tag: &[u8]) -> Message {
        let tag = Sha256::digest(tag);
        let mut hash = Sha256::new();
        hash.update(tag);
        hash.update(tag);
        hash.update(self.version.to_be_bytes());
        hash.update(ChainHash::using_genesis_block_const(self.network).as_bytes());
        hash.update(self.cert.0);
        hash.update(self.server.to_bytes());
        hash.update(self.client.to_bytes());
        hash.update(self.client_nonce);
        hash.update(self.challenge);
        Message::from_digest(hash.finalize().into())
    }
}

fn sign(digest: Message, secret: &SecretKey, aux: &Fresh) -> schnorr::Signature {
    let mut pair = Keypair::from_secret_key(&SECP, secret);
    let signature = SECP.sign_schnorr_with_aux_rand(&digest, &pair, aux);
    pair.non_secure_erase();
    signature
}

fn verify(
    digest: Message,
    signer: NodeId,
    signature: &schnorr::Signature,
) -> Result<(), AuthError> {
    let (key, _) = signer.public_key().x_only_public_key();
    SECP.verify_schnorr(signature, &digest, &key)
        .map_err(|_| AuthError::Signature { signer })
}
