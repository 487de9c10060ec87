//! Renaming a file from one endpoint to another, which no node can do alone: it is copied under a hidden
//! name, put in its place, and only then taken away where it was. Whatever fails before leaves the source
//! as it is and nothing else behind.

use super::put::push;
use super::{CHUNK, Job, Silent, in_flight};
use crate::base::{Cancel, Code, Error, Name, Result, ResultExt, id};
use crate::mount::world::World;
use crate::vfs::{
    Attr, FileKind, Handle, Kind, NodeId, OpenFlags, Read, RenameFlags, SetAttr, SetTime, Tree,
    XattrFlags,
};
use std::io::BufReader;
use std::sync::Arc;

/// Beginning of the name under which a file is copied.
const HIDDEN: &str = ".spiderweb-mv-";
/// Until the file is whole nobody else reads it.
const MODE_MEANWHILE: u32 = 0o600;

type Place<'n> = (NodeId, Name<'n>);

/// Does what a tree answers with EXDEV.
pub struct Across(Arc<World>);

impl Across {
    pub fn new(world: Arc<World>) -> Across {
        Across(world)
    }

    /// As rename(2), but not at once as a whole; the id of the file, which it keeps. Errors: EXDEV for anything but a regular file with one
    /// name, and for an exchange; EROFS where either side is read-only; EBUSY for a file that changed
    /// meanwhile; those of the calls it is made of.
    pub fn rename(
        &self,
        cancel: &Cancel,
        from: Place<'_>,
        to: Place<'_>,
        flags: RenameFlags,
    ) -> Result<NodeId> {
        let job = Job { world: &self.0, cancel, recursive: false, progress: &Silent };
        let tree = &*self.0.tree;
        let source = tree.lookup(&job.cx(), from.0, from.1)?;
        if flags.exchange || source.kind != Kind::File || source.nlink > 1 {
            return Err(across("only regular files with one name are copied"));
        }
        let old = match tree.lookup(&job.cx(), to.0, to.1) {
            Ok(old) => Some(old),
            Err(e) if e.errno() == libc::ENOENT => None,
            Err(e) => return Err(e),
        };
        if let Some(old) = &old {
            if old.kind == Kind::Dir {
                return Err(Error::from_errno(libc::EISDIR, "a directory has that name"));
            }
            if flags.no_replace {
                return Err(Error::from_errno(libc::EEXIST, "the name is taken"));
            }
            // Seen through two endpoints: there is nothing to do, as with two names of one file.
            if old.id == source.id || (source.identity != 0 && old.identity == source.identity) {
                return Ok(source.id);
            }
        }
        for dir in [from.0, to.0] {
            if self.0.is_read_only(&job.cx(), dir)? {
                return Err(Error::from_errno(libc::EROFS, "the export is read-only"));
            }
        }
        let hidden = id::hex_token(HIDDEN);
        let hidden = (to.0, Name::text(&hidden)?);
        let placed = copy(&job, &source, from, hidden)
            .and_then(|()| tree.rename(&job.cx(), hidden, to, flags));
        if let Err(e) = placed {
            let _ = tree.unlink(&self.0.cx(), hidden.0, hidden.1);
            return Err(e);
        }
        self.take_away(from, to, old.is_none())?;
        tree.succeed(source.id, to);
        Ok(source.id)
    }

    /// The source, now that the copy stands in its place. Where that certainly cannot be done, a copy that
    /// replaced nothing goes again.
    fn take_away(&self, from: Place<'_>, to: Place<'_>, is_new: bool) -> Result<()> {
        let (tree, cx) = (&*self.0.tree, self.0.cx());
        let taken = tree.unlink(&cx, from.0, from.1);
        taken.inspect_err(|e| {
            let unknown = e.is_peer_lost() || matches!(e.code, Code::Timeout | Code::Cancelled);
            if is_new && !unknown {
                let _ = tree.unlink(&self.0.cx(), to.0, to.1);
            } else {
                log::warn!("a file was copied, but stays where it was, too: {e}");
            }
        })
    }
}

fn across(why: &'static str) -> Error {
    Error::from_errno(libc::EXDEV, why)
}

