//! Clients that leave by themselves.

use anyhow::{Context, Result, ensure};
use bitcoin::Amount;
use scenarios::ledger::Owner;
use scenarios::world::World;

use crate::money;

/// What a client needs for its own way out, and then some.
const FEE_COIN: Amount = Amount::from_sat(60_000);

/// One of eight leaves to its confirmed leaf: exactly its path is published, its children paid by
/// itself alone.
#[test]
fn one_leaves_to_its_leaf() -> Result<()> {
    let mut world = World::start("exit_one")?;
    world.add_clients(8)?;
    world.fund_clients(&[5], FEE_COIN)?;
    let everybody: Vec<usize> = (0..8).collect();
    world.join(&everybody)?;
    let created = world.create(&[])?;
    world.usable_for(&created, &everybody)?;
    let export = world.export(&created)?;
    let mark = world.client(5)?.mark()?;
    world
        .client(5)?
        .json(&["exit", &created.factory, "--yes", "--background"])?;
    world.drive(5, mark, |event| event.is("leaf_confirmed"), |_| {})?;

    let ledger = money::sheet(&world, std::slice::from_ref(&export))?;
    let id = world.id_of(world.client(5)?)?;
    let member = export
        .clients()
        .find(|client| client.id == id)
        .context("a member")?;
    for txid in &member.path {
        ensure!(
            ledger.onchain().iter().any(|tx| tx.txid == *txid),
            "{txid} is not on the chain"
        );
    }
    let nodes = ledger
        .onchain()
        .iter()
        .filter(|tx| export.transaction(&tx.txid).is_some())
        .count();
    ensure!(
        nodes == member.path.len() && nodes == 3,
        "{nodes} transactions of the tree on the chain"
    );
    // The tree itself pays no fee; its children do, from the client's coin and nobody else's.
    ensure!(
        ledger.sum_of(&Owner::Factory).to_sat() == export.funding.amount_sat,
        "the tree lost money"
    );
    let children: Vec<_> = ledger
        .onchain()
        .iter()
        .filter(|tx| tx.kind == "fee_child")
        .collect();
    ensure!(
        children.len() == nodes,
        "{} children for {nodes} transactions",
        children.len()
    );
    let fees: u64 = children.iter().map(|tx| tx.fee_sat).sum();
    ensure!(
        ledger.has("client-5") == FEE_COIN - Amount::from_sat(fees),
        "fees do not add up"
    );
    ensure!(fees > 0, "somebody else paid");
    Ok(())
}

/// All leave; the coordinator takes its stocks at `q`; the channels' timeouts pay the clients at `T`.
#[test]
fn all_leave_and_are_paid_at_expiry() -> Result<()> {
    let mut world = World::start("exit_all")?;
    world.add_clients(4)?;
    let everybody: Vec<usize> = (0..4).collect();
    world.fund_clients(&everybody, FEE_COIN)?;
    world.join(&everybody)?;
    let created = world.create(&[])?;
    world.usable_for(&created, &everybody)?;
    let export = world.export(&created)?;
    for index in &everybody {
        world
            .client(*index)?
            .json(&["exit", &created.factory, "--yes", "--background"])?;
    }
    for index in &everybody {
        world.drive(*index, 0, |event| event.is("leaf_confirmed"), |_| {})?;
    }
    world.node.mine_until(export.expiry_height)?;
    // The stocks wait for `q` after their leaf, the channels for T.
    world.mine_until(&export, |world| {
        Ok(world.all_done(&created, &everybody)? && world.left_in(&export)? == 0)
    })?;
    let ledger = money::settled(&world, std::slice::from_ref(&export))?;
    for index in &everybody {
        let name = format!("client-{index}");
        let spent: u64 = ledger
            .onchain()
            .iter()
            .filter(|tx| tx.by.as_deref() == Some(&name))
            .map(|tx| tx.fee_sat)
            .sum();
        let due = FEE_COIN + world.capacity(&export, *index)? - Amount::from_sat(spent);
        ensure!(
            ledger.has(&name) == due,
            "{name} has {}, not {due}",
            ledger.has(&name)
        );
        ensure!(spent < 30_000, "{name} paid {spent} sat of fees");
    }
    Ok(())
}
