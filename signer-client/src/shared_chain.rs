//! One Bitcoin node for many wallets in one process: equal questions are asked once.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bitcoin::{Block, BlockHash, FeeRate, OutPoint, Transaction, Txid};
use chain::{
    BlockHeader, BlockId, ChainSource, Coin, MempoolEntry, NodeInfo, PackageOutcome, Result,
    TestAccept,
};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Blocks kept in memory.
const BLOCKS: usize = 16;

/// A [`ChainSource`] that many clients share. What it says of the tip may be `max_age` old.
#[derive(Debug)]
pub struct SharedChain {
    source: Arc<dyn ChainSource>,
    max_age: Duration,
    known: Mutex<Known>,
    blocks: Mutex<VecDeque<(BlockHash, Arc<Block>)>>,
}

#[derive(Debug, Default)]
struct Known {
    tip: Option<(Instant, BlockId)>,
    /// Hashes by height; valid for this tip only.
    hashes: HashMap<u32, Option<BlockHash>>,
}

impl SharedChain {
    /// In front of `source`.
    #[must_use]
    pub fn new(source: Arc<dyn ChainSource>, max_age: Duration) -> Self {
        Self {
            source,
            max_age,
            known: Mutex::default(),
            blocks: Mutex::default(),
        }
    }

    /// The tip, asked for by the first who finds it too old, while the others wait.
    async fn refresh(&self, known: &mut Known) -> Result<BlockId> {
        if let Some((asked, tip)) = known.tip
            && asked.elapsed() < self.max_age
        {
            return Ok(tip);
        }
        let tip = self.source.tip().await?;
        if known.tip.is_none_or(|(_, before)| before != tip) {
            known.hashes.clear();
        }
        known.tip = Some((Instant::now(), tip));
        Ok(tip)
    }
}

#[async_trait]
impl ChainSource for SharedChain {
    async fn node_info(&self) -> Result<NodeInfo> {
        self.source.node_info().await
    }

    async fn tip(&self) -> Result<BlockId> {
        let mut known = self.known.lock().await;
        self.refresh(&mut known).await
    }

    async fn block_hash(&self, height: u32) -> Result<Option<BlockHash>> {
        let mut known = self.known.lock().await;
        self.refresh(&mut known).await?;
        if let Some(hash) = known.hashes.get(&height) {
            return Ok(*hash);
        }
        let hash = self.source.block_hash(height).await?;
        known.hashes.insert(height, hash);
        Ok(hash)
    }

    async fn header(&self, hash: BlockHash) -> Result<Option<BlockHeader>> {
        self.source.header(hash).await
    }

    async fn block(&self, hash: BlockHash) -> Result<Arc<Block>> {
        let mut blocks = self.blocks.lock().await;
        if let Some((_, block)) = blocks.iter().find(|(known, _)| *known == hash) {
            return Ok(Arc::clone(block));
        }
        let block = self.source.block(hash).await?;
        if blocks.len() >= BLOCKS {
            blocks.pop_front();
        }
        blocks.push_back((hash, Arc::clone(&block)));
        Ok(block)
    }

    async fn fee_rate(&self, target_blocks: u16) -> Result<FeeRate> {
        self.source.fee_rate(target_blocks).await
    }

    async fn broadcast(&self, transaction: &Transaction) -> Result<Txid> {
        self.source.broadcast(transaction).await
    }

    async fn submit_package(&self, transactions: &[Transaction]) -> Result<PackageOutcome> {
        self.source.submit_package(transactions).await
    }

    async fn test_accept(&self, transactions: &[Transaction]) -> Result<Vec<TestAccept>> {
        self.source.test_accept(transactions).await
    }

    async fn coin(&self, outpoint: OutPoint) -> Result<Option<Coin>> {
        self.source.coin(outpoint).await
    }

    async fn mempool_entry(&self, txid: Txid) -> Result<Option<MempoolEntry>> {
        self.source.mempool_entry(txid).await
    }

    async fn mempool_spender(&self, outpoint: OutPoint) -> Result<Option<Txid>> {
        self.source.mempool_spender(outpoint).await
    }

    async fn raw_mempool_transaction(&self, txid: Txid) -> Result<Option<Transaction>> {
        self.source.raw_mempool_transaction(txid).await
    }
}
