//! Transactions on their way into the mempool.

use bitcoin::consensus::encode::serialize_hex;
use bitcoin::{Transaction, Txid};
use serde_json::{Value, json};

use super::answer::{PackageAnswer, PackageTx, TestAnswer};
use super::rpc::RpcPool;
use super::{BitcoindRpc, unreadable};
use crate::{
    ChainError, ChainSource, PackageOutcome, Reject, RejectKind, Result, TestAccept, TxOutcome,
    TxStatus,
};

/// RPC_VERIFY_ERROR, RPC_VERIFY_REJECTED: the mempool's refusals.
const REFUSALS: [i32; 2] = [-25, -26];
/// RPC_VERIFY_ALREADY_IN_UTXO_SET.
const ALREADY_CONFIRMED: i32 = -27;

/// For `maxfeerate`: none. The node's default would refuse a small child that pays for large parents.
fn no_limit() -> Value {
    json!(0)
}

pub(super) async fn broadcast(node: &BitcoindRpc, transaction: &Transaction) -> Result<Txid> {
    let txid = transaction.compute_txid();
    let params = vec![json!(serialize_hex(transaction)), no_limit()];
    let reason = match node.rpc.call::<Txid>("sendrawtransaction", params).await {
        Ok(_)
        | Err(ChainError::Rpc {
            code: ALREADY_CONFIRMED,
            ..
        }) => return Ok(txid),
        Err(ChainError::Rpc { code, message, .. }) if REFUSALS.contains(&code) => {
            Reject::from_message(message)
        }
        Err(other) => return Err(other),
    };
    if reason.kind == RejectKind::AlreadyKnown
        || may_be_confirmed(&reason) && node.has_confirmed_output(transaction).await?
    {
        return Ok(txid);
    }
    Err(ChainError::Rejected { txid, reason })
}

/// To the mempool, the inputs of a transaction that is in a block already are simply missing.
fn may_be_confirmed(reason: &Reject) -> bool {
    matches!(
        reason.kind,
        RejectKind::MissingInputs | RejectKind::AlreadyKnown | RejectKind::NotEvaluated
    )
}

pub(super) async fn submit_package(
    node: &BitcoindRpc,
    transactions: &[Transaction],
) -> Result<PackageOutcome> {
    let outcome = submit(node, transactions).await?;
    if outcome.is_accepted() {
        return Ok(outcome);
    }
    // One that is in a block already fails the whole package: find it, and submit the others without it.
    let mut confirmed = Vec::with_capacity(transactions.len());
    for (transaction, outcome) in transactions.iter().zip(&outcome.transactions) {
        let suspect =
            matches!(&outcome.status, TxStatus::Rejected(reason) if may_be_confirmed(reason));
        confirmed.push(suspect && node.has_confirmed_output(transaction).await?);
    }
    if !confirmed.contains(&true) {
        return Ok(outcome);
    }
    let rest: Vec<Transaction> = transactions
        .iter()
        .zip(&confirmed)
        .filter(|(_, done)| !**done)
        .map(|(tx, _)| tx.clone())
        .collect();
    let rest = submit(node, &rest).await?;
    let mut others = rest.transactions.into_iter();
    let merged = transactions.iter().zip(confirmed).filter_map(|(tx, done)| {
        if done {
            Some(TxOutcome {
                txid: tx.compute_txid(),
                status: TxStatus::Confirmed,
            })
        } else {
            others.next()
        }
    });
    Ok(PackageOutcome {
        transactions: merged.collect(),
        ..rest
    })
}

/// `submitpackage` wants at least two transactions; one alone, or none, is treated here.
async fn submit(node: &BitcoindRpc, transactions: &[Transaction]) -> Result<PackageOutcome> {
    match transactions {
        [] => Ok(PackageOutcome {
            transactions: Vec::new(),
            replaced: Vec::new(),
            message: "nothing to submit".to_owned(),
        }),
        [one] => submit_one(node, one).await,
        several => submit_several(node, several).await,
    }
}

