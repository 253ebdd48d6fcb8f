//! What a channel from a stock costs.

use bitcoin::Amount;
use factory_tree::sale::LEAST_CHANNEL;
use serde::{Deserialize, Serialize};

/// A day in blocks.
const DAY: u128 = 144;
const MILLION: u128 = 1_000_000;

/// A price list: fixed, by capacity, and by the time that is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// Whatever the capacity.
    pub base_fee_sat: u64,
    /// In parts per million of the capacity.
    pub fee_ppm: u32,
    /// The same for each day until the dying days.
    pub fee_ppm_per_day: u32,
    /// At least.
    pub min_fee_sat: u64,
    /// What a client gets for signing with others who buy: a channel that holds so much; none if 0.
    pub bonus_sat: u64,
}

impl Price {
    /// What a channel of `capacity` costs that is of use for so many blocks, in msat. Parts are rounded up, and no channel is for nothing:
    /// an invoice over nothing would leave the amount to the payer.
    #[must_use]
    pub fn fee_msat(&self, capacity: Amount, blocks_left: u32) -> u64 {
        let capacity_msat = u128::from(capacity.to_sat()).saturating_mul(1000);
        let by_capacity = capacity_msat.saturating_mul(self.fee_ppm.into());
        let by_time = capacity_msat
            .saturating_mul(self.fee_ppm_per_day.into())
            .saturating_mul(blocks_left.into());
        let fee = u128::from(self.base_fee_sat)
            .saturating_mul(1000)
            .saturating_add(by_capacity.div_ceil(MILLION))
            .saturating_add(by_time.div_ceil(MILLION.saturating_mul(DAY)));
        let least = u128::from(self.min_fee_sat.max(1)).saturating_mul(1000);
        u64::try_from(fee.max(least)).unwrap_or(u64::MAX)
    }
}

/// What the operator says in place of a price list; what is missing stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceOverride {
    /// [`Price::base_fee_sat`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_fee_sat: Option<u64>,
    /// [`Price::fee_ppm`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fee_ppm: Option<u32>,
    /// [`Price::fee_ppm_per_day`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fee_ppm_per_day: Option<u32>,
    /// [`Price::min_fee_sat`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_fee_sat: Option<u64>,
    /// [`Price::bonus_sat`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bonus_sat: Option<u64>,
}

impl PriceOverride {
    /// `price` with what this says.
    #[must_use]
    pub fn over(&self, price: Price) -> Price {
        Price {
            base_fee_sat: self.base_fee_sat.unwrap_or(price.base_fee_sat),
            fee_ppm: self.fee_ppm.unwrap_or(price.fee_ppm),
            fee_ppm_per_day: self.fee_ppm_per_day.unwrap_or(price.fee_ppm_per_day),
            min_fee_sat: self.min_fee_sat.unwrap_or(price.min_fee_sat),
            bonus_sat: self.bonus_sat.unwrap_or(price.bonus_sat),
        }
    }

    /// This, with what `newer` says.
    #[must_use]
    pub fn then(&self, newer: Self) -> Self {
        Self {
            base_fee_sat: newer.base_fee_sat.or(self.base_fee_sat),
            fee_ppm: newer.fee_ppm.or(self.fee_ppm),
            fee_ppm_per_day: newer.fee_ppm_per_day.or(self.fee_ppm_per_day),
            min_fee_sat: newer.min_fee_sat.or(self.min_fee_sat),
            bonus_sat: newer.bonus_sat.or(self.bonus_sat),
        }
    }

    /// Whether it says anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What is wrong with it, if anything.
    #[must_use]
    pub fn problem(&self) -> Option<&'static str> {
        let most = Amount::MAX_MONEY.to_sat();
        let amounts = [self.base_fee_sat, self.min_fee_sat, self.bonus_sat];
        if amounts.iter().flatten().any(|sat| *sat > most) {
            return Some("there are only 21 million bitcoin");
        }
        if self.min_fee_sat == Some(0) {
            return Some("the least fee is at least 1 satoshi");
        }
        let is_channel = self.bonus_sat.is_none_or(is_bonus);
        (!is_channel).then_some("a bonus is a channel of at least 10000 satoshi, or 0: none")
    }
}

/// Whether a bonus of so much can be: none, or a channel.
pub(super) fn is_bonus(sat: u64) -> bool {
    sat == 0 || sat >= LEAST_CHANNEL.to_sat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRICE: Price = Price {
        base_fee_sat: 500,
        fee_ppm: 4_000,
        fee_ppm_per_day: 200,
        min_fee_sat: 1_000,
        bonus_sat: 0,
    };

    fn fee(price: Price, sat: u64, blocks: u32) -> u64 {
        price.fee_msat(Amount::from_sat(sat), blocks)
    }

    #[test]
    fn fixed_by_capacity_and_by_the_time_that_is_left() {
        assert_eq!(fee(PRICE, 1_000_000, 0), 500_000 + 4_000_000);
        assert_eq!(fee(PRICE, 1_000_000, 144 * 10), 4_500_000 + 2_000_000);
        // Half a day is half as much.
        assert_eq!(fee(PRICE, 1_000_000, 72), 4_500_000 + 100_000);
    }

    #[test]
    fn parts_are_rounded_up_and_nothing_is_free() {
        let thin = Price {
            base_fee_sat: 0,
            fee_ppm: 1,
            fee_ppm_per_day: 1,
            min_fee_sat: 1,
            ..PRICE
        };
        assert_eq!(fee(thin, 1_000_001, 0), 1_001);
        assert_eq!(fee(thin, 1_000_000, 1), 1_000 + 7);
        assert_eq!(fee(thin, 1, 0), 1_000);
        let nothing = Price {
            min_fee_sat: 0,
            fee_ppm: 0,
            fee_ppm_per_day: 0,
            ..thin
        };
        assert_eq!(fee(nothing, 1_000_000, 1_000), 1_000);
        assert_eq!(fee(PRICE, 20_000, 0), 1_000_000, "the least");
    }

    #[test]
    fn the_largest_numbers_do_not_wrap() {
        let dear = Price {
            base_fee_sat: u64::MAX,
            fee_ppm: u32::MAX,
            fee_ppm_per_day: u32::MAX,
            min_fee_sat: u64::MAX,
            ..PRICE
        };
        assert_eq!(fee(dear, u64::MAX, u32::MAX), u64::MAX);
    }

    #[test]
    fn what_an_override_does_not_say_stays() {
        let all = PriceOverride {
            fee_ppm: Some(1),
            ..PriceOverride::default()
        };
        let one = PriceOverride {
            base_fee_sat: Some(2),
            ..PriceOverride::default()
        };
        let both = Price {
            fee_ppm: 1,
            base_fee_sat: 2,
            ..PRICE
        };
        assert_eq!(one.over(all.over(PRICE)), both);
        assert_eq!(all.then(one).over(PRICE), both);
        let nothing = PriceOverride {
            min_fee_sat: Some(0),
            ..one
        };
        assert!(nothing.problem().is_some() && one.problem().is_none());
        let bonus = |sat| PriceOverride {
            bonus_sat: Some(sat),
            ..one
        };
        assert!(bonus(9_999).problem().is_some());
        for sat in [0, 10_000] {
            assert!(bonus(sat).problem().is_none());
            assert_eq!(bonus(sat).then(all).over(PRICE).bonus_sat, sat);
        }
        assert!(PriceOverride::default().is_empty() && !one.is_empty());
    }
}
