//! Trees of factories that are on the chain, with what was sold from their stocks, built again from what is stored when one is asked for.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bitcoin::secp256k1::{PublicKey, schnorr};
use bitcoin::{OutPoint, Txid};
use factory_tree::factory::{FactorySpec, FactoryTx, SpentKind};
use factory_tree::ids::{FactoryId, LeafId, SaleId};
use factory_tree::output::OutputRole;
use factory_tree::sale::{SaleTxs, SoldChannel, Stock, StockError};
use factory_tree::tree::{Tree, TreeError};
use factory_tree::tx::TxKind;
use factory_tree::units::Blocks;

use crate::store::sold::{self, SoldSale};
use crate::store::{Store, StoreError, factories};

/// Trees kept in memory; one of a thousand clients takes a few MB.
const KEPT: usize = 8;

/// Why a stored factory's tree is not there.
#[derive(Debug, thiserror::Error)]
pub enum TreesError {
    /// No such factory.
    #[error("there is no factory {0}")]
    Unknown(FactoryId),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is stored makes no tree.
    #[error(
        "the stored factory {factory} cannot be built again: {source}; the database was damaged, or written by another release"
    )]
    Tree {
        /// Which.
        factory: FactoryId,
        /// Why.
        source: TreeError,
    },
    /// What is stored of its sales are none of its stocks.
    #[error(
        "the stored sales of factory {factory} cannot be built again: {source}; the database was damaged, or written by another release"
    )]
    Sale {
        /// Which.
        factory: FactoryId,
        /// Why.
        source: StockError,
    },
    /// The runtime is going down.
    #[error("the coordinator is shutting down")]
    Stopped,
}

/// A signed sale and its transactions.
#[derive(Debug)]
pub struct KnownSale {
    /// The sale.
    pub sold: SoldSale,
    /// Its transactions.
    pub txs: SaleTxs,
}

impl KnownSale {
    /// Which it is.
    #[must_use]
    pub const fn id(&self) -> SaleId {
        self.txs.sale.id
    }
}

/// A tree and what was sold from its stocks, with an index.
#[derive(Debug)]
pub struct KnownTree {
    /// The tree.
    pub tree: Tree,
    /// In the order of their stocks and of their places there.
    sales: Vec<KnownSale>,
    index: HashMap<Txid, Place>,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Tree(usize),
    ChannelTimeout(usize),
    /// Which sale's, and which of its own.
    Sale(usize, usize),
}

/// A channel of a factory, whether its client was born with it or bought it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownChannel {
    /// Its client's place.
    pub position: u32,
    /// Its leaf.
    pub leaf: LeafId,
    /// The client's funding key.
    pub channel_key: PublicKey,
    /// Ours.
    pub lsp_channel_key: PublicKey,
    /// Of one that was bought: which of its client's such channels it is.
    pub bought: Option<usize>,
}

/// An output that may be spent further down, or by us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeOutput {
    /// Where it is.
    pub outpoint: OutPoint,
    /// What it is.
    pub kind: SpentKind,
    /// What it holds.
    pub amount: bitcoin::Amount,
}

impl KnownTree {
    /// Indexes a tree and its sales, which are in the order of their places.
    ///
    /// # Errors
    /// [`StockError`] when they are no sales of its stocks.
    pub fn new(tree: Tree, sold: Vec<SoldSale>) -> Result<Self, StockError> {
        let sales = with_transactions(&tree, sold)?;
        let own = tree
            .txs()
            .iter()
            .enumerate()
            .map(|(i, tx)| (tx.txid, Place::Tree(i)));
        let channels = tree
            .channel_timeouts()
            .iter()
            .enumerate()
            .map(|(i, tx)| (tx.txid, Place::ChannelTimeout(i)));
        let of_sales = sales.iter().enumerate().flat_map(|(sale, known)| {
            let txs = known.txs.all().enumerate();
            txs.map(move |(i, tx)| (tx.txid, Place::Sale(sale, i)))
        });
        let index = own.chain(channels).chain(of_sales).collect();
        Ok(Self { index, sales, tree })
    }

