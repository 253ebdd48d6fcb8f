mod birth;

use std::sync::Arc;

use bitcoin::hashes::Hash;
use bitcoin::secp256k1::PublicKey;
use bitcoin::{FeeRate, OutPoint, TxOut, Txid};
use channel_host::{BoughtView, LspsService, PaymentHash};
use factory_tree::testing::{TestClient, funding_tx};
use serde_json::json;

use super::*;
use crate::lightning::Asked;
use crate::lsps::Lsps;
use crate::sales::PriceOverride;
use crate::store::prices;
use crate::testing::TestWorld;

/// The price list of these tests.
const BASE: u64 = 500;
/// What a funding costs at 2 sat/vB.
const FUNDING: u64 = 424;
/// Height at which the payments of these tests expire: far away.
const UNTIL: u32 = 5_000;

fn buyer(number: u64) -> ClientId {
    TestClient::new(number, 0, Amount::from_sat(200_000)).id()
}

/// A coordinator that sells, and has these coins.
async fn shop(sat: u64, change: impl FnOnce(&mut Lsps1Config)) -> TestWorld {
    let mut world = TestWorld::new().await;
    opened(&mut world, change);
    if sat > 0 {
        let address = world.ctx.wallet.new_address().await.unwrap();
        let output = TxOut {
            value: Amount::from_sat(sat),
            script_pubkey: address.script_pubkey(),
        };
        let coin = funding_tx(1, output);
        world.chain.mine(&[coin]);
    }
    world.chain.mine_to(10);
    world.follow().await;
    world
}

fn opened(world: &mut TestWorld, change: impl FnOnce(&mut Lsps1Config)) {
    let ctx = Arc::get_mut(&mut world.ctx).expect("nobody else has it yet");
    let config = &mut ctx.config.lsps1;
    config.enabled = true;
    config.base_fee_sat = BASE;
    config.fee_ppm = 2_000;
    config.fee_ppm_per_day = 100;
    config.min_confirmations = 1;
    change(config);
    world.ctx.lightning.pretend();
}

fn is_here(world: &TestWorld, here: bool) {
    world.ctx.lightning.pretended.lock().unwrap().here = here;
}

/// The channels that were opened.
fn opens(world: &TestWorld) -> Vec<channel_host::BoughtChannel> {
    let pretended = world.ctx.lightning.pretended.lock().unwrap();
    pretended.opened.clone()
}

fn views(world: &TestWorld, change: impl FnOnce(&mut Vec<BoughtView>)) {
    change(&mut world.ctx.lightning.pretended.lock().unwrap().views);
}

const OUTPOINT: &str = "0301e0480b374b32851a9462db29dc19fe830a7f7d7a88b81612b9d42099c0ae:1";

/// Both sides have signed the newest channel.
async fn stands(world: &TestWorld) {
    let id = opens(world).last().unwrap().id;
    views(world, |views| {
        let view = views.iter_mut().find(|view| view.id == id).unwrap();
        view.outpoint = Some(OUTPOINT.parse().unwrap());
        view.fee = Some(Amount::from_sat(300));
    });
    super::stands(&world.ctx, id).await.unwrap();
}

