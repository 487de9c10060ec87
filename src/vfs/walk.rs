//! Whole operations on paths, for callers that are neither FUSE nor a protocol: resolve, read all,
//! write all, list. They block; message and stream files behave as under `cat` and `echo >`.

use super::{
    Attr, Cx, DirEntry, Handle, Kind, NodeId, OpenFlags, PageLimit, Read, ReadDir, Tree, Written,
};
use crate::base::{Code, Error, Name, Result, ResultExt, TreePath};
use bytes::Bytes;

/// Largest single read or write that these functions make.
const CHUNK: u32 = 1 << 20;
/// Symlinks followed in one resolution (Linux gives up at 40 too).
const SYMLINKS_MAX: u32 = 40;

/// The node at `path`; symlinks are followed, the last one too.
pub fn resolve(tree: &dyn Tree, cx: &Cx, path: &TreePath) -> Result<Attr> {
    let mut budget = SYMLINKS_MAX;
    let mut at = tree.getattr(cx, NodeId::ROOT)?;
    let mut here = TreePath::root();
    let mut todo: Vec<_> = path.names().rev().map(|n| n.as_os_str().to_owned()).collect();
    while let Some(segment) = todo.pop() {
        let name = Name::new(&segment)?;
        let next = tree.lookup(cx, at.id, name).context(here.join(name))?;
        if next.kind != Kind::Symlink {
            (at, here) = (next, here.join(name));
            continue;
        }
        budget = budget.checked_sub(1).ok_or_else(|| {
            Error::from_errno(libc::ELOOP, format!("{}: too many symlinks", here.join(name)))
        })?;
        // A target is resolved as a path of this tree; `..` in it climbs, but never out.
        let target = link_target(&here, &tree.readlink(cx, next.id)?)?;
        todo.extend(target.names().rev().map(|n| n.as_os_str().to_owned()));
        (at, here) = (tree.getattr(cx, NodeId::ROOT)?, TreePath::root());
    }
    Ok(at)
}

/// The path that a symlink found in directory `here` leads to.
fn link_target(here: &TreePath, target: &[u8]) -> Result<TreePath> {
    use std::os::unix::ffi::OsStrExt;
    let mut path = if target.starts_with(b"/") { TreePath::root() } else { here.clone() };
    for segment in target.split(|b| *b == b'/') {
        path = match segment {
            b"" | b"." => path,
            b".." => path.split_last().map_or_else(TreePath::root, |(parent, _)| parent),
            name => path.join(Name::new(std::ffi::OsStr::from_bytes(name))?),
        };
    }
    Ok(path)
}

/// The directory that holds `path`, and the name there. Errors: EINVAL for the root.
pub fn parent<'p>(tree: &dyn Tree, cx: &Cx, path: &'p TreePath) -> Result<(NodeId, Name<'p>)> {
    let Some((dir, _)) = path.split_last() else {
        return Err(Error::invalid("the root has no parent directory"));
    };
    let name = path.names().next_back().expect("a path that is not the root has a last name");
    let dir = resolve(tree, cx, &dir)?;
    if dir.kind != Kind::Dir {
        return Err(Error::from_errno(libc::ENOTDIR, format!("{path}: parent is not a directory")));
    }
    Ok((dir.id, name))
}

/// Reads once, waiting where the file makes its readers wait.
pub fn read(
    tree: &dyn Tree,
    cx: &Cx,
    handle: Handle,
    offset: u64,
    len: u32,
) -> Result<(Bytes, bool)> {
    loop {
        match tree.read(cx, handle, offset, len)? {
            Read::Data { bytes, eof } => return Ok((bytes, eof)),
            Read::Wait(wait) => wait.block(cx.deadline, &cx.cancel)?,
        }
    }
}

/// As [`read`], but fewer bytes than `len` only at the end of the file.
pub fn read_full(tree: &dyn Tree, cx: &Cx, handle: Handle, offset: u64, len: u32) -> Result<Bytes> {
    let (first, eof) = read(tree, cx, handle, offset, len)?;
    if eof || first.is_empty() || first.len() >= len as usize {
        return Ok(first);
    }
    let mut all = bytes::BytesMut::from(&first[..]);
    while all.len() < len as usize {
        let (at, left) = (offset + all.len() as u64, len - all.len() as u32);
        let (more, eof) = read(tree, cx, handle, at, left)?;
        all.extend_from_slice(&more);
        if eof || more.is_empty() {
            break;
        }
    }
    Ok(all.freeze())
}

