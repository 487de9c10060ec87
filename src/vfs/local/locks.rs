//! Locks of byte ranges. Our clients bar each other by a table; what the table comes to is set on the host
//! as locks of one open file description per file (F_OFD_SETLK), so that other processes of the host
//! are barred as well, and bar us. Never waits.

use super::file::OpenFile;
use super::{Core, sys};
use crate::base::{Error, Result};
use crate::vfs::ranges::{Change, Held, Holder, Level, Ranges};
use crate::vfs::{Cx, Handle, LockKind, LockRequest, NodeId, Range};
use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Ranges locked in one tree, at most.
const RANGES_MAX: usize = 65_536;

#[derive(Default)]
pub(super) struct Locks {
    files: Mutex<HashMap<NodeId, Arc<Mutex<FileLocks>>>>,
    count: AtomicUsize,
}

/// The locks of one file, and the descriptor that has them on the host.
#[derive(Default)]
struct FileLocks {
    ranges: Ranges,
    host: Option<File>,
}

/// What a request asks for, in the words of the table.
fn wanted(cx: &Cx, handle: Handle, request: &LockRequest, range: Range) -> Held {
    let holder = Holder { session: cx.who.session, owner: request.owner };
    Held { range, level: request.kind.into(), holder, handle }
}

fn taken() -> Error {
    Error::from_errno(libc::EAGAIN, "locked by another owner")
}

impl Locks {
    /// Errors: EAGAIN, EINVAL, ENOLCK past [`RANGES_MAX`]; EBADF for a lock that the handle's access does
    /// not allow (fcntl(2)).
    pub fn set(
        &self,
        cx: &Cx,
        (node, handle): (NodeId, Handle),
        file: &OpenFile,
        request: &LockRequest,
        range: Range,
    ) -> Result<()> {
        check(range)?;
        let new = wanted(cx, handle, request, range);
        match new.level {
            Level::Free => {}
            Level::Shared => file.readable()?,
            Level::Exclusive => file.writable()?,
        }
        self.with(node, |locks| {
            if locks.ranges.clash(&new).is_some() {
                return Err(taken());
            }
            let mut after = locks.ranges.clone();
            after.set(new);
            let full = self.count.load(Ordering::Relaxed) >= RANGES_MAX;
            if full && after.len() > locks.ranges.len() {
                return Err(Error::from_errno(libc::ENOLCK, "too many locks in this export"));
            }
            if locks.host.is_none() && new.level != Level::Free {
                locks.host = Some(file.for_locks()?);
            }
            if let Some(host) = &locks.host {
                apply(host, &locks.ranges.changes(&after, range))?;
            }
            locks.ranges = after;
            Ok(())
        })
    }

    /// What bars the lock: another client's, or a process's of the host.
    pub fn test(
        &self,
        cx: &Cx,
        (node, handle): (NodeId, Handle),
        file: &OpenFile,
        request: &LockRequest,
        range: Range,
    ) -> Result<Option<LockRequest>> {
        check(range)?;
        let new = wanted(cx, handle, request, range);
        if new.level == Level::Free {
            return Err(Error::invalid("kind must be shared or exclusive"));
        }
        let found = |level, range| {
            let kind =
                if level == Level::Exclusive { LockKind::Exclusive } else { LockKind::Shared };
            LockRequest { kind, owner: 0, range: Some(range) }
        };
        self.with(node, |locks| {
            if let Some(other) = locks.ranges.clash(&new) {
                return Ok(Some(found(other.level, other.range)));
            }
            // Our own locks do not bar the descriptor that has them.
            let host = locks.host.as_ref().unwrap_or(&file.file);
            Ok(sys::test_range(host, new.level, range)?.map(|(level, range)| found(level, range)))
        })
    }

    /// A handle is closed.
    pub fn release(&self, node: NodeId, handle: Handle) {
        if !self.files().contains_key(&node) {
            return;
        }
        let _ = self.with(node, |locks| {
            let mut after = locks.ranges.clone();
            after.release(handle);
            if let Some(host) = &locks.host {
                let all = Range { start: 0, end: u64::MAX };
                let _ = apply(host, &locks.ranges.changes(&after, all));
            }
            locks.ranges = after;
            Ok(())
        });
    }

