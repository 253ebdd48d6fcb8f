use bitcoin::secp256k1::PublicKey;
use channel_host::{LspsService, PaymentHash};
use factory_tree::params::ExpiryPolicy;
use factory_tree::testing::TestClient;

use super::*;
use crate::lsps::Lsps;
use crate::store::lsps1::{self, Order};
use crate::store::webhooks::WakeRow;
use crate::testing::TestWorld;

const LONGEST_PAUSE: u64 = 3_600;

/// A client of a factory.
fn member() -> ClientId {
    TestClient::new(1, 0, bitcoin::Amount::from_sat(200_000)).id()
}

async fn world() -> TestWorld {
    let world = TestWorld::new().await;
    world.factory(ExpiryPolicy::ClientRefund, 2).await;
    world
}

async fn ask(
    world: &TestWorld,
    client: ClientId,
    method: &str,
    params: Value,
) -> std::result::Result<Value, i32> {
    let answered = asked(world, client, method, params).await;
    answered.map_err(|error| error.code)
}

async fn asked(
    world: &TestWorld,
    client: ClientId,
    method: &str,
    params: Value,
) -> std::result::Result<Value, RpcError> {
    let peer = PublicKey::from_slice(&client.0).unwrap();
    let Value::Object(params) = params else {
        panic!("parameters go by name");
    };
    Lsps::new(&world.ctx).answer(peer, method, params).await
}

async fn set(world: &TestWorld, app_name: &str, url: &str) -> std::result::Result<Value, i32> {
    let params = json!({ "app_name": app_name, "webhook": url });
    ask(world, member(), "lsps5.set_webhook", params).await
}

/// What is due `later` seconds from now.
async fn due(world: &TestWorld, later: u64) -> Vec<WakeRow> {
    let at = now() + later;
    let found = world
        .ctx
        .store
        .read(async |tx| rows::due(tx, at, LONGEST_PAUSE, REGISTERED, 100).await);
    found.await.unwrap()
}

async fn causes(world: &TestWorld, later: u64) -> Vec<String> {
    let mut causes = Vec::new();
    // One of each client is due at a time.
    for wake in due(world, later).await {
        causes.push(wake.cause.clone());
        tried(world, &wake, None).await;
        causes.extend(Box::pin(self::causes(world, later)).await);
    }
    causes.sort();
    causes
}

async fn tried(world: &TestWorld, wake: &WakeRow, next_at: Option<u64>) {
    let done = world
        .ctx
        .store
        .write(async |tx| rows::tried(tx, wake.number, wake.tries + 1, next_at).await);
    done.await.unwrap();
}

async fn wake(world: &TestWorld, why: Why) {
    world.ctx.webhooks.wake(member(), why);
    queue(&world.ctx).await.unwrap();
}

const URL: &str = "https://push.example/token";

#[tokio::test]
async fn webhooks_are_set_listed_and_removed() {
    let world = world().await;
    let max = world.ctx.config.webhooks.max_per_client;
    let answer = |count: usize, no_change: bool| {
        Ok(json!({ "num_webhooks": count, "max_webhooks": max, "no_change": no_change }))
    };
    assert_eq!(set(&world, "a", URL).await, answer(1, false));
    assert_eq!(set(&world, "a", URL).await, answer(1, true));
    // Moved: what the old place was to be told, the new one is.
    let other = "https://other.example/";
    assert_eq!(set(&world, "a", other).await, answer(1, false));
    let [wake] = due(&world, 0).await.try_into().unwrap();
    assert_eq!(
        (wake.url.as_str(), wake.cause.as_str()),
        (other, REGISTERED)
    );
    for number in 1..max {
        let name = number.to_string();
        assert_eq!(set(&world, &name, URL).await, answer(number + 1, false));
    }
    let one_more = json!({ "app_name": "one more", "webhook": URL });
    let refused = asked(&world, member(), "lsps5.set_webhook", one_more).await;
    let refused = refused.unwrap_err();
    let data = json!({ "max_webhooks": max });
    assert_eq!((refused.code, refused.data), (503, Some(data)));
    let list = ask(&world, member(), "lsps5.list_webhooks", json!({})).await;
    let list = list.unwrap();
    assert_eq!(list["app_names"].as_array().map(Vec::len), Some(max));
    assert_eq!(list["max_webhooks"], max);
    let remove = async || {
        let params = json!({ "app_name": "a" });
        ask(&world, member(), "lsps5.remove_webhook", params).await
    };
    assert_eq!(remove().await, Ok(json!({})));
    assert_eq!(remove().await, Err(1010));
    assert_eq!(causes(&world, 0).await, vec![REGISTERED; max - 1]);
}

