//! Sessions and what is remembered of them.

use super::*;

fn work(agent: &str, project: &str) -> Value {
    json!({"session_key": "work", "agent_id": agent, "project_id": project})
}

#[test]
fn a_user_begins_where_he_was_and_nowhere_else() {
    let g = Gateway::new();
    let mut admin = g.connect(Role::Admin);
    admin.ok("project_up", json!({"name": "Demo", "vision": "v", "agent_id": "alice"}));
    let mut user = g.connect(Role::User);
    assert_eq!(user.err("session_list", json!({})), Code::ProjectContextRequired);
    assert_eq!(user.ok("session_restore", json!({})), json!({"found": false}));
    user.ok("session_attach", work("alice", "proj-1"));
    let found = user.ok("session_restore", json!({"agent_id": "alice"}));
    assert_eq!(found["session"]["summary"], "alice @ proj-1");
    assert_eq!(user.ok("session_restore", json!({"agent_id": "bob"}))["found"], false);

    let g = {
        drop((admin, user));
        g.reopen()
    };
    g.agents.ensure("alice").unwrap();
    let mut again = g.connect(Role::User);
    let ack = again.ok("connect", json!({}));
    assert_eq!(
        (&ack["agent_id"], &ack["project_id"], &ack["connect_gate"]),
        (&json!("alice"), &json!("proj-1"), &Value::Null)
    );
    assert_eq!(again.session.attached().count(), 0, "it has not asked to hear of it");
    let history = again.ok("session_history", json!({"limit": 0}));
    assert_eq!(history["sessions"][0]["session_key"], "work");
    assert_eq!(again.err("session_history", json!({"limit": -1})), Code::InvalidPayload);
    // Another begins with nothing, and sees nothing of it.
    g.connect(Role::Admin).ok("auth_token_create", json!({"name": "bob"}));
    let mut bob = g.connect_as(Role::User, "bob");
    assert_eq!(bob.ok("session_history", json!({}))["sessions"], json!([]));
    assert_eq!(bob.err("session_list", json!({})), Code::ProjectContextRequired);

    // The agent is gone: another that works there; then the project.
    g.agents.known.lock().unwrap().remove("alice");
    assert!(g.connect(Role::User).ok("connect", json!({}))["requires_session_attach"] == true);
    let mut admin = g.connect(Role::Admin);
    admin.ok("session_attach", work("zoe", "proj-1"));
    assert_eq!(g.connect(Role::User).ok("connect", json!({}))["agent_id"], "zoe");
    admin.ok("project_delete", json!({"project_id": "proj-1"}));
    assert!(g.connect(Role::User).ok("connect", json!({}))["requires_session_attach"] == true);
    assert_eq!(g.cx.history.target("user"), None);
}

#[test]
fn a_shown_project_token_counts_again_for_its_bearer_alone_and_until_it_is_replaced() {
    let g = Gateway::new();
    let mut admin = g.connect(Role::Admin);
    let project = admin.project("Demo");
    let token = admin.ok("project_token_rotate", json!({"project_id": project}));
    admin.ok("auth_token_create", json!({"name": "bob"}));
    let mut attach = work("alice", &project);
    attach["project_token"] = token["project_token"].clone();
    let gated = |name: &str| {
        g.connect_as(Role::User, name).ok("connect", json!({}))["requires_session_attach"] == true
    };
    for name in ["bob", "user"] {
        g.connect_as(Role::User, name).ok("session_attach", attach.clone());
    }
    assert!(!gated("bob") && gated("user"), "the shared token is anybody's");
    let text = token["project_token"].as_str().unwrap();
    let mut bob = g.connect_as(Role::User, "bob");
    bob.ok("connect", json!({}));
    assert_eq!(bob.session.active().unwrap().project_token.as_deref(), Some(text));
    admin.ok("project_token_rotate", json!({"project_id": project}));
    assert!(gated("bob"));
}

