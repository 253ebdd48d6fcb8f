//! Bringing what was loaded from the disk to the chain's tip: each part was stored at a block of its own, perhaps one that is no more.

use chain::{BlockId, ChainError, ChainSource};
use lightning::chain::{BlockLocator, Listen};

use crate::error::NodeError;
use crate::leaf::Book;

/// Blocks without a gap that a follower may go back over.
const RECENT: u32 = 144;

/// Something that follows the chain, and where it is.
pub(super) struct Listener<'a> {
    pub at: &'a mut BlockLocator,
    pub listen: &'a (dyn Listen + Sync),
}

/// Brings all of them to the tip, and returns it.
pub(super) async fn catch_up(
    chain: &dyn ChainSource,
    book: &Book,
    listeners: &mut [Listener<'_>],
) -> Result<BlockId, NodeError> {
    // A block may have been looked through for leaves, and the node have died before anybody else had taken it in.
    let lowest = listeners.iter().map(|listener| listener.at.height).min();
    if let Some(lowest) = lowest {
        book.rewind(lowest.saturating_add(1))?;
    }
    loop {
        for listener in &mut *listeners {
            let fork = fork_point(chain, listener.at).await?;
            if fork.hash != listener.at.block_hash {
                book.rewind(fork.height.saturating_add(1))?;
                *listener.at = BlockLocator::new(fork.hash, fork.height);
                listener.listen.blocks_disconnected(*listener.at);
            }
        }
        let tip = chain.tip().await?;
        if connect_up_to(chain, book, listeners, tip).await? {
            book.set_height(tip.height);
            return Ok(tip);
        }
    }
}

/// Whether all of them are at `tip` now; if not, the chain changed on the way.
async fn connect_up_to(
    chain: &dyn ChainSource,
    book: &Book,
    listeners: &mut [Listener<'_>],
    tip: BlockId,
) -> Result<bool, NodeError> {
    let lowest = listeners.iter().map(|listener| listener.at.height).min();
    for height in lowest.unwrap_or(tip.height).saturating_add(1)..=tip.height {
        let Some(hash) = chain.block_hash(height).await? else {
            return Ok(false);
        };
        let block = match chain.block(hash).await {
            Ok(block) => block,
            Err(ChainError::NoBlock { .. }) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let next = |listener: &&mut Listener<'_>| listener.at.height.checked_add(1) == Some(height);
        let stale = |listener: &Listener<'_>| {
            listener.at.height.checked_add(1) == Some(height)
                && listener.at.block_hash != block.header.prev_blockhash
        };
        if listeners.iter().any(stale) {
            return Ok(false);
        }
        book.scan(&block, height)?;
        for listener in listeners.iter_mut().filter(next) {
            listener.listen.block_connected(&block, height);
            listener.at.advance(hash);
        }
    }
    Ok(listeners
        .iter()
        .all(|listener| listener.at.block_hash == tip.hash))
}

/// The last block of the active chain below or at a position.
async fn fork_point(chain: &dyn ChainSource, at: &BlockLocator) -> Result<BlockId, NodeError> {
    let ancestors = at.previous_blocks.iter().flatten().copied();
    let mut last = None;
    for hash in std::iter::once(at.block_hash).chain(ancestors) {
        if let Some(header) = chain.header(hash).await? {
            if header.active {
                return Ok(BlockId {
                    height: header.height,
                    hash,
                });
            }
            last = Some(header);
        }
    }
    // Deeper than what the position remembers: the node still knows the stale branch, or there is nothing to go by.
    while let Some(header) = last {
        let hash = header.header.prev_blockhash;
        last = chain.header(hash).await?;
        if let Some(found) = last.filter(|found| found.active) {
            return Ok(BlockId {
                height: found.height,
                hash,
            });
        }
    }
    Err(ChainError::NoCommonBlock {
        oldest: BlockId {
            height: at.height,
            hash: at.block_hash,
        },
    }
    .into())
}

/// Where a follower at `tip` may go back to: recent blocks without a gap, then sparsely.
pub(super) async fn checkpoints(
    chain: &dyn ChainSource,
    tip: BlockId,
) -> Result<Vec<BlockId>, NodeError> {
    let mut known = vec![tip];
    let (mut height, mut step) = (tip.height, 1u32);
    while height > 0 {
        if tip.height.saturating_sub(height) >= RECENT {
            step = step.saturating_mul(2);
        }
        height = height.saturating_sub(step);
        if let Some(hash) = chain.block_hash(height).await? {
            known.push(BlockId { height, hash });
        }
    }
    Ok(known)
}
