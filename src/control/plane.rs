//! The plane: the one owner of the state. A mutation is validated against the newest state, made
//! durable, then published and answered; many may be on their way to the disk at once. Readers see only
//! what is durable.

use super::audit::{self, Audit, Entry};
use super::counts::Counts;
use super::reconcile::Reconciler;
use super::state::{Change, PREFIX, State};
use crate::base::{Code, Error, Notify, Result, now_ms};
use crate::store::{Chain, Kv, Txn};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};

/// Called after changes became durable, in their order, on the thread that wrote them: must be short
/// and must not wait.
pub type Listener = Arc<dyn Fn(&[Change]) + Send + Sync>;

pub struct Plane {
    kv: Arc<dyn Kv>,
    /// Lock order: `head` before `published`.
    head: Mutex<Head>,
    /// Mutations on their way to the disk. More come only under `head`, which they leave without: who writes
    /// does not wait for those who decide.
    in_flight: AtomicUsize,
    published: RwLock<Arc<State>>,
    listeners: RwLock<Vec<Listener>>,
    changed: Notify,
    pub(super) reconciler: Reconciler,
    counts: Counts,
    audit: Arc<Audit>,
}

/// The newest state, which mutations are validated against, with those still on their way.
struct Head {
    state: State,
    /// Each builds on those before it.
    chain: Chain,
    /// A commit failed, so `state` holds what never became durable.
    stale: bool,
}

impl Plane {
    /// Reads the state from the store. Errors: `storage_error` when any of it cannot be read; nothing is
    /// written then.
    pub fn open(kv: Arc<dyn Kv>) -> Result<Arc<Plane>> {
        let state = load(&*kv)?;
        let audit = Arc::new(Audit::open(kv.clone())?);
        Ok(Arc::new(Plane {
            audit,
            kv,
            published: RwLock::new(Arc::new(state.clone())),
            head: Mutex::new(Head { state, chain: Chain::default(), stale: false }),
            in_flight: AtomicUsize::new(0),
            listeners: RwLock::default(),
            changed: Notify::default(),
            reconciler: Reconciler::default(),
            counts: Counts::default(),
        }))
    }

    /// What is durable, as of now.
    pub fn state(&self) -> Arc<State> {
        self.published.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What has happened since the plane was opened.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    pub fn audit(&self) -> &Arc<Audit> {
        &self.audit
    }

    /// Notified after every published mutation.
    pub fn changed(&self) -> &Notify {
        &self.changed
    }

    pub fn listen(&self, listener: Listener) {
        self.listeners.write().unwrap_or_else(PoisonError::into_inner).push(listener);
    }

    /// Runs one mutation: `decide` looks at the newest state and says what to answer and what to change.
    /// Returns when the changes are durable. Errors: what `decide` says, and nothing has changed;
    /// `storage_error` when the changes could not be written, and nothing has changed either.
    pub fn mutate<T>(
        self: &Arc<Plane>,
        decide: impl FnOnce(&State, i64) -> Result<(T, Vec<Change>)>,
    ) -> Result<T> {
        let Decided { answer, commit, .. } = self.decide(None, decide)?;
        commit.map_or(Ok(()), Commit::wait)?;
        Ok(answer)
    }

    /// As [`Plane::mutate`], but returns at once, with the commit that is on its way; and records in the
    /// same transaction what `entry` says, with what was changed.
    pub fn decide<T>(
        self: &Arc<Plane>,
        entry: Option<Entry>,
        decide: impl FnOnce(&State, i64) -> Result<(T, Vec<Change>)>,
    ) -> Result<Decided<T>> {
        let mut head = self.head.lock().unwrap_or_else(PoisonError::into_inner);
        self.refresh(&mut head)?;
        let (answer, changes) = decide(&head.state, now_ms())?;
        if changes.is_empty() {
            return Ok(Decided { answer, commit: None, recorded: false });
        }
        let entry = entry.filter(|_| !audit::is_routine(&head.state, &changes));
        let entry = entry.map(|e| e.changing(&changes));
        let writing = entry.is_some().then(|| self.audit.begin()).transpose()?;
        for change in &changes {
            head.state.apply(change);
        }
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        let (txn, recorded) = (txn(&changes, head.chain.clone()), entry.is_some());
        let outcome = Arc::new(Outcome::default());
        let (plane, after, told) = (self.clone(), head.state.clone(), outcome.clone());
        let durable = Box::new(move |result| told.set(plane.finish(after, &changes, result)));
        // Handed over under the lock, so that commits reach the disk in the order decided.
        match writing {
            Some(writing) => writing.commit(txn, entry, durable),
            None => self.kv.commit_then(txn, durable),
        }
        Ok(Decided { answer, commit: Some(Commit(outcome)), recorded })
    }

    /// After a failed commit: takes the state from the disk again, once nothing is on its way.
    fn refresh(&self, head: &mut Head) -> Result<()> {
        if !head.stale {
            return Ok(());
        }
        if self.in_flight.load(Ordering::Acquire) > 0 {
            return Err(Error::new(Code::StorageError, "the store is failing; try again"));
        }
        head.state = load(&*self.kv)?;
        *self.published.write().unwrap_or_else(PoisonError::into_inner) =
            Arc::new(head.state.clone());
        (head.chain, head.stale) = (Chain::default(), false);
        Ok(())
    }

    /// On the writing thread: publishes what is durable now, the state as it is with these changes.
    fn finish(&self, after: State, changes: &[Change], outcome: Result<u64>) -> Result<()> {
        if let Err(e) = outcome {
            self.head.lock().unwrap_or_else(PoisonError::into_inner).stale = true;
            self.in_flight.fetch_sub(1, Ordering::AcqRel);
            log::error!("a control mutation could not be stored: {e}");
            return Err(e.recode(Code::StorageError).context("nothing was changed"));
        }
        let before = {
            let mut published = self.published.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *published, Arc::new(after))
        };
        changes.iter().for_each(|change| self.counts.see(&before, change));
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.reconciler.heard(changes);
        let listeners = self.listeners.read().unwrap_or_else(PoisonError::into_inner).clone();
        listeners.iter().for_each(|l| l(changes));
        self.changed.notify();
        Ok(())
    }
}

