//! Sessions that outlive their connection: files and locks wait for their client, and a request that was
//! sent twice takes effect once, also when the connection is cut at the worst moment.

use super::protocol::{Node, export};
use super::raw::{Raw, eventually};
use crate::conformance::Scratch;
use serde_json::{Value, json};
use spiderweb::base::{Deadline, Name};
use spiderweb::net::Net;
use spiderweb::vfs::remote::{Dial, Peer, Remote};
use spiderweb::vfs::{
    Cx, Local, LocalOptions, LockKind, LockRequest, NodeId, OpenFlags, Read, RenameFlags, Tree,
};
use spiderweb::wire::fs::{Framing, Hello};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const NAME: &str = "0123456789abcdef";

/// Says hello with a session's name; returns whether it was resumed.
fn hello(c: &mut Raw, session: &str) -> bool {
    let ext = json!({"v": 1, "bin": 0, "ops": ["setattr", "fsync", "flush"], "session": session});
    let payload = json!({"protocol": "unified-v2-fs", "proto": 2, "ext": ext});
    let reply = c.call("hello", json!({}), payload);
    assert_eq!(reply["ext"]["session"], session);
    reply["ext"]["resumed"] == true
}

fn create(c: &mut Raw, root: u64, name: &str) -> Value {
    c.call("create", json!({"node": root}), json!({"name": name, "flags": 2}))
}

#[test]
fn files_and_locks_wait_for_their_client() {
    let node = Node::start();
    let mut c = node.raw();
    assert!(!hello(&mut c, NAME));
    let root = c.root();
    let h = json!({"h": create(&mut c, root, "f")["h"]});
    c.call("write", h.clone(), json!({"off": 0, "data_b64": "aGVsbG8="}));
    c.call("lock", h.clone(), json!({"kind": "exclusive", "wait": false}));
    drop(c);
    // Another client finds it locked, and cannot take the place of the first without its name.
    let mut other = node.raw();
    assert!(!hello(&mut other, "another-name-0123"));
    let attr = other.call("lookup", json!({"node": root}), json!({"name": "f"}));
    let node_id = attr["attr"]["id"].clone();
    let opened = other.call("open", json!({"node": node_id}), json!({"flags": 2}));
    let other_h = json!({"h": opened["h"]});
    let lock = json!({"kind": "exclusive", "wait": false});
    assert_eq!(other.fails("lock", other_h.clone(), lock.clone()).0, libc::EAGAIN);

    let mut again = node.raw();
    assert!(hello(&mut again, NAME));
    let read = again.call("read", h.clone(), json!({"off": 0, "len": 10}));
    assert_eq!(read["data_b64"], "aGVsbG8=");
    assert_eq!(other.fails("lock", other_h.clone(), lock.clone()).0, libc::EAGAIN);
    again.call("close", h, json!({}));
    other.call("lock", other_h, lock);
}

#[test]
fn a_client_that_comes_back_ends_its_dead_connection() {
    let node = Node::start();
    let mut dead = node.raw();
    hello(&mut dead, NAME);
    let root = dead.root();
    let h = json!({"h": create(&mut dead, root, "f")["h"]});
    let mut again = node.raw();
    assert!(hello(&mut again, NAME));
    dead.closes();
    drop(dead);
    // The old connection's end takes nothing away.
    again.call("write", h.clone(), json!({"off": 0, "data_b64": "aGVsbG8="}));
    again.call("close", h, json!({}));
}

