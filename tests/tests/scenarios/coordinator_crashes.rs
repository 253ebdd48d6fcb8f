//! The coordinator is killed right after each thing it stores, and started again.

use anyhow::{Result, ensure};
use scenarios::world::{COORDINATOR_COINS, Created, World};

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
    let created = match point {
        "confirmed_stored" => created(&world)?,
        _ => {
            let created = world.funded_after(0)?;
            world.confirm(&created)?;
            created
        }
    };
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

/// The factory, when its funding was confirmed before the crash.
fn created(world: &World) -> Result<Created> {
    let kit = world.client(0)?.wait_for("kit_stored")?;
    let factory = kit.text("factory").to_owned();
    let export = scenarios::export::Export::parse(&world.client(0)?.json(&["export", &factory])?)?;
    Ok(Created {
        factory,
        funding: export.funding.txid,
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
    funding_signed_stored
    funding_broadcast
    confirmed_stored
}
