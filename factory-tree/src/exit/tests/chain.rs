//! A chain of a whole factory's transactions, in which others publish what they please.

use std::collections::BTreeMap;

use bitcoin::hashes::Hash;
use bitcoin::{OutPoint, Txid};

use crate::exit::{ChainView, Goal, Spender, Step, next};
use crate::factory::FactoryTx;
use crate::kit::ExitKit;
use crate::output::{OutputRole, ScriptLeaf};
use crate::plan;
use crate::testing::{BIRTH, TestFactory};
use crate::tx::Timelock;
use crate::units::{Blocks, Height};

/// Pseudo-random numbers (xorshift), so that a failure can be replayed.
pub(super) struct Luck(u64);

impl Luck {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}

/// Something anybody might put into a block.
#[derive(Clone, Copy)]
struct Candidate {
    txid: Txid,
    spends: OutPoint,
    timelock: Timelock,
}

impl Candidate {
    fn of(tx: &FactoryTx) -> Self {
        Self {
            txid: tx.txid,
            spends: tx.spends.outpoint,
            timelock: tx.timelock,
        }
    }
}

pub(super) struct Chain {
    tip: Height,
    confirmed: BTreeMap<Txid, Height>,
    spent: BTreeMap<OutPoint, Spender>,
    candidates: Vec<Candidate>,
    luck: Luck,
    /// How many transactions the others publish of their own accord.
    meddling: u32,
    last: Height,
}

impl Chain {
    pub(super) fn new(factory: &TestFactory, luck: Luck, meddling: u32) -> Self {
        let tree = &factory.tree;
        let all = tree.txs().iter().chain(tree.channel_timeouts());
        let mut candidates: Vec<Candidate> = all.clone().map(Candidate::of).collect();
        candidates.extend(sweeps(factory));
        Self {
            tip: BIRTH,
            confirmed: BTreeMap::from([(tree.funding().txid, BIRTH)]),
            spent: BTreeMap::new(),
            candidates,
            luck,
            meddling,
            last: tree.schedule().expiry.plus(Blocks(1000)),
        }
    }

    /// Lets the client follow its goal until it is done.
    pub(super) fn run(&mut self, kit: &ExitKit, goal: Goal) -> Step {
        let mut patience = 0;
        while self.tip < self.last {
            let step = next(kit, goal, &self.view(kit));
            if step.is_done() {
                return step;
            }
            let block = self.tip.plus(Blocks(1));
            if self.meddling > 0 && self.luck.below(8) == 0 {
                self.meddle(block);
            }
            // Its transactions confirm at the third block at the latest.
            patience = if step.publish.is_empty() {
                0
            } else {
                patience + 1
            };
            for index in step.publish {
                let tx = &kit.txs[index];
                let own = Candidate {
                    txid: tx.txid(),
                    spends: tx.spends.outpoint,
                    timelock: tx.timelock,
                };
                let fits = self.fits(&own, block) || self.spent.contains_key(&own.spends);
                assert!(fits, "published what the next block may not contain");
                if patience >= 3 || self.luck.below(2) == 0 {
                    self.include(own, block);
                    patience = 0;
                }
            }
            self.tip = block;
        }
        panic!(
            "not out by {}: {:?}",
            self.last,
            next(kit, goal, &self.view(kit))
        );
    }

    /// Somebody publishes something that the block may contain.
    fn meddle(&mut self, block: Height) {
        let fitting: Vec<Candidate> = self
            .candidates
            .iter()
            .filter(|c| self.fits(c, block))
            .copied()
            .collect();
        let pick = self.luck.below(fitting.len() as u64) as usize;
        if let Some(chosen) = fitting.get(pick) {
            self.include(*chosen, block);
            self.meddling -= 1;
        }
    }

    /// Consensus, as far as locks and inputs go.
    fn fits(&self, candidate: &Candidate, block: Height) -> bool {
        let Some(parent) = self.confirmed.get(&candidate.spends.txid) else {
            return false;
        };
        let delay = candidate.timelock.delay.unwrap_or_default();
        let locked = candidate
            .timelock
            .height
            .is_some_and(|height| block <= height);
        !self.spent.contains_key(&candidate.spends) && block >= parent.plus(delay) && !locked
    }

    fn include(&mut self, candidate: Candidate, block: Height) {
        if self.fits(&candidate, block) {
            let spender = Spender {
                txid: candidate.txid,
                height: block,
            };
            self.spent.insert(candidate.spends, spender);
            self.confirmed.insert(candidate.txid, block);
        }
    }

    /// What the client's node tells it.
    fn view(&self, kit: &ExitKit) -> ChainView {
        let mut view = ChainView {
            tip: self.tip,
            ..ChainView::default()
        };
        let own = kit.txs.iter().map(|tx| tx.txid());
        for txid in own.chain([kit.funding().txid]) {
            if let Some(height) = self.confirmed.get(&txid) {
                view.confirmed.insert(txid, *height);
            }
        }
        for outpoint in kit.watched() {
            if let Some(spender) = self.spent.get(&outpoint) {
                view.spent.insert(outpoint, *spender);
            }
        }
        view
    }
}

/// The LSP's spends by its own script leaves, of every output that has one.
fn sweeps(factory: &TestFactory) -> Vec<Candidate> {
    let tree = &factory.tree;
    let spec = tree.spec();
    let spent = tree
        .txs()
        .iter()
        .map(|tx| (tx.spends.outpoint, tx.spends.kind));
    let stocks = tree
        .txs()
        .iter()
        .flat_map(|tx| tx.outputs_of(OutputRole::Stock));
    let stocks = stocks.map(|(outpoint, _)| (outpoint, crate::factory::SpentKind::Stock));
    let leaves = spent.chain(stocks).filter_map(|(outpoint, kind)| {
        let timelock = match plan::script_leaf(&spec.params, tree.schedule(), kind) {
            ScriptLeaf::None => return None,
            ScriptLeaf::LspAfter(height) => Timelock {
                height: Some(height),
                delay: None,
            },
            ScriptLeaf::LspDelayed(delay) => Timelock {
                height: None,
                delay: Some(delay),
            },
        };
        let name = bitcoin::hashes::sha256::Hash::hash(outpoint.to_string().as_bytes());
        let txid = Txid::from_byte_array(name.to_byte_array());
        Some(Candidate {
            txid,
            spends: outpoint,
            timelock,
        })
    });
    leaves.collect()
}
