//! Fixed pools of named worker threads over bounded queues. A worker that has nothing else to do may look
//! for its next job itself, so that no other thread need hand it over.

use super::{Code, Deadline, Error, Result, ResultExt};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

pub(super) type Job = Box<dyn FnOnce() + Send>;
/// Looks for a job until there is one, for a moment.
type Look = Box<dyn FnOnce(&dyn Fn() -> bool) + Send>;

/// Time that workers without a job have to end, where there is no other left.
const LAST: Duration = Duration::from_millis(250);

thread_local! {
    static WORKER: RefCell<Worker> = const {
        RefCell::new(Worker { look: None, found: None, aside: false })
    };
}

/// What a worker thread knows of itself.
struct Worker {
    /// How the job that it runs wants the next one looked for.
    look: Option<Look>,
    /// While it looks.
    found: Option<Found>,
    /// See [`Pool::aside`].
    aside: bool,
}

/// Jobs that a looking worker keeps for itself.
struct Found {
    queue: *const Queue,
    aside: Vec<Job>,
    next: Option<Job>,
}

/// Worker threads that take jobs from one bounded queue. A job that panics is logged and ends
/// nothing else; whoever must answer for it does so in the `Drop` of what the job holds.
pub struct Pool {
    pub(super) name: &'static str,
    queue: Arc<Queue>,
    workers: Mutex<Vec<Hand>>,
}

/// A worker's thread, and a channel that is closed when it ends.
struct Hand {
    thread: JoinHandle<()>,
    ended: Receiver<()>,
}

/// A worker that waits sleeps at once, where a channel would first try its luck for a while, on a core that
/// others need.
struct Queue {
    state: Mutex<State>,
    max: usize,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Workers that wait for a job. Who came last is woken first: what he needs is still in the caches.
    idle: Vec<Arc<Sleeper>>,
    /// One has been woken and has not come yet. Whoever comes wakes the next if there is more to do: where
    /// many jobs come at once, few workers often do them all, and a thread switch costs as much as a job.
    waking: bool,
    /// A worker looks for a job elsewhere.
    looking: bool,
    stopped: bool,
}

/// A worker that waits, and whether it has been woken.
struct Sleeper {
    thread: Thread,
    woken: AtomicBool,
}

impl Sleeper {
    fn sleep(&self) {
        while !self.woken.swap(false, Ordering::Acquire) {
            std::thread::park();
        }
    }

