//! What a client asks for while it moves: a part of its balance to go over, and its keys to be taken.

use std::sync::Arc;

use bitcoin::Amount;
use bitcoin::secp256k1::{PublicKey, SecretKey};
use channel_host::{LeafId, Msat, NodeError, PaymentHash};
use factory_tree::factory::Member;
use factory_tree::handover::MaskedKeys;
use factory_tree::ids::{ClientId, FactoryId};
use factory_tree::ladder::{
    FactoryFacts, LEAST_PART_MSAT, MemberFacts, Progress, fee_due, part_expiries,
};
use factory_tree::shape::{ClientRange, Shape};
use factory_tree::units::Height;
use proto::session::ServiceError;
use proto::v1::{ErrorCode, ServerMessage};
use proto::wire::{FromServer, Handover, MovePart, PartTerms};

use super::LadderError;
use super::view::{self, Channels, Seen};
use crate::context::Context;
use crate::event::Event;
use crate::fault;
use crate::store::ladder::{self, MemberRow, Taken};
use crate::store::{attempts, factories};

fn refused(factory: FactoryId, text: impl Into<String>) -> ServiceError {
    ServiceError::new(ErrorCode::Refused, text).factory(factory)
}

fn failed(factory: FactoryId, error: &LadderError) -> ServiceError {
    let code = match error {
        LadderError::Store(_) => ErrorCode::Store,
        _ => ErrorCode::Internal,
    };
    ServiceError::new(code, error.to_string()).factory(factory)
}

/// A client's place in a factory.
struct Place<'a> {
    facts: &'a FactoryFacts,
    member: &'a MemberFacts,
    row: &'a MemberRow,
}

fn place(seen: &Seen, factory: FactoryId, client: ClientId) -> Result<Place<'_>, ServiceError> {
    let unknown = || {
        let text = "you are in no such factory";
        ServiceError::new(ErrorCode::NotFound, text).factory(factory)
    };
    let facts = seen.ladder.factory(factory).ok_or_else(unknown)?;
    let mut members = facts.members.iter();
    Ok(Place {
        facts,
        member: members
            .find(|member| member.client == client)
            .ok_or_else(unknown)?,
        row: seen.member(factory, client).ok_or_else(unknown)?,
    })
}

/// A part of a client's balance is to move: its terms, once the node will pay it.
///
/// # Errors
/// Why not.
pub async fn move_part(
    ctx: &Arc<Context>,
    client: ClientId,
    part: MovePart,
) -> Result<(), ServiceError> {
    let wrong = |text: &str| refused(part.from, text);
    let seen = view::of_client(ctx, client)
        .await
        .map_err(|error| failed(part.from, &error))?;
    let (from, to) = (
        place(&seen, part.from, client)?,
        place(&seen, part.to, client)?,
    );
    // Into which of several younger ones is the client's choice.
    let younger = to.facts.schedule.expiry > from.facts.schedule.expiry;
    if !younger || !from.member.progress.is_inside() || !to.member.progress.is_inside() {
        return Err(wrong("your balance does not move from there to there"));
    }
    let from_leaf = from.row.leaf_named(part.from_leaf);
    let leaves = from_leaf.zip(to.row.leaf_named(part.to_leaf));
    let Some((from_leaf, to_leaf)) = leaves else {
        return Err(wrong("these are no channels of yours in these factories"));
    };
    let (from_leaf, to_leaf) = (LeafId(from_leaf.0), LeafId(to_leaf.0));
    let Some(node) = ctx.lightning.node() else {
        return Err(wrong("the Lightning node is starting; try again"));
    };
    // What nobody needs to move so finely would only fill our disk.
    let whole = node.leaf_balance(from_leaf).unwrap_or_default();
    let fee = fee(&from, &to);
    let all = part.amount_msat.saturating_add(fee.0) >= whole.receivable.0;
    if part.amount_msat < LEAST_PART_MSAT && !all {
        return Err(wrong("a part is at least 1000 sat, or all that is left"));
    }
    let usable = seen.rows.iter().any(|row| row.id == part.to && row.usable);
    if !usable {
        return Err(wrong("the new factory is not confirmed as deep as agreed"));
    }
    let height = Height(ctx.height());
    let calendars = (&from.facts.schedule, &to.facts.schedule);
    let expiries = part_expiries(height, calendars.0, calendars.1)
        .map_err(|error| refused(part.from, error.to_string()))?;
    let incoming = part
        .amount_msat
        .checked_add(fee.0)
        .filter(|_| part.amount_msat > 0)
        .ok_or_else(|| wrong("this is no amount"))?;
    let taken = channel_host::MovePart {
        hash: PaymentHash(part.hash),
        from: from_leaf,
        to: to_leaf,
        incoming: Msat(incoming),
        outgoing: Msat(part.amount_msat),
        incoming_expiry: expiries.incoming.0,
        outgoing_expiry: expiries.outgoing.0,
        to_secret: part.payment_secret,
    };
    // A write of the node's, which waits for the disk.
    let secret = tokio::task::spawn_blocking(move || node.take_part(taken))
        .await
        .map_err(|_| wrong("the coordinator is shutting down"))?
        .map_err(|error| not_taken(part.from, &error))?;
    fault::point("part_taken");
    let terms = PartTerms {
        hash: part.hash,
        payment_secret: secret,
        fee_msat: fee.0,
        outgoing_expiry: expiries.outgoing,
        incoming_expiry: expiries.incoming,
    };
    let message = ServerMessage::from(&FromServer::PartTerms(terms));
    ctx.sessions.send(&client, message);
    Ok(())
}

fn not_taken(factory: FactoryId, error: &NodeError) -> ServiceError {
    refused(factory, format!("this part cannot move now: {error}"))
}

