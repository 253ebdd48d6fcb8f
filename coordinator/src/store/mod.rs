//! The coordinator's database: SQLite, one writer, durable when a write returns.
//!
//! [`Store::read`] and [`Store::write`] own the transaction; the queries are functions on its connection, one file per
//! domain. A write that fails leaves nothing behind.

pub mod attempts;
pub mod bonus;
pub mod ceremonies;
pub mod clients;
mod codec;
mod error;
pub mod factories;
pub mod history;
pub mod jit;
pub mod ladder;
pub mod leaves;
pub mod lsps1;
pub mod outputs;
pub mod owner;
pub mod payments;
pub mod prices;
pub mod sales;
pub mod sold;
pub mod sweeps;
mod wallet;
pub mod webhooks;

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};

pub use error::StoreError;

/// What this module returns.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;
/// A transaction's connection.
pub type Conn = SqliteConnection;

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations/coordinator");

/// Marks our files: "SSco" (SQLite's `application_id`).
const APPLICATION_ID: i64 = 0x5353_636f;
/// Readers at once; SQLite has one writer.
const READERS: u32 = 4;

/// The database of one data directory.
#[derive(Clone, Debug)]
pub struct Store {
    path: PathBuf,
    writer: SqlitePool,
    readers: SqlitePool,
}

impl Store {
    /// Opens or creates the database, checks that it is whole, and brings it up to date.
    ///
    /// # Errors
    /// [`StoreError`], which names the file and what to do.
    pub async fn open(path: &Path) -> Result<Self> {
        owners_alone(path)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            // Keeps the log beside the database at about a megabyte.
            .pragma("wal_autocheckpoint", "250")
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        let failed = |error| StoreError::at(path, error);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(options.clone())
            .await
            .map_err(failed)?;
        let store = Self {
            path: path.to_owned(),
            readers: SqlitePoolOptions::new()
                .max_connections(READERS)
                .connect_lazy_with(options.read_only(true)),
            writer,
        };
        store.check().await?;
        MIGRATIONS
            .run(&store.writer)
            .await
            .map_err(|error| StoreError::Migration {
                path: path.to_owned(),
                cause: error.to_string(),
            })?;
        sqlx::query("PRAGMA application_id = 0x5353636f")
            .execute(&store.writer)
            .await
            .map_err(failed)?;
        Ok(store)
    }

    /// Whether the file is ours, and whole.
    async fn check(&self) -> Result<()> {
        let failed = |error| StoreError::at(&self.path, error);
        let id: i64 = sqlx::query_scalar("PRAGMA application_id")
            .fetch_one(&self.writer)
            .await
            .map_err(failed)?;
        let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema")
            .fetch_one(&self.writer)
            .await
            .map_err(failed)?;
        if id != APPLICATION_ID && (id != 0 || tables != 0) {
            return Err(StoreError::Foreign {
                path: self.path.clone(),
            });
        }
        let verdict: String = sqlx::query_scalar("PRAGMA quick_check(1)")
            .fetch_one(&self.writer)
            .await
            .map_err(failed)?;
        if verdict != "ok" {
            return Err(StoreError::Corrupt {
                path: self.path.clone(),
                cause: verdict,
            });
        }
        Ok(())
    }

    /// Runs `queries` in a transaction that changes nothing.
    ///
    /// # Errors
    /// Those of the queries.
    pub async fn read<T, F>(&self, queries: F) -> Result<T>
    where
        F: AsyncFnOnce(&mut Conn) -> Result<T>,
    {
        let mut tx = self
            .readers
            .begin()
            .await
            .map_err(|error| StoreError::at(&self.path, error))?;
        queries(&mut tx)
            .await
            .map_err(|error| error.in_file(&self.path))
    }

    /// Runs `queries` in a transaction, which is durable when this returns `Ok`.
    ///
    /// # Errors
    /// Those of the queries; then nothing was changed.
    pub async fn write<T, F>(&self, queries: F) -> Result<T>
    where
        F: AsyncFnOnce(&mut Conn) -> Result<T>,
    {
        let failed = |error| StoreError::at(&self.path, error);
        let mut tx = self
            .writer
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(failed)?;
        let value = queries(&mut tx)
            .await
            .map_err(|error| error.in_file(&self.path))?;
        tx.commit().await.map_err(failed)?;
        Ok(value)
    }

    /// Waits for running transactions and closes the file.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// Makes the file its owner's alone, before there is anything in it; SQLite gives the log and the index beside it the same mode.
fn owners_alone(path: &Path) -> Result<()> {
    let restricted = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .and_then(|file| file.set_permissions(Permissions::from_mode(0o600)));
    restricted.map_err(|error| StoreError::at(path, sqlx::Error::Io(error)))
}

#[cfg(test)]
#[path = "../store_tests.rs"]
mod tests;
