//! The node protocol as old clients use it (spec: fs 3, 5 to 8).

use super::raw::{Raw, errno, eventually};
use crate::conformance::Scratch;
use bytes::Bytes;
use serde_json::{Value, json};
use spiderweb::base::{Deadline, Error, Notify, Pool, Timer};
use spiderweb::net::{Listener, Net};
use spiderweb::node::{Door, Entry, Export, Exports, FsService, Server, TokenDoor};
use spiderweb::vfs::synthetic::{Synthetic, dir, stream};
use spiderweb::vfs::{Local, LocalOptions, Read, Tree};
use spiderweb::wire::fs::{Call, Framing, Hello, Request};
use spiderweb::wire::{Frame, base64_encode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

/// A node in this process.
pub(super) struct Node {
    pub listener: Listener,
    net: Arc<Net>,
    timer: Timer,
    pub dir: Scratch,
}

impl Node {
    /// Exports a directory of its own as `work`, and as `docs` read-only.
    pub fn start() -> Node {
        Node::with(None, |dir| {
            let open = |read_only| -> Arc<dyn Tree> {
                let options = LocalOptions { read_only, ..LocalOptions::default() };
                Arc::new(Local::open(dir.path(), options).unwrap())
            };
            vec![export("work", open(false), false), export("docs", open(true), true)]
        })
    }

    pub fn with(token: Option<&str>, exports: impl FnOnce(&Scratch) -> Vec<Export>) -> Node {
        let dir = Scratch::new();
        let exports = Arc::new(Exports::new(exports(&dir)).unwrap());
        let token = token.map(str::to_owned);
        Node::behind(dir, Arc::new(TokenDoor { name: "n".into(), exports, token }))
    }

    fn behind(dir: Scratch, door: Arc<dyn Door>) -> Node {
        let timer = Timer::start().unwrap();
        let net = Net::start(1, timer.clone()).unwrap();
        let server = Arc::new(Server::new(Pool::start("files", 4, 256).unwrap(), timer.clone()));
        let service = Arc::new(FsService { server, door });
        let listener = net.listen("127.0.0.1:0".parse().unwrap(), service).unwrap();
        Node { listener, net, timer, dir }
    }

    pub fn raw(&self) -> Raw {
        Raw::open(self.listener.addr(), "/v2/fs", None)
    }

    /// A client that has said hello, and the root of the first export.
    fn client(&self) -> (Raw, u64) {
        let mut c = self.raw();
        c.hello(json!({}));
        let root = c.root();
        (c, root)
    }

    fn put(&self, name: &str, content: &str) {
        std::fs::write(self.dir.path().join(name), content).unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.net.stop(Deadline::after_ms(1000));
        self.timer.stop();
    }
}

pub(super) fn export(name: &str, tree: Arc<dyn Tree>, ro: bool) -> Export {
    let (name, source_id) = (name.to_owned(), format!("linux:{name}"));
    Export { name, tree, ro, desc: "/x".into(), source_kind: "linux".into(), source_id }
}

fn on(node: u64) -> Value {
    json!({"node": node})
}

fn open(c: &mut Raw, root: u64, name: &str, flags: u32) -> Value {
    let attr = c.call("lookup", on(root), json!({"name": name}));
    let id = attr["attr"]["id"].as_u64().unwrap();
    let opened = c.call("open", on(id), json!({"flags": flags}));
    json!({"h": opened["h"]})
}

#[test]
fn without_a_proper_hello_the_connection_ends_with_the_reason() {
    let node = Node::with(Some("secret"), |_| Vec::new());
    let hello = json!({"protocol": "unified-v2-fs", "proto": 2, "auth_token": "secret"});
    let but = |key: &str, value: Value| {
        let mut h = hello.clone();
        match value {
            Value::Null => h.as_object_mut().unwrap().remove(key),
            value => h.as_object_mut().unwrap().insert(key.into(), value),
        };
        h
    };
    for (payload, words) in [
        (but("protocol", Value::Null), "MissingField"),
        (but("proto", Value::Null), "MissingField"),
        (but("protocol", json!("unified-v1-fs")), "ProtocolMismatch"),
        (but("proto", json!(3)), "ProtocolMismatch"),
        (but("proto", json!("2")), "InvalidType"),
        (but("subscribe_invalidations", json!("yes")), "InvalidType"),
        (but("auth_token", Value::Null), "AuthMissing"),
        (but("auth_token", json!("Secret")), "AuthFailed"),
    ] {
        let mut c = node.raw();
        assert_eq!(c.fails("hello", json!({}), payload), (libc::EINVAL, words.into()));
        c.closes();
    }
    // Also one that is wrong in itself.
    for (channel, name) in
        [("acheron", "t_fs_exports"), ("acheron", "t_fs_lookup"), ("control", "version")]
    {
        let mut c = node.raw();
        c.send(&json!({"channel": channel, "type": format!("{channel}.{name}"), "tag": 3}));
        let e = errno(&c.next().unwrap());
        assert_eq!(e, (libc::EINVAL, "acheron.t_fs_hello must be negotiated first".into()));
        c.closes();
    }
    let mut c = node.raw();
    c.send_text("{nonsense");
    assert_eq!(errno(&c.next().unwrap()), (libc::EINVAL, "SyntaxError".into()));
    c.closes();
    let mut c = Raw::open(node.listener.addr(), "/v2/elsewhere", None);
    assert_eq!(errno(&c.next().unwrap()).1, "invalid FS endpoint path");
    c.closes();
    // The root path is as good.
    let mut c = Raw::open(node.listener.addr(), "/", None);
    let reply = c.call("hello", json!({}), hello);
    assert_eq!((&reply["protocol"], &reply["proto"]), (&json!("unified-v2-fs"), &json!(2)));
    assert_eq!(reply["caps"]["max_write"], 1_048_576);
    assert_eq!(reply.get("ext"), None, "nothing that was not asked for");
}

#[test]
fn after_the_hello_only_frames_that_make_no_sense_end_the_connection() {
    let node = Node::start();
    let (mut c, _) = node.client();
    c.send(&json!({"channel": "acheron", "type": "acheron.t_walk", "tag": 7, "fid": 1}));
    assert_eq!(errno(&c.next().unwrap()), (libc::EINVAL, "UnsupportedType".into()));
    c.send_binary(&[0; 3]);
    assert!(errno(&c.next().unwrap()).1.contains("unsupported websocket opcode"));
    c.call("exports", json!({}), json!({}));
    // Operations that were not negotiated are as unknown as others.
    for unknown in ["nope", "fsync"] {
        let (mut c, _) = node.client();
        let (e, message) = c.fails(unknown, json!({"h": 1}), json!({}));
        assert_eq!((e, &*message), (libc::EINVAL, "UnsupportedType"));
        c.closes();
    }
    let (mut c, _) = node.client();
    c.send_text("[]");
    assert_eq!(errno(&c.next().unwrap()).0, libc::EINVAL);
    c.closes();
    // A hello that is wrong, also later.
    let (mut c, _) = node.client();
    assert_eq!(c.fails("hello", json!({}), json!({"proto": 2})).1, "MissingField");
    c.closes();
}

#[test]
fn compressed_frames_are_taken_where_both_sides_have_said_so() {
    let node = Node::start();
    let write = |h: u64, framing: Framing| {
        let data = Bytes::from(b"again and ".repeat(500));
        match Request::new(9, Call::Write { h, off: 0, data }).encode(framing) {
            Frame::Binary { head, data } => [head, data].concat(),
            Frame::Text(_) => panic!("a binary frame expected"),
        }
    };
    for (lz4, agreed) in [(json!(1), true), (json!(0), false), (Value::Null, false)] {
        let mut c = Raw::open(node.listener.addr(), "/v2/fs", None);
        let ext = json!({"v": 1, "bin": 1, "lz4": lz4, "ops": []});
        let reply = c.hello(json!({"ext": ext}));
        assert_eq!(reply["ext"]["lz4"], if agreed { json!(1) } else { Value::Null });
        let (root, name) = (c.root(), format!("f{lz4}"));
        let flags = libc::O_RDWR | libc::O_CREAT;
        let made = json!({"name": name, "mode": 0o644, "flags": flags});
        let made = c.call("create", json!({"node": root}), made);
        let h = made["h"].as_u64().unwrap();
        let good = write(h, Framing::Lz4);
        let mut lying = good.clone();
        lying[12] ^= 1;
        for (frame, taken) in [(lying, false), (good, agreed), (write(h, Framing::Binary), true)] {
            c.send_binary(&frame);
            let answer = c.answer().unwrap();
            assert_eq!(answer["ok"], taken, "{answer}");
            if taken {
                assert_eq!(answer["payload"]["n"], 5000);
            }
        }
        assert_eq!(std::fs::read(node.dir.path().join(name)).unwrap(), b"again and ".repeat(500));
    }
}

#[test]
fn a_file_is_created_written_and_renamed_with_events_before_the_replies() {
    let node = Node::start();
    let (mut c, root) = node.client();
    let created = c.call("create", on(root), json!({"name": "a.txt", "mode": 33188, "flags": 2}));
    let (id, h) = (created["attr"]["id"].as_u64().unwrap(), json!({"h": created["h"]}));
    assert_eq!((&created["attr"]["k"], &created["attr"]["sz"]), (&json!(1), &json!(0)));
    let about = |events: &[Value], kind: &str, node: (&str, u64)| {
        let named = |e: &&Value| e["type"] == kind && e["payload"][node.0] == node.1;
        events.iter().filter(named).count()
    };
    assert!(about(&c.events, "acheron.e_fs_inval_dir", ("dir", root)) > 0, "{:?}", c.events);
    assert!(about(&c.events, "acheron.e_fs_inval", ("node", id)) > 0, "{:?}", c.events);
    c.events.clear();
    let reply = c.call("write", h.clone(), json!({"off": 0, "data_b64": "aGVsbG8="}));
    assert_eq!(reply["n"], 5);
    assert!(about(&c.events, "acheron.e_fs_inval", ("node", id)) > 0, "{:?}", c.events);
    assert_eq!(c.call("close", h.clone(), json!({})), json!({}));
    assert_eq!(c.fails("close", h, json!({})), (libc::EBADF, "unknown handle".into()));
    c.events.clear();
    let names = json!({
        "old_parent": root, "old_name": "a.txt", "new_parent": root, "new_name": "b.txt",
    });
    assert_eq!(c.call("rename", json!({}), names), json!({}));
    assert!(about(&c.events, "acheron.e_fs_inval_dir", ("dir", root)) > 0, "{:?}", c.events);
    assert_eq!(std::fs::read(node.dir.path().join("b.txt")).unwrap(), b"hello");
    let again = c.call("lookup", on(root), json!({"name": "b.txt"}));
    assert_eq!(again["attr"]["id"], id);
    assert_eq!(c.fails("create", on(root), json!({"name": "b.txt"})).0, libc::EEXIST);
}

#[test]
fn changes_of_one_client_are_told_to_those_who_subscribed() {
    let node = Node::start();
    let mut watcher = node.raw();
    watcher.hello(json!({"subscribe_invalidations": true}));
    let (mut c, root) = node.client();
    c.call("mkdir", on(root), json!({"name": "d"}));
    let event = watcher.next().unwrap();
    assert_eq!(event["type"], "acheron.e_fs_inval_dir");
    assert_eq!(event["payload"]["dir"], root);
    assert_eq!(event.get("tag"), None);
    // A client that knows no extensions hears of it in any case.
    let (mut old, _) = node.client();
    let mut ours = node.raw();
    ours.hello(json!({"subscribe_invalidations": false, "ext": {"v": 1}}));
    c.call("mkdir", on(root), json!({"name": "e"}));
    // Of what was done before he came he may still hear something.
    let is_it = |e: &Value| e["type"] == "acheron.e_fs_inval_dir";
    let told = std::iter::from_fn(|| old.next()).find(is_it).unwrap();
    assert_eq!(told["payload"]["dir"], root);
    ours.send(&json!({"channel": "acheron", "type": "acheron.t_fs_exports", "tag": 9}));
    assert_eq!(ours.next().unwrap()["tag"], 9);
}

#[test]
fn arguments_are_read_under_old_and_new_names() {
    let node = Node::start();
    node.put("f", "0123456789");
    let (mut c, root) = node.client();
    let h = open(&mut c, root, "f", 0);
    let read = |c: &mut Raw, payload| {
        let reply = c.call("read", h.clone(), payload);
        let data = spiderweb::wire::base64_decode(reply["data_b64"].as_str().unwrap()).unwrap();
        (String::from_utf8(data).unwrap(), reply["eof"].as_bool().unwrap())
    };
    assert_eq!(read(&mut c, json!({})), ("0123456789".into(), true));
    assert_eq!(read(&mut c, json!({"off": 2, "len": 3})), ("234".into(), false));
    assert_eq!(read(&mut c, json!({"offset": 8, "count": 3})), ("89".into(), true));
    assert_eq!(read(&mut c, json!({"off": 99})), (String::new(), true));
    let id = c.call("lookup", on(root), json!({"name": "f"}))["attr"]["id"].clone();
    let opened = c.call("open", json!({"node": id}), json!({"mode": "w"}));
    assert_eq!(opened["caps"]["wr"], true, "{opened}");
    for (op, at, payload, words) in [
        ("read", json!({}), json!({}), "READ requires h"),
        ("getattr", json!({}), json!({}), "GETATTR requires node"),
        ("lookup", on(root), json!({}), "LOOKUP requires a.name"),
        ("read", h.clone(), json!({"off": "x"}), "off must be u64"),
        ("readdirp", on(root), json!({"max": -1}), "max must be u32"),
        ("lock", h.clone(), json!({"kind": "odd"}), "invalid lock kind"),
        ("write", h.clone(), json!({"data_b64": "*"}), "invalid base64 payload"),
    ] {
        assert_eq!(c.fails(op, at, payload), (libc::EINVAL, words.into()));
    }
    c.call("close", h, json!({}));
}

#[test]
fn handles_keep_to_their_rights_and_their_session() {
    let node = Node::start();
    node.put("f", "x");
    let (mut a, root) = node.client();
    let (mut b, _) = node.client();
    let (r, w) = (open(&mut a, root, "f", 0), open(&mut a, root, "f", 1));
    let data = json!({"data_b64": "eA=="});
    let e = a.fails("write", r.clone(), data.clone());
    assert_eq!(e, (libc::EBADF, "handle not writable".into()));
    let e = a.fails("read", w.clone(), json!({}));
    assert_eq!(e, (libc::EBADF, "handle not readable".into()));
    assert_eq!(b.fails("read", r.clone(), json!({})).0, libc::EBADF);
    assert_eq!(b.fails("close", r.clone(), json!({})).0, libc::EBADF);
    assert_eq!(a.fails("read", json!({"h": 4711}), json!({})).0, libc::EBADF);
    assert_eq!(a.fails("getattr", on(7), json!({})).0, libc::ENOENT);
    let big = json!({"data_b64": base64_encode(&vec![0; (1 << 20) + 1])});
    assert_eq!(a.fails("write", w.clone(), big), (libc::EINVAL, "WRITE exceeds max_write".into()));
    let full = json!({"data_b64": base64_encode(&vec![7; 1 << 20])});
    assert_eq!(a.call("write", w, full)["n"], 1 << 20);
    // As much as is asked for is clamped; an end that was not reached is none.
    let reply = a.call("read", r, json!({"len": 4 << 20}));
    assert_eq!(reply["eof"], false);
    assert_eq!(reply["data_b64"].as_str().unwrap().len(), (1usize << 20).div_ceil(3) * 4);
}

#[test]
fn a_read_only_export_refuses_every_change() {
    let node = Node::start();
    node.put("f", "x");
    let mut c = node.raw();
    c.hello(json!({}));
    let exports = c.call("exports", json!({}), json!({}));
    let (work, docs) = (&exports["exports"][0], &exports["exports"][1]);
    assert_eq!((&docs["name"], &docs["ro"]), (&json!("docs"), &json!(true)));
    let root = docs["root"].as_u64().unwrap();
    let f = c.call("lookup", on(root), json!({"name": "f"}))["attr"]["id"].as_u64().unwrap();
    let both = |name: &str| json!({"name": name});
    for (op, at, payload) in [
        ("create", on(root), both("n")),
        ("mkdir", on(root), both("n")),
        ("unlink", on(root), both("f")),
        ("rmdir", on(root), both("f")),
        ("symlink", on(root), json!({"name": "n", "target": "f"})),
        ("truncate", on(f), json!({"sz": 0})),
        ("open", on(f), json!({"flags": 2})),
        ("setxattr", on(f), json!({"name": "user.a", "value_b64": "eA=="})),
    ] {
        let e = c.fails(op, at, payload);
        assert_eq!(e, (libc::EROFS, "export is read-only".into()), "{op}");
    }
    let over = json!({
        "old_parent": work["root"], "old_name": "f", "new_parent": root, "new_name": "g",
    });
    assert!([libc::EXDEV, libc::EROFS].contains(&c.fails("rename", json!({}), over).0));
    assert_eq!(std::fs::read(node.dir.path().join("f")).unwrap(), b"x");
}

#[test]
fn directories_are_paged_with_dots_first() {
    let node = Node::start();
    for n in 0..10 {
        node.put(&format!("f{n}"), "");
    }
    let (mut c, root) = node.client();
    let none = c.call("readdirp", on(root), json!({"cookie": 0, "max": 0}));
    assert_eq!((&none["ents"], &none["eof"]), (&json!([]), &json!(false)));
    for max in [1, 3, 100] {
        let (mut names, mut cookie) = (Vec::new(), json!(0));
        loop {
            let page = c.call("readdirp", on(root), json!({"cookie": cookie, "max": max}));
            let entries = page["ents"].as_array().unwrap();
            assert!(entries.len() <= max);
            names.extend(entries.iter().map(|e| e["name"].as_str().unwrap().to_owned()));
            cookie = page["next"].clone();
            assert_eq!(cookie, names.len());
            if page["eof"] == true {
                break;
            }
        }
        assert_eq!(names[..2], [".", ".."], "max {max}");
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 12, "max {max}: {names:?}");
    }
    let f = c.call("lookup", on(root), json!({"name": "f0"}))["attr"]["id"].as_u64().unwrap();
    let e = c.fails("readdirp", on(f), json!({}));
    assert_eq!(e, (libc::ENOTDIR, "node is not a directory".into()));
}

