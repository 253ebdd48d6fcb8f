//! What exits are paid from, and LDK's view of it.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bitcoin::{Amount, FeeRate, OutPoint, Psbt, ScriptBuf, Transaction, TxOut};
use chain::ChainSource;
use lightning::util::wallet_utils::{Utxo, WalletSource};

/// A confirmed taproot coin that its key alone spends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeeCoin {
    /// Where it is.
    pub outpoint: OutPoint,
    /// Amount and script.
    pub txout: TxOut,
    /// Height of its block.
    pub height: u32,
}

/// Why the coins cannot help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FeeCoinsError(pub String);

/// An on-chain wallet, as far as the Lightning node needs one.
#[async_trait]
pub trait FeeCoins: Send + Sync + fmt::Debug {
    /// Confirmed, free coins; taproot, key path.
    ///
    /// # Errors
    /// [`FeeCoinsError`].
    async fn coins(&self) -> Result<Vec<FeeCoin>, FeeCoinsError>;

    /// Where change and swept money goes.
    ///
    /// # Errors
    /// [`FeeCoinsError`].
    async fn change_script(&self) -> Result<ScriptBuf, FeeCoinsError>;

    /// Signs the inputs that are its own and leaves the others alone; `prevouts` are what the inputs spend, in their order.
    ///
    /// # Errors
    /// [`FeeCoinsError`].
    async fn sign(
        &self,
        transaction: &mut Transaction,
        prevouts: &[TxOut],
    ) -> Result<(), FeeCoinsError>;

    /// Remembers a transaction that is about to be broadcast: what it spends is free only for what replaces it.
    ///
    /// # Errors
    /// [`FeeCoinsError`].
    async fn record(&self, transaction: &Transaction) -> Result<(), FeeCoinsError>;

    /// A signed transaction that pays this much to a script, from confirmed coins, recorded; only for ordinary channels.
    ///
    /// # Errors
    /// [`FeeCoinsError`].
    async fn pay(
        &self,
        script: &ScriptBuf,
        amount: Amount,
        feerate: FeeRate,
    ) -> Result<Transaction, FeeCoinsError>;

    /// Says that a transaction of [`Self::pay`] is still wanted, though no mempool may have it yet: its coins are nobody else's until
    /// [`Self::let_go`] or [`Self::give_up`]. Said again after a start.
    ///
    /// # Errors
    /// [`FeeCoinsError`].
    async fn keep(&self, _transaction: &Transaction) -> Result<(), FeeCoinsError> {
        Ok(())
    }

    /// Says that whether the coins of a transaction that was kept are free is for the mempool and the chain to say again.
    async fn let_go(&self, _transaction: &Transaction) {}

    /// Says that a transaction of [`Self::pay`] was never sent out and never will be: its coins are free.
    ///
    /// # Errors
    /// [`FeeCoinsError`].
    async fn give_up(&self, _transaction: &Transaction) -> Result<(), FeeCoinsError> {
        Ok(())
    }
}

/// [`FeeCoins`] as LDK's coin selection wants them.
pub(crate) struct CoinSource {
    pub coins: Arc<dyn FeeCoins>,
    pub chain: Arc<dyn ChainSource>,
}

impl CoinSource {
    async fn utxos(&self) -> Result<Vec<Utxo>, FeeCoinsError> {
        let coins = self.coins.coins().await?;
        Ok(coins.into_iter().filter_map(utxo).collect())
    }

    /// LDK wants the whole transaction of a coin: it is in the block of that height.
    async fn transaction(&self, outpoint: OutPoint) -> Result<Transaction, FeeCoinsError> {
        let failed = |error: &dyn fmt::Display| FeeCoinsError(error.to_string());
        let coin = self
            .chain
            .coin(outpoint)
            .await
            .map_err(|error| failed(&error))?
            .ok_or_else(|| failed(&"the coin is spent"))?;
        let hash = self
            .chain
            .block_hash(coin.height)
            .await
            .map_err(|error| failed(&error))?
            .ok_or_else(|| failed(&"the coin's block is gone"))?;
        let block = self
            .chain
            .block(hash)
            .await
            .map_err(|error| failed(&error))?;
        let found = block
            .txdata
            .iter()
            .find(|transaction| transaction.compute_txid() == outpoint.txid);
        found
            .cloned()
            .ok_or_else(|| failed(&"the coin is not in its block"))
    }

    async fn sign(&self, psbt: Psbt) -> Result<Transaction, FeeCoinsError> {
        let prevouts: Option<Vec<TxOut>> = psbt
            .inputs
            .iter()
            .map(|input| input.witness_utxo.clone())
            .collect();
        let prevouts = prevouts.ok_or_else(|| FeeCoinsError("an input is not segwit".into()))?;
        let mut transaction = psbt.unsigned_tx;
        self.coins.sign(&mut transaction, &prevouts).await?;
        self.coins.record(&transaction).await?;
        Ok(transaction)
    }
}

fn utxo(coin: FeeCoin) -> Option<Utxo> {
    let program = coin.txout.script_pubkey.as_bytes().get(2..)?;
    let key = bitcoin::XOnlyPublicKey::from_slice(program).ok()?;
    if !coin.txout.script_pubkey.is_p2tr() {
        return None;
    }
    let key = bitcoin::key::TweakedPublicKey::dangerous_assume_tweaked(key);
    Some(Utxo::new_v1_p2tr(coin.outpoint, coin.txout.value, key))
}

fn told<T>(what: &'static str, result: Result<T, FeeCoinsError>) -> Result<T, ()> {
    result.map_err(|error| tracing::warn!(%error, "{what}"))
}

impl WalletSource for CoinSource {
    async fn list_confirmed_utxos(&self) -> Result<Vec<Utxo>, ()> {
        told("no coins for an exit", self.utxos().await)
    }

    async fn get_prevtx(&self, outpoint: OutPoint) -> Result<Transaction, ()> {
        told("no transaction of a coin", self.transaction(outpoint).await)
    }

    async fn get_change_script(&self) -> Result<ScriptBuf, ()> {
        told("no change script", self.coins.change_script().await)
    }

    async fn sign_psbt(&self, psbt: Psbt) -> Result<Transaction, ()> {
        told("a fee child cannot be signed", self.sign(psbt).await)
    }
}
