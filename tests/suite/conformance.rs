//! What every tree must do, whatever stands behind it. A tree's test hands [`conformance`] a function
//! that makes a fresh, empty, writable one.

mod cached;
mod changes;
mod files;
mod listing;
mod local;
pub use local::SmallDisk;
mod model;
mod mounted;
mod random;
mod regions;
mod remote;
pub use remote::Node;
mod synthetic;
mod union;
mod watch;

use bytes::Bytes;
use spiderweb::base::{Deadline, Error, Name, Result};
use spiderweb::vfs::{
    Attr, Cx, DirEntry, Event, Handle, NodeId, OpenFlags, PageLimit, Read, ReadDir, Tree,
};
use std::any::Any;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// A tree under test, and what [`spiderweb::vfs::Caps`] does not say about it.
pub struct Fixture {
    pub tree: Arc<dyn Tree>,
    /// Hard links.
    pub links: bool,
    /// chmod and names that are not UTF-8.
    pub host_like: bool,
    /// What must live as long as the tree.
    #[expect(dead_code, reason = "held for its Drop")]
    pub keep: Box<dyn Any + Send + Sync>,
}

/// Runs every check on trees that `make` makes.
pub fn conformance(make: &dyn Fn() -> Fixture) {
    conformance_without(&[], make);
    random::compare_with_model(make);
}

/// Runs every check but those named.
pub fn conformance_without(left_out: &[&str], make: &dyn Fn() -> Fixture) {
    let checks = || {
        files::CHECKS.iter().chain(changes::CHECKS).chain(listing::CHECKS).chain(regions::CHECKS)
    };
    for name in left_out {
        assert!(checks().any(|(what, _)| what == name), "there is no check {name:?}");
    }
    for (what, check) in checks().filter(|(what, _)| !left_out.contains(what)) {
        println!("conformance: {what}");
        let fixture = make();
        check(&World::new(&fixture));
    }
}

type Check = (&'static str, fn(&World<'_>));

/// A tree with shorthands.
struct World<'f> {
    fixture: &'f Fixture,
    tree: &'f dyn Tree,
    cx: Cx,
}

const ROOT: NodeId = NodeId::ROOT;

impl<'f> World<'f> {
    fn new(fixture: &'f Fixture) -> World<'f> {
        let cx = Cx::internal(Deadline::after_ms(60_000));
        World { fixture, tree: &*fixture.tree, cx }
    }

    fn lookup(&self, dir: NodeId, n: impl AsRef<OsStr>) -> Result<Attr> {
        self.tree.lookup(&self.cx, dir, name(&n))
    }

    fn mkdir(&self, dir: NodeId, n: impl AsRef<OsStr>) -> NodeId {
        self.tree.mkdir(&self.cx, dir, name(&n), 0o755).unwrap().id
    }

    fn create(
        &self,
        dir: NodeId,
        n: impl AsRef<OsStr>,
        flags: OpenFlags,
    ) -> Result<(Attr, Handle)> {
        let (attr, opened) = self.tree.create(&self.cx, dir, name(&n), 0o644, flags)?;
        Ok((attr, opened.handle))
    }

    /// A file with content, closed.
    fn put(&self, dir: NodeId, n: impl AsRef<OsStr>, content: &[u8]) -> NodeId {
        let flags = OpenFlags { truncate: true, ..OpenFlags::WRITE };
        let (attr, h) = self.create(dir, n, flags).unwrap();
        self.write(h, 0, content);
        self.tree.flush(&self.cx, h).unwrap();
        self.tree.release(&self.cx, h).unwrap();
        attr.id
    }

    fn open(&self, node: NodeId, flags: OpenFlags) -> Handle {
        self.tree.open(&self.cx, node, flags).unwrap().handle
    }

    fn write(&self, h: Handle, offset: u64, data: &[u8]) {
        let n = self.tree.write(&self.cx, h, offset, Bytes::copy_from_slice(data)).unwrap().n;
        assert_eq!(n, data.len() as u64);
    }

    fn read(&self, h: Handle, offset: u64, len: u32) -> Vec<u8> {
        match self.tree.read(&self.cx, h, offset, len).unwrap() {
            Read::Data { bytes, .. } => bytes.to_vec(),
            Read::Wait(_) => panic!("a plain file does not wait"),
        }
    }

    /// The whole content of a file, read in two sizes of pieces.
    fn get(&self, node: NodeId) -> Vec<u8> {
        let h = self.open(node, OpenFlags::READ);
        let mut all = Vec::new();
        loop {
            let piece =
                self.read(h, all.len() as u64, if all.len() % 2 == 0 { 100_000 } else { 7 });
            if piece.is_empty() {
                self.tree.release(&self.cx, h).unwrap();
                return all;
            }
            all.extend(piece);
        }
    }

    fn entries(&self, dir: NodeId) -> Vec<DirEntry> {
        let mut all: Vec<DirEntry> = Vec::new();
        loop {
            let cookie = all.last().map_or(0, |e| e.cookie);
            let at = ReadDir { dir, cookie, limit: PageLimit::DEFAULT };
            let page = self.tree.readdir(&self.cx, at).unwrap();
            let done = page.eof || page.entries.is_empty();
            all.extend(page.entries);
            if done {
                return all;
            }
        }
    }

    fn names(&self, dir: NodeId) -> Vec<OsString> {
        let mut names: Vec<_> = self.entries(dir).into_iter().map(|e| e.name).collect();
        names.sort();
        names
    }
}

fn name<'n>(n: &'n (impl AsRef<OsStr> + ?Sized)) -> Name<'n> {
    Name::new(n.as_ref()).unwrap()
}

#[track_caller]
fn fails<T>(errno: i32, outcome: Result<T>) {
    match outcome {
        Ok(_) => panic!("succeeded instead of failing with errno {errno}"),
        Err(e) => assert_eq!(e.errno(), errno, "{e:?}"),
    }
}

/// A node that is gone is known no more, or known to be gone.
#[track_caller]
fn is_gone<T>(outcome: Result<T>) {
    let e = outcome.err().expect("the node is gone");
    assert!(matches!(e.errno(), libc::ESTALE | libc::ENOENT), "{e:?}");
}

fn unsupported(e: &Error) -> bool {
    matches!(e.errno(), libc::ENOSYS | libc::EOPNOTSUPP)
}

/// The events of a tree from now on.
fn record(tree: &dyn Tree) -> (spiderweb::vfs::Watch, Arc<Mutex<Vec<Event>>>) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = events.clone();
    let watch = tree.watch(Arc::new(move |e| sink.lock().unwrap().push(e))).unwrap();
    (watch, events)
}

/// A directory of its own, removed with everything in it.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        let unique = format!("spiderweb-test-{}-{:x}", std::process::id(), fresh());
        let path = std::env::temp_dir().join(unique);
        std::fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

fn fresh() -> u64 {
    spiderweb::base::id::random_u53()
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
