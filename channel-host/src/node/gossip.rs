//! What peers say of the network, kept within bounds: LDK takes in every announcement that is signed well, and signing costs nothing.

use std::sync::Arc;

use bitcoin::secp256k1::PublicKey;
use lightning::ln::msgs::{
    BaseMessageHandler, ChannelAnnouncement, ChannelUpdate, Init, LightningError, MessageSendEvent,
    NodeAnnouncement, QueryChannelRange, QueryShortChannelIds, ReplyChannelRange,
    ReplyShortChannelIdsEnd, RoutingMessageHandler,
};
use lightning::routing::gossip::NodeId;
use lightning::types::features::{InitFeatures, NodeFeatures};

use super::{Gossip, Graph, Manager};
use crate::leaf::Side;

/// The most channels that are remembered; about twice what the public network has.
const MOST_CHANNELS: usize = 100_000;

/// LDK's gossip, from peers with a stake only.
pub(super) struct Hearsay {
    inner: Gossip,
    graph: Graph,
    manager: Arc<Manager>,
    side: Side,
}

impl Hearsay {
    pub(super) fn new(inner: Gossip, graph: Graph, manager: Arc<Manager>, side: Side) -> Self {
        Self {
            inner,
            graph,
            manager,
            side,
        }
    }

    /// Whether a peer's word counts: it has a channel with us that cost it something, or is a wallet's coordinator.
    fn counts(&self, peer: Option<PublicKey>) -> bool {
        peer.is_none_or(|peer| {
            let channels = self.manager.list_channels_with_counterparty(&peer);
            channels.iter().any(|channel| {
                let leaf = crate::is_leaf(channel.user_channel_id);
                channel.is_channel_ready && leaf == (self.side == Side::Client)
            })
        })
    }

    fn has_room(&self) -> bool {
        self.graph.read_only().channels().len() < MOST_CHANNELS
    }
}

impl BaseMessageHandler for Hearsay {
    fn get_and_clear_pending_msg_events(&self) -> Vec<MessageSendEvent> {
        self.inner.get_and_clear_pending_msg_events()
    }

    fn peer_disconnected(&self, peer: PublicKey) {
        self.inner.peer_disconnected(peer);
    }

    fn provided_node_features(&self) -> NodeFeatures {
        self.inner.provided_node_features()
    }

    fn provided_init_features(&self, peer: PublicKey) -> InitFeatures {
        self.inner.provided_init_features(peer)
    }

    fn peer_connected(&self, peer: PublicKey, init: &Init, inbound: bool) -> Result<(), ()> {
        self.inner.peer_connected(peer, init, inbound)
    }
}

impl RoutingMessageHandler for Hearsay {
    fn handle_node_announcement(
        &self,
        peer: Option<PublicKey>,
        message: &NodeAnnouncement,
    ) -> Result<bool, LightningError> {
        if self.counts(peer) {
            self.inner.handle_node_announcement(peer, message)
        } else {
            Ok(false)
        }
    }

    fn handle_channel_announcement(
        &self,
        peer: Option<PublicKey>,
        message: &ChannelAnnouncement,
    ) -> Result<bool, LightningError> {
        if self.has_room() && self.counts(peer) {
            self.inner.handle_channel_announcement(peer, message)
        } else {
            Ok(false)
        }
    }

    fn handle_channel_update(
        &self,
        peer: Option<PublicKey>,
        message: &ChannelUpdate,
    ) -> Result<Option<(NodeId, NodeId)>, LightningError> {
        if self.counts(peer) {
            self.inner.handle_channel_update(peer, message)
        } else {
            Ok(None)
        }
    }

    fn get_next_channel_announcement(
        &self,
        from: u64,
    ) -> Option<(
        ChannelAnnouncement,
        Option<ChannelUpdate>,
        Option<ChannelUpdate>,
    )> {
        self.inner.get_next_channel_announcement(from)
    }

    fn get_next_node_announcement(&self, from: Option<&NodeId>) -> Option<NodeAnnouncement> {
        self.inner.get_next_node_announcement(from)
    }

    fn handle_reply_channel_range(
        &self,
        peer: PublicKey,
        message: ReplyChannelRange,
    ) -> Result<(), LightningError> {
        self.inner.handle_reply_channel_range(peer, message)
    }

    fn handle_reply_short_channel_ids_end(
        &self,
        peer: PublicKey,
        message: ReplyShortChannelIdsEnd,
    ) -> Result<(), LightningError> {
        self.inner.handle_reply_short_channel_ids_end(peer, message)
    }

    fn handle_query_channel_range(
        &self,
        peer: PublicKey,
        message: QueryChannelRange,
    ) -> Result<(), LightningError> {
        self.inner.handle_query_channel_range(peer, message)
    }

    fn handle_query_short_channel_ids(
        &self,
        peer: PublicKey,
        message: QueryShortChannelIds,
    ) -> Result<(), LightningError> {
        self.inner.handle_query_short_channel_ids(peer, message)
    }

    fn processing_queue_high(&self) -> bool {
        self.inner.processing_queue_high()
    }
}
