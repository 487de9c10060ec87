//! The union: the suite over a host directory, mounts and binds, and members that are lost.

use super::{Fixture, ROOT, Scratch, World, conformance, fails, is_gone, name, record};
use bytes::Bytes;
use spiderweb::base::{Code, Error, Name, Result, TreePath};
use spiderweb::vfs::synthetic::{MemDir, dir, fixed};
use spiderweb::vfs::{
    Attr, Bind, Caps, Cx, DirPage, Event, EventSink, Handle, Kind, Local, LocalOptions, Member,
    MountPoint, NodeId, OpenFlags, Opened, PageLimit, Read, ReadDir, RenameFlags, SetAttr, StatFs,
    Synthetic, Tree, Union, Watch, Written, walk,
};
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

fn path(p: &str) -> TreePath {
    p.parse().unwrap()
}

fn mount(at: &str, trees: Vec<Arc<dyn Tree>>) -> MountPoint {
    let member = |(i, tree)| Member { name: format!("{at}#{i}"), tree, root: ROOT };
    MountPoint { path: path(at), members: trees.into_iter().enumerate().map(member).collect() }
}

fn bind(at: &str, target: &str) -> Bind {
    Bind { path: path(at), target: path(target) }
}

fn host(dir: &Path) -> Arc<dyn Tree> {
    Arc::new(Local::open(dir, LocalOptions::default()).unwrap())
}

fn memory() -> Arc<dyn Tree> {
    Arc::new(Synthetic::new(MemDir::new(1 << 20)).unwrap())
}

fn of(union: &Arc<Union>) -> Fixture {
    Fixture { tree: union.clone(), links: false, host_like: false, keep: Box::new(()) }
}

pub fn fixture() -> Fixture {
    let scratch = Scratch::new();
    let union = Union::new(vec![mount("/", vec![host(scratch.path())])], vec![]).unwrap();
    Fixture { tree: Arc::new(union), links: true, host_like: true, keep: Box::new(scratch) }
}

#[test]
fn the_union_conforms() {
    conformance(&fixture);
}

#[test]
fn mounts_and_binds_form_one_tree() {
    let scratch = Scratch::new();
    fs::create_dir_all(scratch.path().join("real/deep")).unwrap();
    fs::write(scratch.path().join("real/file"), "base").unwrap();
    fs::write(scratch.path().join("hidden"), "not seen").unwrap();
    let (a, b) = (memory(), memory());
    let union = Union::new(
        vec![
            mount("/", vec![host(scratch.path())]),
            mount("/real/m", vec![a.clone()]),
            mount("/virtual/x/m", vec![b.clone()]),
            mount("/hidden", vec![memory()]),
            mount("/bound/inner", vec![memory()]),
        ],
        vec![
            bind("/bound", "/real"),
            bind("/c1", "/c2"),
            bind("/c2", "/c1"),
            bind("/nowhere", "/none"),
        ],
    );
    let union = Arc::new(union.unwrap());
    let f = of(&union);
    let w = World::new(&f);
    assert_eq!(w.names(ROOT), ["bound", "hidden", "real", "virtual"]);
    let at = |p: &str| walk::resolve(w.tree, &w.cx, &path(p));
    assert_eq!(w.names(at("/real").unwrap().id), ["deep", "file", "inner", "m"]);
    assert_eq!(at("/bound").unwrap().id, at("/real").unwrap().id);
    assert_eq!(w.get(at("/bound/file").unwrap().id), b"base");
    assert_eq!(at("/bound/m").unwrap().id, at("/real/m").unwrap().id);
    fails(libc::ELOOP, at("/c1"));
    fails(libc::ENOENT, at("/nowhere"));
    assert_eq!(at("/hidden").unwrap().kind, Kind::Dir);

    let x = at("/virtual/x").unwrap();
    assert_eq!((x.kind, x.mode & 0o777, w.names(x.id)), (Kind::Dir, 0o555, vec!["m".into()]));
    fails(libc::EROFS, w.create(x.id, "f", OpenFlags::WRITE));
    fails(libc::ENOENT, w.lookup(x.id, "f"));
    fails(libc::EISDIR, w.tree.open(&w.cx, x.id, OpenFlags::READ));

    let (real, m) = (at("/real").unwrap().id, at("/real/m").unwrap().id);
    let id = w.put(m, "f", b"in a");
    assert_eq!(walk::read_all(&*a, &w.cx, &path("/f"), 99).unwrap(), b"in a");
    let mv = |from: (NodeId, &str), to: (NodeId, &str)| {
        let flags = RenameFlags::default();
        w.tree.rename(&w.cx, (from.0, name(from.1)), (to.0, name(to.1)), flags)
    };
    fails(libc::EXDEV, mv((m, "f"), (real, "g")));
    fails(libc::EXDEV, w.tree.link(&w.cx, id, real, name("l")));
    fails(libc::EBUSY, mv((real, "m"), (real, "n")));
    fails(libc::EBUSY, mv((ROOT, "real"), (ROOT, "other")));
    fails(libc::EBUSY, mv((real, "file"), (real, "m")));
    fails(libc::EBUSY, w.tree.rmdir(&w.cx, real, name("m")));
    fails(libc::EBUSY, w.tree.unlink(&w.cx, ROOT, name("bound")));
    fails(libc::EEXIST, w.tree.mkdir(&w.cx, ROOT, name("virtual"), 0o755));
    assert!(Name::text("..").is_err());
}

