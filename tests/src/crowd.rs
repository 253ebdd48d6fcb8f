//! Wallets that share processes: a hundred processes would be busy asking the node for the time. Each has its own data directory, on which
//! the command line works as on any other.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};

use crate::binaries;
use crate::process::{Launch, Process};
use crate::service::Service;

/// Names the file with the passphrase, to all our programs.
pub const PASSPHRASE_VARIABLE: &str = "SUPERSCALAR_PASSPHRASE_FILE";

/// What happened in one of the wallets.
#[derive(Clone, Debug)]
pub struct Line(Value);

impl Line {
    /// An event of a wallet.
    pub fn new(wallet: &str, event: &impl Serialize) -> Self {
        let mut line = serde_json::to_value(event).unwrap_or_else(|_| json!({}));
        line["wallet"] = json!(wallet);
        Self(line)
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A process with many wallets. Killed with the last of them.
#[derive(Debug)]
pub struct Crowd(Process);

impl Crowd {
    /// Starts a process with these wallets, none of which runs yet.
    pub fn start(name: &str, wallets: &mut [Service], logs: &Path) -> Result<()> {
        let first = wallets.first().context("a crowd is not empty")?;
        let passphrase = first.passphrase().display().to_string();
        let process = Process::start(Launch {
            name,
            program: &binaries::wallets()?,
            arguments: wallets.iter().map(|wallet| wallet.data().into()).collect(),
            environment: vec![(PASSPHRASE_VARIABLE.to_owned(), passphrase)],
            logs,
        })?;
        let crowd = Arc::new(Self(process));
        wallets
            .iter_mut()
            .try_for_each(|wallet| wallet.joins(&crowd))
    }

    pub(crate) const fn process(&self) -> &Process {
        &self.0
    }
}
