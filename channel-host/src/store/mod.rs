//! What the Lightning node remembers: one SQLite file of its own, owned by one process, durable when a write returns.
//!
//! LDK calls its store from threads that cannot wait for a future, so one thread owns the connection and everybody asks it. Writes that
//! arrive while a transaction is being made durable share the next one.

mod error;
mod kv;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, mpsc};

use writer::{Job, Writer};

pub use error::StoreError;

/// What this module returns.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Where an entry lies: LDK's primary namespace, secondary namespace and key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryKey {
    /// Primary namespace.
    pub space: String,
    /// Secondary namespace.
    pub subspace: String,
    /// Key.
    pub name: String,
}

impl EntryKey {
    /// A key from its parts.
    pub fn new(space: &str, subspace: &str, name: &str) -> Self {
        Self {
            space: space.to_owned(),
            subspace: subspace.to_owned(),
            name: name.to_owned(),
        }
    }
}

/// One change. A list of them is made whole or not at all.
#[derive(Debug, Clone)]
pub enum Change {
    /// Store these bytes, in place of what is there.
    Put(EntryKey, Vec<u8>),
    /// Forget what is there, if anything is.
    Remove(EntryKey),
}

/// The store of one node; clones share it. The file stays locked until the last clone is gone.
#[derive(Clone)]
pub struct Store {
    writer: Arc<Writer>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("path", &self.writer.path())
            .finish_non_exhaustive()
    }
}

/// Creates the file for its owner only, and takes it from others who had it; the journals take its mode over. If that fails, opening it says why.
fn make_private(path: &Path) {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path);
    let private = || Permissions::from_mode(0o600);
    let _ = file.and_then(|file| file.set_permissions(private()));
    // Left by a crash, these are used again as they are.
    for journal in ["-wal", "-shm"] {
        let mut path = path.as_os_str().to_owned();
        path.push(journal);
        let _ = std::fs::set_permissions(path, private());
    }
}

impl Store {
    /// Opens or creates the file, checks that it is whole, and brings it up to date. Blocks for as long as that takes.
    ///
    /// # Errors
    /// [`StoreError`], which names the file and what to do.
    pub fn open(path: &Path) -> Result<Self> {
        make_private(path);
        Ok(Self {
            writer: Arc::new(Writer::start(path)?),
        })
    }

    /// The bytes of an entry, if there is one.
    ///
    /// # Errors
    /// Those of the file.
    pub fn get(&self, key: EntryKey) -> Result<Option<Vec<u8>>> {
        self.ask(|reply| Job::Get { key, reply })
    }

    /// The names in a subspace, sorted.
    ///
    /// # Errors
    /// Those of the file.
    pub fn names(&self, space: &str, subspace: &str) -> Result<Vec<String>> {
        let (space, subspace) = (space.to_owned(), subspace.to_owned());
        self.ask(|reply| Job::Names {
            space,
            subspace,
            reply,
        })
    }

    /// Makes these changes, all or none; they are on the disk when this returns `Ok`.
    ///
    /// After a write has failed, no other is tried: what is in memory and what is on the disk part ways then, and only opening the file again
    /// brings them together.
    ///
    /// # Errors
    /// Those of the file.
    pub fn write(&self, changes: Vec<Change>) -> Result<()> {
        self.ask(|reply| Job::Write {
            changes,
            reply: Some(reply),
        })
    }

    /// Queues changes that may be lost in a crash, before all that is asked for later.
    pub(crate) fn write_lazily(&self, changes: Vec<Change>) -> Result<()> {
        self.writer.send(Job::Write {
            changes,
            reply: None,
        })
    }

    /// Why writes fail, once one has.
    pub fn failure(&self) -> Option<StoreError> {
        self.writer.failure()
    }

    /// Ends: what was asked is done, the file is free, and everything asked from now on fails.
    pub fn close(&self) {
        self.writer.close();
    }

    fn ask<T>(&self, job: impl FnOnce(mpsc::SyncSender<Result<T>>) -> Job) -> Result<T> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.writer.send(job(reply))?;
        answer.recv().unwrap_or_else(|_| Err(self.writer.closed()))
    }

    #[cfg(test)]
    fn limit_pages(&self, pages: u32) -> Result<()> {
        self.ask(|reply| Job::LimitPages { pages, reply })
    }
}
