//! Services of the built program: what clients see of drivers, terminals and manifests.

use super::daemon::{Gateway, Node, node_id, place};
use super::raw::{Raw, errno, eventually};
use crate::conformance::Scratch;
use crate::mount::{Mount, ok};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// A service whose driver is a shell script, in `dir/services`.
fn manifest(dir: &Path, id: &str, script: &str, more: Value) -> PathBuf {
    let services = dir.join("services");
    let _ = std::fs::create_dir(&services);
    let mut runtime = json!({"type": "native_proc", "executable_path": "/bin/sh",
        "args": ["-c", script], "timeout_ms": 20_000});
    runtime.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let manifest = json!({"service_id": id, "kind": "test", "runtime": runtime});
    let path = services.join(format!("{id}.json"));
    std::fs::write(&path, manifest.to_string()).unwrap();
    path
}

/// The program listening in `dir`, and where.
fn serve(dir: &Path, args: &[&str]) -> (Node, SocketAddr) {
    serve_with(dir, args, &[])
}

fn serve_with(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> (Node, SocketAddr) {
    let node = Node::start(&[&["--port", "0"], args].concat(), env, dir);
    node.says("listening at ws://");
    let log = node.log();
    let addr = log.split("ws://").nth(1).unwrap().split('/').next().unwrap();
    (node, addr.parse().unwrap())
}

/// A client that knows nothing newer than the base protocol.
struct Client {
    raw: Raw,
    root: u64,
}

impl Client {
    fn open(addr: SocketAddr, export: &str) -> Client {
        Client::open_with(addr, export, json!({}))
    }

    fn open_with(addr: SocketAddr, export: &str, hello: Value) -> Client {
        let mut raw = Raw::open(addr, "/v2/fs", None);
        raw.hello(hello);
        let root = find(&mut raw, export).unwrap_or_else(|| panic!("no export {export}"));
        Client { raw, root }
    }

    fn lookup(&mut self, path: &str) -> Value {
        path.split('/').fold(json!({"node": self.root}), |dir, name| {
            json!({"node": self.raw.call("lookup", dir, json!({"name": name}))["attr"]["id"]})
        })
    }

    fn open_file(&mut self, path: &str, flags: u32) -> Value {
        let node = self.lookup(path);
        json!({"h": self.raw.call("open", node, json!({"flags": flags}))["h"]})
    }

    fn read_on(&mut self, h: &Value, off: usize) -> (String, bool) {
        let reply = self.raw.call("read", h.clone(), json!({"off": off, "len": 1 << 20}));
        let data = spiderweb::wire::base64_decode(reply["data_b64"].as_str().unwrap()).unwrap();
        (String::from_utf8(data).unwrap(), reply["eof"] == true)
    }

    fn read(&mut self, path: &str) -> String {
        let h = self.open_file(path, 0);
        let text = self.read_on(&h, 0).0;
        self.raw.call("close", h, json!({}));
        text
    }

    fn json(&mut self, path: &str) -> Value {
        let text = self.read(path);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}: {text}"))
    }

    fn write_on(&mut self, h: &Value, off: usize, text: &str) -> Value {
        let data = spiderweb::wire::base64_encode(text.as_bytes());
        self.raw.ask("write", h.clone(), json!({"off": off, "data_b64": data}))
    }

    /// Truncates, writes once, and closes, as old mounts do: the reply to the write.
    fn try_write(&mut self, path: &str, text: &str) -> Value {
        let node = self.lookup(path);
        self.raw.call("truncate", node, json!({"sz": 0}));
        let h = self.open_file(path, 1);
        let reply = self.write_on(&h, 0, text);
        self.raw.call("close", h, json!({}));
        reply
    }

    #[track_caller]
    fn write(&mut self, path: &str, text: &str) -> Value {
        let reply = self.try_write(path, text);
        assert_eq!(reply["ok"], true, "{reply}");
        reply["payload"].clone()
    }

    #[track_caller]
    fn fails(&mut self, path: &str, text: &str) -> (i32, String) {
        errno(&self.try_write(path, text))
    }
}

fn find(raw: &mut Raw, export: &str) -> Option<u64> {
    let exports = raw.call("exports", json!({}), json!({}))["exports"].clone();
    let found = exports.as_array().unwrap().iter().find(|e| e["name"] == export)?;
    found["root"].as_u64()
}

fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next());
    state.is_some_and(|s| s != "Z")
}

#[track_caller]
fn end_of(pids: &str) {
    let pids: Vec<i32> = pids.split_whitespace().map(|p| p.parse().unwrap()).collect();
    assert!(!pids.is_empty());
    eventually("the end of the processes", || (!pids.iter().any(|p| is_alive(*p))).then_some(()));
}

