//! The kernel's requests as calls of a tree. It only translates: what a call means, who may make it,
//! and what is cached is the tree's business.

use super::adapter::{
    Adapter, BACKGROUND_MAX, GENERATION, TRANSFER_MAX, empty, fail, guarded, is_hosts_xattr, xattr,
};
use super::content;
use super::convert::{self, node, open_flags};
use crate::base::{Error, Name};
use crate::vfs::{Attr, Handle, Opened, Read, SetAttr, Written, XattrFlags};
use bytes::Bytes;
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

fn written(reply: ReplyWrite, written: Written) {
    reply.written(u32::try_from(written.n).unwrap_or(u32::MAX));
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
            InitFlags::FUSE_FLOCK_LOCKS,
            // Trees take set-id bits away when a file is written: the kernel need not ask before
            // every write whether there are any.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_POSIX_LOCKS,
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
        self.answer(reply, call, self.entry());
    }

    /// Counts are not kept: a tree takes this as a hint, and tells a forgotten node anew when asked.
    fn forget(&self, _: &Request, ino: INodeNo, _: u64) {
        let _ = guarded(|| {
            Adapter::forget(self, node(ino));
            Ok(())
        });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.answer(reply, || self.tree.getattr(&self.cx(), node(ino)), self.attributes());
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
            let set = self.view.change(set)?;
            if set == SetAttr::default() {
                return self.tree.getattr(&self.cx(), node(ino));
            }
            self.tree.setattr(&self.cx(), node(ino), fh.map(|fh| Handle(fh.0)), &set)
        };
        self.answer(reply, call, self.attributes());
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
        self.answer(reply, call, self.entry());
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
        self.answer(reply, call, self.entry());
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
        self.answer(reply, call, self.entry());
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
        self.answer(reply, call, self.entry());
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let call = || {
            let flags = crate::vfs::OpenFlags { exclusive: false, ..open_flags(flags.0) };
            let cx = self.cx();
            let opened = self.tree.open(&cx, node(ino), flags)?;
            self.settle(&cx, node(ino), &opened);
            Ok(opened)
        };
        self.answer(reply, call, |reply, opened: Opened| {
            reply.opened(FileHandle(opened.handle.0), self.fopen(node(ino), &opened));
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
            let flags = self.fopen(attr.id, &opened);
            let (view, attr) = (&self.view, convert::attr(&self.view, &attr));
            reply.created(&view.attr_timeout, &attr, GENERATION, handle, flags);
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
        self.answer(reply, call, written);
    }

    /// The kernel leaves it to this to end the locks of whoever closes (close(2)).
    fn flush(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let call = || {
            let (cx, handle) = (self.cx(), Handle(fh.0));
            let flushed = self.tree.flush(&cx, handle).map(drop);
            self.locks.closed(&*self.tree, &cx, (node(ino), handle), owner.0);
            flushed
        };
        self.answer(reply, call, empty);
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let call = || {
            self.locks.released(node(ino), Handle(fh.0));
            self.tree.release(&self.cx(), Handle(fh.0))
        };
        self.answer(reply, call, empty);
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
        match self.list(ino, fh.0, offset, &mut reply) {
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
        match self.list_plus(ino, fh.0, offset, &mut reply) {
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
        if is_hosts_xattr(name) {
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
        if is_hosts_xattr(name) {
            return reply.error(Errno::EOPNOTSUPP);
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
        if is_hosts_xattr(name) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let call = || self.tree.removexattr(&self.cx(), node(ino), name.as_bytes());
        self.answer(reply, call, empty);
    }

    fn setlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        _: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let at = (node(ino), Handle(fh.0));
        self.set_lock(req.pid(), at, owner.0, (kind, start, end), sleep, reply);
    }

    fn getlk(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        _: u32,
        reply: ReplyLock,
    ) {
        self.find_lock((node(ino), Handle(fh.0)), owner.0, (kind, start, end), reply);
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let call = || {
            let how = content::allocate_mode(mode)?;
            self.tree.allocate(&self.cx(), Handle(fh.0), offset, len, how)
        };
        self.answer(reply, call, empty);
    }

    fn lseek(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let call = || self.seek(node(ino), Handle(fh.0), offset, whence);
        self.answer(reply, call, |reply, at| reply.offset(at));
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        from: FileHandle,
        from_offset: u64,
        _: INodeNo,
        to: FileHandle,
        to_offset: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, to) = ((Handle(from.0), from_offset), (Handle(to.0), to_offset));
        let call = || self.tree.copy_range(&self.cx(), from, to, len);
        self.answer(reply, call, written);
    }
}
