//! The synthetic tree: the suite on its in-memory directories, and the files that are functions.

use super::{Fixture, ROOT, World, conformance, fails, is_gone, record};
use bytes::Bytes;
use spiderweb::base::{Deadline, Error, Notify, Result, TreePath};
use spiderweb::vfs::synthetic::{
    Item, MemDir, Reply, dir, fixed, json_message, listing, message, stream, text,
};
use spiderweb::vfs::{
    Cx, Event, FileKind, OpenFlags, PageLimit, Read, ReadDir, SetAttr, Synthetic, Who, walk,
};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const LIMIT: u64 = 64 << 20;

pub fn fixture() -> Fixture {
    of(MemDir::new(LIMIT))
}

fn of(root: impl Into<Item>) -> Fixture {
    let tree = Arc::new(Synthetic::new(root).unwrap());
    Fixture { tree, links: false, host_like: false, keep: Box::new(()) }
}

fn path(p: &str) -> TreePath {
    p.parse().unwrap()
}

#[test]
fn the_memory_tree_conforms() {
    conformance(&fixture);
}

#[test]
fn memory_is_bounded_and_given_back() {
    let f = of(MemDir::new(100_000));
    let w = World::new(&f);
    let (attr, h) = w.create(ROOT, "f", OpenFlags::WRITE).unwrap();
    fails(libc::ENOSPC, w.tree.write(&w.cx, h, 1 << 40, Bytes::from_static(b"x")));
    fails(libc::ENOSPC, w.tree.write(&w.cx, h, u64::MAX, Bytes::from_static(b"xy")));
    let huge = SetAttr { size: Some(u64::MAX), ..SetAttr::default() };
    fails(libc::ENOSPC, w.tree.setattr(&w.cx, attr.id, None, &huge));
    for _ in 0..10 {
        w.write(h, 0, &[1; 90_000]);
        let cut = SetAttr { size: Some(0), ..SetAttr::default() };
        w.tree.setattr(&w.cx, attr.id, None, &cut).unwrap();
    }
    let full = (0..1000)
        .find_map(|i| w.tree.mkdir(&w.cx, ROOT, super::name(&format!("d{i}")), 0o755).err());
    assert_eq!(full.unwrap().errno(), libc::ENOSPC);
}

#[test]
fn texts_do_not_tear() {
    let n = Arc::new(AtomicU32::new(0));
    let count = n.clone();
    let make = move |_: &Cx| Ok(format!("{:04}", count.fetch_add(1, Ordering::Relaxed)));
    let f = of(dir([("t", text(make)), ("f", fixed("always"))]));
    let w = World::new(&f);
    let id = w.lookup(ROOT, "t").unwrap();
    assert_eq!((id.size, id.mode & 0o777), (4, 0o444));
    n.store(10, Ordering::Relaxed);
    let h = w.open(id.id, OpenFlags::READ);
    assert_eq!((w.read(h, 0, 2), w.read(h, 2, 2)), (b"00".to_vec(), b"10".to_vec()));
    assert_eq!((w.read(h, 0, 4), w.read(h, 4, 4)), (b"0011".to_vec(), vec![]));
    assert_eq!(w.get(w.lookup(ROOT, "f").unwrap().id), b"always");
    assert_eq!(w.names(ROOT), ["f", "t"]);
    fails(libc::EACCES, w.tree.open(&w.cx, id.id, OpenFlags::WRITE));
    fails(libc::EACCES, w.create(ROOT, "new", OpenFlags::WRITE));
    fails(libc::EACCES, w.tree.unlink(&w.cx, ROOT, super::name("f")));
}

