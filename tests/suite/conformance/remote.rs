//! A host directory at the other end of a WebSocket: the same suite over binary frames, and over the
//! base protocol's JSON.

use super::{Fixture, Scratch, conformance};
use spiderweb::base::{Deadline, Pool, Timer};
use spiderweb::net::{Listener, Net};
use spiderweb::node::{Export, Exports, FsService, Server, TokenDoor};
use spiderweb::vfs::remote::{Dial, Peer, Remote};
use spiderweb::vfs::{Local, LocalOptions};
use spiderweb::wire::fs::Hello;
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
        let dial = Dial {
            net: self.net.clone(),
            url: self.url().parse().unwrap(),
            bearer: None,
            hello: Hello { auth_token: Some("t".into()), ..Hello::default() },
            binary,
        };
        Remote::new(Peer::new(Arc::new(dial)), None)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.net.stop(Deadline::after_ms(1000));
        self.timer.stop();
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
