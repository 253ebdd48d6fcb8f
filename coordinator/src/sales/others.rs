//! Sales that another order pays for: a just-in-time order (LSPS2), whose opening fee is the price, or the order of a channel (LSPS1), whose price is.
//! Such a sale costs nothing itself. It begins when that order's payment is here; where nothing comes of it, the order's channel is an ordinary one,
//! for the same payment.

use bitcoin::Amount;
use channel_host::{JitGround, JitOpening, LeafId, jit_capacity, lsp_channel_id};
use factory_tree::ids::{ClientId, ShortChannelId};
use factory_tree::sale::order::{PaidBy, PurchaseState};

use super::channel;
use super::error::{NoSale, SalesError};
use super::payment::{self, Paying};
use super::stocks::{self, KnownStock};
use crate::clock::unix_time as now;
use crate::context::Context;
use crate::event::Event;
use crate::fault;
use crate::lsps1::{lasts, release_at};
use crate::store::lsps1::{self as lsps1_orders, OrderRow};
use crate::store::sales::{self as rows, SaleRow};
use crate::store::{self, Conn, bonus, jit as jit_orders};

/// Blocks that an ordinary channel has to come about when nothing came of a sale.
const SPARE: u32 = 6;

/// What another order wants of a stock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// What the channel is to hold.
    pub capacity: Amount,
    /// Until when it can be paid, in Unix time.
    pub valid_until: u64,
    /// For so many blocks it is to be kept open.
    pub lasts: u32,
}

/// What the order that is to pay wants, if it is this client's, waits for its payment, and may be served from a stock; `None`: there is no other.
///
/// # Errors
/// [`NoSale`], and those of the database.
pub(super) async fn wanted(
    ctx: &Context,
    client: ClientId,
    paid_by: &PaidBy,
) -> Result<Option<Wanted>, SalesError> {
    match paid_by {
        PaidBy::Invoice => Ok(None),
        PaidBy::Jit(scid) => by_jit(ctx, client, *scid).await.map(Some),
        PaidBy::Lsps1(id) => by_lsps1(ctx, client, id).await.map(Some),
    }
}

async fn by_jit(
    ctx: &Context,
    client: ClientId,
    scid: ShortChannelId,
) -> Result<Wanted, SalesError> {
    let config = &ctx.config.jit;
    if !config.enabled || config.stock_patience() == 0 {
        return Err(NoSale::Off.into());
    }
    let read = ctx.store.read(async |tx| {
        Ok((
            jit_orders::get(tx, scid.0).await?,
            jit_orders::owes_for_stock(tx, client).await?,
        ))
    });
    let (order, owes) = read.await?;
    let order = order.filter(|order| {
        order.client == client
            && order.state == jit_orders::State::Sold
            && order.valid_until >= now()
    });
    let order = order.ok_or(NoSale::NoJitOrder)?;
    if owes {
        return Err(NoSale::JitUnpaid.into());
    }
    // One payment of any size: nobody knows what the channel should hold.
    let payment = order.payment_msat.ok_or(NoSale::NoJitOrder)?;
    Ok(Wanted {
        capacity: jit_capacity(payment, config.margin_sat),
        valid_until: order.valid_until,
        lasts: 0,
    })
}

async fn by_lsps1(ctx: &Context, client: ClientId, id: &str) -> Result<Wanted, SalesError> {
    let read = ctx.store.read(async |tx| lsps1_orders::get(tx, id).await);
    let own = read.await?.filter(|row| {
        row.order.client == client
            && row.state == lsps1_orders::State::Ordered
            && row.order.valid_until >= now()
            // That comes with a factory, and once.
            && !row.order.at_birth
    });
    let order = own.ok_or(NoSale::NoLsps1Order)?.order;
    if order.announce {
        return Err(NoSale::Announced.into());
    }
    Ok(Wanted {
        capacity: Amount::from_sat(order.lsp_balance_sat),
        valid_until: order.valid_until,
        lasts: lasts(&order),
    })
}

