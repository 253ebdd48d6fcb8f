//! A client's side of the ceremony: one machine per attempt.
//!
//! Secret nonces live in the machine and nowhere else. The machine asks its adapter to make the
//! join, the guard's records and the exit kit durable before the message that follows them.

mod types;

use std::sync::Arc;

use bitcoin::OutPoint;
use bitcoin::secp256k1::{Secp256k1, SecretKey, ecdsa};

use super::message::{
    DeclineReason, Finals, Invitation, Join, Partials, Proposal, Round, ToCoordinator,
};
use crate::factory::FactoryTx;
use crate::guard::{Decision, Request, SignedRecord, decide};
use crate::ids::FactoryId;
use crate::kit::{ChannelSignatures, ExitKit, JoinData};
use crate::musig::{AggregateNonce, PartialSignature, PublicNonce};
use crate::output::channel_witness_script;
use crate::path::Path;
use crate::session::{NonceUse, SecretNonce};
use crate::units::Height;
use crate::verify::{self, Agreed, Limits, Own, Refusal, Rule};
pub use types::*;

/// Where a client stands in an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SignerPhase {
    /// Joined; waits for the proposal.
    Joined,
    /// The proposal passed every check; waits for the guard's records.
    Checked,
    /// Partial signatures are out; waits for the final ones.
    Signed,
    /// The exit kit is stored; it is rehearsed from disk.
    Kept,
    /// The coordinator has been told; waits for the channel on the leaf.
    Acked,
    /// The channel stands, and the coordinator has been told.
    Opened,
    /// Over.
    Finished,
}

/// The transition table: from a phase, on an input, to one of these phases. Inputs that are not
/// listed leave the phase as it is.
pub const TRANSITIONS: &[(SignerPhase, &str, &[SignerPhase])] = &[
    (
        SignerPhase::Joined,
        "proposal",
        &[SignerPhase::Checked, SignerPhase::Finished],
    ),
    (SignerPhase::Joined, "failed", &[SignerPhase::Finished]),
    (
        SignerPhase::Checked,
        "signed records",
        &[SignerPhase::Signed, SignerPhase::Finished],
    ),
    (SignerPhase::Checked, "failed", &[SignerPhase::Finished]),
    (
        SignerPhase::Signed,
        "finals",
        &[SignerPhase::Kept, SignerPhase::Finished],
    ),
    (SignerPhase::Signed, "failed", &[SignerPhase::Finished]),
    (
        SignerPhase::Kept,
        "rehearsed",
        &[SignerPhase::Acked, SignerPhase::Finished],
    ),
    (SignerPhase::Kept, "failed", &[SignerPhase::Finished]),
    (
        SignerPhase::Acked,
        "channel",
        &[SignerPhase::Opened, SignerPhase::Finished],
    ),
    (SignerPhase::Acked, "failed", &[SignerPhase::Finished]),
    (SignerPhase::Opened, "failed", &[SignerPhase::Finished]),
];

/// One attempt of one client.
#[derive(Debug)]
pub struct Signer {
    invitation: Invitation,
    limits: Limits,
    keys: JoinKeys,
    own: Own,
    channel_signer: Arc<dyn ChannelSigner>,
    join: Join,
    state: State,
}

#[derive(Debug)]
enum State {
    Joined(Vec<SecretNonce>),
    Checked(Box<Checked>, Vec<SecretNonce>),
    Signed(Box<Checked>, Partials),
    Kept(FactoryId),
    Acked(FactoryId),
    Opened(FactoryId),
    Finished,
}

/// A proposal that passed every check.
#[derive(Debug)]
struct Checked {
    path: Path,
    proposal: Proposal,
}

