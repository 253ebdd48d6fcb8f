//! A node that is kept running: started again when its store failed, or when Lightning needs a fresh start to see how a channel ended.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::config::NodeConfig;
use crate::error::NodeError;
use crate::event::{EventSink, NodeEvent, NotTakenIn};
use crate::node::Node;

/// How long a first start is waited for; a node that catches up with many blocks takes longer, and goes on by itself.
const FIRST: Duration = Duration::from_secs(5);
/// Between two starts that failed: at first, and at most.
const PAUSE: Duration = Duration::from_millis(250);
const MOST: Duration = Duration::from_secs(30);

/// Whether there is a node.
#[derive(Debug, Clone)]
pub enum HostState {
    /// None yet: it catches up with the chain.
    Starting,
    /// None, and why; it is tried again.
    Down(NodeError),
    /// One that runs.
    Up(Arc<Node>),
}

/// A running node, or one that is about to run. Stopped by [`Host::shutdown`].
#[derive(Debug)]
pub struct Host {
    state: watch::Receiver<HostState>,
    stop: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// Passes events on, and hears those that ask for a new start.
#[derive(Debug)]
struct Listening {
    events: Arc<dyn EventSink>,
    again: mpsc::UnboundedSender<()>,
}

#[async_trait]
impl EventSink for Listening {
    async fn take(&self, event: NodeEvent) -> Result<(), NotTakenIn> {
        let again = matches!(
            event,
            NodeEvent::Stopped { .. } | NodeEvent::RestartNeeded { .. }
        );
        self.events.take(event).await?;
        if again {
            // Nobody listens any more: it is being stopped.
            let _ = self.again.send(());
        }
        Ok(())
    }
}

impl Host {
    /// Starts a node and keeps it running. A Bitcoin node that is away is waited for.
    ///
    /// # Errors
    /// [`NodeError`] where waiting does not help: a store that is damaged or another's, an address that is taken.
    pub async fn start(config: NodeConfig) -> Result<Self, NodeError> {
        let (states, state) = watch::channel(HostState::Starting);
        let (stop, stopped) = watch::channel(false);
        let (first, told) = oneshot::channel();
        let task = tokio::spawn(keep(config, states, stopped, first));
        let host = Self {
            state,
            stop,
            task: Mutex::new(Some(task)),
        };
        match timeout(FIRST, told).await {
            Ok(Ok(Err(error))) if !is_transient(&error) => {
                host.shutdown().await;
                Err(error)
            }
            _ => Ok(host),
        }
    }

    /// The node, if it runs.
    pub fn node(&self) -> Option<Arc<Node>> {
        match &*self.state.borrow() {
            HostState::Up(node) => Some(Arc::clone(node)),
            HostState::Starting | HostState::Down(_) => None,
        }
    }

    /// Whether it runs, now and from now on.
    pub fn states(&self) -> watch::Receiver<HostState> {
        self.state.clone()
    }

    /// Stops the node in order, and does not start it again.
    pub async fn shutdown(&self) {
        // Fails only if the task has ended.
        let _ = self.stop.send(true);
        if let Some(task) = self.task.lock().await.take() {
            let _ = task.await;
        }
    }
}

fn is_transient(error: &NodeError) -> bool {
    matches!(error, NodeError::Chain(error) if error.is_transient())
}

async fn keep(
    mut config: NodeConfig,
    states: watch::Sender<HostState>,
    mut stop: watch::Receiver<bool>,
    first: oneshot::Sender<Result<(), NodeError>>,
) {
    let (again, mut asked) = mpsc::unbounded_channel();
    let events = Arc::clone(&config.events);
    config.events = Arc::new(Listening { events, again });
    let mut first = Some(first);
    let mut pause = PAUSE;
    loop {
        let started = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            started = Node::start(config.clone()) => started,
        };
        if let Some(first) = first.take() {
            // Nobody waits any more: it took long.
            let _ = first.send(started.as_ref().map(drop).map_err(Clone::clone));
        }
        match started {
            Err(error) => {
                tracing::warn!(%error, "the Lightning node does not start; it is tried again");
                states.send_replace(HostState::Down(error));
            }
            Ok(node) => {
                // Whatever port it got, it keeps.
                config.listen = node.listen_address().or(config.listen);
                let node = Arc::new(node);
                states.send_replace(HostState::Up(Arc::clone(&node)));
                let (ends, whole) = tokio::select! {
                    biased;
                    _ = stop.wait_for(|stop| *stop) => (true, true),
                    _ = asked.recv() => (false, true),
                    () = node.driver_ended() => (false, false),
                };
                states.send_replace(HostState::Starting);
                if !whole {
                    tracing::error!("the Lightning node has ended by itself; it is started again");
                    // What a panic left half done in memory is not written.
                    node.abort().await;
                } else if let Err(error) = node.shutdown().await {
                    tracing::warn!(%error, "the Lightning node did not stop in order");
                } else {
                    pause = PAUSE;
                }
                if ends {
                    return;
                }
                while asked.try_recv().is_ok() {}
            }
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = sleep(pause) => {}
        }
        pause = pause.saturating_mul(2).min(MOST);
    }
}
