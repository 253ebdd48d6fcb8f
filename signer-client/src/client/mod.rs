//! The client as one object: a store, a chain, keys, and the tasks that work on them.

mod account;
mod answers;
mod kits;
mod views;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bitcoin::Amount;
use chain::wallet::{OnchainWallet, WalletBalance};
use chain::{ChainError, ChainSource};
use factory_tree::ids::{ClientId, FactoryId};
use factory_tree::units::{Blocks, Height};
use tokio::sync::{Mutex, Notify, broadcast, watch};
use tokio::task::JoinSet;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::event::{Event, Events, Stamped};
use crate::keys::ClientKeys;
use crate::lightning::Lightning;
use crate::migration::Migration;
use crate::sales::Sales;
use crate::store::{
    ExitRow, FactoryRow, Goal, Identity, Interest, Live, Progress, SharedStore, StoreError,
    WalletChanges,
};

pub(crate) use account::Usable;
pub use account::{Account, DoubleSaleView, LeavingView, MoveView, NoticeView, Window, account};
pub use answers::{Swept, sweep};
pub(crate) use kits::KitCache;
pub(crate) use views::Counted;
pub use views::{
    Balance, Coins, FactoryView, InFlight, OnChain, QUOTED, Quote, QuoteAt, Status, export,
    factories, quote, status,
};

/// What a client is made of.
#[derive(Clone, Debug)]
pub struct ClientParts {
    /// Its configuration.
    pub config: Config,
    /// Its keys.
    pub keys: Arc<ClientKeys>,
    /// Its memory.
    pub store: SharedStore,
    /// Its view of the chain; may be shared among many clients.
    pub chain: Arc<dyn ChainSource>,
    /// The file of its Lightning channels; made if it is not there. Never put a copy of it back: an old state is punished.
    pub channels: PathBuf,
}

/// One wallet. Cheap to clone; all clones are the same wallet.
#[derive(Clone, Debug)]
pub struct SignerClient {
    pub(crate) inner: Arc<Inner>,
}

/// What all tasks of a client share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) keys: Arc<ClientKeys>,
    pub(crate) store: SharedStore,
    pub(crate) chain: Arc<dyn ChainSource>,
    pub(crate) wallet: Arc<OnchainWallet>,
    pub(crate) lightning: Lightning,
    pub(crate) migration: Migration,
    pub(crate) sales: Sales,
    pub(crate) orders: crate::lsps1::Turn,
    pub(crate) events: Events,
    pub(crate) kits: KitCache,
    /// Look at the chain, the exits and the factories again.
    pub(crate) wake_chain: Notify,
    /// Look at the interest again.
    pub(crate) wake_connection: Notify,
    /// The block the chain was followed to; 0 before that.
    height: AtomicU32,
    /// Whether somebody follows the chain in this process.
    following: AtomicBool,
    /// Whether other processes look at what this one is doing.
    observed: AtomicBool,
    live: Mutex<Live>,
    /// What this process has warned of.
    warned: std::sync::Mutex<HashSet<(FactoryId, Warning)>>,
}

/// What is told once by each process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Warning {
    /// Funded too late.
    Late,
    /// To be left soon.
    LeaveSoon,
}

/// Which tasks to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tasks {
    /// Talk to the coordinator.
    pub connection: bool,
    /// Follow the chain, drive exits.
    pub chain: bool,
    /// Answer what other processes ask through the store.
    pub answers: bool,
    /// Run the Lightning node: without it no channel is opened, nothing paid, and an exit ends with the timeouts at the factory's expiry.
    pub lightning: bool,
}

impl Tasks {
    /// Everything, as the daemon does.
    pub const ALL: Self = Self {
        connection: true,
        chain: true,
        answers: true,
        lightning: true,
    };
}

/// Says when to stop.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// A switch and what it ends.
    #[must_use]
    pub fn new() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    /// Returns when the switch is thrown, or gone.
    pub async fn wait(&mut self) {
        let _ = self.0.wait_for(|stop| *stop).await;
    }

    /// Whether it is thrown.
    #[must_use]
    pub fn is_set(&self) -> bool {
        *self.0.borrow()
    }
}

