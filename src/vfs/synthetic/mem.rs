//! A writable tree kept in memory, within a bound.

use super::{Dir, File, FileStat, Item, OpenFile, not_found};
use crate::base::{Error, Result, now_ms};
use crate::vfs::{Cx, FileKind, OpenFlags, Read, RenameFlags, SetAttr, SetTime, Written};
use bytes::Bytes;
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

/// What a node costs of the bound, besides its content.
const NODE_BYTES: u64 = 256;

/// What all nodes of one tree share.
struct Store {
    used: AtomicU64,
    limit: u64,
    /// Held while names change: there is one such change at a time. Content has locks of its own.
    names: Mutex<()>,
}

impl Store {
    fn charge(&self, bytes: u64) -> Result<()> {
        let add = |used: u64| used.checked_add(bytes).filter(|n| *n <= self.limit);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add) {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::from_errno(libc::ENOSPC, "this tree has no space left")),
        }
    }

    fn refund(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

fn next_identity() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A directory in memory. Its entries can also be items of other kinds, put there by the program.
pub struct MemDir {
    store: Arc<Store>,
    identity: u64,
    this: Weak<MemDir>,
    parent: Mutex<Weak<MemDir>>,
    /// `None` once the directory was removed.
    entries: RwLock<Option<BTreeMap<String, Item>>>,
}

impl MemDir {
    /// An empty tree that holds `limit` bytes at most, names included.
    pub fn new(limit: u64) -> Arc<MemDir> {
        let store = Store { used: AtomicU64::new(NODE_BYTES), limit, names: Mutex::default() };
        MemDir::make(Arc::new(store), Weak::new())
    }

    fn make(store: Arc<Store>, parent: Weak<MemDir>) -> Arc<MemDir> {
        Arc::new_cyclic(|this| MemDir {
            store,
            identity: next_identity(),
            this: this.clone(),
            parent: Mutex::new(parent),
            entries: RwLock::new(Some(BTreeMap::new())),
        })
    }

    /// Puts an item here, in place of what had that name.
    pub fn put(&self, name: &str, item: Item) -> Result<()> {
        let _names = self.names();
        self.change(|entries| Ok(entries.insert(name.into(), item))).map(drop)
    }

    /// A new file with content, to be put anywhere in this tree.
    pub fn file(&self, content: &[u8], writable: bool) -> Result<Item> {
        let file = MemFile::make(&self.store, writable)?;
        file.write_at(Some(0), content)?;
        Ok(Item::File(file))
    }

    fn names(&self) -> MutexGuard<'_, ()> {
        self.store.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, f: impl FnOnce(&mut BTreeMap<String, Item>) -> Result<T>) -> Result<T> {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        f(entries.as_mut().ok_or_else(removed)?)
    }

    fn see<T>(&self, f: impl FnOnce(&BTreeMap<String, Item>) -> Result<T>) -> Result<T> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        f(entries.as_ref().ok_or_else(removed)?)
    }

    fn add(&self, name: &str, item: Item) -> Result<()> {
        self.change(|entries| {
            if entries.contains_key(name) {
                return Err(exists(name));
            }
            entries.insert(name.into(), item);
            Ok(())
        })
    }

    /// Whether this directory is `above`, or below it.
    fn is_within(&self, above: &MemDir) -> bool {
        let mut at = self.this.upgrade();
        while let Some(dir) = at {
            if dir.identity == above.identity {
                return true;
            }
            at = dir.parent.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        }
        false
    }

    /// Makes an empty directory one that takes no more entries.
    fn close(&self) -> Result<()> {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if entries.as_ref().is_some_and(|e| !e.is_empty()) {
            return Err(Error::from_errno(libc::ENOTEMPTY, "directory not empty"));
        }
        *entries = None;
        Ok(())
    }

    fn adopt(&self, item: &Item) {
        if let Some(dir) = as_mem_dir(item) {
            *dir.parent.lock().unwrap_or_else(PoisonError::into_inner) = self.this.clone();
        }
    }
}

impl Drop for MemDir {
    fn drop(&mut self) {
        // One by one rather than one in the other: a tree can be deeper than a stack.
        let own = self.entries.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let mut todo: Vec<Item> = own.into_iter().flat_map(BTreeMap::into_values).collect();
        while let Some(item) = todo.pop() {
            if let (Item::Dir(dir), Some(mem)) = (&item, as_mem_dir(&item))
                && Arc::strong_count(dir) == 1
            {
                let below = mem.entries.write().unwrap_or_else(PoisonError::into_inner).take();
                todo.extend(below.into_iter().flat_map(BTreeMap::into_values));
            }
        }
        self.store.refund(NODE_BYTES);
    }
}

