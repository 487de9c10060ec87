//! What the gateway tells of itself: the metrics port and its two forms, the control operation, and that
//! the figures move when something happens.

use crate::program::{Client, Gateway, PATIENCE, Scratch, http};
use crate::provider_fake::events::{Item, answer};
use crate::provider_fake::{Answer, FakeOpenAi, KEY};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// The names that dashboards know, and the kind of each.
const NAMES: [(&str, &str); 2] = [
    (
        "gauge",
        "invites_active nodes_online nodes_total projects_total active_project_bindings
         project_mounts_total node_service_watch_subscribers node_service_watch_subscribers_peak
         node_service_watch_retained_events node_service_watch_retained_capacity
         node_service_watch_retained_window_ms",
    ),
    (
        "counter",
        "invites_created_total invites_redeemed_total node_joins_total node_lease_refresh_total
         nodes_ensured_total node_deletes_total lease_reap_nodes_total project_creates_total
         project_updates_total project_deletes_total project_token_rotates_total
         project_token_revokes_total project_activations_total mount_sets_total mount_removes_total
         node_service_watch_replay_requests_total node_service_watch_replay_attempted_total
         node_service_watch_replay_sent_total node_service_watch_replay_bytes_total
         node_service_watch_fanout_events_total node_service_watch_fanout_attempted_total
         node_service_watch_fanout_sent_total node_service_watch_fanout_dropped_total",
    ),
];

/// A gateway with a metrics port.
struct Watched {
    gateway: Gateway,
    addr: String,
    _home: Scratch,
}

impl Watched {
    fn start() -> Watched {
        Watched::with(&[])
    }

    fn with(env: &[(&str, &str)]) -> Watched {
        let (home, port) = (Scratch::new(), free_port().to_string());
        let env = [env, &[("SPIDERWEB_METRICS_PORT", &port)]].concat();
        let gateway = Gateway::with(home.path(), "0", &env);
        Watched { gateway, addr: format!("127.0.0.1:{port}"), _home: home }
    }

    /// An admin's connection that speaks to an agent with a project.
    fn alice(&self) -> Client {
        let mut admin = self.gateway.admin();
        admin.control("project_up", json!({"name": "Demo", "vision": "v", "agent_id": "alice"}));
        let attach = json!({"session_key": "w", "agent_id": "alice", "project_id": "proj-1"});
        admin.control("session_attach", attach);
        admin.attach();
        admin
    }

    /// Head and body.
    fn ask(&self, request: &str) -> (String, String) {
        let answer = http(&self.addr, request);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        (head.to_owned(), body.to_owned())
    }

    fn get(&self, path: &str) -> (String, String) {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
    }

    fn samples(&self) -> Samples {
        Samples::parse(&self.get("/metrics").1)
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.get("/metrics.json").1).unwrap()
    }
}

