//! FactoryCreate: begins a ceremony and tells how it goes.

use std::collections::BTreeMap;
use std::sync::Arc;

use bitcoin::Amount;
use factory_tree::ceremony::message::Round;
use factory_tree::ids::{CeremonyId, FactoryId};
use factory_tree::params::{ExpiryPolicy, FactoryParams, Profile};
use proto::admin::factory_create_event::Event as Out;
use proto::admin::*;
use proto::session::ServiceError;
use proto::v1::{self, ErrorCode};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::convert::{create_error, factory, named, param_error};
use crate::ceremony;
use crate::context::Context;
use crate::event::Event;
use crate::params;
use crate::server::phase;
use crate::store::ceremonies::Wish;

/// Progress that may wait for a slow terminal.
const QUEUE: usize = 256;

type Events = ReceiverStream<Result<FactoryCreateEvent, Status>>;

pub async fn create(
    ctx: &Arc<Context>,
    request: FactoryCreateRequest,
    shutdown: watch::Receiver<bool>,
) -> Result<Events, ServiceError> {
    let wait = request.wait;
    let wish = wish(ctx, &request)?;
    // From before it begins, so that nothing of it is missed.
    let events = ctx.events.subscribe();
    let gathering = request.clients.map(|wanted| Gathering {
        wish: wish.clone(),
        wanted,
        told: None,
    });
    let id = ceremony::create(ctx, wish, shutdown)
        .await
        .map_err(|error| create_error(&error))?;
    let (out, stream) = mpsc::channel(QUEUE);
    let clients = request.clients.unwrap_or(0);
    let started = Out::Started(Started {
        ceremony: id.0.to_vec().into(),
        clients,
    });
    // The queue is empty.
    let _ = out.try_send(Ok(event(started)));
    if wait {
        tokio::spawn(follow(Arc::clone(ctx), id, gathering, events, out));
    }
    Ok(ReceiverStream::new(stream))
}

fn event(event: Out) -> FactoryCreateEvent {
    FactoryCreateEvent { event: Some(event) }
}

fn wish(ctx: &Context, request: &FactoryCreateRequest) -> Result<Wish, ServiceError> {
    let bad = |text: String| ServiceError::new(ErrorCode::InvalidArgument, text);
    let mut set = BTreeMap::new();
    for setting in &request.settings {
        let value = serde_json::from_str(&setting.value);
        let value =
            value.map_err(|error| bad(format!("{} = {}: {error}", setting.name, setting.value)))?;
        set.insert(setting.name.clone(), value);
    }
    let configured = ctx
        .config
        .factory_params(&BTreeMap::new())
        .map_err(|error| param_error(&error))?;
    let base = match request.profile() {
        v1::Profile::Unspecified => configured.clone(),
        named => {
            let profile = match named {
                v1::Profile::Deep => Profile::Deep,
                v1::Profile::Standard => Profile::Standard,
                _ => Profile::Lite,
            };
            let base = FactoryParams {
                expiry_policy: configured.expiry_policy,
                ..FactoryParams::profile(profile, ctx.config.network)
            };
            params::with(&base, &ctx.config.factory.set).map_err(|error| param_error(&error))?
        }
    };
    let expiry_policy = match request.expiry_policy() {
        v1::ExpiryPolicy::Unspecified => base.expiry_policy,
        v1::ExpiryPolicy::ClientRefund => ExpiryPolicy::ClientRefund,
        v1::ExpiryPolicy::LspReclaim => ExpiryPolicy::LspReclaim,
    };
    let base = FactoryParams {
        expiry_policy,
        ..base
    };
    Ok(Wish {
        params: params::with(&base, &set).map_err(|error| param_error(&error))?,
        clients: request.clients,
        min_clients: request
            .min_clients
            .unwrap_or(ctx.config.ceremony.min_clients),
        capacity: request.capacity_sat.map(Amount::from_sat),
        feerate_sat_per_kwu: request.feerate_sat_per_kwu,
        rung: None,
        invited: None,
    })
}

/// How far the attempt under way is.
#[derive(Default)]
struct Count {
    done: u32,
    total: u32,
}

/// Clients that are waited for before the first attempt.
struct Gathering {
    wish: Wish,
    wanted: u32,
    told: Option<(usize, usize)>,
}

impl Gathering {
    /// How many there are, when that changed; the database's failures are told elsewhere.
    async fn news(&mut self, ctx: &Context, id: CeremonyId) -> Option<Out> {
        let connected = ctx.sessions.list().len();
        let interested = ceremony::interested(ctx, &self.wish).await.ok()?;
        let now = Some((interested, connected));
        if self.told == now {
            return None;
        }
        self.told = now;
        Some(Out::Progress(Progress {
            round: Some(v1::Round {
                ceremony: id.0.to_vec().into(),
                attempt: 0,
            }),
            phase: v1::Phase::Unspecified.into(),
            done: u32::try_from(interested).unwrap_or(u32::MAX),
            total: self.wanted,
        }))
    }
}

