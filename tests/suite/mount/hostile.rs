//! Nodes that answer nonsense: errors, and nothing worse. The mount goes on, in bounded memory, and so does
//! everything else in it.

use super::{Exported, Mount, ok};
use serde_json::{Value, json};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use tungstenite::{Message, WebSocket};

type Socket = WebSocket<TcpStream>;

/// What a request asks, and the decent answer to it.
struct Asked<'a> {
    op: &'a str,
    tag: u64,
    decent: Value,
}

impl Asked<'_> {
    fn reply(&self, payload: &Value) -> String {
        self.tagged(self.tag, payload)
    }

    fn tagged(&self, tag: u64, payload: &Value) -> String {
        let kind = format!("acheron.r_fs_{}", self.op);
        json!({"channel": "acheron", "type": kind, "tag": tag, "ok": true, "payload": payload})
            .to_string()
    }

    /// The decent answer, something else in its place where `op` is asked.
    fn with(&self, op: &str, payload: Value) -> Vec<Message> {
        let payload = if self.op == op { &payload } else { &self.decent };
        vec![Message::text(self.reply(payload))]
    }
}

fn attr(id: u64, kind: u8) -> Value {
    let mode = if kind == 2 { 0o40755 } else { 0o100_644 };
    json!({"id": id, "k": kind, "m": mode, "n": 1, "sz": 100, "gen": 1})
}

fn entry(name: &str, cookie: u64) -> Value {
    json!({"name": name, "attr": attr(7, 1), "c": cookie})
}

fn listing(names: &[&str], eof: bool) -> Value {
    let entries: Vec<_> = names.iter().zip(1..).map(|(n, c)| entry(n, c)).collect();
    json!({"ents": entries, "next": 1, "eof": eof, "dir_gen": 1})
}

/// What an honest node with the one file `f` would say.
fn decent(op: &str) -> Value {
    match op {
        "hello" => json!({"protocol": "unified-v2-fs", "proto": 2, "node": {"name": "n"},
            "caps": {"readdirp": true, "max_read": 1 << 20, "max_write": 1 << 20}}),
        "exports" => json!({"exports": [{"name": "work", "root": 1}]}),
        "readdirp" => listing(&["f"], true),
        "getattr" => json!({"attr": attr(1, 2)}),
        "lookup" => json!({"attr": attr(7, 1)}),
        "open" => json!({"h": 3}),
        "read" => json!({"data_b64": "aGVsbG8=", "eof": true}),
        "write" => json!({"n": 1}),
        _ => json!({}),
    }
}

type Nonsense = fn(&Asked) -> Vec<Message>;

/// By name; none of them is asked before the hello was answered.
const NODES: &[(&str, Nonsense)] = &[
    ("nobody", |a| vec![Message::text(a.tagged(a.tag + 1000, &a.decent))]),
    ("silent", |_| vec![]),
    ("names", |a| a.with("readdirp", listing(&["a/b", "f"], true))),
    ("dots", |a| a.with("readdirp", listing(&["..", ".", "", "f"], true))),
    ("nul", |a| a.with("readdirp", listing(&["x\0y", "f"], true))),
    ("long", |a| a.with("readdirp", listing(&[&"x".repeat(70_000)], true))),
    ("endless", |a| a.with("readdirp", listing(&["f"], false))),
    ("stuck", |a| a.with("readdirp", json!({"ents": [], "next": 9, "eof": false}))),
    ("huge", |a| a.with("readdirp", json!({"ents": [], "x": "x".repeat(40 << 20)}))),
    ("negative", |a| a.with("lookup", json!({"attr": {"id": -7, "k": -1, "m": -1, "sz": -1}}))),
    ("large", |a| {
        let attr = json!({"id": u64::MAX, "k": 1, "m": u32::MAX, "sz": u64::MAX, "gen": u64::MAX});
        a.with("lookup", json!({"attr": attr}))
    }),
    ("kinds", |a| a.with("lookup", json!({"attr": attr(1, 99)}))),
    ("root", |a| a.with("lookup", json!({"attr": attr(1, 1)}))),
    ("long-read", |a| a.with("read", json!({"data_b64": "QUJD".repeat(700_000), "eof": false}))),
    ("empty-read", |a| a.with("read", json!({"data_b64": "", "eof": false}))),
    ("no-base64", |a| a.with("read", json!({"data_b64": "!!!", "eof": true}))),
    ("long-write", |a| a.with("write", json!({"n": u64::MAX}))),
    ("no-write", |a| a.with("write", json!({"n": 0}))),
    ("other-kind", |a| vec![Message::text(a.reply(&json!([1, "two", null])))]),
    ("no-json", |_| vec![Message::text("{\"channel\":\"acheron\",\"type\":")]),
    ("binary", |a| {
        let mut all: Vec<_> = (0..50u8).map(|n| Message::binary(vec![n; 40])).collect();
        all.push(Message::text(a.reply(&a.decent)));
        all
    }),
    // Few bytes that say they are a compressed gigabyte.
    ("bomb", |a| {
        let mut frame = vec![1, 0x81, 7, 0];
        for word in [a.tag as u32, 2, 1 << 30] {
            frame.extend(word.to_le_bytes());
        }
        frame.extend(b"{}");
        frame.extend([0xff; 100]);
        match a.op {
            "read" => vec![Message::binary(frame)],
            _ => vec![Message::text(a.reply(&a.decent))],
        }
    }),
    ("events", |a| {
        let event = |n: i64| {
            let payload =
                json!({"node": n - 2, "dir": n, "what": "all", "gen": -n, "name": "../x"});
            let kind = ["inval", "inval_dir", "resync", "bogus"][n as usize % 4];
            let kind = format!("acheron.e_fs_{kind}");
            Message::text(
                json!({"channel": "acheron", "type": kind, "payload": payload, "seq": -n})
                    .to_string(),
            )
        };
        (0..2000).map(event).chain([Message::text(a.reply(&a.decent))]).collect()
    }),
    ("twice", |a| vec![Message::text(a.reply(&a.decent)), Message::text(a.reply(&json!({})))]),
    ("closes", |_| vec![Message::Close(None)]),
];

