//! LDK's log, as tracing events.

use lightning::util::logger::{Level, Logger, Record};

/// Why we close channels in good order, in the words that LDK repeats. What it calls an error is none then.
pub(super) const GIVEN_UP: &str = "the factory is given up";

fn is_ours(args: std::fmt::Arguments<'_>) -> bool {
    args.to_string().contains(GIVEN_UP)
}

/// Passes LDK's records on; what LDK calls gossip and trace is left out.
#[derive(Debug)]
pub(crate) struct TracingLog;

impl Logger for TracingLog {
    fn log(&self, record: Record<'_>) {
        let (module, channel) = (record.module_path, record.channel_id);
        let channel = channel.map(tracing::field::display);
        match record.level {
            Level::Error if is_ours(record.args) => {
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
