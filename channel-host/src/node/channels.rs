//! Ordinary channels on the chain, and a list of all.

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, OutPoint, ScriptBuf};
use lightning::chain::channelmonitor::Balance;
use lightning::ln::channel_state::ChannelDetails;
use lightning::ln::types::ChannelId;

use super::Core;
use crate::coins::FeeCoinsError;
use crate::error::NodeError;
use crate::event::Msat;
use crate::leaf::LeafId;

/// Blocks within which a funding transaction should confirm.
pub(super) const FUNDING_TARGET: u16 = 12;

/// A channel, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelView {
    /// Its BOLT 2 id.
    pub channel: [u8; 32],
    /// The leaf it lies on, if it does.
    pub leaf: Option<LeafId>,
    /// With whom.
    pub peer: PublicKey,
    /// Its funding output.
    pub outpoint: Option<OutPoint>,
    /// What it holds.
    pub capacity: Amount,
    /// What of it is ours, payments under way left out: what we could send, and what we must keep in it.
    pub balance: Msat,
    /// What we could send over it now.
    pub spendable: Msat,
    /// What we could receive over it now.
    pub receivable: Msat,
    /// Whether it can carry payments now: both sides are there, and agree.
    pub usable: bool,
    /// How many blocks deep its funding is, as far as Lightning looks for it; 0: in none.
    pub confirmations: u32,
    /// Whether the world knows it.
    pub announced: bool,
    /// What we must keep in it, in satoshi.
    pub our_reserve: Option<u64>,
    /// What the peer must keep in it, in satoshi.
    pub their_reserve: u64,
    /// Payments pending in it.
    pub pending: usize,
}

impl Core {
    pub(super) fn channels(&self) -> Vec<ChannelView> {
        let channels = self.manager.list_channels().into_iter();
        channels
            .map(|channel| ChannelView {
                channel: channel.channel_id.0,
                leaf: self
                    .book
                    .by_channel(channel.user_channel_id)
                    .map(|leaf| leaf.id),
                peer: channel.counterparty.node_id,
                outpoint: channel
                    .funding_txo
                    .map(|outpoint| outpoint.into_bitcoin_outpoint()),
                capacity: Amount::from_sat(channel.channel_value_satoshis),
                balance: self.balance_of(&channel),
                spendable: Msat(channel.outbound_capacity_msat),
                receivable: Msat(channel.inbound_capacity_msat),
                usable: channel.is_usable,
                confirmations: channel.confirmations.unwrap_or(0),
                announced: channel.is_announced,
                our_reserve: channel.unspendable_punishment_reserve,
                their_reserve: channel.counterparty.unspendable_punishment_reserve,
                pending: channel
                    .pending_inbound_htlcs
                    .len()
                    .saturating_add(channel.pending_outbound_htlcs.len()),
            })
            .collect()
    }

    fn balance_of(&self, channel: &ChannelDetails) -> Msat {
        let spendable = channel.outbound_capacity_msat;
        let reserve = channel.unspendable_punishment_reserve.unwrap_or(0);
        if spendable > 0 || reserve == 0 {
            return Msat(spendable.saturating_add(reserve.saturating_mul(1000)));
        }
        // No more than the reserve: only the monitor says how much, to the satoshi.
        let monitor = self.monitors.get_monitor(channel.channel_id);
        let balances = monitor.map_or(Vec::new(), |monitor| monitor.get_claimable_balances());
        let ours = balances.iter().filter_map(|balance| match balance {
            balance @ Balance::ClaimableOnChannelClose { .. } => {
                Some(balance.claimable_amount_satoshis())
            }
            _ => None,
        });
        Msat(ours.fold(0, u64::saturating_add).saturating_mul(1000))
    }

    pub(super) fn open_channel(
        &self,
        peer: PublicKey,
        capacity: Amount,
        announce: bool,
    ) -> Result<u64, NodeError> {
        // Never 0, which is a channel the peer opened.
        let id = rand::random::<u64>().max(1);
        self.create_ordinary(peer, capacity, announce, id)?;
        Ok(id)
    }

    pub(super) fn create_ordinary(
        &self,
        peer: PublicKey,
        capacity: Amount,
        announce: bool,
        id: u64,
    ) -> Result<(), NodeError> {
        let mut config = self.config.ldk();
        config.channel_handshake_config.announce_for_forwarding = announce;
        let (sat, id) = (capacity.to_sat(), u128::from(id));
        self.manager
            .create_channel(peer, sat, 0, id, None, Some(config))?;
        self.peers.process_events();
        Ok(())
    }

    /// Pays for an ordinary channel; if that fails, there is none.
    pub(super) async fn fund_ordinary(
        &self,
        channel: (ChannelId, PublicKey),
        value: u64,
        script: &ScriptBuf,
    ) {
        if let Err(error) = self.try_fund(channel, value, script).await {
            tracing::warn!(%error, "a channel cannot be funded");
            self.reject(channel, "the channel cannot be funded");
        }
    }

    async fn try_fund(
        &self,
        (channel, peer): (ChannelId, PublicKey),
        value: u64,
        script: &ScriptBuf,
    ) -> Result<(), NodeError> {
        let feerate = self.config.chain.fee_rate(FUNDING_TARGET).await?;
        let refused = |error: FeeCoinsError| NodeError::Refused(error.to_string());
        let coins = &self.config.coins;
        let amount = Amount::from_sat(value);
        let transaction = coins.pay(script, amount, feerate).await.map_err(refused)?;
        let given = transaction.clone();
        let given = self
            .manager
            .funding_transaction_generated(channel, peer, given);
        if let Err(error) = given {
            self.give_up_funding(&transaction).await;
            return Err(error.into());
        }
        Ok(())
    }

    pub(super) fn close_channel(&self, channel: [u8; 32], force: bool) -> Result<(), NodeError> {
        let id = ChannelId(channel);
        let found = self
            .manager
            .list_channels()
            .into_iter()
            .find(|found| found.channel_id == id)
            .ok_or(NodeError::UnknownChannel)?;
        let peer = found.counterparty.node_id;
        if let Some(leaf) = self.book.by_channel(found.user_channel_id)
            && force
        {
            return Err(NodeError::NotOver {
                leaf: leaf.id,
                what: "a leaf goes to the chain by its exit",
            });
        }
        if force {
            let why = "closed by its owner".to_owned();
            self.manager
                .force_close_broadcasting_latest_txn(&id, &peer, why)?;
        } else {
            self.manager.close_channel(&id, &peer)?;
        }
        self.peers.process_events();
        Ok(())
    }
}
