//! All leaves of a node: on the disk first, then in memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bitcoin::{Block, OutPoint, Txid};
use lightning::ln::types::ChannelId;

use super::{LeafId, Record, SpendKind};
use crate::error::NodeError;
use crate::store::{Change, EntryKey, Store};

const SPACE: &str = "superscalar";
const SUBSPACE: &str = "leaves";

/// What a block, or the loss of one, means for a leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ChainNews {
    Confirmed(LeafId, u32),
    Unconfirmed(LeafId),
    Spent(LeafId, SpendKind, Txid, u32),
}

/// The leaves, and the height they are judged at.
#[derive(Debug)]
pub(crate) struct Book {
    store: Store,
    height: AtomicU32,
    leaves: Mutex<HashMap<LeafId, Record>>,
}

impl Book {
    pub(crate) fn open(store: Store) -> Result<Self, NodeError> {
        let mut leaves = HashMap::new();
        for name in store.names(SPACE, SUBSPACE)? {
            let Some(bytes) = store.get(EntryKey::new(SPACE, SUBSPACE, &name))? else {
                continue;
            };
            let record: Record =
                serde_json::from_slice(&bytes).map_err(|error| NodeError::Unreadable {
                    what: "leaf",
                    cause: error.to_string(),
                })?;
            leaves.insert(record.id, record);
        }
        Ok(Self {
            store,
            height: AtomicU32::new(0),
            leaves: Mutex::new(leaves),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<LeafId, Record>> {
        // Nothing panics while it is held; and a record is only replaced whole.
        self.leaves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, record: &Record) -> Result<(), NodeError> {
        let bytes = serde_json::to_vec(record).map_err(|error| NodeError::Unreadable {
            what: "leaf",
            cause: error.to_string(),
        })?;
        let key = EntryKey::new(SPACE, SUBSPACE, &record.id.to_string());
        Ok(self.store.write(vec![Change::Put(key, bytes)])?)
    }

    pub(crate) fn height(&self) -> u32 {
        self.height.load(Ordering::Acquire)
    }

    pub(crate) fn set_height(&self, height: u32) {
        self.height.store(height, Ordering::Release);
    }

    /// Adds a leaf; the same again changes nothing. Neither its id nor its channel id may have served another.
    pub(crate) fn add(&self, record: Record) -> Result<(), NodeError> {
        let mut leaves = self.lock();
        let used = NodeError::LeafUsed { leaf: record.id };
        if let Some(known) = leaves.get(&record.id) {
            let same = known.outpoint == record.outpoint
                && known.channel_id == record.channel_id
                && known.peer == record.peer
                && known.redeem_script == record.redeem_script
                && known.capacity == record.capacity;
            return if same && known.stage.is_unused() {
                Ok(())
            } else {
                Err(used)
            };
        }
        if leaves
            .values()
            .any(|known| known.channel_id == record.channel_id)
        {
            return Err(used);
        }
        self.save(&record)?;
        leaves.insert(record.id, record);
        Ok(())
    }

    pub(crate) fn get(&self, id: LeafId) -> Option<Record> {
        self.lock().get(&id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Record> {
        self.lock().values().cloned().collect()
    }

    fn find(&self, fits: impl Fn(&Record) -> bool) -> Option<Record> {
        self.lock().values().find(|record| fits(record)).cloned()
    }

    pub(crate) fn by_channel(&self, channel_id: u128) -> Option<Record> {
        self.find(|record| record.channel_id() == channel_id)
    }

    pub(crate) fn by_temporary_id(&self, id: ChannelId) -> Option<Record> {
        self.find(|record| record.id.temporary_id() == id)
    }

    pub(crate) fn by_ldk_id(&self, id: ChannelId) -> Option<Record> {
        self.find(|record| record.ldk_id == Some(id.0))
    }

    pub(crate) fn by_outpoint(&self, outpoint: OutPoint) -> Option<Record> {
        self.find(|record| record.outpoint == outpoint)
    }

    /// Changes a leaf; stored before anybody sees it.
    pub(crate) fn update(
        &self,
        id: LeafId,
        change: impl FnOnce(&mut Record),
    ) -> Result<Record, NodeError> {
        let mut leaves = self.lock();
        let known = leaves
            .get_mut(&id)
            .ok_or(NodeError::UnknownLeaf { leaf: id })?;
        let mut record = known.clone();
        change(&mut record);
        if record != *known {
            self.save(&record)?;
            *known = record.clone();
        }
        Ok(record)
    }

    /// Forgets a leaf's place in a chain that is gone at and above `height`.
    pub(crate) fn rewind(&self, height: u32) -> Result<Vec<ChainNews>, NodeError> {
        let mut news = Vec::new();
        for record in self.all() {
            let lost = record.confirmed_at.is_some_and(|at| at >= height);
            let unspent = record.spent.is_some_and(|(_, _, at)| at >= height);
            if lost || unspent {
                self.update(record.id, |record| {
                    if lost {
                        record.confirmed_at = None;
                    }
                    if unspent {
                        record.spent = None;
                    }
                })?;
            }
            if lost {
                news.push(ChainNews::Unconfirmed(record.id));
            }
        }
        Ok(news)
    }

    /// Looks for our leaves in a block; seeing a block twice changes nothing.
    pub(crate) fn scan(&self, block: &Block, height: u32) -> Result<Vec<ChainNews>, NodeError> {
        // Several leaves may share one leaf transaction.
        let (mut txids, mut by_outpoint) = (HashMap::<Txid, Vec<LeafId>>::new(), HashMap::new());
        for record in self.lock().values() {
            txids
                .entry(record.outpoint.txid)
                .or_default()
                .push(record.id);
            by_outpoint.insert(record.outpoint, record.id);
        }
        let mut news = Vec::new();
        if txids.is_empty() {
            return Ok(news);
        }
        for transaction in &block.txdata {
            let txid = transaction.compute_txid();
            for id in txids.get(&txid).into_iter().flatten() {
                self.update(*id, |record| record.confirmed_at = Some(height))?;
                news.push(ChainNews::Confirmed(*id, height));
            }
            for input in &transaction.input {
                let Some(id) = by_outpoint.get(&input.previous_output) else {
                    continue;
                };
                let record = self.update(*id, |record| {
                    record.spent = Some((record.kind_of(transaction), txid, height));
                })?;
                if let Some((kind, txid, height)) = record.spent {
                    news.push(ChainNews::Spent(*id, kind, txid, height));
                }
            }
        }
        Ok(news)
    }
}
