//! The coordinator or its Bitcoin node is away for days; blocks leave the chain; fees rise.

use anyhow::{Context, Result, ensure};
use bitcoin::Amount;
use scenarios::bitcoind::Options;
use scenarios::ladder::Ladder;
use scenarios::world::number;

use crate::ladder::{FEE_COIN, long};
use crate::ladder_clients::{BALANCE, all_hand_over, all_have, find_on_chain, stop_births, town};
use crate::money;

const EVERYBODY: [usize; 3] = [0, 1, 2];

/// The wallets are there all the time, and see every block.
fn everybody_sees(ladder: &Ladder) -> Result<()> {
    let height = ladder.world.node.height()?;
    EVERYBODY
        .iter()
        .try_for_each(|index| ladder.world.client_sees(*index, height))
}

/// Nobody could move: from `E` on every path goes out, and everybody has its balance long before `T`.
#[test]
fn coordinator_away_for_the_dying_days() -> Result<()> {
    let (mut ladder, first) = town("ladder_away", 3)?;
    let export = ladder.export(&first)?.clone();
    let end = ladder.end(&export);
    ladder.kill_coordinator()?;
    ladder.world.node.mine_until(end)?;
    everybody_sees(&ladder)?;
    ladder.coordinator_returns(&[])?;
    stop_births(&mut ladder)?;
    find_on_chain(&mut ladder, &EVERYBODY)?;
    ensure!(
        ladder.world.node.height()? < export.expiry_height,
        "only after T"
    );
    let life = &ladder.tally.factories[&first];
    ensure!(
        life.published.len() == 3 && life.loss_sat.is_none(),
        "{life:?}"
    );
    money::sheet(&ladder.world, &ladder.exports()).map(drop)
}

/// The timeouts pay the clients what is not theirs; the coordinator loses that and no more, and says so.
#[test]
fn coordinator_away_for_too_long() -> Result<()> {
    let (mut ladder, first) = town("ladder_too_late", 3)?;
    let export = ladder.export(&first)?.clone();
    ladder.kill_coordinator()?;
    ladder.world.node.mine_until(export.expiry_height)?;
    everybody_sees(&ladder)?;
    let created = scenarios::world::Created {
        factory: first.clone(),
        funding: export.funding.txid,
    };
    ladder
        .world
        .mine_until(&export, |world| world.all_done(&created, &EVERYBODY))?;
    ladder.coordinator_returns(&[])?;
    ladder.live("the loss is told", 10, |ladder| {
        Ok(ladder.tally.factories[&first].loss_sat.is_some())
    })?;
    let told = ladder.tally.factories[&first].loss_sat.context("a loss")?;
    stop_births(&mut ladder)?;
    let ledger = money::sheet(&ladder.world, &ladder.exports())?;
    let mut lost = 0i64;
    for index in EVERYBODY {
        let name = format!("client-{index}");
        let owned = BALANCE + FEE_COIN.to_sat();
        lost += i64::try_from(ledger.has(&name).to_sat())? - i64::try_from(owned)?;
    }
    let most = export.funding.amount_sat;
    ensure!(
        lost > 0 && lost <= i64::try_from(told)? && told <= most,
        "lost {lost} sat, told {told}, at most {most}"
    );
    Ok(())
}

/// A day's blocks come at once after the node was away.
#[test]
fn node_away_for_a_day() -> Result<()> {
    if !long() {
        return Ok(());
    }
    let (mut ladder, first) = town("ladder_node_away", 3)?;
    let export = ladder.export(&first)?.clone();
    ladder.live_until(ladder.end(&export) - 3 * ladder.spacing())?;
    ladder.world.node.stop()?;
    ladder.world.coordinator.wait_for("chain_unavailable")?;
    ladder.world.node.start_again()?;
    ladder.world.mine(ladder.spacing())?;
    ladder.settle()?;
    all_hand_over(&mut ladder, &first, &EVERYBODY)?;
    all_have(&ladder, &EVERYBODY)?;
    stop_births(&mut ladder)?;
    money::sheet(&ladder.world, &ladder.exports()).map(drop)
}

