//! Rounds and outpoints.

use bitcoin::OutPoint;
use factory_tree::ceremony::message::Round;
use factory_tree::ids::{Attempt, CeremonyId};

use super::WireError;
use super::fields::{copied, fixed, required, txid, txid_bytes};
use crate::v1;

impl From<Round> for v1::Round {
    fn from(round: Round) -> Self {
        Self {
            ceremony: copied(round.ceremony.0),
            attempt: round.attempt.0,
        }
    }
}

impl TryFrom<v1::Round> for Round {
    type Error = WireError;
    fn try_from(round: v1::Round) -> Result<Self, WireError> {
        Ok(Self {
            ceremony: CeremonyId(fixed("round.ceremony", &round.ceremony)?),
            attempt: Attempt(round.attempt),
        })
    }
}

/// The round that every message of a ceremony has.
pub(crate) fn round(round: Option<v1::Round>) -> Result<Round, WireError> {
    required("round", round)?.try_into()
}

impl From<OutPoint> for v1::OutPoint {
    fn from(outpoint: OutPoint) -> Self {
        Self {
            txid: txid_bytes(outpoint.txid),
            vout: outpoint.vout,
        }
    }
}

impl TryFrom<v1::OutPoint> for OutPoint {
    type Error = WireError;
    fn try_from(outpoint: v1::OutPoint) -> Result<Self, WireError> {
        Ok(Self {
            txid: txid("outpoint.txid", &outpoint.txid)?,
            vout: outpoint.vout,
        })
    }
}
