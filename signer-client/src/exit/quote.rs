//! Whether the wallet's coins suffice for an exit.

use bitcoin::{Amount, FeeRate};
use factory_tree::tx::CHILD_VBYTES;

/// Least change of a fee child (P2TR dust limit).
const DUST: u64 = 330;

/// Whether `coins` can pay children of these fees, one after the other: each child spends the
/// smallest coin that will do, and its change is a coin of the next.
#[must_use]
pub(crate) fn coins_suffice(coins: &[Amount], fees: &[Amount]) -> bool {
    let mut coins: Vec<u64> = coins.iter().map(|coin| coin.to_sat()).collect();
    for fee in fees.iter().filter(|fee| **fee > Amount::ZERO) {
        let needed = fee.to_sat().saturating_add(DUST);
        coins.sort_unstable();
        let Some(coin) = coins.iter_mut().find(|coin| **coin >= needed) else {
            return false;
        };
        *coin = coin.saturating_sub(fee.to_sat());
    }
    true
}

/// Whether `coins` pay for a path of zero-fee transactions of these sizes at `feerate`.
#[must_use]
pub(crate) fn path_is_paid(
    coins: &[Amount],
    sizes: impl Iterator<Item = u64>,
    feerate: FeeRate,
) -> bool {
    let fees = sizes.map(|vbytes| feerate.fee_vb(vbytes.saturating_add(CHILD_VBYTES)));
    let fees: Option<Vec<Amount>> = fees.collect();
    fees.is_some_and(|fees| coins_suffice(coins, &fees))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sat(amounts: &[u64]) -> Vec<Amount> {
        amounts.iter().copied().map(Amount::from_sat).collect()
    }

    #[test]
    fn change_pays_for_the_next_level() {
        assert!(coins_suffice(&sat(&[3_330]), &sat(&[1000, 1000, 1000])));
        assert!(!coins_suffice(&sat(&[3_329]), &sat(&[1000, 1000, 1000])));
        assert!(coins_suffice(&sat(&[1330, 1330]), &sat(&[1000, 1000])));
        assert!(!coins_suffice(&sat(&[700, 700]), &sat(&[1000])));
        assert!(coins_suffice(&[], &sat(&[0])));
    }
}
