//! On whose behalf a thread works. A change is announced on the thread that makes it; whoever made it knows
//! of it already, and finds out here that an event is its own.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

/// One who calls trees and listens to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller(u64);

thread_local! {
    static CALLERS: RefCell<Vec<Caller>> = const { RefCell::new(Vec::new()) };
}

impl Caller {
    pub fn unique() -> Caller {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Caller(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Runs `f`; events announced on this thread meanwhile are this caller's own.
    pub fn run<T>(self, f: impl FnOnce() -> T) -> T {
        /// Leaves also when `f` panics.
        struct Leave;
        impl Drop for Leave {
            fn drop(&mut self) {
                CALLERS.with_borrow_mut(|all| all.pop());
            }
        }
        CALLERS.with_borrow_mut(|all| all.push(self));
        let _leave = Leave;
        f()
    }

    /// Runs `f`; events announced on this thread meanwhile are news to every caller, those included that
    /// it works for: what a call has brought about elsewhere is not told by its reply.
    pub fn nobody<T>(f: impl FnOnce() -> T) -> T {
        /// Puts them back also when `f` panics.
        struct Back(Vec<Caller>);
        impl Drop for Back {
            fn drop(&mut self) {
                CALLERS.set(std::mem::take(&mut self.0));
            }
        }
        let _back = Back(CALLERS.take());
        f()
    }

    pub fn is_here(self) -> bool {
        CALLERS.with_borrow(|all| all.contains(&self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_nest_and_leave_also_by_a_panic() {
        let (a, b) = (Caller::unique(), Caller::unique());
        a.run(|| b.run(|| assert!(a.is_here() && b.is_here())));
        a.run(|| {
            Caller::nobody(|| assert!(!a.is_here()));
            assert!(a.is_here());
        });
        let panicked = std::panic::catch_unwind(|| a.run(|| panic!("expected")));
        assert!(panicked.is_err() && !a.is_here() && !b.is_here());
    }
}