#[tokio::test]
async fn what_blip_55_refuses_is_refused() {
    let world = world().await;
    let long = "a".repeat(65);
    let long_url = format!("https://push.example/{}", "a".repeat(1024));
    for (app_name, url, code) in [
        (long.as_str(), URL, 500),
        ("a", long_url.as_str(), 500),
        ("a", "no url", 501),
        ("a", "https://127.0.0.1/", 501),
        ("a", "https://push.example:8332/", 501),
        ("a", "http://push.example/", 502),
        ("a\u{1b}", URL, -32_602),
    ] {
        assert_eq!(
            set(&world, app_name, url).await,
            Err(code),
            "{app_name} {url}"
        );
    }
    let params = json!({ "app_name": "a", "webhook": URL });
    let stranger = TestClient::new(9, 9, bitcoin::Amount::from_sat(200_000)).id();
    let asked = ask(&world, stranger, "lsps5.set_webhook", params).await;
    assert_eq!(asked, Err(1003));
    for params in [
        json!({ "app_name": "a" }),
        json!({ "app_name": "a", "webhook": URL, "x": 1 }),
    ] {
        let asked = ask(&world, member(), "lsps5.set_webhook", params).await;
        assert_eq!(asked, Err(-32_602));
    }
    let asked = ask(&world, member(), "lsps5.what", json!({})).await;
    assert_eq!(asked, Err(-32_601));
    assert!(due(&world, 0).await.is_empty());
}

#[tokio::test]
async fn who_has_ordered_a_channel_may_set_webhooks() {
    let world = TestWorld::new().await;
    let params = json!({ "app_name": "a", "webhook": URL });
    let asked = ask(&world, member(), "lsps5.set_webhook", params.clone()).await;
    assert_eq!(asked, Err(1003));
    let order = Order {
        id: "order".to_owned(),
        client: member(),
        lsp_balance_sat: 300_000,
        confirmations: 0,
        confirm_within: 6,
        expiry_blocks: 1_000,
        announce: false,
        at_birth: false,
        fee_sat: 500,
        hash: PaymentHash([1; 32]),
        invoice: "invoice".to_owned(),
        created_at: 0,
        valid_until: now() + 600,
    };
    let ordered = world
        .ctx
        .store
        .write(async |tx| lsps1::insert(tx, &order, 0).await);
    ordered.await.unwrap();
    let asked = ask(&world, member(), "lsps5.set_webhook", params).await;
    assert_eq!(asked.unwrap()["num_webhooks"], 1);
}

#[tokio::test]
async fn who_changes_webhooks_all_the_time_is_slowed_down() {
    let world = world().await;
    let mut last = Ok(Value::Null);
    for number in 0..=2 * CHANGES {
        last = set(&world, "a", &format!("https://push.example/{number}")).await;
    }
    assert_eq!(last, Err(1002));
}