impl Signer {
    /// Answers an invitation: a join with fresh nonces, or a refusal.
    ///
    /// `seed` gives 32 fresh bytes from a cryptographic source at each call.
    pub fn invited(
        invitation: Invitation,
        limits: Limits,
        keys: JoinKeys,
        earlier_pin: Option<OutPoint>,
        seed: &mut dyn FnMut() -> [u8; 32],
        channel_signer: Arc<dyn ChannelSigner>,
    ) -> SignerStep {
        let secp = Secp256k1::signing_only();
        let own = Own {
            factory_key: keys.factory_secret.public_key(&secp),
            payout_script: keys.payout_script.clone(),
            channel_key: keys.channel_key,
        };
        let refusal = verify::check_invitation(&invitation, &limits)
            .err()
            .or_else(|| other_pin(&invitation, earlier_pin));
        let sessions = if refusal.is_some() {
            0
        } else {
            invitation.max_sessions
        };
        let (nonces, publics) = nonces(&invitation, sessions, &keys.factory_secret, seed);
        let join = join_message(&invitation, &keys, &own, publics);
        let mut signer = Self {
            invitation,
            limits,
            keys,
            own,
            channel_signer,
            join,
            state: State::Joined(nonces),
        };
        let mut effects = Vec::new();
        match refusal {
            Some(reason) => signer.decline(reason, &mut effects),
            None => {
                effects.push(SignerEffect::StoreJoin(Box::new(signer.join_record())));
                let join = ToCoordinator::Join(Box::new(signer.join.clone()));
                effects.push(SignerEffect::Send(join));
                effects.push(SignerEffect::Emit(SignerEvent::Joined {
                    round: signer.round(),
                }));
            }
        }
        SignerStep {
            state: signer,
            effects,
        }
    }

    /// One step. Costly at a proposal (key aggregation) and when signing.
    pub fn step(mut self, input: SignerInput) -> SignerStep {
        let mut effects = Vec::new();
        self.dispatch(input, &mut effects);
        SignerStep {
            state: self,
            effects,
        }
    }

    /// Which attempt.
    #[must_use]
    pub const fn round(&self) -> Round {
        self.invitation.round
    }

    /// Where it stands.
    #[must_use]
    pub const fn phase(&self) -> SignerPhase {
        match self.state {
            State::Joined(_) => SignerPhase::Joined,
            State::Checked(..) => SignerPhase::Checked,
            State::Signed(..) => SignerPhase::Signed,
            State::Kept(_) => SignerPhase::Kept,
            State::Acked(_) => SignerPhase::Acked,
            State::Opened(_) => SignerPhase::Opened,
            State::Finished => SignerPhase::Finished,
        }
    }

    fn dispatch(&mut self, input: SignerInput, effects: &mut Vec<SignerEffect>) {
        match input {
            SignerInput::Invitation(invitation) => self.invited_again(&invitation, effects),
            SignerInput::ConfirmPing(round) => {
                if round == self.round() && !matches!(self.state, State::Finished) {
                    effects.push(SignerEffect::Send(ToCoordinator::Present(round)));
                }
            }
            SignerInput::Proposal {
                proposal,
                tip,
                known_factory,
            } => {
                self.proposed(*proposal, tip, known_factory, effects);
            }
            SignerInput::Signed(records) => self.sign(&records, effects),
            SignerInput::Finals(finals) => self.finals(*finals, effects),
            SignerInput::Rehearsed(result) => self.rehearsed(result, effects),
            SignerInput::Channel(result) => self.channel(result, effects),
            SignerInput::Failed {
                round,
                reason,
                again,
            } => {
                if round == self.round() && !matches!(self.state, State::Finished) {
                    self.state = State::Finished;
                    effects.push(SignerEffect::Emit(SignerEvent::AttemptFailed {
                        round,
                        reason: reason.clone(),
                    }));
                    let outcome = SignerOutcome::Failed { reason, again };
                    effects.push(SignerEffect::Finished(outcome));
                }
            }
        }
    }

    /// The coordinator lost our join with the stream: the same bytes again are harmless, as no
    /// nonce has been used yet.
    fn invited_again(&self, invitation: &Invitation, effects: &mut Vec<SignerEffect>) {
        if *invitation == self.invitation && matches!(self.state, State::Joined(_)) {
            let join = ToCoordinator::Join(Box::new(self.join.clone()));
            effects.push(SignerEffect::Send(join));
        }
    }

