//! What was sold from a stock whose leaf is on the chain. A coordinator that withholds the sales takes them back, unless somebody publishes
//! them, or their newest poison when that is final: nobody has to ask for it (protocol.md section 6; attacks.md, second part, section 1).

use factory_tree::exit::{ChainView, End, Step, TxState, next, states};
use factory_tree::factory::SpentKind;
use factory_tree::kit::{ExitKit, KitTx};
use factory_tree::tx::TxKind;
use factory_tree::units::{Blocks, Height};

use crate::store::Goal;

/// The coordinator publishes at once. When this part of the time until the first poison is over, it does not.
const PATIENCE: u32 = 4;

/// What is due with this goal. Who does not leave is owed the sales all the same; its own fee coins pay for them only when they are withheld,
/// or else every mate's exit would cost them.
pub(super) fn due(kit: &ExitKit, goal: Goal, view: &ChainView) -> Step {
    let leave = || next(kit, factory_tree::exit::Goal::Leave, view);
    if goal == Goal::Leave {
        return leave();
    }
    let step = next(kit, factory_tree::exit::Goal::TimeoutOnly, view);
    match is_withheld(kit, view) {
        true => with_stock(kit, step, leave()),
        false => step,
    }
}

/// Whether this step takes what the coordinator withholds, or something of it was paid already.
pub(super) fn defends(kit: &ExitKit, step: &Step) -> bool {
    let taken = |index: &usize| {
        let tx = kit.txs.get(*index);
        tx.is_some_and(|tx| matches!(tx.kind, TxKind::StockChain | TxKind::Poison))
    };
    let paid = |end: &End| matches!(end, End::Paid { .. });
    !kit.sales.is_empty() && (step.publish.iter().any(taken) || step.ends.iter().any(paid))
}

/// The last height at which a sale or a poison is of use: then another poison may take what it spends, or the coordinator all of it.
pub(super) fn deadline(kit: &ExitKit, tx: &KitTx, view: &ChainView) -> Height {
    let Some(spent) = parent(kit, tx, view) else {
        return view.tip;
    };
    let own = tx.timelock.delay.unwrap_or_default();
    let later = poisons(kit, tx).filter(|delay| *delay > own).min();
    spent.plus(later.unwrap_or(Blocks(kit.params.q)))
}

fn is_withheld(kit: &ExitKit, view: &ChainView) -> bool {
    let mut ready = kit
        .txs
        .iter()
        .zip(states(kit, view))
        .filter(|(tx, state)| tx.kind == TxKind::StockChain && *state == TxState::Ready);
    ready.any(|(sale, _)| {
        let first = poisons(kit, sale).min().unwrap_or_default();
        let patience = Blocks(first.0.div_ceil(PATIENCE));
        parent(kit, sale, view).is_some_and(|spent| view.tip >= spent.plus(patience))
    })
}

/// The delays of the poisons of what `tx` spends.
fn poisons<'a>(kit: &'a ExitKit, tx: &KitTx) -> impl Iterator<Item = Blocks> + use<'a> {
    let stock = tx.spends.outpoint;
    let spends = kit.txs.iter().filter(move |tx| tx.spends.outpoint == stock);
    let poisons = spends.filter(|tx| tx.kind == TxKind::Poison);
    poisons.filter_map(|tx| tx.timelock.delay)
}

/// The height of what `tx` spends an output of.
fn parent(kit: &ExitKit, tx: &KitTx, view: &ChainView) -> Option<Height> {
    let txid = tx.spends.outpoint.txid;
    let mut all = kit.txs.iter().zip(states(kit, view));
    let (_, state) = all.find(|(parent, _)| parent.txid() == txid)?;
    match state {
        TxState::Confirmed(height) => Some(height),
        _ => None,
    }
}

/// `step`, but with what `leave` does about stocks.
fn with_stock(kit: &ExitKit, mut step: Step, leave: Step) -> Step {
    let is_stock = |index: usize| {
        let tx = kit.txs.get(index);
        tx.is_some_and(|tx| tx.spends.kind == SpentKind::Stock)
    };
    let no_way = |end: &End| {
        let stock = SpentKind::Stock;
        matches!(end, End::NoTimeout { kind, .. } if *kind == stock)
    };
    step.publish.retain(|index| !is_stock(*index));
    step.waiting.retain(|waiting| !is_stock(waiting.index));
    step.ends.retain(|end| !no_way(end));
    let published = leave.publish.into_iter();
    step.publish
        .extend(published.filter(|index| is_stock(*index)));
    let waiting = leave.waiting.into_iter();
    step.waiting
        .extend(waiting.filter(|waiting| is_stock(waiting.index)));
    step.ends.extend(leave.ends.into_iter().filter(no_way));
    step
}
