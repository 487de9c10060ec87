//! What is recorded of requests, and reading it.

use super::*;

/// The records that a filter admits, newest first.
fn tail(c: &mut Client<'_>, filter: Value) -> Vec<Value> {
    let answer = c.ok("audit_tail", filter);
    assert_eq!(answer["broken"], Value::Null, "{answer}");
    answer["audit"].as_array().unwrap().clone()
}

/// What they are of, and how it ended.
fn shown(records: &[Value]) -> Vec<(&str, &str)> {
    fn of(record: &Value) -> (&str, &str) {
        let name = record["control_type"].as_str().unwrap();
        (name.trim_start_matches("control."), record["error_code"].as_str().unwrap_or("ok"))
    }
    records.iter().map(of).collect()
}

#[test]
fn a_record_says_who_what_about_what_and_how_it_ended() {
    let g = Gateway::new();
    let mut c = g.connect(Role::Admin);
    c.session.peer = Some("10.0.0.7:4711".parse().unwrap());
    let request = json!({"channel": "control", "type": "control.workspace_create", "id": "1",
        "correlation_id": "setup-1", "payload": {"name": "Demo", "vision": "v"}});
    c.raw(&request.to_string());
    let records = tail(&mut c, json!({"about": "proj-1"}));
    let [record] = &records[..] else { panic!("{records:?}") };
    assert_eq!(
        (&record["control_type"], &record["scope"], &record["correlation_id"], &record["result"]),
        (&json!("control.project_create"), &json!("project"), &json!("setup-1"), &json!("ok"))
    );
    assert_eq!(
        (&record["principal"], &record["role"], &record["agent_id"], &record["peer"]),
        (&json!("admin"), &json!("admin"), &json!("mother"), &json!("10.0.0.7:4711"))
    );
    assert_eq!(record["error_code"], Value::Null);
    assert_eq!(record["about"], json!({"project_id": ["proj-1"]}));
    assert!(record["timestamp_ms"].as_i64().unwrap() > 0 && record["id"].as_u64().unwrap() > 0);
}

