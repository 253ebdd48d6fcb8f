//! Where money that came out of a channel goes.

use std::sync::{Mutex, PoisonError};

use bitcoin::ScriptBuf;
use lightning::sign::ChangeDestinationSourceSync;

use crate::coins::FeeCoins;

/// The wallet's script, fetched ahead as LDK cannot wait for it.
#[derive(Debug, Default)]
pub(super) struct SweepTarget(Mutex<Option<ScriptBuf>>);

impl SweepTarget {
    pub(super) async fn refresh(&self, coins: &dyn FeeCoins) {
        match coins.change_script().await {
            Ok(script) => *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(script),
            Err(error) => tracing::warn!(%error, "the wallet has no script for swept money"),
        }
    }
}

impl ChangeDestinationSourceSync for SweepTarget {
    fn get_change_destination_script(&self) -> Result<ScriptBuf, ()> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .ok_or(())
    }
}
