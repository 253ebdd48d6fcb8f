//! What to pay: by the node's estimate, more the longer a transaction waits and the nearer its
//! deadline is, and never more than the budget.

use std::collections::HashMap;

use bitcoin::{Amount, FeeRate, Txid};
use chain::ChainSource;
use factory_tree::exit::ChainView;
use factory_tree::kit::{ExitKit, KitTx};
use factory_tree::tx::TxKind;
use factory_tree::units::Height;

use super::stock;
use crate::error::Result;
use crate::store::FeeChildRow;

/// Confirmation wished for while there is time, in blocks.
pub(crate) const RELAXED_TARGET: u16 = 6;
/// A sale or a poison is to take no more than this part of the time that it has.
const HURRY: u32 = 4;
/// After how many blocks without a confirmation the feerate is raised by a quarter.
const PATIENCE: u32 = 2;
/// Most such steps: about 86 times the estimate, if the budget allows.
const MOST_STEPS: u32 = 20;

/// The last height at which `tx` is of use.
///
/// The path is of use until `T`: then the timeouts are valid, or, where there are none, the
/// coordinator may reclaim. Timeouts have no deadline of their own. Sales and poisons have that of
/// the stock.
fn deadline(kit: &ExitKit, tx: &KitTx, view: &ChainView) -> Height {
    match tx.kind {
        TxKind::Timeout => Height(u32::MAX),
        TxKind::StockChain | TxKind::Poison => stock::deadline(kit, tx, view),
        _ => kit.expiry,
    }
}

/// Blocks in which the node should think that `tx` confirms.
pub(super) fn target(kit: &ExitKit, tx: &KitTx, view: &ChainView) -> u16 {
    let left = deadline(kit, tx, view).since(view.tip).0;
    let each = match tx.kind {
        // One at a time: the clock of the next begins when it is confirmed.
        TxKind::StockChain | TxKind::Poison => left.checked_div(HURRY).unwrap_or(0),
        _ => each_level(kit, left),
    };
    u16::try_from(each.clamp(1, RELAXED_TARGET.into())).unwrap_or(1)
}

/// What there is for each level of the path.
fn each_level(kit: &ExitKit, left: u32) -> u32 {
    let levels = kit.path().count() as u32;
    // What all further levels wait for at least.
    let delays: u32 = kit
        .path()
        .map(|tx| tx.timelock.delay.map_or(1, |delay| delay.0.max(1)))
        .fold(0, u32::saturating_add);
    let spare = left.saturating_sub(delays);
    spare.checked_div(levels.max(1)).unwrap_or(0)
}

/// The feerate for a transaction that has been waiting for `waited` blocks.
pub(super) fn escalated(base: FeeRate, waited: u32) -> FeeRate {
    let steps = waited.checked_div(PATIENCE).unwrap_or(0).min(MOST_STEPS);
    let mut rate = u128::from(base.to_sat_per_kwu());
    for _ in 0..steps {
        rate = rate.saturating_mul(5).div_ceil(4);
    }
    FeeRate::from_sat_per_kwu(u64::try_from(rate).unwrap_or(u64::MAX))
}

/// What is left of `max_fee` for a child of `parent`: the children of all other transactions are
/// taken at what they pay now. Never more than `worth`, where that is known.
pub(super) fn budget(
    max_fee: Amount,
    children: &[FeeChildRow],
    parent: Txid,
    worth: Option<Amount>,
) -> Amount {
    let mut newest: HashMap<Txid, Amount> = HashMap::new();
    for child in children.iter().filter(|child| child.parent != parent) {
        newest.insert(child.parent, child.fee);
    }
    let spent = newest.values().fold(Amount::ZERO, |sum, fee| {
        sum.checked_add(*fee).unwrap_or(Amount::MAX)
    });
    let left = max_fee.checked_sub(spent).unwrap_or(Amount::ZERO);
    worth.map_or(left, |worth| left.min(worth))
}

/// The feerate a package of this size reaches when its child pays `budget`.
pub(super) fn affordable(budget: Amount, own_fee: Amount, vbytes: u64) -> Option<FeeRate> {
    let fee = budget.checked_add(own_fee)?;
    let per_kwu = fee.to_sat().checked_mul(250)?.checked_div(vbytes.max(1))?;
    let rate = FeeRate::from_sat_per_kwu(per_kwu);
    (rate >= FeeRate::BROADCAST_MIN).then_some(rate)
}

/// The node's estimate, or what was asked for.
pub(super) async fn base(
    chain: &dyn ChainSource,
    asked: Option<FeeRate>,
    target: u16,
) -> Result<FeeRate> {
    match asked {
        Some(asked) => Ok(asked.max(FeeRate::BROADCAST_MIN)),
        None => Ok(chain.fee_rate(target).await?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::hashes::Hash;

    fn rate(sat_per_vb: u32) -> FeeRate {
        FeeRate::from_sat_per_vb_u32(sat_per_vb)
    }

    #[test]
    fn waiting_makes_it_dearer() {
        assert_eq!(escalated(rate(4), 0), rate(4));
        assert_eq!(escalated(rate(4), 1), rate(4));
        assert_eq!(escalated(rate(4), 2), rate(5));
        assert!(escalated(rate(4), 40) > rate(300));
        assert_eq!(escalated(rate(4), 400), escalated(rate(4), 40));
    }

    #[test]
    fn the_budget_is_for_the_whole_exit() {
        let parent = |n: u8| Txid::from_byte_array([n; 32]);
        let child = |of: u8, fee: u64| FeeChildRow {
            tx: bitcoin::Transaction {
                version: bitcoin::transaction::Version(3),
                lock_time: bitcoin::absolute::LockTime::ZERO,
                input: vec![],
                output: vec![],
            },
            parent: parent(of),
            fee: Amount::from_sat(fee),
            feerate: rate(1),
            height: Height(1),
        };
        // The second child of 1 replaced the first.
        let children = [child(1, 100), child(1, 300), child(2, 50)];
        let max = Amount::from_sat(1000);
        let left = |max, of, worth: Option<u64>| {
            budget(max, &children, parent(of), worth.map(Amount::from_sat)).to_sat()
        };
        assert_eq!(left(max, 2, None), 700);
        assert_eq!(left(max, 1, None), 950);
        assert_eq!(left(max, 3, None), 650);
        assert_eq!(left(Amount::from_sat(10), 3, None), 0);
        // What the others cost is not taken off what a timeout pays.
        assert_eq!(left(max, 3, Some(300)), 300);
        assert_eq!(left(max, 3, Some(900)), 650);
    }

    #[test]
    fn a_small_budget_still_buys_something() {
        let sat = Amount::from_sat;
        assert_eq!(affordable(sat(500), sat(0), 250), Some(rate(2)));
        assert_eq!(affordable(sat(200), sat(0), 250), None);
    }
}
