//! Channels outside of factories: those that were opened just in time for a payment. Their money is on the chain as soon as they are closed.

use std::sync::Arc;

use channel_host::{ChannelView as Live, JitAwaited, JitChannel, LeafId, Node};

use super::ending::when_quiet;
use super::views::{ChannelState, ChannelView};
use super::words;
use crate::client::SignerClient;
use crate::error::{Error, Result};

/// The name of such a channel where others have that of their leaf: those are never as small.
fn name(channel: &JitChannel) -> LeafId {
    LeafId(u128::from(channel.number).to_be_bytes())
}

pub(super) fn text(id: &[u8; 32]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn view(channel: &JitChannel, live: Option<&Live>, closing_sat: u64) -> ChannelView {
    let state = match live {
        Some(_) => ChannelState::Open,
        None => ChannelState::Closed,
    };
    ChannelView {
        factory: None,
        leaf: name(channel).to_string(),
        channel: live.map(|live| text(&live.channel)),
        state,
        outpoint: channel.outpoint,
        capacity_sat: channel.capacity.to_sat(),
        ours_msat: live.map_or(0, |live| live.balance.0),
        spendable_msat: live.map_or(0, |live| live.spendable.0),
        receivable_msat: live.map_or(0, |live| live.receivable.0),
        pending: live.map_or(0, |live| live.pending as u64),
        usable: live.is_some_and(|live| live.usable),
        factory_confirmed: live.is_none_or(|live| live.confirmations > 0),
        leaf_height: None,
        spent: None,
        closing_sat,
    }
}

/// Those that stand, or whose money is not in the on-chain wallet yet; oldest first is nobody's promise here.
pub(super) async fn live(node: &Arc<Node>, channels: &[Live]) -> Vec<(LeafId, ChannelView)> {
    let mut views = Vec::new();
    for JitAwaited { channel, .. } in node.jit_awaited() {
        let Some(channel) = channel else { continue };
        let live = channels.iter().find(|live| live.channel == channel.channel);
        let mut closing = 0u64;
        if live.is_none() {
            let settlement = when_quiet(|| node.channel_settlement(channel.channel)).await;
            let Some(settlement) = settlement else {
                continue;
            };
            let amounts = settlement.locked.iter().chain(&settlement.free);
            closing = amounts.fold(0, |sum, amount| sum.saturating_add(amount.to_sat()));
            if closing == 0 {
                continue;
            }
        }
        views.push((name(&channel), view(&channel, live, closing)));
    }
    views
}

impl SignerClient {
    /// Closes a channel outside of factories, by its BOLT 2 id in hexadecimal digits: together with the coordinator, which costs this wallet nothing; or
    /// alone (`force`), which takes a confirmed coin of the on-chain wallet to pay for it. What is ours comes into the on-chain wallet by itself.
    ///
    /// # Errors
    /// [`Error::NoLightning`]; [`Error::PaymentRefused`] if there is no such channel, it is a factory's, or the coordinator is away.
    pub async fn close_channel(&self, channel: &str, force: bool) -> Result<ChannelView> {
        let node = self.inner.lightning.running()?;
        let known = self.channels().await?.into_iter();
        let mut known = known.filter(|view| view.channel.as_deref() == Some(channel));
        let Some(view) = known.next() else {
            return Err(refused("there is no such channel; `channels` lists them"));
        };
        let mut all = node.channels().into_iter();
        let live = all.find(|live| text(&live.channel) == channel);
        let (None, Some(live)) = (view.factory, live) else {
            return Err(refused(
                "this channel lies in a factory; `exit` leaves that",
            ));
        };
        let closed = node.close_channel(live.channel, force).await;
        closed.map_err(words)?;
        self.inner.lightning.tell();
        Ok(view)
    }
}

fn refused(text: &str) -> Error {
    Error::PaymentRefused(text.to_owned())
}
