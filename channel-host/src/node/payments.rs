//! Payments in, out and through.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use lightning::bolt11_invoice::Bolt11Invoice;
use lightning::chain::channelmonitor::Balance;
use lightning::events::{Event, PaymentPurpose};
use lightning::ln::channel_state::{InboundHTLCDetails, InboundHTLCStateDetails};
use lightning::ln::channelmanager::{OptionalBolt11PaymentParams, PaymentId};
use lightning::ln::outbound_payment::{
    Bolt11PaymentError, RecipientOnionFields, Retry, RetryableSendFailure,
};
use lightning::ln::types::ChannelId;
use lightning::routing::router::{
    Path, PaymentParameters, Route, RouteHop, RouteParameters, RouteParametersConfig,
};
use lightning::types::features::{ChannelFeatures, NodeFeatures};
use lightning::types::payment::{PaymentHash as LdkHash, PaymentPreimage};

use super::Core;
use super::handle::Again;
use super::moves::number_with_room;
use super::parts::id_of;
use crate::config::FeePolicy;
use crate::error::NodeError;
use crate::event::{Msat, NodeEvent, PaymentHash};
use crate::leaf::{Record, SpendKind, Stage};
use crate::pay::{
    ClaimRefusal, InterceptHint, Intercepted, InvoiceRequest, LeafTerms, Registered, Way,
    build_invoice, claim_verdict, leaf_delta, min_final_delta,
};
use crate::store::{Change, EntryKey, Store};

const SPACE: &str = "superscalar";
const SUBSPACE: &str = "scids";
/// Height LDK uses to go back on from an HTLC's expiry to `claim_deadline` (`HTLC_FAIL_BACK_BUFFER`).
pub(super) const FAIL_BACK_BUFFER: u32 = 39;
/// The most blocks a payment of ours may be locked: BOLT 4's 2016, with room for blocks found meanwhile.
pub(super) const MAX_LOCK: u32 = 1_950;
/// How long other ways are tried.
const RETRY: Duration = Duration::from_secs(10);
/// What a keysend leaves the receiver beyond its exit delay.
const KEYSEND_SLACK: u32 = 6;

/// The number of each client, for life.
#[derive(Debug)]
pub(super) struct ScidBook {
    store: Arc<Store>,
    clients: Mutex<HashMap<u64, PublicKey>>,
}

impl ScidBook {
    pub(super) fn open(store: Arc<Store>) -> Result<Self, NodeError> {
        let mut clients = HashMap::new();
        for name in store.names(SPACE, SUBSPACE)? {
            let bytes = store.get(EntryKey::new(SPACE, SUBSPACE, &name))?;
            let scid = bytes.and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)));
            let (Some(scid), Ok(peer)) = (scid, name.parse()) else {
                return Err(NodeError::Unreadable {
                    what: "client number",
                    cause: name,
                });
            };
            clients.insert(scid, peer);
        }
        Ok(Self {
            store,
            clients: Mutex::new(clients),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, PublicKey>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn client(&self, scid: u64) -> Option<PublicKey> {
        self.lock().get(&scid).copied()
    }

    /// The client's number; the first time a fresh one, stored.
    fn of(&self, peer: PublicKey, fresh: impl FnOnce() -> u64) -> Result<u64, NodeError> {
        let mut clients = self.lock();
        let known = clients.iter().find(|(_, client)| **client == peer);
        if let Some((scid, _)) = known {
            return Ok(*scid);
        }
        let scid = fresh();
        let key = EntryKey::new(SPACE, SUBSPACE, &peer.to_string());
        let change = Change::Put(key, scid.to_be_bytes().to_vec());
        self.store.write(vec![change])?;
        clients.insert(scid, peer);
        Ok(scid)
    }
}

/// A payment of ours that Lightning still remembers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaymentView {
    /// Its hash.
    pub hash: PaymentHash,
    /// How far it is.
    pub state: PaymentState,
}

