//! `search_code`: a regular expression over the lines of a tree's files, as `rg -n` shows them: without
//! binary, hidden and git-ignored files.

use super::{Args, Declaration, Kind, Outcome, Param, Place, ToolCode, ToolError};
use crate::base::{Deadline, Name, Result, TreePath};
use crate::vfs::{self, Attr, Cx, FileKind, NodeId, OpenFlags, Tree, walk};
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use regex::bytes::{Regex, RegexBuilder};
use serde_json::json;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Longest search; what was found until then is returned as `truncated`.
const TIMEOUT_MS: u64 = 30_000;
/// Most bytes of matches.
const OUTPUT_MAX: usize = 1 << 20;
/// Longest line that is shown; longer ones are cut.
const LINE_MAX: usize = 1000;
/// Files larger than this are no source code.
const FILE_MAX: u64 = 16 << 20;
/// A NUL among the first bytes tells a binary file.
const SNIFF: usize = 8192;
/// Size of the compiled expression.
const REGEX_MAX: usize = 4 << 20;
/// Most entries of one directory that are looked at.
const ENTRIES_MAX: usize = 100_000;
const DEPTH_MAX: usize = 64;
const IGNORE_FILE_MAX: usize = 256 * 1024;
const CHUNK: u32 = 256 * 1024;

pub(super) const SEARCH_CODE: Declaration = Declaration {
    name: "search_code",
    description: "Searches the files below a path for a regular expression, line by line. Hidden, \
                  git-ignored and binary files are left out.",
    params: &[
        Param { name: "query", kind: Kind::Text, doc: "A regular expression." },
        Param {
            name: "path",
            kind: Kind::TextOr("."),
            doc: "Where to search: a directory or file.",
        },
        Param {
            name: "case_sensitive",
            kind: Kind::Flag(false),
            doc: "Tell upper from lower case.",
        },
        Param {
            name: "max_results",
            kind: Kind::Count { default: 200, max: 5000 },
            doc: "Most lines to return; `truncated` tells whether there are more.",
        },
    ],
    run: search_code,
};

fn search_code(place: Place<'_>, args: &Args) -> Outcome {
    let invalid = |message: String| ToolError::new(ToolCode::InvalidParams, message);
    let query = args.text("query");
    if query.is_empty() {
        return Err(invalid("query is empty".into()));
    }
    let regex = RegexBuilder::new(query)
        .case_insensitive(!args.flag("case_sensitive"))
        .size_limit(REGEX_MAX)
        .build()
        .map_err(|e| invalid(format!("query is no regular expression: {e}")))?;
    let path = args.path("path")?;
    let started_with = place.cx;
    let cx = Cx {
        deadline: started_with.deadline.min(Deadline::after_ms(TIMEOUT_MS)),
        ..started_with.clone()
    };
    let node = walk::resolve(place.tree, &cx, &path)?;
    let mut search = Search {
        tree: place.tree,
        cx: &cx,
        regex,
        max: args.count("max_results"),
        matches: Vec::new(),
        bytes: 0,
    };
    let outcome = match node.kind {
        vfs::Kind::Dir => search.directory(node.id, &path, &mut Vec::new()),
        _ => search.file(&node, &path),
    };
    let truncated = match outcome {
        Ok(flow) => flow == Flow::Enough,
        // Out of time: what was found is worth telling, unless the whole operation is over.
        Err(_) if cx.deadline.passed() && started_with.check().is_ok() => true,
        Err(e) => return Err(e.into()),
    };
    Ok(json!({
        "path": args.text("path"),
        "query": query,
        "matches": search.matches,
        "count": search.matches.len(),
        "truncated": truncated,
    }))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    GoOn,
    Enough,
}

struct Search<'a> {
    tree: &'a dyn Tree,
    cx: &'a Cx,
    regex: Regex,
    max: usize,
    /// `path:line:text`.
    matches: Vec<String>,
    bytes: usize,
}