/// A port that nobody has, out of the range from which the system gives ports to those who do not choose.
fn free_port() -> u16 {
    loop {
        let port = 20_000 + (spiderweb::base::id::random_u53() % 12_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A page of metrics, read strictly.
struct Samples {
    types: BTreeMap<String, String>,
    /// By name and labels, as they are written.
    values: BTreeMap<String, f64>,
}

impl Samples {
    fn parse(text: &str) -> Samples {
        assert!(text.ends_with('\n'));
        let (mut types, mut values) = (BTreeMap::new(), BTreeMap::new());
        let mut helped = BTreeSet::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert!(!help.is_empty() && helped.insert(name.to_owned()), "{line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(helped.contains(name), "no help before {line}");
                assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let family = family(series, &types);
                assert!(family.is_some(), "no type before {line}");
                let value: f64 = value.parse().unwrap();
                assert!(values.insert(series.to_owned(), value).is_none(), "twice: {line}");
            }
        }
        let read = Samples { types, values };
        read.check_histograms();
        read
    }

    fn check_histograms(&self) {
        for (name, _) in self.types.iter().filter(|(_, kind)| *kind == "histogram") {
            let bucket = format!("{name}_bucket{{le=\"");
            let buckets = self.values.iter().filter_map(|(series, n)| {
                let bound = series.strip_prefix(&bucket)?.strip_suffix("\"}")?;
                Some((bound.parse::<f64>().unwrap(), *n))
            });
            let mut buckets: Vec<_> = buckets.collect();
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(buckets.is_sorted_by_key(|(_, n)| *n as u64), "{name}: {buckets:?}");
            let (last, all) = *buckets.last().unwrap();
            assert!(last.is_infinite() && all == self.of(&format!("{name}_count")), "{name}");
            assert!(self.of(&format!("{name}_sum")) >= 0.0);
        }
    }

    /// 0 where nothing has happened yet.
    #[track_caller]
    fn of(&self, series: &str) -> f64 {
        assert!(family(series, &self.types).is_some(), "there is no {series}");
        self.values.get(series).copied().unwrap_or(0.0)
    }
}

/// The family of a series, whose name and labels are well-formed.
fn family<'s>(series: &'s str, types: &BTreeMap<String, String>) -> Option<&'s str> {
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'));
    if !labels.is_empty() {
        let (label, value) = labels.split_once("=\"").unwrap();
        let value = value.strip_suffix("\"}").unwrap();
        assert!(label.bytes().all(|b| b.is_ascii_lowercase()), "{series}");
        let unescaped = value.replace("\\\\", "").replace("\\\"", "").replace("\\n", "");
        assert!(!unescaped.contains(['"', '\\', '\n']), "{series}");
    }
    let is_histogram = |name: &&str| types.get(*name).is_some_and(|kind| kind == "histogram");
    let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
    let found = of_histogram.filter(is_histogram);
    found.or_else(|| Some(name).filter(|name| types.contains_key(*name) && !is_histogram(name)))
}

#[test]
fn each_path_has_its_answer() {
    let watched = Watched::start();
    for (path, body) in [("/livez", "ok\n"), ("/readyz", "ready\n"), ("/readyz?verbose", "ready\n")]
    {
        let (head, got) = watched.get(path);
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("Connection: close"), "{head}");
        assert_eq!(got, body);
    }
    let (head, _) = watched.get("/metrics?x=1");
    assert!(head.contains("Content-Type: text/plain; version=0.0.4"), "{head}");
    let (head, _) = watched.get("/metrics.json");
    assert!(head.contains("Content-Type: application/json"), "{head}");
    let (head, body) = watched.ask("HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 ") && body.is_empty(), "{head} {body}");

    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "404"),
        ("GET /metrics/ HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "404"),
        (format!("GET /v2/fs HTTP/1.1\r\nHost: x\r\n{upgrade}\r\n"), "404"),
        ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".to_owned(), "405"),
        ("GET /metrics HTTP/1.1\r\nOrigin: http://evil.example\r\n\r\n".to_owned(), "403"),
        ("nonsense\r\n\r\n".to_owned(), "400"),
        ("GET metrics HTTP/1.1\r\n\r\n".to_owned(), "400"),
        ("\x16\x03\x01\x02\r\n\r\n".to_owned(), "400"),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(20_000)), "431"),
    ] {
        let (head, _) = watched.ask(&request);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{request:.60?}: {head}");
    }
}

#[test]
fn the_names_that_dashboards_know_are_there_with_their_kinds() {
    let watched = Watched::start();
    let samples = watched.samples();
    for (kind, names) in NAMES {
        for name in names.split_whitespace().map(|name| format!("spiderweb_{name}")) {
            assert_eq!(samples.types.get(&name).map(String::as_str), Some(kind), "{name}");
            assert!(samples.values.contains_key(&name), "{name} has no sample");
        }
    }
    for queue in ["control", "files", "runtime", "storage"] {
        let of = |what: &str| samples.of(&format!("spiderweb_queue_{what}{{queue=\"{queue}\"}}"));
        assert!(of("limit") >= 1.0 && of("depth") <= of("limit"), "{queue}");
    }
    for name in ["resident_memory_bytes", "open_fds", "max_fds", "threads", "start_time_seconds"] {
        assert!(samples.of(&format!("process_{name}")) > 0.0, "{name}");
    }
    assert!(samples.of("spiderweb_connections_open") >= 1.0);
}

