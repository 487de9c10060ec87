//! The commands, from a shell.

use super::{Node, TOKEN, failed, ok, program, run};
use crate::conformance::Scratch;
use std::io::Write;
use std::process::Stdio;

#[test]
fn commands_read_and_change_an_export() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path().join("a.txt"), "hello\n").unwrap();
    std::fs::create_dir(scratch.path().join("d")).unwrap();
    let node = Node::start(scratch.path(), false);
    let endpoint = format!("a={}#work", node.url());
    let fs = |args: &[&str]| run(&[&["--endpoint", &endpoint], args].concat());

    let root = ok(fs(&["readdir", "/"]));
    assert!(root.starts_with(r#"{"ents":[{"name":"a","attr":{"id":"#), "{root}");
    assert!(root.ends_with("\"next_cookie\":0}\n"), "{root}");
    let listed = ok(fs(&["readdir", "/a"]));
    for part in [r#""name":".""#, r#""name":"..""#, r#""name":"a.txt""#, r#""eof":true"#, "dir_gen"]
    {
        assert!(listed.contains(part), "{part} in {listed}");
    }
    assert!(!ok(fs(&["readdir", "/a", "0", "1"])).contains(r#""eof":true"#));
    assert_eq!(ok(fs(&["cat", "/a/a.txt"])), "hello\n");
    let attr = ok(fs(&["getattr", "/a/a.txt"]));
    assert!(attr.contains(r#""k":1,"m":33188,"n":1"#) && attr.contains(r#""sz":6"#), "{attr}");

    assert_eq!(ok(fs(&["write", "/a/w.txt", "hello-world"])), "ok\n");
    assert_eq!(ok(fs(&["write", "/a/a.txt", "XY"])), "ok\n");
    assert_eq!(ok(fs(&["cat", "/a/a.txt"])), "XY");
    assert_eq!(ok(fs(&["mkdir", "/a/new"])), "ok\n");
    assert_eq!(ok(fs(&["rename", "/a/w.txt", "/a/new/w2.txt"])), "ok\n");
    assert_eq!(ok(fs(&["truncate", "/a/new/w2.txt", "3"])), "ok\n");
    assert_eq!(ok(fs(&["cat", "/a/new/w2.txt"])), "hel");
    assert_eq!(ok(fs(&["unlink", "/a/new/w2.txt"])), "ok\n");
    assert_eq!(ok(fs(&["rmdir", "/a/new"])), "ok\n");

    for (args, status, words) in [
        (&["getattr", "/a/nope"][..], 66, "spiderweb-fs-mount: /a/nope: "),
        (&["cat", "/a/nope"], 66, "/a/nope"),
        (&["unlink", "/a/nope"], 66, "/a/nope"),
        (&["readdir", "/zzz"], 66, "/zzz"),
        (&["readdir", "/a/a.txt"], 65, "not a directory"),
        (&["write", "/a/../../etc/x", "y"], 65, "invalid child name \"..\""),
        (&["cat", "/a/../x"], 65, "invalid child name \"..\""),
        (&["bogus"], 64, "unknown command: bogus"),
        (&["truncate", "/a/a.txt", "much"], 64, "\"much\" is not a number"),
        (&["cat"], 64, "<path> is missing"),
        (&["--project-token", "t", "status"], 64, "--project-token needs --project-id"),
        (&["--project-id", "p", "status"], 64, "--project-id needs --workspace-url"),
        (&["--agent-id", "p", "status"], 64, "--agent-id needs --workspace-url"),
        (&["--read-only", "write", "/a/a.txt", "y"], 64, "--read-only is for mount"),
        (&["-o", "ro", "write", "/a/a.txt", "y"], 64, "-o is for mount"),
        (&["-o", "workspace", "mount", "/nowhere"], 64, "give --workspace-url"),
        (&["--no-probe", "cat", "/a/a.txt"], 64, "--no-probe is for status"),
        (&["write", "/a/d", "x"], 65, "mount: /a/d: is a directory"),
        (&["get", "/a/a.txt", ""], 64, "[local] is empty"),
        (&["put", "", "/a/x"], 64, "<local> is empty"),
        (&["mount", ""], 64, "<mountpoint> is empty"),
        (&["status", "--mount", ""], 64, "--mount is empty"),
        (&["--log-file=", "mount", "x"], 64, "--log-file is empty"),
        (&["--endpoint-token-file", "a=", "status"], 64, "a=\": write NAME=FILE"),
    ] {
        let (code, errors) = failed(fs(args));
        assert_eq!(code, status, "{args:?}: {errors}");
        assert!(errors.contains(words), "{args:?}: {errors}");
    }
    // A token that would be used for nothing.
    let without = program(&["--endpoint", &endpoint, "--auth-token", "t", "readdir", "/a"]);
    let without = { without }.output().unwrap();
    let said = String::from_utf8_lossy(&without.stderr).into_owned();
    assert!(said.contains("--auth-token has no effect without --workspace-url"), "{said}");
    ok(without);
    // What cannot be printed was not shown.
    for args in [&["readdir", "/a"][..], &["status"], &["--help"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let args = [&["--endpoint", &endpoint], args].concat();
        let (code, errors) = failed(program(&args).stdout(full).output().unwrap());
        assert!(code == 74 && errors.contains("standard output: no space left"), "{errors}");
    }
}

#[test]
fn large_files_stream_through_standard_input_and_output() {
    let scratch = Scratch::new();
    let node = Node::start(scratch.path(), false);
    let endpoint = format!("a={}", node.url());
    let content: Vec<u8> =
        (0..5_000_000u32).flat_map(|n| (n.wrapping_mul(7) as u16).to_le_bytes()).collect();
    let mut child = program(&["--endpoint", &endpoint, "write", "/a/big", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&content).unwrap();
    assert_eq!(ok(child.wait_with_output().unwrap()), "ok\n");
    assert!(std::fs::read(scratch.path().join("big")).unwrap() == content);
    let read = run(&["--endpoint", &endpoint, "cat", "/a/big"]);
    assert!(read.status.success() && read.stdout == content);
}

#[test]
fn status_tells_of_every_endpoint() {
    let scratch = Scratch::new();
    let node = Node::start(scratch.path(), true);
    let url = node.url();
    let (here, gone) = (format!("a={url}"), "b=ws://127.0.0.1:9/v2/fs#x@/else");
    let args = ["--endpoint", &here, "--endpoint", gone, "status"];
    let parsed: serde_json::Value = serde_json::from_str(&ok(run(&args))).unwrap();
    assert_eq!(parsed["metrics"]["failover_events_total"], 0);
    let (a, b) = (&parsed["endpoints"][0], &parsed["endpoints"][1]);
    assert_eq!((&a["healthy"], &a["export_ro"]), (&true.into(), &true.into()));
    assert_eq!((&a["mount_path"], &a["url"]), (&"/a".into(), &url.into()));
    assert_eq!((&a["source_kind"], &a["has_auth"]), (&"linux".into(), &true.into()));
    assert!(a["root"].as_u64().unwrap() > 0 && a["last_success_ms"].as_i64().unwrap() > 0);
    assert_eq!((&b["healthy"], &b["mount_path"]), (&false.into(), &"/else".into()));
    assert!(b["export_ro"].is_null() && b["last_error"].as_str().unwrap().contains("refused"));
    let cold = ok(run(&[&args[..], &["--no-probe"]].concat()));
    assert!(cold.contains(r#""healthy":false,"has_client":false,"has_auth":true,"consecutive_failures":0,"last_health_check_ms":0"#), "{cold}");
}

#[test]
fn tokens_come_from_files_or_the_environment_and_never_show() {
    let scratch = Scratch::new();
    let node = Node::start(scratch.path(), false);
    let endpoint = format!("a={}", node.url());
    let file = scratch.path().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let given = format!("a={}", file.display());
    let list = ["--endpoint", &endpoint, "readdir", "/a"];
    let (code, errors) =
        failed(program(&list).env("SPIDERWEB_FS_TOKEN", "wrong").output().unwrap());
    assert!(code == 69 && errors.contains("AuthFailed") && !errors.contains("wrong"), "{errors}");
    // Refused before anything was asked.
    let elsewhere = format!("a={}/other", node.url());
    let (code, errors) = failed(run(&["--endpoint", &elsewhere, "readdir", "/a"]));
    assert!(code == 69 && errors.contains("invalid FS endpoint path"), "{errors}");
    let with_file = [&list[..], &["--endpoint-token-file", &given]].concat();
    ok(program(&with_file).env("SPIDERWEB_FS_TOKEN", "wrong").output().unwrap());
    let (code, errors) =
        failed(run(&[&list[..], &["--endpoint-token-file", "b=/dev/null"]].concat()));
    assert!(code == 64 && errors.contains("the file is empty"), "{errors}");
    // The variable of an endpoint comes before that of all, a file before both.
    let named = |name: &str, value: &str| {
        let mut named = program(&list);
        named.env("SPIDERWEB_FS_TOKEN", "wrong").env(name, value).output().unwrap()
    };
    ok(named("SPIDERWEB_FS_TOKEN_A", TOKEN));
    failed(named("SPIDERWEB_FS_TOKEN_B", TOKEN));
    let odd = format!("my-node.1={}", node.url());
    let mut odd = program(&["--endpoint", &odd, "readdir", "/my-node.1"]);
    ok(odd
        .env_remove("SPIDERWEB_FS_TOKEN")
        .env("SPIDERWEB_FS_TOKEN_MY_NODE_1", TOKEN)
        .output()
        .unwrap());
    std::fs::write(&file, "two\nlines").unwrap();
    let (code, errors) = failed(run(&with_file));
    assert!(code == 64 && errors.contains("a token is one line"), "{errors}");
    std::fs::write(&file, b"\xff\xfe").unwrap();
    let (code, errors) = failed(run(&with_file));
    assert!(code == 64 && errors.contains("a token must be UTF-8"), "{errors}");
    std::fs::write(&file, TOKEN).unwrap();
    let twice = [&with_file[..], &["--endpoint-token-file", &given]].concat();
    let (code, errors) = failed(run(&twice));
    assert!(code == 64 && errors.contains("endpoint \"a\" has one already"), "{errors}");
    let other = format!("b={}", file.display());
    let (code, errors) = failed(run(&[&list[..], &["--endpoint-token-file", &other]].concat()));
    assert!(code == 64 && errors.contains("there is no endpoint \"b\""), "{errors}");
}

#[test]
fn two_endpoints_on_one_path_stand_in_for_each_other() {
    let (first, second) = (Scratch::new(), Scratch::new());
    std::fs::write(first.path().join("x"), "first").unwrap();
    std::fs::write(second.path().join("x"), "second").unwrap();
    let (node, other) = (Node::start(first.path(), false), Node::start(second.path(), false));
    let (a, b) = (format!("a={}@/m", node.url()), format!("b={}@/m", other.url()));
    let cat = ["--endpoint", &a, "--endpoint", &b, "cat", "/m/x"];
    assert_eq!(ok(run(&cat)), "first");
    drop(node);
    assert_eq!(ok(run(&cat)), "second");
}
