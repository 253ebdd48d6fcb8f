//! The connection to the coordinator's node: dialled where the coordinator said, and kept by the node itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use channel_host::Node;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::coordinator_of;
use crate::client::Inner;
use crate::event::Event;
use crate::store::Route;

/// A name may stand for another address by now.
const RESOLVE_AGAIN: Duration = Duration::from_secs(30);

/// Dials, and tells of connection and loss.
#[derive(Debug, Default)]
pub(super) struct Dialler {
    /// What was dialled last, and when.
    dialled: Option<(String, Instant)>,
    dialling: Option<JoinHandle<()>>,
    connected: bool,
}

impl Drop for Dialler {
    fn drop(&mut self) {
        if let Some(dialling) = &self.dialling {
            dialling.abort();
        }
    }
}

impl Dialler {
    /// There is another node now, which nobody has told anything.
    pub(super) fn forget(&mut self) {
        self.dialled = None;
    }

    /// Dials if there is something new to dial, or nobody answers.
    pub(super) fn look(&mut self, client: &Arc<Inner>, route: Option<&Route>) {
        #[cfg(feature = "fault-points")]
        if crate::misbehave::hides_from_lightning() {
            return;
        }
        let (Some(node), Some(peer)) = (client.lightning.node(), coordinator_of(client)) else {
            self.note(client, false);
            return;
        };
        let connected = node.peers().contains(&peer);
        self.note(client, connected);
        let Some(route) = route else { return };
        let due = match &self.dialled {
            Some((address, at)) => {
                *address != route.address || (!connected && at.elapsed() >= RESOLVE_AGAIN)
            }
            None => true,
        };
        let busy = self
            .dialling
            .as_ref()
            .is_some_and(|task| !task.is_finished());
        let moved = self
            .dialled
            .as_ref()
            .is_some_and(|(address, _)| *address != route.address);
        if !due || (busy && !moved) {
            return;
        }
        if let Some(task) = self.dialling.take() {
            task.abort();
        }
        self.dialled = Some((route.address.clone(), Instant::now()));
        let dialled = dial(Arc::clone(client), node, peer, route.address.clone(), moved);
        self.dialling = Some(tokio::spawn(dialled));
    }

    fn note(&mut self, client: &Inner, connected: bool) {
        if self.connected == connected {
            return;
        }
        self.connected = connected;
        if connected {
            client.lightning.well();
            client.events.emit(Event::LightningConnected);
            client.lightning.tell();
        } else {
            let problem = "the connection to the coordinator's Lightning node is lost";
            client.lightning.down(client, problem);
        }
    }
}

/// Tells the node where its peer is; from then on the node stays connected by itself.
async fn dial(client: Arc<Inner>, node: Arc<Node>, peer: PublicKey, address: String, moved: bool) {
    let found: Result<Option<SocketAddr>, _> = tokio::net::lookup_host(&address)
        .await
        .map(|mut found| found.next());
    let problem = match found {
        Ok(Some(at)) => {
            if moved && let Err(error) = node.disconnect(peer) {
                tracing::warn!(%error, "the old address of the coordinator's node stays known");
            }
            match node.connect(peer, at).await {
                Ok(()) => {
                    // Seen by whoever looks next.
                    client.lightning.tell();
                    return;
                }
                Err(error) => error.to_string(),
            }
        }
        Ok(None) => format!("{address} has no address"),
        Err(error) => format!("{address} cannot be resolved: {error}"),
    };
    client.lightning.down(&client, &problem);
}
