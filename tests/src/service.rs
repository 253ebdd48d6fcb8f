//! A coordinator or a wallet: its data directory, its command line, and its process while it runs.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::command::{self, Answer};
use crate::crowd::{Crowd, PASSPHRASE_VARIABLE};
use crate::event::{Event, Missing};
use crate::process::{Launch, PATIENCE, Process};

/// What every seed of a scenario is encrypted with.
pub const PASSPHRASE: &str = "correct horse battery staple";

/// One installation of `coordinator` or `signer-client`.
#[derive(Debug)]
pub struct Service {
    name: String,
    program: PathBuf,
    data: PathBuf,
    config: PathBuf,
    passphrase: PathBuf,
    logs: PathBuf,
    environment: Vec<(String, String)>,
    running: Option<Running>,
}

/// Where it runs.
#[derive(Debug)]
enum Running {
    /// In a process of its own.
    Alone(Process),
    /// In one that it shares.
    Among(Arc<Crowd>),
}

/// What an installation is made of.
#[derive(Debug)]
pub struct Installation<'a> {
    /// Who it is, in file names and messages.
    pub name: &'a str,
    /// The program.
    pub program: PathBuf,
    /// Name of its configuration file in the data directory.
    pub config: &'a str,
    /// Directory for its data directory.
    pub home: &'a Path,
    /// Directory for what it says.
    pub logs: &'a Path,
}

