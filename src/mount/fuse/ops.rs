//! The kernel's requests as calls of a tree. It only translates: what a call means, who may make it,
//! and what is cached is the tree's business.

use super::convert::{self, node, open_flags};
use super::dirs::{DOTS, OpenDirs};
use super::waiting::Waiting;
use crate::base::{Cancel, Code, Deadline, Error, Name, Notify, Result, Wait};
use crate::vfs::{
    Attr, Cx, FileKind, Handle, LockKind, LockRequest, Opened, Read, SetAttr, Tree, Who, XattrFlags,
};
use bytes::Bytes;
use fuser::{
    BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

/// How long the kernel believes attributes and names. Events of the tree end it sooner; where none
/// come, this is how old an answer can be.
const TTL: Duration = Duration::from_secs(1);
/// Largest read or write in one request.
pub const TRANSFER_MAX: u32 = 1 << 20;
/// Requests the kernel sends ahead (read-ahead, write-back, direct I/O in parallel).
const BACKGROUND_MAX: u16 = 64;
/// How often a lock that another holds is asked for again.
const LOCK_RETRY_MS: u64 = 50;
/// Ids are never used for another file while a tree lives.
const GENERATION: Generation = Generation(0);

pub struct Adapter {
    pub tree: Arc<dyn Tree>,
    pub who: Arc<Who>,
    pub timeout_ms: u64,
    /// Ends what is still running after the mount is gone.
    pub cancel: Cancel,
    pub waiting: Arc<Waiting>,
    pub dirs: OpenDirs,
    /// Operations going on, without those that wait.
    pub running: Arc<AtomicUsize>,
}

/// A reply that can say that it failed.
trait Fail {
    fn fail(self, e: Errno);
}

macro_rules! fail {
    ($($reply:ident)*) => {
        $(impl Fail for $reply { fn fail(self, e: Errno) { self.error(e) } })*
    };
}
fail!(ReplyAttr ReplyCreate ReplyData ReplyDirectory ReplyDirectoryPlus ReplyEmpty ReplyEntry
      ReplyOpen ReplyStatfs ReplyWrite ReplyXattr);

/// Runs a call; a panic in a tree is an error of that call.
fn guarded<T>(call: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
        log::error!("a file operation panicked; it was answered with EIO");
        Err(Error::new(Code::Eio, "the operation panicked"))
    })
}

fn fail<R: Fail>(reply: R, e: &Error) {
    log::debug!("answered {}: {e}", e.errno());
    reply.fail(convert::errno(e));
}

fn entry(reply: ReplyEntry, attr: Attr) {
    reply.entry(&TTL, &convert::attr(&attr), GENERATION);
}

fn attributes(reply: ReplyAttr, attr: Attr) {
    reply.attr(&TTL, &convert::attr(&attr));
}

fn empty(reply: ReplyEmpty, (): ()) {
    reply.ok();
}

/// Files that are not like files on disk are never cached. The others keep no pages from one open to
/// the next: a file shows on opening what was written before (close-to-open).
fn fopen(opened: &Opened) -> FopenFlags {
    match opened.kind {
        FileKind::Plain => FopenFlags::empty(),
        FileKind::Message | FileKind::Stream => FopenFlags::FOPEN_DIRECT_IO,
    }
}

fn xattr(reply: ReplyXattr, size: u32, value: &[u8]) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        Ok(_) if size > 0 => reply.error(Errno::ERANGE),
        _ => reply.error(Errno::E2BIG),
    }
}

/// Attributes that this mount has no use for, answered without asking the tree: the kernel wants
/// `security.capability` before every write, and `ls -l` the access lists of every file.
fn refused_xattr(name: &OsStr) -> Option<Errno> {
    let name = name.as_bytes();
    if name.starts_with(b"security.") {
        return Some(Errno::ENODATA);
    }
    name.starts_with(b"system.").then_some(Errno::EOPNOTSUPP)
}

