//! What requests do to open files, from opening to closing.

use super::calls::{At, Attempt, DONE, done, permissions};
use super::convert;
use super::exports::Export;
use super::session::{Open, Ready};
use crate::base::{Code, Deadline, Error, Result};
use crate::vfs::{Cx, FileKind, Handle, LockRequest, OpenFlags, Range, Read, Tree, Written, wire};
use crate::wire::DATA_MAX;
use crate::wire::fs::{Call, Framing, Op, Reply};
use bytes::Bytes;
use std::ffi::OsStr;

/// Most bytes that an OPEN's reply has of the file.
const CONTENT_MAX: u32 = 64 << 10;

pub(super) fn open(
    ready: &Ready,
    cx: &Cx,
    node: u64,
    (bits, content_max): (u32, u32),
) -> Result<Attempt> {
    let at = At::of(ready, node)?;
    let content_max =
        if ready.framing() == Framing::Text { 0 } else { content_max.min(CONTENT_MAX) };
    let mut flags = OpenFlags { content_max, ..wire::flags_from(bits) };
    if ready.ext.is_none() {
        // Old clients send the kernel's flags as they come and do what these mean themselves.
        flags = OpenFlags { append: false, truncate: false, ..flags };
    }
    if flags.writes() || flags.truncate {
        at.export.writable()?;
    }
    let mut opened = at.export.tree.open(cx, at.node, flags)?;
    if opened.content.is_none() && opened.kind == FileKind::Plain {
        opened.content = content(&*at.export.tree, cx, opened.handle, flags);
    }
    let open = Open { export: at.index, handle: opened.handle, kind: opened.kind, flags };
    let h = kept(ready, cx, &at, open)?;
    Ok(Attempt::Done(Reply::Open(convert::open_reply(h, &opened, flags))))
}

/// What an open file holds, if that is wanted and not too much. A file that cannot be read says so when it is.
fn content(tree: &dyn Tree, cx: &Cx, handle: Handle, flags: OpenFlags) -> Option<Bytes> {
    if flags.content_max == 0 || !flags.reads() || flags.truncate {
        return None;
    }
    // One more, to see whether that is all.
    match tree.read(cx, handle, 0, flags.content_max + 1).ok()? {
        Read::Data { bytes, .. } if bytes.len() <= flags.content_max as usize => Some(bytes),
        _ => None,
    }
}

pub(super) fn create(
    ready: &Ready,
    cx: &Cx,
    (dir, name): (u64, &OsStr),
    mode: u32,
    bits: u32,
) -> Result<Attempt> {
    let at = At::changing(ready, dir)?;
    let mut flags = wire::flags_from(bits);
    if ready.ext.is_none() {
        // The base protocol creates exclusively, and its handle always writes (spec: fs 5, create).
        flags = OpenFlags { exclusive: true, ..OpenFlags::READ_WRITE };
    }
    let (attr, opened) = at.export.tree.create(
        cx,
        at.node,
        convert::name(name)?,
        permissions(ready, mode),
        flags,
    )?;
    let open = Open { export: at.index, handle: opened.handle, kind: opened.kind, flags };
    let h = kept(ready, cx, &at, open)?;
    let attr = convert::attr(at.index, &attr)?;
    Ok(Attempt::Done(Reply::Created(attr, convert::open_reply(h, &opened, flags))))
}

/// Numbers an open file, or closes it again when it cannot be kept.
fn kept(ready: &Ready, cx: &Cx, at: &At, open: Open) -> Result<u64> {
    let handle = open.handle;
    ready.held.keep(open).inspect_err(|_| {
        let _ = at.export.tree.release(cx, handle);
    })
}

