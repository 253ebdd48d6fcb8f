use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use channel_host::{
    ExitReason, FeePolicy, LeafKeys, LeafRefusal, LeafView, Msat, NodeEvent, PaymentHash,
    SpendKind, Stage, lsp_channel_id,
};
use factory_tree::factory::Member;
use factory_tree::ids::ClientId;
use factory_tree::params::ExpiryPolicy;
use factory_tree::testing::{TestClient, public, secret};
use factory_tree::tree::Tree;
use tokio::sync::mpsc;

use super::*;
use crate::ceremony::Mail;
use crate::store::attempts::{UsedKeys, use_keys};
use crate::store::{factories, leaves, payments, prices};
use crate::testing::{FRESH, ROUND, TestWorld};

const PATIENCE: Duration = Duration::from_secs(30);

/// A wallet's Lightning node on the world's chain.
struct Wallet {
    node: Node,
    keys: Arc<LeafKeys>,
    test: TestClient,
    /// Nobody reads it, but what is not taken in comes again.
    _events: Option<mpsc::UnboundedReceiver<NodeEvent>>,
}

/// A host that never takes in that a channel stands; and when it was told so.
#[derive(Debug, Default)]
struct Unwilling(Mutex<Vec<tokio::time::Instant>>);

#[async_trait::async_trait]
impl EventSink for Unwilling {
    async fn take(&self, event: NodeEvent) -> Result<(), channel_host::NotTakenIn> {
        if !matches!(event, NodeEvent::LeafOpened { .. }) {
            return Ok(());
        }
        self.0.lock().unwrap().push(tokio::time::Instant::now());
        Err(channel_host::NotTakenIn)
    }
}

impl Wallet {
    async fn start(world: &TestWorld, number: u64) -> Self {
        let (events, reader) = mpsc::unbounded_channel();
        Self {
            _events: Some(reader),
            ..Self::start_with(world, number, Arc::new(events)).await
        }
    }

    async fn start_with(world: &TestWorld, number: u64, events: Arc<dyn EventSink>) -> Self {
        let keys = Arc::new(LeafKeys::new(&[u8::try_from(number).unwrap() + 1; 32]));
        let config = NodeConfig {
            network: bitcoin::Network::Regtest,
            side: Side::Client,
            store: world.dir.path().join(format!("wallet-{number}.sqlite")),
            listen: None,
            fees: FeePolicy {
                base_msat: 0,
                proportional_millionths: 0,
            },
            to_self_delay: 1008,
            poll_interval: Duration::from_millis(10),
            keys: Arc::clone(&keys),
            chain: Arc::clone(&world.ctx.source),
            coins: Arc::new(WalletCoins::new(Arc::clone(&world.ctx.wallet))),
            events,
            allow_unfunded: false,
            lsps: None,
        };
        Self {
            node: Node::start(config).await.unwrap(),
            keys,
            test: TestClient::new(1, number, bitcoin::Amount::from_sat(200_000)),
            _events: None,
        }
    }

    fn id(&self) -> ClientId {
        ClientId(self.node.id().serialize())
    }

    fn leaf(&self) -> LeafId {
        LeafId(self.test.leaf_id.0)
    }

    fn member(&self, world: &TestWorld) -> Member {
        let ours = lsp_channel_id(self.test.leaf_id.0, FRESH);
        Member {
            client: self.id(),
            channel_key: self.keys.funding_pubkey(self.test.leaf_id.as_u128()),
            lsp_channel_key: world.ctx.keys.leaf_keys().funding_pubkey(ours),
            ..self.test.member()
        }
    }

    fn expect(&self, world: &TestWorld, tree: &Tree, position: u32) {
        let (leaf, _) = leaf_of(tree, position, FRESH).unwrap();
        let leaf = channel_host::Leaf {
            channel_id: self.test.leaf_id.as_u128(),
            ..leaf
        };
        let coordinator = world.ctx.lightning.node().unwrap().id();
        self.node.expect_leaf(leaf, coordinator).unwrap();
    }

    async fn connect(&self, world: &TestWorld) {
        let ours = world.ctx.lightning.node().unwrap();
        let address = ours.listen_address().unwrap();
        self.node.connect(ours.id(), address).await.unwrap();
    }
}

