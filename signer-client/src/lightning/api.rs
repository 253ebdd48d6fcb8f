//! Payments, as whoever embeds a wallet asks for them.

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bitcoin::hashes::{Hash, sha256};
use bitcoin::secp256k1::PublicKey;
use channel_host::{
    ChannelView as Live, InterceptHint, InvoiceRequest, LeafId, LeafView, Msat, Node, NodeError,
    PaymentHash, Stage, read_invoice,
};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;

use super::outside;
use super::views::{self, ChannelView};
use super::{LightningBalance, coordinator_of, name_of, on_node};
use crate::client::{Inner, SignerClient};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::fault;
use crate::lsps1::ordered;
use crate::store::{Direction, Goal, Moment, Payment, PaymentEnd, PaymentState, Route};

/// How long an invoice can be paid where nobody says.
const INVOICE_EXPIRY: Duration = Duration::from_secs(3600);
/// How long to wait for it.
const ROUND_PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at the store while a payment is waited for.
const LOOK: Duration = Duration::from_millis(250);

/// What an invoice is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvoiceOptions {
    /// How much; `None` leaves it to the payer.
    pub amount: Option<Msat>,
    /// What for.
    pub description: String,
    /// How long it can be paid.
    pub expiry: Duration,
}

impl Default for InvoiceOptions {
    fn default() -> Self {
        Self {
            amount: None,
            description: String::new(),
            expiry: INVOICE_EXPIRY,
        }
    }
}

/// An invoice of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invoice {
    /// BOLT 11.
    pub invoice: String,
    /// The hash of its preimage, in hexadecimal digits.
    pub hash: String,
    /// How much; nothing leaves it to the payer.
    pub amount_msat: Option<u64>,
    /// Unix time after which it cannot be paid.
    pub expires_time: u64,
}

pub(crate) fn unix_time() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

impl Inner {
    /// The moment it is, for the record.
    pub(crate) fn now(&self) -> Moment {
        Moment {
            height: self.followed_height(),
            time: unix_time(),
        }
    }
}

fn refused(text: impl Into<String>) -> Error {
    Error::PaymentRefused(text.into())
}

/// Lightning's refusals are no failures of the wallet.
pub(crate) fn words(error: NodeError) -> Error {
    match error {
        NodeError::Refused(text) => refused(text),
        NodeError::NotNow(_) => refused(error.to_string()),
        other => other.into(),
    }
}

/// The leaves of factories that this wallet leaves: nothing is to be paid over these any more.
async fn left(client: &Inner) -> Result<HashSet<LeafId>> {
    let mut left = HashSet::new();
    for exit in client.store.exits().await? {
        let kit = match exit.goal {
            Goal::Leave => client.kits.sound(exit.factory).await?,
            Goal::Timeout => None,
        };
        left.extend(
            kit.iter()
                .flat_map(|kit| kit.channels())
                .map(|channel| name_of(&channel)),
        );
    }
    Ok(left)
}

/// Every payment of a wallet goes through its coordinator.
fn reachable(client: &Inner, node: &Node) -> Result<()> {
    let lsp = coordinator_of(client);
    if lsp.is_some_and(|lsp| node.peers().contains(&lsp)) {
        return Ok(());
    }
    let text = "its Lightning node cannot be reached now; `status` tells more";
    Err(Error::Disconnected(text.to_owned()))
}

/// Refuses what no way can carry, before it is begun: more than all channels together can send. What fee a way asks for is not known here. A channel that
/// is not usable yet, as after a start, is only to be waited for.
fn affordable(channels: &[Live], amount: Msat) -> Result<()> {
    let sum = |of: &dyn Fn(&Live) -> bool| {
        let counted = channels.iter().filter(|channel| of(channel));
        let spendable = counted.map(|channel| channel.spendable.0);
        Msat(spendable.fold(0, u64::saturating_add))
    };
    let most = sum(&|channel| channel.usable);
    if amount <= most {
        return Ok(());
    }
    if amount <= sum(&|_| true) {
        let text = "the channels for this payment are not all usable yet; try again in a moment (`channels` shows them)";
        return Err(Error::Disconnected(text.to_owned()));
    }
    Err(refused(format!(
        "this wallet can send {most} now, fees included, and this is a payment of {amount}; pay less, or receive some first"
    )))
}

