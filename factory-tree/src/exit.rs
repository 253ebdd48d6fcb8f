//! Getting out: what a client publishes, in what order, after which heights and at what cost
//! ([`ExitPlan`]); and, given what the chain says, what comes next ([`next`]).
//!
//! Pure: an adapter asks a node what is confirmed, and publishes what this module names, each
//! transaction with a fee-paying child where it pays no fee of its own.

use bitcoin::{Amount, Txid};

use crate::factory::SpentKind;
use crate::kit::{ExitKit, KitTx};
use crate::output::OutputRole;
use crate::tx::{CHILD_VBYTES, TxKind};
use crate::units::{Blocks, Height};

mod follow;
mod rehearsal;
#[cfg(test)]
mod tests;

pub use follow::{ChainView, End, Goal, Meaning, Spender, Step, TxState, Waiting, next, states};
pub use rehearsal::{RehearsalError, rehearse};

/// One transaction of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanStep {
    /// Its index in [`ExitKit::txs`].
    pub index: usize,
    /// Its id.
    pub txid: Txid,
    /// What it is.
    pub kind: TxKind,
    /// What it spends.
    pub spends: SpentKind,
    /// The transaction it spends an output of.
    pub parent: Txid,
    /// Blocks after the parent's confirmation before it can confirm.
    pub delay: Blocks,
    /// The first block that may contain it, by its nLockTime.
    pub not_before: Option<Height>,
    /// Its size.
    pub vbytes: u64,
    /// What it pays in fees by itself; its child pays the rest.
    pub own_fee: Amount,
}

impl PlanStep {
    fn new(index: usize, tx: &KitTx) -> Self {
        Self {
            index,
            txid: tx.txid(),
            kind: tx.kind,
            spends: tx.spends.kind,
            parent: tx.spends.outpoint.txid,
            delay: delay(tx),
            not_before: not_before(tx),
            vbytes: tx.vbytes(),
            own_fee: tx.own_fee(),
        }
    }

    /// What it costs to confirm at `feerate` sat/vB, beside its own fee: nothing if that suffices,
    /// else what a child has to pay for itself and the transaction.
    #[must_use]
    pub fn cost(&self, feerate: u64) -> Amount {
        let alone = Amount::from_sat(self.vbytes.saturating_mul(feerate));
        if self.own_fee >= alone {
            return Amount::ZERO;
        }
        let package = self.vbytes.saturating_add(CHILD_VBYTES);
        let fee = Amount::from_sat(package.saturating_mul(feerate));
        fee.checked_sub(self.own_fee).unwrap_or(Amount::ZERO)
    }
}

/// Blocks between the confirmation of what `tx` spends and its own: at least one, as every level
/// needs a confirmation of its own (TRUC allows one unconfirmed parent, and that has a child).
fn delay(tx: &KitTx) -> Blocks {
    tx.timelock.delay.unwrap_or_default().max(Blocks(1))
}

/// A transaction with nLockTime `T` may be in the block after `T`.
fn not_before(tx: &KitTx) -> Option<Height> {
    tx.timelock.height.map(|height| height.plus(Blocks(1)))
}

/// What the timeouts pay a client, each net of its fee.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coverage {
    /// The least that a timeout of an output on the path pays, its share in the stock included: while
    /// nobody publishes the leaf. Nothing under `LspReclaim`.
    pub path: Amount,
    /// What the channel's timeout pays, once the leaf is published.
    pub channel: Amount,
    /// What the stock's timeout pays on top, if the LSP does not spend its unsold stock before.
    pub stock: Amount,
    /// What the timeouts of the channels bought from the stock pay on top, once those are published.
    pub sold: Amount,
}

impl Coverage {
    /// What a client gets that stays away, whatever the others publish.
    #[must_use]
    pub fn least(&self) -> Amount {
        self.path.min(self.channel)
    }
}

/// What an exit costs at some feerate, beside what the timeouts pay by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitCost {
    /// The path from the root to the leaf and the sales that lead to a channel, with one child per
    /// transaction.
    pub path: Amount,
    /// The timeouts of channels and stock; their children are paid from the payouts.
    pub timeouts: Amount,
}

/// How a client leaves by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitPlan {
    /// The path, root first, then the sales that lead to a channel, then the timeouts of channels
    /// and stock.
    pub steps: Vec<PlanStep>,
    /// The timeouts of the path's outputs and their second stages, root first: what pays a client
    /// that publishes nothing before `T`.
    pub timeouts: Vec<PlanStep>,
    /// Bytes of the path without children.
    pub path_vbytes: u64,
    /// States of others that have to be published as well, because a kickoff on the path has
    /// further outputs. This client cannot publish them.
    pub forced_siblings: u32,
    /// Blocks until the last of them is confirmed if every transaction confirms as soon as it may.
    pub least_delay: Blocks,
    /// The factory's exit delay: the same with time for each confirmation, sales and margin.
    pub worst_delay: Blocks,
    /// What the timeouts pay.
    pub coverage: Coverage,
}

