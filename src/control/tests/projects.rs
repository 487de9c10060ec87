//! Projects: their attributes, tokens, policies and agents.

use super::*;

#[test]
fn project_up_creates_then_updates_and_changes_nothing_when_it_fails() {
    let g = Gateway::new();
    let mut c = g.connect(Role::Admin);
    let (first, _) = c.node("a");
    let (second, _) = c.node("b");
    let mount = |node: &str, path: &str| json!({"node_id": node, "export_name": "work", "mount_path": path});
    let up = json!({"name": "Demo", "vision": "v", "activate": false,
        "desired_mounts": [mount(&first, "/src/"), mount(&second, "/src"), mount(&first, "src")]});
    let made = c.ok("project_up", up.clone());
    assert_eq!(
        (&made["project_id"], &made["created"], &made["activated"]),
        (&json!("proj-1"), &json!(true), &json!(false))
    );
    let workspace = &made["workspace"];
    assert_eq!(workspace["desired_mounts"].as_array().unwrap().len(), 2);
    assert_eq!(workspace["mounts"][0]["node_id"], first);
    assert_eq!(workspace["drift"]["count"], 0);
    assert!(workspace["mounts"][0]["fs_auth_token"].is_string());
    assert_eq!(c.ok("project_up", up)["created"], false);

    let before = c.ok("project_get", json!({"project_id": "proj-1"}));
    for (payload, code) in [
        (json!({}), Code::MissingField),
        (json!({"name": "New"}), Code::MissingField),
        (json!({"project_id": "proj-404"}), Code::ProjectNotFound),
        (
            json!({"project_id": "proj-1", "name": "X", "desired_mounts": [mount("node-9", "/a")]}),
            Code::NodeNotFound,
        ),
        (
            json!({"project_id": "proj-1", "desired_mounts": [mount(&first, "/a"), mount(&first, "/a/b")]}),
            Code::MountConflict,
        ),
        (
            json!({"project_id": "proj-1", "desired_mounts": [mount(&first, "/a/../etc")]}),
            Code::InvalidPayload,
        ),
        (json!({"project_id": "proj-1", "desired_mounts": 7}), Code::InvalidPayload),
        (json!({"project_id": "system", "name": "X"}), Code::ProjectProtected),
        (json!({"name": "a\u{1}", "vision": "v"}), Code::InvalidPayload),
        (json!({"name": "x".repeat(129), "vision": "v"}), Code::InvalidPayload),
    ] {
        assert_eq!(c.err("project_up", payload.clone()), code, "{payload}");
    }
    assert_eq!(c.ok("project_get", json!({"project_id": "proj-1"})), before);
    let list = c.ok("project_list", json!({}));
    let ids: Vec<_> =
        list["projects"].as_array().unwrap().iter().map(|p| &p["project_id"]).collect();
    assert_eq!(ids, ["system", "proj-1"]);
    c.ok("node_delete", json!({"node_id": first}));
    let left = c.ok("project_get", json!({"project_id": "proj-1"}));
    assert_eq!(left["mounts"].as_array().unwrap().len(), 1);
}

#[test]
fn a_project_is_made_changed_and_deleted() {
    let g = Gateway::new();
    let mut c = g.connect(Role::Admin);
    let made = c.ok("project_create", json!({"name": "Demo", "vision": "Ship it"}));
    let id = made["project_id"].as_str().unwrap();
    assert_eq!(
        (id, &made["status"], &made["kind"]),
        ("proj-1", &json!("active"), &json!("normal"))
    );
    assert_eq!(made["access_policy"], json!({"actions": {}, "agents": {}}));
    assert_eq!((&made["token_locked"], &made["mounts"]), (&json!(false), &json!([])));
    assert!(made.get("project_token").is_none(), "not before it is rotated: {made}");

    let changed = json!({"project_id": id, "name": "New", "status": "paused",
        "access_policy": {"read": "allow", "agents": {"bob": {"mount": "disabled"}}}});
    let new = c.ok("project_update", changed.clone());
    assert_eq!((&new["name"], &new["vision"]), (&json!("New"), &json!("Ship it")));
    assert_eq!(
        new["access_policy"],
        json!({"actions": {"read": "open"}, "agents": {"bob": {"mount": "deny"}}})
    );
    assert!(new["updated_at_ms"].as_i64() > made["updated_at_ms"].as_i64());
    assert_eq!(c.ok("project_update", changed), new, "nothing is written that is so already");
    let policy = json!({"project_id": id, "access_policy": {}});
    assert_eq!(c.ok("project_update", policy)["access_policy"]["actions"], json!({}), "whole");

    c.ok("project_up", json!({"project_id": id, "agent_id": "alice"}));
    assert_eq!(c.ok("project_activate", json!({"project_id": id}))["agent_id"], "mother");
    assert_eq!(
        c.ok("project_delete", json!({"project_id": id})),
        json!({"deleted": true, "project_id": "proj-1"})
    );
    let state = g.cx.plane.state();
    assert_eq!(state.active.get("alice"), None, "who worked there works nowhere");
    assert_eq!(state.active["mother"], 0);
    assert_eq!(c.project("Next"), "proj-2", "numbers are not given out twice");
}

