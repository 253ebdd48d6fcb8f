//! When what could not be handled is offered again. LDK would do so at once, over and over, and has itself written each time.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Before the first time; doubled each time it is of no use.
const FIRST: Duration = Duration::from_millis(200);
/// Everything that happened since waits for it.
const LONGEST: Duration = Duration::from_secs(1);

/// The pause before the events of one of LDK's queues, the manager's or the monitors', are handled again.
#[derive(Debug, Default)]
pub(super) struct Replay(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// When it is over, while there is one.
    until: Option<Instant>,
    /// How long the last one was; none, if nothing failed after it.
    last: Option<Duration>,
    /// Whether something failed since the events were begun.
    failed: bool,
}

impl Replay {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether events may be handled now.
    pub(super) fn begin(&self) -> bool {
        let mut state = self.lock();
        if state.until.is_some_and(|until| Instant::now() < until) {
            return false;
        }
        (state.until, state.failed) = (None, false);
        true
    }

    /// One could not be handled.
    pub(super) fn failed(&self) {
        self.lock().failed = true;
    }

    /// All were offered: a pause follows if one could not be handled.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.last = state.failed.then(|| match state.last {
            Some(last) => last.saturating_mul(2).min(LONGEST),
            None => FIRST,
        });
        state.until = state.last.map(|pause| Instant::now() + pause);
    }

    /// Whether something waits to be handled again.
    pub(super) fn is_paused(&self) -> bool {
        self.lock().until.is_some()
    }

    /// Whether a pause is over, and the events are to be handled though LDK says nothing.
    pub(super) fn is_due(&self) -> bool {
        let until = self.lock().until;
        until.is_some_and(|until| until <= Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_waits_until_all_of_its_queue_was_handled() {
        let replay = Replay::default();
        assert!(replay.begin() && !replay.is_paused());
        replay.failed();
        replay.end();
        assert!(!replay.begin() && replay.is_paused());
        // Over, and not handled yet.
        replay.lock().until = Some(Instant::now());
        assert!(replay.is_due() && replay.is_paused());
        assert!(replay.begin());
        replay.end();
        assert!(!replay.is_paused() && !replay.is_due());
    }
}
