//! A tree that remembers another one, over a host directory and over a node: the same suite, and what
//! several clients see of each other.

use super::{Fixture, Node, Scratch, World, conformance, name};
use crate::mount::until;
use bytes::Bytes;
use spiderweb::base::{Deadline, Error, Name, Result, Timer};
use spiderweb::vfs::synthetic::{Reply, dir, fixed, listing, message};
use spiderweb::vfs::{
    Attr, CacheOptions, Cached, Caps, Cx, DirPage, EventSink, Handle, Local, LocalOptions, NodeId,
    OpenFlags, Opened, PageLimit, Read, ReadDir, SetAttr, StatFs, Synthetic, Tree, Watch, Workers,
    Written,
};
use spiderweb::wire::fs::Framing;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Threads of cached trees; they end with the value.
struct Threads(Workers, Timer);

impl Threads {
    fn start() -> Threads {
        let timer = Timer::start().unwrap();
        Threads(Workers::start(CacheOptions::default(), timer.clone()).unwrap(), timer)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.0.stop();
        self.1.stop();
    }
}

#[test]
fn a_remembered_host_directory_conforms() {
    conformance(&|| {
        let (scratch, threads) = (Scratch::new(), Threads::start());
        let local = Local::open(scratch.path(), LocalOptions::default()).unwrap();
        let tree = Cached::new(Arc::new(local), threads.0.clone());
        Fixture { tree, links: true, host_like: true, keep: Box::new((threads, scratch)) }
    });
}

#[test]
fn a_remembered_remote_tree_conforms() {
    conformance(&|| {
        let (scratch, threads) = (Scratch::new(), Threads::start());
        let node = Node::start(scratch.path());
        let tree = Cached::new(node.remote(Framing::Binary), threads.0.clone());
        Fixture { tree, links: true, host_like: true, keep: Box::new((threads, node, scratch)) }
    });
}

/// A host directory whose changes all reach its watchers, as nobody else uses it; counts what it is
/// asked, and can refuse writes.
struct Counting {
    inner: Local,
    asked: AtomicUsize,
    full: AtomicBool,
    /// Its changes are not all told.
    quiet: AtomicBool,
}

impl Counting {
    fn new(scratch: &Scratch) -> Arc<Counting> {
        let inner = Local::open(scratch.path(), LocalOptions::default()).unwrap();
        let (asked, full, quiet) = Default::default();
        Arc::new(Counting { inner, asked, full, quiet })
    }

    fn count(&self) -> &Local {
        self.asked.fetch_add(1, Ordering::Relaxed);
        &self.inner
    }

    /// How often it was asked since the last time.
    fn asked(&self) -> usize {
        self.asked.swap(0, Ordering::Relaxed)
    }
}

impl Tree for Counting {
    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn lookup(&self, cx: &Cx, dir: NodeId, name: Name<'_>) -> Result<Attr> {
        self.count().lookup(cx, dir, name)
    }

    fn getattr(&self, cx: &Cx, node: NodeId) -> Result<Attr> {
        self.count().getattr(cx, node)
    }

    fn setattr(&self, cx: &Cx, node: NodeId, h: Option<Handle>, set: &SetAttr) -> Result<Attr> {
        self.count().setattr(cx, node, h, set)
    }

    fn readdir(&self, cx: &Cx, at: ReadDir) -> Result<DirPage> {
        self.count().readdir(cx, at)
    }

    /// With the content, where that is wanted, as nodes tell it.
    fn open(&self, cx: &Cx, node: NodeId, flags: OpenFlags) -> Result<Opened> {
        let opened = self.count().open(cx, node, flags)?;
        if flags.content_max == 0 {
            return Ok(opened);
        }
        let content = match self.inner.read(cx, opened.handle, 0, flags.content_max)? {
            Read::Data { bytes, eof: true } => Some(bytes),
            _ => None,
        };
        Ok(Opened { content, ..opened })
    }

    fn create(
        &self,
        cx: &Cx,
        dir: NodeId,
        name: Name<'_>,
        mode: u32,
        flags: OpenFlags,
    ) -> Result<(Attr, Opened)> {
        self.count().create(cx, dir, name, mode, flags)
    }