fn serve(mut socket: Socket, nonsense: Nonsense) -> Option<()> {
    loop {
        let text = match socket.read().ok()? {
            Message::Text(text) => text,
            Message::Close(_) => return None,
            _ => continue,
        };
        let request: Value = serde_json::from_str(&text).ok()?;
        let op = request["type"].as_str()?.strip_prefix("acheron.t_fs_")?;
        let asked = Asked { op, tag: request["tag"].as_u64()?, decent: decent(op) };
        let answers = match op {
            "hello" | "exports" => vec![Message::text(asked.reply(&asked.decent))],
            _ => nonsense(&asked),
        };
        for answer in answers {
            socket.send(answer).ok()?;
        }
    }
}

/// The URL of a node that answers like this.
fn start(nonsense: Nonsense) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/v2/fs", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || serve(tungstenite::accept(stream).ok()?, nonsense));
        }
    });
    url
}

/// The URL of a node that answers decently, in JSON, and knows no extensions.
pub fn old_node() -> String {
    start(|a| vec![Message::text(a.reply(&a.decent))])
}

/// Everything that a shell does in a directory; false if some of it does not come to an end.
fn all_end(mount: &Mount, dir: &str) -> bool {
    let script = r#"for c in "ls -la $1" "cat $1/f" "echo x > $1/f" "stat $1/f" "head -c 3000000 $1/f" \
            "mkdir $1/d" "mv $1/f $1/g" "rm $1/f" "df $1" "readlink $1/f" "find $1"; do
            status=0; timeout -k 2 20 sh -c "$c" > /dev/null 2>&1 < /dev/null || status=$?
            test $status -lt 124 || { echo "$c: $status"; exit 1; }
        done"#;
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "120", "sh", "-c", script, "sh", dir]).current_dir(&mount.at);
    let output = command.stdin(Stdio::null()).output().unwrap();
    print!("{dir}: {}", String::from_utf8_lossy(&output.stdout));
    output.status.success()
}

fn resident_mib(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<usize>().unwrap() / 1024
}

#[test]
fn nodes_that_answer_nonsense_harm_nobody() {
    let honest = Exported::start();
    let mut args = vec!["--timeout-ms".to_owned(), "300".to_owned()];
    let good = ("good", honest.url());
    let bad = NODES.iter().map(|(name, nonsense)| (*name, start(*nonsense)));
    for (name, url) in std::iter::once(good).chain(bad) {
        args.extend(["--endpoint".to_owned(), format!("{name}={url}@/{name}")]);
    }
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let Some(mut mount) = Mount::start(&args) else { return };
    std::fs::write(honest.dir().join("f"), "honest").unwrap();
    // A few at a time: each keeps threads of the mount until its time is up.
    let next = AtomicUsize::new(0);
    let endless: Vec<_> = std::thread::scope(|threads| {
        let (mount, next) = (&mount, &next);
        let work = |_| {
            threads.spawn(move || {
                let mut endless = Vec::new();
                while let Some((name, _)) = NODES.get(next.fetch_add(1, Ordering::AcqRel)) {
                    if !all_end(mount, name) {
                        endless.push(*name);
                    }
                    assert_eq!(ok(mount.shell("cat good/f", &mount.at)), "honest");
                }
                endless
            })
        };
        let workers: Vec<_> = (0..8).map(work).collect();
        workers.into_iter().flat_map(|w| w.join().unwrap()).collect()
    });
    assert!(endless.is_empty(), "without an end: {endless:?}");
    assert!(mount.child.try_wait().unwrap().is_none(), "it ended");
    assert!(!mount.messages().contains("panic"), "{}", mount.messages());
    let peak = resident_mib(mount.child.id());
    assert!(peak < 64, "{peak} MiB at its peak");
}
