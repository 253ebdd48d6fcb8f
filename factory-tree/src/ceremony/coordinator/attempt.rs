//! Who takes part: invitations, joins, presence, who is left out, and the next attempt.

use std::collections::BTreeSet;

use bitcoin::Amount;
use bitcoin::secp256k1::PublicKey;

use super::signing::Drafted;
use super::types::{Effect, Event, Invitee, LeftOut, Outcome, Record, RefuseReason};
use super::{Ceremony, Phase, State, refuse};
use crate::ceremony::message::{AbortReason, DeclineReason, Invitation, Join, Partials, ToClient};
use crate::factory::{FactorySpec, Member};
use crate::ids::{Attempt, ClientId};
use crate::tree::{Draft, TreeError, max_sessions};

/// One invited client during an attempt.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) client: ClientId,
    capacity: Amount,
    /// Its join and the coordinator's channel key for it.
    joined: Option<(Join, PublicKey)>,
    present: bool,
    pub(super) partials: Option<Partials>,
    pub(super) acked: bool,
    /// Its channel stands on our side.
    pub(super) opened_here: bool,
    /// It says that its channel stands on its side.
    pub(super) opened_there: bool,
    out: bool,
}

impl Seat {
    pub(super) const fn new(invitee: Invitee) -> Self {
        Self {
            client: invitee.client,
            capacity: invitee.capacity,
            joined: None,
            present: false,
            partials: None,
            acked: false,
            opened_here: false,
            opened_there: false,
            out: false,
        }
    }

    const fn invitee(&self) -> Invitee {
        Invitee {
            client: self.client,
            capacity: self.capacity,
        }
    }

    /// Whether it is still part of the attempt.
    pub(super) const fn is_in(&self) -> bool {
        !self.out
    }

    pub(super) const fn is_awaited(&self, phase: Phase) -> bool {
        let missing = match phase {
            Phase::Joining => self.joined.is_none(),
            Phase::Confirming => !self.present,
            Phase::Signing => self.partials.is_none(),
            Phase::Acking => !self.acked,
            Phase::Opening => !(self.opened_here && self.opened_there),
            Phase::Funding | Phase::Finished => false,
        };
        !self.out && missing
    }

    pub(super) fn join(&self) -> Option<&Join> {
        self.joined.as_ref().map(|(join, _)| join)
    }

    fn member(&self) -> Option<Member> {
        let (join, lsp_channel_key) = self.joined.as_ref()?;
        Some(Member {
            client: self.client,
            factory_key: join.factory_key,
            payout_script: join.payout_script.clone(),
            leaf_id: join.leaf_id,
            channel_key: join.channel_key,
            lsp_channel_key: *lsp_channel_key,
            capacity: self.capacity,
        })
    }
}

impl Ceremony {
    pub(super) fn open_attempt(&mut self, effects: &mut Vec<Effect>) {
        let invited: Vec<Invitee> = self.seats.iter().map(Seat::invitee).collect();
        let clients = u32::try_from(invited.len()).unwrap_or(u32::MAX);
        if clients < self.terms.min_clients.max(crate::shape::MIN_CLIENTS) {
            return self.give_up(AbortReason::TooFewClients { left: clients }, effects);
        }
        match max_sessions(&self.terms.params, clients) {
            Ok(sessions) => self.max_sessions = sessions,
            Err(error) => return self.give_up(AbortReason::Tree(error.to_string()), effects),
        }
        self.state = State::Joining;
        let round = self.round();
        effects.push(Effect::Store(Box::new(Record::Invited { round, invited })));
        effects.push(Effect::Emit(Event::AttemptStarted {
            round,
            invited: clients,
        }));
        for seat in &self.seats {
            effects.push(self.invitation(seat));
        }
        self.wake(Phase::Joining, self.terms.join_seconds, effects);
    }

