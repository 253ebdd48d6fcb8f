//! What the Lightning node has to say: stored if it matters, told, and passed on. Events come at least once.

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use channel_host::{EventSink, ExitReason, LeafId, NodeEvent, NotTakenIn, PaymentHash, SpendKind};
use factory_tree::ids::ClientId;

use super::{count, route};
use crate::clock::unix_time;
use crate::context::Context;
use crate::event::Event;
use crate::fault;
use crate::jit;
use crate::lsps1;
use crate::sales;
use crate::store::jit::Funding;
use crate::store::leaves::{self, LeafRow};
use crate::store::{self, ladder, payments, prices};
use crate::webhooks::Why;

/// Takes the node's events in. The node is part of the context, so this does not keep it alive.
#[derive(Debug)]
pub(super) struct Sink(Weak<Context>);

impl Sink {
    pub(super) fn new(ctx: &Arc<Context>) -> Self {
        Self(Arc::downgrade(ctx))
    }
}

#[async_trait]
impl EventSink for Sink {
    async fn take(&self, event: NodeEvent) -> Result<(), NotTakenIn> {
        let ctx = self.0.upgrade().ok_or(NotTakenIn)?;
        let without = without(&event);
        let Err(error) = take(&ctx, event).await else {
            return Ok(());
        };
        ctx.alarm(&error);
        if !error.is_lasting() {
            return Err(NotTakenIn);
        }
        // Told again it would end the same way, and everything that comes after it would wait for ever.
        match without {
            Without::Nothing => Err(NotTakenIn),
            Without::News => Ok(()),
            Without::Payment(hash) => pass_over(&ctx, hash).await,
            Without::Funding(scid) => match ctx.lightning.refuse_jit_funding(scid) {
                Ok(()) => Ok(()),
                Err(error) => {
                    tracing::error!(%error, "a channel that cannot be booked is not given up");
                    Err(NotTakenIn)
                }
            },
        }
    }
}

/// What goes on without an event that can never be taken in.
#[derive(Clone, Copy)]
enum Without {
    /// Nothing: it is a gate, or money is booked by it.
    Nothing,
    /// Everything: it only informs.
    News,
    /// Everything but what this pays for.
    Payment(PaymentHash),
    /// Everything but the channel of this order.
    Funding(u64),
}

const fn without(event: &NodeEvent) -> Without {
    match event {
        NodeEvent::PaymentHeld { hash, .. } => Without::Payment(*hash),
        NodeEvent::JitFunded { scid, .. } => Without::Funding(*scid),
        NodeEvent::LeafOpened { .. }
        | NodeEvent::LeafSpent { .. }
        | NodeEvent::JitRefused { .. } => Without::News,
        _ => Without::Nothing,
    }
}

/// A payment whose order cannot be read goes back, unless something may have been given for it: then it stays, for as long as Lightning holds it,
/// and can be taken once the row is mended. Nothing is lost by its not being told again: what was begun for it knows that it is held.
async fn pass_over(ctx: &Context, hash: PaymentHash) -> Result<(), NotTakenIn> {
    let read = ctx
        .store
        .read(async |tx| payments::may_be_earned(tx, hash.0).await);
    match read.await {
        Ok(false) => ctx.lightning.send_back(hash),
        Ok(true) => {}
        Err(error) if error.is_lasting() => ctx.alarm(&error),
        Err(error) => {
            ctx.alarm(&error);
            return Err(NotTakenIn);
        }
    }
    Ok(())
}

/// A spend's name in events.
#[must_use]
pub const fn spend_name(kind: SpendKind) -> &'static str {
    match kind {
        SpendKind::Commitment => "commitment",
        SpendKind::Cooperative => "cooperative",
        SpendKind::Timeout => "timeout",
        SpendKind::Poison => "poison",
        SpendKind::Reap => "reap",
        _ => "other",
    }
}

fn exit_text(reason: ExitReason) -> String {
    match reason {
        ExitReason::Asked => "asked".to_owned(),
        ExitReason::Closed => "closed by one side alone".to_owned(),
        ExitReason::ReceivedUnsettled { expiry } => {
            format!("a payment to us that expires at {expiry} is not settled")
        }
        ExitReason::ForwardUnresolved { upstream } => {
            format!("a payment through us that expires at {upstream} is not resolved")
        }
        ExitReason::PartUnresolved { expiry } => {
            format!("a part of a balance on its way, which expires at {expiry}, is not resolved")
        }
        _ => "the Lightning node asks for it".to_owned(),
    }
}

