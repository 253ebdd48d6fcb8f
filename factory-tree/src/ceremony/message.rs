//! The messages of the construction ceremony, as values. `proto` puts them on the wire.

use bitcoin::secp256k1::{PublicKey, ecdsa, schnorr};
use bitcoin::{Amount, OutPoint, ScriptBuf, Txid};
use serde::{Deserialize, Serialize};

use crate::ids::{Attempt, CeremonyId, FactoryId, LeafId};
use crate::musig::{AggregateNonce, PartialSignature, PublicNonce};
use crate::params::FactoryParams;
use crate::path::PathProposal;
use crate::units::Height;

/// Which attempt of which ceremony a message belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Round {
    /// The ceremony.
    pub ceremony: CeremonyId,
    /// The attempt.
    pub attempt: Attempt,
}

/// Step 0: what a client is invited to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// Which attempt.
    pub round: Round,
    /// The factory's parameters.
    pub params: FactoryParams,
    /// The capacity the client would get.
    pub capacity: Amount,
    /// What it costs the client.
    pub fee: Amount,
    /// Seconds to answer.
    pub join_seconds: u32,
    /// Seconds to answer each later step.
    pub step_seconds: u32,
    /// The most clients the factory may have.
    pub max_clients: u32,
    /// The most sessions a client may have: how many nonces to send.
    pub max_sessions: u32,
    /// The funding input that is common to all attempts of this ceremony.
    pub common_pin: OutPoint,
    /// Confirmations after which the factory is used.
    pub confirmations: u32,
}

/// Step 1: a client's fresh keys and nonces of this attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// Which attempt.
    pub round: Round,
    /// Factory key.
    pub factory_key: PublicKey,
    /// Payout script (P2TR).
    pub payout_script: ScriptBuf,
    /// Leaf id of the channel.
    pub leaf_id: LeafId,
    /// Channel funding key.
    pub channel_key: PublicKey,
    /// Capacity, as invited.
    pub capacity: Amount,
    /// One public nonce per possible session, in session order.
    pub nonces: Vec<PublicNonce>,
}

/// Step 3: one client's path and the sums of all nonces of its sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Which attempt.
    pub round: Round,
    /// The path.
    pub path: PathProposal,
    /// Aggregate nonces in the client's session order.
    pub sums: Vec<AggregateNonce>,
}

/// Step 4: a client's part of every signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partials {
    /// Which attempt.
    pub round: Round,
    /// Partial signatures in the client's session order.
    pub partials: Vec<PartialSignature>,
    /// The client's signature on its channel's timeout.
    pub channel_signature: ecdsa::Signature,
}

/// Step 5: the client's path, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finals {
    /// Which attempt.
    pub round: Round,
    /// Signatures in the client's session order.
    pub signatures: Vec<schnorr::Signature>,
    /// The LSP's signature on the channel's timeout.
    pub channel_signature: ecdsa::Signature,
}

/// Why a client does not take part (any more).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeclineReason {
    /// The terms are outside what the user allows.
    Terms(String),
    /// A check of section 4 failed; the rule's name and what was found.
    Refused {
        /// The rule's name.
        rule: String,
        /// What was found.
        found: String,
    },
    /// The client cannot go on (its disk is full, it is shutting down ..).
    Unable(String),
}

/// Why an attempt ended without a factory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AbortReason {
    /// Fewer clients than a factory needs.
    TooFewClients {
        /// How many are left.
        left: u32,
    },
    /// Some did not answer in time: a new attempt goes on without them.
    Silent,
    /// Some sent invalid signatures: a new attempt goes on without them.
    Guilty,
    /// Some declined or left: a new attempt goes on without them.
    Left,
    /// The tree cannot be built from what was asked.
    Tree(String),
    /// The coordinator has not the coins.
    NoFunds(String),
    /// The coordinator was restarted; secret nonces do not survive that.
    Restarted,
    /// The operator cancelled it.
    Cancelled,
    /// As many attempts as a ceremony has.
    TooManyAttempts,
}

/// From the coordinator to one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToClient {
    /// Step 0.
    Invitation(Box<Invitation>),
    /// Step 2.
    ConfirmPing(Round),
    /// Step 3.
    Proposal(Box<Proposal>),
    /// Step 5.
    Finals(Box<Finals>),
    /// The attempt is over. `again`: a new invitation to this client follows.
    Failed {
        /// Which attempt.
        round: Round,
        /// Why.
        reason: AbortReason,
        /// Whether a new attempt includes this client.
        again: bool,
    },
    /// Step 8 and later: what became of the funding.
    Factory(FactoryUpdate),
}

/// From a client to the coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToCoordinator {
    /// Step 1.
    Join(Box<Join>),
    /// Step 2's answer.
    Present(Round),
    /// Step 4.
    Partials(Box<Partials>),
    /// Step 6.
    Ack {
        /// Which attempt.
        round: Round,
        /// The factory whose exit kit is stored.
        factory: FactoryId,
    },
    /// Step 7: the channel on its leaf stands, as it verified it.
    ChannelOpened {
        /// Which attempt.
        round: Round,
        /// The factory.
        factory: FactoryId,
    },
    /// Instead of any of these.
    Decline {
        /// Which attempt.
        round: Round,
        /// Why.
        reason: DeclineReason,
    },
}

impl ToCoordinator {
    /// The attempt it belongs to.
    #[must_use]
    pub fn round(&self) -> Round {
        match self {
            Self::Join(join) => join.round,
            Self::Partials(partials) => partials.round,
            Self::Present(round)
            | Self::Ack { round, .. }
            | Self::ChannelOpened { round, .. }
            | Self::Decline { round, .. } => *round,
        }
    }
}

/// What became of a factory's funding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FactoryUpdate {
    /// The factory.
    pub factory: FactoryId,
    /// Its funding transaction.
    pub funding_txid: Txid,
    /// The height it confirmed at, if it is in the chain.
    pub confirmed_at: Option<Height>,
    /// Whether it is buried as deep as agreed.
    pub usable: bool,
}
