//! The numbers of a ladder, and whether they can hold together with those of its factories.

use bitcoin::Network;
use serde::{Deserialize, Serialize};

use super::moving::part_room;
use crate::params::{FactoryParams, ParamsError, Profile};
use crate::shape::{MIN_CLIENTS, most_levels};
use crate::units::{Blocks, Height};

/// Why a ladder is refused. Each names the term that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LadderError {
    /// The factories' own parameters.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// A parameter outside its range.
    #[error("{name} is {value}, allowed are {min} to {max}")]
    OutOfRange {
        /// The parameter.
        name: &'static str,
        /// What was given.
        value: u32,
        /// Least value allowed.
        min: u32,
        /// Largest value allowed.
        max: u32,
    },
    /// Two parameters contradict each other.
    #[error("{name} is {value}, but {rule} needs {needed}")]
    Rule {
        /// The parameter.
        name: &'static str,
        /// Its value.
        value: u32,
        /// The rule that would break.
        rule: &'static str,
        /// What would satisfy it.
        needed: u32,
    },
}

/// The parameters of a ladder. `validate` must have passed before they are used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LadderParams {
    /// Factories that are active or dying at once: births in one life.
    pub rungs: u32,
    /// Blocks between two births.
    pub spacing: u32,
    /// How often a client is invited while its factory dies.
    pub invitations: u8,
    /// How much later than planned a birth may be without costing its clients an invitation.
    pub birth_slip: u32,
    /// Depth at which a new factory's channels take payments.
    pub usable_depth: u32,
    /// Blocks a client is given to move its balance in parts.
    pub move_time: u32,
    /// Depth of the new funding at which the old keys may be handed over.
    pub handover_depth: u32,
    /// Depth at which reaped coins may fund a later factory.
    pub reap_depth: u32,
    /// Depth at which what is spent is forgotten.
    pub bury_depth: u32,
    /// How long before its dying days a client hears of them first.
    pub early_notice: u32,
}

impl Default for LadderParams {
    /// The defaults of protocol.md section 7: one birth a day, 33 rungs.
    fn default() -> Self {
        Self {
            rungs: 33,
            spacing: 144,
            invitations: 3,
            birth_slip: 36,
            usable_depth: 3,
            move_time: 36,
            handover_depth: 12,
            reap_depth: 6,
            bury_depth: 144,
            early_notice: 1008,
        }
    }
}

/// A ladder in compressed time, for tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compressed {
    /// Of every factory.
    pub factory: FactoryParams,
    /// Of the ladder.
    pub ladder: LadderParams,
}

impl LadderParams {
    /// The least spacing of a compressed ladder: one block each for a late birth, its
    /// confirmation, its handover depth and the move.
    pub const LEAST_SPACING: u32 = 4;

    /// The shortest ladder of `rungs` (at least 4: three die, one is active) in which every rule
    /// holds, with `spacing` blocks between births (18 leaves real processes room to act).
    ///
    /// What does not shrink: `expiry_margin`, because a migration part locks `exit_delay + 144`
    /// blocks and another 48 before `T - late_margin` (section 7.2; LDK's claim buffer of 36 and
    /// deltas of 42 and 48 are in there). So a life is `rungs * spacing` blocks, and `T` comes some
    /// 230 blocks after it; a ladder in which everybody moves never waits for `T`.
    ///
    /// # Errors
    /// [`LadderError`] when there are too few rungs or blocks.
    pub fn compressed(
        network: Network,
        rungs: u32,
        spacing: u32,
    ) -> Result<Compressed, LadderError> {
        const DYING: u32 = 3;
        range("rungs", rungs, DYING.saturating_add(1), 1000)?;
        range("spacing", spacing, Self::LEAST_SPACING, 144)?;
        let conf_margin = (spacing / 9).clamp(1, 6);
        let birth_slip = conf_margin;
        let handover_depth = (spacing / 3).clamp(1, 12);
        let late_margin = conf_margin.saturating_mul(3);
        let factory = FactoryParams {
            step: 4,
            p_base: 12,
            p_step: 6,
            q: 42,
            stock_timeout_delay: 54,
            kickoff_timeout_margin: 12,
            active: rungs.saturating_sub(DYING).saturating_mul(spacing),
            dying: spacing.saturating_mul(DYING),
            // The last part of a move may begin in the last block before E, and the younger
            // factory's path may be some levels longer.
            expiry_margin: part_room()
                .saturating_add(late_margin)
                .saturating_add(conf_margin.saturating_mul(4)),
            late_margin,
            conf_margin,
            exit_margin: conf_margin,
            ..FactoryParams::profile(Profile::Lite, network)
        };
        let ladder = Self {
            rungs,
            spacing,
            invitations: 3,
            birth_slip,
            usable_depth: 1,
            move_time: spacing
                .saturating_sub(birth_slip)
                .saturating_sub(conf_margin)
                .saturating_sub(handover_depth),
            handover_depth,
            reap_depth: handover_depth.min(6),
            bury_depth: spacing.min(24),
            early_notice: spacing,
        };
        ladder.validate(&factory, 8)?;
        Ok(Compressed { factory, ladder })
    }

    /// Checks every parameter, alone and against those of the ladder's factories, which have at
    /// most `most_clients` clients each.
    ///
    /// # Errors
    /// The first rule that cannot hold.
    pub fn validate(&self, factory: &FactoryParams, most_clients: u32) -> Result<(), LadderError> {
        factory.validate()?;
        self.check_ranges()?;
        self.check_rungs(factory)?;
        self.check_invitations(factory, most_clients)?;
        self.check_reap(factory)?;
        range("early_notice", self.early_notice, 0, factory.active)
    }

