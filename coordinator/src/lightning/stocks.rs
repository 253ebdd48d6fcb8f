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