#[test]
fn a_service_has_its_files_and_runs_its_driver() {
    let dir = Scratch::new();
    manifest(dir.path(), "echo", "cat", json!({}));
    let (_node, addr) = serve(dir.path(), &["--services-dir", "services"]);
    let mut c = Client::open_with(addr, "svc-echo", json!({"subscribe_invalidations": true}));
    let exports = c.raw.call("exports", json!({}), json!({}))["exports"].clone();
    assert_eq!(exports.as_array().unwrap().len(), 1, "no default export beside a service");
    assert_eq!(
        (&exports[0]["source_kind"], &exports[0]["ro"]),
        (&json!("namespace"), &json!(false))
    );
    assert_eq!(exports[0]["source_id"], "service:echo");

    let root = json!({"node": c.root});
    let list = c.raw.call("readdirp", root, json!({}));
    let names: Vec<_> =
        list["ents"].as_array().unwrap().iter().map(|e| e["name"].as_str().unwrap()).collect();
    for name in [
        "README.md",
        "SCHEMA.json",
        "schema.json",
        "TEMPLATE.json",
        "template.json",
        "HOST.json",
        "result.json",
        "status.json",
        "metrics.json",
        "last_error.txt",
        "health.json",
        "config.json",
        "control",
    ] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    assert_eq!(c.read("result.json"), r#"{"state":"idle"}"#);
    assert_eq!(c.json("HOST.json")["contract"], "acheron.namespace-driver");
    assert_eq!(c.json("SCHEMA.json")["control"]["invoke"], "control/invoke.json");
    assert_eq!(c.json("health.json")["state"], "online");
    assert_eq!(c.read("config.json"), "{}");

    let result = c.lookup("result.json")["node"].clone();
    assert_eq!(c.write("control/invoke.json", r#" {"a":"a long one"} "#)["n"], 20);
    assert_eq!(c.read("result.json"), r#"{"a":"a long one"}"#);
    let told = |e: &Value| e["type"] == "acheron.e_fs_inval" && e["payload"]["node"] == result;
    assert!(c.raw.events.iter().any(told), "{:?}", c.raw.events);
    // So is a client of this version, though the change came of its own call.
    let ext = json!({"v": 1, "ops": ["flush"]});
    let hello = json!({"subscribe_invalidations": true, "ext": ext});
    let mut ours = Client::open_with(addr, "svc-echo", hello);
    ours.lookup("result.json");
    ours.write("control/invoke.json", r#"{"o":1}"#);
    assert!(ours.raw.events.iter().any(told), "{:?}", ours.raw.events);
    // Nothing of the longer one is left behind a shorter one.
    c.write("control/invoke.json", r#"{"b":1}"#);
    assert_eq!(c.read("result.json"), r#"{"b":1}"#);
    let status = c.json("status.json");
    assert_eq!((&status["state"], &status["invokes_total"]), (&json!("ok"), &json!(3)));
    assert_eq!((&status["exit_code"], &status["bytes"]), (&json!(0), &json!(7)));
    assert_eq!(c.json("metrics.json")["failures_total"], 0);

    for bad in ["[1]", "no", "{\"a\":"] {
        let (errno, message) = c.fails("control/invoke.json", bad);
        assert!(errno == libc::EINVAL && message.contains("JSON object"), "{message}");
    }
    // A message in pieces of pages, as old mounts send a long one.
    let long = format!("{{\"x\":\"{}\"}}", "y".repeat(6000));
    let h = c.open_file("control/invoke.json", 1);
    assert_eq!(c.write_on(&h, 0, &long[..4096])["ok"], true);
    assert_eq!(c.write_on(&h, 4096, &long[4096..])["ok"], true);
    assert_eq!(c.read("result.json"), long);
    // The answer can be read where the question was written.
    let h = c.open_file("control/invoke.json", 2);
    c.write_on(&h, 0, r#"{"c":2}"#);
    assert_eq!(c.read_on(&h, 0).0, r#"{"c":2}"#);
}

#[test]
fn the_example_driver_works_with_its_manifest() {
    let dir = Scratch::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let driver =
        Path::new(env!("CARGO_BIN_EXE_spiderweb-fs-node")).with_file_name("examples/echo-driver");
    assert!(driver.exists(), "build it with: cargo build --example echo-driver");
    let text = std::fs::read_to_string(root.join("examples/echo.json")).unwrap();
    let text = text.replace("/usr/local/libexec/spiderweb/echo-driver", driver.to_str().unwrap());
    std::fs::write(dir.path().join("echo.json"), text).unwrap();
    let (_node, addr) = serve(dir.path(), &["--service-manifest", "echo.json"]);
    let mut c = Client::open(addr, "svc-echo-main");
    c.write("control/invoke.json", r#"{"hello":"world"}"#);
    let result = c.json("result.json");
    assert_eq!((&result["ok"], &result["echo"]["hello"]), (&json!(true), &json!("world")));
    assert_eq!(result["driver"], "spiderweb-echo-driver");
}

#[test]
fn manifests_that_are_wrong_end_the_program_and_say_why() {
    let dir = Scratch::new();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    manifest(dir.path(), "a", "cat", json!({}));
    write("wasm.json", r#"{"service_id":"w","kind":"k","runtime":{"type":"wasm"}}"#);
    write("open.json", r#"{"service_id":"w""#);
    write("nameless.json", r#"{"kind":"k"}"#);
    write("fs.json", r#"{"service_id":"fs","kind":"k"}"#);
    write("terminal.json", r#"{"service_id":"terminal-1","kind":"k"}"#);
    write("twice.json", r#"{"service_id":"a","kind":"k"}"#);
    for (args, code, said) in [
        (
            vec!["--service-manifest", "wasm.json"],
            78,
            vec!["wasm.json", "runtime: type", "native_proc"],
        ),
        (vec!["--service-manifest", "open.json"], 78, vec!["open.json", "not JSON"]),
        (vec!["--service-manifest", "nameless.json"], 78, vec!["nameless.json", "service_id"]),
        (vec!["--service-manifest", "missing.json"], 78, vec!["missing.json"]),
        (vec!["--services-dir", "missing"], 78, vec!["missing"]),
        (vec!["--service-manifest", "fs.json"], 78, vec!["\"fs\""]),
        (vec!["--service-manifest", "terminal.json", "--terminal-id", "1"], 78, vec!["terminal-1"]),
        (
            vec!["--service-manifest", "twice.json", "--services-dir", "services"],
            78,
            vec!["twice.json", "a.json"],
        ),
        (vec!["--services-dir", "services", "--export", "svc-a=."], 64, vec!["svc-a"]),
        (vec!["--terminal-id", "a b"], 64, vec!["--terminal-id"]),
        (vec!["--terminal-id", "1", "--terminal-id", "1"], 64, vec!["--terminal-id"]),
        (vec!["--manifest-reload-interval-ms", "x"], 64, vec!["--manifest-reload-interval-ms"]),
        (
            vec!["--control-url", "ws://h", "--operator-token", "x"],
            64,
            vec!["--control-auth-token"],
        ),
    ] {
        let mut node = Node::start(&[&["--port", "0"], &*args].concat(), &[], dir.path());
        assert_eq!(node.exit_code(), Some(code), "{args:?}\n{}", node.log());
        said.iter().for_each(|said| node.says(said));
    }
    // What is only an entry of the catalogue is no export, so there is the default one.
    write("entry.json", r#"{"service_id":"e","kind":"k","runtime":{"type":"builtin"}}"#);
    let (_node, addr) = serve(dir.path(), &["--service-manifest", "entry.json"]);
    Client::open(addr, "work").read("entry.json");
}

#[test]
fn a_driver_that_hangs_is_killed_with_all_it_started_and_holds_up_nobody() {
    let dir = place();
    let pids = dir.path().join("pids");
    let script = format!(
        "sleep 600 & echo $! > {0}; (setsid sleep 601 & echo $! >> {0}); echo ready >> {0}.done; sleep 602",
        pids.display()
    );
    manifest(dir.path(), "hang", &script, json!({"timeout_ms": 1000}));
    manifest(dir.path(), "echo", "cat", json!({}));
    let (_node, addr) = serve(dir.path(), &["--services-dir", "services", "--export", "w=files"]);
    let mut hanging: Vec<_> = (0..9).map(|_| Client::open(addr, "svc-hang")).collect();
    let handles: Vec<_> =
        hanging.iter_mut().map(|c| c.open_file("control/invoke.json", 1)).collect();
    let data = spiderweb::wire::base64_encode(b"{}");
    for (c, h) in hanging.iter_mut().zip(&handles) {
        c.raw.start("write", h.clone(), json!({"off": 0, "data_b64": data}));
    }
    eventually("the driver", || pids.with_extension("done").exists().then_some(()));
    // While it runs, others are served.
    let mut c = Client::open(addr, "svc-echo");
    c.write("control/invoke.json", r#"{"n":1}"#);
    assert_eq!(Client::open(addr, "w").read("a.txt"), "hello");
    let mut watcher = Client::open(addr, "svc-hang");
    eventually("the run", || (watcher.json("status.json")["state"] == "running").then_some(()));
    // One more than may wait was refused.
    let replies: Vec<_> = hanging.iter_mut().map(|c| c.raw.answer().unwrap()).collect();
    let refused: Vec<_> = replies.iter().filter(|r| r["ok"] == false).collect();
    assert_eq!(refused.len(), 1, "{replies:?}");
    assert_eq!(errno(refused[0]).0, libc::EAGAIN);
    let status = watcher.json("status.json");
    assert_eq!((&status["state"], &status["reason"]), (&json!("timeout"), &json!("timeout")));
    assert_eq!((&status["exit_code"], &status["timeouts_total"]), (&json!(-1), &json!(8)));
    assert_eq!(watcher.read("last_error.txt"), "service invocation terminated after timeout_ms");
    assert_eq!(watcher.read("result.json"), r#"{"state":"idle"}"#);
    end_of(&std::fs::read_to_string(&pids).unwrap());
}

#[test]
fn failures_are_told_and_counted() {
    let dir = Scratch::new();
    manifest(dir.path(), "two", "echo bad input >&2; exit 2", json!({}));
    manifest(dir.path(), "flood", "yes", json!({}));
    manifest(dir.path(), "gone", "x", json!({"executable_path": "/nowhere/driver"}));
    let (node, addr) = serve(dir.path(), &["--services-dir", "services"]);
    node.says("service gone: /nowhere/driver");

    let mut c = Client::open(addr, "svc-two");
    c.write("control/invoke.json", "{}");
    let status = c.json("status.json");
    assert_eq!((&status["state"], &status["reason"]), (&json!("error"), &json!("invoke_error")));
    assert_eq!((&status["exit_code"], c.read("last_error.txt")), (&json!(2), "bad input".into()));
    assert_eq!(c.json("health.json")["state"], "degraded");

    c.write(
        "config.json",
        r#"{"supervision":{"max_consecutive_failures":2,"cooldown_ms":600000}}"#,
    );
    c.write("control/invoke.json", "{}");
    assert_eq!(c.json("status.json")["reason"], "max_consecutive_failures");
    let (errno, message) = c.fails("control/invoke.json", "{}");
    assert_eq!((errno, &*message), (libc::EPERM, "service invoke denied"));
    assert_eq!(c.json("status.json"), json!({"state": "offline", "reason": "disabled"}));
    c.write("control/enable", "1");
    c.write("control/reset", "1");
    c.write("control/invoke.json", "{}");
    let (errno, message) = c.fails("control/invoke.json", "{}");
    assert_eq!((errno, &*message), (libc::EAGAIN, "service invoke cooling down"));
    assert_eq!(c.json("health.json")["state"], "degraded");
    assert_eq!(c.fails("config.json", "[]").0, libc::EINVAL);
    assert_eq!(c.json("config.json")["supervision"]["cooldown_ms"], 600000);

    for (export, said) in [("svc-flood", "more than"), ("svc-gone", "/nowhere/driver")] {
        let mut c = Client::open(addr, export);
        let (errno, message) = c.fails("control/invoke.json", "{}");
        assert!(errno == libc::EIO && message.contains(said), "{message}");
        assert_eq!(c.json("status.json")["state"], "error", "and not running for ever");
        assert!(c.read("last_error.txt").contains(said));
    }
}

#[test]
fn drivers_and_terminals_see_nothing_of_the_environment_of_the_node() {
    let dir = Scratch::new();
    manifest(dir.path(), "env", "env", json!({"env": {"GIVEN": "yes"}}));
    let secrets = [
        ("SPIDERWEB_FS_NODE_AUTH_TOKEN", "s3cret"),
        ("SPIDERWEB_AUTH_TOKEN", "s3cret"),
        ("OTHER", "s3cret"),
        ("PATH", "/usr/bin:/bin"),
        ("HOME", "/tmp"),
    ];
    let args = ["--services-dir", "services", "--terminal-id", "1"];
    let (_node, addr) = serve_with(dir.path(), &args, &secrets);
    let open = |export| Client::open_with(addr, export, json!({"auth_token": "s3cret"}));
    let mut c = open("svc-env");
    c.write("control/invoke.json", "{}");
    let env = c.read("result.json");
    assert!(
        env.contains("GIVEN=yes") && env.contains("HOME=/tmp") && !env.contains("s3cret"),
        "{env}"
    );
    let names =
        ["PATH=", "HOME=", "LANG=", "GIVEN=", "SPIDERWEB_NODE_RUN=", "PWD=", "SHLVL=", "_="];
    assert!(env.lines().all(|l| names.iter().any(|n| l.starts_with(n))), "{env}");
    let mut c = open("terminal-1");
    c.write("control/invoke.json", r#"{"argv":["env"]}"#);
    let env = c.json("result.json")["stdout"].as_str().unwrap().to_owned();
    assert!(
        env.contains("HOME=/tmp") && !env.contains("s3cret") && !env.contains("OTHER"),
        "{env}"
    );
}

#[test]
fn manifests_are_read_again_and_what_stays_is_not_touched() {
    let dir = place();
    manifest(dir.path(), "stays", "cat", json!({}));
    let goes = manifest(dir.path(), "goes", "cat", json!({}));
    let (node, addr) = serve(dir.path(), &["--services-dir", "services", "--export", "w=files"]);
    let mut file = Client::open(addr, "w");
    let h = file.open_file("a.txt", 0);
    let mut stays = Client::open(addr, "svc-stays");
    let control = stays.open_file("control/invoke.json", 1);
    stays.write("config.json", r#"{"mark":1}"#);
    let mut gone = Client::open(addr, "svc-goes");
    let old = gone.open_file("result.json", 0);
    let status = gone.lookup("status.json");

    std::fs::remove_file(&goes).unwrap();
    manifest(dir.path(), "comes", "echo '{\"new\":1}'", json!({}));
    manifest(dir.path(), "stays", "echo '{\"changed\":1}'", json!({}));
    node.signal(libc::SIGHUP);
    eventually("the new service", || find(&mut gone.raw, "svc-comes"));
    assert_eq!(find(&mut gone.raw, "svc-goes"), None);
    assert_eq!(gone.raw.fails("read", old, json!({})).0, libc::ESTALE);
    assert_eq!(gone.raw.fails("getattr", status, json!({})).0, libc::ESTALE);
    assert_eq!(file.read_on(&h, 0).0, "hello");
    // Same tree, same handle, same state, and the new driver.
    stays.write_on(&control, 0, "{}");
    assert_eq!(stays.read("result.json").trim(), r#"{"changed":1}"#);
    assert_eq!(stays.json("config.json")["mark"], 1);
    let mut new = Client::open(addr, "svc-comes");
    new.write("control/invoke.json", "{}");
    assert_eq!(new.json("result.json")["new"], 1);

    std::fs::write(dir.path().join("services/bad.json"), "{").unwrap();
    node.signal(libc::SIGHUP);
    node.says("services stay as they were");
    node.says("bad.json");
    assert!(find(&mut new.raw, "svc-comes").is_some());
}

#[test]
fn the_state_of_services_survives_a_kill() {
    let dir = Scratch::new();
    manifest(dir.path(), "echo", "cat", json!({}));
    let args = ["--services-dir", "services", "--state-file", "state.json"];
    let (node, addr) = serve(dir.path(), &args);
    let mut c = Client::open(addr, "svc-echo");
    c.write("config.json", r#"{"harness_marker":"x"}"#);
    c.write("control/invoke.json", r#"{"n":1}"#);
    c.write("control/disable", "1");
    let mut second = Node::start(&[&["--port", "0"], &args[..]].concat(), &[], dir.path());
    assert_eq!(second.exit_code(), Some(78), "one program to a state file");
    node.signal(libc::SIGKILL);
    drop(node);

    let (node, addr) = serve(dir.path(), &args);
    let mut c = Client::open(addr, "svc-echo");
    assert_eq!(c.read("config.json"), r#"{"harness_marker":"x"}"#);
    assert_eq!(c.read("result.json"), r#"{"n":1}"#);
    assert_eq!(c.json("metrics.json")["invokes_total"], 1);
    assert_eq!(c.fails("control/invoke.json", "{}").0, libc::EPERM);
    drop(node);
    let kept = dir.path().join("state.json.runtime-services.json");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::write(&kept, "{").unwrap();
    let mut node = Node::start(&[&["--port", "0"], &args[..]].concat(), &[], dir.path());
    assert_eq!(node.exit_code(), Some(78));
    node.says("runtime-services.json");
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), "{");
}

#[test]
fn a_driver_ends_with_a_node_that_is_killed() {
    let dir = Scratch::new();
    // With a child, and with one that made itself a daemon.
    let script = "sleep 602 & echo $! > pid.new; (setsid sh -c 'echo $$ >> pid.new; mv pid.new pid; \
        exec sleep 603' &); exec sleep 600";
    manifest(dir.path(), "long", &format!("echo $$ > leader; {script}"), json!({}));
    let (node, addr) = serve(dir.path(), &["--services-dir", "services", "--terminal-id", "1"]);
    let mut c = Client::open(addr, "svc-long");
    let h = c.open_file("control/invoke.json", 1);
    c.raw.start("write", h, json!({"off": 0, "data_b64": "e30="}));
    let mut t = Client::open(addr, "terminal-1");
    t.write(
        "pty/new",
        r#"{"argv":["/bin/sh","-c","echo $$ > pty.new; mv pty.new pty; exec sleep 601"]}"#,
    );
    let pid = |name: &str| eventually(name, || std::fs::read_to_string(dir.path().join(name)).ok());
    let pids = pid("pid") + &pid("leader") + &pid("pty");
    assert_eq!(pids.lines().count(), 4);
    node.signal(libc::SIGKILL);
    end_of(&pids);
}

#[test]
fn a_mount_sees_an_export_that_comes_after_it() {
    let dir = Scratch::new();
    manifest(dir.path(), "a", "cat", json!({}));
    let (node, addr) = serve(dir.path(), &["--services-dir", "services"]);
    let endpoint = |export: &str| format!("{export}=ws://{addr}/v2/fs#svc-{export}@/{export}");
    let (a, b) = (endpoint("a"), endpoint("b"));
    let Some(mount) = Mount::start(&["--endpoint", &a, "--endpoint", &b]) else { return };
    let sh = |script: &str| mount.shell(script, dir.path());
    ok(sh("ls a/control; ! cat b/status.json"));
    let path = manifest(dir.path(), "b", "cat", json!({}));
    node.signal(libc::SIGHUP);
    let came = || sh("echo '{\"n\":1}' > b/control/invoke.json").status.success().then_some(());
    eventually("the service", came);
    assert_eq!(ok(sh("cat b/result.json")), r#"{"n":1}"#);
    std::fs::remove_file(path).unwrap();
    node.signal(libc::SIGHUP);
    eventually("its end", || sh("! cat b/result.json").status.success().then_some(()));
    ok(sh("echo '{}' > a/control/invoke.json; test \"$(cat a/result.json)\" = '{}'"));
}

/// Reads what a session prints until `what` has come.
#[track_caller]
fn prints(c: &mut Client, io: &Value, seen: &mut String, what: &str) {
    let from = seen.len();
    while !seen[from..].contains(what) {
        let (text, eof) = c.read_on(io, seen.len());
        seen.push_str(&text);
        assert!(!eof || seen[from..].contains(what), "{what:?} is not in {seen:?}");
    }
}

#[test]
fn a_terminal_has_interactive_sessions() {
    let dir = Scratch::new();
    let (mut node, addr) = serve(dir.path(), &["--terminal-id", "1"]);
    let mut c = Client::open(addr, "terminal-1");
    assert_eq!(c.json("SCHEMA.json")["pty"]["new"]["path"], "pty/new");
    let started = c.write("pty/new", r#"{"argv":["/bin/sh"],"cols":91,"rows":17}"#);
    assert_eq!((&started["pty"], &started["path"]), (&json!("1"), &json!("pty/1")));
    let (io, mut seen) = (c.open_file("pty/1/io", 2), String::new());
    c.write_on(&io, 0, "stty size; echo ready-$((40+2))\n");
    prints(&mut c, &io, &mut seen, "ready-42");
    assert!(seen.contains("17 91"), "{seen}");
    c.write("pty/1/control", r#"{"resize":{"cols":100,"rows":30}}"#);
    c.write_on(&io, 0, "stty size\n");
    prints(&mut c, &io, &mut seen, "30 100");
    // A program in front takes the keys, and a signal ends it, not the shell.
    c.write_on(&io, 0, "PS1=prompt'> '\n");
    prints(&mut c, &io, &mut seen, "prompt> ");
    c.write_on(&io, 0, "cat\n");
    c.write_on(&io, 0, "a line\n");
    prints(&mut c, &io, &mut seen, "a line\r\na line");
    c.write("pty/1/control", r#"{"signal":"INT"}"#);
    prints(&mut c, &io, &mut seen, "prompt> ");
    c.write_on(&io, 0, "echo alive-$((1+1))\n");
    prints(&mut c, &io, &mut seen, "alive-2");
    for bad in [r#"{"signal":"NONE"}"#, r#"{"resize":{"cols":0}}"#, "{}", "what"] {
        assert_eq!(c.fails("pty/1/control", bad).0, libc::EINVAL, "{bad}");
    }
    for bad in ["{}x", r#"{"argv":7}"#, r#"{"colums":80}"#, r#"{"rows":0}"#] {
        assert_eq!(c.fails("pty/new", bad).0, libc::EINVAL, "{bad}");
    }

    // Its end is an end of file; what it left is gone.
    c.write_on(
        &io,
        0,
        "(setsid sleep 600 & echo pid=$!=; sleep 601 & echo pid=$!=); sleep 0; exit 3\n",
    );
    let mut eof = false;
    while !eof {
        let (text, end) = c.read_on(&io, seen.len());
        seen.push_str(&text);
        eof = end;
    }
    let status = c.json("pty/1/status.json");
    assert_eq!((&status["state"], &status["exit_code"]), (&json!("exited"), &json!(3)));
    let pids: Vec<_> =
        seen.split("pid=").filter_map(|p| p.split('=').next()?.parse::<i32>().ok()).collect();
    end_of(&pids[pids.len() - 2..].iter().map(i32::to_string).collect::<Vec<_>>().join(" "));
    c.write("pty/1/control", "close");
    let dir_of = c.lookup("pty");
    assert_eq!(c.raw.fails("lookup", dir_of, json!({"name": "1"})).0, libc::ENOENT);

    c.write("control/disable", "1");
    assert_eq!(c.fails("pty/new", "{}").0, libc::EPERM);
    c.write("control/enable", "1");

    // Closing kills what runs, and so does the end of the program.
    let mut pids = Vec::new();
    for n in ["2", "3"] {
        c.write("pty/new", r#"{"command":"echo pid=$$=; sleep 600"}"#);
        let (io, mut seen) = (c.open_file(&format!("pty/{n}/io"), 0), String::new());
        prints(&mut c, &io, &mut seen, "=\r\n");
        pids.push(seen.split('=').nth(1).unwrap().to_owned());
    }
    assert!(is_alive(pids[0].parse().unwrap()));
    c.write("pty/2/control", r#"{"close":true}"#);
    end_of(&pids[0]);
    assert!(is_alive(pids[1].parse().unwrap()));
    node.signal(libc::SIGTERM);
    assert_eq!(node.exit_code(), Some(0));
    end_of(&pids[1]);
}

#[test]
fn output_that_nobody_reads_is_bounded_and_sessions_are_few() {
    let dir = Scratch::new();
    let (_node, addr) = serve(dir.path(), &["--terminal-id", "1"]);
    let mut c = Client::open(addr, "terminal-1");
    c.write("pty/new", r#"{"command":"seq 200000; echo end"}"#);
    let early = c.open_file("pty/1/io", 0);
    eventually("the end", || (c.json("pty/1/status.json")["state"] == "exited").then_some(()));
    let status = c.json("pty/1/status.json");
    assert!(status["dropped_bytes"].as_u64().unwrap() > 0, "{status}");
    let (first, _) = c.read_on(&early, 0);
    assert!(first.contains("bytes of output were not kept"), "{first:?}");
    let (rest, _) = c.read_on(&early, first.len());
    assert!(rest.ends_with("end\r\n") && rest.len() <= 256 * 1024);

    for _ in 0..15 {
        c.write("pty/new", r#"{"argv":["sleep","600"]}"#);
    }
    c.write("pty/new", r#"{"argv":["sleep","600"]}"#);
    let dir_of = c.lookup("pty");
    assert_eq!(c.raw.fails("lookup", dir_of, json!({"name": "1"})).0, libc::ENOENT, "made room");
    let (errno, message) = c.fails("pty/new", "{}");
    assert!(errno == libc::ENOSPC && message.contains("close"), "{message}");
}

#[test]
fn shell_tools_use_services_and_terminals_through_a_mount() {
    let dir = Scratch::new();
    manifest(dir.path(), "echo", "cat", json!({}));
    let (_node, addr) = serve(dir.path(), &["--services-dir", "services", "--terminal-id", "1"]);
    let endpoint = |name: &str, export: &str| format!("{name}=ws://{addr}/v2/fs#{export}@/{name}");
    let (echo, terminal) = (endpoint("echo", "svc-echo"), endpoint("t", "terminal-1"));
    let args = ["--endpoint", &*echo, "--endpoint", &*terminal];
    let Some(mount) = Mount::start(&args) else { return };
    let sh = |script: &str| ok(mount.shell(script, dir.path()));
    let script = r#"echo '{"a":"something long"}' > echo/control/invoke.json; cat echo/result.json;
        echo '{"a":1}' > echo/control/invoke.json; cat echo/result.json; cat echo/status.json"#;
    let out = sh(script);
    assert!(out.starts_with("{\"a\":\"something long\"}{\"a\":1}{"), "{out}");
    assert!(out.contains(r#""state":"ok""#));
    // A shell does not look at how a close went, so it hears of nonsense at the write.
    sh("! echo nonsense > echo/control/invoke.json");
    sh(r#"echo '{"a":' > "$DIR"/half; ! cp "$DIR"/half echo/control/invoke.json 2> "$DIR"/err"#);
    sh(r#"grep -qi 'invalid' "$DIR"/err; grep -q 'JSON object' echo/last_error.txt"#);
    sh(r#"echo '{"x":2}' > echo/config.json; test "$(cat echo/config.json)" = '{"x":2}'"#);
    let out = sh(r#"echo '{"command":"echo hi"}' > t/control/invoke.json; cat t/result.json"#);
    assert!(out.contains(r#""stdout":"hi\n""#), "{out}");
    let out = sh(
        r#"echo '{"command":"read line; echo got $line"}' > t/pty/new; echo hello > t/pty/1/io; cat t/pty/1/io"#,
    );
    assert!(out.contains("got hello"), "{out}");
}

#[test]
fn a_member_publishes_its_services_and_follows_their_manifests() {
    let (gateway, dir) = (Gateway::start(), place());
    let driver = dir.path().join("driver");
    std::fs::write(&driver, "#!/bin/sh\ncat\n").unwrap();
    let fast = json!({"executable_path": driver, "env": {"KEY": "s3cret"},
        "supervision": {"health_check_interval_ms": 50, "restart_backoff_ms": 50}});
    manifest(dir.path(), "echo", "cat", fast);
    let (url, invite) = (format!("ws://{}/", gateway.addr), gateway.invite());
    let args = [
        "--control-url",
        &url,
        "--export",
        "work=files",
        "--state-file",
        "state.json",
        "--services-dir",
        "services",
        "--terminal-id",
        "1",
        "--manifest-reload-interval-ms",
        "50",
        "--reconnect-backoff-ms",
        "50",
    ];
    let _node = Node::start(&args, &[("SPIDERWEB_INVITE_TOKEN", &invite)], dir.path());
    let id = node_id(dir.path());
    let secret = super::daemon::state(dir.path())["node_secret"].clone();
    // Without services it changes none, and the answer tells those that are published.
    let same = json!({"node_id": id, "node_secret": secret});
    let services = || {
        let reply = gateway.admin().control("node_service_upsert", same.clone()).ok()?;
        Some(reply["services"].clone())
    };
    let service = |name: &str| {
        let all = services()?;
        all.as_array()?.iter().find(|s| s["service_id"] == name).cloned()
    };
    let entry = |state: &str| eventually(state, || service("echo").filter(|s| s["state"] == state));
    use std::os::unix::fs::PermissionsExt;
    let mode =
        |mode| std::fs::set_permissions(&driver, std::fs::Permissions::from_mode(mode)).unwrap();
    // Root may run nothing that nobody may.
    mode(0o644);
    entry("degraded");
    mode(0o755);
    let echo = entry("online");
    assert_eq!(echo["endpoints"], json!([format!("/nodes/{id}/echo")]));
    assert_eq!(echo["mounts"][0]["mount_path"], format!("/nodes/{id}/echo"));
    assert!(!echo.to_string().contains("s3cret"), "{echo}");
    let status = &echo["runtime"]["supervision_status"];
    assert_eq!((&status["state"], &status["last_error"]), (&json!("online"), &Value::Null));
    let terminal = service("terminal-1").unwrap();
    assert_eq!(terminal["capabilities"]["pty"], true);
    let fs = service("fs").unwrap();
    let exports = json!(["work", "terminal-1", "svc-echo"]);
    assert_eq!(fs["capabilities"], json!({"rw": true, "export_count": 1, "exports": exports}));
    // So the gateway knows a name that is wrong.
    let mount = |export: &str| json!({"mount_path": format!("/{export}"), "node_id": id, "export_name": export});
    let up = json!({"name": "Demo", "vision": "v", "activate": false,
        "desired_mounts": [mount("work"), mount("svc-echo"), mount("wrok")]});
    let made = gateway.admin().control("project_up", up).unwrap();
    let drift = &made["workspace"]["drift"];
    assert_eq!(
        (&drift["count"], &drift["items"][0]["kind"]),
        (&json!(1), &json!("missing_export"))
    );
    assert_eq!(drift["items"][0]["mount_path"], "/wrok");
    assert_eq!(fs["permissions"]["fs_roots"], "export-scoped");
    std::fs::remove_file(&driver).unwrap();
    entry("offline");

    // Through the gateway, with the node's own secret.
    let mut raw = Raw::open(gateway.addr, &format!("/v2/fs/node/{id}"), None);
    raw.hello(json!({"auth_token": secret}));
    let root = find(&mut raw, "terminal-1").unwrap();
    let mut c = Client { raw, root };
    c.write("control/invoke.json", r#"{"command":"echo routed"}"#);
    assert_eq!(c.json("result.json")["stdout"], "routed\n");

    manifest(dir.path(), "second", "cat", json!({}));
    eventually("the new service", || service("second"));
    std::fs::remove_file(dir.path().join("services/second.json")).unwrap();
    eventually("its end", || service("second").is_none().then_some(()));
    assert!(dir.path().join("state.json.runtime-services.json").exists());
}

#[test]
fn a_node_with_an_operators_token_approves_itself() {
    let (gateway, dir) = (Gateway::start(), place());
    let url = format!("ws://{}/", gateway.addr);
    let args = [
        "--control-url",
        &url,
        "--export",
        "work=files",
        "--state-file",
        "state.json",
        "--operator-token",
        "op",
        "--reconnect-backoff-ms",
        "50",
    ];
    let env = [("SPIDERWEB_AUTH_TOKEN", gateway.admin_token())];
    let node = Node::start(&args, &env, dir.path());
    node.says("asked to join as");
    node.says("joined as");
    node_id(dir.path());
}
