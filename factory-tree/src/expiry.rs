//! Timeouts (TO): what pays the clients when a factory expires, net of the fee it carries.
//!
//! A timeout with several payouts spends the LSP's forfeited money, so it carries its own fee and
//! a funded anchor; with one payout it pays nothing and its child spends the payout. Above
//! [`FLAT_LIMIT`] clients it comes in two stages (protocol.md section 1, attacks.md A19).

use bitcoin::{Amount, ScriptBuf, TxOut};

use crate::output::{FUNDED_ANCHOR, MIN_OUTPUT, OutputRole, RoledOutput, anchor};
use crate::params::FactoryParams;
use crate::shape::ClientRange;
use crate::tx::tree_tx_vbytes;

/// Most clients a single timeout pays directly (v3's 10,000 vB).
pub const FLAT_LIMIT: u32 = 200;

/// What a party below an output has a claim on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Channel capacity.
    pub capacity: Amount,
    /// Share of the stock.
    pub share: Amount,
    /// Whose claim it is.
    pub clients: ClientRange,
    /// Where it is paid.
    pub script: ScriptBuf,
    /// What that output is: a client's payout, or a branch of a first stage.
    pub role: OutputRole,
}

/// Why a timeout cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpiryError {
    /// The claims are larger than any amount of bitcoin, or the output is smaller than its fee.
    #[error("an output of {} sat cannot pay a timeout fee of {} sat", .output.to_sat(), .fee.to_sat())]
    TooSmallForFee {
        /// The output to be spent.
        output: Amount,
        /// The fee and the anchor together.
        fee: Amount,
    },
    /// A payout would be dust.
    #[error("client {client} would be paid {} sat, under {} sat", .amount.to_sat(), MIN_OUTPUT.to_sat())]
    DustPayout {
        /// Position of the (first) client.
        client: u32,
        /// Its payout.
        amount: Amount,
    },
    /// Amounts over 21 million bitcoin.
    #[error("amounts add up to more than 21 million bitcoin")]
    Overflow,
}

/// Fee and anchor of a timeout or poison with `payouts` outputs; nothing for one payout.
#[must_use]
pub fn deduction(params: &FactoryParams, payouts: u64) -> Amount {
    if payouts <= 1 {
        return Amount::ZERO;
    }
    let fee = tree_tx_vbytes(payouts).saturating_mul(params.timeout_feerate);
    Amount::from_sat(fee.saturating_add(FUNDED_ANCHOR.to_sat()))
}

/// The least stock worth creating for `clients` sharers: dust for each, and the fees of its
/// timeout and of its sale poison (the same size).
#[must_use]
pub fn least_stock(params: &FactoryParams, clients: u32) -> Amount {
    let clients = u64::from(clients);
    let fees = deduction(params, clients).to_sat().saturating_mul(2);
    let dust = MIN_OUTPUT.to_sat().saturating_mul(clients);
    Amount::from_sat(fees.saturating_add(dust))
}

/// The outputs of a timeout that spends `input` and pays `claims`, anchor last.
///
/// Capacities are paid whole as long as the stock shares bear the fee; the rest of the shares is
/// paid in proportion. Where the shares do not suffice, all payouts bear the remainder evenly.
///
/// # Errors
/// [`ExpiryError`] when the amounts do not work out.
pub fn timeout_outputs(
    params: &FactoryParams,
    input: Amount,
    claims: &[Claim],
) -> Result<Vec<RoledOutput>, ExpiryError> {
    let fee = deduction(params, claims.len() as u64);
    let available = input
        .checked_sub(fee)
        .ok_or(ExpiryError::TooSmallForFee { output: input, fee })?;
    let amounts = distribute(available, claims)?;
    let mut outputs = Vec::with_capacity(claims.len().saturating_add(1));
    for (claim, amount) in claims.iter().zip(amounts) {
        if amount < MIN_OUTPUT {
            return Err(ExpiryError::DustPayout {
                client: claim.clients.start,
                amount,
            });
        }
        outputs.push(RoledOutput {
            role: claim.role,
            clients: claim.clients.clone(),
            txout: TxOut {
                value: amount,
                script_pubkey: claim.script.clone(),
            },
        });
    }
    outputs.push(anchor(if fee == Amount::ZERO {
        Amount::ZERO
    } else {
        FUNDED_ANCHOR
    }));
    Ok(outputs)
}

/// Splits `available` over `claims`; the parts add up to `available` exactly.
fn distribute(available: Amount, claims: &[Claim]) -> Result<Vec<Amount>, ExpiryError> {
    let total = |part: fn(&Claim) -> Amount| {
        crate::tx::checked_sum(claims.iter().map(part)).ok_or(ExpiryError::Overflow)
    };
    let capacities = total(|claim| claim.capacity)?;
    let shares = total(|claim| claim.share)?;
    match available.checked_sub(capacities) {
        Some(extra) if shares > Amount::ZERO || extra == Amount::ZERO => {
            let weights: Vec<u64> = claims.iter().map(|c| c.share.to_sat()).collect();
            let parts = proportional(extra.to_sat(), &weights);
            add(claims, &parts)
        }
        Some(extra) => add(claims, &even(extra.to_sat(), claims.len())),
        None => {
            let missing = capacities.checked_sub(available).unwrap_or(Amount::ZERO);
            subtract(claims, &even(missing.to_sat(), claims.len()))
        }
    }
}

