//! The miner's part: whoever waits for blocks gets them, and no more than it waits for.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bitcoin::Txid;
use serde_json::json;

use crate::event::{Event, Missing};
use crate::export::Export;
use crate::process::PATIENCE;
use crate::world::{Created, World};

/// How long somebody who may publish now is given to do so before blocks are mined without it.
const THINKING: Duration = Duration::from_millis(600);

/// Blocks for which money of whoever closes a channel alone is locked, in all scenarios.
pub const TO_SELF_DELAY: u32 = 144;

/// What a wallet tells while it leaves.
const STEPS: [&str; 3] = ["exit_published", "exit_waiting", "timeout_published"];

impl World {
    /// Mines what a wallet's exit waits for until it says what is wanted. Each of its steps is shown
    /// to `see`.
    pub fn drive(
        &self,
        index: usize,
        mark: usize,
        wanted: impl Fn(&Event) -> bool,
        mut see: impl FnMut(&Event),
    ) -> Result<Event> {
        let client = self.client(index)?;
        let mut mark = mark;
        loop {
            let next = |event: &Event| wanted(event) || STEPS.contains(&event.name());
            let what = "the next step of an exit";
            let (event, after) = client.process()?.wait_from(mark, what, next)?;
            mark = after;
            see(&event);
            if wanted(&event) {
                return Ok(event);
            }
            self.serve(&event)?;
        }
    }

    /// Mines what a wallet's exit waits for until the wallet's process ends.
    pub fn drive_to_death(&mut self, index: usize, mark: usize) -> Result<()> {
        let (client, mut mark) = (self.client(index)?, mark);
        let log = client.process()?.events();
        loop {
            let mut next = |event: &Event| STEPS.contains(&event.name());
            match log.wait_from(mark, &mut next, Instant::now() + PATIENCE) {
                Ok((event, after)) => {
                    mark = after;
                    self.serve(&event)?;
                }
                Err(Missing::Ended) => break,
                Err(Missing::Late) => bail!("{} still lives", client.name()),
            }
        }
        self.client_mut(index)?.wait_until_ended().map(drop)
    }

    fn serve(&self, event: &Event) -> Result<()> {
        match event.number("until_height") {
            Some(height) => self.node.mine_until(u32::try_from(height)?),
            None if self.node.mempool()?.is_empty() => Ok(()),
            None => self.mine(1),
        }
    }

    /// Mines until something is so: a block whenever there is something in the mempool, else on to
    /// the next height at which something of the factory becomes possible.
    pub fn mine_until(&self, export: &Export, so: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + 2 * PATIENCE;
        loop {
            let height = self.node.height()?;
            self.everybody_sees(height)?;
            if so(self)? {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "it did not come about by height {height}"
            );
            if self.somebody_publishes()? {
                self.mine(1)?;
                continue;
            }
            if so(self)? {
                return Ok(());
            }
            let milestones = self.milestones(export)?;
            let next = milestones.into_iter().filter(|next| *next > height).min();
            self.node.mine_until(next.unwrap_or(height + 1))?;
        }
    }

    /// Mines as long as somebody publishes something.
    pub fn mine_until_quiet(&self) -> Result<()> {
        while self.somebody_publishes()? {
            self.mine(1)?;
            self.everybody_sees(self.node.height()?)?;
        }
        Ok(())
    }

    fn everybody_sees(&self, height: u32) -> Result<()> {
        if self.coordinator.process().is_ok() {
            self.coordinator_sees(height)?;
        }
        for (index, client) in self.clients.iter().enumerate() {
            if client.process().is_ok() {
                self.client_sees(index, height)?;
            }
        }
        Ok(())
    }

    fn somebody_publishes(&self) -> Result<bool> {
        let deadline = Instant::now() + THINKING;
        while self.node.mempool()?.is_empty() {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(15));
        }
        Ok(true)
    }

    /// Heights at which something of a factory becomes possible, by what is on the chain now.
    fn milestones(&self, export: &Export) -> Result<Vec<u32>> {
        let param = |name: &str| export.params.get(name).and_then(serde_json::Value::as_u64);
        let locks = [param("q"), param("stock_timeout_delay")]
            .into_iter()
            .flatten();
        let locks: Vec<u32> = locks.map(u32::try_from).collect::<Result<_, _>>()?;
        let heights = self.heights(export.transactions.iter().map(|tx| tx.txid).collect())?;
        let life = [param("active"), param("dying")].into_iter().flatten();
        let life = u32::try_from(life.sum::<u64>())?;
        // `E`, at which the coordinator closes what is on the chain, and `T`.
        let mut milestones = vec![export.birth_height + life, export.expiry_height];
        milestones.extend(self.closings()?);
        for tx in &export.transactions {
            let input = tx.inputs.first().context("a transaction has an input")?;
            let parent = heights.get(&input.txid);
            if let (Some(parent), Some(delay)) = (parent, tx.delay()) {
                milestones.push(parent + delay);
            }
            if let Some(own) = heights.get(&tx.txid) {
                milestones.extend(locks.iter().map(|lock| own + lock));
            }
        }
        Ok(milestones)
    }

    /// Heights at which money out of channels that were closed by one side alone is free.
    fn closings(&self) -> Result<Vec<u32>> {
        let mut heights = Vec::new();
        for service in self.clients.iter().chain([&self.coordinator]) {
            if service.process().is_err() {
                continue;
            }
            let events = service.events()?;
            let spent = events.iter().filter(|event| event.is("channel_spent"));
            for height in spent.filter_map(|event| event.number("height")) {
                heights.push(u32::try_from(height)?.saturating_add(TO_SELF_DELAY));
            }
        }
        Ok(heights)
    }

    /// Heights of the blocks of those of these transactions that are in the chain.
    pub fn heights(&self, txids: HashSet<Txid>) -> Result<HashMap<Txid, u32>> {
        let mut heights = HashMap::new();
        for height in 1..=self.node.height()? {
            let block = self
                .node
                .rpc("getblock", json!([self.node.block_hash(height)?, 1]))?;
            let in_block = block["tx"]
                .as_array()
                .context("a block lists its transactions")?;
            for txid in in_block.iter().filter_map(|txid| txid.as_str()) {
                let txid: Txid = txid.parse()?;
                if txids.contains(&txid) {
                    heights.insert(txid, height);
                }
            }
        }
        Ok(heights)
    }

    /// Whether these wallets have said that nothing of a factory is left for them to claim.
    pub fn all_done(&self, created: &Created, which: &[usize]) -> Result<bool> {
        for index in which {
            let events = self.client(*index)?.events()?;
            let mut events = events.iter();
            if !events
                .any(|event| event.is("exit_done") && event.text("factory") == created.factory)
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// How many outputs of a factory that several must sign for are still unspent.
    pub fn left_in(&self, export: &Export) -> Result<usize> {
        let mut watched = vec![export.funding_outpoint()];
        for tx in &export.transactions {
            for role in ["branch", "channel", "stock"] {
                watched.extend(tx.outputs_of(role).map(|(outpoint, _)| outpoint));
            }
        }
        let mut left = 0;
        for outpoint in watched {
            let coin = self
                .node
                .rpc("gettxout", json!([outpoint.txid, outpoint.vout, false]))?;
            left += usize::from(!coin.is_null());
        }
        Ok(left)
    }
}
