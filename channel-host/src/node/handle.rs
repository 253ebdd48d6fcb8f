//! LDK's events, one by one. What is not handled durably is asked for again.

use std::time::Duration;

use bitcoin::hashes::{Hash, HashEngine, sha256};
use lightning::events::bump_transaction::BumpTransactionEvent;
use lightning::events::{Event, InboundHTLCLocator, PaymentFailureReason, ReplayEvent};
use lightning::routing::scoring::ScoreUpdate;
use lightning::types::payment::PaymentHash as LdkHash;

use super::Core;
use super::exit::is_worth_it;
use super::payments::NO_WAY;
use super::replay::Replay;
use crate::clock::since_epoch;
use crate::error::NodeError;
use crate::event::{Msat, NodeEvent, NotTakenIn, PaymentHash};
use crate::leaf::Side;

/// Why an event is to come again.
#[derive(Debug)]
pub(super) enum Again {
    Node(NodeError),
    Host,
}

impl From<NodeError> for Again {
    fn from(error: NodeError) -> Self {
        Self::Node(error)
    }
}

impl From<NotTakenIn> for Again {
    fn from(_: NotTakenIn) -> Self {
        Self::Host
    }
}

/// Why a payment of ours came back, for people.
fn failure(reason: PaymentFailureReason) -> String {
    match reason {
        PaymentFailureReason::RouteNotFound => NO_WAY.to_owned(),
        PaymentFailureReason::RetriesExhausted => {
            "every way that was tried failed; the receiver may be away, or have no room".to_owned()
        }
        PaymentFailureReason::PaymentExpired => "the invoice has expired".to_owned(),
        PaymentFailureReason::RecipientRejected => "the receiver rejected it".to_owned(),
        PaymentFailureReason::UserAbandoned => "it was given up".to_owned(),
        other => format!("Lightning says {other:?}"),
    }
}

/// A forward's number: the same whenever LDK tells of it.
fn number_of(htlcs: &[InboundHTLCLocator]) -> [u8; 32] {
    let mut engine = sha256::Hash::engine();
    for htlc in htlcs {
        engine.input(&htlc.channel_id.0);
        engine.input(&htlc.htlc_id.unwrap_or_default().to_be_bytes());
    }
    sha256::Hash::from_engine(engine).to_byte_array()
}

impl Core {
    /// `replay`: that of the queue the event is from.
    pub(super) async fn handle(&self, event: Event, replay: &Replay) -> Result<(), ReplayEvent> {
        self.handle_one(event).await.map_err(|again| {
            replay.failed();
            match again {
                Again::Node(error) => tracing::warn!(%error, "a Lightning event is handled later"),
                Again::Host => tracing::warn!("a Lightning event is told again later"),
            }
            ReplayEvent()
        })
    }

    pub(super) async fn told(&self, event: NodeEvent) -> Result<(), Again> {
        Ok(self.config.events.take(event).await?)
    }

