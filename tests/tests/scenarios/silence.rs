//! Clients that say nothing, at each step: the others go on without them.

use anyhow::{Result, ensure};
use scenarios::world::{COORDINATOR_COINS, World};

use crate::money;

/// Seconds to answer: what these tests wait for at most.
const SECONDS: i64 = 5;

fn left_out(name: &str, misbehaviour: &str, phase: &str, reason: &str) -> Result<()> {
    let mut world = World::start_with(name, |coordinator| {
        coordinator.configure("ceremony.join_seconds", SECONDS)?;
        coordinator.configure("ceremony.step_seconds", SECONDS)
    })?;
    world.add_clients(3)?;
    let silent = world.add_client_with(&[("SUPERSCALAR_MISBEHAVE", misbehaviour)])?;
    world.join(&[0, 1, 2, silent])?;
    let created = world.create(&[])?;
    let id = world.id_of(world.client(silent)?)?.to_owned();
    let event = world.coordinator.wait_for("client_left_out")?;
    ensure!(event.text("client") == id, "{event}");
    ensure!(
        event.text("reason") == reason && event.text("phase") == phase,
        "{event}"
    );
    let all = world.coordinator.events()?;
    let left_out = all
        .iter()
        .filter(|event| event.is("client_left_out"))
        .count();
    ensure!(left_out == 1, "{left_out} clients were left out");
    ensure!(
        !all.iter().any(|event| event.is("blamed")),
        "silence is no guilt"
    );
    world.usable_for(&created, &[0, 1, 2])?;
    let export = world.export(&created)?;
    ensure!(
        export.clients().count() == 3,
        "{} members",
        export.clients().count()
    );
    ensure!(
        !export.clients().any(|client| client.id == id),
        "the silent client is a member"
    );
    money::funded(&world, &[export], COORDINATOR_COINS)
}

#[test]
fn before_nonces() -> Result<()> {
    left_out(
        "silent_before_nonces",
        "silent_before_join",
        "joining",
        "left",
    )
}

#[test]
fn during_nonces() -> Result<()> {
    left_out(
        "silent_during_nonces",
        "silent_after_join",
        "confirming",
        "left",
    )
}

#[test]
fn after_nonces() -> Result<()> {
    left_out(
        "silent_after_nonces",
        "silent_after_proposal",
        "signing",
        "silent",
    )
}

#[test]
fn after_its_kit() -> Result<()> {
    left_out(
        "silent_after_kit",
        "silent_before_channel",
        "opening",
        "silent",
    )
}

/// With too few left there is no factory, and the coins are free again.
#[test]
fn too_few_left() -> Result<()> {
    let mut world = World::start_with("silent_too_few", |coordinator| {
        coordinator.configure("ceremony.join_seconds", SECONDS)
    })?;
    world.add_clients(1)?;
    let silent = world.add_client_with(&[("SUPERSCALAR_MISBEHAVE", "silent_before_join")])?;
    world.join(&[0, silent])?;
    world.begin(&[])?;
    let failed = world.coordinator.wait_for("ceremony_failed")?;
    ensure!(failed.text("reason") == "too_few_clients", "{failed}");
    // Nothing is pinned any more: the next one may use every coin. The silent one is invited again, in vain.
    world.add_clients(1)?;
    world.join(&[0, 2])?;
    let created = world.create(&["--clients", "3"])?;
    world.usable_for(&created, &[0, 2])?;
    let export = world.export(&created)?;
    money::funded(&world, &[export], COORDINATOR_COINS)
}
