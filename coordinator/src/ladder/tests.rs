mod bought;
mod outside;

use bitcoin::secp256k1::Secp256k1;
use channel_host::lsp_channel_id;
use factory_tree::factory::Member;
use factory_tree::ladder::{Progress, Root};
use factory_tree::output::OutputRole;
use factory_tree::params::ExpiryPolicy;
use factory_tree::testing::TestClient;
use factory_tree::tree::Tree;

use super::*;
use crate::event::Event;
use crate::store::ladder::Taken;
use crate::store::{ladder, leaves};
use crate::testing::{FRESH, ROUND, TestWorld};

fn clients() -> Vec<TestClient> {
    let capacity = bitcoin::Amount::from_sat(200_000);
    (0..4).map(|n| TestClient::new(1, n, capacity)).collect()
}

async fn stands(world: &TestWorld, policy: ExpiryPolicy) -> Tree {
    let keys = world.ctx.keys.leaf_keys();
    let members = clients().into_iter().map(|client| Member {
        lsp_channel_key: keys.funding_pubkey(lsp_channel_id(client.leaf_id.0, FRESH)),
        ..client.member()
    });
    let tree = world.factory_of(policy, members.collect()).await;
    let funding = world.funding(&tree).await;
    world.chain.mine(&[funding]);
    tree
}

async fn hand_over(world: &TestWorld, tree: &Tree, position: usize) {
    let client = &clients()[position];
    let lsp = world.ctx.keys.factory_secret(ROUND, FRESH);
    let keys = client.masked_keys(&lsp.public_key(&Secp256k1::new()));
    let (id, factory) = (client.id(), tree.id());
    let stored = world.ctx.store.write(async |tx| {
        let members = ladder::members(tx, Some(id)).await?;
        let member = members.iter().find(|member| member.factory == factory);
        ladder::hand_over(tx, member.unwrap(), &keys, &(0..4), 50).await
    });
    assert_eq!(stored.await.unwrap(), Taken::New);
}

async fn look(world: &TestWorld) {
    let (_keep, stop) = watch::channel(false);
    super::look(&world.ctx, &stop).await.unwrap();
}

async fn seen(world: &TestWorld) -> view::Seen {
    view::look(&world.ctx).await.unwrap()
}

#[tokio::test]
async fn a_factory_that_everybody_left_comes_back_by_one_input() {
    let world = TestWorld::new().await;
    world.chain.mine_to(10);
    let tree = stands(&world, ExpiryPolicy::ClientRefund).await;
    for position in 0..3 {
        hand_over(&world, &tree, position).await;
    }
    world.chain.mine(&[]);
    world.follow().await;
    assert!(world.chain.mempool().is_empty(), "one client is still in");
    hand_over(&world, &tree, 3).await;
    world.chain.mine(&[]);
    world.follow().await;
    let [reap] = world.chain.mempool().try_into().unwrap();
    assert_eq!(reap.input.len(), 1);
    assert_eq!(reap.input[0].previous_output, tree.funding());
    assert_eq!(reap.input[0].witness.len(), 1, "by the key path");
    assert_eq!(seen(&world).await.ladder.factories[0].root, Root::ReapSent);

    // The node forgot it, and the coordinator crashed.
    world.chain.clear_mempool();
    let mut world = world.crash().await;
    world.chain.mine(&[]);
    world.follow().await;
    assert_eq!(world.chain.mempool(), std::slice::from_ref(&reap));
    let at = world.chain.mine(&[reap]);
    world.follow().await;
    let root = seen(&world).await.ladder.factories[0].root.clone();
    assert!(matches!(root, Root::Reaped { at: height } if height.0 == at));
    // An ex-client holds a signed spend of what it was: it funds nothing before that is buried.
    let funds = async |world: &TestWorld| {
        let rate = bitcoin::FeeRate::from_sat_per_vb_u32(2);
        let pins = crate::funding::pin(&world.ctx, bitcoin::Amount::from_sat(100_000), rate);
        match pins.await {
            Ok(pins) => {
                let pins = pins.into_iter().map(|pin| pin.outpoint);
                world.ctx.wallet.release(pins).await;
                true
            }
            Err(_) => false,
        }
    };
    let depth = world.ctx.config.ladder.reap_depth;
    world.chain.mine_to(at + depth - 2);
    world.follow().await;
    assert!(!funds(&world).await);
    world.chain.mine(&[]);
    world.follow().await;
    assert!(funds(&world).await);
    let bury = world.ctx.config.ladder.bury_depth;
    world.chain.mine_to(at + bury - 1);
    world.follow().await;
    look(&world).await;
    assert_eq!(seen(&world).await.ladder.factories.len(), 1);
    world.chain.mine(&[]);
    world.follow().await;
    world.happened();
    look(&world).await;
    let forgotten = Event::FactoryForgotten { factory: tree.id() };
    assert_eq!(world.happened(), [forgotten]);
    assert!(seen(&world).await.ladder.factories.is_empty());

    // A deep reorg takes it back all the same.
    let depth = (world.chain.height() - at + 1) as usize;
    world.chain.undo(depth);
    world.chain.mine_to(at + 3);
    world.follow().await;
    assert_eq!(world.chain.mempool().len(), 1);
}

