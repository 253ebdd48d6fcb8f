//! Webhooks (LSPS5, bLIP-55): how clients that are away are woken.
//!
//! The service is ours and not `lightning-liquidity`'s (docs/adr/0008): notifications have to outlive days, and are signed when they are sent.
//! They are queued in the database, one per webhook and cause, sent until somebody takes them or the client comes ([`run`]).

mod address;
mod cooldown;
mod pace;
mod send;
mod why;

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use channel_host::{RpcError, read_params};
use factory_tree::ids::{ClientId, FactoryId};
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use self::cooldown::Cooldown;
use self::pace::Pace;
use crate::clock::unix_time as now;
use crate::context::Context;
use crate::lsps::Refusal;
use crate::store::webhooks::{self as rows, Wake, WebhookRow};
use crate::store::{Conn, Result};

pub use send::{HttpError, Poster, run};
pub use why::Why;

/// bLIP-55's bounds, in bytes.
const MAX_APP_NAME: usize = 64;
const MAX_URL: usize = 1024;
/// The cause of the notification that greets a new webhook: it is sent though its client is there.
const REGISTERED: &str = "registered";
/// Changes of a client's webhooks per minute: each is a write, and a call wherever it likes.
const CHANGES: u32 = 10;

/// Who is to be woken, until the sender has taken it in, and who changes webhooks how often.
#[derive(Debug)]
pub struct Webhooks {
    asked: Mutex<HashSet<(ClientId, Why)>>,
    changes: Pace,
    cooldown: Cooldown,
    news: watch::Sender<u64>,
}

impl Default for Webhooks {
    fn default() -> Self {
        Self {
            asked: Mutex::default(),
            changes: Pace::new(CHANGES),
            cooldown: Cooldown::default(),
            news: watch::Sender::new(0),
        }
    }
}

impl Webhooks {
    /// A client that is away should come. Costs nothing: the sender writes it down, if there is a webhook and it was not told lately.
    pub fn wake(&self, client: ClientId, why: Why) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = asked.insert((client, why));
        drop(asked);
        if is_new {
            self.look_again();
        }
    }

    /// A client is connected: when it is away again, it may be told the same at once.
    pub fn came(&self, client: ClientId) {
        self.cooldown.came(client);
    }

    fn look_again(&self) {
        self.news
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    fn take(&self) -> HashSet<(ClientId, Why)> {
        std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }
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
    let now = now();
    let answer = |count: usize, no_change: bool| json!({ "num_webhooks": count, "max_webhooks": max, "no_change": no_change });
    // Read first: strangers, and those who ask for what is there, do not get hold of the one writer.
    let found = ctx
        .store
        .read(async |tx| {
            let known = rows::is_known(tx, client).await?;
            Ok((known, rows::of(tx, client).await?))
        })
        .await?;
    let (true, known) = found else {
        return Err(RpcError::new(1003, NO_PRIOR_ACTIVITY).into());
    };
    if known.contains(&row) {
        return Ok(answer(known.len(), true));
    }
    pace(ctx, client)?;
    let greeting = Wake {
        cause: REGISTERED.to_owned(),
        body: notification("lsps5.webhook_registered", &json!({})),
        again_after: 0,
        lasts: ctx.config.webhooks.give_up_seconds,
    };
    let count = ctx.store.write(async |tx| {
        let mut others = rows::of(tx, client).await?;
        others.retain(|known| known.app_name != row.app_name);
        if others.len() >= max {
            return Ok(None);
        }
        rows::set(tx, client, &row).await?;
        rows::ask(tx, client, &row.app_name, &greeting, now).await?;
        Ok(Some(others.len().saturating_add(1)))
    });
    let count = count.await?.ok_or_else(|| RpcError {
        data: Some(json!({ "max_webhooks": max })),
        ..RpcError::new(
            503,
            format!("{max} webhooks are the most; remove one first"),
        )
    })?;
    ctx.webhooks.look_again();
    Ok(answer(count, false))
}

fn pace(ctx: &Context, client: ClientId) -> Result<(), RpcError> {
    let slow_down = || RpcError::new(1002, "too many changes of webhooks; wait a minute");
    let takes = ctx.webhooks.changes.takes(client, now());
    takes.then_some(()).ok_or_else(slow_down)
}

const NO_PRIOR_ACTIVITY: &str = "webhooks are for clients of a factory and buyers of a channel; set it when you have joined one or ordered one";

fn url(ctx: &Context, asked: &Set) -> Result<Url, RpcError> {
    if asked.app_name.len() > MAX_APP_NAME {
        let text = format!("app_name is longer than {MAX_APP_NAME} bytes");
        return Err(RpcError::new(500, text));
    }
    if asked.app_name.chars().any(char::is_control) {
        return Err(RpcError::invalid_params("app_name has control characters"));
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
        return Err(RpcError::new(
            501,
            "webhook is not at port 443 of a public address",
        ));
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
    let known = ctx
        .store
        .read(async |tx| rows::of(tx, client).await)
        .await?;
    if !known.iter().any(|known| known.app_name == app_name) {
        return Err(RpcError::new(1010, "there is no webhook of this app_name").into());
    }
    pace(ctx, client)?;
    ctx.store
        .write(async |tx| rows::remove(tx, client, &app_name).await)
        .await?;
    Ok(json!({}))
}

// ---- waking --------------------------------------------------------------------------------------------------------

/// Queues what was asked for since the last time.
pub(crate) async fn queue(ctx: &Context) -> Result<()> {
    let asked = ctx.webhooks.take();
    let now = now();
    let away = asked.into_iter();
    let away: Vec<(ClientId, Wake)> = away
        .filter(|(client, _)| !ctx.sessions.is_connected(client))
        .map(|(client, why)| (client, why.wake(&ctx.config)))
        .collect();
    if away.is_empty() {
        return Ok(());
    }
    // Most of the time there is nothing to write.
    let untold = ctx
        .store
        .read(async |tx| {
            let mut untold = Vec::new();
            for (client, wake) in &away {
                let names = rows::untold(tx, *client, wake, now).await?;
                untold.extend(names.into_iter().map(|name| (*client, name, wake)));
            }
            Ok(untold)
        })
        .await?;
    if untold.is_empty() {
        return Ok(());
    }
    let asked = ctx.store.write(async |tx| {
        for (client, app_name, wake) in &untold {
            rows::ask(tx, *client, app_name, wake, now).await?;
        }
        Ok(())
    });
    asked.await
}

/// A client came: what it was to be woken for it sees by itself.
///
/// # Errors
/// Those of the database.
pub async fn came(ctx: &Context, client: ClientId) -> Result<()> {
    ctx.webhooks.came(client);
    let is_waited_for = ctx
        .store
        .read(async |tx| rows::is_waited_for(tx, client, REGISTERED).await)
        .await?;
    if is_waited_for {
        ctx.store
            .write(async |tx| rows::came(tx, client, REGISTERED).await)
            .await?;
    }
    Ok(())
}

/// A factory is over: nobody is woken for it any more.
///
/// # Errors
/// Those of the database.
pub async fn forget(tx: &mut Conn, factory: FactoryId) -> Result<()> {
    for why in [Why::EndsSoon(factory), Why::Ends(factory)] {
        rows::forget(tx, &why.cause()).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
