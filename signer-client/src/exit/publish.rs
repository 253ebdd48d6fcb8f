//! One transaction onto the chain: with a child that pays for it, unless one that pays enough is
//! there already; whoever made that.

use std::collections::HashSet;

use bitcoin::{Amount, FeeRate};
use chain::wallet::{FeeChild, FeeChildRequest, OwnPayout, Published as Outcome, WalletError};
use chain::{ChainError, RejectKind};
use factory_tree::exit::ChainView;
use factory_tree::kit::{ExitKit, KitTx};
use factory_tree::output::OutputRole;
use factory_tree::tx::{CHILD_VBYTES, TxKind};

use super::{fees, kind_name, spent_name};
use crate::client::Inner;
use crate::error::Result;
use crate::event::Event;
use crate::fault;
use crate::store::{ExitRow, FeeChildRow, Goal, PublishedRow};

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Published {
    /// It is in the mempool, as well paid as it can be, or somebody was quicker.
    Waiting,
    /// It cannot be published (well enough) now, and why.
    Stuck(String),
}

/// Publishes the transactions of one exit at one tip.
pub(super) struct Publisher<'a> {
    client: &'a Inner,
    exit: &'a ExitRow,
    kit: &'a ExitKit,
    view: &'a ChainView,
    children: Vec<FeeChildRow>,
    published: Vec<PublishedRow>,
}

impl<'a> Publisher<'a> {
    pub(super) async fn new(
        client: &'a Inner,
        exit: &'a ExitRow,
        kit: &'a ExitKit,
        view: &'a ChainView,
    ) -> Result<Self> {
        Ok(Self {
            client,
            exit,
            kit,
            view,
            children: client.store.children(exit.factory).await?,
            published: client.store.published(exit.factory).await?,
        })
    }

    /// Sees to it that `tx` is in the mempool and pays what it should.
    pub(super) async fn publish(&self, tx: &KitTx) -> Result<Published> {
        let first = self.published.iter().find(|row| row.txid == tx.txid());
        let waited = first.map_or(0, |row| self.view.tip.since(row.first_height).0);
        let target = fees::target(self.kit, tx, self.view);
        let chain = self.client.chain.as_ref();
        let base = fees::base(chain, self.exit.feerate, target).await?;
        let feerate = fees::escalated(base, waited);
        let budget = self.budget(tx);
        match self.at(tx, feerate, budget).await {
            Err(WalletError::FeeOverBudget { needed, budget }) => {
                let over = WalletError::FeeOverBudget { needed, budget };
                self.within(tx, feerate, budget, over).await
            }
            Err(error) => self.without_child(tx, error).await,
            Ok(outcome) => self.done(tx, feerate, outcome).await,
        }
    }

    /// As much as the budget buys.
    async fn within(
        &self,
        tx: &KitTx,
        wanted: FeeRate,
        budget: Amount,
        over: WalletError,
    ) -> Result<Published> {
        let vbytes = tx.vbytes().saturating_add(CHILD_VBYTES);
        let less = fees::affordable(budget, tx.own_fee(), vbytes);
        let Some(less) = less.filter(|rate| *rate < wanted) else {
            return self.without_child(tx, over).await;
        };
        match self.at(tx, less, budget).await {
            Ok(outcome) => self.done(tx, less, outcome).await,
            Err(error) => self.without_child(tx, error).await,
        }
    }

    async fn done(&self, tx: &KitTx, feerate: FeeRate, outcome: Outcome) -> Result<Published> {
        let first = self.note_published(tx).await?;
        match outcome {
            Outcome::WithChild(child) => self.note_child(tx, child, feerate).await?,
            // Alone, or somebody else's child pays.
            Outcome::Paid if first => self.tell(tx, tx.vbytes(), Amount::ZERO),
            Outcome::Paid | Outcome::Confirmed => {}
        }
        Ok(Published::Waiting)
    }

