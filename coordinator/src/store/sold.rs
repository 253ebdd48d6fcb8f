//! Sales that are signed, as everything but the service that makes them knows them. Such a sale is never undone.

use bitcoin::Amount;
use bitcoin::secp256k1::PublicKey;
use factory_tree::ids::{ClientId, FactoryId, LeafId};
use factory_tree::sale::seller::SoldRecord;
use factory_tree::shape::ClientRange;
use sqlx::Row;

use super::{Conn, Result, StoreError, codec};
use crate::keys::FreshSeed;

/// A signed sale.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SoldSale {
    /// Everything that was signed.
    pub record: SoldRecord,
    /// The randomness of our keys of its channels.
    pub fresh: FreshSeed,
    /// The buyer.
    pub client: ClientId,
}

/// A channel that a member bought, or got for signing with who did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoldLeaf {
    /// In which factory.
    pub factory: FactoryId,
    /// The member's place there.
    pub position: u32,
    /// Its leaf.
    pub leaf: LeafId,
    /// Its capacity.
    pub capacity: Amount,
    /// The member's funding key.
    pub channel_key: PublicKey,
}

/// The sales of a factory, in the order of their stocks and of their places there.
///
/// # Errors
/// Those of the database.
pub async fn of_factory(conn: &mut Conn, factory: FactoryId) -> Result<Vec<SoldSale>> {
    let rows = sqlx::query(
        "SELECT client, fresh, sold FROM sale WHERE factory = ? AND sold IS NOT NULL \
         ORDER BY stock_txid, stock_vout, place",
    )
    .bind(factory.0.as_slice())
    .fetch_all(conn)
    .await?;
    rows.iter()
        .map(|row| {
            let (fresh, sold): (&[u8], &str) = (row.try_get("fresh")?, row.try_get("sold")?);
            Ok(SoldSale {
                record: codec::from_json("sale", sold.as_bytes())?,
                fresh: fresh
                    .try_into()
                    .map_err(|error| StoreError::value("randomness of a sale", error))?,
                client: codec::client(row.try_get("client")?)?,
            })
        })
        .collect()
}

/// Every channel that was sold, or those of one client; each member's in the order of their places.
///
/// # Errors
/// Those of the database.
pub async fn leaves(conn: &mut Conn, only: Option<ClientId>) -> Result<Vec<SoldLeaf>> {
    let only = only.map(|client| client.0.to_vec());
    let rows = sqlx::query(
        "SELECT factory, position, leaf_id, capacity_sat, channel_key FROM sold_channel \
         WHERE (?1 IS NULL OR client = ?1) ORDER BY factory, position, place",
    )
    .bind(only)
    .fetch_all(conn)
    .await?;
    rows.iter()
        .map(|row| {
            let leaf: &[u8] = row.try_get("leaf_id")?;
            let capacity = codec::number("amount", row.try_get("capacity_sat")?)?;
            Ok(SoldLeaf {
                factory: codec::factory(row.try_get("factory")?)?,
                position: codec::number("position", row.try_get("position")?)?,
                leaf: LeafId::try_from(leaf)
                    .map_err(|error| StoreError::value("leaf id", error))?,
                capacity: Amount::from_sat(capacity),
                channel_key: PublicKey::from_slice(row.try_get("channel_key")?)
                    .map_err(|error| StoreError::value("channel key", error))?,
            })
        })
        .collect()
}

/// Factories that sold from a stock, and have a stock in the chain.
///
/// # Errors
/// Those of the database.
pub async fn published(conn: &mut Conn) -> Result<Vec<FactoryId>> {
    let rows = sqlx::query(
        "SELECT DISTINCT s.factory FROM sale s WHERE s.sold IS NOT NULL AND EXISTS \
         (SELECT 1 FROM output o WHERE o.factory = s.factory AND o.kind = 'stock' AND o.spent_height IS NULL)",
    )
    .fetch_all(conn)
    .await?;
    rows.iter()
        .map(|row| codec::factory(row.try_get("factory")?))
        .collect()
}

/// Whether a sale is paid for, and not signed, from the stock that the clients at these places share.
///
/// # Errors
/// Those of the database.
pub async fn is_under_way(
    conn: &mut Conn,
    factory: FactoryId,
    clients: &ClientRange,
) -> Result<bool> {
    let query = "SELECT EXISTS (SELECT 1 FROM sale WHERE state = 'paid' AND factory = ? AND position >= ? AND position < ?)";
    Ok(sqlx::query_scalar(query)
        .bind(factory.0.as_slice())
        .bind(clients.start)
        .bind(clients.end)
        .fetch_one(conn)
        .await?)
}
