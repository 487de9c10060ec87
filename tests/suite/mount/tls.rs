//! Nodes behind `wss://`.

use super::{Node, failed, ok, program};
use crate::conformance::Scratch;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;

const CA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/net/tls_ca.pem");

/// Ends TLS in front of a node, for one connection after the other; returns its port.
fn front(node: &Node) -> u16 {
    let cert = CertificateDer::from_pem_slice(include_bytes!("../net/tls_cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("../net/tls_key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)
        .unwrap();
    let (config, target) = (Arc::new(config), node.listener.addr());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for outside in listener.incoming().flatten() {
            let tls = rustls::ServerConnection::new(config.clone()).unwrap();
            let inside = TcpStream::connect(target).unwrap();
            let _ = relay(tls, outside, inside);
        }
    });
    port
}

fn relay(
    mut tls: rustls::ServerConnection,
    mut outside: TcpStream,
    mut inside: TcpStream,
) -> std::io::Result<()> {
    let mut buffer = [0; 65536];
    loop {
        while tls.wants_write() {
            tls.write_tls(&mut outside)?;
        }
        let mut fds =
            [outside.as_fd(), inside.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        poll(&mut fds, PollTimeout::NONE)?;
        let ready = fds.map(|fd| fd.any().unwrap_or(false));
        if ready[0] {
            if tls.read_tls(&mut outside)? == 0 {
                return Ok(());
            }
            tls.process_new_packets().map_err(std::io::Error::other)?;
            loop {
                match tls.reader().read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(n) => inside.write_all(&buffer[..n])?,
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Err(e) => return Err(e),
                }
            }
        }
        if ready[1] {
            match inside.read(&mut buffer)? {
                0 => return Ok(()),
                n => tls.writer().write_all(&buffer[..n])?,
            }
        }
    }
}

#[test]
fn a_node_behind_tls_is_read_when_its_authority_is_known() {
    let dir = Scratch::new();
    std::fs::write(dir.path().join("f"), "secret").unwrap();
    let node = Node::start(dir.path(), false);
    let endpoint = format!("a=wss://localhost:{}/v2/fs", front(&node));
    let cat = ["--endpoint", &endpoint, "cat", "/a/f"];
    let with = |file: &str| program(&cat).env("SSL_CERT_FILE", file).output().unwrap();
    assert_eq!(ok(with(CA)), "secret");
    let (_, errors) = failed(program(&cat).env_remove("SSL_CERT_FILE").output().unwrap());
    assert!(errors.contains("certificate"), "{errors}");
}
