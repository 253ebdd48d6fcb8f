//! Stocks that were sold from, once they are in the chain: every chain transaction goes out at once, in order, whether or not anybody wants its
//! channel, before a poison of the stock it spends is final and pays the clients (protocol.md section 6). Derived anew at every block.

use std::collections::{HashMap, HashSet};

use bitcoin::{OutPoint, Txid};

use super::publish::{self, MOST_STEPS, PATIENCE, Unrollings};
use super::reconcile::ReconcileError;
use crate::context::Context;
use crate::store::outputs::OutputRow;
use crate::store::sold;
use crate::trees::{KnownSale, KnownTree};

/// A sale whose chain transaction the next block may contain.
struct Due<'a> {
    sale: &'a KnownSale,
    /// The first block that may have contained it.
    since: u32,
    /// The first block that may contain a poison instead.
    poison: Option<u32>,
}

/// The sales that consume a stock which is there, unspent, and not all ours: `left` are the clients whose keys we have. What is all ours
/// comes back by one spend.
fn due<'a>(
    tree: &'a KnownTree,
    outputs: &HashMap<OutPoint, OutputRow>,
    left: &HashSet<u32>,
) -> Vec<Due<'a>> {
    let sales = tree.sales().iter().filter_map(|sale| {
        let spends = &sale.txs.chain.spends;
        let stock = outputs.get(&spends.outpoint)?;
        let ours = spends.clients.clone().all(|client| left.contains(&client));
        if stock.spent_by.is_some() || ours {
            return None;
        }
        let poison = tree.first_poison(spends.outpoint);
        Some(Due {
            sale,
            since: stock.confirmed_height.saturating_add(1),
            poison: poison.map(|delay| stock.confirmed_height.saturating_add(delay.0)),
        })
    });
    sales.collect()
}

/// As how long a wait its fee counts: twice as long as it was, and with few blocks left before a poison, as the longest.
fn urgency(waited: u32, left: Option<u32>) -> u32 {
    let longest = MOST_STEPS.saturating_mul(PATIENCE);
    let near = left.map_or(0, |left| {
        longest.saturating_sub(left.saturating_mul(PATIENCE))
    });
    waited.saturating_mul(2).max(near)
}

/// Publishes what can be published now, and says what that was.
pub(super) async fn run(
    ctx: &Context,
    unrollings: &mut Unrollings,
) -> Result<HashSet<Txid>, ReconcileError> {
    let factories = ctx.store.read(async |tx| sold::published(tx).await).await?;
    let mut published = HashSet::new();
    for id in factories {
        let Some(factory) = unrollings.get(ctx, id).await? else {
            continue;
        };
        for one in due(&factory.tree, &factory.outputs, &factory.left) {
            let chain = &one.sale.txs.chain;
            let next = ctx.height().saturating_add(1);
            let left = one.poison.map(|poison| poison.saturating_sub(next));
            let waited = urgency(publish::waited(ctx, one.since), left);
            published.insert(chain.txid);
            publish::publish(ctx, one.sale.sold.client, factory, chain, waited).await?;
        }
    }
    Ok(published)
}

#[cfg(test)]
mod tests {
    use bitcoin::Transaction;
    use factory_tree::params::ExpiryPolicy;
    use factory_tree::tree::Tree;

    use super::*;
    use crate::lightning::reconcile::FINAL;
    use crate::store::leaves;
    use crate::testing::{TestSale, TestWorld};

    /// A factory of four whose first leaf is in the chain, and two sales from a stock there.
    async fn world() -> (TestWorld, Tree, TestSale, TestSale) {
        let world = TestWorld::rich(|_| {}).await;
        let tree = world.factory(ExpiryPolicy::ClientRefund, 4).await;
        let one = world.sell(&tree, 0, 60_000).await;
        let two = world.sell(&tree, 1, 50_000).await;
        let signed = world.ctx.store.write(async |tx| {
            let all: Vec<u8> = tree.txs().iter().flat_map(|_| [7; 64]).collect();
            let query = "UPDATE factory SET signatures = ?, client_channel_signatures = x'', lsp_channel_signatures = x''";
            Ok(sqlx::query(query).bind(all).execute(tx).await.map(drop)?)
        });
        signed.await.unwrap();
        let funding = world.funding(&tree).await;
        world.chain.mine(&[funding]);
        (world, tree, one, two)
    }

    async fn step(world: &TestWorld) -> Vec<Vec<Transaction>> {
        let before = world.chain.packages().len();
        world.follow().await;
        publish::run(&world.ctx).await.unwrap();
        world.chain.packages().split_off(before)
    }

