//! One order, from its sale to its end.

use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, Transaction};
use serde::{Deserialize, Serialize};

use crate::event::{Msat, PaymentHash};
use crate::pay::{ForwardRefusal, Intercepted};

/// What was promised to a client: who pays it over the order's number gets through over a channel opened then, for this fee.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JitOrder {
    /// The client.
    pub client: PublicKey,
    /// What it said it will be paid, in thousandths of a satoshi: then it may come in parts. Without it comes one payment, of any size.
    pub payment_msat: Option<u64>,
    /// The least fee.
    pub min_fee_msat: u64,
    /// The fee in millionths of the payment.
    pub proportional: u32,
    /// The least payment.
    pub min_payment_msat: u64,
    /// The largest payment.
    pub max_payment_msat: u64,
    /// Until when a payment must have come, in Unix time.
    pub valid_until: u64,
    /// The longest wait for our money that the client may ask for, in blocks.
    pub max_to_self_delay: u16,
    /// What the channel holds beyond the payment, in satoshi: at least a tenth of it, as the client asks us for a reserve.
    pub margin_sat: u64,
    /// Whether the channel's funding goes out only once the client has taken the payment.
    pub client_trusts_lsp: bool,
}

impl JitOrder {
    /// What opening the channel costs for a payment of this size; nothing if it cannot be served.
    pub(crate) fn fee_for(&self, payment_msat: u64) -> Option<u64> {
        let sizes = self.min_payment_msat..=self.max_payment_msat;
        let fee = opening_fee(payment_msat, self.min_fee_msat, self.proportional)?;
        (sizes.contains(&payment_msat) && fee < payment_msat).then_some(fee)
    }

    /// The same for what came, which may be somewhat more than was ordered: much more would be a larger channel for the same fee.
    pub(crate) fn fee_of(&self, came_msat: u64) -> Option<u64> {
        let payment = self.payment_msat.unwrap_or(came_msat);
        let most = payment.saturating_mul(2).min(self.max_payment_msat);
        let fee = self.fee_for(payment)?;
        (came_msat <= most).then_some(fee)
    }

    /// The size of the channel for what comes through it first.
    pub(crate) fn capacity(&self, payment_msat: u64) -> Amount {
        jit_capacity(payment_msat, self.margin_sat)
    }
}

/// What a channel holds that is opened for a payment, with so much beyond it, and a tenth of it at least.
pub fn jit_capacity(payment_msat: u64, margin_sat: u64) -> Amount {
    let payment = payment_msat.div_ceil(1000);
    let margin = margin_sat.max(payment.div_ceil(10));
    Amount::from_sat(payment.saturating_add(margin))
}

/// bLIP-52's fee; nothing if it overflows, which the specification wants refused.
pub fn opening_fee(payment_msat: u64, min_fee_msat: u64, proportional: u32) -> Option<u64> {
    let part = payment_msat.checked_mul(proportional.into())?;
    // The specification adds before it divides.
    Some((part.checked_add(999_999)? / 1_000_000).max(min_fee_msat))
}

/// A channel that is about to be opened: the host's last word before it costs anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JitOpening {
    /// The order's number.
    pub scid: u64,
    /// For whom.
    pub client: PublicKey,
    /// What waits for it.
    pub payment: Msat,
    /// What is taken of it.
    pub fee: Msat,
    /// The channel's size.
    pub capacity: Amount,
    /// The height up to which a leaf must take payments for this one to go over it; nothing if it leaves no time for a leaf of this client's.
    pub leaf_until: Option<u32>,
}

/// Where an order's channel comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JitGround {
    /// It is opened as an ordinary one.
    Chain,
    /// It is the one on this leaf, by our channel id of it: the host opens it, if it does not stand yet, and its gate when it may be used.
    Leaf(u128),
}

/// How many payments for channels that are not there yet may be held, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JitGates {
    /// Of all orders together.
    pub held: usize,
    /// Each, until its payment is complete and its channel stands.
    pub patience: Duration,
}

impl Default for JitGates {
    fn default() -> Self {
        Self {
            held: 256,
            patience: Duration::from_secs(90),
        }
    }
}

/// Why a payment for a just-in-time channel was sent back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JitRefusal {
    /// The order's time is over.
    #[error("the order has expired")]
    Expired,
    /// The order is over.
    #[error("the order's channel is closed")]
    Over,
    /// The promise is for other sizes.
    #[error("{} are not what the order is for", Msat(*.0))]
    Size(u64),
    /// The payer says to forward more than it brings.
    #[error("it is to forward more than it brings")]
    Hollow,
    /// Not enough came in time.
    #[error("only {} came in time", Msat(*.0))]
    Underpaid(u64),
    /// Too many wait already.
    #[error("too many payments wait for channels")]
    TooMany,
    /// The client did not come, or its channel did not come about in time.
    #[error("the channel did not come about in time")]
    TooSlow,
    /// Its hash is that of a part of a move.
    #[error("a part of somebody's balance moves under its hash")]
    PartOfMove,
    /// Its hash is that of another order's payment.
    #[error("another order is paid under its hash")]
    OtherOrder,
    /// The client needs no channel for it.
    #[error("the client can be paid over a channel that it has")]
    HasRoom,
    /// LDK would send a part of it over another channel, where nothing may be kept of it.
    #[error(
        "a part of it fits into a channel that the client has, and would go over that one: pay less, or in fewer parts"
    )]
    PartHasRoom,
    /// The host says no.
    #[error("{0}")]
    Host(String),
    /// The channel could not be opened or funded.
    #[error("no channel: {0}")]
    NoChannel(String),
    /// It cannot go on over the channel.
    #[error(transparent)]
    Forward(#[from] ForwardRefusal),
}