/// The newest channel did not come about.
async fn closes(world: &TestWorld, why: &str) {
    let id = opens(world).last().unwrap().id;
    views(world, |views| views.retain(|view| view.id != id));
    closed(&world.ctx, id, why).await.unwrap();
    look(world).await;
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

fn wish() -> Value {
    json!({
        "lsp_balance_sat": "500000",
        "client_balance_sat": "0",
        "required_channel_confirmations": 1,
        "funding_confirms_within_blocks": 6,
        "channel_expiry_blocks": 1_440,
        "token": "",
        "announce_channel": false,
    })
}

async fn order(world: &TestWorld, client: ClientId) -> Result<Value, RpcError> {
    ask(world, client, "lsps1.create_order", wish()).await
}

async fn ordered(world: &TestWorld) -> String {
    let answer = order(world, buyer(1)).await.unwrap();
    answer["order_id"].as_str().unwrap().to_owned()
}

async fn row(world: &TestWorld, id: &str) -> OrderRow {
    let read = world.ctx.store.read(async |tx| rows::get(tx, id).await);
    read.await.unwrap().unwrap()
}

async fn set(world: &TestWorld, what: &str) {
    let query = format!("UPDATE lsps1_order SET {what}");
    let done = world.ctx.store.write(async |tx| {
        sqlx::query(sqlx::AssertSqlSafe(query)).execute(tx).await?;
        Ok(())
    });
    done.await.unwrap();
}

async fn pay(world: &TestWorld, id: &str) {
    let row = row(world, id).await;
    let msat = row.order.fee_sat * 1000;
    assert!(held(&world.ctx, row.order.hash, msat, UNTIL).await.unwrap());
    look(world).await;
}

async fn look(world: &TestWorld) {
    step::look(&world.ctx).await.unwrap();
}

fn asked(world: &TestWorld) -> Vec<Asked> {
    std::mem::take(&mut *world.ctx.lightning.asked.lock().unwrap())
}

/// Order and payment, as the client sees them.
async fn states(world: &TestWorld, id: &str) -> (String, String) {
    let params = json!({ "order_id": id });
    let answer = ask(world, buyer(1), "lsps1.get_order", params);
    let answer = answer.await.unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let payment = &answer["payment"]["bolt11"]["state"];
    (text(&answer["order_state"]), text(payment))
}

fn pair(order: &str, payment: &str) -> (String, String) {
    (order.to_owned(), payment.to_owned())
}

// ---- questions -----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn what_is_off_is_not_there_and_what_was_ordered_still_is() {
    let mut world = shop(1_000_000, |_| {}).await;
    assert_eq!(Lsps::new(&world.ctx).protocols(), [1, 5]);
    let id = ordered(&world).await;
    let ctx = Arc::get_mut(&mut world.ctx).unwrap();
    ctx.config.lsps1.enabled = false;
    assert_eq!(Lsps::new(&world.ctx).protocols(), [5]);
    for method in ["lsps1.get_info", "lsps1.create_order"] {
        let error = ask(&world, buyer(1), method, json!({})).await.unwrap_err();
        assert_eq!(error.code, -32_601);
    }
    assert_eq!(states(&world, &id).await, pair("CREATED", "EXPECT_PAYMENT"));
}

#[tokio::test]
async fn a_database_that_fails_is_our_own_trouble() {
    let world = shop(0, |_| {}).await;
    let dropped = world.ctx.store.write(async |tx| {
        sqlx::query("DROP TABLE lsps1_order").execute(tx).await?;
        Ok(())
    });
    dropped.await.unwrap();
    let params = json!({ "order_id": "any" });
    let error = ask(&world, buyer(1), "lsps1.get_order", params).await;
    assert_eq!(error.unwrap_err(), RpcError::new(-32_603, "internal error"));
}

#[tokio::test]
async fn the_options_are_the_configurations() {
    // Without coins, too: they do not change with what can be served this moment.
    let world = shop(0, |_| {}).await;
    let info = ask(&world, buyer(1), "lsps1.get_info", json!({})).await;
    let expected = json!({
        "min_required_channel_confirmations": 1,
        "min_funding_confirms_within_blocks": 6,
        "supports_zero_channel_reserve": false,
        "max_channel_expiry_blocks": 12_960,
        "min_initial_client_balance_sat": "0",
        "max_initial_client_balance_sat": "0",
        "min_initial_lsp_balance_sat": "100000",
        "max_initial_lsp_balance_sat": "10000000",
        "min_channel_balance_sat": "100000",
        "max_channel_balance_sat": "10000000",
    });
    assert_eq!(info.unwrap(), expected);
    let more = ask(&world, buyer(1), "lsps1.get_info", json!({ "more": 1 })).await;
    assert_eq!(more.unwrap_err().code, -32_602);
}

