mod jit;
mod lsps1;
mod signing;

use std::sync::Arc;

use bitcoin::Amount;
use bitcoin::secp256k1::{PublicKey, SecretKey};
use channel_host::{LspsService, PaymentHash};
use factory_tree::ids::LeafId;
use factory_tree::params::ExpiryPolicy;
use factory_tree::sale::order::{Order, Purchase, PurchaseState, Quote, SignedQuote, method};
use factory_tree::testing::{TestClient, public, secret};
use factory_tree::tree::Tree;
use serde_json::json;

use super::*;
use crate::config::Config;
use crate::context::ChainState;
use crate::lightning::Asked;
use crate::lsps::Lsps;
use crate::store::factories;
use crate::store::sales::SaleRow;
use crate::testing::TestWorld;

/// Heights at which the payments of these tests expire: far away.
const UNTIL: u32 = 5_000;

fn member(number: u64) -> TestClient {
    TestClient::new(1, number, Amount::from_sat(200_000))
}

/// A factory that is usable, and a coordinator that sells.
async fn shop(change: impl FnOnce(&mut SalesConfig)) -> (TestWorld, Tree) {
    shop_of(|config| change(&mut config.sales)).await
}

async fn shop_of(change: impl FnOnce(&mut Config)) -> (TestWorld, Tree) {
    let mut world = TestWorld::new().await;
    let ctx = Arc::get_mut(&mut world.ctx).expect("nobody else has it yet");
    ctx.config.sales.enabled = true;
    ctx.config.sales.step_seconds = 1;
    change(&mut ctx.config);
    world.ctx.lightning.pretend();
    let tree = world.factory(ExpiryPolicy::ClientRefund, 4).await;
    set_usable(&world, &tree, true).await;
    at(&world, 10);
    (world, tree)
}

async fn set_usable(world: &TestWorld, tree: &Tree, usable: bool) {
    let id = tree.id();
    let set = world
        .ctx
        .store
        .write(async |tx| factories::set_confirmed(tx, id, Some(1), usable).await);
    set.await.unwrap();
}

fn at(world: &TestWorld, height: u32) {
    world.ctx.events.set_height(height);
    world.ctx.chain.send_replace(ChainState::Ready(height));
}

async fn ask(
    world: &TestWorld,
    client: ClientId,
    method: &str,
    params: Value,
) -> Result<Value, RpcError> {
    let peer = PublicKey::from_slice(&client.0).unwrap();
    let Value::Object(params) = params else {
        panic!("parameters go by name");
    };
    Lsps::new(&world.ctx).answer(peer, method, params).await
}

/// The name of the reason why not.
fn why(error: &RpcError) -> String {
    let data = error.data.clone().unwrap_or_default();
    data["reason"].as_str().unwrap_or(&error.message).to_owned()
}

async fn quote(world: &TestWorld, client: ClientId, sat: u64) -> Result<SignedQuote, String> {
    let answer = ask(world, client, method::QUOTE, json!({ "amount_sat": sat })).await;
    let answer = answer.map_err(|error| why(&error))?;
    Ok(serde_json::from_value(answer).unwrap())
}

fn channel_secret(number: u64) -> SecretKey {
    secret(77, "bought", number)
}

fn order(quote: &SignedQuote, number: u64) -> Order {
    Order {
        quote: quote.clone(),
        leaf_id: LeafId::derive(&[u8::try_from(number).unwrap(); 16], 7),
        channel_key: public(&channel_secret(number)),
    }
}

async fn buy(world: &TestWorld, client: ClientId, order: &Order) -> Result<Purchase, String> {
    let params = serde_json::to_value(order).unwrap();
    let answer = ask(world, client, method::BUY, params).await;
    let answer = answer.map_err(|error| why(&error))?;
    Ok(serde_json::from_value(answer).unwrap())
}

fn read(signed: &SignedQuote) -> Quote {
    Quote::parse(&signed.text).unwrap()
}

async fn row(world: &TestWorld, sale: SaleId) -> SaleRow {
    let read = world.ctx.store.read(async |tx| rows::get(tx, sale).await);
    read.await.unwrap().unwrap()
}

