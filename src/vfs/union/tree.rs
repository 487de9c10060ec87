//! The union as a tree.

use super::file::{OpenFile, continues};
use super::layout::BINDS_MAX;
use super::resolve::{At, Call};
use super::{Event, Shared, Union};
use crate::base::{Error, NAME_MAX, Name, Result, TreePath};
use crate::vfs::{
    Allocate, Attr, Caps, Cx, DirEntry, DirPage, EventSink, Handle, LockRequest, NodeId, OpenFlags,
    Opened, PageLimit, Read, ReadDir, RenameFlags, SeekTo, SetAttr, StatFs, Tree, Watch, Written,
    XattrFlags,
};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::ffi::OsString;

/// Cookies below this count the entries that the mount table puts into a directory; the members' own
/// cookies, which use up to 63 bits, follow above.
const NESTED_COOKIES: u64 = 1 << 16;
const COOKIE_MAX: u64 = i64::MAX as u64;

impl Shared {
    /// Errors: EBUSY for a name that the mount table needs.
    fn free(&self, dir: NodeId, name: Name<'_>) -> Result<()> {
        match self.ids.path(dir) {
            Ok(path) if self.layout().holds(&path.join(name)) => Err(Error::from_errno(
                libc::EBUSY,
                format!("{name}: is, or leads to, a mount point"),
            )),
            _ => Ok(()),
        }
    }

    /// Errors: EEXIST for a name that the mount table gives.
    fn unused(&self, dir: NodeId, name: Name<'_>) -> Result<()> {
        self.free(dir, name)
            .map_err(|_| Error::from_errno(libc::EEXIST, format!("{name}: path exists")))
    }

    /// Makes an entry and tells its attributes.
    fn make(
        &self,
        cx: &Cx,
        dir: NodeId,
        name: Name<'_>,
        f: impl Fn(&dyn Tree, NodeId) -> Result<Attr>,
    ) -> Result<Attr> {
        self.unused(dir, name)?;
        self.on(cx, [dir], Call::Once, |at, [inner]| {
            Ok(self.told(at, dir, name.as_os_str(), f(at.tree, inner)?))
        })
    }

    fn remove(
        &self,
        cx: &Cx,
        dir: NodeId,
        name: Name<'_>,
        f: impl Fn(&dyn Tree, NodeId) -> Result<()>,
    ) -> Result<()> {
        self.free(dir, name)?;
        self.on(cx, [dir], Call::Once, |at, [inner]| f(at.tree, inner))?;
        self.ids.remove(dir, name.as_os_str(), false);
        Ok(())
    }

    fn see<T>(
        &self,
        cx: &Cx,
        node: NodeId,
        f: impl Fn(&dyn Tree, NodeId) -> Result<T>,
    ) -> Result<T> {
        self.on(cx, [node], Call::Repeatable, |at, [inner]| f(at.tree, inner))
    }

    fn keep(
        &self,
        cx: &Cx,
        at: &At<'_>,
        (id, inner): (NodeId, NodeId),
        opened: &Opened,
        flags: OpenFlags,
    ) -> Result<Opened> {
        let attr = continues(at.group, flags, opened.kind).then(|| at.tree.getattr(cx, inner));
        let attr = attr.and_then(Result::ok);
        let file = OpenFile::new(at.group.clone(), at.member, inner, opened, flags, attr.as_ref());
        let kept = self.handles.insert(id, file);
        if kept.is_err() {
            let _ = at.tree.release(cx, opened.handle);
        }
        Ok(Opened { handle: kept?, ..opened.clone() })
    }

