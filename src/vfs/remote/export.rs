//! An export of a node: which connection its calls go over, and what is done when that fails. A file
//! is known by its wire id of one epoch, and found again by its name in the next.

use super::dial::is_harmless;
use super::file::{OpenFile, entry};
use super::link::Link;
use super::peer::Peer;
use crate::base::{Code, Deadline, Error, Name, Notify, Result};
use crate::net::CallError;
use crate::vfs::handles::Handles;
use crate::vfs::ids::{Ids, NODES_MAX, Numbering};
use crate::vfs::watchers::Watchers;
use crate::vfs::wire;
use crate::vfs::{Attr, Caps, Cx, Event, NodeId, Tree, Watch, Written};
use crate::wire::fs::{self, Call, Op, Reply};
use std::ffi::OsStr;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};

/// What a node is known by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wire {
    pub epoch: u64,
    pub id: u64,
    /// Tells in the next epoch whether a file is the same; not part of the key.
    pub identity: u64,
}

impl Wire {
    pub fn new(epoch: u64, id: u64) -> Wire {
        Wire { epoch, id, identity: 0 }
    }

    pub fn told(link: &Link, a: &fs::Attr) -> Wire {
        Wire { epoch: link.epoch, id: a.id, identity: a.identity }
    }

    /// Whether this, of an earlier epoch, may be the node that is known as `new` at the same place.
    fn may_be(&self, new: &Wire) -> bool {
        self.epoch != new.epoch && self.identity == new.identity
    }
}

impl PartialEq for Wire {
    fn eq(&self, other: &Wire) -> bool {
        (self.epoch, self.id) == (other.epoch, other.id)
    }
}

impl Eq for Wire {}

impl Hash for Wire {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.epoch, self.id).hash(state);
    }
}

/// How often a busy node is asked again, and the first pause; each is twice the one before.
const BUSY_TRIES: u32 = 7;
const BUSY_MS: u64 = 5;

/// Directories that are looked up again to find a node of an earlier epoch.
const DEPTH_MAX: u32 = 256;

/// Which of a node's exports.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Which {
    First,
    Named(String),
    /// The first that is none of a service.
    Files,
    /// That of a service, whatever it is called (spec: fs 14.3).
    Service(String),
}

impl Which {
    fn of<'e>(&self, exports: &'e [fs::Export]) -> Result<&'e fs::Export> {
        let mut all = exports.iter();
        fn service(e: &fs::Export) -> Option<&str> {
            e.source_id.strip_prefix("service:")
        }
        let found = match self {
            Which::First => all.next(),
            Which::Named(name) => all.find(|e| e.name == *name),
            Which::Files => all.find(|e| service(e).is_none()),
            Which::Service(id) => all.find(|e| service(e) == Some(id)),
        };
        found.ok_or_else(|| {
            let wanted = match self {
                Which::First => "exports nothing".into(),
                Which::Files => "exports no directory".into(),
                Which::Named(name) => format!("has no export {name:?}"),
                Which::Service(id) => format!("does not run the service {id:?}"),
            };
            let names: Vec<_> = exports.iter().map(|e| e.name.as_str()).collect();
            let text = format!("the node {wanted}; it has: {}", names.join(", "));
            Error::new(Code::Enoent, text)
        })
    }
}

pub struct Remote {
    pub(super) peer: Arc<Peer>,
    which: Which,
    pub(super) ids: Ids<Wire>,
    pub(super) handles: Handles<OpenFile>,
    pub(super) watchers: Watchers,
    listens: OnceLock<Watch>,
}

impl Remote {
    /// `export`: its name, or the node's first.
    pub fn new(peer: Arc<Peer>, export: Option<String>) -> Arc<Remote> {
        Remote::of(peer, export.map_or(Which::First, Which::Named))
    }

    pub fn of(peer: Arc<Peer>, which: Which) -> Arc<Remote> {
        let root = Wire::new(0, 0);
        let remote = Arc::new(Remote {
            which,
            ids: Ids::new(root, NODES_MAX, Numbering::Counter),
            handles: Handles::default(),
            watchers: Watchers::default(),
            peer: peer.clone(),
            listens: OnceLock::new(),
        });
        let weak = Arc::downgrade(&remote);
        let listener = move |event: Option<&fs::Event>| {
            if let Some(remote) = weak.upgrade() {
                remote.heard(event);
            }
        };
        remote.listens.get_or_init(|| peer.watch(Arc::new(listener)));
        remote
    }

    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// The export as the node describes it.
    pub fn described(&self, cx: &Cx) -> Result<fs::Export> {
        let link = self.link(cx)?;
        self.exported(cx, &link, fs::Export::clone)
    }

    pub(super) fn link(&self, cx: &Cx) -> Result<Arc<Link>> {
        self.peer.link(cx.deadline, &cx.cancel)
    }

    /// Of the export, as the node describes it now; where it is missing, the node is asked once more.
    fn exported<T>(&self, cx: &Cx, link: &Link, of: impl Fn(&fs::Export) -> T) -> Result<T> {
        let exports = || self.peer.exports(link, cx.deadline, &cx.cancel);
        if let Ok(found) = self.which.of(&exports()?) {
            return Ok(of(found));
        }
        self.peer.doubt_exports();
        self.which.of(&exports()?).map(of)
    }

    /// Of the export, as the node described it last.
    fn last_told<T>(&self, link: &Link, of: impl Fn(&fs::Export) -> T) -> Option<T> {
        self.which.of(&link.told().list).ok().map(of)
    }

