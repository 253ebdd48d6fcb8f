//! What the next days bring if everybody comes to its first invitation, nobody joins and nobody leaves: births, reaps, the capital they take
//! and the fees they cost. For the operator's calendar, not for decisions.

use bitcoin::Amount;
use serde::{Deserialize, Serialize};

use super::params::LadderParams;
use super::view::{FactoryFacts, Funding, Ladder, Progress, Root};
use crate::capital::sizes::Sizes;
use crate::params::FactoryParams;
use crate::plan;
use crate::units::{Blocks, Height};

/// Blocks our own money waits after our commitment; only a size depends on it here.
const TO_SELF_DELAY: u16 = 144;

/// One day (a spacing of births) to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForecastDay {
    /// 0 is today.
    pub day: u32,
    /// Its first height.
    pub height: Height,
    /// Factories born.
    pub births: u32,
    /// Clients that move into them.
    pub clients: u32,
    /// Factories whose coins come back.
    pub reaps: u32,
    /// Locked in factories at its end.
    pub locked: Amount,
    /// What must come from the wallet before this day's reaps are there.
    pub needed: Amount,
    /// Feerate times the sizes of its transactions.
    pub chain_fees: Amount,
}

struct Rung {
    locked: Amount,
    capacity: Amount,
    clients: u32,
    dying_from: Height,
    publish_from: Height,
    /// When its coins come back, once its clients have moved.
    reaped_at: Option<Height>,
}

impl Rung {
    fn of(facts: &FactoryFacts) -> Option<Self> {
        let live = matches!(facts.root, Root::Unspent | Root::ReapSent)
            && !matches!(facts.funding, Funding::Dead { .. });
        let staying = facts
            .members
            .iter()
            .filter(|member| matches!(member.progress, Progress::In | Progress::Invited { .. }));
        let sum = |members: &mut dyn Iterator<Item = Amount>| {
            crate::tx::checked_sum(members).unwrap_or(Amount::MAX_MONEY)
        };
        let all = sum(&mut facts.members.iter().map(|member| member.capacity));
        live.then(|| Self {
            locked: all.checked_add(facts.stock).unwrap_or(Amount::MAX_MONEY),
            capacity: sum(&mut staying.clone().map(|member| member.capacity)),
            clients: u32::try_from(staying.count()).unwrap_or(u32::MAX),
            dying_from: facts.schedule.dying_from,
            publish_from: facts.schedule.publish_from,
            reaped_at: None,
        })
    }
}

/// `days` from today at `height`, new factories with `factory`'s parameters, transactions at `feerate` sat/vB. Nothing where the
/// parameters make no factory.
#[must_use]
pub fn forecast(
    (params, factory): (&LadderParams, &FactoryParams),
    height: Height,
    view: &Ladder,
    days: u32,
    feerate: u64,
) -> Vec<ForecastDay> {
    let Some(sizes) = Sizes::measure(factory, TO_SELF_DELAY) else {
        return Vec::new();
    };
    let settle = params.settle(factory);
    let mut rungs: Vec<Rung> = view.factories.iter().filter_map(Rung::of).collect();
    let mut list = Vec::new();
    for day in 0..days {
        let now = height.plus(Blocks(params.spacing).times(day));
        let born = birth(factory, now, settle, &mut rungs);
        let reaped = |rung: &Rung| rung.reaped_at.is_some_and(|at| at <= now);
        let reaps = rungs.iter().filter(|rung| reaped(rung)).count();
        let reaps = u32::try_from(reaps).unwrap_or(u32::MAX);
        let sum = |rungs: &[Rung]| {
            let locked = rungs.iter().map(|rung| rung.locked);
            crate::tx::checked_sum(locked).unwrap_or(Amount::MAX_MONEY)
        };
        rungs.retain(|rung| !reaped(rung));
        let births = u32::from(born.is_some());
        let (clients, needed) = born
            .as_ref()
            .map_or((0, Amount::ZERO), |born| (born.clients, born.locked));
        rungs.extend(born);
        let load = sizes
            .funding(1)
            .times(births.into())
            .plus(sizes.reap().times(reaps.into()));
        list.push(ForecastDay {
            day,
            height: now,
            births,
            clients,
            reaps,
            locked: sum(&rungs),
            needed,
            chain_fees: Amount::from_sat(load.vbytes.saturating_mul(feerate)),
        });
    }
    list
}

