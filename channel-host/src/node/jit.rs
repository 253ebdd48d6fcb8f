//! Channels that are opened when the payment for them is here (LSPS2, bLIP-52).
//!
//! Each step looks at the order's record, what is held for it and which channels there are, and does what is due: it may be taken at any time,
//! and again after a crash, when LDK asks anew about what it holds.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use bitcoin::Amount;
use bitcoin::secp256k1::PublicKey;
use lightning::ln::channel_state::ChannelDetails;
use lightning::ln::channelmanager::InterceptId;
use tokio::time::Instant;

use super::Core;
use super::handle::Again;
use crate::clock::since_epoch;
use crate::config::FeePolicy;
use crate::error::NodeError;
use crate::event::{Msat, NodeEvent};
use crate::jit::{
    JitGates, JitGround, JitOpening, JitOrder, JitRefusal, PartKey, Record, Stage, shares,
};
use crate::pay::{
    Forward, ForwardRefusal, Gates, Intercepted, decide, leaf_delta, leaves_leaf_time, leaves_time,
};

/// The way to an order's client costs nothing but the opening fee (bLIP-52).
const FREE: FeePolicy = FeePolicy {
    base_msat: 0,
    proportional_millionths: 0,
};

/// A payment, or a part of one, that waits for its channel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    id: InterceptId,
    htlc: Intercepted,
    since: Instant,
    until: Instant,
}

/// Parts of one payment.
type Set = Vec<Held>;
/// A part, less what is taken of it, and where it goes.
type Way = (InterceptId, Intercepted, Forward);

fn unix_time() -> u64 {
    since_epoch().as_secs()
}

fn total(set: &[Held]) -> u64 {
    let parts = set.iter().map(|held| held.htlc.outbound_msat);
    parts.fold(0, u64::saturating_add)
}

/// What is left of each part.
fn arriving(set: &[Held], fee: u64) -> Result<Vec<u64>, JitRefusal> {
    let amounts: Vec<u64> = set.iter().map(|held| held.htlc.outbound_msat).collect();
    let shares = shares(&amounts, fee).ok_or(JitRefusal::Size(total(set)))?;
    let left = amounts.iter().zip(shares);
    Ok(left
        .map(|(part, share)| part.saturating_sub(share))
        .collect())
}

