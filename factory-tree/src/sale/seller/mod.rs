//! The LSP's side of a sale: one machine per attempt.
//!
//! The buyer signs first, its mates when its signatures are verified, the LSP last: it completes and
//! stores the chain transaction before it signs anything else, and everything before it sends
//! anything (protocol.md section 6, attacks.md A11). Who signs is given by the stock, so that a
//! failed attempt can only be repeated with the same terms; nobody is left out.

mod signing;
mod types;

use std::sync::Arc;

use bitcoin::secp256k1::PublicKey;
use zeroize::Zeroizing;

use self::signing::Signing;
use super::message::{
    FailReason, Finals, Join, Offer, Partials, SaleRound, Sign, ToCoSigner, ToSeller,
};
use super::rules::Nonces;
use super::{Sale, SaleTxs, Stock, StockError};
use crate::ceremony::coordinator::{LspSigner, RefuseReason};
use crate::ceremony::message::{DeclineReason, Round};
use crate::ids::ClientId;
pub use types::*;

/// Where a sale stands.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waits for everybody's nonces.
    Joining,
    /// Waits for the buyer's partial signatures.
    BuyerSigning,
    /// Waits for those of the others.
    MatesSigning,
    /// The chain transaction is complete; waits until it is durable.
    Completing,
    /// Everything is complete and stored; waits until every client has it.
    Delivering,
    /// Over.
    Finished,
}

/// What a sale is made from.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The stock before the sale.
    pub stock: Stock,
    /// The terms.
    pub sale: Sale,
    /// The terms of that number that are bound already ([`SaleRecord::Bound`]).
    pub bound: Option<Sale>,
    /// Which attempt.
    pub round: SaleRound,
    /// The accounts of the stock's clients, in leaf order.
    pub clients: Vec<ClientId>,
    /// How it is signed.
    pub terms: SaleTerms,
    /// The ceremony and attempt that made the factory: what the LSP's factory key derives from.
    pub factory: Round,
    /// The LSP's keys.
    pub signer: Arc<dyn LspSigner>,
}

/// One attempt of a sale.
#[derive(Debug)]
pub struct Seller {
    round: SaleRound,
    terms: SaleTerms,
    factory: Round,
    signer: Arc<dyn LspSigner>,
    txs: SaleTxs,
    seats: Vec<Seat>,
    state: State,
}

/// One client of the stock.
#[derive(Debug)]
struct Seat {
    client: ClientId,
    position: u32,
    factory_key: PublicKey,
    nonces: Option<Nonces>,
    partials: Option<Partials>,
    acked: bool,
}

enum State {
    Joining(Zeroizing<[u8; 32]>),
    BuyerSigning(Box<Signing>),
    MatesSigning(Box<Signing>),
    Completing(Box<Signing>),
    Delivering(Box<SoldRecord>),
    Finished,
}

impl core::fmt::Debug for State {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?}", self.phase())
    }
}

impl State {
    const fn phase(&self) -> Phase {
        match self {
            Self::Joining(_) => Phase::Joining,
            Self::BuyerSigning(_) => Phase::BuyerSigning,
            Self::MatesSigning(_) => Phase::MatesSigning,
            Self::Completing(_) => Phase::Completing,
            Self::Delivering(_) => Phase::Delivering,
            Self::Finished => Phase::Finished,
        }
    }
}

impl Seller {
    /// Offers a sale. `seed`: 32 fresh bytes from a cryptographic source, for the LSP's nonces.
    ///
    /// # Errors
    /// [`StockError`] when there can be no such sale.
    pub fn start(setup: Setup, seed: Zeroizing<[u8; 32]>) -> Result<SellerStep, StockError> {
        let machine = Self::new(setup, State::Joining(seed))?;
        let mut effects = Vec::new();
        effects.extend(machine.seats.iter().filter_map(|seat| machine.due(seat)));
        let clients = u32::try_from(machine.seats.len()).unwrap_or(u32::MAX);
        let round = machine.round;
        effects.push(SellerEffect::Emit(SellerEvent::Offered { round, clients }));
        machine.wake(&mut effects);
        Ok(SellerStep {
            state: machine,
            effects,
        })
    }

    /// After a restart, a complete sale that not every client has acknowledged.
    ///
    /// # Errors
    /// [`StockError`] when it is no sale of this stock.
    pub fn resume(setup: Setup, sold: SoldRecord) -> Result<Self, StockError> {
        let setup = Setup {
            round: sold.round,
            ..setup
        };
        Self::new(setup, State::Delivering(Box::new(sold)))
    }

