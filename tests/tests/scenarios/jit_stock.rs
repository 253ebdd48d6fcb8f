//! Channels just in time out of a factory's own stock.

use anyhow::{Context, Result, anyhow, ensure};
use bitcoin::Amount;
use bitcoin::secp256k1::{Secp256k1, SecretKey};
use lightning::bolt11_invoice::{Bolt11Invoice, Currency, InvoiceBuilder};
use lightning::types::payment::{PaymentHash, PaymentSecret};
use scenarios::outside::Outside;
use scenarios::service::Service;
use scenarios::world::{Created, World, number, text};

use crate::jit::{fee, has_usable, order, refused, second_channel, sells};
use crate::jit_wallet::{becomes, received};
use crate::money;
use crate::sales::{self, BALANCE, back, channels, has_come_out, ledger, room};

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
    invoice_over(world, PAID, more)
}

fn invoice_over(world: &World, sat: u64, more: &[&str]) -> Result<String> {
    let amount = sat.to_string();
    let words = [&["invoice", "--jit", &amount, "--yes"], more].concat();
    text(&world.client(0)?.json(&words)?, "invoice")
}

const UNCOVERED: [&str; 1] = ["--accept-uncovered"];

/// Exactly what was promised is there, beside what was there before.
fn has_arrived(world: &World) -> Result<()> {
    has_arrived_beside(world, BALANCE, PAID)
}

/// The same of a payment of so many satoshi, beside so many.
fn has_arrived_beside(world: &World, had: u64, paid: u64) -> Result<()> {
    let kept = fee(paid * 1_000);
    let arrives = paid * 1_000 - kept;
    world.client(0)?.wait("the payment", |event| {
        event.is("payment_received")
            && event.number("amount_msat") == Some(arrives)
            && event.number("fee_msat") == Some(kept)
    })?;
    world.lightning_becomes(0, had * 1_000 + arrives)
}

/// Paid exactly what was promised, over a new channel that is in a factory, or is not.
fn is_paid(world: &World, from_stock: bool) -> Result<()> {
    has_arrived(world)?;
    is_served(world, PAID, from_stock)
}

