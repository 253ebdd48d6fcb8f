//! Whose database this is.

use std::path::PathBuf;

use bitcoin::Network;
use factory_tree::ids::ClientId;
use sqlx::Row;

use super::{Conn, Result, StoreError};

/// Writes down the owner at the first start, and refuses every other one later.
///
/// # Errors
/// [`StoreError::OtherOwner`].
pub async fn claim(conn: &mut Conn, network: Network, node_id: &[u8; 33]) -> Result<()> {
    sqlx::query("INSERT INTO owner (id, network, node_id) VALUES (1, ?, ?) ON CONFLICT DO NOTHING")
        .bind(network.to_string())
        .bind(node_id.as_slice())
        .execute(&mut *conn)
        .await?;
    let row = sqlx::query("SELECT network, node_id FROM owner WHERE id = 1")
        .fetch_one(conn)
        .await?;
    let (stored_network, stored_node): (String, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
    let describe = |network: &str, node: &[u8]| {
        let node = ClientId::try_from(node).map_or_else(|_| "?".to_owned(), |id| id.to_string());
        format!("node {node} on {network}")
    };
    let expected = describe(&network.to_string(), node_id);
    let found = describe(&stored_network, &stored_node);
    if expected != found {
        return Err(StoreError::OtherOwner {
            path: PathBuf::new(),
            expected,
            found,
        });
    }
    Ok(())
}
