//! The channels of leaves: opened, checked, closed, given up.

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, OutPoint, ScriptBuf};
use lightning::events::{ClosureReason, Event, InboundChannelFunds};
use lightning::ln::channel_state::ChannelDetails;
use lightning::ln::channelmanager::TrustedChannelFeatures;
use lightning::ln::types::ChannelId;
use lightning::types::features::ChannelTypeFeatures;

use super::Core;
use super::handle::Again;
use crate::error::NodeError;
use crate::event::{Msat, NodeEvent, PaymentHash};
use crate::leaf::{Closing, Leaf, LeafId, LeafRefusal, Record, Side, Stage};
use crate::timeout::has_key;

/// What a leaf's channel holds for us.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeafBalance {
    /// What we could send now.
    pub spendable: Msat,
    /// What we could receive now.
    pub receivable: Msat,
}

/// Keyed by what tells two channels with one peer apart before and after funding.
pub(super) type Channel = (ChannelId, PublicKey);

fn is_leaf_type(kind: &ChannelTypeFeatures) -> bool {
    kind.supports_anchor_zero_fee_commitments() && kind.supports_scid_privacy()
}

impl Core {
    /// After a start: what a crash may have left between our book and LDK's. Returns leaves whose open channel LDK does not know.
    pub(super) async fn settle_leaves(&self) -> Result<Vec<LeafId>, NodeError> {
        let mut lost = Vec::new();
        for leaf in self.book.all() {
            let live = self.channel_of(&leaf).is_some();
            let stage = match (leaf.stage, leaf.side) {
                // Nothing was signed: LDK forgets unfunded channels, and so do we.
                (Stage::Opening, Side::Lsp) if !live => Stage::Expected,
                // The peer may hold a commitment of ours, or not: the id is used up.
                (Stage::Opening, Side::Client) | (Stage::Funded, _) if !live => Stage::Abandoned,
                (Stage::Open, _) if !live => {
                    lost.push(leaf.id);
                    Stage::Open
                }
                (stage, _) => stage,
            };
            let leaf = self.book.update(leaf.id, |leaf| {
                leaf.interrupted |= leaf.stage != stage;
                leaf.stage = stage;
            })?;
            if leaf.interrupted {
                self.tell_interrupted(leaf.id).await?;
            }
        }
        Ok(lost)
    }

    async fn tell_interrupted(&self, leaf: LeafId) -> Result<(), NodeError> {
        let reason = LeafRefusal::BrokenOff("the node was stopped meanwhile".into());
        let event = NodeEvent::LeafRefused { leaf, reason };
        // Not taken in, it is told at the next start.
        if self.config.events.take(event).await.is_ok() {
            self.book.update(leaf, |leaf| leaf.interrupted = false)?;
        }
        Ok(())
    }

    /// Closes in our book what LDK has closed without a word to us: its events have been handled by now.
    pub(super) async fn close_lost(&self, lost: &[LeafId]) -> Result<(), Again> {
        for leaf in lost.iter().filter_map(|id| self.book.get(*id)) {
            if (leaf.stage == Stage::Open && leaf.ldk_id.is_some()) || leaf.close_untold {
                let reason = ClosureReason::OutdatedChannelManager;
                self.leaf_closed(leaf, reason, true).await?;
            }
        }
        Ok(())
    }

    pub(super) fn channel_of(&self, leaf: &Record) -> Option<ChannelDetails> {
        let channels = self.manager.list_channels_with_counterparty(&leaf.peer);
        channels
            .into_iter()
            .find(|channel| channel.user_channel_id == leaf.channel_id())
    }

    fn record(&self, leaf: Leaf, peer: PublicKey, side: Side) -> Result<Record, NodeError> {
        let id = leaf.id;
        let unfit = |what| NodeError::UnfitLeaf { leaf: id, what };
        let output = usize::try_from(leaf.vout)
            .ok()
            .and_then(|vout| leaf.transaction.output.get(vout))
            .ok_or_else(|| unfit("its transaction has no such output"))?;
        if output.script_pubkey != leaf.redeem_script.to_p2wsh() {
            return Err(unfit("its output is not to its witness script"));
        }
        // LDK names outputs with 16 bits.
        if u16::try_from(leaf.vout).is_err() {
            return Err(unfit("its output's index is beyond 65535"));
        }
        if !crate::is_leaf(leaf.channel_id) {
            return Err(unfit("its channel id is one of an ordinary channel"));
        }
        let ours = self.config.keys.funding_pubkey(leaf.channel_id);
        if !has_key(&leaf.redeem_script, &ours) {
            return Err(unfit("our key is not in its witness script"));
        }
        let capacity = output.value;
        Ok(Record::new(leaf, capacity, peer, side))
    }

