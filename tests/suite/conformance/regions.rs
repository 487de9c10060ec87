//! Parts of files: locks of ranges, holes, and bytes that are copied without being read. Trees that are
//! not like a host directory say that they do not serve them.

use super::{Check, ROOT, World, fails, unsupported};
use spiderweb::base::Result;
use spiderweb::vfs::{
    Allocate, Handle, LockKind, LockRequest, NodeId, OpenFlags, Range, SeekTo, Written,
};

pub(super) const CHECKS: &[Check] = &[
    ("locks of ranges", locks),
    ("ranges split and merge", splits),
    ("locks of ranges go with their handle", release),
    ("space is reserved, zeroed and given back", allocate),
    ("holes are found", holes),
    ("bytes are copied between files", copy),
];

const KIB: u64 = 1024;

impl World<'_> {
    /// Two handles of a fresh file; `None` where there are no such locks.
    fn lockable(&self) -> Option<(NodeId, Handle, Handle)> {
        let id = self.put(ROOT, "f", b"0123456789");
        let (a, b) = (self.open(id, OpenFlags::READ_WRITE), self.open(id, OpenFlags::READ_WRITE));
        if self.fixture.host_like {
            return Some((id, a, b));
        }
        assert!(unsupported(&self.lock(a, 1, LockKind::Shared, 0, 1).unwrap_err()));
        None
    }

    fn lock(&self, h: Handle, owner: u64, kind: LockKind, start: u64, end: u64) -> Result<()> {
        let range = Some(Range { start, end });
        self.tree.lock(&self.cx, h, LockRequest { kind, owner, range })
    }

    /// What would bar an exclusive lock.
    fn bars(&self, h: Handle, owner: u64, start: u64, end: u64) -> Option<(LockKind, Range)> {
        let kind = LockKind::Exclusive;
        let request = LockRequest { kind, owner, range: Some(Range { start, end }) };
        let found = self.tree.test_lock(&self.cx, h, request).unwrap()?;
        Some((found.kind, found.range.unwrap()))
    }

    fn copy(&self, from: (Handle, u64), to: (Handle, u64), len: u64) -> Result<Written> {
        self.tree.copy_range(&self.cx, from, to, len)
    }
}

fn locks(w: &World<'_>) {
    use LockKind::{Exclusive, Shared, Unlock};
    let Some((id, a, b)) = w.lockable() else { return };
    w.lock(a, 1, Exclusive, 0, 9).unwrap();
    fails(libc::EAGAIN, w.lock(b, 2, Shared, 9, 9));
    fails(libc::EAGAIN, w.lock(a, 2, Exclusive, 0, u64::MAX));
    w.lock(b, 2, Exclusive, 10, 19).unwrap();
    // The owner's own locks never bar it, through whatever handle.
    w.lock(b, 1, Shared, 5, 9).unwrap();
    w.lock(b, 2, Shared, 5, 9).unwrap();
    fails(libc::EAGAIN, w.lock(a, 1, Exclusive, 5, 5));
    // flock(2) is another matter.
    let whole = LockRequest { kind: Exclusive, owner: 3, range: None };
    w.tree.lock(&w.cx, a, whole).unwrap();
    fails(libc::EAGAIN, w.tree.lock(&w.cx, b, LockRequest { owner: 4, ..whole }));
    w.lock(b, 1, Unlock, 0, u64::MAX).unwrap();
    w.lock(a, 2, Exclusive, 0, 9).unwrap();
    w.lock(b, 2, Unlock, 0, u64::MAX).unwrap();
    w.lock(a, 9, Exclusive, 0, u64::MAX).unwrap();
    fails(libc::EAGAIN, w.tree.lock(&w.cx, b, LockRequest { owner: 4, ..whole }));
    for h in [a, b] {
        w.tree.release(&w.cx, h).unwrap();
    }
    let (reader, writer) = (w.open(id, OpenFlags::READ), w.open(id, OpenFlags::WRITE));
    fails(libc::EBADF, w.lock(reader, 1, Exclusive, 0, 1));
    fails(libc::EBADF, w.lock(writer, 1, Shared, 0, 1));
    w.lock(reader, 1, Shared, 0, 1).unwrap();
    w.lock(writer, 1, Exclusive, 0, 1).unwrap();
    fails(libc::EBADF, w.lock(Handle((1 << 53) - 1), 1, Shared, 0, 1));
    for h in [reader, writer] {
        w.tree.release(&w.cx, h).unwrap();
    }
}

