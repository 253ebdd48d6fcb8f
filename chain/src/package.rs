//! What became of submitted transactions.

use std::fmt;

use bitcoin::{Amount, FeeRate, Txid};

/// Why a node refused a transaction: a class to act upon, and the node's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// The class.
    pub kind: RejectKind,
    /// As the node said it.
    pub message: String,
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Classes of refusals, each of which calls for another reaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RejectKind {
    /// An input does not exist, or is spent.
    MissingInputs,
    /// It conflicts with a transaction in the mempool that may not be replaced.
    Conflict,
    /// Its feerate is below what the mempool takes.
    FeeTooLow,
    /// It would replace others but does not pay enough more than they do.
    ReplacementTooCheap,
    /// An absolute or relative lock time has not passed (BIP-113, BIP-68).
    NotYetFinal,
    /// It breaks the shape rules of the mempool: TRUC (BIP-431), or too many relatives.
    Topology,
    /// It has a dust output that nothing in the package spends.
    Dust,
    /// A script or a signature is invalid.
    InvalidScript,
    /// The node has it already.
    AlreadyKnown,
    /// The node did not look at it, because another one of the package failed.
    NotEvaluated,
    /// Anything else.
    Other,
}

/// Beginnings of Bitcoin Core's reject reasons (src/validation.cpp, src/policy), versions 29 to 31.
const REASONS: &[(&str, RejectKind)] = &[
    ("bad-txns-inputs-missingorspent", RejectKind::MissingInputs),
    ("missing-inputs", RejectKind::MissingInputs),
    ("txn-mempool-conflict", RejectKind::Conflict),
    ("bad-txns-spends-conflicting-tx", RejectKind::Conflict),
    ("min relay fee not met", RejectKind::FeeTooLow),
    ("mempool min fee not met", RejectKind::FeeTooLow),
    ("mempool full", RejectKind::FeeTooLow),
    ("insufficient fee", RejectKind::ReplacementTooCheap),
    ("replacement-failed", RejectKind::ReplacementTooCheap),
    ("package RBF failed", RejectKind::ReplacementTooCheap),
    ("non-final", RejectKind::NotYetFinal),
    ("non-BIP68-final", RejectKind::NotYetFinal),
    (
        "bad-txns-premature-spend-of-coinbase",
        RejectKind::NotYetFinal,
    ),
    ("TRUC-violation", RejectKind::Topology),
    ("v3-rule-violation", RejectKind::Topology),
    ("too-long-mempool-chain", RejectKind::Topology),
    ("too-large-cluster", RejectKind::Topology),
    ("package-mempool-limits", RejectKind::Topology),
    ("too many potential replacements", RejectKind::Topology),
    ("dust", RejectKind::Dust),
    ("missing-ephemeral-spends", RejectKind::Dust),
    (
        "mandatory-script-verify-flag-failed",
        RejectKind::InvalidScript,
    ),
    (
        "mempool-script-verify-flag-failed",
        RejectKind::InvalidScript,
    ),
    ("block-script-verify-flag-failed", RejectKind::InvalidScript),
    (
        "non-mandatory-script-verify-flag",
        RejectKind::InvalidScript,
    ),
    ("bad-witness-nonstandard", RejectKind::InvalidScript),
    ("txn-already-in-mempool", RejectKind::AlreadyKnown),
    (
        "txn-same-nonwitness-data-in-mempool",
        RejectKind::AlreadyKnown,
    ),
    ("txn-already-known", RejectKind::AlreadyKnown),
    (
        "Transaction outputs already in utxo set",
        RejectKind::AlreadyKnown,
    ),
    ("package-not-validated", RejectKind::NotEvaluated),
];

impl Reject {
    /// Sorts the node's words into a class.
    #[must_use]
    pub fn from_message(message: impl Into<String>) -> Self {
        let message = message.into();
        let kind = REASONS
            .iter()
            .find(|(start, _)| message.starts_with(start))
            .map_or(RejectKind::Other, |(_, kind)| *kind);
        Self { kind, message }
    }
}

