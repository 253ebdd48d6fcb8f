//! `coordinator liquidity stock`, `sales`, `prices` and `revenue`.

use chrono::DateTime;
use proto::admin::admin_client::AdminClient;
use proto::admin::*;
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::args::PricesCommand;
use super::node::node_id;
use super::operator::{refused, unambiguous, usage};
use super::output::{pairs, sat, sold, table};
use super::{Failure, outln};

fn short(id: &[u8]) -> String {
    hex::encode(id.get(..4).unwrap_or_default())
}

pub(super) fn stock(as_json: bool, answer: &LiquidityStockResponse) {
    if as_json {
        let stocks: Vec<Value> = answer.stocks.iter().map(stock_json).collect();
        outln!("{}", json!({ "enabled": answer.enabled, "stocks": stocks }));
        return;
    }
    pairs(&[("sold", sold(answer.enabled, "sales"))]);
    let rows: Vec<Vec<String>> = answer
        .stocks
        .iter()
        .map(|stock| {
            let gone = stock.birth_sat.saturating_sub(stock.left_sat);
            let sold = gone.saturating_sub(stock.bonus_sat);
            let last = stock
                .position
                .saturating_add(stock.clients.saturating_sub(1));
            vec![
                short(&stock.factory),
                format!("{}-{last}", stock.position),
                stock.left_sat.to_string(),
                sold.to_string(),
                stock.bonus_sat.to_string(),
                format!("{} of {}", stock.sales, stock.sales_limit),
                stock
                    .reserved_for
                    .as_deref()
                    .map_or_else(String::new, short),
                stock.sign_until.to_string(),
                stock.problem.clone(),
            ]
        })
        .collect();
    table(
        &[
            "factory",
            "places",
            "left (sat)",
            "sold (sat)",
            "bonus (sat)",
            "sales",
            "reserved for",
            "until height",
            "problem",
        ],
        &rows,
    );
}

fn stock_json(stock: &StockState) -> Value {
    json!({
        "factory": hex::encode(&stock.factory), "position": stock.position, "clients": stock.clients,
        "birth_sat": stock.birth_sat, "left_sat": stock.left_sat, "sales": stock.sales, "sales_limit": stock.sales_limit,
        "under_way": stock.under_way.as_ref().map(hex::encode), "reserved_for": stock.reserved_for.as_ref().map(hex::encode),
        "sign_until": stock.sign_until, "problem": stock.problem, "bonus_sat": stock.bonus_sat,
    })
}

pub(super) fn sales(as_json: bool, answer: &LiquiditySalesResponse) {
    if as_json {
        let sales: Vec<Value> = answer.sales.iter().map(sale_json).collect();
        outln!("{}", json!({ "sales": sales }));
        return;
    }
    let rows: Vec<Vec<String>> = answer
        .sales
        .iter()
        .map(|sale| {
            vec![
                short(&sale.sale),
                short(&sale.client),
                short(&sale.factory),
                sale.place.to_string(),
                sale.state.clone(),
                sale.capacity_sat.to_string(),
                sale.bonus_sat.to_string(),
                sat(sale.fee_msat),
                sat(sale.taken_msat),
                sale.note.clone(),
            ]
        })
        .collect();
    table(
        &[
            "sale",
            "client",
            "factory",
            "number",
            "state",
            "capacity (sat)",
            "bonus (sat)",
            "fee (sat)",
            "taken (sat)",
            "note",
        ],
        &rows,
    );
}

fn sale_json(sale: &StockSale) -> Value {
    json!({
        "sale": hex::encode(&sale.sale), "client": hex::encode(&sale.client), "factory": hex::encode(&sale.factory),
        "number": sale.place, "state": sale.state, "capacity_sat": sale.capacity_sat, "fee_msat": sale.fee_msat,
        "taken_msat": sale.taken_msat, "attempts": sale.attempts, "bound": sale.bound, "delivered": sale.delivered,
        "held_until": sale.held_until, "ordered_at": sale.ordered_at, "ended_at": sale.ended_at, "note": sale.note,
        "hash": hex::encode(&sale.hash), "leaf_id": hex::encode(&sale.leaf_id), "bonus_sat": sale.bonus_sat,
    })
}

// ---- prices --------------------------------------------------------------------------------------------------------

