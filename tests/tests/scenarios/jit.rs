//! Channels just in time (LSPS2), bought by a wallet that has no code of ours.

use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use bitcoin::{Amount, Txid};
use scenarios::bitcoind::Options;
use scenarios::event::Event;
use scenarios::outside::{CHANNEL, Outside};
use scenarios::process::PATIENCE;
use scenarios::service::Service;
use scenarios::world::{World, number, text};
use serde_json::Value;

use crate::independent::{Independent, Offer, Received, code};
use crate::jit_wallet::becomes;

/// What the coordinator asks, in thousandths of a satoshi and in parts per million.
const MIN_FEE: u64 = 2_000_000;
const PPM: u64 = 10_000;
pub(crate) const PAYMENT: u64 = 500_000_000;
const CLIENT_REJECTED: i32 = 1;
/// bLIP-50's feature bit.
const LSPS: usize = 729;

/// bLIP-52's formula.
pub(crate) fn fee(payment: u64) -> u64 {
    (payment * PPM).div_ceil(1_000_000).max(MIN_FEE)
}

pub(crate) fn sells(coordinator: &Service) -> Result<()> {
    coordinator.configure("jit.enabled", true)?;
    coordinator.configure("jit.min_fee_msat", i64::try_from(MIN_FEE)?)?;
    coordinator.configure("jit.fee_ppm", i64::try_from(PPM)?)
}

/// A world that sells, somebody to pay from outside, and a wallet without anything.
fn town(
    name: &str,
    configure: impl FnOnce(&Service) -> Result<()>,
) -> Result<(World, Outside, Independent)> {
    let mut world = World::start_with(name, |coordinator| {
        sells(coordinator)?;
        configure(coordinator)
    })?;
    let outside = Outside::start(&mut world)?;
    let wallet = Independent::start(&world, 91)?;
    Ok((world, outside, wallet))
}

/// The newest order in the books.
pub(crate) fn order(world: &World) -> Result<Value> {
    let books = world.coordinator.json(&["liquidity", "jit"])?;
    let orders = books["orders"].as_array().context("a list")?;
    orders.first().cloned().context("an order")
}

/// The books say that exactly the promised fee was taken.
fn is_in_the_books(world: &World, fee: u64) -> Result<Value> {
    world.coordinator.wait_for("jit_paid")?;
    let order = order(world)?;
    ensure!(order["state"] == "paid", "{order}");
    ensure!(number(&order, "fee_msat")? == fee, "{order}");
    ensure!(number(&order, "taken_msat")? == fee, "{order}");
    Ok(order)
}

pub(crate) fn refused(world: &World, mark: usize, why: &str) -> Result<Event> {
    let refused = |event: &Event| event.is("jit_refused") && event.text("reason").contains(why);
    world.coordinator.wait_after(mark, "jit_refused", refused)
}

fn funding(order: &Value) -> Result<Txid> {
    Ok(text(order, "funding")?.parse()?)
}

fn in_mempool(world: &World, txid: Txid) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !world.node.mempool()?.contains(&txid) {
        ensure!(Instant::now() < deadline, "the funding never went out");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    Ok(())
}

/// A fresh wallet is paid by somebody outside over a channel that was not there: it has the payment less the fee that was promised, exactly, and
/// the next payment whole.
#[test]
fn a_fresh_wallet_is_paid() -> Result<()> {
    let (world, outside, wallet) = town("jit_fresh", |_| Ok(()))?;
    ensure!(wallet.hears_of(LSPS), "no LSP is announced");
    ensure!(wallet.protocols()? == [2, 5]);
    ensure!(wallet.channels().is_empty());
    let bought = buy(&wallet, Some(PAYMENT))?;
    world.coordinator.wait_for("jit_sold")?;
    outside.pay(&wallet.invoice(bought, Some(PAYMENT))?)?;
    let expected = Received {
        msat: PAYMENT - fee(PAYMENT),
        fee_msat: fee(PAYMENT),
    };
    ensure!(wallet.received(1)? == expected);
    let order = is_in_the_books(&world, fee(PAYMENT))?;
    // We trust the client: the funding went out by itself, though no block came.
    in_mempool(&world, funding(&order)?)?;
    ensure!(number(&order, "onchain_sat")? < 2_000, "{order}");

    outside.pay(&wallet.invoice(bought, Some(20_000_000))?)?;
    let whole = Received {
        msat: 20_000_000,
        fee_msat: 0,
    };
    ensure!(wallet.received(2)? == whole);
    world.mine(6)?;
    wallet.until("a confirmed channel", || {
        let mut channels = wallet.channels().into_iter();
        channels.any(|channel| channel.confirmations.unwrap_or(0) >= 6)
    })?;
    is_hidden(&outside, &wallet)?;
    ensure!(wallet.received(3)? == whole);
    let has = PAYMENT - fee(PAYMENT) + 2 * 20_000_000;
    wallet.until("its balance", || wallet.balance_msat() == has)
}

