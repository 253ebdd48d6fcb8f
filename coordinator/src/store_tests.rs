use bitcoin::hashes::Hash;
use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey};
use bitcoin::{Amount, BlockHash, Network, OutPoint, ScriptBuf, TxOut, Txid};
use factory_tree::ceremony::coordinator::Terms;
use factory_tree::ceremony::message::Round;
use factory_tree::factory::SpentKind;
use factory_tree::ids::{Attempt, CeremonyId, ClientId, FactoryId, LeafId};
use factory_tree::params::{FactoryParams, Profile};

use super::attempts::{AttemptState, UsedKeys};
use super::ceremonies::{CeremonyState, Pin, Wish};
use super::outputs::OutputRow;
use super::*;
use crate::reputation::Fault;

async fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("coordinator.sqlite"))
        .await
        .unwrap();
    (dir, store)
}

fn round(attempt: u32) -> Round {
    Round {
        ceremony: CeremonyId([7; 16]),
        attempt: Attempt(attempt),
    }
}

fn params() -> FactoryParams {
    FactoryParams::profile(Profile::Lite, Network::Regtest)
}

fn key(byte: u8) -> PublicKey {
    SecretKey::from_slice(&[byte; 32])
        .unwrap()
        .public_key(&Secp256k1::new())
}

fn outpoint(byte: u8) -> OutPoint {
    OutPoint::new(Txid::from_byte_array([byte; 32]), u32::from(byte))
}

fn wish() -> Wish {
    Wish {
        params: params(),
        clients: Some(3),
        min_clients: 2,
        capacity: None,
        feerate_sat_per_kwu: None,
        rung: None,
        invited: None,
    }
}

fn pin(byte: u8) -> Pin {
    let txout = TxOut {
        value: Amount::from_sat(u64::from(byte) * 1000),
        script_pubkey: ScriptBuf::from_bytes(vec![byte]),
    };
    Pin {
        outpoint: outpoint(byte),
        txout,
    }
}

fn terms() -> Terms {
    Terms {
        params: params(),
        fee: Amount::ZERO,
        fee_ppm: 0,
        join_seconds: 1,
        step_seconds: 2,
        min_clients: 2,
        max_attempts: 5,
        common_pin: outpoint(1),
        confirmations: 1,
    }
}

async fn running(store: &Store) {
    store
        .write(async |tx| {
            ceremonies::insert(tx, round(1).ceremony, 100, &wish()).await?;
            ceremonies::start(tx, round(1).ceremony, &terms(), &[pin(1), pin(2)]).await?;
            attempts::begin(tx, round(1), &[9; 16], &[]).await
        })
        .await
        .unwrap();
}

/// A minimal factory of the running attempt, as rows alone.
async fn factory(store: &Store, state: &'static str) -> FactoryId {
    let id = FactoryId([5; 32]);
    store
        .write(async |tx| {
            sqlx::query(
                "INSERT INTO factory (factory, ceremony, attempt, state, spec, funding_tx, funding_txid, funding_vout, \
                 funding_sat, clients, capacity_sat, birth_height, expiry_height, confirmations) \
                 VALUES (?, ?, 1, ?, x'', x'', ?, 0, 1000, 2, 900, 100, 5000, 1)",
            )
            .bind(id.0.as_slice())
            .bind(round(1).ceremony.0.as_slice())
            .bind(state)
            .bind([1u8; 32].as_slice())
            .execute(&mut *tx)
            .await?;
            Ok(())
        })
        .await
        .unwrap();
    id
}

/// The schema as one text, for the golden file.
async fn schema(store: &Store) -> String {
    let statements: Vec<String> = store
        .read(async |tx| {
            let query = "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE '\\_sqlx%' ESCAPE '\\' ORDER BY name";
            Ok(sqlx::query_scalar(query).fetch_all(tx).await?)
        })
        .await
        .unwrap();
    let mut text = "-- What all migrations together make. A test compares it; SUPERSCALAR_BLESS=1 rewrites it.\n".to_owned();
    for statement in statements {
        text.push('\n');
        text.push_str(&statement);
        text.push_str(";\n");
    }
    text
}

