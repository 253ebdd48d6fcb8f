//! What happens, as typed events: one stream for the log, the event file, the operator's progress and the tests.

mod sink;
mod words;

use bitcoin::{OutPoint, Txid};
use factory_tree::ceremony::coordinator::{self as machine, Phase};
use factory_tree::ceremony::message::Round;
use factory_tree::ids::{Attempt, CeremonyId, ClientId, FactoryId, SaleId};
use serde::Serialize;

pub use sink::Events;
pub use words::{abort_name, abort_text, decline_text, left_out_name};

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// It serves, its chain is in sync, and its Lightning node runs.
    Ready {
        listen: String,
        node_id: String,
        connection: String,
        lightning: String,
    },
    /// A client authenticated.
    ClientConnected { client: ClientId },
    /// A client's session ended.
    ClientDisconnected { client: ClientId, reason: String },
    /// A client wants to be in the next factory.
    ClientInterested { client: ClientId, capacity_sat: u64 },
    /// Somebody did not authenticate.
    AuthRefused { reason: String, from: String },
    /// A client's message was refused.
    MessageRefused {
        client: ClientId,
        code: String,
        message: String,
    },
    /// Coins are pinned, and so many clients will be invited.
    CeremonyStarted { ceremony: CeremonyId, invited: u32 },
    /// Invitations go out.
    AttemptStarted {
        #[serde(flatten)]
        round: Round,
        invited: u32,
    },
    /// A client joined.
    Joined {
        #[serde(flatten)]
        round: Round,
        client: ClientId,
    },
    /// Proposals go out.
    ProposalSent {
        #[serde(flatten)]
        round: Round,
        factory: FactoryId,
        clients: u32,
    },
    /// A client's partial signatures came.
    PartialsReceived {
        #[serde(flatten)]
        round: Round,
        client: ClientId,
    },
    /// Final signatures go out.
    FinalsSent {
        #[serde(flatten)]
        round: Round,
        factory: FactoryId,
    },
    /// A client holds its exit kit.
    Acked {
        #[serde(flatten)]
        round: Round,
        client: ClientId,
    },
    /// Every client holds its exit kit: channels are opened on the leaves.
    OpeningChannels {
        #[serde(flatten)]
        round: Round,
        factory: FactoryId,
    },
    /// A client's channel stands on both sides.
    ChannelOpened {
        #[serde(flatten)]
        round: Round,
        client: ClientId,
    },
    /// A client's channel did not come about.
    ChannelRefused {
        #[serde(flatten)]
        round: Round,
        client: ClientId,
        why: String,
    },
    /// A client declined.
    Declined {
        #[serde(flatten)]
        round: Round,
        client: ClientId,
        reason: String,
    },
    /// A client is not in the next attempt: silent, guilty, declined or left.
    ClientLeftOut {
        #[serde(flatten)]
        round: Round,
        client: ClientId,
        reason: &'static str,
        phase: Phase,
    },
    /// A client sent an invalid signature.
    Blamed {
        #[serde(flatten)]
        round: Round,
        client: ClientId,
    },
    /// An attempt failed.
    AttemptFailed {
        #[serde(flatten)]
        round: Round,
        reason: &'static str,
        detail: String,
    },
    /// A ceremony was given up.
    CeremonyFailed {
        ceremony: CeremonyId,
        reason: &'static str,
        detail: String,
    },
    /// Every client of a factory holds its exit kit, and every channel stands.
    CeremonyComplete {
        #[serde(flatten)]
        round: Round,
        factory: FactoryId,
    },
    /// A factory's funding is on its way.
    FundingBroadcast { factory: FactoryId, txid: Txid },
    /// A factory's funding is in the chain.
    FactoryConfirmed { factory: FactoryId, height: u32 },
    /// A factory's funding left the chain.
    FactoryUnconfirmed { factory: FactoryId },
    /// A factory's funding is as deep as agreed.
    FactoryUsable { factory: FactoryId },
    /// A factory's transaction is in the chain.
    TreePublished {
        factory: FactoryId,
        txid: Txid,
        kind: String,
        height: u32,
    },
    /// What is ours of a factory is on its way back.
    SweepBroadcast {
        factory: FactoryId,
        txid: Txid,
        sat: u64,
        outputs: usize,
    },
    /// What is ours of a factory came back.
    Swept {
        factory: FactoryId,
        txid: Txid,
        sat: u64,
        outputs: usize,
    },
    /// A rung's ceremony begins.
    LadderBirth {
        rung: u32,
        ceremony: CeremonyId,
        invited: u32,
    },
    /// A rung's factory cannot be born now.
    LadderWaiting { rung: u32, problem: String },
    /// So much more than they own may go, or went, to clients whose factory was not left or published in time.
    LadderLoss {
        factory: FactoryId,
        sat: u64,
        clients: u32,
    },
    /// A part of a client's balance moved to a younger factory.
    PartMoved {
        client: ClientId,
        from: FactoryId,
        to: FactoryId,
        amount_msat: u64,
        fee_msat: u64,
    },
    /// A client has left a factory: its keys there are ours.
    HandedOver {
        client: ClientId,
        factory: FactoryId,
    },
    /// Keys that a client handed over are not its own.
    HandoverRefused {
        client: ClientId,
        factory: FactoryId,
        reason: String,
    },
    /// Everything of a factory is spent and buried.
    FactoryForgotten { factory: FactoryId },
    /// A client's webhook took a notification.
    WebhookDelivered {
        client: ClientId,
        app_name: String,
        cause: String,
    },
    /// A client's webhook did not take a notification; it is tried again unless it is given up.
    WebhookFailed {
        client: ClientId,
        app_name: String,
        cause: String,
        problem: String,
        given_up: bool,
    },
    /// No webhook is told anything before the next start.
    WebhooksDown { problem: String },
    /// The Lightning node runs; clients and peers connect to this address.
    LightningReady { node_id: String, address: String },
    /// The Lightning node does not run; it is tried again.
    LightningDown { problem: String },
    /// A leaf's channel takes no more payments.
    ChannelClosed {
        factory: FactoryId,
        client: ClientId,
        reason: String,
        cooperative: bool,
    },
    /// A leaf's path is published from now on.
    ExitNeeded {
        factory: FactoryId,
        client: ClientId,
        reason: String,
    },
    /// A transaction of a leaf's path went out, paid for by a child.
    ExitPublished {
        factory: FactoryId,
        client: ClientId,
        txid: Txid,
        kind: String,
        vbytes: u64,
        fee_sat: u64,
    },
    /// A leaf's channel output is spent: commitment, cooperative, timeout, poison or reap.
    ChannelSpent {
        factory: FactoryId,
        client: ClientId,
        kind: &'static str,
        txid: Txid,
        height: u32,
    },
    /// Somebody paid us.
    PaymentReceived { hash: String, amount_msat: u64 },
    /// Somebody's payment to us was sent back.
    PaymentRefused { hash: String, reason: String },
    /// Our payment arrived.
    PaymentSent { hash: String, fee_msat: u64 },
    /// Our payment came back.
    PaymentFailed { hash: String, reason: String },
    /// A payment went through us.
    PaymentForwarded { amount_msat: u64, fee_msat: u64 },
    /// A client bought the promise of a channel; `scid` is the order's number.
    JitSold {
        client: ClientId,
        scid: String,
        payment_msat: Option<u64>,
    },
    /// A payment for it is here, and the channel is being opened.
    JitOpening {
        client: ClientId,
        scid: String,
        payment_msat: u64,
        fee_msat: u64,
        capacity_sat: u64,
    },
    /// A payment for it is here, and the channel is sold from a stock.
    JitFromStock {
        client: ClientId,
        scid: String,
        factory: FactoryId,
        sale: SaleId,
        payment_msat: u64,
        fee_msat: u64,
        capacity_sat: u64,
    },
    /// Its funding is signed.
    JitFunded {
        scid: String,
        txid: Txid,
        fee_sat: Option<u64>,
    },
    /// It may be used.
    JitOpened { scid: String },
    /// The payment for it was sent on over it, so long after its last part came in.
    JitForwarded { scid: String, waited_ms: u64 },
    /// The client has its first payment, and we have the fee.
    JitPaid { scid: String, fee_msat: u64 },
    /// A payment for it was sent back.
    JitRefused {
        scid: String,
        hash: String,
        reason: String,
    },
    /// It is closed, or did not come about.
    JitClosed { scid: String },
    /// A client ordered a channel (LSPS1); `order` is its id.
    Lsps1Ordered {
        client: ClientId,
        order: String,
        lsp_balance_sat: u64,
        fee_sat: u64,
    },
    /// The payment for it is here, and is held until this height at the latest.
    Lsps1Held {
        order: String,
        amount_msat: u64,
        held_until: u32,
    },
    /// Its channel is being sold from a stock.
    Lsps1FromStock {
        order: String,
        factory: FactoryId,
        sale: SaleId,
        capacity_sat: u64,
    },
    /// Its channel is being opened.
    Lsps1Opening { order: String, channel: String },
    /// Its channel stands, and the funding is out.
    Lsps1Funded {
        order: String,
        funding: OutPoint,
        onchain_sat: u64,
    },
    /// Its payment is ours.
    Lsps1Paid { order: String, taken_msat: u64 },
    /// Nothing came of it; what was paid goes back.
    Lsps1Failed { order: String, reason: String },
    /// Its payment went back, and its client keeps the place that was to be paid with it, for nothing, if a factory comes of this ceremony.
    Lsps1SeatUnpaid {
        client: ClientId,
        order: String,
        ceremony: CeremonyId,
        lsp_balance_sat: u64,
        fee_sat: u64,
    },
    /// A client ordered a channel from the stock it shares.
    SaleOrdered {
        client: ClientId,
        factory: FactoryId,
        sale: SaleId,
        capacity_sat: u64,
        fee_msat: u64,
    },
    /// The payment for it is here, and is held until this height at the latest.
    SalePaid {
        client: ClientId,
        factory: FactoryId,
        sale: SaleId,
        fee_msat: u64,
        held_until: u32,
    },
    /// Its clients did not all sign; another attempt follows, or the payment goes back.
    SaleAttemptFailed {
        factory: FactoryId,
        sale: SaleId,
        attempt: Attempt,
        reason: String,
    },
    /// Everything is signed and stored: it is never undone. `bonus_sat`: what the channels hold that others get for signing.
    SaleSold {
        client: ClientId,
        factory: FactoryId,
        sale: SaleId,
        capacity_sat: u64,
        bonus_sat: u64,
    },
    /// A client said where it wants its next bonus channel, for signing with others who buy.
    BonusPlace {
        client: ClientId,
        factory: FactoryId,
    },
    /// Its channel stands, and so much was taken.
    SaleSettled {
        client: ClientId,
        factory: FactoryId,
        sale: SaleId,
        capacity_sat: u64,
        taken_msat: u64,
    },
    /// Nothing comes of it; its payment goes back.
    SaleCancelled {
        client: ClientId,
        factory: FactoryId,
        sale: SaleId,
        reason: String,
    },
    /// A payment through us was sent back at once.
    ForwardRefused { hash: String, reason: String },
    /// An ordinary channel may be used; `channel` is its number with us, 0 if the peer opened it.
    OnchainChannelOpened { channel: String, peer: String },
    /// An ordinary channel is closed.
    OnchainChannelClosed { channel: String, reason: String },
    /// A block was taken into account.
    BlockConnected { height: u32 },
    /// A block left the chain.
    BlockDisconnected { height: u32 },
    /// The Bitcoin node does not serve us.
    ChainUnavailable { problem: String },
    /// The Bitcoin node serves us (again).
    ChainAvailable { height: u32 },
    /// The database failed; what waits is tried again.
    StoreFailed { problem: String },
    /// It stopped.
    Shutdown,
}