fn load(kv: &dyn Kv) -> Result<State> {
    State::load(kv.range(PREFIX)?.into_iter().map(|row| (row.key, row.value)))
}

fn txn(changes: &[Change], chain: Chain) -> Txn {
    let mut txn = Txn { chains: vec![chain], ..Txn::default() };
    for (key, value) in changes.iter().flat_map(Change::rows) {
        match value {
            Some(value) => txn.puts.push((key, value)),
            None => txn.deletes.push(key),
        }
    }
    txn
}

/// What came of a mutation, before it is durable.
pub struct Decided<T> {
    pub answer: T,
    /// `None` where nothing was to be changed.
    pub commit: Option<Commit>,
    /// The audit log has it. What changes nothing, or happens every minute, leaves no record.
    pub recorded: bool,
}

/// Changes on their way to the disk. Errors of either method: `storage_error`; nothing was changed.
#[must_use = "an answer waits for it"]
pub struct Commit(Arc<Outcome>);

impl Commit {
    pub fn wait(self) -> Result<()> {
        self.0.wait()
    }

    /// Calls `told` with the outcome on the thread that writes, or on this one where it is known
    /// already: it must be short and must not wait.
    pub fn then(self, told: impl FnOnce(Result<()>) + Send + 'static) {
        self.0.then(Box::new(told));
    }
}

/// Where the caller of a mutation meets the writing thread.
#[derive(Default)]
struct Outcome {
    step: Mutex<Step>,
    ready: Condvar,
}

#[derive(Default)]
enum Step {
    #[default]
    Running,
    /// Somebody is to be told.
    Followed(Box<dyn FnOnce(Result<()>) + Send>),
    Known(Result<()>),
}

impl Outcome {
    fn lock(&self) -> MutexGuard<'_, Step> {
        self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, result: Result<()>) {
        let mut step = self.lock();
        match std::mem::take(&mut *step) {
            Step::Followed(told) => {
                drop(step);
                told(result);
            }
            _ => {
                *step = Step::Known(result);
                self.ready.notify_one();
            }
        }
    }

    fn then(&self, told: Box<dyn FnOnce(Result<()>) + Send>) {
        let mut step = self.lock();
        match std::mem::take(&mut *step) {
            Step::Known(result) => {
                drop(step);
                told(result);
            }
            _ => *step = Step::Followed(told),
        }
    }

    fn wait(&self) -> Result<()> {
        let mut step = self.lock();
        loop {
            if let Step::Known(result) = std::mem::take(&mut *step) {
                return result;
            }
            step = self.ready.wait(step).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
