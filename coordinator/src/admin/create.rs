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
    // As long as nobody of it is claimed for this one.
    let waits_for = waits_for(ctx, &wish).await;
    let id = ceremony::create(ctx, wish, shutdown)
        .await
        .map_err(|error| create_error(&error))?;
    let (out, stream) = mpsc::channel(QUEUE);
    let clients = request.clients.unwrap_or(0);
    let started = Out::Started(Started {
        ceremony: id.0.to_vec().into(),
        clients,
        waits_for,
    });
    // The queue is empty.
    let _ = out.try_send(Ok(event(started)));
    if wait {
        tokio::spawn(follow(Arc::clone(ctx), id, gathering, events, out));
    }
    Ok(ReceiverStream::new(stream))
}

/// Whom a ceremony has to wait for, and how long; empty if nobody. The database's failures are told elsewhere.
async fn waits_for(ctx: &Context, wish: &Wish) -> String {
    let interested = match ceremony::interested(ctx, wish).await {
        Ok(interested) => u32::try_from(interested).unwrap_or(u32::MAX),
        Err(_) => return String::new(),
    };
    let Some(wanted) = wish.clients.filter(|wanted| interested < *wanted) else {
        return String::new();
    };
    let running = ctx.ceremonies.running().into_iter();
    let running: Vec<String> = running.map(|(id, _)| id.to_string()).collect();
    let others = match running.as_slice() {
        [] => String::new(),
        all => format!(
            "; clients of what is under way (ceremony {}) come free when that ends",
            all.join(", ")
        ),
    };
    format!(
        "{wanted} clients that are interested and free, of whom there are {interested}{others}; after {} s it goes on with those who are there, if they are {} at least",
        ctx.config.ceremony.gather_seconds, wish.min_clients
    )
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

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt as _;

    use super::*;
    use crate::sessions::Interest;
    use crate::testing::TestWorld;

    async fn started(world: &TestWorld, clients: u32, stop: &watch::Sender<bool>) -> Started {
        let request = FactoryCreateRequest {
            clients: Some(clients),
            ..FactoryCreateRequest::default()
        };
        let mut events = create(&world.ctx, request, stop.subscribe()).await.unwrap();
        match events.next().await.unwrap().unwrap().event {
            Some(Out::Started(started)) => started,
            other => panic!("{other:?}"),
        }
    }

    /// A client that is connected and interested; as long as the reader lives, it is there.
    fn comes(world: &TestWorld, byte: u8) -> mpsc::Receiver<crate::sessions::Outgoing> {
        let client = factory_tree::ids::ClientId([byte; 33]);
        let (out, reader) = mpsc::channel(64);
        let welcome = v1::server_message::Body::Heartbeat(v1::Heartbeat {});
        let token = proto::session::SessionToken::new([byte; 32]);
        let sessions = &world.ctx.sessions;
        let started = sessions.start(client, token, String::new(), out, welcome.into(), 9);
        started.unwrap();
        let interest = Interest {
            capacity: Amount::from_sat(200_000),
            has_fee_coins: false,
            once: true,
            order: 0,
        };
        sessions.set_interest(&client, Some(interest));
        reader
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_factory_that_has_to_wait_says_at_once_for_what() {
        let world = TestWorld::rich(|_| {}).await;
        let _there = [comes(&world, 2), comes(&world, 3)];
        let stop = watch::Sender::new(false);
        let first = started(&world, 2, &stop).await;
        assert_eq!(first.waits_for, "", "everybody is there");
        let id = CeremonyId::try_from(&first.ceremony[..]).unwrap();
        // It takes them for itself.
        let taken = async {
            let busy = factory_tree::ids::ClientId([2; 33]);
            let mut events = world.ctx.events.subscribe();
            while !world.ctx.ceremonies.is_busy(&busy) {
                events.recv().await.unwrap();
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), taken)
            .await
            .expect("the first one takes its clients");
        let second = started(&world, 2, &stop).await.waits_for;
        assert!(second.starts_with("2 clients"), "{second}");
        assert!(second.contains("of whom there are 0"), "{second}");
        assert!(second.contains(&id.to_string()), "{second}");
        let listed = crate::admin::factories::list(&world.ctx, false).await;
        let listed = listed.unwrap().factories;
        let gathered: Vec<u32> = listed.iter().filter_map(|one| one.gathered).collect();
        assert!(gathered.contains(&0), "{listed:?}");
    }
}
