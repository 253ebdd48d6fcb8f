//! The coordinator's side of the ceremony: one machine runs it, attempt after attempt, until a
//! factory stands or it is given up.
//!
//! [`Ceremony::step`] takes the machine and an input and gives back the machine and effects. The
//! adapter executes effects in order; a [`Effect::Store`] is durable before the next is begun.

mod attempt;
mod opening;
mod signing;
mod types;

use std::sync::Arc;

use super::message::{AbortReason, Round, ToClient, ToCoordinator};
use crate::ids::{Attempt, CeremonyId, ClientId};
use crate::units::Height;
use attempt::Seat;
use signing::{Acking, Drafted, Signing};
pub use types::*;

/// Where an attempt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Invitations are out.
    Joining,
    /// Those who joined are asked whether they are still there.
    Confirming,
    /// The wallet makes the funding transaction.
    Funding,
    /// Proposals are out.
    Signing,
    /// Final signatures are out.
    Acking,
    /// Channels are opened on the leaves.
    Opening,
    /// A factory stands, or the ceremony is given up.
    Finished,
}

/// The transition table: from a phase, on an input, to one of these phases. Inputs that are not
/// listed leave the phase as it is (and are refused, answered again or ignored). Cancelling leads from
/// every phase to the end.
pub const TRANSITIONS: &[(Phase, &str, &[Phase])] = &[
    (
        Phase::Joining,
        "all joined or declined",
        &[Phase::Confirming, Phase::Finished],
    ),
    (
        Phase::Joining,
        "deadline",
        &[Phase::Confirming, Phase::Finished],
    ),
    (
        Phase::Confirming,
        "all present",
        &[Phase::Funding, Phase::Joining, Phase::Finished],
    ),
    (
        Phase::Confirming,
        "deadline",
        &[Phase::Funding, Phase::Joining, Phase::Finished],
    ),
    (
        Phase::Funding,
        "funding ready",
        &[Phase::Signing, Phase::Finished],
    ),
    (Phase::Funding, "funding failed", &[Phase::Finished]),
    (
        Phase::Funding,
        "declined",
        &[Phase::Joining, Phase::Finished],
    ),
    (Phase::Signing, "all partials valid", &[Phase::Acking]),
    (
        Phase::Signing,
        "invalid partial",
        &[Phase::Joining, Phase::Finished],
    ),
    (
        Phase::Signing,
        "deadline or declined",
        &[Phase::Joining, Phase::Finished],
    ),
    (Phase::Acking, "all acked", &[Phase::Opening]),
    (
        Phase::Acking,
        "deadline or declined",
        &[Phase::Joining, Phase::Finished],
    ),
    (Phase::Opening, "all channels stand", &[Phase::Finished]),
    (
        Phase::Opening,
        "deadline, declined or refused",
        &[Phase::Joining, Phase::Finished],
    ),
];

/// A running ceremony.
#[derive(Debug)]
pub struct Ceremony {
    id: CeremonyId,
    attempt: Attempt,
    first_attempt: Attempt,
    terms: Terms,
    signer: Arc<dyn LspSigner>,
    seats: Vec<Seat>,
    max_sessions: u32,
    tip: Height,
    state: State,
}

#[derive(Debug)]
enum State {
    Joining,
    Confirming,
    Funding(Box<Drafted>),
    Signing(Box<Signing>),
    Acking(Box<Acking>),
    Opening(Box<Acking>),
    Finished,
}

impl Ceremony {
    /// Starts a ceremony (or goes on with a later attempt after a restart).
    pub fn start(
        id: CeremonyId,
        first_attempt: Attempt,
        terms: Terms,
        invited: Vec<Invitee>,
        signer: Arc<dyn LspSigner>,
        tip: Height,
    ) -> Step {
        let mut ceremony = Self {
            id,
            attempt: first_attempt,
            first_attempt,
            terms,
            signer,
            seats: invited.into_iter().map(Seat::new).collect(),
            max_sessions: 0,
            tip,
            state: State::Finished,
        };
        let mut effects = Vec::new();
        ceremony.open_attempt(&mut effects);
        Step {
            state: ceremony,
            effects,
        }
    }

    /// One step. Costly where the tree is built, proposed or signed.
    pub fn step(mut self, input: Input) -> Step {
        let mut effects = Vec::new();
        self.dispatch(input, &mut effects);
        Step {
            state: self,
            effects,
        }
    }

    /// Which attempt is under way.
    #[must_use]
    pub const fn round(&self) -> Round {
        Round {
            ceremony: self.id,
            attempt: self.attempt,
        }
    }

