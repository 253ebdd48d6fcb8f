//! What became of every factory of a ladder, from all that the coordinator ever said, over all its runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result};
use bitcoin::Txid;

use crate::event::Event;

/// One factory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// Its rung, if the ladder made it.
    pub rung: Option<u32>,
    /// Its place in the order of births.
    pub number: usize,
    /// Its funding transaction.
    pub funding: Option<Txid>,
    /// Height at which that was broadcast.
    pub born: u32,
    /// Whether it takes payments.
    pub usable: bool,
    /// Parts of balances that went out of it.
    pub parts: u32,
    /// What they were, in thousandths of a satoshi.
    pub moved_msat: u64,
    /// What was charged for that.
    pub fee_msat: u64,
    /// Clients that have handed over their keys.
    pub handed_over: BTreeSet<String>,
    /// Clients whose path the coordinator published.
    pub published: BTreeSet<String>,
    /// What came back to the coordinator's wallet.
    pub swept_sat: u64,
    /// Everything of it is spent and buried.
    pub forgotten: bool,
    /// What the coordinator said it lost.
    pub loss_sat: Option<u64>,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// By id, hex.
    pub factories: BTreeMap<String, Life>,
    /// Births that were begun, and those that failed.
    pub begun: u32,
    /// Of those, ceremonies that failed.
    pub failed: u32,
    /// Ceremonies under way, with their rungs.
    open: BTreeMap<String, u32>,
    /// Factories that every client has, not yet funded.
    complete: BTreeSet<String>,
    read: u64,
}

impl Tally {
    /// Reads on in the coordinator's events.
    pub fn update(&mut self, history: &Path) -> Result<()> {
        let mut file = File::open(history).context("the coordinator has said nothing yet")?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        // The last line may not be whole yet.
        let whole = text.iter().rposition(|byte| *byte == b'\n');
        let whole = text
            .get(..whole.map_or(0, |end| end + 1))
            .unwrap_or_default();
        self.read += whole.len() as u64;
        for line in whole.split(|byte| *byte == b'\n') {
            if let Ok(event) = serde_json::from_slice(line) {
                self.take(&Event(event));
            }
        }
        Ok(())
    }

    /// Whether a ceremony is under way, or its factory not funded yet.
    pub fn is_building(&self) -> bool {
        !self.open.is_empty() || !self.complete.is_empty()
    }

    /// What was under way in a coordinator that is killed is taken up again, or given up, by another run.
    pub fn coordinator_ended(&mut self) {
        self.open.clear();
    }

    /// Parts of balances that have moved, all in all.
    pub fn parts(&self) -> u64 {
        self.factories
            .values()
            .map(|life| u64::from(life.parts))
            .sum()
    }

    /// Factories in the order of their births.
    pub fn lives(&self) -> Vec<(&String, &Life)> {
        let mut lives: Vec<_> = self.factories.iter().collect();
        lives.sort_by_key(|(_, life)| life.number);
        lives
    }

    /// The id of the factory that was born as the `number`th, 0 the first.
    pub fn nth(&self, number: usize) -> Option<&String> {
        let mut lives = self.factories.iter();
        lives
            .find(|(_, life)| life.number == number)
            .map(|(id, _)| id)
    }

    fn take(&mut self, event: &Event) {
        let id = event.text("factory").to_owned();
        match event.name() {
            "ladder_birth" => {
                self.begun += 1;
                let rung = event.number("rung").and_then(|rung| rung.try_into().ok());
                self.open
                    .insert(event.text("ceremony").to_owned(), rung.unwrap_or_default());
            }
            "ceremony_failed" => {
                let known = self.open.remove(event.text("ceremony"));
                self.failed += u32::from(known.is_some());
            }
            "ceremony_complete" => {
                let rung = self.open.remove(event.text("ceremony"));
                self.factory(&id).rung = rung;
                self.complete.insert(id);
            }
            "funding_broadcast" => {
                self.complete.remove(&id);
                let height = event.number("at_height").and_then(|at| at.try_into().ok());
                let life = self.factory(&id);
                life.funding = event.text("txid").parse().ok();
                if life.born == 0 {
                    life.born = height.unwrap_or_default();
                }
            }
            "factory_usable" => self.factory(&id).usable = true,
            "factory_unconfirmed" => self.factory(&id).usable = false,
            "part_moved" => {
                let life = self.factory(event.text("from"));
                life.parts += 1;
                life.moved_msat += event.number("amount_msat").unwrap_or_default();
                life.fee_msat += event.number("fee_msat").unwrap_or_default();
            }
            "handed_over" => {
                let client = event.text("client").to_owned();
                self.factory(&id).handed_over.insert(client);
            }
            "exit_needed" => {
                let client = event.text("client").to_owned();
                self.factory(&id).published.insert(client);
            }
            "swept" => self.factory(&id).swept_sat += event.number("sat").unwrap_or_default(),
            "factory_forgotten" => self.factory(&id).forgotten = true,
            "ladder_loss" => self.factory(&id).loss_sat = event.number("sat"),
            _ => {}
        }
    }

    fn factory(&mut self, id: &str) -> &mut Life {
        let number = self.factories.len();
        self.factories.entry(id.to_owned()).or_insert(Life {
            number,
            ..Life::default()
        })
    }
}
