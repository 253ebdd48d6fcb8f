//! Clients that did not leave: whose path is published, whose channel is closed, and what is lost
//! when that comes too late (protocol.md sections 1 and 7.4, attacks.md A4).
//!
//! `T - late_margin` is when every output of a published factory is spent; [`Due::Publish`] begins
//! at `E`, which leaves `exit_delay + expiry_margin - late_margin` blocks.
//!
//! | progress | before E | from E on |
//! |---|---|---|
//! | in, invited, new channel, moved | wait | publish |
//! | moving | publish if the part in flight expires soon | publish |
//! | publishing | publish (goes on) | publish (goes on) |
//! | on chain | wait (the channel works) | close |
//! | handed over, gone | - | - |
//!
//! Under `LspReclaim` clients publish for themselves: only channels on the chain are closed.
//!
//! After `T` all of it is still right to do, in the same order: a path that is published takes the
//! factory's own timeout away from those who have left, and a commitment pays the client exactly
//! what it owns. But timeouts are valid then, so it is a race, and the most that can be lost is
//! reported once, and again when it grows.

use bitcoin::Amount;

use super::due::{Due, Urgency};
use super::moving::publish_by;
use super::view::{FactoryFacts, Funding, MemberFacts, Progress, Root};
use crate::tx::checked_sum;
use crate::units::Height;

/// What the table says of a client.
enum Rescue {
    Wait,
    Publish { started: bool },
    Close,
}

pub(super) fn due(height: Height, facts: &FactoryFacts, list: &mut Vec<Due>) {
    if !matches!(facts.funding, Funding::Confirmed { .. }) {
        return;
    }
    report(height, facts, list);
    if matches!(facts.root, Root::Reaped { .. } | Root::TimedOut { .. }) {
        return;
    }
    for member in &facts.members {
        let due = match decide(height, facts, member) {
            Rescue::Wait => continue,
            Rescue::Publish { started } => Due::Publish {
                factory: facts.id,
                client: member.client,
                deadline: facts.schedule.last_spend,
                urgency: urgency(height, facts, facts.latest_start()),
                started,
            },
            Rescue::Close => Due::CloseBeforeT {
                factory: facts.id,
                client: member.client,
                deadline: facts.schedule.last_spend,
                urgency: urgency(height, facts, facts.latest_single()),
            },
        };
        list.push(due);
    }
}

fn decide(height: Height, facts: &FactoryFacts, member: &MemberFacts) -> Rescue {
    let over = height >= facts.schedule.publish_from;
    let publish = |due: bool| match due && facts.refunds_clients() {
        true => Rescue::Publish { started: false },
        false => Rescue::Wait,
    };
    match member.progress {
        Progress::In
        | Progress::Invited { .. }
        | Progress::NewChannel { .. }
        | Progress::Moved { .. } => publish(over),
        // A part in flight is ours to claim here, whoever publishes otherwise.
        Progress::Moving { in_flight, .. } => {
            let by = in_flight.map(|expiry| publish_by(&facts.schedule, expiry));
            match by {
                Some(by) if height >= by => Rescue::Publish { started: false },
                _ => publish(over),
            }
        }
        Progress::Publishing => Rescue::Publish { started: true },
        Progress::OnChain if over => Rescue::Close,
        Progress::OnChain | Progress::HandedOver | Progress::Gone => Rescue::Wait,
    }
}

/// How late it is for something that had to begin by `latest`.
pub(super) fn urgency(height: Height, facts: &FactoryFacts, latest: Height) -> Urgency {
    if height >= facts.schedule.expiry {
        Urgency::Expired
    } else if height > latest {
        Urgency::Late
    } else {
        Urgency::OnTime
    }
}

/// Reports the most that timeouts may take of ours, if it is more than was reported.
fn report(height: Height, facts: &FactoryFacts, list: &mut Vec<Due>) {
    let at_risk: Vec<&MemberFacts> = facts
        .members
        .iter()
        .filter(|member| is_at_risk(height, facts, member))
        .collect();
    if at_risk.is_empty() {
        return;
    }
    let owed = at_risk
        .iter()
        .map(|member| member.capacity.checked_sub(member.balance))
        .map(|owed| owed.unwrap_or(Amount::ZERO));
    // Timeouts of stocks wait for q: unless the root's own timeout may come, they are not at risk.
    let whole = !matches!(facts.root, Root::Published { .. });
    let stock = if whole { facts.stock } else { Amount::ZERO };
    let sum = checked_sum(owed.chain([stock])).unwrap_or(Amount::MAX_MONEY);
    if sum > facts.loss_reported.unwrap_or(Amount::ZERO) {
        list.push(Due::TooLate {
            factory: facts.id,
            at_risk: sum,
            clients: u32::try_from(at_risk.len()).unwrap_or(u32::MAX),
            urgency: urgency(height, facts, Height(0)),
        });
    }
}

/// Whether a timeout may pay this client, or has, more than it owns.
fn is_at_risk(height: Height, facts: &FactoryFacts, member: &MemberFacts) -> bool {
    let refunds = facts.refunds_clients();
    match &facts.root {
        Root::Reaped { .. } => false,
        Root::TimedOut { .. } => true,
        // The root's timeout pays everybody, whose keys we have as well.
        Root::Unspent | Root::ReapSent => {
            let latest = match facts.is_handed_over() {
                true => facts.latest_single(),
                false => facts.latest_start(),
            };
            refunds && height > latest
        }
        Root::Published { .. } => match member.progress {
            Progress::Gone => false,
            Progress::OnChain => height > facts.latest_single(),
            Progress::HandedOver => refunds && height > facts.latest_single(),
            _ => refunds && height > facts.latest_start(),
        },
    }
}