#[tokio::test]
async fn the_schema_is_the_golden_one() {
    let (_dir, store) = store().await;
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../migrations/coordinator/schema.sql"
    );
    let found = schema(&store).await;
    if std::env::var_os("SUPERSCALAR_BLESS").is_some() {
        std::fs::write(path, &found).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), found);
}

#[tokio::test]
async fn writes_are_durable_and_whole() {
    let (_dir, store) = store().await;
    let mode: String = store
        .read(async |tx| {
            Ok(sqlx::query_scalar("PRAGMA journal_mode")
                .fetch_one(tx)
                .await?)
        })
        .await
        .unwrap();
    assert_eq!(mode, "wal");
    let full: i64 = store
        .write(async |tx| {
            Ok(sqlx::query_scalar("PRAGMA synchronous")
                .fetch_one(tx)
                .await?)
        })
        .await
        .unwrap();
    assert_eq!(full, 2, "synchronous=FULL");
    let failed: Result<()> = store
        .write(async |tx| {
            ceremonies::insert(tx, round(1).ceremony, 100, &wish()).await?;
            Err(StoreError::value("test", "on purpose"))
        })
        .await;
    assert!(failed.is_err());
    let left = store
        .read(async |tx| ceremonies::list(tx).await)
        .await
        .unwrap();
    assert!(left.is_empty(), "a write that failed leaves nothing behind");
}

