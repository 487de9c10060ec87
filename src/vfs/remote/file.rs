//! Open files of a remote tree: opened again when the connection was, and read without holding a thread
//! where the file makes its readers wait.

use super::export::{Remote, Wire, unexpected};
use super::link::{Link, read};
use crate::base::{Counted, Deadline, Error, Gauge, Name, Notify, Result};
use crate::net::{CallError, Message};
use crate::vfs::wire;
use crate::vfs::{
    Access, Attr, Cx, Event, FileKind, Handle, LockKind, LockRequest, NodeId, OpenFlags, Opened,
    Range, Read, SetAttr, Tree, Written,
};
use crate::wire::fs::{Call, Framing, Op, OpenReply, Reply, Request};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

/// The longest that a node may have its callers wait for one message.
const PATIENCE_MAX_MS: u64 = 600_000;
/// Calls of this process that take longer than their callers meant to wait: half of the threads of a
/// gateway or a mount.
const PATIENT_MAX: usize = 8;
static PATIENT: LazyLock<Gauge> = LazyLock::new(|| Gauge::new(PATIENT_MAX, "services at work"));

pub(super) struct OpenFile {
    node: NodeId,
    flags: OpenFlags,
    kind: FileKind,
    patience_ms: Option<u64>,
    state: Mutex<State>,
    /// Who holds a lock through it: what is read and written relies on that.
    lockers: Mutex<BTreeSet<u64>>,
}

struct State {
    epoch: u64,
    h: u64,
    /// A read of a stream file that has been sent and not been answered, or not been taken.
    pending: Option<Pending>,
}

#[derive(Clone)]
struct Pending {
    offset: u64,
    len: u32,
    epoch: u64,
    tag: u32,
    answer: Arc<Mutex<Option<Result<Message, CallError>>>>,
    answered: Notify,
    _place: Arc<Counted>,
}

