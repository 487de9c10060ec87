//! `file_read`, `file_write`, `file_list`.

use super::{Args, Declaration, Kind, Outcome, Param, Place, ToolCode, ToolError};
use crate::base::{Result, TreePath};
use crate::vfs::walk::{self, WriteMode};
use crate::vfs::{Cx, Handle, NodeId, OpenFlags, Read, Tree};
use serde_json::{Value, json};
use std::collections::VecDeque;

/// Largest single read of the tree.
const CHUNK: usize = 1 << 20;
/// Directories within directories that a recursive listing enters: trees may hold themselves.
const DEPTH_MAX: usize = 32;

const WAIT: Param = Param {
    name: "wait_until_ready",
    kind: Kind::Flag(true),
    doc: "Wait where the file makes its readers wait. With false, `ready` tells whether there was \
          anything.",
};

pub(super) const FILE_READ: Declaration = Declaration {
    name: "file_read",
    description: "Reads a file. Some files wait until they have something to tell, as the \
                  result of a job that still runs does.",
    params: &[
        Param { name: "path", kind: Kind::Text, doc: "Absolute path of the file." },
        Param {
            name: "max_bytes",
            kind: Kind::Count { default: 1 << 20, max: 8 << 20 },
            doc: "Most bytes to return; `truncated` tells whether there are more.",
        },
        WAIT,
    ],
    run: file_read,
};

pub(super) const FILE_WRITE: Declaration = Declaration {
    name: "file_write",
    description: "Writes a file, made if it is missing. A control file takes the content as one \
                  message and answers in `operation_result`.",
    params: &[
        Param { name: "path", kind: Kind::Text, doc: "Absolute path of the file." },
        Param { name: "content", kind: Kind::Text, doc: "What to write." },
        Param {
            name: "append",
            kind: Kind::Flag(false),
            doc: "Add at the end, rather than replace what is there.",
        },
        Param {
            name: "create_parents",
            kind: Kind::Flag(true),
            doc: "Make the directories on the way that are missing.",
        },
        WAIT,
    ],
    run: file_write,
};

pub(super) const FILE_LIST: Declaration = Declaration {
    name: "file_list",
    description: "Lists a directory.",
    params: &[
        Param { name: "path", kind: Kind::TextOr("."), doc: "Absolute path of the directory." },
        Param { name: "recursive", kind: Kind::Flag(false), doc: "List what is below, too." },
        Param {
            name: "max_entries",
            kind: Kind::Count { default: 500, max: 5000 },
            doc: "Most entries to return; `truncated` tells whether there are more.",
        },
    ],
    run: file_list,
};

fn file_read(place: Place<'_>, args: &Args) -> Outcome {
    let Place { tree, cx } = place;
    let path = args.path("path")?;
    let node = walk::resolve(tree, cx, &path)?;
    if node.kind == crate::vfs::Kind::Dir {
        let message = format!("{path} is a directory; list it with file_list");
        return Err(ToolError::new(ToolCode::ExecutionFailed, message));
    }
    let handle = tree.open(cx, node.id, OpenFlags::READ)?.handle;
    let (max, wait) = (args.count("max_bytes"), args.flag("wait_until_ready"));
    let outcome = read_up_to(tree, cx, handle, max + 1, wait);
    tree.release(cx, handle)?;
    let (mut bytes, ready) = outcome?;
    let truncated = bytes.len() > max;
    if truncated {
        bytes.truncate(cut_before_a_character(&bytes, max));
    }
    Ok(json!({
        "path": args.text("path"),
        "bytes": bytes.len(),
        "truncated": truncated,
        "content": String::from_utf8_lossy(&bytes),
        "ready": ready,
        "wait_until_ready": wait,
    }))
}

/// The first `max` bytes, and whether there was anything to read.
fn read_up_to(
    tree: &dyn Tree,
    cx: &Cx,
    handle: Handle,
    max: usize,
    wait: bool,
) -> Result<(Vec<u8>, bool)> {
    let mut all = Vec::new();
    while all.len() < max {
        let len = CHUNK.min(max - all.len()) as u32;
        let (bytes, eof) = match tree.read(cx, handle, all.len() as u64, len)? {
            Read::Data { bytes, eof } => (bytes, eof),
            Read::Wait(wait_for) if wait => {
                wait_for.block(cx.deadline, &cx.cancel)?;
                continue;
            }
            Read::Wait(_) => return Ok((Vec::new(), false)),
        };
        all.extend_from_slice(&bytes);
        if eof || bytes.is_empty() {
            break;
        }
    }
    Ok((all, true))
}

