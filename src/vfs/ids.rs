//! The bounded table of the nodes a tree has told: id ↔ what the tree knows the node by (`K`: an
//! inode, a member's node, …), and the places (directory, name) where it was last seen. Paths are made
//! from the places, so the rename of a directory moves everything below it at no cost.
//!
//! It never asks the tree anything: a place is what was true when it was told, and whoever uses a path
//! checks that it still leads to the same `K`.

use super::NodeId;
use crate::base::{Error, Name, Result, TreePath};
use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Ids stay below 2^40, so that the number of an export fits above them (spec: fs 4, ids below 2^53).
const ID_BITS: u32 = 40;
/// Places kept of one node: hard links beyond these must be looked up again after the others went.
const PLACES_MAX: usize = 8;
/// Nodes a tree remembers unless told otherwise; about 300 bytes each, and just below where the maps
/// would double.
pub const NODES_MAX: usize = 200_000;

/// Fewer than this would not hold one path.
const NODES_MIN: usize = 8;

/// How a new node gets its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbering {
    /// The next one: an id is never used twice.
    Counter,
    /// A hash of the key, or the next free number: the same key keeps its id when it was forgotten.
    Hash,
    /// Made of the file's [`identity`](super::Attr::identity), so that the file has the same number every
    /// time; the next one where it has none, or another node has that number. For a tree that is not
    /// exported: such ids do not stay below 2^40.
    Identity,
}

/// Set in ids that are made of an identity: the counted ones never come so far.
const IDENTITY_BIT: u64 = 1 << 52;

pub struct Ids<K> {
    state: RwLock<State<K>>,
    max: usize,
    numbering: Numbering,
}

type Place = (NodeId, Arc<OsStr>);

struct State<K> {
    nodes: HashMap<NodeId, Node<K>>,
    by_key: HashMap<K, NodeId>,
    /// A place leads to one node, the one last seen there.
    by_place: HashMap<Place, NodeId>,
    /// Every node but the root, once: the hand of the clock stands at the front.
    clock: VecDeque<NodeId>,
    next: u64,
}

struct Node<K> {
    key: K,
    /// The newest last.
    places: Vec<Place>,
    /// Places below this node; it stays while there are any.
    children: u32,
    used: AtomicBool,
}

impl<K: Clone + Eq + Hash> Ids<K> {
    pub fn new(root: K, max: usize, numbering: Numbering) -> Ids<K> {
        let mut state = State {
            nodes: HashMap::new(),
            by_key: HashMap::from([(root.clone(), NodeId::ROOT)]),
            by_place: HashMap::new(),
            clock: VecDeque::new(),
            next: NodeId::ROOT.0 + 1,
        };
        state.nodes.insert(NodeId::ROOT, Node::new(root));
        Ids { state: RwLock::new(state), max: max.max(NODES_MIN), numbering }
    }

    /// The id of `key`, which was just seen at (`dir`, `name`).
    pub fn intern(&self, key: &K, dir: NodeId, name: &OsStr) -> NodeId {
        self.intern_or_adopt((key, 0), dir, name, |_| false)
    }

    /// As [`Ids::intern`], of a file with this identity; but where `key` is new and `same` says that the
    /// node last seen at that place is only known by another key, that node gets the new key and keeps
    /// its id.
    pub fn intern_or_adopt(
        &self,
        (key, identity): (&K, u64),
        dir: NodeId,
        name: &OsStr,
        same: impl Fn(&K) -> bool,
    ) -> NodeId {
        if let Some(id) = self.known(key, dir, name) {
            return id;
        }
        let place: Place = (dir, name.into());
        let mut s = self.write();
        let id = match (s.by_key.get(key).copied(), s.by_place.get(&place).copied()) {
            (Some(id), _) => id,
            (None, Some(id)) if same(&s.nodes[&id].key) => {
                s.rekey(id, key.clone());
                id
            }
            _ => {
                s.make_room(self.max, dir);
                s.add(key.clone(), self.numbering, identity)
            }
        };
        s.put(id, place);
        id
    }

