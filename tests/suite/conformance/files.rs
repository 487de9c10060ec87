//! Reading and writing.

use super::{Check, ROOT, World, fails, is_gone, name, unsupported};
use bytes::Bytes;
use spiderweb::base::Deadline;
use spiderweb::vfs::{
    Access, Attr, FileKind, Handle, Kind, LockKind, LockRequest, NodeId, OpenFlags, Read,
    RenameFlags, SetAttr, SetTime,
};

pub(super) const CHECKS: &[Check] = &[
    ("the root is a directory", root),
    ("what is written is read", write_and_read),
    ("offsets, holes and the end", offsets),
    ("open flags", flags),
    ("handles end when released", handles),
    ("access modes hold", access),
    ("an unlinked file lives while open", unlinked),
    ("an open file follows its rename", renamed),
    ("sizes and times can be set", set_attr),
    ("modes can be set, but not set-id bits", set_mode),
    ("locks", locks),
    ("free space is told", statfs),
];

fn root(w: &World<'_>) {
    let attr = w.tree.getattr(&w.cx, ROOT).unwrap();
    assert_eq!((attr.id, attr.kind), (ROOT, Kind::Dir));
    assert_eq!(attr.mode & libc::S_IFMT, libc::S_IFDIR);
    is_gone(w.tree.getattr(&w.cx, NodeId(0xff_ffff_ffff)));
    fails(libc::EISDIR, w.tree.open(&w.cx, ROOT, OpenFlags::READ));
    assert!(w.entries(ROOT).is_empty());
}

fn write_and_read(w: &World<'_>) {
    let id = w.put(ROOT, "a", b"hello");
    let attr = w.lookup(ROOT, "a").unwrap();
    assert_eq!((attr.id, attr.kind, attr.size, attr.nlink), (id, Kind::File, 5, 1));
    assert_eq!(attr.mode & libc::S_IFMT, libc::S_IFREG);
    assert_eq!(w.tree.getattr(&w.cx, id).unwrap(), attr);
    assert_eq!(w.get(id), b"hello");
    w.tree.forget(id);
    assert_eq!(w.lookup(ROOT, "a").unwrap().id, id);
    let big: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let big_id = w.put(ROOT, "big", &big);
    assert!(w.get(big_id) == big);
    let opened = w.tree.open(&w.cx, id, OpenFlags::READ).unwrap();
    assert_eq!(opened.kind, FileKind::Plain);
    w.tree.release(&w.cx, opened.handle).unwrap();
}

fn offsets(w: &World<'_>) {
    let (attr, h) = w.create(ROOT, "f", OpenFlags::READ_WRITE).unwrap();
    w.write(h, 10, b"end");
    assert_eq!(w.read(h, 0, 100), b"\0\0\0\0\0\0\0\0\0\0end");
    w.write(h, 0, b"start");
    assert_eq!(w.read(h, 3, 4), b"rt\0\0");
    assert_eq!(w.read(h, 13, 10), b"");
    assert_eq!(w.read(h, 1 << 40, 10), b"");
    assert_eq!(w.read(h, 0, 0), b"");
    let Read::Data { eof, .. } = w.tree.read(&w.cx, h, 10, 100).unwrap() else { panic!() };
    assert!(eof, "a read that comes short has reached the end");
    let Read::Data { eof, .. } = w.tree.read(&w.cx, h, 0, 2).unwrap() else { panic!() };
    assert!(!eof);
    w.write(h, 5, b"");
    assert_eq!(w.tree.getattr(&w.cx, attr.id).unwrap().size, 13);
    w.tree.release(&w.cx, h).unwrap();
}

