//! Paths that have to reach the chain, level by level, each transaction with a child that pays for it. Derived anew at every block from what
//! is on the chain, so others may publish any part of them, and a reorg changes nothing.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bitcoin::{Amount, FeeRate, OutPoint, Transaction};
use chain::ChainError;
use chain::wallet::{FeeChildRequest, Published, WalletError};
use factory_tree::factory::FactoryTx;
use factory_tree::ids::{ClientId, FactoryId};
use factory_tree::output::OutputRole;
use factory_tree::tx::CHILD_VBYTES;

use super::reconcile::{FINAL, ReconcileError};
use super::stocks;
use crate::context::Context;
use crate::event::Event;
use crate::funding;
use crate::store::factories::{self, Signatures};
use crate::store::ladder;
use crate::store::leaves;
use crate::store::outputs::{self, OutputRow};
use crate::trees::KnownTree;

/// After so many blocks without a confirmation the feerate is raised by a quarter.
pub(super) const PATIENCE: u32 = 2;
/// Most such steps.
pub(super) const MOST_STEPS: u32 = 20;

/// Where a path stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// This transaction of the path, which may have been in a block since `since`.
    Publish { level: usize, since: u32 },
    /// For a lock to end, or for the funding.
    Wait,
    /// Published, or never to be, since this height.
    Over { at: u32 },
}

fn next(path: &[&FactoryTx], known: &HashMap<OutPoint, OutputRow>, tip: u32) -> Next {
    let mut over = None;
    for (level, step) in path.iter().enumerate() {
        let Some(spends) = known.get(&step.spends.outpoint) else {
            return Next::Wait;
        };
        match (spends.spent_by, spends.spent_height) {
            (Some(by), Some(at)) if by == step.txid => over = Some(at),
            (Some(_), Some(at)) => return Next::Over { at },
            _ => {
                // BIP-68: the block is at least so far above the output's.
                let delay = step.timelock.delay.map_or(1, |delay| delay.0.max(1));
                let since = spends.confirmed_height.saturating_add(delay);
                if tip.saturating_add(1) < since {
                    return Next::Wait;
                }
                return Next::Publish { level, since };
            }
        }
    }
    over.map_or(Next::Wait, |at| Next::Over { at })
}

/// A factory some of whose transactions are to be published.
pub(super) struct Unrolling {
    pub(super) tree: Arc<KnownTree>,
    pub(super) outputs: HashMap<OutPoint, OutputRow>,
    /// The places of clients that have handed over their keys.
    pub(super) left: HashSet<u32>,
    signatures: Signatures,
}

/// Those of one look.
#[derive(Default)]
pub(super) struct Unrollings(HashMap<FactoryId, Option<Unrolling>>);

impl Unrollings {
    /// A factory; `None` before it is signed.
    pub(super) async fn get(
        &mut self,
        ctx: &Context,
        id: FactoryId,
    ) -> Result<Option<&Unrolling>, ReconcileError> {
        let known = match self.0.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(unrolling(ctx, id).await?),
        };
        Ok(known.as_ref())
    }
}

async fn unrolling(ctx: &Context, id: FactoryId) -> Result<Option<Unrolling>, ReconcileError> {
    let (rows, left, signatures) = ctx
        .store
        .read(async |tx| {
            Ok((
                outputs::of_factory(tx, id).await?,
                ladder::left(tx, id).await?,
                factories::signatures(tx, id).await?,
            ))
        })
        .await?;
    let Some(signatures) = signatures else {
        return Ok(None);
    };
    Ok(Some(Unrolling {
        tree: ctx.trees.get(&ctx.store, id).await?,
        outputs: rows.into_iter().map(|row| (row.outpoint, row)).collect(),
        left: left.into_iter().collect(),
        signatures,
    }))
}

impl Unrolling {
    fn signed(&self, wanted: &FactoryTx) -> Option<Transaction> {
        if let Some(signature) = self.tree.sale_signature(&wanted.txid) {
            return Some(wanted.signed(signature));
        }
        let txs = self.tree.tree.txs().iter();
        let (_, signature) = txs
            .zip(&self.signatures.tree)
            .find(|(tx, _)| tx.txid == wanted.txid)?;
        Some(wanted.signed(signature))
    }
}

