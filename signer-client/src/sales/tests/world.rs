//! Two wallets that share a stock, the coordinator's machine, and a shop that answers as the test says.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bitcoin::secp256k1::{PublicKey, SecretKey, ecdsa};
use bitcoin::{Amount, Network, Script};
use channel_host::{
    AskError, InvoiceView, Leaf, LeafId as NodeLeaf, LeafKeys, Msat, NodeError, PaymentHash,
    RpcError,
};
use factory_tree::ceremony::coordinator::LspSigner;
use factory_tree::ceremony::message::Round;
use factory_tree::factory::FactoryTx;
use factory_tree::ids::{Attempt, ClientId, LeafId, SaleId};
use factory_tree::kit::ExitKit;
use factory_tree::params::{FactoryParams, Profile};
use factory_tree::sale::message::{SaleRound, ToCoSigner, ToSeller};
use factory_tree::sale::order::{Order, Purchase, PurchaseState, Quote, SignedQuote, method};
use factory_tree::sale::seller::{
    SaleRecord, SaleTerms, Seller, SellerEffect, SellerInput, SellerOutcome, SellerStep, Setup,
    SoldRecord,
};
use factory_tree::sale::{Sale, SoldChannel, Stock};
use factory_tree::testing::{ATTEMPT, BIRTH, CEREMONY, TestClient, TestFactory, public, secret};
use factory_tree::units::{Blocks, Height};
use proto::v1::ClientMessage;
use proto::wire::FromClient;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::super::api::{UpgradeOptions, buy};
use super::super::desk::Desk;
use super::super::driver::Driver;
use super::super::ground::Ground;
use super::super::shop::Shop;
use super::super::{PurchaseView, SaleError};
use crate::client::{ClientParts, Inner, SignerClient};
use crate::config::Config;
use crate::connection::Outgoing;
use crate::error::{Error, Result};
use crate::keys::ClientKeys;
use crate::store::{
    Direction, FactoryRow, FactoryStore, JoinRow, JoinStore, PaymentEnd, PaymentState, SharedStore,
    SqliteStore,
};

pub(super) const ASKED: u64 = 100_000;
pub(super) const FEE: u64 = 1_234_000;
pub(super) const SALE: SaleId = SaleId([7; 16]);
/// What the quote says of its end, in Unix time.
pub(super) const FAR: u64 = 4_000_000_000;
const HASH: PaymentHash = PaymentHash([8; 32]);

pub(super) fn coordinator() -> LeafKeys {
    LeafKeys::new(&[1; 32])
}

fn hex(key: &PublicKey) -> String {
    key.to_string()
}

/// What the coordinator answers, and what it was asked.
#[derive(Debug)]
pub(super) struct Counter {
    pub(super) asked: Vec<(String, Value)>,
    pub(super) orders: Vec<Order>,
    pub(super) state: PurchaseState,
    pub(super) away: bool,
    pub(super) refuses: bool,
    pub(super) quote: Option<SignedQuote>,
    /// What its invoices say.
    pub(super) invoice: InvoiceView,
    /// Payments that were begun.
    pub(super) paid: usize,
    pub(super) poor: bool,
    pub(super) stands: bool,
}

#[derive(Debug)]
pub(super) struct TestShop {
    client: SignerClient,
    counter: Mutex<Counter>,
}

impl TestShop {
    pub(super) fn counter(&self) -> MutexGuard<'_, Counter> {
        self.counter.lock().unwrap()
    }
}

#[async_trait]
impl Shop for TestShop {
    async fn ask(&self, method: &str, params: &Value) -> Result<Value> {
        let mut counter = self.counter();
        counter.asked.push((method.to_owned(), params.clone()));
        if counter.away {
            return Err(AskError::Away(coordinator().node_id()).into());
        }
        if counter.refuses {
            return Err(AskError::Refused(RpcError::new(1, "reserved for another client")).into());
        }
        match method {
            method::QUOTE => return Ok(json!(counter.quote.clone().unwrap())),
            method::BUY => {
                let order: Order = serde_json::from_value(params.clone()).unwrap();
                // The same order again is answered with the same, another is not.
                assert!(counter.orders.iter().all(|known| *known == order));
                counter.orders.push(order);
            }
            method::CANCEL if counter.state == PurchaseState::Ordered => {
                counter.state = PurchaseState::Cancelled;
            }
            _ => {}
        }
        Ok(json!(Purchase {
            sale: SALE,
            state: counter.state,
            invoice: "invoice".to_owned(),
            note: "a note".to_owned(),
        }))
    }

