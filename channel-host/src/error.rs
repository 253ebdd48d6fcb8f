//! What a node refuses or fails to do.

use std::net::SocketAddr;

use bitcoin::secp256k1::PublicKey;
use lightning::util::errors::APIError;

use crate::StoreError;
use crate::leaf::LeafId;

/// An error that names the cause.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The store's.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The Bitcoin node's.
    #[error(transparent)]
    Chain(#[from] chain::ChainError),
    /// The store belongs to another seed or another chain.
    #[error("this channel store belongs to {found}, not to {expected}")]
    OtherOwner {
        /// What is configured.
        expected: String,
        /// What is stored.
        found: String,
    },
    /// What was stored cannot be read back.
    #[error("the stored {what} cannot be read ({cause}); it is damaged, or of another release")]
    Unreadable {
        /// What it is.
        what: &'static str,
        /// Why not.
        cause: String,
    },
    /// The listening address is taken or not ours.
    #[error("cannot listen for Lightning peers on {address} ({cause})")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The system's words.
        cause: String,
    },
    /// No connection came about.
    #[error("cannot reach the Lightning node {peer} at {address}")]
    Unreachable {
        /// Who.
        peer: PublicKey,
        /// Where.
        address: SocketAddr,
    },
    /// A leaf nobody registered.
    #[error("leaf {leaf} is not known to this node")]
    UnknownLeaf {
        /// Which.
        leaf: LeafId,
    },
    /// A leaf id serves one channel, ever.
    #[error("leaf {leaf} has been used already; a leaf id serves one channel, ever")]
    LeafUsed {
        /// Which.
        leaf: LeafId,
    },
    /// The output does not fit what was said about it.
    #[error("leaf {leaf} does not fit: {what}")]
    UnfitLeaf {
        /// Which.
        leaf: LeafId,
        /// What does not fit.
        what: &'static str,
    },
    /// The leaf still has something to lose.
    #[error("leaf {leaf} cannot be forgotten: {what}")]
    NotOver {
        /// Which.
        leaf: LeafId,
        /// What is not over.
        what: &'static str,
    },
    /// No such channel.
    #[error("there is no such channel")]
    UnknownChannel,
    /// The Lightning stack's refusal of what it may accept a moment later: the peer is away, or a step of the channel is still being written down.
    #[error("{0}; try again in a moment")]
    NotNow(String),
    /// The Lightning stack's refusal.
    #[error("{0}")]
    Refused(String),
}

impl From<APIError> for NodeError {
    fn from(error: APIError) -> Self {
        match error {
            APIError::ChannelUnavailable { err } => Self::NotNow(err),
            error => Self::Refused(format!("{error:?}")),
        }
    }
}
