//! The kernel's requests as calls of a tree. It only translates: what a call means, who may make it,
//! and what is cached is the tree's business.

use super::adapter::{
    Adapter, BACKGROUND_MAX, Front, GENERATION, TRANSFER_MAX, data, empty, fail, guarded,
    is_hosts_xattr, space, written, xattr,
};
use super::content;
use super::convert::{self, node, open_flags};
use crate::base::{Error, Name};
use crate::vfs::{Handle, Read, SetAttr, XattrFlags};
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

impl Filesystem for Front {
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
        let name = name.to_owned();
        self.ask(reply, self.adapter.entry(), move |tree, cx| {
            tree.lookup(cx, node(parent), Name::new(&name)?)
        });
    }

    /// Counts are not kept: a tree takes this as a hint, and tells a forgotten node anew when asked.
    fn forget(&self, _: &Request, ino: INodeNo, _: u64) {
        let _ = guarded(|| {
            self.adapter.forget(node(ino));
            Ok(())
        });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.ask(reply, self.adapter.attributes(), move |tree, cx| tree.getattr(cx, node(ino)));
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
        let call = move |a: &Adapter| {
            let set = a.view.change(set)?;
            if set == SetAttr::default() {
                return a.tree.getattr(&a.cx(), node(ino));
            }
            a.tree.setattr(&a.cx(), node(ino), fh.map(|fh| Handle(fh.0)), &set)
        };
        self.answer(reply, call, self.adapter.attributes());
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.ask(reply, data, move |tree, cx| tree.readlink(cx, node(ino)));
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
        let name = name.to_owned();
        let call = move |a: &Adapter| {
            if mode & libc::S_IFMT != libc::S_IFREG {
                return Err(Error::from_errno(libc::EPERM, "only regular files can be made here"));
            }
            let flags = crate::vfs::OpenFlags { exclusive: true, ..crate::vfs::OpenFlags::WRITE };
            let (cx, name) = (a.cx(), Name::new(&name)?);
            let (attr, opened) = a.tree.create(&cx, node(parent), name, mode & 0o7777, flags)?;
            a.tree.release(&cx, opened.handle)?;
            Ok(attr)
        };
        self.answer(reply, call, self.adapter.entry());
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
        let name = name.to_owned();
        self.ask(reply, self.adapter.entry(), move |tree, cx| {
            tree.mkdir(cx, node(parent), Name::new(&name)?, mode & 0o7777)
        });
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.ask(reply, empty, move |tree, cx| tree.unlink(cx, node(parent), Name::new(&name)?));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.ask(reply, empty, move |tree, cx| tree.rmdir(cx, node(parent), Name::new(&name)?));
    }

    fn symlink(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (name, target) = (name.to_owned(), target.as_os_str().as_bytes().to_vec());
        self.ask(reply, self.adapter.entry(), move |tree, cx| {
            tree.symlink(cx, node(parent), Name::new(&name)?, &target)
        });
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
        let (name, new_name) = (name.to_owned(), new_name.to_owned());
        let call = move |a: &Adapter| {
            let flags = convert::rename_flags(flags)?;
            let from = (node(parent), Name::new(&name)?);
            let to = (node(new_parent), Name::new(&new_name)?);
            a.rename(from, to, flags)
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
        let new_name = new_name.to_owned();
        self.ask(reply, self.adapter.entry(), move |tree, cx| {
            tree.link(cx, node(ino), node(new_parent), Name::new(&new_name)?)
        });
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let call = move |a: &Adapter| {
            a.executing.check(node(ino), flags.0)?;
            let wanted = crate::vfs::OpenFlags { exclusive: false, ..open_flags(flags.0) };
            let cx = a.cx();
            let opened = a.tree.open(&cx, node(ino), wanted)?;
            a.executing.opened(node(ino), opened.handle, flags.0);
            a.settle(&cx, node(ino), &opened);
            Ok((opened.handle, a.fopen(node(ino), &opened)))
        };
        self.answer(reply, call, |reply, (handle, flags): (Handle, FopenFlags)| {
            reply.opened(FileHandle(handle.0), flags);
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
        let (name, view) = (name.to_owned(), self.adapter.view);
        let call = move |a: &Adapter| {
            let (name, flags) = (Name::new(&name)?, open_flags(flags));
            let (attr, opened) =
                a.tree.create(&a.cx(), node(parent), name, mode & 0o7777, flags)?;
            let flags = a.fopen(attr.id, &opened);
            Ok((attr, FileHandle(opened.handle.0), flags))
        };
        self.answer(reply, call, move |reply: ReplyCreate, (attr, handle, flags)| {
            let attr = convert::attr(&view, &attr);
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
        let (at, tid) = ((Handle(fh.0), offset, size), req.pid());
        self.run(move |a| match a.counted(|| a.tree.read(&a.cx(), at.0, at.1, at.2)) {
            Ok(Read::Data { bytes, .. }) => reply.data(&bytes),
            Ok(Read::Wait(wait)) => a.read_later(tid, at, wait, reply),
            Err(e) => fail(reply, &e),
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
        self.ask(reply, written, move |tree, cx| tree.write(cx, Handle(fh.0), offset, data));
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
        let call = move |a: &Adapter| {
            let (cx, handle) = (a.cx(), Handle(fh.0));
            let flushed = a.tree.flush(&cx, handle).map(drop);
            a.locks.closed(&*a.tree, &cx, (node(ino), handle), owner.0);
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
        let call = move |a: &Adapter| {
            a.locks.released(node(ino), Handle(fh.0));
            a.executing.released(Handle(fh.0));
            a.tree.release(&a.cx(), Handle(fh.0))
        };
        self.answer(reply, call, empty);
    }

    fn fsync(&self, _: &Request, _: INodeNo, fh: FileHandle, data_only: bool, reply: ReplyEmpty) {
        self.ask(reply, empty, move |tree, cx| tree.fsync(cx, Handle(fh.0), data_only));
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.adapter.dirs.open(node(ino)) {
            Ok(key) => reply.opened(FileHandle(key), FopenFlags::empty()),
            Err(e) => fail(reply, &e),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.run(move |a| match a.list(ino, fh.0, offset, &mut reply) {
            Ok(()) => reply.ok(),
            Err(e) => fail(reply, &e),
        });
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.run(move |a| match a.list_plus(ino, fh.0, offset, &mut reply) {
            Ok(()) => reply.ok(),
            Err(e) => fail(reply, &e),
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.adapter.dirs.close(fh.0);
        reply.ok();
    }

    /// A tree makes its own changes of directories durable.
    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.ask(reply, space, move |tree, cx| tree.statfs(cx, node(ino)));
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
        let (name, value) = (name.to_owned(), value.to_owned());
        self.ask(reply, empty, move |tree, cx| {
            tree.setxattr(cx, node(ino), name.as_bytes(), &value, flags)
        });
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if is_hosts_xattr(name) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let name = name.to_owned();
        self.ask(reply, xattr(size), move |tree, cx| tree.getxattr(cx, node(ino), name.as_bytes()));
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.ask(reply, xattr(size), move |tree, cx| {
            let names = tree.listxattr(cx, node(ino))?;
            Ok(names.into_iter().flat_map(|n| [n, vec![0]].concat()).collect())
        });
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if is_hosts_xattr(name) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let name = name.to_owned();
        self.ask(reply, empty, move |tree, cx| tree.removexattr(cx, node(ino), name.as_bytes()));
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
        let (tid, at) = (req.pid(), (node(ino), Handle(fh.0)));
        self.run(move |a| a.set_lock(tid, at, owner.0, (kind, start, end), sleep, reply));
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
        let at = (node(ino), Handle(fh.0));
        self.run(move |a| a.find_lock(at, owner.0, (kind, start, end), reply));
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
        let call = move |a: &Adapter| {
            let how = content::allocate_mode(mode)?;
            a.tree.allocate(&a.cx(), Handle(fh.0), offset, len, how)
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
        let call = move |a: &Adapter| a.seek(node(ino), Handle(fh.0), offset, whence);
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
        self.ask(reply, written, move |tree, cx| tree.copy_range(cx, from, to, len));
    }
}
