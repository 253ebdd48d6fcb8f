//! Inputs, effects, records and events of a client's machine.

use core::fmt;
use std::sync::Arc;

use bitcoin::OutPoint;
use bitcoin::secp256k1::{SecretKey, ecdsa};
use serde::{Deserialize, Serialize};

use super::CoSigner;
use crate::ceremony::message::DeclineReason;
use crate::ceremony::signer::ChannelSigner;
use crate::guard::SignedRecord;
use crate::ids::FactoryId;
use crate::kit::ExitKit;
use crate::sale::Sale;
use crate::sale::message::{FailReason, Finals, Offer, SaleRound, Sign, ToSeller};

/// What a client signs a sale with.
#[derive(Clone)]
pub struct Secrets {
    /// The secret of the factory key in the exit kit.
    pub factory_secret: SecretKey,
    /// Signs the timeout of the new channel.
    pub channel_signer: Arc<dyn ChannelSigner>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(..)")
    }
}

impl Drop for Secrets {
    fn drop(&mut self) {
        self.factory_secret.non_secure_erase();
    }
}

/// What happens to the machine.
#[derive(Debug)]
pub enum CoSignerInput {
    /// The same attempt's offer again.
    Offer(Box<Offer>),
    /// All nonces; to a mate, the buyer's partial signatures as well.
    Sign(Box<Sign>),
    /// All records of the outpoints asked for by [`CoSignerEffect::LoadSigned`].
    Signed(Vec<SignedRecord>),
    /// The finished signatures.
    Finals(Box<Finals>),
    /// How the rehearsal went.
    Rehearsed(Result<(), String>),
    /// The attempt is over.
    Failed {
        /// Which.
        round: SaleRound,
        /// Why.
        reason: FailReason,
    },
}

/// What the adapter is to do, in order.
#[derive(Debug)]
pub enum CoSignerEffect {
    /// Load all records of these outpoints and give them as [`CoSignerInput::Signed`].
    LoadSigned(Vec<OutPoint>),
    /// Make durable, in one database transaction, before the message that follows: the guard's
    /// records, and what they were signed for.
    StoreSigned {
        /// The records.
        records: Vec<SignedRecord>,
        /// In place of what an earlier attempt of this sale left.
        pending: Box<PendingSale>,
    },
    /// Make durable, in place of the factory's kit; the pending sale is over with it.
    StoreKit(Box<ExitKit>),
    /// Read the kit back from disk, verify it, and give [`CoSignerInput::Rehearsed`].
    Rehearse(FactoryId),
    /// Send.
    Send(ToSeller),
    /// For the log and the event stream.
    Emit(CoSignerEvent),
    /// Nothing more is awaited of this attempt (repeated finals are still answered).
    Finished(CoSignerOutcome),
}

/// A sale that this client has signed and does not hold complete. It outlives a restart, and a
/// failed attempt, because the LSP may complete the sale or offer the same terms again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingSale {
    /// The attempt that was signed.
    pub round: SaleRound,
    /// Its terms.
    pub sale: Sale,
    /// The client's signature on the timeout of its new channel.
    pub channel_signature: Option<ecdsa::Signature>,
}

/// How an attempt ended for this client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CoSignerOutcome {
    /// The sale is in its exit kit, and the LSP was told.
    Sold {
        /// Which.
        round: SaleRound,
    },
    /// This client refused.
    Refused {
        /// Why.
        reason: DeclineReason,
    },
    /// The LSP ended it.
    Failed {
        /// Why.
        reason: FailReason,
    },
}

/// What happens, for the log and the event stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum CoSignerEvent {
    /// An offer passed every check.
    OfferChecked {
        /// Which attempt.
        round: SaleRound,
    },
    /// This client refuses.
    Refused {
        /// Which attempt.
        round: SaleRound,
        /// Why.
        reason: DeclineReason,
    },
    /// Partial signatures were sent.
    Signed {
        /// Which attempt.
        round: SaleRound,
    },
    /// The sale is in the exit kit, and was rehearsed from disk.
    KitStored {
        /// Which attempt.
        round: SaleRound,
    },
    /// The attempt failed.
    AttemptFailed {
        /// Which.
        round: SaleRound,
        /// Why.
        reason: FailReason,
    },
}

/// The machine after an input, and what to do about it.
#[derive(Debug)]
#[must_use]
pub struct CoSignerStep {
    /// The machine.
    pub state: CoSigner,
    /// In order.
    pub effects: Vec<CoSignerEffect>,
}
