//! What lies in a channel outside of factories is brought into one as soon as there is room: there it costs the coordinator no output of its own, and
//! the wallet is covered. A payment to ourselves, out over the one channel and in over the other: neither leg can come about without the other.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::OutPoint;
use channel_host::Msat;
use factory_tree::ids::FactoryId;
use tokio::time::{Instant, MissedTickBehavior};

use crate::client::{Inner, Shutdown, SignerClient};
use crate::error::Result;
use crate::event::Event;
use crate::lightning::{ChannelState, ChannelView};
use crate::store::{Direction, PaymentState};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);
/// Before something that did not work is tried again; doubled each time, up to the second.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(3_600);
/// Less is not worth a payment.
const LEAST: u64 = 2_000_000;
/// What the fee may be: this part of what is brought.
const FEE_PART: u64 = 100;

/// What such a payment is called: by this it is known again, after restarts too.
fn text(channel: &str) -> String {
    format!("brought into a factory from channel {channel}")
}

/// What is due.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// So much goes round, out over this channel.
    Bring { channel: String, amount: Msat },
    /// There is nothing left in it but what has to stay.
    Close { channel: String },
}

/// What is due, if anything is. `homes`: factories that take something in; `ordered`: channels that were paid for, and stay where they are.
fn next(
    channels: &[ChannelView],
    homes: &HashSet<FactoryId>,
    ordered: &HashSet<OutPoint>,
) -> Option<Step> {
    let usable = |view: &&ChannelView| view.usable && view.state == ChannelState::Open;
    let rooms: Vec<(u64, bool)> = channels
        .iter()
        .filter(usable)
        .map(|view| {
            let home = view.factory.is_some_and(|factory| homes.contains(&factory));
            (view.receivable_msat, home)
        })
        .collect();
    let inside = rooms
        .iter()
        .filter(|(_, home)| *home)
        .map(|(room, _)| *room);
    // A hundredth may still be the fee, and a channel's room is not all of it to the last satoshi.
    let room = inside.clone().fold(0, u64::saturating_add);
    let largest = inside.max()?;
    let outside = channels.iter().filter(usable);
    let mut outside = outside
        .filter(|view| view.is_outside() && view.pending == 0 && !ordered.contains(&view.outpoint));
    outside.find_map(|view| {
        let channel = view.channel.clone()?;
        let all = view.spendable_msat / (FEE_PART + 1) * FEE_PART;
        if all < LEAST {
            // Before it is in a block the coordinator could still take it back, and so could we get nothing out of it.
            return view.factory_confirmed.then_some(Step::Close { channel });
        }
        // In part it would still have to be kept.
        if room < all {
            return None;
        }
        let amount = all.min(largest / 100 * 99);
        // The coordinator's node takes the channel with the least room that is enough (LDK).
        let taken = rooms.iter().filter(|(room, _)| *room >= amount).min();
        let comes_home = taken.is_some_and(|(_, home)| *home);
        (comes_home && amount >= LEAST).then_some(Step::Bring {
            channel,
            amount: Msat(amount),
        })
    })
}

/// Brings what lies outside of factories into them, until told to stop.
///
/// # Errors
/// What leaves nothing to go on with: a damaged store.
pub(crate) async fn run(client: Arc<Inner>, mut shutdown: Shutdown) -> Result<()> {
    if !client.config.jit.consolidate {
        shutdown.wait().await;
        return Ok(());
    }
    let client = SignerClient { inner: client };
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut pause, mut not_before) = (FIRST_PAUSE, Instant::now());
    loop {
        tokio::select! {
            () = shutdown.wait() => return Ok(()),
            _ = look.tick() => {}
        }
        if client.inner.lightning.node().is_none() || Instant::now() < not_before {
            continue;
        }
        match client.consolidate().await {
            Ok(false) => {}
            // Whatever it says, it is not asked to take a fee every other second.
            Ok(true) => {
                pause = FIRST_PAUSE;
                not_before = Instant::now() + pause;
            }
            Err(error) if Inner::is_fatal(&error) => return Err(error),
            Err(error) => {
                tracing::info!(%error, "what lies outside of factories stays there for now");
                not_before = Instant::now() + pause;
                pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
            }
        }
    }
}

impl SignerClient {
    /// Does what is due; whether something was.
    async fn consolidate(&self) -> Result<bool> {
        let channels = self.channels().await?;
        if !channels.iter().any(ChannelView::is_outside) {
            return Ok(false);
        }
        match next(&channels, &self.homes().await?, &self.ordered()?) {
            None => Ok(false),
            Some(Step::Bring { channel, amount }) => {
                let most = Msat(amount.0 / FEE_PART);
                let arrived = self
                    .go_round(&channel, (amount, most), &text(&channel))
                    .await?;
                if arrived {
                    self.inner.events.emit(Event::Consolidated {
                        channel,
                        amount_msat: amount.0,
                    });
                }
                Ok(true)
            }
            // One that was spent from is still there to receive.
            Some(Step::Close { channel }) if self.has_brought(&channel).await? => {
                self.close_channel(&channel, false).await?;
                Ok(true)
            }
            Some(Step::Close { .. }) => Ok(false),
        }
    }