/// Its channel is one that an alias alone names (bLIP-52), and not the number that its funding has in the chain: it is paid by an invoice of LDK's own.
fn is_hidden(outside: &Outside, wallet: &Independent) -> Result<()> {
    let channel = wallet.channels().into_iter().next().context("a channel")?;
    let kind = channel.channel_type.context("a type")?;
    ensure!(kind.requires_scid_privacy() && !channel.is_announced);
    let alias = channel.inbound_scid_alias.context("an alias")?;
    let number = channel.short_channel_id.context("a number")?;
    ensure!(alias != number);
    wallet.until("the channel's terms", || {
        let mut channels = wallet.channels().into_iter();
        channels.any(|channel| channel.counterparty.forwarding_info.is_some())
    })?;
    outside.pay(&wallet.own_invoice(20_000_000)?).map(drop)
}

/// A client that takes no channel which an alias alone names gets none: bLIP-52 knows no other.
#[test]
fn a_channel_without_an_alias_is_not_opened() -> Result<()> {
    let (world, outside, wallet) = town("jit_no_alias", |_| Ok(()))?;
    wallet
        .habits()
        .declines_aliases
        .store(true, Ordering::SeqCst);
    let bought = buy(&wallet, Some(PAYMENT))?;
    let mark = world.coordinator.mark()?;
    fails(&outside, &wallet.invoice(bought, Some(PAYMENT))?)?;
    refused(&world, mark, "option_scid_alias")?;
    wallet.until("no channel", || wallet.channels().is_empty())?;
    ensure!(world.node.mempool()?.is_empty());
    Ok(())
}

fn buy(wallet: &Independent, payment: Option<u64>) -> Result<Offer> {
    let bought = wallet.buy(wallet.offer()?, payment)?;
    bought.map_err(|error| anyhow!("{error:?}"))
}

fn is_paid(wallet: &Independent, count: usize, payment: u64, fee: u64) -> Result<()> {
    let received = wallet.received(count)?;
    let expected = Received {
        msat: payment - fee,
        fee_msat: fee,
    };
    ensure!(received == expected, "{received:?}, not {expected:?}");
    Ok(())
}

fn fails(outside: &Outside, invoice: &str) -> Result<()> {
    let ours = outside.send(invoice)?;
    let outcome = outside.outcome(ours)?;
    ensure!(outcome.is_err(), "it was paid");
    Ok(())
}

/// The client trusts us: the channel is used, and its funding is nowhere until the client has claimed.
#[test]
fn a_client_that_trusts_us() -> Result<()> {
    let (world, outside, wallet) = town("jit_trusting", |coordinator| {
        coordinator.configure("jit.client_trusts_lsp", true)
    })?;
    wallet.habits().hangs.store(true, Ordering::SeqCst);
    let bought = buy(&wallet, Some(PAYMENT))?;
    let ours = outside.send(&wallet.invoice(bought, Some(PAYMENT))?)?;
    wallet.until("a payment that hangs", || wallet.has_hanging())?;
    world.coordinator.wait_for("jit_opened")?;
    let txid = funding(&order(&world)?)?;
    ensure!(!world.node.mempool()?.contains(&txid), "the funding is out");
    // A block changes nothing: the coins wait.
    world.mine(1)?;
    world.coordinator_sees_tip()?;
    ensure!(!world.node.mempool()?.contains(&txid), "the funding is out");
    wallet.claim_hanging()?;
    is_paid(&wallet, 1, PAYMENT, fee(PAYMENT))?;
    ensure!(outside.outcome(ours)?.is_ok());
    let order = is_in_the_books(&world, fee(PAYMENT))?;
    ensure!(order["client_trusts_lsp"] == true, "{order}");
    in_mempool(&world, txid)
}

