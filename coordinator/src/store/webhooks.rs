//! Webhooks of clients, and what they are told.

use factory_tree::ids::ClientId;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{Conn, Result, codec};

/// A webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookRow {
    /// The client's name for it.
    pub app_name: String,
    /// Where it is.
    pub url: String,
}

/// A notification on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WakeRow {
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
    /// When it was asked for, in Unix time.
    pub asked_at: u64,
    /// How often it was tried.
    pub tries: u32,
}

/// A notification that is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wake<'a> {
    /// What makes it: the same again is the same notification.
    pub cause: &'a str,
    /// The notification.
    pub body: &'a str,
    /// After so many seconds the same is sent once more.
    pub again_after: u64,
}

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

/// Whether the client may have webhooks: it is, or was, in a factory.
///
/// # Errors
/// Those of the database.
pub async fn is_known(conn: &mut Conn, client: ClientId) -> Result<bool> {
    let found: Option<i64> = sqlx::query_scalar("SELECT 1 FROM member WHERE client = ? LIMIT 1")
        .bind(client.0.as_slice())
        .fetch_optional(conn)
        .await?;
    Ok(found.is_some())
}

/// Sets a webhook; what the one of that name was still to be told is forgotten.
///
/// # Errors
/// Those of the database.
pub async fn set(conn: &mut Conn, client: ClientId, row: &WebhookRow, now: u64) -> Result<()> {
    remove(conn, client, &row.app_name).await?;
    sqlx::query("INSERT INTO webhook (client, app_name, url, set_at) VALUES (?, ?, ?, ?)")
        .bind(client.0.as_slice())
        .bind(&row.app_name)
        .bind(&row.url)
        .bind(codec::int("time", now)?)
        .execute(conn)
        .await?;
    Ok(())
}

/// Removes a webhook and what it was still to be told; whether there was one.
///
/// # Errors
/// Those of the database.
pub async fn remove(conn: &mut Conn, client: ClientId, app_name: &str) -> Result<bool> {
    let done = sqlx::query("DELETE FROM webhook WHERE client = ? AND app_name = ?")
        .bind(client.0.as_slice())
        .bind(app_name)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() > 0)
}

/// The client's webhooks that were not told this already.
///
/// # Errors
/// Those of the database.
pub async fn unasked(
    conn: &mut Conn,
    client: ClientId,
    wake: Wake<'_>,
    now: u64,
) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar(
        "SELECT app_name FROM webhook WHERE client = ? AND NOT EXISTS \
         (SELECT 1 FROM wake WHERE wake.client = webhook.client AND wake.app_name = webhook.app_name \
          AND cause = ? AND (next_at IS NOT NULL OR asked_at > ?))",
    )
    .bind(client.0.as_slice())
    .bind(wake.cause)
    .bind(codec::int("time", now.saturating_sub(wake.again_after))?)
    .fetch_all(conn)
    .await?)
}

/// Whether there is anything a client is to be told.
///
/// # Errors
/// Those of the database.
pub async fn has_wakes(conn: &mut Conn, client: ClientId) -> Result<bool> {
    let found: Option<i64> = sqlx::query_scalar("SELECT 1 FROM wake WHERE client = ? LIMIT 1")
        .bind(client.0.as_slice())
        .fetch_optional(conn)
        .await?;
    Ok(found.is_some())
}

/// Queues a notification for one webhook; whether that changed anything.
///
/// # Errors
/// Those of the database.
pub async fn ask(
    conn: &mut Conn,
    client: ClientId,
    app_name: &str,
    wake: Wake<'_>,
    now: u64,
) -> Result<bool> {
    let done = sqlx::query(
        "INSERT INTO wake (client, app_name, cause, body, asked_at, next_at) VALUES (?, ?, ?, ?, ?, ?) \
         ON CONFLICT (client, app_name, cause) DO UPDATE \
         SET body = excluded.body, asked_at = excluded.asked_at, next_at = excluded.next_at, tries = 0 \
         WHERE wake.next_at IS NULL AND wake.asked_at <= excluded.asked_at - ?",
    )
    .bind(client.0.as_slice())
    .bind(app_name)
    .bind(wake.cause)
    .bind(wake.body)
    .bind(codec::int("time", now)?)
    .bind(codec::int("time", now)?)
    .bind(codec::int("time", wake.again_after)?)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Notifications that are due, those that wait longest first.
///
/// # Errors
/// Those of the database.
pub async fn due(conn: &mut Conn, now: u64, limit: u32) -> Result<Vec<WakeRow>> {
    let rows = sqlx::query(
        "SELECT wake.client, wake.app_name, url, cause, body, asked_at, tries FROM wake \
         JOIN webhook USING (client, app_name) WHERE next_at <= ? ORDER BY next_at LIMIT ?",
    )
    .bind(codec::int("time", now)?)
    .bind(limit)
    .fetch_all(conn)
    .await?;
    let row = |row: &SqliteRow| {
        Ok(WakeRow {
            client: codec::client(row.try_get("client")?)?,
            app_name: row.try_get("app_name")?,
            url: row.try_get("url")?,
            cause: row.try_get("cause")?,
            body: row.try_get("body")?,
            asked_at: codec::number("time", row.try_get("asked_at")?)?,
            tries: codec::number("tries", row.try_get("tries")?)?,
        })
    };
    rows.iter().map(row).collect()
}

/// When the next notification is due.
///
/// # Errors
/// Those of the database.
pub async fn next(conn: &mut Conn) -> Result<Option<u64>> {
    let next: Option<i64> = sqlx::query_scalar("SELECT min(next_at) FROM wake")
        .fetch_one(conn)
        .await?;
    codec::optional("time", next)
}

/// Writes down that a notification was tried, and when it is tried next, if ever.
///
/// # Errors
/// Those of the database.
pub async fn tried(conn: &mut Conn, wake: &WakeRow, next_at: Option<u64>) -> Result<()> {
    let next_at = next_at.map(|at| codec::int("time", at)).transpose()?;
    sqlx::query(
        "UPDATE wake SET tries = tries + 1, next_at = ? WHERE client = ? AND app_name = ? AND cause = ? AND asked_at = ?",
    )
    .bind(next_at)
    .bind(wake.client.0.as_slice())
    .bind(&wake.app_name)
    .bind(&wake.cause)
    .bind(codec::int("time", wake.asked_at)?)
    .execute(conn)
    .await?;
    Ok(())
}

/// A client came: all but `kept` is no news to it.
///
/// # Errors
/// Those of the database.
pub async fn came(conn: &mut Conn, client: ClientId, kept: &str) -> Result<()> {
    sqlx::query("DELETE FROM wake WHERE client = ? AND cause <> ?")
        .bind(client.0.as_slice())
        .bind(kept)
        .execute(conn)
        .await?;
    Ok(())
}