/// Client 0's order of 50 000 sat, not paid.
async fn ordered(world: &TestWorld) -> (Order, SaleId) {
    let client = member(0).id();
    let order = order(&quote(world, client, 50_000).await.unwrap(), 1);
    let bought = buy(world, client, &order).await.unwrap();
    assert_eq!(bought.state, PurchaseState::Ordered);
    (order, bought.sale)
}

async fn pay(world: &TestWorld, sale: SaleId) {
    let row = row(world, sale).await;
    let (hash, fee) = (row.order.hash, row.order.fee_msat);
    held(&world.ctx, hash, fee, UNTIL).await.unwrap();
}

// ---- quotes --------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_quote_is_signed_and_says_what_it_costs() {
    let (world, tree) = shop(|_| {}).await;
    let client = member(0).id();
    let signed = quote(&world, client, 50_000).await.unwrap();
    let found = read(&signed);
    let stock = factory_tree::sale::Stock::of_tree(&tree, 0).unwrap();
    assert_eq!((found.client, found.factory), (client, tree.id()));
    assert_eq!((found.stock, found.number), (stock.outpoint(), 1));
    assert_eq!(found.capacity, Amount::from_sat(50_000));
    let left = stock.schedule().dying_from.0 - 10;
    let price = world.ctx.config.sales.price();
    assert_eq!(
        found.fee_msat,
        price.fee_msat(found.capacity, left, Amount::ZERO)
    );
    assert_eq!(found.sign_until.0, stock.schedule().dying_from.0 - 1);
    let node = world.ctx.keys.leaf_keys().node_id();
    let message = SignedQuote::message(&signed.text);
    assert!(channel_host::is_signed_by(
        &message,
        &signed.signature,
        &node
    ));
    let other = quote(&world, client, 50_000).await.unwrap();
    assert_ne!(read(&other).sale, found.sale, "one quote, one sale");
}

#[tokio::test]
async fn what_cannot_be_sold_is_not_quoted() {
    let (world, tree) = shop(|_| {}).await;
    let client = member(0).id();
    let refused = async |client, sat| quote(&world, client, sat).await.unwrap_err();
    assert_eq!(refused(member(9).id(), 50_000).await, "no_factory");
    assert_eq!(refused(client, 1_000).await, "too_small");
    assert_eq!(refused(client, 100_000_000).await, "too_large");
    let other = json!({ "amount_sat": 50_000, "factory": "00".repeat(32) });
    let error = ask(&world, client, method::QUOTE, other).await.unwrap_err();
    assert_eq!(why(&error), "no_factory");
    set_usable(&world, &tree, false).await;
    assert_eq!(refused(client, 50_000).await, "not_usable");
    set_usable(&world, &tree, true).await;
    let dying_from = tree.schedule().dying_from.0;
    at(&world, dying_from - 1);
    assert!(quote(&world, client, 50_000).await.is_ok());
    at(&world, dying_from);
    assert_eq!(refused(client, 50_000).await, "dying");
}

#[tokio::test]
async fn a_factory_that_is_on_the_chain_is_not_called_too_young() {
    let (world, tree) = shop(|_| {}).await;
    let id = tree.id();
    let read = world
        .ctx
        .store
        .read(async |tx| factories::get(tx, id).await);
    let mut row = read.await.unwrap().unwrap();
    assert_eq!(stocks::stands(&row), Ok(()));
    row.usable = false;
    assert_eq!(stocks::stands(&row), Err(NoSale::NotUsable(id)));
    row.spent = true;
    assert_eq!(stocks::stands(&row), Err(NoSale::Published(id)));
}

#[tokio::test]
async fn what_is_off_sells_nothing_and_still_tells() {
    let (mut world, _) = shop(|_| {}).await;
    let (order, sale) = ordered(&world).await;
    Arc::get_mut(&mut world.ctx).unwrap().config.sales.enabled = false;
    let client = member(0).id();
    assert_eq!(quote(&world, client, 50_000).await.unwrap_err(), "off");
    assert!(buy(&world, client, &order).await.is_ok(), "the same again");
    let params = json!({ "sale": sale });
    let told = ask(&world, client, method::PURCHASE, params.clone()).await;
    assert_eq!(told.unwrap()["state"], "ordered");
    let stranger = ask(&world, member(1).id(), method::PURCHASE, params).await;
    assert_eq!(why(&stranger.unwrap_err()), "unknown");
}

