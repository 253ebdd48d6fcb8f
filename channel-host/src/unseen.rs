//! Payments over channels whose funding nobody has seen: whoever opened such a channel may never have paid for it, and would keep the payment. They
//! are held, here with what it takes to claim them, until the funding is in the mempool or a block.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bitcoin::{OutPoint, Transaction, TxOut};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::error::NodeError;
use crate::event::PaymentHash;
use crate::pay::ClaimRefusal;
use crate::store::{Change, EntryKey, Store};

const SPACE: &str = "superscalar";
const SUBSPACE: &str = "unseen";

/// A funding output, as its channel must have it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Funding {
    pub outpoint: OutPoint,
    pub txout: TxOut,
}

impl Funding {
    /// Whether this transaction has it: not only the transaction that the peer named, but one that pays the channel.
    pub(crate) fn is_in(&self, transaction: &Transaction) -> bool {
        let OutPoint { txid, vout } = self.outpoint;
        let output = usize::try_from(vout)
            .ok()
            .and_then(|vout| transaction.output.get(vout));
        transaction.compute_txid() == txid && output == Some(&self.txout)
    }
}

/// What becomes of a payment that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is claimed, or its host is told of it.
    Take,
    /// It waits.
    Wait,
    /// It goes back.
    SendBack(ClaimRefusal),
}

/// `verdict`: what the leaves say that parts of it came over; `last`: the height at which LDK sends it back by itself.
pub(crate) const fn fate(
    verdict: Result<(), ClaimRefusal>,
    is_unseen: bool,
    height: u32,
    last: u32,
) -> Fate {
    match verdict {
        Err(reason) => Fate::SendBack(reason),
        Ok(()) if height >= last => Fate::SendBack(ClaimRefusal::Unfunded),
        Ok(()) if is_unseen => Fate::Wait,
        Ok(()) => Fate::Take,
    }
}

/// A payment that is held.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unseen {
    pub hash: [u8; 32],
    pub amount_msat: u64,
    /// LDK has it beside in the same file, and tells it once. Without it the payment is its host's to claim.
    pub preimage: Option<[u8; 32]>,
    /// The channels it came over, by their numbers (big-endian), and when it expires there.
    pub parts: Vec<(Option<[u8; 16]>, u32)>,
}

impl fmt::Debug for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unseen")
            .field("hash", &PaymentHash(self.hash))
            .field("parts", &self.parts)
            .finish_non_exhaustive()
    }
}

fn key(hash: &[u8; 32]) -> EntryKey {
    EntryKey::new(SPACE, SUBSPACE, &PaymentHash(*hash).to_string())
}

fn unreadable(error: &serde_json::Error) -> NodeError {
    NodeError::Unreadable {
        what: "payment whose channel's funding was not seen",
        cause: error.to_string(),
    }
}

/// All of them, on the disk first, and what was seen at the last look.
pub(crate) struct UnseenBook {
    store: Store,
    payments: Mutex<HashMap<[u8; 32], Unseen>>,
    seen: Mutex<HashSet<Funding>>,
    /// Something new is to be looked for.
    pub wake: Notify,
}

impl fmt::Debug for UnseenBook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnseenBook").finish_non_exhaustive()
    }
}