    fn new(setup: Setup, state: State) -> Result<Self, StockError> {
        let Setup {
            stock,
            sale,
            bound,
            round,
            clients,
            terms,
            factory,
            signer,
        } = setup;
        let txs = stock.draft(&sale)?;
        // Who has signed the bound terms signs no others.
        if bound.is_some_and(|bound| bound != sale) {
            return Err(StockError::Bound(sale.number));
        }
        let mut clients = clients.into_iter();
        let seats = stock.clients().map(|position| {
            let (client, factory_key) = clients.next().zip(stock.key_of(position))?;
            Some(Seat {
                client,
                position,
                factory_key,
                nonces: None,
                partials: None,
                acked: false,
            })
        });
        let seats: Option<Vec<Seat>> = seats.collect();
        Ok(Self {
            round,
            terms,
            factory,
            signer,
            seats: seats.ok_or(StockError::Accounts)?,
            txs,
            state,
        })
    }

    /// One step.
    pub fn step(mut self, input: SellerInput) -> SellerStep {
        let mut effects = Vec::new();
        self.dispatch(input, &mut effects);
        SellerStep {
            state: self,
            effects,
        }
    }

    /// Which attempt.
    #[must_use]
    pub const fn round(&self) -> SaleRound {
        self.round
    }

    /// Where it stands.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        self.state.phase()
    }

    /// The sale's transactions.
    #[must_use]
    pub const fn txs(&self) -> &SaleTxs {
        &self.txs
    }

    fn dispatch(&mut self, input: SellerInput, effects: &mut Vec<SellerEffect>) {
        match input {
            SellerInput::Connected(client) => {
                let seat = self.seats.iter().find(|seat| seat.client == client);
                effects.extend(seat.and_then(|seat| self.due(seat)));
            }
            SellerInput::Message { client, message } => self.message(client, message, effects),
            SellerInput::ChainStored => self.chain_stored(effects),
            SellerInput::Deadline { round, phase } => {
                if round == self.round && phase == self.phase() && phase < Phase::Completing {
                    let awaited = self.seats.iter().filter(|seat| self.awaits(seat));
                    let silent = awaited.map(|seat| seat.client).collect();
                    self.fail(FailReason::Silent, silent, effects);
                }
            }
            SellerInput::Cancel => {
                if self.phase() < Phase::Completing {
                    self.fail(FailReason::Cancelled, Vec::new(), effects);
                }
            }
        }
    }

    fn message(&mut self, client: ClientId, message: ToSeller, effects: &mut Vec<SellerEffect>) {
        let round = message.round();
        let refused = if round != self.round {
            Some(RefuseReason::UnknownRound)
        } else if self.seats.iter().all(|seat| seat.client != client) {
            Some(RefuseReason::NotInvited)
        } else {
            None
        };
        if let Some(reason) = refused {
            effects.push(SellerEffect::Refuse {
                client,
                round,
                reason,
            });
            return;
        }
        match message {
            ToSeller::Join(join) => self.joined(client, *join, effects),
            ToSeller::Partials(partials) => self.partials(client, *partials, effects),
            ToSeller::Ack(_) => self.acked(client, effects),
            ToSeller::Decline { reason, .. } => self.declined(client, reason, effects),
        }
    }

    /// New nonces replace those that nothing was done with yet: a client that restarted has lost
    /// its old ones.
    fn joined(&mut self, client: ClientId, join: Join, effects: &mut Vec<SellerEffect>) {
        let (found, sessions) = (join.nonces.len(), self.txs.sessions().count());
        if !matches!(self.state, State::Joining(_)) {
            let repeated = self
                .seat(client)
                .is_some_and(|s| s.nonces == Some(join.nonces));
            if !repeated {
                effects.push(self.refuse(client, RefuseReason::OutOfTurn));
            }
            return;
        }
        if found != sessions {
            let text = format!("{found} nonces, not {sessions}");
            return effects.push(self.refuse(client, RefuseReason::Malformed(text)));
        }
        let round = self.round;
        let Some(seat) = self.seat(client) else {
            return;
        };
        seat.nonces = Some(join.nonces);
        effects.push(SellerEffect::Emit(SellerEvent::Joined { round, client }));
        if !self.seats.iter().any(|seat| self.awaits(seat)) {
            self.ask_buyer(effects);
        }
    }

    fn acked(&mut self, client: ClientId, effects: &mut Vec<SellerEffect>) {
        let round = self.round;
        if !matches!(self.state, State::Delivering(_)) {
            return effects.push(self.refuse(client, RefuseReason::OutOfTurn));
        }
        let Some(seat) = self.seat(client).filter(|seat| !seat.acked) else {
            return;
        };
        seat.acked = true;
        effects.push(SellerEffect::Emit(SellerEvent::Acked { round, client }));
        if !self.seats.iter().any(|seat| self.awaits(seat)) {
            effects.push(SellerEffect::Finished(SellerOutcome::Sold));
        }
    }

    fn declined(
        &mut self,
        client: ClientId,
        reason: DeclineReason,
        effects: &mut Vec<SellerEffect>,
    ) {
        let round = self.round;
        effects.push(SellerEffect::Emit(SellerEvent::Declined {
            round,
            client,
            reason,
        }));
        if self.phase() < Phase::Completing {
            self.fail(FailReason::Declined, vec![client], effects);
        }
    }

    fn fail(&mut self, reason: FailReason, by: Vec<ClientId>, effects: &mut Vec<SellerEffect>) {
        let round = self.round;
        let bound = self.phase() > Phase::Joining;
        self.state = State::Finished;
        let record = SaleRecord::Failed {
            round,
            reason: reason.clone(),
        };
        effects.push(SellerEffect::Store(Box::new(record)));
        effects.extend(self.seats.iter().map(|seat| SellerEffect::Send {
            client: seat.client,
            message: ToCoSigner::Failed {
                round,
                reason: reason.clone(),
            },
        }));
        effects.push(SellerEffect::Emit(SellerEvent::Failed {
            round,
            reason: reason.clone(),
        }));
        let outcome = SellerOutcome::Failed { reason, by, bound };
        effects.push(SellerEffect::Finished(outcome));
    }

    fn seat(&mut self, client: ClientId) -> Option<&mut Seat> {
        self.seats.iter_mut().find(|seat| seat.client == client)
    }

    fn buys(&self, seat: &Seat) -> bool {
        seat.position == self.txs.sale.bought.position
    }

    /// Whether something is awaited of this client now.
    fn awaits(&self, seat: &Seat) -> bool {
        match self.state {
            State::Joining(_) => seat.nonces.is_none(),
            State::BuyerSigning(_) => self.buys(seat) && seat.partials.is_none(),
            State::MatesSigning(_) => seat.partials.is_none(),
            State::Delivering(_) => !seat.acked,
            State::Completing(_) | State::Finished => false,
        }
    }

    /// What a client of which something is awaited must be sent.
    fn due(&self, seat: &Seat) -> Option<SellerEffect> {
        let round = self.round;
        if !self.awaits(seat) {
            return None;
        }
        let message = match &self.state {
            State::Joining(_) => ToCoSigner::Offer(Box::new(Offer {
                round,
                sale: self.txs.sale.clone(),
                until: self.terms.until,
            })),
            State::BuyerSigning(signing) | State::MatesSigning(signing) => {
                let mut buyer = self.seats.iter().filter(|seat| self.buys(seat));
                let partials = buyer.find_map(|buyer| buyer.partials.as_ref());
                ToCoSigner::Sign(Box::new(Sign {
                    round,
                    nonces: signing.nonces.clone(),
                    buyer: partials.map(|partials| partials.partials.clone()),
                }))
            }
            State::Delivering(sold) => {
                let channels = sold.sale.channels().zip(&sold.channels);
                let mut own = channels.filter(|(sold, _)| sold.position == seat.position);
                ToCoSigner::Finals(Box::new(Finals {
                    round: sold.round,
                    signatures: sold.signatures.clone(),
                    channel_signature: own.next().map(|(_, signed)| signed.lsp),
                }))
            }
            State::Completing(_) | State::Finished => return None,
        };
        let client = seat.client;
        Some(SellerEffect::Send { client, message })
    }

    /// Sends what is due to all, and waits for their answers.
    fn ask(&self, effects: &mut Vec<SellerEffect>) {
        effects.extend(self.seats.iter().filter_map(|seat| self.due(seat)));
        self.wake(effects);
    }

    fn wake(&self, effects: &mut Vec<SellerEffect>) {
        effects.push(SellerEffect::Wake {
            round: self.round,
            phase: self.phase(),
            seconds: self.terms.step_seconds,
        });
    }

    const fn refuse(&self, client: ClientId, reason: RefuseReason) -> SellerEffect {
        SellerEffect::Refuse {
            client,
            round: self.round,
            reason,
        }
    }
}
