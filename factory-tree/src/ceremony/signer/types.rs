//! Inputs, effects, records and events of a client's machine.

use core::fmt::{self, Debug};

use bitcoin::secp256k1::{PublicKey, SecretKey, ecdsa};
use bitcoin::{Amount, OutPoint, Script, ScriptBuf};
use serde::{Deserialize, Serialize};

use super::Signer;
use crate::ceremony::message::{
    AbortReason, DeclineReason, Finals, Invitation, Proposal, Round, ToCoordinator,
};
use crate::factory::FactoryTx;
use crate::guard::SignedRecord;
use crate::ids::{FactoryId, LeafId};
use crate::kit::ExitKit;
use crate::units::Height;

/// The client's channel keys. Deterministic and without IO.
pub trait ChannelSigner: Send + Sync + Debug {
    /// Signs a channel's timeout with this leaf's funding key.
    fn sign_channel_timeout(
        &self,
        leaf: LeafId,
        timeout: &FactoryTx,
        witness_script: &Script,
    ) -> Option<ecdsa::Signature>;
}

/// The keys of one join, derived from the seed and `join_nonce` (protocol.md section 2).
#[derive(Clone)]
pub struct JoinKeys {
    /// 128 random bits, drawn for this attempt.
    pub join_nonce: [u8; 16],
    /// The channel's leaf id.
    pub leaf_id: LeafId,
    /// The factory key's secret.
    pub factory_secret: SecretKey,
    /// Where timeouts pay (P2TR).
    pub payout_script: ScriptBuf,
    /// The channel funding key.
    pub channel_key: PublicKey,
}

impl Debug for JoinKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinKeys({})", self.leaf_id)
    }
}

impl Drop for JoinKeys {
    fn drop(&mut self) {
        self.factory_secret.non_secure_erase();
    }
}

/// What happens to the machine.
#[derive(Debug)]
pub enum SignerInput {
    /// The same attempt's invitation again.
    Invitation(Box<Invitation>),
    /// Step 2.
    ConfirmPing(Round),
    /// Step 3.
    Proposal {
        /// The message.
        proposal: Box<Proposal>,
        /// The own chain's tip.
        tip: Height,
        /// Whether this factory is in the store already.
        known_factory: bool,
    },
    /// All records of the outpoints asked for by [`SignerEffect::LoadSigned`].
    Signed(Vec<SignedRecord>),
    /// Step 5.
    Finals(Box<Finals>),
    /// How the rehearsal went.
    Rehearsed(Result<(), String>),
    /// Step 7: the channel stands, on exactly the leaf of the kit; or why it does not.
    Channel(Result<(), String>),
    /// The attempt is over.
    Failed {
        /// Which.
        round: Round,
        /// Why.
        reason: AbortReason,
        /// Whether another invitation follows.
        again: bool,
    },
}

/// What the adapter is to do, in order.
#[derive(Debug)]
pub enum SignerEffect {
    /// Make durable before going on; refuse (and finish) if any of its keys was ever used.
    StoreJoin(Box<JoinRecord>),
    /// Load all records of these outpoints and give them as [`SignerInput::Signed`].
    LoadSigned(Vec<OutPoint>),
    /// Make durable, in one database transaction, before the message that follows.
    StoreSigned(Vec<SignedRecord>),
    /// Make durable.
    StoreKit(Box<ExitKit>),
    /// Read the kit back from disk, verify it, and give [`SignerInput::Rehearsed`].
    Rehearse(FactoryId),
    /// Let the coordinator open the channel of this kit's leaf, and no other, before the ack that follows; its end is told by
    /// [`SignerInput::Channel`].
    ExpectChannel(FactoryId),
    /// Send.
    Send(ToCoordinator),
    /// For the log and the event stream.
    Emit(SignerEvent),
    /// Nothing more is awaited of this attempt (repeated finals are still answered).
    Finished(SignerOutcome),
}

/// What must be on disk before a join is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRecord {
    /// Which attempt.
    pub round: Round,
    /// What its keys derive from.
    pub join_nonce: [u8; 16],
    /// The channel's leaf id.
    pub leaf_id: LeafId,
    /// Factory key.
    pub factory_key: PublicKey,
    /// Payout script.
    pub payout_script: ScriptBuf,
    /// Channel funding key.
    pub channel_key: PublicKey,
    /// Capacity.
    pub capacity: Amount,
    /// The ceremony's common pin.
    pub common_pin: OutPoint,
}

/// How an attempt ended for this client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignerOutcome {
    /// Its exit kit is stored, its channel stands, and the coordinator was told.
    Opened {
        /// The factory.
        factory: FactoryId,
    },
    /// This client refused.
    Refused {
        /// Why.
        reason: DeclineReason,
    },
    /// The coordinator ended it.
    Failed {
        /// Why.
        reason: AbortReason,
        /// Whether another invitation follows.
        again: bool,
    },
}

/// What happens, for the log and the event stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum SignerEvent {
    /// A join was sent.
    Joined {
        /// Which attempt.
        round: Round,
    },
    /// A proposal passed every check.
    ProposalChecked {
        /// Which attempt.
        round: Round,
        /// The factory.
        factory: FactoryId,
        /// What its timeouts pay at least.
        coverage: Amount,
        /// Sizes of the transactions from the root to the leaf.
        path_vbytes: Vec<u64>,
    },
    /// This client refuses.
    Refused {
        /// Which attempt.
        round: Round,
        /// Why.
        reason: DeclineReason,
    },
    /// Partial signatures were sent.
    Signed {
        /// Which attempt.
        round: Round,
    },
    /// The exit kit is stored and was rehearsed from disk.
    KitStored {
        /// Which attempt.
        round: Round,
        /// The factory.
        factory: FactoryId,
    },
    /// The coordinator was told.
    Acked {
        /// Which attempt.
        round: Round,
        /// The factory.
        factory: FactoryId,
    },
    /// The channel on the leaf stands, and the coordinator was told.
    ChannelOpened {
        /// Which attempt.
        round: Round,
        /// The factory.
        factory: FactoryId,
    },
    /// The attempt failed.
    AttemptFailed {
        /// Which.
        round: Round,
        /// Why.
        reason: AbortReason,
    },
}

/// The machine after an input, and what to do about it.
#[derive(Debug)]
#[must_use]
pub struct SignerStep {
    /// The machine.
    pub state: Signer,
    /// In order.
    pub effects: Vec<SignerEffect>,
}
