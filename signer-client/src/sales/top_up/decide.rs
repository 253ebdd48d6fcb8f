//! Whether the wallet asks for a price now to buy by itself, or what it waits for; and whether a price is one to pay unasked. Pure, but for
//! what is remembered from one look to the next.
//!
//! | in this order | next |
//! |---|---|
//! | a purchase is under way, whoever bought | nothing before it has ended |
//! | it is not known what can be received, or it is enough | nothing |
//! | no factory is fit, has something left, and is covered | nothing |
//! | the budget is used up | nothing until the oldest of it is 30 days ago |
//! | it has been too little only for a moment | look again |
//! | something was bought, asked or refused lately | a pause; what comes to nothing again and again is left alone ever longer |
//! | else | ask |

use bitcoin::Amount;
use channel_host::Msat;
use factory_tree::ids::FactoryId;
use factory_tree::sale::order::PurchaseState;
use factory_tree::units::Height;

use super::super::api::PurchaseView;
use super::{Hold, TopUpState};
use crate::config::TopUpConfig;

/// What the budget is for, in seconds: 30 days.
pub(super) const MONTH: u64 = 30 * DAY;
const DAY: u64 = 86_400;
/// What is refused is tried again at least so often, unless the configuration's pause is longer.
const LONGEST: u64 = DAY;

/// A factory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) factory: FactoryId,
    /// Why nothing is signed there now.
    pub(super) unfit: Option<String>,
    pub(super) tip: Height,
    pub(super) dying_from: Height,
    /// What can be bought there at most, if anything can.
    pub(super) left: Option<Amount>,
    /// Whether more can be held there than is covered already.
    pub(super) uncovered: bool,
}

impl Place {
    /// Why nothing is bought there.
    fn hold(&self) -> Option<Hold> {
        let factory = self.factory;
        if let Some(why) = &self.unfit {
            let note = format!("nothing is bought in factory {factory}: {why}");
            return Some(Hold::new(TopUpState::Unfit, note));
        }
        if self.tip >= self.dying_from {
            let note = format!("factory {factory} is in its last days; the next has a new stock");
            return Some(Hold::new(TopUpState::Unfit, note));
        }
        if self.left.is_none() {
            let note = format!("the stock in factory {factory} has nothing left to be bought");
            return Some(Hold::new(TopUpState::SoldOut, note));
        }
        let note =
            "more can be held than is covered already: `limit upgrade` buys, with your consent";
        self.uncovered
            .then(|| Hold::new(TopUpState::Uncovered, note))
    }
}

/// What a decision needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// Unix time.
    pub(super) now: u64,
    /// What can be received; nothing if that is not known.
    pub(super) receivable: Option<Msat>,
    /// The order of a channel (LSPS1) that is under way.
    pub(super) order: Option<String>,
    /// All purchases.
    pub(super) purchases: Vec<PurchaseView>,
    /// Factories that are not over, youngest last; needed only if too little can be received.
    pub(super) places: Vec<Place>,
}

/// What to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) factory: FactoryId,
    pub(super) amount: Amount,
    /// The most that it may cost: of one purchase, and of what is left of the budget.
    pub(super) most: Msat,
}

/// A price, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) fee: Msat,
    pub(super) needs_consent: bool,
    /// What there is to pay with.
    pub(super) spendable: Msat,
}

/// What came to nothing, perhaps several times.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Attempt {
    began: u64,
    ended: u64,
    state: TopUpState,
    why: String,
}

impl Attempt {
    /// As one with what failed before it, unless that was long ago.
    fn after(self, before: Option<Self>) -> Self {
        let near = before.filter(|before| {
            let gap = self.began.saturating_sub(before.ended);
            gap <= LONGEST.saturating_mul(2)
        });
        let began = near.map_or(self.began, |before| before.began.min(self.began));
        Self { began, ..self }
    }
}

