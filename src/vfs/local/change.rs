//! Changes of names and attributes. Each is one call of the host on (directory descriptor, name), then
//! the table of ids follows, then the watchers are told (in the order of spec: fs 5).

use super::file::entry;
use super::resolve::Node;
use super::sys;
use super::{Core, Event};
use crate::base::{Error, Result};
use crate::vfs::{Attr, Handle, Kind, NodeId, RenameFlags, SetAttr, SetTime, XattrFlags};
use nix::fcntl::AtFlags;
use nix::sys::inotify::AddWatchFlags;
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

const SET_ID_BITS: u32 = libc::S_ISUID | libc::S_ISGID;

impl Core {
    pub(super) fn make_dir(&self, dir: &Node, name: &OsStr, mode: u32) -> Result<Attr> {
        let _changing = self.changing();
        nix::sys::stat::mkdirat(dir, name, Mode::from_bits_truncate(mode & 0o1777))?;
        let attr = self.made(dir, name)?;
        // Whoever made it knows that it is empty, and wants to hear when it no longer is.
        if let Ok(fd) = sys::open_beneath(dir, name) {
            self.look(attr.id, &fd);
        }
        Ok(attr)
    }

    pub(super) fn make_symlink(&self, dir: &Node, name: &OsStr, target: &[u8]) -> Result<Attr> {
        let _changing = self.changing();
        nix::unistd::symlinkat(OsStr::from_bytes(target), dir, name)?;
        self.made(dir, name)
    }

    fn made(&self, dir: &Node, name: &OsStr) -> Result<Attr> {
        let stat = sys::stat(dir, name)?;
        self.note_name((dir.id, name), AddWatchFlags::IN_CREATE, Some(stat.key()));
        let attr = self.attr(dir.id, name, &stat);
        self.announce(&[entry(dir.id, name)]);
        Ok(attr)
    }

    pub(super) fn make_link(&self, node: &Node, dir: &Node, name: &OsStr) -> Result<Attr> {
        let _changing = self.changing();
        if node.stat.kind() == Kind::Dir {
            return Err(Error::from_errno(libc::EPERM, "directories have no hard links"));
        }
        let path = sys::proc_path(node);
        let follow = AtFlags::AT_SYMLINK_FOLLOW;
        nix::unistd::linkat(nix::fcntl::AT_FDCWD, path.as_c_str(), dir, name, follow)?;
        self.note_name((dir.id, name), AddWatchFlags::IN_CREATE, Some(node.stat.key()));
        let stat = sys::stat(dir, name)?;
        let attr = self.attr(dir.id, name, &stat);
        self.note(node.id, &stat);
        self.announce(&[entry(dir.id, name), Event::Attr(node.id)]);
        Ok(attr)
    }

    pub(super) fn remove(&self, dir: &Node, name: &OsStr, how: UnlinkatFlags) -> Result<()> {
        let _changing = self.changing();
        let stat = sys::stat(dir, name)?;
        nix::unistd::unlinkat(dir, name, how)?;
        self.note_name((dir.id, name), AddWatchFlags::IN_DELETE, None);
        let last = stat.kind() == Kind::Dir || stat.nlink() <= 1;
        let node = self.ids.remove(dir.id, name, last);
        self.announce(&[entry(dir.id, name)]);
        if let (false, Some(node)) = (last, node) {
            self.announce(&[Event::Attr(node)]);
        }
        Ok(())
    }

    pub(super) fn move_entry(
        &self,
        from: (&Node, &OsStr),
        to: (&Node, &OsStr),
        flags: RenameFlags,
    ) -> Result<()> {
        let _changing = self.changing();
        let moved = sys::stat(from.0, from.1)?.key();
        let replaced = sys::stat(to.0, to.1).ok();
        let mut host = nix::fcntl::RenameFlags::empty();
        host.set(nix::fcntl::RenameFlags::RENAME_NOREPLACE, flags.no_replace);
        host.set(nix::fcntl::RenameFlags::RENAME_EXCHANGE, flags.exchange);
        nix::fcntl::renameat2(from.0, from.1, to.0, to.1, host)?;

        let (old, new) = ((from.0.id, from.1), (to.0.id, to.1));
        // Two names of one file: rename(2) leaves both.
        if replaced.is_some_and(|r| r.key() == moved) {
            return Ok(());
        }
        self.note_name(old, AddWatchFlags::IN_MOVED_FROM, None);
        self.note_name(new, AddWatchFlags::IN_MOVED_TO, Some(moved));
        if flags.exchange {
            let left = replaced.as_ref().map(sys::Stat::key);
            self.note_name(old, AddWatchFlags::IN_MOVED_TO, left);
            self.note_name(new, AddWatchFlags::IN_MOVED_FROM, Some(moved));
        }
        // The id that clients know the moved file by, now known at its place.
        let node = self.ids.intern(&moved, old.0, old.1);
        if flags.exchange {
            if let Some(other) = &replaced {
                self.ids.intern(&other.key(), new.0, new.1);
            }
            self.ids.exchange(old, new);
        } else {
            let last = replaced.is_some_and(|r| r.kind() == Kind::Dir || r.nlink() <= 1);
            self.ids.remove(new.0, new.1, last);
            self.ids.rename(old, new);
        }
        self.announce(&[entry(old.0, old.1), entry(new.0, new.1)]);
        if let Some(other) = replaced.and_then(|r| self.ids.id(&r.key())) {
            self.announce(&[Event::All { node: other, generation: None }]);
        }
        self.announce(&[Event::All { node, generation: None }]);
        Ok(())
    }

