use std::time::Duration;

use bitcoin::{Amount, Transaction, TxOut, absolute, transaction};
use chain::Follower;
use factory_tree::ids::ClientId;
use factory_tree::params::{FactoryParams, Profile};
use proto::session::SessionToken;
use proto::v1::server_message::Body;
use tokio::sync::{mpsc, watch};

use super::*;
use crate::context::{ChainState, Context};
use crate::event::Event;
use crate::sessions::{Interest, Outgoing};
use crate::store::ceremonies::{self, CeremonyState, Wish};
use crate::testing::TestWorld;

const PATIENCE: Duration = Duration::from_secs(20);

fn client(byte: u8) -> ClientId {
    ClientId([byte; 33])
}

fn wish(clients: Option<u32>) -> Wish {
    Wish {
        params: FactoryParams::profile(Profile::Lite, bitcoin::Network::Regtest),
        clients,
        min_clients: 2,
        capacity: None,
        feerate_sat_per_kwu: None,
        rung: None,
        invited: None,
    }
}

/// A client that is connected, interested, and silent from then on.
fn silent(ctx: &Context, byte: u8) -> mpsc::Receiver<Outgoing> {
    let (out, reader) = mpsc::channel(64);
    let welcome = Body::Heartbeat(proto::v1::Heartbeat {}).into();
    let token = SessionToken::new([byte; 32]);
    ctx.sessions
        .start(client(byte), token, String::new(), out, welcome, 9)
        .unwrap();
    let interest = Interest {
        capacity: Amount::from_sat(200_000),
        has_fee_coins: false,
        once: true,
        order: 0,
    };
    ctx.sessions.set_interest(&client(byte), Some(interest));
    reader
}

impl TestWorld {
    /// A world whose coordinator has two coins, and knows the tip.
    pub(crate) async fn rich(configure: impl FnOnce(&mut crate::config::Config)) -> Self {
        let mut world = Self::new().await;
        configure(&mut std::sync::Arc::get_mut(&mut world.ctx).unwrap().config);
        let mut output = Vec::new();
        for _ in 0..2 {
            output.push(TxOut {
                value: Amount::from_sat(10_000_000),
                script_pubkey: world.ctx.wallet.new_address().await.unwrap().into(),
            });
        }
        let coins = Transaction {
            version: transaction::Version::TWO,
            lock_time: absolute::LockTime::ZERO,
            input: vec![bitcoin::TxIn {
                previous_output: bitcoin::OutPoint::new(
                    bitcoin::hashes::Hash::from_byte_array([9; 32]),
                    0,
                ),
                ..bitcoin::TxIn::default()
            }],
            output,
        };
        world.chain.mine(&[coins]);
        world.tip().await;
        world
    }

    /// The wallet takes in what was mined, and the node is there.
    async fn tip(&self) {
        let source = std::sync::Arc::clone(&self.ctx.source);
        let mut follower = Follower::new(source, self.ctx.wallet.checkpoints().await).unwrap();
        while let Some(event) = follower.next().await.unwrap() {
            self.ctx.wallet.apply(&event).await.unwrap();
        }
        self.ctx.events.set_height(self.chain.height());
        self.ctx
            .chain
            .send_replace(ChainState::Ready(self.chain.height()));
    }

    async fn state(&self, id: CeremonyId) -> CeremonyState {
        let read = self
            .ctx
            .store
            .read(async |tx| ceremonies::get(tx, id).await)
            .await;
        read.unwrap().unwrap().state
    }

