//! The wallet's Lightning node: the channel on each leaf, payments over it, and what is its own of a channel that went to the chain.

mod api;
mod balance;
mod coins;
mod connect;
mod ending;
mod leaf;
mod outside;
mod reconcile;
mod sink;
mod views;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use channel_host::{
    EventSink, FeePolicy, Host, HostState, LeafId, LeafRefusal, Node, NodeConfig, Side,
};
use tokio::sync::watch;

use crate::client::{Inner, Shutdown};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::store::Route;

pub use api::{Invoice, InvoiceOptions};
pub(crate) use api::{unix_time, words};
pub use balance::LightningBalance;
pub(crate) use ending::{Ending, ending, leave};
pub(crate) use leaf::{leaf_at, leaf_id, leaf_to_be, name_of, way};
pub(crate) use reconcile::{gate, reconcile};
#[cfg(test)]
pub(crate) use sink::factory_of;
pub use views::{ChannelState, ChannelView, SpentView};
pub(crate) use views::{current, of_factory, stored};

/// Between two tries to start a node that cannot start.
const AGAIN: Duration = Duration::from_secs(30);
/// How often to look whether a channel's balance changed.
const LOOK: Duration = Duration::from_secs(1);

/// The node, and what others wait for.
#[derive(Debug)]
pub(crate) struct Lightning {
    store: PathBuf,
    host: Mutex<Option<Arc<Host>>>,
    /// Whether this process runs a node.
    wanted: AtomicBool,
    /// The way to the coordinator's node.
    route: watch::Sender<Option<Route>>,
    /// Why the channel of a leaf did not come about.
    refusals: Mutex<HashMap<LeafId, LeafRefusal>>,
    /// Counts what may interest those who wait for a channel.
    news: watch::Sender<u64>,
    /// What is wrong, as told last.
    problem: Mutex<Option<String>>,
    /// Leaves whose monitor is gone already.
    forgotten: Mutex<HashSet<LeafId>>,
    /// Held from the record of a payment until the node knows of it.
    paying: tokio::sync::Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lightning {
    pub(crate) fn new(store: PathBuf, route: Option<Route>) -> Self {
        Self {
            store,
            host: Mutex::default(),
            wanted: AtomicBool::new(false),
            route: watch::Sender::new(route),
            refusals: Mutex::default(),
            news: watch::Sender::new(0),
            problem: Mutex::default(),
            forgotten: Mutex::default(),
            paying: tokio::sync::Mutex::default(),
        }
    }

    /// Says whether this process runs a node.
    pub(crate) fn want(&self, wanted: bool) {
        self.wanted.store(wanted, Ordering::Relaxed);
    }

    /// The node, while it runs.
    pub(crate) fn node(&self) -> Option<Arc<Node>> {
        lock(&self.host).as_ref()?.node()
    }

    /// The node.
    ///
    /// # Errors
    /// [`Error::NoLightning`] and why.
    pub(crate) fn running(&self) -> Result<Arc<Node>> {
        self.node()
            .ok_or_else(|| Error::NoLightning(self.why_not()))
    }

    fn why_not(&self) -> String {
        if !self.wanted.load(Ordering::Relaxed) {
            return "`run` is not running".to_owned();
        }
        let problem = lock(&self.problem).clone();
        problem.unwrap_or_else(|| "it is starting".to_owned())
    }

    /// Whether a factory can be asked for: its channel needs a node.
    pub(crate) fn is_ready(&self) -> bool {
        !self.wanted.load(Ordering::Relaxed) || self.node().is_some()
    }

    /// Something happened that those who wait for a channel may want to know.
    pub(crate) fn tell(&self) {
        self.news
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Changes whenever something happened.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    pub(crate) fn refusals(&self) -> MutexGuard<'_, HashMap<LeafId, LeafRefusal>> {
        lock(&self.refusals)
    }

    /// The coordinator said where its node is.
    pub(crate) async fn set_route(&self, client: &Inner, route: Route) -> Result<()> {
        if self.route.borrow().as_ref() == Some(&route) {
            return Ok(());
        }
        client.store.set_route(&route).await?;
        self.route.send_replace(Some(route));
        Ok(())
    }

    /// Says once what is wrong.
    fn down(&self, client: &Inner, problem: &str) {
        let mut known = lock(&self.problem);
        if known.as_deref() != Some(problem) {
            *known = Some(problem.to_owned());
            client.events.emit(Event::LightningDown {
                problem: problem.to_owned(),
            });
        }
    }

    /// Nothing is wrong any more; `true` if something was, or nothing was known.
    fn well(&self) {
        *lock(&self.problem) = None;
    }

    /// Stops the node in order.
    pub(crate) async fn stop(&self) {
        let host = lock(&self.host).take();
        if let Some(host) = host {
            host.shutdown().await;
        }
    }
}

fn node_config(client: &Arc<Inner>) -> NodeConfig {
    let events: Arc<dyn EventSink> = Arc::new(sink::Sink::new(client));
    NodeConfig {
        network: client.config.network,
        side: Side::Client,
        store: client.lightning.store.clone(),
        listen: None,
        // A wallet forwards nothing.
        fees: FeePolicy {
            base_msat: 0,
            proportional_millionths: 0,
        },
        to_self_delay: client.config.lightning.to_self_delay,
        poll_interval: client.config.poll_interval(),
        keys: Arc::clone(client.keys.leaf_keys()),
        chain: Arc::clone(&client.chain),
        coins: Arc::new(coins::Coins::new(client)),
        events,
        allow_unfunded: client.config.jit.allow_unfunded,
        // A wallet asks, and answers nothing.
        lsps: None,
    }
}

/// The coordinator's Lightning node: its account there is its node id.
pub(crate) fn coordinator_of(client: &Inner) -> Option<PublicKey> {
    let text = client.config.coordinator.as_deref()?;
    let connection: proto::connection::Connection = text.parse().ok()?;
    PublicKey::from_slice(&connection.node_id().to_bytes()).ok()
}

/// Starts the node, and tries again if it cannot start: without it the timeouts still pay.
async fn start(client: &Arc<Inner>) -> Arc<Host> {
    loop {
        match Host::start(node_config(client)).await {
            Ok(host) => return Arc::new(host),
            Err(error) => client.lightning.down(client, &error.to_string()),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Keeps a node running, connected, and its leaves as the chain says, until told to stop. Whoever runs this stops the node after it.
///
/// # Errors
/// What leaves nothing to go on with: a damaged store of the wallet.
pub(crate) async fn run(client: Arc<Inner>, mut shutdown: Shutdown) -> Result<()> {
    let mut snapshots = views::Snapshots::default();
    // What an earlier process could use is of no use before the node runs.
    if let Err(error) = snapshots.store(&client).await {
        if Inner::is_fatal(&error) {
            return Err(error);
        }
        tracing::warn!(%error, "the channels are looked at again");
    }
    let host = tokio::select! {
        host = start(&client) => host,
        () = shutdown.wait() => return Ok(()),
    };
    let mut states = host.states();
    states.mark_changed();
    *lock(&client.lightning.host) = Some(host);
    let mut route = client.lightning.route.subscribe();
    let mut news = client.lightning.news();
    let mut dialler = connect::Dialler::default();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let done = tokio::select! {
            () = shutdown.wait() => return Ok(()),
            changed = states.changed() => match changed {
                Ok(()) => {
                    dialler.forget();
                    let state = states.borrow_and_update().clone();
                    came_or_went(&client, &state).await
                }
                Err(_) => return Ok(()),
            },
            _ = route.changed() => Ok(()),
            _ = news.changed() => Ok(()),
            _ = look.tick() => Ok(()),
        };
        let seen = match done {
            Ok(()) => snapshots.store(&client).await,
            Err(error) => Err(error),
        };
        match seen {
            Err(error) if Inner::is_fatal(&error) => return Err(error),
            Err(error) => tracing::warn!(%error, "the channels are looked at again"),
            Ok(()) => {}
        }
        let wanted = route.borrow_and_update().clone();
        dialler.look(&client, wanted.as_ref());
    }
}

async fn came_or_went(client: &Arc<Inner>, state: &HostState) -> Result<()> {
    match state {
        HostState::Starting => Ok(()),
        HostState::Down(error) => {
            client.lightning.down(client, &error.to_string());
            Ok(())
        }
        HostState::Up(_) => {
            client.lightning.well();
            api::settle_payments(client).await?;
            reconcile(client).await?;
            client.lightning.tell();
            // The exits may go on, and a factory may be asked for.
            client.wake_chain.notify_one();
            client.wake_connection.notify_one();
            Ok(())
        }
    }
}

/// Calls into the node write to its disk.
pub(crate) async fn on_node<T: Send + 'static>(
    node: Arc<Node>,
    work: impl FnOnce(&Node) -> T + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(move || work(&node))
        .await
        .map_err(|error| Error::Task(error.to_string()))
}
