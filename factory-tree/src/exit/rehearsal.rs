//! The exit, rehearsed from what is on disk (facts.md 3.4, item 16): a chain in which every
//! transaction the client publishes confirms in the next block, and nobody else does anything.

use bitcoin::{Amount, Txid};

use super::{ChainView, ExitPlan, Goal, Step, next};
use crate::kit::{ExitKit, KitTx};
use crate::plan;
use crate::sale;
use crate::units::{Blocks, Height};

/// Why an exit does not work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RehearsalError {
    /// The client would publish what the next block may not contain.
    #[error("{txid} is not final in block {block}")]
    NotFinal {
        /// The transaction.
        txid: Txid,
        /// The block it was to be in.
        block: Height,
    },
    /// Nothing more happens, and the client is not out.
    #[error("{goal:?} gets stuck at height {at}")]
    Stuck {
        /// What was rehearsed.
        goal: Goal,
        /// Where it ends.
        at: Height,
    },
    /// The client ends with less than the kit promises.
    #[error("{goal:?} ends with {} sat, the kit promises {} sat", .paid.to_sat(), .promised.to_sat())]
    Underpaid {
        /// What was rehearsed.
        goal: Goal,
        /// What the client got.
        paid: Amount,
        /// What it should get.
        promised: Amount,
    },
}

/// Rehearses both ways out that the factory's policy has, leaving now and waiting for `T`; and, if
/// anything was sold from the stock, what the client is sure of when the LSP publishes the leaf and
/// withholds every sale.
///
/// # Errors
/// [`RehearsalError`] when one of them does not end with what the kit promises.
pub fn rehearse(kit: &ExitKit) -> Result<(), RehearsalError> {
    let coverage = ExitPlan::new(kit).coverage;
    let whole = [coverage.channel, coverage.stock, coverage.sold];
    let whole = crate::tx::checked_sum(whole).unwrap_or(Amount::MAX_MONEY);
    let funded = ChainView {
        tip: kit.birth,
        confirmed: [(kit.funding().txid, kit.birth)].into(),
        ..ChainView::default()
    };
    run(kit, funded.clone(), Goal::Leave, whole)?;
    if plan::has_timeouts(&kit.params) {
        run(kit, funded.clone(), Goal::TimeoutOnly, coverage.path)?;
    }
    if kit.sales.is_empty() {
        return Ok(());
    }
    let mut withheld = funded;
    let path = kit.path().map(|tx| (tx.txid(), kit.birth));
    withheld.confirmed.extend(path);
    // The sales were checked before they are rehearsed.
    let awake = sale::Coverage::of_kit(kit).map_or(Amount::ZERO, |covered| covered.awake);
    run(kit, withheld, Goal::TimeoutOnly, awake)
}

fn run(
    kit: &ExitKit,
    mut view: ChainView,
    goal: Goal,
    promised: Amount,
) -> Result<(), RehearsalError> {
    // Every round confirms a transaction or jumps to where one is final.
    let rounds = kit.txs.len().saturating_mul(2).saturating_add(1);
    for _ in 0..rounds {
        let step = next(kit, goal, &view);
        if step.is_done() {
            let paid = step.paid();
            return if paid >= promised && paid > Amount::ZERO {
                Ok(())
            } else {
                Err(RehearsalError::Underpaid {
                    goal,
                    paid,
                    promised,
                })
            };
        }
        advance(kit, &step, &mut view)?;
    }
    Err(RehearsalError::Stuck { goal, at: view.tip })
}

fn advance(kit: &ExitKit, step: &Step, view: &mut ChainView) -> Result<(), RehearsalError> {
    if step.publish.is_empty() {
        if let Some(until) = step.waiting.iter().map(|waiting| waiting.until).min() {
            view.tip = view.tip.max(until.minus(Blocks(1)));
        }
        return Ok(());
    }
    let block = view.tip.plus(Blocks(1));
    for tx in step.publish.iter().filter_map(|index| kit.txs.get(*index)) {
        let parent = view.confirmed.get(&tx.spends.outpoint.txid);
        if !parent.is_some_and(|parent| is_final(tx, *parent, block)) {
            let txid = tx.txid();
            return Err(RehearsalError::NotFinal { txid, block });
        }
        view.confirmed.insert(tx.txid(), block);
    }
    view.tip = block;
    Ok(())
}

/// nLockTime and BIP-68, read from the transaction's own bytes.
fn is_final(tx: &KitTx, parent: Height, block: Height) -> bool {
    let lock_time = tx.tx.lock_time;
    // A block may contain what is locked to the height before it.
    let height_fits = lock_time.is_block_height() && lock_time.to_consensus_u32() < block.0;
    height_fits
        && tx.tx.input.iter().all(|input| {
            let delay = Blocks(input.sequence.to_consensus_u32() & 0xffff);
            let free = !input.sequence.is_relative_lock_time();
            free || (input.sequence.is_height_locked() && block >= parent.plus(delay))
        })
}
