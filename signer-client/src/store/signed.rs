//! The double-sign guard's memory (protocol.md section 5).

use async_trait::async_trait;
use bitcoin::OutPoint;
use factory_tree::guard::SignedRecord;
use sqlx::sqlite::SqliteRow;
use sqlx::{Sqlite, Transaction as SqlTransaction};

use super::codec::{Columns, outpoint_bytes, unreadable};
use super::{Result, SqliteStore, StoreError};

/// What was ever signed.
#[async_trait]
pub trait SignedStore {
    /// All records of these outpoints.
    async fn signed(&self, outpoints: &[OutPoint]) -> Result<Vec<SignedRecord>>;

    /// Records signatures, with the partials that go out, before they are sent: all or none. A
    /// record of the same sighash takes the new session's nonces and partial; one of another
    /// sighash fails the whole with [`StoreError::DoubleSign`].
    async fn record_signed(&self, records: &[SignedRecord]) -> Result<()>;
}

#[async_trait]
impl SignedStore for SqliteStore {
    async fn signed(&self, outpoints: &[OutPoint]) -> Result<Vec<SignedRecord>> {
        let mut connection = self
            .pool()
            .acquire()
            .await
            .map_err(|error| self.error(error))?;
        let mut records = Vec::new();
        for outpoint in outpoints {
            let rows = sqlx::query("SELECT * FROM signed_records WHERE outpoint = ?")
                .bind(outpoint_bytes(outpoint))
                .fetch_all(&mut *connection)
                .await
                .map_err(|error| self.error(error))?;
            for row in &rows {
                records.push(read(row)?);
            }
        }
        Ok(records)
    }

    async fn record_signed(&self, records: &[SignedRecord]) -> Result<()> {
        let mut tx = self.write().await?;
        self.insert_signed(&mut tx, records).await?;
        self.bump_epoch(&mut tx).await?;
        self.commit(tx).await
    }
}

impl SqliteStore {
    /// The records alone, for what is to be stored together with them.
    pub(super) async fn insert_signed(
        &self,
        tx: &mut SqlTransaction<'static, Sqlite>,
        records: &[SignedRecord],
    ) -> Result<()> {
        for record in records {
            // The condition is what refuses: a row of another sighash is neither inserted nor changed.
            let done = sqlx::query(
                "INSERT INTO signed_records (outpoint, purpose, sighash, own_nonce, sum, partial)
                 VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (outpoint, purpose) DO UPDATE
                 SET own_nonce = excluded.own_nonce, sum = excluded.sum, partial = excluded.partial
                 WHERE sighash = excluded.sighash",
            )
            .bind(outpoint_bytes(&record.outpoint))
            .bind(record.purpose.to_string())
            .bind(record.sighash.as_slice())
            .bind(record.own_nonce.as_slice())
            .bind(record.sum.as_slice())
            .bind(record.partial.as_slice())
            .execute(&mut **tx)
            .await
            .map_err(|error| self.error(error))?;
            if done.rows_affected() == 0 {
                return Err(StoreError::DoubleSign {
                    outpoint: record.outpoint,
                    purpose: record.purpose.to_string(),
                });
            }
        }
        Ok(())
    }
}

fn read(row: &SqliteRow) -> Result<SignedRecord> {
    let row = Columns(row);
    Ok(SignedRecord {
        outpoint: row.outpoint("outpoint")?,
        purpose: row
            .text("purpose")?
            .parse()
            .map_err(|_| unreadable("purpose"))?,
        sighash: row.array("sighash")?,
        own_nonce: row.array("own_nonce")?,
        sum: row.array("sum")?,
        partial: row.array("partial")?,
    })
}
