//! Two wallets that share a stock, the coordinator's machine, and a shop that answers as the test says.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bitcoin::secp256k1::{SecretKey, ecdsa};
use bitcoin::{Amount, Network, Script};
use channel_host::{LeafKeys, Msat};
use factory_tree::ceremony::coordinator::LspSigner;
use factory_tree::ceremony::message::Round;
use factory_tree::factory::FactoryTx;
use factory_tree::ids::{Attempt, ClientId, LeafId};
use factory_tree::kit::ExitKit;
use factory_tree::params::{FactoryParams, Profile};
use factory_tree::sale::message::{SaleRound, ToCoSigner, ToSeller};
use factory_tree::sale::order::{PaidBy, Quote, SignedQuote};
use factory_tree::sale::seller::{
    SaleRecord, SaleTerms, Seller, SellerEffect, SellerEvent, SellerInput, SellerOutcome,
    SellerStep, Setup, SoldRecord,
};
use factory_tree::sale::{Sale, SoldChannel, Stock};
use factory_tree::testing::{ATTEMPT, BIRTH, CEREMONY, TestClient, TestFactory, public, secret};
use factory_tree::units::{Blocks, Height};

use super::super::api::{UpgradeOptions, buy};
use super::super::desk::Desk;
use super::super::{PurchaseView, SaleError};
use super::shop::{FEE, HASH, SALE, TestShop, coordinator};
use super::wallet::Wallet;
use crate::error::{Error, Result};
use crate::keys::ClientKeys;
use crate::store::PaymentEnd;

/// What is asked for.
pub(super) const ASKED: u64 = 250_000;
/// When the quote ends, in Unix time.
const FAR: u64 = 4_000_000_000;

/// Signs as the coordinator: one key for all that it sells.
#[derive(Debug)]
struct Lsp {
    factory: SecretKey,
    channels: LeafKeys,
}

/// The coordinator's channel id of what it sells.
pub(super) const LSP_CHANNEL: u128 = 99;

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
    /// What the mate gets.
    pub(super) bonus: Vec<SoldChannel>,
    pub(super) seller: Option<Seller>,
    pub(super) sold: Option<SoldRecord>,
    pub(super) outcome: Option<SellerOutcome>,
    pub(super) acked: Vec<ClientId>,
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
        Self::with_mate(0).await
    }

    /// With a mate that signs for no smaller bonus.
    pub(super) async fn with_mate(least_bonus_sat: u64) -> Self {
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
        let buyer = Wallet::new(first.1, first.0, &kit, 0).await;
        let mate = Wallet::new(second.1, second.0, &signed.kit(1), least_bonus_sat).await;
        let factory = signed.factory;
        let shop = Arc::new(TestShop::new(buyer.client.clone()));
        Self {
            factory,
            kit,
            buyer,
            mate,
            shop,
            bonus: Vec::new(),
            seller: None,
            sold: None,
            outcome: None,
            acked: Vec::new(),
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
            paid_by: PaidBy::Invoice,
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
            bonus: self.bonus.clone(),
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
                SellerEffect::Emit(SellerEvent::Acked { client, .. }) => self.acked.push(client),
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
