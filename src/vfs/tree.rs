//! The one trait. Small, synchronous, inode-shaped (as FUSE and the node protocol are): a node is
//! found by looking its name up in its parent, and then spoken of by id.

use super::{
    Allocate, Attr, Caps, Cx, DirPage, EventSink, Handle, LockRequest, NodeId, OpenFlags, Opened,
    Read, ReadDir, RenameFlags, SeekTo, SetAttr, StatFs, Watch, Written, XattrFlags,
};
use crate::base::{Error, Name, Result, TreePath};
use bytes::Bytes;

/// A tree of files. What an implementation does not offer answers ENOSYS.
///
/// Rules that hold for every implementation, and that the conformance suite checks:
/// - ids are stable: looking the same file up again gives the same [`NodeId`];
/// - errors are errnos as POSIX gives them for the same call on a local directory;
/// - a call changes everything it should or nothing;
/// - permission checks happen here, on every call, so that they hold on every surface;
/// - a change is announced to watchers before the call that made it returns;
/// - `..` never reaches a tree, and `.` and `..` are never listed: whoever shows them makes them.
pub trait Tree: Send + Sync {
    fn caps(&self) -> Caps;

    fn lookup(&self, cx: &Cx, dir: NodeId, name: Name<'_>) -> Result<Attr>;

    fn getattr(&self, cx: &Cx, node: NodeId) -> Result<Attr>;

    /// `handle`, where given, is an open file of that node (ftruncate works on unlinked files).
    fn setattr(&self, _: &Cx, _: NodeId, _handle: Option<Handle>, _: &SetAttr) -> Result<Attr> {
        unsupported()
    }

    /// One page of a directory, in a stable order. An entry that stays is returned exactly once by a
    /// walk through the pages, whatever else comes and goes in between.
    fn readdir(&self, cx: &Cx, at: ReadDir) -> Result<DirPage>;

    fn open(&self, cx: &Cx, node: NodeId, flags: OpenFlags) -> Result<Opened>;

    /// Opens a regular file, made with `mode` when the name is free; with `exclusive`, EEXIST when
    /// it is not.
    fn create(
        &self,
        _: &Cx,
        _dir: NodeId,
        _: Name<'_>,
        _mode: u32,
        _: OpenFlags,
    ) -> Result<(Attr, Opened)> {
        unsupported()
    }

    /// Up to `len` bytes at `offset`.
    fn read(&self, cx: &Cx, handle: Handle, offset: u64, len: u32) -> Result<Read>;

    /// As [`Tree::read`], if the answer is at hand: without waiting for a disk, a lock or a peer. `None` says
    /// nothing but that; whoever asks must be able to call `read` then.
    fn read_at_hand(&self, _: &Cx, _: Handle, _offset: u64, _len: u32) -> Option<Read> {
        None
    }

    /// Writes all of `data` at `offset` (at the end, whatever `offset` says, with `append`), or fails;
    /// fewer only where the device is full.
    fn write(&self, _: &Cx, _: Handle, _offset: u64, _data: Bytes) -> Result<Written> {
        unsupported()
    }

    /// A descriptor of the file was closed: what was written behind is written now, errors are told
    /// now. A message file takes what was written since the last flush as one message, if it has not
    /// taken it already, and answers with [`Written::extra`].
    fn flush(&self, _: &Cx, _: Handle) -> Result<Written> {
        Ok(Written::default())
    }

    /// Returns when the file is on stable storage.
    fn fsync(&self, _: &Cx, _: Handle, _data_only: bool) -> Result<()> {
        Ok(())
    }

    /// Reserves, clears, or takes out a range of the file (fallocate(2)).
    fn allocate(&self, _: &Cx, _: Handle, _offset: u64, _len: u64, _: Allocate) -> Result<()> {
        unsupported()
    }

    /// The next data or hole at or behind `offset` (lseek(2)). Errors: ENXIO when there is none.
    fn seek(&self, _: &Cx, _: Handle, _offset: u64, _: SeekTo) -> Result<u64> {
        unsupported()
    }

    /// Copies up to `len` bytes between two open files, as far as one call gets; 0 at the end.
    fn copy_range(
        &self,
        _: &Cx,
        _from: (Handle, u64),
        _to: (Handle, u64),
        _len: u64,
    ) -> Result<Written> {
        unsupported()
    }

    /// Closes the handle. Always succeeds for a valid one; nothing may be lost here that
    /// [`Tree::flush`] did not report.
    fn release(&self, cx: &Cx, handle: Handle) -> Result<()>;

    fn mkdir(&self, _: &Cx, _dir: NodeId, _: Name<'_>, _mode: u32) -> Result<Attr> {
        unsupported()
    }

    fn unlink(&self, _: &Cx, _dir: NodeId, _: Name<'_>) -> Result<()> {
        unsupported()
    }

    fn rmdir(&self, _: &Cx, _dir: NodeId, _: Name<'_>) -> Result<()> {
        unsupported()
    }

    fn rename(
        &self,
        _: &Cx,
        _from: (NodeId, Name<'_>),
        _to: (NodeId, Name<'_>),
        _: RenameFlags,
    ) -> Result<()> {
        unsupported()
    }

    fn link(&self, _: &Cx, _node: NodeId, _dir: NodeId, _: Name<'_>) -> Result<Attr> {
        unsupported()
    }

    fn symlink(&self, _: &Cx, _dir: NodeId, _: Name<'_>, _target: &[u8]) -> Result<Attr> {
        unsupported()
    }

    fn readlink(&self, _: &Cx, _: NodeId) -> Result<Bytes> {
        unsupported()
    }

    fn getxattr(&self, _: &Cx, _: NodeId, _name: &[u8]) -> Result<Bytes> {
        unsupported()
    }

    fn setxattr(
        &self,
        _: &Cx,
        _: NodeId,
        _name: &[u8],
        _value: &[u8],
        _: XattrFlags,
    ) -> Result<()> {
        unsupported()
    }

    fn listxattr(&self, _: &Cx, _: NodeId) -> Result<Vec<Vec<u8>>> {
        unsupported()
    }

    fn removexattr(&self, _: &Cx, _: NodeId, _name: &[u8]) -> Result<()> {
        unsupported()
    }

    /// Never waits; EAGAIN when another owner holds the lock. Locks of a range belong to the owner and the
    /// file, not to the handle: unlocking through any handle of the file gives them back. What is
    /// still held through a handle goes when that is released.
    fn lock(&self, _: &Cx, _: Handle, _: LockRequest) -> Result<()> {
        unsupported()
    }

    /// A lock that would keep this one from being granted; its owner is not told.
    fn test_lock(&self, _: &Cx, _: Handle, _: LockRequest) -> Result<Option<LockRequest>> {
        unsupported()
    }

    fn statfs(&self, cx: &Cx, node: NodeId) -> Result<StatFs>;

    /// Where a node is, as far as the tree knows: its path when it was last looked up, or renamed here.
    fn path(&self, _: &Cx, _: NodeId) -> Result<TreePath> {
        unsupported()
    }

    /// A hint: nobody uses this id again unless the tree tells it anew. Trees bound what they keep of
    /// nodes with or without it; an id that had to go answers ESTALE, and the caller looks it up again.
    fn forget(&self, _: NodeId) {}

    /// True while every change, whoever makes it, reaches the watchers: what they remember stays true
    /// until they hear otherwise. [`super::Event::Resync`] is told when it ends.
    fn is_live(&self) -> bool {
        false
    }

    /// Calls `sink` for every change from now on.
    fn watch(&self, _: EventSink) -> Result<Watch> {
        unsupported()
    }
}

fn unsupported<T>() -> Result<T> {
    Err(Error::from_errno(libc::ENOSYS, "operation not supported here"))
}