#[tokio::test]
async fn the_path_of_who_stays_away_is_published_from_the_end_on_and_no_other() {
    let world = TestWorld::new().await;
    world.chain.mine_to(10);
    let tree = stands(&world, ExpiryPolicy::ClientRefund).await;
    for position in 1..4 {
        hand_over(&world, &tree, position).await;
    }
    let ends = tree.schedule().publish_from.0;
    world.chain.mine_to(ends - 1);
    world.follow().await;
    look(&world).await;
    let wished = async || {
        let read = world.ctx.store.read(async |tx| leaves::exits(tx).await);
        let exits = read.await.unwrap();
        exits.into_iter().map(|exit| exit.leaf).collect::<Vec<_>>()
    };
    assert_eq!(wished().await, []);
    world.chain.mine(&[]);
    world.follow().await;
    look(&world).await;
    look(&world).await;
    assert_eq!(wished().await, [clients()[0].leaf_id]);
    let facts = &seen(&world).await.ladder.factories[0];
    let progress: Vec<Progress> = facts.members.iter().map(|m| m.progress).collect();
    let left = Progress::HandedOver;
    assert_eq!(progress, [Progress::Publishing, left, left, left]);

    // Its path is on the chain: whatever is beside it comes back by keys, its own channel does not.
    let leaf = tree.path(0).last().copied().unwrap().clone();
    let mut height = world.chain.height();
    for step in tree.path(0) {
        height += step.timelock.delay.map_or(1, |delay| delay.0.max(1));
        world.chain.mine_to(height - 1);
        world.chain.mine(std::slice::from_ref(&step.tx));
    }
    world.follow().await;
    let own = leaf.outputs_of(OutputRole::Channel);
    let others: Vec<_> = own
        .filter(|(_, output)| !output.clients.contains(&0))
        .map(|(outpoint, _)| outpoint)
        .collect();
    assert_eq!(others.len(), 3);
    let [sweep] = world.chain.mempool().try_into().unwrap();
    let spent: Vec<_> = sweep.input.iter().map(|i| i.previous_output).collect();
    assert!(others.iter().all(|outpoint| spent.contains(outpoint)));
    let stocks: Vec<_> = leaf.outputs_of(OutputRole::Stock).collect();
    for (stock, output) in stocks {
        let mine_alone = !output.clients.contains(&0);
        assert_eq!(
            spent.contains(&stock),
            mine_alone,
            "before its delay only by keys"
        );
    }
    let facts = &seen(&world).await.ladder.factories[0];
    assert_eq!(facts.members[0].progress, Progress::OnChain);
}

#[tokio::test]
async fn what_is_spent_on_the_chain_is_not_counted_as_locked() {
    let world = TestWorld::new().await;
    world.chain.mine_to(10);
    let tree = stands(&world, ExpiryPolicy::ClientRefund).await;
    let shown = async || {
        world.follow().await;
        let row = show::show(&world.ctx).await.unwrap().factories.remove(0);
        (row.locked_sat, row.stock_sat)
    };
    assert_eq!(shown().await, (4 * 200_000 + 400_000, 400_000));
    for step in tree.path(0) {
        world.chain.mine(std::slice::from_ref(&step.tx));
    }
    assert_eq!(shown().await, (4 * 200_000 + 400_000, 400_000));
    for timeout in &tree.channel_timeouts()[..3] {
        world.chain.mine(std::slice::from_ref(&timeout.tx));
    }
    assert_eq!(shown().await, (200_000 + 400_000, 400_000));
}