    async fn handle_one(&self, event: Event) -> Result<(), Again> {
        match event {
            Event::FundingGenerationReady {
                temporary_channel_id,
                counterparty_node_id,
                channel_value_satoshis,
                output_script,
                user_channel_id,
            } => {
                let channel = (temporary_channel_id, counterparty_node_id);
                match self.book.by_channel(user_channel_id) {
                    Some(leaf) => {
                        let value = bitcoin::Amount::from_sat(channel_value_satoshis);
                        self.fund_leaf(leaf, channel, value, &output_script).await
                    }
                    None => match self.jit.by_channel(user_channel_id) {
                        Some(order) => {
                            self.jit_fund(&order, channel, channel_value_satoshis, &output_script)
                                .await
                        }
                        None => {
                            let value = channel_value_satoshis;
                            match self.bought.by_channel(user_channel_id) {
                                Some(bought) => {
                                    self.bought_fund(&bought, channel, value, &output_script)
                                        .await
                                }
                                None => {
                                    self.fund_ordinary(channel, value, &output_script).await;
                                    Ok(())
                                }
                            }
                        }
                    },
                }
            }
            Event::OpenChannelRequest { .. } => self.requested(event).await,
            Event::ChannelPending {
                channel_id,
                user_channel_id,
                funding_txo,
                channel_type,
                funding_redeem_script,
                ..
            } => match self.book.by_channel(user_channel_id) {
                Some(leaf) => {
                    self.leaf_pending(
                        leaf,
                        channel_id,
                        funding_txo,
                        channel_type,
                        funding_redeem_script,
                    )
                    .await
                }
                None => match self.bought.by_channel(user_channel_id) {
                    Some(bought) => self.bought_stands(&bought, funding_txo).await,
                    None => Ok(self.jit_signed(user_channel_id, channel_id, funding_txo)?),
                },
            },
            Event::ChannelReady {
                user_channel_id,
                counterparty_node_id,
                funding_txo,
                ..
            } => match self.book.by_channel(user_channel_id) {
                Some(leaf) => self.leaf_ready(leaf).await,
                None => {
                    self.told(NodeEvent::ChannelOpened {
                        id: u64::try_from(user_channel_id).unwrap_or(0),
                        peer: counterparty_node_id,
                        outpoint: funding_txo,
                    })
                    .await?;
                    match self.jit.by_channel(user_channel_id) {
                        Some(order) => Ok(self.jit_step(order.scid).await?),
                        None => Ok(()),
                    }
                }
            },
            Event::ChannelClosed {
                user_channel_id,
                reason,
                channel_funding_txo,
                ..
            } => {
                // Stored before it is told: else a crash would open a channel again that everybody takes for closed.
                self.save().map_err(NodeError::from)?;
                match self.book.by_channel(user_channel_id) {
                    Some(leaf) => {
                        if let Some(order) = self.jit.by_channel(user_channel_id) {
                            self.jit_closed(&order, &reason.to_string()).await?;
                        }
                        let funded = channel_funding_txo.is_some();
                        self.leaf_closed(leaf, reason, funded).await
                    }
                    None => {
                        let reason = reason.to_string();
                        if let Some(order) = self.jit.by_channel(user_channel_id) {
                            self.jit_closed(&order, &reason).await?;
                        }
                        let id = u64::try_from(user_channel_id).unwrap_or(0);
                        self.bought_closed(id).await?;
                        self.told(NodeEvent::ChannelClosed { id, reason }).await
                    }
                }
            }
            Event::PaymentClaimable {
                payment_hash,
                purpose,
                amount_msat,
                counterparty_skimmed_fee_msat,
                receiving_channel_ids,
                claim_deadline,
                ..
            } => {
                if let Err(reason) = self.jit_verdict(&payment_hash, counterparty_skimmed_fee_msat)
                {
                    return self.refuse_payment(payment_hash, reason).await;
                }
                let payment = (payment_hash, Msat(amount_msat));
                self.claimable(payment, &purpose, &receiving_channel_ids, claim_deadline)
                    .await
            }
            Event::PaymentClaimed {
                payment_hash,
                amount_msat,
                htlcs,
                ..
            } => {
                let hash = PaymentHash(payment_hash.0);
                if let Some(part) = self.parts.get(hash) {
                    return Ok(self.part_claimed(&part)?);
                }
                self.unseen.remove(&payment_hash.0)?;
                let fee = self.jit_taken(&payment_hash, &htlcs)?;
                let amount = Msat(amount_msat);
                self.told(NodeEvent::PaymentReceived { hash, amount, fee })
                    .await
            }
            Event::PaymentSent {
                payment_id,
                payment_hash,
                payment_preimage,
                fee_paid_msat,
                ..
            } => {
                let part = payment_id.and_then(|id| self.part_of(id, payment_hash));
                if let Some(part) = part {
                    return Ok(self.part_arrived(&part, payment_preimage)?);
                }
                self.told(NodeEvent::PaymentSent {
                    hash: PaymentHash(payment_hash.0),
                    preimage: payment_preimage.0,
                    fee: Msat(fee_paid_msat.unwrap_or(0)),
                })
                .await
            }
            Event::PaymentFailed {
                payment_id,
                payment_hash,
                reason,
            } => {
                let reason = reason.map_or_else(|| "unknown".into(), failure);
                let part = payment_hash.and_then(|hash| self.part_of(payment_id, hash));
                if let Some(part) = part {
                    return Ok(self.part_came_back(&part, &reason)?);
                }
                let hash = PaymentHash(payment_hash.map_or(payment_id.0, |hash| hash.0));
                self.told(NodeEvent::PaymentFailed { hash, reason }).await
            }
            Event::HTLCIntercepted { .. } => self.intercepted(event).await,
            Event::PaymentForwarded {
                prev_htlcs,
                total_fee_earned_msat,
                skimmed_fee_msat,
                outbound_amount_forwarded_msat,
                ..
            } => {
                // What was taken for opening a channel is told apart.
                let opening = skimmed_fee_msat.unwrap_or(0);
                self.jit_claimed(&prev_htlcs, opening).await?;
                let earned = total_fee_earned_msat.unwrap_or(0);
                self.told(NodeEvent::PaymentForwarded {
                    number: number_of(&prev_htlcs),
                    amount: Msat(outbound_amount_forwarded_msat),
                    fee: Msat(earned.saturating_sub(opening)),
                })
                .await
            }
            Event::SpendableOutputs {
                outputs,
                channel_id,
                counterparty_node_id,
            } => self
                .sweeper
                .track_spendable_outputs(outputs, channel_id, counterparty_node_id, false, None)
                .map_err(|()| Again::Host),
            Event::BumpTransaction(bump) => self.bump(bump).await,
            Event::PaymentPathSuccessful { path, .. } => {
                self.score(|scorer, now| scorer.payment_path_successful(&path, now));
                Ok(())
            }
            Event::PaymentPathFailed {
                path,
                short_channel_id: Some(scid),
                ..
            } => {
                self.score(|scorer, now| scorer.payment_path_failed(&path, scid, now));
                Ok(())
            }
            // Nothing of ours: splices, offers and probes are not used, and the rest only informs.
            _ => Ok(()),
        }
    }

