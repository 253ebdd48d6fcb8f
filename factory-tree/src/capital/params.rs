//! What a plan is made from.

use bitcoin::{Amount, Network};
use serde::{Deserialize, Serialize};

use super::feerate::FeeratePath;
use super::run::LEAST_FACTORY;
use crate::ladder::{LadderError, LadderParams};
use crate::params::{FactoryParams, ParamsError, Profile};
use crate::shape::MIN_CLIENTS;
use crate::tree::TreeError;

const MILLION: u32 = 1_000_000;

/// Why a plan cannot be made. `name` is the parameter's name with hyphens, as a command line has
/// it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A number out of its range.
    #[error("--{name} is {value}, allowed are {min} to {max}")]
    OutOfRange {
        /// The parameter.
        name: &'static str,
        /// What was given.
        value: u64,
        /// Least value allowed.
        min: u64,
        /// Largest value allowed.
        max: u64,
    },
    /// Text that is not a value.
    #[error("--{name} {value:?}: write it like {expected}")]
    Text {
        /// The parameter.
        name: &'static str,
        /// What was given.
        value: String,
        /// What it should look like.
        expected: &'static str,
    },
    /// The ladder cannot hold.
    #[error("the ladder: {0}")]
    Ladder(#[from] LadderError),
    /// No such factory.
    #[error("--factory-clients: {0}")]
    Factory(#[from] ParamsError),
    /// A factory of these capacities cannot be built.
    #[error("--capacity: {0}")]
    Tree(#[from] TreeError),
}

impl PlanError {
    pub(super) fn range(name: &'static str, value: u64, min: u64, max: u64) -> Result<(), Self> {
        if (min..=max).contains(&value) {
            return Ok(());
        }
        Err(Self::OutOfRange {
            name,
            value,
            min,
            max,
        })
    }
}

/// What a plan is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanParams {
    /// Clients in all.
    pub clients: u32,
    /// Each one's account limit.
    pub capacity: Amount,
    /// Share of the lives at whose end a client comes to none of its invitations.
    pub no_show_ppm: u32,
    /// Of those that come, how many come to the first, second .. invitation.
    pub shows_ppm: Vec<u32>,
    /// Feerates.
    pub feerates: FeeratePath,
    /// Of every factory.
    pub factory: FactoryParams,
    /// Of the ladder.
    pub ladder: LadderParams,
    /// The most clients of one factory.
    pub factory_clients: u32,
    /// Fewer clients wait for the next birth, while they can.
    pub min_clients: u32,
    /// Days to simulate.
    pub days: u32,
    /// Decides who stays away.
    pub seed: u64,
    /// The clients' own share of their channels' capacity.
    pub balance_ppm: u32,
    /// Blocks our side of a published channel is locked.
    pub to_self_delay: u32,
    /// What capital costs in a year.
    pub interest_ppm: u32,
}

impl PlanParams {
    /// Defaults: `clients` of 200,000 sat each, 5 % of them away at every death, 10 sat/vB, the
    /// profile's own calendar, 90 days.
    #[must_use]
    pub fn new(clients: u32, profile: Profile) -> Self {
        Self {
            clients,
            capacity: Amount::from_sat(200_000),
            no_show_ppm: 50_000,
            shows_ppm: vec![600_000, 300_000, 100_000],
            feerates: FeeratePath::Constant(10),
            factory: FactoryParams::profile(profile, Network::Bitcoin),
            ladder: LadderParams::default(),
            factory_clients: 64,
            min_clients: 8,
            days: 90,
            seed: 1,
            balance_ppm: 300_000,
            to_self_delay: 1008,
            interest_ppm: 50_000,
        }
    }

    /// Checks every parameter.
    ///
    /// # Errors
    /// The first that is out of range, or does not go with the others.
    pub fn validate(&self) -> Result<(), PlanError> {
        let million = u64::from(MILLION);
        let range = PlanError::range;
        range("clients", self.clients.into(), 2, 10_000_000)?;
        range("capacity", self.capacity.to_sat(), 1000, 100_000_000_000)?;
        range("no-show", self.no_show_ppm.into(), 0, million)?;
        range(
            "shows",
            self.shows_ppm.len() as u64,
            1,
            self.ladder.invitations.into(),
        )?;
        let shows = self.shows_ppm.iter().map(|share| u64::from(*share));
        range(
            "shows",
            shows.fold(0, u64::saturating_add),
            million,
            million,
        )?;
        self.feerates.validate("feerate-path")?;
        range(
            "factory-clients",
            self.factory_clients.into(),
            LEAST_FACTORY.into(),
            4096,
        )?;
        let most = self.factory_clients.into();
        range(
            "min-clients",
            self.min_clients.into(),
            MIN_CLIENTS.into(),
            most,
        )?;
        range("days", self.days.into(), 1, 3650)?;
        range("balance", self.balance_ppm.into(), 0, million)?;
        range("to-self-delay", self.to_self_delay.into(), 1, 2016)?;
        range("interest", self.interest_ppm.into(), 0, million)?;
        crate::shape::most_levels(&self.factory, self.factory_clients)?;
        Ok(self.ladder.validate(&self.factory, self.factory_clients)?)
    }
}

/// Reads a share like `0.05` or `5%`, without rounding.
///
/// # Errors
/// [`PlanError::Text`] for `name` when it is none between 0 and 1, or has more than six digits.
pub fn parts_per_million(name: &'static str, text: &str) -> Result<u32, PlanError> {
    let bad = || PlanError::Text {
        name,
        value: text.chars().take(40).collect(),
        expected: "0.05 or 5%",
    };
    let (digits, places) = match text.trim().strip_suffix('%') {
        Some(percent) => (percent.trim(), 4usize),
        None => (text.trim(), 6),
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !is_number(whole) || !is_number(part) || part.len() > places || whole.len() > 3 {
        return Err(bad());
    }
    let padded = format!("{whole}{part:0<places$}");
    let ppm: u32 = padded.parse().map_err(|_| bad())?;
    if ppm > MILLION { Err(bad()) } else { Ok(ppm) }
}
