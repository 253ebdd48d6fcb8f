//! Whether and where the coordinator forwards a payment. LDK holds every payment from or to a private channel until we have decided.

use bitcoin::secp256k1::PublicKey;
use lightning::ln::channel_state::ChannelDetails;
use lightning::ln::types::ChannelId;

use super::policy::required_delta;
use crate::config::FeePolicy;
use crate::event::PaymentHash;
use crate::leaf::{Book, Record};

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

/// Where it goes. `client` is whose intercept SCID the next hop is, if it is one.
pub(crate) fn decide(
    book: &Book,
    channels: &[ChannelDetails],
    client: Option<PublicKey>,
    fees: &FeePolicy,
    htlc: &Intercepted,
) -> Result<(ChannelId, PublicKey), ForwardRefusal> {
    let (from, expiry) = source(book, channels, htlc)?;
    let peer = next_hop(channels, client, htlc.scid).ok_or(ForwardRefusal::UnknownNext)?;
    let mut with_peer = channels
        .iter()
        .filter(|channel| channel.counterparty.node_id == peer)
        .peekable();
    if with_peer.peek().is_some() && !with_peer.any(|channel| channel.is_usable) {
        return Err(ForwardRefusal::Away);
    }
    let next = likely_channel(channels, &peer, htlc.outbound_msat).ok_or(ForwardRefusal::NoRoom)?;
    let to = book.by_channel(next.user_channel_id);

    let leaves = [(&from, expiry), (&to, htlc.outgoing_expiry)];
    for (leaf, expiry) in leaves {
        let Some(leaf) = leaf else { continue };
        if leaf.is_gated() {
            return Err(ForwardRefusal::Gated);
        }
        if expiry >= leaf.last_expiry {
            return Err(ForwardRefusal::OutlivesFactory);
        }
    }
    let delay = |leaf: &Option<Record>| leaf.as_ref().map(|leaf| leaf.exit_delay);
    let needed = required_delta(delay(&from), delay(&to));
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
    Ok((next.channel_id, peer))
}

/// Who is meant by a number: a client's for life, or a channel's.
pub(crate) fn next_hop(
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

/// The leaf a payment came over, if it was one, and its expiry there; of equal parts of one payment the worst, as LDK does not say which is meant.
fn source(
    book: &Book,
    channels: &[ChannelDetails],
    htlc: &Intercepted,
) -> Result<(Option<Record>, u32), ForwardRefusal> {
    let mut parts = Vec::new();
    for channel in channels {
        for inbound in &channel.pending_inbound_htlcs {
            if inbound.payment_hash.0 == htlc.hash.0 && inbound.amount_msat == htlc.inbound_msat {
                parts.push((
                    book.by_channel(channel.user_channel_id),
                    inbound.cltv_expiry,
                ));
            }
        }
    }
    parts
        .into_iter()
        .min_by_key(|(leaf, expiry)| {
            let gated = leaf.as_ref().is_some_and(Record::is_gated);
            let delay = leaf.as_ref().map_or(0, |leaf| leaf.exit_delay);
            (!gated, expiry.saturating_sub(delay))
        })
        .ok_or(ForwardRefusal::UnknownPrevious)
}

/// The channel LDK will take, whatever we name: of those with room the one with the least (`process_forward_htlcs`). If that is a gated one, the
/// payment is refused; what still slips into one by a race is refused by the client, who claims nothing there.
fn likely_channel<'a>(
    channels: &'a [ChannelDetails],
    peer: &PublicKey,
    amount_msat: u64,
) -> Option<&'a ChannelDetails> {
    channels
        .iter()
        .filter(|channel| channel.counterparty.node_id == *peer && channel.is_usable)
        .filter(|channel| {
            (channel.next_outbound_htlc_minimum_msat..=channel.next_outbound_htlc_limit_msat)
                .contains(&amount_msat)
        })
        .min_by_key(|channel| channel.next_outbound_htlc_limit_msat)
}
