//! A wallet's store as it is on the disk at this moment, whoever writes to it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use signer_client::store::{SharedStore, SqliteStore};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};
use tempfile::TempDir;

/// How long to wait for a writer that has the database for itself.
const PATIENCE: Duration = Duration::from_secs(5);

/// Makes copies, each gone with its owner.
#[derive(Debug)]
pub(super) struct Glass {
    room: TempDir,
}

/// A copy, opened by the wallet's own library.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) store: SharedStore,
    _room: TempDir,
}

impl Glass {
    pub(super) fn new() -> Result<Self> {
        let room = tempfile::Builder::new().prefix("watcher-").tempdir()?;
        Ok(Self { room })
    }

    /// What is committed, in the database's file and in its log: exactly what the wallet itself would find after a power cut.
    pub(super) async fn copy(&self, store: &Path) -> Result<Copy> {
        let room = tempfile::tempdir_in(self.room.path())?;
        let target = room.path().join("client.sqlite");
        snapshot(store, &target).await?;
        let opened = SqliteStore::open(&target).await;
        Ok(Copy {
            store: Arc::new(opened.context("the copy cannot be opened")?),
            _room: room,
        })
    }
}

/// A reader never folds the log into the file: the store is as it was.
async fn snapshot(store: &Path, target: &Path) -> Result<()> {
    let options = SqliteConnectOptions::new()
        .filename(store)
        .read_only(true)
        .busy_timeout(PATIENCE);
    let mut reader = SqliteConnection::connect_with(&options).await?;
    let target = target.display().to_string().replace('\'', "''");
    let copied = sqlx::query(AssertSqlSafe(format!("VACUUM INTO '{target}'")))
        .execute(&mut reader)
        .await;
    reader.close().await?;
    copied.map(drop).context("the store cannot be copied")
}