#[tokio::test]
async fn reads_change_nothing_and_wait_for_nobody() {
    let (_dir, store) = store().await;
    let refused = store
        .read(async |tx| ceremonies::insert(tx, round(1).ceremony, 1, &wish()).await)
        .await;
    assert!(matches!(refused, Err(StoreError::Sql { .. })));
    let reader = store.clone();
    store
        .write(async |tx| {
            ceremonies::insert(tx, round(1).ceremony, 100, &wish()).await?;
            let seen = reader.read(async |tx| ceremonies::list(tx).await).await?;
            assert!(seen.is_empty());
            Ok(())
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn futures_can_move_between_threads() {
    let (_dir, store) = store().await;
    let name = String::from("x");
    let task = tokio::spawn(async move {
        store
            .write(async |tx| {
                Ok(sqlx::query_scalar::<_, String>("SELECT ?")
                    .bind(&name)
                    .fetch_one(tx)
                    .await?)
            })
            .await
    });
    assert_eq!(task.await.unwrap().unwrap(), "x");
}

#[tokio::test]
async fn damage_and_foreign_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("coordinator.sqlite");
    std::fs::write(&path, vec![b'x'; 8192]).unwrap();
    let error = Store::open(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    assert!(error.to_string().contains("coordinator.sqlite"));

    let (dir, store) = self::store().await;
    store.close().await;
    let path = dir.path().join("coordinator.sqlite");
    let mut bytes = std::fs::read(&path).unwrap();
    for byte in bytes.iter_mut().skip(4096).step_by(7) {
        *byte ^= 0x55;
    }
    std::fs::write(&path, bytes).unwrap();
    let error = Store::open(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");

    let other = dir.path().join("other.sqlite");
    let options = SqliteConnectOptions::new()
        .filename(&other)
        .create_if_missing(true);
    let pool = SqlitePoolOptions::new()
        .connect_with(options)
        .await
        .unwrap();
    sqlx::query("CREATE TABLE x (a)")
        .execute(&pool)
        .await
        .unwrap();
    pool.close().await;
    assert!(matches!(
        Store::open(&other).await,
        Err(StoreError::Foreign { .. })
    ));
}

#[tokio::test]
async fn a_database_has_one_owner() {
    let (_dir, store) = store().await;
    let claim = async |network, byte| {
        let id = key(byte).serialize();
        store
            .write(async |tx| owner::claim(tx, network, &id).await)
            .await
    };
    claim(Network::Regtest, 1).await.unwrap();
    claim(Network::Regtest, 1).await.unwrap();
    for refused in [
        claim(Network::Signet, 1).await,
        claim(Network::Regtest, 2).await,
    ] {
        let error = refused.unwrap_err();
        assert!(
            matches!(&error, StoreError::OtherOwner { path, .. } if path.ends_with("coordinator.sqlite")),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn no_key_and_no_leaf_id_serves_twice() {
    let (_dir, store) = store().await;
    let join = |leaf: u8, factory: u8, channel: u8, payout: u8| UsedKeys {
        leaf_id: LeafId([leaf; 16]),
        factory_key: key(factory),
        channel_key: key(channel),
        payout_script: ScriptBuf::from_bytes(vec![payout]),
    };
    let used = async |attempt, joins: &[UsedKeys]| {
        store
            .write(async |tx| attempts::use_keys(tx, round(attempt), joins).await)
            .await
            .unwrap()
    };
    let first = used(1, &[join(1, 1, 2, 1), join(2, 3, 4, 2)]).await;
    assert_eq!(first.len(), 2);
    for again in [
        join(1, 10, 11, 10),
        join(10, 1, 11, 10),
        join(10, 10, 2, 10),
        join(10, 10, 11, 1),
    ] {
        assert!(used(2, &[again]).await.is_empty());
    }
    assert_eq!(used(2, &[join(10, 10, 11, 10)]).await.len(), 1);
}

#[tokio::test]
async fn a_failed_ceremony_frees_its_pins_and_a_funded_one_never_fails() {
    let (_dir, store) = store().await;
    running(&store).await;
    let id = round(1).ceremony;
    let row = store
        .read(async |tx| ceremonies::get(tx, id).await)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (row.state, row.terms),
        (CeremonyState::Running, Some(terms()))
    );
    let pins = store
        .read(async |tx| ceremonies::pins(tx, id).await)
        .await
        .unwrap();
    assert_eq!(pins, [pin(1), pin(2)], "the common one first");
    let taken = store
        .write(async |tx| ceremonies::add_pins(tx, id, 2, &[pin(1)]).await)
        .await;
    assert!(taken.is_err(), "a coin is pinned once");

    let factory = factory(&store, "proposed").await;
    store
        .write(async |tx| ceremonies::fail(tx, id, "why").await)
        .await
        .unwrap();
    let (row, last, pins, failed) = store
        .read(async |tx| {
            Ok((
                ceremonies::get(tx, id).await?.unwrap(),
                attempts::last(tx, id).await?.unwrap(),
                ceremonies::all_pins(tx).await?,
                factories::get(tx, factory).await?.unwrap(),
            ))
        })
        .await
        .unwrap();
    assert_eq!(
        (row.state, row.reason.as_deref()),
        (CeremonyState::Failed, Some("why"))
    );
    assert_eq!(
        (last.state, failed.state),
        (AttemptState::Failed, AttemptState::Failed)
    );
    assert!(pins.is_empty());
}

#[tokio::test]
async fn what_may_be_signed_is_never_given_up() {
    let (_dir, store) = store().await;
    running(&store).await;
    let factory = factory(&store, "ready").await;
    let id = round(1).ceremony;
    store
        .write(async |tx| {
            factories::funding_signed(tx, round(1), factory).await?;
            ceremonies::complete(tx, id).await?;
            attempts::fail(tx, round(1), "late", &[]).await?;
            ceremonies::fail(tx, id, "late").await
        })
        .await
        .unwrap();
    let (row, last, factory) = store
        .read(async |tx| {
            let row = ceremonies::get(tx, id).await?.unwrap();
            Ok((
                row,
                attempts::last(tx, id).await?.unwrap(),
                factories::get(tx, factory).await?.unwrap(),
            ))
        })
        .await
        .unwrap();
    assert_eq!(row.state, CeremonyState::Complete);
    assert_eq!(
        (last.state, factory.state),
        (AttemptState::FundingSigned, AttemptState::FundingSigned)
    );
}

#[tokio::test]
async fn a_reorg_takes_back_exactly_what_it_undoes() {
    let (_dir, store) = store().await;
    running(&store).await;
    let factory = factory(&store, "funding_signed").await;
    let output = |byte, height| OutputRow {
        outpoint: outpoint(byte),
        factory,
        kind: SpentKind::Stock,
        amount: Amount::from_sat(5),
        confirmed_height: height,
        spent_height: None,
        spent_by: None,
    };
    let by = Txid::from_byte_array([77; 32]);
    let unspent =
        |rows: Vec<OutputRow>| rows.into_iter().map(|row| row.outpoint).collect::<Vec<_>>();
    let left = store
        .write(async |tx| {
            for height in 100..104 {
                outputs::connect(tx, height, BlockHash::from_byte_array([height as u8; 32]))
                    .await?;
            }
            for (byte, height) in [(1, 100), (2, 101), (3, 103)] {
                outputs::add(tx, &output(byte, height)).await?;
            }
            outputs::spend(tx, outpoint(1), 102, by).await?;
            outputs::spend(tx, outpoint(2), 101, by).await?;
            assert_eq!(unspent(outputs::unspent(tx).await?), [outpoint(3)]);
            outputs::rewind(tx, 102).await?;
            assert_eq!(outputs::tip(tx).await?, Some(101));
            assert_eq!(outputs::block_at(tx, 102).await?, None);
            Ok(unspent(outputs::unspent(tx).await?))
        })
        .await
        .unwrap();
    assert_eq!(
        left,
        [outpoint(1)],
        "output 3 left the chain, the spend of 1 too, that of 2 did not"
    );
}

#[tokio::test]
async fn faults_are_counted_and_scored() {
    let (_dir, store) = store().await;
    let client = ClientId([2; 33]);
    let rows = store
        .write(async |tx| {
            clients::seen(tx, &[(client, "a".into())], 10).await?;
            clients::blame(
                tx,
                &[(client, Fault::Silent), (client, Fault::Guilty)],
                20,
                1008,
            )
            .await?;
            clients::seen(tx, &[(client, "b".into())], 30).await?;
            clients::list(tx).await
        })
        .await
        .unwrap();
    let [row] = rows.as_slice() else {
        panic!("{rows:?}")
    };
    assert_eq!(
        (row.software.as_str(), row.silent, row.guilty, row.last_seen),
        ("b", 1, 1, 30)
    );
    assert_eq!(row.score.points, 5.0);
}

#[tokio::test]
async fn history_comes_newest_first_in_pages() {
    let (_dir, store) = store().await;
    let client = ClientId([2; 33]);
    let entry = |height| history::HistoryRow {
        number: 0,
        height,
        kind: "left_out".into(),
        round: Some(round(1)),
        factory: None,
        text: "silent".into(),
    };
    let pages = store
        .write(async |tx| {
            for height in 1..=5 {
                history::add(tx, &[client, ClientId([3; 33])], &entry(height)).await?;
            }
            let first = history::list(tx, client, 0, 2).await?;
            let second = history::list(tx, client, first.last().unwrap().number, 9).await?;
            Ok([first, second])
        })
        .await
        .unwrap();
    let heights = pages.map(|page| page.into_iter().map(|row| row.height).collect::<Vec<_>>());
    assert_eq!(heights, [vec![5, 4], vec![3, 2, 1]]);
}

/// A data directory that others may enter, made by the operator.
#[tokio::test]
async fn only_the_owner_reads_the_database() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("coordinator.sqlite");
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let store = Store::open(&path).await.unwrap();
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", entry.path().display());
    }
    store.close().await;
}
