//! All orders of a node: on the disk first, then in memory.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{JitOrder, PartKey, Record, Stage};
use crate::error::NodeError;
use crate::store::{Change, EntryKey, Store};

const SPACE: &str = "superscalar";
const SUBSPACE: &str = "jit";

fn key(scid: u64) -> EntryKey {
    EntryKey::new(SPACE, SUBSPACE, &format!("{scid:016x}"))
}

fn unreadable(error: &serde_json::Error) -> NodeError {
    NodeError::Unreadable {
        what: "just-in-time order",
        cause: error.to_string(),
    }
}

/// The orders.
pub(crate) struct JitBook {
    store: Store,
    orders: Mutex<HashMap<u64, Record>>,
}

impl fmt::Debug for JitBook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JitBook").finish_non_exhaustive()
    }
}

impl JitBook {
    pub(crate) fn open(store: Store) -> Result<Self, NodeError> {
        let mut orders = HashMap::new();
        for name in store.names(SPACE, SUBSPACE)? {
            let Some(bytes) = store.get(EntryKey::new(SPACE, SUBSPACE, &name))? else {
                continue;
            };
            let record: Record =
                serde_json::from_slice(&bytes).map_err(|error| unreadable(&error))?;
            orders.insert(record.scid, record);
        }
        Ok(Self {
            store,
            orders: Mutex::new(orders),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Record>> {
        // Nothing panics while it is held; and a record is only replaced whole.
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an order; those nothing can come of any more are forgotten with it.
    pub(crate) fn add(&self, scid: u64, order: JitOrder, now: u64) -> Result<(), NodeError> {
        let mut orders = self.lock();
        let stale: Vec<u64> = orders
            .values()
            .filter(|record| record.is_stale(now))
            .map(|record| record.scid)
            .collect();
        let record = Record::new(scid, order);
        let mut changes: Vec<Change> = stale
            .iter()
            .map(|scid| Change::Remove(key(*scid)))
            .collect();
        changes.push(put(&record)?);
        self.store.write(changes)?;
        for scid in stale {
            orders.remove(&scid);
        }
        orders.insert(scid, record);
        Ok(())
    }

    pub(crate) fn get(&self, scid: u64) -> Option<Record> {
        self.lock().get(&scid).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Record> {
        self.lock().values().cloned().collect()
    }

    /// Orders with a channel whose fee is not paid.
    pub(crate) fn under_way(&self) -> Vec<u64> {
        let orders = self.lock();
        let due = |record: &&Record| matches!(record.stage, Stage::Opening | Stage::Open);
        orders
            .values()
            .filter(due)
            .map(|record| record.scid)
            .collect()
    }

    /// Whose channel this is; ids are never 0.
    pub(crate) fn by_channel(&self, user_channel_id: u128) -> Option<Record> {
        let orders = self.lock();
        let mut of_id = orders.values().filter(|record| record.id != 0);
        of_id.find(|record| record.id == user_channel_id).cloned()
    }

    /// Whether nothing may go over this channel but the payment of its order.
    pub(crate) fn is_unpaid(&self, user_channel_id: u128) -> bool {
        let of = self.by_channel(user_channel_id);
        of.is_some_and(|record| record.is_unpaid())
    }

    /// Whether a payment of this hash is that of another order.
    pub(crate) fn has_elsewhere(&self, scid: u64, hash: &[u8; 32]) -> bool {
        let orders = self.lock();
        let mut others = orders.values().filter(|record| record.scid != scid);
        others.any(|record| record.hash.as_ref() == Some(hash))
    }

    pub(crate) fn by_part(&self, part: &PartKey) -> Option<Record> {
        let orders = self.lock();
        orders
            .values()
            .find(|record| record.has_part(part))
            .cloned()
    }

    /// Changes an order, on the disk first; what it is then.
    pub(crate) fn update(
        &self,
        scid: u64,
        change: impl FnOnce(&mut Record),
    ) -> Result<Option<Record>, NodeError> {
        let mut orders = self.lock();
        let Some(known) = orders.get(&scid) else {
            return Ok(None);
        };
        let mut record = known.clone();
        change(&mut record);
        self.store.write(vec![put(&record)?])?;
        orders.insert(scid, record.clone());
        Ok(Some(record))
    }
}

fn put(record: &Record) -> Result<Change, NodeError> {
    let bytes = serde_json::to_vec(record).map_err(|error| unreadable(&error))?;
    Ok(Change::Put(key(record.scid), bytes))
}