impl Service {
    /// Makes room for an installation; nothing is initialised yet.
    pub fn new(installation: Installation<'_>) -> Result<Self> {
        let data = installation.home.join(installation.name);
        fs::create_dir_all(&data)?;
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700))?;
        let passphrase = installation
            .home
            .join(format!("{}.passphrase", installation.name));
        fs::write(&passphrase, format!("{PASSPHRASE}\n"))?;
        fs::set_permissions(&passphrase, fs::Permissions::from_mode(0o600))?;
        Ok(Self {
            name: installation.name.to_owned(),
            program: installation.program,
            config: data.join(installation.config),
            data,
            passphrase,
            logs: installation.logs.to_owned(),
            environment: Vec::new(),
            running: None,
        })
    }

    /// Who it is.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Its configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The file with its passphrase.
    pub fn passphrase(&self) -> &Path {
        &self.passphrase
    }

    // ---- configuration -----------------------------------------------------------------------------------------

    /// Sets a key of its configuration file, `section.key` or `key`.
    pub fn configure(&self, key: &str, value: impl Into<toml::Value>) -> Result<()> {
        let text = fs::read_to_string(&self.config).unwrap_or_default();
        let mut table: toml::Table = text.parse()?;
        let mut parts: Vec<&str> = key.split('.').collect();
        let last = parts.pop().context("a key has a name")?;
        let mut place = &mut table;
        for part in parts {
            let section = place
                .entry(part)
                .or_insert_with(|| toml::Value::Table(toml::Table::new()));
            place = section.as_table_mut().context("a section is a table")?;
        }
        place.insert(last.to_owned(), value.into());
        fs::write(&self.config, table.to_string())?;
        fs::set_permissions(&self.config, fs::Permissions::from_mode(0o600))?;
        Ok(())
    }

    // ---- the command line --------------------------------------------------------------------------------------

    fn arguments(&self, words: &[&str]) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["--data-dir".into(), self.data.clone().into()];
        arguments.extend(words.iter().map(OsString::from));
        arguments
    }

    fn environment(&self, more: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut all = self.environment.clone();
        let passphrase = self.passphrase.display().to_string();
        all.push((PASSPHRASE_VARIABLE.to_owned(), passphrase));
        all.extend(
            more.iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        all
    }

    /// Runs a command; `--json` is the caller's to add.
    pub fn command(&self, words: &[&str]) -> Result<Answer> {
        self.command_with(words, "")
    }

    /// Runs a command that reads its input.
    pub fn command_with(&self, words: &[&str], input: &str) -> Result<Answer> {
        command::run(
            &self.program,
            &self.arguments(words),
            &self.environment(&[]),
            input,
        )
    }

    /// Runs a command with more in its environment.
    pub fn command_in(&self, words: &[&str], environment: &[(&str, &str)]) -> Result<Answer> {
        let environment = self.environment(environment);
        command::run(&self.program, &self.arguments(words), &environment, "")
    }

    /// Moves the data directory of a stopped installation into another directory.
    pub fn move_to(&mut self, directory: &Path) -> Result<()> {
        ensure!(self.running.is_none(), "{} runs", self.name);
        let target = directory.join(&self.name);
        let moved = Command::new("mv").arg(&self.data).arg(&target).status()?;
        ensure!(moved.success(), "cannot move {}", self.data.display());
        let config = self.config.file_name().context("a file has a name")?;
        self.config = target.join(config);
        self.data = target;
        Ok(())
    }

    /// Runs a command with `--json` that must succeed.
    pub fn json(&self, words: &[&str]) -> Result<Value> {
        let mut words = words.to_vec();
        words.push("--json");
        self.command(&words)?.json()
    }

    // ---- the process -------------------------------------------------------------------------------------------

    /// Starts it; it must not be running.
    pub fn start(&mut self) -> Result<()> {
        self.start_with(&[])
    }

    /// Starts it with more in its environment: a fault point, a misbehaviour.
    pub fn start_with(&mut self, environment: &[(&str, &str)]) -> Result<()> {
        ensure!(self.running.is_none(), "{} runs already", self.name);
        let process = Process::start(Launch {
            name: &self.name,
            program: &self.program,
            arguments: self.arguments(&["run", "--events", "-"]),
            environment: self.environment(environment),
            logs: &self.logs,
        })?;
        self.running = Some(Running::Alone(process));
        Ok(())
    }

    /// It runs in a process of many.
    pub(crate) fn joins(&mut self, crowd: &Arc<Crowd>) -> Result<()> {
        ensure!(self.running.is_none(), "{} runs already", self.name);
        self.running = Some(Running::Among(Arc::clone(crowd)));
        Ok(())
    }

    /// Whether it was started, and not ended since.
    pub const fn runs(&self) -> bool {
        self.running.is_some()
    }

    /// The process it runs in, alone or with others.
    pub fn process(&self) -> Result<&Process> {
        match &self.running {
            Some(Running::Alone(process)) => Ok(process),
            Some(Running::Among(crowd)) => Ok(crowd.process()),
            None => bail!("{} does not run", self.name),
        }
    }

    fn take(&mut self) -> Result<Process> {
        match self.running.take() {
            Some(Running::Alone(process)) => Ok(process),
            Some(crowd) => {
                self.running = Some(crowd);
                bail!("{} has no process of its own", self.name)
            }
            None => bail!("{} does not run", self.name),
        }
    }

    /// Whether an event of the process is its own.
    fn is_own(&self, event: &Event) -> bool {
        match &self.running {
            Some(Running::Among(_)) => event.text("wallet") == self.name,
            _ => true,
        }
    }

    /// Ends it at once, as a power cut does.
    pub fn kill(&mut self) -> Result<()> {
        self.take()?.kill()
    }

    /// Whether its process has ended by itself.
    pub fn has_ended(&self) -> Result<bool> {
        Ok(self.process()?.events().has_ended())
    }

    /// Ends it in an orderly way.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.take()?.terminate()
    }

    /// Waits until it ends by itself, at a fault point for example.
    pub fn wait_until_ended(&mut self) -> Result<ExitStatus> {
        self.take()?.wait_until_ended()
    }

    // ---- what it says ------------------------------------------------------------------------------------------

    /// How many events there are by now: a place from which to wait for later ones.
    pub fn mark(&self) -> Result<usize> {
        Ok(self.process()?.events().mark())
    }

    /// Everything this run said.
    pub fn events(&self) -> Result<Vec<Event>> {
        let mut events = self.process()?.events().all();
        events.retain(|event| self.is_own(event));
        Ok(events)
    }

    /// Waits for an event, past ones of this run included.
    pub fn wait(&self, what: &str, wanted: impl FnMut(&Event) -> bool) -> Result<Event> {
        self.wait_after(0, what, wanted)
    }

    /// Waits for an event of this name, past ones of this run included.
    pub fn wait_for(&self, name: &str) -> Result<Event> {
        self.wait(name, |event| event.is(name))
    }

    /// Waits for an event after a mark.
    pub fn wait_after(
        &self,
        mark: usize,
        what: &str,
        mut wanted: impl FnMut(&Event) -> bool,
    ) -> Result<Event> {
        let process = self.process()?;
        let found = process.wait_from(mark, what, |event| self.is_own(event) && wanted(event));
        Ok(found.with_context(|| format!("{} waits", self.name))?.0)
    }

    /// Waits until this wallet has followed the chain to a height, or its process has ended.
    pub fn follows(&self, height: u32) -> Result<()> {
        let name = match &self.running {
            Some(Running::Among(_)) => self.name.as_str(),
            _ => "",
        };
        let deadline = Instant::now() + PATIENCE;
        let log = self.process()?.events();
        match log.wait_synced(name, height, deadline) {
            Ok(()) | Err(Missing::Ended) => Ok(()),
            Err(Missing::Late) => bail!("{} did not come to block {height}", self.name),
        }
    }

    /// The file to which all runs append what they say.
    pub fn history(&self) -> PathBuf {
        self.logs.join(format!("{}.events", self.name))
    }
}
