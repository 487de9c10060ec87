use super::*;
use crate::control::Plane;
use crate::control::state::MOTHER;
use crate::store::testing::TempDir;
use crate::store::{KvRead, SqliteKv, rusqlite};
use serde_json::json;

fn snapshot() -> Value {
    let lease = |n: i64| {
        json!({"platform": {"os": "linux", "arch": "amd64"}, "labels": {"site": "west"},
        "services": [{"service_id": "fs", "kind": "fs", "version": "2"}, {"kind": "lost"}],
        "joined_at_ms": 10, "last_seen_ms": 20, "lease_expires_at_ms": n})
    };
    let node = |id: &str, name: &str| {
        let mut node = lease(1_900_000_000_000);
        node["id"] = id.into();
        node["name"] = name.into();
        node["fs_url"] = "ws://10.0.0.8:18891/v2/fs".into();
        node["secret"] = format!("secret-{id}").into();
        node["lease_token"] = "lease-1".into();
        node
    };
    let mount = |path: &str, node: &str, export: &str| {
        json!({"mount_path": path, "node_id": node,
        "export_name": export})
    };
    json!({
        "schema": 1,
        "next": {"invite_id": 5, "node_id": 9, "pending_join_id": 3, "project_id": 4},
        "metrics": {"invites_created_total": 4},
        "invites": [{"id": "invite-4", "token": "inv-4", "created_at_ms": 1, "expires_at_ms": 2,
            "redeemed": true}],
        "nodes": [node("node-1", "spiderweb-local"), node("node-8", "edge")],
        "pending_joins": [{"id": "pending-join-2", "node_name": "x", "fs_url": "", "platform": {},
            "requested_at_ms": 7}],
        "projects": [
            {"id": "system", "name": "System", "vision": "v", "status": "active",
             "kind": "system_builtin", "mutation_token": "proj-sys", "created_at_ms": 1,
             "updated_at_ms": 2, "mounts": [mount("/agents/self/chat", "node-1", "system-chat")]},
            {"id": "proj-3", "name": "Demo", "vision": "Ship it", "status": "active",
             "token_locked": true, "mutation_token": "proj-secret", "created_at_ms": 3,
             "updated_at_ms": 4,
             "access_policy": {"actions": {"read": "open"}, "agents": {"alice": {"mount": "deny"}}},
             "mounts": [mount("/src", "node-8", "work"), mount("/src", "node-8", "spare"),
                mount("/src/in", "node-8", "work"), mount("/gone", "node-7", "work"),
                mount("/up/../etc", "node-8", "work")],
             "binds": [{"bind_path": "/repo", "target_path": "/src/app"},
                {"bind_path": "/lost", "target_path": "/gone/app"}]}],
        "active_project_by_agent": [{"agent_id": "mother", "project_id": "system"},
            {"agent_id": "alice", "project_id": "proj-3"}, {"agent_id": "bob", "project_id": "proj-2"},
            {"agent_id": "eve", "project_id": ""}],
    })
}

fn open(dir: &TempDir) -> (Arc<Db>, SqliteKv) {
    let db = Db::open(&dir.path("state.db"), &[SqliteKv::SCHEMA]).unwrap();
    let kv = SqliteKv::new(db.clone());
    (db, kv)
}

/// The original's table with this snapshot.
fn with_original(dir: &TempDir, content: &str) {
    let conn = rusqlite::Connection::open(dir.path("state.db")).unwrap();
    conn.execute_batch(
        "CREATE TABLE mem_versions (base_id TEXT, version INTEGER, kind TEXT, content_json TEXT,
             created_at_ms INTEGER, PRIMARY KEY (base_id, version))",
    )
    .unwrap();
    conn.execute(
        "INSERT INTO mem_versions VALUES ('spiderweb:control-plane:state', 1,
             'control_plane_state_v1', ?1, 5)",
        [content],
    )
    .unwrap();
}

