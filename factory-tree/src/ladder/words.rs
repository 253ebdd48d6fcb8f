//! What a client is told, in words: what happens when, what it must do, what it costs, and what
//! happens if it does nothing.

use bitcoin::Amount;
use serde::{Deserialize, Serialize};

use super::due::Warning;
use super::view::FactoryFacts;
use crate::units::{Blocks, Height};

/// What staying a client costs, as the operator's policy says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The fee for the next month, taken when the balance moves.
    pub fee: Amount,
}

/// A notice to one client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// How loud it is.
    pub level: Warning,
    /// What happens, and when.
    pub what: String,
    /// What the client has to do.
    pub action: String,
    /// What it costs.
    pub cost: String,
    /// What happens if it does nothing.
    pub otherwise: String,
    /// By when it has to act.
    pub by: Height,
}

/// The notice of `level` to a client of the factory. It is read long after it was written: heights, and no times from now.
#[must_use]
pub fn notice(level: Warning, facts: &FactoryFacts, terms: Terms) -> Notice {
    let calendar = &facts.schedule;
    let (from, by) = (calendar.dying_from, calendar.publish_from);
    let what = match level {
        Warning::Early => format!(
            "This channel's factory ends: from block {from} to block {by} your balance moves to a new one."
        ),
        Warning::Dying => format!(
            "This channel's factory ends at block {by}. You are invited to a new one when there is one."
        ),
        Warning::LastDay => format!("Last day: this channel's factory ends at block {by}."),
        Warning::Over => format!("This channel's factory ended at block {by}."),
    };
    let action = match (level, facts.refunds_clients()) {
        (Warning::Early, _) => {
            format!("Open the wallet once between blocks {from} and {by}; it does the rest.")
        }
        (Warning::Dying | Warning::LastDay, _) => format!(
            "Open the wallet and leave it open until its balance has moved and its keys are handed over, before block {by}; sending stops about a day before."
        ),
        (Warning::Over, true) => {
            "You need not do anything; after the next start the wallet finds the money on the chain."
                .to_owned()
        }
        (Warning::Over, false) => format!(
            "Publish your exit at once: at block {} the LSP may take what is not published.",
            calendar.expiry
        ),
    };
    let otherwise = match facts.refunds_clients() {
        true => format!(
            "The LSP publishes your channel from block {by} on and pays for that; your balance, less the network fee of fetching it, is in your own on-chain output before block {}, and not in a channel any more.",
            calendar.expiry
        ),
        false => format!(
            "Whoever has not left or published by block {by} may lose its balance at block {}.",
            calendar.expiry
        ),
    };
    Notice {
        level,
        what,
        action,
        cost: cost(level, terms),
        otherwise,
        by,
    }
}

fn cost(level: Warning, terms: Terms) -> String {
    match (level, terms.fee) {
        (Warning::Over, _) => {
            "Publishing is paid for; fetching the money into the wallet costs its own network fee."
                .to_owned()
        }
        (_, Amount::ZERO) => "Moving is free.".to_owned(),
        (_, fee) => format!(
            "{} sat for the next month, taken from what moves.",
            fee.to_sat()
        ),
    }
}

/// A time in blocks as people say it, at ten minutes a block.
#[must_use]
pub fn blocks_in_words(blocks: Blocks) -> String {
    const HOUR: u32 = 6;
    const DAY: u32 = 144;
    let many = |count: u32, unit: &str| match count {
        1 => format!("about 1 {unit}"),
        count => format!("about {count} {unit}s"),
    };
    match blocks.0 {
        0 => "now".to_owned(),
        few @ 1..HOUR => many(few.saturating_mul(10), "minute"),
        some @ HOUR..DAY => many(some / HOUR, "hour"),
        more => many(more / DAY, "day"),
    }
}
