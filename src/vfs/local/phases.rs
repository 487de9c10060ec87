//! Waiting for what has begun, without holding up what begins.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long a change of our own is waited for before its events are looked at all the same.
pub const OWN_MAX: Duration = Duration::from_millis(100);

/// Counts what goes on, so that somebody can wait for what had begun without holding up what begins.
#[derive(Default)]
pub struct Phases {
    phase: AtomicUsize,
    running: [AtomicUsize; 2],
}

/// Something that goes on; dropping it ends it.
pub struct Going<'a>(&'a AtomicUsize);

impl Drop for Going<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Phases {
    pub fn begin(&self) -> Going<'_> {
        loop {
            let phase = self.phase.load(Ordering::Acquire);
            let running = &self.running[phase % 2];
            running.fetch_add(1, Ordering::AcqRel);
            if self.phase.load(Ordering::Acquire) == phase {
                return Going(running);
            }
            running.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Waits until all that had begun has ended, or for [`OWN_MAX`].
    pub fn settle(&self) {
        let phase = self.phase.fetch_add(1, Ordering::AcqRel);
        let until = Instant::now() + OWN_MAX;
        while self.running[phase % 2].load(Ordering::Acquire) > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_had_begun_is_waited_for_and_what_begins_is_not() {
        let phases = Phases::default();
        let first = phases.begin();
        let waited = std::thread::scope(|threads| {
            let waiting = threads.spawn(|| phases.settle());
            while phases.phase.load(Ordering::Acquire) == 0 {
                std::thread::yield_now();
            }
            let second = phases.begin();
            drop(first);
            waiting.join().unwrap();
            drop(second);
            phases.running.iter().map(|n| n.load(Ordering::Acquire)).sum::<usize>()
        });
        assert_eq!(waited, 0);
    }
}
