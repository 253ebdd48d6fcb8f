//! What may be sold and opened: the wallet's coins, the day's fees, the hour's channels, what clients have open.

use bitcoin::Amount;
use channel_host::JitOpening;
use factory_tree::ids::ClientId;

use crate::context::Context;
use crate::limits::{DAY, HOUR, Limits, Means, TRIES, Used};
use crate::sales::JitPrice;
use crate::store::jit::{self as rows, State};
use crate::store::{Conn, Result, lsps1};

/// What there is, for who asks.
async fn means(ctx: &Context) -> Means {
    Means::lately(ctx, ctx.config.chain.fee_target_blocks).await
}

/// Why nothing can be opened now, if so.
pub(super) async fn closed(
    ctx: &Context,
    conn: &mut Conn,
    fee: Amount,
    now: u64,
) -> Result<Option<String>> {
    let config = &ctx.config.jit;
    let limits = Limits {
        opens_per_hour: config.opens_per_hour,
        onchain_budget_sat: config.onchain_budget_sat,
    };
    let used = Used {
        opens: rows::opens_since(conn, now.saturating_sub(HOUR)).await?,
        onchain_sat: rows::onchain_since(conn, now.saturating_sub(DAY)).await?,
    };
    Ok(limits.closed(used, fee))
}

/// The least fee that is worth it as feerates are: what funding a channel costs, or what the price list says.
pub(super) async fn least_fee_msat(ctx: &Context, price: JitPrice) -> u64 {
    let costs = means(ctx).await.fee.to_sat().saturating_mul(1000);
    costs.max(price.min_fee_msat)
}

/// The largest payment a channel can be opened for now, in satoshi; 0 if none.
pub(super) async fn largest(ctx: &Context, now: u64) -> Result<u64> {
    let config = &ctx.config.jit;
    let means = means(ctx).await;
    let fee = means.fee;
    let read = ctx.store.read(async |tx| {
        let closed = closed(ctx, tx, fee, now).await?;
        Ok((closed, lsps1::tried_from_stock_sat(tx).await?))
    });
    let (closed, owed_sat) = read.await?;
    if closed.is_some() {
        return Ok(0);
    }
    let coins = means.without(owed_sat).coins;
    let free = coins.to_sat().saturating_sub(fee.to_sat());
    // A channel holds the payment and a margin: so much, or a tenth.
    let by_margin = free.saturating_sub(config.margin_sat);
    let by_tenth = free / 11 * 10;
    Ok(config.max_payment_sat.min(by_margin).min(by_tenth))
}

/// Why this client's order is one too many, if so.
pub(super) async fn too_many(
    ctx: &Context,
    conn: &mut Conn,
    client: ClientId,
    now: u64,
) -> Result<Option<String>> {
    let config = &ctx.config.jit;
    let (of_client, of_all) = rows::open_orders(conn, client, now).await?;
    if of_client >= config.orders_per_client {
        return Ok(Some(format!(
            "{of_client} orders of yours are open; use them or let them expire"
        )));
    }
    Ok((of_all >= config.max_orders).then(|| "too many orders are open; try later".into()))
}

/// Whether the channel may be opened, now that the payment is there; then its cost counts.
pub(super) async fn may_open(
    ctx: &Context,
    opening: &JitOpening,
    now: u64,
) -> Result<Result<(), String>> {
    let means = Means::now(ctx, ctx.config.chain.fee_target_blocks).await;
    let fee = means.fee;
    if opening.fee.0 < fee.to_sat().saturating_mul(1000) {
        return Ok(Err(
            "the fee does not pay for the channel's funding as feerates are".into(),
        ));
    }
    ctx.store
        .write(async |tx| {
            // For what is tried from a stock: only a factory's client can have that, while anybody can pay for an order and never come for it.
            let means = means.without(lsps1::tried_from_stock_sat(tx).await?);
            if !means.suffice_for(opening.capacity) {
                return Ok(Err("the wallet has not the coins for this channel".into()));
            }
            let Some(row) = rows::get(tx, opening.scid).await? else {
                return Ok(Err("the order is not in the books".into()));
            };
            if row.state == State::Closed || row.opens >= TRIES {
                return Ok(Err("its channel did not come about too often".into()));
            }
            if !ctx.config.jit.enabled {
                return Ok(Err("channels are not sold any more".into()));
            }
            if let Some(why) = closed(ctx, tx, fee, now).await? {
                return Ok(Err(why));
            }
            rows::opening(tx, opening, fee.to_sat(), now).await?;
            Ok(Ok(()))
        })
        .await
}