/// The client has claimed and closes at once, and the funding is in no mempool any more: what it claimed is real all the same.
#[test]
fn what_was_claimed_is_real() -> Result<()> {
    let (world, outside, wallet) = town("jit_claimed", |coordinator| {
        coordinator.configure("jit.client_trusts_lsp", true)
    })?;
    let bought = buy(&wallet, Some(PAYMENT))?;
    outside.pay(&wallet.invoice(bought, Some(PAYMENT))?)?;
    is_paid(&wallet, 1, PAYMENT, fee(PAYMENT))?;
    let txid = funding(&is_in_the_books(&world, fee(PAYMENT))?)?;
    in_mempool(&world, txid)?;
    wallet.close_all()?;
    world.coordinator.wait_for("onchain_channel_closed")?;
    world.node.restart_with(Options {
        arguments: vec!["-persistmempool=0".into()],
        ..Options::default()
    })?;
    ensure!(world.node.mempool()?.is_empty());
    world.node.mine_empty(1)?;
    in_mempool(&world, txid)?;
    world.mine(1)?;
    ensure!(world.node.mempool()?.iter().all(|left| *left != txid));
    Ok(())
}

/// One payment of any size, when the client did not say how much.
#[test]
fn of_any_size() -> Result<()> {
    let (world, outside, wallet) = town("jit_any_size", |_| Ok(()))?;
    let bought = buy(&wallet, None)?;
    // Less than the least.
    let mark = world.coordinator.mark()?;
    fails(&outside, &wallet.invoice(bought, Some(5_000_000))?)?;
    refused(&world, mark, "not what the order is for")?;
    outside.pay(&wallet.invoice(bought, Some(77_777_777))?)?;
    is_paid(&wallet, 1, 77_777_777, fee(77_777_777))?;
    is_in_the_books(&world, fee(77_777_777)).map(drop)
}

pub(crate) fn has_usable(outside: &Outside, count: usize) -> bool {
    let channels = outside.node().channels();
    channels.iter().filter(|channel| channel.usable).count() >= count
}

/// From what is left of the payer's coins.
pub(crate) fn second_channel(world: &World, outside: &Outside, capacity: Amount) -> Result<()> {
    let (id, _) = world.lightning()?;
    let runtime = tokio::runtime::Runtime::new()?;
    {
        let _guard = runtime.enter();
        outside.node().open_channel(id, capacity, false)?;
    }
    becomes("the second funding", || {
        Ok(!world.node.mempool()?.is_empty())
    })?;
    world.mine(6)?;
    becomes("a second channel", || Ok(has_usable(outside, 2)))
}

/// More than any channel of the payer holds: it comes in parts, which wait for each other; the fee is taken once, to the last thousandth.
#[test]
fn in_parts() -> Result<()> {
    let (world, outside, wallet) = town("jit_parts", |coordinator| {
        coordinator.configure("jit.max_payment_sat", 8_000_000)
    })?;
    second_channel(&world, &outside, CHANNEL - Amount::from_sat(100_000))?;
    let payment = 6_000_000_001;
    let bought = buy(&wallet, Some(payment))?;
    outside.pay(&wallet.invoice(bought, Some(payment))?)?;
    is_paid(&wallet, 1, payment, fee(payment))?;
    is_in_the_books(&world, fee(payment))?;
    outside.pay(&wallet.invoice(bought, Some(20_000_000))?)?;
    is_paid(&wallet, 2, 20_000_000, 0)
}