#[test]
fn what_is_sent_twice_is_done_once() {
    let node = Node::start();
    let mut c = node.raw();
    hello(&mut c, NAME);
    let root = c.root();
    let numbered = |rid: u64, ack: u64| json!({"node": root, "rid": rid, "ack": ack});
    let first = c.call("create", numbered(1, 1), json!({"name": "f", "flags": 0xC2}));
    drop(c);
    let mut c = node.raw();
    assert!(hello(&mut c, NAME));
    let again = c.call("create", numbered(1, 1), json!({"name": "f", "flags": 0xC2}));
    assert_eq!(again, first, "the same file, the same handle");
    let fresh = c.fails("create", numbered(2, 1), json!({"name": "f", "flags": 0xC2}));
    assert_eq!(fresh.0, libc::EEXIST);
    assert_eq!(c.fails("create", numbered(2, 2), json!({"name": "f", "flags": 0xC2})), fresh);
    c.call("unlink", numbered(3, 3), json!({"name": "f"}));
    c.call("unlink", numbered(3, 3), json!({"name": "f"}));
    let gone = c.fails("unlink", numbered(2, 3), json!({"name": "f"}));
    assert_eq!(gone.0, libc::EINVAL, "{}", gone.1);
    // In a session without a name numbers mean nothing.
    let mut plain = node.raw();
    plain.hello(json!({}));
    plain.call("mkdir", numbered(1, 1), json!({"name": "d"}));
    assert_eq!(plain.fails("mkdir", numbered(1, 1), json!({"name": "d"})).0, libc::EEXIST);
}

/// Stands between a client and a node; can keep the node's answers to itself and cut the connection.
struct Between {
    addr: SocketAddr,
    node: Arc<Mutex<SocketAddr>>,
    /// Answers are swallowed, and the connection is cut after the next request has passed.
    swallow: Arc<AtomicBool>,
    cuts: Arc<AtomicUsize>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Between {
    fn start(node: SocketAddr) -> Between {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let between = Between {
            addr: listener.local_addr().unwrap(),
            node: Arc::new(Mutex::new(node)),
            swallow: Arc::default(),
            cuts: Arc::default(),
            open: Arc::default(),
        };
        let (swallow, cuts, open) =
            (between.swallow.clone(), between.cuts.clone(), between.open.clone());
        let node = between.node.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let at = *node.lock().unwrap();
                let Ok(server) = TcpStream::connect(at) else { return };
                for s in [&client, &server] {
                    s.set_nodelay(true).unwrap();
                    open.lock().unwrap().push(s.try_clone().unwrap());
                }
                let (c, s) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || pass(c, s, |_| true));
                let (swallow, cuts) = (swallow.clone(), cuts.clone());
                std::thread::spawn(move || {
                    // The node has carried the request out by the time it answers.
                    pass(server, client, |_| {
                        let cut = swallow.swap(false, Ordering::AcqRel);
                        cuts.fetch_add(usize::from(cut), Ordering::AcqRel);
                        !cut
                    });
                });
            }
        });
        between
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        for s in self.open.lock().unwrap().iter() {
            let _ = s.shutdown(Shutdown::Both);
        }
    }
}

/// Copies until the end, or until `go_on` says no; then both ends are closed.
fn pass(mut from: TcpStream, mut to: TcpStream, go_on: impl Fn(&[u8]) -> bool) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match from.read(&mut buffer) {
            Ok(n) if n > 0 && go_on(&buffer[..n]) && to.write_all(&buffer[..n]).is_ok() => {}
            _ => break,
        }
    }
    for s in [&from, &to] {
        let _ = s.shutdown(Shutdown::Both);
    }
}

/// A client whose connection is cut whenever it asks for it.
fn cut_client(node: &Node) -> (Arc<Remote>, Between, Arc<Net>) {
    let between = Between::start(node.listener.addr());
    let net = Net::start(1, spiderweb::base::Timer::start().unwrap()).unwrap();
    let dial = Dial {
        net: net.clone(),
        url: format!("ws://{}/v2/fs", between.addr).parse().unwrap(),
        bearer: None,
        hello: Hello::default(),
        framing: Framing::Binary,
        silence: spiderweb::vfs::remote::SILENCE,
    };
    (Remote::new(Peer::new(Arc::new(dial)), None), between, net)
}