/// How far a payment of ours is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PaymentState {
    /// On its way.
    Pending,
    /// Arrived.
    Sent,
    /// Given up; parts of it may still be on their way back.
    Abandoned,
}

/// A part of a payment to us: the channel it came over, and when it expires there.
pub(super) type Part = (Option<u128>, u32);

/// Whether a payment is so small that a commitment has no output for it: nothing can be fetched for it on the chain. 354 satoshis is BOLT 3's
/// largest dust limit.
pub(super) const fn is_dust(amount: Msat) -> bool {
    amount.0 < 354_000
}

/// What binds a claim. A commitment on the chain, or on its way there, can still be claimed from.
fn terms(leaf: &Record) -> LeafTerms {
    let (exit_delay, in_force) = match leaf.spent {
        None => (
            leaf.exit_delay,
            leaf.factory_confirmed && matches!(leaf.stage, Stage::Open | Stage::Closed),
        ),
        Some((kind, ..)) => (0, kind == SpendKind::Commitment),
    };
    LeafTerms {
        exit_delay,
        last_expiry: leaf.last_expiry,
        gated: !in_force,
    }
}

/// Which of it is so, a payer mostly cannot know.
pub(super) const NO_WAY: &str = "no way to the receiver has room for this amount and its fee now, and time before its factory's end; \
     the receiver may be away or have no room, or too little is left here for the fee";
/// Only what comes from elsewhere is held until its channel is there.
const OWN_PROMISE: &str = "this node is to open a channel for this payment (`invoice --jit`), and does so for other payers only; \
     have another node pay it, or ask for an invoice without --jit";

/// Why nothing was sent, for people.
pub(super) fn not_sent(failure: RetryableSendFailure) -> NodeError {
    let why = match failure {
        RetryableSendFailure::PaymentExpired => "the invoice has expired",
        RetryableSendFailure::RouteNotFound => NO_WAY,
        RetryableSendFailure::DuplicatePayment => "it is under way already",
        RetryableSendFailure::OnionPacketSizeExceeded => {
            "what the invoice wants the receiver to be told is too long"
        }
    };
    NodeError::Refused(why.into())
}

/// Ways over private channels that an invoice names at the most.
const PRIVATE_WAYS: usize = 3;

impl Core {
    /// The slowest exit among our open leaves, or those with one peer.
    pub(super) fn exit_delay(&self, with: Option<PublicKey>) -> u32 {
        let leaves = self.book.all().into_iter();
        leaves
            .filter(|leaf| leaf.stage == Stage::Open && with.is_none_or(|peer| peer == leaf.peer))
            .map(|leaf| leaf.exit_delay)
            .max()
            .unwrap_or(0)
    }

    pub(super) fn client_route(&self, peer: PublicKey) -> Result<InterceptHint, NodeError> {
        let delta = leaf_delta(self.exit_delay(Some(peer)));
        Ok(InterceptHint {
            lsp: self.manager.get_our_node_id(),
            scid: self.scids.of(peer, || self.manager.get_intercept_scid())?,
            cltv_delta: u16::try_from(delta).unwrap_or(u16::MAX),
            base_msat: self.config.fees.base_msat,
            proportional_millionths: self.config.fees.proportional_millionths,
        })
    }

    /// `hold`: the hash of a preimage that is not ours to know yet, and the blocks it may be held.
    pub(super) fn invoice(
        &self,
        request: &InvoiceRequest,
        hold: Option<(PaymentHash, u32)>,
    ) -> Result<Bolt11Invoice, NodeError> {
        let (hash, blocks) = hold.map_or((None, 0), |(hash, blocks)| (Some(hash), blocks));
        self.invoice_over(request, (hash, blocks), &self.ways(request))
    }

