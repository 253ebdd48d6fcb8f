//! Questions by LSPS0, ours and the peers'.

use std::sync::Arc;
use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use serde_json::Value;

use super::Core;
use crate::lsps0::{AskError, Lsps0, fresh_id};

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(15);

/// A question of ours, waited for until this is dropped.
struct Asked<'a> {
    lsps: &'a Lsps0,
    peer: PublicKey,
    id: String,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.lsps.give_up(self.peer, &self.id);
    }
}

impl Core {
    /// Answers questions, one after another; others do beside.
    pub(super) async fn serve(self: Arc<Self>) {
        loop {
            self.lsps.serve_one().await;
            self.peers.process_events();
        }
    }

    pub(super) async fn ask(
        &self,
        peer: PublicKey,
        method: &str,
        params: &Value,
    ) -> Result<Value, AskError> {
        if !self.is_connected(&peer) {
            return Err(AskError::Away(peer));
        }
        let id = fresh_id();
        let answer = self.lsps.ask(peer, &id, method, params);
        // Whoever asked may stop waiting.
        let _asked = Asked {
            lsps: &self.lsps,
            peer,
            id,
        };
        self.peers.process_events();
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(outcome)) => outcome.map_err(AskError::Refused),
            Ok(Err(_)) => Err(AskError::Away(peer)),
            Err(_) => Err(AskError::Silent(peer)),
        }
    }
}
