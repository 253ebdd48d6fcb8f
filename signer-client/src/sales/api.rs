//! What whoever embeds the wallet calls to receive more.

use bitcoin::Amount;
use channel_host::Msat;
use factory_tree::ids::{FactoryId, LeafId, SaleId};
use factory_tree::kit::ExitKit;
use factory_tree::sale::order::{PaidBy, PurchaseState, Quote, QuoteRequest, SignedQuote, method};
use factory_tree::units::Height;
use rand::RngCore;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::desk::Desk;
use super::quote::{Expected, LimitQuote, fits, read};
use super::shop::Shop;
use super::{LimitView, QuoteRefusal, SaleError, limit, offers, top_up};
use crate::client::{Inner, SignerClient};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::fault;
use crate::lightning::{LightningBalance, coordinator_of, stored};
use crate::store::{Direction, PurchaseRow, PurchaseTerms, SharedStore};

/// On which terms to buy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UpgradeOptions {
    /// The user accepts to hold more than is covered if the coordinator breaks off.
    pub consent: bool,
    /// The most that may be paid.
    pub max_fee: Option<Msat>,
}

/// A purchase, as it is told of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurchaseView {
    /// The sale.
    pub sale: SaleId,
    /// In which factory.
    pub factory: FactoryId,
    /// The new channel's leaf id.
    pub leaf: LeafId,
    /// What the channel holds.
    pub capacity_sat: u64,
    /// What it costs.
    pub fee_msat: u64,
    /// Whether the wallet bought it by itself.
    pub automatic: bool,
    /// How far it is.
    pub state: PurchaseState,
    /// What it waits for, or why nothing came of it.
    pub note: String,
    /// The invoice, once there is one.
    pub invoice: Option<String>,
    /// The hash of the payment, in hexadecimal digits.
    pub hash: Option<String>,
    /// Unix time at which it began.
    pub created_time: u64,
    /// Unix time at which it ended.
    pub ended_time: Option<u64>,
}

impl PurchaseView {
    /// Whether it has come to an end.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        matches!(
            self.state,
            PurchaseState::Settled | PurchaseState::Cancelled
        )
    }

    async fn of(store: &SharedStore, row: PurchaseRow) -> Result<Self> {
        let quote = Quote::parse(&row.quote.text).map_err(QuoteRefusal::from);
        let quote = quote.map_err(SaleError::from)?;
        // Stored before the payment begins.
        let begun = match row.hash {
            Some(_) if row.paid_by().jit().is_some() => false,
            Some(hash) => store.payment(hash, Direction::Out).await?.is_some(),
            None => false,
        };
        let state = match row.state {
            PurchaseState::Paid if !begun => PurchaseState::Ordered,
            state => state,
        };
        Ok(Self {
            sale: row.sale,
            factory: row.factory,
            leaf: row.leaf_id,
            capacity_sat: quote.capacity.to_sat(),
            fee_msat: quote.fee_msat,
            automatic: row.automatic,
            state,
            note: row.note,
            invoice: row.invoice,
            hash: row.hash.map(|hash| hash.to_string()),
            created_time: row.created_time,
            ended_time: row.ended_time,
        })
    }
}

/// All purchases, oldest first, from a store.
///
/// # Errors
/// The store's.
pub(crate) async fn purchases(store: &SharedStore) -> Result<Vec<PurchaseView>> {
    let mut views = Vec::new();
    for row in store.purchases().await? {
        views.push(PurchaseView::of(store, row).await?);
    }
    Ok(views)
}

impl SignerClient {
    /// What this wallet can receive, and what of it is covered.
    ///
    /// # Errors
    /// The store's.
    pub async fn limit(&self) -> Result<LimitView> {
        let inner = &self.inner;
        let mut view = limit(&inner.store, &inner.kits, &self.channels().await?).await?;
        view.top_up = top_up::view(inner).await?;
        Ok(view)
    }

    /// Asks what a channel of `amount`, all of it to be received, would cost: in this factory, or in the one the coordinator chooses.
    ///
    /// # Errors
    /// [`Error::Sale`]; [`Error::NoLightning`]; [`Error::Asked`] when the coordinator refuses, or is away.
    pub async fn quote_limit(
        &self,
        factory: Option<FactoryId>,
        amount: Amount,
    ) -> Result<LimitQuote> {
        quote_from(&self.inner, self, factory, amount).await
    }

