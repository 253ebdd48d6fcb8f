//! Keeps the node's leaves as the store and the chain say. Derived anew each time, so it may run at any moment and any number of times: at the
//! node's start, after an attempt failed, after every step of the chain.

use std::sync::Arc;

use channel_host::{LeafView, Node, NodeError, Stage};
use factory_tree::ids::FactoryId;
use factory_tree::units::Height;

use super::leaf::cut;
use super::{lock, name_of, on_node};
use crate::client::Inner;
use crate::error::Result;
use crate::store::{FactoryRow, Goal};

/// Blocks on a spend after which nobody expects it to leave the chain any more: what it ended is forgotten.
const FINAL: u32 = 100;

/// What a leaf's node is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// The factory stands, or not (any more).
    Gate { confirmed: bool },
    /// There will be no such leaf.
    Abandon,
    /// Its keys were handed over.
    Retire,
    /// What it could be punished for is worth nothing any more.
    Forget,
}

/// What there is to do about a leaf. `cut`: when something else took an output on its path; `empty`: nothing in its channel is ours, or
/// pending.
fn actions(
    view: &LeafView,
    row: &FactoryRow,
    cut: Option<Height>,
    empty: bool,
    tip: Height,
) -> Vec<Action> {
    let stands = row.stands() && cut.is_none();
    let gate = (view.factory_confirmed != stands).then_some(Action::Gate { confirmed: stands });
    let gone = match view.stage {
        Stage::Abandoned => Action::Forget,
        _ => Action::Abandon,
    };
    let buried = cut.is_some_and(|at| tip.since(at).0 >= FINAL && tip > at);
    let ended = buried || row.abandoned.is_some();
    // The coordinator's word alone ends nothing that holds money of ours, nor what the chain knows of.
    let failed = row.failed && row.confirmed.is_none() && empty && view.stage != Stage::Abandoned;
    let end = match ended || failed {
        true => Some(gone),
        false => (row.is_handed_over() && view.stage != Stage::Abandoned).then_some(Action::Retire),
    };
    gate.into_iter().chain(end).collect()
}

/// Whether a leaf's channel has nothing of ours in it, and nothing pending; of one that is closed its monitor tells.
fn is_empty(node: &Node, view: &LeafView) -> bool {
    let channels = node.channels();
    let channel = channels
        .iter()
        .find(|channel| channel.leaf == Some(view.id));
    match channel {
        Some(channel) => channel.spendable.0 == 0 && channel.pending == 0,
        None if view.stage == Stage::Closed => {
            let settlement = node.settlement(view.id);
            settlement.is_some_and(|left| left.locked.is_empty() && left.free.is_empty())
        }
        None => view.stage != Stage::Open,
    }
}

/// Opens or shuts the gate of one factory's channels.
pub(crate) async fn gate(client: &Inner, factory: FactoryId, confirmed: bool) -> Result<()> {
    let (Some(node), Some(kit)) = (client.lightning.node(), client.kits.sound(factory).await?)
    else {
        // Done when the node comes.
        return Ok(());
    };
    for channel in kit.channels() {
        let id = name_of(&channel);
        let told = on_node(Arc::clone(&node), move |node| match node.leaf(id) {
            Some(_) => node.set_factory_confirmed(id, confirmed),
            None => Ok(()),
        });
        log(told.await?);
    }
    Ok(())
}

/// Brings every leaf in line.
///
/// # Errors
/// The store's.
pub(crate) async fn reconcile(client: &Inner) -> Result<()> {
    let Some(node) = client.lightning.node() else {
        return Ok(());
    };
    let rows = client.store.factories().await?;
    if rows.is_empty() {
        return Ok(());
    }
    let tip = Height(client.tip_height().await?);
    let chain = crate::exit::view(&client.store, tip).await?;
    for row in &rows {
        let Some(kit) = client.kits.sound(row.factory).await? else {
            continue;
        };
        for channel in kit.channels() {
            let Some(view) = node.leaf(name_of(&channel)) else {
                continue;
            };
            let cut = cut(&kit, &channel, &chain).map(|spender| spender.height);
            // What poisons paid for is not fetched a second time.
            if cut.is_none() || channel.sale.is_none() {
                wish_exit(client, row, &view).await?;
            }
            let empty = is_empty(&node, &view);
            for action in actions(&view, row, cut, empty, tip) {
                act(client, &node, &view, action).await?;
            }
        }
    }
    Ok(())
}

async fn act(client: &Inner, node: &Arc<Node>, view: &LeafView, action: Action) -> Result<()> {
    let id = view.id;
    if action == Action::Forget && lock(&client.lightning.forgotten).contains(&id) {
        return Ok(());
    }
    let done = on_node(Arc::clone(node), move |node| match action {
        Action::Gate { confirmed } => node.set_factory_confirmed(id, confirmed),
        Action::Abandon => node.abandon_leaf(id),
        Action::Retire => node.retire_leaf(id),
        Action::Forget => node.forget_leaf(id),
    });
    match done.await? {
        Ok(()) if action == Action::Forget => {
            lock(&client.lightning.forgotten).insert(id);
        }
        done => log(done),
    }
    Ok(())
}

/// What is not done now is done at the next look.
fn log(done: std::result::Result<(), NodeError>) {
    match done {
        Ok(()) => {}
        Err(error @ NodeError::NotOver { .. }) => tracing::debug!(%error, "not yet"),
        Err(error) => tracing::warn!(%error, "a leaf is not as it should be"),
    }
}

