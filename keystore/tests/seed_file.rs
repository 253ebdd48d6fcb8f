//! The seed's life on disk.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use bitcoin::Network;
use keystore::{JoinRole, KdfCost, Passphrase, Seed, SeedError, WordsError};

struct Place {
    dir: tempfile::TempDir,
    path: PathBuf,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("seed.json");
    Place { dir, path }
}

fn right() -> Passphrase {
    Passphrase::new("correct horse battery staple".to_owned()).unwrap()
}

fn node(seed: &Seed) -> [u8; 32] {
    *seed.keys(Network::Regtest).unwrap().ldk_seed()
}

#[test]
fn created_opened_and_restored_are_the_same_seed() {
    let (first, second) = (place(), place());
    let (created, words) = Seed::create(&first.path, &right(), KdfCost::Light).unwrap();
    assert_eq!(words.reveal().split(' ').count(), 24);
    let opened = Seed::open(&first.path, &right()).unwrap();
    let other = Passphrase::new("another".to_owned()).unwrap();
    let restored = Seed::restore(&second.path, words.reveal(), &other, KdfCost::Light).unwrap();
    let reopened = Seed::open(&second.path, &other).unwrap();
    for seed in [&opened, &restored, &reopened] {
        assert_eq!(node(seed), node(&created));
        assert_eq!(seed.kdf_cost(), KdfCost::Light);
    }
    let third = place();
    let (another, _) = Seed::create(&third.path, &right(), KdfCost::Light).unwrap();
    assert_ne!(node(&another), node(&created), "every seed is drawn anew");
}

#[test]
fn the_cost_is_recorded() {
    let place = place();
    Seed::create(&place.path, &right(), KdfCost::Standard).unwrap();
    assert_eq!(
        Seed::open(&place.path, &right()).unwrap().kdf_cost(),
        KdfCost::Standard
    );
}

#[test]
fn never_overwrites() {
    let place = place();
    let (_, words) = Seed::create(&place.path, &right(), KdfCost::Light).unwrap();
    let before = fs::read(&place.path).unwrap();
    let created = Seed::create(&place.path, &right(), KdfCost::Light).map(|_| ());
    let restored = Seed::restore(&place.path, words.reveal(), &right(), KdfCost::Light).map(|_| ());
    for result in [created, restored] {
        let error = result.unwrap_err();
        assert!(matches!(error, SeedError::Exists { .. }), "{error}");
        assert!(
            error.to_string().contains("move it to a safe place"),
            "{error}"
        );
    }
    assert_eq!(fs::read(&place.path).unwrap(), before);

    // Not through a dangling link either.
    let link = place.dir.path().join("link.json");
    let target = place.dir.path().join("target.json");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    assert!(matches!(
        Seed::create(&link, &right(), KdfCost::Light),
        Err(SeedError::Exists { .. })
    ));
    assert!(!target.exists());
}

#[test]
fn only_the_owner_may_read_it() {
    let place = place();
    Seed::create(&place.path, &right(), KdfCost::Light).unwrap();
    assert_eq!(
        fs::metadata(&place.path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let names: Vec<_> = fs::read_dir(place.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["seed.json"], "no temporary file stays behind");
    for mode in [0o640, 0o604, 0o622] {
        fs::set_permissions(&place.path, Permissions::from_mode(mode)).unwrap();
        let error = Seed::open(&place.path, &right()).unwrap_err();
        assert!(matches!(error, SeedError::OpenToOthers { .. }), "{error}");
    }
    fs::set_permissions(&place.path, Permissions::from_mode(0o400)).unwrap();
    Seed::open(&place.path, &right()).unwrap();
}

#[test]
fn errors_name_cause_and_remedy() {
    let place = place();
    let error = Seed::open(&place.path, &right()).unwrap_err();
    assert!(matches!(error, SeedError::Missing { .. }), "{error}");

    Seed::create(&place.path, &right(), KdfCost::Light).unwrap();
    let wrong = Passphrase::new("wrong".to_owned()).unwrap();
    let error = Seed::open(&place.path, &wrong).unwrap_err();
    assert!(
        matches!(error, SeedError::WrongPassphrase { .. }),
        "{error}"
    );
    assert!(error.to_string().starts_with("wrong passphrase"), "{error}");

    let mut content = fs::read_to_string(&place.path).unwrap();
    let digit = content.find("ciphertext\": \"").unwrap() + 14;
    let other = if &content[digit..=digit] == "0" {
        "1"
    } else {
        "0"
    };
    content.replace_range(digit..=digit, other);
    fs::write(&place.path, &content).unwrap();
    let error = Seed::open(&place.path, &right()).unwrap_err();
    assert!(matches!(error, SeedError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("24 words"), "{error}");

    fs::write(&place.path, vec![b' '; 1 << 20]).unwrap();
    let error = Seed::open(&place.path, &right()).unwrap_err();
    assert!(
        matches!(&error, SeedError::Damaged { what, .. } if what.contains("longer")),
        "{error}"
    );

    let nowhere = place.dir.path().join("missing/seed.json");
    let error = Seed::create(&nowhere, &right(), KdfCost::Light).unwrap_err();
    assert!(matches!(error, SeedError::Io { .. }), "{error}");

    let fresh = place.dir.path().join("fresh.json");
    let error = Seed::restore(&fresh, "one two three", &right(), KdfCost::Light).unwrap_err();
    assert!(
        matches!(error, SeedError::Words(WordsError::Count { found: 3 })),
        "{error}"
    );
    assert!(!fresh.exists());
}

#[test]
fn secrets_are_not_shown() {
    let place = place();
    let (seed, words) = Seed::create(&place.path, &right(), KdfCost::Light).unwrap();
    let keys = seed.keys(Network::Regtest).unwrap();
    assert_eq!(format!("{seed:?}"), "Seed { cost: Light, .. }");
    assert_eq!(format!("{keys:?}"), "Keys { network: Regtest, .. }");
    assert_eq!(format!("{words:?}"), "Words(..)");
    let file = fs::read_to_string(&place.path).unwrap();
    let first = words.reveal().split(' ').next().unwrap();
    assert!(!file.contains(&format!(" {first} ")));
    let _ = keys.join_secret([0; 16], JoinRole::Factory);
}