impl ExitPlan {
    /// The plan of a verified kit.
    #[must_use]
    pub fn new(kit: &ExitKit) -> Self {
        let (mut path, mut last, mut timeouts) = (Vec::new(), Vec::new(), Vec::new());
        let mut forced_siblings = 0u32;
        let stock_end = kit.stock_end();
        for (index, tx) in kit.txs.iter().enumerate() {
            let step = PlanStep::new(index, tx);
            match tx.spends.kind {
                _ if !kit.publishes(tx) => {}
                _ if tx.is_path() => path.push(step),
                SpentKind::Channel => last.push(step),
                SpentKind::Stock if Some(tx) == stock_end => last.push(step),
                // Only where the LSP withholds a sale.
                SpentKind::Stock => {}
                _ => timeouts.push(step),
            }
            if tx.kind == TxKind::Kickoff {
                let branches = tx.outputs.iter().filter(|o| o.role == OutputRole::Branch);
                let siblings = u32::try_from(branches.count()).unwrap_or(u32::MAX);
                forced_siblings = forced_siblings.saturating_add(siblings.saturating_sub(1));
            }
        }
        let path_vbytes = path.iter().map(|step| step.vbytes).sum();
        let least_delay = path
            .iter()
            .fold(Blocks(0), |all, step| all.plus(step.delay));
        path.append(&mut last);
        Self {
            steps: path,
            timeouts,
            path_vbytes,
            forced_siblings,
            least_delay,
            worst_delay: kit.exit_delay,
            coverage: coverage(kit),
        }
    }

    /// What leaving costs at `feerate` sat/vB.
    #[must_use]
    pub fn cost(&self, feerate: u64) -> ExitCost {
        let sum = |path: bool| {
            let ends = |step: &&PlanStep| matches!(step.kind, TxKind::Timeout | TxKind::Poison);
            let steps = self.steps.iter().filter(|step| ends(step) != path);
            let costs = steps.map(|step| step.cost(feerate));
            crate::tx::checked_sum(costs).unwrap_or(Amount::MAX_MONEY)
        };
        ExitCost {
            path: sum(true),
            timeouts: sum(false),
        }
    }

    /// For each step the first block that can contain it, if the funding is confirmed, nothing is
    /// published at `tip` and every step confirms as soon as it may.
    #[must_use]
    pub fn earliest(&self, tip: Height) -> Vec<Height> {
        let mut heights: Vec<(Txid, Height)> = Vec::new();
        for step in &self.steps {
            let parent = heights.iter().find(|(txid, _)| *txid == step.parent);
            let after = parent.map_or(tip, |(_, height)| *height).plus(step.delay);
            let height = step.not_before.map_or(after, |first| first.max(after));
            heights.push((step.txid, height));
        }
        heights.into_iter().map(|(_, height)| height).collect()
    }
}

fn coverage(kit: &ExitKit) -> Coverage {
    let paid = |kind: fn(SpentKind) -> bool| -> Vec<Amount> {
        let timeouts = kit.txs.iter().filter(|tx| tx.kind == TxKind::Timeout);
        let timeouts = timeouts.filter(|tx| kind(tx.spends.kind));
        timeouts.filter_map(|tx| payout(kit, tx)).collect()
    };
    // A first stage pays a branch; its second stage is counted.
    let path = paid(|kind| !matches!(kind, SpentKind::Channel | SpentKind::Stock));
    let mut channels = paid(|kind| kind == SpentKind::Channel).into_iter();
    let stock = kit.stock_end().and_then(|tx| payout(kit, tx));
    Coverage {
        path: path.into_iter().min().unwrap_or(Amount::ZERO),
        channel: channels.next().unwrap_or(Amount::ZERO),
        stock: stock.unwrap_or(Amount::ZERO),
        sold: crate::tx::checked_sum(channels).unwrap_or(Amount::MAX_MONEY),
    }
}

/// What `tx` pays the client itself.
fn payout(kit: &ExitKit, tx: &KitTx) -> Option<Amount> {
    let payouts: Vec<Amount> = kit
        .own_outputs(tx)
        .filter(|(_, output, _)| output.role == OutputRole::Payout)
        .map(|(_, _, txout)| txout.value)
        .collect();
    let paid = crate::tx::checked_sum(payouts.iter().copied())?;
    (!payouts.is_empty()).then_some(paid)
}
