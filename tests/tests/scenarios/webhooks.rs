//! Wallets that sleep, and are woken: LSPS5 over a real HTTPS server.

use std::time::SystemTime;

use anyhow::{Result, anyhow, ensure};
use bitcoin::hashes::{Hash, sha256};
use bitcoin::secp256k1::PublicKey;
use channel_host::{Msat, PaymentHash};
use lightning_liquidity::lsps0::ser::LSPSDateTime;
use lightning_liquidity::lsps5::msgs::{LSPS5Error, LSPS5ProtocolError};
use lightning_liquidity::lsps5::validator::LSPS5Validator;
use scenarios::ladder::Ladder;
use scenarios::outside::Outside;
use scenarios::service::Service;
use scenarios::webhook::{Posted, Webhook};
use scenarios::world::{COORDINATOR_COINS, World, number, path_text};
use signer_client::webhooks::read_notification;

use crate::independent::{Independent, Received};
use crate::jit;
use crate::ladder_births::SHORT;
use crate::ladder_clients::{all_hand_over, all_have, stop_births, town_in};

/// The coordinator trusts the server, and may reach it though it is on loopback.
fn trusts(coordinator: &Service, webhook: &Webhook) -> Result<()> {
    coordinator.configure("webhooks.ca_file", path_text(webhook.ca_file())?)?;
    coordinator.configure("webhooks.allow_private", true)
}

/// Our own judgement and that of a library that is not ours.
fn is_genuine(world: &World, posted: &Posted, method: &str) -> Result<()> {
    let (coordinator, _) = world.lightning()?;
    let Posted {
        timestamp,
        signature,
        body,
        ..
    } = posted;
    let read = read_notification(&coordinator, timestamp, signature, body, SystemTime::now())?;
    ensure!(read.method == method, "{read:?}");
    theirs(coordinator, posted)
}

fn theirs(coordinator: PublicKey, posted: &Posted) -> Result<()> {
    let time: LSPSDateTime = posted.timestamp.parse().map_err(|()| anyhow!("no time"))?;
    let notification = serde_json::from_str(&posted.body)?;
    let validated =
        LSPS5Validator::new().validate(coordinator, &time, &posted.signature, &notification);
    ensure!(validated.is_ok(), "{validated:?}: {posted:?}");
    Ok(())
}

/// A wallet sleeps into the dying days. Its webhook is away at first, the coordinator dies in between: it is woken all the same, and moves.
#[test]
fn a_sleeping_wallet_is_woken_and_moves() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let webhook = Webhook::start(directory.path())?;
    let mut ladder = Ladder::prepare(&World::directory("webhook_wakes")?, SHORT)?;
    trusts(&ladder.world.coordinator, &webhook)?;
    ladder.begin(COORDINATOR_COINS)?;
    ladder.world.add_clients(1)?;
    let early = ladder.world.client(0)?;
    early.wait_for("lightning_connected")?;
    let refused = early.command(&["webhook", "set", "push", &webhook.url("early")])?;
    refused.refused(4, &["webhooks are for clients of a factory"])?;
    let (mut ladder, first) = town_in(ladder, 2, |_| Ok(()))?;
    let sleeper = ladder.world.client(2)?;
    let set = sleeper.json(&["webhook", "set", "push", &webhook.url("token")])?;
    ensure!(number(&set, "num_webhooks")? == 1, "{set}");
    let greeting = webhook.wait(0, "lsps5.webhook_registered")?;
    is_genuine(&ladder.world, &greeting, "lsps5.webhook_registered")?;
    ensure!(greeting.path == "/token", "{greeting:?}");
    let list = sleeper.json(&["webhook", "list"])?;
    ensure!(list["app_names"] == serde_json::json!(["push"]), "{list}");
    sleeper.json(&["webhook", "set", "other", &webhook.url("other")])?;
    sleeper.json(&["webhook", "remove", "other"])?;
    let gone = sleeper.command(&["webhook", "remove", "other"])?;
    gone.refused(4, &["there is no webhook of this app_name"])?;
    let plain = sleeper.command(&["webhook", "set", "push", "http://127.0.0.1/"])?;
    plain.refused(4, &["not an https URL"])?;
    ladder.world.client_mut(2)?.terminate()?;

    webhook.answers(307);
    let export = ladder.export(&first)?.clone();
    let dying = ladder.end(&export) - ladder.numbers.factory.dying;
    let mark = ladder.world.coordinator.mark()?;
    ladder.live_until(dying)?;
    let failed = ladder
        .world
        .coordinator
        .wait_after(mark, "webhook_failed", |event| {
            event.is("webhook_failed") && event.text("problem").contains("307")
        })?;
    ensure!(!failed.to_string().contains("token"), "{failed:?}");
    let followed = webhook.posted().iter().any(|one| one.path == "/elsewhere");
    ensure!(!followed, "a redirection was followed");
    ladder.kill_coordinator()?;
    let mark = webhook.posted().len();
    webhook.answers(200);
    ladder.coordinator_returns(&[])?;
    let woken = webhook.wait(mark, "lsps5.liquidity_management_request")?;
    is_genuine(&ladder.world, &woken, "lsps5.liquidity_management_request")?;

    ladder.world.client_mut(2)?.start()?;
    ladder.world.client(2)?.wait_for("connected")?;
    all_hand_over(&mut ladder, &first, &[0, 1, 2])?;
    all_have(&ladder, &[0, 1, 2])?;
    ensure!(
        ladder.tally.factories[&first].published.is_empty(),
        "a path was published"
    );
    stop_births(&mut ladder)
}