impl SignerClient {
    /// An invoice of this wallet. Payers reach it through the coordinator, whichever of its channels has room then.
    ///
    /// # Errors
    /// [`Error::NoLightning`]; [`Error::PaymentRefused`] without a channel, or before the coordinator has said how it is reached.
    pub async fn invoice(&self, options: &InvoiceOptions) -> Result<Invoice> {
        let inner = &self.inner;
        let node = inner.lightning.running()?;
        // It asks for the time that the slowest leaf needs.
        let left = left(inner).await?;
        let stands = |leaf: &LeafView| leaf.stage == Stage::Open && !left.contains(&leaf.id);
        let on_leaf = node.leaves().iter().any(stands);
        if !on_leaf && !node.channels().iter().any(|channel| channel.leaf.is_none()) {
            let text = match left.is_empty() {
                true => {
                    "there is no channel to be paid over; `join` first, or have one opened for the payment (`invoice --jit`)"
                }
                false => {
                    "there is no channel to be paid over that is not being left; `join` another factory, or have a channel opened for the payment (`invoice --jit`)"
                }
            };
            return Err(refused(text));
        }
        let (Some(lsp), Some(route)) = (
            coordinator_of(inner),
            inner.lightning.route.borrow().clone(),
        ) else {
            return Err(refused(
                "the coordinator has not said yet how payments reach this wallet; try again",
            ));
        };
        let request = InvoiceRequest {
            amount: options.amount,
            description: options.description.clone().into(),
            expiry: options.expiry,
            hints: vec![hint(lsp, &route)],
        };
        let text = on_node(node, move |node| node.invoice(&request)).await?;
        let invoice = text.map_err(words)?;
        let view = read_invoice(&invoice, inner.config.network).map_err(words)?;
        let now = inner.now();
        let expires_time = now.time.saturating_add(options.expiry.as_secs());
        let store = &inner.store;
        store
            .record_invoice(view.hash, &options.description, expires_time, now)
            .await?;
        Ok(Invoice {
            invoice,
            hash: view.hash.to_string(),
            amount_msat: options.amount.map(|amount| amount.0),
            expires_time,
        })
    }

    /// Begins to pay a BOLT 11 invoice; `amount` if it leaves it open. [`Self::payment_ended`] waits for the end, events tell of it.
    ///
    /// # Errors
    /// [`Error::NoLightning`]; [`Error::Disconnected`]; [`Error::PaymentRefused`] if nothing was sent: it is no invoice, is paid or under way already, or there is no
    /// room or no way.
    pub async fn pay(&self, invoice: &str, amount: Option<Msat>) -> Result<Payment> {
        let inner = &self.inner;
        let node = inner.lightning.running()?;
        let view = read_invoice(invoice, inner.config.network).map_err(words)?;
        let amount_sent = match (view.amount, amount) {
            (Some(asked), Some(given)) if asked != given => {
                return Err(refused(format!("the invoice asks for {asked}")));
            }
            (Some(asked), _) => asked,
            (None, Some(given)) => given,
            (None, None) => return Err(refused("the invoice names no amount; say how much")),
        };
        if view.payee.serialize() == inner.keys.node_id().0 {
            return Err(refused("this is an invoice of this wallet"));
        }
        let now = inner.now();
        if view.expires_at.is_some_and(|at| at.as_secs() < now.time) {
            return Err(refused("the invoice has expired"));
        }
        reachable(inner, &node)?;
        let open = view.amount.is_none().then_some(amount_sent);
        let paying = inner.lightning.paying.lock().await;
        let tried = inner.store.payment(view.hash, Direction::Out).await?;
        // One that is under way or paid is refused for that.
        if tried.is_none_or(|payment| payment.state == PaymentState::Failed) {
            affordable(&node.channels(), amount_sent)?;
        }
        let known = inner
            .store
            .begin_payment(view.hash, amount_sent, &view.description, now)
            .await?;
        match known {
            None => {}
            Some(PaymentState::Succeeded) => return Err(refused("it is paid already")),
            Some(_) => return Err(refused("it is under way already")),
        }
        fault::point("pay_begun");
        let text = invoice.to_owned();
        let sent = on_node(node, move |node| node.pay(&text, open)).await?;
        drop(paying);
        if let Err(error) = sent {
            let error = words(error);
            self.never_sent(view.hash, &error).await?;
            return Err(error);
        }
        self.begun(view.hash).await
    }

