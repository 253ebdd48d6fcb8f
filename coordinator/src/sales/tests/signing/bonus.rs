//! Channels for those who sign with the buyer.

use channel_host::LeafId as NodeLeaf;
use factory_tree::sale::order::BonusPlace;

use super::*;
use crate::lightning::sold_leaf_of;

/// What a mate gets.
const SAT: u64 = 20_000;

fn place(tree: &Tree, number: u64) -> BonusPlace {
    BonusPlace {
        factory: tree.id(),
        leaf_id: LeafId::derive(&[u8::try_from(number).unwrap(); 16], 9),
        channel_key: public(&channel_secret(number)),
    }
}

async fn tell(world: &TestWorld, client: ClientId, place: &BonusPlace) -> Result<Value, String> {
    let params = serde_json::to_value(place).unwrap();
    let answer = ask(world, client, method::BONUS_PLACE, params).await;
    answer.map_err(|error| why(&error))
}

async fn given(world: &TestWorld, sale: SaleId) -> Vec<rows::ClientChannel> {
    let read = world
        .ctx
        .store
        .read(async |tx| store::bonus::of_sale(tx, sale).await);
    read.await.unwrap()
}

/// Client 1 wants its bonus there, and client 0 has ordered and paid.
async fn market(change: impl FnOnce(&mut SalesConfig)) -> (Market, BonusPlace) {
    let (world, tree) = shop(|sales| {
        sales.bonus_sat = SAT;
        change(sales);
    })
    .await;
    let place = place(&tree, BONUS);
    tell(&world, member(1).id(), &place).await.unwrap();
    let mut market = Market::paid_in((world, tree)).await;
    let drawn = Place {
        leaf_id: place.leaf_id,
        channel_key: place.channel_key,
    };
    mate(&mut market).bonus.0 = Some(drawn);
    (market, place)
}

fn mate(market: &mut Market) -> &mut Wallet {
    market.wallets.get_mut(&member(1).id()).unwrap()
}

fn missing(market: &Market, leaves: &[LeafId]) {
    let leaves = leaves.iter().map(|leaf| NodeLeaf(leaf.0)).collect();
    market.world.ctx.lightning.pretended.lock().unwrap().missing = leaves;
}

#[tokio::test]
async fn a_place_is_a_members_own_and_serves_once() {
    let (world, tree) = shop(|_| {}).await;
    let (one, two) = (member(0).id(), member(1).id());
    let first = place(&tree, 5);
    let stranger = tell(&world, member(9).id(), &first).await;
    assert_eq!(stranger.unwrap_err(), "no_factory");
    for _ in 0..2 {
        tell(&world, two, &first).await.unwrap();
    }
    assert_eq!(tell(&world, one, &first).await.unwrap_err(), "used");
    // What serves a purchase serves no bonus, and the other way round.
    let signed = quote(&world, one, 50_000).await.unwrap();
    let taken = Order {
        leaf_id: first.leaf_id,
        ..order(&signed, 1)
    };
    assert_eq!(buy(&world, one, &taken).await.unwrap_err(), "used");
    let bought = order(&signed, 1);
    buy(&world, one, &bought).await.unwrap();
    let taken = BonusPlace {
        channel_key: bought.channel_key,
        ..place(&tree, 6)
    };
    assert_eq!(tell(&world, two, &taken).await.unwrap_err(), "used");
    // The newest counts.
    tell(&world, two, &place(&tree, 7)).await.unwrap();
    let read = world
        .ctx
        .store
        .read(async |tx| store::bonus::wanted(tx, tree.id(), &(0..4)).await);
    let wanted = read.await.unwrap();
    assert_eq!(wanted.len(), 1);
    assert_eq!(wanted[0].leaf_id, place(&tree, 7).leaf_id);
}

