//! A running coordinator: what is started, in which order, and how it stops.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::Network;
use chain::wallet::{ChangeSetStore, OnchainWallet, WalletError};
use chain::{BitcoindRpc, BlockId, ChainError, ChainSource};
use factory_tree::ids::ClientId;
use keystore::{KdfCost, Seed, SeedError};
use proto::auth::CertHash;
use proto::connection::{Connection, ConnectionError, Security};
use proto::session::ServiceError;
use proto::tls::{self, IdentityError, Places, ServeError, ServerIdentity};
use proto::v1::ErrorCode;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::ceremony::{self, Ceremonies};
use crate::config::{Config, ConfigError};
use crate::context::{ChainState, Context};
use crate::datadir::{DataDir, DataDirError, DataDirLock};
use crate::event::{Event, Events};
use crate::keys::NodeKeys;
use crate::ladder::{self, LadderState};
use crate::lightning::{self, Lightning, LightningError};
use crate::limits::Feerates;
use crate::lsps1::{self, Lsps1};
use crate::sales::{self, Sales};
use crate::server::{self, Front};
use crate::sessions::Sessions;
use crate::store::{Store, StoreError, clients, owner};
use crate::trees::Trees;
use crate::webhooks::{self, HttpError, Poster, Webhooks};
use crate::{admin, chain_task};

/// Clients that may wait to be written down as seen.
const SEEN_BACKLOG: usize = 8192;
/// How long each part has to end.
const STOP_TIME: Duration = Duration::from_secs(3);
/// A new wallet looks for coins from so many blocks before the tip, so that a reorg at its birth is no trouble.
const BIRTH_DEPTH: u32 = 144;

/// Why a coordinator does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The seed.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// The seed of real money guarded too lightly.
    #[error(
        "this seed was made with kdf = \"light\", which is for tests; on bitcoin make one with kdf = \"standard\""
    )]
    LightSeed,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The wallet.
    #[error(transparent)]
    Wallet(#[from] WalletError),
    /// A Bitcoin node that will not do, whatever we wait.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// TLS.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The address clients are told.
    #[error(
        "clients cannot be told how to connect: {0}; set public_address to a host:port they can reach"
    )]
    Connection(#[from] ConnectionError),
    /// The Lightning node.
    #[error(transparent)]
    Lightning(#[from] LightningError),
    /// A port or socket.
    #[error(
        "cannot listen on {at}: {source}; is something else using it? (listen in the configuration)"
    )]
    Bind {
        /// Where.
        at: String,
        /// The system's words.
        source: io::Error,
    },
    /// What wakes clients.
    #[error(transparent)]
    Webhooks(#[from] HttpError),
    /// Reflection's descriptors.
    #[error("the service cannot describe itself: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// Stopped while waiting.
    #[error("stopped before it was ready")]
    Stopped,
}

