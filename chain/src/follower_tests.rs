//! The follower against a chain that changes under it.

use std::sync::Mutex;

use async_trait::async_trait;
use bitcoin::block::{Header, Version};
use bitcoin::hashes::Hash;
use bitcoin::{CompactTarget, FeeRate, OutPoint, Transaction, TxMerkleNode, Txid};
use proptest::prelude::*;

use super::*;
use crate::{BlockHeader, Coin, MempoolEntry, NodeInfo, PackageOutcome, TestAccept};

/// A chain of empty blocks. `surprise` happens while a block is being fetched.
#[derive(Debug, Default)]
struct FakeChain {
    active: Mutex<Vec<Arc<Block>>>,
    stale: Mutex<Vec<Arc<Block>>>,
    surprise: Mutex<Option<(usize, usize)>>,
    forgets_stale: bool,
}

impl FakeChain {
    fn mined(n: usize) -> Self {
        let chain = Self::default();
        chain.mine(n);
        chain
    }

    fn mine(&self, n: usize) {
        let mut active = self.active.lock().unwrap();
        let stale = self.stale.lock().unwrap().len();
        for _ in 0..n {
            let prev_blockhash = active
                .last()
                .map_or_else(BlockHash::all_zeros, |block| block.block_hash());
            // The number of stale blocks makes a new branch differ from the old one.
            let nonce = u32::try_from(stale).unwrap();
            let header = Header {
                version: Version::TWO,
                prev_blockhash,
                merkle_root: TxMerkleNode::all_zeros(),
                time: 0,
                bits: CompactTarget::default(),
                nonce,
            };
            active.push(Arc::new(Block {
                header,
                txdata: Vec::new(),
            }));
        }
    }

    fn reorg(&self, depth: usize, n: usize) {
        {
            let mut active = self.active.lock().unwrap();
            let keep = active.len() - depth;
            self.stale.lock().unwrap().extend(active.drain(keep..));
        }
        self.mine(n);
    }

    fn ids(&self) -> Vec<BlockId> {
        let active = self.active.lock().unwrap();
        active
            .iter()
            .zip(0..)
            .map(|(block, height)| BlockId {
                height,
                hash: block.block_hash(),
            })
            .collect()
    }
}

fn out_of_scope<T>() -> Result<T> {
    Err(ChainError::NoCheckpoint)
}

#[async_trait]
impl ChainSource for FakeChain {
    async fn tip(&self) -> Result<BlockId> {
        Ok(*self.ids().last().unwrap())
    }
    async fn block_hash(&self, height: u32) -> Result<Option<BlockHash>> {
        Ok(self.ids().get(height as usize).map(|id| id.hash))
    }
    async fn header(&self, hash: BlockHash) -> Result<Option<BlockHeader>> {
        let active = self.active.lock().unwrap();
        let found = active
            .iter()
            .zip(0..)
            .find(|(block, _)| block.block_hash() == hash);
        Ok(found.map(|(block, height)| BlockHeader {
            header: block.header,
            height,
            active: true,
        }))
    }
    async fn block(&self, hash: BlockHash) -> Result<Arc<Block>> {
        if let Some((depth, n)) = self.surprise.lock().unwrap().take() {
            self.reorg(depth, n);
        }
        let find = |blocks: &[Arc<Block>]| {
            blocks
                .iter()
                .find(|block| block.block_hash() == hash)
                .cloned()
        };
        let stale = if self.forgets_stale {
            None
        } else {
            find(&self.stale.lock().unwrap())
        };
        find(&self.active.lock().unwrap())
            .or(stale)
            .ok_or(ChainError::NoBlock { hash })
    }
    async fn node_info(&self) -> Result<NodeInfo> {
        out_of_scope()
    }
    async fn fee_rate(&self, _: u16) -> Result<FeeRate> {
        out_of_scope()
    }
    async fn broadcast(&self, _: &Transaction) -> Result<Txid> {
        out_of_scope()
    }
    async fn submit_package(&self, _: &[Transaction]) -> Result<PackageOutcome> {
        out_of_scope()
    }
    async fn test_accept(&self, _: &[Transaction]) -> Result<Vec<TestAccept>> {
        out_of_scope()
    }
    async fn coin(&self, _: OutPoint) -> Result<Option<Coin>> {
        out_of_scope()
    }
    async fn mempool_entry(&self, _: Txid) -> Result<Option<MempoolEntry>> {
        out_of_scope()
    }
    async fn mempool_spender(&self, _: OutPoint) -> Result<Option<Txid>> {
        out_of_scope()
    }
    async fn raw_mempool_transaction(&self, _: Txid) -> Result<Option<Transaction>> {
        out_of_scope()
    }
}

