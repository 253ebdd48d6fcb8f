//! `[lsps1]` in the configuration.

use bitcoin::Amount;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::{ConfigError, positive, wrong};
use crate::limits::Limits;
use crate::lsps::Text;
use crate::sales::Price;

/// BOLT 2: larger ones ask the client for a feature it may not have.
const MOST_CHANNEL: u64 = 16_777_215;
/// A channel has reserves, and fees to pay.
const LEAST_CHANNEL: u64 = 20_000;
/// As for sales from stocks: less leaves no time to open a channel, more leaves payers no room for their routes.
const HOLD: std::ops::RangeInclusive<u32> = 24..=1_008;

/// See `[lsps1]` in the default file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lsps1Config {
    /// Whether they are sold.
    pub enabled: bool,
    /// Price, whatever the capacity.
    pub base_fee_sat: u64,
    /// Price in parts per million of the capacity.
    pub fee_ppm: u32,
    /// The same for each day it is kept open.
    pub fee_ppm_per_day: u32,
    /// Least price.
    pub min_fee_sat: u64,
    /// Least channel.
    pub min_sat: u64,
    /// Largest channel.
    pub max_sat: u64,
    /// Longest time a channel is kept open, blocks.
    pub max_expiry_blocks: u32,
    /// Confirmations of its funding that a client has to wait for at least.
    pub min_confirmations: u16,
    /// Blocks a client has to allow the funding at least.
    pub min_confirms_within: u16,
    /// Seconds an order holds until it is paid.
    pub valid_seconds: u64,
    /// Seconds a client has to come and accept its channel.
    pub wait_seconds: u64,
    /// Blocks a payment may be held.
    pub hold_blocks: u32,
    /// Channels opened per hour.
    pub opens_per_hour: u64,
    /// On-chain fees per day, satoshi.
    pub onchain_budget_sat: u64,
    /// Orders of one client without a channel.
    pub orders_per_client: u64,
    /// Such orders of all.
    pub max_orders: u64,
}

impl Lsps1Config {
    /// What a channel costs, beside its funding, where the operator has not said otherwise.
    #[must_use]
    pub const fn price(&self) -> Price {
        Price {
            base_fee_sat: self.base_fee_sat,
            fee_ppm: self.fee_ppm,
            fee_ppm_per_day: self.fee_ppm_per_day,
            onchain_ppm: 0,
            min_fee_sat: self.min_fee_sat,
            max_fee_sat: 0,
            bonus_sat: 0,
        }
    }

    pub(super) const fn limits(&self) -> Limits {
        Limits {
            opens_per_hour: self.opens_per_hour,
            onchain_budget_sat: self.onchain_budget_sat,
        }
    }

    /// bLIP-51's options. They follow from the configuration alone: what cannot be served for a while is refused when it is ordered.
    pub(super) fn options(&self) -> Value {
        json!({
            "min_required_channel_confirmations": self.min_confirmations,
            "min_funding_confirms_within_blocks": self.min_confirms_within,
            "supports_zero_channel_reserve": false,
            "max_channel_expiry_blocks": self.max_expiry_blocks,
            "min_initial_client_balance_sat": Text(0),
            "max_initial_client_balance_sat": Text(0),
            "min_initial_lsp_balance_sat": Text(self.min_sat),
            "max_initial_lsp_balance_sat": Text(self.max_sat),
            "min_channel_balance_sat": Text(self.min_sat),
            "max_channel_balance_sat": Text(self.max_sat),
        })
    }

    /// Whether it makes sense.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        positive("lsps1.min_fee_sat", self.min_fee_sat)?;
        positive("lsps1.max_expiry_blocks", self.max_expiry_blocks.into())?;
        positive("lsps1.min_confirms_within", self.min_confirms_within.into())?;
        positive("lsps1.valid_seconds", self.valid_seconds)?;
        positive("lsps1.wait_seconds", self.wait_seconds)?;
        if self.min_sat < LEAST_CHANNEL {
            let least = format!("a channel has reserves and fees to pay: {LEAST_CHANNEL} at least");
            return Err(wrong("lsps1.min_sat", self.min_sat, least));
        }
        if self.max_sat > MOST_CHANNEL {
            let most = format!("larger channels are not for everybody: {MOST_CHANNEL} at most");
            return Err(wrong("lsps1.max_sat", self.max_sat, most));
        }
        if self.max_sat < self.min_sat {
            let text = "must be at least lsps1.min_sat";
            return Err(wrong("lsps1.max_sat", self.max_sat, text));
        }
        if !HOLD.contains(&self.hold_blocks) {
            return Err(wrong(
                "lsps1.hold_blocks",
                self.hold_blocks,
                format!("must be from {} to {}", HOLD.start(), HOLD.end()),
            ));
        }
        for (key, value) in [
            ("lsps1.base_fee_sat", self.base_fee_sat),
            ("lsps1.min_fee_sat", self.min_fee_sat),
        ] {
            if value > Amount::MAX_MONEY.to_sat() {
                return Err(wrong(key, value, "there are only 21 million bitcoin"));
            }
        }
        Ok(())
    }
}
