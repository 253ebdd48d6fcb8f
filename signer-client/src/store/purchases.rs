//! Purchases of inbound liquidity.

use async_trait::async_trait;
use bitcoin::secp256k1::PublicKey;
use channel_host::PaymentHash;
use factory_tree::ids::{FactoryId, LeafId, SaleId};
use factory_tree::sale::order::{PaidBy, PurchaseState, Quote, SignedQuote};
use sqlx::sqlite::SqliteRow;

use super::codec::{Columns, unreadable};
use super::joins::reused;
use super::{Result, SqliteStore, StoreError};

/// A purchase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PurchaseRow {
    /// The sale that is to come of it.
    pub sale: SaleId,
    /// In which factory.
    pub factory: FactoryId,
    /// What the leaf id was drawn from.
    pub nonce: [u8; 16],
    /// The new channel's leaf id.
    pub leaf_id: LeafId,
    /// Our funding key of it.
    pub channel_key: PublicKey,
    /// The quote that is taken.
    pub quote: SignedQuote,
    /// Whether the user accepts to hold more than is covered.
    pub consent: bool,
    /// Whether the wallet bought it by itself.
    pub automatic: bool,
    /// The hash of the payment, once there is an invoice that was found good; of the payment of the other order, if one is to pay for it.
    pub hash: Option<PaymentHash>,
    /// That invoice.
    pub invoice: Option<String>,
    /// How far it is. Paid: the payment may have begun.
    pub state: PurchaseState,
    /// What it waits for, or why nothing came of it.
    pub note: String,
    /// Unix time at which it began.
    pub created_time: u64,
    /// Unix time at which it ended.
    pub ended_time: Option<u64>,
}

/// On which terms something is bought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PurchaseTerms {
    /// Whether the user accepts to hold more than is covered.
    pub consent: bool,
    /// Whether the wallet buys it by itself.
    pub automatic: bool,
    /// The hash of the payment of the other order that is to pay for it, if one is.
    pub other: Option<PaymentHash>,
}

impl PurchaseRow {
    /// What pays for it. A just-in-time order's payment is one to us.
    #[must_use]
    pub fn paid_by(&self) -> PaidBy {
        Quote::parse(&self.quote.text).map_or(PaidBy::Invoice, |quote| quote.paid_by)
    }

    /// Whether it has come to an end.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        matches!(
            self.state,
            PurchaseState::Settled | PurchaseState::Cancelled
        )
    }
}

/// Purchases.
#[async_trait]
pub trait PurchaseStore {
    /// Remembers a purchase before it is ordered. Fails with [`StoreError::Reused`] if its sale or its place served before.
    async fn add_purchase(&self, row: &PurchaseRow) -> Result<()>;

    /// Takes a newer quote for a sale that nothing is being paid for, on the place that was drawn for it; `false` if something is.
    async fn renew_purchase(
        &self,
        sale: SaleId,
        quote: &SignedQuote,
        terms: PurchaseTerms,
    ) -> Result<bool>;

    /// Remembers the invoice before it is paid.
    async fn set_invoice(&self, sale: SaleId, hash: PaymentHash, invoice: &str) -> Result<()>;

    /// How far it is, and what there is to say about it; `ended`: the Unix time of its end, if it has one. What is sold stays so.
    async fn set_purchase(
        &self,
        sale: SaleId,
        state: PurchaseState,
        note: &str,
        ended: Option<u64>,
    ) -> Result<()>;

    /// One purchase.
    async fn purchase(&self, sale: SaleId) -> Result<Option<PurchaseRow>>;

    /// All of them, oldest first.
    async fn purchases(&self) -> Result<Vec<PurchaseRow>>;
}

const STATES: [(PurchaseState, &str); 5] = [
    (PurchaseState::Ordered, "ordered"),
    (PurchaseState::Paid, "paid"),
    (PurchaseState::Sold, "sold"),
    (PurchaseState::Settled, "settled"),
    (PurchaseState::Cancelled, "cancelled"),
];