/// What became of one transaction of a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxStatus {
    /// It is in the mempool, newly or since before.
    InMempool {
        /// Its virtual size, where the node said it.
        vsize: Option<u64>,
        /// Its own fee, where the node said it.
        fee: Option<Amount>,
        /// The feerate at which the node judged it, alone or with its package.
        effective_feerate: Option<FeeRate>,
    },
    /// It is in a block.
    Confirmed,
    /// The node refused it.
    Rejected(Reject),
}

/// One transaction of a package, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxOutcome {
    /// Which.
    pub txid: Txid,
    /// What became of it.
    pub status: TxStatus,
}

/// What became of a package, in the order in which it was submitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackageOutcome {
    /// One entry per transaction.
    pub transactions: Vec<TxOutcome>,
    /// What left the mempool for it.
    pub replaced: Vec<Txid>,
    /// The node's word on the whole.
    pub message: String,
}

impl PackageOutcome {
    /// Whether every transaction is in the mempool or in a block.
    #[must_use]
    pub fn is_accepted(&self) -> bool {
        self.rejection().is_none()
    }

    /// The refusal that explains the others: what is missing, too cheap or not looked at may be so only because of another one.
    #[must_use]
    pub fn rejection(&self) -> Option<(Txid, &Reject)> {
        let refused = self.transactions.iter().filter_map(|tx| match &tx.status {
            TxStatus::Rejected(reason) => Some((tx.txid, reason)),
            TxStatus::InMempool { .. } | TxStatus::Confirmed => None,
        });
        refused.min_by_key(|(_, reason)| match reason.kind {
            RejectKind::NotEvaluated => 2,
            RejectKind::FeeTooLow | RejectKind::MissingInputs => 1,
            _ => 0,
        })
    }

    /// Fails with the rejection, if there is one.
    ///
    /// # Errors
    /// [`ChainError::Rejected`](crate::ChainError::Rejected) names the transaction and the reason.
    pub fn into_result(self) -> crate::Result<Self> {
        match self.rejection() {
            None => Ok(self),
            Some((txid, reason)) => Err(crate::ChainError::Rejected {
                txid,
                reason: reason.clone(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::hashes::Hash;

    use super::*;

    #[test]
    fn messages_of_the_node_fall_into_their_class() {
        for (message, kind) in [
            ("bad-txns-inputs-missingorspent", RejectKind::MissingInputs),
            ("min relay fee not met, 0 < 111", RejectKind::FeeTooLow),
            (
                "insufficient fee, rejecting replacement 00; new feerate 0.1 <= old feerate 0.2",
                RejectKind::ReplacementTooCheap,
            ),
            ("non-BIP68-final", RejectKind::NotYetFinal),
            (
                "TRUC-violation, tx 00 (wtxid=00) would exceed descendant count limit",
                RejectKind::Topology,
            ),
            (
                "mempool-script-verify-flag-failed (Invalid Schnorr signature)",
                RejectKind::InvalidScript,
            ),
            ("something new", RejectKind::Other),
        ] {
            assert_eq!(Reject::from_message(message).kind, kind, "{message}");
        }
    }

    #[test]
    fn the_guilty_transaction_is_named_before_those_that_suffer_from_it() {
        let outcome = |n: u8, message: &str| TxOutcome {
            txid: Txid::from_byte_array([n; 32]),
            status: TxStatus::Rejected(Reject::from_message(message)),
        };
        let guilty = |messages: [&str; 2]| {
            let transactions = vec![outcome(1, messages[0]), outcome(2, messages[1])];
            let package = PackageOutcome {
                transactions,
                replaced: Vec::new(),
                message: String::new(),
            };
            assert!(!package.is_accepted());
            package.rejection().unwrap().0.to_byte_array()[0]
        };
        assert_eq!(guilty(["package-not-validated", "dust"]), 2);
        assert_eq!(
            guilty([
                "min relay fee not met, 0 < 13",
                "missing-ephemeral-spends, tx 2"
            ]),
            2
        );
        assert_eq!(
            guilty([
                "min relay fee not met, 0 < 13",
                "bad-txns-inputs-missingorspent"
            ]),
            1
        );
        assert_eq!(
            guilty(["non-BIP68-final", "bad-txns-inputs-missingorspent"]),
            1
        );
    }
}
