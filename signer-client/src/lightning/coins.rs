//! What Lightning's transactions are paid from: the wallet's coins, as of the block that Lightning has seen.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bitcoin::{Amount, FeeRate, ScriptBuf, Transaction, TxOut};
use channel_host::{FeeCoin, FeeCoins, FeeCoinsError, WalletCoins};

use crate::client::Inner;

/// How long the wallet may take for a block that Lightning has taken in.
const LOOKS: u32 = 100;
const LOOK: Duration = Duration::from_millis(20);

/// The wallet's coins. The wallet and the Lightning node follow the chain each for itself: whoever asks for coins right after a block waits
/// for the wallet, or the change of the leaf's fee child would not be there for the commitment's.
#[derive(Debug)]
pub(super) struct Coins {
    wallet: WalletCoins,
    client: Weak<Inner>,
}

impl Coins {
    pub(super) fn new(client: &Arc<Inner>) -> Self {
        Self {
            wallet: WalletCoins::new(Arc::clone(&client.wallet)),
            client: Arc::downgrade(client),
        }
    }

    async fn catch_up(&self) {
        for _ in 0..LOOKS {
            let Some(client) = self.client.upgrade() else {
                return;
            };
            let seen = client.lightning.node().map_or(0, |node| node.height());
            if !client.follows() || client.followed_height() >= seen {
                return;
            }
            drop(client);
            tokio::time::sleep(LOOK).await;
        }
    }
}

#[async_trait]
impl FeeCoins for Coins {
    async fn coins(&self) -> Result<Vec<FeeCoin>, FeeCoinsError> {
        self.catch_up().await;
        self.wallet.coins().await
    }

    async fn change_script(&self) -> Result<ScriptBuf, FeeCoinsError> {
        self.wallet.change_script().await
    }

    async fn sign(&self, tx: &mut Transaction, prevouts: &[TxOut]) -> Result<(), FeeCoinsError> {
        self.wallet.sign(tx, prevouts).await
    }

    async fn record(&self, transaction: &Transaction) -> Result<(), FeeCoinsError> {
        self.wallet.record(transaction).await
    }

    async fn pay(
        &self,
        script: &ScriptBuf,
        amount: Amount,
        feerate: FeeRate,
    ) -> Result<Transaction, FeeCoinsError> {
        self.wallet.pay(script, amount, feerate).await
    }
}