/// A running coordinator.
#[derive(Debug)]
pub struct Coordinator {
    ctx: Arc<Context>,
    connection: Connection,
    listen: SocketAddr,
    shutdown: watch::Sender<bool>,
    tasks: Vec<(&'static str, JoinHandle<()>)>,
    socket: PathBuf,
    _lock: DataDirLock,
}

/// What clients are told to connect to.
///
/// # Errors
/// [`ConnectionError`].
pub fn connection(
    config: &Config,
    listen: SocketAddr,
    node_id: proto::NodeId,
    identity: Option<&ServerIdentity>,
) -> Result<Connection, ConnectionError> {
    let security = identity.map_or(Security::Plain, |identity| Security::Tls(identity.hash()));
    let public = config
        .public_address
        .as_deref()
        .and_then(|address| address.rsplit_once(':'));
    match (&config.public_address, public) {
        (Some(address), None) => Err(ConnectionError::Port(address.clone())),
        (_, Some((host, port))) => {
            let number = port
                .parse()
                .map_err(|_| ConnectionError::Port(port.to_owned()))?;
            Connection::new(node_id, host, number, security)
        }
        (None, None) if listen.ip().is_unspecified() => {
            Err(ConnectionError::Host(listen.ip().to_string()))
        }
        (None, None) => Connection::new(node_id, &listen.ip().to_string(), listen.port(), security),
    }
}

/// The certificate, unless the port is plain.
///
/// # Errors
/// [`IdentityError`].
pub fn identity(config: &Config, data: &DataDir) -> Result<Option<ServerIdentity>, IdentityError> {
    let (cert, key) = (
        data.path().join("tls-cert.pem"),
        data.path().join("tls-key.pem"),
    );
    config
        .tls
        .then(|| ServerIdentity::load_or_create(&cert, &key))
        .transpose()
}

impl Coordinator {
    /// Starts everything. `stop` ends the start early, while it waits for the Bitcoin node.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(
        config: Config,
        data: &DataDir,
        seed: &Seed,
        events: Events,
        mut stop: watch::Receiver<bool>,
    ) -> Result<Self, StartError> {
        let lock = data.lock()?;
        let poster = match Poster::new(&config.webhooks) {
            Err(error @ HttpError::CaFile { .. }) => return Err(error.into()),
            poster => poster,
        };
        if config.network == Network::Bitcoin && seed.kdf_cost() == KdfCost::Light {
            return Err(StartError::LightSeed);
        }
        let keys = Arc::new(NodeKeys::new(seed, config.network)?);
        let store = Store::open(&data.database()).await?;
        let (network, node_id) = (config.network, keys.node_id());
        store
            .write(async |tx| owner::claim(tx, network, &node_id.to_bytes()).await)
            .await?;
        let source: Arc<dyn ChainSource> = Arc::new(BitcoindRpc::new(config.bitcoind()?)?);
        let wallet = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return Err(StartError::Stopped),
            wallet = open_wallet(&config, &keys, &store, source.as_ref(), &events) => wallet?,
        };
        let identity = identity(&config, data)?;
        let bind = |source| StartError::Bind {
            at: config.listen.to_string(),
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(bind)?;
        let listen = listener.local_addr().map_err(bind)?;
        let connection = connection(&config, listen, node_id, identity.as_ref())?;
        let socket = data.admin_socket();
        let admin_listener = admin::bind(&socket)?;
        let ctx = Arc::new(Context {
            config,
            store,
            events,
            keys,
            source,
            wallet: Arc::new(wallet),
            chain: watch::Sender::new(ChainState::Away("the node has not been asked yet".into())),
            sessions: Sessions::default(),
            ceremonies: Ceremonies::default(),
            trees: Trees::default(),
            lightning: Lightning::default(),
            ladder: LadderState::default(),
            webhooks: Webhooks::default(),
            lsps1: Lsps1::default(),
            sales: Sales::default(),
            feerates: Feerates::default(),
            alarms: crate::alarms::Alarms::default(),
        });
        // Before it can be named to clients; a Bitcoin node that is away is waited for.
        lightning::start(&ctx, data.channels()).await?;
        let mut coordinator = Self {
            ctx,
            connection,
            listen,
            shutdown: watch::Sender::new(false),
            tasks: Vec::new(),
            socket,
            _lock: lock,
        };
        // Before anything may choose coins: those of open ceremonies are taken.
        ceremony::resume_all(&coordinator.ctx, &coordinator.shutdown.subscribe()).await?;
        coordinator.serve_clients(listener, identity.as_ref())?;
        coordinator.serve_operator(admin_listener, data);
        coordinator.follow_chain(poster);
        Ok(coordinator)
    }

