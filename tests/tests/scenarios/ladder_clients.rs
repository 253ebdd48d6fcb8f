//! Clients that come late, not at all, or not in good faith.

use anyhow::{Context, Result, ensure};
use scenarios::ladder::Ladder;
use scenarios::world::{number, text};

use crate::ladder::{FEE_COIN, long};
use crate::ladder_births::SHORT;
use crate::money;

/// What each has on Lightning.
pub(crate) const BALANCE: u64 = 50_007;
/// More than what a commitment and its sweep cost at the lowest feerate.
const CHAIN_COST: u64 = 1_500;

/// A factory with so many clients that have something to lose, and coins to pay their own way with.
pub(crate) fn town(name: &str, clients: usize) -> Result<(Ladder, String)> {
    town_with(name, clients, |_| Ok(()))
}

/// The same with one more client, which is not like the others.
fn town_with(
    name: &str,
    clients: usize,
    more: impl FnOnce(&mut Ladder) -> Result<()>,
) -> Result<(Ladder, String)> {
    town_in(Ladder::start(name, SHORT)?, clients, more)
}

/// The same in a ladder that stands.
pub(crate) fn town_in(
    mut ladder: Ladder,
    clients: usize,
    more: impl FnOnce(&mut Ladder) -> Result<()>,
) -> Result<(Ladder, String)> {
    ladder.world.add_clients(clients)?;
    more(&mut ladder)?;
    let everybody: Vec<usize> = (0..ladder.world.clients.len()).collect();
    ladder.fee_coins(&everybody, FEE_COIN)?;
    let id = ladder.cohort(&everybody)?;
    ladder.world.coordinator_pays(&everybody, BALANCE)?;
    Ok((ladder, id))
}

pub(crate) fn name_of(ladder: &Ladder, index: usize) -> Result<String> {
    Ok(ladder.world.id_of(ladder.world.client(index)?)?.to_owned())
}

/// Lives until these clients have handed over the keys of a factory.
pub(crate) fn all_hand_over(ladder: &mut Ladder, factory: &str, which: &[usize]) -> Result<()> {
    let names = which
        .iter()
        .map(|index| name_of(ladder, *index))
        .collect::<Result<Vec<_>>>()?;
    let blocks = ladder.spacing() * 4;
    ladder.live("everybody has handed over", blocks, |ladder| {
        let life = &ladder.tally.factories[factory];
        Ok(names.iter().all(|name| life.handed_over.contains(name)))
    })
}

/// Everybody has on Lightning what it had.
pub(crate) fn all_have(ladder: &Ladder, which: &[usize]) -> Result<()> {
    which
        .iter()
        .try_for_each(|index| ladder.world.lightning_becomes(*index, BALANCE * 1_000))
}

/// The factory is over: the coordinator has its coins, whoever was silent its balance, and the chain agrees with everybody.
fn over(ladder: &mut Ladder, factory: &str) -> Result<()> {
    let blocks = 2 * scenarios::mining::TO_SELF_DELAY;
    let outpoint = ladder.export(factory)?.clone();
    ladder.live("nothing is left in the factory", blocks, |ladder| {
        Ok(ladder.world.left_in(&outpoint)? == 0)
    })?;
    stop_births(ladder)?;
    let exports = ladder.exports();
    money::sheet(&ladder.world, &exports)?;
    Ok(())
}

/// No births from now on: what is looked at stands still.
pub(crate) fn stop_births(ladder: &mut Ladder) -> Result<()> {
    ladder.enable(false)
}

/// Its balance is on the chain, in outputs of its own, and nowhere else.
fn found_on_chain(ladder: &Ladder, index: usize) -> Result<()> {
    let balance = ladder.world.client(index)?.json(&["balance"])?;
    let has = number(&balance, "confirmed_sat")?;
    let due = BALANCE + FEE_COIN.to_sat();
    ensure!(
        has <= due && has + CHAIN_COST >= due,
        "client {index} has {has} sat of {due}: {balance}"
    );
    ensure!(number(&balance, "lightning_msat")? == 0, "{balance}");
    Ok(())
}

/// Lives until these wallets have found their balances. Who closed a channel alone waits for its own delay.
pub(crate) fn find_on_chain(ladder: &mut Ladder, which: &[usize]) -> Result<()> {
    let blocks = scenarios::mining::TO_SELF_DELAY + 4 * ladder.spacing();
    let found = ladder.live("they find their balances", blocks, |ladder| {
        Ok(which
            .iter()
            .all(|index| found_on_chain(ladder, *index).is_ok()))
    });
    // What is missing says more than that something is.
    found.or_else(|error| {
        let mut each = which.iter();
        each.try_for_each(|index| found_on_chain(ladder, *index))?;
        Err(error)
    })
}