    /// The same over these ways, whichever the request names; a payment may have to wait without being a hold invoice's.
    pub(super) fn invoice_over(
        &self,
        request: &InvoiceRequest,
        (hold, blocks): (Option<PaymentHash>, u32),
        ways: &[Way],
    ) -> Result<Bolt11Invoice, NodeError> {
        let min_final = min_final_delta(self.exit_delay(None)).saturating_add(blocks);
        let seconds = u32::try_from(request.expiry.as_secs()).unwrap_or(u32::MAX);
        let enforced = u16::try_from(min_final).unwrap_or(u16::MAX);
        let amount = request.amount.map(|amount| amount.0);
        let registered = match hold {
            None => self
                .manager
                .create_inbound_payment(amount, seconds, Some(enforced), None),
            Some(hash) => {
                let hash = LdkHash(hash.0);
                self.manager
                    .create_inbound_payment_for_hash(hash, amount, seconds, Some(enforced), None)
                    .map(|(secret, metadata)| (hash, secret, metadata))
            }
        };
        let (hash, secret, metadata) = registered
            .map_err(|()| NodeError::Refused("the invoice's amount is too large".into()))?;
        build_invoice(
            self.config.network,
            self.config.keys.keys_manager(),
            self.manager.get_our_node_id(),
            min_final,
            request,
            ways,
            Registered {
                hash,
                secret,
                metadata,
            },
        )
    }

    /// The ways an invoice names: the client's number, or, for what no channel can take at once, a number per channel. A payer splits a payment
    /// over ways that each say how much they carry; it would not over one way.
    fn ways(&self, request: &InvoiceRequest) -> Vec<Way> {
        let mut ways = Vec::new();
        for hint in &request.hints {
            let rooms = self.rooms(hint);
            let room = rooms.iter().filter_map(|way| way.most).max();
            let fits = request.amount.is_none() || request.amount <= room;
            if fits || rooms.len() < 2 {
                ways.push(Way::from(*hint));
            } else {
                ways.extend(rooms);
            }
        }
        if ways.is_empty() {
            ways = self.private_ways();
        }
        ways
    }

    /// Ways over our ordinary channels that are not announced; none if the world knows one that is.
    fn private_ways(&self) -> Vec<Way> {
        let channels = self.manager.list_usable_channels();
        let mut ordinary: Vec<_> = channels
            .into_iter()
            .filter(|channel| !crate::is_leaf(channel.user_channel_id))
            // Who bought a channel of us is nobody's business, and forwards nothing.
            .filter(|channel| self.jit.by_channel(channel.user_channel_id).is_none())
            .filter(|channel| self.bought.by_channel(channel.user_channel_id).is_none())
            .collect();
        if ordinary.iter().any(|channel| channel.is_announced) {
            return Vec::new();
        }
        ordinary.sort_by_key(|channel| std::cmp::Reverse(channel.inbound_capacity_msat));
        let ways = ordinary.iter().filter_map(|channel| {
            let forwards = channel.counterparty.forwarding_info.as_ref()?;
            Some(Way::from(InterceptHint {
                lsp: channel.counterparty.node_id,
                scid: channel.get_inbound_payment_scid()?,
                cltv_delta: forwards.cltv_expiry_delta,
                base_msat: forwards.fee_base_msat,
                proportional_millionths: forwards.fee_proportional_millionths,
            }))
        });
        // More make the invoice long, not the payment likelier.
        ways.take(PRIVATE_WAYS).collect()
    }

    /// One way for each channel with room.
    fn rooms(&self, hint: &InterceptHint) -> Vec<Way> {
        let channels = self.manager.list_channels_with_counterparty(&hint.lsp);
        let open = channels.into_iter().filter(|channel| {
            let leaf = self.book.by_channel(channel.user_channel_id);
            leaf.is_some_and(|leaf| !leaf.is_gated())
        });
        let rooms = open.filter_map(|channel| {
            let scid = channel.get_inbound_payment_scid()?;
            let limit = channel.inbound_htlc_maximum_msat.unwrap_or(u64::MAX);
            Some(Way {
                hint: InterceptHint { scid, ..*hint },
                most: Some(Msat(channel.inbound_capacity_msat.min(limit))),
            })
        });
        rooms.filter(|way| way.most > Some(Msat(0))).collect()
    }

