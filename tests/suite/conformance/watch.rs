//! What is changed behind a tree's back reaches those who listen, whatever made the change; what they did
//! themselves is told once.

use super::{Fixture, ROOT, Scratch, World, fails, name, record};
use spiderweb::vfs::{
    Caller, Event, Local, LocalOptions, LockKind, LockRequest, NodeId, OpenFlags, RenameFlags,
    SetAttr, SetTime, Tree, Watch,
};
use std::collections::HashSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

struct Watched {
    dir: Scratch,
    tree: Arc<Local>,
    _watch: Watch,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Watched {
    fn start() -> Watched {
        Watched::start_with(LocalOptions::default())
    }

    fn start_with(options: LocalOptions) -> Watched {
        let dir = Scratch::new();
        let tree = Arc::new(Local::open(dir.path(), options).unwrap());
        let (watch, events) = record(&*tree);
        assert!(tree.is_live() && tree.caps().native_watch);
        Watched { dir, tree, _watch: watch, events }
    }

    fn world<T>(&self, f: impl FnOnce(&World<'_>) -> T) -> T {
        let tree = self.tree.clone();
        let fixture = Fixture { tree, links: true, host_like: true, keep: Box::new(()) };
        f(&World::new(&fixture))
    }

    fn path(&self, p: &str) -> std::path::PathBuf {
        self.dir.path().join(p)
    }

    /// Waits for an event that `fits`; forgets all that came until then.
    #[track_caller]
    fn hears(&self, what: &str, fits: impl Fn(&Event) -> bool) {
        let until = Instant::now() + PATIENCE;
        loop {
            let heard = self.events.lock().unwrap().clone();
            if heard.iter().any(&fits) {
                self.events.lock().unwrap().clear();
                return;
            }
            assert!(Instant::now() < until, "{what}: not heard, but {heard:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Makes changes that will be heard, and returns what was heard until then. One gathering is told in
    /// the order of the names: the second mark comes with the next.
    fn until_mark(&self) -> Vec<Event> {
        let is_mark = |e: &Event| matches!(e, Event::Entry { name, .. } if name.as_bytes().starts_with(b"mark-"));
        for _ in 0..2 {
            let mark = format!("mark-{:x}", spiderweb::base::id::random_u53());
            fs::write(self.path(&mark), "").unwrap();
            let is_this = |e: &Event| matches!(e, Event::Entry { name, .. } if **name == *mark);
            until("a mark is heard", || self.events.lock().unwrap().iter().any(is_this));
        }
        let heard = self.events.lock().unwrap().clone();
        heard.into_iter().filter(|e| !is_mark(e)).collect()
    }
}

fn entry(dir: NodeId, n: &str) -> impl Fn(&Event) -> bool {
    let n = n.to_owned();
    move |e| matches!(e, Event::Entry { dir: d, name } if *d == dir && **name == *n)
}

fn data(node: NodeId) -> impl Fn(&Event) -> bool {
    move |e| matches!(e, Event::Data { node: n, .. } if *n == node)
}

#[test]
fn changes_by_others_are_heard() {
    let t = Watched::start();
    fs::create_dir(t.path("d")).unwrap();
    fs::write(t.path("d/f"), "old").unwrap();
    t.world(|w| {
        let d = w.lookup(ROOT, "d").unwrap().id;
        let f = w.lookup(d, "f").unwrap().id;
        let attr = |node| move |e: &Event| *e == Event::Attr(node);

        fs::write(t.path("d/f"), "newer").unwrap();
        t.hears("a write", data(f));
        fs::set_permissions(t.path("d/f"), fs::Permissions::from_mode(0o600)).unwrap();
        t.hears("a chmod", attr(f));
        let file = fs::File::options().write(true).open(t.path("d/f")).unwrap();
        file.set_len(1).unwrap();
        t.hears("a truncation", data(f));
        fs::write(t.path("d/new"), "x").unwrap();
        t.hears("a new file", entry(d, "new"));
        fs::hard_link(t.path("d/f"), t.path("d/link")).unwrap();
        t.hears("a link", attr(f));
        assert_eq!(w.lookup(d, "link").unwrap().id, f);
        fs::remove_file(t.path("d/link")).unwrap();
        t.hears("a link less", |e| matches!(e, Event::All { node, .. } if *node == f));
        // As editors do it.
        fs::write(t.path("d/.f.swp"), "replaced").unwrap();
        fs::rename(t.path("d/.f.swp"), t.path("d/f")).unwrap();
        t.hears("a replacement", entry(d, "f"));
        let again = w.lookup(d, "f").unwrap().id;
        assert_ne!(again, f);
        fs::write(t.path("d/f"), "and changed").unwrap();
        t.hears("a write to what replaced it", data(again));
        fs::rename(t.path("d/f"), t.path("out")).unwrap();
        t.hears("a file that went elsewhere", entry(d, "f"));
        fs::remove_file(t.path("d/new")).unwrap();
        fs::remove_file(t.path("out")).unwrap();
        fs::remove_dir(t.path("d")).unwrap();
        t.hears("a directory that went", |e| entry(ROOT, "d")(e));
    });
}

#[test]
fn a_directory_is_watched_wherever_it_is_moved() {
    let t = Watched::start();
    fs::create_dir_all(t.path("a/b")).unwrap();
    fs::write(t.path("a/b/f"), "x").unwrap();
    t.world(|w| {
        let a = w.lookup(ROOT, "a").unwrap().id;
        let b = w.lookup(a, "b").unwrap().id;
        let f = w.lookup(b, "f").unwrap().id;
        fs::rename(t.path("a/b"), t.path("c")).unwrap();
        t.hears("the move", entry(a, "b"));
        let c = w.lookup(ROOT, "c").unwrap().id;
        assert_eq!(c, b, "ids follow the inode");
        fs::write(t.path("c/f"), "changed").unwrap();
        t.hears("a write in the moved directory", data(f));
    });
}

#[test]
fn what_we_do_ourselves_is_told_once() {
    let t = Watched::start();
    t.world(|w| {
        let d = w.mkdir(ROOT, "d");
        let (attr, h) = w.create(d, "f", OpenFlags::READ_WRITE).unwrap();
        w.lookup(d, "f").unwrap();
        t.until_mark();
        t.events.lock().unwrap().clear();

        for n in 0..20 {
            w.write(h, n, b"x");
        }
        let set = SetAttr { mtime: Some(SetTime::At { ns: 5 }), ..SetAttr::default() };
        w.tree.setattr(&w.cx, attr.id, None, &set).unwrap();
        w.tree.release(&w.cx, h).unwrap();
        let heard = t.until_mark();
        let writes = heard.iter().filter(|e| data(attr.id)(e)).count();
        assert_eq!(writes, 20, "{heard:?}");
        assert_eq!(heard.iter().filter(|e| **e == Event::Attr(attr.id)).count(), 1, "{heard:?}");
        w.tree.unlink(&w.cx, d, name("f")).unwrap();
        w.put(d, "g", b"x");
        let heard = t.until_mark();
        for n in ["f", "g"] {
            assert!(heard.iter().filter(|e| entry(d, n)(e)).count() <= 1, "{n}: {heard:?}");
        }
    });
}

#[test]
fn where_nobody_looks_nobody_hears() {
    let t = Watched::start();
    for d in ["seen", "unseen"] {
        fs::create_dir(t.path(d)).unwrap();
        fs::write(t.path(d).join("f"), "x").unwrap();
    }
    t.world(|w| {
        let seen = w.lookup(ROOT, "seen").unwrap().id;
        w.lookup(ROOT, "unseen").unwrap();
        let f = w.lookup(seen, "f").unwrap().id;
        fs::write(t.path("unseen/f"), "changed").unwrap();
        fs::write(t.path("unseen/new"), "").unwrap();
        fs::write(t.path("seen/f"), "changed").unwrap();
        t.hears("the one that was looked at", data(f));
        let heard = t.until_mark();
        assert!(heard.iter().all(|e| !matches!(e, Event::Entry { name, .. } if **name == *"new")));
    });
}

/// Somebody remembers what a name was, and somebody else has looked it up again before it is told.
#[test]
fn what_one_client_has_seen_is_told_to_the_others() {
    let t = Watched::start();
    t.world(|w| {
        let d = w.mkdir(ROOT, "d");
        w.put(d, "f", b"old");
        fails(libc::ENOENT, w.lookup(d, "new"));
        t.until_mark();
        t.events.lock().unwrap().clear();
        fs::write(t.path("d/new"), "x").unwrap();
        w.lookup(d, "new").unwrap();
        t.hears("a name that was not there", entry(d, "new"));
        fs::write(t.path("d/tmp"), "replaced").unwrap();
        fs::rename(t.path("d/tmp"), t.path("d/f")).unwrap();
        w.lookup(d, "f").unwrap();
        t.hears("a name that led elsewhere", entry(d, "f"));
        // There and back again: whoever looked in between remembers that there is nothing.
        fs::rename(t.path("d/f"), t.path("d/away")).unwrap();
        fails(libc::ENOENT, w.lookup(d, "f"));
        fs::rename(t.path("d/away"), t.path("d/f")).unwrap();
        w.lookup(d, "f").unwrap();
        t.hears("a name that was away", entry(d, "f"));
    });
}

/// We change names at the same time as others.
#[test]
fn changes_by_others_are_heard_among_our_own() {
    let t = Watched::start();
    t.world(|w| {
        let d = w.mkdir(ROOT, "d");
        let outside = Scratch::new();
        for round in 0..20 {
            t.until_mark();
            t.events.lock().unwrap().clear();
            w.put(d, "tmp", b"ours");
            let flags = RenameFlags::default();
            w.tree.rename(&w.cx, (d, name("tmp")), (d, name("f")), flags).unwrap();
            let ours = t.events.lock().unwrap().len();
            // From where nobody looks: one event, and the same one as ours.
            let there = outside.path().join("f");
            fs::write(&there, "theirs").unwrap();
            fs::rename(&there, t.path("d/f")).unwrap();
            w.lookup(d, "f").unwrap();
            let heard = t.until_mark();
            assert!(heard[ours..].iter().any(entry(d, "f")), "round {round}: {heard:?}");
        }
    });
}

/// Where no more can be watched, what was watched longest goes, and everybody looks again: also
/// the one whose call it was.
#[test]
fn a_bound_on_watches_comes_to_a_resync() {
    let options = LocalOptions { watches_max: 8, ..LocalOptions::default() };
    let t = Watched::start_with(options);
    let me = Caller::unique();
    let resyncs = Arc::new(Mutex::new(0));
    let heard = resyncs.clone();
    let _watch = t.tree.watch(Arc::new(move |e| {
        *heard.lock().unwrap() += usize::from(!me.is_here() && e == Event::Resync);
    }));
    t.world(|w| {
        let dirs: Vec<_> = (0..9).map(|i| w.mkdir(ROOT, format!("d{i}"))).collect();
        *resyncs.lock().unwrap() = 0;
        for dir in &dirs {
            me.run(|| w.names(*dir));
        }
        assert!(*resyncs.lock().unwrap() > 0);
        assert!(watched_here(t.dir.path()) <= 8);
        // Who looks again is told again.
        for (i, dir) in dirs.iter().enumerate() {
            w.names(*dir);
            fs::write(t.path(&format!("d{i}/new")), "").unwrap();
            t.hears("a file in a directory that was looked at again", entry(*dir, "new"));
        }
    });
}

#[test]
fn when_the_last_listener_goes_nothing_is_watched() {
    let t = Watched::start();
    fs::create_dir(t.path("d")).unwrap();
    let Watched { dir, tree, _watch, .. } = t;
    let fixture = Fixture { tree: tree.clone(), links: true, host_like: true, keep: Box::new(()) };
    let w = World::new(&fixture);
    let d = w.lookup(ROOT, "d").unwrap().id;
    assert!(w.names(d).is_empty());
    assert_eq!(watched_here(dir.path()), 2);
    let (second, events) = record(&*tree);
    drop(_watch);
    fs::write(dir.path().join("d/f"), "").unwrap();
    until("the second still listens", || events.lock().unwrap().iter().any(entry(d, "f")));
    drop(second);
    until("nothing is watched", || watched_here(dir.path()) == 0);
    // And whoever comes later hears again.
    let (_third, events) = record(&*tree);
    w.names(d);
    fs::write(dir.path().join("d/g"), "").unwrap();
    until("the third hears", || events.lock().unwrap().iter().any(entry(d, "g")));
}

/// Whoever gets a lock is told what others wrote before he hears that he has it.
#[test]
fn a_lock_is_granted_after_the_news() {
    let t = Watched::start();
    let me = Caller::unique();
    let news = Arc::new(Mutex::new(Vec::new()));
    let sink = news.clone();
    let _watch = t.tree.watch(Arc::new(move |e| {
        if !me.is_here() {
            sink.lock().unwrap().push(e);
        }
    }));
    t.world(|w| {
        let id = w.put(ROOT, "f", b"ours");
        let h = w.open(id, OpenFlags::READ_WRITE);
        news.lock().unwrap().clear();
        fs::write(t.path("f"), "theirs").unwrap();
        let request = LockRequest { kind: LockKind::Shared, owner: 1, range: None };
        me.run(|| w.tree.lock(&w.cx, h, request)).unwrap();
        assert!(news.lock().unwrap().iter().any(data(id)), "{news:?}");
    });
}

#[track_caller]
fn until(what: &str, holds: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// How many directories below `root`, itself included, this process watches: as the kernel tells it.
fn watched_here(root: &Path) -> usize {
    let inodes: HashSet<u64> = fs::read_dir(root)
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap())
        .chain([fs::metadata(root).unwrap()])
        .map(|m| m.ino())
        .collect();
    let infos = fs::read_dir("/proc/self/fdinfo").unwrap();
    let texts = infos.filter_map(|e| fs::read_to_string(e.unwrap().path()).ok());
    let watches = |text: String| {
        let inode =
            |l: &str| l.strip_prefix("inotify ")?.split_once("ino:").map(|(_, r)| r.to_owned());
        text.lines()
            .filter_map(inode)
            .filter_map(|r| u64::from_str_radix(r.split(' ').next()?, 16).ok())
            .filter(|ino| inodes.contains(ino))
            .count()
    };
    texts.map(watches).sum()
}