    pub(super) fn open_leaf(&self, leaf: Leaf, peer: PublicKey) -> Result<(), NodeError> {
        let record = self.record(leaf, peer, Side::Lsp)?;
        let (id, channel_id) = (record.id, record.channel_id());
        let (capacity, exit_delay) = (record.capacity.to_sat(), record.exit_delay);
        self.book.add(record.clone())?;
        if self.channel_of(&record).is_some() {
            return Ok(());
        }
        self.book.update(id, |leaf| leaf.stage = Stage::Opening)?;
        let opened = self.manager.create_channel_to_trusted_peer_0reserve(
            peer,
            capacity,
            0,
            channel_id,
            Some(id.temporary_id()),
            Some(self.config.ldk_leaf(exit_delay)),
        );
        if let Err(error) = opened {
            self.book.update(id, |leaf| leaf.stage = Stage::Expected)?;
            return Err(error.into());
        }
        self.peers.process_events();
        Ok(())
    }

    pub(super) fn expect_leaf(&self, leaf: Leaf, peer: PublicKey) -> Result<(), NodeError> {
        self.book.add(self.record(leaf, peer, Side::Client)?)
    }

    /// A peer wants a channel: the one of an expected leaf, one that it promised us, or on the coordinator an ordinary one.
    pub(super) async fn requested(&self, event: Event) -> Result<(), Again> {
        let Event::OpenChannelRequest {
            temporary_channel_id,
            counterparty_node_id: peer,
            funding_satoshis,
            channel_negotiation_type,
            channel_type,
            is_announced,
            ..
        } = event
        else {
            return Ok(());
        };
        let channel = (temporary_channel_id, peer);
        let found = Amount::from_sat(funding_satoshis);
        let leaf = self
            .book
            .by_temporary_id(temporary_channel_id)
            .filter(|leaf| leaf.peer == peer && leaf.side == Side::Client);
        let Some(leaf) = leaf else {
            return self.requested_ordinary(channel, found, is_announced);
        };
        let refusal = if !leaf.stage.is_unused() || self.channel_of(&leaf).is_some() {
            Some(LeafRefusal::Used)
        } else if found != leaf.capacity {
            let verified = leaf.capacity;
            Some(LeafRefusal::Capacity { verified, found })
        } else if is_announced {
            Some(LeafRefusal::Announced)
        } else if !is_leaf_type(&channel_type)
            || !matches!(channel_negotiation_type, InboundChannelFunds::PushMsat(_))
        {
            Some(LeafRefusal::ChannelType)
        } else {
            None
        };
        if let Some(reason) = refusal {
            self.reject(channel, &reason.to_string());
            return self
                .told(NodeEvent::LeafRefused {
                    leaf: leaf.id,
                    reason,
                })
                .await;
        }
        self.book
            .update(leaf.id, |leaf| leaf.stage = Stage::Opening)?;
        let overrides = match self.jit_may_keep(leaf.channel_id()) {
            true => self.config.ldk_jit_overrides(),
            false => self.config.ldk_leaf_overrides(),
        };
        let accepted = self.manager.accept_inbound_channel_from_trusted_peer(
            &temporary_channel_id,
            &peer,
            leaf.channel_id(),
            TrustedChannelFeatures::ZeroConf,
            Some(overrides),
        );
        match accepted {
            Ok(()) => Ok(()),
            // The peer has gone; a replayed request ends here too.
            Err(error) => self.broke_off(&leaf, format!("{error:?}")).await,
        }
    }

