//! [`Db`]: durable writes through one thread, reads beside it.

use super::generations::Keeping;
use super::open::{self, Lock, Schema, State};
use super::seal::{Key, Sealer};
use super::writer::{self, Job};
use crate::base::{Code, Error, Result};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use rusqlite::Connection;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, ThreadId};

/// Writes that may wait for the writer; more make their callers wait.
const WRITE_QUEUE_MAX: usize = 1024;
/// Reads that run at the same time.
const READERS: usize = 4;

/// An open database file. Every answered write survives `kill -9` and power loss.
pub struct Db {
    jobs: Mutex<Option<Sender<Job>>>,
    writer: Mutex<Option<JoinHandle<Lock>>>,
    writer_id: ThreadId,
    readers: Receiver<Connection>,
    give_back: Mutex<Option<Sender<Connection>>>,
    /// Seals what [`super::SqliteKv`] keeps here.
    pub(super) sealer: Option<Arc<Sealer>>,
    keeping: Mutex<Option<Keeping>>,
}

impl Db {
    /// Opens the file, made when it is missing, and brings the tables of `schemas` up to date. Errors:
    /// `storage_error`, naming the path and what to do, when it is unreadable, damaged, written by a
    /// newer version, another program's, or in use; `invalid_config` when it is sealed. It is then left
    /// as it was.
    pub fn open(path: &Path, schemas: &[Schema]) -> Result<Arc<Db>> {
        Db::open_with(path, schemas, None)
    }

    /// As [`Db::open`], for a database that is sealed with `key`, or becomes so now. Errors: also
    /// `invalid_config` when the key is not the right one.
    pub fn open_with(path: &Path, schemas: &[Schema], key: Option<&Key>) -> Result<Arc<Db>> {
        let open::Opened { mut conn, lock, sealer, keeping } = open::writer(path, schemas, key)?;
        let (give_back, readers) = bounded(READERS);
        for _ in 0..READERS {
            let _ = give_back.send(open::reader(path)?);
        }
        let (jobs, queue) = bounded::<Job>(WRITE_QUEUE_MAX);
        let writer = std::thread::Builder::new().name("db-writer".into()).spawn(move || {
            writer::run(&mut conn, &queue);
            // Before SQLite removes the log, so that nobody misses it.
            if let Err(e) = lock.note(State::Closed) {
                log::warn!("{e}");
            }
            drop(conn);
            lock
        })?;
        Ok(Arc::new(Db {
            jobs: Mutex::new(Some(jobs)),
            sealer: sealer.map(Arc::new),
            keeping: Mutex::new(keeping),
            writer_id: writer.thread().id(),
            writer: Mutex::new(Some(writer)),
            readers,
            give_back: Mutex::new(Some(give_back)),
        }))
    }

    /// Runs `f` in a transaction and returns once its changes are on stable storage; when it fails or
    /// panics, none of them are. Not from a `done` of [`Db::write_then`], which runs on the writer.
    pub fn write<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.wait_for(|done| self.write_then(f, done))
    }

    /// Starts something that the writer will answer, and waits for the answer.
    pub(super) fn wait_for<T: Send + 'static>(
        &self,
        start: impl FnOnce(Box<dyn FnOnce(Result<T>) + Send>),
    ) -> Result<T> {
        if std::thread::current().id() == self.writer_id {
            return Err(storage("a blocking write on the writer's own thread"));
        }
        let (answer, answered) = bounded(1);
        start(Box::new(move |outcome| {
            let _ = answer.send(outcome);
        }));
        answered.recv().unwrap_or_else(|_| Err(storage("the writer has ended")))
    }

    /// Like [`Db::write`], but returns at once (waits only while the queue is full) and calls `done`
    /// from the writer's thread: it must be short and must not wait. Writes are done, and their `done`s
    /// called, in the order given.
    pub fn write_then<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
        done: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        let job = writer::job(f, done);
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(jobs) = jobs else {
            return refuse(job, storage("the database was closed"));
        };
        // The writer cannot wait for itself to make room.
        let sent = match std::thread::current().id() == self.writer_id {
            true => jobs.try_send(job),
            false => jobs.send(job).map_err(|e| TrySendError::Disconnected(e.0)),
        };
        match sent {
            Ok(()) => {}
            Err(TrySendError::Full(job)) => {
                let full = "the database's write queue is full; try again";
                refuse(job, Error::new(Code::QueueSaturated, full));
            }
            Err(TrySendError::Disconnected(job)) => refuse(job, storage("the writer has ended")),
        }
    }

    /// Runs `f` on one snapshot of the committed state; waits while [`READERS`] others read.
    pub fn read<T>(&self, f: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let closed = || storage("the database was closed");
        let reader = Reader {
            conn: Some(self.readers.recv().map_err(|_| closed())?),
            give_back: self
                .give_back
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone()
                .ok_or_else(closed)?,
        };
        let conn = reader.conn.as_ref().expect("present until dropped");
        let snapshot = conn.unchecked_transaction()?;
        f(&snapshot)
    }

    /// Writes that wait for the writer, and how many may.
    pub fn queue(&self) -> (usize, usize) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        (jobs.as_ref().map_or(0, Sender::len), WRITE_QUEUE_MAX)
    }

    /// True while it can be written to.
    pub fn is_open(&self) -> bool {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.as_ref().is_some_and(|writer| !writer.is_finished())
    }

    /// Finishes the writes that are queued, then closes the file. Later calls get `storage_error`.
    pub fn close(&self) {
        drop(self.keeping.lock().unwrap_or_else(PoisonError::into_inner).take());
        // The writer closes last: only who may write can fold the log in.
        self.give_back.lock().unwrap_or_else(PoisonError::into_inner).take();
        while self.readers.try_recv().is_ok() {}
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer
            && writer.thread().id() != std::thread::current().id()
        {
            let _ = writer.join();
        }
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        self.close();
    }
}

