//! What whoever embeds the wallet calls to have a channel from a stock, or else from the chain.

use std::collections::HashSet;

use bitcoin::{Amount, OutPoint};
use channel_host::{AskError, Msat, read_invoice};
use factory_tree::sale::order::PaidBy;
use factory_tree::tx::checked_sum;
use factory_tree::units::Height;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::OrderError;
use super::desk::{UNKNOWN_METHOD, bring};
use super::terms::{Answer, Asked, Info, Wanted, pays};
use crate::client::SignerClient;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::fault;
use crate::lightning::{LightningBalance, coordinator_of, words};
use crate::migration::calendar;
use crate::sales::{
    LimitQuote, OtherOrder, UpgradeOptions, buy_for, is_for_now, is_in_use, quote_for,
};
use crate::store::{OrderRow, OrderState, SharedStore};

/// What a channel would cost, wherever it comes from. Nothing is agreed to yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelQuote {
    /// The order's id.
    pub order: String,
    /// What the channel holds, all of it to be received.
    pub capacity_sat: u64,
    /// The price.
    pub fee_msat: u64,
    /// For so many blocks the coordinator keeps it open.
    pub blocks: u32,
    /// Until when it can be paid, in Unix time.
    pub valid_until: u64,
    /// The invoice.
    pub invoice: String,
    /// Whether it is to come with the next factory; otherwise from a stock, or from the chain.
    pub at_birth: bool,
    /// From which stock it is to come, if that can be.
    pub stock: Option<LimitQuote>,
    /// Why not, if it cannot.
    pub no_stock: Option<String>,
}

/// An order, as it is told of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderView {
    /// Its id.
    pub order: String,
    /// What the channel holds.
    pub capacity_sat: u64,
    /// What it costs.
    pub fee_msat: u64,
    /// How far it is.
    pub state: OrderState,
    /// The channel's funding, as the coordinator says it.
    pub funding: Option<OutPoint>,
    /// What it waits for, or why nothing came of it.
    pub note: String,
    /// The hash of the payment, in hexadecimal digits.
    pub hash: String,
    /// Unix time at which it began.
    pub created_time: u64,
    /// Unix time at which it ended.
    pub ended_time: Option<u64>,
}

impl OrderView {
    /// Whether it has come to an end.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.ended_time.is_some()
    }
}

impl From<OrderRow> for OrderView {
    fn from(row: OrderRow) -> Self {
        Self {
            order: row.id,
            capacity_sat: row.capacity.to_sat(),
            fee_msat: row.fee_msat,
            state: row.state,
            funding: row.funding,
            note: row.note,
            hash: row.hash.to_string(),
            created_time: row.created_time,
            ended_time: row.ended_time,
        }
    }
}

/// All orders, oldest first, from a store.
///
/// # Errors
/// The store's.
pub(crate) async fn orders(store: &SharedStore) -> Result<Vec<OrderView>> {
    let rows = store.orders().await?.into_iter();
    Ok(rows.map(OrderView::from).collect())
}

/// The id of an order that is under way, if one is.
///
/// # Errors
/// The store's.
pub(crate) async fn open(store: &SharedStore) -> Result<Option<String>> {
    let rows = store.orders().await?.into_iter();
    let mut open = rows.filter(|row| !row.is_over());
    Ok(open.next().map(|row| row.id))
}

/// What comes with the next factory, of what is paid for or being paid.
///
/// # Errors
/// The store's.
pub(crate) async fn bought_at_birth(store: &SharedStore) -> Result<Amount> {
    let rows = store.orders().await?.into_iter();
    let open = rows.filter(|row| row.at_birth && row.state == OrderState::Paid);
    let sum = checked_sum(open.map(|row| row.capacity));
    Ok(sum.unwrap_or(Amount::MAX_MONEY))
}

/// The payments, as they are listed, of orders and purchases that are not over.
///
/// # Errors
/// The store's.
pub(crate) async fn ordered(store: &SharedStore) -> Result<HashSet<String>> {
    let orders = store.orders().await?.into_iter();
    let orders = orders.filter(|row| !row.is_over()).map(|row| row.hash);
    let purchases = store.purchases().await?.into_iter();
    let purchases = purchases
        .filter(|row| !row.is_over())
        .filter_map(|row| row.hash);
    // What was bought from a stock by an order has the order's hash.
    let hashes = orders.chain(purchases).map(|hash| hash.to_string());
    Ok(hashes.collect())
}

