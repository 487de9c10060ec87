//! The tree that serves [`Item`]s.

use super::{Dir, File, FileStat, Item, OpenFile, not_found};
use crate::base::{Error, Name, Result, TreePath, now_ms};
use crate::vfs::caller::Caller;
use crate::vfs::handles::Handles;
use crate::vfs::ids::{self, Ids, Numbering};
use crate::vfs::watchers::Watchers;
use crate::vfs::{
    Attr, Caps, Cx, DirEntry, DirPage, Event, EventSink, FileKind, Handle, Kind, NodeId, OpenFlags,
    Opened, PageLimit, Read, ReadDir, RenameFlags, SetAttr, StatFs, Tree, Watch, Who, Written,
};
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

/// Names after which walks through directories may go on, remembered in case they vanish.
const COOKIES_MAX: usize = 16_384;
/// How often a name that others keep creating and removing is tried.
const RACES_MAX: u32 = 16;

pub struct Synthetic {
    root: Arc<dyn Dir>,
    ids: Ids<Key>,
    handles: Handles<Open>,
    cookies: Mutex<Cookies>,
    watchers: Watchers,
    born_ms: i64,
}

/// What a node is known by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Place(NodeId, Box<str>),
    Own(u64),
}

struct Open {
    who: Arc<Who>,
    flags: OpenFlags,
    file: Arc<dyn File>,
    io: Mutex<Box<dyn OpenFile>>,
}

#[derive(Default)]
struct Cookies {
    names: HashMap<(NodeId, u64), Box<str>>,
    order: VecDeque<(NodeId, u64)>,
}

impl Synthetic {
    pub fn new(root: impl Into<Item>) -> Result<Synthetic> {
        let Item::Dir(root) = root.into() else {
            return Err(Error::from_errno(libc::ENOTDIR, "the root of a tree is a directory"));
        };
        Ok(Synthetic {
            ids: Ids::new(Key::Place(NodeId::ROOT, "".into()), ids::NODES_MAX, Numbering::Hash),
            root,
            handles: Handles::default(),
            cookies: Mutex::default(),
            watchers: Watchers::default(),
            born_ms: now_ms(),
        })
    }

    /// Tells watchers, also those whose call has brought it about, that what stands at `path` is not what
    /// it was: made, changed, or removed.
    pub fn changed(&self, path: &TreePath) {
        Caller::nobody(|| self.announce_at(path));
    }

    fn announce_at(&self, path: &TreePath) {
        let mut names = path.names().peekable();
        let mut dir = NodeId::ROOT;
        while let Some(name) = names.next() {
            let node = self.ids.at(dir, name.as_os_str());
            if names.peek().is_none() {
                self.watchers.announce(&[Event::Dir(dir)]);
            }
            // Nobody was told of it, so nobody remembers it.
            let Some(node) = node else { return };
            dir = node;
        }
        self.watchers.announce(&[Event::All { node: dir, generation: None }]);
    }

    /// Walks to the node as this caller sees it. Errors: ESTALE when nothing or something else is there.
    fn item(&self, cx: &Cx, id: NodeId) -> Result<Item> {
        if id == NodeId::ROOT {
            return Ok(Item::Dir(self.root.clone()));
        }
        let (key, paths) = self.ids.paths(id)?;
        for path in paths {
            match self.walk(cx, &path) {
                Ok(item) if is_same(&item, &key) => return Ok(item),
                Ok(_) => {}
                Err(e) if matches!(e.errno(), libc::ENOENT | libc::ENOTDIR) => {}
                Err(e) => return Err(e),
            }
        }
        // Removed, but this very caller has it open.
        let open = self.handles.of_node(id, |open| open.who == cx.who);
        open.map(|open| Item::File(open.file.clone())).ok_or_else(ids::stale)
    }

    fn walk(&self, cx: &Cx, path: &TreePath) -> Result<Item> {
        path.names().try_fold(Item::Dir(self.root.clone()), |at, name| match at {
            Item::Dir(dir) => dir.lookup(cx, text(name)?),
            Item::File(_) => Err(not_a_directory()),
        })
    }

    fn dir(&self, cx: &Cx, id: NodeId) -> Result<Arc<dyn Dir>> {
        match self.item(cx, id)? {
            Item::Dir(dir) => Ok(dir),
            Item::File(_) => Err(not_a_directory()),
        }
    }

