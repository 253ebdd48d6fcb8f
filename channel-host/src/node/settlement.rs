//! What is ours of a channel that went to the chain, until it is in the wallet.

use std::sync::atomic::Ordering;

use bitcoin::{Amount, Txid};
use lightning::chain::channelmonitor::Balance;
use lightning::ln::types::ChannelId;
use lightning::sign::SpendableOutputDescriptor;
use lightning::util::sweep::OutputSpendStatus;

use super::Core;
use crate::leaf::{LeafId, SpendKind};

/// What became of a leaf's channel that is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// The height all of this is as of.
    pub height: u32,
    /// What spent the channel output, if something did.
    pub spent_by: Option<Txid>,
    /// What is or may become ours, and is still locked: by a delay, by confirmations, or by a payment that was pending.
    pub locked: Vec<Amount>,
    /// Outputs that are ours and free, and not in the wallet by a confirmed transaction yet. One that costs more than it holds stays.
    pub free: Vec<Amount>,
    /// Height of the last block that brought something of it into the wallet.
    pub swept_at: Option<u32>,
}

const fn value(output: &SpendableOutputDescriptor) -> Amount {
    match output {
        SpendableOutputDescriptor::StaticOutput { output, .. } => output.value,
        SpendableOutputDescriptor::DelayedPaymentOutput(output) => output.output.value,
        SpendableOutputDescriptor::StaticPaymentOutput(output) => output.output.value,
    }
}

impl Core {
    /// The monitors' events of all blocks up to this height were handled: what left a monitor is with the sweeper.
    pub(super) fn note_settled(&self) {
        let height = self.book.height();
        self.settled_at.store(height, Ordering::Release);
    }

    /// Nothing while a block is being taken in.
    pub(super) fn settlement(&self, id: LeafId) -> Option<Settlement> {
        let height = self.settled_at.load(Ordering::Acquire);
        let leaf = self.book.get(id)?;
        // LDK takes every spend for one of its own, and counts for some blocks on what is not there.
        let foreign = leaf.spent.is_some_and(|(kind, _, _)| {
            !matches!(kind, SpendKind::Commitment | SpendKind::Cooperative)
        });
        let channel = leaf.ldk_id.map(ChannelId).filter(|_| !foreign);
        self.settled(height, channel, leaf.spent.map(|(_, txid, _)| txid))
    }

    /// The same of a channel that is no leaf; of what spent it nothing is said.
    pub(super) fn channel_settlement(&self, channel: [u8; 32]) -> Option<Settlement> {
        let height = self.settled_at.load(Ordering::Acquire);
        self.settled(height, Some(ChannelId(channel)), None)
    }

    /// `height`: read before anything else.
    fn settled(
        &self,
        height: u32,
        channel: Option<ChannelId>,
        spent_by: Option<Txid>,
    ) -> Option<Settlement> {
        let mut settlement = Settlement {
            height,
            spent_by,
            locked: Vec::new(),
            free: Vec::new(),
            swept_at: None,
        };
        if let Some(channel) = channel {
            settlement.locked = self.locked(channel);
            self.add_tracked(channel, &mut settlement);
        }
        // In between, a block may have moved something from the one to the other.
        let quiet =
            self.book.height() == height && self.settled_at.load(Ordering::Acquire) == height;
        quiet.then_some(settlement)
    }

    fn locked(&self, channel: ChannelId) -> Vec<Amount> {
        let Ok(monitor) = self.monitors.get_monitor(channel) else {
            return Vec::new();
        };
        let balances = monitor.get_claimable_balances().into_iter();
        let amounts = balances.filter_map(|balance| match balance {
            // A payment to us whose preimage we do not know is the peer's.
            Balance::MaybePreimageClaimableHTLC { .. } => None,
            // One of ours comes back unless its receiver claims it.
            Balance::MaybeTimeoutClaimableHTLC {
                amount_satoshis, ..
            } => Some(amount_satoshis),
            other => Some(other.claimable_amount_satoshis()),
        });
        let amounts = amounts.filter(|amount| *amount > 0);
        amounts.map(Amount::from_sat).collect()
    }

    fn add_tracked(&self, channel: ChannelId, settlement: &mut Settlement) {
        for tracked in self.sweeper.tracked_spendable_outputs() {
            if tracked.channel_id != Some(channel) {
                continue;
            }
            match tracked.status {
                OutputSpendStatus::PendingThresholdConfirmations {
                    confirmation_height,
                    ..
                } => {
                    let last = settlement.swept_at.unwrap_or(0);
                    settlement.swept_at = Some(last.max(confirmation_height));
                }
                _ => settlement.free.push(value(&tracked.descriptor)),
            }
        }
    }
}