impl Adapter {
    /// Runs a call and hands its outcome to the reply.
    fn answer<R: Fail, T>(
        &self,
        reply: R,
        call: impl FnOnce() -> Result<T>,
        done: impl FnOnce(R, T),
    ) {
        match self.counted(call) {
            Ok(value) => done(reply, value),
            Err(e) => fail(reply, &e),
        }
    }

    fn counted<T>(&self, call: impl FnOnce() -> Result<T>) -> Result<T> {
        self.running.fetch_add(1, Ordering::AcqRel);
        let outcome = guarded(call);
        self.running.fetch_sub(1, Ordering::AcqRel);
        outcome
    }

    fn cx(&self) -> Cx {
        Cx {
            who: self.who.clone(),
            deadline: Deadline::after_ms(self.timeout_ms),
            cancel: self.cancel.clone(),
            correlation_id: None,
        }
    }

    /// Reads for as long as the file makes its reader wait, without a thread of its own.
    fn read_later(&self, req: &Request, at: (Handle, u64, u32), wait: Wait, reply: ReplyData) {
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
        self.waiting.park(req.pid(), wait, Box::new(retry));
    }

    /// Asks for a lock until its holder lets go.
    fn lock_later(&self, req: &Request, handle: Handle, request: LockRequest, reply: ReplyEmpty) {
        let (tree, who, timeout_ms) = (self.tree.clone(), self.who.clone(), self.timeout_ms);
        let mut reply = Some(reply);
        let pause = Notify::default();
        let wait = move || pause.wait(pause.seen(), Deadline::after_ms(LOCK_RETRY_MS));
        let first = wait();
        let retry = move |go_on: Result<()>| {
            let cx = Cx::new(who.clone(), Deadline::after_ms(timeout_ms));
            match go_on.and_then(|()| guarded(|| tree.lock(&cx, handle, request))) {
                Err(e) if e.code == Code::Again => return Some(wait()),
                Ok(()) => reply.take()?.ok(),
                Err(e) => fail(reply.take()?, &e),
            }
            None
        };
        self.waiting.park(req.pid(), first, Box::new(retry));
    }

