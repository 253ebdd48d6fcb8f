//! Channels that our wallet orders by LSPS1: from its factory's own stock, or else from the chain, for the same payment.

use anyhow::{Context, Result, ensure};
use scenarios::service::Service;
use scenarios::world::{Created, World, number, text};
use serde_json::Value;

use crate::jit_wallet::becomes;
use crate::sales::{self, BALANCE, back, channels, ledger};

/// What is ordered, in satoshi.
const SAT: u64 = 150_000;
/// Orders and pays.
const ORDER: [&str; 5] = ["limit", "upgrade", "150000", "--or-onchain", "--yes"];
const UNCOVERED: &str = "--accept-uncovered";

/// Two clients that share a stock.
fn town(name: &str, configure: impl FnOnce(&Service) -> Result<()>) -> Result<(World, Created)> {
    sales::town_with(name, 2, |coordinator| {
        coordinator.configure("lsps1.enabled", true)?;
        configure(coordinator)
    })
}

/// Nobody is waited for long.
fn hurries(coordinator: &Service) -> Result<()> {
    coordinator.configure("sales.wake_seconds", 2)
}

/// Orders and pays, and does not wait; who is asked may die before it answers.
fn begin(world: &World) -> Result<()> {
    let words = [&ORDER[..], &[UNCOVERED, "--no-wait"]].concat();
    world.client(0)?.command(&words)?;
    Ok(())
}

/// The wallet's only order, as it lists it.
pub(crate) fn listed(world: &World) -> Result<Value> {
    let list = world.client(0)?.json(&["limit", "purchases"])?;
    let orders = list["orders"].as_array().context("a list")?;
    ensure!(orders.len() == 1, "{list}");
    Ok(orders[0].clone())
}

/// The coordinator's only order.
pub(crate) fn in_the_books(world: &World) -> Result<Value> {
    let books = world.coordinator.json(&["liquidity", "orders"])?;
    let orders = books["orders"].as_array().context("a list")?;
    ensure!(orders.len() == 1, "{books}");
    Ok(orders[0].clone())
}

fn ends(world: &World, state: &str) -> Result<()> {
    becomes("the order's end", || {
        let order = listed(world)?;
        ensure!(order["state"] != "failed", "{order}");
        Ok(order["state"] == state)
    })
}

/// Charged the price once, for one channel, of which both sides say the same.
fn is_served(world: &World, from_stock: bool) -> Result<Value> {
    let order = listed(world)?;
    let state = if from_stock { "from_stock" } else { "onchain" };
    ensure!(order["state"] == state, "{order}");
    let fee = number(&order, "fee_msat")?;
    world.lightning_becomes(0, BALANCE * 1_000 - fee)?;
    becomes("the coordinator's money", || {
        Ok(in_the_books(world)?["state"] == "paid")
    })?;
    let book = in_the_books(world)?;
    ensure!(number(&book, "taken_msat")? == fee, "{book}");
    ensure!(book["funding"] == order["funding"], "{book}, {order}");
    ensure!((number(&book, "opens")? == 0) == from_stock, "{book}");
    ensure!((number(&book, "onchain_sat")? == 0) == from_stock, "{book}");
    let all = channels(world, 0)?;
    let mut bought = all.iter().filter(|one| one["outpoint"] == order["funding"]);
    let bought = bought.next().context("the channel")?;
    ensure!(
        all.len() == 2 && bought["factory"].is_null() != from_stock,
        "{all:?}"
    );
    ensure!(number(bought, "capacity_sat")? >= SAT, "{bought}");
    let sold = ledger(world)?;
    let settled: Vec<_> = sold
        .iter()
        .filter(|sale| sale["state"] == "settled")
        .collect();
    ensure!(settled.len() == usize::from(from_stock), "{sold:?}");
    for sale in sold {
        ensure!(number(&sale, "taken_msat")? == 0, "{sale}");
    }
    let funding = text(&order, "funding")?;
    let mempool = world.node.mempool()?;
    let mempool: Vec<String> = mempool.iter().map(ToString::to_string).collect();
    let expected: Vec<&str> = match from_stock {
        true => vec![],
        false => funding.split(':').take(1).collect(),
    };
    ensure!(mempool == expected, "{mempool:?}");
    Ok(book)
}

