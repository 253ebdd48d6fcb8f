//! The wallet over a chain of our own making.

use std::collections::HashSet;
use std::sync::Arc;

use bitcoin::{Address, Amount, FeeRate, Network, Transaction, TxOut, absolute};

use super::test_chain::{foreign_script, master, paying, wallet_with};
use super::*;

const RATE: FeeRate = FeeRate::from_sat_per_vb_u32(5);

fn sat(n: u64) -> Amount {
    Amount::from_sat(n)
}

fn output(n: u64) -> TxOut {
    TxOut {
        value: sat(n),
        script_pubkey: foreign_script(),
    }
}

fn balance(confirmed: u64, pending: u64, locked: u64) -> WalletBalance {
    WalletBalance {
        confirmed: sat(confirmed),
        pending: sat(pending),
        immature: Amount::ZERO,
        locked: sat(locked),
    }
}

#[tokio::test]
async fn what_was_stored_is_there_after_a_restart_and_survives_serialization() {
    let (wallet, _, store) = wallet_with(&[40_000]).await;
    let address = wallet.new_address().await.unwrap();
    let stored = store.load().await.unwrap().unwrap();
    let copied: ChangeSet = serde_json::from_str(&serde_json::to_string(&stored).unwrap()).unwrap();
    assert_eq!(copied, stored);

    let reopened = OnchainWallet::open(Network::Regtest, &master(1), store, None)
        .await
        .unwrap();
    assert_eq!(reopened.balance().await.unwrap(), balance(40_000, 0, 0));
    assert_eq!(reopened.coins().await, wallet.coins().await);
    assert_eq!(reopened.checkpoints().await.len(), 2);
    assert_ne!(
        reopened.new_address().await.unwrap(),
        address,
        "an address is given out once"
    );
}

#[tokio::test]
async fn a_wallet_of_other_keys_or_another_network_is_refused() {
    let (_, _, store) = wallet_with(&[]).await;
    let opened = OnchainWallet::open(Network::Regtest, &master(2), store.clone(), None).await;
    assert!(matches!(opened, Err(WalletError::OtherSeed)));
    let opened = OnchainWallet::open(Network::Signet, &master(1), store, None).await;
    assert!(matches!(
        opened,
        Err(WalletError::OtherNetwork {
            expected: Network::Signet,
            found: Network::Regtest
        })
    ));
}

#[tokio::test]
async fn no_secret_is_shown_or_stored() {
    let (wallet, _, store) = wallet_with(&[]).await;
    let stored = serde_json::to_string(&store.load().await.unwrap()).unwrap();
    assert!(!stored.contains("tprv") && stored.contains("tpub"));
    assert!(!format!("{wallet:?}").contains("tprv"));
}

#[tokio::test]
async fn disconnected_coins_cannot_be_spent_until_they_are_mined_again() {
    let (wallet, mut chain, _) = wallet_with(&[40_000]).await;
    let script = wallet.new_address().await.unwrap().script_pubkey();
    let received = paying(
        &[TxOut {
            value: sat(7_000),
            script_pubkey: script,
        }],
        2,
    );
    wallet
        .apply(&chain.mine(vec![received.clone()]))
        .await
        .unwrap();
    assert_eq!(wallet.balance().await.unwrap(), balance(47_000, 0, 0));

    wallet.apply(&chain.disconnect()).await.unwrap();
    assert_eq!(wallet.balance().await.unwrap(), balance(40_000, 7_000, 0));
    assert_eq!(wallet.checkpoints().await.last().unwrap().height, 1);
    wallet.apply(&chain.mine(vec![])).await.unwrap();
    assert_eq!(wallet.balance().await.unwrap().confirmed, sat(40_000));
    wallet.apply(&chain.mine(vec![received])).await.unwrap();
    assert_eq!(wallet.balance().await.unwrap(), balance(47_000, 0, 0));
}

#[tokio::test]
async fn a_block_that_does_not_connect_is_refused() {
    let (wallet, mut chain, _) = wallet_with(&[]).await;
    chain.mine(vec![]);
    let beyond = chain.mine(vec![]);
    assert!(matches!(
        wallet.apply(&beyond).await,
        Err(WalletError::Gap { height: 3 })
    ));
}

