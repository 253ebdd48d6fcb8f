//! `run`: the coordinator itself.

use std::io::IsTerminal;

use anyhow::Context as _;
use keystore::Seed;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use super::args::{Args, RunArgs};
use super::init::passphrase;
use super::{Exit, Failure};
use crate::app::{Coordinator, StartError};
use crate::config::{Config, LogConfig, LogFormat};
use crate::datadir::{DataDir, DataDirError};
use crate::event::Events;

pub fn run(args: &Args, run: &RunArgs) -> Result<(), Failure> {
    let data = DataDir::new(args.data_dir.clone())?;
    if !data.seed().exists() {
        return Err(DataDirError::NotInitialised {
            path: data.path().to_owned(),
        }
        .into());
    }
    let config = Config::load(data.path(), args.config.as_deref(), &run.config.overrides())?;
    start_log(&config.log)?;
    let events = match &run.events {
        Some(path) => Events::to_file(path)
            .with_context(|| format!("cannot write events to {}", path.display()))?,
        None => Events::new(None),
    };
    let seed = Seed::open(data.seed(), &passphrase(&config)?)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(config, &data, &seed, events))
}

async fn serve(config: Config, data: &DataDir, seed: &Seed, events: Events) -> Result<(), Failure> {
    let stop = watch::Sender::new(false);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let asked = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("asked to stop");
        asked.send_replace(true);
    });
    let started = Coordinator::start(config, data, seed, events, stop.subscribe()).await;
    let coordinator = match started {
        Ok(coordinator) => coordinator,
        // Asked to stop while it waited for the Bitcoin node: that is no failure.
        Err(StartError::Stopped) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut stopped = stop.subscribe();
    // The sender is ours.
    let _ = stopped.wait_for(|stop| *stop).await;
    coordinator.stop().await;
    Ok(())
}

/// To standard error: standard output may carry the events.
fn start_log(log: &LogConfig) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&log.filter).map_err(|error| {
        Failure::new(
            Exit::Usage,
            anyhow::anyhow!("log.filter = {:?}: {error}", log.filter),
        )
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let started = match log.format {
        LogFormat::Pretty => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    started.map_err(|error| {
        Failure::new(
            Exit::Failed,
            anyhow::anyhow!("the log cannot be started: {error}"),
        )
    })
}