/// How far an order is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stage {
    /// No channel.
    Sold,
    /// A channel is being opened, under the record's `id`.
    Opening,
    /// There is a channel, and its fee is not paid.
    Open,
    /// The fee is taken: what comes now goes through like any payment.
    Paid,
    /// The channel is closed, or was never to be used.
    Over,
}

/// An HTLC that came in: its channel, and its number there.
pub(crate) type PartKey = ([u8; 32], u64);

/// What is remembered of an order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub scid: u64,
    pub order: JitOrder,
    pub stage: Stage,
    /// Of the channel that is being opened, or was: fresh for each try.
    pub id: u128,
    /// What is taken of the payment, once its size is known.
    pub fee_msat: u64,
    /// What the channel is to hold.
    pub capacity_sat: u64,
    pub funding: Option<Transaction>,
    /// Whether we have sent it out: only when its channel stood, so that there is a way back from it, whatever becomes of the channel.
    pub released: bool,
    /// The payment that was sent on, if one was.
    pub hash: Option<[u8; 32]>,
    /// The parts it came in, and what was taken of each that the client has claimed.
    pub parts: Vec<(PartKey, Option<u64>)>,
}

impl Record {
    pub(crate) fn new(scid: u64, order: JitOrder) -> Self {
        Self {
            scid,
            order,
            stage: Stage::Sold,
            id: 0,
            fee_msat: 0,
            capacity_sat: 0,
            funding: None,
            released: false,
            hash: None,
            parts: Vec::new(),
        }
    }

    pub(crate) fn is_expired(&self, now: u64) -> bool {
        now > self.order.valid_until
    }

    /// Whether nothing can come of it any more.
    pub(crate) fn is_stale(&self, now: u64) -> bool {
        let owed = self.released && self.funding.is_some();
        matches!(self.stage, Stage::Sold | Stage::Over) && self.is_expired(now) && !owed
    }

    pub(crate) fn hash(&self) -> Option<PaymentHash> {
        self.hash.map(PaymentHash)
    }

    /// What was taken so far.
    pub(crate) fn taken(&self) -> u64 {
        let taken = self.parts.iter().filter_map(|(_, taken)| *taken);
        taken.fold(0, u64::saturating_add)
    }

    /// Why a payment can never be served, if so: it is sent back at once.
    pub(crate) fn refusal(
        &self,
        htlc: &Intercepted,
        has_room: bool,
        now: u64,
    ) -> Option<JitRefusal> {
        // The amount to forward is the payer's word; what it brings is not.
        if htlc.inbound_msat < htlc.outbound_msat {
            return Some(JitRefusal::Hollow);
        }
        let one = self.order.payment_msat.is_none();
        match self.stage {
            Stage::Over => Some(JitRefusal::Over),
            Stage::Sold if self.is_expired(now) => Some(JitRefusal::Expired),
            // Nothing of it stands yet, and what comes instead would be opened anew.
            Stage::Opening if self.is_on_leaf() && self.is_expired(now) => {
                Some(JitRefusal::Expired)
            }
            // A channel that nobody paid for in time is not held open by parts.
            Stage::Opening | Stage::Open if self.is_unpaid_for() && self.is_expired(now) => {
                Some(JitRefusal::Expired)
            }
            Stage::Paid => None,
            _ if one && self.order.fee_for(htlc.outbound_msat).is_none() => {
                Some(JitRefusal::Size(htlc.outbound_msat))
            }
            _ => (!has_room).then_some(JitRefusal::TooMany),
        }
    }

    /// Whether its funding is withheld until it is paid for, and it is not.
    pub(crate) fn is_unpaid_for(&self) -> bool {
        !self.is_on_leaf() && self.order.client_trusts_lsp && !self.released && self.taken() == 0
    }

    /// Whether its channel is a leaf's: it has no funding of ours, and the host opens and closes it.
    pub(crate) const fn is_on_leaf(&self) -> bool {
        crate::is_leaf(self.id)
    }

    /// Whether the fee of its channel, which is there or comes, is not paid: nothing else goes over it.
    pub(crate) fn is_unpaid(&self) -> bool {
        matches!(self.stage, Stage::Opening | Stage::Open)
    }

    /// Whether the channel's funding may go out.
    pub(crate) fn may_be_funded(&self) -> bool {
        match self.stage {
            // The client may have claimed, and closed at once: what it claimed is real.
            _ if self.released => true,
            Stage::Sold | Stage::Opening | Stage::Over => false,
            // The whole fee, and not a share of it: a part with a thousandth of a satoshi would buy the channel.
            Stage::Open => !self.order.client_trusts_lsp,
            Stage::Paid => true,
        }
    }

    /// A part was claimed; a part is counted once, however often that is told.
    pub(crate) fn claimed(&mut self, key: &PartKey, taken: u64) {
        for (part, known) in &mut self.parts {
            if part == key {
                *known = Some(taken);
            }
        }
        if self.stage == Stage::Open && self.taken() >= self.fee_msat {
            self.stage = Stage::Paid;
        }
    }

    pub(crate) fn has_part(&self, key: &PartKey) -> bool {
        self.parts.iter().any(|(part, _)| part == key)
    }
}