#[tokio::test]
async fn the_field_that_is_wrong_is_named() {
    let world = shop(1_000_000, |_| {}).await;
    for (field, value) in [
        ("lsp_balance_sat", json!(500_000)),
        ("lsp_balance_sat", json!("0")),
        ("lsp_balance_sat", json!("-1")),
        ("client_balance_sat", json!(null)),
        ("required_channel_confirmations", json!("1")),
        ("required_channel_confirmations", json!(65_536)),
        ("funding_confirms_within_blocks", json!(-1)),
        ("channel_expiry_blocks", json!(1.5)),
        ("channel_expiry_blocks", json!(0)),
        ("announce_channel", json!("yes")),
        ("token", json!(7)),
        ("refund_onchain_address", json!(7)),
        ("refund_onchain_address", json!("nowhere")),
        (
            "refund_onchain_address",
            json!("bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"),
        ),
    ] {
        let mut params = wish();
        params[field] = value;
        let error = ask(&world, buyer(1), "lsps1.create_order", params);
        let error = error.await.unwrap_err();
        assert_eq!(error.code, -32_602, "{field}");
        assert_eq!(error.data.unwrap()["property"], field);
    }
    for field in wish().as_object().unwrap().keys() {
        if field != "token" {
            let mut params = wish();
            params.as_object_mut().unwrap().remove(field);
            let error = ask(&world, buyer(1), "lsps1.create_order", params);
            let error = error.await.unwrap_err();
            assert_eq!(error.data.unwrap()["property"], *field);
        }
    }
    let mut more = wish();
    more["more"] = json!(1);
    let error = ask(&world, buyer(1), "lsps1.create_order", more).await;
    let expected = json!({ "unrecognized": ["more"] });
    assert_eq!(error.unwrap_err().data, Some(expected));
    let mut foreign = wish();
    foreign["token"] = json!("SALE");
    let error = ask(&world, buyer(1), "lsps1.create_order", foreign).await;
    let error = error.unwrap_err();
    assert_eq!((error.code, error.data), (102, None));
    // What may be left out, and what clients say in place of that.
    let mut other = wish();
    other["token"] = Value::Null;
    other["refund_onchain_address"] = json!("bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080");
    let answer = ask(&world, buyer(1), "lsps1.create_order", other).await;
    let answer = answer.unwrap();
    assert_eq!(answer["token"], "");
    let ways: Vec<&String> = answer["payment"].as_object().unwrap().keys().collect();
    assert_eq!(ways, ["bolt11"], "neither bolt12 nor onchain");
    let id = &answer["order_id"];
    for params in [
        json!({}),
        json!({ "order_id": 7 }),
        json!({ "order_id": id, "more": 1 }),
    ] {
        let error = ask(&world, buyer(1), "lsps1.get_order", params).await;
        assert_eq!(error.unwrap_err().code, -32_602);
    }
}

#[tokio::test]
async fn the_option_that_does_not_allow_it_is_named() {
    let world = shop(1_000_000, |_| {}).await;
    for (field, value, option) in [
        (
            "lsp_balance_sat",
            json!("99999"),
            "min_initial_lsp_balance_sat",
        ),
        (
            "lsp_balance_sat",
            json!("10000001"),
            "max_initial_lsp_balance_sat",
        ),
        (
            "client_balance_sat",
            json!("1"),
            "max_initial_client_balance_sat",
        ),
        (
            "required_channel_confirmations",
            json!(0),
            "min_required_channel_confirmations",
        ),
        (
            "funding_confirms_within_blocks",
            json!(5),
            "min_funding_confirms_within_blocks",
        ),
        (
            "channel_expiry_blocks",
            json!(12_961),
            "max_channel_expiry_blocks",
        ),
    ] {
        let mut params = wish();
        params[field] = value;
        let error = ask(&world, buyer(1), "lsps1.create_order", params);
        let error = error.await.unwrap_err();
        assert_eq!(error.code, 100, "{field}");
        assert_eq!(error.data.unwrap()["property"], option);
    }
}

