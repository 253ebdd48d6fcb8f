//! Blocking JSON-RPC calls, each on a thread that may block, a few at a time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bitcoincore_rpc::jsonrpc::{self, simple_http};
use bitcoincore_rpc::{Client, RpcApi};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::{BitcoindConfig, RpcAuth, parse, unreadable};
use crate::{ChainError, Result};

/// RPC_IN_WARMUP: the node is starting; nothing was done.
const WARMING_UP: i32 = -28;

/// First and longest pause before asking a node again that is not ready.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Connections to one node, kept open between calls.
#[derive(Debug)]
pub(super) struct RpcPool {
    shared: Arc<Shared>,
    warmup: Duration,
    slots: Arc<Semaphore>,
}

#[derive(Debug)]
struct Shared {
    url: String,
    auth: RpcAuth,
    timeout: Duration,
    idle: Mutex<Vec<Client>>,
}

impl RpcPool {
    pub(super) fn new(config: BitcoindConfig) -> Result<Self> {
        let shared = Shared {
            url: config.url,
            auth: config.auth,
            timeout: config.timeout,
            idle: Mutex::default(),
        };
        // simple_http would accept https and then speak plain HTTP.
        if !shared.url.starts_with("http://") {
            return Err(ChainError::BadUrl {
                url: shared.url,
                cause: "it must begin with http://".to_owned(),
            });
        }
        Ok(Self {
            shared: Arc::new(shared),
            warmup: config.warmup,
            slots: Arc::new(Semaphore::new(config.connections.max(1))),
        })
    }

    /// One call, repeated only while the node says that it is not ready, which means that it did nothing.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        method: &'static str,
        params: Vec<Value>,
    ) -> Result<T> {
        let deadline = Instant::now().checked_add(self.warmup);
        let mut pause = BACKOFF.0;
        loop {
            match self.call_once(method, params.clone()).await {
                Err(ChainError::NotReady { message, .. })
                    if deadline.is_some_and(|deadline| Instant::now() < deadline) =>
                {
                    tracing::debug!(method, message, "the Bitcoin node is not ready yet");
                    tokio::time::sleep(pause).await;
                    pause = pause.saturating_mul(2).min(BACKOFF.1);
                }
                answer => return parse(method, answer?),
            }
        }
    }

    async fn call_once(&self, method: &'static str, params: Vec<Value>) -> Result<Value> {
        let slot = Arc::clone(&self.slots)
            .acquire_owned()
            .await
            .map_err(|closed| unreadable(method, closed))?;
        let shared = Arc::clone(&self.shared);
        let call = tokio::task::spawn_blocking(move || {
            let answer = shared.call(method, &params);
            drop(slot);
            answer
        });
        call.await.map_err(|stopped| unreadable(method, stopped))?
    }
}

impl Shared {
    /// A node that restarted has a new cookie, so a refusal of a kept connection is worth one more try with a fresh one.
    fn call(&self, method: &'static str, params: &[Value]) -> Result<Value> {
        let kept = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        if let Some(client) = kept {
            match self.call_on(client, method, params) {
                Err(ChainError::Unauthorized { .. }) => self
                    .idle
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clear(),
                answer => return answer,
            }
        }
        self.call_on(self.connect()?, method, params)
    }

    fn call_on(&self, client: Client, method: &'static str, params: &[Value]) -> Result<Value> {
        let answer = client
            .call::<Value>(method, params)
            .map_err(|error| self.classify(method, error));
        // Whoever got an answer, even a refusal of what was asked, has a connection that works.
        if matches!(answer, Ok(_) | Err(ChainError::Rpc { .. })) {
            self.idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(client);
        }
        answer
    }

    fn connect(&self) -> Result<Client> {
        let bad_url = |cause: simple_http::Error| self.bad_url(&cause);
        let transport = simple_http::SimpleHttpTransport::builder()
            .url(&self.url)
            .map_err(bad_url)?
            .timeout(self.timeout);
        let transport = match &self.auth {
            RpcAuth::UserPass { user, password } => {
                transport.auth(user.as_str(), Some(password.as_str()))
            }
            RpcAuth::CookieFile(path) => {
                let cookie = std::fs::read_to_string(path).map(Zeroizing::new);
                let cookie = cookie.map_err(|error| ChainError::Cookie {
                    path: path.clone(),
                    cause: error.to_string(),
                })?;
                transport.cookie_auth(cookie.trim_end())
            }
        };
        Ok(Client::from_jsonrpc(jsonrpc::Client::with_transport(
            transport.build(),
        )))
    }

    /// A host name that cannot be resolved is a matter of the network; anything else is a matter of the configuration.
    fn bad_url(&self, cause: &simple_http::Error) -> ChainError {
        match cause {
            simple_http::Error::SocketError(cause) => ChainError::Unreachable {
                url: self.url.clone(),
                cause: cause.to_string(),
            },
            other => ChainError::BadUrl {
                url: self.url.clone(),
                cause: other.to_string(),
            },
        }
    }

    fn classify(&self, method: &'static str, error: bitcoincore_rpc::Error) -> ChainError {
        let url = || self.url.clone();
        match error {
            bitcoincore_rpc::Error::JsonRpc(jsonrpc::Error::Rpc(error))
                if error.code == WARMING_UP =>
            {
                ChainError::NotReady {
                    url: url(),
                    message: error.message,
                }
            }
            bitcoincore_rpc::Error::JsonRpc(jsonrpc::Error::Rpc(error)) => ChainError::Rpc {
                method,
                code: error.code,
                message: error.message,
            },
            bitcoincore_rpc::Error::JsonRpc(jsonrpc::Error::Transport(error)) => {
                match error.downcast_ref() {
                    Some(simple_http::Error::HttpErrorCode(401 | 403)) => {
                        ChainError::Unauthorized { url: url() }
                    }
                    // "Work queue depth exceeded".
                    Some(simple_http::Error::HttpErrorCode(503)) => ChainError::NotReady {
                        url: url(),
                        message: "too many calls at once".to_owned(),
                    },
                    _ => ChainError::Unreachable {
                        url: url(),
                        cause: error.to_string(),
                    },
                }
            }
            other => unreadable(method, other),
        }
    }
}

#[cfg(test)]
#[path = "rpc_tests.rs"]
mod tests;
