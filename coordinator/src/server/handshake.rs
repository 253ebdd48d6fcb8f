//! Who is there: Hello, Challenge, Answer. The challenge is fresh per stream and answered once.

use std::time::Duration;

use factory_tree::ids::ClientId;
use proto::auth::AuthError;
use proto::session::ServiceError;
use proto::v1::server_message::Body;
use proto::v1::{ClientMessage, ErrorCode};
use proto::wire::FromClient;
use tokio::sync::mpsc;
use tonic::Streaming;

use super::Front;
use crate::config::parse_version;
use crate::keys::random;
use crate::sessions::Outgoing;

/// What our own clients call themselves; other software sets its own pace.
const OWN_CLIENT: &str = "signer-client ";

/// Authenticates a stream: the client's account and the name of its software.
///
/// # Errors
/// What the client is told.
pub async fn handshake(
    front: &Front,
    incoming: &mut Streaming<ClientMessage>,
    out: &mpsc::Sender<Outgoing>,
) -> Result<(ClientId, String), ServiceError> {
    let seconds = front.ctx.config.server.handshake_seconds;
    let steps = tokio::time::timeout(Duration::from_secs(seconds), steps(front, incoming, out));
    let text = format!("the handshake was not done within {seconds} seconds");
    let (client, software) = steps
        .await
        .map_err(|_| ServiceError::new(ErrorCode::AuthTimeout, text))??;
    check_version(&software, &front.ctx.config.policy.min_client_version)?;
    Ok((client, software))
}

async fn steps(
    front: &Front,
    incoming: &mut Streaming<ClientMessage>,
    out: &mpsc::Sender<Outgoing>,
) -> Result<(ClientId, String), ServiceError> {
    let hello = next(incoming, "Hello").await?;
    let mut secret = front.ctx.keys.node_secret();
    let made = front
        .handshake
        .challenge(hello, &secret, random(), &random());
    secret.non_secure_erase();
    let (challenge, awaited) = made?;
    let sent = out.send(Ok(Body::Challenge(challenge).into())).await;
    sent.map_err(|_| ServiceError::from(AuthError::Missing { expected: "Answer" }))?;
    let answer = next(incoming, "Answer").await?;
    let (node, software) = awaited.verify(answer)?;
    Ok((node.into(), software))
}

async fn next(
    incoming: &mut Streaming<ClientMessage>,
    expected: &'static str,
) -> Result<FromClient, ServiceError> {
    match incoming.message().await {
        Ok(Some(message)) => Ok(FromClient::try_from(message)?),
        Ok(None) => Err(AuthError::Missing { expected }.into()),
        Err(status) => Err(ServiceError::from_status(&status)),
    }
}

fn check_version(software: &str, least: &str) -> Result<(), ServiceError> {
    let own = software.strip_prefix(OWN_CLIENT).and_then(parse_version);
    if own.is_some() && own < parse_version(least) {
        let text = format!(
            "{software} is too old; this coordinator serves {least} and newer: update the wallet"
        );
        return Err(ServiceError::new(ErrorCode::VersionUnsupported, text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_old_software_is_refused() {
        assert!(check_version("signer-client 0.0.9", "0.1.0").is_err());
        assert!(check_version("signer-client 0.10.0", "0.9.0").is_ok());
        assert!(check_version("somebody-else 0.0.1", "0.1.0").is_ok());
    }
}