#[test]
fn what_is_wrong_with_a_project_has_its_code() {
    let g = Gateway::new();
    let mut c = g.connect(Role::Admin);
    let id = c.project("Demo");
    let before = c.ok("project_get", json!({"project_id": id}));
    let of = |extra: Value| {
        let mut of = json!({"project_id": id});
        of.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        of
    };
    for (name, payload, code) in [
        ("project_create", json!({"name": "x"}), Code::MissingField),
        ("project_create", json!({"name": "", "vision": "v"}), Code::MissingField),
        ("project_create", json!({"name": "a\u{7}", "vision": "v"}), Code::InvalidPayload),
        ("project_create", json!({"name": "x", "vision": "v".repeat(1025)}), Code::InvalidPayload),
        (
            "project_create",
            json!({"name": "x", "vision": "v", "status": "a b"}),
            Code::InvalidPayload,
        ),
        (
            "project_create",
            json!({"name": "x", "vision": "v", "access_policy": 1}),
            Code::InvalidPayload,
        ),
        ("project_update", json!({"name": "x"}), Code::MissingField),
        ("project_update", of(json!({"name": ""})), Code::InvalidPayload),
        ("project_update", of(json!({"access_policy": {"read": "maybe"}})), Code::InvalidPayload),
        ("project_update", json!({"project_id": "proj-404"}), Code::ProjectNotFound),
        ("project_update", json!({"project_id": "../etc"}), Code::InvalidPayload),
        ("project_update", json!({"project_id": "system", "name": "x"}), Code::ProjectProtected),
        ("project_delete", json!({"project_id": "system"}), Code::ProjectProtected),
        ("project_delete", json!({"project_id": "proj-404"}), Code::ProjectNotFound),
        ("project_token_rotate", json!({"project_id": "system"}), Code::ProjectProtected),
        ("project_token_revoke", json!({"project_id": "system"}), Code::ProjectProtected),
        ("project_activate", json!({"project_id": "proj-404"}), Code::ProjectNotFound),
        ("project_get", of(json!({"project_token": ""})), Code::InvalidPayload),
        ("project_get", of(json!({"project_token": "x".repeat(257)})), Code::InvalidPayload),
    ] {
        assert_eq!(c.err(name, payload.clone()), code, "{name} {payload}");
    }
    assert_eq!(c.ok("project_get", json!({"project_id": id})), before);
}

#[test]
fn a_token_locks_a_project_until_it_is_revoked() {
    let g = Gateway::new();
    let mut admin = g.connect(Role::Admin);
    let id = admin.project("Demo");
    let mut user = g.connect(Role::User);
    user.attach("alice", &id);
    let first = user.ok("project_token_rotate", json!({"project_id": id}));
    let first = first["project_token"].as_str().unwrap();
    assert!(first.starts_with("proj-") && first.len() == 37);
    let with = |token: &str| json!({"project_id": id, "project_token": token});
    assert_eq!(user.err("project_get", json!({"project_id": id})), Code::MissingField);
    assert_eq!(user.err("project_update", with("wrong")), Code::ProjectAuthFailed);
    let second = user.ok("project_token_rotate", with(first));
    let second = second["project_token"].as_str().unwrap();
    assert_eq!(
        user.err("project_get", with(first)),
        Code::ProjectAuthFailed,
        "the old one is dead"
    );

    // The token that a session holds opens its own project, and no other.
    let other = admin.project("Other");
    admin.ok("project_token_rotate", json!({"project_id": other}));
    user.ok(
        "session_attach",
        json!({"session_key": "work", "agent_id": "alice",
        "project_id": id, "project_token": second}),
    );
    assert_eq!(user.ok("project_get", json!({"project_id": id}))["token_locked"], true);
    assert!(user.ok("workspace_status", json!({}))["project_id"] == json!(id));
    assert_eq!(user.err("project_get", json!({"project_id": other})), Code::MissingField);
    // Known, for a token would open it.
    let ids = |list: Value| -> Vec<Value> {
        list["projects"].as_array().unwrap().iter().map(|p| p["project_id"].clone()).collect()
    };
    assert_eq!(ids(user.ok("project_list", json!({}))), ["proj-1", "proj-2"]);

    let revoked = user.ok("project_token_revoke", json!({"project_id": id}));
    assert_eq!((&revoked["project_token"], &revoked["revoked"]), (&Value::Null, &json!(true)));
    assert_eq!(user.ok("project_get", with("any"))["token_locked"], false, "open to all again");
    admin.ok("project_update", json!({"project_id": id, "access_policy": {"read": "token"}}));
    assert_eq!(user.err("project_get", with(second)), Code::ProjectAuthFailed, "of no use");
}