    fn proposed(
        &mut self,
        proposal: Proposal,
        tip: Height,
        known_factory: bool,
        effects: &mut Vec<SignerEffect>,
    ) {
        if proposal.round != self.round() {
            return;
        }
        let nonces = match std::mem::replace(&mut self.state, State::Finished) {
            State::Joined(nonces) => nonces,
            State::Signed(checked, partials) if checked.proposal == proposal => {
                let again = ToCoordinator::Partials(Box::new(partials.clone()));
                effects.push(SignerEffect::Send(again));
                self.state = State::Signed(checked, partials);
                return;
            }
            // Another proposal for the same nonces is never looked at.
            other => {
                self.state = other;
                return;
            }
        };
        let agreed = Agreed {
            invitation: &self.invitation,
            own: &self.own,
            limits: &self.limits,
            tip,
            known_factory,
        };
        let checked = verify::check_proposal(&proposal.path, agreed).and_then(|path| {
            let (sums, sessions) = (proposal.sums.len(), path.sessions.len());
            if sums == sessions && sessions <= nonces.len() {
                return Ok(path);
            }
            let found = format!("{sums} aggregate nonces for {sessions} sessions");
            Err(Refusal {
                rule: Rule::Shape,
                found,
            })
        });
        match checked {
            Err(refusal) => self.refuse(refusal, effects),
            Ok(path) => {
                let channel = [path.channel_timeout.spends.outpoint];
                let outpoints = path
                    .sessions
                    .iter()
                    .map(|tx| tx.spends.outpoint)
                    .chain(channel);
                effects.push(SignerEffect::Emit(SignerEvent::ProposalChecked {
                    round: self.round(),
                    factory: FactoryId::of(path.funding),
                    coverage: verify::coverage(&path),
                    path_vbytes: path.node_txs().map(FactoryTx::vbytes).collect(),
                }));
                effects.push(SignerEffect::LoadSigned(outpoints.collect()));
                self.state = State::Checked(Box::new(Checked { path, proposal }), nonces);
            }
        }
    }

    /// Signs every session the guard allows; if it refuses one, none is sent.
    fn sign(&mut self, existing: &[SignedRecord], effects: &mut Vec<SignerEffect>) {
        let state = std::mem::replace(&mut self.state, State::Finished);
        let State::Checked(checked, nonces) = state else {
            self.state = state;
            return;
        };
        match self.sign_all(&checked, nonces, existing) {
            Err(found) => {
                let reason = DeclineReason::Refused {
                    rule: "double_sign".into(),
                    found,
                };
                self.decline(reason, effects);
            }
            Ok((partials, records)) => {
                effects.push(SignerEffect::StoreSigned(records));
                let message = ToCoordinator::Partials(Box::new(partials.clone()));
                effects.push(SignerEffect::Send(message));
                effects.push(SignerEffect::Emit(SignerEvent::Signed {
                    round: self.round(),
                }));
                self.state = State::Signed(checked, partials);
            }
        }
    }

    fn sign_all(
        &self,
        checked: &Checked,
        nonces: Vec<SecretNonce>,
        existing: &[SignedRecord],
    ) -> Result<(Partials, Vec<SignedRecord>), String> {
        let mut partials = Vec::with_capacity(checked.path.sessions.len());
        let mut records = Vec::with_capacity(checked.path.sessions.len());
        let sessions = checked.path.sessions.iter().zip(&checked.proposal.sums);
        let publics = self.join.nonces.iter();
        let all = (0u32..).zip(sessions).zip(nonces).zip(publics);
        for (((session, (tx, sum)), nonce), public) in all {
            let (partial, record) =
                self.sign_one(checked, existing, session, tx, sum, nonce, public)?;
            partials.push(partial);
            records.push(record);
        }
        let (channel_signature, record) = self.sign_channel(checked, existing)?;
        records.push(record);
        let round = self.round();
        Ok((
            Partials {
                round,
                partials,
                channel_signature,
            },
            records,
        ))
    }