/// Publishes what can be published now.
pub(super) async fn run(ctx: &Context) -> Result<(), ReconcileError> {
    // Without a tip there is nothing to derive it from.
    if ctx.chain.borrow().height().is_none() {
        return Ok(());
    }
    let wished = ctx
        .store
        .read(async |tx| {
            let mut rows = Vec::new();
            for exit in leaves::exits(tx).await? {
                let row = leaves::get(tx, exit.leaf).await?;
                rows.extend(row.map(|row| (row, exit.wished_height)));
            }
            Ok(rows)
        })
        .await?;
    let mut unrollings = Unrollings::default();
    // First what a poison waits for: others may take the coins that pay for it.
    let mut published = stocks::run(ctx, &mut unrollings).await?;
    // Paths share their upper levels.
    for (row, wished) in wished {
        let Some(factory) = unrollings.get(ctx, row.factory).await? else {
            continue;
        };
        let Some(path) = factory.tree.path(row.position, row.sale) else {
            tracing::error!(leaf = %row.leaf, "a leaf's sale is missing: the database was damaged");
            continue;
        };
        match next(&path, &factory.outputs, ctx.height()) {
            Next::Wait => {}
            Next::Over { at } if ctx.height() >= at.saturating_add(FINAL) => {
                ctx.store
                    .write(async |tx| leaves::end_exit(tx, row.leaf).await)
                    .await?;
            }
            Next::Over { .. } => {}
            Next::Publish { level, since } => {
                let Some(step) = path.get(level).filter(|step| published.insert(step.txid)) else {
                    continue;
                };
                // The factory may have stood for a month: what counts is since when anybody wants it.
                let waited = waited(ctx, since.max(wished));
                publish(ctx, row.client, factory, step, waited).await?;
            }
        }
    }
    Ok(())
}

/// Blocks that what could have been in a block since `since` has waited.
pub(super) fn waited(ctx: &Context, since: u32) -> u32 {
    ctx.height().saturating_add(1).saturating_sub(since)
}

/// The longer it waits, the more it pays, up to what the operator allows.
fn raised(base: FeeRate, waited: u32, most: FeeRate) -> FeeRate {
    let steps = waited.checked_div(PATIENCE).unwrap_or(0).min(MOST_STEPS);
    let rate = (0..steps).fold(base.to_sat_per_kwu(), |rate, _| {
        rate.saturating_mul(5).div_ceil(4)
    });
    FeeRate::from_sat_per_kwu(rate).min(most)
}

async fn feerate(ctx: &Context, waited: u32) -> FeeRate {
    let chain = &ctx.config.chain;
    let target = u32::from(chain.fee_target_blocks).saturating_sub(waited);
    let target = u16::try_from(target.max(1)).unwrap_or(1);
    let base = ctx.source.fee_rate(target).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "no feerate estimate: using the configured one");
        FeeRate::from_sat_per_vb_u32(chain.fallback_feerate)
    });
    let most = FeeRate::from_sat_per_vb_u32(chain.max_feerate);
    raised(base.max(FeeRate::BROADCAST_MIN), waited, most)
}

/// Publishes a transaction that `client` needs and that has waited so long.
pub(super) async fn publish(
    ctx: &Context,
    client: ClientId,
    factory: &Unrolling,
    step: &FactoryTx,
    waited: u32,
) -> Result<(), ReconcileError> {
    let anchor = step.outputs_of(OutputRole::Anchor).next();
    let (Some(parent), Some((anchor, _))) = (factory.signed(step), anchor) else {
        tracing::error!(txid = %step.txid, "a path's transaction cannot be published: the database was damaged");
        return Ok(());
    };
    let id = factory.tree.tree.id();
    let vbytes = (parent.vsize() as u64).saturating_add(CHILD_VBYTES);
    let most = FeeRate::from_sat_per_vb_u32(ctx.config.chain.max_feerate);
    // What came of a reap that leaves the chain again would go with it, and with it a factory that it funds.
    let avoid = funding::shallow(ctx).await?;
    let request = FeeChildRequest {
        parent: &parent,
        anchor: anchor.vout,
        parent_fee: Amount::ZERO,
        feerate: feerate(ctx, waited).await,
        payouts: &[],
        change: None,
        avoid: &avoid,
        outbid: None,
        // Outbidding others, too, ends where the operator's limit is; twice, as another child may pay for a larger package.
        budget: most.fee_vb(vbytes.saturating_mul(2)).unwrap_or(Amount::MAX),
    };
    match ctx.wallet.publish(ctx.source.as_ref(), &request).await {
        Ok(Published::WithChild(child)) => ctx.events.emit(Event::ExitPublished {
            factory: id,
            client,
            txid: step.txid,
            kind: kind_name(step),
            vbytes: (parent.vsize() as u64).saturating_add(child.transaction.vsize() as u64),
            fee_sat: child.fee.to_sat(),
        }),
        Ok(Published::Paid | Published::Confirmed) => {}
        Err(WalletError::Store(error)) => return Err(WalletError::Store(error).into()),
        Err(WalletError::Chain(error)) if is_away(&error) => return Err(error.into()),
        // No coin, or refused: others' turn, and again at the next block.
        Err(error) => {
            tracing::warn!(%error, txid = %step.txid, factory = %id, "a path is not published yet");
        }
    }
    Ok(())
}

