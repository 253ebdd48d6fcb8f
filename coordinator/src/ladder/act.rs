//! One thing that is due, done. Births are in [`super::births`], coins come back by [`crate::reclaim`].

use std::sync::Arc;

use bitcoin::Amount;
use channel_host::LeafId;
use factory_tree::ids::{ClientId, FactoryId};
use factory_tree::ladder::{Due, Terms, Warning, notice};
use proto::v1::ServerMessage;
use proto::wire::{FromServer, Notice};

use super::LadderError;
use super::view::Seen;
use crate::context::Context;
use crate::event::Event;
use crate::store::{ladder, leaves};
use crate::webhooks::{self, Why};

/// Why a path is published, in events.
const ENDS: &str = "its factory ends";

pub(super) async fn act(
    ctx: &Arc<Context>,
    seen: &Seen,
    due: &Due,
    height: u32,
) -> Result<(), LadderError> {
    match due {
        Due::TooLate {
            factory,
            at_risk,
            clients,
            ..
        } => lost(ctx, *factory, *at_risk, *clients).await,
        Due::Publish {
            factory,
            client,
            started: false,
            ..
        } => publish(ctx, seen, *factory, *client, height).await,
        Due::CloseBeforeT {
            factory, client, ..
        } => {
            close(ctx, seen, *factory, *client).await;
            Ok(())
        }
        Due::Warn {
            client,
            factory,
            level,
        } => warn(ctx, seen, (*client, *factory), *level).await,
        Due::Forget { factory } => {
            let id = *factory;
            ctx.store
                .write(async |tx| {
                    webhooks::forget(tx, id).await?;
                    ladder::forget(tx, id).await
                })
                .await?;
            ctx.events.emit(Event::FactoryForgotten { factory: id });
            Ok(())
        }
        // Begun paths, fundings and coins are looked after at every block; clients move and hand over by themselves.
        Due::Publish { started: true, .. }
        | Due::Reap { .. }
        | Due::ReapSubtree { .. }
        | Due::ReclaimAtT { .. }
        | Due::Rebroadcast { .. }
        | Due::Handover { .. }
        | Due::Move { .. }
        | Due::Invite { .. }
        | Due::Birth { .. } => Ok(()),
    }
}

/// What timeouts may take is told whenever it grows.
async fn lost(
    ctx: &Context,
    factory: FactoryId,
    at_risk: Amount,
    clients: u32,
) -> Result<(), LadderError> {
    ctx.store
        .write(async |tx| ladder::set_loss(tx, factory, at_risk).await)
        .await?;
    ctx.events.emit(Event::LadderLoss {
        factory,
        sat: at_risk.to_sat(),
        clients,
    });
    Ok(())
}

/// The wish is stored; the path goes out level by level, then the chains of what the client bought, and each channel is closed once its leaf
/// is there.
async fn publish(
    ctx: &Context,
    seen: &Seen,
    factory: FactoryId,
    client: ClientId,
    height: u32,
) -> Result<(), LadderError> {
    let Some(member) = seen.member(factory, client) else {
        return Ok(());
    };
    let is_new = ctx
        .store
        .write(async |tx| {
            let mut is_new = false;
            for leaf in member.leaves() {
                if let Some(row) = leaves::get(tx, leaf).await? {
                    is_new |= leaves::wish_exit(tx, &row, height, ENDS).await?;
                }
            }
            Ok(is_new)
        })
        .await?;
    if is_new {
        ctx.events.emit(Event::ExitNeeded {
            factory,
            client,
            reason: ENDS.to_owned(),
        });
    }
    close(ctx, seen, factory, client).await;
    ctx.lightning.look_again();
    Ok(())
}

/// The node closes each channel when its leaf is confirmed. One that is away does it when it is back: this stays due.
async fn close(ctx: &Context, seen: &Seen, factory: FactoryId, client: ClientId) {
    let (Some(node), Some(member)) = (ctx.lightning.node(), seen.member(factory, client)) else {
        return;
    };
    for leaf in member.leaves().map(|leaf| LeafId(leaf.0)) {
        // One that was bought and whose channel was never opened has nothing to close.
        if leaf.0 != member.leaf.0 && node.leaf(leaf).is_none() {
            continue;
        }
        if let Err(error) = node.force_close(leaf).await {
            tracing::warn!(%error, %factory, %client, "a leaf is closed later");
        }
    }
}

/// Who is away is woken, and told when it comes: the notice stays due.
async fn warn(
    ctx: &Context,
    seen: &Seen,
    (client, factory): (ClientId, FactoryId),
    level: Warning,
) -> Result<(), LadderError> {
    let (Some(facts), Some(member)) = (seen.ladder.factory(factory), seen.member(factory, client))
    else {
        return Ok(());
    };
    if !ctx.sessions.is_connected(&client) {
        if level == Warning::Early {
            ctx.webhooks.wake(client, Why::EndsSoon(factory));
        }
        return Ok(());
    }
    let terms = Terms {
        fee: ctx.config.policy.fee_for(member.capacity),
    };
    let words = notice(level, facts, terms);
    let message = FromServer::Notice(Notice { factory, words });
    ctx.store
        .write(async |tx| ladder::set_warned(tx, client, factory, level).await)
        .await?;
    ctx.sessions.send(&client, ServerMessage::from(&message));
    Ok(())
}
