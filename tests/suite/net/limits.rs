//! What one peer can do to others, to our memory and to our time: nothing beyond its limits.

use super::raw::{BINARY, CLOSE, FIN, PING, PONG, Raw, TEXT, frame};
use super::server::{LONG, Server};
use crossbeam_channel::{Receiver, unbounded};
use spiderweb::base::{Code, Deadline};
use spiderweb::net::{Closed, Conn, InFlight, Limits, Message};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::time::Duration;

const MIB: usize = 1 << 20;

fn go() -> Vec<u8> {
    frame(FIN | TEXT, b"go")
}

#[test]
fn a_slow_reader_blocks_nobody_and_grows_no_memory() {
    let limits = Limits { outbox_high: 2 * MIB, ..Limits::default() };
    let server = Server::start(limits, |conn, message| {
        let reply = match message.as_bytes() {
            b"go" => Message::binary(vec![6; MIB]),
            _ => message,
        };
        let _ = conn.send(reply);
    });
    const REQUESTS: usize = 100;
    let mut slow = Raw::connect(server.addr());
    let slow_conn = server.next_conn();
    slow.send(&go().repeat(REQUESTS));
    let mut other = Raw::connect(server.addr());
    let mut round_trip = || {
        other.send(&frame(FIN | TEXT, b"quick"));
        other.expect(TEXT, b"quick");
        let queued = slow_conn.queued();
        assert!(queued <= 3 * MIB + 64, "{queued} bytes are queued");
        queued
    };
    let deadline = Deadline::after(LONG);
    while round_trip() <= 2 * MIB {
        assert!(!deadline.passed(), "the outbox never filled");
    }
    for _ in 0..100 {
        round_trip();
    }
    for _ in 0..REQUESTS {
        slow.expect(BINARY, &[6; MIB]);
    }
}

#[test]
fn pushes_are_refused_while_the_peer_is_behind() {
    let limits = Limits { push_max: MIB, ..Limits::default() };
    let server = Server::start(limits, |conn, _| {
        for _ in 0..2 {
            conn.push(Message::binary(vec![6; MIB])).unwrap();
            if conn.queued() > MIB {
                break;
            }
        }
        assert_eq!(conn.push(Message::text("more")).unwrap_err().code, Code::QueueSaturated);
        conn.send(Message::text("a reply is always taken")).unwrap();
    });
    let mut raw = Raw::connect(server.addr());
    for _ in 0..3 {
        raw.send(&go());
        raw.expect(BINARY, &[6; MIB]);
        raw.expect(TEXT, b"a reply is always taken");
    }
}

#[test]
fn a_half_open_peer_is_dropped_and_one_that_answers_pings_is_not() {
    let limits = Limits {
        ping: Duration::from_millis(50),
        idle: Duration::from_millis(250),
        ..Limits::default()
    };
    let server = Server::echo(limits);
    let mut alive = Raw::connect(server.addr());
    for _ in 0..10 {
        alive.expect(PING, b"");
        alive.send(&frame(FIN | PONG, b""));
    }
    let mut dead = Raw::connect(server.addr());
    dead.expect(PING, b"");
    let answer = std::thread::spawn(move || {
        alive.send(&frame(FIN | TEXT, b"alive"));
        while alive.frame().first != FIN | TEXT {
            alive.send(&frame(FIN | PONG, b""));
        }
        alive
    });
    assert!(dead.rest().is_empty());
    let _alive = answer.join().unwrap();
    let Closed::Lost(e) = server.next_closed() else { panic!("not lost") };
    assert_eq!(e.code, Code::Timeout);
}

#[test]
fn a_peer_that_takes_nothing_is_dropped() {
    let limits = Limits { write_stall: Duration::from_millis(100), ..Limits::default() };
    let server = Server::start(limits, |conn, _| {
        for _ in 0..64 {
            let _ = conn.send(Message::binary(vec![6; MIB]));
        }
    });
    let mut raw = Raw::connect(server.addr());
    let conn = server.next_conn();
    raw.send(&go());
    let Closed::Lost(e) = server.next_closed() else { panic!("not lost") };
    assert_eq!(e.code, Code::Timeout);
    assert!(!conn.is_open());
    let deadline = Deadline::after(LONG);
    while conn.queued() > 0 {
        assert!(!deadline.passed(), "the outbox of a dead connection is kept");
        std::thread::yield_now();
    }
}

/// A server that hands out what it begins, and with it the connection.
fn holding(max_inflight: usize) -> (Server, Receiver<(Conn, InFlight)>) {
    let (begun, held) = unbounded();
    let limits = Limits { max_inflight, ..Limits::default() };
    let server = Server::start(limits, move |conn, _| {
        begun.send((conn.clone(), conn.begin())).unwrap();
    });
    (server, held)
}

