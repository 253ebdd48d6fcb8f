//! Webhooks of clients, and what they are told. Times are Unix times, in seconds.

use std::fmt;

use factory_tree::ids::ClientId;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{Conn, Result, codec};

/// A webhook. Its URL may hold a secret of the client's.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookRow {
    /// The client's name for it.
    pub app_name: String,
    /// Where it is.
    pub url: String,
}

/// A notification on its way.
#[derive(Clone, PartialEq, Eq)]
pub struct WakeRow {
    /// Its number.
    pub number: i64,
    /// For whom.
    pub client: ClientId,
    /// To which of its webhooks.
    pub app_name: String,
    /// Where that is.
    pub url: String,
    /// What made it.
    pub cause: String,
    /// The notification.
    pub body: String,
    /// Until when it is sent.
    pub until: u64,
    /// How often it was tried.
    pub tries: u32,
}

impl fmt::Debug for WebhookRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookRow")
            .field("app_name", &self.app_name)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for WakeRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WakeRow")
            .field("client", &self.client)
            .field("app_name", &self.app_name)
            .field("cause", &self.cause)
            .field("tries", &self.tries)
            .finish_non_exhaustive()
    }
}

/// A notification that is asked for.
#[derive(Clone, Debug)]
pub struct Wake {
    /// What makes it: the same again is the same notification.
    pub cause: String,
    /// The notification.
    pub body: String,
    /// After so many seconds the same is sent once more.
    pub again_after: u64,
    /// For how many seconds it is sent.
    pub lasts: u64,
}

/// Holds for a notification that may be asked for anew: it is over and was long ago, nobody sends it any more, or it was asked for in a future that a
/// clock had. Its numbers are now, and the seconds after which it is sent once more.
const STALE: &str = "(asked_at > ?1 OR until < ?1 OR (next_at IS NULL AND asked_at + ?2 <= ?1))";

/// Holds for a notification that may be sent when its time comes: it is of the cause ?1, which comes first, or its webhook waits for none of that.
const GREETED: &str = "(cause = ?1 OR NOT EXISTS (SELECT 1 FROM wake AS greeting WHERE greeting.client = wake.client \
     AND greeting.app_name = wake.app_name AND greeting.cause = ?1 AND greeting.next_at IS NOT NULL))";

/// A client's webhooks.
///
/// # Errors
/// Those of the database.
pub async fn of(conn: &mut Conn, client: ClientId) -> Result<Vec<WebhookRow>> {
    let rows = sqlx::query("SELECT app_name, url FROM webhook WHERE client = ? ORDER BY app_name")
        .bind(client.0.as_slice())
        .fetch_all(conn)
        .await?;
    let row = |row: &SqliteRow| {
        Ok(WebhookRow {
            app_name: row.try_get(0)?,
            url: row.try_get(1)?,
        })
    };
    rows.iter().map(row).collect()
}

/// Whether the client may have webhooks: it is, or was, in a factory, or has bought or ordered a channel.
///
/// # Errors
/// Those of the database.
pub async fn is_known(conn: &mut Conn, client: ClientId) -> Result<bool> {
    let found: Option<i64> = sqlx::query_scalar(
        "SELECT 1 FROM member WHERE client = ?1 UNION ALL SELECT 1 FROM jit_order WHERE client = ?1 \
         UNION ALL SELECT 1 FROM lsps1_order WHERE client = ?1 LIMIT 1",
    )
        .bind(client.0.as_slice())
        .fetch_optional(conn)
        .await?;
    Ok(found.is_some())
}

/// Sets a webhook; what the one of that name was still to be told is forgotten.
///
/// # Errors
/// Those of the database.
pub async fn set(conn: &mut Conn, client: ClientId, row: &WebhookRow) -> Result<()> {
    remove(conn, client, &row.app_name).await?;
    sqlx::query("INSERT INTO webhook (client, app_name, url) VALUES (?, ?, ?)")
        .bind(client.0.as_slice())
        .bind(&row.app_name)
        .bind(&row.url)
        .execute(conn)
        .await?;
    Ok(())
}

/// Removes a webhook and what it was still to be told.
///
/// # Errors
/// Those of the database.
pub async fn remove(conn: &mut Conn, client: ClientId, app_name: &str) -> Result<()> {
    sqlx::query("DELETE FROM webhook WHERE client = ? AND app_name = ?")
        .bind(client.0.as_slice())
        .bind(app_name)
        .execute(conn)
        .await?;
    Ok(())
}

/// The client's webhooks that are to be told this: those that were not, or not lately.
///
/// # Errors
/// Those of the database.
pub async fn untold(
    conn: &mut Conn,
    client: ClientId,
    wake: &Wake,
    now: u64,
) -> Result<Vec<String>> {
    let text = format!(
        "SELECT app_name FROM webhook WHERE client = ?3 AND NOT EXISTS \
         (SELECT 1 FROM wake WHERE wake.client = ?3 AND wake.app_name = webhook.app_name AND cause = ?4 AND NOT {STALE})"
    );
    Ok(sqlx::query_scalar(sqlx::AssertSqlSafe(text))
        .bind(codec::int("time", now)?)
        .bind(codec::int("time", wake.again_after)?)
        .bind(client.0.as_slice())
        .bind(&wake.cause)
        .fetch_all(conn)
        .await?)
}

