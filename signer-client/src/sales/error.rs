//! Why nothing is bought, and what to do about it.

use bitcoin::Amount;
use bitcoin::secp256k1::PublicKey;
use channel_host::Msat;
use factory_tree::ids::{ClientId, FactoryId, SaleId};
use factory_tree::sale::StockError;
use factory_tree::sale::order::QuoteError;
use factory_tree::units::Height;

/// What is wrong with a quote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuoteRefusal {
    /// Somebody else made it.
    #[error("it is not signed by the coordinator {0}")]
    Signature(PublicKey),
    /// It says nothing.
    #[error(transparent)]
    Text(#[from] QuoteError),
    /// It is for somebody else.
    #[error("it is for {0}")]
    Client(ClientId),
    /// It is for another factory.
    #[error("it is for factory {0}")]
    Factory(FactoryId),
    /// It is for another amount.
    #[error("it is for {} sat", .0.to_sat())]
    Amount(Amount),
    /// It cannot be taken any more.
    #[error("it was valid until Unix time {0}; ask for another")]
    Expired(u64),
    /// It is from another stock than the one this wallet shares there.
    #[error("it is not from the stock that this wallet shares")]
    Stock,
    /// Something else is to pay for it.
    #[error("it is not for the order that it was asked for")]
    Order,
    /// It is for a sale that is not the next.
    #[error("it is for sale number {asked}, the next is {next}")]
    Number {
        /// The quote's.
        asked: u8,
        /// The next.
        next: u8,
    },
    /// The channel would hold something else than what was asked for makes it.
    #[error("its channel would hold {} sat, and {} sat are due", .found.to_sat(), .due.to_sat())]
    Capacity {
        /// The quote's.
        found: Amount,
        /// What is due.
        due: Amount,
    },
    /// It can never be signed in time.
    #[error(
        "it could be signed until height {until} and before height {dying_from}, the tip is {tip}"
    )]
    Late {
        /// The last height by the quote.
        until: Height,
        /// The factory's dying days.
        dying_from: Height,
        /// The tip.
        tip: Height,
    },
    /// There can be no such sale.
    #[error(transparent)]
    Unsellable(#[from] StockError),
}

/// Why nothing is bought, or cancelled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SaleError {
    /// Nobody to buy from.
    #[error("no coordinator is configured; put its connection string into client.toml")]
    NoCoordinator,
    /// The coordinator sells nothing.
    #[error(
        "the coordinator sells no inbound liquidity; ask its operator, or wait for payments to come"
    )]
    NotOffered,
    /// Nothing to buy from.
    #[error(
        "this wallet is in no factory that is in use; `join` first, and wait until it is confirmed"
    )]
    NoFactory,
    /// Not this one.
    #[error("nothing can be bought in factory {factory}: {why}")]
    Unfit {
        /// Which.
        factory: FactoryId,
        /// Why.
        why: String,
    },
    /// The quote is not what was asked for.
    #[error("the coordinator's quote is refused: {0}")]
    Quote(#[from] QuoteRefusal),
    /// More than was agreed to.
    #[error(
        "the fee is {}, more than the {} that are allowed; raise --max-fee, or buy less",
        Msat(*.fee_msat), Msat(*.max_msat)
    )]
    Fee {
        /// The quote's.
        fee_msat: u64,
        /// The most.
        max_msat: u64,
    },
    /// Nothing to pay with.
    #[error(
        "the fee is {}, and only {} can be sent now; receive some first",
        Msat(*.fee_msat), Msat(*.spendable_msat)
    )]
    Balance {
        /// The quote's.
        fee_msat: u64,
        /// What can be sent.
        spendable_msat: u64,
    },
    /// More than is covered.
    #[error(
        "this wallet could then hold {} sat in factory {factory}, of which {} sat are covered awake if the coordinator breaks off; accept that (--accept-uncovered), or buy less",
        held.to_sat(), awake.to_sat()
    )]
    Uncovered {
        /// Where.
        factory: FactoryId,
        /// What it could hold.
        held: Amount,
        /// What is covered.
        awake: Amount,
    },
    /// The coordinator's answer to an order is none.
    #[error("the coordinator's answer to the order is refused: {0}; nothing was paid")]
    Answer(String),
    /// There is no such purchase.
    #[error("there is no purchase {0}; `limit purchases` lists them")]
    Unknown(SaleId),
    /// It cannot be taken back.
    #[error("purchase {sale} cannot be cancelled: {why}")]
    TooLate {
        /// Which.
        sale: SaleId,
        /// Why.
        why: String,
    },
}

impl SaleError {
    /// As the command line reports it: 2 usage, 4 refused.
    pub(crate) const fn exit_code(&self) -> u8 {
        match self {
            Self::NoCoordinator => 2,
            _ => 4,
        }
    }
}
