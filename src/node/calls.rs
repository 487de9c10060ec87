//! What each request does to a tree (spec: fs 5): checks in the documented order, then one call.

use super::convert;
use super::cursor::DOTS;
use super::exports::Export;
use super::files::{create, on_handle, open};
use super::session::Ready;
use crate::base::{Code, Error, Result, TreePath, Wait};
use crate::vfs::{
    Attr, Cx, Kind, NodeId, PageLimit, ReadDir, RenameFlags, SetAttr, XattrFlags, walk, wire,
};
use crate::wire::fs::{self, Call, Op, Reply};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

/// Entries of one READDIRP reply (spec: fs 8).
const ENTRIES_MAX: u32 = 16_384;
/// Bytes of one READDIRP reply, well below the frame limit.
const LISTING_MAX: usize = 2 << 20;
/// Permissions of a directory that an old client makes without saying which.
const DIR_MODE: u32 = 0o755;

/// What became of an attempt.
pub enum Attempt {
    Done(Reply),
    /// Nothing to read yet.
    Wait(Wait),
    /// Another owner holds the lock, and the client wants to wait for it.
    Locked,
}

/// A node of an export.
pub(super) struct At {
    pub index: usize,
    pub export: Arc<Export>,
    pub node: NodeId,
}

impl At {
    pub fn of(ready: &Ready, id: u64) -> Result<At> {
        let (index, export, node) = ready.exports().node(id)?;
        Ok(At { index, export, node })
    }

    /// The same, where something is to be changed. Errors: EROFS.
    pub fn changing(ready: &Ready, id: u64) -> Result<At> {
        let at = At::of(ready, id)?;
        at.export.writable()?;
        Ok(at)
    }

    fn attr(&self, attr: &Attr) -> Result<Attempt> {
        Ok(Attempt::Done(Reply::Attr(convert::attr(self.index, attr)?)))
    }
}

impl Export {
    pub(super) fn writable(&self) -> Result<()> {
        if self.caps().read_only {
            return Err(Error::new(Code::Erofs, "export is read-only"));
        }
        Ok(())
    }
}

pub(super) const DONE: Result<Attempt> = Ok(Attempt::Done(Reply::Done));

pub(super) fn done((): ()) -> Attempt {
    Attempt::Done(Reply::Done)
}

/// The mode of what a client makes. Ours say exactly what they want; the others count on the node to take
/// away what a shell would.
pub(super) fn permissions(ready: &Ready, mode: u32) -> u32 {
    const UMASK: u32 = 0o022;
    if ready.ext.is_some() { mode & 0o7777 } else { mode & 0o7777 & !UMASK }
}

pub fn run(ready: &Ready, cx: &Cx, call: &Call) -> Result<Attempt> {
    match call {
        Call::Exports => Ok(Attempt::Done(Reply::Exports(ready.exports().list()?))),
        Call::Lookup { dir, name } => {
            let at = At::of(ready, *dir)?;
            at.attr(&child(ready, cx, &at, name)?)
        }
        Call::Getattr { node } => {
            let at = At::of(ready, *node)?;
            at.attr(&at.export.tree.getattr(cx, at.node)?)
        }
        Call::Readdirp { dir, cookie, max, bytes } => {
            let bytes = if *bytes == 0 { LISTING_MAX } else { (*bytes as usize).min(LISTING_MAX) };
            let limit = PageLimit { entries: (*max).min(ENTRIES_MAX) as usize, bytes };
            listing(ready, cx, *dir, *cookie, limit)
        }
        Call::Open { node, flags, content_max } => open(ready, cx, *node, (*flags, *content_max)),
        Call::Create { dir, name, mode, flags } => create(ready, cx, (*dir, name), *mode, *flags),
        Call::Read { .. }
        | Call::Write { .. }
        | Call::Close { .. }
        | Call::Flush { .. }
        | Call::Fsync { .. }
        | Call::Lock { .. }
        | Call::Getlk { .. }
        | Call::Allocate { .. }
        | Call::Seek { .. }
        | Call::Copy { .. } => on_handle(ready, cx, call),
        Call::Walk { dir, names } => walk_names(ready, cx, *dir, names),
        Call::Rename { from, to, flags } => rename(ready, cx, from, to, *flags),
        Call::Hello(_) => DONE,
        _ => on_node(ready, cx, call),
    }
}

