//! The last part of an exit: the channel is closed once its leaf is there, and what is ours of it comes into the wallet.

use std::sync::Arc;
use std::time::Duration;

use bitcoin::{Amount, Txid};
use channel_host::{LeafId, Msat, Node, Settlement, Stage};
use factory_tree::exit::{End, Step};
use factory_tree::kit::{ExitKit, KitChannel};
use factory_tree::units::Height;

use super::name_of;
use crate::client::Inner;
use crate::error::Result;
use crate::exit::RELAXED_TARGET;

/// Size of a transaction that sweeps one output of a channel, rounded up: what costs more than it brings is left.
const SWEEP_VBYTES: u64 = 150;
/// What a commitment has no output for: 354 satoshis is BOLT 3's largest dust limit of a script known to all.
const LEAST_MSAT: u64 = 354_000;
/// A block is taken in within a moment.
const LOOKS: u32 = 50;
const LOOK: Duration = Duration::from_millis(20);

/// How far Lightning is with the end of a channel, or of all channels of a factory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It has nothing to do yet, or never will.
    Nothing,
    /// The leaf is on the chain; a commitment is to follow.
    Closing,
    /// What is ours is on its way into the wallet.
    OnItsWay,
    /// It cannot be said now, and why.
    Unknown(String),
    /// All is in the wallet, since this height if there was something.
    Done(Option<Height>),
}

impl Ending {
    /// Of two channels: what is not over comes first.
    fn and(self, other: Self) -> Self {
        use Ending::{Closing, Done, Nothing, OnItsWay, Unknown};
        match (self, other) {
            (Unknown(why), _) | (_, Unknown(why)) => Unknown(why),
            (OnItsWay, _) | (_, OnItsWay) => OnItsWay,
            (Closing, _) | (_, Closing) => Closing,
            (Done(one), Done(two)) => Done(one.max(two)),
            (Done(at), Nothing) | (Nothing, Done(at)) => Done(at),
            (Nothing, Nothing) => Nothing,
        }
    }
}

/// Whether a commitment would have an output of ours. One without costs fees and brings nothing: the coordinator publishes its own in time, or else
/// the channel's timeout pays us all of it.
fn is_worth_it(spendable: Msat, pending: usize) -> bool {
    pending > 0 || spendable.0 >= LEAST_MSAT
}

/// Sees to it that each channel is closed: once its leaf is confirmed, if anything in it is ours; if not, as soon as the tree is `unrolling`, as
/// Lightning would pay into it before all others, and each such payment cost a commitment. Not before, as the coordinator may take a closed channel
/// that was paid over lately for a reason to publish its path, and pay for it.
pub(crate) async fn leave(client: &Inner, kit: &ExitKit, unrolling: bool) {
    let Some(node) = client.lightning.node() else {
        return;
    };
    for channel in kit.channels() {
        leave_one(&node, name_of(&channel), unrolling).await;
    }
}

async fn leave_one(node: &Node, leaf: LeafId, unrolling: bool) {
    let stands = node.leaf(leaf).is_some_and(|view| {
        matches!(view.stage, Stage::Funded | Stage::Open) && !view.exiting && view.spent.is_none()
    });
    let channels = node.channels();
    let channel = channels.iter().find(|channel| channel.leaf == Some(leaf));
    let Some(channel) = channel.filter(|_| stands) else {
        return;
    };
    let left = match is_worth_it(channel.spendable, channel.pending) {
        true => node.force_close(leaf).await,
        false if unrolling => node.close_worthless(leaf),
        false => return,
    };
    // The path is published whatever Lightning says; it is asked again at the next look.
    if let Err(error) = left {
        tracing::warn!(%error, "the channel is not closed yet");
    }
}

/// What the node says of a channel's money when no block is in between.
pub(super) async fn when_quiet(
    settled: impl Fn() -> Option<Settlement> + Send,
) -> Option<Settlement> {
    for _ in 0..LOOKS {
        if let Some(settlement) = settled() {
            return Some(settlement);
        }
        tokio::time::sleep(LOOK).await;
    }
    None
}

/// The same, once the node has taken in the block that we have; if that takes long, the exit is looked at again without waiting for a block.
async fn settlement_at(client: &Inner, node: &Arc<Node>, leaf: LeafId) -> Option<Settlement> {
    let mut found = None;
    for _ in 0..LOOKS {
        found = node.settlement(leaf).or(found);
        let current = |settlement: &Settlement| settlement.height >= client.followed_height();
        if found.as_ref().is_some_and(current) {
            return found;
        }
        tokio::time::sleep(LOOK).await;
    }
    client.wake_chain.notify_one();
    found
}

