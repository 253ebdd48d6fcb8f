//! Children of parents of our own making; the scenario tests give real ones to a real node.

use bitcoin::secp256k1::SecretKey;
use proptest::prelude::*;

use super::super::test_chain::{foreign_script, paying, wallet_with};
use super::*;

fn sat(n: u64) -> Amount {
    Amount::from_sat(n)
}

fn key(n: u8) -> Keypair {
    Keypair::from_secret_key(&SECP, &SecretKey::from_slice(&[n; 32]).unwrap())
}

fn payout(amount: u64, n: u8) -> TxOut {
    let address = Address::p2tr(&SECP, key(n).x_only_public_key().0, None, Network::Regtest);
    TxOut {
        value: sat(amount),
        script_pubkey: address.script_pubkey(),
    }
}

/// A version 3 parent with these outputs, and a P2A last.
fn parent(mut outputs: Vec<TxOut>) -> Transaction {
    outputs.push(TxOut {
        value: Amount::ZERO,
        script_pubkey: ScriptBuf::new_p2a(),
    });
    Transaction {
        version: transaction::Version(3),
        ..paying(&outputs, 9)
    }
}

fn request<'a>(parent: &'a Transaction, avoid: &'a HashSet<OutPoint>) -> FeeChildRequest<'a> {
    FeeChildRequest {
        parent,
        anchor: u32::try_from(parent.output.len() - 1).unwrap(),
        parent_fee: Amount::ZERO,
        feerate: FeeRate::from_sat_per_vb_u32(10),
        payouts: &[],
        change: None,
        avoid,
        outbid: None,
        budget: sat(1_000_000),
    }
}

/// What the child takes in must be what it gives out and pays.
fn assert_balanced(child: &FeeChild, brought: u64) {
    assert_eq!(child.transaction.output.len(), 1);
    assert_eq!(sat(brought), child.transaction.output[0].value + child.fee);
    assert_eq!(child.transaction.version, transaction::Version(3));
    assert!(
        child.transaction.input[0].witness.is_empty(),
        "P2A is spent with an empty witness (BIP-433)"
    );
}

#[tokio::test]
async fn the_smallest_coin_that_suffices_pays_for_both() {
    let (wallet, _, _) = wallet_with(&[900_000, 50_000, 1_000]).await;
    let (parent, none) = (parent(vec![payout(10_000, 5)]), HashSet::new());
    let child = wallet.fee_child(&request(&parent, &none)).await.unwrap();
    assert_balanced(&child, 50_000);
    assert_eq!(child.transaction.vsize(), 153);
    let both = u64::try_from(parent.vsize()).unwrap() + 153;
    assert_eq!(child.fee, sat(both * 10));

    let paid = wallet
        .fee_child(&FeeChildRequest {
            parent_fee: sat(500),
            ..request(&parent, &none)
        })
        .await
        .unwrap();
    assert_eq!(paid.fee, child.fee - sat(500));
    let cheap = wallet
        .fee_child(&FeeChildRequest {
            parent_fee: sat(1_000_000),
            ..request(&parent, &none)
        })
        .await
        .unwrap();
    assert_eq!(
        cheap.fee,
        sat(153),
        "a child pays for its own relay at least"
    );
}

#[tokio::test]
async fn a_payout_of_the_parent_pays_without_any_coin_of_the_wallet() {
    let (wallet, _, _) = wallet_with(&[]).await;
    let (parent, none) = (parent(vec![payout(10_000, 5)]), HashSet::new());
    let own = [OwnPayout {
        vout: 0,
        key: key(5),
    }];
    let asked = FeeChildRequest {
        payouts: &own,
        change: Some(foreign_script()),
        ..request(&parent, &none)
    };
    let child = wallet.fee_child(&asked).await.unwrap();
    assert_balanced(&child, 10_000);
    assert_eq!(
        (child.coin, &child.transaction.output[0].script_pubkey),
        (None, &foreign_script())
    );

    let stranger = [OwnPayout {
        vout: 0,
        key: key(6),
    }];
    let refused = wallet
        .fee_child(&FeeChildRequest {
            payouts: &stranger,
            ..asked
        })
        .await;
    assert!(matches!(
        refused,
        Err(WalletError::WrongPayoutKey { vout: 0 })
    ));
}

