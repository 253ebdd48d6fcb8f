//! Every number of a factory in one validated value, and the one schedule function.
//!
//! All times are in blocks, all amounts in satoshi, feerates in sat/vB. Source: protocol.md
//! section 1; the names are the ones the export uses.

use bitcoin::Network;
use serde::{Deserialize, Serialize};

use crate::units::{Blocks, Height};

/// BIP-68 relative locks count 16 bits of blocks.
const MAX_RELATIVE_LOCK: u32 = 0xffff;
/// What an ordinary LDK payer locks at most (`DEFAULT_MAX_TOTAL_CLTV_EXPIRY_DELTA`).
pub const PAYER_LOCK_LIMIT: u32 = 1008;
/// What a payer sees beside two exit delays and the route: final delta 42 + forwarding delta 48 + 3.
pub const PAYER_OVERHEAD: u32 = 93;
/// Blocks a migration part needs beside the new factory's exit delay (protocol section 7.2).
const MIGRATION_ROOM: u32 = 144 + 48;

/// Who is favoured when a factory expires (protocol section 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpiryPolicy {
    /// The "inverted timeout": at `T` pre-signed timeouts pay the clients.
    ClientRefund,
    /// The classic timeout tree: at `T` the LSP may sweep what was not published.
    LspReclaim,
}

/// A named shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// One Decker-Wattenhofer layer of two states: W = 144.
    Lite,
    /// One layer of three states: W = 192.
    Standard,
    /// Two layers of two states, inner arity 4: W = 288.
    Deep,
}

impl std::str::FromStr for Profile {
    type Err = ParamsError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "lite" => Ok(Self::Lite),
            "standard" => Ok(Self::Standard),
            "deep" => Ok(Self::Deep),
            _ => Err(ParamsError::UnknownProfile(s.chars().take(32).collect())),
        }
    }
}

/// Why a set of parameters is refused. Each names the term that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParamsError {
    /// Not one of the named profiles.
    #[error("unknown profile {0:?}: use lite, standard or deep")]
    UnknownProfile(String),
    /// A parameter outside its range.
    #[error("{name} is {value}, allowed are {min} to {max}")]
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
    /// `2 * exit_delay + 93 + route_budget` is more than payers lock.
    #[error(
        "exit_delay of {exit_delay} blocks leaves no route: 2*exit_delay + {PAYER_OVERHEAD} + route_budget {route_budget} is \
         over {PAYER_LOCK_LIMIT}; the largest term is {largest} ({largest_blocks} blocks)"
    )]
    ExitDelayTooLong {
        /// The exit delay, in blocks.
        exit_delay: u32,
        /// The route budget asked for.
        route_budget: u32,
        /// Which term of the exit delay is largest.
        largest: &'static str,
        /// How many blocks that term takes.
        largest_blocks: u32,
    },
    /// Two parameters contradict each other, so that a rule of the schedule cannot hold.
    #[error("{name} is {value}, but {rule} needs at least {needed}")]
    Schedule {
        /// The parameter that is too small.
        name: &'static str,
        /// Its value.
        value: u32,
        /// The rule that would break.
        rule: &'static str,
        /// The least value that satisfies the rule.
        needed: u32,
    },
}

/// The parameters of a factory. `validate` must have passed before they are used.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FactoryParams {
    /// The chain this factory lives on.
    pub network: Network,
    /// Who is favoured at expiry.
    pub expiry_policy: ExpiryPolicy,
    /// Clients per liquidity stock, 1 to 4; a leaf has up to `k * k` clients.
    pub k: u8,
    /// Decker-Wattenhofer layers on a path (`D`).
    pub layers: u8,
    /// States per layer (`S`).
    pub states: u16,
    /// nSequence step between two states of a layer.
    pub step: u32,
    /// Outputs of an inner state (used when `layers > 1`).
    pub inner_arity: u8,
    /// Outputs of a kickoff; more than 1 forces siblings on the chain.
    pub kickoff_arity: u8,
    /// Arities of the static levels from the root down; `None`: chosen for the shortest path.
    pub static_arities: Option<Vec<u8>>,
    /// Sales one stock may carry (chain transactions).
    pub chain_depth_max: u8,
    /// Stock at birth, as parts per million of its clients' capacities.
    pub stock_share_ppm: u32,
    /// nSequence of the last sale's poison.
    pub p_base: u32,
    /// How much later each earlier sale's poison is.
    pub p_step: u32,
    /// Relative lock of the LSP's own branch on a stock.
    pub q: u32,
    /// nSequence of a stock's timeout.
    pub stock_timeout_delay: u32,
    /// How much later than the largest slot a kickoff's timeout is.
    pub kickoff_timeout_margin: u32,
    /// Feerate baked into timeouts and poisons with several payouts, sat/vB.
    pub timeout_feerate: u64,
    /// Active period.
    pub active: u32,
    /// Dying period.
    pub dying: u32,
    /// Blocks between the end of the exit delay and `T`.
    pub expiry_margin: u32,
    /// Everything published is spent this many blocks before `T`.
    pub late_margin: u32,
    /// Blocks allowed for one confirmation.
    pub conf_margin: u32,
    /// Slack in the exit delay.
    pub exit_margin: u32,
    /// Blocks left to an outside payer's route.
    pub route_budget: u32,
}