#[test]
fn messages_are_taken_whole_and_answered() {
    let got = Arc::new(Mutex::new(Vec::new()));
    let sink = got.clone();
    let deliver = move |_: &Cx, m: &[u8]| -> Result<Reply> {
        let text = String::from_utf8(m.to_vec()).unwrap();
        if text.contains("bad") {
            return Err(Error::invalid("bad message"));
        }
        sink.lock().unwrap().push(text.clone());
        let mut extra = serde_json::Map::new();
        extra.insert("job".into(), text.len().into());
        Ok(Reply { extra: Some(extra), body: format!("re: {text}").into() })
    };
    let deliver = Arc::new(deliver);
    let (a, b) = (deliver.clone(), deliver);
    let f = of(dir([
        ("input", message(|_| false, move |cx, m| a(cx, m))),
        ("invoke.json", json_message(move |cx, m| b(cx, m))),
    ]));
    let w = World::new(&f);
    let put = |p: &str, s: &str| {
        walk::write_all(w.tree, &w.cx, &path(p), s.as_bytes(), walk::WriteMode::Replace)
    };
    let job = |written: spiderweb::vfs::Written| written.extra.unwrap()["job"].as_u64();
    assert_eq!(job(put("/input", "hello").unwrap()), Some(5));
    assert_eq!(job(put("/invoke.json", r#"{"a":1}"#).unwrap()), Some(7));
    assert_eq!(*got.lock().unwrap(), ["hello", r#"{"a":1}"#], "each was delivered once");
    fails(libc::EINVAL, put("/input", "bad"));

    let attr = w.lookup(ROOT, "invoke.json").unwrap();
    assert_eq!(w.tree.open(&w.cx, attr.id, OpenFlags::READ).unwrap().kind, FileKind::Message);
    let h = w.open(attr.id, OpenFlags::READ_WRITE);
    let write = |at, s: &'static str| {
        w.tree.write(&w.cx, h, at, Bytes::from_static(s.as_bytes())).unwrap().extra.is_some()
    };
    assert!(!write(0, r#"{"x":"}"#) && w.read(h, 0, 99).is_empty());
    assert!(write(7, r#""} "#), "complete in two pieces");
    assert!(w.tree.flush(&w.cx, h).unwrap().extra.is_none(), "and not taken again");
    assert_eq!(w.read(h, 0, 4), b"re: ");
    assert_eq!(w.read(h, 4, 99), b"{\"x\":\"}\"} ");
    // As a shell does that reads on where it has written to.
    assert!(write(0, r#"{"y":2}"#));
    assert_eq!((w.read(h, 7, 4), w.read(h, 11, 99)), (b"re: ".to_vec(), br#"{"y":2}"#.to_vec()));
    let big = Bytes::from(vec![b'x'; (1 << 20) + 1]);
    fails(libc::EFBIG, w.tree.write(&w.cx, h, 0, big));
}

#[test]
fn a_stream_waits_without_holding_anybody() {
    let (notify, value) = (Notify::default(), Arc::new(Mutex::new(None::<&'static str>)));
    let (n, v) = (notify.clone(), value.clone());
    let next = stream(move |_, turn| {
        let (seen, until) = (n.seen(), turn.until(Duration::from_secs(60)));
        if let Some(text) = v.lock().unwrap().take() {
            return Ok(Read::Data { bytes: text.into(), eof: true });
        }
        Ok(Read::Wait(n.wait(seen, until)))
    });
    let timed = stream(|_, turn| {
        let until = turn.until(Duration::from_millis(1));
        if until.passed() {
            return Ok(Read::Data { bytes: Bytes::from_static(b"{}"), eof: true });
        }
        let notify = Notify::default();
        Ok(Read::Wait(notify.wait(notify.seen(), until)))
    });
    let f = of(dir([("next.json", next), ("timed", timed)]));
    let w = World::new(&f);
    let h = w.open(w.lookup(ROOT, "next.json").unwrap().id, OpenFlags::READ);
    let waits = |h| matches!(w.tree.read(&w.cx, h, 0, 99).unwrap(), Read::Wait(_));
    assert!(waits(h) && waits(h));
    std::thread::scope(|s| {
        let reader = s.spawn(|| walk::read(w.tree, &w.cx, h, 0, 3).unwrap().0);
        *value.lock().unwrap() = Some("event");
        notify.notify();
        assert_eq!(&*reader.join().unwrap(), b"eve");
    });
    assert_eq!(w.read(h, 3, 99), b"nt");
    assert_eq!(w.read(h, 5, 99), b"");
    assert!(waits(h), "reading from the start waits for the next one");
    assert_eq!(walk::read_all(w.tree, &w.cx, &path("/timed"), 99).unwrap(), b"{}");
}

/// Directories that show to each caller what is his.
#[test]
fn an_id_opens_no_way_around_a_directory() {
    let home = |cx: &Cx| -> Item {
        let who = cx.who.agent_id.clone();
        dir([("name", text(move |_| Ok(who.clone())))])
    };
    let agents = listing(
        move |cx, name| match name {
            "self" => Ok(home(cx)),
            name if name == cx.who.agent_id => Ok(home(cx)),
            _ => Err(Error::from_errno(libc::ENOENT, "no such agent")),
        },
        move |cx| Ok(vec![(cx.who.agent_id.clone(), home(cx)), ("self".into(), home(cx))]),
    );
    let f = of(dir([("agents", agents)]));
    let cx = |agent: &str| {
        let who = Who { agent_id: agent.into(), ..Who::default() };
        Cx::new(Arc::new(who), Deadline::never())
    };
    let (tree, ada, bob) = (&*f.tree, cx("ada"), cx("bob"));
    let read = |cx: &Cx, p: &str| walk::read_all(tree, cx, &path(p), 99);
    assert_eq!(read(&ada, "/agents/self/name").unwrap(), b"ada");
    assert_eq!(read(&bob, "/agents/self/name").unwrap(), b"bob");
    let own = walk::resolve(tree, &ada, &path("/agents/ada/name")).unwrap();
    is_gone(tree.getattr(&bob, own.id));
    is_gone(tree.open(&bob, own.id, OpenFlags::READ));
    fails(libc::ENOENT, read(&bob, "/agents/ada/name"));
    let shared = walk::resolve(tree, &ada, &path("/agents/self/name")).unwrap();
    let opened = tree.open(&bob, shared.id, OpenFlags::READ).unwrap();
    assert_eq!(&*walk::read(tree, &bob, opened.handle, 0, 99).unwrap().0, b"bob");
}

#[test]
fn listings_that_change_behind_the_tree() {
    let names = Arc::new(Mutex::new((0..100).map(|i| format!("job-{i:03}")).collect::<Vec<_>>()));
    let (a, b) = (names.clone(), names.clone());
    let jobs = listing(
        move |_, name| {
            let known = a.lock().unwrap().iter().any(|n| n == name);
            if known { Ok(fixed("x")) } else { Err(Error::from_errno(libc::ENOENT, "no such job")) }
        },
        move |_| Ok(b.lock().unwrap().iter().map(|n| (n.clone(), fixed("x"))).collect()),
    );
    let tree = Arc::new(Synthetic::new(dir([("jobs", jobs)])).unwrap());
    let f = Fixture { tree: tree.clone(), links: false, host_like: false, keep: Box::new(()) };
    let w = World::new(&f);
    let jobs = w.lookup(ROOT, "jobs").unwrap().id;
    let limit = PageLimit { entries: 10, ..PageLimit::DEFAULT };
    let (mut seen, mut cookie) = (Vec::new(), 0);
    loop {
        let page = w.tree.readdir(&w.cx, ReadDir { dir: jobs, cookie, limit }).unwrap();
        let last = page.entries.last().unwrap();
        cookie = last.cookie;
        names.lock().unwrap().retain(|n| last.name != n.as_str());
        seen.extend(page.entries.into_iter().map(|e| e.name.into_string().unwrap()));
        if page.eof {
            break;
        }
    }
    assert_eq!(seen, (0..100).map(|i| format!("job-{i:03}")).collect::<Vec<_>>());

    let id = w.lookup(jobs, "job-001").unwrap().id;
    let (_watch, events) = record(w.tree);
    tree.changed(&path("/jobs/job-001"));
    tree.changed(&path("/jobs/job-new"));
    let all = Event::All { node: id, generation: None };
    assert_eq!(*events.lock().unwrap(), [Event::Dir(jobs), all, Event::Dir(jobs)]);
    names.lock().unwrap().clear();
    is_gone(w.tree.getattr(&w.cx, id));
}
