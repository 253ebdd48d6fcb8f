//! The store against a real SQLite file.

use bitcoin::hashes::Hash;
use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey};
use bitcoin::{Amount, Network, OutPoint, ScriptBuf, Transaction, Txid};
use channel_host::{LeafId as Leaf, Msat, PaymentHash};
use factory_tree::ceremony::message::Round;
use factory_tree::guard::SignedRecord;
use factory_tree::ids::{Attempt, CeremonyId, ClientId, FactoryId, LeafId};
use factory_tree::purpose::Purpose;
use factory_tree::units::Height;

use super::*;
use crate::lightning::{ChannelState, ChannelView};

mod sales;

fn round() -> Round {
    Round {
        ceremony: CeremonyId([9; 16]),
        attempt: Attempt(1),
    }
}

fn outpoint(n: u8) -> OutPoint {
    OutPoint::new(Txid::from_byte_array([n; 32]), u32::from(n))
}

fn key(n: u8) -> PublicKey {
    PublicKey::from_secret_key(&Secp256k1::new(), &SecretKey::from_slice(&[n; 32]).unwrap())
}

fn join(n: u8) -> JoinRow {
    JoinRow {
        join_nonce: [n; 16],
        round: round(),
        leaf_id: LeafId([n; 16]),
        factory_key: key(n),
        channel_key: key(n + 100),
        payout_script: ScriptBuf::from_bytes(vec![n; 34]),
        common_pin: outpoint(1),
        capacity: Amount::from_sat(200_000),
    }
}

fn record(purpose: Purpose, sighash: u8, nonce: u8) -> SignedRecord {
    SignedRecord {
        outpoint: outpoint(3),
        purpose,
        sighash: [sighash; 32],
        own_nonce: [nonce; 66],
        sum: [nonce + 1; 66],
        partial: [nonce + 2; 32],
    }
}

fn factory(n: u8) -> FactoryRow {
    FactoryRow {
        factory: FactoryId([n; 32]),
        round: round(),
        join_nonce: [n; 16],
        funding: outpoint(n),
        common_pin: outpoint(1),
        capacity: Amount::from_sat(200_000),
        birth: Height(100),
        expiry: Height(5000),
        confirmations: 3,
        fee: Amount::from_sat(700),
        acked: false,
        failed: false,
        confirmed: None,
        usable: false,
        abandoned: None,
        closed: None,
        handover: None,
    }
}

async fn open() -> (tempfile::TempDir, SqliteStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path().join("client.sqlite"))
        .await
        .unwrap();
    store.claim(&identity(Network::Regtest, 2)).await.unwrap();
    (dir, store)
}

fn identity(network: Network, n: u8) -> Identity {
    Identity {
        network,
        node_id: ClientId([n; 33]),
        birthday: None,
    }
}

#[tokio::test]
async fn the_golden_schema_is_what_the_migrations_make() {
    let (_dir, store) = open().await;
    let statements: Vec<String> = sqlx::query_scalar(
        "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'
         AND name NOT LIKE '_sqlx%' ORDER BY tbl_name, type DESC, name",
    )
    .fetch_all(store.pool())
    .await
    .unwrap();
    let found = statements.join(";\n\n") + ";\n";
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../migrations/client/schema.sql"
    );
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &found).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(
        golden, found,
        "set UPDATE_GOLDEN=1 to write migrations/client/schema.sql anew"
    );
    assert!(
        !found.to_lowercase().contains("secret"),
        "no table may ever hold a secret nonce"
    );
}

