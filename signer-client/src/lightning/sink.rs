//! What the Lightning node has to say: stored if it matters, told, and passed on. Events come at least once.

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use channel_host::{EventSink, ExitReason, LeafId, Msat, NodeEvent, NotTakenIn, SpendKind};
use factory_tree::ids::FactoryId;

use super::name_of;
use crate::client::Inner;
use crate::error::Result;
use crate::event::Event;
use crate::fault;
use crate::migration::part_over;
use crate::store::{PartEnd, PaymentEnd};

/// Takes the node's events in. The node is part of the client, so this does not keep it alive.
#[derive(Debug)]
pub(super) struct Sink(Weak<Inner>);

impl Sink {
    pub(super) fn new(client: &Arc<Inner>) -> Self {
        Self(Arc::downgrade(client))
    }
}

#[async_trait]
impl EventSink for Sink {
    async fn take(&self, event: NodeEvent) -> Result<(), NotTakenIn> {
        let client = self.0.upgrade().ok_or(NotTakenIn)?;
        take(&client, event).await.map_err(|error| {
            tracing::error!(%error, "what Lightning tells cannot be stored; it is told again");
            NotTakenIn
        })
    }
}

/// A spend's name in events.
pub(crate) const fn spend_name(kind: SpendKind) -> &'static str {
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
        ExitReason::Closed => "the channel was closed by one side alone".to_owned(),
        ExitReason::ReceivedUnsettled { expiry } => {
            format!("a payment to us that expires at {expiry} is not settled")
        }
        ExitReason::PartUnresolved { expiry } => {
            format!("a part of the move that expires at {expiry} is not over")
        }
        _ => "the Lightning node asks for it".to_owned(),
    }
}

/// The factory of a leaf: of the one it was born with, or of a bought one.
pub(crate) async fn factory_of(client: &Inner, leaf: LeafId) -> Result<Option<FactoryId>> {
    let joins = client.store.joins().await?;
    let join = joins.iter().find(|join| join.leaf_id.0 == leaf.0);
    for row in client.store.factories().await? {
        if join.is_some_and(|join| join.join_nonce == row.join_nonce) {
            return Ok(Some(row.factory));
        }
        let Some(kit) = client.kits.sound(row.factory).await? else {
            continue;
        };
        let mut channels = kit.channels().into_iter();
        if channels.any(|channel| name_of(&channel) == leaf) {
            return Ok(Some(row.factory));
        }
    }
    Ok(None)
}

async fn take(client: &Arc<Inner>, event: NodeEvent) -> Result<()> {
    let lightning = &client.lightning;
    match event {
        NodeEvent::LeafOpened { .. } => lightning.tell(),
        NodeEvent::LeafRefused { leaf, reason } => {
            tracing::info!(%leaf, %reason, "a channel did not come about");
            lightning.refusals().insert(leaf, reason);
            lightning.tell();
        }
        NodeEvent::LeafClosed {
            leaf,
            reason,
            cooperative,
        } => {
            lightning.tell();
            if let Some(factory) = factory_of(client, leaf).await? {
                client.events.emit(Event::ChannelClosed {
                    factory,
                    reason,
                    cooperative,
                });
            }
        }
        NodeEvent::ExitNeeded { leaf, reason } => exit_needed(client, leaf, reason).await?,
        NodeEvent::LeafSpent {
            leaf,
            kind,
            txid,
            height,
        } => {
            if let Some(factory) = factory_of(client, leaf).await? {
                client.events.emit(Event::ChannelSpent {
                    factory,
                    kind: spend_name(kind).to_owned(),
                    txid,
                    height,
                });
            }
            client.wake_chain.notify_one();
        }
        NodeEvent::CommitmentReady {
            leaf: Some(leaf),
            transaction,
        } => {
            let Some(factory) = factory_of(client, leaf).await? else {
                return Ok(());
            };
            if client
                .store
                .set_commitment(leaf, factory, &transaction)
                .await?
            {
                client.events.emit(Event::CommitmentReady {
                    factory,
                    txid: transaction.compute_txid(),
                });
            }
        }
        NodeEvent::PartMoved { hash, fee, .. } => {
            part_over(client, hash, &PartEnd::Moved, fee).await?;
            lightning.tell();
        }
        NodeEvent::PartFailed { hash, why, .. } => {
            part_over(client, hash, &PartEnd::Failed { why }, Msat(0)).await?;
            lightning.tell();
        }
        NodeEvent::ChannelOpened { outpoint, .. } => {
            let event = Event::JitChannelOpened { outpoint };
            client.events.emit(event);
            fault::point("jit_channel_opened");
            lightning.tell();
        }
        NodeEvent::ChannelClosed { reason, .. } => {
            client.events.emit(Event::JitChannelClosed { reason });
            lightning.tell();
        }
        NodeEvent::Stopped { cause } => {
            lightning.down(client, &cause.to_string());
        }
        payment => take_payment(client, payment).await?,
    }
    Ok(())
}

/// The wish to leave is derived from the node's leaves as well, so it is not lost with this event.
async fn exit_needed(client: &Inner, leaf: LeafId, reason: ExitReason) -> Result<()> {
    // The wish that led to this was told when it was made.
    if reason != ExitReason::Asked
        && let Some(factory) = factory_of(client, leaf).await?
    {
        client.events.emit(Event::ExitNeeded {
            factory,
            reason: exit_text(reason),
        });
    }
    client.wake_chain.notify_one();
    Ok(())
}

async fn take_payment(client: &Inner, event: NodeEvent) -> Result<()> {
    let now = client.now();
    // Of a payment that is just being begun the beginning comes first.
    let _turn = client.lightning.paying.lock().await;
    match event {
        NodeEvent::PaymentReceived { hash, amount, fee } => {
            let store = &client.store;
            if store.payment_received(hash, amount, fee, now).await? {
                client.events.emit(Event::PaymentReceived {
                    hash: hash.to_string(),
                    amount_msat: amount.0,
                    fee_msat: fee.0,
                });
            }
        }
        NodeEvent::FundingAwaited { hash, amount } => {
            client.events.emit(Event::JitFundingAwaited {
                hash: hash.to_string(),
                amount_msat: amount.0,
            })
        }
        NodeEvent::PaymentSent { hash, fee, .. } => {
            let end = PaymentEnd::Succeeded { fee };
            if client.store.end_payment(hash, &end, now).await? {
                client.events.emit(Event::PaymentSent {
                    hash: hash.to_string(),
                    fee_msat: fee.0,
                });
            }
        }
        NodeEvent::PaymentFailed { hash, reason } => {
            let end = PaymentEnd::Failed {
                why: reason.clone(),
            };
            if client.store.end_payment(hash, &end, now).await? {
                client.events.emit(Event::PaymentFailed {
                    hash: hash.to_string(),
                    reason,
                });
            }
        }
        NodeEvent::PaymentRefused { hash, reason } => client.events.emit(Event::PaymentRefused {
            hash: hash.to_string(),
            reason: reason.to_string(),
        }),
        // Leaves on the chain are told of by who follows it; the rest is the coordinator's.
        _ => return Ok(()),
    }
    client.lightning.tell();
    Ok(())
}
