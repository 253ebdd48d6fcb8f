//! A chain on which nothing happens.

use std::sync::Arc;

use async_trait::async_trait;
use bitcoin::hashes::Hash;
use bitcoin::{Block, BlockHash, FeeRate, OutPoint, Transaction, Txid};
use chain::{
    BlockHeader, BlockId, ChainError, ChainSource, Coin, MempoolEntry, NodeInfo, PackageOutcome,
    Result, TestAccept,
};

#[derive(Debug)]
pub struct StandingChain;

fn nothing<T>() -> Result<T> {
    Err(ChainError::NoCheckpoint)
}

#[async_trait]
impl ChainSource for StandingChain {
    async fn node_info(&self) -> Result<NodeInfo> {
        nothing()
    }
    async fn tip(&self) -> Result<BlockId> {
        Ok(BlockId {
            height: 100,
            hash: BlockHash::all_zeros(),
        })
    }
    async fn block_hash(&self, _height: u32) -> Result<Option<BlockHash>> {
        nothing()
    }
    async fn header(&self, _hash: BlockHash) -> Result<Option<BlockHeader>> {
        nothing()
    }
    async fn block(&self, _hash: BlockHash) -> Result<Arc<Block>> {
        nothing()
    }
    async fn fee_rate(&self, _target_blocks: u16) -> Result<FeeRate> {
        Ok(FeeRate::from_sat_per_vb_u32(2))
    }
    async fn broadcast(&self, _transaction: &Transaction) -> Result<Txid> {
        nothing()
    }
    async fn submit_package(&self, _transactions: &[Transaction]) -> Result<PackageOutcome> {
        nothing()
    }
    async fn test_accept(&self, _transactions: &[Transaction]) -> Result<Vec<TestAccept>> {
        nothing()
    }
    async fn coin(&self, _outpoint: OutPoint) -> Result<Option<Coin>> {
        nothing()
    }
    async fn mempool_entry(&self, _txid: Txid) -> Result<Option<MempoolEntry>> {
        nothing()
    }
    async fn mempool_spender(&self, _outpoint: OutPoint) -> Result<Option<Txid>> {
        nothing()
    }
    async fn raw_mempool_transaction(&self, _txid: Txid) -> Result<Option<Transaction>> {
        nothing()
    }
}
