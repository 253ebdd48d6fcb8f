//! The client's side: what was promised to us, from the invoice for it to the end of its channel. A channel that we ordered and pay for (LSPS1) is
//! awaited like one that is opened just in time for a payment to us.

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, OutPoint};
use serde::{Deserialize, Serialize};

use crate::event::{Msat, PaymentHash};
use crate::pay::ClaimRefusal;

/// How long after its time a promise still gets its channel: a payment that came in time may wait for us, or for its last part.
const GRACE: u64 = 3_600;
/// How long after its time one that nobody paid is remembered.
const MEMORY: u64 = 86_400;

/// What a coordinator promised us: whoever pays over this number gets through over a channel that is opened then, less this fee.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JitPromise {
    /// Who.
    pub lsp: PublicKey,
    /// The number that the invoice names.
    pub scid: u64,
    /// Blocks the coordinator asks for.
    pub cltv_delta: u16,
    /// What is paid, in thousandths of a satoshi.
    pub payment_msat: u64,
    /// The most that is kept of it, once.
    pub fee_msat: u64,
    /// Until when, in Unix time.
    pub valid_until: u64,
}

/// What was promised to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Promised {
    /// A channel just in time for a payment to us.
    Jit(JitPromise),
    /// A channel that we pay for (LSPS1): of this size, and nothing is kept of what comes over it.
    Order {
        /// By whom.
        lsp: PublicKey,
        /// What it holds.
        capacity: Amount,
    },
}

impl Promised {
    /// What may be kept of a payment, once.
    const fn fee_msat(&self) -> u64 {
        match self {
            Self::Jit(promise) => promise.fee_msat,
            Self::Order { .. } => 0,
        }
    }

    /// Whether it is a channel that we pay for.
    #[must_use]
    pub const fn is_order(&self) -> bool {
        matches!(self, Self::Order { .. })
    }
}

/// A channel that was opened for an order of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JitChannel {
    /// The number we gave it.
    pub number: u64,
    /// Its BOLT 2 id.
    pub channel: [u8; 32],
    /// Its funding output.
    pub outpoint: OutPoint,
    /// What it holds.
    pub capacity: Amount,
}

/// An order of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JitAwaited {
    /// The hash of its invoice, which we pay if it is a channel that was ordered.
    pub hash: PaymentHash,
    /// What was promised.
    pub promise: Promised,
    /// Its channel, once both sides have signed for it; it may be closed by now.
    pub channel: Option<JitChannel>,
    /// What was kept of its payment, once that is ours.
    pub taken: Option<Msat>,
}

/// The same as it is remembered.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Awaited {
    pub hash: [u8; 32],
    pub promise: Promised,
    /// The number of the channel that was accepted for it last, fresh for each try; 0 before the first.
    pub number: u64,
    /// What that channel is to hold.
    pub capacity_sat: u64,
    pub channel: Option<JitChannel>,
    /// Our channel id of the leaf whose channel may be the one that was promised; 0 if there is none.
    #[serde(default)]
    pub leaf: u128,
    /// From now on it gives no right to a channel, or to a fee.
    pub taken_msat: Option<u64>,
}

impl Awaited {
    pub(crate) const fn new(hash: [u8; 32], promise: Promised) -> Self {
        Self {
            hash,
            promise,
            number: 0,
            capacity_sat: 0,
            channel: None,
            leaf: 0,
            taken_msat: None,
        }
    }

    /// Whether this peer may open a channel of this size for it now, if the one it may have opened before is gone.
    pub(crate) fn lets_open(&self, peer: &PublicKey, capacity: Amount, now: u64) -> bool {
        let lets = match &self.promise {
            Promised::Jit(promise) => {
                let arrives = promise.payment_msat.saturating_sub(promise.fee_msat);
                promise.lsp == *peer
                    && now <= promise.valid_until.saturating_add(GRACE)
                    && capacity.to_sat().saturating_mul(1000) >= arrives
            }
            Promised::Order { lsp, capacity: due } => lsp == peer && *due == capacity,
        };
        lets && self.taken_msat.is_none()
    }

    /// Whether something may be kept of what comes over its channel.
    pub(crate) const fn lets_keep(&self) -> bool {
        self.taken_msat.is_none() && !self.promise.is_order()
    }

