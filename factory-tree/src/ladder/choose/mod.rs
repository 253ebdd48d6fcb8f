//! Who is in the next factory, with what capacity, at which place, and why.
//!
//! Clients of dying factories come first, those that end soonest first of all; then new clients,
//! buyers that have paid for a channel, and on-chain channels to be consolidated. Among equals the reliable
//! come first, then those that have waited longest.

mod seating;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use bitcoin::Amount;
use serde::{Deserialize, Serialize};

use super::moving::largest_part;
use super::words::blocks_in_words;
use crate::ids::ClientId;
use crate::params::{FactoryParams, ParamsError};
use crate::plan;
use crate::shape::{MIN_CLIENTS, Shape, len};
use crate::tx::checked_sum;
use crate::units::{Blocks, Height};

const MILLION: u64 = 1_000_000;
/// The funding transaction's change, from which it can be bumped (attacks.md A13).
const FUNDING_CHANGE: Amount = Amount::from_sat(10_000);

/// The hours of the day (blocks of six, 24 to a day) in which a client has been online, one bit
/// each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hours(u32);

impl Hours {
    /// From a bit mask; bits beyond the 24th are dropped.
    #[must_use]
    pub const fn new(mask: u32) -> Self {
        Self(mask & 0x00ff_ffff)
    }

    /// With the hour of the block at `height` added.
    #[must_use]
    pub fn seen_at(self, height: Height) -> Self {
        let hour = (height.0 / 6) % 24;
        Self(self.0 | 1u32.checked_shl(hour).unwrap_or(0))
    }

    /// The bit mask.
    #[must_use]
    pub const fn mask(self) -> u32 {
        self.0
    }

    /// How many hours.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// The hours in both.
    #[must_use]
    pub const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// The operator's policy and the parameters of the factory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChooseParams {
    /// Of the factory to be born.
    pub factory: FactoryParams,
    /// The chain's height.
    pub height: Height,
    /// No factory has fewer clients.
    pub min_clients: u32,
    /// The least account limit.
    pub min_capacity: Amount,
    /// The account limit of whoever asks for none.
    pub default_capacity: Amount,
    /// The largest account limit; a balance that must move may need more.
    pub max_capacity: Amount,
    /// Our channel reserve, in parts per million of the capacity.
    pub reserve_ppm: u32,
    /// And at least this.
    pub least_reserve: Amount,
    /// What the exit of a new path costs: the least part of a client without fee coins.
    pub exit_fee: Amount,
    /// New clients with more faults (thousandths, decayed) are not invited.
    pub skip_above: u32,
    /// Clients with more faults are placed in branches of their own.
    pub unreliable_above: u32,
    /// So long a client is new, and placed with other new ones.
    pub new_for: Blocks,
    /// What may be locked in the factory, if that is limited.
    pub capital: Option<Amount>,
}

impl ChooseParams {
    /// Defaults for a factory with these parameters, at `height`.
    #[must_use]
    pub const fn new(factory: FactoryParams, height: Height) -> Self {
        Self {
            factory,
            height,
            min_clients: MIN_CLIENTS,
            min_capacity: Amount::from_sat(20_000),
            default_capacity: Amount::from_sat(200_000),
            max_capacity: Amount::from_sat(10_000_000),
            // BOLT 2's usual 1 %, and LDK's least.
            reserve_ppm: 10_000,
            least_reserve: Amount::from_sat(1000),
            exit_fee: Amount::from_sat(10_000),
            skip_above: 4000,
            unreliable_above: 1000,
            new_for: Blocks(4320),
            capital: None,
        }
    }
}

/// Why somebody wants to be in the next factory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Its factory dies.
    Dying {
        /// When its dying days end.
        deadline: Height,
        /// Invitations it did not come to.
        tries: u8,
    },
    /// It is new.
    SignUp,
    /// It bought a channel of the factory to be born.
    StockBuyer,
    /// It has a channel of its own on the chain.
    OnChain,
}

/// Somebody who may be invited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its account.
    pub client: ClientId,
    /// Why.
    pub kind: Kind,
    /// The account limit it asked for.
    pub wanted: Option<Amount>,
    /// What it has to move.
    pub balance: Amount,
    /// What it has paid for, on top of everything else.
    pub bought: Amount,
    /// When it has been online.
    pub hours: Hours,
    /// Its faults, decayed, in thousandths.
    pub faults: u32,
    /// Since when it is a client (or waits).
    pub since: Height,
}

