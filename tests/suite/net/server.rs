//! A server for the tests: its handlers are closures.

use crossbeam_channel::{Receiver, Sender, unbounded};
use spiderweb::base::{Deadline, Timer};
use spiderweb::net::{
    Accept, Answer, Closed, Conn, Handler, Head, Limits, Listener, Message, Net, Response, Service,
};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Nothing on loopback takes this long; what waits for it has failed.
pub const LONG: Duration = Duration::from_secs(20);

type OnMessage = Arc<dyn Fn(&Conn, Message) + Send + Sync>;

pub struct Server {
    pub net: Arc<Net>,
    pub listener: Listener,
    pub timer: Timer,
    /// Connections as they open.
    pub opened: Receiver<Conn>,
    /// How they end.
    pub closed: Receiver<Closed>,
}

impl Server {
    /// Upgrades every path but `/none`, which is 404, and `/hello`, which is a page.
    pub fn start(
        limits: Limits,
        on_message: impl Fn(&Conn, Message) + Send + Sync + 'static,
    ) -> Server {
        let timer = Timer::start().unwrap();
        let net = Net::start(2, timer.clone()).unwrap();
        let (open, opened) = unbounded();
        let (close, closed) = unbounded();
        let peer = Peer { limits, on_message: Arc::new(on_message), open, close };
        let listener = net.listen(SocketAddr::from(([127, 0, 0, 1], 0)), Arc::new(peer)).unwrap();
        Server { net, listener, timer, opened, closed }
    }

    pub fn echo(limits: Limits) -> Server {
        Server::start(limits, |conn, message| {
            let _ = conn.send(message);
        })
    }

    pub fn addr(&self) -> SocketAddr {
        self.listener.addr()
    }

    pub fn url(&self) -> spiderweb::net::WsUrl {
        format!("ws://{}/", self.addr()).parse().unwrap()
    }

    pub fn next_conn(&self) -> Conn {
        self.opened.recv_timeout(LONG).unwrap()
    }

    pub fn next_closed(&self) -> Closed {
        self.closed.recv_timeout(LONG).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.net.stop(Deadline::after_ms(0));
        self.timer.stop();
    }
}

#[derive(Clone)]
struct Peer {
    limits: Limits,
    on_message: OnMessage,
    open: Sender<Conn>,
    close: Sender<Closed>,
}

impl Service for Peer {
    fn request(&self, head: &Head, _peer: SocketAddr) -> Answer {
        match head.path.as_str() {
            "/none" => Answer::Http(Response::text(404, "nothing here")),
            "/hello" => {
                let words = format!("hello {} {}", head.query, head.bearer().unwrap_or("nobody"));
                Answer::Http(Response::text(200, words))
            }
            _ => Answer::Upgrade(Accept { handler: Box::new(self.clone()), limits: self.limits }),
        }
    }
}

impl Handler for Peer {
    fn open(&mut self, conn: &Conn) {
        let _ = self.open.send(conn.clone());
    }

    fn message(&mut self, conn: &Conn, message: Message) {
        (self.on_message)(conn, message);
    }

    fn closed(&mut self, _conn: &Conn, reason: &Closed) {
        let _ = self.close.send(reason.clone());
    }
}

/// A client that passes on what it gets.
pub struct Collect {
    pub messages: Sender<Message>,
    pub closed: Sender<Closed>,
}

impl Collect {
    pub fn new() -> (Box<Collect>, Receiver<Message>, Receiver<Closed>) {
        let (messages, got) = unbounded();
        let (closed, end) = unbounded();
        (Box::new(Collect { messages, closed }), got, end)
    }
}

impl Handler for Collect {
    fn message(&mut self, _conn: &Conn, message: Message) {
        let _ = self.messages.send(message);
    }

    fn closed(&mut self, _conn: &Conn, reason: &Closed) {
        let _ = self.closed.send(reason.clone());
    }
}
