//! What a virtual byte costs, day by day.

use serde::{Deserialize, Serialize};

use super::params::PlanError;
use super::run::mix;

const MILLION: u64 = 1_000_000;
/// The most a random path moves in a day, either way.
const MOST_STEP_PPM: u64 = 200_000;
/// No feerate is larger (sat/vB).
pub(super) const MOST: u64 = 10_000;

/// A feerate for each day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeeratePath {
    /// The same every day.
    Constant(u64),
    /// From these days on.
    Steps(Vec<(u32, u64)>),
    /// A seeded random walk between two feerates, by up to 20 % a day.
    Walk {
        /// On the first day.
        start: u64,
        /// Never less.
        min: u64,
        /// Never more.
        max: u64,
    },
}

impl FeeratePath {
    /// Reads `10`, `10,50@20,10@40` (50 from day 20 to day 39) or `walk:5-80` (which starts at
    /// `start`).
    ///
    /// # Errors
    /// [`PlanError`] for `name` when it is none of these, or a feerate is out of range.
    pub fn parse(name: &'static str, text: &str, start: u64) -> Result<Self, PlanError> {
        let bad = || PlanError::Text {
            name,
            value: text.chars().take(80).collect(),
            expected: "10, or 10,50@20,10@40 (50 sat/vB from day 20 to 39), or walk:5-80",
        };
        let number = |part: &str| part.trim().parse::<u64>().map_err(|_| bad());
        if let Some(range) = text.strip_prefix("walk:") {
            let (min, max) = range.split_once('-').ok_or_else(bad)?;
            let (min, max) = (number(min)?, number(max)?);
            let walk = Self::Walk { start, min, max };
            return walk.validate(name).map(|()| walk);
        }
        let mut steps = Vec::new();
        for (index, part) in text.split(',').enumerate() {
            let (rate, day) = match (index, part.split_once('@')) {
                (0, None) => (part, 0),
                (1.., Some((rate, day))) => (rate, day.trim().parse().map_err(|_| bad())?),
                _ => return Err(bad()),
            };
            steps.push((day, number(rate)?));
        }
        let path = match steps[..] {
            [(_, only)] => Self::Constant(only),
            _ if steps.is_sorted_by(|a, b| a.0 < b.0) => Self::Steps(steps),
            _ => return Err(bad()),
        };
        path.validate(name).map(|()| path)
    }

    pub(super) fn validate(&self, name: &'static str) -> Result<(), PlanError> {
        let check = |value: u64, min: u64| PlanError::range(name, value, min, MOST);
        match self {
            Self::Constant(rate) => check(*rate, 1),
            Self::Steps(steps) => {
                check(steps.len() as u64, 1)?;
                steps.iter().try_for_each(|(_, rate)| check(*rate, 1))
            }
            Self::Walk { start, min, max } => {
                check(*min, 1)?;
                check(*max, *min)?;
                PlanError::range(name, *start, *min, *max)
            }
        }
    }

    /// The feerates of `days` days.
    #[must_use]
    pub fn days(&self, days: u32, seed: u64) -> Vec<u64> {
        match self {
            Self::Constant(rate) => (0..days).map(|_| *rate).collect(),
            Self::Steps(steps) => (0..days)
                .map(|day| {
                    let reached = steps.iter().rev().find(|(from, _)| *from <= day);
                    reached.map_or(1, |(_, rate)| *rate)
                })
                .collect(),
            Self::Walk { start, min, max } => walk(days, seed, *start, *min, *max),
        }
    }
}

fn walk(days: u32, seed: u64, start: u64, min: u64, max: u64) -> Vec<u64> {
    // In thousandths, so that small feerates move as well.
    let (min, max) = (min.saturating_mul(1000), max.saturating_mul(1000));
    let mut rate = start.saturating_mul(1000);
    let mut rates = Vec::new();
    for day in 0..days {
        rates.push(rate.div_ceil(1000));
        let range = MOST_STEP_PPM.saturating_mul(2).saturating_add(1);
        let step = mix(seed, 0xfee, day.into()).checked_rem(range);
        let factor = MILLION
            .saturating_sub(MOST_STEP_PPM)
            .saturating_add(step.unwrap_or(0));
        rate = (rate.saturating_mul(factor) / MILLION).clamp(min, max);
    }
    rates
}
