use factory_tree::ids::FactoryId;
use factory_tree::output::OutputRole;
use factory_tree::params::ExpiryPolicy;
use factory_tree::tree::Tree;

use super::*;
use crate::store::factories::{self, FactoryRow};
use crate::testing::TestWorld;

impl TestWorld {
    /// Follows the chain to its tip, from where the wallet is.
    pub(crate) async fn follow(&self) {
        let source = Arc::clone(&self.ctx.source);
        let mut follower = Follower::new(source, self.ctx.wallet.checkpoints().await).unwrap();
        catch_up(&self.ctx, &mut follower).await.unwrap();
        self.ctx.events.set_height(self.chain.height());
        self.ctx
            .chain
            .send_replace(ChainState::Ready(self.chain.height()));
        at_tip(&self.ctx).await.unwrap();
    }

    async fn row(&self, id: FactoryId) -> FactoryRow {
        let read = self
            .ctx
            .store
            .read(async |tx| factories::get(tx, id).await)
            .await;
        read.unwrap().unwrap()
    }

    /// Mines the path of client 0 down to its leaf, one block each.
    fn publish(&self, tree: &Tree) -> u32 {
        for planned in tree.path(0) {
            self.chain.mine(std::slice::from_ref(&planned.tx));
        }
        self.chain.height()
    }
}

