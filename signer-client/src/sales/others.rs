//! Purchases that another order pays for: a just-in-time order (LSPS2), with its opening fee, or the order of a channel (LSPS1), with its price. The
//! channel is ordered from the stock too, and costs nothing itself. Where nothing comes of it the coordinator opens an ordinary channel.

use bitcoin::Amount;
use channel_host::PaymentHash;
use factory_tree::sale::order::{PaidBy, PurchaseState, QuoteRequest, SignedQuote, method};
use serde_json::json;

use super::api::{is_for_now, judge, remember};
use super::desk::Desk;
use super::quote::LimitQuote;
use super::shop::Shop;
use super::{QuoteRefusal, SaleError};
use crate::client::{Inner, SignerClient};
use crate::error::{Error, Result};
use crate::lightning::on_node;
use crate::store::PurchaseTerms;

/// The order that is to pay.
#[derive(Clone, Debug)]
pub(crate) struct OtherOrder {
    /// Which.
    pub(crate) paid_by: PaidBy,
    /// The hash of its invoice.
    pub(crate) hash: PaymentHash,
    /// What is asked for.
    pub(crate) amount: Amount,
    /// What the channel has to hold at least.
    pub(crate) least: Amount,
}

/// Asks for a channel from the stock that the coordinator chooses, and judges what it says.
///
/// # Errors
/// Why it does not come from there; nothing is lost by that.
pub(crate) async fn quote_for(client: &SignerClient, order: &OtherOrder) -> Result<LimitQuote> {
    let inner = &client.inner;
    let rows = inner.store.factories().await?;
    if !rows.iter().any(|row| row.stands()) {
        return Err(SaleError::NoFactory.into());
    }
    let request = json!(QuoteRequest {
        factory: None,
        amount_sat: order.amount.to_sat(),
        paid_by: order.paid_by.clone(),
    });
    let answer = Shop::ask(client, method::QUOTE, &request).await?;
    let signed: SignedQuote = serde_json::from_value(answer)
        .map_err(|error| Error::Handshake(format!("a quote that is none: {error}")))?;
    let judged = judge(inner, &signed, None, None).await?;
    fits(&judged, order)?;
    Ok(judged)
}

/// Orders what was quoted. `consent`: the user accepts to hold more than is covered.
///
/// # Errors
/// Why it does not come from there; nothing is lost by that.
pub(crate) async fn buy_for(
    client: &SignerClient,
    signed: &SignedQuote,
    order: &OtherOrder,
    consent: bool,
) -> Result<()> {
    let inner = &client.inner;
    let _turn = inner.sales.turn.lock().await;
    let judged = judge(inner, signed, None, None).await?;
    fits(&judged, order)?;
    judged.agreed(consent)?;
    let terms = PurchaseTerms {
        consent,
        automatic: false,
        other: Some(order.hash),
    };
    let leaf = remember(inner, &judged, terms).await?;
    let (desk, sale) = (Desk::new(inner, client), judged.quote.sale);
    if order.paid_by.jit().is_some() {
        let (node, hash) = (inner.lightning.running()?, order.hash);
        // Before the channel can be opened; without it the fee would be refused there.
        let noted = on_node(node, move |node| node.jit_on_leaf(hash, leaf.as_u128())).await?;
        if let Err(error) = noted {
            desk.give_up(&desk.row(sale).await?, "it could not be noted")
                .await?;
            return Err(error.into());
        }
    }
    desk.bring(sale, true).await
}

/// What was ordered from a stock for this order, and is not over, is ordered with the coordinator before the order is paid.
///
/// # Errors
/// Only what may go right later; where the coordinator says no, nothing comes from a stock.
pub(crate) async fn ordered_for(client: &SignerClient, paid_by: &PaidBy) -> Result<()> {
    let inner = &client.inner;
    let rows = inner.store.purchases().await?;
    let mut new = rows
        .iter()
        .filter(|row| row.state == PurchaseState::Ordered && row.paid_by() == *paid_by);
    let Some(row) = new.next() else {
        return Ok(());
    };
    let _turn = inner.sales.turn.lock().await;
    match Desk::new(inner, client).bring(row.sale, true).await {
        Err(error) if Inner::is_fatal(&error) || is_for_now(&error) => Err(error),
        Err(error) => {
            tracing::info!(%error, "the channel comes from no stock");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// Whether a quote is for this order, for nothing, and large enough.
fn fits(judged: &LimitQuote, order: &OtherOrder) -> Result<(), SaleError> {
    let quote = &judged.quote;
    if quote.paid_by != order.paid_by {
        return Err(QuoteRefusal::Order.into());
    }
    if quote.fee_msat > 0 {
        let (fee_msat, max_msat) = (quote.fee_msat, 0);
        return Err(SaleError::Fee { fee_msat, max_msat });
    }
    if quote.capacity < order.least {
        let (found, due) = (quote.capacity, order.least);
        return Err(QuoteRefusal::Capacity { found, due }.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::limit::CoverageView;
    use super::*;
    use bitcoin::OutPoint;
    use factory_tree::ids::{ClientId, FactoryId, SaleId, ShortChannelId};
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
            paid_by: PaidBy::Jit(ShortChannelId(7)),
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
        for paid_by in [
            PaidBy::Jit(ShortChannelId(7)),
            PaidBy::Lsps1("b7a1".to_owned()),
        ] {
            let judged = |change: fn(&mut LimitQuote)| {
                judged(|judged| {
                    judged.quote.paid_by = paid_by.clone();
                    change(judged);
                })
            };
            let order = OtherOrder {
                paid_by: paid_by.clone(),
                hash: PaymentHash([9; 32]),
                amount: Amount::from_sat(100_000),
                least: Amount::from_sat(98_000),
            };
            assert_eq!(fits(&judged(|_| ()), &order), Ok(()));
            for wrong in [
                judged(|judged| judged.quote.paid_by = PaidBy::Invoice),
                judged(|judged| judged.quote.paid_by = PaidBy::Jit(ShortChannelId(8))),
                judged(|judged| judged.quote.paid_by = PaidBy::Lsps1("b7a2".to_owned())),
                judged(|judged| judged.quote.fee_msat = 1),
                judged(|judged| judged.quote.capacity = Amount::from_sat(97_999)),
            ] {
                assert!(fits(&wrong, &order).is_err(), "{wrong:?}");
            }
        }
        let uncovered = judged(|judged| judged.needs_consent = true);
        assert!(uncovered.agreed(false).is_err() && uncovered.agreed(true).is_ok());
    }
}
