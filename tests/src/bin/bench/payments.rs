//! Payments through a coordinator process: latency one at a time, and how many a second. Wallets and the node outside are tasks of the
//! bench's own process, with databases on disk.

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
use scenarios::outside::Outside;
use scenarios::world::World;
use serde::Serialize;
use signer_client::keys::ClientKeys;
use signer_client::store::{PaymentState, SqliteStore};
use signer_client::{
    ClientParts, Config, InvoiceOptions, SharedChain, Shutdown, SignerClient, Tasks,
};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::cpu;

/// Capacity of each wallet's channel.
const CAPACITY: Amount = Amount::from_sat(1_000_000);
/// What each has at first.
const START: u64 = 400_000;
/// What each payment moves: no dust (BOLT 3), of which a channel takes little at once.
const PAYMENT: Msat = Msat(1_000_000);
/// How long a payment may take before the bench gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Payments that each payer has under way at once when they are counted per second.
const WINDOW: u32 = 4;

/// One direction's numbers.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Rate {
    /// Payments settled a second, several at once.
    pub(crate) per_second: f64,
    /// One at a time, from the call to the proof of payment.
    pub(crate) median_ms: f64,
    pub(crate) p99_ms: f64,
}

/// What payments cost.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Cost {
    pub(crate) clients: u32,
    pub(crate) payments: u32,
    /// Client to client in one factory.
    #[serde(flatten)]
    pub(crate) inside: Rate,
    /// From an ordinary node outside to a client.
    pub(crate) outside_to_client: Rate,
    pub(crate) coordinator_cpu_ms_per_payment: f64,
    pub(crate) coordinator_peak_rss_bytes: u64,
}

/// Builds a factory and pays.
pub(crate) fn run(clients: u32, payments: u32) -> Result<Cost> {
    let directory = binaries::target()?.join("bench-payments");
    let mut world = World::prepare(&directory, Options::default())?;
    world.coordinator.configure("ceremony.join_seconds", 120)?;
    world.coordinator.configure("ceremony.step_seconds", 120)?;
    for limit in ["max_unauthenticated_per_ip", "max_connections_per_ip"] {
        world
            .coordinator
            .configure(&format!("server.{limit}"), 2048)?;
    }
    world.coordinator.start()?;
    world.coordinator.wait_for("ready")?;
    let per_client = 2 * CAPACITY.to_sat();
    world.fund_coordinator(Amount::from_sat(
        10_000_000 + per_client * u64::from(clients),
    ))?;
    let runtime = Runtime::new()?;
    let wallets = runtime.block_on(open_all(&world, &directory, clients))?;
    let begun = world.coordinator.mark()?;
    let mut interested = 0;
    world.coordinator.wait("everybody's interest", |event| {
        interested += u32::from(event.is("client_interested"));
        interested == clients
    })?;
    let count = clients.to_string();
    world.begin(&["--clients", &count, "--set", "active=900"])?;
    let created = world.funded_after(begun)?;
    world.confirm(&created)?;
    let outside = Outside::start(&mut world)?;
    runtime.block_on(fill(&world, &wallets))?;

    let coordinator = world.coordinator.process()?.id();
    let before = cpu::of(coordinator)?;
    let inside = Rate {
        per_second: runtime.block_on(throughput(&wallets, payments))?,
        ..runtime.block_on(latency(&wallets, payments))?
    };
    let spent = cpu::of(coordinator)?.saturating_sub(before);
    let outside_to_client = from_outside(&runtime, &outside, &wallets, payments)?;
    Ok(Cost {
        clients,
        payments,
        inside,
        outside_to_client,
        coordinator_cpu_ms_per_payment: spent.as_secs_f64() * 1e3 / f64::from(2 * payments),
        coordinator_peak_rss_bytes: cpu::peak_rss(coordinator)?,
    })
}

