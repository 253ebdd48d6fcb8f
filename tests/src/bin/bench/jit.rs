//! Channels just in time (LSPS2): a node outside pays wallets that have nothing, or too little room in their factory. Latency one at a time, and how
//! many a second.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bitcoin::Amount;
use channel_host::Msat;
use scenarios::event::Event;
use scenarios::outside::Outside;
use scenarios::service::Service;
use serde::Serialize;
use signer_client::{JitInvoice, JitOptions, SignerClient};

use crate::cpu;
use crate::sales::one_of_each_stock;
use crate::town::{PATIENCE, Rate, Town, fill};

/// What each payment moves.
const PAYMENT: Msat = Msat(50_000_000);
/// What the coordinator has for each channel.
const CAPACITY: Amount = Amount::from_sat(200_000);
/// In a factory, where the payment does not fit into it ..
const SMALL: Amount = Amount::from_sat(30_000);
/// .. and what a new one holds beyond the payment.
const MARGIN: i64 = 20_000;

/// What channels just in time cost.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Cost {
    /// Payments of each measurement, each to another wallet.
    pub(crate) payments: u32,
    /// From stocks, or from the chain.
    pub(crate) from_stock: bool,
    /// From the last HTLC in to the HTLCs sent on.
    #[serde(flatten)]
    pub(crate) rate: Rate,
    /// For who pays, from the call to the proof of payment.
    pub(crate) payer_median_ms: f64,
    pub(crate) payer_p99_ms: f64,
    pub(crate) coordinator_cpu_ms_per_payment: f64,
    pub(crate) coordinator_peak_rss_bytes: u64,
}

/// Sells, and pays.
pub(crate) fn run(payments: u32, from_stock: bool) -> Result<Cost> {
    let both = payments.checked_mul(2).context("fewer payments")?;
    let configure = |coordinator: &Service| unlimited(coordinator, both);
    let Town {
        mut world,
        runtime,
        mut wallets,
    } = if from_stock {
        // Twice what the channels hold; two clients share a stock, and one of them is paid.
        let more = ["--set", "stock_share_ppm=2000000"];
        Town::build("bench-jit-stock", 2 * both, SMALL, &more, |coordinator| {
            configure(coordinator)?;
            coordinator.configure("sales.enabled", true)?;
            coordinator.configure("jit.margin_sat", MARGIN)
        })?
    } else {
        Town::open("bench-jit", both, CAPACITY, configure)?
    };
    if from_stock {
        // That they can be paid is when they can buy.
        runtime.block_on(fill(&world, &wallets, 1_000))?;
        wallets = runtime.block_on(one_of_each_stock(&wallets))?;
    } else {
        // Every channel is funded with coins of its own.
        for _ in 0..both {
            world.fund_coordinator(CAPACITY * 2)?;
        }
    }
    let outside = Outside::start(&mut world)?;
    let invoices = |wallets: &[SignerClient]| -> Result<Vec<String>> {
        let all = wallets.iter().map(|wallet| runtime.block_on(order(wallet)));
        all.collect()
    };
    let (first, rest) = wallets
        .split_at_checked(payments as usize)
        .context("as many wallets")?;
    let (first, rest) = (invoices(first)?, invoices(rest)?);
    let coordinator = world.coordinator.process()?.id();
    let before = cpu::of(coordinator)?;
    let (mut forwarded, mut paid) = (Vec::new(), Vec::new());
    for invoice in &first {
        let (way, all) = one(&world.coordinator, &outside, invoice)?;
        forwarded.push(way);
        paid.push(all);
    }
    let begun = Instant::now();
    let sent = rest.iter().map(|invoice| outside.send(invoice));
    for hash in sent.collect::<Result<Vec<_>>>()? {
        let ended = outside.outcome(hash)?;
        ensure!(ended.is_ok(), "a payment failed: {ended:?}");
    }
    let per_second = f64::from(payments) / begun.elapsed().as_secs_f64();
    let spent = cpu::of(coordinator)?.saturating_sub(before);
    let payer = Rate::of(paid);
    Ok(Cost {
        payments,
        from_stock,
        rate: Rate {
            per_second,
            ..Rate::of(forwarded)
        },
        payer_median_ms: payer.median_ms,
        payer_p99_ms: payer.p99_ms,
        coordinator_cpu_ms_per_payment: spent.as_secs_f64() * 1e3 / f64::from(both),
        coordinator_peak_rss_bytes: cpu::peak_rss(coordinator)?,
    })
}

/// No limit is what is measured.
fn unlimited(coordinator: &Service, channels: u32) -> Result<()> {
    coordinator.configure("jit.enabled", true)?;
    for limit in ["max_orders", "max_held", "opens_per_hour"] {
        coordinator.configure(&format!("jit.{limit}"), i64::from(2 * channels))?;
    }
    coordinator.configure("jit.onchain_budget_sat", 100_000_000)
}

async fn order(wallet: &SignerClient) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    let quote = loop {
        match wallet.quote_jit(PAYMENT).await {
            Ok(quote) => break quote,
            // Its node has not found the coordinator yet.
            Err(error) => ensure!(Instant::now() < deadline, "no offer: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let options = JitOptions {
        expiry: Duration::from_secs(3_600),
        max_fee: Some(Msat(PAYMENT.0 / 2)),
        consent: true,
        ..JitOptions::default()
    };
    let JitInvoice { invoice, .. } = wallet.jit_invoice(&quote, &options).await?;
    Ok(invoice.invoice)
}

/// How long the payment was held, and from the call to the proof.
fn one(coordinator: &Service, outside: &Outside, invoice: &str) -> Result<(Duration, Duration)> {
    let mark = coordinator.mark()?;
    let begun = Instant::now();
    let hash = outside.send(invoice)?;
    let is = |event: &Event| event.is("jit_forwarded");
    let forwarded = coordinator.wait_after(mark, "a payment sent on", is)?;
    let waited = forwarded.number("waited_ms").context("how long")?;
    let way = Duration::from_millis(waited);
    let ended = outside.outcome(hash)?;
    ensure!(ended.is_ok(), "a payment failed: {ended:?}");
    Ok((way, begun.elapsed()))
}

impl Cost {
    /// For people.
    pub(crate) fn show(&self) {
        println!(
            "{} payments of {} sat in each measurement, each to a wallet {}; everything on disk before it is sent",
            self.payments,
            PAYMENT.0 / 1_000,
            if self.from_stock {
                "whose channel is from its factory's stock, everybody awake"
            } else {
                "with nothing, over a channel from the chain"
            }
        );
        println!(
            "  {:.1} ms (median), {:.1} ms (p99) from the payment held to its being sent on; {:.1} a second at once",
            self.rate.median_ms, self.rate.p99_ms, self.rate.per_second
        );
        println!(
            "  {:.1} ms (median), {:.1} ms (p99) for the payer",
            self.payer_median_ms, self.payer_p99_ms
        );
        println!(
            "  coordinator: {:.1} ms of CPU a payment, {:.1} MiB of memory at most",
            self.coordinator_cpu_ms_per_payment,
            self.coordinator_peak_rss_bytes as f64 / f64::from(1 << 20)
        );
    }
}
