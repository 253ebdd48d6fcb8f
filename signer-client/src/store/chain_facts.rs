//! What the chain says of our factories: confirmed transactions, spent outpoints, payouts.

use async_trait::async_trait;
use bitcoin::consensus::encode::serialize;
use bitcoin::hashes::Hash;
use bitcoin::{Amount, OutPoint, Transaction, Txid};
use factory_tree::units::Height;
use sqlx::sqlite::SqliteRow;
use sqlx::{Sqlite, Transaction as SqlTransaction};

use super::codec::{Columns, outpoint_bytes, sat};
use super::{Result, SqliteStore};

/// A confirmed transaction that concerns a factory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenTx {
    /// The transaction.
    pub tx: Transaction,
    /// Height of its block.
    pub height: Height,
}

/// A watched outpoint spent by a confirmed transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spend {
    /// Which.
    pub outpoint: OutPoint,
    /// By which.
    pub spender: Txid,
    /// Height of its block.
    pub height: Height,
}

/// A confirmed output that pays one of our payout keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payout {
    /// Where it is.
    pub outpoint: OutPoint,
    /// Of which join its key is.
    pub join_nonce: [u8; 16],
    /// How much it is.
    pub amount: Amount,
    /// Height of its block.
    pub height: Height,
    /// What spends it, if a confirmed transaction does.
    pub spent_by: Option<Txid>,
}

/// What one block says of our factories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockFacts {
    /// Transactions that fund, are of, or spend from a factory of ours.
    pub txs: Vec<Transaction>,
    /// Watched outpoints spent.
    pub spends: Vec<(OutPoint, Txid)>,
    /// Outputs to our payout keys: where, how much, of which join.
    pub payouts: Vec<(OutPoint, Amount, [u8; 16])>,
}

impl BlockFacts {
    /// Whether the block does not concern us.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.txs.is_empty() && self.spends.is_empty() && self.payouts.is_empty()
    }
}

/// The chain's facts.
#[async_trait]
pub trait ChainFactStore {
    /// Takes in a block: everything known at its height or above is replaced.
    async fn connect_block(&self, height: Height, facts: &BlockFacts) -> Result<()>;

    /// Forgets everything above `height`.
    async fn rewind_to(&self, height: Height) -> Result<()>;

    /// The highest block with a fact.
    async fn facts_top(&self) -> Result<Height>;

    /// Confirmed transactions.
    async fn seen_txs(&self) -> Result<Vec<SeenTx>>;

    /// Spent outpoints.
    async fn spends(&self) -> Result<Vec<Spend>>;

    /// Confirmed payouts, spent ones included.
    async fn payouts(&self) -> Result<Vec<Payout>>;
}

impl SqliteStore {
    async fn delete_from(
        &self,
        tx: &mut SqlTransaction<'static, Sqlite>,
        height: i64,
    ) -> Result<()> {
        for statement in [
            "DELETE FROM chain_txs WHERE height >= ?",
            "DELETE FROM chain_spends WHERE height >= ?",
            "DELETE FROM payouts WHERE height >= ?",
        ] {
            sqlx::query(statement)
                .bind(height)
                .execute(&mut **tx)
                .await
                .map_err(|error| self.error(error))?;
        }
        Ok(())
    }
}

