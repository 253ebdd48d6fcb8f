//! The SQLite implementation: the file, its settings, its transactions.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, SqlitePool, Transaction};

use super::{Result, StoreError};

static MIGRATOR: Migrator = sqlx::migrate!("../migrations/client");

/// How often and how long to wait for another process at opening.
const LOOKS: u32 = 100;
const LOOK: Duration = Duration::from_millis(50);
/// How long a writer waits for another process.
const PATIENCE: Duration = Duration::from_secs(20);

/// A wallet's SQLite database: write-ahead log, synchronous=FULL, migrations applied at opening.
#[derive(Clone, Debug)]
pub struct SqliteStore {
    pool: SqlitePool,
    path: String,
}

/// Creates the file for its owner only; the journals take its mode over. If that fails, opening it
/// says why.
fn make_private(path: &Path) {
    let _ = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
}

impl SqliteStore {
    /// Opens the file, or creates it.
    ///
    /// # Errors
    /// [`StoreError`] names the file and what to do.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path.as_ref())
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            // The log is folded into the database often, so that a small disk is enough for both.
            .pragma("wal_autocheckpoint", "128");
        make_private(path.as_ref());
        let path = path.as_ref().display().to_string();
        let mut looks = LOOKS;
        let store = loop {
            match Self::connect(options.clone(), path.clone()).await {
                // SQLite does not wait by itself while another process, a command that ends just
                // now for example, changes the journal.
                Err(StoreError::Busy { .. }) if looks > 0 => {
                    looks = looks.saturating_sub(1);
                    tokio::time::sleep(LOOK).await;
                }
                other => break other?,
            }
        };
        store.quick_check().await?;
        Ok(store)
    }

    /// A store in memory, gone with its owner: for tests and benchmarks.
    ///
    /// # Errors
    /// [`StoreError`], when there is no memory.
    pub async fn in_memory() -> Result<Self> {
        let path = "(in memory)".to_owned();
        let options = SqliteConnectOptions::from_str("sqlite::memory:")
            .map_err(|error| StoreError::from_sqlx(&path, error))?;
        Self::connect(options, path).await
    }

    /// One connection: a wallet's statements are short, and one alone never waits for itself.
    async fn connect(options: SqliteConnectOptions, path: String) -> Result<Self> {
        let options = options.foreign_keys(true).busy_timeout(PATIENCE);
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            // A connection in memory is the database: it must neither idle out nor be recycled.
            .idle_timeout(None)
            .max_lifetime(None)
            .min_connections(1)
            .connect_with(options)
            .await
            .map_err(|error| StoreError::from_sqlx(&path, error))?;
        MIGRATOR
            .run(&pool)
            .await
            .map_err(|error| StoreError::from_migration(&path, error))?;
        Ok(Self { pool, path })
    }

    /// A damaged file is better found now than in the middle of an exit.
    async fn quick_check(&self) -> Result<()> {
        let verdict: String = sqlx::query_scalar("PRAGMA quick_check(1)")
            .fetch_one(&self.pool)
            .await
            .map_err(|error| self.error(error))?;
        if verdict == "ok" {
            return Ok(());
        }
        Err(StoreError::Corrupt {
            path: self.path.clone(),
            cause: verdict,
        })
    }

    pub(super) fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    /// A transaction that holds the write lock from its beginning, so that it cannot fail halfway
    /// because another process wrote in between.
    pub(super) async fn write(&self) -> Result<Transaction<'static, Sqlite>> {
        self.pool
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(|error| self.error(error))
    }

    pub(super) async fn commit(&self, tx: Transaction<'static, Sqlite>) -> Result<()> {
        tx.commit().await.map_err(|error| self.error(error))
    }

    pub(super) fn error(&self, error: sqlx::Error) -> StoreError {
        StoreError::from_sqlx(&self.path, error)
    }

    /// Counts a change that a restored backup would be missing (protocol.md section 5, Restore).
    pub(super) async fn bump_epoch(&self, tx: &mut Transaction<'static, Sqlite>) -> Result<()> {
        sqlx::query("UPDATE identity SET epoch = epoch + 1")
            .execute(&mut **tx)
            .await
            .map_err(|error| self.error(error))?;
        Ok(())
    }
}