/// Why another order cannot be ordered for any more, if so: it waits for no payment, or has a sale.
///
/// # Errors
/// Those of the database.
pub(super) async fn taken(conn: &mut Conn, new: &rows::NewSale) -> store::Result<Option<NoSale>> {
    let (waits, why) = match &new.paid_by {
        PaidBy::Invoice => return Ok(None),
        PaidBy::Jit(scid) => {
            let order = jit_orders::get(conn, scid.0).await?;
            let waits = order.is_some_and(|order| order.state == jit_orders::State::Sold);
            (waits, NoSale::NoJitOrder)
        }
        PaidBy::Lsps1(id) => {
            let order = lsps1_orders::get(conn, id).await?;
            let waits = order.is_some_and(|row| row.state == lsps1_orders::State::Ordered);
            (waits, NoSale::NoLsps1Order)
        }
    };
    let free = waits && !rows::pays_another(conn, &new.paid_by, new.sale).await?;
    Ok((!free).then_some(why))
}

/// Whether a factory lets a channel of a sale that begins now live for so many blocks.
///
/// # Errors
/// [`NoSale::Ends`].
pub(super) fn outlives(ctx: &Context, known: &KnownStock, lasts: u32) -> Result<(), NoSale> {
    let ends = known.stock.expiry().0;
    let latest = payment::latest(ctx, known, ctx.config.lsps1.hold_blocks);
    match lasts == 0 || latest.saturating_add(lasts) <= ends {
        true => Ok(()),
        false => Err(NoSale::Ends { ends }),
    }
}

/// Whether the channel of an order (LSPS1) whose payment is held comes from a stock, as far as can be said. The first question begins the sale; it
/// goes on by itself, and ends with the order's channel, or is cancelled.
///
/// # Errors
/// Those of the database.
pub(crate) async fn brings(ctx: &Context, order: &OrderRow) -> store::Result<bool> {
    let paid_by = PaidBy::Lsps1(order.order.id.clone());
    let read = ctx.store.read(async |tx| rows::paid_by(tx, &paid_by).await);
    match read.await? {
        None => Ok(false),
        Some(row) => match row.state {
            PurchaseState::Ordered => begin_for(ctx, &row, order).await,
            PurchaseState::Cancelled => Ok(false),
            PurchaseState::Paid => Ok(!given_up(ctx, &row, order).await?),
            PurchaseState::Sold => is_served(ctx, &row, order).await,
            PurchaseState::Settled => Ok(true),
        },
    }
}

/// Whether a sale's task ended before it did (what is stored does not fit): then it is not waited for longer than its payment can be held. A task would
/// have ended it by now, if there was time for one since the start.
fn is_stranded(ctx: &Context, row: &SaleRow, order: &OrderRow) -> bool {
    let waits = ctx.height() < release_at(ctx, order) || !ctx.sales.has_looked();
    !waits && !ctx.sales.is_running(row.order.sale)
}

/// A complete sale whose task cannot go on ends as it would have: the payment is taken for the channel, which stood before the sale was complete.
/// Without a channel that we know of, nothing comes from the stock.
async fn is_served(ctx: &Context, row: &SaleRow, order: &OrderRow) -> store::Result<bool> {
    if !is_stranded(ctx, row, order) {
        return Ok(true);
    }
    let Some(leaf) = ctx.lightning.outpoint(LeafId(row.order.leaf_id.0)) else {
        return Ok(false);
    };
    let note = "paid for by the order of a channel; the sale itself could not go on";
    payment::settle(ctx, row, (0, note), Some(leaf)).await?;
    Ok(true)
}

/// What nobody can complete is cancelled. Its channels end first, as a task has it.
async fn given_up(ctx: &Context, row: &SaleRow, order: &OrderRow) -> store::Result<bool> {
    let sale = row.order.sale;
    if !is_stranded(ctx, row, order) {
        return Ok(false);
    }
    let given = ctx
        .store
        .read(async |tx| bonus::of_sale(tx, sale).await)
        .await?;
    let given = given.iter().map(|given| given.leaf_id);
    for leaf in std::iter::once(row.order.leaf_id).chain(given) {
        channel::abandon(ctx, LeafId(leaf.0)).await;
    }
    let why = "the sale could not go on";
    payment::cancel(ctx, row, PurchaseState::Paid, why).await
}