pub(super) fn on_handle(ready: &Ready, cx: &Cx, call: &Call) -> Result<Attempt> {
    let h = call.handle().unwrap_or_default();
    let open = match call {
        Call::Close { h } => ready.held.forget(*h)?,
        _ => ready.held.opened(h)?,
    };
    let export = ready.exports().get(open.export)?;
    let tree = &export.tree;
    match call {
        Call::Read { off, len, .. } => {
            if !open.flags.reads() {
                return Err(Error::new(Code::Ebadf, "handle not readable"));
            }
            Ok(match tree.read(cx, open.handle, *off, (*len).min(DATA_MAX as u32))? {
                Read::Data { bytes, eof } => Attempt::Done(Reply::Data { bytes, eof }),
                Read::Wait(wait) => Attempt::Wait(wait),
            })
        }
        Call::Write { off, data, .. } => {
            if !open.flags.writes() {
                return Err(Error::new(Code::Ebadf, "handle not writable"));
            }
            if data.len() > DATA_MAX {
                return Err(Error::invalid("WRITE exceeds max_write"));
            }
            write(ready, cx, &export, &open, *off, data.clone())
        }
        Call::Close { .. } => {
            let flushed = tree.flush(cx, open.handle);
            tree.release(cx, open.handle)?;
            flushed.map(|_| Attempt::Done(Reply::Done))
        }
        Call::Flush { .. } => written(ready, &open, tree.flush(cx, open.handle)?),
        Call::Fsync { data_only, .. } => tree.fsync(cx, open.handle, *data_only).map(done),
        Call::Lock { kind, wait, owner, range, .. } => {
            let request =
                LockRequest { kind: wire::lock_from(*kind), owner: *owner, range: *range };
            match tree.lock(cx, open.handle, request) {
                Err(e) if e.errno() == libc::EAGAIN && *wait => Ok(Attempt::Locked),
                Err(e) if e.errno() == libc::EAGAIN => Err(Error::new(Code::Again, "would block")),
                outcome => outcome.map(done),
            }
        }
        Call::Getlk { kind, owner, range, .. } => {
            let request =
                LockRequest { kind: wire::lock_from(*kind), owner: *owner, range: *range };
            let held = tree.test_lock(cx, open.handle, request)?;
            let whole = Range { start: 0, end: u64::MAX };
            let held = held.map(|l| (wire::lock_to(l.kind), l.range.unwrap_or(whole)));
            Ok(Attempt::Done(Reply::Held(held)))
        }
        Call::Allocate { off, len, how, .. } => {
            tree.allocate(cx, open.handle, *off, *len, *how).map(done)
        }
        Call::Seek { off, to, .. } => {
            Ok(Attempt::Done(Reply::Sought(tree.seek(cx, open.handle, *off, *to)?)))
        }
        Call::Copy { from, from_off, off, len, .. } => {
            let source = ready.held.opened(*from)?;
            if source.export != open.export {
                return Err(Error::new(Code::Exdev, "cross-export copy is not supported"));
            }
            let (from, to) = ((source.handle, *from_off), (open.handle, *off));
            written(ready, &open, tree.copy_range(cx, from, to, *len)?)
        }
        _ => DONE,
    }
}

/// The reply to a read whose bytes are at hand; the thread that moves messages gives it itself. What is
/// queued for the same file goes first.
pub fn at_hand(ready: &Ready, call: &Call) -> Option<Reply> {
    let Call::Read { h, off, len } = call else { return None };
    let open = ready.held.opened(*h).ok()?;
    if open.kind != FileKind::Plain || !open.flags.reads() || !ready.held.lanes.is_free(h) {
        return None;
    }
    let export = ready.exports().get(open.export).ok()?;
    let cx = Cx::new(ready.held.who.clone(), Deadline::never());
    match export.tree.read_at_hand(&cx, open.handle, *off, *len)? {
        Read::Data { bytes, eof } => Some(Reply::Data { bytes, eof }),
        Read::Wait(_) => None,
    }
}

fn write(
    ready: &Ready,
    cx: &Cx,
    export: &Export,
    open: &Open,
    off: u64,
    data: Bytes,
) -> Result<Attempt> {
    let mut outcome = export.tree.write(cx, open.handle, off, data)?;
    // Clients that know no flush write a message whole (spec: fs 15.2).
    if open.kind == FileKind::Message && !ready.negotiated(Op::Flush) {
        outcome.extra = export.tree.flush(cx, open.handle)?.extra.or(outcome.extra);
    }
    written(ready, open, outcome)
}

/// Old clients know no attributes in the reply.
fn written(ready: &Ready, open: &Open, w: Written) -> Result<Attempt> {
    let attr = w.attr.filter(|_| ready.ext.is_some());
    let attr = attr.map(|a| convert::attr(open.export, &a)).transpose()?;
    Ok(Attempt::Done(Reply::Written { n: w.n, attr, extra: w.extra }))
}