fn on_node(ready: &Ready, cx: &Cx, call: &Call) -> Result<Attempt> {
    match call {
        Call::Truncate { node, size } => {
            let at = At::changing(ready, *node)?;
            let set = SetAttr { size: Some(*size), ..SetAttr::default() };
            at.export.tree.setattr(cx, at.node, None, &set)?;
            DONE
        }
        Call::Setattr { node, h, set } => {
            let at = At::changing(ready, *node)?;
            let handle = h.map(|h| ready.held.opened(h)).transpose()?.map(|o| o.handle);
            let set = wire::set_from(set);
            at.attr(&at.export.tree.setattr(cx, at.node, handle, &set)?)
        }
        Call::Unlink { dir, name } => {
            let at = At::changing(ready, *dir)?;
            at.export.tree.unlink(cx, at.node, convert::name(name)?).map(done)
        }
        Call::Rmdir { dir, name } => {
            let at = At::changing(ready, *dir)?;
            at.export.tree.rmdir(cx, at.node, convert::name(name)?).map(done)
        }
        Call::Mkdir { dir, name, mode } => {
            let at = At::changing(ready, *dir)?;
            let mode = permissions(ready, mode.unwrap_or(DIR_MODE));
            at.attr(&at.export.tree.mkdir(cx, at.node, convert::name(name)?, mode)?)
        }
        Call::Symlink { dir, name, target } => {
            let at = At::changing(ready, *dir)?;
            let name = convert::name(name)?;
            at.attr(&at.export.tree.symlink(cx, at.node, name, target.as_bytes())?)
        }
        Call::Link { node, dir, name } => {
            let (at, into) = (At::changing(ready, *node)?, At::changing(ready, *dir)?);
            if at.index != into.index {
                return Err(Error::new(Code::Exdev, "cross-export link is not supported"));
            }
            at.attr(&at.export.tree.link(cx, at.node, into.node, convert::name(name)?)?)
        }
        Call::Readlink { node } => {
            let at = At::of(ready, *node)?;
            let target = at.export.tree.readlink(cx, at.node)?;
            Ok(Attempt::Done(Reply::Target(OsString::from_vec(target.to_vec()))))
        }
        Call::Statfs { node } => {
            let at = At::of(ready, *node)?;
            let stat = at.export.tree.statfs(cx, at.node)?;
            Ok(Attempt::Done(Reply::StatFs(stat)))
        }
        _ => xattr(ready, cx, call),
    }
}

fn xattr(ready: &Ready, cx: &Cx, call: &Call) -> Result<Attempt> {
    match call {
        Call::Getxattr { node, name } => {
            let at = At::of(ready, *node)?;
            let value = at.export.tree.getxattr(cx, at.node, name.as_bytes())?;
            Ok(Attempt::Done(Reply::Value(value.to_vec())))
        }
        Call::Listxattr { node } => {
            let at = At::of(ready, *node)?;
            let names = at.export.tree.listxattr(cx, at.node)?;
            let names = names.into_iter().map(OsString::from_vec).collect();
            Ok(Attempt::Done(Reply::Names(names)))
        }
        Call::Setxattr { node, name, value, flags } => {
            let at = At::changing(ready, *node)?;
            let flags = match *flags as i32 {
                0 => XattrFlags::Any,
                libc::XATTR_CREATE => XattrFlags::Create,
                libc::XATTR_REPLACE => XattrFlags::Replace,
                _ => return Err(Error::invalid("invalid xattr flags")),
            };
            at.export.tree.setxattr(cx, at.node, name.as_bytes(), value, flags).map(done)
        }
        Call::Removexattr { node, name } => {
            let at = At::changing(ready, *node)?;
            at.export.tree.removexattr(cx, at.node, name.as_bytes()).map(done)
        }
        // The calls above and in `run` are all there are; a new one shows its name until it is served.
        other => {
            Err(Error::new(Code::Enosys, format!("t_fs_{} is not served here", other.op().wire())))
        }
    }
}

