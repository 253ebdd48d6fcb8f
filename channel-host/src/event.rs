//! What a node has to say.

use std::time::Duration;

use async_trait::async_trait;
use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, OutPoint, Transaction, Txid};

use crate::StoreError;
use crate::jit::JitRefusal;
use crate::leaf::{LeafId, LeafRefusal, SpendKind};
use crate::pay::{ClaimRefusal, ForwardRefusal};

/// Amounts of Lightning payments, in thousandths of a satoshi.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Msat(pub u64);

impl std::fmt::Display for Msat {
    /// In satoshi, exactly.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (whole, rest) = (self.0 / 1000, self.0 % 1000);
        match rest {
            0 => write!(f, "{whole} sat"),
            rest => write!(f, "{whole}.{rest:03} sat"),
        }
    }
}

/// 32 bytes that name a payment to its receiver: the hash of its preimage.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PaymentHash(pub [u8; 32]);

impl std::fmt::Display for PaymentHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::str::FromStr for PaymentHash {
    type Err = bitcoin::hex::HexToArrayError;

    /// From 64 hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        bitcoin::hex::FromHex::from_hex(text).map(Self)
    }
}

impl std::fmt::Debug for PaymentHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PaymentHash({self})")
    }
}

/// What happened. Each is told at least once: after a crash some are told again, so taking one in must be idempotent.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum NodeEvent {
    /// The channel of a leaf stands: both commitments exchanged, checked against what was verified, usable.
    LeafOpened {
        /// Which.
        leaf: LeafId,
    },
    /// The channel of a leaf did not come about, or was closed for not being what was verified.
    LeafRefused {
        /// Which.
        leaf: LeafId,
        /// Why.
        reason: LeafRefusal,
    },
    /// The channel of a leaf takes no more payments.
    LeafClosed {
        /// Which.
        leaf: LeafId,
        /// In Lightning's words.
        reason: String,
        /// Closed by both sides together.
        cooperative: bool,
    },
    /// The leaf's path has to be published now; the channel is closed by itself once the leaf is confirmed.
    ExitNeeded {
        /// Which.
        leaf: LeafId,
        /// Why.
        reason: ExitReason,
    },
    /// The leaf's transaction is in a block.
    LeafConfirmed {
        /// Which.
        leaf: LeafId,
        /// Height of the block.
        height: u32,
    },
    /// The leaf's transaction was in a block that left the chain.
    LeafUnconfirmed {
        /// Which.
        leaf: LeafId,
    },
    /// The channel output is spent in a block.
    LeafSpent {
        /// Which.
        leaf: LeafId,
        /// By what.
        kind: SpendKind,
        /// The spending transaction.
        txid: Txid,
        /// Height of the block.
        height: u32,
    },
    /// Lightning does not see by itself that HTLCs ended with this spend (no commitment); starting the node again fails them back.
    RestartNeeded {
        /// The leaf that ended.
        leaf: LeafId,
    },
    /// Our signed commitment of a confirmed leaf, version 3 with a keyless P2A: anybody may pay for it.
    CommitmentReady {
        /// Which, if it is a leaf's.
        leaf: Option<LeafId>,
        /// The commitment.
        transaction: Box<Transaction>,
    },
    /// Somebody paid us.
    PaymentReceived {
        /// Its hash.
        hash: PaymentHash,
        /// How much.
        amount: Msat,
        /// What was kept of it for opening a channel.
        fee: Msat,
    },
    /// A payment to us came over a channel outside of factories whose funding was not seen: it is claimed when it is, or sent back in time.
    FundingAwaited {
        /// Its hash.
        hash: PaymentHash,
        /// How much.
        amount: Msat,
    },
    /// A payment for a hold invoice is here and waits: claim it or fail it, before it expires.
    PaymentHeld {
        /// Its hash.
        hash: PaymentHash,
        /// How much.
        amount: Msat,
        /// Height at which it expires; a claim must come earlier by what a leaf's exit takes.
        expiry: u32,
    },
    /// Somebody wanted to pay us, and it was sent back.
    PaymentRefused {
        /// Its hash.
        hash: PaymentHash,
        /// Why.
        reason: ClaimRefusal,
    },
    /// Our payment arrived.
    PaymentSent {
        /// Its hash.
        hash: PaymentHash,
        /// The proof.
        preimage: [u8; 32],
        /// The fee it cost.
        fee: Msat,
    },
    /// Our payment came back whole.
    PaymentFailed {
        /// Its hash.
        hash: PaymentHash,
        /// In Lightning's words.
        reason: String,
    },
    /// A payment went through us.
    PaymentForwarded {
        /// Which one: the same when it is told again.
        number: [u8; 32],
        /// How much went out.
        amount: Msat,
        /// What we earned, without what was kept for opening a channel.
        fee: Msat,
    },
    /// A payment through us was sent back at once.
    ForwardRefused {
        /// Its hash.
        hash: PaymentHash,
        /// Why.
        reason: ForwardRefusal,
    },
    /// A payment through us waits for a short while for this client, who is away.
    ReceiverAway {
        /// Who.
        client: PublicKey,
    },
    /// A payment over a channel of this client, who is away, is not resolved; at that height the channel goes to the chain for it.
    ExpirySoon {
        /// Who.
        client: PublicKey,
        /// When.
        exits_at: u32,
    },
    /// A part of a move is over: the client has it in its new channel, the coordinator has what it paid out.
    PartMoved {
        /// Its hash.
        hash: PaymentHash,
        /// The leaf it came from.
        from: LeafId,
        /// The leaf it went to.
        to: LeafId,
        /// What arrived there.
        amount: Msat,
        /// What it cost the client.
        fee: Msat,
    },
    /// A part of a move came back whole, or was never sent.
    PartFailed {
        /// Its hash.
        hash: PaymentHash,
        /// The leaf it would have come from.
        from: LeafId,
        /// The leaf it would have gone to.
        to: LeafId,
        /// Why, for people.
        why: String,
    },
    /// A just-in-time channel is about to be paid for.
    JitFunded {
        /// The order's number.
        scid: u64,
        /// The channel's number.
        id: u64,
        /// Its funding transaction.
        txid: Txid,
        /// What the channel holds.
        capacity: Amount,
        /// What the transaction costs, if that can be told.
        fee: Option<Amount>,
    },
    /// The payment for a just-in-time channel was sent on over it.
    JitForwarded {
        /// The order's number.
        scid: u64,
        /// Since its last part came in.
        waited: Duration,
    },
    /// A client has its first payment over a just-in-time channel, and we have the fee.
    JitPaid {
        /// The order's number.
        scid: u64,
        /// What was taken, exactly.
        fee: Msat,
    },
    /// A payment for a just-in-time channel was sent back, with all its parts that were here.
    JitRefused {
        /// The order's number.
        scid: u64,
        /// The payment's hash.
        hash: PaymentHash,
        /// Why.
        reason: JitRefusal,
    },
    /// A channel that was bought stands, and its funding waits for the host's word ([`crate::Node::release_bought`]).
    BoughtStands {
        /// Its number.
        id: u64,
    },
    /// An ordinary channel may be used.
    ChannelOpened {
        /// The number it was opened under; 0 if the peer opened it.
        id: u64,
        /// With whom.
        peer: PublicKey,
        /// Its funding output.
        outpoint: Option<OutPoint>,
    },
    /// An ordinary channel is closed.
    ChannelClosed {
        /// The number it was opened under; 0 if the peer opened it.
        id: u64,
        /// In Lightning's words.
        reason: String,
    },
    /// The store failed and the node has stopped: nothing more is sent or received before it is started again.
    Stopped {
        /// Why.
        cause: StoreError,
    },
}