#[test]
fn who_does_not_know_links_sees_what_they_lead_to() {
    let node = Node::start();
    node.put("f", "12345");
    let (mut c, root) = node.client();
    c.call("symlink", on(root), json!({"name": "good", "target": "f"}));
    c.call("symlink", on(root), json!({"name": "bad", "target": "missing"}));
    c.call("symlink", on(root), json!({"name": "out", "target": "/etc/passwd"}));
    let attr = c.call("lookup", on(root), json!({"name": "good"}))["attr"].clone();
    assert_eq!((&attr["k"], &attr["sz"]), (&json!(1), &json!(5)));
    assert_eq!(c.fails("lookup", on(root), json!({"name": "bad"})).0, libc::ENOENT);
    c.call("symlink", on(root), json!({"name": "up", "target": "x/../../f"}));
    for out in ["out", "up"] {
        assert_eq!(c.fails("lookup", on(root), json!({"name": out})).0, libc::EACCES, "{out}");
    }
    let page = c.call("readdirp", on(root), json!({}));
    let names: Vec<_> = page["ents"].as_array().unwrap().iter().map(|e| &e["name"]).collect();
    assert!(names.contains(&&json!("good")) && !names.contains(&&json!("out")), "{names:?}");
    // A client that knows them sees them.
    let mut c = node.raw();
    let reply = c.hello(json!({"ext": {"v": 1, "ops": ["readlink"]}}));
    assert_eq!(reply["ext"]["ops"], json!(["readlink"]));
    let attr = c.call("lookup", on(root), json!({"name": "bad"}))["attr"].clone();
    assert_eq!(attr["k"], 3);
}