#[test]
fn history_is_bounded_and_counts_messages() {
    let g = Gateway::new();
    let mut admin = g.connect(Role::Admin);
    let project = admin.project("Demo");
    for n in 0..12 {
        let attach =
            json!({"session_key": format!("s{n}"), "agent_id": "a", "project_id": project});
        admin.ok("session_attach", attach);
    }
    admin.ok(
        "session_attach",
        json!({"session_key": "sys", "agent_id": "mother", "project_id": "system"}),
    );
    let binding = admin.session.binding(Some("s5")).unwrap().clone();
    g.cx.history.used("admin", "s5", &binding, 2);
    let all = admin.ok("session_history", json!({"limit": 1000}));
    let keys: Vec<_> =
        all["sessions"].as_array().unwrap().iter().map(|s| &s["session_key"]).collect();
    assert_eq!((keys.len(), keys[0]), (10, &json!("s5")), "no system, newest first");
    assert_eq!(all["sessions"][0]["message_count"], 2);
    assert_eq!(
        admin.ok("session_history", json!({"limit": 3}))["sessions"].as_array().unwrap().len(),
        3
    );

    let status = admin.ok("session_status", json!({"session_key": "s0"}));
    assert_eq!(status["session_last_activity_ms"], 0, "fallen out");
    let status = admin.ok("session_status", json!({"session_key": "s0", "heartbeat": true}));
    assert!(status["session_last_activity_ms"].as_i64().unwrap() > 0);
    assert_eq!(status["session_stale"], false);
}

#[test]
fn what_the_original_kept_is_taken_over_once() {
    let dir = TempDir::new();
    let now = now_ms();
    let file = json!({"schema": 3, "admin_token": "a", "user_token": "u",
        "user_last_target": {"agent_id": "alice", "project_id": "proj-1"},
        "user_session_history": [
            {"session_key": "old", "agent_id": "alice", "project_id": "proj-1", "last_active_ms": 5},
            {"session_key": "w", "agent_id": "alice", "project_id": "proj-1", "last_active_ms": now,
                "message_count": 12, "summary": "alice @ proj-1"},
            {"session_key": "s", "agent_id": "x", "project_id": "system", "last_active_ms": now}]});
    std::fs::write(dir.path("auth_tokens.json"), file.to_string()).unwrap();
    let g = Gateway::open(dir, Scopes::default());
    let mut user = g.connect(Role::User);
    let sessions = user.ok("session_history", json!({}));
    assert_eq!(sessions["sessions"].as_array().unwrap().len(), 1);
    assert_eq!(sessions["sessions"][0]["message_count"], 12);
    // The file does not count any more.
    g.cx.history.forget_target("user");
    drop(user);
    let g = g.reopen();
    assert_eq!(g.cx.history.target("user"), None);
    let kept = Tokens::load(g.cx.auth.path()).unwrap();
    assert_eq!(kept.user_session_history.unwrap().len(), 3);
}

#[test]
fn who_has_no_token_any_more_is_forgotten() {
    let g = Gateway::new();
    let mut admin = g.connect(Role::Admin);
    let project = admin.project("Demo");
    for name in ["bob", "carol"] {
        admin.ok("auth_token_create", json!({"name": name}));
        g.connect_as(Role::User, name).ok("session_attach", work("alice", &project));
    }
    g.cx.history.flush().unwrap();
    admin.ok("auth_token_revoke", json!({"name": "bob"}));
    assert!(g.cx.history.target("bob").is_none() && g.cx.history.target("carol").is_some());
    drop(admin);
    // And who was revoked while the gateway was not there.
    Tokens::update(&g.dir.path("auth_tokens.json"), |t| t.revoke("carol")).unwrap();
    let g = g.reopen();
    assert!(g.cx.history.target("bob").is_none() && g.cx.history.target("carol").is_none());
}

