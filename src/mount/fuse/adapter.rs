//! A tree as the kernel's requests see it: how a call is run and answered, how long the kernel may believe
//! the answer, and what becomes of a request that has to wait.

use super::convert;
use super::dirs::OpenDirs;
use super::executing::Executing;
use super::invalidate::Changes;
use super::locks::Locks;
use super::threads::Threads;
use super::waiting::Waiting;
use crate::base::{Cancel, Code, Deadline, Error, Name, Result, Wait};
use crate::mount::copy::Across;
use crate::mount::options::View;
use crate::vfs::{
    Attr, Caller, Cx, Event, FileKind, Handle, NodeId, Opened, Read, RenameFlags, StatFs, Tree,
    Who, Written,
};
use bytes::Bytes;
use fuser::{
    Errno, FopenFlags, Generation, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr,
};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Largest read or write in one request.
pub const TRANSFER_MAX: u32 = 1 << 20;
/// Requests the kernel sends ahead (read-ahead, write-back, direct I/O in parallel).
pub const BACKGROUND_MAX: u16 = 64;
/// Files whose content is kept from one open to the next, at most.
const CONTENTS_MAX: usize = 1 << 16;
/// How long a file that is opened waits for the kernel to forget what it knew.
const SETTLE_MS: u64 = 1_000;
/// Ids are never used for another file while a tree lives.
pub const GENERATION: Generation = Generation(0);

/// What the FUSE session calls.
pub struct Front {
    pub adapter: Arc<Adapter>,
    pub threads: Arc<Threads>,
}

pub struct Adapter {
    pub tree: Arc<dyn Tree>,
    pub across: Option<Across>,
    pub who: Arc<Who>,
    pub timeout_ms: u64,
    pub view: View,
    /// Ends what is still running after the mount is gone.
    pub cancel: Cancel,
    pub waiting: Arc<Waiting>,
    pub dirs: OpenDirs,
    /// Operations going on, without those that wait.
    pub running: Arc<AtomicUsize>,
    /// Changes made by the kernel's own requests are told apart by it.
    pub caller: Caller,
    pub changes: Changes,
    pub contents: Contents,
    pub locks: Arc<Locks>,
    pub executing: Executing,
}

/// Which content of a file the kernel may hold in its page cache: the one it was opened with last.
#[derive(Default)]
pub struct Contents(Mutex<HashMap<NodeId, u64>>);

impl Contents {
    /// Whether the kernel's content is the one that is opened now; notes that it will be.
    fn is_kept(&self, node: NodeId, generation: u64) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= CONTENTS_MAX {
            known.clear();
        }
        known.insert(node, generation) == Some(generation)
    }

    fn forget(&self, node: NodeId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&node);
    }
}

/// A reply that can say that it failed.
pub trait Fail: Send + 'static {
    fn fail(self, e: Errno);
}

macro_rules! fail {
    ($($reply:ident)*) => {
        $(impl Fail for $reply { fn fail(self, e: Errno) { self.error(e) } })*
    };
}
fail!(ReplyAttr ReplyCreate ReplyData ReplyDirectory ReplyDirectoryPlus ReplyEmpty ReplyEntry
      ReplyLock ReplyLseek ReplyOpen ReplyStatfs ReplyWrite ReplyXattr);

/// Runs a call; a panic in a tree is an error of that call.
pub fn guarded<T>(call: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
        log::error!("a file operation panicked; it was answered with EIO");
        Err(Error::new(Code::Eio, "the operation panicked"))
    })
}

pub fn fail<R: Fail>(reply: R, e: &Error) {
    log::debug!("answered {}: {e}", e.errno());
    reply.fail(convert::errno(e));
}

pub fn empty(reply: ReplyEmpty, (): ()) {
    reply.ok();
}

pub fn data(reply: ReplyData, data: Bytes) {
    reply.data(&data);
}

pub fn written(reply: ReplyWrite, written: Written) {
    reply.written(u32::try_from(written.n).unwrap_or(u32::MAX));
}

pub fn space(reply: ReplyStatfs, s: StatFs) {
    reply.statfs(s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namemax, s.frsize);
}

/// `size`: what the caller has room for; 0 for one who only asks how much it needs.
pub fn xattr(size: u32) -> impl FnOnce(ReplyXattr, Bytes) {
    move |reply, value| match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(&value),
        Ok(_) if size > 0 => reply.error(Errno::ERANGE),
        _ => reply.error(Errno::E2BIG),
    }
}

/// Whether an attribute belongs to the host alone; answered EOPNOTSUPP without asking the tree. `ls -l`
/// asks for such of every file, until it hears that there are none here.
pub fn is_hosts_xattr(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b"security.") || name.starts_with(b"system.")
}

impl Front {
    /// Runs a call and hands its outcome to the reply.
    pub fn answer<R: Fail, T>(
        &self,
        reply: R,
        call: impl FnOnce(&Adapter) -> Result<T> + Send + 'static,
        done: impl FnOnce(R, T) + Send + 'static,
    ) {
        self.run(move |adapter| match adapter.counted(|| call(adapter)) {
            Ok(value) => done(reply, value),
            Err(e) => fail(reply, &e),
        });
    }

