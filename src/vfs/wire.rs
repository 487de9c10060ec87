//! The words of trees in those of the wire (spec: fs 4 and 5), and back: one place for both ends of a
//! connection and for whoever prints them.

use super::{Access, Attr, FileKind, Kind, LockKind, NodeId, OpenFlags, SetAttr, SetTime};
use crate::wire::fs;

/// The attributes of a node whose id on the wire is `id`.
pub fn attr_to(id: u64, a: &Attr) -> fs::Attr {
    fs::Attr {
        id,
        kind: match a.kind {
            Kind::Dir => 2,
            Kind::Symlink => 3,
            Kind::File | Kind::Special => 1,
        },
        mode: a.mode,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        size: a.size,
        blocks: Some(a.blocks),
        atime_ns: a.atime_ns,
        mtime_ns: a.mtime_ns,
        ctime_ns: a.ctime_ns,
        generation: a.generation,
        identity: a.identity,
    }
}

/// The attributes of a node whose id here is `id`.
pub fn attr_from(id: NodeId, a: &fs::Attr) -> Attr {
    let by_mode = match a.mode & libc::S_IFMT {
        libc::S_IFREG | 0 => Kind::File,
        libc::S_IFDIR => Kind::Dir,
        libc::S_IFLNK => Kind::Symlink,
        _ => Kind::Special,
    };
    let kind = match a.kind {
        2 => Kind::Dir,
        3 => Kind::Symlink,
        _ => by_mode,
    };
    // An old node may leave the mode out (spec: fs 21).
    let mode = match (a.mode, kind) {
        (0, Kind::Dir) => libc::S_IFDIR | 0o755,
        (0, _) => libc::S_IFREG | 0o644,
        (mode, _) => mode,
    };
    Attr {
        id,
        kind,
        mode,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        size: a.size,
        blocks: a.blocks.unwrap_or(a.size.div_ceil(512)),
        atime_ns: a.atime_ns,
        mtime_ns: a.mtime_ns,
        ctime_ns: a.ctime_ns,
        generation: a.generation,
        identity: a.identity,
    }
}

/// Open flags as Linux numbers them.
pub fn flags_to(flags: OpenFlags) -> u32 {
    let access = match flags.access {
        Access::Read => libc::O_RDONLY,
        Access::Write => libc::O_WRONLY,
        Access::ReadWrite => libc::O_RDWR,
    };
    let bit = |on: bool, flag: i32| if on { flag } else { 0 };
    (access
        | bit(flags.append, libc::O_APPEND)
        | bit(flags.truncate, libc::O_TRUNC)
        | bit(flags.exclusive, libc::O_EXCL)) as u32
}

pub fn flags_from(bits: u32) -> OpenFlags {
    let has = |flag: i32| bits & flag as u32 != 0;
    OpenFlags {
        access: match bits as i32 & libc::O_ACCMODE {
            libc::O_WRONLY => Access::Write,
            libc::O_RDWR => Access::ReadWrite,
            _ => Access::Read,
        },
        append: has(libc::O_APPEND),
        truncate: has(libc::O_TRUNC),
        exclusive: has(libc::O_EXCL),
        content_max: 0,
    }
}

pub fn set_to(set: &SetAttr) -> fs::SetAttr {
    let ns = |t: Option<SetTime>| match t {
        Some(SetTime::At { ns }) => Some(ns),
        _ => None,
    };
    fs::SetAttr {
        mode: set.mode,
        uid: set.uid,
        gid: set.gid,
        size: set.size,
        atime_ns: ns(set.atime),
        mtime_ns: ns(set.mtime),
        atime_now: set.atime == Some(SetTime::Now),
        mtime_now: set.mtime == Some(SetTime::Now),
    }
}

pub fn set_from(set: &fs::SetAttr) -> SetAttr {
    let time = |now: bool, ns: Option<i64>| match ns {
        _ if now => Some(SetTime::Now),
        ns => ns.map(|ns| SetTime::At { ns }),
    };
    SetAttr {
        mode: set.mode,
        uid: set.uid,
        gid: set.gid,
        size: set.size,
        atime: time(set.atime_now, set.atime_ns),
        mtime: time(set.mtime_now, set.mtime_ns),
    }
}

pub fn lock_to(kind: LockKind) -> fs::Lock {
    match kind {
        LockKind::Shared => fs::Lock::Shared,
        LockKind::Exclusive => fs::Lock::Exclusive,
        LockKind::Unlock => fs::Lock::Unlock,
    }
}

pub fn lock_from(kind: fs::Lock) -> LockKind {
    match kind {
        fs::Lock::Shared => LockKind::Shared,
        fs::Lock::Exclusive => LockKind::Exclusive,
        fs::Lock::Unlock => LockKind::Unlock,
    }
}

/// How an open file behaves, where not like a file on disk.
pub fn kind_to(kind: FileKind) -> Option<String> {
    match kind {
        FileKind::Plain => None,
        FileKind::Message => Some("message".into()),
        FileKind::Stream => Some("stream".into()),
    }
}

pub fn kind_from(kind: Option<&str>) -> FileKind {
    match kind {
        Some("message") => FileKind::Message,
        Some("stream") => FileKind::Stream,
        _ => FileKind::Plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_out_comes_back() {
        for access in [Access::Read, Access::Write, Access::ReadWrite] {
            let flags = OpenFlags { access, append: true, exclusive: true, ..OpenFlags::READ };
            assert_eq!(flags_from(flags_to(flags)), flags);
        }
        let set = SetAttr {
            mode: Some(0o600),
            atime: Some(SetTime::Now),
            mtime: Some(SetTime::At { ns: -5 }),
            ..SetAttr::default()
        };
        assert_eq!(set_from(&set_to(&set)), set);
        for kind in [FileKind::Plain, FileKind::Message, FileKind::Stream] {
            assert_eq!(kind_from(kind_to(kind).as_deref()), kind);
        }
    }

    #[test]
    fn attributes_of_an_old_node_are_completed() {
        let dir = fs::Attr { id: 7, kind: 2, size: 1000, ..fs::Attr::default() };
        let a = attr_from(NodeId(3), &dir);
        assert_eq!((a.kind, a.mode, a.blocks), (Kind::Dir, libc::S_IFDIR | 0o755, 2));
        let fifo = fs::Attr { kind: 1, mode: libc::S_IFIFO | 0o600, ..fs::Attr::default() };
        assert_eq!(attr_from(NodeId(3), &fifo).kind, Kind::Special);
        assert_eq!(attr_to(7, &a).mode, a.mode);
    }
}
