//! The coordinator's side of a connection.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Server, ServerTlsConfig};

use super::traffic::Counted;
use super::{HANDSHAKE, PING_EVERY, PING_TIMEOUT, Places, ServerIdentity};
use crate::session::MAX_FROM_CLIENT;

/// Streams and calls under way on one connection: a wallet needs a few.
const MAX_STREAMS: u32 = 64;
/// What a client may have under way on one stream: one message.
const STREAM_WINDOW: u32 = MAX_FROM_CLIENT as u32;
/// What a client may have under way on one connection.
const CONNECTION_WINDOW: u32 = 2 * STREAM_WINDOW;
/// Bytes of the headers of one request.
const MAX_HEADERS: u32 = 16 << 10;

/// Why a coordinator cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Without TLS anybody on the way could read and change everything.
    #[error("{listen} is no loopback address: without TLS only loopback addresses are served")]
    PlainAddress {
        /// Where it should listen.
        listen: SocketAddr,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(#[source] tonic::transport::Error),
}

/// A server for `listen`, over TLS if there is an identity; add the services and serve [`incoming`].
///
/// # Errors
/// [`ServeError::PlainAddress`] for a server without TLS on another than a loopback address.
pub fn server(listen: SocketAddr, identity: Option<&ServerIdentity>) -> Result<Server, ServeError> {
    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .http2_max_header_list_size(MAX_HEADERS)
        .max_concurrent_streams(MAX_STREAMS);
    let Some(identity) = identity else {
        if listen.ip().is_loopback() {
            return Ok(server);
        }
        return Err(ServeError::PlainAddress { listen });
    };
    // tonic takes the process's provider; an error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let tls = ServerTlsConfig::new()
        .identity(identity.to_tonic())
        .timeout(HANDSHAKE);
    server.tls_config(tls).map_err(ServeError::Tls)
}

/// The connections to `listener`, without Nagle's delay: with it 128 streams wait 40 ms for nothing,
/// and the server's own `tcp_nodelay` has no effect on a listener that it did not open.
/// Their bytes are counted ([`super::traffic`]). A connection for which there is no place is closed at once.
pub fn incoming(
    listener: TcpListener,
    places: Arc<Places>,
) -> impl Stream<Item = io::Result<Counted>> {
    let connections = TcpIncoming::from(listener).with_nodelay(Some(true));
    connections.filter_map(move |accepted| {
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => return Some(Err(error)),
        };
        // One that is gone already has no address.
        let place = places.enter(stream.peer_addr().ok()?.ip())?;
        Some(Ok(Counted {
            stream,
            _place: place,
        }))
    })
}
