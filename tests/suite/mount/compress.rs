//! Compressed lines: what arrives is what was sent, and less of it travels.

use super::hostile::old_node;
use super::{Exported, Mount, ok, program, run, until};
use crate::conformance::Scratch;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Stands between a client and a node, and counts what passes.
struct Counting {
    addr: SocketAddr,
    bytes: Arc<AtomicU64>,
}

impl Counting {
    fn start(port: u16) -> Counting {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (addr, bytes) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
        let counted = bytes.clone();
        std::thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                let Ok(node) = TcpStream::connect(("127.0.0.1", port)) else { return };
                let (client2, node2) = (client.try_clone().unwrap(), node.try_clone().unwrap());
                for (from, to) in [(client, node), (node2, client2)] {
                    let bytes = counted.clone();
                    std::thread::spawn(move || pass(from, to, &bytes));
                }
            }
        });
        Counting { addr, bytes }
    }

    fn endpoint(&self) -> String {
        format!("a=ws://{}/v2/fs@/", self.addr)
    }

    /// What has passed since it was asked last.
    fn passed(&self) -> u64 {
        self.bytes.swap(0, Ordering::AcqRel)
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, bytes: &AtomicU64) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(n) = from.read(&mut buffer) {
        bytes.fetch_add(n as u64, Ordering::AcqRel);
        if n == 0 || to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// Like the source of a program.
fn text(bytes: usize) -> Vec<u8> {
    let line = |n: usize| format!("    let value_{n} = compute(&input[{n}], options.clone())?;\n");
    let mut all: Vec<u8> = (0..).map(line).take(bytes / 40).collect::<String>().into();
    all.truncate(bytes);
    all
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut all = vec![0; bytes];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut all).unwrap();
    all
}

const SIZE: usize = 3 << 20;

fn line(at: &Path) -> Value {
    let status = ok(run(&["status", at.to_str().unwrap()]));
    let status: Value = serde_json::from_str(&status).unwrap();
    status["endpoints"][0]["line"].clone()
}

#[test]
fn a_mount_moves_less_over_a_compressed_line() {
    let node = Exported::start();
    let relay = Counting::start(node.port);
    let (text, noise) = (text(SIZE), noise(SIZE));
    std::fs::write(node.dir().join("text"), &text).unwrap();
    std::fs::write(node.dir().join("noise"), &noise).unwrap();
    std::fs::create_dir(node.dir().join("many")).unwrap();
    for n in 0..300 {
        std::fs::write(node.dir().join(format!("many/file-{n}")), "x").unwrap();
    }
    let args = ["--endpoint", &relay.endpoint(), "-o", "compress"];
    let Some(mount) = Mount::start(&args) else { return };
    relay.passed();
    assert_eq!(std::fs::read(mount.at.join("text")).unwrap(), text);
    let read = relay.passed();
    assert!(read < SIZE as u64 / 2, "{read} bytes for text");
    assert_eq!(std::fs::read(mount.at.join("noise")).unwrap(), noise);
    let read = relay.passed();
    assert!((SIZE as u64..SIZE as u64 * 11 / 10).contains(&read), "{read} bytes for noise");
    assert_eq!(std::fs::read_dir(mount.at.join("many")).unwrap().count(), 300);
    let listed = relay.passed();
    assert!(listed < 300 * 100, "{listed} bytes for 300 entries");

    for (name, content) in [("new text", &text), ("new noise", &noise)] {
        std::fs::write(mount.at.join(name), content).unwrap();
        assert_eq!(&std::fs::read(node.dir().join(name)).unwrap(), content);
    }
    let written = relay.passed();
    assert!(written < SIZE as u64 * 3 / 2, "{written} bytes for what was written");
    let line = line(&mount.at);
    let bytes = |name: &str| line[name].as_u64().unwrap();
    assert_eq!(line["compressed"], true);
    assert!(bytes("wire_bytes") < bytes("raw_bytes") && bytes("raw_bytes") > 4 * SIZE as u64);
}

#[test]
fn verbs_compress_where_they_are_asked_to() {
    let node = Exported::start();
    let relay = Counting::start(node.port);
    let text = text(SIZE);
    std::fs::write(node.dir().join("text"), &text).unwrap();
    let endpoint = relay.endpoint();
    for (flag, most) in [(&[][..], u64::MAX), (&["--compress"], SIZE as u64 / 2)] {
        let args = [&["--endpoint", &*endpoint], flag].concat();
        relay.passed();
        assert_eq!(ok(run(&[&args[..], &["cat", "/text"]].concat())).into_bytes(), text);
        let read = relay.passed();
        assert!(read < most && (flag.is_empty() == (read > SIZE as u64)), "{flag:?}: {read}");
        let scratch = Scratch::new();
        let local = scratch.path().join("local");
        std::fs::write(&local, &text).unwrap();
        let put = [&args[..], &["put", local.to_str().unwrap(), "/put"]].concat();
        ok(program(&put).stdout(Stdio::piped()).output().unwrap());
        let put = relay.passed();
        assert!(put < most && (flag.is_empty() == (put > SIZE as u64)), "{flag:?}: {put}");
        assert_eq!(std::fs::read(node.dir().join("put")).unwrap(), text);
    }
}

#[test]
fn an_old_node_is_spoken_to_in_its_own_words() {
    let endpoint = format!("a={}@/", old_node());
    let args = ["--compress", "--endpoint", &endpoint];
    assert_eq!(ok(run(&[&args[..], &["cat", "/f"]].concat())), "hello");
    // In a binary frame it would not be answered.
    assert_eq!(ok(run(&[&args[..], &["write", "/f", "x"]].concat())), "ok\n");
    assert!(ok(run(&[&args[..], &["readdir", "/"]].concat())).contains("\"f\""));
}

#[test]
fn without_the_flag_nothing_is_compressed() {
    let node = Exported::start();
    let Some(mount) = node.mount(&[]) else { return };
    let text = text(SIZE);
    std::fs::write(node.dir().join("text"), &text).unwrap();
    until("the file", || mount.at.join("text").exists());
    assert_eq!(std::fs::read(mount.at.join("text")).unwrap(), text);
    let line = line(&mount.at);
    assert_eq!((&line["compressed"], &line["raw_bytes"]), (&false.into(), &line["wire_bytes"]));
}
