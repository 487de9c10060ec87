//! Waiting that can be ended: cancellation flags, notifications, and waits that either block the
//! calling thread or park a callback, so that a long wait costs no worker.

use super::{Code, Deadline, Error, Result, Timer, TimerKey};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

type Callback = Box<dyn FnOnce() + Send>;

/// A condition that others wait for. Cloning shares it.
///
/// A waiter takes [`Notify::seen`], then looks at the state it cares about, then waits with that
/// number: a change in between is not lost.
#[derive(Clone, Default)]
pub struct Notify(Arc<Mutex<Waiters>>);

#[derive(Default)]
struct Waiters {
    generation: u64,
    next_key: u64,
    callbacks: BTreeMap<u64, Callback>,
}

impl Notify {
    pub fn seen(&self) -> u64 {
        self.lock().generation
    }

    /// Wakes every waiter.
    pub fn notify(&self) {
        let callbacks = {
            let mut w = self.lock();
            w.generation += 1;
            std::mem::take(&mut w.callbacks)
        };
        for f in callbacks.into_values() {
            f();
        }
    }

    /// A wait for the next notification after `seen`, or for `until`, whichever comes first.
    pub fn wait(&self, seen: u64, until: Deadline) -> Wait {
        Wait { notify: self.clone(), seen, until }
    }

    /// Registers `f`, or hands it back when the notification has come already.
    fn subscribe(&self, seen: u64, f: Callback) -> std::result::Result<u64, Callback> {
        let mut w = self.lock();
        if w.generation != seen {
            return Err(f);
        }
        let key = w.next_key;
        w.next_key += 1;
        w.callbacks.insert(key, f);
        Ok(key)
    }

    fn unsubscribe(&self, key: u64) {
        self.lock().callbacks.remove(&key);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A flag that ends an operation early. Cloning shares it.
#[derive(Clone, Default)]
pub struct Cancel {
    flag: Arc<AtomicBool>,
    notify: Notify,
}

impl Cancel {
    pub fn new() -> Cancel {
        Cancel::default()
    }

    pub fn cancel(&self) {
        if !self.flag.swap(true, Ordering::AcqRel) {
            self.notify.notify();
        }
    }

    pub fn is_cancelled(&self) -> bool {
        self.flag.load(Ordering::Acquire)
    }

    /// Errors with `cancelled` once [`Cancel::cancel`] was called.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            return Err(Error::new(Code::Cancelled, "operation cancelled"));
        }
        Ok(())
    }

    /// Calls `f` on cancellation (at once if that has happened), unless the guard is dropped before.
    pub fn on_cancel(&self, f: impl FnOnce() + Send + 'static) -> OnCancel {
        let key = match self.notify.subscribe(0, Box::new(f)) {
            Ok(key) => Some(key),
            Err(f) => {
                f();
                None
            }
        };
        OnCancel { notify: self.notify.clone(), key }
    }
}

/// Keeps a cancellation callback registered.
#[must_use]
pub struct OnCancel {
    notify: Notify,
    key: Option<u64>,
}

impl Drop for OnCancel {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.notify.unsubscribe(key);
        }
    }
}

/// What an operation waits for before it is worth trying again.
#[derive(Clone)]
pub struct Wait {
    notify: Notify,
    seen: u64,
    until: Deadline,
}

