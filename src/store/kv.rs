//! Keys and values with revisions, in the shape of etcd's API, so that a fleet of gateways can one day
//! share an etcd cluster where a single one keeps its file.

use super::seal::Sealer;
use super::sealed::{self, Ledger};
use super::{Db, Key, Schema, open};
use crate::base::{Code, Error, Result};
use rusqlite::{Connection, OptionalExtension, Row, params};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A value and the revision of the commit that last put it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    pub key: String,
    pub value: Vec<u8>,
    pub mod_revision: u64,
}

/// Changes that happen together, and only if every compared key is still at its revision (0: absent) and
/// none of `chains` is broken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    pub compare: Vec<(String, u64)>,
    pub puts: Vec<(String, Vec<u8>)>,
    pub deletes: Vec<String>,
    pub chains: Vec<Chain>,
}

/// Commits that build on one another: where one fails, those that are made after it do, too.
#[derive(Clone, Debug, Default)]
pub struct Chain(Arc<AtomicBool>);

impl Chain {
    /// Runs a commit of these chains, on the thread that writes. One that panics breaks them as well.
    fn link<T>(chains: &[Chain], commit: impl FnOnce() -> Result<T>) -> Result<T> {
        let is_broken = |chain: &Chain| chain.0.swap(true, Ordering::AcqRel);
        if chains.iter().filter(|chain| is_broken(chain)).count() > 0 {
            let message = "what it builds on could not be stored; nothing was changed";
            return Err(Error::new(Code::StorageError, message));
        }
        let value = commit()?;
        chains.iter().for_each(|chain| chain.0.store(false, Ordering::Release));
        Ok(value)
    }

    fn end(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl PartialEq for Chain {
    fn eq(&self, other: &Chain) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Chain {}

/// A committed change of one key; `value` is `None` when it was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvEvent {
    pub key: String,
    pub value: Option<Vec<u8>>,
    pub revision: u64,
}

/// Takes one commit's changes below a watched prefix. Called in order of revisions, before the commit
/// is answered, on the thread that writes: must be short and must not wait.
pub type KvSink = Arc<dyn Fn(&[KvEvent]) + Send + Sync>;
pub type KvDone = Box<dyn FnOnce(Result<u64>) + Send>;

/// What stands under keys.
pub trait KvRead: Send + Sync {
    fn get(&self, key: &str) -> Result<Option<Versioned>>;

    /// Everything whose key starts with `prefix`, in order of keys, from one moment.
    fn range(&self, prefix: &str) -> Result<Vec<Versioned>>;
}

pub trait Kv: KvRead {
    /// Calls `done` with the new revision once the changes are durable. Errors: `again` when a compared
    /// key has changed; `storage_error` when a chain is broken.
    fn commit_then(&self, txn: Txn, done: KvDone);

    /// [`Kv::commit_then`], waiting for the outcome.
    fn commit(&self, txn: Txn) -> Result<u64>;

    /// Calls `sink` for every later change below `prefix`, until the watch is dropped.
    fn watch(&self, prefix: &str, sink: KvSink) -> KvWatch;
}

/// Keeps a subscription alive.
#[must_use]
pub struct KvWatch {
    watchers: Weak<Watchers>,
    id: u64,
}

impl Drop for KvWatch {
    fn drop(&mut self) {
        if let Some(watchers) = self.watchers.upgrade() {
            watchers.lock().sinks.remove(&self.id);
        }
    }
}

#[derive(Default)]
struct Watchers(Mutex<Sinks>);

#[derive(Default)]
struct Sinks {
    next: u64,
    sinks: BTreeMap<u64, (String, KvSink)>,
}

impl Watchers {
    fn lock(&self) -> std::sync::MutexGuard<'_, Sinks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, events: &[KvEvent]) {
        let sinks: Vec<_> = self.lock().sinks.values().cloned().collect();
        for (prefix, sink) in sinks {
            let below: Vec<_> =
                events.iter().filter(|e| e.key.starts_with(&prefix)).cloned().collect();
            if !below.is_empty() {
                sink(&below);
            }
        }
    }
}

/// [`Kv`] in two tables of a [`Db`] that was opened with [`SqliteKv::SCHEMA`]; the values are sealed if the
/// database is.
#[derive(Clone)]
pub struct SqliteKv {
    db: Arc<Db>,
    watchers: Arc<Watchers>,
}

impl SqliteKv {
    pub const SCHEMA: Schema = Schema {
        room: "kv",
        migrations: &["CREATE TABLE kv (
                 key TEXT PRIMARY KEY, value BLOB NOT NULL, mod_revision INTEGER NOT NULL
             ) WITHOUT ROWID;
             CREATE TABLE kv_revision (revision INTEGER NOT NULL);
             INSERT INTO kv_revision (revision) VALUES (0)"],
    };

