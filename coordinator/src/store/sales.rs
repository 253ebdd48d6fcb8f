//! Sales from stocks: orders, what was signed for them, and what was taken. Times are Unix time where they are not heights.

use std::fmt;

use bitcoin::secp256k1::{PublicKey, schnorr};
use bitcoin::{Amount, OutPoint};
use channel_host::PaymentHash;
use factory_tree::ids::{Attempt, ClientId, FactoryId, LeafId, SaleId, ShortChannelId};
use factory_tree::sale::Sale;
use factory_tree::sale::order::{PaidBy, PurchaseState};
use factory_tree::sale::seller::SoldRecord;
use factory_tree::units::Height;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{Conn, Result, StoreError, codec};
use crate::keys::FreshSeed;

/// A channel that a sale makes, as far as it is its client's to say, and ours to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientChannel {
    /// Whose.
    pub client: ClientId,
    /// The client's place in the factory.
    pub position: u32,
    /// The leaf.
    pub leaf_id: LeafId,
    /// The client's funding key.
    pub channel_key: PublicKey,
    /// What it holds.
    pub capacity: Amount,
}

/// An order that is new.
#[derive(Clone)]
pub struct NewSale {
    /// Its id.
    pub sale: SaleId,
    /// The buyer.
    pub client: ClientId,
    /// In which factory.
    pub factory: FactoryId,
    /// The buyer's place there.
    pub position: u32,
    /// From which stock.
    pub stock: OutPoint,
    /// Which sale of that stock, from 1.
    pub place: u8,
    /// Of the new channel.
    pub leaf_id: LeafId,
    /// The buyer's funding key of it.
    pub channel_key: PublicKey,
    /// What our funding keys of it, and of bonus channels, derive from, each with its own leaf id.
    pub fresh: FreshSeed,
    /// What the channel holds.
    pub capacity: Amount,
    /// The price.
    pub fee_msat: u64,
    /// The quote's text.
    pub quote: String,
    /// The last height at which it may be signed.
    pub sign_until: Height,
    /// Of the payment.
    pub hash: PaymentHash,
    /// Has the payment's secret: not for logs. Empty where another order pays.
    pub invoice: String,
    /// What pays.
    pub paid_by: PaidBy,
    /// When.
    pub ordered_at: u64,
}

impl NewSale {
    /// The buyer's channel.
    #[must_use]
    pub const fn bought(&self) -> ClientChannel {
        ClientChannel {
            client: self.client,
            position: self.position,
            leaf_id: self.leaf_id,
            channel_key: self.channel_key,
            capacity: self.capacity,
        }
    }
}

impl fmt::Debug for NewSale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewSale")
            .field("sale", &self.sale)
            .field("client", &self.client)
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

/// An order.
#[derive(Clone, Debug)]
pub struct SaleRow {
    /// What was ordered.
    pub order: NewSale,
    /// What it makes, or is to make, for those who sign with the buyer.
    pub bonus: Amount,
    /// How far it is.
    pub state: PurchaseState,
    /// Height at which the payment expires, while it is held.
    pub held_until: Option<u32>,
    /// Attempts so far.
    pub attempts: Attempt,
    /// The terms, once a client may have signed them.
    pub bound: Option<Sale>,
    /// Everything that was signed, once it is complete.
    pub sold: Option<SoldRecord>,
    /// Whether every client of the stock has it in its exit kit.
    pub delivered: bool,
    /// What was taken.
    pub taken_msat: u64,
    /// When it was over.
    pub ended_at: Option<u64>,
    /// What it waits for, or why nothing came of it.
    pub note: String,
}

impl SaleRow {
    /// Whether the next sale of its stock has to wait for it.
    #[must_use]
    pub const fn keeps_stock(&self) -> bool {
        matches!(self.state, PurchaseState::Paid) || (self.sold.is_some() && !self.delivered)
    }

    /// Whether clients may have signed what never became complete: the stock is sold on these terms, or never.
    #[must_use]
    pub const fn reserves_stock(&self) -> bool {
        self.bound.is_some() && self.sold.is_none()
    }
}

