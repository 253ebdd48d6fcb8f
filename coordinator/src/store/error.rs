//! What can go wrong with the database.

use std::path::{Path, PathBuf};

/// An error that names the file, the cause and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No room.
    #[error(
        "the disk of {path} is full; make room: nothing was changed, and what waits is tried again"
    )]
    Full {
        /// The database.
        path: PathBuf,
    },
    /// The content does not hold together.
    #[error(
        "the database {path} is damaged ({cause}); stop the coordinator, keep a copy of the file, and put back a copy from a \
         synchronous replica (never an older backup: signed fundings would be forgotten)"
    )]
    Corrupt {
        /// The database.
        path: PathBuf,
        /// What does not fit.
        cause: String,
    },
    /// Another program's.
    #[error(
        "{path} is not a coordinator's database; choose another data directory, or move the file away"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Made by another release.
    #[error(
        "the database {path} cannot be brought up to date ({cause}); use the release that wrote it, or a newer one"
    )]
    Migration {
        /// The database.
        path: PathBuf,
        /// What was found.
        cause: String,
    },
    /// Another chain's, or another seed's.
    #[error(
        "the database {path} belongs to {found}, not to {expected}; use a data directory for each network and seed"
    )]
    OtherOwner {
        /// The database.
        path: PathBuf,
        /// What is configured.
        expected: String,
        /// What is stored.
        found: String,
    },
    /// A stored value cannot be read back.
    #[error(
        "the database holds a {what} that cannot be read: {cause}; it was damaged, or written by another release"
    )]
    Value {
        /// What it is.
        what: &'static str,
        /// What is wrong with it.
        cause: String,
    },
    /// Any other error of SQLite's.
    #[error("the database {path} failed: {source}")]
    Sql {
        /// The database.
        path: PathBuf,
        /// SQLite's words.
        source: sqlx::Error,
    },
}

/// SQLite's primary result codes (sqlite.org/rescode.html).
const SQLITE_CORRUPT: i32 = 11;
const SQLITE_FULL: i32 = 13;
const SQLITE_NOTADB: i32 = 26;
/// `SQLITE_IOERR_WRITE`, `SQLITE_IOERR_FSYNC` and `SQLITE_IOERR_SHMSIZE`: what some file systems say when full.
const WRITE_FAILED: [i32; 3] = [778, 1034, 4874];

impl StoreError {
    pub(super) fn at(path: &Path, error: sqlx::Error) -> Self {
        let path = path.to_owned();
        let code = error
            .as_database_error()
            .and_then(|error| error.code())
            .and_then(|code| code.parse::<i32>().ok());
        match code {
            Some(code) if code & 0xff == SQLITE_FULL || WRITE_FAILED.contains(&code) => {
                Self::Full { path }
            }
            Some(code) if matches!(code & 0xff, SQLITE_CORRUPT | SQLITE_NOTADB) => Self::Corrupt {
                path,
                cause: error.to_string(),
            },
            _ => Self::Sql {
                path,
                source: error,
            },
        }
    }

    pub(super) fn in_file(self, path: &Path) -> Self {
        match self {
            Self::Sql { source, .. } => Self::at(path, source),
            Self::OtherOwner {
                expected, found, ..
            } => Self::OtherOwner {
                path: path.to_owned(),
                expected,
                found,
            },
            other => other,
        }
    }

    /// Whether it is the same however often it is tried: what is stored, or was to be, is not what it must be.
    pub(crate) fn is_lasting(&self) -> bool {
        match self {
            Self::Value { .. } => true,
            Self::Sql { source, .. } => match source {
                sqlx::Error::Database(error) => {
                    !matches!(error.kind(), sqlx::error::ErrorKind::Other)
                }
                other => matches!(
                    other,
                    sqlx::Error::ColumnDecode { .. }
                        | sqlx::Error::Decode(_)
                        | sqlx::Error::RowNotFound
                ),
            },
            _ => false,
        }
    }

    /// A stored value that cannot be read back.
    pub(crate) fn value(what: &'static str, cause: impl ToString) -> Self {
        Self::Value {
            what,
            cause: cause.to_string(),
        }
    }
}

impl From<sqlx::Error> for StoreError {
    /// The file is filled in where the transaction ends.
    fn from(source: sqlx::Error) -> Self {
        Self::Sql {
            path: PathBuf::new(),
            source,
        }
    }
}
