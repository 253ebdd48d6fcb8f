//! Lets the Lightning node expect what was bought, and nothing else: from the acknowledgement on the coordinator opens it.

use std::fmt::Debug;

use async_trait::async_trait;
use bitcoin::OutPoint;
use channel_host::{Leaf, Node, NodeError};

use crate::client::Inner;
use crate::error::Result;
use crate::lightning::{coordinator_of, on_node};

use super::SaleError;

/// Where channels come to stand.
#[async_trait]
pub(super) trait Ground: Debug + Send + Sync {
    /// See [`Node::expect_leaf`]; the same leaf again changes nothing.
    async fn expect(&self, client: &Inner, leaf: Leaf) -> Result<()>;
}

/// The wallet's own node.
#[derive(Debug)]
pub(super) struct OwnNode;

#[async_trait]
impl Ground for OwnNode {
    async fn expect(&self, client: &Inner, leaf: Leaf) -> Result<()> {
        let node = client.lightning.running()?;
        let coordinator = coordinator_of(client).ok_or(SaleError::NoCoordinator)?;
        client.lightning.refusals().remove(&leaf.id);
        let expected = on_node(node, move |node| {
            match node.expect_leaf(leaf.clone(), coordinator) {
                // By this kit, before a restart: the outpoint is the leaf's.
                Err(NodeError::LeafUsed { .. }) if is_this(node, &leaf) => Ok(()),
                other => other,
            }
        });
        Ok(expected.await??)
    }
}

fn is_this(node: &Node, leaf: &Leaf) -> bool {
    let outpoint = OutPoint::new(leaf.transaction.compute_txid(), leaf.vout);
    node.leaf(leaf.id)
        .is_some_and(|view| view.outpoint == outpoint)
}
