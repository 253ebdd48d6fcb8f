//! The one trait through which everything else sees the chain.

use std::sync::Arc;

use async_trait::async_trait;
use bitcoin::{Amount, Block, BlockHash, FeeRate, Network, OutPoint, Transaction, TxOut, Txid};

use crate::{BlockHeader, BlockId, ChainError, MIN_NODE_VERSION, PackageOutcome, Reject, Result};

/// A view of the chain and a way to speak to it. Object safe; share it as `Arc<dyn ChainSource>`.
///
/// Every call has a timeout. Calls may be repeated: reads have no effect, and submitting what the node has already is a success.
#[async_trait]
pub trait ChainSource: Send + Sync + std::fmt::Debug {
    /// Who answers, and how far it is.
    async fn node_info(&self) -> Result<NodeInfo>;

    /// The best block.
    async fn tip(&self) -> Result<BlockId>;

    /// The hash of the active chain at a height; `None` above the tip.
    async fn block_hash(&self, height: u32) -> Result<Option<BlockHash>>;

    /// A header by its hash, stale ones included; `None` if the node never saw it.
    async fn header(&self, hash: BlockHash) -> Result<Option<BlockHeader>>;

    /// A whole block, stale ones included.
    ///
    /// Fails with [`ChainError::NoBlock`] if the node has not got it.
    async fn block(&self, hash: BlockHash) -> Result<Arc<Block>>;

    /// The feerate at which a transaction probably confirms within `target_blocks`; never below what the node relays, nor 1 sat/vB.
    async fn fee_rate(&self, target_blocks: u16) -> Result<FeeRate>;

    /// Submits one transaction. What is in the mempool or in a block already counts as a success.
    ///
    /// No limit is set on the fee: a child that pays for its parents has a feerate beyond any sane limit. Callers have budgets.
    async fn broadcast(&self, transaction: &Transaction) -> Result<Txid>;

    /// Submits parents and their child, in that order, to be judged together. What is in a block already is left out of the package.
    ///
    /// A refusal is not an error of the call: see [`PackageOutcome::rejection`].
    async fn submit_package(&self, transactions: &[Transaction]) -> Result<PackageOutcome>;

    /// Asks whether the mempool would take these transactions, without submitting them.
    async fn test_accept(&self, transactions: &[Transaction]) -> Result<Vec<TestAccept>>;

    /// A confirmed unspent output; `None` when it is unconfirmed, spent in a block, or unknown. The mempool is not considered.
    async fn coin(&self, outpoint: OutPoint) -> Result<Option<Coin>>;

    /// A transaction's place in the mempool, if it has one.
    async fn mempool_entry(&self, txid: Txid) -> Result<Option<MempoolEntry>>;

    /// The transaction of the mempool that spends this output.
    async fn mempool_spender(&self, outpoint: OutPoint) -> Result<Option<Txid>>;

    /// A transaction of the mempool, whole.
    async fn raw_mempool_transaction(&self, txid: Txid) -> Result<Option<Transaction>>;

    /// Whether one of this transaction's outputs is a confirmed coin: then it is in a block, though we may not know in which.
    async fn has_confirmed_output(&self, transaction: &Transaction) -> Result<bool> {
        let txid = transaction.compute_txid();
        for vout in (0u32..).take(transaction.output.len()) {
            if self.coin(OutPoint { txid, vout }).await?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Who answers, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// The network it serves.
    pub network: Network,
    /// Its version: 290100 is 29.1.
    pub version: u32,
    /// Blocks it has.
    pub blocks: u32,
    /// Headers it knows.
    pub headers: u32,
    /// Whether it considers itself far behind.
    pub initial_block_download: bool,
}

/// Headers come before their blocks: a node so few blocks behind is not syncing, a block is just being connected.
const ABOUT_TO_CONNECT: u32 = 3;

impl NodeInfo {
    /// Checks that this node can serve us now.
    ///
    /// # Errors
    /// [`ChainError::WrongNetwork`], [`ChainError::TooOld`] or [`ChainError::Syncing`].
    pub fn require_ready(&self, expected: Network) -> Result<()> {
        if self.network != expected {
            return Err(ChainError::WrongNetwork {
                expected,
                found: self.network,
            });
        }
        if self.version < MIN_NODE_VERSION {
            return Err(ChainError::TooOld {
                version: self.version,
                needed: MIN_NODE_VERSION,
            });
        }
        // A regtest node calls itself behind whenever nobody has mined for a day.
        let behind = self.initial_block_download && self.network != Network::Regtest;
        if behind || self.blocks.saturating_add(ABOUT_TO_CONNECT) < self.headers {
            return Err(ChainError::Syncing {
                blocks: self.blocks,
                headers: self.headers,
            });
        }
        Ok(())
    }
}

/// A confirmed unspent output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coin {
    /// Amount and script.
    pub txout: TxOut,
    /// Height of the block that created it.
    pub height: u32,
    /// Whether it is a block reward, spendable only after 100 blocks.
    pub coinbase: bool,
}

/// A transaction's place in the mempool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MempoolEntry {
    /// Its virtual size.
    pub vsize: u64,
    /// Its own fee.
    pub fee: Amount,
    /// Virtual size of it and of everything in the mempool that spends it.
    pub descendant_vsize: u64,
    /// Fee of it and of everything in the mempool that spends it.
    pub descendant_fee: Amount,
    /// Its unconfirmed parents.
    pub depends: Vec<Txid>,
    /// Its unconfirmed children.
    pub spent_by: Vec<Txid>,
}

/// Whether the mempool would take a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestAccept {
    /// Which.
    pub txid: Txid,
    /// Its virtual size and fee, or why not.
    pub verdict: Result<(u64, Amount), Reject>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> NodeInfo {
        NodeInfo {
            network: Network::Signet,
            version: 290_000,
            blocks: 7,
            headers: 7,
            initial_block_download: false,
        }
    }

    #[test]
    fn a_node_that_cannot_serve_us_is_refused_with_the_reason() {
        assert_eq!(ready().require_ready(Network::Signet), Ok(()));
        assert_eq!(
            ready().require_ready(Network::Bitcoin),
            Err(ChainError::WrongNetwork {
                expected: Network::Bitcoin,
                found: Network::Signet
            })
        );
        assert_eq!(
            NodeInfo {
                version: 280_100,
                ..ready()
            }
            .require_ready(Network::Signet),
            Err(ChainError::TooOld {
                version: 280_100,
                needed: 290_000
            })
        );
        assert_eq!(
            NodeInfo {
                headers: 10,
                ..ready()
            }
            .require_ready(Network::Signet),
            Ok(())
        );
        assert_eq!(
            NodeInfo {
                headers: 11,
                ..ready()
            }
            .require_ready(Network::Signet),
            Err(ChainError::Syncing {
                blocks: 7,
                headers: 11
            })
        );
        let downloading = NodeInfo {
            initial_block_download: true,
            ..ready()
        };
        assert_eq!(
            downloading.require_ready(Network::Signet),
            Err(ChainError::Syncing {
                blocks: 7,
                headers: 7
            })
        );
        let idle_regtest = NodeInfo {
            network: Network::Regtest,
            ..downloading
        };
        assert_eq!(idle_regtest.require_ready(Network::Regtest), Ok(()));
    }

    #[test]
    fn an_old_node_is_told_its_version_in_its_own_way() {
        let error = ChainError::TooOld {
            version: 280_100,
            needed: 290_000,
        };
        assert!(
            error
                .to_string()
                .starts_with("the Bitcoin node is version 28.1; 29 or newer is needed"),
            "{error}"
        );
    }
}