#[tokio::test]
async fn no_key_and_no_leaf_id_serves_two_joins() {
    let (_dir, store) = open().await;
    store.record_join(&join(1)).await.unwrap();
    type Reuse = fn(&mut JoinRow);
    let reuses: [(&str, Reuse); 5] = [
        ("join nonce", |j| j.join_nonce = [1; 16]),
        ("leaf id", |j| j.leaf_id = LeafId([1; 16])),
        ("factory key", |j| j.factory_key = key(1)),
        ("channel key", |j| j.channel_key = key(101)),
        ("payout script", |j| {
            j.payout_script = ScriptBuf::from_bytes(vec![1; 34]);
        }),
    ];
    for (name, reuse) in reuses {
        let mut second = join(2);
        reuse(&mut second);
        match store.record_join(&second).await {
            Err(StoreError::Reused { what }) => assert_eq!(what, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    store.record_join(&join(2)).await.unwrap();
    assert_eq!(
        store.joins_of(round().ceremony).await.unwrap(),
        [join(1), join(2)]
    );
    assert_eq!(store.epoch().await.unwrap(), 2);
}

#[tokio::test]
async fn the_first_sighash_wins_for_ever() {
    let (dir, store) = open().await;
    let first = [
        record(Purpose::Next, 1, 10),
        record(Purpose::Timeout, 2, 20),
    ];
    store.record_signed(&first).await.unwrap();
    let other = [record(Purpose::Close, 3, 30), record(Purpose::Next, 9, 40)];
    assert!(matches!(
        store.record_signed(&other).await,
        Err(StoreError::DoubleSign { .. })
    ));
    // A refused batch leaves nothing behind, and a restart changes nothing.
    store.close().await;
    let store = SqliteStore::open(dir.path().join("client.sqlite"))
        .await
        .unwrap();
    let mut found = store.signed(&[outpoint(3), outpoint(4)]).await.unwrap();
    found.sort_by_key(|record| record.purpose);
    assert_eq!(found, first);
    // The same sighash in a new session: its nonces and partial count from now on.
    let again = record(Purpose::Next, 1, 50);
    store.record_signed(&[again]).await.unwrap();
    let found = store.signed(&[outpoint(3)]).await.unwrap();
    assert!(found.contains(&again) && found.len() == 2);
}

#[tokio::test]
async fn a_kit_stays_as_it_was_stored() {
    let (_dir, store) = open().await;
    store.record_join(&join(1)).await.unwrap();
    store.store_kit(&factory(1), b"kit").await.unwrap();
    store.store_kit(&factory(1), b"another").await.unwrap();
    assert_eq!(store.kit(FactoryId([1; 32])).await.unwrap(), b"kit");
    assert!(matches!(
        store.kit(FactoryId([2; 32])).await,
        Err(StoreError::NoFactory(_))
    ));
    store.set_acked(FactoryId([1; 32])).await.unwrap();
    store
        .set_confirmed(FactoryId([1; 32]), Some(Height(120)), true)
        .await
        .unwrap();
    let row = store.factory(FactoryId([1; 32])).await.unwrap();
    assert_eq!(row.state(), "usable");
    assert_eq!(row.confirmed, Some(Height(120)));
    assert_eq!(store.factories().await.unwrap(), [row]);
}

#[tokio::test]
async fn facts_follow_a_reorg() {
    let (_dir, store) = open().await;
    store.record_join(&join(1)).await.unwrap();
    let tx = Transaction {
        version: bitcoin::transaction::Version(3),
        lock_time: bitcoin::absolute::LockTime::ZERO,
        input: vec![],
        output: vec![],
    };
    let facts = BlockFacts {
        txs: vec![tx.clone()],
        spends: vec![(outpoint(5), tx.compute_txid())],
        payouts: vec![(outpoint(6), Amount::from_sat(7), [1; 16])],
    };
    let spent = BlockFacts {
        spends: vec![(outpoint(6), tx.compute_txid())],
        ..BlockFacts::default()
    };
    store.connect_block(Height(10), &facts).await.unwrap();
    store.connect_block(Height(11), &spent).await.unwrap();
    assert_eq!(store.facts_top().await.unwrap(), Height(11));
    assert_eq!(
        store.payouts().await.unwrap()[0].spent_by,
        Some(tx.compute_txid())
    );
    store.rewind_to(Height(10)).await.unwrap();
    assert_eq!(store.payouts().await.unwrap()[0].spent_by, None);
    assert_eq!(store.seen_txs().await.unwrap().len(), 1);
    // A block at the same height replaces what was known there.
    store
        .connect_block(Height(10), &BlockFacts::default())
        .await
        .unwrap();
    assert!(store.seen_txs().await.unwrap().is_empty());
    assert!(store.spends().await.unwrap().is_empty());
    assert!(store.payouts().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_store_belongs_to_one_wallet() {
    let (_dir, store) = open().await;
    assert!(matches!(
        store.claim(&identity(Network::Regtest, 3)).await,
        Err(StoreError::OtherNode { .. })
    ));
    assert!(matches!(
        store.claim(&identity(Network::Signet, 2)).await,
        Err(StoreError::OtherNetwork { .. })
    ));
    store.claim(&identity(Network::Regtest, 2)).await.unwrap();
}

#[tokio::test]
async fn a_damaged_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("client.sqlite");
    std::fs::write(&path, vec![7u8; 8192]).unwrap();
    let error = SqliteStore::open(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("client.sqlite"));
}

#[tokio::test]
async fn questions_are_answered_once() {
    let (_dir, store) = open().await;
    let id = store.ask(&Request::Address).await.unwrap();
    assert_eq!(store.asked().await.unwrap(), [(id, Request::Address)]);
    assert_eq!(store.take_answer(id).await.unwrap(), None);
    let answer = Answer::Failed {
        why: "no".to_owned(),
        exit_code: 4,
    };
    store.answer(id, &answer).await.unwrap();
    assert!(store.asked().await.unwrap().is_empty());
    assert_eq!(store.take_answer(id).await.unwrap(), Some(answer));
    assert_eq!(store.take_answer(id).await.unwrap(), None);
}

#[tokio::test]
async fn a_wish_ends_with_the_factory_that_fulfils_it() {
    let (_dir, store) = open().await;
    store.record_join(&join(1)).await.unwrap();
    store.store_kit(&factory(1), b"kit").await.unwrap();
    let wish = Interest {
        capacity: Amount::ZERO,
        note: String::new(),
    };
    store.set_interest(Some(&wish)).await.unwrap();
    let id = FactoryId([1; 32]);
    let height = Some(Height(100));
    store.set_confirmed(id, height, false).await.unwrap();
    assert!(store.interest().await.unwrap().is_some());
    store.set_confirmed(id, height, true).await.unwrap();
    assert_eq!(store.interest().await.unwrap(), None);
    // A wish of later is another one; and one that is gone does not come back with a remark.
    store.set_interest(Some(&wish)).await.unwrap();
    store.set_confirmed(id, height, true).await.unwrap();
    assert!(store.interest().await.unwrap().is_some());
    store.set_interest(None).await.unwrap();
    store.note_interest("too late").await.unwrap();
    assert_eq!(store.interest().await.unwrap(), None);
}

#[tokio::test]
async fn a_question_of_another_release_is_refused_and_harms_nobody() {
    let (_dir, store) = open().await;
    sqlx::query("INSERT INTO requests (id, request) VALUES (7, '\"fly\"')")
        .execute(store.pool())
        .await
        .unwrap();
    let id = store.ask(&Request::Balance).await.unwrap();
    assert_eq!(store.asked().await.unwrap(), [(id, Request::Balance)]);
    let answer = store.take_answer(7).await.unwrap();
    assert!(matches!(answer, Some(Answer::Failed { why, .. }) if why.contains("fly")));
}

#[tokio::test]
async fn a_wallet_is_not_for_others_to_read() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, _store) = open().await;
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{:?}", entry.file_name());
    }
}

#[tokio::test]
async fn wallet_changes_are_merged_when_there_are_many() {
    use chain::wallet::ChangeSetStore;
    let (_dir, store) = open().await;
    let shared: SharedStore = Arc::new(store.clone());
    let changes = WalletChanges::new(shared);
    assert!(changes.load().await.unwrap().is_none());
    for _ in 0..70 {
        let change = chain::wallet::ChangeSet {
            network: Some(Network::Regtest),
            ..Default::default()
        };
        changes.append(&change).await.unwrap();
    }
    let loaded = changes.load().await.unwrap().unwrap();
    assert_eq!(loaded.network, Some(Network::Regtest));
    assert_eq!(store.wallet_changes().await.unwrap().len(), 1);
    assert_eq!(changes.load().await.unwrap(), Some(loaded));
}

const NOW: Moment = Moment {
    height: 7,
    time: 1_000_000,
};

fn hash(n: u8) -> PaymentHash {
    PaymentHash([n; 32])
}

#[tokio::test]
async fn an_invoice_is_paid_once() {
    let (_dir, store) = open().await;
    let begin = || store.begin_payment(hash(1), Msat(5_000), "coffee", NOW);
    assert_eq!(begin().await.unwrap(), None);
    assert_eq!(begin().await.unwrap(), Some(PaymentState::Pending));
    // One that came back may be tried again.
    let failed = PaymentEnd::Failed {
        why: "no way".to_owned(),
    };
    assert!(store.end_payment(hash(1), &failed, NOW).await.unwrap());
    assert!(!store.end_payment(hash(1), &failed, NOW).await.unwrap());
    let shown = store.payment(hash(1), Direction::Out).await.unwrap();
    assert_eq!(shown.unwrap().failure.as_deref(), Some("no way"));
    assert_eq!(begin().await.unwrap(), None);
    let sent = PaymentEnd::Succeeded { fee: Msat(3) };
    assert!(store.end_payment(hash(1), &sent, NOW).await.unwrap());
    assert!(!store.end_payment(hash(1), &sent, NOW).await.unwrap());
    // What has arrived is never sent again, and does not fail any more.
    assert!(!store.end_payment(hash(1), &failed, NOW).await.unwrap());
    assert_eq!(begin().await.unwrap(), Some(PaymentState::Succeeded));
    let shown = store.payments(10).await.unwrap();
    assert_eq!(shown.len(), 1);
    assert_eq!(shown[0].fee_msat, Some(3));
    assert_eq!(shown[0].hash().unwrap(), hash(1));
    assert!(store.pending_payments().await.unwrap().is_empty());
    // Only what is under way can turn out never to have been sent.
    store.forget_payment(hash(1)).await.unwrap();
    assert_eq!(begin().await.unwrap(), Some(PaymentState::Succeeded));
    let (other, amount) = (hash(2), Msat(7));
    store.begin_payment(other, amount, "", NOW).await.unwrap();
    store.forget_payment(other).await.unwrap();
    let shown = store.payment(other, Direction::Out).await.unwrap();
    assert_eq!(shown, None);
}

#[tokio::test]
async fn the_proof_of_a_payment_counts_whatever_was_thought_before() {
    let (_dir, store) = open().await;
    let amount = Msat(5_000);
    store.begin_payment(hash(1), amount, "", NOW).await.unwrap();
    let failed = PaymentEnd::Failed {
        why: "never sent".to_owned(),
    };
    store.end_payment(hash(1), &failed, NOW).await.unwrap();
    let sent = PaymentEnd::Succeeded { fee: Msat(0) };
    assert!(store.end_payment(hash(1), &sent, NOW).await.unwrap());
    let shown = store.payment(hash(1), Direction::Out).await.unwrap();
    let shown = shown.unwrap();
    assert_eq!(
        (shown.state, shown.failure),
        (PaymentState::Succeeded, None)
    );
}

#[tokio::test]
async fn a_receipt_told_twice_is_counted_once() {
    let (_dir, store) = open().await;
    let expires = NOW.time + 60;
    store
        .record_invoice(hash(1), "a book", expires, NOW)
        .await
        .unwrap();
    let arrived = store.payment_received(hash(1), Msat(9), Msat(2), NOW);
    assert!(arrived.await.unwrap());
    let again = store.payment_received(hash(1), Msat(9), Msat(0), NOW);
    assert!(!again.await.unwrap());
    let known = store.payment(hash(1), Direction::In).await.unwrap();
    assert_eq!(known.unwrap().fee_msat, Some(2));
    let shown = store.payments(10).await.unwrap();
    assert_eq!((shown.len(), shown[0].text.as_str()), (1, "a book"));
    // The same hash outwards is another payment.
    let out = store.begin_payment(hash(1), Msat(9), "", NOW).await;
    assert_eq!(out.unwrap(), None);
    assert_eq!(
        store.payments(1).await.unwrap()[0].direction,
        Direction::Out
    );
}

#[tokio::test]
async fn a_commitment_is_kept_beside_what_is_known_of_its_channel() {
    let (_dir, store) = open().await;
    store.record_join(&join(1)).await.unwrap();
    store.store_kit(&factory(1), b"kit").await.unwrap();
    let (leaf, id) = (Leaf([1; 16]), FactoryId([1; 32]));
    let signed = |signature: u8| Transaction {
        version: bitcoin::transaction::Version(3),
        lock_time: bitcoin::absolute::LockTime::ZERO,
        input: vec![bitcoin::TxIn {
            witness: bitcoin::Witness::from_slice(&[[signature; 64]]),
            ..bitcoin::TxIn::default()
        }],
        output: vec![],
    };
    let commitment = signed(1);
    assert!(store.set_commitment(leaf, id, &commitment).await.unwrap());
    // Signed anew at every block: no news.
    assert!(!store.set_commitment(leaf, id, &signed(2)).await.unwrap());
    let view = ChannelView {
        factory: Some(id),
        leaf: "01".repeat(16),
        channel: None,
        state: ChannelState::Closed,
        outpoint: outpoint(1),
        capacity_sat: 5,
        ours_msat: 0,
        spendable_msat: 0,
        receivable_msat: 0,
        pending: 0,
        usable: false,
        factory_confirmed: true,
        leaf_height: None,
        spent: None,
        closing_sat: 3,
    };
    store.set_channel(leaf, &view).await.unwrap();
    let rows = store.channels().await.unwrap();
    let row = ChannelRow {
        leaf,
        factory: Some(id),
        view: Some(view),
        commitment: Some(commitment),
    };
    assert_eq!(rows, [row]);
    // One outside of factories has none.
    let outside = ChannelView {
        factory: None,
        ..rows[0].view.clone().unwrap()
    };
    store.set_channel(Leaf([2; 16]), &outside).await.unwrap();
    let kept = &store.channels().await.unwrap()[1];
    assert_eq!((kept.factory, kept.view.as_ref()), (None, Some(&outside)));
    // The channel may go; the commitment stays.
    store.forget_channel(leaf).await.unwrap();
    let rows = store.channels().await.unwrap();
    assert!(rows[0].view.is_none() && rows[0].commitment.is_some());
}

async fn two_factories() -> (tempfile::TempDir, SqliteStore) {
    let (dir, store) = open().await;
    for n in [1, 2] {
        store.record_join(&join(n)).await.unwrap();
        store.store_kit(&factory(n), b"kit").await.unwrap();
    }
    (dir, store)
}

fn part(n: u8) -> PartRow {
    PartRow {
        hash: PaymentHash([n; 32]),
        from: FactoryId([1; 32]),
        to: FactoryId([2; 32]),
        from_leaf: Leaf([3; 16]),
        to_leaf: Leaf([4; 16]),
        amount: Msat(5_001),
        token: Token([n; 32]),
        asked: Height(700),
        progress: PartProgress::Asked,
        agreed: None,
        failure: None,
    }
}

fn agreed(n: u8) -> Agreed {
    Agreed {
        token: Token([n + 100; 32]),
        fee: Msat(9),
        incoming: Height(2_000),
        outgoing: Height(1_000),
    }
}

#[tokio::test]
async fn a_move_keeps_its_first_total_and_its_parts_as_agreed() {
    let (_dir, store) = two_factories().await;
    let begun = MoveRow {
        from: FactoryId([1; 32]),
        total: Msat(77_001),
        begun: Height(700),
    };
    assert_eq!(store.begin_move(&begun).await.unwrap(), begun);
    let again = MoveRow {
        total: Msat(3),
        begun: Height(701),
        ..begun
    };
    assert_eq!(store.begin_move(&again).await.unwrap(), begun);
    assert_eq!(store.moves().await.unwrap(), [begun]);
    for n in [1, 2] {
        store.add_part(&part(n)).await.unwrap();
    }
    // A hash never serves twice.
    assert!(store.add_part(&part(1)).await.is_err());
    assert!(store.agree_part(part(1).hash, &agreed(1)).await.unwrap());
    assert!(!store.agree_part(part(1).hash, &agreed(2)).await.unwrap());
    let known = store.part(part(1).hash).await.unwrap().unwrap();
    assert_eq!(
        known,
        PartRow {
            progress: PartProgress::Agreed,
            agreed: Some(agreed(1)),
            ..part(1)
        }
    );
    for factory in [1, 2] {
        let parts = store.parts(FactoryId([factory; 32])).await.unwrap();
        assert_eq!(parts.len(), 2);
        assert_eq!((&parts[0], &parts[1]), (&known, &part(2)));
    }
    let shown = format!("{known:?}");
    assert_eq!(shown.matches("Token(..)").count(), 2, "{shown}");
}

#[tokio::test]
async fn what_arrived_does_not_fail_any_more() {
    let (_dir, store) = two_factories().await;
    let begun = MoveRow {
        from: FactoryId([1; 32]),
        total: Msat(1),
        begun: Height(1),
    };
    store.begin_move(&begun).await.unwrap();
    store.add_part(&part(1)).await.unwrap();
    let hash = part(1).hash;
    let failed = PartEnd::Failed {
        why: "late".to_owned(),
    };
    assert!(store.end_part(hash, &failed).await.unwrap());
    assert!(!store.end_part(hash, &failed).await.unwrap());
    let known = store.part(hash).await.unwrap().unwrap();
    assert_eq!(known.failure.as_deref(), Some("late"));
    // What is over is not agreed to.
    assert!(!store.agree_part(hash, &agreed(1)).await.unwrap());
    // The node that has claimed it knows better.
    assert!(store.end_part(hash, &PartEnd::Moved).await.unwrap());
    assert!(!store.end_part(hash, &PartEnd::Moved).await.unwrap());
    assert!(!store.end_part(hash, &failed).await.unwrap());
    let known = store.part(hash).await.unwrap().unwrap();
    assert_eq!((known.progress, known.failure), (PartProgress::Moved, None));
}

#[tokio::test]
async fn a_handover_is_kept_step_by_step_and_never_taken_back() {
    let (_dir, store) = two_factories().await;
    let id = FactoryId([1; 32]);
    for step in [None, Some(Handover::Begun), None, Some(Handover::Sent)] {
        store.set_handover(id, step).await.unwrap();
        let row = store.factory(id).await.unwrap();
        assert_eq!(row.handover, step);
        assert!(row.is_live());
        assert_eq!(row.is_given_away(), step == Some(Handover::Sent));
    }
    let taken = Some(Handover::Taken(Height(900)));
    store.set_handover(id, taken).await.unwrap();
    for later in [None, Some(Handover::Begun), Some(Handover::Sent)] {
        store.set_handover(id, later).await.unwrap();
        assert_eq!(store.factory(id).await.unwrap().handover, taken);
    }
    // Not even by a reorg.
    store.rewind_to(Height(1)).await.unwrap();
    let row = store.factory(id).await.unwrap();
    assert_eq!((row.handover, row.state()), (taken, "handed_over"));
    assert!(!row.is_live() && row.is_given_away() && !row.stands());
    let other = store.factory(FactoryId([2; 32])).await.unwrap();
    assert_eq!(other.handover, None);
    assert_eq!(other.fee, Amount::from_sat(700));
}
