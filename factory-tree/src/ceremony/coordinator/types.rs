//! Inputs, effects, records and events of the coordinator's machine.

use core::fmt::Debug;
use std::sync::Arc;

use bitcoin::secp256k1::{PublicKey, SecretKey, ecdsa, schnorr};
use bitcoin::{Amount, OutPoint, Script, Transaction, TxOut};
use serde::{Deserialize, Serialize};

use super::{Ceremony, Phase};
use crate::ceremony::message::{AbortReason, DeclineReason, Join, Round, ToClient, ToCoordinator};
use crate::factory::{FactorySpec, FactoryTx};
use crate::ids::{CeremonyId, ClientId, FactoryId, LeafId};
use crate::musig::AggregateNonce;
use crate::params::FactoryParams;
use crate::tree::Tree;
use crate::units::Height;

/// The coordinator's keys. Deterministic and without IO: what a key derives from is stored before.
pub trait LspSigner: Send + Sync + Debug {
    /// The factory key of one attempt.
    fn factory_secret(&self, round: Round) -> SecretKey;
    /// Signs a channel's timeout with the key given as `lsp_channel_key` for this leaf.
    fn sign_channel_timeout(
        &self,
        leaf: LeafId,
        timeout: &FactoryTx,
        witness_script: &Script,
    ) -> Option<ecdsa::Signature>;
}

/// What the operator offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Parameters of the factory.
    pub params: FactoryParams,
    /// What each client pays, whatever its capacity.
    pub fee: Amount,
    /// What it pays beside, in parts per million of its capacity.
    #[serde(default)]
    pub fee_ppm: u32,
    /// Seconds to join.
    pub join_seconds: u32,
    /// Seconds for each later step.
    pub step_seconds: u32,
    /// Fewer clients than this and the ceremony is given up.
    pub min_clients: u32,
    /// How many attempts a run of the ceremony has.
    pub max_attempts: u32,
    /// The funding input common to all attempts.
    pub common_pin: OutPoint,
    /// Confirmations until the factory is used.
    pub confirmations: u32,
}

impl Terms {
    /// What a client with this capacity pays.
    #[must_use]
    pub fn fee_for(&self, capacity: Amount) -> Amount {
        fee_for(self.fee, self.fee_ppm, capacity)
    }
}

/// A fixed fee and parts per million of a capacity, rounded down.
#[must_use]
pub fn fee_for(fixed: Amount, ppm: u32, capacity: Amount) -> Amount {
    const MILLION: u128 = 1_000_000;
    let share = u128::from(capacity.to_sat()).saturating_mul(ppm.into()) / MILLION;
    let share = u64::try_from(share).unwrap_or(u64::MAX);
    let fee = fixed.to_sat().saturating_add(share);
    Amount::from_sat(fee).min(Amount::MAX_MONEY)
}

/// One invited client, in leaf order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitee {
    /// Its account.
    pub client: ClientId,
    /// The capacity it is offered.
    pub capacity: Amount,
}

/// What happens to the machine.
#[derive(Debug)]
pub enum Input {
    /// An invited client's stream came (back): what it waits for is sent again.
    Connected(ClientId),
    /// A join; the adapter has refused used keys and leaf ids, and stored the randomness of
    /// `lsp_channel_key`.
    Joined {
        /// Who.
        client: ClientId,
        /// Its message.
        join: Box<Join>,
        /// The coordinator's funding key for this channel.
        lsp_channel_key: PublicKey,
    },
    /// Any other message.
    Message {
        /// Who.
        client: ClientId,
        /// Its message.
        message: ToCoordinator,
    },
    /// Our Lightning node says that a client's channel stands: both commitments are exchanged, on exactly its leaf.
    ChannelOpened {
        /// The attempt it is of.
        round: Round,
        /// Whose.
        client: ClientId,
    },
    /// Our Lightning node says that a client's channel does not come about.
    ChannelRefused {
        /// The attempt it is of.
        round: Round,
        /// Whose.
        client: ClientId,
        /// Why.
        why: String,
    },
    /// A stream closed.
    Gone(ClientId),
    /// A [`Effect::Wake`] came due; stale ones are ignored.
    Deadline {
        /// The attempt it was for.
        round: Round,
        /// The phase it was for.
        phase: Phase,
    },
    /// The wallet made the funding transaction.
    FundingReady(Box<Funding>),
    /// It could not.
    FundingFailed(String),
    /// The chain's tip: the next attempt is born there.
    Tip(Height),
    /// The operator cancels.
    Cancel,
}

