//! Mounts and binds of projects.

use super::*;

fn paths(list: &Value, key: &str) -> Vec<String> {
    list.as_array().unwrap().iter().map(|m| m[key].as_str().unwrap().to_owned()).collect()
}

#[test]
fn mounts_are_set_listed_and_removed() {
    let g = Gateway::new();
    let mut c = g.connect(Role::Admin);
    let (a, _) = c.node("a");
    let (b, _) = c.node("b");
    let id = c.project("Demo");
    let mount = |node: &str, path: &str| json!({"project_id": id, "node_id": node, "export_name": "work", "mount_path": path});
    let set = c.ok("project_mount_set", mount(&a, " src/ "));
    assert_eq!(set["mounts"], json!([{"mount_path": "/src", "node_id": a, "export_name": "work"}]));
    let again = c.ok("project_mount_set", mount(&a, "/src"));
    assert_eq!(again, set, "what is there already is no change");
    c.ok("project_mount_set", mount(&b, "/src"));
    c.ok("project_mount_set", mount(&b, "/src-b"));
    let list = c.ok("project_mount_list", json!({"project_id": id}));
    assert_eq!(list["project_id"], *id);
    assert_eq!(paths(&list["mounts"], "mount_path"), ["/src", "/src", "/src-b"]);
    assert_eq!(list["mounts"][0]["node_id"], a, "in the order in which they were set");
    assert_eq!(c.ok("project_list", json!({}))["projects"][1]["mount_count"], 3);

    let member =
        json!({"project_id": id, "mount_path": "/src", "node_id": a, "export_name": "work"});
    let left = c.ok("project_mount_remove", member.clone());
    assert_eq!(left["mounts"][0]["node_id"], b);
    assert_eq!(c.err("project_mount_remove", member), Code::MountNotFound);
    c.ok("project_mount_set", mount(&a, "/src"));
    let whole =
        json!({"project_id": id, "mount_path": "src", "node_id": null, "export_name": null});
    let left = c.ok("project_mount_remove", whole);
    assert_eq!(paths(&left["mounts"], "mount_path"), ["/src-b"], "the whole group");
}

#[test]
fn what_is_wrong_with_a_mount_or_bind_has_its_code() {
    let g = Gateway::new();
    let mut c = g.connect(Role::Admin);
    let (node, _) = c.node("a");
    let id = c.project("Demo");
    let mount = |path: &str| json!({"project_id": id, "node_id": node, "export_name": "work", "mount_path": path});
    let bind = |path: &str, target: &str| json!({"project_id": id, "bind_path": path, "target_path": target});
    let without = |mut payload: Value, key: &str| {
        payload.as_object_mut().unwrap().remove(key);
        payload
    };
    let with = |mut payload: Value, key: &str, value: Value| {
        payload[key] = value;
        payload
    };
    c.ok("project_mount_set", mount("/src/app"));
    c.ok("project_bind_set", bind("/repo/a", "/src/app/deep"));
    let before = c.ok("project_get", json!({"project_id": id}));
    let long = format!("/{}", "x".repeat(5000));
    for (name, payload, code) in [
        ("project_mount_set", mount("/src"), Code::MountConflict),
        ("project_mount_set", mount("/src/app/x"), Code::MountConflict),
        ("project_mount_set", mount("/"), Code::MountConflict),
        ("project_mount_set", mount("/repo/a"), Code::MountConflict),
        ("project_mount_set", mount("/repo"), Code::MountConflict),
        ("project_mount_set", mount("/repo/a/b"), Code::MountConflict),
        ("project_mount_set", mount("/src/../etc"), Code::InvalidPayload),
        ("project_mount_set", mount("  "), Code::InvalidPayload),
        ("project_mount_set", mount("/a\u{0}b"), Code::InvalidPayload),
        ("project_mount_set", mount(&long), Code::InvalidPayload),
        ("project_mount_set", mount(""), Code::MissingField),
        ("project_mount_set", with(mount("/y"), "export_name", json!("a/b")), Code::InvalidPayload),
        ("project_mount_set", without(mount("/y"), "export_name"), Code::MissingField),
        ("project_mount_set", without(mount("/y"), "project_id"), Code::MissingField),
        ("project_mount_set", with(mount("/y"), "node_id", json!("node-404")), Code::NodeNotFound),
        (
            "project_mount_set",
            json!({"project_id": "proj-404", "node_id": "node-404", "export_name": "w", "mount_path": "/x"}),
            Code::NodeNotFound,
        ),
        (
            "project_mount_set",
            with(mount("/y"), "project_id", json!("proj-404")),
            Code::ProjectNotFound,
        ),
        ("project_mount_remove", json!({"project_id": id}), Code::MissingField),
        (
            "project_mount_remove",
            json!({"project_id": id, "mount_path": "/none"}),
            Code::MountNotFound,
        ),
        (
            "project_mount_remove",
            json!({"project_id": id, "mount_path": "/src/app", "node_id": node}),
            Code::MissingField,
        ),
        (
            "project_mount_remove",
            json!({"project_id": id, "mount_path": "/src/app", "export_name": "work"}),
            Code::MissingField,
        ),
        ("project_mount_list", json!({}), Code::MissingField),
        ("project_mount_list", json!({"project_id": "proj-404"}), Code::ProjectNotFound),
        ("project_bind_set", bind("/", "/src/app"), Code::BindConflict),
        ("project_bind_set", bind("/x", "/elsewhere"), Code::BindConflict),
        ("project_bind_set", bind("/x", "/src"), Code::BindConflict),
        ("project_bind_set", bind("/src", "/src/app"), Code::BindConflict),
        ("project_bind_set", bind("/src/app", "/src/app"), Code::BindConflict),
        ("project_bind_set", bind("/src/app/x", "/src/app"), Code::BindConflict),
        ("project_bind_set", bind("/repo", "/src/app"), Code::BindConflict),
        ("project_bind_set", bind("/repo/a/b", "/src/app"), Code::BindConflict),
        ("project_bind_set", bind("/x/../y", "/src/app"), Code::InvalidPayload),
        ("project_bind_set", bind("/x", "/src/app/../.."), Code::InvalidPayload),
        ("project_bind_set", without(bind("/x", "/src/app"), "target_path"), Code::MissingField),
        (
            "project_bind_remove",
            json!({"project_id": id, "bind_path": "/repo"}),
            Code::BindNotFound,
        ),
        ("project_bind_remove", json!({"project_id": id}), Code::MissingField),
        ("project_bind_list", json!({"project_id": "proj-404"}), Code::ProjectNotFound),
    ] {
        assert_eq!(c.err(name, payload.clone()), code, "{name} {payload}");
    }
    assert_eq!(c.ok("project_get", json!({"project_id": id})), before);
}