/// The factory of this day: everybody whose dying days have begun moves into it.
fn birth(factory: &FactoryParams, now: Height, settle: Blocks, rungs: &mut [Rung]) -> Option<Rung> {
    let mut leaving: Vec<&mut Rung> = rungs
        .iter_mut()
        .filter(|rung| rung.dying_from <= now && rung.reaped_at.is_none())
        .collect();
    let clients = leaving.iter().map(|rung| rung.clients);
    let clients = clients.fold(0u32, u32::saturating_add);
    let capacity = crate::tx::checked_sum(leaving.iter().map(|rung| rung.capacity));
    let capacity = capacity.unwrap_or(Amount::MAX_MONEY);
    for rung in &mut leaving {
        // Those that have moved already, or whose keys are here, are settled as well.
        rung.reaped_at = Some(now.plus(settle).min(rung.publish_from.max(now)));
    }
    let stock = plan::stock_amount(factory, capacity, clients).unwrap_or(Amount::ZERO);
    (clients > 0).then(|| Rung {
        locked: capacity.checked_add(stock).unwrap_or(Amount::MAX_MONEY),
        capacity,
        clients,
        dying_from: now.plus(Blocks(factory.active)),
        publish_from: now.plus(Blocks(factory.active)).plus(Blocks(factory.dying)),
        reaped_at: None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bitcoin::Network;

    use super::*;
    use crate::ids::{ClientId, FactoryId};
    use crate::ladder::MemberFacts;
    use crate::shape::Shape;

    fn facts(byte: u8, birth: u32) -> FactoryFacts {
        let params = FactoryParams::profile(crate::params::Profile::Lite, Network::Regtest);
        let shape = Shape::new(&params, 4).unwrap();
        let members = (0..4).map(|client| MemberFacts {
            client: ClientId([client; 33]),
            capacity: Amount::from_sat(100_000),
            balance: Amount::ZERO,
            progress: Progress::In,
            warned: None,
        });
        FactoryFacts {
            id: FactoryId([byte; 32]),
            rung: u32::from(byte),
            schedule: params.schedule(Height(birth), shape.levels()).unwrap(),
            params,
            funding: Funding::Confirmed { at: Height(birth) },
            root: Root::Unspent,
            stock: Amount::from_sat(200_000),
            members: members.collect(),
            loss_reported: None,
        }
    }

    #[test]
    fn each_factory_is_replaced_once_in_its_dying_days_and_comes_back() {
        let view = Ladder {
            first: Height(1_000),
            factories: vec![facts(0, 1_000), facts(1, 1_144)],
            given_up: BTreeSet::new(),
        };
        let params = LadderParams::default();
        let factory = view.factories[0].params.clone();
        let days = forecast((&params, &factory), Height(1_144), &view, 60, 5);
        assert_eq!(days.len(), 60);
        let born: Vec<u32> = days
            .iter()
            .filter(|day| day.births > 0)
            .map(|day| day.day)
            .collect();
        // Active for 30 days of 144 blocks; the first was born a day before today.
        assert_eq!(born, [29, 30, 59]);
        assert_eq!(days.iter().map(|day| day.reaps).sum::<u32>(), 2);
        assert_eq!(days[0].locked, Amount::from_sat(1_200_000));
        assert_eq!(
            days[58].locked,
            Amount::from_sat(1_200_000),
            "both replaced"
        );
        assert_eq!(days[29].needed, Amount::from_sat(600_000));
        assert!(days[29].chain_fees > Amount::ZERO);
        assert_eq!(days[40].chain_fees, Amount::ZERO);
        let overlap = days.iter().map(|day| day.locked).max().unwrap();
        assert!(overlap > Amount::from_sat(1_200_000), "old and new at once");
    }
}