impl SignerClient {
    /// Opens a wallet: claims the store for these keys, and loads the on-chain wallet.
    ///
    /// # Errors
    /// [`Error::Store`] if the store is another wallet's; [`Error::Wallet`].
    pub async fn open(parts: ClientParts) -> Result<Self> {
        let ClientParts {
            config,
            keys,
            store,
            chain,
            channels,
        } = parts;
        let found = store.identity().await?;
        let birthday = found.and_then(|identity| identity.birthday);
        let identity = Identity {
            network: config.network,
            node_id: keys.node_id(),
            birthday,
        };
        store.claim(&identity).await?;
        let mut master = keys.wallet_xpriv();
        let changes = Arc::new(WalletChanges::new(Arc::clone(&store)));
        let wallet = OnchainWallet::open(config.network, &master, changes, birthday).await;
        master.private_key.non_secure_erase();
        let lightning = Lightning::new(channels, store.route().await?);
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                keys,
                kits: KitCache::new(Arc::clone(&store)),
                store,
                chain,
                wallet: Arc::new(wallet?),
                lightning,
                migration: Migration::new(),
                sales: Sales::default(),
                orders: crate::lsps1::Turn::default(),
                events: Events::default(),
                wake_chain: Notify::new(),
                wake_connection: Notify::new(),
                height: AtomicU32::new(0),
                following: AtomicBool::new(false),
                observed: AtomicBool::new(false),
                live: Mutex::new(Live::default()),
                warned: std::sync::Mutex::default(),
            }),
        })
    }

    /// Fails if the node is one that can never serve this wallet; one that is away, or does not say
    /// within `patience`, may come later.
    ///
    /// # Errors
    /// [`ChainError::WrongNetwork`], [`ChainError::TooOld`], [`ChainError::Unauthorized`].
    pub async fn refuse_wrong_node(&self, patience: Duration) -> Result<()> {
        let network = self.inner.config.network;
        let asked = tokio::time::timeout(patience, self.inner.chain.node_info()).await;
        let answer = asked.unwrap_or_else(|_| {
            Err(ChainError::NotReady {
                url: String::new(),
                message: String::new(),
            })
        });
        match answer.and_then(|info| info.require_ready(network)) {
            Err(error) if !error.is_transient() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Who it is.
    #[must_use]
    pub fn node_id(&self) -> ClientId {
        self.inner.keys.node_id()
    }

    /// The store it works on.
    #[must_use]
    pub fn store(&self) -> &SharedStore {
        &self.inner.store
    }

    /// Everything that happens from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Stamped> {
        self.inner.events.subscribe()
    }

    /// Runs until told to stop; then ends every task in order and writes out what is unsaved.
    ///
    /// # Errors
    /// What a task cannot go on after: a damaged store, a coordinator that is somebody else.
    pub async fn run(&self, tasks: Tasks, mut shutdown: Shutdown) -> Result<()> {
        let inner = &self.inner;
        inner.following.store(tasks.chain, Ordering::Relaxed);
        inner.observed.store(tasks.answers, Ordering::Relaxed);
        let mut running: JoinSet<Result<()>> = JoinSet::new();
        if tasks.chain {
            running.spawn(crate::watch::run(Arc::clone(&self.inner), shutdown.clone()));
        }
        if tasks.connection && self.inner.config.coordinator.is_some() {
            running.spawn(crate::connection::run(
                Arc::clone(&self.inner),
                shutdown.clone(),
            ));
        }
        inner.lightning.want(tasks.lightning);
        // Nothing moves on old news: it takes the node, and somebody who follows the chain.
        if tasks.lightning && tasks.chain {
            running.spawn(crate::migration::run(
                Arc::clone(&self.inner),
                shutdown.clone(),
            ));
        }
        if tasks.lightning && tasks.connection {
            running.spawn(crate::sales::run(Arc::clone(&self.inner), shutdown.clone()));
            running.spawn(crate::jit::run(Arc::clone(&self.inner), shutdown.clone()));
            running.spawn(crate::lsps1::run(Arc::clone(&self.inner), shutdown.clone()));
        }
        if tasks.lightning && tasks.connection && inner.config.top_up.enabled {
            running.spawn(crate::sales::run_top_up(
                Arc::clone(&self.inner),
                shutdown.clone(),
            ));
        }
        if tasks.lightning {
            running.spawn(crate::lightning::run(
                Arc::clone(&self.inner),
                shutdown.clone(),
            ));
        }
        if tasks.answers {
            running.spawn(answers::run(Arc::clone(&self.inner), shutdown.clone()));
        }
        let failed = tokio::select! {
            () = shutdown.wait() => Ok(()),
            ended = running.join_next() => ended.map_or(Ok(()), flatten),
        };
        // Told to stop, the tasks end by themselves; after a failure they are cut off: every write is atomic.
        if failed.is_err() {
            running.shutdown().await;
        }
        let mut outcome = failed;
        while let Some(ended) = running.join_next().await {
            outcome = outcome.and(flatten(ended));
        }
        self.inner.lightning.stop().await;
        self.inner.wallet.flush().await?;
        self.inner.set_live(|live| *live = Live::default()).await;
        self.inner.events.emit(Event::Shutdown);
        outcome
    }

    /// Asks to be in the next factory. A running client acts on it at once.
    ///
    /// # Errors
    /// The store's.
    pub async fn join(&self, capacity: Amount) -> Result<()> {
        let note = "waiting for the coordinator".to_owned();
        let interest = Interest { capacity, note };
        self.inner.store.set_interest(Some(&interest)).await?;
        self.inner.wake_connection.notify_one();
        Ok(())
    }

    /// Asks for a unilateral exit. A running client acts on it at once.
    ///
    /// # Errors
    /// As [`request_exit`].
    pub async fn request_exit(
        &self,
        factory: FactoryId,
        feerate: Option<bitcoin::FeeRate>,
        max_fee: Option<Amount>,
    ) -> Result<()> {
        let requested = Height(self.inner.tip_height().await.unwrap_or(0));
        request_exit(&self.inner.store, factory, feerate, max_fee, requested).await?;
        self.inner.wake_chain.notify_one();
        Ok(())
    }

    /// A fresh address of the on-chain wallet.
    ///
    /// # Errors
    /// [`Error::Wallet`].
    pub async fn new_address(&self) -> Result<bitcoin::Address> {
        Ok(self.inner.wallet.new_address().await?)
    }

    /// What the on-chain wallet has, payouts not included.
    ///
    /// # Errors
    /// [`Error::Wallet`].
    pub async fn wallet_balance(&self) -> Result<WalletBalance> {
        Ok(self.inner.wallet.balance().await?)
    }
}

