//! What is remembered of names and attributes: bounded, dropped by events, and by time where the tree
//! underneath cannot promise that every change is told.
//!
//! An answer may be overtaken by the event that makes it wrong. So whoever asks takes the time
//! ([`Meta::now`]) before, and what comes back is only kept if nothing was told of that file since.

mod dir;

use super::clock::Clock;
use crate::vfs::{Attr, Event, Kind, NodeId};
use dir::{Dir, Entry, Growing, Listed};
use std::ffi::OsStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const SHARDS: usize = 16;
/// Slots for the times of events; files share them, at the price of an answer not kept.
const STAMPS: usize = 1024;
/// What one file costs, name and attributes together, about.
const NODE_BYTES: usize = 320;
/// Names asked for one by one before the whole directory is.
const MISSES: u32 = 2;

/// A moment in the order of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since(u64);

/// Tells one content of a file from the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Edition {
    version: u64,
    edits: u64,
}

/// How long an answer may be believed; `None`: until an event says otherwise.
pub type Until = Option<Instant>;

/// What is known of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Unknown,
    Absent,
    There(Attr),
}

pub struct Meta {
    ttl: Duration,
    shards: Vec<Mutex<Shard>>,
    names_max: usize,
    now: AtomicU64,
    /// When something was last told of a file itself, and of the names in a directory.
    stamps: Vec<AtomicU64>,
    name_stamps: Vec<AtomicU64>,
    /// When we last changed a name in a directory ourselves.
    own_stamps: Vec<AtomicU64>,
    /// When everything was last forgotten.
    cleared: AtomicU64,
    versions: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
}

struct Shard {
    nodes: Clock<NodeId, Node>,
    /// Bounded by what is in them, see [`Shard::bound`].
    dirs: Clock<NodeId, Dir>,
    /// Names in all of its directories.
    names: usize,
}

#[derive(Default)]
struct Node {
    attr: Option<(Attr, Until)>,
    content: Option<Content>,
    /// Counts our own changes of the content.
    edits: u64,
}

/// Which content the readers of a file have seen: `version` is ours, and new whenever somebody else
/// changed it; `generation` is the tree's.
struct Content {
    version: u64,
    generation: u64,
}

