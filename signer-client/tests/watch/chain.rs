//! A chain that the test mines, with an empty mempool that takes everything.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bitcoin::block::{Header, Version};
use bitcoin::hashes::Hash;
use bitcoin::{
    Block, BlockHash, CompactTarget, FeeRate, Network, OutPoint, Transaction, TxMerkleNode, Txid,
};
use chain::{
    BlockHeader, BlockId, ChainSource, Coin, MempoolEntry, NodeInfo, PackageOutcome, Result,
    TestAccept, TxOutcome, TxStatus,
};

#[derive(Debug)]
pub struct MinedChain {
    /// Height of the first block here.
    base: u32,
    blocks: Mutex<Vec<Arc<Block>>>,
    published: Mutex<Vec<Txid>>,
}

impl MinedChain {
    /// With one empty block at `base`.
    pub fn new(base: u32) -> Self {
        let chain = Self {
            base,
            blocks: Mutex::default(),
            published: Mutex::default(),
        };
        chain.mine(vec![]);
        chain
    }

    pub fn mine(&self, txdata: Vec<Transaction>) {
        let mut blocks = self.blocks.lock().unwrap();
        let previous = blocks.last().map(|block| block.block_hash());
        let merkle_root = txdata.first().map_or(TxMerkleNode::all_zeros(), |tx| {
            TxMerkleNode::from_raw_hash(tx.compute_txid().to_raw_hash())
        });
        let header = Header {
            version: Version::TWO,
            prev_blockhash: previous.unwrap_or(BlockHash::all_zeros()),
            merkle_root,
            time: u32::try_from(blocks.len()).unwrap(),
            bits: CompactTarget::from_consensus(0x207f_ffff),
            nonce: 0,
        };
        blocks.push(Arc::new(Block { header, txdata }));
    }

    pub fn mine_to(&self, height: u32) {
        while self.id().height < height {
            self.mine(vec![]);
        }
    }

    pub fn published(&self) -> Vec<Txid> {
        self.published.lock().unwrap().clone()
    }

    pub fn id(&self) -> BlockId {
        let blocks = self.blocks.lock().unwrap();
        BlockId {
            height: self.base + u32::try_from(blocks.len()).unwrap() - 1,
            hash: blocks.last().unwrap().block_hash(),
        }
    }
}

#[async_trait]
impl ChainSource for MinedChain {
    async fn node_info(&self) -> Result<NodeInfo> {
        let blocks = self.id().height;
        Ok(NodeInfo {
            network: Network::Regtest,
            version: 310_000,
            blocks,
            headers: blocks,
            initial_block_download: false,
        })
    }
    async fn tip(&self) -> Result<BlockId> {
        Ok(self.id())
    }
    async fn block_hash(&self, height: u32) -> Result<Option<BlockHash>> {
        let index = height.checked_sub(self.base);
        let blocks = self.blocks.lock().unwrap();
        let block = index.and_then(|index| blocks.get(index as usize));
        Ok(block.map(|block| block.block_hash()))
    }
    async fn header(&self, _hash: BlockHash) -> Result<Option<BlockHeader>> {
        Ok(None)
    }
    async fn block(&self, hash: BlockHash) -> Result<Arc<Block>> {
        let blocks = self.blocks.lock().unwrap();
        let found = blocks.iter().find(|block| block.block_hash() == hash);
        Ok(Arc::clone(found.unwrap()))
    }
    async fn fee_rate(&self, _target_blocks: u16) -> Result<FeeRate> {
        Ok(FeeRate::from_sat_per_vb_u32(2))
    }
    async fn broadcast(&self, transaction: &Transaction) -> Result<Txid> {
        let txid = transaction.compute_txid();
        self.published.lock().unwrap().push(txid);
        Ok(txid)
    }
    async fn submit_package(&self, transactions: &[Transaction]) -> Result<PackageOutcome> {
        let mut outcomes = Vec::new();
        for transaction in transactions {
            outcomes.push(TxOutcome {
                txid: self.broadcast(transaction).await?,
                status: TxStatus::InMempool {
                    vsize: None,
                    fee: None,
                    effective_feerate: None,
                },
            });
        }
        Ok(PackageOutcome {
            transactions: outcomes,
            replaced: vec![],
            message: "success".to_owned(),
        })
    }
    async fn test_accept(&self, _transactions: &[Transaction]) -> Result<Vec<TestAccept>> {
        Ok(vec![])
    }
    async fn coin(&self, _outpoint: OutPoint) -> Result<Option<Coin>> {
        Ok(None)
    }
    async fn mempool_entry(&self, _txid: Txid) -> Result<Option<MempoolEntry>> {
        Ok(None)
    }
    async fn mempool_spender(&self, _outpoint: OutPoint) -> Result<Option<Txid>> {
        Ok(None)
    }
    async fn raw_mempool_transaction(&self, _txid: Txid) -> Result<Option<Transaction>> {
        Ok(None)
    }
}
