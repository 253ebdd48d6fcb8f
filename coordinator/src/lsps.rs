//! What Lightning peers ask by LSPS0 (bLIP-50), answered here: LSPS2 (just-in-time channels), if they are sold, LSPS5 (webhooks),
//! and our own questions about channels from stocks.

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bitcoin::secp256k1::PublicKey;
use channel_host::{JitGates, JitOpening, LspsService, RpcError};
use factory_tree::ids::ClientId;
use factory_tree::sale::order::method as sale;
use serde_json::{Map, Value};

use crate::context::Context;
use crate::event::Event;
use crate::store::StoreError;
use crate::{jit, sales, webhooks};

/// Answers. The node is part of the context, so this does not keep it alive.
#[derive(Debug)]
pub struct Lsps(Weak<Context>);

impl Lsps {
    /// For the node of `ctx`.
    #[must_use]
    pub fn new(ctx: &Arc<Context>) -> Self {
        Self(Arc::downgrade(ctx))
    }
}

/// Why a question is not answered as asked.
#[derive(Debug)]
pub enum Refusal {
    /// The peer's doing.
    Rpc(RpcError),
    /// Ours.
    Store(StoreError),
}

impl From<RpcError> for Refusal {
    fn from(error: RpcError) -> Self {
        Self::Rpc(error)
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

#[async_trait]
impl LspsService for Lsps {
    fn protocols(&self) -> Vec<u16> {
        let ctx = self.0.upgrade();
        match ctx {
            Some(ctx) if ctx.config.jit.enabled => vec![2, 5],
            _ => vec![5],
        }
    }

    async fn answer(
        &self,
        peer: PublicKey,
        method: &str,
        params: Map<String, Value>,
    ) -> Result<Value, RpcError> {
        let ctx = self.0.upgrade().ok_or_else(RpcError::internal)?;
        let client = ClientId(peer.serialize());
        let answered = match method {
            "lsps2.get_info" if ctx.config.jit.enabled => jit::get_info(&ctx, client, params).await,
            "lsps2.buy" if ctx.config.jit.enabled => jit::buy(&ctx, client, params).await,
            "lsps5.set_webhook" => webhooks::set(&ctx, client, params).await,
            "lsps5.list_webhooks" => webhooks::list(&ctx, client, params).await,
            "lsps5.remove_webhook" => webhooks::remove(&ctx, client, params).await,
            sale::QUOTE => sales::get_quote(&ctx, client, params).await,
            sale::BUY => sales::buy(&ctx, client, params).await,
            sale::PURCHASE => sales::get_purchase(&ctx, client, params).await,
            sale::CANCEL => sales::cancel_purchase(&ctx, client, params).await,
            _ => return Err(RpcError::unknown_method()),
        };
        answered.map_err(|refusal| match refusal {
            Refusal::Rpc(error) => error,
            Refusal::Store(error) => {
                ctx.events.emit(Event::StoreFailed {
                    problem: error.to_string(),
                });
                RpcError::internal()
            }
        })
    }

    async fn open_jit(&self, opening: JitOpening) -> Result<(), String> {
        let ctx = self.0.upgrade().ok_or("the coordinator is stopping")?;
        match jit::open(&ctx, opening).await {
            Ok(allowed) => allowed,
            Err(error) => {
                ctx.events.emit(Event::StoreFailed {
                    problem: error.to_string(),
                });
                Err("the database failed".into())
            }
        }
    }

    fn jit_gates(&self) -> JitGates {
        self.0
            .upgrade()
            .map_or_else(JitGates::default, |ctx| jit::gates(&ctx))
    }
}
