//! Channels ordered in advance (LSPS1): orders, what was paid, and what came of it. Times are Unix time where they are not heights.

use std::collections::HashMap;
use std::fmt;

use bitcoin::{Amount, OutPoint};
use channel_host::PaymentHash;
use factory_tree::ids::{CeremonyId, ClientId, SaleId};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::codec::{twin, untwin};
use super::{Conn, Result, StoreError, codec};

/// How far an order is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not paid.
    Ordered,
    /// The payment is held, and the channel on its way.
    Held,
    /// The channel's funding is out, and the payment is to be taken.
    Open,
    /// The payment is ours.
    Paid,
    /// Nothing came of it.
    Failed,
}

impl State {
    const ALL: [Self; 5] = [
        Self::Ordered,
        Self::Held,
        Self::Open,
        Self::Paid,
        Self::Failed,
    ];

    /// Its name in the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ordered => "ordered",
            Self::Held => "held",
            Self::Open => "open",
            Self::Paid => "paid",
            Self::Failed => "failed",
        }
    }
}

/// What was ordered, and the price: settled when the order is stored.
#[derive(Clone, PartialEq, Eq)]
pub struct Order {
    /// Its id.
    pub id: String,
    /// Whose.
    pub client: ClientId,
    /// What the channel holds, all of it on our side.
    pub lsp_balance_sat: u64,
    /// Confirmations the client wants to see before it is used.
    pub confirmations: u16,
    /// Blocks within which its funding should confirm.
    pub confirm_within: u16,
    /// Blocks for which we keep it open.
    pub expiry_blocks: u32,
    /// Whether the world is told of it.
    pub announce: bool,
    /// Whether it comes with the next factory, and not from the chain.
    pub at_birth: bool,
    /// The price.
    pub fee_sat: u64,
    /// Of the payment.
    pub hash: PaymentHash,
    /// Has the payment's secret: not for logs.
    pub invoice: String,
    /// When.
    pub created_at: u64,
    /// When it must be paid.
    pub valid_until: u64,
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Order")
            .field("id", &self.id)
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

/// An order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderRow {
    /// What was ordered.
    pub order: Order,
    /// How far it is.
    pub state: State,
    /// Since when its payment is held and its client waited for: not while a sale from a stock is under way for it.
    pub held_at: Option<u64>,
    /// Height at which that expires.
    pub held_until: Option<u32>,
    /// How often a channel was opened for it.
    pub opens: u32,
    /// The number of the last one.
    pub channel: Option<u64>,
    /// In which its client has a place for it.
    pub ceremony: Option<CeremonyId>,
    /// What the funding costs; an estimate until it is known.
    pub onchain_sat: u64,
    /// The channel's funding, once it is out.
    pub funding: Option<OutPoint>,
    /// Since when.
    pub funded_at: Option<u64>,
    /// What was taken of the payment.
    pub taken_msat: u64,
    /// When it was paid, or failed.
    pub ended_at: Option<u64>,
    /// What it waits for, or why nothing came of it.
    pub note: String,
}

// ---- orders --------------------------------------------------------------------------------------------------------

/// A new order. What was never paid and is over is forgotten with it, if it is older than `before`: whoever only orders does not fill the disk.
///
/// # Errors
/// Those of the database.
pub async fn insert(conn: &mut Conn, order: &Order, before: u64) -> Result<()> {
    sqlx::query(
        "DELETE FROM lsps1_order WHERE state = 'failed' AND held_at IS NULL AND valid_until < ?",
    )
    .bind(codec::int("time", before)?)
    .execute(&mut *conn)
    .await?;
    sqlx::query(
        "INSERT INTO lsps1_order (order_id, client, lsp_balance_sat, confirmations, confirm_within, expiry_blocks, announce, at_birth, \
         fee_sat, hash, invoice, created_at, valid_until, state) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'ordered')",
    )
    .bind(&order.id)
    .bind(order.client.0.as_slice())
    .bind(codec::int("amount", order.lsp_balance_sat)?)
    .bind(order.confirmations)
    .bind(order.confirm_within)
    .bind(order.expiry_blocks)
    .bind(order.announce)
    .bind(order.at_birth)
    .bind(codec::int("fee", order.fee_sat)?)
    .bind(order.hash.0.as_slice())
    .bind(&order.invoice)
    .bind(codec::int("time", order.created_at)?)
    .bind(codec::int("time", order.valid_until)?)
    .execute(conn)
    .await?;
    Ok(())
}

