//! Whom to invite.

use std::collections::BTreeMap;
use std::time::Duration;

use bitcoin::Amount;
use factory_tree::ceremony::coordinator::Invitee;
use factory_tree::ceremony::message::AbortReason;
use factory_tree::ids::{CeremonyId, ClientId};
use factory_tree::params::ExpiryPolicy;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Mail;
use crate::context::Context;
use crate::reputation::Score;
use crate::sessions::SessionInfo;
use crate::store::ceremonies::Wish;
use crate::store::{self, StoreError, clients};

/// How gathering ended without clients.
#[derive(Debug)]
pub(super) enum GatherEnd {
    /// The ceremony fails.
    Failed(AbortReason),
    /// The coordinator goes down.
    Stopped,
    /// The database failed: to be begun again.
    Store(StoreError),
}

impl From<StoreError> for GatherEnd {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Clients that could be invited now, in the order of invitation: see [`crate::reputation`].
///
/// # Errors
/// Those of the database.
pub(super) async fn candidates(ctx: &Context, wish: &Wish) -> store::Result<Vec<Invitee>> {
    if let Some(invited) = &wish.invited {
        // Chosen already, and placed: only who has left meanwhile is missing.
        let is_free = |invitee: &&Invitee| {
            let client = &invitee.client;
            ctx.sessions.is_connected(client) && !ctx.ceremonies.is_busy(client)
        };
        return Ok(invited.iter().filter(is_free).copied().collect());
    }
    let scores = ctx.store.read(async |tx| clients::scores(tx).await).await?;
    let idle = ctx
        .sessions
        .list()
        .into_iter()
        .filter(|session| !ctx.ceremonies.is_busy(&session.client));
    Ok(in_order(ctx, wish, idle.collect(), &scores))
}

fn in_order(
    ctx: &Context,
    wish: &Wish,
    sessions: Vec<SessionInfo>,
    scores: &BTreeMap<ClientId, Score>,
) -> Vec<Invitee> {
    let policy = &ctx.config.policy;
    let needs_coins = wish.params.expiry_policy == ExpiryPolicy::LspReclaim;
    let score = |client: &ClientId| {
        let score = scores.get(client).copied().unwrap_or_default();
        score.at(ctx.height(), policy.score_half_life_blocks)
    };
    let mut fit: Vec<(f64, u64, Invitee)> = sessions
        .into_iter()
        .filter_map(|session| {
            let interest = session.interest?;
            let points = score(&session.client);
            let fits = points < policy.score_skip_above && (interest.has_fee_coins || !needs_coins);
            let capacity = wish.capacity.unwrap_or(interest.capacity);
            let invitee = Invitee {
                client: session.client,
                capacity,
            };
            fits.then_some((points, interest.order, invitee))
        })
        .collect();
    fit.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    fit.into_iter().map(|(_, _, invitee)| invitee).collect()
}

/// Waits until as many clients are interested as are wished for, and takes them.
pub(super) async fn gather(
    ctx: &Context,
    id: CeremonyId,
    wish: &Wish,
    mailbox: &mut mpsc::Receiver<Mail>,
    shutdown: &mut watch::Receiver<bool>,
) -> Result<Vec<Invitee>, GatherEnd> {
    let most = ctx.config.ceremony.max_clients as usize;
    let wanted = wish.clients.map_or(most, |clients| clients as usize);
    let deadline = Instant::now() + Duration::from_secs(ctx.config.ceremony.gather_seconds);
    let mut changes = ctx.sessions.changes();
    // A ceremony that ends, or leaves somebody out, lets go of clients.
    let mut freed = ctx.ceremonies.freed();
    let mut is_over = wish.clients.is_none();
    loop {
        changes.mark_unchanged();
        freed.mark_unchanged();
        match candidates(ctx, wish).await {
            Ok(candidates) if candidates.len() >= wanted || is_over => {
                let taken = ctx
                    .ceremonies
                    .claim(id, &candidates, wanted, |invitee| invitee.client);
                let enough = taken.len() >= wish.min_clients as usize;
                if taken.len() == wanted || (is_over && enough) {
                    return Ok(taken);
                }
                // Another ceremony was quicker.
                ctx.ceremonies.unclaim(id, None);
                if is_over {
                    let left = u32::try_from(taken.len()).unwrap_or(u32::MAX);
                    return Err(GatherEnd::Failed(AbortReason::TooFewClients { left }));
                }
            }
            Ok(_) => {}
            Err(error) => return Err(GatherEnd::Store(error)),
        }
        tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => return Err(GatherEnd::Stopped),
            mail = mailbox.recv() => match mail {
                Some(Mail::Cancel) => return Err(GatherEnd::Failed(AbortReason::Cancelled)),
                Some(_) => {}
                None => return Err(GatherEnd::Stopped),
            },
            _ = changes.changed() => {}
            _ = freed.changed() => {}
            () = tokio::time::sleep_until(deadline) => is_over = true,
        }
    }
}

/// Sum of capacities.
pub(super) fn capacities(invited: &[Invitee]) -> Vec<Amount> {
    invited.iter().map(|invitee| invitee.capacity).collect()
}
