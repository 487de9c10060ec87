//! The control plane as its users meet it: what an operation on a project changes is there in the
//! namespace and in mounts.

use crate::conformance::{Node, Scratch};
use crate::mount::{Mount, until};
use crate::program::{Client, Gateway};
use serde_json::{Value, json};

/// A gateway with a project in which `alice` works, and a node whose files lie in `dir`.
struct House {
    gateway: Gateway,
    admin: Client,
    node: Node,
    node_id: String,
    secret: Value,
}

impl House {
    fn start(dir: &Scratch) -> House {
        let gateway = Gateway::start();
        let mut admin = gateway.admin();
        let invite = admin.control("node_invite_create", json!({}));
        let join = json!({"invite_token": invite["invite_token"], "node_name": "edge"});
        let joined = admin.control("node_join", join);
        let (node_id, secret) = (joined["node_id"].as_str().unwrap(), &joined["node_secret"]);
        // It asks its clients for the secret that the gateway gave it.
        let node = Node::with_token(dir.path(), secret.as_str().unwrap());
        let lease = json!({"node_id": node_id, "node_secret": secret, "fs_url": node.url()});
        admin.control("node_lease_refresh", lease);
        admin.control("project_create", json!({"name": "Demo", "vision": "v"}));
        admin.control(
            "session_attach",
            json!({"session_key": "w", "agent_id": "alice", "project_id": "proj-1"}),
        );
        House { gateway, admin, node, node_id: node_id.to_owned(), secret: secret.clone() }
    }

    fn mount(&self, path: &str) -> Value {
        json!({"project_id": "proj-1", "node_id": self.node_id, "export_name": "work", "mount_path": path})
    }

    /// A mount of the workspace that asks for changes of its own accord every ten minutes.
    fn workspace(&self) -> Option<Mount> {
        let (url, token) = (self.gateway.url("/"), self.gateway.token("admin_token"));
        let args = ["--workspace-url", &url, "--auth-token", &token, "--project-id", "proj-1"];
        Mount::start(&[&args[..], &["--workspace-sync-interval-ms", "600000"]].concat())
    }
}

#[test]
fn mounts_and_binds_show_in_the_namespace_as_soon_as_they_are_set() {
    let dir = Scratch::new();
    std::fs::create_dir(dir.path().join("app")).unwrap();
    std::fs::write(dir.path().join("app/x"), "from the node").unwrap();
    let mut house = House::start(&dir);
    let mount = house.mount("/src");
    let admin = &mut house.admin;
    admin.attach();
    let until_read = |admin: &mut Client, path: &[&str], there: bool| {
        let walk = json!({"fid": 1, "newfid": 90, "path": path});
        until("the tree to be laid out anew", || {
            let found = admin.acheron_reply("t_walk", walk.clone())["ok"] == true;
            if found {
                admin.acheron("t_clunk", json!({"fid": 90}));
            }
            found == there
        });
    };
    admin.control("project_mount_set", mount.clone());
    until_read(admin, &["src", "app", "x"], true);
    let bind = |target: &str| json!({"project_id": "proj-1", "bind_path": "/repo/app", "target_path": target});
    admin.control("project_bind_set", bind("/src/app"));
    until_read(admin, &["repo", "app", "x"], true);
    assert_eq!(admin.read("/repo/app/x"), "from the node");
    assert_eq!(admin.write("/repo/app/x", "FROM")["n"], 4);
    assert_eq!(std::fs::read_to_string(dir.path().join("app/x")).unwrap(), "FROM the node");
    assert_eq!(admin.read("/repo"), "app");
    admin.control("project_bind_set", bind("/src"));
    until_read(admin, &["repo", "app", "app", "x"], true);
    admin.control("project_bind_remove", json!({"project_id": "proj-1", "bind_path": "/repo/app"}));
    until_read(admin, &["repo"], false);
    admin.control("project_mount_remove", json!({"project_id": "proj-1", "mount_path": "/src"}));
    until_read(admin, &["src"], false);
    drop(house.node);
}

#[test]
fn a_mount_follows_what_is_mounted_and_bound_in_its_project() {
    let dir = Scratch::new();
    std::fs::write(dir.path().join("x"), "from the node").unwrap();
    let mut house = House::start(&dir);
    let Some(mounted) = house.workspace() else { return };
    let reads =
        |path: &str| mounted.shell(&format!("cat {path}"), dir.path()).stdout == b"from the node";
    assert!(!reads("src/x"));
    let mount = house.mount("/src");
    house.admin.control("project_mount_set", mount);
    until("the mount to appear", || reads("src/x"));
    let bind = json!({"project_id": "proj-1", "bind_path": "/repo", "target_path": "/src"});
    house.admin.control("project_bind_set", bind);
    until("the bind to appear", || reads("repo/x"));
    let remove = json!({"project_id": "proj-1", "mount_path": "/src"});
    house
        .admin
        .control("project_bind_remove", json!({"project_id": "proj-1", "bind_path": "/repo"}));
    house.admin.control("project_mount_remove", remove);
    until("both to be gone", || {
        mounted.shell("test ! -e src && test ! -e repo", dir.path()).status.success()
    });
}

