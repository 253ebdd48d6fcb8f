//! Being paid without a channel (LSPS2, bLIP-52): the coordinator promises one, the invoice names its number, and the channel is opened when
//! the payment is there, less the opening fee.
//!
//! The order is kept by the Lightning node's own store (`channel-host`), before anybody sees the invoice: from then on the node accepts that
//! channel, and sends the payment back if more is kept of it than was promised. Nothing here has to run for it.

mod api;
mod consolidate;
mod error;
mod terms;

pub(crate) use consolidate::run;

pub use api::{JitInvoice, JitOptions};
pub use error::JitError;
pub use terms::JitQuote;
pub(crate) use terms::Text;
