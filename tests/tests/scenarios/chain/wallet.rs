//! The wallet on a real chain.

use std::collections::HashSet;

use anyhow::Result;
use bitcoin::{Address, Network, TxOut};
use chain::wallet::{MIN_FUNDING_CHANGE, SendAmount, WalletError};

use super::support::{Setup, foreign_script, rate, sat};

#[tokio::test]
async fn a_funding_is_signed_late_and_confirms_with_its_change() -> Result<()> {
    let mut setup = Setup::with_coins(&[300_000, 200_000]).await?;
    let output = TxOut {
        value: sat(350_000),
        script_pubkey: foreign_script(1),
    };
    let draft = setup
        .wallet
        .build_funding(std::slice::from_ref(&output), &[], &HashSet::new(), rate(3))
        .await?;
    let mut funding = draft.transaction.clone();
    assert!(funding.output[1].value >= MIN_FUNDING_CHANGE);
    setup.wallet.sign(&mut funding, &draft.prevouts).await?;
    assert_eq!(
        funding.compute_txid(),
        draft.transaction.compute_txid(),
        "the txid is fixed before it is signed"
    );
    setup.wallet.record_unconfirmed(&funding).await?;
    setup.source.broadcast(&funding).await?;
    let entry = setup
        .source
        .mempool_entry(funding.compute_txid())
        .await?
        .expect("in the mempool");
    assert_eq!((entry.fee, entry.fee), (draft.fee, sat(entry.vsize * 3)));
    setup.mine(1).await?;
    setup.wallet.release(draft.inputs()).await;
    assert_eq!(setup.node.balance_of(&output.script_pubkey)?, sat(350_000));
    let balance = setup.wallet.balance().await?;
    assert_eq!(
        (balance.confirmed, balance.total()?),
        (sat(150_000) - draft.fee, sat(150_000) - draft.fee)
    );
    assert_eq!(setup.wallet.coins().await[0].outpoint, draft.change);
    Ok(())
}

#[tokio::test]
async fn coins_follow_the_chain_through_a_reorg() -> Result<()> {
    let mut setup = Setup::with_coins(&[100_000]).await?;
    let script = setup.wallet.new_address().await?.script_pubkey();
    setup.node.fund(&script, sat(40_000))?;
    setup.sync().await?;
    assert_eq!(setup.wallet.balance().await?.confirmed, sat(140_000));

    // The newest block is replaced by two empty ones: the payment waits in the mempool again.
    setup.node.reorg(1, 2)?;
    setup.sync().await?;
    assert_eq!(setup.wallet.balance().await?.confirmed, sat(100_000));
    let output = TxOut {
        value: sat(120_000),
        script_pubkey: foreign_script(1),
    };
    let refused = setup
        .wallet
        .build_funding(&[output], &[], &HashSet::new(), rate(1))
        .await;
    assert!(
        matches!(refused, Err(WalletError::NotEnough { .. })),
        "{refused:?}"
    );
    setup.mine(1).await?;
    assert_eq!(setup.wallet.balance().await?.confirmed, sat(140_000));

    // A spend that is reorged out is on its way again, and its coin is not free.
    let to = setup.node_address(&foreign_script(2))?;
    setup
        .wallet
        .send(setup.source.as_ref(), &to, SendAmount::All, rate(2))
        .await?;
    setup.mine(1).await?;
    assert_eq!(setup.wallet.balance().await?.total()?, sat(0));
    setup.node.reorg(1, 2)?;
    setup.sync().await?;
    assert!(setup.wallet.coins().await.is_empty());
    setup.mine(1).await?;
    assert!(setup.node.balance_of(&foreign_script(2))? > sat(139_000));
    Ok(())
}

#[tokio::test]
async fn a_refused_payment_leaves_its_coins_free() -> Result<()> {
    let setup = Setup::with_coins(&[100_000]).await?;
    let to = setup.node_address(&foreign_script(2))?;
    // Below what the mempool takes.
    let too_cheap = bitcoin::FeeRate::from_sat_per_kwu(1);
    let refused = setup
        .wallet
        .send(
            setup.source.as_ref(),
            &to,
            SendAmount::Exactly(sat(5_000)),
            too_cheap,
        )
        .await;
    assert!(
        matches!(
            refused,
            Err(WalletError::Chain(chain::ChainError::Rejected { .. }))
        ),
        "{refused:?}"
    );
    assert_eq!(setup.wallet.balance().await?.confirmed, sat(100_000));
    setup
        .wallet
        .send(
            setup.source.as_ref(),
            &to,
            SendAmount::Exactly(sat(5_000)),
            rate(1),
        )
        .await?;
    Ok(())
}

/// A coin was spent again and again, and everything of it was lost: it is free at once, and not one try per block later.
#[tokio::test]
async fn a_coin_of_many_lost_tries_is_free_at_once() -> Result<()> {
    let setup = Setup::with_coins(&[100_000]).await?;
    let to = Address::from_script(&foreign_script(1), Network::Regtest)?.into_unchecked();
    let amount = SendAmount::Exactly(sat(20_000));
    let mut tried = setup
        .wallet
        .build_payment(&to, amount, rate(2))
        .await?
        .transaction;
    for _ in 0..3 {
        tried.output[0].value -= sat(100);
        setup.wallet.record_unconfirmed(&tried).await?;
    }
    assert!(setup.wallet.coins().await.is_empty());
    let forgotten = setup.wallet.forget_missing(setup.source.as_ref()).await?;
    assert_eq!(forgotten.len(), 4);
    assert_eq!(setup.wallet.balance().await?.confirmed, sat(100_000));
    Ok(())
}