/// A tree with `wait`, which is empty until told, and `now`.
fn waiting(told: &Notify, content: &Arc<Mutex<Option<&'static str>>>) -> Arc<dyn Tree> {
    let (told, content) = (told.clone(), content.clone());
    let wait = stream(move |_, _| {
        let seen = told.seen();
        Ok(match *content.lock().unwrap() {
            Some(text) => Read::Data { bytes: text.into(), eof: true },
            None => Read::Wait(told.wait(seen, Deadline::never())),
        })
    });
    let now = stream(|_, _| Ok(Read::Data { bytes: "now".into(), eof: true }));
    Arc::new(Synthetic::new(dir([("wait", wait), ("now", now)])).unwrap())
}

#[test]
fn replies_overtake_a_read_that_waits_and_closing_gives_it_up() {
    let (told, content) = (Notify::default(), Arc::new(Mutex::new(None)));
    let tree = waiting(&told, &content);
    let node = Node::with(None, |_| vec![export("work", tree, false)]);
    let (mut c, root) = node.client();
    let (wait, now) = (open(&mut c, root, "wait", 0), open(&mut c, root, "now", 0));
    let waits = c.start("read", wait.clone(), json!({}));
    // More of them than there are threads.
    let others: Vec<_> = (0..20)
        .map(|_| {
            let h = open(&mut c, root, "wait", 0);
            c.start("read", h, json!({}))
        })
        .collect();
    let reply = c.call("read", now, json!({}));
    assert_eq!(reply["data_b64"], base64_encode(b"now"));
    // Closing gives up what waits on that file, and nothing else.
    let closing = c.start("close", wait, json!({}));
    let mut two = [c.answer().unwrap(), c.answer().unwrap()];
    two.sort_by_key(|r| r["tag"].as_u64());
    assert_eq!((&two[0]["tag"], &two[1]["tag"]), (&json!(waits), &json!(closing)));
    assert_eq!(errno(&two[0]).0, libc::EINTR);
    assert_eq!(two[1]["ok"], true);
    *content.lock().unwrap() = Some("told");
    told.notify();
    for _ in &others {
        let reply = c.answer().unwrap();
        assert_eq!(reply["payload"]["data_b64"], base64_encode(b"told"), "{reply}");
        assert!(others.contains(&(reply["tag"].as_u64().unwrap() as u32)));
    }
}

