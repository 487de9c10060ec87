//! Grants: a client sees the exports that its token names, and no way leads to others.

use super::daemon;
use super::protocol::{Node, export};
use super::raw::{Raw, eventually};
use serde_json::{Value, json};
use spiderweb::base::{Deadline, Name, Timer, now_ms};
use spiderweb::mount::endpoint::Endpoint;
use spiderweb::mount::world::{Source, World};
use spiderweb::net::Net;
use spiderweb::vfs::{Local, LocalOptions, NodeId, OpenFlags, Read, Tree};
use spiderweb::wire::fs::{Access, Framing, Grant, Rights};
use std::process::Command;
use std::sync::Arc;

const SECRET: &str = "the-secret-of-this-node";
const SESSION: &str = "0123456789abcdef";

/// Exports one directory as `work`, `docs` and `hidden`, all of them writable.
fn start() -> Node {
    Node::with(Some(SECRET), |dir| {
        let tree = || -> Arc<dyn Tree> {
            Arc::new(Local::open(dir.path(), LocalOptions::default()).unwrap())
        };
        ["hidden", "work", "docs"].map(|name| export(name, tree(), false)).into()
    })
}

fn token(rights: &[(&str, Access)], sub: &str, ttl_s: u64) -> String {
    let exports: Rights = rights.iter().map(|(name, a)| ((*name).to_owned(), *a)).collect();
    let expires_at_s = now_ms() as u64 / 1000 + ttl_s;
    Grant { exports, sub: sub.into(), expires_at_s }.mint(SECRET).unwrap()
}

const BOTH: [(&str, Access); 2] = [("work", Access::ReadWrite), ("docs", Access::ReadOnly)];

fn hello(c: &mut Raw, token: &str) -> bool {
    let ops = ["setattr", "link", "copy", "walk", "allocate", "seek", "getlk", "readlink"];
    let ext = json!({"v": 1, "bin": 0, "ops": ops, "session": SESSION});
    let reply = c.hello(json!({"auth_token": token, "ext": ext, "subscribe_invalidations": true}));
    reply["ext"]["resumed"] == true
}

fn exports(c: &mut Raw) -> Vec<(String, u64, bool)> {
    let listed = c.call("exports", json!({}), json!({}));
    let one = |e: &Value| {
        let text = e["name"].as_str().unwrap().to_owned();
        (text, e["root"].as_u64().unwrap(), e["ro"].as_bool().unwrap())
    };
    listed["exports"].as_array().unwrap().iter().map(one).collect()
}

fn on(node: u64) -> Value {
    json!({"node": node})
}

/// A session that has all rights, so that the roots are known.
fn roots(node: &Node) -> Vec<u64> {
    let mut all = node.raw();
    all.hello(json!({"auth_token": SECRET}));
    exports(&mut all).into_iter().map(|(_, root, _)| root).collect()
}