#[async_trait]
impl ChainFactStore for SqliteStore {
    async fn connect_block(&self, height: Height, facts: &BlockFacts) -> Result<()> {
        let at = i64::from(height.0);
        let mut tx = self.write().await?;
        self.delete_from(&mut tx, at).await?;
        for seen in &facts.txs {
            sqlx::query("INSERT OR REPLACE INTO chain_txs (txid, height, raw) VALUES (?, ?, ?)")
                .bind(seen.compute_txid().to_byte_array().to_vec())
                .bind(at)
                .bind(serialize(seen))
                .execute(&mut *tx)
                .await
                .map_err(|error| self.error(error))?;
        }
        for (outpoint, spender) in &facts.spends {
            sqlx::query(
                "INSERT OR REPLACE INTO chain_spends (outpoint, spender, height) VALUES (?, ?, ?)",
            )
            .bind(outpoint_bytes(outpoint))
            .bind(spender.to_byte_array().to_vec())
            .bind(at)
            .execute(&mut *tx)
            .await
            .map_err(|error| self.error(error))?;
        }
        for (outpoint, amount, join_nonce) in &facts.payouts {
            sqlx::query(
                "INSERT OR REPLACE INTO payouts (outpoint, join_nonce, sat, height) VALUES (?, ?, ?, ?)",
            )
            .bind(outpoint_bytes(outpoint))
            .bind(join_nonce.as_slice())
            .bind(sat(*amount))
            .bind(at)
            .execute(&mut *tx)
            .await
            .map_err(|error| self.error(error))?;
        }
        self.commit(tx).await
    }

    async fn rewind_to(&self, height: Height) -> Result<()> {
        let mut tx = self.write().await?;
        let above = i64::from(height.0).saturating_add(1);
        self.delete_from(&mut tx, above).await?;
        // What was found to be over by then may not be.
        for statement in [
            "UPDATE factories SET closed_height = NULL WHERE closed_height >= ?",
            "UPDATE exits SET done_height = NULL WHERE done_height >= ?",
        ] {
            sqlx::query(statement)
                .bind(above)
                .execute(&mut *tx)
                .await
                .map_err(|error| self.error(error))?;
        }
        self.commit(tx).await
    }

    async fn facts_top(&self) -> Result<Height> {
        let top: Option<i64> = sqlx::query_scalar(
            "SELECT max(height) FROM (SELECT max(height) AS height FROM chain_txs
                UNION ALL SELECT max(height) FROM chain_spends
                UNION ALL SELECT max(height) FROM payouts)",
        )
        .fetch_one(self.pool())
        .await
        .map_err(|error| self.error(error))?;
        Ok(Height(u32::try_from(top.unwrap_or(0)).unwrap_or(u32::MAX)))
    }

    async fn seen_txs(&self) -> Result<Vec<SeenTx>> {
        let rows = sqlx::query("SELECT height, raw FROM chain_txs ORDER BY height")
            .fetch_all(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        let read = |row: &SqliteRow| {
            let row = Columns(row);
            Ok(SeenTx {
                tx: row.transaction("raw")?,
                height: Height(row.number("height")?),
            })
        };
        rows.iter().map(read).collect()
    }

    async fn spends(&self) -> Result<Vec<Spend>> {
        let rows = sqlx::query("SELECT outpoint, spender, height FROM chain_spends")
            .fetch_all(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        let read = |row: &SqliteRow| {
            let row = Columns(row);
            Ok(Spend {
                outpoint: row.outpoint("outpoint")?,
                spender: row.txid("spender")?,
                height: Height(row.number("height")?),
            })
        };
        rows.iter().map(read).collect()
    }

    async fn payouts(&self) -> Result<Vec<Payout>> {
        let rows = sqlx::query(
            "SELECT payouts.outpoint, join_nonce, sat, payouts.height, spender FROM payouts
             LEFT JOIN chain_spends ON chain_spends.outpoint = payouts.outpoint
             ORDER BY payouts.height, payouts.outpoint",
        )
        .fetch_all(self.pool())
        .await
        .map_err(|error| self.error(error))?;
        let read = |row: &SqliteRow| {
            let row = Columns(row);
            let spender = row.maybe_bytes("spender")?;
            Ok(Payout {
                outpoint: row.outpoint("outpoint")?,
                join_nonce: row.array("join_nonce")?,
                amount: row.amount("sat")?,
                height: Height(row.number("height")?),
                spent_by: spender.and_then(|bytes| Txid::from_slice(&bytes).ok()),
            })
        };
        rows.iter().map(read).collect()
    }
}
