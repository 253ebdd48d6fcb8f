//! Lightning payments, in and out.

use async_trait::async_trait;
use bitcoin::hashes::{Hash, sha256};
use channel_host::{Msat, PaymentHash};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;

use super::codec::{Columns, unreadable};
use super::{Result, SqliteStore};

/// How long after its expiry an invoice of ours is remembered: a payment may be on its way.
const GRACE: u64 = 86_400;

/// Which way a payment goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// To us.
    In,
    /// From us.
    Out,
}

/// How far a payment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PaymentState {
    /// On its way; it may still fail or succeed.
    Pending,
    /// Arrived.
    Succeeded,
    /// Came back whole.
    Failed,
}

impl PaymentState {
    /// As written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }
}

/// A payment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payment {
    /// The hash of its preimage, in hexadecimal digits.
    pub hash: String,
    /// Which way it goes.
    pub direction: Direction,
    /// How much arrives.
    pub amount_msat: u64,
    /// What it cost the sender, if that is us and it arrived; of a payment to us, what was kept of it for opening a channel, if something was.
    pub fee_msat: Option<u64>,
    /// How far it is.
    pub state: PaymentState,
    /// What it is for.
    pub text: String,
    /// Why it failed.
    pub failure: Option<String>,
    /// Height at which it began.
    pub created_height: u32,
    /// Unix time at which it began.
    pub created_time: u64,
    /// Height at which it ended.
    pub ended_height: Option<u32>,
    /// Unix time at which it ended.
    pub ended_time: Option<u64>,
}

impl Payment {
    /// Its hash, as calls want it.
    ///
    /// # Errors
    /// [`super::StoreError::Unreadable`] if there is none, which only a row made by hand can be.
    pub fn hash(&self) -> Result<PaymentHash> {
        let hash: sha256::Hash = self.hash.parse().map_err(|_| unreadable("payment hash"))?;
        Ok(PaymentHash(hash.to_byte_array()))
    }
}

/// A moment, by the chain and by the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The block the chain was followed to.
    pub height: u32,
    /// Unix time in seconds.
    pub time: u64,
}

/// How a payment of ours ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PaymentEnd {
    /// It arrived.
    Succeeded {
        /// What it cost.
        fee: Msat,
    },
    /// It came back whole.
    Failed {
        /// Why.
        why: String,
    },
}

/// Lightning payments.
#[async_trait]
pub trait PaymentStore {
    /// Remembers what an invoice of ours is for, and forgets those that expired long ago.
    async fn record_invoice(
        &self,
        hash: PaymentHash,
        text: &str,
        expires: u64,
        now: Moment,
    ) -> Result<()>;

    /// A payment of ours is about to be sent. Returns what is known of this hash instead if it is under way, or has arrived: it must not be
    /// sent twice. One that failed may be tried again.
    async fn begin_payment(
        &self,
        hash: PaymentHash,
        amount: Msat,
        text: &str,
        now: Moment,
    ) -> Result<Option<PaymentState>>;

    /// A payment of ours ended; `false` if that was known. What has arrived does not fail any more.
    async fn end_payment(&self, hash: PaymentHash, end: &PaymentEnd, now: Moment) -> Result<bool>;

    /// A payment of ours that was begun was never sent, and whoever began it does so again.
    async fn forget_payment(&self, hash: PaymentHash) -> Result<()>;

    /// A payment to us arrived, less what was kept of it; `false` if that was known.
    async fn payment_received(
        &self,
        hash: PaymentHash,
        amount: Msat,
        fee: Msat,
        now: Moment,
    ) -> Result<bool>;

    /// One payment.
    async fn payment(&self, hash: PaymentHash, direction: Direction) -> Result<Option<Payment>>;

    /// The last so many, newest first.
    async fn payments(&self, limit: u32) -> Result<Vec<Payment>>;

    /// Payments of ours that have not ended.
    async fn pending_payments(&self) -> Result<Vec<Payment>>;
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[async_trait]
impl PaymentStore for SqliteStore {
    async fn record_invoice(
        &self,
        hash: PaymentHash,
        text: &str,
        expires: u64,
        now: Moment,
    ) -> Result<()> {
        let mut tx = self.write().await?;
        sqlx::query("DELETE FROM invoices WHERE expires_time < ?")
            .bind(whole(now.time.saturating_sub(GRACE)))
            .execute(&mut *tx)
            .await
            .map_err(|error| self.error(error))?;
        sqlx::query(
            "INSERT OR REPLACE INTO invoices (hash, description, expires_time) VALUES (?, ?, ?)",
        )
        .bind(hash.0.as_slice())
        .bind(text)
        .bind(whole(expires))
        .execute(&mut *tx)
        .await
        .map_err(|error| self.error(error))?;
        self.commit(tx).await
    }

