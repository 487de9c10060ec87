//! Locks as the kernel asks for them: of whole files (flock) and of ranges (fcntl), and which of the two a
//! request means. Where a tree has no locks of ranges, the processes of this mount bar at least each
//! other, as on any filesystem of the host.

use super::adapter::{Adapter, fail, guarded};
use super::invalidate::Changes;
use crate::base::{Code, Deadline, Error, Notify, Result};
use crate::vfs::ranges::{Held, Holder, Level, Ranges, TO_THE_END};
use crate::vfs::{Cx, Event, Handle, LockKind, LockRequest, NodeId, Range, Tree};
use fuser::{ReplyEmpty, ReplyLock};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Owners of locks of one kind, at most; more fail with ENOLCK.
const OWNERS_MAX: usize = 65_536;
/// Ranges locked in one file whose tree has no such locks.
const RANGES_MAX: usize = 1024;
/// The last byte of a lock that has no length, as the kernel tells it.
const KERNEL_END: u64 = i64::MAX as u64;
/// How often the process of a request is looked at while it goes to sleep.
const LOOKS_MAX: u32 = 50;
const LOOK_US: u64 = 100;
/// How often a lock that another holds is asked for again.
const LOCK_RETRY_MS: u64 = 50;

/// Which kinds of lock a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub flock: bool,
    pub range: Option<Range>,
}

/// One lock request of the kernel.
#[derive(Clone, Copy)]
struct Request {
    node: NodeId,
    handle: Handle,
    owner: u64,
    kind: LockKind,
    wanted: Wanted,
}

/// What is held through this mount.
#[derive(Default)]
pub struct Locks(Mutex<State>);

#[derive(Default)]
struct State {
    flocks: Owners,
    ranges: Owners,
    /// Of files whose tree has no locks of ranges.
    own: HashMap<NodeId, Ranges>,
}

/// Who locked a file, and through which handle.
#[derive(Default)]
struct Owners(BTreeSet<(NodeId, u64, Handle)>);

impl Owners {
    fn add(&mut self, node: NodeId, owner: u64, handle: Handle) -> Result<()> {
        let key = (node, owner, handle);
        if self.0.len() >= OWNERS_MAX && !self.0.contains(&key) {
            return Err(Error::from_errno(libc::ENOLCK, "too many locks in this mount"));
        }
        self.0.insert(key);
        Ok(())
    }

    fn of(&self, node: NodeId, owner: u64) -> impl Iterator<Item = &(NodeId, u64, Handle)> {
        self.0.range((node, owner, Handle(0))..=(node, owner, Handle(u64::MAX)))
    }

    fn holds(&self, node: NodeId, owner: u64) -> bool {
        self.of(node, owner).next().is_some()
    }

    fn forget(&mut self, node: NodeId, owner: u64) {
        let gone: Vec<_> = self.of(node, owner).copied().collect();
        for key in &gone {
            self.0.remove(key);
        }
    }

    fn release(&mut self, node: NodeId, handle: Handle) {
        let all = (node, 0, Handle(0))..=(node, u64::MAX, Handle(u64::MAX));
        let gone: Vec<_> = self.0.range(all).filter(|key| key.2 == handle).copied().collect();
        for key in &gone {
            self.0.remove(key);
        }
    }
}

/// What a request of thread `tid` means. The kernel marks flock in a member that the FUSE library does not
/// hand on. A part of a file is fcntl's; unlocking the whole file ends either kind, since their owners
/// differ; for the rest, the waiting thread's system call tells. Where that is not to be seen, both
/// kinds are meant: a lock that is asked for is held, whoever looks for it.
pub fn wanted(tid: u32, kind: i32, start: u64, end: u64) -> Wanted {
    let range = kernel_range(start, end);
    let whole = range == Range { start: 0, end: TO_THE_END };
    let (flock, fcntl) = match kind {
        _ if !whole => (false, true),
        libc::F_UNLCK => (true, true),
        _ => match system_call(tid) {
            Some(libc::SYS_flock) => (true, false),
            Some(libc::SYS_fcntl) => (false, true),
            _ => (true, true),
        },
    };
    Wanted { flock, range: fcntl.then_some(range) }
}