    fn serve_clients(
        &mut self,
        listener: TcpListener,
        identity: Option<&ServerIdentity>,
    ) -> Result<(), StartError> {
        let (seen, seen_reader) = mpsc::channel(SEEN_BACKLOG);
        let cert = identity.map_or(CertHash::PLAIN, ServerIdentity::hash);
        let front = Front::new(Arc::clone(&self.ctx), cert, seen, self.shutdown.subscribe());
        let (reporter, health) = tonic_health::server::health_reporter();
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let router = tls::server(self.listen, identity)?
            .add_service(proto::session::service(front))
            .add_service(health)
            .add_service(reflection);
        let server = &self.ctx.config.server;
        let places = Places::new(server.max_connections, server.max_connections_per_ip);
        let mut stop = self.shutdown.subscribe();
        let incoming = tls::incoming(listener, places);
        let served = router.serve_with_incoming_shutdown(incoming, async move {
            let _ = stop.wait_for(|stop| *stop).await;
        });
        self.spawn("clients' server", async move {
            if let Err(error) = served.await {
                tracing::error!(%error, "the clients' server failed");
            }
        });
        let report = server::report(
            reporter,
            self.ctx.chain.subscribe(),
            self.shutdown.subscribe(),
        );
        self.spawn("health", report);
        let ctx = Arc::clone(&self.ctx);
        self.spawn(
            "clients seen",
            write_seen(ctx, seen_reader, self.shutdown.subscribe()),
        );
        Ok(())
    }

    fn serve_operator(&mut self, listener: tokio::net::UnixListener, data: &DataDir) {
        let about = admin::About {
            connection: self.connection.to_string(),
            listen: self.listen.to_string(),
            data_dir: data.path().display().to_string(),
            started: std::time::Instant::now(),
        };
        let served = admin::serve(
            Arc::clone(&self.ctx),
            about,
            listener,
            self.shutdown.clone(),
        );
        self.spawn("operator's server", served);
    }

    fn follow_chain(&mut self, poster: Result<Poster, HttpError>) {
        let ctx = Arc::clone(&self.ctx);
        self.spawn("chain", chain_task::run(ctx, self.shutdown.subscribe()));
        let ctx = Arc::clone(&self.ctx);
        self.spawn("lightning", lightning::run(ctx, self.shutdown.subscribe()));
        let ctx = Arc::clone(&self.ctx);
        self.spawn("ladder", ladder::run(ctx, self.shutdown.subscribe()));
        let ctx = Arc::clone(&self.ctx);
        self.spawn("sales", sales::run(ctx, self.shutdown.subscribe()));
        let ctx = Arc::clone(&self.ctx);
        self.spawn("orders", lsps1::run(ctx, self.shutdown.subscribe()));
        match poster {
            Ok(poster) => {
                let ctx = Arc::clone(&self.ctx);
                let running = webhooks::run(ctx, poster, self.shutdown.subscribe());
                self.spawn("webhooks", running);
            }
            Err(error) => self.ctx.events.emit(Event::WebhooksDown {
                problem: error.to_string(),
            }),
        }
        let (listen, connection) = (self.listen.to_string(), self.connection.to_string());
        let ctx = Arc::clone(&self.ctx);
        let mut stop = self.shutdown.subscribe();
        self.spawn("readiness", async move {
            let mut chain = ctx.chain.subscribe();
            let both = async {
                // The sender is in the context.
                let _ = chain.wait_for(|state| state.height().is_some()).await;
                ctx.lightning.runs().await
            };
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => {}
                lightning = both => ctx.events.emit(Event::Ready {
                    listen,
                    node_id: ctx.keys.node_id().to_string(),
                    connection,
                    lightning,
                }),
            }
        });
    }

    fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.push((name, tokio::spawn(task)));
    }

    /// How clients reach it.
    #[must_use]
    pub const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Finishes writes, tells clients, and ends everything within seconds.
    pub async fn stop(self) {
        self.shutdown.send_replace(true);
        let why = ServiceError::new(
            ErrorCode::ShuttingDown,
            "the coordinator is shutting down; come back later",
        );
        self.ctx.sessions.end_all(&why);
        if tokio::time::timeout(STOP_TIME, self.ctx.ceremonies.idle())
            .await
            .is_err()
        {
            tracing::warn!(
                "a ceremony did not stop in time; it goes on after the next start as after a crash"
            );
        }
        if tokio::time::timeout(STOP_TIME, self.ctx.lightning.shutdown())
            .await
            .is_err()
        {
            tracing::warn!("the Lightning node did not stop in time; that is as safe as a crash");
        }
        let deadline = tokio::time::Instant::now() + STOP_TIME;
        for (name, mut task) in self.tasks {
            if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
                tracing::debug!(name, "stopped hard");
                task.abort();
            }
        }
        if let Err(error) = self.ctx.wallet.flush().await {
            tracing::warn!(%error, "the wallet was not stored; its last blocks are fetched again");
        }
        self.ctx.store.close().await;
        if let Err(error) = std::fs::remove_file(&self.socket) {
            tracing::debug!(%error, "the operator's socket was gone");
        }
        self.ctx.events.emit(Event::Shutdown);
    }
}