#[test]
fn what_a_grant_does_not_name_is_not_there_whatever_is_asked() {
    let node = start();
    let hidden = roots(&node)[0];
    std::fs::write(node.dir.path().join("f"), "x").unwrap();
    let mut all = node.raw();
    all.hello(json!({"auth_token": SECRET}));
    let found = all.call("lookup", on(hidden), json!({"name": "f"}));
    let file = found["attr"]["id"].as_u64().unwrap();

    let mut c = node.raw();
    hello(&mut c, &token(&BOTH, "u", 600));
    let seen = exports(&mut c);
    let names: Vec<_> = seen.iter().map(|(name, _, ro)| (&**name, *ro)).collect();
    assert_eq!(names, [("work", false), ("docs", true)]);
    let work = seen[0].1;
    let named = json!({"name": "f"});
    for (op, of, payload) in [
        ("lookup", hidden, named.clone()),
        ("getattr", file, json!({})),
        ("readdirp", hidden, json!({"cookie": 0, "max": 10})),
        ("open", file, json!({"flags": 0})),
        ("open", file, json!({"flags": 2})),
        ("create", hidden, json!({"name": "new", "flags": 2})),
        ("truncate", file, json!({"sz": 0})),
        ("unlink", hidden, named.clone()),
        ("mkdir", hidden, json!({"name": "d"})),
        ("rmdir", hidden, json!({"name": "d"})),
        ("statfs", hidden, json!({})),
        ("symlink", hidden, json!({"name": "l", "target": "f"})),
        ("setxattr", file, json!({"name": "user.a", "value_b64": "eA=="})),
        ("getxattr", file, json!({"name": "user.a"})),
        ("listxattr", file, json!({})),
        ("removexattr", file, json!({"name": "user.a"})),
        ("setattr", file, json!({"mode": 0o600})),
        ("readlink", file, json!({})),
        ("walk", hidden, json!({"names": ["f"]})),
    ] {
        let (errno, message) = c.fails(op, on(of), payload);
        assert_eq!((errno, &*message), (libc::ENOENT, "unknown node"), "{op}");
    }
    for (from, to) in [(hidden, work), (work, hidden)] {
        let payload =
            json!({"old_parent": from, "old_name": "f", "new_parent": to, "new_name": "g"});
        assert_eq!(c.fails("rename", json!({}), payload).0, libc::ENOENT);
    }
    // The file of another session is not reached by its number either.
    let opened = all.call("open", on(file), json!({"flags": 0}));
    let (h, read) = (json!({"h": opened["h"]}), json!({"off": 0, "len": 9}));
    assert_eq!(c.fails("read", h, read).0, libc::EBADF);
    assert_eq!(std::fs::read(node.dir.path().join("f")).unwrap(), b"x");
    assert!(!node.dir.path().join("new").exists());
}

#[test]
fn an_export_is_read_only_where_the_grant_says_so() {
    let node = start();
    std::fs::write(node.dir.path().join("f"), "x").unwrap();
    let mut c = node.raw();
    hello(&mut c, &token(&BOTH, "u", 600));
    let seen = exports(&mut c);
    let (work, docs) = (seen[0].1, seen[1].1);
    let made = json!({"name": "d"});
    assert_eq!(c.fails("mkdir", on(docs), made.clone()).0, libc::EROFS);
    c.call("mkdir", on(work), made);
    let file = c.call("lookup", on(docs), json!({"name": "f"}))["attr"]["id"].as_u64().unwrap();
    assert_eq!(c.fails("open", on(file), json!({"flags": 2})).0, libc::EROFS);
    let h = json!({"h": c.call("open", on(file), json!({"flags": 0}))["h"]});
    let read = c.call("read", h, json!({"off": 0, "len": 9}));
    assert_eq!(read["data_b64"], "eA==");
}

#[test]
fn nobody_hears_of_what_he_does_not_see() {
    let node = start();
    let mut c = node.raw();
    hello(&mut c, &token(&[("work", Access::ReadWrite)], "u", 600));
    let work = exports(&mut c)[0].1;
    let mut all = node.raw();
    all.hello(json!({"auth_token": SECRET}));
    let roots = roots(&node);
    for (n, root) in roots.iter().enumerate() {
        all.call("mkdir", on(*root), json!({"name": format!("d{n}")}));
    }
    eventually("an event", || {
        c.call("getattr", on(work), json!({}));
        (!c.events.is_empty()).then_some(())
    });
    // What was made in `hidden` was announced before.
    let of = |e: &Value| ["node", "dir"].iter().find_map(|k| e["payload"][*k].as_u64());
    for event in &c.events {
        assert_eq!(of(event).map(|id| id >> 40), Some(work >> 40), "{event}");
    }
}

