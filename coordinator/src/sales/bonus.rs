//! Bonus channels: what the clients get that sign with a buyer, for being there. Never what a sale fails of: where something is in their way, it has
//! none.

use bitcoin::Amount;
use channel_host::read_params;
use factory_tree::ids::ClientId;
use factory_tree::sale::order::{BonusPlace, BonusPlaced, Quote};
use serde_json::{Map, Value};

use super::error::{NoSale, SalesError};
use super::stocks::KnownStock;
use super::{order, quote, to_json};
use crate::context::Context;
use crate::event::Event;
use crate::lsps::Refusal;
use crate::store::bonus as rows;
use crate::store::sales::{ClientChannel, NewSale, SaleRow};
use crate::store::{self, Conn, StoreError, factories};

/// `superscalar.bonus_place`. Kept whether or not there are bonuses now: the operator may give some tomorrow.
///
/// # Errors
/// Why it is none, and those of the parameters and the database.
pub async fn bonus_place(
    ctx: &Context,
    client: ClientId,
    params: Map<String, Value>,
) -> Result<Value, Refusal> {
    let place: BonusPlace = read_params(params, &["factory", "leaf_id", "channel_key"])?;
    if !ctx.config.sales.enabled {
        return Err(SalesError::from(NoSale::Off).into());
    }
    let stored = ctx.store.write(async |tx| {
        let members = factories::clients(tx, place.factory).await?;
        let mut places = (0u32..).zip(members);
        let Some((position, _)) = places.find(|(_, member)| *member == client) else {
            return Ok(Err(NoSale::NoFactory));
        };
        let stored = rows::want(tx, client, position, &place).await?;
        Ok(stored.then_some(()).ok_or(NoSale::Used))
    });
    stored
        .await
        .map_err(SalesError::from)?
        .map_err(SalesError::from)?;
    ctx.events.emit(Event::BonusPlace {
        client,
        factory: place.factory,
    });
    to_json(&BonusPlaced {})
}

/// Decides what the sale of an order makes for those who sign with the buyer, and stores it. Decided once: terms do not change.
///
/// # Errors
/// Those of the database.
pub(super) async fn decide(
    ctx: &Context,
    tx: &mut Conn,
    row: &SaleRow,
    known: &KnownStock,
) -> store::Result<()> {
    // What was begun goes on as it was.
    if row.bound.is_some() {
        return Ok(());
    }
    let order = &row.order;
    let mut given = rows::wanted(tx, order.factory, &known.stock.clients()).await?;
    given.retain(|bonus| bonus.client != order.client);
    for bonus in &mut given {
        let price = quote::price_in(tx, bonus.client, ctx.config.sales.price()).await?;
        bonus.capacity = Amount::from_sat(price.bonus_sat);
    }
    given.retain(|bonus| bonus.capacity > Amount::ZERO);
    let quote = Quote::parse(&order.quote).map_err(|error| StoreError::value("quote", error))?;
    if !given.is_empty() && is_fit(ctx, &quote, order, known, &given) {
        rows::give(tx, order.sale, &given).await?;
    }
    Ok(())
}

/// Whether there is enough for all of it, and the buyer gets what was quoted.
fn is_fit(
    ctx: &Context,
    quote: &Quote,
    order: &NewSale,
    known: &KnownStock,
    given: &[ClientChannel],
) -> bool {
    let terms = order::terms(&ctx.keys, quote, order.fresh, &order.bought(), given);
    known.stock.capacity_for(quote.asked, terms.bonuses()) == Ok(quote.capacity)
        && known.stock.draft(&terms).is_ok()
}
