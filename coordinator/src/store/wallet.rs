//! The on-chain wallet's change sets.

use async_trait::async_trait;
use chain::wallet::{ChangeSet, ChangeSetStore, Merge, StoreError as WalletStoreError};

use super::{Result, Store, StoreError, codec};

#[async_trait]
impl ChangeSetStore for Store {
    async fn load(&self) -> Result<Option<ChangeSet>, WalletStoreError> {
        Ok(self.load_wallet().await?)
    }

    async fn append(&self, change: &ChangeSet) -> Result<(), WalletStoreError> {
        let change = codec::json("wallet change", change)?;
        self.write(async |tx| {
            sqlx::query("INSERT INTO wallet_change (change) VALUES (?)")
                .bind(change.into_bytes())
                .execute(tx)
                .await?;
            Ok(())
        })
        .await?;
        Ok(())
    }
}

impl Store {
    /// Adds everything up, and stores the sum in place of the parts.
    async fn load_wallet(&self) -> Result<Option<ChangeSet>> {
        self.write(async |tx| {
            let rows: Vec<Vec<u8>> =
                sqlx::query_scalar("SELECT change FROM wallet_change ORDER BY id")
                    .fetch_all(&mut *tx)
                    .await?;
            let mut sum: Option<ChangeSet> = None;
            for row in &rows {
                let change: ChangeSet = codec::from_json("wallet change", row)?;
                match &mut sum {
                    Some(sum) => sum.merge(change),
                    None => sum = Some(change),
                }
            }
            if let Some(sum) = sum.as_ref().filter(|_| rows.len() > 1) {
                let text =
                    serde_json::to_vec(sum).map_err(|error| StoreError::value("wallet", error))?;
                sqlx::query("DELETE FROM wallet_change")
                    .execute(&mut *tx)
                    .await?;
                sqlx::query("INSERT INTO wallet_change (change) VALUES (?)")
                    .bind(text)
                    .execute(&mut *tx)
                    .await?;
            }
            Ok(sum)
        })
        .await
    }
}
