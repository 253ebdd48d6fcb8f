//! A whole life of a ladder: every factory is born, dies, comes back and is followed by another, and everybody moves along.

use anyhow::{Context, Result, ensure};
use bitcoin::Amount;
use scenarios::ladder::{DYING_DAYS, Days, Ladder};
use scenarios::ledger::{Ledger, Owner};
use scenarios::outside::Outside;
use scenarios::world::World;

use crate::money;

/// What a wallet pays its own way out with: then its balance moves in a few parts.
pub(crate) const FEE_COIN: Amount = Amount::from_sat(50_000);
/// What each has on Lightning: no round number.
const BALANCE: u64 = 40_321;
/// Clients that begin together.
const COHORT: usize = 3;

/// Whether the long scenarios are asked for.
pub(crate) fn long() -> bool {
    std::env::var_os("SUPERSCALAR_LONG").is_some()
}

/// Clients join on every day until the ladder is full; then it runs by itself until every factory of the first life was reaped, and as many
/// were born after it.
///
/// `share`: so many cohorts of wallets are in one process; nothing: each wallet has its own.
fn life(name: &str, days: Days, share: Option<usize>) -> Result<()> {
    let mut ladder = Ladder::prepare(&World::directory(name)?, days)?;
    // A channel and half as much stock for each, twice: what dies is back a little after its successor is born.
    ladder.begin(Amount::from_sat(u64::from(days.rungs) * 3_000_000))?;
    let outside = Outside::start(&mut ladder.world)?;
    let cohorts = (days.rungs - DYING_DAYS) as usize;
    for cohort in 0..cohorts {
        match share {
            None => ladder.world.add_clients(COHORT)?,
            Some(share) if cohort % share == 0 => ladder.world.add_crowd(share * COHORT)?,
            Some(_) => {}
        }
        let first = cohort * COHORT;
        let members: Vec<usize> = (first..first + COHORT).collect();
        ladder.fee_coins(&members, FEE_COIN)?;
        ladder.cohort(&members)?;
        ladder.pay_in(&outside, &members, BALANCE)?;
    }
    let everybody: Vec<usize> = (0..cohorts * COHORT).collect();
    let first_life = days.rungs as usize;
    let blocks = days.spacing * days.rungs * 2;
    ladder.live("a second life", blocks, |ladder| {
        let lives = ladder.tally.lives();
        let reaped = lives.iter().take(first_life);
        let reaped = reaped.filter(|(_, life)| life.swept_sat > 0);
        Ok(lives.len() >= 2 * first_life && reaped.count() == first_life)
    })?;
    check(&mut ladder, &everybody, first_life)
}

fn check(ladder: &mut Ladder, everybody: &[usize], first_life: usize) -> Result<()> {
    // No day from now on: what is counted is complete.
    ladder.enable(false)?;
    for index in everybody {
        ladder
            .world
            .lightning_becomes(*index, BALANCE * 1_000)
            .with_context(|| format!("client {index} did not keep what it had"))?;
        let handed_over = &ladder.world.id_of(ladder.world.client(*index)?)?.to_owned();
        let left = ladder.tally.factories.values();
        let left = left.filter(|life| life.handed_over.contains(handed_over));
        ensure!(left.count() >= 1, "client {index} never migrated");
    }
    for (id, life) in ladder.tally.lives() {
        ensure!(
            life.published.is_empty() && life.loss_sat.is_none(),
            "factory {id} was not left in peace: {life:?}"
        );
    }
    let exports = ladder.exports();
    let ledger = money::sheet(&ladder.world, &exports)?;
    let reaped = ladder.reaped(&ledger);
    for (id, life) in ladder.tally.lives().into_iter().take(first_life) {
        ensure!(
            reaped.contains(&id),
            "factory {id} was not reaped: {life:?}"
        );
    }
    happy(&ledger, exports.len(), reaped.len())?;
    // All that was locked and not reaped stands, as one output each.
    let locked: u64 = exports
        .iter()
        .filter(|export| !reaped.contains(&&export.factory_id))
        .map(|export| export.funding.amount_sat)
        .sum();
    let held = ledger.sum_of(&Owner::Factory).to_sat();
    ensure!(held == locked, "{held} sat are in factories, not {locked}");
    Ok(())
}

/// A funding and a reap each, and hardly anything else.
fn happy(ledger: &Ledger, born: usize, reaped: usize) -> Result<()> {
    let own = |kind: &str| ledger.onchain().iter().filter(|tx| tx.kind == kind).count();
    let (fundings, sweeps) = (own("funding"), own("sweep"));
    ensure!(
        fundings == born,
        "{born} factories were born by {fundings} transactions"
    );
    // Whatever the coordinator made beside them counts as well.
    let coordinators = ledger
        .onchain()
        .iter()
        .filter(|tx| tx.by.as_deref() == Some("coordinator") && tx.kind != "gift");
    let count = coordinators.count();
    println!(
        "{born} born, {reaped} reaped, {count} transactions of the coordinator ({sweeps} sweeps)"
    );
    // 2.2 for a whole life; of those still standing there is only the funding.
    ensure!(
        count * 10 <= reaped * 22 + (born - reaped) * 11,
        "{count} transactions of the coordinator for {born} factories of which {reaped} were reaped"
    );
    for stray in [
        "static",
        "kickoff",
        "state",
        "leaf",
        "timeout",
        "commitment",
        "fee_child",
    ] {
        ensure!(own(stray) == 0, "a {stray} is on the chain");
    }
    Ok(())
}

#[test]
fn five_rungs() -> Result<()> {
    let days = Days {
        rungs: 5,
        spacing: 12,
    };
    life("ladder_5", days, None)
}

/// The number: a full ladder of the default shape.
#[test]
fn thirty_three_rungs() -> Result<()> {
    if !long() {
        return Ok(());
    }
    let days = Days {
        rungs: 33,
        spacing: 6,
    };
    life("ladder_33", days, Some(10))
}
