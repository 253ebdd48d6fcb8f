//! The funding leaves the chain, and comes back.

use anyhow::{Result, ensure};
use bitcoin::Amount;
use scenarios::world::{COORDINATOR_COINS, World};

use crate::money;

#[test]
fn funding_reorged_out_and_back() -> Result<()> {
    let mut world = World::start("reorg_funding")?;
    world.add_clients(3)?;
    world.join(&[0, 1, 2])?;
    let created = world.create(&[])?;
    world.usable_for(&created, &[0, 1, 2])?;
    let export = world.export(&created)?;
    money::funded(&world, std::slice::from_ref(&export), COORDINATOR_COINS)?;

    world.node.reorg(1, 2)?;
    let gone = |event: &scenarios::event::Event| {
        event.is("factory_unconfirmed") && event.text("factory") == created.factory
    };
    world.coordinator.wait("the factory unconfirmed", gone)?;
    let mut marks = Vec::new();
    for client in &world.clients {
        client.wait("the factory unconfirmed", gone)?;
        marks.push(client.mark()?);
    }
    // Nothing of it is confirmed: all coins are the coordinator's again, but for what the mempool does.
    let ledger = world.ledger(vec![export.clone()])?;
    ensure!(
        ledger.has(world.coordinator.name()) == COORDINATOR_COINS,
        "the coins are not back"
    );
    ensure!(
        ledger.sum_of(&scenarios::ledger::Owner::Factory) == Amount::ZERO,
        "the factory has coins"
    );

    let mark = world.coordinator.mark()?;
    ensure!(
        world.node.mempool()?.contains(&created.funding),
        "the funding is not in the mempool"
    );
    world.mine(1)?;
    let back = |event: &scenarios::event::Event| {
        event.is("factory_usable") && event.text("factory") == created.factory
    };
    world
        .coordinator
        .wait_after(mark, "the factory usable again", back)?;
    for (client, mark) in world.clients.iter().zip(marks) {
        client.wait_after(mark, "the factory usable again", back)?;
    }
    money::funded(&world, &[export], COORDINATOR_COINS)
}
