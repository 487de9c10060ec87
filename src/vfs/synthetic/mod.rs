//! Files that are functions. A tree is described by [`Item`]s: directories that look names up and files
//! that open, with ready-made ones ([`dir`], [`listing`], [`text`], [`message`], [`stream`], …) so that a
//! description reads like a table, and [`MemDir`] for trees kept in memory.
//!
//! Every call walks from the root with the caller's context, so what a directory shows to whom is asked
//! each time, and an id never opens a way around it.

mod files;
mod mem;
mod tree;

pub use files::{Reply, Turn, dir, fixed, json_message, listing, message, stream, text};
pub use mem::{MemDir, MemFile};
pub use tree::Synthetic;

use super::{Cx, FileKind, OpenFlags, Read, RenameFlags, SetAttr, Written};
use crate::base::{Error, Result};
use std::any::Any;
use std::sync::Arc;

/// What a name leads to.
#[derive(Clone)]
pub enum Item {
    Dir(Arc<dyn Dir>),
    File(Arc<dyn File>),
}

/// A directory. Only `lookup` and `list` must be there; they and all others decide by [`Cx::who`].
pub trait Dir: Any + Send + Sync {
    /// Errors: ENOENT, also for what the caller must not see.
    fn lookup(&self, cx: &Cx, name: &str) -> Result<Item>;

    /// In any order.
    fn list(&self, cx: &Cx) -> Result<Vec<(String, Item)>>;

    /// Whether entries can be made here; shows in the mode.
    fn writable(&self, _: &Cx) -> bool {
        false
    }

    /// A number no other node ever has, for nodes that can be renamed. Others are known by their path.
    fn identity(&self) -> Option<u64> {
        None
    }

    /// Bytes used and bytes there are, where that is bounded.
    fn space(&self) -> Option<(u64, u64)> {
        None
    }

    /// Makes an empty file. Errors: EEXIST.
    fn create(&self, _: &Cx, _name: &str) -> Result<Arc<dyn File>> {
        denied()
    }

    /// Errors: EEXIST.
    fn mkdir(&self, _: &Cx, _name: &str) -> Result<Arc<dyn Dir>> {
        denied()
    }

    fn unlink(&self, _: &Cx, _name: &str) -> Result<()> {
        denied()
    }

    fn rmdir(&self, _: &Cx, _name: &str) -> Result<()> {
        denied()
    }

    /// As rename(2). Errors: EXDEV when `to` is of another kind.
    fn rename(
        &self,
        _: &Cx,
        _name: &str,
        _to: &Arc<dyn Dir>,
        _to_name: &str,
        _: RenameFlags,
    ) -> Result<()> {
        denied()
    }
}

/// A file.
pub trait File: Any + Send + Sync {
    fn kind(&self) -> FileKind;

    /// Whether the caller may open it to write; shows in the mode.
    fn writable(&self, cx: &Cx) -> bool;

    fn stat(&self, cx: &Cx) -> Result<FileStat>;

    /// The tree has checked access, and truncates by [`File::setattr`].
    fn open(self: Arc<Self>, cx: &Cx, flags: OpenFlags) -> Result<Box<dyn OpenFile>>;

    /// As [`Dir::identity`].
    fn identity(&self) -> Option<u64> {
        None
    }

    /// As [`crate::vfs::Opened::patience_ms`].
    fn patience_ms(&self) -> Option<u64> {
        None
    }

    /// Truncation and times; asked only of writable files. Where they mean nothing (`>` in a shell
    /// truncates whatever it opens) they are accepted and do nothing.
    fn setattr(&self, _: &Cx, _: &SetAttr) -> Result<()> {
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileStat {
    pub size: u64,
    /// 0: as old as the tree.
    pub mtime_ms: i64,
    /// Changes whenever the content changes.
    pub generation: u64,
}

/// An open file. Calls come one at a time; a read that must wait says so ([`Read::Wait`]) and returns.
pub trait OpenFile: Send {
    fn read(&mut self, cx: &Cx, offset: u64, len: u32) -> Result<Read>;

    fn write(&mut self, _: &Cx, _offset: u64, _data: &[u8]) -> Result<Written> {
        Err(Error::from_errno(libc::EBADF, "handle not writable"))
    }

    fn flush(&mut self, _: &Cx) -> Result<Written> {
        Ok(Written::default())
    }
}

impl Item {
    fn identity(&self) -> Option<u64> {
        match self {
            Item::Dir(dir) => dir.identity(),
            Item::File(file) => file.identity(),
        }
    }
}

impl From<Arc<MemDir>> for Item {
    fn from(dir: Arc<MemDir>) -> Item {
        Item::Dir(dir)
    }
}

fn denied<T>() -> Result<T> {
    Err(Error::from_errno(libc::EACCES, "the entries of this directory cannot be changed"))
}

fn not_found(name: &str) -> Error {
    Error::from_errno(libc::ENOENT, format!("{name}: file not found"))
}

/// The piece of `content` that a read asks for.
fn slice(content: &bytes::Bytes, offset: u64, len: u32) -> Read {
    let start = usize::try_from(offset).map_or(content.len(), |o| o.min(content.len()));
    let end = content.len().min(start.saturating_add(len as usize));
    Read::Data { bytes: content.slice(start..end), eof: end == content.len() }
}
