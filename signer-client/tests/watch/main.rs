//! What the wallet makes of the chain, on a chain that the test mines.

mod chain;
mod wallet;

use bitcoin::absolute::LockTime;
use bitcoin::transaction::Version;
use bitcoin::{Amount, FeeRate, Transaction, TxIn, TxOut};
use factory_tree::params::ExpiryPolicy;
use signer_client::Event;
use signer_client::client::sweep;
use signer_client::store::Handover;

use wallet::{Wallet, kit, leave_by};

#[tokio::test]
async fn one_damaged_kit_does_not_keep_the_others_from_anything() {
    let mut wallet = Wallet::new(1000).await;
    let damaged = kit(1, ExpiryPolicy::ClientRefund);
    let good = kit(2, ExpiryPolicy::ClientRefund);
    wallet.hold(&damaged, b"{\"version\":1}").await;
    wallet.hold_good(&good).await;
    wallet.chain.mine(vec![good.funding_tx.clone()]);
    wallet.chain.mine(vec![]);
    wallet.run();
    let events = wallet.synced().await;
    let factory = good.factory_id;
    assert!(
        events.contains(&Event::FactoryUsable { factory }),
        "{events:?}"
    );
    // The damaged one is shown as such.
    let shown = wallet.client.factories().await.unwrap();
    let states: Vec<&str> = shown.iter().map(|factory| factory.state).collect();
    assert_eq!(states, ["damaged", "usable"]);
    // The other one's timeout is still published.
    wallet.chain.mine_to(good.expiry.0);
    wallet.synced().await;
    assert!(!wallet.chain.published().is_empty());
}

#[tokio::test]
async fn a_factory_that_is_funded_late_is_not_used() {
    for policy in [ExpiryPolicy::ClientRefund, ExpiryPolicy::LspReclaim] {
        let kit = kit(3, policy);
        let (factory, leave_by) = (kit.factory_id, leave_by(&kit));
        let mut wallet = Wallet::new(leave_by - 10).await;
        wallet.hold_good(&kit).await;
        wallet.client.join(Amount::ZERO).await.unwrap();
        wallet.run();
        // At two confirmations the next block is the last that will do.
        wallet.chain.mine_to(leave_by - 3);
        let late = Event::FactoryLate {
            factory,
            leave_by_height: leave_by,
        };
        assert!(!wallet.synced().await.contains(&late), "{policy:?}");
        wallet.chain.mine(vec![]);
        assert!(wallet.synced().await.contains(&late), "{policy:?}");
        wallet.chain.mine(vec![kit.funding_tx.clone()]);
        wallet.chain.mine(vec![]);
        let events = wallet.synced().await;
        assert!(!events.contains(&Event::FactoryUsable { factory }));
        assert!(!events.contains(&late), "told twice");
        let shown = wallet.client.factories().await.unwrap();
        assert_eq!(shown[0].state, "late");
        // What was asked for is still wanted.
        let wish = wallet.client.store().interest().await.unwrap();
        assert!(wish.is_some());
    }
}

#[tokio::test]
async fn the_last_block_that_will_do_is_enough() {
    let kit = kit(4, ExpiryPolicy::ClientRefund);
    let (factory, leave_by) = (kit.factory_id, leave_by(&kit));
    let mut wallet = Wallet::new(leave_by - 10).await;
    wallet.hold_good(&kit).await;
    wallet.run();
    wallet.chain.mine_to(leave_by - 3);
    wallet.chain.mine(vec![kit.funding_tx.clone()]);
    wallet.chain.mine(vec![]);
    let events = wallet.synced().await;
    assert!(
        events.contains(&Event::FactoryUsable { factory }),
        "{events:?}"
    );
}

