//! The numbers of requests in a session that must take effect once. Knows no connection: a number outlives
//! the one over which it was used first.

use crate::wire::fs::Slot;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Those of one session.
#[derive(Default)]
pub(super) struct Slots(Arc<Mutex<InUse>>);

#[derive(Default)]
struct InUse {
    next: u64,
    open: BTreeSet<u64>,
}

/// A number in use: its reply may be asked for as long as this lives.
pub(super) struct Numbered {
    slots: Arc<Mutex<InUse>>,
    rid: u64,
}

impl Slots {
    pub fn number(&self) -> Numbered {
        let mut s = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        s.next += 1;
        let rid = s.next;
        s.open.insert(rid);
        Numbered { slots: self.0.clone(), rid }
    }
}

impl Numbered {
    pub fn slot(&self) -> Slot {
        let s = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Slot { rid: self.rid, ack: s.open.first().copied().unwrap_or(self.rid) }
    }
}

impl Drop for Numbered {
    fn drop(&mut self) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).open.remove(&self.rid);
    }
}
