//! File contents kept on a local disk, for trees that are far away: what was read once need not come over the
//! line again, after a restart of either side too (spec: fs 23.2 row 30). A piece is known by the export and by
//! all that tells one content of a file from the next, so what changed is simply not found. It decides nothing
//! about how fresh an answer must be, and nothing here is the only copy of anything.

use crate::base::{Code, Error, Result, ResultExt, id, now_ns};
use crate::vfs::{Attr, Kind};
use bytes::{Bytes, BytesMut};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use flate2::Crc;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use ring::digest::{Context, SHA256};
use std::collections::{BTreeMap, HashMap};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::UNIX_EPOCH;

/// Files are kept in pieces of so many bytes; half of what is read ahead at a time.
const PIECE: u64 = 128 << 10;
/// Pieces that wait to be written; when the disk is slower, others are not kept.
const QUEUE_MAX: usize = 64;
/// What changed later than this ago could change again without its time telling.
const SETTLED_NS: i64 = 2_000_000_000;
const MAGIC: &[u8; 4] = b"swp1";
/// Magic, checksum of the data, length of the data.
const HEADER: usize = 12;
const LOCK: &str = "lock";

/// Names a piece: a hash of all that it depends on.
type Key = [u8; 16];

pub struct Disk {
    dir: PathBuf,
    bytes_max: u64,
    index: Mutex<Index>,
    jobs: Mutex<Option<Sender<(Key, Bytes)>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    hits: AtomicU64,
    misses: AtomicU64,
    /// Nothing more is written: the disk is full, or broken.
    given_up: AtomicBool,
    _lock: Flock<File>,
}

/// What is there, and what was used last.
#[derive(Default)]
struct Index {
    pieces: HashMap<Key, Piece>,
    by_use: BTreeMap<u64, Key>,
    last: u64,
    bytes: u64,
}

struct Piece {
    bytes: u64,
    used: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStatus {
    pub bytes: u64,
    pub bytes_max: u64,
    pub hits: u64,
    pub misses: u64,
    pub writes: bool,
}

impl Index {
    fn touch(&mut self, key: Key, bytes: u64) {
        self.forget(&key);
        self.last += 1;
        self.by_use.insert(self.last, key);
        self.pieces.insert(key, Piece { bytes, used: self.last });
        self.bytes += bytes;
    }

    fn forget(&mut self, key: &Key) {
        if let Some(piece) = self.pieces.remove(key) {
            self.by_use.remove(&piece.used);
            self.bytes -= piece.bytes;
        }
    }

