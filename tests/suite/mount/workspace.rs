//! Mounting what a gateway offers.

use super::{Mount, Node, TOKEN, failed, ok, program, run, until};
use crate::conformance::Scratch;
use serde_json::{Value, json};
use spiderweb::base::{Code, Deadline, Error, Pool, Timer};
use spiderweb::net::{
    Accept, Answer, Conn, Handler, Head, Limits, Listener, Message, Net, Response, Service,
};
use spiderweb::node::{Export, Exports, FsHandler, Server, TokenDoor};
use spiderweb::vfs::Synthetic;
use spiderweb::vfs::synthetic::{dir, fixed};
use spiderweb::wire::control;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

const BEARER: &str = "sw-admin-test";

/// As much of a gateway as a mount needs: the control channel on `/`, answering `workspace_status` with
/// what `mounts` holds, and, if it has one, the export `namespace` on `/v2/fs`.
struct Gateway {
    listener: Listener,
    net: Arc<Net>,
    timer: Timer,
    mounts: Arc<Mutex<Value>>,
}

struct Doors {
    server: Arc<Server>,
    namespace: Option<Arc<TokenDoor>>,
    mounts: Arc<Mutex<Value>>,
}

impl Gateway {
    fn start(with_namespace: bool) -> Gateway {
        let timer = Timer::start().unwrap();
        let net = Net::start(1, timer.clone()).unwrap();
        let pool = Pool::start("files", 2, 64).unwrap();
        let server = Arc::new(Server::new(pool, timer.clone()));
        let export = || Export {
            name: "namespace".into(),
            tree: Arc::new(
                Synthetic::new(dir([
                    ("meta", dir([("protocol.json", fixed("{}"))])),
                    ("src", dir([("via", fixed("gateway"))])),
                ]))
                .unwrap(),
            ),
            ro: false,
            desc: String::new(),
            source_kind: "namespace".into(),
            source_id: "namespace".into(),
        };
        let door = || TokenDoor {
            name: "gateway".into(),
            exports: Arc::new(Exports::new(vec![export()]).unwrap()),
            token: None,
        };
        let mounts = Arc::new(Mutex::new(json!([])));
        let namespace = with_namespace.then(|| Arc::new(door()));
        let doors = Arc::new(Doors { server, namespace, mounts: mounts.clone() });
        let listener = net.listen("127.0.0.1:0".parse().unwrap(), doors).unwrap();
        Gateway { listener, net, timer, mounts }
    }

    fn url(&self) -> String {
        format!("ws://{}/", self.listener.addr())
    }

    fn offer(&self, nodes: &[(&str, &Node)]) {
        let mount = |(path, node): &(&str, &Node)| {
            json!({"mount_path": path, "node_id": "node-1", "export_name": "work", "state": "online",
                "node_name": "n", "fs_url": node.url(), "fs_auth_token": TOKEN, "online": true})
        };
        *self.mounts.lock().unwrap() = nodes.iter().map(mount).collect();
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.net.stop(Deadline::after_ms(1000));
        self.timer.stop();
    }
}

impl Service for Doors {
    fn request(&self, head: &Head, _: SocketAddr) -> Answer {
        let handler: Box<dyn Handler> = match (&*head.path, &self.namespace) {
            ("/v2/fs", Some(door)) if head.bearer() == Some(BEARER) => {
                Box::new(FsHandler::new(self.server.clone(), door.clone()))
            }
            ("/", _) => Box::new(Control {
                authorized: head.bearer() == Some(BEARER),
                mounts: self.mounts.clone(),
            }),
            _ => return Answer::Http(Response::text(404, "no such endpoint")),
        };
        Answer::Upgrade(Accept { handler, limits: Limits::default() })
    }
}

struct Control {
    authorized: bool,
    mounts: Arc<Mutex<Value>>,
}

fn text(frame: spiderweb::wire::Frame) -> Message {
    match frame {
        spiderweb::wire::Frame::Text(text) => Message::text(text),
        _ => unreachable!(),
    }
}

impl Handler for Control {
    fn open(&mut self, conn: &Conn) {
        if !self.authorized {
            let refusal = control::refusal(Code::ProviderAuthFailed, "forbidden", 1);
            let _ = conn.send(text(refusal));
            conn.close(None, "");
        }
    }

