//! Channels just in time, bought by our own wallet: it has a seed, and nothing else.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bitcoin::Amount;
use channel_host::{Msat, PaymentHash};
use scenarios::bitcoind::Options;
use scenarios::event::Event;
use scenarios::outside::Outside;
use scenarios::process::PATIENCE;
use scenarios::service::Service;
use scenarios::world::{World, number, text};
use serde_json::Value;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

use crate::jit::{PAYMENT, fee, sells};

/// What the wallet asks for, in satoshi.
const ASKED: &str = "500000";

/// A world that sells, somebody to pay from outside, and a fresh wallet that runs.
fn town(name: &str, configure: impl FnOnce(&Service) -> Result<()>) -> Result<(World, Outside)> {
    let mut world = World::start_with(name, |coordinator| {
        sells(coordinator)?;
        configure(coordinator)
    })?;
    let outside = Outside::start(&mut world)?;
    world.add_clients(1)?;
    world.client(0)?.wait_for("lightning_connected")?;
    Ok((world, outside))
}

fn ordered(wallet: &Service) -> Result<Value> {
    wallet.json(&["invoice", "--jit", ASKED, "--yes"])
}

/// What arrived last, and what was kept of it.
pub(crate) fn received(wallet: &Service, mark: usize) -> Result<(u64, u64)> {
    let event = wallet.wait_after(mark, "a payment", |event| event.is("payment_received"))?;
    let field = |name| event.number(name).context("a number");
    Ok((field("amount_msat")?, field("fee_msat")?))
}

/// The wallet's only channel.
fn channel(wallet: &Service) -> Result<Value> {
    let answer = wallet.json(&["channels"])?;
    let channels = answer["channels"].as_array().context("a list")?;
    ensure!(channels.len() == 1, "{answer}");
    Ok(channels[0].clone())
}