/// What the coordinator holds of payments for orders and purchases that are under way, until their channel is there.
///
/// # Errors
/// The store's.
pub(crate) async fn held(store: &SharedStore) -> Result<Msat> {
    let hashes = ordered(store).await?;
    let pending = store.pending_payments().await?.into_iter();
    let held = pending.filter(|payment| hashes.contains(&payment.hash));
    let sum = held.fold(0, |sum: u64, payment| {
        sum.saturating_add(payment.amount_msat)
    });
    Ok(Msat(sum))
}

impl SignerClient {
    /// Asks what a channel of `amount`, all of it to be received, costs, and whether it can come from the stock of a factory; or what one costs that comes
    /// with the next factory (`at_birth`), for which the payment is held a day or two. The coordinator promises it; nothing is agreed to.
    ///
    /// # Errors
    /// [`Error::Order`]; [`Error::NoLightning`]; [`Error::Asked`] when the coordinator refuses, or is away.
    pub async fn quote_channel(&self, amount: Amount, at_birth: bool) -> Result<ChannelQuote> {
        let inner = &self.inner;
        let coordinator = coordinator_of(inner).ok_or(OrderError::NotOffered)?;
        let info: Info = self.ask_order("lsps1.get_info", &json!({})).await?;
        let lives = self.longest_life(at_birth).await?;
        let wanted = if at_birth {
            Wanted::Birth(lives)
        } else {
            Wanted::Stock(lives)
        };
        let asked = Asked::new(&info, amount, wanted)?;
        let answer: Answer = self
            .ask_order("lsps1.create_order", &asked.params())
            .await?;
        let invoice = read_invoice(answer.invoice(), inner.config.network)
            .map_err(|error| OrderError::Answer(error.to_string()))?;
        let fee = answer.price(&asked, &invoice, coordinator)?;
        let other = OtherOrder {
            paid_by: PaidBy::Lsps1(answer.order_id.clone()),
            hash: invoice.hash,
            amount,
            least: amount,
        };
        let (stock, no_stock) = match at_birth {
            true => (None, None),
            false => match quote_for(self, &other).await {
                Ok(quote) => (Some(quote), None),
                Err(error) => (None, Some(error.to_string())),
            },
        };
        Ok(ChannelQuote {
            capacity_sat: amount.to_sat(),
            fee_msat: fee.0,
            blocks: asked.blocks,
            valid_until: invoice.expires_at.map_or(0, |at| at.as_secs()),
            invoice: answer.invoice().to_owned(),
            order: answer.order_id,
            at_birth,
            stock,
            no_stock,
        })
    }

    /// Takes what was quoted: stores it, orders from the stock, has the node accept the ordinary channel that comes otherwise, and begins to pay. The rest
    /// goes on by itself, through restarts too; events and [`Self::orders`] tell how far it is. The same quote again is the same order.
    ///
    /// # Errors
    /// [`Error::Order`]; [`Error::NoLightning`]; [`Error::Asked`] or [`Error::PaymentRefused`] when nothing was ordered.
    pub async fn order_channel(
        &self,
        quote: &ChannelQuote,
        options: UpgradeOptions,
    ) -> Result<OrderView> {
        let inner = &self.inner;
        inner.lightning.running()?;
        let _turn = inner.orders.lock().await;
        if self.find(&quote.order).await?.is_none() {
            self.agree(quote, options).await?;
        }
        match bring(self, &quote.order, true).await {
            // It is stored, and goes on by itself.
            Err(error) if is_for_now(&error) => {
                tracing::info!(%error, "the order goes on later");
            }
            done => done?,
        }
        let view = self.find(&quote.order).await?;
        Ok(view.ok_or_else(|| OrderError::Answer("it is not stored".to_owned()))?)
    }

    /// All orders of channels, oldest first.
    ///
    /// # Errors
    /// The store's.
    pub async fn orders(&self) -> Result<Vec<OrderView>> {
        orders(&self.inner.store).await
    }

    async fn find(&self, id: &str) -> Result<Option<OrderView>> {
        let known = self.orders().await?.into_iter();
        let mut known = known.filter(|order| order.order == id);
        Ok(known.next())
    }

