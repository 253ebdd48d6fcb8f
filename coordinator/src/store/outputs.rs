//! What stands on the chain of our factories, by height, so that a reorg takes back exactly what it undoes.

use bitcoin::hashes::Hash;
use bitcoin::{Amount, BlockHash, OutPoint, Txid};
use factory_tree::factory::SpentKind;
use factory_tree::ids::FactoryId;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{Conn, Result, StoreError, codec};

/// An output of a factory that is, or was, unspent on the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputRow {
    /// Where it is.
    pub outpoint: OutPoint,
    /// Whose.
    pub factory: FactoryId,
    /// What it is.
    pub kind: SpentKind,
    /// What it holds.
    pub amount: Amount,
    /// When it came into the chain.
    pub confirmed_height: u32,
    /// When it was spent.
    pub spent_height: Option<u32>,
    /// By what.
    pub spent_by: Option<Txid>,
}

/// Blocks whose hashes are remembered.
const KEPT_BLOCKS: u32 = 4032;

fn kind_name(kind: SpentKind) -> &'static str {
    match kind {
        SpentKind::Funding => "funding",
        SpentKind::Static => "static",
        SpentKind::Kickoff => "kickoff",
        SpentKind::State => "state",
        SpentKind::FirstStage => "first_stage",
        SpentKind::Stock => "stock",
        SpentKind::Channel => "channel",
    }
}

fn kind(name: &str) -> Result<SpentKind> {
    let all = [
        SpentKind::Funding,
        SpentKind::Static,
        SpentKind::Kickoff,
        SpentKind::State,
        SpentKind::FirstStage,
        SpentKind::Stock,
        SpentKind::Channel,
    ];
    let found = all.into_iter().find(|kind| kind_name(*kind) == name);
    found.ok_or_else(|| StoreError::value("kind of output", name))
}

/// The hash of the block that was taken into account at this height.
///
/// # Errors
/// Those of the database.
pub async fn block_at(conn: &mut Conn, height: u32) -> Result<Option<BlockHash>> {
    let row: Option<Vec<u8>> = sqlx::query_scalar("SELECT hash FROM block WHERE height = ?")
        .bind(height)
        .fetch_optional(conn)
        .await?;
    row.map(|hash| {
        BlockHash::from_slice(&hash).map_err(|error| StoreError::value("block hash", error))
    })
    .transpose()
}

/// The height of the newest block that was taken into account.
///
/// # Errors
/// Those of the database.
pub async fn tip(conn: &mut Conn) -> Result<Option<u32>> {
    let tip: Option<i64> = sqlx::query_scalar("SELECT max(height) FROM block")
        .fetch_one(conn)
        .await?;
    codec::optional("height", tip)
}

/// A block is taken into account.
///
/// # Errors
/// Those of the database.
pub async fn connect(conn: &mut Conn, height: u32, hash: BlockHash) -> Result<()> {
    sqlx::query("INSERT OR REPLACE INTO block (height, hash) VALUES (?, ?)")
        .bind(height)
        .bind(hash.to_byte_array().as_slice())
        .execute(&mut *conn)
        .await?;
    if height.is_multiple_of(100) {
        let oldest = height.saturating_sub(KEPT_BLOCKS);
        sqlx::query("DELETE FROM block WHERE height < ?")
            .bind(oldest)
            .execute(conn)
            .await?;
    }
    Ok(())
}

/// Forgets everything that happened at this height or above.
///
/// # Errors
/// Those of the database.
pub async fn rewind(conn: &mut Conn, height: u32) -> Result<()> {
    for update in [
        "DELETE FROM block WHERE height >= ?",
        "DELETE FROM output WHERE confirmed_height >= ?",
        "UPDATE output SET spent_height = NULL, spent_by = NULL WHERE spent_height >= ?",
        "UPDATE sweep SET confirmed_height = NULL WHERE confirmed_height >= ?",
        "UPDATE sweep SET dead = 0 WHERE dead = 1 AND created_height >= ?",
    ] {
        sqlx::query(update).bind(height).execute(&mut *conn).await?;
    }
    Ok(())
}

/// Outputs came into the chain.
///
/// # Errors
/// Those of the database.
pub async fn add(conn: &mut Conn, output: &OutputRow) -> Result<()> {
    sqlx::query("INSERT OR REPLACE INTO output (txid, vout, factory, kind, sat, confirmed_height) VALUES (?, ?, ?, ?, ?, ?)")
        .bind(codec::bytes_of(&output.outpoint.txid))
        .bind(output.outpoint.vout)
        .bind(output.factory.0.as_slice())
        .bind(kind_name(output.kind))
        .bind(codec::int("amount", output.amount.to_sat())?)
        .bind(output.confirmed_height)
        .execute(conn)
        .await?;
    Ok(())
}

/// An output was spent.
///
/// # Errors
/// Those of the database.
pub async fn spend(conn: &mut Conn, outpoint: OutPoint, height: u32, by: Txid) -> Result<()> {
    sqlx::query("UPDATE output SET spent_height = ?, spent_by = ? WHERE txid = ? AND vout = ?")
        .bind(height)
        .bind(codec::bytes_of(&by))
        .bind(codec::bytes_of(&outpoint.txid))
        .bind(outpoint.vout)
        .execute(conn)
        .await?;
    Ok(())
}

/// All unspent outputs, and those spent at `spent_since` or later.
///
/// # Errors
/// Those of the database.
pub async fn unspent(conn: &mut Conn) -> Result<Vec<OutputRow>> {
    let rows = sqlx::query(
        "SELECT txid, vout, factory, kind, sat, confirmed_height, spent_height, spent_by FROM output \
         WHERE spent_height IS NULL ORDER BY factory, confirmed_height, txid, vout",
    )
    .fetch_all(conn)
    .await?;
    rows.iter().map(output).collect()
}

/// Everything of one factory that is or was on the chain.
///
/// # Errors
/// Those of the database.
pub async fn of_factory(conn: &mut Conn, factory: FactoryId) -> Result<Vec<OutputRow>> {
    let rows = sqlx::query(
        "SELECT txid, vout, factory, kind, sat, confirmed_height, spent_height, spent_by FROM output \
         WHERE factory = ? ORDER BY confirmed_height, txid, vout",
    )
    .bind(factory.0.as_slice())
    .fetch_all(conn)
    .await?;
    rows.iter().map(output).collect()
}

fn output(row: &SqliteRow) -> Result<OutputRow> {
    let spent_by: Option<Vec<u8>> = row.try_get("spent_by")?;
    Ok(OutputRow {
        outpoint: codec::outpoint(row.try_get("txid")?, row.try_get("vout")?)?,
        factory: codec::factory(row.try_get("factory")?)?,
        kind: kind(row.try_get("kind")?)?,
        amount: Amount::from_sat(codec::number("amount", row.try_get("sat")?)?),
        confirmed_height: codec::number("height", row.try_get("confirmed_height")?)?,
        spent_height: codec::optional("height", row.try_get("spent_height")?)?,
        spent_by: spent_by.map(|txid| codec::txid(&txid)).transpose()?,
    })
}
