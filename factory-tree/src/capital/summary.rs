//! What a plan comes to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::params::{PlanError, PlanParams};
use super::run::Day;
use super::sizes::{FactoryModel, Load, Sizes, largest_timeout};

const MILLION: u128 = 1_000_000;
/// Days of a month.
const MONTH: u64 = 30;
const YEAR: u64 = 365;
/// The most virtual bytes of a block.
const BLOCK_VBYTES: u64 = 1_000_000;

/// Capital in factories: what their funding outputs hold, of which clients own their balances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locked {
    /// Channels of clients that are in.
    pub channels_sat: u64,
    /// Stock that can be sold, until its factory's dying days are over.
    pub stock_sat: u64,
    /// Old channels of clients that have moved, until the rest of the factory is reaped.
    pub double_sat: u64,
    /// Everything of factories somebody stayed in to the end, until it is back.
    pub tail_sat: u64,
}

impl Locked {
    /// All of it.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.channels_sat
            .saturating_add(self.stock_sat)
            .saturating_add(self.double_sat)
            .saturating_add(self.tail_sat)
    }
}

/// The largest factory of the plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OneFactory {
    /// Its clients.
    pub clients: u32,
    /// Transactions of its longest path.
    pub levels: u32,
    /// Its exit delay.
    pub exit_delay: u32,
    /// What its funding output holds.
    pub funding_sat: u64,
    /// Of that, stock.
    pub stock_sat: u64,
    /// Its funding transaction.
    pub funding_vbytes: u64,
    /// Its reap.
    pub reap_vbytes: u64,
    /// One client's path with fee children, without its commitment.
    pub path_vbytes: u64,
    /// Everything it takes when one client stays away.
    pub one_away_vbytes: u64,
    /// The whole tree with fee children, without commitments.
    pub tree_vbytes: u64,
    /// The first transaction of its timeouts.
    pub timeout_vbytes: u64,
}

/// What all days come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Factories born.
    pub births: u64,
    /// Factories reaped or reclaimed whole.
    pub reaps: u64,
    /// Clients whose path was published.
    pub published: u64,
    /// Transactions.
    pub txs: u64,
    /// Their virtual bytes.
    pub vbytes: u64,
    /// Their fees.
    pub fees_sat: u64,
    /// The most that was locked.
    pub peak_locked_sat: u64,
    /// The most births of a day.
    pub peak_births: u32,
    /// The most paths begun on a day: each needs a confirmed coin of its own to pay from.
    pub peak_published: u32,
}

/// Averages over the days after the first factories are over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steady {
    /// The first of these days.
    pub from_day: u32,
    /// How many.
    pub days: u32,
    /// Clients with a channel.
    pub clients: u32,
    /// Capital.
    pub locked: Locked,
    /// Capacity in use, per capital locked.
    pub efficiency_ppm: u32,
    /// Births in a thousand days.
    pub births_per_1000_days: u64,
    /// Transactions for a thousand factories.
    pub txs_per_1000_births: u64,
    /// Of all block space.
    pub block_space_ppm: u64,
    /// Virtual bytes for a client and month.
    pub vbytes_per_client_month: u64,
    /// Fees for a client and month, rounded up.
    pub sat_per_client_month: u64,
    /// Interest for a client and month, rounded up.
    pub interest_sat_per_client_month: u64,
}

/// If everybody left at once at the end of the plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MassExit {
    /// Factories with clients in them.
    pub factories: u64,
    /// Trees and commitments with their fee children.
    pub txs: u64,
    /// Their virtual bytes.
    pub vbytes: u64,
    /// Full blocks they take.
    pub blocks: u64,
    /// Their fees at the last day's feerate.
    pub fees_sat: u64,
}

/// A plan and what it comes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What was asked.
    pub params: PlanParams,
    /// The largest factory.
    pub factory: OneFactory,
    /// Once the ladder is full.
    pub steady: Steady,
    /// All days together.
    pub totals: Totals,
    /// At the end.
    pub mass_exit: MassExit,
    /// Day by day.
    pub days: Vec<Day>,
}

pub(super) fn summarise(
    params: &PlanParams,
    sizes: &Sizes,
    models: &BTreeMap<u32, FactoryModel>,
    live: &[(u32, u32)],
    days: Vec<Day>,
) -> Result<Plan, PlanError> {
    let factory = models.last_key_value().map(|(_, model)| model);
    Ok(Plan {
        factory: factory.map_or_else(OneFactory::default, |m| one_factory(params, sizes, m)),
        steady: steady(params, &days),
        totals: totals(&days),
        mass_exit: mass_exit(sizes, models, live, days.last()),
        params: params.clone(),
        days,
    })
}

fn one_factory(params: &PlanParams, sizes: &Sizes, model: &FactoryModel) -> OneFactory {
    let shape = model.shape();
    let mut away = vec![false; shape.clients() as usize];
    if let Some(first) = away.first_mut() {
        *first = true;
    }
    OneFactory {
        clients: shape.clients(),
        levels: shape.levels(),
        exit_delay: shape.exit_delay(&params.factory).0,
        funding_sat: model.funding().to_sat(),
        stock_sat: model.stock().to_sat(),
        funding_vbytes: sizes.funding(2).vbytes,
        reap_vbytes: sizes.reap().vbytes,
        path_vbytes: model.path(0).vbytes,
        one_away_vbytes: model.publish(sizes, &away).load().vbytes,
        tree_vbytes: model.whole_tree().vbytes,
        timeout_vbytes: largest_timeout(model),
    }
}

