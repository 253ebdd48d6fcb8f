//! The money of just-in-time channels: what they cost on the chain, and the fee that comes in.

use bitcoin::{Amount, ScriptBuf, Transaction};
use lightning::events::InboundHTLCLocator;
use lightning::ln::channel_state::ChannelDetails;

use super::Core;
use super::channels::FUNDING_TARGET;
use super::funding::LATER;
use super::handle::Again;
use super::jit::channel_of;
use super::leaves::Channel;
use crate::error::NodeError;
use crate::event::{Msat, NodeEvent};
use crate::jit::{Record, Stage};

fn has_alias(channel: &ChannelDetails) -> bool {
    let kind = channel.channel_type.as_ref();
    kind.is_some_and(|kind| kind.supports_scid_privacy())
}

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
        // LDK offers a client that refuses other kinds of channels, which bLIP-52 does not allow here.
        if !channel_of(&self.manager.list_channels(), record).is_some_and(has_alias) {
            self.reject(channel, "the client does not take option_scid_alias");
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
            // An ordinary channel's number is small.
            id: u64::try_from(record.id).unwrap_or_default(),
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

    /// The host cannot book what this order's channel costs: it is given up before its funding is given to LDK.
    pub(super) fn refuse_jit_funding(&self, scid: u64) -> Result<(), NodeError> {
        let record = self.jit.get(scid).ok_or(NodeError::UnknownChannel)?;
        let channels = self.manager.list_channels();
        let channel = channel_of(&channels, &record).ok_or(NodeError::UnknownChannel)?;
        let why = "the channel cannot be funded".to_owned();
        self.manager.force_close_broadcasting_latest_txn(
            &channel.channel_id,
            &channel.counterparty.node_id,
            why,
        )?;
        Ok(())
    }

    /// The funding transaction, stored; asked again for the same channel it is the same.
    async fn jit_funding(
        &self,
        record: &Record,
        value: u64,
        script: &ScriptBuf,
    ) -> Result<Transaction, NodeError> {
        let known = record.funding.clone();
        let store = |funding: &Transaction| {
            let stored = self.jit.update(record.scid, |record| {
                record.funding = Some(funding.clone());
            });
            Ok(stored?.is_some())
        };
        let to = (script, Amount::from_sat(value));
        self.funding(known, to, FUNDING_TARGET, store).await
    }

    /// Sends out funding transactions that may go and are in no block yet: each once its channel stands, or once the client has let us keep the
    /// fee, if it trusts us so far. The coins of the others stay reserved.
    pub(super) async fn jit_release(&self) {
        let channels = self.manager.list_channels();
        for record in self.jit.all() {
            if let Err(error) = self.jit_release_one(&record, &channels).await {
                tracing::warn!(%error, "{LATER}");
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
        let channel = channel_of(channels, record);
        // Stored first: from now on it may be in a block, whatever becomes of its channel.
        let release = || {
            self.jit
                .update(record.scid, |record| record.released = true)
                .map(drop)
        };
        let release = (record.may_be_funded() && !record.released).then_some(release);
        if self
            .push_funding(funding, channel, record.released, release)
            .await?
        {
            self.jit
                .update(record.scid, |record| record.funding = None)?;
        }
        Ok(())
    }

    /// The channel of an order is closed, and its funding was not sent out by us: the coins are free, or as free as the mempool says.
    pub(super) async fn jit_free(&self, record: &Record, withheld: bool) {
        match &record.funding {
            Some(funding) if withheld => self.give_up_funding(funding).await,
            Some(funding) if !record.released => self.config.coins.let_go(funding).await,
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
