//! What a wallet gets for signing with who buys.

use factory_tree::ids::{LeafId, SaleId};
use factory_tree::sale::SoldChannel;
use factory_tree::sale::order::BonusPlace;

use super::super::bonus::Told;
use super::world::LSP_CHANNEL;
use super::*;

const SAT: u64 = 20_000;

/// What the mate has told of its place, in order.
fn told(world: &World) -> Vec<BonusPlace> {
    let counter = world.shop.counter();
    let asked = counter.asked.iter();
    let places = asked.filter(|(method, _)| method == method::BONUS_PLACE);
    places
        .map(|(_, params)| serde_json::from_value(params.clone()).unwrap())
        .collect()
}

async fn tell(world: &World, told: &mut Told) {
    let inner = &world.mate.client.inner;
    told.look(inner, &*world.shop).await.unwrap();
}

/// A bonus for the mate at this place.
fn bonus(place: &BonusPlace) -> SoldChannel {
    SoldChannel {
        position: 1,
        leaf_id: place.leaf_id,
        channel_key: place.channel_key,
        lsp_channel_key: coordinator().funding_pubkey(LSP_CHANNEL),
        capacity: Amount::from_sat(SAT),
    }
}

/// The buyer has paid; the mate is to have a bonus where it told.
async fn world(least: u64) -> World {
    let mut world = World::with_mate(least).await;
    world.buy(true).await.unwrap();
    tell(&world, &mut Told::default()).await;
    world.bonus = vec![bonus(&told(&world)[0])];
    world
}

/// What the mate answers to an offer.
async fn answer(world: &mut World) -> Option<ToSeller> {
    world.mail.clear();
    world.start(1);
    let mate = world.mate.client.node_id();
    let offer = world.mail.iter().find(|(client, _)| *client == mate);
    let (_, offer) = offer.unwrap().clone();
    world.mate.tell(offer).await;
    world.mate.said()
}

fn rule(said: Option<ToSeller>) -> String {
    match said {
        Some(ToSeller::Decline {
            reason: DeclineReason::Refused { rule, .. },
            ..
        }) => rule,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn one_place_is_drawn_and_told_until_a_sale_uses_it() {
    let mut world = World::new().await;
    let mut telling = Told::default();
    world.shop.counter().away = true;
    tell(&world, &mut telling).await;
    // As after kill -9: it is drawn, and nobody knows it.
    world.shop.counter().away = false;
    let mut telling = Told::default();
    for _ in 0..3 {
        tell(&world, &mut telling).await;
    }
    let places = told(&world);
    assert_eq!(places.len(), 2, "not again and again");
    assert_eq!(places[0], places[1]);
    world.buy(true).await.unwrap();
    world.bonus = vec![bonus(&places[0])];
    assert!(matches!(answer(&mut world).await, Some(ToSeller::Join(_))));
    tell(&world, &mut telling).await;
    let next = told(&world)[2];
    assert_ne!(next.leaf_id, places[0].leaf_id);
    // Another attempt of the same sale is on the same.
    world.mate.crash();
    assert!(matches!(answer(&mut world).await, Some(ToSeller::Join(_))));
}

#[tokio::test]
async fn a_factory_that_is_left_needs_no_place() {
    let world = World::new().await;
    let exit = ExitRow {
        factory: world.kit.factory_id,
        goal: Goal::Leave,
        feerate: None,
        max_fee: None,
        requested: world.kit.birth,
        progress: Progress::default(),
    };
    world.mate.store().request_exit(&exit).await.unwrap();
    tell(&world, &mut Told::default()).await;
    assert!(told(&world).is_empty());
}

#[tokio::test]
async fn a_bonus_is_expected_before_it_is_signed_for_and_ends_in_the_kit() {
    let mut world = world(SAT).await;
    world.start(1);
    world
        .run_until(|message| matches!(message, ToCoSigner::Finals(_)))
        .await;
    let expected = world.mate.ground.expected.lock().unwrap().clone();
    assert_eq!(expected.len(), 1, "before anything was complete");
    world.mate.crash();
    world.run().await;
    assert_eq!(world.outcome, Some(SellerOutcome::Sold));
    let kit = world.mate.kit(&world).await;
    let channels = kit.channels();
    assert_eq!(channels.len(), 2);
    assert_eq!(channels[1].capacity.to_sat(), SAT);
    assert_eq!(expected[0].id.0, channels[1].leaf_id.0);
    assert_eq!(expected[0].spends.len(), 1, "its timeout is known");
    // The buyer has what it would have had.
    assert_eq!(world.buyer.kit(&world).await.channels().len(), 2);
    assert!(world.mate.purchase().await.is_none(), "it bought nothing");
}

#[tokio::test]
async fn a_place_that_was_not_drawn_or_serves_another_sale_is_refused() {
    let mut world = world(0).await;
    let drawn = world.bonus[0];
    let factory = world.kit.factory_id;
    world.bonus[0].leaf_id = LeafId([9; 16]);
    assert_eq!(rule(answer(&mut world).await), "sale_keys");
    // Its leaf, and somebody else's key.
    world.bonus[0] = SoldChannel {
        channel_key: coordinator().node_id(),
        ..drawn
    };
    assert_eq!(rule(answer(&mut world).await), "sale_keys");
    let store = world.mate.store();
    tell(&world, &mut Told::default()).await;
    let other = store.bonus_place(factory).await.unwrap().unwrap();
    assert_ne!(other, drawn.leaf_id, "what was offered is not drawn again");
    let sale = SaleId([8; 16]);
    assert!(store.take_bonus_place(factory, other, sale).await.unwrap());
    world.bonus[0] = bonus(told(&world).last().unwrap());
    assert_eq!(rule(answer(&mut world).await), "sale_keys");
}

#[tokio::test]
async fn who_wants_a_larger_bonus_does_not_sign() {
    let mut world = world(SAT + 1).await;
    assert_eq!(rule(answer(&mut world).await), "sale_bonus");
    world.bonus.clear();
    assert_eq!(rule(answer(&mut world).await), "sale_bonus");
    assert!(world.mate.store().pending_sales().await.unwrap().is_empty());
}