    pub fn new(db: Arc<Db>) -> SqliteKv {
        SqliteKv { db, watchers: Arc::default() }
    }
}

/// The rows of a connection, which are sealed if there is a sealer.
struct Rows<'a>(&'a Connection, Option<&'a Sealer>);

impl Rows<'_> {
    fn get(&self, key: &str) -> Result<Option<Versioned>> {
        let mut q =
            self.0.prepare_cached("SELECT key, value, mod_revision FROM kv WHERE key = ?1")?;
        let row = q.query_row([key], versioned).optional()?;
        row.map(|row| self.opened(row)).transpose()
    }

    fn range(&self, prefix: &str) -> Result<Vec<Versioned>> {
        let mut q = self.0.prepare_cached(
            "SELECT key, value, mod_revision FROM kv WHERE key >= ?1 AND key < ?2 ORDER BY key",
        )?;
        // Sorts behind everything that starts with the prefix: no key holds this noncharacter.
        let end = format!("{prefix}{}", char::MAX);
        let rows = q.query_map([prefix, &end], versioned)?;
        rows.map(|row| self.opened(row?)).collect()
    }

    /// A row as it was put.
    fn opened(&self, row: Versioned) -> Result<Versioned> {
        let Some(sealer) = self.1 else { return Ok(row) };
        let value = sealer.open(&row.key, row.mod_revision, &row.value)?;
        Ok(Versioned { value, ..row })
    }
}

/// What a [`SqliteKv`] holds at one moment, read without its writer, which may be at work in another process.
pub struct Snapshot {
    conn: Mutex<Connection>,
    sealer: Option<Sealer>,
}

impl Snapshot {
    /// Errors: `not_found` without a database; `storage_error` for one that is damaged or not ours;
    /// `invalid_config` where the key is not that of the seal.
    pub fn open(path: &Path, schemas: &[Schema], key: Option<&Key>) -> Result<Snapshot> {
        if !path.exists() {
            let message = format!("there is no state database at {}", path.display());
            return Err(Error::new(Code::NotFound, message));
        }
        let open = || {
            let conn = open::snapshot(path)?;
            open::check(&conn, schemas)?;
            let sealer = sealed::opener(&conn, key)?;
            Ok(Snapshot { conn: Mutex::new(conn), sealer })
        };
        open().map_err(|e| open::about(path, e))
    }

    fn rows<T>(&self, read: impl FnOnce(Rows<'_>) -> Result<T>) -> Result<T> {
        let conn = self.conn.lock().unwrap_or_else(PoisonError::into_inner);
        read(Rows(&conn, self.sealer.as_ref()))
    }
}

impl KvRead for Snapshot {
    fn get(&self, key: &str) -> Result<Option<Versioned>> {
        self.rows(|rows| rows.get(key))
    }

    fn range(&self, prefix: &str) -> Result<Vec<Versioned>> {
        self.rows(|rows| rows.range(prefix))
    }
}

impl KvRead for SqliteKv {
    fn get(&self, key: &str) -> Result<Option<Versioned>> {
        self.db.read(|c| Rows(c, self.db.sealer.as_deref()).get(key))
    }

