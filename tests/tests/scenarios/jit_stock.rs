//! Channels just in time out of a factory's own stock.

use anyhow::{Context, Result, ensure};
use scenarios::outside::Outside;
use scenarios::service::Service;
use scenarios::world::{Created, World, number, text};

use crate::jit::{fee, order, sells};
use crate::jit_wallet::{becomes, received};
use crate::money;
use crate::sales::{self, BALANCE, back, channels, has_come_out, ledger};

/// More than the channel from the factory's birth holds, in satoshi.
const PAID: u64 = 200_000;
/// What arrives of it, in thousandths of a satoshi.
fn arrives() -> u64 {
    PAID * 1_000 - fee(PAID * 1_000)
}

/// Two clients that share a stock, and somebody to pay from outside.
fn town(
    name: &str,
    configure: impl FnOnce(&Service) -> Result<()>,
) -> Result<(World, Created, Outside)> {
    let (mut world, created) = sales::town_with(name, 2, |coordinator| {
        sells(coordinator)?;
        configure(coordinator)
    })?;
    let outside = Outside::start(&mut world)?;
    Ok((world, created, outside))
}

fn invoice(world: &World, more: &[&str]) -> Result<String> {
    let amount = PAID.to_string();
    let words = [&["invoice", "--jit", &amount, "--yes"], more].concat();
    text(&world.client(0)?.json(&words)?, "invoice")
}

const UNCOVERED: [&str; 1] = ["--accept-uncovered"];

/// Exactly what was promised is there, beside what was there before.
fn has_arrived(world: &World) -> Result<()> {
    let wallet = world.client(0)?;
    wallet.wait("the payment", |event| {
        event.is("payment_received")
            && event.number("amount_msat") == Some(arrives())
            && event.number("fee_msat") == Some(PAID * 1_000 - arrives())
    })?;
    world.lightning_becomes(0, BALANCE * 1_000 + arrives())
}

/// Paid exactly what was promised, over a new channel that is in a factory, or is not.
fn is_paid(world: &World, from_stock: bool) -> Result<()> {
    has_arrived(world)?;
    let all = channels(world, 0)?;
    let inside = all.iter().filter(|channel| !channel["factory"].is_null());
    let expected = if from_stock { (2, 2) } else { (2, 1) };
    ensure!((all.len(), inside.count()) == expected, "{all:?}");
    world.coordinator.wait_for("jit_paid")?;
    let order = order(world)?;
    ensure!(order["state"] == "paid", "{order}");
    ensure!(
        number(&order, "taken_msat")? == fee(PAID * 1_000),
        "{order}"
    );
    ensure!(order["sale"].is_string() == from_stock, "{order}");
    ensure!(order["funding"].is_string() != from_stock, "{order}");
    ensure!(
        (number(&order, "onchain_sat")? == 0) == from_stock,
        "{order}"
    );
    Ok(())
}

/// The wallet's newest purchase is in this state, sooner or later.
fn purchase_becomes(world: &World, state: &str) -> Result<()> {
    becomes("the purchase's end", || {
        let list = world.client(0)?.json(&["limit", "purchases"])?;
        let list = list["purchases"].as_array().context("a list")?;
        Ok(list.last().is_some_and(|last| last["state"] == state))
    })
}

/// Out of inbound, with its mate awake: no transaction, the promised fee to the thousandth of a satoshi, the next payment whole; and when the
/// coordinator is gone for good all of it comes out.
#[test]
fn a_client_is_paid_from_its_stock() -> Result<()> {
    let (mut world, created, outside) = town("jit_stock", |_| Ok(()))?;
    let made = invoice(&world, &UNCOVERED)?;
    purchase_becomes(&world, "ordered")?;
    outside.pay(&made)?;
    is_paid(&world, true)?;
    ensure!(world.node.mempool()?.is_empty());
    purchase_becomes(&world, "settled")?;
    let sold = ledger(&world)?;
    ensure!(sold.len() == 1 && sold[0]["state"] == "settled", "{sold:?}");
    ensure!(number(&sold[0], "taken_msat")? == 0, "{sold:?}");
    // Earned once, as what it is, and without a transaction.
    let revenue = world.coordinator.json(&["liquidity", "revenue"])?;
    let day = &revenue["days"][0];
    for (field, expected) in [
        ("jit_msat", fee(PAID * 1_000)),
        ("sales_msat", 0),
        ("onchain_sat", 0),
    ] {
        ensure!(number(day, field)? == expected, "{revenue}");
    }

    let mark = world.client(0)?.mark()?;
    outside.pay(&world.invoice(0, 30_000)?)?;
    ensure!(received(world.client(0)?, mark)? == (30_000_000, 0));
    let has = (BALANCE * 1_000 + arrives() + 30_000_000) / 1_000;
    let export = world.export(&created)?;
    world.coordinator.kill()?;
    world
        .client(0)?
        .json(&["exit", &created.factory, "--yes", "--background"])?;
    world.mine_until(&export, |world| world.all_done(&created, &[0]))?;
    let ledger = money::sheet(&world, std::slice::from_ref(&export))?;
    has_come_out(&ledger, 0, has)
}