async fn world() -> TestWorld {
    let mut world = TestWorld::new().await;
    let config = &mut Arc::get_mut(&mut world.ctx).unwrap().config;
    config.lightning_listen = "127.0.0.1:0".parse().unwrap();
    world.chain.mine_to(10);
    world.follow().await;
    world.happened();
    start(&world.ctx, world.dir.path().join("channels.sqlite"))
        .await
        .unwrap();
    world
}

async fn next(mailbox: &mut mpsc::Receiver<Mail>) -> (ClientId, Result<(), String>) {
    let mail = tokio::time::timeout(PATIENCE, mailbox.recv()).await;
    match mail.expect("no mail came") {
        Some(Mail::Channel {
            round,
            client,
            result,
        }) if round == ROUND => (client, result),
        other => panic!("{other:?}"),
    }
}

fn view(world: &TestWorld, wallet: &Wallet) -> LeafView {
    let node = world.ctx.lightning.node().unwrap();
    node.leaf(wallet.leaf()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channels_are_opened_gated_and_given_up() {
    let world = world().await;
    let mut wallets = Vec::new();
    for number in 0..3 {
        wallets.push(Wallet::start(&world, number).await);
    }
    let members = wallets.iter().map(|wallet| wallet.member(&world));
    let tree = world
        .factory_of(ExpiryPolicy::ClientRefund, members.collect())
        .await;
    let [first, late, unwilling] = wallets.as_slice() else {
        panic!("three")
    };
    first.expect(&world, &tree, 0);
    late.expect(&world, &tree, 1);
    first.connect(&world).await;
    unwilling.connect(&world).await;
    let (mut mailbox, _status) = world.ctx.ceremonies.register(ROUND.ceremony);
    let id = tree.id();
    let opening = Opening::start(&world.ctx, ROUND, Arc::new(tree), FRESH);
    let mut ends = [next(&mut mailbox).await, next(&mut mailbox).await];
    ends.sort_by_key(|(_, result)| result.is_err());
    assert_eq!(ends[0], (first.id(), Ok(())));
    assert_eq!(ends[1].0, unwilling.id());
    let why = ends[1].1.clone().unwrap_err();
    assert!(why.contains("no such channel is expected"), "{why}");
    late.connect(&world).await;
    assert_eq!(next(&mut mailbox).await, (late.id(), Ok(())));

    // Its funding is on its way, but not in the chain.
    settle(&world.ctx).await;
    assert!(!view(&world, first).factory_confirmed);
    let usable = async |usable: bool| {
        let set = world
            .ctx
            .store
            .write(async |tx| factories::set_confirmed(tx, id, Some(11), usable).await);
        set.await.unwrap();
        settle(&world.ctx).await;
        view(&world, first).factory_confirmed
    };
    assert!(usable(true).await);
    assert!(!usable(false).await, "after a reorg");

    // One that stood and is closed again is told: the funding must not be signed for it.
    late.node.abandon_leaf(late.leaf()).unwrap();
    let (client, closed) = next(&mut mailbox).await;
    assert_eq!(client, late.id());
    assert!(closed.is_err());

    // As if it had been another attempt, which failed.
    drop(opening);
    let failed = world.ctx.store.write(async |tx| {
        let query = sqlx::query("UPDATE factory SET state = 'failed'");
        Ok(query.execute(tx).await.map(drop)?)
    });
    failed.await.unwrap();
    settle(&world.ctx).await;
    let node = world.ctx.lightning.node().unwrap();
    assert_eq!(view(&world, first).stage, Stage::Abandoned);
    assert_ne!(view(&world, late).stage, Stage::Open);
    assert!(node.channels().is_empty());
    settle(&world.ctx).await;
    assert!(world.ctx.lightning.forgotten().contains(&first.leaf()));
    drop(node);
    for wallet in &wallets {
        wallet.node.shutdown().await.unwrap();
    }
    world.ctx.lightning.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_taken_in_is_told_again_after_a_pause_that_grows() {
    let world = world().await;
    let unwilling = Arc::new(Unwilling::default());
    let events: Arc<dyn EventSink> = Arc::<Unwilling>::clone(&unwilling);
    let mut wallets = vec![Wallet::start_with(&world, 0, events).await];
    for number in 1..3 {
        wallets.push(Wallet::start(&world, number).await);
    }
    let members = wallets.iter().map(|wallet| wallet.member(&world));
    let tree = world
        .factory_of(ExpiryPolicy::ClientRefund, members.collect())
        .await;
    wallets[0].expect(&world, &tree, 0);
    wallets[0].connect(&world).await;
    let (mut mailbox, _status) = world.ctx.ceremonies.register(ROUND.ceremony);
    let _opening = Opening::start(&world.ctx, ROUND, Arc::new(tree), FRESH);
    assert_eq!(next(&mut mailbox).await, (wallets[0].id(), Ok(())));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let told = loop {
        let told = unwilling.0.lock().unwrap().clone();
        if told.len() > 4 {
            break told;
        }
        assert!(tokio::time::Instant::now() < deadline, "{told:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    for (pair, least) in told.windows(2).zip([200, 400, 800, 1_000]) {
        let pause = pair[1] - pair[0];
        assert!(pause >= Duration::from_millis(least), "{pause:?} < {least}");
    }
    for wallet in &wallets {
        wallet.node.shutdown().await.unwrap();
    }
    world.ctx.lightning.shutdown().await;
}

/// Whoever can have one event refused for ever would stop all that come after it.
#[tokio::test]
async fn what_can_never_be_taken_in_stands_in_nobodys_way() {
    let world = TestWorld::new().await;
    world.ctx.lightning.pretend();
    let tree = world.factory(ExpiryPolicy::ClientRefund, 4).await;
    world.order(&tree, 0, 50_000).await;
    let hash = PaymentHash([4; 32]);
    let damaged = world.ctx.store.write(async |tx| {
        let query = "UPDATE sale SET state = 'ordered', fresh = x'00', hash = ?";
        let query = sqlx::query(query).bind(hash.0.as_slice());
        Ok(query.execute(tx).await.map(drop)?)
    });
    damaged.await.unwrap();
    let event = NodeEvent::PaymentHeld {
        hash,
        amount: Msat(1_000),
        expiry: 5_000,
    };
    let sink = sink::Sink::new(&world.ctx);
    sink.take(event.clone()).await.unwrap();
    let asked = || std::mem::take(&mut *world.ctx.lightning.asked.lock().unwrap());
    assert_eq!(asked(), [Asked::SendBack(hash)]);
    // What may have been given for it is not given away.
    for state in ["paid", "sold", "settled"] {
        let begun = world.ctx.store.write(async |tx| {
            let query = sqlx::query("UPDATE sale SET state = ?").bind(state);
            Ok(query.execute(tx).await.map(drop)?)
        });
        begun.await.unwrap();
        sink.take(event.clone()).await.unwrap();
        assert!(asked().is_empty(), "{state}");
    }
    // And that it was taken is told until it can be booked.
    let received = NodeEvent::PaymentReceived {
        hash,
        amount: Msat(1_000),
        fee: Msat(0),
    };
    assert!(sink.take(received).await.is_err());
}

/// Whoever says yes to it has the channel funded.
#[tokio::test]
async fn a_channel_whose_cost_can_never_be_booked_is_not_paid_for() {
    let world = TestWorld::new().await;
    let event = NodeEvent::JitFunded {
        scid: 7,
        id: 8,
        txid: bitcoin::hashes::Hash::all_zeros(),
        capacity: bitcoin::Amount::from_sat(100_000),
        // No column holds it.
        fee: Some(bitcoin::Amount::from_sat(u64::MAX)),
    };
    let sink = sink::Sink::new(&world.ctx);
    // Nobody is there to give the channel up.
    assert!(sink.take(event.clone()).await.is_err());
    world.ctx.lightning.pretend();
    sink.take(event).await.unwrap();
    let asked = world.ctx.lightning.asked.lock().unwrap().clone();
    assert_eq!(asked, [Asked::RefuseFunding(7)]);
}

#[tokio::test]
async fn why_a_channel_did_not_come_about_is_kept_while_an_attempt_opens_it_and_no_longer() {
    let world = TestWorld::new().await;
    let tree = world.factory(ExpiryPolicy::ClientRefund, 4).await;
    let opened = LeafId(tree.spec().members[2].leaf_id.0);
    let sold = LeafId([77; 16]);
    let lightning = &world.ctx.lightning;
    let sink = sink::Sink::new(&world.ctx);
    let refuse = async |leaf| {
        let reason = LeafRefusal::Script;
        let event = NodeEvent::LeafRefused { leaf, reason };
        sink.take(event).await.unwrap();
    };
    let watches = async |leaves: usize| {
        let look = async {
            while lightning.refusals().len() != leaves {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let looked = tokio::time::timeout(PATIENCE, look).await;
        looked.expect("in time");
    };
    refuse(opened).await;
    refuse(sold).await;
    assert!(lightning.refusals().is_empty(), "nobody would ask for them");
    let opening = Opening::start(&world.ctx, ROUND, Arc::new(tree), FRESH);
    watches(4).await;
    refuse(opened).await;
    refuse(sold).await;
    assert!(lightning.take_refusal(opened).is_some());
    watches(4).await;
    drop(opening);
    watches(0).await;
}

#[tokio::test]
async fn what_the_node_says_twice_happens_once() {
    let mut world = TestWorld::new().await;
    let tree = world.factory(ExpiryPolicy::ClientRefund, 4).await;
    let member = &tree.spec().members[2];
    let leaf = LeafId(member.leaf_id.0);
    let sink = sink::Sink::new(&world.ctx);
    let hash = PaymentHash([5; 32]);
    let events = [
        NodeEvent::ExitNeeded {
            leaf,
            reason: ExitReason::Closed,
        },
        NodeEvent::PaymentReceived {
            hash,
            amount: Msat(7),
            fee: Msat(0),
        },
    ];
    for event in events.iter().chain(&events) {
        sink.take(event.clone()).await.unwrap();
    }
    let told = world.happened();
    assert!(
        matches!(told.as_slice(), [Event::ExitNeeded { client, .. }, Event::PaymentReceived { amount_msat: 7, .. }]
            if *client == member.client),
        "{told:?}"
    );
    let stored = world
        .ctx
        .store
        .read(async |tx| Ok((leaves::exits(tx).await?, payments::list(tx, 10).await?)));
    let (exits, payments) = stored.await.unwrap();
    assert_eq!((exits.len(), payments.len()), (1, 1));
    // What cannot be stored is asked for again.
    world.ctx.store.close().await;
    assert!(sink.take(events[0].clone()).await.is_err());
}

#[tokio::test]
async fn the_fee_of_a_payment_through_us_is_earned_once_however_often_it_is_told() {
    let world = TestWorld::new().await;
    let sink = sink::Sink::new(&world.ctx);
    for (number, fee) in [(1, 11), (2, 7), (1, 11), (3, 0)] {
        let event = NodeEvent::PaymentForwarded {
            number: [number; 32],
            amount: Msat(1_000),
            fee: Msat(fee),
        };
        sink.take(event).await.unwrap();
    }
    let store = &world.ctx.store;
    let earned = async || {
        let days = store.read(async |tx| prices::revenue(tx, 0).await).await;
        let days = days.unwrap().into_values();
        days.map(|day| day.routing_msat).collect::<Vec<_>>()
    };
    assert_eq!(earned().await.iter().sum::<u64>(), 18);
    // Days later those are not remembered any more; what they brought is.
    let later = crate::clock::unix_time() + 10 * 86_400;
    let write = store.write(async |tx| {
        prices::forwarded(tx, &[4; 32], 5, later).await?;
        prices::forwarded(tx, &[4; 32], 5, later).await?;
        let kept = sqlx::query_scalar("SELECT count(*) FROM forward");
        Ok(kept.fetch_one(tx).await?)
    });
    let kept: i64 = write.await.unwrap();
    assert_eq!(kept, 1);
    assert_eq!(earned().await.iter().sum::<u64>(), 23);
    assert_eq!(earned().await.last(), Some(&5), "a day of its own");
}

#[tokio::test]
async fn who_is_away_is_told_when_a_payment_forces_its_channel_to_the_chain() {
    let world = TestWorld::new().await;
    let test = TestClient::new(1, 0, bitcoin::Amount::from_sat(200_000));
    let client = PublicKey::from_slice(&test.id().0).unwrap();
    world.set_webhook(test.id()).await;
    let sink = sink::Sink::new(&world.ctx);
    let soon = NodeEvent::ExpirySoon {
        client,
        exits_at: 912,
    };
    // At every block.
    for _ in 0..2 {
        sink.take(soon.clone()).await.unwrap();
        let [(cause, body)] = world.woken().await.try_into().unwrap();
        assert_eq!(cause, "expiry");
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["method"], "lsps5.expiry_soon");
        assert_eq!(body["params"], serde_json::json!({ "timeout": 912 }));
    }
}

#[tokio::test]
async fn a_payment_of_ours_is_pending_until_it_ends_and_may_be_tried_again() {
    let world = TestWorld::new().await;
    let hash = [9; 32];
    let store = &world.ctx.store;
    let begun = async || {
        store
            .write(async |tx| payments::begun(tx, hash, 5, 1).await)
            .await
    };
    let ended = async |end: Result<u64, &'static str>| {
        let ended = store.write(async |tx| payments::ended(tx, hash, end, 2).await);
        ended.await.unwrap()
    };
    let state = async || {
        let read = store.read(async |tx| payments::get(tx, hash).await).await;
        read.unwrap().unwrap().state
    };
    use payments::PaymentState::{Failed, Pending, Succeeded};
    assert_eq!(begun().await.unwrap(), None);
    assert_eq!(state().await, Pending);
    assert_eq!(begun().await.unwrap(), Some(Pending), "under way already");
    assert!(ended(Err("no way")).await);
    assert!(!ended(Err("no way")).await, "told again");
    assert_eq!(begun().await.unwrap(), Some(Failed));
    assert_eq!(state().await, Pending);
    assert!(ended(Ok(3)).await);
    assert_eq!(begun().await.unwrap(), Some(Succeeded));
    assert_eq!(state().await, Succeeded);
}

#[tokio::test]
async fn a_leaf_is_told_as_it_was_signed() {
    let world = TestWorld::new().await;
    let tree = world.factory(ExpiryPolicy::ClientRefund, 5).await;
    for position in 0..5 {
        let (leaf, _) = leaf_of(&tree, position, FRESH).unwrap();
        let output = &leaf.transaction.output[leaf.vout as usize];
        assert_eq!(output.script_pubkey, leaf.redeem_script.to_p2wsh());
        let [timeout] = leaf.spends.as_slice() else {
            panic!("one timeout")
        };
        let signed = &tree.channel_timeouts()[position as usize];
        assert_eq!(
            (timeout.txid, timeout.kind),
            (signed.txid, SpendKind::Timeout)
        );
        let params = &tree.spec().params;
        assert_eq!(
            leaf.last_expiry,
            tree.schedule().expiry.0 - params.late_margin
        );
        let (again, _) = leaf_of(&tree, position, [8; 16]).unwrap();
        assert_ne!(again.channel_id, leaf.channel_id, "our keys are ours alone");
    }
    assert!(leaf_of(&tree, 5, FRESH).is_none());
}

#[tokio::test]
async fn a_bought_leaf_is_told_as_it_was_signed() {
    let world = TestWorld::new().await;
    let tree = world.factory(ExpiryPolicy::ClientRefund, 4).await;
    let first = world.sell(&tree, 1, 60_000).await;
    let sale = world.sell(&tree, 0, 50_000).await;
    let leaf = sold_leaf_of(
        &sale.txs,
        sale.txs.sale.bought.position,
        tree.schedule(),
        sale.fresh,
    )
    .unwrap();
    assert_eq!(leaf.id, LeafId(sale.leaf.0));
    assert_eq!(leaf.transaction, sale.txs.chain.tx);
    let output = &leaf.transaction.output[leaf.vout as usize];
    assert_eq!(output.script_pubkey, leaf.redeem_script.to_p2wsh());
    assert_eq!(output.value.to_sat(), 50_000);
    // Our key of it is the one that was signed for.
    let ours = world.ctx.keys.leaf_keys().funding_pubkey(leaf.channel_id);
    assert_eq!(ours, sale.txs.sale.bought.lsp_channel_key);
    let spends: Vec<_> = leaf
        .spends
        .iter()
        .map(|spend| (spend.txid, spend.kind))
        .collect();
    assert_eq!(
        spends,
        [(sale.txs.channel_timeouts[0].txid, SpendKind::Timeout)]
    );
    let (born, _) = leaf_of(&tree, 0, FRESH).unwrap();
    let times = |leaf: &channel_host::Leaf| (leaf.exit_delay, leaf.last_expiry);
    assert_eq!(times(&leaf), times(&born));

    // It serves no other: a member of another factory with this leaf would be taken for it.
    let join = UsedKeys {
        leaf_id: sale.leaf,
        factory_key: public(&secret(9, "factory", 1)),
        channel_key: public(&secret(9, "channel", 1)),
        payout_script: bitcoin::ScriptBuf::new(),
    };
    let round = factory_tree::ceremony::message::Round {
        ceremony: factory_tree::ids::CeremonyId([9; 16]),
        attempt: factory_tree::ids::Attempt(1),
    };
    let used = world.ctx.store.write(async |tx| {
        let taken = use_keys(tx, round, std::slice::from_ref(&join)).await?;
        let leaf_id = factory_tree::ids::LeafId([77; 16]);
        let other = use_keys(tx, round, &[UsedKeys { leaf_id, ..join }]).await?;
        Ok((taken.len(), other.len()))
    });
    assert_eq!(used.await.unwrap(), (0, 1));

    // Gates, events and wishes know whose it is, from the moment it is paid for.
    let unsold = world.order(&tree, 2, 50_000).await;
    let rows = world.ctx.store.read(async |tx| leaves::all(tx).await);
    let rows = rows.await.unwrap();
    assert_eq!(rows.len(), 6);
    let row = |leaf| rows.iter().find(|row| row.leaf == leaf);
    assert!(row(unsold.leaf).is_none());
    for (sale, position) in [(&first, 1), (&sale, 0)] {
        let row = row(sale.leaf).unwrap();
        let client = tree.spec().members[position as usize].client;
        assert_eq!((row.sale, row.position), (Some(sale.id), position));
        assert_eq!((row.client, row.handed_over), (client, false));
    }
}

#[tokio::test]
async fn a_bought_leaf_is_cut_by_a_poison_of_its_stock() {
    let world = TestWorld::new().await;
    let tree = world.factory(ExpiryPolicy::ClientRefund, 4).await;
    let one = world.sell(&tree, 1, 60_000).await;
    let two = world.sell(&tree, 0, 50_000).await;
    let known = world.ctx.trees.get(&world.ctx.store, tree.id()).await;
    let known = known.unwrap();
    let mut spent: HashMap<_, _> = known
        .path(1, None)
        .unwrap()
        .into_iter()
        .map(|step| (step.spends.outpoint, (step.txid, 50)))
        .collect();
    spent.insert(one.txs.chain.spends.outpoint, (one.txs.chain.txid, 60));
    let poison = &two.txs.poisons[1];
    spent.insert(poison.spends.outpoint, (poison.txid, 70));
    let fate = |sale| reconcile::fate(&known.path(0, sale).unwrap(), &spent);
    assert_eq!(fate(None), reconcile::Fate::Whole);
    assert_eq!(fate(Some(one.id)), reconcile::Fate::Whole);
    assert_eq!(fate(Some(two.id)), reconcile::Fate::Cut { height: 70 });
}

#[tokio::test]
async fn nobody_is_told_an_address_that_cannot_be_reached() {
    let mut world = TestWorld::new().await;
    let mut told = |listen: &str, public: Option<&str>| {
        let config = &mut Arc::get_mut(&mut world.ctx).unwrap().config;
        config.lightning_listen = listen.parse().unwrap();
        config.lightning_public_address = public.map(str::to_owned);
        public_address(&world.ctx).ok()
    };
    assert_eq!(told("127.0.0.1:1", None), Some(None), "what it listens on");
    assert_eq!(told("0.0.0.0:1", None), None);
    let named = Some("lsp.example:9735");
    assert_eq!(told("0.0.0.0:1", named), Some(named.map(str::to_owned)));
    assert_eq!(told("0.0.0.0:1", Some("lsp.example")), None);
}
