//! Which alarms of the database were told lately.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// How often the same one is told, in seconds.
const EVERY: u64 = 3_600;
/// How many are remembered; of more than that, some are told more often.
const MOST: usize = 1_000;

/// When each alarm was told last, by its text.
#[derive(Debug, Default)]
pub struct Alarms(Mutex<HashMap<String, u64>>);

impl Alarms {
    /// Whether this one is to be told now, which counts as told.
    pub(crate) fn is_due(&self, problem: &str, now: u64) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|_, at| now.saturating_sub(*at) < EVERY);
        if told.contains_key(problem) {
            return false;
        }
        if told.len() >= MOST {
            told.clear();
        }
        told.insert(problem.to_owned(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_alarm_is_told_once_an_hour_and_another_one_at_once() {
        let alarms = Alarms::default();
        assert!(alarms.is_due("one", 10_000));
        assert!(!alarms.is_due("one", 10_000 + EVERY - 1));
        assert!(alarms.is_due("two", 10_001));
        assert!(alarms.is_due("one", 10_000 + EVERY));
    }

    #[test]
    fn only_so_many_alarms_are_remembered() {
        let alarms = Alarms::default();
        for number in 0..3 * MOST {
            assert!(alarms.is_due(&number.to_string(), 1));
        }
        assert!(alarms.0.lock().unwrap().len() <= MOST);
    }
}
