//! So many of something that is open at once, in all and per address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts what strangers hold open, so that one address cannot take it all.
#[derive(Debug)]
pub struct Places {
    total: usize,
    per_ip: usize,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// One of them; counted until it is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    ip: IpAddr,
}

impl Places {
    /// At most `total`, and `per_ip` from one address.
    #[must_use]
    pub fn new(total: usize, per_ip: usize) -> Arc<Self> {
        Arc::new(Self {
            total,
            per_ip,
            open: Mutex::default(),
        })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one for `ip`; none when there are as many as allowed.
    pub fn enter(self: &Arc<Self>, ip: IpAddr) -> Option<Place> {
        let mut open = self.open();
        let total: usize = open.values().sum();
        let own = open.get(&ip).copied().unwrap_or_default();
        if total >= self.total || own >= self.per_ip {
            return None;
        }
        open.insert(ip, own.saturating_add(1));
        Some(Place {
            places: Arc::clone(self),
            ip,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.places.open();
        if let Some(count) = open.get_mut(&self.ip) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                open.remove(&self.ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn one_address_cannot_take_all() {
        let places = Places::new(3, 2);
        let first = places.enter(ip(1)).unwrap();
        let _second = places.enter(ip(1)).unwrap();
        assert!(places.enter(ip(1)).is_none());
        let _other = places.enter(ip(2)).unwrap();
        assert!(places.enter(ip(3)).is_none(), "as many as allowed in all");
        assert_eq!(
            places.open().len(),
            2,
            "whoever is refused leaves nothing behind"
        );
        drop(first);
        places.enter(ip(3)).unwrap();
    }
}
