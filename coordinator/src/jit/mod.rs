//! Just-in-time channels (LSPS2, bLIP-52): what is offered, what is sold, and what it may cost us.
//!
//! The service is ours and not `lightning-liquidity`'s (docs/adr/0009); `channel-host` holds the payments and opens the channels. What cannot be
//! served is refused when it is asked for ([`buy`]), and asked again when the payment is there: nothing is opened without a yes ([`open`]).

mod config;
mod limits;
mod params;
#[cfg(test)]
mod tests;

use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use channel_host::{
    ChannelView, JitGates, JitGround, JitOpening, JitOrder, LeafId, RpcError, opening_fee,
    read_params,
};
use factory_tree::ids::{ClientId, ShortChannelId};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::clock::unix_time as now;
use crate::context::Context;
use crate::event::Event;
use crate::fault;
use crate::limits::CLIENT_REJECTED;
use crate::lsps::{Refusal, Text};
use crate::sales;
use crate::store::jit::{self as rows, NewOrder};
use crate::store::{Result, prices};
use params::Offer;

pub use config::JitConfig;

const UNKNOWN_TOKEN: i32 = 200;
const INVALID_PARAMS: i32 = 201;
const TOO_SMALL: i32 = 202;
const TOO_LARGE: i32 = 203;

/// How long and how many payments wait for channels.
#[must_use]
pub fn gates(ctx: &Context) -> JitGates {
    JitGates {
        held: ctx.config.jit.max_held,
        patience: Duration::from_secs(ctx.config.jit.hold_seconds),
    }
}

/// A number as people write it (bLIP-52's `jit_channel_scid`).
#[must_use]
pub fn scid_text(scid: u64) -> String {
    ShortChannelId(scid).to_string()
}

#[derive(Deserialize)]
struct GetInfo {
    token: Option<String>,
}

/// `lsps2.get_info`: what a channel costs now; nothing while none can be opened.
///
/// # Errors
/// bLIP-52's 200, and those of the parameters and the database.
pub async fn get_info(
    ctx: &Context,
    client: ClientId,
    params: Map<String, Value>,
) -> Result<Value, Refusal> {
    let GetInfo { token } = read_params(params, &["token"])?;
    if token.is_some() {
        // We give none out.
        let text = "an unrecognized or stale token was provided";
        return Err(RpcError::new(UNKNOWN_TOKEN, text).into());
    }
    let config = &ctx.config.jit;
    let least = config.min_payment_sat.saturating_mul(1000);
    let most = limits::largest(ctx, now()).await?.saturating_mul(1000);
    let offers = if most < least {
        vec![]
    } else {
        let read = ctx
            .store
            .read(async |tx| prices::of_client(tx, client).await);
        let price = read.await?.over_jit(config.price());
        let offer = Offer {
            min_fee_msat: limits::least_fee_msat(ctx, price).await,
            proportional: price.fee_ppm,
            valid_until: now().saturating_add(config.valid_seconds),
            min_lifetime: config.min_lifetime,
            max_client_to_self_delay: config.max_to_self_delay.into(),
            min_payment_size_msat: least,
            max_payment_size_msat: most,
        };
        vec![offer.promised(&ctx.keys.jit_promise_key(), client)]
    };
    Ok(json!({ "opening_fee_params_menu": offers }))
}

#[derive(Deserialize)]
struct Buy {
    opening_fee_params: params::Promised,
    payment_size_msat: Option<Text>,
}