    fn read(&self, invoice: &str) -> Result<InvoiceView> {
        assert_eq!(invoice, "invoice");
        Ok(self.counter().invoice.clone())
    }

    async fn pay(&self, _invoice: &str) -> Result<()> {
        if self.counter().poor {
            return Err(Error::PaymentRefused("there is no room".to_owned()));
        }
        let inner = &self.client.inner;
        let now = inner.now();
        let begun = inner.store.begin_payment(HASH, Msat(FEE), "", now);
        assert_eq!(begun.await?, None, "paid twice");
        self.counter().paid += 1;
        Ok(())
    }

    fn stands(&self, _leaf: NodeLeaf) -> bool {
        self.counter().stands
    }
}

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
    async fn new(keys: ClientKeys, seed: tempfile::TempDir, kit: &ExitKit) -> Self {
        let store = SqliteStore::in_memory().await.unwrap();
        hold(&store, kit).await;
        let mut config = Config::new(Network::Regtest);
        let node = hex(&coordinator().node_id());
        config.coordinator = Some(format!("superscalar://{node}@127.0.0.1:1?plain=1"));
        let client = SignerClient::open(ClientParts {
            config,
            keys: Arc::new(keys),
            store: Arc::new(store),
            chain: Arc::new(super::chain::StandingChain),
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

/// Signs as the coordinator: one key for all that it sells.
#[derive(Debug)]
struct Lsp {
    factory: SecretKey,
    channels: LeafKeys,
}

/// The coordinator's channel id of what it sells.
const LSP_CHANNEL: u128 = 99;

impl LspSigner for Lsp {
    fn factory_secret(&self, _round: Round) -> SecretKey {
        self.factory
    }

    fn sign_channel_timeout(
        &self,
        _leaf: LeafId,
        tx: &FactoryTx,
        script: &Script,
    ) -> Option<ecdsa::Signature> {
        let value = tx.spends.txout.value;
        self.channels
            .sign_timeout(LSP_CHANNEL, &tx.tx, 0, script, value)
            .ok()
    }
}

/// The buyer and its mate, and who sells.
pub(super) struct World {
    factory: TestFactory,
    /// The buyer's, before any sale.
    pub(super) kit: ExitKit,
    pub(super) buyer: Wallet,
    pub(super) mate: Wallet,
    pub(super) shop: Arc<TestShop>,
    pub(super) seller: Option<Seller>,
    pub(super) sold: Option<SoldRecord>,
    pub(super) outcome: Option<SellerOutcome>,
    pub(super) opened: Vec<ClientId>,
    /// What the wallets were not told yet.
    pub(super) mail: VecDeque<(ClientId, ToCoSigner)>,
}

fn test_client(keys: &ClientKeys, n: u8, capacity: Amount) -> TestClient {
    let join_nonce = [n; 16];
    let leaf_id = LeafId::derive(&join_nonce, 0);
    TestClient {
        node: keys.node_key(),
        join_nonce,
        leaf_id,
        factory: keys.factory_secret(join_nonce),
        payout: keys.payout_keypair(join_nonce).secret_key(),
        channel: keys.leaf_keys().funding_secret(leaf_id.as_u128()),
        lsp_channel: secret(1, "lsp channel", n.into()),
        capacity,
    }
}

impl World {
    pub(super) async fn new() -> Self {
        let capacity = Amount::from_sat(200_000);
        let mut params = FactoryParams::profile(Profile::Lite, Network::Regtest);
        // Room for several sales.
        (params.k, params.stock_share_ppm) = (2, 1_000_000);
        let (first, second) = (crate::keys::tests::fresh(), crate::keys::tests::fresh());
        let clients = vec![
            test_client(&first.1, 1, capacity),
            test_client(&second.1, 2, capacity),
            TestClient::new(1, 3, capacity),
            TestClient::new(1, 4, capacity),
        ];
        let signed = TestFactory::of(1, params, clients).unwrap().sign();
        let kit = signed.kit(0);
        let buyer = Wallet::new(first.1, first.0, &kit).await;
        let mate = Wallet::new(second.1, second.0, &signed.kit(1)).await;
        let factory = signed.factory;
        let shop = Arc::new(TestShop {
            client: buyer.client.clone(),
            counter: Mutex::new(Counter {
                asked: Vec::new(),
                orders: Vec::new(),
                state: PurchaseState::Ordered,
                away: false,
                refuses: false,
                quote: None,
                invoice: InvoiceView {
                    hash: HASH,
                    payee: coordinator().node_id(),
                    amount: Some(Msat(FEE)),
                    description: String::new(),
                    description_hash: None,
                    expires_at: None,
                },
                paid: 0,
                poor: false,
                stands: false,
            }),
        });
        Self {
            factory,
            kit,
            buyer,
            mate,
            shop,
            seller: None,
            sold: None,
            outcome: None,
            opened: Vec::new(),
            mail: VecDeque::new(),
        }
    }

    /// What the coordinator would quote.
    pub(super) fn quote(&self) -> Quote {
        let stock = Stock::of_kit(&self.kit).unwrap();
        let asked = Amount::from_sat(ASKED);
        Quote {
            sale: SALE,
            client: self.buyer.client.node_id(),
            factory: self.kit.factory_id,
            stock: stock.outpoint(),
            number: stock.next_number(),
            asked,
            capacity: stock.capacity_for(asked, Amount::ZERO).unwrap(),
            fee_msat: FEE,
            valid_until: FAR,
            sign_until: BIRTH.plus(Blocks(100)),
        }
    }

    /// Signed, and what the invoice is for.
    pub(super) fn signed(&self, quote: &Quote) -> SignedQuote {
        let text = quote.text();
        let signature = coordinator().sign(&SignedQuote::message(&text));
        let signed = SignedQuote { text, signature };
        let mut counter = self.shop.counter();
        counter.invoice.description_hash = Some(signed.hash());
        counter.quote = Some(signed.clone());
        signed
    }

    pub(super) async fn buy(&self, consent: bool) -> Result<PurchaseView> {
        let options = UpgradeOptions {
            consent,
            max_fee: Some(Msat(FEE)),
        };
        let quote = self.signed(&self.quote());
        self.buy_with(&quote, options, Msat(FEE)).await
    }

    pub(super) async fn buy_with(
        &self,
        quote: &SignedQuote,
        options: UpgradeOptions,
        spendable: Msat,
    ) -> Result<PurchaseView> {
        buy(
            &self.buyer.client.inner,
            &*self.shop,
            quote,
            options,
            spendable,
        )
        .await
    }

    pub(super) async fn bring(&self) -> Result<()> {
        Desk::new(&self.buyer.client.inner, &*self.shop)
            .bring(SALE, true)
            .await
    }

    pub(super) async fn cancel(&self) -> Result<()> {
        Desk::new(&self.buyer.client.inner, &*self.shop)
            .cancel(SALE)
            .await
    }

    pub(super) async fn end_payment(&self, end: PaymentEnd) {
        let (store, now) = (self.buyer.store(), self.buyer.client.inner.now());
        assert!(store.end_payment(HASH, &end, now).await.unwrap());
    }

    /// The terms by what the buyer ordered.
    pub(super) fn terms(&self) -> Sale {
        let quote = self.quote();
        let ordered = self.shop.counter().orders.last().cloned();
        let place = ordered.map(|order| (order.leaf_id, order.channel_key));
        let (leaf_id, channel_key) =
            place.unwrap_or((LeafId([5; 16]), public(&secret(5, "nobody", 0))));
        Sale {
            id: SALE,
            stock: quote.stock,
            number: quote.number,
            bought: SoldChannel {
                position: 0,
                leaf_id,
                channel_key,
                lsp_channel_key: coordinator().funding_pubkey(LSP_CHANNEL),
                capacity: quote.capacity,
            },
            bonus: Vec::new(),
        }
    }

    fn setup(&self, attempt: u32) -> Setup {
        let round = SaleRound {
            sale: SALE,
            attempt: Attempt(attempt),
        };
        Setup {
            stock: self.factory.stock(0),
            sale: self.terms(),
            bound: None,
            round,
            clients: [0, 1].map(|at| self.factory.clients[at].id()).to_vec(),
            terms: SaleTerms {
                until: self.quote().sign_until,
                step_seconds: 5,
            },
            factory: Round {
                ceremony: CEREMONY,
                attempt: ATTEMPT,
            },
            signer: Arc::new(Lsp {
                factory: self.factory.lsp,
                channels: coordinator(),
            }),
        }
    }

    /// Offers the sale.
    pub(super) fn start(&mut self, attempt: u32) {
        self.outcome = None;
        let seed = zeroize::Zeroizing::new([attempt as u8; 32]);
        let step = Seller::start(self.setup(attempt), seed).unwrap();
        self.sells(step);
    }

    /// As after kill -9 of the coordinator, or a lost stream: what is complete is sent again.
    pub(super) fn resume(&mut self) {
        let sold = self.sold.clone().unwrap();
        let attempt = sold.round.attempt.0;
        self.seller = Some(Seller::resume(self.setup(attempt), sold).unwrap());
        for client in [0, 1].map(|at| self.factory.clients[at].id()) {
            self.input(SellerInput::Connected(client));
        }
    }

    pub(super) fn input(&mut self, input: SellerInput) {
        let step = self.seller.take().unwrap().step(input);
        self.sells(step);
    }

    fn sells(&mut self, step: SellerStep) {
        self.seller = Some(step.state);
        for effect in step.effects {
            match effect {
                SellerEffect::Send { client, message } => self.mail.push_back((client, message)),
                SellerEffect::Store(record) => match *record {
                    SaleRecord::Chain { .. } => self.input(SellerInput::ChainStored),
                    SaleRecord::Sold(sold) => self.sold = Some(*sold),
                    _ => {}
                },
                SellerEffect::OpenChannel { client, .. } => self.opened.push(client),
                SellerEffect::Finished(outcome) => self.outcome = Some(outcome),
                _ => {}
            }
        }
    }

    /// Delivers one message, and what is answered to it; `false` if there is none.
    pub(super) async fn deliver(&mut self) -> bool {
        let Some((client, message)) = self.mail.pop_front() else {
            return false;
        };
        let buys = client == self.buyer.client.node_id();
        let wallet = if buys {
            &mut self.buyer
        } else {
            &mut self.mate
        };
        wallet.tell(message).await;
        self.collect();
        true
    }

    /// What the wallets said reaches the coordinator.
    pub(super) fn collect(&mut self) {
        let mut said = HashMap::new();
        for (at, wallet) in [&mut self.buyer, &mut self.mate].into_iter().enumerate() {
            let messages: Vec<ToSeller> = std::iter::from_fn(|| wallet.said()).collect();
            said.insert(at, (wallet.client.node_id(), messages));
        }
        for at in [0, 1] {
            let (client, messages) = said.remove(&at).unwrap();
            for message in messages {
                self.input(SellerInput::Message { client, message });
            }
        }
    }

    /// Until nothing is said any more.
    pub(super) async fn run(&mut self) {
        while self.deliver().await {}
    }

    /// Delivers until the next message to be delivered is this, at most.
    pub(super) async fn run_until(&mut self, stop: impl Fn(&ToCoSigner) -> bool) {
        while self.mail.front().is_some_and(|(_, message)| !stop(message)) {
            self.deliver().await;
        }
    }

    pub(super) fn tip(&self, height: Height) {
        self.buyer.client.inner.set_height(height.0);
        self.mate.client.inner.set_height(height.0);
    }
}

/// The error of a purchase that did not begin.
pub(super) fn sale_error(result: Result<PurchaseView>) -> SaleError {
    match result {
        Err(Error::Sale(error)) => error,
        other => panic!("{other:?}"),
    }
}
