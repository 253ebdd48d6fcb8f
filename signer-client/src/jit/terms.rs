//! What the coordinator offers, and whether it can be taken.

use channel_host::{Msat, opening_fee};
use chrono::DateTime;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::JitError;

/// An amount, which bLIP-52 wants written as a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Text(pub(crate) u64);

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| digits);
        number
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("amounts are strings of digits"))
    }
}

/// `opening_fee_params`. What there is beyond these fields would be terms we do not know: such an offer is not taken (bLIP-52).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FeeParams {
    min_fee_msat: Text,
    proportional: u32,
    valid_until: String,
    min_lifetime: u32,
    max_client_to_self_delay: u32,
    min_payment_size_msat: Text,
    max_payment_size_msat: Text,
    promise: String,
}

/// What a channel for one payment would cost. Nothing is ordered yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JitQuote {
    /// What is to be paid.
    pub payment_msat: u64,
    /// What is kept of it for opening the channel.
    pub fee_msat: u64,
    /// What arrives.
    pub receive_msat: u64,
    /// Until when it can be taken, and paid, in Unix time.
    pub valid_until: u64,
    /// As the coordinator said it.
    pub(super) params: FeeParams,
}

/// What an offer is judged by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ground {
    /// Unix time.
    pub(super) now: u64,
    /// Blocks this wallet has the coordinator wait.
    pub(super) to_self_delay: u16,
}

impl JitQuote {
    /// From one offer.
    pub(super) fn new(params: &FeeParams, payment: Msat, ground: Ground) -> Result<Self, JitError> {
        let until = DateTime::parse_from_rfc3339(&params.valid_until).ok();
        let until = until.and_then(|until| u64::try_from(until.timestamp()).ok());
        let until = until.ok_or_else(|| JitError::Answer("valid_until is no time".to_owned()))?;
        if until <= ground.now {
            return Err(JitError::Expired);
        }
        let (least, most) = (
            params.min_payment_size_msat.0,
            params.max_payment_size_msat.0,
        );
        if !(least..=most).contains(&payment.0) {
            let payment = payment.0;
            return Err(JitError::Size {
                payment,
                least,
                most,
            });
        }
        if params.max_client_to_self_delay < u32::from(ground.to_self_delay) {
            return Err(JitError::SelfDelay {
                asked: ground.to_self_delay,
                most: params.max_client_to_self_delay,
            });
        }
        let fee = opening_fee(payment.0, params.min_fee_msat.0, params.proportional);
        let fee = fee.filter(|fee| *fee < payment.0);
        let fee = fee.ok_or_else(|| JitError::Answer("the fee eats the payment up".to_owned()))?;
        Ok(Self {
            payment_msat: payment.0,
            fee_msat: fee,
            receive_msat: payment.0.saturating_sub(fee),
            valid_until: until,
            params: params.clone(),
        })
    }

    /// The cheapest of a menu.
    pub(super) fn best(
        menu: &[FeeParams],
        payment: Msat,
        ground: Ground,
    ) -> Result<Self, JitError> {
        let mut refusal = JitError::Closed;
        let mut best: Option<Self> = None;
        for params in menu {
            match Self::new(params, payment, ground) {
                Ok(quote) if best.as_ref().is_none_or(|b| quote.fee_msat < b.fee_msat) => {
                    best = Some(quote);
                }
                Ok(_) => {}
                Err(why) => refusal = why,
            }
        }
        best.ok_or(refusal)
    }

    /// Whether it costs no more than this.
    pub(super) fn within(&self, max: Msat) -> Result<(), JitError> {
        if self.fee_msat > max.0 {
            return Err(JitError::too_dear(Msat(self.fee_msat), max));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const GROUND: Ground = Ground {
        now: 1_700_000_000,
        to_self_delay: 1008,
    };
    const PAYMENT: Msat = Msat(500_000_000);

    fn offer() -> Value {
        json!({
            "min_fee_msat": "2000000", "proportional": 10_000, "valid_until": "2033-05-18T03:33:20.000Z", "min_lifetime": 4320,
            "max_client_to_self_delay": 2016, "min_payment_size_msat": "10000000", "max_payment_size_msat": "900000000",
            "promise": "ab",
        })
    }

    fn with(field: &str, value: Value) -> FeeParams {
        let mut offer = offer();
        offer[field] = value;
        serde_json::from_value(offer).unwrap()
    }

    fn judged(params: &FeeParams) -> Result<JitQuote, JitError> {
        JitQuote::new(params, PAYMENT, GROUND)
    }

    #[test]
    fn an_offer_is_judged_by_what_it_says() {
        let params: FeeParams = serde_json::from_value(offer()).unwrap();
        let quote = judged(&params).unwrap();
        assert_eq!(
            (quote.fee_msat, quote.receive_msat),
            (5_000_000, 495_000_000)
        );
        assert_eq!(quote.valid_until, 2_000_000_000);
        // It goes back as it came.
        assert_eq!(json!(params), offer());
        let size = |least, most| {
            Err(JitError::Size {
                payment: PAYMENT.0,
                least,
                most,
            })
        };
        let small = with("max_payment_size_msat", json!("499999999"));
        assert_eq!(judged(&small), size(10_000_000, 499_999_999));
        let large = with("min_payment_size_msat", json!("500000001"));
        assert_eq!(judged(&large), size(500_000_001, 900_000_000));
        let past = with("valid_until", json!("2020-01-01T00:00:00Z"));
        assert_eq!(judged(&past), Err(JitError::Expired));
        let short = JitError::SelfDelay {
            asked: 1008,
            most: 1007,
        };
        let impatient = with("max_client_to_self_delay", json!(1007));
        assert_eq!(judged(&impatient), Err(short));
        for unusable in [
            with("min_fee_msat", json!("500000000")),
            with("proportional", json!(u32::MAX)),
            with("valid_until", json!("tomorrow")),
        ] {
            assert!(matches!(judged(&unusable), Err(JitError::Answer(_))));
        }
    }

    #[test]
    fn terms_that_are_not_known_are_not_taken() {
        let mut foreign = offer();
        foreign["monthly_fee_msat"] = json!("1");
        assert!(serde_json::from_value::<FeeParams>(foreign).is_err());
        for amount in [json!(5), json!("-5"), json!("+5"), json!("")] {
            let mut offer = offer();
            offer["min_fee_msat"] = amount;
            assert!(serde_json::from_value::<FeeParams>(offer).is_err());
        }
    }

    #[test]
    fn the_cheapest_is_taken_and_no_dearer_than_agreed() {
        let menu = [
            with("proportional", json!(20_000)),
            with("proportional", json!(5_000)),
            with("valid_until", json!("2020-01-01T00:00:00Z")),
        ];
        let best = JitQuote::best(&menu, PAYMENT, GROUND).unwrap();
        assert_eq!(best.fee_msat, 2_500_000);
        assert_eq!(best.within(Msat(2_500_000)), Ok(()));
        let dear = JitError::too_dear(Msat(2_500_000), Msat(2_499_999));
        assert_eq!(best.within(Msat(2_499_999)), Err(dear));
        assert_eq!(JitQuote::best(&[], PAYMENT, GROUND), Err(JitError::Closed));
        assert_eq!(
            JitQuote::best(&menu[2..], PAYMENT, GROUND),
            Err(JitError::Expired)
        );
    }
}
