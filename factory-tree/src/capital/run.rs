//! The simulation itself, one day after the other.

use std::collections::BTreeMap;

use bitcoin::Amount;
use serde::{Deserialize, Serialize};

use super::params::{PlanError, PlanParams};
use super::sizes::{FactoryModel, Load, Sizes};
use super::summary::{Locked, Plan, summarise};
use crate::plan::has_timeouts;
use crate::units::{Blocks, Height};

const MILLION: u64 = 1_000_000;
/// Coins a funding spends: a reaped one, and the change of the funding before.
const FUNDING_INPUTS: u64 = 2;
/// Fewer clients are one leaf at most, and leave nothing to divide.
pub(super) const LEAST_FACTORY: u32 = 4;

/// A day of the plan, as it is when it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Day {
    /// Counted from 0.
    pub day: u32,
    /// What a virtual byte cost.
    pub feerate: u64,
    /// Clients with a channel in a factory that is not over.
    pub clients: u32,
    /// Factories born.
    pub births: u32,
    /// Factories reaped (or reclaimed) whole.
    pub reaps: u32,
    /// Clients whose path we began to publish.
    pub published: u32,
    /// Transactions.
    pub txs: u64,
    /// Their virtual bytes.
    pub vbytes: u64,
    /// Their fees.
    pub fees_sat: u64,
    /// Capital that went into factories.
    pub funded_sat: u64,
    /// Capital that came back: what was reaped the day before, what was recovered today, and
    /// balances that were paid to clients on the chain.
    pub returned_sat: u64,
    /// Capital in factories.
    pub locked: Locked,
}

/// Days after a birth at which things happen, from the ladder's rules.
#[derive(Clone, Debug)]
struct Calendar {
    /// Births of younger factories a client may come to.
    tries: Vec<u32>,
    /// Days from a birth to the next of who comes, on average.
    usual_life: u32,
    /// `E`.
    end: u32,
    /// Days after `E` until a path and its commitments are confirmed.
    exit: u32,
    /// And until unsold stock and our own side come back.
    stock: u32,
    to_local: u32,
    /// From `E` to `T`.
    expiry: u32,
}

impl Calendar {
    fn new(params: &PlanParams) -> Result<Self, PlanError> {
        // A reference factory, as large as any: its path is the longest.
        let levels = crate::shape::most_levels(&params.factory, params.factory_clients)?;
        let birth = Height(0);
        let schedule = params.factory.schedule(birth, levels)?;
        let days = |blocks: Blocks| blocks.0.div_ceil(params.ladder.spacing.max(1));
        let first = days(schedule.dying_from.since(birth));
        let exit = schedule.exit_delay;
        let tries: Vec<u32> = (0..u32::from(params.ladder.invitations))
            .map(|later| first.saturating_add(later))
            .collect();
        let come = params.shows_ppm.iter().zip(&tries);
        let lives = come.map(|(share, days)| u64::from(*share).saturating_mul((*days).into()));
        let usual_life = lives.fold(0, u64::saturating_add).div_ceil(MILLION);
        Ok(Self {
            usual_life: u32::try_from(usual_life).unwrap_or(u32::MAX),
            tries,
            end: days(schedule.publish_from.since(birth)),
            exit: days(exit),
            stock: days(exit.plus(Blocks(params.factory.q))),
            to_local: days(exit.plus(Blocks(params.to_self_delay))),
            expiry: days(schedule.expiry.since(schedule.publish_from)),
        })
    }
}

/// A member of a factory.
#[derive(Clone, Copy, Debug)]
struct Member {
    client: u32,
    /// Which of its lives it spends here.
    life: u32,
    left: bool,
}

#[derive(Debug)]
struct Factory {
    size: u32,
    members: Vec<Member>,
    inside: u32,
    over: bool,
}

/// Somebody who will be in the next factory.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    client: u32,
    /// Factory and position it comes from.
    from: Option<(usize, usize)>,
    /// The last day on which it can.
    until: u32,
}

/// What will happen later.
#[derive(Clone, Copy, Debug, Default)]
struct Later {
    load: Load,
    freed: Amount,
    reclaims: u32,
}

struct Run<'a> {
    params: &'a PlanParams,
    calendar: Calendar,
    sizes: Sizes,
    models: BTreeMap<u32, FactoryModel>,
    factories: Vec<Factory>,
    /// Indices of the factories born on each day.
    born: Vec<Vec<usize>>,
    waiting: Vec<Waiting>,
    later: BTreeMap<u32, Later>,
    returning: BTreeMap<u32, Vec<u32>>,
    /// How many lives each client has had.
    lives: Vec<u32>,
    signed_up: u32,
    tail: Amount,
    /// What today's births took, and what the last reaps will give tomorrow.
    funded: Amount,
    reaped: Amount,
    /// Outputs of sweeps that the next funding takes in.
    fragments: u64,
}

