//! What is remembered of the names in one directory.

use super::{Since, Until, is_fresh};
use crate::vfs::NodeId;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::Arc;

/// An entry of a directory that is known from its first to its last.
#[derive(Clone)]
pub struct Listed {
    pub name: Arc<OsStr>,
    pub node: NodeId,
    pub cookie: u64,
}

#[derive(Default)]
pub struct Dir {
    pub entries: HashMap<Arc<OsStr>, Entry>,
    /// Names that are not among the entries do not exist, until then.
    pub complete: Option<Until>,
    pub listing: Option<(Arc<Vec<Listed>>, u64)>,
    pub growing: Option<Growing>,
    pub asked: u32,
    /// What of it is in [`Shard::names`].
    pub counted: usize,
}

pub struct Entry {
    /// `None`: the name changed, nobody knows how. `Some(None)`: there is no such name.
    pub leads_to: Option<Option<NodeId>>,
    pub until: Until,
    /// What it led to when that was last known.
    pub last: Option<NodeId>,
}

/// A listing that is being read.
pub struct Growing {
    pub since: Since,
    pub entries: Vec<Listed>,
    pub generation: u64,
}

impl Entry {
    pub fn there(node: NodeId, until: Until) -> Entry {
        Entry { leads_to: Some(Some(node)), until, last: Some(node) }
    }
}

impl Dir {
    pub fn set(&mut self, name: &OsStr, leads_to: Option<Option<NodeId>>, until: Until) {
        let before = self.entries.get(name).and_then(|e| e.last);
        let last = leads_to.map_or(before, |known| known);
        self.entries.insert(name.into(), Entry { leads_to, until, last });
        self.listing = None;
        self.growing = None;
    }

    pub fn find(&self, name: &OsStr) -> Option<Option<NodeId>> {
        match self.entries.get(name) {
            Some(e) if is_fresh(e.until) => e.leads_to,
            Some(_) => None,
            None => self.complete.filter(|until| is_fresh(*until)).map(|_| None),
        }
    }
}
