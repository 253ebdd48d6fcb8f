//! What the machine wants done, in order; nothing is sent before what was to be stored is.

use std::sync::Arc;
use std::time::Duration;

use factory_tree::ceremony::coordinator::{
    Effect, Event as MachineEvent, Funding, Input, Outcome, Propose, RefuseReason,
};
use factory_tree::ceremony::message::{Join, Round};
use factory_tree::ids::{ClientId, FactoryId};
use factory_tree::tree::Tree;
use proto::session::ServiceError;
use proto::v1::server_message::Body;
use proto::v1::{ErrorCode, ServerMessage};
use proto::wire::ProposalParts;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::driver::{Driver, STORE_PAUSE, Stop, Work, sign_off};
use super::joins::Verdict;
use crate::event::Event;
use crate::keys::random;
use crate::lightning::Opening;
use crate::store::StoreError;
use crate::{fault, funding};

impl Driver {
    pub(super) async fn execute_all(&mut self, effects: Vec<Effect>) -> Result<(), Stop> {
        for effect in effects {
            self.execute(effect).await?;
        }
        Ok(())
    }

    async fn execute(&mut self, effect: Effect) -> Result<(), Stop> {
        match effect {
            Effect::Store(record) => self.store(&record).await?,
            Effect::Send { client, message } => self
                .ctx
                .sessions
                .send(&client, ServerMessage::from(&message)),
            Effect::Propose(propose) => self.propose(*propose).await,
            Effect::Refuse {
                client,
                round,
                reason,
            } => self.refuse(client, refusal(round, reason)),
            Effect::Wake {
                round,
                phase,
                seconds,
            } => {
                let at = Instant::now() + Duration::from_secs(seconds.into());
                self.wakes.retain(|(_, of, _)| *of == round);
                self.wakes.push((at, round, phase));
            }
            Effect::BuildFunding { output, .. } => {
                let input = match funding::draft(&self.ctx, self.id, output, self.feerate).await {
                    Ok(tx) => Input::FundingReady(Box::new(Funding {
                        tx,
                        vout: 0,
                        seed: Zeroizing::new(random()),
                    })),
                    Err(error) => Input::FundingFailed(error.to_string()),
                };
                self.work.push_front(Work::Input(input));
            }
            Effect::Emit(event) => self.emit(event),
            Effect::OpenChannels { round, tree } => self.open_channels(round, tree),
            Effect::Fund { round, tree, .. } => self.fund(round, tree.id()).await?,
            Effect::Finished(outcome) => return self.finished(outcome).await,
        }
        Ok(())
    }

    fn open_channels(&mut self, round: Round, tree: Arc<Tree>) {
        // A proposal made without it is never stored, let alone signed.
        let Some(fresh) = self.signer.fresh(round.attempt) else {
            return;
        };
        self.opening = Some(Opening::start(&self.ctx, round, tree, fresh));
        fault::point("channels_opening");
    }

    fn emit(&self, event: MachineEvent) {
        if let MachineEvent::ClientLeftOut { client, .. } = &event {
            self.ctx.ceremonies.unclaim(self.id, Some(client));
        }
        self.ctx.events.emit(event.into());
    }

    pub(super) fn refuse(&self, client: ClientId, error: ServiceError) {
        let (code, message) = (error.code.as_str_name().to_owned(), error.message.clone());
        self.ctx.events.emit(Event::MessageRefused {
            client,
            code,
            message,
        });
        self.ctx
            .sessions
            .refuse(&client, &error, self.ctx.config.server.max_refusals);
    }

    /// What all proposals share is made once; each client's own part is added off the runtime.
    async fn propose(&self, propose: Propose) {
        let round = propose.round;
        let made = tokio::task::spawn_blocking(move || {
            let parts = ProposalParts::new(propose.round, &propose.tree, &propose.funding_tx)?;
            let proposals = propose.clients.iter().map(|one| {
                let proposal = parts.for_client(one.position, one.sums.iter())?;
                Ok((one.client, ServerMessage::from(Body::Proposal(proposal))))
            });
            proposals.collect::<Result<Vec<_>, proto::WireError>>()
        });
        match made.await {
            Ok(Ok(proposals)) => {
                for (client, message) in proposals {
                    self.ctx.sessions.send(&client, message);
                }
            }
            // The deadline ends an attempt whose proposals never went out.
            Ok(Err(error)) => {
                tracing::error!(%error, ?round, "a proposal cannot be written; this is a defect")
            }
            Err(error) => tracing::error!(%error, ?round, "proposals were not made"),
        }
    }

    async fn fund(&mut self, round: Round, factory: FactoryId) -> Result<(), Stop> {
        loop {
            match sign_off(&self.ctx, round, factory).await {
                Ok(()) => return Ok(()),
                Err(error) => self.pause(error).await?,
            }
        }
    }

    async fn finished(&mut self, outcome: Outcome) -> Result<(), Stop> {
        if let Outcome::Failed { .. } = outcome {
            // The rows went with the record of the failure; here the wallet learns of it.
            let pins = std::mem::take(&mut self.pins);
            self.ctx.wallet.release(pins).await;
        }
        Err(Stop::Over)
    }

    pub(super) async fn judge(
        &mut self,
        round: Round,
        joins: &[(ClientId, Box<Join>)],
    ) -> Result<Vec<Verdict>, Stop> {
        loop {
            let result = self.joins.judge(&self.ctx, round, joins).await;
            match result {
                Ok(verdicts) => return Ok(verdicts),
                Err(error) => self.pause(error).await?,
            }
        }
    }

    /// A write failed (the disk is full, say): nothing goes on without it, so it is tried again until it succeeds.
    pub(super) async fn pause(&mut self, error: StoreError) -> Result<(), Stop> {
        self.ctx.events.emit(Event::StoreFailed {
            problem: error.to_string(),
        });
        tokio::select! {
            _ = self.shutdown.wait_for(|stop| *stop) => Err(Stop::Shutdown),
            () = tokio::time::sleep(STORE_PAUSE) => Ok(()),
        }
    }
}

fn refusal(round: Round, reason: RefuseReason) -> ServiceError {
    let (code, text) = match reason {
        RefuseReason::UnknownRound => (
            ErrorCode::UnknownRound,
            "this attempt is over, or never was; ask for your status".to_owned(),
        ),
        RefuseReason::NotInvited => (
            ErrorCode::UnknownRound,
            "you are not part of this attempt (any more)".to_owned(),
        ),
        RefuseReason::OutOfTurn => (
            ErrorCode::Unexpected,
            "not now: this step is over, was answered, or has not begun".to_owned(),
        ),
        RefuseReason::Malformed(what) => (ErrorCode::Malformed, what),
    };
    ServiceError::new(code, text).round(round)
}
