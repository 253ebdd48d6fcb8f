//! Follows the chain: every block is taken into account once, in the database first, then in the wallet; a reorg takes back exactly what
//! it undoes. At the tip what is unconfirmed is broadcast again, and what is ours is swept.

mod scan;

use std::sync::Arc;
use std::time::Duration;

use chain::wallet::WalletError;
use chain::{ChainError, ChainEvent, Follower};
use tokio::sync::watch;

use crate::context::{ChainState, Context};
use crate::event::Event;
use crate::store::StoreError;
use crate::trees::TreesError;
use crate::{funding, reclaim};
use scan::Scan;

/// Blocks that are stored together while catching up.
const BATCH: usize = 64;
/// The longest pause between two tries to reach the node.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Why following the chain stopped for now.
#[derive(Debug, thiserror::Error)]
pub enum ChainTaskError {
    /// The node.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The wallet.
    #[error(transparent)]
    Wallet(#[from] WalletError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A factory's tree.
    #[error(transparent)]
    Trees(#[from] TreesError),
}

/// Follows the chain until `shutdown`.
pub async fn run(ctx: Arc<Context>, mut shutdown: watch::Receiver<bool>) {
    let mut pause = ctx.config.poll();
    loop {
        let result = tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => return,
            result = follow(&ctx, &mut pause) => result,
        };
        if let Err(error) = result {
            away(&ctx, &error);
        }
        tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
    }
}

fn away(ctx: &Context, error: &ChainTaskError) {
    let problem = error.to_string();
    let changed = ctx.chain.send_if_modified(|state| {
        let new = ChainState::Away(problem.clone());
        let changed = *state != new;
        *state = new;
        changed
    });
    if changed {
        ctx.events.emit(match error {
            ChainTaskError::Store(_) | ChainTaskError::Wallet(WalletError::Store(_)) => {
                Event::StoreFailed { problem }
            }
            _ => Event::ChainUnavailable { problem },
        });
    }
}

fn ready(ctx: &Context, height: u32) {
    let mut came_back = false;
    let changed = ctx.chain.send_if_modified(|state| {
        came_back = matches!(state, ChainState::Away(_));
        let new = ChainState::Ready(height);
        let changed = *state != new;
        *state = new;
        changed
    });
    if changed {
        // Who looked when the blocks were taken in went by the height before, or by none: what is due at this one would wait for the next block.
        ctx.lightning.look_again();
    }
    if came_back {
        ctx.events.emit(Event::ChainAvailable { height });
    }
}

/// Starts where the wallet is, which is never ahead of the database.
async fn follow(ctx: &Arc<Context>, pause: &mut Duration) -> Result<(), ChainTaskError> {
    let mut follower = Follower::new(Arc::clone(&ctx.source), ctx.wallet.checkpoints().await)?;
    loop {
        let node = ctx.source.node_info().await?;
        node.require_ready(ctx.config.network)?;
        catch_up(ctx, &mut follower).await?;
        let height = follower.position().height;
        ctx.events.set_height(height);
        ready(ctx, height);
        *pause = ctx.config.poll();
        at_tip(ctx).await?;
        follower.wait_for_change(ctx.config.poll()).await?;
    }
}

async fn catch_up(ctx: &Context, follower: &mut Follower) -> Result<(), ChainTaskError> {
    loop {
        let mut batch = Vec::new();
        while batch.len() < BATCH {
            match follower.next().await? {
                Some(event) => batch.push(event),
                None => break,
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        let mut rest = batch.as_slice();
        while !rest.is_empty() {
            let taken = Scan::load(ctx).await?.take(ctx, rest).await?;
            rest = rest.get(taken..).unwrap_or_default();
        }
        for event in &batch {
            ctx.wallet.apply(event).await?;
        }
        ctx.lightning.look_again();
    }
}

async fn at_tip(ctx: &Context) -> Result<(), ChainTaskError> {
    funding::rebroadcast(ctx).await?;
    reclaim::run(ctx).await?;
    ctx.wallet.flush().await?;
    ctx.wallet.forget_missing(ctx.source.as_ref()).await?;
    Ok(())
}

/// The height an event leaves the chain at.
const fn height_after(event: &ChainEvent) -> u32 {
    match event {
        ChainEvent::Connected { height, .. } => *height,
        ChainEvent::Disconnected(gone) => gone.height.saturating_sub(1),
    }
}

#[cfg(test)]
mod tests;