#[test]
fn requests_in_flight_hold_back_the_next() {
    let (server, begun) = holding(4);
    let mut raw = Raw::connect(server.addr());
    raw.send(&go().repeat(50));
    let next = || begun.recv_timeout(LONG).unwrap();
    let mut held: Vec<_> = (0..4).map(|_| next()).collect();
    for _ in 4..50 {
        assert!(begun.try_recv().is_err(), "a fifth request was read");
        drop(held.remove(0));
        held.push(next());
    }
}

#[test]
fn what_came_while_nothing_was_read_is_handed_on_in_order() {
    let (begun, held) = unbounded();
    let limits = Limits { max_inflight: 4, ..Limits::default() };
    let server = Server::start(limits, move |conn, message| {
        begun.send((message, conn.begin())).unwrap();
    });
    let mut raw = Raw::connect(server.addr());
    // Far more than is taken from the socket at a time.
    let texts: Vec<_> = (0..20_000).map(|n| format!("message {n}")).collect();
    let all: Vec<u8> = texts.iter().flat_map(|t| frame(FIN | TEXT, t.as_bytes())).collect();
    std::thread::scope(|s| {
        s.spawn(|| raw.send(&all));
        for text in &texts {
            let (message, _guard) = held.recv_timeout(LONG).unwrap();
            assert_eq!(message.as_bytes(), text.as_bytes());
        }
    });
}

#[test]
fn a_disconnect_is_noticed_though_nothing_is_read() {
    let (server, begun) = holding(1);
    let mut raw = Raw::connect(server.addr());
    raw.send(&go().repeat(3));
    let (conn, guard) = begun.recv_timeout(LONG).unwrap();
    drop(raw);
    assert!(matches!(server.next_closed(), Closed::Lost(_)));
    assert!(!conn.is_open());
    assert_eq!(conn.send(Message::text("x")).unwrap_err().code, Code::Unavailable);
    drop(guard);
}

#[test]
fn a_panic_ends_its_connection_only() {
    let server = Server::start(Limits::default(), |conn, message| {
        assert!(message.as_bytes() != b"panic", "on purpose");
        conn.send(message).unwrap();
    });
    let mut other = Raw::connect(server.addr());
    for _ in 0..4 {
        let mut raw = Raw::connect(server.addr());
        raw.send(&frame(FIN | TEXT, b"panic"));
        assert_eq!(raw.frame().payload[..2], 1011u16.to_be_bytes());
        raw.send(&frame(FIN | CLOSE, &1011u16.to_be_bytes()));
        assert!(raw.rest().is_empty());
    }
    other.send(&frame(FIN | TEXT, b"fine"));
    other.expect(TEXT, b"fine");
}

#[test]
fn limits_change_with_the_next_frame() {
    let server = Server::start(Limits { max_message: 10, ..Limits::default() }, |conn, message| {
        conn.set_limits(Limits { max_message: message.len() * 10, ..conn.limits() });
        conn.send(message).unwrap();
    });
    let mut raw = Raw::connect(server.addr());
    raw.send(&[frame(FIN | TEXT, &[b'a'; 10]), frame(FIN | TEXT, &[b'b'; 100])].concat());
    raw.expect(TEXT, &[b'a'; 10]);
    raw.expect(TEXT, &[b'b'; 100]);
    raw.send(&frame(FIN | TEXT, &[b'c'; 1001]));
    raw.expect_close(Some(1009));
}

#[test]
fn stopping_answers_what_is_in_flight_and_says_1001() {
    let (server, begun) = holding(4);
    let mut raw = Raw::connect(server.addr());
    raw.send(&go());
    let (conn, guard) = begun.recv_timeout(LONG).unwrap();
    let mut half = Raw::bare(server.addr());
    half.send(b"GET / HTTP/1.1\r\n");
    std::thread::scope(|scope| {
        scope.spawn(|| server.net.stop(Deadline::after(LONG)));
        // Ended, or reset where its half was not read yet.
        assert!(matches!(half.tcp.read(&mut [0; 16]), Ok(0) | Err(_)));
        let deadline = Deadline::after(LONG);
        while TcpStream::connect(server.addr()).is_ok() {
            assert!(!deadline.passed(), "it still listens");
        }
        conn.send(Message::text("the answer")).unwrap();
        drop(guard);
        raw.expect(TEXT, b"the answer");
        assert_eq!(raw.frame().payload[..2], 1001u16.to_be_bytes());
        raw.send(&frame(FIN | CLOSE, &1001u16.to_be_bytes()));
        assert!(raw.rest().is_empty());
        drop(raw);
    });
    assert!(matches!(server.next_closed(), Closed::Local));
    assert_eq!(server.net.stats().open, 0);
}

