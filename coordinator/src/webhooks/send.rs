//! Sends what is queued: signed at the moment, posted, tried again with growing pauses.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use chrono::{DateTime, SubsecRound, Utc};
use factory_tree::ids::ClientId;
use futures::StreamExt;
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Url};
use tokio::sync::watch;

use super::address::{self, PublicOnly};
use super::now;
use crate::context::Context;
use crate::event::Event;
use crate::store::webhooks::{self as rows, WakeRow};

/// Taken up at once, and sent at once.
const BATCH: u32 = 64;
const AT_ONCE: usize = 16;
/// Notifications per client and minute: whoever sets a webhook chooses where we knock.
const PER_MINUTE: u32 = 20;
/// Seconds before the second try, doubled for each further one.
const PAUSE: u64 = 5;
const LONGEST_PAUSE: u64 = 3_600;
/// Without news the queue is looked at so often: a clock that was set back would let it sleep too long.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// What was sent in this minute.
#[derive(Debug, Default)]
struct Pace(Mutex<(u64, HashMap<ClientId, u32>)>);

impl Pace {
    /// Whether one more may be sent to this client.
    fn takes(&self, client: ClientId, now: u64) -> bool {
        let mut sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let minute = now / 60;
        if sent.0 != minute {
            *sent = (minute, HashMap::new());
        }
        let count = sent.1.entry(client).or_default();
        *count = count.saturating_add(1);
        *count <= PER_MINUTE
    }
}

