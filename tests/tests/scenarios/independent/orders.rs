//! Channels ordered in advance, by the library's LSPS1 client.

use anyhow::{Context, Result};
use lightning_liquidity::events::LiquidityEvent;
use lightning_liquidity::lsps0::ser::LSPSResponseError;
use lightning_liquidity::lsps1::event::LSPS1ClientEvent;
use lightning_liquidity::lsps1::msgs::{
    LSPS1Bolt11PaymentInfo, LSPS1ChannelInfo, LSPS1Options, LSPS1OrderId, LSPS1OrderParams,
};

use super::Independent;

/// An order, as far as the library tells of it: it keeps `order_state` and `created_at` to itself.
#[derive(Debug, Clone)]
pub struct Ordered {
    pub id: LSPS1OrderId,
    pub order: LSPS1OrderParams,
    pub bolt11: LSPS1Bolt11PaymentInfo,
    pub channel: Option<LSPS1ChannelInfo>,
}

type Answer = Result<Ordered, LSPSResponseError>;

fn ordered(event: &LiquidityEvent) -> Option<Answer> {
    match event {
        LiquidityEvent::LSPS1Client(
            LSPS1ClientEvent::OrderCreated {
                order_id,
                order,
                payment,
                channel,
                ..
            }
            | LSPS1ClientEvent::OrderStatus {
                order_id,
                order,
                payment,
                channel,
                ..
            },
        ) => Some(Ok(Ordered {
            id: order_id.clone(),
            order: order.clone(),
            bolt11: payment.bolt11.clone()?,
            channel: channel.clone(),
        })),
        LiquidityEvent::LSPS1Client(LSPS1ClientEvent::OrderRequestFailed { error, .. }) => {
            Some(Err(error.clone()))
        }
        _ => None,
    }
}

impl Independent {
    /// What can be ordered.
    pub fn options(&self) -> Result<LSPS1Options> {
        let client = self.liquidity().lsps1_client_handler();
        client
            .context("it is a client")?
            .request_supported_options(self.lsp());
        self.answer("the options", |event| match event {
            LiquidityEvent::LSPS1Client(LSPS1ClientEvent::SupportedOptionsReady {
                supported_options,
                ..
            }) => Some(supported_options.clone()),
            _ => None,
        })
    }

    /// Orders a channel, and does not wait for the answer.
    pub fn send_order(&self, order: LSPS1OrderParams) -> Result<()> {
        let client = self.liquidity().lsps1_client_handler();
        client
            .context("it is a client")?
            .create_order(&self.lsp(), order, None);
        self.flush();
        Ok(())
    }

    /// Orders a channel.
    pub fn order(&self, order: LSPS1OrderParams) -> Result<Answer> {
        self.send_order(order)?;
        self.answer("an order", ordered)
    }

    /// How far an order is.
    pub fn order_status(&self, id: &LSPS1OrderId) -> Result<Answer> {
        let client = self.liquidity().lsps1_client_handler();
        client
            .context("it is a client")?
            .check_order_status(&self.lsp(), id.clone());
        self.answer("an order's state", ordered)
    }
}
