//! Old commitments brought to the chain by a node with an old disk.

use anyhow::Result;
use bitcoin::Amount;
use channel_host::{Msat, SpendKind};

use super::harness::{
    CAPACITY, Member, child_in_mempool, fee_coins, holds, paid_pair, spent_by, until,
};
use crate::chain::support::sat;

const LSP: usize = 0;
const CLIENT: usize = 1;

async fn punished(cheat: usize) -> Result<()> {
    let honest = 1 - cheat;
    let (node, lsp, client, leaf) = paid_pair().await?;
    let mut sides = [lsp, client];
    fee_coins(&node, &sides[cheat])?;
    // The old state is the one that leaves the cheat more.
    let [lsp, client] = &mut sides;
    if cheat == LSP {
        lsp.abort().await;
        let old = lsp.disk()?;
        lsp.launch().await?;
        lsp.usable(1).await?;
        client.usable(1).await?;
        super::harness::pay_client(lsp, client, 150_000_000).await?;
        client.abort().await;
        lsp.abort().await;
        drop(lsp.exchange_disk(old));
    } else {
        client.abort().await;
        let old = client.disk()?;
        client.launch().await?;
        lsp.usable(1).await?;
        client.usable(1).await?;
        let invoice = lsp.plain_invoice(150_000_000)?;
        client.node().pay(&invoice, None)?;
        assert_eq!(lsp.paid().await?, Msat(150_000_000));
        client.sent().await?;
        lsp.abort().await;
        client.abort().await;
        drop(client.exchange_disk(old));
    }

    sides[cheat].launch().await?;
    sides[cheat].node().force_close(leaf.id).await?;
    leaf.publish(&node)?;
    child_in_mempool(&node, leaf.transaction.compute_txid()).await?;
    node.mine(1)?;
    assert_eq!(spent_by(&mut sides[cheat]).await?, SpendKind::Commitment);
    sides[cheat].abort().await;

    // The victim comes back well within the time the cheat has to wait for its own. Where the old state had a payment pending, the cheat may have
    // claimed it by now: then that claim is punished.
    node.mine(100)?;
    let before = holds(&node, &sides[honest])?;
    sides[honest].launch().await?;
    home(&sides[honest], before).await?;
    // The cheat finds nothing left.
    sides[cheat].launch().await?;
    let left = holds(&node, &sides[cheat])?;
    node.mine(60)?;
    sides[cheat].synced().await?;
    assert_eq!(holds(&node, &sides[cheat])?, left);
    Ok(())
}

/// Mines until the whole channel is the member's.
async fn home(member: &Member, before: Amount) -> Result<()> {
    let node = &member.bitcoind;
    until("the whole channel", || {
        node.mine(1)?;
        Ok(holds(node, member)? > before + CAPACITY - sat(20_000))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_publishes_an_old_state_loses_all() -> Result<()> {
    punished(LSP).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_publishes_an_old_state_loses_all() -> Result<()> {
    punished(CLIENT).await
}
