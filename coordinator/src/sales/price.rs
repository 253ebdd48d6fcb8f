//! What channels cost: from a stock, and just in time.

use bitcoin::Amount;
use factory_tree::sale::LEAST_CHANNEL;
use serde::{Deserialize, Serialize};

/// A day in blocks.
const DAY: u128 = 144;
const MILLION: u128 = 1_000_000;

/// A price list: fixed, by capacity, by the time that is left, and by what the chain would take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// Whatever the capacity.
    pub base_fee_sat: u64,
    /// In parts per million of the capacity.
    pub fee_ppm: u32,
    /// The same for each day until the dying days.
    pub fee_ppm_per_day: u32,
    /// In parts per million of what the sale would cost on the chain now.
    pub onchain_ppm: u32,
    /// At least.
    pub min_fee_sat: u64,
    /// At most, if not 0; the least wins.
    pub max_fee_sat: u64,
    /// What a client gets for signing with others who buy: a channel that holds so much; none if 0.
    pub bonus_sat: u64,
}

impl Price {
    /// What a channel of `capacity` costs that is of use for so many blocks, and would take `onchain` in fees, in msat. Parts are rounded up, and
    /// no channel is for nothing: an invoice over nothing would leave the amount to the payer.
    #[must_use]
    pub fn fee_msat(&self, capacity: Amount, blocks_left: u32, onchain: Amount) -> u64 {
        let capacity_msat = u128::from(capacity.to_sat()).saturating_mul(1000);
        let by_capacity = capacity_msat.saturating_mul(self.fee_ppm.into());
        let by_time = capacity_msat
            .saturating_mul(self.fee_ppm_per_day.into())
            .saturating_mul(blocks_left.into());
        let by_chain = u128::from(onchain.to_sat())
            .saturating_mul(1000)
            .saturating_mul(self.onchain_ppm.into());
        let fee = u128::from(self.base_fee_sat)
            .saturating_mul(1000)
            .saturating_add(by_capacity.div_ceil(MILLION))
            .saturating_add(by_time.div_ceil(MILLION.saturating_mul(DAY)))
            .saturating_add(by_chain.div_ceil(MILLION));
        let least = u128::from(self.min_fee_sat.max(1)).saturating_mul(1000);
        let most = match self.max_fee_sat {
            0 => u128::MAX,
            sat => u128::from(sat).saturating_mul(1000),
        };
        u64::try_from(fee.min(most).max(least)).unwrap_or(u64::MAX)
    }

    /// Whether the most it asks is at least the least.
    #[must_use]
    pub const fn is_consistent(&self) -> bool {
        self.max_fee_sat == 0 || self.max_fee_sat >= self.min_fee_sat
    }
}

/// What a channel just in time costs: so much of the payment, and at least this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JitPrice {
    /// At least, thousandths of a satoshi.
    pub min_fee_msat: u64,
    /// In parts per million of the payment.
    pub fee_ppm: u32,
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
    /// [`Price::onchain_ppm`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub onchain_ppm: Option<u32>,
    /// [`Price::min_fee_sat`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_fee_sat: Option<u64>,
    /// [`Price::max_fee_sat`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_fee_sat: Option<u64>,
    /// [`Price::bonus_sat`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bonus_sat: Option<u64>,
    /// [`JitPrice::min_fee_msat`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jit_min_fee_msat: Option<u64>,
    /// [`JitPrice::fee_ppm`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jit_fee_ppm: Option<u32>,
}

impl PriceOverride {
    /// `price` with what this says.
    #[must_use]
    pub fn over(&self, price: Price) -> Price {
        Price {
            base_fee_sat: self.base_fee_sat.unwrap_or(price.base_fee_sat),
            fee_ppm: self.fee_ppm.unwrap_or(price.fee_ppm),
            fee_ppm_per_day: self.fee_ppm_per_day.unwrap_or(price.fee_ppm_per_day),
            onchain_ppm: self.onchain_ppm.unwrap_or(price.onchain_ppm),
            min_fee_sat: self.min_fee_sat.unwrap_or(price.min_fee_sat),
            max_fee_sat: self.max_fee_sat.unwrap_or(price.max_fee_sat),
            bonus_sat: self.bonus_sat.unwrap_or(price.bonus_sat),
        }
    }

    /// The same for channels just in time.
    #[must_use]
    pub fn over_jit(&self, price: JitPrice) -> JitPrice {
        JitPrice {
            min_fee_msat: self.jit_min_fee_msat.unwrap_or(price.min_fee_msat),
            fee_ppm: self.jit_fee_ppm.unwrap_or(price.fee_ppm),
        }
    }

