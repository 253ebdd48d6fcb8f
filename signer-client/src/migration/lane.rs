//! What a move needs of the Lightning node.

use std::fmt::Debug;

use channel_host::{ChannelView, LeafId, LeafView, Msat, Node, NodeError, PartView, PaymentHash};

/// The node's part in a move. Calls may write to its disk.
pub(super) trait Lane: Debug + Send + Sync {
    /// See [`Node::channels`].
    fn channels(&self) -> Vec<ChannelView>;

    /// See [`Node::leaf`].
    fn leaf(&self, leaf: LeafId) -> Option<LeafView>;

    /// See [`Node::parts`].
    fn parts(&self) -> Vec<PartView>;

    /// See [`Node::expect_part`].
    fn expect_part(
        &self,
        from: LeafId,
        to: LeafId,
        amount: Msat,
    ) -> Result<(PaymentHash, [u8; 32]), NodeError>;

    /// See [`Node::send_part`].
    fn send_part(
        &self,
        hash: PaymentHash,
        amount: Msat,
        secret: [u8; 32],
        expiry: u32,
    ) -> Result<(), NodeError>;

    /// See [`Node::set_factory_confirmed`].
    fn gate(&self, leaf: LeafId, open: bool) -> Result<(), NodeError>;

    /// See [`Node::retire_leaf`].
    fn retire(&self, leaf: LeafId) -> Result<(), NodeError>;
}

impl Lane for Node {
    fn channels(&self) -> Vec<ChannelView> {
        self.channels()
    }

    fn leaf(&self, leaf: LeafId) -> Option<LeafView> {
        self.leaf(leaf)
    }

    fn parts(&self) -> Vec<PartView> {
        self.parts()
    }

    fn expect_part(
        &self,
        from: LeafId,
        to: LeafId,
        amount: Msat,
    ) -> Result<(PaymentHash, [u8; 32]), NodeError> {
        self.expect_part(from, to, amount)
    }

    fn send_part(
        &self,
        hash: PaymentHash,
        amount: Msat,
        secret: [u8; 32],
        expiry: u32,
    ) -> Result<(), NodeError> {
        self.send_part(hash, amount, secret, expiry)
    }

    fn gate(&self, leaf: LeafId, open: bool) -> Result<(), NodeError> {
        self.set_factory_confirmed(leaf, open)
    }

    fn retire(&self, leaf: LeafId) -> Result<(), NodeError> {
        self.retire_leaf(leaf)
    }
}