    pub(super) fn pay(
        &self,
        invoice: &str,
        amount: Option<Msat>,
        max_lock: u32,
    ) -> Result<PaymentHash, NodeError> {
        let invoice = Bolt11Invoice::from_str(invoice)
            .map_err(|error| NodeError::Refused(format!("this is no invoice: {error:?}")))?;
        if self.has_promised(&invoice) {
            return Err(NodeError::Refused(OWN_PROMISE.into()));
        }
        let hash = PaymentHash(invoice.payment_hash().0);
        let params = OptionalBolt11PaymentParams {
            route_params_config: RouteParametersConfig {
                max_total_cltv_expiry_delta: max_lock.min(MAX_LOCK),
                ..Default::default()
            },
            retry_strategy: Retry::Timeout(RETRY),
            ..Default::default()
        };
        self.manager
            .pay_for_bolt11_invoice(
                &invoice,
                PaymentId(hash.0),
                amount.map(|amount| amount.0),
                params,
            )
            .map_err(|error| match error {
                Bolt11PaymentError::InvalidAmount => {
                    NodeError::Refused("the invoice asks for another amount".into())
                }
                Bolt11PaymentError::SendingFailed(failure) => not_sent(failure),
            })?;
        self.peers.process_events();
        Ok(hash)
    }

    /// Whether an invoice names a channel that we are to open for its payment, and its payee has none with us yet.
    fn has_promised(&self, invoice: &Bolt11Invoice) -> bool {
        let payee = invoice.get_payee_pub_key();
        let usable = self.manager.list_usable_channels();
        if usable
            .iter()
            .any(|channel| channel.counterparty.node_id == payee)
        {
            return false;
        }
        let hints = invoice.route_hints();
        let mut hops = hints.iter().flat_map(|hint| &hint.0);
        hops.any(|hop| self.jit.get(hop.short_channel_id).is_some())
    }

    /// Pays an invoice of ours, out over one channel and back over another: what lay in the one lies in the other then, less what the peer asks for a
    /// forward. LDK knows such a loop as a rebalance.
    pub(super) fn pay_round(
        &self,
        over: [u8; 32],
        invoice: &str,
        most: Msat,
    ) -> Result<(), NodeError> {
        let refused = |why: &str| NodeError::Refused(why.to_owned());
        let invoice = Bolt11Invoice::from_str(invoice)
            .map_err(|error| NodeError::Refused(format!("this is no invoice: {error:?}")))?;
        let hash = invoice.payment_hash();
        let amount = invoice.amount_milli_satoshis();
        let amount = amount.ok_or_else(|| refused("the invoice names no amount"))?;
        let hints = invoice.private_routes();
        let back = hints.first().and_then(|route| route.0.first());
        let back = back.ok_or_else(|| refused("the invoice names no way"))?;
        let mut channels = self.manager.list_usable_channels().into_iter();
        let out = channels.find(|channel| channel.channel_id.0 == over);
        let out = out.filter(|out| out.counterparty.node_id == back.src_node_id);
        let out = out.ok_or_else(|| refused("the channel cannot be used now"))?;
        let fees = FeePolicy {
            base_msat: back.fees.base_msat,
            proportional_millionths: back.fees.proportional_millionths,
        };
        let fee = fees.fee_for(amount);
        if fee > most.0 {
            return Err(refused("the fee for it is too high"));
        }
        let hop = |pubkey, features, scid, fee_msat, delta| RouteHop {
            pubkey,
            node_features: features,
            short_channel_id: scid,
            channel_features: ChannelFeatures::empty(),
            fee_msat,
            cltv_expiry_delta: delta,
            maybe_announced_channel: false,
        };
        let sent = Msat(amount.saturating_add(fee));
        let peer = &out.counterparty;
        // Blocks may be found on the way.
        let last = u32::try_from(invoice.min_final_cltv_expiry_delta()).unwrap_or(u32::MAX);
        let last = last.saturating_add(KEYSEND_SLACK);
        if last.saturating_add(back.cltv_expiry_delta.into()) > MAX_LOCK {
            return Err(refused("it could be locked for too long"));
        }
        let hops = vec![
            hop(
                peer.node_id,
                peer.features.to_context(),
                number_with_room(&out, sent)?,
                fee,
                back.cltv_expiry_delta.into(),
            ),
            hop(
                self.manager.get_our_node_id(),
                NodeFeatures::empty(),
                back.short_channel_id,
                amount,
                last,
            ),
        ];
        let route = Route {
            paths: vec![Path {
                hops,
                blinded_tail: None,
            }],
            route_params: None,
        };
        let mut onion = RecipientOnionFields::secret_only(*invoice.payment_secret(), amount);
        onion.payment_metadata = invoice.payment_metadata().cloned();
        self.manager
            .send_payment_with_route(route, hash, onion, PaymentId(hash.0))
            .map_err(not_sent)?;
        self.peers.process_events();
        Ok(())
    }