async fn submit_one(node: &BitcoindRpc, transaction: &Transaction) -> Result<PackageOutcome> {
    let (txid, status, message) = match broadcast(node, transaction).await {
        Ok(txid) if node.mempool_entry(txid).await?.is_none() => {
            (txid, TxStatus::Confirmed, "success".to_owned())
        }
        Ok(txid) => (
            txid,
            TxStatus::InMempool {
                vsize: None,
                fee: None,
                effective_feerate: None,
            },
            "success".to_owned(),
        ),
        Err(ChainError::Rejected { txid, reason }) => (
            txid,
            TxStatus::Rejected(reason),
            "transaction failed".to_owned(),
        ),
        Err(other) => return Err(other),
    };
    Ok(PackageOutcome {
        transactions: vec![TxOutcome { txid, status }],
        replaced: Vec::new(),
        message,
    })
}

async fn submit_several(
    node: &BitcoindRpc,
    transactions: &[Transaction],
) -> Result<PackageOutcome> {
    let raw: Vec<String> = transactions.iter().map(serialize_hex).collect();
    let mut answer: PackageAnswer = match node
        .rpc
        .call("submitpackage", vec![json!(raw), no_limit()])
        .await
    {
        // The package as such is malformed: no topological order, conflicts in itself, more than 25 transactions.
        Err(ChainError::Rpc { code, message, .. }) if REFUSALS.contains(&code) => {
            return Ok(refused_whole(transactions, &message));
        }
        other => other?,
    };
    let outcomes = transactions.iter().map(|transaction| {
        let wtxid = transaction.compute_wtxid().to_string();
        let result = answer
            .tx_results
            .remove(&wtxid)
            .ok_or_else(|| unreadable("submitpackage", format!("nothing about {wtxid}")))?;
        Ok(TxOutcome {
            txid: transaction.compute_txid(),
            status: status_of(result),
        })
    });
    Ok(PackageOutcome {
        transactions: outcomes.collect::<Result<_>>()?,
        replaced: answer.replaced,
        message: answer.package_msg,
    })
}

fn refused_whole(transactions: &[Transaction], message: &str) -> PackageOutcome {
    let status = TxStatus::Rejected(Reject::from_message(message));
    let outcomes = transactions.iter().map(|tx| TxOutcome {
        txid: tx.compute_txid(),
        status: status.clone(),
    });
    PackageOutcome {
        transactions: outcomes.collect(),
        replaced: Vec::new(),
        message: message.to_owned(),
    }
}

fn status_of(result: PackageTx) -> TxStatus {
    match result.error {
        Some(error) => match Reject::from_message(error) {
            reason if reason.message.starts_with("txn-already-in-mempool") => TxStatus::InMempool {
                vsize: result.vsize,
                fee: None,
                effective_feerate: None,
            },
            reason => TxStatus::Rejected(reason),
        },
        None => TxStatus::InMempool {
            vsize: result.vsize,
            fee: result.fees.as_ref().map(|fees| fees.base.0),
            effective_feerate: result
                .fees
                .and_then(|fees| fees.effective_feerate)
                .map(|feerate| feerate.per_kvb()),
        },
    }
}

pub(super) async fn test_accept(
    rpc: &RpcPool,
    transactions: &[Transaction],
) -> Result<Vec<TestAccept>> {
    let raw: Vec<String> = transactions.iter().map(serialize_hex).collect();
    let answers: Vec<TestAnswer> = rpc
        .call("testmempoolaccept", vec![json!(raw), no_limit()])
        .await?;
    answers.into_iter().map(verdict_of).collect()
}

fn verdict_of(answer: TestAnswer) -> Result<TestAccept> {
    let verdict = if answer.allowed == Some(true) {
        let (Some(vsize), Some(fees)) = (answer.vsize, answer.fees) else {
            return Err(unreadable(
                "testmempoolaccept",
                "allowed, but neither size nor fee",
            ));
        };
        Ok((vsize, fees.base.0))
    } else {
        // Without a verdict of its own, the node stopped at another transaction of the package.
        let words = answer
            .reject_reason
            .or(answer.package_error)
            .unwrap_or_else(|| "package-not-validated".to_owned());
        Err(Reject::from_message(words))
    };
    Ok(TestAccept {
        txid: answer.txid,
        verdict,
    })
}