#[tokio::test]
async fn who_signs_with_the_buyer_gets_a_channel_and_crashes_change_nothing() {
    let (mut market, place) = market(|_| {}).await;
    market = market.crash().await;
    market.come(0).await;
    market.come(1).await;
    market.until(|row| row.bound.is_some()).await;
    market = market.crash().await;
    market.come(0).await;
    market.come(1).await;
    let sold = market.until(|row| row.sold.is_some()).await;
    market = market.crash().await;
    market.come(0).await;
    market.come(1).await;
    market.until(|row| row.delivered).await;
    market.claimed().await;
    market.taken().await;
    market
        .until(|row| row.state == PurchaseState::Settled)
        .await;
    let terms = sold.bound.unwrap();
    let [bonus] = terms.bonus.as_slice() else {
        panic!("{terms:?}");
    };
    assert_eq!(bonus.leaf_id, place.leaf_id);
    assert_eq!((bonus.position, bonus.capacity.to_sat()), (1, SAT));
    assert_eq!(sold.bonus.to_sat(), SAT);
    // Its kit brings it out, and everything that asks for the leaves of a client knows it.
    assert_eq!(mate(&mut market).kit.channels().len(), 2);
    let client = member(1).id();
    let store = &market.world.ctx.store;
    let read = store.read(async |tx| {
        let leaf = store::leaves::get(tx, place.leaf_id).await?;
        Ok((leaf, store::sold::leaves(tx, Some(client)).await?))
    });
    let (leaf, sold_leaves) = read.await.unwrap();
    let leaf = leaf.unwrap();
    assert_eq!((leaf.client, leaf.sale), (client, Some(market.sale)));
    assert!(leaf.usable, "it may be paid over");
    assert_eq!(sold_leaves[0].leaf, place.leaf_id);
    let factory = row(&market.world, market.sale).await.order.factory;
    let known = market.world.ctx.trees.get(store, factory).await.unwrap();
    assert_eq!(known.bought_keys(1), [place.channel_key]);
    let day = store
        .read(async |tx| store::prices::revenue(tx, 0).await)
        .await;
    assert_eq!(day.unwrap().values().next().unwrap().bonus_sat, SAT);
    // And the key of ours is the one it was opened with.
    let txs = &known.sales()[0].txs;
    let fresh = row(&market.world, market.sale).await.order.fresh;
    let leaf = sold_leaf_of(txs, 1, known.tree.schedule(), fresh).unwrap();
    assert_eq!(leaf.id, NodeLeaf(place.leaf_id.0));
}

async fn may_be_used(market: &Market, leaf: LeafId) -> bool {
    let store = &market.world.ctx.store;
    let read = store.read(async |tx| store::leaves::get(tx, leaf).await);
    read.await.unwrap().unwrap().usable
}

/// LDK would choose it for what its owner is paid: it is shut for no longer than its owner lets it be.
#[tokio::test]
async fn a_bonus_may_be_used_when_its_owner_has_it_whatever_the_buyer_does() {
    let (mut market, place) = market(|_| {}).await;
    for wallet in market.wallets.values_mut() {
        wallet.manner = Manner::Deaf;
    }
    market.come(0).await;
    market.come(1).await;
    let sold = market.until(|row| row.sold.is_some()).await;
    // It has no such kit.
    assert!(!may_be_used(&market, place.leaf_id).await);
    mate(&mut market).manner = Manner::Honest;
    market.come(1).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !may_be_used(&market, place.leaf_id).await {
        let _ = tokio::time::timeout(Duration::from_millis(20), market.serve_one()).await;
        assert!(tokio::time::Instant::now() < deadline, "it stays shut");
    }
    assert_eq!(mate(&mut market).kit.channels().len(), 2);
    // The buyer's own waits for its payment, which waits for the buyer.
    assert!(!may_be_used(&market, sold.order.leaf_id).await);
    assert_eq!(market.claims(), 0);
    let market = market.crash().await;
    assert!(may_be_used(&market, place.leaf_id).await);
}

/// Its timeout would pay the mate all of it: nothing but the chain transaction is signed before it stands.
#[tokio::test]
async fn nothing_that_pays_a_bonus_is_signed_before_its_channel_stands() {
    let (mut market, place) = market(|_| {}).await;
    missing(&market, &[place.leaf_id]);
    market.come(0).await;
    market.come(1).await;
    let tried = market.until(|row| row.attempts.0 >= 2).await;
    assert!(tried.sold.is_none() && tried.bound.is_some());
    assert!(mate(&mut market).kit.sales.is_empty());
    missing(&market, &[]);
    market.until(|row| row.delivered).await;
    assert_eq!(mate(&mut market).kit.channels().len(), 2);
}