#[tokio::test]
async fn prices_that_were_set_hold_for_the_next_quote() {
    let (world, _) = shop(|_| {}).await;
    let (one, two) = (member(0).id(), member(1).id());
    let fee = async |client| read(&quote(&world, client, 50_000).await.unwrap()).fee_msat;
    let set = async |client: Option<ClientId>, sat| {
        let over = PriceOverride {
            min_fee_sat: Some(sat),
            ..PriceOverride::default()
        };
        let store = &world.ctx.store;
        let set = store.write(async |tx| store::prices::set(tx, client, &over).await);
        set.await.unwrap();
    };
    set(None, 70_000).await;
    set(None, 80_000).await;
    set(Some(two), 90_000).await;
    assert_eq!((fee(one).await, fee(two).await), (80_000_000, 90_000_000));
    let store = &world.ctx.store;
    let all = store.read(async |tx| store::prices::all(tx).await).await;
    assert_eq!(all.unwrap().len(), 2, "one for everybody");
    let unset = store.write(async |tx| store::prices::unset(tx, None).await);
    assert!(unset.await.unwrap());
    assert!(fee(one).await < 80_000_000);
}

#[tokio::test]
async fn a_quote_has_its_share_of_what_the_chain_would_take_up_to_the_most() {
    let (world, _) = shop(|config| {
        config.base_fee_sat = 500;
        config.fee_ppm = 0;
        config.fee_ppm_per_day = 0;
        config.min_fee_sat = 1;
        config.onchain_ppm = 250_000;
    })
    .await;
    let client = member(0).id();
    let fee = async || read(&quote(&world, client, 50_000).await.unwrap()).fee_msat;
    // A quarter of 320 virtual bytes: 167 with two outputs and an anchor, 153 of the child.
    assert_eq!(fee().await, 500_000 + 80_000 * 2, "at 2 sat/vB");
    let rate = bitcoin::FeeRate::from_sat_per_vb_u32(20);
    world.chain.set_feerate(rate);
    assert_eq!(fee().await, 500_000 + 80_000 * 20);
    let own = PriceOverride {
        max_fee_sat: Some(1_800),
        ..PriceOverride::default()
    };
    let store = &world.ctx.store;
    let set = store.write(async |tx| store::prices::set(tx, Some(client), &own).await);
    set.await.unwrap();
    assert_eq!(fee().await, 1_800_000);
}

// ---- orders --------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn the_same_order_again_is_answered_with_the_same() {
    let (world, _) = shop(|_| {}).await;
    let client = member(0).id();
    let (first, sale) = ordered(&world).await;
    let once = row(&world, sale).await;
    let again = buy(&world, client, &first).await.unwrap();
    assert_eq!(again.invoice, once.order.invoice);
    assert_eq!(row(&world, sale).await.order.fresh, once.order.fresh);
    // The same quote for another leaf is another order.
    let other = order(&first.quote, 2);
    assert_eq!(buy(&world, client, &other).await.unwrap_err(), "taken");
    assert_eq!(
        once.order.hash,
        world.ctx.keys.sale_hash(sale, &first.quote.text),
        "the preimage follows from the seed"
    );
}

#[tokio::test]
async fn only_our_own_quote_to_this_client_is_taken() {
    let (world, _) = shop(|_| {}).await;
    let client = member(0).id();
    let signed = quote(&world, client, 50_000).await.unwrap();
    let refused = async |client, quote: &SignedQuote| {
        buy(&world, client, &order(quote, 1)).await.unwrap_err()
    };
    assert_eq!(refused(member(1).id(), &signed).await, "not_ours");
    let cheaper = Quote {
        fee_msat: 1,
        ..read(&signed)
    };
    let forged = SignedQuote {
        text: cheaper.text(),
        signature: signed.signature.clone(),
    };
    assert_eq!(refused(client, &forged).await, "not_ours");
    let old = Quote {
        valid_until: 1,
        ..read(&signed)
    };
    let text = old.text();
    let signature = world
        .ctx
        .keys
        .leaf_keys()
        .sign(&SignedQuote::message(&text));
    let old = SignedQuote { text, signature };
    assert_eq!(refused(client, &old).await, "expired");
}

