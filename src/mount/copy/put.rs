//! From this host to the tree. Files are written in place, as cp(1) does it.

use super::{CHUNK, Failures, Job, in_flight, kept, shown, together};
use crate::base::{Error, Name, Result, ResultExt, TreePath};
use crate::vfs::{Attr, FileKind, Handle, Kind, NodeId, OpenFlags, SetAttr, Tree, walk};
use bytes::Bytes;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Copies a file or directory of this host to `remote`; into it, where that is a directory.
pub fn put(job: &Job<'_>, local: &Path, remote: &TreePath) -> Result<()> {
    let meta = std::fs::metadata(local).context(shown(local))?;
    if meta.is_dir() {
        job.refuse_directory(shown(local))?;
    }
    let place = match found(job, remote)? {
        Some(attr) if attr.kind == Kind::Dir => {
            // The name of `.` or `x/..` is that of the directory it leads to.
            let whole = local.canonicalize().context(shown(local))?;
            match local.file_name().or(whole.file_name()) {
                Some(name) => remote.join(Name::new(name)?),
                None => remote.clone(),
            }
        }
        _ => remote.clone(),
    };
    if meta.is_dir() {
        return directory(job, local, &meta, &place);
    }
    file(job, local, &meta, &place)
}

/// Writes what `input` gives to a file of the tree, which is made where it is missing. A message file
/// gets one message.
pub fn store(
    job: &Job<'_>,
    name: &str,
    input: &mut (dyn Read + Send),
    remote: &TreePath,
) -> Result<()> {
    write(job, name, input, None, remote)
}

fn found(job: &Job<'_>, remote: &TreePath) -> Result<Option<Attr>> {
    match walk::resolve(&*job.world.tree, &job.cx(), remote) {
        Ok(attr) => Ok(Some(attr)),
        Err(e) if e.errno() == libc::ENOENT => Ok(None),
        Err(e) => Err(e),
    }
}

fn file(job: &Job<'_>, local: &Path, meta: &Metadata, remote: &TreePath) -> Result<()> {
    let mut input = File::open(local).context(shown(local))?;
    let name = local.to_string_lossy();
    // A pipe or device has neither length nor times.
    let meta = meta.is_file().then_some(meta);
    write(job, &name, &mut input, meta, remote)
}

fn write(
    job: &Job<'_>,
    name: &str,
    input: &mut (dyn Read + Send),
    meta: Option<&Metadata>,
    remote: &TreePath,
) -> Result<()> {
    let (tree, cx) = (&*job.world.tree, job.cx());
    let flags = OpenFlags { truncate: true, ..OpenFlags::WRITE };
    let (node, opened) = match found(job, remote)? {
        Some(attr) if attr.kind == Kind::Dir => {
            return Err(Error::from_errno(libc::EISDIR, format!("{remote}: is a directory")));
        }
        Some(attr) => (attr.id, tree.open(&cx, attr.id, flags).context(remote)?),
        None => {
            let (dir, last) = walk::parent(tree, &cx, remote)?;
            let mode = meta.map_or(0o644, |meta| meta.mode() & 0o777);
            let (attr, opened) = tree.create(&cx, dir, last, mode, flags).context(remote)?;
            (attr.id, opened)
        }
    };
    let size = meta.map(Metadata::len);
    job.progress.begin(name, size);
    let pushed = push(job, opened.handle, in_flight(opened.kind, size), input);
    job.progress.end();
    let outcome =
        pushed.and_then(|()| tree.flush(&job.cx(), opened.handle)).and_then(|_| {
            match meta.filter(|_| opened.kind == FileKind::Plain) {
                Some(meta) => keep(job, tree, node, Some(opened.handle), meta),
                None => Ok(()),
            }
        });
    let released = tree.release(&job.world.cx(), opened.handle);
    outcome.and(released).context(remote)
}

/// Mode and time of change go along, where the node can keep them.
fn keep(
    job: &Job<'_>,
    tree: &dyn Tree,
    node: NodeId,
    handle: Option<Handle>,
    meta: &Metadata,
) -> Result<()> {
    let mtime_ns = meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec());
    let set: SetAttr = kept(meta.mode(), mtime_ns);
    match tree.setattr(&job.cx(), node, handle, &set) {
        Err(e) if matches!(e.errno(), libc::ENOSYS | libc::EOPNOTSUPP) => {
            log::debug!("modes and times are not kept here: {e}");
            Ok(())
        }
        outcome => outcome.map(drop),
    }
}

/// What is still to be read, and from where on.
struct Source<'i> {
    input: &'i mut (dyn Read + Send),
    offset: u64,
    ended: Option<Result<()>>,
}

