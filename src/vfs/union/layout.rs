//! The mount table: which paths are mount points and binds, and which directories there must be so
//! that they can be reached. A value; a change of mounts makes a new one.

use super::{Bind, MountPoint, group::Group};
use crate::base::{Code, Error, Result, TreePath};
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::sync::Arc;

/// Binds followed in one resolution.
pub const BINDS_MAX: u32 = 40;

#[derive(Default)]
pub struct Layout {
    mounts: HashMap<TreePath, Arc<Group>>,
    binds: HashMap<TreePath, TreePath>,
    by_serial: HashMap<u64, Arc<Group>>,
    /// The directories above mount points and binds, and the names in them that lead there.
    above: HashMap<TreePath, BTreeSet<OsString>>,
}

impl Layout {
    /// `make` makes the group of a mount point; those that did not change are taken over from `old`.
    /// Errors: `mount_conflict`, `bind_conflict`, EINVAL.
    pub fn new(
        mounts: Vec<MountPoint>,
        binds: Vec<Bind>,
        old: &Layout,
        make: impl Fn(MountPoint) -> Arc<Group>,
    ) -> Result<Layout> {
        let mut layout = Layout::default();
        for bind in binds {
            if bind.path.is_root() || bind.path == bind.target {
                return Err(Error::invalid(format!("bind {}: not a place for a bind", bind.path)));
            }
            if layout.binds.contains_key(&bind.path) {
                return Err(Error::new(Code::BindConflict, format!("bind {}: twice", bind.path)));
            }
            layout.binds.insert(bind.path, bind.target);
        }
        for mut mount in mounts {
            if mount.members.is_empty() {
                return Err(Error::invalid(format!("mount {}: nothing to mount", mount.path)));
            }
            mount.path = layout.canonical(mount.path);
            if layout.mounts.contains_key(&mount.path) || layout.binds.contains_key(&mount.path) {
                let text = format!("mount {}: something else is mounted there", mount.path);
                return Err(Error::new(Code::MountConflict, text));
            }
            let known = old.mounts.get(&mount.path).filter(|group| group.is_of(&mount.members));
            let group = known.cloned().unwrap_or_else(|| make(mount));
            layout.by_serial.insert(group.serial, group.clone());
            layout.mounts.insert(group.path.clone(), group);
        }
        let paths: Vec<_> = layout.mounts.keys().chain(layout.binds.keys()).cloned().collect();
        paths.into_iter().for_each(|path| layout.reach(path));
        Ok(layout)
    }

    /// A mount below a bind is mounted below the bind's target.
    fn canonical(&self, path: TreePath) -> TreePath {
        let mut at = path.clone();
        for _ in 0..BINDS_MAX {
            let over = self.binds.iter().filter_map(|(bind, target)| {
                let rest = at.below(bind).filter(|rest| !rest.is_root())?;
                Some((bind, target.append(&rest)))
            });
            match over.max_by_key(|(bind, _)| bind.as_os_str().len()) {
                Some((_, moved)) => at = moved,
                None => return at,
            }
        }
        path
    }

    fn reach(&mut self, mut path: TreePath) {
        while let Some((dir, name)) = path.split_last() {
            let name = name.as_os_str().to_owned();
            self.above.entry(dir.clone()).or_default().insert(name);
            path = dir;
        }
    }

    pub fn mount(&self, path: &TreePath) -> Option<&Arc<Group>> {
        self.mounts.get(path)
    }

    pub fn bind(&self, path: &TreePath) -> Option<&TreePath> {
        self.binds.get(path)
    }

    pub fn group(&self, serial: u64) -> Option<&Arc<Group>> {
        self.by_serial.get(&serial)
    }

    pub fn groups(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.mounts.values()
    }

    /// Whether a mount point or bind lies below.
    pub fn is_above(&self, path: &TreePath) -> bool {
        self.above.contains_key(path)
    }

    /// Whether this path is, or lies above, a mount point or bind.
    pub fn holds(&self, path: &TreePath) -> bool {
        self.mounts.contains_key(path) || self.binds.contains_key(path) || self.is_above(path)
    }

    /// The names in a directory that are, or lead to, mount points and binds, sorted.
    pub fn names_in(&self, dir: &TreePath) -> Option<&BTreeSet<OsString>> {
        self.above.get(dir)
    }

    pub fn is_same(&self, other: &Layout) -> bool {
        self.binds == other.binds
            && self.by_serial.len() == other.by_serial.len()
            && self.by_serial.keys().all(|serial| other.by_serial.contains_key(serial))
    }
}
