//! Wallets that buy inbound liquidity by themselves.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use scenarios::process::PATIENCE;
use scenarios::world::{World, number};
use serde_json::Value;

use crate::sales::{BALANCE, BOUGHT, FEE, back, channels, ends, ledger, room, town};

/// What the wallet is paid, so that too little can be received.
const PAID: u64 = 30_000;

/// What a wallet is told to do.
struct Policy {
    below: u64,
    amount: u64,
    each: u64,
    month: u64,
}

/// Starts the first wallet anew with this policy.
fn told(world: &mut World, policy: &Policy, environment: &[(&str, &str)]) -> Result<()> {
    let client = world.client_mut(0)?;
    client.terminate()?;
    client.configure("top_up.enabled", true)?;
    for (key, value) in [
        ("below_sat", policy.below),
        ("amount_sat", policy.amount),
        ("max_fee_sat", policy.each),
        ("max_fee_sat_per_month", policy.month),
        ("settle_seconds", 1),
        ("pause_seconds", 1),
    ] {
        client.configure(&format!("top_up.{key}"), i64::try_from(value)?)?;
    }
    client.start_with(environment)?;
    back(world, 0)
}

fn purchases(world: &World) -> Result<Vec<Value>> {
    let list = world.client(0)?.json(&["limit", "purchases"])?;
    Ok(list["purchases"].as_array().context("a list")?.clone())
}

/// Waits until the wallet says that it buys nothing for this reason.
fn waits(world: &World, state: &str) -> Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let view = world.client(0)?.json(&["limit", "show"])?;
        if view["top_up"]["state"] == state {
            return Ok(view);
        }
        ensure!(Instant::now() < deadline, "not {state}: {view}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Paid until it can receive too little, the wallet buys what is covered and what its budget allows, and nothing else.
#[test]
fn it_buys_by_itself() -> Result<()> {
    let (mut world, _) = town("top_up", 2)?;
    let before = room(&world, 0)?;
    let mut policy = Policy {
        below: before - PAID * 2 / 3,
        // More than it is sure of.
        amount: 10_000_000,
        each: FEE + 200,
        month: FEE * 3 / 2,
    };
    told(&mut world, &policy, &[])?;
    waits(&world, "enough")?;
    world.coordinator_pays(&[0], PAID)?;
    waits(&world, "uncovered")?;
    ensure!(
        purchases(&world)?.is_empty(),
        "bought without consent: {:?}",
        purchases(&world)?
    );

    policy.amount = BOUGHT;
    told(&mut world, &policy, &[])?;
    let ordered = world.client(0)?.wait_for("purchase_ordered")?;
    ensure!(ordered.0["automatic"] == true, "{ordered:?}");
    ends(&world, 0, "settled")?;
    world.lightning_becomes(0, (BALANCE + PAID - FEE) * 1_000)?;
    let view = waits(&world, "enough")?;
    ensure!(
        number(&view["top_up"], "spent_msat")? == FEE * 1_000,
        "{view}"
    );
    let made = view["channels"].as_array().context("a list")?;
    ensure!(
        made.iter().filter(|one| one["automatic"] == true).count() == 1,
        "{view}"
    );
    let told = world.client(0)?.command(&["limit", "show"])?.stdout;
    ensure!(told.contains("of sale 1, by itself"), "{told}");
    ensure!(told.contains("Now: enough can be received"), "{told}");

    // Half a purchase is left of the budget.
    world.coordinator_pays(&[0], PAID)?;
    world.client(0)?.wait("a budget", |event| {
        event.is("top_up_held") && event.text("state") == "budget"
    })?;
    std::thread::sleep(Duration::from_secs(5));
    let bought = purchases(&world)?;
    ensure!(
        bought.len() == 1 && bought[0]["automatic"] == true,
        "{bought:?}"
    );
    world.lightning_becomes(0, (BALANCE + 2 * PAID - FEE) * 1_000)?;

    // A wallet that does not run says what it was told.
    world.client_mut(0)?.terminate()?;
    let view = waits(&world, "not_running")?;
    ensure!(
        number(&view["top_up"], "spent_msat")? == FEE * 1_000,
        "{view}"
    );
    Ok(())
}

/// The wallet dies when its purchase is stored: the same goes on, and no other is begun.
#[test]
fn a_wallet_that_dies_buys_once() -> Result<()> {
    let (mut world, _) = town("top_up_dies", 2)?;
    let policy = Policy {
        below: room(&world, 0)? - PAID * 2 / 3,
        amount: BOUGHT,
        each: FEE,
        month: 10 * FEE,
    };
    told(
        &mut world,
        &policy,
        &[("SUPERSCALAR_FAULT", "purchase_stored")],
    )?;
    world.coordinator_pays(&[0], PAID)?;
    world.client_mut(0)?.wait_until_ended()?;
    world.client_mut(0)?.start()?;
    back(&world, 0)?;
    ends(&world, 0, "settled")?;
    world.lightning_becomes(0, (BALANCE + PAID - FEE) * 1_000)?;
    waits(&world, "enough")?;
    let bought = purchases(&world)?;
    ensure!(
        bought.len() == 1 && bought[0]["automatic"] == true,
        "{bought:?}"
    );
    ensure!(ledger(&world)?.len() == 1 && channels(&world, 0)?.len() == 2);
    Ok(())
}