#[test]
fn locks_bar_other_sessions_until_theirs_ends() {
    let node = Node::start();
    node.put("f", "x");
    let (mut a, root) = node.client();
    let (mut b, _) = node.client();
    let (ha, hb) = (open(&mut a, root, "f", 2), open(&mut b, root, "f", 2));
    let exclusive = json!({"kind": "exclusive", "wait": false});
    a.call("lock", ha.clone(), exclusive.clone());
    assert_eq!(
        b.fails("lock", hb.clone(), exclusive.clone()),
        (libc::EAGAIN, "would block".into())
    );
    a.call("lock", ha.clone(), json!({"kind": "unlock"}));
    b.call("lock", hb.clone(), json!({"kind": "shared", "wait": false}));
    a.call("lock", ha.clone(), json!({"kind": "shared", "wait": false}));
    assert_eq!(b.fails("lock", hb.clone(), exclusive).0, libc::EAGAIN);
    // One that waits gets it when the other's connection is gone; meanwhile the session goes on.
    let waits = b.start("lock", hb, json!({"kind": "exclusive", "wait": true}));
    b.call("exports", json!({}), json!({}));
    drop(a);
    let reply = b.answer().unwrap();
    assert_eq!((&reply["tag"], &reply["ok"]), (&json!(waits), &json!(true)), "{reply}");
}

