//! A service as a process of its own: its events are read line by line, its log goes to a file.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::event::{Event, EventLog, Missing};
use crate::watchdog::Watchdog;

/// How long anything that should happen at once may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A running service. Killed with its owner.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    events: Arc<EventLog>,
    log: PathBuf,
    _watchdog: Watchdog,
}

/// What to start, and where to keep what it says.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Who it is, in error messages and file names.
    pub name: &'a str,
    /// The program.
    pub program: &'a Path,
    /// Its arguments; its events must come on stdout.
    pub arguments: Vec<OsString>,
    /// More environment variables.
    pub environment: Vec<(String, String)>,
    /// Where `<name>.log` and `<name>.events` are appended to.
    pub logs: &'a Path,
}

impl Process {
    /// Starts a service.
    pub fn start(launch: Launch<'_>) -> Result<Self> {
        let log = launch.logs.join(format!("{}.log", launch.name));
        let copy = append(&launch.logs.join(format!("{}.events", launch.name)))?;
        let mut command = Command::new(launch.program);
        command
            .args(&launch.arguments)
            .envs(launch.environment)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(append(&log)?);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", launch.program.display()))?;
        let output = child.stdout.take().context("its stdout is a pipe")?;
        Ok(Self {
            name: launch.name.to_owned(),
            _watchdog: Watchdog::of(&child)?,
            events: EventLog::follow(BufReader::new(output), copy),
            child,
            log,
        })
    }

    /// Its process number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it said so far.
    pub fn events(&self) -> &EventLog {
        &self.events
    }

    /// Waits for an event, past ones included.
    pub fn wait(&self, what: &str, wanted: impl FnMut(&Event) -> bool) -> Result<Event> {
        self.wait_from(0, what, wanted).map(|(event, _)| event)
    }

    /// Waits for an event from a mark on; gives it and the mark after it.
    pub fn wait_from(
        &self,
        mark: usize,
        what: &str,
        mut wanted: impl FnMut(&Event) -> bool,
    ) -> Result<(Event, usize)> {
        let deadline = Instant::now() + PATIENCE;
        self.events
            .wait_from(mark, &mut wanted, deadline)
            .map_err(|missing| self.missed(what, missing))
    }

    /// Waits for an event of this name, past ones included.
    pub fn wait_for(&self, name: &str) -> Result<Event> {
        self.wait(name, |event| event.is(name))
    }

    fn missed(&self, what: &str, missing: Missing) -> anyhow::Error {
        let how = match missing {
            Missing::Ended => "ended",
            Missing::Late => "did not say in time",
        };
        let events = self.events.all();
        let newest: Vec<_> = events
            .iter()
            .rev()
            .take(12)
            .rev()
            .map(Event::to_string)
            .collect();
        anyhow!(
            "{} {how}: waited for {what:?}; its newest events:\n  {}\nits log ends:\n{}",
            self.name,
            newest.join("\n  "),
            self.log_tail()
        )
    }

    fn log_tail(&self) -> String {
        tail(&self.log, 15)
    }

    /// Ends it at once, as a power cut does.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end in an orderly way, and waits until it has.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &id]).status()?;
        anyhow::ensure!(sent.success(), "{} is gone already", self.name);
        self.ended()
    }

    /// Waits until it ends by itself.
    pub fn wait_until_ended(mut self) -> Result<ExitStatus> {
        self.ended()
    }

    fn ended(&mut self) -> Result<ExitStatus> {
        // Its output closes when it ends; nothing to poll until then.
        let deadline = Instant::now() + PATIENCE;
        let mark = self.events.mark();
        match self.events.wait_from(mark, &mut |_| false, deadline) {
            Err(Missing::Ended) => Ok(self.child.wait()?),
            _ => bail!(
                "{} did not end within {PATIENCE:?}; its log ends:\n{}",
                self.name,
                self.log_tail()
            ),
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if the process is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn append(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    let file = options.create(true).append(true).open(path);
    file.with_context(|| format!("cannot write {}", path.display()))
}

/// The last lines of a file.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
