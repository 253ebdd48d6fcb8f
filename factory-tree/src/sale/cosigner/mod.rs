//! A client's side of a sale, as buyer or as mate: one machine per attempt.
//!
//! Secret nonces live in the machine and nowhere else. The machine asks its adapter to make the
//! guard's records and the exit kit durable before the message that follows them. A failed attempt
//! leaves nothing else: the same terms may be offered again, and are signed with fresh nonces.

mod signing;
mod types;

use super::message::{Finals, Join, Offer, Partials, SaleRound, Sign, ToSeller};
use super::rules::{self, Agreed, Role, SaleRefusal};
use super::{Sale, SaleTxs, Stock, StockError};
use crate::ceremony::message::DeclineReason;
use crate::kit::{ChannelSignatures, ExitKit};
use crate::musig::{AggregateNonce, PublicNonce};
use crate::session::SecretNonce;
pub use types::*;

/// Where a client stands in an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CoSignerPhase {
    /// The offer passed every check, and its nonces are out; waits for those of the others.
    Joined,
    /// The nonces, and the buyer's signatures, passed every check; waits for the guard's records.
    Checked,
    /// Partial signatures are out; waits for the final ones.
    Signed,
    /// The exit kit is stored; it is rehearsed from disk.
    Kept,
    /// The LSP has been told.
    Acked,
    /// Over.
    Finished,
}

/// One attempt of one client.
#[derive(Debug)]
pub struct CoSigner {
    round: SaleRound,
    kit: ExitKit,
    secrets: Secrets,
    state: State,
}

#[derive(Debug)]
enum State {
    Joined(Box<Joined>, Vec<SecretNonce>),
    Checked(Box<Joined>, Vec<SecretNonce>, Box<Checked>),
    Signed(Box<Signed>),
    Kept,
    Acked,
    Finished,
}

/// An offer that passed every check.
#[derive(Debug)]
struct Joined {
    offer: Offer,
    agreed: Agreed,
    stock: Stock,
    txs: SaleTxs,
    nonces: Vec<PublicNonce>,
}

#[derive(Debug)]
struct Checked {
    sign: Sign,
    sums: Vec<AggregateNonce>,
}

#[derive(Debug)]
struct Signed {
    pending: PendingSale,
    txs: SaleTxs,
    /// What was answered to which message; nothing after a restart.
    sent: Option<(Sign, Partials)>,
}

impl CoSigner {
    /// Answers an offer by the client's stored exit kit: a join with fresh nonces, or a refusal.
    ///
    /// `seed` gives 32 fresh bytes from a cryptographic source at each call.
    pub fn offered(
        offer: Offer,
        kit: ExitKit,
        agreed: Agreed,
        secrets: Secrets,
        seed: &mut dyn FnMut() -> [u8; 32],
    ) -> CoSignerStep {
        let round = offer.round;
        let checked = rules::check_offer(&kit, &offer, &agreed);
        let mut machine = Self {
            round,
            kit,
            secrets,
            state: State::Finished,
        };
        let mut effects = Vec::new();
        match checked {
            Err(refusal) => machine.refuse(refusal, &mut effects),
            Ok((stock, txs)) => {
                let (secret, nonces) = machine.nonces(&txs, seed);
                let joined = Joined {
                    offer,
                    agreed,
                    stock,
                    txs,
                    nonces,
                };
                effects.push(CoSignerEffect::Emit(CoSignerEvent::OfferChecked { round }));
                effects.push(CoSignerEffect::Send(joined.message()));
                machine.state = State::Joined(Box::new(joined), secret);
            }
        }
        CoSignerStep {
            state: machine,
            effects,
        }
    }

    /// After a restart, a sale that was signed and is not in the kit yet: its final signatures are
    /// still accepted. What a kit has already is acknowledged again.
    ///
    /// # Errors
    /// [`StockError`] when the kit's stock does not have this sale next.
    pub fn resume(
        pending: PendingSale,
        kit: ExitKit,
        secrets: Secrets,
    ) -> Result<Self, StockError> {
        let round = pending.round;
        let state = if kit.sales.contains(&pending.sale) {
            State::Acked
        } else {
            let txs = Stock::of_kit(&kit)?.draft(&pending.sale)?;
            State::Signed(Box::new(Signed {
                pending,
                txs,
                sent: None,
            }))
        };
        Ok(Self {
            round,
            kit,
            secrets,
            state,
        })
    }