#[tokio::test]
async fn a_factory_without_timeouts_warns_in_its_dying_days() {
    let kit = kit(5, ExpiryPolicy::LspReclaim);
    let leave_by = leave_by(&kit);
    let dying = leave_by - kit.params.dying;
    let mut wallet = Wallet::new(dying - 10).await;
    wallet.hold_good(&kit).await;
    wallet.chain.mine(vec![kit.funding_tx.clone()]);
    wallet.chain.mine_to(dying - 1);
    wallet.run();
    let soon = Event::LeaveSoon {
        factory: kit.factory_id,
        leave_by_height: leave_by,
        coins_suffice: false,
    };
    assert!(!wallet.synced().await.contains(&soon));
    wallet.chain.mine(vec![]);
    assert!(wallet.synced().await.contains(&soon));
    wallet.chain.mine(vec![]);
    assert!(!wallet.synced().await.contains(&soon), "told twice");
}

#[tokio::test]
async fn dust_from_strangers_is_not_swept() {
    let kit = kit(6, ExpiryPolicy::ClientRefund);
    let mut wallet = Wallet::new(1000).await;
    wallet.hold_good(&kit).await;
    // Anybody may pay to a script that was on the chain once.
    let mut paying = kit.funding_tx.clone();
    let paid = |sat| TxOut {
        value: Amount::from_sat(sat),
        script_pubkey: kit.payout_script.clone(),
    };
    paying.output = vec![paid(330); 100];
    paying.output.push(paid(50_000));
    wallet.chain.mine(vec![paying]);
    wallet.run();
    wallet.synced().await;
    let feerate = FeeRate::from_sat_per_vb_u32(10);
    let swept = sweep(&wallet.client, Some(feerate)).await.unwrap();
    assert_eq!((swept.payouts, swept.sat + swept.fee_sat), (1, 50_000));
}

#[tokio::test]
async fn no_satoshi_of_a_payout_is_counted_twice() {
    let kit = kit(7, ExpiryPolicy::ClientRefund);
    let mut wallet = Wallet::new(kit.birth.0).await;
    wallet.hold_good(&kit).await;
    wallet.chain.mine(vec![kit.funding_tx.clone()]);
    wallet.run();
    wallet.synced().await;
    let balance = wallet.client.balance().await.unwrap();
    assert_eq!(balance.in_factories_sat, kit.capacity.to_sat());
    // Nothing of it is this wallet's before somebody pays it.
    assert_eq!(balance.total_sat, 0);
    // The timeout is published: its payout is counted, the capacity no more.
    wallet.chain.mine_to(kit.expiry.0);
    wallet.synced().await;
    let published = wallet.chain.published();
    let mut txs = kit.txs.iter();
    let timeout = txs.find(|tx| published.contains(&tx.txid())).unwrap();
    let outputs = timeout.tx.output.iter();
    let paid = outputs.filter(|o| o.script_pubkey == kit.payout_script);
    let paid: u64 = paid.map(|o| o.value.to_sat()).sum();
    let balance = wallet.client.balance().await.unwrap();
    let parts = (balance.in_factories_sat, balance.payouts_coming_sat);
    assert_eq!((parts, balance.total_sat), ((0, paid), paid));
    // Confirmed: it is in another place, and no more than before.
    wallet.chain.mine(vec![timeout.tx.clone()]);
    wallet.synced().await;
    let balance = wallet.client.balance().await.unwrap();
    let parts = (balance.payouts_coming_sat, balance.payouts_sat);
    assert_eq!((parts, balance.total_sat), ((0, paid), paid));
    let shown = wallet.client.factories().await.unwrap();
    assert_eq!((shown[0].state, shown[0].over), ("paid", true));
    assert_eq!((shown[0].coverage_sat, shown[0].coverage_awake_sat), (0, 0));
    let told = shown[0].on_chain_words.clone().unwrap();
    let due = format!("{paid} sat were paid out");
    assert!(told.contains(&due), "{told}");
    let quote = wallet.client.quote_exit(kit.factory_id, &[10]).await;
    let quote = quote.unwrap();
    assert!(quote.over && quote.quotes.is_empty(), "{quote:?}");
    let parts = (quote.capacity_sat, quote.path_transactions);
    assert_eq!((parts, quote.coverage_sat), ((0, 0), 0));
}

