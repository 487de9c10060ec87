//! What the gateway tells of by itself: services of nodes, debug events, and the logs of both.

use crate::mount::until;
use crate::program::{Client, Gateway, Program, Scratch};
use serde_json::{Value, json};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A node that has joined: its id, and its secret.
fn node(admin: &mut Client, name: &str) -> Value {
    let invite = admin.control("node_invite_create", json!({}));
    let join = json!({"invite_token": invite["invite_token"], "node_name": name});
    let joined = admin.control("node_join", join);
    json!({"node_id": joined["node_id"], "node_secret": joined["node_secret"]})
}

/// Publishes one service of a version.
fn publish(admin: &mut Client, node: &Value, version: &str) -> Value {
    let mut payload = node.clone();
    payload["services"] = json!([{"service_id": "camera", "kind": "camera", "state": "online",
        "version": version, "endpoints": ["/nodes/x/camera"], "capabilities": {"api_key": "hidden"}}]);
    admin.control("node_service_upsert", payload)
}

fn version(event: &Value) -> &str {
    assert_eq!(event["type"], "control.node_service_event", "{event}");
    assert_eq!((&event["channel"], &event["ok"]), (&json!("control"), &json!(true)));
    assert!(event.get("id").is_none(), "{event}");
    event["payload"]["services"][0]["version"].as_str().unwrap()
}

/// A gateway with variables of the environment set.
fn gateway(home: &Path, variables: &[(&str, &str)]) -> Gateway {
    Gateway::with(home, "0", variables)
}