    /// Pays this wallet itself, out over the channel with this BOLT 2 id and back over a leaf: what lies in the one comes to lie in the other. `false`:
    /// it is still under way. `text`: what the payment is called.
    ///
    /// # Errors
    /// As [`Self::pay`], and [`Error::PaymentRefused`] if the coordinator asks for more than `most`.
    pub(crate) async fn go_round(
        &self,
        over: &str,
        (amount, most): (Msat, Msat),
        text: &str,
    ) -> Result<bool> {
        let inner = &self.inner;
        let node = inner.lightning.running()?;
        reachable(inner, &node)?;
        let view = node.channels().into_iter();
        let mut view = view.filter(|view| outside::text(&view.channel) == over);
        let channel = view.next().map(|view| view.channel);
        let channel = channel.ok_or_else(|| refused("there is no such channel"))?;
        let options = InvoiceOptions {
            amount: Some(amount),
            description: text.to_owned(),
            expiry: INVOICE_EXPIRY,
        };
        let invoice = self.invoice(&options).await?;
        let hash = read_invoice(&invoice.invoice, inner.config.network)
            .map_err(words)?
            .hash;
        let paying = inner.lightning.paying.lock().await;
        let store = &inner.store;
        store.begin_payment(hash, amount, text, inner.now()).await?;
        let sent = on_node(node, move |node| {
            node.pay_round(channel, &invoice.invoice, most)
        })
        .await?;
        drop(paying);
        if let Err(error) = sent {
            let error = words(error);
            self.never_sent(hash, &error).await?;
            return Err(error);
        }
        let ended = self.payment_ended(hash, ROUND_PATIENCE).await?;
        match ended.state {
            PaymentState::Failed => Err(refused("the payment to this wallet itself came back")),
            PaymentState::Pending => Ok(false),
            PaymentState::Succeeded => Ok(true),
        }
    }

    /// Begins to pay a node that has given no invoice: the coordinator, or one that the network knows.
    ///
    /// # Errors
    /// As [`Self::pay`].
    pub async fn keysend(&self, to: PublicKey, amount: Msat) -> Result<Payment> {
        let inner = &self.inner;
        let node = inner.lightning.running()?;
        if to.serialize() == inner.keys.node_id().0 {
            return Err(refused("this is this wallet itself"));
        }
        reachable(inner, &node)?;
        affordable(&node.channels(), amount)?;
        // Whoever is behind a leaf needs time for it; others do not mind.
        let exit_delay = self.slowest_exit().await?;
        let now = inner.now();
        let preimage: [u8; 32] = rand::random();
        let hash = PaymentHash(sha256::Hash::hash(&preimage).to_byte_array());
        let paying = inner.lightning.paying.lock().await;
        let store = &inner.store;
        store.begin_payment(hash, amount, "keysend", now).await?;
        let sent = on_node(node, move |node| {
            node.keysend(to, amount, Some(exit_delay), preimage)
        });
        let sent = sent.await?;
        drop(paying);
        if let Err(error) = sent {
            let error = words(error);
            self.never_sent(hash, &error).await?;
            return Err(error);
        }
        self.begun(hash).await
    }

    async fn slowest_exit(&self) -> Result<u32> {
        let mut slowest = 0;
        for row in self.inner.store.factories().await? {
            if row.is_live()
                && let Some(kit) = self.inner.kits.sound(row.factory).await?
            {
                slowest = slowest.max(kit.exit_delay.0);
            }
        }
        Ok(slowest)
    }

    async fn never_sent(&self, hash: PaymentHash, error: &Error) -> Result<()> {
        let end = PaymentEnd::Failed {
            why: error.to_string(),
        };
        let now = self.inner.now();
        self.inner.store.end_payment(hash, &end, now).await?;
        Ok(())
    }

    async fn begun(&self, hash: PaymentHash) -> Result<Payment> {
        let payment = self.inner.store.payment(hash, Direction::Out).await?;
        payment.ok_or_else(|| Error::Task("a payment was not stored".to_owned()))
    }