#[test]
fn a_session_is_resumed_only_with_the_same_rights() {
    let node = start();
    let mut c = node.raw();
    assert!(!hello(&mut c, &token(&BOTH, "u", 600)));
    drop(c);
    let only_work = [BOTH[0]];
    let more = [("work", Access::ReadWrite), ("docs", Access::ReadWrite)];
    for other in [
        SECRET.to_owned(),
        token(&only_work, "u", 600),
        token(&more, "u", 600),
        token(&BOTH, "another", 600),
    ] {
        assert!(!hello(&mut node.raw(), &other));
    }
    // A newer grant of the same rights is as good.
    let mut again = node.raw();
    assert!(hello(&mut again, &token(&BOTH, "u", 900)));
    // On the connection too, rights stay what they are.
    let payload =
        |token: &str| json!({"protocol": "unified-v2-fs", "proto": 2, "auth_token": token});
    again.call("hello", json!({}), payload(&token(&BOTH, "u", 1200)));
    let (errno, message) = again.fails("hello", json!({}), payload(SECRET));
    assert!(errno == libc::EACCES && message.contains("other rights"), "{message}");
    again.closes();
}

#[test]
fn a_grant_that_expires_ends_its_connection_unless_a_newer_one_comes() {
    let node = start();
    let (mut ends, mut stays) = (node.raw(), node.raw());
    ends.hello(json!({"auth_token": token(&BOTH, "u", 3)}));
    stays.hello(json!({"auth_token": token(&BOTH, "u", 3)}));
    stays.hello(json!({"auth_token": token(&BOTH, "u", 600)}));
    assert_eq!(ends.closed_with(), (1008, "the grant has expired".into()));
    assert_eq!(exports(&mut stays).len(), 2);

    let refused = |token: &str| {
        let payload = json!({"protocol": "unified-v2-fs", "proto": 2, "auth_token": token});
        let mut c = node.raw();
        let (errno, message) = c.fails("hello", json!({}), payload);
        c.closes();
        assert_eq!(errno, libc::EINVAL);
        message
    };
    assert_eq!(refused(&token(&BOTH, "u", 0)), "AuthFailed: the grant has expired");
    let rights: Rights = [("work".to_owned(), Access::ReadOnly)].into();
    let forged = Grant { exports: rights, sub: "u".into(), expires_at_s: u64::MAX };
    let forged = forged.mint("another secret").unwrap();
    assert!(refused(&forged).starts_with("AuthFailed: the grant was not made"));
    assert_eq!(refused("swg1.x"), "AuthFailed: the grant is malformed");
}

#[test]
fn programs_make_grants_that_the_gateway_and_a_listening_node_take() {
    let (gateway, dir) = (daemon::Gateway::start(), daemon::place());
    let member = daemon::Node::member(&gateway, dir.path(), Some(&gateway.invite()));
    let id = daemon::node_id(dir.path());
    gateway.reads(&format!("/nodes/{id}/fs/a.txt"), b"hello");
    let open = || Raw::open(gateway.addr, &format!("/v2/fs/node/{id}"), None);
    let grant =
        |spec| daemon::Node::grant(&["--grant", spec, "--state-file", "state.json"], dir.path());

    let mut c = open();
    c.hello(json!({"auth_token": grant("work:ro")}));
    let seen = exports(&mut c);
    assert_eq!((&*seen[0].0, seen[0].2, seen.len()), ("work", true, 1));
    c.call("lookup", on(seen[0].1), json!({"name": "a.txt"}));
    assert_eq!(c.fails("mkdir", on(seen[0].1), json!({"name": "d"})).0, libc::EROFS);
    let mut c = open();
    c.hello(json!({"auth_token": grant("other")}));
    assert_eq!(exports(&mut c), []);
    assert_eq!(c.fails("getattr", on(seen[0].1), json!({})).0, libc::ENOENT);
    let args = ["--grant", "work", "--auth-token", "not-the-secret"];
    let forged = daemon::Node::grant(&args, dir.path());
    let payload = json!({"protocol": "unified-v2-fs", "proto": 2, "auth_token": forged});
    assert_eq!(open().fails("hello", json!({}), payload).0, libc::EACCES);
    assert!(!member.log().contains("swg1."));

    // A node that listens, and offers a terminal.
    let args = ["--port", "0", "--auth-token", SECRET, "--export", "w=files", "--terminal-id", "1"];
    let alone = daemon::Node::start(&args, &[], dir.path());
    alone.says("FS node websocket server listening at ws://127.0.0.1:");
    let log = alone.log();
    let addr = log.split("ws://").nth(1).unwrap().split('/').next().unwrap().to_owned();
    let names = |token: &str| {
        let mut c = Raw::open(addr.parse().unwrap(), "/v2/fs", None);
        c.hello(json!({"auth_token": token}));
        exports(&mut c).into_iter().map(|(name, ..)| name).collect::<Vec<_>>()
    };
    assert_eq!(names(SECRET), ["w", "terminal-1"]);
    let args = ["--grant", "w", "--grant-ttl", "1h", "--auth-token", SECRET];
    let token = daemon::Node::grant(&args, dir.path());
    assert_eq!(names(&token), ["w"]);

    // The mount's verbs give it as any token.
    let list = |path: &str| {
        let endpoint = format!("w=ws://{addr}/v2/fs#w@/w");
        let hidden = format!("t=ws://{addr}/v2/fs#terminal-1@/t");
        let mut command = Command::new(env!("CARGO_BIN_EXE_spiderweb-fs-mount"));
        command.args(["--endpoint", &endpoint, "--endpoint", &hidden]);
        command
            .args(["readdir", path])
            .env_clear()
            .env("SPIDERWEB_FS_TOKEN", &token)
            .output()
            .unwrap()
    };
    let seen = list("/w");
    assert!(String::from_utf8_lossy(&seen.stdout).contains("a.txt"), "{seen:?}");
    assert!(!list("/t").status.success());
}

