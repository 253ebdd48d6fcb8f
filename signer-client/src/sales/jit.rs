//! Purchases that a just-in-time order pays for (LSPS2): the channel for a payment that is to come is ordered from the stock too, and costs nothing
//! but the order's opening fee. Where nothing comes of it the coordinator opens an ordinary channel.

use bitcoin::Amount;
use channel_host::{Msat, PaymentHash};
use factory_tree::ids::ShortChannelId;
use factory_tree::sale::order::{QuoteRequest, SignedQuote, method};
use serde_json::json;

use super::api::{judge, remember};
use super::desk::Desk;
use super::quote::LimitQuote;
use super::shop::Shop;
use super::{QuoteRefusal, SaleError};
use crate::client::SignerClient;
use crate::error::{Error, Result};
use crate::lightning::on_node;
use crate::store::PurchaseTerms;

/// A just-in-time order, and what it is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JitPurchase {
    /// The order's number.
    pub(crate) scid: ShortChannelId,
    /// The hash of its invoice.
    pub(crate) hash: PaymentHash,
    /// What is to be paid.
    pub(crate) payment: Msat,
    /// What is to arrive of it.
    pub(crate) arrives: Msat,
    /// Whether the user accepts to hold more than is covered.
    pub(crate) consent: bool,
}

/// Orders the channel from the stock that the coordinator chooses.
///
/// # Errors
/// Why it does not come from there; nothing is lost by that.
pub(crate) async fn buy_for_jit(client: &SignerClient, wanted: &JitPurchase) -> Result<()> {
    let inner = &client.inner;
    let rows = inner.store.factories().await?;
    if !rows.iter().any(|row| row.stands()) {
        return Err(SaleError::NoFactory.into());
    }
    let request = json!(QuoteRequest {
        factory: None,
        amount_sat: wanted.payment.0.div_ceil(1000),
        jit: Some(wanted.scid),
    });
    let answer = Shop::ask(client, method::QUOTE, &request).await?;
    let signed: SignedQuote = serde_json::from_value(answer)
        .map_err(|error| Error::Handshake(format!("a quote that is none: {error}")))?;
    let _turn = inner.sales.turn.lock().await;
    let judged = judge(inner, &signed, None, None).await?;
    fits(&judged, wanted)?;
    let terms = PurchaseTerms {
        consent: wanted.consent,
        automatic: false,
        jit: Some(wanted.hash),
    };
    let leaf = remember(inner, &judged, terms).await?;
    let (node, hash) = (inner.lightning.running()?, wanted.hash);
    let (desk, sale) = (Desk::new(inner, client), judged.quote.sale);
    // Before the channel can be opened; without it the fee would be refused there.
    let noted = on_node(node, move |node| node.jit_on_leaf(hash, leaf.as_u128())).await?;
    if let Err(error) = noted {
        desk.give_up(&desk.row(sale).await?, "it could not be noted")
            .await?;
        return Err(error.into());
    }
    desk.bring(sale, true).await
}

/// Whether a quote is for this order, for nothing, and large enough.
fn fits(judged: &LimitQuote, wanted: &JitPurchase) -> Result<(), SaleError> {
    let quote = &judged.quote;
    if quote.jit != Some(wanted.scid) {
        return Err(QuoteRefusal::Order.into());
    }
    if quote.fee_msat > 0 {
        let (fee_msat, max_msat) = (quote.fee_msat, 0);
        return Err(SaleError::Fee { fee_msat, max_msat });
    }
    let due = Amount::from_sat(wanted.arrives.0.div_ceil(1000));
    if quote.capacity < due {
        let found = quote.capacity;
        return Err(QuoteRefusal::Capacity { found, due }.into());
    }
    judged.agreed(wanted.consent)
}

#[cfg(test)]
mod tests {
    use super::super::limit::CoverageView;
    use super::*;
    use bitcoin::OutPoint;
    use factory_tree::ids::{ClientId, FactoryId, SaleId};
    use factory_tree::sale::order::Quote;
    use factory_tree::units::Height;

    fn judged(change: impl FnOnce(&mut LimitQuote)) -> LimitQuote {
        let quote = Quote {
            sale: SaleId([1; 16]),
            client: ClientId([2; 33]),
            factory: FactoryId([3; 32]),
            stock: OutPoint::null(),
            number: 1,
            asked: Amount::from_sat(120_000),
            capacity: Amount::from_sat(120_000),
            fee_msat: 0,
            valid_until: 2_000_000_000,
            sign_until: Height(900_000),
            jit: Some(ShortChannelId(7)),
        };
        let mut judged = LimitQuote {
            signed: SignedQuote {
                text: quote.text(),
                signature: String::new(),
            },
            quote,
            after: CoverageView {
                away_sat: 1,
                awake_sat: 1,
                held_sat: 2,
            },
            needs_consent: false,
        };
        change(&mut judged);
        judged
    }

    #[test]
    fn a_quote_is_for_this_order_free_and_large_enough() {
        let wanted = JitPurchase {
            scid: ShortChannelId(7),
            hash: PaymentHash([9; 32]),
            payment: Msat(100_000_000),
            arrives: Msat(98_000_000),
            consent: false,
        };
        assert_eq!(fits(&judged(|_| ()), &wanted), Ok(()));
        for wrong in [
            judged(|judged| judged.quote.jit = None),
            judged(|judged| judged.quote.jit = Some(ShortChannelId(8))),
            judged(|judged| judged.quote.fee_msat = 1),
            judged(|judged| judged.quote.capacity = Amount::from_sat(97_999)),
            judged(|judged| judged.needs_consent = true),
        ] {
            assert!(fits(&wrong, &wanted).is_err(), "{wrong:?}");
        }
        let uncovered = judged(|judged| judged.needs_consent = true);
        let agreed = JitPurchase {
            consent: true,
            ..wanted
        };
        assert_eq!(fits(&uncovered, &agreed), Ok(()));
    }
}
