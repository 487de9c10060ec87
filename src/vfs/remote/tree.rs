//! The tree of one export. A node is known by its wire id of one epoch, and found again by its name
//! in the next.

use super::dial::is_harmless;
use super::file::OpenFile;
use super::peer::{Link, Peer};
use crate::base::{Code, Deadline, Error, Name, Notify, Result, TreePath};
use crate::net::CallError;
use crate::vfs::handles::Handles;
use crate::vfs::ids::{Ids, NODES_MAX, Numbering};
use crate::vfs::watchers::Watchers;
use crate::vfs::wire;
use crate::vfs::{
    Attr, Caps, Cx, DirPage, Event, EventSink, Handle, LockRequest, NodeId, OpenFlags, Opened,
    Read, ReadDir, RenameFlags, SetAttr, StatFs, Tree, Watch, Written, XattrFlags,
};
use crate::wire::fs::{self, Call, Op, Reply};
use bytes::Bytes;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

/// What a node is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Wire {
    pub epoch: u64,
    pub id: u64,
}

/// How often a busy node is asked again, and the first pause; each is twice the one before.
const BUSY_TRIES: u32 = 7;
const BUSY_MS: u64 = 5;

/// Directories that are looked up again to find a node of an earlier epoch.
const DEPTH_MAX: u32 = 256;

pub struct Remote {
    pub(super) peer: Arc<Peer>,
    /// `None`: the node's first.
    export: Option<String>,
    pub(super) ids: Ids<Wire>,
    pub(super) handles: Handles<OpenFile>,
    watchers: Watchers,
}

impl Remote {
    pub fn new(peer: Arc<Peer>, export: Option<String>) -> Arc<Remote> {
        let root = Wire { epoch: 0, id: 0 };
        let remote = Arc::new(Remote {
            export,
            ids: Ids::new(root, NODES_MAX, Numbering::Counter),
            handles: Handles::default(),
            watchers: Watchers::default(),
            peer: peer.clone(),
        });
        let weak = Arc::downgrade(&remote);
        peer.listen(Arc::new(move |event| {
            if let Some(remote) = weak.upgrade() {
                remote.heard(event);
            }
        }));
        remote
    }

    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// The export as the node describes it.
    pub fn described(&self, cx: &Cx) -> Result<fs::Export> {
        let link = self.link(cx)?;
        self.exported(&link).cloned()
    }

    pub(super) fn link(&self, cx: &Cx) -> Result<Arc<Link>> {
        self.peer.link(cx.deadline, &cx.cancel)
    }

