use super::*;
use crate::vfs::{DirEntry, DirPage};

const DIR: NodeId = NodeId(2);
const TTL: Duration = Duration::from_secs(60);

fn attr(id: u64) -> Attr {
    Attr {
        id: NodeId(id),
        kind: Kind::File,
        mode: 0o100_644,
        nlink: 1,
        uid: 0,
        gid: 0,
        size: id,
        blocks: 0,
        atime_ns: 0,
        mtime_ns: 0,
        ctime_ns: 0,
        generation: 7,
        identity: 0,
    }
}

fn name(s: &str) -> &OsStr {
    OsStr::new(s)
}

fn page(range: std::ops::Range<u64>, eof: bool) -> DirPage {
    let entry = |n| DirEntry { name: format!("f{n}").into(), attr: attr(n + 100), cookie: n + 1 };
    DirPage { entries: range.map(entry).collect(), eof, generation: 1 }
}

#[test]
fn an_answer_that_an_event_overtook_is_not_kept() {
    let m = Meta::new(1 << 20, TTL);
    let since = m.now();
    m.heard(&Event::Attr(NodeId(5)));
    m.put_attr(since, &attr(5), None);
    assert_eq!(m.attr(NodeId(5)), None);
    m.put_attr(m.now(), &attr(5), None);
    assert!(m.attr(NodeId(5)).is_some());
    let since = m.now();
    m.heard(&Event::Entry { dir: DIR, name: name("x").into() });
    m.put_entry(since, DIR, name("x"), Some(None), None);
    assert_eq!(m.entry(DIR, name("x")), Found::Unknown);
    let since = m.now();
    m.heard(&Event::Resync);
    m.put_attr(since, &attr(5), None);
    assert_eq!(m.attr(NodeId(5)), None);
}

#[test]
fn what_a_name_led_to_is_remembered_when_it_may_be_otherwise() {
    let m = Meta::new(1 << 20, TTL);
    let since = m.now();
    m.heard(&Event::Resync);
    m.put_entry(since, DIR, name("x"), Some(Some(NodeId(5))), None);
    assert_eq!(m.leads_to(DIR, name("x")), None);
    assert_eq!(m.node_at(DIR, name("x")), Some(NodeId(5)), "its attributes can be dropped");
    m.put_entry(m.now(), DIR, name("x"), Some(Some(NodeId(6))), None);
    assert_eq!(m.leads_to(DIR, name("x")), Some(NodeId(6)));
    m.heard(&Event::Entry { dir: DIR, name: name("x").into() });
    assert_eq!(m.leads_to(DIR, name("x")), None, "another may have taken it");
}

#[test]
fn a_directory_read_to_its_end_is_known_whole() {
    let m = Meta::new(1 << 20, TTL);
    m.put_page(m.now(), DIR, 0, &page(0..3, false), None);
    assert_eq!(m.entry(DIR, name("f1")), Found::Unknown);
    m.put_page(m.now(), DIR, 3, &page(3..5, true), None);
    assert_eq!(m.entry(DIR, name("f4")), Found::There(attr(104)));
    assert_eq!(m.entry(DIR, name("g")), Found::Absent);
    assert_eq!(m.listing(DIR).unwrap().0.len(), 5);
    // One name changes: the others are still known.
    m.heard(&Event::Entry { dir: DIR, name: name("f4").into() });
    assert_eq!(m.entry(DIR, name("f4")), Found::Unknown);
    assert_eq!(m.entry(DIR, name("g")), Found::Absent);
    assert!(m.listing(DIR).is_none());
    // A page that something happened in between does not make it whole.
    m.heard(&Event::Dir(DIR));
    m.put_page(m.now(), DIR, 0, &page(0..3, false), None);
    m.heard(&Event::Entry { dir: DIR, name: name("z").into() });
    m.put_page(m.now(), DIR, 3, &page(3..5, true), None);
    assert_eq!(m.entry(DIR, name("g")), Found::Unknown);
}

