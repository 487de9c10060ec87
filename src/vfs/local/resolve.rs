//! From ids to descriptors. A node is found by the path it was last seen at, from the root's descriptor,
//! and is only taken when it is the same inode; where somebody else moved it, by a descriptor that is
//! still held, and only while that is inside the root.

use super::Core;
use super::sys::{self, FileKey, Stat};
use crate::base::{Error, Name, PATH_MAX, Result, TreePath};
use crate::vfs::{Kind, NodeId, ids};
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, PoisonError};

/// Directories whose descriptors are held, so that their ids outlive renames made by others.
const DIRS_MAX: usize = 128;
/// How far above a node a held directory is looked for.
const CLIMB_MAX: usize = 64;

/// A node at hand: its descriptor names it and nothing else.
pub(super) struct Node {
    pub id: NodeId,
    pub fd: Arc<OwnedFd>,
    pub stat: Stat,
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The directories used last.
#[derive(Default)]
pub(super) struct Dirs(Mutex<VecDeque<(NodeId, Arc<OwnedFd>)>>);

impl Dirs {
    fn keep(&self, id: NodeId, fd: &Arc<OwnedFd>) {
        // Only a memory: whoever is second to reach it does without.
        let Ok(mut dirs) = self.0.try_lock() else { return };
        let held = dirs.iter().position(|(d, _)| *d == id).and_then(|at| dirs.remove(at));
        dirs.push_back(held.unwrap_or_else(|| (id, fd.clone())));
        if dirs.len() > DIRS_MAX {
            dirs.pop_front();
        }
    }

    fn get(&self, id: NodeId) -> Option<Arc<OwnedFd>> {
        let dirs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        dirs.iter().find(|(d, _)| *d == id).map(|(_, fd)| fd.clone())
    }
}

impl Core {
    /// Errors: ESTALE when the node is gone, replaced, outside, or forgotten; ENAMETOOLONG below a path
    /// of 4096 bytes.
    pub(super) fn node(&self, id: NodeId) -> Result<Node> {
        if id == NodeId::ROOT {
            return Ok(Node {
                id,
                fd: self.root.clone(),
                stat: sys::stat(&self.root, OsStr::new(""))?,
            });
        }
        match self.by_path(id) {
            Ok(Some(node)) => Ok(node),
            Ok(None) => self.by_descriptor(id).or_else(|_| self.by_ancestor(id)),
            Err(e) if e.errno() == libc::ESTALE => self.by_descriptor(id),
            Err(e) => Err(e),
        }
    }

    /// Errors: those of [`Core::node`]; ENOTDIR.
    pub(super) fn dir(&self, id: NodeId) -> Result<Node> {
        let node = self.node(id)?;
        if node.stat.kind() != Kind::Dir {
            return Err(Error::from_errno(libc::ENOTDIR, "node is not a directory"));
        }
        self.look(id, &node.fd);
        self.dirs.keep(id, &node.fd);
        Ok(node)
    }

    fn by_path(&self, id: NodeId) -> Result<Option<Node>> {
        let (key, paths) = self.ids.paths(id)?;
        for path in paths {
            if let Some(node) = same(id, key, &*self.root, &path)? {
                return Ok(Some(node));
            }
        }
        Ok(None)
    }

    /// An open file, or a directory that is held and still inside.
    fn by_descriptor(&self, id: NodeId) -> Result<Node> {
        if let Some(open) = self.handles.of_node(id, |_| true) {
            let fd = Arc::new(open.file.as_fd().try_clone_to_owned()?);
            let stat = sys::stat(&fd, OsStr::new(""))?;
            return Ok(Node { id, fd, stat });
        }
        let fd = self.dirs.get(id).filter(|fd| self.is_inside(fd)).ok_or_else(ids::stale)?;
        let stat = sys::stat(&fd, OsStr::new(""))?;
        // Removed, and only held by us.
        if stat.nlink() == 0 {
            return Err(ids::stale());
        }
        Ok(Node { id, fd, stat })
    }

    /// Below a directory that only its descriptor finds.
    fn by_ancestor(&self, id: NodeId) -> Result<Node> {
        let key = self.ids.key(id)?;
        let (mut at, mut below) = (id, TreePath::root());
        for _ in 0..CLIMB_MAX {
            let (dir, name) = self.ids.places(at).into_iter().next().ok_or_else(ids::stale)?;
            below = TreePath::root().join(Name::new(&name)?).append(&below);
            if let Ok(ancestor) = self.by_descriptor(dir) {
                return same(id, key, &ancestor, &below)?.ok_or_else(ids::stale);
            }
            at = dir;
        }
        Err(ids::stale())
    }

    /// Climbs from a directory to the root.
    fn is_inside(&self, dir: &OwnedFd) -> bool {
        let climb = || -> Result<bool> {
            let mut here = sys::stat(dir, OsStr::new(""))?.key();
            let mut fd = None;
            for _ in 0..PATH_MAX {
                if here == self.root_key {
                    return Ok(true);
                }
                let up = sys::parent(fd.as_ref().unwrap_or(dir))?;
                let above = sys::stat(&up, OsStr::new(""))?.key();
                if above == here {
                    return Ok(false);
                }
                (here, fd) = (above, Some(up));
            }
            Ok(false)
        };
        climb().unwrap_or(false)
    }
}

/// The node at `path`, taken from `dir`, if it is the one that `key` tells.
fn same(id: NodeId, key: FileKey, dir: impl AsFd, path: &TreePath) -> Result<Option<Node>> {
    let relative = OsStr::from_bytes(&path.as_os_str().as_bytes()[1..]);
    let fd = match sys::open_beneath(dir, relative) {
        Ok(fd) => Arc::new(fd),
        Err(e) if is_elsewhere(&e) => return Ok(None),
        Err(e) => return Err(e),
    };
    let stat = sys::stat(&fd, OsStr::new(""))?;
    Ok((stat.key() == key).then_some(Node { id, fd, stat }))
}

/// Nothing, or a symlink, is now where the path led.
fn is_elsewhere(e: &Error) -> bool {
    matches!(e.errno(), libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::EXDEV)
}