    fn message(&mut self, conn: &Conn, message: Message) {
        let Message::Text(request) = message else { panic!() };
        let request: Value = serde_json::from_str(&request).unwrap();
        let name = request["type"].as_str().unwrap().strip_prefix("control.").unwrap();
        let id = request["id"].as_str();
        let payload = match name {
            "version" => json!({"protocol": request["payload"]["protocol"]}),
            "connect" => json!({"agent_id": "mother"}),
            "workspace_status" if request["payload"]["project_id"] == "none" => {
                let e = Error::new(Code::ProjectNotFound, "no project none");
                let _ = conn.send(text(control::error(id, control::Correlation::Omitted, &e)));
                return;
            }
            _ => json!({"project_id": "proj-1", "mounts": *self.mounts.lock().unwrap()}),
        };
        let _ = conn.send(text(control::reply(name, id, &payload.to_string())));
    }
}

#[test]
fn the_namespace_is_shown_with_the_nodes_that_can_be_reached_over_it() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path().join("via"), "direct").unwrap();
    let node = Node::start(scratch.path(), false);
    let gateway = Gateway::start(true);
    let url = gateway.url();
    let fs =
        |args: &[&str]| run(&[&["--workspace-url", &url, "--auth-token", BEARER], args].concat());
    assert_eq!(ok(fs(&["cat", "/src/via"])), "gateway");
    gateway.offer(&[("/src", &node)]);
    assert_eq!(ok(fs(&["cat", "/src/via"])), "direct");
    assert_eq!(ok(fs(&["cat", "/meta/protocol.json"])), "{}");
    let listed = ok(fs(&["readdir", "/"]));
    assert!(listed.contains(r#""name":"meta""#) && listed.contains(r#""name":"src""#), "{listed}");
    drop(node);
    assert_eq!(ok(fs(&["cat", "/src/via"])), "gateway", "not reachable: through the gateway");
}

#[test]
fn an_old_gateway_offers_its_workspace_alone() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path().join("x"), "there").unwrap();
    let node = Node::start(scratch.path(), false);
    let gateway = Gateway::start(false);
    let url = gateway.url();
    let with = |token: &str, args: &[&str]| {
        let all = [&["--workspace-url", &url], args].concat();
        program(&all).env("SPIDERWEB_AUTH_TOKEN", token).output().unwrap()
    };
    let (code, errors) = failed(with(BEARER, &["readdir", "/"]));
    assert!(code == 66 && errors.contains("NoWorkspaceMounts"), "{errors}");
    gateway.offer(&[("/src", &node)]);
    assert_eq!(ok(with(BEARER, &["cat", "/src/x"])), "there");
    let (code, errors) = failed(with("wrong", &["readdir", "/"]));
    assert!(code == 77 && errors.contains("--auth-token"), "{code} {errors}");
    let (code, errors) = failed(with(BEARER, &["--project-id", "none", "readdir", "/"]));
    assert!(code == 66 && errors.contains("no project none"), "{errors}");
}

#[test]
fn a_mount_follows_its_workspace() {
    let (first, second) = (Scratch::new(), Scratch::new());
    std::fs::write(first.path().join("x"), "first").unwrap();
    std::fs::write(second.path().join("y"), "second").unwrap();
    let (node, other) = (Node::start(first.path(), false), Node::start(second.path(), false));
    let gateway = Gateway::start(true);
    gateway.offer(&[("/src", &node)]);
    let url = gateway.url();
    let args =
        ["--workspace-url", &url, "--auth-token", BEARER, "--workspace-sync-interval-ms", "50"];
    let Some(mount) = Mount::start(&args) else { return };
    let sh = |script: &str| mount.shell(script, first.path());
    assert_eq!(ok(sh("cat src/x; cat meta/protocol.json")), "first{}");
    std::thread::scope(|threads| {
        ok(sh("mkfifo \"$DIR\"/go"));
        // A file stays open while its mount goes.
        let script = "exec 3>> src/x; : > \"$DIR\"/opened; cat \"$DIR\"/go; echo more >&3";
        let writer = threads.spawn(|| ok(sh(script)));
        until("the file to be open", || first.path().join("opened").exists());
        gateway.offer(&[("/else", &other)]);
        until("the new mount", || sh("cat else/y").stdout == b"second");
        until("the old one to go", || sh("cat src/via").stdout == b"gateway");
        std::fs::write(first.path().join("go"), "").unwrap();
        writer.join().unwrap();
    });
    assert_eq!(std::fs::read_to_string(first.path().join("x")).unwrap(), "firstmore\n");
    // A gateway that is away takes nothing away.
    drop(gateway);
    until("the sync to notice", || mount.messages().contains("the workspace stays as it was"));
    assert_eq!(ok(sh("cat else/y")), "second");
}