/// The last place up to `max` where no UTF-8 character is cut.
fn cut_before_a_character(bytes: &[u8], max: usize) -> usize {
    let continues = |at: usize| bytes.get(at).is_some_and(|b| b & 0xc0 == 0x80);
    (max.saturating_sub(3)..=max).rev().find(|at| !continues(*at)).unwrap_or(max)
}

fn file_write(place: Place<'_>, args: &Args) -> Outcome {
    let Place { tree, cx } = place;
    let path = args.path("path")?;
    if args.flag("create_parents") {
        make_parents(tree, cx, &path)?;
    }
    let append = args.flag("append");
    let mode = if append { WriteMode::Append } else { WriteMode::Replace };
    let written = walk::write_all(tree, cx, &path, args.text("content").as_bytes(), mode)?;
    let mut result = json!({
        "path": args.text("path"),
        "bytes_written": written.n,
        "append": append,
        "ready": true,
        "wait_until_ready": args.flag("wait_until_ready"),
    });
    if let Some(extra) = written.extra {
        result["operation_result"] = Value::Object(extra);
    }
    Ok(result)
}

fn make_parents(tree: &dyn Tree, cx: &Cx, path: &TreePath) -> Result<()> {
    let mut missing = Vec::new();
    let mut at = path.split_last().map(|(dir, _)| dir);
    while let Some(dir) = at {
        match walk::resolve(tree, cx, &dir) {
            Ok(_) => break,
            Err(e) if e.errno() != libc::ENOENT => return Err(e),
            Err(_) => {}
        }
        at = dir.split_last().map(|(parent, _)| parent);
        missing.push(dir);
    }
    for dir in missing.iter().rev() {
        let (parent, name) = walk::parent(tree, cx, dir)?;
        match tree.mkdir(cx, parent, name, 0o755) {
            Err(e) if e.errno() != libc::EEXIST => return Err(e.context(dir)),
            _ => {}
        }
    }
    Ok(())
}

fn file_list(place: Place<'_>, args: &Args) -> Outcome {
    let Place { tree, cx } = place;
    let path = args.path("path")?;
    let max = args.count("max_entries");
    let node = walk::resolve(tree, cx, &path)?;
    let mut entries: Vec<Value> = Vec::new();
    let mut truncated = false;
    let mut error = None;
    // Level by level: what is near is told even where there is too much.
    let mut todo: VecDeque<(NodeId, String, usize)> = [(node.id, String::new(), 0)].into();
    while let Some((dir, prefix, depth)) = todo.pop_front() {
        cx.check()?;
        let (found, more) = match walk::list(tree, cx, dir, max - entries.len()) {
            Ok(found) => found,
            Err(e) if depth == 0 => return Err(e.context(&path).into()),
            // One directory that cannot be read does not hide the others.
            Err(e) => {
                error.get_or_insert(format!("{prefix}: {e}"));
                continue;
            }
        };
        for entry in found {
            let name = format!("{prefix}{}", entry.name.display());
            entries.push(json!({"name": name, "type": type_name(entry.attr.kind)}));
            if entry.attr.kind == crate::vfs::Kind::Dir && args.flag("recursive") {
                todo.push_back((entry.attr.id, name + "/", depth + 1));
            }
        }
        truncated |= more || todo.front().is_some_and(|(_, _, depth)| *depth > DEPTH_MAX);
        if truncated {
            break;
        }
    }
    let mut result = json!({"path": args.text("path"), "entries": entries, "truncated": truncated});
    if let Some(error) = error {
        result["error"] = error.into();
    }
    Ok(result)
}

fn type_name(kind: crate::vfs::Kind) -> &'static str {
    match kind {
        crate::vfs::Kind::File => "file",
        crate::vfs::Kind::Dir => "directory",
        crate::vfs::Kind::Symlink => "symlink",
        crate::vfs::Kind::Special => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_character_is_cut() {
        let text = "aé漢🕸b".as_bytes();
        for max in 0..=text.len() {
            let cut = cut_before_a_character(text, max);
            assert!(
                std::str::from_utf8(&text[..cut]).is_ok() && cut <= max && max - cut < 4,
                "{max}"
            );
        }
        // Bytes that are no text are cut where it was asked.
        assert_eq!(cut_before_a_character(&[0x80; 9], 6), 6);
    }
}
