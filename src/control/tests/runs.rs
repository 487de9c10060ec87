//! Requests about runs reach the engine of the right agent, and nobody else's.

use super::*;

/// The payload of the answer, asked for by the type that clients use.
fn asked(c: &mut Client<'_>, verb: &str, payload: &Value) -> Value {
    let request = json!({"channel": "control", "type": format!("agent.run.{verb}"), "id": "1",
        "payload": payload});
    let (reply, _) = c.raw(&request.to_string());
    if reply["ok"] == true {
        assert_eq!(reply["type"], format!("agent.run.{verb}"));
        assert_eq!(reply["payload"]["agent_id"], "alice", "{reply}");
        return reply["payload"]["asked"].clone();
    }
    assert_eq!(reply["type"], "control.error");
    reply["error"]["code"].clone()
}

#[test]
fn a_request_about_runs_reaches_the_engine_of_the_sessions_agent() {
    let gateway = Gateway::new();
    let mut c = gateway.connect(Role::Admin);
    c.project("Demo");
    c.attach("alice", "proj-1");
    for (verb, payload, seen) in [
        ("start", json!({"content": "go"}), r#"Start { content: "go" }"#),
        ("start", json!({"goal": "go"}), r#"Start { content: "go" }"#),
        ("start", json!({}), "missing_field"),
        ("start", json!({"content": " "}), "invalid_payload"),
        ("start", json!({"content": "x".repeat((1 << 20) + 1)}), "invalid_payload"),
        ("step", json!({"run_id": "r"}), r#"Step { run_id: "r", content: None }"#),
        ("step", json!({"content": "go"}), "missing_field"),
        (
            "resume",
            json!({"action": "r", "text": "go"}),
            r#"Resume { run_id: "r", content: Some("go") }"#,
        ),
        ("pause", json!({"run_id": "r"}), r#"Pause { run_id: "r" }"#),
        ("pause", json!({"run_id": "../r"}), "invalid_payload"),
        ("cancel", json!({"run_id": "r"}), r#"Cancel { run_id: "r" }"#),
        ("status", json!({"run_id": "r"}), r#"Status { run_id: "r" }"#),
        ("events", json!({"run_id": "r"}), r#"Events { run_id: "r", limit: 50 }"#),
        ("events", json!({"run_id": "r", "limit": 500}), r#"Events { run_id: "r", limit: 500 }"#),
        ("events", json!({"run_id": "r", "limit": 501}), "invalid_payload"),
        ("list", json!({}), "List"),
    ] {
        assert_eq!(asked(&mut c, verb, &payload), seen, "{verb} {payload}");
    }
}

#[test]
fn runs_are_for_those_who_may_invoke_and_looking_at_them_for_those_who_may_observe() {
    let gateway = Gateway::new();
    let mut admin = gateway.connect(Role::Admin);
    let policy = json!({"actions": {"invoke": "deny"}});
    admin.ok("project_create", json!({"name": "Demo", "vision": "v", "access_policy": policy}));
    let mut c = gateway.connect(Role::User);
    assert_eq!(asked(&mut c, "list", &json!({})), "provisioning_required");
    c.attach("alice", "proj-1");
    let denied = asked(&mut c, "start", &json!({"content": "go"}));
    assert_eq!(denied, "project_policy_forbidden");
    assert_eq!(asked(&mut c, "list", &json!({})), "List");
}
