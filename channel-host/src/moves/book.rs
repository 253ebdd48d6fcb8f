//! All parts of a node: on the disk first, then in memory.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{PartRecord, PartState, Progress};
use crate::error::NodeError;
use crate::event::PaymentHash;
use crate::leaf::LeafId;
use crate::store::{Change, EntryKey, Store};

const SPACE: &str = "superscalar";
const SUBSPACE: &str = "parts";

fn key(hash: &PaymentHash) -> EntryKey {
    EntryKey::new(SPACE, SUBSPACE, &hash.to_string())
}

fn unreadable(error: &serde_json::Error) -> NodeError {
    // Its words may quote what it read, and that holds secrets.
    NodeError::Unreadable {
        what: "part of a move",
        cause: format!("line {}, column {}", error.line(), error.column()),
    }
}

#[derive(Default)]
struct Parts {
    all: HashMap<PaymentHash, PartRecord>,
    /// Those that are not over, or whose end is untold: few, where all of a month are many.
    open: HashSet<PaymentHash>,
}

impl Parts {
    fn put(&mut self, record: PartRecord) {
        let hash = record.hash();
        if record.is_told() {
            self.open.remove(&hash);
        } else {
            self.open.insert(hash);
        }
        self.all.insert(hash, record);
    }

    fn remove(&mut self, hash: &PaymentHash) {
        self.open.remove(hash);
        self.all.remove(hash);
    }
}

/// The parts of moves.
pub(crate) struct PartBook {
    store: Store,
    parts: Mutex<Parts>,
}

impl fmt::Debug for PartBook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PartBook").finish_non_exhaustive()
    }
}

impl PartBook {
    pub(crate) fn open(store: Store) -> Result<Self, NodeError> {
        let mut parts = Parts::default();
        for name in store.names(SPACE, SUBSPACE)? {
            let Some(bytes) = store.get(EntryKey::new(SPACE, SUBSPACE, &name))? else {
                continue;
            };
            let record: PartRecord =
                serde_json::from_slice(&bytes).map_err(|error| unreadable(&error))?;
            parts.put(record);
        }
        Ok(Self {
            store,
            parts: Mutex::new(parts),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Parts> {
        // Nothing panics while it is held; and a record is only replaced whole.
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, record: &PartRecord) -> Result<(), NodeError> {
        let bytes = serde_json::to_vec(record).map_err(|error| unreadable(&error))?;
        let change = Change::Put(key(&record.hash()), bytes);
        Ok(self.store.write(vec![change])?)
    }

    /// Adds a part, unless its hash is known: then what is known of it.
    pub(crate) fn add(&self, record: PartRecord) -> Result<PartRecord, NodeError> {
        let mut parts = self.lock();
        if let Some(known) = parts.all.get(&record.hash()) {
            return Ok(known.clone());
        }
        self.save(&record)?;
        parts.put(record.clone());
        Ok(record)
    }

    pub(crate) fn get(&self, hash: PaymentHash) -> Option<PartRecord> {
        self.lock().all.get(&hash).cloned()
    }

    pub(crate) fn all(&self) -> Vec<PartRecord> {
        self.lock().all.values().cloned().collect()
    }

    /// Whether one whose preimage the client gave us has such a hash.
    pub(crate) fn any_revealed(&self, is: impl Fn(PaymentHash) -> bool) -> bool {
        let parts = self.lock();
        let mut revealed = parts.all.values().filter(|part| part.preimage.is_some());
        revealed.any(|part| is(part.hash()))
    }

    /// Whether there is an open part from a leaf that fits.
    pub(crate) fn of_leaf(&self, from: LeafId, fits: impl Fn(&PartRecord) -> bool) -> bool {
        let open = self.open_ones();
        open.iter().any(|part| part.from == from && fits(part))
    }

    /// Notes that a part is being paid, unless another from the same leaf is: whether it was noted.
    pub(crate) fn begin(
        &self,
        hash: PaymentHash,
        terms: impl FnOnce(&mut PartRecord),
    ) -> Result<bool, NodeError> {
        let mut parts = self.lock();
        let Some(mut record) = parts.all.get(&hash).cloned() else {
            return Ok(false);
        };
        let mut open = parts.open.iter().filter_map(|hash| parts.all.get(hash));
        let busy = open.any(|part| part.from == record.from && part.is_paid());
        if busy || record.state() != Some(PartState::Agreed) {
            return Ok(false);
        }
        terms(&mut record);
        record.progress = Progress::Under(PartState::Paid);
        self.save(&record)?;
        parts.put(record);
        Ok(true)
    }

    /// Those that are not over, and those whose end is untold.
    pub(crate) fn open_ones(&self) -> Vec<PartRecord> {
        let parts = self.lock();
        let open = parts.open.iter().filter_map(|hash| parts.all.get(hash));
        open.cloned().collect()
    }

    /// Changes a part; stored before anybody sees it. Nothing if there is no such part.
    pub(crate) fn update(
        &self,
        hash: PaymentHash,
        change: impl FnOnce(&mut PartRecord),
    ) -> Result<Option<PartRecord>, NodeError> {
        let mut parts = self.lock();
        let Some(known) = parts.all.get(&hash) else {
            return Ok(None);
        };
        let mut record = known.clone();
        change(&mut record);
        if record != *known {
            self.save(&record)?;
            parts.put(record.clone());
        }
        Ok(Some(record))
    }

    /// Forgets those parts from a leaf that fit.
    pub(crate) fn forget(
        &self,
        from: LeafId,
        fits: impl Fn(&PartRecord) -> bool,
    ) -> Result<(), NodeError> {
        let mut parts = self.lock();
        let of_leaf = parts.all.values().filter(|part| part.from == from);
        let gone: Vec<PaymentHash> = of_leaf
            .filter(|part| fits(part))
            .map(PartRecord::hash)
            .collect();
        if !gone.is_empty() {
            let changes = gone.iter().map(|hash| Change::Remove(key(hash)));
            self.store.write(changes.collect())?;
        }
        gone.iter().for_each(|hash| parts.remove(hash));
        Ok(())
    }
}