/// Orders that are not paid, and those whose payment is held without a channel: of this client, and of all.
///
/// # Errors
/// Those of the database.
pub async fn open_orders(conn: &mut Conn, client: ClientId) -> Result<(u64, u64)> {
    let row = sqlx::query(
        "SELECT count(*) FILTER (WHERE client = ?), count(*) FROM lsps1_order WHERE state IN ('ordered', 'held')",
    )
    .bind(client.0.as_slice())
    .fetch_one(conn)
    .await?;
    Ok((
        codec::number("count", row.try_get(0)?)?,
        codec::number("count", row.try_get(1)?)?,
    ))
}

/// What the channels hold whose payments are held, and that still need coins for a funding of their own: not those that a complete sale serves, and not
/// those of these numbers, whose funding is made.
///
/// # Errors
/// Those of the database.
pub async fn owed_sat(conn: &mut Conn, made: &[u64]) -> Result<u64> {
    let query = "SELECT channel, lsp_balance_sat FROM lsps1_order o WHERE o.state = 'held' AND NOT o.at_birth AND NOT EXISTS \
         (SELECT 1 FROM sale s WHERE s.lsps1 = o.order_id AND s.state IN ('sold', 'settled'))";
    let rows = sqlx::query(query).fetch_all(conn).await?;
    let mut sum = 0_u64;
    for row in &rows {
        let channel: Option<i64> = row.try_get(0)?;
        let is_made = channel.is_some_and(|channel| made.contains(&untwin(channel)));
        if !is_made {
            sum = sum.saturating_add(codec::number("amount", row.try_get(1)?)?);
        }
    }
    Ok(sum)
}

/// What the channels hold that sales under way bring, while their payments are held: without a sale they need coins.
///
/// # Errors
/// Those of the database.
pub async fn tried_from_stock_sat(conn: &mut Conn) -> Result<u64> {
    let query = "SELECT sum(o.lsp_balance_sat) FROM lsps1_order o WHERE o.state = 'held' AND EXISTS \
         (SELECT 1 FROM sale s WHERE s.lsps1 = o.order_id AND s.state = 'paid')";
    let sum: Option<i64> = sqlx::query_scalar(query).fetch_one(conn).await?;
    codec::number("sum", sum.unwrap_or(0))
}

/// What clients have paid for of places for which no coins are set aside yet: a ceremony pins its own when it begins to run, and a failed one has none.
///
/// # Errors
/// Those of the database.
pub async fn owed_at_birth_sat(conn: &mut Conn) -> Result<u64> {
    let query = "SELECT sum(lsp_balance_sat) FROM lsps1_order WHERE state = 'held' AND at_birth AND (ceremony IS NULL \
         OR ceremony IN (SELECT c.ceremony FROM ceremony c WHERE c.state IN ('gathering', 'failed')))";
    let sum: Option<i64> = sqlx::query_scalar(query).fetch_one(conn).await?;
    codec::number("sum", sum.unwrap_or(0))
}

// ---- steps ---------------------------------------------------------------------------------------------------------

