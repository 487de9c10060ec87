//! What is mounted at one place: one tree, or several that stand in for each other.

use super::Member;
use crate::base::TreePath;
use crate::vfs::Watch;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

pub struct Group {
    /// Never the same for two groups of a process.
    pub serial: u64,
    pub path: TreePath,
    pub members: Vec<Member>,
    /// Asked until it is lost; there is no way back while its successor lives.
    active: AtomicUsize,
    /// Answered last.
    serving: AtomicUsize,
    failovers: AtomicU64,
    /// Subscriptions to the members' events.
    pub watches: OnceLock<Vec<Watch>>,
}

impl Group {
    pub fn new(path: TreePath, members: Vec<Member>) -> Group {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Group {
            serial: NEXT.fetch_add(1, Ordering::Relaxed),
            path,
            members,
            active: AtomicUsize::new(0),
            serving: AtomicUsize::new(0),
            failovers: AtomicU64::new(0),
            watches: OnceLock::new(),
        }
    }

    pub fn is_of(&self, members: &[Member]) -> bool {
        let same = |a: &Member, b: &Member| {
            a.name == b.name && a.root == b.root && Arc::ptr_eq(&a.tree, &b.tree)
        };
        self.members.len() == members.len()
            && self.members.iter().zip(members).all(|(a, b)| same(a, b))
    }

    pub fn active(&self) -> usize {
        self.active.load(Ordering::Acquire)
    }

    pub fn failovers(&self) -> u64 {
        self.failovers.load(Ordering::Relaxed)
    }

    /// A member was lost: the next one is asked, unless it is already.
    pub fn pass_over(&self, lost: usize) {
        let next = (lost + 1) % self.members.len();
        let _ = self.active.compare_exchange(lost, next, Ordering::AcqRel, Ordering::Acquire);
    }

    /// A member has answered. True if it takes over from another with that.
    pub fn served(&self, member: usize) -> bool {
        if self.serving.load(Ordering::Acquire) == member || member != self.active() {
            return false;
        }
        let before = self.serving.swap(member, Ordering::AcqRel);
        if before == member {
            return false;
        }
        self.failovers.fetch_add(1, Ordering::Relaxed);
        let name = |n: usize| &self.members[n].name;
        log::warn!("{}: {} is lost, {} takes over", self.path, name(before), name(member));
        true
    }
}
