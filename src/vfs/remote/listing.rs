//! Reading directories of a node: by its own cookies, or, of an old node, by counting entries.

use super::export::{Remote, unexpected};
use super::link::Link;
use crate::base::{Code, Error, Name, Result, ResultExt};
use crate::vfs::{Cx, DirEntry, DirPage, ReadDir};
use crate::wire::fs::{Call, Op, Reply};

impl Remote {
    /// The next page that has something in it.
    pub(super) fn list(&self, cx: &Cx, at: ReadDir) -> Result<DirPage> {
        let mut at = at;
        loop {
            let page = self.page(cx, at)?;
            // `.` and `..` are taken out; what is left must not look like the end.
            match page.1 {
                Some(next) if page.0.entries.is_empty() && !page.0.eof && next > at.cookie => {
                    at.cookie = next;
                }
                _ => return Ok(page.0),
            }
        }
    }

    /// A page as the node gives it, without `.` and `..`, and where the next begins.
    fn page(&self, cx: &Cx, at: ReadDir) -> Result<(DirPage, Option<u64>)> {
        let make = |link: &Link| {
            Ok(Call::Readdirp {
                dir: self.wire(cx, link, at.dir)?,
                cookie: at.cookie,
                max: entries(link, &at),
                bytes: at.limit.bytes.max(1).try_into().unwrap_or(u32::MAX),
            })
        };
        self.run(cx, Op::Readdirp, make, |link, reply| {
            let Reply::Dir { entries, next, eof, dir_gen } = reply else {
                return Err(unexpected(Op::Readdirp));
            };
            let mut page = DirPage { entries: Vec::new(), eof, generation: dir_gen };
            for (i, e) in entries.iter().enumerate() {
                if e.name == "." || e.name == ".." {
                    continue;
                }
                // A name that could not be a name (a hostile node) is not passed on.
                Name::new(&e.name).map_err(|e| e.recode(Code::Unavailable)).context("listing")?;
                let cookie = e.cookie.unwrap_or(at.cookie + i as u64 + 1);
                let attr = self.attr(link, &e.attr, at.dir, &e.name);
                page.entries.push(DirEntry { name: e.name.clone(), attr, cookie });
            }
            let last = page.entries.last().map(|e| e.cookie);
            if !eof && last.is_some_and(|last| last == at.cookie || next == at.cookie) {
                let text = "the node's listing comes back to where it was";
                return Err(Error::new(Code::Unavailable, text));
            }
            Ok((page, Some(next)))
        })
    }
}

/// How many entries to ask for. Of an old node `.` and `..` come first, and do not count.
fn entries(link: &Link, at: &ReadDir) -> u32 {
    let dots = if !link.is_ours() { 2u64.saturating_sub(at.cookie) } else { 0 };
    (at.limit.entries.max(1) as u64 + dots).try_into().unwrap_or(u32::MAX)
}