fn is_away(error: &ChainError) -> bool {
    error.is_transient()
}

fn kind_name(step: &FactoryTx) -> String {
    let kind = serde_json::to_value(step.kind).ok();
    kind.and_then(|kind| kind.as_str().map(str::to_owned))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use bitcoin::secp256k1::schnorr;
    use factory_tree::factory::SpentKind;
    use factory_tree::params::ExpiryPolicy;
    use factory_tree::tree::Tree;

    use super::*;
    use crate::store::Conn;
    use crate::store::leaves::exits;
    use crate::testing::TestWorld;

    fn confirm(
        known: &mut HashMap<OutPoint, OutputRow>,
        factory: FactoryId,
        outpoint: OutPoint,
        height: u32,
    ) {
        let row = OutputRow {
            outpoint,
            factory,
            kind: SpentKind::Kickoff,
            amount: Amount::ZERO,
            confirmed_height: height,
            spent_height: None,
            spent_by: None,
        };
        known.insert(outpoint, row);
    }

    #[tokio::test]
    async fn each_level_goes_out_in_its_turn() {
        let world = TestWorld::new().await;
        let tree = world.factory(ExpiryPolicy::ClientRefund, 4).await;
        let path = tree.path(0);
        let [kickoff, leaf] = path.as_slice() else {
            panic!("a kickoff and a leaf")
        };
        let mut known = HashMap::new();
        assert_eq!(
            next(&path, &known, 100),
            Next::Wait,
            "the funding is not there"
        );
        confirm(&mut known, tree.id(), tree.funding(), 90);
        let first = Next::Publish {
            level: 0,
            since: 91,
        };
        assert_eq!(next(&path, &known, 100), first);

        let spent = known.get_mut(&tree.funding()).unwrap();
        (spent.spent_by, spent.spent_height) = (Some(kickoff.txid), Some(101));
        confirm(&mut known, tree.id(), leaf.spends.outpoint, 101);
        let delay = leaf.timelock.delay.unwrap().0;
        assert_eq!(next(&path, &known, 101 + delay - 2), Next::Wait);
        let since = 101 + delay;
        let second = Next::Publish { level: 1, since };
        assert_eq!(
            next(&path, &known, since - 1),
            second,
            "the next block may have it"
        );

        let spent = known.get_mut(&leaf.spends.outpoint).unwrap();
        (spent.spent_by, spent.spent_height) = (Some(leaf.txid), Some(since));
        assert_eq!(next(&path, &known, since), Next::Over { at: since });
        let spent = known.get_mut(&tree.funding()).unwrap();
        spent.spent_by = Some(leaf.txid);
        assert_eq!(
            next(&path, &known, since),
            Next::Over { at: 101 },
            "cut above"
        );
    }

    #[test]
    fn who_waits_pays_more_up_to_the_limit() {
        let rate = FeeRate::from_sat_per_vb_u32;
        assert_eq!(raised(rate(4), 1, rate(500)), rate(4));
        assert_eq!(raised(rate(4), 2, rate(500)), rate(5));
        assert_eq!(
            raised(rate(4), 1_000, rate(500)),
            raised(rate(4), 40, rate(500))
        );
        assert_eq!(raised(rate(4), 1_000, rate(6)), rate(6));
    }

    async fn sign(conn: &mut Conn, tree: &Tree) -> crate::store::Result<()> {
        let one = schnorr::Signature::from_slice(&[7; 64])
            .unwrap()
            .serialize();
        let all: Vec<u8> = tree.txs().iter().flat_map(|_| one).collect();
        sqlx::query(
            "UPDATE factory SET signatures = ?, client_channel_signatures = x'', lsp_channel_signatures = x''",
        )
        .bind(all)
        .execute(conn)
        .await?;
        Ok(())
    }

    async fn wish(world: &TestWorld, tree: &Tree, position: usize, height: u32) {
        let leaf = tree.spec().members[position].leaf_id;
        let wished = world.ctx.store.write(async |tx| {
            sign(tx, tree).await?;
            let row = leaves::get(tx, leaf).await?.unwrap();
            assert!(leaves::wish_exit(tx, &row, height, "asked").await?);
            assert!(!leaves::wish_exit(tx, &row, height + 1, "again").await?);
            Ok(())
        });
        wished.await.unwrap();
    }

    #[tokio::test]
    async fn a_wished_path_is_published_at_every_block_until_it_is_buried() {
        let mut world = TestWorld::rich(|_| {}).await;
        let tree = world.factory(ExpiryPolicy::ClientRefund, 4).await;
        let funding = world.funding(&tree).await;
        world.chain.mine(&[funding]);
        wish(&world, &tree, 0, 20).await;
        wish(&world, &tree, 1, 20).await;
        world.follow().await;
        world.happened();
        run(&world.ctx).await.unwrap();
        let path: Vec<FactoryTx> = tree.path(0).into_iter().cloned().collect();
        let [kickoff, leaf] = path.as_slice() else {
            panic!("a kickoff and a leaf")
        };
        let [package] = world.chain.packages().try_into().unwrap();
        assert_eq!(package[0].compute_txid(), kickoff.txid);
        assert_eq!(package[0].input[0].witness.len(), 1);
        assert_eq!(package[1].input[0].previous_output.txid, kickoff.txid);
        let told = world.happened();
        assert!(
            matches!(told.as_slice(), [Event::ExitPublished { txid, .. }] if *txid == kickoff.txid),
            "once for both: {told:?}"
        );
        // The node forgot it, and the coordinator crashed.
        world.chain.clear_mempool();
        let world = world.crash().await;
        world.chain.mine(&[]);
        world.follow().await;
        run(&world.ctx).await.unwrap();
        let [_, again] = world.chain.packages().try_into().unwrap();
        assert_eq!(again[0], package[0]);
        // Its level is there, the next one has to wait for its delay.
        let height = world.chain.mine(&again);
        world.follow().await;
        run(&world.ctx).await.unwrap();
        assert_eq!(world.chain.packages().len(), 2);
        let delay = leaf.timelock.delay.unwrap().0;
        world.chain.mine_to(height + delay - 1);
        world.follow().await;
        run(&world.ctx).await.unwrap();
        let last = world.chain.packages().pop().unwrap();
        assert_eq!(last[0].compute_txid(), leaf.txid);
        let buried = world.chain.mine(&last) + FINAL;
        world.follow().await;
        run(&world.ctx).await.unwrap();
        let wished = async || {
            let read = world.ctx.store.read(async |tx| exits(tx).await);
            read.await.unwrap().len()
        };
        assert_eq!(wished().await, 2, "a reorg may still come");
        world.chain.mine_to(buried);
        world.follow().await;
        run(&world.ctx).await.unwrap();
        assert_eq!(wished().await, 0);
        assert_eq!(world.chain.packages().len(), 3);
    }

    #[tokio::test]
    async fn a_factory_that_stood_for_long_is_published_at_the_feerate_of_the_day() {
        let mut world = TestWorld::rich(|_| {}).await;
        let tree = world.factory(ExpiryPolicy::ClientRefund, 4).await;
        let funding = world.funding(&tree).await;
        let height = world.chain.mine(&[funding]) + 4_000;
        world.chain.mine_to(height);
        world.follow().await;
        wish(&world, &tree, 0, height).await;
        world.happened();
        run(&world.ctx).await.unwrap();
        let told = world.happened();
        let [
            Event::ExitPublished {
                vbytes, fee_sat, ..
            },
        ] = told.as_slice()
        else {
            panic!("{told:?}")
        };
        let day = feerate(&world.ctx, 0).await.fee_vb(*vbytes).unwrap();
        assert!(
            *fee_sat <= day.to_sat() * 11 / 10 + 1,
            "{fee_sat} for {vbytes} vB"
        );
    }
}
