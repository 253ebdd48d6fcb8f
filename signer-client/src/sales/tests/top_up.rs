//! Buying by itself, on a real store.

use std::sync::Arc;

use async_trait::async_trait;
use bitcoin::Amount;
use channel_host::{InvoiceView, LeafId, Msat};
use factory_tree::sale::Stock;
use factory_tree::sale::order::{PurchaseState, Quote, SignedQuote, method};
use serde_json::{Value, json};

use super::super::api::buy;
use super::super::shop::Shop;
use super::super::top_up::Buyer;
use super::super::{TopUpState, TopUpView};
use super::YES;
use super::shop::{FEE, TestShop};
use super::world::{ASKED, World};
use crate::client::SignerClient;
use crate::config::TopUpConfig;
use crate::error::Result;
use crate::event::Event;
use crate::lightning::ChannelView;
use crate::migration::calendar;
use crate::store::PaymentEnd;

/// What is covered.
const LITTLE: u64 = 100_000;

fn policy(amount_sat: u64) -> TopUpConfig {
    TopUpConfig {
        enabled: true,
        amount_sat,
        ..TopUpConfig::default()
    }
}

/// What the coordinator would quote for so much.
fn quote(world: &World, amount: u64) -> Quote {
    let asked = Amount::from_sat(amount);
    let stock = Stock::of_kit(&world.kit).unwrap();
    Quote {
        asked,
        capacity: stock.capacity_for(asked, Amount::ZERO).unwrap(),
        ..world.quote()
    }
}

/// The channel that the buyer was born with, almost full.
fn channels(world: &World) -> Vec<ChannelView> {
    vec![ChannelView {
        leaf: world.kit.leaf_id.to_string(),
        capacity_sat: 200_000,
        ..ChannelView::sample(world.kit.factory_id, 190_000_000, 8_000_000)
    }]
}

async fn view(world: &World) -> TopUpView {
    // The wallet's own configuration has it off: what is waited for is told all the same.
    let inner = &world.buyer.client.inner;
    let held = inner.sales.held.lock().unwrap().clone();
    let purchases = world.buyer.client.purchases().await.unwrap();
    TopUpView::new(&policy(LITTLE), &purchases, inner.now().time, held)
}

/// Looks so many seconds from now.
async fn look(world: &World, buyer: &mut Buyer, shop: &dyn Shop, seconds: u64) -> TopUpState {
    let inner = &world.buyer.client.inner;
    let now = inner.now().time + seconds;
    let channels = channels(world);
    buyer.look(inner, shop, &channels, now).await.unwrap();
    view(world).await.state
}

#[tokio::test]
async fn it_buys_once_and_says_that_it_did() {
    let world = World::new().await;
    world.signed(&quote(&world, LITTLE));
    let mut events = world.buyer.client.events();
    let (shop, mut buyer) = (&*world.shop, Buyer::new(policy(LITTLE)));
    assert_eq!(
        look(&world, &mut buyer, shop, 0).await,
        TopUpState::Settling
    );
    assert!(world.shop.counter().asked.is_empty());
    look(&world, &mut buyer, shop, 70).await;
    let bought = world.buyer.purchase().await.unwrap();
    assert!(bought.automatic, "{bought:?}");
    assert_eq!(bought.state, PurchaseState::Paid);
    assert_eq!(view(&world).await.spent_msat, FEE);
    let event = events.recv().await.unwrap().event;
    assert!(
        matches!(
            event,
            Event::PurchaseOrdered {
                automatic: true,
                ..
            }
        ),
        "{event:?}"
    );
    // As after kill -9: what is known is what is stored.
    let mut again = Buyer::new(policy(LITTLE));
    for seconds in [80, 1000, 100_000] {
        for buyer in [&mut buyer, &mut again] {
            let state = look(&world, buyer, shop, seconds).await;
            assert_eq!(state, TopUpState::UnderWay);
        }
    }
    assert_eq!(world.shop.counter().paid, 1);
}

#[tokio::test]
async fn what_came_to_nothing_costs_nothing_and_is_tried_again() {
    let world = World::new().await;
    world.signed(&quote(&world, LITTLE));
    let (shop, mut buyer) = (&*world.shop, Buyer::new(policy(LITTLE)));
    look(&world, &mut buyer, shop, 0).await;
    look(&world, &mut buyer, shop, 70).await;
    let why = "sent back".to_owned();
    world.end_payment(PaymentEnd::Failed { why }).await;
    world.shop.counter().state = PurchaseState::Cancelled;
    world.bring().await.unwrap();
    let mut again = Buyer::new(policy(LITTLE));
    look(&world, &mut again, shop, 80).await;
    assert_eq!(
        look(&world, &mut again, shop, 150).await,
        TopUpState::Refused
    );
    let view = view(&world).await;
    assert_eq!(view.spent_msat, 0);
    assert!(view.note.contains("a note"), "{}", view.note);
    let asked = world.shop.counter().asked.len();
    look(&world, &mut again, shop, 400).await;
    let counter = world.shop.counter();
    assert_eq!(counter.asked[asked].0, method::QUOTE);
}

