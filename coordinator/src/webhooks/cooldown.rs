//! How soon a webhook is told by the same method again (bLIP-55): whoever was is awake by now, or does not come for more of it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use factory_tree::ids::ClientId;

/// bLIP-55: in the order of minutes.
const COOLDOWN: Duration = Duration::from_secs(60);

/// Whose webhook, its name, and the method.
pub(super) type Told = (ClientId, String, String);

/// What was told when. A start forgets it: then one more is told.
#[derive(Debug, Default)]
pub(super) struct Cooldown(Mutex<HashMap<Told, Instant>>);

impl Cooldown {
    /// How long this has to wait yet, if it has to.
    pub(super) fn left(&self, what: &Told, now: Instant) -> Option<Duration> {
        let since = now.saturating_duration_since(*self.all().get(what)?);
        COOLDOWN
            .checked_sub(since)
            .filter(|left| *left > Duration::ZERO)
    }

    /// This is told now.
    pub(super) fn told(&self, what: Told, now: Instant) {
        let mut all = self.all();
        all.retain(|_, at| now.saturating_duration_since(*at) < COOLDOWN);
        all.insert(what, now);
    }

    /// It did not arrive.
    pub(super) fn untold(&self, what: &Told) {
        self.all().remove(what);
    }

    /// A client came: when it is away again it may be told at once.
    pub(super) fn came(&self, client: ClientId) {
        self.all().retain(|(told, ..), _| *told != client);
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Told, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(client: u8, app_name: &str, method: &str) -> Told {
        (ClientId([client; 33]), app_name.into(), method.into())
    }

    #[test]
    fn the_same_method_waits_a_minute_or_until_its_client_came() {
        let (cooldown, now) = (Cooldown::default(), Instant::now());
        let told = what(2, "a", "sale");
        assert_eq!(cooldown.left(&told, now), None);
        cooldown.told(told.clone(), now);
        let later = |seconds| now + Duration::from_secs(seconds);
        let left = cooldown.left(&told, later(59));
        assert_eq!(left, Some(Duration::from_secs(1)));
        assert_eq!(cooldown.left(&told, later(60)), None);
        for other in [
            what(3, "a", "sale"),
            what(2, "b", "sale"),
            what(2, "a", "payment"),
        ] {
            assert_eq!(cooldown.left(&other, now), None, "{other:?}");
        }
        cooldown.came(ClientId([3; 33]));
        assert!(cooldown.left(&told, now).is_some());
        cooldown.came(ClientId([2; 33]));
        assert_eq!(cooldown.left(&told, now), None);
    }

    #[test]
    fn what_did_not_arrive_was_not_told() {
        let (cooldown, now) = (Cooldown::default(), Instant::now());
        let told = what(2, "a", "sale");
        cooldown.told(told.clone(), now);
        cooldown.untold(&told);
        assert_eq!(cooldown.left(&told, now), None);
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let (cooldown, now) = (Cooldown::default(), Instant::now());
        cooldown.told(what(2, "a", "sale"), now);
        cooldown.told(what(3, "a", "sale"), now + COOLDOWN);
        assert_eq!(cooldown.all().len(), 1);
    }
}
