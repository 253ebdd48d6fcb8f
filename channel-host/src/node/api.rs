//! What a host asks of a node.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bitcoin::Amount;
use bitcoin::secp256k1::PublicKey;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::payments::{MAX_LOCK, PaymentView};
use super::{ChannelView, LeafBalance, Node, Settlement};
use crate::bought::{BoughtChannel, BoughtView};
use crate::error::NodeError;
use crate::event::{Msat, PaymentHash};
use crate::jit::{JitAwaited, JitOrder, JitPromise};
use crate::leaf::{KnownSpend, Leaf, LeafId, LeafView};
use crate::lsps0::AskError;
use crate::moves::{MovePart, PartView};
use crate::pay::{InterceptHint, InvoiceRequest};

/// How long the close of a channel waits for what is under way in it, and between two tries.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);
const CLOSE_AGAIN: Duration = Duration::from_millis(50);

impl Node {
    /// Our Lightning node id.
    pub fn id(&self) -> PublicKey {
        self.core.manager.get_our_node_id()
    }

    /// Where peers connect to, if anywhere.
    pub fn listen_address(&self) -> Option<SocketAddr> {
        self.listen
    }

    /// The height this node has taken in.
    pub fn height(&self) -> u32 {
        self.core.book.height()
    }

    /// Promises a channel to a client, stored when this returns: payments over the number it gives are held until enough is here, then sent on over
    /// a channel opened for them, less the fee. With it the blocks an invoice has to leave us.
    ///
    /// # Errors
    /// Those of the store.
    pub fn add_jit_order(&self, order: JitOrder) -> Result<(u64, u16), NodeError> {
        self.core.add_jit_order(order)
    }

    /// The client's side: an invoice for what a coordinator promised, stored with it when this returns. The channel that is opened for it is then
    /// accepted, and no more than the promised fee may be kept of the payment; whatever the request says of amount and ways.
    ///
    /// # Errors
    /// [`NodeError::Refused`] if it cannot be written, and those of the store.
    pub fn jit_invoice(
        &self,
        request: &InvoiceRequest,
        promise: JitPromise,
    ) -> Result<String, NodeError> {
        Ok(self.core.jit_invoice(request, promise)?.to_string())
    }

    /// The client's side: the channel that was promised for the invoice with this hash may come to stand on this leaf, by our channel id of it: what
    /// was promised to the coordinator may be kept there too. To be said before that leaf is expected.
    ///
    /// # Errors
    /// Those of the store.
    pub fn jit_on_leaf(&self, hash: PaymentHash, leaf: u128) -> Result<(), NodeError> {
        self.core.jit_on_leaf(hash, leaf)
    }

    /// The client's side: a channel of this size is accepted from this peer, as we are about to pay the invoice with this hash for it. Stored when this
    /// returns; the same again changes nothing.
    ///
    /// # Errors
    /// Those of the store.
    pub fn await_order(
        &self,
        hash: PaymentHash,
        lsp: PublicKey,
        capacity: Amount,
    ) -> Result<(), NodeError> {
        self.core.await_order(hash, lsp, capacity)
    }

    /// The client's side: what was ordered so has come, or never will; no other channel is accepted for it.
    ///
    /// # Errors
    /// Those of the store.
    pub fn order_over(&self, hash: PaymentHash) -> Result<(), NodeError> {
        self.core.order_over(hash)
    }

    /// For whoever cannot book a [`crate::NodeEvent::JitFunded`]: gives the channel up that it is about, and returns `Ok` for the event then.
    ///
    /// # Errors
    /// [`NodeError::UnknownChannel`], and LDK's refusal: then the event must not be taken in.
    pub fn refuse_jit_funding(&self, scid: u64) -> Result<(), NodeError> {
        self.core.refuse_jit_funding(scid)
    }

    /// Whether enough of a payment waits here for the channel of the order with this number.
    pub fn jit_waits(&self, scid: u64) -> bool {
        self.core.jit_waits(scid)
    }

    /// Such orders of ours that are not over, and those that got a channel.
    pub fn jit_awaited(&self) -> Vec<JitAwaited> {
        self.core.jit_awaited()
    }

    // ---- peers -----------------------------------------------------------------------------------------------

