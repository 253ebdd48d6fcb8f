//! Progress for somebody who waits: a spinner on a terminal, lines elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use factory_tree::ids::FactoryId;
use factory_tree::tx::TxKind;
use indicatif::{ProgressBar, ProgressStyle};

use super::CliError;
use super::context::Context;
use crate::store::SharedStore;

/// How often to look.
const LOOK: Duration = Duration::from_millis(100);
/// How often to look whether somebody still runs.
const GONE: Duration = Duration::from_secs(1);

/// Says what is going on, once each.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    last: String,
}

impl Progress {
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self {
            bar,
            last: String::new(),
        }
    }

    /// What is going on now.
    pub(super) fn say(&mut self, text: &str) {
        if text == self.last {
            return;
        }
        text.clone_into(&mut self.last);
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => eprintln!("{text}"),
        }
    }

    /// Something that stays on the screen.
    pub(super) fn keep(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Returns when nobody runs on the data directory any more.
pub(super) async fn left(context: &Context) -> Result<(), CliError> {
    while !context.is_left()? {
        tokio::time::sleep(GONE).await;
    }
    Ok(())
}

/// How an exit that was followed stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reached {
    /// The leaf is confirmed; the channel's timeout is to come.
    Leaf,
    /// Nothing is left to be claimed.
    End,
}

/// Follows an exit through the store until its leaf is confirmed, or to the very end.
pub(super) async fn exit(
    store: &SharedStore,
    factory: FactoryId,
    to_the_end: bool,
) -> Result<Reached, CliError> {
    let mut progress = Progress::new();
    let kit = crate::client::KitCache::new(SharedStore::clone(store))
        .get(factory)
        .await?;
    let leaf = kit
        .txs
        .iter()
        .find(|tx| tx.kind == TxKind::Leaf)
        .map(|tx| tx.txid());
    let mut told = 0;
    loop {
        let published = store.published(factory).await?;
        for row in published.iter().skip(told) {
            progress.keep(&format!("published the {} {}", row.kind, row.txid));
        }
        told = published.len();
        let exits = store.exits().await?;
        if let Some(exit) = exits.iter().find(|exit| exit.factory == factory) {
            let until = exit.progress.until;
            let until = until.map_or(String::new(), |height| format!(" until height {height}"));
            progress.say(&format!("{}{until}", exit.progress.text));
            if exit.progress.done.is_some() {
                return Ok(Reached::End);
            }
        }
        let seen = store.seen_txs().await?;
        let out = seen.iter().any(|seen| Some(seen.tx.compute_txid()) == leaf);
        if out && !to_the_end {
            return Ok(Reached::Leaf);
        }
        tokio::time::sleep(LOOK).await;
    }
}