/// The books say that the promised fee of a payment of so many satoshi was taken, over such a channel.
fn is_served(world: &World, paid: u64, from_stock: bool) -> Result<()> {
    let all = channels(world, 0)?;
    let inside = all.iter().filter(|channel| !channel["factory"].is_null());
    let expected = if from_stock { (2, 2) } else { (2, 1) };
    ensure!((all.len(), inside.count()) == expected, "{all:?}");
    world.coordinator.wait_for("jit_paid")?;
    let order = order(world)?;
    ensure!(order["state"] == "paid", "{order}");
    ensure!(
        number(&order, "taken_msat")? == fee(paid * 1_000),
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

/// No channel in a factory is closed by itself, sold or not: its client could not move then, and nothing would be free.
fn are_kept(world: &World) -> Result<()> {
    let listed = world.coordinator.json(&["node", "channels"])?;
    let listed = listed["channels"].as_array().context("a list")?;
    let inside: Vec<_> = listed.iter().filter(|one| !one["leaf"].is_null()).collect();
    let mut sold = 0;
    for channel in &inside {
        let id = text(channel, "channel")?;
        let answer = world.coordinator.command(&["node", "close-channel", &id])?;
        answer.refused(4, &["lies in a factory", "ends with its factory"])?;
        sold += u32::from(answer.stderr.contains("breaks the promise"));
    }
    ensure!((inside.len(), sold) == (3, 1), "{listed:?}");
    Ok(())
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
        ("routing_msat", 0),
        ("onchain_sat", 0),
    ] {
        ensure!(number(day, field)? == expected, "{revenue}");
    }
    are_kept(&world)?;

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

/// The client's channel is full but for a little, and no channel of the payer carries the payment: it comes in parts, which wait for each other and
/// fit nowhere else; the fee is taken once, to the thousandth of a satoshi.
#[test]
fn in_parts() -> Result<()> {
    const EACH: u64 = 130_000;
    let (world, _, outside) = town("jit_stock_parts", |_| Ok(()))?;
    let filled = room(&world, 0)?.checked_sub(5_000).context("much room")?;
    world.coordinator_pays(&[0], filled)?;
    let much = outside.spendable().0 / 1_000 - EACH;
    let ours = world
        .coordinator
        .json(&["node", "invoice", &much.to_string()])?;
    outside.pay(&text(&ours, "invoice")?)?;
    second_channel(&world, &outside, Amount::from_sat(EACH))?;
    world.coordinator_sees_tip()?;
    world.wallets_see(world.node.height()?)?;

    let paid = PAID + 1;
    let made = invoice_over(&world, paid, &UNCOVERED)?;
    purchase_becomes(&world, "ordered")?;
    let channels = outside.node().channels();
    ensure!(
        channels
            .iter()
            .all(|channel| channel.spendable.0 < paid * 1_000),
        "{channels:?}"
    );
    outside.pay(&made)?;
    has_arrived_beside(&world, BALANCE + filled, paid)?;
    is_served(&world, paid, true)
}

/// An invoice over less than the order is for, by the same way. Only who it is for could tell.
fn underpaid(invoice: &str) -> Result<String> {
    let invoice = invoice.parse::<Bolt11Invoice>();
    let invoice = invoice.map_err(|error| anyhow!("{error:?}"))?;
    let way = invoice.route_hints().into_iter().next();
    let key = SecretKey::from_slice(&[7; 32])?;
    let less = InvoiceBuilder::new(Currency::Regtest)
        .description("too little".to_owned())
        .duration_since_epoch(invoice.duration_since_epoch())
        .payment_hash(PaymentHash([7; 32]))
        .payment_secret(PaymentSecret([7; 32]))
        .basic_mpp()
        .min_final_cltv_expiry_delta(invoice.min_final_cltv_expiry_delta())
        .amount_milli_satoshis(PAID * 1_000 - 1)
        .private_route(way.context("a way")?)
        .build_signed(|message| Secp256k1::new().sign_ecdsa_recoverable(message, &key));
    Ok(less.map_err(|error| anyhow!("{error:?}"))?.to_string())
}

fn goes_back(outside: &Outside, invoice: &str) -> Result<()> {
    let ours = outside.send(invoice)?;
    ensure!(outside.outcome(ours)?.is_err(), "it was paid");
    Ok(())
}

/// The coordinator knows that the first wallet is away.
fn is_missed(world: &World) -> Result<()> {
    let id = world.id_of(world.client(0)?)?;
    becomes("its absence", || {
        let listed = world.coordinator.json(&["node", "channels"])?;
        let listed = listed["channels"].as_array().context("a list")?;
        let its = listed.iter().filter(|one| one["peer"] == id);
        let its: Vec<_> = its.map(|one| one["usable"] == false).collect();
        Ok(!its.is_empty() && its.iter().all(|is_away| *is_away))
    })
}

/// Too little comes, and then the payment while its wallet sleeps: both go back, and nothing is sold. The next try of the same invoice is served from
/// the stock.
#[test]
fn a_payer_tries_again() -> Result<()> {
    let (mut world, _, outside) = town("jit_stock_again", |coordinator| {
        coordinator.configure("jit.hold_seconds", 2)
    })?;
    let made = invoice(&world, &UNCOVERED)?;
    purchase_becomes(&world, "ordered")?;
    let mark = world.coordinator.mark()?;
    goes_back(&outside, &underpaid(&made)?)?;
    refused(&world, mark, "only 199999.999 sat came")?;
    world.client_mut(0)?.terminate()?;
    is_missed(&world)?;
    goes_back(&outside, &made)?;
    refused(&world, mark, "did not come about in time")?;
    let sold = ledger(&world)?;
    ensure!(sold.len() == 1 && sold[0]["state"] == "ordered", "{sold:?}");
    // Time enough for a busy machine.
    world.coordinator.terminate()?;
    world.coordinator.configure("jit.hold_seconds", 90)?;
    world.coordinator.start()?;
    world.client_mut(0)?.start()?;
    for index in [0, 1] {
        back(&world, index)?;
    }
    becomes("the payer", || Ok(has_usable(&outside, 1)))?;
    outside.send(&made)?;
    is_paid(&world, true)
}

/// The operator changes the price after the order: what was promised is taken from a stock too, and who asks now hears the new one.
#[test]
fn an_old_promise_holds() -> Result<()> {
    let (world, _, outside) = town("jit_stock_promise", |_| Ok(()))?;
    let made = invoice(&world, &UNCOVERED)?;
    purchase_becomes(&world, "ordered")?;
    let words = "liquidity prices set --jit-min-fee-msat 9000000 --jit-fee-ppm 50000";
    let words: Vec<&str> = words.split(' ').collect();
    world.coordinator.json(&words)?;
    outside.pay(&made)?;
    is_paid(&world, true)?;
    let amount = PAID.to_string();
    let words = ["invoice", "--jit", &amount, "--yes", "--max-fee", "10000"];
    let dearer = world.client(1)?.json(&words)?;
    ensure!(number(&dearer, "fee_msat")? == 10_000_000, "{dearer}");
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
