//! The HTTP side: upgrades as the recorded clients ask for them, pages, refusals.

use super::raw::{FIN, Raw, TEXT, frame};
use super::server::{Collect, LONG, Server};
use crate::mount::until;
use spiderweb::base::{Code, Deadline};
use spiderweb::net::{DialOptions, Limits, STRANGERS_MAX, WsUrl, raise_open_files};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

fn ask(server: &Server, request: &str) -> String {
    let mut raw = Raw::bare(server.addr());
    raw.send(request.as_bytes());
    String::from_utf8(raw.rest()).unwrap()
}

#[test]
fn the_recorded_upgrades_are_answered_with_three_headers() {
    let server = Server::echo(Limits::default());
    let mut raw = Raw::bare(server.addr());
    // spiderweb-control's key of 21 bytes, and ZiggyStarClaw's content length and origin; the first
    // frame comes with the head.
    let request = "GET / HTTP/1.1\r\nHost: 127.0.0.1:28780\r\nconnection: upgrade\r\n\
        upgrade: websocket\r\nsec-websocket-version: 13\r\n\
        sec-websocket-key: c3BpZGVyd2ViLWNvbnRyb2wtY2xp\r\ncontent-length: 0\r\n\
        Origin: http://127.0.0.1\r\nAuthorization: Bearer T\r\n\r\n";
    raw.send(&[request.as_bytes(), &frame(FIN | TEXT, b"early")].concat());
    assert_eq!(
        raw.head(),
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: YW20eEsgAOPNkxFiWngfFrNZ+hI=\r\n\r\n"
    );
    raw.expect(TEXT, b"early");
}

#[test]
fn pages_and_refusals() {
    let server = Server::echo(Limits::default());
    let page = ask(&server, "GET /hello?a=1 HTTP/1.1\r\nauthorization: bearer T\r\n\r\n");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    assert!(page.contains("\r\nConnection: close\r\n") && page.ends_with("\r\n\r\nhello a=1 T\n"));
    let head = ask(&server, "HEAD /hello HTTP/1.1\r\n\r\n");
    assert!(head.contains("\r\nContent-Length: 14\r\n") && head.ends_with("\r\n\r\n"), "{head}");

    for (request, status) in [
        ("GET /none HTTP/1.1\r\n\r\n", 404),
        ("GET / HTTP/1.1\r\n\r\n", 426),
        ("POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc", 405),
        ("\x16\x03\x01 not HTTP at all\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n", 426),
    ] {
        let answer = ask(&server, request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
    }
    // The answer survives though the server has not read everything.
    let long = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(100_000));
    assert!(ask(&server, &long).starts_with("HTTP/1.1 431 "));
}

/// A connection from an address of this host that is not the usual one.
fn from(host: [u8; 4], to: SocketAddr) -> TcpStream {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let [a, b, c, d] = host;
    bind(fd.as_raw_fd(), &SockaddrIn::new(a, b, c, d, 0)).unwrap();
    let SocketAddr::V4(to) = to else { panic!("{to}") };
    connect(fd.as_raw_fd(), &SockaddrIn::from(to)).unwrap();
    fd.into()
}

#[test]
fn who_connects_and_says_nothing_does_not_keep_others_out() {
    raise_open_files().unwrap();
    let server = Server::echo(Limits::default());
    // Known connections are no strangers.
    let mut known: Vec<_> = (0..3).map(|_| Raw::connect(server.addr())).collect();
    let mut silent: Vec<_> = (0..STRANGERS_MAX).map(|_| Raw::bare(server.addr())).collect();
    assert!(Raw::bare(server.addr()).head().starts_with("HTTP/1.1 503 "));
    let mut other = Raw::on(from([127, 0, 0, 2], server.addr()));
    other.send(b"GET /hello HTTP/1.1\r\n\r\n");
    assert!(other.head().starts_with("HTTP/1.1 200 "));
    known[0].send(&frame(FIN | TEXT, b"still here"));
    known[0].expect(TEXT, b"still here");
    drop(silent.pop());
    until("room for one more", || {
        let mut raw = Raw::bare(server.addr());
        raw.send(b"GET /hello HTTP/1.1\r\n\r\n");
        raw.head().starts_with("HTTP/1.1 200 ")
    });
}

#[test]
fn an_address_in_use_is_named() {
    let server = Server::echo(Limits::default());
    struct Never;
    impl spiderweb::net::Service for Never {
        fn request(&self, _: &spiderweb::net::Head, _: SocketAddr) -> spiderweb::net::Answer {
            spiderweb::net::Answer::Http(spiderweb::net::Response::text(404, ""))
        }
    }
    let e = server.net.listen(server.addr(), std::sync::Arc::new(Never)).err().unwrap();
    assert_eq!(e.code, Code::AddressInUse);
    assert!(e.message.contains(&server.addr().to_string()), "{e}");
    server.listener.stop();
    assert!(TcpStream::connect(server.addr()).is_err());
    let again = server.net.listen(server.addr(), std::sync::Arc::new(Never)).unwrap();
    assert_eq!(again.addr(), server.addr());
}

fn dial(url: &WsUrl, deadline: Deadline) -> Code {
    let server = Server::echo(Limits::default());
    let (handler, _messages, _closed) = Collect::new();
    let e = server.net.dial(url, &DialOptions::default(), deadline, handler).unwrap_err();
    assert!(e.message.contains(&url.to_string()), "{e}");
    e.code
}

#[test]
fn a_failed_dial_says_why() {
    let server = Server::echo(Limits::default());
    let long = || Deadline::after(LONG);
    assert_eq!(dial(&server.url().with_path("/none"), long()), Code::InvalidEndpoint);
    assert_eq!(dial(&server.url().with_path("/hello"), long()), Code::Unavailable);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url: WsUrl = format!("ws://{}/", listener.local_addr().unwrap()).parse().unwrap();
    // It takes the connection and says nothing.
    assert_eq!(dial(&url, Deadline::after_ms(50)), Code::Timeout);
    drop(listener);
    assert_eq!(dial(&url, long()), Code::Refused);
}

#[test]
fn a_name_is_resolved() {
    let server = Server::echo(Limits::default());
    let url: WsUrl = format!("ws://localhost:{}/", server.addr().port()).parse().unwrap();
    let (handler, _messages, _closed) = Collect::new();
    server.net.dial(&url, &DialOptions::default(), Deadline::after(LONG), handler).unwrap();
}