    /// Waits until a payment of ours has ended, but not longer than this; then it is still [`PaymentState::Pending`].
    ///
    /// # Errors
    /// The store's; [`Error::PaymentRefused`] if there is no such payment.
    pub async fn payment_ended(&self, hash: PaymentHash, patience: Duration) -> Result<Payment> {
        let mut events = self.events();
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let payment = self.inner.store.payment(hash, Direction::Out).await?;
            let payment = payment.ok_or_else(|| refused("there is no such payment"))?;
            if payment.state != PaymentState::Pending || tokio::time::Instant::now() >= deadline {
                return Ok(payment);
            }
            let next = (tokio::time::Instant::now() + LOOK).min(deadline);
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                event = events.recv() => if let Err(RecvError::Closed) = event {
                    // The store says it as well.
                    tokio::time::sleep_until(next).await;
                }
            }
        }
    }

    /// The last payments, both ways, newest first.
    ///
    /// # Errors
    /// The store's.
    pub async fn payments(&self, limit: u32) -> Result<Vec<Payment>> {
        Ok(self.inner.store.payments(limit).await?)
    }

    /// The channels: those that stand, and those whose money is on its way.
    ///
    /// # Errors
    /// The store's.
    pub async fn channels(&self) -> Result<Vec<ChannelView>> {
        views::current(&self.inner).await
    }

    /// What the wallet has on Lightning.
    ///
    /// # Errors
    /// The store's.
    pub async fn lightning_balance(&self) -> Result<LightningBalance> {
        Ok(LightningBalance::of(&self.channels().await?))
    }
}

fn hint(lsp: PublicKey, route: &Route) -> InterceptHint {
    InterceptHint {
        lsp,
        scid: route.intercept_scid,
        cltv_delta: route.cltv_delta,
        base_msat: route.base_msat,
        proportional_millionths: route.proportional_millionths,
    }
}

/// After a start: payments that were recorded, but that the node has never heard of, were never sent. An order's or a purchase's is sent by its desk.
pub(super) async fn settle_payments(client: &Inner) -> Result<()> {
    let Some(node) = client.lightning.node() else {
        return Ok(());
    };
    let _paying = client.lightning.paying.lock().await;
    let pending = client.store.pending_payments().await?;
    if pending.is_empty() {
        return Ok(());
    }
    let known = node.payments();
    let ordered = ordered(&client.store).await?;
    for payment in pending {
        let hash = payment.hash()?;
        if known.iter().any(|view| view.hash == hash) {
            continue;
        }
        if ordered.contains(&payment.hash) {
            client.store.forget_payment(hash).await?;
            continue;
        }
        let reason = "the wallet ended before it was sent".to_owned();
        let end = PaymentEnd::Failed {
            why: reason.clone(),
        };
        if client.store.end_payment(hash, &end, client.now()).await? {
            let hash = hash.to_string();
            client.events.emit(Event::PaymentFailed { hash, reason });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bitcoin::Amount;
    use bitcoin::secp256k1::{Secp256k1, SecretKey};

    use super::*;

    fn channel(spendable: u64, usable: bool) -> Live {
        let secret = SecretKey::from_slice(&[1; 32]).unwrap();
        Live {
            channel: [1; 32],
            leaf: None,
            peer: PublicKey::from_secret_key(&Secp256k1::new(), &secret),
            outpoint: None,
            capacity: Amount::from_sat(100_000),
            balance: Msat(spendable),
            spendable: Msat(spendable),
            receivable: Msat(0),
            usable,
            confirmations: 1,
            announced: false,
            our_reserve: None,
            their_reserve: 0,
            pending: 0,
        }
    }

    #[test]
    fn more_than_all_channels_can_send_is_refused_with_what_they_can() {
        let channels = [
            channel(1_000_000, true),
            channel(715_500, true),
            channel(1, false),
        ];
        affordable(&channels, Msat(1_715_500)).unwrap();
        // Perhaps in a moment.
        let early = affordable(&channels, Msat(1_715_501)).unwrap_err();
        assert!(matches!(early, Error::Disconnected(_)), "{early}");
        let error = affordable(&channels, Msat(1_715_502)).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        let text = error.to_string();
        assert!(text.contains("can send 1715.500 sat now"), "{text}");
        assert!(text.contains("a payment of 1715.502 sat"), "{text}");
    }
}
