//! Whose store it is.

use async_trait::async_trait;
use bitcoin::hashes::Hash;
use bitcoin::{BlockHash, Network};
use chain::BlockId;
use factory_tree::ids::ClientId;

use super::codec::{Columns, unreadable};
use super::{Result, SqliteStore, StoreError};

/// Whose store it is, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The network.
    pub network: Network,
    /// The account.
    pub node_id: ClientId,
    /// Nothing of this wallet is older; `None` for one restored from its words.
    pub birthday: Option<BlockId>,
}

/// Whose store it is, and its age.
#[async_trait]
pub trait IdentityStore {
    /// `None` in a new store.
    async fn identity(&self) -> Result<Option<Identity>>;

    /// Claims a new store. Fails with [`StoreError::OtherNode`] or [`StoreError::OtherNetwork`] if
    /// it is somebody else's; does nothing if it is ours already.
    async fn claim(&self, identity: &Identity) -> Result<()>;

    /// Grows by one with every join, signature and kit.
    async fn epoch(&self) -> Result<u64>;

    /// Writes everything out and closes the store; nothing may follow.
    async fn close(&self);
}

#[async_trait]
impl IdentityStore for SqliteStore {
    async fn identity(&self) -> Result<Option<Identity>> {
        let row = sqlx::query(
            "SELECT network, node_id, birthday_height, birthday_hash FROM identity WHERE id = 1",
        )
        .fetch_optional(self.pool())
        .await
        .map_err(|error| self.error(error))?;
        let Some(row) = row else { return Ok(None) };
        let row = Columns(&row);
        let hash = row.maybe_bytes("birthday_hash")?;
        let birthday = match (row.maybe_number("birthday_height")?, hash) {
            (Some(height), Some(hash)) => Some(BlockId {
                height,
                hash: BlockHash::from_slice(&hash).map_err(|_| unreadable("birthday_hash"))?,
            }),
            _ => None,
        };
        Ok(Some(Identity {
            network: row
                .text("network")?
                .parse()
                .map_err(|_| unreadable("network"))?,
            node_id: ClientId(row.array("node_id")?),
            birthday,
        }))
    }

    async fn claim(&self, identity: &Identity) -> Result<()> {
        let birthday = identity.birthday;
        sqlx::query(
            "INSERT INTO identity (id, network, node_id, birthday_height, birthday_hash, epoch)
             VALUES (1, ?, ?, ?, ?, 0) ON CONFLICT (id) DO NOTHING",
        )
        .bind(identity.network.to_string())
        .bind(identity.node_id.0.as_slice())
        .bind(birthday.map(|block| i64::from(block.height)))
        .bind(birthday.map(|block| block.hash.to_byte_array().to_vec()))
        .execute(self.pool())
        .await
        .map_err(|error| self.error(error))?;
        let found = self.identity().await?.ok_or(unreadable("identity"))?;
        if found.network != identity.network {
            return Err(StoreError::OtherNetwork {
                expected: identity.network,
                found: found.network,
            });
        }
        if found.node_id != identity.node_id {
            return Err(StoreError::OtherNode {
                expected: identity.node_id,
                found: found.node_id,
            });
        }
        Ok(())
    }

    async fn epoch(&self) -> Result<u64> {
        let epoch: Option<i64> = sqlx::query_scalar("SELECT epoch FROM identity WHERE id = 1")
            .fetch_optional(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        u64::try_from(epoch.unwrap_or(0)).map_err(|_| unreadable("epoch"))
    }

    async fn close(&self) {
        self.pool().close().await;
    }
}