/// The payment is here; whether that is news.
///
/// # Errors
/// Those of the database.
pub async fn held(conn: &mut Conn, id: &str, until: u32, now: u64) -> Result<bool> {
    let done = sqlx::query(
        "UPDATE lsps1_order SET state = 'held', held_at = ?, held_until = ? WHERE order_id = ? AND state = 'ordered'",
    )
    .bind(codec::int("time", now)?)
    .bind(until)
    .bind(id)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// A channel is opened for it, under this number; its cost counts from now on.
///
/// # Errors
/// Those of the database.
pub async fn opening(
    conn: &mut Conn,
    id: &str,
    channel: u64,
    onchain_sat: u64,
    now: u64,
) -> Result<()> {
    sqlx::query(
        "UPDATE lsps1_order SET opens = opens + 1, opened_at = ?, channel = ?, onchain_sat = ? WHERE order_id = ? AND state = 'held'",
    )
    .bind(codec::int("time", now)?)
    .bind(twin(channel))
    .bind(codec::int("fee", onchain_sat)?)
    .bind(id)
    .execute(conn)
    .await?;
    Ok(())
}

/// Their clients have a place for them in this ceremony.
///
/// # Errors
/// Those of the database, and if one of them does not wait for a place any more.
pub async fn seated(conn: &mut Conn, ids: &[String], ceremony: CeremonyId) -> Result<()> {
    for id in ids {
        let done = sqlx::query(
            "UPDATE lsps1_order SET ceremony = ? WHERE order_id = ? AND state = 'held' AND ceremony IS NULL",
        )
        .bind(ceremony.0.as_slice())
        .bind(id)
        .execute(&mut *conn)
        .await?;
        if done.rows_affected() == 0 {
            return Err(StoreError::value("order that waits for a place", id));
        }
    }
    Ok(())
}

/// What clients have paid for of their places in ceremonies.
///
/// # Errors
/// Those of the database.
pub async fn born_with(conn: &mut Conn) -> Result<HashMap<(CeremonyId, ClientId), Amount>> {
    let query = "SELECT ceremony, client, sum(lsp_balance_sat) FROM lsps1_order WHERE ceremony IS NOT NULL GROUP BY 1, 2";
    let rows = sqlx::query(query).fetch_all(conn).await?;
    rows.iter()
        .map(|row| {
            let ceremony: &[u8] = row.try_get(0)?;
            let ceremony = ceremony.try_into().map(CeremonyId);
            let ceremony = ceremony.map_err(|error| StoreError::value("ceremony", error))?;
            let sat = codec::number("amount", row.try_get(2)?)?;
            let client = codec::client(row.try_get(1)?)?;
            Ok(((ceremony, client), Amount::from_sat(sat)))
        })
        .collect()
}

/// Nothing came of that ceremony for this order: it waits for the next one.
///
/// # Errors
/// Those of the database.
pub async fn unseated(conn: &mut Conn, id: &str) -> Result<()> {
    sqlx::query("UPDATE lsps1_order SET ceremony = NULL WHERE order_id = ? AND state = 'held'")
        .bind(id)
        .execute(conn)
        .await?;
    Ok(())
}

/// Orders that are paid for, and wait for a factory.
///
/// # Errors
/// Those of the database.
pub async fn for_birth(conn: &mut Conn) -> Result<Vec<OrderRow>> {
    let query = sqlx::AssertSqlSafe(format!(
        "{COLUMNS} WHERE state = 'held' AND at_birth AND ceremony IS NULL ORDER BY number"
    ));
    let rows = sqlx::query(query).fetch_all(conn).await?;
    rows.iter().map(read).collect()
}

/// What it waits for.
///
/// # Errors
/// Those of the database.
pub async fn note(conn: &mut Conn, id: &str, note: &str) -> Result<()> {
    sqlx::query("UPDATE lsps1_order SET note = ? WHERE order_id = ?")
        .bind(note)
        .bind(id)
        .execute(conn)
        .await?;
    Ok(())
}

/// Its channel's funding is out, or its channel stands on a leaf, which costs nothing; whether that is news.
///
/// # Errors
/// Those of the database.
pub async fn funded(
    conn: &mut Conn,
    id: &str,
    funding: OutPoint,
    onchain_sat: Option<u64>,
    now: u64,
) -> Result<bool> {
    let cost = onchain_sat.map(|sat| codec::int("fee", sat)).transpose()?;
    let done = sqlx::query(
        "UPDATE lsps1_order SET state = 'open', funding_txid = ?, funding_vout = ?, funded_at = ?, \
         onchain_sat = coalesce(?, onchain_sat), note = '' WHERE order_id = ? AND state = 'held'",
    )
    .bind(codec::bytes_of(&funding.txid))
    .bind(funding.vout)
    .bind(codec::int("time", now)?)
    .bind(cost)
    .bind(id)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Nothing comes of a sale: an ordinary channel is opened for the same payment, and its client has all the time for that.
///
/// # Errors
/// Those of the database.
pub async fn not_from_stock(conn: &mut Conn, sale: SaleId, now: u64) -> Result<()> {
    sqlx::query(
        "UPDATE lsps1_order SET held_at = ? WHERE state = 'held' AND order_id = (SELECT lsps1 FROM sale WHERE sale = ?)",
    )
    .bind(codec::int("time", now)?)
    .bind(sale.0.as_slice())
    .execute(conn)
    .await?;
    Ok(())
}

/// Its payment is ours, or, with nothing, never will be; whether that is news.
///
/// # Errors
/// Those of the database.
pub async fn paid(
    conn: &mut Conn,
    id: &str,
    (taken_msat, note): (u64, &str),
    now: u64,
) -> Result<bool> {
    let done = sqlx::query(
        "UPDATE lsps1_order SET state = 'paid', taken_msat = ?, ended_at = ?, note = ? \
         WHERE order_id = ? AND (state = 'open' OR (state = 'paid' AND taken_msat = 0))",
    )
    .bind(codec::int("fee", taken_msat)?)
    .bind(codec::int("time", now)?)
    .bind(note)
    .bind(id)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Nothing comes of it; whether that is news. A payment that is held goes back after this.
///
/// # Errors
/// Those of the database.
pub async fn failed(conn: &mut Conn, id: &str, why: &str, now: u64) -> Result<bool> {
    let done = sqlx::query(
        "UPDATE lsps1_order SET state = 'failed', ended_at = ?, note = ? WHERE order_id = ? AND state IN ('ordered', 'held')",
    )
    .bind(codec::int("time", now)?)
    .bind(why)
    .bind(id)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() > 0)
}

// ---- what was used -------------------------------------------------------------------------------------------------

/// Channels opened for orders whose last one was opened since then: rather too many than too few.
///
/// # Errors
/// Those of the database.
pub async fn opens_since(conn: &mut Conn, since: u64) -> Result<u64> {
    let query = "SELECT sum(opens) FROM lsps1_order WHERE opened_at > ?";
    let opens: Option<i64> = sqlx::query_scalar(query)
        .bind(codec::int("time", since)?)
        .fetch_one(conn)
        .await?;
    codec::number("count", opens.unwrap_or(0))
}

/// What these cost on the chain, in satoshi: those that are funded, and those that may be soon, but for `but` itself. One that did not come about cost nothing.
///
/// # Errors
/// Those of the database.
pub async fn onchain_since(conn: &mut Conn, since: u64, but: Option<&str>) -> Result<u64> {
    let query = "SELECT sum(onchain_sat) FROM lsps1_order WHERE opened_at > ? AND order_id IS NOT ? \
         AND (state = 'held' OR funded_at IS NOT NULL)";
    let sum: Option<i64> = sqlx::query_scalar(query)
        .bind(codec::int("time", since)?)
        .bind(but)
        .fetch_one(conn)
        .await?;
    codec::number("sum", sum.unwrap_or(0))
}

/// What was taken since then, in thousandths of a satoshi.
///
/// # Errors
/// Those of the database.
pub async fn taken_since(conn: &mut Conn, since: u64) -> Result<u64> {
    let query = "SELECT sum(taken_msat) FROM lsps1_order WHERE state = 'paid' AND ended_at > ?";
    let sum: Option<i64> = sqlx::query_scalar(query)
        .bind(codec::int("time", since)?)
        .fetch_one(conn)
        .await?;
    codec::number("sum", sum.unwrap_or(0))
}

// ---- reading -------------------------------------------------------------------------------------------------------

const COLUMNS: &str = "SELECT order_id, client, lsp_balance_sat, confirmations, confirm_within, expiry_blocks, announce, at_birth, fee_sat, hash, \
     invoice, created_at, valid_until, state, held_at, held_until, opens, channel, ceremony, onchain_sat, funding_txid, funding_vout, funded_at, \
     taken_msat, ended_at, note FROM lsps1_order";

/// One order.
///
/// # Errors
/// Those of the database.
pub async fn get(conn: &mut Conn, id: &str) -> Result<Option<OrderRow>> {
    let query = sqlx::AssertSqlSafe(format!("{COLUMNS} WHERE order_id = ?"));
    let row = sqlx::query(query).bind(id).fetch_optional(conn).await?;
    row.as_ref().map(read).transpose()
}

/// The order that this pays.
///
/// # Errors
/// Those of the database.
pub async fn by_hash(conn: &mut Conn, hash: PaymentHash) -> Result<Option<OrderRow>> {
    let query = sqlx::AssertSqlSafe(format!("{COLUMNS} WHERE hash = ?"));
    let query = sqlx::query(query).bind(hash.0.as_slice());
    let row = query.fetch_optional(conn).await?;
    row.as_ref().map(read).transpose()
}

/// The order for which this channel was opened last.
///
/// # Errors
/// Those of the database.
pub async fn by_channel(conn: &mut Conn, channel: u64) -> Result<Option<OrderRow>> {
    let query = sqlx::AssertSqlSafe(format!("{COLUMNS} WHERE channel = ?"));
    let row = sqlx::query(query)
        .bind(twin(channel))
        .fetch_optional(conn)
        .await?;
    row.as_ref().map(read).transpose()
}

/// The order whose channel has this funding.
///
/// # Errors
/// Those of the database.
pub async fn by_funding(conn: &mut Conn, funding: OutPoint) -> Result<Option<OrderRow>> {
    let query = sqlx::AssertSqlSafe(format!(
        "{COLUMNS} WHERE funding_txid = ? AND funding_vout = ?"
    ));
    let query = sqlx::query(query).bind(codec::bytes_of(&funding.txid));
    let row = query.bind(funding.vout).fetch_optional(conn).await?;
    row.as_ref().map(read).transpose()
}

/// Orders about which something may be due: unpaid ones whose time is over, and those that are paid for and not over. Each as far as it can be read.
///
/// # Errors
/// Those of the database.
pub async fn due(conn: &mut Conn, now: u64) -> Result<Vec<Result<OrderRow>>> {
    let query = sqlx::AssertSqlSafe(format!(
        "{COLUMNS} WHERE state IN ('held', 'open') OR (state = 'ordered' AND valid_until < ?) ORDER BY number"
    ));
    let query = sqlx::query(query).bind(codec::int("time", now)?);
    let rows = query.fetch_all(conn).await?;
    Ok(rows.iter().map(read).collect())
}

/// Payments of failed orders that may still be held.
///
/// # Errors
/// Those of the database.
pub async fn to_send_back(conn: &mut Conn, height: u32) -> Result<Vec<Result<PaymentHash>>> {
    let query = sqlx::AssertSqlSafe(format!(
        "{COLUMNS} WHERE state = 'failed' AND held_until > ?"
    ));
    let rows = sqlx::query(query).bind(height).fetch_all(conn).await?;
    let hashes = rows.iter().map(|row| read(row).map(|row| row.order.hash));
    Ok(hashes.collect())
}

/// The newest orders.
///
/// # Errors
/// Those of the database.
pub async fn list(conn: &mut Conn, limit: u32) -> Result<Vec<OrderRow>> {
    let query = sqlx::AssertSqlSafe(format!("{COLUMNS} ORDER BY number DESC LIMIT ?"));
    let rows = sqlx::query(query).bind(limit).fetch_all(conn).await?;
    rows.iter().map(read).collect()
}

fn read(row: &SqliteRow) -> Result<OrderRow> {
    let name: &str = row.try_get("state")?;
    let state = State::ALL.into_iter().find(|state| state.name() == name);
    let hash: &[u8] = row.try_get("hash")?;
    let hash = hash
        .try_into()
        .map_err(|error| StoreError::value("hash", error))?;
    let txid: Option<&[u8]> = row.try_get("funding_txid")?;
    let vout: Option<i64> = row.try_get("funding_vout")?;
    let funding = txid
        .zip(vout)
        .map(|(txid, vout)| codec::outpoint(txid, vout))
        .transpose()?;
    let channel: Option<i64> = row.try_get("channel")?;
    let ceremony: Option<&[u8]> = row.try_get("ceremony")?;
    Ok(OrderRow {
        order: Order {
            id: row.try_get("order_id")?,
            client: codec::client(row.try_get("client")?)?,
            lsp_balance_sat: codec::number("amount", row.try_get("lsp_balance_sat")?)?,
            confirmations: codec::number("confirmations", row.try_get("confirmations")?)?,
            confirm_within: codec::number("blocks", row.try_get("confirm_within")?)?,
            expiry_blocks: codec::number("blocks", row.try_get("expiry_blocks")?)?,
            announce: row.try_get("announce")?,
            at_birth: row.try_get("at_birth")?,
            fee_sat: codec::number("fee", row.try_get("fee_sat")?)?,
            hash: PaymentHash(hash),
            invoice: row.try_get("invoice")?,
            created_at: codec::number("time", row.try_get("created_at")?)?,
            valid_until: codec::number("time", row.try_get("valid_until")?)?,
        },
        state: state.ok_or_else(|| StoreError::value("order", name))?,
        held_at: codec::optional("time", row.try_get("held_at")?)?,
        held_until: codec::optional("height", row.try_get("held_until")?)?,
        opens: codec::number("opens", row.try_get("opens")?)?,
        channel: channel.map(untwin),
        ceremony: ceremony
            .map(|id| id.try_into().map(CeremonyId))
            .transpose()
            .map_err(|error| StoreError::value("ceremony", error))?,
        onchain_sat: codec::number("fee", row.try_get("onchain_sat")?)?,
        funding,
        funded_at: codec::optional("time", row.try_get("funded_at")?)?,
        taken_msat: codec::number("fee", row.try_get("taken_msat")?)?,
        ended_at: codec::optional("time", row.try_get("ended_at")?)?,
        note: row.try_get("note")?,
    })
}
