//! Why nothing is sold, in words that say what to do next.

use bitcoin::Amount;
use channel_host::RpcError;
use factory_tree::ids::FactoryId;
use factory_tree::sale::StockError;
use serde_json::json;

use crate::lsps::Refusal;
use crate::store::StoreError;
use crate::trees::TreesError;

/// bLIP-50's "rejected", for what is in order and cannot be served; its data names the reason.
pub(super) const REJECTED: i32 = 1;

/// Why nothing is sold to a client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSale {
    /// Switched off.
    #[error("no channels are sold from stocks here")]
    Off,
    /// The Lightning node, or the Bitcoin node, is away.
    #[error("the coordinator is starting; try again in a minute")]
    Starting,
    /// Not a member, or not of that one.
    #[error("you are in no such factory; channels from a stock are for the clients that share it")]
    NoFactory,
    /// Too young.
    #[error(
        "factory {0} cannot be sold from yet: its funding is not deep enough in the chain; try again when it is usable"
    )]
    NotUsable(FactoryId),
    /// Its funding output is spent.
    #[error(
        "factory {0} is published on the chain, or all have left it: nothing is sold from it any more; buy in the next one, or receive over a just-in-time channel"
    )]
    Published(FactoryId),
    /// Too old.
    #[error(
        "factory {0} is in its dying days; buy in the next one, or receive over a just-in-time channel"
    )]
    Dying(FactoryId),
    /// Nothing there, or nothing left.
    #[error("the stock you share has nothing left to sell; the next factory has a new one")]
    NoStock,
    /// As many as the factory's rules allow.
    #[error(
        "{0} sales were made from the stock you share, and it carries no more; the next factory has a new one, or have a channel from the chain"
    )]
    MostSales(u8),
    /// Who has to sign for it does not any more.
    #[error(
        "a client that shares the stock signs no sale in factory {0}, as who leaves it does; try another factory, or have a channel from the chain"
    )]
    Declined(FactoryId),
    /// Smaller than what is sold.
    #[error("ask for at least {} sat", least.to_sat())]
    TooSmall {
        /// The least.
        least: Amount,
    },
    /// Larger than what is sold, or left.
    #[error("ask for at most {} sat", most.to_sat())]
    TooLarge {
        /// The most.
        most: Amount,
    },
    /// Bound to terms of another's.
    #[error(
        "the stock is reserved for a sale to another client that was begun; try another factory"
    )]
    Reserved,
    /// Bound to terms that will never be complete.
    #[error(
        "the stock is reserved for a sale that was begun and cannot be completed; try another factory, or receive over a just-in-time channel"
    )]
    Stuck,
    /// Being sold from.
    #[error("a sale from this stock is under way; try again when all its clients have signed")]
    Busy,
    /// What was paid by an earlier order for the same sale is here.
    #[error("the payment of your cancelled order is on its way back; try again in a minute")]
    Returning,
    /// As many as one may have.
    #[error("{0} orders of yours are open; pay them, or cancel them")]
    TooManyOrders(u64),
    /// Too many that came to nothing.
    #[error("{0} orders of yours came to nothing today; try again tomorrow")]
    TooManyFailed(u64),
    /// Not ours, or not for this client.
    #[error("this quote is not ours for you; ask for one")]
    NotOurs,
    /// Too late.
    #[error("this quote is too old; ask for another")]
    Expired,
    /// The stock has changed since.
    #[error("the stock is not what it was when this was quoted; ask for another quote")]
    Changed,
    /// Would be a second channel with these.
    #[error("this leaf id or channel key has served before; draw a new nonce")]
    Used,
    /// Another order took the quote.
    #[error(
        "this quote was ordered on with another leaf id or key, or is being signed; see superscalar.get_purchase"
    )]
    Taken,
    /// No such order.
    #[error("you have no such order")]
    Unknown,
    /// Not one of this client's that waits for its payment.
    #[error("you have no such just-in-time order for a payment that is still to come")]
    NoJitOrder,
    /// Not one of this client's that waits for its payment.
    #[error("you have no such order of a channel (LSPS1) that is still to be paid")]
    NoLsps1Order,
    /// Nobody may know of a factory's channels.
    #[error("a channel from a stock is never announced; order one that is not")]
    Announced,
    /// The factory is over sooner.
    #[error(
        "the factory is over at height {ends}, before the channel may end; order it for fewer blocks"
    )]
    Ends {
        /// Its timeout.
        ends: u32,
    },
    /// The price counts less time than the channel would last.
    #[error(
        "a channel from this stock lasts {blocks} blocks, and the order is for fewer; order it for as many"
    )]
    Short {
        /// For so long.
        blocks: u32,
    },
    /// An earlier one was not paid.
    #[error(
        "the payment of an earlier just-in-time order has not come over the channel that was opened for it; take that first"
    )]
    JitUnpaid,
    /// It cannot be built.
    #[error("such a sale cannot be built: {0}")]
    Unfit(String),
}

impl NoSale {
    /// Its name, for software.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Starting => "starting",
            Self::NoFactory => "no_factory",
            Self::NotUsable(_) | Self::Published(_) => "not_usable",
            Self::Dying(_) => "dying",
            Self::NoStock => "no_stock",
            Self::MostSales(_) => "most_sales",
            Self::Declined(_) => "declined",
            Self::TooSmall { .. } => "too_small",
            Self::TooLarge { .. } => "too_large",
            Self::Reserved => "reserved",
            Self::Stuck => "stuck",
            Self::Busy | Self::Returning => "busy",
            Self::TooManyOrders(_) => "too_many_orders",
            Self::TooManyFailed(_) => "too_many_failed",
            Self::NotOurs => "not_ours",
            Self::Expired => "expired",
            Self::Changed => "changed",
            Self::Used => "used",
            Self::Taken => "taken",
            Self::Unknown => "unknown",
            Self::NoJitOrder => "no_jit_order",
            Self::NoLsps1Order => "no_lsps1_order",
            Self::Announced => "announced",
            Self::Ends { .. } => "ends",
            Self::Short { .. } => "short",
            Self::JitUnpaid => "jit_unpaid",
            Self::Unfit(_) => "unfit",
        }
    }
}

impl From<NoSale> for RpcError {
    fn from(why: NoSale) -> Self {
        let data = match &why {
            NoSale::TooSmall { least } => {
                json!({ "reason": why.name(), "min_sat": least.to_sat() })
            }
            NoSale::TooLarge { most } => json!({ "reason": why.name(), "max_sat": most.to_sat() }),
            _ => json!({ "reason": why.name() }),
        };
        Self {
            data: Some(data),
            ..Self::new(REJECTED, why.to_string())
        }
    }
}

/// Why a question about a stock has no answer.
#[derive(Debug, thiserror::Error)]
pub enum SalesError {
    /// Nothing is sold.
    #[error(transparent)]
    No(#[from] NoSale),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A factory's tree.
    #[error(transparent)]
    Trees(#[from] TreesError),
    /// What is stored of a stock makes none.
    #[error("the stored sales of a stock do not fit it: {0}")]
    Stock(#[from] StockError),
}

impl From<SalesError> for Refusal {
    fn from(error: SalesError) -> Self {
        match error {
            SalesError::No(why) => Self::Rpc(why.into()),
            SalesError::Store(error) | SalesError::Trees(TreesError::Store(error)) => {
                Self::Store(error)
            }
            error => {
                tracing::error!(%error, "a stock cannot be sold from");
                Self::Rpc(RpcError::internal())
            }
        }
    }
}