#[test]
fn stopping_ends_with_the_grace() {
    let (server, begun) = holding(4);
    let mut raw = Raw::connect(server.addr());
    raw.send(&go());
    let held = begun.recv_timeout(LONG).unwrap();
    server.net.stop(Deadline::after_ms(50));
    assert!(matches!(server.next_closed(), Closed::Local));
    assert!(raw.rest().is_empty());
    drop(held);
}

#[test]
fn many_threads_send_on_one_connection() {
    let server = Server::echo(Limits::default());
    let mut raw = Raw::connect(server.addr());
    let conn = server.next_conn();
    const EACH: usize = 300;
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let conn = &conn;
            scope.spawn(move || {
                for n in 0..EACH {
                    // Short and long frames take different ways through the outbox.
                    let len = if n % 7 == 0 { 40_000 } else { 10 };
                    let mut payload = vec![thread; len];
                    payload[..4].copy_from_slice(&(n as u32).to_be_bytes());
                    conn.send(Message::binary(payload)).unwrap();
                }
            });
        }
        let mut next = [0u32; 4];
        for _ in 0..4 * EACH {
            let payload = raw.frame().payload;
            let thread = payload[4] as usize;
            assert!(payload[4..].iter().all(|b| *b as usize == thread));
            assert_eq!(payload[..4], next[thread].to_be_bytes());
            next[thread] += 1;
        }
    });
}

/// Runs one ignored test of this binary alone in a process of its own.
pub fn alone(test: &str, env: &[(&str, &str)]) {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
        .envs(env.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}\n{errors}");
}

#[test]
fn idle_connections_cost_no_threads_and_little_memory() {
    alone("net::limits::two_thousand_idle_connections", &[]);
}

#[test]
#[ignore = "counts the threads and the memory of its process, so it runs alone in one"]
fn two_thousand_idle_connections() {
    const CONNECTIONS: usize = 2000;
    const EACH_MAX: usize = 12 << 10;
    spiderweb::net::raise_open_files().unwrap();
    let server = Server::echo(Limits::default());
    let mut conns: Vec<Raw> = (0..10).map(|_| Raw::connect(server.addr())).collect();
    let (threads, memory) = (threads(), resident());
    conns.extend((0..CONNECTIONS).map(|_| Raw::connect(server.addr())));
    for raw in &mut conns {
        raw.send(&frame(FIN | TEXT, b"hello"));
        raw.expect(TEXT, b"hello");
    }
    let each = (resident() - memory) / CONNECTIONS;
    println!("{each} bytes each");
    assert_eq!(self::threads(), threads);
    assert_eq!(server.net.stats().open, CONNECTIONS + 10);
    assert!(each < EACH_MAX, "{each} bytes for an idle connection");
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn a_server_out_of_files_recovers() {
    alone("net::limits::out_of_files", &[]);
}

#[test]
#[ignore = "uses up the files of its process, so it runs alone in one"]
fn out_of_files() {
    let server = Server::echo(Limits::default());
    let mut clients: Vec<TcpStream> = Vec::new();
    let connect = |addr: SocketAddr| TcpStream::connect(addr);
    // Leaves one file for a client, and none for the server's end of it.
    let mut files = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        files.push(file);
    }
    files.pop();
    clients.push(connect(server.addr()).unwrap());
    let mut waiting = clients.pop().unwrap();
    waiting.write_all(b"GET /hello HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(server.net.stats().accepted, 0);
    drop(files);
    assert!(Raw { tcp: waiting }.head().starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_handler_may_use_its_connection_from_anywhere() {
    // Closing, sending and changing limits from other threads while the I/O thread reads.
    let kept: &'static Mutex<Vec<Conn>> = Box::leak(Box::default());
    let server = Server::start(Limits::default(), |conn, message| {
        kept.lock().unwrap().push(conn.clone());
        conn.send(message).unwrap();
    });
    for round in 0..50 {
        let mut raw = Raw::connect(server.addr());
        raw.send(&go());
        raw.expect(TEXT, b"go");
        let conn = kept.lock().unwrap().pop().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| while conn.send(Message::text("x")).is_ok() {});
            scope.spawn(|| conn.set_limits(Limits { max_message: 5, ..Limits::default() }));
            scope.spawn(|| conn.close(Some(4000 + round), ""));
            let close = loop {
                let got = raw.frame();
                if got.first == FIN | CLOSE {
                    break got;
                }
                assert_eq!(got.payload, b"x");
            };
            assert_eq!(close.payload, (4000 + round).to_be_bytes());
        });
        raw.send(&frame(FIN | CLOSE, b""));
        assert!(raw.rest().is_empty());
    }
}
