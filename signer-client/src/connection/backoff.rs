//! How long to wait before the next attempt: doubling, with jitter, so that a thousand clients of
//! a restarted coordinator do not come back in one moment.

use std::time::Duration;

use rand::Rng;

use crate::config::ConnectionConfig;

#[derive(Debug)]
pub(super) struct Backoff {
    shortest: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(config: &ConnectionConfig) -> Self {
        let shortest = Duration::from_millis(config.reconnect_min_ms);
        Self {
            shortest,
            longest: Duration::from_millis(config.reconnect_max_ms).max(shortest),
            next: shortest,
        }
    }

    /// The last attempt was a success.
    pub(super) fn reset(&mut self) {
        self.next = self.shortest;
    }

    /// The next wait is the longest.
    pub(super) fn give_time(&mut self) {
        self.next = self.longest;
    }

    /// Between half of and the whole current wait.
    pub(super) fn next_wait(&mut self) -> Duration {
        let full = self.next;
        self.next = full.saturating_mul(2).min(self.longest);
        full.mul_f64(rand::thread_rng().gen_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_longest_and_starts_again() {
        let mut backoff = Backoff::new(&ConnectionConfig {
            reconnect_min_ms: 100,
            reconnect_max_ms: 1000,
            connect_timeout_ms: 1,
        });
        for full in [100, 200, 400, 800, 1000, 1000] {
            let wait = backoff.next_wait().as_millis();
            assert!((full / 2..=full).contains(&wait), "{wait} of {full}");
        }
        backoff.reset();
        assert!(backoff.next_wait().as_millis() <= 100);
    }
}