// Nothing panics while one of these is held; and what is in them is only replaced whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl UnseenBook {
    pub(crate) fn open(store: Store) -> Result<Self, NodeError> {
        let mut payments = HashMap::new();
        for name in store.names(SPACE, SUBSPACE)? {
            let Some(bytes) = store.get(EntryKey::new(SPACE, SUBSPACE, &name))? else {
                continue;
            };
            let payment: Unseen =
                serde_json::from_slice(&bytes).map_err(|error| unreadable(&error))?;
            payments.insert(payment.hash, payment);
        }
        Ok(Self {
            store,
            payments: Mutex::new(payments),
            seen: Mutex::default(),
            wake: Notify::new(),
        })
    }

    /// Adds one; the same again changes nothing.
    pub(crate) fn add(&self, payment: Unseen) -> Result<(), NodeError> {
        let mut payments = lock(&self.payments);
        let bytes = serde_json::to_vec(&payment).map_err(|error| unreadable(&error))?;
        self.store
            .write(vec![Change::Put(key(&payment.hash), bytes)])?;
        payments.insert(payment.hash, payment);
        self.wake.notify_one();
        Ok(())
    }

    /// It is claimed, or went back.
    pub(crate) fn remove(&self, hash: &[u8; 32]) -> Result<(), NodeError> {
        let mut payments = lock(&self.payments);
        if payments.contains_key(hash) {
            self.store.write(vec![Change::Remove(key(hash))])?;
            payments.remove(hash);
        }
        Ok(())
    }

    pub(crate) fn all(&self) -> Vec<Unseen> {
        lock(&self.payments).values().cloned().collect()
    }

    /// What a look has found; what it has not is unseen again.
    pub(crate) fn found(&self, seen: HashSet<Funding>) {
        *lock(&self.seen) = seen;
    }

    pub(crate) fn has_seen(&self, funding: &Funding) -> bool {
        lock(&self.seen).contains(funding)
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::absolute::LockTime;
    use bitcoin::transaction::Version;
    use bitcoin::{Amount, ScriptBuf};

    use super::*;

    fn output(sat: u64, script: &[u8]) -> TxOut {
        TxOut {
            value: Amount::from_sat(sat),
            script_pubkey: ScriptBuf::from_bytes(script.to_vec()),
        }
    }

    fn transaction(output: Vec<TxOut>) -> Transaction {
        Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: Vec::new(),
            output,
        }
    }

    /// The funding of a channel, at this output of this transaction.
    fn funding(transaction: &Transaction, vout: u32) -> Funding {
        Funding {
            outpoint: OutPoint::new(transaction.compute_txid(), vout),
            txout: output(600_000, &[1]),
        }
    }

    fn payment() -> Unseen {
        Unseen {
            hash: [7; 32],
            amount_msat: 5_000,
            preimage: Some([8; 32]),
            parts: vec![(Some(9u128.to_be_bytes()), 200), (None, 201)],
        }
    }

    #[test]
    fn what_is_not_seen_waits_until_it_goes_back() {
        let no_leaf = Ok(());
        assert_eq!(fate(no_leaf, true, 99, 100), Fate::Wait);
        assert_eq!(fate(no_leaf, false, 99, 100), Fate::Take);
        let late = Fate::SendBack(ClaimRefusal::Unfunded);
        assert_eq!(fate(no_leaf, true, 100, 100), late);
        // LDK has sent it back by then.
        assert_eq!(fate(no_leaf, false, 100, 100), late);
        let gated = Err(ClaimRefusal::Gated);
        let refused = Fate::SendBack(ClaimRefusal::Gated);
        assert_eq!(fate(gated, true, 99, 100), refused);
        assert_eq!(fate(gated, false, 99, 100), refused);
    }

    #[test]
    fn a_funding_pays_the_channel() {
        let good = transaction(vec![output(1, &[2]), output(600_000, &[1])]);
        assert!(funding(&good, 1).is_in(&good));
        assert!(!funding(&good, 0).is_in(&good));
        assert!(!funding(&good, 2).is_in(&good));
        let other = transaction(vec![output(2, &[2]), output(600_000, &[1])]);
        assert!(!funding(&good, 1).is_in(&other));
        let less = transaction(vec![output(599_999, &[1])]);
        assert!(!funding(&less, 0).is_in(&less));
        let elsewhere = transaction(vec![output(600_000, &[2])]);
        assert!(!funding(&elsewhere, 0).is_in(&elsewhere));
    }

    #[test]
    fn what_is_held_survives_and_its_preimage_is_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("channels.sqlite");
        let store = Store::open(&path).unwrap();
        let book = UnseenBook::open(store.clone()).unwrap();
        book.add(payment()).unwrap();
        book.add(payment()).unwrap();
        let again = UnseenBook::open(store.clone()).unwrap();
        assert_eq!(again.all(), [payment()]);
        assert!(!format!("{:?}", again.all()).contains("8, 8"));
        again.remove(&[7; 32]).unwrap();
        again.remove(&[7; 32]).unwrap();
        assert!(again.all().is_empty());
        assert!(UnseenBook::open(store).unwrap().all().is_empty());
    }

    #[test]
    fn what_is_gone_is_unseen_again() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("channels.sqlite")).unwrap();
        let book = UnseenBook::open(store).unwrap();
        let there = transaction(vec![output(600_000, &[1])]);
        let funding = funding(&there, 0);
        assert!(!book.has_seen(&funding));
        book.found(HashSet::from([funding.clone()]));
        assert!(book.has_seen(&funding));
        book.found(HashSet::new());
        assert!(!book.has_seen(&funding));
    }
}
