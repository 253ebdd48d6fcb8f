//! Purchases, and sales that were signed.

use bitcoin::Amount;
use channel_host::PaymentHash;
use factory_tree::ids::{Attempt, FactoryId, LeafId, SaleId};
use factory_tree::purpose::Purpose;
use factory_tree::sale::cosigner::PendingSale;
use factory_tree::sale::message::SaleRound;
use factory_tree::sale::order::{PurchaseState, SignedQuote};
use factory_tree::sale::{Sale, SoldChannel};
use factory_tree::units::Height;

use super::{factory, join, key, open, outpoint, record};
use crate::store::{
    FactoryStore, IdentityStore, JoinStore, PurchaseRow, PurchaseStore, PurchaseTerms, RefusedSale,
    SaleStore, SignedStore, SqliteStore, StoreError,
};

fn pending(number: u8) -> PendingSale {
    let channel = SoldChannel {
        position: 0,
        leaf_id: LeafId([number; 16]),
        channel_key: key(1),
        lsp_channel_key: key(2),
        capacity: Amount::from_sat(50_000),
    };
    PendingSale {
        round: SaleRound {
            sale: SaleId([number; 16]),
            attempt: Attempt(1),
        },
        sale: Sale {
            id: SaleId([number; 16]),
            stock: outpoint(3),
            number,
            bought: channel,
            bonus: Vec::new(),
        },
        channel_signature: None,
    }
}

/// What was signed of a sale is stored with the guard's records, or neither is; it is over with the kit that has it.
#[tokio::test]
async fn a_signed_sale_waits_for_its_kit() {
    let (_dir, store) = open().await;
    store.record_join(&join(1)).await.unwrap();
    store.store_kit(&factory(1), b"kit").await.unwrap();
    let id = FactoryId([1; 32]);
    let first = [record(Purpose::Next, 1, 10)];
    let epoch = store.epoch().await.unwrap();
    store.record_sale(&first, id, &pending(1)).await.unwrap();
    assert_eq!(store.signed(&[outpoint(3)]).await.unwrap(), first);
    // The next attempt, in its place.
    let mut again = pending(1);
    again.round.attempt = Attempt(2);
    store.record_sale(&first, id, &again).await.unwrap();
    let other = [record(Purpose::Next, 2, 10)];
    assert!(matches!(
        store.record_sale(&other, id, &pending(2)).await,
        Err(StoreError::DoubleSign { .. })
    ));
    assert_eq!(store.pending_sales().await.unwrap(), [(id, again)]);
    store.replace_kit(id, b"with the sale").await.unwrap();
    assert_eq!(store.kit(id).await.unwrap(), b"with the sale");
    assert!(store.pending_sales().await.unwrap().is_empty());
    assert_eq!(store.epoch().await.unwrap(), epoch + 3);
    let none = FactoryId([2; 32]);
    assert!(matches!(
        store.replace_kit(none, b"kit").await,
        Err(StoreError::NoFactory(_))
    ));
}

#[tokio::test]
async fn the_first_double_sale_of_a_factory_is_remembered() {
    let (dir, store) = open().await;
    store.record_join(&join(1)).await.unwrap();
    store.store_kit(&factory(1), b"kit").await.unwrap();
    let refused = |found: &str, height| RefusedSale {
        factory: FactoryId([1; 32]),
        found: found.to_owned(),
        height: Height(height),
    };
    for (found, height) in [("the first", 7), ("the second", 8)] {
        let row = refused(found, height);
        store.add_refused_sale(&row).await.unwrap();
    }
    store.close().await;
    let store = SqliteStore::open(dir.path().join("client.sqlite"));
    let found = store.await.unwrap().refused_sales().await.unwrap();
    assert_eq!(found, [refused("the first", 7)]);
}

fn purchase(n: u8) -> PurchaseRow {
    PurchaseRow {
        sale: SaleId([n; 16]),
        factory: FactoryId([1; 32]),
        nonce: [n; 16],
        leaf_id: LeafId([n; 16]),
        channel_key: key(n),
        quote: SignedQuote {
            text: "quote".to_owned(),
            signature: "signature".to_owned(),
        },
        consent: true,
        automatic: true,
        hash: None,
        invoice: None,
        state: PurchaseState::Ordered,
        note: String::new(),
        created_time: 7,
        ended_time: None,
    }
}

#[tokio::test]
async fn a_purchase_keeps_its_place_and_what_is_sold_stays_sold() {
    let (_dir, store) = open().await;
    store.record_join(&join(1)).await.unwrap();
    store.store_kit(&factory(1), b"kit").await.unwrap();
    store.add_purchase(&purchase(1)).await.unwrap();
    type Reuse = fn(&mut PurchaseRow);
    let reuses: [(&str, Reuse); 4] = [
        ("sale", |p| p.sale = SaleId([1; 16])),
        ("nonce", |p| p.nonce = [1; 16]),
        ("leaf id", |p| p.leaf_id = LeafId([1; 16])),
        ("channel key", |p| p.channel_key = key(1)),
    ];
    for (name, reuse) in reuses {
        let mut second = purchase(2);
        reuse(&mut second);
        match store.add_purchase(&second).await {
            Err(StoreError::Reused { what }) => assert_eq!(what, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    let sale = SaleId([1; 16]);
    let hash = PaymentHash([3; 32]);
    store.set_invoice(sale, hash, "invoice").await.unwrap();
    let set = async |state, note, ended| {
        store.set_purchase(sale, state, note, ended).await.unwrap();
        store.purchase(sale).await.unwrap().unwrap()
    };
    let paid = set(PurchaseState::Paid, "waiting", None).await;
    let expected = PurchaseRow {
        hash: Some(hash),
        invoice: Some("invoice".to_owned()),
        state: PurchaseState::Paid,
        note: "waiting".to_owned(),
        ..purchase(1)
    };
    assert_eq!(paid, expected);
    // What is paid for is not paid for on another quote.
    let quote = SignedQuote {
        text: "dearer".to_owned(),
        signature: "another".to_owned(),
    };
    let renew = async || {
        let renewed = store.renew_purchase(sale, &quote, PurchaseTerms::default());
        renewed.await.unwrap()
    };
    assert!(!renew().await);
    let over = set(PurchaseState::Cancelled, "back", Some(9)).await;
    assert_eq!(
        (over.state, over.ended_time),
        (PurchaseState::Cancelled, Some(9))
    );
    assert!(renew().await);
    let renewed = store.purchase(sale).await.unwrap().unwrap();
    let expected = PurchaseRow {
        quote: quote.clone(),
        consent: false,
        automatic: false,
        ..purchase(1)
    };
    assert_eq!(renewed, expected);
    set(PurchaseState::Sold, "", None).await;
    let stays = set(PurchaseState::Paid, "late news", None).await;
    assert_eq!(
        (stays.state, stays.note.as_str()),
        (PurchaseState::Sold, "")
    );
    let settled = set(PurchaseState::Settled, "", Some(10)).await;
    assert!(settled.is_over());
    assert_eq!(store.purchases().await.unwrap(), [settled]);
}