#[test]
fn a_watcher_is_told_what_was_and_then_what_comes_without_a_gap() {
    let gateway = Gateway::start();
    let mut admin = gateway.admin();
    let (edge, other) = (node(&mut admin, "edge"), node(&mut admin, "other"));
    for n in 1..=3 {
        publish(&mut admin, &edge, &n.to_string());
    }
    publish(&mut admin, &other, "x");
    let mut watcher = gateway.admin();
    let ack =
        watcher.control("node_service_watch", json!({"node_id": "node-1", "replay_limit": 2}));
    assert_eq!(
        ack,
        json!({"enabled": true, "node_id": "node-1", "replay_limit": 2, "replayed": 2, "seq": 4})
    );
    let before: Vec<_> = std::iter::from_fn(|| watcher.try_pushed()).collect();
    assert_eq!(before.iter().map(version).collect::<Vec<_>>(), ["2", "3"], "oldest first");
    let answered = publish(&mut admin, &edge, "4");
    publish(&mut admin, &other, "y");
    publish(&mut admin, &edge, "4");
    publish(&mut admin, &edge, "5");
    let event = watcher.pushed();
    assert_eq!((&event["payload"], &event["seq"]), (&answered, &json!(5)));
    assert_eq!(event["payload"]["service_delta"]["changed"], true);
    let same = watcher.pushed();
    assert_eq!(
        (&same["payload"]["service_delta"]["changed"], &same["seq"]),
        (&json!(false), &json!(6)),
        "every upsert is told, as old clients expect"
    );
    assert_eq!((version(&same), version(&watcher.pushed())), ("4", "5"));

    // Another one that knows the fifth goes on from there; what changed nothing is not repeated.
    let mut late = gateway.admin();
    let ack = late.control("node_service_watch", json!({"after_seq": 5}));
    assert_eq!((&ack["replayed"], &ack["resync"]), (&json!(2), &json!(false)));
    assert_eq!((version(&late.pushed()), version(&late.pushed())), ("y", "5"));
    assert_eq!(late.control("node_service_unwatch", json!({})), json!({"enabled": false}));
    publish(&mut admin, &edge, "6");
    late.control("ping", json!({}));
    assert!(late.try_pushed().is_none());
    assert_eq!(version(&watcher.pushed()), "6");

    // The whole stays when the gateway is killed, secrets left out.
    let token = gateway.token("admin_token");
    assert!(!token.is_empty());
    let log = gateway.home.join(".spiderweb-ltm/node-service-events.ndjson");
    let lines = || std::fs::read_to_string(&log).unwrap_or_default();
    until("the last to be in the log", || lines().lines().count() == 8);
    assert_eq!(std::fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
    let line: Value = serde_json::from_str(lines().lines().next().unwrap()).unwrap();
    assert_eq!((&line["node_id"], &line["seq"]), (&json!("node-1"), &json!(1)));
    let payload: Value = serde_json::from_str(line["payload_json"].as_str().unwrap()).unwrap();
    assert_eq!(payload["services"][0]["version"], "1");
    assert!(!lines().contains("hidden"));
}

#[test]
fn who_comes_and_goes_while_much_happens_misses_nothing_and_hears_nothing_twice() {
    let gateway = Gateway::start();
    let mut admin = gateway.admin();
    let edge = node(&mut admin, "edge");
    let publisher = std::thread::spawn(move || {
        for n in 1..=400 {
            publish(&mut admin, &edge, &n.to_string());
        }
    });
    let mut last = 0;
    for visit in 1.. {
        let mut client = gateway.admin();
        let ask = json!({"after_seq": last, "replay_limit": visit % 3});
        let ack = client.control("node_service_watch", ask);
        assert_eq!(ack["resync"], false);
        let replayed = ack["replayed"].as_u64().unwrap();
        for _ in 0..replayed.max(7).min(400 - last) {
            let event = client.pushed();
            assert_eq!(
                (version(&event), &event["seq"]),
                (&*(last + 1).to_string(), &json!(last + 1))
            );
            last += 1;
        }
        if last == 400 {
            break;
        }
    }
    publisher.join().unwrap();
}

#[test]
fn history_and_numbers_outlive_a_gateway_that_is_killed() {
    let home = Scratch::new();
    let mut first = gateway(home.path(), &[]);
    let mut admin = first.admin();
    let edge = node(&mut admin, "edge");
    publish(&mut admin, &edge, "1");
    publish(&mut admin, &edge, "2");
    let log = home.path().join(".spiderweb-ltm/node-service-events.ndjson");
    until("both to be in the log", || {
        std::fs::read_to_string(&log).is_ok_and(|t| t.lines().count() == 2)
    });
    first.program.kill();
    drop(admin);
    // As if it had been killed in the middle of a line, of a log far larger than what is read.
    let old = std::fs::read(&log).unwrap();
    let mut text = "x\n".repeat(20 << 20).into_bytes();
    text.extend(old);
    text.extend(b"{\"timestamp_ms\":1,\"node");
    std::fs::write(&log, text).unwrap();

    let second = gateway(home.path(), &[]);
    let mut admin = second.admin();
    let ack = admin.control("node_service_watch", json!({"after_seq": 0}));
    assert_eq!(
        (&ack["replayed"], &ack["seq"], &ack["resync"]),
        (&json!(2), &json!(2), &json!(false))
    );
    assert_eq!((version(&admin.pushed()), version(&admin.pushed())), ("1", "2"));
    publish(&mut admin, &edge, "3");
    let event = admin.pushed();
    assert_eq!((version(&event), &event["seq"]), ("3", &json!(3)));
}

#[test]
fn variables_decide_who_may_watch_and_how_much_is_kept() {
    let home = Scratch::new();
    let mut refused = Program::start(Gateway::command(
        home.path(),
        "0",
        &[("SPIDERWEB_NODE_SERVICE_WATCH_REPLAY_MAX", "lots")],
    ));
    refused.wait_for("SPIDERWEB_NODE_SERVICE_WATCH_REPLAY_MAX");
    assert_eq!(refused.wait(), 78);
    let gateway = gateway(
        home.path(),
        &[
            ("SPIDERWEB_NODE_SERVICE_WATCH_ALLOW_ADMIN", "no"),
            ("SPIDERWEB_NODE_SERVICE_WATCH_ALLOW_USER", "1"),
            ("SPIDERWEB_NODE_SERVICE_EVENT_LOG_ROTATE_MAX_BYTES", "2000"),
            ("SPIDERWEB_NODE_SERVICE_EVENT_LOG_ARCHIVE_KEEP", "2"),
        ],
    );
    let mut admin = gateway.admin();
    let reply = admin.control_reply("node_service_watch", json!({}));
    assert_eq!(reply["error"]["code"], "forbidden");
    let edge = node(&mut admin, "edge");
    let mount = json!([{"node_id": "node-1", "export_name": "work", "mount_path": "/src"}]);
    admin.control(
        "project_up",
        json!({"name": "Demo", "vision": "v", "agent_id": "alice",
        "desired_mounts": mount}),
    );
    let mut user = gateway.user();
    user.control(
        "session_attach",
        json!({"session_key": "w", "agent_id": "alice", "project_id": "proj-1"}),
    );
    user.control("node_service_watch", json!({}));
    let strange = node(&mut admin, "strange");
    publish(&mut admin, &strange, "hidden");
    publish(&mut admin, &edge, "1");
    assert_eq!(version(&user.pushed()), "1", "nothing of what his project does not mount");
    // What may be heard is asked anew for each event.
    admin.control("project_mount_remove", json!({"project_id": "proj-1", "mount_path": "/src"}));
    publish(&mut admin, &edge, "2");
    user.control("ping", json!({}));
    assert!(user.try_pushed().is_none());

    for n in 0..40 {
        publish(&mut admin, &edge, &format!("v{n}"));
    }
    let archives = || archives(&gateway.home, "node-service-events-");
    until("the log to be rotated", || {
        let names = archives();
        names.len() == 2 && names.iter().all(|n| n.to_string_lossy().ends_with(".ndjson.gz"))
    });
}

fn archives(home: &Path, prefix: &str) -> Vec<PathBuf> {
    let dir = std::fs::read_dir(home.join(".spiderweb-ltm")).unwrap();
    let all = dir.map(|e| e.unwrap().path());
    all.filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with(prefix)).collect()
}

