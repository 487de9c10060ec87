//! The one thread that writes. Jobs that wait together share a transaction, and so one fsync: each runs
//! in a savepoint of its own, and all are answered once the transaction is on stable storage.

use crate::base::{Code, Error, Result};
use crossbeam_channel::Receiver;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Jobs committed together at most: bounds how long the first of them waits for the last.
const GROUP_MAX: usize = 256;

/// Does its work in the group's transaction (or learns why there is none), and says how to answer once
/// that is committed or lost.
pub(super) type Job = Box<dyn FnOnce(Result<&mut Transaction<'_>>) -> Answer + Send>;
type Answer = Box<dyn FnOnce(Result<()>) + Send>;

/// Packs `f` with its caller's `done`. A job that fails or panics takes back its own changes only.
pub(super) fn job<T: Send + 'static>(
    f: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    done: impl FnOnce(Result<T>) + Send + 'static,
) -> Job {
    Box::new(move |tx| {
        let outcome = tx.and_then(|tx| in_savepoint(tx, f));
        Box::new(move |committed| done(outcome.and_then(|value| committed.map(|()| value))))
    })
}

/// Not rusqlite's, which has SQLite parse each of the statements anew for each job.
fn in_savepoint<T>(tx: &Connection, f: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
    let step = |sql| -> Result<()> {
        tx.prepare_cached(sql)?.execute([])?;
        Ok(())
    };
    step("SAVEPOINT job")?;
    let outcome = catch_unwind(AssertUnwindSafe(|| f(tx)))
        .unwrap_or_else(|_| Err(storage("a database job panicked; nothing was changed")));
    let end = match outcome {
        Ok(_) => step("RELEASE job"),
        Err(_) if tx.is_autocommit() => Ok(()),
        Err(_) => step("ROLLBACK TO job").and_then(|()| step("RELEASE job")),
    };
    if end.is_err() && !tx.is_autocommit() {
        // What cannot be taken back alone takes the others of the group with it, who are told.
        tx.execute_batch("ROLLBACK")?;
    }
    let value = outcome?;
    end?;
    Ok(value)
}

/// Works until the queue is closed and empty.
pub(super) fn run(conn: &mut Connection, jobs: &Receiver<Job>) {
    while let Ok(first) = jobs.recv() {
        let mut answers = Vec::new();
        let committed = group(conn, first, jobs, &mut answers);
        if let Err(e) = &committed {
            log::error!("state database: {e}; nothing of it was changed");
        }
        for answer in answers {
            let committed = committed.clone();
            if catch_unwind(AssertUnwindSafe(|| answer(committed))).is_err() {
                log::error!("a callback of a database job panicked");
            }
        }
    }
}

fn group(
    conn: &mut Connection,
    first: Job,
    jobs: &Receiver<Job>,
    answers: &mut Vec<Answer>,
) -> Result<()> {
    let mut tx = match conn.transaction_with_behavior(TransactionBehavior::Immediate) {
        Ok(tx) => tx,
        Err(e) => {
            let e = Error::from(e);
            answers.push(first(Err(e.clone())));
            return Err(e);
        }
    };
    for job in std::iter::once(first).chain(jobs.try_iter()).take(GROUP_MAX) {
        answers.push(job(Ok(&mut tx)));
        // A full disk or an I/O error makes SQLite end the transaction by itself.
        if tx.is_autocommit() {
            return Err(storage("the transaction was rolled back"));
        }
    }
    Ok(tx.commit()?)
}

fn storage(message: &'static str) -> Error {
    Error::new(Code::StorageError, message)
}
