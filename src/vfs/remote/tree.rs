//! The export as a tree: each method is one call of the protocol, or, of an old node, what comes nearest.

use super::export::{Remote, is_new, unexpected};
use super::file::entry;
use super::link::Link;
use crate::base::{Deadline, Name, Result, TreePath};
use crate::vfs::wire;
use crate::vfs::{
    Allocate, Attr, Caps, Cx, DirPage, Event, EventSink, Handle, LockRequest, NodeId, OpenFlags,
    Opened, Read, ReadDir, RenameFlags, SeekTo, SetAttr, StatFs, Tree, Watch, Written, XattrFlags,
};
use crate::wire::fs::{Call, Op, Reply};
use bytes::Bytes;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

impl Tree for Remote {
    fn caps(&self) -> Caps {
        let cx = Cx::internal(Deadline::after_ms(1000));
        self.link(&cx).map_or(
            Caps {
                read_only: false,
                case_sensitive: true,
                symlink: true,
                xattr: true,
                locks: true,
                native_watch: false,
            },
            |link| self.caps_now(&link),
        )
    }

    fn lookup(&self, cx: &Cx, dir: NodeId, name: Name<'_>) -> Result<Attr> {
        let name = name.as_os_str();
        let make = |link: &Link| {
            Ok(Call::Lookup { dir: self.wire(cx, link, dir)?, name: name.to_os_string() })
        };
        self.run(cx, Op::Lookup, make, |link, reply| match reply {
            Reply::Attr(a) => Ok(self.attr(link, &a, dir, name)),
            _ => Err(unexpected(Op::Lookup)),
        })
    }

    fn getattr(&self, cx: &Cx, node: NodeId) -> Result<Attr> {
        let make = |link: &Link| Ok(Call::Getattr { node: self.wire(cx, link, node)? });
        self.run(cx, Op::Getattr, make, |_, reply| match reply {
            Reply::Attr(a) => Ok(wire::attr_from(node, &a)),
            _ => Err(unexpected(Op::Getattr)),
        })
    }

    fn setattr(
        &self,
        cx: &Cx,
        node: NodeId,
        handle: Option<Handle>,
        set: &SetAttr,
    ) -> Result<Attr> {
        let make = |link: &Link| {
            let id = self.wire(cx, link, node)?;
            if link.ext.has(Op::Setattr) {
                let h = handle.map(|h| self.wire_handle(cx, link, h)).transpose()?;
                return Ok(Call::Setattr { node: id, h, set: wire::set_to(set) });
            }
            // Of old nodes only the size can be changed.
            match (set.size, SetAttr { size: None, ..*set } == SetAttr::default()) {
                (Some(size), true) => Ok(Call::Truncate { node: id, size }),
                _ => Err(is_new(link, Op::Setattr).unwrap_err()),
            }
        };
        let told = self.run(cx, Op::Setattr, make, |link, reply| {
            let Reply::Attr(a) = reply else { return Ok(None) };
            self.changed(
                link,
                &[match set.size {
                    Some(_) => Event::All { node, generation: Some(a.generation) },
                    None => Event::Attr(node),
                }],
            );
            Ok(Some(wire::attr_from(node, &a)))
        })?;
        told.map_or_else(|| self.getattr(cx, node), Ok)
    }

    fn readdir(&self, cx: &Cx, at: ReadDir) -> Result<DirPage> {
        self.list(cx, at)
    }

    fn open(&self, cx: &Cx, node: NodeId, flags: OpenFlags) -> Result<Opened> {
        self.open_file(cx, node, flags)
    }

    fn create(
        &self,
        cx: &Cx,
        dir: NodeId,
        name: Name<'_>,
        mode: u32,
        flags: OpenFlags,
    ) -> Result<(Attr, Opened)> {
        self.create_file(cx, dir, name, mode, flags)
    }

    fn read(&self, cx: &Cx, handle: Handle, offset: u64, len: u32) -> Result<Read> {
        self.read_file(cx, handle, offset, len)
    }