#[tokio::test]
async fn an_order_says_what_was_asked_and_what_it_costs() {
    let world = shop(1_000_000, |_| {}).await;
    let answer = order(&world, buyer(1)).await.unwrap();
    for (field, value) in wish().as_object().unwrap() {
        assert_eq!(answer[field], *value, "{field}");
    }
    assert_eq!(answer["order_state"], "CREATED");
    assert_eq!(answer["channel"], Value::Null);
    // bLIP-50's form of a time, and this one.
    let created = answer["created_at"].as_str().unwrap();
    assert!(
        created.len() == 24 && created.ends_with(".000Z"),
        "{created}"
    );
    let at = chrono::DateTime::parse_from_rfc3339(created).unwrap();
    let since = now().abs_diff(at.timestamp().unsigned_abs());
    assert!(since < 60, "{created}");
    let bolt11 = &answer["payment"]["bolt11"];
    // 0.2 % of it, 0.01 % more for each of ten days, and its funding.
    let price = BASE + 1_000 + 500 + FUNDING;
    assert_eq!(bolt11["fee_total_sat"], price.to_string());
    assert_eq!(bolt11["order_total_sat"], price.to_string());
    let invoice = bolt11["invoice"].as_str().unwrap();
    assert!(
        invoice.contains(&format!("Msat({})", price * 1000)),
        "{invoice}"
    );
    let id = answer["order_id"].as_str().unwrap();
    let hyphens = [8, 13, 18, 23].map(|at| id.as_bytes()[at]);
    assert!(id.len() == 36 && hyphens == [b'-'; 4], "{id}");
    assert_eq!(id.as_bytes()[14], b'4', "its version");
    let again = json!({ "order_id": id });
    let get = async |client, params| ask(&world, client, "lsps1.get_order", params).await;
    assert_eq!(get(buyer(1), again.clone()).await.unwrap(), answer);
    assert_eq!(get(buyer(2), again).await.unwrap_err().code, NOT_FOUND);
    let other = json!({ "order_id": order_id() });
    assert_eq!(get(buyer(1), other).await.unwrap_err().code, NOT_FOUND);
    let none = get(buyer(1), json!({})).await;
    assert_eq!(none.unwrap_err().code, -32_602);
}

#[tokio::test]
async fn a_price_is_the_clients_own_and_holds_once_it_was_said() {
    let world = shop(1_000_000, |_| {}).await;
    let id = ordered(&world).await;
    let own = PriceOverride {
        fee_ppm: Some(4_000),
        // A stock's: here the funding is all of it, once.
        onchain_ppm: Some(1_000_000),
        ..PriceOverride::default()
    };
    let stored = world
        .ctx
        .store
        .write(async |tx| prices::set(tx, Some(buyer(1)), &own).await);
    stored.await.unwrap();
    let rate = FeeRate::from_sat_per_vb_u32(4);
    world.chain.set_feerate(rate);
    world.chain.mine(&[]);
    world.follow().await;
    let fee = async |client| {
        let answer = order(&world, client).await.unwrap();
        let fee = answer["payment"]["bolt11"]["fee_total_sat"].as_str();
        fee.unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(fee(buyer(1)).await, BASE + 2_000 + 500 + 2 * FUNDING);
    assert_eq!(fee(buyer(2)).await, BASE + 1_000 + 500 + 2 * FUNDING);
    let old = row(&world, &id).await.order.fee_sat;
    assert_eq!(old, BASE + 1_000 + 500 + FUNDING);
}

// ---- limits --------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn what_cannot_be_served_is_refused_before_it_is_paid() {
    let poor = shop(0, |_| {}).await;
    assert_eq!(order(&poor, buyer(1)).await.unwrap_err().code, 1);
    let broke = shop(1_000_000, |config| config.onchain_budget_sat = FUNDING - 1).await;
    let error = order(&broke, buyer(1)).await.unwrap_err();
    assert!(error.code == 1 && error.message.contains("budget"));
    assert_eq!(error.data, None, "clients could not read it");
    let slow = shop(1_000_000, |config| config.opens_per_hour = 0).await;
    let error = order(&slow, buyer(1)).await.unwrap_err();
    assert!(error.code == 1 && error.message.contains("hour"));
    let few = shop(1_000_000, |config| {
        config.orders_per_client = 2;
        config.max_orders = 3;
    })
    .await;
    for (client, code) in [(1, None), (1, None), (1, Some(1)), (2, None), (3, Some(1))] {
        let answer = order(&few, buyer(client)).await;
        assert_eq!(answer.err().map(|error| error.code), code);
    }
    // What nobody paid for makes room.
    set(&few, "valid_until = 0").await;
    look(&few).await;
    assert!(order(&few, buyer(1)).await.is_ok());
}

