//! The client's side of the handshake.

use bitcoin::Network;
use bitcoin::secp256k1::SecretKey;

use super::server::signature;
use super::{AuthError, CertHash, Fresh, Transcript};
use crate::NodeId;
use crate::session::VERSION;
use crate::v1;
use crate::wire::{FromServer, Welcome, fields, network_to_wire};

/// What the client brings to a handshake.
#[derive(Clone, Copy, Debug)]
pub struct ClientHandshake {
    /// Its network.
    pub network: Network,
    /// The certificate it pinned; [`CertHash::PLAIN`] without TLS.
    pub cert: CertHash,
    /// The coordinator it was told of.
    pub server: NodeId,
    /// Its own node id.
    pub client: NodeId,
}

/// The hello is out. The challenge consumes it.
#[derive(Debug)]
#[must_use = "the coordinator is not authenticated before its challenge"]
pub struct ClientHello {
    handshake: ClientHandshake,
    client_nonce: Fresh,
}

impl ClientHandshake {
    /// The first message of a stream. `client_nonce` is drawn for this stream alone.
    pub fn hello(self, client_nonce: Fresh, software: &str) -> (v1::Hello, ClientHello) {
        let hello = v1::Hello {
            protocol_version: VERSION,
            network: network_to_wire(self.network).into(),
            node_id: fields::copied(self.client.to_bytes()),
            client_nonce: fields::copied(client_nonce),
            software: fields::short(software),
        };
        (
            hello,
            ClientHello {
                handshake: self,
                client_nonce,
            },
        )
    }
}

impl ClientHello {
    /// Judges the coordinator's first message and answers it; `secret` is the key of the client's node
    /// id. Nothing is signed for another coordinator than the one expected.
    ///
    /// # Errors
    /// [`AuthError`]; the stream is then to be dropped.
    pub fn answer(
        self,
        first: FromServer,
        secret: &SecretKey,
        aux: &Fresh,
    ) -> Result<v1::Answer, AuthError> {
        let FromServer::Challenge(challenge) = first else {
            return Err(AuthError::Missing {
                expected: "Challenge",
            });
        };
        let handshake = self.handshake;
        let found = NodeId::from_bytes("challenge.node_id", &challenge.node_id)?;
        if found != handshake.server {
            return Err(AuthError::OtherCoordinator {
                found,
                expected: Box::new(handshake.server),
            });
        }
        let transcript = Transcript {
            version: VERSION,
            network: handshake.network,
            cert: handshake.cert,
            client: handshake.client,
            server: handshake.server,
            client_nonce: self.client_nonce,
            challenge: fields::fixed("challenge.challenge", &challenge.challenge)?,
        };
        transcript.verify_server(&signature("challenge.signature", &challenge.signature)?)?;
        Ok(v1::Answer {
            signature: fields::copied(transcript.sign_as_client(secret, aux).serialize()),
        })
    }

    /// Judges the coordinator's second message.
    ///
    /// # Errors
    /// [`AuthError::Missing`]; the stream is then to be dropped.
    pub fn welcome(second: FromServer) -> Result<Welcome, AuthError> {
        match second {
            FromServer::Welcome(welcome) => Ok(welcome),
            _ => Err(AuthError::Missing {
                expected: "Welcome",
            }),
        }
    }
}
