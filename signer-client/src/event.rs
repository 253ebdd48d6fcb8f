//! What happens, as typed events: for the log, the event file, and whoever embeds the library.

use std::sync::atomic::{AtomicU32, Ordering};

use bitcoin::{OutPoint, Txid};
use factory_tree::ids::{FactoryId, SaleId};
use factory_tree::ladder::{Notice, Warning};
use serde::Serialize;
use tokio::sync::broadcast;

use crate::sales::TopUpState;

/// Events a slow listener may fall behind before it is told that it missed some.
const BACKLOG: usize = 256;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// Authenticated to the coordinator, and it to us.
    Connected,
    /// The connection ended.
    Disconnected {
        /// Why.
        reason: String,
    },
    /// Invited to an attempt.
    Invited {
        /// `ceremony/attempt`.
        round: String,
    },
    /// The join was recorded and is being sent.
    Joined {
        /// `ceremony/attempt`.
        round: String,
    },
    /// A proposal came.
    ProposalReceived {
        /// `ceremony/attempt`.
        round: String,
    },
    /// Something was refused.
    Refused {
        /// The rule that was broken.
        rule: String,
        /// What was found.
        found: String,
    },
    /// The partial signatures were recorded and are being sent.
    Signed {
        /// `ceremony/attempt`.
        round: String,
    },
    /// The exit kit is on disk, verified and rehearsed.
    KitStored {
        /// The factory.
        factory: FactoryId,
    },
    /// The acknowledgement is being sent.
    Acked {
        /// The factory.
        factory: FactoryId,
    },
    /// The attempt came to nothing.
    AttemptFailed {
        /// `ceremony/attempt`.
        round: String,
        /// Why.
        reason: String,
    },
    /// The coordinator answered with an error.
    ServerError {
        /// Its code.
        code: String,
        /// Its words.
        message: String,
    },
    /// The funding is in a block.
    FactoryConfirmed {
        /// The factory.
        factory: FactoryId,
        /// Height of that block.
        height: u32,
    },
    /// That block left the chain.
    FactoryUnconfirmed {
        /// The factory.
        factory: FactoryId,
    },
    /// The funding is buried as deep as agreed.
    FactoryUsable {
        /// The factory.
        factory: FactoryId,
    },
    /// The funding came, or can only come, so late that the factory cannot be used: it should be
    /// left by then.
    FactoryLate {
        /// The factory.
        factory: FactoryId,
        /// An exit should begin by this height.
        leave_by_height: u32,
    },
    /// A factory without timeouts draws to its end: who has not begun to leave by then may lose
    /// everything in it.
    LeaveSoon {
        /// The factory.
        factory: FactoryId,
        /// An exit must begin by this height.
        leave_by_height: u32,
        /// Whether the wallet's coins pay for it, at the feerate of now.
        coins_suffice: bool,
    },
    /// The funding can never confirm: its inputs are spent elsewhere, to depth.
    FactoryAbandoned {
        /// The factory.
        factory: FactoryId,
    },
    /// The factory is being left.
    ExitStarted {
        /// The factory.
        factory: FactoryId,
    },
    /// A transaction of the exit was handed to the node.
    ExitPublished {
        /// The factory.
        factory: FactoryId,
        /// The transaction.
        txid: Txid,
        /// What it is.
        kind: String,
        /// Its size, with its child.
        vbytes: u64,
        /// What its child pays.
        fee_sat: u64,
    },
    /// The exit has to wait.
    ExitWaiting {
        /// The factory.
        factory: FactoryId,
        /// Until this height; nothing if it waits for something else.
        until_height: Option<u32>,
        /// For what.
        what: String,
    },
    /// A transaction of the exit is in a block.
    ExitConfirmed {
        /// The factory.
        factory: FactoryId,
        /// The transaction.
        txid: Txid,
        /// What it is.
        kind: String,
        /// Height of that block.
        height: u32,
    },
    /// The leaf is in a block: the channel is on the chain.
    LeafConfirmed {
        /// The factory.
        factory: FactoryId,
        /// The leaf.
        txid: Txid,
    },
    /// A timeout was handed to the node.
    TimeoutPublished {
        /// The factory.
        factory: FactoryId,
        /// The timeout.
        txid: Txid,
        /// What it spends.
        kind: String,
    },
    /// A payout to this client is in a block.
    PayoutConfirmed {
        /// The factory, where it is known.
        factory: Option<FactoryId>,
        /// Where it is.
        outpoint: OutPoint,
        /// How much it is.
        sat: u64,
    },
    /// Nothing of the factory is left to be claimed.
    ExitDone {
        /// The factory.
        factory: FactoryId,
    },
    /// The coordinator's Lightning node is connected.
    LightningConnected,
    /// There is no Lightning now: the own node does not run, or the coordinator's is not connected.
    LightningDown {
        /// Why.
        problem: String,
    },
    /// The channel on a factory's leaf stands, as verified.
    ChannelOpened {
        /// The factory.
        factory: FactoryId,
    },
    /// The channel on a factory's leaf did not come about.
    ChannelRefused {
        /// The factory.
        factory: FactoryId,
        /// Why.
        why: String,
    },
    /// A channel takes no more payments.
    ChannelClosed {
        /// The factory.
        factory: FactoryId,
        /// In Lightning's words.
        reason: String,
        /// Closed by both sides together.
        cooperative: bool,
    },
    /// A channel has to go to the chain: its factory is being left.
    ExitNeeded {
        /// The factory.
        factory: FactoryId,
        /// Why.
        reason: String,
    },
    /// The signed commitment of a channel whose leaf is confirmed; anybody may pay for it.
    CommitmentReady {
        /// The factory.
        factory: FactoryId,
        /// The commitment.
        txid: Txid,
    },
    /// A channel's output on the chain is spent.
    ChannelSpent {
        /// The factory.
        factory: FactoryId,
        /// `commitment`, `cooperative`, `timeout`, `poison` or `reap`.
        kind: String,
        /// The spending transaction.
        txid: Txid,
        /// Height of its block.
        height: u32,
    },
    /// The coordinator promised a channel for a payment.
    JitOrdered {
        /// The payment's hash.
        hash: String,
        /// How much is to be paid.
        payment_msat: u64,
        /// What is kept of it.
        fee_msat: u64,
    },
    /// What lies in a channel outside of factories is on its way into one.
    Consolidated {
        /// Its BOLT 2 id, in hexadecimal digits.
        channel: String,
        /// How much.
        amount_msat: u64,
    },
    /// A payment waits until the funding of the channel it came over is seen; then it is claimed, else sent back in time.
    JitFundingAwaited {
        /// The payment's hash.
        hash: String,
        /// How much.
        amount_msat: u64,
    },
    /// A channel outside of factories may be used.
    JitChannelOpened {
        /// Its funding output.
        outpoint: Option<OutPoint>,
    },
    /// It is closed.
    JitChannelClosed {
        /// In Lightning's words.
        reason: String,
    },
    /// Somebody paid this wallet.
    PaymentReceived {
        /// The payment's hash.
        hash: String,
        /// How much.
        amount_msat: u64,
        /// What was kept of it for opening a channel.
        fee_msat: u64,
    },
    /// Somebody wanted to pay this wallet, and it was sent back.
    PaymentRefused {
        /// The payment's hash.
        hash: String,
        /// Why.
        reason: String,
    },
    /// A payment of this wallet arrived.
    PaymentSent {
        /// The payment's hash.
        hash: String,
        /// What it cost.
        fee_msat: u64,
    },
    /// A payment of this wallet came back whole.
    PaymentFailed {
        /// The payment's hash.
        hash: String,
        /// Why.
        reason: String,
    },
    /// The coordinator says that a factory ends: what happens, what to do, what it costs.
    Notice {
        /// The factory.
        factory: FactoryId,
        /// How urgent it is, and the words.
        #[serde(flatten)]
        notice: Notice,
    },
    /// An invitation is taken that gives less capacity than what ends has.
    LimitLower {
        /// The account limit so far.
        from_sat: u64,
        /// From then on.
        to_sat: u64,
    },
    /// The balance begins to move to a younger factory.
    MoveStarted {
        /// The factory that ends.
        from: FactoryId,
        /// The younger one.
        to: FactoryId,
        /// All there is to move.
        total_msat: u64,
    },
    /// A part of it arrived.
    PartMoved {
        /// Of its preimage.
        hash: String,
        /// The factory that ends.
        from: FactoryId,
        /// The younger one.
        to: FactoryId,
        /// How much arrived.
        amount_msat: u64,
        /// What it cost.
        fee_msat: u64,
    },
    /// A part of it never was on its way, or came back; another follows.
    PartFailed {
        /// Of its preimage.
        hash: String,
        /// The factory that ends.
        from: FactoryId,
        /// The younger one.
        to: FactoryId,
        /// Why.
        why: String,
    },
    /// The coordinator has the keys of a factory that everything has moved out of.
    HandedOver {
        /// The factory.
        factory: FactoryId,
    },
    /// It does not take them now; they are offered again.
    HandoverRefused {
        /// The factory.
        factory: FactoryId,
        /// In its words.
        why: String,
    },
    /// Too little can be received, and the wallet buys nothing by itself, although it is to.
    TopUpHeld {
        /// What holds it back.
        state: TopUpState,
        /// In words.
        why: String,
    },
    /// Inbound liquidity is bought: the purchase is stored and being ordered.
    PurchaseOrdered {
        /// The sale that is to come of it.
        sale: SaleId,
        /// In which factory.
        factory: FactoryId,
        /// What the channel is to hold.
        capacity_sat: u64,
        /// What it costs.
        fee_msat: u64,
        /// Whether the wallet buys by itself.
        automatic: bool,
    },
    /// Its payment is on its way; the coordinator holds it until the channel stands.
    PurchasePaid {
        /// The sale.
        sale: SaleId,
    },
    /// The channel stands, and the payment was taken.
    PurchaseSettled {
        /// The sale.
        sale: SaleId,
    },
    /// Nothing came of a purchase; what was paid came back.
    PurchaseCancelled {
        /// The sale.
        sale: SaleId,
        /// Why.
        why: String,
    },
    /// A channel was ordered (LSPS1), from a stock or from the chain; it is paid from now on.
    ChannelOrdered {
        /// The order.
        order: String,
        /// What the channel is to hold.
        capacity_sat: u64,
        /// What it costs.
        fee_msat: u64,
    },
    /// Its payment is on its way; the coordinator holds it until there is a channel.
    ChannelOrderPaid {
        /// The order.
        order: String,
    },
    /// It is paid, and its channel is there.
    ChannelOrderDone {
        /// The order.
        order: String,
        /// Whether the channel came from the stock of a factory.
        from_stock: bool,
        /// Its funding, of the leaf if it is on one.
        funding: OutPoint,
    },
    /// Nothing came of an order; what was paid came back.
    ChannelOrderFailed {
        /// The order.
        order: String,
        /// Why.
        why: String,
    },
    /// A sale from a factory's stock is to be signed, as buyer or as mate.
    SaleOffered {
        /// `sale/attempt`.
        round: String,
        /// The factory.
        factory: FactoryId,
    },
    /// The partial signatures on a sale were recorded and are being sent.
    SaleSigned {
        /// `sale/attempt`.
        round: String,
        /// The factory.
        factory: FactoryId,
    },
    /// A complete sale is in the exit kit, verified and rehearsed.
    SaleStored {
        /// `sale/attempt`.
        round: String,
        /// The factory.
        factory: FactoryId,
    },
    /// The attempt at a sale came to nothing.
    SaleFailed {
        /// `sale/attempt`.
        round: String,
        /// The factory.
        factory: FactoryId,
        /// Why.
        reason: String,
    },
    /// The chain was followed to its tip.
    Synced {
        /// The tip.
        height: u32,
    },
    /// The chain source fails.
    ChainTrouble {
        /// How.
        problem: String,
    },
    /// The process ends.
    Shutdown,
}