#[tokio::test]
async fn what_is_not_covered_is_not_bought() {
    let world = World::new().await;
    world.signed(&world.quote());
    let mut buyer = Buyer::new(policy(ASKED));
    look(&world, &mut buyer, &*world.shop, 0).await;
    let state = look(&world, &mut buyer, &*world.shop, 70).await;
    assert_eq!(state, TopUpState::Uncovered);
    assert_eq!(world.buyer.purchase().await, None);
}

#[tokio::test]
async fn nothing_is_asked_in_the_last_days_or_of_a_factory_that_is_left() {
    let world = World::new().await;
    let mut buyer = Buyer::new(policy(LITTLE));
    look(&world, &mut buyer, &*world.shop, 0).await;
    world.tip(calendar(&world.kit).dying_from);
    let state = look(&world, &mut buyer, &*world.shop, 70).await;
    assert_eq!(state, TopUpState::Unfit);
    let world = World::new().await;
    let factory = world.kit.factory_id;
    look(&world, &mut buyer, &*world.shop, 0).await;
    let leaving = world.buyer.client.request_exit(factory, None, None);
    leaving.await.unwrap();
    let state = look(&world, &mut buyer, &*world.shop, 70).await;
    assert_eq!(state, TopUpState::Unfit);
    assert!(world.shop.counter().asked.is_empty());
}

/// A coordinator that takes its time to answer: the user buys something else meanwhile.
#[derive(Debug)]
struct Slow {
    client: SignerClient,
    shop: Arc<TestShop>,
    users: SignedQuote,
    answer: SignedQuote,
}

#[async_trait]
impl Shop for Slow {
    async fn ask(&self, method: &str, params: &Value) -> Result<Value> {
        if method != method::QUOTE {
            return self.shop.ask(method, params).await;
        }
        let (inner, shop) = (&self.client.inner, &*self.shop);
        buy(inner, shop, &self.users, YES, Msat(FEE)).await?;
        Ok(json!(self.answer))
    }

    fn read(&self, invoice: &str) -> Result<InvoiceView> {
        self.shop.read(invoice)
    }

    async fn pay(&self, invoice: &str) -> Result<()> {
        self.shop.pay(invoice).await
    }

    fn stands(&self, leaf: LeafId) -> bool {
        self.shop.stands(leaf)
    }
}

#[tokio::test]
async fn what_the_user_begins_meanwhile_is_the_only_purchase() {
    let world = World::new().await;
    let slow = Slow {
        client: world.buyer.client.clone(),
        shop: Arc::clone(&world.shop),
        answer: world.signed(&quote(&world, LITTLE)),
        users: world.signed(&world.quote()),
    };
    let mut buyer = Buyer::new(policy(LITTLE));
    look(&world, &mut buyer, &slow, 0).await;
    let state = look(&world, &mut buyer, &slow, 70).await;
    assert_eq!(state, TopUpState::UnderWay);
    let bought = world.buyer.client.purchases().await.unwrap();
    assert_eq!((bought.len(), bought[0].automatic), (1, false));
    assert_eq!(world.shop.counter().paid, 1);
}

#[tokio::test]
async fn what_is_not_known_to_be_too_little_is_not_bought_for() {
    let world = World::new().await;
    let (inner, mut buyer) = (&world.buyer.client.inner, Buyer::new(policy(LITTLE)));
    let now = inner.now().time;
    // The connection is gone: nothing can be received, for now.
    let away: Vec<ChannelView> = channels(&world)
        .into_iter()
        .map(|channel| ChannelView {
            usable: false,
            receivable_msat: 0,
            ..channel
        })
        .collect();
    for seconds in [0, 70] {
        let looked = buyer.look(inner, &*world.shop, &away, now + seconds);
        looked.await.unwrap();
        assert_eq!(view(&world).await.state, TopUpState::Unusable);
    }
    // What can be received outside of factories counts.
    let mut both = channels(&world);
    both.push(ChannelView {
        factory: None,
        receivable_msat: Msat(42_000_000).0,
        ..both[0].clone()
    });
    for seconds in [0, 70] {
        let looked = buyer.look(inner, &*world.shop, &both, now + seconds);
        looked.await.unwrap();
        assert_eq!(view(&world).await.state, TopUpState::Enough);
    }
    assert!(world.shop.counter().asked.is_empty());
}