/// The file with all that belongs to it, on stable storage, under a name that must be free.
fn copy(job: &Job<'_>, source: &Attr, from: Place<'_>, to: Place<'_>) -> Result<()> {
    let tree = &*job.world.tree;
    let opened = tree.open(&job.cx(), source.id, OpenFlags::READ)?;
    let outcome = match opened.kind {
        FileKind::Plain => copy_opened(job, source.id, opened.handle, from, to),
        FileKind::Message | FileKind::Stream => Err(across("this file is not like one on disk")),
    };
    let _ = tree.release(&job.world.cx(), opened.handle);
    outcome
}

fn copy_opened(
    job: &Job<'_>,
    source: NodeId,
    handle: Handle,
    from: Place<'_>,
    to: Place<'_>,
) -> Result<()> {
    let tree = &*job.world.tree;
    let before = tree.getattr(&job.cx(), source)?;
    let flags = OpenFlags { exclusive: true, ..OpenFlags::WRITE };
    let (made, target) = tree.create(&job.cx(), to.0, to.1, MODE_MEANWHILE, flags)?;
    let mut content = BufReader::with_capacity(CHUNK as usize, Content { job, handle, offset: 0 });
    let threads = in_flight(target.kind, Some(before.size));
    let outcome = push(job, target.handle, threads, &mut content)
        .and_then(|()| tree.flush(&job.cx(), target.handle))
        .and_then(|_| keep(job, &before, (made.id, target.handle)))
        .and_then(|()| tree.fsync(&job.cx(), target.handle, false));
    let released = tree.release(&job.world.cx(), target.handle);
    outcome.and(released)?;
    let after = tree.lookup(&job.cx(), from.0, from.1)?;
    let content = |a: &Attr| (a.id, a.size, a.mtime_ns, a.ctime_ns);
    if content(&after) != content(&before) {
        return Err(Error::from_errno(libc::EBUSY, "the file changed while it was copied"));
    }
    Ok(())
}

/// What is kept as mv(1) keeps it: what the other side does not know, or does not let us set, is left out.
fn keep(job: &Job<'_>, source: &Attr, (node, handle): (NodeId, Handle)) -> Result<()> {
    let tree = &*job.world.tree;
    for name in optional(tree.listxattr(&job.cx(), source.id))?.unwrap_or_default() {
        let Some(value) = optional(tree.getxattr(&job.cx(), source.id, &name))? else { continue };
        optional(tree.setxattr(&job.cx(), node, &name, &value, XattrFlags::Any))
            .context(String::from_utf8_lossy(&name))?;
    }
    let owner = SetAttr { uid: Some(source.uid), gid: Some(source.gid), ..SetAttr::default() };
    optional(tree.setattr(&job.cx(), node, Some(handle), &owner))?;
    let rest = SetAttr {
        mode: Some(source.mode & 0o777),
        atime: Some(SetTime::At { ns: source.atime_ns }),
        mtime: Some(SetTime::At { ns: source.mtime_ns }),
        ..SetAttr::default()
    };
    optional(tree.setattr(&job.cx(), node, Some(handle), &rest)).map(drop)
}

fn optional<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(e)
            if matches!(
                e.errno(),
                libc::ENOSYS | libc::EOPNOTSUPP | libc::EPERM | libc::EACCES | libc::ENODATA
            ) =>
        {
            log::debug!("not kept by the copy: {e}");
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// An open file of the tree from its beginning to its end.
struct Content<'j> {
    job: &'j Job<'j>,
    handle: Handle,
    offset: u64,
}

impl std::io::Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let len = buffer.len().min(CHUNK as usize);
        let read = self.job.world.tree.read(&self.job.cx(), self.handle, self.offset, len as u32);
        match read {
            Ok(Read::Data { bytes, .. }) => {
                let n = bytes.len().min(len);
                buffer[..n].copy_from_slice(&bytes[..n]);
                self.offset += n as u64;
                Ok(n)
            }
            Ok(Read::Wait(_)) => Err(std::io::Error::from_raw_os_error(libc::EXDEV)),
            Err(e) => Err(std::io::Error::from_raw_os_error(e.errno())),
        }
    }
}
