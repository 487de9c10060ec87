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