    /// The transaction of this id, if it is one of the factory's.
    #[must_use]
    pub fn tx(&self, txid: &Txid) -> Option<&FactoryTx> {
        match *self.index.get(txid)? {
            Place::Tree(index) => self.tree.txs().get(index),
            Place::ChannelTimeout(index) => self.tree.channel_timeouts().get(index),
            Place::Sale(sale, index) => self.sales.get(sale)?.txs.all().nth(index),
        }
    }

    /// Its sales.
    #[must_use]
    pub fn sales(&self) -> &[KnownSale] {
        &self.sales
    }

    /// A sale of its.
    #[must_use]
    pub fn sale(&self, id: SaleId) -> Option<&KnownSale> {
        self.sales.iter().find(|sale| sale.id() == id)
    }

    /// What brings a leaf of the client at `position` into the chain: the tree's path, and for one that was bought in `sale` the chain of
    /// its stock up to there. `None` if there is no such sale.
    #[must_use]
    pub fn path(&self, position: u32, sale: Option<SaleId>) -> Option<Vec<&FactoryTx>> {
        let mut path = self.tree.path(position);
        if let Some(id) = sale {
            let last = &self.sale(id)?.txs.sale;
            let chain = self.sales.iter().map(|sale| &sale.txs);
            let chain = chain.filter(|txs| txs.sale.stock == last.stock);
            path.extend(
                chain
                    .filter(|txs| txs.sale.number <= last.number)
                    .map(|txs| &txs.chain),
            );
        }
        Some(path)
    }

    /// The signature of a sale's transaction, unless it is a channel's timeout.
    #[must_use]
    pub fn sale_signature(&self, txid: &Txid) -> Option<&schnorr::Signature> {
        let Place::Sale(sale, index) = *self.index.get(txid)? else {
            return None;
        };
        self.sales.get(sale)?.sold.record.signatures.get(index)
    }

    /// The sale that consumes a stock.
    #[must_use]
    pub fn consumer(&self, stock: OutPoint) -> Option<&KnownSale> {
        let mut sales = self.sales.iter();
        sales.find(|sale| sale.txs.chain.spends.outpoint == stock)
    }

    /// How long after its confirmation a consumed stock can be spent by a poison.
    #[must_use]
    pub fn first_poison(&self, stock: OutPoint) -> Option<Blocks> {
        let poisons = self.sales.iter().flat_map(|sale| &sale.txs.poisons);
        let poisons = poisons.filter(|poison| poison.spends.outpoint == stock);
        poisons.filter_map(|poison| poison.timelock.delay).min()
    }

    /// What the client at `position` bought, in the order of the sales.
    pub fn bought(&self, position: u32) -> impl Iterator<Item = (&KnownSale, &SoldChannel)> {
        let sales = self.sales.iter();
        sales.filter_map(move |sale| Some((sale, sale.txs.sale.channel_of(position)?)))
    }

    /// The client's funding keys of the channels it bought, in that order.
    #[must_use]
    pub fn bought_keys(&self, position: u32) -> Vec<PublicKey> {
        let bought = self.bought(position);
        bought.map(|(_, channel)| channel.channel_key).collect()
    }

    /// The channel at `outpoint`.
    #[must_use]
    pub fn channel(&self, outpoint: OutPoint) -> Option<KnownChannel> {
        let (_, output) = self.tx(&outpoint.txid)?.output(outpoint.vout)?;
        let position = output.clients.start;
        let mut bought = self.bought(position).enumerate();
        let found = bought.find(|(_, (sale, _))| sale.txs.chain.txid == outpoint.txid);
        if let Some((number, (_, channel))) = found {
            return Some(KnownChannel {
                position,
                leaf: channel.leaf_id,
                channel_key: channel.channel_key,
                lsp_channel_key: channel.lsp_channel_key,
                bought: Some(number),
            });
        }
        let member = self.tree.spec().members.get(position as usize)?;
        Some(KnownChannel {
            position,
            leaf: member.leaf_id,
            channel_key: member.channel_key,
            lsp_channel_key: member.lsp_channel_key,
            bought: None,
        })
    }

