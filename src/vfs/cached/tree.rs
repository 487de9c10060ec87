//! The cached tree as a tree.

use super::Cached;
use super::file::CONTENT_MAX;
use super::meta::Found;
use super::pages::Came;
use crate::base::{Error, Name, Result, TreePath};
use crate::vfs::{
    Allocate, Attr, Caps, Cx, DirEntry, DirPage, Event, EventSink, Handle, LockKind, LockRequest,
    NodeId, OpenFlags, Opened, PageLimit, Read, ReadDir, RenameFlags, SeekTo, SetAttr, StatFs,
    Tree, Watch, Written, XattrFlags,
};
use bytes::Bytes;

impl Cached {
    /// Attributes as they are once what was written behind has arrived.
    fn settled(&self, cx: &Cx, attr: Attr) -> Result<Attr> {
        if !self.behind.is_dirty(attr.id) {
            return Ok(attr);
        }
        self.getattr(cx, attr.id)
    }

    fn found(&self, cx: &Cx, dir: NodeId, name: Name<'_>) -> Option<Result<Attr>> {
        match self.meta.entry(dir, name.as_os_str()) {
            Found::There(attr) => Some(self.settled(cx, attr)),
            Found::Absent => Some(Err(Error::from_errno(libc::ENOENT, "file not found"))),
            Found::Unknown => None,
        }
    }

    /// Notes what was made at (`dir`, `name`).
    fn made(&self, since: super::meta::Since, dir: NodeId, name: Name<'_>, attr: &Attr) {
        let until = self.until();
        self.meta.change_entry(since, dir, name.as_os_str(), Some(Some(attr.id)), until);
        self.meta.put_attr(since, attr, until);
        self.meta.expire_attr(dir);
    }

    /// Notes that (`dir`, `name`) is no more, and that its node has a link less, if that.
    fn removed(&self, since: super::meta::Since, dir: NodeId, name: Name<'_>) {
        if let Some(node) = self.meta.node_at(dir, name.as_os_str()) {
            self.meta.expire_attr(node);
        }
        self.meta.change_entry(since, dir, name.as_os_str(), Some(None), self.until());
        self.meta.expire_attr(dir);
    }

    /// What is remembered from `at` on, as far as it is known without a gap; `None` if nothing is.
    fn remembered(&self, at: &ReadDir) -> Option<DirPage> {
        let (listing, generation) = self.meta.listing(at.dir)?;
        let start = match at.cookie {
            0 => 0,
            cookie => listing.iter().position(|e| e.cookie == cookie)? + 1,
        };
        let mut page = DirPage { generation, eof: true, entries: Vec::new() };
        let mut bytes = 0;
        for e in &listing[start..] {
            bytes += e.name.len() + PageLimit::ENTRY_BYTES;
            let full = page.entries.len() >= at.limit.entries.max(1) || bytes > at.limit.bytes;
            let attr = self.meta.attr(e.node).filter(|_| !self.behind.is_dirty(e.node));
            let (false, Some(attr)) = (full && !page.entries.is_empty(), attr) else {
                page.eof = false;
                break;
            };
            page.entries.push(DirEntry { name: e.name.to_os_string(), attr, cookie: e.cookie });
        }
        (page.eof || !page.entries.is_empty()).then_some(page)
    }

    fn asked(&self, cx: &Cx, at: ReadDir) -> Result<Came> {
        let (since, until) = (self.meta.now(), self.until());
        let page = self.known(at.dir, self.inner.readdir(cx, at))?;
        Ok(Came { since, until, page })
    }

    /// A page as the tree tells it, remembered.
    fn page(&self, cx: &Cx, at: ReadDir) -> Result<DirPage> {
        let ahead = self.pages.take(&at, cx.deadline, &cx.cancel)?;
        let came = match ahead.filter(|came| self.meta.listing_holds(at.dir, came.since)) {
            Some(came) => came,
            None => self.asked(cx, at)?,
        };
        let Came { since, until, mut page } = came;
        self.ask_ahead(&at, &page);
        self.meta.put_page(since, at.dir, at.cookie, &page, until);
        for e in &mut page.entries {
            if self.behind.is_dirty(e.attr.id) || !self.meta.holds(e.attr.id, since) {
                e.attr = self.getattr(cx, e.attr.id)?;
            }
        }
        Ok(page)
    }