#[test]
fn policies_hold_for_everything_and_agents_may_differ() {
    let g = Gateway::new();
    let mut admin = g.connect(Role::Admin);
    let (node, _) = admin.node("edge");
    let id = admin.project("Demo");
    let mount =
        json!({"project_id": id, "node_id": node, "export_name": "work", "mount_path": "/src"});
    admin.ok("project_mount_set", mount.clone());
    let bind = json!({"project_id": id, "bind_path": "/repo", "target_path": "/src"});
    admin.ok("project_update", json!({"project_id": id, "access_policy": {
        "read": "deny", "mount": "deny", "admin": "admin",
        "agents": {"bob": {"read": "open", "mount": "open"}, "eve": {"read": "open", "bind": "deny"}}}}));
    let mut users = ["alice", "bob", "eve"].map(|agent| {
        let mut user = g.connect(Role::User);
        let home = admin.project(&format!("Home of {agent}"));
        user.attach(agent, &home);
        user
    });
    let of = json!({"project_id": id});
    let calls = [
        ("project_get", of.clone(), [false, true, true]),
        ("project_mount_list", of.clone(), [false, true, true]),
        ("project_bind_list", of.clone(), [false, true, true]),
        ("project_mount_set", mount.clone(), [false, true, false]),
        ("project_bind_set", bind, [false, true, false]),
        (
            "project_bind_remove",
            json!({"project_id": id, "bind_path": "/repo"}),
            [false, true, false],
        ),
        (
            "project_mount_remove",
            json!({"project_id": id, "mount_path": "/src"}),
            [false, true, false],
        ),
        ("project_update", of.clone(), [false, false, false]),
        ("project_token_rotate", of.clone(), [false, false, false]),
        ("project_token_revoke", of.clone(), [false, false, false]),
        ("project_delete", of.clone(), [false, false, false]),
        ("project_activate", of, [false, true, true]),
    ];
    for (name, payload, allowed) in calls {
        for (user, allowed) in users.iter_mut().zip(allowed) {
            let reply = user.call(name, payload.clone());
            let code = reply["error"]["code"].as_str();
            let wanted = (!allowed).then_some("project_policy_forbidden");
            assert_eq!(code, wanted, "{name} {:?}: {reply}", user.session.agent_id());
        }
    }
    let [alice, bob, _] = &mut users;
    for (user, sees) in [(alice, false), (bob, true)] {
        let list = user.ok("project_list", json!({}));
        let listed = list["projects"].as_array().unwrap().iter().any(|p| p["project_id"] == *id);
        assert_eq!(listed, sees);
    }
    // The system's project is nobody's but the admins'.
    let system = json!({"project_id": "system"});
    for name in [
        "project_get",
        "project_update",
        "project_delete",
        "project_token_rotate",
        "project_activate",
        "project_mount_list",
    ] {
        assert_eq!(users[0].err(name, system.clone()), Code::ProjectAssignmentForbidden, "{name}");
    }
    admin.ok(
        "project_mount_set",
        json!({"project_id": "system", "node_id": node,
        "export_name": "work", "mount_path": "/host"}),
    );
}