/// Mates awake: no transaction, and the channel is promised for no longer than the factory lives.
#[test]
fn an_order_is_served_from_the_stock() -> Result<()> {
    let (world, created) = town("lsps1_stock", |_| Ok(()))?;
    let words = [&ORDER[..], &[UNCOVERED]].concat();
    let ordered = world.client(0)?.json(&words)?;
    ensure!(ordered["state"] == "from_stock", "{ordered}");
    let book = is_served(&world, true)?;
    let lasts = number(&book, "expires_at")? - number(&book, "funded_at")?;
    let left = world.export(&created)?.expiry_height - world.node.height()?;
    ensure!(
        lasts <= u64::from(left) * 600,
        "{book}: {left} blocks are left"
    );
    let purchases = world.client(0)?.json(&["limit", "purchases"])?;
    ensure!(purchases["purchases"][0]["fee_msat"] == 0, "{purchases}");
    becomes("the purchase's end", || {
        let list = world.client(0)?.json(&["limit", "purchases"])?;
        Ok(list["purchases"][0]["state"] == "settled")
    })
}

/// Its mate never wakes: the channel comes from the chain for the same payment, is paid over, and stays; the stock is free for whoever is next.
#[test]
fn with_its_mate_asleep_it_comes_from_the_chain() -> Result<()> {
    let (mut world, _) = town("lsps1_stock_asleep", hurries)?;
    world.client_mut(1)?.terminate()?;
    let words = [&ORDER[..], &[UNCOVERED]].concat();
    let ordered = world.client(0)?.json(&words)?;
    ensure!(ordered["state"] == "onchain", "{ordered}");
    is_served(&world, false)?;
    ensure!(ledger(&world)?[0]["state"] == "cancelled");
    let limit = world.client(0)?.json(&["limit", "show"])?;
    let mut all = limit["channels"].as_array().context("a list")?.iter();
    let outside = all.find(|one| one["factory"].is_null());
    let outside = number(outside.context("what is outside")?, "capacity_sat")?;
    let inside = number(&limit["coverage"], "held_sat")?;
    ensure!(number(&limit, "limit_sat")? == inside + outside, "{limit}");
    world.mine(6)?;
    world.client_mut(1)?.start()?;
    world.client(1)?.wait_for("lightning_connected")?;
    sales::buy(&world, 0)?;
    ensure!(channels(&world, 0)?.len() == 3);
    Ok(())
}

/// What costs more than it may is not ordered, nor what is not sold.
#[test]
fn the_user_has_the_last_word() -> Result<()> {
    let (world, _) = town("lsps1_stock_words", |_| Ok(()))?;
    let wallet = world.client(0)?;
    let refused = |more: &[&str], why: &str| -> Result<()> {
        let words = [&["limit", "upgrade"], more, &["--or-onchain", "--json"]].concat();
        wallet.command(&words)?.refused(4, &[why])?;
        Ok(())
    };
    refused(&["150000", "--yes", "--max-fee", "1"], "raise --max-fee")?;
    refused(&["1000", "--yes"], "sells channels of")?;
    let list = wallet.json(&["limit", "purchases"])?;
    ensure!(list["orders"] == serde_json::json!([]), "{list}");
    ensure!(list["purchases"] == serde_json::json!([]), "{list}");
    world.lightning_becomes(0, BALANCE * 1_000)
}