#[test]
fn subscribers_hear_of_mounts_binds_and_exports() {
    let dir = Scratch::new();
    let mut house = House::start(&dir);
    let mut watcher = house.gateway.admin();
    let topology = json!({"categories": ["control.workspace_topology"]});
    watcher.control("debug_subscribe", topology);
    assert_eq!(watcher.pushed()["payload"]["enabled"], true);
    let mut told = |reason: &str| {
        let event = watcher.pushed();
        assert_eq!(
            (&event["payload"]["reason"], &event["payload"]["project_id"]),
            (&json!(reason), &json!("proj-1")),
            "{event}"
        );
    };
    let mount = house.mount("/src");
    house.admin.control("project_mount_set", mount.clone());
    told("project_changed");
    // The same again is no news; what comes next is the bind.
    house.admin.control("project_mount_set", mount);
    let bind = json!({"project_id": "proj-1", "bind_path": "/repo", "target_path": "/src"});
    house.admin.control("workspace_bind_set", bind);
    told("project_changed");
    // A catalogue in which the export is not.
    let publish = |exports: Value| {
        json!({"node_id": house.node_id, "node_secret": house.secret, "services": [{"service_id": "fs",
            "kind": "fs", "state": "online", "endpoints": ["/nodes/x/fs"],
            "capabilities": {"exports": exports}}]})
    };
    house.admin.control("node_service_upsert", publish(json!(["other"])));
    told("availability_changed");
    let status = house.admin.control("workspace_status", json!({}));
    assert_eq!(status["drift"]["items"][0]["kind"], "missing_export");
    house.admin.control("node_service_upsert", publish(json!(["other", "work"])));
    told("availability_changed");
    assert_eq!(house.admin.control("reconcile_status", json!({}))["reconcile_state"], "idle");
}

#[test]
fn who_edits_what_another_has_changed_is_refused() {
    let dir = Scratch::new();
    let mut house = House::start(&dir);
    let seen = house.admin.control("project_get", json!({"project_id": "proj-1"}));
    let stamp = &seen["updated_at_ms"];
    let update =
        |name: &str| json!({"project_id": "proj-1", "name": name, "if_updated_at_ms": stamp});
    house.admin.control("workspace_update", update("First"));
    let reply = house.admin.control_reply("project_update", update("Second"));
    assert_eq!(reply["error"]["code"], "precondition_failed");
    assert_eq!(
        house.admin.control("project_get", json!({"project_id": "proj-1"}))["name"],
        "First"
    );
}

#[test]
fn a_project_from_a_template_is_there_after_a_restart() {
    let scratch = crate::program::Scratch::new();
    let templates = scratch.path().join("templates/workspaces");
    std::fs::create_dir_all(&templates).unwrap();
    let write = |name: &str, text: String| std::fs::write(templates.join(name), text).unwrap();
    let mount = json!({"mount_path": "/src", "node_name": "edge", "export_name": "work"});
    let bind = json!({"bind_path": "/repo", "target_path": "/src/app"});
    let template =
        json!({"description": "Ours", "vision": "Ship it", "mounts": [mount], "binds": [bind]});
    write("base.json", template.to_string());
    write("typo.json", json!({"mouts": []}).to_string());
    std::os::unix::fs::symlink("/proc/self/environ", templates.join("out.json")).unwrap();
    let mut gateway = Gateway::at(scratch.path(), "0");
    let mut admin = gateway.admin();
    let node = admin.control("node_ensure", json!({"node_name": "edge"}));
    let listed = admin.control("workspace_template_list", json!({}));
    let all = listed["templates"].as_array().unwrap();
    assert_eq!(all.len(), 3, "{listed}");
    assert_eq!(
        all[0],
        json!({"template_id": "base", "description": "Ours", "mount_count": 1, "bind_count": 1})
    );
    assert!(all[1]["error"].as_str().unwrap().contains("leads out"), "{listed}");
    assert!(all[2]["error"].as_str().unwrap().contains("mouts"), "{listed}");
    let up = |template: &str| json!({"name": "Demo", "template_id": template, "agent_id": "alice"});
    for (template, code) in
        [("typo", "invalid"), ("out", "invalid"), ("none", "template_not_found")]
    {
        assert_eq!(admin.control_reply("project_up", up(template))["error"]["code"], code);
    }
    let made = admin.control("project_up", up("base"));
    assert_eq!(made["project_id"], "proj-1", "the others made none: {made}");
    write("base.json", "{}".into());
    gateway.program.kill();
    let gateway = Gateway::at(scratch.path(), "0");
    let mut admin = gateway.admin();
    let found = admin.control("project_get", json!({"project_id": "proj-1"}));
    let mount = json!({"mount_path": "/src", "node_id": node["node_id"], "export_name": "work"});
    assert_eq!((&found["mounts"], &found["binds"]), (&json!([mount]), &json!([bind])));
    assert_eq!((&found["vision"], &found["template_id"]), (&json!("Ship it"), &json!("base")));
    let shown = admin.control("workspace_template_get", json!({"template_id": "base"}));
    assert_eq!(shown["template"]["mounts"], Value::Null, "read anew: {shown}");
}

