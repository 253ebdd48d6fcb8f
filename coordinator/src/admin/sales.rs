//! What stocks have left, what was sold from them, what that costs, and what it brought.

use factory_tree::ids::ClientId;
use proto::admin::*;
use proto::session::ServiceError;
use proto::v1::ErrorCode;

use super::convert::{store_error, trees_error};
use crate::clock::unix_time;
use crate::context::Context;
use crate::sales::{self, JitPrice, KnownStock, NoSale, Price, PriceOverride, SalesError};
use crate::store::factories::{self, FactoryRow};
use crate::store::prices as price_rows;
use crate::store::sales::{self as rows, SaleRow, state_name};

/// The most orders that are listed at once.
const MOST: u32 = 10_000;
/// The most days.
const MOST_DAYS: u32 = 3_650;
const DAY: u64 = 86_400;

fn sales_error(error: SalesError) -> ServiceError {
    match error {
        SalesError::Store(error) => store_error(&error),
        SalesError::Trees(error) => trees_error(&error),
        error => ServiceError::new(ErrorCode::Internal, error.to_string()),
    }
}

/// What every stock has left. Once its factory's funding output is spent nothing is sold from one, and `ladder show` says what lies on the chain.
pub async fn stock(ctx: &Context) -> Result<LiquidityStockResponse, ServiceError> {
    let funded = ctx
        .store
        .read(async |tx| factories::funded(tx).await)
        .await
        .map_err(|error| store_error(&error))?;
    let mut stocks = Vec::new();
    let stands = |row: &FactoryRow| !row.spent && !row.forgotten;
    for factory in funded.into_iter().filter(stands) {
        let mut position = 0;
        while position < factory.clients {
            let known = sales::known(ctx, factory.id, position).await;
            // Clients that share a stock are neighbours.
            position = match known.map_err(sales_error)? {
                Some(known) => {
                    stocks.push(state(ctx, &known));
                    known.stock.clients().end.max(position.saturating_add(1))
                }
                None => position.saturating_add(1),
            };
        }
    }
    Ok(LiquidityStockResponse {
        stocks,
        enabled: ctx.config.sales.enabled,
    })
}

fn state(ctx: &Context, known: &KnownStock) -> StockState {
    let stock = &known.stock;
    let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    let reserved = known
        .reserved()
        .map(|row| row.order.client.0.to_vec().into());
    let problem = match sales::sells(ctx, known) {
        Err(why @ NoSale::Declined(_)) => match ctx.sales.who_declines(known.outpoint()) {
            Some(client) => format!("{why} (client {client})"),
            None => String::new(),
        },
        Err(why) => why.to_string(),
        Ok(()) => String::new(),
    };
    StockState {
        factory: known.factory.id.0.to_vec().into(),
        position: stock.clients().start,
        clients: count(stock.clients().len()),
        birth_sat: known.birth_amount().to_sat(),
        left_sat: stock.amount().to_sat(),
        sales: count(stock.sales().len()),
        sales_limit: stock.params().chain_depth_max.into(),
        under_way: known
            .under_way()
            .map(|row| row.order.sale.0.to_vec().into()),
        reserved_for: reserved,
        sign_until: known.sign_until(),
        problem,
        bonus_sat: stock.sales().iter().fold(0, |sum: u64, sale| {
            sum.saturating_add(sale.bonuses().to_sat())
        }),
    }
}

/// The newest orders.
pub async fn sales(ctx: &Context, limit: u32) -> Result<LiquiditySalesResponse, ServiceError> {
    let listed = ctx
        .store
        .read(async |tx| rows::list(tx, limit.min(MOST)).await)
        .await
        .map_err(|error| store_error(&error))?;
    Ok(LiquiditySalesResponse {
        sales: listed.iter().map(sale).collect(),
    })
}