fn as_mem_dir(item: &Item) -> Option<&MemDir> {
    match item {
        Item::Dir(dir) => (&**dir as &dyn Any).downcast_ref(),
        Item::File(_) => None,
    }
}

/// Removes what an item stands for from use, before its name goes. Errors: ENOTEMPTY.
fn close_dir(cx: &Cx, item: &Item) -> Result<()> {
    match (as_mem_dir(item), item) {
        (Some(dir), _) => dir.close(),
        (None, Item::Dir(dir)) if !dir.list(cx)?.is_empty() => {
            Err(Error::from_errno(libc::ENOTEMPTY, "directory not empty"))
        }
        _ => Ok(()),
    }
}

impl Dir for MemDir {
    fn lookup(&self, _: &Cx, name: &str) -> Result<Item> {
        self.see(|entries| entries.get(name).cloned().ok_or_else(|| not_found(name)))
    }

    fn list(&self, _: &Cx) -> Result<Vec<(String, Item)>> {
        self.see(|entries| Ok(entries.iter().map(|(n, i)| (n.clone(), i.clone())).collect()))
    }

    fn writable(&self, _: &Cx) -> bool {
        true
    }

    fn identity(&self) -> Option<u64> {
        Some(self.identity)
    }

    fn space(&self) -> Option<(u64, u64)> {
        Some((self.store.used.load(Ordering::Relaxed), self.store.limit))
    }

    fn create(&self, _: &Cx, name: &str) -> Result<Arc<dyn File>> {
        let _names = self.names();
        let file = MemFile::make(&self.store, true)?;
        self.add(name, Item::File(file.clone()))?;
        Ok(file)
    }

    fn mkdir(&self, _: &Cx, name: &str) -> Result<Arc<dyn Dir>> {
        let _names = self.names();
        self.store.charge(NODE_BYTES)?;
        let dir = MemDir::make(self.store.clone(), self.this.clone());
        self.add(name, Item::Dir(dir.clone()))?;
        Ok(dir)
    }

    fn unlink(&self, _: &Cx, name: &str) -> Result<()> {
        let _names = self.names();
        let removed = self.change(|entries| match entries.get(name) {
            None => Err(not_found(name)),
            Some(Item::Dir(_)) => Err(Error::from_errno(libc::EISDIR, "is a directory")),
            Some(Item::File(_)) => Ok(entries.remove(name)),
        });
        removed.map(drop)
    }

    fn rmdir(&self, cx: &Cx, name: &str) -> Result<()> {
        let _names = self.names();
        let removed = self.change(|entries| match entries.get(name) {
            None => Err(not_found(name)),
            Some(Item::File(_)) => Err(Error::from_errno(libc::ENOTDIR, "not a directory")),
            Some(dir) => close_dir(cx, dir).map(|()| entries.remove(name)),
        });
        removed.map(drop)
    }

    fn rename(
        &self,
        cx: &Cx,
        name: &str,
        to: &Arc<dyn Dir>,
        to_name: &str,
        flags: RenameFlags,
    ) -> Result<()> {
        let to = (&**to as &dyn Any).downcast_ref::<MemDir>();
        let to = to.filter(|to| Arc::ptr_eq(&to.store, &self.store)).ok_or_else(|| {
            Error::from_errno(libc::EXDEV, "the new directory belongs to another tree")
        })?;
        let _names = self.names();
        let moved = self.lookup(cx, name)?;
        let target = to.see(|entries| Ok(entries.get(to_name).cloned()))?;
        if target.is_some() && flags.no_replace {
            return Err(exists(to_name));
        }
        let inside = |item: &Item, dir: &MemDir| as_mem_dir(item).is_some_and(|d| dir.is_within(d));
        if inside(&moved, to) {
            return Err(Error::invalid("a directory cannot be moved into itself"));
        }
        if self.identity == to.identity && name == to_name {
            return Ok(());
        }
        match (target, flags.exchange) {
            (None, true) => return Err(not_found(to_name)),
            (Some(target), true) if inside(&target, self) => {
                return Err(Error::invalid("a directory cannot be moved into itself"));
            }
            (Some(target), true) => {
                self.adopt(&target);
                self.change(|entries| Ok(entries.insert(name.into(), target)))?;
            }
            (Some(target), false) if inside(&target, self) => {
                return Err(Error::from_errno(libc::ENOTEMPTY, "directory not empty"));
            }
            (Some(target), false) => match (&moved, &target) {
                (Item::Dir(_), Item::File(_)) => {
                    return Err(Error::from_errno(libc::ENOTDIR, "not a directory"));
                }
                (Item::File(_), Item::Dir(_)) => {
                    return Err(Error::from_errno(libc::EISDIR, "is a directory"));
                }
                _ => close_dir(cx, &target)?,
            },
            (None, false) => {}
        }
        // The new name first: at no moment is there none.
        to.adopt(&moved);
        to.change(|entries| Ok(entries.insert(to_name.into(), moved)))?;
        if !flags.exchange {
            self.change(|entries| Ok(entries.remove(name)))?;
        }
        Ok(())
    }
}

