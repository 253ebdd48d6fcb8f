//! `opening_fee_params`: what we offered, and that it was we who did.

use bitcoin::hashes::cmp::fixed_time_eq;
use bitcoin::hashes::{Hash, HashEngine, Hmac, HmacEngine, sha256};
use chrono::DateTime;
use factory_tree::ids::ClientId;
use serde::{Deserialize, Serialize};

use crate::lsps::{Text, datetime};

/// What a channel costs, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offer {
    pub min_fee_msat: u64,
    pub proportional: u32,
    /// Unix time.
    pub valid_until: u64,
    pub min_lifetime: u32,
    pub max_client_to_self_delay: u32,
    pub min_payment_size_msat: u64,
    pub max_payment_size_msat: u64,
}

/// The same as it travels, with our promise. The order of the fields is the specification's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Promised {
    min_fee_msat: Text,
    proportional: u32,
    valid_until: String,
    min_lifetime: u32,
    max_client_to_self_delay: u32,
    min_payment_size_msat: Text,
    max_payment_size_msat: Text,
    promise: String,
}

impl Offer {
    /// For this client alone: an HMAC over all values and its id, so that nothing has to be stored for who only asks. The time goes in as a number,
    /// as clients write it in forms of their own.
    fn promise(&self, key: &[u8; 32], client: ClientId) -> [u8; 32] {
        let mut engine = HmacEngine::<sha256::Hash>::new(key);
        engine.input(&client.0);
        for number in [
            self.min_fee_msat,
            self.proportional.into(),
            self.valid_until,
            self.min_lifetime.into(),
            self.max_client_to_self_delay.into(),
            self.min_payment_size_msat,
            self.max_payment_size_msat,
        ] {
            engine.input(&number.to_be_bytes());
        }
        Hmac::from_engine(engine).to_byte_array()
    }

    pub(super) fn promised(&self, key: &[u8; 32], client: ClientId) -> Promised {
        Promised {
            min_fee_msat: Text(self.min_fee_msat),
            proportional: self.proportional,
            valid_until: datetime(self.valid_until),
            min_lifetime: self.min_lifetime,
            max_client_to_self_delay: self.max_client_to_self_delay,
            min_payment_size_msat: Text(self.min_payment_size_msat),
            max_payment_size_msat: Text(self.max_payment_size_msat),
            promise: hex::encode(self.promise(key, client)),
        }
    }
}

impl Promised {
    /// The offer, if we made it to this client and it holds.
    pub(super) fn verified(&self, key: &[u8; 32], client: ClientId, now: u64) -> Option<Offer> {
        let at = DateTime::parse_from_rfc3339(&self.valid_until).ok()?;
        let offer = Offer {
            min_fee_msat: self.min_fee_msat.0,
            proportional: self.proportional,
            valid_until: u64::try_from(at.timestamp()).ok()?,
            min_lifetime: self.min_lifetime,
            max_client_to_self_delay: self.max_client_to_self_delay,
            min_payment_size_msat: self.min_payment_size_msat.0,
            max_payment_size_msat: self.max_payment_size_msat.0,
        };
        let claimed = hex::decode(&self.promise).ok()?;
        let ours = offer.promise(key, client);
        let is_ours = claimed.len() == ours.len() && fixed_time_eq(&claimed, &ours);
        (is_ours && now <= offer.valid_until).then_some(offer)
    }
}
