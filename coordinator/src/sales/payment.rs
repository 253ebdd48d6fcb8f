//! The payment of an order: held until the channel stands, then taken, or sent back.

use bitcoin::OutPoint;
use channel_host::{CLAIM_BUFFER, JitOpening, PaymentHash};
use factory_tree::sale::order::{PurchaseState, Quote};

use super::error::SalesError;
use super::stocks::KnownStock;
use super::{MARGIN, Mail, bonus, order};
use crate::clock::unix_time as now;
use crate::context::Context;
use crate::event::Event;
use crate::fault;
use crate::jit::scid_text;
use crate::store::bonus as given;
use crate::store::jit as orders;
use crate::store::lsps1 as lsps1_orders;
use crate::store::sales::{self as rows, SaleRow};
use crate::store::{self, StoreError, ladder};

/// A payment for a hold invoice is here that is for no order of LSPS1: it is for a sale.
///
/// # Errors
/// Those of the database; then it is told again.
pub async fn held(
    ctx: &Context,
    hash: PaymentHash,
    amount_msat: u64,
    until: u32,
) -> store::Result<()> {
    let row = ctx
        .store
        .read(async |tx| rows::by_hash(tx, hash).await)
        .await?;
    // Another order is paid for elsewhere.
    let Some(row) = row.filter(|row| row.order.paid_by.is_invoice()) else {
        ctx.lightning.send_back(hash);
        return Ok(());
    };
    match row.state {
        PurchaseState::Ordered => take_in(ctx, &row, amount_msat, until).await,
        PurchaseState::Paid => {
            ctx.sales.look_again();
            Ok(())
        }
        // Told again, after a crash.
        PurchaseState::Sold if row.held_until.is_some() => Ok(()),
        PurchaseState::Sold | PurchaseState::Settled | PurchaseState::Cancelled => {
            ctx.lightning.send_back(hash);
            Ok(())
        }
    }
}

async fn take_in(ctx: &Context, row: &SaleRow, amount_msat: u64, until: u32) -> store::Result<()> {
    // Lightning refuses such a payment; this is the second look.
    let admitted = match amount_msat < row.order.fee_msat {
        true => Err("its payment was too small".to_owned()),
        false => admit(ctx, row, &Paying::Held(until)).await?,
    };
    let until = match admitted {
        Ok(held) => held.unwrap_or(until),
        Err(why) => {
            cancel(ctx, row, PurchaseState::Ordered, &why).await?;
            ctx.lightning.send_back(row.order.hash);
            return Ok(());
        }
    };
    fault::point("sale_held");
    ctx.events.emit(Event::SalePaid {
        client: row.order.client,
        factory: row.order.factory,
        sale: row.order.sale,
        fee_msat: amount_msat,
        held_until: until,
    });
    ctx.sales.look_again();
    Ok(())
}

/// What pays for a sale.
#[derive(Debug)]
pub(super) enum Paying<'a> {
    /// A hold invoice's payment, its own or that of an order of a channel, which can be held up to this height.
    Held(u32),
    /// The fee of a just-in-time order's.
    Jit(&'a JitOpening),
}

/// An order whose payment is here has its stock to itself from now on, if it can still be served, and up to which height that is held; or why not.
///
/// # Errors
/// Those of the database.
pub(super) async fn admit(
    ctx: &Context,
    row: &SaleRow,
    paying: &Paying<'_>,
) -> store::Result<Result<Option<u32>, String>> {
    let (sale, factory) = (row.order.sale, row.order.factory);
    let known = match fits(ctx, row).await {
        Ok(known) => known,
        Err(SalesError::Store(error)) => return Err(error),
        Err(error) => return Ok(Err(error.to_string())),
    };
    let mates = known.stock.clients();
    let hold_blocks = match row.order.paid_by.lsps1() {
        Some(_) => ctx.config.lsps1.hold_blocks,
        None => ctx.config.sales.hold_blocks,
    };
    let until = match paying {
        Paying::Held(until) => Some(latest(ctx, &known, hold_blocks).min(*until)),
        Paying::Jit(_) => None,
    };
    let refused = ctx.store.write(async |tx| {
        // Keys that are ours already sign nothing any more; and none are taken while this is paid.
        let left = ladder::left(tx, factory).await?;
        if left.iter().any(|left| mates.contains(left)) {
            return Ok(Some("a client of the stock has left the factory"));
        }
        let is_jit = matches!(paying, Paying::Jit(_));
        if is_jit && orders::owes_for_stock(tx, row.order.client).await? {
            return Ok(Some("an earlier channel from a stock is not paid for"));
        }
        let held = rows::held(tx, sale, until).await?;
        match paying {
            Paying::Jit(opening) if held => {
                orders::from_stock(tx, opening, sale, row.order.capacity).await?;
            }
            // Nothing is given on top of a just-in-time order's fee.
            Paying::Held(_) if held => bonus::decide(ctx, tx, row, &known).await?,
            _ => {}
        }
        Ok((!held).then_some("another sale of this stock came first"))
    });
    Ok(match refused.await? {
        Some(why) => Err(why.to_owned()),
        None => Ok(until),
    })
}

/// The stock of an order that can still be served.
async fn fits(ctx: &Context, row: &SaleRow) -> Result<KnownStock, SalesError> {
    let quote = Quote::parse(&row.order.quote);
    let quote = quote.map_err(|error| StoreError::value("quote", error))?;
    let (known, _) = order::fitting(ctx, &quote).await?;
    Ok(known)
}

