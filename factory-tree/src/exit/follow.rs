//! Given what the chain says, what a client publishes next and what it waits for. Works from any
//! state of the chain: others may have published any part of the tree.

use std::collections::BTreeMap;

use bitcoin::{Amount, OutPoint, Txid};

use super::{delay, not_before};
use crate::factory::SpentKind;
use crate::kit::{ExitKit, KitTx};
use crate::output::OutputRole;
use crate::params::ExpiryPolicy;
use crate::tx::TxKind;
use crate::units::{Blocks, Height};

/// What the client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Goal {
    /// Publish the path and the sales now, then be paid by the timeouts of channels and stock.
    Leave,
    /// Publish nothing before `T`; then the timeout of the deepest output that is confirmed.
    TimeoutOnly,
}

/// What is confirmed. The adapter fills it for [`ExitKit::watched`] and the kit's transactions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainView {
    /// Height of the last block.
    pub tip: Height,
    /// Heights of confirmed transactions: the funding transaction and those of the kit.
    pub confirmed: BTreeMap<Txid, Height>,
    /// What spent the watched outpoints, where that is confirmed.
    pub spent: BTreeMap<OutPoint, Spender>,
}

/// A confirmed spend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spender {
    /// The transaction.
    pub txid: Txid,
    /// The height it confirmed at.
    pub height: Height,
}

impl ChainView {
    /// The height `txid` confirmed at.
    fn height_of(&self, txid: Txid) -> Option<Height> {
        let seen = self.confirmed.get(&txid).copied();
        let spender = || self.spent.values().find(|spender| spender.txid == txid);
        seen.or_else(|| spender().map(|spender| spender.height))
    }
}

/// Where a transaction of the kit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxState {
    /// In the chain.
    Confirmed(Height),
    /// Can be published: the next block may contain it.
    Ready,
    /// Its parent is confirmed; the first block that may contain it.
    WaitingUntil(Height),
    /// What it spends is not confirmed yet.
    WaitingForParent,
    /// Another transaction spent its output, or that of one of its ancestors.
    Impossible {
        /// The transaction that did.
        by: Txid,
    },
}

/// The state of each transaction of the kit, in its order.
#[must_use]
pub fn states(kit: &ExitKit, view: &ChainView) -> Vec<TxState> {
    let mut states: BTreeMap<Txid, TxState> = BTreeMap::new();
    let mut list = Vec::with_capacity(kit.txs.len());
    for tx in &kit.txs {
        let state = state(kit, view, tx, &states);
        states.insert(tx.txid(), state);
        list.push(state);
    }
    list
}

fn state(kit: &ExitKit, view: &ChainView, tx: &KitTx, above: &BTreeMap<Txid, TxState>) -> TxState {
    let (txid, outpoint) = (tx.txid(), tx.spends.outpoint);
    if let Some(height) = view.height_of(txid) {
        return TxState::Confirmed(height);
    }
    if let Some(by) = spender(kit, view, outpoint) {
        return TxState::Impossible { by };
    }
    let parent = match above.get(&outpoint.txid) {
        Some(TxState::Confirmed(height)) => Some(*height),
        Some(TxState::Impossible { by }) => return TxState::Impossible { by: *by },
        Some(_) => None,
        // Only the funding transaction is not of the kit.
        None => view.height_of(outpoint.txid),
    };
    let Some(parent) = parent else {
        return TxState::WaitingForParent;
    };
    let after = parent.plus(delay(tx));
    let first = not_before(tx).map_or(after, |height| height.max(after));
    if first <= view.tip.plus(Blocks(1)) {
        TxState::Ready
    } else {
        TxState::WaitingUntil(first)
    }
}

/// What spent `outpoint` in the chain.
fn spender(kit: &ExitKit, view: &ChainView, outpoint: OutPoint) -> Option<Txid> {
    if let Some(spender) = view.spent.get(&outpoint) {
        return Some(spender.txid);
    }
    let mut spends = kit.txs.iter().filter(|tx| tx.spends.outpoint == outpoint);
    let confirmed = spends.find(|tx| view.height_of(tx.txid()).is_some());
    confirmed.map(KitTx::txid)
}