/// Queues a notification for one webhook, unless it is queued already, or was sent lately.
///
/// # Errors
/// Those of the database.
pub async fn ask(
    conn: &mut Conn,
    client: ClientId,
    app_name: &str,
    wake: &Wake,
    now: u64,
) -> Result<()> {
    let text =
        format!("DELETE FROM wake WHERE client = ?3 AND app_name = ?4 AND cause = ?5 AND {STALE}");
    sqlx::query(sqlx::AssertSqlSafe(text))
        .bind(codec::int("time", now)?)
        .bind(codec::int("time", wake.again_after)?)
        .bind(client.0.as_slice())
        .bind(app_name)
        .bind(&wake.cause)
        .execute(&mut *conn)
        .await?;
    sqlx::query(
        "INSERT INTO wake (client, app_name, cause, body, asked_at, until, next_at) VALUES (?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT (client, app_name, cause) DO NOTHING",
    )
    .bind(client.0.as_slice())
    .bind(app_name)
    .bind(&wake.cause)
    .bind(&wake.body)
    .bind(codec::int("time", now)?)
    .bind(codec::int("time", now.saturating_add(wake.lasts))?)
    .bind(codec::int("time", now)?)
    .execute(conn)
    .await?;
    Ok(())
}

/// Notifications that are due, one of each client, those that wait longest first; of one client, those of the cause `first` come first, and while
/// a webhook waits for one of those it is told nothing else. What is further away than `longest` was put there by a clock that was wrong.
///
/// # Errors
/// Those of the database.
pub async fn due(
    conn: &mut Conn,
    now: u64,
    longest: u64,
    first: &str,
    limit: usize,
) -> Result<Vec<WakeRow>> {
    // SQLite takes the other columns from the row of the minimum.
    let text = format!(
        "SELECT min(iif(cause = ?1, -1, next_at)), number, wake.client, wake.app_name, url, cause, body, until, tries FROM wake \
         JOIN webhook USING (client, app_name) WHERE (next_at <= ?2 OR next_at > ?3) AND {GREETED} \
         GROUP BY wake.client ORDER BY next_at LIMIT ?4"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(text))
        .bind(first)
        .bind(codec::int("time", now)?)
        .bind(codec::int("time", now.saturating_add(longest))?)
        .bind(codec::int("limit", limit as u64)?)
        .fetch_all(conn)
        .await?;
    let row = |row: &SqliteRow| {
        Ok(WakeRow {
            number: row.try_get("number")?,
            client: codec::client(row.try_get("client")?)?,
            app_name: row.try_get("app_name")?,
            url: row.try_get("url")?,
            cause: row.try_get("cause")?,
            body: row.try_get("body")?,
            until: codec::number("time", row.try_get("until")?)?,
            tries: codec::number("tries", row.try_get("tries")?)?,
        })
    };
    rows.iter().map(row).collect()
}

/// When the next notification is due, with the same `first` as in [`due`].
///
/// # Errors
/// Those of the database.
pub async fn next(conn: &mut Conn, first: &str) -> Result<Option<u64>> {
    let text = format!("SELECT min(next_at) FROM wake WHERE {GREETED}");
    let next: Option<i64> = sqlx::query_scalar(sqlx::AssertSqlSafe(text))
        .bind(first)
        .fetch_one(conn)
        .await?;
    codec::optional("time", next)
}

/// Writes down how often a notification was tried, and when it is tried next, if ever. One that was replaced meanwhile has another number.
///
/// # Errors
/// Those of the database.
pub async fn tried(conn: &mut Conn, number: i64, tries: u32, next_at: Option<u64>) -> Result<()> {
    let next_at = next_at.map(|at| codec::int("time", at)).transpose()?;
    sqlx::query("UPDATE wake SET tries = ?, next_at = ? WHERE number = ?")
        .bind(tries)
        .bind(next_at)
        .bind(number)
        .execute(conn)
        .await?;
    Ok(())
}

/// Whether a client is still to be told anything but `kept`.
///
/// # Errors
/// Those of the database.
pub async fn is_waited_for(conn: &mut Conn, client: ClientId, kept: &str) -> Result<bool> {
    let found: Option<i64> = sqlx::query_scalar(
        "SELECT 1 FROM wake WHERE client = ? AND cause <> ? AND next_at IS NOT NULL LIMIT 1",
    )
    .bind(client.0.as_slice())
    .bind(kept)
    .fetch_optional(conn)
    .await?;
    Ok(found.is_some())
}

/// A client came: all but `kept` is over. That it was told is remembered.
///
/// # Errors
/// Those of the database.
pub async fn came(conn: &mut Conn, client: ClientId, kept: &str) -> Result<()> {
    sqlx::query("UPDATE wake SET next_at = NULL WHERE client = ? AND cause <> ?")
        .bind(client.0.as_slice())
        .bind(kept)
        .execute(conn)
        .await?;
    Ok(())
}

/// Forgets everything of this cause.
///
/// # Errors
/// Those of the database.
pub async fn forget(conn: &mut Conn, cause: &str) -> Result<()> {
    sqlx::query("DELETE FROM wake WHERE cause = ?")
        .bind(cause)
        .execute(conn)
        .await?;
    Ok(())
}
