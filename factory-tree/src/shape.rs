//! Which clients sit where: a pure function of the parameters and the number of clients.
//!
//! Clients are numbered in leaf order, so every node's clients are a contiguous range. Nodes are
//! numbered in preorder, so a path's nodes are in ascending order. Source: protocol.md section 1
//! ("Shapes").

use core::ops::Range;

use crate::params::{FactoryParams, ParamsError};
use crate::tx::{CHILD_VBYTES, tree_tx_vbytes};
use crate::units::Blocks;

/// A range of clients, in leaf order.
pub type ClientRange = Range<u32>;

/// The fewest clients a factory has.
pub const MIN_CLIENTS: u32 = 2;
/// Static arities the automatic choice considers.
const AUTO_ARITY: core::ops::RangeInclusive<u8> = 2..=8;

/// What a tree transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NodeKind {
    /// A timeout-tree node without a state.
    Static,
    /// Isolates the race of the states below it.
    Kickoff,
    /// An inner Decker-Wattenhofer state.
    State,
    /// The lowest state: channels and stocks.
    Leaf,
}

/// One node of a shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeNode {
    /// What it is.
    pub kind: NodeKind,
    /// The node above and which of its branches this node spends; `None`: the funding output.
    pub parent: Option<(usize, u32)>,
    /// The clients below.
    pub clients: ClientRange,
    /// The nodes below, one per branch output.
    pub children: Vec<usize>,
    /// Sub-factories of a leaf: each range shares one stock.
    pub subfactories: Vec<ClientRange>,
}

/// The skeleton of a factory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    nodes: Vec<ShapeNode>,
    clients: u32,
    levels: u32,
}

/// One level of the tree, from the root down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Level {
    kind: NodeKind,
    arity: u32,
}

impl Shape {
    /// The shape of a factory of `clients`.
    ///
    /// # Errors
    /// When the parameters are invalid, there are fewer than two clients, or the tree is too deep
    /// for the route budget.
    pub fn new(params: &FactoryParams, clients: u32) -> Result<Self, ParamsError> {
        let leaves = leaves(params, clients)?;
        let levels = levels(params, leaves);
        let mut shape = Self {
            nodes: Vec::new(),
            clients,
            levels: 0,
        };
        let groups = balanced(0..clients, leaves);
        shape.grow(&levels, &groups, None, u32::from(params.k));
        shape.levels = shape.leaf_depths().max().unwrap_or(0);
        params.check_exit_delay(shape.levels)?;
        Ok(shape)
    }

    /// Adds the subtree over the leaves `groups`, and returns its root's index.
    fn grow(
        &mut self,
        levels: &[Level],
        groups: &[ClientRange],
        parent: Option<(usize, u32)>,
        k: u32,
    ) -> usize {
        let index = self.nodes.len();
        let clients = span(groups);
        let Some((level, below)) = levels.split_first() else {
            self.nodes.push(ShapeNode {
                kind: NodeKind::Leaf,
                parent,
                subfactories: balanced(clients.clone(), len(&clients).div_ceil(k)),
                clients,
                children: Vec::new(),
            });
            return index;
        };
        // A static node with one child would only make the path longer.
        if level.kind == NodeKind::Static && groups.len() == 1 {
            return self.grow(below, groups, parent, k);
        }
        self.nodes.push(ShapeNode {
            kind: level.kind,
            parent,
            clients,
            children: Vec::new(),
            subfactories: Vec::new(),
        });
        let total = u32::try_from(groups.len()).unwrap_or(u32::MAX);
        let parts = level.arity.min(total).max(1);
        let mut children = Vec::new();
        for (branch, part) in (0u32..).zip(balanced(0..total, parts)) {
            let start = usize::try_from(part.start).unwrap_or(usize::MAX);
            let end = usize::try_from(part.end).unwrap_or(usize::MAX);
            if let Some(part) = groups.get(start..end) {
                children.push(self.grow(below, part, Some((index, branch)), k));
            }
        }
        if let Some(node) = self.nodes.get_mut(index) {
            node.children = children;
        }
        index
    }

    /// The nodes in preorder; the first spends the funding output.
    #[must_use]
    pub fn nodes(&self) -> &[ShapeNode] {
        &self.nodes
    }

    /// Number of clients.
    #[must_use]
    pub const fn clients(&self) -> u32 {
        self.clients
    }

    /// Transactions on the longest path, the leaf included.
    #[must_use]
    pub const fn levels(&self) -> u32 {
        self.levels
    }

