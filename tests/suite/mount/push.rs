//! A mount hears of changes of its workspace, and others who subscribe do.

use super::{Mount, ok, run, until};
use crate::conformance::{Node, Scratch};
use crate::program::{Client, Gateway, Got};
use serde_json::{Value, json};

/// The id and the secret of a node that the gateway knows from now on.
fn joined(admin: &mut Client, url: &str) -> (String, Value) {
    let invite = admin.control("node_invite_create", json!({}));
    let join = json!({"invite_token": invite["invite_token"], "fs_url": url});
    let joined = admin.control("node_join", join);
    (joined["node_id"].as_str().unwrap().to_owned(), joined["node_secret"].clone())
}

fn topology(event: &Value) -> Option<&str> {
    let is_it = event["type"] == "debug.event" && event["category"] == "control.workspace_topology";
    assert!(!is_it || event.get("channel").is_none());
    is_it.then(|| event["payload"]["project_id"].as_str().unwrap())
}

#[test]
fn a_mount_set_through_the_control_plane_appears_by_itself() {
    let gateway = Gateway::start();
    let mut admin = gateway.admin();
    let dir = Scratch::new();
    std::fs::write(dir.path().join("x"), "direct").unwrap();
    // It asks its clients for the secret that the gateway gave it.
    let (id, secret) = joined(&mut admin, "");
    let node = Node::with_token(dir.path(), secret.as_str().unwrap());
    let lease = json!({"node_id": id, "node_secret": secret, "fs_url": node.url()});
    admin.control("node_lease_refresh", lease);
    admin.control("project_up", json!({"name": "Demo", "vision": "v", "agent_id": "alice"}));
    let token = gateway.token("admin_token");
    let url = gateway.url("/");
    let args = [
        "--workspace-url",
        &url,
        "--auth-token",
        &token,
        "--project-id",
        "proj-1",
        "--workspace-sync-interval-ms",
        "600000",
    ];
    let Some(mount) = Mount::start(&args) else { return };
    let at = mount.at.to_str().unwrap();
    let paths = || -> Vec<Value> {
        let status: Value = serde_json::from_str(&ok(run(&["status", "--no-probe", at]))).unwrap();
        status["mounts"].as_array().unwrap().iter().map(|m| m["path"].clone()).collect()
    };
    assert_eq!(paths(), ["/"]);
    let up = |admin: &mut Client, mounts: Value| {
        admin.control("project_up", json!({"project_id": "proj-1", "desired_mounts": mounts}));
    };
    let mount_at = |path: &str| json!([{"node_id": id, "export_name": "work", "mount_path": path}]);
    up(&mut admin, mount_at("/src"));
    until("the mount to be known", || mount.shell("ls", dir.path()).stdout.ends_with(b"src\n"));
    up(&mut admin, mount_at("/moved"));
    until("it to be moved", || {
        mount.shell("test -e moved && test ! -e src", dir.path()).status.success()
    });
    // Nobody works in a project that is deleted, however long the mount stays.
    admin.control("project_delete", json!({"project_id": "proj-1"}));
    until("its mounts to go", || {
        mount.shell("test -d agents && test ! -e moved", dir.path()).status.success()
    });
    until("that to be told", || mount.messages().contains("the workspace's mounts are gone"));
    // The connection is made again when the gateway is.
    assert_eq!(mount.messages().matches("stays as it was").count(), 0, "{}", mount.messages());
}

#[test]
fn subscribers_are_told_of_projects_that_they_may_see() {
    let gateway = Gateway::start();
    let mut admin = gateway.admin();
    let (id, secret) = joined(&mut admin, "ws://127.0.0.1:9/v2/fs");
    let mount = |path: &str| json!([{"node_id": id, "export_name": "work", "mount_path": path}]);
    for (name, agent) in [("One", "alice"), ("Two", "bob")] {
        admin.control("project_up", json!({"name": name, "vision": "v", "agent_id": agent}));
    }
    let mut watcher = gateway.admin();
    let categories = json!({"categories": ["control.workspace_topology"]});
    let reply = watcher.control_reply("debug_subscribe", categories.clone());
    assert_eq!(reply["payload"], json!({"enabled": true}));
    // The acknowledgement that old clients wait for.
    let ack = watcher.pushed();
    assert_eq!((&ack["type"], &ack["request"]), (&json!("debug.event"), &reply["id"]));
    // A user who works in the first project alone.
    let mut user = gateway.user();
    let attach = json!({"session_key": "w", "agent_id": "alice", "project_id": "proj-1"});
    let gated = user.control_reply("debug_subscribe", json!({}));
    assert_eq!(gated["error"]["code"], "project_context_required");
    user.control("session_attach", attach);
    user.control("debug_subscribe", categories);
    assert_eq!(user.pushed()["payload"]["enabled"], true);

    let mut up = |project: &str, path: &str| {
        admin.control(
            "project_up",
            json!({"project_id": project, "desired_mounts": mount(path), "activate": false}),
        );
    };
    up("proj-2", "/two");
    up("proj-1", "/one");
    assert_eq!(topology(&watcher.pushed()), Some("proj-2"));
    assert_eq!(topology(&watcher.pushed()), Some("proj-1"));
    assert_eq!(topology(&user.pushed()), Some("proj-1"), "nothing of the other");

    // A node that goes and comes back: its lease ends by itself.
    let lease = |ttl: u64| json!({"node_id": id, "node_secret": secret, "lease_ttl_ms": ttl});
    admin.control("node_lease_refresh", lease(1));
    let away = watcher.pushed();
    assert_eq!(away["payload"]["reason"], "availability_changed");
    assert!(topology(&away).is_some());
    watcher.pushed();
    assert_eq!(topology(&user.pushed()), Some("proj-1"));
    admin.control("node_lease_refresh", lease(600_000));
    assert_eq!(topology(&user.pushed()), Some("proj-1"));
    // Refreshing what is there changes nothing that is shown.
    admin.control("node_lease_refresh", lease(700_000));
    assert_eq!(user.control("debug_unsubscribe", json!({})), json!({"enabled": false}));
    admin.control("node_delete", json!({"node_id": id, "node_secret": secret}));
    assert_eq!(user.control("ping", json!({})), json!({}));
    user.send("not json");
    let Got::Json(next) = user.recv() else { panic!() };
    assert_eq!(next["type"], "control.error", "nothing was pushed after the end: {next}");
}
