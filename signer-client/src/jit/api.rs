//! What whoever embeds the wallet calls to be paid without a channel.

use std::time::Duration;

use bitcoin::Amount;
use channel_host::{AskError, InvoiceRequest, JitPromise, Msat, PaymentHash, read_invoice};
use factory_tree::ids::ShortChannelId;
use factory_tree::sale::order::PaidBy;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::terms::{FeeParams, Ground, Text};
use super::{JitError, JitQuote};
use crate::client::SignerClient;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::lightning::{Invoice, coordinator_of, on_node, words};
use crate::sales::{OtherOrder, buy_for, quote_for};

/// What JSON-RPC says of a method that nobody serves (JSON-RPC 2.0, section 5.1).
const UNKNOWN_METHOD: i32 = -32_601;

/// What the invoice is to say, and on which terms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JitOptions {
    /// What for.
    pub description: String,
    /// How long it can be paid; never longer than the coordinator's promise holds.
    pub expiry: Duration,
    /// The most that the channel may cost; left out, `jit.max_fee_sat` of the configuration.
    pub max_fee: Option<Msat>,
    /// The user accepts to hold more in a factory than is covered there if the coordinator breaks off: without that such a channel comes from the
    /// chain.
    pub consent: bool,
}

/// An invoice for a payment that a channel is opened for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JitInvoice {
    /// The invoice.
    #[serde(flatten)]
    pub invoice: Invoice,
    /// What is kept of its payment for opening the channel; more, and the payment is sent back.
    pub fee_msat: u64,
    /// What arrives.
    pub receive_msat: u64,
}

#[derive(Deserialize)]
struct Info {
    opening_fee_params_menu: Vec<FeeParams>,
}

#[derive(Deserialize)]
struct Bought {
    jit_channel_scid: ShortChannelId,
    lsp_cltv_expiry_delta: u16,
    #[serde(default)]
    client_trusts_lsp: bool,
}

impl SignerClient {
    /// Asks what a channel for a payment of this size would cost. Nothing is ordered; the wallet needs neither a channel nor a coin.
    ///
    /// # Errors
    /// [`Error::Jit`]; [`Error::NoLightning`]; [`Error::Asked`] when the coordinator refuses, or is away.
    pub async fn quote_jit(&self, payment: Msat) -> Result<JitQuote> {
        let node = self.inner.lightning.running()?;
        let has_room = |msat: u64| {
            let channels = node.channels();
            channels.iter().any(|channel| channel.receivable.0 >= msat)
        };
        if has_room(payment.0) {
            return Err(JitError::HasRoom.into());
        }
        let info: Info = self.ask_jit("lsps2.get_info", &json!({})).await?;
        let menu = info.opening_fee_params_menu;
        let quote = JitQuote::best(&menu, payment, self.ground())?;
        // The coordinator opens none for what is left of the payment then.
        if has_room(quote.receive_msat) {
            return Err(JitError::HasRoom.into());
        }
        Ok(quote)
    }

    /// Orders the channel that was quoted, and makes the invoice for its payment. From now on the channel is accepted and its payment taken, in
    /// every run of the wallet, until the offer's time is over.
    ///
    /// # Errors
    /// [`Error::Jit`], above all [`JitError::Fee`]; [`Error::NoLightning`]; [`Error::Asked`].
    pub async fn jit_invoice(&self, quote: &JitQuote, options: &JitOptions) -> Result<JitInvoice> {
        let inner = &self.inner;
        let node = inner.lightning.running()?;
        // What it costs is what the offer says, whoever hands us the quote.
        let quote = JitQuote::new(&quote.params, Msat(quote.payment_msat), self.ground())?;
        let configured = Msat(inner.config.jit.max_fee_sat.saturating_mul(1000));
        quote.within(options.max_fee.unwrap_or(configured))?;
        let lsp = coordinator_of(inner).ok_or(JitError::NotOffered)?;
        let params = json!({
            "opening_fee_params": quote.params,
            "payment_size_msat": Text(quote.payment_msat),
        });
        let bought: Bought = self.ask_jit("lsps2.buy", &params).await?;
        // Whoever has the preimage has the payment: the channel would be a promise.
        if bought.client_trusts_lsp && !inner.config.jit.allow_unfunded {
            return Err(JitError::Unfunded.into());
        }
        let scid = bought.jit_channel_scid;
        let now = inner.now();
        let left = Duration::from_secs(quote.valid_until.saturating_sub(now.time));
        let expiry = options.expiry.min(left);
        let request = InvoiceRequest {
            amount: Some(Msat(quote.payment_msat)),
            description: options.description.clone().into(),
            expiry,
            hints: vec![],
        };
        let promise = JitPromise {
            lsp,
            scid: scid.0,
            cltv_delta: bought.lsp_cltv_expiry_delta,
            payment_msat: quote.payment_msat,
            fee_msat: quote.fee_msat,
            valid_until: quote.valid_until,
        };
        // Stored before anybody sees the invoice.
        let text = on_node(node, move |node| node.jit_invoice(&request, promise)).await?;
        let text = text.map_err(words)?;
        let view = read_invoice(&text, inner.config.network).map_err(words)?;
        let expires_time = now.time.saturating_add(expiry.as_secs());
        inner
            .store
            .record_invoice(view.hash, &options.description, expires_time, now)
            .await?;
        inner.events.emit(Event::JitOrdered {
            hash: view.hash.to_string(),
            payment_msat: quote.payment_msat,
            fee_msat: quote.fee_msat,
        });
        // Without it the channel comes from the chain.
        if let Err(error) = self
            .reserve(&quote, (scid, view.hash), options.consent)
            .await
        {
            tracing::info!(%error, "the channel comes from no stock");
        }
        Ok(JitInvoice {
            invoice: Invoice {
                invoice: text,
                hash: view.hash.to_string(),
                amount_msat: Some(quote.payment_msat),
                expires_time,
            },
            fee_msat: quote.fee_msat,
            receive_msat: quote.receive_msat,
        })
    }

    /// Orders the channel from the stock of a factory too, if this wallet shares one: for the same fee, and without a transaction.
    async fn reserve(
        &self,
        quote: &JitQuote,
        (scid, hash): (ShortChannelId, PaymentHash),
        consent: bool,
    ) -> Result<()> {
        let order = OtherOrder {
            paid_by: PaidBy::Jit(scid),
            hash,
            amount: Amount::from_sat(quote.payment_msat.div_ceil(1000)),
            least: Amount::from_sat(quote.receive_msat.div_ceil(1000)),
        };
        let quoted = quote_for(self, &order).await?;
        buy_for(self, &quoted.signed, &order, consent).await
    }

    fn ground(&self) -> Ground {
        Ground {
            now: self.inner.now().time,
            to_self_delay: self.inner.config.lightning.to_self_delay,
        }
    }

    async fn ask_jit<T: DeserializeOwned>(&self, method: &str, params: &Value) -> Result<T> {
        let answer: Value = match self.ask_coordinator(method, params).await {
            Err(Error::Asked(AskError::Refused(error))) if error.code == UNKNOWN_METHOD => {
                return Err(JitError::NotOffered.into());
            }
            answer => answer?,
        };
        serde_json::from_value(answer)
            .map_err(|error| JitError::Answer(format!("{method}: {error}")).into())
    }
}
