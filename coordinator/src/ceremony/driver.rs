//! Drives one ceremony: mail and timers in, the machine's effects out, one thing after the other.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::FeeRate;
use channel_host::LeafId;
use factory_tree::ceremony::coordinator::{
    Ceremony, Effect, Input, Invitee, LspSigner, Phase, Step, Terms,
};
use factory_tree::ceremony::message::{AbortReason, Join, Round, ToCoordinator};
use factory_tree::ids::{Attempt, CeremonyId, ClientId, FactoryId};
use factory_tree::units::Height;
use proto::session::ServiceError;
use proto::v1::ErrorCode;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::gather::{self, GatherEnd};
use super::joins::Joins;
use super::{Mail, Status};
use crate::context::Context;
use crate::event::{Event, abort_name, abort_text};
use crate::keys::CeremonySigner;
use crate::lightning::Opening;
use crate::store::attempts::{self, AttemptState};
use crate::store::ceremonies::{self, CeremonyRow};
use crate::store::{StoreError, factories, leaves};
use crate::{fault, funding};

/// Messages taken from the mailbox at once.
const BATCH: usize = 512;

/// Why a driver ends.
#[derive(Debug)]
pub(super) enum Stop {
    /// The ceremony is over.
    Over,
    /// The coordinator goes down; the ceremony goes on after the restart.
    Shutdown,
}

/// Who starts a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The operator: the ceremony is new.
    Operator,
    /// A restart: the ceremony was under way.
    Restart,
}

/// One ceremony's driver.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) ctx: Arc<Context>,
    pub(super) id: CeremonyId,
    pub(super) terms: Terms,
    pub(super) feerate: FeeRate,
    pub(super) signer: Arc<CeremonySigner>,
    pub(super) joins: Joins,
    pub(super) work: VecDeque<Work>,
    pub(super) wakes: Vec<(Instant, Round, Phase)>,
    /// Coins that came free with the failure of the ceremony.
    pub(super) pins: Vec<bitcoin::OutPoint>,
    pub(super) shutdown: watch::Receiver<bool>,
    /// The channels of the attempt under way, while they are opened.
    pub(super) opening: Option<Opening>,
    status: watch::Sender<Status>,
    mailbox: mpsc::Receiver<Mail>,
    tip: u32,
}

/// Something for the machine.
#[derive(Debug)]
pub(super) enum Work {
    Input(Input),
    /// Its channel key is derived where the machine works, off the runtime.
    Join(ClientId, Box<Join>),
}

/// Starts a ceremony's driver; what it does depends on what is stored.
pub(super) fn spawn(
    ctx: Arc<Context>,
    id: CeremonyId,
    origin: Origin,
    shutdown: watch::Receiver<bool>,
) {
    let (mailbox, status) = ctx.ceremonies.register(id);
    tokio::spawn(async move {
        let reason = run(&ctx, id, origin, mailbox, status, shutdown).await;
        if let Some(reason) = reason {
            give_up(&ctx, id, &reason).await;
        }
        ctx.ceremonies.unregister(id);
    });
}

/// Waits until a ceremony's driver has ended. Without one the ceremony is given up here.
pub(super) async fn wait_until_over(ctx: &Context, id: CeremonyId) {
    if !ctx
        .ceremonies
        .running()
        .iter()
        .any(|(running, _)| *running == id)
    {
        give_up(ctx, id, &AbortReason::Cancelled).await;
        return;
    }
    ctx.ceremonies.over(id).await;
}

/// Stores that a ceremony came to nothing before its machine was there to say so.
async fn give_up(ctx: &Context, id: CeremonyId, reason: &AbortReason) {
    let given_up = ctx
        .store
        .write(async |tx| {
            let pins = ceremonies::pins(tx, id).await?;
            let free = ceremonies::fail(tx, id, &abort_text(reason)).await?;
            Ok(free.then_some(pins))
        })
        .await;
    match given_up {
        Ok(Some(pins)) => {
            ctx.lightning.look_again();
            ctx.wallet
                .release(pins.into_iter().map(|pin| pin.outpoint))
                .await;
            let (reason, detail) = (abort_name(reason), abort_text(reason));
            ctx.events.emit(Event::CeremonyFailed {
                ceremony: id,
                reason,
                detail,
            });
        }
        // Its factory stands.
        Ok(None) => {}
        Err(error) => store_failed(ctx, &error),
    }
}