/// An event with the height it happened at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stamped {
    /// The event.
    #[serde(flatten)]
    pub event: Event,
    /// The block the chain was followed to.
    pub at_height: u32,
}

/// Where events go in and out.
#[derive(Debug)]
pub struct Events {
    sender: broadcast::Sender<Stamped>,
    height: AtomicU32,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            sender: broadcast::channel(BACKLOG).0,
            height: AtomicU32::new(0),
        }
    }
}

impl Events {
    /// Everything from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Stamped> {
        self.sender.subscribe()
    }

    /// Reports an event. Nobody listening is no error.
    pub fn emit(&self, event: Event) {
        let stamped = Stamped {
            event,
            at_height: self.height.load(Ordering::Relaxed),
        };
        log(&stamped);
        let _ = self.sender.send(stamped);
    }

    /// The chain was followed to this height.
    pub fn set_height(&self, height: u32) {
        self.height.store(height, Ordering::Relaxed);
    }
}

fn log(stamped: &Stamped) {
    let text = || serde_json::to_string(stamped).unwrap_or_default();
    match &stamped.event {
        // Nobody must overlook these.
        Event::Notice { factory, notice } if notice.level >= Warning::LastDay => {
            let Notice {
                what,
                action,
                cost,
                otherwise,
                ..
            } = notice;
            tracing::error!("FACTORY {factory} ENDS. {what} {action} {cost} {otherwise}");
        }
        Event::Notice { .. }
        | Event::Refused { .. }
        | Event::HandoverRefused { .. }
        | Event::LimitLower { .. }
        | Event::ServerError { .. }
        | Event::ChainTrouble { .. }
        | Event::LightningDown { .. }
        | Event::PurchaseCancelled { .. }
        | Event::ChannelOrderFailed { .. }
        | Event::TopUpHeld { .. }
        | Event::ChannelRefused { .. }
        | Event::PaymentRefused { .. } => {
            tracing::warn!(event = %text());
        }
        Event::Synced { .. } => tracing::debug!(event = %text()),
        _ => tracing::info!(event = %text()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_flat_object_per_event() {
        let stamped = Stamped {
            event: Event::KitStored {
                factory: FactoryId([1; 32]),
            },
            at_height: 7,
        };
        let value = serde_json::to_value(&stamped).unwrap();
        assert_eq!(value["event"], "kit_stored");
        assert_eq!(value["factory"], "01".repeat(32));
        assert_eq!(value["at_height"], 7);
    }
}
