//! Starting a node: reading what is stored, catching up with the chain, then opening the doors.

use std::sync::{Arc, RwLock};

use bitcoin::secp256k1::PublicKey;
use chain::Follower;
use lightning::chain::channelmonitor::ChannelMonitor;
use lightning::chain::{BlockLocator, Listen};
use lightning::ln::channelmanager::{ChainParameters, ChannelManagerReadArgs};
use lightning::ln::peer_handler::{IgnoringMessageHandler, MessageHandler};
use lightning::ln::types::ChannelId;
use lightning::onion_message::messenger::DefaultMessageRouter;
use lightning::routing::gossip::NetworkGraph;
use lightning::routing::scoring::{ProbabilisticScorer, ProbabilisticScoringDecayParameters};
use lightning::sign::{EntropySource, NodeSigner, Recipient};
use lightning::util::persist::{
    CHANNEL_MANAGER_PERSISTENCE_KEY, MonitorUpdatingPersister, NETWORK_GRAPH_PERSISTENCE_KEY,
    OUTPUT_SWEEPER_PERSISTENCE_KEY, SCORER_PERSISTENCE_KEY,
};
use lightning::util::ser::ReadableArgs;
use lightning::util::wallet_utils::Wallet;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};

use super::broadcast::submit_all;
use super::chain_sync::{Listener, catch_up, checkpoints};
use super::ended::{failed_back, note_ended, unspent_leaves};
use super::gossip::Hearsay;
use super::log::TracingLog;
use super::parts::fail_unsent;
use super::*;
use crate::clock::since_epoch;
use crate::error::NodeError;
use crate::lsps0::AT_ONCE;
use crate::store::{Change, EntryKey};

/// Updates a monitor may have on the disk beside it before it is written whole.
const MONITOR_UPDATES: u64 = 100;

/// Where LDK keeps its single values.
pub(super) fn single(name: &str) -> EntryKey {
    EntryKey::new("", "", name)
}

fn unreadable(what: &'static str) -> impl FnOnce(lightning::ln::msgs::DecodeError) -> NodeError {
    move |error| NodeError::Unreadable {
        what,
        cause: format!("{error:?}"),
    }
}

impl Node {
    /// Starts a node: opens its store, catches up with the chain, connects to the peers it knows.
    ///
    /// # Errors
    /// [`NodeError`]; nothing runs then.
    pub async fn start(config: NodeConfig) -> Result<Self, NodeError> {
        let listener = match config.listen {
            None => None,
            Some(address) => {
                let failed = |cause: std::io::Error| NodeError::Listen {
                    address,
                    cause: cause.to_string(),
                };
                Some(TcpListener::bind(address).await.map_err(failed)?)
            }
        };
        let listen = listener.as_ref().and_then(|open| open.local_addr().ok());
        let (core, follower, packages) = load(config).await?;
        let (stop, stopped) = watch::channel(false);
        let submitter = submit_all(Arc::clone(&core.config.chain), packages);
        let looking = Arc::clone(&core).look_for_fundings();
        let mut helpers = vec![tokio::spawn(submitter), tokio::spawn(looking)];
        for _ in 0..AT_ONCE {
            helpers.push(tokio::spawn(Arc::clone(&core).serve()));
        }
        let (drives, driven) = watch::channel(());
        let driving = Arc::clone(&core).drive(follower, stopped);
        let driver = tokio::spawn(async move {
            // Dropped by a panic as well.
            let _drives = drives;
            driving.await;
        });
        if let Some(listener) = listener {
            helpers.push(tokio::spawn(Arc::clone(&core).listen(listener)));
        }
        Ok(Self {
            core,
            stop,
            driver: Mutex::new(Some(driver)),
            driven,
            helpers: std::sync::Mutex::new(helpers),
            listen,
        })
    }
}

/// The store belongs to one seed and one chain.
fn check_owner(store: &Store, config: &NodeConfig, id: &str) -> Result<(), NodeError> {
    let key = EntryKey::new("superscalar", "", "owner");
    let expected = format!("{id} on {}", config.network);
    match store.get(key.clone())? {
        None => Ok(store.write(vec![Change::Put(key, expected.into_bytes())])?),
        Some(found) if found == expected.as_bytes() => Ok(()),
        Some(found) => Err(NodeError::OtherOwner {
            expected,
            found: String::from_utf8_lossy(&found).into_owned(),
        }),
    }
}

/// Monitors and what they need to take in blocks by themselves, each at its height.
type Watching = Vec<(
    BlockLocator,
    (
        ChannelMonitor<InMemorySigner>,
        Arc<Broadcaster>,
        Arc<FeeCache>,
        Log,
    ),
)>;

fn watched(watching: &mut Watching) -> Vec<Listener<'_>> {
    let each = watching.iter_mut();
    each.map(|(at, listen)| Listener { at, listen }).collect()
}

async fn load(
    config: NodeConfig,
) -> Result<
    (
        Arc<Core>,
        Follower,
        tokio::sync::mpsc::UnboundedReceiver<Vec<bitcoin::Transaction>>,
    ),
    NodeError,