/// Calls `each` with the file's content, piece by piece; `each` returns false to stop.
pub fn read_each(
    tree: &dyn Tree,
    cx: &Cx,
    path: &TreePath,
    mut each: impl FnMut(&[u8]) -> Result<bool>,
) -> Result<()> {
    let node = resolve(tree, cx, path)?;
    let opened = tree.open(cx, node.id, OpenFlags::READ).context(path)?;
    let mut run = || {
        let mut offset = 0;
        loop {
            let (bytes, eof) = read(tree, cx, opened.handle, offset, CHUNK)?;
            offset += bytes.len() as u64;
            if !each(&bytes)? || eof || bytes.is_empty() {
                return Ok(());
            }
        }
    };
    let outcome = run();
    let released = tree.release(cx, opened.handle);
    outcome.and(released).context(path)
}

/// The whole file. Errors: EFBIG when it is larger than `max` bytes.
pub fn read_all(tree: &dyn Tree, cx: &Cx, path: &TreePath, max: usize) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    read_each(tree, cx, path, |piece| {
        if all.len() + piece.len() > max {
            return Err(Error::from_errno(libc::EFBIG, format!("file is larger than {max} bytes")));
        }
        all.extend_from_slice(piece);
        Ok(true)
    })?;
    Ok(all)
}

/// How [`write_all`] treats what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMode {
    /// Creates the file when it is missing; its old content goes.
    Replace,
    /// Creates the file when it is missing; adds at its end.
    Append,
}

/// Writes the whole of `data`; a message file gets it as one message. Returns what the last write said.
pub fn write_all(
    tree: &dyn Tree,
    cx: &Cx,
    path: &TreePath,
    data: &[u8],
    mode: WriteMode,
) -> Result<Written> {
    let flags = OpenFlags {
        append: mode == WriteMode::Append,
        truncate: mode == WriteMode::Replace,
        ..OpenFlags::WRITE
    };
    let handle = match resolve(tree, cx, path) {
        Ok(node) => tree.open(cx, node.id, flags).context(path)?.handle,
        Err(e) if e.errno() == libc::ENOENT => {
            let (dir, name) = parent(tree, cx, path)?;
            tree.create(cx, dir, name, 0o644, flags).context(path)?.1.handle
        }
        Err(e) => return Err(e),
    };
    let write = || {
        let mut last = Written::default();
        let mut done = 0;
        while done < data.len() {
            let end = data.len().min(done + CHUNK as usize);
            last = tree.write(cx, handle, done as u64, Bytes::copy_from_slice(&data[done..end]))?;
            if last.n == 0 {
                return Err(Error::new(Code::Eio, "write made no progress"));
            }
            done += usize::try_from(last.n).unwrap_or(usize::MAX).min(end - done);
        }
        let extra = tree.flush(cx, handle)?.extra.or(last.extra);
        Ok(Written { n: done as u64, attr: last.attr, extra })
    };
    let outcome = write();
    let released = tree.release(cx, handle);
    outcome.and_then(|w| released.map(|()| w)).context(path)
}

/// Every entry of a directory, up to `max`; the flag says whether there are more.
pub fn list(tree: &dyn Tree, cx: &Cx, dir: NodeId, max: usize) -> Result<(Vec<DirEntry>, bool)> {
    let mut all: Vec<DirEntry> = Vec::new();
    let mut cookie = 0;
    loop {
        let left = max.saturating_sub(all.len());
        let limit =
            PageLimit { entries: left.clamp(1, PageLimit::DEFAULT.entries), ..PageLimit::DEFAULT };
        let page = tree.readdir(cx, ReadDir { dir, cookie, limit })?;
        if left == 0 {
            return Ok((all, !page.entries.is_empty()));
        }
        let Some(last) = page.entries.last() else { return Ok((all, false)) };
        cookie = last.cookie;
        all.extend(page.entries);
        if page.eof {
            return Ok((all, false));
        }
        cx.check()?;
    }
}
