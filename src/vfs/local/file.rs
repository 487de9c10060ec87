//! Open files: made only of regular files, and only after looking at what is to be opened.

use super::change::exact_mode;
use super::resolve::Node;
use super::sys;
use super::{Core, Event};
use crate::base::{Error, Result};
use crate::vfs::{
    Attr, FileKind, Kind, LockKind, LockRequest, NodeId, OpenFlags, Opened, Read, Written,
};
use nix::fcntl::OFlag;
use nix::sys::inotify::AddWatchFlags;
use nix::sys::stat::Mode;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

/// Most that one read returns.
const READ_MAX: u32 = 8 << 20;
/// Most that is copied on a thread that others wait for.
const AT_HAND_MAX: u32 = 64 << 10;
/// How often a name that others keep creating and removing is tried.
const RACES_MAX: u32 = 16;

pub(super) struct OpenFile {
    pub file: File,
    flags: OpenFlags,
    /// Who holds the lock of this open file; the host knows it as one holder.
    locks: Mutex<BTreeMap<u64, LockKind>>,
    /// Ranges of the file were locked through it.
    pub ranges_locked: AtomicBool,
}

impl OpenFile {
    fn new(file: File, flags: OpenFlags) -> OpenFile {
        let (locks, ranges_locked) = Default::default();
        OpenFile { file, flags, locks, ranges_locked }
    }

    pub fn read(&self, offset: u64, len: u32) -> Result<Read> {
        self.readable()?;
        let len = len.min(READ_MAX) as usize;
        let mut bytes = sys::pread(&self.file, offset, len)?;
        // Small files are asked for in large reads: their bytes may be kept for long, the room not.
        if bytes.len() < len / 2 {
            bytes.shrink_to_fit();
        }
        let eof = bytes.len() < len;
        Ok(Read::Data { bytes: bytes.into(), eof })
    }

    /// What the page cache holds; `None` where a disk would have to be asked.
    pub fn read_at_hand(&self, offset: u64, len: u32) -> Option<Read> {
        if !self.flags.reads() || len > AT_HAND_MAX {
            return None;
        }
        let bytes = sys::pread_cached(&self.file, offset, len as usize).ok()?;
        let eof = bytes.len() < len as usize;
        if eof && self.stat().ok()?.size() > offset + bytes.len() as u64 {
            return None;
        }
        Some(Read::Data { bytes: bytes.into(), eof })
    }

    pub fn write(&self, offset: u64, data: &[u8]) -> Result<Written> {
        self.writable()?;
        let mut done = 0;
        while done < data.len() {
            // Linux ignores the offset of a file that was opened to append.
            match self.file.write_at(&data[done..], offset.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) if done > 0 => break,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Written::bytes(done))
    }

    /// After a change of its content. Whoever changes a file takes its set-id bits away, as the host does for
    /// users other than root.
    pub fn stat_changed(&self) -> Result<sys::Stat> {
        let stat = self.stat()?;
        let group_runs = stat.mode() & libc::S_IXGRP != 0;
        let taken = libc::S_ISUID | if group_runs { libc::S_ISGID } else { 0 };
        if stat.mode() & taken == 0 {
            return Ok(stat);
        }
        let mode = Mode::from_bits_truncate(stat.mode() & 0o7777 & !taken);
        nix::sys::stat::fchmod(&self.file, mode)?;
        self.stat()
    }

    pub fn stat(&self) -> Result<sys::Stat> {
        sys::stat(&self.file, OsStr::new(""))
    }

    pub fn set_len(&self, size: u64) -> Result<()> {
        self.writable()?;
        Ok(self.file.set_len(size)?)
    }

    pub fn readable(&self) -> Result<()> {
        if !self.flags.reads() {
            return Err(Error::from_errno(libc::EBADF, "handle not readable"));
        }
        Ok(())
    }

    pub fn writable(&self) -> Result<()> {
        if !self.flags.writes() {
            return Err(Error::from_errno(libc::EBADF, "handle not writable"));
        }
        Ok(())
    }

    pub fn sync(&self, data_only: bool) -> Result<()> {
        Ok(if data_only { self.file.sync_data() } else { self.file.sync_all() }?)
    }

    /// A description of the same file that holds locks and nothing else: one that may both read and write
    /// has locks of either kind, whoever asks for them later.
    pub fn for_locks(&self) -> Result<File> {
        let open = |access| sys::reopen(&self.file, access | OFlag::O_NONBLOCK);
        open(OFlag::O_RDWR).or_else(|_| open(OFlag::O_RDONLY)).or_else(|_| open(OFlag::O_WRONLY))
    }

