//! The coordinator's side of the handshake.

use bitcoin::Network;
use bitcoin::secp256k1::SecretKey;

use super::{AuthError, CertHash, Fresh, Transcript};
use crate::NodeId;
use crate::session::{MIN_VERSION, VERSION};
use crate::v1;
use crate::wire::{FromClient, WireError, fields, network_from_wire};

/// What the coordinator brings to every handshake.
#[derive(Clone, Copy, Debug)]
pub struct ServerHandshake {
    /// Its network.
    pub network: Network,
    /// Its certificate; [`CertHash::PLAIN`] without TLS.
    pub cert: CertHash,
    /// Its node id.
    pub node_id: NodeId,
}

/// A challenge is out. Answering consumes it.
#[derive(Debug)]
#[must_use = "the client is not authenticated before its answer"]
pub struct AwaitAnswer {
    transcript: Transcript,
    software: String,
}

impl ServerHandshake {
    /// Judges the first message of a stream and challenges its sender. `challenge` and `aux` are drawn
    /// for this stream alone; `secret` is the key of `self.node_id`.
    ///
    /// # Errors
    /// [`AuthError`]; the stream then ends.
    pub fn challenge(
        &self,
        first: FromClient,
        secret: &SecretKey,
        challenge: Fresh,
        aux: &Fresh,
    ) -> Result<(v1::Challenge, AwaitAnswer), AuthError> {
        let FromClient::Hello(hello) = first else {
            return Err(AuthError::Missing { expected: "Hello" });
        };
        if !(MIN_VERSION..=VERSION).contains(&hello.protocol_version) {
            return Err(AuthError::Version {
                found: hello.protocol_version,
                min: MIN_VERSION,
                max: VERSION,
            });
        }
        let found = network_from_wire("hello.network", hello.network)?;
        if found != self.network {
            return Err(AuthError::Network {
                found,
                expected: self.network,
            });
        }
        let transcript = Transcript {
            version: hello.protocol_version,
            network: self.network,
            cert: self.cert,
            client: NodeId::from_bytes("hello.node_id", &hello.node_id)?,
            server: self.node_id,
            client_nonce: fields::fixed("hello.client_nonce", &hello.client_nonce)?,
            challenge,
        };
        let software = fields::text("hello.software", hello.software)?;
        let message = v1::Challenge {
            challenge: fields::copied(challenge),
            node_id: fields::copied(self.node_id.to_bytes()),
            signature: fields::copied(transcript.sign_as_server(secret, aux).serialize()),
        };
        Ok((
            message,
            AwaitAnswer {
                transcript,
                software,
            },
        ))
    }
}

impl AwaitAnswer {
    /// Who claims to be there.
    #[must_use]
    pub const fn claimed(&self) -> NodeId {
        self.transcript.client
    }

    /// Judges the second message of the stream. Gives the client, authenticated, and its software.
    ///
    /// # Errors
    /// [`AuthError`]; the stream then ends.
    pub fn verify(self, second: FromClient) -> Result<(NodeId, String), AuthError> {
        let FromClient::Answer(answer) = second else {
            return Err(AuthError::Missing { expected: "Answer" });
        };
        let signature = signature("answer.signature", &answer.signature)?;
        self.transcript.verify_client(&signature)?;
        Ok((self.transcript.client, self.software))
    }
}

pub(super) fn signature(
    field: &'static str,
    bytes: &[u8],
) -> Result<bitcoin::secp256k1::schnorr::Signature, WireError> {
    fields::schnorr_signature(field, bytes)
}