    /// Outputs of one of its transactions that are not somebody's own money already.
    #[must_use]
    pub fn outputs(&self, tx: &FactoryTx) -> Vec<TreeOutput> {
        let outputs = (0u32..).zip(&tx.outputs).filter_map(|(vout, output)| {
            let kind = match (output.role, tx.kind) {
                (OutputRole::Branch, TxKind::Static) => SpentKind::Static,
                (OutputRole::Branch, TxKind::Kickoff) => SpentKind::Kickoff,
                (OutputRole::Branch, TxKind::State) => SpentKind::State,
                (OutputRole::Branch, _) => SpentKind::FirstStage,
                (OutputRole::Channel, _) => SpentKind::Channel,
                (OutputRole::Stock, _) => SpentKind::Stock,
                (OutputRole::Anchor | OutputRole::Payout, _) => return None,
            };
            let outpoint = OutPoint::new(tx.txid, vout);
            Some(TreeOutput {
                outpoint,
                kind,
                amount: output.txout.value,
            })
        });
        outputs.collect()
    }
}

fn with_transactions(tree: &Tree, sold: Vec<SoldSale>) -> Result<Vec<KnownSale>, StockError> {
    let mut stocks: HashMap<OutPoint, Stock> = HashMap::new();
    let mut sales = Vec::with_capacity(sold.len());
    for sold in sold {
        let sale = &sold.record.sale;
        let stock = match stocks.entry(sale.stock) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Stock::of_tree(tree, sale.bought.position)?),
        };
        let txs = stock.push(sale.clone())?;
        sales.push(KnownSale { sold, txs });
    }
    Ok(sales)
}

/// Trees by factory.
#[derive(Debug, Default)]
pub struct Trees(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    trees: Vec<(FactoryId, Arc<KnownTree>)>,
    /// Counts what was forgotten: a tree that was read before is not kept after it.
    forgotten: u64,
}

impl Trees {
    /// A factory's tree: kept, or built from what is stored.
    ///
    /// # Errors
    /// [`TreesError`].
    pub async fn get(&self, store: &Store, id: FactoryId) -> Result<Arc<KnownTree>, TreesError> {
        let (known, forgotten) = self.kept(id);
        if let Some(known) = known {
            return Ok(known);
        }
        let (spec, funding, sold) = store
            .read(async |tx| {
                let Some(row) = factories::get(tx, id).await? else {
                    return Ok(None);
                };
                let sold = sold::of_factory(tx, id).await?;
                let spec = factories::spec(tx, id).await?;
                Ok(spec.map(|spec| (spec, row.funding, sold)))
            })
            .await?
            .ok_or(TreesError::Unknown(id))?;
        let known = build(id, spec, funding, sold).await?;
        self.keep(id, Arc::clone(&known), forgotten);
        Ok(known)
    }

    /// A sale from one of its stocks was signed and stored: whoever asks from now on gets a tree that knows it.
    pub fn forget(&self, id: FactoryId) {
        let mut kept = self.lock();
        kept.forgotten = kept.forgotten.wrapping_add(1);
        kept.trees.retain(|(known, _)| *known != id);
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self, id: FactoryId) -> (Option<Arc<KnownTree>>, u64) {
        let kept = self.lock();
        let mut trees = kept.trees.iter();
        let found = trees.find(|(known, _)| *known == id);
        (found.map(|(_, tree)| Arc::clone(tree)), kept.forgotten)
    }

    fn keep(&self, id: FactoryId, tree: Arc<KnownTree>, forgotten: u64) {
        let mut kept = self.lock();
        if kept.forgotten != forgotten {
            return;
        }
        kept.trees.retain(|(known, _)| *known != id);
        kept.trees.push((id, tree));
        let excess = kept.trees.len().saturating_sub(KEPT);
        kept.trees.drain(..excess);
    }
}

async fn build(
    id: FactoryId,
    spec: FactorySpec,
    funding: OutPoint,
    sold: Vec<SoldSale>,
) -> Result<Arc<KnownTree>, TreesError> {
    let built = tokio::task::spawn_blocking(move || {
        let factory = id;
        let tree =
            Tree::new(spec, funding).map_err(|source| TreesError::Tree { factory, source })?;
        KnownTree::new(tree, sold).map_err(|source| TreesError::Sale { factory, source })
    });
    let known = built.await.map_err(|_| TreesError::Stopped)?;
    Ok(Arc::new(known?))
}

