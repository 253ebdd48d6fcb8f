//! Sends what is queued: signed at the moment, posted, tried again with growing pauses.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use channel_host::notification_text;
use chrono::{DateTime, SubsecRound, Utc};
use factory_tree::ids::ClientId;
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, StatusCode, Url};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::address::{self, PublicOnly};
use super::pace::Pace;
use super::{REGISTERED, queue};
use crate::clock::unix_time as now;
use crate::config::WebhooksConfig;
use crate::context::Context;
use crate::event::Event;
use crate::store::webhooks::{self as rows, WakeRow};

/// Sent at once, to as many clients.
const AT_ONCE: usize = 32;
/// Notifications per client and minute: whoever sets a webhook chooses where we knock.
const PER_MINUTE: u32 = 20;
/// Seconds before the second try, doubled for each further one.
const PAUSE: u64 = 5;
const LONGEST_PAUSE: u64 = 3_600;
/// Without news the queue is looked at so often: a clock that was set back would let it sleep too long.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Before the database is tried again.
const RECOVERY: Duration = Duration::from_secs(5);

/// Why nothing can be sent.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The configured certificates.
    #[error("webhooks.ca_file = {path}: {cause}")]
    CaFile {
        /// Where they should be.
        path: String,
        /// What is wrong with them.
        cause: String,
    },
    /// The client, for example where a system has no certificates at all.
    #[error("no HTTPS client: {}; webhooks.ca_file can name the certificates to trust", words(.0))]
    Client(reqwest::Error),
}

/// What posts notifications.
#[derive(Clone, Debug)]
pub struct Poster(Client);

impl Poster {
    /// As configured.
    ///
    /// # Errors
    /// [`HttpError`].
    pub fn new(config: &WebhooksConfig) -> Result<Self, HttpError> {
        // Another part of the process may have chosen it already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = Client::builder()
            .timeout(Duration::from_secs(config.timeout_seconds))
            .redirect(Policy::none())
            .no_proxy()
            .https_only(true)
            // The names are the clients' choice: what is kept open would be, too.
            .pool_max_idle_per_host(0)
            .user_agent(concat!(
                "superscalar-coordinator/",
                env!("CARGO_PKG_VERSION")
            ));
        if !config.allow_private {
            builder = builder.dns_resolver(PublicOnly);
        }
        if let Some(path) = &config.ca_file {
            let wrong = |cause: String| HttpError::CaFile {
                path: path.display().to_string(),
                cause,
            };
            let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
            let trusted =
                Certificate::from_pem_bundle(&pem).map_err(|error| wrong(error.to_string()))?;
            if trusted.is_empty() {
                return Err(wrong("there is no certificate in it".to_owned()));
            }
            builder = builder.tls_certs_only(trusted);
        }
        builder.build().map(Self).map_err(HttpError::Client)
    }
}

/// What is under way.
#[derive(Debug)]
struct Sender {
    ctx: Arc<Context>,
    poster: Poster,
    pace: Arc<Pace>,
    sending: JoinSet<ClientId>,
    /// Clients something is sent to: one thing at a time, so that nobody's dead server is in the way of others.
    busy: HashSet<ClientId>,
}

