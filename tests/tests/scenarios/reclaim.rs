//! The classic policy: clients are out before the deadline, the coordinator takes the rest.

use anyhow::{Result, ensure};
use bitcoin::Amount;
use scenarios::world::World;

use crate::money;

const FEE_COIN: Amount = Amount::from_sat(60_000);
/// What each has on Lightning.
const BALANCE: u64 = 50_000;

fn world(name: &str, clients: usize) -> Result<World> {
    let mut world = World::start(name)?;
    for index in 0..clients {
        let mut client = world.new_client(&format!("client-{index}"))?;
        client.configure("limits.allow_lsp_reclaim", true)?;
        client.start()?;
        client.wait_for("connected")?;
        world.clients.push(client);
    }
    Ok(world)
}

#[test]
fn clients_leave_and_the_coordinator_sweeps() -> Result<()> {
    let mut world = world("reclaim", 5)?;
    let everybody: Vec<usize> = (0..5).collect();
    world.fund_clients(&everybody, FEE_COIN)?;
    world.join(&everybody)?;
    let created = world.create(&["--expiry", "lsp-reclaim"])?;
    world.usable_for(&created, &everybody)?;
    let export = world.export(&created)?;
    ensure!(
        export.expiry_policy == "lsp_reclaim",
        "{}",
        export.expiry_policy
    );
    world.coordinator_pays(&everybody, BALANCE)?;
    // 0, 1 and 2 leave in time; 3 and 4 stay away.
    let leaving = [0, 1, 2];
    for index in leaving {
        world
            .client(index)?
            .json(&["exit", &created.factory, "--yes", "--background"])?;
    }
    for index in leaving {
        world.drive(index, 0, |event| event.is("leaf_confirmed"), |_| {})?;
    }
    world.mine_until(&export, |world| {
        Ok(world.all_done(&created, &leaving)? && world.left_in(&export)? == 0)
    })?;
    let ledger = money::settled(&world, std::slice::from_ref(&export))?;
    for index in leaving {
        let name = format!("client-{index}");
        let fees: u64 = ledger
            .onchain()
            .iter()
            .filter(|tx| tx.by.as_deref() == Some(&name))
            .map(|tx| tx.fee_sat)
            .sum();
        let due = FEE_COIN + Amount::from_sat(BALANCE) - Amount::from_sat(fees);
        ensure!(
            ledger.has(&name) == due,
            "{name} has {}, not {due}",
            ledger.has(&name)
        );
    }
    Ok(())
}

/// Without fee coins, and without saying yes, nobody is taken into such a factory.
#[test]
fn only_with_fee_coins_and_consent() -> Result<()> {
    let mut world = world("reclaim_consent", 3)?;
    world.fund_clients(&[0, 1], FEE_COIN)?;
    let unasked = world.add_client_with(&[])?;
    world.client(unasked)?.wait_for("connected")?;
    world.fund_clients(&[unasked], FEE_COIN)?;
    world.join(&[0, 1, 2, unasked])?;
    let created = world.create(&["--expiry", "lsp-reclaim"])?;
    world.usable_for(&created, &[0, 1])?;
    let export = world.export(&created)?;
    let members: Vec<_> = export.clients().map(|client| client.id.as_str()).collect();
    ensure!(members.len() == 2, "{} members", members.len());
    for index in [2, unasked] {
        let id = world.id_of(world.client(index)?)?;
        ensure!(!members.contains(&id), "client {index} is a member");
    }
    money::funded(&world, &[export], scenarios::world::COORDINATOR_COINS)
}

/// A coin that does not pay for the way out is none.
#[test]
fn only_with_coins_that_suffice() -> Result<()> {
    let mut world = world("reclaim_poor", 3)?;
    world.fund_clients(&[0, 1], FEE_COIN)?;
    world.fund_clients(&[2], Amount::from_sat(1_000))?;
    world.join(&[0, 1, 2])?;
    let created = world.create(&["--expiry", "lsp-reclaim"])?;
    world.usable_for(&created, &[0, 1])?;
    let refused = world.client(2)?.wait_for("refused")?;
    ensure!(refused.text("found").contains("way out"), "{refused}");
    let export = world.export(&created)?;
    let poor = world.id_of(world.client(2)?)?;
    ensure!(
        export.clients().all(|client| client.id != poor),
        "client 2 is a member"
    );
    money::funded(&world, &[export], scenarios::world::COORDINATOR_COINS)
}
