//! Who is invited first, and who is not invited: a score of faults that decays with the chain.
//!
//! The rule: staying silent, or leaving after the proposal, adds 1 to a client's score, an invalid signature adds 4, and a score halves every
//! `policy.score_half_life_blocks`. Invitations go out in the order of the score, lowest first, and within equal scores in the order in
//! which clients asked. From `policy.score_skip_above` on a client is skipped, until its score has decayed. Declining and
//! leaving before the proposal cost nothing.

use factory_tree::ceremony::coordinator::LeftOut;

/// What counts against a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It did not answer in time when others depended on it.
    Silent,
    /// It sent an invalid signature.
    Guilty,
}

impl Fault {
    /// What it counts for a client to be left out; `proposed`: whether the others were signing already.
    #[must_use]
    pub const fn of(why: LeftOut, proposed: bool) -> Option<Self> {
        match why {
            LeftOut::Guilty => Some(Self::Guilty),
            LeftOut::Silent => Some(Self::Silent),
            LeftOut::Declined if proposed => Some(Self::Silent),
            LeftOut::Declined | LeftOut::Absent => None,
        }
    }

    const fn points(self) -> f64 {
        match self {
            Self::Silent => 1.0,
            Self::Guilty => 4.0,
        }
    }
}

/// A score, as of a height.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// At `height`.
    pub points: f64,
    /// When it was last changed.
    pub height: u32,
}

impl Score {
    /// What is left of it at `height`.
    #[must_use]
    pub fn at(self, height: u32, half_life: u32) -> f64 {
        let halves = f64::from(height.saturating_sub(self.height)) / f64::from(half_life.max(1));
        self.points * 0.5f64.powf(halves)
    }

    /// After a fault at `height`.
    #[must_use]
    pub fn after(self, fault: Fault, height: u32, half_life: u32) -> Self {
        Self {
            points: self.at(height, half_life) + fault.points(),
            height,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaving_costs_as_much_as_silence_once_others_sign() {
        assert_eq!(Fault::of(LeftOut::Declined, false), None);
        assert_eq!(Fault::of(LeftOut::Declined, true), Some(Fault::Silent));
        assert_eq!(Fault::of(LeftOut::Absent, true), None);
        assert_eq!(Fault::of(LeftOut::Silent, false), Some(Fault::Silent));
        assert_eq!(Fault::of(LeftOut::Guilty, true), Some(Fault::Guilty));
    }

    #[test]
    fn faults_add_up_and_decay() {
        let score =
            Score::default()
                .after(Fault::Silent, 100, 1008)
                .after(Fault::Guilty, 100, 1008);
        assert_eq!(score.at(100, 1008), 5.0);
        assert_eq!(score.at(100 + 1008, 1008), 2.5);
        assert!(score.at(100 + 10_080, 1008) < 0.01);
        // A reorg to a lower height changes nothing.
        assert_eq!(score.at(90, 1008), 5.0);
    }
}