    #[allow(clippy::too_many_arguments)]
    fn sign_one(
        &self,
        checked: &Checked,
        existing: &[SignedRecord],
        session: u32,
        tx: &FactoryTx,
        sum: &AggregateNonce,
        nonce: SecretNonce,
        public: &PublicNonce,
    ) -> Result<(PartialSignature, SignedRecord), String> {
        let (params, expiry) = (&checked.proposal.path.params, checked.path.schedule.expiry);
        let request = Request::musig(tx, params, expiry, public, sum).map_err(|e| e.to_string())?;
        match decide(&of_outpoint(existing, tx.spends.outpoint), &request) {
            Decision::Refuse(error) => Err(error.to_string()),
            Decision::Stored(partial) => {
                let stored = PartialSignature::from_bytes(&partial).map_err(|e| e.to_string())?;
                Ok((stored, request.record(partial)))
            }
            Decision::Record | Decision::FreshSession => {
                let round = self.round();
                let (ceremony, attempt) = (round.ceremony, round.attempt);
                let asked = NonceUse {
                    ceremony,
                    attempt,
                    session,
                };
                let partial = nonce
                    .sign(asked, &self.keys.factory_secret, tx, sum)
                    .map_err(|e| e.to_string())?;
                Ok((partial, request.record(partial.to_bytes())))
            }
        }
    }

    fn sign_channel(
        &self,
        checked: &Checked,
        existing: &[SignedRecord],
    ) -> Result<(ecdsa::Signature, SignedRecord), String> {
        let timeout = &checked.path.channel_timeout;
        let (params, expiry) = (&checked.proposal.path.params, checked.path.schedule.expiry);
        let lsp = &checked.proposal.path.lsp_channel_key;
        let script = channel_witness_script(&self.own.channel_key, lsp);
        let request =
            Request::channel(timeout, params, expiry, &script).map_err(|e| e.to_string())?;
        let existing = of_outpoint(existing, timeout.spends.outpoint);
        if let Decision::Refuse(error) = decide(&existing, &request) {
            return Err(error.to_string());
        }
        let leaf = self.keys.leaf_id;
        let signature = self
            .channel_signer
            .sign_channel_timeout(leaf, timeout, &script);
        let signature = signature.ok_or("no channel key for this leaf")?;
        Ok((signature, request.record([0; 32])))
    }

    fn finals(&mut self, finals: Finals, effects: &mut Vec<SignerEffect>) {
        if finals.round != self.round() {
            return;
        }
        let (checked, partials) = match std::mem::replace(&mut self.state, State::Finished) {
            State::Signed(checked, partials) => (checked, partials),
            State::Acked(factory) => {
                let round = self.round();
                effects.push(SignerEffect::Send(ToCoordinator::Ack { round, factory }));
                self.state = State::Acked(factory);
                return;
            }
            State::Opened(factory) => {
                let round = self.round();
                effects.push(SignerEffect::Send(ToCoordinator::ChannelOpened {
                    round,
                    factory,
                }));
                self.state = State::Opened(factory);
                return;
            }
            other => {
                self.state = other;
                return;
            }
        };
        let lsp_channel_key = checked.proposal.path.lsp_channel_key;
        let valid = verify::check_signatures(
            &checked.path,
            &lsp_channel_key,
            &self.own.channel_key,
            &finals.signatures,
            &finals.channel_signature,
        );
        if let Err(refusal) = valid {
            return self.refuse(refusal, effects);
        }
        let round = self.round();
        let join = JoinData {
            ceremony: round.ceremony,
            attempt: round.attempt,
            join_nonce: self.keys.join_nonce,
            leaf_id: self.keys.leaf_id,
            factory_key: self.own.factory_key,
            channel_key: self.own.channel_key,
            payout_script: self.own.payout_script.clone(),
        };
        let channel = ChannelSignatures {
            client: partials.channel_signature,
            lsp: finals.channel_signature,
        };
        let proposal = &checked.proposal.path;
        let kit = ExitKit::new(&checked.path, proposal, &finals.signatures, &channel, join);
        match kit {
            Err(error) => {
                let found = error.to_string();
                self.refuse(
                    Refusal {
                        rule: Rule::Rehearsal,
                        found,
                    },
                    effects,
                );
            }
            Ok(kit) => {
                let factory = FactoryId::of(checked.path.funding);
                effects.push(SignerEffect::StoreKit(Box::new(kit)));
                effects.push(SignerEffect::Rehearse(factory));
                self.state = State::Kept(factory);
            }
        }
    }