#[tokio::test]
async fn nobody_is_published_under_lsp_reclaim() {
    let world = TestWorld::new().await;
    world.chain.mine_to(10);
    let tree = stands(&world, ExpiryPolicy::LspReclaim).await;
    world.chain.mine_to(tree.schedule().publish_from.0 + 1);
    world.follow().await;
    look(&world).await;
    let read = world.ctx.store.read(async |tx| leaves::exits(tx).await);
    assert!(read.await.unwrap().is_empty());
}

#[tokio::test]
async fn a_loss_is_told_when_it_grows_and_only_then() {
    let mut world = TestWorld::new().await;
    world.chain.mine_to(10);
    let tree = stands(&world, ExpiryPolicy::ClientRefund).await;
    // Down until there is not time for every path any more.
    world.chain.mine_to(tree.schedule().last_spend.0);
    world.follow().await;
    world.happened();
    look(&world).await;
    let losses = |events: Vec<Event>| {
        let sats = events.into_iter().filter_map(|event| match event {
            Event::LadderLoss { sat, clients, .. } => Some((sat, clients)),
            _ => None,
        });
        sats.collect::<Vec<_>>()
    };
    assert_eq!(losses(world.happened()), [], "the balances are not known");
    world.ctx.lightning.pretend();
    look(&world).await;
    // All of the channels is ours as far as we know, and the stock.
    assert_eq!(losses(world.happened()), [(4 * 200_000 + 400_000, 4)]);
    look(&world).await;
    assert_eq!(losses(world.happened()), []);
    let mut world = world.crash().await;
    world.ctx.lightning.pretend();
    world.chain.mine(&[]);
    world.follow().await;
    look(&world).await;
    assert_eq!(losses(world.happened()), [], "it was stored");
}

#[tokio::test]
async fn a_path_is_published_or_its_keys_are_taken_never_both() {
    let world = TestWorld::new().await;
    world.chain.mine_to(10);
    let tree = stands(&world, ExpiryPolicy::ClientRefund).await;
    hand_over(&world, &tree, 0).await;
    let wish = async |position: usize| {
        let leaf = clients()[position].leaf_id;
        let wished = world.ctx.store.write(async |tx| {
            let row = leaves::get(tx, leaf).await?.unwrap();
            leaves::wish_exit(tx, &row, 60, "asked").await
        });
        wished.await.unwrap()
    };
    assert!(!wish(0).await);
    assert!(wish(1).await);
    let client = &clients()[1];
    let lsp = world.ctx.keys.factory_secret(ROUND, FRESH);
    let keys = client.masked_keys(&lsp.public_key(&Secp256k1::new()));
    let id = client.id();
    let stored = world.ctx.store.write(async |tx| {
        let members = ladder::members(tx, Some(id)).await?;
        ladder::hand_over(tx, &members[0], &keys, &(0..4), 50).await
    });
    assert_eq!(stored.await.unwrap(), Taken::Publishing);
}

/// A client's session; as long as the reader lives, it is there.
fn comes(
    world: &TestWorld,
    client: &TestClient,
) -> tokio::sync::mpsc::Receiver<crate::sessions::Outgoing> {
    let (out, reader) = tokio::sync::mpsc::channel(64);
    let heartbeat = proto::v1::server_message::Body::Heartbeat(proto::v1::Heartbeat {});
    let token = proto::session::SessionToken::new(crate::keys::random());
    let started =
        world
            .ctx
            .sessions
            .start(client.id(), token, String::new(), out, heartbeat.into(), 16);
    started.unwrap();
    reader
}

/// Four clients in a young factory, and a ladder that makes the next one.
async fn young() -> (TestWorld, Tree) {
    let mut world = TestWorld::rich(|_| {}).await;
    let ctx = Arc::get_mut(&mut world.ctx).unwrap();
    ctx.config.ladder.enabled = true;
    world.ctx.lightning.pretend();
    world.follow().await;
    look(&world).await;
    let tree = stands(&world, ExpiryPolicy::ClientRefund).await;
    (world, tree)
}