/// Simulates `params.days` days of a ladder that begins with nobody; all clients sign up in
/// the first month.
///
/// # Errors
/// [`PlanError`], naming the parameter.
pub fn simulate(params: &PlanParams) -> Result<Plan, PlanError> {
    params.validate()?;
    let feerates = params.feerates.days(params.days, params.seed);
    let mut run = Run::new(params)?;
    let mut days = Vec::new();
    for (day, feerate) in (0u32..).zip(&feerates) {
        days.push(run.day(day, *feerate)?);
    }
    let live: Vec<(u32, u32)> = run
        .factories
        .iter()
        .filter(|factory| !factory.over)
        .map(|factory| (factory.size, factory.inside))
        .collect();
    summarise(params, &run.sizes, &run.models, &live, days)
}

impl<'a> Run<'a> {
    fn new(params: &'a PlanParams) -> Result<Self, PlanError> {
        let delay = u16::try_from(params.to_self_delay).unwrap_or(u16::MAX);
        let sizes = Sizes::measure(&params.factory, delay);
        let run = Self {
            params,
            calendar: Calendar::new(params)?,
            // Fails for no parameters that are valid.
            sizes: sizes.ok_or(PlanError::OutOfRange {
                name: "to-self-delay",
                value: params.to_self_delay.into(),
                min: 1,
                max: 2016,
            })?,
            models: BTreeMap::new(),
            factories: Vec::new(),
            born: Vec::new(),
            waiting: Vec::new(),
            later: BTreeMap::new(),
            returning: BTreeMap::new(),
            lives: vec![0; params.clients as usize],
            signed_up: 0,
            tail: Amount::ZERO,
            funded: Amount::ZERO,
            reaped: Amount::ZERO,
            fragments: 0,
        };
        Ok(run)
    }

    fn day(&mut self, day: u32, feerate: u64) -> Result<Day, PlanError> {
        let mut load = Load::default();
        let mut now = Day {
            day,
            feerate,
            ..Day::default()
        };
        let mut returned = core::mem::take(&mut self.reaped);
        self.sign_up(day);
        self.invite(day);
        now.births = self.give_birth(day, &mut load)?;
        let reaped = self.reap();
        now.reaps = u32::try_from(reaped.len()).unwrap_or(u32::MAX);
        load = load.plus(self.sizes.reap().times(reaped.len() as u64));
        now.published = self.end_lives(day, &mut load);
        if let Some(later) = self.later.remove(&day) {
            load = load.plus(later.load);
            now.reaps = now.reaps.saturating_add(later.reclaims);
            self.tail = self.tail.checked_sub(later.freed).unwrap_or(Amount::ZERO);
            returned = add(returned, later.freed);
        }
        // What is reaped today is free tomorrow: it is buried by then.
        self.account(&mut now);
        for index in reaped {
            if let Some(factory) = self.factories.get_mut(index) {
                factory.over = true;
                let model = self.models.get(&factory.size).map(FactoryModel::funding);
                self.reaped = add(self.reaped, model.unwrap_or(Amount::ZERO));
            }
        }
        now.funded_sat = core::mem::take(&mut self.funded).to_sat();
        now.returned_sat = returned.to_sat();
        now.txs = load.txs;
        now.vbytes = load.vbytes;
        now.fees_sat = load.vbytes.saturating_mul(feerate);
        Ok(now)
    }

    /// New clients, evenly over the days of one usual life so that later births are as large as
    /// the first (few clients: enough for a factory each day), and those that come back after their path was published.
    fn sign_up(&mut self, day: u32) {
        let clients = u64::from(self.params.clients);
        let days = u64::from(day).saturating_add(1);
        let least = u64::from(self.params.min_clients);
        let share = clients.saturating_mul(days);
        let share = share.checked_div(self.calendar.usual_life.into());
        let share = share.unwrap_or(clients).max(least.saturating_mul(days));
        // Nobody waits for weeks because the last are too few.
        let rest = clients.saturating_sub(share);
        let share = if rest < least { clients } else { share };
        let upto = u32::try_from(share).unwrap_or(self.params.clients);
        let returning = self.returning.remove(&day).unwrap_or_default();
        let new = self.signed_up..upto;
        self.waiting
            .extend(new.chain(returning).map(|client| Waiting {
                client,
                from: None,
                until: u32::MAX,
            }));
        self.signed_up = upto.max(self.signed_up);
    }

