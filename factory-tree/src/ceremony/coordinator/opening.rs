//! Step 7: the channels on the leaves. The funding is signed only when every one stands on both sides.

use super::types::{Effect, Event, LeftOut, Outcome, Record, RefuseReason};
use super::{Ceremony, Phase, State, refuse};
use crate::ceremony::message::{AbortReason, Round};
use crate::ids::{ClientId, FactoryId};

impl Ceremony {
    /// Whether a word about a channel is of the attempt under way, which waits for it.
    fn is_opening(&self, round: Round) -> bool {
        round == self.round() && matches!(self.state, State::Opening(_))
    }

    pub(super) fn opened_here(
        &mut self,
        round: Round,
        client: ClientId,
        effects: &mut Vec<Effect>,
    ) {
        // Nodes tell more than once, and of what is over.
        if !self.is_opening(round) {
            return;
        }
        let Some(seat) = self.seat(client).filter(|seat| !seat.opened_here) else {
            return;
        };
        seat.opened_here = true;
        self.when_all_opened(client, effects);
    }

    pub(super) fn opened_there(
        &mut self,
        client: ClientId,
        factory: FactoryId,
        effects: &mut Vec<Effect>,
    ) {
        let round = self.round();
        let State::Opening(opening) = &self.state else {
            return effects.push(refuse(client, round, RefuseReason::OutOfTurn));
        };
        let own = opening.tree.id();
        if own != factory {
            let text = format!("channel of factory {factory}, not {own}");
            return effects.push(refuse(client, round, RefuseReason::Malformed(text)));
        }
        let Some(seat) = self.seat(client).filter(|seat| !seat.opened_there) else {
            return;
        };
        seat.opened_there = true;
        self.when_all_opened(client, effects);
    }

    /// A channel that cannot be opened costs a new attempt without its client.
    pub(super) fn channel_refused(
        &mut self,
        round: Round,
        client: ClientId,
        why: String,
        effects: &mut Vec<Effect>,
    ) {
        if !self.is_opening(round) || self.seat(client).is_none() {
            return;
        }
        effects.push(Effect::Emit(Event::ChannelRefused { round, client, why }));
        let out = vec![(client, LeftOut::Declined)];
        self.fail_attempt(Phase::Opening, AbortReason::Left, out, effects);
    }

    fn when_all_opened(&mut self, client: ClientId, effects: &mut Vec<Effect>) {
        let round = self.round();
        let awaited = |seat: &super::Seat| seat.is_awaited(Phase::Opening);
        let waits_for_it = self.seats.iter().any(|s| s.client == client && awaited(s));
        if !waits_for_it {
            effects.push(Effect::Emit(Event::ChannelOpened { round, client }));
        }
        if self.seats.iter().any(awaited) {
            return;
        }
        let State::Opening(opening) = std::mem::replace(&mut self.state, State::Finished) else {
            return;
        };
        let factory = opening.tree.id();
        effects.push(Effect::Store(Box::new(Record::Ready { round, factory })));
        effects.push(Effect::Emit(Event::CeremonyComplete { round, factory }));
        effects.push(Effect::Fund {
            round,
            tree: opening.tree,
            funding_tx: opening.funding_tx,
        });
        effects.push(Effect::Finished(Outcome::Complete { factory }));
    }
}
