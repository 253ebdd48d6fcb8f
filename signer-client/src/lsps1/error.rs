//! Why no channel is ordered.

use channel_host::Msat;

/// Why no channel is ordered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OrderError {
    /// The coordinator has no such service.
    #[error(
        "this coordinator takes no orders of channels (LSPS1); leave --or-onchain and --next-factory out"
    )]
    NotOffered,
    /// Smaller or larger than what it sells.
    #[error(
        "the coordinator sells channels of {least_sat} to {most_sat} sat, and this is {sat} sat"
    )]
    Size {
        /// What was asked for.
        sat: u64,
        /// The least.
        least_sat: u64,
        /// The most.
        most_sat: u64,
    },
    /// It would come from the chain.
    #[error(
        "this channel does not come with the next factory: the coordinator's ladder is not running, or has no place for it; --or-onchain orders one from a stock or the chain. Nothing was paid"
    )]
    NoBirth,
    /// More than was agreed to.
    #[error(
        "the channel costs {}, more than the {} that are allowed; raise --max-fee, or order less",
        Msat(*.fee_msat), Msat(*.max_msat)
    )]
    Fee {
        /// The price.
        fee_msat: u64,
        /// The most.
        max_msat: u64,
    },
    /// Nothing to pay with.
    #[error(
        "the channel costs {}, and only {} can be sent now; receive some first",
        Msat(*.fee_msat), Msat(*.spendable_msat)
    )]
    Balance {
        /// The price.
        fee_msat: u64,
        /// What can be sent.
        spendable_msat: u64,
    },
    /// The answer is not what was asked for.
    #[error("the coordinator's answer to the order is refused: {0}; nothing was paid")]
    Answer(String),
}
