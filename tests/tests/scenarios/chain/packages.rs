//! Zero-fee parents and the children that pay for them, judged by a real mempool.

use std::collections::HashSet;

use anyhow::Result;
use bitcoin::{OutPoint, Sequence, TxOut};
use chain::wallet::{FeeChild, FeeChildRequest, OwnPayout};
use chain::{ChainError, RejectKind, TxStatus};

use super::support::{Setup, child_of, foreign_script, key, payout_script, rate, sat, spend};

#[tokio::test]
async fn a_zero_fee_parent_goes_with_its_child_and_is_mined() -> Result<()> {
    let mut setup = Setup::with_coins(&[50_000]).await?;
    let (parent, none) = (setup.zero_fee_parent(1, 20_000)?, HashSet::new());
    let child = setup
        .wallet
        .fee_child(&child_of(&parent, rate(12), &none))
        .await?;
    let package = [parent.clone(), child.transaction.clone()];
    let outcome = setup.source.submit_package(&package).await?.into_result()?;
    let vsize = u64::try_from(parent.vsize() + child.transaction.vsize())?;
    let TxStatus::InMempool {
        effective_feerate: Some(effective),
        ..
    } = &outcome.transactions[0].status
    else {
        panic!("{outcome:?}");
    };
    assert_eq!(effective.to_sat_per_vb_floor(), 12);
    let entry = setup
        .source
        .mempool_entry(parent.compute_txid())
        .await?
        .expect("in the mempool");
    assert_eq!(
        (entry.descendant_vsize, entry.descendant_fee),
        (vsize, sat(vsize * 12))
    );
    assert_eq!(entry.spent_by, vec![child.transaction.compute_txid()]);

    // Submitting it again, or a part of it, is harmless; so it is when all is in a block.
    assert!(setup.source.submit_package(&package).await?.is_accepted());
    setup.wallet.record_unconfirmed(&child.transaction).await?;
    setup.mine(1).await?;
    let again = setup.source.submit_package(&package).await?;
    assert!(
        again
            .transactions
            .iter()
            .all(|tx| tx.status == TxStatus::Confirmed),
        "{again:?}"
    );
    assert_eq!(
        setup.source.broadcast(&parent).await?,
        parent.compute_txid()
    );
    assert_eq!(
        setup.wallet.balance().await?.confirmed,
        sat(50_000) - child.fee
    );
    Ok(())
}

#[tokio::test]
async fn a_child_alone_is_bumped_from_the_same_coin() -> Result<()> {
    let mut setup = Setup::with_coins(&[50_000]).await?;
    let (parent, none) = (setup.zero_fee_parent(1, 20_000)?, HashSet::new());
    let cheap = setup
        .wallet
        .fee_child(&child_of(&parent, rate(2), &none))
        .await?;
    setup.wallet.record_unconfirmed(&cheap.transaction).await?;
    setup
        .source
        .submit_package(&[parent.clone(), cheap.transaction.clone()])
        .await?
        .into_result()?;

    // Barely more is refused by the mempool, and what `outbid` asks is enough.
    let barely = FeeChildRequest {
        parent_fee: cheap.fee,
        ..child_of(&parent, rate(4), &none)
    };
    let barely = setup.wallet.fee_child(&barely).await?;
    assert!(barely.fee < cheap.fee + sat(153));
    let refused = setup.source.broadcast(&barely.transaction).await;
    assert!(
        matches!(&refused, Err(ChainError::Rejected { reason, .. }) if reason.kind == RejectKind::ReplacementTooCheap),
        "{refused:?}"
    );
    let enough = FeeChildRequest {
        outbid: Some(cheap.fee),
        ..child_of(&parent, rate(2), &none)
    };
    let enough = setup.wallet.fee_child(&enough).await?;
    assert_eq!(
        (enough.fee, enough.coin),
        (cheap.fee + sat(153), cheap.coin)
    );
    setup.wallet.record_unconfirmed(&enough.transaction).await?;
    setup.source.broadcast(&enough.transaction).await?;
    let in_mempool: HashSet<_> = setup.node.mempool()?.into_iter().collect();
    assert_eq!(
        in_mempool,
        HashSet::from([parent.compute_txid(), enough.transaction.compute_txid()])
    );
    setup.mine(1).await?;
    assert_eq!(
        setup.wallet.balance().await?.total()?,
        sat(50_000) - enough.fee
    );
    Ok(())
}

#[tokio::test]
async fn a_payout_pays_for_its_own_parent() -> Result<()> {
    let setup = Setup::with_coins(&[]).await?;
    let (parent, none) = (setup.zero_fee_parent(3, 80_000)?, HashSet::new());
    let own = [OwnPayout {
        vout: 0,
        key: key(3),
    }];
    let asked = FeeChildRequest {
        payouts: &own,
        change: Some(foreign_script(9)),
        ..child_of(&parent, rate(50), &none)
    };
    let child = setup.wallet.fee_child(&asked).await?;
    setup
        .source
        .submit_package(&[parent, child.transaction])
        .await?
        .into_result()?;
    setup.node.mine(1)?;
    assert_eq!(
        setup.node.balance_of(&foreign_script(9))?,
        sat(80_000) - child.fee
    );
    Ok(())
}

