//! The chain of the simulated world, and what clients do on it.

use rand::Rng;
use rand::rngs::StdRng;

use super::super::{Progress, Root};
use super::{Factory, Tx};
use crate::params::ExpiryPolicy;
use crate::shape::NodeKind;
use crate::units::{Blocks, Height};

/// What was sent confirms within the margin for a confirmation, parents before children.
pub(super) fn confirm(factory: &mut Factory, height: Height, rng: &mut StdRng) {
    let margin = factory.params.conf_margin;
    let mut wins = |tx: &mut Tx| {
        let Some(sent) = tx.sent.filter(|_| tx.confirmed.is_none()) else {
            return false;
        };
        let due = height.since(sent).0 >= margin || rng.gen_bool(0.6);
        if due {
            tx.confirmed = Some(height);
        }
        due
    };
    wins(&mut factory.funding);
    factory.was_confirmed |= factory.funding.confirmed.is_some();
    if factory.funding.confirmed.is_none() {
        return;
    }
    let taken = factory.reap.confirmed.or(factory.timeout.confirmed);
    if factory.confirmed(0).is_none() && taken.is_none() && !wins(&mut factory.reap) {
        wins(&mut factory.timeout);
    }
    if factory
        .reap
        .confirmed
        .or(factory.timeout.confirmed)
        .is_some()
    {
        return;
    }
    for index in 0..factory.shape.nodes().len() {
        let parent = factory.shape.nodes()[index].parent;
        let parent = parent.map_or(factory.funding.confirmed, |(p, _)| factory.confirmed(p));
        let branch = factory.branches.get(&index).copied().unwrap_or_default();
        if parent.is_none_or(|at| at >= height) || branch.confirmed.is_some() {
            continue;
        }
        if factory.confirmed(index).is_none() {
            if factory.branches.get_mut(&index).is_some_and(&mut wins) {
                continue;
            }
            if let Some(tx) = factory.nodes.get_mut(&index) {
                wins(tx);
            }
        }
    }
    for position in 0..factory.members.len() {
        let leaf = factory.confirmed(factory.leaf_of(position as u32));
        if leaf.is_some_and(|at| at < height) {
            wins(&mut factory.members[position].close);
        }
    }
}

/// What clients do: exits of their own, and timeouts after `T`.
pub(super) fn others(factory: &mut Factory, height: Height, exits: f64, rng: &mut StdRng) {
    let position = rng.gen_range(0..factory.members.len()) as u32;
    if factory.funding.confirmed.is_some() && rng.gen_bool(exits) {
        publish(factory, position, height);
    }
    if height > factory.schedule.expiry && rng.gen_bool(0.1) {
        let refunds = factory.params.expiry_policy == ExpiryPolicy::ClientRefund;
        if refunds && factory.root(height) == Root::Unspent {
            factory.timeout.send(height);
        }
        let member = &factory.members[position as usize];
        if member.stored != Progress::HandedOver
            && factory.confirmed(factory.leaf_of(position)).is_some()
        {
            factory.members[position as usize].close.send(height);
        }
    }
}

/// Sends whatever of a path may be in the next block.
pub(super) fn publish(factory: &mut Factory, position: u32, height: Height) {
    let mut parent = factory.funding.confirmed;
    for node in factory.shape.path(position) {
        let Some(at) = parent else { return };
        let kind = factory.shape.nodes()[node].kind;
        let delay = match kind {
            NodeKind::Leaf | NodeKind::State => factory.params.max_slot(),
            _ => Blocks(1),
        };
        if height.plus(Blocks(1)) < at.plus(delay) {
            return;
        }
        factory.nodes.entry(node).or_default().send(height);
        parent = factory.confirmed(node);
    }
}

/// What the script leaf gives at `T` below a published root: branches of static nodes.
pub(super) fn reclaim(factory: &mut Factory, height: Height) {
    for (index, node) in factory.shape.nodes().iter().enumerate() {
        let published = factory
            .nodes
            .get(&index)
            .is_some_and(|tx| tx.confirmed.is_some());
        if !published {
            continue;
        }
        match node.kind {
            NodeKind::Static | NodeKind::State => {
                for child in &node.children {
                    factory.branches.entry(*child).or_default().send(height);
                }
            }
            // Kickoff outputs carry no such leaf: somebody publishes the state.
            NodeKind::Kickoff => {
                for child in &node.children {
                    factory.nodes.entry(*child).or_default().send(height);
                }
            }
            NodeKind::Leaf => {
                for client in node.clients.clone() {
                    factory.members[client as usize].close.send(height);
                }
            }
        }
    }
}
