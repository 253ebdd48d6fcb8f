//! Every tree transaction, built from typed outputs: version 3, one input, one anchor.

use bitcoin::absolute::LockTime;
use bitcoin::transaction::Version;
use bitcoin::{Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness};
use serde::{Deserialize, Serialize};

use crate::output::{OutputRole, RoledOutput};
use crate::units::{Blocks, Height};

/// TRUC (BIP-431): the largest transaction of version 3.
pub const MAX_VBYTES: u64 = 10_000;
/// The usual fee-paying child: anchor and one key-path coin in, one output.
pub const CHILD_VBYTES: u64 = 153;
/// Everything of a key-path tree transaction but its outputs.
const BASE_VBYTES: u64 = 81;
const OUTPUT_VBYTES: u64 = 43;
/// Above this many outputs the count takes three bytes instead of one.
const SHORT_COUNT: u64 = 252;

/// Size of a transaction with one key-path input, `outputs` P2TR or P2WSH outputs and an anchor.
#[must_use]
pub const fn tree_tx_vbytes(outputs: u64) -> u64 {
    let long_count = if outputs.saturating_add(1) > SHORT_COUNT {
        2
    } else {
        0
    };
    BASE_VBYTES
        .saturating_add(OUTPUT_VBYTES.saturating_mul(outputs))
        .saturating_add(long_count)
}

/// What a transaction of a factory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TxKind {
    /// A node that only fans out.
    Static,
    /// Isolates the race of the states below it.
    Kickoff,
    /// An inner state.
    State,
    /// The lowest state.
    Leaf,
    /// A sale from a stock.
    StockChain,
    /// Pays the clients at `T`.
    Timeout,
    /// Pays the clients what a superseded state or a withheld sale held.
    Poison,
}

/// When a transaction's input may be spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Timelock {
    /// nLockTime; `None`: 0.
    pub height: Option<Height>,
    /// Relative lock of the input; `None`: disabled.
    pub delay: Option<Blocks>,
}

impl Timelock {
    /// No lock.
    pub const NONE: Self = Self {
        height: None,
        delay: None,
    };

    /// nSequence. Disabled relative locks still enable nLockTime and signal replacement.
    #[must_use]
    pub fn sequence(self) -> Sequence {
        let blocks = self.delay.map(|delay| u16::try_from(delay.0));
        match blocks {
            // A delay over 16 bits is refused by FactoryParams::validate.
            Some(blocks) => Sequence::from_height(blocks.unwrap_or(u16::MAX)),
            None => Sequence::ENABLE_RBF_NO_LOCKTIME,
        }
    }

    /// nLockTime.
    #[must_use]
    pub fn lock_time(self) -> LockTime {
        self.height
            .and_then(|height| LockTime::from_height(height.0).ok())
            .unwrap_or(LockTime::ZERO)
    }
}

/// The one transaction builder: version 3, exactly one input, no signature.
#[must_use]
pub fn build(spends: OutPoint, timelock: Timelock, outputs: Vec<TxOut>) -> Transaction {
    Transaction {
        version: Version::non_standard(3),
        lock_time: timelock.lock_time(),
        input: vec![TxIn {
            previous_output: spends,
            script_sig: ScriptBuf::new(),
            sequence: timelock.sequence(),
            witness: Witness::new(),
        }],
        output: outputs,
    }
}

/// Why a transaction would not relay.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelayError {
    /// TRUC's size limit.
    #[error("transaction of {vbytes} vB, the limit of version 3 is {MAX_VBYTES}")]
    TooLarge {
        /// Its size when signed.
        vbytes: u64,
    },
    /// An output below the dust limit.
    #[error("output {vout} of {} sat is under {} sat", .amount.to_sat(), crate::output::MIN_OUTPUT.to_sat())]
    Dust {
        /// Which output.
        vout: usize,
        /// Its amount.
        amount: Amount,
    },
    /// Not exactly one anchor, last.
    #[error("not exactly one anchor as the last output")]
    Anchor,
    /// A fee with a 0-sat anchor, or no fee with a funded one.
    #[error(
        "a fee of {} sat with an anchor of {} sat: a 0-sat anchor goes with no fee, a funded one with a fee",
        .fee.to_sat(), .anchor.to_sat()
    )]
    MixedFee {
        /// The transaction's own fee.
        fee: Amount,
        /// The anchor's amount.
        anchor: Amount,
    },
    /// More out than in.
    #[error("outputs of {} sat spend an input of {} sat", .outputs.to_sat(), .input.to_sat())]
    Overspent {
        /// Sum of the outputs.
        outputs: Amount,
        /// The input.
        input: Amount,
    },
}

/// Sum of amounts; `None` above 21 million bitcoin.
#[must_use]
pub fn checked_sum(amounts: impl IntoIterator<Item = Amount>) -> Option<Amount> {
    let sum = amounts
        .into_iter()
        .try_fold(Amount::ZERO, |sum, amount| sum.checked_add(amount))?;
    (sum <= Amount::MAX_MONEY).then_some(sum)
}

