//! The command line: one process that serves (`run`), and short commands that talk to it over its socket.

mod args;
mod init;
mod operator;
mod output;
mod progress;
mod run;

use std::process::ExitCode;

use clap::Parser;

use crate::app::StartError;
use crate::config::ConfigError;
use crate::datadir::DataDirError;
use args::{Args, Command};

/// How a command ended, as the shell sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    /// It failed.
    Failed = 1,
    /// It was asked the wrong way.
    Usage = 2,
    /// The coordinator does not run, or does not answer.
    Unreachable = 3,
    /// Policy, limits, or the state of things forbid it.
    Refused = 4,
}

/// Why a command failed, and how.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    error: anyhow::Error,
}

impl Failure {
    fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self {
            exit,
            error: error.into(),
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let is_config = error.is::<ConfigError>()
            || matches!(
                error.downcast_ref::<StartError>(),
                Some(StartError::Config(_))
            );
        let exit = match error.downcast_ref::<DataDirError>() {
            _ if is_config => Exit::Usage,
            Some(DataDirError::NoHome) => Exit::Usage,
            _ => Exit::Failed,
        };
        Self { exit, error }
    }
}

/// Runs the command line.
#[must_use]
pub fn main() -> ExitCode {
    let args = Args::parse();
    let result = match args.command {
        Command::Init(ref init) => init::init(&args, init),
        Command::Run(ref run) => run::run(&args, run),
        ref other => operator::call(&args, other),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("coordinator: {}", in_words(&failure.error));
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// An error with its causes, leaving out those whose words it contains already.
fn in_words(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let inner = std::io::Error::other("disk on fire");
        let error = anyhow::Error::new(inner).context("cannot write");
        assert_eq!(in_words(&error), "cannot write: disk on fire");
        let named = anyhow::anyhow!("disk on fire").context("cannot write: disk on fire");
        assert_eq!(in_words(&named), "cannot write: disk on fire");
    }
}
