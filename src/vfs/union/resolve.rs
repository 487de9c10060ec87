//! From ids and paths of the union to nodes of its members, and on to the next member when one is lost.

use super::layout::{BINDS_MAX, Layout};
use super::{Event, Group, Key, Member, Shared};
use crate::base::{Code, Error, Name, Result, TreePath};
use crate::vfs::{Attr, Cx, Kind, NodeId, Tree, ids};
use std::ffi::OsStr;
use std::sync::Arc;

/// A node of the union, found.
enum Spot {
    Virtual,
    Node { group: Arc<Group>, member: usize, node: NodeId },
}

/// Nodes of one member, at hand for one call.
pub struct At<'a> {
    pub group: &'a Arc<Group>,
    pub member: usize,
    pub tree: &'a dyn Tree,
}

/// Whether a call may be made twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Repeatable,
    /// It changes something: made again elsewhere only if it certainly was not made here.
    Once,
}

impl Shared {
    fn spot(&self, cx: &Cx, layout: &Layout, id: NodeId) -> Result<Spot> {
        if id == NodeId::ROOT {
            return Ok(match layout.mount(&TreePath::root()) {
                None => Spot::Virtual,
                Some(group) => {
                    let member = group.active();
                    let node = group.members[member].root;
                    Spot::Node { group: group.clone(), member, node }
                }
            });
        }
        let (key, paths) = self.ids.paths(id)?;
        match key {
            Key::Virtual(path) if layout.is_above(&path) => Ok(Spot::Virtual),
            Key::Virtual(_) => Err(ids::stale()),
            Key::Node { group, member, node } => {
                let group = layout.group(group).ok_or_else(ids::stale)?.clone();
                let active = group.active();
                if member == active {
                    return Ok(Spot::Node { group, member, node });
                }
                let node = at_member(cx, &group, active, &paths)?.id;
                self.ids.rekey(id, &Key::Node { group: group.serial, member: active, node });
                Ok(Spot::Node { group, member: active, node })
            }
        }
    }