/// Two dying days pass without it; on the third it comes, and moves like everybody else.
#[test]
fn comes_on_the_third_day() -> Result<()> {
    let (mut ladder, first) = town("ladder_third_day", 3)?;
    ladder.world.client_mut(2)?.terminate()?;
    let export = ladder.export(&first)?.clone();
    let last_day = ladder.end(&export) - ladder.spacing();
    ladder.live_until(last_day - 1)?;
    ensure!(
        ladder.tally.factories[&first].handed_over.len() == 2,
        "{:#?}",
        ladder.tally
    );
    ladder.world.client_mut(2)?.start()?;
    ladder.world.client(2)?.wait_for("connected")?;
    all_hand_over(&mut ladder, &first, &[0, 1, 2])?;
    let height = ladder.world.node.height()?;
    ensure!(height <= ladder.end(&export), "it was too late at {height}");
    all_have(&ladder, &[0, 1, 2])?;
    over(&mut ladder, &first)?;
    ensure!(
        ladder.tally.factories[&first].published.is_empty(),
        "a path was published"
    );
    Ok(())
}

/// It stays away from the dying days to long after `T`: the coordinator publishes its path and pays for it.
#[test]
fn misses_all_days_and_loses_nothing() -> Result<()> {
    let (mut ladder, first) = town("ladder_missed", 3)?;
    let silent = name_of(&ladder, 2)?;
    ladder.world.client_mut(2)?.terminate()?;
    all_hand_over(&mut ladder, &first, &[0, 1])?;
    let export = ladder.export(&first)?.clone();
    let end = ladder.end(&export);
    ladder.live_until(end - 1)?;
    ensure!(
        ladder.tally.factories[&first].published.is_empty(),
        "published before E"
    );
    ladder.live_until(end + ladder.spacing())?;
    all_have(&ladder, &[0, 1])?;
    // Their days would be too short for them from here on.
    ladder.pass(export.expiry_height + 2)?;
    let life = &ladder.tally.factories[&first];
    ensure!(
        life.published.iter().eq([&silent]) && life.loss_sat.is_none(),
        "{life:?}"
    );
    let spent = ladder.world.coordinator.wait("its commitment", |event| {
        event.is("channel_spent") && event.text("client") == silent
    })?;
    let last = export.expiry_height - ladder.numbers.factory.late_margin;
    ensure!(
        number(&spent.0, "height")? < last.into() && text(&spent.0, "kind")? == "commitment",
        "{spent}"
    );
    ladder.world.client_mut(2)?.start()?;
    find_on_chain(&mut ladder, &[2])?;
    over(&mut ladder, &first)
}

/// Two of four never come: exactly their paths go out, everything else comes back by keys.
#[test]
fn half_of_them_are_silent() -> Result<()> {
    let (mut ladder, first) = town("ladder_half", 4)?;
    let mut silent = vec![name_of(&ladder, 1)?, name_of(&ladder, 3)?];
    silent.sort();
    for index in [1, 3] {
        ladder.world.client_mut(index)?.terminate()?;
    }
    all_hand_over(&mut ladder, &first, &[0, 2])?;
    let export = ladder.export(&first)?.clone();
    let end = ladder.end(&export);
    ladder.live_until(end + ladder.spacing())?;
    for index in [1, 3] {
        ladder.world.client_mut(index)?.start()?;
    }
    find_on_chain(&mut ladder, &[1, 3])?;
    ensure!(
        ladder.world.node.height()? < export.expiry_height,
        "they had to wait for T"
    );
    ensure!(
        ladder.tally.factories[&first].published.iter().eq(&silent),
        "{:?}",
        ladder.tally.factories[&first]
    );
    all_have(&ladder, &[0, 2])?;
    over(&mut ladder, &first)
}

/// A client moves, and does not hand over the right keys. The others' part comes back by keys, its own by its path; nobody loses.
fn with_bad_faith(name: &str, misbehaviour: &str, refused: bool) -> Result<()> {
    let (mut ladder, first) = town_with(name, 2, |ladder| {
        let bad = [("SUPERSCALAR_MISBEHAVE", misbehaviour)];
        let index = ladder.world.add_client_with(&bad)?;
        ladder.world.client(index)?.wait_for("connected").map(drop)
    })?;
    let bad = name_of(&ladder, 2)?;
    all_hand_over(&mut ladder, &first, &[0, 1])?;
    let export = ladder.export(&first)?.clone();
    let end = ladder.end(&export);
    ladder.live_until(end + 1)?;
    all_have(&ladder, &[0, 1, 2]).context("everybody has moved")?;
    let events = ladder.world.coordinator.events()?;
    let mut said = events.iter().filter(|event| event.is("handover_refused"));
    let told = said.next().is_some_and(|event| event.text("client") == bad);
    ensure!(told == refused, "handover refused: {told}");
    let life = &ladder.tally.factories[&first];
    ensure!(
        life.published.iter().eq([&bad]) && !life.handed_over.contains(&bad),
        "{life:?}"
    );
    over(&mut ladder, &first)?;
    all_have(&ladder, &[0, 1, 2])
}

#[test]
fn keeps_its_keys() -> Result<()> {
    with_bad_faith("ladder_keeps_keys", "keeps_keys", false)
}

