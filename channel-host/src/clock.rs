//! The wall clock, for what Lightning counts in seconds; everything of the protocol is counted in blocks.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time since 1970; none before.
pub(crate) fn since_epoch() -> Duration {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or(Duration::ZERO)
}