    fn invitation(&self, seat: &Seat) -> Effect {
        let terms = &self.terms;
        let invitation = Invitation {
            round: self.round(),
            params: terms.params.clone(),
            capacity: seat.capacity,
            fee: terms.fee_for(seat.capacity),
            join_seconds: terms.join_seconds,
            step_seconds: terms.step_seconds,
            max_clients: u32::try_from(self.seats.len()).unwrap_or(u32::MAX),
            max_sessions: self.max_sessions,
            common_pin: terms.common_pin,
            confirmations: terms.confirmations,
        };
        let message = ToClient::Invitation(Box::new(invitation));
        Effect::Send {
            client: seat.client,
            message,
        }
    }

    pub(super) fn seat(&mut self, client: ClientId) -> Option<&mut Seat> {
        let mut seats = self.seats.iter_mut();
        seats.find(|seat| seat.client == client && seat.is_in())
    }

    /// A client came back: what the phase waits for is asked again. Resending is harmless.
    pub(super) fn repeat(&mut self, client: ClientId, effects: &mut Vec<Effect>) {
        let phase = self.phase();
        let seat = self.seats.iter().find(|seat| seat.client == client);
        let Some(seat) = seat.filter(|seat| seat.is_awaited(phase)) else {
            return;
        };
        match &self.state {
            State::Joining => effects.push(self.invitation(seat)),
            State::Confirming => {
                let message = ToClient::ConfirmPing(self.round());
                effects.push(Effect::Send { client, message });
            }
            State::Signing(signing) => effects.extend(signing.proposal_again(self.round(), client)),
            // Who has acked answers with how far it is.
            State::Acking(acking) | State::Opening(acking) => {
                effects.extend(acking.finals_again(self.round(), client));
            }
            State::Funding(_) | State::Finished => {}
        }
    }

    /// Before a client is bound to anything its leaving costs nothing; later it may come back
    /// until the deadline.
    pub(super) fn gone(&mut self, client: ClientId, effects: &mut Vec<Effect>) {
        match self.state {
            State::Joining => {
                if let Some(seat) = self.seat(client) {
                    seat.joined = None;
                }
            }
            State::Confirming => {
                self.leave_out(client, LeftOut::Absent, effects);
                self.when_all_present(effects);
            }
            State::Funding(_)
            | State::Signing(_)
            | State::Acking(_)
            | State::Opening(_)
            | State::Finished => {}
        }
    }

    pub(super) fn joined(
        &mut self,
        client: ClientId,
        join: Join,
        lsp_channel_key: PublicKey,
        effects: &mut Vec<Effect>,
    ) {
        let round = join.round;
        let max_sessions = self.max_sessions as usize;
        let current = self.round();
        let joining = matches!(self.state, State::Joining);
        let reason = match self.seat(client) {
            _ if round != current => Some(RefuseReason::UnknownRound),
            None => Some(RefuseReason::NotInvited),
            Some(seat) => match seat.join() {
                // The same bytes again are harmless, another join of this attempt is not.
                Some(held) if *held == join => return,
                Some(_) => Some(RefuseReason::OutOfTurn),
                None if !joining => Some(RefuseReason::OutOfTurn),
                None => malformed(&join, seat.capacity, max_sessions).map(RefuseReason::Malformed),
            },
        };
        if let Some(reason) = reason {
            return effects.push(refuse(client, round, reason));
        }
        let taken = self.seats.iter().filter_map(Seat::join);
        if taken.into_iter().any(|held| share_a_key(held, &join)) {
            let reason = RefuseReason::Malformed("a key or leaf id of another member".into());
            return effects.push(refuse(client, round, reason));
        }
        if let Some(seat) = self.seat(client) {
            seat.joined = Some((join, lsp_channel_key));
        }
        effects.push(Effect::Emit(Event::Joined { round, client }));
        if !self
            .seats
            .iter()
            .any(|seat| seat.is_awaited(Phase::Joining))
        {
            self.close_joining(effects);
        }
    }

    pub(super) fn close_joining(&mut self, effects: &mut Vec<Effect>) {
        self.leave_out_awaited(Phase::Joining, effects);
        if self.too_few(effects) {
            return;
        }
        self.state = State::Confirming;
        self.send_all(&ToClient::ConfirmPing(self.round()), effects);
        self.wake(Phase::Confirming, self.terms.step_seconds, effects);
    }