#[test]
fn hands_over_wrong_keys() -> Result<()> {
    with_bad_faith("ladder_wrong_keys", "wrong_keys", true)
}

/// It is there, and never takes an invitation.
#[test]
fn ignores_its_invitations() -> Result<()> {
    if !long() {
        return Ok(());
    }
    let (mut ladder, first) = town_with("ladder_ignores", 2, |ladder| {
        let bad = [("SUPERSCALAR_MISBEHAVE", "ignores_invitations")];
        let index = ladder.world.add_client_with(&bad)?;
        ladder.world.client(index)?.wait_for("connected").map(drop)
    })?;
    let bad = name_of(&ladder, 2)?;
    all_hand_over(&mut ladder, &first, &[0, 1])?;
    let export = ladder.export(&first)?.clone();
    let end = ladder.end(&export);
    ladder.live_until(end + ladder.spacing())?;
    // The coordinator's commitment, which the coordinator pays for: one of the wallet's own would wait for its delay.
    ladder.live("it finds its balance at once", 60, |ladder| {
        Ok(found_on_chain(ladder, 2).is_ok())
    })?;
    let life = &ladder.tally.factories[&first];
    ensure!(life.published.iter().eq([&bad]), "{life:?}");
    over(&mut ladder, &first)
}

/// Without coins for a way out nothing larger than what the way would cost is ever in the coordinator's hands.
#[test]
fn moves_in_small_parts_while_the_coordinator_stops() -> Result<()> {
    let mut ladder = Ladder::start("ladder_small_parts", SHORT)?;
    ladder.world.add_clients(2)?;
    // Only the first has none.
    ladder.fee_coins(&[1], FEE_COIN)?;
    let first = ladder.cohort(&[0, 1])?;
    ladder.world.coordinator_pays(&[0, 1], BALANCE)?;
    ladder.kill_coordinator()?;
    ladder.coordinator_returns(&[("SUPERSCALAR_FAULT", "part_taken:6")])?;
    ladder.live_to_coordinators_death(ladder.spacing() * 3)?;
    let half = ladder.tally.factories[&first].moved_msat;
    ensure!(
        half > 0 && half < 2 * BALANCE * 1_000,
        "{half} msat had moved"
    );
    ladder.coordinator_returns(&[])?;
    all_hand_over(&mut ladder, &first, &[0, 1])?;
    all_have(&ladder, &[0, 1])?;
    let mine = name_of(&ladder, 0)?;
    let events = ladder.world.coordinator.events()?;
    let parts = events
        .iter()
        .filter(|event| event.is("part_moved") && event.text("client") == mine);
    let largest = parts.filter_map(|event| event.number("amount_msat")).max();
    let quote = ladder.world.client(0)?.json(&["quote-exit", &first]);
    ensure!(
        largest.is_some_and(|largest| largest <= BALANCE * 1_000 / 5),
        "a part of {largest:?} msat; {quote:?}"
    );
    over(&mut ladder, &first)
}

/// What the month costs is in the invitation, is told before, and is taken once, however many parts there are.
#[test]
fn the_month_is_announced_and_paid_once() -> Result<()> {
    const FEE: u64 = 120;
    // Of a capacity of 200,000 sat.
    const SHARE: u64 = 80;
    let mut ladder = Ladder::prepare(&scenarios::world::World::directory("ladder_fee")?, SHORT)?;
    ladder
        .world
        .coordinator
        .configure("policy.fee_sat", FEE as i64)?;
    ladder.world.coordinator.configure("policy.fee_ppm", 400)?;
    ladder.begin(scenarios::world::COORDINATOR_COINS)?;
    ladder.world.add_clients(2)?;
    ladder.fee_coins(&[0, 1], FEE_COIN)?;
    let first = ladder.cohort(&[0, 1])?;
    ladder.world.coordinator_pays(&[0, 1], BALANCE)?;
    all_hand_over(&mut ladder, &first, &[0, 1])?;
    let life = &ladder.tally.factories[&first];
    ensure!(life.parts > 2, "{life:?}");
    ensure!(life.fee_msat == 2 * (FEE + SHARE) * 1_000, "{life:?}");
    for index in [0, 1] {
        let left = (BALANCE - FEE - SHARE) * 1_000;
        ladder.world.lightning_becomes(index, left)?;
        let client = ladder.world.client(index)?;
        let told = client.wait_for("notice")?;
        let cost = told.text("cost");
        ensure!(cost.contains("200 sat"), "{cost}");
        // The list of payments adds up to the balance.
        let payments = client.json(&["payments"])?;
        let list = payments["payments"].as_array().context("a list")?;
        let mut months = list.iter().filter(|one| one["direction"] == "out");
        let fee = months.next().map(|one| one["amount_msat"].clone());
        ensure!(fee == Some(((FEE + SHARE) * 1_000).into()), "{payments}");
        ensure!(months.next().is_none(), "{payments}");
    }
    over(&mut ladder, &first)
}