pub fn kernel_range(start: u64, end: u64) -> Range {
    Range { start, end: if end >= KERNEL_END { TO_THE_END } else { end } }
}

pub fn to_kernel(range: Range) -> (u64, u64) {
    (range.start.min(KERNEL_END), range.end.min(KERNEL_END))
}

pub fn lock_kind(kind: i32) -> LockKind {
    match kind {
        libc::F_RDLCK => LockKind::Shared,
        libc::F_WRLCK => LockKind::Exclusive,
        _ => LockKind::Unlock,
    }
}

/// The system call that a thread is in; `None` where this process may not know.
fn system_call(tid: u32) -> Option<i64> {
    if tid == 0 {
        return None;
    }
    for _ in 0..LOOKS_MAX {
        let text = std::fs::read_to_string(format!("/proc/{tid}/syscall")).ok()?;
        match text.split_whitespace().next() {
            // It has sent its request and is not asleep yet.
            Some("running") => std::thread::sleep(std::time::Duration::from_micros(LOOK_US)),
            number => return number?.parse().ok(),
        }
    }
    None
}

fn is_missing<T>(outcome: &Result<T>) -> bool {
    matches!(outcome, Err(e) if matches!(e.errno(), libc::ENOSYS | libc::EOPNOTSUPP))
}

fn held(owner: u64, handle: Handle, kind: LockKind, range: Range) -> Held {
    Held { range, level: Level::from(kind), holder: Holder { session: 0, owner }, handle }
}

impl Locks {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never waits. Errors: EAGAIN, ENOLCK, the tree's.
    fn set(&self, tree: &dyn Tree, cx: &Cx, request: Request) -> Result<()> {
        let Request { node, handle, owner, kind, wanted } = request;
        let at = (node, handle);
        let flock = LockRequest { kind, owner, range: None };
        if wanted.flock {
            self.set_flock(tree, cx, at, flock)?;
        }
        if wanted.range.is_none() {
            return Ok(());
        }
        match self.set_range(tree, cx, at, LockRequest { range: wanted.range, ..flock }) {
            // Not opened for what fcntl asks of it: it was flock that was meant.
            Err(e) if wanted.flock && e.errno() == libc::EBADF => Ok(()),
            Err(e) if wanted.flock && kind != LockKind::Unlock => {
                let _ =
                    self.set_flock(tree, cx, at, LockRequest { kind: LockKind::Unlock, ..flock });
                Err(e)
            }
            outcome => outcome,
        }
    }

    fn set_flock(
        &self,
        tree: &dyn Tree,
        cx: &Cx,
        (node, handle): (NodeId, Handle),
        request: LockRequest,
    ) -> Result<()> {
        if request.kind == LockKind::Unlock {
            if !self.state().flocks.holds(node, request.owner) {
                return Ok(());
            }
            tree.lock(cx, handle, request)?;
            self.state().flocks.forget(node, request.owner);
            return Ok(());
        }
        self.state().flocks.add(node, request.owner, handle)?;
        tree.lock(cx, handle, request)
    }

    fn set_range(
        &self,
        tree: &dyn Tree,
        cx: &Cx,
        (node, handle): (NodeId, Handle),
        request: LockRequest,
    ) -> Result<()> {
        let LockRequest { kind, owner, range } = request;
        let Some(range) = range else { return Ok(()) };
        if kind != LockKind::Unlock {
            self.state().ranges.add(node, owner, handle)?;
        } else if !self.state().ranges.holds(node, owner) {
            return Ok(());
        }
        let outcome = tree.lock(cx, handle, request);
        if !is_missing(&outcome) {
            return outcome;
        }
        let mut s = self.state();
        let (own, new) = (s.own.entry(node).or_default(), held(owner, handle, kind, range));
        if own.clash(&new).is_some() {
            return Err(Error::from_errno(libc::EAGAIN, "locked by another owner"));
        }
        if own.len() >= RANGES_MAX && kind != LockKind::Unlock {
            return Err(Error::from_errno(libc::ENOLCK, "too many locks on this file"));
        }
        own.set(new);
        if own.is_empty() {
            s.own.remove(&node);
        }
        Ok(())
    }