pub(crate) fn becomes(what: &str, mut so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !so()? {
        ensure!(Instant::now() < deadline, "waited for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Paid over a channel that was not there, less the promised fee to the thousandth of a satoshi; shown; spent from; paid again, whole; and in the
/// end taken out to the chain.
#[test]
fn a_wallet_with_nothing_is_paid_pays_and_leaves() -> Result<()> {
    let (world, outside) = town("jit_wallet", |_| Ok(()))?;
    let wallet = world.client(0)?;
    let made = ordered(wallet)?;
    ensure!(number(&made, "fee_msat")? == fee(PAYMENT), "{made}");
    ensure!(
        number(&made, "receive_msat")? == PAYMENT - fee(PAYMENT),
        "{made}"
    );
    // The coordinator says why it is not the one to pay it.
    let invoice = text(&made, "invoice")?;
    let own = world.coordinator.command(&["node", "pay", &invoice])?;
    own.refused(4, &["invoice --jit", "another node"])?;
    outside.pay(&invoice)?;
    ensure!(received(wallet, 0)? == (PAYMENT - fee(PAYMENT), fee(PAYMENT)));
    world.lightning_becomes(0, PAYMENT - fee(PAYMENT))?;

    let open = channel(wallet)?;
    ensure!(open["factory"].is_null(), "{open}");
    ensure!(open["state"] == "open", "{open}");
    ensure!(open["factory_confirmed"] == false, "{open}");
    let payments = wallet.json(&["payments"])?;
    ensure!(
        number(&payments["payments"][0], "fee_msat")? == fee(PAYMENT),
        "{payments}"
    );
    let account = |field: &str| -> Result<u64> {
        let status = wallet.json(&["status"])?;
        ensure!(status["channels"][0]["state"] == "open", "{status}");
        number(&status["account"], field)
    };
    becomes("a balance in the status", || {
        Ok(account("balance_msat")? == PAYMENT - fee(PAYMENT))
    })?;
    let told = wallet.command(&["status"])?.stdout;
    ensure!(told.contains("outside of factories, open"), "{told}");
    let limit = wallet.json(&["limit", "show"])?;
    ensure!(
        number(&limit, "limit_sat")? == number(&open, "capacity_sat")?,
        "{limit}"
    );
    ensure!(number(&limit, "receivable_msat")? > 0, "{limit}");
    let told = wallet.command(&["limit", "show"])?.stdout;
    ensure!(told.contains("outside of factories"), "{told}");

    let paid = outside.invoice(Msat(200_000_000))?;
    let sent = world.pay(0, &paid)?;
    let cost = number(&sent, "fee_msat")?;
    let left = PAYMENT - fee(PAYMENT) - 200_000_000 - cost;
    world.lightning_becomes(0, left)?;
    // An ordinary invoice is paid over the same channel, and nothing is kept of it.
    let mark = wallet.mark()?;
    outside.pay(&world.invoice(0, 50_000)?)?;
    ensure!(received(wallet, mark)? == (50_000_000, 0));
    let left = left + 50_000_000;
    let needless = wallet.command(&["invoice", "--jit", "50000", "--yes", "--json"])?;
    needless.refused(4, &["has room for this payment"])?;
    world.lightning_becomes(0, left)?;

    world.mine(6)?;
    becomes("a confirmed channel", || {
        Ok(channel(wallet)?["factory_confirmed"] == true)
    })?;
    let id = text(&channel(wallet)?, "channel")?;
    wallet.json(&["close", &id, "--yes"])?;
    wallet.wait_for("jit_channel_closed")?;
    let balance = wallet.json(&["balance"])?;
    ensure!(
        number(&balance, "lightning_closing_sat")? == left / 1000,
        "{balance}"
    );
    becomes("its money in the wallet", || {
        world.mine(1)?;
        let balance = wallet.json(&["balance"])?;
        let there = number(&balance, "confirmed_sat")?;
        Ok(number(&balance, "lightning_closing_sat")? == 0 && there + 1_000 > left / 1000)
    })?;
    let channels = wallet.json(&["channels"])?;
    ensure!(channels["channels"] == serde_json::json!([]), "{channels}");
    Ok(())
}

/// The coordinator is gone for good: the wallet closes its channel alone, with a coin of its own, and has its money when the delay is over.
#[test]
fn what_is_outside_comes_home_without_the_coordinator() -> Result<()> {
    /// What all that is published costs at most.
    const COST: u64 = 20_000;
    let coin = Amount::from_sat(80_000);
    let (mut world, outside) = town("jit_wallet_forced", |_| Ok(()))?;
    world.fund_clients(&[0], coin)?;
    let wallet = world.client(0)?;
    let made = ordered(wallet)?;
    outside.pay(&text(&made, "invoice")?)?;
    let has = PAYMENT - fee(PAYMENT);
    world.lightning_becomes(0, has)?;
    world.mine(6)?;
    becomes("a confirmed channel", || {
        Ok(channel(wallet)?["factory_confirmed"] == true)
    })?;
    let id = text(&channel(wallet)?, "channel")?;
    world.coordinator.kill()?;
    let wallet = world.client(0)?;
    wallet.json(&["close", &id, "--force", "--yes"])?;
    wallet.wait_for("jit_channel_closed")?;
    becomes("its closing in the mempool", || {
        Ok(!world.node.mempool()?.is_empty())
    })?;
    becomes("its money in the wallet", || {
        world.mine(12)?;
        world.client_sees(0, world.node.height()?)?;
        let balance = wallet.json(&["balance"])?;
        let there = number(&balance, "confirmed_sat")?;
        Ok(number(&balance, "lightning_closing_sat")? == 0
            && there + COST > coin.to_sat() + has / 1_000)
    })
}

/// A payment is held for a wallet that is away, and the wallet comes.
fn held(world: &World, outside: &Outside, invoice: &str) -> Result<PaymentHash> {
    let ours = outside.send(invoice)?;
    becomes("a payment that waits", || {
        let channels = world.coordinator.json(&["node", "channels"])?;
        let all = channels["channels"].as_array().context("a list")?;
        Ok(all.iter().any(|channel| channel["pending"] == 1))
    })?;
    Ok(ours)
}

/// The wallet is killed between its order and the payment, and again when it is paid: every run knows the order, and what came of it.
#[test]
fn a_wallet_that_dies_in_between_is_paid() -> Result<()> {
    let (mut world, outside) = town("jit_wallet_dies", |_| Ok(()))?;
    let made = ordered(world.client(0)?)?;
    world.client_mut(0)?.kill()?;
    let ours = held(&world, &outside, &text(&made, "invoice")?)?;
    world.client_mut(0)?.start()?;
    ensure!(outside.outcome(ours)?.is_ok());
    ensure!(received(world.client(0)?, 0)? == (PAYMENT - fee(PAYMENT), fee(PAYMENT)));
    world.client_mut(0)?.kill()?;
    world.client_mut(0)?.start()?;
    world.client(0)?.wait_for("lightning_connected")?;
    world.lightning_becomes(0, PAYMENT - fee(PAYMENT))?;
    let paid = world.coordinator.wait_for("jit_paid")?;
    ensure!(paid.number("fee_msat") == Some(fee(PAYMENT)));
    Ok(())
}

/// It dies when its channel has just been opened, before it can take the payment. What is on its way then may go back to the payer; the next try is
/// taken over that channel, less the fee: the node has to know that again.
#[test]
fn a_wallet_that_dies_with_its_channel_just_open_is_paid() -> Result<()> {
    let (mut world, outside) = town("jit_wallet_dies_later", |_| Ok(()))?;
    let made = ordered(world.client(0)?)?;
    let invoice = text(&made, "invoice")?;
    world.client_mut(0)?.kill()?;
    let ours = held(&world, &outside, &invoice)?;
    let wallet = world.client_mut(0)?;
    wallet.start_with(&[("SUPERSCALAR_FAULT", "jit_channel_opened")])?;
    wallet.wait_until_ended()?;
    wallet.start()?;
    wallet.wait_for("lightning_connected")?;
    if outside.outcome(ours)?.is_err() {
        outside.send(&invoice)?;
    }
    world.lightning_becomes(0, PAYMENT - fee(PAYMENT))?;
    channel(world.client(0)?)?;
    let paid = world.coordinator.wait_for("jit_paid")?;
    ensure!(paid.number("fee_msat") == Some(fee(PAYMENT)));
    Ok(())
}

/// Dearer than the user agreed to, or paid for only afterwards: refused, and nothing is ordered that could cost anything.
#[test]
fn what_the_user_did_not_agree_to_is_not_ordered() -> Result<()> {
    let (mut world, outside) = town("jit_wallet_refuses", |coordinator| {
        coordinator.configure("jit.client_trusts_lsp", true)
    })?;
    let mark = world.coordinator.mark()?;
    let cap = (fee(PAYMENT) / 1000 - 1).to_string();
    let wallet = world.client(0)?;
    let dear = [
        "invoice",
        "--jit",
        ASKED,
        "--yes",
        "--max-fee",
        &cap,
        "--json",
    ];
    let answer = wallet.command(&dear)?;
    answer.refused(
        4,
        &["the channel costs 5000 sat, and no more than 4999 sat is to be paid for it"],
    )?;
    let answer = wallet.command(&["invoice", "--jit", "1", "--yes", "--json"])?;
    answer.refused(4, &["opens channels for payments of 10000 sat to"])?;
    // The configured cap.
    world.client_mut(0)?.terminate()?;
    world.client(0)?.configure("jit.max_fee_sat", 4_999)?;
    world.client_mut(0)?.start()?;
    let wallet = world.client(0)?;
    wallet.wait_for("lightning_connected")?;
    let answer = wallet.command(&["invoice", "--jit", ASKED, "--yes", "--json"])?;
    answer.refused(4, &["no more than 4999 sat"])?;
    let sold = |event: &Event| event.is("jit_sold");
    ensure!(!world.coordinator.events()?[mark..].iter().any(sold));
    // The coordinator wants to be trusted.
    let exact = (fee(PAYMENT) / 1000).to_string();
    let trusting = [
        "invoice",
        "--jit",
        ASKED,
        "--yes",
        "--max-fee",
        &exact,
        "--json",
    ];
    let answer = wallet.command(&trusting)?;
    answer.refused(4, &["only after this wallet has taken the payment"])?;
    world.client_mut(0)?.terminate()?;
    world.client(0)?.configure("jit.allow_unfunded", true)?;
    world.client_mut(0)?.start()?;
    let wallet = world.client(0)?;
    wallet.wait_for("lightning_connected")?;
    let made = wallet.command(&trusting)?.json()?;
    outside.pay(&text(&made, "invoice")?)?;
    world.lightning_becomes(0, PAYMENT - fee(PAYMENT))
}

/// Paid with nothing, then a member of a factory: what it has comes to lie there by itself, the other channel is closed, and what had to stay in that
/// one comes on the chain. All of it is there.
#[test]
fn what_it_has_is_brought_into_its_first_factory() -> Result<()> {
    const SMALL: u64 = 60_000;
    // The coordinator's node forwards over the channel with the least room: the old one must have less than what is brought.
    let (mut world, outside) = town("jit_wallet_consolidated", |coordinator| {
        coordinator.configure("jit.margin_sat", 20_000)
    })?;
    world.add_clients(1)?;
    let wallet = world.client(0)?;
    let made = wallet.json(&["invoice", "--jit", &SMALL.to_string(), "--yes"])?;
    outside.pay(&text(&made, "invoice")?)?;
    let has = number(&made, "receive_msat")?;
    world.lightning_becomes(0, has)?;
    world.mine(6)?;
    world.join(&[0, 1])?;
    let created = world.create(&[])?;
    world.usable_for(&created, &[0, 1])?;
    let wallet = world.client(0)?;
    wallet.wait_for("consolidated")?;
    wallet.wait_for("jit_channel_closed")?;
    becomes("its reserve in the wallet", || {
        world.mine(1)?;
        let balance = wallet.json(&["balance"])?;
        Ok(number(&balance, "confirmed_sat")? > 0
            && number(&balance, "lightning_closing_sat")? == 0)
    })?;
    let only = channel(wallet)?;
    ensure!(only["factory"] == created.factory.as_str(), "{only}");
    let balance = wallet.json(&["balance"])?;
    let inside = number(&balance, "lightning_msat")? / 1_000;
    let all = inside + number(&balance, "confirmed_sat")?;
    ensure!(inside > has / 1_000 * 97 / 100, "{balance}");
    ensure!(
        all > has / 1_000 * 98 / 100 && all <= has / 1_000,
        "{balance}"
    );
    // Nothing more is brought, and the wallet is paid over its factory.
    let mark = wallet.mark()?;
    outside.pay(&world.invoice(0, 20_000)?)?;
    ensure!(received(wallet, mark)? == (20_000_000, 0));
    Ok(())
}

/// Who does not want that is left alone.
#[test]
fn what_is_to_stay_outside_stays() -> Result<()> {
    let mut world = World::start_with("jit_wallet_stays", sells)?;
    let outside = Outside::start(&mut world)?;
    world.configure_clients("jit.consolidate", false);
    world.add_clients(2)?;
    world.client(0)?.wait_for("lightning_connected")?;
    let made = world
        .client(0)?
        .json(&["invoice", "--jit", "60000", "--yes"])?;
    outside.pay(&text(&made, "invoice")?)?;
    world.lightning_becomes(0, number(&made, "receive_msat")?)?;
    world.mine(6)?;
    world.join(&[0, 1])?;
    let created = world.create(&[])?;
    world.usable_for(&created, &[0, 1])?;
    // Twice as long as the other test waits for it.
    std::thread::sleep(Duration::from_secs(5));
    let answer = world.client(0)?.json(&["channels"])?;
    let channels = answer["channels"].as_array().context("a list")?;
    ensure!(channels.len() == 2, "{answer}");
    Ok(())
}

/// The coordinator keeps the fundings of all channels it has sold back until they are paid for, whatever it told their buyers; or it does not.
fn withholds(world: &mut World, outside: &Outside, withholds: bool) -> Result<()> {
    world.coordinator.terminate()?;
    change_word(&world.coordinator.data().join("channels.sqlite"), withholds)?;
    world.coordinator.start()?;
    world.coordinator.wait_for("ready")?;
    becomes("the payer and the wallet", || {
        let peers = world.coordinator.json(&["node", "peers"])?;
        let channels = outside.node().channels();
        let usable = channels.iter().any(|channel| channel.usable);
        Ok(usable && peers["peers"].as_array().context("a list")?.len() == 2)
    })
}

fn change_word(store: &Path, withholds: bool) -> Result<()> {
    let word = |withholds: bool| format!("\"client_trusts_lsp\":{withholds}");
    let change = "UPDATE entry SET value = CAST(replace(CAST(value AS TEXT), ?, ?) AS BLOB) WHERE subspace = 'jit'";
    tokio::runtime::Runtime::new()?.block_on(async {
        let mut store = SqliteConnectOptions::new()
            .filename(store)
            .connect()
            .await?;
        let done = sqlx::query(change)
            .bind(word(!withholds))
            .bind(word(withholds))
            .execute(&mut store)
            .await?;
        ensure!(done.rows_affected() == 1, "one order");
        Ok(store.close().await?)
    })
}

/// Pays a wallet whose coordinator keeps the funding back: the payment is there, and waits, over a crash of the wallet too.
fn waits(world: &mut World, outside: &Outside) -> Result<PaymentHash> {
    let made = ordered(world.client(0)?)?;
    withholds(world, outside, true)?;
    let ours = outside.send(&text(&made, "invoice")?)?;
    let waits = world.client(0)?.wait_for("jit_funding_awaited")?;
    ensure!(waits.number("amount_msat") == Some(PAYMENT - fee(PAYMENT)));
    world.client_mut(0)?.kill()?;
    world.client_mut(0)?.start()?;
    world.client(0)?.wait_for("lightning_connected")?;
    // A block changes nothing, nor does some time.
    world.mine(1)?;
    world.client_sees(0, world.node.height()?)?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(world.node.mempool()?.is_empty(), "the funding is out");
    ensure!(!has_told(world.client(0)?, "payment_received")?);
    ensure!(!has_told(&world.coordinator, "jit_paid")?);
    Ok(ours)
}

fn has_told(service: &Service, name: &str) -> Result<bool> {
    Ok(service.events()?.iter().any(|event| event.is(name)))
}

/// The coordinator says that it pays for the channel first, and never does: the wallet does not give the preimage away, and sends the payment back
/// before it expires. The payer has its money, and nobody closes a channel for it.
#[test]
fn what_came_over_a_channel_that_nobody_paid_for_goes_back() -> Result<()> {
    let (mut world, outside) = town("jit_wallet_unfunded", |_| Ok(()))?;
    let ours = waits(&mut world, &outside)?;
    let from = world.node.height()?;
    while !has_told(world.client(0)?, "payment_refused")? {
        ensure!(world.node.height()? < from + 500, "it is held for ever");
        world.mine(1)?;
        world.coordinator_sees_tip()?;
        world.client_sees(0, world.node.height()?)?;
    }
    let refused = world.client(0)?.wait_for("payment_refused")?;
    ensure!(
        refused.text("reason").contains("was not seen"),
        "{refused:?}"
    );
    ensure!(outside.outcome(ours)?.is_err());
    world.lightning_becomes(0, 0)?;
    ensure!(channel(world.client(0)?)?["state"] == "open");
    ensure!(!has_told(&world.coordinator, "jit_paid")?);
    ensure!(world.node.mempool()?.is_empty(), "the funding is out");
    Ok(())
}

/// The funding goes out late, and the payment is taken then.
#[test]
fn what_came_over_a_channel_that_is_paid_for_late_is_taken_late() -> Result<()> {
    let (mut world, outside) = town("jit_wallet_funded_late", |_| Ok(()))?;
    let ours = waits(&mut world, &outside)?;
    withholds(&mut world, &outside, false)?;
    ensure!(received(world.client(0)?, 0)? == (PAYMENT - fee(PAYMENT), fee(PAYMENT)));
    ensure!(outside.outcome(ours)?.is_ok());
    world.lightning_becomes(0, PAYMENT - fee(PAYMENT))
}

/// A funding that was there and is in no mempool any more is waited for again, by what comes later.
#[test]
fn a_funding_that_is_gone_is_waited_for_again() -> Result<()> {
    let (world, outside) = town("jit_wallet_forgotten", |_| Ok(()))?;
    let wallet = world.client(0)?;
    let made = ordered(wallet)?;
    outside.pay(&text(&made, "invoice")?)?;
    ensure!(received(wallet, 0)? == (PAYMENT - fee(PAYMENT), fee(PAYMENT)));
    world.lightning_becomes(0, PAYMENT - fee(PAYMENT))?;
    let invoice = world.invoice(0, 50_000)?;
    world.node.restart_with(Options {
        arguments: vec!["-persistmempool=0".into()],
        ..Options::default()
    })?;
    ensure!(world.node.mempool()?.is_empty());
    let mark = wallet.mark()?;
    let ours = outside.send(&invoice)?;
    wallet.wait_after(mark, "a payment that waits", |event| {
        event.is("jit_funding_awaited")
    })?;
    // At a block the coordinator sends it out again.
    world.node.mine_empty(1)?;
    ensure!(received(wallet, mark)? == (50_000_000, 0));
    ensure!(outside.outcome(ours)?.is_ok());
    Ok(())
}
