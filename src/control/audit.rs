//! The audit log: who did what, in records each of which holds the hash of the one before. A record of a
//! mutation is written in its transaction, so that neither is there without the other; what changed
//! nothing is gathered and written behind, and nobody waits for it. No policy: what is worth a record is
//! decided by those who have it recorded.

mod query;
mod record;
mod window;

pub use query::{Broken, Filter, Verified, tail, verify_at_rest};
pub use record::{Entry, Outcome, Record, bounded};

use crate::base::{Code, Error, Pool, Result, Timer};
use crate::store::{self, Kv, Txn};
pub(in crate::control) use record::is_routine;
use record::{Link, hash};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};
use window::{WINDOW, Window};

/// Records kept where nothing else is configured.
pub const KEEP: u64 = 100_000;
/// Records that share a prefix in the store, and are read and removed together.
const PAGE: u64 = 256;
/// Pages removed at one time.
const PRUNED_MAX: usize = 64;
/// How long what is written behind is gathered.
const GATHER: Duration = Duration::from_secs(1);
/// The last record that was removed to make room, which the oldest one follows.
const ANCHOR: &str = "audit/anchor";
/// The newest record.
const HEAD: &str = "audit/head";

/// A record's place in the store.
fn key(id: u64) -> String {
    format!("audit/row/{id:014x}")
}

/// What the places of all records of a page begin with.
fn page(id: u64) -> String {
    format!("audit/row/{:012x}", id / PAGE)
}

pub struct Audit {
    kv: Arc<dyn Kv>,
    keep: AtomicU64,
    /// Lock order: `Plane`'s, then this, then `window`.
    chain: Mutex<Chain>,
    window: Arc<Mutex<Window>>,
    flight: Arc<Flight>,
    later: OnceLock<(Timer, Arc<Pool>)>,
    /// When the next write is to come.
    scheduled: Mutex<Option<Instant>>,
    /// While the chain is looked at, nothing is removed from it.
    pruning: RwLock<()>,
    broken: Mutex<Option<Broken>>,
}

struct Chain {
    end: Link,
    /// What follows a record that did not reach the disk does not reach it either.
    stored: store::Chain,
}

/// Commits that are not answered yet.
#[derive(Default)]
struct Flight {
    commits: AtomicUsize,
    /// One has failed, so what was handed over after it fails as well.
    failed: AtomicBool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Audit {
    /// Takes the chain up where it ended. One that is damaged is continued all the same: to stop here
    /// would let whoever can damage it end the gateway. Errors: `storage_error`.
    pub fn open(kv: Arc<dyn Kv>) -> Result<Audit> {
        let (chain, broken) = query::ending(&*kv)?;
        let audit = Audit {
            kv,
            keep: AtomicU64::new(KEEP),
            chain: Mutex::new(chain),
            window: Arc::new(Mutex::new(Window::new())),
            flight: Arc::default(),
            later: OnceLock::new(),
            scheduled: Mutex::default(),
            pruning: RwLock::default(),
            broken: Mutex::default(),
        };
        broken.into_iter().for_each(|b| audit.found(b));
        Ok(audit)
    }

    /// From now on writes by itself what is to be written behind, and keeps `keep` records. Looks at the
    /// whole chain once, in the background.
    pub fn start(self: &Arc<Audit>, keep: u64, timer: Timer, pool: Arc<Pool>) {
        self.keep.store(keep.max(PAGE), Ordering::Relaxed);
        let audit = self.clone();
        let verify = move || {
            let verified = audit.verify().inspect_err(|e| log::warn!("the audit log: {e}"));
            verified.ok().and_then(|v| v.broken).into_iter().for_each(|b| audit.found(b));
        };
        if let Err(e) = pool.submit(verify) {
            log::warn!("the audit log is not looked at: {e}");
        }
        let _ = self.later.set((timer, pool));
        self.schedule(Instant::now() + GATHER);
    }

    fn found(&self, broken: Broken) {
        let mut known = locked(&self.broken);
        if known.is_none() {
            log::error!("the audit log was changed by something else: {broken}");
            *known = Some(broken);
        }
    }

    /// What was found to be wrong with the chain since the start.
    pub fn broken(&self) -> Option<Broken> {
        locked(&self.broken).clone()
    }

    /// Has something recorded soon, with others; true unless there is too much of its kind, of which only
    /// the number is recorded.
    pub fn note(self: &Arc<Audit>, entry: Entry) -> bool {
        let admitted = locked(&self.window).note(entry, Instant::now());
        self.schedule(Instant::now() + GATHER);
        admitted
    }

    fn schedule(self: &Arc<Audit>, at: Instant) {
        let Some((timer, _)) = self.later.get() else { return };
        let mut scheduled = locked(&self.scheduled);
        if scheduled.is_some_and(|earlier| earlier <= at) {
            return;
        }
        *scheduled = Some(at);
        drop(scheduled);
        let weak = Arc::downgrade(self);
        let write = move || {
            let Some(audit) = weak.upgrade() else { return };
            let Some((_, pool)) = audit.later.get() else { return };
            let later = audit.clone();
            let queued = pool.submit(move || later.write_behind());
            if queued.is_err() {
                *locked(&audit.scheduled) = None;
            }
        };
        timer.at(at, Box::new(write));
    }

    fn write_behind(self: &Arc<Audit>) {
        *locked(&self.scheduled) = None;
        locked(&self.window).turn(Instant::now());
        let pruned = self.flush().and_then(|()| self.prune());
        let is_pruned = pruned.unwrap_or_else(|e| {
            log::warn!("the audit log could not be written: {e}");
            true
        });
        let (now, due) = (Instant::now(), locked(&self.window).due());
        self.schedule(if is_pruned { due.unwrap_or(now + WINDOW) } else { now + GATHER });
    }

    /// Begins a commit that nothing comes between. Errors: `storage_error` while an earlier one has
    /// failed and others are on their way.
    pub fn begin(&self) -> Result<Writing<'_>> {
        let mut chain = locked(&self.chain);
        if self.flight.failed.load(Ordering::Acquire) {
            if self.flight.commits.load(Ordering::Acquire) > 0 {
                return Err(Error::new(Code::StorageError, "the store is failing; try again"));
            }
            *chain = query::ending(&*self.kv)?.0;
            self.flight.failed.store(false, Ordering::Release);
        }
        Ok(Writing { audit: self, chain })
    }

