//! What nodes offer, through the gateway: services at their own paths, exports that come and go, and who
//! may see what.

use crate::mount::{Mount, ok, until};
use crate::program::{Client, Gateway, PATIENCE, Program, Scratch};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// The built node, a member of a gateway. It looks at its manifests when it is told to, and at no other
/// time.
struct Edge {
    program: Program,
    dir: Scratch,
    id: String,
}

impl Edge {
    /// Exports `files`; `place` puts manifests into `services`.
    fn join(gateway: &Gateway, place: impl Fn(&Path)) -> Edge {
        let dir = Scratch::new();
        for name in ["files", "services"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("files/a.txt"), "hello").unwrap();
        place(dir.path());
        let invite = gateway.admin().control("node_invite_create", json!({}));
        let mut command = Command::new(env!("CARGO_BIN_EXE_spiderweb-fs-node"));
        command.current_dir(dir.path()).env_clear();
        command.env("SPIDERWEB_INVITE_TOKEN", invite["invite_token"].as_str().unwrap());
        command.args(["--control-url", &gateway.url("/"), "--export", "work=files"]);
        command.args(["--state-file", "state.json", "--services-dir", "services"]);
        command.args(["--manifest-reload-interval-ms", "3600000", "--reconnect-backoff-ms", "50"]);
        let mut program = Program::start(command);
        let id = program.wait_for("joined as ").trim().to_owned();
        program.wait_for("serving files at");
        let edge = Edge { program, dir, id };
        edge.eventually(&mut gateway.admin(), "services/SERVICES.json", "its catalogue", |text| {
            text.contains("\"fs\"")
        });
        edge
    }

    fn path(&self, path: &str) -> String {
        format!("/nodes/{}/{path}", self.id)
    }

    /// Reads a file, or lists a directory, below the node's until it is as it should be.
    #[track_caller]
    fn eventually(&self, client: &mut Client, path: &str, what: &str, is: impl Fn(&str) -> bool) {
        let path = self.path(path);
        let mut last = String::new();
        let end = std::time::Instant::now() + PATIENCE;
        while std::time::Instant::now() < end {
            client.acheron("t_version", json!({"version": "acheron-1"}));
            client.acheron("t_attach", json!({"fid": 1}));
            last = try_read(client, &path).unwrap_or_else(|e| e);
            if is(&last) {
                return;
            }
            std::thread::yield_now();
        }
        panic!("{what}: {path} is {last}");
    }

    fn secret(&self) -> Value {
        let state = std::fs::read(self.dir.path().join("state.json")).unwrap();
        serde_json::from_slice::<Value>(&state).unwrap()["node_secret"].clone()
    }

    fn reload(&self) {
        self.program.signal(libc::SIGHUP);
    }

    fn remove(&self, id: &str) {
        std::fs::remove_file(self.dir.path().join(format!("services/{id}.json"))).unwrap();
    }
}

/// A service whose driver is a shell script.
fn manifest(dir: &Path, id: &str, script: &str, more: Value) {
    let mut manifest = json!({"service_id": id, "kind": "test",
        "permissions": {"default": "deny-by-default", "allow_roles": ["admin", "user"]},
        "runtime": {"executable_path": "/bin/sh", "args": ["-c", script], "timeout_ms": 30_000}});
    manifest.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    std::fs::write(dir.join(format!("services/{id}.json")), manifest.to_string()).unwrap();
}

fn walk(client: &mut Client, fid: u32, path: &str) -> Value {
    let names: Vec<_> = path.split('/').filter(|n| !n.is_empty()).collect();
    client.acheron_reply("t_walk", json!({"fid": 1, "newfid": fid, "path": names}))
}

