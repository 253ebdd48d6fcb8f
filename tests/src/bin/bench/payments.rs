//! Payments through a coordinator process: latency one at a time, and how many a second. Wallets and the node outside are tasks of the
//! bench's own process, with databases on disk.

use std::time::Instant;

use anyhow::{Result, ensure};
use bitcoin::Amount;
use channel_host::Msat;
use scenarios::outside::Outside;
use serde::Serialize;
use signer_client::SignerClient;
use signer_client::store::PaymentState;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::cpu;
use crate::town::{PATIENCE, Rate, Town, fill, invoice};

/// Capacity of each wallet's channel.
const CAPACITY: Amount = Amount::from_sat(1_000_000);
/// What each has at first.
const START: u64 = 400_000;
/// What each payment moves: no dust (BOLT 3), of which a channel takes little at once.
const PAYMENT: Msat = Msat(1_000_000);
/// Payments that each payer has under way at once when they are counted per second.
const WINDOW: u32 = 4;

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
    let Town {
        mut world,
        runtime,
        wallets,
    } = Town::build("bench-payments", clients, CAPACITY, &[], |_| Ok(()))?;
    let outside = Outside::start(&mut world)?;
    runtime.block_on(fill(&world, &wallets, START))?;

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
