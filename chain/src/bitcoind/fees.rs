//! What to pay per virtual byte.

use bitcoin::FeeRate;
use serde_json::json;

use super::answer::{FeeEstimate, MempoolInfo};
use super::rpc::RpcPool;
use crate::Result;

/// Old nodes and miners take nothing below 1 sat/vB, whatever our own node relays.
const FLOOR: FeeRate = FeeRate::BROADCAST_MIN;

/// Highest target `estimatesmartfee` knows.
const MAX_TARGET: u16 = 1008;

/// The node's estimate, or the fallback, but never less than its mempool takes.
pub(super) async fn fee_rate(
    rpc: &RpcPool,
    target_blocks: u16,
    fallback: FeeRate,
) -> Result<FeeRate> {
    let estimate: FeeEstimate = rpc
        .call(
            "estimatesmartfee",
            vec![json!(target_blocks.clamp(1, MAX_TARGET))],
        )
        .await?;
    let mempool: MempoolInfo = rpc.call("getmempoolinfo", vec![]).await?;
    Ok(combine(&estimate, &mempool, fallback))
}

fn combine(estimate: &FeeEstimate, mempool: &MempoolInfo, fallback: FeeRate) -> FeeRate {
    let wanted = estimate
        .feerate
        .map_or(fallback, |feerate| feerate.per_kvb());
    wanted
        .max(mempool.mempoolminfee.per_kvb())
        .max(mempool.minrelaytxfee.per_kvb())
        .max(FLOOR)
}

#[cfg(test)]
mod tests {
    use bitcoin::Amount;

    use super::super::answer::Btc;
    use super::*;

    #[test]
    fn the_estimate_has_a_floor_and_its_absence_a_fallback() {
        let btc = |sat| Btc(Amount::from_sat(sat));
        let rate = |estimate: Option<u64>, mempool: u64, fallback: u32| {
            let mempool = MempoolInfo {
                mempoolminfee: btc(mempool),
                minrelaytxfee: btc(100),
            };
            combine(
                &FeeEstimate {
                    feerate: estimate.map(btc),
                },
                &mempool,
                FeeRate::from_sat_per_vb_u32(fallback),
            )
        };
        assert_eq!(rate(Some(7_000), 100, 3), FeeRate::from_sat_per_vb_u32(7));
        assert_eq!(rate(None, 100, 3), FeeRate::from_sat_per_vb_u32(3));
        assert_eq!(rate(Some(200), 100, 3), FLOOR);
        assert_eq!(
            rate(Some(2_000), 50_000, 3),
            FeeRate::from_sat_per_vb_u32(50)
        );
    }
}
