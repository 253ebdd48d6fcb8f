//! Ceremonies and their pinned coins.

use bitcoin::{Amount, OutPoint, ScriptBuf, TxOut};
use factory_tree::ceremony::coordinator::{Invitee, Terms};
use factory_tree::ids::CeremonyId;
use factory_tree::params::FactoryParams;
use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{Conn, Result, StoreError, codec};

/// What the operator asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// Parameters of the factory.
    pub params: FactoryParams,
    /// How many interested clients to wait for; `None`: those that are interested at once.
    pub clients: Option<u32>,
    /// Fewer are no factory.
    pub min_clients: u32,
    /// The capacity of each; `None`: as each asked.
    pub capacity: Option<Amount>,
    /// Feerate of the funding, sat per 1000 weight units; `None`: the node's estimate.
    pub feerate_sat_per_kwu: Option<u64>,
    /// The rung of the ladder it is for.
    #[serde(default)]
    pub rung: Option<u32>,
    /// Exactly whom to invite, in leaf order; `None`: who is interested.
    #[serde(default)]
    pub invited: Option<Vec<Invitee>>,
}

/// How far a ceremony is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CeremonyState {
    /// It waits for interested clients.
    Gathering,
    /// Attempts are under way.
    Running,
    /// A factory stands.
    Complete,
    /// It was given up.
    Failed,
}

impl CeremonyState {
    const ALL: [Self; 4] = [Self::Gathering, Self::Running, Self::Complete, Self::Failed];

    /// Its name in the database and for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gathering => "gathering",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Failed => "failed",
        }
    }

    fn parse(name: &str) -> Result<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|state| state.name() == name)
            .ok_or_else(|| StoreError::value("ceremony state", name))
    }

    /// Whether it still goes on.
    #[must_use]
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Gathering | Self::Running)
    }
}

/// A ceremony.
#[derive(Clone, Debug, PartialEq)]
pub struct CeremonyRow {
    /// Its id.
    pub id: CeremonyId,
    /// When it was asked for.
    pub created_height: u32,
    /// How far it is.
    pub state: CeremonyState,
    /// What was asked for.
    pub wish: Wish,
    /// What clients are offered, once coins are pinned.
    pub terms: Option<Terms>,
    /// Why it failed.
    pub reason: Option<String>,
}

/// A coin that belongs to a ceremony.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Where it is.
    pub outpoint: OutPoint,
    /// What it is.
    pub txout: TxOut,
}

/// Writes down a new ceremony.
///
/// # Errors
/// Those of the database.
pub async fn insert(conn: &mut Conn, id: CeremonyId, height: u32, wish: &Wish) -> Result<()> {
    sqlx::query("INSERT INTO ceremony (ceremony, created_height, state, wish) VALUES (?, ?, 'gathering', ?)")
        .bind(id.0.as_slice())
        .bind(height)
        .bind(codec::json("wish", wish)?)
        .execute(conn)
        .await?;
    Ok(())
}

/// Pins its coins, the first of them common to all attempts, and lets it run.
///
/// # Errors
/// Those of the database.
pub async fn start(conn: &mut Conn, id: CeremonyId, terms: &Terms, pins: &[Pin]) -> Result<()> {
    sqlx::query("UPDATE ceremony SET state = 'running', terms = ? WHERE ceremony = ?")
        .bind(codec::json("terms", terms)?)
        .bind(id.0.as_slice())
        .execute(&mut *conn)
        .await?;
    add_pins(conn, id, 0, pins).await
}