#[tokio::test]
async fn coins_that_somebody_has_paid_for_are_not_sold_again() {
    let world = shop(1_000_000, |_| {}).await;
    let id = ordered(&world).await;
    assert!(order(&world, buyer(2)).await.is_ok(), "nobody has paid yet");
    pay(&world, &id).await;
    is_here(&world, true);
    look(&world).await;
    assert_eq!(opens(&world).len(), 1);
    assert_eq!(order(&world, buyer(3)).await.unwrap_err().code, 1);
    // The coins of a funding that is made are reserved, and not free; those here are others.
    views(&world, |views| {
        views[0].outpoint = Some(OUTPOINT.parse().unwrap());
    });
    assert!(order(&world, buyer(3)).await.is_ok());
}

#[tokio::test]
async fn what_the_limits_forbid_meanwhile_goes_back() {
    for (what, why) in [
        ("feerate", "as feerates are"),
        ("coins", "has not the coins"),
        ("hour", "this hour"),
    ] {
        let mut world = shop(1_000_000, |_| {}).await;
        let id = ordered(&world).await;
        match what {
            "feerate" => {
                let rate = FeeRate::from_sat_per_vb_u32(100);
                world.chain.set_feerate(rate);
            }
            "coins" => {
                let coins = world.ctx.wallet.coins().await.into_iter();
                let coins = coins.map(|coin| coin.outpoint);
                world.ctx.wallet.reserve(coins.collect::<Vec<_>>()).await;
            }
            _ => {
                let ctx = Arc::get_mut(&mut world.ctx).unwrap();
                ctx.config.lsps1.opens_per_hour = 0;
            }
        }
        is_here(&world, true);
        pay(&world, &id).await;
        // What others have used up may be there again in time.
        if what != "feerate" {
            assert_eq!(row(&world, &id).await.state, State::Held);
            set(&world, "held_at = 0").await;
            look(&world).await;
        }
        let row = row(&world, &id).await;
        assert!(
            row.state == State::Failed && row.note.contains(why),
            "{row:?}"
        );
        assert_eq!(asked(&world), [Asked::SendBack(row.order.hash)]);
        assert!(opens(&world).is_empty());
    }
}

// ---- what comes of an order ----------------------------------------------------------------------------------------

