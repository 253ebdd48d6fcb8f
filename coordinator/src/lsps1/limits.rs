//! What may be ordered, and opened.

use bitcoin::Amount;
use factory_tree::ids::ClientId;

use super::params::Asked;
use crate::context::Context;
use crate::limits::{DAY, HOUR, Means, TRIES, Used, coins};
use crate::store::lsps1::{self as rows, Order, OrderRow};
use crate::store::{Conn, Result};

/// The longest time a funding is given, whatever the client is content with, as the node has it.
const SLOWEST: u16 = 144;

/// What there is for a funding that is to confirm within so many blocks, for who asks.
pub(super) async fn means(ctx: &Context, confirm_within: u16) -> Means {
    Means::lately(ctx, confirm_within.clamp(1, SLOWEST)).await
}

/// Why no channel is opened now, if so; what was set aside for this order before is its own.
async fn closed(
    ctx: &Context,
    conn: &mut Conn,
    order: Option<&str>,
    (fee, now): (Amount, u64),
) -> Result<Option<String>> {
    let used = Used {
        opens: rows::opens_since(conn, now.saturating_sub(HOUR)).await?,
        onchain_sat: rows::onchain_since(conn, now.saturating_sub(DAY), order).await?,
    };
    Ok(ctx.config.lsps1.limits().closed(used, fee))
}

/// What belongs to others, who have paid: for channels from the chain, and, where that is asked, for places in the next factory.
async fn owed(ctx: &Context, conn: &mut Conn, at_birth: bool) -> Result<u64> {
    // The coins of a funding that is made, and withheld, are not free any more.
    let made = ctx.lightning.bought().unwrap_or_default().into_iter();
    let made = made.filter(|view| view.outpoint.is_some());
    let made: Vec<u64> = made.map(|view| view.id).collect();
    let owed_sat = rows::owed_sat(conn, &made).await?;
    Ok(match at_birth {
        true => owed_sat.saturating_add(rows::owed_at_birth_sat(conn).await?),
        false => owed_sat,
    })
}

/// Whether the next birth has the coins for a place that is paid for this moment: of those who ordered, others may have paid first. It has no funding of
/// its own, so no feerate is needed: Lightning waits for the answer, and the Bitcoin node is not asked.
pub(super) async fn fits_birth(ctx: &Context, order: &Order) -> Result<bool> {
    let read = ctx.store.read(async |tx| owed(ctx, tx, true).await);
    let needed = read.await?.saturating_add(order.lsp_balance_sat);
    Ok(needed <= coins(ctx).await.to_sat())
}

/// Why such a channel cannot be had now, if so. What others have paid for is theirs already. One that comes with a factory (`at_birth`) has no funding
/// of its own: neither the hour's channels nor the day's fees are in its way.
pub(super) async fn obstacle(
    ctx: &Context,
    asked: &Asked,
    (means, at_birth): (Means, bool),
    now: u64,
) -> Result<Option<String>> {
    let read = ctx.store.read(async |tx| {
        let closed = match at_birth {
            true => None,
            false => closed(ctx, tx, None, (means.fee, now)).await?,
        };
        Ok((closed, owed(ctx, tx, at_birth).await?))
    });
    let (closed, owed_sat) = read.await?;
    if closed.is_some() {
        return Ok(closed);
    }
    let means = means.without(owed_sat);
    let suffice = means.suffice_for(Amount::from_sat(asked.lsp_balance_sat));
    Ok((!suffice).then(|| "no such channel can be opened now; try later".into()))
}

/// Why this client's order is one too many, if so.
pub(super) async fn too_many(
    ctx: &Context,
    conn: &mut Conn,
    client: ClientId,
) -> Result<Option<String>> {
    let config = &ctx.config.lsps1;
    let (of_client, of_all) = rows::open_orders(conn, client).await?;
    if of_client >= config.orders_per_client {
        return Ok(Some(format!(
            "{of_client} orders of yours are open; pay them or let them expire"
        )));
    }
    Ok((of_all >= config.max_orders).then(|| "too many orders are open; try later".into()))
}

/// Why a channel is not opened for an order whose payment is held.
pub(super) enum Obstacle {
    /// Nor will it be.
    Final(String),
    /// Others have used up what there is: it may be had later.
    ForNow(String),
}

/// The last word before a channel is opened for an order whose payment is held: then its number is stored, and its cost counts.
pub(super) async fn may_open(
    ctx: &Context,
    row: &OrderRow,
    channel: u64,
    now: u64,
) -> Result<Result<(), Obstacle>> {
    let Order {
        id,
        lsp_balance_sat,
        confirm_within,
        fee_sat,
        ..
    } = &row.order;
    if row.opens >= TRIES {
        let why = format!("its channel did not come about: {}", row.note);
        return Ok(Err(Obstacle::Final(why)));
    }
    let means = Means::now(ctx, (*confirm_within).clamp(1, SLOWEST)).await;
    if *fee_sat < means.fee.to_sat() {
        let why = "the price does not pay for the channel's funding as feerates are";
        return Ok(Err(Obstacle::Final(why.into())));
    }
    if !means.suffice_for(Amount::from_sat(*lsp_balance_sat)) {
        let why = "the wallet has not the coins for this channel";
        return Ok(Err(Obstacle::ForNow(why.into())));
    }
    ctx.store
        .write(async |tx| {
            if let Some(why) = closed(ctx, tx, Some(id), (means.fee, now)).await? {
                return Ok(Err(Obstacle::ForNow(why)));
            }
            rows::opening(tx, id, channel, means.fee.to_sat(), now).await?;
            Ok(Ok(()))
        })
        .await
}
