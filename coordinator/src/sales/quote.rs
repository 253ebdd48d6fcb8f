//! What a channel costs, and from which stock: the quote, which binds us as long as it holds.

use bitcoin::Amount;
use channel_host::{is_signed_by, read_params};
use factory_tree::ids::{ClientId, SaleId};
use factory_tree::sale::order::{Quote, QuoteRequest, SignedQuote};
use factory_tree::sale::{StockError, least_channel};
use factory_tree::tx::{CHILD_VBYTES, tree_tx_vbytes};
use factory_tree::units::Height;
use serde_json::{Map, Value};

use super::error::{NoSale, SalesError};
use super::others::{self, Wanted};
use super::price::Price;
use super::stocks::{self, KnownStock};
use super::to_json;
use crate::clock::unix_time as now;
use crate::context::Context;
use crate::keys::random;
use crate::lsps::Refusal;
use crate::store::{self, Conn, factories, prices};

const FOUR_DAYS: u32 = 4 * 144;
/// A sale's transaction, with its channel and what is left of the stock, and its fee child.
const CHAIN_VBYTES: u64 = tree_tx_vbytes(2).saturating_add(CHILD_VBYTES);

/// `superscalar.get_quote`.
///
/// # Errors
/// Why nothing is offered, and those of the parameters and the database.
pub async fn get_quote(
    ctx: &Context,
    client: ClientId,
    params: Map<String, Value>,
) -> Result<Value, Refusal> {
    let asked: QuoteRequest = read_params(params, &["factory", "amount_sat", "paid_by"])?;
    let other = others::wanted(ctx, client, &asked.paid_by).await?;
    let quote = choose(ctx, client, &asked, other).await?;
    let text = quote.text();
    let signature = ctx.keys.leaf_keys().sign(&SignedQuote::message(&text));
    to_json(&SignedQuote { text, signature })
}

/// The factory asked for, or the one with the most left to sell; of two with as much the younger.
async fn choose(
    ctx: &Context,
    client: ClientId,
    asked: &QuoteRequest,
    other: Option<Wanted>,
) -> Result<Quote, SalesError> {
    if !ctx.config.sales.enabled {
        return Err(NoSale::Off.into());
    }
    let member_of = ctx
        .store
        .read(async |tx| factories::of_client(tx, client).await)
        .await?;
    let mut best: Option<(Amount, Quote)> = None;
    let mut refusal = None;
    for member in member_of {
        let id = member.factory.id;
        if member.factory.forgotten || asked.factory.is_some_and(|wanted| wanted != id) {
            continue;
        }
        match of_factory(ctx, client, &member.factory, (asked, other)).await {
            Ok((left, quote)) => {
                if best.as_ref().is_none_or(|(most, _)| left > *most) {
                    best = Some((left, quote));
                }
            }
            // What the youngest says is what the client is told.
            Err(SalesError::No(why)) => {
                refusal.get_or_insert(why);
            }
            Err(error) => return Err(error),
        }
    }
    match (best, refusal) {
        (Some((_, quote)), _) => Ok(quote),
        (None, Some(why)) => Err(why.into()),
        (None, None) => Err(NoSale::NoFactory.into()),
    }
}