#[tokio::test]
async fn a_mate_that_refuses_its_channel_costs_the_buyer_nothing() {
    let (mut market, place) = market(|_| {}).await;
    missing(&market, &[place.leaf_id]);
    market.come(0).await;
    market.come(1).await;
    market.until(|row| row.attempts.0 >= 2).await;
    let params = json!({ "sale": market.sale });
    let client = member(0).id();
    let answer = ask(&market.world, client, method::CANCEL, params).await;
    assert_eq!(answer.unwrap()["state"], "cancelled");
    assert!(market.sent_back());
    let store = &market.world.ctx.store;
    let scores = store.read(async |tx| store::clients::scores(tx).await);
    let scores = scores.await.unwrap();
    let points = |number| scores.get(&member(number).id()).map(|score| score.points);
    assert_eq!((points(0), points(1)), (None, Some(1.0)));
    // What is taken up again is the same, with the bonus.
    assert_eq!(given(&market.world, market.sale).await.len(), 1);
    let again = quote(&market.world, client, 30_000).await.unwrap();
    assert_eq!(read(&again).sale, market.sale);
    buy(&market.world, client, &order(&again, 1)).await.unwrap();
}

#[tokio::test]
async fn a_bonus_that_somebody_does_not_want_is_left_out() {
    let (mut market, _) = market(|_| {}).await;
    // It drew another since.
    mate(&mut market).bonus.0 = None;
    market.come(0).await;
    market.come(1).await;
    let sold = market.until(|row| row.delivered).await;
    assert!(sold.bound.unwrap().bonus.is_empty() && sold.bonus == Amount::ZERO);
}

#[tokio::test]
async fn who_wants_more_than_is_given_refuses_and_the_buyer_is_paid_back() {
    let (mut market, _) = market(|_| {}).await;
    mate(&mut market).bonus.1 = Amount::from_sat(SAT + 1);
    market.come(0).await;
    market.come(1).await;
    let cancelled = market
        .until(|row| row.state == PurchaseState::Cancelled)
        .await;
    assert!(cancelled.note.contains("sale_bonus"), "{}", cancelled.note);
    assert!(cancelled.bound.is_none());
    market.world.ctx.sales.over(market.sale).await;
    assert!(market.sent_back());
    assert!(given(&market.world, market.sale).await.is_empty());
}

#[tokio::test]
async fn a_bonus_for_a_sale_that_was_never_offered_waits_for_the_next() {
    let (mut market, place) = market(|sales| sales.wake_seconds = 1).await;
    assert_eq!(given(&market.world, market.sale).await.len(), 1);
    market.come(0).await;
    market
        .until(|row| row.state == PurchaseState::Cancelled)
        .await;
    let factory = place.factory;
    let store = &market.world.ctx.store;
    let read = store.read(async |tx| store::bonus::wanted(tx, factory, &(0..4)).await);
    assert_eq!(read.await.unwrap()[0].leaf_id, place.leaf_id);
}

/// The stock has to have enough for both; else the buyer has what it was quoted, and nobody a bonus.
#[tokio::test]
async fn no_sale_is_smaller_for_a_bonus() {
    let much = Amount::ONE_BTC.to_sat();
    let (mut market, _) = market(|sales| sales.bonus_sat = much).await;
    assert!(given(&market.world, market.sale).await.is_empty());
    market.come(0).await;
    market.come(1).await;
    let sold = market.until(|row| row.delivered).await;
    assert_eq!(sold.order.capacity.to_sat(), 50_000);
    assert!(sold.bound.unwrap().bonus.is_empty());
}

#[tokio::test]
async fn the_operator_says_for_whom_without_a_restart() {
    let (world, tree) = shop(|_| {}).await;
    let client = member(1).id();
    tell(&world, client, &place(&tree, BONUS)).await.unwrap();
    let over = PriceOverride {
        bonus_sat: Some(SAT),
        ..PriceOverride::default()
    };
    let store = &world.ctx.store;
    let set = store.write(async |tx| store::prices::set(tx, Some(client), &over).await);
    set.await.unwrap();
    let (_, sale) = ordered(&world).await;
    assert!(
        given(&world, sale).await.is_empty(),
        "not before it is paid"
    );
    pay(&world, sale).await;
    let [bonus] = given(&world, sale).await.try_into().unwrap();
    assert_eq!((bonus.client, bonus.capacity.to_sat()), (client, SAT));
}