    fn requested_ordinary(
        &self,
        (channel, peer): Channel,
        capacity: Amount,
        announced: bool,
    ) -> Result<(), Again> {
        if self.config.side == Side::Lsp {
            let accepted = self
                .manager
                .accept_inbound_channel(&channel, &peer, 0, None);
            if let Err(error) = accepted {
                tracing::info!(?error, "a channel is not accepted");
            }
        } else if announced || !self.jit_accept((channel, peer), capacity)? {
            self.reject((channel, peer), "no such channel is expected");
        }
        Ok(())
    }

    /// Closes a channel; what there is to say to the peer is said.
    pub(super) fn reject(&self, (channel, peer): Channel, why: &str) {
        let why = why.to_owned();
        let closed = self
            .manager
            .force_close_broadcasting_latest_txn(&channel, &peer, why);
        if let Err(error) = closed {
            tracing::debug!(?error, "nothing to close");
        }
    }

    async fn broke_off(&self, leaf: &Record, why: String) -> Result<(), Again> {
        self.book
            .update(leaf.id, |leaf| leaf.stage = Stage::Expected)?;
        self.told(NodeEvent::LeafRefused {
            leaf: leaf.id,
            reason: LeafRefusal::BrokenOff(why),
        })
        .await
    }

    /// The peer accepted: LDK's script is compared with the leaf's, the id used up, then our signature given.
    pub(super) async fn fund_leaf(
        &self,
        leaf: Record,
        (channel, peer): Channel,
        value: Amount,
        script: &ScriptBuf,
    ) -> Result<(), Again> {
        if leaf.stage != Stage::Opening {
            return Ok(());
        }
        let refusal = if *script != leaf.redeem_script.to_p2wsh() {
            Some(LeafRefusal::Script)
        } else if value != leaf.capacity {
            let verified = leaf.capacity;
            Some(LeafRefusal::Capacity {
                verified,
                found: value,
            })
        } else {
            None
        };
        if let Some(reason) = refusal {
            self.book
                .update(leaf.id, |leaf| leaf.stage = Stage::Abandoned)?;
            self.reject((channel, peer), &reason.to_string());
            return self
                .told(NodeEvent::LeafRefused {
                    leaf: leaf.id,
                    reason,
                })
                .await;
        }
        self.book
            .update(leaf.id, |leaf| leaf.stage = Stage::Funded)?;
        let funding = lightning::chain::transaction::OutPoint {
            txid: leaf.outpoint.txid,
            index: u16::try_from(leaf.outpoint.vout).unwrap_or(u16::MAX),
        };
        let funded = self
            .manager
            .unsafe_manual_funding_transaction_generated(channel, peer, funding);
        if let Err(error) = funded {
            self.book
                .update(leaf.id, |leaf| leaf.stage = Stage::Abandoned)?;
            self.reject((channel, peer), "the channel cannot be funded");
            return self
                .told(NodeEvent::LeafRefused {
                    leaf: leaf.id,
                    reason: LeafRefusal::BrokenOff(format!("{error:?}")),
                })
                .await;
        }
        Ok(())
    }

    /// What a client would have to keep in its channel. None may be asked: it would look empty while it is not, and its keys be handed over.
    fn reserve_asked(&self, leaf: &Record) -> Option<u64> {
        let channel = self.channel_of(leaf)?;
        let asked = channel.unspendable_punishment_reserve.unwrap_or(u64::MAX);
        (leaf.side == Side::Client && asked > 0).then_some(asked)
    }

    /// Both commitments exist: what they spend must be the verified leaf, or nothing of it is ever credited.
    pub(super) async fn leaf_pending(
        &self,
        leaf: Record,
        channel: ChannelId,
        outpoint: OutPoint,
        kind: Option<ChannelTypeFeatures>,
        script: Option<ScriptBuf>,
    ) -> Result<(), Again> {
        let refusal = if outpoint != leaf.outpoint {
            let verified = leaf.outpoint;
            Some(LeafRefusal::Outpoint {
                verified,
                found: outpoint,
            })
        } else if script.as_ref() != Some(&leaf.redeem_script) {
            Some(LeafRefusal::Script)
        } else if !kind.as_ref().is_some_and(is_leaf_type) {
            Some(LeafRefusal::ChannelType)
        } else {
            let asked = self.reserve_asked(&leaf);
            asked.map(|asked| LeafRefusal::Reserve { asked })
        };
        let stage = match (&refusal, leaf.stage) {
            (Some(_), _) => Stage::Abandoned,
            (None, Stage::Expected | Stage::Opening) => Stage::Funded,
            (None, stage) => stage,
        };
        self.book.update(leaf.id, |leaf| {
            leaf.ldk_id = Some(channel.0);
            leaf.stage = stage;
        })?;
        match refusal {
            None => Ok(()),
            Some(reason) => {
                self.reject((channel, leaf.peer), &reason.to_string());
                self.told(NodeEvent::LeafRefused {
                    leaf: leaf.id,
                    reason,
                })
                .await
            }
        }
    }

