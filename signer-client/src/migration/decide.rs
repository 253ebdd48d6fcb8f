//! What is due for one factory that ends, from what is known now. Pure: whoever asks again gets the same answer.
//!
//! | the old channels | the younger one | next |
//! |---|---|---|
//! | one is being left | any | nothing: the exit brings the money |
//! | one holds something | stands, has room | a part out of the one that holds the most, while one can begin in time |
//! | none holds anything, nothing pending | its funding is deep enough | the keys |

use bitcoin::Amount;
use channel_host::Msat;
use factory_tree::ladder::{LEAST_PART_MSAT, fee_due, largest_part, last_part};
use factory_tree::params::Schedule;
use factory_tree::units::Height;

const LEAST: Msat = Msat(LEAST_PART_MSAT);

/// The factory that ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Old {
    pub(super) calendar: Schedule,
    /// Its channels stand, and nobody takes one of them to the chain.
    pub(super) stands: bool,
    /// The coordinator is there.
    pub(super) usable: bool,
    /// Our side of them all.
    pub(super) balance: Msat,
    /// Our side of the one that a part leaves.
    pub(super) next: Msat,
    /// Payments under way in them.
    pub(super) pending: usize,
}

/// The younger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct New {
    pub(super) calendar: Schedule,
    pub(super) stands: bool,
    pub(super) usable: bool,
    /// What can be received over the channel that a part arrives in.
    pub(super) room: Msat,
    /// Confirmations of its funding.
    pub(super) depth: u32,
    /// What its path costs to publish now.
    pub(super) exit_fee: Amount,
    /// Whether the wallet's coins pay that.
    pub(super) has_fee_coins: bool,
    /// What was agreed to for it, and is not paid.
    pub(super) fee_left: Msat,
}

/// All that a decision needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) height: Height,
    pub(super) handover_depth: u32,
    pub(super) old: Old,
    pub(super) new: Option<New>,
    /// What there was when the move began, if it did.
    pub(super) total: Option<Msat>,
}

/// Why nothing is due now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Rest {
    #[error("its last days have not begun")]
    NotDying,
    #[error("it is being left: what is yours comes to you over the chain")]
    Leaving,
    #[error("there is no younger factory yet; the coordinator invites to one each day")]
    NoNew,
    #[error("the coordinator's Lightning node is not there")]
    Away,
    #[error("too late to move: what is left comes to you over the chain")]
    TooLate,
    #[error("the younger channel has no room for it")]
    NoRoom,
    #[error("payments are under way in it")]
    Pending,
    #[error("the younger factory has {depth} of {needed} confirmations")]
    Shallow { depth: u32, needed: u32 },
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// So much is to arrive in the younger channel.
    Part(Msat),
    /// The keys.
    HandOver,
    /// Nothing now.
    Rest(Rest),
}

/// What of the agreed fee a move of `total` still has to pay.
pub(super) const fn fee_left(total: Msat, agreed: Msat, paid: Msat) -> Msat {
    Msat(fee_due(total.0, agreed.0).saturating_sub(paid.0))
}

/// What is due, if no part is under way.
pub(super) fn decide(facts: &Facts) -> Next {
    let old = &facts.old;
    if facts.height < old.calendar.dying_from {
        return Next::Rest(Rest::NotDying);
    }
    if !old.stands {
        return Next::Rest(Rest::Leaving);
    }
    let Some(new) = &facts.new else {
        return Next::Rest(Rest::NoNew);
    };
    if old.balance == Msat(0) {
        return match may_hand_over(facts, false) {
            Ok(()) => Next::HandOver,
            Err(rest) => Next::Rest(rest),
        };
    }
    // From E on the coordinator publishes; and a part that begins too late would expire too late (protocol.md 7.2).
    let end = last_part(&old.calendar, new.calendar.exit_delay);
    if facts.height >= old.calendar.publish_from || facts.height > end {
        return Next::Rest(Rest::TooLate);
    }
    if !(old.usable && new.stands && new.usable) {
        return Next::Rest(Rest::Away);
    }
    match part(facts, new) {
        Some(amount) => Next::Part(amount),
        None => Next::Rest(Rest::NoRoom),
    }
}

/// The next part: what may be risked at once, what is left beside the fee, what there is room for.
fn part(facts: &Facts, new: &New) -> Option<Msat> {
    let balance = facts.old.next;
    let total = facts.total.unwrap_or(facts.old.balance);
    let whole = Amount::from_sat(total.0.div_ceil(1000));
    let largest = largest_part(whole, new.exit_fee, new.has_fee_coins);
    let largest = Msat(largest.to_sat().saturating_mul(1000));
    // A fee that nobody took by the end is moved as well.
    let rest = match balance.0.checked_sub(new.fee_left.0) {
        Some(0) | None => balance,
        Some(rest) => Msat(rest),
    };
    let wanted = largest.max(LEAST).min(rest);
    let amount = wanted.min(new.room);
    let worth_it = amount == wanted || amount >= LEAST;
    (worth_it && amount > Msat(0)).then_some(amount)
}

