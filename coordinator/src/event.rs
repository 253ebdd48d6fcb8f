//! What happens, as typed events: one stream for the log, the event file, the operator's progress and the tests.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bitcoin::Txid;
use factory_tree::ceremony::coordinator::{self as machine, LeftOut, Phase};
use factory_tree::ceremony::message::{AbortReason, DeclineReason, Round};
use factory_tree::ids::{CeremonyId, ClientId, FactoryId};
use serde::Serialize;
use tokio::sync::broadcast;

/// Events a slow listener may be behind before it misses some.
const BACKLOG: usize = 8192;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(
    missing_docs,
    reason = "the names are the documentation; docs/events.md lists them"
)]
pub enum Event {
    Ready {
        listen: String,
        node_id: String,
        connection: String,
    },
    ClientConnected {
        client: ClientId,
    },
    ClientDisconnected {
        client: ClientId,
        reason: String,
    },
    ClientInterested {
        client: ClientId,
        capacity_sat: u64,
    },
    AuthRefused {
        reason: String,
        from: String,
    },
    MessageRefused {
        client: ClientId,
        code: String,
        message: String,
    },
    CeremonyStarted {
        ceremony: CeremonyId,
        invited: u32,
    },
    AttemptStarted {
        #[serde(flatten)]
        round: Round,
        invited: u32,
    },
    Joined {
        #[serde(flatten)]
        round: Round,
        client: ClientId,
    },
    ProposalSent {
        #[serde(flatten)]
        round: Round,
        factory: FactoryId,
        clients: u32,
    },
    PartialsReceived {
        #[serde(flatten)]
        round: Round,
        client: ClientId,
    },
    FinalsSent {
        #[serde(flatten)]
        round: Round,
        factory: FactoryId,
    },
    Acked {
        #[serde(flatten)]
        round: Round,
        client: ClientId,
    },
    Declined {
        #[serde(flatten)]
        round: Round,
        client: ClientId,
        reason: String,
    },
    ClientLeftOut {
        #[serde(flatten)]
        round: Round,
        client: ClientId,
        reason: &'static str,
        phase: Phase,
    },
    Blamed {
        #[serde(flatten)]
        round: Round,
        client: ClientId,
    },
    AttemptFailed {
        #[serde(flatten)]
        round: Round,
        reason: &'static str,
        detail: String,
    },
    CeremonyFailed {
        ceremony: CeremonyId,
        reason: &'static str,
        detail: String,
    },
    CeremonyComplete {
        #[serde(flatten)]
        round: Round,
        factory: FactoryId,
    },
    FundingBroadcast {
        factory: FactoryId,
        txid: Txid,
    },
    FactoryConfirmed {
        factory: FactoryId,
        height: u32,
    },
    FactoryUnconfirmed {
        factory: FactoryId,
    },
    FactoryUsable {
        factory: FactoryId,
    },
    TreePublished {
        factory: FactoryId,
        txid: Txid,
        kind: String,
        height: u32,
    },
    SweepBroadcast {
        factory: FactoryId,
        txid: Txid,
        sat: u64,
        outputs: usize,
    },
    Swept {
        factory: FactoryId,
        txid: Txid,
        sat: u64,
        outputs: usize,
    },
    BlockConnected {
        height: u32,
    },
    BlockDisconnected {
        height: u32,
    },
    ChainUnavailable {
        problem: String,
    },
    ChainAvailable {
        height: u32,
    },
    StoreFailed {
        problem: String,
    },
    Shutdown,
}

/// The name of an abort reason.
#[must_use]
pub const fn abort_name(reason: &AbortReason) -> &'static str {
    match reason {
        AbortReason::TooFewClients { .. } => "too_few_clients",
        AbortReason::Silent => "silent",
        AbortReason::Guilty => "guilty",
        AbortReason::Left => "left",
        AbortReason::Tree(_) => "tree",
        AbortReason::NoFunds(_) => "no_funds",
        AbortReason::Restarted => "restarted",
        AbortReason::Cancelled => "cancelled",
        AbortReason::TooManyAttempts => "too_many_attempts",
    }
}

