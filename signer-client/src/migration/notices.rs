//! What the coordinator says about a factory's end. It moves nothing: the wallet acts by its own kit and chain.

use factory_tree::units::Height;
use proto::wire::Notice;

use crate::client::Inner;
use crate::error::Result;
use crate::event::Event;
use crate::store::{NoticeRow, StoreError};

/// Longest text that is kept; the coordinator's own have one or two sentences.
const LONGEST: usize = 1000;

/// Keeps a notice for `status`, and tells it, if it is news about a factory of ours.
pub(crate) async fn take(client: &Inner, notice: Notice) -> Result<()> {
    let row = match client.store.factory(notice.factory).await {
        Ok(row) => row,
        Err(StoreError::NoFactory(factory)) => {
            tracing::debug!(%factory, "a notice about a factory of somebody else");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    if !row.is_live() || row.is_given_away() {
        return Ok(());
    }
    let mut words = notice.words;
    for text in [
        &mut words.what,
        &mut words.action,
        &mut words.cost,
        &mut words.otherwise,
    ] {
        *text = plain(text);
    }
    let row = NoticeRow {
        factory: notice.factory,
        notice: words.clone(),
        told: Height(client.followed_height()),
    };
    if client.store.set_notice(&row).await? {
        client.events.emit(Event::Notice {
            factory: row.factory,
            notice: words,
        });
    }
    Ok(())
}

/// Words for a terminal: bounded, and nothing that moves its cursor.
fn plain(text: &str) -> String {
    let shown = text.chars().filter(|sign| !sign.is_control());
    shown.take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_cannot_rule_the_terminal() {
        assert_eq!(plain("Last\u{1b}[2J day\n."), "Last[2J day.");
        assert_eq!(plain(&"a".repeat(5000)).len(), LONGEST);
    }
}
