//! Which coins pay for a transaction.

use bitcoin::{
    Amount, FeeRate, OutPoint, Sequence, Transaction, TxIn, TxOut, Weight, absolute, transaction,
};

use super::coins::sum;
use super::size::signed_vsize;
use super::{OnchainWallet, Result, WalletCoin, WalletError};

/// Weight of one taproot key-path input: 41 bytes, and one witness element of 64 with two length bytes.
const INPUT_WEIGHT: Weight = Weight::from_wu(41 * 4 + 66);

/// Coins that pay for something, and the fee of the transaction that spends them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Selection {
    pub coins: Vec<WalletCoin>,
    pub fee: Amount,
    /// What the coins are worth beyond outputs and fee.
    pub excess: Amount,
}

pub(super) fn fee_at(feerate: FeeRate, vsize: u64) -> Result<Amount> {
    feerate.fee_vb(vsize).ok_or(WalletError::Overflow)
}

/// An unsigned transaction that spends these coins into these outputs. Final at once; any node replaces it for a higher fee.
pub(super) fn unsigned(coins: &[WalletCoin], outputs: &[TxOut]) -> Transaction {
    let input = |coin: &WalletCoin| TxIn {
        previous_output: coin.outpoint,
        sequence: Sequence::ENABLE_LOCKTIME_NO_RBF,
        ..TxIn::default()
    };
    Transaction {
        version: transaction::Version::TWO,
        lock_time: absolute::LockTime::ZERO,
        input: coins.iter().map(input).collect(),
        output: outputs.to_vec(),
    }
}

/// Takes the required coins, then the largest of the others, until outputs and fee are paid. Coins that cost more than they bring are left.
pub(super) fn select(
    required: Vec<WalletCoin>,
    free: Vec<WalletCoin>,
    outputs: &[TxOut],
    feerate: FeeRate,
) -> Result<Selection> {
    let cost = feerate.fee_wu(INPUT_WEIGHT).ok_or(WalletError::Overflow)?;
    let is_required =
        |coin: &WalletCoin| required.iter().any(|known| known.outpoint == coin.outpoint);
    let mut others: Vec<WalletCoin> = free
        .into_iter()
        .filter(|coin| coin.txout.value > cost && !is_required(coin))
        .collect();
    // Smallest last, and equal ones in a fixed order, so that the same wallet gives the same answer.
    others.sort_by_key(|coin| (coin.txout.value, coin.outpoint));
    let spent = sum(outputs.iter().map(|output| &output.value))?;
    let mut coins = required;
    loop {
        let available = sum(coins.iter().map(|coin| &coin.txout.value))?;
        let fee = fee_at(feerate, signed_vsize(&unsigned(&coins, outputs), |_| true))?;
        let needed = spent.checked_add(fee).ok_or(WalletError::Overflow)?;
        // A transaction without inputs pays nobody, even if nothing is asked of it.
        if let Some(excess) = available.checked_sub(needed).filter(|_| !coins.is_empty()) {
            return Ok(Selection { coins, fee, excess });
        }
        coins.push(
            others
                .pop()
                .ok_or(WalletError::NotEnough { needed, available })?,
        );
    }
}

impl OnchainWallet {
    /// Confirmed, free coins that pay these outputs and their fee, the required ones first. Nothing is reserved.
    ///
    /// # Errors
    /// [`WalletError::NotEnough`], [`WalletError::NotOurCoin`].
    pub async fn select_confirmed(
        &self,
        outputs: &[TxOut],
        feerate: FeeRate,
        required: &[OutPoint],
    ) -> Result<Vec<WalletCoin>> {
        let state = self.state.lock().await;
        let required = required
            .iter()
            .map(|outpoint| state.required_coin(*outpoint))
            .collect::<Result<_>>()?;
        Ok(select(
            required,
            state.free_coins(&Default::default()),
            outputs,
            feerate,
        )?
        .coins)
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::hashes::Hash;
    use bitcoin::{ScriptBuf, Txid, XOnlyPublicKey};

    use super::*;

    fn p2tr() -> ScriptBuf {
        let key = XOnlyPublicKey::from_slice(&[0x02; 32]).unwrap();
        ScriptBuf::new_p2tr_tweaked(bitcoin::key::TweakedPublicKey::dangerous_assume_tweaked(
            key,
        ))
    }

    fn output(sat: u64) -> TxOut {
        TxOut {
            value: Amount::from_sat(sat),
            script_pubkey: p2tr(),
        }
    }

    fn coin(n: u8, sat: u64) -> WalletCoin {
        WalletCoin {
            outpoint: OutPoint {
                txid: Txid::from_byte_array([n; 32]),
                vout: 0,
            },
            txout: output(sat),
            height: 1,
        }
    }

    const RATE: FeeRate = FeeRate::from_sat_per_vb_u32(10);

    #[test]
    fn the_largest_coins_go_first_and_the_sums_are_exact() {
        let coins = vec![coin(1, 5_000), coin(2, 70_000), coin(3, 40_000)];
        let chosen = select(vec![], coins, &[output(80_000)], RATE).unwrap();
        assert_eq!(chosen.coins, vec![coin(2, 70_000), coin(3, 40_000)]);
        // Two inputs of 57.5 vB, one output of 43, overhead 10.5.
        assert_eq!(
            (chosen.fee, chosen.excess),
            (
                Amount::from_sat(1_690),
                Amount::from_sat(110_000 - 80_000 - 1_690)
            )
        );
    }

    #[test]
    fn required_coins_are_always_spent_and_never_twice() {
        let coins = vec![coin(1, 5_000), coin(2, 70_000)];
        let chosen = select(vec![coin(1, 5_000)], coins.clone(), &[output(1_000)], RATE).unwrap();
        assert_eq!(chosen.coins, vec![coin(1, 5_000)]);
        let chosen = select(vec![coin(1, 5_000)], coins, &[output(60_000)], RATE).unwrap();
        assert_eq!(chosen.coins, vec![coin(1, 5_000), coin(2, 70_000)]);
    }

    #[test]
    fn coins_below_their_own_cost_are_not_spent() {
        let refused = select(
            vec![],
            vec![coin(1, 575), coin(2, 10_000)],
            &[output(9_500)],
            RATE,
        );
        assert!(
            matches!(refused, Err(WalletError::NotEnough { available, .. }) if available == Amount::from_sat(10_000))
        );
    }

    #[test]
    fn amounts_beyond_all_money_are_an_error_and_not_a_wrap() {
        let outputs = [output(u64::MAX), output(1)];
        assert!(matches!(
            select(vec![], vec![coin(1, 10_000)], &outputs, RATE),
            Err(WalletError::Overflow)
        ));
        assert!(matches!(
            select(vec![], vec![coin(1, 10_000)], &[output(1)], FeeRate::MAX),
            Err(WalletError::Overflow)
        ));
    }

    #[test]
    fn more_than_252_inputs_are_counted_right() {
        let coins: Vec<_> = (0..=252u8).map(|n| coin(n, 10_000)).collect();
        let chosen = select(coins, vec![], &[output(1_000)], RATE).unwrap();
        let vsize = (42u64 + 8 + 253 * 230 + 172).div_ceil(4);
        assert_eq!(chosen.fee, Amount::from_sat(10 * vsize));
    }
}
