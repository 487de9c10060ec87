//! Between the words of trees and those of the wire.

use super::exports::Exports;
use crate::base::{Name, Result};
use crate::vfs::{
    Access, Attr, Event, FileKind, Kind, LockKind, OpenFlags, Opened, SetAttr, SetTime, StatFs,
};
use crate::wire::fs;
use std::ffi::OsStr;

pub fn attr(export: usize, a: &Attr) -> Result<fs::Attr> {
    Ok(fs::Attr {
        id: Exports::id(export, a.id)?,
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
    })
}

/// Open flags as Linux numbers them.
pub fn flags(bits: u32) -> OpenFlags {
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
    }
}

pub fn open_reply(h: u64, opened: &Opened, flags: OpenFlags) -> fs::OpenReply {
    fs::OpenReply {
        h,
        readable: flags.reads(),
        writable: flags.writes(),
        generation: opened.generation,
        kind: match opened.kind {
            FileKind::Plain => None,
            FileKind::Message => Some("message".into()),
            FileKind::Stream => Some("stream".into()),
        },
    }
}

pub fn set_attr(set: &fs::SetAttr) -> SetAttr {
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

pub fn lock(kind: fs::Lock) -> LockKind {
    match kind {
        fs::Lock::Shared => LockKind::Shared,
        fs::Lock::Exclusive => LockKind::Exclusive,
        fs::Lock::Unlock => LockKind::Unlock,
    }
}

pub fn stat_fs(s: StatFs) -> fs::StatFs {
    fs::StatFs {
        bsize: s.bsize,
        frsize: s.frsize,
        blocks: s.blocks,
        bfree: s.bfree,
        bavail: s.bavail,
        files: s.files,
        ffree: s.ffree,
        favail: s.favail,
        namemax: s.namemax,
    }
}

/// An event of an export's tree under wire ids; `None` for what has no wire id.
pub fn event(export: usize, event: Event) -> Option<fs::Event> {
    let id = |node| Exports::id(export, node).ok();
    Some(match event {
        Event::Attr(node) => fs::Event::Attr { node: id(node)? },
        Event::Data { node, generation } => fs::Event::Data { node: id(node)?, generation },
        Event::All { node, generation } => fs::Event::All { node: id(node)?, generation },
        Event::Dir(dir) => fs::Event::Dir { dir: id(dir)? },
        Event::Resync => fs::Event::Resync,
    })
}

pub fn name(name: &OsStr) -> Result<Name<'_>> {
    Name::new(name)
}