fn sale(row: &SaleRow) -> StockSale {
    let order = &row.order;
    StockSale {
        sale: order.sale.0.to_vec().into(),
        client: order.client.0.to_vec().into(),
        factory: order.factory.0.to_vec().into(),
        place: order.place.into(),
        state: state_name(row.state).to_owned(),
        capacity_sat: order.capacity.to_sat(),
        fee_msat: order.fee_msat,
        taken_msat: row.taken_msat,
        attempts: row.attempts.0,
        bound: row.bound.is_some(),
        delivered: row.delivered,
        held_until: row.held_until,
        ordered_at: order.ordered_at,
        ended_at: row.ended_at,
        note: row.note.clone(),
        hash: order.hash.0.to_vec().into(),
        leaf_id: order.leaf_id.0.to_vec().into(),
        bonus_sat: row.bonus.to_sat(),
    }
}

/// What is configured, and what was set.
pub async fn prices(ctx: &Context) -> Result<LiquidityPricesResponse, ServiceError> {
    let all = ctx
        .store
        .read(async |tx| price_rows::all(tx).await)
        .await
        .map_err(|error| store_error(&error))?;
    let (configured, jit) = (ctx.config.sales.price(), ctx.config.jit.price());
    let mut everybody = PriceOverride::default();
    let mut set = Vec::new();
    for (client, said) in all {
        if client.is_none() {
            everybody = said;
        }
        let over = everybody.then(said);
        set.push(SetPrice {
            client: client.map(|client| client.0.to_vec().into()),
            said: Some(said_list(&said)),
            price: Some(list(&over.over(configured), &over.over_jit(jit))),
        });
    }
    Ok(LiquidityPricesResponse {
        configured: Some(list(&configured, &jit)),
        set,
    })
}

fn said_list(said: &PriceOverride) -> PriceList {
    PriceList {
        base_fee_sat: said.base_fee_sat,
        fee_ppm: said.fee_ppm,
        fee_ppm_per_day: said.fee_ppm_per_day,
        onchain_ppm: said.onchain_ppm,
        min_fee_sat: said.min_fee_sat,
        max_fee_sat: said.max_fee_sat,
        bonus_sat: said.bonus_sat,
        jit_min_fee_msat: said.jit_min_fee_msat,
        jit_fee_ppm: said.jit_fee_ppm,
    }
}

fn list(price: &Price, jit: &JitPrice) -> PriceList {
    PriceList {
        base_fee_sat: Some(price.base_fee_sat),
        fee_ppm: Some(price.fee_ppm),
        fee_ppm_per_day: Some(price.fee_ppm_per_day),
        onchain_ppm: Some(price.onchain_ppm),
        min_fee_sat: Some(price.min_fee_sat),
        max_fee_sat: Some(price.max_fee_sat),
        bonus_sat: Some(price.bonus_sat),
        jit_min_fee_msat: Some(jit.min_fee_msat),
        jit_fee_ppm: Some(jit.fee_ppm),
    }
}

fn wrong(text: impl Into<String>) -> ServiceError {
    ServiceError::new(ErrorCode::InvalidArgument, text)
}

fn client_of(bytes: Option<&[u8]>) -> Result<Option<ClientId>, ServiceError> {
    let id = bytes.map(|bytes| {
        let id = ClientId::try_from(bytes).map_err(|error| wrong(error.to_string()))?;
        // A price for nobody would look as if it held.
        let key = bitcoin::secp256k1::PublicKey::from_slice(&id.0);
        key.map(|_| id).map_err(|_| wrong("this is no node id"))
    });
    id.transpose()
}

