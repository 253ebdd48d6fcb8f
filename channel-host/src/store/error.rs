//! What can go wrong with the store.

use std::path::{Path, PathBuf};

use lightning::io;

/// An error that names the file, the cause and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No room.
    #[error(
        "the disk of {path} is full; make room and start again: nothing unfinished was promised to a peer"
    )]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// The content does not hold together.
    #[error(
        "the channel store {path} is damaged ({cause}); keep a copy of the file, and never put back an older one: an outdated channel state is \
         punished with the loss of the channel"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        cause: String,
    },
    /// Another process has it.
    #[error(
        "the channel store {path} is in use by another process; two nodes with the same keys lose money, so only one may run"
    )]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// Another program's.
    #[error("{path} is not a channel store; choose another path, or move the file away")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Made by another release.
    #[error(
        "the channel store {path} cannot be brought up to date ({cause}); use the release that wrote it, or a newer one"
    )]
    Migration {
        /// The file.
        path: PathBuf,
        /// What was found.
        cause: String,
    },
    /// Any other error of SQLite's or of the system's.
    #[error("the channel store {path} failed: {cause}")]
    Failed {
        /// The file.
        path: PathBuf,
        /// Their words.
        cause: String,
    },
}

/// SQLite's primary result codes (sqlite.org/rescode.html).
const SQLITE_BUSY: i32 = 5;
const SQLITE_LOCKED: i32 = 6;
const SQLITE_CORRUPT: i32 = 11;
const SQLITE_FULL: i32 = 13;
const SQLITE_NOTADB: i32 = 26;

impl StoreError {
    pub(super) fn at(path: &Path, error: &sqlx::Error) -> Self {
        let path = path.to_owned();
        let cause = error.to_string();
        let code = error
            .as_database_error()
            .and_then(|error| error.code())
            .and_then(|code| code.parse::<i32>().ok());
        match code.map(|code| code & 0xff) {
            Some(SQLITE_BUSY | SQLITE_LOCKED) => Self::Locked { path },
            Some(SQLITE_CORRUPT | SQLITE_NOTADB) => Self::Corrupt { path, cause },
            Some(SQLITE_FULL) => Self::Full { path },
            _ => Self::Failed { path, cause },
        }
    }
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        Self::new(io::ErrorKind::Other, error)
    }
}
