//! Channels sold just in time (LSPS2): orders, what was taken, and what it cost. All times are Unix time.

use bitcoin::hashes::Hash;
use bitcoin::{Amount, Txid};
use channel_host::JitOpening;
use factory_tree::ids::{ClientId, LeafId, SaleId};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::codec::{twin, untwin};
use super::{Conn, Result, StoreError, codec};

/// How far an order is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No payment yet.
    Sold,
    /// A payment is here, and a channel on its way.
    Opening,
    /// The channel stands.
    Open,
    /// The fee is taken.
    Paid,
    /// The channel is closed.
    Closed,
}

impl State {
    const ALL: [Self; 5] = [
        Self::Sold,
        Self::Opening,
        Self::Open,
        Self::Paid,
        Self::Closed,
    ];

    /// Its name in the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sold => "sold",
            Self::Opening => "opening",
            Self::Open => "open",
            Self::Paid => "paid",
            Self::Closed => "closed",
        }
    }
}

/// An order that is new.
#[derive(Clone, Copy, Debug)]
pub struct NewOrder {
    /// Its number.
    pub scid: u64,
    /// Whose.
    pub client: ClientId,
    /// How much is to be paid, if that is known.
    pub payment_msat: Option<u64>,
    /// The least fee.
    pub min_fee_msat: u64,
    /// The fee in millionths.
    pub fee_ppm: u32,
    /// Until when.
    pub valid_until: u64,
    /// How deep the funding has to be before its channel is closed, blocks.
    pub min_lifetime: u32,
    /// Whether the funding waits for the payment.
    pub client_trusts_lsp: bool,
    /// When.
    pub created_at: u64,
}

/// An order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderRow {
    /// Its number.
    pub scid: u64,
    /// Whose.
    pub client: ClientId,
    /// How much is to be paid, if that is known.
    pub payment_msat: Option<u64>,
    /// The least fee.
    pub min_fee_msat: u64,
    /// The fee in millionths.
    pub fee_ppm: u32,
    /// Until when.
    pub valid_until: u64,
    /// Whether the funding waits for the payment.
    pub client_trusts_lsp: bool,
    /// When it was sold.
    pub created_at: u64,
    /// How far it is.
    pub state: State,
    /// How often a channel was opened for it.
    pub opens: u32,
    /// What the order says the fee is for the payment that came.
    pub fee_msat: Option<u64>,
    /// What was taken.
    pub taken_msat: u64,
    /// What the channel holds.
    pub capacity_sat: Option<u64>,
    /// The channel's number.
    pub channel: Option<u64>,
    /// Its funding transaction.
    pub funding: Option<Txid>,
    /// The sale from a stock that it comes from instead.
    pub sale: Option<SaleId>,
    /// What that cost; an estimate until it is known.
    pub onchain_sat: u64,
    /// Why the last payment was sent back.
    pub problem: String,
}

/// What a channel is funded with.
#[derive(Clone, Copy, Debug)]
pub struct Funding {
    /// The channel's number.
    pub channel: u64,
    /// The transaction.
    pub txid: Txid,
    /// What it costs, if that is known.
    pub fee_sat: Option<u64>,
}

fn optional(value: Option<u64>) -> Result<Option<i64>> {
    value.map(|value| codec::int("amount", value)).transpose()
}

/// An order nothing came of is forgotten so many seconds after its time.
const KEPT: u64 = 86_400;

/// An order is sold; those nothing came of are forgotten with it, so that whoever only asks does not fill the disk.
///
/// # Errors
/// Those of the database.
pub async fn sold(conn: &mut Conn, order: &NewOrder) -> Result<()> {
    let past = order.created_at.saturating_sub(KEPT);
    sqlx::query("DELETE FROM jit_order WHERE state = 'sold' AND opens = 0 AND valid_until < ?")
        .bind(codec::int("time", past)?)
        .execute(&mut *conn)
        .await?;
    sqlx::query(
        "INSERT INTO jit_order (scid, client, payment_msat, min_fee_msat, fee_ppm, valid_until, min_lifetime, \
         client_trusts_lsp, created_at, state) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'sold')",
    )
    .bind(twin(order.scid))
    .bind(order.client.0.as_slice())
    .bind(optional(order.payment_msat)?)
    .bind(codec::int("fee", order.min_fee_msat)?)
    .bind(order.fee_ppm)
    .bind(codec::int("time", order.valid_until)?)
    .bind(order.min_lifetime)
    .bind(order.client_trusts_lsp)
    .bind(codec::int("time", order.created_at)?)
    .execute(conn)
    .await?;
    Ok(())
}

