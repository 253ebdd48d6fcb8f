//! Payments between real wallets, a real coordinator and the world outside.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use channel_host::Msat;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use scenarios::outside::Outside;
use scenarios::process::PATIENCE;
use scenarios::world::{Created, World, number, text};

/// A month that leaves room for the locks of payments between clients.
const MONTH: [&str; 2] = ["--set", "active=900"];

fn factory(world: &mut World, clients: usize, more: &[&str]) -> Result<Created> {
    world.add_clients(clients)?;
    let everybody: Vec<usize> = (0..clients).collect();
    world.join(&everybody)?;
    let words: Vec<&str> = MONTH.iter().chain(more).copied().collect();
    let created = world.create(&words)?;
    world.usable_for(&created, &everybody)?;
    Ok(created)
}

/// Outside to client, client to client, client to outside, the coordinator both ways, and without an invoice.
#[test]
fn in_every_direction() -> Result<()> {
    let mut world = World::start("pay_everywhere")?;
    factory(&mut world, 3, &[])?;
    let outside = Outside::start(&mut world)?;

    outside.pay(&world.invoice(0, 60_000)?)?;
    world.lightning_becomes(0, 60_000_000)?;

    let paid = world.pay(0, &world.invoice(1, 20_000)?)?;
    let fee = number(&paid, "fee_msat")?;
    world.lightning_becomes(1, 20_000_000)?;
    world.lightning_becomes(0, 40_000_000 - fee)?;

    let paid = world.pay(1, &outside.invoice(Msat(5_000_000))?)?;
    world.lightning_becomes(1, 15_000_000 - number(&paid, "fee_msat")?)?;

    let ours = world.coordinator.json(&["node", "invoice", "1000"])?;
    world.pay(1, &text(&ours, "invoice")?)?;
    let (id, _) = world.lightning()?;
    let sent = world
        .client(0)?
        .json(&["keysend", &id.to_string(), "7000"])?;
    world.lightning_becomes(0, 33_000_000 - fee - number(&sent, "fee_msat")?)?;

    // Everybody remembers.
    let payments = world.client(0)?.json(&["payments"])?;
    let list = payments["payments"].as_array().context("a list")?;
    let succeeded = list.iter().filter(|one| one["state"] == "succeeded");
    ensure!(succeeded.count() == 3, "{payments}");
    Ok(())
}

/// A payer with LDK's default limits reaches a client of every profile whose delays allow it.
fn outside_pays(name: &str, profile: &str) -> Result<()> {
    let mut world = World::start(name)?;
    factory(&mut world, 2, &["--profile", profile])?;
    let outside = Outside::start(&mut world)?;
    outside.pay(&world.invoice(0, 30_000)?)?;
    world.lightning_becomes(0, 30_000_000)
}

#[test]
fn from_outside_to_lite() -> Result<()> {
    outside_pays("pay_lite", "lite")
}

#[test]
fn from_outside_to_standard() -> Result<()> {
    outside_pays("pay_standard", "standard")
}

/// What nobody can pay, or may, is refused with a reason, and costs nothing.
#[test]
fn refusals_say_why() -> Result<()> {
    let mut world = World::start("pay_refused")?;
    factory(&mut world, 2, &[])?;
    world.coordinator_pays(&[0], 10_000)?;
    // More than it has.
    let answer = world.try_pay(0, &world.invoice(1, 50_000)?)?;
    answer.refused(4, &["this wallet can send"])?;
    // No invoice at all.
    let answer = world.try_pay(0, "lnbcrt1nonsense")?;
    ensure!(answer.code == 2, "{answer}");
    // Twice the same.
    let invoice = world.invoice(1, 1_000)?;
    world.pay(0, &invoice)?;
    let answer = world.try_pay(0, &invoice)?;
    ensure!(answer.code == 4, "{answer}");
    world.lightning_becomes(1, 1_000_000)
}

/// Everybody is killed and started again and again while payments go both ways: each ends, on both sides alike, and nothing is lost.
fn with_kills(name: &str, clients: usize, payments: usize, every: usize) -> Result<()> {
    const START: u64 = 60_000;
    let mut world = World::start(name)?;
    factory(&mut world, clients, &[])?;
    let everybody: Vec<usize> = (0..clients).collect();
    world.coordinator_pays(&everybody, START)?;
    let mut rng = StdRng::seed_from_u64(payments as u64);
    let (mut begun, mut kills) = (0usize, 0usize);
    for round in 0..payments {
        let from = *everybody.choose(&mut rng).context("clients")?;
        let to = (from + rng.gen_range(1..clients)) % clients;
        let sat = rng.gen_range(1..3_000u64);
        // Whoever is down at the moment cannot be asked: that is no payment.
        if let Ok(invoice) = world.invoice(to, sat) {
            let answer =
                world
                    .client(from)?
                    .command(&["pay", &invoice, "--background", "--json"])?;
            begun += usize::from(answer.code == 0);
        }
        if round % every == every - 1 {
            kills += 1;
            if rng.gen_ratio(1, 3) {
                world.coordinator.kill()?;
                world.coordinator.start()?;
                world.coordinator.wait_for("ready")?;
            } else {
                let victim = *everybody.choose(&mut rng).context("clients")?;
                world.client_mut(victim)?.kill()?;
                world.client_mut(victim)?.start()?;
            }
        }
    }
    ensure!(
        begun * 2 > payments,
        "only {begun} of {payments} were begun"
    );
    settle(&world, &everybody, START)?;
    println!("{begun} of {payments} payments begun, {kills} kills");
    Ok(())
}

