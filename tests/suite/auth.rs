//! Who may connect: named tokens, their end, and what is remembered of their bearers, with the built
//! gateway and the built `spiderweb-config`.

use crate::mount::until;
use crate::program::{Client, Gateway, Got, Scratch};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// Exit status and standard output of `spiderweb-config auth`.
fn auth(home: &Path, args: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_spiderweb-config"))
        .arg("auth")
        .args(args)
        .env_clear()
        .env("HOME", home)
        .current_dir(home)
        .output()
        .unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

fn create(admin: &mut Client, payload: Value) -> String {
    admin.control("auth_token_create", payload)["token"].as_str().unwrap().to_owned()
}

/// A connection that has negotiated the control channel.
fn connect(gateway: &Gateway, token: &str) -> Client {
    let mut client = gateway.open("/", Some(token));
    client.negotiate();
    client
}

fn is_refused(gateway: &Gateway, token: &str) -> bool {
    let mut client = gateway.open("/", Some(token));
    // As the original: a frame without a channel, then a close.
    match client.recv() {
        Got::Closed => false,
        Got::Json(frame) => {
            frame["code"] == "provider_auth_failed"
                && frame.get("channel").is_none()
                && client.recv() == Got::Closed
        }
    }
}

fn hello(gateway: &Gateway, token: Option<&str>, fields: Value) -> Client {
    let mut client = gateway.open("/v2/fs", token);
    client.acheron("t_fs_hello", json!({"payload": fields}));
    client
}

fn ends(client: &mut Client) {
    assert_eq!(client.recv(), Got::Closed);
}

#[test]
fn a_revoked_token_ends_its_connections_and_no_others() {
    let gateway = Gateway::start();
    let mut admin = gateway.admin();
    let bob = create(&mut admin, json!({"name": "bob", "role": "admin"}));
    let carol = create(&mut admin, json!({"name": "carol", "role": "admin"}));
    let mut of_bob = [
        connect(&gateway, &bob),
        hello(&gateway, Some(&bob), json!({"protocol": "unified-v2-fs", "proto": 2})),
        hello(&gateway, None, json!({"protocol": "unified-v2-fs", "proto": 2, "auth_token": bob})),
    ];
    let mut of_carol = connect(&gateway, &carol);
    assert_eq!(of_bob[0].control("connect", json!({}))["actor_id"], "bob");
    admin.control("auth_token_revoke", json!({"name": "bob"}));
    of_bob.iter_mut().for_each(ends);
    assert!(is_refused(&gateway, &bob));
    assert_eq!(of_carol.control("connect", json!({}))["actor_id"], "carol");
    // Who revokes himself is answered.
    of_carol.control("auth_token_revoke", json!({"name": "carol"}));
    ends(&mut of_carol);
    admin.control("ping", json!({}));
}

#[test]
fn a_token_ends_when_it_expires() {
    let gateway = Gateway::start();
    let mut admin = gateway.admin();
    let bob = create(&mut admin, json!({"name": "bob", "expires_in_ms": 1500}));
    let mut of_bob = connect(&gateway, &bob);
    ends(&mut of_bob);
    assert!(is_refused(&gateway, &bob));
    assert_eq!(admin.control("auth_token_list", json!({}))["tokens"][0]["expired"], true);
}

#[test]
fn who_rotates_and_revokes_is_told_the_new_token_first() {
    let gateway = Gateway::start();
    let (mut admin, mut other, mut user) = (gateway.admin(), gateway.admin(), gateway.user());
    let made = admin.control("auth_rotate", json!({"role": "admin"}));
    other.control("ping", json!({}));
    assert_eq!(made["token"], gateway.token("admin_token"));
    let made = admin.control("auth_rotate", json!({"role": "admin", "revoke": true}));
    ends(&mut admin);
    ends(&mut other);
    user.control("ping", json!({}));
    connect(&gateway, made["token"].as_str().unwrap()).control("auth_status", json!({}));
}

#[test]
fn a_running_gateway_takes_over_what_is_changed_beside_it() {
    let gateway = Gateway::start();
    let home = &gateway.home;
    let (status, bob) = auth(home, &["add", "bob", "--expires-in", "30d"]);
    assert!(status == 0 && bob.starts_with("sw-user_"), "{bob}");
    until("the new token to count", || !is_refused(&gateway, &bob));
    let mut of_bob = connect(&gateway, &bob);
    assert_eq!(auth(home, &["revoke", "bob"]).0, 0);
    ends(&mut of_bob);
    assert!(is_refused(&gateway, &bob));
    let asked = json!({"operation": "credentials.changed"});
    let told = gateway.admin().control("audit_tail", asked);
    assert!(!told["audit"].as_array().unwrap().is_empty(), "{told}");

    let mut user = gateway.user();
    let (status, token) = auth(home, &["rotate", "user", "--revoke"]);
    assert_eq!((status, token), (0, gateway.token("user_token")));
    ends(&mut user);
    let mut admin = gateway.admin();
    assert_eq!(auth(home, &["reset"]).0, 64);
    assert_eq!(auth(home, &["reset", "--yes"]).0, 0);
    ends(&mut admin);
    gateway.admin();
}

#[test]
fn a_file_that_cannot_be_read_leaves_the_old_tokens_in_force() {
    let mut gateway = Gateway::start();
    let path = gateway.home.join(".spiderweb-ltm/auth_tokens.json");
    let mut admin = gateway.admin();
    let token = gateway.token("admin_token");
    let good = std::fs::read(&path).unwrap();
    std::fs::write(&path, "{").unwrap();
    gateway.program.wait_for("the old ones stay in force");
    admin.control("ping", json!({}));
    connect(&gateway, &token);
    let refused = admin.control_reply("auth_rotate", json!({"role": "user"}));
    assert_eq!(refused["error"]["code"], "storage_error");
    assert_eq!(std::fs::read(&path).unwrap(), b"{", "it was left as it is");
    std::fs::write(&path, good).unwrap();
    admin.control("auth_rotate", json!({"role": "user"}));
}

#[test]
fn a_token_that_cannot_be_saved_is_not_told() {
    let home = Scratch::new();
    let gateway = Gateway::at(home.path(), "0");
    let mut admin = gateway.admin();
    let old = gateway.token("user_token");
    // The disk takes no file of more than a few bytes.
    let limit = |bytes| {
        let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
        let pid = gateway.program.pid() as i32;
        // SAFETY: the new limit is ours to read, and the old one is not asked for.
        let done = unsafe { libc::prlimit(pid, libc::RLIMIT_FSIZE, &limit, std::ptr::null_mut()) };
        assert_eq!(done, 0);
    };
    limit(16);
    let refused = admin.control_reply("auth_rotate", json!({"role": "user"}));
    limit(libc::RLIM_INFINITY);
    assert_eq!(refused["error"]["code"], "storage_error", "{refused}");
    assert_eq!(gateway.token("user_token"), old);
    connect(&gateway, &old);
    admin.control("auth_rotate", json!({"role": "user"}));
    assert!(is_refused(&gateway, &old));
}

#[test]
fn tokens_are_managed_without_a_gateway() {
    let home = Scratch::new();
    let home = home.path();
    assert_eq!(auth(home, &["status"]).0, 66);
    let (status, token) = auth(home, &["add", "ci", "--role", "admin"]);
    assert!(status == 0 && token.starts_with("sw-admin_"), "{token}");
    let (_, path) = auth(home, &["path"]);
    let file = std::fs::read_to_string(&path).unwrap();
    assert!(file.contains("\"ci\"") && !file.contains(&token));
    let tokens: Value = serde_json::from_str(&file).unwrap();
    let admin = tokens["admin_token"].as_str().unwrap();
    assert!(!auth(home, &["status"]).1.contains(admin));
    assert!(auth(home, &["status", "--reveal"]).1.contains(admin));
    assert!(auth(home, &["list"]).1.contains("ci"));
    let listed: Value = serde_json::from_str(&auth(home, &["list", "--json"]).1).unwrap();
    assert_eq!((&listed[0]["role"], &listed[0]["expired"]), (&json!("admin"), &json!(false)));
    for (args, status) in [
        (&["add", "ci"][..], 73),
        (&["add", "user"], 65),
        (&["add", "x", "--role", "node"], 64),
        (&["add", "x", "--expires-in", "soon"], 64),
        (&["revoke", "nobody"], 66),
        (&["revoke", "admin"], 64),
        (&["rotate", "ci"], 64),
        (&["nonsense"], 64),
    ] {
        assert_eq!(auth(home, args).0, status, "{args:?}");
    }
    let gateway = Gateway::at(home, "0");
    connect(&gateway, &token).control("node_list", json!({}));
    assert_eq!(gateway.token("admin_token"), admin);
}

#[test]
fn history_outlives_the_gateway_and_is_each_ones_own() {
    let home = Scratch::new();
    let mut gateway = Gateway::at(home.path(), "0");
    let mut admin = gateway.admin();
    let up = json!({"name": "Demo", "vision": "v", "agent_id": "alice"});
    admin.control("project_up", up);
    let bob = create(&mut admin, json!({"name": "bob"}));
    let mut of_bob = connect(&gateway, &bob);
    let attach = json!({"session_key": "work-1", "agent_id": "alice", "project_id": "proj-1"});
    of_bob.control("session_attach", attach);
    of_bob.attach();
    of_bob.write("/agents/self/chat/control/input", "hello");
    gateway.program.signal(libc::SIGTERM);
    assert_eq!(gateway.program.wait(), 0);

    let gateway = Gateway::at(home.path(), "0");
    let mut of_bob = gateway.open("/", Some(&bob));
    of_bob.control("version", json!({"protocol": "unified-v2"}));
    let ack = of_bob.control("connect", json!({}));
    assert_eq!(
        (&ack["agent_id"], &ack["requires_session_attach"]),
        (&json!("alice"), &json!(false))
    );
    let found = of_bob.control("session_restore", json!({}));
    assert_eq!(found["found"], true);
    assert_eq!(
        (&found["session"]["session_key"], &found["session"]["message_count"]),
        (&json!("work-1"), &json!(1))
    );
    // Nobody else's, and no way to mother.
    assert_eq!(gateway.user().control("session_restore", json!({}))["found"], false);
    of_bob.control("session_resume", json!({"session_key": "main"}));
    let reply = of_bob.control_reply(
        "session_attach",
        json!({"session_key": "main", "agent_id": "mother", "project_id": "system"}),
    );
    assert_eq!(reply["error"]["code"], "forbidden");
}

#[test]
fn an_agent_is_made_by_name_and_one_that_cannot_be_read_is_left_out() {
    let mut gateway = Gateway::start();
    let mut admin = gateway.admin();
    let made = admin.control("agent_ensure", json!({"agent_id": "carol"}));
    assert_eq!((&made["created"], &made["agent"]["needs_hatching"]), (&json!(true), &json!(true)));
    let file = gateway.home.join("agents/carol/agent.json");
    let settings: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(settings["name"], "carol");
    std::fs::write(&file, "[").unwrap();
    let list = admin.control("agent_list", json!({}));
    assert_eq!(list["unreadable"][0]["agent_id"], "carol");
    assert_eq!(list["agents"][0]["id"], "mother");
    gateway.program.wait_for("agent carol is left out");
}

#[test]
fn an_address_that_keeps_guessing_is_kept_out() {
    let gateway = Gateway::start();
    for _ in 0..61 {
        assert!(is_refused(&gateway, "sw-admin_guess"));
    }
    let token = gateway.token("admin_token");
    let upgrade = format!(
        "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Authorization: Bearer {token}\r\n\r\n"
    );
    assert!(gateway.http(&upgrade).starts_with("HTTP/1.1 429"));
}