/// The funding transaction of an attempt, unsigned.
#[derive(Clone, Debug)]
pub struct Funding {
    /// The transaction; its inputs are the ceremony's pins.
    pub tx: Transaction,
    /// Which output is the factory.
    pub vout: u32,
    /// 32 fresh bytes from a cryptographic source, for the coordinator's nonces.
    pub seed: zeroize::Zeroizing<[u8; 32]>,
}

/// What the adapter is to do, in order.
#[derive(Debug)]
pub enum Effect {
    /// Make durable before going on.
    Store(Box<Record>),
    /// Send to a client, if it is connected.
    Send {
        /// To whom.
        client: ClientId,
        /// What.
        message: ToClient,
    },
    /// Send every client its proposal.
    Propose(Box<Propose>),
    /// Answer a message with a typed error.
    Refuse {
        /// To whom.
        client: ClientId,
        /// The message's round.
        round: Round,
        /// Why.
        reason: RefuseReason,
    },
    /// Give [`Input::Deadline`] after so many seconds.
    Wake {
        /// For which attempt.
        round: Round,
        /// For which phase.
        phase: Phase,
        /// When.
        seconds: u32,
    },
    /// Have the wallet make the funding transaction from the ceremony's pins, unsigned.
    BuildFunding {
        /// For which attempt.
        round: Round,
        /// The factory's output.
        output: TxOut,
    },
    /// For the log and the event stream.
    Emit(Event),
    /// Every client has acked: open each one's channel on its leaf. Those that stand or cannot are told by
    /// [`Input::ChannelOpened`] and [`Input::ChannelRefused`]; those of an attempt that fails are given up.
    OpenChannels {
        /// Which attempt.
        round: Round,
        /// The factory.
        tree: Arc<Tree>,
    },
    /// Every client has acked and every channel stands (and that is stored): store `funding_signed`, sign, broadcast.
    Fund {
        /// Which attempt.
        round: Round,
        /// The factory.
        tree: Arc<Tree>,
        /// Its funding transaction, unsigned.
        funding_tx: Arc<Transaction>,
    },
    /// The ceremony is over.
    Finished(Outcome),
}

/// The proposals of an attempt; what all share is there once.
#[derive(Debug)]
pub struct Propose {
    /// Which attempt.
    pub round: Round,
    /// The tree.
    pub tree: Arc<Tree>,
    /// Its funding transaction, unsigned.
    pub funding_tx: Arc<Transaction>,
    /// To whom.
    pub clients: Vec<ProposalFor>,
}

/// One client's part of [`Propose`].
#[derive(Clone, Debug)]
pub struct ProposalFor {
    /// To whom.
    pub client: ClientId,
    /// Its place in leaf order.
    pub position: u32,
    /// The aggregate nonces of its sessions, in its session order.
    pub sums: Vec<AggregateNonce>,
}

/// What must survive a crash.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Record {
    /// An attempt begins.
    Invited {
        /// Which.
        round: Round,
        /// Who is invited.
        invited: Vec<Invitee>,
    },
    /// Its tree is fixed.
    Proposed {
        /// Which attempt.
        round: Round,
        /// The factory.
        factory: FactoryId,
        /// What its tree is made from.
        spec: FactorySpec,
        /// The funding transaction, unsigned.
        funding_tx: Transaction,
        /// Which output is the factory.
        vout: u32,
    },
    /// Every signature is there.
    Completed {
        /// Which attempt.
        round: Round,
        /// The factory.
        factory: FactoryId,
        /// In the order of [`Tree::txs`].
        signatures: Vec<schnorr::Signature>,
        /// The clients' signatures on their channels' timeouts, in leaf order.
        client_channel_signatures: Vec<ecdsa::Signature>,
        /// The coordinator's, in leaf order.
        lsp_channel_signatures: Vec<ecdsa::Signature>,
    },
    /// Every client holds its exit kit, and every channel stands.
    Ready {
        /// Which attempt.
        round: Round,
        /// The factory.
        factory: FactoryId,
    },
    /// A client sent an invalid signature.
    Blamed {
        /// Which attempt.
        round: Round,
        /// Who and how.
        blame: Blame,
    },
    /// An attempt failed; its funding is never signed.
    AttemptFailed {
        /// Which.
        round: Round,
        /// Why.
        reason: AbortReason,
        /// Who was left out because of it.
        left_out: Vec<(ClientId, LeftOut)>,
    },
    /// The ceremony is given up.
    CeremonyFailed {
        /// Which.
        ceremony: CeremonyId,
        /// Why.
        reason: AbortReason,
    },
}