    /// Calls `f` with the member that holds these nodes and its ids of them; when the member is lost,
    /// with the next. Errors: EXDEV when they are not under one mount point, EROFS for a directory
    /// that only holds mount points.
    pub fn on<T, const N: usize>(
        &self,
        cx: &Cx,
        nodes: [NodeId; N],
        call: Call,
        f: impl Fn(&At<'_>, [NodeId; N]) -> Result<T>,
    ) -> Result<T> {
        let layout = self.layout();
        let mut tried = 0;
        loop {
            tried += 1;
            let (at, error, sent) = match self.spots(cx, &layout, nodes) {
                Ok((group, member, inner)) => {
                    let at = At { group: &group, member, tree: &*group.members[member].tree };
                    match f(&at, inner) {
                        Err(e) if e.is_peer_lost() => ((group, member), e, true),
                        outcome => {
                            self.served(&group, member);
                            return outcome;
                        }
                    }
                }
                // Lost on the way there: the new member was asked for the path of a node.
                Err(e) if e.is_peer_lost() => {
                    let group = self.group_of(&layout, nodes[0])?;
                    let member = group.active();
                    ((group, member), e, false)
                }
                Err(e) => return Err(e),
            };
            let (group, lost) = at;
            group.pass_over(lost);
            let unmade = call == Call::Repeatable || !sent || error.code == Code::Refused;
            if tried >= group.members.len() || !unmade {
                return Err(error);
            }
        }
    }

    /// The one member that holds all of these nodes.
    fn spots<const N: usize>(
        &self,
        cx: &Cx,
        layout: &Layout,
        nodes: [NodeId; N],
    ) -> Result<(Arc<Group>, usize, [NodeId; N])> {
        let mut inner = nodes;
        let mut holder: Option<(Arc<Group>, usize)> = None;
        for (id, inner) in nodes.iter().zip(&mut inner) {
            let Spot::Node { group, member, node } = self.spot(cx, layout, *id)? else {
                return Err(Error::from_errno(
                    libc::EROFS,
                    "this directory only holds mount points",
                ));
            };
            *inner = node;
            match &holder {
                Some((other, _)) if other.serial != group.serial => {
                    return Err(Error::from_errno(libc::EXDEV, "not under one mount point"));
                }
                Some((_, other)) if *other != member => {
                    return Err(Error::new(Code::Refused, "another member took over just now"));
                }
                _ => holder = Some((group, member)),
            }
        }
        let (group, member) = holder.ok_or_else(ids::stale)?;
        Ok((group, member, inner))
    }

    fn group_of(&self, layout: &Layout, id: NodeId) -> Result<Arc<Group>> {
        let group = match self.ids.key(id)? {
            Key::Virtual(path) => layout.mount(&path),
            Key::Node { group, .. } => layout.group(group),
        };
        group.cloned().ok_or_else(ids::stale)
    }

    /// Where a member takes over, whoever remembers something remembers it of the one that is lost.
    pub fn served(&self, group: &Group, member: usize) {
        if group.served(member) {
            self.watchers.announce(&[Event::Resync]);
        }
    }

    /// A member's attributes as the union tells them, of what was seen at (`dir`, `name`).
    pub fn told(&self, at: &At<'_>, dir: NodeId, name: &OsStr, attr: Attr) -> Attr {
        let serial = at.group.serial;
        let key = Key::Node { group: serial, member: at.member, node: attr.id };
        let same_place = |old: &Key| matches!(old, Key::Node { group, member, .. } if *group == serial && *member != at.member);
        let known = (&key, attr.identity);
        Attr { id: self.ids.intern_or_adopt(known, dir, name, same_place), ..attr }
    }

    /// One step down from a directory. `budget` is the number of binds that may still be followed.
    pub fn step(&self, cx: &Cx, dir: NodeId, name: Name<'_>, budget: u32) -> Result<Attr> {
        let layout = self.layout();
        let path = self.ids.path(dir)?.join(name);
        if let Some(target) = layout.bind(&path) {
            let budget = budget.checked_sub(1).ok_or_else(|| {
                Error::from_errno(libc::ELOOP, format!("{path}: binds lead in a circle"))
            })?;
            return self.walk(cx, target, budget).or_else(|e| match e.is_peer_lost() {
                // What a lost node cannot tell, whatever the bind covers may.
                true => self.covered(cx, dir, name).map_err(|_| e),
                false => Err(e),
            });
        }
        if let Some(group) = layout.mount(&path) {
            return self.mounted(cx, group, dir, name.as_os_str());
        }
        match self.covered(cx, dir, name) {
            Ok(attr) if attr.kind == Kind::Dir => Ok(attr),
            _ if layout.is_above(&path) => {
                let id = self.ids.intern(&Key::Virtual(path), dir, name.as_os_str());
                Ok(self.virtual_attr(id))
            }
            // A directory that only holds mount points holds no more than these.
            Err(e) if e.errno() == libc::EROFS => {
                Err(Error::from_errno(libc::ENOENT, "file not found"))
            }
            real => real,
        }
    }

    /// What the tree that holds a directory has there, mounts and binds left aside.
    fn covered(&self, cx: &Cx, dir: NodeId, name: Name<'_>) -> Result<Attr> {
        self.on(cx, [dir], Call::Repeatable, |at, [inner]| {
            Ok(self.told(at, dir, name.as_os_str(), at.tree.lookup(cx, inner, name)?))
        })
    }

    fn walk(&self, cx: &Cx, path: &TreePath, budget: u32) -> Result<Attr> {
        let mut at = self.getattr(cx, NodeId::ROOT)?;
        for name in path.names() {
            at = self.step(cx, at.id, name, budget)?;
        }
        Ok(at)
    }

    /// The root of what is mounted at (`dir`, `name`).
    fn mounted(&self, cx: &Cx, group: &Arc<Group>, dir: NodeId, name: &OsStr) -> Result<Attr> {
        let id = self.mount_id(group, dir, name);
        self.on(cx, [id], Call::Repeatable, |at, [inner]| {
            let attr = at.tree.getattr(cx, inner)?;
            Ok(Attr { id, ..attr })
        })
    }

    fn mount_id(&self, group: &Arc<Group>, dir: NodeId, name: &OsStr) -> NodeId {
        let member = group.active();
        let at = At { group, member, tree: &*group.members[member].tree };
        let root = Attr { id: group.members[member].root, ..self.virtual_attr(NodeId::ROOT) };
        self.told(&at, dir, name, root).id
    }

    /// An entry that the mount table puts into a directory; a mount point is listed even while it
    /// cannot be reached, a bind that leads nowhere is not.
    pub fn nested(&self, cx: &Cx, layout: &Layout, dir: NodeId, name: Name<'_>) -> Option<Attr> {
        self.step(cx, dir, name, BINDS_MAX).ok().or_else(|| {
            let path = self.ids.path(dir).ok()?.join(name);
            let id = self.mount_id(layout.mount(&path)?, dir, name.as_os_str());
            Some(self.virtual_attr(id))
        })
    }

    pub fn getattr(&self, cx: &Cx, id: NodeId) -> Result<Attr> {
        if self.is_virtual(id)? {
            return Ok(self.virtual_attr(id));
        }
        let get = |at: &At<'_>, [inner]: [NodeId; 1]| at.tree.getattr(cx, inner);
        Ok(Attr { id, ..self.on(cx, [id], Call::Repeatable, get)? })
    }

    /// Whether a node is a directory that only holds mount points. Errors: ESTALE.
    pub fn is_virtual(&self, id: NodeId) -> Result<bool> {
        match self.ids.key(id)? {
            Key::Node { .. } => Ok(false),
            Key::Virtual(path) => {
                let layout = self.layout();
                let real = path.is_root() && layout.mount(&path).is_some();
                let gone = !path.is_root() && !layout.is_above(&path);
                if gone { Err(ids::stale()) } else { Ok(!real) }
            }
        }
    }

    fn virtual_attr(&self, id: NodeId) -> Attr {
        Attr {
            id,
            kind: Kind::Dir,
            mode: libc::S_IFDIR | 0o555,
            nlink: 2,
            uid: nix::unistd::getuid().as_raw(),
            gid: nix::unistd::getgid().as_raw(),
            size: 0,
            blocks: 0,
            atime_ns: self.born_ns,
            mtime_ns: self.born_ns,
            ctime_ns: self.born_ns,
            generation: 0,
            identity: 0,
        }
    }
}

/// Finds in a member what has one of these paths in the union. Errors: ESTALE.
pub fn at_member(cx: &Cx, group: &Group, member: usize, paths: &[TreePath]) -> Result<Attr> {
    let Member { tree, root, .. } = &group.members[member];
    for path in paths.iter().filter_map(|path| path.below(&group.path)) {
        let mut at = tree.getattr(cx, *root)?;
        let walk = path.names().try_for_each(|name| -> Result<()> {
            at = tree.lookup(cx, at.id, name)?;
            Ok(())
        });
        match walk {
            Ok(()) => return Ok(at),
            Err(e) if matches!(e.errno(), libc::ENOENT | libc::ENOTDIR) => {}
            Err(e) => return Err(e),
        }
    }
    Err(ids::stale())
}
