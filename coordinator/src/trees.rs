//! Trees of factories that are on the chain, built again from what is stored when one is asked for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bitcoin::{OutPoint, Txid};
use factory_tree::factory::{FactorySpec, FactoryTx, SpentKind};
use factory_tree::ids::FactoryId;
use factory_tree::output::OutputRole;
use factory_tree::tree::{Tree, TreeError};
use factory_tree::tx::TxKind;

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
    /// The runtime is going down.
    #[error("the coordinator is shutting down")]
    Stopped,
}

/// A tree with an index.
#[derive(Debug)]
pub struct KnownTree {
    /// The tree.
    pub tree: Tree,
    index: HashMap<Txid, Place>,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Tree(usize),
    ChannelTimeout(usize),
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
    /// Indexes a tree.
    #[must_use]
    pub fn new(tree: Tree) -> Self {
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
        let index = own.chain(channels).collect();
        Self { index, tree }
    }

    /// The transaction of this id, if it is one of the factory's.
    #[must_use]
    pub fn tx(&self, txid: &Txid) -> Option<&FactoryTx> {
        match *self.index.get(txid)? {
            Place::Tree(index) => self.tree.txs().get(index),
            Place::ChannelTimeout(index) => self.tree.channel_timeouts().get(index),
        }
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

/// Trees by factory.
#[derive(Debug, Default)]
pub struct Trees(Mutex<Vec<(FactoryId, Arc<KnownTree>)>>);

impl Trees {
    /// A factory's tree: kept, or built from what is stored.
    ///
    /// # Errors
    /// [`TreesError`].
    pub async fn get(&self, store: &Store, id: FactoryId) -> Result<Arc<KnownTree>, TreesError> {
        if let Some(known) = self.kept(id) {
            return Ok(known);
        }
        let (spec, funding) = store
            .read(async |tx| {
                let row = factories::get(tx, id).await?;
                let spec = factories::spec(tx, id).await?;
                Ok(spec.zip(row.map(|row| row.funding)))
            })
            .await?
            .ok_or(TreesError::Unknown(id))?;
        let known = build(id, spec, funding).await?;
        self.keep(id, Arc::clone(&known));
        Ok(known)
    }

    fn kept(&self, id: FactoryId) -> Option<Arc<KnownTree>> {
        let trees = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        trees
            .iter()
            .find(|(known, _)| *known == id)
            .map(|(_, tree)| Arc::clone(tree))
    }

    fn keep(&self, id: FactoryId, tree: Arc<KnownTree>) {
        let mut trees = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        trees.retain(|(known, _)| *known != id);
        trees.push((id, tree));
        let excess = trees.len().saturating_sub(KEPT);
        trees.drain(..excess);
    }
}

async fn build(
    id: FactoryId,
    spec: FactorySpec,
    funding: OutPoint,
) -> Result<Arc<KnownTree>, TreesError> {
    let built =
        tokio::task::spawn_blocking(move || Tree::new(spec, funding).map(KnownTree::new)).await;
    match built {
        Ok(Ok(known)) => Ok(Arc::new(known)),
        Ok(Err(source)) => Err(TreesError::Tree {
            factory: id,
            source,
        }),
        Err(_) => Err(TreesError::Stopped),
    }
}
