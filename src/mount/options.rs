//! How a tree is shown when it is mounted: owners and modes as the kernel sees them, how long it may
//! believe an answer, and what it is told when mounting. A value; where it comes from is not known here.

use crate::base::{Error, Result};
use crate::vfs::{Attr, Kind, SetAttr};
use crate::wire::Object;
use std::path::PathBuf;
use std::time::Duration;

/// How long the kernel believes attributes and names where nothing else is asked for. Events of the
/// tree end it sooner; where none come, this is how old an answer can be.
pub const ATTR_TIMEOUT: Duration = Duration::from_secs(1);

/// How attributes are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Owner of everything, in place of the node's.
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Permission bits that no file, and no directory, shows.
    pub file_mask: u32,
    pub dir_mask: u32,
    pub attr_timeout: Duration,
}

impl Default for View {
    fn default() -> View {
        View { uid: None, gid: None, file_mask: 0, dir_mask: 0, attr_timeout: ATTR_TIMEOUT }
    }
}

impl View {
    pub fn show(&self, a: &Attr) -> Attr {
        let mask = match a.kind {
            Kind::Dir => self.dir_mask,
            Kind::Symlink => 0,
            Kind::File | Kind::Special => self.file_mask,
        };
        Attr {
            uid: self.uid.unwrap_or(a.uid),
            gid: self.gid.unwrap_or(a.gid),
            mode: a.mode & !mask,
            ..a.clone()
        }
    }

    /// What a change of attributes means to the tree: the owner that everything has already is no
    /// change. Errors: EPERM for another one, which could never be seen.
    pub fn change(&self, set: SetAttr) -> Result<SetAttr> {
        let owner = |shown: Option<u32>, wanted: Option<u32>| match (shown, wanted) {
            (Some(shown), Some(wanted)) if shown != wanted => {
                Err(Error::from_errno(libc::EPERM, "this mount shows one owner for everything"))
            }
            (Some(_), _) => Ok(None),
            (None, wanted) => Ok(wanted),
        };
        Ok(SetAttr { uid: owner(self.uid, set.uid)?, gid: owner(self.gid, set.gid)?, ..set })
    }
}

/// What the kernel is told when it mounts, and how the mount behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// What `mount` and `df` show as the source.
    pub source: String,
    /// Other users may enter; the kernel then checks permissions by the modes of the files.
    pub allow_other: bool,
    /// The kernel checks permissions by the modes of the files, be there other users or not.
    pub default_permissions: bool,
    pub read_only: bool,
    pub no_exec: bool,
    /// Files are renamed from one endpoint to another by copying them.
    pub copy_across: bool,
    /// For each operation.
    pub timeout_ms: u64,
    pub view: View,
    /// Bound on what is kept of files, in bytes; 0 keeps nothing. `None`: what the program thinks best.
    pub cache_bytes: Option<u64>,
    /// Where file contents are kept on disk, and how many bytes of them at most.
    pub cache_dir: Option<(PathBuf, u64)>,
}

impl Options {
    /// As `status` tells them.
    pub fn describe(&self) -> Object {
        let v = &self.view;
        Object::new()
            .put("source", &self.source)
            .put("read_only", self.read_only)
            .put("allow_other", self.allow_other)
            .put("default_permissions", self.default_permissions || self.allow_other)
            .put("noexec", self.no_exec)
            .put("copy_across", self.copy_across)
            .put("timeout_ms", self.timeout_ms)
            .put("attr_timeout_ms", v.attr_timeout.as_millis() as u64)
            .put("uid", v.uid)
            .put("gid", v.gid)
            .put("fmask", format_args!("{:03o}", v.file_mask))
            .put("dmask", format_args!("{:03o}", v.dir_mask))
            .put("cache_size", self.cache_bytes)
            .put("cache_dir", self.cache_dir.as_ref().map(|(dir, _)| dir.to_string_lossy()))
            .put("cache_dir_size", self.cache_dir.as_ref().map(|(_, bytes)| bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::NodeId;

    fn attr(kind: Kind, mode: u32) -> Attr {
        Attr {
            id: NodeId(7),
            kind,
            mode,
            nlink: 1,
            uid: 1000,
            gid: 1000,
            size: 0,
            blocks: 0,
            atime_ns: 0,
            mtime_ns: 0,
            ctime_ns: 0,
            generation: 0,
            identity: 0,
        }
    }

    #[test]
    fn owners_are_replaced_and_modes_masked() {
        let view = View { uid: Some(5), file_mask: 0o133, dir_mask: 0o022, ..View::default() };
        let file = view.show(&attr(Kind::File, libc::S_IFREG | 0o777));
        assert_eq!((file.uid, file.gid, file.mode), (5, 1000, libc::S_IFREG | 0o644));
        let dir = view.show(&attr(Kind::Dir, libc::S_IFDIR | 0o777));
        assert_eq!(dir.mode, libc::S_IFDIR | 0o755);
        let link = attr(Kind::Symlink, libc::S_IFLNK | 0o777);
        assert_eq!(view.show(&link).mode, link.mode);
    }

    #[test]
    fn only_the_owner_that_is_shown_can_be_set() {
        let view = View { uid: Some(5), ..View::default() };
        let set = |uid, gid| view.change(SetAttr { uid, gid, ..SetAttr::default() });
        assert_eq!(set(Some(5), None).unwrap(), SetAttr::default());
        assert_eq!(set(Some(6), None).unwrap_err().errno(), libc::EPERM);
        assert_eq!(set(None, Some(9)).unwrap().gid, Some(9));
    }
}
