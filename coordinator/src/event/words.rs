//! Reasons as names and words.

use factory_tree::ceremony::coordinator::LeftOut;
use factory_tree::ceremony::message::{AbortReason, DeclineReason};

/// The name of an abort reason.
#[must_use]
pub const fn abort_name(reason: &AbortReason) -> &'static str {
    match reason {
        AbortReason::TooFewClients { .. } => "too_few_clients",
        AbortReason::Silent => "silent",
        AbortReason::Guilty => "guilty",
        AbortReason::Left => "left",
        AbortReason::Tree(_) => "tree",
        AbortReason::NoFunds(_) => "no_funds",
        AbortReason::Restarted => "restarted",
        AbortReason::Cancelled => "cancelled",
        AbortReason::TooManyAttempts => "too_many_attempts",
    }
}

/// An abort reason in words.
#[must_use]
pub fn abort_text(reason: &AbortReason) -> String {
    match reason {
        AbortReason::TooFewClients { left } => format!("only {left} clients are left"),
        AbortReason::Silent => "some clients did not answer in time".into(),
        AbortReason::Guilty => "some clients sent invalid signatures".into(),
        AbortReason::Left => "some clients declined or left".into(),
        AbortReason::Tree(why) => format!("the tree cannot be built: {why}"),
        AbortReason::NoFunds(why) => format!("the wallet has not the coins: {why}"),
        AbortReason::Restarted => {
            "the coordinator was restarted, and secret nonces do not survive that".into()
        }
        AbortReason::Cancelled => "the operator cancelled it".into(),
        AbortReason::TooManyAttempts => "it had as many attempts as are allowed".into(),
    }
}

/// The name of a reason to be left out.
#[must_use]
pub const fn left_out_name(reason: LeftOut) -> &'static str {
    match reason {
        LeftOut::Silent => "silent",
        LeftOut::Guilty => "guilty",
        LeftOut::Declined => "declined",
        LeftOut::Absent => "left",
    }
}

/// A decline reason in words.
#[must_use]
pub fn decline_text(reason: &DeclineReason) -> String {
    match reason {
        DeclineReason::Terms(why) => format!("terms: {why}"),
        DeclineReason::Refused { rule, found } => format!("{rule}: {found}"),
        DeclineReason::Unable(why) => format!("unable: {why}"),
    }
}