#[test]
fn mutations_refusals_and_errors_are_recorded_and_reads_are_not() {
    let g = Gateway::new();
    let mut admin = g.connect(Role::Admin);
    let (node_id, secret) = admin.node("edge");
    let project = admin.project("Demo");
    admin.ok("project_list", json!({}));
    admin.ok("node_list", json!({}));
    admin.err("node_get", json!({"node_id": "node-99"}));
    admin.ok("project_update", json!({"project_id": project, "vision": "w"}));
    admin.ok("node_invite_list", json!({}));
    admin.err("project_delete", json!({"project_id": "proj-99"}));
    admin.ok(
        "session_attach",
        json!({"session_key": "s", "agent_id": "bob", "project_id": project}),
    );
    admin.ok("agent_ensure", json!({"agent_id": "carl"}));
    admin.ok("auth_rotate", json!({"role": "user"}));
    let mut user = g.connect(Role::User);
    user.err(
        "session_attach",
        json!({"session_key": "m", "agent_id": "mother", "project_id": "system"}),
    );
    user.attach("alice", &project);
    user.err("metrics", json!({}));
    user.err("auth_rotate", json!({"role": "admin"}));
    let mut node = g.connect(Role::Nobody);
    node.err("node_lease_refresh", json!({"node_id": node_id, "node_secret": "wrong"}));
    node.ok("node_lease_refresh", json!({"node_id": node_id, "node_secret": secret}));
    let publish = json!({"node_id": node_id, "node_secret": secret, "labels": {"a": "b"}});
    node.ok("node_service_upsert", publish.clone());
    node.ok("node_service_upsert", publish);
    node.ok("node_delete", json!({"node_id": node_id, "node_secret": secret}));
    // One without a name for the request cannot be looked up.
    admin.raw(r#"{"channel":"control","type":"control.project_create","payload":{}}"#);

    let mut records = tail(&mut admin, json!({"limit": 100}));
    records.reverse();
    assert_eq!(
        shown(&records),
        [
            ("node_invite_create", "ok"),
            ("node_join", "ok"),
            ("project_create", "ok"),
            ("project_update", "ok"),
            ("node_invite_list", "ok"),
            ("project_delete", "project_not_found"),
            ("session_attach", "ok"),
            ("agent_ensure", "ok"),
            ("auth_rotate", "ok"),
            ("session_attach", "forbidden"),
            ("session_attach", "ok"),
            ("metrics", "forbidden"),
            ("auth_rotate", "forbidden"),
            ("node_lease_refresh", "node_auth_failed"),
            ("node_service_upsert", "ok"),
            ("node_delete", "ok"),
        ]
    );
    let text = json!(records).to_string();
    for hidden in [&*secret, "wrong", "inv-", "sw-"] {
        assert!(!text.contains(hidden), "{hidden}: {text}");
    }
    assert_eq!(records[1]["about"]["node_id"], json!([node_id]));
    assert_eq!(records[8]["about"], json!({"role": ["user"]}));
    assert_eq!(records[12]["principal"], "user");
}

#[test]
fn what_is_asked_for_is_filtered_and_paged() {
    let g = Gateway::new();
    let mut c = g.connect(Role::Admin);
    for n in 0..60 {
        c.project(&format!("P{n}"));
    }
    c.err("project_delete", json!({"project_id": "proj-99"}));
    assert_eq!(tail(&mut c, json!({})).len(), 50);
    assert_eq!(tail(&mut c, json!({"limit": 0})).len(), 0);
    assert_eq!(tail(&mut c, json!({"limit": 1000})).len(), 61);
    assert_eq!(tail(&mut c, json!({"limit": 1000, "operation": "workspace_create"})).len(), 60);
    assert_eq!(tail(&mut c, json!({"result": "error"})).len(), 1);
    assert_eq!(tail(&mut c, json!({"code": "project_not_found"})).len(), 1);
    assert_eq!(tail(&mut c, json!({"agent_id": "alice"})).len(), 0);
    assert_eq!(tail(&mut c, json!({"agent_id": "mother", "about": "proj-7"})).len(), 1);
    assert_eq!(tail(&mut c, json!({"until_ms": 1})).len(), 0);
    let newest = tail(&mut c, json!({"limit": 1}))[0].clone();
    assert!(tail(&mut c, json!({"after_id": newest["id"]})).is_empty());
    let older = tail(&mut c, json!({"before_id": newest["id"], "limit": 1}))[0].clone();
    assert_eq!(older["id"].as_u64().unwrap() + 1, newest["id"].as_u64().unwrap());
    assert_eq!(older["hash"], newest["prev_hash"]);
    for bad in [
        json!({"limit": -1}),
        json!({"limit": "x"}),
        json!({"result": "maybe"}),
        json!({"operation": ""}),
        json!({"code": "x".repeat(200)}),
        json!({"after_id": -1}),
        json!([]),
    ] {
        assert_eq!(c.err("audit_tail", bad), Code::InvalidPayload);
    }
    let mut user = g.connect(Role::User);
    user.attach_to_new_project(&mut c);
    assert_eq!(user.err("audit_tail", json!({})), Code::Forbidden);
}

#[test]
fn the_log_survives_and_says_when_it_was_changed() {
    let g = Gateway::new();
    g.connect(Role::Admin).project("One");
    let g = g.reopen();
    let mut c = g.connect(Role::Admin);
    c.project("Two");
    let answer = c.ok("audit_tail", json!({"verify": true}));
    assert_eq!(answer["verified"]["intact"], true, "{answer}");
    assert_eq!(answer["verified"]["records"], 2);
    assert_eq!(answer["verified"]["hash"], answer["audit"][0]["hash"]);
    drop(c);
    let path = g.dir.path("state.db");
    let Gateway { cx, agents, fails, dir, .. } = g;
    drop((cx, agents, fails));
    let conn = rusqlite::Connection::open(path).unwrap();
    let forged = conn
        .execute(
            "UPDATE kv SET value = CAST(replace(CAST(value AS TEXT), 'proj-1', 'proj-9') AS BLOB)
             WHERE key LIKE 'audit/row/%1'",
            [],
        )
        .unwrap();
    assert_eq!(forged, 1);
    drop(conn);
    let g = Gateway::open(dir, Scopes::default());
    let mut c = g.connect(Role::Admin);
    c.project("Three");
    let answer = c.ok("audit_tail", json!({"verify": true}));
    assert_eq!(answer["verified"]["intact"], false);
    assert_eq!(answer["broken"]["id"], 1, "{answer}");
}

#[test]
fn a_mutation_that_could_not_be_stored_has_no_record_and_the_chain_goes_on() {
    let g = Gateway::new();
    let mut c = g.connect(Role::Admin);
    c.project("One");
    g.fails.store(true, Ordering::Relaxed);
    let lost = c.err("project_create", json!({"name": "Lost", "vision": "v"}));
    assert_eq!(lost, Code::StorageError);
    g.fails.store(false, Ordering::Relaxed);
    c.project("Two");
    let records = tail(&mut c, json!({"verify": true}));
    assert_eq!(
        shown(&records),
        [("project_create", "ok"), ("project_create", "storage_error"), ("project_create", "ok")]
    );
}

#[test]
fn many_at_once_make_one_chain() {
    let g = Gateway::new();
    std::thread::scope(|s| {
        for t in 0..4 {
            let g = &g;
            s.spawn(move || {
                let mut c = g.connect(Role::Admin);
                for n in 0..25 {
                    c.project(&format!("P{t}-{n}"));
                    c.err("project_delete", json!({"project_id": "proj-999"}));
                }
            });
        }
    });
    let mut c = g.connect(Role::Admin);
    let answer = c.ok("audit_tail", json!({"limit": 500, "verify": true}));
    assert_eq!(answer["verified"]["intact"], true, "{}", answer["broken"]);
    let records = answer["audit"].as_array().unwrap();
    let made = records.iter().filter(|r| r["result"] == "ok").count();
    assert_eq!((made, records.len()), (100, 108), "of alike refusals the first");
}