/// A state as it is written.
pub(crate) fn state_name(state: PurchaseState) -> &'static str {
    let found = STATES.iter().find(|(known, _)| *known == state);
    found.map_or("", |(_, name)| name)
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[async_trait]
impl PurchaseStore for SqliteStore {
    async fn add_purchase(&self, row: &PurchaseRow) -> Result<()> {
        let mut tx = self.write().await?;
        sqlx::query(
            "INSERT INTO purchases (sale, factory_id, nonce, leaf_id, channel_key, quote, signature,
                consent, automatic, hash, invoice, state, note, created_time, ended_time)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(row.sale.0.as_slice())
        .bind(row.factory.0.as_slice())
        .bind(row.nonce.as_slice())
        .bind(row.leaf_id.0.as_slice())
        .bind(row.channel_key.serialize().as_slice())
        .bind(&row.quote.text)
        .bind(&row.quote.signature)
        .bind(i64::from(row.consent))
        .bind(i64::from(row.automatic))
        .bind(row.hash.map(|hash| hash.0.to_vec()))
        .bind(&row.invoice)
        .bind(state_name(row.state))
        .bind(&row.note)
        .bind(whole(row.created_time))
        .bind(row.ended_time.map(whole))
        .execute(&mut *tx)
        .await
        .map_err(|error| match error.as_database_error() {
            Some(database) if database.is_unique_violation() => StoreError::Reused {
                what: reused(database.message()),
            },
            _ => self.error(error),
        })?;
        self.bump_epoch(&mut tx).await?;
        self.commit(tx).await
    }

    async fn renew_purchase(
        &self,
        sale: SaleId,
        quote: &SignedQuote,
        terms: PurchaseTerms,
    ) -> Result<bool> {
        let mut tx = self.write().await?;
        let done = sqlx::query(
            "UPDATE purchases SET quote = ?, signature = ?, consent = ?, automatic = ?, hash = ?,
                invoice = NULL, state = 'ordered', note = '', ended_time = NULL
             WHERE sale = ? AND state IN ('ordered', 'cancelled')",
        )
        .bind(&quote.text)
        .bind(&quote.signature)
        .bind(i64::from(terms.consent))
        .bind(i64::from(terms.automatic))
        .bind(terms.other.map(|hash| hash.0.to_vec()))
        .bind(sale.0.as_slice())
        .execute(&mut *tx)
        .await
        .map_err(|error| self.error(error))?;
        self.bump_epoch(&mut tx).await?;
        self.commit(tx).await?;
        Ok(done.rows_affected() > 0)
    }

    async fn set_invoice(&self, sale: SaleId, hash: PaymentHash, invoice: &str) -> Result<()> {
        sqlx::query("UPDATE purchases SET hash = ?, invoice = ? WHERE sale = ?")
            .bind(hash.0.as_slice())
            .bind(invoice)
            .bind(sale.0.as_slice())
            .execute(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        Ok(())
    }

    async fn set_purchase(
        &self,
        sale: SaleId,
        state: PurchaseState,
        note: &str,
        ended: Option<u64>,
    ) -> Result<()> {
        sqlx::query(
            "UPDATE purchases SET state = ?1, note = ?2, ended_time = ?3
             WHERE sale = ?4 AND (state NOT IN ('sold', 'settled') OR ?1 IN ('sold', 'settled'))",
        )
        .bind(state_name(state))
        .bind(note)
        .bind(ended.map(whole))
        .bind(sale.0.as_slice())
        .execute(self.pool())
        .await
        .map_err(|error| self.error(error))?;
        Ok(())
    }

    async fn purchase(&self, sale: SaleId) -> Result<Option<PurchaseRow>> {
        let row = sqlx::query("SELECT * FROM purchases WHERE sale = ?")
            .bind(sale.0.as_slice())
            .fetch_optional(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        row.as_ref().map(read).transpose()
    }

    async fn purchases(&self) -> Result<Vec<PurchaseRow>> {
        let rows = sqlx::query("SELECT * FROM purchases ORDER BY created_time, rowid")
            .fetch_all(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        rows.iter().map(read).collect()
    }
}

fn read(row: &SqliteRow) -> Result<PurchaseRow> {
    let row = Columns(row);
    let text = row.text("state")?;
    let state = STATES.iter().find(|(_, name)| *name == text);
    let hash = match row.maybe_bytes("hash")? {
        Some(_) => Some(PaymentHash(row.array("hash")?)),
        None => None,
    };
    Ok(PurchaseRow {
        sale: SaleId(row.array("sale")?),
        factory: FactoryId(row.array("factory_id")?),
        nonce: row.array("nonce")?,
        leaf_id: LeafId(row.array("leaf_id")?),
        channel_key: PublicKey::from_slice(&row.bytes("channel_key")?)
            .map_err(|_| unreadable("channel_key"))?,
        quote: SignedQuote {
            text: row.text("quote")?,
            signature: row.text("signature")?,
        },
        consent: row.flag("consent")?,
        automatic: row.flag("automatic")?,
        hash,
        invoice: row.maybe_text("invoice")?,
        state: state
            .map(|(state, _)| *state)
            .ok_or(unreadable("purchase"))?,
        note: row.text("note")?,
        created_time: row.whole("created_time")?,
        ended_time: row.maybe_whole("ended_time")?,
    })
}
