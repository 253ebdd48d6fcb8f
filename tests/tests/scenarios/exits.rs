//! Clients that leave by themselves.

use anyhow::{Context, Result, ensure};
use bitcoin::Amount;
use scenarios::ledger::Owner;
use scenarios::world::World;

use crate::money;

/// What a client needs for its own way out, and then some.
const FEE_COIN: Amount = Amount::from_sat(60_000);
/// What each has on Lightning.
const BALANCE: u64 = 50_000;

/// One of eight leaves to its confirmed leaf: exactly its path is published, its children paid by itself alone. The coordinator ends the empty channel.
#[test]
fn one_leaves_to_its_leaf() -> Result<()> {
    let mut world = World::start("exit_one")?;
    world.add_clients(8)?;
    world.fund_clients(&[5], FEE_COIN)?;
    let everybody: Vec<usize> = (0..8).collect();
    world.join(&everybody)?;
    // A life that does not end while it leaves: nobody else closes its channel.
    let created = world.create(&["--set", "active=900"])?;
    world.usable_for(&created, &everybody)?;
    let export = world.export(&created)?;
    let mark = world.client(5)?.mark()?;
    world
        .client(5)?
        .json(&["exit", &created.factory, "--yes", "--background"])?;
    world.drive(5, mark, |event| event.is("leaf_confirmed"), |_| {})?;

    let ledger = money::sheet(&world, std::slice::from_ref(&export))?;
    let id = world.id_of(world.client(5)?)?;
    let member = export
        .clients()
        .find(|client| client.id == id)
        .context("a member")?;
    for txid in &member.path {
        ensure!(
            ledger.onchain().iter().any(|tx| tx.txid == *txid),
            "{txid} is not on the chain"
        );
    }
    let nodes = ledger
        .onchain()
        .iter()
        .filter(|tx| export.transaction(&tx.txid).is_some())
        .count();
    ensure!(
        nodes == member.path.len() && nodes == 3,
        "{nodes} transactions of the tree on the chain"
    );
    // The tree itself pays no fee; its children do, from the client's coin and nobody else's.
    let inside = ledger.sum_of(&Owner::Factory) + ledger.sum_of(&Owner::Channel);
    ensure!(
        inside.to_sat() == export.funding.amount_sat,
        "the tree lost money: {inside} are left"
    );
    let children: Vec<_> = ledger
        .onchain()
        .iter()
        .filter(|tx| tx.kind == "fee_child" && tx.by.as_deref() == Some("client-5"))
        .collect();
    ensure!(
        children.len() == nodes,
        "{} children for {nodes} transactions",
        children.len()
    );
    let fees: u64 = children.iter().map(|tx| tx.fee_sat).sum();
    ensure!(
        ledger.has("client-5") == FEE_COIN - Amount::from_sat(fees),
        "fees do not add up"
    );
    ensure!(fees > 0, "somebody else paid");
    Ok(())
}

/// All leave: what each had on Lightning arrives in its wallet; the coordinator gets the rest of the channels, and its stocks at `q`.
#[test]
fn all_leave_with_their_balances() -> Result<()> {
    let mut world = World::start("exit_all")?;
    world.add_clients(4)?;
    let everybody: Vec<usize> = (0..4).collect();
    world.fund_clients(&everybody, FEE_COIN)?;
    world.join(&everybody)?;
    let created = world.create(&[])?;
    world.usable_for(&created, &everybody)?;
    let export = world.export(&created)?;
    world.coordinator_pays(&everybody, BALANCE)?;
    for index in &everybody {
        world
            .client(*index)?
            .json(&["exit", &created.factory, "--yes", "--background"])?;
    }
    for index in &everybody {
        world.drive(*index, 0, |event| event.is("leaf_confirmed"), |_| {})?;
    }
    // The stocks wait for `q` after their leaf, what comes out of channels for the delay of whoever closed.
    world.mine_until(&export, |world| {
        Ok(world.all_done(&created, &everybody)? && world.left_in(&export)? == 0)
    })?;
    let ledger = money::settled(&world, std::slice::from_ref(&export))?;
    for index in &everybody {
        let name = format!("client-{index}");
        let spent = fees_of(&ledger, &name);
        let due = FEE_COIN + Amount::from_sat(BALANCE) - Amount::from_sat(spent);
        ensure!(
            ledger.has(&name) == due,
            "{name} has {}, not {due}",
            ledger.has(&name)
        );
        ensure!(spent < 30_000, "{name} paid {spent} sat of fees");
    }
    Ok(())
}

