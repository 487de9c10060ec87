//! The end of a session's time, by the clock on the wall: it also comes where the machine slept meanwhile or
//! its clock was set.

use crate::base::{Timer, TimerKey, now_ms};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time between looks at the clock.
const LOOK_MS: u64 = 60_000;

type End = Arc<dyn Fn() + Send + Sync>;

/// Calls a function once when its time has come, unless it is dropped before.
pub(super) struct Lease(Arc<Inner>);

struct Inner {
    timer: Timer,
    expires_at_s: u64,
    end: End,
    /// `None` once it is over.
    next: Mutex<Option<Option<TimerKey>>>,
}

impl Lease {
    pub fn start(timer: Timer, expires_at_s: u64, end: End) -> Lease {
        let next = Mutex::new(Some(None));
        let inner = Arc::new(Inner { timer, expires_at_s, end, next });
        inner.arm();
        Lease(inner)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let next = self.0.next.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Some(key)) = next {
            self.0.timer.cancel(key);
        }
    }
}

impl Inner {
    /// Looks again when the time has come, or earlier.
    fn arm(self: &Arc<Inner>) {
        let left_ms = self.left_ms().min(LOOK_MS);
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        if next.is_none() {
            return;
        }
        let inner = self.clone();
        let look = Box::new(move || inner.look());
        *next = Some(Some(self.timer.at(Instant::now() + Duration::from_millis(left_ms), look)));
    }

    fn look(self: &Arc<Inner>) {
        if self.left_ms() > 0 {
            return self.arm();
        }
        let due = self.next.lock().unwrap_or_else(PoisonError::into_inner).take().is_some();
        if due {
            (self.end)();
        }
    }

    fn left_ms(&self) -> u64 {
        let now_ms = u64::try_from(now_ms()).unwrap_or_default();
        self.expires_at_s.saturating_mul(1000).saturating_sub(now_ms)
    }
}