    /// Connects to a peer, and stays connected: a lost connection is tried again, after a restart too.
    ///
    /// # Errors
    /// [`NodeError::Unreachable`] now; it is tried again all the same.
    pub async fn connect(&self, peer: PublicKey, address: SocketAddr) -> Result<(), NodeError> {
        self.core.connect(peer, address).await
    }

    /// Ends a connection and forgets the peer's address.
    ///
    /// # Errors
    /// Those of the store.
    pub fn disconnect(&self, peer: PublicKey) -> Result<(), NodeError> {
        self.core.disconnect(peer)
    }

    /// Who is connected.
    pub fn peers(&self) -> Vec<PublicKey> {
        self.core.connected()
    }

    // ---- leaves ----------------------------------------------------------------------------------------------

    /// The coordinator's side: opens the channel of a leaf with its client, who must be connected. [`crate::NodeEvent::LeafOpened`] or
    /// [`crate::NodeEvent::LeafRefused`] tells the end. While nothing is signed it may be called again.
    ///
    /// # Errors
    /// [`NodeError::LeafUsed`], [`NodeError::UnfitLeaf`], and LDK's refusal, for example of a client that is away.
    pub fn open_leaf(&self, leaf: Leaf, client: PublicKey) -> Result<(), NodeError> {
        self.core.open_leaf(leaf, client)
    }

    /// The wallet's side: lets the coordinator open the channel of this leaf, exactly as verified, and no other.
    ///
    /// # Errors
    /// [`NodeError::LeafUsed`], [`NodeError::UnfitLeaf`], and those of the store.
    pub fn expect_leaf(&self, leaf: Leaf, coordinator: PublicKey) -> Result<(), NodeError> {
        self.core.expect_leaf(leaf, coordinator)
    }

    /// Gives a leaf up with its attempt or its factory: the channel is closed on both sides, nothing is broadcast, the id stays used.
    ///
    /// # Errors
    /// [`NodeError::UnknownLeaf`] and those of the store.
    pub fn abandon_leaf(&self, leaf: LeafId) -> Result<(), NodeError> {
        self.core.abandon_leaf(leaf)
    }

    /// Opens or shuts the gate: over leaves of a factory that is not confirmed to depth nothing is forwarded, claimed or sent.
    ///
    /// # Errors
    /// [`NodeError::UnknownLeaf`] and those of the store.
    pub fn set_factory_confirmed(&self, leaf: LeafId, confirmed: bool) -> Result<(), NodeError> {
        self.core
            .book
            .update(leaf, |leaf| leaf.factory_confirmed = confirmed)?;
        Ok(())
    }

    /// Adds transactions that may spend the channel output and are no commitments.
    ///
    /// # Errors
    /// [`NodeError::UnknownLeaf`] and those of the store.
    pub fn add_known_spends(&self, leaf: LeafId, spends: &[KnownSpend]) -> Result<(), NodeError> {
        self.core.book.update(leaf, |leaf| {
            for spend in spends {
                if !leaf.spends.contains(spend) {
                    leaf.spends.push(*spend);
                }
            }
        })?;
        Ok(())
    }

    /// Sends a leaf to the chain: the host publishes its path ([`crate::NodeEvent::ExitNeeded`]), the channel is closed once the leaf is confirmed.
    ///
    /// # Errors
    /// [`NodeError::UnknownLeaf`] and those of the store.
    pub async fn force_close(&self, leaf: LeafId) -> Result<(), NodeError> {
        self.core.request_exit(leaf).await
    }

    /// Closes a leaf's channel in which we have nothing that a commitment would have an output for, so that nobody pays over it any more. Nothing is
    /// published; the peer fetches what is its own.
    ///
    /// # Errors
    /// [`NodeError::NotOver`] if there is something of ours in it, or pending; [`NodeError::UnknownLeaf`].
    pub fn close_worthless(&self, leaf: LeafId) -> Result<(), NodeError> {
        self.core.close_worthless(leaf)
    }

    /// Deletes the monitor of a closed leaf, and with it the means to punish an old state. Only when the factory's root is spent elsewhere and
    /// buried, which is for the caller to know.
    ///
    /// # Errors
    /// [`NodeError::NotOver`] while the channel is open or has payments pending.
    pub fn forget_leaf(&self, leaf: LeafId) -> Result<(), NodeError> {
        self.core.forget_leaf(leaf)
    }