/// Less comes than the order is for: it is held for its time, goes back, and nothing was opened. The right amount is served then.
#[test]
fn an_underpaid_order() -> Result<()> {
    let (world, outside, wallet) = town("jit_underpaid", |coordinator| {
        coordinator.configure("jit.hold_seconds", 2)
    })?;
    let bought = buy(&wallet, Some(PAYMENT))?;
    let mark = world.coordinator.mark()?;
    fails(&outside, &wallet.invoice(bought, Some(PAYMENT - 1))?)?;
    refused(&world, mark, "only 499999.999 sat came")?;
    ensure!(wallet.channels().is_empty());
    ensure!(world.node.mempool()?.is_empty());
    outside.pay(&wallet.invoice(bought, Some(PAYMENT))?)?;
    is_paid(&wallet, 1, PAYMENT, fee(PAYMENT))
}

/// Terms that have expired buy nothing, and an order that has expired is not served: its payment comes back at once.
#[test]
fn an_expired_order_is_not_served() -> Result<()> {
    let (world, outside, wallet) = town("jit_expired", |coordinator| {
        coordinator.configure("jit.valid_seconds", 2)
    })?;
    let offer = wallet.offer()?;
    let bought = wallet.buy(offer.clone(), Some(PAYMENT))?;
    let bought = bought.map_err(|error| anyhow!("{error:?}"))?;
    wallet.until("the end of the offer", || offer.valid_until.is_past())?;
    ensure!(code(wallet.buy(offer, Some(PAYMENT))?)? == 201);
    let mark = world.coordinator.mark()?;
    fails(&outside, &wallet.invoice(bought, Some(PAYMENT))?)?;
    refused(&world, mark, "expired")?;
    ensure!(wallet.channels().is_empty());
    ensure!(world.node.mempool()?.is_empty());
    Ok(())
}

/// The operator changes the price after it was asked for: who asks now hears the new one, without a restart, and after one; the old promise holds.
#[test]
fn an_old_promise_holds() -> Result<()> {
    let (mut world, outside, wallet) = town("jit_old_promise", |_| Ok(()))?;
    let offer = wallet.offer()?;
    let words = "liquidity prices set --jit-min-fee-msat 9000000 --jit-fee-ppm 50000";
    let words: Vec<&str> = words.split(' ').collect();
    world.coordinator.json(&words)?;
    let dearer = wallet.offer()?;
    ensure!((dearer.min_fee_msat, dearer.proportional) == (9_000_000, 50_000));
    world.coordinator.terminate()?;
    returns(&mut world, &wallet)?;
    ensure!(wallet.offer()?.min_fee_msat == 9_000_000);
    let bought = wallet.buy(offer, Some(PAYMENT))?;
    let bought = bought.map_err(|error| anyhow!("{error:?}"))?;
    wallet.until("the payer", || has_usable(&outside, 1))?;
    outside.pay(&wallet.invoice(bought, Some(PAYMENT))?)?;
    is_paid(&wallet, 1, PAYMENT, fee(PAYMENT))
}

fn returns(world: &mut World, wallet: &Independent) -> Result<()> {
    returns_with(world, wallet, &[])
}

fn returns_with(
    world: &mut World,
    wallet: &Independent,
    environment: &[(&str, &str)],
) -> Result<()> {
    world.coordinator.start_with(environment)?;
    world.coordinator.wait_for("ready")?;
    wallet.until("the coordinator", || wallet.is_connected())
}

fn is_held(world: &World) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let channels = world.coordinator.json(&["node", "channels"])?;
        let all = channels["channels"].as_array().context("a list")?;
        if all.iter().any(|channel| channel["pending"] == 1) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "it is not held: {channels}");
    }
}