impl FactoryParams {
    /// The parameters of a named profile, with the defaults of protocol.md.
    #[must_use]
    pub const fn profile(profile: Profile, network: Network) -> Self {
        let (layers, states, step, route_budget) = match profile {
            Profile::Lite => (1, 2, 144, 300),
            Profile::Standard => (1, 3, 96, 300),
            Profile::Deep => (2, 2, 144, 140),
        };
        Self {
            network,
            expiry_policy: ExpiryPolicy::ClientRefund,
            k: 2,
            layers,
            states,
            step,
            inner_arity: 4,
            kickoff_arity: 1,
            static_arities: None,
            chain_depth_max: 4,
            stock_share_ppm: 500_000,
            p_base: 144,
            p_step: 72,
            q: 504,
            stock_timeout_delay: 648,
            kickoff_timeout_margin: 144,
            timeout_feerate: 10,
            active: 4320,
            dying: 432,
            expiry_margin: 360,
            late_margin: 144,
            conf_margin: 6,
            exit_margin: 36,
            route_budget,
        }
    }

    /// Largest slot of one layer: `step * (S - 1)`.
    #[must_use]
    pub const fn max_slot(&self) -> Blocks {
        Blocks(self.step).times((self.states as u32).saturating_sub(1))
    }

    /// Worst Decker-Wattenhofer delay of a path, `W = D * step * (S - 1)`.
    #[must_use]
    pub const fn worst_dw_delay(&self) -> Blocks {
        self.max_slot().times(self.layers as u32)
    }

    /// nSequence of the poison of sale `j` (1-based): `p_base + p_step * (chain_depth_max - j)`.
    #[must_use]
    pub const fn poison_delay(&self, sale: u8) -> Blocks {
        let later = self.chain_depth_max.saturating_sub(sale) as u32;
        Blocks(self.p_base).plus(Blocks(self.p_step).times(later))
    }

    /// nSequence of a kickoff's timeout: largest slot plus margin.
    #[must_use]
    pub const fn kickoff_timeout_delay(&self) -> Blocks {
        self.max_slot().plus(Blocks(self.kickoff_timeout_margin))
    }

    /// `W + conf_margin * (levels + chain_depth_max + 1) + exit_margin` for a path of `levels`
    /// transactions, the leaf included.
    #[must_use]
    pub const fn exit_delay(&self, levels: u32) -> Blocks {
        self.worst_dw_delay()
            .plus(self.confirmation_time(levels))
            .plus(Blocks(self.exit_margin))
    }

    const fn confirmation_time(&self, levels: u32) -> Blocks {
        let steps = levels.saturating_add(self.chain_depth_max as u32);
        Blocks(self.conf_margin).times(steps.saturating_add(1))
    }

    /// Refuses a path of `levels` transactions that leaves less than the route budget.
    ///
    /// # Errors
    /// [`ParamsError::ExitDelayTooLong`], naming the largest term.
    pub fn check_exit_delay(&self, levels: u32) -> Result<Blocks, ParamsError> {
        let exit_delay = self.exit_delay(levels);
        let lock = exit_delay
            .times(2)
            .plus(Blocks(PAYER_OVERHEAD))
            .plus(Blocks(self.route_budget));
        if lock.0 <= PAYER_LOCK_LIMIT {
            return Ok(exit_delay);
        }
        let dw = (
            "W = layers * step * (states - 1)",
            self.worst_dw_delay().0.saturating_mul(2),
        );
        let confirmations = (
            "conf_margin * (levels + chain_depth_max + 1)",
            self.confirmation_time(levels).0.saturating_mul(2),
        );
        let margin = ("exit_margin", self.exit_margin.saturating_mul(2));
        let route = ("route_budget", self.route_budget);
        let (largest, weight) = [dw, confirmations, margin, route]
            .into_iter()
            .max_by_key(|(_, blocks)| *blocks)
            .unwrap_or(dw);
        let largest_blocks = if largest == "route_budget" {
            weight
        } else {
            weight.saturating_div(2)
        };
        Err(ParamsError::ExitDelayTooLong {
            exit_delay: exit_delay.0,
            route_budget: self.route_budget,
            largest,
            largest_blocks,
        })
    }

