//! What holds for every operation alike, asked of each line of the table.

use super::*;

/// A gateway in which every operation has something to work on, with a payload that makes it succeed.
struct Fixture {
    gateway: Gateway,
    node: (String, String),
    request_id: String,
    invite_id: String,
}

const SCOPES: [(Scope, &str, &str); 3] = [
    (Scope::Node, "node_scope_token", "n"),
    (Scope::Operator, "operator_token", "o"),
    (Scope::Project, "project_scope_token", "p"),
];

impl Fixture {
    fn new() -> Fixture {
        Fixture::open(Scopes::default())
    }

    /// With all tokens configured; the operator's is added to what is asked here.
    fn scoped() -> Fixture {
        let token = |s: &str| Some(s.to_owned());
        let scopes = Scopes { operator: token("o"), node: token("n"), project: token("p") };
        Fixture::open(scopes)
    }

    fn open(scopes: Scopes) -> Fixture {
        let open = Scopes::default();
        let gateway = Gateway::open(TempDir::new(), open);
        let mut c = gateway.connect(Role::Admin);
        let node = c.node("edge");
        c.project("Demo");
        c.ok(
            "project_mount_set",
            json!({"project_id": "proj-1", "node_id": node.0, "export_name": "work", "mount_path": "/src"}),
        );
        c.ok(
            "project_bind_set",
            json!({"project_id": "proj-1", "bind_path": "/repo", "target_path": "/src"}),
        );
        c.ok("project_up", json!({"project_id": "proj-1", "agent_id": "alice"}));
        c.ok("auth_token_create", json!({"name": "carol"}));
        gateway.templates.put("base", json!({"vision": "v", "mounts": []}));
        let asked = c.ok("node_join_request", json!({"node_name": "asks"}));
        let request_id = asked["request_id"].as_str().unwrap().to_owned();
        let invite = c.ok("node_invite_create", json!({}));
        let invite_id = invite["invite_id"].as_str().unwrap().to_owned();
        drop(c);
        let mut gateway = gateway;
        gateway.cx.scopes = scopes;
        Fixture { gateway, node, request_id, invite_id }
    }

    /// A payload with all fields of an operation, right ones. Empty for those that want none.
    fn payload(&self, name: &str) -> Value {
        let (node_id, secret) = &self.node;
        let project = json!({"project_id": "proj-1", "project_token": "x", "if_updated_at_ms": self.updated_at_ms()});
        let with = |extra: Value| {
            let mut all = project.clone();
            all.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            all
        };
        let attributes = json!({"name": "New", "vision": "v", "status": "active",
            "access_policy": {"actions": {"read": "open"}, "agents": {"bob": {"mount": "deny"}}}});
        match name {
            "session_attach" => {
                json!({"session_key": "k", "agent_id": "alice", "project_id": "proj-1"})
            }
            "session_status" => json!({"session_key": "work", "heartbeat": true}),
            "session_resume" => json!({"session_key": "work"}),
            "session_restore" => json!({"agent_id": "alice"}),
            "session_history" => json!({"agent_id": "alice", "limit": 5}),
            "auth_status" => json!({"reveal": true}),
            "auth_rotate" => json!({"role": "user", "revoke": true}),
            "auth_token_create" => json!({"name": "bob", "role": "user", "expires_in_ms": 60000}),
            "auth_token_revoke" => json!({"name": "carol"}),
            "audit_tail" => json!({"limit": 9, "agent_id": "mother", "principal": "admin",
                "operation": "project_create", "result": "ok", "code": "forbidden", "about": "proj-1",
                "since_ms": 0, "until_ms": 9, "after_id": 0, "before_id": 9, "verify": true}),
            "agent_get" | "agent_ensure" => json!({"agent_id": "alice"}),
            "agent_run_start" => json!({"content": "go"}),
            "agent_run_step" | "agent_run_resume" => json!({"run_id": "run-1", "content": "go"}),
            "agent_run_events" => json!({"run_id": "run-1", "limit": 5}),
            "agent_run_pause" | "agent_run_cancel" | "agent_run_status" => {
                json!({"run_id": "run-1"})
            }
            "node_invite_create" => json!({"expires_in_ms": 60000}),
            "node_invite_list" => {
                json!({"include_redeemed": true, "include_expired": true, "reveal": true})
            }
            "node_invite_revoke" => json!({"invite_id": self.invite_id}),
            "node_ensure" => json!({"node_name": "ensured", "fs_url": "ws://127.0.0.1:1/v2/fs",
                "lease_ttl_ms": 60000}),
            "node_secret_rotate" => json!({"node_id": node_id, "grace_ms": 1000}),
            "node_service_get" => json!({"node_id": node_id}),
            "node_service_watch" => {
                json!({"node_id": node_id, "replay_limit": 5, "after_seq": 0})
            }
            "debug_subscribe" => json!({"categories": ["control.reconcile"]}),
            "node_join_request" => {
                json!({"node_name": "x", "fs_url": "", "platform": {"os": "linux"}})
            }
            "node_join_approve" => json!({"request_id": self.request_id, "lease_ttl_ms": 60000}),
            "node_join_deny" => json!({"request_id": self.request_id}),
            "node_lease_refresh" => json!({"node_id": node_id, "node_secret": secret,
                "fs_url": "ws://127.0.0.1:1/v2/fs", "lease_ttl_ms": 60000}),
            "node_service_upsert" => json!({"node_id": node_id, "node_secret": secret,
                "labels": {"a": "b"}, "platform": {"os": "linux"}, "services": []}),
            "node_get" | "node_delete" => json!({"node_id": node_id}),
            "project_create" => {
                let mut payload = attributes;
                payload["template_id"] = json!("base");
                payload["desired_mounts"] =
                    json!([{"mount_path": "/src", "node_name": "edge", "export_name": "work"}]);
                payload["desired_binds"] =
                    json!([{"bind_path": "/repo", "target_path": "/src/app"}]);
                payload
            }
            "project_update" => with(attributes),
            "project_up" => json!({"project_id": "proj-1", "name": "New", "activate": false,
                "template_id": "base", "desired_mounts": [], "desired_binds": [],
                "agent_id": "alice"}),
            "workspace_template_get" => json!({"template_id": "base"}),
            "project_mount_set" => {
                with(json!({"node_id": node_id, "export_name": "work", "mount_path": "/new"}))
            }
            "project_mount_remove" => {
                with(json!({"node_id": node_id, "export_name": "work", "mount_path": "/src"}))
            }
            "project_bind_set" => with(json!({"bind_path": "/new", "target_path": "/src/x"})),
            "project_bind_remove" => with(json!({"bind_path": "/repo"})),
            "workspace_status" | "reconcile_status" => json!({"project_id": "proj-1"}),
            name if name.starts_with("project_") => project,
            _ => json!({}),
        }
    }

