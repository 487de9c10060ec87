//! `wss://` against a TLS server. The certificates were made for these tests and are valid for a
//! hundred years.

use super::limits::alone;
use super::server::{Collect, LONG};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use spiderweb::base::{Code, Deadline, Timer};
use spiderweb::net::{Closed, DialOptions, Message, Net, WsUrl};
use std::net::TcpListener;
use std::sync::Arc;

const CA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/net/tls_ca.pem");
/// Not the authority behind itself.
const LEAF: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/net/tls_cert.pem");

/// Serves one connection by blocking I/O: echoes until the client closes.
fn echo_server(listener: &TcpListener) {
    let cert = CertificateDer::from_pem_slice(include_bytes!("tls_cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("tls_key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)
        .unwrap();
    let session = rustls::ServerConnection::new(Arc::new(config)).unwrap();
    let (tcp, _) = listener.accept().unwrap();
    let stream = rustls::StreamOwned::new(session, tcp);
    let Ok(mut socket) = tungstenite::accept(stream) else { return };
    while let Ok(message) = socket.read() {
        if message.is_text() || message.is_binary() {
            socket.send(message).unwrap();
        }
    }
}

fn serve() -> (WsUrl, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("wss://localhost:{}/", listener.local_addr().unwrap().port());
    (url.parse().unwrap(), std::thread::spawn(move || echo_server(&listener)))
}

#[test]
fn an_authority_from_a_file_is_trusted() {
    alone("net::tls::with_the_authority", &[("SSL_CERT_FILE", CA)]);
    alone("net::tls::with_a_missing_file", &[("SSL_CERT_FILE", "/nonexistent")]);
    alone("net::tls::with_another_authority", &[("SSL_CERT_FILE", LEAF)]);
}

#[test]
#[ignore = "depends on the environment of its process"]
fn with_the_authority() {
    let (url, server) = serve();
    let net = Net::start(1, Timer::start().unwrap()).unwrap();
    let (handler, messages, closed) = Collect::new();
    let deadline = Deadline::after(LONG);
    let conn = net.dial(&url, &DialOptions::default(), deadline, handler).unwrap();
    let sent: Vec<_> = [0, 10, 100_000, 1 << 20, 4 << 20, 3]
        .into_iter()
        .map(|len| Message::binary((0..len).map(|n| n as u8).collect::<Vec<_>>()))
        .collect();
    for message in &sent {
        conn.send(message.clone()).unwrap();
    }
    for message in &sent {
        assert!(messages.recv_timeout(LONG).unwrap() == *message, "{} bytes", message.len());
    }
    conn.close(Some(1000), "");
    assert!(matches!(closed.recv_timeout(LONG).unwrap(), Closed::Local));
    server.join().unwrap();
    net.stop(deadline);
}

fn refused() -> spiderweb::base::Error {
    let (url, server) = serve();
    let net = Net::start(1, Timer::start().unwrap()).unwrap();
    let (handler, _messages, _closed) = Collect::new();
    let deadline = Deadline::after(LONG);
    let e = net.dial(&url, &DialOptions::default(), deadline, handler).unwrap_err();
    server.join().unwrap();
    net.stop(deadline);
    e
}

#[test]
#[ignore = "depends on the environment of its process"]
fn with_a_missing_file() {
    let e = refused();
    assert_eq!(e.code, Code::Config);
    assert!(e.message.contains("SSL_CERT_FILE"), "{e}");
}

#[test]
#[ignore = "depends on the environment of its process"]
fn with_another_authority() {
    let e = refused();
    assert_eq!(e.code, Code::Unavailable);
    assert!(e.message.contains("certificate"), "{e}");
}
