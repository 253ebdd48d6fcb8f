//! Parts of moves, as hosts ask for them: agreed to, expected, sent.

use lightning::chain::channelmonitor::Balance;
use lightning::ln::channel_state::ChannelDetails;
use lightning::ln::channelmanager::PaymentId;
use lightning::ln::outbound_payment::RecipientOnionFields;
use lightning::routing::router::{Path, Route, RouteHop};
use lightning::types::features::ChannelFeatures;
use lightning::types::payment::{PaymentHash as LdkHash, PaymentSecret};

use bitcoin::hashes::{Hash, HashEngine, sha256};

use super::Core;
use super::payments::not_sent;
use crate::error::NodeError;
use crate::event::{Msat, PaymentHash};
use crate::leaf::{LeafId, Record, Side};
use crate::moves::{MovePart, PartRecord, PartState, PartView, Progress};
use crate::pay::CLAIM_BUFFER;

/// How long Lightning takes what was registered for a part: longer than a factory dies. What matters are the heights.
const REGISTERED: u32 = 60 * 24 * 3_600;

/// Under which Lightning knows our payment of a part, told from any other payment of that hash.
pub(super) fn payment_id(hash: PaymentHash) -> PaymentId {
    // BIP-340's tagged hash.
    let tag = sha256::Hash::hash(b"superscalar/part").to_byte_array();
    let mut engine = sha256::Hash::engine();
    engine.input(&tag);
    engine.input(&tag);
    engine.input(&hash.0);
    PaymentId(sha256::Hash::from_engine(engine).to_byte_array())
}

fn refused<T>(why: &str) -> Result<T, NodeError> {
    Err(NodeError::Refused(why.to_owned()))
}

/// The number to pay under over a channel that can carry so much at once now.
pub(super) fn number_with_room(channel: &ChannelDetails, amount: Msat) -> Result<u64, NodeError> {
    let room = channel.next_outbound_htlc_minimum_msat..=channel.next_outbound_htlc_limit_msat;
    match channel.get_outbound_payment_scid() {
        Some(scid) if room.contains(&amount.0) => Ok(scid),
        _ => refused("the channel has no room for so much at once"),
    }
}

/// What has to lie between a part's two expiries (protocol.md 7.2): the coordinator brings the new channel to the chain, then the old one.
fn least_incoming_expiry(outgoing_expiry: u32, from: &Record, to: &Record) -> u32 {
    outgoing_expiry
        .saturating_add(to.exit_delay)
        .saturating_add(from.exit_delay)
        .saturating_add(CLAIM_BUFFER.saturating_mul(2))
}

impl Core {
    fn leaf(&self, id: LeafId) -> Result<Record, NodeError> {
        self.book.get(id).ok_or(NodeError::UnknownLeaf { leaf: id })
    }

    /// The two leaves of a move, both in force and shared with one peer.
    fn ends(
        &self,
        (from, to): (LeafId, LeafId),
        side: Side,
    ) -> Result<(Record, Record), NodeError> {
        let (from, to) = (self.leaf(from)?, self.leaf(to)?);
        if from.side != side || to.side != side {
            return refused("that is for the other side of a leaf to ask");
        }
        if from.id == to.id || from.peer != to.peer {
            return refused("a balance moves between two leaves of one client");
        }
        if from.is_gated() || to.is_gated() {
            return refused("one of the two leaves is not in force");
        }
        Ok((from, to))
    }

    /// Agrees to a part, and stores it.
    pub(super) fn take_part(&self, part: &MovePart) -> Result<[u8; 32], NodeError> {
        if let Some(known) = self.parts.get(part.hash) {
            let failed = matches!(known.progress, Progress::Failed { .. });
            return if known.is(part) && known.side == Side::Lsp && !failed {
                Ok(known.from_secret)
            } else {
                refused("this hash serves another part, or one that failed")
            };
        }
        if self.waits(part.hash) || !self.held_parts(LdkHash(part.hash.0)).is_empty() {
            return refused("another payment has this hash");
        }
        if self.pays_under(part.hash) {
            return refused("another payment has this hash");
        }
        let (from, to) = self.ends((part.from, part.to), Side::Lsp)?;
        if part.outgoing == Msat(0) || part.outgoing > part.incoming {
            return refused("more would be paid out than comes in");
        }
        if part.outgoing_expiry >= to.last_expiry {
            return refused("the payment out could outlive the new factory");
        }
        if part.incoming_expiry < least_incoming_expiry(part.outgoing_expiry, &from, &to) {
            return refused("too few blocks lie between its expiries");
        }
        let owed = |part: &PartRecord| part.is_paid() && part.preimage.is_none();
        if self.parts.of_leaf(part.from, owed) {
            return refused("another part of this move is not over");
        }
        let (secret, _) = self
            .manager
            .create_inbound_payment_for_hash(
                LdkHash(part.hash.0),
                Some(part.incoming.0),
                REGISTERED,
                None,
                None,
            )
            .map_err(|()| NodeError::Refused("the amount is too large".into()))?;
        // One that the client gave up before it paid.
        self.parts.forget(part.from, PartRecord::is_unpaid)?;
        let record = PartRecord::agreed(part, Side::Lsp, secret.0);
        Ok(self.parts.add(record)?.from_secret)
    }