    async fn begin_payment(
        &self,
        hash: PaymentHash,
        amount: Msat,
        text: &str,
        now: Moment,
    ) -> Result<Option<PaymentState>> {
        let mut tx = self.write().await?;
        let known: Option<String> =
            sqlx::query_scalar("SELECT state FROM payments WHERE hash = ? AND direction = 'out'")
                .bind(hash.0.as_slice())
                .fetch_optional(&mut *tx)
                .await
                .map_err(|error| self.error(error))?;
        let known = known.map(|state| read_state(&state)).transpose()?;
        if let Some(state @ (PaymentState::Pending | PaymentState::Succeeded)) = known {
            return Ok(Some(state));
        }
        // A new row, so that it is listed where its last try belongs.
        sqlx::query("DELETE FROM payments WHERE hash = ? AND direction = 'out'")
            .bind(hash.0.as_slice())
            .execute(&mut *tx)
            .await
            .map_err(|error| self.error(error))?;
        sqlx::query(
            "INSERT INTO payments (hash, direction, amount_msat, state, description, created_height, created_time)
             VALUES (?, 'out', ?, 'pending', ?, ?, ?)",
        )
        .bind(hash.0.as_slice())
        .bind(whole(amount.0))
        .bind(text)
        .bind(i64::from(now.height))
        .bind(whole(now.time))
        .execute(&mut *tx)
        .await
        .map_err(|error| self.error(error))?;
        self.commit(tx).await?;
        Ok(None)
    }

    async fn end_payment(&self, hash: PaymentHash, end: &PaymentEnd, now: Moment) -> Result<bool> {
        let query = match end {
            // The word of a node that knows the preimage counts whatever was thought before.
            PaymentEnd::Succeeded { fee } => sqlx::query(
                "UPDATE payments SET state = 'succeeded', fee_msat = ?, failure = NULL, ended_height = ?,
                    ended_time = ? WHERE hash = ? AND direction = 'out' AND state <> 'succeeded'",
            )
            .bind(whole(fee.0)),
            PaymentEnd::Failed { why } => sqlx::query(
                "UPDATE payments SET state = 'failed', failure = ?, ended_height = ?, ended_time = ?
                 WHERE hash = ? AND direction = 'out' AND state = 'pending'",
            )
            .bind(why.clone()),
        };
        let done = query
            .bind(i64::from(now.height))
            .bind(whole(now.time))
            .bind(hash.0.to_vec())
            .execute(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        Ok(done.rows_affected() > 0)
    }

    async fn forget_payment(&self, hash: PaymentHash) -> Result<()> {
        sqlx::query(
            "DELETE FROM payments WHERE hash = ? AND direction = 'out' AND state = 'pending'",
        )
        .bind(hash.0.as_slice())
        .execute(self.pool())
        .await
        .map_err(|error| self.error(error))?;
        Ok(())
    }

    async fn payment_received(
        &self,
        hash: PaymentHash,
        amount: Msat,
        fee: Msat,
        now: Moment,
    ) -> Result<bool> {
        let done = sqlx::query(
            "INSERT INTO payments (hash, direction, amount_msat, state, description, created_height,
                created_time, ended_height, ended_time, fee_msat)
             VALUES (?1, 'in', ?2, 'succeeded',
                coalesce((SELECT description FROM invoices WHERE hash = ?1), ''), ?3, ?4, ?3, ?4, ?5)
             ON CONFLICT (hash, direction) DO NOTHING",
        )
        .bind(hash.0.as_slice())
        .bind(whole(amount.0))
        .bind(i64::from(now.height))
        .bind(whole(now.time))
        .bind((fee.0 > 0).then(|| whole(fee.0)))
        .execute(self.pool())
        .await
        .map_err(|error| self.error(error))?;
        Ok(done.rows_affected() > 0)
    }

    async fn payment(&self, hash: PaymentHash, direction: Direction) -> Result<Option<Payment>> {
        let direction = match direction {
            Direction::In => "in",
            Direction::Out => "out",
        };
        let row = sqlx::query("SELECT * FROM payments WHERE hash = ? AND direction = ?")
            .bind(hash.0.as_slice())
            .bind(direction)
            .fetch_optional(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        row.as_ref().map(read).transpose()
    }

    async fn payments(&self, limit: u32) -> Result<Vec<Payment>> {
        let rows = sqlx::query("SELECT * FROM payments ORDER BY rowid DESC LIMIT ?")
            .bind(i64::from(limit))
            .fetch_all(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        rows.iter().map(read).collect()
    }

    async fn pending_payments(&self) -> Result<Vec<Payment>> {
        let rows = sqlx::query("SELECT * FROM payments WHERE state = 'pending' ORDER BY rowid")
            .fetch_all(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        rows.iter().map(read).collect()
    }
}

fn read_state(text: &str) -> Result<PaymentState> {
    match text {
        "pending" => Ok(PaymentState::Pending),
        "succeeded" => Ok(PaymentState::Succeeded),
        "failed" => Ok(PaymentState::Failed),
        _ => Err(unreadable("payment state")),
    }
}

fn read(row: &SqliteRow) -> Result<Payment> {
    let row = Columns(row);
    Ok(Payment {
        hash: PaymentHash(row.array("hash")?).to_string(),
        direction: match row.text("direction")?.as_str() {
            "in" => Direction::In,
            "out" => Direction::Out,
            _ => return Err(unreadable("payment direction")),
        },
        amount_msat: row.whole("amount_msat")?,
        fee_msat: row.maybe_whole("fee_msat")?,
        state: read_state(&row.text("state")?)?,
        text: row.text("description")?,
        failure: row.maybe_text("failure")?,
        created_height: row.number("created_height")?,
        created_time: row.whole("created_time")?,
        ended_height: row.maybe_number("ended_height")?,
        ended_time: row.maybe_whole("ended_time")?,
    })
}