fn names(events: &[Event]) -> Vec<String> {
    let name = |event: &Event| {
        serde_json::to_value(event).unwrap()["event"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    events.iter().map(name).collect()
}

/// After the blocks were taken in, and the height is that of the last: a look in between derives nothing, or what was due a block ago.
#[tokio::test]
async fn the_leaves_are_looked_at_when_the_height_is_known() {
    let world = TestWorld::new().await;
    let height = world.ctx.height();
    let asked = || world.ctx.lightning.looks_asked();
    let before = asked();
    ready(&world.ctx, height + 1);
    assert_eq!(asked(), before + 1);
    ready(&world.ctx, height + 1);
    assert_eq!(asked(), before + 1, "nothing is new");
    away(
        &world.ctx,
        &ChainTaskError::Store(StoreError::Full {
            path: "disk".into(),
        }),
    );
    ready(&world.ctx, height + 1);
    assert_eq!(asked(), before + 2, "it was unknown meanwhile");
}

#[tokio::test]
async fn a_funding_is_broadcast_until_it_is_deep_enough() {
    let mut world = TestWorld::new().await;
    world.chain.mine_to(10);
    let tree = world.factory(ExpiryPolicy::ClientRefund, 4).await;
    let funding = world.funding(&tree).await;
    world.follow().await;
    assert_eq!(names(&world.happened()), ["funding_broadcast"]);
    world.chain.clear_mempool();
    world.chain.mine(&[]);
    world.follow().await;
    assert_eq!(
        names(&world.happened()),
        ["funding_broadcast"],
        "the node forgot it"
    );
    world.chain.mine(&[]);
    world.follow().await;
    assert!(world.happened().is_empty(), "the node has it");

    let height = world.chain.mine(&[funding]);
    world.follow().await;
    let confirmed = Event::FactoryConfirmed {
        factory: tree.id(),
        height,
    };
    assert_eq!(world.happened(), [confirmed]);
    world.chain.mine(&[]);
    world.follow().await;
    assert_eq!(
        names(&world.happened()),
        ["factory_usable"],
        "at the depth that was agreed: 2"
    );
    assert!(world.row(tree.id()).await.usable);
}

#[tokio::test]
async fn a_funding_that_is_reorged_out_is_unconfirmed_again() {
    let mut world = TestWorld::new().await;
    world.chain.mine_to(10);
    let tree = world.factory(ExpiryPolicy::ClientRefund, 4).await;
    let funding = world.funding(&tree).await;
    world.chain.mine(std::slice::from_ref(&funding));
    world.chain.mine(&[]);
    world.follow().await;
    world.happened();
    world.chain.undo(2);
    for _ in 0..3 {
        world.chain.mine(&[]);
    }
    world.follow().await;
    assert_eq!(
        names(&world.happened()),
        ["factory_unconfirmed", "funding_broadcast"]
    );
    let row = world.row(tree.id()).await;
    assert_eq!((row.confirmed_height, row.usable), (None, false));

    let height = world.chain.mine(&[funding]);
    world.chain.mine(&[]);
    world.follow().await;
    assert_eq!(
        names(&world.happened()),
        ["factory_confirmed", "factory_usable"]
    );
    assert_eq!(world.row(tree.id()).await.confirmed_height, Some(height));
}

#[tokio::test]
async fn blocks_that_are_seen_again_after_a_crash_happen_once() {
    let mut world = TestWorld::new().await;
    world.chain.mine_to(5);
    let tree = world.factory(ExpiryPolicy::ClientRefund, 4).await;
    let funding = world.funding(&tree).await;
    // The wallet stores its place now and then only; the database has every block.
    world.chain.mine(&[funding]);
    world.chain.mine_to(20);
    let source = Arc::clone(&world.ctx.source);
    let checkpoints = world.ctx.wallet.checkpoints().await;
    catch_up(&world.ctx, &mut Follower::new(source, checkpoints).unwrap())
        .await
        .unwrap();
    assert_eq!(
        names(&world.happened()),
        ["factory_confirmed", "factory_usable"]
    );
    let mut world = world.crash().await;
    assert!(
        world.ctx.wallet.checkpoints().await.last().unwrap().height < 20,
        "the wallet is behind"
    );
    world.follow().await;
    assert!(world.happened().is_empty());
    assert!(world.row(tree.id()).await.usable);
    // And a reorg that happened meanwhile is not overlooked.
    let mut world = world.crash().await;
    world.chain.undo(16);
    world.chain.mine_to(22);
    world.follow().await;
    assert_eq!(names(&world.happened())[0], "factory_unconfirmed");
    assert_eq!(world.row(tree.id()).await.confirmed_height, None);
}

#[tokio::test]
async fn unsold_stock_is_swept_after_its_delay_and_not_before() {
    let mut world = TestWorld::new().await;
    world.chain.mine_to(10);
    let tree = world.factory(ExpiryPolicy::ClientRefund, 4).await;
    let funding = world.funding(&tree).await;
    world.chain.mine(&[funding]);
    let leaf_height = world.publish(&tree);
    let q = tree.spec().params.q;
    // BIP-68: the block that may hold the spend is leaf_height + q.
    world.chain.mine_to(leaf_height + q - 2);
    world.follow().await;
    assert!(world.chain.mempool().is_empty());
    assert_eq!(
        names(&world.happened())
            .iter()
            .filter(|name| *name == "tree_published")
            .count(),
        2
    );

    world.chain.mine(&[]);
    world.follow().await;
    let [sweep] = world.chain.mempool().try_into().unwrap();
    let leaf = tree.path(0).last().copied().unwrap().clone();
    let mut stocks: Vec<_> = leaf
        .outputs_of(OutputRole::Stock)
        .map(|(outpoint, _)| outpoint)
        .collect();
    let mut spent: Vec<_> = sweep
        .input
        .iter()
        .map(|input| input.previous_output)
        .collect();
    stocks.sort();
    spent.sort();
    assert_eq!(spent, stocks);
    assert_eq!(names(&world.happened()), ["sweep_broadcast"]);

    // Forgotten by the node, and after a crash: the same one again, not another.
    world.chain.clear_mempool();
    let mut world = world.crash().await;
    world.chain.mine(&[]);
    world.follow().await;
    assert_eq!(world.chain.mempool(), std::slice::from_ref(&sweep));
    let value = sweep.output[0].value.to_sat();
    world.chain.mine(std::slice::from_ref(&sweep));
    world.follow().await;
    let swept = Event::Swept {
        factory: tree.id(),
        txid: sweep.compute_txid(),
        sat: value,
        outputs: 2,
    };
    assert_eq!(world.happened(), [swept]);
    assert_eq!(
        world.ctx.wallet.balance().await.unwrap().confirmed.to_sat(),
        value
    );

    // A reorg takes the sweep back; it is broadcast again.
    world.chain.undo(1);
    world.chain.mine(&[]);
    world.chain.mine(&[]);
    world.follow().await;
    assert_eq!(world.chain.mempool(), [sweep]);
}

#[tokio::test]
async fn what_was_sold_from_is_never_swept_and_what_is_left_of_it_after_its_delay() {
    let world = TestWorld::new().await;
    world.chain.mine_to(10);
    let tree = world.factory(ExpiryPolicy::ClientRefund, 4).await;
    let sale = world.sell(&tree, 0, 60_000).await;
    let funding = world.funding(&tree).await;
    world.chain.mine(&[funding]);
    let leaf_height = world.publish(&tree);
    let q = tree.spec().params.q;
    world.chain.mine_to(leaf_height + q + 10);
    world.follow().await;
    let inputs = |sweep: &bitcoin::Transaction| -> Vec<_> {
        let inputs = sweep.input.iter();
        inputs.map(|input| input.previous_output).collect()
    };
    let leaf = tree.path(0).last().copied().unwrap().clone();
    let stocks = leaf.outputs_of(OutputRole::Stock);
    let unsold: Vec<_> = stocks
        .map(|(outpoint, _)| outpoint)
        .filter(|outpoint| *outpoint != sale.txs.chain.spends.outpoint)
        .collect();
    let [sweep] = world.chain.mempool().try_into().unwrap();
    assert_eq!(inputs(&sweep), unsold);
    let height = world.chain.mine(&[sweep, sale.txs.chain.tx.clone()]);
    world.chain.mine_to(height + q - 2);
    world.follow().await;
    assert!(world.chain.mempool().is_empty());
    world.chain.mine(&[]);
    world.follow().await;
    let [sweep] = world.chain.mempool().try_into().unwrap();
    let left = sale.txs.chain.outputs_of(OutputRole::Stock).next();
    assert_eq!(inputs(&sweep), [left.unwrap().0]);
}

#[tokio::test]
async fn a_stock_that_somebody_else_took_is_left_alone() {
    let mut world = TestWorld::new().await;
    world.chain.mine_to(10);
    let tree = world.factory(ExpiryPolicy::ClientRefund, 4).await;
    let funding = world.funding(&tree).await;
    world.chain.mine(&[funding]);
    let leaf_height = world.publish(&tree);
    let leaf = tree.path(0).last().copied().unwrap().clone();
    let (stock, _) = leaf.outputs_of(OutputRole::Stock).next().unwrap();
    world.chain.refuse(stock);
    world.chain.mine_to(leaf_height + tree.spec().params.q);
    world.follow().await;
    assert!(world.chain.mempool().is_empty());
    world.happened();
    // Refused ones are not made anew at every block.
    world.chain.mine(&[]);
    world.follow().await;
    let sweeps = world
        .ctx
        .store
        .read(async |tx| crate::store::sweeps::unconfirmed(tx).await)
        .await
        .unwrap();
    assert_eq!(sweeps.len(), 1);
    assert!(sweeps[0].dead);
}

#[tokio::test]
async fn what_nobody_published_is_reclaimed_at_expiry() {
    let world = TestWorld::new().await;
    world.chain.mine_to(10);
    let tree = world.factory(ExpiryPolicy::LspReclaim, 4).await;
    let funding = world.funding(&tree).await;
    world.chain.mine(&[funding]);
    let expiry = tree.schedule().expiry.0;
    world.chain.mine_to(expiry - 1);
    world.follow().await;
    assert!(world.chain.mempool().is_empty());
    world.chain.mine(&[]);
    world.follow().await;
    let [sweep] = world.chain.mempool().try_into().unwrap();
    assert_eq!(sweep.input[0].previous_output, tree.funding());
    assert_eq!(sweep.lock_time.to_consensus_u32(), expiry);
}

#[tokio::test]
async fn what_is_not_worth_sweeping_takes_no_address() {
    let mut world = TestWorld::new().await;
    Arc::get_mut(&mut world.ctx)
        .unwrap()
        .config
        .chain
        .max_feerate = 100_000;
    world
        .chain
        .set_feerate(bitcoin::FeeRate::from_sat_per_vb_u32(10_000));
    let master = world.ctx.keys.wallet_master();
    let twin = chain::wallet::OnchainWallet::open(
        bitcoin::Network::Regtest,
        &master,
        Arc::new(chain::wallet::MemoryStore::default()),
        None,
    );
    let twin = twin.await.unwrap();
    world.chain.mine_to(10);
    let tree = world.factory(ExpiryPolicy::ClientRefund, 4).await;
    let funding = world.funding(&tree).await;
    world.chain.mine(&[funding]);
    let leaf_height = world.publish(&tree);
    world.chain.mine_to(leaf_height + tree.spec().params.q);
    for _ in 0..3 {
        world.chain.mine(&[]);
        world.follow().await;
    }
    assert!(world.chain.mempool().is_empty());
    assert_eq!(
        world.ctx.wallet.new_address().await.unwrap(),
        twin.new_address().await.unwrap()
    );
    // Later it is.
    world
        .chain
        .set_feerate(bitcoin::FeeRate::from_sat_per_vb_u32(2));
    world.chain.mine(&[]);
    world.follow().await;
    assert_eq!(world.chain.mempool().len(), 1);
}