/// An abort reason in words.
#[must_use]
pub fn abort_text(reason: &AbortReason) -> String {
    match reason {
        AbortReason::TooFewClients { left } => format!("only {left} clients are left"),
        AbortReason::Silent => "some clients did not answer in time".into(),
        AbortReason::Guilty => "some clients sent invalid signatures".into(),
        AbortReason::Left => "some clients declined or left".into(),
        AbortReason::Tree(why) => format!("the tree cannot be built: {why}"),
        AbortReason::NoFunds(why) => format!("the wallet has not the coins: {why}"),
        AbortReason::Restarted => {
            "the coordinator was restarted, and secret nonces do not survive that".into()
        }
        AbortReason::Cancelled => "the operator cancelled it".into(),
        AbortReason::TooManyAttempts => "it had as many attempts as are allowed".into(),
    }
}

/// The name of a reason to be left out.
#[must_use]
pub const fn left_out_name(reason: LeftOut) -> &'static str {
    match reason {
        LeftOut::Silent => "silent",
        LeftOut::Guilty => "guilty",
        LeftOut::Declined => "declined",
        LeftOut::Absent => "left",
    }
}

/// A decline reason in words.
#[must_use]
pub fn decline_text(reason: &DeclineReason) -> String {
    match reason {
        DeclineReason::Terms(why) => format!("terms: {why}"),
        DeclineReason::Refused { rule, found } => format!("{rule}: {found}"),
        DeclineReason::Unable(why) => format!("unable: {why}"),
    }
}

impl From<machine::Event> for Event {
    fn from(event: machine::Event) -> Self {
        use machine::Event as E;
        match event {
            E::AttemptStarted { round, invited } => Self::AttemptStarted { round, invited },
            E::Joined { round, client } => Self::Joined { round, client },
            E::ProposalSent {
                round,
                factory,
                clients,
            } => Self::ProposalSent {
                round,
                factory,
                clients,
            },
            E::PartialsReceived { round, client } => Self::PartialsReceived { round, client },
            E::FinalsSent { round, factory } => Self::FinalsSent { round, factory },
            E::Acked { round, client } => Self::Acked { round, client },
            E::Declined {
                round,
                client,
                reason,
            } => Self::Declined {
                round,
                client,
                reason: decline_text(&reason),
            },
            E::ClientLeftOut {
                round,
                client,
                reason,
                phase,
            } => Self::ClientLeftOut {
                round,
                client,
                reason: left_out_name(reason),
                phase,
            },
            E::Blamed { round, client } => Self::Blamed { round, client },
            E::AttemptFailed { round, reason } => Self::AttemptFailed {
                round,
                reason: abort_name(&reason),
                detail: abort_text(&reason),
            },
            E::CeremonyFailed { ceremony, reason } => Self::CeremonyFailed {
                ceremony,
                reason: abort_name(&reason),
                detail: abort_text(&reason),
            },
            E::CeremonyComplete { round, factory } => Self::CeremonyComplete { round, factory },
        }
    }
}

impl Event {
    /// One of many of its kind (one per client or block): logged at the level debug.
    const fn is_frequent(&self) -> bool {
        matches!(
            self,
            Self::ClientConnected { .. }
                | Self::ClientDisconnected { .. }
                | Self::ClientInterested { .. }
                | Self::Joined { .. }
                | Self::PartialsReceived { .. }
                | Self::Acked { .. }
                | Self::BlockConnected { .. }
        )
    }

    const fn is_warning(&self) -> bool {
        matches!(
            self,
            Self::AuthRefused { .. }
                | Self::MessageRefused { .. }
                | Self::ClientLeftOut { .. }
                | Self::Blamed { .. }
                | Self::AttemptFailed { .. }
                | Self::CeremonyFailed { .. }
                | Self::FactoryUnconfirmed { .. }
                | Self::ChainUnavailable { .. }
                | Self::StoreFailed { .. }
        )
    }
}

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
    if event.is_warning() {
        tracing::warn!(?event);
    } else if event.is_frequent() {
        tracing::debug!(?event);
    } else {
        tracing::info!(?event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use factory_tree::ids::Attempt;

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