fn numbered(name: &str, id: u32, payload: &Value) -> Value {
    json!({"channel": "control", "type": format!("control.{name}"), "id": format!("n{id}"), "payload": payload})
}

#[test]
fn requests_sent_at_once_are_answered_in_their_order_and_each_sees_those_before_it() {
    let gateway = Gateway::start();
    let mut admin = gateway.admin();
    let projects: u32 = 20;
    for n in 1..=projects {
        let create = json!({"name": format!("P{n}"), "vision": "v"});
        admin.send(numbered("project_create", 3 * n, &create));
        admin.send(numbered("project_get", 3 * n + 1, &json!({"project_id": format!("proj-{n}")})));
        admin.send(numbered("ping", 3 * n + 2, &json!({})));
    }
    for n in 1..=projects {
        for (id, kind) in [(0, "project_create"), (1, "project_get"), (2, "pong")] {
            let reply = admin.json();
            assert_eq!(reply["id"], format!("n{}", 3 * n + id), "{reply}");
            assert_eq!(reply["type"], format!("control.{kind}"), "{reply}");
            assert!(id == 2 || reply["payload"]["name"] == format!("P{n}"), "{reply}");
        }
    }
}

#[test]
fn what_the_disk_does_not_take_is_answered_with_an_error_and_has_not_happened() {
    let scratch = crate::program::Scratch::new();
    let mut command = Gateway::command(scratch.path(), "0", &[]);
    // A limit on the size of files stands for a full disk; the signal that comes with it is for those who
    // do not look at errors.
    // SAFETY: signal(2) is safe to call between fork and exec.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, || {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            Ok(())
        })
    };
    let gateway = Gateway::started(scratch.path(), command);
    let limit = |bytes: libc::rlim_t| {
        let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
        let pid = gateway.program.pid() as libc::pid_t;
        // SAFETY: the pointer is to a value that outlives the call.
        let set = unsafe { libc::prlimit(pid, libc::RLIMIT_FSIZE, &limit, std::ptr::null_mut()) };
        assert_eq!(set, 0);
    };
    let mut admin = gateway.admin();
    admin.control("project_create", json!({"name": "Before", "vision": "v"}));
    limit(1);
    let create = json!({"name": "Lost", "vision": "v"});
    admin.send(numbered("project_create", 1, &create));
    admin.send(numbered("ping", 2, &json!({})));
    let refused = admin.json();
    assert_eq!((&refused["type"], &refused["id"]), (&json!("control.error"), &json!("n1")));
    assert_eq!(refused["error"]["code"], "storage_error", "{refused}");
    assert_eq!(refused["error"]["correlation_id"], "n1", "{refused}");
    assert_eq!(admin.json()["type"], "control.pong");
    let names = |list: Value| -> Vec<Value> {
        list["projects"].as_array().unwrap().iter().map(|p| p["name"].clone()).collect()
    };
    assert_eq!(names(admin.control("project_list", json!({}))), ["System", "Before"]);
    limit(libc::RLIM_INFINITY);
    let mut client = gateway.admin();
    until("the store to take changes again", || {
        client.control_reply("project_create", json!({"name": "After", "vision": "v"}))["ok"]
            == true
    });
    let after = client.control("project_get", json!({"project_id": "proj-2"}));
    assert_eq!(after["name"], "After");
    let tail =
        client.control("audit_tail", json!({"result": "error", "control_type": "project_create"}));
    assert_eq!(tail["audit"][0]["error_code"], "storage_error", "{tail}");
    let verified = client.control("audit_tail", json!({"verify": true}));
    assert_eq!(verified["verified"]["intact"], true, "{verified}");
}
