//! The Lightning node beside the coordinator: channels on leaves, payments through us, ordinary channels of our own.

mod bought;
mod held;
mod leaves;
mod opening;
mod pay;
mod publish;
mod reconcile;
mod route;
mod sink;
mod stocks;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bitcoin::{Amount, OutPoint};
use channel_host::{
    ChannelView, EventSink, FeePolicy, Host, HostState, LeafId, Node, NodeConfig, NodeError, Side,
    Stage, WalletCoins,
};
use factory_tree::ids::ClientId;
use proto::auth::CertHash;
use proto::connection::{Connection, ConnectionError, Security};
use tokio::sync::watch;

use crate::context::Context;
use crate::event::Event;

#[cfg(test)]
pub(crate) use held::Asked;
pub use leaves::{leaf_of, sold_leaf_of};
pub(crate) use opening::Opening;
pub use pay::{PayError, pay};
pub use route::greet;
pub use sink::spend_name;

/// Blocks a client waits for its own money after closing alone: BOLT 2's usual day. We look at the chain all the time.
const TO_SELF_DELAY: u16 = 144;

/// Why there is no Lightning node, and none later.
#[derive(Debug, thiserror::Error)]
pub enum LightningError {
    /// Its own words.
    #[error(
        "the Lightning node cannot start: {0} (lightning_listen, and channels.sqlite in the data directory)"
    )]
    Node(#[from] NodeError),
    /// The address others are told.
    #[error(
        "nobody can be told where the Lightning node is: {0}; set lightning_public_address to a host:port that can be reached"
    )]
    Address(ConnectionError),
}

/// The node, once it was started.
#[derive(Debug)]
pub struct Lightning {
    host: OnceLock<Host>,
    /// Where others are told it is; without a configured address, what it listens on.
    public: OnceLock<String>,
    /// Why the channels of attempts did not come about, in the node's words: an entry for each that is being opened, and only for those,
    /// with how many attempts there are: one that is given up may end after the next has begun.
    refusals: Mutex<HashMap<LeafId, (usize, Option<String>)>>,
    /// Leaves that were forgotten since the start, which is not done again at every block.
    forgotten: Mutex<HashSet<LeafId>>,
    /// Held while a payment of ours is begun: its end is written down after its beginning.
    paying: tokio::sync::Mutex<()>,
    /// Where it is, once its leaves are as they should be.
    up: watch::Sender<Option<String>>,
    /// One look at all leaves at a time.
    looking: tokio::sync::Mutex<()>,
    /// Counts what may interest those who open channels.
    news: watch::Sender<u64>,
    /// Counts what may ask for a look at all leaves.
    work: watch::Sender<u64>,
    /// What was asked of the payments of sales, in tests without a node.
    #[cfg(test)]
    pub(crate) asked: Mutex<Vec<held::Asked>>,
    /// Its channels that were bought.
    #[cfg(test)]
    pub(crate) pretended: Mutex<bought::Pretended>,
}

impl Default for Lightning {
    fn default() -> Self {
        Self {
            host: OnceLock::new(),
            public: OnceLock::new(),
            refusals: Mutex::default(),
            forgotten: Mutex::default(),
            paying: tokio::sync::Mutex::default(),
            up: watch::Sender::new(None),
            looking: tokio::sync::Mutex::default(),
            news: watch::Sender::new(0),
            work: watch::Sender::new(0),
            #[cfg(test)]
            asked: Mutex::default(),
            #[cfg(test)]
            pretended: Mutex::default(),
        }
    }
}

fn count(counter: &watch::Sender<u64>) {
    counter.send_modify(|count| *count = count.wrapping_add(1));
}

impl Lightning {
    /// The node, while it runs.
    #[must_use]
    pub fn node(&self) -> Option<Arc<Node>> {
        self.host.get()?.node()
    }

