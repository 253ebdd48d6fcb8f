//! Sales that a just-in-time order pays for (LSPS2): the payment that waits is that order's, and its opening fee is the price. Such a sale is tried
//! with whoever is there within seconds; where nothing comes of it, the order's channel is an ordinary one.

use channel_host::{JitGround, JitOpening, LeafId, jit_capacity, lsp_channel_id};
use factory_tree::ids::{ClientId, ShortChannelId};
use factory_tree::sale::order::PurchaseState;

use super::channel;
use super::error::{NoSale, SalesError};
use super::payment::{self, Paying};
use super::stocks;
use crate::clock::unix_time as now;
use crate::context::Context;
use crate::event::Event;
use crate::store;
use crate::store::jit::{self as orders, State};
use crate::store::sales::{self as rows, SaleRow};

/// What a just-in-time order wants of a stock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// Its number.
    pub scid: ShortChannelId,
    /// What the channel is to hold.
    pub capacity: bitcoin::Amount,
    /// Until when it can be paid, in Unix time.
    pub valid_until: u64,
}

/// What an order of this client wants, if it waits for its payment and may be served from a stock.
///
/// # Errors
/// [`NoSale`], and those of the database.
pub(super) async fn wanted(
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
            orders::get(tx, scid.0).await?,
            orders::owes_for_stock(tx, client).await?,
        ))
    });
    let (order, owes) = read.await?;
    let order = order.filter(|order| {
        order.client == client && order.state == State::Sold && order.valid_until >= now()
    });
    let order = order.ok_or(NoSale::NoJitOrder)?;
    if owes {
        return Err(NoSale::JitUnpaid.into());
    }
    // One payment of any size: nobody knows what the channel should hold.
    let payment = order.payment_msat.ok_or(NoSale::NoJitOrder)?;
    Ok(Wanted {
        scid,
        capacity: jit_capacity(payment, config.margin_sat),
        valid_until: order.valid_until,
    })
}

/// Where the channel of an order comes from whose payment is here. The first question begins the sale; it goes on by itself, and ends either with
/// the channel's gate open or with [`JitGround::Chain`].
///
/// # Errors
/// Those of the database.
pub(crate) async fn ground(ctx: &Context, opening: &JitOpening) -> store::Result<JitGround> {
    let read = ctx
        .store
        .read(async |tx| rows::for_jit(tx, opening.scid).await);
    let Some(row) = read.await? else {
        return Ok(JitGround::Chain);
    };
    let order = &row.order;
    let here = JitGround::Leaf(lsp_channel_id(order.leaf_id.0, order.fresh));
    Ok(match row.state {
        PurchaseState::Ordered => match begin(ctx, &row, opening).await? {
            true => here,
            false => JitGround::Chain,
        },
        PurchaseState::Cancelled => JitGround::Chain,
        PurchaseState::Sold | PurchaseState::Settled
            if channel::is_over(ctx, LeafId(order.leaf_id.0)) =>
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
async fn begin(ctx: &Context, row: &SaleRow, opening: &JitOpening) -> store::Result<bool> {
    let (sale, capacity) = (row.order.sale, row.order.capacity);
    let refused = if capacity < opening.capacity {
        Some("more is paid than the channel was ordered for".to_owned())
    } else if !leaves_time(ctx, row, opening).await? {
        Some("the payment leaves no time for a channel of this factory".to_owned())
    } else {
        payment::admit(ctx, row, &Paying::Jit(opening)).await?
    };
    if let Some(why) = refused {
        payment::cancel(ctx, row, PurchaseState::Ordered, &why).await?;
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
    ctx.sales.look_again();
    Ok(true)
}