/// The node wants a leaf on the chain: its path has to be published.
async fn wish_exit(client: &Inner, row: &FactoryRow, view: &LeafView) -> Result<()> {
    if !view.exiting || !row.is_live() || row.is_given_away() || view.spent.is_some() {
        return Ok(());
    }
    let exits = client.store.exits().await?;
    let known = exits.iter().find(|exit| exit.factory == row.factory);
    if known.is_some_and(|exit| exit.goal == Goal::Leave) {
        return Ok(());
    }
    crate::exit::begin(client, row, Goal::Leave).await?;
    client.wake_chain.notify_one();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::hashes::Hash;
    use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey};
    use bitcoin::{Amount, OutPoint, Txid};
    use channel_host::{LeafId, Side};
    use factory_tree::ceremony::message::Round;
    use factory_tree::ids::{Attempt, CeremonyId};

    use crate::store::Handover;

    const TIP: Height = Height(1_000);

    fn row() -> FactoryRow {
        let outpoint = OutPoint::new(Txid::all_zeros(), 0);
        FactoryRow {
            factory: FactoryId([1; 32]),
            round: Round {
                ceremony: CeremonyId([1; 16]),
                attempt: Attempt(1),
            },
            join_nonce: [1; 16],
            funding: outpoint,
            common_pin: outpoint,
            capacity: Amount::from_sat(1),
            birth: Height(1),
            expiry: Height(5_000),
            confirmations: 1,
            acked: true,
            failed: false,
            confirmed: None,
            usable: false,
            abandoned: None,
            closed: None,
            fee: Amount::ZERO,
            handover: None,
        }
    }

    fn usable() -> FactoryRow {
        FactoryRow {
            confirmed: Some(Height(900)),
            usable: true,
            ..row()
        }
    }

    fn open(factory_confirmed: bool) -> LeafView {
        let secret = SecretKey::from_slice(&[1; 32]).unwrap();
        LeafView {
            id: LeafId([1; 16]),
            peer: PublicKey::from_secret_key(&Secp256k1::new(), &secret),
            side: Side::Client,
            outpoint: OutPoint::new(Txid::all_zeros(), 0),
            capacity: Amount::from_sat(1),
            stage: Stage::Open,
            factory_confirmed,
            exiting: false,
            confirmed_at: None,
            spent: None,
        }
    }

    #[test]
    fn the_gate_follows_the_factory() {
        let done = |view, row: &FactoryRow, cut| actions(&view, row, cut, true, TIP);
        assert_eq!(done(open(false), &row(), None), []);
        assert_eq!(
            done(open(false), &usable(), None),
            [Action::Gate { confirmed: true }]
        );
        assert_eq!(done(open(true), &usable(), None), []);
        // A reorg took the funding.
        let shut = [Action::Gate { confirmed: false }];
        assert_eq!(done(open(true), &row(), None), shut);
        // Somebody took the root: the leaf can never come, and nothing may be received over it.
        assert_eq!(done(open(true), &usable(), Some(TIP)), shut);
    }

    #[test]
    fn what_is_handed_over_is_shut_and_retired() {
        let given = |handover| FactoryRow {
            handover: Some(handover),
            ..usable()
        };
        let done = |view, row: &FactoryRow, cut| actions(&view, row, cut, true, TIP);
        let shut = Action::Gate { confirmed: false };
        for step in [Handover::Begun, Handover::Sent] {
            assert_eq!(done(open(true), &given(step), None), [shut]);
            assert_eq!(done(open(false), &given(step), None), []);
        }
        let taken = given(Handover::Taken(TIP));
        assert_eq!(done(open(true), &taken, None), [shut, Action::Retire]);
        let retired = LeafView {
            stage: Stage::Abandoned,
            ..open(false)
        };
        assert_eq!(done(retired.clone(), &taken, None), []);
        // Until its root is spent elsewhere, and buried.
        let at = |blocks: u32| Some(Height(TIP.0 - blocks));
        assert_eq!(done(retired.clone(), &taken, at(FINAL - 1)), []);
        assert_eq!(done(retired, &taken, at(FINAL)), [Action::Forget]);
    }

    #[test]
    fn a_failed_attempt_leaves_no_channel() {
        let failed = FactoryRow {
            failed: true,
            ..row()
        };
        let ends = |view, row: &FactoryRow, empty| actions(&view, row, None, empty, TIP);
        assert_eq!(ends(open(false), &failed, true), [Action::Abandon]);
        let given_up = LeafView {
            stage: Stage::Abandoned,
            ..open(false)
        };
        assert_eq!(ends(given_up.clone(), &failed, true), []);
        // The word of a coordinator takes no channel that holds money, or that the chain knows of.
        assert_eq!(ends(open(false), &failed, false), []);
        let confirmed = FactoryRow {
            failed: true,
            ..usable()
        };
        assert_eq!(ends(open(true), &confirmed, true), []);
        // Only what can never confirm is forgotten.
        let abandoned = FactoryRow {
            abandoned: Some(TIP),
            ..failed
        };
        assert_eq!(ends(given_up, &abandoned, true), [Action::Forget]);
    }

    #[test]
    fn the_means_to_punish_outlast_every_reorg() {
        let at = |blocks: u32| Some(Height(TIP.0 - blocks));
        let done = |cut| actions(&open(false), &usable(), cut, true, TIP);
        assert_eq!(done(at(FINAL - 1)), []);
        assert_eq!(done(at(FINAL)), [Action::Abandon]);
    }
}
