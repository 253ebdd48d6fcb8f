//! Moves out of factories that end: their parts, and what the coordinator says about their end.

use std::fmt;

use async_trait::async_trait;
use channel_host::{LeafId, Msat, PaymentHash};
use factory_tree::ids::FactoryId;
use factory_tree::ladder::Notice;
use factory_tree::units::Height;
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;

use super::codec::{Columns, unreadable};
use super::{Result, SqliteStore};

/// What a payment of a part carries (BOLT 11's payment secret). Not shown by `Debug`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token(pub [u8; 32]);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// A move that began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoveRow {
    /// The factory that ends.
    pub from: FactoryId,
    /// What there was to move.
    pub total: Msat,
    /// The tip then.
    pub begun: Height,
}

/// How far a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartProgress {
    /// The coordinator is asked for it. Nothing was paid, so nothing can move.
    Asked,
    /// Its terms are good and kept: it may be on its way.
    Agreed,
    /// It arrived.
    Moved,
    /// It never was, or came back whole.
    Failed,
}

impl PartProgress {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Agreed => "agreed",
            Self::Moved => "moved",
            Self::Failed => "failed",
        }
    }

    /// Whether it has come to an end.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Moved | Self::Failed)
    }
}

/// What was agreed about a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// What our payment carries.
    pub token: Token,
    /// What we pay beyond what arrives.
    pub fee: Msat,
    /// When our payment expires.
    pub incoming: Height,
    /// When the coordinator's does.
    pub outgoing: Height,
}

/// A part of a move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartRow {
    /// Of a preimage that only our Lightning node knows.
    pub hash: PaymentHash,
    /// The factory that ends.
    pub from: FactoryId,
    /// The younger one.
    pub to: FactoryId,
    /// The channel it leaves.
    pub from_leaf: LeafId,
    /// The channel it is to arrive in.
    pub to_leaf: LeafId,
    /// What is to arrive.
    pub amount: Msat,
    /// What the coordinator's payment carries.
    pub token: Token,
    /// The tip when it was asked for.
    pub asked: Height,
    /// How far it is.
    pub progress: PartProgress,
    /// What was agreed, once it was.
    pub agreed: Option<Agreed>,
    /// Why it failed.
    pub failure: Option<String>,
}

/// How a part ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartEnd {
    /// It arrived.
    Moved,
    /// It never was, or came back whole.
    Failed {
        /// Why.
        why: String,
    },
}

/// What the coordinator said last of a factory's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoticeRow {
    /// The factory.
    pub factory: FactoryId,
    /// The words.
    pub notice: Notice,
    /// The tip when it came.
    pub told: Height,
}

/// Why the last invitation out of a factory was declined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclineRow {
    /// The factory that ends.
    pub factory: FactoryId,
    /// Why, and what to change.
    pub why: String,
    /// The tip then.
    pub height: Height,
}

/// Moves.
#[async_trait]
pub trait MoveStore {
    /// Remembers what there is to move. Only the first time counts; returns what is stored.
    async fn begin_move(&self, row: &MoveRow) -> Result<MoveRow>;

    /// Every move.
    async fn moves(&self) -> Result<Vec<MoveRow>>;

    /// Adds a part, before the coordinator is asked for it.
    async fn add_part(&self, part: &PartRow) -> Result<()>;

    /// Remembers what was agreed, before anything is paid; `false` if the part is not one that is asked for.
    async fn agree_part(&self, hash: PaymentHash, agreed: &Agreed) -> Result<bool>;

    /// A part ended; `false` if that was known. What has arrived does not fail any more.
    async fn end_part(&self, hash: PaymentHash, end: &PartEnd) -> Result<bool>;

    /// One part.
    async fn part(&self, hash: PaymentHash) -> Result<Option<PartRow>>;

    /// All parts that came out of a factory or went into it, oldest first.
    async fn parts(&self, factory: FactoryId) -> Result<Vec<PartRow>>;

    /// Keeps what the coordinator says of a factory's end; `false` if it said the same before.
    async fn set_notice(&self, row: &NoticeRow) -> Result<bool>;

    /// What it said last of each.
    async fn notices(&self) -> Result<Vec<NoticeRow>>;