#[test]
fn a_watcher_that_does_not_read_holds_up_nobody_and_learns_what_it_missed() {
    let home = Scratch::new();
    let gateway = gateway(home.path(), &[("SPIDERWEB_NODE_SERVICE_EVENT_HISTORY_MAX", "64")]);
    let mut admin = gateway.admin();
    let edge = node(&mut admin, "edge");
    let (mut slow, mut quick) = (gateway.admin(), gateway.admin());
    slow.control("node_service_watch", json!({}));
    quick.control("node_service_watch", json!({}));
    let help = "x".repeat(60_000);
    let events = 300;
    for n in 1..=events {
        let mut payload = edge.clone();
        payload["services"] = json!([{"service_id": "camera", "kind": "camera", "state": "online",
            "version": n.to_string(), "endpoints": ["/nodes/x/camera"], "help_md": help}]);
        admin.control("node_service_upsert", payload);
        assert_eq!(version(&quick.pushed()), n.to_string());
    }
    let figures = admin.control("metrics", json!({}))["node_service_watch"].clone();
    assert_eq!(figures["subscribers"], json!({"current": 2, "peak": 2}));
    assert_eq!(figures["fanout"]["events_total"], events);
    assert_eq!(
        (&figures["retained"]["events"], &figures["retained"]["capacity"]),
        (&json!(64), &json!(64))
    );
    let mut resyncs = 0;
    let mut last = 0;
    while last < events {
        let event = slow.pushed();
        let seq = event["seq"].as_u64().unwrap();
        assert!(seq > last);
        assert_eq!(seq != last + 1, event["resync"] == true, "a gap is marked, and nothing else");
        resyncs += u32::from(seq != last + 1);
        last = seq;
    }
    assert!(resyncs > 0, "the sockets took everything; more is needed to fill them");
}

/// The next event of a category; others are passed over.
fn next(client: &mut Client, category: &str) -> Value {
    loop {
        let event = client.pushed();
        assert_eq!(event["type"], "debug.event", "{event}");
        assert!(event.get("channel").is_none() && event["seq"].is_u64(), "{event}");
        if event["category"] == category {
            return event["payload"].clone();
        }
    }
}