    fn range(&self, prefix: &str) -> Result<Vec<Versioned>> {
        self.db.read(|c| Rows(c, self.db.sealer.as_deref()).range(prefix))
    }
}

impl Kv for SqliteKv {
    fn commit_then(&self, txn: Txn, done: KvDone) {
        let (watchers, sealer) = (self.watchers.clone(), self.db.sealer.clone());
        let (chains, after) = (txn.chains.clone(), txn.chains.clone());
        let commit = move |tx: &Connection| apply(tx, txn, sealer.as_deref());
        self.db.write_then(
            move |tx| Chain::link(&chains, || commit(tx)),
            move |outcome: Result<(u64, Vec<KvEvent>)>| {
                if outcome.is_err() {
                    after.iter().for_each(Chain::end);
                }
                done(outcome.map(|(revision, events)| {
                    watchers.publish(&events);
                    revision
                }));
            },
        );
    }

    fn commit(&self, txn: Txn) -> Result<u64> {
        self.db.wait_for(|done| self.commit_then(txn, done))
    }

    fn watch(&self, prefix: &str, sink: KvSink) -> KvWatch {
        let mut sinks = self.watchers.lock();
        let id = sinks.next;
        sinks.next += 1;
        sinks.sinks.insert(id, (prefix.to_owned(), sink));
        KvWatch { watchers: Arc::downgrade(&self.watchers), id }
    }
}

fn versioned(row: &Row<'_>) -> rusqlite::Result<Versioned> {
    Ok(Versioned { key: row.get(0)?, value: row.get(1)?, mod_revision: row.get(2)? })
}

fn apply(tx: &Connection, txn: Txn, sealer: Option<&Sealer>) -> Result<(u64, Vec<KvEvent>)> {
    for (key, expected) in &txn.compare {
        let found = revision_of(tx, key)?.unwrap_or(0);
        if found != *expected {
            let message = format!("{key} is at revision {found}, not {expected}; read it again");
            return Err(Error::new(Code::Again, message));
        }
    }
    let revision: u64 = tx
        .prepare_cached("UPDATE kv_revision SET revision = revision + 1 RETURNING revision")?
        .query_row([], |r| r.get(0))?;
    let mut ledger = sealer.map(|sealer| Ledger::at(tx, sealer, revision - 1)).transpose()?;
    let mut events = Vec::with_capacity(txn.puts.len() + txn.deletes.len());
    for key in txn.deletes {
        let mut q = tx.prepare_cached("DELETE FROM kv WHERE key = ?1 RETURNING mod_revision")?;
        let Some(old) = q.query_row([&key], |r| r.get(0)).optional()? else { continue };
        if let Some(ledger) = &mut ledger {
            ledger.toggle(&key, old);
        }
        events.push(KvEvent { key, value: None, revision });
    }
    for (key, value) in txn.puts {
        if key.is_empty() || key.contains(char::MAX) {
            return Err(Error::invalid("a key may not be empty, nor hold U+10FFFF"));
        }
        let sealed = match &mut ledger {
            Some(ledger) => {
                if let Some(old) = revision_of(tx, &key)? {
                    ledger.toggle(&key, old);
                }
                ledger.toggle(&key, revision);
                Some(ledger.seal(&key, revision, &value))
            }
            None => None,
        };
        tx.prepare_cached(
            "INSERT OR REPLACE INTO kv (key, value, mod_revision) VALUES (?1, ?2, ?3)",
        )?
        .execute(params![key, sealed.as_ref().unwrap_or(&value), revision])?;
        events.push(KvEvent { key, value: Some(value), revision });
    }
    if let Some(ledger) = ledger {
        ledger.finish(revision)?;
    }
    Ok((revision, events))
}

fn revision_of(conn: &Connection, key: &str) -> Result<Option<u64>> {
    let mut q = conn.prepare_cached("SELECT mod_revision FROM kv WHERE key = ?1")?;
    Ok(q.query_row([key], |r| r.get(0)).optional()?)
}

#[cfg(test)]
mod tests {
    use super::super::testing::TempDir;
    use super::*;

    fn put(key: &str, expected: u64, value: &str) -> Txn {
        Txn {
            compare: vec![(key.into(), expected)],
            puts: vec![(key.into(), value.into())],
            ..Txn::default()
        }
    }

