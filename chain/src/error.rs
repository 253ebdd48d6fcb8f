//! What can go wrong between us and the chain.

use std::path::PathBuf;

use bitcoin::{BlockHash, Network, Txid};

use crate::{BlockId, Reject};

/// An error that names the cause and the remedy.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// Nothing answers at the node's address.
    #[error(
        "no answer from the Bitcoin node at {url} ({cause}); start bitcoind, or correct the RPC address"
    )]
    Unreachable {
        /// Address of the RPC server, without credentials.
        url: String,
        /// What the operating system said.
        cause: String,
    },
    /// The node refused our credentials.
    #[error(
        "the Bitcoin node at {url} refused the RPC credentials; correct the user and password, or the path of the cookie file"
    )]
    Unauthorized {
        /// Address of the RPC server, without credentials.
        url: String,
    },
    /// The cookie file cannot be read.
    #[error(
        "cannot read the RPC cookie {path} ({cause}); bitcoind writes it when it starts: is it running, and may this user read it?"
    )]
    Cookie {
        /// Where it was looked for.
        path: PathBuf,
        /// What the operating system said.
        cause: String,
    },
    /// The address in the configuration is not one.
    #[error("{url} is not an RPC address ({cause}); write it like http://127.0.0.1:8332")]
    BadUrl {
        /// As configured.
        url: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The node answers, but is still starting, or is too busy, and stayed so for the whole time we were willing to wait.
    #[error("the Bitcoin node at {url} is not ready ({message}); wait for it, then try again")]
    NotReady {
        /// Address of the RPC server, without credentials.
        url: String,
        /// The node's words.
        message: String,
    },
    /// The node has not caught up with the chain.
    #[error(
        "the Bitcoin node is still syncing: block {blocks} of {headers}; wait until it has caught up"
    )]
    Syncing {
        /// Blocks it has.
        blocks: u32,
        /// Headers it knows.
        headers: u32,
    },
    /// The node serves another network than we are configured for.
    #[error(
        "the Bitcoin node is on {found}, this service on {expected}; point it to a node of its network"
    )]
    WrongNetwork {
        /// Ours.
        expected: Network,
        /// The node's.
        found: Network,
    },
    /// The node lacks the relay rules that exits depend on.
    #[error("the Bitcoin node is version {}.{}; {} or newer is needed (TRUC, P2A, package submission)", .version / 10_000, .version / 100 % 100, .needed / 10_000)]
    TooOld {
        /// As the node reports it: 290100 is 29.1.
        version: u32,
        /// The least that will do, in the same form.
        needed: u32,
    },
    /// The node refused a transaction.
    #[error("the node refused transaction {txid}: {reason}")]
    Rejected {
        /// Which.
        txid: Txid,
        /// Why.
        reason: Reject,
    },
    /// The node does not have this block: unknown, or pruned away.
    #[error("the node has no block {hash} (unknown to it, or pruned)")]
    NoBlock {
        /// Which.
        hash: BlockHash,
    },
    /// None of the blocks we know is on the node's chain: another chain, or a node that lost its data.
    #[error(
        "the node's chain does not contain block {oldest}, the oldest one known here; is it the right node?"
    )]
    NoCommonBlock {
        /// The last one tried.
        oldest: BlockId,
    },
    /// A `Follower` needs a place to start.
    #[error("no block to start from was given")]
    NoCheckpoint,
    /// Any other error of the node.
    #[error("the Bitcoin node answered {method} with error {code}: {message}")]
    Rpc {
        /// The RPC method.
        method: &'static str,
        /// JSON-RPC error code.
        code: i32,
        /// The node's words.
        message: String,
    },
    /// The node's answer has not the shape it should have.
    #[error("the Bitcoin node's answer to {method} cannot be read: {what}")]
    UnexpectedAnswer {
        /// The RPC method.
        method: &'static str,
        /// What is wrong with it.
        what: String,
    },
}

impl ChainError {
    /// Whether the same call may succeed later without anybody changing a configuration.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Cookie { .. }
                | Self::NotReady { .. }
                | Self::Syncing { .. }
                | Self::NoBlock { .. }
        )
    }
}
