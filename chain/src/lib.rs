//! A Bitcoin node behind one trait, and what stands directly on it.
//!
//! * [`ChainSource`]: blocks, coins, fees, mempool and package submission. [`BitcoindRpc`] is the first implementation.
//! * [`Follower`]: the chain as an ordered stream of connected and disconnected blocks.
//! * [`wallet`]: an on-chain wallet fed by a `Follower`, which funds factories and pays for exits.
//!
//! This crate knows nothing of factories: transactions, outpoints and feerates go in and out.

mod bitcoind;
mod block;
mod error;
mod follower;
mod package;
mod source;
pub mod wallet;

pub use bitcoind::{BitcoindConfig, BitcoindRpc, RpcAuth};
pub use block::{BlockHeader, BlockId};
pub use error::ChainError;
pub use follower::{ChainEvent, Follower};
pub use package::{PackageOutcome, Reject, RejectKind, TxOutcome, TxStatus};
pub use source::{ChainSource, Coin, MempoolEntry, NodeInfo, TestAccept};

/// The oldest Bitcoin Core that knows TRUC, P2A, ephemeral dust and `submitpackage` as this project uses them.
pub const MIN_NODE_VERSION: u32 = 290_000;

/// What this crate returns.
pub type Result<T, E = ChainError> = std::result::Result<T, E>;
