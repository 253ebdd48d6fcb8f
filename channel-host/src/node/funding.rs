//! Funding transactions that are withheld for a while, and owed once they were let out.

use bitcoin::{Amount, ScriptBuf, Transaction};
use lightning::ln::channel_state::ChannelDetails;

use super::Core;
use crate::coins::FeeCoinsError;
use crate::error::NodeError;

/// What is said when a look at one failed.
pub(super) const LATER: &str = "a channel's funding is looked at again at the next block";

fn refused(error: FeeCoinsError) -> NodeError {
    NodeError::Refused(error.to_string())
}

impl Core {
    /// The funding transaction, stored by `store`, which says whether it is still wanted; asked again for the same script it is the same.
    pub(super) async fn funding(
        &self,
        known: Option<Transaction>,
        (script, value): (&ScriptBuf, Amount),
        target: u16,
        store: impl FnOnce(&Transaction) -> Result<bool, NodeError> + Send,
    ) -> Result<Transaction, NodeError> {
        let pays = |funding: &Transaction| {
            let mut outputs = funding.output.iter();
            outputs.any(|output| output.script_pubkey == *script)
        };
        if let Some(known) = known.filter(pays) {
            return Ok(known);
        }
        let feerate = self.config.chain.fee_rate(target).await?;
        let coins = &self.config.coins;
        let funding = coins.pay(script, value, feerate).await.map_err(refused)?;
        coins.keep(&funding).await.map_err(refused)?;
        if !store(&funding)? {
            self.give_up_funding(&funding).await;
            return Err(NodeError::Refused("the channel was given up".into()));
        }
        Ok(funding)
    }

    /// What it costs, if its coins are still there.
    pub(super) async fn fee_of(&self, transaction: &Transaction) -> Option<Amount> {
        let mut paid_in = Amount::ZERO;
        for input in &transaction.input {
            let coin = self.config.chain.coin(input.previous_output).await;
            paid_in = paid_in.checked_add(coin.ok()??.txout.value)?;
        }
        let paid_out = transaction.output.iter().map(|output| output.value);
        paid_in.checked_sub(paid_out.sum())
    }

    /// Keeps the coins of a funding transaction, and sends it out if it was let out, or is now, by `release`; `true`: it is over, its channel is
    /// closed and the chain has it.
    pub(super) async fn push_funding(
        &self,
        funding: &Transaction,
        channel: Option<&ChannelDetails>,
        released: bool,
        release: Option<impl FnOnce() -> Result<(), NodeError> + Send>,
    ) -> Result<bool, NodeError> {
        let coins = &self.config.coins;
        let (done, over) = match channel {
            Some(channel) => (channel.confirmations.unwrap_or(0) > 0, false),
            // Closed: what was never sent out was given up with it, what was is owed until it is in the chain.
            None if !released => return Ok(false),
            None => {
                let in_chain = self.is_spent(funding).await?;
                (in_chain, in_chain)
            }
        };
        if done {
            coins.let_go(funding).await;
            return Ok(over);
        }
        coins.keep(funding).await.map_err(refused)?;
        let goes = released || release.is_some();
        if let Some(release) = release {
            release()?;
        }
        if goes {
            self.broadcaster.send(vec![funding.clone()]);
        }
        Ok(false)
    }

    /// Whether a block has spent what a transaction spends.
    async fn is_spent(&self, transaction: &Transaction) -> Result<bool, NodeError> {
        for input in &transaction.input {
            let coin = self.config.chain.coin(input.previous_output).await?;
            if coin.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// It never goes out: its coins are free.
    pub(super) async fn give_up_funding(&self, funding: &Transaction) {
        if let Err(error) = self.config.coins.give_up(funding).await {
            tracing::warn!(%error, "a channel's coins are free later");
        }
    }
}
