//! What can go wrong in the wallet.

use bitcoin::{Amount, Network, OutPoint};

use super::StoreError;
use crate::ChainError;

/// An error that names the cause and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalletError {
    /// The stored wallet belongs to other keys.
    #[error(
        "the stored wallet belongs to another seed; open it with its own seed, or use another data directory"
    )]
    OtherSeed,
    /// The stored wallet belongs to another network.
    #[error(
        "the stored wallet belongs to {found}, not to {expected}; use another data directory for each network"
    )]
    OtherNetwork {
        /// Configured.
        expected: Network,
        /// Stored.
        found: Network,
    },
    /// The stored wallet does not hold together.
    #[error(
        "the stored wallet cannot be read ({cause}); restore it from a backup, or from the seed"
    )]
    Corrupt {
        /// What is wrong with it.
        cause: String,
    },
    /// The store failed; nothing is lost, what it did not take is offered to it again with the next change.
    #[error("the wallet could not be stored: {0}")]
    Store(#[source] StoreError),
    /// A block does not connect to those the wallet knows.
    #[error(
        "block {height} does not connect to the wallet's chain; follow the chain from the wallet's own checkpoints"
    )]
    Gap {
        /// Height of the block.
        height: u32,
    },
    /// The confirmed coins do not suffice.
    #[error(
        "{} sat needed, but only {} sat are confirmed and free; add coins, or wait for confirmations",
        .needed.to_sat(), .available.to_sat()
    )]
    NotEnough {
        /// With fee and least change.
        needed: Amount,
        /// Confirmed, not reserved, worth spending.
        available: Amount,
    },
    /// A required coin is not a confirmed unspent coin of this wallet.
    #[error("{outpoint} is not a confirmed, unspent coin of this wallet")]
    NotOurCoin {
        /// Which.
        outpoint: OutPoint,
    },
    /// An input to sign is not ours.
    #[error("input {outpoint} does not belong to this wallet")]
    ForeignInput {
        /// Which.
        outpoint: OutPoint,
    },
    /// A child that pays for its parent needs one confirmed coin that is large enough; many small ones do not help.
    #[error(
        "no confirmed coin of at least {} sat is free to pay the fee; send the wallet one such coin",
        .needed.to_sat()
    )]
    NoConfirmedCoin {
        /// The smallest coin that would do.
        needed: Amount,
    },
    /// The fee would exceed what may be spent.
    #[error(
        "the fee would be {} sat, over the budget of {} sat; raise the budget or lower the feerate",
        .needed.to_sat(), .budget.to_sat()
    )]
    FeeOverBudget {
        /// The fee at the wanted feerate.
        needed: Amount,
        /// The most that may be spent.
        budget: Amount,
    },
    /// A TRUC child may have at most 1000 vB (BIP-431).
    #[error(
        "the child would have {vsize} vB, but a TRUC child may have at most {limit}; give it fewer inputs"
    )]
    ChildTooLarge {
        /// Its size.
        vsize: u64,
        /// The most allowed.
        limit: u64,
    },
    /// The parent is not what a child of ours can pay for.
    #[error("this transaction cannot be given a child: {what}")]
    UnfitParent {
        /// Why.
        what: &'static str,
    },
    /// The given key does not control the payout.
    #[error("the given key does not control output {vout} of the parent")]
    WrongPayoutKey {
        /// Index of the output.
        vout: u32,
    },
    /// An output that no node would relay.
    #[error("an output of {} sat is below the dust limit of {} sat", .amount.to_sat(), .limit.to_sat())]
    Dust {
        /// Its amount.
        amount: Amount,
        /// The least that is relayed.
        limit: Amount,
    },
    /// An address of another network.
    #[error("{address} is not an address of {expected}")]
    AddressOfOtherNetwork {
        /// As given.
        address: String,
        /// Ours.
        expected: Network,
    },
    /// A sum of amounts exceeds what exists.
    #[error("the amounts are too large to be added up")]
    Overflow,
    /// Keys could not be derived or used.
    #[error("key derivation or signing failed: {0}")]
    Keys(String),
    /// The chain source failed.
    #[error(transparent)]
    Chain(#[from] ChainError),
}