#[test]
fn what_there_was_arrives_and_what_leads_nowhere_is_named() {
    let dir = TempDir::new();
    with_original(&dir, &snapshot().to_string());
    let (db, kv) = open(&dir);
    original(&db, &kv, None).unwrap();
    let state = Plane::open(Arc::new(kv.clone())).unwrap().state();

    let node = state.node("node-8").unwrap();
    assert_eq!((&*node.secret, &*node.lease_token), ("secret-node-8", "lease-1"));
    assert_eq!((node.lease_expires_at_ms, node.services.len()), (1_900_000_000_000, 1));
    assert_eq!((&*node.labels["site"], &*node.platform.runtime_kind), ("west", "unknown"));
    assert!(state.node("node-1").is_err());
    let project = state.project("proj-3").unwrap();
    assert!(project.token == "proj-secret" && project.token_locked);
    let exports: Vec<_> = project.mounts.iter().map(|m| &*m.export_name).collect();
    assert_eq!(exports, ["work", "spare"]);
    assert_eq!(project.binds.len(), 1);
    let policy = serde_json::to_value(&project.policy).unwrap();
    assert_eq!(
        policy,
        json!({"actions": {"read": "open"}, "agents": {"alice": {"mount": "deny"}}})
    );
    let system = state.project(SYSTEM).unwrap();
    assert!(system.token == "proj-sys" && system.mounts.is_empty());
    let active: Vec<_> = state.active.iter().map(|(agent, n)| (&**agent, *n)).collect();
    assert_eq!(active, [("alice", 3), (MOTHER, 0)]);
    assert!(state.invites[&4].redeemed && state.pending[&2].claim.len() > 20);
    let next = [Counter::Invite, Counter::Node, Counter::PendingJoin, Counter::Project];
    assert_eq!(next.map(|c| state.next(c).0), [5, 9, 3, 4]);

    let notes = Import::read(&snapshot().to_string()).unwrap().notes.join("\n");
    for part in
        ["node-1", "/src/in", "/gone of node-7", "/up/../etc", "bind /lost", "bob", "1 services"]
    {
        assert!(notes.contains(part), "{part} is not in {notes}");
    }
}

#[test]
fn it_happens_once() {
    let dir = TempDir::new();
    with_original(&dir, &snapshot().to_string());
    let (db, kv) = open(&dir);
    original(&db, &kv, None).unwrap();
    let gone = kv.range(PREFIX).unwrap().into_iter().map(|row| row.key).collect();
    kv.commit(Txn { deletes: gone, ..Txn::default() }).unwrap();
    original(&db, &kv, None).unwrap();
    assert!(kv.range(PREFIX).unwrap().is_empty());
    let kept = original::snapshot(&db, None).unwrap().unwrap();
    assert_eq!(kept, snapshot().to_string());
}

#[test]
fn what_cannot_be_read_is_refused_and_nothing_is_taken() {
    let with = |change: fn(&mut Value)| {
        let mut snapshot = snapshot();
        change(&mut snapshot);
        snapshot.to_string()
    };
    for (text, word) in [
        ("{".to_owned(), "EOF"),
        (with(|s| s["schema"] = 2.into()), "schema 2"),
        (with(|s| s["nodes"][1]["secret"] = 7.into()), "invalid type"),
        (with(|s| s["nodes"][1]["id"] = "node-1".into()), "number 1"),
        (with(|s| s["projects"][1]["id"] = "../3".into()), "../3"),
        (with(|s| s["projects"][1]["access_policy"] = json!({"read": "maybe"})), "access_policy"),
    ] {
        let dir = TempDir::new();
        with_original(&dir, &text);
        let (db, kv) = open(&dir);
        let e = original(&db, &kv, None).unwrap_err();
        assert_eq!(e.code, Code::StorageError);
        assert!(e.message.contains(word) && e.message.contains("move the database away"), "{e}");
        assert!(kv.range("").unwrap().is_empty());
    }
}
