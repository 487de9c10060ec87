//! `spiderweb-config` and `spiderweb-control` as a user meets them.

use crate::program::{Gateway, Scratch};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// Exit status, standard output and standard error.
fn run(program: &str, home: &Path, args: &[&str]) -> (i32, String, String) {
    let output = Command::new(program)
        .args(args)
        .env_clear()
        .env("HOME", home)
        .current_dir(home)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

const CONFIG: &str = env!("CARGO_BIN_EXE_spiderweb-config");
const CONTROL: &str = env!("CARGO_BIN_EXE_spiderweb-control");

#[test]
fn settings_are_changed_one_by_one_and_the_rest_stays() {
    let home = Scratch::new();
    let config = |args: &[&str]| run(CONFIG, home.path(), args);
    let (status, path, _) = config(&["config", "path"]);
    let path = Path::new(path.trim()).to_owned();
    assert_eq!((status, path.clone()), (0, home.path().join(".config/spiderweb/config.json")));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, r#"{"mine": [1], "runtime": {"default_agent_id": "ada"}}"#).unwrap();
    for args in [
        &["config", "set-provider", "echo", "some-model"][..],
        &["config", "set-server", "--bind", "127.0.0.2", "--port", "19000"],
        &["config", "set-log", "debug"],
    ] {
        assert_eq!(config(args).0, 0, "{args:?}");
    }
    let saved: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(
        (&saved["mine"], &saved["runtime"]["default_agent_id"]),
        (&json!([1]), &json!("ada"))
    );
    let (_, summary, _) = config(&["config"]);
    for line in
        ["Bind: 127.0.0.2:19000", "Provider: echo/some-model", "Default Agent: ada", "Log: debug"]
    {
        assert!(summary.contains(line), "{line} in {summary}");
    }
    let (_, all, _) = config(&["config", "--json"]);
    let all: Value = serde_json::from_str(&all).unwrap();
    assert_eq!(all["server.port"], json!({"value": 19000, "origin": "file"}));
    assert_eq!(all["server.io_threads"]["origin"], "default");
}

#[test]
fn what_makes_no_sense_is_refused_and_nothing_is_saved() {
    let home = Scratch::new();
    let config = |args: &[&str]| run(CONFIG, home.path(), args);
    for (args, status, word) in [
        (&["config", "set-provider", "nope"][..], 78, "known: echo, openai"),
        (&["config", "set-provider"], 64, "<name>"),
        (&["config", "set-server"], 64, "--port"),
        (&["config", "set-server", "--port", "99999"], 64, "--port"),
        (&["config", "set-server", "--bind", "localhost"], 64, "--bind"),
        (&["config", "set-log", "loud"], 78, "debug"),
        (&["config", "nope"], 64, "set-provider"),
        (&["nope"], 64, "config"),
    ] {
        let (got, _, text) = config(args);
        assert!(got == status && text.contains(word), "{args:?}: {got} {text}");
    }
    assert!(!home.path().join(".config").exists());
    let path = home.path().join("broken.json");
    std::fs::write(&path, "{\n \"server\": oops\n}").unwrap();
    let (status, _, text) =
        config(&["--config", path.to_str().unwrap(), "config", "set-log", "info"]);
    assert!(status == 78 && text.contains("line 2"), "{text}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\n \"server\": oops\n}");
}

#[test]
fn one_control_operation_from_the_shell() {
    let gateway = Gateway::start();
    let tokens = gateway.home.join(".spiderweb-ltm/auth_tokens.json");
    let (url, tokens) = (gateway.url("/"), tokens.to_str().unwrap().to_owned());
    let control = |args: &[&str]| {
        let all: Vec<_> =
            ["--url", &*url, "--auth-token-file", &*tokens].iter().chain(args).copied().collect();
        run(CONTROL, &gateway.home, &all)
    };
    let up = r#"{"name":"Demo","vision":"v","agent_id":"ada"}"#;
    let (status, reply, _) = control(&["project_up", up]);
    let reply: Value = serde_json::from_str(&reply).unwrap();
    assert_eq!((status, &reply["payload"]["project_id"]), (0, &json!("proj-1")));
    let (status, reply, _) = control(&["control.project_get", r#"{"project_id":"proj-1"}"#]);
    assert!(status == 0 && reply.contains(r#""name":"Demo""#), "{reply}");
    let (status, out, text) = control(&["node_get", r#"{"node_id":"node-9"}"#]);
    assert!(status == 66 && out.is_empty() && text.contains("node_not_found"), "{status} {text}");
    let (status, _, text) = control(&["project_up", "{oops"]);
    assert!(status == 64 && text.contains("JSON"), "{text}");
    let (status, _, text) =
        run(CONTROL, &gateway.home, &["--url", &url, "--auth-token", "x", "ping"]);
    assert!(status == 77 && text.contains("--auth-token"), "{status} {text}");
    let (status, _, text) = run(CONTROL, &gateway.home, &["--url", "http://x", "ping"]);
    assert!(status == 65 && text.contains("--url"), "{status} {text}");
}

#[test]
fn a_hangup_takes_over_the_log_level_and_keeps_it_when_the_file_is_broken() {
    let mut gateway = Gateway::start();
    let path = gateway.home.join(".config/spiderweb/config.json");
    assert_eq!(run(CONFIG, &gateway.home, &["config", "set-log", "debug"]).0, 0);
    gateway.program.signal(libc::SIGHUP);
    gateway.program.wait_for("took over log.level");
    std::fs::write(&path, "{oops").unwrap();
    gateway.program.signal(libc::SIGHUP);
    gateway.program.wait_for("not reloaded");
    gateway.admin().control("ping", json!({}));
}