    pub(super) fn present(&mut self, client: ClientId, effects: &mut Vec<Effect>) {
        if matches!(self.state, State::Confirming) {
            if let Some(seat) = self.seat(client) {
                seat.present = true;
            }
            return self.when_all_present(effects);
        }
        // A late or repeated answer to the ping changes nothing.
        if matches!(self.state, State::Joining) {
            effects.push(refuse(client, self.round(), RefuseReason::OutOfTurn));
        }
    }

    fn when_all_present(&mut self, effects: &mut Vec<Effect>) {
        let confirming = matches!(self.state, State::Confirming);
        if confirming
            && !self
                .seats
                .iter()
                .any(|seat| seat.is_awaited(Phase::Confirming))
        {
            self.close_confirming(effects);
        }
    }

    /// Those silent are left out without blame: nobody is bound to anything yet.
    pub(super) fn close_confirming(&mut self, effects: &mut Vec<Effect>) {
        self.leave_out_awaited(Phase::Confirming, effects);
        if self.too_few(effects) {
            return;
        }
        let members: Vec<Member> = self
            .seats
            .iter()
            .filter(|s| s.is_in())
            .filter_map(Seat::member)
            .collect();
        let secret = self.signer.factory_secret(self.round());
        let secp = bitcoin::secp256k1::Secp256k1::signing_only();
        let spec = FactorySpec {
            params: self.terms.params.clone(),
            birth: self.tip,
            lsp_key: secret.public_key(&secp),
            members,
        };
        match Draft::new(spec.clone()) {
            Ok(draft) => {
                let output = draft.funding_output();
                let round = self.round();
                self.state = State::Funding(Box::new(Drafted { spec, draft }));
                effects.push(Effect::BuildFunding { round, output });
            }
            Err(TreeError::DuplicateKey(position)) => {
                let member = spec.members.get(position as usize).map(|m| m.client);
                let out = member.map(|client| (client, LeftOut::Guilty));
                let out = out.into_iter().collect();
                self.fail_attempt(Phase::Confirming, AbortReason::Guilty, out, effects);
            }
            Err(error) => self.give_up(AbortReason::Tree(error.to_string()), effects),
        }
    }

    pub(super) fn declined(
        &mut self,
        client: ClientId,
        reason: DeclineReason,
        effects: &mut Vec<Effect>,
    ) {
        let round = self.round();
        effects.push(Effect::Emit(Event::Declined {
            round,
            client,
            reason,
        }));
        match self.state {
            State::Joining => {
                self.leave_out(client, LeftOut::Declined, effects);
                if !self
                    .seats
                    .iter()
                    .any(|seat| seat.is_awaited(Phase::Joining))
                {
                    self.close_joining(effects);
                }
            }
            State::Confirming => {
                self.leave_out(client, LeftOut::Declined, effects);
                self.when_all_present(effects);
            }
            State::Funding(_) | State::Signing(_) | State::Acking(_) | State::Opening(_) => {
                let out = vec![(client, LeftOut::Declined)];
                self.fail_attempt(self.phase(), AbortReason::Left, out, effects);
            }
            State::Finished => {}
        }
    }

    fn leave_out_awaited(&mut self, phase: Phase, effects: &mut Vec<Effect>) {
        let awaited: Vec<ClientId> = self
            .seats
            .iter()
            .filter(|seat| seat.is_awaited(phase))
            .map(|seat| seat.client)
            .collect();
        for client in awaited {
            self.leave_out(client, LeftOut::Absent, effects);
        }
    }

    /// Before anybody is bound to anything. Who is left out is told, so that it does not wait with
    /// its secret nonces; who declined knows.
    fn leave_out(&mut self, client: ClientId, reason: LeftOut, effects: &mut Vec<Effect>) {
        let phase = self.phase();
        self.leave_out_in(phase, client, reason, effects);
        if reason != LeftOut::Declined {
            effects.push(self.failed(client, AbortReason::Silent, false));
        }
    }

    fn failed(&self, client: ClientId, reason: AbortReason, again: bool) -> Effect {
        let message = ToClient::Failed {
            round: self.round(),
            reason,
            again,
        };
        Effect::Send { client, message }
    }