    /// Checks every parameter by itself and against the others, except what depends on the
    /// number of clients (see [`Self::check_exit_delay`]).
    ///
    /// # Errors
    /// The first parameter that is out of range or contradicts a rule of the schedule.
    pub fn validate(&self) -> Result<(), ParamsError> {
        self.check_ranges()?;
        self.check_locks()?;
        self.check_schedule()
    }

    fn check_ranges(&self) -> Result<(), ParamsError> {
        range("k", u64::from(self.k), 1, 4)?;
        range("layers", u64::from(self.layers), 1, 4)?;
        range("states", u64::from(self.states), 2, 64)?;
        range("step", u64::from(self.step), 1, 2016)?;
        range("inner_arity", u64::from(self.inner_arity), 2, 16)?;
        range("kickoff_arity", u64::from(self.kickoff_arity), 1, 8)?;
        range("chain_depth_max", u64::from(self.chain_depth_max), 0, 16)?;
        range(
            "stock_share_ppm",
            u64::from(self.stock_share_ppm),
            0,
            4_000_000,
        )?;
        range("timeout_feerate", self.timeout_feerate, 1, 1000)?;
        range("active", u64::from(self.active), 1, 52_560)?;
        range("dying", u64::from(self.dying), 1, 8064)?;
        range("expiry_margin", u64::from(self.expiry_margin), 1, 8064)?;
        range("late_margin", u64::from(self.late_margin), 0, 4032)?;
        range("conf_margin", u64::from(self.conf_margin), 1, 144)?;
        range("exit_margin", u64::from(self.exit_margin), 0, 1008)?;
        range("route_budget", u64::from(self.route_budget), 0, 1008)?;
        if let Some(arities) = &self.static_arities {
            range("static_arities (levels)", arities.len() as u64, 0, 16)?;
            for arity in arities {
                range("static_arities", u64::from(*arity), 2, 64)?;
            }
        }
        Ok(())
    }

    /// The order of spends of a stock: chain < poisons < the LSP's branch < timeout.
    fn check_locks(&self) -> Result<(), ParamsError> {
        let first_poison = self.poison_delay(1).0;
        range(
            "p_base",
            u64::from(self.p_base),
            1,
            MAX_RELATIVE_LOCK.into(),
        )?;
        // With several sales the newest one's poison comes first (attacks.md, second part, 1b).
        let several = u32::from(self.chain_depth_max > 1);
        at_least(
            "p_step",
            self.p_step,
            "the order of the sales' poisons",
            several,
        )?;
        at_least(
            "q",
            self.q,
            "the order poison(1) before the LSP's branch",
            first_poison.saturating_add(1),
        )?;
        at_least(
            "stock_timeout_delay",
            self.stock_timeout_delay,
            "the order LSP's branch before the stock's timeout",
            self.q.saturating_add(1),
        )?;
        at_least(
            "kickoff_timeout_margin",
            self.kickoff_timeout_margin,
            "the order states before the kickoff's timeout",
            1,
        )?;
        let max = MAX_RELATIVE_LOCK.into();
        range(
            "stock_timeout_delay",
            u64::from(self.stock_timeout_delay),
            1,
            max,
        )?;
        let kickoff = u64::from(self.kickoff_timeout_delay().0);
        range(
            "step * (states - 1) + kickoff_timeout_margin",
            kickoff,
            1,
            max,
        )
    }

    fn check_schedule(&self) -> Result<(), ParamsError> {
        // The last channel output confirms exit_margin before T - expiry_margin (attacks.md, second part, 3).
        at_least(
            "expiry_margin",
            self.expiry_margin,
            "every output of a published factory is spent before T - late_margin, which",
            self.late_margin.saturating_add(self.conf_margin),
        )?;
        let room = self.dying.saturating_add(self.expiry_margin);
        at_least(
            "dying + expiry_margin",
            room,
            "a migration part (out_expiry + 48 < T - late_margin)",
            self.late_margin
                .saturating_add(MIGRATION_ROOM)
                .saturating_add(1),
        )
    }

    /// The calendar of a factory born at `birth` whose longest path has `levels` transactions.
    /// The same function serves the first factory, every later one, the client's check and the
    /// operator's calendar.
    ///
    /// # Errors
    /// [`ParamsError`] when the parameters are invalid or leave no route.
    pub fn schedule(&self, birth: Height, levels: u32) -> Result<Schedule, ParamsError> {
        self.validate()?;
        let exit_delay = self.check_exit_delay(levels)?;
        let dying_from = birth.plus(Blocks(self.active));
        let publish_from = dying_from.plus(Blocks(self.dying));
        let expiry = publish_from
            .plus(exit_delay)
            .plus(Blocks(self.expiry_margin));
        // nLockTime and OP_CLTV read anything from here on as a time (BIP-65), not as a height.
        let last = bitcoin::absolute::LOCK_TIME_THRESHOLD.saturating_sub(1);
        range("expiry", expiry.0.into(), 1, last.into())?;
        Ok(Schedule {
            birth,
            dying_from,
            publish_from,
            last_spend: expiry.minus(Blocks(self.late_margin)),
            expiry,
            exit_delay,
        })
    }
}