/// Sets a price.
pub async fn set_price(
    ctx: &Context,
    request: LiquiditySetPriceRequest,
) -> Result<LiquidityPricesResponse, ServiceError> {
    let client = client_of(request.client.as_deref())?;
    let said = request.price.unwrap_or_default();
    let said = PriceOverride {
        base_fee_sat: said.base_fee_sat,
        fee_ppm: said.fee_ppm,
        fee_ppm_per_day: said.fee_ppm_per_day,
        onchain_ppm: said.onchain_ppm,
        min_fee_sat: said.min_fee_sat,
        max_fee_sat: said.max_fee_sat,
        bonus_sat: said.bonus_sat,
        jit_min_fee_msat: said.jit_min_fee_msat,
        jit_fee_ppm: said.jit_fee_ppm,
    };
    if said.is_empty() {
        return Err(wrong(
            "say a price: --base-fee-sat, --fee-ppm and others; `liquidity prices set --help` names them all",
        ));
    }
    if let Some(problem) = said.problem() {
        return Err(wrong(problem));
    }
    let bounds = said.min_fee_sat.is_some() || said.max_fee_sat.is_some();
    let write = ctx.store.write(async |tx| {
        let all = price_rows::get(tx, None).await?.unwrap_or_default();
        let known = price_rows::get(tx, client).await?.unwrap_or_default();
        let said = known.then(said);
        let price = all.then(said).over(ctx.config.sales.price());
        let is_good = !bounds || price.is_consistent();
        if is_good {
            price_rows::set(tx, client, &said).await?;
        }
        Ok(is_good)
    });
    if !write.await.map_err(|error| store_error(&error))? {
        return Err(wrong(
            "the most would be less than the least: raise --max-fee-sat (0: none), or lower --min-fee-sat",
        ));
    }
    prices(ctx).await
}

/// Takes a price back.
pub async fn unset_price(
    ctx: &Context,
    request: LiquidityUnsetPriceRequest,
) -> Result<LiquidityPricesResponse, ServiceError> {
    let client = client_of(request.client.as_deref())?;
    let was_set = ctx
        .store
        .write(async |tx| price_rows::unset(tx, client).await)
        .await
        .map_err(|error| store_error(&error))?;
    if !was_set {
        let text = "no such price was set; see `liquidity prices show`";
        return Err(ServiceError::new(ErrorCode::NotFound, text));
    }
    prices(ctx).await
}

/// What was earned in the last days.
pub async fn revenue(ctx: &Context, days: u32) -> Result<LiquidityRevenueResponse, ServiceError> {
    let today = unix_time() / DAY * DAY;
    let before = u64::from(days.clamp(1, MOST_DAYS).saturating_sub(1));
    let since = today.saturating_sub(before.saturating_mul(DAY));
    let earned = ctx
        .store
        .read(async |tx| price_rows::revenue(tx, since).await)
        .await
        .map_err(|error| store_error(&error))?;
    let days = earned.into_iter().rev().map(|(day, revenue)| RevenueDay {
        day,
        sales_msat: revenue.sales_msat,
        jit_msat: revenue.jit_msat,
        lsps1_msat: revenue.lsps1_msat,
        routing_msat: revenue.routing_msat,
        onchain_sat: revenue.onchain_sat,
        bonus_sat: revenue.bonus_sat,
    });
    Ok(LiquidityRevenueResponse {
        days: days.collect(),
    })
}

#[cfg(test)]
mod tests {
    use factory_tree::params::ExpiryPolicy;

    use super::*;
    use crate::testing::TestWorld;

    #[tokio::test]
    async fn the_stock_of_a_factory_that_is_spent_is_not_left() {
        let world = TestWorld::new().await;
        world.chain.mine_to(10);
        let tree = world.factory(ExpiryPolicy::ClientRefund, 4).await;
        let funding = world.funding(&tree).await;
        world.chain.mine(&[funding]);
        let left = async || {
            world.follow().await;
            let stocks = stock(&world.ctx).await.unwrap().stocks;
            stocks.iter().map(|stock| stock.left_sat).sum::<u64>()
        };
        assert_eq!(left().await, 400_000);
        let published = tree.path(0)[0].tx.clone();
        world.chain.mine(&[published]);
        assert_eq!(left().await, 0);
    }
}