    /// Keeps why an invitation was declined, or forgets it.
    async fn set_decline(&self, factory: FactoryId, why: Option<(&str, Height)>) -> Result<()>;

    /// Why invitations were declined.
    async fn declines(&self) -> Result<Vec<DeclineRow>>;
}

fn msat(amount: Msat) -> i64 {
    i64::try_from(amount.0).unwrap_or(i64::MAX)
}

fn at(height: Height) -> i64 {
    i64::from(height.0)
}

#[async_trait]
impl MoveStore for SqliteStore {
    async fn begin_move(&self, row: &MoveRow) -> Result<MoveRow> {
        sqlx::query(
            "INSERT INTO moves (from_factory, total_msat, begun_height) VALUES (?, ?, ?)
             ON CONFLICT (from_factory) DO NOTHING",
        )
        .bind(row.from.0.as_slice())
        .bind(msat(row.total))
        .bind(at(row.begun))
        .execute(self.pool())
        .await
        .map_err(|error| self.error(error))?;
        let stored = sqlx::query("SELECT * FROM moves WHERE from_factory = ?")
            .bind(row.from.0.as_slice())
            .fetch_one(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        read_move(&stored)
    }

    async fn moves(&self) -> Result<Vec<MoveRow>> {
        let rows = sqlx::query("SELECT * FROM moves ORDER BY begun_height, rowid")
            .fetch_all(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        rows.iter().map(read_move).collect()
    }

    async fn add_part(&self, part: &PartRow) -> Result<()> {
        sqlx::query(
            "INSERT INTO parts (hash, from_factory, to_factory, from_leaf, to_leaf, amount_msat,
                arrival_token, asked_height, state) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'asked')",
        )
        .bind(part.hash.0.as_slice())
        .bind(part.from.0.as_slice())
        .bind(part.to.0.as_slice())
        .bind(part.from_leaf.0.as_slice())
        .bind(part.to_leaf.0.as_slice())
        .bind(msat(part.amount))
        .bind(part.token.0.as_slice())
        .bind(at(part.asked))
        .execute(self.pool())
        .await
        .map_err(|error| self.error(error))?;
        Ok(())
    }

    async fn agree_part(&self, hash: PaymentHash, agreed: &Agreed) -> Result<bool> {
        let done = sqlx::query(
            "UPDATE parts SET state = 'agreed', payment_token = ?, fee_msat = ?,
                incoming_expiry = ?, outgoing_expiry = ? WHERE hash = ? AND state = 'asked'",
        )
        .bind(agreed.token.0.as_slice())
        .bind(msat(agreed.fee))
        .bind(at(agreed.incoming))
        .bind(at(agreed.outgoing))
        .bind(hash.0.as_slice())
        .execute(self.pool())
        .await
        .map_err(|error| self.error(error))?;
        Ok(done.rows_affected() > 0)
    }