/// A reading connection on loan; goes back even when its user panics.
struct Reader {
    conn: Option<Connection>,
    give_back: Sender<Connection>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.conn.take().map(|conn| self.give_back.try_send(conn));
    }
}

fn refuse(job: Job, e: Error) {
    job(Err(e.clone()))(Err(e));
}

fn storage(message: &'static str) -> Error {
    Error::new(Code::StorageError, message)
}

#[cfg(test)]
mod tests {
    use super::super::testing::TempDir;
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const NUMBERS: Schema = Schema {
        room: "numbers",
        migrations: &["CREATE TABLE numbers (n INTEGER PRIMARY KEY) WITHOUT ROWID"],
    };

    fn insert(n: i64) -> impl FnOnce(&Connection) -> Result<()> + Send {
        move |tx| {
            tx.execute("INSERT INTO numbers (n) VALUES (?1)", [n])?;
            Ok(())
        }
    }

    fn numbers(db: &Db) -> Vec<i64> {
        db.read(|c| {
            let mut q = c.prepare_cached("SELECT n FROM numbers ORDER BY n")?;
            let rows = q.query_map([], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
            Ok(rows)
        })
        .unwrap()
    }

    #[test]
    fn a_failed_or_panicking_job_takes_back_only_its_own() {
        let dir = TempDir::new();
        let db = Db::open(&dir.path("sub/state.db"), &[NUMBERS]).unwrap();
        let mode = |p: &str| std::fs::metadata(dir.path(p)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("sub"), mode("sub/state.db")), (0o700, 0o600));

        // Holds the writer so that the jobs behind it become one group.
        let (hold, held) = bounded::<()>(0);
        db.write_then(
            move |_| {
                held.recv().unwrap();
                Ok(())
            },
            drop,
        );
        let (tx, rx) = std::sync::mpsc::channel();
        for n in 0..9 {
            let tx = tx.clone();
            let job = move |s: &Connection| {
                insert(n)(s)?;
                match n % 3 {
                    0 => Ok(n),
                    1 => Err(Error::new(Code::NotFound, "on purpose")),
                    _ => panic!("on purpose"),
                }
            };
            db.write_then(job, move |r| tx.send((n, r.map_err(|e| e.code))).unwrap());
        }
        hold.send(()).unwrap();
        let expected = (0..9).map(|n| match n % 3 {
            0 => (n, Ok(n)),
            1 => (n, Err(Code::NotFound)),
            _ => (n, Err(Code::StorageError)),
        });
        assert_eq!(rx.iter().take(9).collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        assert_eq!(numbers(&db), [0, 3, 6]);
    }

    #[test]
    fn callbacks_cannot_deadlock_the_writer() {
        let dir = TempDir::new();
        let db = Db::open(&dir.path("state.db"), &[NUMBERS]).unwrap();
        let (tx, rx) = bounded(1);
        let again = db.clone();
        db.write_then(insert(1), move |_| {
            tx.send(again.write(insert(2)).unwrap_err().code).unwrap();
        });
        assert_eq!(rx.recv().unwrap(), Code::StorageError);
        assert_eq!(numbers(&db), [1]);
    }

    #[test]
    fn closing_finishes_what_is_queued_and_refuses_the_rest() {
        let dir = TempDir::new();
        let db = Db::open(&dir.path("state.db"), &[NUMBERS]).unwrap();
        for n in 0..500 {
            db.write_then(insert(n), |r| r.unwrap());
        }
        db.close();
        assert_eq!(db.write(insert(501)).unwrap_err().code, Code::StorageError);
        assert_eq!(db.read(|_| Ok(())).unwrap_err().code, Code::StorageError);
        let db = Db::open(&dir.path("state.db"), &[NUMBERS]).unwrap();
        assert_eq!(numbers(&db), (0..500).collect::<Vec<_>>());
    }

    #[test]
    fn readers_see_snapshots_and_cannot_write() {
        let dir = TempDir::new();
        let db = Db::open(&dir.path("state.db"), &[NUMBERS]).unwrap();
        db.write(insert(1)).unwrap();
        db.read(|c| {
            let count = || c.query_row("SELECT count(*) FROM numbers", [], |r| r.get::<_, i64>(0));
            assert_eq!(count()?, 1);
            db.write(insert(2)).unwrap();
            assert_eq!(count()?, 1);
            assert!(c.execute("INSERT INTO numbers (n) VALUES (3)", []).is_err());
            Ok(())
        })
        .unwrap();
        assert_eq!(numbers(&db), [1, 2]);
    }
}