/// Evidence of an invalid signature: whoever has the factory's keys can check it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blame {
    /// Who.
    pub client: ClientId,
    /// Its factory key.
    pub factory_key: PublicKey,
    /// The transaction it should have signed.
    pub txid: bitcoin::Txid,
    /// What it sent, hex.
    pub sent: String,
    /// Its public nonce, hex; empty for a channel's timeout.
    pub nonce: String,
    /// The sum of all nonces, hex; empty for a channel's timeout.
    pub sum: String,
}

/// Why a client is not in the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftOut {
    /// It did not answer in time.
    Silent,
    /// It sent an invalid signature.
    Guilty,
    /// It declined.
    Declined,
    /// It left before it was bound to anything: no blame.
    Absent,
}

/// Why a message is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RefuseReason {
    /// Another ceremony or attempt, or one that is over.
    UnknownRound,
    /// This client is not (any more) part of it.
    NotInvited,
    /// Not now.
    OutOfTurn,
    /// Not what was agreed; says what.
    Malformed(String),
}

/// How a ceremony ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A factory stands; its funding is to be broadcast.
    Complete {
        /// Which.
        factory: FactoryId,
    },
    /// None does; the pins are free.
    Failed {
        /// Why.
        reason: AbortReason,
    },
}

/// What happens in a ceremony, for the log, the metrics, the operator and the tests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Invitations go out.
    AttemptStarted {
        /// Which attempt.
        round: Round,
        /// How many are invited.
        invited: u32,
    },
    /// A client joined.
    Joined {
        /// Which attempt.
        round: Round,
        /// Who.
        client: ClientId,
    },
    /// Proposals go out.
    ProposalSent {
        /// Which attempt.
        round: Round,
        /// The factory.
        factory: FactoryId,
        /// To how many clients.
        clients: u32,
    },
    /// A client's partial signatures came.
    PartialsReceived {
        /// Which attempt.
        round: Round,
        /// Whose.
        client: ClientId,
    },
    /// Final signatures go out.
    FinalsSent {
        /// Which attempt.
        round: Round,
        /// The factory.
        factory: FactoryId,
    },
    /// A client holds its exit kit.
    Acked {
        /// Which attempt.
        round: Round,
        /// Who.
        client: ClientId,
    },
    /// Every client holds its exit kit: channels are opened on the leaves.
    OpeningChannels {
        /// Which attempt.
        round: Round,
        /// The factory.
        factory: FactoryId,
    },
    /// A client's channel stands on both sides.
    ChannelOpened {
        /// Which attempt.
        round: Round,
        /// Whose.
        client: ClientId,
    },
    /// A client's channel did not come about.
    ChannelRefused {
        /// Which attempt.
        round: Round,
        /// Whose.
        client: ClientId,
        /// Why.
        why: String,
    },
    /// A client declined.
    Declined {
        /// Which attempt.
        round: Round,
        /// Who.
        client: ClientId,
        /// Why.
        reason: DeclineReason,
    },
    /// A client is not in the next attempt.
    ClientLeftOut {
        /// Which attempt.
        round: Round,
        /// Who.
        client: ClientId,
        /// Why.
        reason: LeftOut,
        /// In which phase.
        phase: Phase,
    },
    /// A client sent an invalid signature.
    Blamed {
        /// Which attempt.
        round: Round,
        /// Who.
        client: ClientId,
    },
    /// An attempt failed.
    AttemptFailed {
        /// Which.
        round: Round,
        /// Why.
        reason: AbortReason,
    },
    /// The ceremony is given up.
    CeremonyFailed {
        /// Which.
        ceremony: CeremonyId,
        /// Why.
        reason: AbortReason,
    },
    /// Every client holds its exit kit, and every channel stands.
    CeremonyComplete {
        /// Which attempt.
        round: Round,
        /// The factory.
        factory: FactoryId,
    },
}

/// The machine after an input, and what to do about it.
#[derive(Debug)]
#[must_use]
pub struct Step {
    /// The machine.
    pub state: Ceremony,
    /// In order.
    pub effects: Vec<Effect>,
}
