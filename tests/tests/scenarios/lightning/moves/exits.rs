//! Parts that are not over when their time runs out.

use anyhow::{Context, Result};
use bitcoin::{Amount, Transaction};
use channel_host::{ExitReason, LeafId, MovePart, Msat, NodeEvent, PartState};
use scenarios::bitcoind::Bitcoind;

use super::harness::{Move, end, ending, moving, pending, state};
use crate::lightning::harness::{
    EXIT_DELAY, Member, child_in_mempool, fee_coins, holds, settled, spender, until,
};

const AMOUNT: Amount = Amount::from_sat(2_000);
const FEE: Msat = Msat(1_000);
/// More writes than it takes a client to have claimed a part.
const MANY: u32 = 26;
/// Blocks between the two expiries beyond the least.
const SLACK: u32 = 40;
/// LDK's claim buffer, and the block we act before it.
const BEFORE: u32 = EXIT_DELAY + 36 + 1;
/// Blocks after an expiry at which LDK closes a channel.
const GRACE: u32 = 3;

/// How far the coordinator is with a part when the client disappears.
#[derive(Clone, Copy, PartialEq)]
enum Far {
    /// Its payment is in the client's new channel, and the client has claimed it and not said so.
    PaidOn,
    /// It has the preimage, and its payment is still in the channel.
    Revealed,
}

async fn is_there(all: &mut Move, part: &MovePart, far: Far) -> Result<bool> {
    let paid_on = state(&all.lsp, part) == Some(PartState::PaidOn);
    if pending(&all.lsp, all.new.id) != 1 || paid_on != (far == Far::PaidOn) {
        return Ok(false);
    }
    if far == Far::Revealed {
        return Ok(true);
    }
    // Alone, the client claims what it has, if it has it for good.
    all.lsp.abort().await;
    all.client.launch().await?;
    settled(&all.client, all.new.id).await?;
    let claimed = state(&all.client, part) == Some(PartState::Revealed);
    all.client.abort().await;
    all.lsp.launch().await?;
    settled(&all.lsp, all.new.id).await?;
    Ok(claimed)
}

/// Moves a part with a client whose store fails at this write; returns it if it is where it is wanted then. The client is stopped.
async fn stall(all: &mut Move, writes: u32, far: Far) -> Result<Option<MovePart>> {
    all.client.abort().await;
    all.client.fail_after(Some(writes)).await?;
    let (mut part, mut failed) = (None, all.client.launch().await.is_err());
    until("the part's end, or the store's", || {
        while let Some(event) = all.client.heard() {
            failed |= matches!(event, NodeEvent::Stopped { .. });
            let over = |part| ending(&event, part).is_some();
            failed |= part.as_ref().is_some_and(over);
        }
        if failed {
            return Ok(true);
        }
        let channels = all.client.node().channels();
        let usable = channels.iter().filter(|channel| channel.usable).count() == 2;
        if part.is_none() && usable {
            part = all.terms(Msat(AMOUNT.to_sat() * 1_000), FEE).ok();
            if let Some(part) = &mut part {
                part.incoming_expiry += SLACK;
                // Refused if the store has failed meanwhile.
                failed = all.send(part).is_err();
            }
        }
        Ok(failed)
    })
    .await?;
    all.client.abort().await;
    all.client.fail_after(None).await?;
    until("the client's absence", || {
        Ok(all.lsp.node().peers().is_empty())
    })
    .await?;
    // What the client said last may still be under way inside.
    all.node.mine(1)?;
    settled(&all.lsp, all.new.id).await?;
    match part {
        Some(part) if is_there(all, &part, far).await? => Ok(Some(part)),
        _ => Ok(None),
    }
}

/// A part whose client disappears; paid on, as late as possible, or just revealed.
async fn stalled(far: Far) -> Result<(Move, MovePart)> {
    let mut all = moving().await?;
    for side in [&all.lsp, &all.client] {
        fee_coins(&all.node, side)?;
    }
    // How many writes it takes varies by a few.
    for step in (0..MANY).cycle().take(3 * MANY as usize) {
        let writes = match far {
            Far::PaidOn => MANY - step,
            Far::Revealed => step,
        };
        if let Some(part) = stall(&mut all, writes, far).await? {
            while all.lsp.heard().is_some() {}
            return Ok((all, part));
        }
        all.client.launch().await?;
        all.usable().await?;
        all.idle().await?;
    }
    anyhow::bail!("a part never stalls there")
}

/// Which leaves the coordinator is asked to bring to the chain, as far as it was told.
fn exits(side: &mut Member) -> Vec<(LeafId, ExitReason)> {
    let mut exits = Vec::new();
    while let Some(event) = side.heard() {
        if let NodeEvent::ExitNeeded { leaf, reason } = event {
            exits.push((leaf, reason));
        }
    }
    exits
}

/// Lets the coordinator take in blocks up to a height. Returns which leaves it was asked for.
async fn at(all: &mut Move, height: u32) -> Result<Vec<(LeafId, ExitReason)>> {
    all.node.mine_until(height)?;
    settled(&all.lsp, all.new.id).await?;
    Ok(exits(&mut all.lsp))
}

