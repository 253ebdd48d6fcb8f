//! What the wallet has, and how much of it may be spent.

use std::collections::HashSet;

use bdk_wallet::LocalOutput;
use bdk_wallet::chain::ChainPosition;
use bitcoin::constants::COINBASE_MATURITY;
use bitcoin::{Amount, OutPoint, Transaction, TxOut, Txid};

use super::{OnchainWallet, Result, State, WalletError};
use crate::ChainSource;

/// A confirmed, mature, unspent coin of the wallet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalletCoin {
    /// Where it is.
    pub outpoint: OutPoint,
    /// Amount and script.
    pub txout: TxOut,
    /// Height of its block.
    pub height: u32,
}

/// What the wallet has. No satoshi is counted twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalletBalance {
    /// Confirmed, mature and free.
    pub confirmed: Amount,
    /// Unconfirmed.
    pub pending: Amount,
    /// Block rewards that are confirmed, and too young to be spent.
    pub immature: Amount,
    /// Confirmed and reserved.
    pub locked: Amount,
}

impl WalletBalance {
    /// All of it.
    ///
    /// # Errors
    /// [`WalletError::Overflow`].
    pub fn total(&self) -> Result<Amount> {
        let sum = self
            .confirmed
            .checked_add(self.pending)
            .and_then(|sum| sum.checked_add(self.immature))
            .and_then(|sum| sum.checked_add(self.locked));
        sum.ok_or(WalletError::Overflow)
    }
}

pub(super) fn sum<'a>(amounts: impl IntoIterator<Item = &'a Amount>) -> Result<Amount> {
    let mut amounts = amounts.into_iter();
    amounts
        .try_fold(Amount::ZERO, |sum, amount| sum.checked_add(*amount))
        .ok_or(WalletError::Overflow)
}

impl OnchainWallet {
    /// What the wallet has.
    ///
    /// # Errors
    /// [`WalletError::Overflow`].
    pub async fn balance(&self) -> Result<WalletBalance> {
        let state = self.state.lock().await;
        let mut parts = [vec![], vec![], vec![], vec![]];
        let [confirmed, pending, immature, locked] = &mut parts;
        for output in state.wallet.list_unspent() {
            let part = match state.spendable_since(&output) {
                // In a block, and yet not to be spent. One in a block that is not here any more is pending.
                None if state.height_of(&output).is_some() => &mut *immature,
                None => &mut *pending,
                Some(_) if state.reserved.contains(&output.outpoint) => &mut *locked,
                Some(_) => &mut *confirmed,
            };
            part.push(output.txout.value);
        }
        Ok(WalletBalance {
            confirmed: sum(&*confirmed)?,
            pending: sum(&*pending)?,
            immature: sum(&*immature)?,
            locked: sum(&*locked)?,
        })
    }

    /// Confirmed coins that are neither spent nor reserved.
    pub async fn coins(&self) -> Vec<WalletCoin> {
        self.state.lock().await.free_coins(&HashSet::new())
    }

    /// Of these, the confirmed coins that only an unconfirmed transaction spends: whoever made it may replace it, and spend them again.
    pub async fn replaceable_coins(&self, among: &HashSet<OutPoint>) -> Vec<WalletCoin> {
        self.state.lock().await.replaceable_coins(among)
    }

    /// Remembers a transaction of ours as on its way, before it is broadcast: its inputs are spent, its change is pending.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn record_unconfirmed(&self, transaction: &Transaction) -> Result<()> {
        self.state.lock().await.record(transaction).await
    }

    /// Forgets unconfirmed transactions that will not confirm: what they spent is free again.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn forget_unconfirmed(
        &self,
        txids: impl IntoIterator<Item = Txid> + Send,
    ) -> Result<()> {
        let mut state = self.state.lock().await;
        let now = state.next_seen();
        let evicted: Vec<_> = txids.into_iter().map(|txid| (txid, now)).collect();
        state.wallet.apply_evicted_txs(evicted);
        state.save().await
    }

    /// Forgets what the node has in its mempool no more, so that its coins do not stay tied up. To be called when the follower has reached
    /// the tip. Returns what was forgotten; whoever still wants one of these must broadcast and record it again.
    ///
    /// # Errors
    /// Those of the source and of the store.
    pub async fn forget_missing(&self, source: &dyn ChainSource) -> Result<Vec<Txid>> {
        let mut forgotten = Vec::new();
        loop {
            let unconfirmed = self.state.lock().await.unconfirmed();
            let mut missing = Vec::new();
            for txid in unconfirmed {
                if source.mempool_entry(txid).await?.is_none() {
                    missing.push(txid);
                }
            }
            if missing.is_empty() {
                return Ok(forgotten);
            }
            // What was replaced takes the place of what is forgotten: its coins were the same. So again, until nothing is left.
            self.forget_unconfirmed(missing.clone()).await?;
            forgotten.extend(missing);
        }
    }
}

