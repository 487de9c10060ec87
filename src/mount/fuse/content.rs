//! Space, holes and copies of open files as the kernel asks for them.

use super::adapter::Adapter;
use crate::base::{Error, Result};
use crate::vfs::{Allocate, Handle, NodeId, SeekTo};
use libc::{FALLOC_FL_KEEP_SIZE as KEEP, FALLOC_FL_PUNCH_HOLE as PUNCH};
use libc::{FALLOC_FL_ZERO_RANGE as ZERO, SEEK_DATA, SEEK_HOLE};

/// What a mode of fallocate(2) means. Errors: EOPNOTSUPP, as a filesystem answers that cannot.
pub fn allocate_mode(mode: i32) -> Result<Allocate> {
    let keep_size = mode & KEEP != 0;
    Ok(match mode & !KEEP {
        0 => Allocate::Reserve { keep_size },
        PUNCH if keep_size => Allocate::PunchHole,
        ZERO => Allocate::Zero { keep_size },
        _ => return Err(Error::from_errno(libc::EOPNOTSUPP, "fallocate mode not supported")),
    })
}

impl Adapter {
    /// Where the tree knows of no holes, a file is one piece of data.
    pub fn seek(&self, node: NodeId, handle: Handle, offset: i64, whence: i32) -> Result<i64> {
        let to = match whence {
            SEEK_DATA => SeekTo::Data,
            SEEK_HOLE => SeekTo::Hole,
            _ => return Err(Error::invalid("only SEEK_DATA and SEEK_HOLE are asked for")),
        };
        let none = || Error::from_errno(libc::ENXIO, "nothing of that kind behind the offset");
        let offset = u64::try_from(offset).map_err(|_| none())?;
        let found = match self.tree.seek(&self.cx(), handle, offset, to) {
            Err(e) if matches!(e.errno(), libc::ENOSYS | libc::EOPNOTSUPP) => {
                let size = self.tree.getattr(&self.cx(), node)?.size;
                match to {
                    _ if offset >= size => return Err(none()),
                    SeekTo::Data => offset,
                    SeekTo::Hole => size,
                }
            }
            found => found?,
        };
        i64::try_from(found).map_err(|_| none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_of_fallocate_are_told_apart() {
        let mode = |m| allocate_mode(m).ok();
        assert_eq!(mode(0), Some(Allocate::Reserve { keep_size: false }));
        assert_eq!(mode(KEEP), Some(Allocate::Reserve { keep_size: true }));
        assert_eq!(mode(PUNCH | KEEP), Some(Allocate::PunchHole));
        assert_eq!(mode(ZERO), Some(Allocate::Zero { keep_size: false }));
        assert_eq!(mode(PUNCH), None);
        assert_eq!(mode(libc::FALLOC_FL_COLLAPSE_RANGE), None);
    }
}