    pub(super) fn keysend(
        &self,
        to: PublicKey,
        amount: Msat,
        exit_delay: Option<u32>,
        preimage: [u8; 32],
    ) -> Result<PaymentHash, NodeError> {
        let preimage = PaymentPreimage(preimage);
        let hash: LdkHash = preimage.into();
        let delay = exit_delay.unwrap_or_else(|| self.exit_delay(Some(to)));
        let last = min_final_delta(delay).saturating_add(KEYSEND_SLACK);
        let mut params = PaymentParameters::for_keysend(to, last, false);
        params.max_total_cltv_expiry_delta = MAX_LOCK;
        let route = RouteParameters::from_payment_params_and_value(params, amount.0);
        self.manager
            .send_spontaneous_payment(
                Some(preimage),
                RecipientOnionFields::spontaneous_empty(amount.0),
                PaymentId(hash.0),
                route,
                Retry::Timeout(RETRY),
            )
            .map_err(not_sent)?;
        self.peers.process_events();
        Ok(PaymentHash(hash.0))
    }

    pub(super) fn payments(&self) -> Vec<PaymentView> {
        use lightning::ln::channelmanager::RecentPaymentDetails as Recent;
        let recent = self.manager.list_recent_payments().into_iter();
        recent
            .filter_map(|payment| {
                let id = id_of(&payment);
                let (hash, state) = match payment {
                    Recent::Pending { payment_hash, .. } => (payment_hash, PaymentState::Pending),
                    Recent::Fulfilled { payment_hash, .. } => (payment_hash?, PaymentState::Sent),
                    Recent::Abandoned { payment_hash, .. } => {
                        (payment_hash, PaymentState::Abandoned)
                    }
                    _ => return None,
                };
                let is_part = self.part_of(id, hash).is_some();
                let hash = PaymentHash(hash.0);
                (!is_part).then_some(PaymentView { hash, state })
            })
            .collect()
    }

    /// Whether a payment to us comes from us.
    fn is_round(&self, hash: LdkHash) -> bool {
        use lightning::ln::channelmanager::RecentPaymentDetails as Recent;
        let recent = self.manager.list_recent_payments().into_iter();
        recent.into_iter().any(|payment| {
            matches!(payment, Recent::Pending { payment_hash, .. } if payment_hash == hash)
        })
    }

