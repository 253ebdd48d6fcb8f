//! Many wallets in one process, each with a data directory of its own that the command-line wallet works on as well. Only what the Bitcoin
//! node says is shared.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, Result};
use chain::{BitcoindRpc, ChainSource};
use clap::Parser;
use keystore::{Passphrase, Seed};
use scenarios::crowd::{Line, PASSPHRASE_VARIABLE};
use signer_client::keys::ClientKeys;
use signer_client::lock::DataDirLock;
use signer_client::store::SqliteStore;
use signer_client::{ClientParts, Config, SharedChain, Shutdown, SignerClient, Tasks};
use tokio::sync::broadcast::error::RecvError;

/// How old the tip may be that all wallets share.
const SHARED: Duration = Duration::from_millis(40);

/// Runs the wallets of many data directories, and prints what happens as lines of JSON.
#[derive(Debug, Parser)]
struct Arguments {
    /// Initialised data directories.
    #[arg(required = true)]
    directories: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let outcome = runtime
        .context("no runtime")
        .and_then(|runtime| runtime.block_on(run(&arguments.directories)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wallets: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs until one of them ends.
async fn run(directories: &[PathBuf]) -> Result<()> {
    let (tell, told) = mpsc::channel::<Line>();
    // A reader that is slow must not stop a wallet.
    std::thread::spawn(move || told.into_iter().for_each(|line| println!("{line}")));
    let (_stop, shutdown) = Shutdown::new();
    let mut shared = None;
    let (mut running, mut locks) = (tokio::task::JoinSet::new(), Vec::new());
    for directory in directories {
        let config = Config::load(&directory.join("client.toml"))?;
        let chain = match &shared {
            Some(chain) => Arc::clone(chain),
            None => Arc::clone(shared.insert(node(&config)?)),
        };
        let mut lock = DataDirLock::take(directory, "run")?;
        lock.serve()?;
        locks.push(lock);
        let client = open(directory, config, chain).await?;
        let name = directory.file_name().context("a directory has a name")?;
        forward(&client, name.to_string_lossy().into_owned(), tell.clone());
        let shutdown = shutdown.clone();
        running.spawn(async move { client.run(Tasks::ALL, shutdown).await });
    }
    match running.join_next().await {
        Some(ended) => ended?.context("a wallet ended"),
        None => Ok(()),
    }
}

fn node(config: &Config) -> Result<Arc<dyn ChainSource>> {
    let node = BitcoindRpc::new(config.bitcoind()?)?;
    Ok(Arc::new(SharedChain::new(Arc::new(node), SHARED)))
}

async fn open(
    directory: &Path,
    config: Config,
    chain: Arc<dyn ChainSource>,
) -> Result<SignerClient> {
    let (seed, network) = (directory.join("seed.json"), config.network);
    let keys = tokio::task::spawn_blocking(move || -> Result<ClientKeys> {
        let passphrase = Passphrase::from_env_file(PASSPHRASE_VARIABLE)?;
        Ok(ClientKeys::new(&Seed::open(seed, &passphrase)?, network)?)
    });
    let parts = ClientParts {
        config,
        keys: Arc::new(keys.await??),
        store: Arc::new(SqliteStore::open(directory.join("client.sqlite")).await?),
        chain,
        channels: directory.join("channels.sqlite"),
    };
    Ok(SignerClient::open(parts).await?)
}

fn forward(client: &SignerClient, wallet: String, tell: mpsc::Sender<Line>) {
    let mut events = client.events();
    tokio::spawn(async move {
        loop {
            let happened = match events.recv().await {
                Ok(happened) => happened,
                Err(RecvError::Lagged(_)) => continue,
                Err(RecvError::Closed) => return,
            };
            if tell.send(Line::new(&wallet, &happened)).is_err() {
                return;
            }
        }
    });
}