    fn known(&self, key: &K, dir: NodeId, name: &OsStr) -> Option<NodeId> {
        let s = self.read();
        let id = *s.by_key.get(key)?;
        let node = &s.nodes[&id];
        node.used.store(true, Ordering::Relaxed);
        let here = id == NodeId::ROOT || node.places.iter().any(|(d, n)| *d == dir && **n == *name);
        here.then_some(id)
    }

    /// The node is known by another key from now on.
    pub fn rekey(&self, id: NodeId, key: &K) {
        let mut s = self.write();
        if s.nodes.contains_key(&id) {
            s.rekey(id, key.clone());
        }
    }

    pub fn id(&self, key: &K) -> Option<NodeId> {
        self.read().by_key.get(key).copied()
    }

    /// The node last seen at a place.
    pub fn at(&self, dir: NodeId, name: &OsStr) -> Option<NodeId> {
        self.read().by_place.get(&(dir, name.into())).copied()
    }

    /// Errors: ESTALE.
    pub fn key(&self, id: NodeId) -> Result<K> {
        self.read().nodes.get(&id).map(|n| n.key.clone()).ok_or_else(stale)
    }

    /// What the node is known by, and the paths it was seen at, the newest first.
    /// Errors: ESTALE for an unknown id, ENAMETOOLONG when no path of it is short enough.
    pub fn paths(&self, id: NodeId) -> Result<(K, Vec<TreePath>)> {
        let s = self.read();
        let node = s.nodes.get(&id).ok_or_else(stale)?;
        node.used.store(true, Ordering::Relaxed);
        if id == NodeId::ROOT {
            return Ok((node.key.clone(), vec![TreePath::root()]));
        }
        let mut paths = Vec::with_capacity(node.places.len());
        let mut outcome = Ok(());
        for place in node.places.iter().rev() {
            match s.path(place) {
                Ok(path) => paths.push(path),
                Err(e) => outcome = Err(e),
            }
        }
        if paths.is_empty() {
            outcome?
        }
        Ok((node.key.clone(), paths))
    }

    /// The path the node was last seen at. Errors: ESTALE; those of [`Ids::paths`].
    pub fn path(&self, id: NodeId) -> Result<TreePath> {
        self.paths(id)?.1.into_iter().next().ok_or_else(stale)
    }

    /// The places themselves, the newest first.
    pub fn places(&self, id: NodeId) -> Vec<(NodeId, Arc<OsStr>)> {
        self.read()
            .nodes
            .get(&id)
            .map_or_else(Vec::new, |n| n.places.iter().rev().cloned().collect())
    }

    /// The name (`dir`, `name`) is no more. With `gone`, neither is the node that it led to: its key may
    /// come to mean another one. Its id stays good for open handles until it is the oldest.
    pub fn remove(&self, dir: NodeId, name: &OsStr, gone: bool) -> Option<NodeId> {
        let mut s = self.write();
        let id = s.by_place.get(&(dir, name.into())).copied()?;
        s.take(id, &(dir, name.into()));
        if gone {
            s.disown(id);
        }
        Some(id)
    }

    /// What was at `from` is now at `to`. Returns its id.
    pub fn rename(&self, from: (NodeId, &OsStr), to: (NodeId, &OsStr)) -> Option<NodeId> {
        let mut s = self.write();
        let from: Place = (from.0, from.1.into());
        let id = s.by_place.get(&from).copied()?;
        s.take(id, &from);
        s.put(id, (to.0, to.1.into()));
        Some(id)
    }

    /// What was at `a` is now at `b`, and the other way round.
    pub fn exchange(&self, a: (NodeId, &OsStr), b: (NodeId, &OsStr)) {
        let mut s = self.write();
        let (a, b): (Place, Place) = ((a.0, a.1.into()), (b.0, b.1.into()));
        let (at_a, at_b) = (s.by_place.get(&a).copied(), s.by_place.get(&b).copied());
        for (id, from) in [(at_a, &a), (at_b, &b)] {
            if let Some(id) = id {
                s.take(id, from);
            }
        }
        for (id, to) in [(at_a, b), (at_b, a)] {
            if let Some(id) = id {
                s.put(id, to);
            }
        }
    }

