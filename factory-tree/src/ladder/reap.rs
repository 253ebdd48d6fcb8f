//! Coins coming back: by keys, by the script leaf at `T`, and what is forgotten afterwards
//! (protocol.md section 7.1 and 7.4).
//!
//! | funding | root | all keys ours | else |
//! |---|---|---|---|
//! | unconfirmed, reorged | any | rebroadcast the funding | the same |
//! | confirmed | unspent, reap sent | reap | `LspReclaim` from T on: reclaim |
//! | confirmed | published | each branch, and each lone channel, whose keys are ours | the same; `LspReclaim` from T on: reclaim |
//! | confirmed | reaped, timed out, published and nothing left | forget once buried | the same |
//! | dead | any | forget once buried | the same |

use super::due::{Due, Part};
use super::params::LadderParams;
use super::rescue::urgency;
use super::stage::Stage;
use super::view::{FactoryFacts, Funding, Progress, Root};
use crate::shape::{ClientRange, NodeKind, Shape};
use crate::units::{Blocks, Height};

pub(super) fn due(
    params: &LadderParams,
    height: Height,
    facts: &FactoryFacts,
    list: &mut Vec<Due>,
) {
    let factory = facts.id;
    match facts.funding {
        Funding::Unconfirmed | Funding::Reorged => return list.push(Due::Rebroadcast { factory }),
        Funding::Dead { at } => return forget(params, height, at, facts, list),
        Funding::Confirmed { .. } => {}
    }
    let expired = height >= facts.schedule.expiry;
    match &facts.root {
        Root::Unspent | Root::ReapSent if facts.is_handed_over() => list.push(Due::Reap {
            factory,
            deadline: facts.schedule.last_spend,
            urgency: urgency(height, facts, facts.latest_single()),
            started: facts.root == Root::ReapSent,
        }),
        Root::Unspent | Root::ReapSent => {
            if expired && !facts.refunds_clients() {
                list.push(Due::ReclaimAtT { factory });
            }
        }
        Root::Reaped { at } | Root::TimedOut { at } => forget(params, height, *at, facts, list),
        Root::Published {
            nodes,
            latest,
            open,
        } => {
            subtrees(height, facts, |node| nodes.contains(&node), list);
            if expired && *open > 0 && !facts.refunds_clients() {
                list.push(Due::ReclaimAtT { factory });
            }
            if Stage::of(facts, height, params.spacing) == Stage::Ended {
                forget(params, height, *latest, facts, list);
            }
        }
    }
}

fn forget(
    params: &LadderParams,
    height: Height,
    at: Height,
    facts: &FactoryFacts,
    list: &mut Vec<Due>,
) {
    if height >= at.plus(Blocks(params.bury_depth)) {
        list.push(Due::Forget { factory: facts.id });
    }
}

/// The outputs next below what is published, whose owners have all handed over.
fn subtrees(
    height: Height,
    facts: &FactoryFacts,
    published: impl Fn(usize) -> bool,
    list: &mut Vec<Due>,
) {
    let clients = u32::try_from(facts.members.len()).unwrap_or(u32::MAX);
    // What was built with these parameters once can be built again.
    let Ok(shape) = Shape::new(&facts.params, clients) else {
        return;
    };
    let mut add = |part, members| {
        list.push(Due::ReapSubtree {
            factory: facts.id,
            part,
            members,
            deadline: facts.schedule.last_spend,
            urgency: urgency(height, facts, facts.latest_single()),
        });
    };
    let on_chain = shape.nodes().iter().enumerate();
    for (_, node) in on_chain.filter(|(index, _)| published(*index)) {
        for child in node.children.iter().filter(|child| !published(**child)) {
            let Some(members) = shape.nodes().get(*child).map(|below| below.clients.clone()) else {
                continue;
            };
            if keys_are_ours(facts, &members) {
                add(Part::Branch { node: *child }, members);
            }
        }
        if node.kind == NodeKind::Leaf {
            let lone = node.clients.clone().map(|c| c..c.saturating_add(1));
            for members in lone.filter(|members| keys_are_ours(facts, members)) {
                add(Part::Channel, members);
            }
        }
    }
}

fn keys_are_ours(facts: &FactoryFacts, clients: &ClientRange) -> bool {
    let members = facts
        .members
        .get(clients.start as usize..clients.end as usize);
    members.is_some_and(|members| {
        let mut members = members.iter();
        members.all(|member| member.progress == Progress::HandedOver)
    })
}

/// Whether the coins of a reaped factory may fund another one: an ex-client still holds a signed
/// root, so its spend must be buried first (attacks.md A7).
#[must_use]
pub fn coins_are_free(params: &LadderParams, height: Height, facts: &FactoryFacts) -> bool {
    match facts.root {
        Root::Reaped { at } => Funding::Confirmed { at }.depth(height) >= params.reap_depth,
        _ => false,
    }
}
