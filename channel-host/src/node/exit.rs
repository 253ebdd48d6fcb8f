//! Leaves on their way to the chain, looked at after every block.

use lightning::chain::channelmonitor::{Balance, ChannelMonitor};
use lightning::ln::channel_state::{
    ChannelDetails, InboundHTLCDetails, InboundHTLCStateDetails, OutboundHTLCDetails,
};
use lightning::ln::types::ChannelId;
use lightning::sign::InMemorySigner;
use lightning::util::persist::{
    CHANNEL_MONITOR_PERSISTENCE_PRIMARY_NAMESPACE, CHANNEL_MONITOR_PERSISTENCE_SECONDARY_NAMESPACE,
    CHANNEL_MONITOR_UPDATE_PERSISTENCE_PRIMARY_NAMESPACE,
};

use super::Core;
use super::ended::has_htlcs;
use super::log::{TO_THE_CHAIN, WORTHLESS};
use super::payments::is_dust;
use crate::error::NodeError;
use crate::event::{ExitReason, Msat, NodeEvent, PaymentHash};
use crate::leaf::{Closing, HtlcView, LeafId, Record, Side, Stage, exit_due};
use crate::pay::{CLAIM_BUFFER, required_delta};
use crate::store::{Change, EntryKey};

/// Blocks before a channel has to go to the chain in which its client is woken, who may yet resolve what is pending (bLIP-55: 24).
const WAKE_BEFORE: u32 = 24;
/// LDK's `LATENCY_GRACE_PERIOD_BLOCKS`: blocks a peer has to send a payment back that has expired.
const GRACE: u32 = 3;
/// Blocks after the leaf's in which a wallet leaves the way to the commitment of the coordinator that closed the channel.
const YIELD: u32 = 3;
/// Blocks after the leaf's within which a closing transaction has to confirm.
const CLOSING_PATIENCE: u32 = 6;

impl Core {
    pub(super) async fn exit_step(&self) -> Result<(), NodeError> {
        let channels = self.manager.list_channels();
        for leaf in self.book.all() {
            let channel = channels
                .iter()
                .find(|channel| channel.user_channel_id == leaf.channel_id());
            if leaf.spent.is_some() {
                self.look_at_end(&leaf, channel.is_some()).await;
                continue;
            }
            match channel {
                Some(channel) if leaf.stage != Stage::Abandoned => {
                    self.look_at_open(&leaf, channel, &channels).await?;
                }
                None if leaf.stage == Stage::Closed => {
                    self.look_at_closed(&leaf).await?;
                    if leaf.confirmed_at.is_some() {
                        self.publish_closed(&leaf)?;
                    }
                }
                _ => {}
            }
        }
        if self.config.side == Side::Lsp {
            for channel in &channels {
                self.look_at_ordinary(channel).await;
            }
        }
        Ok(())
    }

    /// An ordinary channel goes to the chain without our doing: its client is only woken before.
    async fn look_at_ordinary(&self, channel: &ChannelDetails) {
        let client = channel.counterparty.node_id;
        let is_leaf = self.book.by_channel(channel.user_channel_id).is_some();
        if is_leaf || self.is_connected(&client) {
            return;
        }
        let height = self.book.height();
        let mut soon = (height..height.saturating_add(WAKE_BEFORE)).skip(1);
        let exits_at = closes_at(channel).filter(|at| soon.any(|height| height == *at));
        if let Some(exits_at) = exits_at {
            self.tell(NodeEvent::ExpirySoon { client, exits_at }).await;
        }
    }

    /// An open channel: force-closed only once its leaf is confirmed, as LDK's target feerate rises with each try before.
    async fn look_at_open(
        &self,
        leaf: &Record,
        channel: &ChannelDetails,
        all: &[ChannelDetails],
    ) -> Result<(), NodeError> {
        let mut exiting = leaf.exiting;
        if !exiting && leaf.factory_confirmed {
            let height = self.book.height();
            let pending = self.pending(leaf, channel, all);
            let due_at = |height: u32| {
                let mut all = pending.iter();
                all.find_map(|htlc| exit_due(height, leaf.exit_delay, *htlc))
            };
            if let Some(reason) = due_at(height) {
                exiting = self.begin_exit(leaf.id, reason).await?;
            } else if leaf.side == Side::Lsp && !self.is_connected(&leaf.peer) {
                let mut soon = (height..height.saturating_add(WAKE_BEFORE)).skip(1);
                if let Some(exits_at) = soon.find(|height| due_at(*height).is_some()) {
                    let client = leaf.peer;
                    self.tell(NodeEvent::ExpirySoon { client, exits_at }).await;
                }
            }
        }
        if exiting && leaf.confirmed_at.is_some() {
            let why = TO_THE_CHAIN.to_owned();
            self.manager.force_close_broadcasting_latest_txn(
                &channel.channel_id,
                &leaf.peer,
                why,
            )?;
        }
        Ok(())
    }

