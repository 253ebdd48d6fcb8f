//! What the wallet remembers. One trait per domain with its SQLite queries in one file; whoever
//! embeds the library with a database of its own implements these traits.
//!
//! Every write is durable when its future returns, and atomic: a crash leaves all of it or nothing.

mod chain_facts;
mod channels;
mod codec;
mod error;
mod exits;
mod factories;
mod identity;
mod joins;
mod live;
mod moves;
mod orders;
mod payments;
mod purchases;
mod sales;
mod signed;
mod sqlite;
mod wallet;

#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::sync::Arc;

pub use chain_facts::{BlockFacts, ChainFactStore, Payout, SeenTx, Spend};
pub use channels::{ChannelRow, ChannelStore, Route};
pub use error::StoreError;
pub use exits::{ExitRow, ExitStore, FeeChildRow, Goal, Progress, PublishedRow};
pub use factories::{FactoryRow, FactoryStore, Handover};
pub use identity::{Identity, IdentityStore};
pub use joins::{JoinRow, JoinStore};
pub use live::{Answer, Interest, Live, LiveStore, Request};
pub use moves::{
    Agreed, DeclineRow, MoveRow, MoveStore, NoticeRow, PartEnd, PartProgress, PartRow, Token,
};
pub use orders::{OrderRow, OrderState, OrderStore};
pub use payments::{Direction, Moment, Payment, PaymentEnd, PaymentState, PaymentStore};
pub(crate) use purchases::state_name;
pub use purchases::{PurchaseRow, PurchaseStore, PurchaseTerms};
pub use sales::{RefusedSale, SaleStore};
pub use signed::SignedStore;
pub use sqlite::SqliteStore;
pub use wallet::{WalletChanges, WalletStore};

/// What this module returns.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// All a client needs of a store.
pub trait ClientStore:
    IdentityStore
    + JoinStore
    + SignedStore
    + FactoryStore
    + ChainFactStore
    + ExitStore
    + WalletStore
    + LiveStore
    + PaymentStore
    + ChannelStore
    + MoveStore
    + PurchaseStore
    + OrderStore
    + SaleStore
    + Debug
    + Send
    + Sync
    + 'static
{
}

impl<S> ClientStore for S where
    S: IdentityStore
        + JoinStore
        + SignedStore
        + FactoryStore
        + ChainFactStore
        + ExitStore
        + WalletStore
        + LiveStore
        + PaymentStore
        + ChannelStore
        + MoveStore
        + PurchaseStore
        + OrderStore
        + SaleStore
        + Debug
        + Send
        + Sync
        + 'static
{
}

/// A store, shared.
pub type SharedStore = Arc<dyn ClientStore>;
