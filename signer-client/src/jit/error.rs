//! Why no channel is ordered.

use factory_tree::ladder::blocks_in_words;
use factory_tree::units::Blocks;

use crate::Msat;

/// Why no channel is ordered for a payment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JitError {
    /// The coordinator has no such service.
    #[error("this coordinator opens no channels for payments; `join` a factory to be paid")]
    NotOffered,
    /// It has none now.
    #[error("the coordinator can open no channel now; try later")]
    Closed,
    /// It can be paid over a channel that is there: the coordinator opens none for it.
    #[error(
        "a channel of this wallet has room for this payment; an invoice without --jit costs nothing"
    )]
    HasRoom,
    /// The payment is too small, or too large.
    #[error(
        "the coordinator opens channels for payments of {} to {}, and this is one of {}",
        Msat(*.least), Msat(*.most), Msat(*.payment)
    )]
    Size {
        /// What is to be paid.
        payment: u64,
        /// The least, in thousandths of a satoshi.
        least: u64,
        /// The most.
        most: u64,
    },
    /// It costs more than the user agreed to.
    #[error(
        "the channel costs {}, and no more than {} is to be paid for it; see --max-fee, or jit.max_fee_sat in client.toml",
        Msat(*.fee_msat), Msat(*.max_msat)
    )]
    Fee {
        /// What it costs, in thousandths of a satoshi.
        fee_msat: u64,
        /// The most that may be paid.
        max_msat: u64,
    },
    /// The offer's time is over.
    #[error("the offer has expired; ask for another")]
    Expired,
    /// The coordinator does not want to wait for its own money for so long.
    #[error(
        "the coordinator agrees to wait {most} blocks ({}) for its money after it closed a channel alone, and lightning.to_self_delay in client.toml is {asked}",
        blocks_in_words(Blocks(*.most))
    )]
    SelfDelay {
        /// What this wallet asks for.
        asked: u16,
        /// What is agreed to.
        most: u32,
    },
    /// The wallet would have to give the payment's preimage for a channel that is not paid for.
    #[error(
        "the coordinator pays for the channel only after this wallet has taken the payment; whoever trusts it so far sets jit.allow_unfunded in client.toml"
    )]
    Unfunded,
    /// An answer that is none.
    #[error("the coordinator's answer cannot be used: {0}")]
    Answer(String),
}

impl JitError {
    pub(super) const fn too_dear(fee: Msat, max: Msat) -> Self {
        Self::Fee {
            fee_msat: fee.0,
            max_msat: max.0,
        }
    }
}
