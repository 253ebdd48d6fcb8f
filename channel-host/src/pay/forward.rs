//! Whether and where the coordinator forwards a payment. LDK holds every payment from or to a private channel until we have decided.

use bitcoin::secp256k1::PublicKey;
use lightning::ln::channel_state::ChannelDetails;
use lightning::ln::types::ChannelId;

use super::policy::required_delta;
use crate::config::FeePolicy;
use crate::event::PaymentHash;
use crate::jit::JitBook;
use crate::leaf::{Book, LeafId, Record};

/// Why a payment is not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardRefusal {
    /// The next hop is nobody of ours.
    #[error("there is no such next hop")]
    UnknownNext,
    /// The payment it comes from is gone.
    #[error("the payment behind it is gone")]
    UnknownPrevious,
    /// The next hop is away, and did not come back in time.
    #[error("the next hop is away")]
    Away,
    /// No channel to the next hop has room for so much at once.
    #[error("no channel to the next hop has room for so much at once")]
    NoRoom,
    /// One of the two leaves is not in force.
    #[error("it goes over a leaf whose factory is not confirmed, or which is over")]
    Gated,
    /// Both channels could not be brought to the chain between the two expiries.
    #[error("{offered} blocks lie between its expiries, {needed} are needed")]
    TooTight {
        /// What the sender left.
        offered: u32,
        /// What it takes.
        needed: u32,
    },
    /// It could outlive a factory.
    #[error("it would outlive the factory")]
    OutlivesFactory,
    /// Its hash is that of a part of a move.
    #[error("a part of somebody's balance moves under its hash")]
    PartOfMove,
    /// Less than the fee.
    #[error("it leaves {offered} msat for the forward, {needed} are asked")]
    FeeTooLow {
        /// What the sender left.
        offered: u64,
        /// What is asked.
        needed: u64,
    },
}

/// A payment that waits for our decision.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Intercepted {
    pub hash: PaymentHash,
    pub scid: u64,
    pub inbound_msat: u64,
    pub outbound_msat: u64,
    pub outgoing_expiry: u32,
}

/// Where a payment goes.
#[derive(Debug, Clone)]
pub(crate) struct Forward {
    pub channel: ChannelId,
    pub peer: PublicKey,
    /// The leaves that it may go over.
    pub leaves: Vec<LeafId>,
    /// When the last of what pays for it expires.
    pub expiry: u32,
    /// Whether there is room; if not, LDK refuses it for us, with words that make a payer try again in parts.
    pub fits: bool,
}

/// Which channels are open to a payment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gates<'a> {
    pub book: &'a Book,
    pub jit: &'a JitBook,
    /// Nothing but this channel, by its number.
    pub only: Option<u128>,
}

impl Gates<'_> {
    /// A leaf that is not in force; a channel whose opening fee is not paid, which this payment does not pay.
    fn shut(&self, (channel, leaf): &WithLeaf<'_>) -> bool {
        let id = channel.user_channel_id;
        match self.only {
            Some(only) => id != only,
            None => leaf.as_ref().is_some_and(Record::is_gated) || self.jit.is_unpaid(id),
        }
    }
}

/// Where it goes, if everything is in order but perhaps the room. `client` is whose intercept SCID the next hop is, if it is one.
pub(crate) fn decide(
    gates: &Gates<'_>,
    channels: &[ChannelDetails],
    client: Option<PublicKey>,
    fees: &FeePolicy,
    htlc: &Intercepted,
) -> Result<Forward, ForwardRefusal> {
    let book = gates.book;
    let peer = next_hop(channels, client, htlc.scid).ok_or(ForwardRefusal::UnknownNext)?;
    let parts = sources(book, channels, htlc);
    let with_peer = channels_with(channels, &peer, book);
    let is_usable = with_peer.iter().any(|(channel, _)| channel.is_usable);
    let likely = likely_channel(&with_peer, htlc.outbound_msat);
    let none_open = with_peer.iter().all(|to| gates.shut(to));
    if likely.is_some_and(|to| gates.shut(to)) || (none_open && !with_peer.is_empty()) {
        return Err(ForwardRefusal::Gated);
    }
    // LDK takes a channel of its own choice when it comes to that, perhaps one in which room came free or which came back: each that may ever
    // carry it must be in order. A gated one carries nothing, so its room does not change.
    let open = || with_peer.iter().filter(|to| !gates.shut(to));
    let may_carry =
        |(channel, _): &&WithLeaf<'_>| channel.outbound_capacity_msat >= htlc.outbound_msat;
    let mut targets: Vec<&WithLeaf<'_>> = open().filter(may_carry).collect();
    if targets.is_empty() {
        targets = open().collect();
    }
    for part in &parts {
        for (_, to) in &targets {
            check(part, to, fees, htlc)?;
        }
    }
    let expiry = parts.iter().map(|(_, expiry)| *expiry).max();
    let expiry = expiry.ok_or(ForwardRefusal::UnknownPrevious)?;
    let next = likely.or_else(|| {
        let mut usable = targets.iter().filter(|(channel, _)| channel.is_usable);
        usable.next().copied()
    });
    let (next, _) = match next {
        Some(next) => next,
        None if is_usable || with_peer.is_empty() => return Err(ForwardRefusal::NoRoom),
        None => return Err(ForwardRefusal::Away),
    };
    let from = parts.iter().filter_map(|(leaf, _)| leaf.as_ref());
    let to = targets.iter().filter_map(|(_, leaf)| leaf.as_ref());
    let leaves = from.chain(to).map(|leaf| leaf.id).collect();
    Ok(Forward {
        channel: next.channel_id,
        peer,
        leaves,
        expiry,
        fits: likely.is_some(),
    })
}