/// How far the end of this kit's channels is, given what the chain says.
pub(crate) async fn ending(client: &Inner, kit: &ExitKit, step: &Step) -> Result<Ending> {
    let mut all = Ending::Nothing;
    for channel in kit.channels() {
        let one = match spender(&channel, step) {
            Some(by) => spent(client, name_of(&channel), by).await?,
            None => unspent(client, kit, &channel, step),
        };
        all = all.and(one);
    }
    Ok(all)
}

/// What of Lightning's spent the channel.
fn spender(channel: &KitChannel, step: &Step) -> Option<Txid> {
    step.ends.iter().find_map(|end| match end {
        End::Lightning { outpoint, by, .. } if *outpoint == channel.outpoint => Some(*by),
        _ => None,
    })
}

fn unspent(client: &Inner, kit: &ExitKit, channel: &KitChannel, step: &Step) -> Ending {
    let waiting = step.waiting.iter().map(|waiting| waiting.index);
    let mut left = step.publish.iter().copied().chain(waiting);
    let at_channel = left.any(|index| {
        let tx = kit.txs.get(index);
        tx.is_some_and(|tx| tx.spends.outpoint == channel.outpoint)
    });
    let node = client.lightning.node();
    let view = node.and_then(|node| node.leaf(name_of(channel)));
    let leaves =
        view.is_some_and(|view| matches!(view.stage, Stage::Open | Stage::Closed) && view.exiting);
    match at_channel && leaves {
        true => Ending::Closing,
        false => Ending::Nothing,
    }
}

async fn spent(client: &Inner, leaf: LeafId, by: Txid) -> Result<Ending> {
    let Some(node) = client.lightning.node() else {
        let text = "the channel is closed; the Lightning node has to run to fetch what is ours";
        return Ok(Ending::Unknown(text.to_owned()));
    };
    if node.leaf(leaf).is_none() {
        // Its store is gone: there is nothing to fetch it with.
        return Ok(Ending::Done(None));
    }
    let settlement = settlement_at(client, &node, leaf).await;
    let Some(settlement) = settlement.filter(|settlement| settlement.spent_by == Some(by)) else {
        let text = "the channel is closed; the Lightning node has not seen it yet";
        return Ok(Ending::Unknown(text.to_owned()));
    };
    let feerate = client.chain.fee_rate(RELAXED_TARGET).await?;
    let cost = feerate.fee_vb(SWEEP_VBYTES).unwrap_or(Amount::MAX);
    Ok(judge(&settlement, cost))
}

fn judge(settlement: &Settlement, cost: Amount) -> Ending {
    let free = settlement.free.iter().any(|amount| *amount > cost);
    match free || !settlement.locked.is_empty() {
        true => Ending::OnItsWay,
        false => Ending::Done(settlement.swept_at.map(Height)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sat(amounts: &[u64]) -> Vec<Amount> {
        amounts.iter().copied().map(Amount::from_sat).collect()
    }

    fn judged(locked: &[u64], free: &[u64], swept_at: Option<u32>) -> Ending {
        let settlement = Settlement {
            height: 100,
            spent_by: None,
            locked: sat(locked),
            free: sat(free),
            swept_at,
        };
        judge(&settlement, Amount::from_sat(300))
    }

    #[test]
    fn nothing_is_paid_for_a_commitment_without_an_output_of_ours() {
        assert!(!is_worth_it(Msat(0), 0));
        assert!(!is_worth_it(Msat(LEAST_MSAT - 1), 0));
        assert!(is_worth_it(Msat(LEAST_MSAT), 0));
        assert!(is_worth_it(Msat(0), 1));
    }

    #[test]
    fn several_channels_are_over_when_the_last_is() {
        let done = |height: u32| Ending::Done(Some(Height(height)));
        let both = |one: &Ending, two: &Ending| {
            let (there, back) = (one.clone().and(two.clone()), two.clone().and(one.clone()));
            assert_eq!(there, back);
            there
        };
        let unknown = Ending::Unknown("why".to_owned());
        let way = Ending::OnItsWay;
        let ranks = [unknown, way, Ending::Closing, done(9), Ending::Nothing];
        for (at, one) in ranks.iter().enumerate() {
            for two in &ranks[at + 1..] {
                assert_eq!(both(one, two), *one);
            }
        }
        assert_eq!(both(&done(9), &done(7)), done(9));
        assert_eq!(both(&Ending::Done(None), &done(7)), done(7));
    }

    #[test]
    fn an_exit_is_over_when_all_is_in_the_wallet() {
        let way = Ending::OnItsWay;
        assert_eq!(judged(&[], &[], None), Ending::Done(None));
        assert_eq!(judged(&[50_000], &[], None), way);
        assert_eq!(judged(&[], &[50_000], None), way);
        // One output is there, another is still locked.
        assert_eq!(judged(&[7], &[], Some(90)), way);
        assert_eq!(judged(&[], &[], Some(90)), Ending::Done(Some(Height(90))));
        // What is not worth its fee is left.
        assert_eq!(judged(&[], &[300], None), Ending::Done(None));
    }
}
