//! A factory of wallets that are tasks of the bench's own process, with databases on disk, and a coordinator process.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bitcoin::{Amount, Network};
use chain::{BitcoindConfig, BitcoindRpc, ChainSource, RpcAuth};
use channel_host::Msat;
use keystore::{KdfCost, Passphrase, Seed};
use scenarios::binaries;
use scenarios::bitcoind::Options;
use scenarios::service::Service;
use scenarios::world::World;
use serde::Serialize;
use signer_client::keys::ClientKeys;
use signer_client::store::SqliteStore;
use signer_client::{
    ClientParts, Config, InvoiceOptions, SharedChain, Shutdown, SignerClient, Tasks,
};
use tokio::runtime::Runtime;

/// How long one thing may take before the bench gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// One direction's numbers.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Rate {
    /// Payments settled a second, several at once.
    pub(crate) per_second: f64,
    /// One at a time, from the call to the proof of payment.
    pub(crate) median_ms: f64,
    pub(crate) p99_ms: f64,
}

/// A coordinator, wallets, and a factory they are all in.
pub(crate) struct Town {
    pub(crate) world: World,
    pub(crate) runtime: Runtime,
    pub(crate) wallets: Vec<SignerClient>,
}

impl Town {
    /// Builds one; `more` are words for `factory create`.
    pub(crate) fn build(
        name: &str,
        clients: u32,
        capacity: Amount,
        more: &[&str],
        configure: impl FnOnce(&Service) -> Result<()>,
    ) -> Result<Self> {
        let Self {
            world,
            runtime,
            wallets,
        } = Self::open(name, clients, capacity, configure)?;
        let begun = world.coordinator.mark()?;
        runtime.block_on(async {
            for wallet in &wallets {
                wallet.join(capacity).await?;
            }
            anyhow::Ok(())
        })?;
        let mut interested = 0;
        world.coordinator.wait("everybody's interest", |event| {
            interested += u32::from(event.is("client_interested"));
            interested == clients
        })?;
        let count = clients.to_string();
        let words = ["--clients", &count, "--set", "active=900"];
        let words: Vec<&str> = words.iter().chain(more).copied().collect();
        world.begin(&words)?;
        let created = world.funded_after(begun)?;
        world.confirm(&created)?;
        Ok(Self {
            world,
            runtime,
            wallets,
        })
    }

    /// A coordinator with coins for a channel of this capacity each, and wallets that run and are in nothing.
    pub(crate) fn open(
        name: &str,
        clients: u32,
        capacity: Amount,
        configure: impl FnOnce(&Service) -> Result<()>,
    ) -> Result<Self> {
        let directory = binaries::target()?.join(name);
        let mut world = World::prepare(&directory, Options::default())?;
        world.coordinator.configure("ceremony.join_seconds", 120)?;
        world.coordinator.configure("ceremony.step_seconds", 120)?;
        for limit in ["max_unauthenticated_per_ip", "max_connections_per_ip"] {
            world
                .coordinator
                .configure(&format!("server.{limit}"), 2048)?;
        }
        configure(&world.coordinator)?;
        world.coordinator.start()?;
        world.coordinator.wait_for("ready")?;
        let per_client = 4 * capacity.to_sat();
        world.fund_coordinator(Amount::from_sat(
            10_000_000 + per_client * u64::from(clients),
        ))?;
        let runtime = Runtime::new()?;
        let wallets = runtime.block_on(open_all(&world, &directory, clients))?;
        Ok(Self {
            world,
            runtime,
            wallets,
        })
    }
}

async fn open_all(world: &World, directory: &Path, count: u32) -> Result<Vec<SignerClient>> {
    let auth = RpcAuth::CookieFile(world.node.cookie_file());
    let node = BitcoindRpc::new(BitcoindConfig::new(world.node.rpc_url(), auth))?;
    let chain: Arc<dyn ChainSource> =
        Arc::new(SharedChain::new(Arc::new(node), Duration::from_millis(100)));
    let mut wallets = Vec::new();
    for number in 0..count {
        let wallet = open(world, directory, number, Arc::clone(&chain)).await?;
        let running = wallet.clone();
        tokio::spawn(async move {
            // Held for as long as the task lives.
            let (_stop, shutdown) = Shutdown::new();
            let tasks = Tasks {
                answers: false,
                ..Tasks::ALL
            };
            if let Err(error) = running.run(tasks, shutdown).await {
                eprintln!("a wallet ended: {error}");
            }
        });
        wallets.push(wallet);
    }
    Ok(wallets)
}

async fn open(
    world: &World,
    directory: &Path,
    number: u32,
    chain: Arc<dyn ChainSource>,
) -> Result<SignerClient> {
    let mut config = Config::new(Network::Regtest);
    config.coordinator = Some(world.connection().to_owned());
    config.chain.poll_ms = 100;
    let file = directory.join(format!("{number}.seed"));
    let keys = tokio::task::spawn_blocking(move || -> Result<ClientKeys> {
        let passphrase = Passphrase::new("bench".to_owned())?;
        let (seed, _) = Seed::create(file, &passphrase, KdfCost::Light)?;
        Ok(ClientKeys::new(&seed, Network::Regtest)?)
    });
    let store = SqliteStore::open(directory.join(format!("{number}.sqlite"))).await?;
    Ok(SignerClient::open(ClientParts {
        config,
        keys: Arc::new(keys.await??),
        store: Arc::new(store),
        chain,
        channels: directory.join(format!("{number}.channels.sqlite")),
    })
    .await?)
}

/// Gives every wallet something to pay with.
pub(crate) async fn fill(world: &World, wallets: &[SignerClient], sat: u64) -> Result<()> {
    for wallet in wallets {
        let deadline = Instant::now() + PATIENCE;
        // Usable once it has seen the block that the coordinator has seen.
        while !wallet
            .channels()
            .await?
            .iter()
            .any(|channel| channel.usable)
        {
            ensure!(Instant::now() < deadline, "a channel is not usable");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let invoice = invoice(wallet, Msat(sat * 1_000)).await?;
        let mut events = wallet.events();
        world.coordinator.json(&["node", "pay", &invoice])?;
        while wallet.lightning_balance().await?.lightning_msat < sat * 1_000 {
            let next = tokio::time::timeout(PATIENCE, events.recv()).await;
            next.context("a wallet is not paid")??;
        }
    }
    Ok(())
}

pub(crate) async fn invoice(wallet: &SignerClient, amount: Msat) -> Result<String> {
    let options = InvoiceOptions {
        amount: Some(amount),
        ..InvoiceOptions::default()
    };
    Ok(wallet.invoice(&options).await?.invoice)
}

impl Rate {
    /// Of what each took.
    pub(crate) fn of(mut took: Vec<Duration>) -> Self {
        took.sort();
        let at = |share: usize| {
            let index = (took.len() * share / 100).min(took.len().saturating_sub(1));
            took.get(index)
                .map_or(0.0, |took| took.as_secs_f64() * 1_000.0)
        };
        Self {
            per_second: 0.0,
            median_ms: at(50),
            p99_ms: at(99),
        }
    }
}