#[tokio::test]
async fn a_young_block_reward_is_immature() {
    let (wallet, mut chain, _) = wallet_with(&[]).await;
    let script_pubkey = wallet.new_address().await.unwrap().script_pubkey();
    let reward = Transaction {
        input: vec![bitcoin::TxIn::default()],
        lock_time: absolute::LockTime::ZERO,
        ..paying(
            &[TxOut {
                value: sat(50_000),
                script_pubkey,
            }],
            0,
        )
    };
    wallet.apply(&chain.mine(vec![reward])).await.unwrap();
    for _ in 0..98 {
        wallet.apply(&chain.mine(vec![])).await.unwrap();
    }
    let immature = WalletBalance {
        immature: sat(50_000),
        ..WalletBalance::default()
    };
    assert_eq!(wallet.balance().await.unwrap(), immature);
    assert_eq!(immature.total().unwrap(), sat(50_000));
    wallet.apply(&chain.mine(vec![])).await.unwrap();
    assert_eq!(wallet.balance().await.unwrap(), balance(50_000, 0, 0));
}

#[tokio::test]
async fn a_funding_has_its_output_first_a_change_last_and_reserves_its_inputs() {
    let (wallet, _, _) = wallet_with(&[60_000, 30_000]).await;
    let draft = wallet
        .build_funding(&[output(40_000)], &[], &HashSet::new(), RATE)
        .await
        .unwrap();
    assert_eq!(draft.transaction.output[0], output(40_000));
    assert_eq!(draft.transaction.output.len(), 2);
    assert_eq!(
        (draft.change.txid, draft.change.vout),
        (draft.transaction.compute_txid(), 1)
    );
    let change = draft.transaction.output[1].value;
    assert_eq!(sat(60_000), sat(40_000) + change + draft.fee);
    assert_eq!(wallet.balance().await.unwrap(), balance(30_000, 0, 60_000));

    // The next attempt takes the same pin, which is reserved, and no other coin.
    let pin: Vec<_> = draft.inputs().collect();
    let again = wallet
        .build_funding(&[output(40_000)], &pin, &HashSet::new(), RATE)
        .await
        .unwrap();
    assert_eq!(again.inputs().collect::<Vec<_>>(), pin);
    wallet.release(pin).await;
    assert_eq!(wallet.balance().await.unwrap(), balance(90_000, 0, 0));
}

#[tokio::test]
async fn a_funding_without_room_for_its_change_is_refused() {
    let (wallet, _, _) = wallet_with(&[50_000]).await;
    let refused = wallet
        .build_funding(&[output(40_000)], &[], &HashSet::new(), RATE)
        .await;
    assert!(
        matches!(refused, Err(WalletError::NotEnough { available, .. }) if available == sat(50_000))
    );
    let refused = wallet
        .build_funding(&[output(100)], &[], &HashSet::new(), RATE)
        .await;
    assert!(matches!(refused, Err(WalletError::Dust { .. })));
    assert!(wallet.reserved().await.is_empty());
}

#[tokio::test]
async fn an_unconfirmed_coin_never_funds() {
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
    assert_eq!(wallet.balance().await.unwrap(), balance(50_000, 90_000, 0));
    assert!(matches!(
        wallet
            .build_funding(&[output(60_000)], &[], &HashSet::new(), RATE)
            .await,
        Err(WalletError::NotEnough { .. })
    ));
}

#[tokio::test]
async fn a_payment_takes_its_coins_and_gives_them_back_when_forgotten() {
    let (wallet, _, _) = wallet_with(&[60_000, 30_000]).await;
    let to = Address::from_script(&foreign_script(), Network::Regtest)
        .unwrap()
        .into_unchecked();
    let paid = wallet
        .build_payment(&to, SendAmount::Exactly(sat(20_000)), RATE)
        .await
        .unwrap();
    assert_eq!(paid.transaction.output[0], output(20_000));
    let change = sat(40_000) - paid.fee;
    assert_eq!(
        wallet.balance().await.unwrap(),
        balance(30_000, change.to_sat(), 0)
    );
    wallet
        .forget_unconfirmed([paid.transaction.compute_txid()])
        .await
        .unwrap();
    assert_eq!(wallet.balance().await.unwrap(), balance(90_000, 0, 0));

    let all = wallet
        .build_payment(&to, SendAmount::All, RATE)
        .await
        .unwrap();
    assert_eq!(
        all.transaction.output,
        vec![output(90_000 - all.fee.to_sat())]
    );
    assert_eq!(
        u64::try_from(all.transaction.vsize()).unwrap() * 5,
        all.fee.to_sat()
    );
    assert_eq!(wallet.balance().await.unwrap(), balance(0, 0, 0));
}

