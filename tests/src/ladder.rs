//! A ladder in compressed time: a world whose coordinator makes its factories by itself, and the miner that gives it its days.

mod tally;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bitcoin::{Amount, Network};
use factory_tree::ladder::{Compressed, LadderParams};
use serde_json::Value;

use crate::bitcoind::Options;
use crate::event::{Event, Missing};
use crate::export::Export;
use crate::ledger::Ledger;
use crate::outside::Outside;
use crate::world::World;

pub use tally::{Life, Tally};

/// Days in which a factory of a compressed ladder dies.
pub const DYING_DAYS: u32 = 3;
/// Who says nothing for so long has nothing to do until the next block.
const QUIET: Duration = Duration::from_millis(250);
/// The same where nobody but those who publish has anything to do.
const BRIEF: Duration = Duration::from_millis(60);
/// The same while balances move in parts: between two of them a busy machine is silent for longer.
const MOVING: Duration = Duration::from_secs(1);
/// The longest that one block's work may take.
const LONGEST: Duration = Duration::from_secs(45);

/// The calendar of a ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Days {
    /// Factories that are active or dying at once.
    pub rungs: u32,
    /// Blocks of a day: between two births.
    pub spacing: u32,
}

/// A world with a ladder.
#[derive(Debug)]
pub struct Ladder {
    /// Everybody in it.
    pub world: World,
    /// The ladder's numbers.
    pub numbers: Compressed,
    /// What became of the factories so far.
    pub tally: Tally,
    exports: BTreeMap<String, Export>,
    quiet: Duration,
    /// Whether a part of a balance moved since the last block.
    moved: bool,
    enabled: bool,
}

impl Ladder {
    /// A ladder below `<target>/scenarios/<name>` whose coordinator runs and has coins.
    pub fn start(name: &str, days: Days) -> Result<Self> {
        let mut ladder = Self::prepare(&World::directory(name)?, days)?;
        ladder.begin(crate::world::COORDINATOR_COINS)?;
        Ok(ladder)
    }

    /// A world whose coordinator is configured and does not run yet.
    pub fn prepare(directory: &Path, days: Days) -> Result<Self> {
        let numbers = LadderParams::compressed(Network::Regtest, days.rungs, days.spacing)?;
        let mut world = World::prepare(directory, Options::default())?;
        let coordinator = &world.coordinator;
        for (key, value) in fields(&numbers.factory)? {
            coordinator.configure(&format!("factory.set.{key}"), value)?;
        }
        for (key, value) in fields(&numbers.ladder)? {
            // The same as `policy.confirmations`.
            if key != "usable_depth" {
                coordinator.configure(&format!("ladder.{key}"), value)?;
            }
        }
        coordinator.configure("ceremony.max_clients", MOST_CLIENTS)?;
        coordinator.configure("ceremony.join_seconds", 10)?;
        coordinator.configure("ceremony.step_seconds", 10)?;
        for limit in ["max_unauthenticated_per_ip", "max_connections_per_ip"] {
            coordinator.configure(&format!("server.{limit}"), 512)?;
        }
        let depth = i64::from(numbers.ladder.handover_depth);
        world.configure_clients("migration.handover_depth", depth);
        Ok(Self {
            world,
            numbers,
            tally: Tally::default(),
            exports: BTreeMap::new(),
            quiet: QUIET,
            moved: false,
            enabled: false,
        })
    }

    /// Starts the coordinator, and gives it coins.
    pub fn begin(&mut self, coins: Amount) -> Result<()> {
        self.world.coordinator.start()?;
        self.world.coordinator.wait_for("ready")?;
        self.world.fund_coordinator(coins)
    }

    /// How long everybody is silent before the next block.
    pub const fn hurry(&mut self, quiet: Duration) {
        self.quiet = quiet;
    }

    // ---- days --------------------------------------------------------------------------------------------------

    /// Blocks between two births.
    pub const fn spacing(&self) -> u32 {
        self.numbers.ladder.spacing
    }

