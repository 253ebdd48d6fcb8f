//! What an offer is judged by, beside the rules of the machine: this wallet's own purchases, and whether the factory is one to sign in.

use std::sync::Arc;

use bitcoin::Amount;
use bitcoin::OutPoint;
use factory_tree::ceremony::message::DeclineReason;
use factory_tree::ids::{FactoryId, LeafId, SaleId};
use factory_tree::kit::ExitKit;
use factory_tree::output::OutputRole;
use factory_tree::sale::Sale;
use factory_tree::sale::message::Offer;
use factory_tree::sale::order::{PurchaseState, Quote};
use factory_tree::sale::rules::{Agreed, Place, Role, SaleRule};
use factory_tree::units::Height;

use crate::client::Inner;
use crate::error::Result;
use crate::migration::calendar;
use crate::store::{Direction, FactoryRow, PaymentState, PurchaseRow};

/// The stock that a kit's client shares.
fn stock_of(kit: &ExitKit) -> Option<OutPoint> {
    let leaf = kit.path().last()?;
    let mut own = kit.own_outputs(leaf);
    let found = own.find(|(_, output, _)| output.role == OutputRole::Stock);
    found.map(|(outpoint, ..)| outpoint)
}

/// The factory whose stock this is.
pub(super) async fn find(
    client: &Inner,
    stock: OutPoint,
) -> Result<Option<(FactoryRow, Arc<ExitKit>)>> {
    for row in client.store.factories().await? {
        if let Some(kit) = client.kits.sound(row.factory).await?
            && stock_of(&kit) == Some(stock)
        {
            return Ok(Some((row, kit)));
        }
    }
    Ok(None)
}

/// What this wallet has signed already in the place of an offered sale, on other terms: by them a mate that plays along could be paid the same coins.
pub(super) async fn sold_before(
    client: &Inner,
    kit: &ExitKit,
    offered: &Sale,
) -> Result<Option<String>> {
    let pending = client.store.pending_sales().await?;
    let pending = pending.iter().map(|(_, pending)| &pending.sale);
    let place = (offered.stock, offered.number);
    let mut signed = pending.chain(&kit.sales);
    let other = signed.find(|sale| (sale.stock, sale.number) == place && **sale != *offered);
    Ok(other.map(|sale| {
        let number = offered.number;
        format!(
            "it is sale {number} of the stock that this wallet signed as {}, once more as {}",
            sale.id, offered.id
        )
    }))
}

/// Whether this wallet shares a stock in a factory.
pub(super) async fn shares_stock(client: &Inner, factory: FactoryId) -> Result<bool> {
    let kit = client.kits.sound(factory).await?;
    Ok(kit.is_some_and(|kit| stock_of(&kit).is_some()))
}

/// Why nothing is signed in a factory.
#[derive(Debug)]
pub(super) struct Unfit {
    /// In words that go on from "the factory".
    pub why: String,
    /// Whether it stays so: the coordinator need not ask again.
    lasts: bool,
}

impl Unfit {
    /// What the coordinator is told.
    pub(super) fn reason(self, factory: FactoryId) -> DeclineReason {
        let text = format!("factory {factory}: {}", self.why);
        match self.lasts {
            true => DeclineReason::Terms(text),
            false => DeclineReason::Unable(text),
        }
    }
}

/// Why nothing is signed in a factory now.
pub(super) async fn unfit(client: &Inner, row: &FactoryRow) -> Result<Option<Unfit>> {
    let factory = row.factory;
    let unfit = |lasts, why: &str| {
        let why = why.to_owned();
        Ok(Some(Unfit { why, lasts }))
    };
    let exits = client.store.exits().await?;
    if exits.iter().any(|exit| exit.factory == factory) {
        return unfit(true, "it is being left");
    }
    if !row.stands() {
        return unfit(false, &format!("it is {}", row.state()));
    }
    if client.followed_height() == 0 {
        return unfit(false, "the chain is not followed yet");
    }
    let spends = client.store.spends().await?;
    if spends.iter().any(|spend| spend.outpoint == row.funding) {
        return unfit(true, "it is on the chain");
    }
    let moves = client.store.moves().await?;
    if moves.iter().any(|begun| begun.from == factory) {
        return unfit(false, "its balance moves to another");
    }
    Ok(None)
}

