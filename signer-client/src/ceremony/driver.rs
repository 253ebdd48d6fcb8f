//! One client's part in one ceremony after the other.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use bitcoin::Amount;
use factory_tree::ceremony::message::{
    AbortReason, DeclineReason, Invitation, Round, ToClient, ToCoordinator,
};
use factory_tree::ceremony::signer::{
    JoinRecord, Signer, SignerEffect, SignerEvent, SignerInput, SignerOutcome, SignerPhase,
    SignerStep,
};
use factory_tree::ids::FactoryId;
use factory_tree::kit::ExitKit;
use factory_tree::params::ExpiryPolicy;
use factory_tree::units::Height;
use rand::RngCore;
use rand::rngs::OsRng;

use super::signer::{LeafSigner, join_keys};
use crate::client::Inner;
use crate::connection::Outgoing;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::exit::{RELAXED_TARGET, path_is_paid, would_be_late};
use crate::fault;
use crate::lsps1::bought_at_birth;
use crate::migration::{affordable, wanted};
use crate::store::{FactoryRow, JoinRow, StoreError};

/// Runs the machine of the current attempt. Lives as long as the process: a lost connection does
/// not end an attempt, a lost process does, as secret nonces are nowhere but here.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(super) client: Arc<Inner>,
    machine: Option<Attempt>,
    /// The last attempt this process took part in: messages of it may still be on their way.
    over: Option<Round>,
    /// An attempt acknowledged from the store, whose channel is awaited.
    pub(super) resumed: Option<(Round, FactoryId)>,
}

#[derive(Debug)]
struct Attempt {
    signer: Signer,
    /// The terms, for what is stored with the kit.
    invitation: Invitation,
    /// The last message of this attempt, to be sent again after a reconnection: resending the same
    /// bytes is harmless.
    last: Option<ToCoordinator>,
    /// The factory whose channel is awaited.
    expects: Option<FactoryId>,
}

impl Driver {
    pub(crate) fn new(client: Arc<Inner>) -> Self {
        Self {
            client,
            machine: None,
            over: None,
            resumed: None,
        }
    }