#[test]
fn who_changes_what_he_has_seen_is_told_when_it_is_another() {
    let g = Gateway::new();
    let mut c = g.connect(Role::Admin);
    let (node, _) = c.node("edge");
    let id = c.project("Demo");
    let seen = |c: &mut Client<'_>| {
        c.ok("project_get", json!({"project_id": id}))["updated_at_ms"].clone()
    };
    let changes = [
        ("project_update", json!({"name": "New"})),
        (
            "project_mount_set",
            json!({"node_id": node, "export_name": "work", "mount_path": "/src"}),
        ),
        ("project_bind_set", json!({"bind_path": "/b", "target_path": "/src"})),
        ("project_bind_remove", json!({"bind_path": "/b"})),
        ("project_mount_remove", json!({"mount_path": "/src"})),
        ("project_token_rotate", json!({})),
        ("project_token_revoke", json!({})),
        ("project_delete", json!({})),
    ];
    for (name, mut payload) in changes {
        let now = seen(&mut c);
        payload["project_id"] = json!(id);
        payload["if_updated_at_ms"] = json!(now.as_i64().unwrap() - 1);
        assert_eq!(c.err(name, payload.clone()), Code::PreconditionFailed, "{name}");
        assert_eq!(seen(&mut c), now);
        payload["if_updated_at_ms"] = json!("now");
        assert_eq!(c.err(name, payload.clone()), Code::InvalidPayload, "{name}");
        payload["if_updated_at_ms"] = now.clone();
        let reply = c.ok(name, payload.clone());
        // Never the same stamp twice, be it within a millisecond.
        if name != "project_delete" {
            assert!(reply["updated_at_ms"].as_i64() > now.as_i64(), "{name}");
            assert_eq!(c.err(name, payload), Code::PreconditionFailed, "{name}, a second time");
        }
    }
    // Looking is no change.
    let id = c.project("Next");
    for name in ["project_get", "project_mount_list", "project_bind_list", "project_activate"] {
        c.ok(name, json!({"project_id": id, "if_updated_at_ms": 1}));
    }
}

#[test]
fn a_change_can_be_answered_in_brief() {
    let g = Gateway::new();
    let mut c = g.connect(Role::Admin);
    let (node, _) = c.node("edge");
    let id = c.project("Demo");
    let at = |path: &str| json!({"project_id": id, "bind_path": path, "target_path": "/src"});
    let mount = json!({
        "project_id": id, "mount_path": "/src", "node_id": node, "export_name": "work",
    });
    for (name, payload, mounts, binds) in [
        ("project_update", json!({"project_id": id, "vision": "other"}), 0, 0),
        ("project_mount_set", mount.clone(), 1, 0),
        ("project_bind_set", at("/a"), 1, 1),
        ("project_bind_remove", at("/a"), 1, 0),
        ("project_mount_remove", mount, 0, 0),
    ] {
        let with = |brief: Value| {
            let mut payload = payload.clone();
            payload["brief"] = brief;
            payload
        };
        assert_eq!(c.err(name, with(json!("yes"))), Code::InvalidPayload, "{name}");
        let brief = c.ok(name, with(json!(true)));
        let now = c.ok("project_get", json!({"project_id": id}))["updated_at_ms"].clone();
        let expected = json!({
            "project_id": id, "updated_at_ms": now, "mount_count": mounts, "bind_count": binds,
        });
        assert_eq!(brief, expected, "{name}");
    }
}

#[test]
fn workspaces_are_projects_by_another_name() {
    let g = Gateway::new();
    let mut c = g.connect(Role::Admin);
    let made = c.ok("workspace_create", json!({"name": "Demo", "vision": "v"}));
    assert_eq!((&made["workspace_id"], &made["project_id"]), (&json!("proj-1"), &json!("proj-1")));
    let reply = c.call("workspace_get", json!({"workspace_id": "proj-1"}));
    assert_eq!(reply["type"], "control.workspace_get");
    let rotated = c.ok("workspace_token_rotate", json!({"workspace_id": "proj-1"}));
    let token = &rotated["workspace_token"];
    assert!(token.is_string());
    let mut user = g.connect(Role::User);
    let get = json!({"workspace_id": "proj-1", "workspace_token": token});
    assert_eq!(user.ok("workspace_get", get.clone())["name"], "Demo");
    assert_eq!(user.ok("project_get", get)["name"], "Demo", "fields go with either name");
    let list = c.ok("workspace_list", json!({}));
    assert_eq!(list["workspaces"][1]["workspace_id"], "proj-1");
    // The first spelling counts where both are given, and null is none.
    let both = json!({"workspace_id": "proj-404", "project_id": "proj-1"});
    assert_eq!(c.ok("project_get", both)["name"], "Demo");
    let null = json!({"workspace_id": "proj-1", "project_id": null});
    assert_eq!(c.ok("workspace_get", null)["name"], "Demo");
    assert_eq!(c.err("workspace_get", json!({"workspace_id": "proj-9"})), Code::ProjectNotFound);
}