    /// Makes this node one of the next to go, unless it is used again.
    pub fn forget(&self, id: NodeId) {
        if let Some(node) = self.read().nodes.get(&id) {
            node.used.store(false, Ordering::Relaxed);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State<K>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State<K>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error for an id that is not, or no longer, known.
pub fn stale() -> Error {
    Error::from_errno(libc::ESTALE, "this file is gone or was not used for long; look it up again")
}

impl<K> Node<K> {
    fn new(key: K) -> Node<K> {
        Node { key, places: Vec::new(), children: 0, used: AtomicBool::new(false) }
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    fn add(&mut self, key: K, numbering: Numbering, identity: u64) -> NodeId {
        let own = NodeId(IDENTITY_BIT | (identity & (IDENTITY_BIT - 1)));
        let id = match numbering {
            Numbering::Identity if identity != 0 && !self.nodes.contains_key(&own) => own,
            Numbering::Counter | Numbering::Identity => {
                self.next += 1;
                NodeId(self.next - 1)
            }
            Numbering::Hash => {
                let mut hasher = DefaultHasher::new();
                key.hash(&mut hasher);
                let mut n = hasher.finish() >> (64 - ID_BITS);
                while n <= NodeId::ROOT.0 || self.nodes.contains_key(&NodeId(n)) {
                    n = (n + 1) % (1 << ID_BITS);
                }
                NodeId(n)
            }
        };
        self.by_key.insert(key.clone(), id);
        self.nodes.insert(id, Node::new(key));
        self.clock.push_back(id);
        id
    }

    fn rekey(&mut self, id: NodeId, key: K) {
        self.disown(id);
        self.by_key.insert(key.clone(), id);
        self.nodes.get_mut(&id).expect("an indexed node").key = key;
    }

    /// The key no longer leads to the node.
    fn disown(&mut self, id: NodeId) {
        let key = &self.nodes[&id].key;
        if self.by_key.get(key) == Some(&id) {
            self.by_key.remove(key);
        }
    }

    fn put(&mut self, id: NodeId, place: Place) {
        if let Some(other) = self.by_place.get(&place).copied() {
            self.take(other, &place);
        }
        // A directory that went in the meantime has no children.
        let Some(dir) = self.nodes.get_mut(&place.0) else { return };
        if id == NodeId::ROOT || id == place.0 {
            return;
        }
        dir.children += 1;
        let oldest = {
            let places = &mut self.nodes.get_mut(&id).expect("an indexed node").places;
            // Nearly every node has one place.
            places.reserve_exact(1);
            places.push(place.clone());
            (places.len() > PLACES_MAX).then(|| places[0].clone())
        };
        self.by_place.insert(place, id);
        if let Some(oldest) = oldest {
            self.take(id, &oldest);
        }
    }

    fn take(&mut self, id: NodeId, place: &Place) {
        self.by_place.remove(place);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.places.retain(|p| p != place);
        }
        if let Some(dir) = self.nodes.get_mut(&place.0) {
            dir.children = dir.children.saturating_sub(1);
        }
    }

    /// Evicts what was not used again since it was told or the hand last came by. What has children
    /// stays, unless nothing else can go; `dir` is about to have one.
    fn make_room(&mut self, max: usize, dir: NodeId) {
        let mut patience = 2 * self.clock.len();
        while self.nodes.len() >= max {
            let Some(id) = self.clock.pop_front() else { return };
            let node = &self.nodes[&id];
            let wanted = node.used.swap(false, Ordering::Relaxed) || node.children > 0;
            if id == dir || (wanted && patience > 0) {
                patience = patience.saturating_sub(1);
                self.clock.push_back(id);
                continue;
            }
            self.disown(id);
            for place in self.nodes[&id].places.clone() {
                self.take(id, &place);
            }
            self.nodes.remove(&id);
        }
    }

    /// The path of a place. Places told at different times can contradict each other, even form a
    /// circle: the bound on a path's length ends that too.
    fn path(&self, place: &Place) -> Result<TreePath> {
        let mut names = vec![&*place.1];
        let (mut dir, mut len) = (place.0, place.1.len());
        while dir != NodeId::ROOT {
            let (parent, name) =
                self.nodes.get(&dir).and_then(|n| n.places.last()).ok_or_else(stale)?;
            len += name.len() + 1;
            if len >= crate::base::PATH_MAX {
                return Err(Error::from_errno(
                    libc::ENAMETOOLONG,
                    "path is longer than 4096 bytes",
                ));
            }
            names.push(name);
            dir = *parent;
        }
        let mut path = TreePath::root();
        for name in names.into_iter().rev() {
            path = path.join(Name::new(name)?);
        }
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(ids: &Ids<u32>, id: NodeId) -> String {
        ids.path(id).unwrap().display().into_owned()
    }

    fn name(s: &str) -> &OsStr {
        OsStr::new(s)
    }

    #[test]
    fn what_is_not_used_goes_first_and_never_its_parents() {
        let ids = Ids::new(0, 10, Numbering::Counter);
        let dir = ids.intern(&1, NodeId::ROOT, name("d"));
        let kept = ids.intern(&2, dir, name("kept"));
        for n in 10..100u32 {
            ids.intern(&n, dir, name(&n.to_string()));
            assert_eq!(path(&ids, kept), "/d/kept");
        }
        assert_eq!(ids.id(&10), None);
        assert_eq!(ids.at(dir, name("10")), None);
        assert_eq!(ids.read().nodes.len(), 10);
        assert_eq!(ids.read().nodes[&dir].children, 8);
        assert!(ids.intern(&10, dir, name("10")).0 > 90, "a number is not given twice");
    }

    #[test]
    fn a_place_leads_to_the_node_last_seen_there() {
        let ids = Ids::new(0, 100, Numbering::Counter);
        let a = ids.intern(&1, NodeId::ROOT, name("a"));
        assert_eq!(ids.intern(&1, NodeId::ROOT, name("b")), a);
        assert_eq!(ids.paths(a).unwrap().1.len(), 2);
        let c = ids.intern(&2, NodeId::ROOT, name("b"));
        assert_eq!((path(&ids, a), path(&ids, c)), ("/a".into(), "/b".into()));
        ids.remove(NodeId::ROOT, name("a"), true);
        assert_eq!(ids.path(a).unwrap_err().errno(), libc::ESTALE);
        assert_ne!(ids.intern(&1, NodeId::ROOT, name("a")), a, "the key means another node now");
        assert_eq!(ids.intern_or_adopt((&3, 0), NodeId::ROOT, name("b"), |k| *k == 2), c);
        assert_eq!((ids.id(&2), ids.id(&3)), (None, Some(c)));
    }

    #[test]
    fn hashed_numbers_come_back() {
        let ids = Ids::new(0, 8, Numbering::Hash);
        let first = ids.intern(&7, NodeId::ROOT, name("x"));
        for n in 100..120 {
            ids.intern(&n, NodeId::ROOT, name(&n.to_string()));
        }
        assert_eq!(ids.id(&7), None);
        assert_eq!(ids.intern(&7, NodeId::ROOT, name("x")), first);
        assert!(first.0 < 1 << ID_BITS);
    }

    #[test]
    fn a_file_has_the_number_of_its_identity_unless_another_has_it() {
        let number = |ids: &Ids<u32>, key: u32, identity: u64| {
            ids.intern_or_adopt((&key, identity), NodeId::ROOT, name(&key.to_string()), |_| false)
        };
        let (one, other) =
            (Ids::new(0, 100, Numbering::Identity), Ids::new(0, 100, Numbering::Identity));
        number(&other, 1, 1 << 51);
        assert_eq!(number(&one, 7, 99), number(&other, 8, 99));
        let (twin, unknown) = (number(&one, 9, 99), number(&one, 10, 0));
        assert_ne!(twin, number(&one, 7, 99));
        assert_eq!(twin, number(&one, 9, 99), "known by its key from now on");
        assert!(unknown.0 < 1 << ID_BITS && number(&one, 7, 99).0 < 1 << 53);
    }

    #[test]
    fn places_that_form_a_circle_end_in_an_error() {
        let ids = Ids::new(0, 100, Numbering::Counter);
        let a = ids.intern(&1, NodeId::ROOT, name("a"));
        let b = ids.intern(&2, a, name("b"));
        ids.intern(&1, b, name("a"));
        assert_eq!(ids.path(b).unwrap_err().errno(), libc::ENAMETOOLONG);
        ids.intern(&2, NodeId::ROOT, name("b"));
        assert_eq!(path(&ids, a), "/b/a");
    }
}
