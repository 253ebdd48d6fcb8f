//! Keeps the node's leaves as the database and the chain say. Derived anew each time, so it may run at any moment and any number of times: at
//! the node's start, after an attempt failed, after every step of the chain.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use bitcoin::{OutPoint, Txid};
use chain::ChainError;
use chain::wallet::WalletError;
use channel_host::{LeafId, LeafView, Node, Stage};
use factory_tree::factory::FactoryTx;
use factory_tree::ids::FactoryId;

use crate::context::Context;
use crate::store::attempts::AttemptState;
use crate::store::leaves::{self, LeafRow};
use crate::store::{StoreError, outputs};
use crate::trees::{KnownTree, TreesError};

/// Blocks on a spend after which nobody expects it to leave the chain any more: what it ended is forgotten.
pub(super) const FINAL: u32 = 100;

/// Why a look was not finished.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReconcileError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A factory.
    #[error(transparent)]
    Trees(#[from] TreesError),
    /// The wallet.
    #[error(transparent)]
    Wallet(#[from] WalletError),
    /// The Bitcoin node.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The runtime is going down.
    #[error("the coordinator is shutting down")]
    Stopped,
}

/// What the chain did to the way to a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is there, as far as it is not published yet.
    Whole,
    /// An output of it was spent by something else: the leaf cannot come any more.
    Cut {
        /// When.
        height: u32,
    },
}

/// What a leaf's node is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// The factory stands, or not (any more).
    Gate { confirmed: bool },
    /// There will be no such leaf.
    Abandon,
    /// What it could be punished for is worth nothing any more.
    Forget,
    /// Its client has left: nothing goes over it any more, but what could be punished still is.
    Retire,
}

/// What there is to do about a leaf at this height.
pub(super) fn actions(
    view: &LeafView,
    row: Option<&LeafRow>,
    fate: Fate,
    height: u32,
) -> Vec<Action> {
    let gate = |confirmed: bool| {
        let changes = view.factory_confirmed != confirmed;
        changes.then_some(Action::Gate { confirmed })
    };
    let gone = || match view.stage {
        Stage::Abandoned => Action::Forget,
        _ => Action::Abandon,
    };
    let Some(row) = row else {
        // Of another database than ours: nothing is known of its factory, so nothing is paid over it, and nothing thrown away.
        return gate(false).into_iter().collect();
    };
    if row.state == AttemptState::Failed {
        // Its funding is never signed.
        return gate(false).into_iter().chain([gone()]).collect();
    }
    if let Fate::Cut { height: at } = fate {
        let buried = height >= at.saturating_add(FINAL);
        return gate(false).into_iter().chain(buried.then(gone)).collect();
    }
    if row.handed_over {
        let retire = (view.stage == Stage::Open).then_some(Action::Retire);
        return gate(false).into_iter().chain(retire).collect();
    }
    let stands = row.state == AttemptState::FundingSigned && row.usable;
    gate(stands).into_iter().collect()
}

/// Follows a path down the chain: `spent` says what spent an output, and when.
pub(super) fn fate(path: &[&FactoryTx], spent: &HashMap<OutPoint, (Txid, u32)>) -> Fate {
    for step in path {
        match spent.get(&step.spends.outpoint) {
            None => return Fate::Whole,
            Some((by, _)) if *by == step.txid => {}
            Some((_, height)) => return Fate::Cut { height: *height },
        }
    }
    Fate::Whole
}

/// What spent the outputs of a factory.
pub(super) async fn spends_of(
    ctx: &Context,
    factory: FactoryId,
) -> Result<HashMap<OutPoint, (Txid, u32)>, StoreError> {
    let rows = ctx
        .store
        .read(async |tx| outputs::of_factory(tx, factory).await)
        .await?;
    let spent = rows
        .into_iter()
        .filter_map(|row| Some((row.outpoint, (row.spent_by?, row.spent_height?))));
    Ok(spent.collect())
}

