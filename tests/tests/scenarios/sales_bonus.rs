//! Channels that co-signers of a sale get for being there.

use anyhow::{Context, Result, ensure};
use scenarios::event::Event;
use scenarios::outside::Outside;
use scenarios::service::Service;
use scenarios::world::{Created, World, number, text};
use serde_json::Value;

use crate::jit_wallet::becomes;
use crate::money;
use crate::sales::{
    self, BALANCE, BOUGHT, FEE, FEE_COIN, all_is_out, back, begin, buy, channels, client_dies_in,
    coordinator_dies_in, ends, has_come_out, ledger, moves_on, room,
};

/// What a mate gets, in satoshi.
const BONUS: u64 = 20_000;
/// What is paid over it.
const PAID: u64 = 10_000;

fn gives(coordinator: &Service) -> Result<()> {
    coordinator.configure("sales.bonus_sat", i64::try_from(BONUS)?)
}

/// Two clients that share a stock, and a coordinator that knows where each wants its bonus.
fn town(name: &str) -> Result<(World, Created)> {
    let (world, created) = sales::town_with(name, 2, gives)?;
    all_placed(&world)?;
    Ok((world, created))
}

fn all_placed(world: &World) -> Result<()> {
    [0, 1].iter().try_for_each(|index| placed(world, *index, 0))
}

/// Waits until the coordinator knows where a client wants its next bonus.
fn placed(world: &World, index: usize, mark: usize) -> Result<()> {
    let id = world.id_of(world.client(index)?)?;
    let place = |event: &Event| event.is("bonus_place") && event.text("client") == id;
    let wait = world.coordinator.wait_after(mark, "a place", place);
    wait.map(drop)
}

/// The bonus channels of a client, as `limit show` lists them.
fn bonuses(world: &World, index: usize) -> Result<Vec<Value>> {
    let shown = world.client(index)?.json(&["limit", "show"])?;
    let all = shown["channels"].as_array().context("a list")?.iter();
    Ok(all.filter(|one| one["bonus"] == true).cloned().collect())
}

/// The one bonus of the mate stands, and is of use.
fn has_bonus(world: &World) -> Result<()> {
    has_one(world, 1)
}

fn has_one(world: &World, mate: usize) -> Result<()> {
    ensure!(channels(world, mate)?.len() == 2, "mate {mate} got nothing");
    back(world, mate)?;
    // The buyer's sale is over when the buyer has it; a mate may hear of it a moment later.
    becomes("a bonus in the exit kit", || {
        Ok(!bonuses(world, mate)?.is_empty())
    })?;
    let shown = bonuses(world, mate)?;
    ensure!(shown.len() == 1, "{shown:?}");
    ensure!(number(&shown[0], "capacity_sat")? == BONUS, "{shown:?}");
    Ok(())
}

/// The mate gets a channel, is paid over it, buys itself, and now the other gets one; then both leave with what is theirs.
#[test]
fn a_mate_is_paid_for_being_there() -> Result<()> {
    let (mut world, created) = town("bonus_awake")?;
    let before = room(&world, 1)?;
    let mark = world.coordinator.mark()?;
    buy(&world, 0)?;
    world.lightning_becomes(0, (BALANCE - FEE) * 1_000)?;
    has_bonus(&world)?;
    ensure!(bonuses(&world, 0)?.is_empty(), "the buyer got one");
    let after = room(&world, 1)?;
    ensure!(after > before + BONUS - 2_000, "{before}, then {after}");
    // Over whichever channel has the least room for it.
    let outside = Outside::start(&mut world)?;
    outside.pay(&world.invoice(1, PAID)?)?;
    world.lightning_becomes(1, (BALANCE + PAID) * 1_000)?;
    let used = bonuses(&world, 1)?;
    let left = number(&used[0], "receivable_msat")?;
    ensure!(left <= (BONUS - PAID) * 1_000, "{used:?}");

    // Its next place is known; the other's always was.
    placed(&world, 1, mark)?;
    buy(&world, 1)?;
    let theirs = bonuses(&world, 0)?;
    ensure!(theirs.len() == 1 && channels(&world, 0)?.len() == 3);
    ensure!(channels(&world, 1)?.len() == 3);
    let sold = ledger(&world)?;
    let given = sold.iter().map(|sale| number(sale, "bonus_sat"));
    let given = given.collect::<Result<Vec<_>>>()?;
    ensure!(given == [BONUS, BONUS], "{sold:?}");
    let stock = world.coordinator.json(&["liquidity", "stock"])?;
    let stock = &stock["stocks"][0];
    ensure!(number(stock, "bonus_sat")? == 2 * BONUS, "{stock}");
    let gone = number(stock, "birth_sat")? - number(stock, "left_sat")?;
    ensure!(gone == 2 * (BONUS + BOUGHT), "{stock}");
    let revenue = world.coordinator.json(&["liquidity", "revenue"])?;
    let day = &revenue["days"][0];
    ensure!(number(day, "bonus_sat")? == 2 * BONUS, "{revenue}");

    outside.close(&world)?;
    let export = world.export(&created)?;
    for index in [0, 1] {
        let words = ["exit", &created.factory, "--yes", "--background"];
        world.client(index)?.json(&words)?;
    }
    all_is_out(&world, &created, &export)?;
    // Who lost a race to publish finds its coins free at the next block.
    world.mine(2)?;
    let ledger = money::settled(&world, std::slice::from_ref(&export))?;
    has_come_out(&ledger, 0, BALANCE - FEE)?;
    has_come_out(&ledger, 1, BALANCE + PAID - FEE)
}

