//! A directory of the host, and nothing outside it. Everything starts at the descriptor of the root
//! (openat2 with RESOLVE_BENEATH, see `sys`); no path is ever compared with a prefix. Ids stand for
//! inodes: one that was moved, replaced or removed behind our back is found again or answers ESTALE,
//! but never names another file. The host's users and permissions are those of this process.

mod change;
mod content;
mod file;
mod listing;
mod locks;
mod phases;
mod resolve;
mod states;
mod sys;
mod watch;

use super::ids::{self, Ids, Numbering};
use super::watchers::Watchers;
use super::{
    Allocate, Attr, Caps, Cx, DirPage, Event, EventSink, Handle, LockRequest, NodeId, OpenFlags,
    Opened, Read, ReadDir, RenameFlags, SeekTo, SetAttr, StatFs, Tree, Watch, Written, XattrFlags,
};
use crate::base::{Error, Name, Result, ResultExt, TreePath};
use bytes::Bytes;
use file::OpenFile;
use resolve::{Dirs, Node};
use std::ffi::OsStr;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::sync::{Arc, Once};
use sys::{FileKey, Stat};
use watch::Watching;

/// Entries of this name do not exist for clients (spec: fs 4).
const HIDDEN: &str = ".spiderweb-sandbox";

#[derive(Clone, Copy, Debug)]
pub struct LocalOptions {
    pub read_only: bool,
    /// Nodes remembered; see [`ids::NODES_MAX`].
    pub nodes_max: usize,
    /// Directories watched for changes by others at once.
    pub watches_max: usize,
}

impl Default for LocalOptions {
    fn default() -> LocalOptions {
        LocalOptions {
            read_only: false,
            nodes_max: ids::NODES_MAX,
            watches_max: watch::WATCHES_MAX,
        }
    }
}

pub struct Local(Arc<Core>);

/// What the thread that watches shares with the tree.
pub struct Core {
    root: Arc<OwnedFd>,
    root_key: FileKey,
    read_only: bool,
    ids: Ids<FileKey>,
    dirs: Dirs,
    walks: listing::Walks,
    locks: locks::Locks,
    handles: super::handles::Handles<OpenFile>,
    watchers: Watchers,
    /// `None`: changes behind our back are not told.
    watching: Option<Watching>,
    start: Once,
}

impl Deref for Local {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.0
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        if let Some(watching) = &self.watching {
            watching.nudge();
        }
    }
}

impl Local {
    /// Errors: ENOENT, ENOTDIR; `unsupported` on a system without openat2 (Linux before 5.6) or /proc.
    pub fn open(path: &Path, options: LocalOptions) -> Result<Local> {
        let dir = std::fs::File::open(path).context(path.display())?;
        let root = Arc::new(OwnedFd::from(dir));
        let stat = sys::stat(&root, OsStr::new(""))?;
        if stat.kind() != super::Kind::Dir {
            let e = Error::from_errno(libc::ENOTDIR, "not a directory");
            return Err(e.context(path.display()));
        }
        sys::probe(&root).context(path.display())?;
        let watching = Watching::new(&root, options.watches_max);
        Ok(Local(Arc::new(Core {
            watching,
            start: Once::new(),
            root,
            root_key: stat.key(),
            read_only: options.read_only,
            ids: Ids::new(stat.key(), options.nodes_max, Numbering::Counter),
            dirs: Dirs::default(),
            walks: listing::Walks::default(),
            locks: locks::Locks::default(),
            handles: Default::default(),
            watchers: Watchers::default(),
        })))
    }
}

impl Core {
    /// The attributes of what was just seen at (`dir`, `name`).
    fn attr(&self, dir: NodeId, name: &OsStr, stat: &Stat) -> Attr {
        stat.attr(self.ids.intern(&stat.key(), dir, name))
    }

    /// A directory and a name in it that clients may use.
    fn entry<'n>(&self, dir: NodeId, name: Name<'n>) -> Result<(Node, &'n OsStr)> {
        if name.as_os_str() == HIDDEN {
            return Err(Error::from_errno(libc::ENOENT, "file not found"));
        }
        Ok((self.dir(dir)?, name.as_os_str()))
    }

    /// Errors: EROFS.
    fn writable(&self) -> Result<()> {
        if self.read_only {
            return Err(Error::from_errno(libc::EROFS, "export is read-only"));
        }
        Ok(())
    }

    fn announce(&self, events: &[Event]) {
        self.watchers.announce(events);
    }
}

