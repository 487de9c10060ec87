//! Open directories. The kernel reads a directory a few kilobytes at a time, a tree gives it in large
//! pages: an open directory keeps the page that is being read. Positions told to the kernel count the
//! entries of the walk, since a tree's cookies may use every value the kernel has.

use crate::base::{Error, Result};
use crate::vfs::{Cx, DirEntry, NodeId, PageLimit, ReadDir, Tree};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Directories open at once.
const OPEN_MAX: usize = 1 << 14;
/// Beginnings of pages remembered of one walk.
const PAGES_MAX: usize = 1 << 12;
/// Positions of `.` and `..`, which trees do not list.
pub const DOTS: u64 = 2;

#[derive(Default)]
pub struct OpenDirs(Mutex<State>);

#[derive(Default)]
struct State {
    next: u64,
    open: HashMap<u64, Arc<Mutex<OpenDir>>>,
}

/// One walk through a directory.
pub struct OpenDir {
    node: NodeId,
    /// Where the pages read so far begin: position and cookie, ascending.
    pages: Vec<(u64, u64)>,
    /// The page that begins at the last-used of `pages`.
    entries: Vec<DirEntry>,
    first: u64,
    eof: bool,
}

impl OpenDirs {
    /// Errors: EMFILE.
    pub fn open(&self, node: NodeId) -> Result<u64> {
        let mut s = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if s.open.len() >= OPEN_MAX {
            return Err(Error::from_errno(libc::EMFILE, "too many open directories"));
        }
        s.next += 1;
        let key = s.next;
        s.open.insert(key, Arc::new(Mutex::new(OpenDir::new(node))));
        Ok(key)
    }

    /// Errors: EBADF.
    pub fn get(&self, key: u64) -> Result<Arc<Mutex<OpenDir>>> {
        let s = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = s.open.get(&key).cloned();
        found.ok_or_else(|| Error::from_errno(libc::EBADF, "not an open directory"))
    }

    pub fn close(&self, key: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).open.remove(&key);
    }
}

impl OpenDir {
    fn new(node: NodeId) -> OpenDir {
        OpenDir { node, pages: Vec::new(), entries: Vec::new(), first: DOTS, eof: false }
    }

    /// The entries from `position` on, with the positions behind them, as far as one page reaches;
    /// none at the end of the directory.
    pub fn from(
        &mut self,
        tree: &dyn Tree,
        cx: &Cx,
        position: u64,
    ) -> Result<impl Iterator<Item = (u64, &DirEntry)>> {
        let position = position.max(DOTS);
        // The start of a walk shows the directory as it is now.
        if position == DOTS || self.pages.is_empty() {
            self.pages.clear();
            self.load(tree, cx, (DOTS, 0))?;
        }
        if position < self.first {
            let before = self.pages.partition_point(|(first, _)| *first <= position);
            let page = self.pages[before.saturating_sub(1)];
            self.load(tree, cx, page)?;
        }
        while position >= self.end() && !self.eof {
            let Some(cookie) = self.entries.last().map(|e| e.cookie) else { break };
            self.load(tree, cx, (self.end(), cookie))?;
        }
        let skip = usize::try_from(position - self.first).unwrap_or(usize::MAX);
        let positions = self.first + 1..;
        Ok(positions.zip(&self.entries).skip(skip))
    }

    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn load(&mut self, tree: &dyn Tree, cx: &Cx, page: (u64, u64)) -> Result<()> {
        let (first, cookie) = page;
        let at = ReadDir { dir: self.node, cookie, limit: PageLimit::DEFAULT };
        let read = tree.readdir(cx, at)?;
        if self.pages.last().is_none_or(|last| last.0 < first) {
            self.pages.push(page);
        }
        if self.pages.len() > PAGES_MAX {
            // Every other will do: the way from one to the next is walked again.
            let mut n = 0;
            self.pages.retain(|_| {
                n += 1;
                n % 2 == 1
            });
        }
        self.first = first;
        self.eof = read.eof || read.entries.is_empty();
        self.entries = read.entries;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Deadline, Name};
    use crate::vfs::{Local, LocalOptions};

    #[test]
    fn a_walk_of_many_pages_can_go_on_anywhere() {
        let unique =
            format!("spiderweb-dirs-{}-{:x}", std::process::id(), crate::base::id::random_u53());
        let path = std::env::temp_dir().join(unique);
        std::fs::create_dir(&path).unwrap();
        let tree = Local::open(&path, LocalOptions::default()).unwrap();
        let cx = Cx::internal(Deadline::after_ms(60_000));
        const FILES: u64 = 6000;
        for n in 0..FILES {
            tree.mkdir(&cx, NodeId::ROOT, Name::text(&format!("d{n}")).unwrap(), 0o755).unwrap();
        }
        let dirs = OpenDirs::default();
        let key = dirs.open(NodeId::ROOT).unwrap();
        let dir = dirs.get(key).unwrap();
        let mut dir = dir.lock().unwrap();
        let mut all = Vec::new();
        let mut at = 0;
        loop {
            // A few at a time, as the kernel asks.
            let some: Vec<_> = dir.from(&tree, &cx, at).unwrap().take(100).collect();
            let Some(last) = some.last() else { break };
            at = last.0;
            all.extend(some.into_iter().map(|(_, e)| e.name.clone()));
        }
        assert_eq!((all.len() as u64, at), (FILES, FILES + DOTS));
        // seekdir: back over a page's start, and forward again.
        for at in [5500, 17, 5999 + DOTS - 1, 3] {
            let entry = dir.from(&tree, &cx, at).unwrap().next().unwrap().1;
            assert_eq!(entry.name, all[(at - DOTS) as usize]);
        }
        assert!(dir.from(&tree, &cx, FILES + DOTS).unwrap().next().is_none());
        drop(dir);
        dirs.close(key);
        assert_eq!(dirs.get(key).err().unwrap().errno(), libc::EBADF);
        std::fs::remove_dir_all(&path).unwrap();
    }
}