#[tokio::test]
async fn a_payout_that_is_too_small_is_helped_by_a_coin() {
    let (wallet, _, _) = wallet_with(&[20_000]).await;
    let (parent, none) = (parent(vec![payout(1_000, 5)]), HashSet::new());
    let own = [OwnPayout {
        vout: 0,
        key: key(5),
    }];
    let child = wallet
        .fee_child(&FeeChildRequest {
            payouts: &own,
            ..request(&parent, &none)
        })
        .await
        .unwrap();
    assert_balanced(&child, 21_000);
    assert!(child.coin.is_some());
}

#[tokio::test]
async fn a_payout_that_would_leave_dust_is_helped_by_a_coin() {
    let (wallet, _, _) = wallet_with(&[20_000]).await;
    let none = HashSet::new();
    let own = [OwnPayout {
        vout: 0,
        key: key(5),
    }];
    let fee = u64::try_from(parent(vec![payout(1_000, 5)]).vsize()).unwrap() * 10 + 1_530;
    for (amount, alone) in [(fee + 330, true), (fee + 329, false)] {
        let parent = parent(vec![payout(amount, 5)]);
        let child = wallet
            .fee_child(&FeeChildRequest {
                payouts: &own,
                ..request(&parent, &none)
            })
            .await
            .unwrap();
        assert_eq!(child.coin.is_none(), alone, "{amount}");
    }
}

#[tokio::test]
async fn what_cannot_or_must_not_be_paid_is_refused() {
    let (wallet, _, _) = wallet_with(&[3_000]).await;
    let (parent, none) = (parent(vec![payout(10_000, 5)]), HashSet::new());
    let needed = wallet.fee_child(&request(&parent, &none)).await;
    // Both at 10 sat/vB, and 330 sat of change.
    let both = (u64::try_from(parent.vsize()).unwrap() + 153) * 10;
    let child = needed.unwrap();
    assert_eq!(child.fee, sat(both));

    let avoided: HashSet<OutPoint> = child.coin.into_iter().collect();
    let refused = wallet.fee_child(&request(&parent, &avoided)).await;
    assert!(
        matches!(refused, Err(WalletError::NoConfirmedCoin { needed }) if needed == sat(both + 330))
    );
    let refused = wallet
        .fee_child(&FeeChildRequest {
            budget: sat(both - 1),
            ..request(&parent, &none)
        })
        .await;
    assert!(
        matches!(refused, Err(WalletError::FeeOverBudget { needed, .. }) if needed == sat(both))
    );
    let text = refused.unwrap_err().to_string();
    let amounts = format!("would be {both} sat, over the budget of {} sat", both - 1);
    assert!(text.contains(&amounts), "{text}");
    let version_2 = Transaction {
        version: transaction::Version::TWO,
        ..parent.clone()
    };
    assert!(matches!(
        wallet.fee_child(&request(&version_2, &none)).await,
        Err(WalletError::UnfitParent { .. })
    ));
    let refused = wallet
        .fee_child(&FeeChildRequest {
            anchor: 0,
            ..request(&parent, &none)
        })
        .await;
    assert!(matches!(refused, Err(WalletError::UnfitParent { .. })));
    let refused = wallet
        .fee_child(&FeeChildRequest {
            feerate: FeeRate::MAX,
            ..request(&parent, &none)
        })
        .await;
    assert!(matches!(refused, Err(WalletError::Overflow)));
}

