//! What a purchase needs of the coordinator and of the Lightning node.

use std::fmt::Debug;

use async_trait::async_trait;
use channel_host::{AskError, InvoiceView, LeafId, Stage, read_invoice};
use serde_json::Value;

use super::SaleError;
use crate::client::SignerClient;
use crate::error::{Error, Result};

/// What JSON-RPC says of a method that nobody serves (JSON-RPC 2.0, section 5.1).
const UNKNOWN_METHOD: i32 = -32_601;

/// The other side of a purchase, and the means to pay for it.
#[async_trait]
pub(super) trait Shop: Debug + Send + Sync {
    /// Asks the coordinator (LSPS0).
    async fn ask(&self, method: &str, params: &Value) -> Result<Value>;

    /// Reads an invoice.
    fn read(&self, invoice: &str) -> Result<InvoiceView>;

    /// Begins to pay it.
    async fn pay(&self, invoice: &str) -> Result<()>;

    /// Whether the channel on a leaf stands.
    fn stands(&self, leaf: LeafId) -> bool;
}

#[async_trait]
impl Shop for SignerClient {
    async fn ask(&self, method: &str, params: &Value) -> Result<Value> {
        match self.ask_coordinator(method, params).await {
            Err(Error::Asked(AskError::Refused(error))) if error.code == UNKNOWN_METHOD => {
                Err(SaleError::NotOffered.into())
            }
            answer => answer,
        }
    }

    fn read(&self, invoice: &str) -> Result<InvoiceView> {
        Ok(read_invoice(invoice, self.inner.config.network)?)
    }

    async fn pay(&self, invoice: &str) -> Result<()> {
        self.pay(invoice, None).await.map(drop)
    }

    fn stands(&self, leaf: LeafId) -> bool {
        let view = self.inner.lightning.node().and_then(|node| node.leaf(leaf));
        view.is_some_and(|view| view.stage == Stage::Open)
    }
}
