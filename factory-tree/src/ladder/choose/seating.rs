//! Who sits beside whom. Members of a leaf wake each other for sales, so they are grouped by the
//! hours they are online; those who may not come back are kept under branches of their own, so that
//! publishing their paths drags as few others as possible to the chain.

use super::{ChooseParams, Hours, Seat, Standing, Taken, reason};
use crate::shape::{NodeKind, Shape, len};

/// Fills the leaves from the left: first with settled clients, then with new, then with unreliable
/// ones. Where one sort ends within a leaf, that leaf is mixed.
pub(super) fn seat(params: &ChooseParams, shape: &Shape, taken: Vec<Taken<'_>>) -> Vec<Seat> {
    let mut pools: [Vec<Taken<'_>>; 3] = Default::default();
    let [settled, new, unreliable] = &mut pools;
    for one in taken {
        match one.standing {
            Standing::Settled => settled.push(one),
            Standing::New => new.push(one),
            Standing::Unreliable => unreliable.push(one),
        }
    }
    for pool in &mut pools {
        // Taken from the end: who is online least is seated first, while there is a choice.
        pool.sort_by_key(|one| {
            let hours = one.candidate.hours.count();
            core::cmp::Reverse((hours, one.candidate.client))
        });
    }
    let mut pools = pools.into_iter().filter(|pool| !pool.is_empty());
    let mut pool = pools.next().unwrap_or_default();
    let leaves = shape
        .nodes()
        .iter()
        .filter(|node| node.kind == NodeKind::Leaf);
    let mut seats = Vec::new();
    for (leaf, node) in (0u32..).zip(leaves) {
        let mut mates: Vec<Taken<'_>> = Vec::new();
        for _ in 0..len(&node.clients) {
            if pool.is_empty() {
                pool = pools.next().unwrap_or_default();
            }
            mates.extend(best_mate(&mut pool, &mates));
        }
        let hours = common_hours(&mates);
        let mixed = mates
            .iter()
            .any(|mate| Some(mate.standing) != mates.first().map(|m| m.standing));
        seats.extend(mates.iter().map(|mate| Seat {
            client: mate.candidate.client,
            capacity: mate.capacity,
            bought: mate.bought,
            kind: mate.candidate.kind,
            standing: mate.standing,
            leaf,
            why: format!(
                "{}; {}",
                reason(params, mate.candidate),
                neighbours(mate.standing, mixed, hours)
            ),
        }));
    }
    seats
}

/// Takes out of `pool` who has most hours in common with all of `mates`.
fn best_mate<'a>(pool: &mut Vec<Taken<'a>>, mates: &[Taken<'a>]) -> Option<Taken<'a>> {
    if mates.is_empty() {
        return pool.pop();
    }
    let hours = common_hours(mates);
    let shared = |one: &Taken<'_>| hours.common(one.candidate.hours).count();
    // Of equals the last, which is online least.
    let (best, _) = pool
        .iter()
        .enumerate()
        .max_by_key(|(index, one)| (shared(one), *index))?;
    Some(pool.remove(best))
}

fn common_hours(mates: &[Taken<'_>]) -> Hours {
    let mut hours = mates.iter().map(|mate| mate.candidate.hours);
    let first = hours.next().unwrap_or_default();
    hours.fold(first, Hours::common)
}

fn neighbours(standing: Standing, mixed: bool, hours: Hours) -> String {
    let who = match (standing, mixed) {
        (Standing::Settled, false) => "among settled clients",
        (Standing::New, false) => "among new clients",
        (Standing::Unreliable, false) => "among unreliable clients",
        (Standing::Settled, true) => "settled, in the one leaf that had room for others",
        (Standing::New, true) => "new, in a leaf with others",
        (Standing::Unreliable, true) => "unreliable, in a leaf with others",
    };
    match hours.count() {
        0 => who.to_owned(),
        1 => format!("{who}, 1 hour in common"),
        hours => format!("{who}, {hours} hours in common"),
    }
}