    fn intern(&self, dir: NodeId, name: &str, item: &Item) -> NodeId {
        let key = item.identity().map_or_else(|| Key::Place(dir, name.into()), Key::Own);
        self.ids.intern(&key, dir, OsStr::new(name))
    }

    fn attr(&self, cx: &Cx, id: NodeId, item: &Item) -> Result<Attr> {
        let (kind, mode, nlink, stat) = match item {
            Item::Dir(dir) => {
                let mode = if dir.writable(cx) { 0o755 } else { 0o555 };
                (Kind::Dir, libc::S_IFDIR | mode, 2, FileStat::default())
            }
            Item::File(file) => {
                let mode = if file.writable(cx) { 0o644 } else { 0o444 };
                (Kind::File, libc::S_IFREG | mode, 1, file.stat(cx)?)
            }
        };
        let mtime_ms = if stat.mtime_ms == 0 { self.born_ms } else { stat.mtime_ms };
        let mtime_ns = mtime_ms.saturating_mul(1_000_000);
        Ok(Attr {
            id,
            kind,
            mode,
            nlink,
            uid: nix::unistd::getuid().as_raw(),
            gid: nix::unistd::getgid().as_raw(),
            size: stat.size,
            blocks: stat.size.div_ceil(512),
            atime_ns: mtime_ns,
            mtime_ns,
            ctime_ns: mtime_ns,
            generation: stat.generation,
            identity: 0,
        })
    }

    fn open_file(
        &self,
        cx: &Cx,
        id: NodeId,
        file: Arc<dyn File>,
        flags: OpenFlags,
    ) -> Result<Opened> {
        if (flags.writes() || flags.truncate) && !file.writable(cx) {
            return Err(Error::from_errno(libc::EACCES, "this file cannot be written"));
        }
        let io = Mutex::new(file.clone().open(cx, flags)?);
        if flags.truncate {
            file.setattr(cx, &SetAttr { size: Some(0), ..SetAttr::default() })?;
            self.watchers.announce(&[Event::Data { node: id, generation: None }]);
        }
        let (kind, generation) = match file.kind() {
            FileKind::Plain => (FileKind::Plain, file.stat(cx)?.generation),
            kind => (kind, 0),
        };
        let patience_ms = file.patience_ms();
        let handle = self.handles.insert(id, Open { who: cx.who.clone(), flags, file, io })?;
        Ok(Opened { handle, kind, generation, patience_ms, content: None })
    }

    /// Where in a sorted listing to go on.
    fn resume(&self, at: ReadDir, list: &[(String, Item)]) -> Result<usize> {
        if at.cookie == 0 {
            return Ok(0);
        }
        let cookies = self.cookies.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = cookies.names.get(&(at.dir, at.cookie)) {
            return Ok(list.partition_point(|(name, _)| **name <= **last));
        }
        let last = list.iter().position(|(name, _)| cookie(name) == at.cookie);
        last.map(|i| i + 1).ok_or_else(|| {
            Error::from_errno(libc::ESTALE, "the listing was left for too long; start it again")
        })
    }

    fn remember(&self, dir: NodeId, entries: &[DirEntry]) {
        let mut cookies = self.cookies.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in entries {
            let name = entry.name.to_str().unwrap_or_default().into();
            if cookies.names.insert((dir, entry.cookie), name).is_none() {
                cookies.order.push_back((dir, entry.cookie));
            }
            if cookies.order.len() > COOKIES_MAX
                && let Some(oldest) = cookies.order.pop_front()
            {
                cookies.names.remove(&oldest);
            }
        }
    }
}

/// Never 0, below 2^53.
fn cookie(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    (hasher.finish() >> 12) | 1
}

fn is_same(item: &Item, key: &Key) -> bool {
    match (item.identity(), key) {
        (Some(own), Key::Own(known)) => own == *known,
        (None, Key::Place(..)) => true,
        _ => false,
    }
}

/// Errors: ENOENT, for no name here is other than UTF-8.
fn text(name: Name<'_>) -> Result<&str> {
    name.as_str().ok_or_else(|| not_found(&name.to_string()))
}

/// Errors: EINVAL.
fn new_text(name: Name<'_>) -> Result<&str> {
    name.as_str().ok_or_else(|| Error::invalid(format!("name {name:?} must be UTF-8")))
}

fn not_a_directory() -> Error {
    Error::from_errno(libc::ENOTDIR, "node is not a directory")
}

