//! So many per client and minute.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use factory_tree::ids::ClientId;

/// Counts what clients make us do.
#[derive(Debug)]
pub(super) struct Pace {
    limit: u32,
    /// The minute, and what was done in it.
    done: Mutex<(u64, HashMap<ClientId, u32>)>,
}

impl Pace {
    pub(super) fn new(limit: u32) -> Self {
        Self {
            limit,
            done: Mutex::default(),
        }
    }

    /// Whether one more may be done for this client.
    pub(super) fn takes(&self, client: ClientId, now: u64) -> bool {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let minute = now / 60;
        if done.0 != minute {
            *done = (minute, HashMap::new());
        }
        let count = done.1.entry(client).or_default();
        *count = count.saturating_add(1);
        *count <= self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_takes_its_share_and_no_more() {
        let pace = Pace::new(20);
        let (one, other) = (ClientId([2; 33]), ClientId([3; 33]));
        assert_eq!((0..50).filter(|_| pace.takes(one, 120)).count(), 20);
        assert!(pace.takes(other, 121));
        assert!(pace.takes(one, 180));
    }
}
