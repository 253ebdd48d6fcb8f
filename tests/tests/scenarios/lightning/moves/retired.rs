//! Old leaves once their keys were handed over.

use anyhow::Result;
use channel_host::{Msat, NodeError, NodeEvent, SpendKind, Stage};

use super::harness::{BALANCE, Move, moving};
use crate::chain::support::sat;
use crate::lightning::harness::{
    CAPACITY, Member, child_in_mempool, fee_coins, holds, outside, spent_by, until,
};

/// Moves everything.
async fn empty(all: &mut Move) -> Result<()> {
    all.move_part(BALANCE, Msat(0)).await?;
    all.idle().await
}

/// Both sides retire the old leaf, the coordinator first.
async fn retire(all: &Move) -> Result<()> {
    for side in [&all.lsp, &all.client] {
        side.node().retire_leaf(all.old.id)?;
        // The same again changes nothing.
        side.node().retire_leaf(all.old.id)?;
        // The client is told, and has no reason to exit, before it retires its own.
        until("one channel each", || {
            let sides = [&all.lsp, &all.client];
            Ok(sides.iter().all(|side| side.node().channels().len() == 1))
        })
        .await?;
    }
    Ok(())
}

fn no_exit(side: &mut Member) {
    while let Some(event) = side.heard() {
        assert!(!matches!(event, NodeEvent::ExitNeeded { .. }), "{event:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_after_a_move_arrives_in_the_new_leaf() -> Result<()> {
    let mut all = moving().await?;
    empty(&mut all).await?;
    retire(&all).await?;
    let mut world = outside(&mut all.lsp).await?;
    for member in [&all.lsp, &all.client, &world] {
        member.synced().await?;
    }
    for crashes in [false, true] {
        if crashes {
            all.lsp.crash().await?;
            all.client.crash().await?;
            all.lsp.usable(2).await?;
            all.client.usable(1).await?;
            world.usable(1).await?;
        }
        let before = all.balance(&all.new)?;
        let invoice = all.client.invoice(&all.lsp, 10_000_000)?;
        world.node().pay(&invoice, None)?;
        world.sent().await?;
        all.idle().await?;
        assert_eq!(all.balance(&all.new)?, Msat(before.0 + 10_000_000));
    }
    for side in [&mut all.lsp, &mut all.client] {
        no_exit(side);
        let old = side.node().leaf(all.old.id);
        let old = old.map(|leaf| (leaf.stage, leaf.exiting));
        assert_eq!(old, Some((Stage::Abandoned, false)));
        assert!(side.node().force_close(all.old.id).await.is_err());
    }
    assert!(all.node.mempool()?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leaf_with_a_balance_is_not_retired() -> Result<()> {
    let mut all = moving().await?;
    let left = Msat(BALANCE.0 - 1_000_000);
    all.move_part(left, Msat(0)).await?;
    let answer = all.client.node().retire_leaf(all.old.id);
    assert!(
        matches!(answer, Err(NodeError::NotOver { .. })),
        "{answer:?}"
    );
    // It is as good as ever.
    all.move_part(Msat(1_000_000), Msat(0)).await?;
    all.idle().await?;
    retire(&all).await
}

/// Even if the path is published: what is there belongs to whoever got the keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_publishes_a_retired_leafs_commitment() -> Result<()> {
    let mut all = moving().await?;
    for side in [&all.lsp, &all.client] {
        fee_coins(&all.node, side)?;
    }
    empty(&mut all).await?;
    retire(&all).await?;
    all.old.publish(&all.node)?;
    for _ in 0..8 {
        for side in [&all.lsp, &all.client] {
            side.synced().await?;
        }
        assert!(all.node.mempool()?.is_empty());
        all.node.mine(1)?;
    }
    all.lsp.crash().await?;
    all.node.mine(1)?;
    all.lsp.synced().await?;
    assert!(all.node.mempool()?.is_empty());
    no_exit(&mut all.lsp);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_state_of_a_retired_leaf_is_punished() -> Result<()> {
    let mut all = moving().await?;
    fee_coins(&all.node, &all.client)?;
    all.client.abort().await;
    let old = all.client.disk()?;
    all.client.launch().await?;
    all.usable().await?;
    empty(&mut all).await?;
    retire(&all).await?;
    all.client.abort().await;
    all.lsp.abort().await;
    drop(all.client.exchange_disk(old));

    all.client.launch().await?;
    all.client.node().force_close(all.old.id).await?;
    all.old.publish(&all.node)?;
    child_in_mempool(&all.node, all.old.transaction.compute_txid()).await?;
    all.node.mine(1)?;
    assert_eq!(spent_by(&mut all.client).await?, SpendKind::Commitment);
    all.client.abort().await;

    let before = holds(&all.node, &all.lsp)?;
    all.lsp.launch().await?;
    until("the whole channel", || {
        all.node.mine(1)?;
        Ok(holds(&all.node, &all.lsp)? > before + CAPACITY - sat(20_000))
    })
    .await
}
