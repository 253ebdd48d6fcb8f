//! GetInfo: who we are and what we offer.

use factory_tree::params::{ExpiryPolicy, Profile};
use proto::session::{MIN_VERSION, VERSION};
use proto::v1;
use proto::wire::network_to_wire;

use super::SOFTWARE;
use crate::context::Context;

/// The default first, then the others.
fn first<T: PartialEq + Copy>(default: T, all: &[T]) -> Vec<T> {
    let others = all.iter().copied().filter(|one| *one != default);
    std::iter::once(default).chain(others).collect()
}

pub fn get(ctx: &Context) -> v1::GetInfoResponse {
    let config = &ctx.config;
    let profiles = first(
        config.factory.profile,
        &[Profile::Lite, Profile::Standard, Profile::Deep],
    );
    let expiry = first(
        config.factory.expiry.into(),
        &[ExpiryPolicy::ClientRefund, ExpiryPolicy::LspReclaim],
    );
    v1::GetInfoResponse {
        node_id: ctx.keys.node_id().to_bytes().to_vec().into(),
        network: network_to_wire(config.network).into(),
        protocol_version: VERSION,
        min_protocol_version: MIN_VERSION,
        software: SOFTWARE.to_owned(),
        tip_height: ctx.height(),
        policy: Some(v1::Policy {
            capacity_min_sat: config.policy.capacity_min_sat,
            capacity_default_sat: config.policy.capacity_default_sat,
            capacity_max_sat: config.policy.capacity_max_sat,
            profiles: profiles
                .into_iter()
                .map(|profile| v1::Profile::from(profile).into())
                .collect(),
            expiry_policies: expiry
                .into_iter()
                .map(|policy| v1::ExpiryPolicy::from(policy).into())
                .collect(),
            confirmations: config.confirmations(),
            join_seconds: config.ceremony.join_seconds,
            step_seconds: config.ceremony.step_seconds,
        }),
    }
}
