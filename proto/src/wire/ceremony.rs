//! The messages of a ceremony, all but the proposal.

use bitcoin::Amount;
use factory_tree::ceremony::message::{
    AbortReason, DeclineReason, FactoryUpdate, Finals, Invitation, Join, Partials,
};
use factory_tree::ids::{FactoryId, LeafId};
use factory_tree::units::Height;

use super::fields::{
    self, amount, capacity, copied, fixed, joined, payout_script, public_key, required, short, text,
};
use super::ids::round;
use super::{MAX_SESSIONS, WireError};
use crate::v1;

impl From<&Invitation> for v1::Invitation {
    fn from(invitation: &Invitation) -> Self {
        Self {
            round: Some(invitation.round.into()),
            params: Some((&invitation.params).into()),
            capacity_sat: invitation.capacity.to_sat(),
            fee_sat: invitation.fee.to_sat(),
            join_seconds: invitation.join_seconds,
            step_seconds: invitation.step_seconds,
            max_clients: invitation.max_clients,
            max_sessions: invitation.max_sessions,
            common_pin: Some(invitation.common_pin.into()),
            confirmations: invitation.confirmations,
        }
    }
}

impl TryFrom<v1::Invitation> for Invitation {
    type Error = WireError;
    fn try_from(wire: v1::Invitation) -> Result<Self, WireError> {
        // So many nonces will be made: more than can be sent is no invitation.
        let sessions = "invitation.max_sessions";
        fields::at_most(
            sessions,
            wire.max_sessions as usize,
            MAX_SESSIONS,
            "sessions",
        )?;
        Ok(Self {
            round: round(wire.round)?,
            params: required("invitation.params", wire.params)?.try_into()?,
            capacity: capacity("invitation.capacity_sat", wire.capacity_sat)?,
            fee: amount("invitation.fee_sat", wire.fee_sat)?,
            join_seconds: wire.join_seconds,
            step_seconds: wire.step_seconds,
            max_clients: wire.max_clients,
            max_sessions: wire.max_sessions,
            common_pin: required("invitation.common_pin", wire.common_pin)?.try_into()?,
            confirmations: wire.confirmations,
        })
    }
}

impl From<&Join> for v1::Join {
    fn from(join: &Join) -> Self {
        Self {
            round: Some(join.round.into()),
            factory_key: copied(join.factory_key.serialize()),
            payout_script: copied(join.payout_script.as_bytes()),
            leaf_id: copied(join.leaf_id.0),
            channel_key: copied(join.channel_key.serialize()),
            capacity_sat: join.capacity.to_sat(),
            nonces: joined(join.nonces.iter().map(|nonce| nonce.to_bytes())),
        }
    }
}

impl TryFrom<v1::Join> for Join {
    type Error = WireError;
    fn try_from(wire: v1::Join) -> Result<Self, WireError> {
        Ok(Self {
            round: round(wire.round)?,
            factory_key: public_key("join.factory_key", &wire.factory_key)?,
            payout_script: payout_script("join.payout_script", 0, &wire.payout_script)?,
            leaf_id: LeafId(fixed("join.leaf_id", &wire.leaf_id)?),
            channel_key: public_key("join.channel_key", &wire.channel_key)?,
            capacity: capacity("join.capacity_sat", wire.capacity_sat)?,
            nonces: fields::public_nonces("join.nonces", &wire.nonces, MAX_SESSIONS)?,
        })
    }
}

impl From<&Partials> for v1::Partials {
    fn from(partials: &Partials) -> Self {
        Self {
            round: Some(partials.round.into()),
            partials: joined(partials.partials.iter().map(|partial| partial.to_bytes())),
            channel_signature: copied(partials.channel_signature.serialize_compact()),
        }
    }
}

impl TryFrom<v1::Partials> for Partials {
    type Error = WireError;
    fn try_from(wire: v1::Partials) -> Result<Self, WireError> {
        let signature = "partials.channel_signature";
        Ok(Self {
            round: round(wire.round)?,
            partials: fields::partial_signatures(
                "partials.partials",
                &wire.partials,
                MAX_SESSIONS,
            )?,
            channel_signature: fields::ecdsa_signature(signature, &wire.channel_signature)?,
        })
    }
}

impl From<&Finals> for v1::Finals {
    fn from(finals: &Finals) -> Self {
        Self {
            round: Some(finals.round.into()),
            signatures: joined(finals.signatures.iter().map(|s| s.serialize())),
            channel_signature: copied(finals.channel_signature.serialize_compact()),
        }
    }
}

impl TryFrom<v1::Finals> for Finals {
    type Error = WireError;
    fn try_from(wire: v1::Finals) -> Result<Self, WireError> {
        let signature = "finals.channel_signature";
        Ok(Self {
            round: round(wire.round)?,
            signatures: fields::schnorr_signatures(
                "finals.signatures",
                &wire.signatures,
                MAX_SESSIONS,
            )?,
            channel_signature: fields::ecdsa_signature(signature, &wire.channel_signature)?,
        })
    }
}