/// `lsps2.buy`: promises a channel for a payment that is to come. It is on the disk when this returns.
///
/// # Errors
/// bLIP-52's 201 to 203, bLIP-50's 1 for what cannot be served now, and those of the parameters and the database.
pub async fn buy(
    ctx: &Context,
    client: ClientId,
    params: Map<String, Value>,
) -> Result<Value, Refusal> {
    let asked: Buy = read_params(params, &["opening_fee_params", "payment_size_msat"])?;
    let now = now();
    let offer = asked
        .opening_fee_params
        .verified(&ctx.keys.jit_promise_key(), client, now)
        .ok_or_else(|| {
            let text = "valid_until is past, or the promise is not ours for you and these values";
            RpcError::new(INVALID_PARAMS, text)
        })?;
    let payment = asked.payment_size_msat.map(|Text(msat)| msat);
    if let Some(payment) = payment {
        check_size(&offer, payment)?;
    }
    let largest = payment.unwrap_or(offer.min_payment_size_msat);
    if limits::largest(ctx, now).await? < largest.div_ceil(1000) {
        return Err(rejected("no such channel can be opened now; try later").into());
    }
    let peer = PublicKey::from_slice(&client.0).map_err(|_| RpcError::internal())?;
    let order = order(ctx, peer, &offer, payment);
    let trusts = order.client_trusts_lsp;
    // Counted and stored at once: of two that ask at the same time only one has the last place.
    let stored = ctx.store.write(async |tx| {
        if let Some(why) = limits::too_many(ctx, tx, client, now).await? {
            return Ok(Err(rejected(why)));
        }
        let (scid, delta) = match ctx.lightning.add_jit_order(order) {
            Ok(added) => added,
            Err(error) => {
                tracing::warn!(%error, "an order cannot be stored");
                return Ok(Err(RpcError::internal()));
            }
        };
        let row = NewOrder {
            scid,
            client,
            payment_msat: payment,
            min_fee_msat: offer.min_fee_msat,
            fee_ppm: offer.proportional,
            valid_until: offer.valid_until,
            min_lifetime: offer.min_lifetime,
            client_trusts_lsp: trusts,
            created_at: now,
        };
        rows::sold(tx, &row).await?;
        Ok(Ok((scid, delta)))
    });
    let (scid, delta) = stored.await??;
    ctx.events.emit(Event::JitSold {
        client,
        scid: scid_text(scid),
        payment_msat: payment,
    });
    Ok(json!({
        "jit_channel_scid": scid_text(scid),
        "lsp_cltv_expiry_delta": delta,
        "client_trusts_lsp": trusts,
    }))
}

fn rejected(text: impl Into<String>) -> RpcError {
    RpcError::new(CLIENT_REJECTED, text)
}

fn order(ctx: &Context, client: PublicKey, offer: &Offer, payment_msat: Option<u64>) -> JitOrder {
    let config = &ctx.config.jit;
    JitOrder {
        client,
        payment_msat,
        min_fee_msat: offer.min_fee_msat,
        proportional: offer.proportional,
        min_payment_msat: offer.min_payment_size_msat,
        max_payment_msat: offer.max_payment_size_msat,
        valid_until: offer.valid_until,
        max_to_self_delay: u16::try_from(offer.max_client_to_self_delay).unwrap_or(u16::MAX),
        margin_sat: config.margin_sat,
        client_trusts_lsp: config.client_trusts_lsp,
    }
}

/// bLIP-52: a size outside of the offer, or that the fee would eat up.
fn check_size(offer: &Offer, payment: u64) -> Result<(), RpcError> {
    let small = |text: &str| Err(RpcError::new(TOO_SMALL, text));
    let large = |text: &str| Err(RpcError::new(TOO_LARGE, text));
    if payment < offer.min_payment_size_msat {
        return small("the payment is smaller than the least we open a channel for");
    }
    if payment > offer.max_payment_size_msat {
        return large("the payment is larger than the most we open a channel for");
    }
    match opening_fee(payment, offer.min_fee_msat, offer.proportional) {
        None => large("the fee of such a payment cannot be computed"),
        Some(fee) if fee >= payment => small("the fee would eat up the payment"),
        Some(_) => Ok(()),
    }
}