    /// The one that nobody has used for longest, if there is too much.
    fn surplus(&mut self, bytes_max: u64) -> Option<Key> {
        let (_, key) = self.by_use.first_key_value().filter(|_| self.bytes > bytes_max)?;
        let key = *key;
        self.forget(&key);
        Some(key)
    }
}

impl Disk {
    /// Uses a directory, which is made if need be, for up to `bytes_max` bytes. Errors: it is of somebody else,
    /// open to others, or used by another mount; the host's.
    pub fn open(dir: &Path, bytes_max: u64) -> Result<Arc<Disk>> {
        let lock = private(dir).context(dir.display())?;
        let (jobs, waiting) = bounded(QUEUE_MAX);
        let disk = Arc::new(Disk {
            dir: dir.to_owned(),
            bytes_max,
            index: Mutex::default(),
            jobs: Mutex::new(Some(jobs)),
            writer: Mutex::default(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            given_up: AtomicBool::new(false),
            _lock: lock,
        });
        let writing = disk.clone();
        let thread = std::thread::Builder::new().name("cache-disk".into());
        let thread = thread.spawn(move || writing.write_all(&waiting)).context("cache thread")?;
        *disk.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(disk)
    }

    /// Writes what waits, and ends the thread.
    pub fn stop(&self) {
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        writer.map(JoinHandle::join);
    }

    pub fn status(&self) -> DiskStatus {
        DiskStatus {
            bytes: self.index().bytes,
            bytes_max: self.bytes_max,
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            writes: !self.given_up.load(Ordering::Relaxed),
        }
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In one of 256 directories, by its first byte.
    fn path(&self, key: &Key) -> PathBuf {
        let name = id::hex(key);
        self.dir.join(&name[..2]).join(name)
    }

    fn get(&self, key: &Key) -> Option<Bytes> {
        let found = self.read(key);
        let count = if found.is_some() { &self.hits } else { &self.misses };
        count.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// A piece as it was put. One that is damaged is removed.
    fn read(&self, key: &Key) -> Option<Bytes> {
        let path = self.path(key);
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&path).ok()?;
        let mut bytes = Vec::with_capacity(HEADER + PIECE as usize);
        let whole = file.take(HEADER as u64 + PIECE + 1).read_to_end(&mut bytes).ok()?;
        match unpacked(bytes.into()) {
            Some(data) => {
                self.index().touch(*key, whole as u64);
                Some(data)
            }
            None => {
                log::debug!("{}: not a piece as it was kept; removed", path.display());
                let _ = std::fs::remove_file(&path);
                self.index().forget(key);
                None
            }
        }
    }

    /// Keeps a piece, unless too many wait already.
    fn put(&self, key: Key, data: Bytes) {
        if self.given_up.load(Ordering::Relaxed) {
            return;
        }
        if let Some(jobs) = &*self.jobs.lock().unwrap_or_else(PoisonError::into_inner) {
            match jobs.try_send((key, data)) {
                Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
            }
        }
    }

    fn write_all(&self, waiting: &Receiver<(Key, Bytes)>) {
        self.scan();
        for (key, data) in waiting {
            if let Err(e) = self.write(&key, &data) {
                self.given_up.store(true, Ordering::Relaxed);
                log::warn!("{}: nothing more is kept there: {e}", self.dir.display());
                return;
            }
            self.index().touch(key, (HEADER + data.len()) as u64);
            self.make_room();
        }
    }

    fn make_room(&self) {
        loop {
            let Some(key) = self.index().surplus(self.bytes_max) else { return };
            let _ = std::fs::remove_file(self.path(&key));
        }
    }

    fn write(&self, key: &Key, data: &[u8]) -> Result<()> {
        let path = self.path(key);
        let parent = path.parent().unwrap_or(&self.dir);
        match DirBuilder::new().mode(0o700).create(parent) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e.into()),
            _ => {}
        }
        let unfinished = path.with_extension("new");
        let written = fresh(&unfinished).and_then(|mut file| {
            file.write_all(&header(data))?;
            file.write_all(data)
        });
        let placed = written.and_then(|()| std::fs::rename(&unfinished, &path));
        placed.inspect_err(|_| drop(std::fs::remove_file(&unfinished)))?;
        Ok(())
    }

    /// Takes up what an earlier mount has left, oldest first, and removes what is no piece.
    fn scan(&self) {
        let mut found: Vec<(u128, Key, u64)> = Vec::new();
        for n in 0..=u8::MAX {
            let Ok(entries) = std::fs::read_dir(self.dir.join(id::hex(&[n]))) else { continue };
            for entry in entries.flatten() {
                let meta = entry.metadata().ok().filter(|m| m.is_file());
                let key = entry.file_name().to_str().and_then(key_of).filter(|key| key[0] == n);
                match (meta, key) {
                    (Some(meta), Some(key)) => {
                        let age =
                            meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
                        found.push((age.map_or(0, |d| d.as_nanos()), key, meta.len()));
                    }
                    (Some(_), None) => drop(std::fs::remove_file(entry.path())),
                    (None, _) => {}
                }
            }
        }
        found.sort_unstable_by_key(|(modified, ..)| *modified);
        let mut index = self.index();
        // What was used meanwhile comes last.
        let used: Vec<_> = index.by_use.values().copied().collect();
        let used: Vec<_> = used.iter().map(|key| (*key, index.pieces[key].bytes)).collect();
        found.iter().for_each(|(_, key, bytes)| index.touch(*key, *bytes));
        used.iter().for_each(|(key, bytes)| index.touch(*key, *bytes));
        drop(index);
        self.make_room();
    }
}

fn key_of(name: &str) -> Option<Key> {
    let digits = |n: usize| u8::from_str_radix(name.get(2 * n..2 * n + 2)?, 16).ok();
    let mut key = Key::default();
    for (n, byte) in key.iter_mut().enumerate() {
        *byte = digits(n)?;
    }
    (id::hex(&key) == name).then_some(key)
}

/// A file that nobody else has made or can read.
fn fresh(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    match options.open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            std::fs::remove_file(path)?;
            options.open(path)
        }
        opened => opened,
    }
}