/// The code of the error, where it cannot be read.
fn try_read(client: &mut Client, path: &str) -> Result<String, String> {
    let mut ask = |op: &str, fields: Value| {
        let reply = client.acheron_reply(op, fields);
        match reply["ok"].as_bool() {
            Some(true) => Ok(reply["payload"].clone()),
            _ => Err(reply["error"]["code"].as_str().unwrap().to_owned()),
        }
    };
    let names: Vec<_> = path.split('/').filter(|n| !n.is_empty()).collect();
    ask("t_walk", json!({"fid": 1, "newfid": 7, "path": names}))?;
    ask("t_open", json!({"fid": 7, "mode": "r"}))?;
    let data = ask("t_read", json!({"fid": 7, "offset": 0, "count": 1 << 20}))?;
    let data = spiderweb::wire::base64_decode(data["data_b64"].as_str().unwrap()).unwrap();
    Ok(String::from_utf8(data).unwrap())
}

fn lists(text: &str, name: &str) -> bool {
    text.lines().any(|line| line == name)
}

/// A client of the node protocol that knows nothing newer, at the node's own path.
struct Routed<'c> {
    client: &'c mut Client,
}

impl Routed<'_> {
    fn ask(&mut self, op: &str, on: Value, payload: Value) -> Value {
        let mut fields = on;
        fields["payload"] = payload;
        self.client.acheron_reply(&format!("t_fs_{op}"), fields)
    }

    #[track_caller]
    fn call(&mut self, op: &str, on: Value, payload: Value) -> Value {
        let reply = self.ask(op, on, payload);
        assert_eq!(reply["ok"], true, "{op}: {reply}");
        reply["payload"].clone()
    }

    fn root(&mut self, export: &str) -> Option<Value> {
        let exports = self.call("exports", json!({}), json!({}))["exports"].clone();
        let found = exports.as_array().unwrap().iter().find(|e| e["name"] == export);
        found.map(|e| e["root"].clone())
    }

    fn open(&mut self, root: &Value, path: &str, flags: u32) -> Value {
        let node = path.split('/').fold(root.clone(), |dir, name| {
            let reply = self.call("lookup", json!({"node": dir}), json!({"name": name}));
            reply["attr"]["id"].clone()
        });
        self.call("open", json!({"node": node}), json!({"flags": flags}))["h"].clone()
    }

    fn write(&mut self, h: &Value, text: &str) -> Value {
        let data = spiderweb::wire::base64_encode(text.as_bytes());
        self.call("write", json!({"h": h}), json!({"off": 0, "data_b64": data}))
    }

    fn read(&mut self, h: &Value) -> String {
        let reply = self.call("read", json!({"h": h}), json!({"off": 0, "len": 65536}));
        let data = reply["data_b64"].as_str().unwrap();
        String::from_utf8(spiderweb::wire::base64_decode(data).unwrap()).unwrap()
    }
}

