//! Networks, policies and the parameters of a factory.

use bitcoin::Network;
use factory_tree::params::{ExpiryPolicy, FactoryParams, Profile};

use super::fields::{at_most, narrow};
use super::{MAX_LEVELS, WireError};
use crate::v1;

/// A network as an enum value of the wire.
#[must_use]
pub const fn network_to_wire(network: Network) -> v1::Network {
    match network {
        Network::Bitcoin => v1::Network::Mainnet,
        Network::Testnet => v1::Network::Testnet3,
        Network::Testnet4 => v1::Network::Testnet4,
        Network::Signet => v1::Network::Signet,
        Network::Regtest => v1::Network::Regtest,
    }
}

/// A network from an enum value of the wire.
///
/// # Errors
/// [`WireError::UnknownEnum`].
pub fn network_from_wire(field: &'static str, value: i32) -> Result<Network, WireError> {
    match v1::Network::try_from(value) {
        Ok(v1::Network::Mainnet) => Ok(Network::Bitcoin),
        Ok(v1::Network::Testnet3) => Ok(Network::Testnet),
        Ok(v1::Network::Testnet4) => Ok(Network::Testnet4),
        Ok(v1::Network::Signet) => Ok(Network::Signet),
        Ok(v1::Network::Regtest) => Ok(Network::Regtest),
        Ok(v1::Network::Unspecified) | Err(_) => Err(WireError::UnknownEnum { field, value }),
    }
}

impl From<ExpiryPolicy> for v1::ExpiryPolicy {
    fn from(policy: ExpiryPolicy) -> Self {
        match policy {
            ExpiryPolicy::ClientRefund => Self::ClientRefund,
            ExpiryPolicy::LspReclaim => Self::LspReclaim,
        }
    }
}

impl TryFrom<v1::ExpiryPolicy> for ExpiryPolicy {
    type Error = WireError;
    fn try_from(policy: v1::ExpiryPolicy) -> Result<Self, WireError> {
        match policy {
            v1::ExpiryPolicy::ClientRefund => Ok(Self::ClientRefund),
            v1::ExpiryPolicy::LspReclaim => Ok(Self::LspReclaim),
            v1::ExpiryPolicy::Unspecified => Err(WireError::UnknownEnum {
                field: "expiry_policy",
                value: policy.into(),
            }),
        }
    }
}

impl From<Profile> for v1::Profile {
    fn from(profile: Profile) -> Self {
        match profile {
            Profile::Lite => Self::Lite,
            Profile::Standard => Self::Standard,
            Profile::Deep => Self::Deep,
        }
    }
}

impl TryFrom<v1::Profile> for Profile {
    type Error = WireError;
    fn try_from(profile: v1::Profile) -> Result<Self, WireError> {
        match profile {
            v1::Profile::Lite => Ok(Self::Lite),
            v1::Profile::Standard => Ok(Self::Standard),
            v1::Profile::Deep => Ok(Self::Deep),
            v1::Profile::Unspecified => Err(WireError::UnknownEnum {
                field: "profile",
                value: profile.into(),
            }),
        }
    }
}

impl From<&FactoryParams> for v1::FactoryParams {
    fn from(params: &FactoryParams) -> Self {
        let arities = params.static_arities.as_ref();
        Self {
            network: network_to_wire(params.network).into(),
            expiry_policy: v1::ExpiryPolicy::from(params.expiry_policy).into(),
            k: params.k.into(),
            layers: params.layers.into(),
            states: params.states.into(),
            step: params.step,
            inner_arity: params.inner_arity.into(),
            kickoff_arity: params.kickoff_arity.into(),
            static_arities: arities.map(|levels| v1::Arities {
                arities: levels.iter().map(|arity| u32::from(*arity)).collect(),
            }),
            chain_depth_max: params.chain_depth_max.into(),
            stock_share_ppm: params.stock_share_ppm,
            p_base: params.p_base,
            p_step: params.p_step,
            q: params.q,
            stock_timeout_delay: params.stock_timeout_delay,
            kickoff_timeout_margin: params.kickoff_timeout_margin,
            timeout_feerate: params.timeout_feerate,
            active: params.active,
            dying: params.dying,
            expiry_margin: params.expiry_margin,
            late_margin: params.late_margin,
            conf_margin: params.conf_margin,
            exit_margin: params.exit_margin,
            route_budget: params.route_budget,
        }
    }
}

/// Only the form: whether the numbers make sense together is for `FactoryParams::validate` to say.
impl TryFrom<v1::FactoryParams> for FactoryParams {
    type Error = WireError;
    fn try_from(params: v1::FactoryParams) -> Result<Self, WireError> {
        let policy = v1::ExpiryPolicy::try_from(params.expiry_policy);
        let policy = policy.map_err(|_| WireError::UnknownEnum {
            field: "params.expiry_policy",
            value: params.expiry_policy,
        })?;
        Ok(Self {
            network: network_from_wire("params.network", params.network)?,
            expiry_policy: policy.try_into()?,
            k: byte("params.k", params.k)?,
            layers: byte("params.layers", params.layers)?,
            states: narrow("params.states", params.states, u16::MAX.into())?,
            step: params.step,
            inner_arity: byte("params.inner_arity", params.inner_arity)?,
            kickoff_arity: byte("params.kickoff_arity", params.kickoff_arity)?,
            static_arities: params.static_arities.map(arities).transpose()?,
            chain_depth_max: byte("params.chain_depth_max", params.chain_depth_max)?,
            stock_share_ppm: params.stock_share_ppm,
            p_base: params.p_base,
            p_step: params.p_step,
            q: params.q,
            stock_timeout_delay: params.stock_timeout_delay,
            kickoff_timeout_margin: params.kickoff_timeout_margin,
            timeout_feerate: params.timeout_feerate,
            active: params.active,
            dying: params.dying,
            expiry_margin: params.expiry_margin,
            late_margin: params.late_margin,
            conf_margin: params.conf_margin,
            exit_margin: params.exit_margin,
            route_budget: params.route_budget,
        })
    }
}

fn byte(field: &'static str, value: u32) -> Result<u8, WireError> {
    narrow(field, value, u8::MAX.into())
}

fn arities(list: v1::Arities) -> Result<Vec<u8>, WireError> {
    let field = "params.static_arities";
    at_most(field, list.arities.len(), MAX_LEVELS, "entries")?;
    let levels = list.arities.into_iter();
    levels.map(|arity| byte(field, arity)).collect()
}
