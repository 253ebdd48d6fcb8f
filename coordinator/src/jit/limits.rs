//! What may be sold and opened: the wallet's coins, the day's fees, the hour's channels, what clients have open.

use bitcoin::Amount;
use channel_host::{JitOpening, RpcError};
use factory_tree::ids::ClientId;

use crate::context::Context;
use crate::limits::{CLIENT_REJECTED, DAY, HOUR, Limits, Means, TRIES, Used};
use crate::lsps::Refusal;
use crate::sales::JitPrice;
use crate::store::jit::{self as rows, State};
use crate::store::{Conn, Result};

async fn means(ctx: &Context) -> Means {
    Means::now(ctx, ctx.config.chain.fee_target_blocks).await
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
    let closed = ctx
        .store
        .read(async |tx| closed(ctx, tx, fee, now).await)
        .await?;
    if closed.is_some() {
        return Ok(0);
    }
    let free = means.coins.to_sat().saturating_sub(fee.to_sat());
    // A channel holds the payment and a margin: so much, or a tenth.
    let by_margin = free.saturating_sub(config.margin_sat);
    let by_tenth = free / 11 * 10;
    Ok(config.max_payment_sat.min(by_margin).min(by_tenth))
}

/// Whether an order for a payment of this size can be served as things are.
pub(super) async fn may_sell(
    ctx: &Context,
    client: ClientId,
    payment_sat: u64,
    now: u64,
) -> Result<(), Refusal> {
    let no = |text: String| Refusal::Rpc(RpcError::new(CLIENT_REJECTED, text));
    if largest(ctx, now).await? < payment_sat {
        return Err(no("no such channel can be opened now; try later".into()));
    }
    let config = &ctx.config.jit;
    let (of_client, of_all) = ctx
        .store
        .read(async |tx| rows::open_orders(tx, client, now).await)
        .await?;
    if of_client >= config.orders_per_client {
        let text = format!("{of_client} orders of yours are open; use them or let them expire");
        return Err(no(text));
    }
    if of_all >= config.max_orders {
        return Err(no("too many orders are open; try later".into()));
    }
    Ok(())
}

/// Whether the channel may be opened, now that the payment is there; then its cost counts.
pub(super) async fn may_open(
    ctx: &Context,
    opening: &JitOpening,
    now: u64,
) -> Result<Result<(), String>> {
    let means = means(ctx).await;
    let fee = means.fee;
    if opening.fee.0 < fee.to_sat().saturating_mul(1000) {
        return Ok(Err(
            "the fee does not pay for the channel's funding as feerates are".into(),
        ));
    }
    if !means.suffice_for(opening.capacity) {
        return Ok(Err("the wallet has not the coins for this channel".into()));
    }
    ctx.store
        .write(async |tx| {
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
