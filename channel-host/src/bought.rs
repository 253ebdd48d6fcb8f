//! Channels whose price is paid, or held: opened on the host's word, and their funding goes out on its word alone.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, OutPoint, Transaction};
use serde::{Deserialize, Serialize};

use crate::error::NodeError;
use crate::store::{Change, EntryKey, Store};

const SPACE: &str = "superscalar";
const SUBSPACE: &str = "bought";

/// An ordinary channel that somebody bought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoughtChannel {
    /// Its number, drawn at random and never 0: whoever asks for a channel stores it before.
    pub id: u64,
    /// The buyer.
    pub peer: PublicKey,
    /// What it holds, all of it on our side.
    #[serde(with = "bitcoin::amount::serde::as_sat")]
    pub capacity: Amount,
    /// Whether the world is told of it.
    pub announce: bool,
    /// Blocks within which its funding should confirm.
    pub confirm_within: u16,
}

/// How far such a channel is. One that did not come about is not there any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoughtView {
    /// Its number.
    pub id: u64,
    /// Its funding output, once both sides have signed and stored the channel.
    pub outpoint: Option<OutPoint>,
    /// What the funding transaction costs, if that could be told.
    pub fee: Option<Amount>,
    /// Whether the funding was let out: there is no way back from it.
    pub released: bool,
}

/// What is remembered of one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub channel: BoughtChannel,
    /// Until it is in the chain.
    pub funding: Option<Transaction>,
    pub fee_sat: Option<u64>,
    pub outpoint: Option<OutPoint>,
    pub released: bool,
}

impl Record {
    fn view(&self) -> BoughtView {
        BoughtView {
            id: self.channel.id,
            outpoint: self.outpoint,
            fee: self.fee_sat.map(Amount::from_sat),
            released: self.released,
        }
    }
}

fn key(id: u64) -> EntryKey {
    EntryKey::new(SPACE, SUBSPACE, &format!("{id:016x}"))
}

fn unreadable(error: &serde_json::Error) -> NodeError {
    NodeError::Unreadable {
        what: "bought channel",
        cause: error.to_string(),
    }
}

fn put(record: &Record) -> Result<Change, NodeError> {
    let bytes = serde_json::to_vec(record).map_err(|error| unreadable(&error))?;
    Ok(Change::Put(key(record.channel.id), bytes))
}

/// All of a node: on the disk first, then in memory. Those that were paid for are kept for good, or their host could open them again.
pub(crate) struct BoughtBook {
    store: Store,
    channels: Mutex<HashMap<u64, Record>>,
}

impl fmt::Debug for BoughtBook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoughtBook").finish_non_exhaustive()
    }
}

impl BoughtBook {
    pub(crate) fn open(store: Store) -> Result<Self, NodeError> {
        let mut channels = HashMap::new();
        for name in store.names(SPACE, SUBSPACE)? {
            let Some(bytes) = store.get(EntryKey::new(SPACE, SUBSPACE, &name))? else {
                continue;
            };
            let record: Record =
                serde_json::from_slice(&bytes).map_err(|error| unreadable(&error))?;
            channels.insert(record.channel.id, record);
        }
        Ok(Self {
            store,
            channels: Mutex::new(channels),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Record>> {
        // Nothing panics while it is held; and a record is only replaced whole.
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is new.
    pub(crate) fn add(&self, channel: BoughtChannel) -> Result<bool, NodeError> {
        let mut channels = self.lock();
        if channels.contains_key(&channel.id) {
            return Ok(false);
        }
        let record = Record {
            channel,
            funding: None,
            fee_sat: None,
            outpoint: None,
            released: false,
        };
        self.store.write(vec![put(&record)?])?;
        channels.insert(record.channel.id, record);
        Ok(true)
    }

    pub(crate) fn get(&self, id: u64) -> Option<Record> {
        self.lock().get(&id).cloned()
    }

    /// Whose channel this is; ids are never 0.
    pub(crate) fn by_channel(&self, user_channel_id: u128) -> Option<Record> {
        self.get(u64::try_from(user_channel_id).ok()?)
    }

    pub(crate) fn all(&self) -> Vec<Record> {
        self.lock().values().cloned().collect()
    }

    pub(crate) fn views(&self) -> Vec<BoughtView> {
        self.lock().values().map(Record::view).collect()
    }

    /// Changes one, on the disk first; what it is then, if it is still there.
    pub(crate) fn update(
        &self,
        id: u64,
        change: impl FnOnce(&mut Record),
    ) -> Result<Option<Record>, NodeError> {
        let mut channels = self.lock();
        let Some(known) = channels.get(&id) else {
            return Ok(None);
        };
        let mut record = known.clone();
        change(&mut record);
        self.store.write(vec![put(&record)?])?;
        channels.insert(id, record.clone());
        Ok(Some(record))
    }

    /// Forgets one, unless its funding was let out; what it was. Under one lock with [`Self::update`]: nothing is both let out and forgotten.
    pub(crate) fn take_withheld(&self, id: u64) -> Result<Option<Record>, NodeError> {
        let mut channels = self.lock();
        if channels.get(&id).is_none_or(|record| record.released) {
            return Ok(None);
        }
        self.store.write(vec![Change::Remove(key(id))])?;
        Ok(channels.remove(&id))
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::hashes::Hash;

    use super::*;

    const PEER: &str = "02eec7245d6b7d2ccb30380bfbe2a3648cd7a942653f5aa340edcea1f283686619";

    fn channel(id: u64) -> BoughtChannel {
        BoughtChannel {
            id,
            peer: PEER.parse().unwrap(),
            capacity: Amount::from_sat(100_000),
            announce: false,
            confirm_within: 6,
        }
    }

    #[test]
    fn what_was_let_out_is_never_forgotten_and_what_was_not_is_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("channels.sqlite");
        let store = Store::open(&path).unwrap();
        let book = BoughtBook::open(store.clone()).unwrap();
        assert!(book.add(channel(1)).unwrap() && book.add(channel(2)).unwrap());
        assert!(
            !book.add(channel(1)).unwrap(),
            "there is one of this number"
        );
        let outpoint = OutPoint::new(bitcoin::Txid::all_zeros(), 1);
        book.update(1, |record| {
            record.outpoint = Some(outpoint);
            record.released = true;
        })
        .unwrap();
        assert!(book.take_withheld(1).unwrap().is_none());
        assert!(book.take_withheld(2).unwrap().is_some());
        assert!(book.take_withheld(2).unwrap().is_none());
        assert!(book.update(2, |_| {}).unwrap().is_none());
        // As it is on the disk.
        let book = BoughtBook::open(store).unwrap();
        let expected = BoughtView {
            id: 1,
            outpoint: Some(outpoint),
            fee: None,
            released: true,
        };
        assert_eq!(book.views(), [expected]);
        assert!(book.by_channel(u128::MAX).is_none());
    }
}