#[tokio::test]
async fn a_leaf_id_or_key_that_served_is_refused() {
    let (world, _) = shop(|_| {}).await;
    let client = member(0).id();
    let (first, _) = ordered(&world).await;
    let second = quote(&world, client, 60_000).await.unwrap();
    let fresh = order(&second, 2);
    let old_leaf = Order {
        leaf_id: first.leaf_id,
        ..fresh.clone()
    };
    let old_key = Order {
        channel_key: first.channel_key,
        ..fresh.clone()
    };
    let of_factory = Order {
        leaf_id: member(0).leaf_id,
        ..fresh.clone()
    };
    for order in [old_leaf, old_key, of_factory] {
        assert_eq!(buy(&world, client, &order).await.unwrap_err(), "used");
    }
    assert!(buy(&world, client, &fresh).await.is_ok());
}

#[tokio::test]
async fn open_orders_have_a_limit_and_those_nobody_pays_expire() {
    let (world, _) = shop(|sales| sales.max_open_orders = 1).await;
    let client = member(0).id();
    let (_, sale) = ordered(&world).await;
    let signed = quote(&world, client, 60_000).await.unwrap();
    let next = order(&signed, 2);
    assert_eq!(
        buy(&world, client, &next).await.unwrap_err(),
        "too_many_orders"
    );
    payment::expire(&world.ctx).await.unwrap();
    assert_eq!(row(&world, sale).await.state, PurchaseState::Ordered);
    let params = json!({ "sale": sale });
    let cancelled = ask(&world, client, method::CANCEL, params).await.unwrap();
    assert_eq!(cancelled["state"], "cancelled");
    let bought = buy(&world, client, &next).await.unwrap();
    // As if its quote had been over.
    let old = world.ctx.store.write(async |tx| {
        sqlx::query(
            "UPDATE sale SET quote = replace(quote, '\"valid_until\":', '\"valid_until\":0')",
        )
        .execute(&mut *tx)
        .await?;
        Ok(())
    });
    old.await.unwrap();
    payment::expire(&world.ctx).await.unwrap();
    assert_eq!(
        row(&world, bought.sale).await.state,
        PurchaseState::Cancelled
    );
}

#[tokio::test]
async fn who_orders_and_gives_up_all_day_has_to_wait() {
    let (world, _) = shop(|_| {}).await;
    let attempt = async |client: ClientId, number: u64| {
        let signed = quote(&world, client, 50_000).await.unwrap();
        buy(&world, client, &order(&signed, number)).await
    };
    let give_up = async |client: ClientId, sale: SaleId| {
        let params = json!({ "sale": sale });
        ask(&world, client, method::CANCEL, params).await.unwrap();
    };
    let (one, two) = (member(0).id(), member(1).id());
    for number in 1..=50 {
        let bought = attempt(one, number).await.unwrap();
        give_up(one, bought.sale).await;
    }
    assert_eq!(attempt(one, 51).await.unwrap_err(), "too_many_failed");
    let other = attempt(two, 52).await.unwrap();
    give_up(two, other.sale).await;
    let tomorrow = world.ctx.store.write(async |tx| {
        let query = sqlx::query("UPDATE sale SET ordered_at = ordered_at - 86401");
        Ok(query.execute(tx).await.map(drop)?)
    });
    tomorrow.await.unwrap();
    assert!(attempt(one, 53).await.is_ok());
}

// ---- payments ------------------------------------------------------------------------------------------------------

fn asked(world: &TestWorld) -> Vec<Asked> {
    world.ctx.lightning.asked.lock().unwrap().clone()
}

#[tokio::test]
async fn a_payment_nobody_ordered_goes_back() {
    let (world, _) = shop(|_| {}).await;
    let hash = PaymentHash([4; 32]);
    held(&world.ctx, hash, 1_000, UNTIL).await.unwrap();
    assert_eq!(asked(&world), [Asked::SendBack(hash)]);
}

#[tokio::test]
async fn a_payment_that_is_too_small_goes_back_and_ends_its_order() {
    let (world, _) = shop(|_| {}).await;
    let (_, sale) = ordered(&world).await;
    let order = row(&world, sale).await.order;
    let less = order.fee_msat - 1;
    held(&world.ctx, order.hash, less, UNTIL).await.unwrap();
    assert_eq!(row(&world, sale).await.state, PurchaseState::Cancelled);
    assert_eq!(asked(&world), [Asked::SendBack(order.hash)]);
}

