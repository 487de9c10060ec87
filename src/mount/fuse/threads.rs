//! Which thread runs a request. A session thread runs it itself, which costs no change of threads, as long
//! as enough others are left to take in further requests; else it hands the request to one of a second
//! kind of threads, that come when they are needed and go when they are not. So requests that wait for a
//! node that does not answer hold up no others.

use super::THREADS;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Session threads that run requests; the others take them in.
const INSIDE_MAX: usize = THREADS - 2;
/// Threads of the second kind.
const MORE_MAX: usize = 240;
/// How long one of them waits for something to do.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub struct Threads {
    inside: AtomicUsize,
    more: Mutex<More>,
    news: Condvar,
}

#[derive(Default)]
struct More {
    jobs: VecDeque<Job>,
    idle: usize,
    /// Numbers the threads for their names.
    started: usize,
    all: Vec<JoinHandle<()>>,
    stopped: bool,
}

impl Threads {
    /// Runs a request, now or soon.
    pub fn run(self: &Arc<Threads>, request: impl FnOnce() + Send + 'static) {
        if self.inside.fetch_add(1, Ordering::AcqRel) < INSIDE_MAX {
            request();
            self.inside.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        self.inside.fetch_sub(1, Ordering::AcqRel);
        // Where there is no thread left, the kernel has to wait.
        if let Err(request) = self.hand_over(Box::new(request)) {
            request();
        }
    }

    fn lock(&self) -> MutexGuard<'_, More> {
        self.more.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hand_over(self: &Arc<Threads>, job: Job) -> Result<(), Job> {
        let mut more = self.lock();
        if more.stopped {
            return Err(job);
        }
        if more.idle <= more.jobs.len() {
            more.all.retain(|thread| !thread.is_finished());
            if more.all.len() >= MORE_MAX {
                return Err(job);
            }
            more.started += 1;
            let name = format!("fuse-more-{}", more.started);
            let this = self.clone();
            match std::thread::Builder::new().name(name).spawn(move || this.work()) {
                Ok(thread) => more.all.push(thread),
                Err(_) => return Err(job),
            }
        }
        more.jobs.push_back(job);
        drop(more);
        self.news.notify_one();
        Ok(())
    }

    fn work(&self) {
        let mut more = self.lock();
        loop {
            if let Some(job) = more.jobs.pop_front() {
                drop(more);
                if catch_unwind(AssertUnwindSafe(job)).is_err() {
                    log::error!("a request panicked; it was answered with EIO");
                }
                more = self.lock();
                continue;
            }
            if more.stopped {
                return;
            }
            more.idle += 1;
            let (guard, waited) =
                self.news.wait_timeout(more, IDLE).unwrap_or_else(PoisonError::into_inner);
            more = guard;
            more.idle -= 1;
            if waited.timed_out() && more.jobs.is_empty() {
                return;
            }
        }
    }

    /// Lets what was handed over end, and joins the threads.
    pub fn stop(&self) {
        let all = {
            let mut more = self.lock();
            more.stopped = true;
            std::mem::take(&mut more.all)
        };
        self.news.notify_all();
        all.into_iter().for_each(|thread| drop(thread.join()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn requests_that_wait_leave_threads_to_take_in_others() {
        let threads = Arc::new(Threads::default());
        let (go, gone) = mpsc::channel::<()>();
        let gone = Arc::new(Mutex::new(gone));
        let (ended, ends) = mpsc::channel();
        let begin = |name: &'static str| {
            let (threads, gone, ended) = (threads.clone(), gone.clone(), ended.clone());
            let (began, begins) = mpsc::channel();
            let request = move || {
                began.send(()).unwrap();
                let _ = gone.lock().unwrap().recv();
                ended.send(std::thread::current().name().map(str::to_owned)).unwrap();
            };
            let session = std::thread::Builder::new().name(name.into());
            let session = session.spawn(move || threads.run(request)).unwrap();
            begins.recv().unwrap();
            session
        };
        let inside: Vec<_> = (0..INSIDE_MAX).map(|_| begin("session")).collect();
        // These are taken in by threads that are free again while the requests still wait.
        for _ in 0..50 {
            begin("session").join().unwrap();
        }
        drop(go);
        inside.into_iter().for_each(|session| session.join().unwrap());
        threads.stop();
        drop(ended);
        let here = |name: &Option<String>| name.as_deref() == Some("session");
        let names: Vec<_> = ends.iter().collect();
        assert_eq!(
            (names.len(), names.iter().filter(|n| here(n)).count()),
            (INSIDE_MAX + 50, INSIDE_MAX)
        );
    }

    #[test]
    fn without_a_thread_to_spare_the_one_that_took_it_in_runs_it() {
        let threads = Arc::new(Threads::default());
        threads.inside.store(INSIDE_MAX, Ordering::Release);
        threads.stop();
        let (ran, runs) = mpsc::channel();
        threads.run(move || ran.send(std::thread::current().id()).unwrap());
        assert_eq!(runs.recv().unwrap(), std::thread::current().id());
        assert_eq!(threads.inside.load(Ordering::Acquire), INSIDE_MAX);
    }
}
