use bitcoin::Transaction;
use bitcoin::absolute::LockTime;
use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey};
use bitcoin::transaction::Version;
use tempfile::TempDir;

use super::*;
use crate::event::PaymentHash;
use crate::pay::Intercepted;
use crate::store::Store;

fn order() -> JitOrder {
    let secret = SecretKey::from_slice(&[7; 32]).unwrap();
    JitOrder {
        client: PublicKey::from_secret_key(&Secp256k1::new(), &secret),
        payment_msat: Some(100_000_000),
        min_fee_msat: 2_000_000,
        proportional: 10_000,
        min_payment_msat: 10_000_000,
        max_payment_msat: 1_000_000_000,
        valid_until: 1_000,
        max_to_self_delay: 2016,
        margin_sat: 50_000,
        client_trusts_lsp: false,
    }
}

fn htlc(inbound_msat: u64, outbound_msat: u64) -> Intercepted {
    Intercepted {
        hash: PaymentHash([5; 32]),
        scid: 1,
        inbound_msat,
        outbound_msat,
        outgoing_expiry: 900,
    }
}

#[test]
fn the_fee_is_the_specifications() {
    // Rounded up, and never less than the least.
    assert_eq!(opening_fee(100_000_001, 1, 10_000), Some(1_000_001));
    assert_eq!(opening_fee(100_000_000, 1, 10_000), Some(1_000_000));
    assert_eq!(opening_fee(100, 546, 10_000), Some(546));
    assert_eq!(opening_fee(u64::MAX, 0, 2), None);
    // bLIP-52 adds 999,999 first, and wants an overflow of that refused as well.
    assert_eq!(opening_fee(u64::MAX, 0, 1), None);
}

#[test]
fn only_what_was_promised_is_served() {
    let order = order();
    assert_eq!(order.fee_for(100_000_000), Some(2_000_000));
    assert_eq!(order.fee_for(500_000_000), Some(5_000_000));
    assert_eq!(order.fee_for(9_999_999), None);
    assert_eq!(order.fee_for(1_000_000_001), None);
    let dear = JitOrder {
        min_fee_msat: 10_000_000,
        ..order
    };
    assert_eq!(dear.fee_for(10_000_000), None, "it would eat the payment");
    assert_eq!(dear.capacity(100_000_001).to_sat(), 150_001);
    assert_eq!(dear.capacity(1_000_000_000).to_sat(), 1_100_000);
}

#[test]
fn a_fee_is_divided_to_the_last_msat() {
    let sums = [
        (vec![100, 100, 101], 7),
        (vec![1, 1, 1_000_000], 999_999),
        (vec![5], 4),
        (vec![5, 6], 0),
    ];
    for (parts, fee) in sums {
        let shares = shares(&parts, fee).unwrap();
        assert_eq!(shares.iter().sum::<u64>(), fee, "{parts:?}");
        assert!(shares.iter().zip(&parts).all(|(share, part)| share < part));
    }
    assert_eq!(shares(&[5], 5), None);
    assert_eq!(shares(&[1, 1], 1), None);
    assert_eq!(shares(&[], 0), Some(vec![]));
}

#[test]
fn more_than_was_ordered_buys_no_larger_channel() {
    let mut order = order();
    let (wanted, most) = (order.min_payment_msat, order.max_payment_msat);
    order.payment_msat = Some(wanted);
    let fee = order.fee_for(wanted);
    assert!(fee.is_some());
    assert_eq!(order.fee_of(wanted), fee);
    assert_eq!(order.fee_of(2 * wanted), fee, "somewhat more is in order");
    assert_eq!(order.fee_of(2 * wanted + 1), None);
    order.payment_msat = Some(most);
    assert_eq!(order.fee_of(most + 1), None);
    // Without a size the fee follows what came.
    order.payment_msat = None;
    assert_eq!(order.fee_of(most), order.fee_for(most));
    assert_eq!(order.fee_of(most + 1), None);
}

#[test]
fn a_part_is_counted_once() {
    let mut record = Record::new(1, order());
    record.stage = Stage::Open;
    record.fee_msat = 10;
    record.parts = vec![(([1; 32], 0), None), (([1; 32], 1), None)];
    record.claimed(&([1; 32], 0), 6);
    record.claimed(&([1; 32], 0), 6);
    assert_eq!((record.taken(), record.stage), (6, Stage::Open));
    record.claimed(&([2; 32], 1), 4);
    assert_eq!(record.stage, Stage::Open, "somebody else's");
    record.claimed(&([1; 32], 1), 4);
    assert_eq!((record.taken(), record.stage), (10, Stage::Paid));
}

#[test]
fn what_can_never_be_served_is_sent_back_at_once() {
    let good = htlc(50_000_000, 50_000_000);
    let mut record = Record::new(1, order());
    assert_eq!(record.refusal(&good, true, 1_000), None, "a part");
    assert_eq!(
        record.refusal(&good, true, 1_001),
        Some(JitRefusal::Expired)
    );
    assert_eq!(record.refusal(&good, false, 0), Some(JitRefusal::TooMany));
    let hollow = htlc(49_999_999, 50_000_000);
    assert_eq!(record.refusal(&hollow, true, 0), Some(JitRefusal::Hollow));
    record.order.payment_msat = None;
    let small = htlc(9_000_000, 9_000_000);
    let refusal = record.refusal(&small, true, 0);
    assert_eq!(refusal, Some(JitRefusal::Size(9_000_000)));
    // Once the fee is paid the number is like any other; what is hollow stays so.
    record.stage = Stage::Paid;
    assert_eq!(record.refusal(&small, false, 9_999), None);
    assert_eq!(record.refusal(&hollow, true, 0), Some(JitRefusal::Hollow));
    record.stage = Stage::Over;
    assert_eq!(record.refusal(&good, true, 0), Some(JitRefusal::Over));
}

