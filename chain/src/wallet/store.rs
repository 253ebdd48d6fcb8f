//! Where the wallet's changes are kept, by whoever owns the database.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use bdk_wallet::ChangeSet;
use bdk_wallet::chain::Merge;

/// Whatever the store's database says.
pub type StoreError = Box<dyn std::error::Error + Send + Sync>;

/// Keeps a wallet's change sets.
///
/// Change sets add up by [`Merge::merge`], in the order in which they were appended, and serialize with serde. They hold no secrets.
#[async_trait]
pub trait ChangeSetStore: Send + Sync + std::fmt::Debug {
    /// All that was appended, merged; `None` if nothing was.
    async fn load(&self) -> Result<Option<ChangeSet>, StoreError>;

    /// Adds one; it is durable when this returns. The same may come twice.
    async fn append(&self, change: &ChangeSet) -> Result<(), StoreError>;
}

/// Keeps the change sets in memory: for tests, and for what need not last.
#[derive(Debug, Default)]
pub struct MemoryStore(Mutex<Option<ChangeSet>>);

#[async_trait]
impl ChangeSetStore for MemoryStore {
    async fn load(&self) -> Result<Option<ChangeSet>, StoreError> {
        Ok(self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone())
    }

    async fn append(&self, change: &ChangeSet) -> Result<(), StoreError> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert_default()
            .merge(change.clone());
        Ok(())
    }
}
