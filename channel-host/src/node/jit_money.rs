//! The money of just-in-time channels: what they cost on the chain, and the fee that comes in.

use bitcoin::{Amount, ScriptBuf, Transaction};
use lightning::events::InboundHTLCLocator;

use super::Core;
use super::channels::FUNDING_TARGET;
use super::handle::Again;
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
            let unconfirmed = channels.iter().any(|channel| {
                channel.user_channel_id == u128::from(record.id)
                    && channel.confirmations.unwrap_or(0) == 0
            });
            let may_go = record.may_be_funded();
            let Some(funding) = record.funding.filter(|_| unconfirmed) else {
                continue;
            };
            if let Err(error) = self.config.coins.keep(&funding).await {
                tracing::warn!(%error, "a channel's funding is not in the wallet's books");
            }
            if may_go {
                self.broadcaster.send(vec![funding]);
            }
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
