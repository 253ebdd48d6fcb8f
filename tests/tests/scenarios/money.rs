//! Assertions to the satoshi.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bitcoin::Amount;
use scenarios::export::Export;
use scenarios::ledger::{Ledger, Owner};
use scenarios::service::Service;
use scenarios::world::{World, number};

/// How long a program may take to know what the last block means for its coins.
const SOON: Duration = Duration::from_secs(5);

/// Every satoshi is accounted for: by the blocks' rewards, by the node's coins, and by the word of
/// every program that still runs.
pub fn sheet(world: &World, factories: &[Export]) -> Result<Ledger> {
    // What spends a coin and is in no block yet is counted by its owner, and not by the chain.
    world.mine_until_quiet()?;
    let ledger = world.ledger(factories.to_vec())?;
    let difference = ledger.difference(&world.node)?;
    ensure!(difference == 0, "{difference} sat are missing");
    let height = world.node.height()?;
    if world.coordinator.process().is_ok() {
        world.coordinator_sees(height)?;
        let words = (
            ["wallet", "balance"].as_slice(),
            ["confirmed_sat"].as_slice(),
        );
        says(&world.coordinator, words, &ledger)?;
    }
    for (index, client) in world.clients.iter().enumerate() {
        if client.process().is_ok() {
            world.client_sees(index, height)?;
            let fields = ["confirmed_sat", "payouts_sat"];
            says(client, (&["balance"], &fields), &ledger)?;
        }
    }
    Ok(ledger)
}

/// A program that has seen the last block has what the chain says, soon: that a transaction of its own lost a race it learns after the block.
fn says(service: &Service, (words, fields): (&[&str], &[&str]), ledger: &Ledger) -> Result<()> {
    let has = ledger.has(service.name()).to_sat();
    let deadline = Instant::now() + SOON;
    loop {
        let balance = service.json(words)?;
        let parts = fields.iter().map(|field| number(&balance, field));
        let says: u64 = parts.sum::<Result<u64>>()?;
        if says == has {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{} says {says} sat ({balance}), the chain says {has}",
            service.name()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// As [`sheet`], for factories that are funded and not touched yet: each holds exactly its funding,
/// and the coordinator the rest but the fees.
pub fn funded(world: &World, factories: &[Export], start: Amount) -> Result<()> {
    let ledger = sheet(world, factories)?;
    let locked: u64 = factories
        .iter()
        .map(|factory| factory.funding.amount_sat)
        .sum();
    let held = ledger.sum_of(&Owner::Factory).to_sat();
    ensure!(held == locked, "{held} sat are in factories, not {locked}");
    let has = ledger.has(world.coordinator.name());
    let left = start - Amount::from_sat(locked) - ledger.fees();
    ensure!(has == left, "the coordinator has {has}, not {left}");
    let fundings = ledger
        .onchain()
        .iter()
        .filter(|tx| tx.kind == "funding")
        .count();
    ensure!(
        fundings == factories.len(),
        "{fundings} fundings, not {}",
        factories.len()
    );
    let others = ledger
        .onchain()
        .iter()
        .filter(|tx| !["funding", "gift"].contains(&tx.kind.as_str()));
    let others: Vec<_> = others.collect();
    ensure!(others.is_empty(), "nobody should have published {others:?}");
    Ok(())
}

/// As [`sheet`], for a factory that is over: nothing is left in it.
pub fn settled(world: &World, factories: &[Export]) -> Result<Ledger> {
    let ledger = sheet(world, factories)?;
    let left = ledger.sum_of(&Owner::Factory);
    ensure!(left == Amount::ZERO, "{left} are still in a factory");
    let left = ledger.sum_of(&Owner::Channel);
    ensure!(
        left == Amount::ZERO,
        "{left} are still on the way out of a channel"
    );
    Ok(ledger)
}
