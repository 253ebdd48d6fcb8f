//! Selling inbound liquidity from a stock (protocol.md section 6): a chain of transactions, each
//! spending the stock that the one before left, and what keeps it honest.
//!
//! [`Stock`] rebuilds everything from what both sides store: the leaf's stock and the [`Sale`]s so
//! far. [`Seller`] and [`CoSigner`] are the two sides of signing one sale.

mod build;
pub mod cosigner;
mod coverage;
pub mod message;
pub mod order;
pub mod rules;
pub mod seller;
#[cfg(test)]
mod sim;
mod stock;
#[cfg(test)]
mod tests;

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, OutPoint};
use serde::{Deserialize, Serialize};

use crate::ids::{LeafId, SaleId};
use crate::tx::checked_sum;

pub use build::SaleTxs;
pub use cosigner::CoSigner;
pub use coverage::Coverage;
pub use seller::Seller;
pub use stock::{LEAST_CHANNEL, Stock, StockError, least_channel};

/// A channel that a sale makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SoldChannel {
    /// Whose: its place in leaf order.
    pub position: u32,
    /// The channel's leaf id, drawn by that client.
    pub leaf_id: LeafId,
    /// The client's funding key.
    pub channel_key: PublicKey,
    /// The LSP's funding key.
    pub lsp_channel_key: PublicKey,
    /// What the channel holds; all of it the LSP's.
    #[serde(rename = "capacity_sat", with = "bitcoin::amount::serde::as_sat")]
    pub capacity: Amount,
}

/// The terms of one sale. With the stock and the sales before, its transactions are a pure
/// function of them, so this is what both sides store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sale {
    /// Its id.
    pub id: SaleId,
    /// The leaf's stock, from which the whole chain grows.
    pub stock: OutPoint,
    /// Its number on that stock, counted from 1.
    pub number: u8,
    /// The buyer's channel.
    pub bought: SoldChannel,
    /// Small channels for those who sign with the buyer, if the operator gives any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bonus: Vec<SoldChannel>,
}

impl Sale {
    /// Every channel it makes, in the order of the outputs: the buyer's first.
    pub fn channels(&self) -> impl Iterator<Item = &SoldChannel> {
        core::iter::once(&self.bought).chain(&self.bonus)
    }

    /// What goes to those who sign with the buyer.
    #[must_use]
    pub fn bonuses(&self) -> Amount {
        let capacities = self.bonus.iter().map(|channel| channel.capacity);
        checked_sum(capacities).unwrap_or(Amount::MAX_MONEY)
    }

    /// The channel of the client at `position`.
    #[must_use]
    pub fn channel_of(&self, position: u32) -> Option<&SoldChannel> {
        self.channels().find(|channel| channel.position == position)
    }
}