/// The wallet; a new one has to know from which block on to look, and waits for the node to tell.
async fn open_wallet(
    config: &Config,
    keys: &NodeKeys,
    store: &Store,
    source: &dyn ChainSource,
    events: &Events,
) -> Result<OnchainWallet, StartError> {
    let is_new = store.load().await.map_err(WalletError::Store)?.is_none();
    let birthday = if is_new {
        Some(birthday(config, source, events).await?)
    } else {
        check_node(config, source).await?;
        None
    };
    let master = keys.wallet_master();
    Ok(OnchainWallet::open(config.network, &master, Arc::new(store.clone()), birthday).await?)
}

/// Refuses a node that will never do; one that is away or behind is waited for later.
async fn check_node(config: &Config, source: &dyn ChainSource) -> Result<(), ChainError> {
    let checked = async { source.node_info().await?.require_ready(config.network) };
    match checked.await {
        Err(error) if !error.is_transient() => Err(error),
        _ => Ok(()),
    }
}

async fn birthday(
    config: &Config,
    source: &dyn ChainSource,
    events: &Events,
) -> Result<BlockId, ChainError> {
    let mut told = false;
    loop {
        let found = async {
            source.node_info().await?.require_ready(config.network)?;
            let tip = source.tip().await?.height;
            let height = match config.chain.scan_from_height {
                // Beyond the tip there is nothing to begin at.
                Some(height) => height.min(tip),
                None => tip.saturating_sub(BIRTH_DEPTH),
            };
            let hash = source.block_hash(height).await?;
            Ok(hash.map(|hash| BlockId { height, hash }))
        };
        match found.await {
            Ok(Some(block)) => return Ok(block),
            Ok(None) => {}
            Err(error @ ChainError::WrongNetwork { .. }) => return Err(error),
            Err(error) if !ChainError::is_transient(&error) => return Err(error),
            Err(error) => {
                if !told {
                    events.emit(Event::ChainUnavailable {
                        problem: error.to_string(),
                    });
                    told = true;
                }
            }
        }
        tokio::time::sleep(config.poll()).await;
    }
}

async fn write_seen(
    ctx: Arc<Context>,
    mut reader: mpsc::Receiver<(ClientId, String)>,
    mut shutdown: watch::Receiver<bool>,
) {
    // Who comes before the chain is known was not seen at height 0.
    let mut chain = ctx.chain.subscribe();
    let known = async {
        chain
            .wait_for(|state| state.height().is_some())
            .await
            .is_ok()
    };
    tokio::select! {
        _ = shutdown.wait_for(|stop| *stop) => return,
        known = known => if !known { return },
    }
    let mut batch = Vec::new();
    loop {
        batch.clear();
        tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => return,
            count = reader.recv_many(&mut batch, SEEN_BACKLOG) => if count == 0 { return },
        }
        let height = ctx.height();
        if let Err(error) = ctx
            .store
            .write(async |tx| clients::seen(tx, &batch, height).await)
            .await
        {
            tracing::warn!(%error, "clients were not written down as seen");
        }
        // Many come at once: the next ones are written together.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