/// Writes the wish to leave into a store, whoever runs on it.
///
/// # Errors
/// [`StoreError::NoFactory`], or why the factory cannot be left; [`Error::ExitBudget`].
pub async fn request_exit(
    store: &SharedStore,
    factory: FactoryId,
    feerate: Option<bitcoin::FeeRate>,
    max_fee: Option<Amount>,
    requested: Height,
) -> Result<()> {
    let row = store.factory(factory).await?;
    let over = !row.is_live() || row.is_given_away();
    if let Some(state) = over.then(|| row.state()) {
        return Err(Error::NothingToLeave { factory, state });
    }
    if let Some(budget) = max_fee {
        quote(store, factory, &[], None).await?.within(budget)?;
    }
    let exit = ExitRow {
        factory,
        goal: Goal::Leave,
        feerate,
        max_fee,
        requested,
        progress: Progress {
            text: "requested".to_owned(),
            ..Progress::default()
        },
    };
    store.request_exit(&exit).await?;
    Ok(())
}

fn flatten(ended: Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    match ended {
        Ok(result) => result,
        Err(error) if error.is_cancelled() => Ok(()),
        Err(error) => Err(Error::Task(error.to_string())),
    }
}

impl Inner {
    /// The own chain's tip: as followed, or, when nobody follows, as the node says.
    pub(crate) async fn tip_height(&self) -> Result<u32> {
        match self.height.load(Ordering::Relaxed) {
            0 => Ok(self.chain.tip().await?.height),
            height => Ok(height),
        }
    }

    /// The block the chain was followed to; 0 before that.
    pub(crate) fn followed_height(&self) -> u32 {
        self.height.load(Ordering::Relaxed)
    }

    /// Whether somebody follows the chain in this process.
    pub(crate) fn follows(&self) -> bool {
        self.following.load(Ordering::Relaxed)
    }

    /// What the confirmed, free coins of the on-chain wallet are worth.
    pub(crate) async fn coin_values(&self) -> Vec<Amount> {
        let coins = self.wallet.coins().await;
        coins.into_iter().map(|coin| coin.txout.value).collect()
    }

    /// The block a factory's funding is in, or at best could be in.
    pub(crate) fn next_block(&self, row: &FactoryRow) -> Height {
        let tip = Height(self.height.load(Ordering::Relaxed));
        row.confirmed.unwrap_or_else(|| tip.plus(Blocks(1)))
    }

    /// Whether the coins of the wallet are known: somebody follows the chain, and has reached its tip.
    pub(crate) fn knows_coins(&self) -> bool {
        !self.following.load(Ordering::Relaxed) || self.height.load(Ordering::Relaxed) > 0
    }

    /// The chain was followed to this block.
    pub(crate) fn set_height(&self, height: u32) {
        self.height.store(height, Ordering::Relaxed);
        self.events.set_height(height);
    }

    /// Whether this was not warned of yet by this process. From now on it was.
    pub(crate) fn first_time(&self, factory: FactoryId, warning: Warning) -> bool {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        warned.insert((factory, warning))
    }

    /// Changes what other processes see of this one.
    /// Not being able to is no reason to stop: it is only for show.
    pub(crate) async fn set_live(&self, change: impl FnOnce(&mut Live) + Send) {
        let mut live = self.live.lock().await;
        let before = live.clone();
        change(&mut live);
        if *live != before
            && self.observed.load(Ordering::Relaxed)
            && let Err(error) = self.store.set_live(&live).await
        {
            tracing::warn!(%error, "the status shown to other processes is stale");
        }
    }

    /// Whether an error of the store leaves nothing to go on with.
    pub(crate) const fn is_fatal(error: &Error) -> bool {
        matches!(
            error,
            Error::Store(StoreError::Corrupt { .. } | StoreError::Unreadable { .. })
        )
    }
}