    fn heard(&self, event: Option<&fs::Event>) {
        let epoch = self.epoch();
        let local = |id: u64| self.ids.id(&Wire::new(epoch, id));
        let event = match event {
            None | Some(fs::Event::Resync) => Some(Event::Resync),
            Some(fs::Event::Attr { node }) => local(*node).map(Event::Attr),
            Some(fs::Event::Dir { dir, name: None }) => local(*dir).map(Event::Dir),
            Some(fs::Event::Dir { dir, name: Some(name) }) => {
                let name = Arc::from(name.as_os_str());
                local(*dir).map(|dir| Event::Entry { dir, name })
            }
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

    /// Tells the watchers of a change made here. Nodes that speak our extensions do not tell us of it;
    /// an old one has, before its reply.
    pub(super) fn changed(&self, link: &Link, events: &[Event]) {
        if link.is_ours() {
            self.watchers.announce(events);
        }
    }

    pub(super) fn announce(&self, event: Event) {
        self.watchers.announce(&[event]);
    }

    fn epoch(&self) -> u64 {
        self.ids.key(NodeId::ROOT).map_or(0, |w| w.epoch)
    }

    /// The root's wire id on this link; notes it, so that events about it are understood.
    fn root(&self, cx: &Cx, link: &Link) -> Result<u64> {
        let root = self.exported(cx, link, |e| e.root)?;
        let key = Wire::new(link.epoch, root);
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
            return self.root(cx, link);
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
        let new = Wire::told(link, &attr);
        if !key.may_be(&new) {
            return Err(crate::vfs::ids::stale());
        }
        self.ids.rekey(node, &new);
        Ok(attr.id)
    }

    /// The node that was just told. A file that is still known by what it was in an earlier epoch, perhaps
    /// because it is open, stays the file that it is.
    pub(super) fn known_as(&self, new: &Wire, dir: NodeId, name: &OsStr) -> NodeId {
        self.ids.intern_or_adopt((new, 0), dir, name, |old| old.may_be(new))
    }

    /// Runs a call made by `make` for the current link. A lost connection is made again and the call
    /// repeated once, if that cannot do it twice (it changes nothing, was not sent, or bears a number in
    /// a session that the node resumed); a node whose queue is full is asked again in growing steps.
    pub(super) fn run<T>(
        &self,
        cx: &Cx,
        op: Op,
        make: impl Fn(&Link) -> Result<Call>,
        take: impl FnOnce(&Link, Reply) -> Result<T>,
    ) -> Result<T> {
        let (mut again, mut busy) = (true, 0);
        // In a session, what changes something is numbered: sent twice, it is done once.
        let number = (!is_harmless(op)).then(|| self.peer.number());
        let mut sent_in = None;
        loop {
            cx.check()?;
            let link = self.link(cx)?;
            let slot = number.as_ref().filter(|_| link.has_session()).map(|n| n.slot());
            if let Some((epoch, error)) = sent_in.take()
                && (slot.is_none() || epoch != link.epoch)
            {
                // Nobody there remembers it: whether it was done is not known.
                return Err(error);
            }
            let outcome = make(&link).map_err(|error| CallError { error, sent: false });
            let call = |call| link.call_numbered(call, slot, cx.deadline, &cx.cancel);
            match outcome.and_then(call) {
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
                    if lost && again && sent && slot.is_some() {
                        sent_in = Some((link.epoch, error));
                        again = false;
                        continue;
                    }
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

    /// The outcome of a write to `node`.
    pub(super) fn written(node: NodeId, reply: Reply, op: Op) -> Result<Written> {
        match reply {
            Reply::Written { n, attr, extra } => {
                Ok(Written { n, attr: attr.map(|a| wire::attr_from(node, &a)), extra })
            }
            _ => Err(unexpected(op)),
        }
    }

    pub(super) fn attr(&self, link: &Link, a: &fs::Attr, dir: NodeId, name: &OsStr) -> Attr {
        wire::attr_from(self.known_as(&Wire::told(link, a), dir, name), a)
    }

    /// The reply of a call that makes an entry; old nodes do not describe it, so it is looked up.
    pub(super) fn made(
        &self,
        cx: &Cx,
        link: &Link,
        reply: Reply,
        dir: NodeId,
        name: Name<'_>,
    ) -> Result<Attr> {
        match reply {
            Reply::Attr(a) => {
                let attr = self.attr(link, &a, dir, name.as_os_str());
                self.changed(link, &[entry(dir, name)]);
                Ok(attr)
            }
            _ => self.lookup(cx, dir, name),
        }
    }

    /// Whether the node, reached and of ours, announces what happens behind its back.
    pub(super) fn is_told_of_all(&self) -> bool {
        let told = |link: &Arc<Link>| {
            link.is_ours() && self.last_told(link, |e| e.caps.native_watch) == Some(true)
        };
        self.peer.connected().as_ref().is_some_and(told)
    }

    pub(super) fn caps_now(&self, link: &Link) -> Caps {
        let told = self.last_told(link, |e| (e.ro, e.caps));
        let (read_only, caps) = told.unwrap_or_default();
        Caps {
            read_only,
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

pub(super) fn is_new(link: &Link, op: Op) -> Result<()> {
    if link.ext.has(op) {
        return Ok(());
    }
    let text = format!("{} is too old for {}", link.name, op.wire());
    Err(Error::from_errno(libc::ENOSYS, text))
}
