//! Payments over channels whose funding is on no chain.

use std::time::Instant;

use anyhow::Result;
use channel_host::Msat;
use scenarios::outside::{CHANNEL, Outside};
use scenarios::world::number;

use crate::build::Factory;
use crate::cheat::{self, Old};
use crate::screen::grouped;
use crate::stage::Stage;

/// What client 0 is paid from outside, in satoshi.
const RECEIVED: u64 = 100_000;
/// What it passes on to its leaf mate.
const PASSED_ON: u64 = 30_000;
/// What that one pays to the outside.
const SPENT: u64 = 5_000;

/// An outside node pays a client, clients pay each other, and out again. Gives the last payer as it was before it paid.
pub(crate) fn around(stage: &mut Stage, factory: &Factory) -> Result<Old> {
    let mate = cheat::mate(stage, factory)?;
    stage
        .screen
        .heading("Lightning on the leaves: not one of these channels is on the chain");
    let outside = Outside::start(&mut stage.world)?;
    stage.screen.say(&format!(
        "an LDK node outside has an ordinary channel of {} sat to the coordinator",
        grouped(CHANNEL.to_sat())
    ));

    let invoice = stage.world.invoice(0, RECEIVED)?;
    timed(stage, "outside  -> client-0", RECEIVED, |_| {
        outside.pay(&invoice).map(|_| 0)
    })?;
    let invoice = stage.world.invoice(mate, PASSED_ON)?;
    let who = format!("client-0 -> client-{mate}");
    timed(stage, &who, PASSED_ON, |stage| {
        number(&stage.world.pay(0, &invoice)?, "fee_msat")
    })?;
    let old = cheat::remember(stage, mate)?;
    let invoice = outside.invoice(Msat(SPENT * 1_000))?;
    let who = format!("client-{mate} -> outside ");
    timed(stage, &who, SPENT, |stage| {
        number(&stage.world.pay(mate, &invoice)?, "fee_msat")
    })?;

    for index in [0, mate] {
        let msat = stage.world.lightning_msat(index)?;
        let text = format!(
            "client-{index} now has {}.{:03} sat on Lightning",
            grouped(msat / 1_000),
            msat % 1_000
        );
        stage.screen.say(&text);
    }
    outside.close(&stage.world)?;
    let text = "the outside channel is closed again: its money is back in both wallets";
    let text = stage.screen.dim(text);
    stage.screen.say(&text);
    Ok(old)
}

fn timed(
    stage: &mut Stage,
    who: &str,
    sat: u64,
    pay: impl FnOnce(&Stage) -> Result<u64>,
) -> Result<()> {
    stage.screen.progress(&format!("{who} {sat} sat"));
    let begun = Instant::now();
    let fee = pay(stage)?;
    let text = format!(
        "✓ {who} {:>8} sat, {fee} msat of fees, {:.2} s",
        grouped(sat),
        begun.elapsed().as_secs_f64()
    );
    stage.screen.say(&text);
    Ok(())
}