/// What to do next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Whether the funding is confirmed. If not there is nothing to leave.
    pub funded: bool,
    /// Indices in [`ExitKit::txs`] of what to publish now: one per output the money is in.
    pub publish: Vec<usize>,
    /// What is to be published later.
    pub waiting: Vec<Waiting>,
    /// Where the client's money, or a part of it, has come to an end.
    pub ends: Vec<End>,
}

/// A transaction to be published later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its index in [`ExitKit::txs`].
    pub index: usize,
    /// The first block that may contain it: publish when the tip is one below.
    pub until: Height,
}

/// Where a part of the client's money has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Paid to the client's own script.
    Paid {
        /// The payout.
        outpoint: OutPoint,
        /// What it holds.
        amount: Amount,
        /// The height it confirmed at.
        height: Height,
    },
    /// Spent by a transaction that is not of this kit.
    Foreign {
        /// The output.
        outpoint: OutPoint,
        /// What it was.
        kind: SpentKind,
        /// The transaction that spent it.
        by: Txid,
        /// What that means.
        meaning: Meaning,
    },
    /// A commitment of the channel, or its cooperative close: what of it is the client's, Lightning pays out.
    Lightning {
        /// The channel output.
        outpoint: OutPoint,
        /// The transaction.
        by: Txid,
        /// The height it confirmed at.
        height: Height,
    },
    /// Nothing gets the money out of this output as the goal wants: under `LspReclaim` only
    /// publishing the path does.
    NoTimeout {
        /// The output.
        outpoint: OutPoint,
        /// What it is.
        kind: SpentKind,
    },
}

/// What a spend by a transaction that is not of the kit means, by what was spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Meaning {
    /// All keys signed something else: a cooperative end, or the keys were handed over.
    SpentTogether,
    /// The LSP took, after `T`, what the client had not published.
    Reclaimed,
    /// Another state than this kit's: a later one, or an older one with its poisons.
    OtherState,
    /// Sold, or taken by the LSP after its delay, unsold.
    StockSpent,
}

impl Step {
    /// Whether nothing is left to be published.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.funded && self.publish.is_empty() && self.waiting.is_empty()
    }

    /// Whether the channel has come to its end on Lightning, and all that is left is a share in a stock.
    #[must_use]
    pub fn only_stock_left(&self, kit: &ExitKit) -> bool {
        let mut ends = self.ends.iter();
        let ended = ends.any(|end| matches!(end, End::Lightning { .. }));
        let waiting = self.waiting.iter().map(|waiting| waiting.index);
        let mut left = self.publish.iter().copied().chain(waiting);
        let is_stock = |index: usize| {
            let tx = kit.txs.get(index);
            tx.is_some_and(|tx| (tx.kind, tx.spends.kind) == (TxKind::Timeout, SpentKind::Stock))
        };
        ended && left.all(is_stock)
    }

    /// What has been paid to the client.
    #[must_use]
    pub fn paid(&self) -> Amount {
        let paid = self.ends.iter().map(|end| match end {
            End::Paid { amount, .. } => *amount,
            _ => Amount::ZERO,
        });
        crate::tx::checked_sum(paid).unwrap_or(Amount::MAX_MONEY)
    }
}

/// What a client with this `goal` does next. To be asked again at every block.
#[must_use]
pub fn next(kit: &ExitKit, goal: Goal, view: &ChainView) -> Step {
    let mut follower = Follower {
        kit,
        goal,
        view,
        states: states(kit, view),
        step: Step::default(),
    };
    let funding = kit.funding();
    follower.step.funded =
        view.height_of(funding.txid).is_some() || spender(kit, view, funding).is_some();
    if follower.step.funded {
        follower.follow(funding);
    }
    follower.step
}

struct Follower<'a> {
    kit: &'a ExitKit,
    goal: Goal,
    view: &'a ChainView,
    states: Vec<TxState>,
    step: Step,
}