/// Nothing in its channel is the client's: it is closed before anybody pays over it, which would cost a commitment, and the coordinator's ends it.
#[test]
fn what_is_empty_is_closed_with_the_exit() -> Result<()> {
    let mut world = World::start("exit_empty")?;
    world.add_clients(2)?;
    world.fund_clients(&[0], FEE_COIN)?;
    world.join(&[0, 1])?;
    let created = world.create(&["--set", "active=900"])?;
    world.usable_for(&created, &[0, 1])?;
    let export = world.export(&created)?;
    let invoice = world.invoice(0, BALANCE)?;
    let leaver = world.client(0)?;
    let mark = leaver.mark()?;
    leaver.json(&["exit", &created.factory, "--yes", "--background"])?;
    let more = leaver.command(&["invoice", "1000", "--json"])?;
    ensure!(
        more.code == 4 && more.stderr.contains("not being left"),
        "an invoice that would cost a commitment: {more:?}"
    );
    // Nothing is closed before something is on the chain.
    world.drive(0, mark, |event| event.is("exit_published"), |_| {})?;
    let open = leaver.json(&["channels"])?;
    ensure!(open["channels"][0]["state"] == "open", "{open}");
    world.drive(0, mark, |event| event.is("channel_closed"), |_| {})?;
    let paid = world
        .coordinator
        .command(&["node", "pay", &invoice, "--json"])?;
    ensure!(paid.code != 0, "paid over a channel that is left: {paid:?}");
    let limit = leaver.json(&["limit", "show"])?;
    ensure!(limit["limit_sat"] == 0, "{limit}");
    world.drive(0, mark, |event| event.is("leaf_confirmed"), |_| {})?;
    world.mine_until(&export, |world| world.all_done(&created, &[0]))?;
    ensure!(
        world.node.height()? < export.expiry_height - 500,
        "it had to wait"
    );
    // It paid for its path, and for nothing else.
    let ledger = money::sheet(&world, std::slice::from_ref(&export))?;
    let own = ledger.onchain().iter();
    let own = own.filter(|tx| tx.by.as_deref() == Some("client-0"));
    let kinds: Vec<&str> = own.map(|tx| tx.kind.as_str()).collect();
    ensure!(!kinds.is_empty(), "nothing was published");
    ensure!(kinds.iter().all(|kind| *kind == "fee_child"), "{kinds:?}");
    let due = FEE_COIN - Amount::from_sat(fees_of(&ledger, "client-0"));
    ensure!(ledger.has("client-0") == due, "fees do not add up");
    Ok(())
}

/// The coordinator is gone for good, and somebody has money on Lightning: its commitment follows its path.
#[test]
fn one_leaves_with_its_balance_from_a_dead_coordinator() -> Result<()> {
    let mut world = World::start("exit_dead_coordinator")?;
    world.add_clients(3)?;
    let everybody = [0, 1, 2];
    world.fund_clients(&[0], FEE_COIN)?;
    world.join(&everybody)?;
    let created = world.create(&[])?;
    world.usable_for(&created, &everybody)?;
    let export = world.export(&created)?;
    world.coordinator_pays(&everybody, BALANCE)?;
    world.coordinator.kill()?;
    world
        .client(0)?
        .json(&["exit", &created.factory, "--yes", "--background"])?;
    world.drive(0, 0, |event| event.is("leaf_confirmed"), |_| {})?;
    world.mine_until(&export, |world| world.all_done(&created, &[0]))?;
    ensure!(
        world.node.height()? < export.expiry_height,
        "it had to wait for T"
    );
    let ledger = money::sheet(&world, std::slice::from_ref(&export))?;
    let spent = fees_of(&ledger, "client-0");
    let due = FEE_COIN + Amount::from_sat(BALANCE) - Amount::from_sat(spent);
    let has = ledger.has("client-0");
    ensure!(has == due, "client-0 has {has}, not {due}");
    Ok(())
}

/// A client is gone; its leaf mate leaves, so its leaf is on the chain: before the channel's timeout would pay the client all of it, the
/// coordinator closes the channel.
#[test]
fn the_coordinator_closes_before_the_timeout() -> Result<()> {
    let mut world = World::start("exit_coordinator_closes")?;
    world.add_clients(2)?;
    world.fund_clients(&[0], FEE_COIN)?;
    world.join(&[0, 1])?;
    let created = world.create(&[])?;
    world.usable_for(&created, &[0, 1])?;
    let export = world.export(&created)?;
    world.coordinator_pays(&[0, 1], BALANCE)?;
    world.client_mut(1)?.kill()?;
    world
        .client(0)?
        .json(&["exit", &created.factory, "--yes", "--background"])?;
    world.drive(0, 0, |event| event.is("leaf_confirmed"), |_| {})?;
    let id = world.id_of(world.client(1)?)?.to_owned();
    let closed = |world: &World| -> Result<bool> {
        let events = world.coordinator.events()?;
        Ok(events
            .iter()
            .any(|event| event.is("channel_spent") && event.text("client") == id))
    };
    world.mine_until(&export, closed)?;
    let height = world.node.height()?;
    let last = export.expiry_height - scenarios::world::LATE_MARGIN;
    ensure!(height < last, "closed at {height}, too late for {last}");
    // Back again, it finds what it had.
    world.client_mut(1)?.start()?;
    world.mine_until(&export, |world| {
        Ok(world.all_done(&created, &[0, 1])? && world.left_in(&export)? == 0)
    })?;
    let ledger = money::settled(&world, std::slice::from_ref(&export))?;
    let due = Amount::from_sat(BALANCE) - Amount::from_sat(fees_of(&ledger, "client-1"));
    let has = ledger.has("client-1");
    ensure!(has == due, "client-1 has {has}, not {due}");
    Ok(())
}

/// What a party paid for its transactions.
fn fees_of(ledger: &scenarios::ledger::Ledger, name: &str) -> u64 {
    let own = ledger.onchain().iter();
    own.filter(|tx| tx.by.as_deref() == Some(name))
        .map(|tx| tx.fee_sat)
        .sum()
}
