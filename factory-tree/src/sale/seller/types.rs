//! Inputs, effects, records and events of the LSP's machine.

use bitcoin::Transaction;
use bitcoin::secp256k1::schnorr;
use serde::{Deserialize, Serialize};

use super::{Phase, Seller};
use crate::ceremony::coordinator::{Blame, RefuseReason};
use crate::ceremony::message::DeclineReason;
use crate::ids::ClientId;
use crate::kit::{ChannelSignatures, sign_channel};
use crate::sale::message::{FailReason, SaleRound, ToCoSigner, ToSeller};
use crate::sale::{Sale, SaleTxs};
use crate::units::Height;

/// How a sale is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaleTerms {
    /// The last tip at which clients may sign it.
    pub until: Height,
    /// Seconds to answer each step.
    pub step_seconds: u32,
}

/// What happens to the machine.
#[derive(Debug)]
pub enum SellerInput {
    /// A client's stream came (back): what it waits for is sent again.
    Connected(ClientId),
    /// A message.
    Message {
        /// Who.
        client: ClientId,
        /// Its message.
        message: ToSeller,
    },
    /// [`SaleRecord::Chain`] is durable.
    ChainStored,
    /// A [`SellerEffect::Wake`] came due; stale ones are ignored.
    Deadline {
        /// The attempt it was for.
        round: SaleRound,
        /// The phase it was for.
        phase: Phase,
    },
    /// The operator or the buyer takes it back. Too late once the chain transaction is complete.
    Cancel,
}

/// What the adapter is to do, in order.
#[derive(Debug)]
pub enum SellerEffect {
    /// Make durable before going on; after a [`SaleRecord::Chain`], give
    /// [`SellerInput::ChainStored`].
    Store(Box<SaleRecord>),
    /// Send to a client, if it is connected.
    Send {
        /// To whom.
        client: ClientId,
        /// What.
        message: ToCoSigner,
    },
    /// Answer a message with a typed error.
    Refuse {
        /// To whom.
        client: ClientId,
        /// The message's round.
        round: SaleRound,
        /// Why.
        reason: RefuseReason,
    },
    /// Give [`SellerInput::Deadline`] after so many seconds.
    Wake {
        /// For which attempt.
        round: SaleRound,
        /// For which phase.
        phase: Phase,
        /// When.
        seconds: u32,
    },
    /// For the log and the event stream.
    Emit(SellerEvent),
    /// The attempt is over.
    Finished(SellerOutcome),
}

/// What must survive a crash.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum SaleRecord {
    /// From now on a client may have signed these terms: the stock is sold on them or not at all.
    Bound {
        /// Which attempt.
        round: SaleRound,
        /// The terms.
        sale: Sale,
    },
    /// The chain transaction is complete.
    Chain {
        /// Which attempt.
        round: SaleRound,
        /// Its signature.
        signature: schnorr::Signature,
    },
    /// Everything is.
    Sold(Box<SoldRecord>),
    /// A client sent an invalid signature.
    Blamed {
        /// Which attempt.
        round: SaleRound,
        /// Who and how.
        blame: Blame,
    },
    /// The attempt failed. Bound terms stay bound.
    Failed {
        /// Which.
        round: SaleRound,
        /// Why.
        reason: FailReason,
    },
}

/// A complete sale.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SoldRecord {
    /// The attempt that completed it.
    pub round: SaleRound,
    /// Its terms.
    pub sale: Sale,
    /// In session order.
    pub signatures: Vec<schnorr::Signature>,
    /// Of the new channels' timeouts, in the order of [`Sale::channels`].
    pub channels: Vec<ChannelSignatures>,
}

impl SoldRecord {
    /// Every transaction of the sale, signed, in session order, the channels' timeouts last; what
    /// a watcher publishes.
    #[must_use]
    pub fn signed(&self, txs: &SaleTxs) -> Vec<Transaction> {
        let sessions = txs.sessions().zip(&self.signatures);
        let sessions = sessions.map(|(tx, signature)| tx.signed(signature));
        let channels = txs.channel_timeouts.iter().zip(self.sale.channels());
        let channels = channels.zip(&self.channels).map(|((tx, sold), signed)| {
            let client = (&sold.channel_key, &signed.client);
            sign_channel(tx, client, (&sold.lsp_channel_key, &signed.lsp))
        });
        sessions.chain(channels).collect()
    }
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SellerOutcome {
    /// Every client of the stock holds the sale.
    Sold,
    /// It failed.
    Failed {
        /// Why.
        reason: FailReason,
        /// Because of whom.
        by: Vec<ClientId>,
        /// Whether a client may have signed: then the same terms are offered again, or the stock
        /// is never sold from again.
        bound: bool,
    },
}

/// What happens in a sale, for the log, the metrics, the operator and the tests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum SellerEvent {
    /// Offers go out.
    Offered {
        /// Which attempt.
        round: SaleRound,
        /// To how many clients.
        clients: u32,
    },
    /// A client's nonces came.
    Joined {
        /// Which attempt.
        round: SaleRound,
        /// Whose.
        client: ClientId,
    },
    /// A client's partial signatures came.
    PartialsReceived {
        /// Which attempt.
        round: SaleRound,
        /// Whose.
        client: ClientId,
    },
    /// Everything is complete and stored.
    Completed {
        /// Which attempt.
        round: SaleRound,
    },
    /// A client has the sale in its exit kit.
    Acked {
        /// Which attempt.
        round: SaleRound,
        /// Who.
        client: ClientId,
    },
    /// A client declined.
    Declined {
        /// Which attempt.
        round: SaleRound,
        /// Who.
        client: ClientId,
        /// Why.
        reason: DeclineReason,
    },
    /// A client sent an invalid signature.
    Blamed {
        /// Which attempt.
        round: SaleRound,
        /// Who.
        client: ClientId,
    },
    /// The attempt failed.
    Failed {
        /// Which.
        round: SaleRound,
        /// Why.
        reason: FailReason,
    },
}

/// The machine after an input, and what to do about it.
#[derive(Debug)]
#[must_use]
pub struct SellerStep {
    /// The machine.
    pub state: Seller,
    /// In order.
    pub effects: Vec<SellerEffect>,
}
