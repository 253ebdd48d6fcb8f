//! How fast one client is read.

use std::time::Duration;

use tokio::time::Instant;

/// What may come at once, in seconds' worth of messages.
const BURST_SECONDS: u32 = 10;

/// Spaces the messages of one stream (the generic cell rate algorithm), so that a client that never stops
/// takes no more of the log, the disk and the processor than its share.
#[derive(Debug)]
pub struct Pace {
    /// Between two messages.
    each: Duration,
    /// When the allowance is full again.
    full: Instant,
}

impl Pace {
    /// `per_second` messages; the allowance is full at first.
    pub fn new(per_second: u32, now: Instant) -> Self {
        let each = Duration::from_secs(1)
            .checked_div(per_second)
            .unwrap_or(Duration::from_secs(1));
        Self { each, full: now }
    }

    /// When the next message may be read.
    pub fn ready(&self) -> Instant {
        self.full
            .checked_sub(Duration::from_secs(BURST_SECONDS.into()))
            .unwrap_or(self.full)
    }

    /// Counts a message that was read.
    pub fn take(&mut self, now: Instant) {
        let from = self.full.max(now);
        self.full = from.checked_add(self.each).unwrap_or(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_a_flood_waits() {
        let start = Instant::now() + Duration::from_secs(60);
        let mut pace = Pace::new(20, start);
        for _ in 0..200 {
            assert!(pace.ready() <= start, "ten seconds' worth pass at once");
            pace.take(start);
        }
        for _ in 0..20 {
            pace.take(pace.ready().max(start));
        }
        assert_eq!(pace.ready(), start + Duration::from_secs(1));
        let later = start + Duration::from_secs(60);
        pace.take(later);
        assert!(
            pace.ready() <= later,
            "a quiet client has its allowance again"
        );
    }
}
