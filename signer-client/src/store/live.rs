//! Between processes: what the running one is doing, and what others ask of it.

use async_trait::async_trait;
use bitcoin::Amount;
use factory_tree::ids::{FactoryId, SaleId};
use factory_tree::sale::order::SignedQuote;
use serde::{Deserialize, Serialize};

use super::codec::unreadable;
use super::{Result, SqliteStore};
use crate::jit::JitQuote;
use crate::lsps1::ChannelQuote;

/// The wish to be in the next factory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interest {
    /// Capacity asked for; 0: the coordinator's default.
    pub capacity: Amount,
    /// What became of it so far, in words.
    pub note: String,
}

/// What the running process is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Live {
    /// Connected and authenticated.
    pub connected: bool,
    /// Why not, in words.
    pub disconnected_because: Option<String>,
    /// The attempt it takes part in: ceremony id and number.
    pub round: Option<String>,
    /// The step of that attempt.
    pub phase: Option<String>,
    /// What the move out of a factory that ends is doing, or waits for, in words.
    pub moving: Option<String>,
    /// The block the chain was followed to.
    pub height: u32,
    /// What is wrong with the chain source, in words.
    pub chain_problem: Option<String>,
}

/// What another process asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// A fresh address of the on-chain wallet.
    Address,
    /// What the wallet has.
    Balance,
    /// The confirmed coins of the on-chain wallet.
    Coins,
    /// Move all confirmed payouts into the on-chain wallet.
    Sweep {
        /// Feerate in sat per 1000 weight units; `None`: the node's estimate.
        sat_per_kwu: Option<u64>,
    },
    /// Make an invoice.
    Invoice {
        /// How much, if it is to say so.
        amount_msat: Option<u64>,
        /// What for.
        description: String,
        /// Seconds in which it can be paid.
        expiry: u64,
    },
    /// What a channel for one payment would cost.
    QuoteJit {
        /// What is to be paid.
        amount_msat: u64,
    },
    /// Make an invoice that such a channel is opened for.
    JitInvoice {
        /// What was quoted.
        quote: JitQuote,
        /// What for.
        description: String,
        /// Seconds in which it can be paid.
        expiry: u64,
        /// The most that the channel may cost.
        max_fee_msat: Option<u64>,
        /// Whether the user accepts to hold more in a factory than is covered.
        consent: bool,
    },
    /// Close a channel outside of factories.
    CloseChannel {
        /// Its BOLT 2 id, in hexadecimal digits.
        channel: String,
        /// Alone.
        force: bool,
    },
    /// Begin to pay an invoice.
    Pay {
        /// BOLT 11.
        invoice: String,
        /// How much, if it leaves that open.
        amount_msat: Option<u64>,
    },
    /// Begin to pay a node without an invoice.
    Keysend {
        /// Which.
        to: bitcoin::secp256k1::PublicKey,
        /// How much.
        amount_msat: u64,
    },
    /// The channels.
    Channels,
    /// What can be received.
    Limit,
    /// What a channel costs, from a stock or from the chain, or with the next factory.
    QuoteChannel {
        /// What it is to hold.
        amount_sat: u64,
        /// Whether it is to come with the next factory.
        at_birth: bool,
    },
    /// Order and pay such a channel.
    OrderChannel {
        /// What was quoted.
        quote: Box<ChannelQuote>,
        /// Whether the user accepts to hold more in a factory than is covered.
        consent: bool,
        /// The most that may be paid.
        max_fee_msat: Option<u64>,
    },
    /// What more would cost.
    QuoteLimit {
        /// In this factory, if it is to be this one.
        factory: Option<FactoryId>,
        /// How much more.
        amount_sat: u64,
    },
    /// Buy what was quoted.
    UpgradeLimit {
        /// The quote.
        quote: SignedQuote,
        /// Whether the user accepts what is not covered.
        consent: bool,
        /// The most that may be paid.
        max_fee_msat: Option<u64>,
    },
    /// Take a purchase back.
    CancelPurchase {
        /// Which.
        sale: SaleId,
    },
    /// Set a webhook.
    SetWebhook {
        /// Its name.
        app_name: String,
        /// Where it is.
        url: String,
    },
    /// The webhooks.
    Webhooks,
    /// Remove a webhook.
    RemoveWebhook {
        /// Its name.
        app_name: String,
    },
    /// Look at interest and exits again: they changed.
    Wake,
}

/// What it is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Done; what there is to say about it.
    Done(serde_json::Value),
    /// Not done.
    Failed {
        /// Why.
        why: String,
        /// How a command line reports it.
        exit_code: u8,
    },
}

/// Between processes.
#[async_trait]
pub trait LiveStore {
    /// The wish to be in the next factory.
    async fn interest(&self) -> Result<Option<Interest>>;

    /// Sets or removes it.
    async fn set_interest(&self, interest: Option<&Interest>) -> Result<()>;

    /// Says what became of it, unless it is gone.
    async fn note_interest(&self, note: &str) -> Result<()>;