#[test]
fn a_mutation_whose_answer_was_lost_is_not_made_twice() {
    let node = Node::start();
    let (tree, between, net) = cut_client(&node);
    let cx = Cx::internal(Deadline::after_ms(30_000));
    let (root, name) = (NodeId::ROOT, |s| Name::text(s).unwrap());
    let cut = || between.swallow.store(true, Ordering::Release);
    tree.getattr(&cx, root).unwrap();

    cut();
    let flags = OpenFlags { exclusive: true, ..OpenFlags::READ_WRITE };
    let (attr, opened) = tree.create(&cx, root, name("f"), 0o644, flags).unwrap();
    cut();
    let append = OpenFlags { append: true, ..OpenFlags::WRITE };
    let appending = tree.open(&cx, attr.id, append).unwrap();
    cut();
    assert_eq!(tree.write(&cx, appending.handle, 0, b"once"[..].into()).unwrap().n, 4);
    cut();
    let request = LockRequest { kind: LockKind::Exclusive, owner: 1, range: None };
    tree.lock(&cx, opened.handle, request).unwrap();
    cut();
    tree.mkdir(&cx, root, name("d"), 0o755).unwrap();
    cut();
    tree.rename(&cx, (root, name("f")), (root, name("g")), RenameFlags::default()).unwrap();
    cut();
    tree.link(&cx, attr.id, root, name("h")).unwrap();
    cut();
    tree.unlink(&cx, root, name("h")).unwrap();
    cut();
    tree.rmdir(&cx, root, name("d")).unwrap();
    cut();
    match tree.read(&cx, opened.handle, 0, 100).unwrap() {
        Read::Data { bytes, .. } => assert_eq!(&bytes[..], b"once"),
        Read::Wait(_) => panic!("a plain file does not wait"),
    }
    assert_eq!(between.cuts.load(Ordering::Acquire), 10);
    assert_eq!(std::fs::read(node.dir.path().join("g")).unwrap(), b"once");
    assert_eq!(std::fs::read_dir(node.dir.path()).unwrap().count(), 1);
    tree.release(&cx, appending.handle).unwrap();
    tree.release(&cx, opened.handle).unwrap();
    net.stop(Deadline::after_ms(1000));
}

#[test]
fn without_the_session_a_mutation_fails_and_a_lock_is_not_taken_for_granted() {
    let scratch = Scratch::new();
    let start = || {
        Node::with(None, |_| {
            let local = Local::open(scratch.path(), LocalOptions::default()).unwrap();
            vec![export("work", Arc::new(local), false)]
        })
    };
    let first = start();
    let (tree, between, net) = cut_client(&first);
    let cx = Cx::internal(Deadline::after_ms(30_000));
    let name = |s| Name::text(s).unwrap();
    let flags = OpenFlags::READ_WRITE;
    let (_, opened) = tree.create(&cx, NodeId::ROOT, name("f"), 0o644, flags).unwrap();
    let request = LockRequest { kind: LockKind::Exclusive, owner: 1, range: None };
    tree.lock(&cx, opened.handle, request).unwrap();
    // The node is started anew: it knows the files, and nobody's session.
    let second = start();
    *between.node.lock().unwrap() = second.listener.addr();
    between.swallow.store(true, Ordering::Release);
    let lost = tree.mkdir(&cx, NodeId::ROOT, name("d"), 0o755).unwrap_err();
    assert!(lost.is_peer_lost(), "{lost}");
    let read = tree.read(&cx, opened.handle, 0, 10);
    drop(first);
    let e = read.err().expect("the lock is lost");
    assert!(e.errno() == libc::EIO && e.message.contains("lock"), "{e}");
    eventually("the file can be used anew", || {
        let attr = tree.lookup(&cx, NodeId::ROOT, name("f")).unwrap();
        let h = tree.open(&cx, attr.id, flags).unwrap().handle;
        tree.lock(&cx, h, request).ok()
    });
    net.stop(Deadline::after_ms(1000));
}
