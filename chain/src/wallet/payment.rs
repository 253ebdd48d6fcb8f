//! Payments to somebody.

use bitcoin::address::NetworkUnchecked;
use bitcoin::{Address, Amount, FeeRate, Transaction, TxOut, Txid};

use super::funding::refuse_dust;
use super::select::{Selection, fee_at, select, unsigned};
use super::size::signed_vsize;
use super::{OnchainWallet, Result, State, WalletCoin, WalletError};
use crate::{ChainError, ChainSource};

/// How much to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendAmount {
    /// This much; the fee comes on top.
    Exactly(Amount),
    /// Every confirmed, free coin; the fee comes out of it.
    All,
}

/// A payment, signed and not yet broadcast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PaymentDraft {
    /// Signed. The payment is output 0; change, if any, is output 1.
    pub transaction: Transaction,
    /// Its fee.
    pub fee: Amount,
}

impl OnchainWallet {
    /// Builds and signs a payment, and records it as on its way.
    ///
    /// # Errors
    /// [`WalletError::AddressOfOtherNetwork`], [`WalletError::Dust`], [`WalletError::NotEnough`].
    pub async fn build_payment(
        &self,
        to: &Address<NetworkUnchecked>,
        amount: SendAmount,
        feerate: FeeRate,
    ) -> Result<PaymentDraft> {
        let foreign = || WalletError::AddressOfOtherNetwork {
            address: to.clone().assume_checked().to_string(),
            expected: self.network(),
        };
        let script = to
            .clone()
            .require_network(self.network())
            .map_err(|_| foreign())?
            .script_pubkey();
        let output = |value| TxOut {
            value,
            script_pubkey: script.clone(),
        };
        // Under one lock, so that two payments never choose the same coins.
        let mut state = self.state.lock().await;
        let (mut transaction, coins, fee) = match amount {
            SendAmount::Exactly(value) => state.pay(output(value), feerate).await?,
            SendAmount::All => state.pay_all(output, feerate)?,
        };
        let prevouts: Vec<TxOut> = coins.into_iter().map(|coin| coin.txout).collect();
        state.sign(&mut transaction, &prevouts)?;
        state.record(&transaction).await?;
        Ok(PaymentDraft { transaction, fee })
    }

    /// Pays to an address, and broadcasts.
    ///
    /// # Errors
    /// Those of [`Self::build_payment`], and [`ChainError::Rejected`]; then the coins are free again. After any other error of the source
    /// the payment may be out or not: the next [`Self::forget_missing`] finds out.
    pub async fn send(
        &self,
        source: &dyn ChainSource,
        to: &Address<NetworkUnchecked>,
        amount: SendAmount,
        feerate: FeeRate,
    ) -> Result<Txid> {
        let payment = self.build_payment(to, amount, feerate).await?;
        let sent = source.broadcast(&payment.transaction).await;
        if matches!(sent, Err(ChainError::Rejected { .. })) {
            self.forget_unconfirmed([payment.transaction.compute_txid()])
                .await?;
        }
        Ok(sent?)
    }
}

impl State {
    /// With change if it is worth its output; else what would be change goes to the miner.
    async fn pay(
        &mut self,
        output: TxOut,
        feerate: FeeRate,
    ) -> Result<(Transaction, Vec<WalletCoin>, Amount)> {
        refuse_dust(&output)?;
        let free = self.free_coins(&Default::default());
        let change = TxOut {
            value: Amount::ZERO,
            script_pubkey: self.change_script().await?,
        };
        let dust = change.script_pubkey.minimal_non_dust();
        let with_change = select(
            vec![],
            free.clone(),
            &[
                output.clone(),
                TxOut {
                    value: dust,
                    ..change.clone()
                },
            ],
            feerate,
        );
        if let Ok(Selection { coins, fee, excess }) = with_change {
            let value = dust.checked_add(excess).ok_or(WalletError::Overflow)?;
            return Ok((
                unsigned(&coins, &[output, TxOut { value, ..change }]),
                coins,
                fee,
            ));
        }
        let Selection { coins, fee, excess } =
            select(vec![], free, std::slice::from_ref(&output), feerate)?;
        let fee = fee.checked_add(excess).ok_or(WalletError::Overflow)?;
        Ok((unsigned(&coins, &[output]), coins, fee))
    }

    fn pay_all(
        &self,
        output: impl Fn(Amount) -> TxOut,
        feerate: FeeRate,
    ) -> Result<(Transaction, Vec<WalletCoin>, Amount)> {
        let coins = self.free_coins(&Default::default());
        let available = super::coins::sum(coins.iter().map(|coin| &coin.txout.value))?;
        let fee = fee_at(
            feerate,
            signed_vsize(&unsigned(&coins, &[output(available)]), |_| true),
        )?;
        let value = available.checked_sub(fee).ok_or(WalletError::NotEnough {
            needed: fee,
            available,
        })?;
        let output = output(value);
        refuse_dust(&output)?;
        Ok((unsigned(&coins, &[output]), coins, fee))
    }
}
