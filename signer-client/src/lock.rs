//! One process per data directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often and how long to look at a lock that is held.
const LOOKS: u32 = 10;
const LOOK: Duration = Duration::from_millis(50);

/// Holds the data directory until it is dropped, or the process ends in whatever way.
#[derive(Debug)]
pub struct DataDirLock {
    _file: File,
}

/// Why the directory is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("another signer-client runs on {path}; use it, or stop it first")]
    Held {
        /// The data directory.
        path: PathBuf,
    },
    /// The lock file cannot be opened.
    #[error("cannot lock {path}: {source}")]
    Io {
        /// The lock file.
        path: PathBuf,
        /// In the system's words.
        source: io::Error,
    },
}

impl DataDirLock {
    /// Takes the lock; waits a moment for a command that only looks whether somebody runs.
    ///
    /// # Errors
    /// [`LockError::Held`] if another process keeps it.
    pub fn take_patiently(data_dir: &Path) -> Result<Self, LockError> {
        for _ in 0..LOOKS {
            match Self::take(data_dir) {
                Err(LockError::Held { .. }) => std::thread::sleep(LOOK),
                other => return other,
            }
        }
        Self::take(data_dir)
    }

    /// Takes the lock, at once or not at all.
    ///
    /// # Errors
    /// [`LockError::Held`] if another process has it.
    pub fn take(data_dir: &Path) -> Result<Self, LockError> {
        let path = data_dir.join("lock");
        let failed = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(LockError::Held {
                path: data_dir.to_owned(),
            }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDirLock::take(dir.path()).unwrap();
        assert!(matches!(
            DataDirLock::take(dir.path()),
            Err(LockError::Held { .. })
        ));
        drop(first);
        DataDirLock::take(dir.path()).unwrap();
    }
}