    /// One step.
    pub fn step(mut self, input: CoSignerInput) -> CoSignerStep {
        let mut effects = Vec::new();
        self.dispatch(input, &mut effects);
        CoSignerStep {
            state: self,
            effects,
        }
    }

    /// Which attempt.
    #[must_use]
    pub const fn round(&self) -> SaleRound {
        self.round
    }

    /// The sale's transactions, as rebuilt from the client's own kit, until they are in it.
    #[must_use]
    pub fn txs(&self) -> Option<&SaleTxs> {
        match &self.state {
            State::Joined(joined, ..) | State::Checked(joined, ..) => Some(&joined.txs),
            State::Signed(signed) => Some(&signed.txs),
            State::Kept | State::Acked | State::Finished => None,
        }
    }

    /// Where it stands.
    #[must_use]
    pub const fn phase(&self) -> CoSignerPhase {
        match self.state {
            State::Joined(..) => CoSignerPhase::Joined,
            State::Checked(..) => CoSignerPhase::Checked,
            State::Signed(_) => CoSignerPhase::Signed,
            State::Kept => CoSignerPhase::Kept,
            State::Acked => CoSignerPhase::Acked,
            State::Finished => CoSignerPhase::Finished,
        }
    }

    fn dispatch(&mut self, input: CoSignerInput, effects: &mut Vec<CoSignerEffect>) {
        match input {
            CoSignerInput::Offer(offer) => self.offered_again(&offer, effects),
            CoSignerInput::Sign(sign) => self.asked(*sign, effects),
            CoSignerInput::Signed(records) => self.sign(&records, effects),
            CoSignerInput::Finals(finals) => self.finals(&finals, effects),
            CoSignerInput::Rehearsed(result) => self.rehearsed(result, effects),
            CoSignerInput::Failed { round, reason } => {
                // What is kept is not given up on anybody's word, and what was signed stays signed:
                // the LSP may complete it all the same.
                let phase = self.phase();
                if round == self.round && phase < CoSignerPhase::Kept {
                    if phase < CoSignerPhase::Signed {
                        self.state = State::Finished;
                    }
                    let event = CoSignerEvent::AttemptFailed {
                        round,
                        reason: reason.clone(),
                    };
                    effects.push(CoSignerEffect::Emit(event));
                    let outcome = CoSignerOutcome::Failed { reason };
                    effects.push(CoSignerEffect::Finished(outcome));
                }
            }
        }
    }

    /// The LSP lost our join with the stream: the same bytes again are harmless, as no nonce has
    /// been used yet.
    fn offered_again(&self, offer: &Offer, effects: &mut Vec<CoSignerEffect>) {
        if let State::Joined(joined, _) = &self.state
            && joined.offer == *offer
        {
            effects.push(CoSignerEffect::Send(joined.message()));
        }
    }

    /// All nonces are there: a mate looks at what the buyer signed before anything else.
    fn asked(&mut self, sign: Sign, effects: &mut Vec<CoSignerEffect>) {
        if sign.round != self.round {
            return;
        }
        let (joined, secret) = match core::mem::replace(&mut self.state, State::Finished) {
            State::Joined(joined, secret) => (joined, secret),
            // Another message for the same nonces is never looked at.
            other => {
                if let State::Signed(signed) = &other {
                    effects.extend(signed.again(&sign));
                }
                self.state = other;
                return;
            }
        };
        let own = (self.kit.position, &joined.nonces);
        let sums = rules::check_nonces(&joined.stock, &joined.txs, &sign, own);
        let checked = sums.and_then(|sums| {
            if let Role::Mate { .. } = joined.agreed.role {
                rules::check_buyer(&joined.stock, &joined.txs, &sign, &sums)?;
            }
            Ok(sums)
        });
        match checked {
            Err(refusal) => self.refuse(refusal, effects),
            Ok(sums) => {
                effects.push(CoSignerEffect::LoadSigned(signing::outpoints(
                    &joined.txs,
                    self.kit.position,
                )));
                let checked = Checked { sign, sums };
                self.state = State::Checked(joined, secret, Box::new(checked));
            }
        }
    }