fn store_failed(ctx: &Context, error: &StoreError) {
    ctx.events.emit(Event::StoreFailed {
        problem: error.to_string(),
    });
}

/// `Some`: the ceremony failed before it had a machine.
async fn run(
    ctx: &Arc<Context>,
    id: CeremonyId,
    origin: Origin,
    mut mailbox: mpsc::Receiver<Mail>,
    status: watch::Sender<Status>,
    mut shutdown: watch::Receiver<bool>,
) -> Option<AbortReason> {
    let (terms, feerate, first, invited) = loop {
        match begin(ctx, id, origin, &mut mailbox, &mut shutdown).await {
            Ok(Beginning::Attempt {
                terms,
                feerate,
                first,
                invited,
            }) => break (*terms, feerate, first, invited),
            Ok(Beginning::Over) | Err(GatherEnd::Stopped) => return None,
            Err(GatherEnd::Failed(reason)) => return Some(reason),
            // Nothing goes on without the database, and nothing is given up for it: every channel may stand already.
            Err(GatherEnd::Store(error)) => {
                store_failed(ctx, &error);
                ctx.ceremonies.unclaim(id, None);
                tokio::select! {
                    _ = shutdown.wait_for(|stop| *stop) => return None,
                    () = tokio::time::sleep(STORE_PAUSE) => {}
                }
            }
        }
    };
    let driver = Driver {
        id,
        terms,
        feerate,
        signer: Arc::new(CeremonySigner::new(Arc::clone(&ctx.keys))),
        joins: Joins::default(),
        work: VecDeque::new(),
        wakes: Vec::new(),
        pins: Vec::new(),
        opening: None,
        tip: ctx.height(),
        ctx: Arc::clone(ctx),
        status,
        mailbox,
        shutdown,
    };
    driver.drive(first, invited).await
}

/// What there is to do at first.
enum Beginning {
    /// An attempt.
    Attempt {
        terms: Box<Terms>,
        feerate: FeeRate,
        first: Attempt,
        invited: Vec<Invitee>,
    },
    /// Nothing more: a factory stands, or the ceremony was given up.
    Over,
}

async fn begin(
    ctx: &Arc<Context>,
    id: CeremonyId,
    origin: Origin,
    mailbox: &mut mpsc::Receiver<Mail>,
    shutdown: &mut watch::Receiver<bool>,
) -> Result<Beginning, GatherEnd> {
    let read = ctx.store.read(async |tx| {
        Ok((
            ceremonies::get(tx, id).await?,
            attempts::last(tx, id).await?,
            ceremonies::pins(tx, id).await?,
        ))
    });
    let (row, last, pins) = read.await?;
    let Some(row) = row.filter(|row| row.state.is_open()) else {
        return Ok(Beginning::Over);
    };
    ctx.wallet
        .reserve(pins.into_iter().map(|pin| pin.outpoint))
        .await;
    if let Some(last) = &last {
        let round = Round {
            ceremony: id,
            attempt: last.attempt,
        };
        let stands = match last.state {
            AttemptState::FundingSigned => true,
            AttemptState::Ready => still_stands(ctx, round, mailbox, shutdown).await?,
            _ => false,
        };
        if stands {
            go_on_to_fund(ctx, round).await?;
            return Ok(Beginning::Over);
        }
    }
    wait_for_tip(ctx, mailbox, shutdown).await?;
    let feerate = match row.wish.feerate_sat_per_kwu {
        Some(rate) => FeeRate::from_sat_per_kwu(rate),
        None => ctx.feerate().await,
    };
    if let (Some(last), Some(terms)) = (last, &row.terms) {
        let round = Round {
            ceremony: id,
            attempt: last.attempt,
        };
        if last.state != AttemptState::Failed {
            restarted(ctx, round).await?;
        }
        let out = |invitee: &Invitee| {
            last.left_out
                .iter()
                .any(|(client, _)| *client == invitee.client)
        };
        let invited: Vec<Invitee> = last
            .invited
            .into_iter()
            .filter(|invitee| !out(invitee))
            .collect();
        let claimed = ctx
            .ceremonies
            .claim(id, &invited, usize::MAX, |invitee| invitee.client);
        let first = Attempt(last.attempt.0.saturating_add(1));
        return Ok(Beginning::Attempt {
            terms: Box::new(terms.clone()),
            feerate,
            first,
            invited: claimed,
        });
    }
    if origin == Origin::Restart && row.wish.clients.is_none() {
        // It was for those who were interested at that moment, and that has passed.
        return Err(GatherEnd::Failed(AbortReason::Restarted));
    }
    let invited = gather::gather(ctx, id, &row.wish, mailbox, shutdown).await?;
    let terms = match row.terms {
        Some(terms) => terms,
        None => pin(ctx, &row, &invited, feerate).await?,
    };
    let clients = u32::try_from(invited.len()).unwrap_or(u32::MAX);
    ctx.events.emit(Event::CeremonyStarted {
        ceremony: id,
        invited: clients,
    });
    Ok(Beginning::Attempt {
        terms: Box::new(terms),
        feerate,
        first: Attempt(1),
        invited,
    })
}

