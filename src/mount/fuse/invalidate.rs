//! Tells the kernel what it must no longer believe. The kernel may hold locks of an inode while it
//! waits for our answer about it, so this is done on threads of their own that wait for nobody: one for
//! inodes, one for names, for which the kernel wants the lock of their directory.

use crate::base::{Cancel, Deadline, Notify, Result, ResultExt};
use crate::vfs::{Event, NodeId};
use fuser::{INodeNo, Notifier};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Nodes that wait to be told of, and names; beyond these, what the kernel knows is left to expire by
/// itself, and no content is kept over an `open`.
const PENDING_MAX: usize = 1 << 14;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Attr,
    Data,
}

type Name = (NodeId, Arc<OsStr>);

/// Changes that came since the kernel was last told, once each.
#[derive(Clone, Default)]
pub struct Changes {
    state: Arc<Mutex<State>>,
    news: Notify,
    /// Notified when the kernel has been told of some.
    told: Notify,
}

#[derive(Default)]
struct State {
    pending: BTreeMap<NodeId, What>,
    names: BTreeSet<Name>,
    /// What the kernel is being told right now.
    telling: BTreeMap<NodeId, What>,
    /// There were more than could be held: until they have been told, nothing is certain.
    overrun: bool,
    stopped: bool,
}

impl Changes {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never blocks: called from a tree's event.
    pub fn add(&self, event: Event) {
        let (node, what, name) = match event {
            Event::Attr(node) => (node, What::Attr, None),
            Event::Entry { dir, name } => (dir, What::Data, Some(name)),
            Event::Data { node, .. } | Event::All { node, .. } | Event::Dir(node) => {
                (node, What::Data, None)
            }
            // Nobody knows what changed: names and attributes expire within the second, and content
            // has another version when it is opened next.
            Event::Resync => return,
        };
        let mut s = self.lock();
        // Each of the two threads sleeps only when there is nothing for it.
        let mut wake = s.pending.is_empty();
        if s.pending.len() < PENDING_MAX {
            let known = s.pending.entry(node).or_insert(what);
            *known = what.max(*known);
        } else {
            s.overrun = true;
        }
        if let Some(name) = name.filter(|_| s.names.len() < PENDING_MAX) {
            wake |= s.names.is_empty();
            s.names.insert((node, name));
        }
        drop(s);
        if wake {
            self.news.notify();
        }
    }

    /// Whether the kernel may still believe old content of a node.
    pub fn is_pending(&self, node: NodeId) -> bool {
        let s = self.lock();
        s.overrun || s.pending.contains_key(&node) || s.telling.contains_key(&node)
    }

    /// Waits until the kernel has been told of all changes of a node that came so far.
    pub fn settle(&self, node: NodeId, deadline: Deadline, cancel: &Cancel) -> Result<()> {
        loop {
            let seen = self.told.seen();
            if !self.is_pending(node) || self.lock().stopped {
                return Ok(());
            }
            self.told.wait(seen, Deadline::never()).block(deadline, cancel)?;
        }
    }

    pub fn stop(&self) {
        self.lock().stopped = true;
        self.news.notify();
        self.told.notify();
    }

    /// Starts the threads that tell the kernel.
    pub fn tell(&self, notifier: Notifier) -> Result<Vec<JoinHandle<()>>> {
        let (changes, inodes) = (self.clone(), notifier.clone());
        let tell_inodes = move || {
            while let Some(pending) = changes.next(State::take_inodes) {
                for (node, what) in pending {
                    // A negative offset stands for the attributes alone. What the kernel does not
                    // know (ENOENT), or asks no more after (ENODEV), needs no telling.
                    let offset = if what == What::Attr { -1 } else { 0 };
                    let _ = inodes.inval_inode(INodeNo(node.0), offset, 0);
                }
                changes.lock().telling.clear();
                changes.told.notify();
            }
        };
        let changes = self.clone();
        let tell_names = move || {
            while let Some(names) = changes.next(State::take_names) {
                for (dir, name) in names {
                    let _ = notifier.inval_entry(INodeNo(dir.0), &name);
                }
            }
        };
        let start = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).spawn(run).context("FUSE thread")
        };
        Ok(vec![
            start("fuse-notify", Box::new(tell_inodes))?,
            start("fuse-names", Box::new(tell_names))?,
        ])
    }

    /// Waits for something to tell; `None` once stopped.
    fn next<T>(&self, take: fn(&mut State) -> Option<T>) -> Option<T> {
        loop {
            let seen = self.news.seen();
            {
                let mut s = self.lock();
                if s.stopped {
                    return None;
                }
                if let Some(some) = take(&mut s) {
                    return Some(some);
                }
            }
            let wait = self.news.wait(seen, Deadline::never());
            let _ = wait.block(Deadline::never(), &Cancel::new());
        }
    }
}