/// The directory's lock, once it is there and nobody else's: files of others are in it, in clear.
fn private(dir: &Path) -> Result<Flock<File>> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e.into()),
        _ => {}
    }
    let meta = std::fs::symlink_metadata(dir)?;
    let ours = meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw();
    if !ours || meta.mode() & 0o077 != 0 {
        let text = "must be a directory of your own that is closed to others (chmod 700)";
        return Err(Error::new(Code::Eperm, text));
    }
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(dir.join(LOCK))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => {
            Error::from_errno(libc::EBUSY, "another mount uses it; give each its own")
        }
        errno => Error::from(std::io::Error::from(errno)),
    })
}

fn header(data: &[u8]) -> [u8; HEADER] {
    let mut crc = Crc::new();
    crc.update(data);
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(MAGIC);
    header[4..8].copy_from_slice(&crc.sum().to_le_bytes());
    header[8..].copy_from_slice(&(data.len() as u32).to_le_bytes());
    header
}

fn unpacked(bytes: Bytes) -> Option<Bytes> {
    let data = (bytes.len() > HEADER).then(|| bytes.slice(HEADER..))?;
    (bytes[..HEADER] == header(&data)).then_some(data)
}

/// The pieces of one version of a file.
pub struct Volume {
    disk: Arc<Disk>,
    /// Hashed as far as all of them have in common.
    common: Context,
    size: u64,
    /// Whether what is read now may be kept.
    settled: bool,
}

impl Volume {
    /// Of a file as an export told of it; `source` names the export. `None` for what cannot be told from the
    /// next version of it.
    pub fn of(disk: &Arc<Disk>, source: &str, attr: &Attr) -> Option<Volume> {
        if attr.kind != Kind::File || attr.identity == 0 {
            return None;
        }
        let mut common = Context::new(&SHA256);
        common.update(&(source.len() as u64).to_le_bytes());
        common.update(source.as_bytes());
        for number in [attr.identity, attr.size] {
            common.update(&number.to_le_bytes());
        }
        for ns in [attr.mtime_ns, attr.ctime_ns] {
            common.update(&ns.to_le_bytes());
        }
        let settled = attr.mtime_ns.max(attr.ctime_ns).saturating_add(SETTLED_NS) < now_ns();
        Some(Volume { disk: disk.clone(), common, size: attr.size, settled })
    }

    fn key(&self, piece: u64) -> Key {
        let mut all = self.common.clone();
        all.update(&piece.to_le_bytes());
        let mut key = Key::default();
        key.copy_from_slice(&all.finish().as_ref()[..16]);
        key
    }

    /// From where to where a piece goes.
    fn range(&self, piece: u64) -> (u64, u64) {
        (piece * PIECE, ((piece + 1) * PIECE).min(self.size))
    }

    /// The bytes at `offset`, fewer at the file's end, if the disk has all of them.
    pub fn read(&self, offset: u64, len: u32) -> Option<Bytes> {
        let end = offset.saturating_add(u64::from(len)).min(self.size);
        if offset >= end {
            return None;
        }
        let mut all = BytesMut::new();
        for piece in offset / PIECE..=(end - 1) / PIECE {
            let (from, to) = self.range(piece);
            let data = self.disk.get(&self.key(piece))?;
            if data.len() as u64 != to - from {
                return None;
            }
            let part = (offset.max(from) - from) as usize..(end.min(to) - from) as usize;
            if (part.len() as u64) == end - offset {
                return Some(data.slice(part));
            }
            all.extend_from_slice(&data[part]);
        }
        Some(all.freeze())
    }

    /// Keeps the whole pieces among what was read at `offset`.
    pub fn keep(&self, offset: u64, data: &Bytes) {
        let end = offset + data.len() as u64;
        if !self.settled || end > self.size {
            return;
        }
        for piece in offset.div_ceil(PIECE)..end.div_ceil(PIECE) {
            let (from, to) = self.range(piece);
            if to <= end && from < to {
                let part = (from - offset) as usize..(to - offset) as usize;
                // A copy: a slice would keep all that came with it.
                self.disk.put(self.key(piece), Bytes::copy_from_slice(&data[part]));
            }
        }
    }
}

#[cfg(test)]
mod tests;
