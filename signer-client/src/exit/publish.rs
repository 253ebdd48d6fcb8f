//! One transaction onto the chain: with a child that pays for it, unless one that pays enough is
//! there already; whoever made that.

use std::collections::HashSet;

use bitcoin::{Amount, FeeRate, Transaction, Txid};
use chain::wallet::{FeeChild, FeeChildRequest, OwnPayout, WalletError};
use chain::{ChainError, MempoolEntry, RejectKind};
use factory_tree::kit::{ExitKit, KitTx};
use factory_tree::output::OutputRole;
use factory_tree::tx::{CHILD_VBYTES, TxKind};
use factory_tree::units::Height;

use super::{fees, kind_name, spent_name};
use crate::client::Inner;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::fault;
use crate::store::{ExitRow, FeeChildRow, PublishedRow};

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Published {
    /// It is in the mempool and pays enough.
    Waiting,
    /// It cannot be published (well enough) now, and why.
    Stuck(String),
}

/// Publishes the transactions of one exit at one tip.
pub(super) struct Publisher<'a> {
    client: &'a Inner,
    exit: &'a ExitRow,
    kit: &'a ExitKit,
    tip: Height,
    children: Vec<FeeChildRow>,
    published: Vec<PublishedRow>,
}

/// What the mempool has of a transaction.
struct Present {
    entry: Option<MempoolEntry>,
    /// The fee to be outbid by a new child, or by the package.
    rival_fee: Option<Amount>,
}

impl<'a> Publisher<'a> {
    pub(super) async fn new(
        client: &'a Inner,
        exit: &'a ExitRow,
        kit: &'a ExitKit,
        tip: Height,
    ) -> Result<Self> {
        Ok(Self {
            client,
            exit,
            kit,
            tip,
            children: client.store.children(exit.factory).await?,
            published: client.store.published(exit.factory).await?,
        })
    }

    /// Sees to it that `tx` is in the mempool and pays what it should.
    pub(super) async fn publish(&self, tx: &KitTx) -> Result<Published> {
        let txid = tx.txid();
        let first = self.published.iter().find(|row| row.txid == txid);
        let waited = first.map_or(0, |row| self.tip.since(row.first_height).0);
        let target = fees::target(self.kit, tx, self.tip);
        let chain = self.client.chain.as_ref();
        let base = fees::base(chain, self.exit.feerate, target).await?;
        let feerate = fees::escalated(base, waited);
        let present = self.present(tx).await?;
        if present.pays(feerate) {
            self.note_published(tx).await?;
            return Ok(Published::Waiting);
        }
        if pays_own_fee(tx) && own_feerate(tx) >= feerate {
            return self.publish_alone(tx).await;
        }
        match self.child(tx, feerate, present.rival_fee).await {
            Ok((child, feerate)) => self.publish_with(tx, child, feerate).await,
            // A fee of its own may do, if not as quickly as it should.
            Err(Error::Wallet(_)) if pays_own_fee(tx) => self.publish_alone(tx).await,
            Err(Error::Wallet(error)) => self.without_child(&present, error),
            Err(other) => Err(other),
        }
    }

    async fn present(&self, tx: &KitTx) -> Result<Present> {
        let chain = &self.client.chain;
        let entry = chain.mempool_entry(tx.txid()).await?;
        let mut rival_fee = None;
        if let Some(anchor) = tx.anchor()
            && entry.is_some()
            && let Some(child) = chain.mempool_spender(anchor).await?
        {
            rival_fee = chain.mempool_entry(child).await?.map(|entry| entry.fee);
        }
        if entry.is_none()
            && let Some(rival) = chain.mempool_spender(tx.spends.outpoint).await?
            && rival != tx.txid()
        {
            // Another spend of the same output: the package replaces it and its child, and pays for
            // its own relay on top (BIP-125 rules 3 and 4).
            let rival = chain.mempool_entry(rival).await?;
            let relay = Amount::from_sat(tx.vbytes());
            rival_fee = rival.and_then(|entry| entry.descendant_fee.checked_add(relay));
        }
        Ok(Present { entry, rival_fee })
    }