/// The same, and the factory's dying days have begun.
async fn dying() -> (TestWorld, Tree) {
    let (mut world, tree) = young().await;
    world.chain.mine_to(tree.schedule().dying_from.0);
    world.follow().await;
    world.happened();
    (world, tree)
}

fn waiting(events: &[Event]) -> Vec<String> {
    let told = events.iter().filter_map(|event| match event {
        Event::LadderWaiting { problem, .. } => Some(problem.clone()),
        _ => None,
    });
    told.collect()
}

fn births(events: &[Event]) -> Vec<u32> {
    let born = events.iter().filter_map(|event| match event {
        Event::LadderBirth { invited, .. } => Some(*invited),
        _ => None,
    });
    born.collect()
}

#[tokio::test]
async fn a_birth_waits_for_who_must_come_and_says_so_when_too_few_do() {
    let (mut world, tree) = dying().await;
    let all = clients();
    let _one = comes(&world, &all[0]);
    look(&world).await;
    assert!(
        births(&world.happened()).is_empty(),
        "three are still to come"
    );
    let shown = async |world: &TestWorld| show::show(&world.ctx).await.unwrap().waiting;
    let wait = shown(&world).await.unwrap();
    let planned = tree.schedule().dying_from.0;
    let away = |client: &TestClient| wait.away.iter().any(|id| id[..] == client.id().0);
    assert_eq!(wait.away.len(), 3);
    assert!(all[1..].iter().all(away), "{wait:?}");
    assert!(wait.until > planned, "{wait:?}");
    // The day is old enough: it begins with those who are there, if they are enough.
    let slip = world.ctx.config.ladder.birth_slip;
    world.chain.mine_to(tree.schedule().dying_from.0 + slip);
    world.follow().await;
    world.happened();
    look(&world).await;
    look(&world).await;
    let told = world.happened();
    assert!(births(&told).is_empty());
    assert_eq!(waiting(&told).len(), 1, "told once: {told:?}");
    assert_eq!(shown(&world).await, None, "it waits for nobody any more");
    let tries = async |world: &TestWorld| {
        let read = world
            .ctx
            .store
            .read(async |tx| ladder::members(tx, None).await);
        let members = read.await.unwrap();
        members
            .iter()
            .map(|member| member.invited.map(|(tries, _)| tries))
            .collect::<Vec<_>>()
    };
    assert_eq!(tries(&world).await, [None; 4], "nobody was invited");

    let _two = comes(&world, &all[1]);
    look(&world).await;
    assert_eq!(births(&world.happened()), [2]);
    // Who was away has missed it as well.
    assert_eq!(tries(&world).await, [Some(1); 4]);
    // One birth a day.
    world.chain.mine(&[]);
    world.follow().await;
    look(&world).await;
    assert!(births(&world.happened()).is_empty());
}

/// Anybody can pay for one, never come for it, and have the payment back.
#[tokio::test]
async fn a_birth_is_not_held_up_by_strangers_orders_of_channels() {
    use crate::store::lsps1::{self, Order};
    let (world, _) = dying().await;
    let available = async || {
        let shown = show::preview(&world.ctx).await.unwrap();
        shown.available_sat
    };
    let before = available().await;
    let order = Order {
        id: "order".to_owned(),
        client: clients()[0].id(),
        lsp_balance_sat: 300_000,
        confirmations: 0,
        confirm_within: 6,
        expiry_blocks: 1_000,
        announce: false,
        at_birth: false,
        fee_sat: 500,
        hash: channel_host::PaymentHash([1; 32]),
        invoice: "an invoice".to_owned(),
        created_at: 0,
        valid_until: u64::MAX / 4,
    };
    let paid = world.ctx.store.write(async |tx| {
        lsps1::insert(tx, &order, 0).await?;
        lsps1::held(tx, &order.id, 100_000, 1).await
    });
    assert!(paid.await.unwrap());
    assert_eq!(available().await, before);
}

#[tokio::test]
async fn a_birth_leaves_the_coins_that_publishing_the_silent_takes() {
    let (world, _) = dying().await;
    let available = async || {
        let shown = show::preview(&world.ctx).await.unwrap();
        shown.available_sat
    };
    let all = world.ctx.wallet.balance().await.unwrap().confirmed.to_sat();
    let kept = all - available().await;
    assert!(kept > 0);
    // The dearer it is to publish, the more.
    let dear = bitcoin::FeeRate::from_sat_per_vb_u32(20);
    world.chain.set_feerate(dear);
    let more = all - available().await;
    assert!(more > kept, "{more} after {kept}");
}