    /// Whether a factory is on its way already, so that no other is wanted.
    pub(crate) async fn is_served(&self) -> Result<bool> {
        let client = &self.client;
        for row in client.store.factories().await? {
            let awaited = row.is_live() && row.acked && !row.failed && !row.usable;
            // One whose kit is no good, or that is funded too late to be used, serves nobody.
            if awaited
                && let Some(kit) = client.kits.sound(row.factory).await?
                && !would_be_late(&row, &kit, client.next_block(&row))
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What the coordinator says is not on its way is not waited for: the word that an attempt
    /// failed may have been missed. Its kit stays, and the chain still decides.
    pub(crate) async fn only_awaited(
        &mut self,
        current: Option<Round>,
        awaited: &HashSet<FactoryId>,
    ) -> Result<()> {
        for row in self.client.store.factories().await? {
            let waiting = row.is_live() && row.acked && !row.failed && row.confirmed.is_none();
            if waiting && current != Some(row.round) && !awaited.contains(&row.factory) {
                self.fail(row.round).await?;
                self.client.events.emit(Event::AttemptFailed {
                    round: name(row.round),
                    reason: "the coordinator does not fund it".to_owned(),
                });
            }
        }
        Ok(())
    }

    /// A session began; the coordinator has us in `round`. Goes on with what is under way, or
    /// forgets it.
    pub(crate) async fn reconnected(&mut self, round: Option<Round>, out: &Outgoing) -> Result<()> {
        let own = self.machine.as_ref().map(|attempt| attempt.signer.round());
        match (own, round) {
            (Some(own), Some(round)) if own == round => {
                let last = self.machine.as_ref().and_then(|a| a.last.clone());
                if let Some(message) = last {
                    out.ceremony(&message).await?;
                }
                self.look_at_channel(out).await
            }
            (Some(_), _) => self.forget().await,
            (None, Some(round)) => self.acknowledge_stored(round, out).await.map(drop),
            (None, None) => {
                self.resumed = None;
                Ok(())
            }
        }
    }

    /// The machine, and the factory whose channel it awaits.
    pub(super) fn current(&self) -> Option<(&Signer, FactoryId)> {
        let attempt = self.machine.as_ref()?;
        Some((&attempt.signer, attempt.expects?))
    }

    async fn forget(&mut self) -> Result<()> {
        // An acknowledged attempt needs us no more; whether it came to something the chain says.
        if let Some(attempt) = self.machine.take() {
            let round = attempt.signer.round();
            self.over = Some(round);
            if !matches!(
                attempt.signer.phase(),
                SignerPhase::Acked | SignerPhase::Opened | SignerPhase::Finished
            ) {
                self.client.events.emit(Event::AttemptFailed {
                    round: name(round),
                    reason: "the coordinator goes on without us".to_owned(),
                });
            }
        }
        self.note(None).await;
        Ok(())
    }

    /// This process died between storing a kit and acknowledging it: the kit is complete, so the
    /// attempt need not fail for us.
    async fn acknowledge_stored(&mut self, round: Round, out: &Outgoing) -> Result<bool> {
        let factories = self.client.store.factories().await?;
        let Some(row) = factories.iter().find(|f| f.round == round && !f.failed) else {
            return Ok(false);
        };
        let factory = row.factory;
        self.client.kits.read(factory).await?;
        if let Err(error) = self.expect_channel(factory).await {
            let reason = DeclineReason::Unable(error.to_string());
            self.decline(round, reason, out).await?;
            return Ok(true);
        }
        self.client.store.set_acked(factory).await?;
        out.ceremony(&ToCoordinator::Ack { round, factory }).await?;
        self.client.events.emit(Event::Acked { factory });
        self.resumed = Some((round, factory));
        self.look_at_channel(out).await?;
        Ok(true)
    }

    /// A message of a ceremony came.
    pub(crate) async fn received(&mut self, message: ToClient, out: &Outgoing) -> Result<()> {
        let needs_nonces = match &message {
            ToClient::ConfirmPing(round) => Some(*round),
            ToClient::Proposal(proposal) => Some(proposal.round),
            ToClient::Finals(finals) => Some(finals.round),
            ToClient::Invitation(_) | ToClient::Failed { .. } | ToClient::Factory(_) => None,
        };
        if let (None, Some(round)) = (&self.machine, needs_nonces) {
            if self.acknowledge_stored(round, out).await? {
                return Ok(());
            }
            return self.unknown(round, out).await;
        }
        match message {
            ToClient::Invitation(invitation) => self.invited(*invitation, out).await,
            ToClient::ConfirmPing(round) => self.input(SignerInput::ConfirmPing(round), out).await,
            ToClient::Proposal(proposal) => {
                self.client.events.emit(Event::ProposalReceived {
                    round: name(proposal.round),
                });
                let tip = match self.client.tip_height().await {
                    Ok(height) => Height(height),
                    Err(error) => return self.unable(error, out).await,
                };
                let txid = proposal.path.funding_tx.compute_txid();
                let funding = bitcoin::OutPoint::new(txid, proposal.path.funding_vout);
                let known = self.client.store.factory(FactoryId::of(funding)).await;
                let known_factory = match known {
                    Ok(_) => true,
                    Err(StoreError::NoFactory(_)) => false,
                    Err(error) => return Err(error.into()),
                };
                self.input(
                    SignerInput::Proposal {
                        proposal,
                        tip,
                        known_factory,
                    },
                    out,
                )
                .await
            }
            ToClient::Finals(finals) => self.input(SignerInput::Finals(finals), out).await,
            ToClient::Failed {
                round,
                reason,
                again,
            } => {
                // A kit of this attempt may be stored even if the machine is gone.
                self.fail(round).await?;
                if self.machine.is_none() {
                    self.client.events.emit(Event::AttemptFailed {
                        round: name(round),
                        reason: abort_text(&reason),
                    });
                }
                self.input(
                    SignerInput::Failed {
                        round,
                        reason,
                        again,
                    },
                    out,
                )
                .await
            }
            ToClient::Factory(_) => Ok(()),
        }
    }

    async fn invited(&mut self, invitation: Invitation, out: &Outgoing) -> Result<()> {
        if let Some(attempt) = &self.machine
            && attempt.signer.round() == invitation.round
        {
            let again = SignerInput::Invitation(Box::new(invitation));
            return self.input(again, out).await;
        }
        #[cfg(feature = "fault-points")]
        if crate::misbehave::ignores_invitations() && self.client.store.interest().await?.is_none()
        {
            return Ok(());
        }
        let round = invitation.round;
        self.client
            .events
            .emit(Event::Invited { round: name(round) });
        self.earlier_failed(round).await?;
        if let Some(reason) = self.unwanted(&invitation).await? {
            // What was declined is not declined again.
            self.over = Some(round);
            return self.decline(round, reason, out).await;
        }
        let joins = self.client.store.joins_of(round.ceremony).await?;
        let earlier_pin = joins.first().map(|join| join.common_pin);
        let keys = Arc::clone(&self.client.keys);
        let limits = self.client.config.limits();
        let step = {
            let invitation = invitation.clone();
            blocking(move || {
                let join_nonce = keystore::random_join_nonce(&mut OsRng);
                let join = join_keys(&keys, join_nonce);
                let mut seed = || {
                    let mut bytes = [0; 32];
                    OsRng.fill_bytes(&mut bytes);
                    bytes
                };
                let signer = Arc::new(LeafSigner(keys));
                Signer::invited(invitation, limits, join, earlier_pin, &mut seed, signer)
            })
            .await?
        };
        let attempt = Attempt {
            signer: step.state,
            invitation,
            last: None,
            expects: None,
        };
        self.machine = Some(attempt);
        self.execute(step.effects, out).await
    }

    /// Whoever is invited to a later attempt need not wait for an earlier one: only one of them can be funded, as all spend the
    /// same pin, and the coordinator goes on with this one. The earlier one's kit stays, and the chain still decides.
    async fn earlier_failed(&mut self, round: Round) -> Result<()> {
        for row in self.client.store.factories().await? {
            let earlier = row.round.ceremony == round.ceremony && row.round.attempt < round.attempt;
            if earlier && !row.failed && row.confirmed.is_none() {
                self.fail(row.round).await?;
                self.client.events.emit(Event::AttemptFailed {
                    round: name(row.round),
                    reason: "the coordinator goes on with another attempt".to_owned(),
                });
            }
        }
        Ok(())
    }

    /// Why this invitation is not for us, beyond what the machine checks.
    async fn unwanted(&self, invitation: &Invitation) -> Result<Option<DeclineReason>> {
        let terms = |text: &str| Ok(Some(DeclineReason::Terms(text.to_owned())));
        // Whoever comes back on the last day is invited at once, while its node is starting.
        if !self.client.lightning.is_ready()
            && let Err(error) = self.node().await
        {
            return Ok(Some(DeclineReason::Unable(error.to_string())));
        }
        if let Some(reason) = self.unasked(invitation).await? {
            return Ok(Some(reason));
        }
        if self.is_served().await? {
            return terms("another factory of this wallet is on its way");
        }
        let reclaim = invitation.params.expiry_policy == ExpiryPolicy::LspReclaim;
        if reclaim && self.client.wallet.coins().await.is_empty() {
            return terms("expiry policy lsp_reclaim needs confirmed coins, and there are none");
        }
        Ok(None)
    }

    /// Why this is neither the factory that was asked for, nor one for what ends.
    async fn unasked(&self, invitation: &Invitation) -> Result<Option<DeclineReason>> {
        let interest = self.client.store.interest().await?;
        let asked = interest.as_ref().map(|interest| interest.capacity);
        // What a month may cost is the user's word, whoever asked for what.
        if let Err(declined) = affordable(&self.client, invitation.fee) {
            return Ok(Some(DeclineReason::Terms(declined.to_string())));
        }
        if asked.is_some_and(|asked| asked == Amount::ZERO || asked == invitation.capacity) {
            return Ok(None);
        }
        let Err(declined) = wanted(&self.client, invitation).await? else {
            return Ok(None);
        };
        let bought = bought_at_birth(&self.client.store).await?;
        if !declined.is_news() && bought > Amount::ZERO && invitation.capacity >= bought {
            return Ok(None);
        }
        let text = match asked {
            Some(asked) if !declined.is_news() => format!(
                "capacity {} sat, asked for {} sat",
                invitation.capacity.to_sat(),
                asked.to_sat()
            ),
            _ => declined.to_string(),
        };
        Ok(Some(DeclineReason::Terms(text)))
    }

    async fn unable(&mut self, error: Error, out: &Outgoing) -> Result<()> {
        self.leave(DeclineReason::Unable(error.to_string()), out)
            .await
    }

    async fn leave(&mut self, reason: DeclineReason, out: &Outgoing) -> Result<()> {
        let Some(attempt) = self.machine.take() else {
            return Ok(());
        };
        let round = attempt.signer.round();
        self.over = Some(round);
        self.note(None).await;
        // What was stored of it may be what cannot be stored: the attempt is left all the same.
        if let Err(error) = self.fail(round).await {
            tracing::error!(%error, "what was stored of the attempt stays as it is");
        }
        self.decline(round, reason, out).await
    }

    pub(super) async fn decline(
        &self,
        round: Round,
        reason: DeclineReason,
        out: &Outgoing,
    ) -> Result<()> {
        self.client.events.emit(refused(&reason));
        out.ceremony(&ToCoordinator::Decline { round, reason })
            .await
    }

    /// A message of an attempt that this process knows nothing of: it was joined before a restart,
    /// and its secret nonces are gone. Said at once, nobody has to wait for the deadline.
    async fn unknown(&self, round: Round, out: &Outgoing) -> Result<()> {
        if self.over == Some(round) {
            return Ok(());
        }
        let text = "restarted since the join: the secret nonces are gone";
        let reason = DeclineReason::Unable(text.to_owned());
        self.decline(round, reason, out).await
    }

    pub(super) async fn input(&mut self, input: SignerInput, out: &Outgoing) -> Result<()> {
        let Some(Attempt {
            signer,
            invitation,
            last,
            expects,
        }) = self.machine.take()
        else {
            return Ok(());
        };
        let SignerStep { state, effects } = blocking(move || signer.step(input)).await?;
        self.machine = Some(Attempt {
            signer: state,
            invitation,
            last,
            expects,
        });
        for effect in &effects {
            let SignerEffect::Emit(SignerEvent::ProposalChecked { path_vbytes, .. }) = effect
            else {
                continue;
            };
            match self.unaffordable(path_vbytes).await {
                Ok(None) => {}
                Ok(Some(reason)) => return self.leave(reason, out).await,
                Err(error) => return self.unable(error, out).await,
            }
        }
        self.execute(effects, out).await
    }

    /// Where only leaving in time gets the money out, the coins must pay for all of the path.
    async fn unaffordable(&self, path_vbytes: &[u64]) -> Result<Option<DeclineReason>> {
        let policy = self
            .machine
            .as_ref()
            .map(|attempt| attempt.invitation.params.expiry_policy);
        if policy != Some(ExpiryPolicy::LspReclaim) {
            return Ok(None);
        }
        let client = &self.client;
        let feerate = client.chain.fee_rate(RELAXED_TARGET).await?;
        let coins = client.coin_values().await;
        if path_is_paid(&coins, path_vbytes.iter().copied(), feerate) {
            return Ok(None);
        }
        let text = format!(
            "expiry policy lsp_reclaim needs coins that pay for the way out, {} transactions of {} vB at {} sat/vB; add one confirmed coin that does",
            path_vbytes.len(),
            path_vbytes.iter().sum::<u64>(),
            feerate.to_sat_per_vb_ceil(),
        );
        Ok(Some(DeclineReason::Terms(text)))
    }

    async fn execute(&mut self, effects: Vec<SignerEffect>, out: &Outgoing) -> Result<()> {
        let mut queue = VecDeque::from(effects);
        while let Some(effect) = queue.pop_front() {
            let done = self.effect(effect, out).await;
            match done {
                Ok(more) => queue.extend(more),
                // What could not be stored is not sent: the attempt goes on without us.
                Err(error @ (Error::Store(_) | Error::Lightning(_) | Error::NoLightning(_))) => {
                    tracing::error!(%error, "leaving the attempt");
                    return self.unable(error, out).await;
                }
                Err(error) => return Err(error),
            }
        }
        let phase = self.machine.as_ref().map(|attempt| {
            let round = name(attempt.signer.round());
            (round, attempt.signer.phase())
        });
        let working = phase.filter(|(_, phase)| *phase != SignerPhase::Finished);
        if working.is_none()
            && let Some(attempt) = self.machine.take()
        {
            self.over = Some(attempt.signer.round());
        }
        self.note(working).await;
        Ok(())
    }

    async fn effect(&mut self, effect: SignerEffect, out: &Outgoing) -> Result<Vec<SignerEffect>> {
        let store = &self.client.store;
        match effect {
            SignerEffect::StoreJoin(record) => {
                store.record_join(&join_row(&record)).await?;
                fault::point("join_stored");
            }
            SignerEffect::LoadSigned(outpoints) => {
                let records = store.signed(&outpoints).await?;
                return self.answer(SignerInput::Signed(records)).await;
            }
            SignerEffect::StoreSigned(records) => {
                store.record_signed(&records).await?;
                fault::point("guard_stored");
            }
            SignerEffect::StoreKit(kit) => {
                self.store_kit(&kit).await?;
                fault::point("kit_stored");
            }
            SignerEffect::ExpectChannel(factory) => {
                #[cfg(feature = "fault-points")]
                if crate::misbehave::refuses_channel() {
                    let found = "misbehaving".to_owned();
                    return self.answer(SignerInput::Channel(Err(found))).await;
                }
                self.expect_channel(factory).await?;
                if let Some(attempt) = &mut self.machine {
                    attempt.expects = Some(factory);
                }
            }
            SignerEffect::Rehearse(factory) => {
                let read = self.client.kits.read(factory).await;
                let result = read.map(drop).map_err(|error| error.to_string());
                return self.answer(SignerInput::Rehearsed(result)).await;
            }
            SignerEffect::Send(message) => self.send(message, out).await?,
            SignerEffect::Emit(event) => self.emit(event),
            SignerEffect::Finished(outcome) => {
                if let SignerOutcome::Refused { reason } = outcome {
                    tracing::warn!(?reason, "left the attempt");
                    if let Some(round) = self.machine.as_ref().map(|a| a.signer.round()) {
                        self.fail(round).await?;
                    }
                }
            }
        }
        Ok(Vec::new())
    }

    /// Gives the machine what it asked for.
    async fn answer(&mut self, input: SignerInput) -> Result<Vec<SignerEffect>> {
        let Some(Attempt {
            signer,
            invitation,
            last,
            expects,
        }) = self.machine.take()
        else {
            return Ok(Vec::new());
        };
        let SignerStep { state, effects } = blocking(move || signer.step(input)).await?;
        self.machine = Some(Attempt {
            signer: state,
            invitation,
            last,
            expects,
        });
        Ok(effects)
    }

    async fn send(&mut self, message: ToCoordinator, out: &Outgoing) -> Result<()> {
        let acked = match &message {
            ToCoordinator::Ack { factory, .. } => Some(*factory),
            _ => None,
        };
        if let Some(factory) = acked {
            // Before it is sent: from then on the funding may come at any time.
            self.client.store.set_acked(factory).await?;
        }
        if let Some(attempt) = &mut self.machine {
            attempt.last = Some(message.clone());
        }
        if matches!(message, ToCoordinator::ChannelOpened { .. }) {
            fault::point("channel_opened");
        }
        out.ceremony(&message).await?;
        if acked.is_some() {
            fault::point("acked");
        }
        Ok(())
    }

    async fn store_kit(&self, kit: &ExitKit) -> Result<()> {
        let factory = kit.factory_id;
        let Some(attempt) = &self.machine else {
            return Ok(());
        };
        let row = FactoryRow {
            factory,
            round: attempt.signer.round(),
            join_nonce: kit.join_nonce,
            funding: kit.funding(),
            common_pin: attempt.invitation.common_pin,
            capacity: kit.capacity,
            birth: kit.birth,
            expiry: kit.expiry,
            confirmations: attempt.invitation.confirmations,
            fee: attempt.invitation.fee,
            acked: false,
            failed: false,
            confirmed: None,
            usable: false,
            abandoned: None,
            closed: None,
            handover: None,
        };
        let text = kit
            .to_json()
            .map_err(|cause| Error::Kit { factory, cause })?;
        self.client.store.store_kit(&row, text.as_bytes()).await?;
        self.client.kits.added();
        Ok(())
    }

    fn emit(&self, event: SignerEvent) {
        let events = &self.client.events;
        match event {
            SignerEvent::Joined { round } => events.emit(Event::Joined { round: name(round) }),
            SignerEvent::Signed { round } => events.emit(Event::Signed { round: name(round) }),
            SignerEvent::Refused { reason, .. } => events.emit(refused(&reason)),
            SignerEvent::KitStored { factory, .. } => events.emit(Event::KitStored { factory }),
            SignerEvent::Acked { factory, .. } => events.emit(Event::Acked { factory }),
            SignerEvent::ChannelOpened { factory, .. } => {
                events.emit(Event::ChannelOpened { factory });
            }
            SignerEvent::AttemptFailed { round, reason } => events.emit(Event::AttemptFailed {
                round: name(round),
                reason: abort_text(&reason),
            }),
            SignerEvent::ProposalChecked {
                factory, coverage, ..
            } => tracing::info!(%factory, %coverage, "the proposal passed every check"),
        }
    }

    /// What other processes see of the attempt.
    async fn note(&self, working: Option<(String, SignerPhase)>) {
        self.client
            .set_live(|live| {
                let (round, phase) = working.unzip();
                live.round = round;
                live.phase = phase.map(phase_name);
            })
            .await;
    }
}

fn phase_name(phase: SignerPhase) -> String {
    match phase {
        SignerPhase::Joined => "joined",
        SignerPhase::Checked => "checked",
        SignerPhase::Signed => "signed",
        SignerPhase::Kept => "kept",
        SignerPhase::Acked => "acked",
        SignerPhase::Opened => "opened",
        SignerPhase::Finished => "finished",
    }
    .to_owned()
}

/// Why an attempt ended, for people.
fn abort_text(reason: &AbortReason) -> String {
    match reason {
        AbortReason::TooFewClients { left } => format!("only {left} clients are left"),
        AbortReason::Silent => "some did not answer in time".to_owned(),
        AbortReason::Guilty => "some sent invalid signatures".to_owned(),
        AbortReason::Left => "some declined or left".to_owned(),
        AbortReason::Tree(why) => format!("no factory can be built: {why}"),
        AbortReason::NoFunds(why) => format!("the coordinator has not the coins: {why}"),
        AbortReason::Restarted => "the coordinator was restarted".to_owned(),
        AbortReason::Cancelled => "the operator cancelled it".to_owned(),
        AbortReason::TooManyAttempts => "as many attempts failed as there may be".to_owned(),
    }
}

/// `ceremony/attempt`.
fn name(round: Round) -> String {
    format!("{}/{}", round.ceremony, round.attempt)
}

/// What is told of a refusal.
pub(crate) fn refused(reason: &DeclineReason) -> Event {
    let (rule, found) = match reason {
        DeclineReason::Terms(text) => ("terms".to_owned(), text.clone()),
        DeclineReason::Refused { rule, found } => (rule.clone(), found.clone()),
        DeclineReason::Unable(text) => ("unable".to_owned(), text.clone()),
    };
    Event::Refused { rule, found }
}

fn join_row(record: &JoinRecord) -> JoinRow {
    JoinRow {
        join_nonce: record.join_nonce,
        round: record.round,
        leaf_id: record.leaf_id,
        factory_key: record.factory_key,
        channel_key: record.channel_key,
        payout_script: record.payout_script.clone(),
        common_pin: record.common_pin,
        capacity: record.capacity,
    }
}

/// Curve arithmetic has no place in an async task.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::Task(error.to_string()))
}
