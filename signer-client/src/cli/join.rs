//! `join`: ask to be in the next factory.

use std::time::Duration;

use bitcoin::Amount;
use factory_tree::ids::FactoryId;
use proto::connection::Connection;
use proto::tls::{ConnectError, ConnectOptions};
use proto::v1::{GetInfoRequest, Policy};
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;

use super::CliError;
use super::args::Join;
use super::context::{Context, Holder};
use super::follow::Progress;
use crate::client::{Shutdown, SignerClient, Tasks};
use crate::config::Config;
use crate::error::Error;
use crate::event::Event;
use crate::lock::Occupant;
use crate::store::{Interest, Request, SharedStore};

/// Answers to the wish that do not change by waiting.
const HOPELESS: [&str; 2] = ["ERROR_CODE_CAPACITY", "ERROR_CODE_FEE_COINS"];
/// How long to wait for the coordinator's policy.
const PATIENCE: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(100);

pub(super) async fn run(context: &Context, options: Join) -> Result<(), CliError> {
    let config = context.config()?;
    if config.coordinator.is_none() {
        let text = "no coordinator is configured; put its connection string into client.toml";
        return Err(CliError::Usage(text.to_owned()));
    }
    let capacity = Amount::from_sat(options.capacity.unwrap_or(0));
    let limits = config.limits();
    if options.capacity.is_some()
        && !(limits.min_capacity..=limits.max_capacity).contains(&capacity)
    {
        return Err(CliError::Refused(format!(
            "a capacity of {} sat is outside this wallet's own limits ({} to {} sat); see [limits] in client.toml",
            capacity.to_sat(),
            limits.min_capacity.to_sat(),
            limits.max_capacity.to_sat()
        )));
    }
    if !options.cancel {
        check_policy(&config, options.capacity).await?;
    }
    match context.holder("join").await? {
        Holder::Other(by) => beside(context, &options, capacity, &by).await,
        Holder::Us(_lock) if options.cancel => {
            context.store().await?.set_interest(None).await?;
            context.print(&json!({"state": "withdrawn"}), "Withdrawn.")
        }
        Holder::Us(mut lock) => {
            lock.serve()?;
            super::run::log(&config.log_level);
            let client = context.client(config).await?;
            alone(context, &client, capacity).await
        }
    }
}

/// Asks the coordinator what it offers, so that a wish it will not fulfil is refused here and now. A
/// coordinator that is away is asked later, by whoever acts on the wish.
async fn check_policy(config: &Config, capacity: Option<u64>) -> Result<(), CliError> {
    let (Some(capacity), Some(text)) = (capacity, config.coordinator.as_deref()) else {
        return Ok(());
    };
    let Some(policy) = policy(config, text).await? else {
        return Ok(());
    };
    if (policy.capacity_min_sat..=policy.capacity_max_sat).contains(&capacity) {
        return Ok(());
    }
    Err(CliError::Refused(format!(
        "the coordinator offers capacities from {} to {} sat, not {capacity}",
        policy.capacity_min_sat, policy.capacity_max_sat
    )))
}

async fn policy(config: &Config, text: &str) -> Result<Option<Policy>, CliError> {
    let parsed: Result<Connection, _> = text.parse();
    let connection = parsed.map_err(|error| Error::Connection(error.to_string()))?;
    let options = ConnectOptions {
        allow_plain: config.allow_plain,
        timeout: PATIENCE,
    };
    let channel = match proto::tls::connect(&connection, &options).await {
        Ok(channel) => channel,
        Err(ConnectError::Unreachable { .. }) => return Ok(None),
        Err(error) => return Err(Error::Connection(error.to_string()).into()),
    };
    let mut request = tonic::Request::new(GetInfoRequest {});
    request.set_timeout(PATIENCE);
    let info = proto::session::client(channel).get_info(request).await;
    Ok(info.ok().and_then(|info| info.into_inner().policy))
}

async fn beside(
    context: &Context,
    options: &Join,
    capacity: Amount,
    by: &Occupant,
) -> Result<(), CliError> {
    let store = context.store().await?;
    let before = usable(&store).await?;
    let interest = (!options.cancel).then(|| Interest {
        capacity,
        note: "waiting for the coordinator".to_owned(),
    });
    store.set_interest(interest.as_ref()).await?;
    context.ask(&store, Request::Wake).await?;
    if options.cancel {
        return context.print(&json!({"state": "withdrawn"}), "Withdrawn.");
    }
    let live = store.live().await?;
    // One that only leaves a factory does not talk to the coordinator.
    let connects = by.command != "exit";
    if !options.wait || !connects {
        let value = json!({"state": "waiting", "capacity_sat": capacity.to_sat(), "connected": live.connected});
        let text = if !connects {
            format!(
                "The wish is recorded. {by} does not talk to the coordinator; `{}` will.",
                context.again("run")
            )
        } else if live.disconnected_because.is_none() {
            format!(
                "Asked for a place in the next factory. `{}` shows how far it is.",
                context.again("status")
            )
        } else {
            kept(context)
        };
        return context.print(&value, &text);
    }
    let mut progress = Progress::new();
    while store.interest().await?.is_some() {
        if context.is_left()? {
            let text = "the signer-client that ran here has ended; the wish stays recorded";
            return Err(CliError::Refused(text.to_owned()));
        }
        let live = store.live().await?;
        let phase = live.phase.map(|phase| format!("in a ceremony: {phase}"));
        let away = live.disconnected_because.filter(|_| !live.connected);
        progress.say(
            &away
                .or(phase)
                .unwrap_or_else(|| "waiting for the next factory".to_owned()),
        );
        tokio::time::sleep(LOOK).await;
    }
    drop(progress);
    report(context, &store, &before).await
}

