//! Questions that wait: a queue for each peer, and the peers take turns. Identities are free, so strangers, peers without a channel with us, share
//! half of the places and half of those who answer, and nobody who has a channel waits for them.

use std::collections::{HashMap, VecDeque};

use bitcoin::secp256k1::PublicKey;
use serde_json::{Map, Value};

/// Questions without an answer: of one peer, of all strangers, and of all. What is above is not answered: clients ask again.
const PER_PEER: usize = 8;
const STRANGERS: usize = ALL / 2;
const ALL: usize = 128;
/// So many are answered at once: never two of one peer, and of strangers half as many.
pub(crate) const AT_ONCE: usize = 4;

/// A question that waits.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) peer: PublicKey,
    pub(super) id: String,
    pub(super) method: String,
    pub(super) params: Map<String, Value>,
}

/// A peer with questions that have no answer yet.
#[derive(Debug, Default)]
struct Asker {
    is_stranger: bool,
    waiting: VecDeque<Question>,
    is_served: bool,
}

impl Asker {
    fn places(&self) -> usize {
        self.waiting.len().saturating_add(self.is_served.into())
    }
}

#[derive(Debug, Default)]
pub(super) struct Inbox {
    askers: HashMap<PublicKey, Asker>,
    /// Whose turn it is, the next one first: everybody with a question that waits and none that is being answered.
    turns: VecDeque<PublicKey>,
}

impl Inbox {
    /// Takes a question in, if there is a place for it, or one that it competes with makes place.
    pub(super) fn add(&mut self, question: Question, is_stranger: bool) {
        let peer = question.peer;
        let own = self.askers.get(&peer).map_or(0, Asker::places);
        if own >= PER_PEER || !(self.has_place(is_stranger) || self.make_place(own, is_stranger)) {
            return;
        }
        let asker = self.askers.entry(peer).or_default();
        asker.is_stranger = is_stranger;
        asker.waiting.push_back(question);
        if own == 0 {
            self.turns.push_back(peer);
        }
    }

    fn has_place(&self, is_stranger: bool) -> bool {
        let all: usize = self.askers.values().map(Asker::places).sum();
        let strangers = self.askers.values().filter(|asker| asker.is_stranger);
        let of_strangers: usize = strangers.map(Asker::places).sum();
        all < ALL && (!is_stranger || of_strangers < STRANGERS)
    }

    /// The newest of who has the most, if that is more than the asker would have; else a stranger takes the place of the stranger that has waited for
    /// longest. Strangers take nothing from others.
    fn make_place(&mut self, own: usize, is_stranger: bool) -> bool {
        let rivals = self.askers.values_mut();
        let rivals = rivals.filter(|asker| asker.is_stranger || !is_stranger);
        let most = rivals.max_by_key(|asker| asker.places());
        // Two at least, of which one is being answered at most: one waits, and who has a turn keeps one.
        let most = most.filter(|asker| asker.places() > own.saturating_add(1));
        if let Some(asker) = most {
            return asker.waiting.pop_back().is_some();
        }
        own == 0 && is_stranger && self.drop_oldest_stranger()
    }

    /// Identities are free, and whoever took all places with one question each would keep them: who waits for longest of those is out.
    fn drop_oldest_stranger(&mut self) -> bool {
        let askers = &self.askers;
        let is_stranger = |peer: &PublicKey| askers.get(peer).is_some_and(|it| it.is_stranger);
        let oldest = self.turns.iter().position(is_stranger);
        let Some(peer) = oldest.and_then(|at| self.turns.remove(at)) else {
            return false;
        };
        // One that has a turn is not being answered; nobody has more than one question here.
        self.askers.remove(&peer).is_some()
    }

    /// The question to answer next; its peer has no other turn until [`Self::done`].
    pub(super) fn next(&mut self) -> Option<Question> {
        let served = self.askers.values();
        let served = served.filter(|asker| asker.is_served && asker.is_stranger);
        let may_be_stranger = served.count() < AT_ONCE / 2;
        let may = |peer: &PublicKey| {
            let asker = self.askers.get(peer);
            asker.is_some_and(|asker| may_be_stranger || !asker.is_stranger)
        };
        let at = self.turns.iter().position(may)?;
        let peer = self.turns.remove(at)?;
        let asker = self.askers.get_mut(&peer)?;
        asker.is_served = true;
        asker.waiting.pop_front()
    }

