//! What Lightning peers ask by LSPS0 (bLIP-50), answered here: LSPS1 (channels) and LSPS2 (just-in-time channels), if they are sold, LSPS5
//! (webhooks), and our own questions about channels from stocks.

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bitcoin::secp256k1::PublicKey;
use channel_host::{ChannelView, JitGates, JitGround, JitOpening, LspsService, RpcError};
use chrono::{DateTime, SecondsFormat, Utc};
use factory_tree::ids::ClientId;
use factory_tree::sale::order::method as sale;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::context::Context;
use crate::event::Event;
use crate::store::{self, StoreError};
use crate::{jit, lsps1, sales, webhooks};

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

/// An amount, which bLIP-50 wants written as a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Text(pub u64);

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| digits);
        number
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("amounts are strings of digits"))
    }
}

/// A time as bLIP-50 wants it.
#[must_use]
pub fn datetime(unix: u64) -> String {
    let at = i64::try_from(unix).ok();
    let at = at.and_then(|at| DateTime::<Utc>::from_timestamp(at, 0));
    let at = at.unwrap_or(DateTime::<Utc>::MAX_UTC);
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Until when a channel that was sold is promised to stay open, if it is.
///
/// # Errors
/// Those of the database.
pub async fn promised_until(ctx: &Context, channel: &ChannelView) -> store::Result<Option<String>> {
    let ordered = match channel.outpoint {
        Some(funding) => lsps1::promised_until(ctx, funding).await?,
        None => None,
    };
    match ordered {
        None => jit::promised_until(ctx, channel).await,
        until => Ok(until),
    }
}

#[async_trait]
impl LspsService for Lsps {
    fn protocols(&self) -> Vec<u16> {
        let ctx = self.0.upgrade();
        let config = ctx.as_ref().map(|ctx| &ctx.config);
        let sold = [
            (1, config.is_some_and(|config| config.lsps1.enabled)),
            (2, config.is_some_and(|config| config.jit.enabled)),
            (5, true),
        ];
        let served = sold.into_iter().filter(|(_, served)| *served);
        served.map(|(number, _)| number).collect()
    }

    fn came(&self, peer: PublicKey) {
        if let Some(ctx) = self.0.upgrade() {
            ctx.webhooks.came(ClientId(peer.serialize()));
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
            "lsps1.get_info" if ctx.config.lsps1.enabled => lsps1::get_info(&ctx, params),
            "lsps1.create_order" if ctx.config.lsps1.enabled => {
                lsps1::create_order(&ctx, client, params).await
            }
            // What was ordered before can be asked for all the same.
            "lsps1.get_order" => lsps1::get_order(&ctx, client, params).await,
            "lsps2.get_info" if ctx.config.jit.enabled => jit::get_info(&ctx, client, params).await,
            "lsps2.buy" if ctx.config.jit.enabled => jit::buy(&ctx, client, params).await,
            "lsps5.set_webhook" => webhooks::set(&ctx, client, params).await,
            "lsps5.list_webhooks" => webhooks::list(&ctx, client, params).await,
            "lsps5.remove_webhook" => webhooks::remove(&ctx, client, params).await,
            sale::QUOTE => sales::get_quote(&ctx, client, params).await,
            sale::BUY => sales::buy(&ctx, client, params).await,
            sale::PURCHASE => sales::get_purchase(&ctx, client, params).await,
            sale::BONUS_PLACE => sales::bonus_place(&ctx, client, params).await,
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

    async fn open_jit(&self, opening: JitOpening) -> Result<JitGround, String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc_with_milliseconds() {
        assert_eq!(datetime(1_700_000_000), "2023-11-14T22:13:20.000Z");
    }
}
