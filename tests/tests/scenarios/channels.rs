//! Step 7: channels on leaves that are not on the chain yet; who fails there costs a new attempt without it, and leaves nothing half open.

use anyhow::{Result, ensure};
use scenarios::service::Service;
use scenarios::world::{COORDINATOR_COINS, World};
use serde_json::Value;

use crate::money;

fn channels(service: &Service, words: &[&str]) -> Result<Vec<Value>> {
    let answer = service.json(words)?;
    let list = answer["channels"].as_array().cloned();
    Ok(list.unwrap_or_default())
}

/// Channels that stand, on both sides, are exactly those of the members.
fn exactly(world: &World, members: &[usize], others: &[usize]) -> Result<()> {
    let ours = channels(&world.coordinator, &["node", "channels"])?;
    ensure!(
        ours.len() == members.len(),
        "the coordinator has {ours:#?} for {members:?}"
    );
    for index in members {
        let theirs = channels(world.client(*index)?, &["channels"])?;
        ensure!(theirs.len() == 1, "client {index} has {theirs:#?}");
    }
    for index in others {
        let theirs = channels(world.client(*index)?, &["channels"])?;
        ensure!(theirs.is_empty(), "client {index} has {theirs:#?}");
    }
    Ok(())
}

#[test]
fn stand_before_the_funding_is_broadcast() -> Result<()> {
    let mut world = World::start("channels_stand")?;
    world.add_clients(3)?;
    world.join(&[0, 1, 2])?;
    let mark = world.coordinator.mark()?;
    world.begin(&[])?;
    let created = world.funded_after(mark)?;
    exactly(&world, &[0, 1, 2], &[])?;
    let events = world.coordinator.events()?;
    let place = |name: &str| events.iter().rposition(|event| event.is(name));
    ensure!(
        place("channel_opened") < place("funding_broadcast") && place("channel_opened").is_some(),
        "the funding came first"
    );
    // Nothing is paid over a channel of a factory that is not confirmed.
    let invoice = world.invoice(0, 1_000)?;
    let refused = world.coordinator.command(&["node", "pay", &invoice])?;
    ensure!(refused.code != 0, "paid over an unconfirmed factory");
    world.confirm(&created)?;
    world.usable_for(&created, &[0, 1, 2])?;
    world.coordinator_pays(&[0], 1_000)?;
    world.lightning_becomes(0, 1_000_000)
}

/// One that never opens its channel, or finds it is not its leaf's.
fn costs_only_its_author(name: &str, misbehaviour: &str) -> Result<()> {
    let mut world = World::start_with(name, |coordinator| {
        coordinator.configure("ceremony.step_seconds", 6)
    })?;
    world.add_clients(3)?;
    let other = world.add_client_with(&[("SUPERSCALAR_MISBEHAVE", misbehaviour)])?;
    world.join(&[0, 1, 2, other])?;
    let created = world.create(&[])?;
    world.usable_for(&created, &[0, 1, 2])?;
    let export = world.export(&created)?;
    ensure!(export.clients().count() == 3, "the other is a member");
    exactly(&world, &[0, 1, 2], &[other])?;
    world.coordinator_pays(&[0, 1, 2], 10_000)?;
    money::funded(&world, &[export], COORDINATOR_COINS)
}

#[test]
fn silent_one_is_left_out() -> Result<()> {
    costs_only_its_author("channels_silent", "silent_before_channel")
}

#[test]
fn one_that_refuses_is_left_out() -> Result<()> {
    costs_only_its_author("channels_refused", "refuse_channel")
}

/// A coordinator that dies while channels are opened begins anew, and nothing half open is left.
#[test]
fn coordinator_killed_while_opening() -> Result<()> {
    let mut world = World::start("channels_killed")?;
    world.add_clients(3)?;
    world.coordinator.terminate()?;
    world
        .coordinator
        .start_with(&[("SUPERSCALAR_FAULT", "channels_opening")])?;
    world.join(&[0, 1, 2])?;
    let _ = world.begin(&[]);
    world.coordinator.wait_until_ended()?;
    world.coordinator.start()?;
    let created = world.funded_after(0)?;
    world.confirm(&created)?;
    world.usable_for(&created, &[0, 1, 2])?;
    exactly(&world, &[0, 1, 2], &[])?;
    world.coordinator_pays(&[0, 1, 2], 10_000)
}

/// The funding leaves the chain: nothing is paid over its channels until it is back.
#[test]
fn shut_in_a_reorg() -> Result<()> {
    let mut world = World::start("channels_reorg")?;
    world.add_clients(2)?;
    world.join(&[0, 1])?;
    let created = world.create(&[])?;
    world.usable_for(&created, &[0, 1])?;
    world.coordinator_pays(&[0], 10_000)?;
    let mark = world.coordinator.mark()?;
    world.node.reorg(1, 2)?;
    world
        .coordinator
        .wait_after(mark, "the factory unconfirmed", |event| {
            event.is("factory_unconfirmed")
        })?;
    world.client(0)?.wait_for("factory_unconfirmed")?;
    let invoice = world.invoice(0, 1_000)?;
    let refused = world.coordinator.command(&["node", "pay", &invoice])?;
    ensure!(refused.code != 0, "paid over an unconfirmed factory");
    let marks = (world.coordinator.mark()?, world.client(0)?.mark()?);
    world.mine(1)?;
    let usable = |event: &scenarios::event::Event| event.is("factory_usable");
    world.coordinator.wait_after(marks.0, "it usable", usable)?;
    world.client(0)?.wait_after(marks.1, "it usable", usable)?;
    let again = world.invoice(0, 2_000)?;
    world.coordinator.json(&["node", "pay", &again])?;
    world.lightning_becomes(0, 12_000_000)
}