    /// Buys what was quoted: stores the purchase, orders, looks at the invoice and begins to pay it. The rest goes on by itself, through
    /// restarts too; events and [`Self::purchases`] tell how far it is. The same quote again is the same purchase.
    ///
    /// # Errors
    /// [`Error::Sale`]; [`Error::NoLightning`]; [`Error::Asked`] or [`Error::PaymentRefused`] when nothing was bought.
    pub async fn upgrade_limit(
        &self,
        quote: &SignedQuote,
        options: UpgradeOptions,
    ) -> Result<PurchaseView> {
        let inner = &self.inner;
        inner.lightning.running()?;
        let spendable = LightningBalance::of(&self.channels().await?).lightning_spendable_msat;
        buy(inner, self, quote, options, Msat(spendable)).await
    }

    /// All purchases, oldest first.
    ///
    /// # Errors
    /// The store's.
    pub async fn purchases(&self) -> Result<Vec<PurchaseView>> {
        purchases(&self.inner.store).await
    }

    /// Takes a purchase back, while that is possible.
    ///
    /// # Errors
    /// [`SaleError::TooLate`]; [`SaleError::Unknown`]; [`Error::NoLightning`]; [`Error::Asked`] when the coordinator is away.
    pub async fn cancel_purchase(&self, sale: SaleId) -> Result<PurchaseView> {
        self.inner.lightning.running()?;
        let _turn = self.inner.sales.turn.lock().await;
        Desk::new(&self.inner, self).cancel(sale).await?;
        view(&self.inner, sale).await
    }
}

async fn view(client: &Inner, sale: SaleId) -> Result<PurchaseView> {
    let row = client.store.purchase(sale).await?;
    PurchaseView::of(&client.store, row.ok_or(SaleError::Unknown(sale))?).await
}

/// Asks for a quote, and judges it.
pub(super) async fn quote_from(
    client: &Inner,
    shop: &dyn Shop,
    factory: Option<FactoryId>,
    amount: Amount,
) -> Result<LimitQuote> {
    if coordinator_of(client).is_none() {
        return Err(SaleError::NoCoordinator.into());
    }
    match factory {
        Some(factory) => drop(place(client, factory).await?),
        None => {
            let rows = client.store.factories().await?;
            if !rows.iter().any(|row| row.stands()) {
                return Err(SaleError::NoFactory.into());
            }
        }
    }
    let request = json!(QuoteRequest {
        factory,
        amount_sat: amount.to_sat(),
        paid_by: PaidBy::Invoice,
    });
    let answer = shop.ask(method::QUOTE, &request).await?;
    let signed: SignedQuote = serde_json::from_value(answer)
        .map_err(|error| Error::Handshake(format!("a quote that is none: {error}")))?;
    judge(client, &signed, factory, Some(amount)).await
}

/// A factory in which can be bought.
async fn place(client: &Inner, factory: FactoryId) -> Result<std::sync::Arc<ExitKit>> {
    let row = client.store.factory(factory).await?;
    let unfit = |why| SaleError::Unfit { factory, why };
    if let Some(found) = offers::unfit(client, &row).await? {
        return Err(unfit(found.why).into());
    }
    let kit = client.kits.sound(factory).await?;
    Ok(kit.ok_or_else(|| unfit("its exit kit is not good any more".to_owned()))?)
}

/// Whether a quote is one to take.
pub(super) async fn judge(
    client: &Inner,
    signed: &SignedQuote,
    factory: Option<FactoryId>,
    amount: Option<Amount>,
) -> Result<LimitQuote> {
    let expected = Expected {
        coordinator: coordinator_of(client).ok_or(SaleError::NoCoordinator)?,
        client: client.keys.node_id(),
        factory,
        amount,
        now: client.now().time,
    };
    let quote = read(signed, &expected).map_err(SaleError::from)?;
    let kit = place(client, quote.factory).await?;
    let tip = Height(client.followed_height());
    let found = {
        let (quote, channels) = (quote.clone(), stored(&client.store, false).await?);
        tokio::task::spawn_blocking(move || fits(&quote, &kit, &channels, tip)).await
    };
    let after = found
        .map_err(|error| Error::Task(error.to_string()))?
        .map_err(SaleError::from)?;
    Ok(LimitQuote {
        signed: signed.clone(),
        quote,
        needs_consent: after.needs_consent(),
        after: after.into(),
    })
}

