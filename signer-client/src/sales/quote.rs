//! Whether a quote is what was asked for, and what holding it would mean. Nothing the coordinator says is believed that the own kit knows.

use bitcoin::Amount;
use bitcoin::secp256k1::PublicKey;
use channel_host::is_signed_by;
use factory_tree::exit::ExitPlan;
use factory_tree::ids::{ClientId, FactoryId};
use factory_tree::kit::ExitKit;
use factory_tree::sale::order::{Quote, SignedQuote};
use factory_tree::sale::{Coverage, Sale, SoldChannel, Stock};
use factory_tree::units::Height;
use serde::{Deserialize, Serialize};

use super::error::{QuoteRefusal, SaleError};
use super::limit::CoverageView;
use crate::client::Usable;
use crate::lightning::ChannelView;
use crate::migration::calendar;

/// A quote that was found good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitQuote {
    /// As the coordinator signed it: what is ordered by.
    pub signed: SignedQuote,
    /// What it says.
    pub quote: Quote,
    /// What would be covered of the factory's channels then, if the coordinator breaks off.
    pub after: CoverageView,
    /// Whether more could be held then than is covered: it is bought with the user's explicit consent only.
    pub needs_consent: bool,
}

impl LimitQuote {
    /// Whether it can be bought with what the user agreed to.
    ///
    /// # Errors
    /// [`SaleError::Uncovered`].
    pub(super) fn agreed(&self, consent: bool) -> Result<(), SaleError> {
        if self.needs_consent && !consent {
            return Err(SaleError::Uncovered {
                factory: self.quote.factory,
                held: Amount::from_sat(self.after.held_sat),
                awake: Amount::from_sat(self.after.awake_sat),
            });
        }
        Ok(())
    }
}

/// What a quote has to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    /// Who signed it.
    pub(super) coordinator: PublicKey,
    /// For whom.
    pub(super) client: ClientId,
    /// In which factory, if that was asked for.
    pub(super) factory: Option<FactoryId>,
    /// How much was asked for, if that is known.
    pub(super) amount: Option<Amount>,
    /// Unix time.
    pub(super) now: u64,
}

/// Reads a quote.
pub(super) fn read(signed: &SignedQuote, expected: &Expected) -> Result<Quote, QuoteRefusal> {
    let message = SignedQuote::message(&signed.text);
    if !is_signed_by(&message, &signed.signature, &expected.coordinator) {
        return Err(QuoteRefusal::Signature(expected.coordinator));
    }
    let quote = Quote::parse(&signed.text)?;
    if quote.client != expected.client {
        return Err(QuoteRefusal::Client(quote.client));
    }
    if expected.factory.is_some_and(|asked| asked != quote.factory) {
        return Err(QuoteRefusal::Factory(quote.factory));
    }
    if expected.amount.is_some_and(|asked| asked != quote.asked) {
        return Err(QuoteRefusal::Amount(quote.asked));
    }
    if quote.valid_until < expected.now {
        return Err(QuoteRefusal::Expired(quote.valid_until));
    }
    Ok(quote)
}

/// Whether the factory's kit knows of such a stock, and what would be covered after the sale, by what the node says of the `channels`.
pub(super) fn fits(
    quote: &Quote,
    kit: &ExitKit,
    channels: &[ChannelView],
    tip: Height,
) -> Result<Coverage, QuoteRefusal> {
    let stock = Stock::of_kit(kit)?;
    if quote.stock != stock.outpoint() {
        return Err(QuoteRefusal::Stock);
    }
    let (asked, next) = (quote.number, stock.next_number());
    if asked != next {
        return Err(QuoteRefusal::Number { asked, next });
    }
    let due = stock.capacity_for(quote.asked, Amount::ZERO)?;
    if quote.capacity != due {
        let found = quote.capacity;
        return Err(QuoteRefusal::Capacity { found, due });
    }
    let (until, dying_from) = (quote.sign_until, calendar(kit).dying_from);
    if tip > until || tip >= dying_from {
        return Err(QuoteRefusal::Late {
            until,
            dying_from,
            tip,
        });
    }
    let timeouts = ExitPlan::new(kit).coverage;
    let after = stock.coverage_after(&sale(quote, kit), kit.position, kit.capacity, timeouts)?;
    let usable = Usable::of(kit, channels);
    if !usable.in_part {
        return Ok(after);
    }
    let held = usable.capacity.checked_add(quote.capacity);
    Ok(Coverage {
        away: Amount::ZERO,
        awake: Amount::ZERO,
        held: held.unwrap_or(Amount::MAX_MONEY),
    })
}

/// A sale as the quote would have it. Whose keys it has makes no difference to what is covered.
fn sale(quote: &Quote, kit: &ExitKit) -> Sale {
    Sale {
        id: quote.sale,
        stock: quote.stock,
        number: quote.number,
        bought: SoldChannel {
            position: kit.position,
            leaf_id: kit.leaf_id,
            channel_key: kit.channel_key,
            lsp_channel_key: kit.lsp_channel_key,
            capacity: quote.capacity,
        },
        bonus: Vec::new(),
    }
}
