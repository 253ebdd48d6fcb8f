//! What a buyer and the LSP agree on before anything is signed: a quote, and the order that takes it.
//!
//! A quote is a text that the LSP signs with its node key; the invoice names its hash, so that what
//! is paid for is what was quoted.

use bitcoin::hashes::{Hash, sha256};
use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, OutPoint};
use serde::{Deserialize, Serialize};

use crate::ids::{ClientId, FactoryId, LeafId, SaleId, ShortChannelId};
use crate::units::Height;

/// What pays for a channel from a stock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PaidBy {
    /// A hold invoice of its own.
    #[default]
    Invoice,
    /// The just-in-time order (LSPS2) whose payment the channel is for: its opening fee is the price.
    Jit(ShortChannelId),
    /// The order of a channel (LSPS1) with this id: its price is the price.
    Lsps1(String),
}

impl PaidBy {
    /// Whether it has an invoice of its own.
    #[must_use]
    pub const fn is_invoice(&self) -> bool {
        matches!(self, Self::Invoice)
    }

    /// The just-in-time order, if that pays.
    #[must_use]
    pub const fn jit(&self) -> Option<ShortChannelId> {
        match self {
            Self::Jit(scid) => Some(*scid),
            Self::Invoice | Self::Lsps1(_) => None,
        }
    }

    /// The order of a channel, if that pays.
    #[must_use]
    pub fn lsps1(&self) -> Option<&str> {
        match self {
            Self::Lsps1(id) => Some(id),
            Self::Invoice | Self::Jit(_) => None,
        }
    }
}

/// The terms the LSP offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quote {
    /// Names the sale that would come of it.
    pub sale: SaleId,
    /// For whom.
    pub client: ClientId,
    /// In which factory.
    pub factory: FactoryId,
    /// From which stock.
    pub stock: OutPoint,
    /// Which sale of that stock it would be.
    pub number: u8,
    /// What was asked for.
    #[serde(rename = "asked_sat", with = "bitcoin::amount::serde::as_sat")]
    pub asked: Amount,
    /// What the channel would hold: as much, or all there is where the rest would be no stock.
    #[serde(rename = "capacity_sat", with = "bitcoin::amount::serde::as_sat")]
    pub capacity: Amount,
    /// The price, in msat.
    pub fee_msat: u64,
    /// Unix time until which it can be taken.
    pub valid_until: u64,
    /// The last height at which the sale may be signed.
    pub sign_until: Height,
    /// What pays for it. Where that is not its own invoice, there is none, and it costs nothing itself.
    #[serde(default, skip_serializing_if = "PaidBy::is_invoice")]
    pub paid_by: PaidBy,
}

/// Why a text is no quote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no quote: {0}")]
pub struct QuoteError(String);

impl Quote {
    /// The text that is signed.
    #[must_use]
    pub fn text(&self) -> String {
        // Writing these fields cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads a text; only what [`Self::text`] writes, so that one quote has one hash.
    ///
    /// # Errors
    /// [`QuoteError`].
    pub fn parse(text: &str) -> Result<Self, QuoteError> {
        let quote: Self = serde_json::from_str(text).map_err(|e| QuoteError(e.to_string()))?;
        if quote.text() == text {
            return Ok(quote);
        }
        Err(QuoteError("it is written in another way".into()))
    }
}

/// A quote as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedQuote {
    /// [`Quote::text`].
    pub text: String,
    /// The LSP's signature on [`Self::message`], as Lightning nodes sign messages (zbase32).
    pub signature: String,
}

impl SignedQuote {
    /// What is signed: nothing else the node signs begins like this.
    #[must_use]
    pub fn message(text: &str) -> String {
        format!("SuperScalar quote: {text}")
    }

    /// What the invoice names as its description's hash (BOLT 11).
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        sha256::Hash::hash(self.text.as_bytes()).to_byte_array()
    }
}

/// A client asks for a quote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuoteRequest {
    /// In which factory; the LSP chooses where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factory: Option<FactoryId>,
    /// How much; for a just-in-time order what it is to be paid, and the LSP adds what the channel holds beyond that; for an order of a channel what
    /// that says.
    pub amount_sat: u64,
    /// What is to pay for it.
    #[serde(default, skip_serializing_if = "PaidBy::is_invoice")]
    pub paid_by: PaidBy,
}

/// A client takes a quote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// The quote.
    pub quote: SignedQuote,
    /// The leaf id of the new channel, drawn by the client.
    pub leaf_id: LeafId,
    /// The client's funding key of it.
    pub channel_key: PublicKey,
}