#[test]
fn an_agent_at_work_is_not_moved() {
    let g = Gateway::new();
    let mut admin = g.connect(Role::Admin);
    let (one, two) = (admin.project("One"), admin.project("Two"));
    admin.ok("session_attach", work("alice", &one));
    g.agents.busy.lock().unwrap().extend(["alice".to_owned(), "idle".to_owned()]);
    assert_eq!(admin.err("session_attach", work("alice", &two)), Code::SessionBusy);
    assert_eq!(admin.err("session_attach", work("bob", &one)), Code::SessionBusy, "leaves alice");
    let other = |agent: &str| json!({"session_key": "b", "agent_id": agent, "project_id": two});
    assert_eq!(admin.err("session_attach", other("alice")), Code::SessionBusy);
    assert_eq!(admin.err("session_attach", other("idle")), Code::SessionBusy, "works, but nowhere");
    admin.ok("session_attach", work("alice", &one));
    admin.ok("session_attach", other("bob"));
    // What was attached before is as it was.
    let list = admin.ok("session_list", json!({}));
    assert_eq!(list["sessions"].as_array().unwrap().len(), 3);
    assert_eq!(admin.ok("session_resume", json!({"session_key": "work"}))["agent_id"], "alice");
}

#[test]
fn only_admins_act_for_other_actors() {
    let g = Gateway::new();
    let mut admin = g.connect(Role::Admin);
    let project = admin.project("Demo");
    let as_actor = |kind: &str, id: &str| {
        let mut attach = work("alice", &project);
        (attach["actor_type"], attach["actor_id"]) = (json!(kind), json!(id));
        attach
    };
    let attached = admin.ok("session_attach", as_actor("bot", "ci.main"));
    assert_eq!(
        (&attached["actor_type"], &attached["actor_id"]),
        (&json!("bot"), &json!("ci.main"))
    );
    assert_eq!(admin.ok("session_status", json!({}))["actor_id"], "ci.main");
    assert_eq!(admin.ok("connect", json!({}))["actor_id"], "ci.main");
    assert_eq!(admin.err("session_attach", as_actor("b.t", "x")), Code::InvalidPayload);
    let mut user = g.connect(Role::User);
    assert_eq!(user.err("session_attach", as_actor("bot", "x")), Code::Forbidden);
    let attached = user.ok("session_attach", as_actor("user", "user"));
    assert_eq!(attached["actor_id"], "user");
}

#[test]
fn an_agent_is_made_by_admins_and_one_that_cannot_be_read_is_told() {
    let g = Gateway::new();
    let mut admin = g.connect(Role::Admin);
    let made = admin.ok("agent_ensure", json!({"agent_id": "bob"}));
    assert_eq!((&made["created"], &made["agent"]["id"]), (&json!(true), &json!("bob")));
    assert_eq!(admin.ok("agent_ensure", json!({"agent_id": "bob"}))["created"], false);
    assert_eq!(admin.err("agent_ensure", json!({"agent_id": "a/b"})), Code::InvalidPayload);
    assert_eq!(admin.err("agent_ensure", json!({})), Code::MissingField);
    admin.project("Demo");

    g.agents.unreadable.lock().unwrap().insert("bob".into());
    let list = admin.ok("agent_list", json!({}));
    assert_eq!(
        (&list["agents"][0]["id"], &list["unreadable"][0]["agent_id"]),
        (&json!("mother"), &json!("bob"))
    );
    assert_eq!(list["unreadable"][0]["message"], "expected `,`");
    assert_eq!(admin.err("agent_get", json!({"agent_id": "bob"})), Code::Config);
    let mut user = g.connect(Role::User);
    assert_eq!(user.ok("connect", json!({}))["bootstrap_only"], false, "it is there all the same");
    let list = user.ok("agent_list", json!({}));
    assert_eq!(list["unreadable"], json!([{"agent_id": "bob"}]), "why is not for users");
}
