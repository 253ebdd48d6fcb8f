//! LDK's log, as tracing events.

use lightning::util::logger::{Level, Logger, Record};

/// Why we close channels in good order, in the words that LDK repeats. What it calls an error is none then.
pub(super) const GIVEN_UP: &str = "the factory is given up";
/// The same of a leaf whose turn it is.
pub(super) const TO_THE_CHAIN: &str = "the leaf goes to the chain";
/// The same of a leaf that is left.
pub(super) const WORTHLESS: &str = "its factory is left, and nothing in it is worth a commitment";
/// What LDK says of a close that both sides agreed on.
const TOGETHER: &str = "Coop Closed";
/// What LDK says of any other, before the line with the reason.
const CLOSING: &str = "Force-closing channel";
/// What LDK says before a peer's reason.
const THEIRS: &str = "counterparty force-closed with message: ";

/// Whether this is about a channel that ends as it should.
fn is_ordinary(args: std::fmt::Arguments<'_>) -> bool {
    let text = args.to_string();
    let reasons = [GIVEN_UP, TO_THE_CHAIN, WORTHLESS];
    match text.split_once(THEIRS) {
        // The peer's words, in which anything may stand.
        Some((_, words)) => reasons.contains(&words),
        None => {
            let mut all = reasons.iter().chain([&TOGETHER]);
            text == CLOSING || all.any(|reason| text.contains(reason))
        }
    }
}

/// Passes LDK's records on; what LDK calls gossip and trace is left out.
#[derive(Debug)]
pub(crate) struct TracingLog;

impl Logger for TracingLog {
    fn log(&self, record: Record<'_>) {
        let (module, channel) = (record.module_path, record.channel_id);
        let channel = channel.map(tracing::field::display);
        match record.level {
            Level::Error if is_ordinary(record.args) => {
                tracing::debug!(module, channel, "{}", record.args)
            }
            Level::Error => tracing::error!(module, channel, "{}", record.args),
            Level::Warn => tracing::warn!(module, channel, "{}", record.args),
            Level::Info => tracing::info!(module, channel, "{}", record.args),
            Level::Debug => tracing::debug!(module, channel, "{}", record.args),
            Level::Trace | Level::Gossip => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_as_it_should_is_no_error_and_all_else_is() {
        for text in [
            "Force-closing channel",
            "Closing channel: Coop Closed",
            "Closing channel: Channel closed because counterparty force-closed with message: the leaf goes to the chain",
            "Closed channel due to close-required error: its factory is left, and nothing in it is worth a commitment",
        ] {
            assert!(is_ordinary(format_args!("{text}")), "{text}");
        }
        for text in [
            "Force-closing channel due to an HTLC",
            "Closing channel: Channel closed because counterparty force-closed with message: Coop Closed",
            "Closing channel: Channel closed because counterparty force-closed with message: the leaf goes to the chain, and more",
            "Closing channel: Channel closed because counterparty force-closed with message: no such channel is expected",
            "Failed to update channel monitor: no such monitor registered",
        ] {
            assert!(!is_ordinary(format_args!("{text}")), "{text}");
        }
    }
}