/// The next attempt is born at the tip, so it has to be known. The operator may give up waiting.
async fn wait_for_tip(
    ctx: &Context,
    mailbox: &mut mpsc::Receiver<Mail>,
    shutdown: &mut watch::Receiver<bool>,
) -> Result<(), GatherEnd> {
    let mut chain = ctx.chain.subscribe();
    loop {
        tokio::select! {
            biased;
            _ = shutdown.wait_for(|stop| *stop) => return Err(GatherEnd::Stopped),
            _ = chain.wait_for(|state| state.height().is_some()) => return Ok(()),
            mail = mailbox.recv() => match mail {
                Some(Mail::Cancel) => return Err(GatherEnd::Failed(AbortReason::Cancelled)),
                Some(_) => {}
                None => return Err(GatherEnd::Stopped),
            },
        }
    }
}

/// Step 0: coins are pinned and stored before anybody is invited.
async fn pin(
    ctx: &Context,
    row: &CeremonyRow,
    invited: &[Invitee],
    feerate: FeeRate,
) -> Result<Terms, GatherEnd> {
    let no_funds = |why: String| GatherEnd::Failed(AbortReason::NoFunds(why));
    let params = &row.wish.params;
    let amount = funding::estimate(params, &gather::capacities(invited));
    let amount = amount.ok_or_else(|| no_funds(funding::FundingError::Overflow.to_string()))?;
    let pins = funding::pin(ctx, amount, feerate)
        .await
        .map_err(|error| no_funds(error.to_string()))?;
    let common = pins.first().map(|pin| pin.outpoint);
    let limits = &ctx.config.ceremony;
    let terms = Terms {
        params: params.clone(),
        fee: bitcoin::Amount::from_sat(ctx.config.policy.fee_sat),
        fee_ppm: ctx.config.policy.fee_ppm,
        join_seconds: limits.join_seconds,
        step_seconds: limits.step_seconds,
        min_clients: row.wish.min_clients,
        max_attempts: limits.max_attempts,
        common_pin: common.ok_or_else(|| no_funds("no coin was chosen".to_owned()))?,
        confirmations: ctx.config.confirmations(),
    };
    let stored = ctx
        .store
        .write(async |tx| ceremonies::start(tx, row.id, &terms, &pins).await)
        .await;
    if let Err(error) = stored {
        ctx.wallet
            .release(pins.iter().map(|pin| pin.outpoint))
            .await;
        return Err(error.into());
    }
    fault::point("pins_stored");
    Ok(terms)
}