    fn finals(&mut self, finals: &Finals, effects: &mut Vec<CoSignerEffect>) {
        if finals.round != self.round {
            return;
        }
        let signed = match core::mem::replace(&mut self.state, State::Finished) {
            State::Signed(signed) => signed,
            other => {
                if let State::Acked = other {
                    effects.push(CoSignerEffect::Send(ToSeller::Ack(self.round)));
                }
                self.state = other;
                return;
            }
        };
        let own = signed.pending.channel_signature;
        let channel = own
            .zip(finals.channel_signature)
            .map(|(client, lsp)| ChannelSignatures { client, lsp });
        let kit = self
            .kit
            .with_sale(&signed.txs, &finals.signatures, channel.as_ref());
        match kit {
            // Good finals may still come.
            Err(error) => {
                self.refuse(rules::of_kit(&error), effects);
                self.state = State::Signed(signed);
            }
            Ok(kit) => {
                effects.push(CoSignerEffect::StoreKit(Box::new(kit.clone())));
                effects.push(CoSignerEffect::Rehearse(kit.factory_id));
                self.kit = kit;
                self.state = State::Kept;
            }
        }
    }

    fn rehearsed(&mut self, result: Result<(), String>, effects: &mut Vec<CoSignerEffect>) {
        let State::Kept = self.state else {
            return;
        };
        let round = self.round;
        match result {
            Err(found) => self.refuse(rules::rehearsal(found), effects),
            Ok(()) => {
                effects.push(CoSignerEffect::Emit(CoSignerEvent::KitStored { round }));
                effects.push(CoSignerEffect::Send(ToSeller::Ack(round)));
                let outcome = CoSignerOutcome::Sold { round };
                effects.push(CoSignerEffect::Finished(outcome));
                self.state = State::Acked;
            }
        }
    }

    fn refuse(&mut self, refusal: SaleRefusal, effects: &mut Vec<CoSignerEffect>) {
        self.decline(refusal.into(), effects);
    }

    fn decline(&mut self, reason: DeclineReason, effects: &mut Vec<CoSignerEffect>) {
        let round = self.round;
        self.state = State::Finished;
        effects.push(CoSignerEffect::Emit(CoSignerEvent::Refused {
            round,
            reason: reason.clone(),
        }));
        let message = ToSeller::Decline {
            round,
            reason: reason.clone(),
        };
        effects.push(CoSignerEffect::Send(message));
        let outcome = CoSignerOutcome::Refused { reason };
        effects.push(CoSignerEffect::Finished(outcome));
    }

    fn nonces(
        &self,
        txs: &SaleTxs,
        seed: &mut dyn FnMut() -> [u8; 32],
    ) -> (Vec<SecretNonce>, Vec<PublicNonce>) {
        let sessions = (0u32..).zip(txs.sessions());
        sessions
            .map(|(session, _)| {
                let made_for = self.round.nonce_use(session);
                SecretNonce::generate(seed(), &self.secrets.factory_secret, made_for)
            })
            .unzip()
    }
}

impl Joined {
    fn message(&self) -> ToSeller {
        ToSeller::Join(Box::new(Join {
            round: self.offer.round,
            nonces: self.nonces.clone(),
        }))
    }

    const fn sale(&self) -> &Sale {
        &self.offer.sale
    }
}

impl Signed {
    /// The very message that was answered is answered with the very same.
    fn again(&self, sign: &Sign) -> Option<CoSignerEffect> {
        let (asked, partials) = self.sent.as_ref()?;
        let same = (asked == sign).then(|| ToSeller::Partials(Box::new(partials.clone())));
        same.map(CoSignerEffect::Send)
    }
}
