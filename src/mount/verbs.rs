//! The commands that read and change one tree from a shell, as text on standard output (spec: fs 17).

use super::world::World;
use crate::base::{Deadline, Error, Name, Result, ResultExt, TreePath};
use crate::vfs::walk;
use crate::vfs::{
    self, Attr, Cx, DirEntry, DirPage, Handle, Kind, OpenFlags, PageLimit, ReadDir, RenameFlags,
    SetAttr, Tree,
};
use crate::wire::Object;
use bytes::Bytes;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;

/// Bytes moved at a time.
const CHUNK: u64 = 1 << 20;
/// Entries of a listing that asks for no number.
pub const READDIR_MAX: u32 = 256;

pub fn getattr(world: &World, path: &TreePath) -> Result<String> {
    Ok(json(&walk::resolve(&*world.tree, &world.cx(), path)?))
}

/// One page of a directory from `cookie` on. `.` and `..` stand at the start of a real directory; one
/// that only holds mount points is told with `next_cookie`, 0 at its end.
pub fn readdir(world: &World, path: &TreePath, cookie: u64, max: u32) -> Result<String> {
    let (tree, cx) = (&*world.tree, world.cx());
    let dir = walk::resolve(tree, &cx, path)?;
    if dir.kind != Kind::Dir {
        return Err(Error::from_errno(libc::ENOTDIR, format!("{path}: not a directory")));
    }
    let limit = PageLimit { entries: max.max(1) as usize, ..PageLimit::DEFAULT };
    let page = tree.readdir(&cx, ReadDir { dir: dir.id, cookie, limit }).context(path)?;
    let next = page.entries.last().map_or(cookie, |e| e.cookie);
    if world.is_virtual(path) {
        let next = if page.eof { 0 } else { next };
        return Ok(listing(&[], &page).put("next_cookie", next).finish());
    }
    let parent = match path.split_last() {
        Some((above, _)) => walk::resolve(tree, &cx, &above)?,
        None => dir.clone(),
    };
    let dots = [(".", dir), ("..", parent)];
    let dots = if cookie == 0 { &dots[..] } else { &[] };
    let o = listing(dots, &page).put("next", next).put("eof", page.eof);
    Ok(o.put("dir_gen", page.generation).finish())
}

fn listing(dots: &[(&str, Attr)], page: &DirPage) -> Object {
    let dots =
        dots.iter().map(|(name, attr)| Object::new().put("name", name).raw("attr", &json(attr)));
    let entry = |e: &DirEntry| {
        let o = match e.name.to_str() {
            Some(name) => Object::new().put("name", name),
            None => Object::new().base64("name_b64", e.name.as_bytes()),
        };
        o.raw("attr", &json(&e.attr))
    };
    let all: Vec<_> = dots.chain(page.entries.iter().map(entry)).map(Object::finish).collect();
    Object::new().raw("ents", &format!("[{}]", all.join(",")))
}

/// The attributes under their names of the wire (spec: fs 4).
fn json(a: &Attr) -> String {
    // Numbers only: cannot fail.
    serde_json::to_string(&vfs::wire::attr_to(a.id.0, a)).unwrap_or_default()
}

/// Copies a file to `out`, piece by piece, however long it makes its reader wait. A reader of `out` that
/// has gone away ends it.
pub fn cat(world: &World, path: &TreePath, out: &mut dyn Write) -> Result<()> {
    let tree = &*world.tree;
    let node = walk::resolve(tree, &world.cx(), path)?;
    let handle = tree.open(&world.cx(), node.id, OpenFlags::READ).context(path)?.handle;
    let mut copy = || -> Result<()> {
        let mut offset = 0;
        loop {
            let cx = world.cx();
            let (bytes, eof) = match tree.read(&cx, handle, offset, CHUNK as u32)? {
                vfs::Read::Data { bytes, eof } => (bytes, eof),
                vfs::Read::Wait(wait) => {
                    wait.block(Deadline::never(), &cx.cancel)?;
                    continue;
                }
            };
            offset += bytes.len() as u64;
            out.write_all(&bytes).context("standard output")?;
            if eof || bytes.is_empty() {
                return out.flush().context("standard output");
            }
        }
    };
    let copied = match copy() {
        Err(e) if e.errno() == libc::EPIPE => Ok(()),
        outcome => outcome,
    };
    let released = tree.release(&world.cx(), handle);
    copied.and(released).context(path)
}

/// `>`: the file's content becomes what `input` gives, and it is made where it is missing. A message
/// file gets one message.
pub fn write(world: &World, path: &TreePath, input: &mut dyn Read) -> Result<()> {
    let (tree, cx) = (&*world.tree, world.cx());
    let flags = OpenFlags { truncate: true, ..OpenFlags::WRITE };
    let handle = match walk::resolve(tree, &cx, path) {
        Ok(node) => tree.open(&cx, node.id, flags).context(path)?.handle,
        Err(e) if e.errno() == libc::ENOENT => {
            let (dir, name) = walk::parent(tree, &cx, path)?;
            tree.create(&cx, dir, name, 0o644, flags).context(path)?.1.handle
        }
        Err(e) => return Err(e),
    };
    let copied = copy(world, handle, input);
    let copied = copied.and_then(|()| tree.flush(&world.cx(), handle).map(drop));
    let released = tree.release(&world.cx(), handle);
    copied.and(released).context(path)
}

fn copy(world: &World, handle: Handle, input: &mut dyn Read) -> Result<()> {
    let mut offset = 0;
    loop {
        let mut chunk = Vec::new();
        Read::take(&mut *input, CHUNK).read_to_end(&mut chunk).context("standard input")?;
        if chunk.is_empty() {
            return Ok(());
        }
        let mut left = Bytes::from(chunk);
        while !left.is_empty() {
            let written = world.tree.write(&world.cx(), handle, offset, left.clone())?;
            let n = written.n.min(left.len() as u64);
            if n == 0 {
                return Err(Error::from_errno(libc::EIO, "write made no progress"));
            }
            offset += n;
            left = left.slice(n as usize..);
        }
    }
}

pub fn mkdir(world: &World, path: &TreePath) -> Result<()> {
    change(world, path, |tree, cx, dir, name| tree.mkdir(cx, dir, name, 0o755).map(drop))
}

pub fn rmdir(world: &World, path: &TreePath) -> Result<()> {
    change(world, path, |tree, cx, dir, name| tree.rmdir(cx, dir, name))
}

pub fn unlink(world: &World, path: &TreePath) -> Result<()> {
    change(world, path, |tree, cx, dir, name| tree.unlink(cx, dir, name))
}

fn change(
    world: &World,
    path: &TreePath,
    f: impl Fn(&dyn Tree, &Cx, vfs::NodeId, Name<'_>) -> Result<()>,
) -> Result<()> {
    let cx = world.cx();
    let (dir, name) = walk::parent(&*world.tree, &cx, path)?;
    f(&*world.tree, &cx, dir, name).context(path)
}

pub fn rename(world: &World, from: &TreePath, to: &TreePath) -> Result<()> {
    let (tree, cx) = (&*world.tree, world.cx());
    let (a, b) = (walk::parent(tree, &cx, from)?, walk::parent(tree, &cx, to)?);
    tree.rename(&cx, a, b, RenameFlags::default()).context(format_args!("{from} to {to}"))
}

pub fn truncate(world: &World, path: &TreePath, size: u64) -> Result<()> {
    let cx = world.cx();
    let node = walk::resolve(&*world.tree, &cx, path)?;
    let set = SetAttr { size: Some(size), ..SetAttr::default() };
    world.tree.setattr(&cx, node.id, None, &set).context(path).map(drop)
}
