//! Getting out: by oneself, by the timeouts, or both.

use std::cell::RefCell;

use anyhow::Result;
use scenarios::event::Event;
use scenarios::world::number;

use crate::build::Factory;
use crate::cheat::{self, Old};
use crate::screen::{Screen, grouped, short};
use crate::stage::Stage;

/// Client 0 publishes its path and takes its balance, a mate tries an old state; then the coordinator dies and the timeouts pay everybody.
pub(crate) fn one_then_timeouts(stage: &mut Stage, factory: &Factory, old: &Old) -> Result<()> {
    stage.screen.heading("Client 0 leaves by itself");
    let balances = leave(stage, factory, &[0])?;
    cheat::publish(stage, factory, old)?;
    arrives(stage, factory, &balances)?;

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
    // The cheater's wallet hopes for what it lost for ever.
    let honest = stage
        .everybody()
        .into_iter()
        .filter(|index| !old.is_of(*index));
    paid(stage, factory, &honest.collect::<Vec<_>>())
}

/// Everybody publishes its path; the coordinator takes its stocks, and what is left at T.
pub(crate) fn all_then_reclaim(stage: &mut Stage, factory: &Factory) -> Result<()> {
    stage
        .screen
        .heading("All clients leave before the deadline");
    let everybody = stage.everybody();
    let balances = leave(stage, factory, &everybody)?;
    stage
        .screen
        .heading("What each had on Lightning arrives; at T the coordinator takes the rest");
    arrives(stage, factory, &balances)?;
    stage.world.node.mine_until(factory.export.expiry_height)?;
    paid(stage, factory, &everybody)
}

/// These clients publish their paths; the demo is the miner. Gives what each had on Lightning, in satoshi.
fn leave(stage: &mut Stage, factory: &Factory, which: &[usize]) -> Result<Vec<(usize, u64)>> {
    let id = &factory.created.factory;
    let (mut marks, mut balances) = (Vec::new(), Vec::new());
    for index in which {
        balances.push((*index, stage.world.lightning_msat(*index)? / 1_000));
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
    Ok(balances)
}

/// What these clients had on Lightning reaches their wallets: their commitments, then what comes out of those.
fn arrives(stage: &mut Stage, factory: &Factory, balances: &[(usize, u64)]) -> Result<()> {
    let which: Vec<usize> = balances.iter().map(|(index, _)| *index).collect();
    stage.world.mine_until(&factory.export, |world| {
        world.all_done(&factory.created, &which)
    })?;
    for (index, sat) in balances {
        let client = stage.world.client(*index)?;
        let balance = client.json(&["balance"])?;
        let text = format!(
            "✓ {}: {} sat on Lightning went into its wallet, which now holds {} sat",
            client.name(),
            grouped(*sat),
            grouped(number(&balance, "confirmed_sat")?)
        );
        stage.screen.say(&text);
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

/// Mines until these have nothing left to claim, and nothing is left in the factory.
fn paid(stage: &mut Stage, factory: &Factory, which: &[usize]) -> Result<()> {
    let screen = RefCell::new(&mut stage.screen);
    stage.world.mine_until(&factory.export, |world| {
        let height = world.node.height()?;
        screen.borrow_mut().progress(&format!("height {height}"));
        Ok(world.all_done(&factory.created, which)? && world.left_in(&factory.export)? == 0)
    })?;
    report(stage, factory)
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
