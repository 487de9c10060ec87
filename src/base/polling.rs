//! Whether to look again and again for a moment before sleeping. Waking a processor that has gone idle takes
//! longer than most answers of a near peer.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicI8, Ordering};
use std::time::{Duration, Instant};

/// How long to look.
const LOOK: Duration = Duration::from_micros(300);
/// Successes that are remembered: so many failures in a row are forgiven.
const CREDIT_MAX: i8 = 4;
/// Where looking did not pay, it is tried again after this many sleeps.
const PATIENCE: i8 = 32;

/// Where there is but one processor, looking keeps it from whoever is to answer.
static MAY_LOOK: LazyLock<bool> =
    LazyLock::new(|| std::thread::available_parallelism().is_ok_and(|n| n.get() > 1));

/// Remembers whether it has paid lately.
#[derive(Default)]
pub struct Polling {
    credit: AtomicI8,
}

impl Polling {
    /// Calls `ready` until it is true, for a moment, if that has paid lately. False: sleep.
    pub fn look(&self, mut ready: impl FnMut() -> bool) -> bool {
        let credit = self.credit.load(Ordering::Relaxed);
        if !*MAY_LOOK {
            return false;
        }
        if credit < 0 {
            self.credit.store(credit + 1, Ordering::Relaxed);
            return false;
        }
        let until = Instant::now() + LOOK;
        let found = loop {
            if ready() {
                break true;
            }
            if Instant::now() >= until {
                break false;
            }
            std::thread::yield_now();
        };
        let credit = match (found, credit) {
            (true, n) => (n + 1).min(CREDIT_MAX),
            (false, 0) => -PATIENCE,
            (false, n) => n - 1,
        };
        self.credit.store(credit, Ordering::Relaxed);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_pay_is_not_done() {
        let polling = Polling::default();
        assert_eq!(polling.look(|| true), *MAY_LOOK);
        let mut looked = 0;
        for _ in 0..=PATIENCE {
            let mut asked = false;
            polling.look(|| {
                asked = true;
                false
            });
            looked += usize::from(asked);
        }
        assert_eq!(looked, if *MAY_LOOK { 2 } else { 0 });
    }
}