    /// What would bar this lock of a range.
    pub fn test(
        &self,
        tree: &dyn Tree,
        cx: &Cx,
        (node, handle): (NodeId, Handle),
        owner: u64,
        kind: LockKind,
        range: Range,
    ) -> Result<Option<(LockKind, Range)>> {
        let request = LockRequest { kind, owner, range: Some(range) };
        let outcome = tree.test_lock(cx, handle, request);
        if !is_missing(&outcome) {
            let found = outcome?;
            return Ok(found.map(|l| (l.kind, l.range.unwrap_or(kernel_range(0, u64::MAX)))));
        }
        let found = self
            .state()
            .own
            .get(&node)
            .and_then(|own| own.clash(&held(owner, handle, kind, range)));
        Ok(found.map(|h| match h.level {
            Level::Exclusive => (LockKind::Exclusive, h.range),
            Level::Shared | Level::Free => (LockKind::Shared, h.range),
        }))
    }

    /// A process closed a descriptor: its locks on the file end, through whichever it took them.
    pub fn closed(&self, tree: &dyn Tree, cx: &Cx, (node, handle): (NodeId, Handle), owner: u64) {
        if !self.state().ranges.holds(node, owner) {
            return;
        }
        let range = Some(Range { start: 0, end: TO_THE_END });
        let all = LockRequest { kind: LockKind::Unlock, owner, range };
        // What cannot be given back now goes with its handle.
        let outcome = self.set_range(tree, cx, (node, handle), all);
        if let Err(e) = outcome {
            log::debug!("unlocking what was closed: {e}");
        }
        self.state().ranges.forget(node, owner);
    }

    /// A handle is released, and what was locked through it with it.
    pub fn released(&self, node: NodeId, handle: Handle) {
        let mut s = self.state();
        s.flocks.release(node, handle);
        s.ranges.release(node, handle);
        if let Some(own) = s.own.get_mut(&node) {
            own.release(handle);
            if own.is_empty() {
                s.own.remove(&node);
            }
        }
    }
}

/// Locks, and returns when the kernel believes nothing older than the lock.
fn lock(
    tree: &dyn Tree,
    locks: &Locks,
    changes: &Changes,
    cx: &Cx,
    request: Request,
) -> Result<()> {
    locks.set(tree, cx, request)?;
    let node = request.node;
    if request.kind == LockKind::Unlock {
        return Ok(());
    }
    if !tree.is_live() {
        // Nobody told what others did until now.
        changes.add(Event::Data { node, generation: None });
    }
    changes.settle(node, cx.deadline, &cx.cancel)
}

impl Adapter {
    /// `wait`: until the holder lets go, without a thread of its own.
    pub fn set_lock(
        &self,
        tid: u32,
        (node, handle): (NodeId, Handle),
        owner: u64,
        lock: (i32, u64, u64),
        wait: bool,
        reply: ReplyEmpty,
    ) {
        let (kind, start, end) = lock;
        let wanted = wanted(tid, kind, start, end);
        let request = Request { node, handle, owner, kind: lock_kind(kind), wanted };
        let call = || self::lock(&*self.tree, &self.locks, &self.changes, &self.cx(), request);
        match self.counted(call) {
            Ok(()) => reply.ok(),
            Err(e) if wait && e.code == Code::Again => self.lock_later(tid, request, reply),
            Err(e) => fail(reply, &e),
        }
    }