    fn leave_out_in(
        &mut self,
        phase: Phase,
        client: ClientId,
        reason: LeftOut,
        effects: &mut Vec<Effect>,
    ) {
        let round = self.round();
        if let Some(seat) = self.seat(client) {
            seat.out = true;
            effects.push(Effect::Emit(Event::ClientLeftOut {
                round,
                client,
                reason,
                phase,
            }));
        }
    }

    fn too_few(&mut self, effects: &mut Vec<Effect>) -> bool {
        let left = self.seats.iter().filter(|seat| seat.is_in()).count();
        let left = u32::try_from(left).unwrap_or(u32::MAX);
        let few = left < self.terms.min_clients.max(crate::shape::MIN_CLIENTS);
        if few {
            self.give_up(AbortReason::TooFewClients { left }, effects);
        }
        few
    }

    /// Ends the attempt and starts the next one without `out`. The failed attempt's funding is
    /// never signed, and its keys and nonces are never used again.
    pub(super) fn fail_attempt(
        &mut self,
        phase: Phase,
        reason: AbortReason,
        out: Vec<(ClientId, LeftOut)>,
        effects: &mut Vec<Effect>,
    ) {
        let round = self.round();
        for (client, why) in &out {
            self.leave_out_in(phase, *client, *why, effects);
        }
        let told: Vec<ClientId> = out.iter().map(|(client, _)| *client).collect();
        let record = Record::AttemptFailed {
            round,
            reason: reason.clone(),
            left_out: out,
        };
        effects.push(Effect::Store(Box::new(record)));
        effects.push(Effect::Emit(Event::AttemptFailed {
            round,
            reason: reason.clone(),
        }));
        let out = told.into_iter();
        effects.extend(out.map(|client| self.failed(client, reason.clone(), false)));
        let attempts = self
            .attempt
            .0
            .saturating_sub(self.first_attempt.0)
            .saturating_add(1);
        if attempts >= self.terms.max_attempts {
            return self.give_up(AbortReason::TooManyAttempts, effects);
        }
        let going_on = self.seats.iter().filter(|seat| seat.is_in());
        effects.extend(going_on.map(|seat| self.failed(seat.client, reason.clone(), true)));
        let remaining: Vec<Invitee> = self
            .seats
            .iter()
            .filter(|s| s.is_in())
            .map(Seat::invitee)
            .collect();
        self.seats = remaining.into_iter().map(Seat::new).collect();
        self.attempt = Attempt(self.attempt.0.saturating_add(1));
        self.open_attempt(effects);
    }

    pub(super) fn give_up(&mut self, reason: AbortReason, effects: &mut Vec<Effect>) {
        let ceremony = self.id;
        self.state = State::Finished;
        let record = Record::CeremonyFailed {
            ceremony,
            reason: reason.clone(),
        };
        effects.push(Effect::Store(Box::new(record)));
        let members = self.seats.iter().filter(|seat| seat.is_in());
        effects.extend(members.map(|seat| self.failed(seat.client, reason.clone(), false)));
        effects.push(Effect::Emit(Event::CeremonyFailed {
            ceremony,
            reason: reason.clone(),
        }));
        effects.push(Effect::Finished(Outcome::Failed { reason }));
    }
}

/// What is wrong with a join by itself.
fn malformed(join: &Join, capacity: Amount, max_sessions: usize) -> Option<String> {
    if join.capacity != capacity {
        return Some(format!("capacity {}, invited to {capacity}", join.capacity));
    }
    if join.nonces.len() != max_sessions {
        return Some(format!("{} nonces, not {max_sessions}", join.nonces.len()));
    }
    if !join.payout_script.is_p2tr() {
        return Some("the payout script is not P2TR".into());
    }
    let distinct: BTreeSet<_> = join.nonces.iter().map(|nonce| nonce.to_bytes()).collect();
    (distinct.len() != join.nonces.len()).then(|| "a nonce is there twice".into())
}

fn share_a_key(a: &Join, b: &Join) -> bool {
    a.factory_key == b.factory_key
        || a.channel_key == b.channel_key
        || a.leaf_id == b.leaf_id
        || a.payout_script == b.payout_script
}