    fn score(&self, update: impl FnOnce(&mut dyn ScoreUpdate, Duration)) {
        let now = since_epoch();
        if let Ok(mut scorer) = self.scorer.write() {
            update(&mut *scorer, now);
        }
    }

    /// Pays for a transaction of a channel on its way to the chain. A commitment whose leaf is not there yet waits: each try would raise LDK's
    /// feerate. LDK asks for it at every block until it is buried, also when its leaf is spent already.
    async fn bump(&self, mut bump: BumpTransactionEvent) -> Result<(), Again> {
        if let BumpTransactionEvent::HTLCResolution {
            htlc_descriptors, ..
        } = &mut bump
        {
            // What the client of a part revealed to us is its own.
            let revealed = |hash: &LdkHash| {
                let part = self.parts.get(PaymentHash(hash.0));
                part.is_some_and(|part| part.preimage.is_some())
            };
            htlc_descriptors
                .retain(|claim| claim.preimage.is_some() || !revealed(&claim.htlc.payment_hash));
            if htlc_descriptors.is_empty() {
                return Ok(());
            }
        }
        if let BumpTransactionEvent::ChannelClose {
            channel_id,
            commitment_tx,
            ..
        } = &bump
        {
            let leaf = self.book.by_ldk_id(*channel_id);
            if leaf.as_ref().is_some_and(|leaf| !leaf.takes_commitment()) {
                return Ok(());
            }
            let monitored = self.monitors.get_monitor(*channel_id);
            let worthless = monitored.is_ok_and(|monitor| !is_worth_it(&monitor));
            let yields = leaf.as_ref().is_some_and(|leaf| self.yields(leaf));
            if self.config.side == Side::Client && (worthless || yields) {
                return Ok(());
            }
            self.told(NodeEvent::CommitmentReady {
                leaf: leaf.map(|leaf| leaf.id),
                transaction: Box::new(commitment_tx.clone()),
            })
            .await?;
        }
        self.bumper.handle_event(&bump).await;
        Ok(())
    }
}