    fn updated_at_ms(&self) -> i64 {
        self.gateway.cx.plane.state().project("proj-1").unwrap().updated_at_ms
    }

    /// A connection of a role that has passed the gate.
    fn attached(&self, role: Role) -> Client<'_> {
        let mut client = self.gateway.connect(role);
        client.attach("alice", "proj-1");
        client
    }
}

/// The operations that stand in nobody's way when they run here.
fn plain() -> impl Iterator<Item = &'static Op> {
    TABLE.iter().filter(|op| !matches!(op.name, "version" | "session_close" | "node_join"))
}

fn succeeded(reply: &Value) -> bool {
    reply["ok"] == true
}

fn code(reply: &Value) -> &str {
    reply["error"]["code"].as_str().unwrap_or("ok")
}

#[test]
fn every_operation_succeeds_for_the_roles_that_may_call_it() {
    for op in plain() {
        for role in [Role::Admin, Role::User] {
            let f = Fixture::new();
            let (mut payload, mut c) = (f.payload(op.name), f.attached(role));
            if matches!(op.name, "node_delete" | "node_secret_rotate") && role == Role::User {
                payload["node_secret"] = json!(f.node.1);
            }
            let before = f.gateway.cx.plane.state();
            let reply = c.call(op.name, payload);
            if op.access == Access::Admin && role == Role::User {
                assert_eq!(code(&reply), "forbidden", "{}", op.name);
                assert_eq!(*before, *f.gateway.cx.plane.state(), "{}", op.name);
            } else {
                assert!(succeeded(&reply), "{} as {role:?}: {reply}", op.name);
            }
        }
    }
}

#[test]
fn scoped_operations_want_an_id_a_payload_and_their_token() {
    for op in plain().filter(|op| op.scope != Scope::None) {
        let open = Fixture::new();
        let mut c = open.attached(Role::Admin);
        let ask = |rest: Value| {
            let mut request = json!({"channel": "control", "type": format!("control.{}", op.name)});
            request.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            request.to_string()
        };
        let anonymous = ask(json!({"payload": open.payload(op.name)}));
        assert_eq!(code(&c.raw(&anonymous).0), "correlation_required", "{}", op.name);
        assert_eq!(code(&c.raw(&ask(json!({"id": "1"}))).0), "missing_field", "{}", op.name);
        for payload in [json!(null), json!([]), json!("x"), json!(7)] {
            let request = ask(json!({"correlation_id": "c", "payload": payload}));
            let (reply, close) = c.raw(&request);
            assert!(!close && code(&reply) == "invalid_payload", "{}: {reply}", op.name);
            assert_eq!(reply["error"]["correlation_id"], "c");
        }

        let f = Fixture::scoped();
        let mut c = f.attached(Role::Admin);
        let (_, field, token) = SCOPES.into_iter().find(|s| s.0 == op.scope).unwrap();
        let right = f.payload(op.name);
        let with = |field: &str, token: Value| {
            let mut payload = right.clone();
            payload[field] = token;
            payload
        };
        assert_eq!(c.err(op.name, right.clone()), Code::MissingField, "{}", op.name);
        for field in [field, "operator_token"] {
            let wrong = c.err(op.name, with(field, json!("wrong")));
            assert_eq!(wrong, Code::OperatorAuthFailed, "{} {field}", op.name);
            assert_eq!(c.err(op.name, with(field, json!(""))), Code::InvalidPayload, "{}", op.name);
            assert_eq!(c.err(op.name, with(field, json!(7))), Code::InvalidPayload, "{}", op.name);
        }
        // Not refused for the token, whatever comes then.
        c.ok(op.name, with(field, json!(token)));
        let reply = c.call(op.name, with("operator_token", json!("o")));
        assert_ne!(code(&reply), "operator_auth_failed", "{}", op.name);
        assert!(!reply.to_string().contains("operator_token is required"), "{}: {reply}", op.name);
    }
}

