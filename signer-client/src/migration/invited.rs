//! Whether an invitation is one out of a factory that ends, and whether its terms are good enough to take it unasked.

use bitcoin::Amount;
use channel_host::Msat;
use factory_tree::ceremony::message::Invitation;
use factory_tree::ids::FactoryId;
use factory_tree::ladder::capacity_for;
use factory_tree::params::Schedule;
use factory_tree::units::{Blocks, Height};

use super::calendar;
use crate::client::Inner;
use crate::error::Result;
use crate::event::Event;
use crate::lightning::{ChannelState, ChannelView};
use crate::store::FactoryRow;

/// A birth may be this much earlier than the last days of the factories it is for.
const EARLY: Blocks = Blocks(144);
/// What the coordinator must keep in a channel: parts per million of it, and at least an amount.
const RESERVE: (u32, Amount) = (10_000, Amount::from_sat(1000));

/// A live factory of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    factory: FactoryId,
    dying_from: Height,
    expiry: Height,
    /// Of all its channels.
    capacity: Amount,
    /// Our side of them.
    balance: Msat,
    /// What can be received over them.
    room: Msat,
}

/// Why an invitation is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Declined {
    /// Nobody asked, and nothing ends.
    #[error("this wallet did not ask for a factory")]
    Unasked,
    /// What ends has somewhere to go.
    #[error("this wallet has a younger factory with room already")]
    Provided,
    /// Too small.
    #[error(
        "capacity {} sat, but the balance of {} sat needs {} sat; pay some of it out, or ask for more with `join`",
        .offered.to_sat(), .balance.to_sat(), .needed.to_sat()
    )]
    TooSmall {
        /// The invitation's.
        offered: Amount,
        /// What is to move.
        balance: Amount,
        /// What that takes.
        needed: Amount,
    },
    /// Too dear.
    #[error(
        "{} sat for the next month, this wallet agrees to {} sat; raise migration.max_fee_sat to stay a client, or pay the balance out",
        .asked.to_sat(), .most.to_sat()
    )]
    TooDear {
        /// What it costs.
        asked: Amount,
        /// The configuration's limit.
        most: Amount,
    },
}

/// What an invitation is taken for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The factories that end.
    pub(crate) ending: Vec<FactoryId>,
    /// Their capacities.
    limit: Amount,
}

impl Declined {
    /// Whether the user can do something about it.
    pub(crate) const fn is_news(self) -> bool {
        matches!(self, Self::TooSmall { .. } | Self::TooDear { .. })
    }
}

/// The least capacity that takes a balance. The least that a part can be; what more a coordinator leaves is its own affair.
fn needed(balance: Amount) -> Amount {
    capacity_for(balance, Amount::ZERO, RESERVE)
}

/// What of `held` ends, and has nowhere to go.
fn ending(held: &[Held], height: Height) -> (Vec<Held>, bool) {
    let dies = |own: &&Held| height >= own.dying_from.minus(EARLY) && height < own.expiry;
    let dying: Vec<Held> = held.iter().filter(dies).copied().collect();
    let provided = |own: &Held| {
        let mut younger = held.iter().filter(|other| other.expiry > own.expiry);
        younger.any(|other| other.room >= own.balance)
    };
    let left: Vec<Held> = dying.iter().filter(|own| !provided(own)).copied().collect();
    (left, !dying.is_empty())
}

/// Whether these terms are taken for these factories.
fn judge(
    (capacity, fee): (Amount, Amount),
    held: &[Held],
    height: Height,
    most: Amount,
) -> Result<Wanted, Declined> {
    let (left, any) = ending(held, height);
    if left.is_empty() {
        return Err(if any {
            Declined::Provided
        } else {
            Declined::Unasked
        });
    }
    let msat = left.iter().map(|own| own.balance.0);
    let balance = Amount::from_sat(msat.fold(0, u64::saturating_add).div_ceil(1000));
    let needed = needed(balance);
    if capacity < needed {
        return Err(Declined::TooSmall {
            offered: capacity,
            balance,
            needed,
        });
    }
    within(fee, most)?;
    let limits = left.iter().map(|own| own.capacity.to_sat());
    Ok(Wanted {
        ending: left.iter().map(|own| own.factory).collect(),
        limit: Amount::from_sat(limits.fold(0, u64::saturating_add)),
    })
}

fn within(fee: Amount, most: Amount) -> Result<(), Declined> {
    match fee > most {
        true => Err(Declined::TooDear { asked: fee, most }),
        false => Ok(()),
    }
}

/// Whether the month costs no more than the user allows.
///
/// # Errors
/// [`Declined::TooDear`].
pub(crate) fn affordable(client: &Inner, fee: Amount) -> Result<(), Declined> {
    within(fee, Amount::from_sat(client.config.migration.max_fee_sat))
}

/// Nothing without a channel, and of what is being left: that comes home over the chain.
fn held(row: &FactoryRow, calendar: &Schedule, views: &[&ChannelView]) -> Option<Held> {
    let opened = views
        .iter()
        .filter(|view| view.state != ChannelState::Opening);
    let stands = opened.clone().all(|view| view.state == ChannelState::Open);
    let sum = |of: fn(&ChannelView) -> u64| {
        opened
            .clone()
            .fold(0, |sum, view| of(view).saturating_add(sum))
    };
    (stands && opened.clone().next().is_some()).then(|| Held {
        factory: row.factory,
        dying_from: calendar.dying_from,
        expiry: calendar.expiry,
        capacity: Amount::from_sat(sum(|view| view.capacity_sat)),
        balance: Msat(sum(|view| view.ours_msat)),
        room: Msat(sum(|view| view.receivable_msat)),
    })
}

