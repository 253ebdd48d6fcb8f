//! Where a factory's money is: in its tree, on its way out, or out.

use std::collections::HashSet;

use bitcoin::{Amount, OutPoint, Txid};
use factory_tree::exit::{ChainView, End, Goal, TxState, next, states};
use factory_tree::factory::SpentKind;
use factory_tree::kit::{ExitKit, KitChannel, KitTx};
use factory_tree::output::OutputRole;
use factory_tree::tx::TxKind;

/// How far a factory has come whose funding output is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unrolled {
    /// Its tree is coming into the chain; what is to come of its channels is open.
    Unrolling,
    /// Its channels are closed on the chain; at most a share in the stock may follow.
    Left,
    /// All there is to get is paid.
    Paid {
        /// Some of it by Lightning: a channel's balance is no payout of the tree's.
        beside_channels: bool,
    },
    /// Others spent all of it.
    Ended,
}

impl Unrolled {
    /// Nothing while the funding output stands.
    pub(crate) fn of(kit: &ExitKit, view: &ChainView) -> Option<Self> {
        view.spent.get(&kit.funding())?;
        let step = next(kit, Goal::Leave, view);
        Some(match (step.is_done(), step.paid()) {
            (true, paid) if paid > Amount::ZERO => Self::Paid {
                beside_channels: step
                    .ends
                    .iter()
                    .any(|end| matches!(end, End::Lightning { .. })),
            },
            // What a commitment pays is no payout of the tree's.
            _ if step.only_stock_left(kit) => Self::Left,
            (true, _) => Self::Ended,
            (false, _) => Self::Unrolling,
        })
    }

    /// As written.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Unrolling => "unrolling",
            Self::Left => "left",
            Self::Paid { .. } => "paid",
            Self::Ended => "ended",
        }
    }

    /// Whether no channel of it is of use any more.
    pub(crate) const fn is_over(self) -> bool {
        !matches!(self, Self::Unrolling)
    }
}

/// Where the money of one factory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Whereabouts {
    /// Capacities of the channels that are still in the tree, with no timeout or poison that pays for them published.
    pub(crate) inside: Amount,
    /// Payouts of timeouts and poisons that were published and are not confirmed.
    pub(crate) coming: Vec<(OutPoint, Amount)>,
    /// The channels that those, or confirmed ones, pay for.
    pub(crate) out: Vec<OutPoint>,
}

impl Whereabouts {
    /// `published`: what the node has taken from us.
    pub(crate) fn of(kit: &ExitKit, view: &ChainView, published: &HashSet<Txid>) -> Self {
        let channels = kit.channels();
        let (mut coming, mut out) = (Vec::new(), Vec::new());
        for (tx, state) in kit.txs.iter().zip(states(kit, view)) {
            let payouts = payouts(kit, tx);
            let ends = matches!(tx.kind, TxKind::Timeout | TxKind::Poison);
            if !ends || payouts.is_empty() {
                continue;
            }
            let sent = state == TxState::Ready && published.contains(&tx.txid());
            if sent {
                coming.extend(payouts);
            }
            if sent || matches!(state, TxState::Confirmed(_)) {
                let paid = channels.iter().filter(|channel| pays_for(kit, tx, channel));
                out.extend(paid.map(|channel| channel.outpoint));
            }
        }
        let is_done = next(kit, Goal::Leave, view).is_done();
        let left = channels
            .iter()
            .filter(|channel| !is_done && !out.contains(&channel.outpoint));
        let inside = left.fold(Amount::ZERO, |sum, channel| {
            sum.checked_add(channel.capacity)
                .unwrap_or(Amount::MAX_MONEY)
        });
        Self {
            inside,
            coming,
            out,
        }
    }
}

/// Whether what `tx` pays is instead of this channel.
fn pays_for(kit: &ExitKit, tx: &KitTx, channel: &KitChannel) -> bool {
    match tx.spends.kind {
        SpentKind::Channel => tx.spends.outpoint == channel.outpoint,
        // What ends a stock pays for what was sold from it or later; where nothing was, a share on top of the channel.
        SpentKind::Stock => {
            let mut later = kit
                .chain()
                .skip_while(|sold| sold.spends.outpoint != tx.spends.outpoint);
            later.any(|sold| sold.txid() == channel.outpoint.txid)
        }
        _ => true,
    }
}

fn payouts(kit: &ExitKit, tx: &KitTx) -> Vec<(OutPoint, Amount)> {
    kit.own_outputs(tx)
        .filter(|(_, output, _)| output.role == OutputRole::Payout)
        .map(|(outpoint, _, txout)| (outpoint, txout.value))
        .collect()
}
