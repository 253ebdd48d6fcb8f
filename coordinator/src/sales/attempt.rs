//! One attempt at a sale: the seller's machine with its clients, up to the channels.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use channel_host::{Leaf, LeafId};
use factory_tree::ids::ClientId;
use factory_tree::sale::Sale;
use factory_tree::sale::message::{FailReason, SaleRound};
use factory_tree::sale::seller::{Phase, SaleTerms, Seller, SellerInput, SellerOutcome, Setup};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::Mail;
use super::channel::{self, Look};
use super::driver::{BUYER_CANCELLED, CHANNEL_PAUSE, Driver, GONE, Stop, TOO_LONG};
use super::records::Entry;
use super::signer::SaleSigner;
use crate::event::Event;
use crate::fault;
use crate::keys::random;
use crate::lightning::Lightning;
use crate::reputation::Fault;

const NO_CHANNEL: &str = "its channel did not come about in time";

/// How an attempt ended.
pub(super) enum Attempted {
    /// Everything is complete and stored.
    Sold(Box<Seller>),
    /// It failed; once more, or not.
    Failed { again: bool, reason: String },
}

impl Driver {
    /// How long each answer may take: with a payer who waits, all of them no longer than what is left of its patience.
    fn step_seconds(&self) -> u32 {
        let usual = self.ctx.config.sales.step_seconds;
        match self.row.order.paid_by.jit() {
            Some(_) => usual
                .min(u32::try_from(self.ctx.config.jit.stock_patience() / 2).unwrap_or(usual))
                .max(1),
            None => usual,
        }
    }

    pub(super) fn setup(&self, sale: Sale) -> Result<Setup, Stop> {
        let signer = SaleSigner {
            keys: Arc::clone(&self.ctx.keys),
            factory: self.factory_fresh,
            leaves: self.leaf_ids(),
            fresh: self.row.order.fresh,
        };
        Ok(Setup {
            stock: self.stock()?,
            bound: self.known.bound().cloned(),
            round: SaleRound {
                sale: sale.id,
                attempt: self.row.attempts,
            },
            sale,
            clients: self.known.clients.clone(),
            terms: SaleTerms {
                until: self.row.order.sign_until,
                step_seconds: self.step_seconds(),
            },
            factory: self.known.factory.round,
            signer: Arc::new(signer),
        })
    }

    /// One attempt: a stock has few clients and a sale few transactions, so the machine works here.
    pub(super) async fn attempt(&mut self) -> Result<Attempted, Stop> {
        self.row.attempts = self.begin_attempt().await?;
        fault::point("sale_attempt_begun");
        (self.inputs, self.wakes) = (VecDeque::new(), Vec::new());
        (self.must_open, self.declined) = (false, None);
        let setup = self.setup(self.terms()?)?;
        let started = Seller::start(setup, Zeroizing::new(random()));
        let mut step = match started {
            Ok(step) => step,
            Err(error) => {
                let reason = error.to_string();
                return Ok(Attempted::Failed {
                    again: false,
                    reason,
                });
            }
        };
        loop {
            if let Some(outcome) = self.execute_all(step.effects).await? {
                return self.failed(outcome).await;
            }
            if step.state.phase() == Phase::Delivering {
                return Ok(Attempted::Sold(Box::new(step.state)));
            }
            if std::mem::take(&mut self.must_open) {
                match self.open().await? {
                    Ok(()) => step = step.state.step(SellerInput::ChainStored),
                    Err(failed) => return Ok(self.without_channel(failed)),
                }
                continue;
            }
            let input = self.next_input().await?;
            step = step.state.step(input);
        }
    }

    async fn failed(&mut self, outcome: SellerOutcome) -> Result<Attempted, Stop> {
        let SellerOutcome::Failed { reason, by, bound } = outcome else {
            return Err(self.damaged(&"a sale ended before it was complete"));
        };
        let declined = self
            .declined
            .take()
            .filter(|_| reason == FailReason::Declined);
        // Nothing is bound: what somebody does not want may be the bonus, and no sale fails of that.
        let drops = reason == FailReason::Declined && !bound && self.known.bound().is_none();
        let drops = drops && !self.bonus.is_empty();
        if drops {
            let own = |client: &ClientId| self.bonus.iter().any(|bonus| bonus.client == *client);
            // Their own alone; all, if it is somebody's who has none.
            let mut without = by.clone();
            if !by.iter().all(own) {
                without = self.bonus.iter().map(|bonus| bonus.client).collect();
            }
            self.bonus.retain(|bonus| !without.contains(&bonus.client));
            self.write(&Entry::WithoutBonus(without)).await?;
        }
        let again = drops || (declined.is_none() && reason != FailReason::Cancelled);
        let text = declined.unwrap_or_else(|| fail_text(&reason));
        self.ctx.events.emit(Event::SaleAttemptFailed {
            factory: self.row.order.factory,
            sale: self.id(),
            attempt: self.row.attempts,
            reason: text.clone(),
        });
        self.count_faults(&reason, &by, bound).await?;
        Ok(Attempted::Failed {
            again,
            reason: text,
        })
    }

    fn without_channel(&self, failed: Attempted) -> Attempted {
        if let Attempted::Failed { reason, .. } = &failed {
            self.ctx.events.emit(Event::SaleAttemptFailed {
                factory: self.row.order.factory,
                sale: self.id(),
                attempt: self.row.attempts,
                reason: reason.clone(),
            });
        }
        failed
    }