    /// What the running process said last.
    async fn live(&self) -> Result<Live>;

    /// Says it.
    async fn set_live(&self, live: &Live) -> Result<()>;

    /// Asks something; returns the question's number.
    async fn ask(&self, request: &Request) -> Result<i64>;

    /// What is not answered yet, oldest first. What another release asks in words unknown here is
    /// answered with that.
    async fn asked(&self) -> Result<Vec<(i64, Request)>>;

    /// Answers.
    async fn answer(&self, id: i64, answer: &Answer) -> Result<()>;

    /// Takes an answer, which is removed.
    async fn take_answer(&self, id: i64) -> Result<Option<Answer>>;

    /// Removes a question nobody waits for any more.
    async fn withdraw(&self, id: i64) -> Result<()>;
}

#[async_trait]
impl LiveStore for SqliteStore {
    async fn interest(&self) -> Result<Option<Interest>> {
        let row: Option<(i64, String)> =
            sqlx::query_as("SELECT capacity_sat, note FROM interest WHERE id = 1")
                .fetch_optional(self.pool())
                .await
                .map_err(|error| self.error(error))?;
        row.map(|(capacity, note)| {
            let capacity = u64::try_from(capacity).map_err(|_| unreadable("capacity_sat"))?;
            Ok(Interest {
                capacity: Amount::from_sat(capacity),
                note,
            })
        })
        .transpose()
    }

    async fn set_interest(&self, interest: Option<&Interest>) -> Result<()> {
        let query = match interest {
            Some(interest) => sqlx::query(
                "INSERT INTO interest (id, capacity_sat, note) VALUES (1, ?, ?) ON CONFLICT (id)
                 DO UPDATE SET capacity_sat = excluded.capacity_sat, note = excluded.note",
            )
            .bind(super::codec::sat(interest.capacity))
            .bind(interest.note.clone()),
            None => sqlx::query("DELETE FROM interest"),
        };
        query
            .execute(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        Ok(())
    }

    async fn note_interest(&self, note: &str) -> Result<()> {
        sqlx::query("UPDATE interest SET note = ?")
            .bind(note)
            .execute(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        Ok(())
    }

    async fn live(&self) -> Result<Live> {
        let state: Option<String> = sqlx::query_scalar("SELECT state FROM live WHERE id = 1")
            .fetch_optional(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        state.map_or_else(
            || Ok(Live::default()),
            |state| serde_json::from_str(&state).map_err(|_| unreadable("live state")),
        )
    }

    async fn set_live(&self, live: &Live) -> Result<()> {
        sqlx::query(
            "INSERT INTO live (id, state) VALUES (1, ?)
             ON CONFLICT (id) DO UPDATE SET state = excluded.state",
        )
        .bind(serde_json::to_string(live).map_err(|_| unreadable("live state"))?)
        .execute(self.pool())
        .await
        .map_err(|error| self.error(error))?;
        Ok(())
    }

    async fn ask(&self, request: &Request) -> Result<i64> {
        let text = serde_json::to_string(request).map_err(|_| unreadable("request"))?;
        let done = sqlx::query("INSERT INTO requests (request) VALUES (?)")
            .bind(text)
            .execute(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        Ok(done.last_insert_rowid())
    }

    async fn asked(&self) -> Result<Vec<(i64, Request)>> {
        let rows: Vec<(i64, String)> =
            sqlx::query_as("SELECT id, request FROM requests WHERE answer IS NULL ORDER BY id")
                .fetch_all(self.pool())
                .await
                .map_err(|error| self.error(error))?;
        let mut asked = Vec::with_capacity(rows.len());
        for (id, text) in rows {
            match serde_json::from_str(&text) {
                Ok(request) => asked.push((id, request)),
                Err(error) => {
                    let why = format!(
                        "the running signer-client does not know this ({error}); use one release for both"
                    );
                    self.answer(id, &Answer::Failed { why, exit_code: 1 })
                        .await?;
                }
            }
        }
        Ok(asked)
    }

    async fn answer(&self, id: i64, answer: &Answer) -> Result<()> {
        let text = serde_json::to_string(answer).map_err(|_| unreadable("answer"))?;
        sqlx::query("UPDATE requests SET answer = ? WHERE id = ?")
            .bind(text)
            .bind(id)
            .execute(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        Ok(())
    }

    async fn take_answer(&self, id: i64) -> Result<Option<Answer>> {
        let text: Option<String> = sqlx::query_scalar(
            "DELETE FROM requests WHERE id = ? AND answer IS NOT NULL RETURNING answer",
        )
        .bind(id)
        .fetch_optional(self.pool())
        .await
        .map_err(|error| self.error(error))?;
        text.map(|text| serde_json::from_str(&text).map_err(|_| unreadable("answer")))
            .transpose()
    }

    async fn withdraw(&self, id: i64) -> Result<()> {
        sqlx::query("DELETE FROM requests WHERE id = ?")
            .bind(id)
            .execute(self.pool())
            .await
            .map_err(|error| self.error(error))?;
        Ok(())
    }
}
