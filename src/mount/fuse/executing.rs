//! Files that are being executed. The kernel refuses to write to them, but with `FUSE_ATOMIC_O_TRUNC` it has
//! them truncated when they are opened and refuses afterwards: the program would lose its code. Knows what
//! this mount's kernel executes, and nothing of other hosts.

use crate::base::{Error, Result};
use crate::vfs::{Handle, NodeId};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Set in the flags of an open by execve(2) (`__FMODE_EXEC` of Linux).
const EXEC: i32 = 0x20;

/// That a program has ended is told a moment after its parent knows.
const SETTLE: Duration = Duration::from_millis(200);

#[derive(Default)]
pub struct Executing {
    open: Mutex<HashMap<Handle, NodeId>>,
    /// How many there are: most of the time none.
    count: AtomicUsize,
    fewer: Condvar,
}

impl Executing {
    /// A file was opened.
    pub fn opened(&self, node: NodeId, handle: Handle, flags: i32) {
        if flags & EXEC != 0 {
            self.change(|open| open.insert(handle, node));
        }
    }

    pub fn released(&self, handle: Handle) {
        if self.count.load(Ordering::Acquire) > 0 {
            self.change(|open| open.remove(&handle));
        }
    }

    /// A file is about to be opened. Errors: ETXTBSY where that would truncate what is executed.
    pub fn check(&self, node: NodeId, flags: i32) -> Result<()> {
        if flags & libc::O_TRUNC == 0 || self.count.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let executed = |open: &mut HashMap<_, NodeId>| open.values().any(|n| *n == node);
        let waited = self.fewer.wait_timeout_while(open, SETTLE, executed);
        match waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
            true => Err(Error::from_errno(libc::ETXTBSY, "the file is being executed")),
            false => Ok(()),
        }
    }

    fn change(&self, f: impl FnOnce(&mut HashMap<Handle, NodeId>) -> Option<NodeId>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        f(&mut open);
        self.count.store(open.len(), Ordering::Release);
        self.fewer.notify_all();
    }
}
