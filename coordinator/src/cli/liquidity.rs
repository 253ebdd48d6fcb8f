//! `coordinator liquidity ..`

use proto::admin::admin_client::AdminClient;
use proto::admin::*;
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::args::LiquidityCommand;
use super::operator::refused;
use super::output::{pairs, sat, sold, table};
use super::{Failure, outln, sales};

pub async fn call(
    admin: &mut AdminClient<Channel>,
    json: bool,
    command: &LiquidityCommand,
) -> Result<(), Failure> {
    match command {
        LiquidityCommand::Jit { limit } => {
            let request = LiquidityJitRequest { limit: *limit };
            let answer = admin.liquidity_jit(request).await;
            jit(json, &answer.map_err(refused)?.into_inner());
        }
        LiquidityCommand::Orders { limit } => {
            let request = LiquidityOrdersRequest { limit: *limit };
            let answer = admin.liquidity_orders(request).await;
            orders(json, &answer.map_err(refused)?.into_inner());
        }
        LiquidityCommand::Stock => {
            let answer = admin.liquidity_stock(LiquidityStockRequest {}).await;
            sales::stock(json, &answer.map_err(refused)?.into_inner());
        }
        LiquidityCommand::Sales { limit } => {
            let request = LiquiditySalesRequest { limit: *limit };
            let answer = admin.liquidity_sales(request).await;
            sales::sales(json, &answer.map_err(refused)?.into_inner());
        }
        LiquidityCommand::Prices(command) => sales::prices(admin, json, command).await?,
        LiquidityCommand::Revenue { days, csv } => {
            let request = LiquidityRevenueRequest { days: *days };
            let answer = admin.liquidity_revenue(request).await;
            sales::revenue(json, *csv, &answer.map_err(refused)?.into_inner());
        }
    }
    Ok(())
}

fn jit(json: bool, answer: &LiquidityJitResponse) {
    if json {
        let orders: Vec<Value> = answer.orders.iter().map(order_json).collect();
        outln!(
            "{}",
            json!({
                "enabled": answer.enabled,
                "opens": answer.opens, "opens_limit": answer.opens_limit,
                "onchain_sat": answer.onchain_sat, "onchain_limit_sat": answer.onchain_limit_sat,
                "taken_msat": answer.taken_msat,
                "orders": orders,
            })
        );
        return;
    }
    let of = |used: u64, limit: u64| format!("{used} of {limit}");
    pairs(&[
        ("sold", sold(answer.enabled, "jit")),
        ("opened this hour", of(answer.opens, answer.opens_limit)),
        (
            "on-chain fees today (sat)",
            of(answer.onchain_sat, answer.onchain_limit_sat),
        ),
        ("fees taken today (sat)", sat(answer.taken_msat)),
    ]);
    let rows: Vec<Vec<String>> = answer
        .orders
        .iter()
        .map(|order| {
            let number = |value: Option<u64>| value.map_or_else(String::new, |it| it.to_string());
            vec![
                order.scid.clone(),
                hex::encode(order.client.get(..4).unwrap_or_default()),
                order.state.clone(),
                order.fee_msat.map_or_else(String::new, sat),
                sat(order.taken_msat),
                number(order.capacity_sat),
                match order.sale {
                    Some(_) => "a stock".to_owned(),
                    None => order.onchain_sat.to_string(),
                },
                order.problem.clone(),
            ]
        })
        .collect();
    table(
        &[
            "order",
            "client",
            "state",
            "fee (sat)",
            "taken (sat)",
            "capacity (sat)",
            "on-chain (sat)",
            "problem",
        ],
        &rows,
    );
}

fn order_json(order: &JitOrder) -> Value {
    json!({
        "scid": order.scid, "client": hex::encode(&order.client), "state": order.state,
        "payment_msat": order.payment_msat, "min_fee_msat": order.min_fee_msat, "fee_ppm": order.fee_ppm,
        "valid_until": order.valid_until, "created_at": order.created_at, "client_trusts_lsp": order.client_trusts_lsp,
        "fee_msat": order.fee_msat, "taken_msat": order.taken_msat, "capacity_sat": order.capacity_sat,
        "channel": order.channel, "funding": order.funding, "sale": order.sale, "onchain_sat": order.onchain_sat,
        "opens": order.opens, "problem": order.problem,
    })
}

fn orders(json: bool, answer: &LiquidityOrdersResponse) {
    if json {
        let orders: Vec<Value> = answer.orders.iter().map(channel_order_json).collect();
        outln!(
            "{}",
            json!({
                "enabled": answer.enabled,
                "opens": answer.opens, "opens_limit": answer.opens_limit,
                "onchain_sat": answer.onchain_sat, "onchain_limit_sat": answer.onchain_limit_sat,
                "taken_msat": answer.taken_msat,
                "orders": orders,
            })
        );
        return;
    }
    let of = |used: u64, limit: u64| format!("{used} of {limit}");
    pairs(&[
        ("sold", sold(answer.enabled, "lsps1")),
        ("opened this hour", of(answer.opens, answer.opens_limit)),
        (
            "on-chain fees today (sat)",
            of(answer.onchain_sat, answer.onchain_limit_sat),
        ),
        ("taken today (sat)", sat(answer.taken_msat)),
    ]);
    let rows: Vec<Vec<String>> = answer
        .orders
        .iter()
        .map(|order| {
            vec![
                order.order_id.clone(),
                hex::encode(order.client.get(..4).unwrap_or_default()),
                order.state.clone(),
                order.lsp_balance_sat.to_string(),
                order.fee_sat.to_string(),
                sat(order.taken_msat),
                order.onchain_sat.to_string(),
                order.note.clone(),
            ]
        })
        .collect();
    table(
        &[
            "order",
            "client",
            "state",
            "capacity (sat)",
            "price (sat)",
            "taken (sat)",
            "on-chain (sat)",
            "note",
        ],
        &rows,
    );
}

fn channel_order_json(order: &ChannelOrder) -> Value {
    json!({
        "order_id": order.order_id, "client": hex::encode(&order.client), "state": order.state,
        "lsp_balance_sat": order.lsp_balance_sat, "announce": order.announce, "expiry_blocks": order.expiry_blocks,
        "fee_sat": order.fee_sat, "taken_msat": order.taken_msat, "created_at": order.created_at, "valid_until": order.valid_until,
        "held_until": order.held_until, "opens": order.opens, "channel": order.channel, "onchain_sat": order.onchain_sat,
        "funding": order.funding, "funded_at": order.funded_at, "expires_at": order.expires_at, "ended_at": order.ended_at,
        "note": order.note, "hash": hex::encode(&order.hash),
    })
}
