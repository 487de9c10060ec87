//! The file of tokens, and what tokens prove.

use super::*;
use crate::store::testing::TempDir;
use std::os::unix::fs::PermissionsExt;

#[test]
fn tokens_are_made_once_and_what_is_unknown_is_kept() {
    let dir = TempDir::new();
    let path = dir.path("ltm/auth_tokens.json");
    let (first, made) = Tokens::load_or_create(&path).unwrap();
    assert!(made && first.admin_token.starts_with("sw-admin_"));
    assert_eq!(Tokens::load_or_create(&path).unwrap(), (first.clone(), false));

    let text = r#"{"schema":1,"admin_token":"a","user_token":"u","updated_at_ms":5,"mine":{"x":1},
        "user_last_target":{"agent_id":"alice","project_id":"proj-1"}}"#;
    std::fs::write(&path, text).unwrap();
    let old = Tokens::load(&path).unwrap();
    let (new, ()) = Tokens::update(&path, |tokens| {
        tokens.reset();
        Ok(())
    })
    .unwrap();
    assert_eq!(Tokens::load(&path).unwrap(), new);
    assert_ne!(new.admin_token, "a");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!((new.other, new.user_last_target), (old.other, old.user_last_target));
}

#[test]
fn a_file_that_cannot_be_read_is_never_replaced() {
    let dir = TempDir::new();
    let path = dir.path("auth_tokens.json");
    let same = r#"{"schema":3,"admin_token":"a","user_token":"a"}"#;
    let empty = r#"{"schema":3,"admin_token":"","user_token":"u"}"#;
    let hash = r#"{"schema":3,"admin_token":"a","user_token":"u","tokens":[
        {"name":"x","role":"user","hash":"abc","created_at_ms":1}]}"#;
    for text in ["", "{", "[]", same, empty, hash, r#"{"schema":3,"admin_token":"a"}"#] {
        std::fs::write(&path, text).unwrap();
        let e = Tokens::load_or_create(&path).unwrap_err();
        assert_eq!(e.code, Code::Config);
        assert!(e.message.contains("move it away"), "{e}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
}

#[test]
fn a_named_token_is_kept_as_a_hash_and_ends_when_revoked_or_expired() {
    let mut tokens = Tokens::generate();
    let token = tokens.add("bob", Role::User, Some(1_000)).unwrap();
    let text = serde_json::to_string(&tokens).unwrap();
    assert!(!text.contains(&token), "{text}");
    let now_ms = tokens.tokens[0].created_at_ms;
    let bob = tokens.identify(&token, now_ms).unwrap();
    assert_eq!((&*bob.name, bob.role), ("bob", Role::User));
    assert_eq!(tokens.next_expiry_ms(now_ms), Some(now_ms + 1_000));
    assert!(tokens.admits(&bob, now_ms + 999) && !tokens.admits(&bob, now_ms + 1_000));
    assert_eq!(tokens.identify(&token, now_ms + 1_000), None);
    let badge = bob.badge();
    assert!(badge.starts_with("bob#") && !badge.contains(&token), "{badge}");
    assert_eq!(tokens.bearer(&badge, now_ms), Some(bob.clone()));
    assert_eq!(tokens.bearer(&badge, now_ms + 1_000), None);
    for other in ["bob", "bob#", "bo#0", &badge[..badge.len() - 1]] {
        assert_eq!(tokens.bearer(other, now_ms), None, "{other}");
    }

    assert_eq!(tokens.add("bob", Role::User, None).unwrap_err().code, Code::Eexist);
    for bad in ["", "admin", "a b", "node", &"x".repeat(65)] {
        let refused = tokens.add(bad, Role::User, None).unwrap_err();
        assert_eq!(refused.code, Code::InvalidPayload, "{bad}");
    }
    for bad in [0, -1, i64::MAX] {
        let refused = tokens.add("eve", Role::User, Some(bad)).unwrap_err();
        assert_eq!(refused.code, Code::InvalidPayload, "{bad}");
    }
    tokens.revoke("bob").unwrap();
    assert!(!tokens.admits(&bob, now_ms));
    assert_eq!(tokens.revoke("bob").unwrap_err().code, Code::NotFound);
    // The same name again is somebody else.
    tokens.add("bob", Role::User, None).unwrap();
    assert!(!tokens.admits(&bob, now_ms));
}

#[test]
fn a_rotated_token_ends_connections_only_when_it_is_revoked() {
    let mut tokens = Tokens::generate();
    let old = tokens.user_token.clone();
    let user = tokens.identify(&old, 0).unwrap();
    let new = tokens.rotate(Role::User, false);
    assert_eq!(tokens.identify(&old, 0), None);
    assert!(tokens.admits(&user, 0) && tokens.identify(&new, 0).is_some());
    tokens.rotate(Role::User, true);
    assert!(!tokens.admits(&user, 0));
    assert!(tokens.identify(&tokens.admin_token, 0).unwrap().role == Role::Admin);
}

#[test]
fn what_is_shown_of_a_token_does_not_give_it_away() {
    let token = id::bearer_token("sw-admin_");
    let shown = masked(&token);
    assert!(shown.starts_with("sw-admin_...") && shown.len() == 16, "{shown}");
    assert_eq!(masked("short_secret"), "...");
    assert_eq!(masked("plain"), "...");
    assert_eq!(
        fingerprint("abc"),
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
}
