//! Webhooks (LSPS5, bLIP-55): how clients that are away are woken.
//!
//! The service is ours and not `lightning-liquidity`'s (docs/adr/0008): notifications have to outlive days, and are signed when they are sent.
//! They are queued in the database, one per webhook and cause, sent until somebody takes them or the client comes ([`send`]).

mod address;
mod send;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use channel_host::{RpcError, read_params};
use factory_tree::ids::ClientId;
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::context::Context;
use crate::lsps::Refusal;
use crate::store::webhooks::{self as rows, WebhookRow};
use crate::store::{Result, StoreError};

pub use send::run;

/// bLIP-55's bounds, in bytes.
const MAX_APP_NAME: usize = 64;
const MAX_URL: usize = 1024;
/// The cause of the notification that greets a new webhook: it is sent though its client is there.
const REGISTERED: &str = "registered";
/// A payment that waits for its receiver is news so many seconds after the last one.
const PAYMENTS_EVERY: u64 = 60;
/// What has to be done within days is said once a day.
const DAILY: u64 = 86_400;

/// What the sender is told: that there is something to send.
#[derive(Debug)]
pub struct Webhooks(watch::Sender<u64>);

impl Default for Webhooks {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Webhooks {
    fn look_again(&self) {
        self.0.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or(Duration::ZERO).as_secs()
}

fn notification(method: &str, params: &Value) -> String {
    json!({ "jsonrpc": "2.0", "method": method, "params": params }).to_string()
}

// ---- what clients ask ----------------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct Set {
    app_name: String,
    webhook: String,
}

/// `lsps5.set_webhook`: sets a client's webhook of this name.
///
/// # Errors
/// bLIP-55's 500 to 503 and 1003, and those of the database.
pub async fn set(
    ctx: &Context,
    client: ClientId,
    params: Map<String, Value>,
) -> Result<Value, Refusal> {
    let asked: Set = read_params(params, &["app_name", "webhook"])?;
    let row = WebhookRow {
        url: url(ctx, &asked)?.into(),
        app_name: asked.app_name,
    };
    let max = ctx.config.webhooks.max_per_client;
    let (now, greeting) = (now(), notification("lsps5.webhook_registered", &json!({})));
    let done = ctx.store.write(async |tx| {
        if !rows::is_known(tx, client).await? {
            return Ok(Err(RpcError::new(1003, NO_PRIOR_ACTIVITY)));
        }
        let known = rows::of(tx, client).await?;
        let count = known.len();
        let same_name = known.iter().find(|known| known.app_name == row.app_name);
        match same_name {
            Some(known) if *known == row => return Ok(Ok((count, true))),
            None if count >= max => {
                let text = format!("{max} webhooks are the most; remove one first");
                return Ok(Err(RpcError::new(503, text)));
            }
            _ => {}
        }
        let count = count + usize::from(same_name.is_none());
        rows::set(tx, client, &row, now).await?;
        let wake = rows::Wake {
            cause: REGISTERED,
            body: &greeting,
            again_after: 0,
        };
        rows::ask(tx, client, &row.app_name, wake, now).await?;
        Ok(Ok((count, false)))
    });
    let (count, no_change) = done.await??;
    ctx.webhooks.look_again();
    Ok(json!({ "num_webhooks": count, "max_webhooks": max, "no_change": no_change }))
}

const NO_PRIOR_ACTIVITY: &str =
    "webhooks are for clients of a factory; set it when you have joined one";

fn url(ctx: &Context, asked: &Set) -> Result<Url, RpcError> {
    if asked.app_name.len() > MAX_APP_NAME {
        let text = format!("app_name is longer than {MAX_APP_NAME} bytes");
        return Err(RpcError::new(500, text));
    }
    if asked.webhook.len() > MAX_URL {
        let text = format!("webhook is longer than {MAX_URL} bytes");
        return Err(RpcError::new(500, text));
    }
    let url = Url::parse(&asked.webhook)
        .map_err(|error| RpcError::new(501, format!("webhook is no URL: {error}")))?;
    if url.scheme() != "https" {
        return Err(RpcError::new(502, "webhook is not an https URL"));
    }
    if !ctx.config.webhooks.allow_private && !address::may_be_public(&url) {
        return Err(RpcError::new(501, "webhook is not at a public address"));
    }
    Ok(url)
}

#[derive(Deserialize)]
struct Nothing {}

/// `lsps5.list_webhooks`: the names of a client's webhooks.
///
/// # Errors
/// Those of the parameters and the database.
pub async fn list(
    ctx: &Context,
    client: ClientId,
    params: Map<String, Value>,
) -> Result<Value, Refusal> {
    let Nothing {} = read_params(params, &[])?;
    let known = ctx
        .store
        .read(async |tx| rows::of(tx, client).await)
        .await?;
    let names: Vec<String> = known.into_iter().map(|row| row.app_name).collect();
    Ok(json!({ "app_names": names, "max_webhooks": ctx.config.webhooks.max_per_client }))
}

#[derive(Deserialize)]
struct Remove {
    app_name: String,
}

/// `lsps5.remove_webhook`.
///
/// # Errors
/// bLIP-55's 1010, and those of the parameters and the database.
pub async fn remove(
    ctx: &Context,
    client: ClientId,
    params: Map<String, Value>,
) -> Result<Value, Refusal> {
    let Remove { app_name } = read_params(params, &["app_name"])?;
    let removed = ctx
        .store
        .write(async |tx| rows::remove(tx, client, &app_name).await)
        .await?;
    if removed {
        Ok(json!({}))
    } else {
        Err(RpcError::new(1010, "there is no webhook of this app_name").into())
    }
}

// ---- waking --------------------------------------------------------------------------------------------------------

/// Wakes a client for what has to be signed or moved in these days (`lsps5.liquidity_management_request`), once a day and cause.
///
/// # Errors
/// Those of the database.
pub async fn wake_for_factory(ctx: &Context, client: ClientId, cause: &str) -> Result<()> {
    let body = notification("lsps5.liquidity_management_request", &json!({}));
    wake(ctx, client, cause, &body, DAILY).await
}

/// Wakes a client for whom a payment waits (`lsps5.payment_incoming`).
///
/// # Errors
/// Those of the database.
pub async fn wake_for_payment(ctx: &Context, client: ClientId) -> Result<()> {
    let body = notification("lsps5.payment_incoming", &json!({}));
    wake(ctx, client, "payment", &body, PAYMENTS_EVERY).await
}

async fn wake(
    ctx: &Context,
    client: ClientId,
    cause: &str,
    body: &str,
    again_after: u64,
) -> Result<()> {
    let now = now();
    let wake = rows::Wake {
        cause,
        body,
        again_after,
    };
    // Most of the time there is nothing to write.
    let wanted = ctx
        .store
        .read(async |tx| rows::unasked(tx, client, wake, now).await)
        .await?;
    if wanted.is_empty() {
        return Ok(());
    }
    let asked = ctx.store.write(async |tx| {
        for app_name in &wanted {
            rows::ask(tx, client, app_name, wake, now).await?;
        }
        Ok::<(), StoreError>(())
    });
    asked.await?;
    ctx.webhooks.look_again();
    Ok(())
}

/// A client came: what it was to be woken for it sees by itself.
///
/// # Errors
/// Those of the database.
pub async fn came(ctx: &Context, client: ClientId) -> Result<()> {
    let has = ctx
        .store
        .read(async |tx| rows::has_wakes(tx, client).await)
        .await?;
    if has {
        ctx.store
            .write(async |tx| rows::came(tx, client, REGISTERED).await)
            .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
