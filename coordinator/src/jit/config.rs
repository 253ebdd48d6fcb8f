//! `[jit]` in the configuration.

use bitcoin::{Amount, Network};
use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, positive, wrong};
use crate::sales::{JitPrice, is_jit_ppm};

/// What a just-in-time channel must hold beyond its first payment, in satoshi.
const LEAST_MARGIN: u64 = 20_000;
/// bLIP-52 wants offers to hold for ten minutes at least, and parts to be held for 90 seconds from the first: real payers count on that.
const LEAST_VALID: u64 = 600;
const LEAST_HOLD: u64 = 90;

/// See `[jit]` in the default file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JitConfig {
    /// Whether they are sold.
    pub enabled: bool,
    /// Least fee, thousandths of a satoshi.
    pub min_fee_msat: u64,
    /// Fee in parts per million of the payment.
    pub fee_ppm: u32,
    /// Seconds an offer holds.
    pub valid_seconds: u64,
    /// Least payment.
    pub min_payment_sat: u64,
    /// Largest payment.
    pub max_payment_sat: u64,
    /// What a channel holds beyond the payment.
    pub margin_sat: u64,
    /// Blocks a channel is kept.
    pub min_lifetime: u32,
    /// Longest wait for our money that a client may ask for, blocks.
    pub max_to_self_delay: u16,
    /// Whether the funding waits for the payment.
    pub client_trusts_lsp: bool,
    /// Channels opened per hour.
    pub opens_per_hour: u64,
    /// On-chain fees per day, satoshi.
    pub onchain_budget_sat: u64,
    /// Open orders of one client.
    pub orders_per_client: u64,
    /// Open orders of all.
    pub max_orders: u64,
    /// Payments that wait for channels.
    pub max_held: usize,
    /// Seconds each waits.
    pub hold_seconds: u64,
    /// Seconds a sale from a stock is tried for, and never more than half of `hold_seconds`; 0: never.
    pub stock_seconds: u64,
}

impl JitConfig {
    /// What a channel costs where the operator has not said otherwise.
    #[must_use]
    pub const fn price(&self) -> JitPrice {
        JitPrice {
            min_fee_msat: self.min_fee_msat,
            fee_ppm: self.fee_ppm,
        }
    }

    /// Seconds a sale from a stock is tried for: half of the time a payment waits is left for an ordinary channel.
    #[must_use]
    pub fn stock_patience(&self) -> u64 {
        self.stock_seconds.min(self.hold_seconds / 2)
    }

    /// Whether it makes sense.
    pub(crate) fn check(&self, network: Network) -> Result<(), ConfigError> {
        for (key, seconds, least) in [
            ("jit.valid_seconds", self.valid_seconds, LEAST_VALID),
            ("jit.hold_seconds", self.hold_seconds, LEAST_HOLD),
        ] {
            positive(key, seconds)?;
            // Tests on regtest do not wait for so long.
            if network != Network::Regtest && seconds < least {
                let problem = format!("bLIP-52 wants {least} at least");
                return Err(wrong(key, seconds, problem));
            }
        }
        positive("jit.min_payment_sat", self.min_payment_sat)?;
        if self.max_payment_sat > Amount::MAX_MONEY.to_sat() {
            return Err(wrong(
                "jit.max_payment_sat",
                self.max_payment_sat,
                "there are only 21 million bitcoin",
            ));
        }
        if self.max_payment_sat < self.min_payment_sat {
            return Err(wrong(
                "jit.max_payment_sat",
                self.max_payment_sat,
                "must be at least jit.min_payment_sat",
            ));
        }
        if self.margin_sat < LEAST_MARGIN {
            return Err(wrong(
                "jit.margin_sat",
                self.margin_sat,
                format!("a channel has reserves and fees to pay: {LEAST_MARGIN} at least"),
            ));
        }
        if !is_jit_ppm(self.fee_ppm) {
            return Err(wrong(
                "jit.fee_ppm",
                self.fee_ppm,
                "a fee of the whole payment leaves nothing",
            ));
        }
        Ok(())
    }
}