    async fn end_part(&self, hash: PaymentHash, end: &PartEnd) -> Result<bool> {
        let query = match end {
            // The word of a node that has claimed it counts whatever was thought before.
            PartEnd::Moved => sqlx::query(
                "UPDATE parts SET state = 'moved', failure = ? WHERE hash = ? AND state <> 'moved'",
            )
            .bind(None::<String>),
            PartEnd::Failed { why } => sqlx::query(
                "UPDATE parts SET state = 'failed', failure = ?
                 WHERE hash = ? AND state IN ('asked', 'agreed')",
            )
            .bind(Some(why.clone())),
        };
        let done = query
            .bind(hash.0.to_vec())
            .execute(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        Ok(done.rows_affected() > 0)
    }

    async fn part(&self, hash: PaymentHash) -> Result<Option<PartRow>> {
        let row = sqlx::query("SELECT * FROM parts WHERE hash = ?")
            .bind(hash.0.as_slice())
            .fetch_optional(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        row.as_ref().map(read_part).transpose()
    }

    async fn parts(&self, factory: FactoryId) -> Result<Vec<PartRow>> {
        let rows = sqlx::query(
            "SELECT * FROM parts WHERE from_factory = ?1 OR to_factory = ?1 ORDER BY rowid",
        )
        .bind(factory.0.as_slice())
        .fetch_all(self.pool())
        .await
        .map_err(|error| self.error(error))?;
        rows.iter().map(read_part).collect()
    }

    async fn set_notice(&self, row: &NoticeRow) -> Result<bool> {
        let text = serde_json::to_string(&row.notice).map_err(|_| unreadable("notice"))?;
        let done = sqlx::query(
            "INSERT INTO notices (factory_id, notice, told_height) VALUES (?, ?, ?)
             ON CONFLICT (factory_id) DO UPDATE SET notice = excluded.notice,
                told_height = excluded.told_height WHERE notice <> excluded.notice",
        )
        .bind(row.factory.0.as_slice())
        .bind(text)
        .bind(at(row.told))
        .execute(self.pool())
        .await
        .map_err(|error| self.error(error))?;
        Ok(done.rows_affected() > 0)
    }

    async fn notices(&self) -> Result<Vec<NoticeRow>> {
        let rows = sqlx::query("SELECT * FROM notices ORDER BY rowid")
            .fetch_all(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        let read = |row: &SqliteRow| {
            let row = Columns(row);
            Ok(NoticeRow {
                factory: FactoryId(row.array("factory_id")?),
                notice: serde_json::from_str(&row.text("notice")?)
                    .map_err(|_| unreadable("notice"))?,
                told: Height(row.number("told_height")?),
            })
        };
        rows.iter().map(read).collect()
    }

    async fn set_decline(&self, factory: FactoryId, why: Option<(&str, Height)>) -> Result<()> {
        let query = match why {
            Some((why, height)) => sqlx::query(
                "INSERT INTO declines (factory_id, why, height) VALUES (?1, ?2, ?3)
                 ON CONFLICT (factory_id) DO UPDATE SET why = excluded.why, height = excluded.height",
            )
            .bind(factory.0.to_vec())
            .bind(why.to_owned())
            .bind(at(height)),
            None => {
                sqlx::query("DELETE FROM declines WHERE factory_id = ?1").bind(factory.0.to_vec())
            }
        };
        query
            .execute(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        Ok(())
    }

    async fn declines(&self) -> Result<Vec<DeclineRow>> {
        let rows = sqlx::query("SELECT * FROM declines ORDER BY rowid")
            .fetch_all(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        let read = |row: &SqliteRow| {
            let row = Columns(row);
            Ok(DeclineRow {
                factory: FactoryId(row.array("factory_id")?),
                why: row.text("why")?,
                height: Height(row.number("height")?),
            })
        };
        rows.iter().map(read).collect()
    }
}

fn read_move(row: &SqliteRow) -> Result<MoveRow> {
    let row = Columns(row);
    Ok(MoveRow {
        from: FactoryId(row.array("from_factory")?),
        total: Msat(row.whole("total_msat")?),
        begun: Height(row.number("begun_height")?),
    })
}

fn read_progress(text: &str) -> Result<PartProgress> {
    use PartProgress::{Agreed, Asked, Failed, Moved};
    let known = [Asked, Agreed, Moved, Failed];
    let found = known.into_iter().find(|progress| progress.as_str() == text);
    found.ok_or(unreadable("part"))
}

fn read_part(row: &SqliteRow) -> Result<PartRow> {
    let row = Columns(row);
    let progress = read_progress(&row.text("state")?)?;
    let agreed = match row.maybe_bytes("payment_token")? {
        Some(_) => Some(Agreed {
            token: Token(row.array("payment_token")?),
            fee: Msat(row.whole("fee_msat")?),
            incoming: Height(row.number("incoming_expiry")?),
            outgoing: Height(row.number("outgoing_expiry")?),
        }),
        None => None,
    };
    Ok(PartRow {
        hash: PaymentHash(row.array("hash")?),
        from: FactoryId(row.array("from_factory")?),
        to: FactoryId(row.array("to_factory")?),
        from_leaf: LeafId(row.array("from_leaf")?),
        to_leaf: LeafId(row.array("to_leaf")?),
        amount: Msat(row.whole("amount_msat")?),
        token: Token(row.array("arrival_token")?),
        asked: Height(row.number("asked_height")?),
        progress,
        agreed,
        failure: row.maybe_text("failure")?,
    })
}