#[tokio::test]
async fn the_payment_is_taken_when_the_funding_is_out() {
    let world = shop(1_000_000, |_| {}).await;
    let id = ordered(&world).await;
    pay(&world, &id).await;
    assert_eq!(states(&world, &id).await, pair("CREATED", "HOLD"));
    look(&world).await;
    assert!(opens(&world).is_empty(), "nobody is there");
    is_here(&world, true);
    look(&world).await;
    look(&world).await;
    let all = opens(&world);
    assert_eq!(all.len(), 1, "once");
    assert_eq!(all[0].capacity, Amount::from_sat(500_000));
    assert!(!all[0].announce && all[0].confirm_within == 6);
    assert_eq!(asked(&world), [], "nothing is taken for a promise");
    stands(&world).await;
    let preimage = *world.ctx.keys.lsps1_preimage(&id);
    assert_eq!(asked(&world), [Asked::Claim(preimage)]);
    views(&world, |views| assert!(views[0].released));
    assert_eq!(states(&world, &id).await, pair("COMPLETED", "HOLD"));
    let paid = row(&world, &id).await.order;
    let hash = paid.hash;
    assert_eq!(
        hash,
        PaymentHash(bitcoin::hashes::sha256::Hash::hash(&preimage).to_byte_array())
    );
    for _ in 0..2 {
        received(&world.ctx, hash, paid.fee_sat * 1000)
            .await
            .unwrap();
    }
    let params = json!({ "order_id": id });
    let answer = ask(&world, buyer(1), "lsps1.get_order", params)
        .await
        .unwrap();
    assert_eq!(answer["order_state"], "COMPLETED");
    assert_eq!(answer["payment"]["bolt11"]["state"], "PAID");
    let found = row(&world, &id).await;
    let since = found.funded_at.unwrap();
    assert_eq!(answer["channel"]["funding_outpoint"], OUTPOINT);
    assert_eq!(answer["channel"]["funded_at"], datetime(since));
    let until = since + 1_440 * SECONDS_PER_BLOCK;
    assert_eq!(answer["channel"]["expires_at"], datetime(until));
    assert_eq!(
        (found.taken_msat, found.onchain_sat),
        (paid.fee_sat * 1000, 300)
    );
    let days = world
        .ctx
        .store
        .read(async |tx| prices::revenue(tx, 0).await)
        .await
        .unwrap();
    let day = days.values().next().unwrap();
    assert_eq!(
        (day.lsps1_msat, day.onchain_sat),
        (paid.fee_sat * 1000, 300)
    );
    let funding = OUTPOINT.parse().unwrap();
    let promised = promised_until(&world.ctx, funding).await.unwrap();
    assert_eq!(promised, Some(datetime(until)));
    let other = OutPoint::new(funding.txid, 0);
    assert_eq!(promised_until(&world.ctx, other).await.unwrap(), None);
    // A second payment of the same invoice is nobody's.
    asked(&world);
    pay(&world, &id).await;
    assert_eq!(asked(&world), [Asked::SendBack(hash)]);
}

#[tokio::test]
async fn what_nobody_pays_in_time_is_over() {
    let world = shop(1_000_000, |_| {}).await;
    let id = ordered(&world).await;
    look(&world).await;
    assert_eq!(row(&world, &id).await.state, State::Ordered);
    set(&world, "valid_until = valid_until - 100000").await;
    look(&world).await;
    assert_eq!(states(&world, &id).await, pair("FAILED", "REFUNDED"));
    asked(&world);
    is_here(&world, true);
    pay(&world, &id).await;
    let hash = row(&world, &id).await.order.hash;
    assert_eq!(asked(&world), [Asked::SendBack(hash)], "too late");
    assert!(opens(&world).is_empty());
    // A day later it is forgotten.
    order(&world, buyer(2)).await.unwrap();
    let read = world.ctx.store.read(async |tx| rows::get(tx, &id).await);
    assert_eq!(read.await.unwrap(), None);
}

#[tokio::test]
async fn an_order_that_cannot_be_read_is_in_no_other_ones_way() {
    let mut world = shop(1_000_000, |_| {}).await;
    let (damaged, other) = (ordered(&world).await, ordered(&world).await);
    set(&world, "valid_until = valid_until - 100000").await;
    set(
        &world,
        &format!("hash = x'00' WHERE order_id = '{damaged}'"),
    )
    .await;
    look(&world).await;
    assert_eq!(row(&world, &other).await.state, State::Failed);
    let told = world.happened();
    let is_alarm = |event: &Event| matches!(event, Event::StoreFailed { .. });
    assert!(told.iter().any(is_alarm), "{told:?}");
}

#[tokio::test]
async fn too_little_is_sent_back() {
    let world = shop(1_000_000, |_| {}).await;
    let id = ordered(&world).await;
    let order = row(&world, &id).await.order;
    let msat = order.fee_sat * 1000 - 1;
    assert!(held(&world.ctx, order.hash, msat, UNTIL).await.unwrap());
    assert_eq!(states(&world, &id).await, pair("FAILED", "REFUNDED"));
    assert_eq!(asked(&world), [Asked::SendBack(order.hash)]);
    let foreign = PaymentHash([9; 32]);
    assert!(!held(&world.ctx, foreign, msat, UNTIL).await.unwrap());
}

