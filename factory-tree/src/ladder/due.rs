//! What is due, in the order in which it is to be done.

use bitcoin::Amount;
use serde::{Deserialize, Serialize};

use super::params::LadderParams;
use super::view::Ladder;
use super::{births, moving, reap, rescue};
use crate::ids::{ClientId, FactoryId};
use crate::shape::ClientRange;
use crate::units::Height;

/// How much time is left for something that must be confirmed before `T - late_margin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Urgency {
    /// Enough, with every margin.
    OnTime,
    /// Not enough with every margin: pay what the next block takes.
    Late,
    /// Past `T`: timeouts are valid, it is a race.
    Expired,
}

/// How loudly a client is told that its factory ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Warning {
    /// Some days before the dying days.
    Early,
    /// They have begun.
    Dying,
    /// The last of them.
    LastDay,
    /// They are over.
    Over,
}

/// A part of a published factory that keys alone recover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The output that this node of the shape would spend.
    Branch {
        /// Its index.
        node: usize,
    },
    /// A lone client's channel on a published leaf.
    Channel,
}

/// Something to do. Whatever is listed stays listed until the view says that it is done, so doing
/// it again must be harmless.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Due {
    /// Tell the operator: timeouts may pay, or have paid, what was ours. All else that is listed
    /// for the factory is still to be done.
    TooLate {
        /// The factory.
        factory: FactoryId,
        /// The most that is lost: what those still in it hold less than their capacities, and
        /// unsold stock.
        at_risk: Amount,
        /// Clients it is lost to.
        clients: u32,
        /// How late it is.
        urgency: Urgency,
    },
    /// Publish a client's path down to its leaf, and pay for it.
    Publish {
        /// The factory.
        factory: FactoryId,
        /// The client.
        client: ClientId,
        /// Everything of it is spent by this height.
        deadline: Height,
        /// How much time is left.
        urgency: Urgency,
        /// Whether it is begun already.
        started: bool,
    },
    /// Spend a channel that is on the chain, by our latest commitment or together with the client.
    CloseBeforeT {
        /// The factory.
        factory: FactoryId,
        /// The client.
        client: ClientId,
        /// The spend is confirmed by this height.
        deadline: Height,
        /// How much time is left.
        urgency: Urgency,
    },
    /// Spend the funding output: every key is ours.
    Reap {
        /// The factory.
        factory: FactoryId,
        /// Confirmed by this height.
        deadline: Height,
        /// How much time is left.
        urgency: Urgency,
        /// Whether a spend is stored already: broadcast it again, or bump it.
        started: bool,
    },
    /// Spend an output of a published factory whose every owner's keys are ours.
    ReapSubtree {
        /// The factory.
        factory: FactoryId,
        /// Which output.
        part: Part,
        /// Its owners' positions.
        members: ClientRange,
        /// Confirmed by this height.
        deadline: Height,
        /// How much time is left.
        urgency: Urgency,
    },
    /// Take what nobody published by the script leaf (`LspReclaim`).
    ReclaimAtT {
        /// The factory.
        factory: FactoryId,
    },
    /// Broadcast the funding again.
    Rebroadcast {
        /// The factory.
        factory: FactoryId,
    },
    /// Ask a client that has moved for its keys.
    Handover {
        /// The client.
        client: ClientId,
        /// The dying factory.
        from: FactoryId,
        /// The younger one.
        to: FactoryId,
    },
    /// Let a client's balance move in parts.
    Move {
        /// The client.
        client: ClientId,
        /// The dying factory.
        from: FactoryId,
        /// The younger one.
        to: FactoryId,
        /// The last height at which a part may begin.
        last_part: Height,
    },
    /// Tell a client what happens when ([`super::notice`] has the words).
    Warn {
        /// The client.
        client: ClientId,
        /// Its factory.
        factory: FactoryId,
        /// How loudly.
        level: Warning,
    },
    /// Invite a client of a dying factory into the one born now.
    Invite {
        /// The client.
        client: ClientId,
        /// The dying factory.
        from: FactoryId,
        /// The rung born now.
        to: u32,
        /// Which invitation it is, 1 the first.
        attempt: u8,
        /// How many it gets.
        of: u8,
        /// The end of its dying days.
        deadline: Height,
    },
    /// Begin the ceremony of this rung.
    Birth {
        /// The rung.
        rung: u32,
        /// The height it was planned at.
        planned: Height,
    },
    /// Everything is spent and buried: take the factory out of the view, archive its monitors.
    Forget {
        /// The factory.
        factory: FactoryId,
    },
}

impl Due {
    /// The order of kinds: what is lost if late comes first.
    #[must_use]
    pub const fn rank(&self) -> u8 {
        match self {
            Self::TooLate { .. } => 0,
            Self::Publish { .. } => 1,
            Self::CloseBeforeT { .. } => 2,
            Self::Reap { .. } | Self::ReapSubtree { .. } | Self::ReclaimAtT { .. } => 3,
            Self::Rebroadcast { .. } => 4,
            Self::Handover { .. } => 5,
            Self::Move { .. } => 6,
            Self::Warn { .. } => 7,
            Self::Invite { .. } => 8,
            Self::Birth { .. } => 9,
            Self::Forget { .. } => 10,
        }
    }
}

/// Everything that is due at `height`, in the order in which it is to be done: publications,
/// then what brings coins back, then moves and notices, then invitations, then the birth; within
/// a kind the factory that ends first. The same view gives the same list.
#[must_use]
pub fn due(params: &LadderParams, height: Height, view: &Ladder) -> Vec<Due> {
    let mut factories: Vec<_> = view.factories.iter().collect();
    factories.sort_by_key(|facts| (facts.schedule.expiry, facts.rung, facts.id));
    let mut list = Vec::new();
    for facts in factories {
        rescue::due(height, facts, &mut list);
        reap::due(params, height, facts, &mut list);
        moving::due(params, height, view, facts, &mut list);
        births::for_members(params, height, view, facts, &mut list);
    }
    births::birth(params, height, view, &mut list);
    // Stable: within a kind, factories stay in the order of their ends, clients in leaf order.
    list.sort_by_key(Due::rank);
    list
}
