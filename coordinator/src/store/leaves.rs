//! Members by the leaves of their channels, and what is to be done for them on the chain.

use factory_tree::ceremony::message::Round;
use factory_tree::ids::{ClientId, FactoryId, LeafId, SaleId};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::attempts::AttemptState;
use super::{Conn, Result, StoreError, codec};

/// A leaf and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafRow {
    /// The leaf.
    pub leaf: LeafId,
    /// Its client.
    pub client: ClientId,
    /// The sale that made it; `None`: its client was born with it.
    pub sale: Option<SaleId>,
    /// Its factory.
    pub factory: FactoryId,
    /// The client's place in it.
    pub position: u32,
    /// The attempt the factory was built in.
    pub round: Round,
    /// How far that is.
    pub state: AttemptState,
    /// Whether the factory is as deep in the chain as agreed.
    pub usable: bool,
    /// Whether anything of the factory is spent in the chain.
    pub unrolls: bool,
    /// Whether its client's keys are ours.
    pub handed_over: bool,
}

/// A path that is to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitRow {
    /// The leaf it ends in.
    pub leaf: LeafId,
    /// Since when.
    pub wished_height: u32,
}

/// The leaves that members were born with, and those that sales made.
const LEAVES: &str = "SELECT l.leaf_id, l.client, l.position, l.factory, l.sale, f.ceremony, f.attempt, f.state, \
    f.usable AND l.paid AS usable, \
    EXISTS (SELECT 1 FROM output o WHERE o.txid = f.funding_txid AND o.vout = f.funding_vout AND o.spent_height IS NOT NULL) AS unrolls, \
    EXISTS (SELECT 1 FROM handover h WHERE h.factory = l.factory AND h.position = l.position) AS handed_over \
    FROM (SELECT leaf_id, client, position, factory, NULL AS sale, 1 AS paid FROM member \
    UNION ALL SELECT leaf_id, client, position, factory, sale, paid FROM sold_channel) l JOIN factory f USING (factory)";

/// The member of a leaf.
///
/// # Errors
/// Those of the database.
pub async fn get(conn: &mut Conn, leaf: LeafId) -> Result<Option<LeafRow>> {
    let query = format!("{LEAVES} WHERE l.leaf_id = ?");
    let row = sqlx::query(sqlx::AssertSqlSafe(query))
        .bind(leaf.0.as_slice())
        .fetch_optional(conn)
        .await?;
    row.as_ref().map(read).transpose()
}

/// Every leaf there ever was.
///
/// # Errors
/// Those of the database.
pub async fn all(conn: &mut Conn) -> Result<Vec<LeafRow>> {
    let rows = sqlx::query(LEAVES).fetch_all(conn).await?;
    rows.iter().map(read).collect()
}

/// A path is to be published, unless its client has handed over its keys; whether that is news.
///
/// # Errors
/// Those of the database.
pub async fn wish_exit(conn: &mut Conn, row: &LeafRow, height: u32, reason: &str) -> Result<bool> {
    let done = sqlx::query(
        "INSERT INTO exit (leaf_id, factory, position, wished_height, reason) SELECT ?1, ?2, ?3, ?4, ?5 \
         WHERE NOT EXISTS (SELECT 1 FROM handover h WHERE h.factory = ?2 AND h.position = ?3) ON CONFLICT DO NOTHING",
    )
    .bind(row.leaf.0.as_slice())
    .bind(row.factory.0.as_slice())
    .bind(row.position)
    .bind(height)
    .bind(reason)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// The paths that are to be published.
///
/// # Errors
/// Those of the database.
pub async fn exits(conn: &mut Conn) -> Result<Vec<ExitRow>> {
    let rows =
        sqlx::query("SELECT leaf_id, wished_height FROM exit ORDER BY wished_height, leaf_id")
            .fetch_all(conn)
            .await?;
    rows.iter()
        .map(|row| {
            Ok(ExitRow {
                leaf: leaf_id(row)?,
                wished_height: codec::number("height", row.try_get("wished_height")?)?,
            })
        })
        .collect()
}

/// A path is in the chain, or never will be, beyond doubt.
///
/// # Errors
/// Those of the database.
pub async fn end_exit(conn: &mut Conn, leaf: LeafId) -> Result<()> {
    sqlx::query("DELETE FROM exit WHERE leaf_id = ?")
        .bind(leaf.0.as_slice())
        .execute(conn)
        .await?;
    Ok(())
}

fn leaf_id(row: &SqliteRow) -> Result<LeafId> {
    let bytes: &[u8] = row.try_get("leaf_id")?;
    LeafId::try_from(bytes).map_err(|error| StoreError::value("leaf id", error))
}

fn read(row: &SqliteRow) -> Result<LeafRow> {
    let sale: Option<&[u8]> = row.try_get("sale")?;
    let sale = sale.map(SaleId::try_from).transpose();
    Ok(LeafRow {
        leaf: leaf_id(row)?,
        client: codec::client(row.try_get("client")?)?,
        sale: sale.map_err(|error| StoreError::value("sale id", error))?,
        factory: codec::factory(row.try_get("factory")?)?,
        position: codec::number("position", row.try_get("position")?)?,
        round: Round {
            ceremony: codec::ceremony(row.try_get("ceremony")?)?,
            attempt: codec::attempt(row.try_get("attempt")?)?,
        },
        state: AttemptState::parse(row.try_get("state")?)?,
        usable: row.try_get("usable")?,
        unrolls: row.try_get("unrolls")?,
        handed_over: row.try_get("handed_over")?,
    })
}
