//! Keeping a zero-fee parent paid for, whatever happens to its child.

use std::collections::HashSet;

use anyhow::Result;
use bitcoin::{Sequence, TxOut};
use chain::ChainError;
use chain::wallet::{FeeChildRequest, Published, WalletError};

use super::support::{Setup, anchor, child_of, foreign_script, payout_script, rate, sat, spend};

/// The fee of our child, which must have gone out.
fn fee(published: &Published) -> bitcoin::Amount {
    match published {
        Published::WithChild(child) => child.fee,
        other => panic!("no child went out: {other:?}"),
    }
}

#[tokio::test]
async fn a_parent_is_published_bumped_published_again_and_left_when_mined() -> Result<()> {
    let mut setup = Setup::with_coins(&[90_000]).await?;
    let (parent, none) = (setup.zero_fee_parent(1, 20_000)?, HashSet::new());
    let (source, wallet) = (setup.source.clone(), &setup.wallet);
    let at = |sat_per_vb| child_of(&parent, rate(sat_per_vb), &none);

    let first = wallet.publish(source.as_ref(), &at(3)).await?;
    assert_eq!(
        wallet.publish(source.as_ref(), &at(3)).await?,
        Published::Paid,
        "nothing is sent twice"
    );
    let bumped = wallet.publish(source.as_ref(), &at(9)).await?;
    assert_eq!(fee(&bumped), fee(&first) * 3);
    assert_eq!(
        wallet.publish(source.as_ref(), &at(5)).await?,
        Published::Paid,
        "more than enough"
    );

    // A node that restarts has forgotten both.
    setup.node.restart()?;
    wallet.forget_missing(source.as_ref()).await?;
    let again = wallet.publish(source.as_ref(), &at(9)).await?;
    assert_eq!(
        (fee(&again), setup.node.mempool()?.len()),
        (fee(&bumped), 2)
    );

    setup.mine(1).await?;
    let at = child_of(&parent, rate(9), &none);
    assert_eq!(
        setup.wallet.publish(source.as_ref(), &at).await?,
        Published::Confirmed
    );
    assert_eq!(
        setup.wallet.balance().await?.total()?,
        sat(90_000) - fee(&again)
    );
    Ok(())
}

#[tokio::test]
async fn a_strangers_cheap_child_is_outbid_and_a_good_one_is_left() -> Result<()> {
    let setup = Setup::with_coins(&[90_000]).await?;
    let stranger = Setup::with_coins(&[]).await?.wallet;
    let (parent, none) = (setup.zero_fee_parent(1, 20_000)?, HashSet::new());
    let own = [chain::wallet::OwnPayout {
        vout: 0,
        key: super::support::key(1),
    }];
    let theirs = FeeChildRequest {
        payouts: &own,
        change: Some(foreign_script(7)),
        ..child_of(&parent, rate(4), &none)
    };
    let theirs = stranger.fee_child(&theirs).await?;
    setup
        .source
        .submit_package(&[parent.clone(), theirs.transaction.clone()])
        .await?
        .into_result()?;

    let asked = |sat_per_vb| child_of(&parent, rate(sat_per_vb), &none);
    assert_eq!(
        setup
            .wallet
            .publish(setup.source.as_ref(), &asked(4))
            .await?,
        Published::Paid
    );
    let ours = setup
        .wallet
        .publish(setup.source.as_ref(), &asked(5))
        .await?;
    assert!(fee(&ours) >= theirs.fee + sat(153));
    assert_eq!(
        setup
            .source
            .mempool_entry(theirs.transaction.compute_txid())
            .await?,
        None
    );
    Ok(())
}

#[tokio::test]
async fn a_refused_package_leaves_the_coin_free() -> Result<()> {
    let setup = Setup::with_coins(&[90_000]).await?;
    let coin = setup.node.fund(&payout_script(2), sat(9_000))?;
    let outputs = [
        TxOut {
            value: sat(9_000),
            script_pubkey: foreign_script(1),
        },
        anchor(),
    ];
    let early = spend(2, coin, sat(9_000), &outputs, Sequence::from_height(144))?;
    let none = HashSet::new();
    let refused = setup
        .wallet
        .publish(setup.source.as_ref(), &child_of(&early, rate(5), &none))
        .await;
    assert!(
        matches!(
            refused,
            Err(WalletError::Chain(ChainError::Rejected { .. }))
        ),
        "{refused:?}"
    );
    assert_eq!(setup.wallet.balance().await?.confirmed, sat(90_000));
    Ok(())
}

