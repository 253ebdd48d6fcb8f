//! Step 7 on our side: a channel for every member of an attempt, each tried until it stands, cannot, or the attempt is over.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use channel_host::{Leaf, LeafId, Node, NodeError, Stage};
use factory_tree::ceremony::message::Round;
use factory_tree::ids::ClientId;
use factory_tree::tree::Tree;
use tokio::task::AbortHandle;

use super::{Lightning, leaf_of};
use crate::ceremony::Mail;
use crate::context::Context;
use crate::keys::FreshSeed;

/// Between two looks at a client that is away.
const PAUSE: Duration = Duration::from_millis(150);
/// A handshake that breaks off so often will not succeed.
const MOST_TRIES: u32 = 3;

/// Opens the channels of one attempt; dropped, it opens no more.
#[derive(Debug)]
pub(crate) struct Opening {
    gate: Arc<Gate>,
    task: AbortHandle,
}

/// What is opened after its attempt is given up would stay.
#[derive(Debug)]
struct Gate(Mutex<bool>);

impl Gate {
    fn if_open<T>(&self, act: impl FnOnce() -> T) -> Option<T> {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.then(act)
    }

    fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        // Waits for a channel that is being opened right now, so that it is seen when the attempt's leaves are given up.
        self.gate.close();
        self.task.abort();
    }
}

/// A channel of the attempt: watched until the attempt is over, as one that stands may be closed again before the funding is signed.
#[derive(Debug)]
struct Pending {
    client: ClientId,
    peer: PublicKey,
    leaf: Leaf,
    tries: u32,
    /// It was told that it stands.
    stands: bool,
}

/// The leaves of an attempt, whose refusals are kept until it is over.
struct Watched<'a> {
    lightning: &'a Lightning,
    leaves: Vec<LeafId>,
}

impl<'a> Watched<'a> {
    fn new(lightning: &'a Lightning, leaves: Vec<LeafId>) -> Self {
        let mut refusals = lightning.refusals();
        for leaf in &leaves {
            let (attempts, told) = refusals.entry(*leaf).or_default();
            *attempts = attempts.saturating_add(1);
            *told = None;
        }
        drop(refusals);
        Self { lightning, leaves }
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        let mut refusals = self.lightning.refusals();
        for leaf in &self.leaves {
            if let Some((attempts @ 2.., _)) = refusals.get_mut(leaf) {
                *attempts = attempts.saturating_sub(1);
            } else {
                refusals.remove(leaf);
            }
        }
    }
}

/// What became of a channel.
type End = (ClientId, Result<(), String>);

impl Opening {
    /// Begins to open the channels of this attempt. Each end is mailed to the ceremony.
    pub(crate) fn start(
        ctx: &Arc<Context>,
        round: Round,
        tree: Arc<Tree>,
        fresh: FreshSeed,
    ) -> Self {
        let gate = Arc::new(Gate(Mutex::new(true)));
        let opened = open(Arc::clone(ctx), round, tree, fresh, Arc::clone(&gate));
        let task = tokio::spawn(opened).abort_handle();
        Self { gate, task }
    }
}

