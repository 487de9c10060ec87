//! The kernel's words and ours.

use crate::base::Error;
use crate::mount::options::View;
use crate::vfs::{Attr, Kind, NodeId, OpenFlags, RenameFlags, SetTime};
use fuser::{Errno, FileAttr, FileType, INodeNo, TimeOrNow};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Size of a block as `stat` reports it: what one transfer should carry at most.
const BLKSIZE: u32 = 1 << 20;

pub fn node(ino: INodeNo) -> NodeId {
    NodeId(ino.0)
}

/// One to one. Only ENOSYS must not reach the kernel: it would never ask for that operation again,
/// while another part of the tree may offer it.
pub fn errno(e: &Error) -> Errno {
    match e.errno() {
        libc::ENOSYS => Errno::EOPNOTSUPP,
        errno => Errno::from_i32(errno),
    }
}

/// The attributes as `view` shows them.
pub fn attr(view: &View, a: &Attr) -> FileAttr {
    let a = &view.show(a);
    FileAttr {
        ino: INodeNo(a.id.0),
        size: a.size,
        blocks: a.blocks,
        atime: time(a.atime_ns),
        mtime: time(a.mtime_ns),
        ctime: time(a.ctime_ns),
        crtime: UNIX_EPOCH,
        kind: file_type(a),
        perm: (a.mode & 0o7777) as u16,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: 0,
        blksize: BLKSIZE,
        flags: 0,
    }
}

pub fn file_type(a: &Attr) -> FileType {
    match (a.kind, a.mode & libc::S_IFMT) {
        (Kind::Dir, _) => FileType::Directory,
        (Kind::Symlink, _) => FileType::Symlink,
        (Kind::File, _) => FileType::RegularFile,
        (Kind::Special, libc::S_IFIFO) => FileType::NamedPipe,
        (Kind::Special, libc::S_IFCHR) => FileType::CharDevice,
        (Kind::Special, libc::S_IFBLK) => FileType::BlockDevice,
        (Kind::Special, _) => FileType::Socket,
    }
}

fn time(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    let time =
        if ns < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    time.unwrap_or(UNIX_EPOCH)
}

pub fn set_time(t: TimeOrNow) -> SetTime {
    let ns = |d: Duration| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX);
    match t {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(t) => SetTime::At {
            ns: match t.duration_since(UNIX_EPOCH) {
                Ok(after) => ns(after),
                Err(before) => -ns(before.duration()),
            },
        },
    }
}

pub fn open_flags(flags: i32) -> OpenFlags {
    crate::vfs::wire::flags_from(flags as u32)
}

/// Errors: EINVAL for a flag that no tree knows.
pub fn rename_flags(flags: fuser::RenameFlags) -> Result<RenameFlags, Error> {
    let no_replace = flags == fuser::RenameFlags::RENAME_NOREPLACE;
    let exchange = flags == fuser::RenameFlags::RENAME_EXCHANGE;
    if !no_replace && !exchange && !flags.is_empty() {
        return Err(Error::invalid(format!("rename flags {flags} are not supported")));
    }
    Ok(RenameFlags { no_replace, exchange })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_and_out_of_range_survive() {
        for ns in [0, 1, -1, 1_700_000_000_123_456_789, -86_400_000_000_000] {
            assert_eq!(set_time(TimeOrNow::SpecificTime(time(ns))), SetTime::At { ns });
        }
        time(i64::MIN);
        time(i64::MAX);
    }

    #[test]
    fn an_unknown_operation_is_not_taken_for_one_that_never_works() {
        assert_eq!(errno(&Error::from_errno(libc::ENOSYS, "")).code(), libc::EOPNOTSUPP);
        assert_eq!(errno(&Error::from_errno(libc::ELOOP, "")).code(), libc::ELOOP);
    }
}