    /// Clients of dying factories that come to today's birth.
    fn invite(&mut self, day: u32) {
        let last = self.calendar.tries.last().copied().unwrap_or(0);
        for (number, age) in self.calendar.tries.clone().into_iter().enumerate() {
            let Some(birth) = day.checked_sub(age) else {
                continue;
            };
            let until = birth.saturating_add(last);
            for index in self.born.get(birth as usize).cloned().unwrap_or_default() {
                let Some(factory) = self.factories.get(index) else {
                    continue;
                };
                for (position, member) in factory.members.iter().enumerate() {
                    if self.comes_to(member) == Some(number) {
                        self.waiting.push(Waiting {
                            client: member.client,
                            from: Some((index, position)),
                            until,
                        });
                    }
                }
            }
        }
    }

    /// Which invitation a client answers at the end of this life.
    fn comes_to(&self, member: &Member) -> Option<usize> {
        let (client, life) = (member.client.into(), member.life.into());
        let draw = |salt: u64| {
            let number = mix(self.params.seed ^ salt, client, life);
            number.checked_rem(MILLION).unwrap_or(0)
        };
        // The same clients stay away, and more, when the rate is higher.
        if draw(1) < u64::from(self.params.no_show_ppm) {
            return None;
        }
        let draw = draw(2);
        let mut sum = 0u64;
        self.params.shows_ppm.iter().position(|share| {
            sum = sum.saturating_add(u64::from(*share));
            draw < sum
        })
    }

    /// Takes in all who wait, unless they are few and can wait longer.
    fn give_birth(&mut self, day: u32, load: &mut Load) -> Result<u32, PlanError> {
        self.waiting.retain(|waiting| waiting.until >= day);
        let count = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
        let least = self.params.min_clients.min(self.params.clients);
        let urgent = self.waiting.iter().any(|waiting| waiting.until == day);
        let due = count >= least || (urgent && count >= crate::shape::MIN_CLIENTS);
        self.born.push(Vec::new());
        if !due {
            return Ok(0);
        }
        let taken = core::mem::take(&mut self.waiting);
        let groups = count.div_ceil(self.params.factory_clients.max(LEAST_FACTORY));
        let mut taken = taken.into_iter();
        for group in 0..groups {
            let larger = count.checked_rem(groups).unwrap_or(0);
            let size = count.checked_div(groups).unwrap_or(0);
            let size = size.saturating_add(u32::from(group < larger));
            let inputs = FUNDING_INPUTS.saturating_add(core::mem::take(&mut self.fragments));
            *load = load.plus(self.sizes.funding(inputs));
            let joining: Vec<Waiting> = taken.by_ref().take(size as usize).collect();
            self.bear(day, size, &joining)?;
        }
        Ok(groups)
    }

    fn bear(&mut self, day: u32, size: u32, joining: &[Waiting]) -> Result<(), PlanError> {
        let model = match self.models.get(&size) {
            Some(model) => model,
            None => {
                let model = FactoryModel::new(&self.params.factory, size, self.params.capacity)?;
                self.models.entry(size).or_insert(model)
            }
        };
        self.funded = add(self.funded, model.funding());
        let index = self.factories.len();
        for waiting in joining {
            let Some((old, position)) = waiting.from else {
                continue;
            };
            let Some(factory) = self.factories.get_mut(old) else {
                continue;
            };
            if let Some(member) = factory.members.get_mut(position) {
                member.left = true;
                factory.inside = factory.inside.saturating_sub(1);
            }
        }
        let mut members = Vec::with_capacity(joining.len());
        for client in joining.iter().map(|waiting| waiting.client) {
            let Some(lives) = self.lives.get_mut(client as usize) else {
                continue;
            };
            members.push(Member {
                client,
                life: *lives,
                left: false,
            });
            *lives = lives.saturating_add(1);
        }
        self.factories.push(Factory {
            size,
            inside: size,
            over: false,
            members,
        });
        if let Some(born) = self.born.get_mut(day as usize) {
            born.push(index);
        }
        Ok(())
    }

    /// Factories that everybody has left.
    fn reap(&self) -> Vec<usize> {
        let all = self.factories.iter().enumerate();
        all.filter(|(_, factory)| !factory.over && factory.inside == 0)
            .map(|(index, _)| index)
            .collect()
    }