fn flags(w: &World<'_>) {
    let id = w.put(ROOT, "f", b"one");
    let append = OpenFlags { append: true, ..OpenFlags::WRITE };
    let h = w.open(id, append);
    w.write(h, 0, b"two");
    w.write(h, 0, b"three");
    w.tree.release(&w.cx, h).unwrap();
    assert_eq!(w.get(id), b"onetwothree");

    let exclusive = OpenFlags { exclusive: true, ..OpenFlags::WRITE };
    fails(libc::EEXIST, w.create(ROOT, "f", exclusive));
    let (attr, h) = w.create(ROOT, "f", OpenFlags::READ).unwrap();
    assert_eq!((attr.id, w.read(h, 0, 3)), (id, b"one".to_vec()));
    w.tree.release(&w.cx, h).unwrap();

    let h = w.open(id, OpenFlags { truncate: true, ..OpenFlags::WRITE });
    assert_eq!(w.tree.getattr(&w.cx, id).unwrap().size, 0);
    w.write(h, 2, b"x");
    w.tree.release(&w.cx, h).unwrap();
    assert_eq!(w.get(id), b"\0\0x");

    w.mkdir(ROOT, "d");
    fails(libc::EISDIR, w.create(ROOT, "d", OpenFlags::WRITE));
    fails(libc::ENOTDIR, w.create(id, "x", OpenFlags::WRITE));
}

fn handles(w: &World<'_>) {
    let id = w.put(ROOT, "f", b"x");
    let h = w.open(id, OpenFlags::READ_WRITE);
    let other = w.open(id, OpenFlags::READ);
    assert_ne!(h, other);
    w.tree.fsync(&w.cx, h, true).unwrap();
    w.tree.release(&w.cx, h).unwrap();
    for bad in [h, Handle(0), Handle((1 << 53) - 1)] {
        fails(libc::EBADF, w.tree.read(&w.cx, bad, 0, 1).map(|_| ()));
        fails(libc::EBADF, w.tree.write(&w.cx, bad, 0, Bytes::from_static(b"y")));
        fails(libc::EBADF, w.tree.flush(&w.cx, bad));
        fails(libc::EBADF, w.tree.release(&w.cx, bad));
    }
    assert_eq!(w.read(other, 0, 9), b"x");
    w.tree.release(&w.cx, other).unwrap();
}

fn access(w: &World<'_>) {
    let id = w.put(ROOT, "f", b"x");
    let h = w.open(id, OpenFlags::READ);
    fails(libc::EBADF, w.tree.write(&w.cx, h, 0, Bytes::from_static(b"y")));
    w.tree.release(&w.cx, h).unwrap();
    let h = w.open(id, OpenFlags { access: Access::Write, ..OpenFlags::READ });
    fails(libc::EBADF, w.tree.read(&w.cx, h, 0, 1).map(|_| ()));
    w.tree.release(&w.cx, h).unwrap();
}

fn unlinked(w: &World<'_>) {
    let id = w.put(ROOT, "f", b"keep");
    let h = w.open(id, OpenFlags::READ_WRITE);
    w.tree.unlink(&w.cx, ROOT, name("f")).unwrap();
    fails(libc::ENOENT, w.lookup(ROOT, "f"));
    let other = w.put(ROOT, "f", b"new");
    assert_ne!(other, id, "an id never names another file");
    w.write(h, 4, b"!");
    assert_eq!(w.read(h, 0, 9), b"keep!");
    assert_eq!(w.tree.getattr(&w.cx, id).unwrap().size, 5);
    let set = SetAttr { size: Some(2), ..SetAttr::default() };
    assert_eq!(w.tree.setattr(&w.cx, id, Some(h), &set).unwrap().size, 2);
    w.tree.release(&w.cx, h).unwrap();
    // Nobody waits for a far node to close the file, with which it goes.
    let until = Deadline::after_ms(20_000);
    while w.tree.getattr(&w.cx, id).is_ok() && !until.passed() {
        std::thread::yield_now();
    }
    is_gone(w.tree.getattr(&w.cx, id));
    assert_eq!(w.get(other), b"new");
}

fn renamed(w: &World<'_>) {
    let dir = w.mkdir(ROOT, "d");
    let id = w.put(ROOT, "f", b"x");
    let h = w.open(id, OpenFlags::READ_WRITE);
    let flags = RenameFlags::default();
    w.tree.rename(&w.cx, (ROOT, name("f")), (dir, name("g")), flags).unwrap();
    w.write(h, 1, b"y");
    w.tree.release(&w.cx, h).unwrap();
    let attr = w.lookup(dir, "g").unwrap();
    assert_eq!((attr.id, attr.size), (id, 2));
    assert_eq!(w.tree.getattr(&w.cx, id).unwrap().size, 2);
    assert_eq!(w.get(id), b"xy");
}