/// A channel is opened for an order; its cost counts from now on.
///
/// # Errors
/// Those of the database.
pub async fn opening(
    conn: &mut Conn,
    opening: &JitOpening,
    onchain_sat: u64,
    now: u64,
) -> Result<()> {
    sqlx::query(
        "UPDATE jit_order SET state = 'opening', opens = opens + 1, opened_at = ?, fee_msat = ?, capacity_sat = ?, \
         onchain_sat = ?, channel = NULL, funding = NULL, sale = NULL WHERE scid = ?",
    )
    .bind(codec::int("time", now)?)
    .bind(codec::int("fee", opening.fee.0)?)
    .bind(codec::int("capacity", opening.capacity.to_sat())?)
    .bind(codec::int("fee", onchain_sat)?)
    .bind(twin(opening.scid))
    .execute(conn)
    .await?;
    Ok(())
}

/// A channel from a stock is signed for an order: it costs nothing on the chain.
///
/// # Errors
/// Those of the database.
pub async fn from_stock(
    conn: &mut Conn,
    opening: &JitOpening,
    sale: SaleId,
    capacity: Amount,
) -> Result<()> {
    sqlx::query(
        "UPDATE jit_order SET state = 'opening', fee_msat = ?, capacity_sat = ?, sale = ?, channel = NULL, funding = NULL \
         WHERE scid = ?",
    )
    .bind(codec::int("fee", opening.fee.0)?)
    .bind(codec::int("capacity", capacity.to_sat())?)
    .bind(sale.0.as_slice())
    .bind(twin(opening.scid))
    .execute(conn)
    .await?;
    Ok(())
}

/// Nothing comes of a sale that was not complete: its order waits for another channel.
///
/// # Errors
/// Those of the database.
pub async fn not_from_stock(conn: &mut Conn, sale: SaleId) -> Result<()> {
    sqlx::query(
        "UPDATE jit_order SET state = 'sold', sale = NULL, fee_msat = NULL, capacity_sat = NULL \
         WHERE sale = ? AND state = 'opening'",
    )
    .bind(sale.0.as_slice())
    .execute(conn)
    .await?;
    Ok(())
}

/// The channel of a sale stands; the number of the order that it is for, if that is news.
///
/// # Errors
/// Those of the database.
pub async fn stands_by_sale(conn: &mut Conn, sale: SaleId) -> Result<Option<u64>> {
    let query =
        "UPDATE jit_order SET state = 'open' WHERE sale = ? AND state = 'opening' RETURNING scid";
    let scid: Option<i64> = sqlx::query_scalar(query)
        .bind(sale.0.as_slice())
        .fetch_optional(conn)
        .await?;
    Ok(scid.map(untwin))
}

/// The channel on a leaf is closed; the number of the order that it was for, if that is news.
///
/// # Errors
/// Those of the database.
pub async fn leaf_closed(conn: &mut Conn, leaf: LeafId) -> Result<Option<u64>> {
    let query = "UPDATE jit_order SET state = 'closed' WHERE sale = (SELECT sale FROM sale WHERE leaf_id = ?) \
         AND state IN ('open', 'paid') RETURNING scid";
    let scid: Option<i64> = sqlx::query_scalar(query)
        .bind(leaf.0.as_slice())
        .fetch_optional(conn)
        .await?;
    Ok(scid.map(untwin))
}

/// Whether a client has, or is being signed, a channel from a living stock for which it let us keep no fee, whatever it did to that channel since.
///
/// # Errors
/// Those of the database.
pub async fn owes_for_stock(conn: &mut Conn, client: ClientId) -> Result<bool> {
    let query = "SELECT EXISTS (SELECT 1 FROM sale s JOIN factory f USING (factory) LEFT JOIN jit_order j ON j.scid = s.jit \
         WHERE s.client = ? AND s.jit IS NOT NULL AND s.state IN ('paid', 'sold', 'settled') AND j.paid_at IS NULL \
         AND NOT f.forgotten)";
    Ok(sqlx::query_scalar(query)
        .bind(client.0.as_slice())
        .fetch_one(conn)
        .await?)
}