/// An entry of a directory; for clients that do not know symlinks, what one leads to.
fn child(ready: &Ready, cx: &Cx, at: &At, name: &OsStr) -> Result<Attr> {
    let attr = at.export.tree.lookup(cx, at.node, convert::name(name)?)?;
    follow(ready, cx, at, name, attr)
}

fn follow(ready: &Ready, cx: &Cx, at: &At, name: &OsStr, attr: Attr) -> Result<Attr> {
    if attr.kind != Kind::Symlink || ready.negotiated(Op::Readlink) {
        return Ok(attr);
    }
    let dir = at.export.tree.path(cx, at.node)?;
    if leads_out(&dir, &at.export.tree.readlink(cx, attr.id)?) {
        return Err(Error::from_errno(libc::EACCES, "the link leads out of the export"));
    }
    walk::resolve(&*at.export.tree, cx, &dir.join(convert::name(name)?))
}

/// True for a link in `dir` that leads out of the export (spec: fs 4, symlinks). Resolving it would not:
/// it would look for the same path within, and tell of something else.
fn leads_out(dir: &TreePath, target: &[u8]) -> bool {
    let mut depth = dir.names().count() as i64;
    target.starts_with(b"/")
        || target.split(|b| *b == b'/').any(|segment| {
            depth += match segment {
                b"" | b"." => 0,
                b".." => -1,
                _ => 1,
            };
            depth < 0
        })
}

fn walk_names(ready: &Ready, cx: &Cx, dir: u64, names: &[String]) -> Result<Attempt> {
    let mut at = At::of(ready, dir)?;
    let mut attrs = Vec::with_capacity(names.len());
    for name in names {
        let attr = match at.export.tree.lookup(cx, at.node, convert::name(OsStr::new(name))?) {
            Ok(attr) => attr,
            // What was found so far is worth telling; the client sees that a name is missing.
            Err(_) if !attrs.is_empty() => break,
            Err(e) => return Err(e),
        };
        attrs.push(convert::attr(at.index, &attr)?);
        at.node = attr.id;
        if attr.kind != Kind::Dir {
            break;
        }
    }
    Ok(Attempt::Done(Reply::Walked(attrs)))
}

fn rename(
    ready: &Ready,
    cx: &Cx,
    from: &(u64, OsString),
    to: &(u64, OsString),
    flags: u32,
) -> Result<Attempt> {
    let (source, target) = (At::changing(ready, from.0)?, At::changing(ready, to.0)?);
    if source.index != target.index {
        return Err(Error::new(Code::Exdev, "cross-export rename is not supported"));
    }
    let flags = match flags {
        0 => RenameFlags::default(),
        libc::RENAME_NOREPLACE => RenameFlags { no_replace: true, exchange: false },
        libc::RENAME_EXCHANGE => RenameFlags { no_replace: false, exchange: true },
        _ => return Err(Error::invalid("invalid rename flags")),
    };
    let from = (source.node, convert::name(&from.1)?);
    let to = (target.node, convert::name(&to.1)?);
    source.export.tree.rename(cx, from, to, flags).map(done)
}