    /// A question of this peer is answered.
    pub(super) fn done(&mut self, peer: PublicKey) {
        let Some(asker) = self.askers.get_mut(&peer) else {
            return;
        };
        asker.is_served = false;
        if asker.waiting.is_empty() {
            self.askers.remove(&peer);
        } else {
            self.turns.push_back(peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::secp256k1::{Secp256k1, SecretKey};

    use super::*;

    fn peer(number: u8) -> PublicKey {
        let secret = SecretKey::from_slice(&[number; 32]).unwrap();
        PublicKey::from_secret_key(&Secp256k1::new(), &secret)
    }

    fn ask(inbox: &mut Inbox, from: u8, id: &str, is_stranger: bool) {
        let question = Question {
            peer: peer(from),
            id: id.to_owned(),
            method: String::new(),
            params: Map::new(),
        };
        inbox.add(question, is_stranger);
    }

    /// So many questions of each of these peers.
    fn flood(inbox: &mut Inbox, peers: std::ops::Range<u8>, each: usize, is_stranger: bool) {
        for _ in 0..each {
            for from in peers.clone() {
                ask(inbox, from, "", is_stranger);
            }
        }
    }

    /// Answers all, one after another: how many of whom.
    fn answered(inbox: &mut Inbox) -> HashMap<PublicKey, usize> {
        let mut all = HashMap::new();
        while let Some(question) = inbox.next() {
            *all.entry(question.peer).or_default() += 1;
            inbox.done(question.peer);
        }
        assert!(inbox.askers.is_empty() && inbox.turns.is_empty());
        all
    }

    fn of(answered: &HashMap<PublicKey, usize>, peers: std::ops::Range<u8>) -> usize {
        let count = |number| answered.get(&peer(number)).copied().unwrap_or(0);
        peers.map(count).sum()
    }

    #[test]
    fn peers_take_turns_and_each_has_its_answers_in_order() {
        let mut inbox = Inbox::default();
        for (from, id) in [(1, "a"), (1, "b"), (1, "c"), (2, "d"), (3, "e"), (2, "f")] {
            ask(&mut inbox, from, id, false);
        }
        let mut order = String::new();
        while let Some(question) = inbox.next() {
            inbox.done(question.peer);
            order.push_str(&question.id);
        }
        assert_eq!(order, "adebfc");
    }

    #[test]
    fn one_question_of_a_peer_is_answered_at_a_time() {
        let mut inbox = Inbox::default();
        ask(&mut inbox, 1, "a", false);
        ask(&mut inbox, 1, "b", false);
        assert_eq!(inbox.next().unwrap().id, "a");
        ask(&mut inbox, 1, "c", false);
        assert_eq!(inbox.next(), None);
        ask(&mut inbox, 2, "d", false);
        assert_eq!(inbox.next().unwrap().id, "d");
        inbox.done(peer(1));
        assert_eq!(inbox.next().unwrap().id, "b");
        assert_eq!(inbox.next(), None);
    }

    #[test]
    fn strangers_leave_half_of_those_who_answer_to_others() {
        let mut inbox = Inbox::default();
        flood(&mut inbox, 1..9, 2, true);
        let served: Vec<_> = std::iter::from_fn(|| inbox.next()).collect();
        assert_eq!(served.len(), AT_ONCE / 2);
        ask(&mut inbox, 100, "", false);
        assert_eq!(inbox.next().unwrap().peer, peer(100));
        inbox.done(served[0].peer);
        // Others have waited for longer.
        assert_eq!(inbox.next().unwrap().peer, peer(3));
        assert_eq!(inbox.next(), None);
    }

    #[test]
    fn strangers_leave_half_of_the_places_to_others() {
        let mut inbox = Inbox::default();
        flood(&mut inbox, 1..51, 8, true);
        flood(&mut inbox, 100..108, 8, false);
        let answered = answered(&mut inbox);
        assert_eq!(of(&answered, 1..51), STRANGERS);
        assert_eq!(of(&answered, 100..108), 64, "all of theirs");
    }

    #[test]
    fn there_is_an_end_to_what_waits() {
        let mut inbox = Inbox::default();
        ask(&mut inbox, 1, "", false);
        assert!(inbox.next().is_some(), "counts until it is answered");
        flood(&mut inbox, 1..2, 20, false);
        assert_eq!(inbox.askers[&peer(1)].places(), PER_PEER);
        flood(&mut inbox, 2..200, 2, false);
        flood(&mut inbox, 200..250, 2, true);
        inbox.done(peer(1));
        let answered = answered(&mut inbox);
        assert_eq!(answered.values().sum::<usize>(), ALL - 1);
        assert_eq!(of(&answered, 200..250), 0, "strangers displace no others");
    }

    /// Without a question of more than one they would have all places until each is answered.
    #[test]
    fn who_comes_new_is_answered_however_many_identities_ask_once() {
        let mut inbox = Inbox::default();
        flood(&mut inbox, 1..65, 1, true);
        assert_eq!(inbox.next().unwrap().peer, peer(1));
        ask(&mut inbox, 100, "", true);
        // Who asks already displaces nobody.
        ask(&mut inbox, 3, "", true);
        inbox.done(peer(1));
        let answered = answered(&mut inbox);
        assert_eq!(of(&answered, 100..101), 1);
        assert_eq!(of(&answered, 2..3), 0, "of those that wait, the oldest");
        assert_eq!(of(&answered, 3..65), STRANGERS - 2, "all others");
    }

    #[test]
    fn who_asks_much_makes_place_for_who_asks_little() {
        let mut inbox = Inbox::default();
        flood(&mut inbox, 1..9, 8, true);
        ask(&mut inbox, 10, "", true);
        flood(&mut inbox, 1..9, 8, true);
        let first = inbox.next().unwrap();
        assert_eq!(first.peer, peer(1));
        inbox.done(first.peer);
        let answered = answered(&mut inbox);
        assert_eq!(of(&answered, 10..11), 1);
        assert_eq!(of(&answered, 1..9), STRANGERS - 2, "it has one of theirs");
    }
}
