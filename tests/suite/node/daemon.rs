//! The built program as a member of a real gateway: joining, serving through it, and finding its way back
//! after either of them was gone.

use super::raw::{PATIENCE, Raw, eventually};
use crate::conformance::Scratch;
use serde_json::{Value, json};
use spiderweb::base::Deadline;
use spiderweb::config::{Config, Env};
use spiderweb::gateway::{self, Running};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

pub struct Gateway {
    running: Option<Running>,
    config: Config,
    pub addr: SocketAddr,
    admin: String,
    _dir: Scratch,
}

impl Gateway {
    pub fn start() -> Gateway {
        let dir = Scratch::new();
        let mut config = Config::defaults();
        config.server.port = 0;
        config.provider.name = "echo".into();
        config.runtime.ltm_directory = dir.path().join("ltm");
        config.runtime.assets_dir = dir.path().join("templates");
        config.runtime.agents_dir = dir.path().join("agents");
        let running = gateway::start(config.clone(), Env::default()).unwrap();
        let addr = running.addr();
        config.server.port = addr.port();
        let tokens = std::fs::read(running.tokens_path().unwrap()).unwrap();
        let tokens: Value = serde_json::from_slice(&tokens).unwrap();
        let admin = tokens["admin_token"].as_str().unwrap().to_owned();
        Gateway { running: Some(running), config, addr, admin, _dir: dir }
    }

    fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop(Deadline::after_ms(2000));
        }
    }

    fn start_again(&mut self) {
        self.running = Some(gateway::start(self.config.clone(), Env::default()).unwrap());
    }

    pub fn admin_token(&self) -> &str {
        &self.admin
    }

    pub fn admin(&self) -> Raw {
        let mut c = Raw::open(self.addr, "/", Some(&self.admin));
        c.control("version", json!({"protocol": "unified-v2"})).unwrap();
        c.control("connect", json!({})).unwrap();
        c
    }

    pub fn invite(&self) -> String {
        let reply = self.admin().control("node_invite_create", json!({})).unwrap();
        reply["invite_token"].as_str().unwrap().to_owned()
    }

    /// A file of a node as an agent sees it, through the namespace.
    pub fn read(&self, path: &str) -> Result<Vec<u8>, String> {
        let mut c = self.admin();
        c.acheron("version", json!({"version": "acheron-1"}))?;
        c.acheron("attach", json!({"fid": 1}))?;
        let names: Vec<_> = path.split('/').filter(|n| !n.is_empty()).collect();
        c.acheron("walk", json!({"fid": 1, "newfid": 2, "path": names}))?;
        c.acheron("open", json!({"fid": 2, "mode": "r"}))?;
        let reply = c.acheron("read", json!({"fid": 2, "offset": 0, "count": 65536}))?;
        let data = reply["data_b64"].as_str().unwrap();
        Ok(spiderweb::wire::base64_decode(data).unwrap())
    }

    #[track_caller]
    pub fn reads(&self, path: &str, content: &[u8]) {
        let what = format!("reading {path}");
        eventually(&what, || self.read(path).ok().filter(|found| found == content));
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The program, killed at the end if it still runs.
pub struct Node {
    pub child: Child,
    log: Arc<Mutex<String>>,
}

impl Node {
    pub fn start(args: &[&str], env: &[(&str, &str)], dir: &Path) -> Node {
        let mut child = Command::new(env!("CARGO_BIN_EXE_spiderweb-fs-node"))
            .args(args)
            .env_clear()
            .envs(env.iter().copied())
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (log, lines) = (Arc::<Mutex<String>>::default(), child.stderr.take().unwrap());
        let sink = log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(lines).lines().map_while(Result::ok) {
                let mut log = sink.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        Node { child, log }
    }

    /// The token that `--grant` prints.
    pub fn grant(args: &[&str], dir: &Path) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spiderweb-fs-node"));
        let output = command.args(args).env_clear().current_dir(dir).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// A member of `gateway` that exports `dir/files`, its state in `dir`.
    pub fn member(gateway: &Gateway, dir: &Path, invite: Option<&str>) -> Node {
        let env: Vec<_> = invite.map(|i| ("SPIDERWEB_INVITE_TOKEN", i)).into_iter().collect();
        Node::member_with(gateway, dir, &env)
    }

    fn member_with(gateway: &Gateway, dir: &Path, env: &[(&str, &str)]) -> Node {
        let url = format!("ws://{}/", gateway.addr);
        let args = [
            "--control-url",
            &url,
            "--export",
            "work=files",
            "--state-file",
            "state.json",
            "--node-name",
            "edge",
            "--label",
            "site=hq",
            "--reconnect-backoff-ms",
            "50",
            "--reconnect-backoff-max-ms",
            "200",
        ];
        Node::start(&args, env, dir)
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    #[track_caller]
    pub fn says(&self, what: &str) {
        let until = std::time::Instant::now() + PATIENCE;
        while !self.log().contains(what) {
            assert!(std::time::Instant::now() < until, "{what:?} is not in\n{}", self.log());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).unwrap();
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::try_from(signal).unwrap(),
        )
        .unwrap();
    }

    pub fn exit_code(&mut self) -> Option<i32> {
        eventually("the end of the program", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory with `files/a.txt` in it.
pub fn place() -> Scratch {
    let dir = Scratch::new();
    std::fs::create_dir(dir.path().join("files")).unwrap();
    std::fs::write(dir.path().join("files/a.txt"), "hello").unwrap();
    dir
}

pub fn state(dir: &Path) -> Value {
    let text = std::fs::read(dir.join("state.json")).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

pub fn node_id(dir: &Path) -> String {
    eventually("the node's id", || state(dir)["node_id"].as_str().map(str::to_owned))
}

#[test]
fn a_node_joins_with_an_invite_and_its_files_are_read_through_the_gateway() {
    let (gateway, dir) = (Gateway::start(), place());
    let mut node = Node::member(&gateway, dir.path(), Some(&gateway.invite()));
    let id = node_id(dir.path());
    gateway.reads(&format!("/nodes/{id}/fs/a.txt"), b"hello");

    let services = eventually("the services", || {
        let text = gateway.read(&format!("/nodes/{id}/services/SERVICES.json")).ok()?;
        serde_json::from_slice::<Value>(&text).ok().filter(|s| *s != json!([]))
    });
    assert_eq!(services[0]["service_id"], "fs");
    assert_eq!(services[0]["endpoint"], format!("/nodes/{id}/fs"));
    let routed = format!("ws://{}/v2/fs/node/{id}", gateway.addr);
    let mut admin = gateway.admin();
    let shown = eventually("the routed URL", || {
        let reply = admin.control("node_get", json!({"node_id": id})).unwrap();
        (reply["node"]["fs_url"] == routed).then(|| reply["node"].clone())
    });
    assert_eq!(shown["labels"], json!({"site": "hq"}));
    assert_eq!(shown["platform"]["os"], "linux");

    // Its own secret opens the routed endpoint, and nothing else does.
    let secret = state(dir.path())["node_secret"].as_str().unwrap().to_owned();
    let mut c = Raw::open(gateway.addr, &format!("/v2/fs/node/{id}"), None);
    let hello = json!({"protocol": "unified-v2-fs", "proto": 2, "auth_token": "wrong"});
    assert_eq!(c.fails("hello", json!({}), hello).0, libc::EACCES);
    let mut c = Raw::open(gateway.addr, &format!("/v2/fs/node/{id}"), None);
    assert_eq!(c.hello(json!({"auth_token": secret}))["node"]["name"], "edge");
    let root = c.root();
    let created = c.call("create", json!({"node": root}), json!({"name": "b.txt"}));
    let h = created["h"].clone();
    c.call("write", json!({"h": h}), json!({"off": 0, "data_b64": "d29ybGQ="}));
    c.call("close", json!({"h": h}), json!({}));
    assert_eq!(std::fs::read(dir.path().join("files/b.txt")).unwrap(), b"world");
    let big: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(dir.path().join("files/big"), &big).unwrap();
    let at = json!({"node": c.call("lookup", json!({"node": root}), json!({"name": "big"}))["attr"]["id"]});
    let h = json!({"h": c.call("open", at, json!({}))["h"]});
    let mut got = Vec::new();
    loop {
        let reply = c.call("read", h.clone(), json!({"off": got.len(), "len": 1 << 20}));
        got.extend(spiderweb::wire::base64_decode(reply["data_b64"].as_str().unwrap()).unwrap());
        if reply["eof"] == true {
            break;
        }
    }
    assert!(got == big, "{} of {} bytes", got.len(), big.len());

    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(dir.path().join("state.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!node.log().contains(&secret), "the log tells the secret");
    node.signal(libc::SIGTERM);
    assert_eq!(node.exit_code(), Some(0));
}

#[test]
fn a_node_with_a_token_of_the_gateway_uses_the_main_door() {
    let (gateway, dir) = (Gateway::start(), place());
    let invite = gateway.invite();
    let env = [("SPIDERWEB_AUTH_TOKEN", &*gateway.admin), ("SPIDERWEB_INVITE_TOKEN", &*invite)];
    let _node = Node::member_with(&gateway, dir.path(), &env);
    gateway.reads(&format!("/nodes/{}/fs/a.txt", node_id(dir.path())), b"hello");

    let dir = place();
    let env = [("SPIDERWEB_AUTH_TOKEN", "wrong"), ("SPIDERWEB_INVITE_TOKEN", &*invite)];
    let node = Node::member_with(&gateway, dir.path(), &env);
    node.says("the gateway refused the token");
}

#[test]
fn a_node_that_was_killed_comes_back_as_itself() {
    let (gateway, dir) = (Gateway::start(), place());
    let mut node = Node::member(&gateway, dir.path(), Some(&gateway.invite()));
    let id = node_id(dir.path());
    let path = format!("/nodes/{id}/fs/a.txt");
    gateway.reads(&path, b"hello");
    node.signal(libc::SIGKILL);
    node.exit_code();
    eventually("the files to be gone", || gateway.read(&path).is_err().then_some(()));

    std::fs::write(dir.path().join("files/a.txt"), "again").unwrap();
    let _node = Node::member(&gateway, dir.path(), None);
    gateway.reads(&path, b"again");
    assert_eq!(node_id(dir.path()), id);
    let mut second = Node::member(&gateway, dir.path(), None);
    assert_eq!(second.exit_code(), Some(78));
    second.says("another spiderweb-fs-node is running");
    let nodes = gateway.admin().control("node_list", json!({})).unwrap();
    let named = |n: &&Value| n["node_name"] == "edge";
    assert_eq!(nodes["nodes"].as_array().unwrap().iter().filter(named).count(), 1);
}

#[test]
fn a_node_finds_a_gateway_that_was_restarted() {
    let (mut gateway, dir) = (Gateway::start(), place());
    let node = Node::member(&gateway, dir.path(), Some(&gateway.invite()));
    let id = node_id(dir.path());
    gateway.reads(&format!("/nodes/{id}/fs/a.txt"), b"hello");
    gateway.stop();
    node.says("no tunnel to the gateway");
    gateway.start_again();
    gateway.reads(&format!("/nodes/{id}/fs/a.txt"), b"hello");
    assert_eq!(node_id(dir.path()), id);
}

#[test]
fn a_node_asks_to_join_and_an_admin_approves() {
    let (gateway, dir) = (Gateway::start(), place());
    let mut node = Node::member(&gateway, dir.path(), None);
    let request =
        eventually("the request", || state(dir.path())["request_id"].as_str().map(str::to_owned));
    node.says(&request);
    // The request outlives the one who made it.
    node.signal(libc::SIGKILL);
    node.exit_code();
    let _node = Node::member(&gateway, dir.path(), None);
    let mut admin = gateway.admin();
    let pending = admin.control("node_join_pending_list", json!({})).unwrap();
    assert_eq!(pending["pending"][0]["node_name"], "edge");
    assert_eq!(pending["pending"][0]["platform"]["os"], "linux");
    let joined = admin.control("node_join_approve", json!({"request_id": request})).unwrap();
    assert_eq!(joined["node_id"], node_id(dir.path()));
    assert_eq!(state(dir.path())["request_id"], Value::Null);
    gateway.reads(&format!("/nodes/{}/fs/a.txt", node_id(dir.path())), b"hello");
    let pending = admin.control("node_join_pending_list", json!({})).unwrap();
    assert_eq!(pending["pending"], json!([]));
}

#[test]
fn a_denied_node_asks_again() {
    let (gateway, dir) = (Gateway::start(), place());
    let _node = Node::member(&gateway, dir.path(), None);
    let request = || state(dir.path())["request_id"].as_str().map(str::to_owned);
    let first = eventually("the request", request);
    gateway.admin().control("node_join_deny", json!({"request_id": first})).unwrap();
    eventually("another request", || request().filter(|r| *r != first));
}

#[test]
fn a_wrong_invite_is_told_and_tried_again() {
    let (gateway, dir) = (Gateway::start(), place());
    let mut node = Node::member(&gateway, dir.path(), Some("inv-00000000000000000000000000000000"));
    node.says("the gateway refuses --invite-token");
    node.says("invite_not_found");
    eventually("a second try", || {
        (node.log().matches("trying again in").count() >= 2).then_some(())
    });
    node.signal(libc::SIGINT);
    assert_eq!(node.exit_code(), Some(0));
}

#[test]
fn a_node_that_was_deleted_asks_to_join_anew() {
    let (gateway, dir) = (Gateway::start(), place());
    let mut node = Node::member(&gateway, dir.path(), Some(&gateway.invite()));
    let id = node_id(dir.path());
    gateway.reads(&format!("/nodes/{id}/fs/a.txt"), b"hello");
    let mut admin = gateway.admin();
    admin.control("node_delete", json!({"node_id": id})).unwrap();
    // Its tunnel ends at once, it hears why when it comes back, and its invite is used up.
    node.says("the gateway does not know this node as");
    node.says("invite_redeemed");
    let request =
        eventually("the request", || state(dir.path())["request_id"].as_str().map(str::to_owned));
    admin.control("node_join_approve", json!({"request_id": request})).unwrap();
    let new = node_id(dir.path());
    assert_ne!(new, id);
    gateway.reads(&format!("/nodes/{new}/fs/a.txt"), b"hello");
    node.signal(libc::SIGTERM);
    assert_eq!(node.exit_code(), Some(0));
}

#[test]
fn a_node_whose_secret_is_refused_asks_to_join_anew() {
    let (gateway, dir, other) = (Gateway::start(), place(), place());
    let _owner = Node::member(&gateway, other.path(), Some(&gateway.invite()));
    let taken =
        json!({"schema": 1, "node_id": node_id(other.path()), "node_secret": "secret-wrong"});
    std::fs::write(dir.path().join("state.json"), taken.to_string()).unwrap();
    let node = Node::member(&gateway, dir.path(), None);
    node.says("the gateway does not know this node as");
    eventually("the request", || state(dir.path())["request_id"].as_str().map(str::to_owned));
    assert_eq!(state(dir.path())["node_secret"], Value::Null);
}

#[test]
fn a_node_takes_over_the_secret_that_it_is_given() {
    let gateway = Gateway::start();
    let dir = place();
    let url = format!("ws://{}/", gateway.addr);
    let args = [
        "--control-url",
        &url,
        "--export",
        "work=files",
        "--state-file",
        "state.json",
        "--refresh-interval-ms",
        "100",
    ];
    let invite = gateway.invite();
    let _node = Node::start(&args, &[("SPIDERWEB_INVITE_TOKEN", &invite)], dir.path());
    let id = node_id(dir.path());
    let first = state(dir.path())["node_secret"].clone();
    let rotated = gateway.admin().control("node_secret_rotate", json!({"node_id": id})).unwrap();
    assert_ne!(rotated["node_secret"], first);
    eventually("the new secret to be kept", || {
        (state(dir.path())["node_secret"] == rotated["node_secret"]).then_some(())
    });
    // Once it was used, the one before is worth nothing.
    let with_first = json!({"node_id": id, "node_secret": first});
    eventually("the old secret to be refused", || {
        gateway.admin().control("node_lease_refresh", with_first.clone()).err()
    });
    assert_eq!(node_id(dir.path()), id);
}

#[test]
fn a_broken_state_file_is_left_alone() {
    let (gateway, dir) = (Gateway::start(), place());
    std::fs::write(dir.path().join("state.json"), "{\"node_id\":").unwrap();
    let mut node = Node::member(&gateway, dir.path(), None);
    assert_eq!(node.exit_code(), Some(78));
    node.says("state.json");
    assert_eq!(std::fs::read(dir.path().join("state.json")).unwrap(), b"{\"node_id\":");
}

#[test]
fn the_program_listens_and_says_what_is_wrong_with_its_flags() {
    let dir = place();
    let alone = ["--port", "0", "--export", "w=files", "--invite-token", "x"];
    let mut node = Node::start(&alone, &[], dir.path());
    node.says("--invite-token has no effect without --control-url");
    node.says("FS node websocket server listening at ws://127.0.0.1:");
    let log = node.log();
    let addr = log.split("ws://").nth(1).unwrap().split('/').next().unwrap().to_owned();
    let mut c = Raw::open(addr.parse().unwrap(), "/v2/fs", None);
    c.hello(json!({}));
    assert_eq!(c.call("exports", json!({}), json!({}))["exports"][0]["name"], "w");

    let port = addr.rsplit(':').next().unwrap();
    for (args, code, said) in [
        (vec!["--port", port], 69, "in use"),
        (vec!["--bind", "0.0.0.0", "--port", "0"], 64, "--bind"),
        (vec!["--export", "x"], 64, "--export"),
        (vec!["--export", "x=missing"], 66, "missing"),
        (vec!["--export", "x=.", "--export", "x=."], 64, "\"x\" is given twice"),
        (vec!["--service-manifest", "none"], 78, "--service-manifest: none"),
        (vec!["--services-dir", "none"], 78, "--services-dir none"),
        (vec!["--label", "x", "--control-url", "ws://h"], 64, "--label"),
        (vec!["--control-url", "http://h"], 64, "--control-url"),
        (vec!["--control-url", "ws://h", "--pair-mode", "invite"], 64, "--invite-token"),
        (vec!["--control-url", "ws://h", "--lease-ttl-ms", "5"], 64, "--lease-ttl-ms"),
        // Also where they have no effect.
        (vec!["--label", "=x", "--port", "0"], 64, "--label"),
        (vec!["--pair-mode", "bogus", "--port", "0"], 64, "--pair-mode"),
        (vec!["--refresh-interval-ms", "-1", "--port", "0"], 64, "--refresh-interval-ms"),
        (vec!["--fs-url", "http://h", "--port", "0"], 64, "--fs-url"),
        (vec!["--control-url", "ws://h", "--port", "x"], 64, "--port"),
        (vec!["--auth-token", ""], 64, "--auth-token"),
        (vec!["--auth-token-file", "/dev/null"], 64, "/dev/null: the file is empty"),
        (vec!["--export", "..=."], 64, "the name leads elsewhere"),
        (vec!["--state-file="], 64, "--state-file is empty"),
        (vec!["--services-dir", ""], 64, "--services-dir is empty"),
        (vec!["--grant", "a:x", "--auth-token", "t"], 64, "--grant"),
        (vec!["--grant", "a"], 64, "--grant needs the node's secret"),
        (vec!["--grant", "a", "--auth-token", "t", "--grant-ttl", "1"], 64, "--grant-ttl"),
        (vec!["--grant", "a", "--auth-token", "t", "--grant-ttl", "0s"], 64, "--grant-ttl"),
        (vec!["--grant", "a", "--auth-token", "t", "--grant-sub", "a b"], 64, "--grant-sub"),
        (vec!["--grant-ttl", "1d"], 64, "--grant-ttl needs --grant"),
        (vec!["--bogus"], 64, "--bogus"),
    ] {
        let mut wrong = Node::start(&args, &[], dir.path());
        assert_eq!(wrong.exit_code(), Some(code), "{args:?}\n{}", wrong.log());
        wrong.says(said);
    }
    node.signal(libc::SIGTERM);
    assert_eq!(node.exit_code(), Some(0));
}
