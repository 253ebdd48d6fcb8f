//! What a client checks before it signs a sale, and before it accepts a finished one.
//!
//! Each check is a named [`SaleRule`]. Everything is judged by the client's own exit kit and by
//! transactions rebuilt from it; nothing the LSP sends but the terms is read.

use core::fmt;

use bitcoin::Amount;
use bitcoin::secp256k1::PublicKey;
use serde::{Deserialize, Serialize};

use super::message::{Offer, Sign};
use super::{Coverage, SaleTxs, Stock, StockError};
use crate::ceremony::message::DeclineReason;
use crate::exit::ExitPlan;
use crate::factory::FactoryTx;
use crate::ids::LeafId;
use crate::kit::{ExitKit, KitError};
use crate::musig::{AggregateNonce, Bip327, PartialSignature, PublicNonce};
use crate::units::Height;

/// A named check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SaleRule {
    /// The sale is from the stock this client shares.
    Stock,
    /// It is the next on that stock, and not one too many.
    Number,
    /// It is signed in time, and before the factory's dying days end.
    Deadline,
    /// The channels go to clients of the stock, at most one each.
    Members,
    /// No channel is too small, and the stock has what is sold.
    Amount,
    /// What is left is a stock of its own, or nothing.
    Remaining,
    /// The client's new channel has its own key, which no other channel has.
    Keys,
    /// The client's new channel is on the leaf id it drew for it, never used before.
    LeafId,
    /// The buyer gets what it ordered.
    Capacity,
    /// Who signs with the buyer gets what it asks for that.
    Bonus,
    /// What the client can hold is covered, or it has consented.
    Coverage,
    /// Every signer's nonces are there, the own ones unchanged.
    Nonces,
    /// The buyer has signed already, validly.
    BuyerFirst,
    /// Every final signature verifies against its output key.
    Signatures,
    /// The exit can be rehearsed with the sale.
    Rehearsal,
}

impl SaleRule {
    /// The rule's name, as logs, messages and documents have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stock => "sale_stock",
            Self::Number => "sale_number",
            Self::Deadline => "sale_deadline",
            Self::Members => "sale_members",
            Self::Amount => "sale_amount",
            Self::Remaining => "sale_remaining",
            Self::Keys => "sale_keys",
            Self::LeafId => "sale_leaf_id",
            Self::Capacity => "sale_capacity",
            Self::Bonus => "sale_bonus",
            Self::Coverage => "sale_coverage",
            Self::Nonces => "sale_nonces",
            Self::BuyerFirst => "sale_buyer_first",
            Self::Signatures => "sale_signatures",
            Self::Rehearsal => "sale_rehearsal",
        }
    }
}

impl fmt::Display for SaleRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A rule that is broken, and what was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rule {rule}: {found}")]
pub struct SaleRefusal {
    /// Which rule.
    pub rule: SaleRule,
    /// What was found, in words.
    pub found: String,
}

impl SaleRefusal {
    fn new(rule: SaleRule, found: impl Into<String>) -> Self {
        Self {
            rule,
            found: found.into(),
        }
    }
}

impl From<SaleRefusal> for DeclineReason {
    fn from(refusal: SaleRefusal) -> Self {
        Self::Refused {
            rule: refusal.rule.name().to_owned(),
            found: refusal.found,
        }
    }
}

/// A place for a new channel, drawn by the client and told to the LSP before the offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The leaf id.
    pub leaf_id: LeafId,
    /// The client's funding key.
    pub channel_key: PublicKey,
}

/// What a client agreed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// To buy.
    Buyer {
        /// How much.
        ordered: Amount,
    },
    /// To sign with the buyer.
    Mate {
        /// The least bonus it does that for.
        least_bonus: Amount,
    },
}

/// Everything an offer is judged by, beside the client's exit kit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// What it agreed to.
    pub role: Role,
    /// Whether it has the fee coins, or its user's explicit consent, to hold more than is covered.
    pub consent: bool,
    /// Where its new channel is to be, if it gets one.
    pub place: Option<Place>,
    /// Whether that leaf id had a channel or is to have another: never so with an honest store.
    pub place_used: bool,
    /// The own chain's tip.
    pub tip: Height,
}

fn require(holds: bool, rule: SaleRule, found: impl FnOnce() -> String) -> Result<(), SaleRefusal> {
    if holds {
        return Ok(());
    }
    Err(SaleRefusal::new(rule, found()))
}