#[test]
fn unscoped_operations_ask_for_no_second_factor() {
    for op in plain().filter(|op| op.scope == Scope::None) {
        let f = Fixture::scoped();
        let reply = f.attached(Role::Admin).call(op.name, f.payload(op.name));
        assert!(succeeded(&reply), "{}: {reply}", op.name);
    }
}

#[test]
fn fields_of_the_wrong_form_are_refused_by_name_and_change_nothing() {
    let hostile = || {
        [
            json!(7),
            json!(-1.5),
            json!(true),
            json!([[]]),
            json!({"a": {"b": []}}),
            json!("x".repeat(100_000)),
            json!("../../../etc/passwd"),
            json!("a\u{0}b\r\n\u{1b}[2J"),
            json!("proj-18446744073709551616"),
            json!("\u{202e}\u{fffd}"),
            json!(u64::MAX),
            json!(""),
            json!(null),
        ]
    };
    for op in plain().filter(|op| !matches!(op.name, "connect" | "ping")) {
        let mut f = Fixture::new();
        let right = f.payload(op.name);
        for field in right.as_object().unwrap().keys() {
            for bad in hostile() {
                let mut payload = f.payload(op.name);
                payload[field] = bad;
                let mut c = f.attached(Role::Admin);
                let before = f.gateway.cx.plane.state();
                let text = payload.to_string();
                let shown = &text[..text.len().min(300)];
                let request = format!(
                    r#"{{"channel":"control","type":"control.{}","id":"1","payload":{text}}}"#,
                    op.name
                );
                let (reply, close) = c.raw(&request);
                assert!(!close, "{}: {shown}", op.name);
                if succeeded(&reply) {
                    // It was right all the same.
                    drop(c);
                    f = Fixture::new();
                    continue;
                }
                assert!(Code::from_wire(code(&reply)).is_some(), "{reply}");
                assert!(
                    reply["error"]["message"].as_str().unwrap().len() < 1000,
                    "{}: {shown}",
                    op.name
                );
                assert_eq!(*before, *f.gateway.cx.plane.state(), "{}: {shown}", op.name);
            }
        }
    }
}

#[test]
fn what_cannot_be_stored_is_answered_so_and_has_not_happened() {
    // What is so already in the fixture.
    const UNCHANGED: [&str; 4] =
        ["node_invite_list", "node_join_pending_list", "project_activate", "project_token_revoke"];
    // The tokens are in a file of their own, which has its own test.
    let elsewhere = |op: &&Op| op.name.starts_with("debug_") || op.name.starts_with("auth_");
    for op in plain().filter(|op| !elsewhere(op)) {
        let f = Fixture::new();
        let (payload, mut c) = (f.payload(op.name), f.attached(Role::Admin));
        let before = f.gateway.cx.plane.state();
        f.gateway.fails.store(true, Ordering::Relaxed);
        let failed = c.call(op.name, payload.clone());
        assert_eq!(*before, *f.gateway.cx.plane.state(), "{}", op.name);
        f.gateway.fails.store(false, Ordering::Relaxed);
        let again = c.call(op.name, payload);
        assert!(succeeded(&again), "{}: {again}", op.name);
        let stored = *before != *f.gateway.cx.plane.state();
        assert_eq!(code(&failed), if stored { "storage_error" } else { "ok" }, "{}", op.name);
        let changes = op.scope != Scope::None && !UNCHANGED.contains(&op.name);
        assert!(stored || !changes, "{} has changed nothing", op.name);
    }
}

#[test]
fn an_alias_is_its_operation() {
    for (alias, name) in ALIASES {
        let op = find(alias).unwrap();
        assert_eq!(op.name, *name, "{alias}");
        assert!(!TABLE.iter().any(|op| op.name == *alias), "{alias} stands for itself");
        let f = Fixture::new();
        let mut payload = f.payload(name);
        if let Some(id) = payload.as_object_mut().unwrap().remove("project_id") {
            payload["workspace_id"] = id;
        }
        let reply = f.attached(Role::Admin).call(alias, payload);
        assert_eq!(
            (&reply["ok"], &reply["type"]),
            (&json!(true), &json!(format!("control.{alias}")))
        );
    }
}