    /// `.` and `..`, where they are still to be shown; the kernel finds out by itself what `..` is.
    fn dots(
        &self,
        position: u64,
        ino: INodeNo,
    ) -> impl Iterator<Item = (u64, &'static str, INodeNo)> {
        [(1, ".", ino), (2, "..", ino)].into_iter().filter(move |(at, ..)| *at > position)
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            // flock only: byte-range locks stay with the kernel.
            InitFlags::FUSE_FLOCK_LOCKS,
            InitFlags::FUSE_PARALLEL_DIROPS,
        ];
        for flag in wanted {
            // An old kernel does without.
            let _ = config.add_capabilities(flag);
        }
        let _ = config.set_max_write(TRANSFER_MAX);
        if let Err(most) = config.set_max_readahead(TRANSFER_MAX) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let call = || self.tree.lookup(&self.cx(), node(parent), Name::new(name)?);
        self.answer(reply, call, entry);
    }

    /// Counts are not kept: a tree takes this as a hint, and tells a forgotten node anew when asked.
    fn forget(&self, _: &Request, ino: INodeNo, _: u64) {
        let _ = guarded(|| {
            self.tree.forget(node(ino));
            Ok(())
        });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.answer(reply, || self.tree.getattr(&self.cx(), node(ino)), attributes);
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        fh: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr {
            mode: mode.map(|m| m & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
        };
        let call = || {
            if set == SetAttr::default() {
                return self.tree.getattr(&self.cx(), node(ino));
            }
            self.tree.setattr(&self.cx(), node(ino), fh.map(|fh| Handle(fh.0)), &set)
        };
        self.answer(reply, call, attributes);
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let call = || self.tree.readlink(&self.cx(), node(ino));
        self.answer(reply, call, |reply, target: Bytes| reply.data(&target));
    }

    fn mknod(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let call = || {
            if mode & libc::S_IFMT != libc::S_IFREG {
                return Err(Error::from_errno(libc::EPERM, "only regular files can be made here"));
            }
            let flags = crate::vfs::OpenFlags { exclusive: true, ..crate::vfs::OpenFlags::WRITE };
            let (cx, name) = (self.cx(), Name::new(name)?);
            let (attr, opened) = self.tree.create(&cx, node(parent), name, mode & 0o7777, flags)?;
            self.tree.release(&cx, opened.handle)?;
            Ok(attr)
        };
        self.answer(reply, call, entry);
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let call = || self.tree.mkdir(&self.cx(), node(parent), Name::new(name)?, mode & 0o7777);
        self.answer(reply, call, entry);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let call = || self.tree.unlink(&self.cx(), node(parent), Name::new(name)?);
        self.answer(reply, call, empty);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let call = || self.tree.rmdir(&self.cx(), node(parent), Name::new(name)?);
        self.answer(reply, call, empty);
    }

    fn symlink(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = target.as_os_str().as_bytes();
        let call = || self.tree.symlink(&self.cx(), node(parent), Name::new(name)?, target);
        self.answer(reply, call, entry);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        let call = || {
            let flags = convert::rename_flags(flags)?;
            let from = (node(parent), Name::new(name)?);
            let to = (node(new_parent), Name::new(new_name)?);
            self.tree.rename(&self.cx(), from, to, flags)
        };
        self.answer(reply, call, empty);
    }

    fn link(
        &self,
        _: &Request,
        ino: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let call = || self.tree.link(&self.cx(), node(ino), node(new_parent), Name::new(new_name)?);
        self.answer(reply, call, entry);
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let call = || {
            let flags = crate::vfs::OpenFlags { exclusive: false, ..open_flags(flags.0) };
            self.tree.open(&self.cx(), node(ino), flags)
        };
        self.answer(reply, call, |reply, opened: Opened| {
            reply.opened(FileHandle(opened.handle.0), fopen(&opened));
        });
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let call = || {
            let (name, flags) = (Name::new(name)?, open_flags(flags));
            self.tree.create(&self.cx(), node(parent), name, mode & 0o7777, flags)
        };
        self.answer(reply, call, |reply, (attr, opened): (Attr, Opened)| {
            let handle = FileHandle(opened.handle.0);
            reply.created(&TTL, &convert::attr(&attr), GENERATION, handle, fopen(&opened));
        });
    }

    fn read(
        &self,
        req: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let at = (Handle(fh.0), offset, size);
        let call = || self.tree.read(&self.cx(), at.0, at.1, at.2);
        self.answer(reply, call, |reply, read| match read {
            Read::Data { bytes, .. } => reply.data(&bytes),
            Read::Wait(wait) => self.read_later(req, at, wait, reply),
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = Bytes::copy_from_slice(data);
        let call = || self.tree.write(&self.cx(), Handle(fh.0), offset, data);
        self.answer(reply, call, |reply, written| {
            reply.written(u32::try_from(written.n).unwrap_or(u32::MAX));
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, fh: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        let call = || self.tree.flush(&self.cx(), Handle(fh.0)).map(drop);
        self.answer(reply, call, empty);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.answer(reply, || self.tree.release(&self.cx(), Handle(fh.0)), empty);
    }

    fn fsync(&self, _: &Request, _: INodeNo, fh: FileHandle, data_only: bool, reply: ReplyEmpty) {
        self.answer(reply, || self.tree.fsync(&self.cx(), Handle(fh.0), data_only), empty);
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.answer(
            reply,
            || self.dirs.open(node(ino)),
            |reply, key| {
                reply.opened(FileHandle(key), FopenFlags::empty());
            },
        );
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let filled = self.counted(|| {
            for (at, name, ino) in self.dots(offset, ino) {
                if reply.add(ino, at, fuser::FileType::Directory, name) {
                    return Ok(());
                }
            }
            let dir = self.dirs.get(fh.0)?;
            let mut dir = dir.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            for (at, e) in dir.from(&*self.tree, &self.cx(), offset)? {
                let kind = convert::file_type(&e.attr);
                if reply.add(INodeNo(e.attr.id.0), at, kind, &e.name) {
                    break;
                }
            }
            Ok(())
        });
        match filled {
            Ok(()) => reply.ok(),
            Err(e) => fail(reply, &e),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let filled = self.counted(|| {
            let cx = self.cx();
            if offset < DOTS {
                let own = convert::attr(&self.tree.getattr(&cx, node(ino))?);
                for (at, name, ino) in self.dots(offset, ino) {
                    if reply.add(ino, at, name, &TTL, &own, GENERATION) {
                        return Ok(());
                    }
                }
            }
            let dir = self.dirs.get(fh.0)?;
            let mut dir = dir.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            for (at, e) in dir.from(&*self.tree, &cx, offset)? {
                let (ino, attr) = (INodeNo(e.attr.id.0), convert::attr(&e.attr));
                if reply.add(ino, at, &e.name, &TTL, &attr, GENERATION) {
                    break;
                }
            }
            Ok(())
        });
        match filled {
            Ok(()) => reply.ok(),
            Err(e) => fail(reply, &e),
        }
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.dirs.close(fh.0);
        reply.ok();
    }

    /// A tree makes its own changes of directories durable.
    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.answer(
            reply,
            || self.tree.statfs(&self.cx(), node(ino)),
            |reply, s| {
                reply.statfs(
                    s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namemax, s.frsize,
                );
            },
        );
    }

    fn setxattr(
        &self,
        _: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        if refused_xattr(name).is_some() {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let flags = match flags {
            libc::XATTR_CREATE => XattrFlags::Create,
            libc::XATTR_REPLACE => XattrFlags::Replace,
            _ => XattrFlags::Any,
        };
        let call = || self.tree.setxattr(&self.cx(), node(ino), name.as_bytes(), value, flags);
        self.answer(reply, call, empty);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if let Some(errno) = refused_xattr(name) {
            return reply.error(errno);
        }
        let call = || self.tree.getxattr(&self.cx(), node(ino), name.as_bytes());
        self.answer(reply, call, |reply, value: Bytes| xattr(reply, size, &value));
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let call = || self.tree.listxattr(&self.cx(), node(ino));
        self.answer(reply, call, |reply, names: Vec<Vec<u8>>| {
            let list: Vec<u8> = names.into_iter().flat_map(|n| [n, vec![0]].concat()).collect();
            xattr(reply, size, &list);
        });
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if refused_xattr(name).is_some() {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let call = || self.tree.removexattr(&self.cx(), node(ino), name.as_bytes());
        self.answer(reply, call, empty);
    }

    /// flock: byte-range locks are not sent here (see `init`).
    fn setlk(
        &self,
        req: &Request,
        _: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        _: u64,
        _: u64,
        kind: i32,
        _: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let kind = match kind {
            libc::F_RDLCK => LockKind::Shared,
            libc::F_WRLCK => LockKind::Exclusive,
            _ => LockKind::Unlock,
        };
        let (handle, request) = (Handle(fh.0), LockRequest { kind, owner: owner.0 });
        match self.counted(|| self.tree.lock(&self.cx(), handle, request)) {
            Ok(()) => reply.ok(),
            Err(e) if sleep && e.code == Code::Again => {
                self.lock_later(req, handle, request, reply);
            }
            Err(e) => fail(reply, &e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::NodeId;

    #[test]
    fn the_root_of_a_tree_is_the_root_of_a_mount() {
        assert_eq!(node(INodeNo::ROOT), NodeId::ROOT);
    }

    #[test]
    fn attributes_for_the_host_alone_are_not_asked_for() {
        let refused = |name: &str| refused_xattr(OsStr::new(name)).map(Errno::code);
        assert_eq!(refused("security.capability"), Some(libc::ENODATA));
        assert_eq!(refused("system.posix_acl_access"), Some(libc::EOPNOTSUPP));
        assert_eq!(refused("user.mime"), None);
    }
}