fn add(claims: &[Claim], parts: &[u64]) -> Result<Vec<Amount>, ExpiryError> {
    let sums = claims.iter().zip(parts).map(|(claim, part)| {
        let sum = claim.capacity.checked_add(Amount::from_sat(*part));
        sum.ok_or(ExpiryError::Overflow)
    });
    sums.collect()
}

fn subtract(claims: &[Claim], parts: &[u64]) -> Result<Vec<Amount>, ExpiryError> {
    let rests = claims.iter().zip(parts).map(|(claim, part)| {
        let fee = Amount::from_sat(*part);
        let rest = claim.capacity.checked_sub(fee);
        rest.ok_or(ExpiryError::TooSmallForFee {
            output: claim.capacity,
            fee,
        })
    });
    rests.collect()
}

/// `total` in proportion to `weights`, rounded down; the satoshis left over go one each to the
/// first of those with a weight.
fn proportional(total: u64, weights: &[u64]) -> Vec<u64> {
    let sum: u128 = weights.iter().map(|w| u128::from(*w)).sum();
    let mut parts: Vec<u64> = weights
        .iter()
        .map(|weight| {
            let product = u128::from(total).saturating_mul(u128::from(*weight));
            let part = product.checked_div(sum).unwrap_or(0);
            u64::try_from(part).unwrap_or(u64::MAX)
        })
        .collect();
    let given: u64 = parts.iter().fold(0, |all, part| all.saturating_add(*part));
    let mut left = total.saturating_sub(given);
    for (part, weight) in parts.iter_mut().zip(weights) {
        if left > 0 && *weight > 0 {
            *part = part.saturating_add(1);
            left = left.saturating_sub(1);
        }
    }
    parts
}

/// `total` in `count` equal parts, the first ones a satoshi larger where it does not divide.
#[must_use]
pub fn even(total: u64, count: usize) -> Vec<u64> {
    proportional(total, &vec![1; count])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Profile;
    use bitcoin::Network;
    use proptest::prelude::*;

    fn params() -> FactoryParams {
        FactoryParams::profile(Profile::Lite, Network::Regtest)
    }

    fn claims(amounts: &[(u64, u64)]) -> Vec<Claim> {
        let script = ScriptBuf::from_hex(&format!("5120{}", "22".repeat(32))).unwrap();
        (0u32..)
            .zip(amounts)
            .map(|(i, (capacity, share))| Claim {
                capacity: Amount::from_sat(*capacity),
                share: Amount::from_sat(*share),
                clients: i..i + 1,
                script: script.clone(),
                role: OutputRole::Payout,
            })
            .collect()
    }

    fn paid(input: u64, amounts: &[(u64, u64)]) -> Vec<u64> {
        let input = Amount::from_sat(input);
        let outputs = timeout_outputs(&params(), input, &claims(amounts)).unwrap();
        outputs.iter().map(|o| o.txout.value.to_sat()).collect()
    }

    #[test]
    fn one_payout_pays_no_fee_and_takes_everything() {
        assert_eq!(paid(200_000, &[(200_000, 0)]), [200_000, 0]);
        assert_eq!(paid(300_000, &[(200_000, 100_000)]), [300_000, 0]);
    }

    #[test]
    fn fee_comes_from_the_stock_shares() {
        let fee = tree_tx_vbytes(2) * 10 + 240;
        let out = paid(600_000, &[(200_000, 100_000), (200_000, 100_000)]);
        assert_eq!(out, [300_000 - fee / 2, 300_000 - fee / 2, 240]);
        let out = paid(500_001, &[(200_000, 100_000), (200_000, 1)]);
        assert!(out[0] >= 200_000 && out[1] >= 200_000);
    }

    #[test]
    fn without_stock_all_bear_it_evenly() {
        let fee = tree_tx_vbytes(2) * 10 + 240;
        let out = paid(600_000, &[(200_000, 0), (400_000, 0)]);
        assert_eq!(out, [200_000 - fee / 2, 400_000 - fee / 2, 240]);
    }

    #[test]
    fn dust_and_too_small_are_refused() {
        let sat = Amount::from_sat;
        let dust = timeout_outputs(&params(), sat(329), &claims(&[(329, 0)]));
        assert!(matches!(dust, Err(ExpiryError::DustPayout { .. })));
        let small = timeout_outputs(&params(), sat(1000), &claims(&[(500, 0), (500, 0)]));
        assert!(matches!(small, Err(ExpiryError::TooSmallForFee { .. })));
    }

    proptest! {
        #[test]
        fn payouts_and_fee_add_up_to_the_input(
            amounts in proptest::collection::vec((20_000u64..10_000_000, 0u64..5_000_000), 1..200),
        ) {
            let input: u64 = amounts.iter().map(|(c, s)| c + s).sum();
            let out = paid(input, &amounts);
            let fee = deduction(&params(), amounts.len() as u64).to_sat();
            let anchor = *out.last().unwrap();
            prop_assert_eq!(out.iter().sum::<u64>() + fee - anchor, input);
            let shares: u64 = amounts.iter().map(|(_, s)| s).sum();
            if shares >= fee {
                for (paid, (capacity, _)) in out.iter().zip(&amounts) {
                    prop_assert!(paid >= capacity);
                }
            }
        }
    }
}