/// Buys. `spendable`: what can be sent now.
pub(super) async fn buy(
    client: &Inner,
    shop: &dyn Shop,
    signed: &SignedQuote,
    options: UpgradeOptions,
    spendable: Msat,
) -> Result<PurchaseView> {
    let _turn = client.sales.turn.lock().await;
    buy_in_turn(client, shop, signed, options, spendable, false).await
}

/// The same for who has the turn.
pub(super) async fn buy_in_turn(
    client: &Inner,
    shop: &dyn Shop,
    signed: &SignedQuote,
    options: UpgradeOptions,
    spendable: Msat,
    automatic: bool,
) -> Result<PurchaseView> {
    let text = Quote::parse(&signed.text).map_err(QuoteRefusal::from);
    let sale = text.map_err(SaleError::from)?.sale;
    let known = client.store.purchase(sale).await?;
    // What is under way, or done, on this very quote is not bought a second time.
    let same = known.filter(|row| row.quote == *signed && row.state != PurchaseState::Cancelled);
    if same.is_none() {
        let judged = judge(client, signed, None, None).await?;
        affordable(&judged, options, spendable)?;
        let terms = PurchaseTerms {
            consent: options.consent,
            automatic,
            other: None,
        };
        remember(client, &judged, terms).await?;
    }
    match Desk::new(client, shop).bring(sale, true).await {
        // It is stored, and goes on by itself.
        Err(error) if is_for_now(&error) => {
            tracing::info!(%error, "the purchase goes on later");
        }
        done => done?,
    }
    view(client, sale).await
}

/// Whether what went wrong may go right later.
pub(crate) const fn is_for_now(error: &Error) -> bool {
    matches!(
        error,
        Error::Asked(channel_host::AskError::Away(_) | channel_host::AskError::Silent(_))
            | Error::NoLightning(_)
            | Error::Disconnected(_)
            | Error::Lightning(_)
    )
}

fn affordable(
    judged: &LimitQuote,
    options: UpgradeOptions,
    spendable: Msat,
) -> Result<(), SaleError> {
    let fee_msat = judged.quote.fee_msat;
    if let Some(Msat(max_msat)) = options.max_fee.filter(|max| fee_msat > max.0) {
        return Err(SaleError::Fee { fee_msat, max_msat });
    }
    if fee_msat > spendable.0 {
        let spendable_msat = spendable.0;
        return Err(SaleError::Balance {
            fee_msat,
            spendable_msat,
        });
    }
    judged.agreed(options.consent)
}

/// Stores the purchase, with a place for its channel, which is returned. A sale that was given up keeps its place: somebody may have signed for it.
pub(super) async fn remember(
    client: &Inner,
    judged: &LimitQuote,
    terms: PurchaseTerms,
) -> Result<LeafId> {
    let (quote, store) = (&judged.quote, &client.store);
    let sale = quote.sale;
    let place = if let Some(known) = store.purchase(sale).await? {
        let renewed = store.renew_purchase(sale, &judged.signed, terms);
        if !renewed.await? {
            let why = "it is paid for on an earlier quote".to_owned();
            return Err(SaleError::TooLate { sale, why }.into());
        }
        known.leaf_id
    } else {
        let mut nonce = [0; 16];
        OsRng.fill_bytes(&mut nonce);
        let leaf_id = LeafId::derive(&nonce, 0);
        let channel_key = offers::place_at(client, leaf_id).channel_key;
        store
            .add_purchase(&PurchaseRow {
                sale,
                factory: quote.factory,
                nonce,
                leaf_id,
                channel_key,
                quote: judged.signed.clone(),
                consent: terms.consent,
                automatic: terms.automatic,
                hash: terms.other,
                invoice: None,
                state: PurchaseState::Ordered,
                note: "being ordered".to_owned(),
                created_time: client.now().time,
                ended_time: None,
            })
            .await?;
        leaf_id
    };
    fault::point("purchase_stored");
    client.events.emit(Event::PurchaseOrdered {
        sale,
        factory: quote.factory,
        capacity_sat: quote.capacity.to_sat(),
        fee_msat: quote.fee_msat,
        automatic: terms.automatic,
    });
    Ok(place)
}