/// Whether every channel of an attempt that was ready before the restart still stands: one may have been closed meanwhile, and what is funded
/// without it would leave its client with the timeouts alone. The operator may give up waiting for the node.
async fn still_stands(
    ctx: &Context,
    round: Round,
    mailbox: &mut mpsc::Receiver<Mail>,
    shutdown: &mut watch::Receiver<bool>,
) -> Result<bool, GatherEnd> {
    let runs = loop {
        tokio::select! {
            biased;
            _ = shutdown.wait_for(|stop| *stop) => return Err(GatherEnd::Stopped),
            _ = ctx.lightning.runs() => break true,
            mail = mailbox.recv() => match mail {
                Some(Mail::Cancel) => break false,
                Some(_) => {}
                None => return Err(GatherEnd::Stopped),
            },
        }
    };
    if !runs {
        restarted(ctx, round).await?;
        return Err(GatherEnd::Failed(AbortReason::Cancelled));
    }
    let leaves = ctx.store.read(async |tx| leaves::all(tx).await).await?;
    let mut leaves = leaves.into_iter().filter(|leaf| leaf.round == round);
    Ok(leaves.all(|leaf| ctx.lightning.stands(LeafId(leaf.leaf.0))))
}

/// Every channel stood before the restart: nothing is left but to fund.
async fn go_on_to_fund(ctx: &Context, round: Round) -> crate::store::Result<()> {
    let row = ctx
        .store
        .read(async |tx| factories::of_ceremony(tx, round.ceremony).await)
        .await?;
    match row {
        Some(row) => sign_off(ctx, round, row.id).await,
        None => Ok(()),
    }
}

/// Stores `funding_signed`, which is never undone, then signs and broadcasts.
///
/// # Errors
/// Those of the database; then nothing was signed.
pub(super) async fn sign_off(
    ctx: &Context,
    round: Round,
    factory: FactoryId,
) -> crate::store::Result<()> {
    let clients = ctx
        .store
        .write(async |tx| {
            factories::funding_signed(tx, round, factory).await?;
            ceremonies::complete(tx, round.ceremony).await?;
            factories::clients(tx, factory).await
        })
        .await?;
    fault::point("funding_signed_stored");
    ctx.sessions.satisfied(&clients);
    if let Err(error) = funding::broadcast(ctx, factory).await {
        tracing::error!(%error, %factory, "the funding was not broadcast; it is tried again at the next block");
    }
    Ok(())
}

/// Secret nonces do not survive a restart: an attempt whose channels did not all stand fails.
async fn restarted(ctx: &Context, round: Round) -> crate::store::Result<()> {
    let reason = AbortReason::Restarted;
    ctx.store
        .write(async |tx| attempts::fail(tx, round, &abort_text(&reason), &[]).await)
        .await?;
    // Its channels, if any were opened, are given up.
    ctx.lightning.look_again();
    ctx.events.emit(Event::AttemptFailed {
        round,
        reason: abort_name(&reason),
        detail: abort_text(&reason),
    });
    Ok(())
}

impl Driver {
    async fn drive(mut self, first: Attempt, invited: Vec<Invitee>) -> Option<AbortReason> {
        let signer: Arc<dyn LspSigner> = self.signer.clone();
        let (id, terms, tip) = (self.id, self.terms.clone(), Height(self.tip));
        let started = tokio::task::spawn_blocking(move || {
            Ceremony::start(id, first, terms, invited, signer, tip)
        });
        let Ok(step) = started.await else {
            return Some(AbortReason::Tree("a defect of the coordinator's".into()));
        };
        let Step {
            state: mut machine,
            mut effects,
        } = step;
        loop {
            self.status.send_replace(Status {
                round: Some(machine.round()),
                phase: Some(machine.phase()),
            });
            let failed_in = machine.round();
            match self.execute_all(effects).await {
                Ok(()) => {}
                Err(Stop::Over | Stop::Shutdown) => return None,
            }
            if self.work.is_empty() && !self.wait(&machine).await {
                return None;
            }
            self.note_tip();
            let signer = Arc::clone(&self.signer);
            let work = std::mem::take(&mut self.work);
            let done = tokio::task::spawn_blocking(move || work_off(machine, &signer, work));
            let Ok(done) = done.await else {
                tracing::error!(round = ?failed_in, "the ceremony's machine failed; this is a defect");
                return Some(AbortReason::Tree("a defect of the coordinator's".into()));
            };
            (machine, effects, self.work) = done;
        }
    }

    fn note_tip(&mut self) {
        let tip = self.ctx.height();
        if tip != self.tip {
            self.tip = tip;
            self.work.push_front(Work::Input(Input::Tip(Height(tip))));
        }
    }