    /// This, with what `newer` says.
    #[must_use]
    pub fn then(&self, newer: Self) -> Self {
        Self {
            base_fee_sat: newer.base_fee_sat.or(self.base_fee_sat),
            fee_ppm: newer.fee_ppm.or(self.fee_ppm),
            fee_ppm_per_day: newer.fee_ppm_per_day.or(self.fee_ppm_per_day),
            onchain_ppm: newer.onchain_ppm.or(self.onchain_ppm),
            min_fee_sat: newer.min_fee_sat.or(self.min_fee_sat),
            max_fee_sat: newer.max_fee_sat.or(self.max_fee_sat),
            bonus_sat: newer.bonus_sat.or(self.bonus_sat),
            jit_min_fee_msat: newer.jit_min_fee_msat.or(self.jit_min_fee_msat),
            jit_fee_ppm: newer.jit_fee_ppm.or(self.jit_fee_ppm),
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
        let amounts = [
            self.base_fee_sat,
            self.min_fee_sat,
            self.max_fee_sat,
            self.bonus_sat,
            self.jit_min_fee_msat.map(|msat| msat.div_ceil(1000)),
        ];
        if amounts.iter().flatten().any(|sat| *sat > most) {
            return Some("there are only 21 million bitcoin");
        }
        if self.min_fee_sat == Some(0) {
            return Some("the least fee is at least 1 satoshi");
        }
        if self.jit_fee_ppm.is_some_and(|ppm| !is_jit_ppm(ppm)) {
            return Some("a fee of the whole payment leaves nothing: less than 1000000 ppm");
        }
        let is_channel = self.bonus_sat.is_none_or(is_bonus);
        (!is_channel).then_some("a bonus is a channel of at least 10000 satoshi, or 0: none")
    }
}

/// Whether a fee of so much of a payment leaves anything.
pub(crate) const fn is_jit_ppm(ppm: u32) -> bool {
    ppm < 1_000_000
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
        onchain_ppm: 0,
        min_fee_sat: 1_000,
        max_fee_sat: 0,
        bonus_sat: 0,
    };
    /// What the chain would take.
    const ONCHAIN: Amount = Amount::from_sat(3_001);

    fn fee(price: Price, sat: u64, blocks: u32) -> u64 {
        price.fee_msat(Amount::from_sat(sat), blocks, ONCHAIN)
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
            onchain_ppm: u32::MAX,
            min_fee_sat: u64::MAX,
            ..PRICE
        };
        assert_eq!(fee(dear, u64::MAX, u32::MAX), u64::MAX);
        let all = dear.fee_msat(Amount::MAX, u32::MAX, Amount::MAX);
        assert_eq!(all, u64::MAX);
    }

    #[test]
    fn a_share_of_what_the_chain_would_take() {
        let without = fee(PRICE, 1_000_000, 0);
        for (ppm, msat) in [(0, 0), (1, 4), (10_000, 30_010), (2_000_000, 6_002_000)] {
            let price = Price {
                onchain_ppm: ppm,
                ..PRICE
            };
            assert_eq!(fee(price, 1_000_000, 0), without + msat, "{ppm}");
        }
    }

    #[test]
    fn no_more_than_the_most_and_no_less_than_the_least() {
        let most = |sat| Price {
            max_fee_sat: sat,
            ..PRICE
        };
        assert_eq!(fee(most(0), 1_000_000, 0), 4_500_000, "none");
        assert_eq!(fee(most(4_501), 1_000_000, 0), 4_500_000);
        assert_eq!(fee(most(4_499), 1_000_000, 0), 4_499_000);
        assert_eq!(fee(most(999), 1_000_000, 0), 1_000_000, "the least wins");
        let consistent = [0, 999, 1_000].map(|sat| most(sat).is_consistent());
        assert_eq!(consistent, [true, false, true]);
    }

    #[test]
    fn channels_just_in_time_have_a_price_of_their_own() {
        let configured = JitPrice {
            min_fee_msat: 3_000_000,
            fee_ppm: 5_000,
        };
        let jit = |min_fee_msat, ppm| PriceOverride {
            jit_min_fee_msat: min_fee_msat,
            jit_fee_ppm: ppm,
            ..PriceOverride::default()
        };
        let (all, one) = (jit(Some(1), Some(2)), jit(Some(3), None));
        let both = JitPrice {
            min_fee_msat: 3,
            fee_ppm: 2,
        };
        assert_eq!(all.then(one).over_jit(configured), both);
        assert_eq!(PriceOverride::default().over_jit(configured), configured);
        assert_eq!(all.over(PRICE), PRICE, "a stock's is another");
        assert!(!one.is_empty());
        let whole = Amount::MAX_MONEY.to_sat() * 1_000;
        for (said, good) in [
            (jit(Some(0), Some(0)), true),
            (jit(Some(whole), Some(999_999)), true),
            (jit(Some(whole + 1), None), false),
            (jit(None, Some(1_000_000)), false),
        ] {
            assert_eq!(said.problem().is_none(), good, "{said:?}");
        }
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
        let bounds = PriceOverride {
            onchain_ppm: Some(3),
            max_fee_sat: Some(4),
            ..PriceOverride::default()
        };
        let bound = Price {
            onchain_ppm: 3,
            max_fee_sat: 4,
            ..both
        };
        assert_eq!(bounds.then(all).then(one).over(PRICE), bound);
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
