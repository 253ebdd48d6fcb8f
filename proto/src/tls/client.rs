//! The wallet's side of a connection.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

use super::{
    CONNECTION_WINDOW, HANDSHAKE, PING_EVERY, PING_TIMEOUT, PinMismatch, PinnedCertificate,
    STREAM_WINDOW,
};
use crate::connection::{Connection, Security};

/// The name asked for in TLS. It means nothing: the certificate is pinned.
pub(super) const NAME: &str = "superscalar";

/// How to connect.
#[derive(Clone, Copy, Debug)]
pub struct ConnectOptions {
    /// Whether a connection without TLS (to a loopback address) is wanted.
    pub allow_plain: bool,
    /// How long it may take.
    pub timeout: Duration,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            allow_plain: false,
            timeout: Duration::from_secs(10),
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A connection without TLS that nobody asked for.
    #[error(
        "{authority} is to be reached without TLS: that must be allowed explicitly (allow_plain)"
    )]
    PlainRefused {
        /// Host and port.
        authority: String,
    },
    /// Somebody else answers there, or the coordinator has a new certificate.
    #[error(
        "{authority} is not the coordinator of the connection string ({mismatch}): ask the operator for its current \
         connection string, and compare it with what you have"
    )]
    OtherCertificate {
        /// Host and port.
        authority: String,
        /// What differs.
        mismatch: PinMismatch,
    },
    /// Nobody answers there, or not in our protocol.
    #[error("cannot reach the coordinator at {authority}: {reason}")]
    Unreachable {
        /// Host and port.
        authority: String,
        /// Why.
        reason: String,
    },
}

/// Connects to a coordinator. The channel reconnects by itself, with the same checks. What is to be
/// signed in the handshake as its certificate is [`Connection::cert`].
///
/// # Errors
/// [`ConnectError`].
pub async fn connect(
    connection: &Connection,
    options: &ConnectOptions,
) -> Result<Channel, ConnectError> {
    let authority = connection.authority();
    let endpoint = match connection.security() {
        Security::Plain if !options.allow_plain => {
            return Err(ConnectError::PlainRefused { authority });
        }
        Security::Plain => Endpoint::from_shared(format!("http://{authority}")),
        Security::Tls(cert) => {
            let tls = ClientTlsConfig::new().domain_name(NAME).timeout(HANDSHAKE);
            Endpoint::from_shared(format!("https://{authority}")).and_then(|endpoint| {
                endpoint.tls_config_with_verifier(tls, Arc::new(PinnedCertificate::new(cert)))
            })
        }
    };
    let connected = match endpoint {
        Ok(endpoint) => {
            let connecting = tuned(endpoint, options.timeout);
            connecting.connect().await
        }
        Err(error) => Err(error),
    };
    connected.map_err(|error| explain(authority, &error))
}

fn tuned(endpoint: Endpoint, timeout: Duration) -> Endpoint {
    endpoint
        .connect_timeout(timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
}

/// tonic says "transport error"; the cause is further down.
fn explain(authority: String, error: &tonic::transport::Error) -> ConnectError {
    let mut reason = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        if let Some(mismatch) = mismatch(cause) {
            return ConnectError::OtherCertificate {
                authority,
                mismatch,
            };
        }
        reason = cause.to_string();
        next = cause.source();
    }
    ConnectError::Unreachable { authority, reason }
}

fn mismatch(cause: &(dyn Error + 'static)) -> Option<PinMismatch> {
    // rustls's error travels inside an I/O error, whose `source` skips it.
    let inner = cause.downcast_ref::<io::Error>()?.get_ref()?;
    let rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) =
        inner.downcast_ref::<rustls::Error>()?
    else {
        return None;
    };
    other.0.downcast_ref::<PinMismatch>().copied()
}
