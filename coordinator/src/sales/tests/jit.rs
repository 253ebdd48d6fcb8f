//! Sales that just-in-time orders pay for.

use channel_host::{JitGround, JitOpening, Msat, jit_capacity, lsp_channel_id};
use factory_tree::ids::ShortChannelId;
use factory_tree::sale::order::PaidBy;

use super::*;
use crate::clock::unix_time;
use crate::store::jit::{self as orders, NewOrder, State};

/// What is to be paid, in thousandths of a satoshi.
const PAYMENT: u64 = 20_000_000;
const SCID: u64 = (29_451 << 40) | (4_815 << 16) | 1;

async fn jit_shop() -> (TestWorld, Tree) {
    shop_of(|config| {
        config.jit.enabled = true;
        config.jit.margin_sat = 20_000;
    })
    .await
}

fn new_order(scid: u64) -> NewOrder {
    NewOrder {
        scid,
        client: member(0).id(),
        payment_msat: Some(PAYMENT),
        min_fee_msat: 3_000_000,
        fee_ppm: 0,
        valid_until: unix_time() + 100,
        min_lifetime: 4_320,
        client_trusts_lsp: false,
        created_at: unix_time(),
    }
}

async fn sell(world: &TestWorld, order: NewOrder) {
    let done = world
        .ctx
        .store
        .write(async |tx| orders::sold(tx, &order).await);
    done.await.unwrap();
}

async fn jit_order(world: &TestWorld, scid: u64) -> orders::OrderRow {
    let read = world.ctx.store.read(async |tx| orders::get(tx, scid).await);
    read.await.unwrap().unwrap()
}

async fn jit_quote(world: &TestWorld, client: ClientId, scid: u64) -> Result<SignedQuote, String> {
    let params =
        json!({ "amount_sat": PAYMENT / 1_000, "paid_by": PaidBy::Jit(ShortChannelId(scid)) });
    let answer = ask(world, client, method::QUOTE, params).await;
    let answer = answer.map_err(|error| why(&error))?;
    Ok(serde_json::from_value(answer).unwrap())
}

/// An order of client 0's for the channel that its just-in-time order is to pay for.
async fn jit_ordered(world: &TestWorld) -> SaleId {
    sell(world, new_order(SCID)).await;
    let client = member(0).id();
    let order = order(&jit_quote(world, client, SCID).await.unwrap(), 1);
    buy(world, client, &order).await.unwrap().sale
}

fn opening(payment: u64) -> JitOpening {
    JitOpening {
        scid: SCID,
        client: PublicKey::from_slice(&member(0).id().0).unwrap(),
        payment: Msat(payment),
        fee: Msat(3_000_000),
        capacity: jit_capacity(payment, 20_000),
        leaf_until: Some(100),
    }
}

async fn asks(world: &TestWorld, payment: u64) -> JitGround {
    ground(&world.ctx, &opening(payment)).await.unwrap()
}

#[tokio::test]
async fn the_opening_fee_is_the_price() {
    let (world, _) = jit_shop().await;
    sell(&world, new_order(SCID)).await;
    let client = member(0).id();
    let signed = jit_quote(&world, client, SCID).await.unwrap();
    let found = read(&signed);
    assert_eq!(found.paid_by, PaidBy::Jit(ShortChannelId(SCID)));
    assert_eq!(found.fee_msat, 0);
    assert_eq!(found.capacity, Amount::from_sat(40_000));
    assert_eq!(found.valid_until, jit_order(&world, SCID).await.valid_until);
    let bought = buy(&world, client, &order(&signed, 1)).await.unwrap();
    assert_eq!(bought.invoice, "");
    // Nothing that is paid to us is for it.
    pay(&world, bought.sale).await;
    let row = row(&world, bought.sale).await;
    let hash = row.order.hash;
    assert_eq!(
        (row.state, row.order.paid_by),
        (PurchaseState::Ordered, PaidBy::Jit(ShortChannelId(SCID)))
    );
    assert_eq!(asked(&world), [Asked::SendBack(hash)]);
}

#[tokio::test]
async fn a_quote_is_for_an_order_that_waits_for_its_payment() {
    let (world, _) = jit_shop().await;
    let client = member(0).id();
    let refused = async |client, scid| jit_quote(&world, client, scid).await.unwrap_err();
    assert_eq!(refused(client, SCID).await, "no_jit_order");
    sell(&world, new_order(SCID)).await;
    assert_eq!(refused(member(1).id(), SCID).await, "no_jit_order");
    let late = NewOrder {
        valid_until: unix_time() - 1,
        ..new_order(2)
    };
    let any_size = NewOrder {
        payment_msat: None,
        ..new_order(3)
    };
    for order in [late, any_size] {
        let scid = order.scid;
        sell(&world, order).await;
        assert_eq!(refused(client, scid).await, "no_jit_order");
    }
    let (world, _) = shop_of(|config| {
        config.jit.enabled = true;
        config.jit.stock_seconds = 0;
    })
    .await;
    sell(&world, new_order(SCID)).await;
    let off = jit_quote(&world, client, SCID).await.unwrap_err();
    assert_eq!(off, "off");
}

