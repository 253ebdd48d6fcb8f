//! What channels out of our own coins may cost: the wallet's coins, the day's fees, the hour's channels. The same for every kind that is sold.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bitcoin::{Amount, FeeRate};

use crate::context::Context;

/// Seconds.
pub const HOUR: u64 = 3_600;
/// Seconds.
pub const DAY: u64 = 86_400;
/// So often a channel is opened for one order: a client that never lets one come about costs us no more.
pub const TRIES: u32 = 3;
/// bLIP-50's "rejected", for what is in order and cannot be served now.
pub const CLIENT_REJECTED: i32 = 1;
/// A channel's funding with two taproot inputs and change, in virtual bytes.
const FUNDING_VBYTES: u64 = 212;

/// So long an answer may go by a feerate, if there is no block before.
const FEERATE_LASTS: Duration = Duration::from_secs(10);

/// What the Bitcoin node said of feerates lately: strangers ask for prices all the time, and it is not to be asked as often.
#[derive(Debug, Default)]
pub struct Feerates(Mutex<HashMap<u16, Feerate>>);

#[derive(Clone, Copy, Debug)]
struct Feerate {
    rate: FeeRate,
    height: u32,
    at: Instant,
}

impl Feerates {
    fn known(&self) -> MutexGuard<'_, HashMap<u16, Feerate>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn lately(&self, ctx: &Context, confirm_within: u16) -> FeeRate {
        let (height, at) = (ctx.height(), Instant::now());
        let known = self.known().get(&confirm_within).copied();
        let known = known
            .filter(|known| known.height == height && at.duration_since(known.at) < FEERATE_LASTS);
        if let Some(known) = known {
            return known.rate;
        }
        let rate = ctx.feerate_within(confirm_within).await;
        self.known()
            .insert(confirm_within, Feerate { rate, height, at });
        rate
    }
}

/// What is in the wallet, confirmed and free: the Bitcoin node is not asked.
pub async fn coins(ctx: &Context) -> Amount {
    let coins = ctx.wallet.coins().await.into_iter();
    let coins = coins.map(|coin| coin.txout.value);
    coins.fold(Amount::ZERO, |sum, value| {
        sum.checked_add(value).unwrap_or(Amount::MAX_MONEY)
    })
}

/// What of our money can be used now.
#[derive(Clone, Copy, Debug)]
pub struct Means {
    /// In the wallet, confirmed and free.
    pub coins: Amount,
    /// What funding one channel costs, about.
    pub fee: Amount,
}

impl Means {
    /// As things are, for a funding that is to confirm within so many blocks.
    pub async fn now(ctx: &Context, confirm_within: u16) -> Self {
        Self::at(ctx, ctx.feerate_within(confirm_within).await).await
    }

    /// The same to answer a question, with a feerate that may be some seconds old.
    pub async fn lately(ctx: &Context, confirm_within: u16) -> Self {
        Self::at(ctx, ctx.feerates.lately(ctx, confirm_within).await).await
    }

    async fn at(ctx: &Context, feerate: FeeRate) -> Self {
        let fee = feerate.fee_vb(FUNDING_VBYTES);
        Self {
            coins: coins(ctx).await,
            fee: fee.unwrap_or(Amount::MAX_MONEY),
        }
    }

    /// What is left when so much belongs to others.
    #[must_use]
    pub fn without(self, owed_sat: u64) -> Self {
        let left = self.coins.checked_sub(Amount::from_sat(owed_sat));
        Self {
            coins: left.unwrap_or(Amount::ZERO),
            ..self
        }
    }

    /// Whether the coins are enough for a channel of this size.
    #[must_use]
    pub fn suffice_for(&self, capacity: Amount) -> bool {
        let needed = capacity.checked_add(self.fee);
        needed.is_some_and(|needed| needed <= self.coins)
    }
}

/// What the operator allows of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Channels per hour.
    pub opens_per_hour: u64,
    /// On-chain fees per day, satoshi.
    pub onchain_budget_sat: u64,
}

/// What was used of that.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    /// Channels opened in the last hour.
    pub opens: u64,
    /// What those of the last day cost on the chain, satoshi.
    pub onchain_sat: u64,
}

impl Limits {
    /// Why no channel can be opened for this fee now, if so.
    #[must_use]
    pub fn closed(&self, used: Used, fee: Amount) -> Option<String> {
        if used.opens >= self.opens_per_hour {
            return Some("too many channels were opened this hour".into());
        }
        if used.onchain_sat.saturating_add(fee.to_sat()) > self.onchain_budget_sat {
            return Some("today's budget for on-chain fees is used up".into());
        }
        None
    }
}