    /// Has the page behind this one asked for, while its reader is busy with this one.
    fn ask_ahead(&self, at: &ReadDir, page: &DirPage) {
        let Some(last) = page.entries.last().filter(|_| !page.eof) else { return };
        let at = ReadDir { cookie: last.cookie, ..*at };
        let (inner, cx) = (self.inner.clone(), self.background());
        let (since, until) = (self.meta.now(), self.until());
        let fetch = move || inner.readdir(&cx, at).map(|page| Came { since, until, page });
        self.pages.ask(&at, &self.workers, fetch);
    }
}

impl Tree for Cached {
    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn lookup(&self, cx: &Cx, dir: NodeId, name: Name<'_>) -> Result<Attr> {
        if let Some(found) = self.found(cx, dir, name) {
            return found;
        }
        // Whoever asks for one name after the other will ask for more of them.
        if self.meta.is_worth_listing(dir) {
            let start = ReadDir { dir, cookie: 0, limit: PageLimit::DEFAULT };
            if self.page(cx, start).is_ok()
                && let Some(found) = self.found(cx, dir, name)
            {
                return found;
            }
        }
        let since = self.meta.now();
        let (outcome, name) = (self.inner.lookup(cx, dir, name), name.as_os_str());
        match &outcome {
            Ok(attr) => {
                let until = self.until();
                self.meta.put_entry(since, dir, name, Some(Some(attr.id)), until);
                self.meta.put_attr(since, attr, until);
            }
            Err(e) if e.errno() == libc::ENOENT => {
                self.meta.put_entry(since, dir, name, Some(None), self.until());
            }
            Err(_) => {}
        }
        self.known(dir, outcome).and_then(|attr| self.settled(cx, attr))
    }

    fn getattr(&self, cx: &Cx, node: NodeId) -> Result<Attr> {
        self.drain(cx, node)?;
        if let Some(attr) = self.meta.attr(node) {
            return Ok(attr);
        }
        let since = self.meta.now();
        let attr = self.known(node, self.inner.getattr(cx, node))?;
        self.meta.put_attr(since, &attr, self.until());
        Ok(attr)
    }

    fn setattr(
        &self,
        cx: &Cx,
        node: NodeId,
        handle: Option<Handle>,
        set: &SetAttr,
    ) -> Result<Attr> {
        self.drain(cx, node)?;
        let since = self.meta.edit(node);
        let outcome = self.own.run(|| self.inner.setattr(cx, node, handle, set));
        let attr = self.known(node, outcome)?;
        self.meta.wrote(since, &attr, self.until());
        Ok(attr)
    }

    fn readdir(&self, cx: &Cx, at: ReadDir) -> Result<DirPage> {
        self.remembered(&at).map_or_else(|| self.page(cx, at), Ok)
    }

    /// Asks the tree each time: the answer comes behind the events of what was changed before. A small file that
    /// nobody has read comes with it.
    fn open(&self, cx: &Cx, node: NodeId, flags: OpenFlags) -> Result<Opened> {
        self.drain(cx, node)?;
        let since = self.meta.now();
        let share = self.wants_content(node, flags);
        let content_max = share.as_ref().map_or(0, |_| CONTENT_MAX);
        let asked = OpenFlags { content_max, ..flags };
        let opened = self.own.run(|| self.inner.open(cx, node, asked));
        let mut opened = self.known(node, opened)?;
        if flags.truncate {
            self.meta.edit(node);
        }
        let content = opened.content.take().zip(share);
        let opened = self.keep(node, flags, opened);
        if let Some((content, share)) = content.filter(|_| self.meta.holds(node, since)) {
            self.begin_with(node, opened.handle, content, share);
        }
        Ok(opened)
    }

