//! What is known of channels without the Lightning node.

use async_trait::async_trait;
use bitcoin::Transaction;
use bitcoin::consensus::encode::{deserialize, serialize};
use channel_host::LeafId;
use factory_tree::ids::FactoryId;
use serde::{Deserialize, Serialize};

use super::codec::{Columns, unreadable};
use super::{Result, SqliteStore};
use crate::lightning::ChannelView;

/// The way to the coordinator's Lightning node, and through it to us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// host:port.
    pub address: String,
    /// Our number at the coordinator, for life.
    pub intercept_scid: u64,
    /// Blocks the coordinator asks for.
    pub cltv_delta: u16,
    /// Its fee per payment.
    pub base_msat: u32,
    /// Its fee in millionths of the amount.
    pub proportional_millionths: u32,
}

/// What is stored of a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelRow {
    /// The leaf it is on, or its number.
    pub leaf: LeafId,
    /// That leaf's factory; nothing for a channel that is on none.
    pub factory: Option<FactoryId>,
    /// What the Lightning node said last.
    pub view: Option<ChannelView>,
    /// Our signed commitment, once the leaf was confirmed.
    pub commitment: Option<Transaction>,
}

/// Channels.
#[async_trait]
pub trait ChannelStore {
    /// All that were ever seen.
    async fn channels(&self) -> Result<Vec<ChannelRow>>;

    /// Remembers what the Lightning node says of one.
    async fn set_channel(&self, leaf: LeafId, view: &ChannelView) -> Result<()>;

    /// There is no such channel any more.
    async fn forget_channel(&self, leaf: LeafId) -> Result<()>;

    /// Keeps a commitment, so that it can be handed to somebody who pays for it; `false` if it is there already.
    async fn set_commitment(
        &self,
        leaf: LeafId,
        factory: FactoryId,
        commitment: &Transaction,
    ) -> Result<bool>;

    /// The way to the coordinator's Lightning node, as it said last.
    async fn route(&self) -> Result<Option<Route>>;

    /// Remembers it.
    async fn set_route(&self, route: &Route) -> Result<()>;
}

#[async_trait]
impl ChannelStore for SqliteStore {
    async fn channels(&self) -> Result<Vec<ChannelRow>> {
        let rows = sqlx::query("SELECT * FROM channels ORDER BY rowid")
            .fetch_all(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        rows.iter()
            .map(|row| {
                let row = Columns(row);
                let view = row.maybe_text("view")?;
                let commitment = row.maybe_bytes("commitment")?;
                Ok(ChannelRow {
                    leaf: LeafId(row.array("leaf_id")?),
                    factory: match row.maybe_bytes("factory_id")? {
                        Some(_) => Some(FactoryId(row.array("factory_id")?)),
                        None => None,
                    },
                    view: view
                        .map(|text| serde_json::from_str(&text))
                        .transpose()
                        .map_err(|_| unreadable("channel"))?,
                    commitment: commitment
                        .map(|bytes| deserialize(&bytes))
                        .transpose()
                        .map_err(|_| unreadable("commitment"))?,
                })
            })
            .collect()
    }

    async fn set_channel(&self, leaf: LeafId, view: &ChannelView) -> Result<()> {
        let text = serde_json::to_string(view).map_err(|_| unreadable("channel"))?;
        sqlx::query(
            "INSERT INTO channels (leaf_id, factory_id, view) VALUES (?, ?, ?)
             ON CONFLICT (leaf_id) DO UPDATE SET view = excluded.view",
        )
        .bind(leaf.0.as_slice())
        .bind(view.factory.map(|factory| factory.0.to_vec()))
        .bind(text)
        .execute(self.pool())
        .await
        .map_err(|error| self.error(error))?;
        Ok(())
    }

    async fn forget_channel(&self, leaf: LeafId) -> Result<()> {
        sqlx::query("UPDATE channels SET view = NULL WHERE leaf_id = ?")
            .bind(leaf.0.as_slice())
            .execute(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        Ok(())
    }

    async fn set_commitment(
        &self,
        leaf: LeafId,
        factory: FactoryId,
        commitment: &Transaction,
    ) -> Result<bool> {
        let mut tx = self.write().await?;
        let known: Option<Option<Vec<u8>>> =
            sqlx::query_scalar("SELECT commitment FROM channels WHERE leaf_id = ?")
                .bind(leaf.0.as_slice())
                .fetch_optional(&mut *tx)
                .await
                .map_err(|error| self.error(error))?;
        let known = known.flatten().map(|bytes| deserialize(&bytes));
        let known: Option<Transaction> = known.transpose().map_err(|_| unreadable("commitment"))?;
        // The same one is signed anew each time, with other signatures.
        if known.is_some_and(|known| known.compute_txid() == commitment.compute_txid()) {
            return Ok(false);
        }
        sqlx::query(
            "INSERT INTO channels (leaf_id, factory_id, commitment) VALUES (?, ?, ?)
             ON CONFLICT (leaf_id) DO UPDATE SET commitment = excluded.commitment",
        )
        .bind(leaf.0.as_slice())
        .bind(factory.0.as_slice())
        .bind(serialize(commitment))
        .execute(&mut *tx)
        .await
        .map_err(|error| self.error(error))?;
        self.commit(tx).await?;
        Ok(true)
    }

    async fn route(&self) -> Result<Option<Route>> {
        let text: Option<String> =
            sqlx::query_scalar("SELECT route FROM lightning_route WHERE id = 1")
                .fetch_optional(self.pool())
                .await
                .map_err(|error| self.error(error))?;
        text.map(|text| serde_json::from_str(&text).map_err(|_| unreadable("Lightning route")))
            .transpose()
    }

    async fn set_route(&self, route: &Route) -> Result<()> {
        let text = serde_json::to_string(route).map_err(|_| unreadable("Lightning route"))?;
        sqlx::query(
            "INSERT INTO lightning_route (id, route) VALUES (1, ?)
             ON CONFLICT (id) DO UPDATE SET route = excluded.route",
        )
        .bind(text)
        .execute(self.pool())
        .await
        .map_err(|error| self.error(error))?;
        Ok(())
    }
}
