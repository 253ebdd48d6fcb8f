//! The handshake of a session: both sides sign what they heard of each other.
//!
//! What is signed (BIP-340, by the node key) is the BIP-340 tagged hash of the whole [`Transcript`],
//! under one tag for the coordinator and another for the client, so that neither signature can serve
//! as the other. Fresh random bytes of both sides make an old signature worthless; the hash of the TLS
//! certificate makes one worthless that was obtained over another connection (a proxy's, say).
//!
//! Each step consumes the one before: a challenge is answered once.

mod client;
mod server;
mod transcript;

use std::sync::LazyLock;

use bitcoin::Network;
use bitcoin::secp256k1::{All, Secp256k1};

pub use client::{ClientHandshake, ClientHello};
pub use server::{AwaitAnswer, ServerHandshake};
pub use transcript::{CertHash, Fresh, Transcript};

use crate::NodeId;
use crate::session::ServiceError;
use crate::v1::ErrorCode;
use crate::wire::WireError;

pub(crate) static SECP: LazyLock<Secp256k1<All>> = LazyLock::new(Secp256k1::new);

/// Why a handshake is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// A message of another kind, or none, where a step of the handshake was due.
    #[error("the handshake needs {expected} here")]
    Missing {
        /// What should have come.
        expected: &'static str,
    },
    /// The two sides have no version in common.
    #[error(
        "protocol version {found} is not supported, versions {min} to {max} are: update the older side"
    )]
    Version {
        /// What the client speaks.
        found: u32,
        /// The oldest version supported.
        min: u32,
        /// The newest version supported.
        max: u32,
    },
    /// The two sides are on different networks.
    #[error("the client is on {found}, the coordinator on {expected}")]
    Network {
        /// The client's network.
        found: Network,
        /// The coordinator's network.
        expected: Network,
    },
    /// The coordinator is not the one the client was told of.
    #[error("this is coordinator {found}, expected {expected}: check the connection string")]
    OtherCoordinator {
        /// Who answered.
        found: NodeId,
        /// Who was expected.
        expected: Box<NodeId>,
    },
    /// A signature that is wrong for this handshake.
    #[error("the signature of {signer} does not fit this handshake")]
    Signature {
        /// Whose signature it should be.
        signer: NodeId,
    },
    /// A malformed field.
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl From<AuthError> for ServiceError {
    fn from(error: AuthError) -> Self {
        let code = match &error {
            AuthError::Missing { .. } => ErrorCode::Unexpected,
            AuthError::Version { .. } => ErrorCode::VersionUnsupported,
            AuthError::Network { .. } => ErrorCode::WrongNetwork,
            AuthError::OtherCoordinator { .. } | AuthError::Signature { .. } => {
                ErrorCode::AuthFailed
            }
            AuthError::Wire(error) => return error.clone().into(),
        };
        let service = Self::new(code, error.to_string());
        match error {
            AuthError::Signature { signer } => service.client(signer.into()),
            _ => service,
        }
    }
}

#[cfg(test)]
mod tests;