fn splits(w: &World<'_>) {
    use LockKind::{Exclusive, Shared, Unlock};
    let Some((_, a, b)) = w.lockable() else { return };
    let range = |start, end| Range { start, end };
    assert_eq!(w.bars(b, 2, 0, u64::MAX), None);
    w.lock(a, 1, Exclusive, 0, 99).unwrap();
    w.lock(a, 1, Unlock, 40, 49).unwrap();
    w.lock(a, 1, Shared, 60, 69).unwrap();
    assert_eq!(w.bars(a, 1, 0, u64::MAX), None);
    assert_eq!(w.bars(b, 2, 0, u64::MAX), Some((Exclusive, range(0, 39))));
    assert_eq!(w.bars(b, 2, 40, 49), None);
    assert_eq!(w.bars(b, 2, 45, 55), Some((Exclusive, range(50, 59))));
    assert_eq!(w.bars(b, 2, 60, 60), Some((Shared, range(60, 69))));
    assert_eq!(w.bars(b, 2, 70, u64::MAX), Some((Exclusive, range(70, 99))));
    w.lock(b, 2, Exclusive, 40, 49).unwrap();
    w.lock(b, 2, Shared, 60, 69).unwrap();
    w.lock(a, 1, Exclusive, 100, u64::MAX).unwrap();
    assert_eq!(w.bars(b, 2, 100, 200), Some((Exclusive, range(70, u64::MAX))));
    for h in [a, b] {
        w.tree.release(&w.cx, h).unwrap();
    }
}

fn release(w: &World<'_>) {
    use LockKind::Exclusive;
    let Some((_, a, b)) = w.lockable() else { return };
    w.lock(a, 1, Exclusive, 0, 9).unwrap();
    w.lock(b, 1, Exclusive, 20, 29).unwrap();
    fails(libc::EAGAIN, w.lock(b, 2, Exclusive, 0, 9));
    w.tree.release(&w.cx, a).unwrap();
    w.lock(b, 2, Exclusive, 0, 9).unwrap();
    fails(libc::EAGAIN, w.lock(b, 2, Exclusive, 20, 20));
    w.tree.release(&w.cx, b).unwrap();
}

/// An empty file, open; `None` where space cannot be reserved.
fn spacious(w: &World<'_>) -> Option<(NodeId, Handle)> {
    let (attr, h) = w.create(ROOT, "space", OpenFlags::READ_WRITE).unwrap();
    if w.fixture.host_like {
        return Some((attr.id, h));
    }
    let reserve = Allocate::Reserve { keep_size: false };
    assert!(unsupported(&w.tree.allocate(&w.cx, h, 0, 1, reserve).unwrap_err()));
    assert!(unsupported(&w.tree.seek(&w.cx, h, 0, SeekTo::Hole).unwrap_err()));
    assert!(unsupported(&w.copy((h, 0), (h, 0), 1).unwrap_err()));
    None
}

