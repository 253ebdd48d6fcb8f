//! What a node is told at its start.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::Network;
use chain::ChainSource;
use lightning::util::config::{
    ChannelConfigOverrides, ChannelConfigUpdate, ChannelHandshakeConfigUpdate,
    HTLCInterceptionFlags, UserConfig,
};

use crate::coins::FeeCoins;
use crate::event::EventSink;
use crate::leaf::Side;
use crate::leaf_keys::LeafKeys;
use crate::lsps0::LspsService;
use crate::pay::leaf_delta;

/// What the coordinator takes for a forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeePolicy {
    /// Per payment.
    pub base_msat: u32,
    /// Of the amount, in millionths.
    pub proportional_millionths: u32,
}

impl FeePolicy {
    /// The fee for forwarding this much (BOLT 7).
    pub fn fee_for(&self, amount_msat: u64) -> u64 {
        let part = u128::from(amount_msat) * u128::from(self.proportional_millionths) / 1_000_000;
        u64::try_from(part)
            .unwrap_or(u64::MAX)
            .saturating_add(u64::from(self.base_msat))
    }
}

/// What a node is told at its start.
#[derive(Clone)]
pub struct NodeConfig {
    /// The chain.
    pub network: Network,
    /// Which side of its leaves it is: a coordinator forwards, a wallet does not.
    pub side: Side,
    /// The store's file.
    pub store: PathBuf,
    /// Where Lightning peers connect to, if anywhere.
    pub listen: Option<SocketAddr>,
    /// What forwards cost.
    pub fees: FeePolicy,
    /// Blocks the peer waits for its own money after a unilateral close; a wallet asks for a long time (1008), in which it must look at the chain.
    pub to_self_delay: u16,
    /// How often to look for blocks.
    pub poll_interval: Duration,
    /// The channel keys.
    pub keys: Arc<LeafKeys>,
    /// The Bitcoin node.
    pub chain: Arc<dyn ChainSource>,
    /// What exits are paid from.
    pub coins: Arc<dyn FeeCoins>,
    /// Who takes in what happens.
    pub events: Arc<dyn EventSink>,
    /// Whether a wallet claims what came over a channel outside of factories before it has seen that channel's funding.
    pub allow_unfunded: bool,
    /// Who answers questions by LSPS0 (bLIP-50), if anybody.
    pub lsps: Option<Arc<dyn LspsService>>,
}

impl fmt::Debug for NodeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeConfig")
            .field("network", &self.network)
            .field("side", &self.side)
            .field("store", &self.store)
            .field("listen", &self.listen)
            .finish_non_exhaustive()
    }
}

/// Lets a channel's peer keep something of what it sends on.
pub(crate) fn ldk_jit_update() -> ChannelConfigUpdate {
    ChannelConfigUpdate {
        accept_underpaying_htlcs: Some(true),
        ..Default::default()
    }
}

/// What is never left to whatever LDK thinks best.
fn ldk_over(mut config: UserConfig) -> UserConfig {
    config.channel_handshake_config.negotiate_scid_privacy = false;
    // A leaf's channel spends an output that others have signed for: another funding would not be in anybody's exit kit.
    config.reject_inbound_splices = true;
    config
}

impl NodeConfig {
    /// LDK's configuration of this node.
    pub(crate) fn ldk(&self) -> UserConfig {
        let mut config = ldk_over(UserConfig::default());
        config
            .channel_handshake_config
            .negotiate_anchor_zero_fee_commitments = true;
        config.channel_handshake_config.our_to_self_delay = self.to_self_delay;
        config.channel_config.forwarding_fee_base_msat = self.fees.base_msat;
        config.channel_config.forwarding_fee_proportional_millionths =
            self.fees.proportional_millionths;
        if self.side == Side::Lsp {
            config.accept_forwards_to_priv_channels = true;
            // Everything waits for our decision. Between public channels, too: LDK takes whichever channel of a peer has room, perhaps its leaf.
            config.htlc_interception_flags = HTLCInterceptionFlags::ToAllKnownSCIDs as u8
                | HTLCInterceptionFlags::FromPrivateChannels as u8;
        }
        config
    }

    /// LDK's configuration of a leaf channel that we fund.
    pub(crate) fn ldk_leaf(&self, exit_delay: u32) -> UserConfig {
        let mut config = self.ldk();
        config.channel_handshake_config.negotiate_scid_privacy = true;
        config.channel_handshake_config.announce_for_forwarding = false;
        config
            .channel_handshake_config
            .unannounced_channel_max_inbound_htlc_value_in_flight_percentage = 100;
        config.channel_config.cltv_expiry_delta =
            u16::try_from(leaf_delta(exit_delay)).unwrap_or(u16::MAX);
        config
    }

    /// LDK's configuration of a channel just in time that we fund.
    pub(crate) fn ldk_jit(&self, max_to_self_delay: u16) -> UserConfig {
        let mut config = self.ldk();
        config.channel_handshake_config.announce_for_forwarding = false;
        // bLIP-52 wants `option_scid_alias`: nobody pays the client by the number that its funding has in the chain.
        config.channel_handshake_config.negotiate_scid_privacy = true;
        config.channel_handshake_limits.their_to_self_delay = max_to_self_delay;
        // Who wants to see it confirmed would never be paid in time.
        config.channel_handshake_limits.max_minimum_depth = 0;
        config
    }

    /// What a client changes for its leaf channels.
    pub(crate) fn ldk_leaf_overrides(&self) -> ChannelConfigOverrides {
        ChannelConfigOverrides {
            handshake_overrides: Some(ChannelHandshakeConfigUpdate {
                unannounced_channel_max_inbound_htlc_value_in_flight_percentage: Some(100),
                to_self_delay: Some(self.to_self_delay),
                ..Default::default()
            }),
            update_overrides: None,
        }
    }

    /// The same for a channel just in time, whose peer may keep something of what it sends on; how much is for us to look at.
    pub(crate) fn ldk_jit_overrides(&self) -> ChannelConfigOverrides {
        ChannelConfigOverrides {
            update_overrides: Some(ldk_jit_update()),
            ..self.ldk_leaf_overrides()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_channel_is_spliced_whatever_ldk_thinks_best() {
        let theirs = UserConfig {
            reject_inbound_splices: false,
            ..UserConfig::default()
        };
        assert!(ldk_over(theirs).reject_inbound_splices);
    }
}