async fn row_of(ctx: &Context, leaf: LeafId) -> store::Result<Option<LeafRow>> {
    let leaf = factory_tree::ids::LeafId(leaf.0);
    ctx.store.read(async |tx| leaves::get(tx, leaf).await).await
}

async fn take(ctx: &Arc<Context>, event: NodeEvent) -> store::Result<()> {
    match event {
        NodeEvent::LeafOpened { leaf } => {
            count(&ctx.lightning.news);
            tell_route(ctx, leaf).await?;
        }
        NodeEvent::ReceiverAway { client } => {
            ctx.webhooks
                .wake(ClientId(client.serialize()), Why::Payment);
        }
        NodeEvent::ExpirySoon { client, exits_at } => {
            let client = ClientId(client.serialize());
            ctx.webhooks.wake(client, Why::Expiry(exits_at));
        }
        NodeEvent::LeafRefused { leaf, reason } => {
            let reason = reason.to_string();
            tracing::info!(%leaf, %reason, "a channel did not come about");
            ctx.lightning.refused(leaf, reason);
            count(&ctx.lightning.news);
        }
        NodeEvent::LeafClosed {
            leaf,
            reason,
            cooperative,
        } => {
            count(&ctx.lightning.news);
            jit::leaf_closed(ctx, leaf).await?;
            if let Some(row) = row_of(ctx, leaf).await? {
                ctx.events.emit(Event::ChannelClosed {
                    factory: row.factory,
                    client: row.client,
                    reason,
                    cooperative,
                });
            }
            tell_route(ctx, leaf).await?;
        }
        NodeEvent::ExitNeeded { leaf, reason } => exit_needed(ctx, leaf, reason).await?,
        NodeEvent::LeafSpent {
            leaf,
            kind,
            txid,
            height,
        } => {
            if let Some(row) = row_of(ctx, leaf).await? {
                ctx.events.emit(Event::ChannelSpent {
                    factory: row.factory,
                    client: row.client,
                    kind: spend_name(kind),
                    txid,
                    height,
                });
            }
        }
        // The chain task tells of the tree's transactions, the node's host of its end.
        NodeEvent::LeafConfirmed { .. }
        | NodeEvent::LeafUnconfirmed { .. }
        | NodeEvent::RestartNeeded { .. }
        | NodeEvent::Stopped { .. } => ctx.lightning.look_again(),
        NodeEvent::CommitmentReady { leaf, transaction } => {
            let txid = transaction.compute_txid();
            tracing::info!(?leaf, %txid, "a commitment goes out");
        }
        NodeEvent::PartMoved {
            from,
            to,
            amount,
            fee,
            ..
        } => part_moved(ctx, (from, to), amount.0, fee.0).await?,
        NodeEvent::PartFailed { hash, why, .. } => {
            tracing::info!(%hash, %why, "a part of a balance did not move");
        }
        NodeEvent::JitFunded {
            scid,
            id,
            txid,
            fee,
            ..
        } => {
            let funding = Funding {
                channel: id,
                txid,
                fee_sat: fee.map(bitcoin::Amount::to_sat),
            };
            jit::funded(ctx, scid, funding).await?;
        }
        NodeEvent::JitForwarded { scid, waited } => {
            fault::point("jit_forwarded");
            ctx.events.emit(Event::JitForwarded {
                scid: jit::scid_text(scid),
                waited_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
            });
        }
        NodeEvent::JitPaid { scid, fee } => jit::paid(ctx, scid, fee.0).await?,
        NodeEvent::JitRefused { scid, hash, reason } => {
            jit::refused(ctx, scid, hash.to_string(), reason.to_string()).await?;
        }
        NodeEvent::BoughtStands { id } => lsps1::stands(ctx, id).await?,
        NodeEvent::ChannelOpened { id, peer, .. } => {
            jit::channel(ctx, id, true).await?;
            ctx.events.emit(Event::OnchainChannelOpened {
                channel: id.to_string(),
                peer: peer.to_string(),
            });
        }
        NodeEvent::ChannelClosed { id, reason } => {
            jit::channel(ctx, id, false).await?;
            lsps1::closed(ctx, id, &reason).await?;
            ctx.events.emit(Event::OnchainChannelClosed {
                channel: id.to_string(),
                reason,
            });
        }
        payment => take_payment(ctx, payment).await?,
    }
    Ok(())
}

/// Its invoices ask for the time its slowest leaf needs.
async fn tell_route(ctx: &Arc<Context>, leaf: LeafId) -> store::Result<()> {
    if let Some(row) = row_of(ctx, leaf).await? {
        route::greet(ctx, row.client).await;
    }
    Ok(())
}

