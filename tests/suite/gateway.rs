//! The gateway from outside: handshakes as they were recorded from the original, refusals, chat, and
//! what is left after `kill -9`.

mod events;
mod metrics;
mod services;

use crate::conformance::Node;
use crate::program::{Client, Gateway, Got, PATIENCE, Scratch};
use serde_json::{Value, json};
use std::time::Instant;

#[test]
fn strangers_are_refused_in_the_words_that_clients_know() {
    let gateway = Gateway::start();
    for token in [None, Some("wrong"), Some("")] {
        let mut client = gateway.open("/", token);
        let refused = client.json();
        assert_eq!(refused["type"], "error");
        assert_eq!(refused["code"], "provider_auth_failed");
        assert!(refused.get("channel").is_none());
        assert_eq!(client.recv(), Got::Closed);
    }
    let admin = gateway.token("admin_token");
    for path in ["/nope", "/v2/agents/default/stream", "/v2/fs/node/a%2Fb"] {
        let mut client = gateway.open(path, Some(&admin));
        assert_eq!(client.json()["code"], "invalid_envelope", "{path}");
        assert_eq!(client.recv(), Got::Closed);
    }
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "426"),
        ("GET /nope HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        ("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", "200"),
        ("GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n", "200"),
        ("GET / HTTP/1.1\r\nHost: x\r\nOrigin: http://evil.example\r\n\r\n", "403"),
        ("nonsense\r\n\r\n", "400"),
    ] {
        let answer = gateway.http(request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request:?}: {answer}");
    }
}