    /// The lock of the whole file, as flock(2) has it.
    pub fn lock(&self, request: LockRequest) -> Result<()> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wanted = locks.clone();
        wanted.remove(&request.owner);
        let clash = match request.kind {
            LockKind::Unlock => false,
            LockKind::Shared => wanted.values().any(|k| *k == LockKind::Exclusive),
            LockKind::Exclusive => !wanted.is_empty(),
        };
        if clash {
            return Err(Error::from_errno(libc::EAGAIN, "locked by another owner"));
        }
        if request.kind != LockKind::Unlock {
            wanted.insert(request.owner, request.kind);
        }
        let operation = match wanted.values().next() {
            None => libc::LOCK_UN,
            Some(LockKind::Exclusive) => libc::LOCK_EX,
            Some(_) => libc::LOCK_SH,
        };
        match sys::flock(&self.file, operation) {
            Ok(()) => *locks = wanted,
            Err(e) => {
                // A conversion that fails has let go of the old lock (flock(2)); take it back.
                let held = locks.values().next().map(|_| libc::LOCK_SH);
                if held.is_some_and(|op| sys::flock(&self.file, op).is_err()) {
                    locks.clear();
                }
                return Err(e);
            }
        }
        Ok(())
    }
}

impl Core {
    pub(super) fn open_node(&self, node: &Node, flags: OpenFlags) -> Result<Opened> {
        match node.stat.kind() {
            Kind::File => {}
            Kind::Dir => return Err(Error::from_errno(libc::EISDIR, "is a directory")),
            Kind::Symlink => {
                return Err(Error::from_errno(libc::ELOOP, "is a symlink; open what it leads to"));
            }
            Kind::Special => {
                return Err(Error::from_errno(
                    libc::ENXIO,
                    "FIFOs, sockets and devices stay closed",
                ));
            }
        }
        if flags.writes() || flags.truncate {
            self.writable()?;
        }
        let _changing = flags.truncate.then(|| self.changing());
        let file = sys::reopen(node, host_flags(flags))?;
        let generation = if flags.truncate {
            sys::stat(&file, OsStr::new(""))?.generation()
        } else {
            node.stat.generation()
        };
        let handle = self.handles.insert(node.id, OpenFile::new(file, flags))?;
        if flags.truncate {
            if let Ok(stat) = sys::stat(node, OsStr::new("")) {
                self.note(node.id, &stat);
            }
            let generation = Some(generation);
            self.announce(&[Event::Data { node: node.id, generation }]);
        }
        Ok(Opened { handle, kind: FileKind::Plain, generation, patience_ms: None, content: None })
    }

    pub(super) fn create_file(
        &self,
        dir: &Node,
        name: &OsStr,
        mode: u32,
        flags: OpenFlags,
    ) -> Result<(Attr, Opened)> {
        for _ in 0..RACES_MAX {
            let refused = match self.create_new(dir, name, mode, flags) {
                Err(e) if !flags.exclusive && matches!(e.errno(), libc::EEXIST | libc::EROFS) => e,
                outcome => return outcome,
            };
            match sys::stat(dir, name) {
                // There already. Opened as any file; tried again if it went in the meantime.
                Ok(stat) => {
                    let attr = self.attr(dir.id, name, &stat);
                    match self.node(attr.id).and_then(|node| self.open_node(&node, flags)) {
                        Err(e) if matches!(e.errno(), libc::ESTALE | libc::ENOENT) => {}
                        opened => return Ok((attr, opened?)),
                    }
                }
                Err(_) if refused.errno() == libc::EEXIST => {}
                Err(_) => return Err(refused),
            }
        }
        Err(Error::from_errno(libc::EAGAIN, "the name keeps coming and going; try again"))
    }

    fn create_new(
        &self,
        dir: &Node,
        name: &OsStr,
        mode: u32,
        flags: OpenFlags,
    ) -> Result<(Attr, Opened)> {
        let _changing = self.changing();
        self.writable()?;
        let host = host_flags(flags) | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
        let mode = mode & 0o777;
        let bits = Mode::from_bits_truncate(mode);
        let file = File::from(nix::fcntl::openat(dir, name, host | OFlag::O_CLOEXEC, bits)?);
        let stat = exact_mode(&file, sys::stat(&file, OsStr::new(""))?, mode)?;
        self.note_name((dir.id, name), AddWatchFlags::IN_CREATE, Some(stat.key()));
        let attr = self.attr(dir.id, name, &stat);
        let handle = self.handles.insert(attr.id, OpenFile::new(file, flags))?;
        let generation = attr.generation;
        self.note(attr.id, &stat);
        self.announce(&[
            entry(dir.id, name),
            Event::All { node: attr.id, generation: Some(generation) },
        ]);
        Ok((
            attr,
            Opened { handle, kind: FileKind::Plain, generation, patience_ms: None, content: None },
        ))
    }
}

/// One entry of a directory has changed.
pub(super) fn entry(dir: NodeId, name: &OsStr) -> Event {
    Event::Entry { dir, name: name.into() }
}

/// O_NONBLOCK: should it be something else than a file after all, nobody waits for it.
fn host_flags(flags: OpenFlags) -> OFlag {
    let access = match (flags.reads(), flags.writes()) {
        (true, true) => OFlag::O_RDWR,
        (false, _) => OFlag::O_WRONLY,
        (true, false) => OFlag::O_RDONLY,
    };
    let mut host = access | OFlag::O_NONBLOCK;
    host.set(OFlag::O_APPEND, flags.append);
    host.set(OFlag::O_TRUNC, flags.truncate);
    host
}
