//! Sales from stocks through a coordinator process, with everybody awake: latency one at a time, and how many a second over many stocks at
//! once.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use bitcoin::{Amount, OutPoint};
use factory_tree::sale::order::PurchaseState;
use serde::Serialize;
use signer_client::{LimitQuote, SignerClient, UpgradeOptions};
use tokio::task::JoinSet;

use crate::cpu;
use crate::town::{PATIENCE, Rate, Town, fill};

/// Capacity of each wallet's first channel.
const CAPACITY: Amount = Amount::from_sat(200_000);
/// What each has to pay with.
const START: u64 = 20_000;
/// What each buys.
const BOUGHT: Amount = Amount::from_sat(30_000);

/// What sales cost.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Cost {
    /// Stocks, each shared by some clients.
    pub(crate) stocks: u32,
    pub(crate) clients: u32,
    /// Sales of each measurement: one per stock.
    pub(crate) sales: u32,
    /// From the order to the channel that stands and is paid for.
    #[serde(flatten)]
    pub(crate) rate: Rate,
    pub(crate) coordinator_cpu_ms_per_sale: f64,
    pub(crate) coordinator_peak_rss_bytes: u64,
}

/// Builds a factory and sells.
pub(crate) fn run(clients: u32) -> Result<Cost> {
    // Twice what the channels hold, so that two sales leave a stock.
    let more = ["--set", "stock_share_ppm=2000000"];
    let Town {
        world,
        runtime,
        wallets,
    } = Town::build("bench-sales", clients, CAPACITY, &more, |coordinator| {
        coordinator.configure("sales.enabled", true)?;
        coordinator.configure("sales.min_sat", 10_000)
    })?;
    runtime.block_on(fill(&world, &wallets, START))?;
    let coordinator = world.coordinator.process()?.id();
    let before = cpu::of(coordinator)?;
    let (stocks, rate) = runtime.block_on(measure(&wallets))?;
    let spent = cpu::of(coordinator)?.saturating_sub(before);
    Ok(Cost {
        stocks,
        clients,
        sales: stocks,
        rate,
        coordinator_cpu_ms_per_sale: spent.as_secs_f64() * 1e3 / f64::from(2 * stocks),
        coordinator_peak_rss_bytes: cpu::peak_rss(coordinator)?,
    })
}

async fn measure(wallets: &[SignerClient]) -> Result<(u32, Rate)> {
    let buyers = one_of_each_stock(wallets).await?;
    let mut took = Vec::new();
    for wallet in &buyers {
        let quote = quote(wallet).await?;
        let begun = Instant::now();
        buy(wallet, &quote).await?;
        took.push(begun.elapsed());
    }
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for wallet in buyers.iter().cloned() {
        running.spawn(async move { buy(&wallet, &quote(&wallet).await?).await });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    let per_second = buyers.len() as f64 / begun.elapsed().as_secs_f64();
    let rate = Rate {
        per_second,
        ..Rate::of(took)
    };
    Ok((u32::try_from(buyers.len())?, rate))
}

/// Who shares a stock is told by the quotes.
pub(crate) async fn one_of_each_stock(wallets: &[SignerClient]) -> Result<Vec<SignerClient>> {
    let mut by_stock: BTreeMap<OutPoint, SignerClient> = BTreeMap::new();
    for wallet in wallets {
        let stock = quote(wallet).await?.quote.stock;
        by_stock.entry(stock).or_insert_with(|| wallet.clone());
    }
    Ok(by_stock.into_values().collect())
}

async fn quote(wallet: &SignerClient) -> Result<LimitQuote> {
    Ok(wallet.quote_limit(None, BOUGHT).await?)
}

async fn buy(wallet: &SignerClient, quote: &LimitQuote) -> Result<()> {
    let mut events = wallet.events();
    let options = UpgradeOptions {
        consent: true,
        max_fee: None,
    };
    let bought = wallet.upgrade_limit(&quote.signed, options).await?;
    let ends = async {
        loop {
            let all = wallet.purchases().await?;
            let mut own = all.into_iter().filter(|one| one.sale == bought.sale);
            let own = own.next().context("the purchase")?;
            if own.is_over() {
                return Ok(own);
            }
            if events.recv().await.is_err() {
                bail!("too many events at once");
            }
        }
    };
    let ended = tokio::time::timeout(PATIENCE, ends).await;
    let ended = ended.context("a sale takes too long")??;
    ensure!(ended.state == PurchaseState::Settled, "{ended:?}");
    Ok(())
}

impl Cost {
    /// For people.
    pub(crate) fn show(&self) {
        println!(
            "{} clients, {} stocks, one sale of {} sat from each in each measurement; everything on disk before it is sent",
            self.clients,
            self.stocks,
            BOUGHT.to_sat()
        );
        println!(
            "  {:.1} ms (median), {:.1} ms (p99) one at a time; {:.1} a second from all stocks at once",
            self.rate.median_ms, self.rate.p99_ms, self.rate.per_second
        );
        println!(
            "  coordinator: {:.1} ms of CPU a sale, {:.1} MiB of memory at most",
            self.coordinator_cpu_ms_per_sale,
            self.coordinator_peak_rss_bytes as f64 / f64::from(1 << 20)
        );
    }
}