/// A state's name in the database.
#[must_use]
pub const fn state_name(state: PurchaseState) -> &'static str {
    match state {
        PurchaseState::Ordered => "ordered",
        PurchaseState::Paid => "paid",
        PurchaseState::Sold => "sold",
        PurchaseState::Settled => "settled",
        PurchaseState::Cancelled => "cancelled",
    }
}

fn parse_state(name: &str) -> Result<PurchaseState> {
    const ALL: [PurchaseState; 5] = [
        PurchaseState::Ordered,
        PurchaseState::Paid,
        PurchaseState::Sold,
        PurchaseState::Settled,
        PurchaseState::Cancelled,
    ];
    let found = ALL.into_iter().find(|state| state_name(*state) == name);
    found.ok_or_else(|| StoreError::value("state of a sale", name))
}

fn scid(paid_by: &PaidBy) -> Option<i64> {
    paid_by.jit().map(|scid| codec::twin(scid.0))
}

/// Writes an order down. One of the same sale that was cancelled is taken up again: its terms are bound, and these are the same.
///
/// # Errors
/// Those of the database.
pub async fn insert(conn: &mut Conn, new: &NewSale) -> Result<()> {
    sqlx::query(
        "INSERT INTO sale (sale, client, factory, position, stock_txid, stock_vout, place, leaf_id, channel_key, fresh, \
         capacity_sat, fee_msat, quote, sign_until, hash, invoice, jit, lsps1, state, ordered_at) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'ordered', ?) \
         ON CONFLICT (sale) DO UPDATE SET fee_msat = excluded.fee_msat, quote = excluded.quote, \
         sign_until = excluded.sign_until, hash = excluded.hash, invoice = excluded.invoice, jit = excluded.jit, lsps1 = excluded.lsps1, \
         state = 'ordered', ordered_at = excluded.ordered_at, held_until = NULL, ended_at = NULL, note = '' WHERE state = 'cancelled'",
    )
    .bind(new.sale.0.as_slice())
    .bind(new.client.0.as_slice())
    .bind(new.factory.0.as_slice())
    .bind(new.position)
    .bind(codec::bytes_of(&new.stock.txid))
    .bind(new.stock.vout)
    .bind(new.place)
    .bind(new.leaf_id.0.as_slice())
    .bind(new.channel_key.serialize().as_slice())
    .bind(new.fresh.as_slice())
    .bind(codec::int("amount", new.capacity.to_sat())?)
    .bind(codec::int("fee", new.fee_msat)?)
    .bind(&new.quote)
    .bind(new.sign_until.0)
    .bind(new.hash.0.as_slice())
    .bind(&new.invoice)
    .bind(scid(&new.paid_by))
    .bind(new.paid_by.lsps1())
    .bind(codec::int("time", new.ordered_at)?)
    .execute(conn)
    .await?;
    Ok(())
}

/// Whether a leaf id or a channel key is that of an order.
///
/// # Errors
/// Those of the database.
pub async fn has_place(conn: &mut Conn, leaf: LeafId, key: &PublicKey) -> Result<bool> {
    let query = "SELECT EXISTS (SELECT 1 FROM sale WHERE leaf_id = ?1 OR channel_key = ?2) \
         OR EXISTS (SELECT 1 FROM bonus WHERE leaf_id = ?1 OR channel_key = ?2)";
    Ok(sqlx::query_scalar(query)
        .bind(leaf.0.as_slice())
        .bind(key.serialize().as_slice())
        .fetch_one(conn)
        .await?)
}

/// Whether a leaf id or a channel key ever served.
///
/// # Errors
/// Those of the database.
pub async fn is_used(conn: &mut Conn, leaf: LeafId, key: &PublicKey) -> Result<bool> {
    let found: Option<i64> = sqlx::query_scalar(
        "SELECT 1 FROM used WHERE leaf_id = ?1 OR channel_key = ?2 OR factory_key = ?2 \
         UNION ALL SELECT 1 FROM sale WHERE leaf_id = ?1 OR channel_key = ?2 \
         UNION ALL SELECT 1 FROM bonus WHERE leaf_id = ?1 OR channel_key = ?2 \
         UNION ALL SELECT 1 FROM member WHERE leaf_id = ?1 LIMIT 1",
    )
    .bind(leaf.0.as_slice())
    .bind(key.serialize().as_slice())
    .fetch_optional(conn)
    .await?;
    Ok(found.is_some())
}

