//! Both sides prove who they are.

use std::time::Duration;

use proto::NodeId;
use proto::auth::{AuthError, ClientHandshake, ClientHello};
use proto::connection::Connection;
use proto::session::HANDSHAKE_DEADLINE;
use proto::v1::client_message::Body;
use proto::wire::{FromServer, Welcome};
use rand::RngCore;
use rand::rngs::OsRng;

use super::Outgoing;
use super::session::Incoming;
use crate::client::Inner;
use crate::error::{Error, Result};

/// The hello of a new stream, and what answers the challenge to it.
pub(super) fn hello(client: &Inner, connection: &Connection) -> Result<(Body, ClientHello)> {
    let node = NodeId::try_from(client.keys.node_id())
        .map_err(|error| Error::Handshake(error.to_string()))?;
    let handshake = ClientHandshake {
        network: client.config.network,
        cert: connection.cert(),
        server: connection.node_id(),
        client: node,
    };
    let software = concat!("signer-client ", env!("CARGO_PKG_VERSION"));
    let (hello, state) = handshake.hello(fresh(), software);
    Ok((Body::Hello(hello), state))
}

/// Answers the challenge and awaits the welcome.
pub(super) async fn complete(
    client: &Inner,
    hello: ClientHello,
    out: &Outgoing,
    incoming: &mut Incoming,
) -> Result<Welcome> {
    let challenge = within(HANDSHAKE_DEADLINE, incoming).await?;
    let mut secret = client.keys.node_key();
    #[cfg(feature = "fault-points")]
    crate::misbehave::twist_key(&mut secret);
    let answer = hello.answer(challenge, &secret, &fresh());
    secret.non_secure_erase();
    #[allow(unused_mut)]
    let mut answer = answer.map_err(refused)?;
    #[cfg(feature = "fault-points")]
    crate::misbehave::twist_answer(&mut answer);
    out.body(Body::Answer(answer)).await?;
    let welcome = within(HANDSHAKE_DEADLINE, incoming).await?;
    ClientHello::welcome(welcome).map_err(refused)
}

async fn within(limit: Duration, incoming: &mut Incoming) -> Result<FromServer> {
    let message = tokio::time::timeout(limit, incoming.next())
        .await
        .map_err(|_| Error::Disconnected("no answer to the handshake".to_owned()))??;
    match message {
        FromServer::Error(error) => Err(Error::Refused(error)),
        other => Ok(other),
    }
}

fn refused(error: AuthError) -> Error {
    Error::Handshake(error.to_string())
}

fn fresh() -> [u8; 32] {
    let mut bytes = [0; 32];
    OsRng.fill_bytes(&mut bytes);
    bytes
}