    fn files(&self) -> MutexGuard<'_, HashMap<NodeId, Arc<Mutex<FileLocks>>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works on the locks of a file; they are forgotten when there are none left.
    fn with<T>(&self, node: NodeId, f: impl FnOnce(&mut FileLocks) -> Result<T>) -> Result<T> {
        let locks = self.files().entry(node).or_default().clone();
        let outcome = {
            let mut locks = locks.lock().unwrap_or_else(PoisonError::into_inner);
            let before = locks.ranges.len();
            let outcome = f(&mut locks);
            let after = locks.ranges.len();
            self.count.fetch_add(after, Ordering::Relaxed);
            self.count.fetch_sub(before, Ordering::Relaxed);
            if after == 0 {
                locks.host = None;
            }
            outcome
        };
        let mut files = self.files();
        // Two know it: the table and this call. Nobody can come to know it now.
        let is_empty = |l: &Arc<Mutex<FileLocks>>| {
            l.lock().unwrap_or_else(PoisonError::into_inner).ranges.is_empty()
        };
        if Arc::strong_count(&locks) == 2 && is_empty(&locks) {
            files.remove(&node);
        }
        outcome
    }
}

fn check(range: Range) -> Result<()> {
    if range.end < range.start || i64::try_from(range.start).is_err() {
        return Err(Error::invalid("start must be below 2^63, and end not before it"));
    }
    Ok(())
}

/// Makes the host's locks those of the table: first what becomes stronger, which may fail and is then taken
/// back, then what becomes weaker.
fn apply(host: &File, changes: &[Change]) -> Result<()> {
    let (stronger, weaker): (Vec<&Change>, Vec<&Change>) =
        changes.iter().partition(|c| c.after > c.before);
    for (done, c) in stronger.iter().enumerate() {
        if let Err(e) = sys::set_range(host, c.after, c.range) {
            for c in &stronger[..done] {
                let _ = sys::set_range(host, c.before, c.range);
            }
            return Err(if e.errno() == libc::EACCES { taken() } else { e });
        }
    }
    for c in weaker {
        // Fails for want of memory alone. The host keeps what the table does not, until the file has
        // no locks left.
        let _ = sys::set_range(host, c.after, c.range);
    }
    Ok(())
}

impl Core {
    pub(super) fn set_lock(&self, cx: &Cx, handle: Handle, request: LockRequest) -> Result<()> {
        let (node, file) = self.handles.get(handle)?;
        match request.range {
            None => file.lock(request)?,
            Some(range) => {
                file.ranges_locked.store(true, Ordering::SeqCst);
                self.locks.set(cx, (node, handle), &file, &request, range)?;
                // Closed in the meantime: nobody would give it back.
                if let Err(e) = self.handles.get(handle) {
                    self.locks.release(node, handle);
                    return Err(e);
                }
            }
        }
        if request.kind != LockKind::Unlock {
            self.tell_state(node, &file.stat()?);
        }
        Ok(())
    }

    /// Errors: EINVAL for a lock without a range: flock(2) does not tell.
    pub(super) fn find_lock(
        &self,
        cx: &Cx,
        handle: Handle,
        request: &LockRequest,
    ) -> Result<Option<LockRequest>> {
        let (node, file) = self.handles.get(handle)?;
        let range = request.range.ok_or_else(|| Error::invalid("start is required"))?;
        self.locks.test(cx, (node, handle), &file, request, range)
    }

    pub(super) fn close(&self, handle: Handle) -> Result<()> {
        let (node, file) = self.handles.get(handle)?;
        self.handles.remove(handle)?;
        // The table of a file may be long, and its handles many.
        if file.ranges_locked.load(Ordering::SeqCst) {
            self.locks.release(node, handle);
        }
        Ok(())
    }
}
