//! Channels that this wallet orders and pays for (LSPS1, bLIP-51): from the stock of a factory, if that can be, or else an ordinary one, for the same
//! payment.
//!
//! | file | what |
//! |---|---|
//! | `terms` | what the coordinator offers, and whether its answer is what was asked for |
//! | `api` | what whoever embeds the wallet calls |
//! | `desk` | brings orders forward, through every crash and every lost connection |
//!
//! An order is stored before it is paid, and the node accepts its channel from then on until it has come, or the payment is back.

mod api;
mod desk;
mod error;
mod terms;

pub use api::{ChannelQuote, OrderView};
pub(crate) use api::{bought_at_birth, held, open as has_open, ordered, orders};
pub(crate) use desk::run;
pub use error::OrderError;

/// One at a time moves an order.
pub(crate) type Turn = tokio::sync::Mutex<()>;
