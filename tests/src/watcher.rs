//! Rehearses every wallet's exit from its store as it is on the disk, all the time a scenario runs: no client ever has a moment without a
//! complete exit for its whole balance (protocol.md section 11, I2).

mod exits;
mod look;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use tokio::runtime::Runtime;

use exits::{Exits, Seen, Wrong};
use look::Glass;

/// Between two looks at one wallet.
const EVERY: Duration = Duration::from_millis(500);
/// A look is followed by a pause of so many times its length: the machine is for those who are watched.
const IDLE: u32 = 3;
/// How long a wallet may show a balance whose channel has just lost it: it tells of its channels a moment later.
const STALE: Duration = Duration::from_secs(2);
/// How often the stores are looked at for changes.
const TICK: Duration = Duration::from_millis(50);

/// The watcher of one world. Ends with its owner.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    watched: Vec<Watched>,
    found: Vec<String>,
    looks: u64,
    rehearsed: u64,
    finishing: bool,
}

/// A wallet, by its store.
#[derive(Clone, Debug)]
struct Watched {
    name: String,
    store: PathBuf,
}

/// What was seen of a wallet at the last look.
#[derive(Debug)]
struct Memory {
    at: Instant,
    written: Written,
    /// What was wrong and might be stale, and since when.
    doubts: Vec<(Wrong, Instant)>,
}

/// When the database and its log were written last.
type Written = [Option<(SystemTime, u64)>; 2];

/// What a watcher did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Wallets.
    pub wallets: usize,
    /// Looks at them.
    pub looks: u64,
    /// Exits rehearsed.
    pub rehearsed: u64,
}

impl Watcher {
    /// A watcher of nobody yet.
    pub fn start() -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let watching = Arc::clone(&shared);
        let watch = move || Rounds::new(watching)?.run();
        let thread = std::thread::Builder::new()
            .name("watcher".to_owned())
            .spawn(watch)
            .context("cannot start the watcher")?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Watches a wallet by its store from now on.
    pub fn watch(&self, name: &str, store: &Path) {
        self.shared.state().watched.push(Watched {
            name: name.to_owned(),
            store: store.to_owned(),
        });
    }

    /// Looks away from a wallet whose store a test is going to damage.
    pub fn forget(&self, name: &str) {
        let mut state = self.shared.state();
        state.watched.retain(|watched| watched.name != name);
    }

    /// A last look at everybody; fails if there ever was a wallet without a complete exit.
    pub fn finish(&mut self) -> Result<Watch> {
        let Some(thread) = self.thread.take() else {
            return Ok(self.shared.state().summary());
        };
        self.shared.state().finishing = true;
        self.shared.changed.notify_all();
        let ended = thread.join();
        ended.map_err(|_| anyhow!("the watcher panicked"))??;
        let state = self.shared.state();
        match state.found.as_slice() {
            [] => Ok(state.summary()),
            found => bail!(
                "wallets without a complete exit for their balance:\n  {}",
                found.join("\n  ")
            ),
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if self.thread.is_none() {
            return;
        }
        match self.finish() {
            Ok(watch) => eprintln!("{watch:?}"),
            // The test that fails already says why.
            Err(error) if std::thread::panicking() => eprintln!("{error:#}"),
            Err(error) => panic!("{error:#}"),
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits; gives whether the last look is due.
    fn pause(&self, pause: Duration) -> bool {
        let waited = self
            .changed
            .wait_timeout_while(self.state(), pause, |state| !state.finishing);
        waited.unwrap_or_else(PoisonError::into_inner).0.finishing
    }
}

impl State {
    fn summary(&self) -> Watch {
        Watch {
            wallets: self.watched.len(),
            looks: self.looks,
            rehearsed: self.rehearsed,
        }
    }
}

/// The thread's own part.
struct Rounds {
    shared: Arc<Shared>,
    runtime: Runtime,
    glass: Glass,
    exits: Exits,
    memory: HashMap<PathBuf, Memory>,
}

impl Rounds {
    fn new(shared: Arc<Shared>) -> Result<Self> {
        Ok(Self {
            shared,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?,
            glass: Glass::new()?,
            exits: Exits::default(),
            memory: HashMap::new(),
        })
    }

    fn run(mut self) -> Result<()> {
        let mut pause = TICK;
        while !self.shared.pause(pause) {
            let began = Instant::now();
            self.round(false)?;
            pause = (began.elapsed() * IDLE).max(TICK);
        }
        self.round(true)
    }

    /// One look at each wallet that has changed; at the end at all of them, and doubts are over.
    fn round(&mut self, last: bool) -> Result<()> {
        let watched = self.shared.state().watched.clone();
        for watched in watched {
            if last || self.is_due(&watched) {
                self.look(&watched, last)?;
            }
        }
        Ok(())
    }

    fn is_due(&self, watched: &Watched) -> bool {
        self.memory.get(&watched.store).is_none_or(|memory| {
            let changed = memory.written != written(&watched.store) || !memory.doubts.is_empty();
            changed && memory.at.elapsed() >= EVERY
        })
    }

    fn look(&mut self, watched: &Watched, last: bool) -> Result<()> {
        let written = written(&watched.store);
        if written[0].is_none() {
            return Ok(());
        }
        let seen = self.runtime.block_on(async {
            let copy = self.glass.copy(&watched.store).await?;
            self.exits.judge(&copy.store).await
        });
        let seen = seen.unwrap_or_else(|error| Seen::unreadable(&error));
        let (at, before) = (Instant::now(), self.memory.remove(&watched.store));
        let before = before.map(|memory| memory.doubts).unwrap_or_default();
        let (mut doubts, mut found) = (Vec::new(), Vec::new());
        for wrong in seen.wrong {
            let known = before.iter().find(|(known, _)| *known == wrong);
            let since = known.map_or(at, |(_, since)| *since);
            if wrong.may_be_over() && !last && since.elapsed() < STALE {
                doubts.push((wrong, since));
            } else {
                found.push(format!("{}: {wrong}", watched.name));
            }
        }
        let mut state = self.shared.state();
        state.looks += 1;
        state.rehearsed += seen.rehearsed;
        // It may have been forgotten while we looked.
        if state
            .watched
            .iter()
            .any(|other| other.store == watched.store)
        {
            found.retain(|found| !state.found.contains(found));
            state.found.append(&mut found);
        }
        self.memory.insert(
            watched.store.clone(),
            Memory {
                at,
                written,
                doubts,
            },
        );
        Ok(())
    }
}

/// Read before the look: what is written meanwhile makes another one due.
fn written(store: &Path) -> Written {
    let log = store.with_extension("sqlite-wal");
    [store, &log].map(|path| {
        let file = fs::metadata(path).ok()?;
        Some((file.modified().ok()?, file.len()))
    })
}
