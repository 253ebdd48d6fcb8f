//! Every join ever made.

use async_trait::async_trait;
use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, OutPoint, ScriptBuf};
use factory_tree::ceremony::message::Round;
use factory_tree::ids::{Attempt, CeremonyId, LeafId};
use sqlx::sqlite::SqliteRow;

use super::codec::{Columns, outpoint_bytes, sat, unreadable};
use super::{Result, SqliteStore, StoreError};

/// One join: what all its keys grow from, and what they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinRow {
    /// What the keys derive from, with the seed.
    pub join_nonce: [u8; 16],
    /// The attempt joined.
    pub round: Round,
    /// The channel's leaf id.
    pub leaf_id: LeafId,
    /// Factory key.
    pub factory_key: PublicKey,
    /// Channel funding key.
    pub channel_key: PublicKey,
    /// Where timeouts pay.
    pub payout_script: ScriptBuf,
    /// The funding input common to all attempts of the ceremony.
    pub common_pin: OutPoint,
    /// Capacity asked for.
    pub capacity: Amount,
}

/// Joins.
#[async_trait]
pub trait JoinStore {
    /// Remembers a join before it is sent. Fails with [`StoreError::Reused`] if any of its keys,
    /// its script, its leaf id or its nonce served before.
    async fn record_join(&self, join: &JoinRow) -> Result<()>;

    /// All joins of a ceremony.
    async fn joins_of(&self, ceremony: CeremonyId) -> Result<Vec<JoinRow>>;

    /// Every join.
    async fn joins(&self) -> Result<Vec<JoinRow>>;
}

#[async_trait]
impl JoinStore for SqliteStore {
    async fn record_join(&self, join: &JoinRow) -> Result<()> {
        let mut tx = self.write().await?;
        sqlx::query(
            "INSERT INTO joins (join_nonce, ceremony, attempt, leaf_id, factory_key, channel_key,
                payout_script, common_pin, capacity_sat) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(join.join_nonce.as_slice())
        .bind(join.round.ceremony.0.as_slice())
        .bind(i64::from(join.round.attempt.0))
        .bind(join.leaf_id.0.as_slice())
        .bind(join.factory_key.serialize().as_slice())
        .bind(join.channel_key.serialize().as_slice())
        .bind(join.payout_script.as_bytes())
        .bind(outpoint_bytes(&join.common_pin))
        .bind(sat(join.capacity))
        .execute(&mut *tx)
        .await
        .map_err(|error| match error.as_database_error() {
            Some(database) if database.is_unique_violation() => StoreError::Reused {
                what: reused(database.message()),
            },
            _ => self.error(error),
        })?;
        self.bump_epoch(&mut tx).await?;
        self.commit(tx).await
    }

    async fn joins_of(&self, ceremony: CeremonyId) -> Result<Vec<JoinRow>> {
        let rows = sqlx::query("SELECT * FROM joins WHERE ceremony = ? ORDER BY attempt")
            .bind(ceremony.0.as_slice())
            .fetch_all(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        rows.iter().map(read).collect()
    }

    async fn joins(&self) -> Result<Vec<JoinRow>> {
        let rows = sqlx::query("SELECT * FROM joins ORDER BY ceremony, attempt")
            .fetch_all(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        rows.iter().map(read).collect()
    }
}

/// "UNIQUE constraint failed: joins.leaf_id" names the column.
pub(super) fn reused(message: &str) -> String {
    let column = message.rsplit('.').next().unwrap_or("a key");
    column.trim().replace('_', " ")
}

fn read(row: &SqliteRow) -> Result<JoinRow> {
    let row = Columns(row);
    let key = |name: &'static str| -> Result<PublicKey> {
        PublicKey::from_slice(&row.bytes(name)?).map_err(|_| unreadable(name))
    };
    Ok(JoinRow {
        join_nonce: row.array("join_nonce")?,
        round: Round {
            ceremony: CeremonyId(row.array("ceremony")?),
            attempt: Attempt(row.number("attempt")?),
        },
        leaf_id: LeafId(row.array("leaf_id")?),
        factory_key: key("factory_key")?,
        channel_key: key("channel_key")?,
        payout_script: ScriptBuf::from_bytes(row.bytes("payout_script")?),
        common_pin: row.outpoint("common_pin")?,
        capacity: row.amount("capacity_sat")?,
    })
}