    /// Waits for mail or a timer. False: the coordinator goes down.
    async fn wait(&mut self, machine: &Ceremony) -> bool {
        let next = self.wakes.iter().map(|(at, ..)| *at).min();
        let timer = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let mut mails = Vec::new();
        // Mail first: who answered in time is not silent because we were slow to look.
        tokio::select! {
            biased;
            _ = self.shutdown.wait_for(|stop| *stop) => return false,
            count = self.mailbox.recv_many(&mut mails, BATCH) => {
                if count == 0 {
                    return false;
                }
            }
            () = timer => {
                let now = Instant::now();
                let due = self.wakes.extract_if(.., |(at, ..)| *at <= now);
                self.work.extend(due.map(|(_, round, phase)| Work::Input(Input::Deadline { round, phase })));
            }
        }
        self.sort(machine, mails).await
    }

    /// Turns mail into work, in order; joins are written down first.
    async fn sort(&mut self, machine: &Ceremony, mails: Vec<Mail>) -> bool {
        let current = machine.round();
        let mut joins = Vec::new();
        let mut others = Vec::new();
        for mail in mails {
            match mail {
                Mail::Client {
                    client,
                    message: ToCoordinator::Join(join),
                } => joins.push((client, join)),
                other => others.push(other),
            }
        }
        let is_ours = |(client, join): &(ClientId, Box<Join>)| {
            join.round == current
                && self.ctx.ceremonies.open().claimed.get(client) == Some(&self.id)
        };
        let (ours, foreign): (Vec<_>, Vec<_>) = joins.into_iter().partition(is_ours);
        for (client, join) in foreign {
            let text = "this attempt is over, or you are not part of it; ask for your status";
            self.refuse(
                client,
                ServiceError::new(ErrorCode::UnknownRound, text).round(join.round),
            );
        }
        if machine.phase() != Phase::Joining {
            // Too late to be written down; the machine says so, or overlooks a harmless repetition.
            self.work.extend(
                ours.into_iter()
                    .map(|(client, join)| Work::Join(client, join)),
            );
        } else if !ours.is_empty() {
            let Ok(verdicts) = self.judge(current, &ours).await else {
                return false;
            };
            for ((client, join), verdict) in ours.into_iter().zip(verdicts) {
                match verdict {
                    Some(why) => self.refuse(
                        client,
                        ServiceError::new(ErrorCode::Conflict, why).round(current),
                    ),
                    None => self.work.push_back(Work::Join(client, join)),
                }
            }
        }
        let others = others.into_iter().map(|mail| match mail {
            Mail::Client { client, message } => Input::Message { client, message },
            Mail::Channel {
                round,
                client,
                result: Ok(()),
            } => Input::ChannelOpened { round, client },
            Mail::Channel {
                round,
                client,
                result: Err(why),
            } => Input::ChannelRefused { round, client, why },
            Mail::Connected(client) => Input::Connected(client),
            Mail::Gone(client) => Input::Gone(client),
            Mail::Cancel => Input::Cancel,
        });
        self.work.extend(others.map(Work::Input));
        true
    }
}

/// Steps until something is to be stored: what comes after may depend on that.
fn work_off(
    mut machine: Ceremony,
    signer: &CeremonySigner,
    mut work: VecDeque<Work>,
) -> (Ceremony, Vec<Effect>, VecDeque<Work>) {
    let mut all = Vec::new();
    while let Some(next) = work.pop_front() {
        let input = match next {
            Work::Input(input) => input,
            Work::Join(client, join) => {
                match signer.channel_key(join.round.attempt, join.leaf_id) {
                    Some(lsp_channel_key) => Input::Joined {
                        client,
                        join,
                        lsp_channel_key,
                    },
                    None => continue,
                }
            }
        };
        let Step { state, effects } = machine.step(input);
        machine = state;
        let stores = effects
            .iter()
            .any(|effect| matches!(effect, Effect::Store(_)));
        all.extend(effects);
        if stores {
            break;
        }
    }
    (machine, all, work)
}

/// A pause before a write that failed is tried again.
pub(super) const STORE_PAUSE: Duration = Duration::from_secs(1);
