//! One thread that calls functions at given moments. The functions must be short and must not block:
//! they queue work elsewhere.

use super::{Result, ResultExt};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

type Callback = Box<dyn FnOnce() + Send>;

/// Names a callback, to cancel it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimerKey(Instant, u64);

/// Handle on the timer thread. Cloning shares it.
#[derive(Clone)]
pub struct Timer(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    changed: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct State {
    next: u64,
    due: BTreeMap<TimerKey, Callback>,
    /// When the thread wakes of its own accord; what was due then may be cancelled by now, and most is: it
    /// is not woken for each that comes and goes before.
    wakes: Option<Instant>,
    stopped: bool,
}

impl Timer {
    /// Errors: the host's, which has no thread left.
    pub fn start() -> Result<Timer> {
        let inner = Arc::new(Inner {
            state: Mutex::default(),
            changed: Condvar::new(),
            thread: Mutex::default(),
        });
        let run = inner.clone();
        let thread = std::thread::Builder::new()
            .name("timer".into())
            .spawn(move || run.run())
            .context("timer thread")?;
        *inner.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(Timer(inner))
    }

    /// Calls `f` at `when`, or at once on the timer thread when that has passed.
    pub fn at(&self, when: Instant, f: Callback) -> TimerKey {
        let mut s = self.0.lock();
        let key = TimerKey(when, s.next);
        s.next += 1;
        let sooner = s.wakes.is_none_or(|wakes| when < wakes);
        s.due.insert(key, f);
        drop(s);
        if sooner {
            self.0.changed.notify_one();
        }
        key
    }

    pub fn cancel(&self, key: TimerKey) {
        self.0.lock().due.remove(&key);
    }

    /// Ends the thread; callbacks that are not due yet are dropped.
    pub fn stop(&self) {
        self.0.lock().stopped = true;
        self.0.changed.notify_one();
        let thread = self.0.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

impl Inner {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut s = self.lock();
        while !s.stopped {
            let now = Instant::now();
            s.wakes = s.due.first_key_value().map(|(k, _)| k.0);
            match s.wakes {
                Some(when) if when <= now => {
                    let (_, f) = s.due.pop_first().expect("just seen");
                    drop(s);
                    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err() {
                        log::error!("a timer callback panicked");
                    }
                    s = self.lock();
                }
                Some(when) => {
                    let wait = self.changed.wait_timeout(s, when - now);
                    s = wait.unwrap_or_else(PoisonError::into_inner).0;
                }
                None => s = self.changed.wait(s).unwrap_or_else(PoisonError::into_inner),
            }
        }
        s.due.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn callbacks_come_in_order_of_time_and_cancelled_ones_do_not() {
        let timer = Timer::start().unwrap();
        let (tx, rx) = mpsc::channel();
        let at = |ms: u64, n: u32| {
            let tx = tx.clone();
            let when = Instant::now() + Duration::from_millis(ms);
            timer.at(when, Box::new(move || tx.send(n).unwrap()))
        };
        let never = at(20, 99);
        at(40, 2);
        at(1, 1);
        timer.cancel(never);
        let got: Vec<u32> = rx.iter().take(2).collect();
        assert_eq!(got, [1, 2]);
        timer.stop();
    }
}