    /// Whether a payment out of any channel, or through us, has this hash.
    fn pays_under(&self, hash: PaymentHash) -> bool {
        let channels = self.manager.list_channels();
        let open = channels.iter().any(|channel| {
            let mut out = channel.pending_outbound_htlcs.iter();
            out.any(|htlc| htlc.payment_hash.0 == hash.0)
        });
        let closed = || {
            let mut monitors = self.monitors.list_monitors().into_iter();
            monitors.any(|id| {
                let monitor = self.monitors.get_monitor(id);
                let balances = monitor.map(|monitor| monitor.get_claimable_balances());
                balances.unwrap_or_default().iter().any(|balance| {
                    matches!(
                        balance,
                        Balance::MaybeTimeoutClaimableHTLC { payment_hash, .. }
                            if payment_hash.0 == hash.0
                    )
                })
            })
        };
        open || closed()
    }

    /// Makes a payment to us that only the next part can be.
    pub(super) fn expect_part(
        &self,
        ends: (LeafId, LeafId),
        amount: Msat,
    ) -> Result<(PaymentHash, [u8; 32]), NodeError> {
        self.ends(ends, Side::Client)?;
        if amount == Msat(0) {
            return refused("there is nothing to move");
        }
        let (hash, secret, _) = self
            .manager
            .create_inbound_payment(Some(amount.0), REGISTERED, None, None)
            .map_err(|()| NodeError::Refused("the amount is too large".into()))?;
        let part = MovePart {
            hash: PaymentHash(hash.0),
            from: ends.0,
            to: ends.1,
            incoming: Msat(0),
            outgoing: amount,
            incoming_expiry: 0,
            outgoing_expiry: 0,
            to_secret: secret.0,
        };
        self.parts.forget(ends.0, PartRecord::is_unpaid)?;
        self.parts
            .add(PartRecord::agreed(&part, Side::Client, [0; 32]))?;
        Ok((part.hash, secret.0))
    }

    /// Pays the coordinator's end of a part, once.
    pub(super) fn send_part(
        &self,
        hash: PaymentHash,
        amount: Msat,
        secret: [u8; 32],
        expiry: u32,
    ) -> Result<(), NodeError> {
        let Some(part) = self
            .parts
            .get(hash)
            .filter(|part| part.side == Side::Client)
        else {
            return refused("no such part is expected");
        };
        if part.state() != Some(PartState::Agreed) {
            let same = part.incoming_msat == amount.0 && part.incoming_expiry == expiry;
            return if same && !matches!(part.progress, Progress::Failed { .. }) {
                Ok(())
            } else {
                refused("this part is under way, or over")
            };
        }
        if part.claimed {
            return refused("this part has been paid already");
        }
        let (from, _) = self.ends((part.from, part.to), Side::Client)?;
        if amount < part.amount() {
            return refused("the coordinator would pay more than it gets");
        }
        let Some(channel) = self.usable_channel(&from) else {
            return refused("the coordinator is away");
        };
        number_with_room(&channel, amount)?;
        // Stored under the lock that says that no other is on its way: two of them would be at risk together.
        let begun = self.parts.begin(hash, |part| {
            part.incoming_msat = amount.0;
            part.incoming_expiry = expiry;
            part.from_secret = secret;
        })?;
        if !begun {
            return refused("another part of this move is not over");
        }
        if let Err(error) = self.send_over(&channel, hash, amount, secret, expiry) {
            self.parts
                .update(hash, |part| part.fail(&error.to_string()))?;
            return Err(error);
        }
        self.peers.process_events();
        Ok(())
    }

    /// A leaf's channel, if its peer is there.
    pub(super) fn usable_channel(&self, leaf: &Record) -> Option<ChannelDetails> {
        self.channel_of(leaf).filter(|channel| channel.is_usable)
    }

    /// Pays the peer at the other end of exactly this channel. LDK keeps to the first hop's number, unlike with forwards.
    pub(super) fn send_over(
        &self,
        channel: &ChannelDetails,
        hash: PaymentHash,
        amount: Msat,
        secret: [u8; 32],
        expiry: u32,
    ) -> Result<(), NodeError> {
        let scid = number_with_room(channel, amount)?;
        // LDK counts from the next block.
        let next = self.manager.current_best_block().height.saturating_add(1);
        let peer = &channel.counterparty;
        let hop = RouteHop {
            pubkey: peer.node_id,
            node_features: peer.features.to_context(),
            short_channel_id: scid,
            channel_features: ChannelFeatures::empty(),
            fee_msat: amount.0,
            cltv_expiry_delta: expiry.saturating_sub(next),
            maybe_announced_channel: false,
        };
        let route = Route {
            paths: vec![Path {
                hops: vec![hop],
                blinded_tail: None,
            }],
            route_params: None,
        };
        let onion = RecipientOnionFields::secret_only(PaymentSecret(secret), amount.0);
        self.manager
            .send_payment_with_route(route, LdkHash(hash.0), onion, payment_id(hash))
            .map_err(not_sent)
    }

    pub(super) fn part_views(&self) -> Vec<PartView> {
        let open = self.parts.open_ones();
        open.iter().filter_map(PartRecord::view).collect()
    }
}
