//! Members that bought channels: what they have, what is published for them, and how they leave.

use bitcoin::OutPoint;
use factory_tree::factory::FactoryTx;
use factory_tree::keys::mask_secret;
use factory_tree::sale::Stock;

use super::*;
use crate::store::ladder::MemberRow;
use crate::testing::TestSale;

async fn dies(world: &TestWorld) -> Tree {
    world.chain.mine_to(10);
    stands(world, ExpiryPolicy::ClientRefund).await
}

async fn member(world: &TestWorld, position: usize) -> MemberRow {
    let id = clients()[position].id();
    let read = world
        .ctx
        .store
        .read(async |tx| ladder::members(tx, Some(id)).await);
    read.await.unwrap().remove(0)
}

/// The client hands over its keys, those of `sales` too.
async fn leaves_with(
    world: &TestWorld,
    tree: &Tree,
    position: usize,
    sales: &[&TestSale],
) -> Taken {
    let lsp = world.ctx.keys.factory_secret(ROUND, FRESH);
    let lsp = lsp.public_key(&Secp256k1::new());
    let member = member(world, position).await;
    let mut keys = clients()[position].masked_keys(&lsp);
    let masked = sales.iter().map(|sale| mask_secret(&sale.key, &lsp));
    keys.sold = masked.collect::<Result<_, _>>().unwrap();
    let position = u32::try_from(position).unwrap();
    let mates = Stock::of_tree(tree, position).unwrap().clients();
    let stored = world
        .ctx
        .store
        .write(async |tx| ladder::hand_over(tx, &member, &keys, &mates, 50).await);
    stored.await.unwrap()
}

/// Mines these, each as soon as its lock allows.
fn mine<'a>(world: &TestWorld, txs: impl IntoIterator<Item = &'a FactoryTx>) {
    for step in txs {
        let delay = step.timelock.delay.map_or(1, |delay| delay.0.max(1));
        world.chain.mine_to(world.chain.height() + delay - 1);
        world.chain.mine(std::slice::from_ref(&step.tx));
    }
}

fn swept(world: &TestWorld) -> Vec<OutPoint> {
    let [sweep] = world.chain.mempool().try_into().unwrap();
    sweep
        .input
        .iter()
        .map(|input| input.previous_output)
        .collect()
}

fn outputs(tx: &FactoryTx, role: OutputRole, client: u32) -> Vec<OutPoint> {
    let outputs = tx.outputs_of(role);
    let own = outputs.filter(|(_, output)| output.clients.contains(&client));
    own.map(|(outpoint, _)| outpoint).collect()
}

#[tokio::test]
async fn what_was_bought_is_capacity_and_no_stock_any_more() {
    let world = TestWorld::new().await;
    let tree = dies(&world).await;
    let facts = async || seen(&world).await.ladder.factories.remove(0);
    let before = facts().await;
    world.sell(&tree, 1, 60_000).await;
    world.order(&tree, 0, 50_000).await;
    let after = facts().await;
    let capacities = |facts: &factory_tree::ladder::FactoryFacts| {
        let members = facts.members.iter();
        members
            .map(|member| member.capacity.to_sat())
            .collect::<Vec<_>>()
    };
    assert_eq!(capacities(&before), [200_000; 4]);
    assert_eq!(capacities(&after), [200_000, 260_000, 200_000, 200_000]);
    let less = before.stock - after.stock;
    assert_eq!(less.to_sat(), 60_000);
}

