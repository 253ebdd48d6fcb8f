//! Channels for those who sign with a buyer: where each client wants its next one, and those that sales make.

use bitcoin::Amount;
use bitcoin::secp256k1::PublicKey;
use factory_tree::ids::{ClientId, FactoryId, LeafId, SaleId};
use factory_tree::sale::order::BonusPlace;
use factory_tree::shape::ClientRange;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::sales::{self, ClientChannel};
use super::{Conn, Result, StoreError, codec};

/// A client says where it wants its next one. The same again changes nothing; false: leaf or key served somebody, or something, else.
///
/// # Errors
/// Those of the database.
pub async fn want(
    conn: &mut Conn,
    client: ClientId,
    position: u32,
    place: &BonusPlace,
) -> Result<bool> {
    let known: Option<i64> = sqlx::query_scalar(
        "SELECT 1 FROM bonus WHERE leaf_id = ? AND channel_key = ? AND client = ? AND factory = ?",
    )
    .bind(place.leaf_id.0.as_slice())
    .bind(place.channel_key.serialize().as_slice())
    .bind(client.0.as_slice())
    .bind(place.factory.0.as_slice())
    .fetch_optional(&mut *conn)
    .await?;
    if known.is_some() {
        return Ok(true);
    }
    if sales::is_used(conn, place.leaf_id, &place.channel_key).await? {
        return Ok(false);
    }
    sqlx::query("DELETE FROM bonus WHERE factory = ? AND position = ? AND sale IS NULL")
        .bind(place.factory.0.as_slice())
        .bind(position)
        .execute(&mut *conn)
        .await?;
    sqlx::query(
        "INSERT INTO bonus (leaf_id, channel_key, client, factory, position) VALUES (?, ?, ?, ?, ?)",
    )
    .bind(place.leaf_id.0.as_slice())
    .bind(place.channel_key.serialize().as_slice())
    .bind(client.0.as_slice())
    .bind(place.factory.0.as_slice())
    .bind(position)
    .execute(conn)
    .await?;
    Ok(true)
}

/// Where those at these places of a factory want their next one, in leaf order.
///
/// # Errors
/// Those of the database.
pub async fn wanted(
    conn: &mut Conn,
    factory: FactoryId,
    clients: &ClientRange,
) -> Result<Vec<ClientChannel>> {
    let rows = sqlx::query(
        "SELECT * FROM bonus WHERE factory = ? AND position >= ? AND position < ? AND sale IS NULL ORDER BY position",
    )
    .bind(factory.0.as_slice())
    .bind(clients.start)
    .bind(clients.end)
    .fetch_all(conn)
    .await?;
    rows.iter().map(read).collect()
}

/// A sale is to make these.
///
/// # Errors
/// Those of the database.
pub async fn give(conn: &mut Conn, sale: SaleId, given: &[ClientChannel]) -> Result<()> {
    for bonus in given {
        sqlx::query("UPDATE bonus SET sale = ?, capacity_sat = ? WHERE leaf_id = ?")
            .bind(sale.0.as_slice())
            .bind(codec::int("amount", bonus.capacity.to_sat())?)
            .bind(bonus.leaf_id.0.as_slice())
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

/// What a sale makes, or is to make, in leaf order.
///
/// # Errors
/// Those of the database.
pub async fn of_sale(conn: &mut Conn, sale: SaleId) -> Result<Vec<ClientChannel>> {
    let rows = sqlx::query("SELECT * FROM bonus WHERE sale = ? ORDER BY position")
        .bind(sale.0.as_slice())
        .fetch_all(conn)
        .await?;
    rows.iter().map(read).collect()
}

/// Its client has the sale that makes it in its exit kit.
///
/// # Errors
/// Those of the database.
pub async fn acked(conn: &mut Conn, sale: SaleId, client: ClientId) -> Result<()> {
    sqlx::query("UPDATE bonus SET acked = 1 WHERE sale = ? AND client = ?")
        .bind(sale.0.as_slice())
        .bind(client.0.as_slice())
        .execute(conn)
        .await?;
    Ok(())
}

/// A sale makes none, unless a client may have signed terms that have them. What was not offered can serve again; who was offered one draws another.
///
/// # Errors
/// Those of the database.
pub async fn take_back(conn: &mut Conn, sale: SaleId) -> Result<()> {
    sqlx::query(
        "UPDATE OR IGNORE bonus SET sale = NULL, capacity_sat = NULL \
         WHERE sale = (SELECT sale FROM sale WHERE sale = ? AND bound IS NULL AND attempts = 0)",
    )
    .bind(sale.0.as_slice())
    .execute(&mut *conn)
    .await?;
    let query =
        "DELETE FROM bonus WHERE sale = (SELECT sale FROM sale WHERE sale = ? AND bound IS NULL)";
    sqlx::query(query)
        .bind(sale.0.as_slice())
        .execute(conn)
        .await?;
    Ok(())
}

/// A sale makes none for this client, which did not want it and draws another; unless terms are bound that have it.
///
/// # Errors
/// Those of the database.
pub async fn decline(conn: &mut Conn, sale: SaleId, client: ClientId) -> Result<()> {
    sqlx::query(
        "DELETE FROM bonus WHERE client = ? AND sale = (SELECT sale FROM sale WHERE sale = ? AND bound IS NULL)",
    )
    .bind(client.0.as_slice())
    .bind(sale.0.as_slice())
    .execute(conn)
    .await?;
    Ok(())
}

fn read(row: &SqliteRow) -> Result<ClientChannel> {
    let leaf: &[u8] = row.try_get("leaf_id")?;
    let capacity: Option<i64> = row.try_get("capacity_sat")?;
    let capacity = codec::optional("amount", capacity)?;
    Ok(ClientChannel {
        client: codec::client(row.try_get("client")?)?,
        position: codec::number("position", row.try_get("position")?)?,
        leaf_id: LeafId::try_from(leaf).map_err(|error| StoreError::value("leaf id", error))?,
        channel_key: PublicKey::from_slice(row.try_get("channel_key")?)
            .map_err(|error| StoreError::value("channel key", error))?,
        capacity: Amount::from_sat(capacity.unwrap_or(0)),
    })
}