#[tokio::test]
async fn change_that_would_be_dust_goes_to_the_miner() {
    let (wallet, _, _) = wallet_with(&[20_800]).await;
    let to = Address::from_script(&foreign_script(), Network::Regtest)
        .unwrap()
        .into_unchecked();
    let paid = wallet
        .build_payment(&to, SendAmount::Exactly(sat(20_000)), RATE)
        .await
        .unwrap();
    assert_eq!(
        (paid.transaction.output, paid.fee),
        (vec![output(20_000)], sat(800))
    );
}

#[tokio::test]
async fn an_address_of_another_network_is_refused() {
    let (wallet, _, _) = wallet_with(&[60_000]).await;
    let to = Address::from_script(&foreign_script(), Network::Bitcoin)
        .unwrap()
        .into_unchecked();
    let refused = wallet.build_payment(&to, SendAmount::All, RATE).await;
    assert!(matches!(
        refused,
        Err(WalletError::AddressOfOtherNetwork {
            expected: Network::Regtest,
            ..
        })
    ));
}

#[tokio::test]
async fn only_our_own_inputs_are_signed() {
    let (wallet, _, _) = wallet_with(&[60_000]).await;
    let mut draft = wallet
        .build_funding(&[output(40_000)], &[], &HashSet::new(), RATE)
        .await
        .unwrap();
    let unsigned = draft.transaction.clone();
    let refused = wallet.sign(&mut draft.transaction, &[output(60_000)]).await;
    assert!(matches!(refused, Err(WalletError::ForeignInput { .. })));
    assert_eq!(draft.transaction, unsigned);
    wallet
        .sign(&mut draft.transaction, &draft.prevouts)
        .await
        .unwrap();
    assert_eq!(draft.transaction.compute_txid(), unsigned.compute_txid());
    let vsize = u64::try_from(draft.transaction.vsize()).unwrap();
    assert_eq!(draft.fee, sat(vsize * 5));
}

#[tokio::test]
async fn what_is_not_ours_is_left_for_others_to_sign() {
    let (wallet, _, _) = wallet_with(&[60_000]).await;
    let coin = wallet.coins().await.remove(0);
    let mut shared = paying(&[output(50_000)], 3);
    shared.input.push(bitcoin::TxIn {
        previous_output: coin.outpoint,
        ..bitcoin::TxIn::default()
    });
    let unsigned = shared.clone();
    // One prevout too few, and one too many: there is no telling which is whose.
    let three = [output(1_000), coin.txout.clone(), output(1_000)];
    for prevouts in [&three[1..2], &three[..]] {
        let refused = wallet.sign_own(&mut shared, prevouts).await;
        assert!(matches!(refused, Err(WalletError::Keys(_))));
        assert_eq!(shared, unsigned);
    }
    let prevouts = [output(1_000), coin.txout.clone()];
    wallet.sign_own(&mut shared, &prevouts).await.unwrap();
    assert!(shared.input[0].witness.is_empty());
    // BIP-341: 64 bytes for the default sighash type; the key is the output's.
    let signature =
        bitcoin::taproot::Signature::from_slice(shared.input[1].witness.nth(0).unwrap()).unwrap();
    let sighash = bitcoin::sighash::SighashCache::new(&shared)
        .taproot_key_spend_signature_hash(
            1,
            &bitcoin::sighash::Prevouts::All(&prevouts),
            bitcoin::TapSighashType::Default,
        )
        .unwrap();
    let key = bitcoin::XOnlyPublicKey::from_slice(&coin.txout.script_pubkey.as_bytes()[2..]);
    bitcoin::secp256k1::Secp256k1::verification_only()
        .verify_schnorr(&signature.signature, &sighash.into(), &key.unwrap())
        .unwrap();
}

