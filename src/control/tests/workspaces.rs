//! How workspaces stand, and reconciling.

use super::*;
use crate::control::state::Node;

/// A project with `/src` on two nodes, in which alice works.
fn house(g: &Gateway) -> (Client<'_>, [(String, String); 2]) {
    let mut c = g.connect(Role::Admin);
    let nodes = [c.node("a"), c.node("b")];
    c.project("Demo");
    for (id, _) in &nodes {
        c.ok("project_mount_set", json!({"project_id": "proj-1", "node_id": id, "export_name": "work", "mount_path": "/src"}));
    }
    (c, nodes)
}

/// As if the node had not been heard of for long.
fn expire(g: &Gateway, node_id: &str) {
    let expired = |state: &state::State| {
        let node = state.node(node_id).unwrap();
        Arc::new(Node { lease_expires_at_ms: 1, ..(**node).clone() })
    };
    g.cx.plane.mutate(|state, _| Ok(((), vec![Change::PutNode(expired(state))]))).unwrap();
}

#[test]
fn a_lost_node_is_replaced_and_waits_when_it_comes_back() {
    let g = Gateway::new();
    let (mut c, [first, second]) = house(&g);
    let status = |c: &mut Client<'_>| c.ok("workspace_status", json!({"project_id": "proj-1"}));
    let serves = |status: &Value| status["mounts"][0]["node_id"].clone();
    let seen = status(&mut c);
    assert_eq!((serves(&seen), &seen["drift"]["count"]), (json!(first.0), &json!(0)));
    assert_eq!(seen["last_success_ms"], seen["last_reconcile_ms"]);

    expire(&g, &first.0);
    let seen = status(&mut c);
    assert_eq!((serves(&seen), &seen["reconcile_state"]), (json!(second.0), &json!("idle")));
    let drift = &seen["drift"]["items"][0];
    assert_eq!(
        (&drift["kind"], &drift["severity"]),
        (&json!("failover_active"), &json!("warning"))
    );
    let desired: Vec<_> =
        seen["desired_mounts"].as_array().unwrap().iter().map(|m| m["state"].clone()).collect();
    assert_eq!(desired, ["degraded", "online"], "its mounts stay");

    let refresh = |c: &mut Client<'_>, node: &(String, String)| {
        c.ok("node_lease_refresh", json!({"node_id": node.0, "node_secret": node.1}));
    };
    refresh(&mut c, &first);
    assert_eq!(serves(&status(&mut c)), json!(second.0), "not yet");
    refresh(&mut c, &first);
    assert_eq!(serves(&status(&mut c)), json!(second.0), "a refresh is no return");
    expire(&g, &second.0);
    assert_eq!(serves(&status(&mut c)), json!(first.0), "there is no other");

    expire(&g, &first.0);
    let seen = status(&mut c);
    assert_eq!(
        seen["availability"],
        json!({"mounts_total": 1, "online": 0, "degraded": 1, "missing": 0})
    );
    assert_eq!((&seen["reconcile_state"], &seen["queue_depth"]), (&json!("degraded"), &json!(1)));
    assert!(seen["last_error"].as_str().unwrap().contains("offline"));
}

#[test]
fn an_export_that_is_not_in_the_catalogue_is_told_until_it_is() {
    let g = Gateway::new();
    let (mut c, [first, second]) = house(&g);
    c.ok(
        "project_mount_remove",
        json!({"project_id": "proj-1", "mount_path": "/src",
        "node_id": second.0, "export_name": "work"}),
    );
    let publish = |c: &mut Client<'_>, exports: Value| {
        let fs = json!({"service_id": "fs", "kind": "fs", "state": "online", "endpoints": ["/nodes/x/fs"],
            "capabilities": {"exports": exports}});
        c.ok(
            "node_service_upsert",
            json!({"node_id": first.0, "node_secret": first.1, "services": [fs]}),
        );
        c.ok("workspace_status", json!({"project_id": "proj-1"}))
    };
    let seen = publish(&mut c, json!(["other"]));
    assert_eq!(seen["drift"]["items"][0]["kind"], "missing_export");
    assert_eq!(
        (&seen["mounts"][0]["state"], &seen["mounts"][0]["online"]),
        (&json!("missing"), &json!(false))
    );
    assert_eq!(
        c.ok("reconcile_status", json!({}))["failed_ops"],
        json!([format!("project=proj-1 mount=/src node={} export missing", first.0)])
    );
    let seen = publish(&mut c, json!(["other", "work"]));
    assert_eq!(
        (&seen["drift"]["count"], &seen["mounts"][0]["state"]),
        (&json!(0), &json!("online"))
    );
}