#[tokio::test]
async fn who_does_not_come_or_accept_has_its_money_back() {
    for comes in [false, true] {
        let world = shop(1_000_000, |_| {}).await;
        let id = ordered(&world).await;
        is_here(&world, comes);
        pay(&world, &id).await;
        look(&world).await;
        assert_eq!(states(&world, &id).await, pair("CREATED", "HOLD"));
        set(&world, "held_at = held_at - 3601").await;
        look(&world).await;
        assert_eq!(states(&world, &id).await, pair("FAILED", "REFUNDED"));
        let hash = row(&world, &id).await.order.hash;
        assert_eq!(asked(&world), [Asked::SendBack(hash)]);
        views(&world, |views| assert!(views.is_empty(), "it was given up"));
        look(&world).await;
        assert_eq!(asked(&world), [], "once");
    }
}

#[tokio::test]
async fn a_payment_that_expires_soon_buys_nothing() {
    let world = shop(1_000_000, |_| {}).await;
    let id = ordered(&world).await;
    is_here(&world, true);
    pay(&world, &id).await;
    // As late as it may be, and one block later.
    let last = UNTIL - channel_host::CLAIM_BUFFER - 12;
    world.ctx.events.set_height(last - 1);
    look(&world).await;
    assert_eq!(row(&world, &id).await.state, State::Held);
    world.ctx.events.set_height(last);
    stands(&world).await;
    let found = row(&world, &id).await;
    assert_eq!(found.state, State::Failed);
    assert_eq!(asked(&world), [Asked::SendBack(found.order.hash)]);
    views(&world, |views| assert!(views.is_empty()));
}

#[tokio::test]
async fn a_channel_is_tried_three_times() {
    let world = shop(1_000_000, |_| {}).await;
    let id = ordered(&world).await;
    is_here(&world, true);
    pay(&world, &id).await;
    for tries in 1..=3 {
        assert_eq!(opens(&world).len(), tries);
        closes(&world, "the client says no").await;
    }
    let found = row(&world, &id).await;
    assert_eq!(found.state, State::Failed);
    assert!(found.note.contains("the client says no"), "{}", found.note);
    assert_eq!(asked(&world), [Asked::SendBack(found.order.hash)]);
    let numbers: std::collections::HashSet<u64> =
        opens(&world).iter().map(|channel| channel.id).collect();
    assert_eq!(numbers.len(), 3, "each has its own number");
}

#[tokio::test]
async fn what_was_never_funded_uses_up_no_budget() {
    let world = shop(1_000_000, |config| config.onchain_budget_sat = FUNDING).await;
    let id = ordered(&world).await;
    is_here(&world, true);
    pay(&world, &id).await;
    assert_eq!(order(&world, buyer(2)).await.unwrap_err().code, 1);
    for _ in 1..=3 {
        closes(&world, "the client says no").await;
    }
    assert_eq!(row(&world, &id).await.state, State::Failed);
    assert!(order(&world, buyer(2)).await.is_ok());
}

#[tokio::test]
async fn nothing_is_let_out_for_a_payment_that_is_not_here_any_more() {
    for comes_again in [true, false] {
        let world = shop(1_000_000, |_| {}).await;
        let id = ordered(&world).await;
        is_here(&world, true);
        pay(&world, &id).await;
        let hash = row(&world, &id).await.order.hash;
        let gone = |all: Vec<PaymentHash>| {
            world.ctx.lightning.pretended.lock().unwrap().gone = all;
        };
        gone(vec![hash]);
        stands(&world).await;
        look(&world).await;
        views(&world, |views| assert!(!views[0].released));
        let found = row(&world, &id).await;
        assert_eq!(found.state, State::Held, "it may be the node that starts");
        assert!(found.note.contains("not here any more"), "{}", found.note);
        match comes_again {
            true => gone(Vec::new()),
            false => set(&world, "held_at = 0").await,
        }
        look(&world).await;
        let expected = if comes_again {
            State::Open
        } else {
            State::Failed
        };
        assert_eq!(row(&world, &id).await.state, expected);
    }
}