    fn read(&self, cx: &Cx, handle: Handle, offset: u64, len: u32) -> Result<Read> {
        self.count().read(cx, handle, offset, len)
    }

    fn write(&self, cx: &Cx, handle: Handle, offset: u64, data: Bytes) -> Result<Written> {
        if self.full.load(Ordering::Relaxed) {
            return Err(Error::from_errno(libc::ENOSPC, "full"));
        }
        self.count().write(cx, handle, offset, data)
    }

    fn fsync(&self, cx: &Cx, handle: Handle, data_only: bool) -> Result<()> {
        self.count().fsync(cx, handle, data_only)
    }

    fn release(&self, cx: &Cx, handle: Handle) -> Result<()> {
        self.inner.release(cx, handle)
    }

    fn mkdir(&self, cx: &Cx, dir: NodeId, name: Name<'_>, mode: u32) -> Result<Attr> {
        self.count().mkdir(cx, dir, name, mode)
    }

    fn unlink(&self, cx: &Cx, dir: NodeId, name: Name<'_>) -> Result<()> {
        self.count().unlink(cx, dir, name)
    }

    fn statfs(&self, cx: &Cx, node: NodeId) -> Result<StatFs> {
        self.inner.statfs(cx, node)
    }

    fn is_live(&self) -> bool {
        !self.quiet.load(Ordering::Relaxed)
    }

    fn watch(&self, sink: EventSink) -> Result<Watch> {
        self.inner.watch(sink)
    }
}