#[test]
fn reconcile_status_counts_what_changed_for_those_who_may_know() {
    let g = Gateway::new();
    let (mut c, [first, second]) = house(&g);
    let one = json!({"project_id": "proj-1"});
    let good = c.ok("reconcile_status", one.clone());
    assert_eq!((&good["reconcile_state"], &good["queue_depth"]), (&json!("idle"), &json!(0)));
    assert_eq!(
        good["projects"],
        json!([{"project_id": "proj-1", "mounts": 2, "selected_mounts": 1,
        "online_mounts": 1, "degraded_mounts": 0, "missing_mounts": 0, "drift_count": 0, "queue_depth": 0}])
    );
    let again = c.ok("reconcile_status", one.clone());
    assert_eq!(again["cycles_total"], good["cycles_total"], "nothing has changed");

    expire(&g, &first.0);
    expire(&g, &second.0);
    let bad = c.ok("reconcile_status", json!({}));
    assert_eq!(
        (&bad["reconcile_state"], &bad["failed_ops_total"]),
        (&json!("degraded"), &json!(1))
    );
    assert_eq!(bad["last_error"], format!("project=proj-1 mount=/src node={} offline", first.0));
    assert!(bad["cycles_total"].as_u64() > good["cycles_total"].as_u64());
    let at = |reply: &Value, key: &str| reply[key].as_i64().unwrap();
    assert!(
        (at(&good, "last_success_ms")..=at(&bad, "last_reconcile_ms"))
            .contains(&at(&bad, "last_success_ms"))
    );
    let ids: Vec<_> =
        bad["projects"].as_array().unwrap().iter().map(|p| &p["project_id"]).collect();
    assert_eq!(ids, ["system", "proj-1"]);
    assert_eq!(
        at(&c.ok("workspace_status", one.clone()), "last_success_ms"),
        at(&c.ok("reconcile_status", one.clone()), "last_success_ms")
    );

    let mut user = g.connect(Role::User);
    let home = c.project("Home");
    user.attach("alice", &home);
    c.ok("project_update", json!({"project_id": "proj-1", "access_policy": {"read": "deny"}}));
    let seen = user.ok("reconcile_status", json!({}));
    assert_eq!((&seen["reconcile_state"], &seen["last_error"]), (&json!("idle"), &Value::Null));
    let ids: Vec<_> =
        seen["projects"].as_array().unwrap().iter().map(|p| &p["project_id"]).collect();
    assert_eq!(ids, [&json!(home)]);
    assert_eq!(user.err("reconcile_status", one), Code::ProjectPolicyForbidden);
    assert_eq!(c.err("reconcile_status", json!({"project_id": "proj-404"})), Code::ProjectNotFound);
    c.ok("project_delete", json!({"project_id": "proj-1"}));
    assert_eq!(c.ok("reconcile_status", json!({}))["queue_depth"], 0);
}

#[test]
fn who_goes_to_nodes_is_told_which_are_back() {
    let g = Gateway::new();
    let (mut c, [first, second]) = house(&g);
    let (tell, told) = std::sync::mpsc::channel();
    let tell = Mutex::new(tell);
    let stop = crate::base::Cancel::new();
    let on_return = move |id: &str| drop(tell.lock().unwrap().send(id.to_owned()));
    let thread = g.cx.plane.follow_nodes(Arc::new(on_return), stop.clone()).unwrap();
    let next = || told.recv_timeout(std::time::Duration::from_secs(20)).unwrap();
    assert_eq!(
        [next(), next()],
        [first.0.clone(), second.0.clone()],
        "at the start all that are there"
    );
    expire(&g, &second.0);
    let known = || g.cx.plane.reconciled(|record| record.cycles_total);
    known();
    let refresh = json!({"node_id": second.0, "node_secret": second.1});
    c.ok("node_lease_refresh", refresh.clone());
    assert_eq!(next(), second.0);
    c.ok("node_lease_refresh", refresh);
    let moved =
        json!({"node_id": first.0, "node_secret": first.1, "fs_url": "ws://127.0.0.1:2/v2/fs"});
    c.ok("node_lease_refresh", moved);
    assert_eq!(next(), first.0, "one that only renews its lease is not told");
    stop.cancel();
    thread.join().unwrap();
}
