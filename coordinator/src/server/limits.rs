//! How many streams may be open before they have authenticated.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto::session::ServiceError;
use proto::v1::ErrorCode;

/// Counts unauthenticated streams, in all and per address.
#[derive(Debug)]
pub struct Limits {
    total: usize,
    per_ip: usize,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// One unauthenticated stream; counted until it is dropped.
#[derive(Debug)]
pub struct Unauthenticated {
    limits: Arc<Limits>,
    ip: IpAddr,
}

impl Limits {
    /// At most `total` streams, and `per_ip` from one address.
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

    /// Counts one more stream from `ip`.
    ///
    /// # Errors
    /// `RateLimited` when there are as many as allowed.
    pub fn enter(self: &Arc<Self>, ip: IpAddr) -> Result<Unauthenticated, ServiceError> {
        let mut open = self.open();
        let total: usize = open.values().sum();
        let own = open.get(&ip).copied().unwrap_or_default();
        if total >= self.total || own >= self.per_ip {
            let text = "too many sessions are being opened at once; try again in some seconds";
            return Err(ServiceError::new(ErrorCode::RateLimited, text));
        }
        open.insert(ip, own.saturating_add(1));
        Ok(Unauthenticated {
            limits: Arc::clone(self),
            ip,
        })
    }
}

impl Drop for Unauthenticated {
    fn drop(&mut self) {
        let mut open = self.limits.open();
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
        let limits = Limits::new(3, 2);
        let first = limits.enter(ip(1)).unwrap();
        let _second = limits.enter(ip(1)).unwrap();
        assert_eq!(
            limits.enter(ip(1)).unwrap_err().code,
            ErrorCode::RateLimited
        );
        let _other = limits.enter(ip(2)).unwrap();
        assert!(limits.enter(ip(3)).is_err(), "as many as allowed in all");
        assert_eq!(
            limits.open().len(),
            2,
            "whoever is refused leaves nothing behind"
        );
        drop(first);
        limits.enter(ip(3)).unwrap();
    }
}
