use std::sync::Barrier;

use lightning::util::persist::KVStoreSync;
use tempfile::TempDir;

use super::*;

fn key(name: &str) -> EntryKey {
    EntryKey::new("monitors", "", name)
}

fn put(name: &str, value: &[u8]) -> Change {
    Change::Put(key(name), value.to_vec())
}

fn file(directory: &TempDir) -> std::path::PathBuf {
    directory.path().join("channels.sqlite")
}

/// The file as a crash leaves it: copied while its owner still has it open, the log not yet moved into the database.
fn crashed_copy(directory: &TempDir) -> TempDir {
    let copy = TempDir::new().unwrap();
    for name in ["channels.sqlite", "channels.sqlite-wal"] {
        let _ = std::fs::copy(directory.path().join(name), copy.path().join(name));
    }
    copy
}

/// There is what a wallet's secrets of old states can be made of.
#[test]
fn the_file_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let directory = TempDir::new().unwrap();
    std::fs::write(file(&directory), []).unwrap();
    let readable = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(file(&directory), readable).unwrap();
    let store = Store::open(&file(&directory)).unwrap();
    store.write(vec![put("a", b"1")]).unwrap();
    for name in ["channels.sqlite", "channels.sqlite-wal"] {
        let found = std::fs::metadata(directory.path().join(name)).unwrap();
        assert_eq!(found.permissions().mode() & 0o777, 0o600, "{name}");
    }
}

#[test]
fn what_was_answered_survives_a_crash() {
    let directory = TempDir::new().unwrap();
    let store = Store::open(&file(&directory)).unwrap();
    store.write(vec![put("a", b"1"), put("b", b"2")]).unwrap();
    store
        .write(vec![put("a", b"3"), Change::Remove(key("b"))])
        .unwrap();
    let copy = crashed_copy(&directory);
    let reopened = Store::open(&file(&copy)).unwrap();
    assert_eq!(reopened.get(key("a")).unwrap(), Some(b"3".to_vec()));
    assert_eq!(reopened.get(key("b")).unwrap(), None);
    assert_eq!(reopened.names("monitors", "").unwrap(), ["a"]);
}

#[test]
fn dropped_without_closing_it_opens_again() {
    let directory = TempDir::new().unwrap();
    for round in 0..3u8 {
        let store = Store::open(&file(&directory)).unwrap();
        if let Some(before) = round.checked_sub(1) {
            assert_eq!(store.get(key("a")).unwrap(), Some(vec![before]));
        }
        store.write(vec![put("a", &[round])]).unwrap();
    }
}

#[test]
fn ldk_finds_what_it_stored() {
    let directory = TempDir::new().unwrap();
    let store = Store::open(&file(&directory)).unwrap();
    let missing = store.read("", "", "manager").unwrap_err();
    assert_eq!(missing.kind(), lightning::io::ErrorKind::NotFound);
    KVStoreSync::write(&store, "", "", "manager", vec![1, 2]).unwrap();
    KVStoreSync::write(&store, "updates", "m", "1", vec![3]).unwrap();
    assert_eq!(store.read("", "", "manager").unwrap(), [1, 2]);
    assert_eq!(store.list("updates", "m").unwrap(), ["1"]);
    store.remove("updates", "m", "1", true).unwrap();
    assert!(store.list("updates", "m").unwrap().is_empty());
    store.remove("updates", "m", "1", false).unwrap();
}

#[test]
fn many_writers_at_once_are_all_served() {
    let directory = TempDir::new().unwrap();
    let store = Store::open(&file(&directory)).unwrap();
    let barrier = Barrier::new(16);
    std::thread::scope(|scope| {
        for writer in 0..16u8 {
            let (store, barrier) = (&store, &barrier);
            scope.spawn(move || {
                barrier.wait();
                for round in 0..20 {
                    store
                        .write(vec![put(&format!("{writer}"), &[round])])
                        .unwrap();
                }
            });
        }
    });
    drop(store);
    let store = Store::open(&file(&directory)).unwrap();
    for writer in 0..16u8 {
        assert_eq!(
            store.get(key(&format!("{writer}"))).unwrap(),
            Some(vec![19])
        );
    }
}

#[test]
fn a_second_owner_is_refused() {
    let directory = TempDir::new().unwrap();
    let first = Store::open(&file(&directory)).unwrap();
    let path = file(&directory);
    assert_eq!(
        Store::open(&path).unwrap_err(),
        StoreError::Locked { path: path.clone() }
    );
    drop(first);
    Store::open(&path).unwrap();
}

#[test]
fn a_full_disk_changes_nothing_and_stops_all_writing() {
    let directory = TempDir::new().unwrap();
    let store = Store::open(&file(&directory)).unwrap();
    store.write(vec![put("a", b"old")]).unwrap();
    store.limit_pages(1).unwrap();
    let error = store
        .write(vec![put("a", b"new"), put("big", &[7; 100_000])])
        .unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert_eq!(store.get(key("a")).unwrap(), Some(b"old".to_vec()));
    // Small enough to fit, but something before it is missing.
    assert_eq!(store.write(vec![put("a", b"new")]).unwrap_err(), error);
    assert_eq!(store.failure(), Some(error));
    drop(store);
    let store = Store::open(&file(&directory)).unwrap();
    assert_eq!(store.get(key("a")).unwrap(), Some(b"old".to_vec()));
    store.write(vec![put("a", b"new")]).unwrap();
}

#[test]
fn a_damaged_file_is_named() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory);
    std::fs::write(&path, [0x55; 8192]).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");

    let path = directory.path().join("torn.sqlite");
    let store = Store::open(&path).unwrap();
    store.write(vec![put("a", &[7; 50_000])]).unwrap();
    drop(store);
    let mut bytes = std::fs::read(&path).unwrap();
    let half = bytes.len() / 2;
    bytes[4096..half].fill(0xee);
    std::fs::write(&path, bytes).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn another_programs_file_is_left_alone() {
    use sqlx::Connection;
    let directory = TempDir::new().unwrap();
    let path = file(&directory);
    let url = format!("sqlite://{}?mode=rwc", path.display());
    let mut other = sqlx::SqliteConnection::connect(&url).await.unwrap();
    sqlx::query("CREATE TABLE theirs (x)")
        .execute(&mut other)
        .await
        .unwrap();
    other.close().await.unwrap();
    assert_eq!(
        Store::open(&path).unwrap_err(),
        StoreError::Foreign { path }
    );
}
