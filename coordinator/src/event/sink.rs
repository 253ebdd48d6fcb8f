//! Where events go: the log, a file, listeners.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use serde_json::Value;
use tokio::sync::broadcast;

use super::Event;

/// Events a slow listener may be behind before it misses some.
const BACKLOG: usize = 8192;

/// Where events go. Cheap to clone.
#[derive(Clone)]
pub struct Events(Arc<Inner>);

struct Inner {
    file: Option<Mutex<Box<dyn Write + Send>>>,
    height: AtomicU32,
    live: broadcast::Sender<Event>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events(..)")
    }
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    event: &'a Event,
    at_height: u32,
}

impl Events {
    /// Events for the log and for listeners, and for `sink` too, one JSON object per line.
    #[must_use]
    pub fn new(sink: Option<Box<dyn Write + Send>>) -> Self {
        Self(Arc::new(Inner {
            file: sink.map(Mutex::new),
            height: AtomicU32::new(0),
            live: broadcast::Sender::new(BACKLOG),
        }))
    }

    /// As [`Self::new`], appending to a file; `-` is standard output.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn to_file(path: &Path) -> io::Result<Self> {
        let sink: Box<dyn Write + Send> = if path == Path::new("-") {
            Box::new(io::stdout())
        } else {
            Box::new(OpenOptions::new().create(true).append(true).open(path)?)
        };
        Ok(Self::new(Some(sink)))
    }

    /// The height that later events happen at.
    pub fn set_height(&self, height: u32) {
        self.0.height.store(height, Ordering::Relaxed);
    }

    /// The height of the newest block that was taken into account.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.0.height.load(Ordering::Relaxed)
    }

    /// Everything that happens from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.live.subscribe()
    }

    /// Tells everybody. An event file that cannot be written (disk full) stops nothing.
    pub fn emit(&self, event: Event) {
        log(&event);
        if let Some(file) = &self.0.file {
            let line = Line {
                event: &event,
                at_height: self.height(),
            };
            if let Ok(mut line) = serde_json::to_vec(&line) {
                line.push(b'\n');
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                if let Err(error) = file.write_all(&line).and_then(|()| file.flush()) {
                    tracing::error!(%error, "the event file cannot be written");
                }
            }
        }
        // Nobody listens: nothing is lost.
        let _ = self.0.live.send(event);
    }
}

fn log(event: &Event) {
    let text = Readable(event);
    if event.is_warning() {
        tracing::warn!("{text}");
    } else if event.is_frequent() {
        tracing::debug!("{text}");
    } else {
        tracing::info!("{text}");
    }
}

/// An event with the names and values it has in the event file: `factory_usable factory=fb87..`.
struct Readable<'a>(&'a Event);

impl fmt::Display for Readable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = serde_json::to_value(self.0).unwrap_or_default();
        let fields = value.as_object().into_iter().flatten();
        f.write_str(value["event"].as_str().unwrap_or("event"))?;
        for (name, value) in fields.filter(|(name, _)| *name != "event") {
            match value {
                Value::Null => {}
                Value::String(text) if text.contains(char::is_whitespace) => {
                    write!(f, " {name}={text:?}")?;
                }
                Value::String(text) => write!(f, " {name}={text}")?,
                other => write!(f, " {name}={other}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use factory_tree::ceremony::coordinator as machine;
    use factory_tree::ceremony::message::{AbortReason, Round};
    use factory_tree::ids::{Attempt, CeremonyId, ClientId};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn one_flat_object_per_line() {
        let sink = Sink::default();
        let events = Events::new(Some(Box::new(sink.clone())));
        events.set_height(7);
        let round = Round {
            ceremony: CeremonyId([1; 16]),
            attempt: Attempt(2),
        };
        events.emit(Event::Joined {
            round,
            client: ClientId([3; 33]),
        });
        events.emit(
            machine::Event::AttemptFailed {
                round,
                reason: AbortReason::TooFewClients { left: 1 },
            }
            .into(),
        );
        events.emit(Event::Shutdown);
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let joined = serde_json::json!({
            "event": "joined", "ceremony": "01".repeat(16), "attempt": 2, "client": "03".repeat(33), "at_height": 7
        });
        assert_eq!(lines[0], joined);
        assert_eq!(lines[1]["reason"], "too_few_clients");
        assert_eq!(
            lines[2],
            serde_json::json!({ "event": "shutdown", "at_height": 7 })
        );
    }

    #[test]
    fn the_log_is_for_people() {
        let event = Event::Declined {
            round: Round {
                ceremony: CeremonyId([1; 16]),
                attempt: Attempt(2),
            },
            client: ClientId([3; 33]),
            reason: "too dear".to_owned(),
        };
        let (ceremony, client) = ("01".repeat(16), "03".repeat(33));
        let text =
            format!("declined attempt=2 ceremony={ceremony} client={client} reason=\"too dear\"");
        assert_eq!(Readable(&event).to_string(), text);
    }

    #[test]
    fn a_full_disk_stops_nothing() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let events = Events::new(Some(Box::new(Full)));
        let mut listener = events.subscribe();
        events.emit(Event::Shutdown);
        assert_eq!(listener.try_recv().unwrap(), Event::Shutdown);
    }
}