#[tokio::test]
async fn every_path_of_who_stays_away_is_published() {
    let world = TestWorld::new().await;
    let tree = dies(&world).await;
    let sale = world.sell(&tree, 0, 60_000).await;
    for position in 1..4 {
        assert_eq!(leaves_with(&world, &tree, position, &[]).await, Taken::New);
    }
    world.chain.mine_to(tree.schedule().publish_from.0);
    world.follow().await;
    look(&world).await;
    let read = world.ctx.store.read(async |tx| leaves::exits(tx).await);
    let mut wished: Vec<_> = read.await.unwrap().iter().map(|exit| exit.leaf).collect();
    let mut expected = vec![clients()[0].leaf_id, sale.leaf];
    wished.sort();
    expected.sort();
    assert_eq!(wished, expected);
    let taken = leaves_with(&world, &tree, 0, &[&sale]).await;
    assert_eq!(taken, Taken::Publishing);
}

#[tokio::test]
async fn a_member_is_gone_when_its_last_channel_is() {
    let world = TestWorld::new().await;
    let tree = dies(&world).await;
    let one = world.sell(&tree, 0, 60_000).await;
    let two = world.sell(&tree, 1, 50_000).await;
    let progress = async |txs: &[&FactoryTx]| {
        mine(&world, txs.iter().copied());
        world.follow().await;
        let facts = seen(&world).await.ladder.factories.remove(0);
        facts.members[..2]
            .iter()
            .map(|m| m.progress)
            .collect::<Vec<_>>()
    };
    use Progress::{Gone, OnChain};
    assert_eq!(progress(&tree.path(0)).await, [OnChain, OnChain]);
    let born = tree.channel_timeouts();
    assert_eq!(progress(&[&born[0]]).await, [OnChain, OnChain]);
    assert_eq!(progress(&[&one.txs.chain]).await, [OnChain, OnChain]);
    let bought = &one.txs.channel_timeouts[0];
    assert_eq!(progress(&[bought]).await, [Gone, OnChain]);
    assert_eq!(progress(&[&born[1]]).await, [Gone, OnChain]);
    // What it bought can never come.
    assert_eq!(progress(&[&two.txs.poisons[1]]).await, [Gone, Gone]);
}