#[test]
fn debug_events_tell_each_what_he_may_see() {
    let gateway = Gateway::start();
    let mut admin = gateway.admin();
    let edge = node(&mut admin, "edge");
    for (name, agent) in [("One", "alice"), ("Two", "bob")] {
        admin.control("project_up", json!({"name": name, "vision": "v", "agent_id": agent}));
    }
    let (mut watcher, mut user) = (gateway.admin(), gateway.user());
    watcher.control("debug_subscribe", json!({}));
    watcher.pushed();
    // A user who has attached nothing names what he looks at.
    let mut observer = gateway.user();
    let topology = json!(["control.workspace_topology"]);
    for (payload, code) in [
        (json!({}), "project_context_required"),
        (json!({"project_id": "proj-404"}), "project_not_found"),
        (json!({"project_id": "proj-1", "agent_id": "mother"}), "forbidden"),
    ] {
        let reply = observer.control_reply("debug_subscribe", payload);
        assert_eq!(reply["error"]["code"], code);
    }
    observer.control("debug_subscribe", json!({"project_id": "proj-1", "categories": topology}));
    observer.pushed();
    let attach = json!({"session_key": "w", "agent_id": "alice", "project_id": "proj-1"});
    user.control("session_attach", attach);
    let attached = next(&mut watcher, "control.session_attach_state");
    assert_eq!(
        (&attached["binding"], &attached["state"]),
        (&json!("alice\u{1f}proj-1"), &json!("ready"))
    );
    let unknown = user.control_reply("debug_subscribe", json!({"categories": ["control.nope"]}));
    assert_eq!(unknown["error"]["code"], "invalid_payload");
    assert!(unknown["error"]["message"].as_str().unwrap().contains("control.nope"));
    let forbidden = json!({"categories": ["control.security"]});
    assert_eq!(user.control_reply("debug_subscribe", forbidden)["error"]["code"], "forbidden");
    let refused = next(&mut watcher, "control.security");
    assert_eq!(
        (&refused["control_type"], &refused["error_code"], &refused["role"]),
        (&json!("control.debug_subscribe"), &json!("forbidden"), &json!("user"))
    );
    user.control("debug_subscribe", json!({}));
    user.pushed();

    let mount = |project: &str, path: &str| json!({"project_id": project, "node_id": "node-1", "export_name": "work", "mount_path": path});
    admin.control("project_mount_set", mount("proj-2", "/two"));
    let availability = next(&mut watcher, "control.workspace_availability");
    assert_eq!(availability["event"], "workspace_availability_changed");
    assert_eq!(availability["before"]["mounts"]["total"], 0);
    assert_eq!(
        (&availability["after"]["nodes"], &availability["after"]["mounts"]["online"]),
        (&json!({"online": 1, "total": 1}), &json!(1))
    );
    let report = next(&mut watcher, "control.reconcile");
    assert_eq!(report["projects"].as_array().unwrap().len(), 3, "{report}");

    admin.control("project_mount_set", mount("proj-1", "/one"));
    let told = next(&mut user, "control.workspace_topology");
    assert_eq!(
        (&told["project_id"], &told["reason"]),
        (&json!("proj-1"), &json!("project_changed"))
    );
    let delta = next(&mut user, "control.workspace_topology_delta");
    assert_eq!(
        (&delta["agent_id"], &delta["status"]["agent_id"]),
        (&json!("alice"), &json!("alice"))
    );
    assert_eq!(delta["status"]["mounts"][0]["mount_path"], "/one");
    let observed = next(&mut observer, "control.workspace_topology");
    assert_eq!(observed["project_id"], "proj-1", "not the other one, which has changed before");
    let availability = next(&mut user, "control.workspace_availability");
    assert_eq!(availability["after"]["mounts"]["total"], 1, "of his project alone");
    let delta = next(&mut watcher, "control.workspace_topology_delta");
    assert_eq!(delta["status"]["mounts"][0]["fs_auth_token"], Value::Null, "not even for admins");

    // A lease that runs out by itself is told, too.
    let mut lease = edge.clone();
    lease["lease_ttl_ms"] = json!(1);
    admin.control("node_lease_refresh", lease);
    let availability = next(&mut user, "control.workspace_availability");
    assert_eq!(availability["reason"], "availability_changed");
    assert_eq!(availability["after"]["mounts"]["degraded"], 1);

    admin.control("project_delete", json!({"project_id": "proj-1"}));
    loop {
        let told = next(&mut user, "control.workspace_topology");
        if told["reason"] == "project_deleted" {
            break assert_eq!(told["project_id"], "proj-1");
        }
    }
    logged(&gateway, edge["node_secret"].as_str().unwrap());
}

#[test]
fn a_subscriber_that_does_not_read_misses_events_and_is_told_so() {
    let gateway = Gateway::start();
    let mut admin = gateway.admin();
    node(&mut admin, "edge");
    admin.control("project_up", json!({"name": "Demo", "vision": "v", "activate": false}));
    let (mut slow, mut quick) = (gateway.admin(), gateway.admin());
    slow.control("debug_subscribe", json!({}));
    let topology = json!({"categories": ["control.workspace_topology"]});
    quick.control("debug_subscribe", topology);
    quick.pushed();
    // With each change comes a long status.
    for n in 0..100 {
        let path = |m: usize| format!("/{n}-{m}/{}", "x".repeat(200));
        let mount = |m| json!({"node_id": "node-1", "export_name": "work", "mount_path": path(m)});
        let mounts: Vec<_> = (0..200).map(mount).collect();
        let up = json!({"project_id": "proj-1", "activate": false, "desired_mounts": mounts});
        admin.control("project_up", up);
        assert_eq!(next(&mut quick, "control.workspace_topology")["reason"], "project_changed");
    }
    slow.pushed();
    let mut last = 0;
    loop {
        let event = slow.pushed();
        let seq = event["seq"].as_u64().unwrap();
        if seq != last + 1 {
            assert!(seq > last);
            assert_eq!(event["payload"]["reason"], "resync", "the first after a gap");
            break;
        }
        last = seq;
    }
    slow.control("ping", json!({}));
}

