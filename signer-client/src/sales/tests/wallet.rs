//! A wallet with a store, and a node that only remembers.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bitcoin::{Amount, Network};
use channel_host::{Leaf, NodeError};
use factory_tree::ceremony::message::Round;
use factory_tree::kit::ExitKit;
use factory_tree::sale::message::{ToCoSigner, ToSeller};
use factory_tree::testing::{ATTEMPT, BIRTH, CEREMONY};
use proto::v1::ClientMessage;
use proto::wire::FromClient;
use tokio::sync::mpsc;

use super::super::PurchaseView;
use super::super::driver::Driver;
use super::super::ground::Ground;
use super::shop::{HASH, coordinator};
use super::world::World;
use crate::client::{ClientParts, Inner, SignerClient};
use crate::config::Config;
use crate::connection::Outgoing;
use crate::error::Result;
use crate::keys::ClientKeys;
use crate::migration::tests::chain::StandingChain;
use crate::store::{
    Direction, FactoryRow, FactoryStore, JoinRow, JoinStore, PaymentState, SharedStore, SqliteStore,
};

/// A node that remembers which leaves it expects.
#[derive(Debug, Default)]
pub(super) struct TestGround {
    pub(super) expected: Mutex<Vec<Leaf>>,
    pub(super) down: Mutex<bool>,
}

#[async_trait]
impl Ground for TestGround {
    async fn expect(&self, _client: &Inner, leaf: Leaf) -> Result<()> {
        if *self.down.lock().unwrap() {
            return Err(NodeError::Refused("it is starting".to_owned()).into());
        }
        self.expected.lock().unwrap().push(leaf);
        Ok(())
    }
}

/// One client of the stock.
pub(super) struct Wallet {
    pub(super) client: SignerClient,
    pub(super) driver: Driver,
    pub(super) ground: Arc<TestGround>,
    out: Outgoing,
    heard: mpsc::Receiver<ClientMessage>,
    _seed: tempfile::TempDir,
}

impl Wallet {
    pub(super) async fn new(
        keys: ClientKeys,
        seed: tempfile::TempDir,
        kit: &ExitKit,
        least_bonus_sat: u64,
    ) -> Self {
        let store = SqliteStore::in_memory().await.unwrap();
        hold(&store, kit).await;
        let mut config = Config::new(Network::Regtest);
        config.sales.least_bonus_sat = least_bonus_sat;
        let node = coordinator().node_id();
        config.coordinator = Some(format!("superscalar://{node}@127.0.0.1:1?plain=1"));
        let client = SignerClient::open(ClientParts {
            config,
            keys: Arc::new(keys),
            store: Arc::new(store),
            chain: Arc::new(StandingChain),
            channels: std::path::PathBuf::new(),
        })
        .await
        .unwrap();
        client.inner.set_height(BIRTH.0 + 10);
        let ground = Arc::new(TestGround::default());
        let (out, heard) = Outgoing::new(64);
        Self {
            driver: Driver::on(Arc::clone(&client.inner), ground.clone()),
            client,
            ground,
            out,
            heard,
            _seed: seed,
        }
    }

    pub(super) fn store(&self) -> &SharedStore {
        self.client.store()
    }

    /// As after kill -9: what is not stored is gone.
    pub(super) fn crash(&mut self) {
        self.driver = Driver::on(Arc::clone(&self.client.inner), self.ground.clone());
    }

    pub(super) async fn tell(&mut self, message: ToCoSigner) {
        self.driver.received(message, &self.out).await.unwrap();
    }

    pub(super) async fn look(&mut self) {
        self.driver.look(&self.out).await.unwrap();
    }

    pub(super) fn said(&mut self) -> Option<ToSeller> {
        let message = self.heard.try_recv().ok()?;
        match FromClient::try_from(message).unwrap() {
            FromClient::Sale(message) => Some(message),
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn kit(&self, world: &World) -> ExitKit {
        self.client
            .inner
            .kits
            .read(world.kit.factory_id)
            .await
            .unwrap()
    }

    pub(super) async fn purchase(&self) -> Option<PurchaseView> {
        self.client.purchases().await.unwrap().pop()
    }

    pub(super) async fn payment(&self) -> Option<PaymentState> {
        let payment = self.store().payment(HASH, Direction::Out).await.unwrap();
        payment.map(|payment| payment.state)
    }
}

async fn hold(store: &SqliteStore, kit: &ExitKit) {
    let round = Round {
        ceremony: CEREMONY,
        attempt: ATTEMPT,
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
    store.record_join(&join).await.unwrap();
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
        fee: Amount::ZERO,
        acked: false,
        failed: false,
        confirmed: None,
        usable: false,
        abandoned: None,
        closed: None,
        handover: None,
    };
    let text = kit.to_json().unwrap();
    store.store_kit(&row, text.as_bytes()).await.unwrap();
    let confirmed = Some(kit.birth);
    store
        .set_confirmed(kit.factory_id, confirmed, true)
        .await
        .unwrap();
}
