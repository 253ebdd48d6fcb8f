//! `run`: the daemon.

use std::io::IsTerminal;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::CliError;
use super::args::Run;
use super::context::Context;
use super::events::EventWriter;
use crate::client::{Shutdown, Tasks};
use crate::lock::DataDirLock;

/// How long to wait at the start for the node to say what it is. One that is away may come later.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) async fn run(context: &Context, options: Run) -> Result<(), CliError> {
    let config = context.config()?;
    log(&config.log_level);
    let mut lock = DataDirLock::take_patiently(&context.dir, "run")?;
    lock.serve()?;
    let client = context.client(config).await?;
    client.refuse_wrong_node(PATIENCE).await?;
    let (stop, shutdown) = Shutdown::new();
    let writer = match &options.events {
        Some(path) => Some(EventWriter::start(path, client.events())?),
        None => None,
    };
    let signals = tokio::spawn(async move {
        wait_for_signal().await;
        let _ = stop.send(true);
        // Held open until the client has ended: a second signal finds the default action.
        std::future::pending::<()>().await;
    });
    tracing::info!(node_id = %client.node_id(), "running");
    let outcome = client.run(Tasks::ALL, shutdown).await;
    signals.abort();
    drop(client);
    if let Some(writer) = writer {
        writer.finish().await;
    }
    Ok(outcome?)
}

/// Logs go to standard error, so that standard output is free for events.
pub(super) fn log(level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        // The libraries below say little that helps below a warning.
        EnvFilter::new(format!("warn,signer_client={level},chain={level}"))
    });
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
}

/// SIGTERM or SIGINT.
pub(super) async fn wait_for_signal() {
    let (Ok(mut term), Ok(mut int)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        tracing::warn!("signals cannot be caught: the process ends without an orderly shutdown");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::{Args, Command};

    #[tokio::test]
    async fn to_run_before_init_is_refused_and_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none").display().to_string();
        let words = ["signer-client", "--data-dir", path.as_str(), "run"];
        let args = Args::try_parse_from(words).unwrap();
        let context = Context::new(&args).unwrap();
        let Command::Run(options) = args.command else {
            panic!("not run");
        };
        let error = run(&context, options).await.unwrap_err();
        assert_eq!(error.exit_code(), 4, "{error}");
        assert!(
            error.to_string().contains("`signer-client init`"),
            "{error}"
        );
    }
}