    /// One leaf.
    pub fn leaf(&self, leaf: LeafId) -> Option<LeafView> {
        self.core.book.get(leaf).map(|leaf| leaf.view())
    }

    /// All leaves there ever were.
    pub fn leaves(&self) -> Vec<LeafView> {
        let leaves = self.core.book.all();
        leaves.iter().map(|leaf| leaf.view()).collect()
    }

    /// What can be sent and received over a leaf now; nothing if its channel is closed.
    ///
    /// # Errors
    /// [`NodeError::UnknownLeaf`].
    pub fn leaf_balance(&self, leaf: LeafId) -> Result<LeafBalance, NodeError> {
        self.core.balance(leaf)
    }

    /// What of a leaf's channel is ours on the chain, or will be, until it is in the wallet; nothing while a block is being taken in.
    pub fn settlement(&self, leaf: LeafId) -> Option<Settlement> {
        self.core.settlement(leaf)
    }

    /// The same of a channel that is no leaf.
    pub fn channel_settlement(&self, channel: [u8; 32]) -> Option<Settlement> {
        self.core.channel_settlement(channel)
    }

    // ---- payments --------------------------------------------------------------------------------------------

    /// The coordinator's side: the way to a client that its invoices name, with the client's number for life.
    ///
    /// # Errors
    /// Those of the store.
    pub fn client_route(&self, client: PublicKey) -> Result<InterceptHint, NodeError> {
        self.core.client_route(client)
    }

    /// A BOLT 11 invoice of ours, which asks for the time our leaves need to reach the chain.
    ///
    /// # Errors
    /// [`NodeError::Refused`] if it cannot be written.
    pub fn invoice(&self, request: &InvoiceRequest) -> Result<String, NodeError> {
        Ok(self.core.invoice(request, None)?.to_string())
    }

    /// An invoice whose payment waits for [`Node::claim`] or [`Node::fail`] ([`crate::NodeEvent::PaymentHeld`]); `blocks`: how long it may have
    /// to, on top of the time a claim needs.
    ///
    /// # Errors
    /// [`NodeError::Refused`] if it cannot be written.
    pub fn hold_invoice(
        &self,
        request: &InvoiceRequest,
        hash: PaymentHash,
        blocks: u32,
    ) -> Result<String, NodeError> {
        Ok(self
            .core
            .invoice(request, Some((hash, blocks)))?
            .to_string())
    }

    /// Claims a held payment by its preimage.
    ///
    /// # Errors
    /// [`NodeError::Refused`] if there is none, or if it could not be enforced any more: then it is sent back.
    pub fn claim(&self, preimage: [u8; 32]) -> Result<(), NodeError> {
        self.core.claim(preimage)
    }

    /// Whether anything of this hash is here that is not on its way back. Right after a start as well: LDK has stored what is held.
    pub fn holds(&self, hash: PaymentHash) -> bool {
        self.core.holds(hash)
    }

    /// Sends a held payment back.
    pub fn fail(&self, hash: PaymentHash) {
        self.core.fail(hash);
    }

    /// Pays a BOLT 11 invoice; `amount` only if it leaves it open. [`crate::NodeEvent::PaymentSent`] or [`crate::NodeEvent::PaymentFailed`]
    /// tells the end.
    ///
    /// # Errors
    /// [`NodeError::Refused`] if nothing was sent.
    pub fn pay(&self, invoice: &str, amount: Option<Msat>) -> Result<PaymentHash, NodeError> {
        self.core.pay(invoice, amount, MAX_LOCK)
    }

    /// Pays an invoice of our own, out over the channel with this BOLT 2 id and back over the first way the invoice names: what lies in the one channel
    /// comes to lie on a leaf, less the fee. It ends like any payment, and is received like one; what comes back over no leaf is not taken.
    ///
    /// # Errors
    /// [`NodeError::Refused`] if nothing was sent, as where the fee would be more than `most`.
    pub fn pay_round(&self, over: [u8; 32], invoice: &str, most: Msat) -> Result<(), NodeError> {
        self.core.pay_round(over, invoice, most)
    }