/// Judges an offer, and returns its transactions as rebuilt from the kit, with the stock before.
///
/// # Errors
/// The first rule broken.
pub fn check_offer(
    kit: &ExitKit,
    offer: &Offer,
    agreed: &Agreed,
) -> Result<(Stock, SaleTxs), SaleRefusal> {
    let stock = Stock::of_kit(kit).map_err(|error| classify(&error))?;
    let txs = stock.draft(&offer.sale).map_err(|error| classify(&error))?;
    deadline(&stock, offer, agreed)?;
    require(offer.round.sale == offer.sale.id, SaleRule::Stock, || {
        format!("terms of sale {}", offer.sale.id)
    })?;
    place(kit, &txs, agreed)?;
    role(kit, &stock, &txs, agreed)?;
    Ok((stock, txs))
}

/// Which rule a sale breaks that cannot be built.
fn classify(error: &StockError) -> SaleRefusal {
    let rule = match error {
        StockError::OutOfOrder { .. } | StockError::Depth(_) | StockError::Bound(_) => {
            SaleRule::Number
        }
        StockError::Amount { .. } | StockError::SoldOut => SaleRule::Amount,
        StockError::Remainder { .. } => SaleRule::Remaining,
        StockError::Channel(_) => SaleRule::Members,
        // Sizes and payouts follow from the amounts.
        StockError::Expiry(_) | StockError::Relay { .. } => SaleRule::Amount,
        StockError::NoStock(_)
        | StockError::NoPayouts
        | StockError::OtherStock { .. }
        | StockError::Accounts
        | StockError::Params(_)
        | StockError::Keys(_) => SaleRule::Stock,
    };
    SaleRefusal::new(rule, error.to_string())
}

fn deadline(stock: &Stock, offer: &Offer, agreed: &Agreed) -> Result<(), SaleRefusal> {
    let (tip, ends) = (agreed.tip, stock.schedule().publish_from);
    let last = offer.until.min(ends);
    require(tip <= last, SaleRule::Deadline, || {
        format!("the tip is {}, the last is {}", tip.0, last.0)
    })
}

/// The client's new channel is where and under what key it said, and nowhere it has been.
fn place(kit: &ExitKit, txs: &SaleTxs, agreed: &Agreed) -> Result<(), SaleRefusal> {
    let Some((channel, _)) = txs.channel_of(kit.position) else {
        return Ok(());
    };
    let place = agreed.place;
    let ours = place.is_some_and(|place| place.channel_key == channel.channel_key);
    require(ours, SaleRule::Keys, || {
        format!("channel key {} is not ours", channel.channel_key)
    })?;
    let ours = place.is_some_and(|place| place.leaf_id == channel.leaf_id);
    require(ours, SaleRule::LeafId, || {
        format!("leaf id {} is not ours", channel.leaf_id)
    })?;
    let held = kit.channels();
    let used = held.iter().any(|c| c.channel_key == channel.channel_key);
    require(!used, SaleRule::Keys, || {
        format!("channel key {} has a channel", channel.channel_key)
    })?;
    let used = held.iter().any(|c| c.leaf_id == channel.leaf_id);
    require(!used && !agreed.place_used, SaleRule::LeafId, || {
        format!("leaf id {} had a channel", channel.leaf_id)
    })
}

fn role(kit: &ExitKit, before: &Stock, txs: &SaleTxs, agreed: &Agreed) -> Result<(), SaleRefusal> {
    let buys = txs.sale.bought.position == kit.position;
    match agreed.role {
        Role::Buyer { ordered } => {
            require(buys, SaleRule::Members, || "another buyer".into())?;
            capacity(before, txs, ordered)?;
            coverage(kit, before, txs, agreed.consent)
        }
        Role::Mate { least_bonus } => {
            require(!buys, SaleRule::Members, || "nothing was ordered".into())?;
            let own = txs.channel_of(kit.position);
            let bonus = own.map_or(Amount::ZERO, |(channel, _)| channel.capacity);
            require(bonus >= least_bonus, SaleRule::Bonus, || {
                format!("a bonus of {bonus}, at least {least_bonus}")
            })?;
            // What makes it no larger changes nothing that it could refuse.
            match own {
                Some(_) => coverage(kit, before, txs, agreed.consent),
                None => Ok(()),
            }
        }
    }
}

/// What was ordered, or everything where the rest would be no stock.
fn capacity(before: &Stock, txs: &SaleTxs, ordered: Amount) -> Result<(), SaleRefusal> {
    let due = before.capacity_for(ordered, txs.sale.bonuses());
    let found = txs.sale.bought.capacity;
    require(due == Ok(found), SaleRule::Capacity, || {
        format!("a channel of {found}, ordered was {ordered}")
    })
}