/// Whether a factory is one to have more in: it stands, and is neither left nor near its end.
pub(crate) async fn is_in_use(client: &Inner, row: &FactoryRow) -> Result<bool> {
    if unfit(client, row).await?.is_some() {
        return Ok(false);
    }
    let kit = client.kits.sound(row.factory).await?;
    let tip = Height(client.followed_height());
    Ok(kit.is_some_and(|kit| tip < calendar(&kit).dying_from))
}

/// Whether a purchase is one that we pay for; what a just-in-time order pays for is the coordinator's to say.
async fn is_paid(client: &Inner, row: &PurchaseRow) -> Result<bool> {
    if row.paid_by().jit().is_some() {
        return Ok(!row.is_over());
    }
    let (true, Some(hash)) = (
        matches!(row.state, PurchaseState::Paid | PurchaseState::Sold),
        row.hash,
    ) else {
        return Ok(false);
    };
    let payment = client.store.payment(hash, Direction::Out).await?;
    Ok(payment.is_some_and(|payment| payment.state != PaymentState::Failed))
}

/// Whether a leaf id had a channel, or is to have another.
async fn is_used(client: &Inner, leaf: LeafId, sale: SaleId) -> Result<bool> {
    let joins = client.store.joins().await?;
    if joins.iter().any(|join| join.leaf_id == leaf) {
        return Ok(true);
    }
    let purchases = client.store.purchases().await?;
    let other = |row: &PurchaseRow| row.leaf_id == leaf && row.sale != sale;
    if purchases.iter().any(other) {
        return Ok(true);
    }
    for row in client.store.factories().await? {
        if let Some(kit) = client.kits.sound(row.factory).await?
            && kit.channels().iter().any(|channel| channel.leaf_id == leaf)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Where the bonus channel of an offer is to be, if this wallet drew the place, and it is for this sale from now on. One that it did not draw is
/// refused.
async fn bonus_place(
    client: &Inner,
    factory: FactoryId,
    kit: &ExitKit,
    offer: &Offer,
) -> Result<Option<Place>> {
    let Some(bonus) = offer.sale.channel_of(kit.position) else {
        return Ok(None);
    };
    let (leaf_id, sale) = (bonus.leaf_id, offer.round.sale);
    let taken = client.store.take_bonus_place(factory, leaf_id, sale);
    Ok(taken.await?.then(|| place_at(client, leaf_id)))
}

/// The place of a channel on a leaf of this wallet's.
pub(super) fn place_at(client: &Inner, leaf_id: LeafId) -> Place {
    let keys = client.keys.leaf_keys();
    Place {
        leaf_id,
        channel_key: keys.funding_pubkey(leaf_id.as_u128()),
    }
}

/// What this wallet agreed to.
pub(super) async fn agreed(
    client: &Inner,
    factory: FactoryId,
    kit: &ExitKit,
    offer: &Offer,
) -> Result<std::result::Result<Agreed, DeclineReason>> {
    let tip = Height(client.followed_height());
    if offer.sale.bought.position != kit.position {
        return Ok(Ok(Agreed {
            role: Role::Mate {
                least_bonus: Amount::from_sat(client.config.sales.least_bonus_sat),
            },
            // Nobody was asked about a bonus.
            consent: false,
            place: bonus_place(client, factory, kit, offer).await?,
            // No sale is offered the place of another.
            place_used: false,
            tip,
        }));
    }
    let refused = |rule: SaleRule, found: String| {
        let rule = rule.name().to_owned();
        Ok(Err(DeclineReason::Refused { rule, found }))
    };
    let purchase = client.store.purchase(offer.round.sale).await?;
    let Some(purchase) = purchase.filter(|row| row.factory == factory) else {
        return refused(SaleRule::Members, "nothing was ordered".to_owned());
    };
    if !is_paid(client, &purchase).await? {
        return refused(
            SaleRule::Members,
            "what was ordered is not paid for".to_owned(),
        );
    }
    let quote = match Quote::parse(&purchase.quote.text) {
        Ok(quote) => quote,
        Err(error) => return refused(SaleRule::Members, error.to_string()),
    };
    if tip > quote.sign_until {
        let found = format!("the tip is {tip}, the quote was until {}", quote.sign_until);
        return refused(SaleRule::Deadline, found);
    }
    Ok(Ok(Agreed {
        role: Role::Buyer {
            ordered: quote.asked,
        },
        consent: purchase.consent,
        place: Some(Place {
            leaf_id: purchase.leaf_id,
            channel_key: purchase.channel_key,
        }),
        place_used: is_used(client, purchase.leaf_id, purchase.sale).await?,
        tip,
    }))
}
