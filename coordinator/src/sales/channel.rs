//! The channel of a sale: a leaf like any other, opened before anybody signs.

use bitcoin::secp256k1::PublicKey;
use channel_host::{Leaf, LeafId, NodeError, Stage};

use super::stocks::KnownStock;
use crate::context::Context;

/// What became of a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// It stands.
    Stands,
    /// It is being opened, or its client is away.
    Waits,
    /// It will never stand.
    Never(String),
}

/// Why a channel will not stand.
pub(super) const OVER: &str = "its channel was closed before it stood";

/// Whether a stock is bound to terms that will never be complete: a channel of theirs ended before it stood.
pub(super) fn is_stuck(ctx: &Context, known: &KnownStock) -> bool {
    let bound = known.bound().into_iter();
    let mut channels = bound.flat_map(|sale| std::iter::once(&sale.bought).chain(&sale.bonus));
    channels.any(|channel| ctx.lightning.is_over(LeafId(channel.leaf_id.0)))
}

/// There will be no such leaf.
pub(super) async fn abandon(ctx: &Context, leaf: LeafId) {
    let Some(node) = ctx.lightning.node() else {
        return;
    };
    let done = tokio::task::spawn_blocking(move || match node.leaf(leaf) {
        Some(_) => node.abandon_leaf(leaf),
        None => Ok(()),
    });
    if let Ok(Err(error)) = done.await {
        tracing::warn!(%error, "a channel that nothing comes of stays");
    }
}

/// Looks at the channels, and opens those (again) that can be: all stand, or what keeps them from it.
pub(super) async fn look_at_all(ctx: &Context, leaves: &[(Leaf, PublicKey)]) -> Look {
    let mut all = Look::Stands;
    for (leaf, peer) in leaves {
        match look(ctx, leaf, *peer).await {
            Look::Stands => {}
            Look::Waits => all = Look::Waits,
            never @ Look::Never(_) => return never,
        }
    }
    all
}

/// Looks at a channel, and opens it (again) if it can be.
pub(super) async fn look(ctx: &Context, leaf: &Leaf, peer: PublicKey) -> Look {
    if ctx.lightning.stands(leaf.id) {
        return Look::Stands;
    }
    let Some(node) = ctx.lightning.node() else {
        return Look::Waits;
    };
    let stage = node.leaf(leaf.id).map(|view| view.stage);
    match next(stage, node.peers().contains(&peer)) {
        Next::Wait => Look::Waits,
        Next::Refused => Look::Never(OVER.to_owned()),
        Next::Open => {
            let leaf = leaf.clone();
            let opened = tokio::task::spawn_blocking(move || node.open_leaf(leaf, peer)).await;
            match opened {
                Ok(Err(error @ (NodeError::LeafUsed { .. } | NodeError::UnfitLeaf { .. }))) => {
                    Look::Never(error.to_string())
                }
                Ok(Err(error)) => {
                    tracing::info!(%error, "the channel of a sale is tried again");
                    Look::Waits
                }
                Ok(Ok(())) | Err(_) => Look::Waits,
            }
        }
    }
}

/// What to do about a channel.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Open,
    Wait,
    Refused,
}

fn next(stage: Option<Stage>, connected: bool) -> Next {
    match stage {
        // Open in our book and not in Lightning's: it is closing, or was.
        Some(Stage::Closed | Stage::Abandoned | Stage::Open) => Next::Refused,
        Some(Stage::Opening | Stage::Funded) => Next::Wait,
        // A handshake that broke off leaves the leaf as it was.
        None | Some(Stage::Expected) if connected => Next::Open,
        None | Some(Stage::Expected) => Next::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buyer_who_is_away_is_waited_for_and_a_channel_that_ended_is_not() {
        assert_eq!(next(None, false), Next::Wait);
        assert_eq!(next(None, true), Next::Open);
        assert_eq!(next(Some(Stage::Expected), true), Next::Open);
        for stage in [Stage::Opening, Stage::Funded] {
            assert_eq!(next(Some(stage), true), Next::Wait);
        }
        for stage in [Stage::Closed, Stage::Abandoned] {
            assert_eq!(next(Some(stage), true), Next::Refused);
        }
    }
}