#[test]
fn nested_names_are_paged_once() {
    let scratch = Scratch::new();
    for i in 0..20 {
        fs::create_dir(scratch.path().join(format!("d{i:02}"))).unwrap();
    }
    let mut mounts = vec![mount("/", vec![host(scratch.path())])];
    mounts.extend((0..20).step_by(2).map(|i| mount(&format!("/d{i:02}"), vec![memory()])));
    mounts.push(mount("/extra", vec![memory()]));
    let union = Arc::new(Union::new(mounts, vec![]).unwrap());
    let f = of(&union);
    let w = World::new(&f);
    for entries in [1, 2, 3, 7, 100] {
        let (mut seen, mut cookie) = (Vec::new(), 0);
        loop {
            let limit = PageLimit { entries, ..PageLimit::DEFAULT };
            let page = w.tree.readdir(&w.cx, ReadDir { dir: ROOT, cookie, limit }).unwrap();
            assert!(page.entries.len() <= entries);
            cookie = page.entries.last().map_or(cookie, |e| e.cookie);
            seen.extend(page.entries.into_iter().map(|e| e.name));
            if page.eof {
                break;
            }
        }
        assert_eq!(seen.len(), 21, "in pages of {entries}");
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 21);
    }
}

#[test]
fn a_new_mount_table_leaves_the_rest_alone() {
    let (a, b, c) = (memory(), memory(), memory());
    let (m_a, m_b) = (mount("/a", vec![a]), mount("/b", vec![b]));
    let union = Arc::new(Union::new(vec![m_a.clone(), m_b], vec![]).unwrap());
    let f = of(&union);
    let w = World::new(&f);
    let (in_a, in_b) = (w.lookup(ROOT, "a").unwrap().id, w.lookup(ROOT, "b").unwrap().id);
    let (file_a, file_b) = (w.put(in_a, "f", b"A"), w.put(in_b, "f", b"B"));
    let (h_a, h_b) = (w.open(file_a, OpenFlags::READ), w.open(file_b, OpenFlags::READ));
    let (_watch, events) = record(w.tree);
    union.set(vec![m_a.clone(), mount("/c", vec![c])], vec![bind("/d", "/a")]).unwrap();
    assert_eq!(*events.lock().unwrap(), [Event::Resync]);
    assert_eq!(w.names(ROOT), ["a", "c", "d"]);
    assert_eq!((w.lookup(ROOT, "a").unwrap().id, w.lookup(in_a, "f").unwrap().id), (in_a, file_a));
    assert_eq!(w.lookup(ROOT, "d").unwrap().id, in_a);
    is_gone(w.tree.getattr(&w.cx, file_b));
    is_gone(w.lookup(in_b, "f"));
    assert_eq!((w.read(h_a, 0, 9), w.read(h_b, 0, 9)), (b"A".to_vec(), b"B".to_vec()));
    w.tree.release(&w.cx, h_b).unwrap();
    w.tree.release(&w.cx, h_a).unwrap();
    let conflict = union.set(vec![m_a.clone(), m_a], vec![]).unwrap_err();
    assert_eq!(conflict.code, Code::MountConflict);
    assert_eq!(w.names(ROOT), ["a", "c", "d"], "a bad table changes nothing");
    let empty = MountPoint { path: path("/e"), members: vec![] };
    fails(libc::EINVAL, union.set(vec![empty], vec![]));
}

/// A tree at the other end of a connection that can be cut.
struct Far {
    tree: Arc<dyn Tree>,
    state: AtomicU8,
    calls: AtomicU32,
}

const UP: u8 = 0;
/// Requests are not even sent.
const REFUSES: u8 = 1;
/// Requests are sent, answers do not come.
const SILENT: u8 = 2;

impl Far {
    fn new(dir: &Path) -> Arc<Far> {
        Arc::new(Far { tree: host(dir), state: AtomicU8::new(UP), calls: AtomicU32::new(0) })
    }

    fn set(&self, state: u8) {
        self.state.store(state, Ordering::SeqCst);
    }

