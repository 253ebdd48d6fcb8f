//! Channels on leaves that are not on the chain: they stand, pay, and survive.

use anyhow::Result;
use channel_host::{ClaimRefusal, Msat, NodeError, NodeEvent, Stage};

use super::harness::{CAPACITY, Unborn, paid_pair, pair, pay_client, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_on_an_unborn_leaf_pays_both_ways_and_survives_restarts() -> Result<()> {
    let (bitcoind, mut lsp, mut client, leaf) = paid_pair().await?;
    let view = client.node().channels().remove(0);
    assert_eq!(view.capacity, CAPACITY);
    // No reserve is asked of the client, one of the coordinator: the pair of LDK's two ways to open that asks so.
    assert_eq!(view.our_reserve, Some(0));
    assert!(view.their_reserve >= 1_000, "{view:?}");

    let invoice = lsp.plain_invoice(50_000_000)?;
    client.node().pay(&invoice, None)?;
    assert_eq!(lsp.paid().await?, Msat(50_000_000));
    client.sent().await?;

    client.crash().await?;
    client.usable(1).await?;
    lsp.usable(1).await?;
    pay_client(&mut lsp, &mut client, 10_000_000).await?;

    lsp.crash().await?;
    client.usable(1).await?;
    lsp.usable(1).await?;
    let invoice = lsp.plain_invoice(160_000_000)?;
    let all = client.node().pay(&invoice, None)?;
    client
        .event(|event| match event {
            NodeEvent::PaymentSent { hash, .. } if *hash == all => Some(()),
            _ => None,
        })
        .await?;
    // To the last satoshi.
    assert_eq!(client.node().leaf_balance(leaf.id)?.spendable, Msat(0));

    lsp.restart().await?;
    client.restart().await?;
    client.usable(1).await?;
    lsp.usable(1).await?;
    pay_client(&mut lsp, &mut client, 20_000_000).await?;
    bitcoind.mine(300)?;
    lsp.synced().await?;
    client.synced().await?;
    pay_client(&mut lsp, &mut client, 20_000_000).await?;
    assert!(bitcoind.mempool()?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_goes_over_a_leaf_of_an_unconfirmed_factory() -> Result<()> {
    let (_bitcoind, mut lsp, mut client) = pair().await?;
    let leaf = Unborn::new(&lsp, &client)?;
    leaf.open(&mut lsp, &mut client).await?;
    lsp.synced().await?;
    client.synced().await?;
    let to = client.node().id();
    let refused = lsp
        .node()
        .keysend(to, Msat(1_000_000), Some(150), rand::random());
    assert!(matches!(refused, Err(NodeError::Refused(_))), "{refused:?}");

    // The coordinator sees it confirmed before the client does: the client claims nothing.
    lsp.node().set_factory_confirmed(leaf.id, true)?;
    lsp.node()
        .keysend(to, Msat(1_000_000), None, rand::random())?;
    let reason = client
        .event(|event| match event {
            NodeEvent::PaymentRefused { reason, .. } => Some(*reason),
            _ => None,
        })
        .await?;
    assert_eq!(reason, ClaimRefusal::Gated);
    lsp.failed().await?;
    assert_eq!(client.node().leaf_balance(leaf.id)?.spendable, Msat(0));

    client.node().set_factory_confirmed(leaf.id, true)?;
    pay_client(&mut lsp, &mut client, 1_000_000).await?;

    // Reorged out: shut again.
    client.node().set_factory_confirmed(leaf.id, false)?;
    let invoice = lsp.plain_invoice(500_000)?;
    assert!(client.node().pay(&invoice, None).is_err());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abandoned_leaf_leaves_no_channel_on_either_side() -> Result<()> {
    let (bitcoind, mut lsp, mut client) = pair().await?;
    let leaf = Unborn::new(&lsp, &client)?;
    leaf.open(&mut lsp, &mut client).await?;
    lsp.node().abandon_leaf(leaf.id)?;
    until("no channels", || {
        Ok(lsp.node().channels().is_empty() && client.node().channels().is_empty())
    })
    .await?;
    let reused = lsp.node().open_leaf(leaf.lsp.clone(), client.node().id());
    assert!(matches!(reused, Err(NodeError::LeafUsed { .. })));
    client.node().abandon_leaf(leaf.id)?;
    let reused = client
        .node()
        .expect_leaf(leaf.client.clone(), lsp.node().id());
    assert!(matches!(reused, Err(NodeError::LeafUsed { .. })));

    bitcoind.mine(3)?;
    client.restart().await?;
    lsp.restart().await?;
    bitcoind.mine(3)?;
    client.synced().await?;
    lsp.synced().await?;
    assert!(client.node().channels().is_empty() && lsp.node().channels().is_empty());
    assert!(bitcoind.mempool()?.is_empty());

    client.node().forget_leaf(leaf.id)?;
    lsp.node().forget_leaf(leaf.id)?;
    bitcoind.mine(60)?;
    client.synced().await?;
    client.restart().await?;
    lsp.restart().await?;
    assert_eq!(
        client.node().leaf(leaf.id).map(|leaf| leaf.stage),
        Some(Stage::Abandoned)
    );
    Ok(())
}
