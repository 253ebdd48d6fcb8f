//! The coordinator is gone for good: at `T` the timeouts pay everybody, to the satoshi.

use anyhow::{Context, Result, ensure};
use bitcoin::Amount;
use scenarios::bitcoind::Options;
use scenarios::export::Export;
use scenarios::world::{COORDINATOR_COINS, Created, World, number};

use crate::money;

/// What the timeout of the funding output pays a client, net of the timeout's own fee.
fn due(world: &World, export: &Export, index: usize) -> Result<Amount> {
    let id = world.id_of(world.client(index)?)?;
    let member = export
        .clients()
        .find(|client| client.id == id)
        .context("a member")?;
    let script = member
        .payout_script_pubkey
        .as_ref()
        .context("a payout script")?;
    let timeout = export
        .timeout(export.funding_outpoint())
        .context("the funding has a timeout")?;
    let mut payouts = timeout.outputs_of("payout").map(|(_, output)| output);
    let payout = payouts
        .find(|output| output.script_pubkey == *script)
        .context("a payout")?;
    Ok(Amount::from_sat(payout.amount_sat))
}

fn build(world: &mut World, clients: usize) -> Result<(Created, Export, Vec<usize>)> {
    world.add_clients(clients)?;
    let everybody: Vec<usize> = (0..clients).collect();
    world.join(&everybody)?;
    let created = world.create(&[])?;
    world.usable_for(&created, &everybody)?;
    let export = world.export(&created)?;
    money::funded(world, std::slice::from_ref(&export), COORDINATOR_COINS)?;
    Ok((created, export, everybody))
}

/// Nobody has a coin, nobody publishes anything before `T`: one transaction pays all.
#[test]
fn pay_those_who_stay_away() -> Result<()> {
    let mut world = World::start("timeouts_away")?;
    let (created, export, everybody) = build(&mut world, 8)?;
    let quotes = everybody
        .iter()
        .map(|index| {
            world
                .client(*index)?
                .json(&["quote-exit", &created.factory])
        })
        .collect::<Result<Vec<_>>>()?;
    world.coordinator.kill()?;
    world.node.mine_until(export.expiry_height - 1)?;
    for index in &everybody {
        world.client_sees(*index, export.expiry_height - 1)?;
    }
    ensure!(
        world.node.mempool()?.is_empty(),
        "somebody published before T"
    );
    world.mine_until(&export, |world| world.all_done(&created, &everybody))?;
    let ledger = money::settled(&world, std::slice::from_ref(&export))?;
    for index in everybody {
        let (has, due) = (
            ledger.has(&format!("client-{index}")),
            due(&world, &export, index)?,
        );
        ensure!(has == due, "client {index} was paid {has}, not {due}");
        // What was promised is the least over all timeouts; this one costs its many clients little.
        let promised = number(&quotes[index], "coverage_path_sat")?;
        let more = due
            .to_sat()
            .checked_sub(promised)
            .context("less than was promised")?;
        ensure!(more < 1_000, "{promised} sat were promised, {due} paid");
    }
    let paid = ledger
        .onchain()
        .iter()
        .filter(|tx| tx.kind == "timeout")
        .count();
    ensure!(paid == 1, "{paid} timeouts on the chain, one was enough");
    Ok(())
}

/// One has left before: its leaf mates and all others are paid by deeper timeouts.
#[test]
fn pay_leaf_mates_of_one_who_left() -> Result<()> {
    let mut world = World::start("timeouts_mates")?;
    world.add_clients(5)?;
    world.fund_clients(&[0], Amount::from_sat(60_000))?;
    let everybody: Vec<usize> = (0..5).collect();
    world.join(&everybody)?;
    let created = world.create(&[])?;
    world.usable_for(&created, &everybody)?;
    let export = world.export(&created)?;
    let mark = world.client(0)?.mark()?;
    world
        .client(0)?
        .json(&["exit", &created.factory, "--yes", "--background"])?;
    world.drive(0, mark, |event| event.is("leaf_confirmed"), |_| {})?;
    world.coordinator.kill()?;
    world.mine_until(&export, |world| world.all_done(&created, &everybody))?;
    let ledger = money::settled(&world, std::slice::from_ref(&export))?;
    for index in everybody {
        let name = format!("client-{index}");
        let fees: u64 = ledger
            .onchain()
            .iter()
            .filter(|tx| tx.by.as_deref() == Some(&name))
            .map(|tx| tx.fee_sat)
            .sum();
        // Who left had nothing on Lightning yet, and took just that.
        let capacity = match index {
            0 => Amount::ZERO,
            _ => world.capacity(&export, index)?,
        };
        // At least the channel, less what this client itself paid for; the stock's share is on top.
        let least = ledger.start_of(&name) + capacity - Amount::from_sat(fees);
        ensure!(
            ledger.has(&name) >= least,
            "{name} has {}, due were {least}",
            ledger.has(&name)
        );
        ensure!(fees < 30_000, "{name} paid {fees} sat of fees");
    }
    Ok(())
}

/// The mempool's floor is far over what the timeouts pay: a child of the payouts lifts them.
#[test]
fn pay_in_a_fee_spike_too() -> Result<()> {
    let mut world = World::start("timeouts_spike")?;
    let (created, export, everybody) = build(&mut world, 4)?;
    world.coordinator.kill()?;
    // 40 sat/vB to be relayed and to be mined; the timeouts carry 10.
    world.node.restart_with(Options {
        arguments: ["-minrelaytxfee=0.00040000", "-blockmintxfee=0.00040000"]
            .map(str::to_owned)
            .to_vec(),
        ..Options::default()
    })?;
    let timeout = export
        .timeout(export.funding_outpoint())
        .context("the funding has a timeout")?;
    world.node.mine_until(export.expiry_height)?;
    let refused = world
        .node
        .rpc("testmempoolaccept", serde_json::json!([[timeout.raw]]))?;
    ensure!(
        refused[0]["allowed"] == false,
        "the floor is not higher than the timeout's fee: {refused}"
    );
    world.mine_until(&export, |world| world.all_done(&created, &everybody))?;
    let ledger = money::settled(&world, std::slice::from_ref(&export))?;
    let mut lifted = Amount::ZERO;
    for index in everybody {
        let name = format!("client-{index}");
        let fees: u64 = ledger
            .onchain()
            .iter()
            .filter(|tx| tx.by.as_deref() == Some(&name))
            .map(|tx| tx.fee_sat)
            .sum();
        // 240 sat of the anchor help whoever makes the child.
        let anchor = if fees > 0 { 240 } else { 0 };
        let due = due(&world, &export, index)? - Amount::from_sat(fees) + Amount::from_sat(anchor);
        ensure!(
            ledger.has(&name) == due,
            "{name} has {}, not {due}",
            ledger.has(&name)
        );
        lifted += Amount::from_sat(fees);
    }
    ensure!(lifted > Amount::ZERO, "nobody paid for the spike");
    Ok(())
}
