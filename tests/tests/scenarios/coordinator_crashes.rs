//! The coordinator is killed right after each thing it stores, and started again.

use std::path::Path;

use anyhow::{Result, ensure};
use scenarios::world::{COORDINATOR_COINS, Created, World};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, SqliteConnection};

use crate::money;

const CLIENTS: [usize; 3] = [0, 1, 2];

/// After the restart there is one factory of all clients, and one funding.
fn killed_at(point: &str) -> Result<()> {
    let mut world = World::start(&format!("coordinator_{point}"))?;
    world.add_clients(CLIENTS.len())?;
    world.coordinator.terminate()?;
    world
        .coordinator
        .start_with(&[("SUPERSCALAR_FAULT", point)])?;
    world.join(&CLIENTS)?;
    // The answer may die with the coordinator.
    let _ = world.begin(&[]);
    if point == "confirmed_stored" {
        world.coordinator.wait_for("funding_broadcast")?;
        world.mine(1)?;
    }
    world.coordinator.wait_until_ended()?;
    world.coordinator.start()?;
    world.coordinator.wait_for("ready")?;
    if point == "pins_stored" {
        // Nobody was invited yet and the operator got no answer: the pins are free, it is for him to ask again.
        world.coordinator.wait_for("ceremony_failed")?;
        world.join(&CLIENTS)?;
        world.begin(&[])?;
    }
    let created = match point {
        // Broadcast or even confirmed before: only the clients tell which factory it is.
        "funding_broadcast" | "confirmed_stored" => created(&world)?,
        _ => world.funded_after(0)?,
    };
    if point == "confirmed_stored" {
        let shown = world
            .coordinator
            .json(&["factory", "show", &created.factory])?;
        ensure!(shown["state"] == "usable", "{shown}");
    } else {
        world.confirm(&created)?;
    }
    world.usable_for(&created, &CLIENTS)?;
    let export = world.export(&created)?;
    ensure!(
        export.clients().count() == CLIENTS.len(),
        "{} members",
        export.clients().count()
    );
    // Several fundings, or another one than the clients hold, would show here.
    money::funded(&world, &[export], COORDINATOR_COINS)
}

/// The factory whose kit a client holds.
fn created(world: &World) -> Result<Created> {
    let kit = world.client(0)?.wait_for("kit_stored")?;
    let factory = kit.text("factory").to_owned();
    let export = scenarios::export::Export::parse(&world.client(0)?.json(&["export", &factory])?)?;
    Ok(Created {
        factory,
        funding: export.funding.txid,
    })
}

/// A channel that stood when the coordinator died does not stand when it comes back: nothing is funded without it.
#[test]
fn ready_but_a_channel_was_lost_meanwhile() -> Result<()> {
    let mut world = World::start("coordinator_ready_lost")?;
    world.add_clients(CLIENTS.len())?;
    world.coordinator.terminate()?;
    world
        .coordinator
        .start_with(&[("SUPERSCALAR_FAULT", "ready_stored")])?;
    world.join(&CLIENTS)?;
    let _ = world.begin(&[]);
    world.coordinator.wait_until_ended()?;
    lose_a_channel(&world.coordinator.data().join("channels.sqlite"))?;
    world.coordinator.start()?;
    world.coordinator.wait_for("attempt_failed")?;
    let created = world.funded_after(0)?;
    world.confirm(&created)?;
    world.usable_for(&created, &CLIENTS)?;
    let export = world.export(&created)?;
    money::funded(&world, &[export], COORDINATOR_COINS)
}

/// As a close leaves it that the node took in before it died.
fn lose_a_channel(store: &Path) -> Result<()> {
    let options = SqliteConnectOptions::new().filename(store);
    let lost = "UPDATE entry SET value = CAST(replace(CAST(value AS TEXT), '\"stage\":\"Open\"', '\"stage\":\"Closed\"') AS BLOB) \
         WHERE subspace = 'leaves' AND name = (SELECT min(name) FROM entry WHERE subspace = 'leaves')";
    tokio::runtime::Runtime::new()?.block_on(async {
        let mut store = SqliteConnection::connect_with(&options).await?;
        let done = sqlx::query(lost).execute(&mut store).await?;
        ensure!(done.rows_affected() == 1, "no leaf");
        Ok(store.close().await?)
    })
}

macro_rules! killed_at {
    ($($point:ident)*) => {
        $(
            #[test]
            fn $point() -> Result<()> {
                killed_at(stringify!($point))
            }
        )*
    };
}

killed_at! {
    pins_stored
    invited
    joins_stored
    proposal_stored
    finals_stored
    channels_opening
    ready_stored
    funding_signed_stored
    funding_broadcast
    confirmed_stored
}