    /// First what the mount table puts into the directory, then what the member has there.
    fn page(&self, cx: &Cx, at: ReadDir) -> Result<DirPage> {
        let layout = self.layout();
        let nested = self.ids.path(at.dir).ok().and_then(|path| layout.names_in(&path));
        let mut page = DirPage::default();
        let mut left = at.limit;
        if at.cookie < NESTED_COOKIES {
            let names = nested.into_iter().flatten().zip(1..);
            for (name, cookie) in names.skip(at.cookie as usize) {
                let cost = name.len() + PageLimit::ENTRY_BYTES;
                if !page.entries.is_empty() && (left.entries == 0 || left.bytes < cost) {
                    return Ok(page);
                }
                let Some(attr) = self.nested(cx, &layout, at.dir, Name::new(name)?) else {
                    continue;
                };
                page.entries.push(DirEntry { name: name.clone(), attr, cookie });
                left.entries = left.entries.saturating_sub(1);
                left.bytes = left.bytes.saturating_sub(cost);
            }
        }
        if self.is_virtual(at.dir)? {
            return Ok(DirPage { eof: true, ..page });
        }
        let room = left.entries > 0 && left.bytes >= PageLimit::ENTRY_BYTES + NAME_MAX;
        if !page.entries.is_empty() && !room {
            return Ok(page);
        }
        let inner = self.inner_page(cx, ReadDir { limit: left, ..at }, nested)?;
        page.entries.extend(inner.entries);
        Ok(DirPage { eof: inner.eof, generation: inner.generation, ..page })
    }

    /// A page of the member's entries, without those that the mount table hides.
    fn inner_page(
        &self,
        cx: &Cx,
        at: ReadDir,
        hidden: Option<&BTreeSet<OsString>>,
    ) -> Result<DirPage> {
        let mut cookie = match at.cookie {
            COOKIE_MAX => COOKIE_MAX,
            cookie => cookie.saturating_sub(NESTED_COOKIES),
        };
        loop {
            let mut page = self.on(cx, [at.dir], Call::Repeatable, |m, [dir]| {
                let page = m.tree.readdir(cx, ReadDir { dir, cookie, limit: at.limit })?;
                let entries = page
                    .entries
                    .into_iter()
                    .map(|e| DirEntry { attr: self.told(m, at.dir, &e.name, e.attr), ..e });
                Ok(DirPage { entries: entries.collect(), ..page })
            })?;
            let last = page.entries.last().map(|e| e.cookie);
            page.entries.retain(|e| hidden.is_none_or(|names| !names.contains(&e.name)));
            match last {
                // Nothing but hidden ones: the page after it may have others.
                Some(last) if page.entries.is_empty() && !page.eof => cookie = last,
                _ => {
                    for e in &mut page.entries {
                        e.cookie = e.cookie.saturating_add(NESTED_COOKIES).min(COOKIE_MAX);
                    }
                    return Ok(page);
                }
            }
        }
    }
}

/// What a member says of its file, under the union's id.
fn own(node: NodeId, written: Written) -> Written {
    Written { attr: written.attr.map(|attr| Attr { id: node, ..attr }), ..written }
}

impl Tree for Union {
    fn caps(&self) -> Caps {
        let layout = self.0.layout();
        let all = |f: fn(&Caps) -> bool| {
            layout.groups().flat_map(|g| &g.members).all(|m| f(&m.tree.caps()))
        };
        Caps {
            read_only: all(|c| c.read_only),
            case_sensitive: all(|c| c.case_sensitive),
            symlink: all(|c| c.symlink),
            xattr: all(|c| c.xattr),
            locks: all(|c| c.locks),
            native_watch: all(|c| c.native_watch),
        }
    }

    fn lookup(&self, cx: &Cx, dir: NodeId, name: Name<'_>) -> Result<Attr> {
        self.0.step(cx, dir, name, BINDS_MAX)
    }

    fn getattr(&self, cx: &Cx, node: NodeId) -> Result<Attr> {
        self.0.getattr(cx, node)
    }

    fn setattr(
        &self,
        cx: &Cx,
        node: NodeId,
        handle: Option<Handle>,
        set: &SetAttr,
    ) -> Result<Attr> {
        let attr = match handle {
            Some(handle) => {
                let (of, file) = self.0.handles.get(handle)?;
                if of != node {
                    return Err(Error::from_errno(libc::EBADF, "handle of another file"));
                }
                file.on(|tree, inner, h| tree.setattr(cx, inner, Some(h), set))?
            }
            None => self
                .0
                .on(cx, [node], Call::Once, |at, [inner]| at.tree.setattr(cx, inner, None, set))?,
        };
        Ok(Attr { id: node, ..attr })
    }

    fn readdir(&self, cx: &Cx, at: ReadDir) -> Result<DirPage> {
        self.0.page(cx, at)
    }