/// The stock is this order's from now on, if its payment leaves time for that and for an ordinary channel afterwards.
async fn begin_for(ctx: &Context, row: &SaleRow, order: &OrderRow) -> store::Result<bool> {
    let known = match stocks::known(ctx, row.order.factory, row.order.position).await {
        Ok(known) => known,
        Err(SalesError::Store(error)) => return Err(error),
        Err(_) => None,
    };
    let until = order.held_until.unwrap_or(0).saturating_sub(SPARE);
    let refused = match known {
        None => Some("the stock is gone".to_owned()),
        Some(known) if ctx.height() >= payment::release_at(ctx, until, &known) => {
            Some("the payment leaves no time for another channel afterwards".to_owned())
        }
        Some(known) => outlives(ctx, &known, lasts(&order.order))
            .err()
            .map(|why| why.to_string()),
    };
    if !begin(ctx, row, refused, &Paying::Held(until)).await? {
        return Ok(false);
    }
    fault::point("sale_held");
    ctx.events.emit(Event::Lsps1FromStock {
        order: order.order.id.clone(),
        factory: row.order.factory,
        sale: row.order.sale,
        capacity_sat: row.order.capacity.to_sat(),
    });
    Ok(true)
}

/// A sale begins, unless it was refused or cannot be served any more: then it is cancelled.
async fn begin(
    ctx: &Context,
    row: &SaleRow,
    refused: Option<String>,
    paying: &Paying<'_>,
) -> store::Result<bool> {
    let refused = match refused {
        None => payment::admit(ctx, row, paying).await?.err(),
        refused => refused,
    };
    if let Some(why) = refused {
        payment::cancel(ctx, row, PurchaseState::Ordered, &why).await?;
        return Ok(false);
    }
    ctx.sales.look_again();
    Ok(true)
}

/// Where the channel of an order comes from whose payment is here. The first question begins the sale; it goes on by itself, and ends either with
/// the channel's gate open or with [`JitGround::Chain`].
///
/// # Errors
/// Those of the database.
pub(crate) async fn ground(ctx: &Context, opening: &JitOpening) -> store::Result<JitGround> {
    let paid_by = PaidBy::Jit(ShortChannelId(opening.scid));
    let read = ctx.store.read(async |tx| rows::paid_by(tx, &paid_by).await);
    let Some(row) = read.await? else {
        return Ok(JitGround::Chain);
    };
    let order = &row.order;
    let here = JitGround::Leaf(lsp_channel_id(order.leaf_id.0, order.fresh));
    Ok(match row.state {
        PurchaseState::Ordered => match begin_jit(ctx, &row, opening).await? {
            true => here,
            false => JitGround::Chain,
        },
        PurchaseState::Cancelled => JitGround::Chain,
        PurchaseState::Sold | PurchaseState::Settled
            if ctx.lightning.is_over(LeafId(order.leaf_id.0)) =>
        {
            JitGround::Chain
        }
        PurchaseState::Paid | PurchaseState::Sold | PurchaseState::Settled => here,
    })
}

/// Whether a payment could go on over the channel, before that is sold for nothing.
async fn leaves_time(ctx: &Context, row: &SaleRow, opening: &JitOpening) -> store::Result<bool> {
    let (factory, position) = (row.order.factory, row.order.position);
    let last = match stocks::known(ctx, factory, position).await {
        Ok(known) => known.map(|known| known.stock.schedule().last_spend.0),
        Err(SalesError::Store(error)) => return Err(error),
        Err(_) => None,
    };
    Ok(opening
        .leaf_until
        .zip(last)
        .is_some_and(|(until, last)| until < last))
}

/// The stock is this order's from now on, if it still can be.
async fn begin_jit(ctx: &Context, row: &SaleRow, opening: &JitOpening) -> store::Result<bool> {
    let (sale, capacity) = (row.order.sale, row.order.capacity);
    let refused = if capacity < opening.capacity {
        Some("more is paid than the channel was ordered for".to_owned())
    } else if !leaves_time(ctx, row, opening).await? {
        Some("the payment leaves no time for a channel of this factory".to_owned())
    } else {
        None
    };
    if !begin(ctx, row, refused, &Paying::Jit(opening)).await? {
        return Ok(false);
    }
    ctx.events.emit(Event::JitFromStock {
        client: row.order.client,
        scid: ShortChannelId(opening.scid).to_string(),
        factory: row.order.factory,
        sale,
        payment_msat: opening.payment.0,
        fee_msat: opening.fee.0,
        capacity_sat: capacity.to_sat(),
    });
    Ok(true)
}
