//! Wall-clock times for records and deadlines for everything that waits.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Unix time in milliseconds.
pub fn now_ms() -> i64 {
    i64::try_from(since_epoch().as_millis()).unwrap_or(i64::MAX)
}

/// Unix time in nanoseconds.
pub fn now_ns() -> i64 {
    i64::try_from(since_epoch().as_nanos()).unwrap_or(i64::MAX)
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The moment by which an operation must be answered. Made once, at the edge, and handed down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// Further off than anything waits: stands in for "none" without overflowing the clock.
    const FAR: Duration = Duration::from_secs(365 * 86_400);

    pub fn after(d: Duration) -> Deadline {
        Deadline(Instant::now() + d.min(Deadline::FAR))
    }

    pub fn after_ms(ms: u64) -> Deadline {
        Deadline::after(Duration::from_millis(ms))
    }

    /// For work that only cancellation ends.
    pub fn never() -> Deadline {
        Deadline::after(Deadline::FAR)
    }

    pub fn instant(self) -> Instant {
        self.0
    }

    /// Time left; zero when it has passed.
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    pub fn passed(self) -> bool {
        self.left().is_zero()
    }

    /// The nearer of the two.
    #[must_use]
    pub fn min(self, other: Deadline) -> Deadline {
        Deadline(self.0.min(other.0))
    }
}
