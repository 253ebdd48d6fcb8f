//! The CLTV rules of factories, as pure functions. All clocks are block heights.

/// LDK's `CLTV_CLAIM_BUFFER`: blocks it leaves itself to claim on the chain.
pub const CLAIM_BUFFER: u32 = 36;
/// On top of a leaf's exit delay, what the receiver asks of the last hop (BOLT 11's `min_final_cltv_expiry_delta`).
const FINAL_MARGIN: u32 = 42;
/// On top of the exit delays on either side, what stays between the two expiries of a forward: LDK's claim buffer and grace period twice over.
const FORWARD_MARGIN: u32 = 48;

/// What binds payments over one leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeafTerms {
    /// Blocks it takes to bring the leaf to the chain.
    pub exit_delay: u32,
    /// The height that no payment's expiry may reach.
    pub last_expiry: u32,
    /// Whether the factory is unconfirmed, or the channel no longer, or not yet, what was verified.
    pub gated: bool,
}

/// Why a payment is sent back instead of claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimRefusal {
    /// It came over a leaf that is not in force.
    #[error("it came over a leaf whose factory is not confirmed, or which is over")]
    Gated,
    /// It could not be enforced on the chain before it expires.
    #[error("it expires at {expiry}, too soon to be enforced: {needed} blocks are needed")]
    TooLate {
        /// When it expires.
        expiry: u32,
        /// Blocks from now that would be needed.
        needed: u32,
    },
    /// It could outlive the factory.
    #[error("it expires at {expiry}, and the factory takes none beyond {limit}")]
    OutlivesFactory {
        /// When it expires.
        expiry: u32,
        /// The last height that is allowed.
        limit: u32,
    },
    /// The peer of a channel that was opened for it has kept more of it than it promised.
    #[error("{kept} msat of it were kept, and {promised} were promised")]
    FeeTooHigh {
        /// What it kept.
        kept: u64,
        /// What it may keep.
        promised: u64,
    },
    /// It is our own, and did not come over a leaf.
    #[error("a payment of ours to ourselves came back outside of factories")]
    NotHome,
    /// It came over a channel outside of factories whose funding was neither in the mempool nor in a block while it could wait.
    #[error("the funding of the channel it came over was not seen in time")]
    Unfunded,
    /// It came over a channel that is not known here.
    #[error("it came over a channel that nobody verified")]
    UnknownChannel,
}

/// Whether a payment whose parts came over these leaves, each with its own expiry, may be claimed at `height`. Parts over ordinary channels have no
/// terms, and are bound by LDK's own deadline alone.
///
/// # Errors
/// [`ClaimRefusal`]: it has to be failed back.
pub fn claim_verdict(height: u32, parts: &[(LeafTerms, u32)]) -> Result<(), ClaimRefusal> {
    for (leaf, expiry) in parts.iter().copied() {
        if leaf.gated {
            return Err(ClaimRefusal::Gated);
        }
        let needed = leaf.exit_delay.saturating_add(CLAIM_BUFFER);
        if height >= expiry.saturating_sub(needed) {
            return Err(ClaimRefusal::TooLate { expiry, needed });
        }
        if expiry >= leaf.last_expiry {
            return Err(ClaimRefusal::OutlivesFactory {
                expiry,
                limit: leaf.last_expiry.saturating_sub(1),
            });
        }
    }
    Ok(())
}

/// What an invoice asks of its last hop, for a receiver whose slowest leaf has this exit delay (0: no leaf).
pub fn min_final_delta(exit_delay: u32) -> u32 {
    exit_delay.saturating_add(FINAL_MARGIN)
}

/// The delta the coordinator asks for forwarding into a leaf. No more than it needs: factories are laid out so that this and
/// [`min_final_delta`] leave outside payers the blocks of a route, and blocks found on the way do not change the distance of two expiries.
pub(crate) fn leaf_delta(exit_delay: u32) -> u32 {
    required_delta(None, Some(exit_delay))
}

/// What has to lie between the expiries of a forward: both channels may have to be brought to the chain first.
pub(crate) fn required_delta(from_leaf: Option<u32>, to_leaf: Option<u32>) -> u32 {
    FORWARD_MARGIN
        .saturating_add(from_leaf.unwrap_or(0))
        .saturating_add(to_leaf.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: LeafTerms = LeafTerms {
        exit_delay: 228,
        last_expiry: 20_000,
        gated: false,
    };

    #[test]
    fn the_last_block_to_claim_is_exact() {
        let expiry = 10_000;
        let last = expiry - 228 - 36 - 1;
        assert_eq!(claim_verdict(last, &[(TERMS, expiry)]), Ok(()));
        assert_eq!(
            claim_verdict(last + 1, &[(TERMS, expiry)]),
            Err(ClaimRefusal::TooLate {
                expiry,
                needed: 264
            })
        );
    }

    #[test]
    fn the_slowest_leaf_decides() {
        let slow = LeafTerms {
            exit_delay: 300,
            ..TERMS
        };
        let height = 10_000 - 300 - 36;
        let fast = (TERMS, 10_000);
        assert_eq!(claim_verdict(height, &[fast]), Ok(()));
        assert!(claim_verdict(height, &[fast, (slow, 10_000)]).is_err());
    }

    #[test]
    fn each_part_is_bound_by_its_own_leaf() {
        let dying = LeafTerms {
            last_expiry: 10_500,
            ..TERMS
        };
        // The earliest is in order; another outlives its factory.
        let parts = [(TERMS, 10_000), (dying, 10_500)];
        assert_eq!(
            claim_verdict(9_000, &parts),
            Err(ClaimRefusal::OutlivesFactory {
                expiry: 10_500,
                limit: 10_499
            })
        );
        let parts = [(TERMS, 10_500), (dying, 10_000)];
        assert_eq!(claim_verdict(9_000, &parts), Ok(()));
    }

    #[test]
    fn nothing_outlives_the_factory() {
        assert_eq!(claim_verdict(19_000, &[(TERMS, 19_999)]), Ok(()));
        assert_eq!(
            claim_verdict(19_000, &[(TERMS, 20_000)]),
            Err(ClaimRefusal::OutlivesFactory {
                expiry: 20_000,
                limit: 19_999
            })
        );
    }

    #[test]
    fn one_gated_leaf_is_enough() {
        let gated = LeafTerms {
            gated: true,
            ..TERMS
        };
        assert_eq!(
            claim_verdict(1, &[(TERMS, 10_000), (gated, 10_000)]),
            Err(ClaimRefusal::Gated)
        );
        assert_eq!(claim_verdict(9_999, &[]), Ok(()));
    }

    #[test]
    fn an_invoice_paid_at_once_can_be_claimed() {
        for exit_delay in [0, 144, 307] {
            let terms = LeafTerms {
                exit_delay,
                ..TERMS
            };
            let expiry = 5_000 + min_final_delta(exit_delay);
            assert_eq!(claim_verdict(5_005, &[(terms, expiry)]), Ok(()));
        }
        assert!(leaf_delta(228) >= required_delta(None, Some(228)));
        assert_eq!(required_delta(Some(228), Some(100)), 48 + 228 + 100);
    }
}