#[test]
fn counters_move_when_something_happens_and_all_forms_agree() {
    let watched = Watched::start();
    let mut admin = watched.gateway.admin();
    let invite =
        |admin: &mut Client| admin.control("node_invite_create", json!({}))["invite_token"].clone();
    let (first, _) = (invite(&mut admin), invite(&mut admin));
    let join = |name: &str, token: &Value| json!({"node_name": name, "invite_token": token});
    let node = admin.control("node_join", join("edge", &first));
    let reply = admin.control_reply("node_join", join("again", &first));
    assert_eq!(reply["error"]["code"], "invite_redeemed");
    let (node_id, secret) = (&node["node_id"], &node["node_secret"]);
    let lease = json!({"node_id": node_id, "node_secret": secret, "lease_ttl_ms": 600_000});
    admin.control("node_lease_refresh", lease);
    let mount = |path: &str| json!({"node_id": node_id, "export_name": "work", "mount_path": path});
    let up = json!({"name": "Demo", "vision": "v", "agent_id": "alice", "desired_mounts": [mount("/a"), mount("/b")]});
    let project = admin.control("project_up", up)["project_id"].clone();
    let of_project = |more: Value| {
        let mut payload = json!({"project_id": project});
        payload.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        payload
    };
    admin.control("project_mount_set", of_project(mount("/c")));
    admin.control("project_mount_remove", of_project(mount("/a")));
    admin.control("project_update", of_project(json!({"vision": "more"})));
    admin.control("project_token_rotate", of_project(json!({})));
    admin.control("project_token_revoke", of_project(json!({})));
    admin.control("project_create", json!({"name": "Short", "vision": "v"}));
    admin.control("project_delete", json!({"project_id": "proj-2"}));
    let attach = json!({"session_key": "w", "agent_id": "alice", "project_id": project});
    admin.control("session_attach", attach);
    admin.attach();
    let job = admin.write("/agents/self/chat/control/input", "hello")["job"].clone();
    let result = format!("/agents/self/jobs/{}/result.txt", job.as_str().unwrap());
    assert_eq!(admin.read(&result), "Echo: hello");
    let walk = json!({"fid": 1, "newfid": 2, "path": ["nowhere"]});
    assert_eq!(admin.acheron_reply("t_walk", walk)["error"]["code"], "enoent");
    assert_eq!(watched.gateway.open("/", Some("wrong")).json()["code"], "provider_auth_failed");

    let samples = watched.samples();
    for (name, value) in [
        ("invites_active", 1),
        ("invites_created_total", 2),
        ("invites_redeemed_total", 1),
        ("nodes_online", 1),
        ("nodes_total", 1),
        ("node_joins_total", 1),
        ("node_lease_refresh_total", 1),
        ("projects_total", 2),
        ("active_project_bindings", 2),
        ("project_mounts_total", 2),
        ("project_creates_total", 2),
        ("project_deletes_total", 1),
        ("project_token_rotates_total", 1),
        ("project_token_revokes_total", 1),
        ("mount_sets_total", 3),
        ("mount_removes_total", 1),
        ("control_errors_total{code=\"invite_redeemed\"}", 1),
        ("file_errors_total{code=\"enoent\"}", 1),
        ("connections_refused_total{code=\"provider_auth_failed\"}", 1),
        ("provider_call_seconds_count", 1),
        ("provider_retries_total", 0),
    ] {
        assert_eq!(samples.of(&format!("spiderweb_{name}")), f64::from(value), "{name}");
    }
    assert!(samples.of("spiderweb_project_updates_total") >= 1.0);
    assert!(samples.of("spiderweb_project_activations_total") >= 1.0);
    assert!(samples.of("spiderweb_control_operation_seconds_count") >= 14.0);
    assert!(samples.of("spiderweb_file_request_seconds_count") >= 5.0);

    // The three forms come from one table.
    let (shown, answered) = (watched.json(), admin.control("metrics", json!({})));
    for all in [&shown, &answered] {
        let agree = [
            ("/invites/redeemed_total", "invites_redeemed_total"),
            ("/nodes/reaped_total", "lease_reap_nodes_total"),
            ("/nodes/lease_refresh_total", "node_lease_refresh_total"),
            ("/projects/mount_sets_total", "mount_sets_total"),
            ("/projects/mounts_total", "project_mounts_total"),
            ("/node_service_watch/fanout/sent_total", "node_service_watch_fanout_sent_total"),
            ("/queues/control/limit", "queue_limit{queue=\"control\"}"),
            ("/files/errors_total/enoent", "file_errors_total{code=\"enoent\"}"),
            ("/provider/calls/count", "provider_call_seconds_count"),
        ];
        for (path, name) in agree {
            let number = all.pointer(path).and_then(Value::as_f64);
            assert_eq!(number, Some(samples.of(&format!("spiderweb_{name}"))), "{path}");
        }
        let retained = &all["node_service_watch"]["retained"];
        assert!(retained["oldest_ms"].is_null() && retained["window_ms"] == 0, "{retained}");
    }
    let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&shown), keys(&answered));
}

