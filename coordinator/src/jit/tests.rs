use channel_host::{LspsService, Msat};
use factory_tree::testing::TestClient;

use super::*;
use crate::lsps::Lsps;
use crate::testing::TestWorld;

fn client(number: u64) -> ClientId {
    TestClient::new(number, 0, bitcoin::Amount::from_sat(200_000)).id()
}

const KEY: [u8; 32] = [3; 32];

fn offer() -> Offer {
    Offer {
        min_fee_msat: 3_000_000,
        proportional: 5_000,
        valid_until: 2_000,
        min_lifetime: 4_320,
        max_client_to_self_delay: 2_016,
        min_payment_size_msat: 10_000_000,
        max_payment_size_msat: 1_000_000_000,
    }
}

#[test]
fn only_our_own_promise_to_this_client_holds() {
    let promised = offer().promised(&KEY, client(1));
    assert_eq!(promised.verified(&KEY, client(1), 2_000), Some(offer()));
    assert_eq!(promised.verified(&KEY, client(1), 2_001), None, "too late");
    assert_eq!(promised.verified(&KEY, client(2), 0), None, "another's");
    assert_eq!(promised.verified(&[4; 32], client(1), 0), None);
    let value = serde_json::to_value(&promised).unwrap();
    let mut digits = value["promise"].as_str().unwrap().bytes();
    assert_eq!(digits.len(), 64);
    assert!(digits.all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
    for (field, other) in [
        ("min_fee_msat", json!("1")),
        ("proportional", json!(1)),
        ("valid_until", json!("2100-01-01T00:00:00.000Z")),
        ("min_lifetime", json!(1)),
        ("max_client_to_self_delay", json!(1)),
        ("min_payment_size_msat", json!("1")),
        ("max_payment_size_msat", json!("1")),
        ("promise", json!("")),
        ("promise", json!("zz")),
    ] {
        let mut changed = value.clone();
        changed[field] = other;
        let changed: params::Promised = serde_json::from_value(changed).unwrap();
        assert_eq!(changed.verified(&KEY, client(1), 0), None, "{field}");
    }
    // The same time, as `lightning-liquidity` writes it.
    let mut other = value;
    other["valid_until"] = json!("1970-01-01T00:33:20+00:00");
    let other: params::Promised = serde_json::from_value(other).unwrap();
    assert_eq!(other.verified(&KEY, client(1), 0), Some(offer()));
}

#[test]
fn amounts_are_strings() {
    let read = |text: &str| {
        serde_json::from_str::<Text>(text)
            .map(|Text(msat)| msat)
            .ok()
    };
    assert_eq!(read("\"12\""), Some(12));
    for wrong in [
        "12",
        "\"-1\"",
        "\"+1\"",
        "\"\"",
        "\"1.0\"",
        "null",
        "\"99999999999999999999\"",
    ] {
        assert_eq!(read(wrong), None, "{wrong}");
    }
}

#[test]
fn sizes_are_those_of_the_offer() {
    let code = |payment| check_size(&offer(), payment).map_err(|error| error.code);
    assert_eq!(code(10_000_000), Ok(()));
    assert_eq!(code(1_000_000_000), Ok(()));
    assert_eq!(code(9_999_999), Err(TOO_SMALL));
    assert_eq!(code(1_000_000_001), Err(TOO_LARGE));
    let dear = Offer {
        min_fee_msat: 10_000_000,
        ..offer()
    };
    let error = check_size(&dear, 10_000_000).unwrap_err();
    assert_eq!(error.code, TOO_SMALL, "the fee would eat it up");
    let endless = Offer {
        max_payment_size_msat: u64::MAX,
        ..offer()
    };
    assert_eq!(check_size(&endless, u64::MAX).unwrap_err().code, TOO_LARGE);
}

#[test]
fn numbers_are_written_as_the_specification_does() {
    assert_eq!(
        scid_text((29_451 << 40) | (4_815 << 16) | 1),
        "29451x4815x1"
    );
}

async fn world(change: impl FnOnce(&mut JitConfig)) -> TestWorld {
    let mut world = TestWorld::new().await;
    let ctx = std::sync::Arc::get_mut(&mut world.ctx).expect("nobody else has it yet");
    ctx.config.jit.enabled = true;
    change(&mut ctx.config.jit);
    world
}

async fn ask(world: &TestWorld, method: &str, params: Value) -> std::result::Result<Value, i32> {
    ask_as(world, 1, method, params).await
}

async fn ask_as(
    world: &TestWorld,
    number: u64,
    method: &str,
    params: Value,
) -> std::result::Result<Value, i32> {
    let peer = PublicKey::from_slice(&client(number).0).unwrap();
    let Value::Object(params) = params else {
        panic!("parameters go by name");
    };
    let answered = Lsps::new(&world.ctx).answer(peer, method, params).await;
    answered.map_err(|error| error.code)
}

async fn menu(world: &TestWorld) -> Vec<Value> {
    let answer = ask(world, "lsps2.get_info", json!({})).await.unwrap();
    answer["opening_fee_params_menu"]
        .as_array()
        .unwrap()
        .clone()
}

#[tokio::test]
async fn what_is_off_is_not_there() {
    let world = world(|jit| jit.enabled = false).await;
    assert_eq!(Lsps::new(&world.ctx).protocols(), [5]);
    for method in ["lsps2.get_info", "lsps2.buy"] {
        assert_eq!(ask(&world, method, json!({})).await, Err(-32_601));
    }
}

#[tokio::test]
async fn questions_are_read_strictly() {
    let world = world(|_| {}).await;
    assert_eq!(Lsps::new(&world.ctx).protocols(), [2, 5]);
    let get = async |params| ask(&world, "lsps2.get_info", params).await.err();
    assert_eq!(get(json!({ "token": "SALE" })).await, Some(UNKNOWN_TOKEN));
    assert_eq!(get(json!({ "more": 1 })).await, Some(-32_602));
    assert_eq!(get(json!({ "token": 1 })).await, Some(-32_602));
    let buy = async |params| ask(&world, "lsps2.buy", params).await.err();
    assert_eq!(buy(json!({})).await, Some(-32_602));
    let expired =
        serde_json::to_value(offer().promised(&world.ctx.keys.jit_promise_key(), client(1)));
    let params = json!({ "opening_fee_params": expired.unwrap() });
    assert_eq!(buy(params.clone()).await, Some(INVALID_PARAMS));
    for (field, value) in [("more", json!(1)), ("payment_size_msat", json!(1))] {
        let mut wrong = params.clone();
        wrong[field] = value;
        assert_eq!(buy(wrong).await, Some(-32_602), "{field}");
    }
    let mut more = params;
    more["opening_fee_params"]["more"] = json!(1);
    assert_eq!(buy(more).await, Some(-32_602));
}

/// A valid offer, made by hand: the wallet of this world has nothing.
fn valid(world: &TestWorld) -> Value {
    valid_for(world, 1)
}

fn valid_for(world: &TestWorld, number: u64) -> Value {
    let offer = Offer {
        valid_until: now() + 100,
        ..offer()
    };
    let promised = offer.promised(&world.ctx.keys.jit_promise_key(), client(number));
    serde_json::to_value(promised).unwrap()
}

/// A coordinator that sells, and has two coins of 10 000 000 sat.
async fn shop(change: impl FnOnce(&mut JitConfig)) -> TestWorld {
    let world = TestWorld::rich(|config| {
        config.jit.enabled = true;
        change(&mut config.jit);
    })
    .await;
    world.ctx.lightning.pretend();
    world
}

/// This client's order of a channel for a payment of 20 000 sat.
async fn order_of(world: &TestWorld, number: u64) -> std::result::Result<Value, i32> {
    let params =
        json!({ "opening_fee_params": valid_for(world, number), "payment_size_msat": "20000000" });
    ask_as(world, number, "lsps2.buy", params).await
}

#[tokio::test]
async fn what_cannot_be_served_is_refused_before_it_is_paid() {
    let slow = shop(|jit| jit.opens_per_hour = 0).await;
    let broke = shop(|jit| jit.onchain_budget_sat = 423).await;
    for world in [slow, broke] {
        assert_eq!(menu(&world).await, Vec::<Value>::new());
        assert_eq!(order_of(&world, 1).await, Err(CLIENT_REJECTED));
    }
    let few = shop(|jit| {
        jit.orders_per_client = 2;
        jit.max_orders = 3;
    })
    .await;
    let refused = Some(CLIENT_REJECTED);
    for (number, code) in [(1, None), (1, None), (1, refused), (2, None), (3, refused)] {
        assert_eq!(order_of(&few, number).await.err(), code, "{number}");
    }
    // What was not used in time makes room.
    let over = few.ctx.store.write(async |tx| {
        let query = sqlx::query("UPDATE jit_order SET valid_until = 0");
        Ok(query.execute(tx).await.map(drop)?)
    });
    over.await.unwrap();
    assert!(order_of(&few, 1).await.is_ok());
}

#[tokio::test]
async fn who_asks_several_times_at_once_has_no_more_than_one_after_the_other() {
    let world = shop(|jit| jit.orders_per_client = 1).await;
    let (one, two, three, four) = tokio::join!(
        order_of(&world, 1),
        order_of(&world, 1),
        order_of(&world, 1),
        order_of(&world, 1),
    );
    let sold = [one, two, three, four].into_iter().flatten().count();
    assert_eq!(sold, 1);
}

#[tokio::test]
async fn the_largest_payment_is_what_the_wallet_can_pay_for() {
    let world = shop(|jit| jit.max_payment_sat = 100_000_000).await;
    let largest = async || menu(&world).await.remove(0)["max_payment_size_msat"].clone();
    // Of 20 000 000 sat 424 are for the funding; the channel holds a tenth more than the payment.
    assert_eq!(largest().await, "18181430000");
    let coins = world.ctx.wallet.coins().await;
    world.ctx.wallet.reserve([coins[0].outpoint]).await;
    assert_eq!(largest().await, "9090520000");
    let buy = async |msat: &str| {
        let offer = menu(&world).await.remove(0);
        let params = json!({ "opening_fee_params": offer, "payment_size_msat": msat });
        ask(&world, "lsps2.buy", params).await.err()
    };
    assert_eq!(buy("9090520001").await, Some(TOO_LARGE));
    assert_eq!(buy("9090520000").await, None);
}

#[tokio::test]
async fn the_bitcoin_node_is_asked_for_feerates_once_a_block_however_often_prices_are() {
    let world = shop(|jit| jit.min_fee_msat = 1).await;
    let least = async || menu(&world).await.remove(0)["min_fee_msat"].clone();
    // 212 virtual bytes.
    assert_eq!(least().await, "424000");
    let rate = bitcoin::FeeRate::from_sat_per_vb_u32(3);
    world.chain.set_feerate(rate);
    assert_eq!(least().await, "424000");
    world.chain.mine(&[]);
    world.follow().await;
    assert_eq!(least().await, "636000");
}

/// Anybody can pay for an order of a channel in advance, never come for it, and have the payment back.
#[tokio::test]
async fn a_strangers_order_in_advance_that_is_paid_for_holds_up_no_channel_just_in_time() {
    let world = shop(|jit| jit.max_payment_sat = 100_000_000).await;
    let order = crate::store::lsps1::Order {
        id: "order".to_owned(),
        client: client(2),
        lsp_balance_sat: 19_999_000,
        confirmations: 0,
        confirm_within: 6,
        expiry_blocks: 1_000,
        announce: false,
        at_birth: false,
        fee_sat: 2_000,
        hash: channel_host::PaymentHash([1; 32]),
        invoice: "an invoice".to_owned(),
        created_at: now(),
        valid_until: now() + 100,
    };
    sell(&world, 1).await;
    let held = world.ctx.store.write(async |tx| {
        crate::store::lsps1::insert(tx, &order, 0).await?;
        crate::store::lsps1::held(tx, &order.id, 1_000, now()).await
    });
    assert!(held.await.unwrap());
    assert_eq!(menu(&world).await.len(), 1);
    assert!(open(&world.ctx, opening(1)).await.unwrap().is_ok());
}

#[tokio::test]
async fn an_empty_wallet_offers_and_sells_nothing() {
    let world = world(|_| {}).await;
    assert_eq!(menu(&world).await, Vec::<Value>::new());
    let params = json!({ "opening_fee_params": valid(&world), "payment_size_msat": "20000000" });
    assert_eq!(ask(&world, "lsps2.buy", params).await, Err(CLIENT_REJECTED));
    let small = json!({ "opening_fee_params": valid(&world), "payment_size_msat": "1" });
    assert_eq!(ask(&world, "lsps2.buy", small).await, Err(TOO_SMALL));
    let large = json!({ "opening_fee_params": valid(&world), "payment_size_msat": "1000000001" });
    assert_eq!(ask(&world, "lsps2.buy", large).await, Err(TOO_LARGE));
}

#[tokio::test]
async fn a_price_that_was_set_is_in_the_next_menu_and_an_old_promise_holds() {
    let world = TestWorld::rich(|config| config.jit.enabled = true).await;
    let set = async |whose: Option<ClientId>, least: Option<u64>, ppm: Option<u32>| {
        let over = sales::PriceOverride {
            jit_min_fee_msat: least,
            jit_fee_ppm: ppm,
            ..sales::PriceOverride::default()
        };
        let done = world
            .ctx
            .store
            .write(async |tx| prices::set(tx, whose, &over).await);
        done.await.unwrap();
    };
    let price = async || {
        let offer = menu(&world).await.remove(0);
        let least = offer["min_fee_msat"].as_str().unwrap().to_owned();
        (least, offer["proportional"].as_u64().unwrap())
    };
    let is = |least: &str, ppm: u64| (least.to_owned(), ppm);
    let config = &world.ctx.config.jit;
    let configured = config.min_fee_msat.to_string();
    assert_eq!(price().await, is(&configured, config.fee_ppm.into()));
    let old = menu(&world).await.remove(0);
    set(None, Some(9_000_000), Some(50_000)).await;
    assert_eq!(price().await, is("9000000", 50_000));
    set(Some(client(2)), Some(1_000_000), Some(1)).await;
    assert_eq!(price().await, is("9000000", 50_000), "another's");
    set(Some(client(1)), None, Some(7)).await;
    assert_eq!(price().await, is("9000000", 7));
    // What funding a channel costs at 2 sat/vB is the least whatever was said.
    set(Some(client(1)), Some(1), None).await;
    assert_eq!(price().await, is("424000", 50_000));
    let old: params::Promised = serde_json::from_value(old).unwrap();
    let old = old.verified(&world.ctx.keys.jit_promise_key(), client(1), now());
    assert_eq!(old.unwrap().min_fee_msat, config.min_fee_msat);
}

async fn sell(world: &TestWorld, scid: u64) {
    sold(world, scid).await.unwrap();
}

async fn sold(world: &TestWorld, scid: u64) -> Result<()> {
    let order = NewOrder {
        scid,
        client: client(1),
        payment_msat: Some(20_000_000),
        min_fee_msat: 3_000_000,
        fee_ppm: 5_000,
        valid_until: now() + 100,
        min_lifetime: 4_320,
        client_trusts_lsp: false,
        created_at: now(),
    };
    let done = world
        .ctx
        .store
        .write(async |tx| rows::sold(tx, &order).await);
    done.await
}

fn opening(scid: u64) -> JitOpening {
    JitOpening {
        scid,
        client: PublicKey::from_slice(&client(1).0).unwrap(),
        payment: Msat(20_000_000),
        fee: Msat(3_000_000),
        capacity: bitcoin::Amount::from_sat(120_000),
        leaf_until: None,
    }
}

async fn row(world: &TestWorld, scid: u64) -> rows::OrderRow {
    let read = world.ctx.store.read(async |tx| rows::get(tx, scid).await);
    read.await.unwrap().unwrap()
}

async fn set_trusting(world: &TestWorld, scid: u64, trusts: bool) {
    let trusting = world.ctx.store.write(async |tx| {
        let query = "UPDATE jit_order SET client_trusts_lsp = ? WHERE scid = ?";
        let done = sqlx::query(query).bind(trusts).bind(scid as i64);
        done.execute(tx).await?;
        Ok(())
    });
    trusting.await.unwrap();
}

#[tokio::test]
async fn an_order_goes_through_its_states_and_repeats_change_nothing() {
    use bitcoin::hashes::Hash;
    let world = world(|_| {}).await;
    // The highest bit is a number's like any other.
    let scid = u64::MAX - 3;
    sell(&world, scid).await;
    let write = async |scid| {
        let opening = opening(scid);
        let done = world
            .ctx
            .store
            .write(async |tx| rows::opening(tx, &opening, 900, now()).await);
        done.await.unwrap();
    };
    write(scid).await;
    let funding = rows::Funding {
        channel: u64::MAX,
        txid: bitcoin::Txid::all_zeros(),
        fee_sat: Some(321),
    };
    for _ in 0..2 {
        funded(&world.ctx, scid, funding).await.unwrap();
        channel(&world.ctx, u64::MAX, true).await.unwrap();
        paid(&world.ctx, scid, 3_000_000).await.unwrap();
    }
    let found = row(&world, scid).await;
    assert_eq!(found.state, rows::State::Paid);
    assert_eq!((found.taken_msat, found.onchain_sat), (3_000_000, 321));
    assert_eq!(found.channel, Some(u64::MAX));
    channel(&world.ctx, u64::MAX, false).await.unwrap();
    assert_eq!(row(&world, scid).await.state, rows::State::Closed);
    let (opens, onchain, taken) = world
        .ctx
        .store
        .read(async |tx| {
            Ok((
                rows::opens_since(tx, 0).await?,
                rows::onchain_since(tx, 0).await?,
                rows::taken_since(tx, 0).await?,
            ))
        })
        .await
        .unwrap();
    assert_eq!((opens, onchain, taken), (1, 321, 3_000_000));
    // One that never stood may be tried again only where no funding can be out.
    for (scid, trusts, state) in [
        (2, false, rows::State::Closed),
        (3, true, rows::State::Sold),
    ] {
        sell(&world, scid).await;
        set_trusting(&world, scid, trusts).await;
        write(scid).await;
        let channel_id = 10 + scid;
        let funding = rows::Funding {
            channel: channel_id,
            ..funding
        };
        funded(&world.ctx, scid, funding).await.unwrap();
        channel(&world.ctx, channel_id, false).await.unwrap();
        assert_eq!(row(&world, scid).await.state, state);
    }
}

#[tokio::test]
async fn every_opening_counts_and_what_nothing_came_of_is_forgotten() {
    let world = world(|_| {}).await;
    for scid in [1, 2] {
        sell(&world, scid).await;
    }
    let opening = opening(1);
    let write = world.ctx.store.write(async |tx| {
        rows::opening(tx, &opening, 900, now()).await?;
        rows::opening(tx, &opening, 900, now()).await?;
        Ok((
            rows::opens_since(tx, 0).await?,
            rows::onchain_since(tx, 0).await?,
        ))
    });
    assert_eq!(write.await.unwrap(), (2, 1_800));
    // Two days later.
    let order = NewOrder {
        scid: 3,
        client: client(1),
        payment_msat: None,
        min_fee_msat: 1,
        fee_ppm: 1,
        valid_until: now() + 300_000,
        min_lifetime: 4_320,
        client_trusts_lsp: false,
        created_at: now() + 200_000,
    };
    let write = world.ctx.store.write(async |tx| {
        rows::sold(tx, &order).await?;
        rows::list(tx, 10).await
    });
    let left: Vec<u64> = write.await.unwrap().iter().map(|row| row.scid).collect();
    assert_eq!(left, [3, 1], "the second was never used");
}

#[tokio::test]
async fn only_a_funding_that_went_out_is_a_cost_and_once() {
    use bitcoin::hashes::Hash;
    let world = world(|_| {}).await;
    let cost = async || {
        let store = &world.ctx.store;
        let days = store.read(async |tx| prices::revenue(tx, 0).await).await;
        let days = days.unwrap().into_values();
        days.map(|day| day.onchain_sat).sum::<u64>()
    };
    for scid in [1, 2, 3] {
        sell(&world, scid).await;
        set_trusting(&world, scid, scid == 3).await;
        let opening = opening(scid);
        let twice = world.ctx.store.write(async |tx| {
            rows::opening(tx, &opening, 900, now()).await?;
            rows::opening(tx, &opening, 900, now()).await
        });
        twice.await.unwrap();
    }
    assert_eq!(cost().await, 0, "no channel came about");
    let fund = async |scid| {
        let funding = rows::Funding {
            channel: scid,
            txid: bitcoin::Txid::all_zeros(),
            fee_sat: Some(321),
        };
        funded(&world.ctx, scid, funding).await.unwrap();
    };
    fund(1).await;
    assert_eq!(cost().await, 321);
    channel(&world.ctx, 1, false).await.unwrap();
    assert_eq!(cost().await, 321, "it may be out");
    fund(3).await;
    assert_eq!(cost().await, 321, "it is kept back until the fee is paid");
    paid(&world.ctx, 3, 3_000_000).await.unwrap();
    assert_eq!(cost().await, 642);
}

#[tokio::test]
async fn no_two_orders_have_one_number() {
    let world = world(|_| {}).await;
    sell(&world, 1).await;
    let again = sold(&world, 1).await;
    assert!(again.is_err());
}

#[tokio::test]
async fn nothing_is_opened_without_coins_or_order() {
    let world = world(|_| {}).await;
    let why = open(&world.ctx, opening(1)).await.unwrap().unwrap_err();
    assert!(why.contains("has not the coins"), "{why}");
}

#[tokio::test]
async fn the_hour_and_the_day_have_limits() {
    let world = world(|jit| {
        jit.opens_per_hour = 2;
        jit.onchain_budget_sat = 2_000;
    })
    .await;
    let fee = bitcoin::Amount::from_sat(500);
    let closed = async |now| {
        let ctx = &world.ctx;
        let read = ctx
            .store
            .read(async |tx| limits::closed(ctx, tx, fee, now).await);
        read.await.unwrap()
    };
    let open_at = async |scid, now| {
        sell(&world, scid).await;
        let opening = opening(scid);
        let done = world
            .ctx
            .store
            .write(async |tx| rows::opening(tx, &opening, 700, now).await);
        done.await.unwrap();
    };
    let begin = now();
    assert_eq!(closed(begin).await, None);
    open_at(1, begin).await;
    open_at(2, begin).await;
    assert!(closed(begin).await.unwrap().contains("this hour"));
    // The next hour is free, the day's budget holds one more: 700 + 700 + 500.
    let later = begin + 3_601;
    assert_eq!(closed(later).await, None);
    open_at(3, later).await;
    assert!(closed(later).await.unwrap().contains("budget"));
    assert_eq!(closed(later + 86_401).await, None);
}

#[tokio::test]
async fn orders_are_counted_while_they_hold() {
    let world = world(|_| {}).await;
    sell(&world, 1).await;
    sell(&world, 2).await;
    let counted = async |number, at| {
        let read = world
            .ctx
            .store
            .read(async |tx| rows::open_orders(tx, client(number), at).await);
        read.await.unwrap()
    };
    assert_eq!(counted(1, now()).await, (2, 2));
    assert_eq!(counted(2, now()).await, (0, 2));
    assert_eq!(counted(1, now() + 1_000).await, (0, 0), "expired");
    paid(&world.ctx, 1, 3_000_000).await.unwrap();
    assert_eq!(counted(1, now()).await, (1, 1));
}