impl OpenFile {
    fn is_locked(&self) -> bool {
        !self.lockers.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remote {
    fn keep(
        &self,
        link: &Link,
        node: NodeId,
        flags: OpenFlags,
        open: &OpenReply,
    ) -> Result<Opened> {
        let kind = wire::kind_from(open.kind.as_deref());
        let state = State { epoch: link.epoch, h: open.h, pending: None };
        let (state, lockers) = (Mutex::new(state), Mutex::default());
        let patience_ms = open.patience_ms.map(|ms| ms.min(PATIENCE_MAX_MS));
        let file = OpenFile { node, flags, kind, patience_ms, state, lockers };
        let handle = self.handles.insert(node, file)?;
        let content = open.content.clone().filter(|_| kind == FileKind::Plain);
        Ok(Opened { handle, kind, generation: open.generation, patience_ms, content })
    }

    pub(super) fn open_file(&self, cx: &Cx, node: NodeId, flags: OpenFlags) -> Result<Opened> {
        let make = |link: &Link| {
            // Others answer in JSON, where it would have no place.
            let content_max = if link.ext.framing == Framing::Text { 0 } else { flags.content_max };
            let node = self.wire(cx, link, node)?;
            Ok(Call::Open { node, flags: wire::flags_to(flags), content_max })
        };
        let (opened, old) = self.run(cx, Op::Open, make, |link, reply| match reply {
            Reply::Open(open) => {
                if flags.truncate {
                    let generation = Some(open.generation);
                    self.changed(link, &[Event::Data { node, generation }]);
                }
                Ok((self.keep(link, node, flags, &open)?, !link.ext.has(Op::Setattr)))
            }
            _ => Err(unexpected(Op::Open)),
        })?;
        // Old nodes do not look at O_TRUNC.
        if old && flags.truncate && flags.writes() {
            let set = SetAttr { size: Some(0), ..SetAttr::default() };
            if let Err(e) = self.setattr(cx, node, None, &set) {
                let _ = self.release_file(cx, opened.handle);
                return Err(e);
            }
        }
        Ok(opened)
    }

    pub(super) fn create_file(
        &self,
        cx: &Cx,
        dir: NodeId,
        name: Name<'_>,
        mode: u32,
        flags: OpenFlags,
    ) -> Result<(Attr, Opened)> {
        let make = |link: &Link| {
            Ok(Call::Create {
                dir: self.wire(cx, link, dir)?,
                name: name.as_os_str().to_os_string(),
                mode: libc::S_IFREG | (mode & 0o7777),
                flags: wire::flags_to(flags),
            })
        };
        let made = self.run(cx, Op::Create, make, |link, reply| match reply {
            Reply::Created(a, open) => {
                let key = Wire::told(link, &a);
                let is_news = self.ids.id(&key).is_none();
                let node = self.known_as(&key, dir, name.as_os_str());
                self.changed(link, &[entry(dir, name)]);
                // An old node's own event about it came before anybody here could know it.
                if is_news || link.is_ours() {
                    self.announce(Event::All { node, generation: Some(a.generation) });
                }
                Ok((wire::attr_from(node, &a), self.keep(link, node, flags, &open)?))
            }
            _ => Err(unexpected(Op::Create)),
        });
        match made {
            // Old nodes create only what is not there.
            Err(e) if e.errno() == libc::EEXIST && !flags.exclusive => {
                let found = self.lookup(cx, dir, name)?;
                let opened = self.open_file(cx, found.id, flags)?;
                Ok((found, opened))
            }
            made => made,
        }
    }

    /// The file's handle on this link; one of an earlier epoch is opened again.
    pub(super) fn wire_handle(&self, cx: &Cx, link: &Link, handle: Handle) -> Result<u64> {
        let (_, file) = self.handles.get(handle)?;
        {
            let state = file.lock();
            if state.epoch == link.epoch {
                return Ok(state.h);
            }
        }
        if file.is_locked() {
            let text = "the lock on this file was lost with the node's session; open the file anew";
            return Err(Error::from_errno(libc::EIO, text));
        }
        // What was done by opening it the first time is not done again.
        let flags = OpenFlags { truncate: false, exclusive: false, ..file.flags };
        let node = self.wire(cx, link, file.node)?;
        let call = Call::Open { node, flags: wire::flags_to(flags), content_max: 0 };
        let Reply::Open(open) = link.call(call, cx.deadline, &cx.cancel)? else {
            return Err(unexpected(Op::Open));
        };
        let mut state = file.lock();
        if state.epoch != link.epoch {
            (state.epoch, state.h) = (link.epoch, open.h);
        }
        Ok(state.h)
    }

    /// Notes whether a lock is held through a file; one that was lost is not taken for granted.
    pub(super) fn note_lock(&self, handle: Handle, request: &LockRequest) {
        let whole = |r: Range| r.start == 0 && r.end == u64::MAX;
        let Ok((_, file)) = self.handles.get(handle) else { return };
        let mut lockers = file.lockers.lock().unwrap_or_else(PoisonError::into_inner);
        match request.kind {
            LockKind::Unlock if request.range.is_none_or(whole) => {
                lockers.remove(&request.owner);
            }
            // Others may be left.
            LockKind::Unlock => {}
            LockKind::Shared | LockKind::Exclusive => {
                lockers.insert(request.owner);
            }
        }
    }

    pub(super) fn read_file(&self, cx: &Cx, handle: Handle, offset: u64, len: u32) -> Result<Read> {
        let (_, file) = self.handles.get(handle)?;
        if file.kind == FileKind::Stream {
            return self.read_stream(cx, handle, &file, offset, len);
        }
        let make = |link: &Link| {
            let len = len.min(link.caps.max_read);
            Ok(Call::Read { h: self.wire_handle(cx, link, handle)?, off: offset, len })
        };
        self.run(cx, Op::Read, make, |_, reply| data(reply))
    }

    /// Sends the read and says to wait; the next call with the same arguments takes the answer.
    fn read_stream(
        &self,
        cx: &Cx,
        handle: Handle,
        file: &Arc<OpenFile>,
        offset: u64,
        len: u32,
    ) -> Result<Read> {
        let pending = file.lock().pending.clone();
        if let Some(p) = pending.filter(|p| (p.offset, p.len) == (offset, len)) {
            let seen = p.answered.seen();
            let answer = p.answer.lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some(answer) = answer else {
                return Ok(Read::Wait(p.answered.wait(seen, Deadline::never())));
            };
            file.lock().pending = None;
            return match answer {
                Ok(message) => data(read(Op::Read, &message)?),
                // Asked anew, on the connection that there is then.
                Err(e) if e.error.is_peer_lost() => self.read_stream(cx, handle, file, offset, len),
                Err(e) => Err(e.error),
            };
        }
        let link = self.link(cx)?;
        let h = self.wire_handle(cx, &link, handle)?;
        let p = self.send_read(&link, h, offset, len)?;
        let seen = p.answered.seen();
        let wait = p.answered.wait(seen, Deadline::never());
        let old = file.lock().pending.replace(p.clone());
        if let Some(old) = old.filter(|o| o.epoch == link.epoch) {
            link.mux.abandon(old.tag);
        }
        if p.answer.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            return self.read_stream(cx, handle, file, offset, len);
        }
        Ok(Read::Wait(wait))
    }

    fn send_read(&self, link: &Link, h: u64, offset: u64, len: u32) -> Result<Pending> {
        let place = Arc::new(self.peer.waiting.enter()?);
        let answer = Arc::new(Mutex::new(None));
        let answered = Notify::default();
        let done = {
            let (answer, answered) = (answer.clone(), answered.clone());
            move |reply| {
                *answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(reply);
                answered.notify();
            }
        };
        let call = Call::Read { h, off: offset, len: len.min(link.caps.max_read) };
        let build = |tag| Request::new(tag, call).encode(link.ext.framing);
        let tag = link.mux.start(build, Deadline::never(), done)?;
        Ok(Pending { offset, len, epoch: link.epoch, tag, answer, answered, _place: place })
    }

    pub(super) fn write_file(
        &self,
        cx: &Cx,
        handle: Handle,
        offset: u64,
        data: Bytes,
    ) -> Result<Written> {
        let (_, file) = self.handles.get(handle)?;
        let patient = patient(cx, &file);
        let cx = patient.as_ref().map_or(cx, |p| &p.cx);
        let mut total = Written::default();
        loop {
            let done = total.n as usize;
            let make = |link: &Link| {
                let h = self.wire_handle(cx, link, handle)?;
                // Old nodes do not look at O_APPEND: the offset has to say it.
                let old_append = file.flags.append && !link.ext.has(Op::Setattr);
                let off = if old_append {
                    self.getattr(cx, file.node)?.size
                } else {
                    offset + done as u64
                };
                let end = data.len().min(done + link.caps.max_write as usize);
                Ok(Call::Write { h, off, data: data.slice(done..end) })
            };
            let take = |link: &Link, reply| {
                let written = Remote::written(file.node, reply, Op::Write)?;
                let generation = written.attr.as_ref().map(|a| a.generation);
                self.changed(link, &[Event::Data { node: file.node, generation }]);
                Ok(written)
            };
            let Written { n, attr, extra } = self.run(cx, Op::Write, make, take)?;
            // No more than there is, whatever the node says.
            let n = n.min((data.len() - done) as u64);
            total = Written { n: total.n + n, attr, extra: extra.or(total.extra) };
            if n == 0 || total.n as usize == data.len() {
                return Ok(total);
            }
        }
    }

    /// Plain files are written through, so only a message has to be ended.
    pub(super) fn flush_file(&self, cx: &Cx, handle: Handle) -> Result<Written> {
        let (_, file) = self.handles.get(handle)?;
        if file.kind != FileKind::Message || file.flags.access == Access::Read {
            return Ok(Written::default());
        }
        let patient = patient(cx, &file);
        let cx = patient.as_ref().map_or(cx, |p| &p.cx);
        let make = |link: &Link| Ok(Call::Flush { h: self.wire_handle(cx, link, handle)? });
        self.run(cx, Op::Flush, make, |_, reply| Remote::written(file.node, reply, Op::Flush))
    }

    /// A handle of a connection that is gone is closed with it. Nobody waits for the node to close a file
    /// that is like one on disk and not locked: there is nothing that it could still tell.
    pub(super) fn release_file(&self, cx: &Cx, handle: Handle) -> Result<()> {
        let file = self.handles.remove(handle)?;
        let (epoch, h) = {
            let state = file.lock();
            (state.epoch, state.h)
        };
        let Ok(link) = self.link(cx) else { return Ok(()) };
        if link.epoch != epoch {
            return Ok(());
        }
        if file.kind == FileKind::Plain && !file.is_locked() {
            let close = Call::Close { h };
            let told = match link.is_ours() {
                true => link.mux.tell(Request::silent(close).encode(link.ext.framing)).is_ok(),
                false => {
                    let build = |tag| Request::new(tag, close).encode(link.ext.framing);
                    link.mux.start(build, cx.deadline, drop).is_ok()
                }
            };
            if told {
                return Ok(());
            }
        }
        let patient = patient(cx, &file);
        let cx = patient.as_ref().map_or(cx, |p| &p.cx);
        match link.call(Call::Close { h }, cx.deadline, &cx.cancel) {
            Err(e) if !e.error.is_peer_lost() => Err(e.error),
            _ => Ok(()),
        }
    }
}

/// A call that may take as long as its file says. A node that is lost meanwhile is noticed by its silence.
struct Patient {
    cx: Cx,
    _place: Counted,
}

/// `None` where the caller waits as long as that anyway, or too many do.
fn patient(cx: &Cx, file: &OpenFile) -> Option<Patient> {
    let deadline = Deadline::after_ms(file.patience_ms?);
    if deadline <= cx.deadline {
        return None;
    }
    Some(Patient { cx: Cx { deadline, ..cx.clone() }, _place: PATIENT.enter().ok()? })
}

pub(super) fn entry(dir: NodeId, name: Name<'_>) -> Event {
    Event::Entry { dir, name: name.as_os_str().into() }
}

fn data(reply: Reply) -> Result<Read, Error> {
    match reply {
        Reply::Data { bytes, eof } => Ok(Read::Data { bytes, eof }),
        _ => Err(unexpected(Op::Read)),
    }
}