    /// A closed channel: at its close, and at every block, as its factory may have been unconfirmed then, or have gone back to that.
    pub(super) async fn look_at_closed(&self, leaf: &Record) -> Result<(), NodeError> {
        let pending = leaf.ldk_id.is_some_and(|id| self.has_htlcs(ChannelId(id)))
            || self.paid_on_over(leaf.id).next().is_some();
        if leaf.must_exit(self.book.height(), pending) && !self.may_wait(leaf) {
            self.begin_exit(leaf.id, ExitReason::Closed).await?;
        }
        Ok(())
    }

    /// Whether nobody is the worse for it if a closed channel's leaf stays off the chain for now: it holds nothing of this wallet's, or only parts of
    /// moves that the coordinator paid on, and it is not their time yet.
    fn may_wait(&self, leaf: &Record) -> bool {
        let Some(id) = leaf.ldk_id.map(ChannelId) else {
            return false;
        };
        let Ok(monitor) = self.monitors.get_monitor(id) else {
            return false;
        };
        match leaf.side {
            Side::Client => !is_worth_it(&monitor),
            Side::Lsp => self.only_parts_wait(leaf, &monitor.get_claimable_balances()),
        }
    }

    /// The host publishes the path, so it has to know before we count on it: what it does not take in is told again at the next block. Returns
    /// whether it knows.
    async fn begin_exit(&self, leaf: LeafId, reason: ExitReason) -> Result<bool, NodeError> {
        let event = NodeEvent::ExitNeeded { leaf, reason };
        if self.config.events.take(event).await.is_err() {
            tracing::warn!(%leaf, "an exit could not be taken in");
            return Ok(false);
        }
        self.book.update(leaf, |leaf| leaf.exiting = true)?;
        Ok(true)
    }

    /// A closed channel whose confirmed leaf is unspent: after a reorg LDK does not broadcast a commitment again that was released above the fork,
    /// so it is told to at every block; what it has pending already it ignores.
    fn publish_closed(&self, leaf: &Record) -> Result<(), NodeError> {
        let waited = self
            .book
            .height()
            .saturating_sub(leaf.confirmed_at.unwrap_or(0));
        // What both once agreed on pays the fee of that day, and nobody can raise it; a commitment's child can.
        if self.broadcaster.release_closing(leaf.id)? && waited < CLOSING_PATIENCE {
            return Ok(());
        }
        let Some(id) = leaf.ldk_id else { return Ok(()) };
        if let Ok(monitor) = self.monitors.get_monitor(ChannelId(id))
            && (leaf.side == Side::Lsp || is_worth_it(&monitor))
        {
            monitor.broadcast_latest_holder_commitment_txn(
                &self.broadcaster,
                &self.fees,
                &self.log,
            );
        }
        Ok(())
    }

    /// Whether the coordinator's commitment comes first: it closed the channel, and pays for its own. Ours would cost us the fee, and what is ours
    /// would wait for our delay.
    pub(super) fn yields(&self, leaf: &Record) -> bool {
        let height = self.book.height();
        let fresh = |at: u32| height < at.saturating_add(YIELD);
        leaf.side == Side::Client
            && leaf.closed == Some(Closing::ByPeer)
            && leaf.confirmed_at.is_some_and(fresh)
            && leaf.at_risk_until <= height
            && !leaf.ldk_id.is_some_and(|id| self.has_htlcs(ChannelId(id)))
    }