#[test]
fn files_of_a_lost_session_are_closed() {
    let node = Node::start();
    node.put("f", "x");
    let path = node.dir.path().join("f").canonicalize().unwrap();
    let open_files = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let links = links.filter_map(|e| std::fs::read_link(e.path()).ok());
        links.filter(|l| *l == path).count()
    };
    let (mut c, root) = node.client();
    open(&mut c, root, "f", 0);
    assert_eq!(open_files(), 1);
    drop(c);
    eventually("the file to be closed", || (open_files() == 0).then_some(()));
}

#[test]
fn a_close_without_a_tag_is_answered_only_to_old_clients() {
    let node = Node::start();
    node.put("f", "x");
    let ext = json!({"v": 1, "bin": 0, "ops": ["setattr"]});
    for (more, is_answered) in [(json!({}), true), (json!({"ext": ext}), false)] {
        let mut c = node.raw();
        c.hello(more);
        let root = c.root();
        let h = open(&mut c, root, "f", 0);
        let close = json!({"channel": "acheron", "type": "acheron.t_fs_close", "h": h["h"],
            "payload": {}});
        c.send(&close);
        if is_answered {
            assert_eq!(c.answer().unwrap()["type"], "acheron.r_fs_close");
        }
        // The next answer is that to the next request: nothing else has come.
        eventually("the file to be closed", || {
            (c.fails("read", h.clone(), json!({})).0 == libc::EBADF).then_some(())
        });
        // Nor is one that fails.
        c.send(&close);
        if is_answered {
            assert_eq!(errno(&c.answer().unwrap()).0, libc::EBADF);
        }
        c.call("exports", json!({}), json!({}));
    }
}

