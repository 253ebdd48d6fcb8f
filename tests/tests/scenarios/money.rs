//! Assertions to the satoshi.

use anyhow::{Result, ensure};
use bitcoin::Amount;
use scenarios::export::Export;
use scenarios::ledger::{Ledger, Owner};
use scenarios::world::{World, number};

/// Every satoshi is accounted for: by the blocks' rewards, by the node's coins, and by the word of
/// every program that still runs.
pub fn sheet(world: &World, factories: &[Export]) -> Result<Ledger> {
    // What spends a coin and is in no block yet is counted by its owner, and not by the chain.
    if !world.node.mempool()?.is_empty() {
        world.mine_until_quiet()?;
    }
    let ledger = world.ledger(factories.to_vec())?;
    let difference = ledger.difference(&world.node)?;
    ensure!(difference == 0, "{difference} sat are missing");
    let height = world.node.height()?;
    if world.coordinator.process().is_ok() {
        world.coordinator_sees(height)?;
        let balance = world.coordinator.json(&["wallet", "balance"])?;
        let says = number(&balance, "confirmed_sat")?;
        let has = ledger.has(world.coordinator.name()).to_sat();
        ensure!(
            says == has,
            "the coordinator says {balance}, the chain says {has} sat"
        );
    }
    for (index, client) in world.clients.iter().enumerate() {
        if client.process().is_ok() {
            world.client_sees(index, height)?;
            let balance = client.json(&["balance"])?;
            let says = number(&balance, "confirmed_sat")? + number(&balance, "payouts_sat")?;
            let has = ledger.has(client.name()).to_sat();
            ensure!(
                says == has,
                "{} says {says} sat, the chain says {has}",
                client.name()
            );
        }
    }
    Ok(ledger)
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
