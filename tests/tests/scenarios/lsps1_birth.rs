//! Channels that our wallet orders by LSPS1 and that come with the next factory.

use anyhow::{Context, Result, ensure};
use scenarios::export::Export;
use scenarios::ladder::{Days, Ladder};
use scenarios::world::{COORDINATOR_COINS, World, number, text};

use crate::jit_wallet::becomes;
use crate::ladder::FEE_COIN;
use crate::ladder_births::SHORT;
use crate::ladder_clients::{BALANCE, all_hand_over};
use crate::lsps1_stock::{in_the_books, listed};
use crate::sales::{back, channels};

/// What is ordered, in satoshi.
const SAT: u64 = 150_000;
const ORDER: [&str; 6] = [
    "limit",
    "upgrade",
    "150000",
    "--next-factory",
    "--yes",
    "--no-wait",
];

/// Two clients that have something, in a factory of a ladder.
fn town(name: &str, days: Days) -> Result<(Ladder, String)> {
    let mut ladder = Ladder::prepare(&World::directory(name)?, days)?;
    let coordinator = &ladder.world.coordinator;
    coordinator.configure("lsps1.enabled", true)?;
    // A factory of this ladder lives for a day or two.
    coordinator.configure("lsps1.hold_blocks", 24)?;
    ladder.begin(COORDINATOR_COINS)?;
    ladder.world.add_clients(2)?;
    ladder.fee_coins(&[0, 1], FEE_COIN)?;
    let first = ladder.cohort(&[0, 1])?;
    ladder.world.coordinator_pays(&[0, 1], BALANCE)?;
    Ok((ladder, first))
}

/// Its price is taken once, and its channel is larger by what was ordered; everybody moves into the new factory.
fn is_served(ladder: &mut Ladder, first: &str) -> Result<()> {
    let blocks = ladder.spacing() * 3;
    ladder.live("the order's end", blocks, |ladder| {
        let order = listed(&ladder.world)?;
        ensure!(order["state"] != "failed", "{order}");
        Ok(order["state"] == "from_birth")
    })?;
    let world = &ladder.world;
    becomes("the coordinator's money", || {
        Ok(in_the_books(world)?["state"] == "paid")
    })?;
    let (order, book) = (listed(world)?, in_the_books(world)?);
    let fee = number(&order, "fee_msat")?;
    ensure!(number(&book, "taken_msat")? == fee, "{book}");
    ensure!(number(&book, "onchain_sat")? == 0, "{book}");
    ensure!(book["funding"] == order["funding"], "{book}, {order}");
    let all = channels(world, 0)?;
    let mut bought = all.iter().filter(|one| one["outpoint"] == order["funding"]);
    let bought = bought.next().context("the channel")?;
    // Promised for no longer than its factory lives, with ten minutes for each block that is left.
    let factory = text(bought, "factory")?;
    let words = ["factory", "export", &factory];
    let export = Export::parse(&world.coordinator.json(&words)?)?;
    let left = export.expiry_height - world.node.height()?;
    let lasts = number(&book, "expires_at")? - number(&book, "funded_at")?;
    ensure!(
        lasts > 0 && lasts <= u64::from(left) * 600,
        "{book}: {left} blocks are left"
    );
    // What there was before comes on top.
    let other = channels(world, 1)?;
    let usual = other.iter().map(|one| number(one, "capacity_sat"));
    let usual = usual.collect::<Result<Vec<_>>>()?;
    let usual = usual.into_iter().max().context("a channel")?;
    ensure!(number(bought, "capacity_sat")? == usual + SAT, "{bought}");
    all_hand_over(ladder, first, &[0, 1])?;
    ladder.world.lightning_becomes(0, BALANCE * 1_000 - fee)?;
    ladder.world.lightning_becomes(1, BALANCE * 1_000)
}

fn held_for_orders(world: &World) -> Result<u64> {
    let balance = world.client(0)?.json(&["balance"])?;
    number(&balance, "held_for_orders_msat")
}

#[test]
fn the_next_factory_serves_an_order() -> Result<()> {
    let (mut ladder, first) = town("lsps1_birth", SHORT)?;
    ladder.world.client(0)?.json(&ORDER)?;
    ladder.world.client(0)?.wait_for("channel_order_paid")?;
    let held = number(&listed(&ladder.world)?, "fee_msat")?;
    ensure!(held_for_orders(&ladder.world)? == held);
    is_served(&mut ladder, &first)?;
    ensure!(held_for_orders(&ladder.world)? == 0);
    Ok(())
}

/// The coordinator dies with the payment held, and when the channel is there and nothing is taken yet.
#[test]
fn every_crash_is_survived() -> Result<()> {
    let (mut ladder, first) = town("lsps1_birth_crash", SHORT)?;
    ladder.kill_coordinator()?;
    ladder.coordinator_returns(&[("SUPERSCALAR_FAULT", "lsps1_held")])?;
    back(&ladder.world, 0)?;
    ladder.world.client(0)?.json(&ORDER)?;
    ladder.live_to_coordinators_death(1)?;
    ladder.coordinator_returns(&[("SUPERSCALAR_FAULT", "lsps1_born")])?;
    ladder.live_to_coordinators_death(ladder.spacing() * 3)?;
    ladder.coordinator_returns(&[])?;
    is_served(&mut ladder, &first)
}

/// Nobody has to leave a factory yet: it is born for those who have paid.
#[test]
fn a_factory_for_buyers_alone() -> Result<()> {
    let days = Days { rungs: 5, ..SHORT };
    let (mut ladder, _) = town("lsps1_birth_buyers", days)?;
    for index in [0, 1] {
        ladder.world.client(index)?.json(&ORDER)?;
        ladder.world.client(index)?.wait_for("channel_order_paid")?;
    }
    ladder.born(2)?;
    for index in [0, 1] {
        let done = ladder.world.client(index)?.wait_for("channel_order_done")?;
        let all = channels(&ladder.world, index)?;
        let mut bought = all
            .iter()
            .filter(|one| one["outpoint"] == done.text("funding"));
        let bought = bought.next().context("the channel")?;
        ensure!(!bought["factory"].is_null(), "{bought}");
        ensure!(number(bought, "capacity_sat")? == SAT, "{bought}");
    }
    Ok(())
}