/// Three sign with the buyer: each gets one of its own, and is paid over it.
#[test]
fn all_mates_of_four_get_one() -> Result<()> {
    const MATES: [usize; 3] = [0, 1, 3];
    let (mut world, _) = sales::town_with("bonus_four", 4, |coordinator| {
        gives(coordinator)?;
        coordinator.configure("factory.set.k", 4)
    })?;
    (0..4).try_for_each(|index| placed(&world, index, 0))?;
    buy(&world, 2)?;
    world.lightning_becomes(2, (BALANCE - FEE) * 1_000)?;
    MATES.iter().try_for_each(|mate| has_one(&world, *mate))?;
    ensure!(bonuses(&world, 2)?.is_empty(), "the buyer got one");
    let outside = Outside::start(&mut world)?;
    for mate in MATES {
        outside.pay(&world.invoice(mate, PAID)?)?;
        world.lightning_becomes(mate, (BALANCE + PAID) * 1_000)?;
        let used = bonuses(&world, mate)?;
        let left = number(&used[0], "receivable_msat")?;
        ensure!(left <= (BONUS - PAID) * 1_000, "{used:?}");
    }
    let all = MATES.len() as u64 * BONUS;
    let sold = ledger(&world)?;
    ensure!(sold.len() == 1, "{sold:?}");
    ensure!(number(&sold[0], "bonus_sat")? == all, "{sold:?}");
    let stock = world.coordinator.json(&["liquidity", "stock"])?;
    let stocks = stock["stocks"].as_array().context("a list")?;
    ensure!(stocks.len() == 1, "they share one stock: {stock}");
    let gone = number(&stocks[0], "birth_sat")? - number(&stocks[0], "left_sat")?;
    ensure!(gone == all + BOUGHT, "{stock}");
    Ok(())
}

/// A wallet that dies between drawing the place and telling it tells the same.
#[test]
fn a_place_that_was_drawn_is_told() -> Result<()> {
    let (mut world, _) = town("bonus_place")?;
    world.client_mut(1)?.terminate()?;
    world
        .client_mut(1)?
        .start_with(&[("SUPERSCALAR_FAULT", "bonus_place_drawn")])?;
    world.client_mut(1)?.wait_until_ended()?;
    let mark = world.coordinator.mark()?;
    world.client_mut(1)?.start()?;
    placed(&world, 1, mark)?;
    buy(&world, 0)?;
    has_bonus(&world)
}

fn coordinator_dies(point: &str) -> Result<()> {
    let (world, _) = town(&format!("bonus_lsp_{point}"))?;
    has_bonus(&coordinator_dies_in(world, point)?)
}

fn client_dies(who: usize, point: &str) -> Result<()> {
    let (world, _) = town(&format!("bonus_client{who}_{point}"))?;
    has_bonus(&client_dies_in(world, who, point)?)
}

deaths! {
    dies_when_it_is_paid: coordinator_dies("sale_held");
    dies_when_an_attempt_has_begun: coordinator_dies("sale_attempt_begun");
    dies_when_it_is_bound: coordinator_dies("sale_bound");
    dies_when_the_chain_is_stored: coordinator_dies("sale_chain_stored");
    dies_when_the_channels_are_opened: coordinator_dies("sale_channel_opened");
    dies_when_it_is_sold: coordinator_dies("sale_sold");
    dies_when_it_has_claimed: coordinator_dies("sale_claimed");
    dies_when_it_has_settled: coordinator_dies("sale_settled");
    the_buyer_dies_when_it_has_signed: client_dies(0, "sale_guard_stored");
    the_buyer_dies_with_the_kit: client_dies(0, "sale_kit_stored");
    the_mate_dies_when_it_has_signed: client_dies(1, "sale_guard_stored");
    the_mate_dies_with_the_kit: client_dies(1, "sale_kit_stored");
    the_mate_dies_when_it_has_acked: client_dies(1, "sale_acked");
}

