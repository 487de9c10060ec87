//! Open files of the union. A file that is only read goes on at the next member when its own is lost,
//! if that one has the same file; writes stay where they began, and fail when that is lost.

use super::resolve::at_member;
use super::{Group, Shared};
use crate::base::{Code, Error, Result};
use crate::vfs::{Attr, Cx, FileKind, Handle, NodeId, OpenFlags, Opened, Read, Tree};
use std::sync::{Arc, Mutex, PoisonError};

pub struct OpenFile {
    group: Arc<Group>,
    flags: OpenFlags,
    kind: FileKind,
    /// Size and time of change when it was opened, where another member might have to continue.
    same: Option<(u64, i64)>,
    at: Mutex<Place>,
}

#[derive(Clone, Copy)]
struct Place {
    member: usize,
    node: NodeId,
    handle: Handle,
}

impl OpenFile {
    pub fn new(
        group: Arc<Group>,
        member: usize,
        node: NodeId,
        opened: &Opened,
        flags: OpenFlags,
        attr: Option<&Attr>,
    ) -> OpenFile {
        let at = Place { member, node, handle: opened.handle };
        let same = attr.map(|a| (a.size, a.mtime_ns));
        OpenFile { group, flags, kind: opened.kind, same, at: Mutex::new(at) }
    }

    fn place(&self) -> Place {
        *self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The handle at the member, if the other file is open at the same one.
    pub fn beside(&self, other: &OpenFile) -> Option<Handle> {
        let (at, there) = (self.place(), other.place());
        let same = self.group.serial == other.group.serial && at.member == there.member;
        same.then_some(at.handle)
    }

    /// Calls `f` with the member's tree, node and handle.
    pub fn on<T>(&self, f: impl FnOnce(&dyn Tree, NodeId, Handle) -> Result<T>) -> Result<T> {
        let at = self.place();
        f(&*self.group.members[at.member].tree, at.node, at.handle)
    }
}

/// Whether a file opened like this may be continued at another member.
pub fn continues(group: &Group, flags: OpenFlags, kind: FileKind) -> bool {
    group.members.len() > 1 && !flags.writes() && kind == FileKind::Plain
}

impl Shared {
    pub fn read(&self, cx: &Cx, handle: Handle, offset: u64, len: u32) -> Result<Read> {
        let (id, file) = self.handles.get(handle)?;
        let mut tried = 0;
        loop {
            tried += 1;
            let at = file.place();
            let error = match file.on(|tree, _, h| tree.read(cx, h, offset, len)) {
                Err(e) if e.is_peer_lost() => e,
                outcome => {
                    self.served(&file.group, at.member);
                    return outcome;
                }
            };
            file.group.pass_over(at.member);
            if tried >= file.group.members.len() || !continues(&file.group, file.flags, file.kind) {
                return Err(error);
            }
            self.reopen(cx, id, &file, at.member)?;
        }
    }

    /// Opens the file at the member that took over. Errors: EIO when it is not the same file there.
    fn reopen(&self, cx: &Cx, id: NodeId, file: &OpenFile, lost: usize) -> Result<()> {
        let mut at = file.at.lock().unwrap_or_else(PoisonError::into_inner);
        let member = file.group.active();
        if at.member != lost || member == lost {
            return Ok(());
        }
        let other = |why: &str| {
            let name = &file.group.members[member].name;
            Error::new(Code::Eio, format!("cannot go on reading at {name}: {why}"))
        };
        let (_, paths) = self.ids.paths(id)?;
        let attr = match at_member(cx, &file.group, member, &paths) {
            Err(e) if e.errno() == libc::ESTALE => return Err(other("it has no such file")),
            found => found?,
        };
        if file.same != Some((attr.size, attr.mtime_ns)) {
            return Err(other("its file differs in size or time"));
        }
        let flags = OpenFlags { content_max: 0, ..file.flags };
        let opened = file.group.members[member].tree.open(cx, attr.id, flags)?;
        *at = Place { member, node: attr.id, handle: opened.handle };
        Ok(())
    }
}