    /// Whether a payment to us is claimed, held or sent back.
    pub(super) async fn claimable(
        &self,
        (hash, amount): (LdkHash, Msat),
        purpose: &PaymentPurpose,
        channels: &[(ChannelId, Option<u128>)],
        deadline: Option<u32>,
    ) -> Result<(), Again> {
        let parts = self.received_parts(hash, channels, deadline);
        if let Some(part) = self.parts.get(PaymentHash(hash.0)) {
            return self.part_claimable(&part, amount, purpose, &parts);
        }
        // What goes round is to come home: over another channel outside it would only cost the fee, again and again.
        let is_leaf = |(id, _): &Part| id.is_some_and(|id| self.book.by_channel(id).is_some());
        if self.is_round(hash) && !parts.iter().all(is_leaf) {
            return self.refuse_payment(hash, ClaimRefusal::NotHome).await;
        }
        let payment = (hash, amount);
        match self.verdict(&parts) {
            Err(reason) => self.refuse_payment(hash, reason).await,
            Ok(()) if self.is_unseen(&parts) => {
                self.hold_unseen(payment, purpose.preimage(), &parts).await
            }
            Ok(()) => self.take_payment(payment, purpose.preimage(), &parts).await,
        }
    }

    /// Claims a payment to us; one whose preimage is not ours to know yet is held for its host.
    pub(super) async fn take_payment(
        &self,
        (hash, amount): (LdkHash, Msat),
        preimage: Option<PaymentPreimage>,
        parts: &[Part],
    ) -> Result<(), Again> {
        if let Some(preimage) = preimage {
            if !is_dust(amount) {
                self.note_at_risk(parts)?;
            }
            self.manager.claim_funds(preimage);
            return Ok(());
        }
        // Should the channel be closed by the time we are back from a crash, only a manager that knows the payment can claim it.
        self.save_all().map_err(NodeError::from)?;
        let expiry = parts.iter().map(|(_, expiry)| *expiry).min().unwrap_or(0);
        let hash = PaymentHash(hash.0);
        self.told(NodeEvent::PaymentHeld {
            hash,
            amount,
            expiry,
        })
        .await
    }

    /// Sends a payment to us back.
    pub(super) async fn refuse_payment(
        &self,
        hash: LdkHash,
        reason: ClaimRefusal,
    ) -> Result<(), Again> {
        self.manager.fail_htlc_backwards(&hash);
        let hash = PaymentHash(hash.0);
        self.told(NodeEvent::PaymentRefused { hash, reason }).await
    }

    /// Over which channels each part came, and when it expires there. LDK tells the earliest deadline of all; the manager and the monitors
    /// know each.
    fn received_parts(
        &self,
        hash: LdkHash,
        channels: &[(ChannelId, Option<u128>)],
        deadline: Option<u32>,
    ) -> Vec<Part> {
        let earliest = deadline.map_or(0, |deadline| deadline.saturating_add(FAIL_BACK_BUFFER));
        let known = self.held_parts(hash);
        let mut parts = Vec::new();
        for (_, channel) in channels {
            let of_channel = known.iter().filter(|(id, _)| Some(*id) == *channel);
            let before = parts.len();
            parts.extend(of_channel.map(|(_, expiry)| (*channel, *expiry)));
            if parts.len() == before {
                parts.push((*channel, earliest));
            }
        }
        parts
    }

    pub(super) fn verdict(&self, parts: &[Part]) -> Result<(), ClaimRefusal> {
        let mut leaves = Vec::new();
        for (id, expiry) in parts {
            let id = id.ok_or(ClaimRefusal::UnknownChannel)?;
            match self.book.by_channel(id) {
                Some(leaf) => leaves.push((terms(&leaf), *expiry)),
                None if crate::is_leaf(id) => return Err(ClaimRefusal::UnknownChannel),
                None => {}
            }
        }
        claim_verdict(self.book.height(), &leaves)
    }

    /// Stored before it is claimed: should the peer end the channel now, LDK does not count it among what is pending.
    pub(super) fn note_at_risk(&self, parts: &[Part]) -> Result<(), NodeError> {
        for (id, expiry) in parts {
            let leaf = id.and_then(|id| self.book.by_channel(id));
            if let Some(leaf) = leaf {
                self.book.update(leaf.id, |leaf| leaf.carries(*expiry))?;
            }
        }
        Ok(())
    }