> {
    let store = Arc::new(Store::open(&config.store)?);
    let log: Log = Arc::new(TracingLog);
    let keys = Arc::clone(config.keys.keys_manager());
    let id = keys
        .get_node_id(Recipient::Node)
        .map_err(|()| NodeError::Refused("the keys have no node id".into()))?;
    check_owner(&store, &config, &id.to_string())?;
    let chain = Arc::clone(&config.chain);
    let book = Arc::new(Book::open(Store::clone(&store))?);
    let moves = Arc::new(PartBook::open(Store::clone(&store))?);
    let fees = Arc::new(FeeCache::new());
    fees.refresh(&*chain).await?;
    let (broadcaster, packages) =
        Broadcaster::new(Arc::clone(&book), Arc::clone(&moves), Arc::clone(&store));
    let broadcaster = Arc::new(broadcaster);

    let persister = MonitorUpdatingPersister::new(
        Arc::clone(&store),
        Arc::clone(&log),
        MONITOR_UPDATES,
        Arc::clone(&keys),
        Arc::clone(&config.keys),
        Arc::clone(&broadcaster),
        Arc::clone(&fees),
    );
    let stored = persister
        .read_all_channel_monitors_with_updates()
        .map_err(|error| NodeError::Unreadable {
            what: "channel monitors",
            cause: error.to_string(),
        })?;
    let unspent = unspent_leaves(&book);
    // Monitors follow the chain by themselves until they are where the rest is. First: what the manager fails back when it is read, it takes from
    // them, and on the disk they may be blocks behind.
    let mut watching: Watching = stored
        .into_iter()
        .map(|(at, monitor)| {
            let parts = (
                monitor,
                Arc::clone(&broadcaster),
                Arc::clone(&fees),
                Arc::clone(&log),
            );
            (at, parts)
        })
        .collect();
    catch_up(&*chain, &book, &mut watched(&mut watching)).await?;
    let monitor_store = Arc::new(MonitorStore::new(persister));
    let monitors: Arc<Monitors> = Arc::new(ChainMonitor::new(
        None,
        Arc::clone(&broadcaster),
        Arc::clone(&log),
        Arc::clone(&fees),
        Arc::clone(&monitor_store),
        Arc::clone(&keys),
        keys.get_peer_storage_key(),
        // Updates wait until the manager that made them is stored (`Core::save`).
        true,
    ));

    let graph: Graph = Arc::new(match store.get(single(NETWORK_GRAPH_PERSISTENCE_KEY))? {
        Some(bytes) => NetworkGraph::read(&mut bytes.as_slice(), Arc::clone(&log))
            .map_err(unreadable("network graph"))?,
        None => NetworkGraph::new(config.network, Arc::clone(&log)),
    });
    let decay = ProbabilisticScoringDecayParameters::default();
    let scorer = match store.get(single(SCORER_PERSISTENCE_KEY))? {
        Some(bytes) => {
            let args = (decay, Arc::clone(&graph), Arc::clone(&log));
            ProbabilisticScorer::read(&mut bytes.as_slice(), args).map_err(unreadable("scorer"))?
        }
        None => ProbabilisticScorer::new(decay, Arc::clone(&graph), Arc::clone(&log)),
    };
    let scorer: Scorer = Arc::new(RwLock::new(scorer));
    let router = Arc::new(LeafRouter::new(
        Arc::clone(&graph),
        Arc::clone(&log),
        Arc::clone(&keys),
        Arc::clone(&scorer),
        Arc::clone(&book),
    ));
    let message_router = Arc::new(DefaultMessageRouter::new(
        Arc::clone(&graph),
        Arc::clone(&keys),
    ));

    let tip = chain.tip().await?;
    let (mut manager_at, manager) = match store.get(single(CHANNEL_MANAGER_PERSISTENCE_KEY))? {
        Some(bytes) => {
            let args = ChannelManagerReadArgs::new(
                Arc::clone(&keys),
                Arc::clone(&keys),
                Arc::clone(&config.keys),
                Arc::clone(&fees),
                Arc::clone(&monitors),
                Arc::clone(&broadcaster),
                router,
                message_router,
                Arc::clone(&log),
                config.ldk(),
                watching.iter().map(|(_, parts)| &parts.0).collect(),
            );
            <(BlockLocator, Manager)>::read(&mut bytes.as_slice(), args)
                .map_err(unreadable("channel manager"))?
        }
        None => {
            let best_block = BlockLocator::new(tip.hash, tip.height);
            let now = since_epoch();
            let manager = ChannelManager::new(
                Arc::clone(&fees),
                Arc::clone(&monitors),
                Arc::clone(&broadcaster),
                router,
                message_router,
                Arc::clone(&log),
                Arc::clone(&keys),
                Arc::clone(&keys),
                Arc::clone(&config.keys),
                config.ldk(),
                ChainParameters {
                    network: config.network,
                    best_block,
                },
                u32::try_from(now.as_secs()).unwrap_or(u32::MAX),
            );
            (best_block, manager)
        }
    };
    let manager = Arc::new(manager);
    fail_unsent(&moves, &manager.list_recent_payments())?;

    let sweep_target = Arc::new(SweepTarget::default());
    sweep_target.refresh(&*config.coins).await;
    let (mut sweeper_at, sweeper) = match store.get(single(OUTPUT_SWEEPER_PERSISTENCE_KEY))? {
        Some(bytes) => <(BlockLocator, Sweeper)>::read(
            &mut bytes.as_slice(),
            (
                Arc::clone(&broadcaster),
                Arc::clone(&fees),
                None,
                Arc::clone(&keys),
                Arc::clone(&sweep_target),
                Arc::clone(&store),
                Arc::clone(&log),
            ),
        )
        .map_err(unreadable("sweeper"))?,
        None => {
            let at = BlockLocator::new(tip.hash, tip.height);
            let sweeper = Sweeper::new(
                at,
                Arc::clone(&broadcaster),
                Arc::clone(&fees),
                None,
                Arc::clone(&keys),
                Arc::clone(&sweep_target),
                Arc::clone(&store),
                Arc::clone(&log),
            );
            (at, sweeper)
        }
    };

    // At the monitors' height, and with the channels the manager has on the disk: as LDK judged it.
    let failed_back = failed_back(&book, &manager.list_channels());
    let mut listeners = watched(&mut watching);
    let parts: [(&mut BlockLocator, &(dyn Listen + Sync)); 2] =
        [(&mut manager_at, &*manager), (&mut sweeper_at, &sweeper)];
    listeners.extend(parts.map(|(at, listen)| Listener { at, listen }));
    let tip = catch_up(&*chain, &book, &mut listeners).await?;
    drop(listeners);
    note_ended(&book, unspent)?;
    for (_, (monitor, ..)) in watching {
        let id: ChannelId = monitor.channel_id();
        let updates = monitor.get_latest_update_id();
        monitors
            .load_existing_monitor(id, monitor)
            .map_err(|()| NodeError::Unreadable {
                what: "channel monitors",
                cause: "one channel has two".into(),
            })?;
        // The manager may have been stored before it knew that a channel's first monitor was. LDK asks again for updates on their way, but does
        // not know this one for one: the channel would wait for ever.
        if updates == 0 {
            monitors.channel_monitor_updated(id, updates)?;
        }
    }

    let gossip = Gossip::new(Arc::clone(&graph), None, Arc::clone(&log));
    let side = config.side;
    let gossip = Hearsay::new(gossip, Arc::clone(&graph), Arc::clone(&manager), side);
    let ignore = Arc::new(IgnoringMessageHandler {});
    let known = Arc::clone(&manager);
    let is_stranger = move |peer: &PublicKey| {
        let channels = known.list_channels_with_counterparty(peer);
        // One that is not ready costs its opener nothing.
        !channels.iter().any(|channel| channel.is_channel_ready)
    };
    let lsps = Arc::new(Lsps0::new(config.lsps.clone(), is_stranger));
    let handler = MessageHandler {
        chan_handler: Arc::clone(&manager),
        route_handler: Arc::new(gossip),
        onion_message_handler: ignore,
        custom_message_handler: Arc::clone(&lsps),
        send_only_message_handler: Arc::clone(&monitors),
    };
    let now = since_epoch();
    let peers = Arc::new(Peers::new(
        handler,
        u32::try_from(now.as_secs()).unwrap_or(u32::MAX),
        &keys.get_secure_random_bytes(),
        Arc::clone(&log),
        Arc::clone(&keys),
    ));
    let coin_source = Arc::new(CoinSource {
        coins: Arc::clone(&config.coins),
        chain: Arc::clone(&chain),
    });
    let bumper = Bumper::new(
        Arc::clone(&broadcaster),
        Arc::new(Wallet::new(coin_source, Arc::clone(&log))),
        Arc::clone(&config.keys),
        Arc::clone(&log),
    );
    let known = checkpoints(&*chain, tip).await?;
    let follower = Follower::new(Arc::clone(&chain), known)?;
    let mut core = Core {
        peer_book: PeerBook::open(Arc::clone(&store))?,
        scids: ScidBook::open(Arc::clone(&store))?,
        jit: JitBook::open(Store::clone(&store))?,
        bought: BoughtBook::open(Store::clone(&store))?,
        awaited: AwaitedBook::open(Store::clone(&store))?,
        unseen: UnseenBook::open(Store::clone(&store))?,
        jit_held: std::sync::Mutex::default(),
        config,
        store,
        log,
        book,
        parts: moves,
        fees,
        broadcaster,
        graph,
        scorer,
        monitors,
        monitor_store,
        manager,
        peers,
        lsps,
        bumper,
        sweeper,
        sweep_target,
        saving: std::sync::Mutex::default(),
        replay: super::replay::Replay::default(),
        monitors_replay: super::replay::Replay::default(),
        settled_at: AtomicU32::new(0),
        lost: Vec::new(),
        waiting: std::sync::Mutex::default(),
        failed_back: std::sync::Mutex::new(failed_back),
        stopping: AtomicBool::new(false),
    };
    core.jit_remember();
    core.lost = core.settle_leaves().await?;
    Ok((Arc::new(core), follower, packages))
}