#[test]
fn a_client_that_trusts_us_pays_before_the_channel_does() {
    for trusts in [false, true] {
        let mut record = Record::new(
            1,
            JitOrder {
                client_trusts_lsp: trusts,
                ..order()
            },
        );
        assert!(!record.may_be_funded());
        record.stage = Stage::Open;
        record.fee_msat = 10;
        record.parts = vec![(([1; 32], 0), None), (([1; 32], 1), None)];
        assert_eq!(record.may_be_funded(), !trusts);
        record.claimed(&([1; 32], 0), 1);
        assert_eq!(record.may_be_funded(), !trusts, "a share is not the fee");
        record.claimed(&([1; 32], 1), 9);
        assert!(record.may_be_funded());
    }
}

#[test]
fn what_was_sent_out_is_owed_whatever_becomes_of_the_channel() {
    let mut record = Record::new(1, order());
    record.stage = Stage::Over;
    record.funding = Some(Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![],
        output: vec![],
    });
    assert!(!record.may_be_funded());
    assert!(record.is_stale(9_999));
    record.released = true;
    assert!(record.may_be_funded());
    assert!(!record.is_stale(9_999));
    record.funding = None;
    assert!(record.is_stale(9_999), "it is in the chain");
}

#[test]
fn a_channel_that_nobody_pays_for_is_not_held_open() {
    let htlc = htlc(50_000_000, 50_000_000);
    let mut record = Record::new(1, order());
    for stage in [Stage::Opening, Stage::Open] {
        record.stage = stage;
        assert_eq!(record.refusal(&htlc, true, 1_001), None, "it is funded");
        let withheld = Record {
            order: JitOrder {
                client_trusts_lsp: true,
                ..order()
            },
            ..record.clone()
        };
        assert_eq!(withheld.refusal(&htlc, true, 1_000), None, "in time");
        let late = withheld.refusal(&htlc, true, 1_001);
        assert_eq!(late, Some(JitRefusal::Expired));
    }
}

#[test]
fn a_leafs_channel_waits_for_its_payment() {
    let htlc = htlc(50_000_000, 50_000_000);
    let trusting = JitOrder {
        client_trusts_lsp: true,
        ..order()
    };
    for terms in [order(), trusting] {
        let mut record = Record::new(1, terms);
        record.id = 7 << 64;
        record.stage = Stage::Opening;
        assert_eq!(record.refusal(&htlc, true, 1_000), None, "in time");
        let late = record.refusal(&htlc, true, 1_001);
        assert_eq!(late, Some(JitRefusal::Expired), "another would be opened");
        // Nothing was withheld for it, and nothing closes it.
        record.stage = Stage::Open;
        assert_eq!(record.refusal(&htlc, true, 1_001), None);
        assert!(!record.is_unpaid_for());
    }
}

#[test]
fn nothing_but_its_own_payment_goes_over_a_channel_whose_fee_is_not_paid() {
    let directory = TempDir::new().unwrap();
    let store = Store::open(&directory.path().join("channels.sqlite")).unwrap();
    let book = JitBook::open(store).unwrap();
    book.add(1, order(), 0).unwrap();
    let to = |stage| {
        let change = |record: &mut Record| {
            record.stage = stage;
            record.id = 9;
            record.hash = Some([5; 32]);
        };
        book.update(1, change).unwrap();
        book.is_unpaid(9)
    };
    assert!(to(Stage::Opening) && to(Stage::Open));
    assert!(!to(Stage::Paid) && !to(Stage::Over));
    assert!(!book.is_unpaid(8), "an ordinary channel");
    // Two orders under one hash could not be told apart.
    assert!(book.has_elsewhere(2, &[5; 32]));
    assert!(!book.has_elsewhere(1, &[5; 32]) && !book.has_elsewhere(2, &[6; 32]));
}

#[test]
fn orders_outlive_the_process_and_not_their_time() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("channels.sqlite");
    let store = Store::open(&path).unwrap();
    let book = JitBook::open(store.clone()).unwrap();
    book.add(1, order(), 0).unwrap();
    book.add(2, order(), 0).unwrap();
    book.update(2, |record| {
        record.stage = Stage::Opening;
        record.id = 9 << 64 | 1;
    })
    .unwrap();
    drop(book);
    store.close();
    drop(store);
    let book = JitBook::open(Store::open(&path).unwrap()).unwrap();
    assert_eq!(book.get(1).unwrap().order, order());
    assert_eq!(book.by_channel(9 << 64 | 1).unwrap().scid, 2);
    assert!(book.by_channel(0).is_none(), "a channel the peer opened");
    // The first is stale, the second has a channel on its way.
    let later = JitOrder {
        valid_until: 5_000,
        ..order()
    };
    book.add(3, later, 2_000).unwrap();
    let mut left: Vec<u64> = book.all().iter().map(|record| record.scid).collect();
    left.sort_unstable();
    assert_eq!(left, [2, 3]);
}
