//! The network: listening, the HTTP head, WebSocket connections with bounded outboxes on a few I/O
//! threads, dialling with TLS, and the multiplexing client. It knows no meaning of a message.

mod conn;
mod connection;
mod control;
mod dial;
mod head;
mod limits;
mod listener;
mod message;
mod mux;
mod outbox;
mod reactor;
mod seat;
mod session;
mod strangers;
mod transport;
mod url;

pub use conn::{Conn, InFlight};
pub use control::Control;
pub use dial::DialOptions;
pub use head::{Head, Response};
pub use limits::{Limits, MESSAGE_MAX, MESSAGE_MAX_UNAUTHENTICATED};
pub use listener::{CONNECTIONS_MAX, Listener, raise_open_files};
pub use message::{Message, Outgoing, Text};
pub use mux::{CallError, Inbound, Mux};
pub use strangers::STRANGERS_MAX;
pub use url::WsUrl;

use crate::base::{Code, Deadline, Error, Result, ResultExt, Timer};
use connection::Connection;
use listener::Accepting;
use message::Role;
use reactor::{Command, Counter, Port, Reactor};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;
use strangers::Strangers;

/// Decides about requests; one per listener. Called on an I/O thread: it must not block.
pub trait Service: Send + Sync {
    fn request(&self, head: &Head, peer: SocketAddr) -> Answer;
}

/// What becomes of a request. An upgrade that the request did not properly ask for is answered 400
/// or 426 instead, and its handler is dropped.
pub enum Answer {
    Upgrade(Accept),
    Http(Response),
}

/// A WebSocket that begins.
pub struct Accept {
    pub handler: Box<dyn Handler>,
    pub limits: Limits,
}

/// One per connection, called from the thread that owns it or from one that waits for a reply on it,
/// never concurrently: it must not block. If it panics, the connection is closed with 1011.
pub trait Handler: Send {
    /// Called first.
    fn open(&mut self, _conn: &Conn) {}
    fn message(&mut self, conn: &Conn, message: Message);
    /// Called once, after everything else.
    fn closed(&mut self, _conn: &Conn, _reason: &Closed) {}
}

/// How a connection ended.
#[derive(Clone, Debug)]
pub enum Closed {
    /// The peer sent a close frame.
    Peer { code: Option<u16>, reason: Text },
    /// [`Conn::close`] or [`Net::stop`] on this end.
    Local,
    /// It broke, a time limit passed, or the peer violated the protocol.
    Lost(Error),
}

impl Closed {
    /// What those hear who still waited for something: always `unavailable`.
    pub fn error(&self) -> Error {
        match self {
            Closed::Peer { code: Some(code), reason } => Error::new(
                Code::Unavailable,
                format!("the peer closed the connection ({code}) {reason}").trim_end().to_owned(),
            ),
            Closed::Peer { code: None, .. } => {
                Error::new(Code::Unavailable, "the peer closed the connection")
            }
            Closed::Local => Error::new(Code::Unavailable, "the connection was closed"),
            Closed::Lost(e) => e.clone().recode(Code::Unavailable),
        }
    }
}

/// Counts since the start, and connections now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub open: usize,
    pub accepted: u64,
    pub messages_in: u64,
    pub messages_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// The I/O threads. Each waits in epoll and owns its connections alone.
pub struct Net {
    ports: Arc<[Arc<Port>]>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    accepted: Arc<Counter>,
    next: AtomicUsize,
    timer: Timer,
}

impl Net {
    /// Starts `threads` of them, or one per core for 0. The timer keeps the deadlines of
    /// [`Mux::start`].
    pub fn start(threads: usize, timer: Timer) -> Result<Arc<Net>> {
        let count = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let ports: Arc<[Arc<Port>]> = (0..count).map(|_| Port::new()).collect::<Result<_>>()?;
        let net = Arc::new(Net {
            ports: ports.clone(),
            threads: Mutex::default(),
            accepted: Arc::default(),
            next: AtomicUsize::new(0),
            timer,
        });
        let strangers = Strangers::default();
        for (n, port) in ports.iter().enumerate() {
            let (accepted, strangers) = (net.accepted.clone(), strangers.clone());
            let accepting = Accepting { ports: ports.clone(), accepted, strangers };
            let reactor = Reactor::new(port.clone(), accepting)?;
            let thread = std::thread::Builder::new()
                .name(format!("net-{n}"))
                .spawn(move || reactor.run())
                .context("I/O thread")?;
            net.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(net)
    }

    /// Listens on an address; port 0 takes a free one. Errors: `address_in_use`, naming the address.
    pub fn listen(&self, addr: SocketAddr, service: Arc<dyn Service>) -> Result<Listener> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        Listener::start(addr, service, self.ports[turn % self.ports.len()].clone())
    }

    /// Connects to a server. Name lookup, TLS and handshake happen on the calling thread; then the
    /// connection goes to an I/O thread, which calls the handler. Errors: `connection_refused`,
    /// `timeout`, `unavailable`, `forbidden`, `invalid_endpoint`, `invalid`, naming the URL.
    pub fn dial(
        &self,
        url: &WsUrl,
        options: &DialOptions,
        deadline: Deadline,
        handler: Box<dyn Handler>,
    ) -> Result<Conn> {
        let dialled = dial::dial(url, options, deadline)?;
        let least = self.ports.iter().min_by_key(|port| port.load.load(Ordering::Relaxed));
        let port = least.ok_or_else(reactor::stopped)?.clone();
        let transport = Arc::new(dialled.transport);
        let shared =
            outbox::Shared::new(&transport, dialled.peer, Role::Client, options.limits, port);
        let conn = Conn(shared.clone());
        let connection =
            Connection::upgraded(shared, transport, dialled.rest, handler, Instant::now());
        if reactor::adopt(connection) { Ok(conn) } else { Err(reactor::stopped()) }
    }

    /// Stops listening, lets each connection answer its requests in flight and empty its outbox
    /// until `grace`, closes it with 1001, and joins the threads.
    pub fn stop(&self, grace: Deadline) {
        for port in self.ports.iter() {
            port.post(Command::Stop(grace.instant()));
        }
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }

    /// True unless an I/O thread has ended before [`Net::stop`].
    pub fn is_whole(&self) -> bool {
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.iter().all(|thread| !thread.is_finished())
    }

    pub fn stats(&self) -> Stats {
        let sum = |count: fn(&Port) -> u64| self.ports.iter().map(|port| count(port)).sum();
        Stats {
            open: self.ports.iter().map(|port| port.load.load(Ordering::Relaxed)).sum(),
            accepted: self.accepted.get(),
            messages_in: sum(|p| p.received.get()),
            messages_out: sum(|p| p.sent.get()),
            bytes_in: sum(|p| p.bytes_in.get()),
            bytes_out: sum(|p| p.bytes_out.get()),
        }
    }

    pub fn timer(&self) -> &Timer {
        &self.timer
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.stop(Deadline::after_ms(0));
    }
}

/// Names connections and listeners, uniquely in the process; never 0.
fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