impl State {
    /// The height of the block that a coin is in.
    fn height_of(&self, output: &LocalOutput) -> Option<u32> {
        let ChainPosition::Confirmed { anchor, .. } = &output.chain_position else {
            return None;
        };
        let height = anchor.block_id.height;
        (height <= self.tip_height).then_some(height)
    }

    /// The height of a coin that the next block may spend.
    pub(super) fn spendable_since(&self, output: &LocalOutput) -> Option<u32> {
        let height = self.height_of(output)?;
        let depth = self.tip_height.checked_sub(height)?.checked_add(1)?;
        let coinbase = self
            .wallet
            .get_tx(output.outpoint.txid)
            .is_some_and(|tx| tx.tx_node.tx.is_coinbase());
        (!coinbase || depth >= COINBASE_MATURITY).then_some(height)
    }

    fn coin(&self, output: LocalOutput) -> Option<WalletCoin> {
        let height = self.spendable_since(&output)?;
        Some(WalletCoin {
            outpoint: output.outpoint,
            txout: output.txout,
            height,
        })
    }

    /// Coins that may be spent, without those reserved or to be avoided.
    pub(super) fn free_coins(&self, avoid: &HashSet<OutPoint>) -> Vec<WalletCoin> {
        let free = self.wallet.list_unspent().filter(|output| {
            !self.reserved.contains(&output.outpoint) && !avoid.contains(&output.outpoint)
        });
        free.filter_map(|output| self.coin(output)).collect()
    }

    /// A coin that may be spent, reserved or not.
    pub(super) fn required_coin(&self, outpoint: OutPoint) -> Result<WalletCoin> {
        let coin = self
            .wallet
            .get_utxo(outpoint)
            .and_then(|output| self.coin(output));
        coin.ok_or(WalletError::NotOurCoin { outpoint })
    }

    /// Confirmed coins of ours that only unconfirmed spenders of `outpoint` spend: whoever replaces these may use them again.
    pub(super) fn coins_of_rivals(
        &self,
        outpoint: OutPoint,
        avoid: &HashSet<OutPoint>,
    ) -> Vec<WalletCoin> {
        let spends = |tx: &Transaction, spent: OutPoint| {
            tx.input.iter().any(|input| input.previous_output == spent)
        };
        let rivals: Vec<_> = self
            .wallet
            .transactions()
            .filter(|tx| !tx.chain_position.is_confirmed() && spends(&tx.tx_node.tx, outpoint))
            .map(|tx| tx.tx_node.tx.clone())
            .collect();
        let outputs = self.wallet.list_output().filter(|output| {
            !avoid.contains(&output.outpoint) && rivals.iter().any(|tx| spends(tx, output.outpoint))
        });
        outputs.filter_map(|output| self.coin(output)).collect()
    }

    fn replaceable_coins(&self, among: &HashSet<OutPoint>) -> Vec<WalletCoin> {
        let unconfirmed = self
            .wallet
            .transactions()
            .filter(|tx| !tx.chain_position.is_confirmed());
        let mut spent = HashSet::new();
        for tx in unconfirmed {
            let inputs = tx.tx_node.tx.input.iter();
            spent.extend(inputs.map(|input| input.previous_output));
        }
        spent.retain(|outpoint| among.contains(outpoint));
        let outputs = self
            .wallet
            .list_output()
            .filter(|output| spent.contains(&output.outpoint));
        outputs.filter_map(|output| self.coin(output)).collect()
    }

    pub(super) async fn record(&mut self, transaction: &Transaction) -> Result<()> {
        let seen = self.next_seen();
        self.wallet
            .apply_unconfirmed_txs([(transaction.clone(), seen)]);
        self.save().await
    }

    fn unconfirmed(&self) -> Vec<Txid> {
        let transactions = self
            .wallet
            .transactions()
            .filter(|tx| !tx.chain_position.is_confirmed());
        transactions.map(|tx| tx.tx_node.txid).collect()
    }

    /// The time, or one more than last time.
    fn next_seen(&mut self) -> u64 {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        self.last_seen = now.max(self.last_seen.saturating_add(1));
        self.last_seen
    }
}
