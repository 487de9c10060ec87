//! A host directory at the other end of a WebSocket: the same suite over binary frames, and over the
//! base protocol's JSON.

use super::{Fixture, Scratch, conformance, conformance_without};
use spiderweb::base::{Code, Deadline, Error, Name, Pool, Result, Timer};
use spiderweb::net::{Closed, DialOptions, Inbound, Listener, Message, Mux, Net};
use spiderweb::node::{Export, Exports, FsService, Server, TokenDoor};
use spiderweb::vfs::remote::{Connector, Dial, Hooks, Link, Peer, Remote, say_hello};
use spiderweb::vfs::synthetic::{dir, fixed, text};
use spiderweb::vfs::{Cx, Local, LocalOptions, NodeId, OpenFlags, Synthetic, Tree, walk};
use spiderweb::wire::Envelope;
use spiderweb::wire::fs::{Event, Framing, Hello, text_tag};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A node on a free port; ends with the value.
pub struct Node {
    pub listener: Listener,
    pub net: Arc<Net>,
    timer: Timer,
}

impl Node {
    pub fn start(dir: &Path) -> Node {
        Node::with_token(dir, "t")
    }

    pub fn with_token(dir: &Path, token: &str) -> Node {
        serve(Arc::new(Local::open(dir, LocalOptions::default()).unwrap()), token)
    }

    pub fn url(&self) -> String {
        format!("ws://{}/v2/fs", self.listener.addr())
    }

    /// The node's export, over a connection of its own.
    pub fn remote(&self, framing: Framing) -> Arc<Remote> {
        Remote::new(Peer::new(Arc::new(self.dial(framing))), None)
    }

    fn dial(&self, framing: Framing) -> Dial {
        Dial {
            net: self.net.clone(),
            url: self.url().parse().unwrap(),
            bearer: None,
            hello: Hello { auth_token: Some("t".into()), ..Hello::default() },
            framing,
            silence: spiderweb::vfs::remote::SILENCE,
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.net.stop(Deadline::after_ms(1000));
        self.timer.stop();
    }
}

/// A client of the base protocol, that offers no extensions.
struct Plain(Dial);

impl Connector for Plain {
    fn connect(&self, deadline: Deadline, hooks: Hooks) -> Result<Link> {
        let (options, inbound) = (DialOptions::default(), Box::new(Frames(hooks)));
        let mux = Mux::dial(&self.0.net, &self.0.url, &options, deadline, 64, inbound)?;
        say_hello(mux, self.0.hello.clone(), deadline)
    }

    fn target(&self) -> String {
        self.0.target()
    }
}

struct Frames(Hooks);

impl Inbound for Frames {
    fn tag(&mut self, message: &Message) -> Option<u32> {
        let Message::Text(text) = message else { panic!("a binary frame was not agreed on") };
        text_tag(text)
    }

    fn event(&mut self, message: Message) {
        let Message::Text(text) = message else { return };
        if let Some(event) = Event::decode(&Envelope::parse(&text).unwrap()) {
            (self.0.event)(event);
        }
    }