/// Orders of a client for which no channel stands, and orders since then of which nothing came.
///
/// # Errors
/// Those of the database.
pub async fn count_of(conn: &mut Conn, client: ClientId, since: u64) -> Result<(u64, u64)> {
    let row = sqlx::query(
        "SELECT count(*) FILTER (WHERE state IN ('ordered', 'paid', 'sold') AND ended_at IS NULL), \
         count(*) FILTER (WHERE state = 'cancelled' AND ordered_at > ?) FROM sale WHERE client = ?",
    )
    .bind(codec::int("time", since)?)
    .bind(client.0.as_slice())
    .fetch_one(conn)
    .await?;
    Ok((
        codec::number("count", row.try_get(0)?)?,
        codec::number("count", row.try_get(1)?)?,
    ))
}

/// Forgets a client's orders of before then that nobody signed anything for: they never had a channel.
///
/// # Errors
/// Those of the database.
pub async fn prune(conn: &mut Conn, client: ClientId, before: u64) -> Result<()> {
    sqlx::query(
        "DELETE FROM sale WHERE client = ? AND state = 'cancelled' AND ordered_at < ? AND bound IS NULL",
    )
    .bind(client.0.as_slice())
    .bind(codec::int("time", before)?)
    .execute(conn)
    .await?;
    Ok(())
}

// ---- steps ---------------------------------------------------------------------------------------------------------