/// The fields of a `Decline` but its round.
pub(super) fn decline_to_wire(reason: &DeclineReason) -> (v1::DeclineKind, String, String) {
    match reason {
        DeclineReason::Terms(text) => (v1::DeclineKind::Terms, String::new(), short(text)),
        DeclineReason::Refused { rule, found } => {
            (v1::DeclineKind::Refused, short(rule), short(found))
        }
        DeclineReason::Unable(text) => (v1::DeclineKind::Unable, String::new(), short(text)),
    }
}

/// The same back.
pub(super) fn decline_from_wire(
    kind: i32,
    rule: String,
    found: String,
) -> Result<DeclineReason, WireError> {
    let found = text("decline.text", found)?;
    match v1::DeclineKind::try_from(kind) {
        Ok(v1::DeclineKind::Terms) => Ok(DeclineReason::Terms(found)),
        Ok(v1::DeclineKind::Refused) => Ok(DeclineReason::Refused {
            rule: text("decline.rule", rule)?,
            found,
        }),
        Ok(v1::DeclineKind::Unable) => Ok(DeclineReason::Unable(found)),
        Ok(v1::DeclineKind::Unspecified) | Err(_) => Err(WireError::UnknownEnum {
            field: "decline.kind",
            value: kind,
        }),
    }
}

/// Kind, text and number of clients left of a `Failed`.
pub(super) fn abort_to_wire(reason: &AbortReason) -> (v1::AbortKind, String, u32) {
    let plain = |kind| (kind, String::new(), 0);
    match reason {
        AbortReason::TooFewClients { left } => (v1::AbortKind::TooFewClients, String::new(), *left),
        AbortReason::Silent => plain(v1::AbortKind::Silent),
        AbortReason::Guilty => plain(v1::AbortKind::Guilty),
        AbortReason::Left => plain(v1::AbortKind::Left),
        AbortReason::Tree(text) => (v1::AbortKind::Tree, short(text), 0),
        AbortReason::NoFunds(text) => (v1::AbortKind::NoFunds, short(text), 0),
        AbortReason::Restarted => plain(v1::AbortKind::Restarted),
        AbortReason::Cancelled => plain(v1::AbortKind::Cancelled),
        AbortReason::TooManyAttempts => plain(v1::AbortKind::TooManyAttempts),
    }
}

impl TryFrom<v1::Failed> for AbortReason {
    type Error = WireError;
    fn try_from(wire: v1::Failed) -> Result<Self, WireError> {
        let text = text("failed.text", wire.text)?;
        match v1::AbortKind::try_from(wire.kind) {
            Ok(v1::AbortKind::TooFewClients) => Ok(Self::TooFewClients { left: wire.left }),
            Ok(v1::AbortKind::Silent) => Ok(Self::Silent),
            Ok(v1::AbortKind::Guilty) => Ok(Self::Guilty),
            Ok(v1::AbortKind::Left) => Ok(Self::Left),
            Ok(v1::AbortKind::Tree) => Ok(Self::Tree(text)),
            Ok(v1::AbortKind::NoFunds) => Ok(Self::NoFunds(text)),
            Ok(v1::AbortKind::Restarted) => Ok(Self::Restarted),
            Ok(v1::AbortKind::Cancelled) => Ok(Self::Cancelled),
            Ok(v1::AbortKind::TooManyAttempts) => Ok(Self::TooManyAttempts),
            Ok(v1::AbortKind::Unspecified) | Err(_) => Err(WireError::UnknownEnum {
                field: "failed.kind",
                value: wire.kind,
            }),
        }
    }
}

impl From<&FactoryUpdate> for v1::FactoryUpdate {
    fn from(update: &FactoryUpdate) -> Self {
        Self {
            factory: copied(update.factory.0),
            funding_txid: fields::txid_bytes(update.funding_txid),
            confirmed_height: update.confirmed_at.map(|height| height.0),
            usable: update.usable,
        }
    }
}

impl TryFrom<v1::FactoryUpdate> for FactoryUpdate {
    type Error = WireError;
    fn try_from(wire: v1::FactoryUpdate) -> Result<Self, WireError> {
        Ok(Self {
            factory: FactoryId(fixed("factory_update.factory", &wire.factory)?),
            funding_txid: fields::txid("factory_update.funding_txid", &wire.funding_txid)?,
            confirmed_at: wire.confirmed_height.map(Height),
            usable: wire.usable,
        })
    }
}

/// The amounts of a list, each checked.
pub(super) fn capacities(field: &'static str, list: &[u64]) -> Result<Vec<Amount>, WireError> {
    list.iter().map(|sat| capacity(field, *sat)).collect()
}
