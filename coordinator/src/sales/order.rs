//! An order that takes a quote: checked, stored, and answered with a hold invoice. The same order again is answered with the same.

use std::sync::Arc;
use std::time::Duration;

use channel_host::{Description, InvoiceRequest, Msat, lsp_channel_id, read_params};
use factory_tree::ids::{ClientId, SaleId};
use factory_tree::sale::order::{Order, Purchase, PurchaseRequest, PurchaseState, Quote};
use factory_tree::sale::{Sale, SoldChannel};
use serde_json::{Map, Value};

use super::error::{NoSale, SalesError};
use super::{Mail, others, payment, quote, stocks, to_json};
use crate::clock::unix_time as now;
use crate::context::Context;
use crate::event::Event;
use crate::fault;
use crate::keys::{FreshSeed, NodeKeys, random};
use crate::lsps::Refusal;
use crate::store::sales::{self as rows, ClientChannel, NewSale, SaleRow};
use crate::store::{Conn, bonus};

/// Orders of one client in a day that may come to nothing: each is a row, and an invoice.
const MOST_FAILED: u64 = 50;
const DAY: u64 = 86_400;
/// How long a cancel waits for the sale's task, and a new order for an old payment to be on its way back.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// `superscalar.buy`.
///
/// # Errors
/// Why nothing is sold, and those of the parameters and the database.
pub async fn buy(
    ctx: &Arc<Context>,
    client: ClientId,
    params: Map<String, Value>,
) -> Result<Value, Refusal> {
    let order: Order = read_params(params, &["quote", "leaf_id", "channel_key"])?;
    let quote = quote::verified(ctx, client, &order.quote).map_err(SalesError::from)?;
    let begun = row(ctx, quote.sale).await?;
    if let Some(row) = &begun
        && is_same(row, &order)
    {
        return to_json(&purchase(row));
    }
    if !may_take(begun.as_ref(), &order) {
        return Err(SalesError::from(NoSale::Taken).into());
    }
    if let Some(row) = &begun {
        let_go(ctx, row).await?;
    }
    let new = prepare(ctx, &quote, &order, begun).await?;
    store(ctx, &new).await?;
    fault::point("sale_ordered");
    ctx.events.emit(Event::SaleOrdered {
        client,
        factory: new.factory,
        sale: new.sale,
        capacity_sat: new.capacity.to_sat(),
        fee_msat: new.fee_msat,
    });
    let row = row(ctx, new.sale).await?;
    to_json(&purchase(
        &row.ok_or_else(|| SalesError::from(NoSale::Unknown))?,
    ))
}

/// `superscalar.get_purchase`.
///
/// # Errors
/// [`NoSale::Unknown`], and those of the parameters and the database.
pub async fn get_purchase(
    ctx: &Context,
    client: ClientId,
    params: Map<String, Value>,
) -> Result<Value, Refusal> {
    let asked: PurchaseRequest = read_params(params, &["sale"])?;
    to_json(&purchase(&own(ctx, client, asked.sale).await?))
}

/// `superscalar.cancel_purchase`: what can still be undone is; the answer says.
///
/// # Errors
/// [`NoSale::Unknown`], and those of the parameters and the database.
pub async fn cancel_purchase(
    ctx: &Context,
    client: ClientId,
    params: Map<String, Value>,
) -> Result<Value, Refusal> {
    let asked: PurchaseRequest = read_params(params, &["sale"])?;
    let held = own(ctx, client, asked.sale).await?;
    match held.state {
        PurchaseState::Ordered => {
            payment::cancel(ctx, &held, PurchaseState::Ordered, "the buyer took it back").await?;
        }
        PurchaseState::Paid => {
            // Its task is the only one to write about it. When it has begun what cannot be undone, it goes on.
            let undone = async {
                ctx.sales.begun(asked.sale).await;
                ctx.sales.deliver(asked.sale, Mail::Cancel).await;
                ctx.sales.over(asked.sale).await;
            };
            let _ = tokio::time::timeout(PATIENCE, undone).await;
        }
        _ => {}
    }
    to_json(&purchase(&own(ctx, client, asked.sale).await?))
}

