//! Getting a parent into a block at a feerate, and keeping it there until it is mined.

use std::collections::BTreeSet;

use bitcoin::{Amount, OutPoint};

use super::coins::sum;
use super::fee_child::INCREMENTAL;
use super::select::fee_at;
use super::{FeeChild, FeeChildRequest, OnchainWallet, Result, WalletError};
use crate::{ChainError, ChainSource, MempoolEntry, RejectKind};

/// How a parent stands after [`OnchainWallet::publish`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// It is in a block: nothing was done.
    Confirmed,
    /// It is in the mempool and pays enough, by itself or by somebody's child.
    Paid,
    /// It went out, or out again, with this child of ours.
    WithChild(FeeChild),
}

impl OnchainWallet {
    /// Makes sure that a parent is in the mempool and that it and a child pay the feerate together. To be called for each unconfirmed parent
    /// at each block and after each start of the node: a node forgets zero-fee parents, and one may be left in the mempool without anything
    /// that pays for it (attacks.md A18). So it is the *child* that is looked for, and the whole package that is submitted.
    ///
    /// What must be outbid is found out here, whatever the request says: another child at the anchor, or, where the parent itself
    /// conflicts with transactions of the mempool, these and their children.
    ///
    /// # Errors
    /// Those of [`Self::fee_child`], and [`ChainError::Rejected`]; then the child's coin is free again.
    pub async fn publish(
        &self,
        source: &dyn ChainSource,
        request: &FeeChildRequest<'_>,
    ) -> Result<Published> {
        let parent = request.parent.compute_txid();
        let alone = fee_at(request.feerate, vsize(request)?)?;
        if request.parent_fee >= alone {
            match source.broadcast(request.parent).await {
                Ok(_) => return Ok(Published::Paid),
                // Something that pays less per byte but more in all is in its way: only a child can outbid that.
                Err(ChainError::Rejected { reason, .. })
                    if reason.kind == RejectKind::ReplacementTooCheap => {}
                Err(error) => return Err(error.into()),
            }
        }
        let outbid = match source.mempool_entry(parent).await? {
            Some(entry) if pays(&entry, request)? => return Ok(Published::Paid),
            Some(_) => {
                rival_child(
                    source,
                    OutPoint {
                        txid: parent,
                        vout: request.anchor,
                    },
                )
                .await?
            }
            None if source.has_confirmed_output(request.parent).await? => {
                return Ok(Published::Confirmed);
            }
            None => rival_parents(source, request).await?,
        };
        let child = self
            .fee_child(&FeeChildRequest {
                outbid,
                ..request.clone()
            })
            .await?;
        // Recorded first: after a crash in between, the coin must not be taken for free.
        self.record_unconfirmed(&child.transaction).await?;
        let package = [request.parent.clone(), child.transaction.clone()];
        match source.submit_package(&package).await?.into_result() {
            Ok(_) => Ok(Published::WithChild(child)),
            Err(refused) => {
                self.forget_unconfirmed([child.transaction.compute_txid()])
                    .await?;
                Err(refused.into())
            }
        }
    }
}

/// The fee of the child that has the anchor now; `None` if there is none, or not any more.
async fn rival_child(source: &dyn ChainSource, anchor: OutPoint) -> Result<Option<Amount>> {
    let Some(rival) = source.mempool_spender(anchor).await? else {
        return Ok(None);
    };
    Ok(source.mempool_entry(rival).await?.map(|entry| entry.fee))
}

/// What other transactions pay that spend the parent's inputs, a higher slot for example: the package must replace them with all their
/// children, and pay for the relay of the parent too.
async fn rival_parents(
    source: &dyn ChainSource,
    request: &FeeChildRequest<'_>,
) -> Result<Option<Amount>> {
    let mut rivals = BTreeSet::new();
    for input in &request.parent.input {
        rivals.extend(source.mempool_spender(input.previous_output).await?);
    }
    let mut fees = Vec::with_capacity(rivals.len());
    for rival in rivals {
        fees.extend(
            source
                .mempool_entry(rival)
                .await?
                .map(|entry| entry.descendant_fee),
        );
    }
    if fees.is_empty() {
        return Ok(None);
    }
    fees.push(fee_at(INCREMENTAL, vsize(request)?)?);
    sum(&fees).map(Some)
}

fn vsize(request: &FeeChildRequest<'_>) -> Result<u64> {
    u64::try_from(request.parent.vsize()).map_err(|_| WalletError::Overflow)
}

/// Whether the parent and all that spends it pay the feerate.
fn pays(entry: &MempoolEntry, request: &FeeChildRequest<'_>) -> Result<bool> {
    Ok(entry.descendant_fee >= fee_at(request.feerate, entry.descendant_vsize)?)
}