    /// As [`Front::answer`], for a single call of the tree.
    pub fn ask<R: Fail, T>(
        &self,
        reply: R,
        done: impl FnOnce(R, T) + Send + 'static,
        call: impl FnOnce(&dyn Tree, &Cx) -> Result<T> + Send + 'static,
    ) {
        self.answer(reply, |adapter| call(&*adapter.tree, &adapter.cx()), done);
    }

    /// Lets a request be answered, on whichever thread.
    pub fn run(&self, request: impl FnOnce(&Adapter) + Send + 'static) {
        let adapter = self.adapter.clone();
        self.threads.run(move || request(&adapter));
    }
}

impl Adapter {
    /// Files that are not like files on disk are never cached. The others keep the kernel's pages from one
    /// open to the next only if they are what was written last (close-to-open).
    pub fn fopen(&self, node: NodeId, opened: &Opened) -> FopenFlags {
        if opened.kind != FileKind::Plain {
            return FopenFlags::FOPEN_DIRECT_IO;
        }
        let kept = self.contents.is_kept(node, opened.generation);
        if kept && !self.changes.is_pending(node) {
            FopenFlags::FOPEN_KEEP_CACHE
        } else {
            FopenFlags::empty()
        }
    }

    /// Waits until the kernel has heard of what others did to a file before it was opened: it would
    /// read no further than the size that it remembers (close-to-open). A kernel that is slow to take it
    /// in, with a read under way, holds up no open for long.
    pub fn settle(&self, cx: &Cx, node: NodeId, opened: &Opened) {
        if opened.kind == FileKind::Plain {
            let deadline = cx.deadline.min(Deadline::after_ms(SETTLE_MS));
            let _ = self.changes.settle(node, deadline, &cx.cancel);
        }
    }

    pub fn rename(
        &self,
        from: (NodeId, Name<'_>),
        to: (NodeId, Name<'_>),
        flags: RenameFlags,
    ) -> Result<()> {
        match (self.tree.rename(&self.cx(), from, to, flags), &self.across) {
            (Err(e), Some(across)) if e.errno() == libc::EXDEV => {
                let node = across.rename(&self.cancel, from, to, flags)?;
                // What the kernel has of the file is of where it was.
                self.changes.add(Event::All { node, generation: None });
                Ok(())
            }
            (outcome, _) => outcome,
        }
    }

    pub fn forget(&self, node: NodeId) {
        self.contents.forget(node);
        self.tree.forget(node);
    }

    pub fn entry(&self) -> impl FnOnce(ReplyEntry, Attr) + use<> {
        let view = self.view;
        move |reply, a| reply.entry(&view.attr_timeout, &convert::attr(&view, &a), GENERATION)
    }

    pub fn attributes(&self) -> impl FnOnce(ReplyAttr, Attr) + use<> {
        let view = self.view;
        move |reply, a| reply.attr(&view.attr_timeout, &convert::attr(&view, &a))
    }

    pub fn counted<T>(&self, call: impl FnOnce() -> Result<T>) -> Result<T> {
        self.running.fetch_add(1, Ordering::AcqRel);
        let outcome = guarded(|| self.caller.run(call));
        self.running.fetch_sub(1, Ordering::AcqRel);
        outcome
    }

    pub fn cx(&self) -> Cx {
        Cx {
            who: self.who.clone(),
            deadline: Deadline::after_ms(self.timeout_ms),
            cancel: self.cancel.clone(),
            correlation_id: None,
        }
    }

    /// Reads for as long as the file makes its reader wait, without a thread of its own.
    pub fn read_later(&self, tid: u32, at: (Handle, u64, u32), wait: Wait, reply: ReplyData) {
        let (tree, who, timeout_ms) = (self.tree.clone(), self.who.clone(), self.timeout_ms);
        let cancel = self.cancel.clone();
        let mut reply = Some(reply);
        let retry = move |go_on: Result<()>| {
            let deadline = Deadline::after_ms(timeout_ms);
            let cx =
                Cx { who: who.clone(), deadline, cancel: cancel.clone(), correlation_id: None };
            match go_on.and_then(|()| guarded(|| tree.read(&cx, at.0, at.1, at.2))) {
                Ok(Read::Wait(wait)) => return Some(wait),
                Ok(Read::Data { bytes, .. }) => reply.take()?.data(&bytes),
                Err(e) => fail(reply.take()?, &e),
            }
            None
        };
        self.waiting.park(tid, wait, Box::new(retry));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use convert::node;
    use fuser::INodeNo;

    #[test]
    fn the_root_of_a_tree_is_the_root_of_a_mount() {
        assert_eq!(node(INodeNo::ROOT), NodeId::ROOT);
    }

    #[test]
    fn attributes_for_the_host_alone_are_not_asked_for() {
        let hosts = |name: &str| is_hosts_xattr(OsStr::new(name));
        assert!(hosts("security.selinux") && hosts("system.posix_acl_access"));
        assert!(!hosts("user.mime"));
    }
}
