//! What is known of one part.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::event::{Msat, PaymentHash};
use crate::leaf::{LeafId, Side};

/// One part of a move, as the coordinator agreed to it.
#[derive(Clone, PartialEq, Eq)]
pub struct MovePart {
    /// The hash of both payments; the client has the preimage.
    pub hash: PaymentHash,
    /// The leaf whose channel the client pays over.
    pub from: LeafId,
    /// The leaf over whose channel the client is paid.
    pub to: LeafId,
    /// What the client pays, the fee included.
    pub incoming: Msat,
    /// What the client is paid.
    pub outgoing: Msat,
    /// The height before which the client's payment must not expire. It may lie beyond the old factory's end.
    pub incoming_expiry: u32,
    /// The height at which the payment to the client expires.
    pub outgoing_expiry: u32,
    /// The client's payment secret ([`crate::Node::expect_part`]).
    pub to_secret: [u8; 32],
}

impl fmt::Debug for MovePart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MovePart")
            .field("hash", &self.hash)
            .field("from", &self.from)
            .field("to", &self.to)
            .field("incoming", &self.incoming)
            .field("outgoing", &self.outgoing)
            .field("incoming_expiry", &self.incoming_expiry)
            .field("outgoing_expiry", &self.outgoing_expiry)
            .finish_non_exhaustive()
    }
}

/// How far a part is that is not over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum PartState {
    /// Agreed; nothing has been paid.
    Agreed,
    /// The client's payment is on its way; the coordinator holds it once it is there.
    Paid,
    /// The coordinator's payment is on its way.
    PaidOn,
    /// The client has revealed the preimage.
    Revealed,
}

/// A part that is not over, as the host may know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartView {
    /// Its hash.
    pub hash: PaymentHash,
    /// The leaf it comes from.
    pub from: LeafId,
    /// The leaf it goes to.
    pub to: LeafId,
    /// What is to arrive there.
    pub amount: Msat,
    /// What it costs the client; on the client's side known once it is sent.
    pub fee: Msat,
    /// Before this height the client's payment does not expire; 0 until the client knows it.
    pub incoming_expiry: u32,
    /// How far it is.
    pub state: PartState,
}

/// How far a part is, and what has to be told of it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Progress {
    Under(PartState),
    /// Over; `told` once the host has taken it in.
    Moved {
        told: bool,
    },
    Failed {
        why: String,
        told: bool,
    },
}

/// What is stored of a part. It stays until its old leaf is forgotten: Lightning may tell of its payments again, and its hash must not serve twice.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartRecord {
    pub hash: [u8; 32],
    pub side: Side,
    pub from: LeafId,
    pub to: LeafId,
    /// What the client pays; on its side 0 until it does.
    pub incoming_msat: u64,
    pub outgoing_msat: u64,
    pub incoming_expiry: u32,
    /// The coordinator's side knows it.
    pub outgoing_expiry: u32,
    /// With which the client pays; on its side once it does.
    pub from_secret: [u8; 32],
    /// With which the coordinator pays.
    pub to_secret: [u8; 32],
    /// Once the coordinator has it; the client's stays with LDK.
    pub preimage: Option<[u8; 32]>,
    /// Whether the client has claimed what it was paid.
    pub claimed: bool,
    /// Whether what the client paid was claimed.
    pub settled: bool,
    pub progress: Progress,
}

impl PartRecord {
    /// As agreed, before anything is paid.
    pub(crate) fn agreed(part: &MovePart, side: Side, from_secret: [u8; 32]) -> Self {
        Self {
            hash: part.hash.0,
            side,
            from: part.from,
            to: part.to,
            incoming_msat: part.incoming.0,
            outgoing_msat: part.outgoing.0,
            incoming_expiry: part.incoming_expiry,
            outgoing_expiry: part.outgoing_expiry,
            from_secret,
            to_secret: part.to_secret,
            preimage: None,
            claimed: false,
            settled: false,
            progress: Progress::Under(PartState::Agreed),
        }
    }

    pub(crate) fn hash(&self) -> PaymentHash {
        PaymentHash(self.hash)
    }

    /// Its state while it is not over.
    pub(crate) fn state(&self) -> Option<PartState> {
        match self.progress {
            Progress::Under(state) => Some(state),
            Progress::Moved { .. } | Progress::Failed { .. } => None,
        }
    }

    /// Whether the host knows its end.
    pub(crate) fn is_told(&self) -> bool {
        match self.progress {
            Progress::Under(_) => false,
            Progress::Moved { told } | Progress::Failed { told, .. } => told,
        }
    }

    /// Whether something of it may be on its way.
    pub(crate) fn is_paid(&self) -> bool {
        self.state().is_some_and(|state| state != PartState::Agreed)
    }

    /// Whether it is agreed to, and no more.
    pub(crate) fn is_unpaid(&self) -> bool {
        self.state() == Some(PartState::Agreed)
    }

    pub(crate) fn fail(&mut self, why: &str) {
        if self.state().is_some() {
            self.progress = Progress::Failed {
                why: why.to_owned(),
                told: false,
            };
        }
    }

    pub(crate) fn amount(&self) -> Msat {
        Msat(self.outgoing_msat)
    }

    pub(crate) fn fee(&self) -> Msat {
        Msat(self.incoming_msat.saturating_sub(self.outgoing_msat))
    }

    pub(crate) fn view(&self) -> Option<PartView> {
        Some(PartView {
            hash: self.hash(),
            from: self.from,
            to: self.to,
            amount: self.amount(),
            fee: self.fee(),
            incoming_expiry: self.incoming_expiry,
            state: self.state()?,
        })
    }

    /// Whether this is the part that was agreed to.
    pub(crate) fn is(&self, part: &MovePart) -> bool {
        self.hash == part.hash.0
            && (self.from, self.to) == (part.from, part.to)
            && self.incoming_msat == part.incoming.0
            && self.outgoing_msat == part.outgoing.0
            && self.incoming_expiry == part.incoming_expiry
            && self.outgoing_expiry == part.outgoing_expiry
            && self.to_secret == part.to_secret
    }
}