    /// What is pending in a channel and has an output on the chain; a payment through us shows its upstream expiry by the same hash in another channel.
    fn pending(
        &self,
        leaf: &Record,
        channel: &ChannelDetails,
        all: &[ChannelDetails],
    ) -> Vec<HtlcView> {
        let inbound = channel.pending_inbound_htlcs.iter();
        let inbound = inbound.filter(|htlc| !htlc.is_dust).map(|htlc| {
            let (hash, expiry) = (PaymentHash(htlc.payment_hash.0), htlc.cltv_expiry);
            if self.is_paid_on(leaf.id, hash) {
                return HtlcView::Part { expiry };
            }
            HtlcView::Inbound {
                expiry,
                preimage_known: htlc.state
                    == Some(InboundHTLCStateDetails::AwaitingRemoteRevokeToRemoveFulfill),
            }
        });
        let outbound = channel.pending_outbound_htlcs.iter();
        let outbound = outbound.filter(|htlc| !htlc.is_dust).map(|htlc| {
            if let Some(part) = self.part_to(leaf.id, PaymentHash(htlc.payment_hash.0)) {
                return self.part_pending(&part);
            }
            let upstream = all
                .iter()
                .flat_map(|other| &other.pending_inbound_htlcs)
                .filter(|other| other.payment_hash == htlc.payment_hash && pays_for(other, htlc))
                .map(|other| other.cltv_expiry);
            HtlcView::Outbound {
                upstream: upstream.min(),
            }
        });
        inbound.chain(outbound).collect()
    }

    pub(super) async fn request_exit(&self, id: LeafId) -> Result<(), NodeError> {
        let leaf = self
            .book
            .get(id)
            .ok_or(NodeError::UnknownLeaf { leaf: id })?;
        if leaf.retired {
            return Err(NodeError::Refused("the leaf was handed over".into()));
        }
        if !leaf.exiting && !self.begin_exit(id, ExitReason::Asked).await? {
            return Err(NodeError::Refused("the exit could not be stored".into()));
        }
        let channel = self.channel_of(&leaf);
        if let (Some(channel), Some(_)) = (channel, leaf.confirmed_at) {
            self.reject((channel.channel_id, leaf.peer), TO_THE_CHAIN);
        }
        Ok(())
    }

    /// Nothing is published: what comes in at this very moment is fetched as in any channel that we closed ([`Self::look_at_closed`]).
    pub(super) fn close_worthless(&self, id: LeafId) -> Result<(), NodeError> {
        let leaf = self
            .book
            .get(id)
            .ok_or(NodeError::UnknownLeaf { leaf: id })?;
        let Some(channel) = self.channel_of(&leaf) else {
            return Ok(());
        };
        let pending =
            !channel.pending_inbound_htlcs.is_empty() || !channel.pending_outbound_htlcs.is_empty();
        if pending || !is_dust(Msat(channel.outbound_capacity_msat)) {
            return Err(NodeError::NotOver {
                leaf: id,
                what: "some of our balance is in its channel, or pending",
            });
        }
        self.reject((channel.channel_id, leaf.peer), WORTHLESS);
        Ok(())
    }

    pub(super) fn has_htlcs(&self, channel: ChannelId) -> bool {
        let monitor = self.monitors.get_monitor(channel);
        monitor.is_ok_and(|monitor| has_htlcs(&monitor))
    }

    /// Drops a monitor, which only then can no longer punish an old state.
    pub(super) fn forget_leaf(&self, id: LeafId) -> Result<(), NodeError> {
        let leaf = self
            .book
            .get(id)
            .ok_or(NodeError::UnknownLeaf { leaf: id })?;
        let not_over = |what| NodeError::NotOver { leaf: id, what };
        if self.channel_of(&leaf).is_some()
            || !matches!(leaf.stage, Stage::Closed | Stage::Abandoned)
        {
            return Err(not_over("its channel is not closed"));
        }
        let Some(channel) = leaf.ldk_id.map(ChannelId) else {
            return Ok(());
        };
        if self.monitors.get_monitor(channel).is_err() {
            return Ok(());
        }
        if self.has_htlcs(channel) {
            return Err(not_over("payments are pending in it"));
        }
        // LDK reads no manager that knows a channel, or an update on its way, whose monitor is missing. The first time lets updates go, what
        // follows takes in that they are done, the second stores that.
        self.save_all()?;
        self.peers.process_events();
        self.save_all()?;
        self.parts.forget(id, |part| !self.lingers(part))?;
        let Ok(monitor) = self.monitors.get_monitor(channel) else {
            return Ok(());
        };
        let name = monitor.persistence_key().to_string();
        drop(monitor);
        self.monitor_store.forget(&name);
        let updates = CHANNEL_MONITOR_UPDATE_PERSISTENCE_PRIMARY_NAMESPACE;
        let mut changes = vec![Change::Remove(EntryKey::new(
            CHANNEL_MONITOR_PERSISTENCE_PRIMARY_NAMESPACE,
            CHANNEL_MONITOR_PERSISTENCE_SECONDARY_NAMESPACE,
            &name,
        ))];
        for update in self.store.names(updates, &name)? {
            changes.push(Change::Remove(EntryKey::new(updates, &name, &update)));
        }
        Ok(self.store.write(changes)?)
    }
}