impl Tree for Synthetic {
    fn caps(&self) -> Caps {
        Caps {
            read_only: false,
            case_sensitive: true,
            symlink: false,
            xattr: false,
            locks: false,
            native_watch: false,
        }
    }

    fn lookup(&self, cx: &Cx, dir: NodeId, name: Name<'_>) -> Result<Attr> {
        let item = self.dir(cx, dir)?.lookup(cx, text(name)?)?;
        self.attr(cx, self.intern(dir, text(name)?, &item), &item)
    }

    fn getattr(&self, cx: &Cx, node: NodeId) -> Result<Attr> {
        self.attr(cx, node, &self.item(cx, node)?)
    }

    fn setattr(&self, cx: &Cx, node: NodeId, _: Option<Handle>, set: &SetAttr) -> Result<Attr> {
        let item = self.item(cx, node)?;
        match &item {
            Item::Dir(_) if set.size.is_some() => {
                return Err(Error::from_errno(libc::EISDIR, "is a directory"));
            }
            _ if set.mode.is_some() || set.uid.is_some() || set.gid.is_some() => {
                return Err(Error::from_errno(libc::EPERM, "modes and owners are fixed here"));
            }
            Item::Dir(_) => {}
            Item::File(file) if !file.writable(cx) => {
                return Err(Error::from_errno(libc::EACCES, "this file cannot be written"));
            }
            Item::File(file) => file.setattr(cx, set)?,
        }
        let attr = self.attr(cx, node, &item)?;
        let generation = Some(attr.generation);
        self.watchers.announce(&[match set.size {
            Some(_) => Event::All { node, generation },
            None => Event::Attr(node),
        }]);
        Ok(attr)
    }

    fn readdir(&self, cx: &Cx, at: ReadDir) -> Result<DirPage> {
        let mut list = self.dir(cx, at.dir)?.list(cx)?;
        list.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut page = DirPage { eof: true, ..DirPage::default() };
        let mut bytes = 0;
        for (name, item) in &list[self.resume(at, &list)?..] {
            cx.check()?;
            let cost = name.len() + PageLimit::ENTRY_BYTES;
            let full = page.entries.len() >= at.limit.entries || bytes + cost > at.limit.bytes;
            if full && !page.entries.is_empty() {
                page.eof = false;
                break;
            }
            // What has vanished, or must not be looked at, is not there.
            let Ok(attr) = self.attr(cx, self.intern(at.dir, name, item), item) else { continue };
            bytes += cost;
            page.entries.push(DirEntry { name: name.into(), attr, cookie: cookie(name) });
        }
        self.remember(at.dir, &page.entries);
        Ok(page)
    }

    fn open(&self, cx: &Cx, node: NodeId, flags: OpenFlags) -> Result<Opened> {
        match self.item(cx, node)? {
            Item::File(file) => self.open_file(cx, node, file, flags),
            Item::Dir(_) => Err(Error::from_errno(libc::EISDIR, "is a directory")),
        }
    }

    fn create(
        &self,
        cx: &Cx,
        dir: NodeId,
        name: Name<'_>,
        _mode: u32,
        flags: OpenFlags,
    ) -> Result<(Attr, Opened)> {
        let (parent, name) = (self.dir(cx, dir)?, new_text(name)?);
        for _ in 0..RACES_MAX {
            let (item, made) = match parent.lookup(cx, name) {
                Ok(_) if flags.exclusive => {
                    return Err(Error::from_errno(libc::EEXIST, format!("{name}: path exists")));
                }
                Ok(item) => (item, false),
                Err(e) if e.errno() == libc::ENOENT => match parent.create(cx, name) {
                    Ok(file) => (Item::File(file), true),
                    Err(e) if e.errno() == libc::EEXIST => continue,
                    Err(e) => return Err(e),
                },
                Err(e) => return Err(e),
            };
            let Item::File(file) = &item else {
                return Err(Error::from_errno(libc::EISDIR, "is a directory"));
            };
            let id = self.intern(dir, name, &item);
            let opened = self.open_file(cx, id, file.clone(), flags)?;
            let attr = self.attr(cx, id, &item)?;
            if made {
                let generation = Some(attr.generation);
                self.watchers.announce(&[Event::Dir(dir), Event::All { node: id, generation }]);
            }
            return Ok((attr, opened));
        }
        Err(Error::from_errno(libc::EAGAIN, "the name keeps coming and going; try again"))
    }

