//! The client's side of channels just in time, and of those it ordered: invoices for them, the channels, and that no more is kept of a payment than
//! was promised.

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, OutPoint};
use lightning::bolt11_invoice::Bolt11Invoice;
use lightning::events::ClaimedHTLC;
use lightning::ln::channel_state::ChannelDetails;
use lightning::ln::channelmanager::TrustedChannelFeatures;
use lightning::ln::types::ChannelId;
use lightning::types::payment::PaymentHash as LdkHash;

use super::Core;
use crate::clock::since_epoch;
use crate::config::ldk_jit_update;
use crate::error::NodeError;
use crate::event::{Msat, PaymentHash};
use crate::jit::{JitAwaited, JitChannel, JitPromise, Promised, may_keep};
use crate::pay::{ClaimRefusal, InterceptHint, InvoiceRequest, Way};

fn unix_time() -> u64 {
    since_epoch().as_secs()
}

/// Blocks for which a payment may wait for its channel's funding to be seen, on top of the time a claim needs.
const WAIT: u32 = 6;
/// A reserve that is asked for however small the channel (LDK: `MIN_THEIR_CHAN_RESERVE_SATOSHIS`).
const LEAST_RESERVE: u64 = 1_000;

/// Whether the peer asks for a larger reserve of ours than everybody does.
fn keeps_too_much(channel: &ChannelDetails) -> bool {
    let usual = (channel.channel_value_satoshis / 100).max(LEAST_RESERVE);
    channel
        .unspendable_punishment_reserve
        .is_some_and(|reserve| reserve > usual)
}

impl Core {
    /// An invoice for what was promised, which is stored when this returns.
    pub(super) fn jit_invoice(
        &self,
        request: &InvoiceRequest,
        promise: JitPromise,
    ) -> Result<Bolt11Invoice, NodeError> {
        let request = InvoiceRequest {
            amount: Some(Msat(promise.payment_msat)),
            ..request.clone()
        };
        // The only way: over any other the coordinator would look for a channel that is there.
        let way = Way::from(InterceptHint {
            lsp: promise.lsp,
            scid: promise.scid,
            cltv_delta: promise.cltv_delta,
            base_msat: 0,
            proportional_millionths: 0,
        });
        let invoice = self.invoice_over(&request, (None, WAIT), &[way])?;
        let promise = Promised::Jit(promise);
        self.awaited
            .add(invoice.payment_hash().0, promise, unix_time())?;
        Ok(invoice)
    }

    /// We are about to pay for a channel, which is accepted from now on. The same again changes nothing.
    pub(super) fn await_order(
        &self,
        hash: PaymentHash,
        lsp: PublicKey,
        capacity: Amount,
    ) -> Result<(), NodeError> {
        if self.awaited.get(&hash.0).is_some() {
            return Ok(());
        }
        let promise = Promised::Order { lsp, capacity };
        self.awaited.add(hash.0, promise, unix_time())
    }

    /// What was ordered has come, or never will.
    pub(super) fn order_over(&self, hash: PaymentHash) -> Result<(), NodeError> {
        self.awaited.over(&hash.0)
    }

    /// A peer opens a channel: accepted, and used before it confirms, if it promised us one; `false` if it did not.
    pub(super) fn jit_accept(
        &self,
        (channel, peer): (ChannelId, PublicKey),
        capacity: Amount,
    ) -> Result<bool, NodeError> {
        let live = self.manager.list_channels().into_iter();
        let live: Vec<u128> = live.map(|channel| channel.user_channel_id).collect();
        // Stored first: a channel is found again by its number. Never 0, which is nobody's.
        let number = rand::random::<u64>().max(1);
        let wanted = (&peer, capacity, unix_time());
        let Some(order) = self.awaited.take_open(wanted, &live, number)? else {
            return Ok(false);
        };
        let overrides = match order.lets_keep() {
            true => self.config.ldk_jit_overrides(),
            false => self.config.ldk_leaf_overrides(),
        };
        let accepted = self.manager.accept_inbound_channel_from_trusted_peer(
            &channel,
            &peer,
            number.into(),
            TrustedChannelFeatures::ZeroConf,
            Some(overrides),
        );
        if let Err(error) = accepted {
            // The peer has gone; it may try again.
            tracing::info!(?error, "an awaited channel is not accepted");
        }
        Ok(true)
    }

    /// Whether the peer may keep something of what comes over this channel.
    pub(super) fn jit_may_keep(&self, user_channel_id: u128) -> bool {
        let order = self.awaited.by_channel(user_channel_id);
        order.is_some_and(|order| order.lets_keep())
    }

    /// What was promised for the invoice with this hash may come to stand on this leaf, by our channel id of it.
    pub(super) fn jit_on_leaf(&self, hash: PaymentHash, leaf: u128) -> Result<(), NodeError> {
        self.awaited.on_leaf(&hash.0, leaf)
    }

    /// After a start, before anything is received: LDK does not store of which channels the peer may keep something.
    pub(super) fn jit_remember(&self) {
        for channel in self.manager.list_channels() {
            if !self.jit_may_keep(channel.user_channel_id) {
                continue;
            }
            let (peer, id) = (channel.counterparty.node_id, channel.channel_id);
            let update = ldk_jit_update();
            let told = self
                .manager
                .update_partial_channel_config(&peer, &[id], &update);
            if let Err(error) = told {
                tracing::warn!(?error, "the payment for a channel will be sent back");
            }
        }
    }

    /// Both sides have signed for a channel: perhaps one of these.
    pub(super) fn jit_signed(
        &self,
        user_channel_id: u128,
        channel: ChannelId,
        outpoint: OutPoint,
    ) -> Result<(), NodeError> {
        let Some(order) = self.awaited.by_channel(user_channel_id) else {
            return Ok(());
        };
        let channels = self.manager.list_channels();
        let signed = channels.iter().find(|one| one.channel_id == channel);
        if let Some(signed) = signed.filter(|signed| keeps_too_much(signed)) {
            // Nothing of it could be spent, and LDK asks for no limit.
            let at = (channel, signed.counterparty.node_id);
            self.reject(at, "the channel reserve is more than a hundredth");
            return Ok(());
        }
        self.awaited.update(&order.hash, |order| {
            order.channel = Some(JitChannel {
                number: order.number,
                channel: channel.0,
                outpoint,
                capacity: Amount::from_sat(order.capacity_sat),
            });
        })
    }

    /// Whether the peer has kept no more of a payment than it promised.
    pub(super) fn jit_verdict(&self, hash: &LdkHash, kept: u64) -> Result<(), ClaimRefusal> {
        may_keep(self.awaited.get(&hash.0).as_ref(), kept)
    }

    /// A payment is ours: its order, if it had one, is over. What was kept of it.
    pub(super) fn jit_taken(
        &self,
        hash: &LdkHash,
        parts: &[ClaimedHTLC],
    ) -> Result<Msat, NodeError> {
        let kept = parts.iter().map(|part| part.counterparty_skimmed_fee_msat);
        let kept = kept.fold(0, u64::saturating_add);
        self.awaited.update(&hash.0, |order| {
            order.taken_msat.get_or_insert(kept);
        })?;
        Ok(Msat(kept))
    }

    pub(super) fn jit_awaited(&self) -> Vec<JitAwaited> {
        let orders = self.awaited.all().into_iter();
        orders.map(|order| order.view()).collect()
    }
}
