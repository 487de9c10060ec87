//! The sinks that listen to a tree's events. Calls them; keeps no events.

use super::{Event, EventSink, Watch};
use std::sync::{Arc, Mutex, PoisonError};

/// Cloning shares the list.
#[derive(Clone, Default)]
pub struct Watchers(Arc<Mutex<Sinks>>);

#[derive(Default)]
struct Sinks {
    next: u64,
    /// Replaced as a whole, so that sinks are called without the lock.
    list: Arc<Vec<(u64, EventSink)>>,
}

impl Watchers {
    pub fn add(&self, sink: EventSink) -> Watch {
        let key = self.change(|sinks, list| {
            sinks.next += 1;
            list.push((sinks.next, sink));
            sinks.next
        });
        let watchers = self.clone();
        Watch::new(move || watchers.change(|_, list| list.retain(|(k, _)| *k != key)))
    }

    pub fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).list.is_empty()
    }

    /// Tells every sink, in the order in which they came.
    pub fn announce(&self, events: &[Event]) {
        let list = self.0.lock().unwrap_or_else(PoisonError::into_inner).list.clone();
        for (_, sink) in list.iter() {
            events.iter().for_each(|e| sink(e.clone()));
        }
    }

    fn change<T>(&self, f: impl FnOnce(&mut Sinks, &mut Vec<(u64, EventSink)>) -> T) -> T {
        let mut sinks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut list = sinks.list.to_vec();
        let out = f(&mut sinks, &mut list);
        sinks.list = Arc::new(list);
        out
    }
}