fn set_attr(w: &World<'_>) {
    let id = w.put(ROOT, "f", b"hello");
    let size = |size| SetAttr { size: Some(size), ..SetAttr::default() };
    assert_eq!(w.tree.setattr(&w.cx, id, None, &size(2)).unwrap().size, 2);
    assert_eq!(w.tree.setattr(&w.cx, id, None, &size(4)).unwrap().size, 4);
    assert_eq!(w.get(id), b"he\0\0");
    let dir = w.mkdir(ROOT, "d");
    fails(libc::EISDIR, w.tree.setattr(&w.cx, dir, None, &size(0)));
    let ns = 1_700_000_000_123_000_000;
    let times = SetAttr { mtime: Some(SetTime::At { ns }), ..SetAttr::default() };
    let attr = w.tree.setattr(&w.cx, id, None, &times).unwrap();
    assert_eq!((attr.mtime_ns, attr.size), (ns, 4));
    assert_eq!(w.lookup(ROOT, "f").unwrap().mtime_ns, ns);
    let now = SetAttr { mtime: Some(SetTime::Now), ..SetAttr::default() };
    assert!(w.tree.setattr(&w.cx, id, None, &now).unwrap().mtime_ns > ns);
}

fn set_mode(w: &World<'_>) {
    let id = w.put(ROOT, "f", b"");
    let mode = |mode| SetAttr { mode: Some(mode), ..SetAttr::default() };
    fails(libc::EPERM, w.tree.setattr(&w.cx, id, None, &mode(0o4755)));
    fails(libc::EPERM, w.tree.setattr(&w.cx, id, None, &mode(0o2755)));
    if w.fixture.host_like {
        let attr = w.tree.setattr(&w.cx, id, None, &mode(0o640)).unwrap();
        assert_eq!(attr.mode & 0o7777, 0o640);
    }
    let (attr, opened) = w.tree.create(&w.cx, ROOT, name("s"), 0o6777, OpenFlags::WRITE).unwrap();
    assert_eq!(attr.mode & 0o7000, 0);
    w.tree.release(&w.cx, opened.handle).unwrap();
}

fn locks(w: &World<'_>) {
    let id = w.put(ROOT, "f", b"");
    let (a, b) = (w.open(id, OpenFlags::READ_WRITE), w.open(id, OpenFlags::READ_WRITE));
    let lock = |h, kind, owner| w.tree.lock(&w.cx, h, LockRequest { kind, owner, range: None });
    if !w.tree.caps().locks {
        return assert!(unsupported(&lock(a, LockKind::Shared, 1).unwrap_err()));
    }
    lock(a, LockKind::Shared, 1).unwrap();
    lock(b, LockKind::Shared, 2).unwrap();
    fails(libc::EAGAIN, lock(a, LockKind::Exclusive, 1));
    fails(libc::EAGAIN, lock(b, LockKind::Exclusive, 2));
    lock(b, LockKind::Unlock, 2).unwrap();
    lock(a, LockKind::Exclusive, 1).unwrap();
    fails(libc::EAGAIN, lock(b, LockKind::Shared, 2));
    fails(libc::EAGAIN, lock(a, LockKind::Shared, 3));
    lock(a, LockKind::Unlock, 3).unwrap();
    fails(libc::EAGAIN, lock(b, LockKind::Shared, 2));
    w.tree.release(&w.cx, a).unwrap();
    lock(b, LockKind::Exclusive, 2).unwrap();
    w.tree.release(&w.cx, b).unwrap();
}

fn statfs(w: &World<'_>) {
    let s = w.tree.statfs(&w.cx, ROOT).unwrap();
    assert!(s.bsize > 0 && s.frsize > 0 && s.namemax >= 255);
    assert!(s.blocks >= s.bfree && s.bfree >= s.bavail && s.blocks > 0);
    let _: Attr = w.tree.getattr(&w.cx, ROOT).unwrap();
}
