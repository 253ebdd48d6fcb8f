//! Channels ordered in advance (LSPS1, bLIP-51): an order has a price that is promised, its payment is held until the channel's funding is out, and
//! goes back if nothing comes of it. What its client has ordered from a stock for it (`sales::others`) is tried first.
//!
//! One record per order, in our database, and one step (`step`) that looks at it, at the time, and at what the node says of its channel, and does
//! what is due. It may be taken at any time, and again after a crash. The node withholds the funding until it is told to let it out: that is stored
//! there, and the point of no return. Nothing costs us anything before a payment is held.

mod birth;
mod config;
mod limits;
mod params;
mod step;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bitcoin::{Amount, OutPoint};
use channel_host::{InvoiceRequest, Msat, RpcError, read_params};
use factory_tree::ids::ClientId;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::{Mutex, watch};

use crate::clock::unix_time as now;
use crate::context::Context;
use crate::event::Event;
use crate::fault;
use crate::keys::random;
use crate::limits::{CLIENT_REJECTED, DAY};
use crate::lsps::{Refusal, Text, datetime};
use crate::sales;
use crate::store;
use crate::store::lsps1::{self as rows, Order, OrderRow, State};

pub use config::Lsps1Config;
#[cfg(test)]
pub(crate) use step::look;
pub use step::{closed, held, received, release_at, run, stands};

const NOT_FOUND: i32 = 101;
/// A block takes ten minutes on average: by this, so many are over in almost every case, and the client's channel lives longer rather than shorter.
const SECONDS_PER_BLOCK: u64 = 660;
/// Seconds that a block takes on average.
const AVERAGE_BLOCK: u64 = 600;

/// Orders under way.
#[derive(Debug)]
pub struct Lsps1 {
    /// One step at a time.
    stepping: Mutex<()>,
    /// Counts what may ask for a look at all orders.
    work: watch::Sender<u64>,
}

