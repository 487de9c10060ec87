//! The time limits, with a clock of our own: a turn is told what time it is.

use super::*;
use crate::net::head::Head;
use crate::net::message::{Message, Role};
use crate::net::reactor::Port;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;

const UPGRADE: &[u8] = b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n\r\n";

/// A service and handler that keep what they are told.
#[derive(Clone, Default)]
struct Seen {
    conn: Arc<Mutex<Option<Conn>>>,
    closed: Arc<Mutex<Vec<String>>>,
}

impl Service for Seen {
    fn request(&self, head: &Head, _peer: SocketAddr) -> Answer {
        match head.path.as_str() {
            "/" => {
                let limits = Limits { max_inflight: 1, ..Limits::default() };
                Answer::Upgrade(Accept { handler: Box::new(self.clone()), limits })
            }
            _ => Answer::Http(Response::text(404, "nothing here")),
        }
    }
}

impl Handler for Seen {
    fn open(&mut self, conn: &Conn) {
        *self.conn.lock().unwrap() = Some(conn.clone());
    }

    fn message(&mut self, _conn: &Conn, _message: Message) {}

    fn closed(&mut self, _conn: &Conn, reason: &Closed) {
        self.closed.lock().unwrap().push(reason.error().message.into_owned());
    }
}

struct Bench {
    peer: TcpStream,
    connection: Connection,
    seen: Seen,
    start: Instant,
}

impl Bench {
    fn new() -> Bench {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let (socket, addr) = listener.accept().unwrap();
        let transport = Arc::new(Transport::plain(socket).unwrap());
        let port = Port::new().unwrap();
        let limits = Limits::default();
        let shared = Shared::new(&transport, addr, Role::Server, limits, port);
        let (seen, start) = (Seen::default(), Instant::now());
        let service = Arc::new(seen.clone());
        let connection = Connection::accepted(shared, transport, service, start);
        Bench { peer, connection, seen, start }
    }

    fn upgraded() -> Bench {
        let mut bench = Bench::new();
        bench.peer.write_all(UPGRADE).unwrap();
        while !matches!(bench.connection.stage, Stage::Open(_)) {
            bench.turn(Duration::ZERO);
        }
        let mut answer = [0; 4096];
        assert!(bench.peer.read(&mut answer).unwrap() > 0);
        bench
    }

    /// A turn at that time since the start; false when the connection is gone.
    fn turn(&mut self, at: Duration) -> bool {
        let ready = Ready { readable: true, ..Ready::default() };
        matches!(self.connection.turn(ready, self.start + at), Fate::Keep { .. })
    }

    fn due(&mut self, at: Duration) -> Option<Duration> {
        match self.connection.turn(Ready::default(), self.start + at) {
            Fate::Keep { due, .. } => due.map(|due| due - self.start),
            Fate::Gone => None,
        }
    }

    fn read(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.peer.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Turns until what the peer sent has been read.
    fn hear(&mut self, at: Duration) {
        let before = self.connection.shared.port.bytes_in.get();
        while self.connection.shared.port.bytes_in.get() == before {
            assert!(self.turn(at));
        }
    }
}

#[test]
fn a_slow_head_is_answered_408_and_silence_with_nothing() {
    let mut bench = Bench::new();
    bench.peer.write_all(b"GET / HT").unwrap();
    bench.hear(Duration::ZERO);
    assert_eq!(bench.due(HEAD_TIME / 2), Some(HEAD_TIME));
    assert!(bench.turn(HEAD_TIME));
    assert!(bench.read(12).ends_with(b"408"));

    let mut silent = Bench::new();
    assert!(silent.turn(HEAD_TIME / 2));
    assert!(!silent.turn(HEAD_TIME));
}

#[test]
fn a_head_may_come_byte_by_byte() {
    let mut bench = Bench::new();
    for byte in UPGRADE {
        bench.peer.write_all(&[*byte]).unwrap();
        bench.hear(Duration::ZERO);
    }
    assert!(bench.read(12).ends_with(b"101"));
}

#[test]
fn a_silent_peer_is_pinged_and_then_dropped_unless_it_answers() {
    let limits = Limits::default();
    let mut bench = Bench::upgraded();
    assert_eq!(bench.due(Duration::ZERO), Some(limits.ping));
    assert_eq!(bench.due(limits.ping), Some(limits.idle));
    assert_eq!(bench.read(2), [0x89, 0]);
    bench.peer.write_all(&[0x8a, 0x80, 0, 0, 0, 0]).unwrap();
    bench.hear(limits.ping);
    let heard = limits.ping;
    assert_eq!(bench.due(heard), Some(heard + limits.ping));
    assert!(bench.turn(heard + limits.ping));
    assert!(!bench.turn(heard + limits.idle));
    assert!(bench.seen.closed.lock().unwrap()[0].contains("silent"));
}

#[test]
fn silence_does_not_count_while_we_do_not_listen() {
    let limits = Limits::default();
    let mut bench = Bench::upgraded();
    let conn = bench.seen.conn.lock().unwrap().clone().unwrap();
    let guard = conn.begin();
    assert!(bench.turn(Duration::ZERO) && bench.connection.paused);
    assert_eq!(bench.due(limits.idle * 2), None);
    drop(guard);
    assert_eq!(bench.due(limits.idle * 2), Some(limits.idle * 2 + limits.ping));
}

#[test]
fn the_wait_for_the_peers_close_frame_has_an_end() {
    let mut bench = Bench::upgraded();
    bench.seen.conn.lock().unwrap().clone().unwrap().close(None, "");
    assert_eq!(bench.due(Duration::ZERO), Some(CLOSE_TIME));
    assert_eq!(bench.read(2), [0x88, 0]);
    assert_eq!(bench.seen.closed.lock().unwrap().len(), 1);
    assert!(!bench.turn(CLOSE_TIME));
}

#[test]
fn a_peer_that_does_not_hang_up_is_not_waited_for() {
    let mut bench = Bench::new();
    bench.peer.write_all(b"GET /x HTTP/1.1\r\n\r\n").unwrap();
    bench.hear(Duration::ZERO);
    assert!(bench.read(12).ends_with(b"404"));
    assert_eq!(bench.due(Duration::ZERO), Some(LINGER));
    assert!(!bench.turn(LINGER));
}

#[test]
fn a_request_that_panics_the_service_is_answered_500() {
    struct Panics;
    impl Service for Panics {
        fn request(&self, _head: &Head, _peer: SocketAddr) -> Answer {
            panic!("on purpose")
        }
    }
    let mut bench = Bench::new();
    if let Stage::Head { service, .. } = &mut bench.connection.stage {
        *service = Arc::new(Panics);
    }
    bench.peer.write_all(UPGRADE).unwrap();
    bench.hear(Duration::ZERO);
    assert!(bench.read(12).ends_with(b"500"));
}
