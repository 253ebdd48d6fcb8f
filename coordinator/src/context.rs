//! What every part of the coordinator works with.

use std::sync::Arc;

use bitcoin::FeeRate;
use chain::ChainSource;
use chain::wallet::OnchainWallet;
use tokio::sync::watch;

use crate::alarms::Alarms;
use crate::ceremony::Ceremonies;
use crate::clock::unix_time;
use crate::config::Config;
use crate::event::{Event, Events};
use crate::keys::NodeKeys;
use crate::ladder::LadderState;
use crate::lightning::Lightning;
use crate::limits::Feerates;
use crate::lsps1::Lsps1;
use crate::sales::Sales;
use crate::sessions::Sessions;
use crate::store::{self, Store, StoreError};
use crate::trees::Trees;
use crate::webhooks::Webhooks;

/// Whether the Bitcoin node serves us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChainState {
    /// It does not; says why.
    Away(String),
    /// It does, and every block up to this height is taken into account.
    Ready(u32),
}

impl ChainState {
    /// The height, when ready.
    #[must_use]
    pub const fn height(&self) -> Option<u32> {
        match self {
            Self::Ready(height) => Some(*height),
            Self::Away(_) => None,
        }
    }
}

/// The parts of a running coordinator.
#[derive(Debug)]
pub struct Context {
    /// What the operator set.
    pub config: Config,
    /// The database.
    pub store: Store,
    /// What happens.
    pub events: Events,
    /// Keys.
    pub keys: Arc<NodeKeys>,
    /// The Bitcoin node.
    pub source: Arc<dyn ChainSource>,
    /// The on-chain wallet.
    pub wallet: Arc<OnchainWallet>,
    /// Whether the node serves us.
    pub chain: watch::Sender<ChainState>,
    /// Connected clients.
    pub sessions: Sessions,
    /// Ceremonies under way.
    pub ceremonies: Ceremonies,
    /// Trees of factories on the chain.
    pub trees: Trees,
    /// The Lightning node.
    pub lightning: Lightning,
    /// The ladder.
    pub ladder: LadderState,
    /// How clients that are away are woken.
    pub webhooks: Webhooks,
    /// Orders of channels under way.
    pub lsps1: Lsps1,
    /// Sales from stocks under way.
    pub sales: Sales,
    /// Feerates for who asks what a channel costs.
    pub feerates: Feerates,
    /// What the operator was told of the database.
    pub alarms: Alarms,
}

impl Context {
    /// The feerate of our own transactions: the node's estimate within the configured bounds.
    pub async fn feerate(&self) -> FeeRate {
        self.feerate_within(self.config.chain.fee_target_blocks)
            .await
    }

    /// The same for what is to confirm within so many blocks.
    pub async fn feerate_within(&self, blocks: u16) -> FeeRate {
        let chain = &self.config.chain;
        let most = FeeRate::from_sat_per_vb_u32(chain.max_feerate);
        match self.source.fee_rate(blocks).await {
            Ok(rate) => rate.min(most),
            Err(error) => {
                tracing::warn!(%error, "no feerate estimate: using the configured one");
                FeeRate::from_sat_per_vb_u32(chain.fallback_feerate)
            }
        }
    }

    /// Those of many rows that can be read: one that cannot is an alarm, and in nobody else's way.
    pub(crate) fn readable<T>(&self, rows: Vec<store::Result<T>>) -> Vec<T> {
        let rows = rows.into_iter();
        let readable = rows.filter_map(|row| match row {
            Ok(row) => Some(row),
            Err(error) => {
                self.alarm(&error);
                None
            }
        });
        readable.collect()
    }

    /// Tells the operator what the database could not do; what is met at every look, or told again and again, only once an hour.
    pub(crate) fn alarm(&self, error: &StoreError) {
        let problem = error.to_string();
        if self.alarms.is_due(&problem, unix_time()) {
            self.events.emit(Event::StoreFailed { problem });
        }
    }

    /// The newest height that was taken into account.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.events.height()
    }
}
