//! Attempts, and the keys and leaf ids that were used in them.

use std::collections::HashSet;

use bitcoin::ScriptBuf;
use bitcoin::secp256k1::PublicKey;
use factory_tree::ceremony::coordinator::{Blame, Invitee, LeftOut};
use factory_tree::ceremony::message::Round;
use factory_tree::ids::{Attempt, CeremonyId, ClientId, LeafId};
use sqlx::{QueryBuilder, Row, Sqlite};

use super::{Conn, Result, StoreError, codec};

/// How far an attempt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AttemptState {
    /// Its randomness is drawn.
    Drawn,
    /// Clients are invited.
    Invited,
    /// The tree is fixed.
    Proposed,
    /// Every signature is there.
    Completed,
    /// Every client holds its exit kit, and every channel stands.
    Ready,
    /// The funding is signed, or may be: from here on it is only broadcast again.
    FundingSigned,
    /// It failed; its funding is never signed.
    Failed,
}

impl AttemptState {
    const ALL: [Self; 7] = [
        Self::Drawn,
        Self::Invited,
        Self::Proposed,
        Self::Completed,
        Self::Ready,
        Self::FundingSigned,
        Self::Failed,
    ];

    /// Its name in the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drawn => "drawn",
            Self::Invited => "invited",
            Self::Proposed => "proposed",
            Self::Completed => "completed",
            Self::Ready => "ready",
            Self::FundingSigned => "funding_signed",
            Self::Failed => "failed",
        }
    }

    pub(super) fn parse(name: &str) -> Result<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|state| state.name() == name)
            .ok_or_else(|| StoreError::value("attempt state", name))
    }
}

/// An attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct AttemptRow {
    /// Its number.
    pub attempt: Attempt,
    /// How far it is.
    pub state: AttemptState,
    /// Who was invited.
    pub invited: Vec<Invitee>,
    /// Who was left out when it failed.
    pub left_out: Vec<(ClientId, LeftOut)>,
}

/// What a join must not repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedKeys {
    /// Leaf id.
    pub leaf_id: LeafId,
    /// Factory key.
    pub factory_key: PublicKey,
    /// Channel funding key.
    pub channel_key: PublicKey,
    /// Payout script.
    pub payout_script: ScriptBuf,
}

/// An attempt begins: its randomness and whom it invites.
///
/// # Errors
/// Those of the database.
pub async fn begin(
    conn: &mut Conn,
    round: Round,
    fresh: &[u8; 16],
    invited: &[Invitee],
) -> Result<()> {
    sqlx::query("INSERT INTO attempt (ceremony, attempt, fresh, state, invited) VALUES (?, ?, ?, 'invited', ?)")
        .bind(round.ceremony.0.as_slice())
        .bind(round.attempt.0)
        .bind(fresh.as_slice())
        .bind(codec::json("invitations", &invited)?)
        .execute(conn)
        .await?;
    Ok(())
}

/// The randomness of an attempt.
///
/// # Errors
/// [`StoreError::Value`] if there is no such attempt.
pub async fn fresh(conn: &mut Conn, round: Round) -> Result<[u8; 16]> {
    let row: Option<Vec<u8>> =
        sqlx::query_scalar("SELECT fresh FROM attempt WHERE ceremony = ? AND attempt = ?")
            .bind(round.ceremony.0.as_slice())
            .bind(round.attempt.0)
            .fetch_optional(conn)
            .await?;
    let bytes = row.ok_or_else(|| StoreError::value("attempt", "it is missing"))?;
    <[u8; 16]>::try_from(bytes.as_slice()).map_err(|error| StoreError::value("attempt", error))
}

/// Moves an attempt on.
///
/// # Errors
/// Those of the database.
pub async fn set_state(conn: &mut Conn, round: Round, state: AttemptState) -> Result<()> {
    sqlx::query("UPDATE attempt SET state = ? WHERE ceremony = ? AND attempt = ?")
        .bind(state.name())
        .bind(round.ceremony.0.as_slice())
        .bind(round.attempt.0)
        .execute(conn)
        .await?;
    Ok(())
}

/// An attempt failed; never one whose funding may be signed.
///
/// # Errors
/// Those of the database.
pub async fn fail(
    conn: &mut Conn,
    round: Round,
    reason: &str,
    left_out: &[(ClientId, LeftOut)],
) -> Result<()> {
    sqlx::query(
        "UPDATE attempt SET state = 'failed', reason = ?, left_out = ? \
         WHERE ceremony = ? AND attempt = ? AND state != 'funding_signed'",
    )
    .bind(reason)
    .bind(codec::json("those left out", &left_out)?)
    .bind(round.ceremony.0.as_slice())
    .bind(round.attempt.0)
    .execute(&mut *conn)
    .await?;
    sqlx::query("UPDATE factory SET state = 'failed' WHERE ceremony = ? AND attempt = ? AND state != 'funding_signed'")
        .bind(round.ceremony.0.as_slice())
        .bind(round.attempt.0)
        .execute(conn)
        .await?;
    Ok(())
}

