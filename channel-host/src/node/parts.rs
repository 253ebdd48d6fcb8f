//! Parts of moves on their way. What has to be done follows from what is stored: after a crash it is looked at again.
//!
//! LDK would choose a forward's channel itself, so the coordinator's two payments are its own. Money first: it pays on only what it holds, stored
//! as held, and it claims with the preimage for which it paid.

use lightning::events::PaymentPurpose;
use lightning::ln::channelmanager::{PaymentId, RecentPaymentDetails as Recent};
use lightning::types::payment::{PaymentHash as LdkHash, PaymentPreimage};

use super::Core;
use super::handle::Again;
use super::moves::payment_id;
use super::payments::{Part, is_dust};
use crate::error::NodeError;
use crate::event::{Msat, NodeEvent, PaymentHash};
use crate::leaf::{LeafId, Side};
use crate::moves::{PartBook, PartRecord, PartState, Progress};
use crate::pay::CLAIM_BUFFER;

/// Under which our payment is known, whatever became of it.
pub(super) fn id_of(payment: &Recent) -> PaymentId {
    match payment {
        Recent::AwaitingInvoice { payment_id }
        | Recent::Pending { payment_id, .. }
        | Recent::Fulfilled { payment_id, .. }
        | Recent::Abandoned { payment_id, .. } => *payment_id,
    }
}

/// Fails the parts that a crash kept us from paying. LDK does not know a payment that never was stored with the manager, or one that failed and whose
/// event is still to come: nothing of either is on its way. Before anybody can ask for more, and never later.
pub(super) fn fail_unsent(parts: &PartBook, recent: &[Recent]) -> Result<(), NodeError> {
    let known: Vec<PaymentId> = recent.iter().map(id_of).collect();
    for part in parts.open_ones() {
        let paying = match part.side {
            Side::Lsp => part.state() == Some(PartState::PaidOn),
            Side::Client => part.is_paid() && !part.settled,
        };
        if paying && !known.contains(&payment_id(part.hash())) {
            let why = "the node was stopped before it was sent";
            parts.update(part.hash(), |part| part.fail(why))?;
        }
    }
    Ok(())
}

impl Core {
    /// The part that a payment of ours belongs to.
    pub(super) fn part_of(&self, id: PaymentId, hash: LdkHash) -> Option<PartRecord> {
        let hash = PaymentHash(hash.0);
        (payment_id(hash) == id)
            .then(|| self.parts.get(hash))
            .flatten()
    }

    /// Whether all of a payment came over one leaf's channel.
    fn came_over(&self, leaf: LeafId, arrived: &[Part]) -> bool {
        let channel = self.book.get(leaf).map(|leaf| leaf.channel_id());
        !arrived.is_empty() && arrived.iter().all(|(over, _)| *over == channel)
    }

    /// A payment to us with a part's hash.
    pub(super) fn part_claimable(
        &self,
        part: &PartRecord,
        amount: Msat,
        purpose: &PaymentPurpose,
        arrived: &[Part],
    ) -> Result<(), Again> {
        match part.side {
            Side::Lsp => self.hold_part(part, amount, arrived)?,
            Side::Client => self.claim_part(part, amount, purpose, arrived)?,
        }
        Ok(())
    }

    /// The coordinator's side: holds what the client paid, if it is what was agreed to.
    fn hold_part(
        &self,
        part: &PartRecord,
        amount: Msat,
        arrived: &[Part],
    ) -> Result<(), NodeError> {
        let hash = LdkHash(part.hash);
        if !self.came_over(part.from, arrived) {
            // Anybody's; the part itself is none the worse for it.
            self.manager.fail_htlc_backwards(&hash);
            return Ok(());
        }
        let expiry = arrived.iter().map(|(_, expiry)| *expiry).min().unwrap_or(0);
        match part.progress {
            Progress::Under(PartState::Agreed) => {
                if amount.0 < part.incoming_msat || expiry < part.incoming_expiry {
                    return self.give_up_part(part.hash(), "less came in than was agreed");
                }
                // Should the channel be closed by the time we are back from a crash, only a manager that knows the payment can claim it.
                self.save_all()?;
                self.parts.update(part.hash(), |part| {
                    part.progress = Progress::Under(PartState::Paid);
                })?;
                Ok(())
            }
            Progress::Under(PartState::Revealed) => {
                self.claim_with(part.preimage);
                Ok(())
            }
            // After a crash this is told again.
            Progress::Under(_) => Ok(()),
            Progress::Moved { .. } | Progress::Failed { .. } => {
                self.manager.fail_htlc_backwards(&hash);
                Ok(())
            }
        }
    }