    pub(super) async fn leaf_ready(&self, leaf: Record) -> Result<(), Again> {
        if !matches!(leaf.stage, Stage::Funded | Stage::Open) {
            return Ok(());
        }
        self.book.update(leaf.id, |leaf| leaf.stage = Stage::Open)?;
        self.told(NodeEvent::LeafOpened { leaf: leaf.id }).await
    }

    pub(super) async fn leaf_closed(
        &self,
        leaf: Record,
        reason: ClosureReason,
        funded: bool,
    ) -> Result<(), Again> {
        match leaf.stage {
            Stage::Abandoned | Stage::Expected => return Ok(()),
            Stage::Closed if !leaf.close_untold => return Ok(()),
            Stage::Opening if !funded => return self.broke_off(&leaf, reason.to_string()).await,
            Stage::Funded | Stage::Opening if leaf.ldk_id.is_none() => {
                // Signed for, but not by both: the id is used up all the same.
                self.book
                    .update(leaf.id, |leaf| leaf.stage = Stage::Abandoned)?;
                return self
                    .told(NodeEvent::LeafRefused {
                        leaf: leaf.id,
                        reason: LeafRefusal::BrokenOff(reason.to_string()),
                    })
                    .await;
            }
            Stage::Opening | Stage::Funded | Stage::Open | Stage::Closed => {}
        }
        let closed = match reason {
            ClosureReason::LegacyCooperativeClosure
            | ClosureReason::CounterpartyInitiatedCooperativeClosure
            | ClosureReason::LocallyInitiatedCooperativeClosure => Closing::Cooperative,
            ClosureReason::CounterpartyForceClosed { .. }
            | ClosureReason::ProcessingError { .. } => Closing::ByPeer,
            ClosureReason::HTLCsTimedOut {
                payment_hash: Some(hash),
            } if self.part_to(leaf.id, PaymentHash(hash.0)).is_some() => Closing::PartExpired,
            _ => Closing::Forced,
        };
        let leaf = self.book.update(leaf.id, |leaf| {
            leaf.stage = Stage::Closed;
            leaf.closed = Some(closed);
            leaf.close_untold = true;
        })?;
        self.told(NodeEvent::LeafClosed {
            leaf: leaf.id,
            reason: reason.to_string(),
            cooperative: closed == Closing::Cooperative,
        })
        .await?;
        let leaf = self
            .book
            .update(leaf.id, |leaf| leaf.close_untold = false)?;
        Ok(self.look_at_closed(&leaf).await?)
    }

    /// Gives a leaf up with its attempt or its factory: closed on both sides, nothing broadcast.
    pub(super) fn abandon_leaf(&self, id: LeafId) -> Result<(), NodeError> {
        let leaf = self.book.update(id, |leaf| leaf.stage = Stage::Abandoned)?;
        if let Some(channel) = self.channel_of(&leaf) {
            self.reject((channel.channel_id, leaf.peer), super::log::GIVEN_UP);
            self.peers.process_events();
        }
        self.save_all()?;
        Ok(())
    }

    pub(super) fn balance(&self, id: LeafId) -> Result<LeafBalance, NodeError> {
        let leaf = self
            .book
            .get(id)
            .ok_or(NodeError::UnknownLeaf { leaf: id })?;
        let channel = self.channel_of(&leaf);
        Ok(
            channel.map_or_else(LeafBalance::default, |channel| LeafBalance {
                spendable: Msat(channel.outbound_capacity_msat),
                receivable: Msat(channel.inbound_capacity_msat),
            }),
        )
    }
}
