//! A balance on its way from a dying factory to a younger one (protocol.md section 7.2 and 7.3).
//!
//! | progress | new funding | before E | from E on |
//! |---|---|---|---|
//! | new channel, moving | usable | move, until the last part's expiry would come too late | - |
//! | moved | buried by `handover_depth` | ask for the keys | the same |
//! | any | not so deep | wait | wait |

use bitcoin::Amount;

use super::due::Due;
use super::params::LadderParams;
use super::view::{FactoryFacts, Ladder, MemberFacts, Progress, Root};
use crate::params::Schedule;
use crate::units::{Blocks, Height};

/// A part's outgoing expiry lies this far behind the younger factory's exit delay.
const OUT_MARGIN: Blocks = Blocks(144);
/// And this far before the dying factory's last spends.
const END_MARGIN: Blocks = Blocks(48);
/// Its incoming expiry lies this far behind the outgoing one and both exit delays.
const IN_MARGIN: Blocks = Blocks(72);
/// LDK's claim buffer.
const CLAIM_BUFFER: Blocks = Blocks(36);

/// Blocks a part needs before `T - late_margin` beside the younger factory's exit delay.
pub(super) const fn part_room() -> u32 {
    OUT_MARGIN.plus(END_MARGIN).plus(Blocks(1)).0
}

/// The least part but the last, in msat: a smaller one is not worth its round to either side.
pub const LEAST_PART_MSAT: u64 = 1_000_000;

/// What of the fee that was agreed to with the invitation is due for a move of `total`, in msat: nothing where it would eat more than half of it.
#[must_use]
pub const fn fee_due(total_msat: u64, agreed_msat: u64) -> u64 {
    match total_msat < agreed_msat.saturating_mul(2) {
        true => 0,
        false => agreed_msat,
    }
}

/// Why no part may begin any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a part begun at {height} would expire too late: the last may begin at {last}")]
pub struct PartError {
    /// When it would begin.
    pub height: Height,
    /// The last height for it.
    pub last: Height,
}

/// The expiries of one part's two payments under one hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartExpiries {
    /// Of the payment to the client, over the new channel.
    pub outgoing: Height,
    /// Of the payment to us, over the old one; it may outlive the old factory's `T`.
    pub incoming: Height,
}

/// The least expiries of a part that begins at `height`.
///
/// # Errors
/// [`PartError`] when the outgoing one would come too close to the dying factory's end.
pub fn part_expiries(
    height: Height,
    old: &Schedule,
    new: &Schedule,
) -> Result<PartExpiries, PartError> {
    let last = last_part(old, new.exit_delay);
    if height > last {
        return Err(PartError { height, last });
    }
    let outgoing = height.plus(new.exit_delay).plus(OUT_MARGIN);
    Ok(PartExpiries {
        outgoing,
        incoming: outgoing
            .plus(new.exit_delay)
            .plus(old.exit_delay)
            .plus(IN_MARGIN),
    })
}

/// The last height at which a part may begin, from a factory with this calendar into one with
/// this exit delay.
#[must_use]
pub const fn last_part(old: &Schedule, new_exit_delay: Blocks) -> Height {
    old.last_spend
        .minus(Blocks(part_room()))
        .minus(new_exit_delay)
}

/// When the dying factory's channel is published because of a part that is not resolved, whether
/// its preimage is known or not.
#[must_use]
pub fn publish_by(old: &Schedule, incoming: Height) -> Height {
    let enforce = incoming.minus(old.exit_delay).minus(CLAIM_BUFFER);
    old.publish_from.min(enforce)
}

/// The most that one part may carry of a `balance` (as it was when the move began): what a client
/// that cannot pay for its new path may lose is 1 % or the exit fee, whichever is more; with fee
/// coins a quarter.
#[must_use]
pub fn largest_part(balance: Amount, exit_fee: Amount, has_fee_coins: bool) -> Amount {
    let share = match has_fee_coins {
        true => Amount::from_sat(balance.to_sat().div_ceil(4)),
        false => Amount::from_sat(balance.to_sat().div_ceil(100)).max(exit_fee),
    };
    share.min(balance)
}

pub(super) fn due(
    params: &LadderParams,
    height: Height,
    view: &Ladder,
    facts: &FactoryFacts,
    list: &mut Vec<Due>,
) {
    if matches!(facts.root, Root::Reaped { .. } | Root::TimedOut { .. }) {
        return;
    }
    for member in &facts.members {
        match member.progress {
            Progress::NewChannel { factory } | Progress::Moving { factory, .. } => {
                let Some(new) = view.factory(factory) else {
                    continue;
                };
                let last_part = last_part(&facts.schedule, new.schedule.exit_delay);
                let in_time = height < facts.schedule.publish_from && height <= last_part;
                if in_time && new.funding.depth(height) >= params.usable_depth {
                    list.push(Due::Move {
                        client: member.client,
                        from: facts.id,
                        to: factory,
                        last_part,
                    });
                }
            }
            Progress::Moved { factory } if may_hand_over(params, height, view, member) => {
                list.push(Due::Handover {
                    client: member.client,
                    from: facts.id,
                    to: factory,
                });
            }
            _ => {}
        }
    }
}

/// Whether a client may hand over its old keys: balance 0, nothing in flight, and the new funding
/// buried (attacks.md A17). To be asked again in the step that takes the keys.
#[must_use]
pub fn may_hand_over(
    params: &LadderParams,
    height: Height,
    view: &Ladder,
    member: &MemberFacts,
) -> bool {
    let Progress::Moved { factory } = member.progress else {
        return false;
    };
    let depth = view.factory(factory).map(|new| new.funding.depth(height));
    member.balance == Amount::ZERO && depth.is_some_and(|depth| depth >= params.handover_depth)
}