/// The fee agreed to with the invitation, taken once, with the first part.
fn fee(from: &Place<'_>, to: &Place<'_>) -> Msat {
    let msat = |amount: Amount| amount.to_sat().saturating_mul(1000);
    match to.row.fee_taken {
        true => Msat(0),
        false => Msat(fee_due(msat(from.member.balance), msat(to.row.fee))),
    }
}

/// A client has left a factory: its keys are checked, stored, and its channels retired.
///
/// # Errors
/// Why they are not taken.
pub async fn hand_over(
    ctx: &Arc<Context>,
    client: ClientId,
    handover: Handover,
) -> Result<(), ServiceError> {
    let id = handover.factory;
    let wrong = |text: &str| refused(id, text);
    let seen = view::of_client(ctx, client)
        .await
        .map_err(|error| failed(id, &error))?;
    let place = place(&seen, id, client)?;
    if !place.row.handed_over {
        match place.member.progress {
            Progress::Publishing | Progress::OnChain | Progress::Gone => {
                return Err(wrong("your path is on its way to the chain already"));
            }
            _ => {}
        }
        // Asked last before its keys are taken.
        if !Channels::now(ctx).is_empty(place.row) {
            return Err(wrong(
                "your channels there are not empty, or something is pending in one",
            ));
        }
        let keys = handover.keys;
        let mut checked = checked(ctx, id, place.row.position)
            .await
            .map_err(|error| failed(id, &error))?;
        let bought = place.row.sold.iter().map(|sold| sold.channel_key);
        let bought: Vec<PublicKey> = bought.collect();
        let opened = keys.open(&checked.member, &bought, &checked.secret);
        checked.secret.non_secure_erase();
        if let Err(error) = opened {
            ctx.events.emit(Event::HandoverRefused {
                client,
                factory: id,
                reason: error.to_string(),
            });
            return Err(refused(
                id,
                format!("these are not your keys of this factory: {error}"),
            ));
        }
        let taken = take(ctx, place.row, &keys, &checked.mates)
            .await
            .map_err(|error| failed(id, &error))?;
        match taken {
            Taken::New | Taken::Known => {}
            Taken::Publishing => {
                return Err(wrong("your path is on its way to the chain already"));
            }
            Taken::Selling => {
                return Err(wrong(
                    "a sale from the stock you share is being signed; try again when it is over",
                ));
            }
        }
    }
    // The client retires its side when it hears of it: ours comes first, or its closing looks like a failure.
    if !retire(ctx, place.row).await {
        return Err(wrong(
            "your channels there cannot be retired yet; try again",
        ));
    }
    let message = ServerMessage::from(&FromServer::HandoverTaken(id));
    ctx.sessions.send(&client, message);
    Ok(())
}

/// What a member's keys are checked against.
struct Checked {
    member: Member,
    /// Who shares its stock, itself included.
    mates: ClientRange,
    /// Our factory secret.
    secret: SecretKey,
}

async fn checked(ctx: &Context, factory: FactoryId, position: u32) -> Result<Checked, LadderError> {
    let read = ctx.store.read(async |tx| {
        let (row, spec) = (
            factories::get(tx, factory).await?,
            factories::spec(tx, factory).await?,
        );
        let Some((row, spec)) = row.zip(spec) else {
            return Ok(None);
        };
        let fresh = attempts::fresh(tx, row.round).await?;
        Ok(Some((row, spec, fresh)))
    });
    let damaged = || LadderError::Unknown(factory);
    let (row, spec, fresh) = read.await?.ok_or_else(damaged)?;
    let shape = Shape::new(&spec.params, row.clients).map_err(|_| damaged())?;
    let leaf = shape.path(position).pop();
    let leaf = leaf.and_then(|node| shape.nodes().get(node));
    let mates = leaf.and_then(|leaf| {
        let mut all = leaf.subfactories.iter();
        all.find(|clients| clients.contains(&position))
    });
    Ok(Checked {
        mates: mates.cloned().ok_or_else(damaged)?,
        member: spec
            .members
            .into_iter()
            .nth(position as usize)
            .ok_or_else(damaged)?,
        secret: ctx.keys.factory_secret(row.round, fresh),
    })
}

/// Stores the keys, if nothing forbids it.
async fn take(
    ctx: &Context,
    member: &MemberRow,
    keys: &MaskedKeys,
    mates: &ClientRange,
) -> Result<Taken, LadderError> {
    let height = ctx.height();
    let taken = ctx
        .store
        .write(async |tx| ladder::hand_over(tx, member, keys, mates, height).await)
        .await?;
    fault::point("handover_stored");
    if taken == Taken::New {
        ctx.events.emit(Event::HandedOver {
            client: member.client,
            factory: member.factory,
        });
    }
    Ok(taken)
}

/// Its channels take no payment any more: whether that is done. If not, it is tried again with the leaves.
async fn retire(ctx: &Context, member: &MemberRow) -> bool {
    let Some(node) = ctx.lightning.node() else {
        return false;
    };
    let born = LeafId(member.leaf.0);
    let leaves: Vec<LeafId> = member.leaves().map(|leaf| LeafId(leaf.0)).collect();
    let retired = tokio::task::spawn_blocking(move || {
        // One that was bought and whose channel was never opened has nothing to retire.
        let mut begun = leaves
            .into_iter()
            .filter(|leaf| *leaf == born || node.leaf(*leaf).is_some());
        begun.try_for_each(|leaf| node.retire_leaf(leaf))
    });
    let retired = retired.await;
    ctx.lightning.look_again();
    match retired {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::warn!(%error, "a channel that was left is retired later");
            false
        }
        Err(_) => false,
    }
}