/// Whether what pays for it leaves time enough to go on over a channel that is no leaf.
///
/// # Errors
/// Why it can go on over none.
pub(crate) fn leaves_time(
    book: &Book,
    channels: &[ChannelDetails],
    fees: &FeePolicy,
    htlc: &Intercepted,
) -> Result<(), ForwardRefusal> {
    let parts = sources(book, channels, htlc);
    if parts.is_empty() {
        return Err(ForwardRefusal::UnknownPrevious);
    }
    parts
        .iter()
        .try_for_each(|part| check(part, &None, fees, htlc))
}

/// Whether what pays for it leaves time enough to go on over a leaf with this exit delay.
pub(crate) fn leaves_leaf_time(
    book: &Book,
    channels: &[ChannelDetails],
    exit_delay: u32,
    htlc: &Intercepted,
) -> bool {
    sources(book, channels, htlc).iter().all(|(from, expiry)| {
        let from = from.as_ref().map(|leaf| leaf.exit_delay);
        expiry.saturating_sub(htlc.outgoing_expiry) >= required_delta(from, Some(exit_delay))
    })
}

/// Whether one part may go on over one channel.
fn check(
    (from, expiry): &(Option<Record>, u32),
    to: &Option<Record>,
    fees: &FeePolicy,
    htlc: &Intercepted,
) -> Result<(), ForwardRefusal> {
    for (leaf, expiry) in [(from, *expiry), (to, htlc.outgoing_expiry)] {
        let Some(leaf) = leaf else { continue };
        if leaf.is_gated() {
            return Err(ForwardRefusal::Gated);
        }
        if expiry >= leaf.last_expiry {
            return Err(ForwardRefusal::OutlivesFactory);
        }
    }
    let delay = |leaf: &Option<Record>| leaf.as_ref().map(|leaf| leaf.exit_delay);
    let needed = required_delta(delay(from), delay(to));
    let offered = expiry.saturating_sub(htlc.outgoing_expiry);
    if offered < needed {
        return Err(ForwardRefusal::TooTight { offered, needed });
    }
    let (offered, needed) = (
        htlc.inbound_msat.saturating_sub(htlc.outbound_msat),
        fees.fee_for(htlc.outbound_msat),
    );
    if offered < needed {
        return Err(ForwardRefusal::FeeTooLow { offered, needed });
    }
    Ok(())
}

/// Who is meant by a number: a client's for life, or a channel's.
fn next_hop(
    channels: &[ChannelDetails],
    client: Option<PublicKey>,
    scid: u64,
) -> Option<PublicKey> {
    let named = |channel: &&ChannelDetails| {
        channel.short_channel_id == Some(scid) || channel.outbound_scid_alias == Some(scid)
    };
    client.or_else(|| {
        let channel = channels.iter().find(named)?;
        Some(channel.counterparty.node_id)
    })
}

/// The leaves a payment may have come over, and its expiry there: of equal parts of one payment LDK does not say which is meant.
fn sources(
    book: &Book,
    channels: &[ChannelDetails],
    htlc: &Intercepted,
) -> Vec<(Option<Record>, u32)> {
    let mut parts = Vec::new();
    for channel in channels {
        for inbound in &channel.pending_inbound_htlcs {
            if inbound.payment_hash.0 == htlc.hash.0 && inbound.amount_msat == htlc.inbound_msat {
                let leaf = book.by_channel(channel.user_channel_id);
                parts.push((leaf, inbound.cltv_expiry));
            }
        }
    }
    parts
}

type WithLeaf<'a> = (&'a ChannelDetails, Option<Record>);

fn channels_with<'a>(
    channels: &'a [ChannelDetails],
    peer: &PublicKey,
    book: &Book,
) -> Vec<WithLeaf<'a>> {
    let of_peer = channels
        .iter()
        .filter(|channel| channel.counterparty.node_id == *peer);
    of_peer
        .map(|channel| (channel, book.by_channel(channel.user_channel_id)))
        .collect()
}

/// The channel LDK will take, whatever we name: of those with room the one with the least (`process_forward_htlcs`). If that is a gated one, the
/// payment is refused, even if another has room: naming that would not help. What still slips into one by a race is refused by the client, who claims
/// nothing there.
fn likely_channel<'a, 'b>(
    with_peer: &'b [WithLeaf<'a>],
    amount_msat: u64,
) -> Option<&'b WithLeaf<'a>> {
    let with_room = with_peer.iter().filter(|(channel, _)| {
        let room = channel.next_outbound_htlc_minimum_msat..=channel.next_outbound_htlc_limit_msat;
        channel.is_usable && room.contains(&amount_msat)
    });
    with_room.min_by_key(|(channel, _)| channel.next_outbound_htlc_limit_msat)
}
