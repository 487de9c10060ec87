//! Names: making, removing, moving and linking, and what watchers hear of it.

use super::{Check, ROOT, World, fails, is_gone, name, record, unsupported};
use spiderweb::vfs::{Event, Kind, NodeId, OpenFlags, RenameFlags, SetAttr, XattrFlags};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

pub(super) const CHECKS: &[Check] = &[
    ("names lead to the right errors", errors),
    ("directories", directories),
    ("rename", rename),
    ("rename with flags", rename_flags),
    ("a renamed directory keeps what is below it", rename_below),
    ("symlinks", symlinks),
    ("hard links", links),
    ("names are bytes", byte_names),
    ("extended attributes", xattrs),
    ("watchers hear of changes before the call returns", events),
    ("many threads in one directory", threads),
];

fn errors(w: &World<'_>) {
    let file = w.put(ROOT, "f", b"");
    let dir = w.mkdir(ROOT, "d");
    w.put(dir, "x", b"");
    let (cx, t) = (&w.cx, w.tree);
    fails(libc::ENOENT, w.lookup(ROOT, "none"));
    fails(libc::ENOTDIR, w.lookup(file, "x"));
    fails(libc::EEXIST, t.mkdir(cx, ROOT, name("f"), 0o755));
    fails(libc::EEXIST, t.mkdir(cx, ROOT, name("d"), 0o755));
    fails(libc::ENOTDIR, t.mkdir(cx, file, name("x"), 0o755));
    fails(libc::ENOENT, t.unlink(cx, ROOT, name("none")));
    fails(libc::EISDIR, t.unlink(cx, ROOT, name("d")));
    fails(libc::ENOENT, t.rmdir(cx, ROOT, name("none")));
    fails(libc::ENOTDIR, t.rmdir(cx, ROOT, name("f")));
    fails(libc::ENOTEMPTY, t.rmdir(cx, ROOT, name("d")));
    assert_eq!(w.names(ROOT), ["d", "f"]);
}

fn directories(w: &World<'_>) {
    let a = w.tree.mkdir(&w.cx, ROOT, name("a"), 0o755).unwrap();
    assert_eq!((a.kind, a.mode & libc::S_IFMT), (Kind::Dir, libc::S_IFDIR));
    let b = w.mkdir(a.id, "b");
    assert_eq!(w.lookup(ROOT, "a").unwrap().id, a.id);
    assert_eq!(w.lookup(a.id, "b").unwrap().id, b);
    w.put(b, "f", b"deep");
    w.tree.unlink(&w.cx, b, name("f")).unwrap();
    w.tree.rmdir(&w.cx, a.id, name("b")).unwrap();
    is_gone(w.tree.getattr(&w.cx, b));
    is_gone(w.lookup(b, "f"));
    is_gone(w.create(b, "f", OpenFlags::WRITE));
    w.tree.rmdir(&w.cx, ROOT, name("a")).unwrap();
    let again = w.mkdir(ROOT, "a");
    assert_ne!(again, a.id, "an id never names another directory");
}

fn rename(w: &World<'_>) {
    let mv = |from: (NodeId, &str), to: (NodeId, &str)| {
        let flags = RenameFlags::default();
        w.tree.rename(&w.cx, (from.0, name(from.1)), (to.0, name(to.1)), flags)
    };
    let (a, b) = (w.put(ROOT, "a", b"A"), w.put(ROOT, "b", b"B"));
    mv((ROOT, "a"), (ROOT, "b")).unwrap();
    assert_eq!(w.names(ROOT), ["b"]);
    assert_eq!((w.lookup(ROOT, "b").unwrap().id, w.get(a)), (a, b"A".to_vec()));
    is_gone(w.tree.getattr(&w.cx, b));
    mv((ROOT, "b"), (ROOT, "b")).unwrap();
    fails(libc::ENOENT, mv((ROOT, "none"), (ROOT, "c")));

    let (d, e) = (w.mkdir(ROOT, "d"), w.mkdir(ROOT, "e"));
    fails(libc::EISDIR, mv((ROOT, "b"), (ROOT, "d")));
    fails(libc::ENOTDIR, mv((ROOT, "d"), (ROOT, "b")));
    fails(libc::EINVAL, mv((ROOT, "d"), (d, "d")));
    let inner = w.mkdir(d, "inner");
    fails(libc::EINVAL, mv((ROOT, "d"), (inner, "d")));
    fails(libc::ENOTEMPTY, mv((ROOT, "e"), (ROOT, "d")));
    fails(libc::ENOTEMPTY, mv((d, "inner"), (ROOT, "d")));
    w.put(d, "file", b"");
    fails(libc::ENOTEMPTY, mv((d, "file"), (ROOT, "d")));
    w.tree.unlink(&w.cx, d, name("file")).unwrap();
    mv((ROOT, "d"), (ROOT, "e")).unwrap();
    is_gone(w.tree.getattr(&w.cx, e));
    assert_eq!(w.lookup(ROOT, "e").unwrap().id, d);
    mv((ROOT, "b"), (inner, "b")).unwrap();
    assert_eq!((w.names(ROOT), w.names(inner)), (vec!["e".into()], vec!["b".into()]));
}