/// So many payments wait as are allowed: one more goes back at once, and who comes then is paid what has waited.
#[test]
fn no_more_payments_wait_than_are_allowed() -> Result<()> {
    let (world, outside, wallet) = town("jit_held", |coordinator| {
        coordinator.configure("jit.max_held", 1)
    })?;
    let first = buy(&wallet, Some(PAYMENT))?;
    let second = buy(&wallet, Some(PAYMENT))?;
    ensure!(first.scid != second.scid, "two orders of one number");
    wallet.set_away(true)?;
    let ours = outside.send(&wallet.invoice(first, Some(PAYMENT))?)?;
    is_held(&world)?;
    let mark = world.coordinator.mark()?;
    fails(&outside, &wallet.invoice(second, Some(PAYMENT))?)?;
    refused(&world, mark, "too many payments wait for channels")?;
    wallet.set_away(false)?;
    is_paid(&wallet, 1, PAYMENT, fee(PAYMENT))?;
    ensure!(outside.outcome(ours)?.is_ok());
    Ok(())
}

/// The coordinator dies while it holds a payment for a wallet that is away, and dies again in the middle of opening the channel: the payment is
/// served all the same, once, for the promised fee.
#[test]
fn held_over_a_crash() -> Result<()> {
    let (mut world, outside, wallet) = town("jit_crash", |_| Ok(()))?;
    let bought = buy(&wallet, Some(PAYMENT))?;
    wallet.set_away(true)?;
    let ours = outside.send(&wallet.invoice(bought, Some(PAYMENT))?)?;
    is_held(&world)?;
    world.coordinator.kill()?;
    wallet.habits().away.store(false, Ordering::SeqCst);
    world.coordinator.start()?;
    world.coordinator.wait_for("jit_funded")?;
    world.coordinator.kill()?;
    world.coordinator.start()?;
    is_paid(&wallet, 1, PAYMENT, fee(PAYMENT))?;
    ensure!(outside.outcome(ours)?.is_ok());
    is_in_the_books(&world, fee(PAYMENT))?;
    let channels = wallet.channels();
    ensure!(channels.iter().filter(|channel| channel.is_usable).count() == 1);
    Ok(())
}

/// The client sends the payment back: the payer has its money, no fee is taken, and the next try goes over the channel that is there.
#[test]
fn a_payment_that_is_refused_costs_nothing() -> Result<()> {
    let (world, outside, wallet) = town("jit_refused", |_| Ok(()))?;
    let bought = buy(&wallet, Some(PAYMENT))?;
    wallet.habits().refuses.store(true, Ordering::SeqCst);
    fails(&outside, &wallet.invoice(bought, Some(PAYMENT))?)?;
    ensure!(wallet.refused() > 0);
    ensure!(number(&order(&world)?, "taken_msat")? == 0);
    wallet.habits().refuses.store(false, Ordering::SeqCst);
    // Over the channel's own number nobody avoids the fee.
    let alias = wallet
        .channels()
        .first()
        .and_then(|c| c.get_inbound_payment_scid());
    let around = Offer {
        scid: alias.context("a number")?,
        ..bought
    };
    fails(&outside, &wallet.invoice(around, Some(PAYMENT))?)?;
    outside.pay(&wallet.invoice(bought, Some(PAYMENT))?)?;
    is_paid(&wallet, 1, PAYMENT, fee(PAYMENT))?;
    ensure!(wallet.channels().len() == 1);
    let order = is_in_the_books(&world, fee(PAYMENT))?;
    ensure!(number(&order, "opens")? == 1, "{order}");
    Ok(())
}

/// A channel that is paid for is not closed before its funding is as deep as was promised.
#[test]
fn a_channel_is_kept_as_long_as_was_promised() -> Result<()> {
    let (world, outside, wallet) = town("jit_lifetime", |coordinator| {
        coordinator.configure("jit.min_lifetime", 3)
    })?;
    let bought = buy(&wallet, Some(PAYMENT))?;
    outside.pay(&wallet.invoice(bought, Some(PAYMENT))?)?;
    is_paid(&wallet, 1, PAYMENT, fee(PAYMENT))?;
    in_mempool(&world, funding(&is_in_the_books(&world, fee(PAYMENT))?)?)?;
    let channel = wallet.channels().into_iter().next().context("a channel")?;
    let id = channel.channel_id.to_string();
    let close = || world.coordinator.command(&["node", "close-channel", &id]);
    close()?.refused(4, &["sold until its funding is 3 blocks deep"])?;
    world.mine(2)?;
    wallet.until("two confirmations", || deep(&wallet, 2))?;
    close()?.refused(4, &["sold until its funding is 3 blocks deep"])?;
    world.mine(1)?;
    wallet.until("the promise to be kept", || {
        close().is_ok_and(|answer| answer.code == 0)
    })
}

