//! Orders that the next factory serves.

use super::*;
use crate::store::{clients, ladder};

/// Blocks until the next factory may be used, and for which it can be had.
const SOON_ENOUGH: u16 = 400;

/// A coordinator that sells and whose ladder has begun; its client has had a session.
async fn ladder_shop() -> TestWorld {
    let mut world = shop(2_000_000, |config| config.min_confirmations = 0).await;
    let ctx = Arc::get_mut(&mut world.ctx).unwrap();
    ctx.config.ladder.enabled = true;
    let height = world.ctx.height();
    let begun = world.ctx.store.write(async |tx| {
        clients::seen(tx, &[(buyer(1), String::new())], height).await?;
        ladder::begin(tx, height).await
    });
    begun.await.unwrap();
    world
}

async fn ordered_with(world: &TestWorld, client: ClientId, changes: Value) -> OrderRow {
    let mut wish = wish();
    let (Value::Object(all), Value::Object(changes)) = (&mut wish, changes) else {
        panic!("objects");
    };
    all.insert("funding_confirms_within_blocks".into(), json!(SOON_ENOUGH));
    all.extend(changes);
    let answer = ask(world, client, "lsps1.create_order", wish).await;
    row(world, answer.unwrap()["order_id"].as_str().unwrap()).await
}

#[tokio::test]
async fn what_the_next_factory_can_serve_comes_with_it_and_takes_no_funding() {
    let world = ladder_shop().await;
    let ours = ordered_with(&world, buyer(1), json!({})).await.order;
    assert!(ours.at_birth);
    // 0.2 % of the capacity, and 0.01 % for each day that a factory lasts, though ten were asked for; no funding.
    let factory = world
        .ctx
        .config
        .factory_params(&Default::default())
        .unwrap();
    let days = u64::from(factory.active + factory.dying).div_ceil(144);
    assert_eq!(ours.fee_sat, BASE + 1_000 + 50 * days);
    // Held until tomorrow's birth may be used, and not only for as long as others are.
    let blocks = ours.invoice.rsplit(' ').next().unwrap();
    let blocks: u32 = blocks.parse().unwrap();
    let config = &world.ctx.config;
    assert!(blocks > config.ladder.spacing + config.lsps1.hold_blocks);
    assert!(blocks <= 1_008);
    let says = async |client, id: &str| {
        let params = json!({ "order_id": id });
        let answer = ask(&world, client, "lsps1.get_order", params).await;
        answer.unwrap()["superscalar_next_factory"].clone()
    };
    assert_eq!(says(buyer(1), &ours.id).await, json!(true));

    for (client, changes) in [
        (buyer(2), json!({})),
        (buyer(1), json!({ "announce_channel": true })),
        (buyer(1), json!({ "funding_confirms_within_blocks": 100 })),
        (buyer(1), json!({ "channel_expiry_blocks": 12_960 })),
        (buyer(1), json!({ "required_channel_confirmations": 0 })),
    ] {
        let order = ordered_with(&world, client, changes.clone()).await.order;
        assert!(!order.at_birth, "{changes}");
        assert_eq!(says(client, &order.id).await, Value::Null);
        set(&world, "state = 'failed'").await;
    }
}

#[tokio::test]
async fn a_payment_waits_for_a_factory_and_goes_back_when_none_comes_in_time() {
    let world = ladder_shop().await;
    let id = ordered_with(&world, buyer(1), json!({})).await.order.id;
    pay(&world, &id).await;
    is_here(&world, true);
    look(&world).await;
    assert_eq!(opens(&world), [], "nothing is opened on the chain for it");
    assert_eq!(states(&world, &id).await, pair("CREATED", "HOLD"));
    assert_eq!(asked(&world), []);
    let waiting = world
        .ctx
        .store
        .read(async |tx| rows::for_birth(tx).await)
        .await
        .unwrap();
    assert_eq!(waiting.len(), 1);

    // It has a place in a ceremony of which nothing comes: the next one is for it.
    let ceremony = factory_tree::ids::CeremonyId([9; 16]);
    let ids = [id.clone()];
    let seated = world
        .ctx
        .store
        .write(async |tx| rows::seated(tx, &ids, ceremony).await);
    seated.await.unwrap();
    // No order has two places: a birth that would give it another one is not begun.
    let again = world
        .ctx
        .store
        .write(async |tx| rows::seated(tx, &ids, ceremony).await);
    assert!(again.await.is_err());
    look(&world).await;
    assert_eq!(row(&world, &id).await.ceremony, None);

    let needed = world.ctx.lightning.claim_time() + crate::sales::MARGIN;
    world.chain.mine_to(UNTIL - needed - 1);
    world.follow().await;
    look(&world).await;
    assert_eq!(states(&world, &id).await, pair("CREATED", "HOLD"));
    world.chain.mine(&[]);
    world.follow().await;
    look(&world).await;
    assert_eq!(states(&world, &id).await, pair("FAILED", "REFUNDED"));
    let hash = row(&world, &id).await.order.hash;
    assert_eq!(asked(&world), [Asked::SendBack(hash)]);
}