fn coverage(
    kit: &ExitKit,
    before: &Stock,
    txs: &SaleTxs,
    consent: bool,
) -> Result<(), SaleRefusal> {
    let timeouts = ExitPlan::new(kit).coverage;
    let after = before.coverage_after(&txs.sale, kit.position, kit.capacity, timeouts);
    let Coverage { awake, held, .. } = after.map_err(|error| classify(&error))?;
    require(consent || held <= awake, SaleRule::Coverage, || {
        format!("{held} could be held, {awake} is covered")
    })
}

/// One signer's nonces, one per session.
pub(super) type Nonces = Vec<PublicNonce>;

/// The sums of all nonces, per session; `own` are those of the client at `position`, in the
/// place of which nothing else may stand.
pub(super) fn check_nonces(
    stock: &Stock,
    txs: &SaleTxs,
    sign: &Sign,
    (position, own): (u32, &Nonces),
) -> Result<Vec<AggregateNonce>, SaleRefusal> {
    let sessions = txs.sessions().count();
    let signers = crate::shape::len(&stock.clients()).saturating_add(1) as usize;
    let complete =
        sign.nonces.len() == signers && sign.nonces.iter().all(|nonces| nonces.len() == sessions);
    require(complete, SaleRule::Nonces, || {
        format!("not {sessions} nonces of {signers} signers each")
    })?;
    let ours = nonces_of(stock, &sign.nonces, position) == Some(own);
    require(ours, SaleRule::Nonces, || "other nonces than ours".into())?;
    Ok(sums(&sign.nonces, sessions))
}

/// The nonces of the client at `position`.
pub(super) fn nonces_of<'a>(
    stock: &Stock,
    nonces: &'a [Nonces],
    position: u32,
) -> Option<&'a Nonces> {
    let index = position.checked_sub(stock.clients().start)?;
    // The LSP's come first.
    nonces.get((index as usize).saturating_add(1))
}

/// The sum of all signers' nonces, per session.
pub(super) fn sums(nonces: &[Nonces], sessions: usize) -> Vec<AggregateNonce> {
    let sum = |session| AggregateNonce::sum(nonces.iter().filter_map(|n| n.get(session)));
    (0..sessions).map(sum).collect()
}

/// A mate signs only what the buyer has validly signed (attacks.md A11): else the stock would be
/// bound to a sale that nobody wants.
pub(super) fn check_buyer(
    stock: &Stock,
    txs: &SaleTxs,
    sign: &Sign,
    sums: &[AggregateNonce],
) -> Result<(), SaleRefusal> {
    let buyer = txs.sale.bought.position;
    let nonces = nonces_of(stock, &sign.nonces, buyer);
    let (Some(partials), Some(nonces), Some(key)) = (&sign.buyer, nonces, stock.key_of(buyer))
    else {
        let found = "no partial signatures of the buyer";
        return Err(SaleRefusal::new(SaleRule::BuyerFirst, found));
    };
    let valid = partials.len() == sums.len()
        && invalid_partial(txs, &key, nonces, sums, partials).is_none();
    require(valid, SaleRule::BuyerFirst, || {
        "an invalid partial signature of the buyer".into()
    })
}

/// The first transaction for which `signer` sent no valid partial signature.
pub(super) fn invalid_partial<'a>(
    txs: &'a SaleTxs,
    signer: &PublicKey,
    nonces: &[PublicNonce],
    sums: &[AggregateNonce],
    partials: &[PartialSignature],
) -> Option<&'a FactoryTx> {
    let mut given = nonces.iter().zip(sums).zip(partials);
    txs.sessions().find(|tx| {
        let valid = given.next().zip(tx.spends.key.as_ref());
        let valid = valid.is_some_and(|(((nonce, sum), partial), key)| {
            let message = tx.taproot_sighash();
            key.group.verify(signer, nonce, sum, &message, partial)
        });
        !valid
    })
}

/// Which rule a finished sale breaks that makes no good kit.
pub(super) fn of_kit(error: &KitError) -> SaleRefusal {
    let rule = match error {
        KitError::Count { .. } | KitError::BadSignature { .. } => SaleRule::Signatures,
        _ => SaleRule::Rehearsal,
    };
    SaleRefusal::new(rule, error.to_string())
}

/// The rehearsal from disk failed.
pub(super) fn rehearsal(found: String) -> SaleRefusal {
    SaleRefusal::new(SaleRule::Rehearsal, found)
}