    #[tokio::test]
    async fn the_chain_of_a_consumed_stock_goes_out_at_once_and_in_order() {
        let (world, tree, one, two) = world().await;
        assert!(step(&world).await.is_empty(), "nobody wants anything");
        for planned in tree.path(0) {
            world.chain.mine(std::slice::from_ref(&planned.tx));
        }
        let [package] = step(&world).await.try_into().unwrap();
        assert_eq!(package[0].compute_txid(), one.txs.chain.txid);
        assert_eq!(package[0].input[0].witness.len(), 1, "signed");
        assert_eq!(package[1].input[0].previous_output.txid, one.txs.chain.txid);
        // The node forgot it, and the coordinator crashed.
        world.chain.clear_mempool();
        let world = world.crash().await;
        world.chain.mine(&[]);
        let [again] = step(&world).await.try_into().unwrap();
        assert_eq!(again[0], package[0]);
        world.chain.mine(&again);
        let [next] = step(&world).await.try_into().unwrap();
        assert_eq!(next[0].compute_txid(), two.txs.chain.txid);
        world.chain.mine(&next);
        assert!(step(&world).await.is_empty());
        // A reorg takes it back.
        world.chain.undo(1);
        world.chain.mine(&[]);
        world.chain.clear_mempool();
        world.chain.mine(&[]);
        let [again] = step(&world).await.try_into().unwrap();
        assert_eq!(again[0], next[0]);
    }

    #[tokio::test]
    async fn a_stock_that_a_poison_took_is_left_alone() {
        let (mut world, tree, one, two) = world().await;
        for planned in tree.path(0) {
            world.chain.mine(std::slice::from_ref(&planned.tx));
        }
        let [package] = step(&world).await.try_into().unwrap();
        world.chain.mine(&package);
        world.happened();
        let poison = &two.txs.poisons[1];
        assert_eq!(poison.spends.outpoint.txid, one.txs.chain.txid);
        world.chain.mine(std::slice::from_ref(&poison.tx));
        world.chain.clear_mempool();
        assert!(step(&world).await.is_empty());
        let told = world.happened();
        assert!(told.iter().any(|event| matches!(event,
            crate::event::Event::TreePublished { txid, kind, .. } if *txid == poison.txid && kind == "poison")));
        let id = tree.id();
        let rows = world
            .ctx
            .store
            .read(async |tx| crate::store::outputs::of_factory(tx, id).await);
        let rows = rows.await.unwrap();
        let of = |txid| rows.iter().filter(|row| row.outpoint.txid == txid).count();
        assert_eq!(of(one.txs.chain.txid), 2, "a channel and a stock");
        assert_eq!(of(poison.txid), 0, "the clients' own money");
    }

    #[tokio::test]
    async fn what_is_all_ours_is_not_published() {
        let (world, tree, one, _) = world().await;
        let known = world.ctx.trees.get(&world.ctx.store, tree.id()).await;
        let known = known.unwrap();
        let outpoint = one.txs.chain.spends.outpoint;
        let row = |spent_by| OutputRow {
            outpoint,
            factory: tree.id(),
            kind: factory_tree::factory::SpentKind::Stock,
            amount: bitcoin::Amount::ZERO,
            confirmed_height: 100,
            spent_height: None,
            spent_by,
        };
        let due = |row: OutputRow, left: &[u32]| {
            let outputs = HashMap::from([(outpoint, row)]);
            let left = left.iter().copied().collect();
            let due = due(&known, &outputs, &left).into_iter();
            due.map(|due| (due.sale.id(), due.since, due.poison))
                .collect::<Vec<_>>()
        };
        let expected = [(one.id, 101, Some(100 + 288))];
        assert_eq!(due(row(None), &[]), expected);
        assert_eq!(due(row(None), &[0, 2, 3]), expected);
        assert_eq!(due(row(None), &[0, 1]), []);
        assert_eq!(due(row(Some(outpoint.txid)), &[]), []);
    }

    #[test]
    fn a_chain_pays_more_the_nearer_a_poison_is() {
        let longest = MOST_STEPS * PATIENCE;
        assert_eq!(urgency(0, Some(144)), 0);
        assert_eq!(urgency(3, Some(141)), 6);
        assert_eq!(urgency(0, Some(MOST_STEPS / 2)), longest / 2);
        assert_eq!(urgency(0, Some(0)), longest);
        assert_eq!(urgency(5, None), 10);
    }

    #[tokio::test]
    async fn a_bought_leaf_is_published_with_the_tree_above_it() {
        let (world, tree, one, two) = world().await;
        let (first, height) = (two.leaf, world.chain.height());
        let wished = world.ctx.store.write(async |tx| {
            let row = leaves::get(tx, first).await?.unwrap();
            leaves::wish_exit(tx, &row, height, "asked").await
        });
        assert!(wished.await.unwrap());
        let mut expected: Vec<_> = tree.path(1).into_iter().cloned().collect();
        expected.extend([one.txs.chain.clone(), two.txs.chain.clone()]);
        for next in &expected {
            let delay = next.timelock.delay.map_or(1, |delay| delay.0.max(1));
            world.chain.mine_to(world.chain.height() + delay - 1);
            let [package] = step(&world).await.try_into().unwrap();
            assert_eq!(package[0].compute_txid(), next.txid);
            world.chain.mine(&package);
        }
        let wishes = async || {
            let read = world.ctx.store.read(async |tx| leaves::exits(tx).await);
            read.await.unwrap().len()
        };
        world.chain.mine_to(world.chain.height() + FINAL - 1);
        step(&world).await;
        assert_eq!(wishes().await, 1, "a reorg may still come");
        world.chain.mine(&[]);
        step(&world).await;
        assert_eq!(wishes().await, 0);
    }
}