    fn exported<'l>(&self, link: &'l Link) -> Result<&'l fs::Export> {
        let found = match &self.export {
            Some(name) => link.exports.iter().find(|e| e.name == *name),
            None => link.exports.first(),
        };
        found.ok_or_else(|| {
            let names: Vec<_> = link.exports.iter().map(|e| e.name.as_str()).collect();
            let wanted = self.export.as_deref().unwrap_or("any");
            let text = format!("the node has no export {wanted:?}; it has: {}", names.join(", "));
            Error::new(Code::Enoent, text)
        })
    }

    fn heard(&self, event: Option<&fs::Event>) {
        let epoch = self.epoch();
        let local = |id: u64| self.ids.id(&Wire { epoch, id });
        let event = match event {
            None | Some(fs::Event::Resync) => Some(Event::Resync),
            Some(fs::Event::Attr { node }) => local(*node).map(Event::Attr),
            Some(fs::Event::Dir { dir }) => local(*dir).map(Event::Dir),
            Some(fs::Event::Data { node, generation }) => {
                local(*node).map(|node| Event::Data { node, generation: *generation })
            }
            Some(fs::Event::All { node, generation }) => {
                local(*node).map(|node| Event::All { node, generation: *generation })
            }
        };
        // A node that nobody was told of is nobody's concern.
        if let Some(event) = event {
            self.announce(event);
        }
    }

    pub(super) fn announce(&self, event: Event) {
        self.watchers.announce(&[event]);
    }

    fn epoch(&self) -> u64 {
        self.ids.key(NodeId::ROOT).map_or(0, |w| w.epoch)
    }

    /// The root's wire id on this link; notes it, so that events about it are understood.
    fn root(&self, link: &Link) -> Result<u64> {
        let root = self.exported(link)?.root;
        let key = Wire { epoch: link.epoch, id: root };
        if self.ids.key(NodeId::ROOT)? != key {
            self.ids.rekey(NodeId::ROOT, &key);
        }
        Ok(root)
    }

    /// The wire id of a node on this link; one of an earlier epoch is looked up again by its name.
    pub(super) fn wire(&self, cx: &Cx, link: &Link, node: NodeId) -> Result<u64> {
        self.wire_at_depth(cx, link, node, DEPTH_MAX)
    }

    fn wire_at_depth(&self, cx: &Cx, link: &Link, node: NodeId, depth: u32) -> Result<u64> {
        if node == NodeId::ROOT {
            return self.root(link);
        }
        let key = self.ids.key(node)?;
        if key.epoch == link.epoch {
            return Ok(key.id);
        }
        let place = self.ids.places(node).into_iter().next();
        let ((dir, name), Some(depth)) =
            (place.ok_or_else(crate::vfs::ids::stale)?, depth.checked_sub(1))
        else {
            return Err(crate::vfs::ids::stale());
        };
        let dir = self.wire_at_depth(cx, link, dir, depth)?;
        let call = Call::Lookup { dir, name: name.to_os_string() };
        let Reply::Attr(attr) = link.call(call, cx.deadline, &cx.cancel)? else {
            return Err(unexpected(Op::Lookup));
        };
        self.ids.rekey(node, &Wire { epoch: link.epoch, id: attr.id });
        Ok(attr.id)
    }

    /// Runs a call made by `make` for the current link. A lost connection is made again and the call
    /// repeated once, if that cannot do it twice; a node whose queue is full is asked again in growing
    /// steps.
    pub(super) fn run<T>(
        &self,
        cx: &Cx,
        op: Op,
        make: impl Fn(&Link) -> Result<Call>,
        take: impl FnOnce(&Link, Reply) -> Result<T>,
    ) -> Result<T> {
        let (mut again, mut busy) = (true, 0);
        loop {
            cx.check()?;
            let link = self.link(cx)?;
            let outcome = make(&link).map_err(|error| CallError { error, sent: false });
            match outcome.and_then(|call| link.call(call, cx.deadline, &cx.cancel)) {
                Ok(reply) => return take(&link, reply),
                Err(CallError { error, sent }) => {
                    if error.code == Code::Timeout {
                        self.peer.doubt(&link);
                    }
                    // EAGAIN of anything but a lock: it was refused unseen (design: queue_saturated).
                    if error.errno() == libc::EAGAIN && op != Op::Lock && busy < BUSY_TRIES {
                        let pause = Deadline::after_ms(BUSY_MS << busy);
                        let nobody = Notify::default();
                        nobody.wait(nobody.seen(), pause).block(cx.deadline, &cx.cancel)?;
                        busy += 1;
                        continue;
                    }
                    let lost = error.is_peer_lost();
                    if !(lost && again && (!sent || is_harmless(op))) {
                        // Not sent: a sibling may do it instead, and will not do it twice.
                        let unsent = lost && !sent;
                        return Err(if unsent { error.recode(Code::Refused) } else { error });
                    }
                    again = false;
                }
            }
        }
    }

    pub(super) fn attr(&self, link: &Link, a: &fs::Attr, dir: NodeId, name: &OsStr) -> Attr {
        let id = self.ids.intern(&Wire { epoch: link.epoch, id: a.id }, dir, name);
        wire::attr_from(id, a)
    }

    /// The reply of a call that makes an entry; old nodes do not describe it, so it is looked up.
    fn made(
        &self,
        cx: &Cx,
        link: &Link,
        reply: Reply,
        dir: NodeId,
        name: Name<'_>,
    ) -> Result<Attr> {
        match reply {
            Reply::Attr(a) => Ok(self.attr(link, &a, dir, name.as_os_str())),
            _ => self.lookup(cx, dir, name),
        }
    }

    fn caps_now(&self, link: &Link) -> Caps {
        let export = self.exported(link).ok();
        let caps = export.map(|e| e.caps).unwrap_or_default();
        Caps {
            read_only: export.is_some_and(|e| e.ro),
            case_sensitive: caps.case_sensitive,
            symlink: caps.symlink,
            xattr: caps.xattr,
            locks: caps.locks,
            native_watch: caps.native_watch,
        }
    }
}