fn kept(context: &Context) -> String {
    format!(
        "the wish is kept; the coordinator is not reachable now; `{}` takes it back",
        context.again("join --cancel")
    )
}

/// Nobody runs: this process takes part until the factory is usable.
async fn alone(context: &Context, client: &SignerClient, capacity: Amount) -> Result<(), CliError> {
    let mut events = client.events();
    let before = usable(client.store()).await?;
    client.join(capacity).await?;
    let (stop, shutdown) = Shutdown::new();
    let running = client.run(Tasks::ALL, shutdown);
    let signal = super::run::wait_for_signal();
    tokio::pin!(running, signal);
    let mut progress = Progress::new();
    progress.say("connecting");
    let mut connected = false;
    let outcome = loop {
        let event = tokio::select! {
            ended = &mut running => {
                ended?;
                return Err(Error::Disconnected("stopped".to_owned()).into());
            }
            () = &mut signal => {
                let text = "stopped; the wish stays recorded, `run` or `join` go on with it";
                break Err(CliError::Refused(text.to_owned()));
            }
            event = events.recv() => event,
            // Another process may take the wish back.
            () = tokio::time::sleep(LOOK) => match client.store().interest().await? {
                Some(_) => continue,
                None => break Ok(()),
            }
        };
        let event = match event {
            Ok(stamped) => stamped.event,
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => break Ok(()),
        };
        match event {
            Event::Connected => {
                connected = true;
                progress.say("connected; waiting for the next factory");
            }
            // Nobody there: better said than retried for ever. Once there, it is waited for.
            Event::Disconnected { reason } if !connected => {
                break Err(CliError::Away(format!("{reason}; {}", kept(context))));
            }
            Event::Disconnected { reason } => progress.say(&format!("disconnected: {reason}")),
            Event::Refused { rule, found } => {
                progress.keep(&format!("refused ({rule}): {found}"));
            }
            Event::ServerError { code, message } => {
                if HOPELESS.contains(&code.as_str()) {
                    break Err(CliError::Refused(message));
                }
                progress.keep(&message);
            }
            Event::FactoryUsable { .. } => break Ok(()),
            other => {
                if let Some(text) = step(&other) {
                    progress.say(&text);
                }
            }
        }
    };
    drop(progress);
    let _ = stop.send(true);
    running.await?;
    outcome?;
    report(context, client.store(), &before).await
}

/// The factories that can be used.
async fn usable(store: &SharedStore) -> Result<Vec<FactoryId>, CliError> {
    let factories = store.factories().await?;
    let usable = factories.iter().filter(|row| row.is_live() && row.usable);
    Ok(usable.map(|row| row.factory).collect())
}

fn step(event: &Event) -> Option<String> {
    Some(match event {
        Event::Invited { .. } => "invited".to_owned(),
        Event::Joined { .. } => "joined; waiting for the proposal".to_owned(),
        Event::ProposalReceived { .. } => "checking the proposal".to_owned(),
        Event::Signed { .. } => "signed; waiting for the others".to_owned(),
        Event::KitStored { .. } => "the exit kit is stored".to_owned(),
        Event::Acked { .. } => "waiting for the funding to be confirmed".to_owned(),
        Event::FactoryConfirmed { height, .. } => {
            format!("funded in block {height}; waiting for more confirmations")
        }
        Event::AttemptFailed { reason, .. } => format!("the attempt failed: {reason}"),
        Event::ChainTrouble { problem } => problem.clone(),
        _ => return None,
    })
}

/// `before`: what was usable when the wish was made.
async fn report(
    context: &Context,
    store: &SharedStore,
    before: &[FactoryId],
) -> Result<(), CliError> {
    let usable = usable(store).await?;
    let new = |factory: &FactoryId| usable.contains(factory) && !before.contains(factory);
    let factories = crate::client::factories(store).await?;
    let newest = factories.iter().rev().find(|f| new(&f.factory));
    match newest {
        Some(factory) => {
            let text = format!(
                "Factory {} is usable: {} sat, expires at height {}. The exit kit is stored.",
                factory.factory, factory.capacity_sat, factory.expiry_height
            );
            let value = json!({"state": "usable", "factory": factory});
            context.print(&value, &text)
        }
        None => context.print(&json!({"state": "withdrawn"}), "Withdrawn."),
    }
}
