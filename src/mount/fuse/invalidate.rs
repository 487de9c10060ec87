//! Tells the kernel what it must no longer believe. The kernel may hold locks of an inode while it
//! waits for our answer about it, so this is done on a thread of its own that waits for nobody.

use crate::base::{Notify, Result, ResultExt};
use crate::vfs::{Event, NodeId};
use fuser::{INodeNo, Notifier};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Nodes that wait to be told of; beyond these, what the kernel knows is left to expire by itself.
const PENDING_MAX: usize = 1 << 14;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Attr,
    Data,
}

/// Changes that came since the kernel was last told, once each.
#[derive(Clone, Default)]
pub struct Changes {
    state: Arc<Mutex<State>>,
    news: Notify,
}

#[derive(Default)]
struct State {
    pending: BTreeMap<NodeId, What>,
    stopped: bool,
}

impl Changes {
    /// Never blocks: called from a tree's event.
    pub fn add(&self, event: Event) {
        let (node, what) = match event {
            Event::Attr(node) => (node, What::Attr),
            Event::Data { node, .. }
            | Event::All { node, .. }
            | Event::Dir(node)
            | Event::Entry { dir: node, .. } => (node, What::Data),
            // Nobody knows what changed; all that the kernel knows expires within the second.
            Event::Resync => return,
        };
        let mut s = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if s.pending.len() < PENDING_MAX {
            let known = s.pending.entry(node).or_insert(what);
            *known = what.max(*known);
        }
        let first = s.pending.len() == 1;
        drop(s);
        if first {
            self.news.notify();
        }
    }

    pub fn stop(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).stopped = true;
        self.news.notify();
    }

    /// Starts the thread that tells the kernel.
    pub fn tell(&self, notifier: Notifier) -> Result<JoinHandle<()>> {
        let changes = self.clone();
        let run = move || {
            while let Some(pending) = changes.next() {
                for (node, what) in pending {
                    // A negative offset stands for the attributes alone. What the kernel does not
                    // know (ENOENT), or asks no more after (ENODEV), needs no telling.
                    let offset = if what == What::Attr { -1 } else { 0 };
                    let _ = notifier.inval_inode(INodeNo(node.0), offset, 0);
                }
            }
        };
        std::thread::Builder::new().name("fuse-notify".into()).spawn(run).context("FUSE thread")
    }

    /// Waits for changes; `None` once stopped.
    fn next(&self) -> Option<BTreeMap<NodeId, What>> {
        use crate::base::{Cancel, Deadline};
        loop {
            let seen = self.news.seen();
            {
                let mut s = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                if s.stopped {
                    return None;
                }
                if !s.pending.is_empty() {
                    return Some(std::mem::take(&mut s.pending));
                }
            }
            let wait = self.news.wait(seen, Deadline::never());
            let _ = wait.block(Deadline::never(), &Cancel::new());
        }
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
        assert_eq!(changes.next().unwrap(), BTreeMap::from([(node, What::Data)]));
        for n in 0..2 * PENDING_MAX as u64 {
            changes.add(Event::Attr(NodeId(n)));
        }
        assert_eq!(changes.next().unwrap().len(), PENDING_MAX);
        changes.stop();
        assert!(changes.next().is_none());
    }
}