fn listing(ready: &Ready, cx: &Cx, dir: u64, cookie: u64, limit: PageLimit) -> Result<Attempt> {
    let at = At::of(ready, dir)?;
    let own = at.export.tree.getattr(cx, at.node)?;
    if own.kind != Kind::Dir {
        return Err(Error::new(Code::Enotdir, "node is not a directory"));
    }
    let reply =
        |entries, next, eof, dir_gen| Ok(Attempt::Done(Reply::Dir { entries, next, eof, dir_gen }));
    if limit.entries == 0 {
        return reply(Vec::new(), cookie, false, own.generation);
    }
    if ready.ext.is_some() {
        return page(cx, &at, cookie, limit);
    }
    let mut entries = Vec::new();
    if cookie == 0 {
        let attr = convert::attr(at.index, &own)?;
        entries.push(fs::DirEntry { name: ".".into(), attr, cookie: None });
    }
    if cookie <= 1 && entries.len() < limit.entries {
        let attr = convert::attr(at.index, &parent(cx, &at, own.clone()))?;
        entries.push(fs::DirEntry { name: "..".into(), attr, cookie: None });
    }
    let (start, room) = (cookie.max(DOTS), limit.entries - entries.len());
    if room == 0 {
        let next = cookie + entries.len() as u64;
        return reply(entries, next, false, own.generation);
    }
    let tree_cookie = match ready.held.cursor(dir, start) {
        Some(known) => known,
        None => skip(cx, &at, start - DOTS)?,
    };
    let limit = PageLimit { entries: room, ..limit };
    let page = at.export.tree.readdir(cx, ReadDir { dir: at.node, cookie: tree_cookie, limit })?;
    let mut cookies = Vec::with_capacity(page.entries.len());
    for entry in page.entries {
        // An entry that cannot be shown (a link that leads nowhere, for those who do not know links)
        // takes no position: it is passed over by the cookie of the one before it.
        match follow(ready, cx, &at, &entry.name, entry.attr) {
            Ok(attr) => {
                let attr = convert::attr(at.index, &attr)?;
                entries.push(fs::DirEntry { name: entry.name, attr, cookie: None });
                cookies.push(entry.cookie);
            }
            Err(_) => {
                if let Some(last) = cookies.last_mut() {
                    *last = entry.cookie;
                }
            }
        }
    }
    let next = start + cookies.len() as u64;
    ready.held.keep_cursor(dir, start, cookies);
    reply(entries, next, page.eof, page.generation)
}

/// A page for clients that go on by the tree's own cookies: two walks through one directory do not get
/// in each other's way. Without `.` and `..`, which they make themselves.
fn page(cx: &Cx, at: &At, cookie: u64, limit: PageLimit) -> Result<Attempt> {
    let page = at.export.tree.readdir(cx, ReadDir { dir: at.node, cookie, limit })?;
    let next = page.entries.last().map_or(cookie, |e| e.cookie);
    let entry = |e: crate::vfs::DirEntry| {
        let attr = convert::attr(at.index, &e.attr)?;
        Ok(fs::DirEntry { name: e.name, attr, cookie: Some(e.cookie) })
    };
    let entries = page.entries.into_iter().map(entry).collect::<Result<_>>()?;
    Ok(Attempt::Done(Reply::Dir { entries, next, eof: page.eof, dir_gen: page.generation }))
}

/// What `..` shows: the directory above, or the directory itself where that is not to be had.
fn parent(cx: &Cx, at: &At, own: Attr) -> Attr {
    let tree = &*at.export.tree;
    let above = tree.path(cx, at.node).ok().and_then(|p| p.split_last().map(|(dir, _)| dir));
    above.and_then(|dir: TreePath| walk::resolve(tree, cx, &dir).ok()).unwrap_or(own)
}

/// The tree's cookie behind `n` entries, for a position that was not sent in this session.
fn skip(cx: &Cx, at: &At, n: u64) -> Result<u64> {
    let (mut cookie, mut left) = (0, n);
    while left > 0 {
        let entries = usize::try_from(left).unwrap_or(usize::MAX).min(PageLimit::DEFAULT.entries);
        let limit = PageLimit { entries, ..PageLimit::DEFAULT };
        let page = at.export.tree.readdir(cx, ReadDir { dir: at.node, cookie, limit })?;
        let Some(last) = page.entries.last() else { break };
        cookie = last.cookie;
        left -= page.entries.len() as u64;
        cx.check()?;
    }
    Ok(cookie)
}