/// Whether the keys may be given away now: nothing is left in the old channels or under way, and no reorg takes the younger one
/// (protocol.md section 7.3). Asked again in the step that sends them. `sent`: they were sent before, so the channels may be gone by now, as the
/// coordinator retires them before it answers.
///
/// # Errors
/// What there is to wait for.
pub(super) fn may_hand_over(facts: &Facts, sent: bool) -> Result<(), Rest> {
    let (old, needed) = (&facts.old, facts.handover_depth.max(1));
    let new = facts.new.as_ref().ok_or(Rest::NoNew)?;
    if !old.stands && !sent {
        return Err(Rest::Leaving);
    }
    // After T nobody needs them.
    if facts.height >= old.calendar.expiry {
        return Err(Rest::TooLate);
    }
    if old.balance != Msat(0) || old.pending > 0 {
        return Err(Rest::Pending);
    }
    if !new.stands {
        return Err(Rest::Away);
    }
    if new.depth < needed {
        let depth = new.depth;
        return Err(Rest::Shallow { depth, needed });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use factory_tree::units::Blocks;

    use super::*;

    const SAT: u64 = 1000;

    fn calendar(birth: u32) -> Schedule {
        Schedule {
            birth: Height(birth),
            dying_from: Height(birth + 1000),
            publish_from: Height(birth + 1400),
            last_spend: Height(birth + 1850),
            expiry: Height(birth + 1994),
            exit_delay: Blocks(234),
        }
    }

    fn new() -> New {
        New {
            calendar: calendar(1000),
            stands: true,
            usable: true,
            room: Msat(200_000 * SAT),
            depth: 12,
            exit_fee: Amount::from_sat(3_000),
            has_fee_coins: false,
            fee_left: Msat(0),
        }
    }

    /// 100,000.007 sat in a factory whose last days have begun; a younger one is ready.
    fn facts() -> Facts {
        Facts {
            height: Height(1200),
            handover_depth: 12,
            old: Old {
                calendar: calendar(100),
                stands: true,
                usable: true,
                balance: Msat(100_000_007),
                next: Msat(100_000_007),
                pending: 0,
            },
            new: Some(new()),
            total: None,
        }
    }

    fn with(change: impl FnOnce(&mut Facts, &mut New)) -> Next {
        let (mut facts, mut new) = (facts(), new());
        change(&mut facts, &mut new);
        facts.old.next = facts.old.next.min(facts.old.balance);
        facts.new = facts.new.map(|_| new);
        decide(&facts)
    }

    #[test]
    fn nothing_moves_before_its_time_nor_after_it() {
        let at = |height: u32| with(|facts, _| facts.height = Height(height));
        assert_eq!(at(1099), Next::Rest(Rest::NotDying));
        assert!(matches!(at(1100), Next::Part(_)));
        // T - late_margin is 1950; a part needs 234 + 144 + 48 and one more before it.
        assert_eq!(last_part(&facts().old.calendar, Blocks(234)), Height(1523));
        let last = Height(1499);
        assert!(matches!(at(last.0), Next::Part(_)));
        assert_eq!(at(1500), Next::Rest(Rest::TooLate));
        let slow = |facts: &mut Facts, new: &mut New| {
            facts.height = Height(1490);
            new.calendar.exit_delay = Blocks(300);
        };
        assert_eq!(with(slow), Next::Rest(Rest::TooLate));
    }

    #[test]
    fn only_between_channels_that_stand() {
        assert_eq!(
            with(|facts, _| facts.old.stands = false),
            Next::Rest(Rest::Leaving)
        );
        assert_eq!(
            with(|facts, _| facts.old.usable = false),
            Next::Rest(Rest::Away)
        );
        assert_eq!(with(|_, new| new.stands = false), Next::Rest(Rest::Away));
        assert_eq!(with(|_, new| new.usable = false), Next::Rest(Rest::Away));
        assert_eq!(with(|facts, _| facts.new = None), Next::Rest(Rest::NoNew));
    }

    #[test]
    fn a_part_is_what_may_be_risked() {
        // The exit fee is more than 1 %.
        assert_eq!(with(|_, _| {}), Next::Part(Msat(3_000 * SAT)));
        let cheap = |_: &mut Facts, new: &mut New| new.exit_fee = Amount::from_sat(10);
        assert_eq!(with(cheap), Next::Part(Msat(1_001 * SAT)));
        let coins = |_: &mut Facts, new: &mut New| new.has_fee_coins = true;
        assert_eq!(with(coins), Next::Part(Msat(25_001 * SAT)));
        // However little there is, it is not split into dust.
        let little = |facts: &mut Facts, new: &mut New| {
            facts.old.balance = Msat(2_000 * SAT);
            new.has_fee_coins = true;
        };
        assert_eq!(with(little), Next::Part(Msat(1_000 * SAT)));
        // The share is of what there was at the beginning.
        let later = |facts: &mut Facts, new: &mut New| {
            facts.total = Some(Msat(400_000 * SAT));
            new.exit_fee = Amount::ZERO;
        };
        assert_eq!(with(later), Next::Part(Msat(4_000 * SAT)));
    }

    #[test]
    fn the_last_part_takes_everything() {
        let last = |facts: &mut Facts, _: &mut New| {
            facts.total = Some(Msat(100_000_007));
            facts.old.balance = Msat(1_007);
        };
        assert_eq!(with(last), Next::Part(Msat(1_007)));
        let dust = |facts: &mut Facts, _: &mut New| facts.old.balance = Msat(7);
        assert_eq!(with(dust), Next::Part(Msat(7)));
    }

    #[test]
    fn a_part_comes_out_of_one_channel_and_its_share_is_of_all() {
        let split = |next: u64| {
            with(|facts, new| {
                facts.old.next = Msat(next);
                new.exit_fee = Amount::from_sat(10);
            })
        };
        assert_eq!(split(60_000_000), Next::Part(Msat(1_001 * SAT)));
        assert_eq!(split(7), Next::Part(Msat(7)));
        // The keys wait for the other channels.
        assert_eq!(
            with(|facts, _| facts.old.next = Msat(0)),
            Next::Rest(Rest::NoRoom)
        );
    }

    #[test]
    fn the_fee_is_left_for_the_coordinator() {
        let fee = |balance: u64| {
            with(|facts, new| {
                facts.total = Some(Msat(100_000 * SAT));
                facts.old.balance = Msat(balance);
                new.fee_left = Msat(500 * SAT);
            })
        };
        assert_eq!(fee(2_000_007), Next::Part(Msat(1_500_007)));
        // Nobody took it.
        assert_eq!(fee(500_000), Next::Part(Msat(500_000)));
        assert_eq!(fee(400_000), Next::Part(Msat(400_000)));
        let due = |total, paid| fee_left(Msat(total), Msat(1000), Msat(paid));
        assert_eq!(due(1_999, 0), Msat(0));
        assert_eq!(due(2_000, 0), Msat(1000));
        assert_eq!(due(2_000, 400), Msat(600));
        assert_eq!(due(2_000, 1_400), Msat(0));
    }

    #[test]
    fn no_more_than_there_is_room_for() {
        let room = |room: u64| with(|_, new| new.room = Msat(room));
        assert_eq!(room(2_000_000), Next::Part(Msat(2_000_000)));
        assert_eq!(room(999_999), Next::Rest(Rest::NoRoom));
        assert_eq!(room(0), Next::Rest(Rest::NoRoom));
        // All that is left fits, however little it is.
        let little = |facts: &mut Facts, new: &mut New| {
            facts.old.balance = Msat(7);
            new.room = Msat(8);
        };
        assert_eq!(with(little), Next::Part(Msat(7)));
    }

    fn empty(change: impl FnOnce(&mut Facts, &mut New)) -> Next {
        with(|facts, new| {
            facts.old.balance = Msat(0);
            change(facts, new);
        })
    }

    #[test]
    fn keys_are_given_away_only_for_something_safe() {
        assert_eq!(empty(|_, _| {}), Next::HandOver);
        // Also when it is too late for parts.
        assert_eq!(
            empty(|facts, _| facts.height = Height(1600)),
            Next::HandOver
        );
        assert_eq!(
            empty(|facts, _| facts.old.pending = 1),
            Next::Rest(Rest::Pending)
        );
        let shallow = |depth| {
            let needed = 12;
            Next::Rest(Rest::Shallow { depth, needed })
        };
        assert_eq!(empty(|_, new| new.depth = 11), shallow(11));
        // A reorg took the younger funding.
        assert_eq!(empty(|_, new| new.depth = 0), shallow(0));
        assert_eq!(empty(|_, new| new.stands = false), Next::Rest(Rest::Away));
        assert_eq!(empty(|facts, _| facts.new = None), Next::Rest(Rest::NoNew));
        assert_eq!(
            empty(|facts, _| facts.old.stands = false),
            Next::Rest(Rest::Leaving)
        );
    }

    #[test]
    fn what_was_sent_is_sent_again_though_the_channel_is_gone() {
        let mut facts = facts();
        facts.old.balance = Msat(0);
        facts.old.stands = false;
        assert_eq!(may_hand_over(&facts, false), Err(Rest::Leaving));
        assert_eq!(may_hand_over(&facts, true), Ok(()));
        facts.height = facts.old.calendar.expiry;
        assert_eq!(may_hand_over(&facts, true), Err(Rest::TooLate));
    }

    #[test]
    fn one_thousandth_of_a_satoshi_keeps_the_keys() {
        let mut facts = facts();
        facts.old.balance = Msat(1);
        assert_eq!(may_hand_over(&facts, false), Err(Rest::Pending));
        assert_eq!(may_hand_over(&facts, true), Err(Rest::Pending));
        facts.old.balance = Msat(0);
        assert_eq!(may_hand_over(&facts, false), Ok(()));
        // A depth of nothing is none.
        facts.handover_depth = 0;
        facts.new = Some(New { depth: 0, ..new() });
        assert!(matches!(
            may_hand_over(&facts, true),
            Err(Rest::Shallow { .. })
        ));
    }
}