/// The new factory leaves the chain when balances are in it and no key was handed over; it comes back, and so does everything else.
#[test]
fn reorg_over_a_birth() -> Result<()> {
    let (mut ladder, first) = town("ladder_reorg_birth", 3)?;
    ladder.live("a part has moved", ladder.spacing() * 3, |ladder| {
        Ok(ladder.tally.factories[&first].parts > 0)
    })?;
    ensure!(
        ladder.tally.factories[&first].handed_over.is_empty(),
        "too late"
    );
    let second = ladder.tally.nth(1).context("the second factory")?.clone();
    let funding = ladder.tally.factories[&second].funding.context("funded")?;
    let heights = ladder.world.heights([funding].into())?;
    let depth = ladder.world.node.height()? - heights[&funding] + 1;
    ladder.world.node.reorg(depth, depth + 1)?;
    ladder
        .world
        .coordinator
        .wait("the factory unconfirmed", |event| {
            event.is("factory_unconfirmed") && event.text("factory") == second
        })?;
    ladder.settle()?;
    ensure!(
        ladder.tally.factories[&first].handed_over.is_empty(),
        "handed over for nothing"
    );
    all_hand_over(&mut ladder, &first, &EVERYBODY)?;
    all_have(&ladder, &EVERYBODY)?;
    stop_births(&mut ladder)?;
    money::sheet(&ladder.world, &ladder.exports()).map(drop)
}

/// The coins of a reap leave the chain, and come back.
#[test]
fn reorg_over_a_reap() -> Result<()> {
    if !long() {
        return Ok(());
    }
    let (mut ladder, first) = town("ladder_reorg_reap", 3)?;
    all_hand_over(&mut ladder, &first, &EVERYBODY)?;
    ladder.live("the reap", 20, |ladder| {
        Ok(ladder.tally.factories[&first].swept_sat > 0)
    })?;
    let ledger = ladder.world.ledger(ladder.exports())?;
    let outpoint = ladder.export(&first)?.funding_outpoint();
    let reap = ledger.spender(&outpoint).context("a reap")?.height;
    let depth = ladder.world.node.height()? - reap + 1;
    ladder.world.node.reorg(depth, depth + 1)?;
    ladder.settle()?;
    let spent = |ladder: &Ladder| -> Result<bool> {
        let coin = serde_json::json!([outpoint.txid, outpoint.vout, false]);
        Ok(ladder.world.node.rpc("gettxout", coin)?.is_null())
    };
    ensure!(!spent(&ladder)?, "the reorg left it in the chain");
    ladder.live("it is reaped again", 20, spent)?;
    all_have(&ladder, &EVERYBODY)?;
    stop_births(&mut ladder)?;
    money::sheet(&ladder.world, &ladder.exports()).map(drop)
}

/// Nothing under 40 sat/vB is relayed: births, reaps and the path of a silent client pay that.
#[test]
fn fees_rise_in_the_dying_days() -> Result<()> {
    if !long() {
        return Ok(());
    }
    let (mut ladder, first) = town("ladder_spike", 3)?;
    let export = ladder.export(&first)?.clone();
    ladder.world.client_mut(2)?.terminate()?;
    ladder.world.node.restart_with(Options {
        arguments: ["-minrelaytxfee=0.00040000", "-blockmintxfee=0.00040000"]
            .map(str::to_owned)
            .to_vec(),
        ..Options::default()
    })?;
    all_hand_over(&mut ladder, &first, &[0, 1])?;
    ladder.live_until(ladder.end(&export) + ladder.spacing())?;
    ladder.world.client_mut(2)?.start()?;
    ladder.live("the silent one is out", 60, |ladder| {
        let balance = ladder.world.client(2)?.json(&["balance"])?;
        Ok(number(&balance, "confirmed_sat")? > FEE_COIN.to_sat())
    })?;
    ensure!(
        ladder.world.node.height()? < export.expiry_height,
        "only after T"
    );
    all_have(&ladder, &[0, 1])?;
    stop_births(&mut ladder)?;
    let ledger = money::sheet(&ladder.world, &ladder.exports())?;
    ensure!(ledger.fees() > Amount::ZERO, "nobody paid");
    Ok(())
}