    /// The client's side: reveals the preimage for what came over the new leaf, by the same rule as any other claim.
    fn claim_part(
        &self,
        part: &PartRecord,
        amount: Msat,
        purpose: &PaymentPurpose,
        arrived: &[Part],
    ) -> Result<(), NodeError> {
        let in_order = self.came_over(part.to, arrived) && self.verdict(arrived).is_ok();
        match purpose.preimage().filter(|_| in_order) {
            Some(preimage) => {
                if !is_dust(amount) {
                    self.note_at_risk(arrived)?;
                }
                self.manager.claim_funds(preimage);
            }
            None => self.manager.fail_htlc_backwards(&LdkHash(part.hash)),
        }
        Ok(())
    }

    fn claim_with(&self, preimage: Option<[u8; 32]>) {
        if let Some(preimage) = preimage {
            // Whatever else the client's onion says: without this LDK sends back what has an unknown even record, though we paid on for it.
            self.manager
                .claim_funds_with_known_custom_tlvs(PaymentPreimage(preimage));
        }
    }

    /// What was paid to us is ours.
    pub(super) fn part_claimed(&self, part: &PartRecord) -> Result<(), NodeError> {
        self.parts
            .update(part.hash(), |part| match part.side {
                Side::Lsp => {
                    part.settled = true;
                    part.progress = Progress::Moved { told: false };
                }
                Side::Client => {
                    part.claimed = true;
                    if part.is_paid() {
                        part.progress = Progress::Under(PartState::Revealed);
                    }
                }
            })
            .map(|_| ())
    }

    /// What we paid has arrived.
    pub(super) fn part_arrived(
        &self,
        part: &PartRecord,
        preimage: PaymentPreimage,
    ) -> Result<(), NodeError> {
        match part.side {
            Side::Lsp => {
                let part = self.parts.update(part.hash(), |part| {
                    part.preimage = Some(preimage.0);
                    if !matches!(part.progress, Progress::Moved { .. }) {
                        part.progress = Progress::Under(PartState::Revealed);
                    }
                })?;
                self.claim_with(part.and_then(|part| part.preimage));
            }
            Side::Client => {
                self.parts.update(part.hash(), |part| part.settled = true)?;
            }
        }
        Ok(())
    }

    /// What we paid came back.
    pub(super) fn part_came_back(&self, part: &PartRecord, why: &str) -> Result<(), NodeError> {
        match part.side {
            Side::Lsp if part.preimage.is_some() => Ok(()),
            Side::Lsp => self.give_up_part(part.hash(), why),
            // Though it may have revealed the preimage: too late, as the coordinator has taken back what it paid.
            Side::Client => self
                .parts
                .update(part.hash(), |part| part.fail(why))
                .map(|_| ()),
        }
    }

    /// The coordinator's side: sends back what it holds for a part, and has not paid on.
    fn give_up_part(&self, hash: PaymentHash, why: &str) -> Result<(), NodeError> {
        self.parts.update(hash, |part| part.fail(why))?;
        self.manager.fail_htlc_backwards(&LdkHash(hash.0));
        self.peers.process_events();
        Ok(())
    }

    /// After a start: what was decided, and perhaps never reached the peer.
    pub(super) fn repeat_parts(&self) {
        let height = self.book.height();
        let parts = self.parts.all().into_iter();
        for part in parts.filter(|part| part.side == Side::Lsp && part.incoming_expiry > height) {
            match part.progress {
                Progress::Failed { .. } => self.fail(part.hash()),
                Progress::Under(PartState::Revealed) => self.claim_with(part.preimage),
                Progress::Under(_) | Progress::Moved { .. } => {}
            }
        }
    }