/// Lets a client in when it is told to.
struct Slow {
    inner: TokenDoor,
    gate: Mutex<mpsc::Receiver<Result<(), Error>>>,
    asked: AtomicUsize,
}

impl Door for Slow {
    fn enter(&self, hello: &Hello) -> Result<Entry, Error> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.gate.lock().unwrap().recv().unwrap()?;
        self.inner.enter(hello)
    }
}

#[test]
fn a_slow_door_holds_up_nobody_else_and_what_follows_the_hello_waits_for_it() {
    let scratch = Scratch::new();
    let tree = Arc::new(Local::open(scratch.path(), LocalOptions::default()).unwrap());
    let exports = Arc::new(Exports::new(vec![export("work", tree, false)]).unwrap());
    let inner = TokenDoor { name: "n".into(), exports, token: None };
    let (let_in, gate) = mpsc::channel();
    let door = Arc::new(Slow { inner, gate: Mutex::new(gate), asked: AtomicUsize::new(0) });
    let node = Node::behind(scratch, door.clone());
    let hello = json!({"protocol": "unified-v2-fs", "proto": 2});
    let mut c = node.raw();
    let tags = [
        c.start("hello", json!({}), hello.clone()),
        c.start("exports", json!({}), json!({})),
        c.start("nope", json!({}), json!({})),
    ];
    eventually("the door to be asked", || (door.asked.load(Ordering::SeqCst) == 1).then_some(()));
    // The one I/O thread still serves others.
    let mut wrong = Raw::open(node.listener.addr(), "/v2/elsewhere", None);
    assert_eq!(errno(&wrong.next().unwrap()).1, "invalid FS endpoint path");
    let_in.send(Ok(())).unwrap();
    let first = c.answer().unwrap();
    assert_eq!((&first["tag"], &first["ok"]), (&json!(tags[0]), &json!(true)));
    let mut rest = vec![c.answer().unwrap()];
    rest.extend(c.answer());
    let exports = rest.iter().find(|r| r["tag"] == tags[1]);
    let broken = rest.iter().find(|r| r["type"] == "acheron.err_fs").expect("the last is wrong");
    assert_eq!(errno(broken).1, "UnsupportedType");
    // The connection ends with what is wrong, and may do so before the exports were listed.
    if let Some(exports) = exports {
        assert_eq!(exports["payload"]["exports"][0]["name"], "work");
    }
    // One that is refused takes what it has sent with it.
    let mut c = node.raw();
    c.start("hello", json!({}), hello);
    c.start("exports", json!({}), json!({}));
    let_in.send(Err(Error::invalid("AuthFailed"))).unwrap();
    assert_eq!(errno(&c.answer().unwrap()).1, "AuthFailed");
    c.closes();
}