/// Waits until nothing is pending, then compares every side's word.
fn settle(world: &World, everybody: &[usize], start: u64) -> Result<()> {
    let deadline = Instant::now() + 4 * PATIENCE;
    let lists = loop {
        let lists = everybody
            .iter()
            .map(|index| payments_of(world, *index))
            .collect::<Result<Vec<_>>>()?;
        let pending = lists.iter().flatten().filter(|one| one.state == "pending");
        let (pending, clear) = (pending.count(), in_flight(world)? == 0);
        if pending == 0 && clear {
            break lists;
        }
        ensure!(
            Instant::now() < deadline,
            "{pending} payments are still pending (channels clear: {clear})"
        );
        std::thread::sleep(Duration::from_millis(200));
    };
    let mut received: BTreeMap<&str, u64> = BTreeMap::new();
    for one in lists.iter().flatten().filter(|one| one.incoming) {
        received.insert(&one.hash, one.msat);
    }
    for (index, list) in lists.iter().enumerate() {
        for one in list.iter().filter(|one| !one.incoming) {
            let arrived = received.get(one.hash.as_str()) == Some(&one.msat);
            ensure!(
                arrived == (one.state == "succeeded"),
                "client {index} says {} of {}, the receiver differs",
                one.state,
                one.hash
            );
        }
        let (mut has, succeeded) = (0i128, list.iter().filter(|one| one.state == "succeeded"));
        for one in succeeded {
            has += match one.incoming {
                true => i128::from(one.msat),
                false => -i128::from(one.msat + one.fee),
            };
        }
        world.lightning_becomes(index, u64::try_from(has)?)?;
        ensure!(has >= 0, "client {index} of {start} sat has {has} msat");
    }
    Ok(())
}

struct Payment {
    hash: String,
    incoming: bool,
    state: String,
    msat: u64,
    fee: u64,
}

fn payments_of(world: &World, index: usize) -> Result<Vec<Payment>> {
    let answer = world
        .client(index)?
        .json(&["payments", "--limit", "100000"])?;
    let list = answer["payments"].as_array().context("a list")?;
    list.iter()
        .map(|one| {
            Ok(Payment {
                hash: text(one, "hash")?,
                incoming: text(one, "direction")? == "in",
                state: text(one, "state")?,
                msat: number(one, "amount_msat")?,
                fee: one["fee_msat"].as_u64().unwrap_or(0),
            })
        })
        .collect()
}

/// Payments in the coordinator's channels.
fn in_flight(world: &World) -> Result<u64> {
    let answer = world.coordinator.json(&["node", "channels"])?;
    let list = answer["channels"].as_array().context("a list")?;
    Ok(list.iter().filter_map(|one| one["pending"].as_u64()).sum())
}

#[test]
fn survive_kills() -> Result<()> {
    with_kills("pay_kills", 4, 40, 5)
}

/// The number.
#[test]
fn five_hundred_survive_kills() -> Result<()> {
    if std::env::var_os("SUPERSCALAR_LONG").is_none() {
        return Ok(());
    }
    with_kills("pay_kills_500", 8, 500, 9)
}

/// The coordinator closes an ordinary channel it opened itself.
#[test]
fn the_coordinators_own_channels() -> Result<()> {
    let mut world = World::start("pay_own_channels")?;
    factory(&mut world, 2, &[])?;
    let outside = Outside::start(&mut world)?;
    let (id, address) = outside
        .address()?
        .split_once('@')
        .map(|(id, at)| (id.to_owned(), at.to_owned()))
        .context("id@address")?;
    world
        .coordinator
        .json(&["node", "connect", &format!("{id}@{address}")])?;
    let mark = world.coordinator.mark()?;
    world
        .coordinator
        .json(&["node", "open-channel", &id, "--capacity", "1000000"])?;
    let deadline = Instant::now() + PATIENCE;
    while world.node.mempool()?.is_empty() {
        ensure!(Instant::now() < deadline, "no funding transaction");
        std::thread::sleep(Duration::from_millis(50));
    }
    world.mine(6)?;
    // The other's own, which has no number here, may be told of only now.
    world.coordinator.wait_after(mark, "the channel", |event| {
        event.is("onchain_channel_opened") && event.text("channel") != "0"
    })?;
    let hash = outside.invoice(Msat(2_000_000))?;
    world.coordinator.json(&["node", "pay", &hash])?;
    let listed = world.coordinator.json(&["node", "channels"])?;
    let ours = listed["channels"].as_array().context("a list")?;
    let own = ours
        .iter()
        .find(|one| one["capacity_sat"].as_u64() == Some(1_000_000))
        .context("the channel is listed")?;
    let channel = text(own, "channel")?;
    world
        .coordinator
        .json(&["node", "close-channel", &channel])?;
    world.coordinator.wait_after(mark, "the close", |event| {
        event.is("onchain_channel_closed")
    })?;
    Ok(())
}
