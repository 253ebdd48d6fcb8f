//! Notices, invitations and births (protocol.md section 7).
//!
//! Every `spacing` blocks is one rung's day. A birth is due in its own day only: if that has
//! passed, it is never caught up with, however long the coordinator was away. A factory's life
//! counts from its real birth, so thirty births at once would be thirty factories with one and the
//! same end: no staggering, thirty times the capital, and in their dying days all their clients at
//! once in one ceremony.
//!
//! | progress | dying days (from `birth_slip` before them) | so late that a move would not end before E |
//! |---|---|---|
//! | in | invite | - |
//! | invited n times, last to an earlier rung | invite if n < `invitations` | - |
//! | else | - | - |

use super::due::{Due, Warning};
use super::moving::last_part;
use super::params::LadderParams;
use super::view::{FactoryFacts, Funding, Ladder, MemberFacts, Progress, Root};
use crate::units::{Blocks, Height};

/// The rung whose birth is due at `height`, if there is one.
fn open_rung(params: &LadderParams, height: Height, view: &Ladder) -> Option<u32> {
    let rung = params.rung_at(view.first, height)?;
    let born = view.factories.iter().any(|facts| facts.rung == rung);
    (!born && !view.given_up.contains(&rung)).then_some(rung)
}

pub(super) fn birth(params: &LadderParams, height: Height, view: &Ladder, list: &mut Vec<Due>) {
    if let Some(rung) = open_rung(params, height, view) {
        list.push(Due::Birth {
            rung,
            planned: params.planned(view.first, rung),
        });
    }
}

pub(super) fn for_members(
    params: &LadderParams,
    height: Height,
    view: &Ladder,
    facts: &FactoryFacts,
    list: &mut Vec<Due>,
) {
    let over = matches!(facts.root, Root::Reaped { .. } | Root::TimedOut { .. });
    if over || matches!(facts.funding, Funding::Dead { .. }) {
        return;
    }
    let level = level(params, height, facts);
    let rung = open_rung(params, height, view).filter(|_| has_time(params, height, facts));
    for member in &facts.members {
        if let Some(level) = level.filter(|level| is_told(member, *level)) {
            list.push(Due::Warn {
                client: member.client,
                factory: facts.id,
                level,
            });
        }
        let next = rung.and_then(|rung| Some((rung, next_attempt(params, member, rung)?)));
        if let Some((to, attempt)) = next {
            list.push(Due::Invite {
                client: member.client,
                from: facts.id,
                to,
                attempt,
                of: params.invitations,
                deadline: facts.schedule.publish_from,
            });
        }
    }
}

/// How loudly a client of this factory is to be told by now.
fn level(params: &LadderParams, height: Height, facts: &FactoryFacts) -> Option<Warning> {
    let calendar = &facts.schedule;
    let early = calendar.dying_from.minus(Blocks(params.early_notice));
    let last_day = calendar.publish_from.minus(Blocks(params.spacing));
    let levels = [
        (calendar.publish_from, Warning::Over),
        (last_day.max(calendar.dying_from), Warning::LastDay),
        (calendar.dying_from, Warning::Dying),
        (early, Warning::Early),
    ];
    let reached = levels.into_iter().find(|(from, _)| height >= *from);
    reached.map(|(_, level)| level)
}

/// Only what is loudest is told, once, and only to those whom it concerns.
fn is_told(member: &MemberFacts, level: Warning) -> bool {
    let concerned = member.progress.is_inside() || member.progress == Progress::Publishing;
    concerned && member.warned.is_none_or(|told| told < level)
}

/// Whether these are the factory's dying days, and a client invited now can have moved by their
/// end. A birth before this one may have been late by `birth_slip`, so its clients are invited
/// that much earlier: else the first of their births would be missed.
fn has_time(params: &LadderParams, height: Height, facts: &FactoryFacts) -> bool {
    let calendar = &facts.schedule;
    let from = calendar.dying_from.minus(Blocks(params.birth_slip));
    let end = calendar
        .publish_from
        .min(last_part(calendar, calendar.exit_delay).plus(Blocks(1)));
    height >= from && height.plus(params.settle(&facts.params)) <= end
}

/// Which invitation a client gets for this rung, if any.
fn next_attempt(params: &LadderParams, member: &MemberFacts, to: u32) -> Option<u8> {
    match member.progress {
        Progress::In => Some(1),
        Progress::Invited { tries, rung } if rung != to && tries < params.invitations => {
            tries.checked_add(1)
        }
        _ => None,
    }
}