/// A whole id; `None` for the beginning of one. Fewer digits are more likely a slip.
fn whole_id(text: &str) -> Result<Option<Vec<u8>>, Failure> {
    let is_beginning = (8..66).contains(&text.len()) && text.chars().all(|c| c.is_ascii_hexdigit());
    if is_beginning {
        return Ok(None);
    }
    let wrong = |_| {
        usage(format!(
            "{text:?} is no client's id: it has 66 hex digits, of which the first 8 will do"
        ))
    };
    node_id(text).map(Some).map_err(wrong)
}

/// The client whose id this is, or is an unambiguous beginning of.
async fn client_id(
    admin: &mut AdminClient<Channel>,
    text: Option<&String>,
) -> Result<Option<prost::bytes::Bytes>, Failure> {
    let Some(text) = text else {
        return Ok(None);
    };
    if let Some(id) = whole_id(text)? {
        return Ok(Some(id.into()));
    }
    let request = ClientListRequest {
        connected_only: false,
    };
    let list = admin.client_list(request).await.map_err(refused)?;
    let clients = list.into_inner().clients;
    let ids = clients.iter().map(|client| &client.id);
    let text = text.to_ascii_lowercase();
    unambiguous(&text, ids, "client's id", "client list").map(Some)
}

pub(super) async fn prices(
    admin: &mut AdminClient<Channel>,
    as_json: bool,
    command: &PricesCommand,
) -> Result<(), Failure> {
    let answer = match command {
        PricesCommand::Show => admin.liquidity_prices(LiquidityPricesRequest {}).await,
        PricesCommand::Set {
            client,
            base_fee_sat,
            fee_ppm,
            fee_ppm_per_day,
            onchain_ppm,
            min_fee_sat,
            max_fee_sat,
            bonus_sat,
            jit_min_fee_msat,
            jit_fee_ppm,
        } => {
            let price = PriceList {
                base_fee_sat: *base_fee_sat,
                fee_ppm: *fee_ppm,
                fee_ppm_per_day: *fee_ppm_per_day,
                onchain_ppm: *onchain_ppm,
                min_fee_sat: *min_fee_sat,
                max_fee_sat: *max_fee_sat,
                bonus_sat: *bonus_sat,
                jit_min_fee_msat: *jit_min_fee_msat,
                jit_fee_ppm: *jit_fee_ppm,
            };
            let request = LiquiditySetPriceRequest {
                client: client_id(admin, client.as_ref()).await?,
                price: Some(price),
            };
            admin.liquidity_set_price(request).await
        }
        PricesCommand::Unset { client } => {
            let client = client_id(admin, client.as_ref()).await?;
            let request = LiquidityUnsetPriceRequest { client };
            admin.liquidity_unset_price(request).await
        }
    };
    show_prices(as_json, &answer.map_err(refused)?.into_inner());
    Ok(())
}

fn show_prices(as_json: bool, answer: &LiquidityPricesResponse) {
    let configured = answer.configured.unwrap_or_default();
    if as_json {
        let set = answer.set.iter().map(|set| {
            json!({
                "client": set.client.as_ref().map(hex::encode),
                "said": price_json(&set.said.unwrap_or_default()),
                "price": price_json(&set.price.unwrap_or_default()),
            })
        });
        let set: Vec<Value> = set.collect();
        outln!(
            "{}",
            json!({ "configured": price_json(&configured), "set": set })
        );
        return;
    }
    let mut rows = vec![price_row("configured".to_owned(), &configured)];
    for set in &answer.set {
        let client = set.client.as_ref();
        let whose = client.map_or_else(|| "all".to_owned(), hex::encode);
        rows.push(price_row(whose, &set.price.unwrap_or_default()));
    }
    table(
        &[
            "for",
            "fixed (sat)",
            "ppm",
            "ppm per day",
            "on-chain (ppm)",
            "at least (sat)",
            "at most (sat)",
            "bonus (sat)",
            "just in time: at least (msat)",
            "ppm",
        ],
        &rows,
    );
}

fn price_row(whose: String, price: &PriceList) -> Vec<String> {
    let text = |value: Option<u64>| value.map_or_else(String::new, |value| value.to_string());
    vec![
        whose,
        text(price.base_fee_sat),
        text(price.fee_ppm.map(u64::from)),
        text(price.fee_ppm_per_day.map(u64::from)),
        text(price.onchain_ppm.map(u64::from)),
        text(price.min_fee_sat),
        text(price.max_fee_sat),
        text(price.bonus_sat),
        text(price.jit_min_fee_msat),
        text(price.jit_fee_ppm.map(u64::from)),
    ]
}