    fn lost(&mut self, why: &Closed) {
        (self.0.lost)(&why.error());
    }
}

fn fixture(framing: Framing) -> Fixture {
    let scratch = Scratch::new();
    let node = Node::start(scratch.path());
    let tree = node.remote(framing);
    Fixture { tree, links: true, host_like: true, keep: Box::new((node, scratch)) }
}

#[test]
fn a_remote_tree_conforms_over_binary_frames() {
    conformance(&|| fixture(Framing::Binary));
}

#[test]
fn a_remote_tree_conforms_over_compressed_frames() {
    conformance(&|| fixture(Framing::Lz4));
}

#[test]
fn a_remote_tree_conforms_over_json() {
    conformance(&|| fixture(Framing::Text));
}

#[test]
fn a_remote_tree_conforms_over_the_base_protocol() {
    // What it has no words for: times, modes, flags of a rename, links as such.
    let left_out = [
        "sizes and times can be set",
        "modes can be set, but not set-id bits",
        "rename with flags",
        "symlinks",
        "names are bytes",
    ];
    conformance_without(&left_out, &|| {
        let scratch = Scratch::new();
        let node = Node::start(scratch.path());
        let tree = Remote::new(Peer::new(Arc::new(Plain(node.dial(Framing::Text)))), None);
        Fixture { tree, links: false, host_like: false, keep: Box::new((node, scratch)) }
    });
}

/// A node with one export.
fn serve(tree: Arc<dyn Tree>, token: &str) -> Node {
    let timer = Timer::start().unwrap();
    let net = Net::start(1, timer.clone()).unwrap();
    let export = Export {
        name: "work".into(),
        tree,
        ro: false,
        desc: String::new(),
        source_kind: "linux".into(),
        source_id: "linux:work".into(),
    };
    let exports = Arc::new(Exports::new(vec![export]).unwrap());
    let door = Arc::new(TokenDoor { name: "node".into(), exports, token: Some(token.into()) });
    let server = Arc::new(Server::new(Pool::start("files", 4, 256).unwrap(), timer.clone()));
    let service = Arc::new(FsService { server, door });
    let listener = net.listen("127.0.0.1:0".parse().unwrap(), service).unwrap();
    Node { listener, net, timer }
}

#[test]
fn a_small_file_is_sent_with_the_reply_to_its_opening_if_that_is_wanted() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path().join("f"), "content").unwrap();
    std::fs::write(scratch.path().join("empty"), "").unwrap();
    let node = Node::start(scratch.path());
    let cx = Cx::internal(Deadline::after_ms(20_000));
    let content = |framing, name, flags, content_max| {
        let remote = node.remote(framing);
        let file = remote.lookup(&cx, NodeId::ROOT, Name::text(name).unwrap()).unwrap();
        let opened = remote.open(&cx, file.id, OpenFlags { content_max, ..flags }).unwrap();
        remote.release(&cx, opened.handle).unwrap();
        opened.content.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
    };
    for framing in [Framing::Binary, Framing::Lz4] {
        assert_eq!(content(framing, "f", OpenFlags::READ, 100).as_deref(), Some("content"));
        assert_eq!(content(framing, "f", OpenFlags::READ_WRITE, 7).as_deref(), Some("content"));
        assert_eq!(content(framing, "empty", OpenFlags::READ, 100).as_deref(), Some(""));
        assert_eq!(content(framing, "f", OpenFlags::READ, 6), None, "not a part of it");
        assert_eq!(content(framing, "f", OpenFlags::READ, 0), None);
        assert_eq!(content(framing, "f", OpenFlags::WRITE, 100), None);
    }
    assert_eq!(content(Framing::Text, "f", OpenFlags::READ, 100), None);
}

#[test]
fn a_busy_node_is_asked_again() {
    let asked = Arc::new(AtomicU32::new(0));
    let count = asked.clone();
    let busy = text(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        n if n < 3 => Err(Error::new(Code::QueueSaturated, "the files queue is full")),
        _ => Ok("at last"),
    });
    let node = serve(Arc::new(Synthetic::new(dir([("busy", busy)])).unwrap()), "t");
    let cx = Cx::internal(Deadline::after_ms(20_000));
    let path = "/busy".parse().unwrap();
    assert_eq!(walk::read_all(&*node.remote(Framing::Binary), &cx, &path, 99).unwrap(), b"at last");
    assert!(asked.load(Ordering::SeqCst) > 3);
}

#[test]
fn one_call_that_is_not_answered_in_time_leaves_the_others_alone() {
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let slow = text(move |_| {
        let _ = held.lock().unwrap().recv();
        Ok("late")
    });
    let tree = dir([("slow", slow), ("quick", fixed("quick"))]);
    let node = serve(Arc::new(Synthetic::new(tree).unwrap()), "t");
    let remote = node.remote(Framing::Binary);
    let cx = |ms| Cx::internal(Deadline::after_ms(ms));
    let quick = remote.lookup(&cx(20_000), NodeId::ROOT, Name::text("quick").unwrap()).unwrap();
    let opened = remote.open(&cx(20_000), quick.id, OpenFlags::READ).unwrap();
    let e = remote.lookup(&cx(100), NodeId::ROOT, Name::text("slow").unwrap()).unwrap_err();
    assert_eq!(e.code, Code::Timeout);
    // The same connection still serves.
    let accepted = node.net.stats().accepted;
    let (bytes, _) = walk::read(&*remote, &cx(20_000), opened.handle, 0, 99).unwrap();
    assert_eq!(&bytes[..], b"quick");
    assert_eq!(node.net.stats().accepted, accepted);
    assert_eq!(accepted, 1);
    drop(release);
}