    /// `E` of a factory: the coordinator publishes from there on who has not left.
    pub fn end(&self, export: &Export) -> u32 {
        export.birth_height + self.numbers.factory.active + self.numbers.factory.dying
    }

    /// A block, and all that follows from it.
    pub fn block(&mut self) -> Result<()> {
        self.world.mine(1)?;
        self.settle()
    }

    /// Blocks without waiting for anybody but whoever publishes something: nothing else is to be done for a long time.
    pub fn pass(&mut self, height: u32) -> Result<()> {
        let quiet = std::mem::replace(&mut self.quiet, BRIEF);
        let passed = self.live_until(height);
        self.quiet = quiet;
        passed
    }

    /// Block after block until the coordinator dies, at a fault point for example.
    pub fn live_to_coordinators_death(&mut self, blocks: u32) -> Result<()> {
        for _ in 0..blocks {
            self.world.mine(1)?;
            let log = self.world.coordinator.process()?.events();
            let mut mark = log.mark();
            loop {
                match log.wait_from(mark, &mut |_| true, Instant::now() + self.quiet) {
                    Ok((_, next)) => mark = next,
                    Err(Missing::Late) => break,
                    Err(Missing::Ended) => {
                        self.world.coordinator.wait_until_ended()?;
                        self.tally.update(&self.world.coordinator.history())?;
                        self.tally.coordinator_ended();
                        return Ok(());
                    }
                }
            }
        }
        bail!("the coordinator lives on; {:#?}", self.tally)
    }

    /// Block after block until a wallet's process ends.
    pub fn live_to_death(&mut self, index: usize, blocks: u32) -> Result<()> {
        for _ in 0..blocks {
            self.block()?;
            if self.world.client(index)?.has_ended()? {
                return self.world.client_mut(index)?.wait_until_ended().map(drop);
            }
        }
        bail!("client {index} lives on; {:#?}", self.tally)
    }

    /// A power cut at the coordinator.
    pub fn kill_coordinator(&mut self) -> Result<()> {
        self.world.coordinator.kill()?;
        self.tally.update(&self.world.coordinator.history())?;
        self.tally.coordinator_ended();
        Ok(())
    }

    /// The coordinator comes back, with more in its environment.
    pub fn coordinator_returns(&mut self, environment: &[(&str, &str)]) -> Result<()> {
        self.world.coordinator.start_with(environment)?;
        self.world.coordinator.wait_for("ready")?;
        self.settle()
    }

    /// Lets everybody do what is to be done at this height. A coordinator that does not run does nothing.
    pub fn settle(&mut self) -> Result<()> {
        if !self.world.coordinator.runs() {
            return Ok(());
        }
        let height = self.world.node.height()?;
        self.world.coordinator_sees(height)?;
        self.world.wallets_see(height)?;
        let parts = self.tally.parts();
        let deadline = Instant::now() + LONGEST;
        loop {
            let log = self.world.coordinator.process()?.events();
            let mark = log.mark();
            let moving = self.moved || self.tally.parts() > parts;
            let quiet = if moving { MOVING } else { self.quiet };
            let heard = log.wait_from(mark, &mut |_| true, Instant::now() + quiet);
            self.tally.update(&self.world.coordinator.history())?;
            match heard {
                Err(Missing::Late) if !self.tally.is_building() => break,
                Err(Missing::Ended) => bail!("the coordinator has ended by itself"),
                _ if Instant::now() < deadline => {}
                _ if self.tally.is_building() => bail!("a ceremony does not end: {:?}", self.tally),
                _ => break,
            }
        }
        self.moved = self.tally.parts() > parts;
        self.keep_exports()
    }

    /// While somebody remembers them.
    fn keep_exports(&mut self) -> Result<()> {
        for id in self.tally.factories.keys() {
            if !self.exports.contains_key(id) {
                let printed = self.world.coordinator.json(&["factory", "export", id])?;
                self.exports.insert(id.clone(), Export::parse(&printed)?);
            }
        }
        Ok(())
    }