    /// Nodes from the root to the leaf of `client`, or nothing if there is no such client.
    #[must_use]
    pub fn path(&self, client: u32) -> Vec<usize> {
        let mut path = Vec::new();
        let mut next = Some(0usize);
        while let Some((index, node)) = next.and_then(|i| Some((i, self.nodes.get(i)?))) {
            if !node.clients.contains(&client) {
                return Vec::new();
            }
            path.push(index);
            next = node.children.iter().copied().find(|child| {
                let below = self.nodes.get(*child);
                below.is_some_and(|below| below.clients.contains(&client))
            });
        }
        path
    }

    /// Transaction counts of the root-to-leaf paths, one per leaf.
    fn leaf_depths(&self) -> impl Iterator<Item = u32> + '_ {
        let mut depth = vec![0u32; self.nodes.len()];
        for (index, node) in self.nodes.iter().enumerate() {
            let above = node
                .parent
                .and_then(|(parent, _)| depth.get(parent))
                .copied();
            if let Some(slot) = depth.get_mut(index) {
                *slot = above.unwrap_or(0).saturating_add(1);
            }
        }
        self.nodes
            .iter()
            .zip(depth)
            .filter(|(node, _)| node.kind == NodeKind::Leaf)
            .map(|(_, depth)| depth)
    }

    /// The exit delay of this shape: the maximum over its paths.
    #[must_use]
    pub fn exit_delay(&self, params: &FactoryParams) -> Blocks {
        params.exit_delay(self.levels)
    }
}

/// The number of leaves of a factory of `clients`.
fn leaves(params: &FactoryParams, clients: u32) -> Result<u32, ParamsError> {
    params.validate()?;
    if clients < MIN_CLIENTS {
        return Err(ParamsError::OutOfRange {
            name: "clients",
            value: clients.into(),
            min: MIN_CLIENTS.into(),
            max: u32::MAX.into(),
        });
    }
    let per_leaf = u32::from(params.k).saturating_mul(params.k.into());
    Ok(clients.div_ceil(per_leaf.max(1)))
}

/// The most levels of any factory of up to `clients` clients that the parameters allow. No tree is
/// built: a client asks this of an invitation, which costs its sender nothing.
///
/// # Errors
/// What [`Shape::new`] says of `clients` itself.
pub fn most_levels(params: &FactoryParams, clients: u32) -> Result<u32, ParamsError> {
    let leaves_of_all = leaves(params, clients)?;
    let own = depth(&levels(params, leaves_of_all), leaves_of_all);
    params.check_exit_delay(own)?;
    // Fewer clients may need more levels: their arities balance differently.
    let fewest = leaves(params, MIN_CLIENTS)?;
    let fewer = (fewest..leaves_of_all).map(|leaves| depth(&levels(params, leaves), leaves));
    let allowed = fewer.filter(|levels| params.check_exit_delay(*levels).is_ok());
    Ok(allowed.fold(own, u32::max))
}

/// Transactions on the longest path of a tree of `levels`, the leaf included: the first clients', as
/// pieces are cut larger first and fewer leaves never need more of the same levels.
fn depth(levels: &[Level], leaves: u32) -> u32 {
    let (mut groups, mut depth) = (leaves, 1u32);
    for level in levels {
        if level.kind == NodeKind::Static && groups <= 1 {
            continue;
        }
        depth = depth.saturating_add(1);
        groups = groups.div_ceil(level.arity.min(groups).max(1));
    }
    depth
}

/// The levels of a tree over `leaves` leaves, from the root down, without the leaf level itself.
fn levels(params: &FactoryParams, leaves: u32) -> Vec<Level> {
    let kickoff = Level {
        kind: NodeKind::Kickoff,
        arity: params.kickoff_arity.into(),
    };
    let state = Level {
        kind: NodeKind::State,
        arity: params.inner_arity.into(),
    };
    let mut dw = Vec::new();
    for _ in 1..params.layers {
        dw.extend([kickoff, state]);
    }
    dw.push(kickoff);
    let per_branch = dw
        .iter()
        .fold(1u32, |all, level| all.saturating_mul(level.arity));
    let branches = leaves.div_ceil(per_branch.max(1));
    let arities = match &params.static_arities {
        Some(arities) => cover(arities.clone(), branches),
        None => static_arities(branches),
    };
    let statics = arities.into_iter().map(|arity| Level {
        kind: NodeKind::Static,
        arity: arity.into(),
    });
    statics.chain(dw).collect()
}

/// Given static arities are widened at the root when they are too few for `branches`, so that no
/// branch is left without a place.
fn cover(mut arities: Vec<u8>, branches: u32) -> Vec<u8> {
    while product(&arities) < u64::from(branches) {
        arities.insert(0, *AUTO_ARITY.end());
    }
    arities
}

fn product(arities: &[u8]) -> u64 {
    arities
        .iter()
        .fold(1u64, |all, arity| all.saturating_mul(u64::from(*arity)))
}

