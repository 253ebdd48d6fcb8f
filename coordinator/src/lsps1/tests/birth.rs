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

#[tokio::test]
async fn no_more_places_are_paid_for_than_the_next_birth_has_coins() {
    let world = ladder_shop().await;
    let wish = json!({ "lsp_balance_sat": "900000" });
    let mut ids = Vec::new();
    for _ in 0..3 {
        let order = ordered_with(&world, buyer(1), wish.clone()).await.order;
        assert!(order.at_birth, "nobody has paid yet");
        ids.push(order.id);
    }
    for id in &ids {
        pay(&world, id).await;
    }
    // Of 2 000 000 sat.
    for (id, state) in ids.iter().zip([State::Held, State::Held, State::Failed]) {
        assert_eq!(row(&world, id).await.state, state);
    }
    let hash = row(&world, &ids[2]).await.order.hash;
    assert_eq!(asked(&world), [Asked::SendBack(hash)]);
    let again = async || {
        let mut wanted = super::wish();
        wanted["lsp_balance_sat"] = wish["lsp_balance_sat"].clone();
        wanted["funding_confirms_within_blocks"] = json!(SOON_ENOUGH);
        ask(&world, buyer(1), "lsps1.create_order", wanted).await
    };
    let why = again().await.unwrap_err().message;
    assert!(why.contains("no such channel can be opened now"), "{why}");
    // What a factory has given them takes no coins any more.
    set(&world, "ceremony = zeroblob(16)").await;
    assert!(again().await.is_ok());
    // While it is born, its coins are pinned, and not free; those here are others.
    let ceremony = factory_tree::ids::CeremonyId([0; 16]);
    let wish = birth(&world);
    let begun = world
        .ctx
        .store
        .write(async |tx| crate::store::ceremonies::insert(tx, ceremony, 10, &wish).await);
    begun.await.unwrap();
    for (state, is_free) in [("gathering", false), ("running", true), ("failed", false)] {
        let query = format!("UPDATE ceremony SET state = '{state}'");
        let done = world.ctx.store.write(async |tx| {
            sqlx::query(sqlx::AssertSqlSafe(query)).execute(tx).await?;
            Ok(())
        });
        done.await.unwrap();
        set(&world, "state = 'failed' WHERE state = 'ordered'").await;
        assert_eq!(again().await.is_ok(), is_free, "{state}");
    }
}

fn birth(world: &TestWorld) -> crate::store::ceremonies::Wish {
    let params = world.ctx.config.factory_params(&Default::default());
    crate::store::ceremonies::Wish {
        params: params.unwrap(),
        clients: None,
        min_clients: 2,
        capacity: None,
        feerate_sat_per_kwu: None,
        rung: Some(0),
        invited: None,
    }
}

/// It takes no funding of its own: Lightning, which waits until it is stored, does not wait for the Bitcoin node.
#[tokio::test]
async fn no_feerate_is_needed_to_take_the_payment_for_a_place() {
    let world = ladder_shop().await;
    let wish = json!({ "lsp_balance_sat": "999900" });
    let one = ordered_with(&world, buyer(1), wish.clone()).await.order;
    let other = ordered_with(&world, buyer(1), wish).await.order;
    assert!(one.at_birth && other.at_birth);
    // Of 2 000 000 sat 200 are left, less than any funding costs.
    for id in [&one.id, &other.id] {
        pay(&world, id).await;
        assert_eq!(row(&world, id).await.state, State::Held);
    }
}

/// The operator is told of a place that is kept for nothing, before that is stored and not after; of a payment that waited in vain there is nothing to tell.
#[tokio::test]
async fn a_seat_whose_payment_went_back_before_its_factory_was_usable_is_an_alarm() {
    for seated in [true, false] {
        let mut world = ladder_shop().await;
        let order = ordered_with(&world, buyer(1), json!({})).await.order;
        pay(&world, &order.id).await;
        let ceremony = factory_tree::ids::CeremonyId([9; 16]);
        let wish = birth(&world);
        let ids = [order.id.clone()];
        let under_way = world.ctx.store.write(async |tx| {
            crate::store::ceremonies::insert(tx, ceremony, 10, &wish).await?;
            match seated {
                true => rows::seated(tx, &ids, ceremony).await,
                false => Ok(()),
            }
        });
        under_way.await.unwrap();

        let needed = world.ctx.lightning.claim_time() + crate::sales::MARGIN;
        world.chain.mine_to(UNTIL - needed - 1);
        world.follow().await;
        look(&world).await;
        let alarms = |world: &mut TestWorld| {
            let told = world.happened().into_iter();
            told.filter(|event| matches!(event, Event::Lsps1SeatUnpaid { .. }))
                .collect::<Vec<_>>()
        };
        assert_eq!(alarms(&mut world), [], "it may still be usable in time");
        world.chain.mine(&[]);
        world.follow().await;
        let alarm = Event::Lsps1SeatUnpaid {
            client: buyer(1),
            order: order.id.clone(),
            ceremony,
            lsp_balance_sat: 500_000,
            fee_sat: order.fee_sat,
        };
        assert!(alarm.is_warning());
        let expected = if seated { vec![alarm] } else { Vec::new() };
        let query = async |query: &'static str| {
            let done = world.ctx.store.write(async |tx| {
                sqlx::query(query).execute(tx).await?;
                Ok(())
            });
            done.await.unwrap();
        };
        // As if it ended before it could store that.
        query("CREATE TRIGGER full BEFORE UPDATE OF ended_at ON lsps1_order BEGIN SELECT RAISE(ABORT, 'full'); END").await;
        let looked = step::look(&world.ctx).await;
        drop(looked);
        query("DROP TRIGGER full").await;
        assert_eq!(row(&world, &order.id).await.state, State::Held);
        assert_eq!(alarms(&mut world), expected);
        look(&world).await;
        assert_eq!(states(&world, &order.id).await, pair("FAILED", "REFUNDED"));
        assert_eq!(alarms(&mut world), expected);
        look(&world).await;
        assert_eq!(alarms(&mut world), []);
    }
}