/// How far a client is trusted to come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It has been here for long and has few faults.
    Settled,
    /// It is new.
    New,
    /// It has faults.
    Unreliable,
}

/// One place of the factory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    /// Who.
    pub client: ClientId,
    /// Its capacity.
    pub capacity: Amount,
    /// What of that it has paid for: all or nothing.
    pub bought: Amount,
    /// Why it is invited.
    pub kind: Kind,
    /// How far it is trusted.
    pub standing: Standing,
    /// Which leaf, counted from 0.
    pub leaf: u32,
    /// All of that in words.
    pub why: String,
}

/// Why somebody is not invited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Exclusion {
    /// Others come first.
    #[error("no seat left")]
    NoSeat,
    /// It was silent or faulty too often.
    #[error("faults of {faults} thousandths, {limit} are allowed")]
    TooManyFaults {
        /// Its faults.
        faults: u32,
        /// What is allowed.
        limit: u32,
    },
    /// Its balance needs a larger channel than the operator sells.
    #[error("its balance needs a capacity of {} sat, at most {} sat are sold", .needed.to_sat(), .most.to_sat())]
    OverLimit {
        /// What it needs.
        needed: Amount,
        /// What there is.
        most: Amount,
    },
    /// The capital does not suffice.
    #[error("its channel and stock would take {} sat, {} sat are left", .needed.to_sat(), .left.to_sat())]
    NoCapital {
        /// What it takes.
        needed: Amount,
        /// What is left.
        left: Amount,
    },
}

/// Somebody who is not invited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excluded {
    /// Who.
    pub client: ClientId,
    /// Why.
    pub why: Exclusion,
}

/// What the factory takes from the wallet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapitalNeeded {
    /// Sum of the channels.
    pub channels: Amount,
    /// Sum of the stocks.
    pub stock: Amount,
    /// The funding transaction's least change.
    pub change: Amount,
    /// All of it, without the funding's own fee.
    pub total: Amount,
}

/// Why there is no factory to preview.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChooseError {
    /// Too few clients.
    #[error("{} can be invited, {needed} are needed", counted(*.found, "client"))]
    TooFew {
        /// How many there are.
        found: u32,
        /// How many are needed.
        needed: u32,
    },
    /// The parameters allow no such factory.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// Over 21 million bitcoin.
    #[error("capacities add up to more than 21 million bitcoin")]
    Overflow,
}

/// Who would be invited, and what it takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preview {
    /// The places in leaf order, which is the order of a factory's members.
    pub seats: Vec<Seat>,
    /// Who is not invited.
    pub excluded: Vec<Excluded>,
    /// What it takes.
    pub capital: CapitalNeeded,
    /// Why there will be no factory.
    pub problem: Option<ChooseError>,
}

/// Somebody with a capacity.
struct Taken<'a> {
    candidate: &'a Candidate,
    capacity: Amount,
    bought: Amount,
    standing: Standing,
}

/// Chooses at most `seats` of `candidates`, and places them. Who is there for several reasons has
/// one seat, for the most urgent of them.
#[must_use]
pub fn choose(params: &ChooseParams, candidates: &[Candidate], seats: u32) -> Preview {
    let merged = merge(candidates);
    let mut preview = Preview::default();
    let taken = take(params, &merged, seats, &mut preview.excluded);
    let found = u32::try_from(taken.len()).unwrap_or(u32::MAX);
    let needed = params.min_clients.max(MIN_CLIENTS);
    if found < needed {
        preview.problem = Some(ChooseError::TooFew { found, needed });
        return preview;
    }
    match place(params, taken) {
        Ok((seats, capital)) => (preview.seats, preview.capital) = (seats, capital),
        Err(problem) => preview.problem = Some(problem),
    }
    preview
}