#[tokio::test]
async fn a_notice_is_sent_once_and_waits_for_who_is_away() {
    let (world, tree) = dying().await;
    look(&world).await;
    let all = clients();
    let mut reader = comes(&world, &all[2]);
    let mut notices = async |world: &TestWorld| {
        look(world).await;
        let mut levels = Vec::new();
        while let Ok(Ok(message)) = reader.try_recv() {
            if let Some(proto::v1::server_message::Body::Notice(notice)) = message.body {
                assert_eq!(notice.factory.as_ref(), tree.id().0);
                levels.push(notice.level());
            }
        }
        levels
    };
    assert_eq!(notices(&world).await, [proto::v1::NoticeLevel::Dying]);
    assert!(notices(&world).await.is_empty());
    world.chain.mine_to(tree.schedule().publish_from.0 - 1);
    world.follow().await;
    assert_eq!(notices(&world).await, [proto::v1::NoticeLevel::LastDay]);
}

/// Each is a cause of its own: what the wallet was told of one says nothing of the others.
#[tokio::test]
async fn who_is_away_is_woken_before_its_factory_ends_when_it_does_and_for_the_birth() {
    let (world, tree) = young().await;
    world.set_webhook(clients()[0].id()).await;
    let causes = async |height: u32| {
        world.chain.mine_to(height);
        world.follow().await;
        look(&world).await;
        let woken = world.woken().await.into_iter();
        woken.map(|(cause, _)| cause).collect::<Vec<_>>()
    };
    let dying = tree.schedule().dying_from.0;
    let early = dying - world.ctx.config.ladder.early_notice;
    assert!(causes(early - 1).await.is_empty());
    let (ends, soon) = (
        format!("ends {}", tree.id()),
        format!("ends soon {}", tree.id()),
    );
    assert_eq!(causes(early).await, std::slice::from_ref(&soon));
    assert_eq!(causes(dying).await, ["birth".to_owned(), ends, soon]);
}

#[tokio::test]
async fn a_place_that_was_paid_for_is_in_the_next_birth_on_top_of_what_there_was() {
    use crate::store::ceremonies;
    use crate::store::lsps1::{self, Order};
    let (mut world, _tree) = dying().await;
    let all = clients();
    let _there: Vec<_> = all.iter().map(|client| comes(&world, client)).collect();
    // One of them must leave, too; the other is new.
    let stranger = TestClient::new(77, 0, bitcoin::Amount::from_sat(200_000));
    let order = |number: u8, client| Order {
        id: format!("order {number}"),
        client,
        lsp_balance_sat: 300_000,
        confirmations: 0,
        confirm_within: 400,
        expiry_blocks: 1_000,
        announce: false,
        at_birth: true,
        fee_sat: 500,
        hash: channel_host::PaymentHash([number; 32]),
        invoice: format!("invoice {number}"),
        created_at: 0,
        valid_until: u64::MAX / 4,
    };
    let away = TestClient::new(78, 0, bitcoin::Amount::from_sat(200_000));
    let orders = [
        order(1, all[0].id()),
        order(2, stranger.id()),
        // Nobody waits for this one.
        order(3, away.id()),
        // Its payment goes back before such a factory is usable.
        order(4, all[1].id()),
    ];
    let write = world.ctx.store.write(async |tx| {
        for order in &orders {
            lsps1::insert(tx, order, 0).await?;
            let until = if order.id == "order 4" { 200 } else { 100_000 };
            lsps1::held(tx, &order.id, until, 1).await?;
        }
        Ok(())
    });
    write.await.unwrap();
    let _stranger = comes(&world, &stranger);
    look(&world).await;
    assert_eq!(births(&world.happened()), [5]);
    let read = world.ctx.store.read(async |tx| {
        let open = ceremonies::open(tx).await?;
        let mut seated = Vec::new();
        for order in &orders {
            seated.push(
                lsps1::get(tx, &order.id)
                    .await?
                    .and_then(|row| row.ceremony),
            );
        }
        Ok((open, seated, lsps1::for_birth(tx).await?))
    });
    let (open, seated, left) = read.await.unwrap();
    let there = Some(open[0].id);
    assert_eq!(seated, [there, there, None, None]);
    assert_eq!(left.len(), 2);
    let invited = open[0].wish.invited.clone().unwrap();
    let capacity = |client: factory_tree::ids::ClientId| {
        let seat = invited.iter().find(|seat| seat.client == client);
        seat.unwrap().capacity.to_sat()
    };
    assert_eq!(capacity(all[0].id()), 200_000 + 300_000);
    assert_eq!(capacity(stranger.id()), 300_000);
    assert_eq!(capacity(all[1].id()), 200_000);
    // The month after, what was bought for this one is not given again.
    let read = world.ctx.store.read(async |tx| lsps1::born_with(tx).await);
    let bought = read.await.unwrap();
    let paid = bought.get(&(open[0].id, all[0].id()));
    assert_eq!(paid, Some(&bitcoin::Amount::from_sat(300_000)));
}