pub(super) fn unexpected(op: Op) -> Error {
    let text = format!("the node's reply to {} is of another kind", op.upper());
    Error::new(Code::Unavailable, text)
}

fn is_new(link: &Link, op: Op) -> Result<()> {
    if link.ext.has(op) {
        return Ok(());
    }
    let text = format!("{} is too old for {}", link.name, op.wire());
    Err(Error::from_errno(libc::ENOSYS, text))
}

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
        self.run(cx, Op::Setattr, make, |_, reply| Ok(reply)).and_then(|reply| match reply {
            Reply::Attr(a) => Ok(wire::attr_from(node, &a)),
            _ => self.getattr(cx, node),
        })
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
        self.run(cx, Op::Unlink, make, |_, _| Ok(()))?;
        self.ids.remove(dir, name.as_os_str(), false);
        Ok(())
    }

    fn rmdir(&self, cx: &Cx, dir: NodeId, name: Name<'_>) -> Result<()> {
        let make = |link: &Link| {
            let dir = self.wire(cx, link, dir)?;
            Ok(Call::Rmdir { dir, name: name.as_os_str().to_os_string() })
        };
        self.run(cx, Op::Rmdir, make, |_, _| Ok(()))?;
        self.ids.remove(dir, name.as_os_str(), true);
        Ok(())
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
        self.run(cx, Op::Rename, make, |_, _| Ok(()))?;
        let (from, to) = ((from.0, from.1.as_os_str()), (to.0, to.1.as_os_str()));
        if flags.exchange {
            self.ids.exchange(from, to);
        } else {
            self.ids.rename(from, to);
        }
        Ok(())
    }

    fn link(&self, cx: &Cx, node: NodeId, dir: NodeId, name: Name<'_>) -> Result<Attr> {
        let make = |link: &Link| {
            is_new(link, Op::Link)?;
            let (node, dir) = (self.wire(cx, link, node)?, self.wire(cx, link, dir)?);
            Ok(Call::Link { node, dir, name: name.as_os_str().to_os_string() })
        };
        self.run(cx, Op::Link, make, |link, reply| self.made(cx, link, reply, dir, name))
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
        node: NodeId,
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
            let node = self.wire(cx, link, node)?;
            Ok(Call::Setxattr { node, name: os(name), value: value.to_vec(), flags })
        };
        self.run(cx, Op::Setxattr, make, |_, _| Ok(()))
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
        self.run(cx, Op::Removexattr, make, |_, _| Ok(()))
    }

    fn lock(&self, cx: &Cx, handle: Handle, request: LockRequest) -> Result<()> {
        let kind = wire::lock_to(request.kind);
        let make = |link: &Link| {
            let h = self.wire_handle(cx, link, handle)?;
            Ok(Call::Lock { h, kind, wait: false, owner: request.owner })
        };
        self.run(cx, Op::Lock, make, |_, _| Ok(()))
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

    fn watch(&self, sink: EventSink) -> Result<Watch> {
        Ok(self.watchers.add(sink))
    }
}

fn os(name: &[u8]) -> OsString {
    OsStr::from_bytes(name).to_os_string()
}
