//! What is sold.

use proto::admin::*;
use proto::session::ServiceError;

use super::convert::store_error;
use crate::clock::unix_time;
use crate::context::Context;
use crate::jit::scid_text;
use crate::limits::{DAY, HOUR};
use crate::lsps1;
use crate::store::jit::{self as rows, OrderRow};
use crate::store::lsps1 as orders;

/// The most orders that are listed at once.
const MOST: u32 = 10_000;

/// Channels sold just in time.
pub async fn jit(ctx: &Context, limit: u32) -> Result<LiquidityJitResponse, ServiceError> {
    let now = unix_time();
    let read = ctx.store.read(async |tx| {
        Ok((
            rows::list(tx, limit.min(MOST)).await?,
            rows::opens_since(tx, now.saturating_sub(HOUR)).await?,
            rows::onchain_since(tx, now.saturating_sub(DAY)).await?,
            rows::taken_since(tx, now.saturating_sub(DAY)).await?,
        ))
    });
    let (orders, opens, onchain_sat, taken_msat) =
        read.await.map_err(|error| store_error(&error))?;
    let config = &ctx.config.jit;
    Ok(LiquidityJitResponse {
        orders: orders.iter().map(order).collect(),
        enabled: config.enabled,
        opens,
        opens_limit: config.opens_per_hour,
        onchain_sat,
        onchain_limit_sat: config.onchain_budget_sat,
        taken_msat,
    })
}

fn order(row: &OrderRow) -> JitOrder {
    JitOrder {
        scid: scid_text(row.scid),
        client: row.client.0.to_vec().into(),
        state: row.state.name().to_owned(),
        payment_msat: row.payment_msat,
        min_fee_msat: row.min_fee_msat,
        fee_ppm: row.fee_ppm,
        valid_until: row.valid_until,
        created_at: row.created_at,
        client_trusts_lsp: row.client_trusts_lsp,
        fee_msat: row.fee_msat,
        taken_msat: row.taken_msat,
        capacity_sat: row.capacity_sat,
        channel: row.channel.map(|number| number.to_string()),
        funding: row.funding.map(|txid| txid.to_string()),
        sale: row.sale.map(|sale| sale.to_string()),
        onchain_sat: row.onchain_sat,
        opens: row.opens,
        problem: row.problem.clone(),
    }
}

/// Channels ordered in advance.
pub async fn orders(ctx: &Context, limit: u32) -> Result<LiquidityOrdersResponse, ServiceError> {
    let now = unix_time();
    let read = ctx.store.read(async |tx| {
        Ok((
            orders::list(tx, limit.min(MOST)).await?,
            orders::opens_since(tx, now.saturating_sub(HOUR)).await?,
            orders::onchain_since(tx, now.saturating_sub(DAY), None).await?,
            orders::taken_since(tx, now.saturating_sub(DAY)).await?,
        ))
    });
    let (all, opens, onchain_sat, taken_msat) = read.await.map_err(|error| store_error(&error))?;
    let config = &ctx.config.lsps1;
    Ok(LiquidityOrdersResponse {
        orders: all.iter().map(channel_order).collect(),
        enabled: config.enabled,
        opens,
        opens_limit: config.opens_per_hour,
        onchain_sat,
        onchain_limit_sat: config.onchain_budget_sat,
        taken_msat,
    })
}

fn channel_order(row: &orders::OrderRow) -> ChannelOrder {
    let order = &row.order;
    let expires_at = |funded_at| lsps1::expires_at(order, funded_at);
    ChannelOrder {
        order_id: order.id.clone(),
        client: order.client.0.to_vec().into(),
        state: row.state.name().to_owned(),
        lsp_balance_sat: order.lsp_balance_sat,
        announce: order.announce,
        expiry_blocks: order.expiry_blocks,
        fee_sat: order.fee_sat,
        taken_msat: row.taken_msat,
        created_at: order.created_at,
        valid_until: order.valid_until,
        held_until: row.held_until,
        opens: row.opens,
        channel: row.channel.map(|number| number.to_string()),
        onchain_sat: row.onchain_sat,
        funding: row.funding.map(|outpoint| outpoint.to_string()),
        funded_at: row.funded_at,
        expires_at: row.funded_at.map(expires_at),
        ended_at: row.ended_at,
        note: row.note.clone(),
        hash: order.hash.0.to_vec().into(),
    }
}