    fn create(
        &self,
        cx: &Cx,
        dir: NodeId,
        name: Name<'_>,
        mode: u32,
        flags: OpenFlags,
    ) -> Result<(Attr, Opened)> {
        let since = self.meta.now();
        let made = self.own.run(|| self.inner.create(cx, dir, name, mode, flags));
        let (attr, opened) = self.known(dir, made)?;
        self.made(since, dir, name, &attr);
        let opened = self.keep(attr.id, flags, opened);
        Ok((self.settled(cx, attr)?, opened))
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
        self.settle(cx, handle)?;
        self.inner.fsync(cx, handle, data_only)
    }

    fn allocate(
        &self,
        cx: &Cx,
        handle: Handle,
        offset: u64,
        len: u64,
        how: Allocate,
    ) -> Result<()> {
        self.drain_handle(cx, handle)?;
        let outcome = self.own.run(|| self.inner.allocate(cx, handle, offset, len, how));
        if let Some(file) = self.file(handle) {
            self.meta.edit(file.node);
        }
        outcome
    }

    fn seek(&self, cx: &Cx, handle: Handle, offset: u64, to: SeekTo) -> Result<u64> {
        self.drain_handle(cx, handle)?;
        self.inner.seek(cx, handle, offset, to)
    }

    fn copy_range(
        &self,
        cx: &Cx,
        from: (Handle, u64),
        to: (Handle, u64),
        len: u64,
    ) -> Result<Written> {
        self.drain_handle(cx, from.0)?;
        self.drain_handle(cx, to.0)?;
        let since = match self.file(to.0) {
            Some(file) => self.meta.edit(file.node),
            None => self.meta.now(),
        };
        let written = self.own.run(|| self.inner.copy_range(cx, from, to, len))?;
        match (&written.attr, self.file(to.0)) {
            (Some(attr), _) => self.meta.wrote(since, attr, self.until()),
            (None, Some(file)) => drop(self.meta.edit(file.node)),
            (None, None) => {}
        }
        Ok(written)
    }

    fn release(&self, cx: &Cx, handle: Handle) -> Result<()> {
        self.release_file(cx, handle)
    }

    fn mkdir(&self, cx: &Cx, dir: NodeId, name: Name<'_>, mode: u32) -> Result<Attr> {
        let since = self.meta.now();
        let made = self.own.run(|| self.inner.mkdir(cx, dir, name, mode));
        let attr = self.known(dir, made)?;
        self.meta.put_empty(since, attr.id, self.until());
        self.made(since, dir, name, &attr);
        Ok(attr)
    }

    fn unlink(&self, cx: &Cx, dir: NodeId, name: Name<'_>) -> Result<()> {
        let since = self.meta.now();
        let outcome = self.own.run(|| self.inner.unlink(cx, dir, name));
        self.known(dir, outcome)?;
        self.removed(since, dir, name);
        Ok(())
    }

    fn rmdir(&self, cx: &Cx, dir: NodeId, name: Name<'_>) -> Result<()> {
        let since = self.meta.now();
        let outcome = self.own.run(|| self.inner.rmdir(cx, dir, name));
        self.known(dir, outcome)?;
        if let Some(node) = self.meta.node_at(dir, name.as_os_str()) {
            self.meta.forget(node);
        }
        self.removed(since, dir, name);
        Ok(())
    }

