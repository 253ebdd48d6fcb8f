//! What can go wrong with the store, each with its remedy.

use bitcoin::{Network, OutPoint};
use factory_tree::ids::{ClientId, FactoryId};

/// SQLite result codes (primary part) that call for a remedy of their own.
const BUSY: i32 = 5;
const READ_ONLY: i32 = 8;
const IO_ERROR: i32 = 10;
const CORRUPT: i32 = 11;
const FULL: i32 = 13;
const CANNOT_OPEN: i32 = 14;
const NOT_A_DATABASE: i32 = 26;

/// An error that names the cause and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file is damaged, or is none of ours.
    #[error(
        "the database {path} is damaged ({cause}); stop, keep a copy of it, and put a backup back"
    )]
    Corrupt {
        /// Which file.
        path: String,
        /// What does not fit.
        cause: String,
    },
    /// There is no room to write.
    #[error("no room to write to {path}; free some space: nothing was lost, and work goes on then")]
    Full {
        /// Which file.
        path: String,
    },
    /// The file cannot be opened or created.
    #[error("cannot open the database {path} ({cause}); check that it exists and may be written")]
    CannotOpen {
        /// Which file.
        path: String,
        /// What the system said.
        cause: String,
    },
    /// Another process holds the write lock for longer than is reasonable.
    #[error("the database {path} is locked by another process; end that process, or wait for it")]
    Busy {
        /// Which file.
        path: String,
    },
    /// A later release has changed the tables.
    #[error("the database {path} belongs to a newer release ({cause}); use that release")]
    Newer {
        /// Which file.
        path: String,
        /// What does not fit.
        cause: String,
    },
    /// The store is another wallet's.
    #[error(
        "the database belongs to node {found}, this seed is node {expected}; use the seed and the data directory that belong together"
    )]
    OtherNode {
        /// By the seed.
        expected: ClientId,
        /// In the store.
        found: ClientId,
    },
    /// The store is another network's.
    #[error(
        "the database belongs to {found}, the configuration says {expected}; use one data directory per network"
    )]
    OtherNetwork {
        /// Configured.
        expected: Network,
        /// In the store.
        found: Network,
    },
    /// A key or a leaf id that served another join.
    #[error("{what} served an earlier join; no key and no leaf id is ever used twice")]
    Reused {
        /// What was to be reused.
        what: String,
    },
    /// Something else was signed for this outpoint and purpose.
    #[error("another transaction that spends {outpoint} was signed before for purpose {purpose}")]
    DoubleSign {
        /// The outpoint.
        outpoint: OutPoint,
        /// The purpose.
        purpose: String,
    },
    /// There is no such factory.
    #[error("this wallet holds no factory {0}; `factories` lists those it holds")]
    NoFactory(FactoryId),
    /// A stored value does not have the form it was written in.
    #[error(
        "the database holds an unreadable {what}; stop, keep a copy of it, and put a backup back"
    )]
    Unreadable {
        /// Which value.
        what: &'static str,
    },
    /// Any other error of the database.
    #[error("the database {path} failed: {cause}")]
    Database {
        /// Which file.
        path: String,
        /// What it said.
        cause: String,
    },
}

impl StoreError {
    /// Sorts an error of sqlx.
    pub(super) fn from_sqlx(path: &str, error: sqlx::Error) -> Self {
        let path = path.to_owned();
        let cause = error.to_string();
        let code = error
            .as_database_error()
            .and_then(|error| error.code())
            .and_then(|code| code.parse::<i32>().ok())
            // The upper bits are SQLite's extended code.
            .map(|code| code & 0xff);
        match code {
            Some(CORRUPT | NOT_A_DATABASE) => Self::Corrupt { path, cause },
            Some(FULL) => Self::Full { path },
            Some(IO_ERROR) if cause.contains("full") => Self::Full { path },
            Some(BUSY) => Self::Busy { path },
            Some(CANNOT_OPEN | READ_ONLY) => Self::CannotOpen { path, cause },
            _ => Self::Database { path, cause },
        }
    }

    /// Sorts an error of the migrations.
    pub(super) fn from_migration(path: &str, error: sqlx::migrate::MigrateError) -> Self {
        use sqlx::migrate::MigrateError;
        match error {
            MigrateError::VersionMissing(_)
            | MigrateError::VersionMismatch(_)
            | MigrateError::VersionTooNew(..) => Self::Newer {
                path: path.to_owned(),
                cause: error.to_string(),
            },
            MigrateError::Execute(error) => Self::from_sqlx(path, error),
            MigrateError::ExecuteMigration(error, _) => Self::from_sqlx(path, error),
            other => Self::Database {
                path: path.to_owned(),
                cause: other.to_string(),
            },
        }
    }
}
