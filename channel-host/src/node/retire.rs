//! The end of a leaf whose keys were handed over.

use lightning::ln::types::ChannelId;

use super::Core;
use super::exit::is_worth_it;
use crate::error::NodeError;
use crate::leaf::{LeafId, Record, Side, Stage};
use crate::moves::PartRecord;

impl Core {
    /// Closed for Lightning, as LDK takes the channel with the least room for whatever it forwards to a peer, and an emptied one would swallow it.
    pub(super) fn retire_leaf(&self, id: LeafId) -> Result<(), NodeError> {
        let leaf = self
            .book
            .get(id)
            .ok_or(NodeError::UnknownLeaf { leaf: id })?;
        if leaf.retired && self.channel_of(&leaf).is_none() {
            return Ok(());
        }
        if !leaf.retired {
            self.empty(&leaf)?;
            let stage = leaf.stage;
            let leaf = self.book.update(id, |leaf| {
                leaf.stage = Stage::Abandoned;
                leaf.retired = true;
            })?;
            // Whatever came in before the gate was shut.
            if let Err(error) = self.empty(&leaf) {
                self.book.update(id, |leaf| {
                    leaf.stage = stage;
                    leaf.retired = false;
                })?;
                return Err(error);
            }
        }
        self.parts.forget(id, PartRecord::is_unpaid)?;
        self.abandon_leaf(id)
    }

    /// Whether nothing is left in a leaf's channel that either side could lose.
    fn empty(&self, leaf: &Record) -> Result<(), NodeError> {
        let not_over = |what| {
            Err(NodeError::NotOver {
                leaf: leaf.id,
                what,
            })
        };
        if self.parts.of_leaf(leaf.id, PartRecord::is_paid) {
            return not_over("a part of a move is not over");
        }
        let ours = leaf.side == Side::Client;
        if let Some(channel) = self.channel_of(leaf) {
            let pending =
                channel.pending_inbound_htlcs.len() + channel.pending_outbound_htlcs.len();
            return match (pending, channel.outbound_capacity_msat) {
                (0, 1..) if ours => not_over("it still holds some of our balance"),
                (0, _) => Ok(()),
                _ => not_over("payments are pending in it"),
            };
        }
        let Some(id) = leaf.ldk_id.map(ChannelId) else {
            return Ok(());
        };
        match self.monitors.get_monitor(id) {
            _ if self.has_htlcs(id) => not_over("payments are pending in it"),
            Ok(monitor) if ours && is_worth_it(&monitor) => {
                not_over("it still holds some of our balance")
            }
            _ => Ok(()),
        }
    }
}
