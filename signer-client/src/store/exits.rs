//! Exits under way, what was published for them, and what that cost.

use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use bitcoin::consensus::encode::serialize;
use bitcoin::hashes::Hash;
use bitcoin::{Amount, FeeRate, Transaction, Txid};
use factory_tree::ids::FactoryId;
use factory_tree::units::Height;
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;

use super::codec::{Columns, sat, unreadable};
use super::{Result, SqliteStore};

/// What an exit is to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// The whole path now, the channel's timeout at `T`.
    Leave,
    /// Nothing before `T`, then the timeout of whatever is on the chain.
    Timeout,
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leave => "leave",
            Self::Timeout => "timeout",
        })
    }
}

impl FromStr for Goal {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "leave" => Ok(Self::Leave),
            "timeout" => Ok(Self::Timeout),
            _ => Err(()),
        }
    }
}

/// How far an exit is. For people and for other processes; the driver itself derives everything
/// from the chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// What it is doing, in words.
    pub text: String,
    /// The height it waits for.
    pub until: Option<Height>,
    /// The height it was done at.
    pub done: Option<Height>,
}

/// An exit under way or done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitRow {
    /// Out of which factory.
    pub factory: FactoryId,
    /// What it is to reach.
    pub goal: Goal,
    /// The feerate asked for; `None`: by the node's estimates.
    pub feerate: Option<FeeRate>,
    /// The most it may cost; `None`: by the configuration.
    pub max_fee: Option<Amount>,
    /// The tip when it was asked for.
    pub requested: Height,
    /// How far it is.
    pub progress: Progress,
}

impl ExitRow {
    /// Whether this wallet leaves that factory, or has left it: nothing in it is to be used any more, and its calendar is over.
    #[must_use]
    pub fn leaves(&self, factory: FactoryId) -> bool {
        self.goal == Goal::Leave && self.factory == factory
    }
}

/// A transaction of a kit that was handed to the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedRow {
    /// Which.
    pub txid: Txid,
    /// Of which factory.
    pub factory: FactoryId,
    /// What it is.
    pub kind: String,
    /// Its size.
    pub vbytes: u64,
    /// The tip when it was first handed over.
    pub first_height: Height,
}

/// A child that pays for a published transaction. The newest one counts; older ones were replaced
/// or confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeeChildRow {
    /// The child.
    pub tx: Transaction,
    /// Of which published transaction.
    pub parent: Txid,
    /// Its fee.
    pub fee: Amount,
    /// The feerate of the two together that it was made for.
    pub feerate: FeeRate,
    /// The tip when it was made.
    pub height: Height,
}

/// Exits.
#[async_trait]
pub trait ExitStore {
    /// Asks for an exit, or changes its terms.
    async fn request_exit(&self, exit: &ExitRow) -> Result<()>;

    /// Notes how far it is.
    async fn set_progress(&self, factory: FactoryId, progress: &Progress) -> Result<()>;

    /// Every exit asked for.
    async fn exits(&self) -> Result<Vec<ExitRow>>;

    /// Notes that the node has taken a transaction; the first time counts.
    async fn record_published(&self, row: &PublishedRow) -> Result<()>;

    /// What was published for a factory, in order.
    async fn published(&self, factory: FactoryId) -> Result<Vec<PublishedRow>>;

    /// Notes a child that the node has taken.
    async fn record_child(&self, row: &FeeChildRow) -> Result<()>;

    /// All children of everything published for a factory, oldest first.
    async fn children(&self, factory: FactoryId) -> Result<Vec<FeeChildRow>>;
}