    /// Records something, and returns when it is durable. Errors: `storage_error`.
    pub fn record(&self, entry: Entry) -> Result<()> {
        self.write(Some(entry))
    }

    /// Writes what was noted, and returns when it is durable. Errors: `storage_error`; it is only
    /// counted then.
    pub fn flush(&self) -> Result<()> {
        self.write(None)
    }

    /// As [`Audit::flush`], with how many were left out so far: nothing is noted any more.
    pub fn finish(&self) -> Result<()> {
        locked(&self.window).end(Instant::now());
        self.flush()
    }

    fn write(&self, entry: Option<Entry>) -> Result<()> {
        let (done, result) = crossbeam_channel::bounded(1);
        let done = move |r: Result<u64>| drop(done.send(r));
        self.begin()?.commit(Txn::default(), entry, Box::new(done));
        match result.recv() {
            Ok(r) => r.map(drop).map_err(|e| e.recode(Code::StorageError)),
            Err(_) => Err(Error::new(Code::StorageError, "the writer has ended")),
        }
    }

    /// Removes the oldest records, whole pages of them; false while there are still more than are kept.
    fn prune(&self) -> Result<bool> {
        let Ok(_pruning) = self.pruning.try_write() else { return Ok(false) };
        let newest = locked(&self.chain).end.id;
        for _ in 0..PRUNED_MAX {
            let anchor = query::link(&*self.kv, ANCHOR)?.unwrap_or_else(Link::genesis);
            let oldest = anchor.id + 1;
            let last = (oldest / PAGE + 1) * PAGE - 1;
            if newest.saturating_sub(last) < self.keep.load(Ordering::Relaxed) {
                return Ok(true);
            }
            let rows = self.kv.range(&page(oldest))?;
            let hash = rows.last().map_or_else(|| anchor.hash.clone(), |row| hash(&row.value));
            let anchor = Link { id: last, hash };
            let txn = Txn {
                puts: vec![(ANCHOR.into(), json(&anchor))],
                deletes: rows.into_iter().map(|row| row.key).collect(),
                ..Txn::default()
            };
            self.kv.commit(txn).map_err(|e| e.recode(Code::StorageError))?;
        }
        Ok(false)
    }
}

/// The right to write the chain's next records.
pub struct Writing<'a> {
    audit: &'a Audit,
    chain: MutexGuard<'a, Chain>,
}

impl Writing<'_> {
    /// Commits `txn` with what was noted and the record of `entry`, all or nothing, and calls `done` as
    /// [`Kv::commit_then`] does.
    pub fn commit(mut self, mut txn: Txn, entry: Option<Entry>, done: store::KvDone) {
        let noted = locked(&self.audit.window).take();
        let behind = noted.len() as u64;
        let before = self.chain.end.id;
        for entry in noted.into_iter().chain(entry) {
            let (end, text) = self.chain.end.extend(entry);
            txn.puts.push((key(end.id), text));
            self.chain.end = end;
        }
        if self.chain.end.id == before && txn == Txn::default() {
            drop(self);
            return done(Ok(0));
        }
        if self.chain.end.id > before {
            txn.chains.push(self.chain.stored.clone());
            txn.puts.push((HEAD.into(), json(&self.chain.end)));
        }
        let (flight, window) = (self.audit.flight.clone(), self.audit.window.clone());
        flight.commits.fetch_add(1, Ordering::AcqRel);
        let done = move |result: Result<u64>| {
            if result.is_err() {
                locked(&window).lost(behind);
                flight.failed.store(true, Ordering::Release);
            }
            flight.commits.fetch_sub(1, Ordering::AcqRel);
            done(result);
        };
        self.audit.kv.commit_then(txn, Box::new(done));
    }
}

fn json(link: &Link) -> Vec<u8> {
    serde_json::to_vec(link).expect("strings and numbers serialise")
}

#[cfg(test)]
mod tests;