    fn open(&self, cx: &Cx, node: NodeId, flags: OpenFlags) -> Result<Opened> {
        if self.0.is_virtual(node)? {
            return Err(Error::from_errno(libc::EISDIR, "is a directory"));
        }
        let call = if flags.truncate { Call::Once } else { Call::Repeatable };
        self.0.on(cx, [node], call, |at, [inner]| {
            let opened = at.tree.open(cx, inner, flags)?;
            self.0.keep(cx, at, (node, inner), &opened, flags)
        })
    }

    fn create(
        &self,
        cx: &Cx,
        dir: NodeId,
        name: Name<'_>,
        mode: u32,
        flags: OpenFlags,
    ) -> Result<(Attr, Opened)> {
        self.0.unused(dir, name)?;
        self.0.on(cx, [dir], Call::Once, |at, [inner]| {
            let (made, opened) = at.tree.create(cx, inner, name, mode, flags)?;
            let known = self.0.known(at.group, at.member, made.id).is_some();
            let node = made.id;
            let attr = self.0.told(at, dir, name.as_os_str(), made);
            if !known {
                // Its own event came before it had an id.
                let generation = Some(attr.generation);
                self.0.watchers.announce(&[Event::All { node: attr.id, generation }]);
            }
            let opened = self.0.keep(cx, at, (attr.id, node), &opened, flags)?;
            Ok((attr, opened))
        })
    }

    fn read(&self, cx: &Cx, handle: Handle, offset: u64, len: u32) -> Result<Read> {
        self.0.read(cx, handle, offset, len)
    }

    fn write(&self, cx: &Cx, handle: Handle, offset: u64, data: Bytes) -> Result<Written> {
        let (node, file) = self.0.handles.get(handle)?;
        let written = file.on(|tree, _, h| tree.write(cx, h, offset, data))?;
        Ok(own(node, written))
    }

    fn flush(&self, cx: &Cx, handle: Handle) -> Result<Written> {
        self.0.handles.get(handle)?.1.on(|tree, _, h| tree.flush(cx, h))
    }

    fn fsync(&self, cx: &Cx, handle: Handle, data_only: bool) -> Result<()> {
        self.0.handles.get(handle)?.1.on(|tree, _, h| tree.fsync(cx, h, data_only))
    }

    fn release(&self, cx: &Cx, handle: Handle) -> Result<()> {
        match self.0.handles.remove(handle)?.on(|tree, _, h| tree.release(cx, h)) {
            // Nothing is open there any more.
            Err(e) if e.is_peer_lost() => Ok(()),
            outcome => outcome,
        }
    }

    fn mkdir(&self, cx: &Cx, dir: NodeId, name: Name<'_>, mode: u32) -> Result<Attr> {
        self.0.make(cx, dir, name, |tree, dir| tree.mkdir(cx, dir, name, mode))
    }

    fn unlink(&self, cx: &Cx, dir: NodeId, name: Name<'_>) -> Result<()> {
        self.0.remove(cx, dir, name, |tree, dir| tree.unlink(cx, dir, name))
    }

    fn rmdir(&self, cx: &Cx, dir: NodeId, name: Name<'_>) -> Result<()> {
        self.0.remove(cx, dir, name, |tree, dir| tree.rmdir(cx, dir, name))
    }