    /// A child at this feerate, or at the one that the budget affords.
    async fn child(
        &self,
        tx: &KitTx,
        feerate: FeeRate,
        outbid: Option<Amount>,
    ) -> Result<(FeeChild, FeeRate)> {
        let max_fee = self.exit.max_fee.unwrap_or_else(|| self.default_budget(tx));
        let budget = fees::budget(max_fee, &self.children, tx.txid());
        let wanted = self.request(tx, feerate, outbid, budget).await;
        let Err(Error::Wallet(WalletError::FeeOverBudget { .. })) = wanted else {
            return Ok((wanted?, feerate));
        };
        let vbytes = tx.vbytes().saturating_add(CHILD_VBYTES);
        let less = fees::affordable(budget, tx.own_fee(), vbytes)
            .filter(|rate| *rate < feerate && self.is_better(tx, *rate));
        match less {
            Some(less) => Ok((self.request(tx, less, outbid, budget).await?, less)),
            None => Ok((wanted?, feerate)),
        }
    }

    /// Whether a child at `feerate` would be better than the last one.
    fn is_better(&self, tx: &KitTx, feerate: FeeRate) -> bool {
        let mut own = self.children.iter().filter(|c| c.parent == tx.txid());
        own.next_back().is_none_or(|last| last.feerate < feerate)
    }

    /// What an exit may cost where nobody said: as configured; a timeout at most what it pays us.
    fn default_budget(&self, tx: &KitTx) -> Amount {
        let configured = Amount::from_sat(self.client.config.exit.max_fee_sat);
        let paid = self.own_payout(tx).map(|(_, amount)| amount);
        paid.map_or(configured, |paid| configured.min(paid))
    }

    async fn request(
        &self,
        tx: &KitTx,
        feerate: FeeRate,
        outbid: Option<Amount>,
        budget: Amount,
    ) -> Result<FeeChild> {
        let anchor = tx.anchor().ok_or(WalletError::UnfitParent {
            what: "it has no anchor",
        })?;
        let avoid = HashSet::new();
        let mut payouts: Vec<OwnPayout> = self
            .own_payout(tx)
            .map(|(vout, _)| OwnPayout {
                vout,
                key: self.client.keys.payout_keypair(self.kit.join_nonce),
            })
            .into_iter()
            .collect();
        let request = FeeChildRequest {
            parent: &tx.tx,
            anchor: anchor.vout,
            parent_fee: tx.own_fee(),
            feerate,
            payouts: &payouts,
            change: None,
            avoid: &avoid,
            outbid,
            budget,
        };
        let child = self.client.wallet.fee_child(&request).await;
        for payout in &mut payouts {
            payout.key.non_secure_erase();
        }
        Ok(child?)
    }

    /// The output of `tx` that pays us, if one does.
    fn own_payout(&self, tx: &KitTx) -> Option<(u32, Amount)> {
        self.kit
            .own_outputs(tx)
            .find(|(_, output, _)| output.role == OutputRole::Payout)
            .map(|(outpoint, _, txout)| (outpoint.vout, txout.value))
    }

    async fn publish_alone(&self, tx: &KitTx) -> Result<Published> {
        self.note_published(tx).await?;
        match self.client.chain.broadcast(&tx.tx).await {
            Ok(_) => {
                self.tell(tx, tx.vbytes(), Amount::ZERO);
                Ok(Published::Waiting)
            }
            Err(ChainError::Rejected { reason, .. }) => Ok(rejected(reason.kind, &reason.message)),
            Err(other) => Err(other.into()),
        }
    }

    async fn publish_with(
        &self,
        tx: &KitTx,
        child: FeeChild,
        feerate: FeeRate,
    ) -> Result<Published> {
        let FeeChild {
            transaction: child,
            fee,
            ..
        } = child;
        let (store, wallet) = (&self.client.store, &self.client.wallet);
        self.note_published(tx).await?;
        let row = FeeChildRow {
            tx: child.clone(),
            parent: tx.txid(),
            fee,
            feerate,
            height: self.tip,
        };
        store.record_child(&row).await?;
        wallet.record_unconfirmed(&child).await?;
        let vbytes = tx.vbytes().saturating_add(child.vsize() as u64);
        match self.submit(tx, child).await? {
            None => {
                fault::point("exit_published");
                self.tell(tx, vbytes, fee);
                Ok(Published::Waiting)
            }
            Some(refused) => Ok(refused),
        }
    }

