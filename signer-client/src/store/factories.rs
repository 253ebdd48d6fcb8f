//! Factories and their exit kits.

use async_trait::async_trait;
use bitcoin::{Amount, OutPoint};
use factory_tree::ceremony::message::Round;
use factory_tree::ids::{Attempt, CeremonyId, FactoryId};
use factory_tree::units::Height;
use sqlx::sqlite::SqliteRow;

use super::codec::{Columns, outpoint_bytes, sat, unreadable};
use super::{Result, SqliteStore, StoreError};

/// A factory this client holds an exit kit of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FactoryRow {
    /// Its id.
    pub factory: FactoryId,
    /// The attempt that made it.
    pub round: Round,
    /// Of the join.
    pub join_nonce: [u8; 16],
    /// The only outpoint this client ever credits.
    pub funding: OutPoint,
    /// The funding input common to all attempts of the ceremony.
    pub common_pin: OutPoint,
    /// Channel capacity.
    pub capacity: Amount,
    /// Height it was proposed at.
    pub birth: Height,
    /// `T`.
    pub expiry: Height,
    /// Depth at which it is used.
    pub confirmations: u32,
    /// What was agreed to for a month in it.
    pub fee: Amount,
    /// The acknowledgement may have been sent.
    pub acked: bool,
    /// The coordinator gave the attempt up. Its funding may confirm all the same, so the kit stays.
    pub failed: bool,
    /// Height of the funding transaction's block.
    pub confirmed: Option<Height>,
    /// Buried as deep as agreed.
    pub usable: bool,
    /// Height at which it was found that the funding can never confirm.
    pub abandoned: Option<Height>,
    /// Height at which nothing of it was left to be claimed.
    pub closed: Option<Height>,
    /// How far its keys are on their way to the coordinator.
    pub handover: Option<Handover>,
}

/// How far the handover of a factory's keys is (protocol.md section 7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handover {
    /// The gate of its channel is shut, so that nothing arrives any more. Nothing was sent: there is a way back.
    Begun,
    /// The keys may have been sent: nothing of it may be used any more.
    Sent,
    /// The coordinator has them, since this height.
    Taken(Height),
}

impl FactoryRow {
    /// Whether something of it may still happen on the chain.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        self.abandoned.is_none() && self.closed.is_none() && !self.is_handed_over()
    }

    /// Whether it is the coordinator's.
    #[must_use]
    pub const fn is_handed_over(&self) -> bool {
        matches!(self.handover, Some(Handover::Taken(_)))
    }

    /// Whether somebody else may have its keys: nothing is received in it, nor claimed out of it any more.
    #[must_use]
    pub const fn is_given_away(&self) -> bool {
        matches!(self.handover, Some(Handover::Sent | Handover::Taken(_)))
    }

    /// Whether its channel may be used: buried as agreed, nothing of it over, its keys not on their way.
    #[must_use]
    pub const fn stands(&self) -> bool {
        self.usable && self.is_live() && self.handover.is_none()
    }

    /// One word for what it is doing.
    #[must_use]
    pub const fn state(&self) -> &'static str {
        match (self.closed, self.abandoned, self.confirmed) {
            _ if self.is_handed_over() => "handed_over",
            _ if self.handover.is_some() => "handing_over",
            (Some(_), _, _) => "closed",
            (_, Some(_), _) => "abandoned",
            (_, _, Some(_)) if self.usable => "usable",
            (_, _, Some(_)) => "confirming",
            _ if self.failed => "failed",
            _ if self.acked => "unconfirmed",
            _ => "kit_stored",
        }
    }
}

/// Factories and kits.
#[async_trait]
pub trait FactoryStore {
    /// Stores a kit with its factory, before the acknowledgement is sent.
    async fn store_kit(&self, factory: &FactoryRow, kit: &[u8]) -> Result<()>;

    /// The kit as it was stored.
    async fn kit(&self, factory: FactoryId) -> Result<Vec<u8>>;

    /// All factories, oldest first.
    async fn factories(&self) -> Result<Vec<FactoryRow>>;