    /// [`Node::pay`] over ways that lock the money for no more than so many blocks.
    ///
    /// # Errors
    /// [`NodeError::Refused`] if nothing was sent.
    pub fn pay_within(
        &self,
        invoice: &str,
        amount: Option<Msat>,
        max_lock: u32,
    ) -> Result<PaymentHash, NodeError> {
        self.core.pay(invoice, amount, max_lock)
    }

    /// Pays without an invoice. `preimage`: 32 fresh random bytes, whose SHA-256 names the payment, so that it can be written down before
    /// it is sent. `exit_delay` is the receiver's, where it is not one of our own leaves with it.
    ///
    /// # Errors
    /// [`NodeError::Refused`] if nothing was sent.
    pub fn keysend(
        &self,
        to: PublicKey,
        amount: Msat,
        exit_delay: Option<u32>,
        preimage: [u8; 32],
    ) -> Result<PaymentHash, NodeError> {
        self.core.keysend(to, amount, exit_delay, preimage)
    }

    /// Payments of ours that are on their way, or were not long ago.
    pub fn payments(&self) -> Vec<PaymentView> {
        self.core.payments()
    }

    // ---- moves -----------------------------------------------------------------------------------------------

    /// The coordinator's side: agrees to a part of a move, stores it, and returns the payment secret the client pays with. The same again gets the
    /// same. It takes the place of one from the same leaf that was agreed to and not paid.
    ///
    /// # Errors
    /// [`NodeError::Refused`] for a hash that served another part, for terms that could cost us, and while another part from this leaf is not over.
    pub fn take_part(&self, part: MovePart) -> Result<[u8; 32], NodeError> {
        self.core.take_part(&part)
    }

    /// The wallet's side: the hash and the payment secret of what is to arrive over `to`, of its own for each part. It takes the place of one from the
    /// same leaf that was not sent.
    ///
    /// # Errors
    /// [`NodeError::Refused`] if one of the leaves is not in force, and those of the store.
    pub fn expect_part(
        &self,
        from: LeafId,
        to: LeafId,
        amount: Msat,
    ) -> Result<(PaymentHash, [u8; 32]), NodeError> {
        self.core.expect_part((from, to), amount)
    }

    /// The wallet's side: pays the coordinator over the part's old leaf exactly this much, which expires no sooner than at this height. Sent once;
    /// the same again changes nothing. [`crate::NodeEvent::PartMoved`] or [`crate::NodeEvent::PartFailed`] tells the end.
    ///
    /// # Errors
    /// [`NodeError::Refused`] if nothing was sent: the peer is away, another part from this leaf is not over, or there is no room.
    pub fn send_part(
        &self,
        hash: PaymentHash,
        amount: Msat,
        secret: [u8; 32],
        incoming_expiry: u32,
    ) -> Result<(), NodeError> {
        self.core.send_part(hash, amount, secret, incoming_expiry)
    }

    /// Parts of moves that are not over.
    pub fn parts(&self) -> Vec<PartView> {
        self.core.part_views()
    }

    /// Closes the empty channel of a leaf whose keys were handed over. We never publish it; its monitor stays, and punishes an old state. The same
    /// again changes nothing. The coordinator first: what a client alone closes the coordinator brings to the chain.
    ///
    /// # Errors
    /// [`NodeError::UnknownLeaf`]; [`NodeError::NotOver`] while something is pending in it, or of the client's left.
    pub fn retire_leaf(&self, leaf: LeafId) -> Result<(), NodeError> {
        self.core.retire_leaf(leaf)
    }

    // ---- channels --------------------------------------------------------------------------------------------

    /// All channels, those of leaves too.
    pub fn channels(&self) -> Vec<ChannelView> {
        self.core.channels()
    }

    /// Opens an ordinary channel, funded from the on-chain wallet. Returns the number events will name it by.
    ///
    /// # Errors
    /// LDK's refusal, for example of a peer that is away.
    pub fn open_channel(
        &self,
        peer: PublicKey,
        capacity: Amount,
        announce: bool,
    ) -> Result<u64, NodeError> {
        self.core.open_channel(peer, capacity, announce)
    }

    /// Opens a channel that was bought, as an ordinary one whose funding is withheld: [`crate::NodeEvent::BoughtStands`] tells when it may be let out.
    /// The same number again changes nothing.
    ///
    /// # Errors
    /// Those of the store, and LDK's refusal, for example of a peer that is away.
    pub fn open_bought(&self, channel: BoughtChannel) -> Result<(), NodeError> {
        self.core.open_bought(channel)
    }