    fn lock_later(&self, tid: u32, request: Request, reply: ReplyEmpty) {
        let (tree, locks, changes) = (self.tree.clone(), self.locks.clone(), self.changes.clone());
        let (who, timeout_ms) = (self.who.clone(), self.timeout_ms);
        let mut reply = Some(reply);
        let pause = Notify::default();
        let wait = move || pause.wait(pause.seen(), Deadline::after_ms(LOCK_RETRY_MS));
        let first = wait();
        let retry = move |go_on: Result<()>| {
            let cx = Cx::new(who.clone(), Deadline::after_ms(timeout_ms));
            let again = || lock(&*tree, &locks, &changes, &cx, request);
            match go_on.and_then(|()| guarded(again)) {
                Err(e) if e.code == Code::Again => return Some(wait()),
                Ok(()) => reply.take()?.ok(),
                Err(e) => fail(reply.take()?, &e),
            }
            None
        };
        self.waiting.park(tid, first, Box::new(retry));
    }

    pub fn find_lock(
        &self,
        at: (NodeId, Handle),
        owner: u64,
        (kind, start, end): (i32, u64, u64),
        reply: ReplyLock,
    ) {
        let (kind, range) = (lock_kind(kind), kernel_range(start, end));
        let call = || self.locks.test(&*self.tree, &self.cx(), at, owner, kind, range);
        match self.counted(call) {
            Err(e) => fail(reply, &e),
            Ok(None) => reply.locked(start, end, libc::F_UNLCK, 0),
            Ok(Some((kind, range))) => {
                let exclusive = kind == LockKind::Exclusive;
                let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
                let (start, end) = to_kernel(range);
                // Whose process it is only its own host knows.
                reply.locked(start, end, kind, 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::Synthetic;
    use crate::vfs::synthetic::{dir, fixed};

    #[test]
    fn parts_and_unlocking_need_no_look_at_the_process() {
        let part = wanted(0, libc::F_WRLCK, 5, KERNEL_END);
        let to_the_end = Range { start: 5, end: TO_THE_END };
        assert_eq!(part, Wanted { flock: false, range: Some(to_the_end) });
        assert_eq!(to_kernel(to_the_end), (5, KERNEL_END));
        for kind in [libc::F_UNLCK, libc::F_RDLCK] {
            let whole = wanted(0, kind, 0, KERNEL_END);
            assert!(whole.flock && whole.range.is_some(), "nobody to look at");
        }
    }

    #[test]
    fn without_locks_in_the_tree_processes_of_the_mount_bar_each_other() {
        let tree = Synthetic::new(dir([("f", fixed("x"))])).unwrap();
        let (locks, node) = (Locks::default(), NodeId(7));
        let cx = Cx::internal(Deadline::never());
        let set = |handle, owner, kind, start, end| {
            let wanted = Wanted { flock: false, range: Some(Range { start, end }) };
            locks.set(&tree, &cx, Request { node, handle: Handle(handle), owner, kind, wanted })
        };
        let barred = |outcome: Result<()>| outcome.unwrap_err().errno() == libc::EAGAIN;
        let missing = tree.lock(
            &cx,
            Handle(1),
            LockRequest { kind: LockKind::Shared, owner: 1, range: Some(kernel_range(0, 1)) },
        );
        assert!(is_missing(&missing));
        set(1, 1, LockKind::Exclusive, 0, 9).unwrap();
        assert!(barred(set(2, 2, LockKind::Shared, 9, 9)));
        let at = (node, Handle(2));
        let found = locks.test(&tree, &cx, at, 2, LockKind::Shared, kernel_range(0, 20)).unwrap();
        assert_eq!(found, Some((LockKind::Exclusive, Range { start: 0, end: 9 })));
        locks.closed(&tree, &cx, (node, Handle(3)), 1);
        set(2, 2, LockKind::Exclusive, 0, TO_THE_END).unwrap();
        assert!(barred(set(1, 1, LockKind::Shared, 100, 100)));
        locks.released(node, Handle(2));
        set(1, 1, LockKind::Shared, 100, 100).unwrap();
    }
}
