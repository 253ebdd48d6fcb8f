//! Either side is killed in the middle of a move, a handover, a birth or a reap, and comes back.

use anyhow::{Result, ensure};
use scenarios::ladder::Ladder;

use crate::ladder::long;
use crate::ladder_clients::{all_have, stop_births, town};
use crate::money;

const EVERYBODY: [usize; 3] = [0, 1, 2];

/// All have moved, and the factory comes back whole.
fn all_is_well(ladder: &mut Ladder, first: &str) -> Result<()> {
    // What is stored and not told yet at a crash is not told afterwards: the reap shows that all keys are there.
    ladder.live("the reap", ladder.spacing() * 4, |ladder| {
        Ok(ladder.tally.factories[first].swept_sat > 0)
    })?;
    all_have(ladder, &EVERYBODY)?;
    let life = &ladder.tally.factories[first];
    ensure!(
        life.published.is_empty() && life.loss_sat.is_none(),
        "{life:?}"
    );
    stop_births(ladder)?;
    let ledger = money::sheet(&ladder.world, &ladder.exports())?;
    ensure!(
        ladder.reaped(&ledger).iter().any(|id| *id == first),
        "it was not one sweep"
    );
    Ok(())
}

fn client_dies_at(point: &str) -> Result<()> {
    let (mut ladder, first) = town(&format!("ladder_client_{point}"), 3)?;
    ladder.world.client_mut(2)?.terminate()?;
    ladder
        .world
        .client_mut(2)?
        .start_with(&[("SUPERSCALAR_FAULT", point)])?;
    ladder.world.client(2)?.wait_for("connected")?;
    ladder.live_to_death(2, ladder.spacing() * 4)?;
    ladder.world.client_mut(2)?.start()?;
    all_is_well(&mut ladder, &first)
}

fn coordinator_dies_at(point: &str) -> Result<()> {
    let (mut ladder, first) = town(
        &format!("ladder_coordinator_{}", point.replace(':', "_")),
        3,
    )?;
    ladder.kill_coordinator()?;
    ladder.coordinator_returns(&[("SUPERSCALAR_FAULT", point)])?;
    ladder.live_to_coordinators_death(ladder.spacing() * 4)?;
    ladder.coordinator_returns(&[])?;
    all_is_well(&mut ladder, &first)
}

#[test]
fn client_at_handover_sent() -> Result<()> {
    client_dies_at("handover_sent")
}

#[test]
fn coordinator_at_handover_stored() -> Result<()> {
    coordinator_dies_at("handover_stored")
}

#[test]
fn client_at_every_other_point() -> Result<()> {
    if !long() {
        return Ok(());
    }
    let points = [
        "part_stored",
        "part_sent",
        "handover_stored",
        "handover_taken",
    ];
    points.into_iter().try_for_each(client_dies_at)
}

#[test]
fn coordinator_at_every_other_point() -> Result<()> {
    if !long() {
        return Ok(());
    }
    let points = [
        "ladder_invited",
        "part_taken:3",
        "handover_stored:3",
        "reap_stored",
    ];
    points.into_iter().try_for_each(coordinator_dies_at)
}