async fn open_all(world: &World, directory: &Path, count: u32) -> Result<Vec<SignerClient>> {
    let auth = RpcAuth::CookieFile(world.node.cookie_file());
    let node = BitcoindRpc::new(BitcoindConfig::new(world.node.rpc_url(), auth))?;
    let chain: Arc<dyn ChainSource> =
        Arc::new(SharedChain::new(Arc::new(node), Duration::from_millis(100)));
    let mut wallets = Vec::new();
    for number in 0..count {
        let wallet = open(world, directory, number, Arc::clone(&chain)).await?;
        wallet.join(CAPACITY).await?;
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
async fn fill(world: &World, wallets: &[SignerClient]) -> Result<()> {
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
        let invoice = invoice(wallet, Msat(START * 1_000)).await?;
        let mut events = wallet.events();
        world.coordinator.json(&["node", "pay", &invoice])?;
        while wallet.lightning_balance().await?.lightning_msat < START * 1_000 {
            let next = tokio::time::timeout(PATIENCE, events.recv()).await;
            next.context("a wallet is not paid")??;
        }
    }
    Ok(())
}

async fn invoice(wallet: &SignerClient, amount: Msat) -> Result<String> {
    let options = InvoiceOptions {
        amount: Some(amount),
        ..InvoiceOptions::default()
    };
    Ok(wallet.invoice(&options).await?.invoice)
}

async fn pay(from: &SignerClient, invoice: &str) -> Result<()> {
    let payment = from.pay(invoice, None).await?;
    let ended = from.payment_ended(payment.hash.parse()?, PATIENCE).await?;
    ensure!(
        ended.state == PaymentState::Succeeded,
        "a payment ended {:?}: {:?}",
        ended.state,
        ended.failure
    );
    Ok(())
}

/// One payment at a time, round the factory.
async fn latency(wallets: &[SignerClient], payments: u32) -> Result<Rate> {
    let mut took = Vec::new();
    for (from, to) in pairs(wallets).take(payments as usize) {
        let invoice = invoice(to, PAYMENT).await?;
        let begun = Instant::now();
        pay(from, &invoice).await?;
        took.push(begun.elapsed());
    }
    Ok(Rate::of(took))
}

fn pairs(wallets: &[SignerClient]) -> impl Iterator<Item = (&SignerClient, &SignerClient)> {
    let next = wallets.iter().cycle().skip(1);
    wallets.iter().cycle().zip(next)
}

/// Every wallet pays its neighbour, several payments at once.
async fn throughput(wallets: &[SignerClient], payments: u32) -> Result<f64> {
    let payers = u32::try_from(wallets.len())? * WINDOW;
    let each = payments.div_ceil(payers);
    let mut invoices = Vec::new();
    for (from, to) in pairs(wallets).take(wallets.len() * WINDOW as usize) {
        let mut all = Vec::new();
        for _ in 0..each {
            all.push(invoice(to, PAYMENT).await?);
        }
        invoices.push((from.clone(), all));
    }
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for (from, all) in invoices {
        running.spawn(async move {
            for invoice in all {
                pay(&from, &invoice).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(f64::from(each * payers) / begun.elapsed().as_secs_f64())
}

fn from_outside(
    runtime: &Runtime,
    outside: &Outside,
    wallets: &[SignerClient],
    payments: u32,
) -> Result<Rate> {
    let mut took = Vec::new();
    let to = |number: u32| &wallets[number as usize % wallets.len()];
    for number in 0..payments {
        let invoice = runtime.block_on(invoice(to(number), PAYMENT))?;
        let begun = Instant::now();
        outside.pay(&invoice)?;
        took.push(begun.elapsed());
    }
    let invoices = (0..payments)
        .map(|number| runtime.block_on(invoice(to(number), PAYMENT)))
        .collect::<Result<Vec<_>>>()?;
    let window = u32::try_from(wallets.len())? * WINDOW;
    let begun = Instant::now();
    for several in invoices.chunks(window as usize) {
        let sent = several
            .iter()
            .map(|invoice| outside.send(invoice))
            .collect::<Result<Vec<_>>>()?;
        for hash in sent {
            let ended = outside.outcome(hash)?;
            ensure!(ended.is_ok(), "a payment from outside failed: {ended:?}");
        }
    }
    Ok(Rate {
        per_second: f64::from(payments) / begun.elapsed().as_secs_f64(),
        ..Rate::of(took)
    })
}

impl Rate {
    fn of(mut took: Vec<Duration>) -> Self {
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

impl Cost {
    /// For people.
    pub(crate) fn show(&self) {
        println!(
            "{} clients in one factory, {} payments of {} sat in each measurement; everything on disk before it is sent",
            self.clients,
            self.payments,
            PAYMENT.0 / 1_000
        );
        println!("                     a second   median ms      p99 ms");
        for (name, rate) in [
            ("client to client ", self.inside),
            ("outside to client", self.outside_to_client),
        ] {
            println!(
                "  {name}  {:9.1}   {:9.1}   {:9.1}",
                rate.per_second, rate.median_ms, rate.p99_ms
            );
        }
        println!(
            "  coordinator: {:.2} ms of CPU a payment, {:.1} MiB of memory at most",
            self.coordinator_cpu_ms_per_payment,
            self.coordinator_peak_rss_bytes as f64 / f64::from(1 << 20)
        );
    }
}