    pub(super) fn change_attr(
        &self,
        id: NodeId,
        handle: Option<Handle>,
        set: &SetAttr,
    ) -> Result<Attr> {
        let _changing = self.changing();
        let node = self.node(id)?;
        let path = sys::proc_path(&node);
        // Set-id bits can be kept, not gained; a new owner does not get them.
        let new_owner = set.uid.is_some() || set.gid.is_some();
        // On a directory setgid only names the group of what is made in it.
        let kept = match node.stat.kind() {
            Kind::Dir => node.stat.mode() | libc::S_ISGID,
            _ if new_owner => 0,
            _ => node.stat.mode(),
        };
        if set.mode.is_some_and(|mode| mode & SET_ID_BITS & !kept != 0) {
            return Err(Error::from_errno(libc::EPERM, "setuid and setgid are not granted"));
        }
        if let Some(size) = set.size {
            match handle {
                Some(h) => match self.handles.get(h)? {
                    (of, file) if of == id => file.set_len(size)?,
                    _ => return Err(Error::from_errno(libc::EBADF, "handle of another file")),
                },
                None => truncate(&node, &path, size)?,
            }
        }
        if new_owner {
            let (uid, gid) = (set.uid.map(Uid::from_raw), set.gid.map(Gid::from_raw));
            nix::unistd::fchownat(&node, "", uid, gid, AtFlags::AT_EMPTY_PATH)?;
        }
        if let Some(mode) = set.mode {
            let mode = Mode::from_bits_truncate(mode & 0o7777);
            let follow = FchmodatFlags::FollowSymlink;
            nix::sys::stat::fchmodat(nix::fcntl::AT_FDCWD, path.as_c_str(), mode, follow)?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            let (a, m) = (time(set.atime), time(set.mtime));
            let follow = UtimensatFlags::FollowSymlink;
            nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, path.as_c_str(), &a, &m, follow)?;
        }
        let stat = sys::stat(&node, OsStr::new(""))?;
        self.note(id, &stat);
        self.announce(&[if set.size.is_some() {
            Event::All { node: id, generation: Some(stat.generation()) }
        } else {
            Event::Attr(id)
        }]);
        Ok(stat.attr(id))
    }

    /// Sets, or removes where there is no value.
    pub(super) fn change_xattr(
        &self,
        id: NodeId,
        name: &[u8],
        value: Option<(&[u8], XattrFlags)>,
    ) -> Result<()> {
        is_user_xattr(name, libc::EPERM)?;
        let _changing = self.changing();
        let node = self.node(id)?;
        let path = sys::proc_path(&node);
        match value {
            Some((value, flags)) => {
                let flags = match flags {
                    XattrFlags::Any => 0,
                    XattrFlags::Create => libc::XATTR_CREATE,
                    XattrFlags::Replace => libc::XATTR_REPLACE,
                };
                sys::setxattr(&path, name, value, flags)?;
            }
            None => sys::removexattr(&path, name)?,
        }
        self.note(id, &sys::stat(&node, OsStr::new(""))?);
        self.announce(&[Event::Attr(id)]);
        Ok(())
    }
}

/// Clients see the namespace `user.` alone: the others grant rights (`security.capability`) or belong
/// to the host's administrator.
pub(super) fn is_user_xattr(name: &[u8], errno: i32) -> Result<()> {
    if name.starts_with(b"user.") {
        return Ok(());
    }
    Err(Error::from_errno(errno, "only extended attributes named user.* are served"))
}

fn truncate(node: &Node, path: &std::ffi::CStr, size: u64) -> Result<()> {
    match node.stat.kind() {
        Kind::File => {}
        Kind::Dir => return Err(Error::from_errno(libc::EISDIR, "is a directory")),
        _ => return Err(Error::from_errno(libc::EINVAL, "only files have a size to set")),
    }
    let size = i64::try_from(size).map_err(|_| Error::from_errno(libc::EFBIG, "file too large"))?;
    Ok(nix::unistd::truncate(path, size)?)
}

fn time(set: Option<SetTime>) -> TimeSpec {
    match set {
        None => TimeSpec::UTIME_OMIT,
        Some(SetTime::Now) => TimeSpec::UTIME_NOW,
        Some(SetTime::At { ns }) => {
            TimeSpec::new(ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000))
        }
    }
}