/// The payment is here, and held by us until then if it is that of a hold invoice: whether the order has the stock to itself now. Of two orders of
/// one place, the first that is paid has it.
///
/// # Errors
/// Those of the database.
pub async fn held(conn: &mut Conn, sale: SaleId, until: Option<u32>) -> Result<bool> {
    let done = sqlx::query(
        "UPDATE sale SET state = 'paid', held_until = ?1, note = 'waits for the clients of the stock' \
         WHERE sale = ?2 AND state = 'ordered' AND NOT EXISTS (SELECT 1 FROM sale o WHERE o.sale <> sale.sale \
         AND o.stock_txid = sale.stock_txid AND o.stock_vout = sale.stock_vout AND (o.state = 'paid' \
         OR (o.sold IS NOT NULL AND (o.delivered = 0 OR o.place >= sale.place)) OR (o.bound IS NOT NULL AND o.sold IS NULL)))",
    )
    .bind(until)
    .bind(sale.0.as_slice())
    .execute(conn)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// An attempt begins: its number.
///
/// # Errors
/// Those of the database.
pub async fn begin_attempt(conn: &mut Conn, sale: SaleId) -> Result<Attempt> {
    let number: i64 = sqlx::query_scalar(
        "UPDATE sale SET attempts = attempts + 1 WHERE sale = ? AND state = 'paid' RETURNING attempts",
    )
    .bind(sale.0.as_slice())
    .fetch_one(conn)
    .await?;
    codec::attempt(number)
}

/// A client may sign these terms from now on.
///
/// # Errors
/// Those of the database.
pub async fn bind(conn: &mut Conn, terms: &Sale) -> Result<()> {
    sqlx::query("UPDATE sale SET bound = ? WHERE sale = ?")
        .bind(codec::json("terms", terms)?)
        .bind(terms.id.0.as_slice())
        .execute(conn)
        .await?;
    Ok(())
}

/// The chain transaction is complete.
///
/// # Errors
/// Those of the database.
pub async fn chain(conn: &mut Conn, sale: SaleId, signature: &schnorr::Signature) -> Result<()> {
    sqlx::query("UPDATE sale SET chain = ? WHERE sale = ?")
        .bind(signature.serialize().as_slice())
        .bind(sale.0.as_slice())
        .execute(conn)
        .await?;
    Ok(())
}

/// Everything is complete: never undone.
///
/// # Errors
/// Those of the database.
pub async fn sold(conn: &mut Conn, record: &SoldRecord) -> Result<()> {
    sqlx::query(
        "UPDATE sale SET state = 'sold', sold = ?, note = 'waits for the buyer, and its channel' WHERE sale = ? AND state = 'paid'",
    )
    .bind(codec::json("sale", record)?)
    .bind(record.sale.id.0.as_slice())
    .execute(conn)
    .await?;
    Ok(())
}

/// Every client of the stock has it in its exit kit.
///
/// # Errors
/// Those of the database.
pub async fn delivered(conn: &mut Conn, sale: SaleId) -> Result<()> {
    sqlx::query("UPDATE sale SET delivered = 1 WHERE sale = ?")
        .bind(sale.0.as_slice())
        .execute(conn)
        .await?;
    Ok(())
}

/// The payment of a complete sale is sent back, as nothing can wait for longer.
///
/// # Errors
/// Those of the database.
pub async fn sent_back(conn: &mut Conn, sale: SaleId, note: &str) -> Result<()> {
    sqlx::query(
        "UPDATE sale SET held_until = NULL, note = ? WHERE sale = ? AND state = 'sold' AND held_until IS NOT NULL",
    )
    .bind(note)
    .bind(sale.0.as_slice())
    .execute(conn)
    .await?;
    Ok(())
}

/// The channel of a complete sale will never stand: nothing more is waited for.
///
/// # Errors
/// Those of the database.
pub async fn end(conn: &mut Conn, sale: SaleId, note: &str, now: u64) -> Result<()> {
    sqlx::query(
        "UPDATE sale SET ended_at = ?, held_until = NULL, note = ? WHERE sale = ? AND state = 'sold'",
    )
    .bind(codec::int("time", now)?)
    .bind(note)
    .bind(sale.0.as_slice())
    .execute(conn)
    .await?;
    Ok(())
}

/// The channel stands, and so much of the payment was taken; whether that is news. What was taken is never forgotten.
///
/// # Errors
/// Those of the database.
pub async fn settled(
    conn: &mut Conn,
    sale: SaleId,
    (taken_msat, note): (u64, &str),
    now: u64,
) -> Result<bool> {
    let done = sqlx::query(
        "UPDATE sale SET state = 'settled', held_until = NULL, taken_msat = ?1, ended_at = ?2, note = ?3 \
         WHERE sale = ?4 AND (state = 'sold' OR (state = 'settled' AND taken_msat < ?1))",
    )
    .bind(codec::int("fee", taken_msat)?)
    .bind(codec::int("time", now)?)
    .bind(note)
    .bind(sale.0.as_slice())
    .execute(conn)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Nothing comes of an order; whether that is news. To be stored before its payment is sent back.
///
/// # Errors
/// Those of the database.
pub async fn cancel(
    conn: &mut Conn,
    sale: SaleId,
    from: PurchaseState,
    note: &str,
    now: u64,
) -> Result<bool> {
    let done = sqlx::query(
        "UPDATE sale SET state = 'cancelled', ended_at = ?, note = ? WHERE sale = ? AND state = ? AND sold IS NULL",
    )
    .bind(codec::int("time", now)?)
    .bind(note)
    .bind(sale.0.as_slice())
    .bind(state_name(from))
    .execute(conn)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// What an order waits for.
///
/// # Errors
/// Those of the database.
pub async fn note(conn: &mut Conn, sale: SaleId, note: &str) -> Result<()> {
    sqlx::query("UPDATE sale SET note = ? WHERE sale = ? AND state IN ('paid', 'sold')")
        .bind(note)
        .bind(sale.0.as_slice())
        .execute(conn)
        .await?;
    Ok(())
}

// ---- questions -----------------------------------------------------------------------------------------------------

const COLUMNS: &str = "SELECT sale, client, factory, position, stock_txid, stock_vout, place, leaf_id, channel_key, fresh, capacity_sat, \
     fee_msat, quote, sign_until, hash, invoice, jit, lsps1, state, held_until, attempts, bound, sold, delivered, taken_msat, ordered_at, \
     ended_at, note, (SELECT coalesce(sum(capacity_sat), 0) FROM bonus b WHERE b.sale = sale.sale) AS bonus_sat FROM sale";

/// One order.
///
/// # Errors
/// Those of the database.
pub async fn get(conn: &mut Conn, sale: SaleId) -> Result<Option<SaleRow>> {
    one(conn, "sale = ?", sale.0.as_slice()).await
}

/// The order that is paid with this hash.
///
/// # Errors
/// Those of the database.
pub async fn by_hash(conn: &mut Conn, hash: PaymentHash) -> Result<Option<SaleRow>> {
    one(conn, "hash = ?", hash.0.as_slice()).await
}

/// The newest order that this other order is to pay.
///
/// # Errors
/// Those of the database.
pub async fn paid_by(conn: &mut Conn, other: &PaidBy) -> Result<Option<SaleRow>> {
    let query = sqlx::AssertSqlSafe(format!(
        "{COLUMNS} WHERE jit IS ? AND lsps1 IS ? ORDER BY ordered_at DESC, number DESC LIMIT 1"
    ));
    let row = sqlx::query(query)
        .bind(scid(other))
        .bind(other.lsps1())
        .fetch_optional(conn)
        .await?;
    row.as_ref().map(read).transpose()
}

/// Whether another sale is to be paid for, or was, by this other order.
///
/// # Errors
/// Those of the database.
pub async fn pays_another(conn: &mut Conn, other: &PaidBy, sale: SaleId) -> Result<bool> {
    let query = "SELECT EXISTS (SELECT 1 FROM sale WHERE jit IS ? AND lsps1 IS ? AND sale <> ? AND state <> 'cancelled')";
    Ok(sqlx::query_scalar(query)
        .bind(scid(other))
        .bind(other.lsps1())
        .bind(sale.0.as_slice())
        .fetch_one(conn)
        .await?)
}

async fn one(conn: &mut Conn, which: &str, id: &[u8]) -> Result<Option<SaleRow>> {
    let query = sqlx::AssertSqlSafe(format!("{COLUMNS} WHERE {which}"));
    let row = sqlx::query(query).bind(id).fetch_optional(conn).await?;
    row.as_ref().map(read).transpose()
}

/// The orders of a factory, oldest first; those nobody has paid for left out.
///
/// # Errors
/// Those of the database.
pub async fn of_factory(conn: &mut Conn, factory: FactoryId) -> Result<Vec<SaleRow>> {
    let query = sqlx::AssertSqlSafe(format!(
        "{COLUMNS} WHERE factory = ? AND (state = 'paid' OR bound IS NOT NULL) ORDER BY place, number"
    ));
    let rows = sqlx::query(query)
        .bind(factory.0.as_slice())
        .fetch_all(conn)
        .await?;
    rows.iter().map(read).collect()
}

/// Orders that are to be driven on: paid, or complete and not delivered and settled yet, while their factory lives. Each as far as it can be read.
///
/// # Errors
/// Those of the database.
pub async fn under_way(conn: &mut Conn, height: u32) -> Result<Vec<Result<SaleRow>>> {
    let query = sqlx::AssertSqlSafe(format!(
        "{COLUMNS} WHERE (state = 'paid' OR (state IN ('sold', 'settled') AND (ended_at IS NULL OR delivered = 0))) \
         AND (state = 'paid' OR held_until IS NOT NULL OR EXISTS (SELECT 1 FROM factory f WHERE f.factory = sale.factory \
         AND f.expiry_height > ? AND NOT f.forgotten)) ORDER BY number"
    ));
    let rows = sqlx::query(query).bind(height).fetch_all(conn).await?;
    Ok(rows.iter().map(read).collect())
}

/// Orders that nobody has paid for, each as far as it can be read.
///
/// # Errors
/// Those of the database.
pub async fn unpaid(conn: &mut Conn) -> Result<Vec<Result<SaleRow>>> {
    let query = sqlx::AssertSqlSafe(format!("{COLUMNS} WHERE state = 'ordered'"));
    let rows = sqlx::query(query).fetch_all(conn).await?;
    Ok(rows.iter().map(read).collect())
}

/// Cancelled orders whose payment may not have been sent back before a crash.
///
/// # Errors
/// Those of the database.
pub async fn to_send_back(conn: &mut Conn, height: u32) -> Result<Vec<Result<PaymentHash>>> {
    let query = sqlx::AssertSqlSafe(format!(
        "{COLUMNS} WHERE state = 'cancelled' AND held_until > ?"
    ));
    let rows = sqlx::query(query).bind(height).fetch_all(conn).await?;
    let hashes = rows.iter().map(|row| read(row).map(|row| row.order.hash));
    Ok(hashes.collect())
}

/// The newest orders.
///
/// # Errors
/// Those of the database.
pub async fn list(conn: &mut Conn, limit: u32) -> Result<Vec<SaleRow>> {
    let query = sqlx::AssertSqlSafe(format!("{COLUMNS} ORDER BY number DESC LIMIT ?"));
    let rows = sqlx::query(query).bind(limit).fetch_all(conn).await?;
    rows.iter().map(read).collect()
}

fn read(row: &SqliteRow) -> Result<SaleRow> {
    let key: &[u8] = row.try_get("channel_key")?;
    let hash: &[u8] = row.try_get("hash")?;
    let fixed = |what, error: &dyn fmt::Display| StoreError::value(what, error);
    let bound: Option<String> = row.try_get("bound")?;
    let sold: Option<String> = row.try_get("sold")?;
    let id: &[u8] = row.try_get("sale")?;
    let leaf: &[u8] = row.try_get("leaf_id")?;
    let fresh: &[u8] = row.try_get("fresh")?;
    let order = NewSale {
        sale: SaleId::try_from(id).map_err(|error| fixed("sale id", &error))?,
        client: codec::client(row.try_get("client")?)?,
        factory: codec::factory(row.try_get("factory")?)?,
        position: codec::number("position", row.try_get("position")?)?,
        stock: codec::outpoint(row.try_get("stock_txid")?, row.try_get("stock_vout")?)?,
        place: codec::number("number of a sale", row.try_get("place")?)?,
        leaf_id: LeafId::try_from(leaf).map_err(|error| fixed("leaf id", &error))?,
        channel_key: PublicKey::from_slice(key).map_err(|error| fixed("channel key", &error))?,
        fresh: FreshSeed::try_from(fresh).map_err(|error| fixed("randomness", &error))?,
        capacity: Amount::from_sat(codec::number("amount", row.try_get("capacity_sat")?)?),
        fee_msat: codec::number("fee", row.try_get("fee_msat")?)?,
        quote: row.try_get("quote")?,
        sign_until: Height(codec::number("height", row.try_get("sign_until")?)?),
        hash: PaymentHash(hash.try_into().map_err(|error| fixed("hash", &error))?),
        invoice: row.try_get("invoice")?,
        paid_by: match (row.try_get("jit")?, row.try_get("lsps1")?) {
            (None, None) => PaidBy::Invoice,
            (Some(scid), _) => PaidBy::Jit(ShortChannelId(codec::untwin(scid))),
            (None, Some(id)) => PaidBy::Lsps1(id),
        },
        ordered_at: codec::number("time", row.try_get("ordered_at")?)?,
    };
    let bound = bound.map(|text| codec::from_json("terms", text.as_bytes()));
    let sold = sold.map(|text| codec::from_json("sale", text.as_bytes()));
    Ok(SaleRow {
        order,
        bonus: Amount::from_sat(codec::number("amount", row.try_get("bonus_sat")?)?),
        state: parse_state(row.try_get("state")?)?,
        held_until: codec::optional("height", row.try_get("held_until")?)?,
        attempts: codec::attempt(row.try_get("attempts")?)?,
        bound: bound.transpose()?,
        sold: sold.transpose()?,
        delivered: row.try_get("delivered")?,
        taken_msat: codec::number("fee", row.try_get("taken_msat")?)?,
        ended_at: codec::optional("time", row.try_get("ended_at")?)?,
        note: row.try_get("note")?,
    })
}