/// Why a leaf has to go to the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExitReason {
    /// We asked for it.
    Asked,
    /// We know the preimage of a payment to us that is not settled, and its expiry is near.
    ReceivedUnsettled {
        /// When it expires.
        expiry: u32,
    },
    /// A payment through us is not resolved downstream, and the upstream expiry is near.
    ForwardUnresolved {
        /// When it expires upstream.
        upstream: u32,
    },
    /// A part of a move is not over, and what pays for it expires soon.
    PartUnresolved {
        /// When that expires.
        expiry: u32,
    },
    /// The channel was closed by one side alone.
    Closed,
}

/// Takes in what happens. An event counts as told when this returns `Ok`; until then nothing depends on it, and it is told again.
#[async_trait]
pub trait EventSink: Send + Sync + std::fmt::Debug {
    /// Takes one in, durably if it matters. May call the node.
    ///
    /// # Errors
    /// [`NotTakenIn`] if it could not be stored: it comes again, and what comes after it waits. Not for what would be the same then.
    async fn take(&self, event: NodeEvent) -> Result<(), NotTakenIn>;
}

/// An event could not be taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the event could not be taken in")]
pub struct NotTakenIn;

#[async_trait]
impl EventSink for tokio::sync::mpsc::UnboundedSender<NodeEvent> {
    async fn take(&self, event: NodeEvent) -> Result<(), NotTakenIn> {
        self.send(event).map_err(|_| NotTakenIn)
    }
}
