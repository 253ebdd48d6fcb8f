//! Feerates for LDK, which asks where it cannot wait for an answer.

use std::sync::atomic::{AtomicU32, Ordering};

use chain::{ChainError, ChainSource};
use lightning::chain::chaininterface::{
    ConfirmationTarget, FEERATE_FLOOR_SATS_PER_KW, FeeEstimator,
};

/// Blocks within which: what may be stolen otherwise, what should not take long, and what has time.
const TARGETS: [u16; 3] = [3, 12, 144];

/// The last feerates the Bitcoin node told.
#[derive(Debug)]
pub(crate) struct FeeCache {
    rates: [AtomicU32; 3],
}

impl FeeCache {
    pub(crate) fn new() -> Self {
        Self {
            rates: [const { AtomicU32::new(FEERATE_FLOOR_SATS_PER_KW) }; 3],
        }
    }

    pub(crate) async fn refresh(&self, chain: &dyn ChainSource) -> Result<(), ChainError> {
        for (target, rate) in TARGETS.into_iter().zip(&self.rates) {
            let feerate = chain.fee_rate(target).await?;
            let per_kw = u32::try_from(feerate.to_sat_per_kwu()).unwrap_or(u32::MAX);
            rate.store(per_kw.max(FEERATE_FLOOR_SATS_PER_KW), Ordering::Release);
        }
        Ok(())
    }
}

impl FeeEstimator for FeeCache {
    fn get_est_sat_per_1000_weight(&self, target: ConfirmationTarget) -> u32 {
        let [urgent, soon, slow] = self.rates.each_ref();
        let read = |rate: &AtomicU32| rate.load(Ordering::Acquire);
        match target {
            // What a peer may ask at the most: generous, so that one with a nervous estimate is no enemy.
            ConfirmationTarget::MaximumFeeEstimate => read(urgent).saturating_mul(10).max(25_000),
            ConfirmationTarget::UrgentOnChainSweep => read(urgent),
            ConfirmationTarget::NonAnchorChannelFee => read(soon),
            // LDK counts a sweep some weight units short (4,850 sat where the node wanted 4,880): at the node's least feerate it would never relay.
            ConfirmationTarget::OutputSpendingFee => read(soon).saturating_add(read(soon) / 50),
            ConfirmationTarget::AnchorChannelFee | ConfirmationTarget::ChannelCloseMinimum => {
                read(slow)
            }
            ConfirmationTarget::MinAllowedAnchorChannelRemoteFee
            | ConfirmationTarget::MinAllowedNonAnchorChannelRemoteFee => FEERATE_FLOOR_SATS_PER_KW,
        }
    }
}
