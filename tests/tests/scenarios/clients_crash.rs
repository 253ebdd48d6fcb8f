//! A client is killed right after each thing it stores, and started again.

use anyhow::{Result, ensure};
use bitcoin::Amount;
use scenarios::world::{COORDINATOR_COINS, World};

use crate::money;

/// The others get their factory; the one that was killed is in it, with its kit, or in none.
fn killed_at(point: &str) -> Result<()> {
    let mut world = World::start_with(&format!("client_{point}"), |coordinator| {
        coordinator.configure("ceremony.join_seconds", 8)?;
        coordinator.configure("ceremony.step_seconds", 8)
    })?;
    world.add_clients(2)?;
    let victim = world.add_client_with(&[("SUPERSCALAR_FAULT", point)])?;
    world.join(&[0, 1, victim])?;
    let mark = world.coordinator.mark()?;
    world.begin(&[])?;
    world.client_mut(victim)?.wait_until_ended()?;
    world.client_mut(victim)?.start()?;
    let created = world.funded_after(mark)?;
    world.confirm(&created)?;
    world.usable_for(&created, &[0, 1])?;
    let export = world.export(&created)?;
    let id = world.id_of(world.client(victim)?)?;
    if export.clients().any(|client| client.id == id) {
        world.usable_for(&created, &[victim])?;
        ensure!(
            !world
                .client_export(victim, &created)?
                .transactions
                .is_empty(),
            "no kit"
        );
    }
    let all = world.coordinator.events()?;
    ensure!(
        !all.iter().any(|event| event.is("blamed")),
        "a crash is no guilt"
    );
    money::funded(&world, &[export], COORDINATOR_COINS)
}

#[test]
fn join_stored() -> Result<()> {
    killed_at("join_stored")
}

#[test]
fn guard_stored() -> Result<()> {
    killed_at("guard_stored")
}

#[test]
fn kit_stored() -> Result<()> {
    killed_at("kit_stored")
}

#[test]
fn acked() -> Result<()> {
    killed_at("acked")
}

#[test]
fn channel_expected() -> Result<()> {
    killed_at("channel_expected")
}

#[test]
fn channel_opened() -> Result<()> {
    killed_at("channel_opened")
}

/// An exit goes on where it was.
#[test]
fn exit_published() -> Result<()> {
    let mut world = World::start("client_exit_published")?;
    world.add_clients(2)?;
    world.fund_clients(&[0], Amount::from_sat(60_000))?;
    world.join(&[0, 1])?;
    // A life that does not end while it leaves: nobody else closes its channel.
    let created = world.create(&["--set", "active=900"])?;
    world.usable_for(&created, &[0, 1])?;
    let export = world.export(&created)?;
    world.client_mut(0)?.terminate()?;
    world
        .client_mut(0)?
        .start_with(&[("SUPERSCALAR_FAULT", "exit_published:2")])?;
    world
        .client(0)?
        .json(&["exit", &created.factory, "--yes", "--background"])?;
    // The first transaction confirms; the second is published, and that is the end.
    world.drive_to_death(0, 0)?;
    world.client_mut(0)?.start()?;
    let leaf = world.drive(0, 0, |event| event.is("leaf_confirmed"), |_| {})?;
    let path = world.client_export(0, &created)?;
    let last = path.transactions.iter().find(|tx| tx.kind == "leaf");
    ensure!(
        last.is_some_and(|tx| tx.txid.to_string() == leaf.text("txid")),
        "{leaf}"
    );
    let ledger = money::sheet(&world, &[export])?;
    let nodes = ledger
        .onchain()
        .iter()
        .filter(|tx| ["static", "kickoff", "state", "leaf"].contains(&tx.kind.as_str()));
    let own = path.transactions.iter().filter(|tx| tx.is_node()).count();
    ensure!(nodes.count() == own, "not exactly the path is on the chain");
    Ok(())
}
