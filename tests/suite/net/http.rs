//! The HTTP side: upgrades as the recorded clients ask for them, pages, refusals.

use super::raw::{FIN, Raw, TEXT, frame};
use super::server::{Collect, LONG, Server};
use spiderweb::base::{Code, Deadline};
use spiderweb::net::{DialOptions, Limits, WsUrl};
use std::net::{TcpListener, TcpStream};

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

#[test]
fn an_address_in_use_is_named() {
    let server = Server::echo(Limits::default());
    struct Never;
    impl spiderweb::net::Service for Never {
        fn request(
            &self,
            _: &spiderweb::net::Head,
            _: std::net::SocketAddr,
        ) -> spiderweb::net::Answer {
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