#[test]
fn binds_are_set_replaced_listed_and_removed() {
    let g = Gateway::new();
    let mut c = g.connect(Role::Admin);
    let (node, _) = c.node("a");
    let id = c.project("Demo");
    c.ok(
        "project_mount_set",
        json!({"project_id": id, "node_id": node, "export_name": "work", "mount_path": "/src"}),
    );
    let bind = |path: &str, target: &str| json!({"project_id": id, "bind_path": path, "target_path": target});
    c.ok("project_bind_set", bind("repo", "/src/app/"));
    let set = c.ok("project_bind_set", bind("/repo", "/src/lib"));
    assert_eq!(set["binds"], json!([{"bind_path": "/repo", "target_path": "/src/lib"}]));
    let list = c.ok("project_bind_list", json!({"project_id": id}));
    assert_eq!(list, json!({"project_id": id, "binds": set["binds"]}));
    assert_eq!(c.ok("workspace_status", json!({"project_id": id}))["binds"], set["binds"]);
    let left = c.ok("project_bind_remove", json!({"project_id": id, "bind_path": "/repo"}));
    assert_eq!(left["binds"], json!([]));
}

#[test]
fn a_project_has_so_many_mounts_and_binds_and_no_more() {
    let g = Gateway::new();
    let mut c = g.connect(Role::Admin);
    let (node, _) = c.node("a");
    let mount =
        |n: usize| json!({"node_id": node, "export_name": "work", "mount_path": format!("/m/{n}")});
    let many: Vec<_> = (0..1000).map(mount).collect();
    let up = |mounts: &[Value]| json!({"name": "Big", "vision": "v", "activate": false, "desired_mounts": mounts});
    let made = c.ok("project_up", up(&many));
    assert_eq!(made["workspace"]["mounts"].as_array().unwrap().len(), 1000);
    let mut next = mount(1000);
    next["project_id"] = made["project_id"].clone();
    assert_eq!(c.err("project_mount_set", next.clone()), Code::LimitExceeded);
    next["mount_path"] = json!("/m/7");
    c.ok("project_mount_set", next);
    let too_many: Vec<_> = (0..1001).map(mount).collect();
    assert_eq!(c.err("project_up", up(&too_many)), Code::LimitExceeded);
}

