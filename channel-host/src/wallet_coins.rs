//! [`FeeCoins`] of an on-chain wallet that others use too.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bitcoin::{Address, Amount, FeeRate, OutPoint, ScriptBuf, Transaction, TxOut};
use chain::wallet::{OnchainWallet, SendAmount, WalletCoin};

use crate::coins::{FeeCoin, FeeCoins, FeeCoinsError};

/// Pays for exits and ordinary channels out of a wallet that its owner uses as well.
#[derive(Debug)]
pub struct WalletCoins {
    wallet: Arc<OnchainWallet>,
    /// What Lightning has spent since the start. To everybody else these coins are gone; Lightning may spend them again in what replaces its
    /// first try, or else a wallet of one coin could never raise a fee. It knows itself which claim has which coin.
    lent: Mutex<HashSet<OutPoint>>,
}

impl WalletCoins {
    /// Over this wallet.
    pub fn new(wallet: Arc<OnchainWallet>) -> Self {
        Self {
            wallet,
            lent: Mutex::default(),
        }
    }

    fn lent(&self) -> MutexGuard<'_, HashSet<OutPoint>> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failed(error: impl std::fmt::Display) -> FeeCoinsError {
    FeeCoinsError(error.to_string())
}

fn inputs(transaction: &Transaction) -> Vec<OutPoint> {
    let inputs = transaction.input.iter();
    inputs.map(|input| input.previous_output).collect()
}

fn fee_coin(coin: WalletCoin) -> FeeCoin {
    FeeCoin {
        outpoint: coin.outpoint,
        txout: coin.txout,
        height: coin.height,
    }
}

#[async_trait]
impl FeeCoins for WalletCoins {
    async fn coins(&self) -> Result<Vec<FeeCoin>, FeeCoinsError> {
        let lent = self.lent().clone();
        let replaceable = self.wallet.replaceable_coins(&lent).await;
        let coins = self.wallet.coins().await.into_iter().chain(replaceable);
        Ok(coins.map(fee_coin).collect())
    }

    async fn change_script(&self) -> Result<ScriptBuf, FeeCoinsError> {
        self.wallet.change_script().await.map_err(failed)
    }

    async fn sign(
        &self,
        transaction: &mut Transaction,
        prevouts: &[TxOut],
    ) -> Result<(), FeeCoinsError> {
        let signed = self.wallet.sign_own(transaction, prevouts).await;
        signed.map_err(failed)
    }

    async fn record(&self, transaction: &Transaction) -> Result<(), FeeCoinsError> {
        self.lent().extend(inputs(transaction));
        let recorded = self.wallet.record_unconfirmed(transaction).await;
        recorded.map_err(failed)
    }

    async fn pay(
        &self,
        script: &ScriptBuf,
        amount: Amount,
        feerate: FeeRate,
    ) -> Result<Transaction, FeeCoinsError> {
        let to = Address::from_script(script, self.wallet.network()).map_err(failed)?;
        let amount = SendAmount::Exactly(amount);
        let paid = self
            .wallet
            .build_payment(&to.into_unchecked(), amount, feerate)
            .await;
        Ok(paid.map_err(failed)?.transaction)
    }

    async fn keep(&self, transaction: &Transaction) -> Result<(), FeeCoinsError> {
        // Reserved as well: what no mempool has is forgotten at the next block, and its coins would be anybody's.
        self.wallet.reserve(inputs(transaction)).await;
        let recorded = self.wallet.record_unconfirmed(transaction).await;
        recorded.map_err(failed)
    }

    async fn let_go(&self, transaction: &Transaction) {
        self.wallet.release(inputs(transaction)).await;
    }

    async fn give_up(&self, transaction: &Transaction) -> Result<(), FeeCoinsError> {
        self.let_go(transaction).await;
        let gone = [transaction.compute_txid()];
        self.wallet.forget_unconfirmed(gone).await.map_err(failed)
    }
}
