//! Orders of channels (LSPS1).

use async_trait::async_trait;
use bitcoin::{Amount, OutPoint};
use channel_host::PaymentHash;
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;

use super::codec::{Columns, sat, unreadable};
use super::{Result, SqliteStore};

/// How far an order is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderState {
    /// Agreed to, and not paid.
    Ordered,
    /// The payment may have begun.
    Paid,
    /// Paid, and the channel came from the stock of a factory.
    FromStock,
    /// Paid, and the channel came with a new factory.
    FromBirth,
    /// Paid, and an ordinary channel came.
    Onchain,
    /// Nothing came of it; what was paid came back.
    Failed,
}

const STATES: [(OrderState, &str); 6] = [
    (OrderState::Ordered, "ordered"),
    (OrderState::Paid, "paid"),
    (OrderState::FromStock, "from_stock"),
    (OrderState::FromBirth, "from_birth"),
    (OrderState::Onchain, "onchain"),
    (OrderState::Failed, "failed"),
];

impl OrderState {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        let found = STATES.iter().find(|(known, _)| *known == self);
        found.map_or("", |(_, name)| name)
    }
}

/// An order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderRow {
    /// Its id, the coordinator's.
    pub id: String,
    /// What the channel holds, all of it to be received.
    pub capacity: Amount,
    /// The price.
    pub fee_msat: u64,
    /// The hash of the payment.
    pub hash: PaymentHash,
    /// The invoice.
    pub invoice: String,
    /// Whether it is to come with the next factory.
    pub at_birth: bool,
    /// How far it is.
    pub state: OrderState,
    /// The channel's funding, as the coordinator says it.
    pub funding: Option<OutPoint>,
    /// What it waits for, or why nothing came of it.
    pub note: String,
    /// Unix time at which it began.
    pub created_time: u64,
    /// Unix time at which it ended.
    pub ended_time: Option<u64>,
}

impl OrderRow {
    /// Whether it has come to an end.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.ended_time.is_some()
    }
}

/// Orders of channels.
#[async_trait]
pub trait OrderStore {
    /// Remembers an order before anything is paid for it; the same again changes nothing.
    async fn add_order(&self, row: &OrderRow) -> Result<()>;

    /// How far it is, and what there is to say about it.
    async fn set_order(&self, id: &str, state: OrderState, note: &str) -> Result<()>;

    /// Its end.
    async fn end_order(
        &self,
        id: &str,
        state: OrderState,
        funding: Option<OutPoint>,
        note: &str,
        time: u64,
    ) -> Result<()>;

    /// All of them, oldest first.
    async fn orders(&self) -> Result<Vec<OrderRow>>;
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[async_trait]
impl OrderStore for SqliteStore {
    async fn add_order(&self, row: &OrderRow) -> Result<()> {
        sqlx::query(
            "INSERT INTO orders (order_id, capacity_sat, fee_msat, hash, invoice, at_birth, state, note, created_time)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(&row.id)
        .bind(sat(row.capacity))
        .bind(whole(row.fee_msat))
        .bind(row.hash.0.as_slice())
        .bind(&row.invoice)
        .bind(row.at_birth)
        .bind(row.state.as_str())
        .bind(&row.note)
        .bind(whole(row.created_time))
        .execute(self.pool())
        .await
        .map_err(|error| self.error(error))?;
        Ok(())
    }

    async fn set_order(&self, id: &str, state: OrderState, note: &str) -> Result<()> {
        let query =
            "UPDATE orders SET state = ?, note = ? WHERE order_id = ? AND ended_time IS NULL";
        sqlx::query(query)
            .bind(state.as_str())
            .bind(note)
            .bind(id)
            .execute(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        Ok(())
    }

    async fn end_order(
        &self,
        id: &str,
        state: OrderState,
        funding: Option<OutPoint>,
        note: &str,
        time: u64,
    ) -> Result<()> {
        sqlx::query(
            "UPDATE orders SET state = ?, funding = ?, note = ?, ended_time = ?
             WHERE order_id = ? AND ended_time IS NULL",
        )
        .bind(state.as_str())
        .bind(funding.map(|funding| funding.to_string()))
        .bind(note)
        .bind(whole(time))
        .bind(id)
        .execute(self.pool())
        .await
        .map_err(|error| self.error(error))?;
        Ok(())
    }

    async fn orders(&self) -> Result<Vec<OrderRow>> {
        let rows = sqlx::query("SELECT * FROM orders ORDER BY created_time, rowid")
            .fetch_all(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        rows.iter().map(read).collect()
    }
}

fn read(row: &SqliteRow) -> Result<OrderRow> {
    let row = Columns(row);
    let text = row.text("state")?;
    let state = STATES.iter().find(|(_, name)| *name == text);
    let funding = row.maybe_text("funding")?;
    let funding = funding.map(|text| text.parse().map_err(|_| unreadable("funding")));
    Ok(OrderRow {
        id: row.text("order_id")?,
        capacity: Amount::from_sat(row.whole("capacity_sat")?),
        fee_msat: row.whole("fee_msat")?,
        hash: PaymentHash(row.array("hash")?),
        invoice: row.text("invoice")?,
        at_birth: row.whole("at_birth")? > 0,
        state: state.map(|(state, _)| *state).ok_or(unreadable("order"))?,
        funding: funding.transpose()?,
        note: row.text("note")?,
        created_time: row.whole("created_time")?,
        ended_time: row.maybe_whole("ended_time")?,
    })
}
