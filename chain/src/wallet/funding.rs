//! The transaction that funds a factory.

use std::collections::HashSet;

use bitcoin::{Amount, FeeRate, OutPoint, Transaction, TxOut};

use super::select::{select, unsigned};
use super::{OnchainWallet, Result, WalletError};

/// The least change of a funding: it is the only place where a child of the coordinator's can pay for it (attacks.md A13).
pub const MIN_FUNDING_CHANGE: Amount = Amount::from_sat(10_000);

/// A funding transaction that nobody has signed. All inputs are segwit, so its txid is final.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FundingDraft {
    /// Unsigned. The outputs asked for, in their order; the change comes last.
    pub transaction: Transaction,
    /// What the inputs spend, in their order: [`OnchainWallet::sign`] wants it.
    pub prevouts: Vec<TxOut>,
    /// Its fee.
    pub fee: Amount,
    /// Where the change is.
    pub change: OutPoint,
}

impl FundingDraft {
    /// The coins it spends.
    pub fn inputs(&self) -> impl Iterator<Item = OutPoint> + '_ {
        self.transaction
            .input
            .iter()
            .map(|input| input.previous_output)
    }
}

impl OnchainWallet {
    /// Drafts a funding from confirmed coins, the required ones among them even if reserved, without those to `avoid`. Its inputs are reserved from now on:
    /// release them if it comes to nothing. Signing is separate, and late.
    ///
    /// # Errors
    /// [`WalletError::NotEnough`], [`WalletError::NotOurCoin`], [`WalletError::Dust`].
    pub async fn build_funding(
        &self,
        outputs: &[TxOut],
        required: &[OutPoint],
        avoid: &HashSet<OutPoint>,
        feerate: FeeRate,
    ) -> Result<FundingDraft> {
        outputs.iter().try_for_each(refuse_dust)?;
        let mut state = self.state.lock().await;
        let required = required
            .iter()
            .map(|outpoint| state.required_coin(*outpoint))
            .collect::<Result<_>>()?;
        let change = TxOut {
            value: MIN_FUNDING_CHANGE,
            script_pubkey: state.change_script().await?,
        };
        let mut outputs: Vec<TxOut> = outputs.iter().cloned().chain([change]).collect();
        let chosen = select(required, state.free_coins(avoid), &outputs, feerate)?;
        if let Some(change) = outputs.last_mut() {
            change.value = change
                .value
                .checked_add(chosen.excess)
                .ok_or(WalletError::Overflow)?;
        }
        let transaction = unsigned(&chosen.coins, &outputs);
        state
            .reserved
            .extend(chosen.coins.iter().map(|coin| coin.outpoint));
        let last =
            u32::try_from(outputs.len().saturating_sub(1)).map_err(|_| WalletError::Overflow)?;
        Ok(FundingDraft {
            change: OutPoint {
                txid: transaction.compute_txid(),
                vout: last,
            },
            prevouts: chosen.coins.into_iter().map(|coin| coin.txout).collect(),
            fee: chosen.fee,
            transaction,
        })
    }
}

pub(super) fn refuse_dust(output: &TxOut) -> Result<()> {
    let limit = output.script_pubkey.minimal_non_dust();
    if output.value < limit {
        Err(WalletError::Dust {
            amount: output.value,
            limit,
        })
    } else {
        Ok(())
    }
}
