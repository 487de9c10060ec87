//! One tree made of others: a mount table with binds, where several trees can stand behind one mount
//! point and take over from each other. It keeps no file data and no attributes; ids of its own lead to
//! (mount, member, the member's id), and paths lead from a lost member to the next.

mod file;
mod group;
mod layout;
mod resolve;
mod tree;

use super::handles::Handles;
use super::ids::{self, Ids, Numbering};
use super::watchers::Watchers;
use super::{Event, NodeId, Tree};
use crate::base::{Name, Result, TreePath, now_ns};
use file::OpenFile;
use group::Group;
use layout::Layout;
use std::sync::{Arc, PoisonError, RwLock};

/// Trees to mount at a path; the first is preferred, the others stand in when it is lost.
#[derive(Clone)]
pub struct MountPoint {
    pub path: TreePath,
    pub members: Vec<Member>,
}

#[derive(Clone)]
pub struct Member {
    /// For people.
    pub name: String,
    pub tree: Arc<dyn Tree>,
    /// What of the tree is mounted.
    pub root: NodeId,
}

/// Makes `target`, a path of the union, reachable under `path` too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    pub path: TreePath,
    pub target: TreePath,
}

/// How a mount point stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountStatus {
    pub path: TreePath,
    pub members: Vec<String>,
    /// The member that is asked, an index.
    pub active: usize,
    /// How often one member took over from another.
    pub failovers: u64,
}

pub struct Union(Arc<Shared>);

/// What the members' events need, too.
struct Shared {
    layout: RwLock<Arc<Layout>>,
    ids: Ids<Key>,
    watchers: Watchers,
    handles: Handles<OpenFile>,
    born_ns: i64,
}

/// What a node is known by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// A directory that exists only because something is mounted below it.
    Virtual(TreePath),
    Node {
        group: u64,
        member: usize,
        node: NodeId,
    },
}

impl Union {
    /// A union that may be exported. Errors: `mount_conflict`, `bind_conflict`, EINVAL.
    pub fn new(mounts: Vec<MountPoint>, binds: Vec<Bind>) -> Result<Union> {
        Union::numbered(Numbering::Counter, mounts, binds)
    }

    /// An empty union that is mounted: its files have the same numbers in every mount.
    pub fn for_mount() -> Result<Union> {
        Union::numbered(Numbering::Identity, Vec::new(), Vec::new())
    }

    fn numbered(numbering: Numbering, mounts: Vec<MountPoint>, binds: Vec<Bind>) -> Result<Union> {
        let root = Key::Virtual(TreePath::root());
        let union = Union(Arc::new(Shared {
            layout: RwLock::default(),
            ids: Ids::new(root, ids::NODES_MAX, numbering),
            watchers: Watchers::default(),
            handles: Handles::default(),
            born_ns: now_ns(),
        }));
        union.set(mounts, binds)?;
        Ok(union)
    }

    /// Replaces the mount table. Mounts that stay keep their ids; open files stay open, also those of
    /// mounts that go. Errors, with nothing changed: as [`Union::new`].
    pub fn set(&self, mounts: Vec<MountPoint>, binds: Vec<Bind>) -> Result<()> {
        let mut place = self.0.layout.write().unwrap_or_else(PoisonError::into_inner);
        let make = |mount: MountPoint| Arc::new(Group::new(mount.path, mount.members));
        let new = Arc::new(Layout::new(mounts, binds, &place, make)?);
        let old = std::mem::replace(&mut *place, new.clone());
        drop(place);
        for group in new.groups() {
            group.watches.get_or_init(|| self.listen(group));
        }
        if !new.is_same(&old) {
            self.0.watchers.announce(&[Event::Resync]);
        }
        Ok(())
    }

    pub fn status(&self) -> Vec<MountStatus> {
        let layout = self.0.layout();
        let status = |group: &Arc<Group>| MountStatus {
            path: group.path.clone(),
            members: group.members.iter().map(|m| m.name.clone()).collect(),
            active: group.active(),
            failovers: group.failovers(),
        };
        let mut all: Vec<_> = layout.groups().map(status).collect();
        all.sort_by(|a, b| a.path.cmp(&b.path));
        all
    }

    /// The file that is at a place now takes the place of this one, which is no more: whoever knew that
    /// knows the new one by the same id, as after a rename.
    pub fn succeed(&self, old: NodeId, (dir, name): (NodeId, Name<'_>)) {
        let ids = &self.0.ids;
        let key = ids.at(dir, name.as_os_str()).and_then(|new| ids.key(new).ok());
        if let Some(key) = key {
            ids.rekey(old, &key);
            ids.intern(&key, dir, name.as_os_str());
        }
    }

    /// Files that are open now.
    pub fn open_files(&self) -> usize {
        self.0.handles.len()
    }

    /// Passes the events of a group's members on, in ids of the union. Members that tell no events
    /// are listened to in vain.
    fn listen(&self, group: &Group) -> Vec<super::Watch> {
        let members = group.members.iter().enumerate();
        let watch = |(member, m): (usize, &Member)| {
            let (shared, serial) = (Arc::downgrade(&self.0), group.serial);
            let sink = move |event| {
                if let Some(shared) = shared.upgrade() {
                    shared.pass_on(serial, member, event);
                }
            };
            m.tree.watch(Arc::new(sink)).ok()
        };
        members.filter_map(watch).collect()
    }
}

impl Shared {
    fn layout(&self) -> Arc<Layout> {
        self.layout.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn pass_on(&self, serial: u64, member: usize, event: Event) {
        let layout = self.layout();
        let Some(group) = layout.group(serial) else { return };
        // Nobody was told of a node without an id, so nobody remembers it.
        let id = |node| self.known(group, member, node);
        let event = match event {
            Event::Attr(node) => id(node).map(Event::Attr),
            Event::Data { node, generation } => {
                id(node).map(|node| Event::Data { node, generation })
            }
            Event::All { node, generation } => id(node).map(|node| Event::All { node, generation }),
            Event::Dir(node) => id(node).map(Event::Dir),
            Event::Entry { dir, name } => id(dir).map(|dir| Event::Entry { dir, name }),
            Event::Resync => (member == group.active()).then_some(Event::Resync),
        };
        if let Some(event) = event {
            self.watchers.announce(&[event]);
        }
    }

    /// The union's id of a member's node, if it has told one.
    fn known(&self, group: &Group, member: usize, node: NodeId) -> Option<NodeId> {
        if group.path.is_root() && group.members[member].root == node {
            return (member == group.active()).then_some(NodeId::ROOT);
        }
        self.ids.id(&Key::Node { group: group.serial, member, node })
    }
}
