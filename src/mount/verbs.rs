//! The commands that read and change one tree from a shell, as text on standard output (spec: fs 17).

use super::copy::{self, Job, Silent};
use super::world::World;
use crate::base::{Cancel, Error, Name, Result, ResultExt, TreePath};
use crate::vfs::walk;
use crate::vfs::{
    self, Attr, Cx, DirEntry, DirPage, Kind, PageLimit, ReadDir, RenameFlags, SetAttr, Tree,
};
use crate::wire::Object;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;

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
pub fn cat(world: &World, path: &TreePath, out: &mut (dyn Write + Send)) -> Result<()> {
    let job = Job { world, cancel: &Cancel::new(), recursive: false, progress: &Silent };
    match copy::fetch(&job, path, out) {
        Err(e) if e.errno() == libc::EPIPE => Ok(()),
        outcome => outcome,
    }
}

/// `>`: the file's content becomes what `input` gives, and it is made where it is missing. A message
/// file gets one message.
pub fn write(world: &World, path: &TreePath, input: &mut (dyn Read + Send)) -> Result<()> {
    let job = Job { world, cancel: &Cancel::new(), recursive: false, progress: &Silent };
    copy::store(&job, "standard input", input, path)
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