#[tokio::test]
async fn a_cause_wakes_once_until_its_time_comes_again() {
    let world = world().await;
    set(&world, "a", URL).await.unwrap();
    assert_eq!(causes(&world, 0).await, [REGISTERED]);

    wake(&world, Why::Birth).await;
    wake(&world, Why::Birth).await;
    let [first] = due(&world, 0).await.try_into().unwrap();
    let expected = notification("lsps5.liquidity_management_request", &json!({}));
    assert_eq!(first.body, expected);
    // Nobody took it: it stays, a crash or not.
    tried(&world, &first, Some(now() + 100)).await;
    let world = world.crash().await;
    assert!(due(&world, 0).await.is_empty());
    let [again] = due(&world, 110).await.try_into().unwrap();
    assert_eq!(again.tries, 1);
    // Taken: not sent again for the same cause within the hour, but for another.
    tried(&world, &again, None).await;
    wake(&world, Why::Birth).await;
    assert!(due(&world, 1_000).await.is_empty());
    let factory = FactoryId([7; 32]);
    for why in [Why::Ends(factory), Why::Expiry(900), Why::Payment] {
        wake(&world, why).await;
    }
    let told = causes(&world, 0).await;
    assert_eq!(
        told,
        [Why::Ends(factory).cause().as_str(), "expiry", "payment"]
    );
    let later = now() + 3_600;
    let due_again = world.ctx.store.read(async |tx| {
        let birth = Why::Birth.wake(&world.ctx.config);
        rows::untold(tx, member(), &birth, later).await
    });
    assert_eq!(due_again.await.unwrap(), ["a"]);
    // It is over.
    let done = world.ctx.store.write(async |tx| forget(tx, factory).await);
    done.await.unwrap();
    wake(&world, Why::Ends(factory)).await;
    assert_eq!(due(&world, 0).await.len(), 1);
}

/// A payment does not wait: neither is it told of hours later, nor does an old one stand in the way of a new one.
#[tokio::test]
async fn a_payment_is_told_of_while_it_waits() {
    let world = world().await;
    set(&world, "a", URL).await.unwrap();
    causes(&world, 0).await;
    wake(&world, Why::Payment).await;
    let [first] = due(&world, 0).await.try_into().unwrap();
    let hold = world.ctx.config.jit.hold_seconds;
    assert!((hold - 30..=hold).contains(&(first.until - now())));
    // The webhook is away, and tried again at a time when the payment is long gone.
    tried(&world, &first, Some(now() + 3_000)).await;
    let later = now() + hold + 30;
    let payment = Why::Payment.wake(&world.ctx.config);
    let asked = world.ctx.store.write(async |tx| {
        rows::ask(tx, member(), "a", &payment, later).await?;
        rows::due(tx, later, LONGEST_PAUSE, REGISTERED, 9).await
    });
    let [second] = asked.await.unwrap().try_into().unwrap();
    assert!(second.number > first.number && second.tries == 0);
    // What becomes of the first try is nothing to the second.
    tried(&world, &first, None).await;
    assert_eq!(due(&world, hold + 30).await, [second]);
}

#[tokio::test]
async fn a_clock_that_was_ahead_hushes_nobody() {
    let world = world().await;
    set(&world, "a", URL).await.unwrap();
    causes(&world, 0).await;
    let ahead = now() + 10 * 86_400;
    let birth = Why::Birth.wake(&world.ctx.config);
    let asked = world
        .ctx
        .store
        .write(async |tx| rows::ask(tx, member(), "a", &birth, ahead).await);
    asked.await.unwrap();
    assert_eq!(due(&world, 0).await.len(), 1, "it waits for no such day");
    causes(&world, 0).await;
    wake(&world, Why::Birth).await;
    assert_eq!(causes(&world, 0).await, ["birth"]);
}

#[tokio::test]
async fn who_comes_is_not_woken_and_not_pushed_each_time_it_goes() {
    let world = world().await;
    set(&world, "a", URL).await.unwrap();
    wake(&world, Why::Birth).await;
    came(&world.ctx, member()).await.unwrap();
    // Away again within the hour.
    wake(&world, Why::Birth).await;
    assert_eq!(causes(&world, 0).await, [REGISTERED]);
    assert!(due(&world, 1_000).await.is_empty());
}