#[tokio::test]
async fn the_sale_begins_with_the_payment_and_its_channel_is_the_orders() {
    let (world, _) = jit_shop().await;
    assert_eq!(
        asks(&world, PAYMENT).await,
        JitGround::Chain,
        "nothing was ordered"
    );
    let sale = jit_ordered(&world).await;
    let first = row(&world, sale).await.order;
    let here = JitGround::Leaf(lsp_channel_id(first.leaf_id.0, first.fresh));
    for _ in 0..2 {
        assert_eq!(asks(&world, PAYMENT).await, here);
        let sold = row(&world, sale).await;
        assert_eq!((sold.state, sold.held_until), (PurchaseState::Paid, None));
        let order = jit_order(&world, SCID).await;
        assert_eq!((order.state, order.sale), (State::Opening, Some(sale)));
        assert_eq!((order.capacity_sat, order.onchain_sat), (Some(40_000), 0));
    }
    // It stands: the order's channel is open, and pays for itself.
    let mut sold = row(&world, sale).await;
    let done = world.ctx.store.write(async |tx| {
        let query = "UPDATE sale SET state = 'sold' WHERE sale = ?";
        let done = sqlx::query(query).bind(sale.0.as_slice());
        done.execute(tx).await?;
        Ok(())
    });
    done.await.unwrap();
    sold.state = PurchaseState::Sold;
    payment::settle(&world.ctx, &sold, (0, ""), None)
        .await
        .unwrap();
    assert_eq!(jit_order(&world, SCID).await.state, State::Open);
    assert_eq!(asks(&world, PAYMENT).await, here);
    // Until it is paid for, this client has no other from a stock.
    sell(&world, new_order(2)).await;
    let client = member(0).id();
    let another = async || jit_quote(&world, client, 2).await.unwrap_err();
    assert_eq!(another().await, "jit_unpaid");
    crate::jit::paid(&world.ctx, SCID, 3_000_000).await.unwrap();
    assert!(jit_quote(&world, client, 2).await.is_ok());
}

#[tokio::test]
async fn what_comes_to_nothing_leaves_the_order_to_the_chain() {
    let (world, _) = jit_shop().await;
    let sale = jit_ordered(&world).await;
    asks(&world, PAYMENT).await;
    let sold = row(&world, sale).await;
    payment::cancel(&world.ctx, &sold, PurchaseState::Paid, "no")
        .await
        .unwrap();
    let order = jit_order(&world, SCID).await;
    assert_eq!((order.state, order.sale), (State::Sold, None));
    assert_eq!(asks(&world, PAYMENT).await, JitGround::Chain);
    assert_eq!(asked(&world), [], "nothing is sent back");
}

#[tokio::test]
async fn what_could_not_go_on_over_the_leaf_is_not_sold() {
    for until in [None, Some(1_000_000)] {
        let (world, _) = jit_shop().await;
        let sale = jit_ordered(&world).await;
        let late = JitOpening {
            leaf_until: until,
            ..opening(PAYMENT)
        };
        assert_eq!(ground(&world.ctx, &late).await.unwrap(), JitGround::Chain);
        assert_eq!(row(&world, sale).await.state, PurchaseState::Cancelled);
    }
}

#[tokio::test]
async fn one_order_is_served_once() {
    let (world, _) = jit_shop().await;
    sell(&world, new_order(SCID)).await;
    let client = member(0).id();
    let first = jit_quote(&world, client, SCID).await.unwrap();
    let second = jit_quote(&world, client, SCID).await.unwrap();
    buy(&world, client, &order(&first, 1)).await.unwrap();
    let again = buy(&world, client, &order(&second, 2)).await;
    assert_eq!(again.unwrap_err(), "no_jit_order");
}

#[tokio::test]
async fn more_than_was_ordered_for_is_no_sale() {
    let (world, _) = jit_shop().await;
    let sale = jit_ordered(&world).await;
    assert_eq!(asks(&world, PAYMENT + 1_000).await, JitGround::Chain);
    assert_eq!(row(&world, sale).await.state, PurchaseState::Cancelled);
    assert_eq!(jit_order(&world, SCID).await.state, State::Sold);
}

#[tokio::test]
async fn what_was_begun_for_an_order_is_not_had_for_nothing() {
    let (world, _) = jit_shop().await;
    let sale = jit_ordered(&world).await;
    asks(&world, PAYMENT).await;
    let sold = row(&world, sale).await;
    let quoted = Quote::parse(&sold.order.quote).unwrap();
    let (keys, fresh) = (&world.ctx.keys, sold.order.fresh);
    let terms = order::terms(keys, &quoted, fresh, &sold.order.bought(), &[]);
    let bound = world
        .ctx
        .store
        .write(async |tx| rows::bind(tx, &terms).await);
    bound.await.unwrap();
    payment::cancel(&world.ctx, &sold, PurchaseState::Paid, "no")
        .await
        .unwrap();
    // The same terms without the order: at the usual price.
    let client = member(0).id();
    let plain = read(&quote(&world, client, 30_000).await.unwrap());
    assert_eq!((plain.sale, plain.paid_by), (sale, PaidBy::Invoice));
    assert!(plain.fee_msat > 0);
    let again = read(&jit_quote(&world, client, SCID).await.unwrap());
    assert_eq!((again.sale, again.fee_msat), (sale, 0));
}
