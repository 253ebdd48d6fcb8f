//! TLS with certificates that are pinned, not certified: the coordinator makes its own, and a wallet
//! knows its hash from the connection string.

mod client;
mod identity;
mod pin;
mod places;
mod server;
mod traffic;

pub use client::{ConnectError, ConnectOptions, connect};
pub use identity::{IdentityError, ServerIdentity};
pub use pin::{PinMismatch, PinnedCertificate};
pub use places::{Place, Places};
pub use server::{ServeError, incoming, server};
pub use traffic::{Counted, Traffic, traffic};

use std::time::Duration;

/// A TLS handshake takes at most this long.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// HTTP/2 pings, so that a dead peer or a forgetful NAT is noticed.
const PING_EVERY: Duration = Duration::from_secs(20);
/// A ping that is not answered in this time ends the connection.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// What may be under way on one stream: a whole proposal, so that none waits for a round trip.
const STREAM_WINDOW: u32 = 2 << 20;
/// What may be under way on one connection.
const CONNECTION_WINDOW: u32 = 4 << 20;

#[cfg(test)]
mod tests;