    /// Does what is due now for the parts that are not over, and tells of those that are. With everything stored: what is seen to be gone is gone.
    pub(super) async fn parts_step(&self) -> Result<(), NodeError> {
        for part in self.parts.open_ones() {
            match part.state() {
                Some(PartState::Agreed) if part.side == Side::Lsp => self.expire_part(&part)?,
                Some(PartState::Paid) if part.side == Side::Lsp => self.pay_on(&part)?,
                Some(PartState::Revealed) if part.side == Side::Client => self.finish(&part)?,
                Some(_) => {}
                None => self.tell_end(&part).await?,
            }
        }
        Ok(())
    }

    /// Whether the client could no longer claim what it would be paid.
    fn is_late(&self, part: &PartRecord) -> bool {
        let delay = self.book.get(part.to).map_or(0, |to| to.exit_delay);
        let needed = delay.saturating_add(CLAIM_BUFFER);
        self.book.height() >= part.outgoing_expiry.saturating_sub(needed)
    }

    fn expire_part(&self, part: &PartRecord) -> Result<(), NodeError> {
        if self.is_late(part) {
            self.give_up_part(part.hash(), "it was not paid in time")?;
        }
        Ok(())
    }

    /// The coordinator's side: pays the client over the new leaf what it holds from the old one; waits for a client that is away.
    fn pay_on(&self, part: &PartRecord) -> Result<(), NodeError> {
        let hash = part.hash();
        let in_force = |leaf: LeafId| {
            let leaf = self.book.get(leaf);
            leaf.filter(|leaf| !leaf.is_gated() && !leaf.exiting)
        };
        let (Some(from), Some(to)) = (in_force(part.from), in_force(part.to)) else {
            return self.give_up_part(hash, "one of the two leaves is not in force");
        };
        if self.is_late(part) {
            return self.give_up_part(hash, "the client was away for too long");
        }
        let held = self.held_parts(LdkHash(part.hash)).into_iter();
        let mut held = held.filter(|(channel, _)| *channel == from.channel_id());
        let Some((_, expiry)) = held.next() else {
            return self.give_up_part(hash, "what came in is gone");
        };
        let Some(channel) = self.usable_channel(&to) else {
            return Ok(());
        };
        // Stored first: should the client end the old channel once we have claimed, LDK does not count it among what is pending.
        if !is_dust(Msat(part.incoming_msat)) {
            self.book.update(from.id, |leaf| leaf.carries(expiry))?;
        }
        self.parts.update(hash, |part| {
            part.progress = Progress::Under(PartState::PaidOn);
        })?;
        let sent = self.send_over(
            &channel,
            hash,
            part.amount(),
            part.to_secret,
            part.outgoing_expiry,
        );
        if let Err(error) = sent {
            return self.give_up_part(hash, &error.to_string());
        }
        self.peers.process_events();
        Ok(())
    }

    /// The client's side: over once the coordinator cannot take back what it paid. LDK drops a payment that was claimed when the coordinator's
    /// `revoke_and_ack` revokes its last commitment with it (BOLT 2), and an update that is not stored yet counts as pending.
    fn finish(&self, part: &PartRecord) -> Result<(), NodeError> {
        let to = self.book.get(part.to);
        let channel = to.and_then(|to| self.channel_of(&to));
        let pending = channel.is_some_and(|channel| {
            let mut inbound = channel.pending_inbound_htlcs.iter();
            inbound.any(|htlc| htlc.payment_hash.0 == part.hash)
        });
        let stored = self.monitors.pending_operation_count() == 0;
        if part.claimed && part.settled && !pending && stored {
            self.parts.update(part.hash(), |part| {
                part.progress = Progress::Moved { told: false };
            })?;
        }
        Ok(())
    }

    async fn tell_end(&self, part: &PartRecord) -> Result<(), NodeError> {
        let (hash, from, to) = (part.hash(), part.from, part.to);
        let event = match &part.progress {
            Progress::Under(_) => return Ok(()),
            Progress::Moved { .. } => NodeEvent::PartMoved {
                hash,
                from,
                to,
                amount: part.amount(),
                fee: part.fee(),
            },
            Progress::Failed { why, .. } => NodeEvent::PartFailed {
                hash,
                from,
                to,
                why: why.clone(),
            },
        };
        // Not taken in, it is told at the next step.
        if self.config.events.take(event).await.is_ok() {
            self.parts.update(hash, |part| match &mut part.progress {
                Progress::Moved { told } | Progress::Failed { told, .. } => *told = true,
                Progress::Under(_) => {}
            })?;
        }
        Ok(())
    }
}
