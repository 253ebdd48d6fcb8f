//! Peers: listening, connecting, and staying connected.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use tokio::net::TcpListener;

use super::Core;
use crate::error::NodeError;
use crate::store::{Change, EntryKey, Store};

const SPACE: &str = "superscalar";
const SUBSPACE: &str = "peers";
/// How long a handshake may take.
const PATIENCE: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The most time between two tries; the first come quicker.
const TRY_EVERY: Duration = Duration::from_secs(2);

/// Whom to stay connected to, and where they are.
#[derive(Debug)]
pub(super) struct PeerBook {
    store: Arc<Store>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    addresses: HashMap<PublicKey, SocketAddr>,
    connecting: HashSet<PublicKey>,
}

impl PeerBook {
    pub(super) fn open(store: Arc<Store>) -> Result<Self, NodeError> {
        let mut state = State::default();
        for name in store.names(SPACE, SUBSPACE)? {
            let bytes = store
                .get(EntryKey::new(SPACE, SUBSPACE, &name))?
                .unwrap_or_default();
            let address = String::from_utf8_lossy(&bytes).parse();
            if let (Ok(peer), Ok(address)) = (name.parse(), address) {
                state.addresses.insert(peer, address);
            }
        }
        Ok(Self {
            store,
            state: Mutex::new(state),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, peer: PublicKey, address: SocketAddr) -> Result<(), NodeError> {
        let key = EntryKey::new(SPACE, SUBSPACE, &peer.to_string());
        let known = self.lock().addresses.insert(peer, address);
        if known != Some(address) {
            let bytes = address.to_string().into_bytes();
            self.store.write(vec![Change::Put(key, bytes)])?;
        }
        Ok(())
    }

    fn forget(&self, peer: &PublicKey) -> Result<(), NodeError> {
        let key = EntryKey::new(SPACE, SUBSPACE, &peer.to_string());
        self.lock().addresses.remove(peer);
        Ok(self.store.write(vec![Change::Remove(key)])?)
    }

    fn all(&self) -> Vec<(PublicKey, SocketAddr)> {
        let state = self.lock();
        state.addresses.iter().map(|(p, a)| (*p, *a)).collect()
    }
}

impl Core {
    pub(super) fn is_connected(&self, peer: &PublicKey) -> bool {
        self.peers.peer_by_node_id(peer).is_some()
    }

    pub(super) fn connected(&self) -> Vec<PublicKey> {
        let peers = self.peers.list_peers();
        peers
            .into_iter()
            .map(|peer| peer.counterparty_node_id)
            .collect()
    }

    pub(super) async fn connect(
        &self,
        peer: PublicKey,
        address: SocketAddr,
    ) -> Result<(), NodeError> {
        self.peer_book.remember(peer, address)?;
        self.dial(peer, address).await
    }

    /// Tries until it succeeds or takes too long: of two connections at once, one to us and one from us, Lightning drops one or the other.
    async fn dial(&self, peer: PublicKey, address: SocketAddr) -> Result<(), NodeError> {
        let tries = async {
            let mut pause = LOOK_EVERY;
            while !self.is_connected(&peer) && !self.is_stopping() {
                self.try_once(peer, address).await;
                tokio::time::sleep(pause).await;
                pause = TRY_EVERY.min(pause * 2);
            }
        };
        let done = tokio::time::timeout(PATIENCE, tries).await;
        if done.is_err() || !self.is_connected(&peer) {
            return Err(NodeError::Unreachable { peer, address });
        }
        Ok(())
    }

    /// Returns when the peer is connected, or this connection has failed.
    async fn try_once(&self, peer: PublicKey, address: SocketAddr) {
        let peers = Arc::clone(&self.peers);
        let Some(closed) = lightning_net_tokio::connect_outbound(peers, peer, address).await else {
            return;
        };
        if self.is_stopping() {
            // Nobody would ever drive it.
            self.peers.disconnect_all_peers();
            return;
        }
        let shaken = async {
            while !self.is_connected(&peer) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::select! {
            () = shaken => {}
            () = closed => {}
        }
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(super) fn disconnect(&self, peer: PublicKey) -> Result<(), NodeError> {
        self.peer_book.forget(&peer)?;
        self.peers.disconnect_by_node_id(peer);
        Ok(())
    }

    /// Tries those we lost, each once at a time.
    pub(super) fn reconnect(self: &Arc<Self>) {
        for (peer, address) in self.peer_book.all() {
            let fresh = !self.is_connected(&peer) && self.peer_book.lock().connecting.insert(peer);
            if fresh {
                let core = Arc::clone(self);
                tokio::spawn(async move {
                    if let Err(error) = core.dial(peer, address).await {
                        tracing::debug!(%error, "still away");
                    }
                    core.peer_book.lock().connecting.remove(&peer);
                });
            }
        }
    }

    pub(super) async fn listen(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                // Nobody would drive the connection.
                Ok(_) if self.is_stopping() => return,
                Ok((stream, _)) => {
                    if let Ok(stream) = stream.into_std() {
                        let peers = Arc::clone(&self.peers);
                        tokio::spawn(lightning_net_tokio::setup_inbound(peers, stream));
                    }
                }
                Err(error) => {
                    // Out of file descriptors, for example: some will be freed.
                    tracing::warn!(%error, "a Lightning peer could not be let in");
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            }
        }
    }
}