/// A payment finds its receiver asleep, and waits while it is woken.
#[test]
fn a_payment_wakes_its_receiver() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let webhook = Webhook::start(directory.path())?;
    let mut world = World::start_with("webhook_payment", |coordinator| {
        trusts(coordinator, &webhook)
    })?;
    world.add_clients(2)?;
    world.join(&[0, 1])?;
    let created = world.create(&[])?;
    world.usable_for(&created, &[0, 1])?;
    let outside = Outside::start(&mut world)?;
    let invoice = world.invoice(0, 30_000)?;
    let url = webhook.url("token");
    world.client(0)?.json(&["webhook", "set", "push", &url])?;
    webhook.wait(0, "lsps5.webhook_registered")?;
    world.client_mut(0)?.terminate()?;

    let ours = outside.send(&invoice)?;
    let woken = webhook.wait(1, "lsps5.payment_incoming")?;
    is_genuine(&world, &woken, "lsps5.payment_incoming")?;
    world.client_mut(0)?.start()?;
    let outcome = outside.outcome(ours)?;
    ensure!(outcome.is_ok(), "{outcome:?}");
    world.lightning_becomes(0, 30_000_000)
}

/// A payment over a leaf is urgent no earlier than so many blocks before it would have expired beyond the coordinator.
const CALM: u32 = 20;
/// After so many more it is urgent at the latest.
const URGENT: usize = 400;

/// A wallet pays, and is gone when its payment is taken: before the coordinator has to fetch its own on the chain, the wallet is woken, and settles.
#[test]
fn a_payment_that_expires_soon_wakes_its_payer() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let webhook = Webhook::start(directory.path())?;
    let mut world = World::start_with("webhook_expiry", |coordinator| {
        trusts(coordinator, &webhook)
    })?;
    world.add_clients(2)?;
    world.join(&[0, 1])?;
    // A month that leaves room for the payment's locks.
    let created = world.create(&["--set", "active=900"])?;
    world.usable_for(&created, &[0, 1])?;
    let outside = Outside::start(&mut world)?;
    // From there, so that there is room on the way back.
    outside.pay(&world.invoice(0, 60_000)?)?;
    world.lightning_becomes(0, 60_000_000)?;
    let url = webhook.url("token");
    world.client(0)?.json(&["webhook", "set", "push", &url])?;
    webhook.wait(0, "lsps5.webhook_registered")?;

    let preimage = [7; 32];
    let hash = PaymentHash(sha256::Hash::hash(&preimage).to_byte_array());
    let invoice = outside.hold_invoice(Msat(5_000_000), hash)?;
    world.client(0)?.json(&["pay", &invoice, "--background"])?;
    let expiry = outside.holds(hash)?;
    world.client_mut(0)?.kill()?;
    outside.claim(preimage)?;
    outside.paid(hash)?;
    let before = expiry - CALM;
    world.node.mine_until(before)?;
    world.coordinator_sees_tip()?;
    for _ in 0..URGENT {
        let posted = webhook.posted();
        if posted.iter().any(|one| one.body.contains("expiry_soon")) {
            break;
        }
        world.mine(1)?;
        world.coordinator_sees_tip()?;
    }
    let woken = webhook.wait(1, "lsps5.expiry_soon")?;
    is_genuine(&world, &woken, "lsps5.expiry_soon")?;
    let body: serde_json::Value = serde_json::from_str(&woken.body)?;
    let timeout = number(&body["params"], "timeout")?;
    let now = world.node.height()?;
    ensure!(u64::from(before) < timeout, "{body}, after {before}");
    ensure!(timeout < u64::from(now) + 24, "{body} at {now}");

    world.client_mut(0)?.start()?;
    world.client(0)?.wait_for("payment_sent")?;
    Ok(())
}