#[test]
fn the_figures_are_for_admins_where_there_are_tokens() {
    let watched = Watched::start();
    let gateway = &watched.gateway;
    let (admin, user) = (gateway.token("admin_token"), gateway.token("user_token"));
    let get = |path: &str, token: &str| {
        let bearer = format!("Authorization: Bearer {token}");
        gateway.http(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n{bearer}\r\n\r\n"))
    };
    for path in ["/metrics", "/metrics.json"] {
        assert!(get(path, &admin).starts_with("HTTP/1.1 200 "), "{path}");
        for token in [&user, "wrong", ""] {
            let answer = get(path, token);
            assert!(answer.starts_with("HTTP/1.1 401 "), "{path} {token}: {answer}");
            assert!(answer.contains("WWW-Authenticate: Bearer") && !answer.contains("_total"));
        }
        let bare = gateway.http(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert!(bare.starts_with("HTTP/1.1 401 "), "{bare}");
    }
    let (head, body) = (get("/metrics", &admin), watched.get("/metrics").1);
    let names = |text: &str| text.lines().filter(|l| l.starts_with("# TYPE")).count();
    assert_eq!(names(&head), names(&body));
    let connections = "spiderweb_connections_refused_total{code=\"forbidden\"}";
    assert_eq!(watched.samples().of(connections), 8.0);
}

#[test]
fn a_port_that_cannot_be_is_told_before_anything_is_made() {
    let run = |home: &Path, metrics: &str, port: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spiderweb"));
        command.current_dir(home).env_clear().env("HOME", home);
        command.env("SPIDERWEB_METRICS_PORT", metrics).args(["--port", port]);
        let output = command.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let home = Scratch::new();
    let main = free_port().to_string();
    for wrong in ["x", "65536", "-1", "80,81", &main] {
        let (status, text) = run(home.path(), wrong, &main);
        assert!(status == 78 && text.contains("SPIDERWEB_METRICS_PORT"), "{status} {text}");
        assert!(!home.path().join(".spiderweb-ltm").exists());
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (status, text) = run(home.path(), &port, "0");
    assert!(status == 69 && text.contains("SPIDERWEB_METRICS_PORT"), "{status} {text}");
    assert!(text.contains(&port) && text.contains("in use"), "{text}");
}

#[test]
fn without_the_variable_there_is_no_port() {
    for none in ["", "0"] {
        let home = Scratch::new();
        let mut gateway = Gateway::with(home.path(), "0", &[("SPIDERWEB_METRICS_PORT", none)]);
        assert!(gateway.http("GET /readyz HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200 "));
        gateway.program.signal(libc::SIGTERM);
        assert_eq!(gateway.program.wait(), 0);
    }
}

#[test]
fn many_slow_connections_do_no_harm() {
    const SLOW: usize = 400;
    let watched = Watched::start();
    let connect = |n: usize| {
        let mut socket = TcpStream::connect(&watched.addr).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        // Some say nothing, some stop in the middle of a head.
        let piece = &b"GET /metrics HTTP/1.1\r\nHost: "[..n % 30];
        socket.write_all(piece).unwrap();
        socket
    };
    let slow: Vec<_> = (0..SLOW).map(connect).collect();
    let mut admin = watched.gateway.admin();
    admin.control("ping", json!({}));
    assert!(watched.samples().of("spiderweb_connections_open") >= SLOW as f64);
    assert_eq!(watched.get("/readyz").1, "ready\n");
    // Whoever finishes his request after all is answered.
    let mut last = &slow[29];
    last.write_all(b"x\r\n\r\n").unwrap();
    let mut answer = String::new();
    last.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    drop(slow);
    let end = Instant::now() + PATIENCE;
    while watched.samples().of("spiderweb_connections_open") >= SLOW as f64 {
        assert!(Instant::now() < end, "connections that have ended are still counted");
    }
}

#[test]
fn what_models_were_asked_is_counted_with_retries_tokens_and_errors() {
    let status = |status, headers| Answer::Status { status, headers, body: json!({"error": {}}) };
    let fake = FakeOpenAi::start(vec![
        status(503, "retry-after: 0\r\n"),
        Answer::Events(answer(&[Item::Text("whole")])),
        status(403, ""),
    ]);
    let watched = Watched::with(&[
        ("SPIDERWEB__PROVIDER__NAME", "openai"),
        ("SPIDERWEB__PROVIDER__BASE_URL", &fake.url),
        ("OPENAI_API_KEY", KEY),
    ]);
    let mut admin = watched.alice();
    for _ in 0..2 {
        let job = admin.write("/agents/self/chat/control/input", "hello")["job"].clone();
        let result = format!("/agents/self/jobs/{}/result.txt", job.as_str().unwrap());
        admin.read(&result);
    }
    let samples = watched.samples();
    for (name, value) in [
        ("retries_total", 1),
        ("call_seconds_count", 2),
        ("errors_total{code=\"provider_auth_failed\"}", 1),
        ("tokens_total{kind=\"input\"}", 120),
        ("tokens_total{kind=\"cache_read\"}", 100),
        ("tokens_total{kind=\"output\"}", 30),
        ("tokens_total{kind=\"reasoning\"}", 7),
    ] {
        assert_eq!(samples.of(&format!("spiderweb_provider_{name}")), f64::from(value), "{name}");
    }
}

#[test]
fn a_gateway_that_stops_lives_but_is_not_ready() {
    // A provider that never answers keeps a message under way.
    let provider = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", provider.local_addr().unwrap());
    let watched = Watched::with(&[
        ("SPIDERWEB__PROVIDER__NAME", "openai"),
        ("SPIDERWEB__PROVIDER__BASE_URL", &url),
        ("OPENAI_API_KEY", KEY),
    ]);
    let mut admin = watched.alice();
    admin.write("/agents/self/chat/control/input", "hello");
    let (_asked, _) = provider.accept().unwrap();
    assert_eq!(watched.get("/readyz").1, "ready\n");
    watched.gateway.program.signal(libc::SIGTERM);
    let end = Instant::now() + PATIENCE;
    loop {
        let (head, body) = watched.get("/readyz");
        if head.starts_with("HTTP/1.1 503 ") && body == "not ready\n" {
            break;
        }
        assert!(Instant::now() < end, "{head}");
    }
    assert_eq!(watched.get("/livez").1, "ok\n");
    watched.samples();
}