#[tokio::test]
async fn a_parent_that_pays_enough_itself_goes_alone() -> Result<()> {
    let setup = Setup::with_coins(&[]).await?;
    let coin = setup.node.fund(&payout_script(2), sat(20_000))?;
    let anchor = TxOut {
        value: sat(240),
        ..anchor()
    };
    let outputs = [
        TxOut {
            value: sat(17_760),
            script_pubkey: foreign_script(1),
        },
        anchor,
    ];
    let parent = spend(
        2,
        coin,
        sat(20_000),
        &outputs,
        Sequence::ENABLE_RBF_NO_LOCKTIME,
    )?;
    let none = HashSet::new();
    let asked = FeeChildRequest {
        parent_fee: sat(2_000),
        ..child_of(&parent, rate(10), &none)
    };
    assert_eq!(
        setup.wallet.publish(setup.source.as_ref(), &asked).await?,
        Published::Paid
    );
    assert_eq!(setup.node.mempool()?, vec![parent.compute_txid()]);
    Ok(())
}

/// A timeout carries a fee of its own; a package with a large child can pay more in all, and yet too
/// little to be mined. It must not stand in the way for as long as it likes.
#[tokio::test]
async fn a_rival_that_is_only_large_is_outbid_by_a_child() -> Result<()> {
    let setup = Setup::with_coins(&[90_000, 90_000]).await?;
    let coin = setup.node.fund(&payout_script(2), sat(20_000))?;
    let outputs = |n, paid, anchor_sat| {
        let anchor = TxOut {
            value: sat(anchor_sat),
            ..anchor()
        };
        let payout = TxOut {
            value: sat(paid),
            script_pubkey: foreign_script(n),
        };
        [payout, anchor]
    };
    let rival = spend(2, coin, sat(20_000), &outputs(1, 20_000, 0), Sequence::ZERO)?;
    let timeout = outputs(2, 18_260, 240);
    let timeout = spend(2, coin, sat(20_000), &timeout, Sequence::ZERO)?;
    let none = HashSet::new();
    setup
        .wallet
        .publish(setup.source.as_ref(), &child_of(&rival, rate(8), &none))
        .await?;
    let asked = FeeChildRequest {
        parent_fee: sat(1_500),
        ..child_of(&timeout, rate(6), &none)
    };
    let ours = setup.wallet.publish(setup.source.as_ref(), &asked).await?;
    assert!(fee(&ours) > sat(0));
    let mempool = setup.node.mempool()?;
    assert!(mempool.contains(&timeout.compute_txid()) && mempool.len() == 2);
    Ok(())
}

#[tokio::test]
async fn a_rival_of_the_parent_itself_is_outbid_whole() -> Result<()> {
    let setup = Setup::with_coins(&[90_000, 90_000]).await?;
    let coin = setup.node.fund(&payout_script(2), sat(9_000))?;
    let outputs = |n| {
        [
            TxOut {
                value: sat(9_000),
                script_pubkey: foreign_script(n),
            },
            anchor(),
        ]
    };
    let slow = spend(2, coin, sat(9_000), &outputs(1), Sequence::ZERO)?;
    let fast = spend(2, coin, sat(9_000), &outputs(2), Sequence::ZERO)?;
    let none = HashSet::new();
    let first = setup
        .wallet
        .publish(setup.source.as_ref(), &child_of(&slow, rate(30), &none))
        .await?;
    let second = setup
        .wallet
        .publish(setup.source.as_ref(), &child_of(&fast, rate(2), &none))
        .await?;
    assert!(fee(&second) > fee(&first));
    assert!(
        setup
            .source
            .mempool_entry(fast.compute_txid())
            .await?
            .is_some()
    );
    assert_eq!(setup.source.mempool_entry(slow.compute_txid()).await?, None);
    Ok(())
}