    async fn count_faults(
        &mut self,
        reason: &FailReason,
        by: &[ClientId],
        bound: bool,
    ) -> Result<(), Stop> {
        let fault = match reason {
            FailReason::Silent => Fault::Silent,
            FailReason::Guilty => Fault::Guilty,
            // Others had signed already.
            FailReason::Declined if bound => Fault::Silent,
            _ => return Ok(()),
        };
        let new = by.iter().filter(|client| self.counted.insert(**client));
        let faults: Vec<_> = new.map(|client| (*client, fault)).collect();
        self.write(&Entry::Faults(faults)).await
    }

    /// Whose channels are not there, when everybody had signed for them; nobody's, where we have no node ourselves.
    async fn count_absent(
        &mut self,
        leaves: &[(Leaf, PublicKey)],
        is_absent: impl Fn(&Lightning, LeafId) -> bool,
    ) -> Result<(), Stop> {
        let lightning = &self.ctx.lightning;
        let leaves = leaves.iter().filter(|_| lightning.is_up());
        let absent = leaves.filter(|(leaf, _)| is_absent(lightning, leaf.id));
        let absent: Vec<_> = absent.map(|(_, peer)| ClientId(peer.serialize())).collect();
        self.count_faults(&FailReason::Silent, &absent, true).await
    }

    /// The next thing for the machine: what is there, or what comes.
    async fn next_input(&mut self) -> Result<SellerInput, Stop> {
        loop {
            if let Some(input) = self.inputs.pop_front() {
                return Ok(input);
            }
            if self.is_due(self.ctx.height()) {
                return Ok(SellerInput::Cancel);
            }
            let next = self.wakes.iter().map(|(at, ..)| *at).min();
            let timer = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            // Mail first: who answered in time is not silent because we were slow to look.
            tokio::select! {
                biased;
                _ = self.shutdown.wait_for(|stop| *stop) => return Err(Stop::Shutdown),
                mail = self.mailbox.recv() => match mail {
                    Some(Mail::Client { client, message }) => {
                        return Ok(SellerInput::Message { client, message });
                    }
                    Some(Mail::Connected(client)) => return Ok(SellerInput::Connected(client)),
                    Some(Mail::Cancel) => return Ok(SellerInput::Cancel),
                    Some(Mail::Look) => {}
                    None => return Err(Stop::Shutdown),
                },
                _ = self.chain.changed() => {}
                () = timer => {
                    let now = Instant::now();
                    let due = self.wakes.extract_if(.., |(at, ..)| *at <= now);
                    self.inputs.extend(due.map(|(_, round, phase)| SellerInput::Deadline { round, phase }));
                }
            }
        }
    }

    /// The channels, when everybody else has signed and before we sign more than the chain transaction: the timeout of a channel that its client
    /// refuses would pay it all of it for nothing. Not earlier: LDK may choose it for a payment that it must not carry yet.
    async fn open(&mut self) -> Result<Result<(), Attempted>, Stop> {
        let leaves = self.leaves()?;
        let step = Duration::from_secs(self.step_seconds().into());
        let until = Instant::now() + step;
        let failed = |again, reason: &str| {
            let reason = reason.to_owned();
            Ok(Err(Attempted::Failed { again, reason }))
        };
        loop {
            match channel::look_at_all(&self.ctx, &leaves).await {
                // Nothing is given for a payment that went back meanwhile.
                Look::Stands if !self.is_paid() => return failed(true, GONE),
                Look::Stands => {
                    fault::point("sale_channel_opened");
                    return Ok(Ok(()));
                }
                Look::Never(why) => {
                    // What we could not open ourselves did not end.
                    self.count_absent(&leaves, Lightning::is_over).await?;
                    return failed(false, &why);
                }
                Look::Waits if self.is_due(self.ctx.height()) => return failed(false, TOO_LONG),
                Look::Waits if Instant::now() >= until => {
                    let is_absent = |node: &Lightning, leaf| !node.stands(leaf);
                    self.count_absent(&leaves, is_absent).await?;
                    return failed(true, NO_CHANNEL);
                }
                Look::Waits => {}
            }
            tokio::select! {
                biased;
                _ = self.shutdown.wait_for(|stop| *stop) => return Err(Stop::Shutdown),
                mail = self.mailbox.recv() => match mail {
                    Some(Mail::Cancel) => return failed(false, BUYER_CANCELLED),
                    // All is said.
                    Some(Mail::Client { .. } | Mail::Connected(_) | Mail::Look) => {}
                    None => return Err(Stop::Shutdown),
                },
                _ = self.news.changed() => {}
                () = tokio::time::sleep(CHANNEL_PAUSE) => {}
            }
        }
    }
}

fn fail_text(reason: &FailReason) -> String {
    match reason {
        FailReason::Silent => "a client of the stock did not answer in time".to_owned(),
        FailReason::Guilty => "a client of the stock sent an invalid signature".to_owned(),
        FailReason::Declined => "a client of the stock declined".to_owned(),
        FailReason::Restarted => "the coordinator was restarted".to_owned(),
        FailReason::Cancelled => "it was taken back, or took too long".to_owned(),
        FailReason::Unable(why) => why.clone(),
    }
}
