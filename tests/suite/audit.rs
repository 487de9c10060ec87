//! The audit log of the built gateway: what is in it after `kill -9`, who came and who was refused, and
//! what it says when somebody has changed it.

use crate::mount::until;
use crate::program::{Client, Gateway, Got, Scratch};
use serde_json::{Value, json};
use spiderweb::store::rusqlite::Connection;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;

/// All records that a filter admits, newest first, page by page.
fn records(admin: &mut Client, filter: &Value) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::new();
    loop {
        let mut payload = filter.clone();
        payload["limit"] = json!(100);
        if let Some(last) = all.last() {
            payload["before_id"] = last["id"].clone();
        }
        let answer = admin.control("audit_tail", payload);
        let page = answer["audit"].as_array().unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page.iter().cloned());
    }
}

fn assert_intact(admin: &mut Client) {
    let answer = admin.control("audit_tail", json!({"limit": 0, "verify": true}));
    assert_eq!(answer["verified"]["intact"], true, "{answer}");
    assert_eq!(answer["broken"], Value::Null, "{answer}");
}

/// Sends requests that make projects, and tells of each that was answered, until the gateway is gone.
fn make_projects(mut client: Client, round: usize, worker: usize, told: &mpsc::Sender<String>) {
    for n in 0..40 {
        let id = format!("r{round}-w{worker}-{n}");
        let payload = json!({"name": id, "vision": "v"});
        let request = json!({"channel": "control", "type": "control.project_create", "id": id,
            "payload": payload});
        if !client.try_send(request) {
            break;
        }
    }
    while let Got::Json(reply) = client.recv() {
        assert_eq!(reply["ok"], true, "{reply}");
        let _ = told.send(reply["id"].as_str().unwrap().to_owned());
    }
}

#[test]
fn every_answered_mutation_has_its_record_after_kill_9() {
    let scratch = Scratch::new();
    let mut answered = BTreeSet::new();
    for (round, kill_after) in [1, 20, 60].into_iter().enumerate() {
        let mut gateway = Gateway::at(scratch.path(), "0");
        // Before the others, so that the kill finds them at work.
        let mut admin = gateway.admin();
        let token = format!("t{round}");
        admin.control("auth_token_create", json!({"name": token}));
        let (told, heard) = mpsc::channel();
        std::thread::scope(|s| {
            for worker in 0..4 {
                let (client, told) = (gateway.admin(), told.clone());
                s.spawn(move || make_projects(client, round, worker, &told));
            }
            drop(told);
            answered.extend(heard.iter().take(kill_after));
            gateway.program.kill();
            answered.extend(heard);
        });
        assert!(answered.len() >= kill_after);

        let mut gateway = Gateway::at(scratch.path(), "0");
        let mut admin = gateway.admin();
        assert_intact(&mut admin);
        let made = records(&mut admin, &json!({"operation": "project_create", "result": "ok"}));
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        let recorded: BTreeSet<_> = made.iter().map(|r| text(&r["correlation_id"])).collect();
        assert!(answered.is_subset(&recorded), "{:?}", answered.difference(&recorded));
        // Neither is there without the other.
        let ids: BTreeSet<_> = made.iter().map(|r| text(&r["about"]["project_id"][0])).collect();
        let list = admin.control("project_list", json!({}));
        let projects = list["projects"].as_array().unwrap().iter().map(|p| text(&p["project_id"]));
        let projects: BTreeSet<_> = projects.filter(|id| id != "system").collect();
        assert_eq!(ids, projects);
        let tokens = records(&mut admin, &json!({"operation": "auth_token_create"}));
        assert_eq!(tokens[0]["about"]["name"], json!([token]));
        gateway.program.kill();
    }
}