/// One candidate per client, most urgent first.
fn merge(candidates: &[Candidate]) -> Vec<Candidate> {
    let mut by_client: BTreeMap<ClientId, Candidate> = BTreeMap::new();
    for candidate in candidates {
        let Some(held) = by_client.get_mut(&candidate.client) else {
            by_client.insert(candidate.client, candidate.clone());
            continue;
        };
        held.kind = held.kind.min(candidate.kind);
        held.wanted = held.wanted.max(candidate.wanted);
        let bought = held.bought.checked_add(candidate.bought);
        held.bought = bought.unwrap_or(Amount::MAX_MONEY);
        let balance = held.balance.checked_add(candidate.balance);
        held.balance = balance.unwrap_or(Amount::MAX_MONEY);
        held.hours = Hours(held.hours.0 | candidate.hours.0);
        held.faults = held.faults.max(candidate.faults);
        held.since = held.since.min(candidate.since);
    }
    let mut merged: Vec<Candidate> = by_client.into_values().collect();
    // Of two factories that end at once, first those that have missed more invitations.
    let urgency = |kind: Kind| match kind {
        Kind::Dying { deadline, tries } => (0, deadline.0, u8::MAX.saturating_sub(tries)),
        Kind::SignUp => (1, 0, 0),
        Kind::StockBuyer => (2, 0, 0),
        Kind::OnChain => (3, 0, 0),
    };
    merged.sort_by_key(|c| (urgency(c.kind), c.faults, c.since, c.client));
    merged
}

/// Who gets a seat, in order.
fn take<'a>(
    params: &ChooseParams,
    candidates: &'a [Candidate],
    seats: u32,
    excluded: &mut Vec<Excluded>,
) -> Vec<Taken<'a>> {
    let mut taken = Vec::new();
    let capital = params.capital.map(|all| all.checked_sub(FUNDING_CHANGE));
    let mut left = capital.map(|all| all.unwrap_or(Amount::ZERO));
    for candidate in candidates {
        match fits(params, candidate, taken.len() < seats as usize, left) {
            Ok(((capacity, bought), cost)) => {
                left = left.map(|left| left.checked_sub(cost).unwrap_or(Amount::ZERO));
                taken.push(Taken {
                    candidate,
                    capacity,
                    bought,
                    standing: standing(params, candidate),
                });
            }
            Err(why) => excluded.push(Excluded {
                client: candidate.client,
                why,
            }),
        }
    }
    taken
}

/// The capacity of a candidate, with what of that was bought, and what it locks.
fn fits(
    params: &ChooseParams,
    candidate: &Candidate,
    has_seat: bool,
    left: Option<Amount>,
) -> Result<((Amount, Amount), Amount), Exclusion> {
    // A dying client is invited whatever its faults: leaving it where it is costs more.
    let dying = matches!(candidate.kind, Kind::Dying { .. });
    if !dying && candidate.faults > params.skip_above {
        return Err(Exclusion::TooManyFaults {
            faults: candidate.faults,
            limit: params.skip_above,
        });
    }
    let needed = needed_capacity(params, candidate.balance);
    if !dying && needed > params.max_capacity {
        return Err(Exclusion::OverLimit {
            needed,
            most: params.max_capacity,
        });
    }
    if !has_seat {
        return Err(Exclusion::NoSeat);
    }
    let wanted = candidate.wanted.unwrap_or(params.default_capacity);
    let limit = wanted.min(params.max_capacity).max(params.min_capacity);
    let (base, alone) = match candidate.kind {
        // Nothing else brought it here.
        Kind::StockBuyer if candidate.bought > Amount::ZERO && candidate.wanted.is_none() => {
            (needed, true)
        }
        _ => (limit.max(needed), false),
    };
    let both = base.checked_add(candidate.bought);
    let both = both.unwrap_or(Amount::MAX_MONEY);
    let (capacity, bought) = match both <= params.max_capacity {
        true => (both.max(params.min_capacity), candidate.bought),
        false if alone => {
            return Err(Exclusion::OverLimit {
                needed: both,
                most: params.max_capacity,
            });
        }
        // More than is sold to anybody: that waits, and the rest does not.
        false => (base, Amount::ZERO),
    };
    let stock = ceil_ppm(capacity, params.factory.stock_share_ppm.into());
    let cost = capacity.checked_add(stock).unwrap_or(Amount::MAX_MONEY);
    match left {
        Some(left) if left < cost => Err(Exclusion::NoCapital { needed: cost, left }),
        _ => Ok(((capacity, bought), cost)),
    }
}

