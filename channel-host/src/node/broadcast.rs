//! What LDK wants broadcast, and what has to wait for its leaf.

use std::sync::Arc;

use bitcoin::Transaction;
use chain::{ChainError, ChainSource, RejectKind};
use lightning::chain::chaininterface::{BroadcasterInterface, TransactionType};
use tokio::sync::mpsc;

use super::part_exits::robs;
use crate::error::NodeError;
use crate::leaf::{Book, KnownSpend, LeafId, Record, SpendKind, Stage};
use crate::moves::PartBook;
use crate::store::{Change, EntryKey, Store};

const SPACE: &str = "superscalar";
const SUBSPACE: &str = "closings";

/// Sends on what can be valid now. Whatever spends a leaf that is not in a block is kept back: a node would refuse it, as it does not know
/// the leaf, or it would be in the leaf's way (BIP-431 allows the leaf one child). Commitments are built again later; closing transactions are filed.
#[derive(Debug)]
pub(crate) struct Broadcaster {
    book: Arc<Book>,
    parts: Arc<PartBook>,
    store: Arc<Store>,
    queue: mpsc::UnboundedSender<Vec<Transaction>>,
}

impl Broadcaster {
    pub(super) fn new(
        book: Arc<Book>,
        parts: Arc<PartBook>,
        store: Arc<Store>,
    ) -> (Self, mpsc::UnboundedReceiver<Vec<Transaction>>) {
        let (queue, packages) = mpsc::unbounded_channel();
        let broadcaster = Self {
            book,
            parts,
            store,
            queue,
        };
        (broadcaster, packages)
    }

    /// Sends a filed closing transaction, if there is one.
    pub(super) fn release_closing(&self, leaf: LeafId) -> Result<bool, NodeError> {
        let key = EntryKey::new(SPACE, SUBSPACE, &leaf.to_string());
        let Some(bytes) = self.store.get(key)? else {
            return Ok(false);
        };
        let transaction =
            bitcoin::consensus::deserialize(&bytes).map_err(|error| NodeError::Unreadable {
                what: "closing transaction",
                cause: error.to_string(),
            })?;
        self.send(vec![transaction]);
        Ok(true)
    }

    pub(super) fn send(&self, package: Vec<Transaction>) {
        // Fails only when the node is stopping; LDK asks again after the start.
        let _ = self.queue.send(package);
    }

    fn file_closing(&self, leaf: &Record, transaction: &Transaction) -> Result<(), NodeError> {
        let key = EntryKey::new(SPACE, SUBSPACE, &leaf.id.to_string());
        let bytes = bitcoin::consensus::serialize(transaction);
        self.store.write(vec![Change::Put(key, bytes)])?;
        let spend = KnownSpend {
            txid: transaction.compute_txid(),
            kind: SpendKind::Cooperative,
        };
        self.book.update(leaf.id, |leaf| {
            if !leaf.spends.contains(&spend) {
                leaf.spends.push(spend);
            }
        })?;
        Ok(())
    }

    /// Whether a package has to wait.
    fn holds(&self, transactions: &[(&Transaction, TransactionType)]) -> bool {
        let mut held = false;
        for (transaction, kind) in transactions {
            let spent = transaction
                .input
                .iter()
                .find_map(|input| self.book.by_outpoint(input.previous_output));
            match (spent, kind) {
                (Some(leaf), TransactionType::CooperativeClose { .. }) => {
                    if let Err(error) = self.file_closing(&leaf, transaction) {
                        tracing::error!(%error, leaf = %leaf.id, "a closing transaction cannot be filed");
                    }
                    held |= leaf.confirmed_at.is_none();
                }
                (Some(leaf), _) => held |= leaf.confirmed_at.is_none() || leaf.retired,
                // A channel that was refused for being on another output than the leaf's: we have nothing there to fetch.
                (
                    None,
                    TransactionType::UnilateralClose { channel_id, .. }
                    | TransactionType::AnchorBump { channel_id, .. },
                ) => {
                    let leaf = self.book.by_ldk_id(*channel_id);
                    let elsewhere = leaf.is_some_and(|leaf| leaf.stage == Stage::Abandoned);
                    held |= elsewhere && transactions.len() == 1;
                }
                (None, TransactionType::Claim { .. }) => held |= robs(&self.parts, transaction),
                (None, _) => {}
            }
        }
        held
    }
}

impl BroadcasterInterface for Broadcaster {
    fn broadcast_transactions(&self, transactions: &[(&Transaction, TransactionType)]) {
        if !self.holds(transactions) {
            self.send(transactions.iter().map(|(tx, _)| (*tx).clone()).collect());
        }
    }
}

/// Submits what comes until nobody can send any more.
pub(super) async fn submit_all(
    chain: Arc<dyn ChainSource>,
    mut packages: mpsc::UnboundedReceiver<Vec<Transaction>>,
) {
    while let Some(package) = packages.recv().await {
        let done = match package.as_slice() {
            [] => continue,
            [single] => chain.broadcast(single).await.map(|_| ()),
            several => match chain.submit_package(several).await {
                Ok(outcome) => outcome.into_result().map(|_| ()),
                Err(error) => Err(error),
            },
        };
        let Err(error) = done else { continue };
        // LDK asks again with the next block.
        if is_outrun(chain.as_ref(), &error, &package).await {
            tracing::info!(%error, "another spend of the channel is on its way already");
        } else {
            tracing::warn!(%error, "the Bitcoin node does not take a transaction of a channel");
        }
    }
}

/// Whether a commitment was refused as another spend of its channel is in the mempool: one of them is enough. The node says of ours only that it pays
/// nothing by itself.
async fn is_outrun(chain: &dyn ChainSource, error: &ChainError, package: &[Transaction]) -> bool {
    let ChainError::Rejected { reason, .. } = error else {
        return false;
    };
    let ([commitment, _, ..], RejectKind::FeeTooLow) = (package, reason.kind) else {
        return false;
    };
    let Some(input) = commitment.input.first() else {
        return false;
    };
    let spender = chain.mempool_spender(input.previous_output).await;
    matches!(spender, Ok(Some(by)) if by != commitment.compute_txid())
}
