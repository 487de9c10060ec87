//! Outgoing connections: resolve, connect, TLS and the WebSocket handshake, all under one deadline,
//! on the calling thread.

use super::head;
use super::limits::{Limits, MESSAGE_MAX};
use super::transport::Transport;
use super::url::WsUrl;
use crate::base::{Code, Deadline, Error, Result, ResultExt};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use nix::poll::PollFlags;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::time::Duration;

/// How to reach a server.
#[derive(Clone)]
pub struct DialOptions {
    /// Sent as `Authorization: Bearer …`.
    pub bearer: Option<String>,
    /// Further request headers.
    pub headers: Vec<(String, String)>,
    pub limits: Limits,
    /// For each address tried, within the deadline of the whole.
    pub connect_timeout: Duration,
}

impl Default for DialOptions {
    fn default() -> DialOptions {
        DialOptions {
            bearer: None,
            headers: Vec::new(),
            limits: Limits { max_message: MESSAGE_MAX, ..Limits::default() },
            connect_timeout: Duration::from_secs(10),
        }
    }
}

/// A WebSocket after its handshake, and the bytes that came behind that.
pub(super) struct Dialled {
    pub transport: Transport,
    pub peer: SocketAddr,
    pub rest: Vec<u8>,
}

/// Errors: `connection_refused`, `timeout`, `unavailable`, `forbidden` (HTTP 401, 403),
/// `invalid_endpoint` (404); the message names the URL.
pub(super) fn dial(url: &WsUrl, options: &DialOptions, deadline: Deadline) -> Result<Dialled> {
    let attempt = || {
        let tcp = connect(url, options.connect_timeout, deadline)?;
        let peer = tcp.peer_addr()?;
        let mut transport = Transport::plain(tcp)?;
        if url.tls() {
            transport = transport.secure(url.host(), deadline)?;
        }
        let rest = shake_hands(&transport, url, options, deadline)?;
        Ok(Dialled { transport, peer, rest })
    };
    attempt().map_err(|e: Error| {
        let code = match e.code {
            Code::Refused | Code::Forbidden | Code::InvalidEndpoint | Code::Invalid => e.code,
            Code::Config | Code::Timeout => e.code,
            _ => Code::Unavailable,
        };
        e.context(url).recode(code)
    })
}

fn connect(url: &WsUrl, each: Duration, deadline: Deadline) -> Result<TcpStream> {
    let mut last = Error::new(Code::Unavailable, "the name has no address");
    for addr in resolve(url, deadline)? {
        let time = each.min(deadline.left());
        if time.is_zero() {
            return Err(Error::new(Code::Timeout, "no connection in time"));
        }
        match TcpStream::connect_timeout(&addr, time) {
            Ok(tcp) => return Ok(tcp),
            Err(e) => last = e.into(),
        }
    }
    Err(last)
}

/// The addresses of a host. The system's resolver knows no deadline, so a name is looked up on a
/// thread of its own, which ends when the resolver does.
fn resolve(url: &WsUrl, deadline: Deadline) -> Result<Vec<SocketAddr>> {
    if let Ok(ip) = url.host().parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, url.port())]);
    }
    let (send, found) = mpsc::channel();
    let name = (url.host().to_owned(), url.port());
    std::thread::Builder::new()
        .name("resolve".into())
        .spawn(move || {
            let _ = send.send(name.to_socket_addrs().map(Vec::from_iter));
        })
        .context("resolver thread")?;
    match found.recv_timeout(deadline.left()) {
        Ok(addrs) => addrs.map_err(|e| {
            Error::new(Code::Unavailable, format!("cannot resolve {}: {e}", url.host()))
        }),
        Err(_) => Err(Error::new(Code::Timeout, "the name was not resolved in time")),
    }
}

fn shake_hands(
    transport: &Transport,
    url: &WsUrl,
    options: &DialOptions,
    deadline: Deadline,
) -> Result<Vec<u8>> {
    let mut nonce = [0u8; 16];
    getrandom::fill(&mut nonce).map_err(|e| Error::new(Code::Eio, e.to_string()))?;
    let key = STANDARD.encode(nonce);
    let request = request(url, options, &key)?;
    let mut queue = VecDeque::from([Bytes::from(request)]);
    while !queue.is_empty() {
        match transport.write(&mut queue, usize::MAX).1 {
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                transport.wait(PollFlags::POLLOUT, deadline)?;
            }
            done => done?,
        }
    }
    let mut answer = Vec::new();
    let mut buffer = [0u8; 4096];
    loop {
        match transport.read(&mut buffer) {
            Ok(0) => {
                let text = "the server closed the connection instead of answering";
                return Err(Error::new(Code::Unavailable, text));
            }
            Ok(n) => answer.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                transport.wait(PollFlags::POLLIN, deadline).context("no answer")?;
                continue;
            }
            Err(e) => return Err(e.into()),
        }
        if let Some(end) = head::accepted(&answer, &key)? {
            return Ok(answer.split_off(end));
        }
    }
}

fn request(url: &WsUrl, options: &DialOptions, key: &str) -> Result<String> {
    let mut out = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n",
        url.target(),
        url.authority()
    );
    let bearer = options.bearer.as_ref().map(|t| ("Authorization", format!("Bearer {t}")));
    let bearer = bearer.iter().map(|(name, value)| (*name, value.as_str()));
    let others = options.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in bearer.chain(others) {
        if name.is_empty() || [name, value].iter().any(|s| s.chars().any(char::is_control)) {
            // The value may be a secret.
            return Err(Error::invalid(format!("the header {name:?} holds a control character")));
        }
        out.push_str(&format!("{name}: {value}\r\n"));
    }
    out.push_str("\r\n");
    Ok(out)
}