/// Runs `check` on a cached tree over a counting one.
fn with_counting(check: impl Fn(&World<'_>, &Counting)) {
    let (scratch, threads) = (Scratch::new(), Threads::start());
    let counting = Counting::new(&scratch);
    let tree = Cached::new(counting.clone(), threads.0.clone());
    let keep = Box::new((threads, scratch));
    let fixture = Fixture { tree, links: true, host_like: true, keep };
    check(&World::new(&fixture), &counting);
}

#[test]
fn what_is_known_is_not_asked_again() {
    with_counting(|w, inner| {
        let dir = w.mkdir(NodeId::ROOT, "d");
        inner.asked();
        // A new directory is known to be empty, so only making the files asks.
        for n in 0..20 {
            assert_eq!(w.lookup(dir, format!("f{n}")).unwrap_err().errno(), libc::ENOENT);
            w.tree.mkdir(&w.cx, dir, name(&format!("f{n}")), 0o755).unwrap();
        }
        assert_eq!(inner.asked(), 20);
        for n in 0..20 {
            w.lookup(dir, format!("f{n}")).unwrap();
        }
        assert_eq!(inner.asked(), 0);
        let first = w.names(dir);
        assert_eq!(first.len(), 20);
        inner.asked();
        assert_eq!(w.names(dir), first);
        assert_eq!(inner.asked(), 0, "a directory that was read is known");
    });
}

#[test]
fn whoever_asks_for_many_names_gets_the_directory() {
    let (scratch, threads) = (Scratch::new(), Threads::start());
    for n in 0..100 {
        std::fs::write(scratch.path().join(format!("f{n}")), "x").unwrap();
    }
    let counting = Counting::new(&scratch);
    let tree = Cached::new(counting.clone(), threads.0.clone());
    let cx = Cx::internal(Deadline::after_ms(60_000));
    for n in 0..100 {
        let found = tree.lookup(&cx, NodeId::ROOT, Name::text(&format!("f{n}")).unwrap()).unwrap();
        assert_eq!(found.size, 1);
    }
    assert!(counting.asked() <= 3);
    let absent = tree.lookup(&cx, NodeId::ROOT, Name::text("none").unwrap()).unwrap_err();
    assert_eq!((absent.errno(), counting.asked()), (libc::ENOENT, 0));
}

#[test]
fn the_next_page_is_asked_for_ahead_and_shows_what_changed_meanwhile() {
    let (scratch, threads) = (Scratch::new(), Threads::start());
    for n in 0..100 {
        std::fs::write(scratch.path().join(format!("f{n:02}")), "x").unwrap();
    }
    let counting = Counting::new(&scratch);
    let keep = Box::new((threads.0.clone(), scratch));
    let tree = Cached::new(counting.clone(), threads.0.clone());
    let fixture = Fixture { tree, links: true, host_like: true, keep };
    let w = World::new(&fixture);
    let page = |cookie| {
        let limit = PageLimit { entries: 40, ..PageLimit::DEFAULT };
        w.tree.readdir(&w.cx, ReadDir { dir: NodeId::ROOT, cookie, limit }).unwrap()
    };
    let ahead = |what| until(what, || counting.asked.load(Ordering::Relaxed) == 2);

    let first = page(0);
    ahead("the second page is asked for by itself");
    counting.asked();
    let second = page(first.entries[39].cookie);
    until("and then the third", || counting.asked() == 1);
    let third = page(second.entries[39].cookie);
    assert!(third.eof && third.entries.len() == 20);
    assert_eq!(counting.asked(), 0, "nothing is asked for twice");

    // A file of the next page is written, by ourselves.
    w.tree.mkdir(&w.cx, NodeId::ROOT, name("d"), 0o755).unwrap();
    counting.asked();
    let first = page(0);
    ahead("the second page");
    let later = second.entries.iter().find(|e| first.entries.iter().all(|f| f.name != e.name));
    let later = later.unwrap();
    let h = w.open(later.attr.id, OpenFlags::WRITE);
    w.write(h, 0, b"longer");
    w.tree.flush(&w.cx, h).unwrap();
    let second = page(first.entries[39].cookie);
    let seen = second.entries.iter().find(|e| e.name == later.name).unwrap();
    assert_eq!(seen.attr.size, 6);

    // A name of the next page goes.
    let first = page(0);
    w.tree.unlink(&w.cx, NodeId::ROOT, Name::new(&later.name).unwrap()).unwrap();
    let second = page(first.entries[39].cookie);
    assert!(second.entries.iter().all(|e| e.name != later.name));
    w.tree.release(&w.cx, h).unwrap();
}

#[test]
fn small_writes_travel_together_and_are_seen_at_once() {
    with_counting(|w, inner| {
        let (attr, h) = w.create(NodeId::ROOT, "f", OpenFlags::READ_WRITE).unwrap();
        inner.asked();
        for n in 0..1000 {
            w.write(h, n * 10, b"0123456789");
        }
        assert!(inner.asked() <= 1, "they have not been sent one by one");
        assert_eq!(w.tree.getattr(&w.cx, attr.id).unwrap().size, 10_000);
        assert!(inner.asked() <= 2);
        w.write(h, 5, b"XYZ");
        assert_eq!(w.read(h, 0, 12), b"01234XYZ8901");
        w.write(h, 9_995, b"abcdefgh");
        w.tree.flush(&w.cx, h).unwrap();
        let second = w.open(attr.id, OpenFlags::READ);
        assert_eq!(w.read(second, 9_990, 100), b"01234abcdefgh");
        assert_eq!(w.lookup(NodeId::ROOT, "f").unwrap().size, 10_003);
        w.tree.release(&w.cx, second).unwrap();
        w.tree.release(&w.cx, h).unwrap();
    });
}

#[test]
fn overlapping_writes_arrive_in_their_order() {
    with_counting(|w, _| {
        let (attr, h) = w.create(NodeId::ROOT, "f", OpenFlags::WRITE).unwrap();
        let mut expected = vec![0u8; 6 << 20];
        // A fixed pseudo-random walk over the file, in pieces of many sizes.
        let mut x = 12345u64;
        for _ in 0..400 {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (x >> 33) as usize % (5 << 20);
            let len = 1 + (x >> 20) as usize % (200 << 10);
            let byte = (x >> 50) as u8;
            w.write(h, at as u64, &vec![byte; len]);
            expected[at..at + len].fill(byte);
        }
        w.write(h, expected.len() as u64 - 1, &[1]);
        *expected.last_mut().unwrap() = 1;
        w.tree.flush(&w.cx, h).unwrap();
        w.tree.release(&w.cx, h).unwrap();
        assert!(w.get(attr.id) == expected);
    });
}

#[test]
fn a_write_that_failed_is_told_at_the_next_flush_and_once() {
    with_counting(|w, inner| {
        let (_, h) = w.create(NodeId::ROOT, "f", OpenFlags::WRITE).unwrap();
        inner.full.store(true, Ordering::Relaxed);
        w.write(h, 0, b"lost");
        assert_eq!(w.tree.flush(&w.cx, h).unwrap_err().errno(), libc::ENOSPC);
        w.tree.flush(&w.cx, h).unwrap();
        w.write(h, 0, b"lost");
        assert_eq!(w.tree.fsync(&w.cx, h, false).unwrap_err().errno(), libc::ENOSPC);
        inner.full.store(false, Ordering::Relaxed);
        w.write(h, 0, b"kept");
        w.tree.fsync(&w.cx, h, false).unwrap();
        w.tree.release(&w.cx, h).unwrap();
    });
}

#[test]
fn a_large_file_read_in_order_is_asked_for_in_large_pieces() {
    let (scratch, threads) = (Scratch::new(), Threads::start());
    let content: Vec<u8> = (0..20u32 << 18).flat_map(u32::to_le_bytes).collect();
    std::fs::write(scratch.path().join("big"), &content).unwrap();
    let counting = Counting::new(&scratch);
    let tree = Cached::new(counting.clone(), threads.0.clone());
    let fixture = Fixture { tree, links: true, host_like: true, keep: Box::new(()) };
    let w = World::new(&fixture);
    let big = w.lookup(NodeId::ROOT, "big").unwrap();
    let h = w.open(big.id, OpenFlags::READ);
    counting.asked();
    let mut at = 0;
    while at < content.len() {
        let piece = w.read(h, at as u64, 64 << 10);
        assert!(!piece.is_empty() && content[at..].starts_with(&piece), "at {at}");
        at += piece.len();
    }
    assert!(w.read(h, at as u64, 10).is_empty());
    let asked = counting.asked();
    assert!(asked < 100, "320 reads became 80 and a few, not {asked}");
    // Small reads here and there are not taken for reading in order.
    for n in 0..10u64 {
        w.read(h, (n * 7 % 10) * (200 << 10), 4 << 10);
    }
    assert_eq!(counting.asked(), 10);
    // Back and forth: still right, also over the ends of pieces.
    for at in [5usize, 1 << 20, (1 << 20) - 7, 19 << 20, 3, (20 << 20) - 5] {
        let piece = w.read(h, at as u64, 100);
        assert_eq!(piece, content[at..content.len().min(at + 100)], "at {at}");
    }
    // What we write ourselves is not hidden by what was read ahead.
    let (before, writer) = (w.read(h, 0, 8), w.open(big.id, OpenFlags::WRITE));
    w.read(h, 8, 8);
    w.read(h, 16, 8);
    w.write(writer, 24, b"changed!");
    assert_eq!((w.read(h, 24, 8), before), (b"changed!".to_vec(), content[..8].to_vec()));
    w.tree.release(&w.cx, writer).unwrap();
    w.tree.release(&w.cx, h).unwrap();
}

#[test]
fn a_small_file_that_nobody_has_read_comes_with_its_opening() {
    let (scratch, threads) = (Scratch::new(), Threads::start());
    let path = scratch.path().join("f");
    std::fs::write(&path, "small").unwrap();
    let counting = Counting::new(&scratch);
    let tree = Cached::new(counting.clone(), threads.0.clone());
    let fixture = Fixture { tree, links: true, host_like: true, keep: Box::new(()) };
    let w = World::new(&fixture);
    let f = w.lookup(NodeId::ROOT, "f").unwrap().id;
    counting.asked();
    let h = w.open(f, OpenFlags::READ);
    assert_eq!(w.read(h, 0, 4096), b"small");
    assert_eq!(counting.asked(), 1);
    // The kernel has it now.
    let again = w.open(f, OpenFlags::READ);
    w.read(again, 0, 4096);
    assert_eq!(counting.asked(), 2);
    // What has changed comes again, but not what has changed since it came.
    let change = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let size = text.len() as u64;
        until("the change is heard of", || w.tree.getattr(&w.cx, f).unwrap().size == size);
        counting.asked();
    };
    change("something else");
    let late = w.open(f, OpenFlags::READ);
    assert_eq!(counting.asked(), 1);
    change("yet something else");
    assert_eq!(w.read(late, 0, 4096), b"yet something else");
    // Where changes are not told, it is asked for when it is read.
    counting.quiet.store(true, Ordering::Relaxed);
    change("and another");
    let told = w.open(f, OpenFlags::READ);
    assert_eq!(w.read(told, 0, 4096), b"and another");
    assert_eq!(counting.asked(), 2);
    for h in [h, again, late, told] {
        w.tree.release(&w.cx, h).unwrap();
    }
}