/// The last word before a channel is opened: the order stands, and the channel comes from a stock, or is within all limits.
///
/// # Errors
/// Those of the database; inside, why not.
pub async fn open(ctx: &Context, opening: JitOpening) -> Result<Result<JitGround, String>> {
    if let leaf @ JitGround::Leaf(_) = sales::ground(ctx, &opening).await? {
        return Ok(Ok(leaf));
    }
    let allowed = limits::may_open(ctx, &opening, now()).await?;
    if allowed.is_ok() {
        fault::point("jit_opening");
        ctx.events.emit(Event::JitOpening {
            client: ClientId(opening.client.serialize()),
            scid: scid_text(opening.scid),
            payment_msat: opening.payment.0,
            fee_msat: opening.fee.0,
            capacity_sat: opening.capacity.to_sat(),
        });
    }
    Ok(allowed.map(|()| JitGround::Chain))
}

/// What has to happen before a channel may be closed, if it is promised to stay open.
///
/// # Errors
/// Those of the database.
pub async fn promised_until(ctx: &Context, channel: &ChannelView) -> Result<Option<String>> {
    let Some(funding) = channel.outpoint else {
        return Ok(None);
    };
    let leaf = channel.leaf.map(|leaf| factory_tree::ids::LeafId(leaf.0));
    let read = ctx
        .store
        .read(async |tx| rows::promised_depth(tx, funding.txid, leaf).await);
    let depth = read.await?;
    let depth = depth.filter(|depth| channel.confirmations < *depth);
    Ok(depth.map(|depth| format!("its funding is {depth} blocks deep")))
}

// ---- what the node has to say ----------------------------------------------------------------------------------------

/// A channel is about to be paid for.
///
/// # Errors
/// Those of the database.
pub async fn funded(ctx: &Context, scid: u64, funding: rows::Funding) -> Result<()> {
    let is_new = ctx
        .store
        .write(async |tx| rows::funded(tx, scid, &funding).await)
        .await?;
    if is_new {
        fault::point("jit_funded");
        ctx.events.emit(Event::JitFunded {
            scid: scid_text(scid),
            txid: funding.txid,
            fee_sat: funding.fee_sat,
        });
    }
    Ok(())
}

/// An ordinary channel stands, or is closed: perhaps one of these.
///
/// # Errors
/// Those of the database.
pub async fn channel(ctx: &Context, id: u64, stands: bool) -> Result<()> {
    let moved = ctx
        .store
        .write(async |tx| rows::channel(tx, id, stands).await)
        .await?;
    if let Some(scid) = moved {
        let scid = scid_text(scid);
        ctx.events.emit(if stands {
            // Before its payment goes on.
            fault::point("jit_stands");
            Event::JitOpened { scid }
        } else {
            Event::JitClosed { scid }
        });
    }
    Ok(())
}

/// The channel on a leaf is closed: perhaps that of an order.
///
/// # Errors
/// Those of the database.
pub async fn leaf_closed(ctx: &Context, leaf: LeafId) -> Result<()> {
    let leaf = factory_tree::ids::LeafId(leaf.0);
    let closed = ctx
        .store
        .write(async |tx| rows::leaf_closed(tx, leaf).await)
        .await?;
    if let Some(scid) = closed {
        let scid = scid_text(scid);
        ctx.events.emit(Event::JitClosed { scid });
    }
    Ok(())
}

/// The fee is ours.
///
/// # Errors
/// Those of the database.
pub async fn paid(ctx: &Context, scid: u64, fee_msat: u64) -> Result<()> {
    let now = now();
    let is_new = ctx
        .store
        .write(async |tx| rows::paid(tx, scid, fee_msat, now).await)
        .await?;
    if is_new {
        fault::point("jit_paid");
        ctx.events.emit(Event::JitPaid {
            scid: scid_text(scid),
            fee_msat,
        });
    }
    Ok(())
}

/// A payment for a channel was sent back.
///
/// # Errors
/// Those of the database.
pub async fn refused(ctx: &Context, scid: u64, hash: String, reason: String) -> Result<()> {
    ctx.store
        .write(async |tx| rows::refused(tx, scid, &reason).await)
        .await?;
    ctx.events.emit(Event::JitRefused {
        scid: scid_text(scid),
        hash,
        reason,
    });
    Ok(())
}
