//! Channels that were bought: opened, funded and let out on the host's word.
//!
//! The host has the order, and its money. Until it says so the funding is nowhere, and the channel may be given up at no cost; from then on it is owed.

use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction};
use lightning::ln::channel_state::ChannelDetails;

use super::Core;
use super::funding::LATER;
use super::handle::Again;
use super::leaves::Channel;
use crate::bought::{BoughtChannel, Record};
use crate::error::NodeError;
use crate::event::NodeEvent;

/// The longest time its funding may take, in blocks, whatever the buyer is content with: a day.
const SLOWEST: u16 = 144;

fn channel_of(channels: &[ChannelDetails], id: u64) -> Option<&ChannelDetails> {
    let mut all = channels.iter();
    all.find(|channel| channel.user_channel_id == u128::from(id))
}

impl Core {
    pub(super) fn open_bought(&self, channel: BoughtChannel) -> Result<(), NodeError> {
        let (id, peer, capacity) = (channel.id, channel.peer, channel.capacity);
        let announce = channel.announce;
        // Stored first: what LDK asks of this number later is not taken for an ordinary channel.
        if id == 0 || !self.bought.add(channel)? {
            return Ok(());
        }
        let created = self.create_ordinary(peer, capacity, announce, id);
        if created.is_err() {
            self.bought.take_withheld(id)?;
        }
        created
    }

    /// Signs for its funding, which stays here.
    pub(super) async fn bought_fund(
        &self,
        record: &Record,
        channel: Channel,
        value: u64,
        script: &ScriptBuf,
    ) -> Result<(), Again> {
        let funding = match self.bought_funding(record, value, script).await {
            Ok(funding) => funding,
            Err(error @ NodeError::Store(_)) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, "a channel that was bought cannot be funded");
                self.reject(channel, "the channel cannot be funded");
                return Ok(());
            }
        };
        let (id, peer) = channel;
        let given = self
            .manager
            .funding_transaction_generated_manual_broadcast(id, peer, funding);
        if let Err(error) = given {
            tracing::warn!(?error, "a channel that was bought cannot be funded");
            self.reject(channel, "the channel cannot be funded");
        }
        Ok(())
    }

    async fn bought_funding(
        &self,
        record: &Record,
        value: u64,
        script: &ScriptBuf,
    ) -> Result<Transaction, NodeError> {
        let id = record.channel.id;
        let target = record.channel.confirm_within.clamp(1, SLOWEST);
        let store = |funding: &Transaction| {
            let stored = self.bought.update(id, |record| {
                record.funding = Some(funding.clone());
            });
            Ok(stored?.is_some())
        };
        let (known, to) = (record.funding.clone(), (script, Amount::from_sat(value)));
        let funding = self.funding(known, to, target, store).await?;
        let fee = self.fee_of(&funding).await.map(Amount::to_sat);
        self.bought.update(id, |record| record.fee_sat = fee)?;
        Ok(funding)
    }

    /// Both sides have signed and stored it. The host decides before anything can go over it.
    pub(super) async fn bought_stands(
        &self,
        record: &Record,
        outpoint: OutPoint,
    ) -> Result<(), Again> {
        let id = record.channel.id;
        self.bought
            .update(id, |record| record.outpoint = Some(outpoint))?;
        self.told(NodeEvent::BoughtStands { id }).await
    }

    /// Its channel is closed: what was not let out is forgotten.
    pub(super) async fn bought_closed(&self, id: u64) -> Result<(), NodeError> {
        if let Some(record) = self.bought.take_withheld(id)?
            && let Some(funding) = &record.funding
        {
            self.give_up_funding(funding).await;
        }
        Ok(())
    }

    /// Lets the funding out; `false` if there is no such channel (any more). Stored first: from now on it may be in a block.
    pub(super) async fn release_bought(&self, id: u64) -> Result<bool, NodeError> {
        let known = self.bought.get(id);
        let Some(record) = known.filter(|record| record.outpoint.is_some()) else {
            return Ok(false);
        };
        // One that was closed this moment is told of next.
        let stands = channel_of(&self.manager.list_channels(), id).is_some();
        if !record.released && !stands {
            return Ok(false);
        }
        let released = self.bought.update(id, |record| record.released = true)?;
        let Some(record) = released else {
            return Ok(false);
        };
        // Without one it has been in the chain for long.
        if let Some(funding) = &record.funding {
            self.config.chain.broadcast(funding).await?;
        }
        Ok(true)
    }

    /// Gives a channel up; `false` if its funding was let out.
    pub(super) async fn drop_bought(&self, id: u64) -> Result<bool, NodeError> {
        if let Some(record) = self.bought.take_withheld(id)? {
            self.close_dropped(&record).await;
        }
        Ok(self.bought.get(id).is_none())
    }

    async fn close_dropped(&self, record: &Record) {
        let channels = self.manager.list_channels();
        if let Some(channel) = channel_of(&channels, record.channel.id) {
            let at = (channel.channel_id, record.channel.peer);
            self.reject(at, "the channel that was bought is not paid for");
            self.peers.process_events();
        }
        if let Some(funding) = &record.funding {
            self.give_up_funding(funding).await;
        }
    }

    /// After a start: what was not let out is begun anew by the host, so that nothing goes over it meanwhile.
    pub(super) async fn bought_resume(&self) -> Result<(), NodeError> {
        for record in self.bought.all() {
            if let Some(record) = self.bought.take_withheld(record.channel.id)? {
                self.close_dropped(&record).await;
            }
        }
        self.bought_push().await;
        Ok(())
    }

    /// Sends out once more what was let out and is in no block yet.
    pub(super) async fn bought_push(&self) {
        let channels = self.manager.list_channels();
        for record in self.bought.all() {
            if let Err(error) = self.bought_push_one(&record, &channels).await {
                tracing::warn!(%error, "{LATER}");
            }
        }
    }

    async fn bought_push_one(
        &self,
        record: &Record,
        channels: &[ChannelDetails],
    ) -> Result<(), NodeError> {
        let Some(funding) = &record.funding else {
            return Ok(());
        };
        let id = record.channel.id;
        let nobody = None::<fn() -> Result<(), NodeError>>;
        let channel = channel_of(channels, id);
        let over = self.push_funding(funding, channel, record.released, nobody);
        if over.await? {
            self.bought.update(id, |record| record.funding = None)?;
        }
        Ok(())
    }
}