#[test]
fn nodes_are_named_by_id_or_else_by_name() {
    let g = Gateway::new();
    let mut c = g.connect(Role::Admin);
    let (first, _) = c.node("edge");
    c.node("edge");
    let id = c.project("Demo");
    let by = |key: &str, node: &str| {
        let mut mount = json!({"project_id": id, "export_name": "work", "mount_path": "/src"});
        mount[key] = json!(node);
        mount
    };
    let set = c.ok("project_mount_set", by("node_name", "edge"));
    assert_eq!(set["mounts"][0]["node_id"], first, "the oldest of that name");
    let up = json!({"project_id": id, "activate": false,
        "desired_mounts": [by("node_id", &first), by("node_name", "edge")]});
    c.ok("project_up", up);
    assert_eq!(c.ok("project_get", json!({"project_id": id})), set, "the same in other words");
    let mut both = by("node_id", &first);
    both["node_name"] = json!("no name/of a node");
    assert_eq!(c.ok("project_mount_set", both), set, "the id counts");
    assert_eq!(c.err("project_mount_set", by("node_name", "none")), Code::NodeNotFound);
    assert_eq!(c.err("project_mount_set", by("node_name", "a/b")), Code::InvalidPayload);
    assert_eq!(c.err("project_mount_set", by("node_name", "")), Code::MissingField);
}

#[test]
fn project_up_replaces_all_binds_with_those_it_is_given() {
    let g = Gateway::new();
    let mut c = g.connect(Role::Admin);
    let (node, _) = c.node("edge");
    let mount = |path: &str| json!({"node_id": node, "export_name": "work", "mount_path": path});
    let bind = |path: &str, target: &str| json!({"bind_path": path, "target_path": target});
    let up = |rest: Value| {
        let mut up = json!({"name": "Demo", "vision": "v", "activate": false});
        up.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        up
    };
    c.ok(
        "project_up",
        up(json!({"desired_mounts": [mount("/src")],
            "desired_binds": [bind("/a", "/src"), bind("b/", "/src/x/"), bind("/b", "/src/x")]})),
    );
    let get = |c: &mut Client<'_>| c.ok("project_get", json!({"project_id": "proj-1"}));
    let first = get(&mut c);
    assert_eq!(first["binds"], json!([bind("/a", "/src"), bind("/b", "/src/x")]));
    c.ok("project_up", up(json!({})));
    c.ok("project_up", up(json!({"desired_binds": null})));
    assert_eq!(get(&mut c), first, "what is not said stays");

    for (rest, code) in [
        (json!({"desired_binds": [bind("/c", "/elsewhere")]}), Code::BindConflict),
        (json!({"desired_binds": [bind("/c", "/src"), bind("/c/d", "/src")]}), Code::BindConflict),
        (json!({"desired_binds": [bind("/c", "/src"), bind("/c", "/src/x")]}), Code::BindConflict),
        (json!({"desired_binds": [bind("/src", "/src")]}), Code::BindConflict),
        (json!({"desired_binds": [bind("/c", "/src/../x")]}), Code::InvalidPayload),
        (json!({"desired_binds": [{"bind_path": "/c"}]}), Code::MissingField),
        (json!({"desired_binds": [7]}), Code::InvalidPayload),
        (json!({"desired_binds": {}}), Code::InvalidPayload),
        (json!({"desired_binds": vec![bind("/c", "/src"); 1001]}), Code::LimitExceeded),
        (
            json!({"desired_mounts": [mount("/new")], "desired_binds": [bind("/a", "/src")]}),
            Code::BindConflict,
        ),
        (json!({"desired_mounts": [mount("/a")]}), Code::MountConflict),
    ] {
        assert_eq!(c.err("project_up", up(rest.clone())), code, "{rest}");
    }
    assert_eq!(get(&mut c), first);

    // What goes is gone before what comes is looked at.
    let swapped = json!({"desired_mounts": [mount("/a")], "desired_binds": [bind("/src", "/a")]});
    c.ok("project_up", up(swapped));
    assert_eq!(get(&mut c)["binds"], json!([bind("/src", "/a")]));
    assert_eq!(c.ok("project_list", json!({}))["projects"][1]["bind_count"], 1);
    c.ok("project_up", up(json!({"desired_binds": []})));
    assert_eq!(get(&mut c)["binds"], json!([]));
    let policy = json!({"actions": {"bind": "deny"}});
    c.ok("project_up", up(json!({"access_policy": policy})));
    let mut user = g.connect(Role::User);
    user.attach("alice", "proj-1");
    let binds = json!({"project_id": "proj-1", "activate": false, "desired_binds": []});
    assert_eq!(user.err("project_up", binds), Code::ProjectPolicyForbidden);
    assert_eq!(
        c.err("project_up", json!({"project_id": "system", "desired_binds": []})),
        Code::ProjectProtected
    );
}