    fn write(&self, cx: &Cx, handle: Handle, offset: u64, data: Bytes) -> Result<Written> {
        self.write_file(cx, handle, offset, data)
    }

    fn flush(&self, cx: &Cx, handle: Handle) -> Result<Written> {
        self.flush_file(cx, handle)
    }

    fn fsync(&self, cx: &Cx, handle: Handle, data_only: bool) -> Result<()> {
        let make = |link: &Link| {
            is_new(link, Op::Fsync)?;
            Ok(Call::Fsync { h: self.wire_handle(cx, link, handle)?, data_only })
        };
        match self.run(cx, Op::Fsync, make, |_, _| Ok(())) {
            // Old nodes write at once and cannot be asked for more.
            Err(e) if e.errno() == libc::ENOSYS => Ok(()),
            outcome => outcome,
        }
    }

    fn release(&self, cx: &Cx, handle: Handle) -> Result<()> {
        self.release_file(cx, handle)
    }

    fn mkdir(&self, cx: &Cx, dir: NodeId, name: Name<'_>, mode: u32) -> Result<Attr> {
        let make = |link: &Link| {
            let dir = self.wire(cx, link, dir)?;
            Ok(Call::Mkdir { dir, name: name.as_os_str().to_os_string(), mode: Some(mode) })
        };
        self.run(cx, Op::Mkdir, make, |link, reply| self.made(cx, link, reply, dir, name))
    }

    fn unlink(&self, cx: &Cx, dir: NodeId, name: Name<'_>) -> Result<()> {
        let make = |link: &Link| {
            let dir = self.wire(cx, link, dir)?;
            Ok(Call::Unlink { dir, name: name.as_os_str().to_os_string() })
        };
        self.run(cx, Op::Unlink, make, |link, _| {
            let node = self.ids.remove(dir, name.as_os_str(), false);
            self.changed(link, &[entry(dir, name)]);
            // It may have other names, and one link less.
            if let Some(node) = node {
                self.changed(link, &[Event::Attr(node)]);
            }
            Ok(())
        })
    }

    fn rmdir(&self, cx: &Cx, dir: NodeId, name: Name<'_>) -> Result<()> {
        let make = |link: &Link| {
            let dir = self.wire(cx, link, dir)?;
            Ok(Call::Rmdir { dir, name: name.as_os_str().to_os_string() })
        };
        self.run(cx, Op::Rmdir, make, |link, _| {
            self.ids.remove(dir, name.as_os_str(), true);
            self.changed(link, &[entry(dir, name)]);
            Ok(())
        })
    }