#[test]
fn two_clients_of_a_node_see_each_other() {
    let (scratch, threads) = (Scratch::new(), Threads::start());
    let node = Node::start(scratch.path());
    let cached = || Cached::new(node.remote(Framing::Binary), threads.0.clone());
    let fixture =
        |tree| Fixture { tree, links: true, host_like: true, keep: Box::new(()) as Box<_> };
    let (a, b) = (fixture(cached()), fixture(cached()));
    let (a, b) = (World::new(&a), World::new(&b));
    for round in 0..50u32 {
        let text = format!("round {round}");
        let id = a.put(NodeId::ROOT, "f", text.as_bytes());
        // Closed there, opened here.
        let seen = b.lookup(NodeId::ROOT, "f").unwrap();
        assert_eq!(b.get(seen.id), text.as_bytes());
        let flags = OpenFlags { truncate: true, ..OpenFlags::WRITE };
        let h = b.open(seen.id, flags);
        b.write(h, 0, b"answer");
        b.tree.flush(&b.cx, h).unwrap();
        b.tree.release(&b.cx, h).unwrap();
        assert_eq!(a.get(id), b"answer");
    }
    drop((a, b));
}

#[test]
fn what_a_message_has_led_to_is_seen_at_once() {
    let timer = Timer::start().unwrap();
    // Nothing grows old by itself.
    let ttl = Duration::from_secs(3600);
    let options = CacheOptions { ttl, ..CacheOptions::default() };
    let threads = Threads(Workers::start(options, timer.clone()).unwrap(), timer);
    let jobs = Arc::new(Mutex::new(Vec::<String>::new()));
    let (sent, found, listed) = (jobs.clone(), jobs.clone(), jobs);
    let input = message(
        |_| false,
        move |_, m| {
            sent.lock().unwrap().push(String::from_utf8_lossy(m).into_owned());
            Ok(Reply::default())
        },
    );
    let jobs = listing(
        move |_, name| match found.lock().unwrap().iter().any(|job| job == name) {
            true => Ok(fixed("queued")),
            false => Err(Error::from_errno(libc::ENOENT, "no such job")),
        },
        move |_| Ok(listed.lock().unwrap().iter().map(|n| (n.clone(), fixed("queued"))).collect()),
    );
    let tree = Synthetic::new(dir([("input", input), ("jobs", jobs)])).unwrap();
    let tree = Cached::new(Arc::new(tree), threads.0.clone());
    let fixture = Fixture { tree, links: false, host_like: false, keep: Box::new(threads) };
    let w = World::new(&fixture);
    let (input, jobs) =
        (w.lookup(NodeId::ROOT, "input").unwrap().id, w.lookup(NodeId::ROOT, "jobs").unwrap().id);
    for (n, job) in ["a", "b"].into_iter().enumerate() {
        assert_eq!(w.names(jobs).len(), n);
        assert!(w.lookup(jobs, job).is_err());
        let h = w.open(input, OpenFlags::WRITE);
        w.write(h, 0, job.as_bytes());
        w.tree.flush(&w.cx, h).unwrap();
        w.tree.release(&w.cx, h).unwrap();
        assert_eq!(w.names(jobs).len(), n + 1);
        assert!(w.lookup(jobs, job).is_ok());
    }
}
