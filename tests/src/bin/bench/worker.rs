//! Wallets as tasks of one process: the wallet's library as the command-line wallet uses it, each
//! with a seed, a database on disk and a connection of its own. Only the chain source is shared.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use bitcoin::{Amount, Network};
use chain::{BitcoindConfig, BitcoindRpc, ChainSource, RpcAuth};
use keystore::{KdfCost, Passphrase, Seed};
use serde_json::json;
use signer_client::keys::ClientKeys;
use signer_client::store::SqliteStore;
use signer_client::{ClientParts, Config, Event, SharedChain, Shutdown, SignerClient, Tasks};
use tokio::sync::mpsc;

/// How old the tip may be that wallets of one process share.
const SHARED: Duration = Duration::from_millis(200);

/// What a worker is told.
#[derive(Debug, clap::Args)]
pub(crate) struct Orders {
    /// How many wallets.
    #[arg(long)]
    pub(crate) count: u32,
    /// The coordinator's connection string.
    #[arg(long)]
    pub(crate) coordinator: String,
    /// The node.
    #[arg(long)]
    pub(crate) rpc_url: String,
    /// Its cookie.
    #[arg(long)]
    pub(crate) rpc_cookie: PathBuf,
    /// Where the databases go.
    #[arg(long)]
    pub(crate) directory: PathBuf,
}

/// Runs until it is killed.
pub(crate) fn run(orders: &Orders) -> Result<()> {
    let mut runtime = match orders.count {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    runtime.enable_all().build()?.block_on(work(orders))
}

async fn work(orders: &Orders) -> Result<()> {
    fs::create_dir_all(&orders.directory)?;
    let auth = RpcAuth::CookieFile(orders.rpc_cookie.clone());
    let node = BitcoindRpc::new(BitcoindConfig::new(orders.rpc_url.clone(), auth))?;
    // A thousand wallets would ask one node a thousand times for the same block.
    let chain: Arc<dyn ChainSource> = Arc::new(SharedChain::new(Arc::new(node), SHARED));
    let (tell, mut told) = mpsc::unbounded_channel();
    let (_stop, shutdown) = Shutdown::new();
    for number in 0..orders.count {
        let client = open(orders, number, chain.clone()).await?;
        let mut events = client.events();
        client.join(Amount::ZERO).await?;
        let tell = tell.clone();
        tokio::spawn(async move {
            while let Ok(happened) = events.recv().await {
                if tell.send(happened.event).is_err() {
                    break;
                }
            }
        });
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            let tasks = Tasks {
                connection: true,
                chain: false,
                answers: false,
                lightning: true,
            };
            if let Err(error) = client.run(tasks, shutdown).await {
                eprintln!("a wallet ended: {error}");
            }
        });
    }
    let (mut invited, mut kept, mut opened) = (0, 0, 0);
    while let Some(event) = told.recv().await {
        match event {
            Event::Invited { .. } => {
                invited += 1;
                if invited == 1 {
                    say("first_invited")?;
                }
            }
            Event::KitStored { .. } => {
                kept += 1;
                if kept == orders.count {
                    say("all_kept")?;
                }
            }
            Event::ChannelOpened { .. } => {
                opened += 1;
                if opened == orders.count {
                    say("all_opened")?;
                }
            }
            Event::Refused { rule, found } => bail!("a wallet refuses: {rule}: {found}"),
            Event::AttemptFailed { reason, .. } => bail!("the attempt failed: {reason}"),
            _ => {}
        }
    }
    Ok(())
}

async fn open(orders: &Orders, number: u32, chain: Arc<dyn ChainSource>) -> Result<SignerClient> {
    let mut config = Config::new(Network::Regtest);
    config.coordinator = Some(orders.coordinator.clone());
    let file = orders.directory.join(format!("{number}.seed"));
    let keys = tokio::task::spawn_blocking(move || -> Result<ClientKeys> {
        let passphrase = Passphrase::new("bench".to_owned())?;
        let (seed, _) = Seed::create(file, &passphrase, KdfCost::Light)?;
        Ok(ClientKeys::new(&seed, Network::Regtest)?)
    });
    let store = SqliteStore::open(orders.directory.join(format!("{number}.sqlite"))).await?;
    let parts = ClientParts {
        config,
        keys: Arc::new(keys.await??),
        store: Arc::new(store),
        chain,
        channels: orders.directory.join(format!("{number}.channels.sqlite")),
    };
    Ok(SignerClient::open(parts).await?)
}

/// One line for the bench, with the time.
fn say(event: &str) -> Result<()> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("a clock before 1970")?;
    let line = json!({"event": event, "at_us": u64::try_from(now.as_micros())?});
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