/// Takes every step there is and keeps, as a consumer would, the chain that the steps describe.
async fn replay(follower: &mut Follower, model: &mut Vec<BlockId>) {
    while let Some(event) = follower.next().await.unwrap() {
        match event {
            ChainEvent::Connected { height, block } => {
                model.truncate(height as usize);
                assert_eq!(
                    model.last().map(|id| id.hash),
                    Some(block.header.prev_blockhash),
                    "connects to the last one"
                );
                model.push(BlockId {
                    height,
                    hash: block.block_hash(),
                });
            }
            ChainEvent::Disconnected(id) => assert_eq!(model.pop(), Some(id), "newest first"),
        }
    }
}

async fn follows(chain: FakeChain) {
    let chain = Arc::new(chain);
    let mut model = chain.ids();
    let mut follower = Follower::new(chain.clone(), model.clone()).unwrap();
    chain.mine(1);
    replay(&mut follower, &mut model).await;
    assert_eq!(model, chain.ids());
}

#[tokio::test]
async fn a_reorg_while_a_block_is_fetched_is_followed() {
    for forgets_stale in [false, true] {
        for surprise in [(1, 2), (3, 1), (3, 6)] {
            follows(FakeChain {
                surprise: Mutex::new(Some(surprise)),
                forgets_stale,
                ..FakeChain::mined(6)
            })
            .await;
        }
    }
}

#[tokio::test]
async fn another_chain_is_an_error_and_not_a_walk_for_ever() {
    let chain = Arc::new(FakeChain::mined(3));
    let foreign = BlockId {
        height: 1,
        hash: BlockHash::from_byte_array([7; 32]),
    };
    let mut follower = Follower::new(chain.clone(), vec![foreign]).unwrap();
    assert_eq!(
        follower.next().await,
        Err(ChainError::NoCommonBlock { oldest: foreign })
    );
    assert_eq!(
        Follower::new(chain, Vec::new()).err(),
        Some(ChainError::NoCheckpoint)
    );
}

#[tokio::test]
async fn memory_is_bounded_and_the_gapless_part_stays() {
    let chain = Arc::new(FakeChain::mined(1));
    let mut follower = Follower::new(chain.clone(), chain.ids()).unwrap();
    for height in 1..20_000u32 {
        follower.push(BlockId {
            height,
            hash: BlockHash::from_byte_array([0; 32]),
        });
        assert!(follower.known.len() <= 2 * RECENT + 1);
    }
    assert_eq!(follower.known.front().unwrap().height, 0);
    let newest: Vec<u32> = follower
        .known
        .iter()
        .rev()
        .take(RECENT)
        .map(|block| block.height)
        .collect();
    assert!(newest.windows(2).all(|pair| pair[0] == pair[1] + 1));
}

proptest! {
    #[test]
    fn any_history_is_replayed_exactly(steps in prop::collection::vec((0usize..6, 0usize..5, any::<bool>()), 1..12)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let chain = Arc::new(FakeChain::mined(8));
            let mut model = chain.ids();
            let mut follower = Follower::new(chain.clone(), model.clone()).unwrap();
            for (depth, n, look) in steps {
                let depth = depth.min(chain.ids().len() - 1);
                chain.reorg(depth, n);
                if look {
                    replay(&mut follower, &mut model).await;
                    assert_eq!(model, chain.ids());
                }
            }
        });
    }
}
