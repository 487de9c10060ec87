//! What is changed behind a tree's back reaches those who listen, whatever made the change; what they did
//! themselves is told once.

use super::{Fixture, ROOT, Scratch, World, name, record};
use spiderweb::vfs::{
    Event, Local, LocalOptions, NodeId, OpenFlags, SetAttr, SetTime, Tree, Watch,
};
use std::fs;
use std::os::unix::fs::PermissionsExt;
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
        let dir = Scratch::new();
        let tree = Arc::new(Local::open(dir.path(), LocalOptions::default()).unwrap());
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

    /// Makes a change that will be heard, and returns what was heard until then.
    fn until_mark(&self) -> Vec<Event> {
        let mark = self.path("mark");
        fs::write(&mark, "").unwrap();
        let is_mark = |e: &Event| matches!(e, Event::Entry { name, .. } if **name == *"mark");
        let until = Instant::now() + PATIENCE;
        loop {
            let heard = self.events.lock().unwrap().clone();
            if heard.iter().any(is_mark) {
                fs::remove_file(&mark).unwrap();
                return heard.into_iter().filter(|e| !is_mark(e)).collect();
            }
            assert!(Instant::now() < until, "the mark was not heard");
            std::thread::sleep(Duration::from_millis(2));
        }
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
