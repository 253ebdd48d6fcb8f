//! Channels ordered in advance (LSPS1), by a wallet that has no code of ours.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use channel_host::AskError;
use lightning::bolt11_invoice::Bolt11Invoice;
use lightning_liquidity::lsps1::msgs::{LSPS1OrderId, LSPS1OrderParams, LSPS1PaymentState};
use scenarios::outside::Outside;
use scenarios::process::PATIENCE;
use scenarios::service::Service;
use scenarios::world::{World, number, text};
use serde_json::{Value, json};

use crate::independent::{Independent, Ordered, Received, code};

/// What the coordinator asks, beside what the funding costs.
const BASE: u64 = 1_000;
const PPM: u64 = 2_000;
const PPM_PER_DAY: u64 = 100;
/// What is ordered: so much, for so many days.
const SAT: u64 = 600_000;
const DAYS: u64 = 30;

/// A world that sells, somebody to pay from outside, and a wallet without anything.
fn town(
    name: &str,
    configure: impl FnOnce(&Service) -> Result<()>,
) -> Result<(World, Outside, Independent)> {
    let mut world = World::start_with(name, |coordinator| {
        coordinator.configure("lsps1.enabled", true)?;
        coordinator.configure("lsps1.base_fee_sat", i64::try_from(BASE)?)?;
        coordinator.configure("lsps1.fee_ppm", i64::try_from(PPM)?)?;
        coordinator.configure("lsps1.fee_ppm_per_day", i64::try_from(PPM_PER_DAY)?)?;
        configure(coordinator)
    })?;
    let outside = Outside::start(&mut world)?;
    let wallet = Independent::start(&world, 92)?;
    Ok((world, outside, wallet))
}

fn wish() -> LSPS1OrderParams {
    LSPS1OrderParams {
        lsp_balance_sat: SAT,
        client_balance_sat: 0,
        required_channel_confirmations: 0,
        funding_confirms_within_blocks: 6,
        channel_expiry_blocks: 144 * 30,
        token: None,
        announce_channel: false,
    }
}

fn order(wallet: &Independent) -> Result<Ordered> {
    let ordered = wallet.order(wish())?;
    ordered.map_err(|error| anyhow!("{error:?}"))
}

fn status(wallet: &Independent, id: &LSPS1OrderId) -> Result<Ordered> {
    let status = wallet.order_status(id)?;
    status.map_err(|error| anyhow!("{error:?}"))
}