#[tokio::test]
async fn a_payment_is_taken_in_while_a_step_waits_for_the_bitcoin_node() {
    let world = shop(1_000_000, |_| {}).await;
    let id = ordered(&world).await;
    let order = row(&world, &id).await.order;
    let step = world.ctx.lsps1.stepping.lock().await;
    let told = held(&world.ctx, order.hash, order.fee_sat * 1000, UNTIL);
    let told = tokio::time::timeout(Duration::from_secs(20), told).await;
    assert!(told.expect("the node would wait").unwrap());
    drop(step);
    assert_eq!(row(&world, &id).await.state, State::Held);
}

#[tokio::test]
async fn why_a_channel_closed_is_stored_while_a_step_waits_for_the_bitcoin_node() {
    let world = shop(1_000_000, |_| {}).await;
    let id = ordered(&world).await;
    is_here(&world, true);
    pay(&world, &id).await;
    let number = opens(&world)[0].id;
    let work = world.ctx.lsps1.work.subscribe();
    let step = world.ctx.lsps1.stepping.lock().await;
    let told = closed(&world.ctx, number, "the client says no");
    let told = tokio::time::timeout(Duration::from_secs(20), told).await;
    told.expect("the node would wait").unwrap();
    assert!(work.has_changed().unwrap(), "a step comes soon");
    drop(step);
    assert_eq!(row(&world, &id).await.note, "the client says no");
}

// ---- crashes -------------------------------------------------------------------------------------------------------

async fn crash(world: TestWorld) -> TestWorld {
    let mut world = world.crash().await;
    opened(&mut world, |_| {});
    world.follow().await;
    is_here(&world, true);
    world
}

#[tokio::test]
async fn what_was_let_out_before_a_crash_is_not_opened_again() {
    let world = shop(1_000_000, |_| {}).await;
    let id = ordered(&world).await;
    is_here(&world, true);
    pay(&world, &id).await;
    let channel = opens(&world)[0].id;
    // The node stored that it is out, and we had no time to.
    let mut world = crash(world).await;
    let view = BoughtView {
        id: channel,
        outpoint: Some(OutPoint::new(Txid::all_zeros(), 0)),
        fee: None,
        released: true,
    };
    views(&world, |views| views.push(view));
    // Not even when it should have waited no longer.
    set(&world, "held_at = 0").await;
    look(&world).await;
    assert!(opens(&world).is_empty());
    let preimage = *world.ctx.keys.lsps1_preimage(&id);
    assert_eq!(asked(&world), [Asked::Claim(preimage)]);
    assert_eq!(row(&world, &id).await.state, State::Open);
    // And once more, before the payment was taken.
    world = crash(world).await;
    look(&world).await;
    assert_eq!(asked(&world), [Asked::Claim(preimage)]);
}

#[tokio::test]
async fn what_was_not_let_out_before_a_crash_is_opened_anew() {
    let world = shop(1_000_000, |_| {}).await;
    let id = ordered(&world).await;
    is_here(&world, true);
    pay(&world, &id).await;
    let before = opens(&world)[0].id;
    // The node forgets it.
    let world = crash(world).await;
    look(&world).await;
    let after = opens(&world);
    assert!(after.len() == 1 && after[0].id != before);
    assert_eq!(row(&world, &id).await.opens, 2, "that counts");
    assert_eq!(row(&world, &id).await.channel, Some(after[0].id));
}

#[tokio::test]
async fn what_was_to_be_sent_back_is_sent_back_once_more() {
    let world = shop(1_000_000, |_| {}).await;
    let id = ordered(&world).await;
    pay(&world, &id).await;
    set(&world, "held_at = 0").await;
    look(&world).await;
    let hash = row(&world, &id).await.order.hash;
    let world = crash(world).await;
    step::send_back_again(&world.ctx).await.unwrap();
    assert_eq!(asked(&world), [Asked::SendBack(hash)]);
    world.ctx.events.set_height(UNTIL);
    asked(&world);
    step::send_back_again(&world.ctx).await.unwrap();
    assert_eq!(asked(&world), [], "by then it is gone");
}
