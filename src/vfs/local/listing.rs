//! Reading directories. A cookie is the directory's own position (`d_off`), which ext4, xfs, btrfs and
//! tmpfs keep stable for an entry as long as it exists, so a page needs no memory of the one before and
//! a directory of any size takes a page's worth of it. Where positions only hold within one open
//! directory (overlayfs), the descriptors of the walks going on are kept for their next page.

use super::sys;
use super::{Core, HIDDEN};
use crate::base::Result;
use crate::vfs::{Cx, DirEntry, DirPage, NodeId, PageLimit, ReadDir};
use nix::fcntl::OFlag;
use nix::unistd::{Whence, lseek};
use std::collections::VecDeque;
use std::fs::File;
use std::sync::{Mutex, PoisonError};

/// Walks whose descriptor is kept.
const WALKS_MAX: usize = 32;
/// Entries are fetched from the kernel in buffers of this size.
const BUFFER_BYTES: usize = 32 * 1024;

/// A walk through a directory that stopped at a page's end.
struct Walk {
    dir: NodeId,
    cookie: u64,
    file: File,
}

#[derive(Default)]
pub(super) struct Walks(Mutex<VecDeque<Walk>>);

impl Walks {
    /// The walk that stopped here, or another one through the same directory.
    fn take(&self, dir: NodeId, cookie: u64) -> Option<File> {
        let mut walks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let exact = walks.iter().position(|w| w.dir == dir && w.cookie == cookie);
        let at = exact.or_else(|| walks.iter().position(|w| w.dir == dir))?;
        walks.remove(at).map(|w| w.file)
    }

    fn keep(&self, walk: Walk) {
        let mut walks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        walks.push_back(walk);
        if walks.len() > WALKS_MAX {
            walks.pop_front();
        }
    }
}

impl Core {
    pub(super) fn page(&self, cx: &Cx, at: ReadDir) -> Result<DirPage> {
        let dir = self.dir(at.dir)?;
        let kept = if at.cookie == 0 { None } else { self.walks.take(at.dir, at.cookie) };
        let file = match kept {
            Some(file) => file,
            None => sys::reopen(&dir, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?,
        };
        lseek(&file, i64::try_from(at.cookie).unwrap_or(i64::MAX), Whence::SeekSet)?;
        let mut page = DirPage { generation: dir.stat.generation(), ..DirPage::default() };
        let mut cookie = at.cookie;
        page.eof = self.fill(cx, &dir, &file, at.limit, &mut cookie, &mut page.entries)?;
        if !page.eof {
            self.walks.keep(Walk { dir: at.dir, cookie, file });
        }
        Ok(page)
    }

    /// Returns whether the directory ended. Entries that vanish before they are looked at are skipped.
    fn fill(
        &self,
        cx: &Cx,
        dir: &super::resolve::Node,
        file: &File,
        limit: PageLimit,
        cookie: &mut u64,
        entries: &mut Vec<DirEntry>,
    ) -> Result<bool> {
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut bytes = 0;
        loop {
            cx.check()?;
            let batch = sys::getdents(file, &mut buffer)?;
            if batch.is_empty() {
                return Ok(true);
            }
            for entry in batch {
                if entry.name == "." || entry.name == ".." || entry.name == HIDDEN {
                    *cookie = entry.next;
                    continue;
                }
                let cost = entry.name.len() + PageLimit::ENTRY_BYTES;
                let full = entries.len() >= limit.entries.max(1) || bytes + cost > limit.bytes;
                if full && !entries.is_empty() {
                    return Ok(false);
                }
                *cookie = entry.next;
                let Ok(stat) = sys::stat(dir, &entry.name) else { continue };
                let attr = self.attr(dir.id, &entry.name, &stat);
                bytes += cost;
                entries.push(DirEntry { name: entry.name, attr, cookie: entry.next });
            }
        }
    }
}
