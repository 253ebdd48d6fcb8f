//! What a service says that happened: one JSON object per line.

use std::collections::HashMap;
use std::fmt;
use std::io::{BufRead, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::Value;

/// One thing that happened in a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Event(pub Value);

impl Event {
    /// Its kind.
    pub fn name(&self) -> &str {
        self.0["event"].as_str().unwrap_or_default()
    }

    /// Whether it is of this kind.
    pub fn is(&self, name: &str) -> bool {
        self.name() == name
    }

    /// A field that is text; empty if there is none.
    pub fn text(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap_or_default()
    }

    /// A field that is a number.
    pub fn number(&self, field: &str) -> Option<u64> {
        self.0[field].as_u64()
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Everything that one run of a service said, in order; grows while it runs.
#[derive(Debug, Default)]
pub struct EventLog {
    said: Mutex<Said>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Said {
    events: Vec<Event>,
    /// How far each wallet that speaks here has followed the chain; a wallet alone has no name.
    synced: HashMap<String, u64>,
    ended: bool,
}

impl Said {
    fn take(&mut self, event: Event) {
        if let Some(height) = event.number("height").filter(|_| event.is("synced")) {
            self.synced.insert(event.text("wallet").to_owned(), height);
        }
        self.events.push(event);
    }
}

/// How a wait for an event ended without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The service's output closed.
    Ended,
    /// It is too late.
    Late,
}

impl EventLog {
    /// Reads lines until the output closes; a copy goes to `copy`.
    pub(crate) fn follow(
        output: impl BufRead + Send + 'static,
        mut copy: impl Write + Send + 'static,
    ) -> Arc<Self> {
        let log = Arc::new(Self::default());
        let writer = log.clone();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // A full disk is part of some scenarios; the copy is for people only.
                let _ = writeln!(copy, "{line}");
                if let Ok(value) = serde_json::from_str(&line) {
                    writer.said().take(Event(value));
                    writer.changed.notify_all();
                }
            }
            writer.said().ended = true;
            writer.changed.notify_all();
        });
        log
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many events there are by now: a place from which to wait for later ones.
    pub fn mark(&self) -> usize {
        self.said().events.len()
    }

    /// Whether there will be no more.
    pub fn has_ended(&self) -> bool {
        self.said().ended
    }

    /// All events so far.
    pub fn all(&self) -> Vec<Event> {
        self.said().events.clone()
    }

    /// Waits until a wallet has followed the chain to this height; a wallet alone has no name.
    pub fn wait_synced(&self, wallet: &str, height: u32, deadline: Instant) -> Result<(), Missing> {
        let mut said = self.said();
        loop {
            if said.synced.get(wallet) >= Some(&height.into()) {
                return Ok(());
            }
            if said.ended {
                return Err(Missing::Ended);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Missing::Late);
            }
            (said, _) = self
                .changed
                .wait_timeout(said, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The first event from `mark` on that `wanted` accepts, and the mark after it.
    pub fn wait_from(
        &self,
        mark: usize,
        wanted: &mut dyn FnMut(&Event) -> bool,
        deadline: Instant,
    ) -> Result<(Event, usize), Missing> {
        let mut next = mark;
        let mut said = self.said();
        loop {
            while let Some(event) = said.events.get(next) {
                next += 1;
                if wanted(event) {
                    return Ok((event.clone(), next));
                }
            }
            if said.ended {
                return Err(Missing::Ended);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Missing::Late);
            }
            (said, _) = self
                .changed
                .wait_timeout(said, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}