#[tokio::test]
async fn of_each_client_one_thing_is_due_at_a_time() {
    let world = world().await;
    for name in ["a", "b", "c"] {
        set(&world, name, URL).await.unwrap();
    }
    assert_eq!(due(&world, 0).await.len(), 1);
    assert_eq!(causes(&world, 0).await.len(), 3);
    // All of them are told.
    wake(&world, Why::Birth).await;
    assert_eq!(due(&world, 0).await.len(), 1);
    assert_eq!(causes(&world, 0).await, ["birth"; 3]);
}

/// bLIP-55: nothing else is sent to a webhook before its first notification.
#[tokio::test]
async fn a_new_webhook_hears_first_that_it_is_registered() {
    let world = world().await;
    set(&world, "a", URL).await.unwrap();
    let [greeting] = due(&world, 0).await.try_into().unwrap();
    wake(&world, Why::Birth).await;
    // It had to wait, though not for failing.
    let later = now() + 30;
    let waits = world
        .ctx
        .store
        .write(async |tx| rows::tried(tx, greeting.number, 0, Some(later)).await);
    waits.await.unwrap();
    assert!(due(&world, 0).await.is_empty(), "it comes before all else");
    let next = world
        .ctx
        .store
        .read(async |tx| rows::next(tx, REGISTERED).await);
    assert_eq!(
        next.await.unwrap(),
        Some(later),
        "until then nothing is due"
    );
    // Nobody's other webhook waits for it.
    set(&world, "b", URL).await.unwrap();
    assert_eq!(causes(&world, 0).await, [REGISTERED]);
    wake(&world, Why::Payment).await;
    let [other] = due(&world, 0).await.try_into().unwrap();
    assert_eq!(
        (other.app_name.as_str(), other.cause.as_str()),
        ("b", "payment")
    );
    tried(&world, &other, None).await;
    let [first] = due(&world, 60).await.try_into().unwrap();
    assert_eq!(first.cause, REGISTERED);
    // Taken, or given up.
    tried(&world, &first, None).await;
    assert_eq!(causes(&world, 60).await, ["birth", "payment"]);
}

/// Each is told of, if its client did not come for the one before.
#[tokio::test]
async fn the_next_payment_is_another_one() {
    let world = world().await;
    set(&world, "a", URL).await.unwrap();
    causes(&world, 0).await;
    for _ in 0..2 {
        wake(&world, Why::Payment).await;
        wake(&world, Why::Payment).await;
        assert_eq!(causes(&world, 0).await, ["payment"]);
    }
}

#[test]
fn a_payments_wake_is_of_use_for_as_long_as_any_payment_waits() {
    let mut config = crate::config::Config::defaults().unwrap();
    for (hold, lasts) in [(5, 30), (90, 90), (600, 600)] {
        config.jit.hold_seconds = hold;
        assert_eq!(Why::Payment.wake(&config).lasts, lasts);
    }
}

/// Nothing but its client removes it: neither time nor a crash, nor that it took nothing for long.
#[tokio::test]
async fn a_webhook_is_kept_until_its_client_removes_it() {
    let world = world().await;
    set(&world, "a", URL).await.unwrap();
    for wake in due(&world, 0).await {
        tried(&world, &wake, None).await;
    }
    let aged = world.ctx.store.write(async |tx| {
        let month_ago = i64::try_from(now() - 30 * 86_400).unwrap();
        let aged = sqlx::query("UPDATE wake SET asked_at = ?1, until = ?1");
        aged.bind(month_ago).execute(tx).await?;
        Ok(())
    });
    aged.await.unwrap();
    let world = world.crash().await;
    wake(&world, Why::Birth).await;
    assert_eq!(causes(&world, 0).await, ["birth"]);
    let list = ask(&world, member(), "lsps5.list_webhooks", json!({})).await;
    assert_eq!(list.unwrap()["app_names"], json!(["a"]));
}
