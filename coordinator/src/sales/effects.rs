//! What the machine of a sale wants done, in order; nothing is sent before what was to be stored is.

use std::time::Duration;

use factory_tree::ceremony::coordinator::RefuseReason;
use factory_tree::ceremony::message::{DeclineReason, Round};
use factory_tree::ids::CeremonyId;
use factory_tree::sale::message::SaleRound;
use factory_tree::sale::seller::{SaleRecord, SellerEffect, SellerEvent, SellerOutcome};
use proto::session::ServiceError;
use proto::v1::{ErrorCode, ServerMessage};
use proto::wire::FromServer;
use tokio::time::Instant;

use super::driver::{Driver, Stop};
use super::records::Entry;
use crate::event::{Event, decline_text};
use crate::fault;
use crate::store::attempts::BlameRow;

impl Driver {
    /// `Some`: the attempt failed.
    pub(super) async fn execute_all(
        &mut self,
        effects: Vec<SellerEffect>,
    ) -> Result<Option<SellerOutcome>, Stop> {
        let mut ended = None;
        for effect in effects {
            match effect {
                SellerEffect::Finished(SellerOutcome::Sold) => {
                    self.write(&Entry::Delivered).await?;
                    self.delivered = true;
                }
                SellerEffect::Finished(outcome) => ended = Some(outcome),
                effect => self.execute(effect).await?,
            }
        }
        Ok(ended)
    }

    async fn execute(&mut self, effect: SellerEffect) -> Result<(), Stop> {
        match effect {
            SellerEffect::Store(record) => self.store(*record).await?,
            SellerEffect::Send { client, message } => {
                let message = ServerMessage::from(&FromServer::Sale(message));
                self.ctx.sessions.send(&client, message);
            }
            SellerEffect::Refuse { client, reason, .. } => {
                let error = refusal(reason);
                let (code, message) = (error.code.as_str_name().to_owned(), error.message.clone());
                self.ctx.events.emit(Event::MessageRefused {
                    client,
                    code,
                    message,
                });
                let limit = self.ctx.config.server.max_refusals;
                self.ctx.sessions.refuse(&client, &error, limit);
            }
            SellerEffect::Wake {
                round,
                phase,
                seconds,
            } => {
                let at = Instant::now() + Duration::from_secs(seconds.into());
                self.wakes.retain(|(_, of, _)| *of == round);
                self.wakes.push((at, round, phase));
            }
            SellerEffect::Finished(_) => {}
            SellerEffect::Emit(SellerEvent::Acked { client, .. }) => self.take_ack(client).await?,
            SellerEffect::Emit(event) => self.emit(event),
        }
        Ok(())
    }

    async fn store(&mut self, record: SaleRecord) -> Result<(), Stop> {
        match record {
            SaleRecord::Bound { sale, .. } => {
                self.write(&Entry::Bound(Box::new(sale))).await?;
                fault::point("sale_bound");
            }
            SaleRecord::Chain { signature, .. } => {
                self.write(&Entry::Chain(signature)).await?;
                fault::point("sale_chain_stored");
                self.must_open = true;
            }
            SaleRecord::Sold(record) => {
                let bonus = record.sale.bonuses();
                self.write(&Entry::Sold(record)).await?;
                self.ctx.trees.forget(self.row.order.factory);
                self.ctx.sales.signs(self.known.outpoint());
                fault::point("sale_sold");
                self.ctx.events.emit(Event::SaleSold {
                    client: self.buyer(),
                    factory: self.row.order.factory,
                    sale: self.id(),
                    capacity_sat: self.row.order.capacity.to_sat(),
                    bonus_sat: bonus.to_sat(),
                });
            }
            SaleRecord::Blamed { round, blame } => {
                let round = as_round(round);
                let row = BlameRow {
                    round,
                    signature: self.ctx.keys.sign_blame(round, &blame),
                    blame,
                };
                self.write(&Entry::Blame(Box::new(row))).await?;
            }
            // The number of the next attempt says that this one is over.
            SaleRecord::Failed { .. } => {}
        }
        Ok(())
    }

    fn emit(&mut self, event: SellerEvent) {
        match event {
            SellerEvent::Declined { client, reason, .. } => {
                // What somebody does not want, or may not, will be the same at the next attempt.
                let is_final = !matches!(reason, DeclineReason::Unable(_));
                if matches!(reason, DeclineReason::Terms(_)) {
                    self.ctx.sales.declines(self.known.outpoint(), client);
                }
                let reason = decline_text(&reason);
                let who = match client == self.buyer() {
                    true => "the buyer",
                    false => "a client of the stock",
                };
                if is_final {
                    self.declined = Some(format!("{who} declined ({reason})"));
                }
                tracing::warn!(%client, %reason, sale = %self.id(), "a client declines a sale");
            }
            SellerEvent::Blamed { round, client } => {
                let round = as_round(round);
                self.ctx.events.emit(Event::Blamed { round, client });
            }
            // Told by name when it is stored, or when the attempt is over.
            event => tracing::debug!(?event, "a sale"),
        }
    }
}

/// A sale's attempt where ceremonies have theirs: both ids are drawn at random, so that they never meet.
const fn as_round(round: SaleRound) -> Round {
    Round {
        ceremony: CeremonyId(round.sale.0),
        attempt: round.attempt,
    }
}

fn refusal(reason: RefuseReason) -> ServiceError {
    let (code, text) = match reason {
        RefuseReason::UnknownRound => (
            ErrorCode::UnknownRound,
            "this attempt is over, or never was; wait for the next offer".to_owned(),
        ),
        RefuseReason::NotInvited => (
            ErrorCode::UnknownRound,
            "you do not share the stock of this sale".to_owned(),
        ),
        RefuseReason::OutOfTurn => (
            ErrorCode::Unexpected,
            "not now: this step is over, was answered, or has not begun".to_owned(),
        ),
        RefuseReason::Malformed(what) => (ErrorCode::Malformed, what),
    };
    ServiceError::new(code, text)
}
