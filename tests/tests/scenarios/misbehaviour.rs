//! Clients that send what they should not.

use anyhow::{Result, ensure};
use scenarios::world::{COORDINATOR_COINS, World};

use crate::money;

fn world(name: &str) -> Result<World> {
    World::start_with(name, |coordinator| {
        coordinator.configure("ceremony.join_seconds", 6)?;
        coordinator.configure("ceremony.step_seconds", 6)
    })
}

/// The one with the bad signature is blamed, alone, and the others finish without it.
#[test]
fn a_bad_partial_is_blamed() -> Result<()> {
    let mut world = world("bad_partial")?;
    world.add_clients(4)?;
    let bad = world.add_client_with(&[("SUPERSCALAR_MISBEHAVE", "bad_partial")])?;
    world.join(&[0, 1, 2, 3, bad])?;
    let created = world.create(&[])?;
    let id = world.id_of(world.client(bad)?)?.to_owned();
    let all = world.coordinator.events()?;
    let blamed: Vec<_> = all.iter().filter(|event| event.is("blamed")).collect();
    ensure!(
        blamed.len() == 1 && blamed.iter().all(|event| event.text("client") == id),
        "{blamed:?}"
    );
    let left_out: Vec<_> = all
        .iter()
        .filter(|event| event.is("client_left_out"))
        .collect();
    ensure!(
        left_out.len() == 1
            && left_out
                .iter()
                .all(|event| event.text("reason") == "guilty"),
        "{left_out:?}"
    );
    world.usable_for(&created, &[0, 1, 2, 3])?;
    let export = world.export(&created)?;
    ensure!(
        export.clients().count() == 4 && !export.clients().any(|client| client.id == id),
        "wrong members"
    );
    money::funded(&world, &[export], COORDINATOR_COINS)
}

/// What is refused harms nobody, the sender included.
fn harmless(name: &str, misbehaviour: &str, refused: bool) -> Result<()> {
    let mut world = world(name)?;
    world.add_clients(2)?;
    let odd = world.add_client_with(&[("SUPERSCALAR_MISBEHAVE", misbehaviour)])?;
    world.join(&[0, 1, odd])?;
    let created = world.create(&[])?;
    world.usable_for(&created, &[0, 1, odd])?;
    let id = world.id_of(world.client(odd)?)?;
    let all = world.coordinator.events()?;
    let mut refusals = all.iter().filter(|event| event.is("message_refused"));
    if refused {
        let refusal = refusals.next();
        ensure!(
            refusal.is_some_and(|event| event.text("client") == id),
            "{refusal:?}"
        );
    } else {
        let refusal = refusals.next();
        ensure!(refusal.is_none(), "{refusal:?}");
    }
    ensure!(
        !all.iter().any(|event| event.is("client_left_out")),
        "somebody was left out"
    );
    let export = world.export(&created)?;
    ensure!(
        export.clients().count() == 3,
        "{} members",
        export.clients().count()
    );
    money::funded(&world, &[export], COORDINATOR_COINS)
}

#[test]
fn garbage_is_refused() -> Result<()> {
    harmless("garbage", "garbage", true)
}

#[test]
fn foreign_messages_are_refused() -> Result<()> {
    harmless("foreign", "foreign", true)
}

#[test]
fn the_same_bytes_again_are_harmless() -> Result<()> {
    harmless("duplicate", "duplicate", false)
}

/// A message of an attempt that is over gets a typed error; its sender is welcome in the next factory.
#[test]
fn late_messages_are_refused() -> Result<()> {
    let mut world = world("late")?;
    world.add_clients(2)?;
    let late = world.add_client_with(&[("SUPERSCALAR_MISBEHAVE", "late")])?;
    world.join(&[0, 1, late])?;
    let first = world.create(&[])?;
    world.usable_for(&first, &[0, 1])?;
    let id = world.id_of(world.client(late)?)?.to_owned();
    world.join(&[0, 1, late])?;
    let mark = world.coordinator.mark()?;
    world.begin(&["--clients", "3"])?;
    world
        .coordinator
        .wait_after(mark, "the late message's refusal", |event| {
            event.is("message_refused") && event.text("client") == id
        })?;
    let second = world.funded_after(mark)?;
    world.confirm(&second)?;
    world.usable_for(&second, &[0, 1])?;
    let exports = [world.export(&first)?, world.export(&second)?];
    money::funded(&world, &exports, COORDINATOR_COINS)
}

/// Whoever cannot prove its key gets no session; the others are served.
fn no_session(name: &str, misbehaviour: &str) -> Result<()> {
    let mut world = world(name)?;
    world.add_clients(2)?;
    let impostor = world.add_client_with(&[("SUPERSCALAR_MISBEHAVE", misbehaviour)])?;
    world.coordinator.wait_for("auth_refused")?;
    let refused = world.client(impostor)?.wait_for("disconnected")?;
    ensure!(!refused.text("reason").is_empty(), "{refused}");
    world.join(&[0, 1])?;
    let created = world.create(&[])?;
    world.usable_for(&created, &[0, 1])?;
    let export = world.export(&created)?;
    ensure!(
        export.clients().count() == 2,
        "{} members",
        export.clients().count()
    );
    money::funded(&world, &[export], COORDINATOR_COINS)
}

#[test]
fn a_wrong_answer_is_refused() -> Result<()> {
    no_session("wrong_auth", "wrong_auth")
}

#[test]
fn a_replayed_answer_is_refused() -> Result<()> {
    no_session("replay_auth", "replay_auth")
}
