//! `[sales]` in the configuration.

use bitcoin::Amount;
use factory_tree::sale::LEAST_CHANNEL;
use serde::{Deserialize, Serialize};

use super::price::{Price, is_bonus};
use crate::config::{ConfigError, positive, wrong};

/// A payment is sent back some blocks before it must be ([`super::MARGIN`]); less than this would leave no time to sign.
const LEAST_HOLD: u32 = 24;
/// Orders nobody pays are forgotten after a day: no quote may outlive that.
const LEAST_QUOTE: u64 = 60;
const MOST_QUOTE: u64 = 86_400;
/// BOLT 4's longest way is 2016 blocks: what is held longer leaves payers no room for a route and their own exit.
const MOST_HOLD: u32 = 1_008;

/// See `[sales]` in the default file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SalesConfig {
    /// Whether anything is sold.
    pub enabled: bool,
    /// Price, whatever the capacity.
    pub base_fee_sat: u64,
    /// Price in parts per million of the capacity.
    pub fee_ppm: u32,
    /// The same for each day that is left.
    pub fee_ppm_per_day: u32,
    /// Price in parts per million of what the sale would cost on the chain.
    pub onchain_ppm: u32,
    /// Least price.
    pub min_fee_sat: u64,
    /// Highest price; none if 0.
    pub max_fee_sat: u64,
    /// Least channel.
    pub min_sat: u64,
    /// Largest channel.
    pub max_sat: u64,
    /// Seconds a quote holds.
    pub quote_seconds: u64,
    /// Seconds for each step of signing.
    pub step_seconds: u32,
    /// Open orders of one client.
    pub max_open_orders: u64,
    /// Blocks a payment may be held.
    pub hold_blocks: u32,
    /// Seconds to wait for clients who are away.
    pub wake_seconds: u64,
    /// What a client gets for signing with others who buy.
    pub bonus_sat: u64,
}

impl SalesConfig {
    /// What a channel costs where the operator has not said otherwise.
    #[must_use]
    pub const fn price(&self) -> Price {
        Price {
            base_fee_sat: self.base_fee_sat,
            fee_ppm: self.fee_ppm,
            fee_ppm_per_day: self.fee_ppm_per_day,
            onchain_ppm: self.onchain_ppm,
            min_fee_sat: self.min_fee_sat,
            max_fee_sat: self.max_fee_sat,
            bonus_sat: self.bonus_sat,
        }
    }

    /// Whether it makes sense.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        positive("sales.min_fee_sat", self.min_fee_sat)?;
        positive("sales.min_sat", self.min_sat)?;
        positive("sales.step_seconds", self.step_seconds.into())?;
        positive("sales.wake_seconds", self.wake_seconds)?;
        if !(LEAST_HOLD..=MOST_HOLD).contains(&self.hold_blocks) {
            return Err(wrong(
                "sales.hold_blocks",
                self.hold_blocks,
                format!(
                    "signing needs time, and payers room for their routes: {LEAST_HOLD} to {MOST_HOLD}"
                ),
            ));
        }
        // An invoice holds as long as its quote, and a payment takes a while.
        if !(LEAST_QUOTE..=MOST_QUOTE).contains(&self.quote_seconds) {
            return Err(wrong(
                "sales.quote_seconds",
                self.quote_seconds,
                format!("must be from {LEAST_QUOTE} to {MOST_QUOTE}"),
            ));
        }
        for (key, value) in [
            ("sales.base_fee_sat", self.base_fee_sat),
            ("sales.min_fee_sat", self.min_fee_sat),
            ("sales.max_fee_sat", self.max_fee_sat),
            ("sales.max_sat", self.max_sat),
            ("sales.bonus_sat", self.bonus_sat),
        ] {
            if value > Amount::MAX_MONEY.to_sat() {
                return Err(wrong(key, value, "there are only 21 million bitcoin"));
            }
        }
        if !self.price().is_consistent() {
            let problem = "must be 0 (none), or at least sales.min_fee_sat";
            return Err(wrong("sales.max_fee_sat", self.max_fee_sat, problem));
        }
        if !is_bonus(self.bonus_sat) {
            let least = LEAST_CHANNEL.to_sat();
            let problem = format!("must be 0, or a channel of at least {least} sat");
            return Err(wrong("sales.bonus_sat", self.bonus_sat, problem));
        }
        if self.max_sat < self.min_sat {
            return Err(wrong(
                "sales.max_sat",
                self.max_sat,
                "must be at least sales.min_sat",
            ));
        }
        Ok(())
    }
}