fn deep(wallet: &Independent, blocks: u32) -> bool {
    let mut channels = wallet.channels().into_iter();
    channels.any(|channel| channel.confirmations == Some(blocks))
}

/// A client that would have us wait for our money for longer than was agreed gets no channel.
#[test]
fn a_client_that_delays_us_for_too_long_gets_no_channel() -> Result<()> {
    // One block less than LDK asks for.
    let (world, outside, wallet) = town("jit_delay", |coordinator| {
        coordinator.configure("jit.max_to_self_delay", 143)
    })?;
    ensure!(wallet.offer()?.max_client_to_self_delay == 143);
    let bought = buy(&wallet, Some(PAYMENT))?;
    let mark = world.coordinator.mark()?;
    fails(&outside, &wallet.invoice(bought, Some(PAYMENT))?)?;
    refused(&world, mark, "Upper limit: 143")?;
    wallet.until("no channel", || wallet.channels().is_empty())?;
    ensure!(world.node.mempool()?.is_empty());
    Ok(())
}

/// A payment that leaves us one block less than was asked for goes back; with that block it is served.
#[test]
fn a_payment_that_leaves_too_little_time_goes_back() -> Result<()> {
    let (_world, outside, wallet) = town("jit_delta", |_| Ok(()))?;
    let bought = buy(&wallet, Some(PAYMENT))?;
    let hasty = Offer {
        delta: bought.delta - 1,
        ..bought
    };
    // LDK refuses it before we are asked.
    fails(&outside, &wallet.invoice(hasty, Some(PAYMENT))?)?;
    ensure!(wallet.channels().is_empty());
    outside.pay(&wallet.invoice(bought, Some(PAYMENT))?)?;
    is_paid(&wallet, 1, PAYMENT, fee(PAYMENT))
}

/// What is sent back says `unknown_next_peer`, and that is all the payer hears.
#[test]
fn what_is_sent_back_names_no_such_peer() -> Result<()> {
    let (world, outside, payer) = town("jit_sent_back", |_| Ok(()))?;
    let bought = buy(&payer, Some(PAYMENT))?;
    outside.pay(&payer.invoice(bought, Some(PAYMENT))?)?;
    is_paid(&payer, 1, PAYMENT, fee(PAYMENT))?;
    payer.until("money to spend", || {
        let mut channels = payer.channels().into_iter();
        channels.any(|channel| channel.next_outbound_htlc_limit_msat > 5_000_000)
    })?;
    // The first channel's change is spent on the second.
    world.mine(1)?;
    world.coordinator_sees(world.node.height()?)?;
    let other = Independent::start(&world, 93)?;
    let bought = buy(&other, None)?;
    let mark = world.coordinator.mark()?;
    // Less than the least.
    let told = payer.pays_in_vain(&other.invoice(bought, Some(5_000_000))?)?;
    refused(&world, mark, "not what the order is for")?;
    // BOLT 4: PERM|10.
    ensure!(told.contains("(0x400a)"), "{told}");
    Ok(())
}

