//! Changes of what is in an open file, and where its holes are. Each is one call of the host, then what
//! the file is like now is noted, then the watchers are told.

use super::Core;
use super::file::OpenFile;
use super::sys;
use crate::base::{Error, Result};
use crate::vfs::{Allocate, Handle, SeekTo, Written};
use nix::fcntl::FallocateFlags as F;
use nix::unistd::Whence;

/// Most that one call copies: whoever waits for it waits for the disk.
const COPY_MAX: u64 = 8 << 20;

/// An offset or length as the host takes them.
fn host_offset(n: u64) -> Result<i64> {
    i64::try_from(n).map_err(|_| Error::from_errno(libc::EFBIG, "beyond every file's end"))
}

impl OpenFile {
    pub fn seek(&self, offset: u64, to: SeekTo) -> Result<u64> {
        let none = || Error::from_errno(libc::ENXIO, "nothing of that kind behind the offset");
        let whence = match to {
            SeekTo::Data => Whence::SeekData,
            SeekTo::Hole => Whence::SeekHole,
        };
        let offset = i64::try_from(offset).map_err(|_| none())?;
        // The description's own position is used by nobody.
        let found = nix::unistd::lseek(&self.file, offset, whence)?;
        u64::try_from(found).map_err(|_| none())
    }

    fn allocate(&self, offset: u64, len: u64, how: Allocate) -> Result<()> {
        self.writable()?;
        let keep = |keep| if keep { F::FALLOC_FL_KEEP_SIZE } else { F::empty() };
        let mode = match how {
            Allocate::Reserve { keep_size } => keep(keep_size),
            Allocate::PunchHole => F::FALLOC_FL_PUNCH_HOLE | keep(true),
            Allocate::Zero { keep_size } => F::FALLOC_FL_ZERO_RANGE | keep(keep_size),
        };
        Ok(nix::fcntl::fallocate(&self.file, mode, host_offset(offset)?, host_offset(len)?)?)
    }
}

impl Core {
    pub(super) fn write_file(&self, handle: Handle, offset: u64, data: &[u8]) -> Result<Written> {
        let (node, file) = self.handles.get(handle)?;
        let mut written = Written::default();
        let stat = self.altered(node, || {
            written = file.write(offset, data)?;
            file.stat_changed()
        })?;
        Ok(Written { attr: Some(stat.attr(node)), ..written })
    }

    pub(super) fn allocate_range(
        &self,
        handle: Handle,
        offset: u64,
        len: u64,
        how: Allocate,
    ) -> Result<()> {
        let (node, file) = self.handles.get(handle)?;
        let change = || {
            file.allocate(offset, len, how)?;
            file.stat_changed()
        };
        self.altered(node, change).map(drop)
    }

    pub(super) fn copy_bytes(
        &self,
        from: (Handle, u64),
        to: (Handle, u64),
        len: u64,
    ) -> Result<Written> {
        let (_, source) = self.handles.get(from.0)?;
        let (node, target) = self.handles.get(to.0)?;
        source.readable()?;
        target.writable()?;
        let len = usize::try_from(len.min(COPY_MAX)).unwrap_or(usize::MAX);
        let (from, to) = ((&source.file, host_offset(from.1)?), (&target.file, host_offset(to.1)?));
        let mut n = 0;
        let stat = self.altered(node, || {
            n = sys::copy_range(from, to, len)?;
            target.stat_changed()
        })?;
        Ok(Written { attr: Some(stat.attr(node)), ..Written::bytes(n) })
    }
}