/// The last attempt of a ceremony.
///
/// # Errors
/// Those of the database.
pub async fn last(conn: &mut Conn, ceremony: CeremonyId) -> Result<Option<AttemptRow>> {
    let row = sqlx::query(
        "SELECT attempt, state, invited, left_out FROM attempt WHERE ceremony = ? ORDER BY attempt DESC LIMIT 1",
    )
    .bind(ceremony.0.as_slice())
    .fetch_optional(conn)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let list = |text: Option<String>| text.unwrap_or_else(|| "[]".to_owned());
    Ok(Some(AttemptRow {
        attempt: codec::attempt(row.try_get("attempt")?)?,
        state: AttemptState::parse(row.try_get("state")?)?,
        invited: codec::from_json("invitations", list(row.try_get("invited")?).as_bytes())?,
        left_out: codec::from_json("those left out", list(row.try_get("left_out")?).as_bytes())?,
    }))
}

/// Writes down what joins use, and returns the leaf ids of those that use nothing for a second time.
///
/// # Errors
/// Those of the database.
pub async fn use_keys(
    conn: &mut Conn,
    round: Round,
    joins: &[UsedKeys],
) -> Result<HashSet<LeafId>> {
    let mut accepted = HashSet::new();
    let mut fresh = Vec::with_capacity(joins.len());
    for join in joins {
        // A bought channel's place serves no other: what is told of its leaf is told of this one.
        if !super::sales::has_place(conn, join.leaf_id, &join.channel_key).await? {
            fresh.push(join);
        }
    }
    for chunk in fresh.chunks(1000) {
        let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(
            "INSERT OR IGNORE INTO used (leaf_id, factory_key, channel_key, payout_script, ceremony, attempt) ",
        );
        query.push_values(chunk, |mut row, join| {
            row.push_bind(join.leaf_id.0.as_slice())
                .push_bind(join.factory_key.serialize().to_vec())
                .push_bind(join.channel_key.serialize().to_vec())
                .push_bind(join.payout_script.as_bytes())
                .push_bind(round.ceremony.0.as_slice())
                .push_bind(round.attempt.0);
        });
        query.push(" RETURNING leaf_id");
        let rows: Vec<Vec<u8>> = query.build_query_scalar().fetch_all(&mut *conn).await?;
        for row in rows {
            let id = LeafId::try_from(row.as_slice())
                .map_err(|error| StoreError::value("leaf id", error))?;
            accepted.insert(id);
        }
    }
    Ok(accepted)
}

/// A signed statement that a client sent an invalid signature.
#[derive(Clone, Debug, PartialEq)]
pub struct BlameRow {
    /// Which attempt.
    pub round: Round,
    /// What it did.
    pub blame: Blame,
    /// Over [`crate::keys::blame_digest`], by the node key.
    pub signature: [u8; 64],
}

/// Keeps a blame record.
///
/// # Errors
/// Those of the database.
pub async fn blame(conn: &mut Conn, row: &BlameRow, height: u32) -> Result<()> {
    sqlx::query(
        "INSERT INTO blame (ceremony, attempt, client, height, evidence, signature) VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(row.round.ceremony.0.as_slice())
    .bind(row.round.attempt.0)
    .bind(row.blame.client.0.as_slice())
    .bind(height)
    .bind(codec::json("evidence", &row.blame)?)
    .bind(row.signature.as_slice())
    .execute(conn)
    .await?;
    Ok(())
}

/// All blame records, oldest first.
///
/// # Errors
/// Those of the database.
pub async fn blames(conn: &mut Conn) -> Result<Vec<BlameRow>> {
    let rows =
        sqlx::query("SELECT ceremony, attempt, evidence, signature FROM blame ORDER BY number")
            .fetch_all(conn)
            .await?;
    rows.iter()
        .map(|row| {
            let evidence: String = row.try_get("evidence")?;
            let signature: Vec<u8> = row.try_get("signature")?;
            Ok(BlameRow {
                round: Round {
                    ceremony: codec::ceremony(row.try_get("ceremony")?)?,
                    attempt: codec::attempt(row.try_get("attempt")?)?,
                },
                blame: codec::from_json("evidence", evidence.as_bytes())?,
                signature: <[u8; 64]>::try_from(signature.as_slice())
                    .map_err(|error| StoreError::value("signature", error))?,
            })
        })
        .collect()
}
