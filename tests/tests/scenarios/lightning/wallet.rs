//! Exits paid from an on-chain wallet that its owner uses too.

use std::sync::Arc;

use anyhow::{Context, Result};
use bitcoin::{Amount, Txid};
use channel_host::{Side, WalletCoins};
use scenarios::bitcoind::Bitcoind;

use super::harness::{CAPACITY, Member, child_in_mempool, paid_leaf, spender, until};
use crate::chain::support::{Setup, sat};

fn fee(node: &Bitcoind, txid: Txid) -> Result<f64> {
    let entry = node.rpc("getmempoolentry", serde_json::json!([txid.to_string()]))?;
    entry["fees"]["base"].as_f64().context("a fee")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_coin_of_a_shared_wallet_pays_for_an_exit_and_for_more_haste() -> Result<()> {
    let mut setup = Setup::with_coins(&[60_000]).await?;
    let node = Arc::clone(&setup.node);
    let coins = Arc::new(WalletCoins::new(Arc::clone(&setup.wallet)));
    let mut lsp = Member::start_with(&node, Side::Lsp, 11, coins).await?;
    let mut client = Member::start(&node, Side::Client, 12).await?;
    client.connect(&lsp).await?;
    let leaf = paid_leaf(&mut lsp, &mut client).await?;
    setup.sync().await?;
    let coin = setup.wallet.coins().await[0].outpoint;

    client.abort().await;
    lsp.node().force_close(leaf.id).await?;
    leaf.publish(&node)?;
    let commitment = child_in_mempool(&node, leaf.transaction.compute_txid()).await?;
    let commitment = commitment.compute_txid();
    let first = child_in_mempool(&node, commitment).await?;
    // To everybody else the coin is spent, and what comes back is on its way.
    setup.sync().await?;
    assert_eq!(setup.wallet.coins().await, []);
    assert!(setup.wallet.balance().await?.pending > sat(30_000));

    // Not mined, the commitment is paid for better, out of the same coin: there is no other.
    let paid = fee(&node, first.compute_txid())?;
    let mut second = first.clone();
    until("a better child", || {
        node.mine_empty(1)?;
        if let Some(child) = spender(&node, commitment)? {
            second = child;
        }
        Ok(second != first)
    })
    .await?;
    assert!(fee(&node, second.compute_txid())? > paid);
    assert!(second.input.iter().any(|i| i.previous_output == coin));

    // What the coordinator had in the channel comes home to the wallet.
    setup.mine(150).await?;
    lsp.synced().await?;
    let home = CAPACITY - sat(200_000) - sat(10_000);
    let mut balance = Amount::ZERO;
    for _ in 0..10 {
        until("a sweep in the mempool, or mined", || {
            Ok(!node.mempool()?.is_empty() || balance > home)
        })
        .await?;
        setup.mine(1).await?;
        balance = setup.wallet.balance().await?.confirmed;
        if balance > home {
            return Ok(());
        }
    }
    anyhow::bail!("only {balance} came home")
}