    fn rename(
        &self,
        cx: &Cx,
        from: (NodeId, Name<'_>),
        to: (NodeId, Name<'_>),
        flags: RenameFlags,
    ) -> Result<()> {
        let since = self.meta.now();
        let outcome = self.own.run(|| self.inner.rename(cx, from, to, flags));
        self.known(from.0, self.known(to.0, outcome))?;
        let (old, new) = (from.1.as_os_str(), to.1.as_os_str());
        let (moved, replaced) = (self.meta.node_at(from.0, old), self.meta.node_at(to.0, new));
        let until = self.until();
        // Only what is certain is put in its new place.
        let (at_old, at_new) = (self.meta.leads_to(from.0, old), self.meta.leads_to(to.0, new));
        if from.0 == to.0 && old == new || moved.is_some() && moved == replaced {
            // Two names of one file: rename(2) leaves both.
            self.meta.change_entry(since, from.0, old, None, until);
        } else if flags.exchange {
            self.meta.change_entry(since, from.0, old, at_new.map(Some), until);
        } else {
            self.meta.change_entry(since, from.0, old, Some(None), until);
        }
        self.meta.change_entry(since, to.0, new, at_old.map(Some), until);
        for node in [moved, replaced, Some(from.0), Some(to.0)].into_iter().flatten() {
            self.meta.expire_attr(node);
        }
        Ok(())
    }

    fn link(&self, cx: &Cx, node: NodeId, dir: NodeId, name: Name<'_>) -> Result<Attr> {
        self.drain(cx, node)?;
        let since = self.meta.now();
        let attr = self.own.run(|| self.inner.link(cx, node, dir, name));
        let attr = self.known(node, attr)?;
        self.made(since, dir, name, &attr);
        Ok(attr)
    }

    fn symlink(&self, cx: &Cx, dir: NodeId, name: Name<'_>, target: &[u8]) -> Result<Attr> {
        let since = self.meta.now();
        let attr = self.own.run(|| self.inner.symlink(cx, dir, name, target));
        let attr = self.known(dir, attr)?;
        self.made(since, dir, name, &attr);
        Ok(attr)
    }

    fn readlink(&self, cx: &Cx, node: NodeId) -> Result<Bytes> {
        self.known(node, self.inner.readlink(cx, node))
    }

    fn getxattr(&self, cx: &Cx, node: NodeId, name: &[u8]) -> Result<Bytes> {
        self.known(node, self.inner.getxattr(cx, node, name))
    }

    fn setxattr(
        &self,
        cx: &Cx,
        node: NodeId,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        let outcome = self.own.run(|| self.inner.setxattr(cx, node, name, value, flags));
        self.meta.expire_attr(node);
        self.known(node, outcome)
    }

    fn listxattr(&self, cx: &Cx, node: NodeId) -> Result<Vec<Vec<u8>>> {
        self.known(node, self.inner.listxattr(cx, node))
    }

    fn removexattr(&self, cx: &Cx, node: NodeId, name: &[u8]) -> Result<()> {
        let outcome = self.own.run(|| self.inner.removexattr(cx, node, name));
        self.meta.expire_attr(node);
        self.known(node, outcome)
    }

    /// Whoever gets a lock sees what the one before him wrote: that has arrived before the lock was
    /// given back, and nothing older is believed.
    fn lock(&self, cx: &Cx, handle: Handle, request: LockRequest) -> Result<()> {
        if request.kind == LockKind::Unlock {
            self.drain_handle(cx, handle)?;
        }
        self.inner.lock(cx, handle, request)?;
        if request.kind != LockKind::Unlock
            && let Some(file) = self.file(handle)
            && !self.inner.is_live()
        {
            // Nobody told what the others did.
            let event = Event::Data { node: file.node, generation: None };
            self.meta.heard(&event);
            self.watchers.announce(&[event]);
        }
        Ok(())
    }

    fn test_lock(
        &self,
        cx: &Cx,
        handle: Handle,
        request: LockRequest,
    ) -> Result<Option<LockRequest>> {
        self.inner.test_lock(cx, handle, request)
    }

    fn statfs(&self, cx: &Cx, node: NodeId) -> Result<StatFs> {
        self.known(node, self.inner.statfs(cx, node))
    }

    fn path(&self, cx: &Cx, node: NodeId) -> Result<TreePath> {
        self.inner.path(cx, node)
    }

    fn forget(&self, node: NodeId) {
        self.inner.forget(node);
    }

    fn is_live(&self) -> bool {
        self.inner.is_live()
    }

    fn watch(&self, sink: EventSink) -> Result<Watch> {
        Ok(self.watchers.add(sink))
    }
}