#[tokio::test]
async fn a_child_larger_than_truc_allows_is_refused() {
    let (wallet, _, _) = wallet_with(&[]).await;
    let parent = parent((0..20).map(|_| payout(1_000, 5)).collect());
    let own: Vec<OwnPayout> = (0..20)
        .map(|vout| OwnPayout { vout, key: key(5) })
        .collect();
    let none = HashSet::new();
    let refused = wallet
        .fee_child(&FeeChildRequest {
            payouts: &own,
            ..request(&parent, &none)
        })
        .await;
    assert!(matches!(
        refused,
        Err(WalletError::ChildTooLarge { limit: 1_000, .. })
    ));
}

#[tokio::test]
async fn unconfirmed_and_reserved_coins_never_pay() {
    let (wallet, _, _) = wallet_with(&[50_000]).await;
    let script_pubkey = wallet.new_address().await.unwrap().script_pubkey();
    wallet
        .record_unconfirmed(&paying(
            &[TxOut {
                value: sat(90_000),
                script_pubkey,
            }],
            3,
        ))
        .await
        .unwrap();
    let (parent, none) = (parent(vec![payout(10_000, 5)]), HashSet::new());
    let coin = wallet
        .fee_child(&request(&parent, &none))
        .await
        .unwrap()
        .coin
        .unwrap();
    wallet.reserve([coin]).await;
    assert!(matches!(
        wallet.fee_child(&request(&parent, &none)).await,
        Err(WalletError::NoConfirmedCoin { .. })
    ));
}

#[tokio::test]
async fn a_replacement_outbids_and_reuses_the_coin_of_the_child_it_replaces() {
    let (wallet, _, _) = wallet_with(&[50_000]).await;
    let (parent, none) = (parent(vec![payout(10_000, 5)]), HashSet::new());
    let first = wallet.fee_child(&request(&parent, &none)).await.unwrap();
    wallet.record_unconfirmed(&first.transaction).await.unwrap();
    assert!(wallet.coins().await.is_empty());

    // Another parent must not take the coin that is in use.
    let other = Transaction {
        lock_time: absolute::LockTime::from_consensus(1),
        ..parent.clone()
    };
    assert!(matches!(
        wallet.fee_child(&request(&other, &none)).await,
        Err(WalletError::NoConfirmedCoin { .. })
    ));

    let second = wallet
        .fee_child(&FeeChildRequest {
            outbid: Some(first.fee),
            ..request(&parent, &none)
        })
        .await
        .unwrap();
    assert_eq!(
        (second.coin, second.fee),
        (first.coin, first.fee + sat(153))
    );
    wallet
        .record_unconfirmed(&second.transaction)
        .await
        .unwrap();
    assert_eq!(
        wallet.balance().await.unwrap().pending,
        second.transaction.output[0].value
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_size_is_foreseen_and_the_package_pays_its_feerate(
        outputs in 1usize..60, payouts in 0usize..6, coin in 0u64..3_000_000, value in 330u64..400_000, rate in 250u64..50_000,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (wallet, _, _) = wallet_with(&[coin.max(330)]).await;
            let parent = parent((0..outputs).map(|_| payout(value, 5)).collect());
            let own: Vec<OwnPayout> = (0..u32::try_from(payouts.min(outputs)).unwrap()).map(|vout| OwnPayout { vout, key: key(5) }).collect();
            let none = HashSet::new();
            let feerate = FeeRate::from_sat_per_kwu(rate);
            let asked = FeeChildRequest { payouts: &own, feerate, ..request(&parent, &none) };
            let Ok(child) = wallet.fee_child(&asked).await else { return };
            let vsize = u64::try_from(child.transaction.vsize()).unwrap();
            let signed = child.transaction.input.len() - 1;
            assert_eq!(vsize, child_vsize(signed, &child.transaction.output[0].script_pubkey));
            let both = u64::try_from(parent.vsize()).unwrap() + vsize;
            // To the satoshi: one less would miss the feerate.
            assert_eq!(child.fee, feerate.fee_vb(both).unwrap());
            let brought = value * u64::try_from(own.len()).unwrap() + child.coin.map_or(0, |_| coin.max(330));
            assert_balanced(&child, brought);
        });
    }
}
