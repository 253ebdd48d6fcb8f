//! Where a factory's money is: in its tree, on its way out, or out.

use std::collections::HashSet;

use bitcoin::{Amount, OutPoint, Txid};
use factory_tree::exit::{ChainView, Goal, TxState, next, states};
use factory_tree::factory::SpentKind;
use factory_tree::kit::{ExitKit, KitTx};
use factory_tree::output::OutputRole;
use factory_tree::tx::TxKind;

/// One word for a confirmed factory whose funding output is spent.
pub(crate) fn unrolled(kit: &ExitKit, view: &ChainView) -> Option<&'static str> {
    view.spent.get(&kit.funding())?;
    let step = next(kit, Goal::Leave, view);
    Some(match (step.is_done(), step.paid()) {
        (false, _) => "unrolling",
        (true, Amount::ZERO) => "ended",
        (true, _) => "paid",
    })
}

/// Where the money of one factory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Whereabouts {
    /// Whether the channel's capacity is still in the tree, with no timeout of it published.
    pub(crate) inside: bool,
    /// Payouts of timeouts that were published and are not confirmed.
    pub(crate) coming: Vec<(OutPoint, Amount)>,
}

impl Whereabouts {
    /// `published`: what the node has taken from us.
    pub(crate) fn of(kit: &ExitKit, view: &ChainView, published: &HashSet<Txid>) -> Self {
        let mut inside = !next(kit, Goal::Leave, view).is_done();
        let mut coming = Vec::new();
        for (tx, state) in kit.txs.iter().zip(states(kit, view)) {
            let payouts = payouts(kit, tx);
            if tx.kind != TxKind::Timeout || payouts.is_empty() {
                continue;
            }
            let sent = state == TxState::Ready && published.contains(&tx.txid());
            if sent {
                coming.extend(payouts);
            }
            // What the stock pays is not of the channel.
            let out = sent || matches!(state, TxState::Confirmed(_));
            inside &= !(out && tx.spends.kind != SpentKind::Stock);
        }
        Self { inside, coming }
    }
}

fn payouts(kit: &ExitKit, tx: &KitTx) -> Vec<(OutPoint, Amount)> {
    kit.own_outputs(tx)
        .filter(|(_, output, _)| output.role == OutputRole::Payout)
        .map(|(outpoint, _, txout)| (outpoint, txout.value))
        .collect()
}
