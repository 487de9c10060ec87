//! Directories as the kernel reads them: as much as fits into one reply, with or without attributes.

use super::adapter::{Adapter, GENERATION};
use super::convert::{self, node};
use super::dirs::DOTS;
use crate::base::Result;
use fuser::{FileType, INodeNo, ReplyDirectory, ReplyDirectoryPlus};
use std::sync::PoisonError;

impl Adapter {
    pub fn list(
        &self,
        ino: INodeNo,
        key: u64,
        offset: u64,
        reply: &mut ReplyDirectory,
    ) -> Result<()> {
        self.counted(|| {
            for (at, name, ino) in self.dots(offset, ino) {
                if reply.add(ino, at, FileType::Directory, name) {
                    return Ok(());
                }
            }
            let dir = self.dirs.get(key)?;
            let mut dir = dir.lock().unwrap_or_else(PoisonError::into_inner);
            for (at, e) in dir.from(&*self.tree, &self.cx(), offset)? {
                let kind = convert::file_type(&e.attr);
                if reply.add(INodeNo(e.attr.id.0), at, kind, &e.name) {
                    break;
                }
            }
            Ok(())
        })
    }

    pub fn list_plus(
        &self,
        ino: INodeNo,
        key: u64,
        offset: u64,
        reply: &mut ReplyDirectoryPlus,
    ) -> Result<()> {
        self.counted(|| {
            let cx = self.cx();
            if offset < DOTS {
                let own = convert::attr(&self.view, &self.tree.getattr(&cx, node(ino))?);
                for (at, name, ino) in self.dots(offset, ino) {
                    if reply.add(ino, at, name, &self.view.attr_timeout, &own, GENERATION) {
                        return Ok(());
                    }
                }
            }
            let dir = self.dirs.get(key)?;
            let mut dir = dir.lock().unwrap_or_else(PoisonError::into_inner);
            for (at, e) in dir.from(&*self.tree, &cx, offset)? {
                let (ino, attr) = (INodeNo(e.attr.id.0), convert::attr(&self.view, &e.attr));
                if reply.add(ino, at, &e.name, &self.view.attr_timeout, &attr, GENERATION) {
                    break;
                }
            }
            Ok(())
        })
    }

    /// `.` and `..`, where they are still to be shown; the kernel finds out by itself what `..` is.
    fn dots(
        &self,
        position: u64,
        ino: INodeNo,
    ) -> impl Iterator<Item = (u64, &'static str, INodeNo)> {
        [(1, ".", ino), (2, "..", ino)].into_iter().filter(move |(at, ..)| *at > position)
    }
}