/// Whether this invitation is for what ends.
///
/// # Errors
/// The store's.
pub(crate) async fn wanted(
    client: &Inner,
    invitation: &Invitation,
) -> Result<std::result::Result<Wanted, Declined>> {
    let channels = crate::lightning::current(client).await?;
    let mut own = Vec::new();
    for row in client.store.factories().await? {
        let Some(kit) = client
            .kits
            .sound(row.factory)
            .await?
            .filter(|_| row.stands())
        else {
            continue;
        };
        let views = channels
            .iter()
            .filter(|view| view.factory == Some(row.factory));
        let views: Vec<&ChannelView> = views.collect();
        own.extend(held(&row, &calendar(&kit), &views));
    }
    let height = Height(client.tip_height().await.unwrap_or(0));
    let most = Amount::from_sat(client.config.migration.max_fee_sat);
    let offer = (invitation.capacity, invitation.fee);
    let judged = judge(offer, &own, height, most);
    note(client, &judged, &own, invitation, height).await?;
    Ok(judged)
}

/// What the user should know: kept until an invitation is taken.
async fn note(
    client: &Inner,
    judged: &std::result::Result<Wanted, Declined>,
    own: &[Held],
    invitation: &Invitation,
    height: Height,
) -> Result<()> {
    match judged {
        Ok(wanted) => {
            for factory in &wanted.ending {
                client.store.set_decline(*factory, None).await?;
            }
            if invitation.capacity < wanted.limit {
                client.events.emit(Event::LimitLower {
                    from_sat: wanted.limit.to_sat(),
                    to_sat: invitation.capacity.to_sat(),
                });
            }
        }
        Err(declined) if declined.is_news() => {
            let why = declined.to_string();
            for own in ending(own, height).0 {
                let note = Some((why.as_str(), height));
                client.store.set_decline(own.factory, note).await?;
            }
        }
        Err(_) => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Amount = Amount::from_sat(5000);

    fn own(n: u8, expiry: u32, balance_sat: u64) -> Held {
        let capacity = Amount::from_sat(200_000);
        Held {
            factory: FactoryId([n; 32]),
            dying_from: Height(expiry - 1000),
            expiry: Height(expiry),
            capacity,
            balance: Msat(balance_sat * 1000),
            room: Msat((198_000 - balance_sat.min(198_000)) * 1000),
        }
    }

    fn judged(capacity: u64, fee: u64, held: &[Held], height: u32) -> Result<Wanted, Declined> {
        let offer = (Amount::from_sat(capacity), Amount::from_sat(fee));
        judge(offer, held, Height(height), MOST)
    }

    #[test]
    fn only_what_ends_is_moved_unasked() {
        let held = [own(1, 5000, 100_000)];
        let at = |height| judged(200_000, 0, &held, height);
        assert_eq!(at(3855), Err(Declined::Unasked));
        // A birth before the first of the last days is for them.
        assert!(at(3856).is_ok());
        assert!(at(4999).is_ok());
        assert_eq!(at(5000), Err(Declined::Unasked));
        assert_eq!(judged(200_000, 0, &[], 4500), Err(Declined::Unasked));
    }

    #[test]
    fn a_younger_factory_with_room_is_enough() {
        let (old, young) = (own(1, 5000, 100_000), own(2, 8000, 0));
        let both = |young| judged(200_000, 0, &[old, young], 4500);
        assert_eq!(both(young), Err(Declined::Provided));
        let full = Held {
            room: Msat(99_999_999),
            ..young
        };
        assert_eq!(both(full).unwrap().ending, [FactoryId([1; 32])]);
        // An older one is none.
        let older = own(2, 4900, 0);
        assert_eq!(both(older).unwrap().ending.len(), 1);
    }

    #[test]
    fn the_balance_must_fit_with_reserve_and_a_part() {
        assert_eq!(needed(Amount::from_sat(100_000)).to_sat(), 102_021);
        assert_eq!(needed(Amount::from_sat(10_000)).to_sat(), 11_100);
        let held = [own(1, 5000, 100_000)];
        assert!(judged(102_021, 0, &held, 4500).is_ok());
        let small = judged(102_020, 0, &held, 4500).unwrap_err();
        assert!(matches!(small, Declined::TooSmall { .. }));
        assert!(small.to_string().contains("102021"), "{small}");
        // What two factories that end hold goes into one.
        let both = [own(1, 5000, 100_000), own(2, 5001, 150_000)];
        let two = judged(200_000, 0, &both, 4500).unwrap_err();
        assert!(matches!(two, Declined::TooSmall { .. }));
        // Who has nothing keeps the account.
        assert!(judged(20_000, 0, &[own(1, 5000, 0)], 4500).is_ok());
    }

    #[test]
    fn the_month_costs_no_more_than_the_user_said() {
        let held = [own(1, 5000, 100_000)];
        assert!(judged(200_000, 5000, &held, 4500).is_ok());
        let dear = judged(200_000, 5001, &held, 4500).unwrap_err();
        assert!(matches!(dear, Declined::TooDear { .. }));
        assert!(dear.to_string().contains("migration.max_fee_sat"), "{dear}");
        assert!(dear.is_news());
    }
}
