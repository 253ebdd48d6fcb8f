//! A channel that is not on the leaf that was verified is refused, never credited, closed.

use anyhow::Result;
use bitcoin::Amount;
use channel_host::{Leaf, LeafRefusal, Msat, NodeError, NodeEvent, Stage, funding_redeem_script};

use super::harness::{CAPACITY, Member, Unborn, pair, until};

/// What the client says when the coordinator opens a channel as it should not.
async fn refusal(member: &mut Member) -> Result<LeafRefusal> {
    member
        .event(|event| match event {
            NodeEvent::LeafRefused { reason, .. } => Some(reason.clone()),
            _ => None,
        })
        .await
}

async fn no_channels(sides: [&Member; 2]) -> Result<()> {
    until("no channels", || {
        Ok(sides.iter().all(|side| side.node().channels().is_empty()))
    })
    .await
}

/// Opens the leaf as the coordinator has it while the client expects it as changed.
async fn attempt(change: impl FnOnce(&Member, &mut Leaf)) -> Result<(Member, Member, Unborn)> {
    let (_node, lsp, client) = pair().await?;
    let mut leaf = Unborn::new(&lsp, &client)?;
    lsp.synced().await?;
    client.synced().await?;
    change(&lsp, &mut leaf.client);
    client
        .node()
        .expect_leaf(leaf.client.clone(), lsp.node().id())?;
    lsp.node().open_leaf(leaf.lsp.clone(), client.node().id())?;
    Ok((lsp, client, leaf))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_on_another_outpoint_is_closed() -> Result<()> {
    let (mut lsp, mut client, leaf) = attempt(|_, leaf| {
        leaf.transaction.lock_time = bitcoin::absolute::LockTime::from_consensus(7)
    })
    .await?;
    let reason = refusal(&mut client).await?;
    assert!(matches!(reason, LeafRefusal::Outpoint { .. }), "{reason}");
    no_channels([&lsp, &client]).await?;
    client.node().set_factory_confirmed(leaf.id, true)?;
    assert_eq!(client.node().leaf_balance(leaf.id)?.spendable, Msat(0));
    // It stays so after a restart, and nothing of it is broadcast.
    client.restart().await?;
    lsp.restart().await?;
    client.bitcoind.mine(2)?;
    client.synced().await?;
    assert!(client.bitcoind.mempool()?.is_empty());
    let stage = client.node().leaf(leaf.id).map(|leaf| leaf.stage);
    assert_eq!(stage, Some(Stage::Abandoned));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_with_another_script_is_closed() -> Result<()> {
    let (lsp, mut client, _leaf) = attempt(|lsp, leaf| {
        // The coordinator's key is one of another leaf.
        let script =
            funding_redeem_script(&lsp.keys().funding_pubkey(u128::MAX), &funding_key_of(leaf));
        leaf.transaction.output[1].script_pubkey = script.to_p2wsh();
        leaf.redeem_script = script;
    })
    .await?;
    let reason = refusal(&mut client).await?;
    // The output is part of the transaction's id: both differ, the outpoint is named first.
    assert!(
        matches!(reason, LeafRefusal::Outpoint { .. } | LeafRefusal::Script),
        "{reason}"
    );
    no_channels([&lsp, &client]).await
}

/// The client's key in its own leaf.
fn funding_key_of(leaf: &Leaf) -> bitcoin::secp256k1::PublicKey {
    channel_host::LeafKeys::new(&[12; 32]).funding_pubkey(leaf.channel_id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_coordinator_signs_for_the_verified_script_only() -> Result<()> {
    let (_node, mut lsp, client) = pair().await?;
    let leaf = Unborn::new(&lsp, &client)?;
    // The client answers with keys of another channel id than the tree was built with.
    let mut expected = Unborn::new(&lsp, &client)?.client;
    expected.id = leaf.id;
    client.node().expect_leaf(expected, lsp.node().id())?;
    lsp.node().open_leaf(leaf.lsp.clone(), client.node().id())?;
    assert_eq!(refusal(&mut lsp).await?, LeafRefusal::Script);
    no_channels([&lsp, &client]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_of_another_size_is_not_accepted() -> Result<()> {
    let less = CAPACITY - Amount::from_sat(1);
    let (mut lsp, mut client, _leaf) =
        attempt(|_, leaf| leaf.transaction.output[1].value = less).await?;
    assert_eq!(
        refusal(&mut client).await?,
        LeafRefusal::Capacity {
            verified: less,
            found: CAPACITY
        }
    );
    let reason = refusal(&mut lsp).await?;
    assert!(matches!(reason, LeafRefusal::BrokenOff(_)), "{reason}");
    no_channels([&lsp, &client]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leaf_nobody_expects_is_not_opened() -> Result<()> {
    let (_node, mut lsp, client) = pair().await?;
    let leaf = Unborn::new(&lsp, &client)?;
    lsp.node().open_leaf(leaf.lsp.clone(), client.node().id())?;
    let reason = refusal(&mut lsp).await?;
    assert!(matches!(reason, LeafRefusal::BrokenOff(_)), "{reason}");
    no_channels([&lsp, &client]).await?;

    // Nothing was signed: the same leaf may be tried again.
    client
        .node()
        .expect_leaf(leaf.client.clone(), lsp.node().id())?;
    lsp.node().open_leaf(leaf.lsp.clone(), client.node().id())?;
    let opened = |event: &NodeEvent| matches!(event, NodeEvent::LeafOpened { .. }).then_some(());
    lsp.event(opened).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leaf_that_does_not_fit_itself_is_refused() -> Result<()> {
    let (_node, lsp, client) = pair().await?;
    let peer = lsp.node().id();
    let good = Unborn::new(&lsp, &client)?.client;
    let unfit: [fn(&mut Leaf); 4] = [
        |leaf| leaf.vout = 0,
        |leaf| leaf.vout = 9,
        |leaf| leaf.channel_id = 5,
        |leaf| leaf.channel_id ^= 1,
    ];
    for change in unfit {
        let mut leaf = good.clone();
        change(&mut leaf);
        let refused = client.node().expect_leaf(leaf, peer);
        assert!(
            matches!(refused, Err(NodeError::UnfitLeaf { .. })),
            "{refused:?}"
        );
    }
    client.node().expect_leaf(good.clone(), peer)?;
    client.node().expect_leaf(good, peer)?;
    Ok(())
}