fn allocate(w: &World<'_>) {
    let Some((id, h)) = spacious(w) else { return };
    let allocate = |offset, len, how| w.tree.allocate(&w.cx, h, offset, len, how);
    let attr = || w.tree.getattr(&w.cx, id).unwrap();
    allocate(0, 256 * KIB, Allocate::Reserve { keep_size: true }).unwrap();
    assert!(attr().size == 0 && attr().blocks * 512 >= 256 * KIB, "{:?}", attr());
    allocate(0, 100, Allocate::Reserve { keep_size: false }).unwrap();
    assert_eq!(attr().size, 100);
    w.write(h, 0, &vec![7; 256 * KIB as usize]);
    let full = attr().blocks;
    allocate(64 * KIB, 64 * KIB, Allocate::PunchHole).unwrap();
    assert!(attr().size == 256 * KIB && attr().blocks < full, "{:?}", attr());
    assert_eq!(w.read(h, 64 * KIB - 1, 2), [7, 0]);
    assert_eq!(w.read(h, 128 * KIB - 1, 2), [0, 7]);
    // Not every host's filesystem can.
    match allocate(0, 10, Allocate::Zero { keep_size: true }) {
        Ok(()) => assert_eq!(w.read(h, 9, 2), [0, 7]),
        Err(e) => assert_eq!(e.errno(), libc::EOPNOTSUPP),
    }
    fails(libc::EINVAL, allocate(0, 0, Allocate::Reserve { keep_size: false }));
    fails(libc::EFBIG, allocate(1, u64::MAX, Allocate::Reserve { keep_size: true }));
    let reader = w.open(id, OpenFlags::READ);
    let reserve = Allocate::Reserve { keep_size: true };
    fails(libc::EBADF, w.tree.allocate(&w.cx, reader, 0, 1, reserve));
    for h in [h, reader] {
        w.tree.release(&w.cx, h).unwrap();
    }
}

fn holes(w: &World<'_>) {
    let Some((_, h)) = spacious(w) else { return };
    let piece = vec![1; 64 * KIB as usize];
    w.write(h, 0, &piece);
    w.write(h, 128 * KIB, &piece);
    let seek = |offset, to| w.tree.seek(&w.cx, h, offset, to);
    assert_eq!(seek(0, SeekTo::Data).unwrap(), 0);
    assert_eq!(seek(10, SeekTo::Hole).unwrap(), 64 * KIB);
    assert_eq!(seek(64 * KIB, SeekTo::Data).unwrap(), 128 * KIB);
    assert_eq!(seek(128 * KIB, SeekTo::Hole).unwrap(), 192 * KIB);
    for (offset, to) in [(192 * KIB, SeekTo::Data), (192 * KIB, SeekTo::Hole)] {
        fails(libc::ENXIO, seek(offset, to));
    }
    fails(libc::ENXIO, seek(u64::MAX, SeekTo::Data));
    w.write(h, 192 * KIB, b"x");
    assert_eq!(w.read(h, 192 * KIB, 9), b"x", "seeking moves nobody");
    w.tree.release(&w.cx, h).unwrap();
}

fn copy(w: &World<'_>) {
    let Some((id, to)) = spacious(w) else { return };
    let content: Vec<u8> = (0..100_000u32).map(|i| (i % 253) as u8).collect();
    let source = w.put(ROOT, "source", &content);
    let from = w.open(source, OpenFlags::READ);
    w.write(to, 0, b"before");
    let mut done = 0;
    while done < 50_000 {
        let copied = w.copy((from, 100 + done), (to, 3 + done), 50_000 - done).unwrap();
        assert!((1..=50_000 - done).contains(&copied.n), "{copied:?}");
        done += copied.n;
        if let Some(attr) = copied.attr {
            assert_eq!((attr.id, attr.size), (id, 3 + done));
        }
    }
    assert_eq!(w.tree.getattr(&w.cx, id).unwrap().size, 50_003);
    let copied = w.get(id);
    assert!(copied[..3] == *b"bef" && copied[3..] == content[100..50_100]);
    assert_eq!(w.copy((from, 100_000), (to, 0), 10).unwrap().n, 0);
    fails(libc::EBADF, w.copy((from, 0), (from, 10), 1));
    fails(libc::EINVAL, w.copy((to, 0), (to, 10), 100));
    assert_eq!(w.copy((to, 0), (to, 60_000), 100).unwrap().n, 100);
    for h in [from, to] {
        w.tree.release(&w.cx, h).unwrap();
    }
}