impl Wait {
    /// Blocks the calling thread. `Ok` means: try again. Errors: `timeout` when `deadline` passes,
    /// `cancelled`.
    pub fn block(&self, deadline: Deadline, cancel: &Cancel) -> Result<()> {
        let woken = Arc::new((Mutex::new(false), Condvar::new()));
        let wake = |woken: &Arc<(Mutex<bool>, Condvar)>| {
            let woken = woken.clone();
            move || {
                *woken.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
                woken.1.notify_all();
            }
        };
        let Ok(key) = self.notify.subscribe(self.seen, Box::new(wake(&woken))) else {
            return cancel.check();
        };
        let on_cancel = cancel.on_cancel(wake(&woken));
        let until = self.until.min(deadline);
        let mut done = woken.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !*done && !until.passed() {
            done =
                woken.1.wait_timeout(done, until.left()).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop((done, on_cancel));
        self.notify.unsubscribe(key);
        cancel.check()?;
        if deadline.passed() {
            return Err(Error::new(Code::Timeout, "operation timed out"));
        }
        Ok(())
    }

    /// Calls `f` once, from whichever thread notifies, cancels or keeps the time. The caller then
    /// looks at the cancel flag and the deadline itself. Never blocks.
    pub fn park(
        self,
        timer: &Timer,
        deadline: Deadline,
        cancel: &Cancel,
        f: impl FnOnce() + Send + 'static,
    ) -> Parked {
        let slot = Arc::new(Slot { f: Mutex::new(Some(Box::new(f))), keys: Mutex::default() });
        let fire = |slot: &Arc<Slot>| -> Callback {
            let slot = slot.clone();
            Box::new(move || slot.fire())
        };
        match self.notify.subscribe(self.seen, fire(&slot)) {
            Ok(key) => slot.keep(Registration::Notify(self.notify.clone(), key)),
            Err(f) => f(),
        }
        let on_cancel = cancel.on_cancel(fire(&slot));
        slot.keep(Registration::Cancel(on_cancel));
        let key = timer.at(self.until.min(deadline).instant(), fire(&slot));
        slot.keep(Registration::Timer(timer.clone(), key));
        Parked(slot)
    }
}

/// A parked callback. Dropping it does not end the wait; [`Parked::wake`] does.
pub struct Parked(Arc<Slot>);

impl Parked {
    pub fn wake(&self) {
        self.0.fire();
    }
}

struct Slot {
    f: Mutex<Option<Callback>>,
    keys: Mutex<Vec<Registration>>,
}

enum Registration {
    Notify(Notify, u64),
    Cancel(#[expect(dead_code, reason = "held for its Drop")] OnCancel),
    Timer(Timer, TimerKey),
}

impl Slot {
    /// Runs the callback if nobody has yet, and withdraws the other registrations.
    fn fire(&self) {
        let f = self.f.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(f) = f else { return };
        let keys = std::mem::take(&mut *self.keys.lock().unwrap_or_else(PoisonError::into_inner));
        keys.into_iter().for_each(Registration::withdraw);
        f();
    }

    fn keep(&self, registration: Registration) {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.push(registration);
        // Fired in the meantime: nobody else will come and withdraw this one.
        if self.f.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            let keys = std::mem::take(&mut *keys);
            keys.into_iter().for_each(Registration::withdraw);
        }
    }
}

impl Registration {
    fn withdraw(self) {
        match self {
            Registration::Notify(notify, key) => notify.unsubscribe(key),
            Registration::Cancel(_) => {}
            Registration::Timer(timer, key) => timer.cancel(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn a_notification_before_the_wait_is_not_lost() {
        let n = Notify::default();
        let seen = n.seen();
        n.notify();
        n.wait(seen, Deadline::never()).block(Deadline::never(), &Cancel::new()).unwrap();
    }

    #[test]
    fn blocking_ends_on_notify_cancel_until_and_deadline() {
        let (n, c) = (Notify::default(), Cancel::new());
        let wait = n.wait(n.seen(), Deadline::never());
        let notifier = std::thread::spawn({
            let n = n.clone();
            move || n.notify()
        });
        wait.block(Deadline::never(), &c).unwrap();
        notifier.join().unwrap();

        let soon = n.wait(n.seen(), Deadline::after_ms(1));
        soon.block(Deadline::never(), &c).unwrap();
        let e = n.wait(n.seen(), Deadline::never()).block(Deadline::after_ms(1), &c).unwrap_err();
        assert_eq!(e.code, Code::Timeout);

        let canceller = std::thread::spawn({
            let c = c.clone();
            move || c.cancel()
        });
        let e = n.wait(n.seen(), Deadline::never()).block(Deadline::never(), &c).unwrap_err();
        assert_eq!(e.code, Code::Cancelled);
        canceller.join().unwrap();
        assert!(n.lock().callbacks.is_empty(), "every registration was withdrawn");
    }

    #[test]
    fn a_parked_callback_runs_once_and_leaves_nothing_behind() {
        let timer = Timer::start().unwrap();
        let (n, c) = (Notify::default(), Cancel::new());
        let (tx, rx) = mpsc::channel();
        let park = |until: Deadline| {
            let tx = tx.clone();
            n.wait(n.seen(), until).park(&timer, Deadline::never(), &c, move || {
                tx.send(()).unwrap();
            })
        };
        let parked = park(Deadline::never());
        n.notify();
        parked.wake();
        c.cancel();
        rx.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(rx.try_recv().is_err());

        let c = Cancel::new();
        let tx2 = tx.clone();
        n.wait(n.seen(), Deadline::after_ms(1)).park(&timer, Deadline::never(), &c, move || {
            tx2.send(()).unwrap();
        });
        rx.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(n.lock().callbacks.is_empty() && c.notify.lock().callbacks.is_empty());
        timer.stop();
    }
}