#[test]
fn content_has_a_new_version_when_others_changed_it() {
    let m = Meta::new(1 << 20, TTL);
    let id = NodeId(9);
    let first = m.version(id, 7);
    assert_eq!(m.version(id, 7), first);
    let edition = m.edition(id);
    m.edit(id);
    assert_ne!(m.edition(id), edition);
    m.wrote(m.now(), &Attr { generation: 8, ..attr(9) }, None);
    assert_eq!(m.version(id, 8), first, "our own");
    assert_ne!(m.version(id, 9), first, "missed");
    let third = m.version(id, 9);
    m.heard(&Event::Data { node: id, generation: None });
    assert_eq!(m.edition(id), None);
    assert_ne!(m.version(id, 9), third);
}

#[test]
fn what_events_do_not_tell_grows_old() {
    let m = Meta::new(1 << 20, Duration::ZERO);
    m.put_attr(m.now(), &Attr { nlink: 2, ..attr(5) }, None);
    assert_eq!(m.attr(NodeId(5)), None, "it has another name somewhere");
    let dir = Attr { kind: Kind::Dir, nlink: 2, ..attr(DIR.0) };
    m.put_attr(m.now(), &dir, None);
    assert_eq!(m.attr(DIR), None, "nobody has looked into it");
    m.put_empty(m.now(), DIR, None);
    m.put_attr(m.now(), &dir, None);
    assert_eq!(m.attr(DIR), Some(dir));
}

#[test]
fn answers_of_trees_that_tell_nothing_grow_old() {
    let m = Meta::new(1 << 20, TTL);
    let past = Some(Instant::now());
    m.put_attr(m.now(), &attr(5), past);
    m.put_entry(m.now(), DIR, name("x"), Some(None), past);
    m.put_empty(m.now(), DIR, past);
    assert_eq!(m.attr(NodeId(5)), None);
    assert_eq!(m.entry(DIR, name("x")), Found::Unknown);
    assert_eq!(m.entry(DIR, name("y")), Found::Unknown);
}

#[test]
fn no_more_is_kept_than_was_asked_for() {
    let m = Meta::new(1 << 16, TTL);
    for dir in 0..2000u64 {
        for n in 0..20u64 {
            let id = NodeId(10_000 + dir * 20 + n);
            let leads_to = Some(Some(id));
            m.put_entry(m.now(), NodeId(dir + 1), name(&n.to_string()), leads_to, None);
            m.put_attr(m.now(), &Attr { id, ..attr(0) }, None);
        }
    }
    for shard in &m.shards {
        let mut s = shard.lock().unwrap();
        assert!(s.names <= m.names_max && s.nodes.len() <= m.names_max);
        let mut names = 0;
        while let Some(dir) = s.dirs.evict() {
            names += dir.entries.len() + 1;
        }
        assert_eq!(names, s.names);
    }
}

#[test]
fn of_two_changes_at_once_neither_tells_what_the_file_is_like() {
    let m = Meta::new(1 << 20, TTL);
    let id = NodeId(5);
    let change = || m.edit(id);
    let (first, second) = (change(), change());
    m.wrote(second, &attr(5), None);
    m.wrote(first, &attr(5), None);
    assert_eq!(m.attr(id), None);
    let (first, second) = (change(), change());
    m.wrote(first, &attr(5), None);
    m.wrote(second, &attr(5), None);
    assert_eq!(m.attr(id), None);
    m.wrote(change(), &attr(5), None);
    assert!(m.attr(id).is_some(), "one alone does");
}

#[test]
fn what_was_asked_for_while_a_file_was_changed_is_not_kept() {
    let m = Meta::new(1 << 20, TTL);
    let id = NodeId(5);
    let (before, after) = (Attr { size: 1, ..attr(5) }, Attr { size: 2, ..attr(5) });
    let since = m.edit(id);
    let asked = m.now();
    // Answered before the change, and heard of after it.
    m.wrote(since, &after, None);
    m.put_attr(asked, &before, None);
    assert_eq!(m.attr(id), Some(after));
    let asked = m.now();
    m.expire_attr(id);
    m.put_attr(asked, &before, None);
    assert_eq!(m.attr(id), None);
}
