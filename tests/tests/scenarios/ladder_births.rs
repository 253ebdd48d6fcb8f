//! Who makes the ladder's factories, and what it says of them.

use anyhow::{Result, ensure};
use scenarios::ladder::{Days, Ladder};

/// The shortest ladder: one active day, three dying ones.
pub(crate) const SHORT: Days = Days {
    rungs: 4,
    spacing: 9,
};

/// Two coordinators would sign for one wallet's coins and one ladder: the second refuses, and the first goes on.
#[test]
fn two_coordinators_on_one_database() -> Result<()> {
    let mut ladder = Ladder::start("ladder_two_coordinators", SHORT)?;
    let second = ladder.world.coordinator.command(&["run"])?;
    second.refused(second.code, &["another coordinator"])?;
    ensure!(second.code != 0, "{second}");
    ladder.world.add_clients(2)?;
    ladder.cohort(&[0, 1])?;
    Ok(())
}

/// What the operator is shown is what happens.
#[test]
fn show_preview_and_forecast() -> Result<()> {
    let mut ladder = Ladder::start("ladder_shown", SHORT)?;
    ladder.world.add_clients(2)?;
    let coordinator = &ladder.world.coordinator;
    let before = coordinator.json(&["ladder", "preview"])?;
    ensure!(
        !before["problem"].as_str().unwrap_or_default().is_empty(),
        "{before}"
    );
    let id = ladder.cohort(&[0, 1])?;
    let coordinator = &ladder.world.coordinator;
    let shown = coordinator.json(&["ladder", "show"])?;
    let rows = shown["factories"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    ensure!(
        rows.len() == 1 && rows[0]["clients"] == 2 && rows[0]["stage"] == "active",
        "{shown}"
    );
    ensure!(shown.to_string().contains(&id), "{shown}");
    let forecast = coordinator.json(&["ladder", "forecast", "--days", "6"])?;
    let days = forecast["days"].as_array().map(Vec::len);
    ensure!(days.is_some_and(|days| days >= 6), "{forecast}");
    Ok(())
}