    fn rename(
        &self,
        cx: &Cx,
        from: (NodeId, Name<'_>),
        to: (NodeId, Name<'_>),
        flags: RenameFlags,
    ) -> Result<()> {
        let bits = match flags {
            RenameFlags { no_replace: true, .. } => libc::RENAME_NOREPLACE,
            RenameFlags { exchange: true, .. } => libc::RENAME_EXCHANGE,
            _ => 0,
        };
        let make = |link: &Link| {
            if bits != 0 {
                // An old node would not see the flag and replace.
                is_new(link, Op::Setattr)?;
            }
            Ok(Call::Rename {
                from: (self.wire(cx, link, from.0)?, from.1.as_os_str().to_os_string()),
                to: (self.wire(cx, link, to.0)?, to.1.as_os_str().to_os_string()),
                flags: bits,
            })
        };
        self.run(cx, Op::Rename, make, |link, _| {
            let (old, new) = ((from.0, from.1.as_os_str()), (to.0, to.1.as_os_str()));
            let replaced = self.ids.at(new.0, new.1);
            let moved = if flags.exchange {
                self.ids.exchange(old, new);
                self.ids.at(new.0, new.1)
            } else {
                self.ids.rename(old, new)
            };
            self.changed(link, &[entry(from.0, from.1), entry(to.0, to.1)]);
            for node in [moved, replaced].into_iter().flatten() {
                self.changed(link, &[Event::All { node, generation: None }]);
            }
            Ok(())
        })
    }

    fn link(&self, cx: &Cx, node: NodeId, dir: NodeId, name: Name<'_>) -> Result<Attr> {
        let make = |link: &Link| {
            is_new(link, Op::Link)?;
            let (node, dir) = (self.wire(cx, link, node)?, self.wire(cx, link, dir)?);
            Ok(Call::Link { node, dir, name: name.as_os_str().to_os_string() })
        };
        self.run(cx, Op::Link, make, |link, reply| {
            let attr = self.made(cx, link, reply, dir, name)?;
            self.changed(link, &[Event::Attr(node)]);
            Ok(attr)
        })
    }

    fn symlink(&self, cx: &Cx, dir: NodeId, name: Name<'_>, target: &[u8]) -> Result<Attr> {
        let make = |link: &Link| {
            let dir = self.wire(cx, link, dir)?;
            let target = OsStr::from_bytes(target).to_os_string();
            Ok(Call::Symlink { dir, name: name.as_os_str().to_os_string(), target })
        };
        self.run(cx, Op::Symlink, make, |link, reply| self.made(cx, link, reply, dir, name))
    }

    fn readlink(&self, cx: &Cx, node: NodeId) -> Result<Bytes> {
        let make = |link: &Link| {
            is_new(link, Op::Readlink)?;
            Ok(Call::Readlink { node: self.wire(cx, link, node)? })
        };
        self.run(cx, Op::Readlink, make, |_, reply| match reply {
            Reply::Target(target) => Ok(target.into_vec().into()),
            _ => Err(unexpected(Op::Readlink)),
        })
    }

    fn getxattr(&self, cx: &Cx, node: NodeId, name: &[u8]) -> Result<Bytes> {
        let make =
            |link: &Link| Ok(Call::Getxattr { node: self.wire(cx, link, node)?, name: os(name) });
        self.run(cx, Op::Getxattr, make, |_, reply| match reply {
            Reply::Value(value) => Ok(value.into()),
            _ => Err(unexpected(Op::Getxattr)),
        })
    }

    fn setxattr(
        &self,
        cx: &Cx,
        id: NodeId,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        let flags = match flags {
            XattrFlags::Any => 0,
            XattrFlags::Create => libc::XATTR_CREATE as u32,
            XattrFlags::Replace => libc::XATTR_REPLACE as u32,
        };
        let make = |link: &Link| {
            let node = self.wire(cx, link, id)?;
            Ok(Call::Setxattr { node, name: os(name), value: value.to_vec(), flags })
        };
        self.run(cx, Op::Setxattr, make, |link, _| {
            self.changed(link, &[Event::Attr(id)]);
            Ok(())
        })
    }

    fn listxattr(&self, cx: &Cx, node: NodeId) -> Result<Vec<Vec<u8>>> {
        let make = |link: &Link| Ok(Call::Listxattr { node: self.wire(cx, link, node)? });
        self.run(cx, Op::Listxattr, make, |_, reply| match reply {
            Reply::Names(names) => Ok(names.into_iter().map(OsString::into_vec).collect()),
            _ => Err(unexpected(Op::Listxattr)),
        })
    }

    fn removexattr(&self, cx: &Cx, node: NodeId, name: &[u8]) -> Result<()> {
        let make = |link: &Link| {
            Ok(Call::Removexattr { node: self.wire(cx, link, node)?, name: os(name) })
        };
        self.run(cx, Op::Removexattr, make, |link, _| {
            self.changed(link, &[Event::Attr(node)]);
            Ok(())
        })
    }

    fn lock(&self, cx: &Cx, handle: Handle, request: LockRequest) -> Result<()> {
        let kind = wire::lock_to(request.kind);
        let make = |link: &Link| {
            if request.range.is_some() {
                is_new(link, Op::Getlk)?;
            }
            let h = self.wire_handle(cx, link, handle)?;
            let LockRequest { owner, range, .. } = request;
            Ok(Call::Lock { h, kind, wait: false, owner, range })
        };
        self.run(cx, Op::Lock, make, |_, _| Ok(()))?;
        self.note_lock(handle, &request);
        Ok(())
    }

    fn test_lock(
        &self,
        cx: &Cx,
        handle: Handle,
        request: LockRequest,
    ) -> Result<Option<LockRequest>> {
        let kind = wire::lock_to(request.kind);
        let make = |link: &Link| {
            is_new(link, Op::Getlk)?;
            let h = self.wire_handle(cx, link, handle)?;
            Ok(Call::Getlk { h, kind, owner: request.owner, range: request.range })
        };
        self.run(cx, Op::Getlk, make, |_, reply| match reply {
            Reply::Held(held) => Ok(held.map(|(kind, range)| LockRequest {
                kind: wire::lock_from(kind),
                owner: 0,
                range: Some(range),
            })),
            _ => Err(unexpected(Op::Getlk)),
        })
    }

    fn allocate(
        &self,
        cx: &Cx,
        handle: Handle,
        offset: u64,
        len: u64,
        how: Allocate,
    ) -> Result<()> {
        let make = |link: &Link| {
            is_new(link, Op::Allocate)?;
            Ok(Call::Allocate { h: self.wire_handle(cx, link, handle)?, off: offset, len, how })
        };
        let node = self.handles.get(handle)?.0;
        self.run(cx, Op::Allocate, make, |link, _| {
            self.changed(link, &[Event::All { node, generation: None }]);
            Ok(())
        })
    }

    fn seek(&self, cx: &Cx, handle: Handle, offset: u64, to: SeekTo) -> Result<u64> {
        let make = |link: &Link| {
            is_new(link, Op::Seek)?;
            Ok(Call::Seek { h: self.wire_handle(cx, link, handle)?, off: offset, to })
        };
        self.run(cx, Op::Seek, make, |_, reply| match reply {
            Reply::Sought(offset) => Ok(offset),
            _ => Err(unexpected(Op::Seek)),
        })
    }

    fn copy_range(
        &self,
        cx: &Cx,
        from: (Handle, u64),
        to: (Handle, u64),
        len: u64,
    ) -> Result<Written> {
        let make = |link: &Link| {
            is_new(link, Op::Copy)?;
            let h = self.wire_handle(cx, link, to.0)?;
            let (from, from_off) = (self.wire_handle(cx, link, from.0)?, from.1);
            Ok(Call::Copy { from, from_off, h, off: to.1, len })
        };
        let node = self.handles.get(to.0)?.0;
        self.run(cx, Op::Copy, make, |link, reply| {
            let written = Remote::written(node, reply, Op::Copy)?;
            let generation = written.attr.as_ref().map(|a| a.generation);
            self.changed(link, &[Event::Data { node, generation }]);
            Ok(written)
        })
    }

    fn statfs(&self, cx: &Cx, node: NodeId) -> Result<StatFs> {
        let make = |link: &Link| Ok(Call::Statfs { node: self.wire(cx, link, node)? });
        self.run(cx, Op::Statfs, make, |_, reply| match reply {
            Reply::StatFs(stat) => Ok(stat),
            _ => Err(unexpected(Op::Statfs)),
        })
    }

    fn path(&self, _: &Cx, node: NodeId) -> Result<TreePath> {
        let (_, paths) = self.ids.paths(node)?;
        paths.into_iter().next().ok_or_else(crate::vfs::ids::stale)
    }

    fn forget(&self, node: NodeId) {
        self.ids.forget(node);
    }

    fn is_live(&self) -> bool {
        self.is_told_of_all()
    }

    fn watch(&self, sink: EventSink) -> Result<Watch> {
        Ok(self.watchers.add(sink))
    }
}

fn os(name: &[u8]) -> OsString {
    OsStr::from_bytes(name).to_os_string()
}
