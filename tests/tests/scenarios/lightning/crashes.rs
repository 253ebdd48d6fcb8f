//! Nodes whose store fails between any two writes.

use anyhow::{Context, Result};
use channel_host::{LeafId, Msat, NodeEvent, Stage};

use super::harness::{Member, Unborn, paid_pair, pair, pay_client, until};

const AMOUNT: u64 = 1_000_000;
/// More writes than a start and a payment take.
const MANY: u32 = 200;

#[derive(Clone, Copy)]
enum Victim {
    Lsp,
    Client,
}

/// What both sides can spend together: with no payment pending it never changes.
fn together(lsp: &Member, client: &Member, leaf: LeafId) -> Result<Msat> {
    let lsp = lsp.node().leaf_balance(leaf)?.spendable;
    let client = client.node().leaf_balance(leaf)?.spendable;
    Ok(Msat(lsp.0 + client.0))
}

fn idle(sides: [&Member; 2]) -> bool {
    let channels = sides.iter().flat_map(|side| side.node().channels());
    channels.map(|channel| channel.pending).sum::<usize>() == 0
}

fn usable(sides: [&Member; 2]) -> bool {
    let channels = sides.iter().flat_map(|side| side.node().channels());
    channels.filter(|channel| channel.usable).count() == 2
}

/// Starts the victim with a store that fails at a write, and pays. Returns whether it failed before the payment was over.
async fn fail(victim: Victim, writes: u32, sides: &mut [Member; 2]) -> Result<bool> {
    let failing = &mut sides[victim as usize];
    failing.abort().await;
    failing.fail_after(Some(writes)).await?;
    if failing.launch().await.is_err() {
        return Ok(true);
    }
    let (mut paying, mut over, mut failed) = (None, false, false);
    until("the payment's end, or the store's", || {
        while let Some(event) = sides[victim as usize].heard() {
            match event {
                NodeEvent::Stopped { .. } => failed = true,
                NodeEvent::PaymentSent { hash, .. } | NodeEvent::PaymentReceived { hash, .. } => {
                    over |= paying == Some(hash);
                }
                _ => {}
            }
        }
        let [lsp, client] = &*sides;
        if paying.is_none() && usable([lsp, client]) {
            // Refused if the store has failed meanwhile.
            let to = client.node().id();
            paying = lsp
                .node()
                .keysend(to, Msat(AMOUNT), Some(150), rand::random())
                .ok();
        }
        Ok(failed || over && idle([lsp, client]))
    })
    .await?;
    if failed {
        // It has stopped in order: it answers, and nobody hears from it.
        let node = sides[victim as usize].node();
        assert_eq!((node.peers(), node.channels().len()), (vec![], 1));
        assert!(node.disconnect(node.id()).is_err());
    }
    Ok(failed)
}

async fn survives(victim: Victim) -> Result<()> {
    let (bitcoind, lsp, client, leaf) = paid_pair().await?;
    let before = together(&lsp, &client, leaf.id)?;
    let mut sides = [lsp, client];
    for writes in 0..MANY {
        let failed = fail(victim, writes, &mut sides).await?;
        let failing = &mut sides[victim as usize];
        failing.abort().await;
        failing.fail_after(None).await?;
        failing.launch().await?;
        let [lsp, client] = &mut sides;
        lsp.usable(1).await?;
        client.usable(1).await?;
        until("an idle channel", || Ok(idle([lsp, client]))).await?;
        assert_eq!(together(lsp, client, leaf.id)?, before, "write {writes}");
        pay_client(lsp, client, AMOUNT).await?;
        if !failed {
            assert!(writes > 10, "{writes}");
            assert!(bitcoind.mempool()?.is_empty());
            return Ok(());
        }
    }
    anyhow::bail!("a payment takes more than {MANY} writes")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_coordinators_channel_survives_a_crash_between_any_two_writes() -> Result<()> {
    survives(Victim::Lsp).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wallets_channel_survives_a_crash_between_any_two_writes() -> Result<()> {
    survives(Victim::Client).await
}

/// What the coordinator is told of a leaf, as far as it has been told.
fn told(lsp: &mut Member, leaf: LeafId) -> Option<NodeEvent> {
    let mut last = None;
    while let Some(event) = lsp.heard() {
        match &event {
            NodeEvent::LeafOpened { leaf: which } | NodeEvent::LeafRefused { leaf: which, .. }
                if *which == leaf =>
            {
                last = Some(event);
            }
            _ => {}
        }
    }
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_every_handshake_is_told_though_the_coordinator_crashes() -> Result<()> {
    let (_bitcoind, mut lsp, client) = pair().await?;
    let peer = client.node().id();
    let mut refusals = 0;
    for writes in 0..MANY {
        let leaf = Unborn::new(&lsp, &client)?;
        client
            .node()
            .expect_leaf(leaf.client.clone(), lsp.node().id())?;
        lsp.synced().await?;
        client.synced().await?;
        lsp.abort().await;
        lsp.fail_after(Some(writes)).await?;
        let (mut opening, mut failed, mut known) = (false, false, None);
        if lsp.launch().await.is_ok() {
            until("the handshake's end, or the store's", || {
                if !opening && lsp.node().peers().contains(&peer) {
                    opening = lsp.node().open_leaf(leaf.lsp.clone(), peer).is_ok();
                    failed |= !opening;
                }
                known = known.take().or(told(&mut lsp, leaf.id));
                // Stopped, it lets nobody in and answers with its store's failure.
                failed |= lsp.node().disconnect(lsp.node().id()).is_err();
                Ok(failed || known.is_some())
            })
            .await?;
        }
        lsp.abort().await;
        known = told(&mut lsp, leaf.id).or(known);
        lsp.fail_after(None).await?;
        lsp.launch().await?;
        if opening {
            until("word of the leaf", || {
                known = known.take().or(told(&mut lsp, leaf.id));
                Ok(known.is_some())
            })
            .await
            .with_context(|| format!("write {writes}: {:?}", lsp.node().leaf(leaf.id)))?;
        }
        let stage = lsp.node().leaf(leaf.id).map(|leaf| leaf.stage);
        match known {
            Some(NodeEvent::LeafOpened { .. }) => assert_eq!(stage, Some(Stage::Open)),
            Some(_) => {
                refusals += 1;
                assert!(matches!(stage, Some(Stage::Expected | Stage::Abandoned)));
            }
            None => assert!(matches!(stage, None | Some(Stage::Expected)), "{stage:?}"),
        }
        if opening && !failed {
            assert!(refusals > 0);
            return Ok(());
        }
    }
    anyhow::bail!("a handshake takes more than {MANY} writes")
}