/// Waits until the client is told that its payment is there.
fn reaches(wallet: &Independent, id: &LSPS1OrderId, state: LSPS1PaymentState) -> Result<Ordered> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = status(wallet, id)?;
        if now.bolt11.state == state {
            return Ok(now);
        }
        ensure!(Instant::now() < deadline, "it is {now:?}, not {state:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The order in the books.
fn in_the_books(world: &World, id: &LSPS1OrderId) -> Result<Value> {
    let books = world.coordinator.json(&["liquidity", "orders"])?;
    let orders = books["orders"].as_array().context("a list")?;
    let mut of_id = orders.iter().filter(|order| order["order_id"] == id.0);
    of_id.next().cloned().context("an order")
}

fn usable(wallet: &Independent) -> usize {
    let channels = wallet.channels();
    channels.iter().filter(|channel| channel.is_usable).count()
}

/// The payer has its money, nothing went to the chain, and the coins are free.
fn came_to_nothing(world: &World, wallet: &Independent, id: &LSPS1OrderId) -> Result<Value> {
    let told = reaches(wallet, id, LSPS1PaymentState::Refunded)?;
    ensure!(told.channel.is_none(), "{told:?}");
    ensure!(wallet.channels().is_empty());
    ensure!(world.node.mempool()?.is_empty(), "something went out");
    let order = in_the_books(world, id)?;
    ensure!(order["state"] == "failed", "{order}");
    ensure!(number(&order, "taken_msat")? == 0, "{order}");
    order_again(wallet)?;
    Ok(order)
}

fn order_again(wallet: &Independent) -> Result<()> {
    order(wallet).map(drop)
}

fn comes_back(outside: &Outside, invoice: &str) -> Result<()> {
    let ours = outside.send(invoice)?;
    let outcome = outside.outcome(ours)?;
    ensure!(outcome.is_err(), "it was paid");
    Ok(())
}

/// A fresh wallet orders a channel, somebody pays for it, and it is paid over it by somebody outside, before it is confirmed and after.
#[test]
fn a_wallet_orders_a_channel_and_is_paid() -> Result<()> {
    let (world, outside, wallet) = town("lsps1_buys", |_| Ok(()))?;
    ensure!(wallet.protocols()? == [1, 5]);
    let options = wallet.options()?;
    ensure!(options.max_initial_client_balance_sat == 0, "{options:?}");
    ensure!(options.max_initial_lsp_balance_sat >= SAT, "{options:?}");
    let ordered = order(&wallet)?;
    ensure!(ordered.order.lsp_balance_sat == SAT, "{ordered:?}");
    ensure!(ordered.bolt11.state == LSPS1PaymentState::ExpectPayment);
    let fee = ordered.bolt11.fee_total_sat;
    ensure!(ordered.bolt11.order_total_sat == fee, "{ordered:?}");
    let asked = ordered.bolt11.invoice.amount_milli_satoshis();
    ensure!(asked == Some(fee * 1000), "{ordered:?}");
    let listed = BASE + SAT * (PPM + PPM_PER_DAY * DAYS) / 1_000_000;
    ensure!(
        (listed..listed + 2_000).contains(&fee),
        "{fee}, not {listed} and a funding"
    );

    outside.pay(&ordered.bolt11.invoice.to_string())?;
    let paid = reaches(&wallet, &ordered.id, LSPS1PaymentState::Paid)?;
    let bought = paid.channel.context("a channel")?;
    ensure!(
        world
            .node
            .mempool()?
            .contains(&bought.funding_outpoint.txid)
    );
    let lasts = bought.expires_at.duration_since(&bought.funded_at);
    ensure!(lasts >= Duration::from_secs(DAYS * 86_400), "{bought:?}");
    wallet.until("a usable channel", || usable(&wallet) == 1)?;
    let channel = wallet.channels().into_iter().next().context("a channel")?;
    ensure!(channel.channel_value_satoshis == SAT, "{channel:?}");
    ensure!(!channel.is_announced && channel.outbound_capacity_msat == 0);
    let funding = channel.funding_txo.context("a funding")?;
    ensure!(funding.into_bitcoin_outpoint() == bought.funding_outpoint);

    wallet.until("the channel's terms", || {
        let mut channels = wallet.channels().into_iter();
        channels.any(|channel| channel.counterparty.forwarding_info.is_some())
    })?;
    outside.pay(&wallet.own_invoice(50_000_000)?)?;
    let whole = |msat| Received { msat, fee_msat: 0 };
    ensure!(wallet.received(1)? == whole(50_000_000));
    world.mine(6)?;
    wallet.until("a confirmed channel", || {
        let mut channels = wallet.channels().into_iter();
        channels.any(|channel| channel.confirmations.unwrap_or(0) >= 6)
    })?;
    outside.pay(&wallet.own_invoice(200_000_000)?)?;
    ensure!(wallet.received(2)? == whole(200_000_000));

    let row = in_the_books(&world, &ordered.id)?;
    ensure!(
        row["state"] == "paid" && number(&row, "opens")? == 1,
        "{row}"
    );
    ensure!(number(&row, "taken_msat")? == fee * 1000, "{row}");
    let at = bought.funding_outpoint.to_string();
    ensure!(text(&row, "funding")? == at, "{row}");
    let onchain = number(&row, "onchain_sat")?;
    ensure!((1..2_000).contains(&onchain), "{row}");
    let id = channel.channel_id.to_string();
    let closed = world.coordinator.command(&["node", "close-channel", &id])?;
    closed.refused(4, &["sold until"])?;
    let revenue = world.coordinator.json(&["liquidity", "revenue"])?;
    let day = &revenue["days"][0];
    ensure!(number(day, "lsps1_msat")? == fee * 1000, "{revenue}");
    ensure!(number(day, "onchain_sat")? == onchain, "{revenue}");
    Ok(())
}

/// An announced channel is used when it is as deep as was ordered, and then somebody pays over it who knows it from gossip alone.
#[test]
fn an_announced_channel_is_heard_of() -> Result<()> {
    let (world, outside, wallet) = town("lsps1_announced", |_| Ok(()))?;
    wallet.habits().patient.store(true, Ordering::SeqCst);
    let wish = LSPS1OrderParams {
        required_channel_confirmations: 6,
        announce_channel: true,
        ..wish()
    };
    let ordered = wallet.order(wish)?;
    let ordered = ordered.map_err(|error| anyhow!("{error:?}"))?;
    ensure!(ordered.order.announce_channel, "{ordered:?}");
    outside.pay(&ordered.bolt11.invoice.to_string())?;
    reaches(&wallet, &ordered.id, LSPS1PaymentState::Paid)?;
    let deep = |blocks| {
        let mut channels = wallet.channels().into_iter();
        channels.any(|channel| channel.confirmations == Some(blocks))
    };
    world.mine(5)?;
    wallet.until("five confirmations", || deep(5))?;
    ensure!(usable(&wallet) == 0, "it is used too early");
    world.mine(1)?;
    wallet.until("a usable channel", || usable(&wallet) == 1)?;
    ensure!(wallet.channels().iter().all(|channel| channel.is_announced));
    // LDK's invoices name no way over an announced channel when it is one block deeper.
    world.mine(1)?;
    wallet.until("seven confirmations", || deep(7))?;
    wallet.until("the payer to hear of it", || {
        let invoice = wallet.own_invoice(20_000_000);
        invoice.is_ok_and(|invoice| names_no_way(&invoice) && outside.send(&invoice).is_ok())
    })?;
    let whole = Received {
        msat: 20_000_000,
        fee_msat: 0,
    };
    ensure!(wallet.received(1)? == whole);
    Ok(())
}

fn names_no_way(invoice: &str) -> bool {
    let invoice = invoice.parse::<Bolt11Invoice>();
    invoice.is_ok_and(|invoice| invoice.route_hints().is_empty())
}

/// What a question of ours about an order is answered with: code, and which property is wrong. The library's client reads no error whose `data` is an
/// object, as bLIP-51 wants it.
fn refused(world: &World, outside: &Outside, field: &str, value: Value) -> Result<(i32, Value)> {
    let (coordinator, _) = world.lightning()?;
    let mut params = serde_json::to_value(wish())?;
    params[field] = value;
    let runtime = tokio::runtime::Runtime::new()?;
    let node = outside.node();
    let asked = node.ask(coordinator, "lsps1.create_order", &params);
    match runtime.block_on(asked) {
        Err(AskError::Refused(error)) => {
            let property = error.data.map(|data| data["property"].clone());
            Ok((error.code, property.unwrap_or_default()))
        }
        other => bail!("it was not refused: {other:?}"),
    }
}

/// What is wrong is named, what the options do not allow too; an order of somebody else, or of nobody, is not there.
#[test]
fn what_is_wrong_is_not_ordered() -> Result<()> {
    let (world, outside, wallet) = town("lsps1_wrong", |coordinator| {
        coordinator.configure("lsps1.orders_per_client", 1)
    })?;
    for (field, value, code, property) in [
        (
            "lsp_balance_sat",
            json!("1"),
            100,
            "min_initial_lsp_balance_sat",
        ),
        (
            "client_balance_sat",
            json!("1"),
            100,
            "max_initial_client_balance_sat",
        ),
        (
            "channel_expiry_blocks",
            json!(u32::MAX),
            100,
            "max_channel_expiry_blocks",
        ),
        (
            "channel_expiry_blocks",
            json!(0),
            -32_602,
            "channel_expiry_blocks",
        ),
        (
            "lsp_balance_sat",
            json!(600_000),
            -32_602,
            "lsp_balance_sat",
        ),
    ] {
        let found = refused(&world, &outside, field, value)?;
        ensure!(found == (code, json!(property)), "{field}: {found:?}");
    }
    let reduced = LSPS1OrderParams {
        token: Some("SALE".into()),
        ..wish()
    };
    ensure!(code(wallet.order(reduced)?)? == 102);
    let nobodys = LSPS1OrderId("00000000-0000-4000-8000-000000000000".into());
    ensure!(code(wallet.order_status(&nobodys)?)? == 101);
    let ours = order(&wallet)?;
    ensure!(code(wallet.order(wish())?)? == 1, "one is enough");
    let other = Independent::start(&world, 93)?;
    ensure!(code(other.order_status(&ours.id)?)? == 101);
    // Who has no coins left for it says so before anything is paid.
    outside.pay(&ours.bolt11.invoice.to_string())?;
    reaches(&wallet, &ours.id, LSPS1PaymentState::Paid)?;
    ensure!(
        code(other.order(wish())?)? == 1,
        "the change is not confirmed"
    );
    Ok(())
}

/// Nobody pays: the order is over, and its invoice too.
#[test]
fn what_nobody_pays_is_over() -> Result<()> {
    let (world, outside, wallet) = town("lsps1_unpaid", |coordinator| {
        coordinator.configure("lsps1.valid_seconds", 1)
    })?;
    let ordered = order(&wallet)?;
    world.coordinator.wait_for("lsps1_failed")?;
    came_to_nothing(&world, &wallet, &ordered.id)?;
    ensure!(outside.send(&ordered.bolt11.invoice.to_string()).is_err());
    Ok(())
}

/// The client is away when its order is paid, and stays away: the payer has its money back.
#[test]
fn who_does_not_come_has_its_money_back() -> Result<()> {
    let (world, outside, wallet) = town("lsps1_away", |coordinator| {
        coordinator.configure("lsps1.wait_seconds", 2)
    })?;
    let ordered = order(&wallet)?;
    wallet.set_away(true)?;
    comes_back(&outside, &ordered.bolt11.invoice.to_string())?;
    wallet.set_away(false)?;
    let row = came_to_nothing(&world, &wallet, &ordered.id)?;
    ensure!(number(&row, "opens")? == 0, "{row}");
    Ok(())
}

/// The client says no to its channel, three times; another one says nothing at all.
#[test]
fn who_does_not_accept_has_its_money_back() -> Result<()> {
    let (world, outside, wallet) = town("lsps1_declines", |coordinator| {
        coordinator.configure("lsps1.wait_seconds", 4)
    })?;
    wallet.habits().declines.store(true, Ordering::SeqCst);
    let first = order(&wallet)?;
    comes_back(&outside, &first.bolt11.invoice.to_string())?;
    let row = came_to_nothing(&world, &wallet, &first.id)?;
    ensure!(number(&row, "opens")? == 3, "{row}");
    ensure!(text(&row, "note")?.contains("no channels today"), "{row}");

    wallet.habits().ignores.store(true, Ordering::SeqCst);
    let second = order(&wallet)?;
    comes_back(&outside, &second.bolt11.invoice.to_string())?;
    let told = reaches(&wallet, &second.id, LSPS1PaymentState::Refunded)?;
    ensure!(told.channel.is_none() && world.node.mempool()?.is_empty());
    let row = in_the_books(&world, &second.id)?;
    ensure!(text(&row, "note")?.contains("not accepted"), "{row}");
    Ok(())
}

fn returns(
    world: &mut World,
    (outside, wallet): (&Outside, &Independent),
    environment: &[(&str, &str)],
) -> Result<()> {
    world.coordinator.start_with(environment)?;
    world.coordinator.wait_for("ready")?;
    wallet.until("the coordinator", || wallet.is_connected())?;
    wallet.until("the payer", || {
        let channels = outside.node().channels();
        channels.iter().any(|channel| channel.usable)
    })
}

/// The coordinator is killed while it holds the payment of a client that is away: served when both are back.
#[test]
fn held_over_a_crash() -> Result<()> {
    let (mut world, outside, wallet) = town("lsps1_crash", |_| Ok(()))?;
    let ordered = order(&wallet)?;
    wallet.set_away(true)?;
    let ours = outside.send(&ordered.bolt11.invoice.to_string())?;
    world.coordinator.wait_for("lsps1_held")?;
    world.coordinator.kill()?;
    wallet.habits().away.store(false, Ordering::SeqCst);
    returns(&mut world, (&outside, &wallet), &[])?;
    ensure!(outside.outcome(ours)?.is_ok());
    reaches(&wallet, &ordered.id, LSPS1PaymentState::Paid)?;
    wallet.until("a usable channel", || usable(&wallet) == 1)?;
    ensure!(wallet.channels().len() == 1);
    let row = in_the_books(&world, &ordered.id)?;
    ensure!(number(&row, "taken_msat")? == ordered.bolt11.fee_total_sat * 1000);
    Ok(())
}

/// The coordinator dies wherever it has just written something down: each order has one channel, and is paid once.
#[test]
fn every_crash_is_survived() -> Result<()> {
    let (mut world, outside, wallet) = town("lsps1_crashes", |_| Ok(()))?;
    let points = ["held", "opening", "stands", "released", "funded"];
    for (before, point) in points.into_iter().enumerate() {
        world.coordinator.terminate()?;
        let fault = format!("lsps1_{point}");
        let environment = [("SUPERSCALAR_FAULT", fault.as_str())];
        returns(&mut world, (&outside, &wallet), &environment)?;
        let ordered = order(&wallet)?;
        let ours = outside.send(&ordered.bolt11.invoice.to_string())?;
        world.coordinator.wait_until_ended()?;
        returns(&mut world, (&outside, &wallet), &[])?;
        ensure!(outside.outcome(ours)?.is_ok(), "{point}");
        let paid = reaches(&wallet, &ordered.id, LSPS1PaymentState::Paid)?;
        let bought = paid.channel.context("a channel")?;
        ensure!(
            world.node.mempool()? == [bought.funding_outpoint.txid],
            "{point}"
        );
        wallet.until("its one channel", || {
            usable(&wallet) == before + 1 && wallet.channels().len() == before + 1
        })?;
        let row = in_the_books(&world, &ordered.id)?;
        let fee = ordered.bolt11.fee_total_sat * 1000;
        ensure!(number(&row, "taken_msat")? == fee, "{point}: {row}");
        // The change is confirmed for the next one.
        world.mine(1)?;
        world.coordinator_sees_tip()?;
    }
    Ok(())
}

/// It dies when an order is stored, before its answer: nothing is charged for that one, and the next is served.
#[test]
fn an_order_without_an_answer_costs_nothing() -> Result<()> {
    let (mut world, outside, wallet) = town("lsps1_crash_ordered", |_| Ok(()))?;
    world.coordinator.terminate()?;
    let environment = [("SUPERSCALAR_FAULT", "lsps1_ordered")];
    returns(&mut world, (&outside, &wallet), &environment)?;
    wallet.send_order(wish())?;
    world.coordinator.wait_until_ended()?;
    returns(&mut world, (&outside, &wallet), &[])?;
    let second = order(&wallet)?;
    outside.pay(&second.bolt11.invoice.to_string())?;
    reaches(&wallet, &second.id, LSPS1PaymentState::Paid)?;
    wallet.until("its one channel", || {
        usable(&wallet) == 1 && wallet.channels().len() == 1
    })?;
    let books = world.coordinator.json(&["liquidity", "orders"])?;
    let orders = books["orders"].as_array().context("a list")?;
    let mut others = orders.iter().filter(|row| row["order_id"] != second.id.0);
    let first = others.next().context("the first order")?;
    ensure!(orders.len() == 2 && first["state"] == "ordered", "{books}");
    ensure!(number(first, "taken_msat")? == 0, "{books}");
    Ok(())
}

/// Nothing came of an order, and it dies before it has sent the payment back: it does so when it is there again.
#[test]
fn what_is_sent_back_is_sent_back_after_a_crash() -> Result<()> {
    let (mut world, outside, wallet) = town("lsps1_crash_failed", |coordinator| {
        coordinator.configure("lsps1.wait_seconds", 2)
    })?;
    world.coordinator.terminate()?;
    let environment = [("SUPERSCALAR_FAULT", "lsps1_failed")];
    returns(&mut world, (&outside, &wallet), &environment)?;
    let ordered = order(&wallet)?;
    wallet.set_away(true)?;
    let ours = outside.send(&ordered.bolt11.invoice.to_string())?;
    world.coordinator.wait_until_ended()?;
    wallet.habits().away.store(false, Ordering::SeqCst);
    returns(&mut world, (&outside, &wallet), &[])?;
    ensure!(outside.outcome(ours)?.is_err(), "it was paid");
    came_to_nothing(&world, &wallet, &ordered.id).map(drop)
}
