//! The embedded LDK node.

mod api;
mod bought;
mod broadcast;
mod chain_sync;
mod channels;
mod driver;
mod ended;
mod exit;
mod fees;
mod forwards;
mod funding;
mod gossip;
mod handle;
mod jit;
mod jit_client;
mod jit_money;
mod leaves;
mod log;
mod lsps;
mod moves;
mod part_exits;
mod parts;
mod payments;
mod peers;
mod persist;
mod replay;
mod retire;
mod settlement;
mod start;
mod sweep;
mod unseen;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, RwLock};

use lightning::chain::Filter;
use lightning::chain::chainmonitor::ChainMonitor;
use lightning::events::bump_transaction::BumpTransactionEventHandler;
use lightning::ln::channelmanager::ChannelManager;
use lightning::ln::peer_handler::{IgnoringMessageHandler, PeerManager};
use lightning::onion_message::messenger::DefaultMessageRouter;
use lightning::routing::gossip::{NetworkGraph, P2PGossipSync};
use lightning::routing::scoring::ProbabilisticScorer;
use lightning::routing::utxo::UtxoLookup;
use lightning::sign::{InMemorySigner, KeysManager};
use lightning::util::sweep::OutputSweeperSync;
use lightning::util::wallet_utils::Wallet;
use lightning_net_tokio::SocketDescriptor;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

use crate::bought::BoughtBook;
use crate::coins::CoinSource;
use crate::config::NodeConfig;
use crate::jit::{AwaitedBook, JitBook};
use crate::leaf::{Book, LeafId};
use crate::leaf_keys::LeafKeys;
use crate::lsps0::Lsps0;
use crate::moves::PartBook;
use crate::pay::LeafRouter;
use crate::store::Store;
use crate::unseen::UnseenBook;
use broadcast::Broadcaster;
use fees::FeeCache;
use log::TracingLog;
use payments::ScidBook;
use peers::PeerBook;
use persist::MonitorStore;
use sweep::SweepTarget;

pub use channels::ChannelView;
pub use leaves::LeafBalance;
pub use payments::{PaymentState, PaymentView};
pub use settlement::Settlement;

pub(crate) type Log = Arc<TracingLog>;
pub(crate) type Graph = Arc<NetworkGraph<Log>>;
type Scorer = Arc<RwLock<ProbabilisticScorer<Graph, Log>>>;
type Monitors = ChainMonitor<
    InMemorySigner,
    Arc<dyn Filter + Send + Sync>,
    Arc<Broadcaster>,
    Arc<FeeCache>,
    Log,
    Arc<MonitorStore>,
    Arc<KeysManager>,
>;
// LDK's alias fixes the signer provider, and ours is the point.
type Manager = ChannelManager<
    Arc<Monitors>,
    Arc<Broadcaster>,
    Arc<KeysManager>,
    Arc<KeysManager>,
    Arc<LeafKeys>,
    Arc<FeeCache>,
    Arc<LeafRouter>,
    Arc<DefaultMessageRouter<Graph, Log, Arc<KeysManager>>>,
    Log,
>;
type Gossip = P2PGossipSync<Graph, Arc<dyn UtxoLookup + Send + Sync>, Log>;
type Peers = PeerManager<
    SocketDescriptor,
    Arc<Manager>,
    Arc<gossip::Hearsay>,
    Arc<IgnoringMessageHandler>,
    Log,
    Arc<Lsps0>,
    Arc<KeysManager>,
    Arc<Monitors>,
>;
type Bumper = BumpTransactionEventHandler<
    Arc<Broadcaster>,
    Arc<Wallet<Arc<CoinSource>, Log>>,
    Arc<LeafKeys>,
    Log,
>;
type Sweeper = OutputSweeperSync<
    Arc<Broadcaster>,
    Arc<SweepTarget>,
    Arc<FeeCache>,
    Arc<dyn Filter + Send + Sync>,
    Arc<Store>,
    Log,
    Arc<KeysManager>,
>;

/// Everything the tasks of a node share.
struct Core {
    config: NodeConfig,
    store: Arc<Store>,
    log: Log,
    book: Arc<Book>,
    parts: Arc<PartBook>,
    fees: Arc<FeeCache>,
    broadcaster: Arc<Broadcaster>,
    graph: Graph,
    scorer: Scorer,
    monitors: Arc<Monitors>,
    monitor_store: Arc<MonitorStore>,
    manager: Arc<Manager>,
    peers: Arc<Peers>,
    lsps: Arc<Lsps0>,
    peer_book: PeerBook,
    scids: ScidBook,
    jit: JitBook,
    bought: BoughtBook,
    awaited: AwaitedBook,
    unseen: UnseenBook,
    /// Payments for channels that are not there yet.
    jit_held: std::sync::Mutex<Vec<jit::Held>>,
    bumper: Bumper,
    sweeper: Sweeper,
    sweep_target: Arc<SweepTarget>,
    /// Held while the manager and then the monitors are written.
    saving: std::sync::Mutex<()>,
    /// Of the manager's events.
    replay: replay::Replay,
    /// Of the monitors' events.
    monitors_replay: replay::Replay,
    /// The height up to which LDK's events were handled.
    settled_at: AtomicU32,
    /// Open leaves that LDK did not know at the start.
    lost: Vec<LeafId>,
    /// Payments for receivers who are away.
    waiting: std::sync::Mutex<Vec<forwards::Waiting>>,
    /// Leaves that ended without Lightning's doing and whose payments LDK failed back at this start, or will at the next one.
    failed_back: std::sync::Mutex<HashSet<LeafId>>,
    stopping: AtomicBool,
}

/// A running Lightning node. Stopped by [`Node::shutdown`]; dropped without, it stops like after a crash, which loses nothing.
pub struct Node {
    core: Arc<Core>,
    stop: watch::Sender<bool>,
    driver: Mutex<Option<JoinHandle<()>>>,
    /// Closed when the driver has ended, however it did.
    driven: watch::Receiver<()>,
    helpers: std::sync::Mutex<Vec<JoinHandle<()>>>,
    listen: Option<std::net::SocketAddr>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("id", &self.id())
            .field("side", &self.core.config.side)
            .finish_non_exhaustive()
    }
}