impl From<machine::Event> for Event {
    fn from(event: machine::Event) -> Self {
        use machine::Event as E;
        match event {
            E::AttemptStarted { round, invited } => Self::AttemptStarted { round, invited },
            E::Joined { round, client } => Self::Joined { round, client },
            E::ProposalSent {
                round,
                factory,
                clients,
            } => Self::ProposalSent {
                round,
                factory,
                clients,
            },
            E::PartialsReceived { round, client } => Self::PartialsReceived { round, client },
            E::FinalsSent { round, factory } => Self::FinalsSent { round, factory },
            E::Acked { round, client } => Self::Acked { round, client },
            E::OpeningChannels { round, factory } => Self::OpeningChannels { round, factory },
            E::ChannelOpened { round, client } => Self::ChannelOpened { round, client },
            E::ChannelRefused { round, client, why } => Self::ChannelRefused { round, client, why },
            E::Declined {
                round,
                client,
                reason,
            } => Self::Declined {
                round,
                client,
                reason: decline_text(&reason),
            },
            E::ClientLeftOut {
                round,
                client,
                reason,
                phase,
            } => Self::ClientLeftOut {
                round,
                client,
                reason: left_out_name(reason),
                phase,
            },
            E::Blamed { round, client } => Self::Blamed { round, client },
            E::AttemptFailed { round, reason } => Self::AttemptFailed {
                round,
                reason: abort_name(&reason),
                detail: abort_text(&reason),
            },
            E::CeremonyFailed { ceremony, reason } => Self::CeremonyFailed {
                ceremony,
                reason: abort_name(&reason),
                detail: abort_text(&reason),
            },
            E::CeremonyComplete { round, factory } => Self::CeremonyComplete { round, factory },
        }
    }
}