/// Where a client wants its next bonus channel: for signing with somebody else who buys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BonusPlace {
    /// In which factory.
    pub factory: FactoryId,
    /// The leaf id of the channel, drawn by the client for it alone.
    pub leaf_id: LeafId,
    /// The client's funding key of it.
    pub channel_key: PublicKey,
}

/// The answer to a [`BonusPlace`]: it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BonusPlaced {}

/// Names a sale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PurchaseRequest {
    /// Which.
    pub sale: SaleId,
}

/// How far an order is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PurchaseState {
    /// The invoice is not paid.
    Ordered,
    /// The payment is held; the stock's clients sign, or are waited for.
    Paid,
    /// Everything is signed; the channel is opened.
    Sold,
    /// The channel stands, and the payment was taken.
    Settled,
    /// Nothing came of it, and the payment, if any, was sent back.
    Cancelled,
}

/// An order, as the LSP tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Purchase {
    /// Which.
    pub sale: SaleId,
    /// How far it is.
    pub state: PurchaseState,
    /// The hold invoice (BOLT 11); empty where another order pays.
    pub invoice: String,
    /// What it waits for, or why nothing came of it; for people.
    pub note: String,
}

/// The methods, beside those of LSPS specifications, on the same transport (bLIP-50).
pub mod method {
    /// [`super::QuoteRequest`] to [`super::SignedQuote`].
    pub const QUOTE: &str = "superscalar.get_quote";
    /// [`super::Order`] to [`super::Purchase`]; the same order again is answered with the same.
    pub const BUY: &str = "superscalar.buy";
    /// [`super::PurchaseRequest`] to [`super::Purchase`].
    pub const PURCHASE: &str = "superscalar.get_purchase";
    /// [`super::PurchaseRequest`] to [`super::Purchase`]: takes an order back, while that is possible.
    pub const CANCEL: &str = "superscalar.cancel_purchase";
    /// [`super::BonusPlace`] to [`super::BonusPlaced`]; a newer one takes the place of one that no sale has used.
    pub const BONUS_PLACE: &str = "superscalar.bonus_place";
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quote() -> Quote {
        Quote {
            sale: SaleId([1; 16]),
            client: ClientId([2; 33]),
            factory: FactoryId([3; 32]),
            stock: OutPoint::null(),
            number: 1,
            asked: Amount::from_sat(50_000),
            capacity: Amount::from_sat(60_000),
            fee_msat: 1_234_000,
            valid_until: 1_800_000_000,
            sign_until: Height(900_000),
            paid_by: PaidBy::Invoice,
        }
    }

    #[test]
    fn a_quote_has_one_text() {
        let text = quote().text();
        assert_eq!(Quote::parse(&text), Ok(quote()));
        assert!(Quote::parse(&text.replace(',', ", ")).is_err());
        assert!(Quote::parse(&text.replace("asked_sat", "other")).is_err());
        assert!(Quote::parse("").is_err());
    }

    #[test]
    fn a_quote_names_the_order_that_pays_for_it() {
        assert!(!quote().text().contains("paid_by"));
        let number = "29451x4815x1".parse().unwrap();
        for (paid_by, text) in [
            (PaidBy::Jit(number), r#""paid_by":{"jit":"29451x4815x1"}"#),
            (
                PaidBy::Lsps1("ab-1".into()),
                r#""paid_by":{"lsps1":"ab-1"}"#,
            ),
        ] {
            let paid = Quote { paid_by, ..quote() };
            assert!(paid.text().contains(text), "{}", paid.text());
            assert_eq!(Quote::parse(&paid.text()), Ok(paid.clone()));
            let other = paid.text().replace("paid_by", "paid_for_by");
            assert!(Quote::parse(&other).is_err());
        }
        // One quote has one text.
        let wordy = quote().text().replace('}', r#","paid_by":"invoice"}"#);
        assert!(Quote::parse(&wordy).is_err());
    }

    #[test]
    fn a_short_channel_id_has_three_parts() {
        let scid = ShortChannelId((29_451 << 40) | (4_815 << 16) | 1);
        assert_eq!(scid.to_string().parse(), Ok(scid));
        let most = ShortChannelId(u64::MAX);
        assert_eq!("16777215x16777215x65535".parse(), Ok(most));
        for wrong in [
            "",
            "1x2",
            "1x2x3x4",
            "16777216x0x0",
            "0x16777216x0",
            "0x0x65536",
            "axbxc",
        ] {
            assert!(wrong.parse::<ShortChannelId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn another_word_is_another_quote() {
        let signed = |text: String| SignedQuote {
            text,
            signature: String::new(),
        };
        let dearer = Quote {
            fee_msat: 1_234_001,
            ..quote()
        };
        assert_ne!(signed(quote().text()).hash(), signed(dearer.text()).hash());
    }
}
