//! The thread that owns the connection.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteLockingMode, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection};

use super::{Change, EntryKey, Result, StoreError};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Marks our files: "SSch" (SQLite's `application_id`).
const APPLICATION_ID: i64 = 0x5353_6368;
/// Another process either has the file for good or not at all.
const BUSY: Duration = Duration::from_millis(200);
/// Jobs that may wait; then whoever asks waits.
const QUEUE: usize = 1024;
/// Jobs taken into one transaction.
const BATCH: usize = 256;

type Reply<T> = mpsc::SyncSender<Result<T>>;

/// What the thread is asked for.
pub(super) enum Job {
    Get {
        key: EntryKey,
        reply: Reply<Option<Vec<u8>>>,
    },
    Names {
        space: String,
        subspace: String,
        reply: Reply<Vec<String>>,
    },
    Write {
        changes: Vec<Change>,
        reply: Option<Reply<()>>,
    },
    #[cfg(test)]
    LimitPages { pages: u32, reply: Reply<()> },
}

/// A handle to the thread; it ends with the handle, after all that was asked.
pub(super) struct Writer {
    path: PathBuf,
    jobs: Mutex<Option<mpsc::SyncSender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    failure: Arc<Mutex<Option<StoreError>>>,
}

impl Writer {
    pub(super) fn start(path: &Path) -> Result<Self> {
        let failed = |cause: std::io::Error| StoreError::Failed {
            path: path.to_owned(),
            cause: cause.to_string(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let (jobs, queue) = mpsc::sync_channel(QUEUE);
        let (opened, ready) = mpsc::sync_channel(1);
        let failure = Arc::new(Mutex::new(None));
        let mut file = File {
            path: path.to_owned(),
            failure: Arc::clone(&failure),
        };
        let thread = std::thread::Builder::new()
            .name("channel-store".into())
            .spawn(move || {
                runtime.block_on(async move {
                    match file.open().await {
                        Ok(connection) => {
                            let _ = opened.send(Ok(()));
                            file.serve(connection, &queue).await;
                        }
                        Err(error) => {
                            let _ = opened.send(Err(error));
                        }
                    }
                });
            })
            .map_err(failed)?;
        let writer = Self {
            path: path.to_owned(),
            jobs: Mutex::new(Some(jobs)),
            thread: Mutex::new(Some(thread)),
            failure,
        };
        ready.recv().unwrap_or_else(|_| Err(writer.closed()))?;
        Ok(writer)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn failure(&self) -> Option<StoreError> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn send(&self, job: Job) -> Result<()> {
        // Cloned, so that a full queue makes nobody wait but us.
        let jobs = self
            .jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        jobs.and_then(|jobs| jobs.send(job).ok())
            .ok_or_else(|| self.closed())
    }

    pub(super) fn close(&self) {
        self.jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            // It only panics if SQLite's driver does; there is nobody left to tell.
            let _ = thread.join();
        }
    }

    pub(super) fn closed(&self) -> StoreError {
        StoreError::Failed {
            path: self.path.clone(),
            cause: "it is closed".into(),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.close();
    }
}

/// The thread's side.
struct File {
    path: PathBuf,
    failure: Arc<Mutex<Option<StoreError>>>,
}

impl File {
    async fn open(&self) -> Result<SqliteConnection> {
        let failed = |error: sqlx::Error| StoreError::at(&self.path, &error);
        let mut connection = SqliteConnectOptions::new()
            .filename(&self.path)
            .create_if_missing(true)
            // One process, for as long as it lives.
            .locking_mode(SqliteLockingMode::Exclusive)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("wal_autocheckpoint", "1000")
            .busy_timeout(BUSY)
            .disable_statement_logging()
            .connect()
            .await
            .map_err(failed)?;
        self.check(&mut connection).await?;
        MIGRATIONS
            .run(&mut connection)
            .await
            .map_err(|error| StoreError::Migration {
                path: self.path.clone(),
                cause: error.to_string(),
            })?;
        // Also the write that takes the lock.
        sqlx::query("PRAGMA application_id = 0x53536368")
            .execute(&mut connection)
            .await
            .map_err(failed)?;
        Ok(connection)
    }

    /// Whether the file is ours, and whole.
    async fn check(&self, connection: &mut SqliteConnection) -> Result<()> {
        let failed = |error: sqlx::Error| StoreError::at(&self.path, &error);
        let id: i64 = sqlx::query_scalar("PRAGMA application_id")
            .fetch_one(&mut *connection)
            .await
            .map_err(failed)?;
        let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema")
            .fetch_one(&mut *connection)
            .await
            .map_err(failed)?;
        if id != APPLICATION_ID && (id != 0 || tables != 0) {
            return Err(StoreError::Foreign {
                path: self.path.clone(),
            });
        }
        let verdict: String = sqlx::query_scalar("PRAGMA quick_check(1)")
            .fetch_one(&mut *connection)
            .await
            .map_err(failed)?;
        if verdict == "ok" {
            Ok(())
        } else {
            Err(StoreError::Corrupt {
                path: self.path.clone(),
                cause: verdict,
            })
        }
    }

    async fn serve(&mut self, mut connection: SqliteConnection, queue: &mpsc::Receiver<Job>) {
        while let Ok(first) = queue.recv() {
            let mut jobs = vec![first];
            while jobs.len() < BATCH
                && let Ok(job) = queue.try_recv()
            {
                jobs.push(job);
            }
            self.work(&mut connection, jobs).await;
        }
        // Moves the log into the database; without it the next opening does.
        let _ = connection.close().await;
    }

    /// In the order asked; neighbouring writes in one transaction.
    async fn work(&mut self, connection: &mut SqliteConnection, jobs: Vec<Job>) {
        let mut batch = Batch::default();
        for job in jobs {
            match job {
                Job::Write { changes, reply } => {
                    batch.changes.extend(changes);
                    batch.replies.extend(reply);
                }
                Job::Get { key, reply } => {
                    self.commit(connection, std::mem::take(&mut batch)).await;
                    let _ = reply.send(self.get(connection, &key).await);
                }
                Job::Names {
                    space,
                    subspace,
                    reply,
                } => {
                    self.commit(connection, std::mem::take(&mut batch)).await;
                    let _ = reply.send(self.names(connection, &space, &subspace).await);
                }
                #[cfg(test)]
                Job::LimitPages { pages, reply } => {
                    let limit = sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {pages}"));
                    let done = sqlx::query(limit).execute(&mut *connection).await;
                    let done = done.map(|_| ());
                    let _ = reply.send(done.map_err(|error| StoreError::at(&self.path, &error)));
                }
            }
        }
        self.commit(connection, batch).await;
    }

    async fn commit(&mut self, connection: &mut SqliteConnection, batch: Batch) {
        if batch.changes.is_empty() && batch.replies.is_empty() {
            return;
        }
        let known = self
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let done = match known {
            Some(error) => Err(error),
            None => apply(connection, batch.changes)
                .await
                .map_err(|error| StoreError::at(&self.path, &error)),
        };
        if let Err(error) = &done {
            self.failure
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert_with(|| error.clone());
        }
        for reply in batch.replies {
            let _ = reply.send(done.clone());
        }
    }

    async fn get(
        &self,
        connection: &mut SqliteConnection,
        key: &EntryKey,
    ) -> Result<Option<Vec<u8>>> {
        sqlx::query_scalar("SELECT value FROM entry WHERE space = ? AND subspace = ? AND name = ?")
            .bind(&key.space)
            .bind(&key.subspace)
            .bind(&key.name)
            .fetch_optional(connection)
            .await
            .map_err(|error| StoreError::at(&self.path, &error))
    }

    async fn names(
        &self,
        connection: &mut SqliteConnection,
        space: &str,
        subspace: &str,
    ) -> Result<Vec<String>> {
        sqlx::query_scalar("SELECT name FROM entry WHERE space = ? AND subspace = ? ORDER BY name")
            .bind(space)
            .bind(subspace)
            .fetch_all(connection)
            .await
            .map_err(|error| StoreError::at(&self.path, &error))
    }
}

#[derive(Default)]
struct Batch {
    changes: Vec<Change>,
    replies: Vec<Reply<()>>,
}

async fn apply(connection: &mut SqliteConnection, changes: Vec<Change>) -> sqlx::Result<()> {
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    for change in changes {
        match change {
            Change::Put(key, value) => {
                sqlx::query(
                    "INSERT INTO entry (space, subspace, name, value) VALUES (?, ?, ?, ?)
                     ON CONFLICT (space, subspace, name) DO UPDATE SET value = excluded.value",
                )
                .bind(key.space)
                .bind(key.subspace)
                .bind(key.name)
                .bind(value)
                .execute(&mut *tx)
                .await?;
            }
            Change::Remove(key) => {
                sqlx::query("DELETE FROM entry WHERE space = ? AND subspace = ? AND name = ?")
                    .bind(key.space)
                    .bind(key.subspace)
                    .bind(key.name)
                    .execute(&mut *tx)
                    .await?;
            }
        }
    }
    tx.commit().await
}
