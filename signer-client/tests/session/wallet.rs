//! A wallet in memory, connected to the test's coordinator.

use std::sync::Arc;
use std::time::Duration;

use bitcoin::Network;
use factory_tree::ceremony::message::Round;
use factory_tree::params::{FactoryParams, Profile};
use factory_tree::testing::TestFactory;
use keystore::{KdfCost, Passphrase, Seed};
use signer_client::keys::ClientKeys;
use signer_client::store::{FactoryRow, JoinRow, SqliteStore};
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
        Self::start_with(connection, async |_| {}).await
    }

    /// With what an earlier process left in the store.
    pub async fn start_with(connection: &str, left: impl AsyncFnOnce(&SqliteStore)) -> Self {
        let store = SqliteStore::in_memory().await.unwrap();
        left(&store).await;
        let mut config = Config::new(Network::Regtest);
        config.coordinator = Some(connection.to_owned());
        config.allow_plain = true;
        config.connection.reconnect_min_ms = 10;
        config.connection.reconnect_max_ms = 50;
        let client = SignerClient::open(ClientParts {
            config,
            keys: Arc::new(keys()),
            store: Arc::new(store),
            chain: Arc::new(StandingChain),
            // No node is run.
            channels: std::path::PathBuf::new(),
        })
        .await
        .unwrap();
        let (stop, shutdown) = Shutdown::new();
        let events = client.events();
        let tasks = Tasks {
            connection: true,
            chain: false,
            answers: false,
            lightning: false,
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

/// A factory whose kit was acknowledged, and the join it came from.
pub fn acknowledged() -> (String, FactoryRow, JoinRow) {
    let params = FactoryParams::profile(Profile::Lite, Network::Regtest);
    let kit = TestFactory::new(1, params, 2).unwrap().sign().kit(0);
    let round = Round {
        ceremony: kit.ceremony,
        attempt: kit.attempt,
    };
    let common_pin = kit.funding_tx.input[0].previous_output;
    let join = JoinRow {
        join_nonce: kit.join_nonce,
        round,
        leaf_id: kit.leaf_id,
        factory_key: kit.factory_key,
        channel_key: kit.channel_key,
        payout_script: kit.payout_script.clone(),
        common_pin,
        capacity: kit.capacity,
    };
    let row = FactoryRow {
        factory: kit.factory_id,
        round,
        join_nonce: kit.join_nonce,
        funding: kit.funding(),
        common_pin,
        capacity: kit.capacity,
        birth: kit.birth,
        expiry: kit.expiry,
        confirmations: 1,
        fee: bitcoin::Amount::ZERO,
        acked: false,
        failed: false,
        confirmed: None,
        usable: false,
        abandoned: None,
        closed: None,
        handover: None,
    };
    (kit.to_json().unwrap(), row, join)
}

fn keys() -> ClientKeys {
    let dir = tempfile::tempdir().unwrap();
    let passphrase = Passphrase::new("correct horse".to_owned()).unwrap();
    let path = dir.path().join("seed.json");
    let (seed, _words) = Seed::create(path, &passphrase, KdfCost::Light).unwrap();
    ClientKeys::new(&seed, Network::Regtest).unwrap()
}