/// Whether a commitment has an output of ours, or may yet: a wallet pays for no other.
pub(super) fn is_worth_it(monitor: &ChannelMonitor<InMemorySigner>) -> bool {
    let balances = monitor.get_claimable_balances();
    let sum: u64 = balances
        .iter()
        .map(Balance::claimable_amount_satoshis)
        .sum();
    has_htlcs(monitor) || !is_dust(Msat(sum.saturating_mul(1_000)))
}

/// When LDK closes a channel for what is pending in it, dust included: while a payment in whose preimage it knows can still be claimed, and when
/// one out should have been sent back.
fn closes_at(channel: &ChannelDetails) -> Option<u32> {
    let claimed = Some(InboundHTLCStateDetails::AwaitingRemoteRevokeToRemoveFulfill);
    let inbound = channel.pending_inbound_htlcs.iter();
    let inbound = inbound
        .filter(|htlc| htlc.state == claimed)
        .map(|htlc| htlc.cltv_expiry.saturating_sub(CLAIM_BUFFER));
    let outbound = channel.pending_outbound_htlcs.iter();
    let outbound = outbound
        .filter(|htlc| htlc.htlc_id.is_some())
        .map(|htlc| htlc.cltv_expiry.saturating_add(GRACE));
    inbound.chain(outbound).min()
}

/// Whether a payment in may be what pays for one out, rather than a stranger's of the same hash that we never forwarded: those we forward leave
/// blocks between the two.
fn pays_for(upstream: &InboundHTLCDetails, htlc: &OutboundHTLCDetails) -> bool {
    let resolved = matches!(
        upstream.state,
        Some(
            InboundHTLCStateDetails::AwaitingRemoteRevokeToRemoveFulfill
                | InboundHTLCStateDetails::AwaitingRemoteRevokeToRemoveFail
        )
    );
    let least = htlc.cltv_expiry.saturating_add(required_delta(None, None));
    !resolved && upstream.cltv_expiry >= least
}

#[cfg(test)]
mod tests {
    use lightning::types::payment::PaymentHash;

    use super::*;

    fn inbound(cltv_expiry: u32, state: InboundHTLCStateDetails) -> InboundHTLCDetails {
        InboundHTLCDetails {
            htlc_id: 1,
            amount_msat: 1_000,
            cltv_expiry,
            payment_hash: PaymentHash([1; 32]),
            state: Some(state),
            is_dust: false,
        }
    }

    #[test]
    fn a_stranger_cannot_send_a_leaf_to_the_chain_by_a_known_hash() {
        let outbound = OutboundHTLCDetails {
            htlc_id: Some(1),
            amount_msat: 1_000,
            cltv_expiry: 1_000,
            payment_hash: PaymentHash([1; 32]),
            state: None,
            skimmed_fee_msat: None,
            is_dust: false,
        };
        let committed = |expiry| inbound(expiry, InboundHTLCStateDetails::Committed);
        assert!(pays_for(&committed(1_048), &outbound));
        assert!(!pays_for(&committed(1_047), &outbound));
        for over in [
            InboundHTLCStateDetails::AwaitingRemoteRevokeToRemoveFail,
            InboundHTLCStateDetails::AwaitingRemoteRevokeToRemoveFulfill,
        ] {
            assert!(!pays_for(&inbound(1_048, over), &outbound));
        }
    }
}