struct Unrolling {
    tree: Arc<KnownTree>,
    spent: HashMap<OutPoint, (Txid, u32)>,
}

/// One look at all leaves.
pub(super) async fn run(ctx: &Context) -> Result<(), ReconcileError> {
    let Some(node) = ctx.lightning.node() else {
        return Ok(());
    };
    let views = node.leaves();
    if views.is_empty() {
        return Ok(());
    }
    let rows = ctx.store.read(async |tx| leaves::all(tx).await).await?;
    let rows: HashMap<LeafId, LeafRow> = rows
        .into_iter()
        .map(|row| (LeafId(row.leaf.0), row))
        .collect();
    let mut unrolling: HashMap<FactoryId, Unrolling> = HashMap::new();
    let mut plans = Vec::new();
    for view in views {
        let row = rows.get(&view.id);
        let mut fate_of = Fate::Whole;
        // A tree is built only for what is on the chain.
        if let Some(row) = row.filter(|row| row.unrolls && row.state != AttemptState::Failed) {
            let known = match unrolling.entry(row.factory) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(Unrolling {
                    tree: ctx.trees.get(&ctx.store, row.factory).await?,
                    spent: spends_of(ctx, row.factory).await?,
                }),
            };
            // A sale that is stored is in the tree.
            let path = known.tree.path(row.position, row.sale).unwrap_or_default();
            fate_of = fate(&path, &known.spent);
        }
        let planned = actions(&view, row, fate_of, ctx.height());
        let fresh = planned
            .into_iter()
            .filter(|action| *action != Action::Forget || !is_forgotten(ctx, view.id));
        plans.extend(fresh.map(|action| (view.id, action)));
    }
    if plans.is_empty() {
        return Ok(());
    }
    act(ctx, node, plans).await
}

fn is_forgotten(ctx: &Context, leaf: LeafId) -> bool {
    ctx.lightning.forgotten().contains(&leaf)
}