/// The arities (root first) that make the path cheapest: the sum over levels of the transaction
/// and its fee-paying child; ties go to fewer levels, then to the larger arity lower down.
fn static_arities(branches: u32) -> Vec<u8> {
    if branches <= 1 {
        return Vec::new();
    }
    let mut best: Option<(u64, Vec<u8>)> = None;
    let mut levels = 1usize;
    // One level more than the fewest that can cover already costs more than it can save; search
    // three more, to be independent of the size model.
    let mut tries_left = 4u8;
    while tries_left > 0 {
        let mut arities = vec![*AUTO_ARITY.start(); levels];
        let fits = product(&vec![*AUTO_ARITY.end(); levels]) >= u64::from(branches);
        if fits {
            tries_left = tries_left.saturating_sub(1);
            search(branches, 0, &mut arities, &mut best);
        }
        levels = levels.saturating_add(1);
    }
    best.map(|(_, arities)| arities).unwrap_or_default()
}

/// Tries every non-decreasing (root first) completion of `arities` from `level` on: path cost is
/// symmetric, and of equal sets the one with the larger arity lower wins.
fn search(branches: u32, level: usize, arities: &mut Vec<u8>, best: &mut Option<(u64, Vec<u8>)>) {
    if level == arities.len() {
        if product(arities) >= u64::from(branches) {
            let cost = arities.iter().map(|a| level_cost(*a)).sum();
            let better = best.as_ref().is_none_or(|(least, held)| {
                cost < *least || (cost == *least && lower_is_larger(arities, held))
            });
            if better {
                *best = Some((cost, arities.clone()));
            }
        }
        return;
    }
    let above = level.checked_sub(1).and_then(|l| arities.get(l)).copied();
    for arity in above.unwrap_or(*AUTO_ARITY.start())..=*AUTO_ARITY.end() {
        if let Some(slot) = arities.get_mut(level) {
            *slot = arity;
        }
        search(branches, level.saturating_add(1), arities, best);
    }
}

fn level_cost(arity: u8) -> u64 {
    tree_tx_vbytes(arity.into()).saturating_add(CHILD_VBYTES)
}

/// Whether `a` is preferred over `b` of the same cost: fewer levels, then larger from below.
fn lower_is_larger(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return a.len() < b.len();
    }
    a.iter().rev().gt(b.iter().rev())
}

/// `range` cut into `parts` contiguous pieces whose sizes differ by at most one, larger first.
fn balanced(range: ClientRange, parts: u32) -> Vec<ClientRange> {
    let parts = parts.max(1);
    let total = len(&range);
    let size = total.checked_div(parts).unwrap_or(0);
    let larger = total.checked_rem(parts).unwrap_or(0);
    let mut start = range.start;
    let mut pieces = Vec::new();
    for piece in 0..parts {
        let extra = u32::from(piece < larger);
        let end = start.saturating_add(size).saturating_add(extra);
        if end > start {
            pieces.push(start..end);
        }
        start = end;
    }
    pieces
}

/// Number of clients in a range.
#[must_use]
pub fn len(range: &ClientRange) -> u32 {
    range.end.saturating_sub(range.start)
}