#[cfg(test)]
mod tests {
    use factory_tree::params::ExpiryPolicy;

    use super::*;
    use crate::testing::TestWorld;

    #[tokio::test]
    async fn what_was_sold_is_part_of_the_tree() {
        let world = TestWorld::new().await;
        let tree = world.factory(ExpiryPolicy::ClientRefund, 4).await;
        let get = async || world.ctx.trees.get(&world.ctx.store, tree.id()).await;
        let known = get().await.unwrap();
        let stock = Stock::of_tree(&tree, 2).unwrap().outpoint();
        assert!(known.consumer(stock).is_none());
        let one = world.sell(&tree, 2, 50_000).await;
        let two = world.sell(&tree, 3, 40_000).await;
        let three = world.sell(&tree, 2, 30_000).await;
        let other = world.sell(&tree, 0, 20_000).await;
        assert!(known.tx(&one.txs.chain.txid).is_none(), "an older look");
        let known = get().await.unwrap();
        for sale in [&one, &two, &three, &other] {
            for tx in sale.txs.all() {
                assert_eq!(known.tx(&tx.txid).unwrap().kind, tx.kind);
            }
            assert!(known.sale_signature(&sale.txs.chain.txid).is_some());
            let timeout = &sale.txs.channel_timeouts[0].txid;
            assert_eq!(known.sale_signature(timeout), None);
        }
        // The stock it consumes, and the poison that comes first: the newest sale's.
        assert_eq!(known.consumer(stock).unwrap().id(), one.id);
        assert_eq!(known.first_poison(stock), Some(Blocks(216)));
        let tip = three
            .txs
            .chain
            .outputs_of(OutputRole::Stock)
            .next()
            .unwrap();
        assert!(known.consumer(tip.0).is_none());
        let kinds = |tx| {
            let outputs = known.outputs(tx).into_iter();
            outputs.map(|output| output.kind).collect::<Vec<_>>()
        };
        let chain = [SpentKind::Channel, SpentKind::Stock];
        assert_eq!(kinds(&one.txs.chain), chain);
        assert!(kinds(&three.txs.poisons[0]).is_empty(), "the clients' own");

        let txids = |position, sale| {
            let path = known.path(position, sale).unwrap().into_iter();
            path.map(|tx| tx.txid).collect::<Vec<_>>()
        };
        let mut path = txids(2, None);
        path.extend([one.txs.chain.txid, two.txs.chain.txid]);
        assert_eq!(txids(3, Some(two.id)), path);
        path.push(three.txs.chain.txid);
        assert_eq!(txids(2, Some(three.id)), path);
        assert!(known.path(2, Some(SaleId([0; 16]))).is_none());

        let bought = OutPoint::new(three.txs.chain.txid, 0);
        let channel = known.channel(bought).unwrap();
        assert_eq!((channel.leaf, channel.bought), (three.leaf, Some(1)));
        let born = tree.channel_timeouts()[2].spends.outpoint;
        let channel = known.channel(born).unwrap();
        assert_eq!((channel.position, channel.bought), (2, None));
        assert_eq!(known.bought_keys(2).len(), 2);
    }

    #[tokio::test]
    async fn a_tree_that_was_read_before_a_sale_is_not_kept_after_it() {
        let world = TestWorld::new().await;
        let tree = world.factory(ExpiryPolicy::ClientRefund, 4).await;
        let trees = Trees::default();
        let old = trees.get(&world.ctx.store, tree.id()).await.unwrap();
        trees.forget(tree.id());
        let (kept, before) = trees.kept(tree.id());
        assert!(kept.is_none());
        trees.forget(tree.id());
        trees.keep(tree.id(), Arc::clone(&old), before);
        assert!(trees.kept(tree.id()).0.is_none(), "as if read before");
        let (_, now) = trees.kept(tree.id());
        trees.keep(tree.id(), old, now);
        assert!(trees.kept(tree.id()).0.is_some());
    }
}
