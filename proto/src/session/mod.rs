//! What both sides of a session agree on: limits, versions, tokens, errors.

mod error;
mod token;

use std::time::Duration;

pub use error::{About, ServiceError};
pub use token::{SESSION_KEY, SessionToken};
use tonic::transport::Channel;

use crate::v1::coordinator_client::CoordinatorClient;
use crate::v1::coordinator_server::{Coordinator, CoordinatorServer};

/// The newest version of the protocol that this software speaks.
pub const VERSION: u32 = 1;
/// The oldest version of the protocol that this software speaks.
pub const MIN_VERSION: u32 = 1;
/// The largest message from a client; checked before it is decoded.
pub const MAX_FROM_CLIENT: usize = 256 << 10;
/// The largest message to a client; checked before it is decoded.
pub const MAX_TO_CLIENT: usize = 16 << 20;
/// Within this time of its start a stream is authenticated, or it ends.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Each side sends something at least this often, unless configured otherwise.
pub const HEARTBEAT: Duration = Duration::from_secs(30);
/// After so many heartbeats without a sign of life the other side is gone.
pub const HEARTBEATS_MISSED: u32 = 3;

/// The coordinator's service with the limits above.
pub fn service<T: Coordinator>(coordinator: T) -> CoordinatorServer<T> {
    CoordinatorServer::new(coordinator)
        .max_decoding_message_size(MAX_FROM_CLIENT)
        .max_encoding_message_size(MAX_TO_CLIENT)
}

/// A client of it with the limits above.
#[must_use]
pub fn client(channel: Channel) -> CoordinatorClient<Channel> {
    CoordinatorClient::new(channel)
        .max_decoding_message_size(MAX_TO_CLIENT)
        .max_encoding_message_size(MAX_FROM_CLIENT)
}