async fn open(ctx: Arc<Context>, round: Round, tree: Arc<Tree>, fresh: FreshSeed, gate: Arc<Gate>) {
    let mut news = ctx.lightning.news.subscribe();
    let mut pending = members(&tree, fresh);
    drop(tree);
    let leaves = pending.iter().map(|one| one.leaf.id);
    let _watched = Watched::new(&ctx.lightning, leaves.collect());
    while !pending.is_empty() {
        if let Some(node) = ctx.lightning.node() {
            let (at, gate) = (Arc::clone(&ctx), Arc::clone(&gate));
            let looked = tokio::task::spawn_blocking(move || {
                look_at_all(&node, &at.lightning, &gate, pending)
            });
            // Fails only when the runtime goes down.
            let Ok((rest, ends)) = looked.await else {
                return;
            };
            pending = rest;
            for (client, result) in ends {
                let mail = Mail::Channel {
                    round,
                    client,
                    result,
                };
                ctx.ceremonies.deliver(round.ceremony, mail).await;
            }
        }
        tokio::select! {
            _ = news.changed() => {}
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

fn members(tree: &Tree, fresh: FreshSeed) -> Vec<Pending> {
    (0u32..)
        .zip(&tree.spec().members)
        .filter_map(|(position, member)| {
            let (leaf, peer) = leaf_of(tree, position, fresh)?;
            Some(Pending {
                client: member.client,
                peer,
                leaf,
                tries: 0,
                stands: false,
            })
        })
        .collect()
}

fn look_at_all(
    node: &Node,
    lightning: &Lightning,
    gate: &Gate,
    pending: Vec<Pending>,
) -> (Vec<Pending>, Vec<End>) {
    let connected: std::collections::HashSet<PublicKey> = node.peers().into_iter().collect();
    let (mut rest, mut ends) = (Vec::new(), Vec::new());
    for mut one in pending {
        let why = |or: &str| {
            let told = lightning.take_refusal(one.leaf.id);
            told.unwrap_or_else(|| or.to_owned())
        };
        let stage = node.leaf(one.leaf.id).map(|view| view.stage);
        let end = match next(stage, connected.contains(&one.peer), one.tries) {
            Next::Wait => None,
            Next::Opened if one.stands => None,
            Next::Opened => {
                one.stands = true;
                lightning.take_refusal(one.leaf.id);
                ends.push((one.client, Ok(())));
                None
            }
            Next::Refused => Some(Err(why("the channel was closed"))),
            Next::Open => {
                one.tries = one.tries.saturating_add(1);
                let opened = gate.if_open(|| node.open_leaf(one.leaf.clone(), one.peer));
                match opened {
                    Some(Err(
                        error @ (NodeError::LeafUsed { .. } | NodeError::UnfitLeaf { .. }),
                    )) => Some(Err(error.to_string())),
                    Some(Err(error)) => {
                        lightning.refused(one.leaf.id, error.to_string());
                        None
                    }
                    Some(Ok(())) | None => None,
                }
            }
        };
        match end {
            None => rest.push(one),
            Some(result) => ends.push((one.client, result)),
        }
    }
    (rest, ends)
}

/// What to do about a channel.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Open it, again if need be.
    Open,
    /// Its handshake is under way, or its client away.
    Wait,
    /// It stands.
    Opened,
    /// It will never stand.
    Refused,
}

fn next(stage: Option<Stage>, connected: bool, tries: u32) -> Next {
    match stage {
        Some(Stage::Open) => Next::Opened,
        Some(Stage::Opening | Stage::Funded) => Next::Wait,
        Some(Stage::Closed | Stage::Abandoned) => Next::Refused,
        // A handshake that broke off leaves the leaf as it was.
        None | Some(Stage::Expected) if tries >= MOST_TRIES => Next::Refused,
        None | Some(Stage::Expected) if connected => Next::Open,
        None | Some(Stage::Expected) => Next::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_is_away_is_waited_for_and_one_that_refuses_is_not() {
        assert_eq!(next(None, false, 0), Next::Wait);
        assert_eq!(next(None, true, 0), Next::Open);
        assert_eq!(next(Some(Stage::Expected), true, 2), Next::Open);
        assert_eq!(next(Some(Stage::Expected), true, 3), Next::Refused);
        assert_eq!(next(Some(Stage::Expected), false, 2), Next::Wait);
    }

    #[test]
    fn only_a_channel_that_stands_is_told_as_opened() {
        assert_eq!(next(Some(Stage::Opening), true, 1), Next::Wait);
        assert_eq!(next(Some(Stage::Funded), true, 1), Next::Wait);
        assert_eq!(next(Some(Stage::Open), false, 1), Next::Opened);
        assert_eq!(next(Some(Stage::Closed), true, 1), Next::Refused);
        assert_eq!(next(Some(Stage::Abandoned), true, 1), Next::Refused);
    }

    #[test]
    fn an_attempt_that_ends_late_takes_nothing_from_the_next() {
        let (lightning, leaf) = (Lightning::default(), LeafId([7; 16]));
        let old = Watched::new(&lightning, vec![leaf]);
        let new = Watched::new(&lightning, vec![leaf]);
        drop(old);
        lightning.refused(leaf, "why".to_owned());
        assert_eq!(lightning.take_refusal(leaf).as_deref(), Some("why"));
        drop(new);
        assert!(lightning.refusals().is_empty());
    }

    #[test]
    fn nothing_is_opened_once_the_attempt_is_over() {
        let gate = Gate(Mutex::new(true));
        assert_eq!(gate.if_open(|| 1), Some(1));
        gate.close();
        assert_eq!(gate.if_open(|| 1), None);
    }
}