/// Why nothing can be sent at all.
#[derive(Debug, thiserror::Error)]
enum ClientError {
    #[error("webhooks.ca_file {path} cannot be read: {cause}")]
    CaFile { path: String, cause: String },
    #[error("no HTTPS client: {0}")]
    Build(#[from] reqwest::Error),
}

fn http_client(ctx: &Context) -> Result<Client, ClientError> {
    let config = &ctx.config.webhooks;
    // Another part of the process may have chosen it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .timeout(Duration::from_secs(config.timeout_seconds))
        .redirect(Policy::none())
        .no_proxy()
        .https_only(true)
        .user_agent(concat!(
            "superscalar-coordinator/",
            env!("CARGO_PKG_VERSION")
        ));
    if !config.allow_private {
        builder = builder.dns_resolver(PublicOnly);
    }
    if let Some(path) = &config.ca_file {
        let wrong = |cause: String| ClientError::CaFile {
            path: path.display().to_string(),
            cause,
        };
        let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        let trusted =
            Certificate::from_pem_bundle(&pem).map_err(|error| wrong(error.to_string()))?;
        builder = builder.tls_certs_only(trusted);
    }
    Ok(builder.build()?)
}

/// Sends notifications until `shutdown`.
pub async fn run(ctx: Arc<Context>, mut shutdown: watch::Receiver<bool>) {
    let client = match http_client(&ctx) {
        Ok(client) => client,
        Err(error) => {
            let problem = error.to_string();
            tracing::error!(%problem, "clients that are away are not woken");
            return ctx.events.emit(Event::WebhooksDown { problem });
        }
    };
    let pace = Pace::default();
    let mut news = ctx.webhooks.0.subscribe();
    loop {
        news.mark_unchanged();
        let pause = tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => return,
            sent = send_due(&ctx, &client, &pace) => sent,
        };
        // The senders are in the context.
        tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => return,
            _ = news.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Sends what is due, and says how long nothing will be.
async fn send_due(ctx: &Context, client: &Client, pace: &Pace) -> Duration {
    let found = ctx
        .store
        .read(async |tx| {
            let due = rows::due(tx, now(), BATCH).await?;
            Ok((due, rows::next(tx).await?))
        })
        .await;
    let (due, next) = match found {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(%error, "webhooks are looked at later");
            return LOOK_EVERY;
        }
    };
    if due.is_empty() {
        let pause = next.map(|next| Duration::from_secs(next.saturating_sub(now())));
        return pause.unwrap_or(LOOK_EVERY).min(LOOK_EVERY);
    }
    futures::stream::iter(due)
        .for_each_concurrent(AT_ONCE, |wake| async move {
            send(ctx, client, pace, &wake).await;
        })
        .await;
    Duration::ZERO
}

async fn send(ctx: &Context, client: &Client, pace: &Pace, wake: &WakeRow) {
    let sent = if pace.takes(wake.client, now()) {
        post(ctx, client, wake).await
    } else {
        Err("too many notifications for this client in this minute".to_owned())
    };
    let next_at = match &sent {
        Ok(()) => None,
        Err(_) => next_try(wake, now(), ctx.config.webhooks.give_up_seconds),
    };
    let (client, app_name) = (wake.client, wake.app_name.clone());
    ctx.events.emit(match sent {
        Ok(()) => Event::WebhookDelivered {
            client,
            app_name,
            cause: wake.cause.clone(),
        },
        Err(problem) => Event::WebhookFailed {
            client,
            app_name,
            cause: wake.cause.clone(),
            problem,
            given_up: next_at.is_none(),
        },
    });
    let stored = ctx
        .store
        .write(async |tx| rows::tried(tx, wake, next_at).await)
        .await;
    if let Err(error) = stored {
        tracing::warn!(%error, "a notification may be sent once more");
        // Not at once: the database has to recover.
        tokio::time::sleep(Duration::from_secs(PAUSE)).await;
    }
}

/// When a notification that failed is tried again, if ever.
fn next_try(wake: &WakeRow, now: u64, give_up_after: u64) -> Option<u64> {
    let pause = PAUSE
        .saturating_mul(2_u64.saturating_pow(wake.tries))
        .min(LONGEST_PAUSE);
    let next = now.saturating_add(pause);
    (next <= wake.asked_at.saturating_add(give_up_after)).then_some(next)
}

/// One try; an error says why not, without the URL, which may hold a secret of the client's.
async fn post(ctx: &Context, client: &Client, wake: &WakeRow) -> Result<(), String> {
    let url = Url::parse(&wake.url).map_err(|error| error.to_string())?;
    // A name is judged when it is looked up; an address never is.
    if !ctx.config.webhooks.allow_private && !address::may_be_public(&url) {
        return Err("not at a public address".to_owned());
    }
    let timestamp = timestamp(SystemTime::now());
    let text = signed_text(&timestamp, &wake.body);
    let signature = ctx.keys.leaf_keys().sign(&text);
    let answer = client
        .post(url)
        .header("Content-Type", "application/json")
        .header("x-lsps5-timestamp", timestamp)
        .header("x-lsps5-signature", signature)
        .body(wake.body.clone())
        .send()
        .await
        .map_err(|error| words(error.without_url()))?;
    let status = answer.status();
    if status.is_success() {
        Ok(())
    } else {
        Err(format!("it answered {status}"))
    }
}

/// bLIP-50 writes UTC as `Z`. The judge most wallets have, `lightning-liquidity`'s, writes what it read anew with `+00:00` before it looks at the
/// signature, so it knows only its own kind; both are RFC 3339, and who signs what the header says can do with either.
fn timestamp(at: SystemTime) -> String {
    let at: DateTime<Utc> = at.into();
    at.trunc_subsecs(3).to_rfc3339()
}

/// What bLIP-55 has the LSP sign.
fn signed_text(timestamp: &str, body: &str) -> String {
    format!("LSPS5: DO NOT SIGN THIS MESSAGE MANUALLY: LSP: At {timestamp} I notify {body}")
}

/// An error with its causes: reqwest's own words leave them out.
fn words(error: reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_become_rarer_and_end() {
        let wake = |tries| WakeRow {
            client: ClientId([2; 33]),
            app_name: String::new(),
            url: String::new(),
            cause: String::new(),
            body: String::new(),
            asked_at: 1_000,
            tries,
        };
        assert_eq!(next_try(&wake(0), 1_000, 86_400), Some(1_005));
        assert_eq!(next_try(&wake(3), 1_000, 86_400), Some(1_040));
        assert_eq!(next_try(&wake(40), 1_000, 86_400), Some(4_600));
        assert_eq!(next_try(&wake(40), 84_000, 86_400), None);
    }

    #[test]
    fn times_have_milliseconds_and_an_offset() {
        let at = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
        assert_eq!(timestamp(at), "2023-11-14T22:13:20.123+00:00");
    }

    #[test]
    fn nobody_is_flooded() {
        let pace = Pace::default();
        let (one, other) = (ClientId([2; 33]), ClientId([3; 33]));
        let taken = (0..50).filter(|_| pace.takes(one, 120)).count();
        assert_eq!(taken, PER_MINUTE as usize);
        assert!(pace.takes(other, 121));
        assert!(pace.takes(one, 180));
    }
}