/// The height from which the payment is sent back, whatever is under way: later it could not be claimed for sure, and the buyer's own way to the
/// chain would begin. It may have come over another factory of the buyer's than that of the stock, and a slower one.
#[must_use]
pub(super) fn release_at(ctx: &Context, held_until: u32, known: &KnownStock) -> u32 {
    held_until.saturating_sub(needed(ctx, known))
}

/// Up to which height a payment that comes now is held, whenever it expires: payers let theirs expire later than they have to, and who knows by how
/// much. The stock waits meanwhile for a buyer that says nothing.
pub(super) fn latest(ctx: &Context, known: &KnownStock, hold_blocks: u32) -> u32 {
    let held = needed(ctx, known).saturating_add(hold_blocks);
    ctx.height().saturating_add(held)
}

/// How many blocks before it expires that is.
pub(super) fn needed(ctx: &Context, known: &KnownStock) -> u32 {
    let exit_delay = known.stock.schedule().exit_delay.0;
    let own = exit_delay.saturating_add(CLAIM_BUFFER);
    own.max(ctx.lightning.claim_time()).saturating_add(MARGIN)
}

/// Nothing comes of an order; whether that is news. A payment that is held goes back after this.
///
/// # Errors
/// Those of the database.
pub(super) async fn cancel(
    ctx: &Context,
    row: &SaleRow,
    from: PurchaseState,
    reason: &str,
) -> store::Result<bool> {
    let sale = row.order.sale;
    let is_new = ctx
        .store
        .write(async |tx| {
            let is_new = rows::cancel(tx, sale, from, reason, now()).await?;
            if is_new {
                orders::not_from_stock(tx, sale).await?;
                given::take_back(tx, sale).await?;
                lsps1_orders::not_from_stock(tx, sale, now()).await?;
            }
            Ok(is_new)
        })
        .await?;
    if is_new {
        ctx.lsps1.look_again();
        ctx.events.emit(Event::SaleCancelled {
            client: row.order.client,
            factory: row.order.factory,
            sale,
            reason: reason.to_owned(),
        });
    }
    Ok(is_new)
}

/// A payment was taken: perhaps that of a sale.
///
/// # Errors
/// Those of the database.
pub async fn received(ctx: &Context, hash: PaymentHash, amount_msat: u64) -> store::Result<()> {
    let row = ctx
        .store
        .read(async |tx| rows::by_hash(tx, hash).await)
        .await?;
    if let Some(row) = row {
        settle(ctx, &row, (amount_msat, ""), None).await?;
        ctx.sales.deliver(row.order.sale, Mail::Look).await;
    }
    Ok(())
}

/// The channel stands, and this is what was taken for it; `leaf`: its outpoint, which an order of a channel is told that pays for it.
pub(super) async fn settle(
    ctx: &Context,
    row: &SaleRow,
    (taken_msat, note): (u64, &str),
    leaf: Option<OutPoint>,
) -> store::Result<()> {
    let sale = row.order.sale;
    let channel = row.order.paid_by.lsps1().zip(leaf);
    let written = ctx.store.write(async |tx| {
        let is_new = rows::settled(tx, sale, (taken_msat, note), now()).await?;
        let served = match channel {
            Some((id, leaf)) => lsps1_orders::funded(tx, id, leaf, None, now()).await?,
            None => false,
        };
        Ok((is_new, orders::stands_by_sale(tx, sale).await?, served))
    });
    let (is_new, order, served) = written.await?;
    if is_new {
        fault::point("sale_settled");
    }
    if let Some((id, funding)) = channel.filter(|_| served) {
        fault::point("lsps1_served");
        let order = id.to_owned();
        ctx.events.emit(Event::Lsps1Funded {
            order,
            funding,
            onchain_sat: 0,
        });
        // Its payment is taken now.
        ctx.lsps1.look_again();
    }
    if let Some(scid) = order {
        let scid = scid_text(scid);
        ctx.events.emit(Event::JitOpened { scid });
    }
    if is_new {
        // Its gate opens.
        ctx.lightning.look_again();
        ctx.events.emit(Event::SaleSettled {
            client: row.order.client,
            factory: row.order.factory,
            sale,
            capacity_sat: row.order.capacity.to_sat(),
            taken_msat,
        });
    }
    Ok(())
}

/// Cancels orders whose quote, and invoice, nobody can pay any more.
///
/// # Errors
/// Those of the database.
pub(super) async fn expire(ctx: &Context) -> store::Result<()> {
    let unpaid = ctx.store.read(async |tx| rows::unpaid(tx).await).await?;
    for row in ctx.readable(unpaid) {
        let valid_until = Quote::parse(&row.order.quote).map_or(0, |quote| quote.valid_until);
        if now() > valid_until {
            let reason = "it was not paid in time";
            cancel(ctx, &row, PurchaseState::Ordered, reason).await?;
        }
    }
    Ok(())
}

/// Sends back, once more, what was to be sent back when we ended.
///
/// # Errors
/// Those of the database.
pub(super) async fn send_back_again(ctx: &Context) -> store::Result<()> {
    let height = ctx.height();
    let hashes = ctx
        .store
        .read(async |tx| rows::to_send_back(tx, height).await)
        .await?;
    for hash in ctx.readable(hashes) {
        ctx.lightning.send_back(hash);
    }
    Ok(())
}
