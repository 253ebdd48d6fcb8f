//! Lightning payments of our own. Events come more than once: only news changes anything.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{Conn, Result, StoreError, codec};

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To us.
    In,
    /// From us.
    Out,
}

impl Direction {
    /// Its name in the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }
}

/// How far a payment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaymentState {
    /// On its way.
    Pending,
    /// Arrived.
    Succeeded,
    /// Came back.
    Failed,
}

impl PaymentState {
    /// Its name in the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }
}

/// A payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PaymentRow {
    /// Its hash.
    pub hash: [u8; 32],
    /// Which way.
    pub direction: Direction,
    /// How far it is.
    pub state: PaymentState,
    /// How much; of a payment of ours without the fee.
    pub msat: u64,
    /// The fee it cost.
    pub fee_msat: u64,
    /// Why it failed.
    pub text: String,
    /// When it began.
    pub created_height: u32,
    /// When it ended.
    pub ended_height: Option<u32>,
}

/// Somebody paid us; whether that is news.
///
/// # Errors
/// Those of the database.
pub async fn received(conn: &mut Conn, hash: [u8; 32], msat: u64, height: u32) -> Result<bool> {
    let done = sqlx::query(
        "INSERT INTO payment (hash, direction, state, msat, fee_msat, text, created_height, ended_height) \
         VALUES (?, 'in', 'succeeded', ?, 0, '', ?, ?) ON CONFLICT DO NOTHING",
    )
    .bind(hash.as_slice())
    .bind(codec::int("amount", msat)?)
    .bind(height)
    .bind(height)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// We are about to pay. Returns how far a payment of this hash is already: only one that failed, or none, may be begun, and is pending then.
///
/// # Errors
/// Those of the database.
pub async fn begun(
    conn: &mut Conn,
    hash: [u8; 32],
    msat: u64,
    height: u32,
) -> Result<Option<PaymentState>> {
    let known = get(conn, hash).await?.map(|row| row.state);
    if !matches!(known, None | Some(PaymentState::Failed)) {
        return Ok(known);
    }
    sqlx::query(
        "INSERT INTO payment (hash, direction, state, msat, fee_msat, text, created_height) VALUES (?, 'out', 'pending', ?, 0, '', ?) \
         ON CONFLICT (hash) DO UPDATE SET state = 'pending', msat = excluded.msat, ended_height = NULL, text = ''",
    )
    .bind(hash.as_slice())
    .bind(codec::int("amount", msat)?)
    .bind(height)
    .execute(conn)
    .await?;
    Ok(known)
}

/// Hashes of our payments that have not ended.
///
/// # Errors
/// Those of the database.
pub async fn pending(conn: &mut Conn) -> Result<Vec<[u8; 32]>> {
    let rows =
        sqlx::query("SELECT hash FROM payment WHERE direction = 'out' AND state = 'pending'")
            .fetch_all(conn)
            .await?;
    rows.iter().map(hash_of).collect()
}

/// Our payment ended: the fee it cost, or why it failed. Whether that is news.
///
/// # Errors
/// Those of the database.
pub async fn ended(
    conn: &mut Conn,
    hash: [u8; 32],
    end: std::result::Result<u64, &str>,
    height: u32,
) -> Result<bool> {
    let (state, fee, text) = match end {
        Ok(fee) => (PaymentState::Succeeded, fee, ""),
        Err(why) => (PaymentState::Failed, 0, why),
    };
    let done = sqlx::query(
        "INSERT INTO payment (hash, direction, state, msat, fee_msat, text, created_height, ended_height) \
         VALUES (?, 'out', ?, 0, ?, ?, ?, ?) ON CONFLICT (hash) DO UPDATE SET state = excluded.state, fee_msat = excluded.fee_msat, \
         text = excluded.text, ended_height = excluded.ended_height WHERE direction = 'out' AND state = 'pending'",
    )
    .bind(hash.as_slice())
    .bind(state.name())
    .bind(codec::int("fee", fee)?)
    .bind(text)
    .bind(height)
    .bind(height)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// One payment.
///
/// # Errors
/// Those of the database.
pub async fn get(conn: &mut Conn, hash: [u8; 32]) -> Result<Option<PaymentRow>> {
    let row = sqlx::query(
        "SELECT hash, direction, state, msat, fee_msat, text, created_height, ended_height FROM payment WHERE hash = ?",
    )
    .bind(hash.as_slice())
    .fetch_optional(conn)
    .await?;
    row.as_ref().map(read).transpose()
}

/// The newest payments, at most so many; those under way first.
///
/// # Errors
/// Those of the database.
pub async fn list(conn: &mut Conn, limit: u32) -> Result<Vec<PaymentRow>> {
    let rows = sqlx::query(
        "SELECT hash, direction, state, msat, fee_msat, text, created_height, ended_height FROM payment \
         ORDER BY coalesce(ended_height, 4294967295) DESC, created_height DESC, hash LIMIT ?",
    )
    .bind(limit)
    .fetch_all(conn)
    .await?;
    rows.iter().map(read).collect()
}

fn hash_of(row: &SqliteRow) -> Result<[u8; 32]> {
    let hash: &[u8] = row.try_get("hash")?;
    <[u8; 32]>::try_from(hash).map_err(|error| StoreError::value("payment hash", error))
}

fn read(row: &SqliteRow) -> Result<PaymentRow> {
    let (direction, state): (&str, &str) = (row.try_get("direction")?, row.try_get("state")?);
    Ok(PaymentRow {
        hash: hash_of(row)?,
        direction: if direction == "in" {
            Direction::In
        } else {
            Direction::Out
        },
        state: match state {
            "pending" => PaymentState::Pending,
            "succeeded" => PaymentState::Succeeded,
            _ => PaymentState::Failed,
        },
        msat: codec::number("amount", row.try_get("msat")?)?,
        fee_msat: codec::number("fee", row.try_get("fee_msat")?)?,
        text: row.try_get("text")?,
        created_height: codec::number("height", row.try_get("created_height")?)?,
        ended_height: codec::optional("height", row.try_get("ended_height")?)?,
    })
}

/// Whether something may have been given, or begun, for a payment that is held: asked when its order's row cannot be read.
///
/// # Errors
/// Those of the database.
pub async fn may_be_earned(conn: &mut Conn, hash: [u8; 32]) -> Result<bool> {
    let query = "SELECT EXISTS (SELECT 1 FROM sale WHERE hash = ?1 AND state NOT IN ('ordered', 'cancelled')) \
         OR EXISTS (SELECT 1 FROM lsps1_order WHERE hash = ?1 AND state NOT IN ('ordered', 'failed'))";
    let query = sqlx::query_scalar(query).bind(hash.as_slice());
    Ok(query.fetch_one(conn).await?)
}