fn rename_flags(w: &World<'_>) {
    let (a, b) = (w.put(ROOT, "a", b"A"), w.put(ROOT, "b", b"B"));
    let no_replace = RenameFlags { no_replace: true, ..RenameFlags::default() };
    let exchange = RenameFlags { exchange: true, ..RenameFlags::default() };
    let mv = |from: &str, to: &str, flags| {
        w.tree.rename(&w.cx, (ROOT, name(from)), (ROOT, name(to)), flags)
    };
    fails(libc::EEXIST, mv("a", "b", no_replace));
    mv("a", "c", no_replace).unwrap();
    assert_eq!(w.lookup(ROOT, "c").unwrap().id, a);
    mv("c", "b", exchange).unwrap();
    assert_eq!((w.lookup(ROOT, "b").unwrap().id, w.lookup(ROOT, "c").unwrap().id), (a, b));
    assert_eq!((w.get(a), w.get(b)), (b"A".to_vec(), b"B".to_vec()));
    fails(libc::ENOENT, mv("c", "none", exchange));
}

fn rename_below(w: &World<'_>) {
    let a = w.mkdir(ROOT, "a");
    let b = w.mkdir(a, "b");
    let f = w.put(b, "f", b"x");
    let c = w.mkdir(ROOT, "c");
    w.tree.rename(&w.cx, (ROOT, name("a")), (c, name("z")), RenameFlags::default()).unwrap();
    assert_eq!(w.tree.path(&w.cx, f).unwrap().as_os_str(), "/c/z/b/f");
    assert_eq!(w.get(f), b"x");
    assert_eq!(w.lookup(b, "f").unwrap().id, f);
    w.put(b, "g", b"y");
    assert_eq!(w.names(b), ["f", "g"]);
    fails(libc::ENOENT, w.lookup(ROOT, "a"));
}

fn symlinks(w: &World<'_>) {
    let made = w.tree.symlink(&w.cx, ROOT, name("s"), b"../else/where");
    if !w.tree.caps().symlink {
        return assert!(unsupported(&made.unwrap_err()));
    }
    let made = made.unwrap();
    let found = w.lookup(ROOT, "s").unwrap();
    assert_eq!((made.kind, found.kind, found.id), (Kind::Symlink, Kind::Symlink, made.id));
    assert_eq!(&*w.tree.readlink(&w.cx, made.id).unwrap(), b"../else/where");
    assert_eq!(w.entries(ROOT)[0].attr.kind, Kind::Symlink);
    fails(libc::EEXIST, w.tree.symlink(&w.cx, ROOT, name("s"), b"x"));
    let file = w.put(ROOT, "f", b"");
    fails(libc::EINVAL, w.tree.readlink(&w.cx, file));
    fails(libc::ELOOP, w.tree.open(&w.cx, made.id, OpenFlags::READ));
    fails(libc::ENOTDIR, w.lookup(made.id, "x"));
    w.tree.unlink(&w.cx, ROOT, name("s")).unwrap();
    fails(libc::ENOENT, w.lookup(ROOT, "s"));
}

fn links(w: &World<'_>) {
    let id = w.put(ROOT, "a", b"one");
    let dir = w.mkdir(ROOT, "d");
    let linked = w.tree.link(&w.cx, id, dir, name("b"));
    if !w.fixture.links {
        return assert!(unsupported(&linked.unwrap_err()));
    }
    let linked = linked.unwrap();
    assert_eq!((linked.id, linked.nlink), (id, 2));
    assert_eq!(w.lookup(dir, "b").unwrap().id, id);
    fails(libc::EEXIST, w.tree.link(&w.cx, id, dir, name("b")));
    fails(libc::EPERM, w.tree.link(&w.cx, dir, ROOT, name("x")));
    for (d, n) in [(dir, "b"), (ROOT, "a")] {
        assert_eq!(w.tree.getattr(&w.cx, id).unwrap().size, 3);
        w.tree.unlink(&w.cx, d, name(n)).unwrap();
    }
    is_gone(w.tree.getattr(&w.cx, id));
}

fn byte_names(w: &World<'_>) {
    let raw = OsStr::from_bytes(b"caf\xe9 \n\\");
    if !w.fixture.host_like {
        return fails(libc::EINVAL, w.create(ROOT, raw, OpenFlags::WRITE));
    }
    let id = w.put(ROOT, raw, b"x");
    assert_eq!(w.lookup(ROOT, raw).unwrap().id, id);
    assert_eq!(w.names(ROOT), [raw]);
    w.tree.unlink(&w.cx, ROOT, name(raw)).unwrap();
    let long = "n".repeat(255);
    w.put(ROOT, &long, b"");
    assert_eq!(w.names(ROOT), [long.as_str()]);
}