    /// Whether it runs.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.up.borrow().is_some()
    }

    /// Whether a leaf's channel stands, in our book and in Lightning's.
    #[must_use]
    pub fn stands(&self, leaf: LeafId) -> bool {
        #[cfg(test)]
        if self.pretends() {
            return !self.pretended.lock().unwrap().missing.contains(&leaf);
        }
        let Some(node) = self.node() else {
            return false;
        };
        let channels = node.channels();
        let is_open = node.leaf(leaf).map(|view| view.stage) == Some(Stage::Open);
        is_open && channels.iter().any(|channel| channel.leaf == Some(leaf))
    }

    /// Whether a leaf had a channel that ended, or was given up: there will be no other.
    #[must_use]
    pub fn is_over(&self, leaf: LeafId) -> bool {
        #[cfg(test)]
        if self.pretends() {
            return self.pretended.lock().unwrap().over.contains(&leaf);
        }
        let view = self.node().and_then(|node| node.leaf(leaf));
        matches!(
            view.map(|view| view.stage),
            Some(Stage::Closed | Stage::Abandoned)
        )
    }

    /// Where a leaf's channel is, or was.
    #[must_use]
    pub fn outpoint(&self, leaf: LeafId) -> Option<OutPoint> {
        #[cfg(test)]
        if self.pretends() {
            return self.pretended.lock().unwrap().outpoint;
        }
        Some(self.node()?.leaf(leaf)?.outpoint)
    }

    /// What a client has in channels that lie in no factory, whole satoshis; nothing while the node does not run.
    #[must_use]
    pub fn outside_balance(&self, client: &ClientId) -> Amount {
        let channels = self.channels();
        let own = channels
            .iter()
            .filter(|channel| channel.leaf.is_none() && channel.peer.serialize() == client.0);
        // What it could send us, and what it has to keep.
        let balances = own.map(|channel| {
            let whole = channel.receivable.0 / 1000;
            Amount::from_sat(whole.saturating_add(channel.their_reserve))
        });
        balances.fold(Amount::ZERO, |sum, one| {
            sum.checked_add(one).unwrap_or(Amount::MAX_MONEY)
        })
    }

    /// The node's channels, while it runs.
    fn channels(&self) -> Vec<ChannelView> {
        #[cfg(test)]
        if self.pretends() {
            return self.pretended.lock().unwrap().channels.clone();
        }
        self.node().map(|node| node.channels()).unwrap_or_default()
    }

    /// Whether a payment waits for the channel of this just-in-time order.
    #[must_use]
    pub fn jit_waits(&self, scid: u64) -> bool {
        #[cfg(test)]
        if self.pretends() {
            return true;
        }
        self.node().is_some_and(|node| node.jit_waits(scid))
    }

    /// Whether it says what the channels hold.
    #[must_use]
    pub fn sees(&self) -> bool {
        #[cfg(test)]
        if self.pretends() {
            return true;
        }
        self.node().is_some()
    }

    /// In tests without a node: as if it ran, and every channel stood that is not said to be missing.
    #[cfg(test)]
    pub(crate) fn pretend(&self) {
        self.up.send_replace(Some("nowhere".to_owned()));
    }

    /// Whether a test does without a node.
    #[cfg(test)]
    fn pretends(&self) -> bool {
        self.host.get().is_none() && self.up.borrow().is_some()
    }

    /// Where others reach it, while it runs.
    #[must_use]
    pub fn address(&self) -> Option<String> {
        let listen = self.node()?.listen_address()?;
        Some(
            self.public
                .get()
                .cloned()
                .unwrap_or_else(|| listen.to_string()),
        )
    }

    /// Waits until it runs and its leaves are looked after, and says where.
    pub async fn runs(&self) -> String {
        let mut up = self.up.subscribe();
        // The sender is ours.
        let up = up.wait_for(Option::is_some).await;
        up.ok().and_then(|up| up.clone()).unwrap_or_default()
    }

    /// Why it does not run.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let state = self.host.get().map(|host| host.states().borrow().clone());
        match state {
            Some(HostState::Up(_)) => None,
            Some(HostState::Down(error)) => Some(error.to_string()),
            Some(HostState::Starting) | None => Some("it is starting".to_owned()),
        }
    }

    /// Changes whenever a channel may have come about, or not.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Something changed that the node's leaves depend on.
    pub fn look_again(&self) {
        count(&self.work);
    }

    /// How often that was said.
    #[cfg(test)]
    pub(crate) fn looks_asked(&self) -> u64 {
        *self.work.borrow()
    }

    fn refusals(&self) -> std::sync::MutexGuard<'_, HashMap<LeafId, (usize, Option<String>)>> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kept for an attempt that opens this leaf; nobody else asks.
    fn refused(&self, leaf: LeafId, why: String) {
        if let Some((_, told)) = self.refusals().get_mut(&leaf) {
            *told = Some(why);
        }
    }

    /// Why this leaf was refused, and forgets that.
    fn take_refusal(&self, leaf: LeafId) -> Option<String> {
        self.refusals().get_mut(&leaf)?.1.take()
    }

    fn forgotten(&self) -> std::sync::MutexGuard<'_, HashSet<LeafId>> {
        self.forgotten
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the node in order.
    pub async fn shutdown(&self) {
        if let Some(host) = self.host.get() {
            host.shutdown().await;
        }
    }
}

/// What others are told, as far as the configuration says.
fn public_address(ctx: &Context) -> Result<Option<String>, LightningError> {
    let config = &ctx.config;
    let text = match &config.lightning_public_address {
        Some(text) => text.clone(),
        None if config.lightning_listen.ip().is_unspecified() => {
            let ip = config.lightning_listen.ip().to_string();
            return Err(LightningError::Address(ConnectionError::Host(ip)));
        }
        None => return Ok(None),
    };
    let wrong = || LightningError::Address(ConnectionError::Port(text.clone()));
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().map_err(|_| wrong())?;
    // The same rules as for a service that is encrypted, as BOLT 8 is.
    let encrypted = Security::Tls(CertHash::PLAIN);
    Connection::new(ctx.keys.node_id(), host, port, encrypted).map_err(LightningError::Address)?;
    Ok(Some(text))
}