/// What the budget, the hour or the client's orders forbid is refused before any money moves; what was sold before is sent back at once.
#[test]
fn what_cannot_be_served_is_not_sold() -> Result<()> {
    let (mut world, outside, wallet) = town("jit_limits", |coordinator| {
        coordinator.configure("jit.orders_per_client", 2)
    })?;
    ensure!(code(wallet.menu(Some("SALE"))?)? == 200);
    let offer = wallet.offer()?;
    let bought = buy(&wallet, Some(PAYMENT))?;
    buy(&wallet, Some(PAYMENT))?;
    ensure!(code(wallet.buy(offer.clone(), Some(PAYMENT))?)? == CLIENT_REJECTED);
    ensure!(code(wallet.buy(offer.clone(), Some(1))?)? == 202);
    ensure!(code(wallet.buy(offer.clone(), Some(u64::MAX))?)? == 203);
    world.coordinator.terminate()?;
    world.coordinator.configure("jit.onchain_budget_sat", 1)?;
    world.coordinator.configure("jit.orders_per_client", 9)?;
    returns(&mut world, &wallet)?;
    let menu = wallet.menu(None)?.map_err(|error| anyhow!("{error:?}"))?;
    ensure!(menu.is_empty(), "{menu:?}");
    ensure!(code(wallet.buy(offer, Some(PAYMENT))?)? == CLIENT_REJECTED);
    wallet.until("the payer", || has_usable(&outside, 1))?;
    let mark = world.coordinator.mark()?;
    fails(&outside, &wallet.invoice(bought, Some(PAYMENT))?)?;
    refused(&world, mark, "budget")?;
    ensure!(wallet.channels().is_empty());
    ensure!(world.node.mempool()?.is_empty());
    Ok(())
}

/// The coordinator dies after it has sent the payment on, and before the client takes it: the fee is found again, and the funding of a client that
/// trusts us goes out then.
#[test]
fn taken_after_a_crash() -> Result<()> {
    let (mut world, outside, wallet) = town("jit_crash_later", |coordinator| {
        coordinator.configure("jit.client_trusts_lsp", true)
    })?;
    wallet.habits().hangs.store(true, Ordering::SeqCst);
    let bought = buy(&wallet, Some(PAYMENT))?;
    let ours = outside.send(&wallet.invoice(bought, Some(PAYMENT))?)?;
    wallet.until("a payment that hangs", || wallet.has_hanging())?;
    world.coordinator.kill()?;
    returns(&mut world, &wallet)?;
    let txid = funding(&order(&world)?)?;
    ensure!(!world.node.mempool()?.contains(&txid), "the funding is out");
    wallet.claim_hanging()?;
    is_paid(&wallet, 1, PAYMENT, fee(PAYMENT))?;
    ensure!(outside.outcome(ours)?.is_ok());
    is_in_the_books(&world, fee(PAYMENT))?;
    in_mempool(&world, txid)
}

/// The coordinator dies at `point`, when it has just written something down or sent the payment on: it is served all the same, once, over one channel
/// with one funding, for the promised fee.
fn dies(point: &str) -> Result<()> {
    let (mut world, outside, wallet) = town(&format!("jit_dies_{point}"), |_| Ok(()))?;
    world.coordinator.terminate()?;
    returns_with(&mut world, &wallet, &[("SUPERSCALAR_FAULT", point)])?;
    wallet.until("the payer", || has_usable(&outside, 1))?;
    let bought = buy(&wallet, Some(PAYMENT))?;
    let ours = outside.send(&wallet.invoice(bought, Some(PAYMENT))?)?;
    world.coordinator.wait_until_ended()?;
    returns(&mut world, &wallet)?;
    is_paid(&wallet, 1, PAYMENT, fee(PAYMENT))?;
    ensure!(outside.outcome(ours)?.is_ok());
    // It may have been written down before it was told.
    becomes("the fee in the books", || {
        let order = order(&world)?;
        Ok(order["state"] == "paid" && number(&order, "taken_msat")? == fee(PAYMENT))
    })?;
    let txid = funding(&order(&world)?)?;
    in_mempool(&world, txid)?;
    ensure!(world.node.mempool()? == [txid]);
    let channels = wallet.channels();
    ensure!(channels.iter().filter(|channel| channel.is_usable).count() == 1);
    Ok(())
}

deaths! {
    dies_when_the_order_is_begun: dies("jit_opening");
    dies_when_the_funding_is_written_down: dies("jit_funded");
    dies_when_the_channel_stands: dies("jit_stands");
    dies_when_the_payment_went_on: dies("jit_forwarded");
    dies_when_the_fee_is_taken: dies("jit_paid");
}
