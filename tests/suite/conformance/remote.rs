//! A host directory at the other end of a WebSocket: the same suite over binary frames, and over the
//! base protocol's JSON.

use super::{Fixture, Scratch, conformance, conformance_without};
use spiderweb::base::{Deadline, Pool, Result, Timer};
use spiderweb::net::{Closed, DialOptions, Inbound, Listener, Message, Mux, Net};
use spiderweb::node::{Export, Exports, FsService, Server, TokenDoor};
use spiderweb::vfs::remote::{Connector, Dial, Hooks, Link, Peer, Remote, say_hello};
use spiderweb::vfs::{Local, LocalOptions};
use spiderweb::wire::Envelope;
use spiderweb::wire::fs::{Event, Hello, text_tag};
use std::path::Path;
use std::sync::Arc;

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
        let timer = Timer::start();
        let net = Net::start(1, timer.clone()).unwrap();
        let export = Export {
            name: "work".into(),
            tree: Arc::new(Local::open(dir, LocalOptions::default()).unwrap()),
            ro: false,
            desc: String::new(),
            source_kind: "linux".into(),
            source_id: "linux:work".into(),
        };
        let exports = Arc::new(Exports::new(vec![export]).unwrap());
        let door = Arc::new(TokenDoor { name: "node".into(), exports, token: Some(token.into()) });
        let pool = Pool::start("files", 2, 256);
        let server = Arc::new(Server { pool, timer: timer.clone() });
        let service = Arc::new(FsService { server, door });
        let listener = net.listen("127.0.0.1:0".parse().unwrap(), service).unwrap();
        Node { listener, net, timer }
    }

    pub fn url(&self) -> String {
        format!("ws://{}/v2/fs", self.listener.addr())
    }

    /// The node's export, over a connection of its own.
    pub fn remote(&self, binary: bool) -> Arc<Remote> {
        Remote::new(Peer::new(Arc::new(self.dial(binary))), None)
    }

    fn dial(&self, binary: bool) -> Dial {
        Dial {
            net: self.net.clone(),
            url: self.url().parse().unwrap(),
            bearer: None,
            hello: Hello { auth_token: Some("t".into()), ..Hello::default() },
            binary,
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

    fn lost(&mut self, _: &Closed) {
        (self.0.lost)();
    }
}

fn fixture(binary: bool) -> Fixture {
    let scratch = Scratch::new();
    let node = Node::start(scratch.path());
    let tree = node.remote(binary);
    Fixture { tree, links: true, host_like: true, keep: Box::new((node, scratch)) }
}

#[test]
fn a_remote_tree_conforms_over_binary_frames() {
    conformance(&|| fixture(true));
}

#[test]
fn a_remote_tree_conforms_over_json() {
    conformance(&|| fixture(false));
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
        let tree = Remote::new(Peer::new(Arc::new(Plain(node.dial(false)))), None);
        Fixture { tree, links: false, host_like: false, keep: Box::new((node, scratch)) }
    });
}