impl Follower<'_> {
    /// Follows the client's money from the funding output down to where it is now. A tree is
    /// followed along one path, so the list of open outputs stays short.
    fn follow(&mut self, funding: OutPoint) {
        let kit = self.kit;
        let mut open = vec![funding];
        while let Some(outpoint) = open.pop() {
            let spends = kit.txs.iter().zip(&self.states);
            let confirmed = spends
                .filter(|(tx, _)| tx.spends.outpoint == outpoint)
                .find_map(|(tx, state)| match state {
                    TxState::Confirmed(height) => Some((tx, *height)),
                    _ => None,
                });
            let Some((tx, height)) = confirmed else {
                self.at(outpoint);
                continue;
            };
            for (own, output, txout) in kit.own_outputs(tx) {
                if output.role == OutputRole::Payout {
                    self.step.ends.push(End::Paid {
                        outpoint: own,
                        amount: txout.value,
                        height,
                    });
                } else {
                    open.push(own);
                }
            }
        }
    }

    fn spends_of(
        &self,
        outpoint: OutPoint,
    ) -> impl Iterator<Item = (usize, &'_ KitTx, TxState)> + '_ {
        let all = self.kit.txs.iter().zip(&self.states).enumerate();
        all.filter(move |(_, (tx, _))| tx.spends.outpoint == outpoint && self.kit.publishes(tx))
            .map(|(index, (tx, state))| (index, tx, *state))
    }

    /// The money is in `outpoint`, or something that is not of the kit spent it.
    fn at(&mut self, outpoint: OutPoint) {
        let Some(kind) = self
            .spends_of(outpoint)
            .map(|(_, tx, _)| tx.spends.kind)
            .next()
        else {
            // A stock of which nothing is the client's: under `LspReclaim`, or sold to others.
            return;
        };
        if let Some(spender) = self.view.spent.get(&outpoint) {
            let (by, height) = (spender.txid, spender.height);
            self.step.ends.push(match self.meaning(kind, height) {
                Some(meaning) => End::Foreign {
                    outpoint,
                    kind,
                    by,
                    meaning,
                },
                None => End::Lightning {
                    outpoint,
                    by,
                    height,
                },
            });
            return;
        }
        match self.choose(outpoint) {
            Some((index, TxState::Ready)) => self.step.publish.push(index),
            Some((index, TxState::WaitingUntil(until))) => {
                self.step.waiting.push(Waiting { index, until });
            }
            _ => self.step.ends.push(End::NoTimeout { outpoint, kind }),
        }
    }

    /// Whatever can confirm first; of two that can confirm now the timeout or poison, as it ends the
    /// matter.
    fn choose(&self, outpoint: OutPoint) -> Option<(usize, TxState)> {
        let wanted = self
            .spends_of(outpoint)
            .filter(|(_, tx, _)| self.goal == Goal::Leave || !tx.is_path())
            .filter_map(|(index, tx, state)| {
                let from = match state {
                    TxState::Ready => Height(0),
                    TxState::WaitingUntil(height) => height,
                    _ => return None,
                };
                Some(((from, tx.is_path()), (index, state)))
            });
        wanted
            .min_by_key(|(order, _)| *order)
            .map(|(_, chosen)| chosen)
    }

    /// Nothing for a channel, whose spends that are not of the kit are Lightning's.
    fn meaning(&self, kind: SpentKind, height: Height) -> Option<Meaning> {
        let reclaim = self.kit.params.expiry_policy == ExpiryPolicy::LspReclaim;
        Some(match kind {
            SpentKind::Funding | SpentKind::Static | SpentKind::State => {
                if reclaim && height > self.kit.expiry {
                    Meaning::Reclaimed
                } else {
                    Meaning::SpentTogether
                }
            }
            SpentKind::FirstStage => Meaning::SpentTogether,
            SpentKind::Kickoff => Meaning::OtherState,
            SpentKind::Stock => Meaning::StockSpent,
            SpentKind::Channel => return None,
        })
    }
}