async fn of_factory(
    ctx: &Context,
    client: ClientId,
    factory: &factories::FactoryRow,
    (asked, other): (&QuoteRequest, Option<Wanted>),
) -> Result<(Amount, Quote), SalesError> {
    // Cheap first: no tree is built for what cannot be sold from.
    stocks::stands(factory)?;
    let id = factory.id;
    let clients = ctx
        .store
        .read(async |tx| factories::clients(tx, id).await)
        .await?;
    let position = (0u32..)
        .zip(&clients)
        .find(|(_, member)| **member == client);
    let (position, _) = position.ok_or(NoSale::NoFactory)?;
    let known = stocks::known(ctx, id, position).await?;
    let known = known.ok_or(NoSale::NoStock)?;
    stocks::sells(ctx, &known)?;
    if let Some(other) = other {
        others::outlives(ctx, &known, other.lasts)?;
    }
    let left = known.stock.amount();
    let valid_until = match other {
        Some(other) => other.valid_until,
        None => now().saturating_add(ctx.config.sales.quote_seconds),
    };
    let amount = other.map_or(Amount::from_sat(asked.amount_sat), |other| other.capacity);
    let blocks_left = known
        .stock
        .schedule()
        .dying_from
        .0
        .saturating_sub(ctx.height());
    // Nobody has a month for the price of a day. A payment may be held for days, so that an order cannot be for all of it.
    let counted = other.map_or(0, |other| other.lasts);
    if counted > 0 && counted.saturating_add(FOUR_DAYS) < blocks_left {
        let blocks = blocks_left;
        return Err(NoSale::Short { blocks }.into());
    }
    // What another order costs is all that is paid.
    let fee_msat = async |capacity| match other {
        Some(_) => Ok::<_, SalesError>(0),
        None => {
            let price = price_for(ctx, client, ctx.config.sales.price()).await?;
            // The Bitcoin node is asked only where its answer counts.
            let onchain = match price.onchain_ppm {
                0 => Some(Amount::ZERO),
                _ => ctx.feerate().await.fee_vb(CHAIN_VBYTES),
            };
            let onchain = onchain.unwrap_or(Amount::MAX_MONEY);
            Ok(price.fee_msat(capacity, blocks_left, onchain))
        }
    };
    if let Some(row) = known.reserved() {
        // Exactly what was begun, at the price of then: it can be completed, and nothing else.
        let begun = Quote::parse(&row.order.quote);
        let begun = begun.map_err(|error| store::StoreError::value("quote", error))?;
        // What is paid is for a channel of this size.
        let is_another = other.is_some() && begun.asked != amount;
        if row.order.client != client || is_another {
            return Err(NoSale::Reserved.into());
        }
        let fee_msat = match other.is_none() && begun.paid_by.is_invoice() {
            true => begun.fee_msat,
            false => fee_msat(begun.capacity).await?,
        };
        let quote = Quote {
            paid_by: asked.paid_by.clone(),
            fee_msat,
            // Another quote than the one that came to nothing: that is not taken up again by a repeated order.
            valid_until: valid_until.max(begun.valid_until.saturating_add(1)),
            sign_until: Height(known.sign_until()),
            ..begun
        };
        return Ok((left, quote));
    }
    let capacity = capacity(ctx, &known, amount)?;
    let quote = Quote {
        sale: SaleId(random()),
        client,
        factory: id,
        stock: known.outpoint(),
        number: known.stock.next_number(),
        asked: amount,
        capacity,
        fee_msat: fee_msat(capacity).await?,
        valid_until,
        sign_until: Height(known.sign_until()),
        paid_by: asked.paid_by.clone(),
    };
    Ok((left, quote))
}

/// What a channel would hold, within what is sold and what is left.
pub(super) fn capacity(
    ctx: &Context,
    known: &KnownStock,
    asked: Amount,
) -> Result<Amount, SalesError> {
    let config = &ctx.config.sales;
    let least = least_channel(known.stock.params()).max(Amount::from_sat(config.min_sat));
    let most = known.stock.amount().min(Amount::from_sat(config.max_sat));
    let capacity = known.stock.capacity_for(asked, Amount::ZERO);
    match capacity {
        Err(StockError::Depth(most)) => Err(NoSale::MostSales(most).into()),
        Err(StockError::SoldOut) => Err(NoSale::NoStock.into()),
        _ if most < least => Err(NoSale::NoStock.into()),
        _ if asked < least => Err(NoSale::TooSmall { least }.into()),
        _ if asked > most => Err(NoSale::TooLarge { most }.into()),
        Ok(capacity) => Ok(capacity),
        Err(error) => Err(error.into()),
    }
}

/// The price list for a client: its own, over everybody's, over the configured one of what it buys.
pub(crate) async fn price_for(
    ctx: &Context,
    client: ClientId,
    configured: Price,
) -> store::Result<Price> {
    let read = ctx
        .store
        .read(async |tx| price_in(tx, client, configured).await);
    read.await
}

/// The same, as a transaction sees it.
pub(super) async fn price_in(
    tx: &mut Conn,
    client: ClientId,
    configured: Price,
) -> store::Result<Price> {
    Ok(prices::of_client(tx, client).await?.over(configured))
}

/// A quote that we gave this client.
pub(super) fn verified(
    ctx: &Context,
    client: ClientId,
    signed: &SignedQuote,
) -> Result<Quote, NoSale> {
    let node = ctx.keys.leaf_keys().node_id();
    let message = SignedQuote::message(&signed.text);
    if !is_signed_by(&message, &signed.signature, &node) {
        return Err(NoSale::NotOurs);
    }
    let quote = Quote::parse(&signed.text).map_err(|_| NoSale::NotOurs)?;
    if quote.client != client {
        return Err(NoSale::NotOurs);
    }
    Ok(quote)
}