async fn follow(
    ctx: Arc<Context>,
    id: CeremonyId,
    mut gathering: Option<Gathering>,
    mut events: broadcast::Receiver<Event>,
    out: mpsc::Sender<Result<FactoryCreateEvent, Status>>,
) {
    let mut count = Count::default();
    let mut complete = None;
    let mut changes = ctx.sessions.changes();
    loop {
        if let Some(waiting) = &mut gathering
            && let Some(told) = waiting.news(&ctx, id).await
            && out.send(Ok(event(told))).await.is_err()
        {
            return;
        }
        let next = tokio::select! {
            next = events.recv() => next,
            Ok(()) = changes.changed(), if gathering.is_some() => continue,
        };
        let next = match next {
            Ok(next) => next,
            // Some progress is not shown; the end is not missed, as the counts are only for people.
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return,
        };
        if let Event::CeremonyStarted { ceremony, .. } | Event::CeremonyFailed { ceremony, .. } =
            &next
            && *ceremony == id
        {
            gathering = None;
        }
        let told = match next {
            Event::FundingBroadcast { factory, .. } if complete == Some(factory) => {
                finished(&ctx, factory).await
            }
            Event::Shutdown => return,
            other => translate(id, other, &mut count, &mut complete),
        };
        let Some(told) = told else { continue };
        let last = matches!(told, Out::Finished(_) | Out::Failed(_));
        if out.send(Ok(event(told))).await.is_err() || last {
            return;
        }
    }
}

async fn finished(ctx: &Context, id: FactoryId) -> Option<Out> {
    match named(ctx, &id.0).await {
        Ok(named) => Some(Out::Finished(factory(
            ctx,
            &named.ceremony,
            named.factory.as_ref(),
        ))),
        Err(error) => Some(Out::Failed((&error).into())),
    }
}

fn translate(
    id: CeremonyId,
    event: Event,
    count: &mut Count,
    complete: &mut Option<FactoryId>,
) -> Option<Out> {
    use factory_tree::ceremony::coordinator::Phase as P;
    let (done, total) = (count.done.saturating_add(1), count.total);
    let mut progress = |round: Round, phase: v1::Phase, done: u32, total: u32| {
        *count = Count { done, total };
        Some(Out::Progress(Progress {
            round: Some(round.into()),
            phase: phase.into(),
            done,
            total,
        }))
    };
    match event {
        Event::AttemptStarted { round, invited } if round.ceremony == id => {
            progress(round, phase(P::Joining), 0, invited)
        }
        Event::Joined { round, .. } if round.ceremony == id => {
            progress(round, phase(P::Joining), done, total)
        }
        Event::ProposalSent { round, clients, .. } if round.ceremony == id => {
            progress(round, phase(P::Signing), 0, clients)
        }
        Event::PartialsReceived { round, .. } if round.ceremony == id => {
            progress(round, phase(P::Signing), done, total)
        }
        Event::FinalsSent { round, .. } if round.ceremony == id => {
            progress(round, phase(P::Acking), 0, total)
        }
        Event::Acked { round, .. } if round.ceremony == id => {
            progress(round, phase(P::Acking), done, total)
        }
        Event::OpeningChannels { round, .. } if round.ceremony == id => {
            progress(round, phase(P::Opening), 0, total)
        }
        Event::ChannelOpened { round, .. } if round.ceremony == id => {
            progress(round, phase(P::Opening), done, total)
        }
        Event::CeremonyComplete { round, factory } if round.ceremony == id => {
            *complete = Some(factory);
            progress(round, phase(P::Finished), 0, 1)
        }
        Event::ClientLeftOut {
            round,
            client,
            reason,
            phase: at,
        } if round.ceremony == id => Some(Out::LeftOut(LeftOut {
            round: Some(round.into()),
            client: client.0.to_vec().into(),
            phase: phase(at).into(),
            reason: reason.to_owned(),
        })),
        Event::AttemptFailed { round, detail, .. } if round.ceremony == id => {
            Some(Out::AttemptFailed(AttemptFailed {
                round: Some(round.into()),
                reason: detail,
            }))
        }
        Event::CeremonyFailed {
            ceremony,
            reason,
            detail,
        } if ceremony == id => {
            let code = if reason == "no_funds" {
                ErrorCode::NoFunds
            } else {
                ErrorCode::Refused
            };
            Some(Out::Failed((&ServiceError::new(code, detail)).into()))
        }
        _ => None,
    }
}
