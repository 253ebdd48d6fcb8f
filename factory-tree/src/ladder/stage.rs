//! How old a factory is.

use serde::{Deserialize, Serialize};

use super::view::{FactoryFacts, Funding, Progress, Root};
use crate::units::Height;

/// The stage of a factory's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Its funding is not confirmed.
    Unborn,
    /// In use.
    Active,
    /// Clients move to younger factories.
    Dying {
        /// 1 for the first day (a day is the spacing of births).
        day: u32,
    },
    /// Past `E`: what is not handed over is published.
    Closing,
    /// Past `T`: timeouts are valid.
    Expired,
    /// Nothing of it is left on the chain.
    Ended,
}

impl Stage {
    /// The stage at `height`, with births `spacing` blocks apart.
    ///
    /// | funding, root | h < dying | h < E | h < T | else |
    /// |---|---|---|---|---|
    /// | not confirmed | unborn | unborn | unborn | unborn |
    /// | live | active | dying | closing | expired |
    /// | over | ended | ended | ended | ended |
    #[must_use]
    pub fn of(facts: &FactoryFacts, height: Height, spacing: u32) -> Self {
        let calendar = &facts.schedule;
        if is_over(facts) {
            return Self::Ended;
        }
        if !matches!(facts.funding, Funding::Confirmed { .. }) {
            return Self::Unborn;
        }
        if height < calendar.dying_from {
            Self::Active
        } else if height < calendar.publish_from {
            let since = height.since(calendar.dying_from).0;
            let day = since.checked_div(spacing).unwrap_or(0).saturating_add(1);
            Self::Dying { day }
        } else if height < calendar.expiry {
            Self::Closing
        } else {
            Self::Expired
        }
    }
}

/// Whether nothing of the factory can be spent any more, however deep that is buried.
fn is_over(facts: &FactoryFacts) -> bool {
    let all_gone = || {
        let mut members = facts.members.iter();
        members.all(|member| member.progress == Progress::Gone)
    };
    match &facts.root {
        Root::Unspent | Root::ReapSent => matches!(facts.funding, Funding::Dead { .. }),
        Root::Reaped { .. } | Root::TimedOut { .. } => true,
        Root::Published { open, .. } => *open == 0 && all_gone(),
    }
}