/// The buyer gets back what it paid, and has nothing else.
fn is_refunded(world: &World) -> Result<()> {
    ends(world, 0, "cancelled")?;
    world.lightning_becomes(0, BALANCE * 1_000)?;
    ensure!(channels(world, 0)?.len() == 1 && channels(world, 1)?.len() == 1);
    Ok(())
}

/// A mate that wants more than is given says so, and the buyer is paid back; with as much as it wants the next sale goes through.
#[test]
fn a_mate_that_wants_more_refuses() -> Result<()> {
    const WANTED: u64 = BONUS + 5_000;
    let (mut world, _) = town("bonus_more")?;
    world.client_mut(1)?.terminate()?;
    world
        .client(1)?
        .configure("sales.least_bonus_sat", i64::try_from(WANTED)?)?;
    world.client_mut(1)?.start()?;
    back(&world, 1)?;
    let mark = world.coordinator.mark()?;
    begin(&world, 0)?;
    is_refunded(&world)?;
    let failed = world.coordinator.wait_for("sale_attempt_failed")?;
    ensure!(failed.text("reason").contains("sale_bonus"), "{failed:?}");
    // What it was offered it does not want a second time.
    placed(&world, 1, mark)?;
    let wanted = WANTED.to_string();
    let words = ["liquidity", "prices", "set", "--bonus-sat", &wanted];
    world.coordinator.json(&words)?;
    buy(&world, 0)?;
    let shown = bonuses(&world, 1)?;
    ensure!(shown.len() == 1, "{shown:?}");
    ensure!(number(&shown[0], "capacity_sat")? == WANTED, "{shown:?}");
    Ok(())
}

/// A mate that takes the signatures and not the channel has neither, and the buyer its money.
#[test]
fn a_mate_that_refuses_its_channel_has_nothing() -> Result<()> {
    let (mut world, created) = sales::town_with("bonus_refused", 2, |coordinator| {
        gives(coordinator)?;
        coordinator.configure("sales.step_seconds", 2)
    })?;
    all_placed(&world)?;
    world.client_mut(1)?.terminate()?;
    world
        .client_mut(1)?
        .start_with(&[("SUPERSCALAR_MISBEHAVE", "refuse_sold_channel")])?;
    back(&world, 1)?;
    let begun = begin(&world, 0)?;
    let failed = world.coordinator.wait_for("sale_attempt_failed")?;
    ensure!(failed.text("reason").contains("its channel"), "{failed:?}");
    let sale = text(&begun, "sale")?;
    world.client(0)?.json(&["limit", "cancel", &sale])?;
    ends(&world, 0, "cancelled")?;
    world.lightning_becomes(0, BALANCE * 1_000)?;
    for index in [0, 1] {
        let export = world.client_export(index, &created)?;
        let sold = export.transactions.iter();
        let sold = sold.filter(|tx| ["stock_chain", "poison"].contains(&tx.kind.as_str()));
        ensure!(sold.count() == 0, "client {index} holds a sale");
    }
    Ok(())
}

/// A bonus is left like everything else: its balance moves, its key is handed over, the coins come back.
#[test]
fn a_bonus_moves_on() -> Result<()> {
    moves_on("bonus_moves", gives, all_placed, has_bonus)
}

/// The coordinator is gone for good: both leave with what is theirs, and the bonus does not cost its owner anything.
#[test]
fn a_bonus_comes_out_without_the_coordinator() -> Result<()> {
    let (mut world, created) = town("bonus_gone")?;
    buy(&world, 0)?;
    has_bonus(&world)?;
    let export = world.export(&created)?;
    world.coordinator.kill()?;
    for index in [0, 1] {
        let words = ["exit", &created.factory, "--yes", "--background"];
        world.client(index)?.json(&words)?;
    }
    world.mine_until(&export, |world| world.all_done(&created, &[0, 1]))?;
    for (index, balance) in [(0, BALANCE - FEE), (1, BALANCE)] {
        let has = number(&world.client(index)?.json(&["balance"])?, "total_sat")?;
        // The timeouts of a coordinator that is gone pay them what is left of the stock.
        let least = FEE_COIN.to_sat() + balance;
        ensure!(has > least, "client {index} has {has} of {least}");
    }
    Ok(())
}
