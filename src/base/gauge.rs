//! A bounded count of things that go on, for what must not grow without limit but is no queue.

use super::{Code, Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Clone)]
pub struct Gauge {
    count: Arc<AtomicUsize>,
    max: usize,
    what: &'static str,
}

/// One of them; dropping it makes room.
pub struct Counted(Arc<AtomicUsize>);

impl Gauge {
    /// `what` is counted, at most `max` at a time.
    pub fn new(max: usize, what: &'static str) -> Gauge {
        Gauge { count: Arc::default(), max, what }
    }

    /// How many more there may be.
    pub fn free(&self) -> usize {
        self.max.saturating_sub(self.count.load(Ordering::Acquire))
    }

    /// Errors: `queue_saturated` when there are enough.
    pub fn enter(&self) -> Result<Counted> {
        let room = |n: usize| (n < self.max).then_some(n + 1);
        if self.count.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).is_err() {
            let text = format!("there are {} {} already; try again", self.max, self.what);
            return Err(Error::new(Code::QueueSaturated, text));
        }
        Ok(Counted(self.count.clone()))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_again_when_one_has_gone() {
        let gauge = Gauge::new(1, "things");
        let one = gauge.enter().unwrap();
        assert_eq!(gauge.enter().err().unwrap().code, Code::QueueSaturated);
        assert_eq!(gauge.free(), 0);
        drop(one);
        assert!(gauge.enter().is_ok());
    }
}
