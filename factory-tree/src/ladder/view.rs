//! What the engine is told: the stored facts, plainly.

use std::collections::BTreeSet;

use bitcoin::Amount;
use serde::{Deserialize, Serialize};

use super::Warning;
use crate::ids::{ClientId, FactoryId};
use crate::params::{ExpiryPolicy, FactoryParams, Schedule};
use crate::units::{Blocks, Height};

/// All factories that are not forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ladder {
    /// The planned height of the first birth (rung 0).
    pub first: Height,
    /// The factories.
    pub factories: Vec<FactoryFacts>,
    /// Rungs that stay empty: nobody came, or the operator said so.
    pub given_up: BTreeSet<u32>,
}

/// One factory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FactoryFacts {
    /// Its id.
    pub id: FactoryId,
    /// Its place in the ladder.
    pub rung: u32,
    /// Its parameters.
    pub params: FactoryParams,
    /// Its calendar.
    pub schedule: Schedule,
    /// What is known of its funding transaction.
    pub funding: Funding,
    /// What became of its funding output.
    pub root: Root,
    /// Stock that was not sold.
    pub stock: Amount,
    /// Its clients in leaf order.
    pub members: Vec<MemberFacts>,
    /// The loss that has been reported.
    pub loss_reported: Option<Amount>,
}

/// A factory's funding transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Funding {
    /// Broadcast, or about to be.
    Unconfirmed,
    /// In the block at this height.
    Confirmed {
        /// Of the block.
        at: Height,
    },
    /// Was confirmed, and is not any more.
    Reorged,
    /// Its inputs were spent elsewhere, at this height: it never confirms.
    Dead {
        /// Of the block with the other spend.
        at: Height,
    },
}

/// What spends a factory's funding output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Root {
    /// Nothing.
    #[default]
    Unspent,
    /// Our key-path (or, under `LspReclaim`, script-path) spend is stored, unconfirmed.
    ReapSent,
    /// That spend is confirmed.
    Reaped {
        /// In this block.
        at: Height,
    },
    /// The tree is on the chain, at least its first transaction.
    Published {
        /// Nodes of the shape whose transaction is confirmed.
        nodes: BTreeSet<usize>,
        /// Outputs of them, anchors aside, that no confirmed transaction spends.
        open: u32,
        /// The latest confirmation of anything of this factory.
        latest: Height,
    },
    /// A timeout took it: the clients are paid.
    TimedOut {
        /// In this block.
        at: Height,
    },
}

/// One client of a factory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberFacts {
    /// Its account.
    pub client: ClientId,
    /// Its channels' capacity.
    pub capacity: Amount,
    /// Its own balance in them.
    pub balance: Amount,
    /// How far it is.
    pub progress: Progress,
    /// The loudest notice it was sent.
    pub warned: Option<Warning>,
}

/// How far a client is on its way out of a factory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// It is in, and nothing was asked of it.
    In,
    /// It was invited.
    Invited {
        /// How often.
        tries: u8,
        /// Last to this rung.
        rung: u32,
    },
    /// It has a channel in a younger factory, and its balance here.
    NewChannel {
        /// The younger factory.
        factory: FactoryId,
    },
    /// Its balance is on its way.
    Moving {
        /// The younger factory.
        factory: FactoryId,
        /// When the part in flight expires on the channel here.
        in_flight: Option<Height>,
    },
    /// Its balance here is 0 and nothing is in flight; we do not have its keys.
    Moved {
        /// The younger factory.
        factory: FactoryId,
    },
    /// We have its keys, checked against the public ones.
    HandedOver,
    /// Its path is decided to be published, and not all confirmed.
    Publishing,
    /// Its leaf is confirmed, its channel output unspent.
    OnChain,
    /// Nothing of it is left: its output, or the branch above it, is spent.
    Gone,
}

impl Progress {
    /// Whether the client has something here that its keys or its path must settle.
    #[must_use]
    pub const fn is_inside(self) -> bool {
        matches!(
            self,
            Self::In
                | Self::Invited { .. }
                | Self::NewChannel { .. }
                | Self::Moving { .. }
                | Self::Moved { .. }
        )
    }
}

impl Funding {
    /// Confirmations at `height`; 0 for what is not in a block.
    #[must_use]
    pub const fn depth(self, height: Height) -> u32 {
        match self {
            Self::Confirmed { at } if at.0 <= height.0 => height.since(at).0.saturating_add(1),
            _ => 0,
        }
    }
}

impl Ladder {
    /// The factory with this id.
    #[must_use]
    pub fn factory(&self, id: FactoryId) -> Option<&FactoryFacts> {
        self.factories.iter().find(|factory| factory.id == id)
    }
}

impl FactoryFacts {
    /// Whether timeouts of the factory's own outputs pay its clients at `T`.
    #[must_use]
    pub const fn refunds_clients(&self) -> bool {
        matches!(self.params.expiry_policy, ExpiryPolicy::ClientRefund)
    }

    /// Whether every client's keys are ours.
    #[must_use]
    pub fn is_handed_over(&self) -> bool {
        let mut members = self.members.iter();
        members.all(|member| member.progress == Progress::HandedOver)
    }

    /// The last height to begin a whole path at with every margin left.
    #[must_use]
    pub const fn latest_start(&self) -> Height {
        self.schedule.last_spend.minus(self.schedule.exit_delay)
    }

    /// The last height to broadcast a single spend at with a margin for its confirmation.
    #[must_use]
    pub const fn latest_single(&self) -> Height {
        self.schedule
            .last_spend
            .minus(Blocks(self.params.conf_margin))
    }
}