    /// What an exit may cost where nobody said: as configured; a timeout or a poison at most what it pays us.
    fn budget(&self, tx: &KitTx) -> Amount {
        let configured = Amount::from_sat(self.client.config.exit.max_fee_sat);
        let (max_fee, worth) = match self.exit.max_fee {
            Some(asked) => (asked, None),
            None => (configured, self.own_payout(tx).map(|(_, amount)| amount)),
        };
        fees::budget(max_fee, &self.children, tx.txid(), worth)
    }

    async fn at(
        &self,
        tx: &KitTx,
        feerate: FeeRate,
        budget: Amount,
    ) -> Result<Outcome, WalletError> {
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
            outbid: None,
            budget,
        };
        let chain = self.client.chain.as_ref();
        let outcome = self.client.wallet.publish(chain, &request).await;
        for payout in &mut payouts {
            payout.key.non_secure_erase();
        }
        outcome
    }

    /// The output of `tx` that pays us, if one does.
    fn own_payout(&self, tx: &KitTx) -> Option<(u32, Amount)> {
        self.kit
            .own_outputs(tx)
            .find(|(_, output, _)| output.role == OutputRole::Payout)
            .map(|(outpoint, _, txout)| (outpoint.vout, txout.value))
    }

    /// Whether it is published for the first time. What was never accepted has not been waiting.
    async fn note_published(&self, tx: &KitTx) -> Result<bool> {
        if self.published.iter().any(|row| row.txid == tx.txid()) {
            return Ok(false);
        }
        let row = PublishedRow {
            txid: tx.txid(),
            factory: self.exit.factory,
            kind: kind_name(tx),
            vbytes: tx.vbytes(),
            first_height: self.view.tip,
        };
        self.client.store.record_published(&row).await?;
        Ok(true)
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

    async fn note_child(&self, tx: &KitTx, child: FeeChild, feerate: FeeRate) -> Result<()> {
        let vbytes = tx.vbytes().saturating_add(child.transaction.vsize() as u64);
        let row = FeeChildRow {
            tx: child.transaction,
            parent: tx.txid(),
            fee: child.fee,
            feerate,
            height: self.view.tip,
        };
        self.client.store.record_child(&row).await?;
        fault::point("exit_published");
        self.tell(tx, vbytes, child.fee);
        Ok(())
    }

    /// What keeps it, and the command that helps. A timeout's or a poison's budget is not that of `exit`.
    fn stuck(&self, error: &WalletError) -> String {
        match (error, self.exit.goal) {
            (WalletError::FeeOverBudget { .. }, Goal::Leave) => format!(
                "{error}: `exit {} --max-fee SAT`, which sets the budget of the whole exit anew",
                self.exit.factory
            ),
            _ => error.to_string(),
        }
    }

    /// No (better) child can be made: what is there has to do, or the transaction's own fee.
    async fn without_child(&self, tx: &KitTx, error: WalletError) -> Result<Published> {
        match error {
            WalletError::Chain(ChainError::Rejected { reason, .. }) => {
                return Ok(rejected(reason.kind, &reason.message));
            }
            WalletError::NoConfirmedCoin { .. }
            | WalletError::FeeOverBudget { .. }
            | WalletError::ChildTooLarge { .. } => {}
            other => return Err(other.into()),
        }
        let chain = &self.client.chain;
        let present = chain.mempool_entry(tx.txid()).await?;
        let paid = present.is_some_and(|entry| !entry.spent_by.is_empty());
        if paid {
            tracing::info!(%error, "no better child can be made; the one that is there stays");
            return Ok(Published::Waiting);
        }
        if tx.own_fee() == Amount::ZERO {
            return Ok(Published::Stuck(self.stuck(&error)));
        }
        // Not as quick as it should be, but it may do.
        match chain.broadcast(&tx.tx).await {
            Ok(_) => {
                if self.note_published(tx).await? {
                    self.tell(tx, tx.vbytes(), Amount::ZERO);
                }
                Ok(Published::Waiting)
            }
            Err(ChainError::Rejected { reason, .. }) => Ok(rejected(reason.kind, &reason.message)),
            Err(other) => Err(other.into()),
        }
    }
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