/// The fee is taken with the first part that moves.
async fn part_moved(
    ctx: &Context,
    (from, to): (LeafId, LeafId),
    amount_msat: u64,
    fee_msat: u64,
) -> store::Result<()> {
    let (Some(from), Some(to)) = (row_of(ctx, from).await?, row_of(ctx, to).await?) else {
        return Ok(());
    };
    if fee_msat > 0 {
        ctx.store
            .write(async |tx| ladder::fee_taken(tx, to.leaf).await)
            .await?;
    }
    ctx.events.emit(Event::PartMoved {
        client: from.client,
        from: from.factory,
        to: to.factory,
        amount_msat,
        fee_msat,
    });
    Ok(())
}

async fn exit_needed(ctx: &Context, leaf: LeafId, reason: ExitReason) -> store::Result<()> {
    let Some(row) = row_of(ctx, leaf).await?.filter(|row| !row.handed_over) else {
        return Ok(());
    };
    let (height, reason) = (ctx.height(), exit_text(reason));
    let is_new = ctx
        .store
        .write(async |tx| leaves::wish_exit(tx, &row, height, &reason).await)
        .await?;
    if is_new {
        ctx.events.emit(Event::ExitNeeded {
            factory: row.factory,
            client: row.client,
            reason,
        });
    }
    ctx.lightning.look_again();
    Ok(())
}

/// A payment for a hold invoice: of an order, or of a sale.
async fn payment_held(
    ctx: &Context,
    hash: PaymentHash,
    amount_msat: u64,
    expiry: u32,
) -> store::Result<()> {
    match lsps1::held(ctx, hash, amount_msat, expiry).await? {
        true => Ok(()),
        false => sales::held(ctx, hash, amount_msat, expiry).await,
    }
}

/// A payment went through us.
async fn forwarded(
    ctx: &Context,
    number: [u8; 32],
    amount_msat: u64,
    fee_msat: u64,
) -> store::Result<()> {
    if fee_msat > 0 {
        let now = unix_time();
        ctx.store
            .write(async |tx| prices::forwarded(tx, &number, fee_msat, now).await)
            .await?;
    }
    ctx.events.emit(Event::PaymentForwarded {
        amount_msat,
        fee_msat,
    });
    Ok(())
}

async fn take_payment(ctx: &Context, event: NodeEvent) -> store::Result<()> {
    let height = ctx.height();
    let _begun = match event {
        NodeEvent::PaymentSent { .. } | NodeEvent::PaymentFailed { .. } => {
            Some(ctx.lightning.paying.lock().await)
        }
        _ => None,
    };
    match event {
        NodeEvent::PaymentHeld {
            hash,
            amount,
            expiry,
        } => payment_held(ctx, hash, amount.0, expiry).await?,
        NodeEvent::PaymentReceived { hash, amount, .. } => {
            lsps1::received(ctx, hash, amount.0).await?;
            sales::received(ctx, hash, amount.0).await?;
            let is_new = ctx
                .store
                .write(async |tx| payments::received(tx, hash.0, amount.0, height).await)
                .await?;
            if is_new {
                ctx.events.emit(Event::PaymentReceived {
                    hash: hash.to_string(),
                    amount_msat: amount.0,
                });
            }
        }
        NodeEvent::PaymentSent { hash, fee, .. } => {
            let is_new = ctx
                .store
                .write(async |tx| payments::ended(tx, hash.0, Ok(fee.0), height).await)
                .await?;
            if is_new {
                ctx.events.emit(Event::PaymentSent {
                    hash: hash.to_string(),
                    fee_msat: fee.0,
                });
            }
        }
        NodeEvent::PaymentFailed { hash, reason } => {
            let is_new = ctx
                .store
                .write(async |tx| payments::ended(tx, hash.0, Err(&reason), height).await)
                .await?;
            if is_new {
                ctx.events.emit(Event::PaymentFailed {
                    hash: hash.to_string(),
                    reason,
                });
            }
        }
        NodeEvent::PaymentRefused { hash, reason } => ctx.events.emit(Event::PaymentRefused {
            hash: hash.to_string(),
            reason: reason.to_string(),
        }),
        NodeEvent::PaymentForwarded {
            number,
            amount,
            fee,
        } => forwarded(ctx, number, amount.0, fee.0).await?,
        NodeEvent::ForwardRefused { hash, reason } => ctx.events.emit(Event::ForwardRefused {
            hash: hash.to_string(),
            reason: reason.to_string(),
        }),
        // Others are added to LDK, not to us.
        _ => {}
    }
    Ok(())
}
