//! The ladder: what `factory_tree::ladder` says is due is stored, done, and looked at again. Nothing is remembered here: the view is made anew
//! from the database, the chain and the channels each time, so downtime of any length changes nothing but the hour.

mod act;
mod births;
mod moves;
mod show;
mod view;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use factory_tree::ids::FactoryId;
use factory_tree::ladder::{Due, Stage, due};
use factory_tree::units::Height;
use tokio::sync::watch;

use crate::ceremony::CreateError;
use crate::context::Context;
use crate::store::StoreError;
use crate::trees::TreesError;
use crate::webhooks::Why;

pub use moves::{hand_over, move_part};
pub use show::{forecast, preview, show};

/// Why a look was not finished.
#[derive(Debug, thiserror::Error)]
pub enum LadderError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A factory's tree.
    #[error(transparent)]
    Trees(#[from] TreesError),
    /// What is stored of a factory makes none.
    #[error("the stored factory {0} is damaged")]
    Unknown(FactoryId),
    /// A ceremony that cannot be begun.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The on-chain wallet.
    #[error(transparent)]
    Wallet(#[from] chain::wallet::WalletError),
    /// The parameters of new factories.
    #[error(transparent)]
    Params(#[from] crate::params::ParamError),
}

/// Between two looks.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// What the ladder keeps between two looks, none of it needed.
#[derive(Debug, Default)]
pub struct LadderState {
    calendars: view::Calendars,
    /// What was told of already: a birth that waits is no news at every block.
    told: Mutex<HashSet<String>>,
}

impl LadderState {
    /// Whether this was not told yet. From now on it was.
    fn is_news(&self, text: String) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        // Only the last few matter.
        if told.len() >= 256 {
            told.clear();
        }
        told.insert(text)
    }

    fn forget(&self, text: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.remove(text);
    }
}

/// Looks after the ladder until `shutdown`: at every block, and when clients come, go or come free.
pub async fn run(ctx: Arc<Context>, mut shutdown: watch::Receiver<bool>) {
    let mut chain = ctx.chain.subscribe();
    let mut sessions = ctx.sessions.changes();
    let mut freed = ctx.ceremonies.freed();
    let ceremonies = shutdown.clone();
    loop {
        chain.mark_unchanged();
        sessions.mark_unchanged();
        freed.mark_unchanged();
        let looked = tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => return,
            looked = look(&ctx, &ceremonies) => looked,
        };
        if let Err(error) = looked {
            tracing::warn!(%error, "the ladder is looked at again at the next block");
        }
        // Many come at once when a connection is back: one look serves all.
        tokio::time::sleep(PAUSE).await;
        // The senders are in the context.
        tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => return,
            _ = chain.changed() => {}
            _ = sessions.changed() => {}
            _ = freed.changed() => {}
        }
    }
}

async fn look(ctx: &Arc<Context>, shutdown: &watch::Receiver<bool>) -> Result<(), LadderError> {
    // Without a tip nothing is due; before the node's leaves are looked after, their balances are not known.
    let Some(height) = ctx.chain.borrow().height() else {
        return Ok(());
    };
    if ctx.config.ladder.enabled {
        let begin = ctx.store.write(async |tx| {
            if crate::store::ladder::first(tx).await?.is_none() {
                crate::store::ladder::begin(tx, height).await?;
            }
            Ok(())
        });
        begin.await?;
    }
    let seen = view::look(ctx).await?;
    let params = ctx.config.ladder_params();
    let list = due(&params, Height(height), &seen.ladder);
    // Without the node nothing is known of balances: only what does not depend on them is done.
    let blind = !ctx.lightning.sees();
    let waits = |due: &Due| matches!(due, Due::TooLate { .. } | Due::Warn { .. });
    for one in list.iter().filter(|one| !blind || !waits(one)) {
        // One that fails does not keep the others: it is due again at the next look.
        if let Err(error) = act::act(ctx, &seen, one, height).await {
            tracing::warn!(%error, due = ?one, "not done now");
        }
    }
    wake(ctx, &seen, height);
    if ctx.config.ladder.enabled && !blind {
        births::look(ctx, &seen, &list, height, shutdown).await?;
    }
    Ok(())
}

/// Who has not left a factory that ends, and is away, is woken, whatever it was told when it was here last.
fn wake(ctx: &Context, seen: &view::Seen, height: u32) {
    let spacing = ctx.config.ladder.spacing;
    for facts in &seen.ladder.factories {
        let stage = Stage::of(facts, Height(height), spacing);
        if !matches!(stage, Stage::Dying { .. } | Stage::Closing) {
            continue;
        }
        let inside = facts
            .members
            .iter()
            .filter(|member| member.progress.is_inside());
        for member in inside.filter(|member| !ctx.sessions.is_connected(&member.client)) {
            ctx.webhooks.wake(member.client, Why::Ends(facts.id));
        }
    }
}

#[cfg(test)]
mod tests;