#[test]
fn a_mount_goes_on_with_a_newer_grant_and_its_files_stay_open() {
    let node = start();
    std::fs::write(node.dir.path().join("f"), "hello").unwrap();
    let timer = Timer::start().unwrap();
    let net = Net::start(1, timer.clone()).unwrap();
    let world = World::new(net.clone(), 30_000, Some(0), Framing::Binary, None).unwrap();
    let source = |ttl_s| {
        let spec = format!("w=ws://{}/v2/fs#work@/", node.listener.addr());
        let endpoint: Endpoint = spec.parse().unwrap();
        Source::from(Endpoint { token: Some(token(&BOTH, "u", ttl_s)), ..endpoint })
    };
    let first = world.attach(&source(3));
    let cx = world.cx();
    let file = first.remote.lookup(&cx, NodeId::ROOT, Name::text("f").unwrap()).unwrap();
    let opened = first.remote.open(&cx, file.id, OpenFlags::READ).unwrap();
    world.set(vec![first.clone()]).unwrap();

    let next = world.attach(&source(600));
    assert!(Arc::ptr_eq(&first.remote, &next.remote));
    world.set(vec![next]).unwrap();
    eventually("the end of the first grant", || {
        (first.remote.peer().status().last_failure_ms > 0).then_some(())
    });
    let read = eventually("the file", || first.remote.read(&world.cx(), opened.handle, 0, 9).ok());
    assert!(matches!(read, Read::Data { bytes, .. } if &bytes[..] == b"hello"));
    world.stop();
    net.stop(Deadline::after_ms(1000));
    timer.stop();
}

