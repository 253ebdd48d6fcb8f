//! What is known of one factory that ends, and of the one it moves to.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;

use bitcoin::{Amount, FeeRate};
use channel_host::{ChannelView, LeafId, Msat, Stage};
use factory_tree::ids::FactoryId;
use factory_tree::kit::{ExitKit, KitChannel, KitTx};
use factory_tree::tx::CHILD_VBYTES;
use factory_tree::units::Height;

use super::calendar;
use super::decide::{Facts, New, Old, fee_left};
use super::lane::Lane;
use crate::client::Inner;
use crate::error::{Error, Result};
use crate::exit::{RELAXED_TARGET, path_is_paid};
use crate::lightning::{name_of, way};
use crate::store::{FactoryRow, PartProgress, PartRow};
use crate::watch::depth;

/// What is asked once for all factories of a look.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) lane: Arc<dyn Lane>,
    pub(super) height: Height,
    pub(super) rows: Vec<FactoryRow>,
    channels: Vec<ChannelView>,
    /// What somebody takes to the chain.
    leaving: HashSet<FactoryId>,
}

/// A factory and its kit.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) row: FactoryRow,
    pub(super) kit: Arc<ExitKit>,
}

/// One move, as it stands.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) old: Place,
    pub(super) new: Option<Place>,
    /// The channels that a part leaves and arrives in.
    pub(super) leaves: Option<(LeafId, LeafId)>,
    pub(super) facts: Facts,
}

/// A channel of a factory that stands.
type Standing<'a> = (KitChannel, &'a ChannelView);

impl Scene {
    pub(super) async fn look(client: &Inner, lane: Arc<dyn Lane>) -> Result<Self> {
        let rows = client.store.factories().await?;
        let exits = client.store.exits().await?;
        Ok(Self {
            channels: lane.channels(),
            lane,
            height: Height(client.followed_height()),
            rows,
            leaving: exits.into_iter().map(|exit| exit.factory).collect(),
        })
    }