    fn wake(&self) {
        self.woken.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

impl Pool {
    /// `threads` of 0 counts as 1. `queue_max` jobs may wait; 0 means that a job is taken only when
    /// a worker is free at that moment. Errors: the host's, which has no thread left.
    pub fn start(name: &'static str, threads: usize, queue_max: usize) -> Result<Arc<Pool>> {
        let queue = Arc::new(Queue { state: Mutex::default(), max: queue_max });
        let work = |n: usize| {
            let jobs = queue.clone();
            let (end, ended) = bounded(1);
            let spawned = std::thread::Builder::new()
                .name(format!("{name}-{n}"))
                .spawn(move || {
                    let _end: Sender<()> = end;
                    let thread = std::thread::current();
                    let me = Arc::new(Sleeper { thread, woken: AtomicBool::new(false) });
                    while let Some(job) = jobs.next(&me) {
                        jobs.work(name, job);
                    }
                })
                .context(format_args!("thread {name}-{n}"));
            spawned.map(|thread| Hand { thread, ended })
        };
        let workers = (0..threads.max(1)).map(work).collect::<Result<Vec<_>>>();
        if workers.is_err() {
            // Those that did start must not wait for ever.
            queue.stop();
        }
        Ok(Arc::new(Pool { name, queue, workers: Mutex::new(workers?) }))
    }

    /// Queues a job. Errors: `queue_saturated`, at once, when the queue is full or the pool stopped.
    pub fn submit(&self, job: impl FnOnce() + Send + 'static) -> Result<()> {
        let Some(job) = self.queue.keep(Box::new(job)) else { return Ok(()) };
        let what = {
            let mut s = self.queue.lock();
            // A job for which a worker is waiting does not wait itself.
            if s.stopped {
                "has stopped"
            } else if s.jobs.len() >= self.queue.max + s.idle.len() + usize::from(s.waking) {
                "is full"
            } else {
                s.jobs.push_back(job);
                self.queue.wake_one(s);
                return Ok(());
            }
        };
        Err(Error::new(Code::QueueSaturated, format!("the {} queue {what}; try again", self.name)))
    }

    /// Queues the rest of a job that was taken once, however many wait.
    pub(super) fn resume(&self, job: Job) {
        let mut s = self.queue.lock();
        s.jobs.push_back(job);
        self.queue.wake_one(s);
    }

    /// For a job that runs: when it is done and no other waits, its worker calls `look`, which may find
    /// the next job, by calling what submits one. That is then run by this worker. `look` is told when it
    /// has found one, and must not wait for long. One worker of a pool looks at a time.
    pub fn then(look: impl FnOnce(&dyn Fn() -> bool) + Send + 'static) {
        WORKER.with_borrow_mut(|w| w.look = Some(Box::new(look)));
    }

    /// While the guard lives, what a looking worker finds is not what it looks for: the worker does it when it
    /// has done looking, before what else it found. For what nobody waits for.
    pub fn aside() -> Aside {
        Aside(WORKER.with_borrow_mut(|w| std::mem::replace(&mut w.aside, true)))
    }

    /// Jobs waiting for a worker.
    pub fn depth(&self) -> usize {
        self.queue.lock().jobs.len()
    }

    /// Jobs that may wait for a worker.
    pub fn limit(&self) -> usize {
        self.queue.max
    }

    /// True unless a worker has ended before [`Pool::stop`].
    pub fn is_whole(&self) -> bool {
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.iter().all(|worker| !worker.thread.is_finished())
    }

    /// Lets the workers finish what is queued, then joins them.
    pub fn stop(&self) {
        self.stop_by(Deadline::never());
    }

    /// As [`Pool::stop`], but leaves behind those that are not done by then: a disk or a network file system
    /// can keep one for ever, and the end of the process does not wait for it.
    pub fn stop_by(&self, grace: Deadline) {
        self.queue.stop();
        let workers =
            std::mem::take(&mut *self.workers.lock().unwrap_or_else(PoisonError::into_inner));
        let others =
            workers.into_iter().filter(|w| w.thread.thread().id() != std::thread::current().id());
        let until = if grace.left() < LAST { Deadline::after(LAST) } else { grace };
        let mut left = 0;
        for worker in others {
            match worker.ended.recv_timeout(until.left()) {
                Err(RecvTimeoutError::Disconnected) => drop(worker.thread.join()),
                _ => left += 1,
            }
        }
        if left > 0 {
            log::warn!("{left} requests of the {} pool hang, and are left behind", self.name);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.queue.stop();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job; `None` once stopped and empty.
    fn next(&self, me: &Arc<Sleeper>) -> Option<Job> {
        let mut s = self.lock();
        loop {
            if let Some(job) = s.jobs.pop_front() {
                self.wake_one(s);
                return Some(job);
            }
            if s.stopped {
                return None;
            }
            s.idle.push(me.clone());
            drop(s);
            me.sleep();
            s = self.lock();
            s.waking = false;
        }
    }

    /// Has an idle worker come for what waits, unless one is on its way.
    fn wake_one(&self, mut s: MutexGuard<'_, State>) {
        if s.waking || s.jobs.is_empty() {
            return;
        }
        let Some(sleeper) = s.idle.pop() else { return };
        s.waking = true;
        drop(s);
        sleeper.wake();
    }

    /// Runs a job, and those that it leads to.
    fn work(&self, name: &str, job: Job) {
        let mut next = Some(job);
        while let Some(job) = next {
            run(name, job);
            let look = WORKER.with_borrow_mut(|w| w.look.take());
            next = look.and_then(|look| self.look(name, look));
        }
    }

    fn look(&self, name: &str, look: Look) -> Option<Job> {
        {
            let mut s = self.lock();
            if s.looking || s.stopped || !s.jobs.is_empty() {
                return None;
            }
            s.looking = true;
        }
        let found = Found { queue: self, aside: Vec::new(), next: None };
        WORKER.with_borrow_mut(|w| w.found = Some(found));
        let is_found =
            || WORKER.with_borrow(|w| w.found.as_ref().is_some_and(|f| f.next.is_some()));
        run(name, || look(&is_found));
        self.lock().looking = false;
        let found = WORKER.with_borrow_mut(|w| w.found.take())?;
        for job in found.aside {
            run(name, job);
            WORKER.with_borrow_mut(|w| w.look = None);
        }
        found.next
    }

    /// Keeps a job for this thread, if it looks for one of this queue; else gives it back.
    fn keep(&self, job: Job) -> Option<Job> {
        WORKER.with_borrow_mut(|w| {
            let found = w.found.as_mut().filter(|f| std::ptr::eq(f.queue, self));
            match found {
                Some(found) if w.aside => found.aside.push(job),
                Some(found) if found.next.is_none() => found.next = Some(job),
                _ => return Some(job),
            }
            None
        })
    }

    fn stop(&self) {
        let idle = {
            let mut s = self.lock();
            s.stopped = true;
            std::mem::take(&mut s.idle)
        };
        idle.iter().for_each(|sleeper| sleeper.wake());
    }
}

pub(super) fn run(pool: &str, job: impl FnOnce()) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
        log::error!("a job of the {pool} pool panicked; its request was answered with an error");
    }
}

/// See [`Pool::aside`].
#[must_use]
pub struct Aside(bool);

impl Drop for Aside {
    fn drop(&mut self) {
        WORKER.with_borrow_mut(|w| w.aside = self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_job_that_a_worker_finds_itself_is_run_by_it_and_others_go_their_way() {
        let pool = Pool::start("test", 2, 8).unwrap();
        let (tx, rx) = mpsc::channel();
        let me = || std::thread::current().name().map(str::to_owned);
        let (inner, first) = (pool.clone(), tx.clone());
        pool.submit(move || {
            first.send(("first", me())).unwrap();
            Pool::then(move |found| {
                let (own, others) = (tx.clone(), tx);
                let aside = Pool::aside();
                inner.submit(|| ()).unwrap();
                drop(aside);
                assert!(!found());
                inner.submit(move || own.send(("own", me())).unwrap()).unwrap();
                assert!(found());
                // Not kept: it is taken by another while this one still looks.
                let (went, wait) = mpsc::channel();
                inner.submit(move || went.send(others.send(("other", me()))).unwrap()).unwrap();
                wait.recv().unwrap().unwrap();
            });
        })
        .unwrap();
        let mut got: Vec<_> = rx.iter().take(3).collect();
        let looked = got[0].1.clone();
        got.sort_by_key(|(what, _)| *what);
        assert_eq!(got.iter().map(|g| g.0).collect::<Vec<_>>(), ["first", "other", "own"]);
        assert_eq!(got[2].1, looked);
        assert_ne!(got[1].1, looked);
    }

    #[test]
    fn what_is_found_beside_is_done_before_what_was_looked_for() {
        let pool = Pool::start("test", 1, 8).unwrap();
        let (tx, rx) = mpsc::channel();
        let inner = pool.clone();
        pool.submit(move || {
            Pool::then(move |found| {
                let send = |n: i32| {
                    let tx = tx.clone();
                    inner.submit(move || tx.send(n).unwrap()).unwrap();
                };
                let aside = Pool::aside();
                send(1);
                drop(aside);
                assert!(!found());
                send(3);
                assert!(found());
                let _aside = Pool::aside();
                send(2);
            });
        })
        .unwrap();
        assert_eq!(rx.iter().collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn a_full_queue_answers_at_once_and_a_panic_ends_nothing() {
        let pool = Pool::start("test", 1, 1).unwrap();
        let (hold, held) = mpsc::channel::<()>();
        let (started, start) = mpsc::channel();
        pool.submit(move || {
            started.send(()).unwrap();
            held.recv().unwrap();
            panic!("on purpose");
        })
        .unwrap();
        start.recv().unwrap();
        let (tx, rx) = mpsc::channel();
        pool.submit(move || tx.send(7).unwrap()).unwrap();
        assert_eq!(pool.submit(|| ()).unwrap_err().code, Code::QueueSaturated);
        hold.send(()).unwrap();
        assert_eq!(rx.recv().unwrap(), 7);
        pool.stop();
        assert!(pool.submit(|| ()).is_err());
    }
    #[test]
    fn the_end_waits_for_what_is_queued_and_not_for_what_hangs() {
        let pool = Pool::start("test", 2, 8).unwrap();
        let (hold, held) = mpsc::channel::<()>();
        let (tx, rx) = mpsc::channel();
        let started = tx.clone();
        pool.submit(move || {
            started.send(0).unwrap();
            let _ = held.recv();
        })
        .unwrap();
        assert_eq!(rx.recv().unwrap(), 0);
        for n in 1..=3 {
            let tx = tx.clone();
            pool.submit(move || tx.send(n).unwrap()).unwrap();
        }
        pool.stop_by(Deadline::after_ms(0));
        drop(tx);
        assert_eq!(rx.try_iter().collect::<Vec<_>>(), [1, 2, 3]);
        drop(hold);
    }
}
