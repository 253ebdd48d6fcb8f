//! Channels from the chain whose owners live in the ladder: what is in them joins the next factory.

use anyhow::{Context, Result, ensure};
use scenarios::event::Event;
use scenarios::ladder::{Days, Ladder};
use scenarios::outside::Outside;
use scenarios::world::{COORDINATOR_COINS, World, number, text};
use serde_json::Value;

use crate::jit::sells;
use crate::jit_wallet::{becomes, received};
use crate::ladder::FEE_COIN;
use crate::ladder_births::SHORT;
use crate::ladder_clients::{BALANCE, all_hand_over, stop_births, town_in};
use crate::sales::channels;

/// What a factory's channel holds where nothing asks for more: less than what is paid.
const CAPACITY: u64 = 150_000;
/// What is paid. More would be brought in two goes, as a last hundredth that is worth a payment is brought too.
const PAID: u64 = 200_000;
/// A sweep of what had to stay takes less.
const SWEEP_COST: u64 = 1_000;

/// Two clients in a ladder's factory, and somebody to pay from outside.
fn town() -> Result<(Ladder, String, Outside)> {
    // Two active days: the next factory is to be filled before its last ones.
    let days = Days { rungs: 5, ..SHORT };
    let mut ladder = Ladder::prepare(&World::directory("jit_births")?, days)?;
    let coordinator = &ladder.world.coordinator;
    sells(coordinator)?;
    // The coordinator's node forwards over the channel with the least room: the old one must have less than what is brought.
    coordinator.configure("jit.margin_sat", 20_000)?;
    coordinator.configure("policy.capacity_default_sat", i64::try_from(CAPACITY)?)?;
    ladder.begin(COORDINATOR_COINS)?;
    // Before the first day: its channel takes blocks.
    let outside = Outside::start(&mut ladder.world)?;
    let (ladder, first) = town_in(ladder, 2, |_| Ok(()))?;
    // The coordinator was started anew with its ladder.
    becomes("the payer", || {
        let channels = outside.node().channels();
        Ok(channels.iter().any(|channel| channel.usable))
    })?;
    Ok((ladder, first, outside))
}

/// The wallet's only channel outside of factories.
fn outer(world: &World) -> Result<Value> {
    let all = channels(world, 0)?;
    let mut outer = all.iter().filter(|one| one["factory"].is_null());
    let found = outer.next().cloned();
    ensure!(outer.next().is_none(), "{all:?}");
    found.with_context(|| format!("no channel outside of factories: {all:?}"))
}

/// What the wallet paid for the one payment that brought something.
fn cost(world: &World) -> Result<u64> {
    let list = world.client(0)?.json(&["payments"])?;
    let all = list["payments"].as_array().context("a list")?;
    let brought = |one: &&Value| {
        let text = one["text"].as_str().unwrap_or_default();
        one["direction"] == "out" && text.starts_with("brought into a factory")
    };
    let all: Vec<&Value> = all.iter().filter(brought).collect();
    ensure!(all.len() == 1, "{list}");
    ensure!(all[0]["state"] == "succeeded", "{list}");
    number(all[0], "fee_msat")
}

/// Out of inbound, and paid over a channel from the chain: its place in the next factory is large enough for both, what it has comes to lie there by
/// itself, and the channel is closed. But for the fee of a forward, and what a sweep costs, all of it is there.
#[test]
fn what_came_from_the_chain_joins_the_next_factory() -> Result<()> {
    let (mut ladder, first, outside) = town()?;
    let wallet = ladder.world.client(0)?;
    let made = wallet.json(&["invoice", "--jit", &PAID.to_string(), "--yes"])?;
    let arrives = number(&made, "receive_msat")?;
    let mark = wallet.mark()?;
    outside.pay(&text(&made, "invoice")?)?;
    ensure!(received(wallet, mark)? == (arrives, PAID * 1_000 - arrives));
    let has = BALANCE * 1_000 + arrives;
    ladder.world.lightning_becomes(0, has)?;
    let channel = text(&outer(&ladder.world)?, "channel")?;

    all_hand_over(&mut ladder, &first, &[0, 1])?;
    // No block until it is done: the new factory has its own last days.
    let wallet = ladder.world.client(0)?;
    let brought = wallet.wait_for("consolidated")?;
    ensure!(brought.text("channel") == channel, "{brought:?}");
    let amount = brought.number("amount_msat").context("an amount")?;
    ensure!(amount > arrives / 100 * 97, "{brought:?} of {arrives}");
    let closed = wallet.wait_for("jit_channel_closed")?;
    ensure!(
        closed.text("reason").contains("cooperatively"),
        "{closed:?}"
    );
    let inside = BALANCE * 1_000 + amount;
    ladder.world.lightning_becomes(0, inside)?;
    ladder.world.lightning_becomes(1, BALANCE * 1_000)?;
    let left = channels(&ladder.world, 0)?;
    // What is closed is listed until its coins are back.
    let elsewhere = |one: &Value| {
        one["state"] != "closed" && (one["factory"].is_null() || one["factory"] == first.as_str())
    };
    ensure!(!left.is_empty() && !left.iter().any(elsewhere), "{left:?}");
    let cost = cost(&ladder.world)?;
    ensure!(cost > 0 && cost <= amount / 100, "{cost} msat for {amount}");

    stop_births(&mut ladder)?;
    let rest = (has - cost - inside) / 1_000;
    let due = FEE_COIN.to_sat() + rest;
    becomes("what had to stay is in its wallet", || {
        ladder.world.mine(1)?;
        let balance = ladder.world.client(0)?.json(&["balance"])?;
        let there = number(&balance, "confirmed_sat")?;
        ensure!(there <= due, "{due} sat are due: {balance}");
        Ok(number(&balance, "lightning_closing_sat")? == 0 && there + SWEEP_COST > due)
    })?;
    ladder.world.lightning_becomes(0, inside)?;
    let again = |event: &&Event| event.is("consolidated");
    let events = ladder.world.client(0)?.events()?;
    ensure!(events.iter().filter(again).count() == 1, "brought twice");
    let life = &ladder.tally.factories[&first];
    ensure!(life.published.is_empty(), "a path was published: {life:?}");
    Ok(())
}