    fn check_ranges(&self) -> Result<(), LadderError> {
        range("rungs", self.rungs, 1, 1000)?;
        range("spacing", self.spacing, 1, 4032)?;
        range("invitations", self.invitations.into(), 1, 30)?;
        range("birth_slip", self.birth_slip, 0, self.spacing)?;
        range("move_time", self.move_time, 1, 4032)?;
        range("handover_depth", self.handover_depth, 1, 144)?;
        range("usable_depth", self.usable_depth, 1, self.handover_depth)?;
        range("reap_depth", self.reap_depth, 1, 144)?;
        range("bury_depth", self.bury_depth, self.reap_depth, 4032)
    }

    /// One birth per `spacing`, so the life of a factory says how many there are at once.
    fn check_rungs(&self, factory: &FactoryParams) -> Result<(), LadderError> {
        let needed = self.births_in(factory.active.saturating_add(factory.dying));
        rule(self.rungs == needed, || LadderError::Rule {
            name: "rungs",
            value: self.rungs,
            rule: "one birth per spacing in active + dying blocks",
            needed,
        })
    }

    /// Every client finds `invitations` births in its dying days, each early enough to have moved
    /// and handed over by the end of them, even if the births before were late by `birth_slip`.
    fn check_invitations(
        &self,
        factory: &FactoryParams,
        most_clients: u32,
    ) -> Result<(), LadderError> {
        let later = u32::from(self.invitations)
            .saturating_sub(1)
            .saturating_mul(self.spacing);
        let needed = self
            .first_birth_after(factory.active)
            .saturating_add(later)
            .saturating_add(self.birth_slip)
            .saturating_add(self.settle(factory).0)
            .saturating_add(self.shortfall(factory, most_clients)?);
        rule(factory.dying >= needed, || LadderError::Rule {
            name: "dying",
            value: factory.dying,
            rule: "a client's invitations (birth_slip + conf_margin + handover_depth + move_time after each birth) before E",
            needed,
        })
    }

    /// By how many blocks before E the last part of a move must have begun, because its expiry
    /// would otherwise reach `T - late_margin`: the younger factory may have the longest path, the
    /// dying one the shortest.
    fn shortfall(&self, factory: &FactoryParams, most_clients: u32) -> Result<u32, LadderError> {
        let longest = factory.exit_delay(most_levels(factory, most_clients.max(MIN_CLIENTS))?);
        let shortest = factory.exit_delay(most_levels(factory, MIN_CLIENTS)?);
        let room = factory
            .late_margin
            .saturating_add(part_room())
            .saturating_add(longest.0.saturating_sub(shortest.0));
        Ok(room.saturating_sub(factory.expiry_margin))
    }

    /// A reap that begins at E is confirmed to depth while no timeout is valid.
    fn check_reap(&self, factory: &FactoryParams) -> Result<(), LadderError> {
        let shortest = factory.exit_delay(most_levels(factory, MIN_CLIENTS)?);
        let room = shortest
            .0
            .saturating_add(factory.expiry_margin)
            .saturating_sub(factory.late_margin);
        let needed = factory.conf_margin.saturating_add(self.reap_depth);
        rule(room >= needed, || LadderError::Rule {
            name: "expiry_margin + exit_delay - late_margin",
            value: room,
            rule: "a reap confirmed to reap_depth before T - late_margin",
            needed,
        })
    }

    /// Blocks from a birth until a client that came to it has moved and handed over.
    #[must_use]
    pub const fn settle(&self, factory: &FactoryParams) -> Blocks {
        Blocks(factory.conf_margin)
            .plus(Blocks(self.handover_depth))
            .plus(Blocks(self.move_time))
    }

    /// The most factories that are not over at once, if the coordinator is awake: the rungs, and
    /// those after `E` of which something is left until it is buried.
    #[must_use]
    pub fn max_live(&self, factory: &FactoryParams, exit_delay: Blocks) -> u32 {
        let after = exit_delay
            .plus(Blocks(factory.expiry_margin))
            .plus(Blocks(factory.q))
            .plus(Blocks(self.bury_depth));
        self.rungs
            .saturating_add(self.births_in(after.0))
            .saturating_add(1)
    }

    /// The planned height of a birth on a ladder whose first is planned at `first`.
    #[must_use]
    pub const fn planned(&self, first: Height, rung: u32) -> Height {
        first.plus(Blocks(self.spacing).times(rung))
    }

    /// The rung whose day it is at `height`; nothing before the first.
    #[must_use]
    pub fn rung_at(&self, first: Height, height: Height) -> Option<u32> {
        let age = height.0.checked_sub(first.0)?;
        age.checked_div(self.spacing)
    }

    /// Births needed to have one per `spacing` in `blocks`.
    fn births_in(&self, blocks: u32) -> u32 {
        blocks.div_ceil(self.spacing.max(1))
    }

    /// Blocks from `active` after a birth on time to the next birth on time.
    fn first_birth_after(&self, active: u32) -> u32 {
        let into_day = active.checked_rem(self.spacing).unwrap_or(0);
        match into_day {
            0 => 0,
            late => self.spacing.saturating_sub(late),
        }
    }
}

fn range(name: &'static str, value: u32, min: u32, max: u32) -> Result<(), LadderError> {
    rule((min..=max).contains(&value), || LadderError::OutOfRange {
        name,
        value,
        min,
        max,
    })
}

fn rule(holds: bool, error: impl FnOnce() -> LadderError) -> Result<(), LadderError> {
    if holds { Ok(()) } else { Err(error()) }
}