    /// Factories whose dying days are over: what is still in them is published, or waits for `T`.
    fn end_lives(&mut self, day: u32, load: &mut Load) -> u32 {
        let Some(birth) = day.checked_sub(self.calendar.end) else {
            return 0;
        };
        let mut published = 0u32;
        for index in self.born.get(birth as usize).cloned().unwrap_or_default() {
            let Some(factory) = self.factories.get_mut(index) else {
                continue;
            };
            if factory.over || factory.inside == 0 {
                continue;
            }
            factory.over = true;
            let away: Vec<bool> = factory.members.iter().map(|member| !member.left).collect();
            let back = day.saturating_add(self.calendar.exit);
            let stay = factory.members.iter().filter(|member| !member.left);
            let stay = stay.map(|member| member.client);
            self.returning.entry(back).or_default().extend(stay);
            let (inside, size) = (factory.inside, factory.size);
            let Some(model) = self.models.get(&size) else {
                continue;
            };
            let funding = model.funding();
            if has_timeouts(&self.params.factory) {
                published = published.saturating_add(inside);
                let publication = model.publish(&self.sizes, &away);
                *load = load.plus(publication.paths);
                self.publish(day, &publication);
            } else {
                let reclaim = Later {
                    load: self.sizes.reclaim(),
                    freed: funding,
                    reclaims: 1,
                };
                self.add_later(day.saturating_add(self.calendar.expiry), reclaim);
            }
            self.tail = add(self.tail, funding);
        }
        published
    }

    /// What follows the paths of a factory that ends today.
    fn publish(&mut self, day: u32, publication: &super::sizes::Publication) {
        let at = |later: u32| day.saturating_add(later);
        let (exit, stock, own) = (
            at(self.calendar.exit),
            at(self.calendar.stock),
            at(self.calendar.to_local),
        );
        // The commitments pay the clients their balances, and us the rest, later.
        let balances = share(publication.channels, self.params.balance_ppm);
        let ours = publication.channels.checked_sub(balances);
        let freed = Some(add(publication.recovered, balances));
        let sweeps = [
            publication.recovery,
            publication.stock_sweeps,
            publication.to_local,
        ];
        let fragments = sweeps.iter().map(|load| load.txs);
        self.fragments = fragments.fold(self.fragments, u64::saturating_add);
        let steps = [
            (
                exit,
                publication.commitments.plus(publication.recovery),
                freed,
            ),
            (stock, publication.stock_sweeps, Some(publication.stock)),
            (own, publication.to_local, ours),
        ];
        for (day, load, freed) in steps {
            self.add_later(
                day,
                Later {
                    load,
                    freed: freed.unwrap_or(Amount::ZERO),
                    reclaims: 0,
                },
            );
        }
    }

    fn add_later(&mut self, day: u32, more: Later) {
        let later = self.later.entry(day).or_default();
        later.load = later.load.plus(more.load);
        later.freed = add(later.freed, more.freed);
        later.reclaims = later.reclaims.saturating_add(more.reclaims);
    }

    /// Who is served, and what is locked, at the end of the day.
    fn account(&self, now: &mut Day) {
        let capacity = self.params.capacity.to_sat();
        let locked = &mut now.locked;
        let live = self.factories.iter().filter(|factory| !factory.over);
        for factory in live {
            let left = factory.size.saturating_sub(factory.inside);
            let of = |count: u32| capacity.saturating_mul(count.into());
            let stock = self.models.get(&factory.size).map(FactoryModel::stock);
            now.clients = now.clients.saturating_add(factory.inside);
            locked.channels_sat = locked.channels_sat.saturating_add(of(factory.inside));
            locked.double_sat = locked.double_sat.saturating_add(of(left));
            let stock = stock.unwrap_or(Amount::ZERO).to_sat();
            locked.stock_sat = locked.stock_sat.saturating_add(stock);
        }
        locked.tail_sat = self.tail.to_sat();
    }
}

fn add(a: Amount, b: Amount) -> Amount {
    a.checked_add(b).unwrap_or(Amount::MAX_MONEY)
}

fn share(amount: Amount, ppm: u32) -> Amount {
    let share = u128::from(amount.to_sat()).saturating_mul(ppm.into());
    let share = share.checked_div(MILLION.into()).unwrap_or(0);
    Amount::from_sat(u64::try_from(share).unwrap_or(u64::MAX)).min(amount)
}

/// A number from a seed and two more (SplitMix64): the same everywhere, for ever.
pub(super) const fn mix(seed: u64, a: u64, b: u64) -> u64 {
    const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut z = seed.wrapping_mul(GAMMA).wrapping_add(a);
    z = scramble(z).wrapping_add(b.wrapping_add(1).wrapping_mul(GAMMA));
    scramble(z)
}

const fn scramble(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