fn price_json(price: &PriceList) -> Value {
    json!({
        "base_fee_sat": price.base_fee_sat, "fee_ppm": price.fee_ppm, "fee_ppm_per_day": price.fee_ppm_per_day,
        "onchain_ppm": price.onchain_ppm, "min_fee_sat": price.min_fee_sat, "max_fee_sat": price.max_fee_sat,
        "bonus_sat": price.bonus_sat, "jit_min_fee_msat": price.jit_min_fee_msat, "jit_fee_ppm": price.jit_fee_ppm,
    })
}

// ---- revenue -------------------------------------------------------------------------------------------------------

fn date(day: u64) -> String {
    let at = i64::try_from(day).ok();
    let at = at.and_then(|at| DateTime::from_timestamp(at, 0));
    at.map_or_else(|| day.to_string(), |at| at.format("%Y-%m-%d").to_string())
}

/// Earned less spent, in thousandths of a satoshi.
fn net_msat(day: &RevenueDay) -> i128 {
    let earned = [
        day.sales_msat,
        day.jit_msat,
        day.lsps1_msat,
        day.routing_msat,
    ];
    let earned: i128 = earned.into_iter().map(i128::from).sum();
    earned.saturating_sub(i128::from(day.onchain_sat).saturating_mul(1000))
}

pub(super) fn revenue(as_json: bool, csv: bool, answer: &LiquidityRevenueResponse) {
    if csv {
        outln!("day,sales_msat,jit_msat,lsps1_msat,routing_msat,onchain_sat,net_msat,bonus_sat");
        for day in &answer.days {
            let (sales, jit, lsps1) = (day.sales_msat, day.jit_msat, day.lsps1_msat);
            let (routing, onchain) = (day.routing_msat, day.onchain_sat);
            outln!(
                "{},{sales},{jit},{lsps1},{routing},{onchain},{},{}",
                date(day.day),
                net_msat(day),
                day.bonus_sat
            );
        }
        return;
    }
    if as_json {
        let days = answer.days.iter().map(|day| {
            // As text: JSON's numbers end before ours.
            json!({
                "day": date(day.day), "sales_msat": day.sales_msat, "jit_msat": day.jit_msat,
                "lsps1_msat": day.lsps1_msat, "routing_msat": day.routing_msat, "onchain_sat": day.onchain_sat,
                "net_msat": net_msat(day).to_string(), "bonus_sat": day.bonus_sat,
            })
        });
        let days: Vec<Value> = days.collect();
        outln!("{}", json!({ "days": days }));
        return;
    }
    let rows: Vec<Vec<String>> = answer
        .days
        .iter()
        .map(|day| {
            vec![
                date(day.day),
                sat(day.sales_msat),
                sat(day.jit_msat),
                sat(day.lsps1_msat),
                sat(day.routing_msat),
                day.onchain_sat.to_string(),
                net_msat(day).div_euclid(1000).to_string(),
                day.bonus_sat.to_string(),
            ]
        })
        .collect();
    table(
        &[
            "day",
            "stock sales (sat)",
            "just in time (sat)",
            "ordered (sat)",
            "routing (sat)",
            "on-chain (sat)",
            "net (sat)",
            "bonus given (sat)",
        ],
        &rows,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_clients_id_the_first_digits_will_do() {
        let whole = "02".repeat(33);
        assert_eq!(whole_id(&whole).unwrap(), Some(vec![2; 33]));
        assert_eq!(whole_id("deadbeef").unwrap(), None);
        for wrong in ["deadbe", "deadbeeg", &"02".repeat(34)] {
            let failure = whole_id(wrong).unwrap_err();
            let text = failure.error.to_string();
            assert!(text.contains("the first 8 will do"), "{text}");
        }
    }

    #[test]
    fn a_day_is_what_came_in_less_what_went_out() {
        let day = RevenueDay {
            day: 86_400 * 365,
            sales_msat: 1_500,
            jit_msat: 500,
            lsps1_msat: 200,
            routing_msat: 30,
            onchain_sat: 3,
            bonus_sat: 7,
        };
        assert_eq!(net_msat(&day), -770);
        assert_eq!(date(day.day), "1971-01-01");
    }
}