/// Reads chunks in their order and writes them, several at the same time.
pub(super) fn push(
    job: &Job<'_>,
    handle: Handle,
    threads: usize,
    input: &mut (dyn Read + Send),
) -> Result<()> {
    let source = Mutex::new(Source { input, offset: 0, ended: None });
    let lock = || source.lock().unwrap_or_else(PoisonError::into_inner);
    let next = || {
        let mut s = lock();
        if s.ended.is_some() {
            return None;
        }
        let mut chunk = Vec::new();
        let read = Read::take(&mut *s.input, CHUNK).read_to_end(&mut chunk);
        if chunk.is_empty() || read.is_err() {
            s.ended = Some(read.map(drop).context("reading"));
            return None;
        }
        let offset = s.offset;
        s.offset += chunk.len() as u64;
        Some((offset, Bytes::from(chunk)))
    };
    together(threads, || {
        while let Some((offset, chunk)) = next() {
            if let Err(e) = write_all(job, handle, offset, chunk) {
                lock().ended = Some(Err(e));
            }
        }
    });
    source.into_inner().unwrap_or_else(PoisonError::into_inner).ended.unwrap_or(Ok(()))
}

fn write_all(job: &Job<'_>, handle: Handle, mut offset: u64, mut left: Bytes) -> Result<()> {
    while !left.is_empty() {
        let written = job.world.tree.write(&job.cx(), handle, offset, left.clone())?;
        let n = written.n.min(left.len() as u64);
        if n == 0 {
            return Err(Error::from_errno(libc::EIO, "write made no progress"));
        }
        job.progress.moved(n);
        offset += n;
        left = left.slice(n as usize..);
    }
    Ok(())
}

/// What is left to do of a directory.
enum Step {
    Enter {
        local: PathBuf,
        meta: Metadata,
        remote: TreePath,
    },
    /// Its mode and times, once nothing is written in it any more.
    Leave {
        meta: Metadata,
        node: NodeId,
    },
}

fn directory(job: &Job<'_>, local: &Path, meta: &Metadata, remote: &TreePath) -> Result<()> {
    // Without it there is nothing to go on with.
    make(job, remote)?;
    let top = Step::Enter { local: local.to_owned(), meta: meta.clone(), remote: remote.clone() };
    let (mut todo, mut failures) = (vec![top], Failures::default());
    while let Some(step) = todo.pop() {
        let outcome = match step {
            Step::Leave { meta, node } => keep(job, &*job.world.tree, node, None, &meta),
            Step::Enter { local, meta, remote } => make(job, &remote).and_then(|node| {
                todo.push(Step::Leave { meta, node });
                entries(job, &local, &remote, &mut todo, &mut failures)
            }),
        };
        failures.note(job, outcome)?;
    }
    failures.finish()
}

/// A directory of the tree, which may be there.
fn make(job: &Job<'_>, remote: &TreePath) -> Result<NodeId> {
    match found(job, remote)? {
        Some(attr) if attr.kind == Kind::Dir => Ok(attr.id),
        Some(_) => Err(Error::from_errno(libc::ENOTDIR, format!("{remote} is not a directory"))),
        None => {
            let cx = job.cx();
            let (dir, name) = walk::parent(&*job.world.tree, &cx, remote)?;
            Ok(job.world.tree.mkdir(&cx, dir, name, 0o755).context(remote)?.id)
        }
    }
}

fn entries(
    job: &Job<'_>,
    local: &Path,
    remote: &TreePath,
    todo: &mut Vec<Step>,
    failures: &mut Failures,
) -> Result<()> {
    for entry in std::fs::read_dir(local).context(shown(local))? {
        let entry = entry.context(shown(local))?;
        let local = entry.path();
        let outcome = entry.metadata().context(shown(&local)).and_then(|meta| {
            let name = entry.file_name();
            let remote = remote.join(Name::new(&name)?);
            let kind = meta.file_type();
            if kind.is_dir() {
                todo.push(Step::Enter { local: local.clone(), meta, remote });
                Ok(())
            } else if kind.is_symlink() {
                link(job, &local, &remote)
            } else if kind.is_file() {
                file(job, &local, &meta, &remote)
            } else {
                let text = format!("{} is neither a file nor a directory; left out", shown(&local));
                Err(Error::from_errno(libc::EINVAL, text))
            }
        });
        failures.note(job, outcome)?;
    }
    Ok(())
}

/// A symlink stays one, and takes the place of what has its name, unless that is a directory.
fn link(job: &Job<'_>, local: &Path, remote: &TreePath) -> Result<()> {
    let target = std::fs::read_link(local).context(shown(local))?;
    let target: &OsStr = target.as_os_str();
    let (tree, cx) = (&*job.world.tree, job.cx());
    let (dir, name) = walk::parent(tree, &cx, remote)?;
    let made = match tree.symlink(&cx, dir, name, target.as_bytes()) {
        Err(e) if e.errno() == libc::EEXIST => tree
            .unlink(&cx, dir, name)
            .and_then(|()| tree.symlink(&cx, dir, name, target.as_bytes())),
        outcome => outcome,
    };
    made.map(drop).context(remote)
}
