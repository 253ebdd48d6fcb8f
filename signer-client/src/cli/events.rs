//! Events as lines of JSON.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;

use crate::event::Stamped;

/// Writes events until there are no more.
pub(super) struct EventWriter(JoinHandle<()>);

impl EventWriter {
    pub(super) fn start(path: &Path, mut events: Receiver<Stamped>) -> io::Result<Self> {
        let mut out: Box<dyn Write + Send> = if path.as_os_str() == "-" {
            Box::new(io::stdout())
        } else {
            Box::new(OpenOptions::new().create(true).append(true).open(path)?)
        };
        Ok(Self(tokio::spawn(async move {
            loop {
                match events.recv().await {
                    Ok(event) => {
                        if let Err(error) = line(&mut *out, &event) {
                            tracing::error!(%error, "events cannot be written any more");
                            return;
                        }
                    }
                    Err(RecvError::Lagged(missed)) => {
                        tracing::error!(missed, "events were lost: the reader is too slow");
                    }
                    Err(RecvError::Closed) => return,
                }
            }
        })))
    }

    /// Waits until the last event is written; all senders must be gone.
    pub(super) async fn finish(self) {
        let _ = self.0.await;
    }
}

fn line(out: &mut (dyn Write + Send), event: &Stamped) -> io::Result<()> {
    let mut line = serde_json::to_vec(event).map_err(io::Error::other)?;
    line.push(b'\n');
    out.write_all(&line)?;
    out.flush()
}