#[tokio::test]
async fn only_coins_of_transactions_on_their_way_are_replaceable() {
    let (wallet, mut chain, _) = wallet_with(&[60_000, 40_000]).await;
    let coins = wallet.coins().await;
    let all = coins.iter().map(|coin| coin.outpoint).collect();
    assert_eq!(wallet.replaceable_coins(&all).await, []);
    let mut spend = paying(&[output(30_000)], 3);
    spend.input[0].previous_output = coins[0].outpoint;
    wallet.record_unconfirmed(&spend).await.unwrap();
    assert_eq!(wallet.replaceable_coins(&all).await, coins[..1]);
    assert_eq!(wallet.replaceable_coins(&Default::default()).await, []);
    wallet.apply(&chain.mine(vec![spend])).await.unwrap();
    assert_eq!(wallet.replaceable_coins(&all).await, []);
}

#[derive(Debug, Default)]
struct FullDisk(MemoryStore, std::sync::atomic::AtomicBool);

#[async_trait::async_trait]
impl ChangeSetStore for FullDisk {
    async fn load(&self) -> Result<Option<ChangeSet>, StoreError> {
        self.0.load().await
    }
    async fn append(&self, change: &ChangeSet) -> Result<(), StoreError> {
        if self.1.load(std::sync::atomic::Ordering::Relaxed) {
            Err("no space left".into())
        } else {
            self.0.append(change).await
        }
    }
}

#[tokio::test]
async fn what_the_store_did_not_take_is_offered_to_it_again() {
    let store = Arc::new(FullDisk::default());
    let wallet = OnchainWallet::open(Network::Regtest, &master(1), store.clone(), None)
        .await
        .unwrap();
    store.1.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(matches!(
        wallet.new_address().await,
        Err(WalletError::Store(_))
    ));
    store.1.store(false, std::sync::atomic::Ordering::Relaxed);
    wallet.flush().await.unwrap();
    let next = wallet.new_address().await.unwrap();
    let reopened = OnchainWallet::open(Network::Regtest, &master(1), store, None)
        .await
        .unwrap();
    assert_ne!(reopened.new_address().await.unwrap(), next);
}

/// Within a second of having been recorded again and again, and after a restart in between.
#[tokio::test]
async fn what_is_forgotten_stays_forgotten_however_quickly() {
    let (wallet, _, store) = wallet_with(&[40_000]).await;
    let to = Address::from_script(&foreign_script(), Network::Regtest)
        .unwrap()
        .into_unchecked();
    let paid = wallet
        .build_payment(&to, SendAmount::Exactly(sat(20_000)), RATE)
        .await
        .unwrap();
    for _ in 0..100 {
        wallet.record_unconfirmed(&paid.transaction).await.unwrap();
    }
    drop(wallet);
    let master = master(1);
    let open = || OnchainWallet::open(Network::Regtest, &master, store.clone(), None);
    let wallet = open().await.unwrap();
    let gone = [paid.transaction.compute_txid()];
    wallet.forget_unconfirmed(gone).await.unwrap();
    assert_eq!(wallet.balance().await.unwrap(), balance(40_000, 0, 0));
    drop(wallet);
    let wallet = open().await.unwrap();
    wallet.record_unconfirmed(&paid.transaction).await.unwrap();
    assert!(wallet.coins().await.is_empty(), "its coins are taken again");
}

/// Whoever restores the seed looks only so far beyond the last address that was paid to.
#[tokio::test]
async fn what_was_tried_in_vain_leaves_no_gap_between_the_addresses() {
    let (wallet, _, _) = wallet_with(&[40_000]).await;
    let to = Address::from_script(&foreign_script(), Network::Regtest)
        .unwrap()
        .into_unchecked();
    let first = wallet.change_script().await.unwrap();
    for _ in 0..3 {
        let paid = wallet
            .build_payment(&to, SendAmount::Exactly(sat(20_000)), RATE)
            .await
            .unwrap();
        assert_ne!(wallet.change_script().await.unwrap(), first);
        let gone = [paid.transaction.compute_txid()];
        wallet.forget_unconfirmed(gone).await.unwrap();
        assert_eq!(wallet.change_script().await.unwrap(), first);
    }
}