/// Somebody pays a wallet of somebody else that is away: its webhook, which is new at this path, hears of it, and it comes for its payment.
fn is_woken_and_paid(
    (world, outside): (&World, &Outside),
    (wallet, webhook): (&Independent, &Webhook),
    path: &str,
    invoice: &str,
) -> Result<()> {
    let mark = webhook.posted().len();
    let set = wallet.set_webhook(&webhook.url(path))?;
    ensure!(set.is_ok(), "{set:?}");
    webhook.wait(mark, "lsps5.webhook_registered")?;
    wallet.set_away(true)?;
    wallet.until("the coordinator to see that it is gone", || {
        let peers = world.coordinator.json(&["node", "peers"]);
        peers.is_ok_and(|peers| peers["peers"].as_array().map(Vec::len) == Some(1))
    })?;
    let ours = outside.send(invoice)?;
    let woken = webhook.wait(mark, "lsps5.payment_incoming")?;
    is_genuine(world, &woken, "lsps5.payment_incoming")?;
    ensure!(woken.path == format!("/{path}"), "{woken:?}");
    wallet.set_away(false)?;
    let outcome = outside.outcome(ours)?;
    ensure!(outcome.is_ok(), "{outcome:?}");
    Ok(())
}

/// A wallet of somebody else, in no factory, sleeps while the payment comes that opens its channel, and while the next one comes over that: it is
/// woken for both.
#[test]
fn a_wallet_without_a_factory_is_woken_for_its_channel() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let webhook = Webhook::start(directory.path())?;
    let mut world = World::start_with("webhook_channel", |coordinator| {
        jit::sells(coordinator)?;
        trusts(coordinator, &webhook)
    })?;
    let outside = Outside::start(&mut world)?;
    let wallet = Independent::start(&world, 92)?;
    let stranger = wallet.set_webhook(&webhook.url("early"))?;
    let refused = LSPS5Error::Protocol(LSPS5ProtocolError::NoPriorActivityError);
    ensure!(stranger == Err(refused), "{stranger:?}");
    let bought = wallet.buy(wallet.offer()?, Some(jit::PAYMENT))?;
    let bought = bought.map_err(|error| anyhow!("{error:?}"))?;
    let sides = ((&world, &outside), (&wallet, &webhook));

    let first = wallet.invoice(bought, Some(jit::PAYMENT))?;
    is_woken_and_paid(sides.0, sides.1, "first", &first)?;
    let fee_msat = jit::fee(jit::PAYMENT);
    let msat = jit::PAYMENT - fee_msat;
    ensure!(wallet.received(1)? == Received { msat, fee_msat });
    world.coordinator.wait_for("jit_paid")?;

    let next = wallet.invoice(bought, Some(20_000_000))?;
    is_woken_and_paid(sides.0, sides.1, "next", &next)?;
    let whole = Received {
        msat: 20_000_000,
        fee_msat: 0,
    };
    ensure!(wallet.received(2)? == whole);
    Ok(())
}
