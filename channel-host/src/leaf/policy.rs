//! When a leaf has to go to the chain.

use crate::event::ExitReason;
use crate::pay::CLAIM_BUFFER;

/// Blocks we act before the last block in which it is safe to.
const MARGIN: u32 = 1;

/// A pending payment of a leaf channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HtlcView {
    /// To us, or through us from here: lost if the peer times it out first.
    Inbound { expiry: u32, preimage_known: bool },
    /// From us, or through us to here; `upstream` is when what pays for it expires, if anything does.
    Outbound { upstream: Option<u32> },
    /// What a client pays us for a part of a move that we paid on.
    Part { expiry: u32 },
}

/// Whether a payment forces the leaf to the chain at this height. LDK would act [`CLAIM_BUFFER`] blocks before an inbound expiry, too late for
/// a leaf whose path takes `exit_delay` blocks to confirm. An outbound payment of our own is in no hurry: LDK closes 3 blocks after its expiry.
/// For a part the old leaf goes to the chain in time though the preimage may not be known: the new one may yet reveal it (protocol.md 7.2).
pub(crate) fn exit_due(height: u32, exit_delay: u32, htlc: HtlcView) -> Option<ExitReason> {
    let horizon = height
        .saturating_add(exit_delay)
        .saturating_add(CLAIM_BUFFER)
        .saturating_add(MARGIN);
    match htlc {
        HtlcView::Inbound {
            expiry,
            preimage_known: true,
        } if expiry <= horizon => Some(ExitReason::ReceivedUnsettled { expiry }),
        HtlcView::Outbound {
            upstream: Some(upstream),
        } if upstream <= horizon => Some(ExitReason::ForwardUnresolved { upstream }),
        HtlcView::Part { expiry } if expiry <= horizon => {
            Some(ExitReason::PartUnresolved { expiry })
        }
        HtlcView::Inbound { .. } | HtlcView::Outbound { .. } | HtlcView::Part { .. } => None,
    }
}

/// The last height at which a leaf can be sent to the chain for something that expires there.
pub(crate) fn exit_by(expiry: u32, exit_delay: u32) -> u32 {
    expiry.saturating_sub(exit_delay.saturating_add(CLAIM_BUFFER))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: u32 = 228;

    #[test]
    fn what_we_were_paid_is_fetched_in_time() {
        let received = |expiry| HtlcView::Inbound {
            expiry,
            preimage_known: true,
        };
        let expiry = 10_000 + DELAY + 36 + 1;
        assert_eq!(
            exit_due(10_000, DELAY, received(expiry)),
            Some(ExitReason::ReceivedUnsettled { expiry })
        );
        assert_eq!(exit_due(9_999, DELAY, received(expiry)), None);
    }

    #[test]
    fn what_we_cannot_claim_starts_nothing() {
        let unknown = HtlcView::Inbound {
            expiry: 10_000,
            preimage_known: false,
        };
        assert_eq!(exit_due(10_000, DELAY, unknown), None);
    }

    #[test]
    fn what_a_part_brings_is_fetched_in_time_whether_or_not_it_is_ours_yet() {
        let expiry = 10_000 + DELAY + 37;
        let part = HtlcView::Part { expiry };
        let due = exit_due(10_000, DELAY, part);
        assert_eq!(due, Some(ExitReason::PartUnresolved { expiry }));
        assert_eq!(exit_due(9_999, DELAY, part), None);
        assert_eq!(exit_by(expiry, DELAY), 10_001);
    }

    #[test]
    fn an_unresolved_forward_is_fetched_before_upstream_expires() {
        let forward = |upstream| HtlcView::Outbound { upstream };
        let upstream = 10_000 + DELAY + 37;
        assert_eq!(
            exit_due(10_000, DELAY, forward(Some(upstream))),
            Some(ExitReason::ForwardUnresolved { upstream })
        );
        assert_eq!(exit_due(9_999, DELAY, forward(Some(upstream))), None);
        assert_eq!(exit_due(10_000, DELAY, forward(None)), None);
    }
}