    fn ask<T>(&self, f: impl FnOnce(&dyn Tree) -> Result<T>) -> Result<T> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        match self.state.load(Ordering::SeqCst) {
            UP => f(&*self.tree),
            REFUSES => Err(Error::new(Code::Refused, "connection refused")),
            _ => f(&*self.tree).and(Err(Error::new(Code::Unavailable, "the connection broke"))),
        }
    }
}

impl Tree for Far {
    fn caps(&self) -> Caps {
        self.tree.caps()
    }
    fn lookup(&self, cx: &Cx, dir: NodeId, name: Name<'_>) -> Result<Attr> {
        self.ask(|t| t.lookup(cx, dir, name))
    }
    fn getattr(&self, cx: &Cx, node: NodeId) -> Result<Attr> {
        self.ask(|t| t.getattr(cx, node))
    }
    fn setattr(&self, cx: &Cx, node: NodeId, h: Option<Handle>, set: &SetAttr) -> Result<Attr> {
        self.ask(|t| t.setattr(cx, node, h, set))
    }
    fn readdir(&self, cx: &Cx, at: ReadDir) -> Result<DirPage> {
        self.ask(|t| t.readdir(cx, at))
    }
    fn open(&self, cx: &Cx, node: NodeId, flags: OpenFlags) -> Result<Opened> {
        self.ask(|t| t.open(cx, node, flags))
    }
    fn create(
        &self,
        cx: &Cx,
        dir: NodeId,
        name: Name<'_>,
        mode: u32,
        flags: OpenFlags,
    ) -> Result<(Attr, Opened)> {
        self.ask(|t| t.create(cx, dir, name, mode, flags))
    }
    fn read(&self, cx: &Cx, handle: Handle, offset: u64, len: u32) -> Result<Read> {
        self.ask(|t| t.read(cx, handle, offset, len))
    }
    fn write(&self, cx: &Cx, handle: Handle, offset: u64, data: Bytes) -> Result<Written> {
        self.ask(|t| t.write(cx, handle, offset, data))
    }
    fn flush(&self, cx: &Cx, handle: Handle) -> Result<Written> {
        self.ask(|t| t.flush(cx, handle))
    }
    fn release(&self, cx: &Cx, handle: Handle) -> Result<()> {
        self.ask(|t| t.release(cx, handle))
    }
    fn mkdir(&self, cx: &Cx, dir: NodeId, name: Name<'_>, mode: u32) -> Result<Attr> {
        self.ask(|t| t.mkdir(cx, dir, name, mode))
    }
    fn statfs(&self, cx: &Cx, node: NodeId) -> Result<StatFs> {
        self.ask(|t| t.statfs(cx, node))
    }
    fn watch(&self, sink: EventSink) -> Result<Watch> {
        self.tree.watch(sink)
    }
}

/// Two replicas behind one mount point.
struct Replicas {
    scratch: Scratch,
    far: [Arc<Far>; 2],
    union: Arc<Union>,
}

impl Replicas {
    fn new() -> Replicas {
        let scratch = Scratch::new();
        let far = ["one", "two"].map(|n| {
            let dir = scratch.path().join(n);
            fs::create_dir_all(dir.join("sub")).unwrap();
            fs::write(dir.join("sub/f"), "0123456789").unwrap();
            let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
            let file = fs::File::options().write(true).open(dir.join("sub/f")).unwrap();
            file.set_modified(at).unwrap();
            Far::new(&dir)
        });
        let members: Vec<Arc<dyn Tree>> = far.iter().map(|f| f.clone() as Arc<dyn Tree>).collect();
        let union = Arc::new(Union::new(vec![mount("/data", members)], vec![]).unwrap());
        Replicas { scratch, far, union }
    }

    fn failovers(&self) -> u64 {
        self.union.status()[0].failovers
    }
}

#[test]
fn reads_go_on_at_the_next_member() {
    let r = Replicas::new();
    let f = of(&r.union);
    let w = World::new(&f);
    let at = |p: &str| walk::resolve(w.tree, &w.cx, &path(p)).unwrap().id;
    let (data, sub, file) = (at("/data"), at("/data/sub"), at("/data/sub/f"));
    let h = w.open(file, OpenFlags::READ);
    assert_eq!(w.read(h, 0, 4), b"0123");
    let (_watch, events) = record(w.tree);
    r.far[0].set(SILENT);
    assert_eq!(w.read(h, 4, 4), b"4567", "in the middle of a file");
    assert_eq!(*events.lock().unwrap(), [Event::Resync]);
    assert_eq!(w.tree.getattr(&w.cx, file).unwrap().size, 10);
    assert_eq!((at("/data"), at("/data/sub"), at("/data/sub/f")), (data, sub, file));
    assert_eq!(w.names(sub), ["f"]);
    assert_eq!(r.failovers(), 1);
    let before = r.far[0].calls.load(Ordering::SeqCst);
    r.far[0].set(UP);
    assert_eq!(w.get(file), b"0123456789");
    assert_eq!(r.far[0].calls.load(Ordering::SeqCst), before, "no way back while the next lives");
    r.far[1].set(REFUSES);
    assert_eq!(w.get(file), b"0123456789");
    assert_eq!((r.failovers(), r.union.status()[0].active), (2, 0));
    r.far[0].set(SILENT);
    let e = w.tree.getattr(&w.cx, file).unwrap_err();
    assert!(e.is_peer_lost(), "{e:?}");
    assert_eq!(w.names(ROOT), ["data"], "what cannot be reached is listed");
    r.far[1].set(UP);
    assert_eq!(w.get(file), b"0123456789");
}