/// The least capacity that takes `balance`: with our reserve and one part of a move on top
/// (attacks.md A20).
#[must_use]
pub fn needed_capacity(params: &ChooseParams, balance: Amount) -> Amount {
    let reserve = (params.reserve_ppm, params.least_reserve);
    capacity_for(balance, params.exit_fee, reserve)
}

/// The same with a part of at least `exit_fee`, and a reserve of so many parts per million but at least an amount.
#[must_use]
pub fn capacity_for(
    balance: Amount,
    exit_fee: Amount,
    (reserve_ppm, least_reserve): (u32, Amount),
) -> Amount {
    if balance == Amount::ZERO {
        return Amount::ZERO;
    }
    let part = largest_part(balance, exit_fee, false);
    let held = balance.to_sat().saturating_add(part.to_sat());
    // The least c with c - max(least_reserve, c * ppm) >= held.
    let rest = MILLION.saturating_sub(reserve_ppm.into()).max(1);
    let by_share = u128::from(held)
        .saturating_mul(MILLION.into())
        .div_ceil(rest.into());
    let by_share = u64::try_from(by_share).unwrap_or(u64::MAX);
    let by_least = held.saturating_add(least_reserve.to_sat());
    Amount::from_sat(by_share.max(by_least)).min(Amount::MAX_MONEY)
}

fn ceil_ppm(amount: Amount, ppm: u64) -> Amount {
    let share = u128::from(amount.to_sat()).saturating_mul(ppm.into());
    let share = u64::try_from(share.div_ceil(MILLION.into())).unwrap_or(u64::MAX);
    Amount::from_sat(share).min(Amount::MAX_MONEY)
}

fn standing(params: &ChooseParams, candidate: &Candidate) -> Standing {
    if candidate.faults > params.unreliable_above {
        Standing::Unreliable
    } else if params.height.since(candidate.since) < params.new_for {
        Standing::New
    } else {
        Standing::Settled
    }
}

/// Puts everybody in leaf order, and adds up.
fn place(
    params: &ChooseParams,
    taken: Vec<Taken<'_>>,
) -> Result<(Vec<Seat>, CapitalNeeded), ChooseError> {
    let clients = u32::try_from(taken.len()).unwrap_or(u32::MAX);
    let shape = Shape::new(&params.factory, clients)?;
    let seats = seating::seat(params, &shape, taken);
    let capital = capital(params, &shape, &seats).ok_or(ChooseError::Overflow)?;
    Ok((seats, capital))
}

fn capital(params: &ChooseParams, shape: &Shape, seats: &[Seat]) -> Option<CapitalNeeded> {
    let sum_of = |clients: &core::ops::Range<u32>| {
        let seats = seats.get(clients.start as usize..clients.end as usize)?;
        checked_sum(seats.iter().map(|seat| seat.capacity))
    };
    let channels = sum_of(&(0..shape.clients()))?;
    let mut stock = Amount::ZERO;
    for sub in shape.nodes().iter().flat_map(|node| &node.subfactories) {
        let own = plan::stock_amount(&params.factory, sum_of(sub)?, len(sub));
        stock = stock.checked_add(own.unwrap_or(Amount::ZERO))?;
    }
    let change = FUNDING_CHANGE;
    Some(CapitalNeeded {
        channels,
        stock,
        change,
        total: checked_sum([channels, stock, change])?,
    })
}

/// So many of what has a plural in s.
fn counted(number: u32, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        number => format!("{number} {what}s"),
    }
}

/// Why a client is invited.
fn reason(params: &ChooseParams, candidate: &Candidate) -> String {
    match candidate.kind {
        Kind::Dying { deadline, tries } => {
            let left = blocks_in_words(deadline.since(params.height));
            match tries {
                0 => format!("its factory ends: {left} left"),
                tries => format!(
                    "its factory ends: {left} left, {} missed",
                    counted(tries.into(), "invitation")
                ),
            }
        }
        Kind::SignUp => "new client".to_owned(),
        Kind::StockBuyer => "has paid for a channel, which comes with this factory".to_owned(),
        Kind::OnChain => "has a channel of its own on the chain".to_owned(),
    }
}