    /// Block after block, until something is so.
    pub fn live(
        &mut self,
        what: &str,
        blocks: u32,
        so: impl Fn(&Self) -> Result<bool>,
    ) -> Result<()> {
        for _ in 0..blocks {
            if so(self)? {
                return Ok(());
            }
            self.block()?;
        }
        ensure!(
            so(self)?,
            "{blocks} blocks, and still not: {what}; {:#?}",
            self.tally
        );
        Ok(())
    }

    /// Block after block up to this height.
    pub fn live_until(&mut self, height: u32) -> Result<()> {
        while self.world.node.height()? < height {
            self.block()?;
        }
        Ok(())
    }

    /// Lives until so many factories were born and are usable.
    pub fn born(&mut self, count: usize) -> Result<()> {
        let blocks = self.spacing() * 2;
        self.live("another factory", blocks, |ladder| {
            let usable = ladder.tally.factories.values().filter(|life| life.usable);
            Ok(usable.count() >= count)
        })
    }

    /// Lets the coordinator make factories by itself, or stops that.
    pub fn enable(&mut self, enabled: bool) -> Result<()> {
        self.world.coordinator.terminate()?;
        self.world
            .coordinator
            .configure("ladder.enabled", enabled)?;
        self.enabled = enabled;
        self.coordinator_returns(&[])
    }

    /// Clients join, and their factory is born. With the first of them the ladder begins: on a day that is open already, the first two to
    /// ask would get a factory of their own.
    pub fn cohort(&mut self, which: &[usize]) -> Result<String> {
        let before = self.tally.factories.len();
        self.world.join(which)?;
        if !self.enabled {
            self.enable(true)?;
            self.world.interested(which)?;
        }
        self.born(before + 1)?;
        let id = self
            .tally
            .nth(before)
            .context("a factory was born")?
            .clone();
        for index in which {
            let client = self.world.client(*index)?;
            client.wait("a usable factory", |event: &Event| {
                event.is("factory_usable") && event.text("factory") == id
            })?;
        }
        Ok(id)
    }

    // ---- money -------------------------------------------------------------------------------------------------

    /// Gives wallets a coin to pay fees with.
    pub fn fee_coins(&mut self, which: &[usize], amount: Amount) -> Result<()> {
        self.world.fund_clients(which, amount)?;
        self.settle()
    }

    /// The world outside pays wallets.
    pub fn pay_in(&self, outside: &Outside, which: &[usize], sat: u64) -> Result<()> {
        for index in which {
            let before = self.world.lightning_msat(*index)?;
            outside.pay(&self.world.invoice(*index, sat)?)?;
            self.world.lightning_becomes(*index, before + sat * 1_000)?;
        }
        Ok(())
    }

    /// An export of every factory there ever was.
    pub fn exports(&self) -> Vec<Export> {
        self.exports.values().cloned().collect()
    }

    /// The export of one.
    pub fn export(&self, factory: &str) -> Result<&Export> {
        self.exports
            .get(factory)
            .context("a factory of this ladder")
    }

    /// Factories whose funding output a single sweep took back.
    pub fn reaped(&self, ledger: &Ledger) -> Vec<&String> {
        let swept = |export: &Export| {
            let spender = ledger.spender(&export.funding_outpoint());
            spender.is_some_and(|tx| tx.kind == "sweep")
        };
        let reaped = self.exports.iter().filter(|(_, export)| swept(export));
        reaped.map(|(id, _)| id).collect()
    }
}

/// Most clients of a factory here.
const MOST_CLIENTS: i64 = 8;

/// The fields of parameters, as a configuration file has them.
fn fields(params: &impl serde::Serialize) -> Result<Vec<(String, toml::Value)>> {
    let Value::Object(fields) = serde_json::to_value(params)? else {
        bail!("parameters are fields");
    };
    let mut values = Vec::new();
    for (key, value) in fields {
        // What is not set has no value; the network is the coordinator's.
        if !value.is_null() && key != "network" {
            values.push((key, toml::Value::try_from(value)?));
        }
    }
    Ok(values)
}
