//! Getting out: by oneself, by the timeouts, or both.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use scenarios::event::Event;

use crate::build::Factory;
use crate::picture::delay;
use crate::screen::{Screen, grouped, short};
use crate::stage::Stage;

/// Blocks mined one by one for the last payouts, at most.
const LAST_BLOCKS: u32 = 60;

/// Client 0 publishes its path; then the coordinator dies and the timeouts pay everybody.
pub(crate) fn one_then_timeouts(stage: &mut Stage, factory: &Factory) -> Result<()> {
    stage.screen.heading("Client 0 leaves by itself");
    leave(stage, factory, &[0])?;

    stage
        .screen
        .heading("The coordinator is killed (-9), for good");
    stage.world.coordinator.kill()?;
    stage.coordinator_lives = false;
    let expiry = factory.export.expiry_height;
    let height = stage.world.node.height()?;
    let text = format!(
        "nobody does anything until T = {expiry}: {} empty blocks",
        expiry.saturating_sub(height)
    );
    stage.screen.say(&text);
    stage.world.node.mine_until(expiry)?;

    stage
        .screen
        .heading("The timeouts pay everybody else, leaf mates included");
    paid(stage, factory)
}

/// Everybody publishes its path; the coordinator takes its stocks, and what is left at T.
pub(crate) fn all_then_reclaim(stage: &mut Stage, factory: &Factory) -> Result<()> {
    stage
        .screen
        .heading("All clients leave before the deadline");
    let everybody = stage.everybody();
    leave(stage, factory, &everybody)?;
    stage
        .screen
        .heading("T: the channels' timeouts pay the clients, the coordinator takes the rest");
    stage.world.node.mine_until(factory.export.expiry_height)?;
    paid(stage, factory)
}

/// These clients publish their paths; the demo is the miner.
fn leave(stage: &mut Stage, factory: &Factory, which: &[usize]) -> Result<()> {
    let id = &factory.created.factory;
    let mut marks = Vec::new();
    for index in which {
        marks.push(stage.world.client(*index)?.mark()?);
        stage
            .world
            .client(*index)?
            .json(&["exit", id, "--yes", "--background"])?;
    }
    for (index, mark) in which.iter().zip(marks) {
        let name = stage.world.client(*index)?.name().to_owned();
        let screen = &mut stage.screen;
        let node = &stage.world;
        let leaf = node.drive(
            *index,
            mark,
            |event| event.is("leaf_confirmed"),
            |event| narrate(screen, &name, event),
        )?;
        let line = stage.screen.good(&format!(
            "✓ {name} is out: its leaf {} is confirmed",
            short(leaf.text("txid"))
        ));
        stage.screen.say(&line);
    }
    Ok(())
}

fn narrate(screen: &mut Screen, name: &str, event: &Event) {
    match event.name() {
        "exit_published" => screen.say(&format!(
            "{name} publishes its {:<8} {}  {:>5} vB with its child, which pays {} sat",
            event.text("kind"),
            short(event.text("txid")),
            event.number("vbytes").unwrap_or_default(),
            grouped(event.number("fee_sat").unwrap_or_default())
        )),
        "exit_waiting" => {
            if let Some(height) = event.number("until_height") {
                let waits = screen.dim(&format!(
                    "{name} waits until height {height}: {}",
                    event.text("what")
                ));
                screen.say(&waits);
            }
        }
        _ => {}
    }
}

/// Mines until nobody has anything left to claim.
fn paid(stage: &mut Stage, factory: &Factory) -> Result<()> {
    let everybody = stage.everybody();
    settle(stage, &everybody)?;
    if let Some(last) = last_stock_height(stage, factory)? {
        if last > stage.world.node.height()? {
            let text = format!("the stocks' timeouts wait for height {last}; mined");
            stage.screen.say(&text);
            stage.world.node.mine_until(last)?;
        }
    }
    for _ in 0..LAST_BLOCKS {
        settle(stage, &everybody)?;
        if everybody
            .iter()
            .all(|index| is_done(stage, factory, *index))
        {
            return report(stage, factory);
        }
    }
    let waiting = everybody
        .iter()
        .filter(|index| !is_done(stage, factory, **index));
    let waiting: Vec<_> = waiting.collect();
    ensure!(
        waiting.is_empty(),
        "clients {waiting:?} still wait for something"
    );
    Ok(())
}

/// The height from which every stock of a confirmed leaf can be timed out, if there is any.
fn last_stock_height(stage: &Stage, factory: &Factory) -> Result<Option<u32>> {
    let mut last = None;
    for leaf in factory
        .export
        .transactions
        .iter()
        .filter(|tx| tx.kind == "leaf")
    {
        let Some(confirmed) = stage.world.height_of(&leaf.txid)? else {
            continue;
        };
        for (stock, _) in leaf.outputs_of("stock") {
            let lock = factory.export.timeout(stock).and_then(delay);
            last = last.max(lock.map(|blocks| confirmed + blocks));
        }
    }
    Ok(last)
}

/// Lets everybody see the tip and publish, then mines what they published.
fn settle(stage: &mut Stage, which: &[usize]) -> Result<()> {
    let height = stage.world.node.height()?;
    for index in which {
        stage.world.client_sees(*index, height)?;
    }
    let deadline = Instant::now() + Duration::from_millis(700);
    while stage.world.node.mempool()?.is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    stage.world.mine(1)
}

fn is_done(stage: &Stage, factory: &Factory, index: usize) -> bool {
    let said = stage.world.client(index).and_then(|client| client.events());
    said.is_ok_and(|events| {
        let mut events = events.iter();
        events
            .any(|event| event.is("exit_done") && event.text("factory") == factory.created.factory)
    })
}

fn report(stage: &mut Stage, factory: &Factory) -> Result<()> {
    for index in stage.everybody() {
        let client = stage.world.client(index)?;
        let name = client.name().to_owned();
        let events = client.events()?;
        let payouts = events.iter().filter(|event| event.is("payout_confirmed"));
        let sats: Vec<u64> = payouts.filter_map(|event| event.number("sat")).collect();
        let each: Vec<_> = sats.iter().map(|sat| grouped(*sat)).collect();
        let text = format!(
            "✓ {name:<10} was paid {:>9} sat ({})",
            grouped(sats.iter().sum()),
            each.join(" + ")
        );
        stage.screen.say(&text);
    }
    let done = format!(
        "height {}: nothing of factory {} is left to claim",
        stage.world.node.height()?,
        short(&factory.created.factory)
    );
    stage.screen.say(&done);
    Ok(())
}