#[test]
fn who_came_and_who_was_refused_is_recorded_and_told() {
    let gateway = Gateway::start();
    let mut admin = gateway.admin();
    admin.control("debug_subscribe", json!({"categories": ["control.security"]}));
    drop(gateway.user());
    for _ in 0..20 {
        gateway.open("/", Some("wrong")).recv();
    }
    let mut fs = gateway.open("/v2/fs", None);
    let hello = json!({"protocol": "unified-v2-fs", "proto": 2, "auth_token": "wrong"});
    fs.acheron_reply("t_fs_hello", json!({"payload": hello}));
    let mut fs = gateway.open("/v2/fs", Some(&gateway.token("admin_token")));
    fs.acheron("t_fs_hello", json!({"payload": {"protocol": "unified-v2-fs", "proto": 2}}));

    let of = |admin: &mut Client, name: &str| records(admin, &json!({"operation": name}));
    until("the user to have gone", || !of(&mut admin, "connection.ended").is_empty());
    let ended = of(&mut admin, "connection.ended");
    assert_eq!((&ended[0]["principal"], &ended[0]["role"]), (&json!("user"), &json!("user")));
    let accepted = of(&mut admin, "connection.accepted");
    let places: Vec<_> = accepted.iter().map(|r| &r["about"]["endpoint"][0]).collect();
    assert_eq!(places, ["/v2/fs", "/", "/"]);
    let refused = of(&mut admin, "connection.refused");
    // Of those at one door not each is recorded; none knows a token.
    assert!(refused.iter().all(|r| r["error_code"] == "provider_auth_failed"));
    assert_eq!((refused.len(), &refused[0]["principal"]), (8, &Value::Null), "{refused:?}");
    assert!(refused[0]["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
    let mut events = Vec::new();
    while let Some(event) = admin.try_pushed() {
        events.extend((event["category"] == "control.security").then_some(event));
    }
    assert_eq!(events.len(), 8, "{events:?}");
    assert_eq!(events[0]["payload"]["event"], "connection_refused");
    assert_eq!(events[0]["payload"]["error_code"], "provider_auth_failed");
    assert_intact(&mut admin);
}

#[test]
fn what_is_left_out_is_counted_at_the_end_at_the_latest() {
    let scratch = Scratch::new();
    let mut gateway = Gateway::at(scratch.path(), "0");
    for _ in 0..20 {
        gateway.open("/", Some("wrong")).recv();
    }
    gateway.program.signal(libc::SIGTERM);
    assert_eq!(gateway.program.wait(), 0);
    let gateway = Gateway::at(scratch.path(), "0");
    let mut admin = gateway.admin();
    let refused = records(&mut admin, &json!({"operation": "connection.refused"}));
    let left_out: Vec<_> = refused.iter().map(|r| r["left_out"].as_u64().unwrap()).collect();
    assert_eq!(left_out, [12, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_log_that_was_changed_is_said_so_and_stops_nothing() {
    let scratch = Scratch::new();
    let mut gateway = Gateway::at(scratch.path(), "0");
    let mut admin = gateway.admin();
    for name in ["One", "Two", "Three"] {
        admin.control("project_create", json!({"name": name, "vision": "v"}));
    }
    let two = records(&mut admin, &json!({"about": "proj-2"}))[0]["id"].clone();
    gateway.program.signal(libc::SIGTERM);
    assert_eq!(gateway.program.wait(), 0);
    let database = scratch.path().join(".spiderweb-ltm/runtime-memory.db");
    let conn = Connection::open(database).unwrap();
    let forged = conn.execute(
        "UPDATE kv SET value = CAST(replace(CAST(value AS TEXT), 'proj-2', 'proj-8') AS BLOB)
         WHERE key LIKE 'audit/row/%' AND CAST(value AS TEXT) LIKE '%\"proj-2\"%'",
        [],
    );
    assert_eq!(forged.unwrap(), 1);
    drop(conn);
    let mut gateway = Gateway::at(scratch.path(), "0");
    // Before it listens, or soon after.
    let said = "the audit log was changed by something else";
    if gateway.program.said(said) == 0 {
        gateway.program.wait_for(said);
    }
    let mut admin = gateway.admin();
    admin.control("project_create", json!({"name": "Four", "vision": "v"}));
    for payload in [json!({}), json!({"verify": true})] {
        let answer = admin.control("audit_tail", payload);
        assert_eq!(answer["broken"]["id"], two, "{answer}");
    }
}

/// Exit status, standard output and standard error of `spiderweb-config audit`.
fn offline(home: &Path, key: Option<&str>, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spiderweb-config"));
    command.args(args).env_clear().env("HOME", home).current_dir(home);
    let key = key.map(|key| ("SPIDERWEB_CONTROL_STATE_KEY_HEX", key));
    let output = command.envs(key).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_log_is_read_and_checked_without_the_gateway() {
    const KEY: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    for key in [None, Some(KEY)] {
        let scratch = Scratch::new();
        let home = scratch.path();
        let audit = |args: &[&str]| offline(home, key, &[&["audit"], args].concat());
        assert_eq!(audit(&["verify"]).0, 66, "there is no state yet");
        let env: Vec<_> =
            key.map(|key| ("SPIDERWEB_CONTROL_STATE_KEY_HEX", key)).into_iter().collect();
        let mut gateway = Gateway::with(home, "0", &env);
        let mut admin = gateway.admin();
        admin.control("project_create", json!({"name": "One", "vision": "v"}));
        // While it runs.
        let (status, first, e) = audit(&["verify"]);
        assert_eq!(status, 0, "{e}");
        let noted = first.trim_end().rsplit_once(' ').unwrap().1.to_owned();
        let (status, tail, e) = audit(&["tail", r#"{"operation":"project_create","limit":5}"#]);
        let tail: Value = serde_json::from_str(&tail).expect(&e);
        assert_eq!((status, tail["audit"].as_array().unwrap().len()), (0, 1), "{tail}");
        assert_eq!(audit(&["tail", r#"{"limit":-1}"#]).0, 65);
        assert_eq!(audit(&["tail", "[]"]).0, 65);

        admin.control("project_create", json!({"name": "Two", "vision": "v"}));
        gateway.program.kill();
        let (status, all, e) = audit(&["--json", "--expect", &noted, "verify"]);
        assert_eq!(status, 0, "{e}");
        let all: Value = serde_json::from_str(&all).unwrap();
        assert_eq!(all["intact"], true, "{all}");
        let (id, hash) = noted.split_once(':').unwrap();
        let other = format!("{id}:{}", "0".repeat(64));
        let late = format!("999999:{hash}");
        for (wrong, status) in [(&*other, 65), (&late, 65), (id, 64), ("x:y", 64)] {
            assert_eq!(audit(&["--expect", wrong, "verify"]).0, status, "{wrong}");
        }
        if key.is_some() {
            assert_eq!(offline(home, None, &["audit", "verify"]).0, 78);
            continue;
        }
        // Somebody writes history anew.
        let conn = Connection::open(home.join(".spiderweb-ltm/runtime-memory.db")).unwrap();
        let sql =
            "UPDATE kv SET value = CAST(replace(value, 'project_create', 'project_delete') AS BLOB)
                   WHERE key LIKE 'audit/row/%'";
        assert!(conn.execute(sql, []).unwrap() >= 2);
        drop(conn);
        let (status, _, e) = audit(&["verify"]);
        assert!(status == 65 && e.contains("changed by something else: record"), "{status} {e}");
    }
}