/// The order that takes this one's place has another payment, and with its hash this one's would be forgotten: it goes back first.
async fn let_go(ctx: &Context, begun: &SaleRow) -> Result<(), SalesError> {
    let hash = begun.order.hash;
    if !begun.order.paid_by.is_invoice() || !ctx.lightning.holds(hash) {
        return Ok(());
    }
    ctx.lightning.send_back(hash);
    let gone = async {
        while ctx.lightning.holds(hash) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    let gone = tokio::time::timeout(PATIENCE, gone).await;
    Ok(gone.map_err(|_| NoSale::Returning)?)
}

async fn row(ctx: &Context, sale: SaleId) -> Result<Option<SaleRow>, SalesError> {
    let read = ctx.store.read(async |tx| rows::get(tx, sale).await);
    Ok(read.await?)
}

async fn own(ctx: &Context, client: ClientId, sale: SaleId) -> Result<SaleRow, SalesError> {
    let found = row(ctx, sale).await?;
    let own = found.filter(|row| row.order.client == client);
    Ok(own.ok_or(NoSale::Unknown)?)
}

fn purchase(row: &SaleRow) -> Purchase {
    Purchase {
        sale: row.order.sale,
        state: row.state,
        invoice: row.order.invoice.clone(),
        note: row.note.clone(),
    }
}

fn is_same(row: &SaleRow, order: &Order) -> bool {
    row.order.quote == order.quote.text && has_place(row, order)
}

fn has_place(row: &SaleRow, order: &Order) -> bool {
    row.order.leaf_id == order.leaf_id && row.order.channel_key == order.channel_key
}

/// Whether an order may take this sale: it is new, or it takes up again what was begun and came to nothing.
fn may_take(begun: Option<&SaleRow>, order: &Order) -> bool {
    begun.is_none_or(|row| {
        row.state == PurchaseState::Cancelled && row.reserves_stock() && has_place(row, order)
    })
}

/// The order as it is to be stored, if the quote still fits the stock.
async fn prepare(
    ctx: &Arc<Context>,
    quote: &Quote,
    order: &Order,
    begun: Option<SaleRow>,
) -> Result<NewSale, SalesError> {
    if !ctx.config.sales.enabled {
        return Err(NoSale::Off.into());
    }
    let seconds = quote
        .valid_until
        .checked_sub(now())
        .filter(|left| *left > 0);
    let seconds = seconds.ok_or(NoSale::Expired)?;
    // Of several quotes for what was begun the newest that was ordered by holds.
    let is_older = |row: &SaleRow| {
        let last = Quote::parse(&row.order.quote);
        last.is_ok_and(|last| last.valid_until > quote.valid_until)
    };
    if begun.as_ref().is_some_and(is_older) {
        return Err(NoSale::Expired.into());
    }
    others::wanted(ctx, quote.client, &quote.paid_by).await?;
    let (known, position) = fitting(ctx, quote).await?;
    let fresh = begun.map_or_else(random, |row| row.order.fresh);
    let bought = ClientChannel {
        client: quote.client,
        position,
        leaf_id: order.leaf_id,
        channel_key: order.channel_key,
        capacity: quote.capacity,
    };
    // Of what was begun, and is taken up again.
    let given = ctx
        .store
        .read(async |tx| bonus::of_sale(tx, quote.sale).await)
        .await?;
    let terms = terms(&ctx.keys, quote, fresh, &bought, &given);
    if known.bound().is_some_and(|bound| *bound != terms) {
        return Err(NoSale::Reserved.into());
    }
    let drafted = known.stock.draft(&terms);
    drafted.map_err(|error| NoSale::Unfit(error.to_string()))?;
    let hash = ctx.keys.sale_hash(quote.sale, &order.quote.text);
    let invoice = match quote.paid_by.is_invoice() {
        false => String::new(),
        true => {
            let request = InvoiceRequest {
                amount: Some(Msat(quote.fee_msat)),
                description: Description::Hash(order.quote.hash()),
                expiry: Duration::from_secs(seconds),
                hints: Vec::new(),
            };
            let blocks = ctx.config.sales.hold_blocks;
            let invoice = ctx.lightning.hold_invoice(request, hash, blocks).await;
            invoice.map_err(|error| {
                tracing::warn!(%error, "an order has no invoice");
                NoSale::Starting
            })?
        }
    };
    Ok(NewSale {
        sale: quote.sale,
        client: quote.client,
        factory: quote.factory,
        position,
        stock: quote.stock,
        place: quote.number,
        leaf_id: order.leaf_id,
        channel_key: order.channel_key,
        fresh,
        capacity: quote.capacity,
        fee_msat: quote.fee_msat,
        quote: order.quote.text.clone(),
        sign_until: quote.sign_until,
        hash,
        invoice,
        paid_by: quote.paid_by.clone(),
        ordered_at: now(),
    })
}

/// The terms of the sale that a quote, the buyer's channel and those of others make.
pub(super) fn terms(
    keys: &NodeKeys,
    quote: &Quote,
    fresh: FreshSeed,
    bought: &ClientChannel,
    bonus: &[ClientChannel],
) -> Sale {
    let sold = |channel: &ClientChannel| SoldChannel {
        position: channel.position,
        leaf_id: channel.leaf_id,
        channel_key: channel.channel_key,
        lsp_channel_key: keys
            .leaf_keys()
            .funding_pubkey(lsp_channel_id(channel.leaf_id.0, fresh)),
        capacity: channel.capacity,
    };
    Sale {
        id: quote.sale,
        stock: quote.stock,
        number: quote.number,
        bought: sold(bought),
        bonus: bonus.iter().map(sold).collect(),
    }
}

/// The stock of a quote and the buyer's place, if the quote still fits.
pub(super) async fn fitting(
    ctx: &Context,
    quote: &Quote,
) -> Result<(stocks::KnownStock, u32), SalesError> {
    let id = quote.factory;
    let clients = ctx
        .store
        .read(async |tx| crate::store::factories::clients(tx, id).await)
        .await?;
    let mut places = (0u32..).zip(clients);
    let position = places.find(|(_, member)| *member == quote.client);
    let (position, _) = position.ok_or(NoSale::NoFactory)?;
    let known = stocks::known(ctx, id, position).await?;
    let known = known.ok_or(NoSale::NoStock)?;
    stocks::sells(ctx, &known)?;
    let theirs = |row: &SaleRow| row.order.sale == quote.sale;
    if !known.reserved().is_none_or(theirs) {
        return Err(NoSale::Reserved.into());
    }
    let fits = known.outpoint() == quote.stock
        && known.stock.next_number() == quote.number
        && known.stock.capacity_for(quote.asked, bitcoin::Amount::ZERO) == Ok(quote.capacity);
    if !fits {
        return Err(NoSale::Changed.into());
    }
    Ok((known, position))
}

/// Stores an order, unless it is one too many, or uses what served before.
async fn store(ctx: &Context, new: &NewSale) -> Result<(), SalesError> {
    let since = new.ordered_at.saturating_sub(DAY);
    let most = ctx.config.sales.max_open_orders;
    let stored = ctx.store.write(async |tx| {
        rows::prune(tx, new.client, since).await?;
        let refusal = refusal(tx, new, since, most).await?;
        if refusal.is_none() {
            rows::insert(tx, new).await?;
        }
        Ok(refusal)
    });
    match stored.await? {
        Some(why) => Err(why.into()),
        None => Ok(()),
    }
}

async fn refusal(
    tx: &mut Conn,
    new: &NewSale,
    since: u64,
    most: u64,
) -> crate::store::Result<Option<NoSale>> {
    let (open, failed) = rows::count_of(tx, new.client, since).await?;
    if open >= most {
        return Ok(Some(NoSale::TooManyOrders(open)));
    }
    if failed >= MOST_FAILED {
        return Ok(Some(NoSale::TooManyFailed(failed)));
    }
    // Asked at once, orders for one payment meet here; and the payment may have come meanwhile.
    if let Some(why) = others::taken(tx, new).await? {
        return Ok(Some(why));
    }
    // Asked at once, two orders of one quote meet here.
    match rows::get(tx, new.sale).await? {
        Some(row) if row.state != PurchaseState::Cancelled => Ok(Some(NoSale::Taken)),
        Some(_) => Ok(None),
        None if rows::is_used(tx, new.leaf_id, &new.channel_key).await? => Ok(Some(NoSale::Used)),
        None => Ok(None),
    }
}
