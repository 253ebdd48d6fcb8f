//! A wallet that holds kits of factories the test made, and follows the test's chain.

use std::sync::Arc;
use std::time::Duration;

use bitcoin::Network;
use factory_tree::ceremony::message::Round;
use factory_tree::kit::ExitKit;
use factory_tree::params::{ExpiryPolicy, FactoryParams, Profile};
use factory_tree::testing::TestFactory;
use keystore::{KdfCost, Passphrase, Seed};
use signer_client::keys::ClientKeys;
use signer_client::store::{FactoryRow, Identity, JoinRow, SharedStore, SqliteStore};
use signer_client::{ClientParts, Config, Event, Shutdown, SignerClient, Stamped, Tasks};
use tokio::sync::{broadcast, watch};

use crate::chain::MinedChain;

/// How long anything may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Wallet {
    pub client: SignerClient,
    pub chain: Arc<MinedChain>,
    events: broadcast::Receiver<Stamped>,
    _stop: watch::Sender<bool>,
}

/// The kit of the first of two clients.
pub fn kit(seed: u64, policy: ExpiryPolicy) -> ExitKit {
    let mut params = FactoryParams::profile(Profile::Lite, Network::Regtest);
    params.expiry_policy = policy;
    TestFactory::new(seed, params, 2).unwrap().sign().kit(0)
}

/// `E` of section 1.
pub fn leave_by(kit: &ExitKit) -> u32 {
    kit.expiry.0 - kit.exit_delay.0 - kit.params.expiry_margin
}

impl Wallet {
    /// With a chain that begins at `base`.
    pub async fn new(base: u32) -> Self {
        let chain = Arc::new(MinedChain::new(base));
        let keys = Arc::new(keys());
        let store: SharedStore = Arc::new(SqliteStore::in_memory().await.unwrap());
        let identity = Identity {
            network: Network::Regtest,
            node_id: keys.node_id(),
            birthday: Some(chain.id()),
        };
        store.claim(&identity).await.unwrap();
        let mut config = Config::new(Network::Regtest);
        config.chain.poll_ms = 10;
        let client = SignerClient::open(ClientParts {
            config,
            keys,
            store,
            chain: Arc::clone(&chain) as Arc<dyn chain::ChainSource>,
            // No node is run.
            channels: std::path::PathBuf::new(),
        })
        .await
        .unwrap();
        Self {
            events: client.events(),
            client,
            chain,
            _stop: watch::channel(false).0,
        }
    }

    /// A factory whose kit is these bytes.
    pub async fn hold(&self, kit: &ExitKit, bytes: &[u8]) {
        let store = self.client.store();
        let round = Round {
            ceremony: kit.ceremony,
            attempt: kit.attempt,
        };
        let join = JoinRow {
            join_nonce: kit.join_nonce,
            round,
            leaf_id: kit.leaf_id,
            factory_key: kit.factory_key,
            channel_key: kit.channel_key,
            payout_script: kit.payout_script.clone(),
            common_pin: kit.funding_tx.input[0].previous_output,
            capacity: kit.capacity,
        };
        store.record_join(&join).await.unwrap();
        let row = FactoryRow {
            factory: kit.factory_id,
            round,
            join_nonce: kit.join_nonce,
            funding: kit.funding(),
            common_pin: join.common_pin,
            capacity: kit.capacity,
            birth: kit.birth,
            expiry: kit.expiry,
            confirmations: 2,
            fee: bitcoin::Amount::ZERO,
            acked: false,
            failed: false,
            confirmed: None,
            usable: false,
            abandoned: None,
            closed: None,
            handover: None,
        };
        store.store_kit(&row, bytes).await.unwrap();
        store.set_acked(kit.factory_id).await.unwrap();
    }

    pub async fn hold_good(&self, kit: &ExitKit) {
        self.hold(kit, kit.to_json().unwrap().as_bytes()).await;
    }

    pub fn run(&mut self) {
        let (stop, shutdown) = Shutdown::new();
        let tasks = Tasks {
            connection: false,
            chain: true,
            answers: false,
            lightning: false,
        };
        let client = self.client.clone();
        tokio::spawn(async move { client.run(tasks, shutdown).await });
        self._stop = stop;
    }

    /// Everything that is told until the wallet has followed the chain to its tip.
    pub async fn synced(&mut self) -> Vec<Event> {
        let height = self.chain.id().height;
        let mut events = Vec::new();
        let all = tokio::time::timeout(PATIENCE, async {
            loop {
                let event = self.events.recv().await.unwrap().event;
                let over = event == Event::Synced { height };
                events.push(event);
                if over {
                    return;
                }
            }
        });
        all.await.expect("the tip is reached in time");
        events
    }
}

fn keys() -> ClientKeys {
    let dir = tempfile::tempdir().unwrap();
    let passphrase = Passphrase::new("correct horse".to_owned()).unwrap();
    let path = dir.path().join("seed.json");
    let (seed, _words) = Seed::create(path, &passphrase, KdfCost::Light).unwrap();
    ClientKeys::new(&seed, Network::Regtest).unwrap()
}