    /// Channels that were bought; one that did not come about is missing, and none that was not let out outlives a restart.
    pub fn bought(&self) -> Vec<BoughtView> {
        self.core.bought.views()
    }

    /// Lets the funding of such a channel out, for good: it is broadcast when this returns, and sent out again until it is in a block. The same again
    /// changes nothing. `false`: there is no such channel (any more).
    ///
    /// # Errors
    /// Those of the store and the Bitcoin node; it may be out all the same, and is tried again at every block.
    pub async fn release_bought(&self, id: u64) -> Result<bool, NodeError> {
        self.core.release_bought(id).await
    }

    /// Gives such a channel up, and frees its coins; `false`: its funding was let out, and it stays.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn drop_bought(&self, id: u64) -> Result<bool, NodeError> {
        self.core.drop_bought(id).await
    }

    /// Blocks before its expiry by which a payment to us has to be claimed, whichever of our leaves it came over.
    pub fn claim_time(&self) -> u32 {
        let slowest = self.core.exit_delay(None);
        slowest.saturating_add(crate::pay::CLAIM_BUFFER)
    }

    /// Closes a channel together with its peer, or, with `force`, alone. A payment's last step, or a peer that is just coming back, is waited for.
    ///
    /// # Errors
    /// [`NodeError::UnknownChannel`]; [`NodeError::NotNow`] if the peer stays away; [`NodeError::NotOver`] for the forced close of a leaf, which is
    /// [`Node::force_close`].
    pub async fn close_channel(&self, channel: [u8; 32], force: bool) -> Result<(), NodeError> {
        let deadline = Instant::now() + CLOSE_PATIENCE;
        loop {
            let core = Arc::clone(&self.core);
            let closing = tokio::task::spawn_blocking(move || core.close_channel(channel, force));
            let stopped = |_| NodeError::Refused("the node stops".to_owned());
            match closing.await.map_err(stopped)? {
                Err(NodeError::NotNow(_)) if Instant::now() < deadline => {
                    tokio::time::sleep(CLOSE_AGAIN).await;
                }
                closed => return closed,
            }
        }
    }

    // ---- questions -------------------------------------------------------------------------------------------

    /// Asks a connected peer by LSPS0 (bLIP-50).
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask(
        &self,
        peer: PublicKey,
        method: &str,
        params: &serde_json::Value,
    ) -> Result<serde_json::Value, AskError> {
        self.core.ask(peer, method, params).await
    }

    // ---- the end ---------------------------------------------------------------------------------------------

    /// Waits until nothing moves the node any more: it gave up, or LDK panicked.
    pub(crate) async fn driver_ended(&self) {
        let mut driven = self.driven.clone();
        while driven.changed().await.is_ok() {}
    }

    /// Stops: no peer is connected and everything is stored when it returns, and the store's file is free.
    ///
    /// # Errors
    /// Those of the store; it is stopped all the same, as after a crash.
    pub async fn shutdown(&self) -> Result<(), NodeError> {
        self.end().await;
        let saved = self.core.save_all().and_then(|()| self.core.save_gossip());
        self.core.store.close();
        Ok(saved?)
    }

    /// Stops without a last word or a last write, as a crash would.
    pub async fn abort(&self) {
        self.core.store.close();
        self.end().await;
    }

    async fn end(&self) {
        self.core.stopping.store(true, Ordering::Release);
        // Fails only if the driver has stopped by itself.
        let _ = self.stop.send(true);
        if let Some(driver) = self.driver.lock().await.take() {
            let _ = driver.await;
        }
        for helper in self.helpers() {
            helper.abort();
            // Ended by us: there is nothing else to learn.
            let _ = helper.await;
        }
        // Last, when nobody is let in any more: a connection left over would have nobody to drive it.
        self.core.peers.disconnect_all_peers();
    }

    fn helpers(&self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut *self.helpers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.core.stopping.store(true, Ordering::Release);
        let _ = self.stop.send(true);
        self.core.store.close();
        self.core.peers.disconnect_all_peers();
        self.helpers().iter().for_each(JoinHandle::abort);
    }
}