impl Search<'_> {
    /// `rules` are those of the directories above, outermost first.
    fn directory(
        &mut self,
        dir: NodeId,
        path: &TreePath,
        rules: &mut Vec<Gitignore>,
    ) -> Result<Flow> {
        self.cx.check()?;
        if rules.len() >= DEPTH_MAX {
            return Ok(Flow::GoOn);
        }
        // A directory that cannot be read does not end the search.
        let Ok((mut entries, _)) = walk::list(self.tree, self.cx, dir, ENTRIES_MAX) else {
            return self.cx.check().map(|()| Flow::GoOn);
        };
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let own = entries.iter().find(|e| e.name == ".gitignore");
        rules.push(own.map_or(Gitignore::empty(), |_| self.ignore_file(path)));
        for entry in &entries {
            let is_dir = entry.attr.kind == vfs::Kind::Dir;
            let Ok(name) = Name::new(&entry.name) else { continue };
            let path = path.join(name);
            if entry.name.as_bytes().starts_with(b".") || ignored(rules, &path, is_dir) {
                continue;
            }
            let flow = match entry.attr.kind {
                vfs::Kind::Dir => self.directory(entry.attr.id, &path, rules)?,
                vfs::Kind::File => self.file(&entry.attr, &path)?,
                // A link leads to what is found elsewhere, or in a circle.
                vfs::Kind::Symlink | vfs::Kind::Special => Flow::GoOn,
            };
            if flow == Flow::Enough {
                return Ok(flow);
            }
        }
        rules.pop();
        Ok(Flow::GoOn)
    }

    fn ignore_file(&self, dir: &TreePath) -> Gitignore {
        let name = Name::text(".gitignore").expect("a plain name");
        let text = walk::read_all(self.tree, self.cx, &dir.join(name), IGNORE_FILE_MAX);
        let mut builder = GitignoreBuilder::new(dir.as_os_str());
        for line in String::from_utf8_lossy(&text.unwrap_or_default()).lines() {
            // A line that is no pattern hides nothing.
            let _ = builder.add_line(None, line);
        }
        builder.build().unwrap_or_else(|_| Gitignore::empty())
    }

    /// Searches a file; one that is no plain file, too large or cannot be read is passed over.
    fn file(&mut self, attr: &Attr, path: &TreePath) -> Result<Flow> {
        self.cx.check()?;
        if attr.size > FILE_MAX {
            return Ok(Flow::GoOn);
        }
        let Ok(opened) = self.tree.open(self.cx, attr.id, OpenFlags::READ) else {
            return Ok(Flow::GoOn);
        };
        // Others wait, or do something, when they are read.
        let content = match opened.kind {
            FileKind::Plain => self.content(opened.handle),
            FileKind::Message | FileKind::Stream => Ok(Vec::new()),
        };
        self.tree.release(self.cx, opened.handle)?;
        match content {
            Ok(content) => Ok(self.lines(&content, path)),
            Err(_) => self.cx.check().map(|()| Flow::GoOn),
        }
    }

    /// Everything; nothing where it is binary.
    fn content(&self, handle: vfs::Handle) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        loop {
            let (bytes, eof) = walk::read(self.tree, self.cx, handle, content.len() as u64, CHUNK)?;
            if content.is_empty() && bytes[..bytes.len().min(SNIFF)].contains(&0) {
                return Ok(Vec::new());
            }
            content.extend_from_slice(&bytes);
            if eof || bytes.is_empty() || content.len() as u64 > FILE_MAX {
                return Ok(content);
            }
        }
    }

    fn lines(&mut self, content: &[u8], path: &TreePath) -> Flow {
        for (n, line) in content.split(|b| *b == b'\n').enumerate() {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if !self.regex.is_match(line) {
                continue;
            }
            if self.matches.len() == self.max || self.bytes > OUTPUT_MAX {
                return Flow::Enough;
            }
            let shown = &line[..line.len().min(LINE_MAX)];
            let found = format!("{path}:{}:{}", n + 1, String::from_utf8_lossy(shown));
            self.bytes += found.len();
            self.matches.push(found);
        }
        Flow::GoOn
    }
}

/// The innermost rule that says anything decides.
fn ignored(rules: &[Gitignore], path: &TreePath, is_dir: bool) -> bool {
    let path: &OsStr = path.as_os_str();
    let said = rules.iter().rev().map(|r| r.matched(path, is_dir)).find(|m| !m.is_none());
    said.is_some_and(|m| m.is_ignore())
}
