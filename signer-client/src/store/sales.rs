//! Sales that this client signs: what was signed for, until it is in the exit kit.

use async_trait::async_trait;
use factory_tree::guard::SignedRecord;
use factory_tree::ids::{FactoryId, LeafId, SaleId};
use factory_tree::sale::cosigner::PendingSale;
use factory_tree::units::Height;
use sqlx::sqlite::SqliteRow;

use super::codec::{Columns, unreadable};
use super::{Result, SqliteStore, StoreError};

/// An offer that only a coordinator makes that cheats: to sell on other terms what this wallet had signed away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedSale {
    /// The factory.
    pub factory: FactoryId,
    /// What was offered, and in the place of what.
    pub found: String,
    /// The tip then; 0 if it was not known.
    pub height: Height,
}

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

    /// The leaf of this wallet's next bonus channel in a factory, if one was drawn.
    async fn bonus_place(&self, factory: FactoryId) -> Result<Option<LeafId>>;

    /// Remembers one that was drawn; the oldest that were offered, and came to nothing or to a kit long ago, are forgotten, and serve no more.
    async fn draw_bonus_place(&self, factory: FactoryId, leaf: LeafId) -> Result<()>;

    /// A sale is to make a bonus channel on this leaf, and no other sale ever is; false: it was not drawn for this factory, or serves another.
    async fn take_bonus_place(
        &self,
        factory: FactoryId,
        leaf: LeafId,
        sale: SaleId,
    ) -> Result<bool>;

    /// Remembers that something was to be sold twice. The first time counts for its factory.
    async fn add_refused_sale(&self, row: &RefusedSale) -> Result<()>;

    /// What was to be sold twice.
    async fn refused_sales(&self) -> Result<Vec<RefusedSale>>;
}

/// Places of a factory that are remembered after they were offered: as many as there can be sales, and some that came to nothing.
const OFFERED: u32 = 16;

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

    async fn bonus_place(&self, factory: FactoryId) -> Result<Option<LeafId>> {
        let row =
            sqlx::query("SELECT leaf_id FROM bonus_places WHERE factory_id = ? AND sale IS NULL")
                .bind(factory.0.as_slice())
                .fetch_optional(self.pool())
                .await
                .map_err(|error| self.error(error))?;
        row.map(|row| Ok(LeafId(Columns(&row).array("leaf_id")?)))
            .transpose()
    }

    async fn draw_bonus_place(&self, factory: FactoryId, leaf: LeafId) -> Result<()> {
        let mut tx = self.write().await?;
        sqlx::query(
            "DELETE FROM bonus_places WHERE factory_id = ?1 AND number NOT IN
             (SELECT number FROM bonus_places WHERE factory_id = ?1 ORDER BY number DESC LIMIT ?2)",
        )
        .bind(factory.0.as_slice())
        .bind(OFFERED)
        .execute(&mut *tx)
        .await
        .map_err(|error| self.error(error))?;
        sqlx::query("INSERT INTO bonus_places (leaf_id, factory_id) VALUES (?, ?)")
            .bind(leaf.0.as_slice())
            .bind(factory.0.as_slice())
            .execute(&mut *tx)
            .await
            .map_err(|error| self.error(error))?;
        self.bump_epoch(&mut tx).await?;
        self.commit(tx).await
    }

    async fn take_bonus_place(
        &self,
        factory: FactoryId,
        leaf: LeafId,
        sale: SaleId,
    ) -> Result<bool> {
        let mut tx = self.write().await?;
        let done = sqlx::query(
            "UPDATE bonus_places SET sale = ?1 WHERE factory_id = ?2 AND leaf_id = ?3 AND (sale IS NULL OR sale = ?1)",
        )
        .bind(sale.0.as_slice())
        .bind(factory.0.as_slice())
        .bind(leaf.0.as_slice())
        .execute(&mut *tx)
        .await
        .map_err(|error| self.error(error))?;
        // A backup from before would give the place away a second time.
        self.bump_epoch(&mut tx).await?;
        self.commit(tx).await?;
        Ok(done.rows_affected() > 0)
    }

    async fn add_refused_sale(&self, row: &RefusedSale) -> Result<()> {
        sqlx::query(
            "INSERT INTO refused_sales (factory_id, found, height) VALUES (?, ?, ?)
             ON CONFLICT (factory_id) DO NOTHING",
        )
        .bind(row.factory.0.as_slice())
        .bind(row.found.as_str())
        .bind(i64::from(row.height.0))
        .execute(self.pool())
        .await
        .map_err(|error| self.error(error))?;
        Ok(())
    }

    async fn refused_sales(&self) -> Result<Vec<RefusedSale>> {
        let rows = sqlx::query("SELECT * FROM refused_sales ORDER BY rowid")
            .fetch_all(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        let read = |row: &SqliteRow| {
            let row = Columns(row);
            Ok(RefusedSale {
                factory: FactoryId(row.array("factory_id")?),
                found: row.text("found")?,
                height: Height(row.number("height")?),
            })
        };
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
