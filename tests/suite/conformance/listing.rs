//! Reading directories page by page.

use super::{Check, ROOT, World, fails, is_gone, name};
use spiderweb::vfs::{DirEntry, NodeId, PageLimit, ReadDir};
use std::collections::HashMap;
use std::ffi::OsString;

pub(super) const CHECKS: &[Check] = &[
    ("entries carry their attributes", attributes),
    ("pages are bounded", bounds),
    ("what stays is listed exactly once", changes_between_pages),
    ("a walk goes on after any entry", any_cookie),
    ("emptying a directory while reading it", emptying),
];

fn page(w: &World<'_>, dir: NodeId, cookie: u64, limit: PageLimit) -> (Vec<DirEntry>, bool) {
    let page = w.tree.readdir(&w.cx, ReadDir { dir, cookie, limit }).unwrap();
    (page.entries, page.eof)
}

fn at_most(entries: usize) -> PageLimit {
    PageLimit { entries, ..PageLimit::DEFAULT }
}

fn attributes(w: &World<'_>) {
    let file = w.put(ROOT, "f", b"hello");
    let dir = w.mkdir(ROOT, "d");
    let entries = w.entries(ROOT);
    assert_eq!(entries.len(), 2);
    for e in &entries {
        assert_ne!(e.cookie, 0);
        assert_eq!(e.attr, w.lookup(ROOT, &e.name).unwrap());
        assert_eq!(e.attr.id, if e.name == "f" { file } else { dir });
    }
    let at = |dir| ReadDir { dir, cookie: 0, limit: PageLimit::DEFAULT };
    fails(libc::ENOTDIR, w.tree.readdir(&w.cx, at(file)));
    is_gone(w.tree.readdir(&w.cx, at(NodeId(0xff_ffff_fff0))));
}

fn bounds(w: &World<'_>) {
    for i in 0..50 {
        w.put(ROOT, format!("file-{i:02}"), b"");
    }
    let (entries, eof) = page(w, ROOT, 0, at_most(7));
    assert_eq!((entries.len(), eof), (7, false));
    let five = PageLimit { entries: 1000, bytes: 5 * (PageLimit::ENTRY_BYTES + 7) };
    assert_eq!(page(w, ROOT, 0, five).0.len(), 5);
    for limit in [at_most(0), PageLimit { entries: 1000, bytes: 0 }] {
        assert_eq!(page(w, ROOT, 0, limit).0.len(), 1, "a page makes progress");
    }
}

/// Walks through `dir`, calling `between` after each page.
fn walk(
    w: &World<'_>,
    dir: NodeId,
    entries: usize,
    mut between: impl FnMut(usize, &[DirEntry]),
) -> HashMap<OsString, u32> {
    let mut seen = HashMap::new();
    let (mut cookie, mut n) = (0, 0);
    loop {
        let (entries, eof) = page(w, dir, cookie, at_most(entries));
        for e in &entries {
            *seen.entry(e.name.clone()).or_default() += 1;
        }
        let Some(last) = entries.last() else { return seen };
        cookie = last.cookie;
        between(n, &entries);
        n += 1;
        if eof {
            return seen;
        }
    }
}

fn changes_between_pages(w: &World<'_>) {
    let dir = w.mkdir(ROOT, "d");
    for i in 0..300 {
        w.put(dir, format!("stay-{i}"), b"");
        w.put(dir, format!("go-{i}"), b"");
    }
    let seen = walk(w, dir, 17, |n, entries| {
        w.put(dir, format!("new-{n}"), b"");
        // Also the very entry that the next page starts after.
        for e in entries.iter().filter(|e| e.name.to_str().unwrap().starts_with("go-")) {
            w.tree.unlink(&w.cx, dir, name(&e.name)).unwrap();
        }
        // A second walk and a rename do not disturb the first.
        page(w, dir, 0, at_most(3));
        w.tree.getattr(&w.cx, dir).unwrap();
    });
    for i in 0..300 {
        assert_eq!(seen.get(&OsString::from(format!("stay-{i}"))), Some(&1), "stay-{i}");
    }
    assert!(seen.values().all(|n| *n == 1), "nothing is listed twice");
}

fn any_cookie(w: &World<'_>) {
    for i in 0..40 {
        w.put(ROOT, format!("f{i}"), b"");
    }
    let all: Vec<_> = w.entries(ROOT);
    for (i, e) in all.iter().enumerate() {
        let (rest, _) = page(w, ROOT, e.cookie, at_most(1000));
        let rest: Vec<_> = rest.into_iter().map(|e| e.name).collect();
        let expected: Vec<_> = all[i + 1..].iter().map(|e| e.name.clone()).collect();
        assert_eq!(rest, expected, "after entry {i}");
    }
}

fn emptying(w: &World<'_>) {
    let dir = w.mkdir(ROOT, "d");
    for i in 0..200 {
        w.put(dir, format!("f{i}"), b"");
    }
    let seen = walk(w, dir, 9, |_, entries| {
        for e in entries {
            w.tree.unlink(&w.cx, dir, name(&e.name)).unwrap();
        }
    });
    assert_eq!(seen.len(), 200);
    w.tree.rmdir(&w.cx, ROOT, name("d")).unwrap();
}
