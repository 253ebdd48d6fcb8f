//! Channels that were ordered, in advance or just in time, and who is there to have one.

use bitcoin::secp256k1::PublicKey;
use channel_host::{BoughtChannel, BoughtView, CLAIM_BUFFER, JitOrder, NodeError};
use factory_tree::ids::ClientId;

use super::Lightning;
use super::held::no_node;

/// What a test without a node has in its place.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct Pretended {
    /// Leaves whose channels do not stand.
    pub missing: Vec<channel_host::LeafId>,
    /// Leaves whose channels ended.
    pub over: Vec<channel_host::LeafId>,
    /// Where every leaf's channel is.
    pub outpoint: Option<bitcoin::OutPoint>,
    /// Payments that are not held any more.
    pub gone: Vec<channel_host::PaymentHash>,
    /// Whether everybody is there.
    pub here: bool,
    /// Channels that are asked for what they hold.
    pub channels: Vec<channel_host::ChannelView>,
    /// What was opened, in order.
    pub opened: Vec<BoughtChannel>,
    /// What there is.
    pub views: Vec<BoughtView>,
    /// Orders of channels just in time.
    pub jit_orders: Vec<JitOrder>,
}

impl Lightning {
    /// Whether a Lightning peer is connected.
    #[must_use]
    pub fn is_here(&self, client: ClientId) -> bool {
        #[cfg(test)]
        if self.pretends() {
            return self.pretended.lock().unwrap().here;
        }
        let peer = PublicKey::from_slice(&client.0);
        let node = self.node();
        peer.is_ok_and(|peer| node.is_some_and(|node| node.peers().contains(&peer)))
    }

    /// Stores an order of a channel just in time; its number, and the blocks its invoices leave us.
    ///
    /// # Errors
    /// The node's, or that there is none now.
    pub fn add_jit_order(&self, order: JitOrder) -> Result<(u64, u16), NodeError> {
        #[cfg(test)]
        if self.pretends() {
            let orders = &mut self.pretended.lock().unwrap().jit_orders;
            orders.push(order);
            return Ok((u64::try_from(orders.len()).unwrap(), 144));
        }
        self.node().ok_or_else(no_node)?.add_jit_order(order)
    }

    /// Opens a channel whose funding is withheld.
    ///
    /// # Errors
    /// The node's, or that there is none now.
    pub async fn open_bought(&self, channel: BoughtChannel) -> Result<(), NodeError> {
        #[cfg(test)]
        if self.pretends() {
            let view = BoughtView {
                id: channel.id,
                outpoint: None,
                fee: None,
                released: false,
            };
            let mut pretended = self.pretended.lock().unwrap();
            pretended.opened.push(channel);
            pretended.views.push(view);
            return Ok(());
        }
        let node = self.node().ok_or_else(no_node)?;
        let opened = tokio::task::spawn_blocking(move || node.open_bought(channel));
        opened.await.map_err(|_| no_node())?
    }

    /// Such channels; `None`: there is no node now to say.
    #[must_use]
    pub fn bought(&self) -> Option<Vec<BoughtView>> {
        #[cfg(test)]
        if self.pretends() {
            return Some(self.pretended.lock().unwrap().views.clone());
        }
        Some(self.node()?.bought())
    }

    /// Lets the funding of such a channel out; `false`: there is none (any more).
    ///
    /// # Errors
    /// The node's, or that there is none now.
    pub async fn release_bought(&self, id: u64) -> Result<bool, NodeError> {
        #[cfg(test)]
        if self.pretends() {
            let views = &mut self.pretended.lock().unwrap().views;
            let view = views.iter_mut().find(|view| view.id == id);
            return Ok(view.map(|view| view.released = true).is_some());
        }
        self.node().ok_or_else(no_node)?.release_bought(id).await
    }

    /// Gives such a channel up; `false`: its funding is out.
    ///
    /// # Errors
    /// The node's, or that there is none now.
    pub async fn drop_bought(&self, id: u64) -> Result<bool, NodeError> {
        #[cfg(test)]
        if self.pretends() {
            let views = &mut self.pretended.lock().unwrap().views;
            views.retain(|view| view.id != id || view.released);
            return Ok(views.iter().all(|view| view.id != id));
        }
        self.node().ok_or_else(no_node)?.drop_bought(id).await
    }

    /// Blocks before its expiry by which a payment that is held has to be claimed.
    #[must_use]
    pub fn claim_time(&self) -> u32 {
        self.node().map_or(CLAIM_BUFFER, |node| node.claim_time())
    }
}