#[tokio::test]
async fn of_two_orders_of_one_place_the_first_that_is_paid_has_it() {
    let (world, _) = shop(|_| {}).await;
    let mate = member(1).id();
    let (_, first) = ordered(&world).await;
    let signed = quote(&world, mate, 30_000).await.unwrap();
    let second = buy(&world, mate, &order(&signed, 2)).await.unwrap().sale;
    pay(&world, second).await;
    assert_eq!(row(&world, second).await.state, PurchaseState::Paid);
    pay(&world, first).await;
    assert_eq!(row(&world, first).await.state, PurchaseState::Cancelled);
    let hash = row(&world, first).await.order.hash;
    assert_eq!(asked(&world), [Asked::SendBack(hash)]);
    // Told again, nothing changes; and the stock is not quoted from meanwhile.
    pay(&world, second).await;
    assert_eq!(row(&world, second).await.state, PurchaseState::Paid);
    assert_eq!(quote(&world, mate, 30_000).await.unwrap_err(), "busy");
    // Told after a crash that came before it went back, it goes back again.
    pay(&world, first).await;
    assert_eq!(asked(&world).len(), 2);
}

/// A buyer that says nothing would keep the stock waiting for as long.
#[tokio::test]
async fn a_payment_that_expires_late_is_held_no_longer_than_others() {
    let (world, tree) = shop(|_| {}).await;
    let (_, sale) = ordered(&world).await;
    pay(&world, sale).await;
    let known = known(&world.ctx, tree.id(), 0).await.unwrap().unwrap();
    let paid = row(&world, sale).await;
    let due = payment::release_at(&world.ctx, paid.held_until.unwrap(), &known);
    assert_eq!(due, 10 + world.ctx.config.sales.hold_blocks);
    // One that expires sooner is not counted on for longer.
    let (world, _) = shop(|_| {}).await;
    let (_, sale) = ordered(&world).await;
    let order = row(&world, sale).await.order;
    let soon = paid.held_until.unwrap() - 1;
    held(&world.ctx, order.hash, order.fee_msat, soon)
        .await
        .unwrap();
    assert_eq!(row(&world, sale).await.held_until, Some(soon));
}

#[tokio::test]
async fn an_order_that_cannot_be_read_is_in_no_other_ones_way() {
    let (mut world, _) = shop(|_| {}).await;
    let (_, damaged) = ordered(&world).await;
    let mate = member(1).id();
    let signed = quote(&world, mate, 30_000).await.unwrap();
    let other = buy(&world, mate, &order(&signed, 2)).await.unwrap().sale;
    let done = world.ctx.store.write(async |tx| {
        let old = "UPDATE sale SET quote = replace(quote, '\"valid_until\":', '\"valid_until\":0')";
        sqlx::query(old).execute(&mut *tx).await?;
        let query = sqlx::query("UPDATE sale SET fresh = x'00' WHERE sale = ?");
        query.bind(damaged.0.as_slice()).execute(&mut *tx).await?;
        Ok(())
    });
    done.await.unwrap();
    // However often it is looked at.
    for _ in 0..3 {
        payment::expire(&world.ctx).await.unwrap();
    }
    assert_eq!(row(&world, other).await.state, PurchaseState::Cancelled);
    let told = world.happened();
    let is_alarm = |event: &&Event| matches!(event, Event::StoreFailed { .. });
    assert_eq!(told.iter().filter(is_alarm).count(), 1, "{told:?}");
}

#[tokio::test]
async fn a_payment_that_comes_in_the_dying_days_goes_back() {
    let (world, tree) = shop(|_| {}).await;
    let (_, sale) = ordered(&world).await;
    at(&world, tree.schedule().dying_from.0);
    pay(&world, sale).await;
    assert_eq!(row(&world, sale).await.state, PurchaseState::Cancelled);
    assert_eq!(asked(&world).len(), 1);
}

#[test]
fn refusals_name_themselves() {
    let error = RpcError::from(NoSale::TooSmall {
        least: Amount::from_sat(7),
    });
    assert_eq!(
        error.data,
        Some(json!({ "reason": "too_small", "min_sat": 7 }))
    );
}