/// The coordinator dies at `point`, with the mate awake or not, and comes again: served once.
fn coordinator_dies(point: &str, awake: bool) -> Result<()> {
    let (mut world, _) = town(&format!("lsps1_stock_lsp_{point}_{awake}"), hurries)?;
    world.coordinator.terminate()?;
    world
        .coordinator
        .start_with(&[("SUPERSCALAR_FAULT", point)])?;
    for index in [0, 1] {
        back(&world, index)?;
    }
    if !awake {
        world.client_mut(1)?.terminate()?;
    }
    begin(&world)?;
    world.coordinator.wait_until_ended()?;
    // All the time that clients need to be back.
    world
        .coordinator
        .configure("sales.wake_seconds", if awake { 60 } else { 2 })?;
    world.coordinator.start()?;
    ends(&world, if awake { "from_stock" } else { "onchain" })?;
    is_served(&world, awake)?;
    Ok(())
}

/// The wallet orders, and dies at `point`.
fn ordered_until(world: &mut World, point: &str, awake: bool) -> Result<()> {
    world.client_mut(0)?.terminate()?;
    world
        .client_mut(0)?
        .start_with(&[("SUPERSCALAR_FAULT", point)])?;
    for index in [0, 1] {
        back(world, index)?;
    }
    if !awake {
        world.client_mut(1)?.terminate()?;
    }
    begin(world)?;
    world.client_mut(0)?.wait_until_ended().map(drop)
}

/// The wallet dies at `point`, with its mate awake or not, and comes again: it has paid once, and learns what it has.
fn wallet_dies(point: &str, awake: bool) -> Result<()> {
    let name = format!("lsps1_stock_wallet_{point}_{awake}");
    let (mut world, _) = town(&name, |coordinator| match awake {
        true => Ok(()),
        false => hurries(coordinator),
    })?;
    ordered_until(&mut world, point, awake)?;
    world.client_mut(0)?.start()?;
    ends(&world, if awake { "from_stock" } else { "onchain" })?;
    is_served(&world, awake)?;
    Ok(())
}

/// Its mate is asleep, and the chain is closed when the order is paid: nothing is charged.
#[test]
fn with_neither_stock_nor_chain_the_payment_comes_back() -> Result<()> {
    let (mut world, _) = town("lsps1_stock_neither", hurries)?;
    ordered_until(&mut world, "order_stored", false)?;
    world.coordinator.terminate()?;
    world.coordinator.configure("lsps1.opens_per_hour", 0)?;
    world.coordinator.configure("lsps1.wait_seconds", 2)?;
    world.coordinator.start()?;
    world.client_mut(0)?.start()?;
    becomes("the order's end", || {
        Ok(listed(&world)?["state"] == "failed")
    })?;
    world.lightning_becomes(0, BALANCE * 1_000)?;
    ensure!(channels(&world, 0)?.len() == 1);
    ensure!(world.node.mempool()?.is_empty(), "something went out");
    let book = in_the_books(&world)?;
    ensure!(book["state"] == "failed", "{book}");
    ensure!(number(&book, "taken_msat")? == 0, "{book}");
    ensure!(text(&book, "note")?.contains("too many channels"), "{book}");
    ensure!(ledger(&world)?[0]["state"] == "cancelled");
    Ok(())
}

deaths! {
    dies_when_it_is_paid: coordinator_dies("lsps1_held", true);
    dies_when_the_sale_begins: coordinator_dies("sale_held", true);
    dies_when_it_is_sold: coordinator_dies("sale_sold", true);
    dies_when_it_has_the_channel: coordinator_dies("lsps1_served", true);
    dies_when_the_sale_is_given_up: coordinator_dies("sale_cancelled", false);
    dies_when_the_other_channel_is_opened: coordinator_dies("lsps1_opening", false);
    the_wallet_dies_before_it_pays: wallet_dies("order_stored", true);
    the_wallet_dies_when_it_may_have_paid: wallet_dies("order_paying", true);
    the_wallet_dies_before_its_payment_is_sent: wallet_dies("pay_begun", true);
    the_wallet_dies_when_it_has_paid: wallet_dies("order_paid", true);
    the_wallet_dies_when_it_has_paid_and_its_mate_sleeps: wallet_dies("order_paid", false);
}