fn span(groups: &[ClientRange]) -> ClientRange {
    let start = groups.first().map_or(0, |group| group.start);
    let end = groups.last().map_or(start, |group| group.end);
    start..end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Profile;
    use bitcoin::Network;
    use proptest::prelude::*;

    fn profile(profile: Profile) -> FactoryParams {
        FactoryParams::profile(profile, Network::Regtest)
    }

    fn path_arities(params: &FactoryParams, clients: u32) -> Vec<(NodeKind, usize)> {
        let shape = Shape::new(params, clients).unwrap();
        let path = shape.path(0);
        let nodes = path.iter().map(|i| &shape.nodes()[*i]);
        nodes
            .map(|n| match n.kind {
                NodeKind::Leaf => (n.kind, n.subfactories.len()),
                kind => (kind, n.children.len()),
            })
            .collect()
    }

    #[test]
    fn lite_shapes_match_protocol_section_1() {
        use NodeKind::{Kickoff, Leaf, Static};
        let lite = profile(Profile::Lite);
        assert_eq!(
            path_arities(&lite, 8),
            [(Static, 2), (Kickoff, 1), (Leaf, 2)]
        );
        assert_eq!(
            path_arities(&lite, 64),
            [(Static, 4), (Static, 4), (Kickoff, 1), (Leaf, 2)]
        );
        assert_eq!(
            path_arities(&lite, 1024),
            [
                (Static, 4),
                (Static, 8),
                (Static, 8),
                (Kickoff, 1),
                (Leaf, 2)
            ]
        );
        assert_eq!(path_arities(&lite, 4), [(Kickoff, 1), (Leaf, 2)]);
        let exit = |n| Shape::new(&lite, n).unwrap().exit_delay(&lite).0;
        assert_eq!([exit(8), exit(64), exit(1024)], [228, 234, 240]);
    }

    #[test]
    fn deep_alternates_kickoff_and_state() {
        use NodeKind::{Kickoff, Leaf, State};
        let deep = profile(Profile::Deep);
        assert_eq!(
            path_arities(&deep, 16),
            [(Kickoff, 1), (State, 4), (Kickoff, 1), (Leaf, 2)]
        );
    }

    #[test]
    fn uneven_last_leaves_differ_by_one() {
        let shape = Shape::new(&profile(Profile::Lite), 9).unwrap();
        let sizes: Vec<u32> = shape
            .nodes()
            .iter()
            .filter(|n| n.kind == NodeKind::Leaf)
            .map(|n| len(&n.clients))
            .collect();
        assert_eq!(sizes, [3, 3, 3]);
        let subs: Vec<u32> = shape.nodes()[2].subfactories.iter().map(len).collect();
        assert_eq!(subs, [2, 1]);
    }

    /// An invitation may name as many clients as the wallet's limit allows, whatever the shape.
    #[test]
    fn the_most_levels_are_known_without_building_every_tree() {
        let mut params = profile(Profile::Lite);
        params.k = 1;
        params.layers = 4;
        params.inner_arity = 2;
        params.conf_margin = 1;
        params.step = 1;
        params.route_budget = 0;
        let began = std::time::Instant::now();
        for arities in [None, Some(vec![2; 16])] {
            params.static_arities = arities;
            most_levels(&params, 16_384).unwrap();
        }
        // Minutes when each smaller tree is built.
        let took = began.elapsed();
        assert!(took < std::time::Duration::from_secs(10), "{took:?}");
    }

    #[test]
    fn one_client_is_refused_and_deep_refuses_what_leaves_no_route() {
        assert!(Shape::new(&profile(Profile::Lite), 1).is_err());
        let error = Shape::new(&profile(Profile::Deep), 1024).unwrap_err();
        assert!(
            matches!(error, ParamsError::ExitDelayTooLong { .. }),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn the_most_levels_are_those_of_the_deepest_smaller_tree(
            clients in 2u32..200, k in 1u8..=3, kickoff_arity in 1u8..=3, layers in 1u8..=3,
            arities in proptest::option::of(proptest::collection::vec(2u8..9, 0..4)),
            route_budget in 0u32..700,
        ) {
            let mut params = profile(Profile::Lite);
            (params.k, params.kickoff_arity, params.layers) = (k, kickoff_arity, layers);
            (params.static_arities, params.route_budget) = (arities, route_budget);
            params.step = 10;
            let built = (2..=clients).filter_map(|n| Shape::new(&params, n).ok());
            let deepest = built.map(|shape| shape.levels()).max();
            match Shape::new(&params, clients) {
                Ok(_) => prop_assert_eq!(most_levels(&params, clients).ok(), deepest),
                Err(error) => prop_assert_eq!(most_levels(&params, clients), Err(error)),
            }
        }

        #[test]
        fn every_client_has_one_leaf_and_ranges_nest(
            clients in 2u32..700, k in 1u8..=4, kickoff_arity in 1u8..=2, layers in 1u8..=2,
        ) {
            let mut params = profile(Profile::Lite);
            params.k = k;
            params.kickoff_arity = kickoff_arity;
            params.layers = layers;
            params.step = 1;
            params.route_budget = 0;
            let shape = Shape::new(&params, clients).unwrap();
            let per_leaf = u32::from(k) * u32::from(k);
            let mut next = 0;
            for node in shape.nodes() {
                match node.kind {
                    NodeKind::Leaf => {
                        prop_assert_eq!(node.clients.start, next);
                        next = node.clients.end;
                        prop_assert!(len(&node.clients) <= per_leaf);
                        prop_assert!(node.subfactories.iter().all(|s| len(s) <= u32::from(k)));
                        prop_assert_eq!(node.subfactories.iter().map(len).sum::<u32>(), len(&node.clients));
                    }
                    _ => {
                        let below: Vec<_> = node.children.iter().map(|c| shape.nodes()[*c].clients.clone()).collect();
                        prop_assert_eq!(span(&below), node.clients.clone());
                        prop_assert!(below.windows(2).all(|w| w[0].end == w[1].start));
                    }
                }
            }
            prop_assert_eq!(next, clients);
            for client in [0, clients / 2, clients - 1] {
                let path = shape.path(client);
                prop_assert_eq!(shape.nodes()[*path.last().unwrap()].kind, NodeKind::Leaf);
                prop_assert!(path.windows(2).all(|w| w[0] < w[1]));
            }
        }
    }
}
