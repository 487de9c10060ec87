//! From the tree to this host. Names and links come from a node that may mean harm: nothing is written
//! through a symlink below the directory that was asked for.

use super::{CHUNK, Failures, Job, destination, in_flight, is_listed_size, shown, together};
use crate::base::{Deadline, Error, Name, Result, ResultExt, TreePath, id};
use crate::vfs::{
    self, Attr, FileKind, Handle, Kind, NodeId, OpenFlags, Opened, PageLimit, ReadDir, Tree, walk,
};
use bytes::Bytes;
use std::ffi::OsStr;
use std::fs::{DirBuilder, File, FileTimes, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Copies a file or directory of the tree to `local`; into it, where that is a directory.
pub fn get(job: &Job<'_>, remote: &TreePath, local: &Path) -> Result<()> {
    let attr = walk::resolve(&*job.world.tree, &job.cx(), remote)?;
    let name = remote.split_last().map(|(_, name)| name.as_os_str().to_owned());
    let there = local.is_dir();
    let local = destination(local.to_owned(), there, name);
    if attr.kind == Kind::Dir {
        job.refuse_directory(remote)?;
        return directory(job, remote, &attr, &local);
    }
    // What a link leads to is replaced, not the link; a device or pipe is written to.
    let local = local.canonicalize().unwrap_or(local);
    match std::fs::metadata(&local) {
        Ok(meta) if meta.is_dir() => {
            let text = format!("{} is a directory; {remote} is none", shown(&local));
            Err(Error::from_errno(libc::EISDIR, text))
        }
        Ok(meta) if !meta.is_file() => {
            let mut out = File::options().write(true).open(&local).context(shown(&local))?;
            fetch(job, remote, &mut out)
        }
        _ => file(job, remote, &attr, &local),
    }
}

/// Copies a file of the tree to `out`, however long it is, and however long it makes its readers wait.
pub fn fetch(job: &Job<'_>, remote: &TreePath, out: &mut (dyn Write + Send)) -> Result<()> {
    let attr = walk::resolve(&*job.world.tree, &job.cx(), remote)?;
    read_to(job, remote, &attr, out)
}

/// One file, under a name of its own until it is whole.
fn file(job: &Job<'_>, remote: &TreePath, attr: &Attr, local: &Path) -> Result<()> {
    let mut part = Part::beside(local)?;
    read_to(job, remote, attr, &mut part.file)?;
    keep(&part.file, attr).and_then(|()| std::fs::rename(&part.path, local)).context(shown(local))
}

/// A file that is not whole yet; removed unless it was renamed.
struct Part {
    path: PathBuf,
    file: File,
}

impl Part {
    fn beside(local: &Path) -> Result<Part> {
        let path = temporary(local);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        Ok(Part { file: file.context(shown(local))?, path })
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn temporary(local: &Path) -> PathBuf {
    local.with_file_name(id::hex_token(".spiderweb-get-"))
}

/// Mode and times as they are in the tree.
fn keep(file: &File, attr: &Attr) -> std::io::Result<()> {
    let distance = Duration::from_nanos(attr.mtime_ns.unsigned_abs());
    let before = attr.mtime_ns < 0;
    let time: Option<SystemTime> =
        if before { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    file.set_permissions(Permissions::from_mode(attr.mode & 0o777))?;
    file.set_times(FileTimes::new().set_modified(time.unwrap_or(UNIX_EPOCH)))
}

fn read_to(
    job: &Job<'_>,
    remote: &TreePath,
    attr: &Attr,
    out: &mut (dyn Write + Send),
) -> Result<()> {
    let tree = &*job.world.tree;
    let opened = tree.open(&job.cx(), attr.id, OpenFlags::READ).context(remote)?;
    let size = is_listed_size(attr, opened.kind);
    job.progress.begin(&remote.display(), size);
    let outcome = if opened.kind == FileKind::Plain {
        let threads = in_flight(opened.kind, size);
        pull(job, opened.handle, threads, out)
    } else {
        follow(job, &opened, out)
    };
    job.progress.end();
    let released = tree.release(&job.world.cx(), opened.handle);
    outcome.and(released).context(remote)
}

/// A file that is made as it is read: piece by piece, each at once.
fn follow(job: &Job<'_>, opened: &Opened, out: &mut dyn Write) -> Result<()> {
    let mut offset = 0;
    loop {
        let (bytes, eof) = read(job, opened.handle, offset, CHUNK)?;
        offset += bytes.len() as u64;
        out.write_all(&bytes)?;
        out.flush()?;
        job.progress.moved(bytes.len() as u64);
        if eof || bytes.is_empty() {
            return Ok(());
        }
    }
}

fn read(job: &Job<'_>, handle: Handle, offset: u64, len: u64) -> Result<(Bytes, bool)> {
    loop {
        match job.world.tree.read(&job.cx(), handle, offset, len as u32)? {
            vfs::Read::Data { bytes, eof } => return Ok((bytes, eof)),
            vfs::Read::Wait(wait) => wait.block(Deadline::never(), job.cancel)?,
        }
    }
}

/// What the threads of [`pull`] share: whose turn it is to write.
struct Turn<'o> {
    chunk: u64,
    out: &'o mut (dyn Write + Send),
    ended: Option<Result<()>>,
}

/// Reads chunks ahead, several at the same time, and writes them in their order.
fn pull(job: &Job<'_>, handle: Handle, threads: usize, out: &mut (dyn Write + Send)) -> Result<()> {
    let turn = Mutex::new(Turn { chunk: 0, out, ended: None });
    let (next, moved) = (AtomicU64::new(0), Condvar::new());
    let lock = || turn.lock().unwrap_or_else(PoisonError::into_inner);
    together(threads, || {
        loop {
            let chunk = next.fetch_add(1, Ordering::Relaxed);
            if lock().ended.is_some() {
                return;
            }
            let read = whole_chunk(job, handle, chunk * CHUNK);
            let mut turn = moved
                .wait_while(lock(), |t| t.chunk != chunk && t.ended.is_none())
                .unwrap_or_else(PoisonError::into_inner);
            if turn.ended.is_some() {
                return;
            }
            let step = read.and_then(|(pieces, eof)| {
                for piece in pieces {
                    turn.out.write_all(&piece)?;
                    job.progress.moved(piece.len() as u64);
                }
                if eof {
                    turn.out.flush()?;
                }
                Ok(eof)
            });
            turn.chunk += 1;
            turn.ended = match step {
                Ok(false) => None,
                Ok(true) => Some(Ok(())),
                Err(e) => Some(Err(e)),
            };
            moved.notify_all();
        }
    });
    turn.into_inner().unwrap_or_else(PoisonError::into_inner).ended.unwrap_or(Ok(()))
}

/// A chunk in the pieces that it came in; the flag says whether the file ends with it.
fn whole_chunk(job: &Job<'_>, handle: Handle, offset: u64) -> Result<(Vec<Bytes>, bool)> {
    let (mut pieces, mut len) = (Vec::new(), 0);
    while len < CHUNK {
        let (bytes, eof) = read(job, handle, offset + len, CHUNK - len)?;
        let ends = eof || bytes.is_empty();
        len += bytes.len() as u64;
        pieces.push(bytes);
        if ends {
            return Ok((pieces, true));
        }
    }
    Ok((pieces, false))
}

/// What is left to do of a directory.
enum Step {
    Enter {
        remote: TreePath,
        attr: Attr,
        local: PathBuf,
    },
    /// Its mode and times, once nothing is written in it any more.
    Leave {
        attr: Attr,
        local: PathBuf,
    },
}

fn directory(job: &Job<'_>, remote: &TreePath, attr: &Attr, local: &Path) -> Result<()> {
    // Without it there is nothing to go on with.
    make(local)?;
    let top = Step::Enter { remote: remote.clone(), attr: attr.clone(), local: local.to_owned() };
    let (mut todo, mut failures) = (vec![top], Failures::default());
    while let Some(step) = todo.pop() {
        let outcome = match step {
            Step::Leave { attr, local } => {
                let dir = File::open(&local);
                dir.and_then(|dir| keep(&dir, &attr)).context(shown(&local))
            }
            Step::Enter { remote, attr, local } => make(&local).and_then(|()| {
                todo.push(Step::Leave { attr: attr.clone(), local: local.clone() });
                entries(job, &remote, attr.id, &local, &mut todo, &mut failures)
            }),
        };
        failures.note(job, outcome)?;
    }
    failures.finish()
}

/// A directory of this host, which may be there, but not as a symlink.
fn make(local: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(local) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            let meta = std::fs::symlink_metadata(local).context(shown(local))?;
            if meta.is_dir() {
                return Ok(());
            }
            let text = format!("{} is not a directory", shown(local));
            Err(Error::from_errno(libc::ENOTDIR, text))
        }
        outcome => outcome.context(shown(local)),
    }
}

fn entries(
    job: &Job<'_>,
    remote: &TreePath,
    dir: NodeId,
    local: &Path,
    todo: &mut Vec<Step>,
    failures: &mut Failures,
) -> Result<()> {
    let mut cookie = 0;
    loop {
        let at = ReadDir { dir, cookie, limit: PageLimit::DEFAULT };
        let page = job.world.tree.readdir(&job.cx(), at).context(remote)?;
        for entry in &page.entries {
            cookie = entry.cookie;
            let name = Name::new(&entry.name).context(remote)?;
            let (remote, local) = (remote.join(name), local.join(&entry.name));
            if entry.attr.kind == Kind::Dir {
                todo.push(Step::Enter { remote, attr: entry.attr.clone(), local });
                continue;
            }
            let outcome = match entry.attr.kind {
                Kind::Symlink => link(job, &remote, entry.attr.id, &local),
                Kind::Special => {
                    let text = format!("{remote} is neither a file nor a directory; left out");
                    Err(Error::from_errno(libc::EINVAL, text))
                }
                _ => file(job, &remote, &entry.attr, &local),
            };
            failures.note(job, outcome)?;
        }
        if page.eof || page.entries.is_empty() {
            return Ok(());
        }
    }
}

/// A symlink stays one.
fn link(job: &Job<'_>, remote: &TreePath, node: NodeId, local: &Path) -> Result<()> {
    let target = job.world.tree.readlink(&job.cx(), node).context(remote)?;
    let fresh = temporary(local);
    std::os::unix::fs::symlink(OsStr::from_bytes(&target), &fresh).context(shown(local))?;
    let placed = std::fs::rename(&fresh, local);
    if placed.is_err() {
        let _ = std::fs::remove_file(&fresh);
    }
    placed.context(shown(local))
}