/// A file in memory.
pub struct MemFile {
    store: Arc<Store>,
    identity: u64,
    writable: bool,
    content: RwLock<Content>,
}

struct Content {
    bytes: Vec<u8>,
    mtime_ms: i64,
    generation: u64,
}

impl MemFile {
    fn make(store: &Arc<Store>, writable: bool) -> Result<Arc<MemFile>> {
        store.charge(NODE_BYTES)?;
        let content = Content { bytes: Vec::new(), mtime_ms: now_ms(), generation: 0 };
        Ok(Arc::new(MemFile {
            store: store.clone(),
            identity: next_identity(),
            writable,
            content: RwLock::new(content),
        }))
    }

    /// At the end without an offset.
    fn write_at(&self, offset: Option<u64>, data: &[u8]) -> Result<()> {
        let mut content = self.content.write().unwrap_or_else(PoisonError::into_inner);
        let size = content.bytes.len() as u64;
        let start = offset.unwrap_or(size);
        let end = start.saturating_add(data.len() as u64);
        if data.is_empty() {
            return Ok(());
        }
        if end > size {
            self.store.charge(end - size)?;
            content.bytes.resize(end as usize, 0);
        }
        content.bytes[start as usize..end as usize].copy_from_slice(data);
        content.changed();
        Ok(())
    }

    fn resize(&self, size: u64) -> Result<()> {
        let mut content = self.content.write().unwrap_or_else(PoisonError::into_inner);
        let old = content.bytes.len() as u64;
        if size > old {
            self.store.charge(size - old)?;
        } else {
            self.store.refund(old - size);
        }
        content.bytes.resize(size as usize, 0);
        content.bytes.shrink_to_fit();
        content.changed();
        Ok(())
    }
}

impl Content {
    fn changed(&mut self) {
        self.mtime_ms = now_ms();
        self.generation += 1;
    }
}

impl Drop for MemFile {
    fn drop(&mut self) {
        let content = self.content.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.store.refund(NODE_BYTES + content.bytes.len() as u64);
    }
}

impl File for MemFile {
    fn kind(&self) -> FileKind {
        FileKind::Plain
    }

    fn writable(&self, _: &Cx) -> bool {
        self.writable
    }

    fn stat(&self, _: &Cx) -> Result<FileStat> {
        let c = self.content.read().unwrap_or_else(PoisonError::into_inner);
        let size = c.bytes.len() as u64;
        Ok(FileStat { size, mtime_ms: c.mtime_ms, generation: c.generation })
    }

    fn open(self: Arc<Self>, _: &Cx, flags: OpenFlags) -> Result<Box<dyn OpenFile>> {
        Ok(Box::new(OpenMem { file: self, append: flags.append }))
    }

    fn identity(&self) -> Option<u64> {
        Some(self.identity)
    }

    fn setattr(&self, _: &Cx, set: &SetAttr) -> Result<()> {
        if let Some(size) = set.size {
            self.resize(size)?;
        }
        if let Some(time) = set.mtime {
            let mut content = self.content.write().unwrap_or_else(PoisonError::into_inner);
            content.mtime_ms = match time {
                SetTime::Now => now_ms(),
                SetTime::At { ns } => ns / 1_000_000,
            };
        }
        Ok(())
    }
}

struct OpenMem {
    file: Arc<MemFile>,
    append: bool,
}

impl OpenFile for OpenMem {
    fn read(&mut self, _: &Cx, offset: u64, len: u32) -> Result<Read> {
        let content = self.file.content.read().unwrap_or_else(PoisonError::into_inner);
        let all = &content.bytes;
        let start = usize::try_from(offset).map_or(all.len(), |o| o.min(all.len()));
        let end = all.len().min(start.saturating_add(len as usize));
        Ok(Read::Data { bytes: Bytes::copy_from_slice(&all[start..end]), eof: end == all.len() })
    }

    fn write(&mut self, _: &Cx, offset: u64, data: &[u8]) -> Result<Written> {
        self.file.write_at((!self.append).then_some(offset), data)?;
        Ok(Written::bytes(data.len()))
    }
}

fn exists(name: &str) -> Error {
    Error::from_errno(libc::EEXIST, format!("{name}: path exists"))
}

fn removed() -> Error {
    Error::from_errno(libc::ENOENT, "the directory was removed")
}