#[tokio::test]
async fn a_birth_that_failed_is_shown_with_why_and_what_comes_next() {
    use crate::store::ceremonies::Wish;
    use crate::store::{attempts, ceremonies};
    use factory_tree::ceremony::message::Round;
    use factory_tree::ids::{Attempt, CeremonyId};
    let (world, _tree) = dying().await;
    let shown = async || show::show(&world.ctx).await.unwrap().last_failure;
    assert_eq!(shown().await, None);

    let first = seen(&world).await.ladder.first;
    let params = world.ctx.config.ladder_params();
    let today = params
        .rung_at(first, Height(world.ctx.height()))
        .expect("it has begun");
    let of_factories = world
        .ctx
        .config
        .factory_params(&Default::default())
        .unwrap();
    let wish = |rung| Wish {
        params: of_factories.clone(),
        clients: None,
        min_clients: 2,
        capacity: None,
        feerate_sat_per_kwu: None,
        rung,
        invited: None,
    };
    let round = Round {
        ceremony: CeremonyId([3; 16]),
        attempt: Attempt(1),
    };
    let begun = world.ctx.store.write(async |tx| {
        ceremonies::insert(tx, round.ceremony, 77, &wish(Some(today))).await?;
        attempts::begin(tx, round, &FRESH, &[]).await?;
        sqlx::query("UPDATE ceremony SET state = 'running' WHERE ceremony = ?")
            .bind(round.ceremony.0.as_slice())
            .execute(&mut *tx)
            .await?;
        attempts::fail(tx, round, "nobody answered", &[]).await
    });
    begun.await.unwrap();
    let failure = shown().await.expect("its first attempt failed");
    assert_eq!(failure.ceremony.as_ref(), round.ceremony.0);
    let numbers = (failure.rung, failure.attempt, failure.begun);
    assert_eq!(numbers, (today, 1, 77));
    assert_eq!(failure.reason, "nobody answered");
    assert_eq!(failure.next, "the next attempt is under way");

    // What the operator asked for is no birth.
    let own = CeremonyId([4; 16]);
    let given_up = world.ctx.store.write(async |tx| {
        ceremonies::fail(tx, round.ceremony, "too many attempts").await?;
        ceremonies::insert(tx, own, 78, &wish(None)).await?;
        ceremonies::fail(tx, own, "cancelled").await
    });
    given_up.await.unwrap();
    let failure = shown().await.expect("all of it failed");
    assert_eq!(failure.ceremony.as_ref(), round.ceremony.0);
    assert_eq!(
        failure.reason,
        "too many attempts; the last attempt: nobody answered"
    );
    assert!(failure.next.starts_with("tried again"), "{}", failure.next);

    // Its day passes; another ceremony of the same rung was not in vain.
    let tomorrow = params.planned(first, today + 1);
    world.chain.mine_to(tomorrow.0);
    world.follow().await;
    let next = shown().await.unwrap().next;
    assert!(next.ends_with("stays empty"), "{next}");
    let later = CeremonyId([5; 16]);
    let born = world.ctx.store.write(async |tx| {
        ceremonies::insert(tx, later, 79, &wish(Some(today))).await?;
        ceremonies::complete(tx, later).await
    });
    born.await.unwrap();
    let next = shown().await.unwrap().next;
    assert!(next.ends_with("was born later"), "{next}");
}
