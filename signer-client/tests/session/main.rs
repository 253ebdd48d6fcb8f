//! The wallet's side of a session, against a coordinator that does as the test says.

mod chain;
mod coordinator;
mod wallet;

use bitcoin::Amount;
use factory_tree::ceremony::message::{DeclineReason, ToClient, ToCoordinator};
use proto::wire::{FromClient, FromServer, Lightning};
use signer_client::Event;
use signer_client::store::{FactoryStore, JoinStore};

use coordinator::{Coordinator, invitation, round};
use wallet::Wallet;

#[tokio::test]
async fn a_wish_is_told_and_an_invitation_is_joined() {
    let mut coordinator = Coordinator::start(7).await;
    let wallet = Wallet::start(&coordinator.connection()).await;
    wallet.client.join(Amount::from_sat(150_000)).await.unwrap();
    let interest = coordinator.interest().await;
    assert_eq!(interest.capacity, Some(Amount::from_sat(150_000)));
    assert!(!interest.has_fee_coins && interest.once);
    let invitation = invitation(1, 150_000);
    coordinator.send(&ToClient::Invitation(Box::new(invitation)));
    let join = coordinator.join().await;
    assert_eq!(join.round, round(1));
    let stored = wallet.client.store().joins().await.unwrap();
    assert_eq!(stored.len(), 1, "stored before it was sent");
    assert_eq!(stored[0].factory_key, join.factory_key);
    assert_eq!(stored[0].payout_script, join.payout_script);
    assert_eq!(stored[0].leaf_id, join.leaf_id);
    coordinator.send(&ToClient::ConfirmPing(round(1)));
    let present = coordinator.ceremony().await;
    assert_eq!(present, ToCoordinator::Present(round(1)));
}

