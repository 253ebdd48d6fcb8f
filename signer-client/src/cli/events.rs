//! Events as lines of JSON.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;

use crate::event::Stamped;

/// Writes events until there are no more. A thread of its own does the writing: a reader that is
/// slow neither stops the client nor loses an event.
pub(super) struct EventWriter {
    forward: JoinHandle<()>,
    writer: thread::JoinHandle<()>,
}

impl EventWriter {
    pub(super) fn start(path: &Path, mut events: Receiver<Stamped>) -> io::Result<Self> {
        let mut out: Box<dyn Write + Send> = if path.as_os_str() == "-" {
            Box::new(io::stdout())
        } else {
            Box::new(OpenOptions::new().create(true).append(true).open(path)?)
        };
        let (sender, queue) = mpsc::channel::<Stamped>();
        let writer = thread::Builder::new()
            .name("events".to_owned())
            .spawn(move || {
                for event in queue {
                    if let Err(error) = line(&mut *out, &event) {
                        tracing::error!(%error, "events cannot be written any more");
                        return;
                    }
                }
            })?;
        let forward = tokio::spawn(async move {
            loop {
                match events.recv().await {
                    Ok(event) => {
                        if sender.send(event).is_err() {
                            return;
                        }
                    }
                    Err(RecvError::Lagged(missed)) => tracing::error!(missed, "events were lost"),
                    Err(RecvError::Closed) => return,
                }
            }
        });
        Ok(Self { forward, writer })
    }

    /// Waits until the last event is written; all senders must be gone.
    pub(super) async fn finish(self) {
        let _ = self.forward.await;
        let _ = tokio::task::spawn_blocking(move || self.writer.join()).await;
    }
}

fn line(out: &mut (dyn Write + Send), event: &Stamped) -> io::Result<()> {
    let mut line = serde_json::to_vec(event).map_err(io::Error::other)?;
    line.push(b'\n');
    out.write_all(&line)?;
    out.flush()
}