impl Meta {
    /// Takes about `bytes` of memory at most. What no event ends is believed for `ttl`.
    pub fn new(bytes: usize, ttl: Duration) -> Meta {
        let each = (bytes / NODE_BYTES / SHARDS).max(64);
        let shard = || Shard { nodes: Clock::new(each), dirs: Clock::new(usize::MAX), names: 0 };
        let stamps = || (0..STAMPS).map(|_| AtomicU64::new(0)).collect();
        Meta {
            ttl,
            shards: (0..SHARDS).map(|_| Mutex::new(shard())).collect(),
            names_max: each,
            now: AtomicU64::new(1),
            stamps: stamps(),
            name_stamps: stamps(),
            own_stamps: stamps(),
            cleared: AtomicU64::new(0),
            versions: AtomicU64::new(1),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    fn shard(&self, id: NodeId) -> MutexGuard<'_, Shard> {
        // Ids count up: neighbours go to different shards.
        let n = (id.0 % SHARDS as u64) as usize;
        self.shards[n].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn now(&self) -> Since {
        Since(self.now.load(Ordering::Acquire))
    }

    fn touch(&self, id: NodeId) -> Since {
        self.stamp(&self.stamps, id)
    }

    fn touch_names(&self, dir: NodeId) {
        self.stamp(&self.name_stamps, dir);
    }

    fn stamp(&self, stamps: &[AtomicU64], id: NodeId) -> Since {
        let now = self.now.fetch_add(1, Ordering::AcqRel) + 1;
        stamps[slot(id)].fetch_max(now, Ordering::AcqRel);
        Since(now)
    }

    pub fn holds(&self, id: NodeId, since: Since) -> bool {
        self.is_older(&self.stamps, id, since)
    }

    fn names_hold(&self, dir: NodeId, since: Since) -> bool {
        self.is_older(&self.name_stamps, dir, since)
    }

    /// Whether a listing that was asked for then can still be believed. What we do ourselves is known of each
    /// name, but a listing may have been answered before it was done.
    pub fn listing_holds(&self, dir: NodeId, since: Since) -> bool {
        self.names_hold(dir, since) && self.is_older(&self.own_stamps, dir, since)
    }

    fn is_older(&self, stamps: &[AtomicU64], id: NodeId, since: Since) -> bool {
        stamps[slot(id)].load(Ordering::Acquire) <= since.0
            && self.cleared.load(Ordering::Acquire) <= since.0
    }

    /// Found and not found so far.
    pub fn counts(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }

    fn count<T>(&self, found: Option<T>) -> Option<T> {
        let which = if found.is_some() { &self.hits } else { &self.misses };
        which.fetch_add(1, Ordering::Relaxed);
        found
    }

    pub fn attr(&self, id: NodeId) -> Option<Attr> {
        let found = self.shard(id).nodes.get(&id).and_then(|n| n.known());
        self.count(found)
    }

    pub fn put_attr(&self, since: Since, attr: &Attr, until: Until) {
        let mut s = self.shard(attr.id);
        let until = until.or_else(|| s.doubt(attr).then(|| Instant::now() + self.ttl));
        // A file without a name goes with its last handle, and nobody tells.
        if attr.nlink > 0 && self.holds(attr.id, since) {
            s.nodes.entry(attr.id, Node::default).attr = Some((attr.clone(), until));
        }
    }

    /// The attributes of a node have changed; what was asked for before, and is still on its way, is
    /// not kept.
    pub fn expire_attr(&self, id: NodeId) {
        self.touch(id);
        if let Some(node) = self.shard(id).nodes.get(&id) {
            node.attr = None;
        }
    }

    /// We are about to change a file: what is told of it from now on is told of the changed one, and
    /// what another change that goes on tells is doubtful. Returns the moment for [`Meta::wrote`].
    pub fn edit(&self, id: NodeId) -> Since {
        let since = self.touch(id);
        if let Some(node) = self.shard(id).nodes.get(&id) {
            node.attr = None;
            node.edits += 1;
        }
        since
    }

    pub fn entry(&self, dir: NodeId, name: &OsStr) -> Found {
        let known = {
            let mut s = self.shard(dir);
            s.dirs.get(&dir).and_then(|d| d.find(name))
        };
        let found = match known {
            Some(None) => Some(Found::Absent),
            Some(Some(id)) => {
                let mut s = self.shard(id);
                s.nodes.get(&id).and_then(|n| n.known()).map(Found::There)
            }
            None => None,
        };
        self.count(found).unwrap_or(Found::Unknown)
    }

    /// What `name` leads to: `Some(None)` for nothing, `None` if that is not known any more.
    pub fn put_entry(
        &self,
        since: Since,
        dir: NodeId,
        name: &OsStr,
        leads_to: Option<Option<NodeId>>,
        until: Until,
    ) {
        let mut s = self.shard(dir);
        let holds = self.names_hold(dir, since);
        let d = s.dirs.entry(dir, Dir::default);
        d.set(name, leads_to, until);
        if !holds && let Some(entry) = d.entries.get_mut(name) {
            // It was so, and may be otherwise by now.
            entry.leads_to = None;
        }
        s.bound(dir, self.names_max);
    }

    /// As [`Meta::put_entry`], of what we have just done to `name`.
    pub fn change_entry(
        &self,
        since: Since,
        dir: NodeId,
        name: &OsStr,
        leads_to: Option<Option<NodeId>>,
        until: Until,
    ) {
        self.put_entry(since, dir, name, leads_to, until);
        self.stamp(&self.own_stamps, dir);
    }

    /// The node that `name` led to when that was last known.
    pub fn node_at(&self, dir: NodeId, name: &OsStr) -> Option<NodeId> {
        let mut s = self.shard(dir);
        s.dirs.get(&dir)?.entries.get(name)?.last
    }

    /// The node that `name` leads to, where that is known.
    pub fn leads_to(&self, dir: NodeId, name: &OsStr) -> Option<NodeId> {
        self.shard(dir).dirs.get(&dir)?.find(name)?
    }

    /// A directory that was just made: nothing is in it.
    pub fn put_empty(&self, since: Since, dir: NodeId, until: Until) {
        let mut s = self.shard(dir);
        if self.names_hold(dir, since) {
            s.dirs.entry(dir, Dir::default).complete = Some(until);
            s.bound(dir, self.names_max);
        }
    }

    /// True once for a directory in which several names were asked for one by one.
    pub fn is_worth_listing(&self, dir: NodeId) -> bool {
        let mut s = self.shard(dir);
        let d = s.dirs.entry(dir, Dir::default);
        d.asked += 1;
        let worth = d.asked == MISSES;
        s.bound(dir, self.names_max);
        worth
    }

    /// A page of a directory came: `from` is where it began. Returns nothing; the next
    /// [`Meta::listing`] may.
    pub fn put_page(
        &self,
        since: Since,
        dir: NodeId,
        from: u64,
        page: &crate::vfs::DirPage,
        until: Until,
    ) {
        for e in &page.entries {
            self.put_attr(since, &e.attr, until);
        }
        let mut s = self.shard(dir);
        let holds = |since| self.listing_holds(dir, since);
        let names_max = self.names_max;
        let d = s.dirs.entry(dir, Dir::default);
        if !holds(since) {
            d.growing = None;
            return;
        }
        let mut growing = match d.growing.take() {
            _ if from == 0 => Growing { since, entries: Vec::new(), generation: page.generation },
            Some(g) if holds(g.since) && g.entries.last().is_some_and(|e| e.cookie == from) => g,
            other => {
                d.growing = other;
                return;
            }
        };
        // More than is worth remembering.
        if growing.entries.len() + page.entries.len() > names_max {
            return;
        }
        let listed = page.entries.iter().map(|e| Listed {
            name: Arc::from(e.name.as_os_str()),
            node: e.attr.id,
            cookie: e.cookie,
        });
        growing.entries.extend(listed);
        if !page.eof {
            d.growing = Some(growing);
            return;
        }
        d.entries =
            growing.entries.iter().map(|e| (e.name.clone(), Entry::there(e.node, until))).collect();
        d.complete = Some(until);
        d.listing = Some((Arc::new(growing.entries), growing.generation));
        s.bound(dir, names_max);
    }

    /// The whole directory, where it is known, and its generation.
    pub fn listing(&self, dir: NodeId) -> Option<(Arc<Vec<Listed>>, u64)> {
        let mut s = self.shard(dir);
        let d = s.dirs.get(&dir)?;
        let fresh = d.complete.is_some_and(is_fresh);
        d.listing.clone().filter(|_| fresh)
    }

    /// The version of a file's content, which the tree calls `generation`.
    pub fn version(&self, id: NodeId, generation: u64) -> u64 {
        let mut s = self.shard(id);
        let node = s.nodes.entry(id, Node::default);
        match &node.content {
            Some(c) if c.generation == generation => c.version,
            _ => {
                let version = self.versions.fetch_add(1, Ordering::Relaxed);
                node.content = Some(Content { version, generation });
                version
            }
        }
    }

    /// What is known of a node, as long as it may be believed.
    pub fn known(&self, id: NodeId) -> Option<Attr> {
        self.shard(id).nodes.get(&id)?.known()
    }

    /// What the content is known by; another one after every change, by us or by others. `None` where a
    /// change could have been missed.
    pub fn edition(&self, id: NodeId) -> Option<Edition> {
        let mut s = self.shard(id);
        let node = s.nodes.get(&id)?;
        Some(Edition { version: node.content.as_ref()?.version, edits: node.edits })
    }

    /// We changed a file's content `since` an [`Meta::edit`], and this is what it is like now. Whoever has
    /// asked meanwhile may have been answered before.
    pub fn wrote(&self, since: Since, attr: &Attr, until: Until) {
        let mut s = self.shard(attr.id);
        let alone = self.holds(attr.id, since);
        self.touch(attr.id);
        if !alone {
            // Something else happened meanwhile, and nobody knows in which order: what it told is as
            // doubtful as this.
            if let Some(node) = s.nodes.get(&attr.id) {
                node.attr = None;
                node.edits += 1;
            }
            return;
        }
        let until = until.or_else(|| s.doubt(attr).then(|| Instant::now() + self.ttl));
        let node = s.nodes.entry(attr.id, Node::default);
        node.attr = (attr.nlink > 0).then(|| (attr.clone(), until));
        node.edits += 1;
        if let Some(content) = &mut node.content {
            content.generation = attr.generation;
        }
    }

    /// Nothing is known of a node any more.
    pub fn forget(&self, id: NodeId) {
        self.touch(id);
        self.touch_names(id);
        let mut s = self.shard(id);
        s.nodes.remove(&id);
        s.drop_dir(id);
    }

    fn forget_entry(&self, dir: NodeId, name: &OsStr) {
        self.expire_attr(dir);
        self.touch_names(dir);
        let mut s = self.shard(dir);
        if let Some(d) = s.dirs.get(&dir) {
            d.set(name, None, None);
            s.bound(dir, self.names_max);
        }
    }

    /// Somebody else changed something.
    pub fn heard(&self, event: &Event) {
        match event {
            Event::Attr(id) => self.expire_attr(*id),
            Event::Data { node, .. } => {
                self.touch(*node);
                self.shard(*node).nodes.remove(node);
            }
            Event::All { node, .. } => self.forget(*node),
            Event::Dir(dir) => {
                self.expire_attr(*dir);
                self.touch_names(*dir);
                self.shard(*dir).drop_dir(*dir);
            }
            Event::Entry { dir, name } => self.forget_entry(*dir, name),
            Event::Resync => self.clear(),
        }
    }

    pub fn clear(&self) {
        let now = self.now.fetch_add(1, Ordering::AcqRel) + 1;
        self.cleared.fetch_max(now, Ordering::AcqRel);
        for shard in &self.shards {
            let mut s = shard.lock().unwrap_or_else(PoisonError::into_inner);
            s.nodes.clear();
            s.dirs.clear();
            s.names = 0;
        }
    }

    /// How long an answer of a tree may be believed.
    pub fn until(&self, live: bool) -> Until {
        if live { None } else { Some(Instant::now() + self.ttl) }
    }
}

fn slot(id: NodeId) -> usize {
    (id.0 % STAMPS as u64) as usize
}

pub fn is_fresh(until: Until) -> bool {
    until.is_none_or(|until| Instant::now() < until)
}

impl Node {
    fn known(&self) -> Option<Attr> {
        self.attr.as_ref().filter(|(_, until)| is_fresh(*until)).map(|(attr, _)| attr.clone())
    }
}

impl Shard {
    /// True where events cannot be relied on: of a directory that nobody has looked into, and of a file that
    /// may be changed by a name somewhere else.
    fn doubt(&mut self, attr: &Attr) -> bool {
        match attr.kind {
            Kind::Dir => self.dirs.get(&attr.id).is_none(),
            _ => attr.nlink > 1,
        }
    }

    /// Counts what a directory has come to cost, and lets go of others. Called after each change of
    /// `dir`.
    fn bound(&mut self, dir: NodeId, max: usize) {
        if let Some(d) = self.dirs.get(&dir) {
            let cost = d.entries.len() + 1;
            self.names = self.names + cost - std::mem::replace(&mut d.counted, cost);
        }
        while self.names > max {
            let Some(dir) = self.dirs.evict() else { break };
            self.names -= dir.counted;
        }
    }

    fn drop_dir(&mut self, id: NodeId) {
        if let Some(dir) = self.dirs.remove(&id) {
            self.names -= dir.counted;
        }
    }
}

#[cfg(test)]
mod tests;
