//! A factory from the first invitation to a usable channel for everybody.

use std::collections::HashSet;

use anyhow::{Result, ensure};
use scenarios::world::{COORDINATOR_COINS, World};

use crate::money;

fn build(name: &str, clients: usize) -> Result<()> {
    let mut world = World::start(name)?;
    world.add_clients(clients)?;
    let everybody: Vec<usize> = (0..clients).collect();
    world.join(&everybody)?;
    let created = world.create(&[])?;
    world.usable_for(&created, &everybody)?;
    let export = world.export(&created)?;
    ensure!(
        export.clients().count() == clients,
        "{} members",
        export.clients().count()
    );
    ensure!(export.funding.txid == created.funding, "another funding");
    let ids: HashSet<_> = export.clients().map(|client| client.id.clone()).collect();
    for index in everybody {
        let own = world.client_export(index, &created)?;
        let id = world.id_of(world.client(index)?)?;
        ensure!(ids.contains(id), "client {index} is not a member");
        // What a client holds is, byte for byte, a part of what the coordinator holds.
        for tx in &own.transactions {
            let theirs = export.transaction(&tx.txid).map(|tx| &tx.raw);
            ensure!(
                theirs == Some(&tx.raw),
                "client {index} has another {} {}",
                tx.kind,
                tx.txid
            );
        }
        let path = &own
            .clients()
            .find(|client| client.id == id)
            .map(|client| client.path.clone());
        ensure!(
            path.as_ref().is_some_and(|path| !path.is_empty()),
            "client {index} has no path"
        );
    }
    money::funded(&world, &[export], COORDINATOR_COINS)
}

#[test]
fn two_clients() -> Result<()> {
    build("happy_2", 2)
}

#[test]
fn eight_clients() -> Result<()> {
    build("happy_8", 8)
}

#[test]
fn thirty_three_clients() -> Result<()> {
    build("happy_33", 33)
}

/// Two ceremonies after another use other coins, and a client may be in both.
#[test]
fn one_factory_after_another() -> Result<()> {
    let mut world = World::start("happy_twice")?;
    world.add_clients(3)?;
    world.join(&[0, 1])?;
    let first = world.create(&[])?;
    world.usable_for(&first, &[0, 1])?;
    world.join(&[0, 1, 2])?;
    let second = world.create(&["--clients", "3"])?;
    world.usable_for(&second, &[0, 1, 2])?;
    let (first, second) = (world.export(&first)?, world.export(&second)?);
    ensure!(
        second.clients().count() == 3,
        "{} members",
        second.clients().count()
    );
    let keys = |export: &scenarios::export::Export| -> HashSet<String> {
        export
            .clients()
            .map(|client| client.factory_pubkey.clone())
            .collect()
    };
    ensure!(
        keys(&first).is_disjoint(&keys(&second)),
        "a factory key was used twice"
    );
    money::funded(&world, &[first, second], COORDINATOR_COINS)
}
