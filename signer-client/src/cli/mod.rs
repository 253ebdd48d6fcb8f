//! The command line: thin over the library.

mod args;
mod context;
mod events;
mod exit;
mod follow;
mod init;
mod jit;
mod join;
mod lightning;
mod limit;
mod order;
mod run;
mod show;
mod table;

use std::process::ExitCode;

use clap::Parser;
use serde_json::{Value, json};

use crate::error::Error;
use args::{Args, Command};
use context::Context;

/// What went wrong on the command line.
#[derive(Debug, thiserror::Error)]
enum CliError {
    /// In the library.
    #[error(transparent)]
    Client(#[from] Error),
    /// What was asked for makes no sense as it stands.
    #[error("{0}")]
    Usage(String),
    /// The user, or the state of things, said no.
    #[error("{0}")]
    Refused(String),
    /// Another process has the wallet, or had it a moment ago.
    #[error("{0}")]
    Busy(String),
    /// The coordinator is away.
    #[error("{0}")]
    Away(String),
    /// Nobody can be asked for the passphrase.
    #[error(
        "no terminal to ask on: give --passphrase-file FILE, set SUPERSCALAR_PASSPHRASE_FILE, or passphrase_file in client.toml"
    )]
    NoTerminal,
    /// Reading or writing a stream.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl CliError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Client(error) => error.exit_code(),
            Self::Usage(_) => 2,
            Self::Refused(_) => 4,
            Self::Away(_) => 3,
            Self::Busy(_) | Self::NoTerminal | Self::Io(_) => 1,
        }
    }

    /// The same as one JSON object.
    fn json(&self) -> Value {
        json!({"error": self.to_string(), "exit_code": self.exit_code()})
    }
}

macro_rules! from_library {
    ($($error:ty),*) => {$(
        impl From<$error> for CliError {
            fn from(error: $error) -> Self {
                Self::Client(error.into())
            }
        }
    )*};
}
from_library!(
    crate::config::ConfigError,
    crate::lock::LockError,
    crate::store::StoreError,
    keystore::SeedError,
    keystore::PassphraseError,
    chain::ChainError,
    chain::wallet::WalletError
);

/// Parses the arguments, does what they say, and reports.
#[must_use]
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let json = args.json;
    let outcome = runtime.block_on(dispatch(args));
    // A blocking call to a node that does not answer must not keep the process.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads has read enough.
        Err(CliError::Io(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            if json {
                println!("{}", error.json());
            }
            ExitCode::from(error.exit_code())
        }
    }
}

/// What clap says, also for those who read JSON.
fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && std::env::args_os().any(|word| word == "--json") {
        let failure = CliError::Usage(error.to_string().trim_end().to_owned());
        println!("{}", failure.json());
    }
    // A closed terminal is no reason to fail otherwise.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

async fn dispatch(args: Args) -> Result<(), CliError> {
    let context = Context::new(&args)?;
    let outcome = execute(&context, args.command).await;
    context.close().await;
    outcome
}

async fn execute(context: &Context, command: Command) -> Result<(), CliError> {
    match command {
        Command::Init(options) => init::run(context, options).await,
        Command::Run(options) => run::run(context, options).await,
        Command::Join(options) => join::run(context, options).await,
        Command::Exit(options) => exit::run(context, options).await,
        Command::Status => show::status(context).await,
        Command::Factories => show::factories(context).await,
        Command::QuoteExit(options) => show::quote(context, options).await,
        Command::Export { factory } => show::export(context, &factory).await,
        Command::Invoice(options) => lightning::invoice(context, options).await,
        Command::Pay(options) => lightning::pay(context, options).await,
        Command::Keysend(options) => lightning::keysend(context, options).await,
        Command::Close(options) => jit::close(context, options).await,
        Command::Channels => lightning::channels(context).await,
        Command::Payments { limit } => lightning::payments(context, limit).await,
        Command::Limit(command) => limit::run(context, command).await,
        Command::Webhook(command) => lightning::webhook(context, command).await,
        Command::Address => show::address(context).await,
        Command::Balance => show::balance(context).await,
        Command::Sweep { feerate } => show::sweep(context, feerate).await,
    }
}