    fn rehearsed(&mut self, result: Result<(), String>, effects: &mut Vec<SignerEffect>) {
        let State::Kept(factory) = self.state else {
            return;
        };
        let round = self.round();
        match result {
            Err(found) => self.refuse(
                Refusal {
                    rule: Rule::Rehearsal,
                    found,
                },
                effects,
            ),
            Ok(()) => {
                effects.push(SignerEffect::Emit(SignerEvent::KitStored {
                    round,
                    factory,
                }));
                effects.push(SignerEffect::ExpectChannel(factory));
                effects.push(SignerEffect::Send(ToCoordinator::Ack { round, factory }));
                effects.push(SignerEffect::Emit(SignerEvent::Acked { round, factory }));
                self.state = State::Acked(factory);
            }
        }
    }

    fn channel(&mut self, result: Result<(), String>, effects: &mut Vec<SignerEffect>) {
        let State::Acked(factory) = self.state else {
            return;
        };
        let round = self.round();
        match result {
            Err(found) => self.refuse(
                Refusal {
                    rule: Rule::Channel,
                    found,
                },
                effects,
            ),
            Ok(()) => {
                effects.push(SignerEffect::Send(ToCoordinator::ChannelOpened {
                    round,
                    factory,
                }));
                effects.push(SignerEffect::Emit(SignerEvent::ChannelOpened {
                    round,
                    factory,
                }));
                effects.push(SignerEffect::Finished(SignerOutcome::Opened { factory }));
                self.state = State::Opened(factory);
            }
        }
    }

    fn refuse(&mut self, refusal: Refusal, effects: &mut Vec<SignerEffect>) {
        self.decline(refusal.into(), effects);
    }

    fn decline(&mut self, reason: DeclineReason, effects: &mut Vec<SignerEffect>) {
        let round = self.round();
        self.state = State::Finished;
        effects.push(SignerEffect::Emit(SignerEvent::Refused {
            round,
            reason: reason.clone(),
        }));
        let message = ToCoordinator::Decline {
            round,
            reason: reason.clone(),
        };
        effects.push(SignerEffect::Send(message));
        effects.push(SignerEffect::Finished(SignerOutcome::Refused { reason }));
    }

    fn join_record(&self) -> JoinRecord {
        JoinRecord {
            round: self.round(),
            join_nonce: self.keys.join_nonce,
            leaf_id: self.keys.leaf_id,
            factory_key: self.own.factory_key,
            payout_script: self.own.payout_script.clone(),
            channel_key: self.own.channel_key,
            capacity: self.invitation.capacity,
            common_pin: self.invitation.common_pin,
        }
    }
}

/// All attempts of a ceremony must share one funding input, or two of them could confirm.
fn other_pin(invitation: &Invitation, earlier: Option<OutPoint>) -> Option<DeclineReason> {
    let earlier = earlier.filter(|pin| *pin != invitation.common_pin)?;
    let found = format!("common pin {}, it was {earlier}", invitation.common_pin);
    Some(
        Refusal {
            rule: Rule::Funding,
            found,
        }
        .into(),
    )
}

fn nonces(
    invitation: &Invitation,
    sessions: u32,
    secret: &SecretKey,
    seed: &mut dyn FnMut() -> [u8; 32],
) -> (Vec<SecretNonce>, Vec<PublicNonce>) {
    let Round { ceremony, attempt } = invitation.round;
    (0..sessions)
        .map(|session| {
            let made_for = NonceUse {
                ceremony,
                attempt,
                session,
            };
            SecretNonce::generate(seed(), secret, made_for)
        })
        .unzip()
}

fn join_message(
    invitation: &Invitation,
    keys: &JoinKeys,
    own: &Own,
    nonces: Vec<PublicNonce>,
) -> Join {
    Join {
        round: invitation.round,
        factory_key: own.factory_key,
        payout_script: own.payout_script.clone(),
        leaf_id: keys.leaf_id,
        channel_key: own.channel_key,
        capacity: invitation.capacity,
        nonces,
    }
}

fn of_outpoint(existing: &[SignedRecord], outpoint: OutPoint) -> Vec<SignedRecord> {
    let records = existing.iter().filter(|record| record.outpoint == outpoint);
    records.copied().collect()
}
