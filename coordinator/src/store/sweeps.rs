//! Our transactions that take back what is ours from a factory.

use bitcoin::consensus::encode;
use bitcoin::{Amount, OutPoint, Transaction, Txid};
use factory_tree::ids::FactoryId;
use sqlx::Row;

use super::{Conn, Result, codec};

/// A sweep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SweepRow {
    /// From which factory.
    pub factory: FactoryId,
    /// Signed.
    pub tx: Transaction,
    /// What arrives in the wallet.
    pub amount: Amount,
    /// When it was made.
    pub created_height: u32,
    /// Whether it was given up: refused by the node, or replaced.
    pub dead: bool,
}

/// Keeps a sweep, before it is broadcast.
///
/// # Errors
/// Those of the database.
pub async fn insert(conn: &mut Conn, sweep: &SweepRow) -> Result<()> {
    sqlx::query(
        "INSERT INTO sweep (txid, factory, tx, sat, created_height) VALUES (?, ?, ?, ?, ?)",
    )
    .bind(codec::bytes_of(&sweep.tx.compute_txid()))
    .bind(sweep.factory.0.as_slice())
    .bind(encode::serialize(&sweep.tx))
    .bind(codec::int("amount", sweep.amount.to_sat())?)
    .bind(sweep.created_height)
    .execute(conn)
    .await?;
    Ok(())
}

/// Sweeps that are on their way.
///
/// # Errors
/// Those of the database.
pub async fn pending(conn: &mut Conn) -> Result<Vec<SweepRow>> {
    Ok(unconfirmed(conn)
        .await?
        .into_iter()
        .filter(|row| !row.dead)
        .collect())
}

/// Sweeps that are not in the chain; even one that was replaced may still get there.
///
/// # Errors
/// Those of the database.
pub async fn unconfirmed(conn: &mut Conn) -> Result<Vec<SweepRow>> {
    let rows = sqlx::query(
        "SELECT factory, tx, sat, created_height, dead FROM sweep WHERE confirmed_height IS NULL ORDER BY number",
    )
    .fetch_all(conn)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(SweepRow {
                factory: codec::factory(row.try_get("factory")?)?,
                tx: codec::transaction(row.try_get("tx")?)?,
                amount: Amount::from_sat(codec::number("amount", row.try_get("sat")?)?),
                created_height: codec::number("height", row.try_get("created_height")?)?,
                dead: row.try_get("dead")?,
            })
        })
        .collect()
}

/// Where a transaction is one of our sweeps: it is in the chain now.
///
/// # Errors
/// Those of the database.
pub async fn confirm(
    conn: &mut Conn,
    txid: &Txid,
    height: u32,
) -> Result<Option<(FactoryId, Amount)>> {
    let row = sqlx::query(
        "UPDATE sweep SET confirmed_height = ?, dead = 0 WHERE txid = ? RETURNING factory, sat",
    )
    .bind(height)
    .bind(codec::bytes_of(txid))
    .fetch_optional(conn)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let amount = Amount::from_sat(codec::number("amount", row.try_get(1)?)?);
    Ok(Some((codec::factory(row.try_get(0)?)?, amount)))
}

/// The coins of sweeps that confirmed at `height` or later.
///
/// # Errors
/// Those of the database.
pub async fn coins_since(conn: &mut Conn, height: u32) -> Result<Vec<(OutPoint, Amount)>> {
    let rows = sqlx::query("SELECT txid, sat FROM sweep WHERE confirmed_height >= ?")
        .bind(height)
        .fetch_all(conn)
        .await?;
    rows.iter()
        .map(|row| {
            let amount = Amount::from_sat(codec::number("amount", row.try_get(1)?)?);
            // A sweep has one output.
            Ok((codec::outpoint(row.try_get(0)?, 0)?, amount))
        })
        .collect()
}

/// A sweep will not confirm: an input of it was spent otherwise.
///
/// # Errors
/// Those of the database.
pub async fn give_up(conn: &mut Conn, txid: &Txid) -> Result<()> {
    sqlx::query("UPDATE sweep SET dead = 1 WHERE txid = ?")
        .bind(codec::bytes_of(txid))
        .execute(conn)
        .await?;
    Ok(())
}

/// When the newest sweep of a factory was made that was given up and is not in the chain.
///
/// # Errors
/// Those of the database.
pub async fn last_refused(conn: &mut Conn, factory: FactoryId) -> Result<Option<u32>> {
    let query = "SELECT max(created_height) FROM sweep WHERE factory = ? AND dead = 1 AND confirmed_height IS NULL";
    let height: Option<i64> = sqlx::query_scalar(query)
        .bind(factory.0.as_slice())
        .fetch_one(conn)
        .await?;
    codec::optional("height", height)
}