impl Lsps1 {
    /// Something changed that an order may wait for.
    pub(crate) fn look_again(&self) {
        self.work
            .send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl Default for Lsps1 {
    fn default() -> Self {
        Self {
            stepping: Mutex::default(),
            work: watch::Sender::new(0),
        }
    }
}

/// Without `data`: where the specification does not insist on it, it is left out, as `lightning-liquidity`'s client reads no error whose data is an
/// object, and would wait for ever.
fn rejected(why: impl std::fmt::Display) -> Refusal {
    RpcError::new(CLIENT_REJECTED, format!("Client rejected: {why}")).into()
}

#[derive(Deserialize)]
struct Nothing {}

/// `lsps1.get_info`: what can be ordered.
///
/// # Errors
/// Those of the parameters.
pub fn get_info(ctx: &Context, params: Map<String, Value>) -> Result<Value, Refusal> {
    let Nothing {} = read_params(params, &[])?;
    let mut options = ctx.config.lsps1.options();
    if ctx.config.ladder.enabled {
        options[WITH_NEXT_FACTORY] = Value::Bool(true);
    }
    Ok(options)
}

/// `lsps1.create_order`: promises a channel for a price. It is on the disk when this returns.
///
/// # Errors
/// bLIP-51's -32602, 100 and 102, bLIP-50's 1 for what cannot be served now, and those of the database.
pub async fn create_order(
    ctx: &Arc<Context>,
    client: ClientId,
    params: Map<String, Value>,
) -> Result<Value, Refusal> {
    let config = &ctx.config.lsps1;
    let asked = params::read(&params, config, ctx.config.network)?;
    let now = now();
    // What can come with the next factory does: it takes no funding of its own.
    let at_birth = birth::offer(ctx, client, &asked).await?;
    let means = limits::means(ctx, asked.confirm_within).await;
    let why = limits::obstacle(ctx, &asked, (means, at_birth.is_some()), now).await?;
    if let Some(why) = why {
        return Err(rejected(why));
    }
    let funding = match at_birth {
        Some(_) => Amount::ZERO,
        None => means.fee,
    };
    // What comes with a factory lasts as long as that.
    let blocks = at_birth
        .map_or(0, |birth| birth.lasts)
        .max(asked.expiry_blocks);
    let fee_sat = price(ctx, client, (asked.lsp_balance_sat, blocks), funding).await?;
    let fee_msat = fee_sat.checked_mul(1000);
    let fee_msat = fee_msat.ok_or_else(|| rejected("the price of such a channel is no amount"))?;
    let id = order_id();
    let hash = ctx.keys.lsps1_hash(&id);
    let request = InvoiceRequest {
        amount: Some(Msat(fee_msat)),
        description: format!("channel order {id}").as_str().into(),
        expiry: Duration::from_secs(config.valid_seconds),
        hints: Vec::new(),
    };
    let invoice = ctx.lightning.hold_invoice(
        request,
        hash,
        at_birth.map_or(config.hold_blocks, |birth| birth.held),
    );
    let invoice = invoice.await.map_err(|error| {
        tracing::warn!(%error, "an order has no invoice");
        rejected("no invoice can be written now; try later")
    })?;
    let order = Order {
        id,
        client,
        lsp_balance_sat: asked.lsp_balance_sat,
        confirmations: asked.confirmations,
        confirm_within: asked.confirm_within,
        expiry_blocks: asked.expiry_blocks,
        announce: asked.announce,
        at_birth: at_birth.is_some(),
        fee_sat,
        hash,
        invoice,
        created_at: now,
        valid_until: now.saturating_add(config.valid_seconds),
    };
    let stored = ctx.store.write(async |tx| {
        let refusal = limits::too_many(ctx, tx, client).await?;
        if refusal.is_none() {
            rows::insert(tx, &order, now.saturating_sub(DAY)).await?;
        }
        Ok((refusal, rows::get(tx, &order.id).await?))
    });
    match stored.await? {
        (Some(why), _) => Err(rejected(why)),
        (None, None) => Err(RpcError::internal().into()),
        (None, Some(row)) => {
            fault::point("lsps1_ordered");
            ctx.events.emit(Event::Lsps1Ordered {
                client,
                order: row.order.id.clone(),
                lsp_balance_sat: row.order.lsp_balance_sat,
                fee_sat,
            });
            Ok(answer(&row))
        }
    }
}

#[derive(Deserialize)]
struct GetOrder {
    order_id: String,
}

/// `lsps1.get_order`: how far an order of this client is.
///
/// # Errors
/// bLIP-51's 101, and those of the parameters and the database.
pub async fn get_order(
    ctx: &Context,
    client: ClientId,
    params: Map<String, Value>,
) -> Result<Value, Refusal> {
    let GetOrder { order_id } = read_params(params, &["order_id"])?;
    let read = ctx.store.read(async |tx| rows::get(tx, &order_id).await);
    let own = read.await?.filter(|row| row.order.client == client);
    let row = own.ok_or_else(|| RpcError::new(NOT_FOUND, "Not found"))?;
    Ok(answer(&row))
}

/// The price in satoshi: by the price list, and what the funding costs as feerates are, all of it, whatever the list has as the most.
async fn price(
    ctx: &Context,
    client: ClientId,
    (sat, blocks): (u64, u32),
    funding: Amount,
) -> Result<u64, Refusal> {
    let list = sales::price_for(ctx, client, ctx.config.lsps1.price()).await?;
    let fee = list.fee_msat(Amount::from_sat(sat), blocks, Amount::ZERO);
    Ok(fee.div_ceil(1000).saturating_add(funding.to_sat()))
}

/// A UUID of version 4, which bLIP-51 likes best.
fn order_id() -> String {
    let mut bytes: [u8; 16] = random();
    for (at, mask, bits) in [(6, 0x0f, 0x40), (8, 0x3f, 0x80)] {
        if let Some(byte) = bytes.get_mut(at) {
            *byte = *byte & mask | bits;
        }
    }
    let text = hex::encode(bytes);
    let parts = [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)];
    let parts = parts.map(|(from, to)| text.get(from..to).unwrap_or_default());
    parts.join("-")
}

fn answer(row: &OrderRow) -> Value {
    let order = &row.order;
    // The payment is held while the preimage is ours alone, also when the channel is there already.
    let (order_state, payment_state) = match row.state {
        State::Ordered => ("CREATED", "EXPECT_PAYMENT"),
        State::Held => ("CREATED", "HOLD"),
        State::Open => ("COMPLETED", "HOLD"),
        State::Paid => ("COMPLETED", "PAID"),
        State::Failed => ("FAILED", "REFUNDED"),
    };
    let mut answer = json!({
        "order_id": order.id,
        "lsp_balance_sat": Text(order.lsp_balance_sat),
        "client_balance_sat": Text(0),
        "required_channel_confirmations": order.confirmations,
        "funding_confirms_within_blocks": order.confirm_within,
        "channel_expiry_blocks": order.expiry_blocks,
        "token": "",
        "created_at": datetime(order.created_at),
        "announce_channel": order.announce,
        "order_state": order_state,
        "payment": {
            "bolt11": {
                "state": payment_state,
                "expires_at": datetime(order.valid_until),
                "fee_total_sat": Text(order.fee_sat),
                "order_total_sat": Text(order.fee_sat),
                "invoice": order.invoice,
            },
        },
        "channel": row.funding.zip(row.funded_at).map(|(funding, funded_at)| json!({
            "funded_at": datetime(funded_at),
            "funding_outpoint": funding.to_string(),
            "expires_at": datetime(expires_at(order, funded_at)),
        })),
    });
    // Not bLIP-51's: whom that is nothing to is told nothing.
    if order.at_birth {
        answer[WITH_NEXT_FACTORY] = Value::Bool(true);
    }
    answer
}

/// What is said beyond bLIP-51 of an order whose channel comes with the next factory, and of us, if there may be such.
const WITH_NEXT_FACTORY: &str = "superscalar_next_factory";

/// Blocks that are enough for the time an order's channel is kept open, whenever they come on average.
#[must_use]
pub fn lasts(order: &Order) -> u32 {
    on_average(order.expiry_blocks)
}

fn on_average(promised: u32) -> u32 {
    let seconds = u64::from(promised).saturating_mul(SECONDS_PER_BLOCK);
    u32::try_from(seconds.div_ceil(AVERAGE_BLOCK)).unwrap_or(u32::MAX)
}

/// Until when a channel is promised to stay open, if it is.
///
/// # Errors
/// Those of the database.
pub async fn promised_until(ctx: &Context, funding: OutPoint) -> store::Result<Option<String>> {
    let read = ctx
        .store
        .read(async |tx| rows::by_funding(tx, funding).await);
    let until = read
        .await?
        .and_then(|row| Some(expires_at(&row.order, row.funded_at?)));
    Ok(until.filter(|until| now() < *until).map(datetime))
}

/// Until when we do not close the channel.
#[must_use]
pub fn expires_at(order: &Order, funded_at: u64) -> u64 {
    let seconds = u64::from(order.expiry_blocks).saturating_mul(SECONDS_PER_BLOCK);
    funded_at.saturating_add(seconds)
}
