//! What the wallet has on Lightning.

use serde::{Deserialize, Serialize};

use super::views::{ChannelState, ChannelView};

/// What the wallet has on Lightning. No satoshi of it is counted in the on-chain wallet too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LightningBalance {
    /// Its side of all channels that stand.
    pub lightning_msat: u64,
    /// What it could send now: of channels whose factory is confirmed and whose peer is there.
    pub lightning_spendable_msat: u64,
    /// What it could receive now.
    pub lightning_receivable_msat: u64,
    /// What is its own of closed channels, and is not in the on-chain wallet yet.
    pub lightning_closing_sat: u64,
}

impl LightningBalance {
    pub(crate) fn of(channels: &[ChannelView]) -> Self {
        let mut sum = Self::default();
        for channel in channels {
            let stands = matches!(channel.state, ChannelState::Open | ChannelState::Leaving);
            if stands {
                sum.lightning_msat = sum.lightning_msat.saturating_add(channel.ours_msat);
            }
            if channel.usable {
                let spend = channel.spendable_msat;
                sum.lightning_spendable_msat = sum.lightning_spendable_msat.saturating_add(spend);
            }
            let receive = channel.can_receive_msat();
            sum.lightning_receivable_msat = sum.lightning_receivable_msat.saturating_add(receive);
            let closing = channel.closing_sat;
            sum.lightning_closing_sat = sum.lightning_closing_sat.saturating_add(closing);
        }
        sum
    }

    /// Whole satoshis of it.
    #[must_use]
    pub const fn whole_sat(&self) -> u64 {
        (self.lightning_msat / 1000).saturating_add(self.lightning_closing_sat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use factory_tree::ids::FactoryId;

    fn channel(state: ChannelState, usable: bool) -> ChannelView {
        ChannelView {
            state,
            usable,
            closing_sat: 4,
            ..ChannelView::sample(FactoryId([1; 32]), 7_500, 92_500)
        }
    }

    #[test]
    fn what_cannot_be_used_now_is_counted_and_not_promised() {
        let open = channel(ChannelState::Open, true);
        let away = channel(ChannelState::Leaving, false);
        let mut closed = channel(ChannelState::Closed, false);
        closed.closing_sat = 20;
        let sum = LightningBalance::of(&[
            ChannelView {
                closing_sat: 0,
                ..open
            },
            ChannelView {
                closing_sat: 0,
                ..away
            },
            closed,
        ]);
        let expected = LightningBalance {
            lightning_msat: 15_000,
            lightning_spendable_msat: 7_500,
            lightning_receivable_msat: 92_500,
            lightning_closing_sat: 20,
        };
        assert_eq!(sum, expected);
        assert_eq!(sum.whole_sat(), 35);
        let left = LightningBalance::of(&[channel(ChannelState::Leaving, true)]);
        assert_eq!(left.lightning_spendable_msat, 7_500);
        assert_eq!(left.lightning_receivable_msat, 0);
    }
}