impl State {
    fn take_inodes(&mut self) -> Option<BTreeMap<NodeId, What>> {
        self.overrun = false;
        self.telling = std::mem::take(&mut self.pending);
        (!self.telling.is_empty()).then(|| self.telling.clone())
    }

    fn take_names(&mut self) -> Option<BTreeSet<Name>> {
        (!self.names.is_empty()).then(|| std::mem::take(&mut self.names))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_one_node_are_told_once_and_none_past_the_bound() {
        let changes = Changes::default();
        let node = NodeId(7);
        for event in [Event::Attr(node), Event::Dir(node), Event::Attr(node), Event::Resync] {
            changes.add(event);
        }
        let next = || changes.next(State::take_inodes);
        assert_eq!(next().unwrap(), BTreeMap::from([(node, What::Data)]));
        assert!(changes.is_pending(node), "the kernel is being told");
        for n in 0..2 * PENDING_MAX as u64 {
            changes.add(Event::Attr(NodeId(n + 100)));
        }
        assert!(changes.is_pending(NodeId(1)), "who knows what was left out");
        assert_eq!(next().unwrap().len(), PENDING_MAX);
        assert!(!changes.is_pending(node));
        changes.stop();
        assert!(next().is_none());
    }

    #[test]
    fn whoever_tells_of_inodes_is_woken_while_names_wait() {
        let changes = Changes::default();
        let (dir, name) = (NodeId(7), Arc::from(OsStr::new("n")));
        changes.add(Event::Entry { dir, name });
        changes.next(State::take_inodes).unwrap();
        let seen = changes.news.seen();
        changes.add(Event::Attr(NodeId(8)));
        let woken = changes.news.wait(seen, Deadline::never());
        woken.block(Deadline::after_ms(0), &Cancel::new()).unwrap();
    }

    #[test]
    fn names_are_told_apart_from_inodes() {
        let changes = Changes::default();
        let name: Arc<OsStr> = OsStr::new("x").into();
        changes.add(Event::Entry { dir: NodeId(3), name: name.clone() });
        assert_eq!(changes.next(State::take_names).unwrap(), BTreeSet::from([(NodeId(3), name)]));
        assert_eq!(changes.next(State::take_inodes).unwrap().len(), 1);
    }

    #[test]
    fn names_that_wait_keep_no_inode_waiting() {
        let changes = Changes::default();
        changes.add(Event::Entry { dir: NodeId(3), name: OsStr::new("x").into() });
        changes.next(State::take_inodes).unwrap();
        // The other thread has not come for the name when the next change comes.
        let seen = changes.news.seen();
        changes.add(Event::Attr(NodeId(4)));
        let woken = changes.news.wait(seen, Deadline::never());
        woken.block(Deadline::after_ms(0), &Cancel::new()).unwrap();
    }

    #[test]
    fn whoever_needs_to_know_waits_until_the_kernel_does() {
        let changes = Changes::default();
        let (node, cancel) = (NodeId(7), Cancel::new());
        changes.settle(node, Deadline::after_ms(0), &cancel).unwrap();
        changes.add(Event::Attr(node));
        let late = changes.settle(node, Deadline::after_ms(1), &cancel);
        assert_eq!(late.unwrap_err().errno(), libc::ETIMEDOUT);
        std::thread::scope(|threads| {
            let waiting =
                threads.spawn(|| changes.settle(node, Deadline::after_ms(10_000), &cancel).is_ok());
            changes.next(State::take_inodes).unwrap();
            changes.lock().telling.clear();
            changes.told.notify();
            assert!(waiting.join().unwrap());
        });
    }
}