    fn read(&self, cx: &Cx, handle: Handle, offset: u64, len: u32) -> Result<Read> {
        let (_, open) = self.handles.get(handle)?;
        if !open.flags.reads() {
            return Err(Error::from_errno(libc::EBADF, "handle not readable"));
        }
        open.io.lock().unwrap_or_else(PoisonError::into_inner).read(cx, offset, len)
    }

    fn write(&self, cx: &Cx, handle: Handle, offset: u64, data: Bytes) -> Result<Written> {
        let (node, open) = self.handles.get(handle)?;
        if !open.flags.writes() {
            return Err(Error::from_errno(libc::EBADF, "handle not writable"));
        }
        let mut io = open.io.lock().unwrap_or_else(PoisonError::into_inner);
        let written = io.write(cx, offset, &data)?;
        drop(io);
        self.watchers.announce(&[Event::Data { node, generation: None }]);
        Ok(written)
    }

    fn flush(&self, cx: &Cx, handle: Handle) -> Result<Written> {
        let (_, open) = self.handles.get(handle)?;
        open.io.lock().unwrap_or_else(PoisonError::into_inner).flush(cx)
    }

    fn release(&self, _: &Cx, handle: Handle) -> Result<()> {
        self.handles.remove(handle).map(drop)
    }

    fn mkdir(&self, cx: &Cx, dir: NodeId, name: Name<'_>, _mode: u32) -> Result<Attr> {
        let name = new_text(name)?;
        let item = Item::Dir(self.dir(cx, dir)?.mkdir(cx, name)?);
        let attr = self.attr(cx, self.intern(dir, name, &item), &item)?;
        self.watchers.announce(&[Event::Dir(dir)]);
        Ok(attr)
    }

    fn unlink(&self, cx: &Cx, dir: NodeId, name: Name<'_>) -> Result<()> {
        self.dir(cx, dir)?.unlink(cx, text(name)?)?;
        self.ids.remove(dir, name.as_os_str(), true);
        self.watchers.announce(&[Event::Dir(dir)]);
        Ok(())
    }

    fn rmdir(&self, cx: &Cx, dir: NodeId, name: Name<'_>) -> Result<()> {
        self.dir(cx, dir)?.rmdir(cx, text(name)?)?;
        self.ids.remove(dir, name.as_os_str(), true);
        self.watchers.announce(&[Event::Dir(dir)]);
        Ok(())
    }

    fn rename(
        &self,
        cx: &Cx,
        from: (NodeId, Name<'_>),
        to: (NodeId, Name<'_>),
        flags: RenameFlags,
    ) -> Result<()> {
        let (old, new) = (text(from.1)?, new_text(to.1)?);
        let (source, target) = (self.dir(cx, from.0)?, self.dir(cx, to.0)?);
        let moved = source.lookup(cx, old)?;
        source.rename(cx, old, &target, new, flags)?;
        let node = self.intern(from.0, old, &moved);
        let (from, to) = ((from.0, from.1.as_os_str()), (to.0, to.1.as_os_str()));
        if from == to {
            return Ok(());
        }
        if flags.exchange {
            self.ids.exchange(from, to);
        } else {
            self.ids.remove(to.0, to.1, true);
            self.ids.rename(from, to);
        }
        self.watchers.announce(&[Event::Dir(from.0)]);
        if to.0 != from.0 {
            self.watchers.announce(&[Event::Dir(to.0)]);
        }
        self.watchers.announce(&[Event::All { node, generation: None }]);
        Ok(())
    }

    fn statfs(&self, _: &Cx, _: NodeId) -> Result<StatFs> {
        const BLOCK: u32 = 4096;
        let (used, limit) = self.root.space().unwrap_or_default();
        let blocks = limit / u64::from(BLOCK);
        let free = limit.saturating_sub(used) / u64::from(BLOCK);
        Ok(StatFs {
            bsize: BLOCK,
            frsize: BLOCK,
            blocks,
            bfree: free,
            bavail: free,
            namemax: 255,
            ..StatFs::default()
        })
    }

    fn path(&self, _: &Cx, node: NodeId) -> Result<TreePath> {
        self.ids.path(node)
    }

    fn forget(&self, node: NodeId) {
        self.ids.forget(node);
    }

    fn watch(&self, sink: EventSink) -> Result<Watch> {
        Ok(self.watchers.add(sink))
    }
}