/// The calendar of one factory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Schedule {
    /// The height it was proposed at.
    pub birth: Height,
    /// First dying block.
    pub dying_from: Height,
    /// `E`, the end of the dying days: by then whoever is not handed over starts to publish.
    pub publish_from: Height,
    /// `T - late_margin`: every published output is spent before it.
    pub last_spend: Height,
    /// `T`.
    pub expiry: Height,
    /// What a payment must leave room for.
    pub exit_delay: Blocks,
}

fn range(name: &'static str, value: u64, min: u64, max: u64) -> Result<(), ParamsError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(ParamsError::OutOfRange {
        name,
        value,
        min,
        max,
    })
}

fn at_least(
    name: &'static str,
    value: u32,
    rule: &'static str,
    needed: u32,
) -> Result<(), ParamsError> {
    if value >= needed {
        return Ok(());
    }
    Err(ParamsError::Schedule {
        name,
        value,
        rule,
        needed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lite() -> FactoryParams {
        FactoryParams::profile(Profile::Lite, Network::Regtest)
    }

    #[test]
    fn profiles_have_the_protocols_delays() {
        let standard = FactoryParams::profile(Profile::Standard, Network::Regtest);
        let deep = FactoryParams::profile(Profile::Deep, Network::Regtest);
        assert_eq!(lite().worst_dw_delay(), Blocks(144));
        assert_eq!(standard.worst_dw_delay(), Blocks(192));
        assert_eq!(deep.worst_dw_delay(), Blocks(288));
        for params in [lite(), standard, deep] {
            params.validate().unwrap();
        }
    }

    #[test]
    fn exit_delay_of_lite_matches_protocol_section_1() {
        assert_eq!(lite().exit_delay(3), Blocks(228));
        assert_eq!(lite().exit_delay(4), Blocks(234));
        assert_eq!(lite().exit_delay(5), Blocks(240));
        assert_eq!(lite().check_exit_delay(16), Ok(Blocks(306)));
        assert!(lite().check_exit_delay(17).is_err());
    }

    #[test]
    fn poison_delays_are_360_288_216_144() {
        let delays: Vec<u32> = (1..=4).map(|j| lite().poison_delay(j).0).collect();
        assert_eq!(delays, [360, 288, 216, 144]);
        assert_eq!(lite().q, lite().poison_delay(1).0 + 144);
    }

    #[test]
    fn schedule_adds_up() {
        let schedule = lite().schedule(Height(1000), 3).unwrap();
        assert_eq!(schedule.expiry, Height(1000 + 4320 + 432 + 228 + 360));
        assert_eq!(schedule.publish_from, Height(1000 + 4320 + 432));
        assert_eq!(schedule.last_spend, Height(schedule.expiry.0 - 144));
    }

    #[test]
    fn an_expiry_that_is_no_height_is_refused() {
        for birth in [499_999_999, u32::MAX] {
            let error = lite().schedule(Height(birth), 3).unwrap_err();
            assert!(error.to_string().starts_with("expiry"), "{error}");
        }
    }

    #[test]
    fn too_long_exit_names_its_largest_term() {
        let mut params = lite();
        params.states = 4;
        let error = params.schedule(Height(0), 3).unwrap_err();
        assert!(error.to_string().contains("W = layers"), "{error}");
        let mut params = lite();
        params.conf_margin = 40;
        let error = params.schedule(Height(0), 3).unwrap_err();
        assert!(error.to_string().contains("conf_margin"), "{error}");
    }

    #[test]
    fn contradicting_parameters_are_refused() {
        for (name, change) in [
            ("q", (|p| p.q = 360) as fn(&mut FactoryParams)),
            ("p_step", |p| p.p_step = 0),
            ("stock_timeout_delay", |p| p.stock_timeout_delay = 504),
            ("kickoff_timeout_margin", |p| p.kickoff_timeout_margin = 0),
            ("expiry_margin", |p| p.late_margin = 360),
            ("dying + expiry_margin", |p| {
                p.dying = 10;
                p.expiry_margin = 150;
            }),
            ("k", |p| p.k = 5),
            ("states", |p| p.states = 1),
        ] {
            let mut params = lite();
            change(&mut params);
            let error = params.validate().unwrap_err();
            assert!(error.to_string().starts_with(name), "{name}: {error}");
        }
    }
}