    /// One factory; fails with [`StoreError::NoFactory`].
    async fn factory(&self, factory: FactoryId) -> Result<FactoryRow>;

    /// The acknowledgement is about to be sent.
    async fn set_acked(&self, factory: FactoryId) -> Result<()>;

    /// The coordinator gave up this attempt.
    async fn set_failed(&self, round: Round) -> Result<()>;

    /// What the chain says of the funding. The wish for a factory ends, in the same step, with one
    /// that becomes usable: a crash in between would build another one.
    async fn set_confirmed(
        &self,
        factory: FactoryId,
        confirmed: Option<Height>,
        usable: bool,
    ) -> Result<()>;

    /// Whether the funding can never confirm, and since when that is known.
    async fn set_abandoned(&self, factory: FactoryId, since: Option<Height>) -> Result<()>;

    /// Whether nothing is left to be claimed, and since when.
    async fn set_closed(&self, factory: FactoryId, since: Option<Height>) -> Result<()>;

    /// How far the handover of its keys is. What was taken stays taken.
    async fn set_handover(&self, factory: FactoryId, handover: Option<Handover>) -> Result<()>;
}

#[async_trait]
impl FactoryStore for SqliteStore {
    async fn store_kit(&self, factory: &FactoryRow, kit: &[u8]) -> Result<()> {
        let mut tx = self.write().await?;
        sqlx::query(
            "INSERT INTO factories (factory_id, ceremony, attempt, join_nonce, funding, common_pin,
                capacity_sat, birth_height, expiry_height, confirmations, fee_sat, acked, failed, usable)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0) ON CONFLICT (factory_id) DO NOTHING",
        )
        .bind(factory.factory.0.as_slice())
        .bind(factory.round.ceremony.0.as_slice())
        .bind(i64::from(factory.round.attempt.0))
        .bind(factory.join_nonce.as_slice())
        .bind(outpoint_bytes(&factory.funding))
        .bind(outpoint_bytes(&factory.common_pin))
        .bind(sat(factory.capacity))
        .bind(i64::from(factory.birth.0))
        .bind(i64::from(factory.expiry.0))
        .bind(i64::from(factory.confirmations))
        .bind(sat(factory.fee))
        .execute(&mut *tx)
        .await
        .map_err(|error| self.error(error))?;
        // The same kit may come twice (the finals were resent); what is stored stays.
        sqlx::query(
            "INSERT INTO kits (factory_id, kit) VALUES (?, ?) ON CONFLICT (factory_id) DO NOTHING",
        )
        .bind(factory.factory.0.as_slice())
        .bind(kit)
        .execute(&mut *tx)
        .await
        .map_err(|error| self.error(error))?;
        self.bump_epoch(&mut tx).await?;
        self.commit(tx).await
    }

    async fn kit(&self, factory: FactoryId) -> Result<Vec<u8>> {
        let kit: Option<Vec<u8>> = sqlx::query_scalar("SELECT kit FROM kits WHERE factory_id = ?")
            .bind(factory.0.as_slice())
            .fetch_optional(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        kit.ok_or(StoreError::NoFactory(factory))
    }

    async fn factories(&self) -> Result<Vec<FactoryRow>> {
        let rows = sqlx::query("SELECT * FROM factories ORDER BY birth_height, rowid")
            .fetch_all(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        rows.iter().map(read).collect()
    }

    async fn factory(&self, factory: FactoryId) -> Result<FactoryRow> {
        let row = sqlx::query("SELECT * FROM factories WHERE factory_id = ?")
            .bind(factory.0.as_slice())
            .fetch_optional(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        read(&row.ok_or(StoreError::NoFactory(factory))?)
    }

    async fn set_acked(&self, factory: FactoryId) -> Result<()> {
        sqlx::query("UPDATE factories SET acked = 1 WHERE factory_id = ?")
            .bind(factory.0.as_slice())
            .execute(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        Ok(())
    }

    async fn set_failed(&self, round: Round) -> Result<()> {
        sqlx::query("UPDATE factories SET failed = 1 WHERE ceremony = ? AND attempt = ?")
            .bind(round.ceremony.0.as_slice())
            .bind(i64::from(round.attempt.0))
            .execute(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        Ok(())
    }

    async fn set_confirmed(
        &self,
        factory: FactoryId,
        confirmed: Option<Height>,
        usable: bool,
    ) -> Result<()> {
        let mut tx = self.write().await?;
        if usable {
            sqlx::query(
                "DELETE FROM interest WHERE EXISTS
                 (SELECT 1 FROM factories WHERE factory_id = ? AND usable = 0)",
            )
            .bind(factory.0.as_slice())
            .execute(&mut *tx)
            .await
            .map_err(|error| self.error(error))?;
        }
        sqlx::query("UPDATE factories SET confirmed_height = ?, usable = ? WHERE factory_id = ?")
            .bind(confirmed.map(|height| i64::from(height.0)))
            .bind(i64::from(usable))
            .bind(factory.0.as_slice())
            .execute(&mut *tx)
            .await
            .map_err(|error| self.error(error))?;
        self.commit(tx).await
    }

    async fn set_abandoned(&self, factory: FactoryId, since: Option<Height>) -> Result<()> {
        sqlx::query("UPDATE factories SET abandoned_height = ? WHERE factory_id = ?")
            .bind(since.map(|height| i64::from(height.0)))
            .bind(factory.0.as_slice())
            .execute(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        Ok(())
    }

    async fn set_closed(&self, factory: FactoryId, since: Option<Height>) -> Result<()> {
        sqlx::query("UPDATE factories SET closed_height = ? WHERE factory_id = ?")
            .bind(since.map(|height| i64::from(height.0)))
            .bind(factory.0.as_slice())
            .execute(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        Ok(())
    }

    async fn set_handover(&self, factory: FactoryId, handover: Option<Handover>) -> Result<()> {
        let (step, taken) = match handover {
            None => (None, None),
            Some(Handover::Begun) => (Some("begun"), None),
            Some(Handover::Sent) => (Some("sent"), None),
            Some(Handover::Taken(height)) => (Some("sent"), Some(i64::from(height.0))),
        };
        let mut tx = self.write().await?;
        sqlx::query(
            "UPDATE factories SET handover = ?, handed_over_height = ?
             WHERE factory_id = ? AND handed_over_height IS NULL",
        )
        .bind(step)
        .bind(taken)
        .bind(factory.0.as_slice())
        .execute(&mut *tx)
        .await
        .map_err(|error| self.error(error))?;
        // A backup from before would use keys that are somebody else's.
        self.bump_epoch(&mut tx).await?;
        self.commit(tx).await
    }
}

fn read(row: &SqliteRow) -> Result<FactoryRow> {
    let row = Columns(row);
    let maybe_height = |name| Ok::<_, StoreError>(row.maybe_number(name)?.map(Height));
    Ok(FactoryRow {
        factory: FactoryId(row.array("factory_id")?),
        round: Round {
            ceremony: CeremonyId(row.array("ceremony")?),
            attempt: Attempt(row.number("attempt")?),
        },
        join_nonce: row.array("join_nonce")?,
        funding: row.outpoint("funding")?,
        common_pin: row.outpoint("common_pin")?,
        capacity: row.amount("capacity_sat")?,
        birth: Height(row.number("birth_height")?),
        expiry: Height(row.number("expiry_height")?),
        confirmations: row.number("confirmations")?,
        fee: row.amount("fee_sat")?,
        acked: row.flag("acked")?,
        failed: row.flag("failed")?,
        confirmed: maybe_height("confirmed_height")?,
        usable: row.flag("usable")?,
        abandoned: maybe_height("abandoned_height")?,
        closed: maybe_height("closed_height")?,
        handover: match (
            row.maybe_text("handover")?.as_deref(),
            maybe_height("handed_over_height")?,
        ) {
            (_, Some(height)) => Some(Handover::Taken(height)),
            (Some("sent"), None) => Some(Handover::Sent),
            (Some("begun"), None) => Some(Handover::Begun),
            (None, None) => None,
            (Some(_), None) => return Err(unreadable("handover")),
        },
    })
}
