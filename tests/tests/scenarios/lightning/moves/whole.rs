//! Moves that come to their end.

use anyhow::Result;
use channel_host::Msat;

use super::harness::{BALANCE, dying, end, moving, state};
use crate::lightning::harness::{CAPACITY, Unborn, until};

const FEE: Msat = Msat(1_001);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_balance_moves_to_the_last_millisatoshi() -> Result<()> {
    let mut all = dying().await?;
    assert_eq!(all.balance(&all.old)?, BALANCE);
    let lsp_before = all.lsp.node().leaf_balance(all.old.id)?.spendable;
    // What is paid in may outlive the old factory. This one is never sent.
    let part = all.terms(Msat(50_000_000), FEE)?;
    assert!(part.incoming_expiry > all.old.lsp.last_expiry);
    let (mut left, mut moved) = (BALANCE.0, 0);
    while left > 0 {
        let incoming = left.min(52_000_077);
        let amount = Msat(incoming - FEE.0);
        all.move_part(amount, FEE).await?;
        left -= incoming;
        moved += amount.0;
        assert_eq!(all.balance(&all.old)?, Msat(left));
    }
    all.idle().await?;
    assert_eq!(all.balance(&all.old)?, Msat(0));
    assert_eq!(all.balance(&all.new)?, Msat(moved));
    let earned = all.lsp.node().leaf_balance(all.old.id)?.spendable;
    assert_eq!(earned, Msat(lsp_before.0 + BALANCE.0));
    assert!(all.lsp.node().parts().is_empty());
    assert!(all.client.node().parts().is_empty());
    assert!(all.client.node().payments().is_empty());
    assert!(all.node.mempool()?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_is_agreed_to_and_sent_once() -> Result<()> {
    let mut all = moving().await?;
    let part = all.terms(Msat(30_000_001), Msat(7))?;
    let secret = all.lsp.node().take_part(part.clone())?;
    assert_eq!(all.lsp.node().take_part(part.clone())?, secret);
    all.send(&part)?;
    all.send(&part)?;
    assert_eq!(end(&mut all.client, &part).await?, Ok(()));
    assert_eq!(end(&mut all.lsp, &part).await?, Ok(()));
    all.send(&part)?;
    all.idle().await?;
    assert_eq!(all.balance(&all.new)?, Msat(30_000_001));
    assert_eq!(all.balance(&all.old)?, Msat(BALANCE.0 - 30_000_008));
    // Nor after a restart of both.
    all.lsp.crash().await?;
    all.client.crash().await?;
    all.usable().await?;
    all.send(&part)?;
    all.idle().await?;
    assert_eq!(all.balance(&all.new)?, Msat(30_000_001));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_goes_on_when_the_coordinator_is_back() -> Result<()> {
    let mut all = moving().await?;
    all.move_part(Msat(60_000_000), FEE).await?;
    let part = all.terms(Msat(70_000_000), FEE)?;
    let secret = all.lsp.node().take_part(part.clone())?;
    all.lsp.abort().await;
    until("the coordinator's absence", || {
        Ok(all.client.node().peers().is_empty())
    })
    .await?;
    let client = all.client.node();
    let send = || client.send_part(part.hash, part.incoming, secret, part.incoming_expiry);
    assert!(send().is_err());
    all.lsp.launch().await?;
    all.usable().await?;
    // Both remember what they agreed to.
    send()?;
    assert_eq!(end(&mut all.client, &part).await?, Ok(()));
    assert_eq!(end(&mut all.lsp, &part).await?, Ok(()));
    all.idle().await?;
    assert_eq!(all.balance(&all.new)?, Msat(130_000_000));
    Ok(())
}

/// Two of them would be at risk together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_part_is_on_its_way_at_a_time() -> Result<()> {
    let mut all = moving().await?;
    let first = all.terms(Msat(10_000_000), Msat(0))?;
    let secret = all.lsp.node().take_part(first.clone())?;
    let client = all.client.node();
    client.send_part(first.hash, first.incoming, secret, first.incoming_expiry)?;
    let second = all.terms(Msat(20_000_000), Msat(0))?;
    let early = client.send_part(second.hash, second.incoming, secret, second.incoming_expiry);
    assert!(early.is_err() || state(&all.client, &first).is_none());
    assert_eq!(end(&mut all.client, &first).await?, Ok(()));
    assert_eq!(end(&mut all.lsp, &first).await?, Ok(()));
    all.send(&second)?;
    assert_eq!(end(&mut all.client, &second).await?, Ok(()));
    Ok(())
}

/// The new leaf has more room than the old: LDK would forward over the old one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_keep_to_their_leaves() -> Result<()> {
    let mut all = moving().await?;
    let third = Unborn::new(&all.lsp, &all.client)?;
    all.lsp.synced().await?;
    all.client.synced().await?;
    third.open(&mut all.lsp, &mut all.client).await?;
    third.ungate([&all.lsp, &all.client])?;
    all.move_part(Msat(100_000_000), Msat(1_000)).await?;
    all.idle().await?;
    assert_eq!(all.balance(&third)?, Msat(0));
    assert_eq!(all.balance(&all.new)?, Msat(100_000_000));
    let room = all.client.node().leaf_balance(third.id)?.receivable;
    assert!(room.0 > CAPACITY.to_sat() * 900);
    Ok(())
}