#[tokio::test]
async fn a_restarted_node_forgets_the_package_and_takes_it_again() -> Result<()> {
    let setup = Setup::with_coins(&[50_000]).await?;
    let (parent, none) = (setup.zero_fee_parent(1, 20_000)?, HashSet::new());
    let child = setup
        .wallet
        .fee_child(&child_of(&parent, rate(5), &none))
        .await?
        .transaction;
    setup.wallet.record_unconfirmed(&child).await?;
    let package = [parent, child];
    setup.source.submit_package(&package).await?.into_result()?;
    assert_eq!(
        setup.wallet.forget_missing(setup.source.as_ref()).await?,
        vec![]
    );
    setup.node.restart()?;
    assert_eq!(
        setup.node.mempool()?,
        vec![],
        "this is why packages are submitted again after each start (attacks.md A18)"
    );
    assert_eq!(
        setup.wallet.forget_missing(setup.source.as_ref()).await?,
        vec![package[1].compute_txid()]
    );
    assert_eq!(setup.wallet.balance().await?.confirmed, sat(50_000));
    assert!(setup.source.submit_package(&package).await?.is_accepted());
    Ok(())
}

#[tokio::test]
async fn a_child_still_counts_when_its_parent_is_in_a_block_already() -> Result<()> {
    let setup = Setup::with_coins(&[50_000]).await?;
    let (parent, none) = (setup.zero_fee_parent(1, 20_000)?, HashSet::new());
    let child = setup
        .wallet
        .fee_child(&child_of(&parent, rate(5), &none))
        .await?
        .transaction;
    setup.node.mine_with(std::slice::from_ref(&parent))?;
    let outcome = setup
        .source
        .submit_package(&[parent, child.clone()])
        .await?;
    assert_eq!(outcome.transactions[0].status, TxStatus::Confirmed);
    assert!(outcome.is_accepted(), "{outcome:?}");
    assert_eq!(setup.node.mempool()?, vec![child.compute_txid()]);
    Ok(())
}

#[tokio::test]
async fn refusals_name_the_transaction_and_the_reason() -> Result<()> {
    let setup = Setup::with_coins(&[50_000, 50_000]).await?;
    let (parent, none) = (setup.zero_fee_parent(1, 20_000)?, HashSet::new());
    let kind_of = |error: Result<_, ChainError>| match error {
        Err(ChainError::Rejected { txid, reason }) => (txid, reason.kind),
        other => panic!("not refused: {other:?}"),
    };

    // Alone, it pays nothing.
    let txid = parent.compute_txid();
    assert_eq!(
        kind_of(setup.source.broadcast(&parent).await),
        (txid, RejectKind::FeeTooLow)
    );

    // A broken signature.
    let FeeChild {
        transaction: child, ..
    } = setup
        .wallet
        .fee_child(&child_of(&parent, rate(5), &none))
        .await?;
    let mut forged = parent.clone();
    forged.input[0].witness = bitcoin::Witness::from_slice(&[[7u8; 64]]);
    let outcome = setup
        .source
        .submit_package(&[forged, child.clone()])
        .await?;
    assert_eq!(
        outcome
            .rejection()
            .map(|(txid, reason)| (txid, reason.kind)),
        Some((txid, RejectKind::InvalidScript))
    );

    // A child before its parent.
    assert_eq!(
        kind_of(setup.source.broadcast(&child).await).1,
        RejectKind::MissingInputs
    );

    // A relative lock that has not passed.
    let coin = setup.node.fund(&payout_script(2), sat(9_000))?;
    let pays = [TxOut {
        value: sat(8_000),
        script_pubkey: foreign_script(1),
    }];
    let early = spend(2, coin, sat(9_000), &pays, Sequence::from_height(144))?;
    assert_eq!(
        kind_of(setup.source.broadcast(&early).await).1,
        RejectKind::NotYetFinal
    );

    // A child that leaves the anchor alone.
    let ignores = spend(
        1,
        OutPoint { txid, vout: 0 },
        sat(20_000),
        &pays,
        Sequence::ENABLE_RBF_NO_LOCKTIME,
    )?;
    let outcome = setup.source.submit_package(&[parent, ignores]).await?;
    assert_eq!(
        outcome.rejection().map(|(_, reason)| reason.kind),
        Some(RejectKind::Dust),
        "{outcome:?}"
    );

    // A version 3 child of an unconfirmed version 2 transaction.
    let unconfirmed = setup.node.send_to(&payout_script(4), sat(30_000))?;
    let mixed = spend(
        4,
        unconfirmed,
        sat(30_000),
        &[TxOut {
            value: sat(29_000),
            script_pubkey: foreign_script(1),
        }],
        Sequence::ENABLE_RBF_NO_LOCKTIME,
    )?;
    assert_eq!(
        kind_of(setup.source.broadcast(&mixed).await).1,
        RejectKind::Topology
    );

    // Two spends of one coin: the second pays less.
    let coin = setup.node.fund(&payout_script(5), sat(9_000))?;
    let first = spend(5, coin, sat(9_000), &pays, Sequence::ENABLE_RBF_NO_LOCKTIME)?;
    setup.source.broadcast(&first).await?;
    let rival = [TxOut {
        value: sat(8_500),
        script_pubkey: foreign_script(1),
    }];
    let rival = spend(
        5,
        coin,
        sat(9_000),
        &rival,
        Sequence::ENABLE_RBF_NO_LOCKTIME,
    )?;
    assert_eq!(
        kind_of(setup.source.broadcast(&rival).await).1,
        RejectKind::ReplacementTooCheap
    );
    Ok(())
}