#[tokio::test]
async fn who_is_brought_to_the_chain_by_another_is_told_what_that_means() {
    let kit = kit(8, ExpiryPolicy::ClientRefund);
    let mut wallet = Wallet::new(kit.birth.0).await;
    wallet.hold_good(&kit).await;
    wallet.chain.mine(vec![kit.funding_tx.clone()]);
    wallet.run();
    wallet.synced().await;
    let before = wallet.client.quote_exit(kit.factory_id, &[10]).await;
    let before = before.unwrap();
    let path: Vec<_> = kit.path().map(|tx| tx.tx.clone()).collect();
    assert_eq!(before.path_transactions, path.len());
    let (leaf, above) = path.split_last().unwrap();
    for tx in above {
        wallet.chain.mine(vec![tx.clone()]);
    }
    wallet.synced().await;
    let shown = wallet.client.factories().await.unwrap();
    assert_eq!((shown[0].state, shown[0].over), ("unrolling", false));
    let seen = shown[0].on_chain.unwrap();
    let parts = (seen.path_confirmed, seen.path_transactions);
    assert_eq!(parts, (path.len() - 1, path.len()));
    assert_eq!((seen.leaf_height, seen.by_this_wallet), (None, false));
    // What others published is not paid for a second time.
    let quote = wallet.client.quote_exit(kit.factory_id, &[10]).await;
    let quote = quote.unwrap();
    assert_eq!(quote.path_transactions, 1);
    assert!(quote.quotes[0].cost_sat < before.quotes[0].cost_sat);
    wallet.chain.mine(vec![leaf.clone()]);
    wallet.synced().await;
    let height = wallet.chain.id().height;
    let shown = wallet.client.factories().await.unwrap();
    assert_eq!(shown[0].on_chain.unwrap().leaf_height, Some(height));
    let told = shown[0].on_chain_words.clone().unwrap();
    assert!(told.starts_with("Somebody else published it"), "{told}");
    assert!(told.contains(&format!("since block {height}")), "{told}");
    let quote = wallet.client.quote_exit(kit.factory_id, &[10]).await;
    let quote = quote.unwrap();
    assert_eq!((quote.over, quote.path_transactions), (false, 0));
}

#[tokio::test]
async fn what_others_took_back_is_not_to_be_left_and_after_a_handover_no_theft() {
    let kit = kit(9, ExpiryPolicy::LspReclaim);
    let mut wallet = Wallet::new(kit.birth.0).await;
    wallet.hold_good(&kit).await;
    wallet.chain.mine(vec![kit.funding_tx.clone()]);
    wallet.run();
    wallet.synced().await;
    let shown = wallet.client.factories().await.unwrap();
    assert_eq!(shown[0].leave_by_height, Some(leave_by(&kit)));
    let input = TxIn {
        previous_output: kit.funding(),
        ..TxIn::default()
    };
    wallet.chain.mine(vec![Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![input],
        output: kit.funding_tx.output.clone(),
    }]);
    wallet.synced().await;
    let shown = wallet.client.factories().await.unwrap();
    assert_eq!((shown[0].state, shown[0].over), ("ended", true));
    assert_eq!(shown[0].leave_by_height, None);
    let told = shown[0].on_chain_words.clone().unwrap();
    assert!(told.contains("others spent all of it"), "{told}");
    // Who handed its keys over meant it to be so.
    let store = wallet.client.store();
    let sent = Some(Handover::Sent);
    store.set_handover(kit.factory_id, sent).await.unwrap();
    let shown = wallet.client.factories().await.unwrap();
    let told = shown[0].on_chain_words.clone().unwrap();
    assert!(told.contains("its balance had moved before"), "{told}");
}