    /// Asks the node for something that it may write to its disk.
    pub(super) async fn on_lane<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Lane) -> T + Send + 'static,
    ) -> Result<T> {
        let lane = Arc::clone(&self.lane);
        tokio::task::spawn_blocking(move || work(lane.as_ref()))
            .await
            .map_err(|error| Error::Task(error.to_string()))
    }

    /// The channels of a factory, if nobody takes one of them to the chain. A bought one that was not opened yet is none.
    fn standing(&self, place: &Place) -> Option<Vec<Standing<'_>>> {
        if self.leaving.contains(&place.row.factory) {
            return None;
        }
        let mut standing = Vec::new();
        for channel in place.kit.channels() {
            let id = name_of(&channel);
            let leaf = self.lane.leaf(id);
            let opened = |stage| !matches!(stage, Stage::Expected | Stage::Opening);
            if channel.sale.is_some() && !leaf.as_ref().is_some_and(|leaf| opened(leaf.stage)) {
                continue;
            }
            let leaf = leaf?;
            let stands = leaf.stage == Stage::Open && !leaf.exiting && leaf.spent.is_none();
            let mut views = self.channels.iter().filter(|_| stands);
            let view = views.find(|view| view.leaf == Some(id))?;
            standing.push((channel, view));
        }
        Some(standing)
    }

    async fn place(client: &Inner, row: &FactoryRow) -> Result<Option<Place>> {
        let kit = client.kits.sound(row.factory).await?;
        Ok(kit.map(|kit| Place {
            row: row.clone(),
            kit,
        }))
    }

    /// The youngest other factory that is used, outlives this one, and has room for so much; if none has, the one with the most.
    async fn younger(
        &self,
        client: &Inner,
        old: &FactoryRow,
        balance: Msat,
    ) -> Result<Option<Place>> {
        let mut younger: Vec<&FactoryRow> = self
            .rows
            .iter()
            .filter(|row| row.stands() && row.expiry > old.expiry)
            .collect();
        younger.sort_by_key(|row| Reverse(row.expiry));
        let mut roomiest: Option<(Msat, Place)> = None;
        for row in younger {
            let Some(place) = Self::place(client, row).await? else {
                continue;
            };
            let Some(standing) = self.standing(&place) else {
                continue;
            };
            let room = sum(&standing, |view| view.receivable);
            if room >= balance {
                return Ok(Some(place));
            }
            if roomiest.as_ref().is_none_or(|(most, _)| room > *most) {
                roomiest = Some((room, place));
            }
        }
        Ok(roomiest.map(|(_, place)| place))
    }

    /// Confirmations of a factory that something moved to.
    fn depth_of(&self, to: FactoryId) -> u32 {
        let Some(row) = self.rows.iter().find(|row| row.factory == to) else {
            return 0;
        };
        // What went on from there was deep enough then.
        if row.is_given_away() {
            return u32::MAX;
        }
        let confirmed = row.confirmed.filter(|_| row.usable);
        confirmed.map_or(0, |at| depth(at, self.height))
    }

    /// All there is to know about moving out of this factory; `part`: one that is under way. Nothing if its kit is no good.
    pub(super) async fn case(
        &self,
        client: &Inner,
        row: &FactoryRow,
        part: Option<&PartRow>,
    ) -> Result<Option<Case>> {
        let Some(old) = Self::place(client, row).await? else {
            return Ok(None);
        };
        let standing = self.standing(&old);
        let own = standing.as_deref().unwrap_or_default();
        let balance = sum(own, |view| view.spendable);
        let from = chosen(own, part.map(|part| part.from_leaf), |view| view.spendable);
        let new = match part {
            None => self.younger(client, row, balance).await?,
            Some(part) => match self.rows.iter().find(|row| row.factory == part.to) {
                Some(row) => Self::place(client, row).await?,
                None => None,
            },
        };
        let younger = new.as_ref().and_then(|new| self.standing(new));
        let to = chosen(
            younger.as_deref().unwrap_or_default(),
            part.map(|part| part.to_leaf),
            |view| view.receivable,
        );
        let total = client.store.moves().await?;
        let total = total.iter().find(|begun| begun.from == row.factory);
        let parts = client.store.parts(row.factory).await?;
        let shallowest = shallowest(&parts, row.factory, |to| self.depth_of(to));
        let facts = Facts {
            height: self.height,
            handover_depth: client.config.migration.handover_depth,
            old: Old {
                calendar: calendar(&old.kit),
                stands: standing.is_some(),
                usable: from.is_some_and(|(_, view)| view.usable),
                balance,
                next: from.map_or(Msat(0), |(_, view)| view.spendable),
                pending: own.iter().map(|(_, view)| view.pending).sum(),
            },
            new: match &new {
                Some(new) => {
                    let total = total.map_or(balance, |begun| begun.total);
                    let mut new = self.destination(client, new, to, total).await?;
                    new.depth = shallowest.map_or(new.depth, |depth| depth.min(new.depth));
                    Some(new)
                }
                None => None,
            },
            total: total.map(|begun| begun.total),
        };
        let name = |(channel, _): Standing<'_>| name_of(&channel);
        Ok(Some(Case {
            leaves: from.map(name).zip(to.map(name)),
            old,
            new,
            facts,
        }))
    }

    async fn destination(
        &self,
        client: &Inner,
        place: &Place,
        to: Option<Standing<'_>>,
        total: Msat,
    ) -> Result<New> {
        let parts = client.store.parts(place.row.factory).await?;
        let agreed = Msat(place.row.fee.to_sat().saturating_mul(1000));
        let feerate = client.chain.fee_rate(RELAXED_TARGET).await?;
        let sizes: Vec<u64> = match to {
            Some((channel, _)) => way(&place.kit, &channel).map(KitTx::vbytes).collect(),
            None => place.kit.path().map(KitTx::vbytes).collect(),
        };
        let sizes = || sizes.iter().copied();
        let confirmed = place.row.confirmed.filter(|_| place.row.usable);
        Ok(New {
            calendar: calendar(&place.kit),
            stands: to.is_some() && place.row.stands(),
            usable: to.is_some_and(|(_, view)| view.usable),
            room: to.map_or(Msat(0), |(_, view)| view.receivable),
            depth: confirmed.map_or(0, |at| depth(at, self.height)),
            exit_fee: exit_fee(sizes(), feerate),
            has_fee_coins: path_is_paid(&client.coin_values().await, sizes(), feerate),
            fee_left: fee_left(total, agreed, paid(&parts, place.row.factory)),
        })
    }
}

