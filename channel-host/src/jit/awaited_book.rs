//! All orders of ours: on the disk first, then in memory.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bitcoin::Amount;
use bitcoin::secp256k1::PublicKey;

use super::{Awaited, Promised};
use crate::error::NodeError;
use crate::event::PaymentHash;
use crate::store::{Change, EntryKey, Store};

const SPACE: &str = "superscalar";
const SUBSPACE: &str = "jit-awaited";

fn key(hash: &[u8; 32]) -> EntryKey {
    EntryKey::new(SPACE, SUBSPACE, &PaymentHash(*hash).to_string())
}

fn unreadable(error: &serde_json::Error) -> NodeError {
    NodeError::Unreadable {
        what: "order of a just-in-time channel",
        cause: error.to_string(),
    }
}

fn put(record: &Awaited) -> Result<Change, NodeError> {
    let bytes = serde_json::to_vec(record).map_err(|error| unreadable(&error))?;
    Ok(Change::Put(key(&record.hash), bytes))
}

/// The orders, by the hashes of their invoices.
pub(crate) struct AwaitedBook {
    store: Store,
    orders: Mutex<HashMap<[u8; 32], Awaited>>,
}

impl fmt::Debug for AwaitedBook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwaitedBook").finish_non_exhaustive()
    }
}

impl AwaitedBook {
    pub(crate) fn open(store: Store) -> Result<Self, NodeError> {
        let mut orders = HashMap::new();
        for name in store.names(SPACE, SUBSPACE)? {
            let Some(bytes) = store.get(EntryKey::new(SPACE, SUBSPACE, &name))? else {
                continue;
            };
            let record: Awaited =
                serde_json::from_slice(&bytes).map_err(|error| unreadable(&error))?;
            orders.insert(record.hash, record);
        }
        Ok(Self {
            store,
            orders: Mutex::new(orders),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 32], Awaited>> {
        // Nothing panics while it is held; and a record is only replaced whole.
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an order; those that nobody paid in time are forgotten with it.
    pub(crate) fn add(&self, hash: [u8; 32], promise: Promised, now: u64) -> Result<(), NodeError> {
        let mut orders = self.lock();
        let stale = orders.values().filter(|record| record.is_stale(now));
        let stale: Vec<[u8; 32]> = stale.map(|record| record.hash).collect();
        let record = Awaited::new(hash, promise);
        let mut changes: Vec<Change> = stale.iter().map(|hash| Change::Remove(key(hash))).collect();
        changes.push(put(&record)?);
        self.store.write(changes)?;
        for hash in stale {
            orders.remove(&hash);
        }
        orders.insert(hash, record);
        Ok(())
    }

    /// Takes the order that a peer may open such a channel for, and notes the channel's number with it; `live`: the numbers of channels that are there.
    /// What was ordered in this size comes first.
    pub(crate) fn take_open(
        &self,
        (peer, capacity, now): (&PublicKey, Amount, u64),
        live: &[u128],
        number: u64,
    ) -> Result<Option<Awaited>, NodeError> {
        let mut orders = self.lock();
        let due = orders.values().filter(|record| {
            !live.contains(&record.number.into()) && record.lets_open(peer, capacity, now)
        });
        let due = due.max_by_key(|record| record.promise.is_order());
        let Some(mut record) = due.cloned() else {
            return Ok(None);
        };
        record.number = number;
        record.capacity_sat = capacity.to_sat();
        self.store.write(vec![put(&record)?])?;
        orders.insert(record.hash, record.clone());
        Ok(Some(record))
    }

    /// What was ordered gives no right to a channel any more. One that a peer has begun to open for it stays known: its funding is not believed either.
    pub(crate) fn over(&self, hash: &[u8; 32]) -> Result<(), NodeError> {
        let mut orders = self.lock();
        let Some(known) = orders.get(hash) else {
            return Ok(());
        };
        if known.number == 0 {
            self.store.write(vec![Change::Remove(key(hash))])?;
            orders.remove(hash);
            return Ok(());
        }
        let mut record = known.clone();
        record.taken_msat.get_or_insert(0);
        self.store.write(vec![put(&record)?])?;
        orders.insert(*hash, record);
        Ok(())
    }

    pub(crate) fn get(&self, hash: &[u8; 32]) -> Option<Awaited> {
        self.lock().get(hash).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Awaited> {
        self.lock().values().cloned().collect()
    }

    /// Whose channel this is; numbers are never 0.
    pub(crate) fn by_channel(&self, user_channel_id: u128) -> Option<Awaited> {
        let id = Some(user_channel_id).filter(|id| *id != 0)?;
        let orders = self.lock();
        let mut of_id = orders
            .values()
            .filter(|record| u128::from(record.number) == id || record.leaf == id);
        of_id.next().cloned()
    }

    /// Notes the leaf of an order, which no other has any more.
    pub(crate) fn on_leaf(&self, hash: &[u8; 32], leaf: u128) -> Result<(), NodeError> {
        let mut orders = self.lock();
        let mut changed: Vec<Awaited> = Vec::new();
        for record in orders.values() {
            if &record.hash == hash {
                changed.push(Awaited {
                    leaf,
                    ..record.clone()
                });
            } else if record.leaf == leaf {
                changed.push(Awaited {
                    leaf: 0,
                    ..record.clone()
                });
            }
        }
        let changes: Result<Vec<Change>, NodeError> = changed.iter().map(put).collect();
        self.store.write(changes?)?;
        for record in changed {
            orders.insert(record.hash, record);
        }
        Ok(())
    }

    /// Changes an order, on the disk first.
    pub(crate) fn update(
        &self,
        hash: &[u8; 32],
        change: impl FnOnce(&mut Awaited),
    ) -> Result<(), NodeError> {
        let mut orders = self.lock();
        let Some(known) = orders.get(hash) else {
            return Ok(());
        };
        let mut record = known.clone();
        change(&mut record);
        self.store.write(vec![put(&record)?])?;
        orders.insert(*hash, record);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::secp256k1::{Secp256k1, SecretKey};

    use super::*;

    #[test]
    fn a_channel_that_was_begun_stays_known_when_its_order_is_over() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("channels.sqlite")).unwrap();
        let book = AwaitedBook::open(store.clone()).unwrap();
        let secret = SecretKey::from_slice(&[7; 32]).unwrap();
        let lsp = PublicKey::from_secret_key(&Secp256k1::new(), &secret);
        let capacity = Amount::from_sat(150_000);
        for hash in [[1; 32], [2; 32]] {
            book.add(hash, Promised::Order { lsp, capacity }, 0)
                .unwrap();
        }
        // The peer opens the one, and has not said its funding when the order ends.
        let begun = book.take_open((&lsp, capacity, 0), &[], 7).unwrap();
        let begun = begun.unwrap().hash;
        let other = if begun == [1; 32] { [2; 32] } else { [1; 32] };
        for hash in [begun, other] {
            book.over(&hash).unwrap();
        }
        for book in [book, AwaitedBook::open(store).unwrap()] {
            assert_eq!(book.by_channel(7).map(|order| order.hash), Some(begun));
            assert!(book.get(&other).is_none());
            let again = book.take_open((&lsp, capacity, 0), &[], 8).unwrap();
            assert!(again.is_none(), "it gives no right to another one");
        }
    }
}