/// Every category is in the log, and nobody's secret.
fn logged(gateway: &Gateway, secret: &str) {
    let path = gateway.home.join(".spiderweb-ltm/debug-stream.ndjson");
    let mut text = String::new();
    until("the end to be in the log", || {
        text = std::fs::read_to_string(&path).unwrap_or_default();
        text.contains("project_deleted")
    });
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut categories = Vec::new();
    for line in text.lines() {
        let [ms, agent_id, event] = line.splitn(3, '\t').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        assert!(ms.parse::<u64>().is_ok() && !agent_id.is_empty(), "{line}");
        let event: Value = serde_json::from_str(event).unwrap();
        assert_eq!(event["type"], "debug.event");
        categories.push(event["category"].as_str().unwrap().to_owned());
    }
    for name in [
        "workspace_topology",
        "workspace_topology_delta",
        "workspace_availability",
        "reconcile",
        "session_attach_state",
        "security",
    ] {
        assert!(categories.contains(&format!("control.{name}")), "{name}");
    }
    assert!(!text.contains(secret) && !text.contains(&gateway.token("admin_token")));
}

#[test]
fn what_agents_do_is_logged_and_a_log_that_grew_is_compressed() {
    let home = Scratch::new();
    let dir = home.path().join(".spiderweb-ltm");
    std::fs::create_dir(&dir).unwrap();
    let log = dir.join("debug-stream.ndjson");
    let old = "1\tmother\t{}\n".repeat((8 << 20) / 12);
    std::fs::write(&log, &old).unwrap();
    for n in 1..=9 {
        std::fs::write(dir.join(format!("debug-stream-{n}.ndjson")), "old\n").unwrap();
    }
    let gateway = gateway(home.path(), &[]);
    let mut admin = gateway.admin();
    admin.control("project_up", json!({"name": "Demo", "vision": "v", "agent_id": "alice"}));
    let attach = json!({"session_key": "w", "agent_id": "alice", "project_id": "proj-1"});
    admin.control("session_attach", attach);
    admin.attach();
    admin.write("/agents/self/chat/control/input", "say sk-abcdefghijklmnopqrstuvwxyz");
    let frames = |text: &str| {
        let of_alice = text.lines().filter(|l| l.split('\t').nth(1) == Some("alice"));
        of_alice.filter(|l| l.contains("session.receive")).count()
    };
    let packed = || {
        let mut all = archives(home.path(), "debug-stream-");
        all.retain(|p| p.to_str().unwrap().ends_with(".gz"));
        all.pop()
    };
    // The rotation may come before or after the frame.
    let texts = || {
        let mut text = std::fs::read_to_string(&log).unwrap_or_default();
        if let Some(file) = packed().and_then(|p| std::fs::File::open(p).ok()) {
            let _ = flate2::read::GzDecoder::new(file).read_to_string(&mut text);
        }
        text
    };
    until("the reply to be logged and the log rotated", || {
        packed().is_some() && frames(&texts()) == 1
    });
    let text = texts();
    assert!(text.contains("runtime.frame") && !text.contains("sk-abcdef"));
    assert!(text.contains(&old), "nothing is lost by rotating");
    until("what is too old to be gone", || archives(home.path(), "debug-stream-").len() == 8);
    assert!(
        !dir.join("debug-stream-2.ndjson").exists() && dir.join("debug-stream-9.ndjson").exists()
    );
}

#[test]
fn a_log_that_cannot_be_written_is_said_once_and_hinders_nobody() {
    let home = Scratch::new();
    let log = home.path().join(".spiderweb-ltm/node-service-events.ndjson");
    // In its place something that takes no lines.
    std::fs::create_dir_all(&log).unwrap();
    let mut gateway = gateway(home.path(), &[]);
    let mut admin = gateway.admin();
    admin.control("node_service_watch", json!({}));
    let edge = node(&mut admin, "edge");
    publish(&mut admin, &edge, "1");
    gateway.program.wait_for("its lines are lost until it can be written");
    publish(&mut admin, &edge, "2");
    assert_eq!((version(&admin.pushed()), version(&admin.pushed())), ("1", "2"));
    std::fs::remove_dir(&log).unwrap();
    publish(&mut admin, &edge, "3");
    gateway.program.wait_for("is written again");
    assert_eq!(gateway.program.said("its lines are lost"), 1);
    until("the next to be there", || {
        std::fs::read_to_string(&log).is_ok_and(|t| t.contains(r#"\"version\":\"3\""#))
    });
}