fn sum(channels: &[Standing<'_>], of: impl Fn(&ChannelView) -> Msat) -> Msat {
    let amounts = channels.iter().map(|(_, view)| of(view).0);
    Msat(amounts.fold(0, u64::saturating_add))
}

/// The channel of a part that is under way, or for the next one the channel with the most: of those to leave it pays the fee, of those to
/// arrive in it takes the most.
fn chosen<'a>(
    channels: &[Standing<'a>],
    named: Option<LeafId>,
    most: impl Fn(&ChannelView) -> Msat,
) -> Option<Standing<'a>> {
    let mut all = channels.iter().copied();
    match named {
        Some(leaf) => all.find(|(channel, _)| name_of(channel) == leaf),
        None => all.min_by_key(|(_, view)| Reverse(most(view))),
    }
}

/// Confirmations of the shallowest factory that parts of this one went to: the old keys are worth what is there, not what is elsewhere.
fn shallowest(
    parts: &[PartRow],
    from: FactoryId,
    depth_of: impl Fn(FactoryId) -> u32,
) -> Option<u32> {
    let moved = |part: &&PartRow| part.from == from && part.progress == PartProgress::Moved;
    let depths = parts.iter().filter(moved).map(|part| depth_of(part.to));
    depths.min()
}

/// What parts into a factory have paid for it, or may have.
fn paid(parts: &[PartRow], to: FactoryId) -> Msat {
    let counts = |part: &&PartRow| {
        let may = matches!(part.progress, PartProgress::Agreed | PartProgress::Moved);
        part.to == to && may
    };
    let fees = parts.iter().filter(counts).filter_map(|part| part.agreed);
    Msat(fees.fold(0, |sum, agreed| sum.saturating_add(agreed.fee.0)))
}

/// What a path of transactions without fees costs, each with its child.
fn exit_fee(sizes: impl Iterator<Item = u64>, feerate: FeeRate) -> Amount {
    let vbytes = sizes.fold(0u64, |sum, vbytes| {
        sum.saturating_add(vbytes).saturating_add(CHILD_VBYTES)
    });
    feerate.fee_vb(vbytes).unwrap_or(Amount::MAX_MONEY)
}

#[cfg(test)]
mod tests {
    use channel_host::PaymentHash;

    use super::*;
    use crate::store::{Agreed, Token};

    fn part(to: u8, progress: PartProgress, fee: u64) -> PartRow {
        PartRow {
            hash: PaymentHash([to; 32]),
            from: FactoryId([9; 32]),
            to: FactoryId([to; 32]),
            from_leaf: LeafId([9; 16]),
            to_leaf: LeafId([to; 16]),
            amount: Msat(1),
            token: Token([0; 32]),
            asked: Height(1),
            progress,
            agreed: Some(Agreed {
                token: Token([0; 32]),
                fee: Msat(fee),
                incoming: Height(1),
                outgoing: Height(1),
            }),
            failure: None,
        }
    }

    #[test]
    fn a_fee_that_came_back_is_not_paid() {
        let parts = [
            part(1, PartProgress::Moved, 300),
            part(1, PartProgress::Agreed, 40),
            part(1, PartProgress::Failed, 5_000),
            // For another month.
            part(2, PartProgress::Moved, 60_000),
        ];
        assert_eq!(paid(&parts, FactoryId([1; 32])), Msat(340));
        assert_eq!(paid(&parts, FactoryId([3; 32])), Msat(0));
    }

    /// A deep third factory says nothing of the one the money went to.
    #[test]
    fn keys_wait_for_the_factory_that_has_the_money() {
        let parts = [
            part(1, PartProgress::Moved, 0),
            part(2, PartProgress::Moved, 0),
            part(3, PartProgress::Failed, 0),
        ];
        let depth_of = |to: FactoryId| u32::from(to.0[0]) * 10;
        let of = |from: u8| shallowest(&parts, FactoryId([from; 32]), depth_of);
        assert_eq!(of(9), Some(10));
        assert_eq!(of(8), None, "nothing moved from there");
    }

    #[test]
    fn leaving_costs_the_path_with_its_children() {
        let rate = FeeRate::from_sat_per_vb_u32(2);
        let fee = exit_fee([100, 200].into_iter(), rate);
        assert_eq!(fee.to_sat(), 2 * (300 + 2 * CHILD_VBYTES));
    }
}