#[tokio::test]
async fn what_nobody_asked_for_is_declined() {
    let mut coordinator = Coordinator::start(7).await;
    let mut wallet = Wallet::start(&coordinator.connection()).await;
    wallet.wait(|event| *event == Event::Connected).await;
    coordinator.send(&ToClient::Invitation(Box::new(invitation(1, 150_000))));
    coordinator.declined("did not ask").await;
    // Another capacity than asked for.
    wallet.client.join(Amount::from_sat(100_000)).await.unwrap();
    coordinator.interest().await;
    coordinator.send(&ToClient::Invitation(Box::new(invitation(2, 150_000))));
    coordinator.declined("capacity").await;
    assert!(wallet.client.store().joins().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_lost_connection_does_not_end_an_attempt() {
    let mut coordinator = Coordinator::start(7).await;
    let wallet = Wallet::start(&coordinator.connection()).await;
    wallet.client.join(Amount::ZERO).await.unwrap();
    coordinator.interest().await;
    coordinator.send(&ToClient::Invitation(Box::new(invitation(1, 200_000))));
    let first = coordinator.join().await;
    coordinator.set_status(Some(round(1)));
    coordinator.hang_up();
    // The same bytes: no key and no nonce is used twice, none is made in vain.
    assert_eq!(coordinator.join().await, first);
    coordinator.send(&ToClient::Invitation(Box::new(invitation(1, 200_000))));
    assert_eq!(coordinator.join().await, first);
    assert_eq!(wallet.client.store().joins().await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_attempt_the_coordinator_gave_up_is_forgotten() {
    let mut coordinator = Coordinator::start(7).await;
    let mut wallet = Wallet::start(&coordinator.connection()).await;
    wallet.client.join(Amount::ZERO).await.unwrap();
    coordinator.interest().await;
    coordinator.send(&ToClient::Invitation(Box::new(invitation(1, 200_000))));
    let first = coordinator.join().await;
    coordinator.set_status(None);
    coordinator.hang_up();
    let failed = |event: &Event| matches!(event, Event::AttemptFailed { .. });
    wallet.wait(failed).await;
    // The wish is still there, and the next attempt has keys of its own.
    coordinator.interest().await;
    coordinator.send(&ToClient::Invitation(Box::new(invitation(2, 200_000))));
    let second = coordinator.join().await;
    assert_ne!(second.factory_key, first.factory_key);
    assert_ne!(second.payout_script, first.payout_script);
    assert_ne!(second.channel_key, first.channel_key);
    assert_ne!(second.leaf_id, first.leaf_id);
    assert!(
        second
            .nonces
            .iter()
            .all(|nonce| !first.nonces.contains(nonce))
    );
}

#[tokio::test]
async fn all_attempts_of_a_ceremony_share_a_pin() {
    let mut coordinator = Coordinator::start(7).await;
    let wallet = Wallet::start(&coordinator.connection()).await;
    wallet.client.join(Amount::ZERO).await.unwrap();
    coordinator.interest().await;
    coordinator.send(&ToClient::Invitation(Box::new(invitation(1, 200_000))));
    coordinator.join().await;
    let mut second = invitation(2, 200_000);
    second.common_pin.vout += 1;
    coordinator.send(&ToClient::Invitation(Box::new(second)));
    coordinator.declined("common pin").await;
}

#[tokio::test]
async fn another_coordinator_gets_no_signature() {
    let mut coordinator = Coordinator::start(7).await;
    let expected = Coordinator::start(8).await;
    // The address of one, the node id of the other.
    let connection = coordinator.connection_as(&expected);
    let mut wallet = Wallet::start(&connection).await;
    let refused = |event: &Event| match event {
        Event::Disconnected { reason } => reason.contains("expected"),
        _ => false,
    };
    wallet.wait(refused).await;
    assert!(coordinator.heard_only_hello());
}

#[tokio::test]
async fn a_coordinator_that_falls_silent_is_left() {
    let coordinator = Coordinator::start(7).await;
    let mut wallet = Wallet::start(&coordinator.connection()).await;
    wallet.wait(|event| *event == Event::Connected).await;
    coordinator.fall_silent();
    let left = |event: &Event| match event {
        Event::Disconnected { reason } => reason.contains("not a word"),
        _ => false,
    };
    wallet.wait(left).await;
}

#[tokio::test]
async fn who_was_restarted_says_so_at_once() {
    let mut coordinator = Coordinator::start(7).await;
    let mut wallet = Wallet::start(&coordinator.connection()).await;
    wallet.wait(|event| *event == Event::Connected).await;
    // Of a ceremony that an earlier process of this wallet joined.
    coordinator.send(&ToClient::ConfirmPing(round(1)));
    coordinator.declined("restarted").await;
    // What was declined is not declined again.
    wallet.client.join(Amount::ZERO).await.unwrap();
    coordinator.interest().await;
    let mut dear = invitation(2, 200_000);
    dear.fee = Amount::ONE_BTC;
    coordinator.send(&ToClient::Invitation(Box::new(dear)));
    coordinator.declined("fee").await;
    coordinator.send(&ToClient::ConfirmPing(round(2)));
    coordinator.send(&ToClient::Invitation(Box::new(invitation(3, 200_000))));
    assert_eq!(coordinator.join().await.round, round(3));
}

#[tokio::test]
async fn what_the_coordinator_does_not_fund_is_not_waited_for() {
    let mut coordinator = Coordinator::start(7).await;
    let (kit, row, join) = wallet::acknowledged();
    let wallet = Wallet::start_with(&coordinator.connection(), async |store| {
        store.record_join(&join).await.unwrap();
        store.store_kit(&row, kit.as_bytes()).await.unwrap();
        store.set_acked(row.factory).await.unwrap();
    })
    .await;
    // The word that the attempt failed came while this wallet was away.
    wallet.client.join(Amount::ZERO).await.unwrap();
    coordinator.interest().await;
    let stored = wallet.client.store().factories().await.unwrap();
    assert!(stored[0].failed && stored[0].is_live(), "the kit is kept");
}

#[tokio::test]
async fn an_orderly_end_is_told() {
    let coordinator = Coordinator::start(7).await;
    let mut wallet = Wallet::start(&coordinator.connection()).await;
    wallet.wait(|event| *event == Event::Connected).await;
    wallet.stop().await;
    wallet.wait(|event| *event == Event::Shutdown).await;
}

impl Coordinator {
    async fn declined(&mut self, words: &str) {
        let FromClient::Ceremony(ToCoordinator::Decline { reason, .. }) = self.heard().await else {
            panic!("not declined");
        };
        let text = match reason {
            DeclineReason::Terms(text) | DeclineReason::Unable(text) => text,
            DeclineReason::Refused { found, .. } => found,
        };
        assert!(text.contains(words), "{text}");
    }
}

#[tokio::test]
async fn the_way_to_lightning_outlives_the_session() {
    let coordinator = Coordinator::start(7).await;
    let mut wallet = Wallet::start(&coordinator.connection()).await;
    wallet.wait(|event| *event == Event::Connected).await;
    coordinator.say(&FromServer::Lightning(Lightning {
        address: "127.0.0.1:9735".to_owned(),
        intercept_scid: 42,
        cltv_delta: 300,
        base_msat: 1_000,
        proportional_millionths: 10,
    }));
    let deadline = tokio::time::Instant::now() + wallet::PATIENCE;
    let route = loop {
        if let Some(route) = wallet.client.store().route().await.unwrap() {
            break route;
        }
        assert!(tokio::time::Instant::now() < deadline, "not stored");
        tokio::task::yield_now().await;
    };
    assert_eq!((route.intercept_scid, route.cltv_delta), (42, 300));
    // Without a node nothing is paid, and that is said.
    let refused = wallet.client.pay("lnbcrt1", None).await.unwrap_err();
    assert_eq!(refused.exit_code(), 3, "{refused}");
}
