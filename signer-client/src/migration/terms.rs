//! What the coordinator says about a part, before anything is paid.

use channel_host::Msat;
use factory_tree::ladder::{PartError, part_expiries};
use factory_tree::params::Schedule;
use factory_tree::units::Height;
use proto::wire::PartTerms;

use super::decide::{Facts, New};
use crate::store::{Agreed, Token};

/// How far the coordinator's chain may be from ours, in blocks.
const DRIFT: u32 = 6;

/// Why a part is not paid for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TermsError {
    #[error("the younger factory is gone")]
    NoNew,
    #[error("it is too late for it: {0}")]
    TooLate(#[from] PartError),
    #[error("the coordinator asks for {asked}, agreed and not paid are {agreed}")]
    Fee { asked: Msat, agreed: Msat },
    #[error("it costs {asked}, there are {left}")]
    TooMuch { asked: Msat, left: Msat },
    #[error("{which} expires at {found}, not near {expected}")]
    Expiry {
        which: &'static str,
        found: Height,
        expected: Height,
    },
}

/// Whether `found` is where it should be.
fn near(which: &'static str, found: Height, expected: Height) -> Result<(), TermsError> {
    if found.0.abs_diff(expected.0) <= DRIFT {
        return Ok(());
    }
    Err(TermsError::Expiry {
        which,
        found,
        expected,
    })
}

/// Whether a part with these expiries may begin at this height: a shorter outgoing one could not be enforced, a longer incoming one would
/// lock the money for longer than need be (protocol.md section 7.2).
pub(super) fn expiries(
    height: Height,
    old: &Schedule,
    new: &Schedule,
    (outgoing, incoming): (Height, Height),
) -> Result<(), TermsError> {
    let expected = part_expiries(height, old, new)?;
    near("the coordinator's payment", outgoing, expected.outgoing)?;
    near("this wallet's payment", incoming, expected.incoming)
}

/// What is agreed to, if the terms of a part of `amount` are good.
pub(super) fn check(terms: &PartTerms, amount: Msat, facts: &Facts) -> Result<Agreed, TermsError> {
    let new: &New = facts.new.as_ref().ok_or(TermsError::NoNew)?;
    let fee = Msat(terms.fee_msat);
    if fee > new.fee_left {
        return Err(TermsError::Fee {
            asked: fee,
            agreed: new.fee_left,
        });
    }
    let asked = Msat(amount.0.saturating_add(fee.0));
    if asked > facts.old.next {
        return Err(TermsError::TooMuch {
            asked,
            left: facts.old.next,
        });
    }
    let found = (terms.outgoing_expiry, terms.incoming_expiry);
    expiries(facts.height, &facts.old.calendar, &new.calendar, found)?;
    Ok(Agreed {
        token: Token(terms.payment_secret),
        fee,
        incoming: terms.incoming_expiry,
        outgoing: terms.outgoing_expiry,
    })
}

#[cfg(test)]
mod tests {
    use bitcoin::Amount;
    use factory_tree::units::Blocks;

    use super::*;
    use crate::migration::decide::Old;

    const AMOUNT: Msat = Msat(3_000_000);

    fn calendar(birth: u32) -> Schedule {
        Schedule {
            birth: Height(birth),
            dying_from: Height(birth + 1000),
            publish_from: Height(birth + 1400),
            last_spend: Height(birth + 1850),
            expiry: Height(birth + 1994),
            exit_delay: Blocks(234),
        }
    }

    fn facts() -> Facts {
        Facts {
            height: Height(1200),
            handover_depth: 12,
            old: Old {
                calendar: calendar(100),
                stands: true,
                usable: true,
                balance: Msat(3_500_000),
                next: Msat(3_500_000),
                pending: 0,
            },
            new: Some(New {
                calendar: calendar(1000),
                stands: true,
                usable: true,
                room: Msat(200_000_000),
                depth: 3,
                exit_fee: Amount::ZERO,
                has_fee_coins: false,
                fee_left: Msat(400_000),
            }),
            total: Some(Msat(100_000_000)),
        }
    }

    fn terms() -> PartTerms {
        PartTerms {
            hash: [1; 32],
            payment_secret: [2; 32],
            fee_msat: 400_000,
            outgoing_expiry: Height(1200 + 234 + 144),
            incoming_expiry: Height(1200 + 234 + 144 + 234 + 234 + 72),
        }
    }

    fn refused(change: impl FnOnce(&mut PartTerms, &mut Facts)) -> TermsError {
        let (mut terms, mut facts) = (terms(), facts());
        change(&mut terms, &mut facts);
        check(&terms, AMOUNT, &facts).unwrap_err()
    }

    #[test]
    fn good_terms_are_kept_as_they_are() {
        let agreed = check(&terms(), AMOUNT, &facts()).unwrap();
        assert_eq!(agreed.fee, Msat(400_000));
        assert_eq!(agreed.token, Token([2; 32]));
        assert_eq!(agreed.incoming, terms().incoming_expiry);
        assert_eq!(agreed.outgoing, terms().outgoing_expiry);
    }

    #[test]
    fn a_fee_beyond_what_was_agreed_is_not_paid() {
        let error = refused(|terms, _| terms.fee_msat += 1);
        assert!(matches!(error, TermsError::Fee { .. }), "{error}");
        let error = refused(|_, facts| {
            facts.new = facts.new.map(|new| New {
                fee_left: Msat(0),
                ..new
            });
        });
        assert!(matches!(error, TermsError::Fee { .. }), "{error}");
        let error = refused(|terms, _| terms.fee_msat = u64::MAX);
        assert!(matches!(error, TermsError::Fee { .. }), "{error}");
    }

    #[test]
    fn no_more_than_there_is() {
        let error = refused(|_, facts| facts.old.next = Msat(3_399_999));
        assert!(matches!(error, TermsError::TooMuch { .. }), "{error}");
    }

    #[test]
    fn expiries_are_what_both_sides_compute() {
        let shifted = |outgoing: i64, incoming: i64| {
            let mut terms = terms();
            let add =
                |height: Height, by: i64| Height(u32::try_from(i64::from(height.0) + by).unwrap());
            terms.outgoing_expiry = add(terms.outgoing_expiry, outgoing);
            terms.incoming_expiry = add(terms.incoming_expiry, incoming);
            check(&terms, AMOUNT, &facts())
        };
        for by in [-6, -1, 1, 6] {
            assert!(shifted(by, by).is_ok(), "{by}");
        }
        for (outgoing, incoming) in [(-7, 0), (7, 0), (0, -7), (0, 7)] {
            let error = shifted(outgoing, incoming).unwrap_err();
            assert!(matches!(error, TermsError::Expiry { .. }), "{error}");
        }
    }

    #[test]
    fn nothing_begins_too_late_or_without_a_younger_factory() {
        let error = refused(|_, facts| facts.height = Height(1600));
        assert!(matches!(error, TermsError::TooLate(_)), "{error}");
        assert_eq!(refused(|_, facts| facts.new = None), TermsError::NoNew);
    }
}
