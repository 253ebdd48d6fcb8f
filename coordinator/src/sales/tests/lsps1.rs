//! Sales that orders of a channel (LSPS1) pay for.

use bitcoin::{OutPoint, TxOut};
use channel_host::{JitOpening, Msat};
use factory_tree::sale::order::PaidBy;
use factory_tree::testing::funding_tx;

use super::*;
use crate::clock::unix_time;
use crate::lsps1;
use crate::store::lsps1::{self as orders, State};

const ID: &str = "b7a1";
const SAT: u64 = 40_000;
/// Height at which payments expire that leave time enough.
const UNTIL: u32 = 1_000;
const LEAF: &str = "0301e0480b374b32851a9462db29dc19fe830a7f7d7a88b81612b9d42099c0ae:1";

/// A shop whose wallet has the coins for one channel, too.
async fn lsps1_shop() -> (TestWorld, Tree) {
    let (world, tree) = shop_of(|config| {
        config.lsps1.enabled = true;
        config.lsps1.wait_seconds = 100;
        config.jit.enabled = true;
        config.jit.max_payment_sat = 1_000_000;
    })
    .await;
    let address = world.ctx.wallet.new_address().await.unwrap();
    let output = TxOut {
        value: Amount::from_sat(1_000_000),
        script_pubkey: address.script_pubkey(),
    };
    world.chain.mine(&[funding_tx(1, output)]);
    world.follow().await;
    // The follower knows nothing of its funding.
    set_usable(&world, &tree, true).await;
    at(&world, 10);
    world.ctx.lightning.pretended.lock().unwrap().here = true;
    (world, tree)
}

fn new_order(id: &str) -> orders::Order {
    orders::Order {
        id: id.to_owned(),
        client: member(0).id(),
        lsp_balance_sat: SAT,
        confirmations: 0,
        confirm_within: 6,
        expiry_blocks: 4_000,
        announce: false,
        at_birth: false,
        fee_sat: 2_000,
        hash: hash(id),
        invoice: "an invoice".to_owned(),
        created_at: unix_time(),
        valid_until: unix_time() + 100,
    }
}

fn hash(id: &str) -> PaymentHash {
    PaymentHash([id.as_bytes()[3]; 32])
}

async fn sell(world: &TestWorld, order: &orders::Order) {
    let done = world
        .ctx
        .store
        .write(async |tx| orders::insert(tx, order, 0).await);
    done.await.unwrap();
}

async fn order_row(world: &TestWorld) -> orders::OrderRow {
    let read = world.ctx.store.read(async |tx| orders::get(tx, ID).await);
    read.await.unwrap().unwrap()
}

async fn quote_for(world: &TestWorld, client: ClientId, id: &str) -> Result<SignedQuote, String> {
    let params = json!({ "amount_sat": 1, "paid_by": PaidBy::Lsps1(id.to_owned()) });
    let answer = ask(world, client, method::QUOTE, params).await;
    let answer = answer.map_err(|error| why(&error))?;
    Ok(serde_json::from_value(answer).unwrap())
}

/// A sale that client 0 has ordered, for its order of a channel.
async fn ordered_for(world: &TestWorld) -> SaleId {
    sell(world, &new_order(ID)).await;
    let client = member(0).id();
    let order = order(&quote_for(world, client, ID).await.unwrap(), 1);
    buy(world, client, &order).await.unwrap().sale
}

async fn pays(world: &TestWorld, until: u32) {
    let paid = lsps1::held(&world.ctx, hash(ID), 2_000_000, until).await;
    assert!(paid.unwrap());
    lsps1::look(&world.ctx).await.unwrap();
}

/// Blocks before a payment expires at which it goes back.
fn needed(tree: &Tree) -> u32 {
    let stock = factory_tree::sale::Stock::of_tree(tree, 0).unwrap();
    stock.schedule().exit_delay.0 + channel_host::CLAIM_BUFFER + MARGIN
}

/// Its payment is here, or told again.
async fn look(world: &TestWorld) {
    pays(world, UNTIL).await;
}

fn opens(world: &TestWorld) -> usize {
    world.ctx.lightning.pretended.lock().unwrap().opened.len()
}

async fn set(world: &TestWorld, query: &'static str) {
    let done = world.ctx.store.write(async |tx| {
        sqlx::query(query).execute(tx).await?;
        Ok(())
    });
    done.await.unwrap();
}