#[test]
fn who_does_not_answer_takes_nothing_over() {
    let r = Replicas::new();
    let f = of(&r.union);
    let w = World::new(&f);
    let at = |p: &str| walk::resolve(w.tree, &w.cx, &path(p));
    let file = at("/data/sub/f").unwrap().id;
    let (_watch, events) = record(w.tree);
    r.far.iter().for_each(|far| far.set(REFUSES));
    for _ in 0..3 {
        assert!(at("/data/sub/f").unwrap_err().is_peer_lost());
    }
    r.far[0].set(UP);
    assert_eq!(w.get(file), b"0123456789");
    assert_eq!((r.failovers(), events.lock().unwrap().len()), (0, 0));
    r.far[0].set(REFUSES);
    r.far[1].set(UP);
    assert_eq!(w.get(file), b"0123456789");
    assert_eq!((r.failovers(), &**events.lock().unwrap()), (1, &[Event::Resync][..]));
}

#[test]
fn another_file_is_not_read_on() {
    let r = Replicas::new();
    let f = of(&r.union);
    let w = World::new(&f);
    let file = walk::resolve(w.tree, &w.cx, &path("/data/sub/f")).unwrap().id;
    let h = w.open(file, OpenFlags::READ);
    fs::write(r.scratch.path().join("two/sub/f"), "other content").unwrap();
    r.far[0].set(SILENT);
    fails(libc::EIO, w.tree.read(&w.cx, h, 4, 4).map(|_| ()));
    let fresh = w.open(file, OpenFlags::READ);
    assert_eq!(w.read(fresh, 0, 5), b"other");
}

#[test]
fn changes_are_made_once() {
    let r = Replicas::new();
    let f = of(&r.union);
    let w = World::new(&f);
    let data = w.lookup(ROOT, "data").unwrap().id;
    let h =
        w.open(walk::resolve(w.tree, &w.cx, &path("/data/sub/f")).unwrap().id, OpenFlags::WRITE);
    r.far[0].set(SILENT);
    fails(libc::EIO, w.tree.write(&w.cx, h, 0, Bytes::from_static(b"x")));
    fails(libc::EIO, w.tree.mkdir(&w.cx, data, name("maybe"), 0o755));
    assert!(!r.scratch.path().join("two/maybe").exists(), "it may have been made at the first");
    let made = w.mkdir(data, "sure");
    assert_eq!(r.failovers(), 1);
    assert!(r.scratch.path().join("two/sure").exists());
    r.far[0].set(UP);
    r.far[1].set(REFUSES);
    w.mkdir(data, "elsewhere");
    assert!(r.scratch.path().join("one/elsewhere").exists(), "it was certainly not made before");
    is_gone(w.tree.getattr(&w.cx, made));
    w.tree.release(&w.cx, h).unwrap();
}

#[test]
fn events_of_members_have_ids_of_the_union() {
    let scratch = Scratch::new();
    let tree = host(scratch.path());
    let shown = Arc::new(Synthetic::new(dir([("readme", fixed("hello"))])).unwrap());
    let mounts = vec![mount("/", vec![tree.clone()]), mount("/docs", vec![shown])];
    let union = Arc::new(Union::new(mounts, vec![]).unwrap());
    let f = of(&union);
    let w = World::new(&f);
    let docs = w.lookup(ROOT, "docs").unwrap().id;
    let id = w.put(ROOT, "f", b"x");
    assert_eq!(w.get(w.lookup(docs, "readme").unwrap().id), b"hello");
    let (_watch, events) = record(w.tree);
    let inner = tree.lookup(&w.cx, ROOT, name("f")).unwrap().id;
    tree.unlink(&w.cx, ROOT, name("f")).unwrap();
    let h = tree.create(&w.cx, ROOT, name("unknown"), 0o644, OpenFlags::WRITE).unwrap().1.handle;
    tree.write(&w.cx, h, 0, Bytes::from_static(b"x")).unwrap();
    let entry = |n: &str| Event::Entry { dir: ROOT, name: OsStr::new(n).into() };
    assert_eq!(events.lock().unwrap()[..2], [entry("f"), entry("unknown")]);
    assert_ne!(inner, id);
    is_gone(w.tree.getattr(&w.cx, id));
}