/// What is remembered from one look to the next. Forgetting it costs a pause, and nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// Unix time since which too little can be received.
    low_since: Option<u64>,
    /// Unix time of the last question.
    asked: Option<u64>,
    /// What came to nothing before there was a purchase.
    refusal: Option<Attempt>,
}

impl Memory {
    /// What to ask for now, or what is waited for.
    pub(super) fn decide(&mut self, policy: &TopUpConfig, facts: &Facts) -> Result<Question, Hold> {
        self.notice(policy, facts)?;
        let (place, left) = choose(&facts.places)?;
        let most = allowance(policy, facts)?;
        self.patience(policy, facts.now)?;
        self.pause(policy, facts)?;
        Ok(Question {
            factory: place.factory,
            amount: Amount::from_sat(policy.amount_sat).min(left),
            most,
        })
    }

    /// A question goes out.
    pub(super) const fn asked(&mut self, now: u64) {
        self.asked = Some(now);
    }

    /// Nothing came of it.
    pub(super) fn refused(&mut self, now: u64, hold: Hold) {
        let attempt = Attempt {
            began: now,
            ended: now,
            state: hold.state,
            why: hold.note,
        };
        self.refusal = Some(attempt.after(self.refusal.take()));
    }

    /// Whether there is anything to buy for.
    fn notice(&mut self, policy: &TopUpConfig, facts: &Facts) -> Result<(), Hold> {
        if let Some(open) = facts.purchases.iter().find(|one| !one.is_over()) {
            (self.low_since, self.refusal) = (None, None);
            let note = format!("purchase {} is under way", open.sale);
            return Err(Hold::new(TopUpState::UnderWay, note));
        }
        if let Some(open) = &facts.order {
            (self.low_since, self.refusal) = (None, None);
            let note = format!("order {open} is under way");
            return Err(Hold::new(TopUpState::UnderWay, note));
        }
        let Some(receivable) = facts.receivable else {
            self.low_since = None;
            let note = "a channel carries no payments now, so it is not known what can be received";
            return Err(Hold::new(TopUpState::Unusable, note));
        };
        if !is_low(policy, receivable) {
            (self.low_since, self.refusal) = (None, None);
            let note = "enough can be received";
            return Err(Hold::new(TopUpState::Enough, note));
        }
        self.low_since.get_or_insert(facts.now);
        Ok(())
    }

    /// What is too little for a moment only is no reason.
    fn patience(&self, policy: &TopUpConfig, now: u64) -> Result<(), Hold> {
        let since = self.low_since.unwrap_or(now);
        let until = since.saturating_add(policy.settle_seconds);
        if now >= until {
            return Ok(());
        }
        let note = "too little can be received, but not for long";
        Err(Hold::new(TopUpState::Settling, note).until(until))
    }

    fn pause(&self, policy: &TopUpConfig, facts: &Facts) -> Result<(), Hold> {
        let ends = facts.purchases.iter().map(|one| one.ended_time);
        let last = ends.chain([self.asked]).flatten().max();
        let least = last.map_or(0, |last| last.saturating_add(policy.pause_seconds));
        let failed = self.failed(&facts.purchases);
        // As long again as it was tried.
        let due = failed.as_ref().map_or(least, |run| {
            let tried = run.ended.saturating_sub(run.began).min(LONGEST);
            let pause = tried.max(policy.pause_seconds);
            least.max(run.ended.saturating_add(pause))
        });
        if facts.now >= due {
            return Ok(());
        }
        let hold = match failed {
            Some(run) => Hold::new(run.state, run.why),
            None => Hold::new(TopUpState::Pausing, "it bought, or asked, a moment ago"),
        };
        Err(hold.until(due))
    }