fn node_config(ctx: &Arc<Context>, store: PathBuf) -> NodeConfig {
    let fees = &ctx.config.lightning;
    let events: Arc<dyn EventSink> = Arc::new(sink::Sink::new(ctx));
    NodeConfig {
        network: ctx.config.network,
        side: Side::Lsp,
        store,
        listen: Some(ctx.config.lightning_listen),
        fees: FeePolicy {
            base_msat: fees.base_fee_msat,
            proportional_millionths: fees.fee_ppm,
        },
        to_self_delay: TO_SELF_DELAY,
        poll_interval: ctx.config.poll(),
        keys: ctx.keys.leaf_keys(),
        chain: Arc::clone(&ctx.source),
        coins: Arc::new(WalletCoins::new(Arc::clone(&ctx.wallet))),
        events,
        allow_unfunded: false,
        lsps: Some(Arc::new(crate::lsps::Lsps::new(ctx))),
    }
}

/// Starts the node. A Bitcoin node that is away is waited for in the background.
///
/// # Errors
/// [`LightningError`] where waiting does not help.
pub async fn start(ctx: &Arc<Context>, store: PathBuf) -> Result<(), LightningError> {
    if let Some(public) = public_address(ctx)? {
        // Nobody else starts it.
        let _ = ctx.lightning.public.set(public);
    }
    let host = Host::start(node_config(ctx, store)).await?;
    let _ = ctx.lightning.host.set(host);
    Ok(())
}

/// Tells when the node comes and goes, and keeps its leaves as the database and the chain say, until `shutdown`.
pub async fn run(ctx: Arc<Context>, mut shutdown: watch::Receiver<bool>) {
    let Some(mut states) = ctx.lightning.host.get().map(Host::states) else {
        return;
    };
    states.mark_changed();
    let mut work = ctx.lightning.work.subscribe();
    let mut told = None;
    loop {
        let changed = tokio::select! {
            () = stopped(&mut shutdown) => return,
            changed = states.changed() => if changed.is_err() {
                return;
            } else {
                true
            },
            // The sender is in the context.
            _ = work.changed() => false,
        };
        let state = states.borrow_and_update().clone();
        let looked = tokio::select! {
            () = stopped(&mut shutdown) => return,
            looked = look(&ctx) => looked,
        };
        if let Err(error) = looked {
            tracing::warn!(%error, "the leaves are looked at again at the next block");
        }
        if changed {
            if let (HostState::Up(_), Err(error)) = (&state, pay::settle(&ctx).await) {
                tracing::warn!(%error, "payments that were never sent stay pending until the next start");
            }
            tell(&ctx, state, &mut told).await;
        }
    }
}

async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    // The sender is the coordinator's: without one it goes down as well.
    let _ = shutdown.wait_for(|stop| *stop).await;
}

async fn look(ctx: &Context) -> Result<(), reconcile::ReconcileError> {
    let _one = ctx.lightning.looking.lock().await;
    reconcile::run(ctx).await?;
    publish::run(ctx).await
}

/// The gates of leaves stand as the database says when this returns, if the node runs; if it does not, they will before it is told of.
pub async fn settle(ctx: &Context) {
    let _one = ctx.lightning.looking.lock().await;
    if let Err(error) = reconcile::run(ctx).await {
        tracing::warn!(%error, "the leaves are looked at again at the next block");
    }
}

/// A restart of the node is no news by itself, but clients that came meanwhile know nothing yet.
async fn tell(ctx: &Arc<Context>, state: HostState, told: &mut Option<Result<String, String>>) {
    let now = match (state, ctx.lightning.address()) {
        (HostState::Down(error), _) => Err(error.to_string()),
        (HostState::Up(_), Some(address)) => Ok(address),
        (HostState::Starting | HostState::Up(_), _) => return,
    };
    let news = told.as_ref() != Some(&now);
    ctx.lightning.up.send_replace(now.clone().ok());
    match &now {
        Ok(address) => {
            let (node_id, address) = (ctx.keys.node_id().to_string(), address.clone());
            if news {
                ctx.events.emit(Event::LightningReady { node_id, address });
            }
            let all = ctx.sessions.list().into_iter();
            route::greet_all(ctx, all.map(|session| session.client).collect()).await;
        }
        Err(problem) if news => ctx.events.emit(Event::LightningDown {
            problem: problem.clone(),
        }),
        Err(_) => {}
    }
    *told = Some(now);
}

#[cfg(test)]
mod tests;