/// Its mate sleeps: the channel comes from the chain, for the same fee; and the stock is free for whoever is next.
#[test]
fn with_its_mate_asleep() -> Result<()> {
    let (mut world, _, outside) = town("jit_stock_asleep", |coordinator| {
        coordinator.configure("jit.stock_seconds", 2)
    })?;
    let made = invoice(&world, &UNCOVERED)?;
    world.client_mut(1)?.terminate()?;
    outside.pay(&made)?;
    is_paid(&world, false)?;
    purchase_becomes(&world, "cancelled")?;
    world.client_mut(1)?.start()?;
    world.client(1)?.wait_for("lightning_connected")?;
    sales::buy(&world, 0)?;
    Ok(())
}

/// Nothing is sold from a stock for nothing: the payment comes too late for its invoice, and the order is forgotten.
#[test]
fn what_is_not_paid_is_not_sold() -> Result<()> {
    let (world, _, _outside) = town("jit_stock_unpaid", |coordinator| {
        coordinator.configure("jit.valid_seconds", 3)
    })?;
    invoice(&world, &UNCOVERED)?;
    purchase_becomes(&world, "cancelled")?;
    ensure!(channels(&world, 0)?.len() == 1);
    let sold = ledger(&world)?;
    ensure!(
        sold.len() == 1 && sold[0]["state"] == "cancelled",
        "{sold:?}"
    );
    Ok(())
}

/// The coordinator dies at `point` while a payment waits: it is served all the same.
fn coordinator_dies(point: &str) -> Result<()> {
    let (mut world, _, outside) = town(&format!("jit_stock_lsp_{point}"), |_| Ok(()))?;
    world.coordinator.terminate()?;
    world
        .coordinator
        .start_with(&[("SUPERSCALAR_FAULT", point)])?;
    for index in [0, 1] {
        back(&world, index)?;
    }
    let ours = outside.send(&invoice(&world, &UNCOVERED)?)?;
    world.coordinator.wait_until_ended()?;
    world.coordinator.start()?;
    ensure!(outside.outcome(ours)?.is_ok());
    is_paid(&world, true)
}

/// A wallet dies at `point` while a payment waits, and comes again: it is served all the same, from wherever.
fn client_dies(who: usize, point: &str) -> Result<()> {
    let (mut world, _, outside) = town(&format!("jit_stock_client{who}_{point}"), |_| Ok(()))?;
    world.client_mut(who)?.terminate()?;
    world
        .client_mut(who)?
        .start_with(&[("SUPERSCALAR_FAULT", point)])?;
    for index in [0, 1] {
        back(&world, index)?;
    }
    let ours = outside.send(&invoice(&world, &UNCOVERED)?)?;
    world.client_mut(who)?.wait_until_ended()?;
    world.client_mut(who)?.start()?;
    ensure!(outside.outcome(ours)?.is_ok());
    has_arrived(&world)
}

deaths! {
    dies_when_it_is_bound: coordinator_dies("sale_bound");
    dies_when_the_chain_is_stored: coordinator_dies("sale_chain_stored");
    dies_when_the_channel_is_opened: coordinator_dies("sale_channel_opened");
    dies_when_it_is_sold: coordinator_dies("sale_sold");
    the_buyer_dies_when_it_has_signed: client_dies(0, "sale_guard_stored");
    the_buyer_dies_with_the_kit: client_dies(0, "sale_kit_stored");
    the_mate_dies_when_it_has_signed: client_dies(1, "sale_guard_stored");
}