/// Sends notifications until `shutdown`.
pub async fn run(ctx: Arc<Context>, poster: Poster, mut shutdown: watch::Receiver<bool>) {
    let mut news = ctx.webhooks.news.subscribe();
    let mut sender = Sender {
        ctx,
        poster,
        pace: Arc::new(Pace::new(PER_MINUTE)),
        sending: JoinSet::new(),
        busy: HashSet::new(),
    };
    loop {
        news.mark_unchanged();
        let pause = tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => return,
            begun = sender.begin() => begun.unwrap_or_else(|error| {
                tracing::warn!(%error, "webhooks are looked at later");
                RECOVERY
            }),
        };
        // The senders are in the context.
        tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => return,
            _ = news.changed() => {}
            Some(done) = sender.sending.join_next() => match done {
                Ok(client) => {
                    sender.busy.remove(&client);
                }
                // One that panicked: who it was is not known, and waits for the next start.
                Err(error) => tracing::error!(%error, "a notification was not sent"),
            },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

impl Sender {
    /// Begins to send what is due and has room, and says how long nothing else will be.
    async fn begin(&mut self) -> crate::store::Result<Duration> {
        queue(&self.ctx).await?;
        let limit = AT_ONCE.saturating_add(self.busy.len());
        let (due, next) = self
            .ctx
            .store
            .read(async |tx| {
                let due = rows::due(tx, now(), LONGEST_PAUSE, REGISTERED, limit).await?;
                Ok((due, rows::next(tx, REGISTERED).await?))
            })
            .await?;
        let waits = !due.is_empty();
        for wake in due {
            if self.busy.len() >= AT_ONCE {
                break;
            }
            let client = wake.client;
            if self.busy.insert(client) {
                let (ctx, poster) = (Arc::clone(&self.ctx), self.poster.clone());
                let pace = Arc::clone(&self.pace);
                self.sending.spawn(async move {
                    send(&ctx, &poster, &pace, wake).await;
                    client
                });
            }
        }
        // What is due and did not begin waits for one that ends.
        let pause = next.filter(|_| !waits);
        let pause = pause.map(|next| Duration::from_secs(next.saturating_sub(now())));
        Ok(pause.unwrap_or(LOOK_EVERY).min(LOOK_EVERY))
    }
}

async fn send(ctx: &Context, poster: &Poster, pace: &Pace, wake: WakeRow) {
    let now = now();
    let is_greeting = wake.cause == REGISTERED;
    if wake.until < now && !is_greeting {
        // It waited for others: who comes now finds nothing.
        return tried(ctx, &wake, wake.tries, None).await;
    }
    let cooldown = &ctx.webhooks.cooldown;
    let told = (wake.client, wake.app_name.clone(), method(&wake.body));
    let left = cooldown.left(&told, Instant::now());
    if let Some(left) = left.filter(|_| !is_greeting) {
        // Another cause, or another payment: told when its time has come, unless that is too late for it.
        let later = now.saturating_add(left.as_secs()).saturating_add(1);
        let next_at = (later <= wake.until).then_some(later);
        return tried(ctx, &wake, wake.tries, next_at).await;
    }
    if !pace.takes(wake.client, now) {
        // Nobody failed: it is only not its turn.
        let next_minute = (now / 60).saturating_add(1).saturating_mul(60);
        return tried(ctx, &wake, wake.tries, Some(next_minute)).await;
    }
    // Before it is posted, as its client may come before the answer does.
    cooldown.told(told.clone(), Instant::now());
    let sent = post(ctx, poster, &wake).await;
    if sent.is_err() {
        cooldown.untold(&told);
    }
    let next_at = match &sent {
        Ok(()) => None,
        Err(_) => next_try(&wake, now),
    };
    tell(ctx, &wake, sent, next_at.is_none());
    tried(ctx, &wake, wake.tries.saturating_add(1), next_at).await;
}

fn tell(ctx: &Context, wake: &WakeRow, sent: Result<(), String>, given_up: bool) {
    let (client, app_name, cause) = (wake.client, wake.app_name.clone(), wake.cause.clone());
    ctx.events.emit(match sent {
        Ok(()) => Event::WebhookDelivered {
            client,
            app_name,
            cause,
        },
        Err(problem) => Event::WebhookFailed {
            client,
            app_name,
            cause,
            problem,
            given_up,
        },
    });
}

async fn tried(ctx: &Context, wake: &WakeRow, tries: u32, next_at: Option<u64>) {
    let number = wake.number;
    let stored = ctx
        .store
        .write(async |tx| rows::tried(tx, number, tries, next_at).await);
    if let Err(error) = stored.await {
        tracing::warn!(%error, "a notification may be sent once more");
        tokio::time::sleep(RECOVERY).await;
    }
}

/// When a notification that failed is tried again, if ever.
fn next_try(wake: &WakeRow, now: u64) -> Option<u64> {
    let pause = PAUSE
        .saturating_mul(2_u64.saturating_pow(wake.tries))
        .min(LONGEST_PAUSE);
    let next = now.saturating_add(pause);
    (next <= wake.until).then_some(next)
}

/// One try; an error says why not, without the URL, which may hold a secret of the client's.
async fn post(ctx: &Context, poster: &Poster, wake: &WakeRow) -> Result<(), String> {
    let url = Url::parse(&wake.url).map_err(|error| error.to_string())?;
    // A name is judged when it is looked up; an address never is.
    if !ctx.config.webhooks.allow_private && !address::may_be_public(&url) {
        return Err("not at port 443 of a public address".to_owned());
    }
    let timestamp = timestamp(SystemTime::now());
    let text = notification_text(&timestamp, &wake.body);
    let signature = ctx.keys.leaf_keys().sign(&text);
    let answer = poster
        .0
        .post(url)
        .header("Content-Type", "application/json")
        .header("x-lsps5-timestamp", timestamp)
        .header("x-lsps5-signature", signature)
        .body(wake.body.clone())
        .send()
        .await
        .map_err(|error| words(&error.without_url()))?;
    judge(answer.status())
}

/// bLIP-55 knows 200 only; whoever says 202 or 204 has taken it as well, and would be pushed again for it.
fn judge(status: StatusCode) -> Result<(), String> {
    if status.is_success() {
        Ok(())
    } else {
        Err(format!("it answered {status}"))
    }
}

/// The method of a notification of ours.
fn method(body: &str) -> String {
    let body: Value = serde_json::from_str(body).unwrap_or_default();
    body["method"].as_str().unwrap_or_default().to_owned()
}

/// bLIP-50 writes UTC as `Z`. The judge most wallets have, `lightning-liquidity`'s, writes what it read anew with `+00:00` before it looks at the
/// signature, so it knows only its own kind; both are RFC 3339, and who signs what the header says can do with either.
fn timestamp(at: SystemTime) -> String {
    let at: DateTime<Utc> = at.into();
    at.trunc_subsecs(3).to_rfc3339()
}

/// An error with its causes: reqwest's own words leave them out.
fn words(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestWorld;
    use crate::webhooks::Why;

    fn wake(url: String, tries: u32) -> WakeRow {
        WakeRow {
            number: 1,
            client: ClientId([2; 33]),
            app_name: String::new(),
            url,
            cause: String::new(),
            body: "{}".to_owned(),
            until: 87_400,
            tries,
        }
    }

    #[test]
    fn tries_become_rarer_and_end() {
        let next = |tries, now| next_try(&wake(String::new(), tries), now);
        assert_eq!(next(0, 1_000), Some(1_005));
        assert_eq!(next(3, 1_000), Some(1_040));
        assert_eq!(next(40, 1_000), Some(4_600));
        assert_eq!(next(40, 84_000), None);
    }

    #[test]
    fn times_have_milliseconds_and_an_offset() {
        let at = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
        assert_eq!(timestamp(at), "2023-11-14T22:13:20.123+00:00");
    }

    /// Set while `allow_private` was on, or before this rule.
    #[tokio::test]
    async fn an_inner_address_is_not_called() {
        let world = TestWorld::new().await;
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let poster = Poster::new(&world.ctx.config.webhooks).unwrap();
        let called = tokio::spawn(async move { listener.accept().await.is_ok() });
        let wake = wake(format!("https://{address}/"), 0);
        let refused = post(&world.ctx, &poster, &wake).await;
        assert_eq!(
            refused,
            Err("not at port 443 of a public address".to_owned())
        );
        assert!(!called.is_finished());
        called.abort();
    }

    const CLIENT: ClientId = ClientId([2; 33]);

    fn sender(world: &TestWorld, per_minute: u32) -> Sender {
        Sender {
            ctx: Arc::clone(&world.ctx),
            poster: Poster::new(&world.ctx.config.webhooks).unwrap(),
            pace: Arc::new(Pace::new(per_minute)),
            sending: JoinSet::new(),
            busy: HashSet::new(),
        }
    }

    /// As if the client's webhook had just been told this.
    fn told(world: &TestWorld, method: &str) {
        let told = (CLIENT, "a".to_owned(), method.to_owned());
        world.ctx.webhooks.cooldown.told(told, Instant::now());
    }

    /// Whether what is due for this is posted: it fails, as the address is none that is called.
    async fn tries(sender: &mut Sender, world: &mut TestWorld, why: Why) -> bool {
        world.ctx.webhooks.wake(CLIENT, why);
        sender.begin().await.unwrap();
        let done = sender.sending.join_next().await.expect("it was due");
        assert_eq!(done.unwrap(), CLIENT);
        sender.busy.clear();
        match world.happened().as_slice() {
            [] => false,
            [Event::WebhookFailed { .. }] => true,
            others => panic!("{others:?}"),
        }
    }

    /// Nobody failed: it is no try, and nothing is told.
    #[tokio::test]
    async fn who_was_told_enough_in_this_minute_is_told_in_the_next() {
        let mut world = TestWorld::new().await;
        world.set_webhook(CLIENT).await;
        let mut sender = sender(&world, 0);
        let began = now();
        assert!(!tries(&mut sender, &mut world, Why::Birth).await);
        let next_minutes = [began, now()].map(|at| (at / 60 + 1) * 60);
        let read = world.ctx.store.read(async |tx| {
            let next = rows::next(tx, REGISTERED).await?.expect("it is not over");
            let due = rows::due(tx, next, LONGEST_PAUSE, REGISTERED, 9).await?;
            Ok((next, due))
        });
        let (next, due) = read.await.unwrap();
        assert!(next_minutes.contains(&next), "{next}, not {next_minutes:?}");
        let tries: Vec<u32> = due.iter().map(|wake| wake.tries).collect();
        assert_eq!(tries, [0]);
    }

    /// It is no try, and nothing is told; another method, and the same when its client came, is not kept back.
    #[tokio::test]
    async fn what_was_told_a_moment_ago_by_the_same_method_is_told_a_minute_later() {
        let mut world = TestWorld::new().await;
        world.set_webhook(CLIENT).await;
        let mut sender = sender(&world, PER_MINUTE);
        told(&world, "lsps5.liquidity_management_request");
        let began = now();
        assert!(!tries(&mut sender, &mut world, Why::Sale).await);
        let next = world
            .ctx
            .store
            .read(async |tx| rows::next(tx, REGISTERED).await);
        let next = next.await.unwrap().expect("it is kept");
        assert!((began + 50..=now() + 61).contains(&next), "{next}");
        assert!(tries(&mut sender, &mut world, Why::Payment).await);
        world.ctx.webhooks.came(CLIENT);
        assert!(tries(&mut sender, &mut world, Why::Birth).await);
        // What failed was not told.
        let ends = Why::EndsSoon(factory_tree::ids::FactoryId([7; 32]));
        assert!(tries(&mut sender, &mut world, ends).await);
    }

    /// What becomes of a payment that was asked for so long ago, told of a moment ago or not: whether it is posted, and when it is looked at next.
    async fn old_payment(ago: u64, is_told: bool) -> (bool, Option<u64>) {
        let mut world = TestWorld::new().await;
        world.set_webhook(CLIENT).await;
        let mut sender = sender(&world, PER_MINUTE);
        if is_told {
            told(&world, "lsps5.payment_incoming");
        }
        let payment = Why::Payment.wake(&world.ctx.config);
        let asked_at = now() - ago;
        let asked = world
            .ctx
            .store
            .write(async |tx| rows::ask(tx, CLIENT, "a", &payment, asked_at).await);
        asked.await.unwrap();
        sender.begin().await.unwrap();
        let done = sender.sending.join_next().await.expect("it was due");
        assert_eq!(done.unwrap(), CLIENT);
        let next = world
            .ctx
            .store
            .read(async |tx| rows::next(tx, REGISTERED).await);
        let next = next.await.unwrap();
        (!world.happened().is_empty(), next)
    }

    #[tokio::test]
    async fn a_payment_that_is_gone_by_then_is_not_told() {
        let hold = TestWorld::new().await.ctx.config.jit.hold_seconds;
        assert_eq!(old_payment(hold - 30, true).await, (false, None));
        assert_eq!(old_payment(hold + 10, false).await, (false, None));
    }

    /// One for a channel just in time waits for longer than a webhook is left alone.
    #[tokio::test]
    async fn a_payment_that_still_waits_a_minute_later_is_told_then() {
        let began = now();
        let (posted, next) = old_payment(0, true).await;
        assert!(!posted);
        let next = next.expect("it is kept");
        assert!((began + 50..=now() + 61).contains(&next), "{next}");
    }

    #[test]
    fn what_was_taken_is_not_sent_again_and_a_redirection_is_a_failure() {
        for taken in [200, 202, 204] {
            assert_eq!(judge(StatusCode::from_u16(taken).unwrap()), Ok(()));
        }
        for not in [301, 307, 404, 410, 500] {
            assert!(judge(StatusCode::from_u16(not).unwrap()).is_err(), "{not}");
        }
    }

    #[test]
    fn a_file_without_certificates_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let mut config = crate::config::Config::defaults().unwrap().webhooks;
        config.ca_file = Some(path.clone());
        let refused = |text: &str| {
            std::fs::write(&path, text).unwrap();
            matches!(Poster::new(&config), Err(HttpError::CaFile { .. }))
        };
        assert!(refused("no PEM"));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(
            Poster::new(&config),
            Err(HttpError::CaFile { .. })
        ));
    }
}
