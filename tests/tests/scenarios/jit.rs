//! Channels just in time (LSPS2), bought by a wallet that has no code of ours.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use bitcoin::Txid;
use channel_host::Msat;
use scenarios::event::Event;
use scenarios::outside::{CHANNEL, Outside};
use scenarios::process::PATIENCE;
use scenarios::service::Service;
use scenarios::world::{World, number, text};
use serde_json::Value;

use crate::independent::{Independent, Received, code};

/// What the coordinator asks, in thousandths of a satoshi and in parts per million.
const MIN_FEE: u64 = 2_000_000;
const PPM: u64 = 10_000;
const PAYMENT: u64 = 500_000_000;
const CLIENT_REJECTED: i32 = 1;

/// bLIP-52's formula.
fn fee(payment: u64) -> u64 {
    (payment * PPM).div_ceil(1_000_000).max(MIN_FEE)
}

fn sells(coordinator: &Service) -> Result<()> {
    coordinator.configure("jit.enabled", true)?;
    coordinator.configure("jit.min_fee_msat", i64::try_from(MIN_FEE)?)?;
    coordinator.configure("jit.fee_ppm", i64::try_from(PPM)?)
}

/// A world that sells, somebody to pay from outside, and a wallet without anything.
fn town(
    name: &str,
    configure: impl FnOnce(&Service) -> Result<()>,
) -> Result<(World, Outside, Independent)> {
    let mut world = World::start_with(name, |coordinator| {
        sells(coordinator)?;
        configure(coordinator)
    })?;
    let outside = Outside::start(&mut world)?;
    let wallet = Independent::start(&world, 91)?;
    Ok((world, outside, wallet))
}

/// The newest order in the books.
fn order(world: &World) -> Result<Value> {
    let books = world.coordinator.json(&["liquidity", "jit"])?;
    let orders = books["orders"].as_array().context("a list")?;
    orders.first().cloned().context("an order")
}

/// The books say that exactly the promised fee was taken.
fn is_in_the_books(world: &World, fee: u64) -> Result<Value> {
    world.coordinator.wait_for("jit_paid")?;
    let order = order(world)?;
    ensure!(order["state"] == "paid", "{order}");
    ensure!(number(&order, "fee_msat")? == fee, "{order}");
    ensure!(number(&order, "taken_msat")? == fee, "{order}");
    Ok(order)
}

fn refused(world: &World, mark: usize, why: &str) -> Result<Event> {
    let refused = |event: &Event| event.is("jit_refused") && event.text("reason").contains(why);
    world.coordinator.wait_after(mark, "jit_refused", refused)
}

/// What all channels of the wallet hold for it, in thousandths of a satoshi.
fn owns(wallet: &Independent) -> u64 {
    let channels = wallet.channels().into_iter();
    channels
        .map(|channel| channel.channel_value_satoshis * 1000)
        .sum::<u64>()
        .min(u64::MAX)
        .min(wallet.balance_msat())
}

fn funding(order: &Value) -> Result<Txid> {
    Ok(text(order, "funding")?.parse()?)
}

fn in_mempool(world: &World, txid: Txid) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !world.node.mempool()?.contains(&txid) {
        ensure!(Instant::now() < deadline, "the funding never went out");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    Ok(())
}

/// A fresh wallet is paid by somebody outside over a channel that was not there: it has the payment less the fee that was promised, exactly, and
/// the next payment whole.
#[test]
fn a_fresh_wallet_is_paid() -> Result<()> {
    let (world, outside, wallet) = town("jit_fresh", |_| Ok(()))?;
    ensure!(wallet.protocols()? == [2, 5]);
    ensure!(wallet.channels().is_empty());
    let bought = wallet.buy(wallet.offer()?, Some(PAYMENT))?;
    let bought = bought.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    world.coordinator.wait_for("jit_sold")?;
    outside.pay(&wallet.invoice(bought, Some(PAYMENT))?)?;
    let expected = Received {
        msat: PAYMENT - fee(PAYMENT),
        fee_msat: fee(PAYMENT),
    };
    ensure!(wallet.received(1)? == expected);
    let order = is_in_the_books(&world, fee(PAYMENT))?;
    // We trust the client: the funding went out by itself, though no block came.
    in_mempool(&world, funding(&order)?)?;
    ensure!(number(&order, "onchain_sat")? < 2_000, "{order}");

    outside.pay(&wallet.invoice(bought, Some(20_000_000))?)?;
    let whole = Received {
        msat: 20_000_000,
        fee_msat: 0,
    };
    ensure!(wallet.received(2)? == whole);
    world.mine(6)?;
    wallet.until("a confirmed channel", || {
        let mut channels = wallet.channels().into_iter();
        channels.any(|channel| channel.confirmations.unwrap_or(0) >= 6)
    })?;
    ensure!(owns(&wallet) == (PAYMENT - fee(PAYMENT) + 20_000_000) / 1000 * 1000);
    Ok(())
}