/// The new leaf goes to the chain in time for the old one to follow, and not before; the old one though the preimage is not known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unresolved_part_brings_both_leaves_to_the_chain_in_time() -> Result<()> {
    let (mut all, part) = stalled(Far::PaidOn).await?;
    let (old, new) = (all.old.id, all.new.id);
    let upstream = part.incoming_expiry - EXIT_DELAY - 36;
    let due = upstream - BEFORE;
    assert!(due > part.outgoing_expiry + GRACE);
    assert_eq!(at(&mut all, due - 1).await?, vec![]);
    let asked = at(&mut all, due).await?;
    assert_eq!(asked, vec![(new, ExitReason::Closed)]);
    // Nothing is published by whoever was asked: the other one is due, too.
    let expiry = part.incoming_expiry;
    assert_eq!(at(&mut all, expiry - BEFORE - 1).await?, vec![]);
    let reason = ExitReason::PartUnresolved { expiry };
    assert_eq!(at(&mut all, expiry - BEFORE).await?, vec![(old, reason)]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_comes_back_has_its_part() -> Result<()> {
    let (mut all, part) = stalled(Far::PaidOn).await?;
    all.lsp.crash().await?;
    all.client.launch().await?;
    assert_eq!(end(&mut all.lsp, &part).await?, Ok(()));
    assert_eq!(end(&mut all.client, &part).await?, Ok(()));
    all.idle().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unresolved_part_is_not_forgotten_by_a_crash() -> Result<()> {
    let (mut all, part) = stalled(Far::PaidOn).await?;
    let due = part.incoming_expiry - EXIT_DELAY - 36 - BEFORE;
    assert_eq!(at(&mut all, due - 1).await?, vec![]);
    all.lsp.abort().await;
    all.node.mine(1)?;
    all.lsp.launch().await?;
    all.lsp.synced().await?;
    let new = all.new.id;
    let asked = all
        .lsp
        .event(|event| match event {
            NodeEvent::ExitNeeded { leaf, .. } => Some(*leaf),
            _ => None,
        })
        .await?;
    assert_eq!(asked, new);
    Ok(())
}

/// The commitment that spends a leaf, mined.
async fn committed(all: &Move) -> Result<Transaction> {
    all.new.publish(&all.node)?;
    let commitment = child_in_mempool(&all.node, all.new.transaction.compute_txid()).await?;
    all.node.mine(1)?;
    Ok(commitment)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preimage_that_shows_on_the_chain_pays_for_the_part() -> Result<()> {
    let (mut all, part) = stalled(Far::PaidOn).await?;
    all.lsp.node().force_close(all.new.id).await?;
    let commitment = committed(&all).await?;
    all.client.launch().await?;
    child_in_mempool(&all.node, commitment.compute_txid()).await?;
    all.node.mine(8)?;
    assert_eq!(end(&mut all.lsp, &part).await?, Ok(()));
    assert_eq!(end(&mut all.client, &part).await?, Ok(()));
    until("an idle old channel", || {
        Ok(pending(&all.lsp, all.old.id) + pending(&all.client, all.old.id) == 0)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_times_out_on_the_chain_comes_back() -> Result<()> {
    let (mut all, part) = stalled(Far::PaidOn).await?;
    let before = all.lsp.node().leaf_balance(all.old.id)?.receivable;
    all.lsp.node().force_close(all.new.id).await?;
    let commitment = committed(&all).await?;
    all.node.mine_until(part.outgoing_expiry)?;
    child_in_mempool(&all.node, commitment.compute_txid()).await?;
    all.node.mine(8)?;
    assert!(end(&mut all.lsp, &part).await?.is_err());
    all.client.launch().await?;
    assert!(end(&mut all.client, &part).await?.is_err());
    until("an idle old channel", || {
        Ok(pending(&all.lsp, all.old.id) + pending(&all.client, all.old.id) == 0)
    })
    .await?;
    assert_eq!(all.balance(&all.old)?, Msat(before.0 + part.incoming.0));
    Ok(())
}

/// Which output of a commitment is the part's payment.
fn output(commitment: &Transaction) -> Result<usize> {
    let mut outputs = commitment.output.iter();
    let found = outputs.position(|output| output.value == AMOUNT);
    found.context("the part's output")
}

fn unspent(node: &Bitcoind, commitment: &Transaction) -> Result<bool> {
    let (txid, vout) = (commitment.compute_txid().to_string(), output(commitment)?);
    // With what is in the mempool.
    let found = node.rpc("gettxout", serde_json::json!([txid, vout, true]))?;
    Ok(!found.is_null())
}

/// It has been paid for it, so it neither closes the channel on the chain nor takes back what the client was paid.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_coordinator_never_times_out_what_the_client_revealed() -> Result<()> {
    let (mut all, part) = stalled(Far::Revealed).await?;
    let height = part.outgoing_expiry + GRACE + 2;
    assert_eq!(at(&mut all, height).await?, vec![]);
    let closed = all.lsp.node().leaf(all.new.id).map(|leaf| leaf.stage);
    assert_eq!(closed, Some(channel_host::Stage::Closed));

    // The client comes back late, publishes its commitment, and disappears again before it has claimed from it.
    all.lsp.abort().await;
    all.client.launch().await?;
    all.client.node().force_close(all.new.id).await?;
    all.new.publish(&all.node)?;
    let commitment = child_in_mempool(&all.node, all.new.transaction.compute_txid()).await?;
    all.client.abort().await;
    all.node.mine(1)?;
    all.lsp.launch().await?;
    for _ in 0..8 {
        all.lsp.synced().await?;
        assert!(unspent(&all.node, &commitment)?);
        all.node.mine(1)?;
    }
    assert!(spender(&all.node, commitment.compute_txid())?.is_none());

    let before = holds(&all.node, &all.client)?;
    all.client.launch().await?;
    until("the client's claim", || {
        Ok(!unspent(&all.node, &commitment)?)
    })
    .await?;
    // Both its balance and its claim wait for the delay of its own commitment.
    all.node.mine(150)?;
    until("the client's money", || {
        all.node.mine(1)?;
        Ok(holds(&all.node, &all.client)? > before)
    })
    .await
}