/// Pins more coins; `place` counts the ceremony's pins.
///
/// # Errors
/// Those of the database.
pub async fn add_pins(conn: &mut Conn, id: CeremonyId, place: usize, pins: &[Pin]) -> Result<()> {
    for (place, pin) in (place..).zip(pins) {
        sqlx::query(
            "INSERT INTO pin (txid, vout, ceremony, place, sat, script) VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(codec::bytes_of(&pin.outpoint.txid))
        .bind(pin.outpoint.vout)
        .bind(id.0.as_slice())
        .bind(codec::int("place", place as u64)?)
        .bind(codec::int("amount", pin.txout.value.to_sat())?)
        .bind(pin.txout.script_pubkey.as_bytes())
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}

/// A ceremony's pins, the common one first.
///
/// # Errors
/// Those of the database.
pub async fn pins(conn: &mut Conn, id: CeremonyId) -> Result<Vec<Pin>> {
    let rows =
        sqlx::query("SELECT txid, vout, sat, script FROM pin WHERE ceremony = ? ORDER BY place")
            .bind(id.0.as_slice())
            .fetch_all(conn)
            .await?;
    rows.iter().map(pin).collect()
}

/// Ceremonies that have pins.
///
/// # Errors
/// Those of the database.
pub async fn pinned(conn: &mut Conn) -> Result<Vec<CeremonyId>> {
    let rows: Vec<Vec<u8>> = sqlx::query_scalar("SELECT DISTINCT ceremony FROM pin")
        .fetch_all(conn)
        .await?;
    rows.iter().map(|row| codec::ceremony(row)).collect()
}

/// Every pinned coin.
///
/// # Errors
/// Those of the database.
pub async fn all_pins(conn: &mut Conn) -> Result<Vec<OutPoint>> {
    let rows = sqlx::query("SELECT txid, vout FROM pin")
        .fetch_all(conn)
        .await?;
    rows.iter()
        .map(|row| codec::outpoint(row.try_get(0)?, row.try_get(1)?))
        .collect()
}

fn pin(row: &SqliteRow) -> Result<Pin> {
    let script: Vec<u8> = row.try_get("script")?;
    Ok(Pin {
        outpoint: codec::outpoint(row.try_get("txid")?, row.try_get("vout")?)?,
        txout: TxOut {
            value: Amount::from_sat(codec::number("amount", row.try_get("sat")?)?),
            script_pubkey: ScriptBuf::from_bytes(script),
        },
    })
}

/// Gives a ceremony up: its pins are free, its factories will never be funded. False, and nothing is changed, when a factory
/// stands: its funding is signed from its pins, and they are free only when it is buried.
///
/// # Errors
/// Those of the database.
pub async fn fail(conn: &mut Conn, id: CeremonyId, reason: &str) -> Result<bool> {
    let given_up = sqlx::query(
        "UPDATE ceremony SET state = 'failed', reason = ? WHERE ceremony = ? AND state != 'complete'",
    )
    .bind(reason)
    .bind(id.0.as_slice())
    .execute(&mut *conn)
    .await?;
    if given_up.rows_affected() == 0 {
        return Ok(false);
    }
    for update in [
        "UPDATE attempt SET state = 'failed', reason = coalesce(reason, ?) WHERE ceremony = ? AND state NOT IN ('funding_signed', 'failed')",
        "UPDATE factory SET state = 'failed' WHERE ? IS NOT NULL AND ceremony = ? AND state != 'funding_signed'",
    ] {
        sqlx::query(update)
            .bind(reason)
            .bind(id.0.as_slice())
            .execute(&mut *conn)
            .await?;
    }
    release(conn, id).await?;
    Ok(true)
}

/// Frees a ceremony's pins.
///
/// # Errors
/// Those of the database.
pub async fn release(conn: &mut Conn, id: CeremonyId) -> Result<()> {
    sqlx::query("DELETE FROM pin WHERE ceremony = ?")
        .bind(id.0.as_slice())
        .execute(conn)
        .await?;
    Ok(())
}

/// A factory stands.
///
/// # Errors
/// Those of the database.
pub async fn complete(conn: &mut Conn, id: CeremonyId) -> Result<()> {
    sqlx::query("UPDATE ceremony SET state = 'complete' WHERE ceremony = ?")
        .bind(id.0.as_slice())
        .execute(conn)
        .await?;
    Ok(())
}

/// One ceremony.
///
/// # Errors
/// Those of the database.
pub async fn get(conn: &mut Conn, id: CeremonyId) -> Result<Option<CeremonyRow>> {
    let query = sqlx::query(
        "SELECT ceremony, created_height, state, wish, terms, reason FROM ceremony WHERE ceremony = ?",
    );
    let row = query.bind(id.0.as_slice()).fetch_optional(conn).await?;
    row.as_ref().map(ceremony).transpose()
}

/// All ceremonies, newest first.
///
/// # Errors
/// Those of the database.
pub async fn list(conn: &mut Conn) -> Result<Vec<CeremonyRow>> {
    let query = sqlx::query(
        "SELECT ceremony, created_height, state, wish, terms, reason FROM ceremony ORDER BY number DESC",
    );
    query.fetch_all(conn).await?.iter().map(ceremony).collect()
}

/// Ceremonies that were going on, oldest first.
///
/// # Errors
/// Those of the database.
pub async fn open(conn: &mut Conn) -> Result<Vec<CeremonyRow>> {
    let query = sqlx::query(
        "SELECT ceremony, created_height, state, wish, terms, reason FROM ceremony \
         WHERE state IN ('gathering', 'running') ORDER BY number",
    );
    query.fetch_all(conn).await?.iter().map(ceremony).collect()
}

/// A ladder's birth that failed, or goes on after an attempt that did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedBirth {
    /// Its place in the ladder.
    pub rung: u32,
    /// Its ceremony.
    pub ceremony: CeremonyId,
    /// The height at which that began.
    pub begun: u32,
    /// Its last attempt that failed, if it had one.
    pub attempt: Option<u32>,
    /// Why.
    pub reason: String,
    /// Whether it goes on.
    pub is_open: bool,
    /// Whether another ceremony of this rung came to a factory.
    pub is_born: bool,
}

/// The newest of them.
///
/// # Errors
/// Those of the database.
pub async fn last_failed_birth(conn: &mut Conn) -> Result<Option<FailedBirth>> {
    let query = sqlx::query(
        "SELECT json_extract(c.wish, '$.rung') AS rung, c.ceremony AS ceremony, c.created_height AS begun, c.state AS state, \
         c.reason AS reason, a.attempt AS attempt, a.reason AS attempt_reason, \
         EXISTS (SELECT 1 FROM ceremony o WHERE o.state = 'complete' \
         AND json_extract(o.wish, '$.rung') = json_extract(c.wish, '$.rung')) AS born \
         FROM ceremony c LEFT JOIN attempt a ON a.ceremony = c.ceremony AND a.state = 'failed' \
         WHERE json_extract(c.wish, '$.rung') IS NOT NULL \
         AND (c.state = 'failed' OR (c.state = 'running' AND a.attempt IS NOT NULL)) \
         ORDER BY c.number DESC, a.attempt DESC LIMIT 1",
    );
    let row = query.fetch_optional(conn).await?;
    row.as_ref().map(failed_birth).transpose()
}

fn failed_birth(row: &SqliteRow) -> Result<FailedBirth> {
    let attempt: Option<u32> = codec::optional("attempt", row.try_get("attempt")?)?;
    let whole: Option<String> = row.try_get("reason")?;
    let last: Option<String> = row.try_get("attempt_reason")?;
    let reason = match (whole, last) {
        // That there were too many attempts does not say what was wrong with them.
        (Some(whole), Some(last)) if whole != last => format!("{whole}; the last attempt: {last}"),
        (whole, last) => whole.or(last).unwrap_or_default(),
    };
    let born: i64 = row.try_get("born")?;
    Ok(FailedBirth {
        rung: codec::number("rung", row.try_get("rung")?)?,
        ceremony: codec::ceremony(row.try_get("ceremony")?)?,
        begun: codec::number("height", row.try_get("begun")?)?,
        attempt,
        reason,
        is_open: CeremonyState::parse(row.try_get("state")?)?.is_open(),
        is_born: born > 0,
    })
}

fn ceremony(row: &SqliteRow) -> Result<CeremonyRow> {
    let terms: Option<String> = row.try_get("terms")?;
    let wish: String = row.try_get("wish")?;
    Ok(CeremonyRow {
        id: codec::ceremony(row.try_get("ceremony")?)?,
        created_height: codec::number("height", row.try_get("created_height")?)?,
        state: CeremonyState::parse(row.try_get("state")?)?,
        wish: codec::from_json("wish", wish.as_bytes())?,
        terms: terms
            .map(|terms| codec::from_json("terms", terms.as_bytes()))
            .transpose()?,
        reason: row.try_get("reason")?,
    })
}