impl Tree for Local {
    fn caps(&self) -> Caps {
        Caps {
            read_only: self.read_only,
            case_sensitive: true,
            symlink: true,
            xattr: true,
            locks: true,
            native_watch: self.is_live(),
        }
    }

    fn lookup(&self, _: &Cx, dir: NodeId, name: Name<'_>) -> Result<Attr> {
        let (dir, name) = self.entry(dir, name)?;
        Ok(self.attr(dir.id, name, &sys::stat(&dir, name)?))
    }

    fn getattr(&self, _: &Cx, node: NodeId) -> Result<Attr> {
        self.look_around(node);
        Ok(self.node(node)?.stat.attr(node))
    }

    fn setattr(&self, _: &Cx, node: NodeId, handle: Option<Handle>, set: &SetAttr) -> Result<Attr> {
        self.writable()?;
        self.change_attr(node, handle, set)
    }

    fn readdir(&self, cx: &Cx, at: ReadDir) -> Result<DirPage> {
        self.page(cx, at)
    }

    fn open(&self, _: &Cx, node: NodeId, flags: OpenFlags) -> Result<Opened> {
        self.look_around(node);
        self.open_node(&self.node(node)?, flags)
    }

    fn create(
        &self,
        _: &Cx,
        dir: NodeId,
        name: Name<'_>,
        mode: u32,
        flags: OpenFlags,
    ) -> Result<(Attr, Opened)> {
        let (dir, name) = self.entry(dir, name)?;
        self.create_file(&dir, name, mode, flags)
    }

    fn read(&self, _: &Cx, handle: Handle, offset: u64, len: u32) -> Result<Read> {
        self.handles.get(handle)?.1.read(offset, len)
    }

    fn read_at_hand(&self, _: &Cx, handle: Handle, offset: u64, len: u32) -> Option<Read> {
        self.handles.get(handle).ok()?.1.read_at_hand(offset, len)
    }

    fn write(&self, _: &Cx, handle: Handle, offset: u64, data: Bytes) -> Result<Written> {
        self.write_file(handle, offset, &data)
    }

    fn flush(&self, _: &Cx, handle: Handle) -> Result<Written> {
        self.handles.get(handle).map(|_| Written::default())
    }

    fn fsync(&self, _: &Cx, handle: Handle, data_only: bool) -> Result<()> {
        self.handles.get(handle)?.1.sync(data_only)
    }

    fn release(&self, _: &Cx, handle: Handle) -> Result<()> {
        self.close(handle)
    }

    fn mkdir(&self, _: &Cx, dir: NodeId, name: Name<'_>, mode: u32) -> Result<Attr> {
        self.writable()?;
        let (dir, name) = self.entry(dir, name)?;
        self.make_dir(&dir, name, mode)
    }

    fn unlink(&self, _: &Cx, dir: NodeId, name: Name<'_>) -> Result<()> {
        self.writable()?;
        let (dir, name) = self.entry(dir, name)?;
        self.remove(&dir, name, nix::unistd::UnlinkatFlags::NoRemoveDir)
    }

    fn rmdir(&self, _: &Cx, dir: NodeId, name: Name<'_>) -> Result<()> {
        self.writable()?;
        let (dir, name) = self.entry(dir, name)?;
        self.remove(&dir, name, nix::unistd::UnlinkatFlags::RemoveDir)
    }

