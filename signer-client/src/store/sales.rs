//! Sales that this client signs: what was signed for, until it is in the exit kit.

use async_trait::async_trait;
use factory_tree::guard::SignedRecord;
use factory_tree::ids::FactoryId;
use factory_tree::sale::cosigner::PendingSale;
use sqlx::sqlite::SqliteRow;

use super::codec::{Columns, unreadable};
use super::{Result, SqliteStore, StoreError};

/// Sales under way.
#[async_trait]
pub trait SaleStore {
    /// Records signatures on a sale as [`super::SignedStore::record_signed`] does, and in the same step what they are for, in place of what
    /// an earlier attempt of this sale left.
    async fn record_sale(
        &self,
        records: &[SignedRecord],
        factory: FactoryId,
        pending: &PendingSale,
    ) -> Result<()>;

    /// Puts a kit in the place of the factory's. What was signed and is not in it never will be: the guard signs a stock away once.
    async fn replace_kit(&self, factory: FactoryId, kit: &[u8]) -> Result<()>;

    /// What was signed and is in no kit yet.
    async fn pending_sales(&self) -> Result<Vec<(FactoryId, PendingSale)>>;
}

#[async_trait]
impl SaleStore for SqliteStore {
    async fn record_sale(
        &self,
        records: &[SignedRecord],
        factory: FactoryId,
        pending: &PendingSale,
    ) -> Result<()> {
        let text = serde_json::to_string(pending).map_err(|_| unreadable("pending sale"))?;
        let mut tx = self.write().await?;
        self.insert_signed(&mut tx, records).await?;
        sqlx::query(
            "INSERT INTO pending_sales (sale, factory_id, pending) VALUES (?, ?, ?)
             ON CONFLICT (sale) DO UPDATE SET factory_id = excluded.factory_id, pending = excluded.pending",
        )
        .bind(pending.sale.id.0.as_slice())
        .bind(factory.0.as_slice())
        .bind(text)
        .execute(&mut *tx)
        .await
        .map_err(|error| self.error(error))?;
        self.bump_epoch(&mut tx).await?;
        self.commit(tx).await
    }

    async fn replace_kit(&self, factory: FactoryId, kit: &[u8]) -> Result<()> {
        let mut tx = self.write().await?;
        let done = sqlx::query("UPDATE kits SET kit = ? WHERE factory_id = ?")
            .bind(kit)
            .bind(factory.0.as_slice())
            .execute(&mut *tx)
            .await
            .map_err(|error| self.error(error))?;
        if done.rows_affected() == 0 {
            return Err(StoreError::NoFactory(factory));
        }
        sqlx::query("DELETE FROM pending_sales WHERE factory_id = ?")
            .bind(factory.0.as_slice())
            .execute(&mut *tx)
            .await
            .map_err(|error| self.error(error))?;
        // A backup from before would publish what the newer poisons punish.
        self.bump_epoch(&mut tx).await?;
        self.commit(tx).await
    }

    async fn pending_sales(&self) -> Result<Vec<(FactoryId, PendingSale)>> {
        let rows = sqlx::query("SELECT * FROM pending_sales ORDER BY rowid")
            .fetch_all(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        rows.iter().map(read).collect()
    }
}

fn read(row: &SqliteRow) -> Result<(FactoryId, PendingSale)> {
    let row = Columns(row);
    let pending = serde_json::from_str(&row.text("pending")?);
    Ok((
        FactoryId(row.array("factory_id")?),
        pending.map_err(|_| unreadable("pending sale"))?,
    ))
}