#[async_trait]
impl ExitStore for SqliteStore {
    async fn request_exit(&self, exit: &ExitRow) -> Result<()> {
        sqlx::query(
            "INSERT INTO exits (factory_id, goal, sat_per_kwu, max_fee_sat, requested_height,
                progress, waiting_until, done_height) VALUES (?, ?, ?, ?, ?, ?, NULL, NULL)
             ON CONFLICT (factory_id) DO UPDATE SET goal = excluded.goal,
                sat_per_kwu = excluded.sat_per_kwu, max_fee_sat = excluded.max_fee_sat",
        )
        .bind(exit.factory.0.as_slice())
        .bind(exit.goal.to_string())
        .bind(exit.feerate.map(kwu))
        .bind(exit.max_fee.map(sat))
        .bind(i64::from(exit.requested.0))
        .bind(&exit.progress.text)
        .execute(self.pool())
        .await
        .map_err(|error| self.error(error))?;
        Ok(())
    }

    async fn set_progress(&self, factory: FactoryId, progress: &Progress) -> Result<()> {
        sqlx::query(
            "UPDATE exits SET progress = ?, waiting_until = ?, done_height = ? WHERE factory_id = ?",
        )
        .bind(&progress.text)
        .bind(progress.until.map(|height| i64::from(height.0)))
        .bind(progress.done.map(|height| i64::from(height.0)))
        .bind(factory.0.as_slice())
        .execute(self.pool())
        .await
        .map_err(|error| self.error(error))?;
        Ok(())
    }

    async fn exits(&self) -> Result<Vec<ExitRow>> {
        let rows = sqlx::query("SELECT * FROM exits ORDER BY requested_height, rowid")
            .fetch_all(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        rows.iter().map(read_exit).collect()
    }

    async fn record_published(&self, row: &PublishedRow) -> Result<()> {
        sqlx::query(
            "INSERT INTO published (txid, factory_id, kind, vbytes, first_height)
             VALUES (?, ?, ?, ?, ?) ON CONFLICT (txid) DO NOTHING",
        )
        .bind(row.txid.to_byte_array().to_vec())
        .bind(row.factory.0.as_slice())
        .bind(&row.kind)
        .bind(i64::try_from(row.vbytes).unwrap_or(i64::MAX))
        .bind(i64::from(row.first_height.0))
        .execute(self.pool())
        .await
        .map_err(|error| self.error(error))?;
        Ok(())
    }

    async fn published(&self, factory: FactoryId) -> Result<Vec<PublishedRow>> {
        let rows = sqlx::query("SELECT * FROM published WHERE factory_id = ? ORDER BY rowid")
            .bind(factory.0.as_slice())
            .fetch_all(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        rows.iter().map(read_published).collect()
    }

    async fn record_child(&self, row: &FeeChildRow) -> Result<()> {
        sqlx::query(
            "INSERT INTO fee_children (txid, parent, raw, fee_sat, sat_per_kwu, height)
             VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (txid) DO NOTHING",
        )
        .bind(row.tx.compute_txid().to_byte_array().to_vec())
        .bind(row.parent.to_byte_array().to_vec())
        .bind(serialize(&row.tx))
        .bind(sat(row.fee))
        .bind(kwu(row.feerate))
        .bind(i64::from(row.height.0))
        .execute(self.pool())
        .await
        .map_err(|error| self.error(error))?;
        Ok(())
    }

    async fn children(&self, factory: FactoryId) -> Result<Vec<FeeChildRow>> {
        let rows = sqlx::query(
            "SELECT fee_children.* FROM fee_children JOIN published ON published.txid = parent
             WHERE factory_id = ? ORDER BY fee_children.rowid",
        )
        .bind(factory.0.as_slice())
        .fetch_all(self.pool())
        .await
        .map_err(|error| self.error(error))?;
        rows.iter().map(read_child).collect()
    }
}

fn kwu(feerate: FeeRate) -> i64 {
    i64::try_from(feerate.to_sat_per_kwu()).unwrap_or(i64::MAX)
}

fn read_exit(row: &SqliteRow) -> Result<ExitRow> {
    let row = Columns(row);
    Ok(ExitRow {
        factory: FactoryId(row.array("factory_id")?),
        goal: row.text("goal")?.parse().map_err(|()| unreadable("goal"))?,
        feerate: row
            .maybe_whole("sat_per_kwu")?
            .map(FeeRate::from_sat_per_kwu),
        max_fee: row.maybe_whole("max_fee_sat")?.map(Amount::from_sat),
        requested: Height(row.number("requested_height")?),
        progress: Progress {
            text: row.text("progress")?,
            until: row.maybe_number("waiting_until")?.map(Height),
            done: row.maybe_number("done_height")?.map(Height),
        },
    })
}

fn read_published(row: &SqliteRow) -> Result<PublishedRow> {
    let row = Columns(row);
    Ok(PublishedRow {
        txid: row.txid("txid")?,
        factory: FactoryId(row.array("factory_id")?),
        kind: row.text("kind")?,
        vbytes: row.whole("vbytes")?,
        first_height: Height(row.number("first_height")?),
    })
}

fn read_child(row: &SqliteRow) -> Result<FeeChildRow> {
    let row = Columns(row);
    Ok(FeeChildRow {
        tx: row.transaction("raw")?,
        parent: row.txid("parent")?,
        fee: row.amount("fee_sat")?,
        feerate: FeeRate::from_sat_per_kwu(row.whole("sat_per_kwu")?),
        height: Height(row.number("height")?),
    })
}