    /// `None`: both are in the mempool.
    async fn submit(&self, tx: &KitTx, child: Transaction) -> Result<Option<Published>> {
        let child_txid = child.compute_txid();
        let package = [tx.tx.clone(), child];
        let outcome = self.client.chain.submit_package(&package).await?;
        let Some((_, reason)) = outcome.rejection() else {
            self.forget_replaced(&outcome.replaced).await?;
            return Ok(None);
        };
        let refused = rejected(reason.kind, &reason.message);
        self.client.wallet.forget_unconfirmed([child_txid]).await?;
        Ok(Some(refused))
    }

    /// Our own child that was replaced is gone, and what it spent is free.
    async fn forget_replaced(&self, replaced: &[Txid]) -> Result<()> {
        let replaced: Vec<Txid> = replaced.to_vec();
        Ok(self.client.wallet.forget_unconfirmed(replaced).await?)
    }

    async fn note_published(&self, tx: &KitTx) -> Result<()> {
        let row = PublishedRow {
            txid: tx.txid(),
            factory: self.exit.factory,
            kind: kind_name(tx),
            vbytes: tx.vbytes(),
            first_height: self.tip,
        };
        Ok(self.client.store.record_published(&row).await?)
    }

    fn tell(&self, tx: &KitTx, vbytes: u64, fee: Amount) {
        let factory = self.exit.factory;
        let txid = tx.txid();
        if tx.kind == TxKind::Timeout {
            self.client.events.emit(Event::TimeoutPublished {
                factory,
                txid,
                kind: spent_name(tx),
            });
        }
        self.client.events.emit(Event::ExitPublished {
            factory,
            txid,
            kind: kind_name(tx),
            vbytes,
            fee_sat: fee.to_sat(),
        });
    }

    /// No (better) child can be made: what is there has to do, or nothing is there.
    fn without_child(&self, present: &Present, error: WalletError) -> Result<Published> {
        match error {
            WalletError::NoConfirmedCoin { .. } | WalletError::FeeOverBudget { .. }
                if present.has_child() =>
            {
                tracing::info!(%error, "no better child can be made; the one that is there stays");
                Ok(Published::Waiting)
            }
            WalletError::NoConfirmedCoin { .. }
            | WalletError::FeeOverBudget { .. }
            | WalletError::ChildTooLarge { .. } => Ok(Published::Stuck(error.to_string())),
            other => Err(other.into()),
        }
    }
}

impl Present {
    /// Whether what the mempool has reaches `feerate`, within rounding.
    fn pays(&self, feerate: FeeRate) -> bool {
        self.entry.as_ref().is_some_and(|entry| {
            let wanted = u128::from(feerate.to_sat_per_kwu())
                .saturating_mul(u128::from(entry.descendant_vsize).saturating_mul(4));
            let paid = u128::from(entry.descendant_fee.to_sat()).saturating_mul(1000);
            // A signature may be a byte shorter or longer than predicted.
            paid.saturating_mul(100) >= wanted.saturating_mul(99)
        })
    }

    fn has_child(&self) -> bool {
        self.entry
            .as_ref()
            .is_some_and(|entry| !entry.spent_by.is_empty())
    }
}

fn pays_own_fee(tx: &KitTx) -> bool {
    tx.own_fee() > Amount::ZERO
}

fn own_feerate(tx: &KitTx) -> FeeRate {
    let per_kwu = tx
        .own_fee()
        .to_sat()
        .saturating_mul(250)
        .checked_div(tx.vbytes().max(1))
        .unwrap_or(0);
    // The fee was computed for a size that a shorter signature may undercut.
    FeeRate::from_sat_per_kwu(per_kwu)
}

/// Which refusals are only a matter of time.
fn rejected(kind: RejectKind, message: &str) -> Published {
    match kind {
        // Somebody was quicker, with the same or with another transaction: the next look at the
        // chain or the mempool says what that means.
        RejectKind::AlreadyKnown
        | RejectKind::MissingInputs
        | RejectKind::Conflict
        | RejectKind::ReplacementTooCheap => {
            tracing::info!(message, "refused; looking again at the next block");
            Published::Waiting
        }
        _ => Published::Stuck(format!("the node refuses it: {message}")),
    }
}