#[test]
fn the_recorded_handshakes() {
    let gateway = Gateway::start();
    let admin = gateway.token("admin_token");
    let open = || gateway.open("/", Some(&admin));
    let version = json!({"channel": "control", "type": "control.version", "id": "v",
        "payload": {"protocol": "unified-v2"}});

    for first in ["control.ping", "control.connect"] {
        let mut client = open();
        let reply = client.ask(json!({"channel": "control", "type": first, "id": "p"}));
        assert_eq!(
            (&reply["id"], &reply["error"]["code"]),
            (&json!("p"), &json!("protocol_mismatch"))
        );
        assert!(reply["error"]["message"].as_str().unwrap().contains("control.version"));
        assert_eq!(client.recv(), Got::Closed);
    }
    for bad in [json!({"protocol": "unified-v1"}), json!(null)] {
        let mut client = open();
        let request =
            json!({"channel": "control", "type": "control.version", "id": "v", "payload": bad});
        assert_eq!(client.ask(request)["error"]["code"], "protocol_mismatch");
        assert_eq!(client.recv(), Got::Closed);
    }
    // What is no message is answered, and the connection stays.
    let mut client = open();
    for (text, fault) in [
        ("not json", "SyntaxError"),
        ("[]", "InvalidEnvelope"),
        ("{}", "MissingField"),
        (r#"{"channel":"control"}"#, "MissingField"),
        (r#"{"type":"session.send","id":"1","content":"hi"}"#, "MissingField"),
        (r#"{"channel":"control","type":"control.bogus","id":"x"}"#, "UnsupportedType"),
        (r#"{"channel":"control","type":"session.send"}"#, "UnsupportedType"),
        (r#"{"channel":"xx","type":"control.ping","id":"x"}"#, "InvalidType"),
        (r#"{"channel":"control","type":"control.version","id":7}"#, "InvalidType"),
    ] {
        client.send(text);
        let reply = client.json();
        assert_eq!(reply["type"], "control.error", "{text}");
        assert_eq!(reply["error"]["code"], "unsupported_legacy_api", "{text}: {reply}");
        assert_eq!(reply["error"]["message"], fault, "{text}");
    }
    let ack = client.ask(version.clone());
    assert_eq!(ack["type"], "control.version_ack");
    assert_eq!(ack["payload"]["fsrpc_node_proto"], 2);
    let pong = client.ask(
        json!({"channel": "control", "type": "control.ping", "id": "p", "payload": {"nonce": 1}}),
    );
    assert_eq!((&pong["type"], &pong["payload"]), (&json!("control.pong"), &json!({})));
    let reply = client.ask(json!({"channel": "control", "type": "control.pong", "id": "q"}));
    assert_eq!(reply["error"]["code"], "unsupported");
    assert_eq!(client.ask(version)["type"], "control.version_ack", "version may be repeated");
}

#[test]
fn acheron_has_an_order_of_its_own() {
    let gateway = Gateway::start();
    let mut client = gateway.open("/", Some(&gateway.token("admin_token")));
    let reply = client.acheron_reply("t_attach", json!({"fid": 1}));
    assert_eq!(reply["error"]["code"], "protocol_mismatch");
    assert!(reply["error"]["message"].as_str().unwrap().contains("acheron.t_version"));
    assert_eq!(client.recv(), Got::Closed);

    let mut client = gateway.admin();
    let version = client.acheron("t_version", json!({"msize": 65536, "version": "acheron-1"}));
    assert_eq!(version, json!({"msize": 65536, "version": "acheron-1"}));
    let reply = client.acheron_reply("t_attach", json!({"fid": 1, "session_key": "nobody"}));
    assert_eq!(reply["error"]["code"], "session_not_found");
    let attached = client.acheron("t_attach", json!({"fid": 1}));
    assert_eq!(attached["qid"], json!({"path": 1, "type": "dir"}));
    assert_eq!(attached["layout"], "unified-v2-fs");
    for (fields, code) in [
        (json!({"fid": 1, "newfid": 2, "path": ["nope"]}), "enoent"),
        (json!({"fid": 9, "newfid": 2, "path": []}), "enoent"),
        (json!({"fid": 1, "path": []}), "invalid"),
        (json!({"fid": 1, "newfid": 2, "path": ["a/b"]}), "invalid"),
        (json!({"fid": 1, "newfid": 2, "path": ["meta", "protocol.json", "x"]}), "enoent"),
    ] {
        let reply = client.acheron_reply("t_walk", fields.clone());
        assert_eq!(reply["error"]["code"], code, "{fields}");
    }
    let walked =
        client.acheron("t_walk", json!({"fid": 1, "newfid": 2, "path": ["meta", "..", "meta"]}));
    assert_eq!(walked["walked"], 3);
    assert_eq!(
        client.acheron_reply("t_read", json!({"fid": 2}))["error"]["code"],
        "invalid",
        "not open"
    );
    assert_eq!(
        client.acheron_reply("t_open", json!({"fid": 2, "mode": "w"}))["error"]["code"],
        "eisdir"
    );
    assert_eq!(client.read("/"), "agents\nglobal\nmeta\nnodes");
    let protocol: Value = serde_json::from_str(&client.read("/meta/protocol.json")).unwrap();
    assert_eq!(protocol["version"], "acheron-1");
    client.acheron("t_walk", json!({"fid": 1, "newfid": 3, "path": ["meta", "protocol.json"]}));
    assert_eq!(
        client.acheron_reply("t_open", json!({"fid": 3, "mode": "rw"}))["error"]["code"],
        "eperm"
    );
    let stat = client.acheron("t_stat", json!({"fid": 3}));
    assert_eq!(
        (&stat["name"], &stat["kind"], &stat["writable"]),
        (&json!("protocol.json"), &json!("file"), &json!(false))
    );
    assert_eq!(client.acheron("t_clunk", json!({"fid": 77})), json!({}));
}

#[test]
fn a_message_becomes_a_job_and_its_result_is_waited_for() {
    let gateway = Gateway::start();
    let mut client = gateway.admin();
    client.control("project_up", json!({"name": "Demo", "vision": "v", "agent_id": "alice"}));
    client.control(
        "session_attach",
        json!({"session_key": "w", "agent_id": "alice", "project_id": "proj-1"}),
    );
    client.attach();
    client.open_path("/agents/self/chat/control/input", "rw");
    let written =
        client.acheron("t_write", json!({"fid": 2, "data": "  hello\n", "correlation_id": "c-1"}));
    assert_eq!(
        (&written["n"], &written["correlation_id"]),
        (&json!(8), &json!("c-1")),
        "{written}"
    );
    let job = written["job"].as_str().unwrap().to_owned();
    assert_eq!(written["result_path"], format!("/agents/self/jobs/{job}/result.txt"));
    assert_eq!(
        client.acheron("t_write", json!({"fid": 2, "data": " \n"}))["n"],
        0,
        "blank is no message"
    );
    assert_eq!(client.read(&format!("/agents/self/jobs/{job}/result.txt")), "Echo: hello");
    let status: Value =
        serde_json::from_str(&client.read(&format!("/agents/self/jobs/{job}/status.json")))
            .unwrap();
    assert_eq!((&status["state"], &status["correlation_id"]), (&json!("done"), &json!("c-1")));
    assert!(client.read(&format!("/global/jobs/{job}/log.txt")).contains("session.receive"));
    assert!(client.read("/agents/self/jobs").contains(&job));

    // Another agent's jobs are not there.
    client.control(
        "session_attach",
        json!({"session_key": "x", "agent_id": "bob", "project_id": "proj-1"}),
    );
    client.acheron("t_attach", json!({"fid": 1}));
    assert!(!client.read("/agents/self/jobs").contains(&job));
    let missing = client.acheron_reply(
        "t_walk",
        json!({"fid": 1, "newfid": 5, "path": ["agents", "self", "jobs", job]}),
    );
    assert_eq!(missing["error"]["code"], "enoent");
    // The first session kept its own fids.
    client.acheron(
        "t_walk",
        json!({"fid": 1, "newfid": 5, "session_key": "w", "path": ["agents", "self", "jobs", job]}),
    );
}

#[test]
fn ziggystarclaw_clients_are_greeted_and_answered() {
    let gateway = Gateway::start();
    let admin = gateway.token("admin_token");
    for path in ["/v1/agents/test/stream", "/"] {
        let mut client = gateway.open(path, Some(&admin));
        let ack = client.json();
        assert_eq!(ack["type"], "session.ack", "{path}");
        assert_eq!(ack["agentId"], if path == "/" { "mother" } else { "test" });
        client.send(r#"{"type":"session.send","id":"test1","content":"Hello from ZiggyStarClaw"}"#);
        let reply = client.json();
        assert_eq!(
            (&reply["type"], &reply["id"]),
            (&json!("session.receive"), &json!("test1")),
            "{reply}"
        );
        assert_eq!(reply["content"], "Echo: Hello from ZiggyStarClaw");
    }
    // Whoever speaks the unified protocol is not greeted, and cannot send so any more.
    let mut client = gateway.admin();
    client.send(r#"{"type":"session.send","id":"1","content":"hi"}"#);
    assert_eq!(client.json()["error"]["code"], "unsupported_legacy_api");
}

#[test]
fn a_users_way_in() {
    let gateway = Gateway::start();
    let mut user = gateway.user();
    let reply = user.acheron_reply("t_version", json!({"version": "acheron-1"}));
    assert_eq!(reply["error"]["code"], "provisioning_required");
    let mut admin = gateway.admin();
    admin.control("project_up", json!({"name": "Demo", "vision": "v", "agent_id": "alice"}));
    let reply = user.acheron_reply("t_version", json!({"version": "acheron-1"}));
    assert_eq!(reply["error"]["code"], "project_context_required");
    assert_eq!(
        user.control_reply("node_list", json!({}))["error"]["code"],
        "project_context_required"
    );
    user.control(
        "session_attach",
        json!({"session_key": "u", "agent_id": "alice", "project_id": "proj-1"}),
    );
    user.attach();
    let view: Value = serde_json::from_str(&user.read("/meta/view.json")).unwrap();
    assert_eq!((&view["agent_id"], &view["project_id"]), (&json!("alice"), &json!("proj-1")));
    let reply = user.acheron_reply("t_attach", json!({"fid": 1, "session_key": "main"}));
    assert_eq!(reply["error"]["code"], "session_not_found", "there is no way to mother");
}

#[test]
fn node_files_are_read_and_written_through_the_namespace_and_fail_over() {
    let gateway = Gateway::start();
    let dirs = [Scratch::new(), Scratch::new()];
    for dir in &dirs {
        std::fs::write(dir.path().join("hello.txt"), "from the node").unwrap();
    }
    let mut nodes: Vec<_> = dirs.iter().map(|d| Some(Node::start(d.path()))).collect();
    let mut admin = gateway.admin();
    let join = |admin: &mut Client, url: String| {
        let invite = admin.control("node_invite_create", json!({}));
        let joined = admin
            .control("node_join", json!({"invite_token": invite["invite_token"], "fs_url": url}));
        (joined["node_id"].as_str().unwrap().to_owned(), joined["node_secret"].clone())
    };
    // These nodes ask for a token of their own; the gateway knows them by the secret it gave, so they
    // are started anew with it.
    let mut ids = Vec::new();
    for (node, dir) in nodes.iter_mut().zip(&dirs) {
        let (id, secret) = join(&mut admin, node.as_ref().unwrap().url());
        *node = Some(Node::with_token(dir.path(), secret.as_str().unwrap()));
        let url = node.as_ref().unwrap().url();
        admin.control(
            "node_lease_refresh",
            json!({"node_id": id, "node_secret": secret, "fs_url": url}),
        );
        ids.push(id);
    }
    let mount = |id: &String| json!({"node_id": id, "export_name": "work", "mount_path": "/src"});
    admin.control(
        "project_up",
        json!({"name": "Demo", "vision": "v", "agent_id": "alice",
        "desired_mounts": [mount(&ids[0]), mount(&ids[1])]}),
    );
    admin.control(
        "session_attach",
        json!({"session_key": "w", "agent_id": "alice", "project_id": "proj-1"}),
    );
    admin.attach();
    assert_eq!(admin.read("/src"), "hello.txt");
    assert_eq!(admin.read("/src/hello.txt"), "from the node");
    assert_eq!(admin.read(&format!("/nodes/{}/fs/hello.txt", ids[0])), "from the node");
    assert_eq!(admin.write("/src/hello.txt", "FROM")["n"], 4);
    assert_eq!(std::fs::read_to_string(dirs[0].path().join("hello.txt")).unwrap(), "FROM the node");

    nodes[0] = None;
    let until = Instant::now() + PATIENCE;
    loop {
        let walked = admin
            .acheron_reply("t_walk", json!({"fid": 1, "newfid": 2, "path": ["src", "hello.txt"]}));
        if walked["ok"] == true && admin.acheron_reply("t_open", json!({"fid": 2}))["ok"] == true {
            break;
        }
        assert!(Instant::now() < until, "no failover: {walked}");
    }
    assert_eq!(admin.read("/src/hello.txt"), "from the node", "the second node's own file");
    let status = admin.control("workspace_status", json!({}));
    assert_eq!(status["mounts"].as_array().unwrap().len(), 1);
    assert_eq!(status["desired_mounts"].as_array().unwrap().len(), 2);
}

#[test]
fn what_was_answered_survives_kill_9() {
    let scratch = Scratch::new();
    let mut gateway = Gateway::at(scratch.path(), "0");
    let mut admin = gateway.admin();
    let invite = admin.control("node_invite_create", json!({}));
    let joined = admin
        .control("node_join", json!({"invite_token": invite["invite_token"], "node_name": "edge"}));
    admin.control("project_up", json!({"name": "Demo", "vision": "v", "agent_id": "alice",
        "desired_mounts": [{"node_id": joined["node_id"], "export_name": "work", "mount_path": "/src"}]}));
    let token = gateway.token("admin_token");
    gateway.program.kill();
    drop(admin);

    let mut gateway = Gateway::at(scratch.path(), "0");
    assert_eq!(gateway.token("admin_token"), token);
    let mut admin = gateway.admin();
    let project = admin.control("project_get", json!({"project_id": "proj-1"}));
    assert_eq!(project["mounts"][0]["mount_path"], "/src");
    let refresh = json!({"node_id": joined["node_id"], "node_secret": joined["node_secret"]});
    admin.control("node_lease_refresh", refresh);
    let again = admin.control_reply("node_join", json!({"invite_token": invite["invite_token"]}));
    assert_eq!(again["error"]["code"], "invite_redeemed");
    gateway.program.signal(libc::SIGTERM);
    assert_eq!(gateway.program.wait(), 0);
}

#[test]
fn starting_wrong_is_explained() {
    use std::process::Command;
    let scratch = Scratch::new();
    let start = |args: &[&str], config: &str| {
        let path = scratch.path().join("config.json");
        std::fs::write(&path, config).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_spiderweb"))
            .args(args)
            .env_clear()
            .env("HOME", scratch.path())
            .env("SPIDERWEB_CONFIG", &path)
            .current_dir(scratch.path())
            .output()
            .unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), config, "the file is left alone");
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (status, text) = start(&[], "{\n  \"server\": {,}\n}");
    assert!(
        status == 78 && text.contains("config.json") && text.contains("line 2"),
        "{status} {text}"
    );
    let (status, text) = start(&[], r#"{"server": {"port": 99999}}"#);
    assert!(status == 78 && text.contains("server.port"), "{status} {text}");
    let (status, text) = start(&["--port", "x"], "{}");
    assert!(status == 78 && text.contains("port"), "{status} {text}");
    let (status, text) = start(&["--prot", "1"], "{}");
    assert!(status == 64 && text.contains("did you mean --port"), "{status} {text}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (status, text) = start(&["--port", &port], "{}");
    assert!(status == 69 && text.contains(&port) && text.contains("in use"), "{status} {text}");
}

#[test]
fn attached_clients_hear_what_their_agent_does_and_others_do_not() {
    let gateway = Gateway::start();
    let (mut admin, mut other) = (gateway.admin(), gateway.admin());
    admin.control("project_up", json!({"name": "Demo", "vision": "v", "agent_id": "alice"}));
    let attach = json!({"session_key": "w", "agent_id": "alice", "project_id": "proj-1"});
    admin.control("session_attach", attach);
    admin.attach();
    admin.write("/agents/self/chat/control/input", "hello");
    let (mut text, mut seq) = (String::new(), 0);
    loop {
        let frame = admin.pushed();
        assert_eq!(
            (&frame["channel"], &frame["session_key"]),
            (&json!("control"), &json!("w")),
            "{frame}"
        );
        assert!(frame["seq"].as_u64().unwrap() > seq, "{frame}");
        seq = frame["seq"].as_u64().unwrap();
        match frame["type"].as_str().unwrap() {
            "agent.progress" if frame["phase"] == "text" => {
                text += frame["detail"].as_str().unwrap()
            }
            "session.receive" => {
                assert_eq!(frame["content"], "Echo: hello");
                break;
            }
            _ => {}
        }
    }
    assert_eq!(text, "Echo: hello", "the pieces are the whole");
    // The other connection has attached to nobody: its next frame is its own reply.
    let pong = other.ask(json!({"channel": "control", "type": "control.ping", "id": "p"}));
    assert_eq!(pong["type"], "control.pong");
}

#[test]
fn the_namespace_is_an_export_of_its_own() {
    use spiderweb::base::{Deadline, Timer, TreePath};
    use spiderweb::net::Net;
    use spiderweb::vfs::remote::{Dial, Peer, Remote};
    use spiderweb::vfs::{Cx, FileKind, OpenFlags, Tree, walk};
    use spiderweb::wire::fs::{Binding, Framing, Hello};
    use std::sync::Arc;

    let gateway = Gateway::start();
    let mut admin = gateway.admin();
    admin.control("project_up", json!({"name": "Demo", "vision": "v", "agent_id": "alice"}));
    let net = Net::start(1, Timer::start().unwrap()).unwrap();
    let remote = |token: &str, agent: Option<&str>, project: Option<&str>| {
        let (agent_id, project_id) = (agent.map(str::to_owned), project.map(str::to_owned));
        let binding = Some(Binding { agent_id, project_id, project_token: None });
        let dial = Dial {
            net: net.clone(),
            url: gateway.url("/v2/fs").parse().unwrap(),
            bearer: Some(gateway.token(token)),
            hello: Hello { binding, ..Hello::default() },
            framing: Framing::Lz4,
            silence: spiderweb::vfs::remote::SILENCE,
        };
        Remote::new(Peer::new(Arc::new(dial)), Some("namespace".into()))
    };
    let cx = Cx::internal(Deadline::after(PATIENCE));
    let path = |p: &str| p.parse::<TreePath>().unwrap();
    let user = remote("user_token", None, Some("proj-1"));
    let view = walk::read_all(&*user, &cx, &path("/meta/view.json"), 9999).unwrap();
    assert!(String::from_utf8(view).unwrap().contains(r#""agent_id":"alice""#));
    assert!(user.peer().status().line.unwrap().compressed, "the gateway is an end of the line");
    let input = walk::resolve(&*user, &cx, &path("/agents/self/chat/control/input")).unwrap();
    let opened = user.open(&cx, input.id, OpenFlags::READ_WRITE).unwrap();
    assert_eq!(opened.kind, FileKind::Message);
    user.write(&cx, opened.handle, 0, "hel".into()).unwrap();
    user.write(&cx, opened.handle, 3, "lo".into()).unwrap();
    let extra = user.flush(&cx, opened.handle).unwrap().extra.unwrap();
    let result = path(extra["result_path"].as_str().unwrap());
    assert_eq!(walk::read_all(&*user, &cx, &result, 9999).unwrap(), b"Echo: hello");
    user.release(&cx, opened.handle).unwrap();

    for (token, agent, project) in [
        ("user_token", None, None),
        ("user_token", Some("mother"), None),
        ("user_token", Some("alice"), Some("system")),
        ("admin_token", None, Some("proj-9")),
    ] {
        let refused = remote(token, agent, project);
        assert!(
            refused.getattr(&cx, spiderweb::vfs::NodeId::ROOT).is_err(),
            "{agent:?} {project:?}"
        );
    }
    net.stop(Deadline::after_ms(1000));
}

#[test]
fn a_model_works_on_a_nodes_files_with_its_tools() {
    let (home, dir) = (Scratch::new(), Scratch::new());
    std::fs::write(dir.path().join("todo.txt"), "buy milk\n").unwrap();
    let script = json!([{"match": "tidy", "steps": [
        {"tool": "file_list", "arguments": {"path": "/src"}},
        {"tool": "file_read", "arguments": {"path": "/src/todo.txt"}},
        {"tool": "file_write", "arguments": {"path": "/src/done/report.txt", "content": "milk bought"}},
        {"text": "It is tidy now."}]}]);
    std::fs::write(home.path().join("script.json"), script.to_string()).unwrap();
    let gateway = Gateway::at(home.path(), "0");
    let mut admin = gateway.admin();
    let invite = admin.control("node_invite_create", json!({}));
    let joined = admin.control("node_join", json!({"invite_token": invite["invite_token"]}));
    let node = Node::with_token(dir.path(), joined["node_secret"].as_str().unwrap());
    admin.control(
        "node_lease_refresh",
        json!({"node_id": joined["node_id"],
        "node_secret": joined["node_secret"], "fs_url": node.url()}),
    );
    admin.control("project_up", json!({"name": "Demo", "vision": "v", "agent_id": "alice",
        "desired_mounts": [{"node_id": joined["node_id"], "export_name": "work", "mount_path": "/src"}]}));
    admin.control(
        "session_attach",
        json!({"session_key": "w", "agent_id": "alice", "project_id": "proj-1"}),
    );
    admin.attach();
    let job = admin.write("/agents/self/chat/control/input", "tidy up, please")["job"].clone();
    let job = job.as_str().unwrap();
    assert_eq!(admin.read(&format!("/agents/self/jobs/{job}/result.txt")), "It is tidy now.");
    let report = std::fs::read_to_string(dir.path().join("done/report.txt")).unwrap();
    assert_eq!(report, "milk bought");
    let log = admin.read(&format!("/agents/self/jobs/{job}/log.txt"));
    for part in ["file_list", "todo.txt", "buy milk", "file_write"] {
        assert!(log.contains(part), "{part} in {log}");
    }
}