#[tokio::test]
async fn what_was_bought_comes_back_by_keys() {
    let world = TestWorld::new().await;
    let tree = dies(&world).await;
    let one = world.sell(&tree, 0, 60_000).await;
    let two = world.sell(&tree, 1, 50_000).await;
    let three = world.sell(&tree, 0, 30_000).await;
    let leaf = tree.path(0).last().copied().unwrap().clone();
    mine(&world, tree.path(0));
    mine(&world, [&one, &two, &three].map(|sale| &sale.txs.chain));
    assert_eq!(
        leaves_with(&world, &tree, 0, &[&one, &three]).await,
        Taken::New
    );
    world.follow().await;
    let channel = |sale: &TestSale, client| outputs(&sale.txs.chain, OutputRole::Channel, client);
    let mut expected = outputs(&leaf, OutputRole::Channel, 0);
    expected.extend(channel(&one, 0));
    expected.extend(channel(&three, 0));
    let mut found = swept(&world);
    found.sort();
    expected.sort();
    assert_eq!(found, expected, "nothing of the one who stays");

    let sweep = world.chain.mempool();
    world.chain.mine(&sweep);
    assert_eq!(leaves_with(&world, &tree, 1, &[&two]).await, Taken::New);
    world.follow().await;
    let mut expected = outputs(&leaf, OutputRole::Channel, 1);
    expected.extend(channel(&two, 1));
    expected.extend(outputs(&three.txs.chain, OutputRole::Stock, 1));
    let mut found = swept(&world);
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_consumed_stock_that_is_all_ours_comes_back_by_one_spend() {
    let world = TestWorld::new().await;
    let tree = dies(&world).await;
    let sale = world.sell(&tree, 0, 60_000).await;
    let leaf = tree.path(0).last().copied().unwrap().clone();
    mine(&world, tree.path(0));
    assert_eq!(leaves_with(&world, &tree, 1, &[]).await, Taken::New);
    let stock = sale.txs.chain.spends.outpoint;
    world.follow().await;
    assert!(!swept(&world).contains(&stock), "its buyer is still in");
    world.chain.clear_mempool();
    assert_eq!(leaves_with(&world, &tree, 0, &[&sale]).await, Taken::New);
    world.chain.mine(&[]);
    world.follow().await;
    let all: Vec<_> = world.chain.mempool();
    let spent = all.iter().flat_map(|tx| &tx.input);
    let spent: Vec<_> = spent.map(|input| input.previous_output).collect();
    assert!(spent.contains(&stock));
    assert!(spent.contains(&outputs(&leaf, OutputRole::Channel, 0)[0]));
}

#[tokio::test]
async fn keys_are_not_taken_while_the_stock_is_being_sold_from() {
    let world = TestWorld::new().await;
    let tree = dies(&world).await;
    let sale = world.sell(&tree, 0, 60_000).await;
    assert_eq!(
        leaves_with(&world, &tree, 0, &[]).await,
        Taken::Selling,
        "the key of what it bought is missing"
    );
    // Its mate buys: it has to sign. Those of the other stock have nothing to do with it.
    let order = world.order(&tree, 1, 50_000).await;
    assert_eq!(
        leaves_with(&world, &tree, 0, &[&sale]).await,
        Taken::Selling
    );
    assert_eq!(leaves_with(&world, &tree, 2, &[]).await, Taken::New);
    let cancelled = world.ctx.store.write(async |tx| {
        let query = sqlx::query("UPDATE sale SET state = 'cancelled' WHERE sale = ?");
        let query = query.bind(order.id.0.as_slice());
        Ok(query.execute(tx).await.map(drop)?)
    });
    cancelled.await.unwrap();
    assert_eq!(leaves_with(&world, &tree, 0, &[&sale]).await, Taken::New);
    assert_eq!(leaves_with(&world, &tree, 0, &[&sale]).await, Taken::Known);
    // All its leaves are handed over.
    for leaf in [clients()[0].leaf_id, sale.leaf] {
        let wished = world.ctx.store.write(async |tx| {
            let row = leaves::get(tx, leaf).await?.unwrap();
            assert!(row.handed_over);
            leaves::wish_exit(tx, &row, 60, "asked").await
        });
        assert!(!wished.await.unwrap());
    }
}

#[tokio::test]
async fn a_part_moves_between_leaves_of_the_client_alone() {
    let world = TestWorld::new().await;
    let tree = dies(&world).await;
    let own = world.sell(&tree, 0, 60_000).await;
    let other = world.sell(&tree, 1, 50_000).await;
    let unsold = world.order(&tree, 0, 30_000).await;
    let row = member(&world, 0).await;
    let keys: Vec<_> = row.sold.iter().map(|sold| sold.channel_key).collect();
    assert_eq!(keys, [own.txs.sale.bought.channel_key]);
    let born = clients()[0].leaf_id;
    assert_eq!(row.leaf_named(None), Some(born));
    assert_eq!(row.leaf_named(Some(own.leaf)), Some(own.leaf));
    for leaf in [other.leaf, unsold.leaf, clients()[1].leaf_id] {
        assert_eq!(row.leaf_named(Some(leaf)), None);
    }
    // The fee for its place is taken with the first part, whichever leaf that came to.
    let taken = world
        .ctx
        .store
        .write(async |tx| ladder::fee_taken(tx, own.leaf).await);
    taken.await.unwrap();
    assert!(member(&world, 0).await.fee_taken);
    assert!(!member(&world, 1).await.fee_taken);
}

#[tokio::test]
async fn coins_are_kept_for_the_chains_of_what_was_sold() {
    let (world, tree) = dying().await;
    let available = async || show::preview(&world.ctx).await.unwrap().available_sat;
    let before = available().await;
    world.sell(&tree, 0, 60_000).await;
    let one = before - available().await;
    assert!(one > 0);
    world.sell(&tree, 1, 50_000).await;
    assert_eq!(before - available().await, 2 * one);
}
