//! How soon something that did not work is tried again. In memory only: after a restart it is tried at once.

use std::time::Duration;

use factory_tree::units::Height;
use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(120);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(20);

/// Of one factory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pause: Duration,
    /// When, and at which block, it did not work.
    not_before: Option<(Instant, Height)>,
    /// What was asked last: in which session, and when.
    asked: Option<(u64, Instant)>,
    /// The block at which the coordinator would not take the keys.
    refused_at: Option<Height>,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            pause: FIRST,
            not_before: None,
            asked: None,
            refused_at: None,
        }
    }
}

impl Pace {
    /// Whether something new may be tried: after a pause, or at another block, which may change what the coordinator says.
    pub(super) fn may(&self, now: Instant, height: Height) -> bool {
        self.not_before
            .is_none_or(|(until, at)| now >= until || height != at)
    }

    /// It did not work.
    pub(super) fn failed(&mut self, now: Instant, height: Height) {
        let until = now.checked_add(self.pause);
        self.not_before = until.map(|until| (until, height));
        self.pause = self.pause.saturating_mul(2).min(LONGEST);
        self.asked = None;
    }

    /// It worked: the next is tried at once.
    pub(super) fn worked(&mut self) {
        *self = Self::default();
    }

    /// Whether to ask (again): not in this session yet, or the answer does not come.
    pub(super) fn may_ask(&self, session: u64, now: Instant) -> bool {
        match self.asked {
            Some((number, at)) if number == session => now.saturating_duration_since(at) >= ANSWER,
            _ => true,
        }
    }

    /// It is being asked.
    pub(super) fn asking(&mut self, session: u64, now: Instant) {
        self.asked = Some((session, now));
    }

    /// The keys are not wanted at this block.
    pub(super) fn refused(&mut self, height: Height) {
        self.refused_at = Some(height);
        self.asked = None;
    }

    /// Whether they may be wanted now.
    pub(super) fn may_hand_over(&self, height: Height) -> bool {
        self.refused_at.is_none_or(|at| height != at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end_with_success() {
        let mut pace = Pace::default();
        let (now, at) = (Instant::now(), Height(5));
        assert!(pace.may(now, at));
        pace.failed(now, at);
        assert!(!pace.may(now, at));
        assert!(pace.may(now + FIRST, at));
        assert!(pace.may(now, Height(6)));
        pace.failed(now, at);
        assert!(!pace.may(now + FIRST, at));
        for _ in 0..20 {
            pace.failed(now, at);
        }
        assert!(!pace.may(now + LONGEST / 2, at));
        assert!(pace.may(now + LONGEST, at));
        pace.worked();
        assert!(pace.may(now, at));
    }

    #[test]
    fn a_question_is_asked_once_in_a_session_unless_nobody_answers() {
        let mut pace = Pace::default();
        let now = Instant::now();
        pace.asking(1, now);
        assert!(!pace.may_ask(1, now));
        assert!(pace.may_ask(2, now));
        assert!(pace.may_ask(1, now + ANSWER));
    }

    #[test]
    fn keys_are_offered_again_at_another_block() {
        let mut pace = Pace::default();
        assert!(pace.may_hand_over(Height(5)));
        pace.refused(Height(5));
        assert!(!pace.may_hand_over(Height(5)));
        assert!(pace.may_hand_over(Height(6)));
    }
}