impl Core {
    fn held(&self) -> MutexGuard<'_, Vec<Held>> {
        self.jit_held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What may go over which channel; `only`: nothing but this one.
    pub(super) fn gates(&self, only: Option<u128>) -> Gates<'_> {
        Gates {
            book: &self.book,
            jit: &self.jit,
            only,
        }
    }

    fn jit_gates(&self) -> JitGates {
        let service = self.config.lsps.as_ref();
        service.map_or(JitGates::default(), |service| service.jit_gates())
    }

    /// Stores an order; its number, and the blocks its invoices leave us.
    pub(super) fn add_jit_order(&self, order: JitOrder) -> Result<(u64, u16), NodeError> {
        let delta = leaf_delta(self.exit_delay(Some(order.client)));
        let mut scid = self.manager.get_intercept_scid();
        while self.scids.client(scid).is_some() || self.jit.get(scid).is_some() {
            scid = self.manager.get_intercept_scid();
        }
        self.jit.add(scid, order, unix_time())?;
        Ok((scid, u16::try_from(delta).unwrap_or(u16::MAX)))
    }

    /// Takes in a payment for an order; `false` if it is for none.
    pub(super) async fn jit_intercepted(
        &self,
        id: InterceptId,
        htlc: Intercepted,
    ) -> Result<bool, Again> {
        let Some(record) = self.jit.get(htlc.scid) else {
            return Ok(false);
        };
        let (since, gates) = (Instant::now(), self.jit_gates());
        let waiting = self.held().iter().filter(|held| held.id != id).count();
        // What a client revealed for its part is never timed out, whatever else has that hash: so nothing else may have it.
        let refusal = if self.parts.get(htlc.hash).is_some() {
            Some(JitRefusal::PartOfMove)
        } else if self.is_of_another(&htlc) {
            Some(JitRefusal::OtherOrder)
        } else {
            let has_room = waiting < gates.held;
            record.refusal(&htlc, has_room, unix_time())
        };
        if let Some(reason) = refusal {
            let held = Held {
                id,
                htlc,
                since,
                until: since,
            };
            self.jit_refuse(&[held], reason).await;
            return Ok(true);
        }
        let until = since + gates.patience;
        {
            let mut held = self.held();
            held.retain(|known| known.id != id);
            held.push(Held {
                id,
                htlc,
                since,
                until,
            });
        }
        self.jit_step(record.scid).await?;
        let client = record.order.client;
        let waits = self.held().iter().any(|held| held.id == id);
        if waits && !self.is_connected(&client) {
            self.tell(NodeEvent::ReceiverAway { client }).await;
        }
        Ok(true)
    }

    /// Whether another order is paid under this hash: which of the two a part belongs to could not be told later.
    fn is_of_another(&self, htlc: &Intercepted) -> bool {
        let other = |held: &Held| held.htlc.hash == htlc.hash && held.htlc.scid != htlc.scid;
        self.held().iter().any(other) || self.jit.has_elsewhere(htlc.scid, &htlc.hash.0)
    }

    /// Does for one order what is due.
    pub(super) async fn jit_step(&self, scid: u64) -> Result<(), NodeError> {
        let Some(record) = self.jit.get(scid) else {
            return Ok(());
        };
        match record.stage {
            Stage::Sold => self.jit_open(&record).await,
            Stage::Opening if record.is_on_leaf() => self.jit_watch_leaf(&record).await,
            Stage::Opening => self.jit_watch(&record).await,
            Stage::Open => self.jit_forward(&record).await,
            Stage::Paid => self.jit_pass(&record).await,
            Stage::Over => {
                let all = self.held_for(scid);
                self.jit_refuse(&all, JitRefusal::Over).await;
                Ok(())
            }
        }
    }

    /// Looks at all orders with something under way.
    pub(super) async fn jit_tick(&self) -> Result<(), NodeError> {
        let mut due: Vec<u64> = self.jit.under_way();
        due.extend(self.held().iter().map(|held| held.htlc.scid));
        due.sort_unstable();
        due.dedup();
        for scid in due {
            self.jit_step(scid).await?;
            self.jit_time_out(scid).await;
        }
        Ok(())
    }

    /// After a start: a channel LDK does not know never came about, and a funding transaction may not have gone out.
    pub(super) async fn jit_resume(&self) -> Result<(), NodeError> {
        let channels = self.manager.list_channels();
        for record in self.jit.all() {
            // A leaf's is the host's to open, again if need be.
            if record.stage != Stage::Opening
                || record.is_on_leaf()
                || channel_of(&channels, &record).is_some()
            {
                continue;
            }
            self.jit.update(record.scid, |record| {
                record.stage = Stage::Sold;
                record.funding = None;
            })?;
            // LDK sends a funding out when it has stored its channel: this one went nowhere.
            self.jit_free(&record, true).await;
        }
        self.jit_release().await;
        self.jit_tick().await
    }

    fn held_for(&self, scid: u64) -> Set {
        let held = self.held();
        held.iter()
            .filter(|held| held.htlc.scid == scid)
            .copied()
            .collect()
    }

    /// Whether enough of a payment is here for the order with this number.
    pub(super) fn jit_waits(&self, scid: u64) -> bool {
        let record = self.jit.get(scid);
        record.is_some_and(|record| self.complete(&record).is_some())
    }

    /// Whether a payment waits for the channel that is being opened, from a client that is here.
    pub(super) fn jit_is_waited_for(&self, record: &Record) -> bool {
        self.is_connected(&record.order.client) && self.complete(record).is_some()
    }

    /// A payment for the order of which enough is here.
    fn complete(&self, record: &Record) -> Option<Set> {
        let held = self.held_for(record.scid);
        let Some(wanted) = record.order.payment_msat else {
            return held.first().map(|one| vec![*one]);
        };
        let of = |hash| -> Set {
            let parts = held.iter().filter(|held| held.htlc.hash == hash);
            parts.copied().collect()
        };
        let mut sets = held.iter().map(|held| of(held.htlc.hash));
        sets.find(|set| total(set) >= wanted)
    }

    /// What the order says the fee is for this payment.
    fn jit_fee(record: &Record, set: &[Held]) -> Result<u64, JitRefusal> {
        let came = total(set);
        record.order.fee_of(came).ok_or(JitRefusal::Size(came))
    }

    async fn jit_open(&self, record: &Record) -> Result<(), NodeError> {
        let Some(set) = self.complete(record) else {
            return Ok(());
        };
        let order = &record.order;
        // A client that is away has until the end of our patience.
        if !self.is_connected(&order.client) {
            return Ok(());
        }
        let fee = match Self::jit_fee(record, &set) {
            Ok(fee) => fee,
            Err(reason) => {
                self.jit_refuse(&set, reason).await;
                return Ok(());
            }
        };
        // Before it costs anything.
        if let Err(reason) = self.jit_servable(order, &set, fee) {
            self.jit_refuse(&set, reason).await;
            return Ok(());
        }
        match self.jit_ask(record, &set, fee).await {
            Ok(ground) => self.jit_begin(record, &set, (ground, fee)).await,
            Err(why) => {
                self.jit_refuse(&set, JitRefusal::Host(why)).await;
                Ok(())
            }
        }
    }

    /// The order's channel is begun, wherever the host said.
    async fn jit_begin(
        &self,
        record: &Record,
        set: &[Held],
        (ground, fee): (JitGround, u64),
    ) -> Result<(), NodeError> {
        let order = &record.order;
        let capacity = order.capacity(total(set));
        // Stored first: whoever starts again finds the channel by its number, or none. Never 0, which is a channel the peer opened.
        let id = match ground {
            JitGround::Leaf(id) => id,
            JitGround::Chain => rand::random::<u64>().max(1).into(),
        };
        let stored = self.jit.update(record.scid, |record| {
            record.stage = Stage::Opening;
            record.id = id;
            record.fee_msat = fee;
            record.capacity_sat = capacity.to_sat();
            record.funding = None;
        })?;
        let Some(stored) = stored else {
            // Its time was over, and it was forgotten meanwhile.
            self.jit_refuse(set, JitRefusal::Expired).await;
            return Ok(());
        };
        if stored.is_on_leaf() {
            return Ok(());
        }
        if let Err(error) = self.jit_create(order, capacity, id) {
            self.jit
                .update(record.scid, |record| record.stage = Stage::Sold)?;
            self.jit_refuse(set, JitRefusal::NoChannel(error.to_string()))
                .await;
        }
        Ok(())
    }

    /// The height up to which a leaf must take payments for this one to go over it; nothing if it leaves no time for a leaf.
    fn leaf_until(&self, client: PublicKey, set: &[Held]) -> Option<u32> {
        let (channels, delay) = (self.manager.list_channels(), self.exit_delay(Some(client)));
        let fits = |held: &&Held| leaves_leaf_time(&self.book, &channels, delay, &held.htlc);
        let last = set.iter().map(|held| held.htlc.outgoing_expiry).max();
        last.filter(|_| set.iter().all(|held| fits(&held)))
    }

    /// Where the channel for a payment comes from.
    async fn jit_ask(&self, record: &Record, set: &[Held], fee: u64) -> Result<JitGround, String> {
        let payment = total(set);
        let opening = JitOpening {
            scid: record.scid,
            client: record.order.client,
            payment: Msat(payment),
            fee: Msat(fee),
            capacity: record.order.capacity(payment),
            leaf_until: self.leaf_until(record.order.client, set),
        };
        match &self.config.lsps {
            Some(service) => service.open_jit(opening).await,
            None => Err("channels are not sold any more".into()),
        }
    }

    /// Whether a payment can go on over a new channel, and needs one: LDK takes a channel of its own choice, perhaps one where the client has
    /// agreed to no fee.
    fn jit_servable(&self, order: &JitOrder, set: &[Held], fee: u64) -> Result<(), JitRefusal> {
        let arriving = arriving(set, fee)?;
        let arrives = arriving.iter().copied().fold(0, u64::saturating_add);
        let least = arriving.iter().copied().min().unwrap_or(arrives);
        let channels = self.manager.list_channels();
        let known = channels.iter().filter(|channel| {
            channel.counterparty.node_id == order.client
                && !self.jit.is_unpaid(channel.user_channel_id)
        });
        let mut rooms = known.map(|channel| (channel.outbound_capacity_msat, channel.is_usable));
        // One that is closing takes nothing more.
        if rooms.clone().any(|(room, _)| room >= arrives) {
            return Err(JitRefusal::HasRoom);
        }
        if rooms.any(|(room, usable)| usable && room >= least) {
            return Err(JitRefusal::PartHasRoom);
        }
        for held in set {
            leaves_time(&self.book, &channels, &FREE, &held.htlc)?;
        }
        Ok(())
    }

    fn jit_create(&self, order: &JitOrder, capacity: Amount, id: u128) -> Result<(), NodeError> {
        let config = self.config.ldk_jit(order.max_to_self_delay);
        let capacity = capacity.to_sat();
        self.manager
            .create_channel(order.client, capacity, 0, id, None, Some(config))?;
        self.peers.process_events();
        Ok(())
    }

    async fn jit_watch(&self, record: &Record) -> Result<(), NodeError> {
        let channels = self.manager.list_channels();
        // One that is gone is told of by LDK.
        let stands = channel_of(&channels, record).is_some_and(|channel| channel.is_usable);
        if !stands {
            return self.jit_give_up(record, &channels);
        }
        self.jit_stands(record).await
    }

    /// The host brings a leaf's channel about, and opens its gate; or it has thought better of it.
    async fn jit_watch_leaf(&self, record: &Record) -> Result<(), NodeError> {
        let channels = self.manager.list_channels();
        let leaf = self.book.by_channel(record.id);
        let usable = channel_of(&channels, record).is_some_and(|channel| channel.is_usable);
        if usable && leaf.is_some_and(|leaf| !leaf.is_gated()) {
            return self.jit_stands(record).await;
        }
        let Some(set) = self.complete(record) else {
            let never = record.is_expired(unix_time()) && channel_of(&channels, record).is_none();
            if never {
                self.jit
                    .update(record.scid, |record| record.stage = Stage::Over)?;
            }
            return Ok(());
        };
        // As where one is to be opened: who is away has until the end of our patience.
        if !self.is_connected(&record.order.client) {
            return Ok(());
        }
        match self.jit_ask(record, &set, record.fee_msat).await {
            Ok(JitGround::Leaf(id)) if id == record.id => Ok(()),
            // Said once, and counted: so it is done at once.
            Ok(ground) => {
                self.jit_begin(record, &set, (ground, record.fee_msat))
                    .await
            }
            Err(why) => {
                self.jit_refuse(&set, JitRefusal::Host(why)).await;
                Ok(())
            }
        }
    }

    async fn jit_stands(&self, record: &Record) -> Result<(), NodeError> {
        let opened = self
            .jit
            .update(record.scid, |record| record.stage = Stage::Open)?;
        match opened {
            Some(record) => self.jit_forward(&record).await,
            None => Ok(()),
        }
    }

    /// Sends the order's payment on, without the fee.
    async fn jit_forward(&self, record: &Record) -> Result<(), NodeError> {
        let channels = self.manager.list_channels();
        if self.in_flight(record, &channels) {
            return Ok(());
        }
        let Some(set) = self.complete(record) else {
            return self.jit_give_up(record, &channels);
        };
        let (fee, ways) = match self.jit_ways(record, &set, &channels) {
            Ok(found) => found,
            Err(JitRefusal::Forward(ForwardRefusal::Away)) => return Ok(()),
            Err(reason) => {
                self.jit_refuse(&set, reason).await;
                return Ok(());
            }
        };
        let Some(hash) = set.first().map(|held| held.htlc.hash) else {
            return Ok(());
        };
        let inbound = channels.iter().flat_map(|channel| {
            let htlcs = channel.pending_inbound_htlcs.iter();
            let ours = htlcs.filter(|htlc| htlc.payment_hash.0 == hash.0);
            ours.map(|htlc| (channel.channel_id.0, htlc.htlc_id))
        });
        let parts: Vec<PartKey> = inbound.collect();
        // Stored first: by these the fee is found again that the client lets us keep.
        self.jit.update(record.scid, |record| {
            record.fee_msat = fee;
            record.hash = Some(hash.0);
            record.parts = parts.into_iter().map(|part| (part, None)).collect();
        })?;
        self.unhold(&set);
        for (id, htlc, to) in ways {
            self.forward(id, &htlc, &to);
        }
        // Since it was complete.
        let complete = set.iter().map(|held| held.since).max();
        let waited = complete.map_or(Duration::ZERO, |since| since.elapsed());
        let scid = record.scid;
        self.tell(NodeEvent::JitForwarded { scid, waited }).await;
        Ok(())
    }

    /// The fee, and where each part goes, with what is left of it.
    fn jit_ways(
        &self,
        record: &Record,
        set: &[Held],
        channels: &[ChannelDetails],
    ) -> Result<(u64, Vec<Way>), JitRefusal> {
        let fee = Self::jit_fee(record, set)?;
        let client = Some(record.order.client);
        let mut ways = Vec::with_capacity(set.len());
        for (held, arrives) in set.iter().zip(arriving(set, fee)?) {
            let mut htlc = held.htlc;
            htlc.outbound_msat = arrives;
            let gates = self.gates(Some(record.id));
            let way = decide(&gates, channels, client, &FREE, &htlc)?;
            if !way.fits {
                return Err(ForwardRefusal::NoRoom.into());
            }
            ways.push((held.id, htlc, way));
        }
        let room = channel_of(channels, record).map_or(0, |channel| channel.outbound_capacity_msat);
        if total(set).saturating_sub(fee) > room {
            return Err(ForwardRefusal::NoRoom.into());
        }
        Ok((fee, ways))
    }

    /// Whether the order's payment is on its way: then nothing more is sent, as nobody knows yet whether the fee is paid.
    fn in_flight(&self, record: &Record, channels: &[ChannelDetails]) -> bool {
        let Some(hash) = record.hash() else {
            return false;
        };
        let out = channels.iter().any(|channel| {
            let mut htlcs = channel.pending_outbound_htlcs.iter();
            htlcs.any(|htlc| htlc.payment_hash.0 == hash.0)
        });
        // Claimed parts stay until the payer's side knows. After a crash LDK may ask anew about one that was sent on: then it was not.
        let unresolved = channels.iter().any(|channel| {
            let mut htlcs = channel.pending_inbound_htlcs.iter();
            htlcs.any(|htlc| record.has_part(&(channel.channel_id.0, htlc.htlc_id)))
        });
        let asked_anew = self
            .held_for(record.scid)
            .iter()
            .any(|held| held.htlc.hash == hash);
        out || (unresolved && !asked_anew)
    }

    /// A channel whose funding was never to go out unless it was paid for, and whose time is over.
    fn jit_give_up(&self, record: &Record, channels: &[ChannelDetails]) -> Result<(), NodeError> {
        let waits = !self.held_for(record.scid).is_empty();
        if record.is_on_leaf() {
            // It would be in the way of all other payments until the factory ends. What is owed for it the host remembers.
            if record.stage == Stage::Open && record.is_expired(unix_time()) && !waits {
                self.jit
                    .update(record.scid, |record| record.stage = Stage::Over)?;
            }
            return Ok(());
        }
        if !record.is_unpaid_for() || !record.is_expired(unix_time()) || waits {
            return Ok(());
        }
        if let Some(channel) = channel_of(channels, record) {
            let at = (channel.channel_id, record.order.client);
            self.reject(at, "the channel was not paid for in time");
        }
        Ok(())
    }

    /// What comes after the fee is paid goes on like any payment.
    async fn jit_pass(&self, record: &Record) -> Result<(), NodeError> {
        let client = Some(record.order.client);
        for held in self.held_for(record.scid) {
            let channels = self.manager.list_channels();
            match decide(&self.gates(None), &channels, client, &FREE, &held.htlc) {
                Err(ForwardRefusal::Away) => {}
                Err(reason) => self.jit_refuse(&[held], reason.into()).await,
                Ok(to) => {
                    self.unhold(&[held]);
                    self.forward(held.id, &held.htlc, &to);
                }
            }
        }
        Ok(())
    }

    /// Sends back what has waited too long, with all that came of the same payment.
    async fn jit_time_out(&self, scid: u64) {
        let held = self.held_for(scid);
        let now = Instant::now();
        let Some(late) = held.iter().find(|held| held.until <= now) else {
            return;
        };
        let hash = late.htlc.hash;
        let of_it = held.iter().filter(|held| held.htlc.hash == hash);
        let set: Set = of_it.copied().collect();
        let wanted = self
            .jit
            .get(scid)
            .and_then(|record| record.order.payment_msat);
        let came = total(&set);
        let reason = if wanted.is_some_and(|wanted| came < wanted) {
            JitRefusal::Underpaid(came)
        } else {
            JitRefusal::TooSlow
        };
        self.jit_refuse(&set, reason).await;
    }

    fn unhold(&self, set: &[Held]) {
        let mut held = self.held();
        held.retain(|one| set.iter().all(|other| other.id != one.id));
    }

    async fn jit_refuse(&self, set: &[Held], reason: JitRefusal) {
        self.unhold(set);
        for held in set {
            self.send_back(held.id);
        }
        if let Some(held) = set.first() {
            self.tell(NodeEvent::JitRefused {
                scid: held.htlc.scid,
                hash: held.htlc.hash,
                reason,
            })
            .await;
        }
    }

    /// The channel of an order is closed.
    pub(super) async fn jit_closed(&self, record: &Record, why: &str) -> Result<(), NodeError> {
        if record.is_on_leaf() && record.stage == Stage::Opening {
            // The host says what comes now, perhaps the same once more; the payment waits for that.
            return Ok(());
        }
        // Once its funding may be out, another try would be another funding.
        let withheld = record.funding.is_none() || record.order.client_trusts_lsp;
        let withheld = withheld && !record.released;
        let never_stood = record.stage == Stage::Opening && withheld;
        self.jit.update(record.scid, |record| {
            // One that never stood may be tried again, while the order holds.
            record.stage = if never_stood {
                Stage::Sold
            } else {
                Stage::Over
            };
            if withheld {
                record.funding = None;
            }
        })?;
        self.jit_free(record, withheld).await;
        let reason = if never_stood {
            JitRefusal::NoChannel(why.to_owned())
        } else {
            JitRefusal::Over
        };
        let all = self.held_for(record.scid);
        self.jit_refuse(&all, reason).await;
        Ok(())
    }
}

/// The order's channel.
pub(super) fn channel_of<'a>(
    channels: &'a [ChannelDetails],
    record: &Record,
) -> Option<&'a ChannelDetails> {
    let mut of_id = channels.iter().filter(|_| record.id != 0);
    of_id.find(|channel| channel.user_channel_id == record.id)
}
