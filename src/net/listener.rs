//! Listening sockets: accepting, spreading the connections over the I/O threads, refusing under load.

use super::Service;
use super::connection::Connection;
use super::limits::Limits;
use super::message::Role;
use super::outbox::Shared;
use super::reactor::{Command, Counter, Port, adopt};
use super::strangers::Strangers;
use super::transport::Transport;
use crate::base::{Code, Error, Result};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Connections of the process; one more is answered 503.
pub const CONNECTIONS_MAX: usize = 20_000;

/// Connections accepted before others get their turn.
const TURN_ACCEPTS: usize = 64;

/// How long to leave connections waiting when the process can open no more files.
const REST: Duration = Duration::from_millis(250);

/// Raises the process's limit of open files as far as it may; the new limit. Servers call it first.
pub fn raise_open_files() -> Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

/// A listening socket. Dropping it stops it.
#[must_use = "dropping it stops listening"]
pub struct Listener {
    addr: SocketAddr,
    listening: Arc<Listening>,
    port: Arc<Port>,
}

impl Listener {
    pub(super) fn start(
        addr: SocketAddr,
        service: Arc<dyn Service>,
        port: Arc<Port>,
    ) -> Result<Listener> {
        let fail = |e: std::io::Error| {
            let error = Error::from(e);
            if error.code == Code::AddressInUse {
                let text = format!("{addr} is in use by another program");
                return Error::new(Code::AddressInUse, text);
            }
            error.context(format!("cannot listen on {addr}"))
        };
        let socket = TcpListener::bind(addr).map_err(fail)?;
        socket.set_nonblocking(true).map_err(fail)?;
        let addr = socket.local_addr().map_err(fail)?;
        let id = super::next_id();
        let listening = Arc::new(Listening { id, service, socket: Mutex::new(Some(socket)) });
        if !port.post(Command::Listen(listening.clone())) {
            return Err(super::reactor::stopped());
        }
        Ok(Listener { addr, listening, port })
    }

    /// The bound address, with the real port where 0 was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Stops accepting; the address is free on return.
    pub fn stop(&self) {
        self.listening.close();
        self.port.post(Command::Unlisten(self.listening.id));
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a listener shares with the thread that accepts for it.
pub(super) struct Listening {
    pub id: u64,
    service: Arc<dyn Service>,
    /// `None` once stopped.
    socket: Mutex<Option<TcpListener>>,
}

impl Listening {
    pub fn with<T>(&self, f: impl FnOnce(&TcpListener) -> T) -> Option<T> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(f)
    }

    pub fn close(&self) {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// What an I/O thread needs to accept connections for all of them.
pub(super) struct Accepting {
    pub ports: Arc<[Arc<Port>]>,
    pub accepted: Arc<Counter>,
    pub strangers: Strangers,
}

impl Accepting {
    /// Takes what waits. Errors with the moment to come back at when the process is out of files.
    pub fn accept(&self, listening: &Listening, now: Instant) -> Result<(), Instant> {
        for _ in 0..TURN_ACCEPTS {
            match listening.with(TcpListener::accept) {
                None => return Ok(()),
                Some(Ok((socket, peer))) => {
                    self.accepted.add(1);
                    self.place(socket, peer, listening, now);
                }
                Some(Err(e)) => match e.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EAGAIN) => return Ok(()),
                    Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => {
                        log::warn!("cannot accept a connection: {e}");
                        return Err(now + REST);
                    }
                    // The connection ended before it was taken.
                    _ => {}
                },
            }
        }
        Ok(())
    }

    fn place(&self, mut socket: TcpStream, peer: SocketAddr, listening: &Listening, now: Instant) {
        let load = |port: &Arc<Port>| port.load.load(Ordering::Relaxed);
        let total: usize = self.ports.iter().map(load).sum();
        let Some(port) = self.ports.iter().min_by_key(|port| load(port)) else { return };
        let stranger = self.strangers.enter(peer.ip()).filter(|_| total < CONNECTIONS_MAX);
        let Some(stranger) = stranger else {
            let busy = "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\n";
            let _ = socket.set_nonblocking(true).and_then(|()| socket.write(busy.as_bytes()));
            return;
        };
        let Ok(transport) = Transport::plain(socket).map(Arc::new) else { return };
        let limits = Limits::unauthenticated();
        let shared = Shared::new(&transport, peer, Role::Server, limits, port.clone());
        shared.met(stranger);
        adopt(Connection::accepted(shared, transport, listening.service.clone(), now));
    }
}
