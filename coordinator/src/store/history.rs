//! What happened to clients, for their history.

use factory_tree::ceremony::message::Round;
use factory_tree::ids::{ClientId, FactoryId};
use sqlx::{QueryBuilder, Row, Sqlite};

use super::{Conn, Result, codec};

/// One thing that happened to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryRow {
    /// Its number; 0 when it is to be stored.
    pub number: u64,
    /// When.
    pub height: u32,
    /// A name of an event.
    pub kind: String,
    /// In which attempt.
    pub round: Option<Round>,
    /// In which factory.
    pub factory: Option<FactoryId>,
    /// More of it.
    pub text: String,
}

/// The same thing happened to these clients.
///
/// # Errors
/// Those of the database.
pub async fn add(conn: &mut Conn, clients: &[ClientId], entry: &HistoryRow) -> Result<()> {
    for chunk in clients.chunks(1000) {
        let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(
            "INSERT INTO history (client, height, kind, ceremony, attempt, factory, text) ",
        );
        query.push_values(chunk, |mut row, client| {
            row.push_bind(client.0.as_slice())
                .push_bind(entry.height)
                .push_bind(entry.kind.as_str())
                .push_bind(entry.round.map(|round| round.ceremony.0.to_vec()))
                .push_bind(entry.round.map(|round| round.attempt.0))
                .push_bind(entry.factory.map(|factory| factory.0.to_vec()))
                .push_bind(entry.text.as_str());
        });
        query.build().execute(&mut *conn).await?;
    }
    Ok(())
}

/// The same thing happened to every client of a factory.
///
/// # Errors
/// Those of the database.
pub async fn add_to_members(conn: &mut Conn, factory: FactoryId, entry: &HistoryRow) -> Result<()> {
    sqlx::query(
        "INSERT INTO history (client, height, kind, ceremony, attempt, factory, text) \
         SELECT client, ?, ?, ?, ?, ?, ? FROM member WHERE factory = ?",
    )
    .bind(entry.height)
    .bind(entry.kind.as_str())
    .bind(entry.round.map(|round| round.ceremony.0.to_vec()))
    .bind(entry.round.map(|round| round.attempt.0))
    .bind(factory.0.as_slice())
    .bind(entry.text.as_str())
    .bind(factory.0.as_slice())
    .execute(conn)
    .await?;
    Ok(())
}

/// A client's history, newest first: at most `limit` entries older than number `before` (0: from the newest).
///
/// # Errors
/// Those of the database.
pub async fn list(
    conn: &mut Conn,
    client: ClientId,
    before: u64,
    limit: u32,
) -> Result<Vec<HistoryRow>> {
    let before = if before == 0 {
        i64::MAX
    } else {
        codec::int("number", before)?
    };
    let rows = sqlx::query(
        "SELECT number, height, kind, ceremony, attempt, factory, text FROM history \
         WHERE client = ? AND number < ? ORDER BY number DESC LIMIT ?",
    )
    .bind(client.0.as_slice())
    .bind(before)
    .bind(limit)
    .fetch_all(conn)
    .await?;
    rows.iter()
        .map(|row| {
            let ceremony: Option<Vec<u8>> = row.try_get("ceremony")?;
            let attempt: Option<i64> = row.try_get("attempt")?;
            let factory: Option<Vec<u8>> = row.try_get("factory")?;
            let round = match (ceremony, attempt) {
                (Some(ceremony), Some(attempt)) => Some(Round {
                    ceremony: codec::ceremony(&ceremony)?,
                    attempt: codec::attempt(attempt)?,
                }),
                _ => None,
            };
            Ok(HistoryRow {
                number: codec::number("number", row.try_get("number")?)?,
                height: codec::number("height", row.try_get("height")?)?,
                kind: row.try_get("kind")?,
                round,
                factory: factory
                    .map(|factory| codec::factory(&factory))
                    .transpose()?,
                text: row.try_get("text")?,
            })
        })
        .collect()
}