/// The channel of a complete sale never stood, or not for long: its order has had what it was for.
///
/// # Errors
/// Those of the database.
pub async fn over_by_sale(conn: &mut Conn, sale: SaleId) -> Result<()> {
    sqlx::query("UPDATE jit_order SET state = 'closed' WHERE sale = ? AND state <> 'paid'")
        .bind(sale.0.as_slice())
        .execute(conn)
        .await?;
    Ok(())
}

/// A channel is about to be paid for; whether that is news.
///
/// # Errors
/// Those of the database.
pub async fn funded(conn: &mut Conn, scid: u64, funding: &Funding) -> Result<bool> {
    let done = sqlx::query(
        "UPDATE jit_order SET channel = ?, funding = ?, onchain_sat = coalesce(?, onchain_sat) \
         WHERE scid = ? AND funding IS NOT ?",
    )
    .bind(twin(funding.channel))
    .bind(funding.txid.as_byte_array().as_slice())
    .bind(optional(funding.fee_sat)?)
    .bind(twin(scid))
    .bind(funding.txid.as_byte_array().as_slice())
    .execute(conn)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// A channel stands, or is closed; the order's number, if it is of one and that is news.
///
/// # Errors
/// Those of the database.
pub async fn channel(conn: &mut Conn, channel: u64, stands: bool) -> Result<Option<u64>> {
    let query = if stands {
        "UPDATE jit_order SET state = 'open' WHERE channel = ? AND state = 'opening' RETURNING scid"
    } else {
        // One that never stood may be tried again, unless its funding may be out: that would be another funding.
        "UPDATE jit_order SET state = CASE WHEN state = 'opening' AND client_trusts_lsp THEN 'sold' ELSE 'closed' END \
         WHERE channel = ? AND state IN ('opening', 'open', 'paid') RETURNING scid"
    };
    let scid: Option<i64> = sqlx::query_scalar(query)
        .bind(twin(channel))
        .fetch_optional(conn)
        .await?;
    Ok(scid.map(untwin))
}

/// The fee is taken; whether that is news.
///
/// # Errors
/// Those of the database.
pub async fn paid(conn: &mut Conn, scid: u64, taken_msat: u64, now: u64) -> Result<bool> {
    let done = sqlx::query(
        "UPDATE jit_order SET taken_msat = ?, paid_at = coalesce(paid_at, ?), \
         state = CASE state WHEN 'closed' THEN 'closed' ELSE 'paid' END WHERE scid = ? AND (taken_msat <> ? OR paid_at IS NULL)",
    )
    .bind(codec::int("fee", taken_msat)?)
    .bind(codec::int("time", now)?)
    .bind(twin(scid))
    .bind(codec::int("fee", taken_msat)?)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// A payment was sent back.
///
/// # Errors
/// Those of the database.
pub async fn refused(conn: &mut Conn, scid: u64, problem: &str) -> Result<()> {
    sqlx::query("UPDATE jit_order SET problem = ? WHERE scid = ?")
        .bind(problem)
        .bind(twin(scid))
        .execute(conn)
        .await?;
    Ok(())
}

/// Channels opened for orders whose last one was opened since then: rather too many than too few.
///
/// # Errors
/// Those of the database.
pub async fn opens_since(conn: &mut Conn, since: u64) -> Result<u64> {
    let opens: Option<i64> =
        sqlx::query_scalar("SELECT sum(opens) FROM jit_order WHERE opened_at > ?")
            .bind(codec::int("time", since)?)
            .fetch_one(conn)
            .await?;
    codec::number("count", opens.unwrap_or(0))
}

/// What these cost on the chain, in satoshi, if each cost what the last one did.
///
/// # Errors
/// Those of the database.
pub async fn onchain_since(conn: &mut Conn, since: u64) -> Result<u64> {
    let sum: Option<i64> =
        sqlx::query_scalar("SELECT sum(onchain_sat * opens) FROM jit_order WHERE opened_at > ?")
            .bind(codec::int("time", since)?)
            .fetch_one(conn)
            .await?;
    codec::number("sum", sum.unwrap_or(0))
}

/// Fees taken since then, in thousandths of a satoshi.
///
/// # Errors
/// Those of the database.
pub async fn taken_since(conn: &mut Conn, since: u64) -> Result<u64> {
    let sum: Option<i64> =
        sqlx::query_scalar("SELECT sum(taken_msat) FROM jit_order WHERE paid_at > ?")
            .bind(codec::int("time", since)?)
            .fetch_one(conn)
            .await?;
    codec::number("sum", sum.unwrap_or(0))
}

/// Orders that are valid and have no channel, and those whose channel's fee is not paid: of this client, and of all.
///
/// # Errors
/// Those of the database.
pub async fn open_orders(conn: &mut Conn, client: ClientId, now: u64) -> Result<(u64, u64)> {
    let row = sqlx::query(
        "SELECT count(*) FILTER (WHERE client = ?), count(*) FROM jit_order \
         WHERE state = 'open' OR state IN ('sold', 'opening') AND valid_until >= ?",
    )
    .bind(client.0.as_slice())
    .bind(codec::int("time", now)?)
    .fetch_one(conn)
    .await?;
    Ok((
        codec::number("count", row.try_get(0)?)?,
        codec::number("count", row.try_get(1)?)?,
    ))
}

/// How deep the funding of a channel has to be before we close it, if it is of an order whose fee is paid.
///
/// # Errors
/// Those of the database.
pub async fn promised_depth(
    conn: &mut Conn,
    funding: Txid,
    leaf: Option<LeafId>,
) -> Result<Option<u32>> {
    let query = "SELECT min_lifetime FROM jit_order WHERE state = 'paid' \
         AND (funding = ? OR sale = (SELECT sale FROM sale WHERE leaf_id = ?))";
    let depth: Option<i64> = sqlx::query_scalar(query)
        .bind(funding.as_byte_array().as_slice())
        .bind(leaf.as_ref().map(|leaf| leaf.0.as_slice()))
        .fetch_optional(conn)
        .await?;
    codec::optional("blocks", depth)
}

const COLUMNS: &str = "SELECT scid, client, payment_msat, min_fee_msat, fee_ppm, valid_until, client_trusts_lsp, \
     created_at, state, opens, fee_msat, taken_msat, capacity_sat, channel, funding, sale, onchain_sat, problem FROM jit_order";

/// One order.
///
/// # Errors
/// Those of the database.
pub async fn get(conn: &mut Conn, scid: u64) -> Result<Option<OrderRow>> {
    let query = sqlx::AssertSqlSafe(format!("{COLUMNS} WHERE scid = ?"));
    let row = sqlx::query(query)
        .bind(twin(scid))
        .fetch_optional(conn)
        .await?;
    row.as_ref().map(read).transpose()
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
    let number = |name: &'static str| codec::optional(name, row.try_get(name)?);
    let funding: Option<&[u8]> = row.try_get("funding")?;
    let sale: Option<&[u8]> = row.try_get("sale")?;
    let sale =
        sale.map(|id| SaleId::try_from(id).map_err(|error| StoreError::value("sale id", error)));
    let channel: Option<i64> = row.try_get("channel")?;
    Ok(OrderRow {
        scid: untwin(row.try_get("scid")?),
        client: codec::client(row.try_get("client")?)?,
        payment_msat: number("payment_msat")?,
        min_fee_msat: codec::number("fee", row.try_get("min_fee_msat")?)?,
        fee_ppm: codec::number("fee", row.try_get("fee_ppm")?)?,
        valid_until: codec::number("time", row.try_get("valid_until")?)?,
        client_trusts_lsp: row.try_get("client_trusts_lsp")?,
        created_at: codec::number("time", row.try_get("created_at")?)?,
        state: state.ok_or_else(|| StoreError::value("order", name))?,
        opens: codec::number("opens", row.try_get("opens")?)?,
        fee_msat: number("fee_msat")?,
        taken_msat: codec::number("fee", row.try_get("taken_msat")?)?,
        capacity_sat: number("capacity_sat")?,
        channel: channel.map(untwin),
        funding: funding.map(codec::txid).transpose()?,
        sale: sale.transpose()?,
        onchain_sat: codec::number("fee", row.try_get("onchain_sat")?)?,
        problem: row.try_get("problem")?,
    })
}
