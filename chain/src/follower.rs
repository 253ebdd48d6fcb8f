//! The chain as an ordered stream of blocks, reorgs included.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::{Block, BlockHash};

use crate::{BlockId, ChainError, ChainSource, Result};

/// Blocks remembered without a gap. A reorg deeper than this is still followed, from the next older block known.
const RECENT: usize = 2016;

/// How often a new block may be reorged away while we fetch it before we leave the rest to the next call.
const RACES: u32 = 8;

/// One step of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChainEvent {
    /// This block is now the tip of what was followed so far. Whatever was known at this height or above is replaced.
    Connected {
        /// Its height.
        height: u32,
        /// The block.
        block: Arc<Block>,
    },
    /// This block, which was the tip of what was followed so far, is not in the chain any more.
    Disconnected(BlockId),
}

/// A cursor in the chain that notices reorgs of any depth.
///
/// Blocks come one at a time and in order: those that left the chain newest first, then those that joined it oldest first. Memory is bounded.
/// After a reorg below the gapless part of the given checkpoints, blocks that never left are connected again; so take
/// [`ChainEvent::Connected`] as replacing everything at and above its height.
#[derive(Debug)]
pub struct Follower {
    source: Arc<dyn ChainSource>,
    /// Ascending in height, never empty.
    known: VecDeque<BlockId>,
}

impl Follower {
    /// Starts at the newest of these blocks; the older ones are where to go back to if it is not in the chain. Newest last.
    ///
    /// # Errors
    /// [`ChainError::NoCheckpoint`] if there are none.
    pub fn new(source: Arc<dyn ChainSource>, checkpoints: Vec<BlockId>) -> Result<Self> {
        let mut known = VecDeque::from(checkpoints);
        known.make_contiguous().sort_by_key(|block| block.height);
        if known.is_empty() {
            return Err(ChainError::NoCheckpoint);
        }
        Ok(Self { source, known })
    }

    /// The last block that was connected, or not disconnected.
    #[must_use]
    pub fn position(&self) -> BlockId {
        *self
            .known
            .back()
            .expect("the oldest block known is never removed")
    }

    /// The next step, or `None` when at the tip. Dropping the future loses nothing.
    ///
    /// # Errors
    /// Those of the source, and [`ChainError::NoCommonBlock`] when none of the known blocks is on its chain.
    pub async fn next(&mut self) -> Result<Option<ChainEvent>> {
        for _ in 0..RACES {
            let position = self.position();
            let height = position.height.saturating_add(1);
            let Some(hash) = self.source.block_hash(height).await? else {
                let still_there =
                    self.source.block_hash(position.height).await? == Some(position.hash);
                return if still_there {
                    Ok(None)
                } else {
                    self.step_back().map(Some)
                };
            };
            let Some(block) = self.fetch(hash).await? else {
                continue;
            };
            if block.header.prev_blockhash != position.hash {
                // Either our block left the chain, or the chain changed between the two calls.
                if self.source.block_hash(position.height).await? == Some(position.hash) {
                    continue;
                }
                return self.step_back().map(Some);
            }
            self.push(BlockId { height, hash });
            return Ok(Some(ChainEvent::Connected { height, block }));
        }
        Ok(None)
    }

    /// Waits until the tip is another block than ours, looking once per `poll_interval`; returns at once if it is already.
    ///
    /// # Errors
    /// Those of the source. It is up to the caller to go on waiting.
    pub async fn wait_for_change(&self, poll_interval: Duration) -> Result<()> {
        while self.source.tip().await? == self.position() {
            tokio::time::sleep(poll_interval).await;
        }
        Ok(())
    }

    /// A block reorged away between two calls may be gone from the node: that is a race, not an error, unless it persists.
    async fn fetch(&self, hash: BlockHash) -> Result<Option<Arc<Block>>> {
        match self.source.block(hash).await {
            Ok(block) => Ok(Some(block)),
            Err(error @ ChainError::NoBlock { .. }) => {
                let active = self
                    .source
                    .header(hash)
                    .await?
                    .is_some_and(|header| header.active);
                if active { Err(error) } else { Ok(None) }
            }
            Err(error) => Err(error),
        }
    }

    fn step_back(&mut self) -> Result<ChainEvent> {
        if self.known.len() < 2 {
            return Err(ChainError::NoCommonBlock {
                oldest: self.position(),
            });
        }
        let gone = self.position();
        self.known.pop_back();
        Ok(ChainEvent::Disconnected(gone))
    }

    fn push(&mut self, block: BlockId) {
        self.known.push_back(block);
        // Older blocks are thinned out: past the gapless part, one in RECENT is enough to go back to.
        if self.known.len() > 2 * RECENT {
            let cut = self.known.len().saturating_sub(RECENT);
            let mut index = 0usize;
            self.known.retain(|block| {
                let keep = index == 0 || index >= cut || block.height.is_multiple_of(RECENT as u32);
                index = index.saturating_add(1);
                keep
            });
        }
    }
}

#[cfg(test)]
#[path = "follower_tests.rs"]
mod tests;
