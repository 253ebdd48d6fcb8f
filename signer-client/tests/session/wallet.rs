//! A wallet in memory, connected to the test's coordinator.

use std::sync::Arc;
use std::time::Duration;

use bitcoin::Network;
use keystore::{KdfCost, Passphrase, Seed};
use signer_client::keys::ClientKeys;
use signer_client::store::SqliteStore;
use signer_client::{ClientParts, Config, Event, Shutdown, SignerClient, Stamped, Tasks};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

use crate::chain::StandingChain;

/// How long anything may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Wallet {
    pub client: SignerClient,
    events: broadcast::Receiver<Stamped>,
    stop: watch::Sender<bool>,
    running: Option<JoinHandle<signer_client::Result<()>>>,
}

impl Wallet {
    pub async fn start(connection: &str) -> Self {
        let mut config = Config::new(Network::Regtest);
        config.coordinator = Some(connection.to_owned());
        config.allow_plain = true;
        config.connection.reconnect_min_ms = 10;
        config.connection.reconnect_max_ms = 50;
        let client = SignerClient::open(ClientParts {
            config,
            keys: Arc::new(keys()),
            store: Arc::new(SqliteStore::in_memory().await.unwrap()),
            chain: Arc::new(StandingChain),
        })
        .await
        .unwrap();
        let (stop, shutdown) = Shutdown::new();
        let events = client.events();
        let tasks = Tasks {
            connection: true,
            chain: false,
            answers: false,
        };
        let running = {
            let client = client.clone();
            tokio::spawn(async move { client.run(tasks, shutdown).await })
        };
        Self {
            client,
            events,
            stop,
            running: Some(running),
        }
    }

    pub async fn wait(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        let found = tokio::time::timeout(PATIENCE, async {
            loop {
                let event = self.events.recv().await.unwrap().event;
                if wanted(&event) {
                    return event;
                }
            }
        });
        found.await.expect("the event comes in time")
    }

    pub async fn stop(&mut self) {
        self.stop.send(true).unwrap();
        let running = self.running.take().unwrap();
        let ended = tokio::time::timeout(PATIENCE, running).await;
        ended.expect("it ends in time").unwrap().unwrap();
    }
}

fn keys() -> ClientKeys {
    let dir = tempfile::tempdir().unwrap();
    let passphrase = Passphrase::new("correct horse".to_owned()).unwrap();
    let path = dir.path().join("seed.json");
    let (seed, _words) = Seed::create(path, &passphrase, KdfCost::Light).unwrap();
    ClientKeys::new(&seed, Network::Regtest).unwrap()
}
