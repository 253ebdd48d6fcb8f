//! LSPS0 (bLIP-50): questions and answers between Lightning peers, JSON-RPC 2.0 in messages of type 37913.
//!
//! What is asked is for the host to answer ([`LspsService`]): this is the transport. It holds little for a peer: some questions at once, each no
//! larger than a Lightning message, and serves all in turn.

mod inbox;
mod message;
mod transport;

use async_trait::async_trait;
use bitcoin::secp256k1::PublicKey;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::jit::{JitGates, JitGround, JitOpening};

pub(crate) use inbox::AT_ONCE;
pub(crate) use transport::Lsps0;

/// An answer that says no (JSON-RPC 2.0, section 5.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} (error {code})")]
pub struct RpcError {
    /// What kind: bLIP-50 gives LSPSn the numbers from n * 100 to n * 100 + 99.
    pub code: i32,
    /// For people.
    pub message: String,
    /// More of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

impl RpcError {
    /// An error of this kind.
    pub fn new(code: i32, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            data: None,
        }
    }

    /// No such method.
    pub fn unknown_method() -> Self {
        Self::new(-32_601, "method not found")
    }

    /// Parameters of the wrong kind.
    pub fn invalid_params(message: impl Into<String>) -> Self {
        Self::new(-32_602, message)
    }

    /// Parameters we do not know, which bLIP-50 wants named.
    pub fn unrecognized(names: &[String]) -> Self {
        Self {
            data: Some(json!({ "unrecognized": names })),
            ..Self::invalid_params("unrecognized parameters")
        }
    }

    /// Our own trouble.
    pub fn internal() -> Self {
        Self::new(-32_603, "internal error")
    }
}

/// Reads the parameters of a method that knows these.
///
/// # Errors
/// [`RpcError`] for parameters it does not know, does not find, or finds to be of another kind.
pub fn read_params<T: serde::de::DeserializeOwned>(
    params: Map<String, Value>,
    known: &[&str],
) -> Result<T, RpcError> {
    let foreign = params.keys().filter(|name| !known.contains(&name.as_str()));
    let foreign: Vec<String> = foreign.cloned().collect();
    if !foreign.is_empty() {
        return Err(RpcError::unrecognized(&foreign));
    }
    serde_json::from_value(Value::Object(params))
        .map_err(|error| RpcError::invalid_params(format!("invalid parameters: {error}")))
}

/// A name for a question of ours: bLIP-50 asks for 80 random bits at least.
pub(crate) fn fresh_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Who answers. An answer counts as given when it is returned: what it promises is stored before.
#[async_trait]
pub trait LspsService: Send + Sync + std::fmt::Debug {
    /// The numbers of the protocols that are served, without 0.
    fn protocols(&self) -> Vec<u16>;

    /// Answers one question.
    ///
    /// # Errors
    /// [`RpcError`], which is the answer then.
    async fn answer(
        &self,
        peer: PublicKey,
        method: &str,
        params: Map<String, Value>,
    ) -> Result<Value, RpcError>;

    /// A peer is connected: told while Lightning waits, so this is short.
    fn came(&self, _peer: PublicKey) {}

    /// The last word before a channel is opened for a payment that waits: what it says yes to may cost money. Where the channel is a leaf's it is
    /// asked again and again, until that one may be used or something else is said.
    ///
    /// # Errors
    /// Why not; the payment is sent back.
    async fn open_jit(&self, _opening: JitOpening) -> Result<JitGround, String> {
        Err("channels are not sold here".into())
    }

    /// How many payments for such channels may wait, and for how long.
    fn jit_gates(&self) -> JitGates {
        JitGates::default()
    }
}

/// Why a question of ours has no good answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// The peer is away.
    #[error("the Lightning node {0} is not connected; try again when it is")]
    Away(PublicKey),
    /// It says nothing.
    #[error("the Lightning node {0} did not answer; perhaps it knows nothing of LSPS0")]
    Silent(PublicKey),
    /// It says no.
    #[error("refused: {0}")]
    Refused(RpcError),
}

#[cfg(test)]
mod tests;
