//! One process per data directory.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often, and how long, to look at a lock that is held by a command that only takes a moment: on a machine that is busy a long one.
const LOOK: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(10);
const FILE: &str = "lock";
/// More than the file ever says.
const LONGEST: u64 = 100;
const SERVES: &str = "serves";

/// Holds the data directory until it is dropped, or the process ends in whatever way.
#[derive(Debug)]
pub struct DataDirLock {
    file: File,
    command: &'static str,
}

/// Who has a data directory, in its own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occupant {
    /// Its process id.
    pub pid: u32,
    /// The command it was started with.
    pub command: String,
    /// Whether it answers what other processes ask.
    pub serves: bool,
}

impl fmt::Display for Occupant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` (pid {})", self.command, self.pid)
    }
}

/// Why the directory is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("another signer-client runs on {path}{}; use it, or stop it first", by.as_ref().map_or(String::new(), |by| format!(": {by}")))]
    Held {
        /// The data directory.
        path: PathBuf,
        /// Who, if it has said so yet.
        by: Option<Occupant>,
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
    /// Takes the lock for a command; waits for one that only takes a moment, and not for one that stays.
    ///
    /// # Errors
    /// [`LockError::Held`] if another process keeps it.
    pub fn take_patiently(data_dir: &Path, command: &'static str) -> Result<Self, LockError> {
        let until = Instant::now() + PATIENCE;
        loop {
            match Self::take(data_dir, command) {
                Err(LockError::Held { by, .. })
                    if Instant::now() < until && !by.as_ref().is_some_and(|by| by.serves) =>
                {
                    std::thread::sleep(LOOK);
                }
                other => return other,
            }
        }
    }

    /// Takes the lock for a command, at once or not at all.
    ///
    /// # Errors
    /// [`LockError::Held`] if another process has it.
    pub fn take(data_dir: &Path, command: &'static str) -> Result<Self, LockError> {
        let path = data_dir.join(FILE);
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
            Ok(()) => {
                let mut lock = Self { file, command };
                lock.write(false).map_err(failed)?;
                Ok(lock)
            }
            Err(TryLockError::WouldBlock) => Err(LockError::Held {
                path: data_dir.to_owned(),
                by: occupant(data_dir),
            }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// Says that from now on this process answers what others ask.
    ///
    /// # Errors
    /// The system's.
    pub fn serve(&mut self) -> io::Result<()> {
        self.write(true)
    }

    fn write(&mut self, serves: bool) -> io::Result<()> {
        let word = if serves { SERVES } else { "busy" };
        self.file.rewind()?;
        self.file.set_len(0)?;
        let pid = std::process::id();
        self.file
            .write_all(format!("{pid} {} {word}\n", self.command).as_bytes())
    }
}

impl Drop for DataDirLock {
    fn drop(&mut self) {
        // Else the next one would be taken for this one until it has written its name. Nothing is
        // lost if that fails.
        let _ = self.file.set_len(0);
    }
}

/// Who has the data directory now, if anybody has. One that has just come may not have said yet who
/// it is.
///
/// # Errors
/// [`LockError::Io`].
pub fn holder(data_dir: &Path) -> Result<Option<Option<Occupant>>, LockError> {
    let path = data_dir.join(FILE);
    let failed = |source| LockError::Io {
        path: path.clone(),
        source,
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    // A shared lock: two who look do not take each other for a holder.
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => Ok(Some(occupant(data_dir))),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// What the lock file says.
fn occupant(data_dir: &Path) -> Option<Occupant> {
    let mut text = String::new();
    let file = File::open(data_dir.join(FILE)).ok()?;
    file.take(LONGEST).read_to_string(&mut text).ok()?;
    let mut words = text.strip_suffix('\n')?.split(' ');
    Some(Occupant {
        pid: words.next()?.parse().ok()?,
        command: words.next()?.to_owned(),
        serves: words.next()? == SERVES,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(holder(dir.path()).unwrap(), None);
        let mut first = DataDirLock::take(dir.path(), "join").unwrap();
        let refused = DataDirLock::take(dir.path(), "run")
            .unwrap_err()
            .to_string();
        let pid = std::process::id();
        assert!(
            refused.contains(&format!("`join` (pid {pid})")),
            "{refused}"
        );
        let serves = || holder(dir.path()).unwrap().unwrap().unwrap().serves;
        assert!(!serves());
        first.serve().unwrap();
        assert!(serves());
        drop(first);
        assert_eq!(holder(dir.path()).unwrap(), None);
        DataDirLock::take(dir.path(), "run").unwrap();
    }

    #[test]
    fn one_that_only_takes_a_moment_is_waited_for_however_busy_the_machine() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDirLock::take(dir.path(), "balance").unwrap();
        let slow = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(1));
            drop(first);
        });
        let mut second = DataDirLock::take_patiently(dir.path(), "run").unwrap();
        slow.join().unwrap();
        second.serve().unwrap();
        let refused = DataDirLock::take_patiently(dir.path(), "run").unwrap_err();
        assert!(refused.to_string().contains("`run`"), "{refused}");
    }
}