    fn rename(
        &self,
        cx: &Cx,
        from: (NodeId, Name<'_>),
        to: (NodeId, Name<'_>),
        flags: RenameFlags,
    ) -> Result<()> {
        self.0.free(from.0, from.1)?;
        self.0.free(to.0, to.1)?;
        self.0.on(cx, [from.0, to.0], Call::Once, |at, [a, b]| {
            at.tree.rename(cx, (a, from.1), (b, to.1), flags)
        })?;
        let (from, to) = ((from.0, from.1.as_os_str()), (to.0, to.1.as_os_str()));
        if flags.exchange {
            self.0.ids.exchange(from, to);
        } else {
            self.0.ids.rename(from, to);
        }
        Ok(())
    }

    fn link(&self, cx: &Cx, node: NodeId, dir: NodeId, name: Name<'_>) -> Result<Attr> {
        self.0.unused(dir, name)?;
        self.0.on(cx, [node, dir], Call::Once, |at, [node, inner]| {
            let attr = at.tree.link(cx, node, inner, name)?;
            Ok(self.0.told(at, dir, name.as_os_str(), attr))
        })
    }

    fn symlink(&self, cx: &Cx, dir: NodeId, name: Name<'_>, target: &[u8]) -> Result<Attr> {
        self.0.make(cx, dir, name, |tree, dir| tree.symlink(cx, dir, name, target))
    }

    fn readlink(&self, cx: &Cx, node: NodeId) -> Result<Bytes> {
        self.0.see(cx, node, |tree, node| tree.readlink(cx, node))
    }

    fn getxattr(&self, cx: &Cx, node: NodeId, name: &[u8]) -> Result<Bytes> {
        self.0.see(cx, node, |tree, node| tree.getxattr(cx, node, name))
    }

    fn setxattr(
        &self,
        cx: &Cx,
        node: NodeId,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        let set = |at: &At<'_>, [node]: [NodeId; 1]| at.tree.setxattr(cx, node, name, value, flags);
        self.0.on(cx, [node], Call::Once, set)
    }

    fn listxattr(&self, cx: &Cx, node: NodeId) -> Result<Vec<Vec<u8>>> {
        self.0.see(cx, node, |tree, node| tree.listxattr(cx, node))
    }

    fn removexattr(&self, cx: &Cx, node: NodeId, name: &[u8]) -> Result<()> {
        let remove = |at: &At<'_>, [node]: [NodeId; 1]| at.tree.removexattr(cx, node, name);
        self.0.on(cx, [node], Call::Once, remove)
    }

    fn lock(&self, cx: &Cx, handle: Handle, request: LockRequest) -> Result<()> {
        self.0.handles.get(handle)?.1.on(|tree, _, h| tree.lock(cx, h, request))
    }

    fn test_lock(
        &self,
        cx: &Cx,
        handle: Handle,
        request: LockRequest,
    ) -> Result<Option<LockRequest>> {
        self.0.handles.get(handle)?.1.on(|tree, _, h| tree.test_lock(cx, h, request))
    }

    fn allocate(
        &self,
        cx: &Cx,
        handle: Handle,
        offset: u64,
        len: u64,
        how: Allocate,
    ) -> Result<()> {
        let (_, file) = self.0.handles.get(handle)?;
        file.on(|tree, _, h| tree.allocate(cx, h, offset, len, how))
    }

    fn seek(&self, cx: &Cx, handle: Handle, offset: u64, to: SeekTo) -> Result<u64> {
        self.0.handles.get(handle)?.1.on(|tree, _, h| tree.seek(cx, h, offset, to))
    }

    fn copy_range(
        &self,
        cx: &Cx,
        from: (Handle, u64),
        to: (Handle, u64),
        len: u64,
    ) -> Result<Written> {
        let (source, (node, target)) = (self.0.handles.get(from.0)?.1, self.0.handles.get(to.0)?);
        let Some(inner) = source.beside(&target) else {
            return Err(Error::from_errno(libc::EXDEV, "the files are under different mounts"));
        };
        let written =
            target.on(|tree, _, h| tree.copy_range(cx, (inner, from.1), (h, to.1), len))?;
        Ok(own(node, written))
    }

    fn is_live(&self) -> bool {
        let layout = self.0.layout();
        layout.groups().all(|group| group.members[group.active()].tree.is_live())
    }

    fn statfs(&self, cx: &Cx, node: NodeId) -> Result<StatFs> {
        if self.0.is_virtual(node)? {
            return Ok(StatFs { bsize: 4096, frsize: 4096, namemax: 255, ..StatFs::default() });
        }
        self.0.see(cx, node, |tree, node| tree.statfs(cx, node))
    }

    fn path(&self, _: &Cx, node: NodeId) -> Result<TreePath> {
        self.0.ids.path(node)
    }

    fn forget(&self, node: NodeId) {
        self.0.ids.forget(node);
    }

    fn watch(&self, sink: EventSink) -> Result<Watch> {
        Ok(self.0.watchers.add(sink))
    }
}