fn totals(days: &[Day]) -> Totals {
    let sum = |of: fn(&Day) -> u64| days.iter().map(of).fold(0, u64::saturating_add);
    let most = |of: fn(&Day) -> u32| days.iter().map(of).max().unwrap_or(0);
    Totals {
        births: sum(|day| day.births.into()),
        reaps: sum(|day| day.reaps.into()),
        published: sum(|day| day.published.into()),
        txs: sum(|day| day.txs),
        vbytes: sum(|day| day.vbytes),
        fees_sat: sum(|day| day.fees_sat),
        peak_locked_sat: days.iter().map(|day| day.locked.total()).max().unwrap_or(0),
        peak_births: most(|day| day.births),
        peak_published: most(|day| day.published),
    }
}

/// The first factories are over at their `T`; a shorter plan is averaged whole.
fn steady(params: &PlanParams, days: &[Day]) -> Steady {
    let factory = &params.factory;
    let levels = crate::shape::most_levels(factory, params.factory_clients).unwrap_or(0);
    let life = factory
        .schedule(crate::units::Height(0), levels)
        .map_or(0, |schedule| schedule.expiry.0);
    let filled = life.div_ceil(params.ladder.spacing.max(1));
    let from_day = if filled < params.days { filled } else { 0 };
    let days = days.get(from_day as usize..).unwrap_or_default();
    let count = days.len().max(1) as u64;
    let sum = |of: fn(&Day) -> u64| days.iter().map(of).fold(0, u64::saturating_add);
    let mean = |of: fn(&Day) -> u64| sum(of).checked_div(count).unwrap_or(0);
    let locked = Locked {
        channels_sat: mean(|day| day.locked.channels_sat),
        stock_sat: mean(|day| day.locked.stock_sat),
        double_sat: mean(|day| day.locked.double_sat),
        tail_sat: mean(|day| day.locked.tail_sat),
    };
    let (births, txs) = (sum(|day| day.births.into()), sum(|day| day.txs));
    let (vbytes, fees) = (sum(|day| day.vbytes), sum(|day| day.fees_sat));
    // A month of all client-days.
    let client_days = sum(|day| day.clients.into());
    let monthly = |amount: u64| ratio(amount, MONTH.into(), client_days.into());
    // Interest on what was locked on each day.
    let locked_days = sum(|day| day.locked.total());
    let interest = u128::from(locked_days).saturating_mul(params.interest_ppm.into());
    let interest = interest.div_ceil(MILLION.saturating_mul(YEAR.into()));
    let blocks = count.saturating_mul(params.ladder.spacing.into());
    let efficiency = ratio(locked.channels_sat, MILLION, locked.total().into());
    Steady {
        from_day,
        days: u32::try_from(days.len()).unwrap_or(u32::MAX),
        clients: u32::try_from(mean(|day| day.clients.into())).unwrap_or(u32::MAX),
        locked,
        efficiency_ppm: u32::try_from(efficiency).unwrap_or(u32::MAX),
        births_per_1000_days: ratio(births, 1000, count.into()),
        txs_per_1000_births: ratio(txs, 1000, births.into()),
        block_space_ppm: ratio(
            vbytes,
            MILLION,
            u128::from(blocks).saturating_mul(BLOCK_VBYTES.into()),
        ),
        vbytes_per_client_month: monthly(vbytes),
        sat_per_client_month: monthly(fees),
        interest_sat_per_client_month: monthly(u64::try_from(interest).unwrap_or(u64::MAX)),
    }
}

/// `amount * times / by`, rounded up; 0 for nothing to divide by.
fn ratio(amount: u64, times: u128, by: u128) -> u64 {
    if by == 0 {
        return 0;
    }
    let ratio = u128::from(amount).saturating_mul(times).div_ceil(by);
    u64::try_from(ratio).unwrap_or(u64::MAX)
}

fn mass_exit(
    sizes: &Sizes,
    models: &BTreeMap<u32, FactoryModel>,
    live: &[(u32, u32)],
    last: Option<&Day>,
) -> MassExit {
    let inhabited = live.iter().filter(|(_, inside)| *inside > 0);
    let mut load = Load::default();
    for (size, inside) in inhabited.clone() {
        let tree = models.get(size).map(FactoryModel::whole_tree);
        let commitments = sizes.commitment().times((*inside).into());
        load = load.plus(tree.unwrap_or_default()).plus(commitments);
    }
    let feerate = last.map_or(0, |day| day.feerate);
    MassExit {
        factories: inhabited.count() as u64,
        txs: load.txs,
        vbytes: load.vbytes,
        blocks: load.vbytes.div_ceil(BLOCK_VBYTES),
        fees_sat: load.vbytes.saturating_mul(feerate),
    }
}
