//! Inbound liquidity, bought from a factory's stock (protocol.md section 6), and signing with others who buy.
//!
//! | file | what |
//! |---|---|
//! | `quote` | whether a quote is what was asked for, and what holding it would mean |
//! | `limit` | what can be received, and what of it is covered |
//! | `api` | what whoever embeds the wallet calls |
//! | `others` | orders from a stock what another order pays for |
//! | `shop` | what a purchase needs of the coordinator and of the Lightning node |
//! | `top_up` | buys by itself what the user agreed to once and for all |
//! | `bonus` | where channels for signing with others are to be |
//! | `desk` | brings purchases forward, through every crash and every lost connection |
//! | `offers` | what an offer is judged by |
//! | `driver` | signs: one machine for each stock |
//! | `resumed` | goes on with what was signed before a restart |
//! | `ground` | lets the Lightning node expect what was bought |
//!
//! Whatever must survive is in the store before it has an effect.

mod api;
mod bonus;
mod desk;
mod driver;
mod error;
mod ground;
mod limit;
mod offers;
mod others;
mod quote;
mod resumed;
mod shop;
#[cfg(test)]
mod tests;
mod top_up;

use std::sync::Mutex as PlainMutex;

use tokio::sync::{Mutex, Notify};

pub use api::{PurchaseView, UpgradeOptions};
pub(crate) use api::{is_for_now, purchases};
pub(crate) use desk::run;
pub(crate) use driver::Driver;
pub use error::{QuoteRefusal, SaleError};
pub(crate) use limit::limit;
pub use limit::{CoverageView, LimitChannel, LimitView, StockView};
pub(crate) use offers::is_in_use;
pub(crate) use others::{OtherOrder, buy_for, ordered_for, quote_for};
pub use quote::LimitQuote;
pub use top_up::{TopUpState, TopUpView};
pub(crate) use top_up::{at_rest as top_up_at_rest, run as run_top_up};

/// Between those who buy, those who bring purchases forward, and those who sign.
#[derive(Debug, Default)]
pub(crate) struct Sales {
    /// One of them at a time moves a purchase.
    turn: Mutex<()>,
    news: Notify,
    /// What the wallet waits for before it buys by itself.
    held: PlainMutex<Option<top_up::Hold>>,
}

impl Sales {
    /// Something changed that an open purchase may wait for.
    pub(crate) fn wake(&self) {
        self.news.notify_one();
    }
}