    /// Whether nobody paid it, and nobody will. What we pay for ourselves is over when we say so.
    pub(crate) const fn is_stale(&self, now: u64) -> bool {
        match &self.promise {
            Promised::Jit(promise) => {
                self.channel.is_none() && now > promise.valid_until.saturating_add(MEMORY)
            }
            Promised::Order { .. } => false,
        }
    }

    pub(crate) fn view(&self) -> JitAwaited {
        JitAwaited {
            hash: PaymentHash(self.hash),
            promise: self.promise,
            channel: self.channel,
            taken: self.taken_msat.map(Msat),
        }
    }
}

/// Whether so much may have been kept of a payment: what was promised, and once. LDK lets the peer of such a channel keep as much as it likes.
///
/// # Errors
/// [`ClaimRefusal::FeeTooHigh`]: it has to be sent back.
pub(crate) fn may_keep(order: Option<&Awaited>, kept: u64) -> Result<(), ClaimRefusal> {
    let unpaid = order.filter(|order| order.taken_msat.is_none());
    let promised = unpaid.map_or(0, |order| order.promise.fee_msat());
    if kept > promised {
        return Err(ClaimRefusal::FeeTooHigh { kept, promised });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bitcoin::secp256k1::{Secp256k1, SecretKey};

    use super::*;

    fn peer(n: u8) -> PublicKey {
        let secret = SecretKey::from_slice(&[n; 32]).unwrap();
        PublicKey::from_secret_key(&Secp256k1::new(), &secret)
    }

    fn order() -> Awaited {
        let promise = JitPromise {
            lsp: peer(1),
            scid: 7,
            cltv_delta: 48,
            payment_msat: 100_000_000,
            fee_msat: 2_000_000,
            valid_until: 1_000,
        };
        Awaited::new([9; 32], Promised::Jit(promise))
    }

    #[test]
    fn a_channel_is_for_who_promised_it_and_in_time() {
        let (order, size) = (order(), Amount::from_sat(98_000));
        assert!(order.lets_open(&peer(1), size, 1_000));
        assert!(order.lets_open(&peer(1), size, 1_000 + GRACE));
        assert!(!order.lets_open(&peer(1), size, 1_001 + GRACE));
        assert!(!order.lets_open(&peer(2), size, 1_000));
        assert!(!order.lets_open(&peer(1), size - Amount::from_sat(1), 1_000));
        let paid = Awaited {
            taken_msat: Some(0),
            ..order
        };
        assert!(!paid.lets_open(&peer(1), size, 1_000));
    }

    #[test]
    fn a_channel_that_is_paid_for_is_exactly_the_one_that_was_ordered() {
        let size = Amount::from_sat(98_000);
        let (lsp, one) = (peer(1), Amount::ONE_SAT);
        let promise = Promised::Order {
            lsp,
            capacity: size,
        };
        let order = Awaited::new([9; 32], promise);
        assert!(order.lets_open(&lsp, size, u64::MAX) && !order.is_stale(u64::MAX));
        for (who, what) in [(2, size), (1, size - one), (1, size + one)] {
            assert!(!order.lets_open(&peer(who), what, 0), "{who} {what}");
        }
        assert!(!order.lets_keep() && may_keep(Some(&order), 1).is_err());
        let over = Awaited {
            taken_msat: Some(0),
            ..order
        };
        assert!(!over.lets_open(&lsp, size, 0));
    }

    #[test]
    fn no_more_is_kept_than_was_promised_and_once() {
        let order = order();
        assert_eq!(may_keep(Some(&order), 2_000_000), Ok(()));
        let dear = ClaimRefusal::FeeTooHigh {
            kept: 2_000_001,
            promised: 2_000_000,
        };
        assert_eq!(may_keep(Some(&order), 2_000_001), Err(dear));
        let paid = Awaited {
            taken_msat: Some(2_000_000),
            ..order
        };
        assert_eq!(may_keep(Some(&paid), 0), Ok(()));
        assert!(may_keep(Some(&paid), 1).is_err());
        assert_eq!(may_keep(None, 0), Ok(()));
        assert!(may_keep(None, 1).is_err());
    }

    #[test]
    fn what_has_a_channel_is_not_forgotten() {
        let mut order = order();
        assert!(!order.is_stale(1_000 + MEMORY));
        assert!(order.is_stale(1_001 + MEMORY));
        order.channel = Some(JitChannel {
            number: 5,
            channel: [1; 32],
            outpoint: OutPoint::null(),
            capacity: Amount::from_sat(1),
        });
        assert!(!order.is_stale(u64::MAX));
    }
}
