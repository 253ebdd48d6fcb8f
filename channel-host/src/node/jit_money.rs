//! The money of just-in-time channels: what they cost on the chain, and the fee that comes in.

use bitcoin::{Amount, ScriptBuf, Transaction};
use lightning::events::InboundHTLCLocator;
use lightning::ln::channel_state::ChannelDetails;

use super::Core;
use super::channels::FUNDING_TARGET;
use super::handle::Again;
use super::jit::channel_of;
use super::leaves::Channel;
use crate::coins::FeeCoinsError;
use crate::error::NodeError;
use crate::event::{Msat, NodeEvent};
use crate::jit::{Record, Stage};

impl Core {
    /// Pays for an order's channel; if that fails, there is none.
    pub(super) async fn jit_fund(
        &self,
        record: &Record,
        channel: Channel,
        value: u64,
        script: &ScriptBuf,
    ) -> Result<(), Again> {
        // A client that answers when the payment is gone gets nothing paid for.
        if !self.jit_is_waited_for(record) {
            self.reject(channel, "no payment waits for the channel any more");
            return Ok(());
        }
        let funding = match self.jit_funding(record, value, script).await {
            Ok(funding) => funding,
            Err(error @ NodeError::Store(_)) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, "a just-in-time channel cannot be funded");
                self.reject(channel, "the channel cannot be funded");
                return Ok(());
            }
        };
        self.told(NodeEvent::JitFunded {
            scid: record.scid,
            id: record.id,
            txid: funding.compute_txid(),
            capacity: Amount::from_sat(value),
            fee: self.fee_of(&funding).await,
        })
        .await?;
        let (id, peer) = channel;
        let given = if record.order.client_trusts_lsp {
            self.manager
                .funding_transaction_generated_manual_broadcast(id, peer, funding)
        } else {
            self.manager
                .funding_transaction_generated(id, peer, funding)
        };
        if let Err(error) = given {
            tracing::warn!(?error, "a just-in-time channel cannot be funded");
            self.reject(channel, "the channel cannot be funded");
        }
        Ok(())
    }

    /// The funding transaction, stored; asked again for the same channel it is the same.
    async fn jit_funding(
        &self,
        record: &Record,
        value: u64,
        script: &ScriptBuf,
    ) -> Result<Transaction, NodeError> {
        let pays = |funding: &Transaction| {
            let mut outputs = funding.output.iter();
            outputs.any(|output| output.script_pubkey == *script)
        };
        if let Some(known) = record.funding.clone().filter(pays) {
            return Ok(known);
        }
        let feerate = self.config.chain.fee_rate(FUNDING_TARGET).await?;
        let refused = |error: FeeCoinsError| NodeError::Refused(error.to_string());
        let (coins, amount) = (&self.config.coins, Amount::from_sat(value));
        let funding = coins.pay(script, amount, feerate).await.map_err(refused)?;
        coins.keep(&funding).await.map_err(refused)?;
        self.jit.update(record.scid, |record| {
            record.funding = Some(funding.clone());
        })?;
        Ok(funding)
    }

    /// What it costs, if its coins are still there.
    async fn fee_of(&self, transaction: &Transaction) -> Option<Amount> {
        let mut paid_in = Amount::ZERO;
        for input in &transaction.input {
            let coin = self.config.chain.coin(input.previous_output).await;
            paid_in = paid_in.checked_add(coin.ok()??.txout.value)?;
        }
        let paid_out = transaction.output.iter().map(|output| output.value);
        paid_in.checked_sub(paid_out.sum())
    }

    /// Sends out funding transactions that may go and are in no block yet: each once its channel stands, or once the client has let us keep the
    /// fee, if it trusts us so far. The coins of the others stay reserved.
    pub(super) async fn jit_release(&self) {
        let channels = self.manager.list_channels();
        for record in self.jit.all() {
            if let Err(error) = self.jit_release_one(&record, &channels).await {
                tracing::warn!(%error, "a channel's funding is looked at again at the next block");
            }
        }
    }

    async fn jit_release_one(
        &self,
        record: &Record,
        channels: &[ChannelDetails],
    ) -> Result<(), NodeError> {
        let Some(funding) = &record.funding else {
            return Ok(());
        };
        let coins = &self.config.coins;
        let done = match channel_of(channels, record) {
            Some(channel) => channel.confirmations.unwrap_or(0) > 0,
            // Closed: what was never sent out was given up with it, what was is owed until it is in the chain.
            None if !record.released => return Ok(()),
            None => {
                let in_chain = self.is_spent(funding).await?;
                if in_chain {
                    self.jit
                        .update(record.scid, |record| record.funding = None)?;
                }
                in_chain
            }
        };
        if done {
            coins.let_go(funding).await;
            return Ok(());
        }
        let kept = coins.keep(funding).await;
        kept.map_err(|error| NodeError::Refused(error.to_string()))?;
        if record.may_be_funded() {
            // Stored first: from now on it may be in a block, whatever becomes of its channel.
            if !record.released {
                self.jit
                    .update(record.scid, |record| record.released = true)?;
            }
            self.broadcaster.send(vec![funding.clone()]);
        }
        Ok(())
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

    /// The channel of an order is closed, and its funding was not sent out by us: the coins are free, or as free as the mempool says.
    pub(super) async fn jit_free(&self, record: &Record, withheld: bool) {
        let coins = &self.config.coins;
        match &record.funding {
            Some(funding) if withheld => {
                if let Err(error) = coins.give_up(funding).await {
                    tracing::warn!(%error, "a channel's coins are free later");
                }
            }
            Some(funding) if !record.released => coins.let_go(funding).await,
            _ => {}
        }
    }

    /// A client has claimed what went through us, and let us keep this much of it.
    pub(super) async fn jit_claimed(
        &self,
        from: &[InboundHTLCLocator],
        skimmed_msat: u64,
    ) -> Result<(), Again> {
        for part in from {
            let Some(number) = part.htlc_id else { continue };
            let key = (part.channel_id.0, number);
            let Some(record) = self.jit.by_part(&key) else {
                continue;
            };
            let change = |record: &mut Record| record.claimed(&key, skimmed_msat);
            let Some(record) = self.jit.update(record.scid, change)? else {
                continue;
            };
            self.jit_release().await;
            if record.stage == Stage::Paid {
                self.told(NodeEvent::JitPaid {
                    scid: record.scid,
                    fee: Msat(record.taken()),
                })
                .await?;
                self.jit_step(record.scid).await?;
            }
        }
        Ok(())
    }
}
