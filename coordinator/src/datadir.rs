//! The data directory: what is in it, and that one process at a time uses it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long, and how often, to look at a lock: whoever only asks whether it is held has it for a moment.
const PATIENCE: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(20);

/// What can go wrong with the data directory.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// There is no home directory to put it in.
    #[error("there is no home directory; name a data directory with --data-dir")]
    NoHome,
    /// Another process has it.
    #[error(
        "another coordinator is using {path} already; stop it first, or use another --data-dir"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// `init` has not been run.
    #[error("there is no coordinator in {path}; create one with `coordinator init`")]
    NotInitialised {
        /// The directory.
        path: PathBuf,
    },
    /// `init` has been run already.
    #[error("there is a coordinator in {path} already; nothing was changed")]
    Initialised {
        /// The directory.
        path: PathBuf,
    },
    /// The file system.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
}

/// A data directory.
#[derive(Clone, Debug)]
pub struct DataDir(PathBuf);

impl DataDir {
    /// This directory, or `~/.superscalar/coordinator`.
    ///
    /// # Errors
    /// [`DataDirError::NoHome`].
    pub fn new(path: Option<PathBuf>) -> Result<Self, DataDirError> {
        let path = match path {
            Some(path) => path,
            None => std::env::home_dir()
                .ok_or(DataDirError::NoHome)?
                .join(".superscalar/coordinator"),
        };
        // Absolute, as the paths in error texts and in `info` are for people elsewhere.
        Ok(Self(std::path::absolute(&path).unwrap_or(path)))
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The encrypted seed.
    #[must_use]
    pub fn seed(&self) -> PathBuf {
        self.0.join("seed.json")
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.0.join("coordinator.sqlite")
    }

    /// The Lightning node's store.
    #[must_use]
    pub fn channels(&self) -> PathBuf {
        self.0.join("channels.sqlite")
    }

    /// The operator's socket.
    #[must_use]
    pub fn admin_socket(&self) -> PathBuf {
        self.0.join("admin.sock")
    }

    /// Configuration.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.0.join("coordinator.toml")
    }

    /// Creates it, for its owner alone.
    ///
    /// # Errors
    /// [`DataDirError::Io`].
    pub fn create(&self) -> Result<(), DataDirError> {
        let failed = |source| DataDirError::Io {
            action: "create the directory",
            path: self.0.clone(),
            source,
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
            .map_err(failed)
    }

    /// Writes a file that only its owner reads, if it is not there. It is there whole or not at all, also after a power cut.
    ///
    /// # Errors
    /// [`DataDirError::Io`].
    pub fn write_new(&self, path: &Path, content: &[u8]) -> Result<(), DataDirError> {
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let write = || {
            match fs::remove_file(&part) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut options = OpenOptions::new();
            let mut file = options
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&part)?;
            io::Write::write_all(&mut file, content)?;
            file.sync_all()?;
            // Unlike renaming, linking never replaces a file.
            let linked = fs::hard_link(&part, path);
            fs::remove_file(&part)?;
            linked?;
            File::open(&self.0)?.sync_all()
        };
        write().map_err(|source| DataDirError::Io {
            action: "write",
            path: path.to_owned(),
            source,
        })
    }

    /// Takes the directory for this process, until the lock is dropped or the process ends, however it ends.
    ///
    /// # Errors
    /// [`DataDirError::InUse`], [`DataDirError::NotInitialised`].
    pub fn lock(&self) -> Result<DataDirLock, DataDirError> {
        let path = self.lock_file();
        if !self.0.is_dir() {
            return Err(DataDirError::NotInitialised {
                path: self.0.clone(),
            });
        }
        let failed = |source| DataDirError::Io {
            action: "lock",
            path: path.clone(),
            source,
        };
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        let until = Instant::now() + PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(DataDirLock { _file: file }),
                Err(fs::TryLockError::WouldBlock) if Instant::now() < until => {
                    std::thread::sleep(LOOK);
                }
                Err(fs::TryLockError::WouldBlock) => {
                    return Err(DataDirError::InUse {
                        path: self.0.clone(),
                    });
                }
                Err(fs::TryLockError::Error(source)) => return Err(failed(source)),
            }
        }
    }

    /// Whether a process has it.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        // A shared lock: those who look do not take each other for one that stays.
        let looked = File::open(self.lock_file()).map(|file| file.try_lock_shared());
        matches!(looked, Ok(Err(fs::TryLockError::WouldBlock)))
    }

    fn lock_file(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// Makes a file readable by its owner alone.
    ///
    /// # Errors
    /// [`DataDirError::Io`].
    pub fn restrict(path: &Path) -> Result<(), DataDirError> {
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(|source| {
            DataDirError::Io {
                action: "restrict access to",
                path: path.to_owned(),
                source,
            }
        })
    }
}

/// Holds the data directory.
#[derive(Debug)]
pub struct DataDirLock {
    _file: File,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(Some(dir.path().join("a/b"))).unwrap();
        assert!(matches!(
            data.lock(),
            Err(DataDirError::NotInitialised { .. })
        ));
        data.create().unwrap();
        assert_eq!(
            fs::metadata(data.path()).unwrap().permissions().mode() & 0o777,
            0o700
        );
        assert!(!data.is_in_use());
        let lock = data.lock().unwrap();
        assert!(matches!(data.lock(), Err(DataDirError::InUse { .. })));
        assert!(data.is_in_use());
        drop(lock);
        assert!(!data.is_in_use());
        data.lock().unwrap();
    }

    #[test]
    fn who_looks_whether_it_is_in_use_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(Some(dir.path().into())).unwrap();
        let looks = File::create(data.lock_file()).unwrap();
        looks.try_lock_shared().unwrap();
        assert!(!data.is_in_use());
        let over = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(looks);
        });
        data.lock().unwrap();
        over.join().unwrap();
    }

    #[test]
    fn files_are_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(Some(dir.path().into())).unwrap();
        data.write_new(&data.config(), b"a").unwrap();
        assert!(data.write_new(&data.config(), b"b").is_err());
        assert_eq!(fs::read_dir(data.path()).unwrap().count(), 1);
        // What an interrupted start left behind is in nobody's way.
        fs::remove_file(data.config()).unwrap();
        fs::write(dir.path().join("coordinator.toml.part"), "netw").unwrap();
        data.write_new(&data.config(), b"a").unwrap();
        assert_eq!(fs::read(data.config()).unwrap(), b"a");
        assert_eq!(
            fs::metadata(data.config()).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
}