    /// Claims a held payment, whatever has become of the way it came over: it was judged when it was told to be held, and what it is for may have
    /// been given since. Nothing that comes under its hash later can change that: a peer could add such a part, and leave it uncommitted, to have
    /// the whole payment sent back.
    pub(super) fn claim(&self, preimage: [u8; 32]) -> Result<(), NodeError> {
        let preimage = PaymentPreimage(preimage);
        let hash: LdkHash = preimage.into();
        let held = self.held_parts(hash).into_iter();
        let parts: Vec<Part> = held.map(|(id, expiry)| (Some(id), expiry)).collect();
        if parts.is_empty() {
            return Err(NodeError::Refused("no such payment is held".to_owned()));
        }
        self.note_at_risk(&parts)?;
        self.manager.claim_funds(preimage);
        self.peers.process_events();
        Ok(())
    }

    /// The channels over which a payment came that is not settled, and when it expires there: open ones by the manager, closed ones by their
    /// monitors.
    pub(super) fn held_parts(&self, hash: LdkHash) -> Vec<(u128, u32)> {
        let channels = self.manager.list_channels();
        let mut parts = Vec::new();
        for channel in &channels {
            let held = channel.pending_inbound_htlcs.iter();
            let held = held.filter(|htlc| htlc.payment_hash == hash);
            parts.extend(held.map(|htlc| (channel.user_channel_id, htlc.cltv_expiry)));
        }
        let closed = self.monitors.list_monitors().into_iter();
        for id in closed.filter(|id| channels.iter().all(|channel| channel.channel_id != *id)) {
            let Ok(monitor) = self.monitors.get_monitor(id) else {
                continue;
            };
            let leaf = self.book.by_ldk_id(id);
            for balance in monitor.get_claimable_balances() {
                if let Balance::MaybePreimageClaimableHTLC {
                    payment_hash,
                    expiry_height,
                    ..
                } = balance
                    && payment_hash == hash
                {
                    let channel = leaf.as_ref().map_or(0, Record::channel_id);
                    parts.push((channel, expiry_height));
                }
            }
        }
        parts
    }

    /// Whether any part of a payment is here that is not on its way back. One that somebody adds under its hash and has sent back, or keeps, changes
    /// nothing about what is held.
    pub(super) fn holds(&self, hash: PaymentHash) -> bool {
        let hash = LdkHash(hash.0);
        let channels = self.manager.list_channels();
        let goes_back = |htlc: &InboundHTLCDetails| {
            htlc.payment_hash == hash
                && htlc.state == Some(InboundHTLCStateDetails::AwaitingRemoteRevokeToRemoveFail)
        };
        let htlcs = channels.iter().flat_map(|one| &one.pending_inbound_htlcs);
        let going = htlcs.filter(|htlc| goes_back(htlc)).count();
        self.held_parts(hash).len() > going
    }

    pub(super) fn fail(&self, hash: PaymentHash) {
        self.manager.fail_htlc_backwards(&LdkHash(hash.0));
    }

    /// A payment from or to a private channel waits for our word.
    pub(super) async fn intercepted(&self, event: Event) -> Result<(), Again> {
        let Event::HTLCIntercepted {
            intercept_id,
            requested_next_hop_scid,
            payment_hash,
            inbound_amount_msat,
            expected_outbound_amount_msat,
            outgoing_htlc_expiry_block_height,
        } = event
        else {
            return Ok(());
        };
        let htlc = Intercepted {
            hash: PaymentHash(payment_hash.0),
            scid: requested_next_hop_scid,
            inbound_msat: inbound_amount_msat,
            outbound_msat: expected_outbound_amount_msat,
            // Unknown only for payments that an older release took in: then no expiry is far enough.
            outgoing_expiry: outgoing_htlc_expiry_block_height.unwrap_or(u32::MAX),
        };
        if !self.jit_intercepted(intercept_id, htlc).await? {
            self.forward_or_wait(intercept_id, htlc).await;
        }
        Ok(())
    }
}