    /// Where it stands.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        match self.state {
            State::Joining => Phase::Joining,
            State::Confirming => Phase::Confirming,
            State::Funding(_) => Phase::Funding,
            State::Signing(_) => Phase::Signing,
            State::Acking(_) => Phase::Acking,
            State::Opening(_) => Phase::Opening,
            State::Finished => Phase::Finished,
        }
    }

    /// Whether the current phase waits for this client.
    #[must_use]
    pub fn is_waiting_for(&self, client: &ClientId) -> bool {
        let phase = self.phase();
        let seat = self.seats.iter().find(|seat| seat.client == *client);
        seat.is_some_and(|seat| seat.is_awaited(phase))
    }

    fn dispatch(&mut self, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Connected(client) => self.repeat(client, effects),
            Input::Gone(client) => self.gone(client, effects),
            Input::Joined {
                client,
                join,
                lsp_channel_key,
            } => {
                self.joined(client, *join, lsp_channel_key, effects);
            }
            Input::Message { client, message } => self.message(client, message, effects),
            Input::ChannelOpened { round, client } => self.opened_here(round, client, effects),
            Input::ChannelRefused { round, client, why } => {
                self.channel_refused(round, client, why, effects);
            }
            Input::Deadline { round, phase } => {
                if round == self.round() && phase == self.phase() {
                    self.deadline(effects);
                }
            }
            Input::FundingReady(funding) => self.funding_ready(*funding, effects),
            Input::FundingFailed(why) => {
                if matches!(self.state, State::Funding(_)) {
                    self.give_up(AbortReason::NoFunds(why), effects);
                }
            }
            Input::Tip(tip) => self.tip = tip,
            Input::Cancel => {
                if !matches!(self.state, State::Finished) {
                    self.give_up(AbortReason::Cancelled, effects);
                }
            }
        }
    }

    fn message(&mut self, client: ClientId, message: ToCoordinator, effects: &mut Vec<Effect>) {
        let round = message.round();
        let finished = matches!(self.state, State::Finished);
        let acked = self
            .seats
            .iter()
            .any(|seat| seat.client == client && seat.acked);
        let repeats = matches!(
            message,
            ToCoordinator::Ack { .. } | ToCoordinator::ChannelOpened { .. }
        );
        if finished && acked && repeats {
            return;
        }
        if round != self.round() || finished {
            return effects.push(refuse(client, round, RefuseReason::UnknownRound));
        }
        if !self
            .seats
            .iter()
            .any(|seat| seat.client == client && seat.is_in())
        {
            return effects.push(refuse(client, round, RefuseReason::NotInvited));
        }
        match message {
            // A join comes with the coordinator's channel key, as Input::Joined.
            ToCoordinator::Join(_) => {
                effects.push(refuse(client, round, RefuseReason::OutOfTurn));
            }
            ToCoordinator::Present(_) => self.present(client, effects),
            ToCoordinator::Partials(partials) => self.partials(client, *partials, effects),
            ToCoordinator::Ack { factory, .. } => self.acked(client, factory, effects),
            ToCoordinator::ChannelOpened { factory, .. } => {
                self.opened_there(client, factory, effects);
            }
            ToCoordinator::Decline { reason, .. } => self.declined(client, reason, effects),
        }
    }

    fn deadline(&mut self, effects: &mut Vec<Effect>) {
        match &self.state {
            State::Joining => self.close_joining(effects),
            State::Confirming => self.close_confirming(effects),
            State::Signing(_) | State::Acking(_) | State::Opening(_) => {
                let phase = self.phase();
                let silent = self.seats.iter().filter(|seat| seat.is_awaited(phase));
                let out = silent.map(|seat| (seat.client, LeftOut::Silent)).collect();
                self.fail_attempt(phase, AbortReason::Silent, out, effects);
            }
            State::Funding(_) | State::Finished => {}
        }
    }

    fn wake(&self, phase: Phase, seconds: u32, effects: &mut Vec<Effect>) {
        effects.push(Effect::Wake {
            round: self.round(),
            phase,
            seconds,
        });
    }

    fn send_all(&self, message: &ToClient, effects: &mut Vec<Effect>) {
        let members = self.seats.iter().filter(|seat| seat.is_in());
        effects.extend(members.map(|seat| Effect::Send {
            client: seat.client,
            message: message.clone(),
        }));
    }
}

const fn refuse(client: ClientId, round: Round, reason: RefuseReason) -> Effect {
    Effect::Refuse {
        client,
        round,
        reason,
    }
}