    /// Stores what the user agreed to: what comes from a stock, and then the order itself, which is paid from now on.
    async fn agree(&self, quote: &ChannelQuote, options: UpgradeOptions) -> Result<()> {
        let inner = &self.inner;
        let coordinator = coordinator_of(inner).ok_or(OrderError::NotOffered)?;
        let invoice = read_invoice(&quote.invoice, inner.config.network).map_err(words)?;
        let fee_msat = quote.fee_msat;
        pays(&invoice, Msat(fee_msat), coordinator)?;
        if let Some(Msat(max_msat)) = options.max_fee.filter(|max| fee_msat > max.0) {
            return Err(OrderError::Fee { fee_msat, max_msat }.into());
        }
        let spendable_msat = LightningBalance::of(&self.channels().await?).lightning_spendable_msat;
        if fee_msat > spendable_msat {
            return Err(OrderError::Balance {
                fee_msat,
                spendable_msat,
            }
            .into());
        }
        let capacity = Amount::from_sat(quote.capacity_sat);
        let other = OtherOrder {
            paid_by: PaidBy::Lsps1(quote.order.clone()),
            hash: invoice.hash,
            amount: capacity,
            least: capacity,
        };
        // Without it the channel comes from the chain.
        if let Some(stock) = &quote.stock
            && let Err(error) = buy_for(self, &stock.signed, &other, options.consent).await
        {
            tracing::info!(%error, "the channel comes from no stock so far");
        }
        let row = OrderRow {
            id: quote.order.clone(),
            capacity,
            fee_msat,
            hash: invoice.hash,
            invoice: quote.invoice.clone(),
            at_birth: quote.at_birth,
            state: OrderState::Ordered,
            funding: None,
            note: "being paid".to_owned(),
            created_time: inner.now().time,
            ended_time: None,
        };
        inner.store.add_order(&row).await?;
        fault::point("order_stored");
        inner.events.emit(Event::ChannelOrdered {
            order: row.id,
            capacity_sat: quote.capacity_sat,
            fee_msat,
        });
        Ok(())
    }

    /// Blocks until the end of the factory that ends last, of those that can be bought in; less its exit delay, which a payment must leave room for.
    /// With `whole`, from its birth.
    async fn longest_life(&self, whole: bool) -> Result<Option<u32>> {
        let inner = &self.inner;
        let tip = Height(inner.followed_height());
        let mut longest = None;
        for row in inner.store.factories().await? {
            if is_in_use(inner, &row).await?
                && let Some(kit) = inner.kits.sound(row.factory).await?
            {
                let calendar = calendar(&kit);
                let last = calendar.expiry.minus(calendar.exit_delay);
                let from = if whole { calendar.birth } else { tip };
                longest = longest.max(Some(last.0.saturating_sub(from.0)));
            }
        }
        Ok(longest)
    }

    pub(super) async fn ask_order<T: serde::de::DeserializeOwned>(
        &self,
        method: &str,
        params: &Value,
    ) -> Result<T> {
        let answer: Value = match self.ask_coordinator(method, params).await {
            Err(Error::Asked(AskError::Refused(error))) if error.code == UNKNOWN_METHOD => {
                return Err(OrderError::NotOffered.into());
            }
            answer => answer?,
        };
        serde_json::from_value(answer)
            .map_err(|error| OrderError::Answer(format!("{method}: {error}")).into())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use channel_host::PaymentHash;

    use super::*;
    use crate::store::{Moment, PaymentEnd, SqliteStore};

    #[tokio::test]
    async fn what_is_paid_for_an_order_is_held_until_the_payment_ends() {
        let store: SharedStore = Arc::new(SqliteStore::in_memory().await.unwrap());
        let (ordered, other) = (PaymentHash([1; 32]), PaymentHash([2; 32]));
        let row = OrderRow {
            id: "b7a1".to_owned(),
            capacity: Amount::from_sat(150_000),
            fee_msat: 2_500_000,
            hash: ordered,
            invoice: "lnbcrt".to_owned(),
            at_birth: true,
            state: OrderState::Paid,
            funding: None,
            note: String::new(),
            created_time: 7,
            ended_time: None,
        };
        store.add_order(&row).await.unwrap();
        assert_eq!(held(&store).await.unwrap(), Msat(0));
        let now = Moment { height: 9, time: 8 };
        for (hash, amount) in [(ordered, 2_500_000), (other, 1_000)] {
            let begun = store.begin_payment(hash, Msat(amount), "", now);
            begun.await.unwrap();
        }
        assert_eq!(held(&store).await.unwrap(), Msat(2_500_000));
        let why = "it came back".to_owned();
        let end = PaymentEnd::Failed { why };
        store.end_payment(ordered, &end, now).await.unwrap();
        assert_eq!(held(&store).await.unwrap(), Msat(0));
    }
}