    #[test]
    fn a_commit_happens_whole_or_not_at_all() {
        let dir = TempDir::new();
        let kv = SqliteKv::new(Db::open(&dir.path("kv.db"), &[SqliteKv::SCHEMA]).unwrap());
        assert_eq!(kv.commit(put("node/1", 0, "a")).unwrap(), 1);
        assert_eq!(kv.commit(put("node/2", 0, "b")).unwrap(), 2);
        let e = kv.commit(put("node/1", 0, "late")).unwrap_err();
        assert_eq!(e.code, Code::Again);

        let mut both = put("node/1", 1, "c");
        both.compare.push(("node/2".into(), 1));
        assert_eq!(kv.commit(both.clone()).unwrap_err().code, Code::Again);
        both.compare[1].1 = 2;
        both.deletes.push("node/2".into());
        assert_eq!(kv.commit(both).unwrap(), 3);
        assert_eq!(kv.get("node/2").unwrap(), None);

        let one = Versioned { key: "node/1".into(), value: b"c".to_vec(), mod_revision: 3 };
        assert_eq!(kv.get("node/1").unwrap(), Some(one));
    }

    #[test]
    fn where_a_commit_fails_those_that_build_on_it_fail_too() {
        let dir = TempDir::new();
        let kv = SqliteKv::new(Db::open(&dir.path("kv.db"), &[SqliteKv::SCHEMA]).unwrap());
        let chain = Chain::default();
        let linked = |txn: Txn| Txn { chains: vec![chain.clone(), Chain::default()], ..txn };
        let (told, outcomes) = std::sync::mpsc::channel();
        for txn in [put("a", 0, "1"), put("a", 0, "2"), put("b", 0, "3"), put("b", 0, "4")] {
            let told = told.clone();
            let done = move |r: Result<u64>| told.send(r.map_err(|e| e.code)).unwrap();
            kv.commit_then(linked(txn), Box::new(done));
        }
        let outcomes: Vec<_> = outcomes.iter().take(4).collect();
        let broken = Err(Code::StorageError);
        assert_eq!(outcomes, [Ok(1), Err(Code::Again), broken, broken]);
        assert_eq!(kv.range("").unwrap().len(), 1);
        kv.commit(put("b", 0, "of another chain")).unwrap();
    }

    #[test]
    fn a_range_is_what_starts_with_the_prefix() {
        let dir = TempDir::new();
        let kv = SqliteKv::new(Db::open(&dir.path("kv.db"), &[SqliteKv::SCHEMA]).unwrap());
        let keys = ["a", "a/", "a/\u{10fffe}", "a/b", "a/b/c", "a0", "b"];
        let puts = keys.iter().map(|k| ((*k).to_owned(), Vec::new())).collect();
        kv.commit(Txn { puts, ..Txn::default() }).unwrap();
        let range = |p| kv.range(p).unwrap().into_iter().map(|v| v.key).collect::<Vec<_>>();
        assert_eq!(range("a/"), ["a/", "a/b", "a/b/c", "a/\u{10fffe}"]);
        assert_eq!(range(""), ["a", "a/", "a/b", "a/b/c", "a/\u{10fffe}", "a0", "b"]);
    }

    #[test]
    fn watchers_hear_of_their_prefix_before_the_answer() {
        let dir = TempDir::new();
        let kv = SqliteKv::new(Db::open(&dir.path("kv.db"), &[SqliteKv::SCHEMA]).unwrap());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let sink = heard.clone();
        let watch = kv.watch("x/", Arc::new(move |e| sink.lock().unwrap().extend_from_slice(e)));
        kv.commit(put("x/1", 0, "v")).unwrap();
        kv.commit(put("y/1", 0, "v")).unwrap();
        kv.commit(put("x/1", 9, "refused")).unwrap_err();
        kv.commit(Txn { deletes: vec!["x/1".into(), "x/none".into()], ..Txn::default() }).unwrap();
        let event = |value, revision| KvEvent { key: "x/1".into(), value, revision };
        assert_eq!(*heard.lock().unwrap(), [event(Some(b"v".to_vec()), 1), event(None, 3)]);
        drop(watch);
        kv.commit(put("x/1", 0, "w")).unwrap();
        assert_eq!(heard.lock().unwrap().len(), 2);
    }
}
