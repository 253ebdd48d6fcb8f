//! The on-chain wallet's change sets.

use async_trait::async_trait;
use chain::wallet::{ChangeSet, ChangeSetStore, Merge, StoreError as WalletStoreError};

use super::codec::unreadable;
use super::{Result, SharedStore, SqliteStore};

/// Rows after which the change sets are merged into one when they are next read.
const COMPACT_ABOVE: usize = 64;

/// Change sets as text, in order.
#[async_trait]
pub trait WalletStore {
    /// All of them, with their numbers.
    async fn wallet_changes(&self) -> Result<Vec<(i64, String)>>;

    /// Adds one.
    async fn append_wallet_change(&self, change: &str) -> Result<()>;

    /// Replaces all up to number `last` by one that merges them.
    async fn merge_wallet_changes(&self, last: i64, merged: &str) -> Result<()>;
}

#[async_trait]
impl WalletStore for SqliteStore {
    async fn wallet_changes(&self) -> Result<Vec<(i64, String)>> {
        sqlx::query_as("SELECT id, change FROM wallet_changes ORDER BY id")
            .fetch_all(self.pool())
            .await
            .map_err(|error| self.error(error))
    }

    async fn append_wallet_change(&self, change: &str) -> Result<()> {
        sqlx::query("INSERT INTO wallet_changes (change) VALUES (?)")
            .bind(change)
            .execute(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        Ok(())
    }

    async fn merge_wallet_changes(&self, last: i64, merged: &str) -> Result<()> {
        let mut tx = self.write().await?;
        sqlx::query("DELETE FROM wallet_changes WHERE id < ?")
            .bind(last)
            .execute(&mut *tx)
            .await
            .map_err(|error| self.error(error))?;
        sqlx::query("UPDATE wallet_changes SET change = ? WHERE id = ?")
            .bind(merged)
            .bind(last)
            .execute(&mut *tx)
            .await
            .map_err(|error| self.error(error))?;
        self.commit(tx).await
    }
}

/// The chain crate's wallet on our store.
#[derive(Clone, Debug)]
pub struct WalletChanges {
    store: SharedStore,
}

impl WalletChanges {
    /// Over this store.
    #[must_use]
    pub fn new(store: SharedStore) -> Self {
        Self { store }
    }

    async fn merged(&self) -> Result<Option<ChangeSet>> {
        let rows = self.store.wallet_changes().await?;
        let Some(last) = rows.last().map(|(id, _)| *id) else {
            return Ok(None);
        };
        let mut all = ChangeSet::default();
        for (_, change) in &rows {
            let change = serde_json::from_str(change).map_err(|_| unreadable("wallet change"))?;
            Merge::merge(&mut all, change);
        }
        if rows.len() > COMPACT_ABOVE {
            let merged = serde_json::to_string(&all).map_err(|_| unreadable("wallet change"))?;
            self.store.merge_wallet_changes(last, &merged).await?;
        }
        Ok(Some(all))
    }
}

#[async_trait]
impl ChangeSetStore for WalletChanges {
    async fn load(&self) -> Result<Option<ChangeSet>, WalletStoreError> {
        Ok(self.merged().await?)
    }

    async fn append(&self, change: &ChangeSet) -> Result<(), WalletStoreError> {
        let text = serde_json::to_string(change)?;
        Ok(self.store.append_wallet_change(&text).await?)
    }
}