fn xattrs(w: &World<'_>) {
    let id = w.put(ROOT, "f", b"");
    let set = |n: &[u8], v: &[u8], flags| w.tree.setxattr(&w.cx, id, n, v, flags);
    let first = set(b"user.a", b"one", XattrFlags::Any);
    if !w.tree.caps().xattr {
        return assert!(unsupported(&first.unwrap_err()));
    }
    first.unwrap();
    fails(libc::EEXIST, set(b"user.a", b"two", XattrFlags::Create));
    fails(libc::ENODATA, set(b"user.b", b"two", XattrFlags::Replace));
    set(b"user.a", b"two\0", XattrFlags::Replace).unwrap();
    assert_eq!(&*w.tree.getxattr(&w.cx, id, b"user.a").unwrap(), b"two\0");
    fails(libc::ENODATA, w.tree.getxattr(&w.cx, id, b"user.b"));
    fails(libc::ENODATA, w.tree.getxattr(&w.cx, id, b"security.capability"));
    fails(libc::EPERM, set(b"security.capability", b"x", XattrFlags::Any));
    fails(libc::EPERM, set(b"trusted.x", b"x", XattrFlags::Any));
    assert_eq!(w.tree.listxattr(&w.cx, id).unwrap(), [b"user.a".to_vec()]);
    w.tree.removexattr(&w.cx, id, b"user.a").unwrap();
    fails(libc::ENODATA, w.tree.removexattr(&w.cx, id, b"user.a"));
    assert!(w.tree.listxattr(&w.cx, id).unwrap().is_empty());
}

/// An event without its generation, which is for information only.
fn bare(e: Event) -> Event {
    match e {
        Event::Data { node, .. } => Event::Data { node, generation: None },
        Event::All { node, .. } => Event::All { node, generation: None },
        Event::Entry { dir, .. } => Event::Dir(dir),
        other => other,
    }
}

fn events(w: &World<'_>) {
    let (dir, dir2) = (w.mkdir(ROOT, "d"), w.mkdir(ROOT, "d2"));
    let (watch, events) = record(w.tree);
    let heard = || -> Vec<Event> {
        let mut all: Vec<_> =
            std::mem::take(&mut *events.lock().unwrap()).into_iter().map(bare).collect();
        // A watched directory's times may be told once more, later.
        all.retain(|e| ![ROOT, dir, dir2].iter().any(|d| *e == Event::Attr(*d)));
        all.dedup();
        all
    };
    let all = |node| Event::All { node, generation: None };
    let data = |node| Event::Data { node, generation: None };

    let (attr, h) = w.create(dir, "f", OpenFlags::WRITE).unwrap();
    assert_eq!(heard(), [Event::Dir(dir), all(attr.id)]);
    w.write(h, 0, b"x");
    assert_eq!(heard(), [data(attr.id)]);
    w.tree.release(&w.cx, h).unwrap();
    let set = SetAttr { size: Some(0), ..SetAttr::default() };
    w.tree.setattr(&w.cx, attr.id, None, &set).unwrap();
    assert_eq!(heard(), [all(attr.id)]);
    let flags = RenameFlags::default();
    w.tree.rename(&w.cx, (dir, name("f")), (dir2, name("g")), flags).unwrap();
    assert_eq!(heard(), [Event::Dir(dir), Event::Dir(dir2), all(attr.id)]);
    w.tree.rename(&w.cx, (dir2, name("g")), (dir2, name("h")), flags).unwrap();
    assert_eq!(heard(), [Event::Dir(dir2), all(attr.id)]);
    w.tree.unlink(&w.cx, dir2, name("h")).unwrap();
    w.mkdir(dir, "x");
    w.tree.rmdir(&w.cx, dir, name("x")).unwrap();
    // That the file has a link less may be told as well.
    let mut told = heard();
    told.retain(|e| matches!(e, Event::Dir(_)));
    told.dedup();
    assert_eq!(told, [Event::Dir(dir2), Event::Dir(dir)]);
    fails(libc::ENOENT, w.tree.unlink(&w.cx, dir, name("none")));
    assert_eq!(heard(), []);
    drop(watch);
    w.put(dir, "f", b"x");
    assert_eq!(heard(), []);
}

fn threads(w: &World<'_>) {
    let dir = w.mkdir(ROOT, "d");
    std::thread::scope(|s| {
        for t in 0..4 {
            s.spawn(move || {
                let w = World::new(w.fixture);
                for i in 0..50 {
                    let n = format!("t{t}-{i}");
                    let id = w.put(dir, &n, n.as_bytes());
                    assert_eq!(w.get(id), n.as_bytes());
                    if i % 2 == 0 {
                        w.tree.unlink(&w.cx, dir, name(&n)).unwrap();
                    }
                    assert_eq!(
                        w.create(dir, "same", OpenFlags::READ)
                            .map(|(_, h)| h)
                            .map(|h| w.tree.release(&w.cx, h)),
                        Ok(Ok(()))
                    );
                }
            });
        }
    });
    assert_eq!(w.names(dir).len(), 4 * 25 + 1);
}