    async fn next(&mut self, wanted: fn(&Event) -> bool) {
        let found = async {
            loop {
                let event = self.events.recv().await.unwrap();
                if wanted(&event) {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, found)
            .await
            .expect("the event did not come");
    }
}

/// The operator cancels in the very moment in which the last client acks.
#[tokio::test]
async fn a_cancel_that_comes_too_late_takes_no_coin_from_a_signed_funding() {
    let mut world = TestWorld::new().await;
    let tree = world
        .factory(factory_tree::params::ExpiryPolicy::ClientRefund, 4)
        .await;
    let id = CeremonyId([1; 16]);
    let pin = crate::store::ceremonies::Pin {
        outpoint: tree.funding(),
        txout: TxOut {
            value: Amount::from_sat(7),
            script_pubkey: bitcoin::ScriptBuf::new(),
        },
    };
    let pins = [pin];
    let pinned = world
        .ctx
        .store
        .write(async |tx| ceremonies::add_pins(tx, id, 0, &pins).await)
        .await;
    pinned.unwrap();
    world.ctx.wallet.reserve([tree.funding()]).await;
    // Its driver has ended since the operator's command looked whether the ceremony was open.
    driver::wait_until_over(&world.ctx, id).await;
    let kept = world
        .ctx
        .store
        .read(async |tx| ceremonies::pins(tx, id).await)
        .await;
    assert_eq!(kept.unwrap(), pins);
    assert!(world.ctx.wallet.reserved().await.contains(&tree.funding()));
    assert!(world.happened().is_empty());
    assert_eq!(world.state(id).await, CeremonyState::Complete);
}

/// As [`TestWorld::factory`], but the coordinator was killed after it was stored that every channel stands and before the funding was signed.
async fn ready(world: &TestWorld) -> factory_tree::tree::Tree {
    let tree = world
        .factory(factory_tree::params::ExpiryPolicy::ClientRefund, 4)
        .await;
    let changed = world.ctx.store.write(async |tx| {
        for update in [
            "UPDATE ceremony SET state = 'running'",
            "UPDATE attempt SET state = 'ready'",
            "UPDATE factory SET state = 'ready'",
        ] {
            sqlx::query(update).execute(&mut *tx).await?;
        }
        Ok(())
    });
    changed.await.unwrap();
    tree
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_ready_is_funded_when_the_database_works_again() {
    let mut world = TestWorld::new().await;
    ready(&world).await;
    world.ctx.lightning.pretend();
    let full =
        "CREATE TRIGGER full BEFORE UPDATE ON factory BEGIN SELECT RAISE(ABORT, 'full'); END";
    let broken = world
        .ctx
        .store
        .write(async |tx| Ok(sqlx::query(full).execute(tx).await.map(drop)?));
    broken.await.unwrap();
    let stop = watch::Sender::new(false);
    resume_all(&world.ctx, &stop.subscribe()).await.unwrap();
    world
        .next(|event| matches!(event, Event::StoreFailed { .. }))
        .await;
    let done = world.ctx.store.write(async |tx| {
        Ok(sqlx::query("DROP TRIGGER full")
            .execute(tx)
            .await
            .map(drop)?)
    });
    done.await.unwrap();
    // The node is away all the time: signing does not need it.
    tokio::time::timeout(PATIENCE, world.ctx.ceremonies.idle())
        .await
        .expect("the funding was given up");
    assert_eq!(
        world.state(CeremonyId([1; 16])).await,
        CeremonyState::Complete
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ceremony_that_waits_for_the_node_can_be_cancelled() {
    let world = TestWorld::new().await;
    let id = CeremonyId([5; 16]);
    let begun = world
        .ctx
        .store
        .write(async |tx| ceremonies::insert(tx, id, 0, &wish(Some(2))).await);
    begun.await.unwrap();
    let stop = watch::Sender::new(false);
    resume_all(&world.ctx, &stop.subscribe()).await.unwrap();
    tokio::time::timeout(PATIENCE, cancel(&world.ctx, id))
        .await
        .expect("the operator waits for the node")
        .unwrap();
    assert_eq!(world.state(id).await, CeremonyState::Failed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clients_that_come_free_are_invited_by_whoever_waits_for_them() {
    let mut world = TestWorld::rich(|config| config.ceremony.join_seconds = 1).await;
    let _silent = [silent(&world.ctx, 2), silent(&world.ctx, 3)];
    let stop = watch::Sender::new(false);
    let started = |event: &Event| matches!(event, Event::CeremonyStarted { .. });
    create(&world.ctx, wish(None), stop.subscribe())
        .await
        .unwrap();
    world.next(started).await;
    create(&world.ctx, wish(Some(2)), stop.subscribe())
        .await
        .unwrap();
    // The first one fails, as nobody joins.
    world.next(started).await;
}

/// A waiter looks at what is under way while others change it.
#[test]
fn waiting_for_a_ceremony_locks_nobody_up() {
    const ROUNDS: u32 = 100_000;
    let ceremonies = std::sync::Arc::new(Ceremonies::default());
    let (done, ended) = std::sync::mpsc::channel();
    let id = CeremonyId([1; 16]);
    for of in [id, CeremonyId([2; 16])] {
        let (writer, waiter) = (
            std::sync::Arc::clone(&ceremonies),
            std::sync::Arc::clone(&ceremonies),
        );
        let (written, waited) = (done.clone(), done.clone());
        std::thread::spawn(move || {
            for _ in 0..ROUNDS {
                writer.register(of);
                writer.unregister(of);
            }
            written.send(()).unwrap();
        });
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap();
            for _ in 0..ROUNDS {
                runtime.block_on(waiter.over(id));
            }
            waited.send(()).unwrap();
        });
    }
    for _ in 0..4 {
        ended
            .recv_timeout(PATIENCE)
            .expect("threads wait for each other");
    }
}

#[tokio::test]
async fn no_feerate_is_paid_above_the_configured_one() {
    let world = TestWorld::rich(|config| config.chain.max_feerate = 50).await;
    let stop = watch::Sender::new(false);
    for per_vb in [0, 51, 100_000] {
        let wish = Wish {
            feerate_sat_per_kwu: Some(per_vb * 250),
            ..wish(Some(2))
        };
        let refused = create(&world.ctx, wish, stop.subscribe()).await;
        assert!(
            matches!(refused, Err(CreateError::Feerate { max: 50, .. })),
            "{per_vb}: {refused:?}"
        );
    }
    let wish = Wish {
        feerate_sat_per_kwu: Some(50 * 250),
        ..wish(Some(2))
    };
    create(&world.ctx, wish, stop.subscribe()).await.unwrap();
    stop.send_replace(true);
}
