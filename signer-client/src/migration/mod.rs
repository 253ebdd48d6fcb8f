//! From a factory that ends to a younger one, by itself: the invitation is taken, the balance moves in parts, the old keys are handed over
//! (protocol.md section 7).
//!
//! | file | what |
//! |---|---|
//! | `invited` | whether an invitation is one to take unasked |
//! | `decide` | what is due now, from plain facts |
//! | `facts` | those facts, from the store and the node |
//! | `lane` | what it needs of the Lightning node |
//! | `terms` | what the coordinator says about a part, checked before anything is paid |
//! | `mover` | does what is due, and goes on after every crash and every lost connection |
//! | `handover` | the keys |
//! | `pace` | when what did not work is tried again |
//! | `notices` | what the coordinator says about a factory's end |
//!
//! Whatever must survive is in the store before it has an effect; what is kept here is only for pacing.

mod decide;
mod facts;
mod handover;
mod invited;
mod lane;
mod mover;
mod notices;
mod pace;
mod terms;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use factory_tree::ids::FactoryId;
use factory_tree::kit::ExitKit;
use factory_tree::params::Schedule;
use factory_tree::units::Blocks;
use proto::wire::PartTerms;
use tokio::sync::{Notify, watch};

use crate::connection::Outgoing;
use crate::exit::leave_by;

pub(crate) use invited::{affordable, wanted};
pub(crate) use mover::{part_over, run};
pub(crate) use notices::take as notice;

/// Answers that may wait: a coordinator sends one for each question.
const MOST_ANSWERS: usize = 64;

/// A kit's calendar.
pub(crate) fn calendar(kit: &ExitKit) -> Schedule {
    Schedule {
        birth: kit.birth,
        dying_from: kit.birth.plus(Blocks(kit.params.active)),
        publish_from: leave_by(kit),
        last_spend: kit.expiry.minus(Blocks(kit.params.late_margin)),
        expiry: kit.expiry,
        exit_delay: kit.exit_delay,
    }
}

/// What the coordinator answered.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// How to pay for a part.
    Terms(PartTerms),
    /// The keys of this factory are stored there.
    Taken(FactoryId),
    /// Something about this factory is refused, for now.
    Refused {
        /// Which.
        factory: FactoryId,
        /// In its words.
        why: String,
    },
}

/// A session, as the mover knows it.
#[derive(Clone, Debug)]
pub(super) struct Link {
    out: Outgoing,
    /// Counts sessions: what was asked in an earlier one is asked again.
    number: u64,
}

/// Between the session, the Lightning node and the mover.
#[derive(Debug)]
pub(crate) struct Migration {
    link: watch::Sender<Option<Link>>,
    sessions: Mutex<u64>,
    answers: Mutex<VecDeque<Answer>>,
    news: Notify,
}

impl Migration {
    pub(crate) fn new() -> Self {
        Self {
            link: watch::Sender::new(None),
            sessions: Mutex::default(),
            answers: Mutex::default(),
            news: Notify::new(),
        }
    }

    /// A session began.
    pub(crate) fn connected(&self, out: Outgoing) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        *sessions = sessions.wrapping_add(1);
        let number = *sessions;
        drop(sessions);
        self.link.send_replace(Some(Link { out, number }));
        self.wake();
    }

    /// It ended.
    pub(crate) fn disconnected(&self) {
        self.link.send_replace(None);
    }

    /// The coordinator answered.
    pub(crate) fn answered(&self, answer: Answer) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= MOST_ANSWERS {
            answers.pop_front();
        }
        answers.push_back(answer);
        drop(answers);
        self.wake();
    }

    /// Something changed that the mover may want to know.
    pub(crate) fn wake(&self) {
        self.news.notify_one();
    }

    fn link(&self) -> Option<Link> {
        self.link.borrow().clone()
    }

    fn next_answer(&self) -> Option<Answer> {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.pop_front()
    }
}