#[test]
fn what_a_node_offers_comes_and_goes_and_what_stays_is_not_touched() {
    let gateway = Gateway::start();
    let mut edge = Edge::join(&gateway, |dir| manifest(dir, "a", "cat", json!({})));
    let mut admin = gateway.admin();
    admin.attach();
    let listing = admin.read(&edge.path(""));
    assert!(["a", "fs", "services"].iter().all(|name| lists(&listing, name)), "{listing}");
    assert_eq!(admin.read(&edge.path("fs")), "a.txt");
    // Files that are open while others come and go: of the service, and at the node's own path.
    assert_eq!(walk(&mut admin, 9, &edge.path("a/control/invoke.json"))["ok"], true);
    admin.acheron("t_open", json!({"fid": 9, "mode": "rw"}));
    let mut direct = gateway.open(&format!("/v2/fs/node/{}", edge.id), None);
    let mut routed = Routed { client: &mut direct };
    let hello = json!({"protocol": "unified-v2-fs", "proto": 2, "auth_token": edge.secret(),
        "subscribe_invalidations": true});
    routed.call("hello", json!({}), hello);
    let root = routed.root("svc-a").unwrap();
    let open = routed.open(&root, "control/invoke.json", 2);
    assert_eq!(routed.root("svc-b"), None);

    manifest(edge.dir.path(), "b", "cat; echo >&2", json!({}));
    edge.reload();
    edge.eventually(&mut gateway.admin(), "", "the new service", |names| lists(names, "b"));
    let home = edge.path("");
    let invoke = |client: &mut Client, id: &str, text: &str| {
        client.write(&format!("{home}{id}/control/invoke.json"), text);
        client.read(&format!("{home}{id}/result.json"))
    };
    assert_eq!(invoke(&mut admin, "b", r#"{"n":1}"#), r#"{"n":1}"#);
    let fields = json!({"fid": 9, "offset": 0, "data": r#"{"still":"open"}"#});
    assert_eq!(admin.acheron("t_write", fields)["n"], 16);
    assert_eq!(admin.read(&edge.path("a/result.json")), r#"{"still":"open"}"#);
    let new = until_some("it at the node's own path", || routed.root("svc-b"));
    let h = routed.open(&new, "control/invoke.json", 2);
    routed.write(&h, r#"{"n":2}"#);
    assert_eq!(routed.read(&h), r#"{"n":2}"#);
    routed.write(&open, r#"{"n":3}"#);
    assert_eq!(routed.read(&open), r#"{"n":3}"#);

    // One goes; what is open of it ends with an error, and nothing else suffers.
    edge.remove("a");
    edge.reload();
    edge.eventually(&mut gateway.admin(), "", "its end", |names| !lists(names, "a"));
    assert_eq!(try_read(&mut admin, &edge.path("a/result.json")), Err("enoent".into()));
    let fields = json!({"fid": 9, "offset": 0, "data": "{}"});
    assert_eq!(admin.acheron_reply("t_write", fields)["error"]["code"], "enoent");
    until_some("its end there", || routed.root("svc-a").is_none().then_some(()));
    let gone = routed.ask("write", json!({"h": open}), json!({"off": 0, "data_b64": "e30="}));
    assert_eq!(gone["error"]["errno"], libc::ESTALE, "{gone}");
    assert_eq!(routed.read(&h), r#"{"n":2}"#);
    assert_eq!(invoke(&mut admin, "b", r#"{"n":4}"#), r#"{"n":4}"#);

    // It comes back as another one, under the same name.
    manifest(edge.dir.path(), "a", "echo '{\"new\":true}'", json!({}));
    edge.reload();
    edge.eventually(&mut gateway.admin(), "", "its return", |names| lists(names, "a"));
    assert_eq!(invoke(&mut admin, "a", "{}"), "{\"new\":true}\n");
    let again = until_some("its return there", || routed.root("svc-a"));
    assert_ne!(again, root);
    let h = routed.open(&again, "result.json", 0);
    assert_eq!(routed.read(&h), "{\"new\":true}\n");
    let events = std::iter::from_fn(|| direct.try_pushed()).collect::<Vec<_>>();
    let told = |e: &Value| e["payload"]["node"] == root && e["payload"]["what"] == "all";
    assert!(events.iter().any(told), "{events:?}");
    // A manifest that is wrong takes nothing away.
    std::fs::write(edge.dir.path().join("services/bad.json"), "{").unwrap();
    edge.reload();
    edge.program.wait_for("services stay as they were");
    assert_eq!(invoke(&mut admin, "b", r#"{"n":5}"#), r#"{"n":5}"#);
}

#[track_caller]
fn until_some<T>(what: &str, mut f: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    until(what, || {
        found = f();
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn services_stand_where_they_ask_to_below_their_node_and_nowhere_else() {
    let gateway = Gateway::start();
    let edge = Edge::join(&gateway, |dir| {
        let at = |path: &str| json!({"mount_id": "m", "mount_path": path});
        let mounts =
            json!([at("/nodes/{node_id}/tools/echo"), at("/agents/self/chat"), at("/meta")]);
        let more = json!({"endpoints": ["/nodes/{node_id}/echo"], "mounts": mounts,
            "capabilities": {"invoke": true}, "invoke_template": {"hello": "world"},
            "help_md": "Says it again.\n"});
        manifest(dir, "echo-main", "cat", more);
        // In place of what the node is itself, and of another's place.
        let mounts = json!([at("/nodes/{node_id}/fs"), at("/nodes/{node_id}/echo")]);
        manifest(dir, "greedy", "echo '{}'", json!({"mounts": mounts}));
        let catalogued = json!({"service_id": "paper", "kind": "camera"});
        std::fs::write(dir.join("services/paper.json"), catalogued.to_string()).unwrap();
    });
    let mut admin = gateway.admin();
    admin.attach();
    let listing = admin.read(&edge.path(""));
    assert!(["echo", "tools", "greedy"].iter().all(|n| lists(&listing, n)), "{listing}");
    assert!(!lists(&listing, "paper") && !lists(&listing, "echo-main"), "{listing}");
    assert_eq!(admin.read(&edge.path("fs")), "a.txt", "the files stay the files");
    assert!(lists(&admin.read("/agents/self/chat"), "control"));
    assert!(lists(&admin.read("/meta"), "view.json"));

    // Written at one of its places, it is seen at all of them.
    admin.write(&edge.path("tools/echo/control/invoke.json"), r#"{"a":1}"#);
    for place in ["echo", "tools/echo", "services/echo-main"] {
        assert_eq!(admin.read(&edge.path(&format!("{place}/result.json"))), r#"{"a":1}"#);
    }
    admin.write(&edge.path("services/echo-main/control/invoke.json"), r#"{"b":2}"#);
    assert_eq!(admin.read(&edge.path("echo/result.json")), r#"{"b":2}"#);
    let mut json = |path: &str| -> Value {
        serde_json::from_str(&admin.read(&edge.path(path)))
            .unwrap_or_else(|e| panic!("{path}: {e}"))
    };
    assert_eq!(json("echo/status.json")["state"], "ok");
    // What the catalogue says of it.
    assert_eq!(json("services/echo-main/CAPS.json"), json!({"invoke": true}));
    assert_eq!(json("services/echo-main/TEMPLATE.json"), json!({"hello": "world"}));
    assert_eq!(json("services/echo-main/MOUNTS.json")[0]["mount_path"], edge.path("tools/echo"));
    let brief = json!({"service_id": "echo-main", "kind": "test", "state": "online",
        "endpoint": edge.path("echo")});
    assert_eq!(json("services/echo-main/STATUS.json"), brief);
    let all = json("services/SERVICES.json");
    assert!(all.as_array().unwrap().contains(&brief), "{all}");
    assert_eq!(json("services/echo-main/RUNTIME.json")["timeout_ms"], 30_000);
    assert_eq!(json("services/echo-main/PERMISSIONS.json")["default"], "deny-by-default");
    for name in ["OPS.json", "SCHEMA.json"] {
        json(&format!("services/echo-main/{name}"));
    }
    let caps = json("CAPS.json");
    assert_eq!(
        (&caps["fs"], &caps["camera"], &caps["terminal"]),
        (&true.into(), &true.into(), &false.into())
    );
    assert_eq!(admin.read(&edge.path("services/echo-main/README.md")), "Says it again.\n");
    let paper = admin.read(&edge.path("services/paper"));
    assert!(lists(&paper, "STATUS.json") && !lists(&paper, "control"), "{paper}");
    let listing = admin.read(&edge.path("services/echo-main"));
    assert!(
        ["STATUS.json", "status.json", "control"].iter().all(|n| lists(&listing, n)),
        "{listing}"
    );

    // Bad input: what is no message, and what cannot be written.
    for (path, text, code) in [
        ("echo/control/invoke.json", "[1]", "invalid"),
        ("echo/control/invoke.json", "no", "invalid"),
        ("echo/config.json", r#"{"supervision":{"cooldown_ms":"long"}}"#, "invalid"),
        ("services/echo-main/config.json", "7", "invalid"),
    ] {
        assert_eq!(walk(&mut admin, 4, &edge.path(path))["ok"], true);
        admin.acheron("t_open", json!({"fid": 4, "mode": "rw"}));
        let reply = admin.acheron_reply("t_write", json!({"fid": 4, "offset": 0, "data": text}));
        assert_eq!(reply["error"]["code"], code, "{path} {text}: {reply}");
    }
    for path in ["echo/result.json", "services/echo-main/MOUNTS.json"] {
        assert_eq!(walk(&mut admin, 4, &edge.path(path))["ok"], true);
        let reply = admin.acheron_reply("t_open", json!({"fid": 4, "mode": "rw"}));
        assert_eq!(reply["error"]["code"], "eperm", "{path}: {reply}");
    }
    for path in ["services/nobody", "echo/nothing", "services/echo-main/nothing", "paper"] {
        assert_eq!(walk(&mut admin, 4, &edge.path(path))["error"]["code"], "enoent", "{path}");
    }
    admin.write(&edge.path("echo/control/disable"), "{}");
    assert_eq!(walk(&mut admin, 4, &edge.path("echo/control/invoke.json"))["ok"], true);
    admin.acheron("t_open", json!({"fid": 4, "mode": "rw"}));
    let reply = admin.acheron_reply("t_write", json!({"fid": 4, "offset": 0, "data": "{}"}));
    assert_eq!(reply["error"]["code"], "eperm", "disabled: {reply}");
}

#[test]
fn users_see_the_services_of_their_projects_nodes_that_are_for_them() {
    let gateway = Gateway::start();
    let edge = Edge::join(&gateway, |dir| {
        manifest(dir, "open", "cat", json!({}));
        let admins =
            json!({"permissions": {"default": "deny-by-default", "allow_roles": ["admin"]}});
        manifest(dir, "closed", "cat", admins);
        manifest(dir, "token", "cat", json!({"permissions": {"require_project_token": true}}));
        manifest(dir, "silent", "cat", json!({"permissions": {"default": "deny"}}));
    });
    let mut admin = gateway.admin();
    let up = |admin: &mut Client, payload: Value| admin.control("project_up", payload);
    up(&mut admin, json!({"name": "Demo", "vision": "v", "agent_id": "alice"}));
    let mut user = gateway.user();
    let attach = json!({"session_key": "u", "agent_id": "alice", "project_id": "proj-1"});
    user.control("session_attach", attach.clone());
    user.attach();
    for path in ["open/status.json", "fs/a.txt", "services/open/control"] {
        assert_eq!(try_read(&mut user, &edge.path(path)), Err("enoent".into()), "{path}");
    }
    // With a mount of the node in the project it is there.
    let mounts = json!([{"node_id": edge.id, "export_name": "work", "mount_path": "/src"}]);
    up(&mut admin, json!({"project_id": "proj-1", "desired_mounts": mounts}));
    let mut other = gateway.user();
    other.control("session_attach", attach);
    edge.eventually(&mut other, "", "the service", |names| lists(names, "open"));
    user.write(&edge.path("open/control/invoke.json"), r#"{"by":"user"}"#);
    assert_eq!(user.read(&edge.path("open/result.json")), r#"{"by":"user"}"#);
    let listing = user.read(&edge.path(""));
    let services = user.read(&edge.path("services"));
    let index = user.read(&edge.path("services/SERVICES.json"));
    for denied in ["closed", "token", "silent"] {
        assert!(!lists(&listing, denied) && !lists(&services, denied), "{listing}\n{services}");
        assert!(!index.contains(&format!("\"{denied}\"")), "{index}");
        for path in [denied.to_owned(), format!("services/{denied}/control")] {
            assert_eq!(try_read(&mut user, &edge.path(&path)), Err("enoent".into()), "{path}");
        }
    }
    // What the project itself mounts somewhere stands there.
    let mounts = json!([{"node_id": edge.id, "export_name": "work", "mount_path": "/src"},
        {"node_id": edge.id, "export_name": "work", "mount_path": edge.path("open")}]);
    up(&mut admin, json!({"project_id": "proj-1", "desired_mounts": mounts}));
    edge.eventually(&mut other, "open", "the project's mount", |names| names == "a.txt");
    let mounts = json!([{"node_id": edge.id, "export_name": "work", "mount_path": "/src"}]);
    up(&mut admin, json!({"project_id": "proj-1", "desired_mounts": mounts}));
    edge.eventually(&mut other, "open", "the service again", |names| lists(names, "control"));
    // Who may not invoke in the project may not here.
    let policy = json!({"project_id": "proj-1", "access_policy": {"actions": {"invoke": "deny"}}});
    up(&mut admin, policy);
    edge.eventually(&mut other, "", "the service's end", |names| !lists(names, "open"));
    assert_eq!(try_read(&mut user, &edge.path("fs/a.txt")), Ok("hello".into()));
    admin.attach();
    assert!(lists(&admin.read(&edge.path("services")), "closed"));
    admin.write(&edge.path("closed/control/invoke.json"), "{}");
}

#[test]
fn shells_see_services_come_and_invoke_them_in_a_mount_of_the_namespace() {
    let gateway = Gateway::start();
    let edge = Edge::join(&gateway, |dir| manifest(dir, "a", "cat", json!({})));
    let (url, token) = (gateway.url("/"), gateway.token("admin_token"));
    let args = ["--workspace-url", &url, "--auth-token", &token, "--timeout-ms", "3000"];
    let Some(mount) = Mount::start(&args) else { return };
    let sh =
        |script: &str| mount.shell(&format!("cd nodes/{}; {script}", edge.id), edge.dir.path());
    assert_eq!(ok(sh("echo '{\"x\":1}' > a/control/invoke.json; cat a/result.json")), "{\"x\":1}");
    // It takes longer than other calls may.
    let slow = "read x; sleep 5; echo \"{\\\"slow\\\":true}\"";
    manifest(edge.dir.path(), "b", slow, json!({}));
    edge.reload();
    until("the new service", || sh("test -e b/control/invoke.json").status.success());
    assert!(ok(sh("ls")).lines().any(|name| name == "b"));
    let script = "echo '{}' > b/control/invoke.json; cat b/result.json services/b/result.json";
    assert_eq!(ok(sh(script)), "{\"slow\":true}\n{\"slow\":true}\n");
    assert!(!sh("echo nonsense > b/control/invoke.json; cat b/nothing").status.success());
    edge.remove("b");
    edge.reload();
    until("its end", || sh("test ! -e b && test ! -e services/b && ls").status.success());
    assert_eq!(ok(sh("cat a/result.json fs/a.txt")), "{\"x\":1}hello");
}

#[test]
fn a_node_that_is_stopped_while_its_service_works_is_noticed() {
    let gateway = Gateway::start();
    let edge = Edge::join(&gateway, |dir| {
        // Far longer than this test may take.
        let runtime = json!({"runtime": {"executable_path": "/bin/sleep", "args": ["590"],
            "timeout_ms": 590_000}});
        manifest(dir, "long", "", runtime);
        manifest(dir, "a", "cat", json!({}));
    });
    let (url, token) = (gateway.url("/"), gateway.token("admin_token"));
    let args = ["--workspace-url", &url, "--auth-token", &token, "--timeout-ms", "3000"];
    let Some(mount) = Mount::start(&args) else { return };
    let sh =
        |script: &str| mount.shell(&format!("cd nodes/{}; {script}", edge.id), edge.dir.path());
    std::thread::scope(|threads| {
        let writer = threads.spawn(|| sh("echo '{}' > long/control/invoke.json"));
        until("the run", || sh("grep -q running long/status.json").status.success());
        edge.program.signal(libc::SIGSTOP);
        let status = writer.join().unwrap().status;
        assert!(!status.success() && status.code() != Some(124), "an error in time: {status}");
    });
    edge.program.signal(libc::SIGCONT);
    until("its return", || sh("echo '{}' > a/control/invoke.json").status.success());
    ok(sh("echo '{}' > long/control/restart"));
}

#[test]
fn a_service_whose_node_is_lost_says_so() {
    let gateway = Gateway::start();
    let edge = Edge::join(&gateway, |dir| manifest(dir, "a", "cat", json!({})));
    let mut admin = gateway.admin();
    admin.attach();
    let of = |name: &str| edge.path(&format!("services/a/{name}"));
    admin.write(&of("control/invoke.json"), r#"{"n":1}"#);
    assert!(admin.read(&of("status.json")).contains(r#""state":"ok""#));
    assert_eq!(admin.read(&of("result.json")), r#"{"n":1}"#);
    edge.program.signal(libc::SIGKILL);
    edge.eventually(&mut admin, "services/a/status.json", "that it is lost", |text| {
        text.contains("unreachable")
    });
    for name in ["status.json", "result.json"] {
        let told: Value = serde_json::from_str(&admin.read(&of(name))).unwrap();
        assert_eq!(told["state"], "unreachable");
        assert_eq!(told["error"], format!("{} cannot be reached", edge.id));
    }
    // What only the node can do is an error all the same.
    assert!(try_read(&mut admin, &of("control/invoke.json")).is_err());
    let listing = admin.read(&edge.path("services/a"));
    assert!(lists(&listing, "status.json") && lists(&listing, "STATUS.json"), "{listing}");
}

/// A node that knows the base protocol alone, through a tunnel: `exports` says what there is, and other
/// nodes than the roots in it are gone.
fn old_node(tunnel: &mut Client, exports: &std::sync::Mutex<Vec<(&str, u64)>>) {
    loop {
        let crate::program::Got::Json(request) = tunnel.recv() else { return };
        let op = request["type"].as_str().unwrap().trim_start_matches("acheron.t_fs_").to_owned();
        let all = exports.lock().unwrap().clone();
        let known = all.iter().any(|(_, root)| request["node"] == *root);
        let payload = match &*op {
            "hello" => {
                Some(json!({"protocol": "unified-v2-fs", "proto": 2, "node": {"name": "old"},
                "caps": {"max_read": 65536, "max_write": 65536}}))
            }
            "exports" => {
                let one = |(id, root): &(&str, u64)| {
                    json!({"name": format!("svc-{id}"), "root": root, "ro": false,
                        "source_kind": "namespace", "source_id": format!("service:{id}")})
                };
                Some(json!({"exports": all.iter().map(one).collect::<Vec<_>>()}))
            }
            "getattr" if known => {
                Some(json!({"attr": {"id": request["node"], "k": 2, "m": 16877}}))
            }
            _ => None,
        };
        let mut reply =
            json!({"channel": "acheron", "tag": request["tag"], "ok": payload.is_some()});
        match payload {
            Some(payload) => {
                reply["type"] = format!("acheron.r_fs_{op}").into();
                reply["payload"] = payload;
            }
            None => {
                reply["type"] = "acheron.err_fs".into();
                let errno = if op == "getattr" { libc::ESTALE } else { libc::ENOENT };
                reply["error"] = json!({"errno": errno, "message": "no"});
            }
        }
        tunnel.send(reply);
    }
}

#[test]
fn an_old_node_is_asked_again_when_it_publishes_other_services() {
    let gateway = Gateway::start();
    let mut admin = gateway.admin();
    let invite = admin.control("node_invite_create", json!({}));
    let joined =
        admin.control("node_join", json!({"invite_token": invite["invite_token"], "fs_url": ""}));
    let (id, secret) = (joined["node_id"].clone(), joined["node_secret"].clone());
    let service = |id: &str, version: &str| {
        json!({"service_id": id, "kind": "test", "version": version, "state": "online",
            "endpoints": [format!("/nodes/node-1/{id}")],
            "runtime": {"type": "native_proc", "executable_path": "/bin/cat"}})
    };
    let publish = |admin: &mut Client, services: Value| {
        let payload = json!({"node_id": id, "node_secret": secret, "services": services});
        admin.control("node_service_upsert", payload);
    };
    assert_eq!(id, "node-1");
    let exports = std::sync::Mutex::new(vec![("a", 5)]);
    let mut tunnel = gateway.open("/v2/node", None);
    let hello =
        json!({"node_id": id, "node_secret": secret, "protocol": "unified-v2-fs", "proto": 2});
    let reply = tunnel.acheron_reply("t_fs_hello", json!({"payload": hello}));
    assert_eq!(reply["ok"], true, "{reply}");
    std::thread::scope(|threads| {
        threads.spawn(|| old_node(&mut tunnel, &exports));
        publish(&mut admin, json!([service("a", "1")]));
        admin.attach();
        let mut finds = |path: &str| {
            let path = path.to_owned();
            until(&path, || walk(&mut admin, 3, &path)["ok"] == true);
        };
        finds("/nodes/node-1/a");
        // Its engine begins anew: nothing is what it was.
        *exports.lock().unwrap() = vec![("b", 6), ("a", 7)];
        publish(&mut gateway.admin(), json!([service("a", "2"), service("b", "1")]));
        finds("/nodes/node-1/b");
        finds("/nodes/node-1/a");
        // Catalogued, but not exported; and never catalogued.
        publish(&mut gateway.admin(), json!([service("a", "2"), service("c", "1")]));
        let mut other = gateway.admin();
        other.attach();
        until("it to be listed", || lists(&other.read("/nodes/node-1"), "c"));
        for name in ["b", "c"] {
            let reply = walk(&mut other, 3, &format!("/nodes/node-1/{name}"));
            assert_eq!(reply["error"]["code"], "enoent", "{name}: {reply}");
        }
        gateway.admin().control("node_delete", json!({"node_id": id}));
    });
}

#[test]
fn debug_subscribe_has_another_spelling_and_its_events_are_numbered() {
    let gateway = Gateway::start();
    let mut admin = gateway.admin();
    admin.control("project_up", json!({"name": "Demo", "vision": "v", "agent_id": "alice"}));
    let invite = admin.control("node_invite_create", json!({}));
    admin.control("node_join", json!({"invite_token": invite["invite_token"], "fs_url": ""}));
    let mut watcher = gateway.admin();
    let ask = |kind: &str, id: &str| {
        json!({"channel": "control", "type": kind, "id": id,
            "payload": {"categories": ["control.workspace_topology"]}})
    };
    let reply = watcher.ask(ask("debug.subscribe", "s"));
    assert_eq!((&reply["id"], &reply["payload"]), (&json!("s"), &json!({"enabled": true})));
    assert_eq!(reply["type"], "control.debug_subscribe");
    let ack = watcher.json();
    assert_eq!((&ack["type"], &ack["request"]), (&json!("debug.event"), &json!("s")));
    let mut up = |path: &str| {
        let mounts = json!([{"node_id": "node-1", "export_name": "work", "mount_path": path}]);
        admin.control("project_up", json!({"project_id": "proj-1", "desired_mounts": mounts}));
    };
    for (path, seq) in [("/one", 1), ("/two", 2)] {
        up(path);
        let event = watcher.json();
        assert_eq!(
            (&event["type"], &event["seq"]),
            (&json!("debug.event"), &json!(seq)),
            "{event}"
        );
    }
    let reply = watcher.ask(ask("debug.unsubscribe", "u"));
    assert_eq!((&reply["id"], &reply["payload"]), (&json!("u"), &json!({"enabled": false})));
    let mut other = gateway.admin();
    other.ask(ask("debug.subscribe", "o"));
    other.json();
    up("/three");
    assert_eq!(other.json()["seq"], 1);
    // Another subscription counts anew; nothing was told in between.
    assert_eq!(watcher.ask(ask("control.debug_subscribe", "t"))["id"], "t");
    assert_eq!(watcher.json()["request"], "t");
    up("/four");
    assert_eq!(watcher.json()["seq"], 1);
    for kind in ["debug.other", "control.debug.subscribe"] {
        let reply = watcher.ask(ask(kind, "x"));
        assert_eq!(reply["error"]["code"], "unsupported_legacy_api", "{reply}");
    }
}