async fn act(
    ctx: &Context,
    node: Arc<Node>,
    plans: Vec<(LeafId, Action)>,
) -> Result<(), ReconcileError> {
    // Each is a write of the node's, which waits for the disk.
    let done = tokio::task::spawn_blocking(move || {
        let mut forgotten = Vec::new();
        for (leaf, action) in plans {
            let result = match action {
                Action::Gate { confirmed } => node.set_factory_confirmed(leaf, confirmed),
                Action::Abandon => node.abandon_leaf(leaf),
                Action::Forget => node.forget_leaf(leaf),
                Action::Retire => node.retire_leaf(leaf),
            };
            if result.is_ok() && action == Action::Forget {
                forgotten.push(leaf);
            }
            if let Err(error) = result {
                tracing::warn!(%error, ?action, "a leaf is looked at again later");
            }
        }
        forgotten
    });
    let forgotten = done.await.map_err(|_| ReconcileError::Stopped)?;
    ctx.lightning.forgotten().extend(forgotten);
    // Who opens channels may have waited for a leaf that was given up.
    super::count(&ctx.lightning.news);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use channel_host::Side;
    use factory_tree::ceremony::message::Round;
    use factory_tree::ids::{Attempt, CeremonyId, ClientId};

    fn view(stage: Stage) -> LeafView {
        LeafView {
            id: LeafId([1; 16]),
            peer: factory_tree::testing::public(&factory_tree::testing::secret(1, "peer", 1)),
            side: Side::Lsp,
            outpoint: OutPoint::null(),
            capacity: bitcoin::Amount::from_sat(1),
            stage,
            factory_confirmed: false,
            exiting: false,
            confirmed_at: None,
            spent: None,
        }
    }

    fn row(state: AttemptState, usable: bool) -> LeafRow {
        LeafRow {
            leaf: factory_tree::ids::LeafId([1; 16]),
            client: ClientId([2; 33]),
            sale: None,
            factory: FactoryId([3; 32]),
            position: 0,
            round: Round {
                ceremony: CeremonyId([4; 16]),
                attempt: Attempt(1),
            },
            state,
            usable,
            unrolls: false,
            handed_over: false,
        }
    }

    fn of(view: &LeafView, row: &LeafRow, fate: Fate, height: u32) -> Vec<Action> {
        actions(view, Some(row), fate, height)
    }

    #[test]
    fn only_what_is_deep_enough_is_paid_over_and_a_reorg_takes_it_back() {
        let mut leaf = view(Stage::Open);
        let (deep, shallow) = (
            row(AttemptState::FundingSigned, true),
            row(AttemptState::FundingSigned, false),
        );
        let gate = |confirmed| vec![Action::Gate { confirmed }];
        assert_eq!(of(&leaf, &shallow, Fate::Whole, 10), []);
        assert_eq!(of(&leaf, &deep, Fate::Whole, 10), gate(true));
        leaf.factory_confirmed = true;
        assert_eq!(of(&leaf, &deep, Fate::Whole, 10), []);
        assert_eq!(of(&leaf, &shallow, Fate::Whole, 10), gate(false));
        for state in [AttemptState::Completed, AttemptState::Ready] {
            assert_eq!(of(&leaf, &row(state, true), Fate::Whole, 10), gate(false));
        }
        assert_eq!(actions(&leaf, None, Fate::Whole, 10), gate(false));
    }

    #[test]
    fn no_channel_of_a_failed_attempt_is_left() {
        let failed = row(AttemptState::Failed, false);
        for stage in [Stage::Expected, Stage::Opening, Stage::Funded, Stage::Open] {
            assert_eq!(
                of(&view(stage), &failed, Fate::Whole, 10),
                [Action::Abandon]
            );
        }
        let abandoned = view(Stage::Abandoned);
        assert_eq!(of(&abandoned, &failed, Fate::Whole, 10), [Action::Forget]);
        let running = row(AttemptState::Completed, false);
        assert_eq!(of(&view(Stage::Opening), &running, Fate::Whole, 10), []);
    }

    #[test]
    fn what_can_punish_an_old_state_is_kept_until_nothing_can_be_undone() {
        let row = row(AttemptState::FundingSigned, true);
        let cut = Fate::Cut { height: 50 };
        let mut leaf = view(Stage::Open);
        leaf.factory_confirmed = true;
        assert_eq!(
            of(&leaf, &row, cut, 50),
            [Action::Gate { confirmed: false }]
        );
        leaf.factory_confirmed = false;
        assert_eq!(of(&leaf, &row, cut, 50 + FINAL - 1), []);
        assert_eq!(of(&leaf, &row, cut, 50 + FINAL), [Action::Abandon]);
        leaf.stage = Stage::Abandoned;
        assert_eq!(of(&leaf, &row, cut, 50 + FINAL), [Action::Forget]);
        leaf.stage = Stage::Closed;
        assert_eq!(
            of(&leaf, &row, Fate::Whole, 5_000),
            [Action::Gate { confirmed: true }]
        );
    }

    #[test]
    fn what_was_handed_over_is_retired_once_and_can_still_punish() {
        let row = LeafRow {
            handed_over: true,
            ..row(AttemptState::FundingSigned, true)
        };
        let mut leaf = view(Stage::Open);
        leaf.factory_confirmed = true;
        let both = [Action::Gate { confirmed: false }, Action::Retire];
        assert_eq!(of(&leaf, &row, Fate::Whole, 10), both);
        leaf.factory_confirmed = false;
        leaf.stage = Stage::Closed;
        assert_eq!(of(&leaf, &row, Fate::Whole, 10), []);
        let cut = Fate::Cut { height: 50 };
        assert_eq!(of(&leaf, &row, cut, 50 + FINAL - 1), []);
        assert_eq!(of(&leaf, &row, cut, 50 + FINAL), [Action::Abandon]);
    }
}