/// Checks BIP-431/433 relay rules for a transaction spending `input` with these outputs, and
/// returns its own fee.
///
/// # Errors
/// The first rule broken.
pub fn check_relay(
    input: Amount,
    outputs: &[RoledOutput],
    vbytes: u64,
) -> Result<Amount, RelayError> {
    if vbytes > MAX_VBYTES {
        return Err(RelayError::TooLarge { vbytes });
    }
    let (last, others) = outputs.split_last().ok_or(RelayError::Anchor)?;
    let anchors = outputs.iter().filter(|o| o.role == OutputRole::Anchor);
    if last.role != OutputRole::Anchor || anchors.count() != 1 {
        return Err(RelayError::Anchor);
    }
    for (vout, output) in others.iter().enumerate() {
        if output.txout.value < crate::output::MIN_OUTPUT {
            return Err(RelayError::Dust {
                vout,
                amount: output.txout.value,
            });
        }
    }
    let outputs = checked_sum(outputs.iter().map(|o| o.txout.value)).unwrap_or(Amount::MAX);
    let fee = input
        .checked_sub(outputs)
        .ok_or(RelayError::Overspent { outputs, input })?;
    let anchor = last.txout.value;
    let zero_fee = fee == Amount::ZERO && anchor == Amount::ZERO;
    let paid = fee > Amount::ZERO && anchor == crate::output::FUNDED_ANCHOR;
    if zero_fee || paid {
        return Ok(fee);
    }
    Err(RelayError::MixedFee { fee, anchor })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{FUNDED_ANCHOR, anchor};
    use bitcoin::hashes::Hash;

    fn outputs(amounts: &[u64], anchor_sat: Amount) -> Vec<RoledOutput> {
        let script = ScriptBuf::from_hex(&format!("5120{}", "11".repeat(32))).unwrap();
        let mut all: Vec<_> = amounts
            .iter()
            .map(|sat| RoledOutput {
                role: OutputRole::Payout,
                clients: 0..1,
                txout: TxOut {
                    value: Amount::from_sat(*sat),
                    script_pubkey: script.clone(),
                },
            })
            .collect();
        all.push(anchor(anchor_sat));
        all
    }

    fn signed(count: usize) -> Transaction {
        let outs = outputs(&vec![1000; count], Amount::ZERO);
        let spends = OutPoint::new(bitcoin::Txid::all_zeros(), 0);
        let mut tx = build(
            spends,
            Timelock::NONE,
            outs.into_iter().map(|o| o.txout).collect(),
        );
        tx.input[0].witness.push([1u8; 64]);
        tx
    }

    #[test]
    fn size_model_agrees_with_the_library() {
        for count in [1usize, 2, 6, 20, 200, 230, 251, 252, 253, 300] {
            assert_eq!(
                signed(count).vsize() as u64,
                tree_tx_vbytes(count as u64),
                "{count}"
            );
        }
    }

    #[test]
    fn relay_rules_are_checked() {
        let sat = Amount::from_sat;
        assert_eq!(
            check_relay(sat(1000), &outputs(&[1000], sat(0)), 124),
            Ok(sat(0))
        );
        assert_eq!(
            check_relay(sat(2000), &outputs(&[1000], FUNDED_ANCHOR), 124),
            Ok(sat(760))
        );
        let broken = [
            check_relay(sat(1000), &outputs(&[900], sat(0)), 124),
            check_relay(sat(1240), &outputs(&[1000], FUNDED_ANCHOR), 124),
            check_relay(sat(329), &outputs(&[329], sat(0)), 124),
            check_relay(sat(999), &outputs(&[1000], sat(0)), 124),
            check_relay(sat(1000), &outputs(&[1000], sat(0)), 10_001),
            check_relay(sat(1000), &outputs(&[1000], sat(0))[..1], 124),
        ];
        assert!(matches!(broken[0], Err(RelayError::MixedFee { .. })));
        assert!(matches!(broken[1], Err(RelayError::MixedFee { .. })));
        assert!(matches!(broken[2], Err(RelayError::Dust { .. })));
        assert!(matches!(broken[3], Err(RelayError::Overspent { .. })));
        assert!(matches!(broken[4], Err(RelayError::TooLarge { .. })));
        assert!(matches!(broken[5], Err(RelayError::Anchor)));
    }

    #[test]
    fn timelocks_encode_as_bip68_and_nlocktime() {
        let delayed = Timelock {
            height: Some(Height(900)),
            delay: Some(Blocks(288)),
        };
        assert_eq!(delayed.sequence().to_consensus_u32(), 288);
        assert_eq!(delayed.lock_time().to_consensus_u32(), 900);
        assert!(!Timelock::NONE.sequence().is_relative_lock_time());
        assert!(Timelock::NONE.sequence().enables_absolute_lock_time());
    }
}