async fn cancelled(world: &TestWorld, sale: SaleId) {
    let sold = row(world, sale).await;
    let done = payment::cancel(&world.ctx, &sold, PurchaseState::Paid, "no").await;
    assert!(done.unwrap());
}

/// As if it were complete, and its channel stood.
async fn stands(world: &TestWorld, sale: SaleId) {
    set(world, "UPDATE sale SET state = 'sold'").await;
    let sold = row(world, sale).await;
    let leaf = LEAF.parse().unwrap();
    for _ in 0..2 {
        payment::settle(&world.ctx, &sold, (0, ""), Some(leaf))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn the_orders_price_is_the_price() {
    let (world, _) = lsps1_shop().await;
    sell(&world, &new_order(ID)).await;
    let client = member(0).id();
    let signed = quote_for(&world, client, ID).await.unwrap();
    let found = read(&signed);
    assert_eq!(found.paid_by, PaidBy::Lsps1(ID.to_owned()));
    assert_eq!((found.fee_msat, found.asked.to_sat()), (0, SAT));
    assert!(found.capacity.to_sat() >= SAT);
    assert_eq!(found.valid_until, order_row(&world).await.order.valid_until);
    let bought = buy(&world, client, &order(&signed, 1)).await.unwrap();
    assert_eq!(bought.invoice, "");
    // Nothing that is paid for the sale itself is for it.
    pay(&world, bought.sale).await;
    let row = row(&world, bought.sale).await;
    assert_eq!(row.state, PurchaseState::Ordered);
    assert_eq!(asked(&world), [Asked::SendBack(row.order.hash)]);
}

#[tokio::test]
async fn only_what_a_stock_can_be_is_quoted() {
    let (world, tree) = lsps1_shop().await;
    let client = member(0).id();
    let refused = async |client, id| quote_for(&world, client, id).await.unwrap_err();
    assert_eq!(refused(client, ID).await, "no_lsps1_order");
    sell(&world, &new_order(ID)).await;
    assert_eq!(refused(member(1).id(), ID).await, "no_lsps1_order");
    let expiry = factory_tree::sale::Stock::of_tree(&tree, 0)
        .unwrap()
        .expiry();
    let held = needed(&tree) + world.ctx.config.lsps1.hold_blocks;
    let lives = expiry.0 - 10 - held;
    let with = |number: u8, change: fn(&mut orders::Order)| {
        let mut order = new_order(&format!("b7a{number}"));
        change(&mut order);
        order
    };
    let mut long = with(2, |_| {});
    long.expiry_blocks = lives / 11 * 10 + 10;
    let mut lasting = with(3, |_| {});
    lasting.expiry_blocks = lives / 11 * 10;
    for (order, expected) in [
        (long, Some("ends")),
        (lasting, None),
        (with(4, |order| order.announce = true), Some("announced")),
        (
            with(5, |order| order.valid_until = 0),
            Some("no_lsps1_order"),
        ),
        // What comes with a factory does not come twice.
        (
            with(8, |order| order.at_birth = true),
            Some("no_lsps1_order"),
        ),
        // A month for the price of a day.
        (with(9, |order| order.expiry_blocks = 144), Some("short")),
        (
            with(6, |order| order.lsp_balance_sat = 100_000_000),
            Some("too_large"),
        ),
        (
            with(7, |order| order.lsp_balance_sat = 1_000),
            Some("too_small"),
        ),
    ] {
        sell(&world, &order).await;
        let found = quote_for(&world, client, &order.id).await;
        assert_eq!(found.err().as_deref(), expected, "{}", order.id);
    }
    look(&world).await;
    assert_eq!(refused(client, ID).await, "no_lsps1_order", "it is paid");
}

#[tokio::test]
async fn the_sale_begins_with_the_payment_and_its_channel_is_the_orders() {
    let (world, _) = lsps1_shop().await;
    let sale = ordered_for(&world).await;
    for _ in 0..2 {
        look(&world).await;
        let sold = row(&world, sale).await;
        assert_eq!(sold.state, PurchaseState::Paid);
        // What an ordinary channel would still need is left.
        assert!(sold.held_until.unwrap() < UNTIL);
        assert_eq!(order_row(&world).await.state, State::Held);
    }
    // However long the sale takes, the order waits.
    set(&world, "UPDATE lsps1_order SET held_at = 0").await;
    look(&world).await;
    assert_eq!((asked(&world), opens(&world)), (vec![], 0));
    let owed = world
        .ctx
        .store
        .read(async |tx| orders::owed_sat(tx, &[]).await);
    assert_eq!(owed.await.unwrap(), SAT, "coins for the other channel");
    stands(&world, sale).await;
    let found = order_row(&world).await;
    let leaf: OutPoint = LEAF.parse().unwrap();
    assert_eq!((found.state, found.funding), (State::Open, Some(leaf)));
    assert_eq!((found.onchain_sat, found.opens), (0, 0));
    let owed = world
        .ctx
        .store
        .read(async |tx| orders::owed_sat(tx, &[]).await);
    assert_eq!(owed.await.unwrap(), 0);
    look(&world).await;
    let preimage = *world.ctx.keys.lsps1_preimage(ID);
    assert_eq!(asked(&world), [Asked::Claim(preimage)]);
    for _ in 0..2 {
        lsps1::received(&world.ctx, hash(ID), 2_000_000)
            .await
            .unwrap();
        payment::held(&world.ctx, row(&world, sale).await.order.hash, 0, UNTIL)
            .await
            .unwrap();
    }
    let (order, sold) = (order_row(&world).await, row(&world, sale).await);
    assert_eq!((order.state, order.taken_msat), (State::Paid, 2_000_000));
    assert_eq!((sold.state, sold.taken_msat), (PurchaseState::Settled, 0));
    let params = json!({ "order_id": ID });
    let told = ask(&world, member(0).id(), "lsps1.get_order", params)
        .await
        .unwrap();
    assert_eq!(told["order_state"], "COMPLETED");
    assert_eq!(told["channel"]["funding_outpoint"], LEAF);
}

/// If nothing comes of the sale, the order's channel needs coins; once it is complete, it needs none.
#[tokio::test]
async fn the_coins_of_an_order_are_kept_while_its_sale_is_under_way_and_no_longer() {
    let (world, _) = lsps1_shop().await;
    let sale = ordered_for(&world).await;
    let client = member(0).id();
    let largest = async || {
        let told = ask(&world, client, "lsps2.get_info", json!({})).await;
        let told = told.unwrap();
        let most = &told["opening_fee_params_menu"][0]["max_payment_size_msat"];
        most.as_str().unwrap().parse::<u64>().unwrap()
    };
    let refused = async || {
        let opening = JitOpening {
            scid: 1,
            client: PublicKey::from_slice(&client.0).unwrap(),
            payment: Msat(20_000_000),
            fee: Msat(30_000_000),
            capacity: Amount::from_sat(970_000),
            leaf_until: None,
        };
        let opened = crate::jit::open(&world.ctx, opening).await;
        opened.unwrap().unwrap_err()
    };
    let owed = async || {
        let read = world
            .ctx
            .store
            .read(async |tx| orders::owed_sat(tx, &[]).await);
        read.await.unwrap()
    };
    let most = largest().await;
    look(&world).await;
    assert_eq!(row(&world, sale).await.state, PurchaseState::Paid);
    assert!(largest().await < most);
    let why = refused().await;
    assert!(why.contains("has not the coins"), "{why}");
    assert_eq!(owed().await, SAT);
    set(&world, "UPDATE sale SET state = 'sold'").await;
    assert_eq!(order_row(&world).await.state, State::Held);
    assert_eq!(largest().await, most);
    let why = refused().await;
    assert!(why.contains("not in the books"), "{why}");
    assert_eq!(owed().await, 0);
}

#[tokio::test]
async fn what_comes_to_nothing_leaves_the_order_to_the_chain() {
    let (world, _) = lsps1_shop().await;
    let sale = ordered_for(&world).await;
    look(&world).await;
    // The sale has taken all the time that a client has to come.
    set(&world, "UPDATE lsps1_order SET held_at = 0").await;
    cancelled(&world, sale).await;
    assert!(order_row(&world).await.held_at.unwrap() > 0);
    look(&world).await;
    assert_eq!((asked(&world), opens(&world)), (vec![], 1));
    // And once more only.
    look(&world).await;
    assert_eq!(opens(&world), 1);
    // What was sold by then would be a second channel.
    let client = member(0).id();
    let again = quote_for(&world, client, ID).await;
    assert_eq!(again.unwrap_err(), "no_lsps1_order");
}

#[tokio::test]
async fn a_sale_that_cannot_go_on_is_waited_for_as_long_as_its_payment_is_held() {
    let (world, _) = lsps1_shop().await;
    let sale = ordered_for(&world).await;
    look(&world).await;
    let due = lsps1::release_at(&world.ctx, &order_row(&world).await);
    at(&world, due - 1);
    look(&world).await;
    assert_eq!(row(&world, sale).await.state, PurchaseState::Paid);
    at(&world, due);
    // After a start somebody may yet.
    look(&world).await;
    assert_eq!(row(&world, sale).await.state, PurchaseState::Paid);
    world.ctx.sales.looked.store(true, Ordering::Release);
    // Nobody drives it; while somebody does, that is who ends it.
    let mailbox = world.ctx.sales.register(sale);
    look(&world).await;
    assert_eq!(row(&world, sale).await.state, PurchaseState::Paid);
    world.ctx.sales.unregister(sale);
    drop(mailbox);
    look(&world).await;
    assert_eq!(row(&world, sale).await.state, PurchaseState::Cancelled);
    assert_eq!(order_row(&world).await.state, State::Failed);
    assert_eq!(asked(&world), [Asked::SendBack(hash(ID))]);
}

#[tokio::test]
async fn a_complete_sale_that_cannot_go_on_is_paid_for_when_that_can_wait_no_longer() {
    for known in [true, false] {
        let (world, _) = lsps1_shop().await;
        let sale = ordered_for(&world).await;
        look(&world).await;
        set(&world, "UPDATE sale SET state = 'sold'").await;
        world.ctx.sales.looked.store(true, Ordering::Release);
        let leaf: OutPoint = LEAF.parse().unwrap();
        world.ctx.lightning.pretended.lock().unwrap().outpoint = known.then_some(leaf);
        let due = lsps1::release_at(&world.ctx, &order_row(&world).await);
        at(&world, due - 1);
        look(&world).await;
        assert_eq!(order_row(&world).await.state, State::Held);
        at(&world, due);
        // While somebody drives it, that is who ends it.
        let mailbox = world.ctx.sales.register(sale);
        look(&world).await;
        assert_eq!(order_row(&world).await.state, State::Held);
        world.ctx.sales.unregister(sale);
        drop(mailbox);
        lsps1::look(&world.ctx).await.unwrap();
        lsps1::look(&world.ctx).await.unwrap();
        let found = order_row(&world).await;
        if known {
            assert_eq!((found.state, found.funding), (State::Open, Some(leaf)));
            let preimage = *world.ctx.keys.lsps1_preimage(ID);
            assert_eq!(asked(&world), [Asked::Claim(preimage)]);
            assert_eq!(row(&world, sale).await.state, PurchaseState::Settled);
        } else {
            assert_eq!(found.state, State::Failed);
            assert_eq!(asked(&world), [Asked::SendBack(hash(ID))]);
        }
    }
}

#[tokio::test]
async fn what_leaves_no_time_for_the_chain_is_not_begun() {
    let (world, tree) = lsps1_shop().await;
    let sale = ordered_for(&world).await;
    pays(&world, 10 + needed(&tree) + 6).await;
    assert_eq!(row(&world, sale).await.state, PurchaseState::Cancelled);
    assert_eq!(opens(&world), 1, "an ordinary one");
}

#[tokio::test]
async fn what_would_end_before_the_order_allows_is_not_begun() {
    let (world, _) = lsps1_shop().await;
    let sale = ordered_for(&world).await;
    // As if many blocks had come since it was quoted.
    set(&world, "UPDATE lsps1_order SET expiry_blocks = 100000").await;
    look(&world).await;
    assert_eq!(row(&world, sale).await.state, PurchaseState::Cancelled);
    assert_eq!(opens(&world), 1);
}

#[tokio::test]
async fn one_order_has_one_sale() {
    let (world, _) = lsps1_shop().await;
    sell(&world, &new_order(ID)).await;
    let client = member(0).id();
    let first = quote_for(&world, client, ID).await.unwrap();
    let second = quote_for(&world, client, ID).await.unwrap();
    let bought = buy(&world, client, &order(&first, 1)).await.unwrap();
    let again = buy(&world, client, &order(&second, 2)).await;
    assert_eq!(again.unwrap_err(), "no_lsps1_order");
    // After that came to nothing, and before it is paid, there may be another.
    let sold = row(&world, bought.sale).await;
    payment::cancel(&world.ctx, &sold, PurchaseState::Ordered, "no")
        .await
        .unwrap();
    assert!(buy(&world, client, &order(&second, 2)).await.is_ok());
    let third = quote_for(&world, client, ID).await.unwrap();
    look(&world).await;
    let late = buy(&world, client, &order(&third, 3)).await;
    assert_eq!(late.unwrap_err(), "no_lsps1_order", "it is paid");
}