    /// What came to nothing since something was bought.
    fn failed(&self, purchases: &[PurchaseView]) -> Option<Attempt> {
        let mut over: Vec<_> = purchases
            .iter()
            .filter(|one| one.automatic)
            .filter_map(|one| Some((one.ended_time?, one)))
            .collect();
        over.sort_by_key(|(ended, _)| *ended);
        let stored = over
            .into_iter()
            .fold(None, |run, (ended, one)| match one.state {
                PurchaseState::Cancelled => Some(
                    Attempt {
                        began: one.created_time,
                        ended,
                        state: TopUpState::Refused,
                        why: format!("nothing came of the last purchase: {}", one.note),
                    }
                    .after(run),
                ),
                _ => None,
            });
        match &self.refusal {
            Some(refusal) => Some(refusal.clone().after(stored)),
            None => stored,
        }
    }
}

/// Whether too little can be received.
pub(super) const fn is_low(policy: &TopUpConfig, receivable: Msat) -> bool {
    receivable.0 < policy.below_sat.saturating_mul(1000)
}

/// Where the most is left, the younger of two alike.
fn choose(places: &[Place]) -> Result<(&Place, Amount), Hold> {
    let fit = places.iter().filter(|place| place.hold().is_none());
    let fit = fit.filter_map(|place| Some((place, place.left?)));
    if let Some(best) = fit.max_by_key(|(_, left)| *left) {
        return Ok(best);
    }
    let youngest = places.last().and_then(Place::hold);
    Err(youngest.unwrap_or_else(|| {
        let note = "this wallet is in no factory; `join` asks for a place in one";
        Hold::new(TopUpState::NoFactory, note)
    }))
}

/// Unix time from which a purchase does not count towards the budget; none if it never does, or still goes on.
fn counts_until(purchase: &PurchaseView) -> Option<u64> {
    let ended = purchase.ended_time;
    ended.map(|ended| ended.saturating_add(MONTH))
}

fn counted(purchases: &[PurchaseView], now: u64) -> impl Iterator<Item = &PurchaseView> {
    purchases.iter().filter(move |one| {
        let paid = one.automatic && one.state != PurchaseState::Cancelled;
        paid && counts_until(one).is_none_or(|until| now < until)
    })
}

/// What purchases without the user have cost in the last 30 days, or are about to.
pub(super) fn spent(purchases: &[PurchaseView], now: u64) -> Msat {
    let fees = counted(purchases, now).map(|one| one.fee_msat);
    Msat(fees.fold(0, u64::saturating_add))
}

/// The most that the next purchase may cost.
fn allowance(policy: &TopUpConfig, facts: &Facts) -> Result<Msat, Hold> {
    let budget = policy.max_fee_sat_per_month.saturating_mul(1000);
    let left = budget.saturating_sub(spent(&facts.purchases, facts.now).0);
    if left > 0 {
        return Ok(Msat(left.min(policy.max_fee_sat.saturating_mul(1000))));
    }
    let hold = Hold::new(TopUpState::Budget, "the budget of 30 days is used up");
    let frees = counted(&facts.purchases, facts.now).filter_map(counts_until);
    Err(match frees.min() {
        Some(time) => hold.until(time),
        None => hold,
    })
}

/// Whether a price is one to pay unasked.
pub(super) fn weigh(policy: &TopUpConfig, most: Msat, offer: Offer) -> Result<(), Hold> {
    let fee = offer.fee.0;
    let each = policy.max_fee_sat.saturating_mul(1000);
    if fee > each {
        let each = policy.max_fee_sat;
        let note = format!(
            "it costs {}, and top_up.max_fee_sat allows {each} sat",
            offer.fee
        );
        return Err(Hold::new(TopUpState::Dear, note));
    }
    if fee > most.0 {
        let note = format!(
            "it costs {}, and {most} are left of the budget of 30 days",
            offer.fee
        );
        return Err(Hold::new(TopUpState::Budget, note));
    }
    if offer.needs_consent {
        let note =
            "more could be held then than is covered: `limit upgrade` buys it, with your consent";
        return Err(Hold::new(TopUpState::Uncovered, note));
    }
    if fee > offer.spendable.0 {
        let note = format!(
            "it costs {}, and {} can be sent now",
            offer.fee, offer.spendable
        );
        return Err(Hold::new(TopUpState::Poor, note));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