    fn rename(
        &self,
        _: &Cx,
        from: (NodeId, Name<'_>),
        to: (NodeId, Name<'_>),
        flags: RenameFlags,
    ) -> Result<()> {
        self.writable()?;
        let (from, to) = (self.entry(from.0, from.1)?, self.entry(to.0, to.1)?);
        self.move_entry((&from.0, from.1), (&to.0, to.1), flags)
    }

    fn link(&self, _: &Cx, node: NodeId, dir: NodeId, name: Name<'_>) -> Result<Attr> {
        self.writable()?;
        let (dir, name) = self.entry(dir, name)?;
        self.make_link(&self.node(node)?, &dir, name)
    }

    fn symlink(&self, _: &Cx, dir: NodeId, name: Name<'_>, target: &[u8]) -> Result<Attr> {
        self.writable()?;
        let (dir, name) = self.entry(dir, name)?;
        self.make_symlink(&dir, name, target)
    }

    fn readlink(&self, _: &Cx, node: NodeId) -> Result<Bytes> {
        let node = self.node(node)?;
        if node.stat.kind() != super::Kind::Symlink {
            return Err(Error::from_errno(libc::EINVAL, "not a symlink"));
        }
        Ok(nix::fcntl::readlinkat(&node, "")?.into_vec().into())
    }

    fn getxattr(&self, _: &Cx, node: NodeId, name: &[u8]) -> Result<Bytes> {
        change::is_user_xattr(name, libc::ENODATA)?;
        let node = self.node(node)?;
        Ok(sys::getxattr(&sys::proc_path(&node), name)?.into())
    }

    fn setxattr(
        &self,
        _: &Cx,
        node: NodeId,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        self.writable()?;
        self.change_xattr(node, name, Some((value, flags)))
    }

    fn listxattr(&self, _: &Cx, node: NodeId) -> Result<Vec<Vec<u8>>> {
        let mut names = sys::listxattr(&sys::proc_path(&self.node(node)?))?;
        names.retain(|name| change::is_user_xattr(name, libc::EPERM).is_ok());
        Ok(names)
    }

    fn removexattr(&self, _: &Cx, node: NodeId, name: &[u8]) -> Result<()> {
        self.writable()?;
        self.change_xattr(node, name, None)
    }

    fn lock(&self, cx: &Cx, handle: Handle, request: LockRequest) -> Result<()> {
        self.set_lock(cx, handle, request)
    }

    fn test_lock(
        &self,
        cx: &Cx,
        handle: Handle,
        request: LockRequest,
    ) -> Result<Option<LockRequest>> {
        self.find_lock(cx, handle, &request)
    }

    fn allocate(&self, _: &Cx, handle: Handle, offset: u64, len: u64, how: Allocate) -> Result<()> {
        self.writable()?;
        self.allocate_range(handle, offset, len, how)
    }

    fn seek(&self, _: &Cx, handle: Handle, offset: u64, to: SeekTo) -> Result<u64> {
        self.handles.get(handle)?.1.seek(offset, to)
    }

    fn copy_range(
        &self,
        _: &Cx,
        from: (Handle, u64),
        to: (Handle, u64),
        len: u64,
    ) -> Result<Written> {
        self.writable()?;
        self.copy_bytes(from, to, len)
    }

    fn statfs(&self, _: &Cx, node: NodeId) -> Result<StatFs> {
        let s = nix::sys::statvfs::fstatvfs(self.node(node)?)?;
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(StatFs {
            bsize: small(s.block_size()),
            frsize: small(s.fragment_size()),
            blocks: s.blocks(),
            bfree: s.blocks_free(),
            bavail: s.blocks_available(),
            files: s.files(),
            ffree: s.files_free(),
            favail: s.files_available(),
            namemax: small(s.name_max()),
        })
    }

    fn path(&self, _: &Cx, node: NodeId) -> Result<TreePath> {
        self.ids.path(node)
    }

    fn forget(&self, node: NodeId) {
        self.ids.forget(node);
    }

    fn is_live(&self) -> bool {
        self.watching.as_ref().is_some_and(Watching::is_live)
    }

    fn watch(&self, sink: EventSink) -> Result<Watch> {
        if self.watching.is_some() {
            self.start.call_once(|| Watching::start(&self.0));
        }
        let (listening, core) = (self.watchers.add(sink), Arc::downgrade(&self.0));
        Ok(Watch::new(move || {
            drop(listening);
            // The last to leave has the watches removed.
            if let Some(w) = core.upgrade().as_ref().and_then(|core| core.watching.as_ref()) {
                w.nudge();
            }
        }))
    }
}
