use bitcoin::secp256k1::PublicKey;
use channel_host::LspsService;
use factory_tree::params::ExpiryPolicy;
use factory_tree::testing::TestClient;

use super::*;
use crate::lsps::Lsps;
use crate::store::webhooks::WakeRow;
use crate::testing::TestWorld;

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
    let peer = PublicKey::from_slice(&client.0).unwrap();
    let Value::Object(params) = params else {
        panic!("parameters go by name");
    };
    let answered = Lsps::new(&world.ctx).answer(peer, method, params).await;
    answered.map_err(|error| error.code)
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
        .read(async |tx| rows::due(tx, at, 100).await);
    found.await.unwrap()
}

async fn causes(world: &TestWorld) -> Vec<String> {
    let due = due(world, 0).await.into_iter();
    let mut causes: Vec<String> = due.map(|wake| wake.cause).collect();
    causes.sort();
    causes
}

async fn tried(world: &TestWorld, wake: &WakeRow, next_at: Option<u64>) {
    let done = world
        .ctx
        .store
        .write(async |tx| rows::tried(tx, wake, next_at).await);
    done.await.unwrap();
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
    assert_eq!(causes(&world).await, [REGISTERED]);
    assert_eq!(set(&world, "a", URL).await, answer(1, true));
    // Moved: what the old place was to be told, the new one is.
    assert_eq!(
        set(&world, "a", "https://other.example/").await,
        answer(1, false)
    );
    let [wake] = due(&world, 0).await.try_into().unwrap();
    assert_eq!(wake.url, "https://other.example/");
    for number in 1..max {
        assert_eq!(
            set(&world, &number.to_string(), URL).await,
            answer(number + 1, false)
        );
    }
    assert_eq!(set(&world, "one more", URL).await, Err(503));
    let list = ask(&world, member(), "lsps5.list_webhooks", json!({}))
        .await
        .unwrap();
    assert_eq!(list["app_names"].as_array().map(Vec::len), Some(max));
    let remove = async || {
        ask(
            &world,
            member(),
            "lsps5.remove_webhook",
            json!({ "app_name": "a" }),
        )
        .await
    };
    assert_eq!(remove().await, Ok(json!({})));
    assert_eq!(remove().await, Err(1010));
    assert!(due(&world, 0).await.iter().all(|wake| wake.app_name != "a"));
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
        ("a", "http://push.example/", 502),
    ] {
        assert_eq!(
            set(&world, app_name, url).await,
            Err(code),
            "{app_name} {url}"
        );
    }
    let params = json!({ "app_name": "a", "webhook": URL });
    let stranger = TestClient::new(9, 9, bitcoin::Amount::from_sat(200_000)).id();
    assert_eq!(
        ask(&world, stranger, "lsps5.set_webhook", params).await,
        Err(1003)
    );
    for params in [
        json!({ "app_name": "a" }),
        json!({ "app_name": "a", "webhook": URL, "x": 1 }),
    ] {
        assert_eq!(
            ask(&world, member(), "lsps5.set_webhook", params).await,
            Err(-32_602)
        );
    }
    assert_eq!(
        ask(&world, member(), "lsps5.what", json!({})).await,
        Err(-32_601)
    );
    assert!(due(&world, 0).await.is_empty());
}

#[tokio::test]
async fn a_cause_wakes_once_until_its_time_comes_again() {
    let world = world().await;
    set(&world, "a", URL).await.unwrap();
    let [greeting] = due(&world, 0).await.try_into().unwrap();
    tried(&world, &greeting, None).await;

    wake_for_factory(&world.ctx, member(), "birth 7")
        .await
        .unwrap();
    wake_for_factory(&world.ctx, member(), "birth 7")
        .await
        .unwrap();
    let [first] = due(&world, 0).await.try_into().unwrap();
    assert_eq!(
        first.body,
        notification("lsps5.liquidity_management_request", &json!({}))
    );
    // Nobody took it: it stays, a crash or not.
    tried(&world, &first, Some(now() + 100)).await;
    let world = world.crash().await;
    assert!(due(&world, 0).await.is_empty());
    let [again] = due(&world, 100).await.try_into().unwrap();
    assert_eq!(again.tries, 1);
    // Taken: not sent again for the same cause on that day, but for another.
    tried(&world, &again, None).await;
    wake_for_factory(&world.ctx, member(), "birth 7")
        .await
        .unwrap();
    assert!(due(&world, 1_000).await.is_empty());
    wake_for_factory(&world.ctx, member(), "birth 8")
        .await
        .unwrap();
    wake_for_payment(&world.ctx, member()).await.unwrap();
    assert_eq!(causes(&world).await, ["birth 8", "payment"]);
    let later = rows::Wake {
        cause: "birth 7",
        body: "{}",
        again_after: DAILY,
    };
    let asked = world
        .ctx
        .store
        .write(async |tx| rows::ask(tx, member(), "a", later, now() + DAILY).await);
    assert!(asked.await.unwrap());
}

#[tokio::test]
async fn who_comes_is_not_woken_any_more() {
    let world = world().await;
    set(&world, "a", URL).await.unwrap();
    wake_for_factory(&world.ctx, member(), "birth 7")
        .await
        .unwrap();
    came(&world.ctx, member()).await.unwrap();
    assert_eq!(causes(&world).await, [REGISTERED]);
    // Away again, the same cause is news.
    wake_for_factory(&world.ctx, member(), "birth 7")
        .await
        .unwrap();
    assert_eq!(causes(&world).await, ["birth 7", REGISTERED]);
}
