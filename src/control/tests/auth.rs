//! The access tokens, as admins see and change them.

use super::*;

#[test]
fn tokens_are_shown_only_when_that_is_asked_for() {
    let g = Gateway::new();
    let mut c = g.connect(Role::Admin);
    let tokens = g.cx.auth.tokens();
    let hidden = c.ok("auth_status", json!({})).to_string();
    assert!(!hidden.contains(&tokens.admin_token) && !hidden.contains(&tokens.user_token));
    let shown = c.ok("auth_status", json!({"reveal": true}));
    assert_eq!(
        (&shown["admin_token"], &shown["user_token"]),
        (&json!(tokens.admin_token), &json!(tokens.user_token))
    );
    assert!(shown["path"].as_str().unwrap().ends_with("auth_tokens.json"));
    assert_eq!(shown["user_last_target"], Value::Null);
    // Recorded clients send no payload at all.
    let (reply, _) = c.raw(r#"{"channel":"control","type":"control.auth_status","id":"1"}"#);
    assert_eq!(reply["ok"], true);
}

#[test]
fn a_rotated_token_is_in_force_at_once() {
    let g = Gateway::new();
    let mut c = g.connect(Role::Admin);
    let old = g.cx.auth.tokens().user_token.clone();
    let user = g.cx.auth.identify(&old).unwrap();
    let made = c.ok("auth_rotate", json!({"role": "user"}));
    assert_eq!(made["role"], "user");
    assert!(g.cx.auth.identify(&old).is_none());
    let new = made["token"].as_str().unwrap();
    assert_eq!(g.cx.auth.identify(new).unwrap().name, "user");
    assert!(g.cx.auth.admits(&user), "connections go on");
    c.ok("auth_rotate", json!({"role": "user", "revoke": true}));
    assert!(!g.cx.auth.admits(&user));
    assert_eq!(c.err("auth_rotate", json!({})), Code::MissingField);
    for bad in [json!({"role": "node"}), json!({"role": 7}), json!({"role": "user", "revoke": 1})] {
        assert_eq!(c.err("auth_rotate", bad), Code::InvalidPayload);
    }
}

#[test]
fn a_named_token_is_told_once_and_revoked_by_its_name() {
    let g = Gateway::new();
    let mut c = g.connect(Role::Admin);
    let bob = json!({"name": "bob", "role": "admin", "expires_in_ms": 60_000});
    let made = c.ok("auth_token_create", bob.clone());
    let token = made["token"].as_str().unwrap();
    let lives = made["expires_at_ms"].as_i64().unwrap() - made["created_at_ms"].as_i64().unwrap();
    assert_eq!(lives, 60_000);
    let identity = g.cx.auth.identify(token).unwrap();
    let principal = Principal::from(&identity);
    assert_eq!((principal.role, &*principal.name), (Role::Admin, "bob"));
    assert_eq!(c.err("auth_token_create", bob), Code::Eexist);
    let file = std::fs::read_to_string(g.cx.auth.path()).unwrap();
    assert!(file.contains("\"bob\"") && !file.contains(token));
    let listed = c.ok("auth_token_list", json!({}));
    assert!(!listed.to_string().contains("sha256"), "{listed}");
    assert_eq!(
        (&listed["tokens"][0]["name"], &listed["tokens"][0]["last_used_at_ms"]),
        (&json!("bob"), &Value::Null)
    );
    g.connect_as(Role::Admin, "bob");
    let listed = c.ok("auth_token_list", json!({}));
    assert!(listed["tokens"][0]["last_used_at_ms"].as_i64().unwrap() > 0);

    c.ok("auth_token_revoke", json!({"name": "bob"}));
    assert!(!g.cx.auth.admits(&identity) && g.cx.auth.identify(token).is_none());
    assert_eq!(c.err("auth_token_revoke", json!({"name": "bob"})), Code::NotFound);
    assert_eq!(c.err("auth_token_revoke", json!({"name": "admin"})), Code::InvalidPayload);
    for bad in [json!({"name": "user"}), json!({"name": "a/b"}), json!({"name": "x".repeat(65)})] {
        assert_eq!(c.err("auth_token_create", bad), Code::InvalidPayload);
    }
    assert_eq!(
        c.err("auth_token_create", json!({"name": "x", "expires_in_ms": 0})),
        Code::InvalidPayload
    );
}

#[test]
fn what_cannot_be_saved_leaves_the_old_tokens_in_force() {
    let g = Gateway::new();
    let mut c = g.connect(Role::Admin);
    c.ok("auth_token_create", json!({"name": "carol"}));
    let before = g.cx.auth.tokens();
    // A directory is where the file should be.
    let kept = std::fs::read(g.cx.auth.path()).unwrap();
    std::fs::remove_file(g.cx.auth.path()).unwrap();
    std::fs::create_dir(g.cx.auth.path()).unwrap();
    for (name, payload) in [
        ("auth_rotate", json!({"role": "user"})),
        ("auth_token_create", json!({"name": "bob"})),
        ("auth_token_revoke", json!({"name": "carol"})),
    ] {
        assert_eq!(c.err(name, payload), Code::StorageError, "{name}");
        assert_eq!(g.cx.auth.tokens(), before, "{name}");
    }
    assert!(g.cx.auth.reload().is_err());
    assert_eq!(g.cx.auth.tokens(), before);
    std::fs::remove_dir(g.cx.auth.path()).unwrap();
    std::fs::write(g.cx.auth.path(), kept).unwrap();
    c.ok("auth_rotate", json!({"role": "user"}));
}