#[test]
fn a_workspace_opens_its_mounts_to_who_sees_it_and_nothing_else_of_the_node() {
    let (gateway, dir) = (daemon::Gateway::start(), daemon::place());
    let (url, invite) = (format!("ws://{}/", gateway.addr), gateway.invite());
    let args = ["--control-url", &url, "--export", "work=files", "--terminal-id", "1"];
    let args = [&args[..], &["--state-file", "state.json"]].concat();
    let _member = daemon::Node::start(&args, &[("SPIDERWEB_INVITE_TOKEN", &invite)], dir.path());
    let id = daemon::node_id(dir.path());
    gateway.reads(&format!("/nodes/{id}/fs/a.txt"), b"hello");
    let mut admin = gateway.admin();
    eventually("the routed URL", || {
        let reply = admin.control("node_get", json!({"node_id": id})).unwrap();
        reply["node"]["fs_url"].as_str().unwrap().ends_with(&id).then_some(())
    });
    let mount = json!({"mount_path": "/src", "node_id": id, "export_name": "work"});
    let up = json!({"name": "P", "vision": "v", "agent_id": "alice", "desired_mounts": [mount]});
    let up = admin.control("project_up", up).unwrap();
    let made = admin.control("auth_token_create", json!({"name": "ann", "role": "user"})).unwrap();
    let bearer = made["token"].as_str().unwrap();
    let mut user = Raw::open(gateway.addr, "/", Some(bearer));
    user.control("version", json!({"protocol": "unified-v2"})).unwrap();
    user.control("connect", json!({})).unwrap();
    let attach = json!({"session_key": "w", "agent_id": "alice", "project_id": up["project_id"]});
    user.control("session_attach", attach).unwrap();

    let token = |c: &mut Raw| {
        let seen = c.control("workspace_status", json!({"project_id": "proj-1"})).unwrap();
        seen["mounts"][0]["fs_auth_token"].as_str().unwrap().to_owned()
    };
    let names = |token: &str| {
        let mut c = Raw::open(gateway.addr, &format!("/v2/fs/node/{id}"), None);
        c.hello(json!({"auth_token": token}));
        exports(&mut c).into_iter().map(|(name, ..)| name).collect::<Vec<_>>()
    };
    let secret = daemon::state(dir.path())["node_secret"].as_str().unwrap().to_owned();
    assert_eq!(names(&secret), ["work", "terminal-1"]);
    for token in [token(&mut user), token(&mut admin)] {
        assert!(Grant::is_one(&token), "{token}");
        assert_eq!(names(&token), ["work"]);
    }
    // What agents and people read as a file holds no token.
    let file = gateway.read("/meta/workspace_status.json").unwrap();
    let file: Value = serde_json::from_slice(&file).unwrap();
    assert!(!file.to_string().contains("swg1."), "{file}");

    let mut command = Command::new(env!("CARGO_BIN_EXE_spiderweb-fs-mount"));
    command.args(["--workspace-url", &url, "--project-id", "proj-1", "cat", "/src/a.txt"]);
    let read = command.env_clear().env("SPIDERWEB_AUTH_TOKEN", bearer).output().unwrap();
    assert_eq!(read.stdout, b"hello", "{read:?}");

    // A user who has attached nothing mounts the project that he names.
    let made = admin.control("auth_token_create", json!({"name": "eve", "role": "user"})).unwrap();
    let eve = made["token"].as_str().unwrap();
    let mount = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spiderweb-fs-mount"));
        command.args(["--workspace-url", &url]).args(args);
        command.env_clear().env("SPIDERWEB_AUTH_TOKEN", eve).output().unwrap()
    };
    let read = mount(&["--project-id", "proj-1", "cat", "/src/a.txt"]);
    assert_eq!(read.stdout, b"hello", "{read:?}");
    let nothing = mount(&["cat", "/src/a.txt"]);
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("--project-id"), "{nothing:?}");

    // What was handed out counts no longer than the token it was handed out for.
    let (anns, admins) = (token(&mut user), token(&mut admin));
    let mut at_it = Raw::open(gateway.addr, &format!("/v2/fs/node/{id}"), None);
    at_it.hello(json!({"auth_token": anns}));
    admin.control("auth_token_revoke", json!({"name": "ann"})).unwrap();
    let (code, reason) = at_it.closed_with();
    assert_eq!(code, 1008, "{reason}");
    admin.control("auth_token_create", json!({"name": "ann", "role": "user"})).unwrap();
    let mut late = Raw::open(gateway.addr, &format!("/v2/fs/node/{id}"), None);
    let hello = json!({"protocol": "unified-v2-fs", "proto": 2, "auth_token": anns});
    let (errno, message) = late.fails("hello", json!({}), hello);
    assert!(errno == libc::EACCES && message.contains("revoked"), "{errno} {message}");
    assert_eq!(names(&admins), ["work"]);
}
