//! What liquidity costs where the operator has said so, and what it brought. Times are Unix time.

use std::collections::BTreeMap;

use factory_tree::ids::ClientId;
use sqlx::Row;

use super::{Conn, Result, codec};
use crate::sales::PriceOverride;

/// Seconds of a day.
const DAY: i64 = 86_400;

/// What is said for everybody (no client), or for one client.
///
/// # Errors
/// Those of the database.
pub async fn get(conn: &mut Conn, client: Option<ClientId>) -> Result<Option<PriceOverride>> {
    let found: Option<String> = sqlx::query_scalar("SELECT price FROM price WHERE client IS ?")
        .bind(client.map(|client| client.0.to_vec()))
        .fetch_optional(conn)
        .await?;
    found
        .map(|text| codec::from_json("price", text.as_bytes()))
        .transpose()
}

/// What is said for a client: for it alone, over what is said for everybody.
///
/// # Errors
/// Those of the database.
pub async fn of_client(conn: &mut Conn, client: ClientId) -> Result<PriceOverride> {
    let all = get(conn, None).await?.unwrap_or_default();
    let own = get(conn, Some(client)).await?.unwrap_or_default();
    Ok(all.then(own))
}

/// Says it.
///
/// # Errors
/// Those of the database.
pub async fn set(conn: &mut Conn, client: Option<ClientId>, price: &PriceOverride) -> Result<()> {
    // What is NULL conflicts with nothing.
    unset(conn, client).await?;
    sqlx::query("INSERT INTO price (client, price) VALUES (?, ?)")
        .bind(client.map(|client| client.0.to_vec()))
        .bind(codec::json("price", price)?)
        .execute(conn)
        .await?;
    Ok(())
}

/// Takes it back; whether anything was said.
///
/// # Errors
/// Those of the database.
pub async fn unset(conn: &mut Conn, client: Option<ClientId>) -> Result<bool> {
    let done = sqlx::query("DELETE FROM price WHERE client IS ?")
        .bind(client.map(|client| client.0.to_vec()))
        .execute(conn)
        .await?;
    Ok(done.rows_affected() > 0)
}

/// Everything that is said; for everybody first.
///
/// # Errors
/// Those of the database.
pub async fn all(conn: &mut Conn) -> Result<Vec<(Option<ClientId>, PriceOverride)>> {
    let rows = sqlx::query("SELECT client, price FROM price ORDER BY client")
        .fetch_all(conn)
        .await?;
    rows.iter()
        .map(|row| {
            let client: Option<&[u8]> = row.try_get(0)?;
            let text: &str = row.try_get(1)?;
            Ok((
                client.map(codec::client).transpose()?,
                codec::from_json("price", text.as_bytes())?,
            ))
        })
        .collect()
}

/// What one day brought, and cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Revenue {
    /// Taken for sales from stocks.
    pub sales_msat: u64,
    /// Taken for just-in-time channels.
    pub jit_msat: u64,
    /// Taken for channels ordered by LSPS1.
    pub lsps1_msat: u64,
    /// Kept of payments that went through us.
    pub routing_msat: u64,
    /// Paid on the chain for the channels that were sold.
    pub onchain_sat: u64,
    /// What the channels hold that others got for signing the sales that ended.
    pub bonus_sat: u64,
}

/// Seconds after which it is forgotten which payment went through us. After a crash the node tells of the last ones again, before any other.
const TOLD_AGAIN: i64 = 2 * DAY;

/// A payment went through us: its fee counts once, however often it is told, by the number of the HTLCs that brought it.
///
/// # Errors
/// Those of the database.
pub async fn forwarded(conn: &mut Conn, number: &[u8; 32], fee_msat: u64, now: u64) -> Result<()> {
    let at = codec::int("time", now)?;
    let told = sqlx::query("INSERT OR IGNORE INTO forward (number, at) VALUES (?, ?)")
        .bind(number.as_slice())
        .bind(at)
        .execute(&mut *conn)
        .await?;
    if told.rows_affected() == 0 {
        return Ok(());
    }
    sqlx::query("DELETE FROM forward WHERE at < ?")
        .bind(at.saturating_sub(TOLD_AGAIN))
        .execute(&mut *conn)
        .await?;
    sqlx::query(
        "INSERT INTO routing (day, fee_msat) VALUES (?1 / ?2 * ?2, ?3) \
         ON CONFLICT (day) DO UPDATE SET fee_msat = fee_msat + excluded.fee_msat",
    )
    .bind(at)
    .bind(DAY)
    .bind(codec::int("fee", fee_msat)?)
    .execute(conn)
    .await?;
    Ok(())
}

/// One of its numbers.
type Field = fn(&mut Revenue) -> &mut u64;

/// By day (the Unix time it begins at), since then.
///
/// # Errors
/// Those of the database.
pub async fn revenue(conn: &mut Conn, since: u64) -> Result<BTreeMap<u64, Revenue>> {
    let mut days: BTreeMap<u64, Revenue> = BTreeMap::new();
    let fields: [(&str, Field); 7] = [
        (
            "SELECT ended_at / ?1 * ?1, sum(taken_msat) FROM sale WHERE state = 'settled' AND ended_at >= ?2 GROUP BY 1",
            |day| &mut day.sales_msat,
        ),
        (
            "SELECT paid_at / ?1 * ?1, sum(taken_msat) FROM jit_order WHERE paid_at >= ?2 GROUP BY 1",
            |day| &mut day.jit_msat,
        ),
        (
            "SELECT ended_at / ?1 * ?1, sum(taken_msat) FROM lsps1_order WHERE state = 'paid' AND ended_at >= ?2 GROUP BY 1",
            |day| &mut day.lsps1_msat,
        ),
        (
            "SELECT day / ?1 * ?1, sum(fee_msat) FROM routing WHERE day >= ?2 GROUP BY 1",
            |day| &mut day.routing_msat,
        ),
        // However often a channel is opened for an order, at most one funding goes out: at once, or when the client has paid.
        (
            "SELECT opened_at / ?1 * ?1, sum(onchain_sat) FROM jit_order \
             WHERE funding IS NOT NULL AND (paid_at IS NOT NULL OR NOT client_trusts_lsp) AND opened_at >= ?2 GROUP BY 1",
            |day| &mut day.onchain_sat,
        ),
        (
            "SELECT opened_at / ?1 * ?1, sum(onchain_sat) FROM lsps1_order WHERE funded_at IS NOT NULL AND opened_at >= ?2 GROUP BY 1",
            |day| &mut day.onchain_sat,
        ),
        (
            "SELECT s.ended_at / ?1 * ?1, sum(b.capacity_sat) FROM bonus b JOIN sale s USING (sale) \
             WHERE s.sold IS NOT NULL AND s.ended_at >= ?2 GROUP BY 1",
            |day| &mut day.bonus_sat,
        ),
    ];
    for (query, field) in fields {
        let rows = sqlx::query(query)
            .bind(DAY)
            .bind(codec::int("time", since)?)
            .fetch_all(&mut *conn)
            .await?;
        for row in rows {
            let day = codec::number("time", row.try_get(0)?)?;
            let sum: u64 = codec::number("sum", row.try_get(1)?)?;
            let field = field(days.entry(day).or_default());
            *field = field.saturating_add(sum);
        }
    }
    Ok(days)
}