impl Event {
    /// One of many of its kind (one per client or block): logged at the level debug.
    pub(super) const fn is_frequent(&self) -> bool {
        matches!(
            self,
            Self::ClientConnected { .. }
                | Self::ClientDisconnected { .. }
                | Self::ClientInterested { .. }
                | Self::Joined { .. }
                | Self::PartMoved { .. }
                | Self::PartialsReceived { .. }
                | Self::Acked { .. }
                | Self::ChannelOpened { .. }
                | Self::PaymentForwarded { .. }
                | Self::WebhookDelivered { .. }
                | Self::WebhookFailed {
                    given_up: false,
                    ..
                }
                | Self::ForwardRefused { .. }
                | Self::BlockConnected { .. }
        )
    }

    pub(super) const fn is_warning(&self) -> bool {
        matches!(
            self,
            Self::AuthRefused { .. }
                | Self::WebhooksDown { .. }
                | Self::WebhookFailed { given_up: true, .. }
                | Self::MessageRefused { .. }
                | Self::ClientLeftOut { .. }
                | Self::Blamed { .. }
                | Self::AttemptFailed { .. }
                | Self::CeremonyFailed { .. }
                | Self::FactoryUnconfirmed { .. }
                | Self::ChainUnavailable { .. }
                | Self::LightningDown { .. }
                | Self::ChannelRefused { .. }
                | Self::ExitNeeded { .. }
                | Self::LadderWaiting { .. }
                | Self::HandoverRefused { .. }
                | Self::LadderLoss { .. }
                | Self::Lsps1SeatUnpaid { .. }
                | Self::SaleAttemptFailed { .. }
                | Self::StoreFailed { .. }
        )
    }
}
