//! The open files of a tree: a bounded table from [`Handle`] to what the tree keeps per open file.

use super::{Handle, NodeId};
use crate::base::{Error, Result};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

/// Open files of one tree, at most. The host's limit on descriptors is usually the nearer one.
pub const HANDLES_MAX: usize = 65_536;

pub struct Handles<T> {
    state: RwLock<State<T>>,
}

struct State<T> {
    next: u64,
    open: HashMap<Handle, (NodeId, Arc<T>)>,
    by_node: BTreeSet<(NodeId, Handle)>,
}

impl<T> Default for Handles<T> {
    fn default() -> Handles<T> {
        let state = State { next: 1, open: HashMap::new(), by_node: BTreeSet::new() };
        Handles { state: RwLock::new(state) }
    }
}

impl<T> Handles<T> {
    /// Errors: ENFILE past [`HANDLES_MAX`].
    pub fn insert(&self, node: NodeId, file: T) -> Result<Handle> {
        let mut s = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if s.open.len() >= HANDLES_MAX {
            return Err(Error::from_errno(libc::ENFILE, "too many open files in this tree"));
        }
        let handle = Handle(s.next);
        s.next += 1;
        s.open.insert(handle, (node, Arc::new(file)));
        s.by_node.insert((node, handle));
        Ok(handle)
    }

    pub fn len(&self) -> usize {
        self.state.read().unwrap_or_else(PoisonError::into_inner).open.len()
    }

    /// Errors: EBADF.
    pub fn get(&self, handle: Handle) -> Result<(NodeId, Arc<T>)> {
        let s = self.state.read().unwrap_or_else(PoisonError::into_inner);
        s.open.get(&handle).cloned().ok_or_else(unknown)
    }

    /// Errors: EBADF.
    pub fn remove(&self, handle: Handle) -> Result<Arc<T>> {
        let mut s = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let (node, file) = s.open.remove(&handle).ok_or_else(unknown)?;
        s.by_node.remove(&(node, handle));
        Ok(file)
    }

    /// The first open file of a node that `fits`.
    pub fn of_node(&self, node: NodeId, fits: impl Fn(&T) -> bool) -> Option<Arc<T>> {
        let s = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let handles = s.by_node.range((node, Handle(0))..=(node, Handle(u64::MAX)));
        handles.filter_map(|(_, h)| s.open.get(h)).map(|(_, f)| f).find(|f| fits(f)).cloned()
    }
}

fn unknown() -> Error {
    Error::from_errno(libc::EBADF, "unknown handle")
}