    /// Whether something was brought from this channel.
    async fn has_brought(&self, channel: &str) -> Result<bool> {
        let payments = self.inner.store.payments(u32::MAX).await?;
        Ok(payments.iter().any(|payment| {
            payment.direction == Direction::Out
                && payment.state == PaymentState::Succeeded
                && payment.text == text(channel)
        }))
    }

    /// Channels that were ordered, and paid for.
    fn ordered(&self) -> Result<HashSet<OutPoint>> {
        let orders = self.inner.lightning.running()?.jit_awaited().into_iter();
        let ordered = orders.filter(|order| order.promise.is_order());
        Ok(ordered
            .filter_map(|order| order.channel.map(|channel| channel.outpoint))
            .collect())
    }

    /// Factories that are in use, and neither left nor near their end.
    async fn homes(&self) -> Result<HashSet<FactoryId>> {
        let inner = &self.inner;
        let mut homes = HashSet::new();
        for row in inner.store.factories().await? {
            if crate::sales::is_in_use(inner, &row).await? {
                homes.insert(row.factory);
            }
        }
        Ok(homes)
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    const HOME: FactoryId = FactoryId([1; 32]);
    const OLD: FactoryId = FactoryId([2; 32]);

    fn channel(factory: Option<FactoryId>, spendable: u64, receivable: u64) -> ChannelView {
        ChannelView {
            factory,
            ..ChannelView::sample(HOME, spendable, receivable)
        }
    }

    fn of(channels: &[ChannelView]) -> Option<Step> {
        next(channels, &HashSet::from([HOME]), &HashSet::new())
    }

    fn bring(amount: u64) -> Option<Step> {
        Some(Step::Bring {
            channel: "ab".to_owned(),
            amount: Msat(amount),
        })
    }

    const CLOSE: fn() -> Option<Step> = || {
        Some(Step::Close {
            channel: "ab".to_owned(),
        })
    };

    #[test]
    fn all_of_it_is_brought_home_and_then_it_is_closed() {
        let outside = |spendable| channel(None, spendable, 5_000_000);
        let home = channel(Some(HOME), 0, 200_000_000);
        assert_eq!(
            of(&[outside(101_000_000), home.clone()]),
            bring(100_000_000)
        );
        assert_eq!(of(&[outside(1_000_000), home.clone()]), CLOSE());
        let young = ChannelView {
            factory_confirmed: false,
            ..outside(1_000_000)
        };
        assert_eq!(of(&[young, home]), None, "its funding is in no block");
    }

    #[test]
    fn what_was_ordered_stays_where_it_is() {
        let home = channel(Some(HOME), 0, 200_000_000);
        for spendable in [101_000_000, 1_000_000] {
            let outside = channel(None, spendable, 5_000_000);
            let ordered = HashSet::from([outside.outpoint]);
            let all = [outside, home.clone()];
            assert!(of(&all).is_some());
            assert_eq!(next(&all, &HashSet::from([HOME]), &ordered), None);
        }
    }

    #[test]
    fn nothing_is_done_without_room_for_all_of_it() {
        let outside = channel(None, 101_000_000, 5_000_000);
        assert_eq!(of(std::slice::from_ref(&outside)), None);
        let small = channel(Some(HOME), 0, 99_000_000);
        assert_eq!(of(&[outside.clone(), small.clone()]), None);
        let elsewhere = channel(Some(OLD), 0, 200_000_000);
        assert_eq!(of(&[outside.clone(), elsewhere]), None);
        // In two goes.
        let both = [outside, small.clone(), small];
        assert_eq!(of(&both), bring(98_010_000));
    }

    #[test]
    fn what_would_come_back_into_the_same_channel_stays() {
        let outside = channel(None, 10_100_000, 20_000_000);
        let large = channel(Some(HOME), 0, 200_000_000);
        assert_eq!(of(&[outside.clone(), large]), None);
        let tight = channel(Some(HOME), 0, 15_000_000);
        assert_eq!(of(&[outside, tight]), bring(10_000_000));
    }

    #[test]
    fn a_channel_that_is_busy_or_away_is_left_alone() {
        let home = channel(Some(HOME), 0, 200_000_000);
        let busy = ChannelView {
            pending: 1,
            ..channel(None, 101_000_000, 0)
        };
        let away = ChannelView {
            usable: false,
            ..channel(None, 101_000_000, 0)
        };
        assert_eq!(of(&[busy, home.clone()]), None);
        assert_eq!(of(&[away, home]), None);
    }
}
