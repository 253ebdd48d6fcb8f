//! The messages of a sale, as values. `proto` puts them on the wire.

use bitcoin::secp256k1::{ecdsa, schnorr};
use serde::{Deserialize, Serialize};

use super::Sale;
use crate::ceremony::message::DeclineReason;
use crate::ids::{Attempt, SaleId};
use crate::musig::{PartialSignature, PublicNonce};
use crate::session::NonceUse;
use crate::units::Height;

/// Which attempt of which sale a message belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SaleRound {
    /// The sale.
    pub sale: SaleId,
    /// The attempt: the same terms, with new nonces.
    pub attempt: Attempt,
}

impl SaleRound {
    /// What a nonce of its session number `session` is for. Sale ids and ceremony ids are both
    /// drawn at random, so that they never meet.
    #[must_use]
    pub const fn nonce_use(&self, session: u32) -> NonceUse {
        NonceUse {
            ceremony: crate::ids::CeremonyId(self.sale.0),
            attempt: self.attempt,
            session,
        }
    }
}

/// 1, to all: the terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Which attempt.
    pub round: SaleRound,
    /// The terms, the same in every attempt.
    pub sale: Sale,
    /// The last tip at which they may be signed.
    pub until: Height,
}

/// 2: a client takes part in this attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// Which attempt.
    pub round: SaleRound,
    /// One fresh public nonce per session, in session order.
    pub nonces: Vec<PublicNonce>,
}

/// 3, to the buyer; when its partials are there, to the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sign {
    /// Which attempt.
    pub round: SaleRound,
    /// Every signer's nonces, in key-aggregation order: the LSP's first.
    pub nonces: Vec<Vec<PublicNonce>>,
    /// The buyer's partial signatures; `None` in what is sent to the buyer.
    pub buyer: Option<Vec<PartialSignature>>,
}

/// 4: what a client signs, in one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partials {
    /// Which attempt.
    pub round: SaleRound,
    /// In session order.
    pub partials: Vec<PartialSignature>,
    /// The client's signature on the timeout of its new channel, if it gets one.
    pub channel_signature: Option<ecdsa::Signature>,
}

/// 5, to all: the sale, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finals {
    /// Which attempt.
    pub round: SaleRound,
    /// In session order.
    pub signatures: Vec<schnorr::Signature>,
    /// The LSP's signature on the timeout of the receiver's new channel.
    pub channel_signature: Option<ecdsa::Signature>,
}

/// Why a sale did not come about (in this attempt).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailReason {
    /// Somebody did not answer in time.
    Silent,
    /// Somebody sent an invalid signature.
    Guilty,
    /// Somebody declined.
    Declined,
    /// The LSP was restarted; secret nonces do not survive that.
    Restarted,
    /// The LSP, or the buyer, takes it back.
    Cancelled,
    /// The LSP cannot go on.
    Unable(String),
}

/// From the LSP to a client of the stock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToCoSigner {
    /// 1.
    Offer(Box<Offer>),
    /// 3.
    Sign(Box<Sign>),
    /// 5.
    Finals(Box<Finals>),
    /// The attempt is over.
    Failed {
        /// Which.
        round: SaleRound,
        /// Why.
        reason: FailReason,
    },
}

/// From a client of the stock to the LSP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToSeller {
    /// 2.
    Join(Box<Join>),
    /// 4.
    Partials(Box<Partials>),
    /// 6: the sale is in the exit kit, which is stored and rehearsed.
    Ack(SaleRound),
    /// Instead of any of these.
    Decline {
        /// Which attempt.
        round: SaleRound,
        /// Why.
        reason: DeclineReason,
    },
}

impl ToSeller {
    /// The attempt it belongs to.
    #[must_use]
    pub fn round(&self) -> SaleRound {
        match self {
            Self::Join(join) => join.round,
            Self::Partials(partials) => partials.round,
            Self::Ack(round) | Self::Decline { round, .. } => *round,
        }
    }
}
