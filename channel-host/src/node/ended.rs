//! Leaves whose channel output was spent by neither a commitment nor a closing transaction. LDK takes every spend for a commitment: it waits for
//! HTLCs that are not there, and fails them back only when a manager is read whose monitor has the spend buried.

use std::collections::HashSet;
use std::sync::PoisonError;

use bitcoin::Block;
use lightning::chain::channelmonitor::{Balance, ChannelMonitor};
use lightning::ln::channel_state::ChannelDetails;
use lightning::ln::types::ChannelId;
use lightning::sign::InMemorySigner;

use super::Core;
use crate::error::NodeError;
use crate::event::NodeEvent;
use crate::leaf::{Book, LeafId, Record, SpendKind};

/// Confirmations after which LDK counts on a spend (`ANTI_REORG_DELAY`).
const BURIED: u32 = 6;

/// Whether payments are pending in a channel.
pub(super) fn has_htlcs(monitor: &ChannelMonitor<InMemorySigner>) -> bool {
    monitor.get_claimable_balances().iter().any(|balance| {
        matches!(
            balance,
            Balance::MaybeTimeoutClaimableHTLC { .. }
                | Balance::MaybePreimageClaimableHTLC { .. }
                | Balance::ContentiousClaimable { .. }
        )
    })
}

/// Leaves that are not spent, before we have taken in what happened while we were away.
pub(super) fn unspent_leaves(book: &Book) -> Vec<LeafId> {
    let unspent = book.all().into_iter().filter(|leaf| leaf.spent.is_none());
    unspent.map(|leaf| leaf.id).collect()
}

/// Notes which of these were spent meanwhile. Whether payments were pending cannot be seen any more: a start too many harms nobody.
pub(super) fn note_ended(book: &Book, unspent: Vec<LeafId>) -> Result<(), NodeError> {
    for id in unspent {
        book.update(id, |leaf| leaf.pending_at_end |= leaf.spent.is_some())?;
    }
    Ok(())
}

/// Whether this leaf's payments wait to be failed back.
fn waits(book: &Book, leaf: &Record, is_open: bool) -> bool {
    leaf.spent.is_some_and(|(kind, _, height)| {
        let buried = book.height() >= height.saturating_add(BURIED.saturating_sub(1));
        let foreign = !matches!(kind, SpendKind::Commitment | SpendKind::Cooperative);
        buried && foreign && leaf.pending_at_end && !is_open
    })
}

/// Those whose payments LDK failed back when it read a manager with these channels.
pub(super) fn failed_back(book: &Book, channels: &[ChannelDetails]) -> HashSet<LeafId> {
    let leaves = book.all().into_iter();
    leaves
        .filter(|leaf| {
            let id = leaf.channel_id();
            let is_open = channels.iter().any(|channel| channel.user_channel_id == id);
            waits(book, leaf, is_open)
        })
        .map(|leaf| leaf.id)
        .collect()
}

impl Core {
    /// Asks for a start, once, when it would fail back what waits.
    pub(super) async fn look_at_end(&self, leaf: &Record, is_open: bool) {
        let asks = waits(&self.book, leaf, is_open) && {
            let known = self.failed_back.lock();
            known
                .unwrap_or_else(PoisonError::into_inner)
                .insert(leaf.id)
        };
        if asks {
            self.tell(NodeEvent::RestartNeeded { leaf: leaf.id }).await;
        }
    }

    /// Notes before LDK sees a block which of the leaves it spends had payments pending.
    pub(super) fn note_pending_payments(&self, block: &Block) -> Result<(), NodeError> {
        let inputs = block.txdata.iter().flat_map(|tx| &tx.input);
        let spent = inputs.filter_map(|input| self.book.by_outpoint(input.previous_output));
        for leaf in spent {
            // The monitor knows those of a closed channel, the manager those too small for an output.
            let watched = leaf.ldk_id.is_some_and(|id| self.has_htlcs(ChannelId(id)));
            let pending = |channel: ChannelDetails| {
                !channel.pending_inbound_htlcs.is_empty()
                    || !channel.pending_outbound_htlcs.is_empty()
            };
            if watched || self.channel_of(&leaf).is_some_and(pending) {
                self.book
                    .update(leaf.id, |leaf| leaf.pending_at_end = true)?;
            }
        }
        Ok(())
    }
}
