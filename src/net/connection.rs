//! One connection as its I/O thread sees it: HTTP head, then WebSocket, then the ending. It decides
//! and reads; it knows nothing of epoll. Only the owning thread touches it.

use super::conn::{Conn, Gate, Limits, Shared, View, lost};
use super::head::{self, HEAD_MAX, Parsed, Response};
use super::message::{Frame, Message, Role};
use super::transport::Transport;
use super::{Accept, Answer, Closed, Handler, Service};
use crate::base::{Code, Error};
use std::io::{self, ErrorKind, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{self, WebSocketConfig, WebSocketContext};

/// Time for a request head to arrive.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Time for the peer to answer our close frame, once it is on its way.
const CLOSE_TIME: Duration = Duration::from_secs(2);
/// Time for the peer to see the end of the stream before the socket is dropped: dropped at once, it
/// would be reset, and our last frame lost.
const LINGER: Duration = Duration::from_secs(2);
/// Read buffer of a connection; it also bounds how much of an announced message is set aside before
/// its bytes come.
const READ_BUFFER: usize = 4 << 10;
/// Messages and bytes read from one connection before others get their turn.
const TURN_MESSAGES: usize = 64;
const TURN_BYTES: usize = 1 << 20;

pub(super) struct Connection {
    pub shared: Arc<Shared>,
    pub transport: Arc<Transport>,
    stage: Stage,
    /// Last time that bytes came.
    heard: Instant,
    /// Reading has paused for want of room.
    paused: bool,
    /// The reader stopped before it had seen everything that is there.
    more: bool,
}

enum Stage {
    Head {
        bytes: Vec<u8>,
        service: Arc<dyn Service>,
        until: Instant,
    },
    Open(Box<Session>),
    /// What is queued goes out, then the stream is shut; what comes is ignored.
    Ending {
        until: Option<Instant>,
        eof: bool,
    },
}

struct Session {
    /// Reads only. What it would write (pongs, close replies) we write ourselves, through the outbox.
    context: WebSocketContext,
    /// `None` once the handler has been told of the end and only the peer's close frame is awaited.
    handler: Option<Box<dyn Handler>>,
    /// A ping is unanswered.
    pinged: bool,
    /// When to stop waiting for the peer's close frame.
    close_by: Option<Instant>,
}

/// What epoll said.
#[derive(Clone, Copy, Default)]
pub(super) struct Ready {
    pub readable: bool,
    pub writable: bool,
    /// The peer is gone, or, asked for, will send no more.
    pub hangup: bool,
}

/// What the connection wants after a turn.
pub(super) enum Fate {
    Keep {
        read: bool,
        write: bool,
        /// To hear when the peer has gone though nothing is read.
        hangup: bool,
        /// When to look at it though nothing happens.
        due: Option<Instant>,
        /// Another turn at once.
        again: bool,
    },
    Gone,
}

impl Connection {
    /// A freshly accepted socket.
    pub fn accepted(
        shared: Arc<Shared>,
        transport: Arc<Transport>,
        service: Arc<dyn Service>,
        now: Instant,
    ) -> Connection {
        let stage = Stage::Head { bytes: Vec::new(), service, until: now + HEAD_TIME };
        Connection { shared, transport, stage, heard: now, paused: false, more: true }
    }

    /// A WebSocket after its handshake; `rest` is what came behind that.
    pub fn upgraded(
        shared: Arc<Shared>,
        transport: Arc<Transport>,
        rest: Vec<u8>,
        handler: Box<dyn Handler>,
        now: Instant,
    ) -> Connection {
        let stage = Stage::Open(Box::new(Session::new(&shared, rest, handler)));
        Connection { shared, transport, stage, heard: now, paused: false, more: true }
    }

    /// The first turn, when the connection has come to its thread.
    pub fn begin(&mut self, now: Instant) -> Fate {
        self.shared.hold();
        self.tell(|handler, conn| handler.open(conn));
        self.run(Ready { readable: true, ..Ready::default() }, now)
    }

    /// Reads what has come, lets the handler answer, writes what is queued, keeps the time.
    pub fn turn(&mut self, ready: Ready, now: Instant) -> Fate {
        self.shared.hold();
        self.run(ready, now)
    }

    fn run(&mut self, ready: Ready, now: Instant) -> Fate {
        if self.reads() {
            if ready.readable || ready.hangup || self.more {
                self.read(now);
            }
        } else if ready.hangup {
            self.leave(Closed::Lost(lost(&ErrorKind::ConnectionReset.into())));
            return Fate::Gone;
        }
        if let Err(late) = self.keep_time(now) {
            self.leave(Closed::Lost(late));
            return Fate::Gone;
        }
        self.settle(ready.writable, now)
    }

    /// The connection leaves its thread: nobody will hear of it again.
    pub fn finish(&mut self, reason: Closed) {
        self.leave(reason);
        self.shared.clear();
    }

    /// Whether what the peer sends is taken now.
    fn reads(&self) -> bool {
        match &self.stage {
            Stage::Head { .. } => true,
            Stage::Open(session) => !self.paused || session.handler.is_none(),
            Stage::Ending { eof, .. } => !eof,
        }
    }

    fn settle(&mut self, writable: bool, now: Instant) -> Fate {
        let mut view = self.shared.settle(writable);
        if view.draining && !view.closing {
            self.shared.close(Some(1001), "going away");
            view = self.shared.settle(false);
        }
        if let Some(error) = view.failed {
            self.leave(Closed::Lost(error));
            return Fate::Gone;
        }
        if self.paused && !view.paused {
            // The peer's silence was ours.
            self.heard = now;
        }
        self.paused = view.paused;
        if view.closing {
            self.leave(Closed::Local);
            if view.flushed && self.wind_up(now) {
                return Fate::Gone;
            }
        }
        if view.blocked.is_some_and(|since| now >= since + view.limits.write_stall) {
            self.leave(Closed::Lost(Error::new(
                Code::Timeout,
                format!("the peer has read nothing for {:?}", view.limits.write_stall),
            )));
            return Fate::Gone;
        }
        let read = self.reads();
        Fate::Keep {
            read,
            write: view.blocked.is_some(),
            hangup: !read && matches!(self.stage, Stage::Open(_)),
            due: self.due(&view),
            again: self.more && read,
        }
    }

    /// Moves a closing connection on, its outbox being empty; true when it is over.
    fn wind_up(&mut self, now: Instant) -> bool {
        match &mut self.stage {
            Stage::Head { .. } => {}
            Stage::Open(session) => {
                session.close_by.get_or_insert(now + CLOSE_TIME);
            }
            Stage::Ending { eof: true, .. } => return true,
            Stage::Ending { until, .. } => {
                if until.is_none() {
                    self.transport.finish();
                    *until = Some(now + LINGER);
                }
            }
        }
        false
    }

    /// Pings a silent peer. Errors when a time limit has passed.
    fn keep_time(&mut self, now: Instant) -> Result<(), Error> {
        let late = |what: &str| Err(Error::new(Code::Timeout, what.to_owned()));
        match &mut self.stage {
            Stage::Head { bytes, until, .. } if now >= *until => {
                if bytes.is_empty() {
                    return late("no request came");
                }
                self.answer(&Response::text(408, "the request head did not arrive in time"), true);
            }
            Stage::Ending { until: Some(until), .. } if now >= *until => {
                return late("the peer did not end the connection");
            }
            Stage::Open(session) if session.close_by.is_some_and(|until| now >= until) => {
                return late("the peer did not answer the close frame");
            }
            Stage::Open(session) if !self.paused && session.handler.is_some() => {
                let limits = Conn(self.shared.clone()).limits();
                if now >= self.heard + limits.idle {
                    return late(&format!("the peer was silent for {:?}", limits.idle));
                }
                if !session.pinged && now >= self.heard + limits.ping {
                    session.pinged = true;
                    self.shared.queue_raw(Frame::ping(self.shared.role));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The next moment at which [`Connection::keep_time`] or the stall check has something to do.
    fn due(&self, view: &View) -> Option<Instant> {
        let Limits { idle, ping, write_stall, .. } = view.limits;
        let stage = match &self.stage {
            Stage::Head { until, .. } => Some(*until),
            Stage::Ending { until, .. } => *until,
            Stage::Open(s) if s.close_by.is_some() => s.close_by,
            Stage::Open(_) if self.paused => None,
            Stage::Open(s) if s.pinged => Some(self.heard + idle),
            Stage::Open(_) => Some(self.heard + ping.min(idle)),
        };
        let stall = view.blocked.map(|since| since + write_stall);
        stage.into_iter().chain(stall).min()
    }

    fn read(&mut self, now: Instant) {
        let mut source = Source::new(&self.transport);
        let outcome = match &mut self.stage {
            Stage::Head { bytes, .. } => read_head(bytes, &mut source),
            Stage::Open(session) => session.read(&self.shared, &mut source),
            Stage::Ending { .. } => discard(&mut source),
        };
        if source.got > 0 {
            self.heard = now;
            self.shared.port.bytes_in.add(source.got as u64);
            if let Stage::Open(session) = &mut self.stage {
                session.pinged = false;
            }
        }
        self.more = matches!(outcome, Outcome::More);
        match outcome {
            Outcome::More | Outcome::Dry => {}
            Outcome::Request(parsed) => self.request(parsed, now),
            Outcome::End { reply, reason } => {
                if let Stage::Ending { eof, .. } = &mut self.stage {
                    *eof = true;
                    return;
                }
                let sealed = self.shared.gate() == Gate::Closing;
                if let (Some((code, words)), false) = (reply, sealed) {
                    self.shared.queue_raw(Frame::close(code, words, self.shared.role));
                }
                self.leave(reason);
                self.end();
            }
        }
    }

    /// From here on only what is queued goes out.
    fn end(&mut self) {
        self.shared.seal();
        self.stage = Stage::Ending { until: None, eof: false };
        self.more = true;
    }

    fn request(&mut self, parsed: Parsed, now: Instant) {
        let Stage::Head { bytes, service, .. } = &mut self.stage else { return };
        let (head, used) = match parsed {
            Parsed::Incomplete => return,
            Parsed::Refused(response) => return self.answer(&response, true),
            Parsed::Head(head, used) => (head, used),
        };
        let rest = bytes.split_off(used);
        let service = service.clone();
        let peer = self.shared.peer;
        let answer = catch_unwind(AssertUnwindSafe(|| service.request(&head, peer)));
        let answer = answer.unwrap_or_else(|_| {
            log::error!("the service panicked at {} {}", head.method, head.path);
            Answer::Http(Response::text(500, "internal error"))
        });
        let with_body = head.method != "HEAD";
        match answer {
            Answer::Http(response) => self.answer(&response, with_body),
            Answer::Upgrade(Accept { handler, limits }) => match head::upgrade(&head) {
                Err(response) => self.answer(&response, with_body),
                Ok(response) => {
                    self.shared.queue_raw(Frame::raw(response));
                    Conn(self.shared.clone()).set_limits(limits);
                    self.stage = Stage::Open(Box::new(Session::new(&self.shared, rest, handler)));
                    self.tell(|handler, conn| handler.open(conn));
                    self.more = true;
                    self.heard = now;
                }
            },
        }
    }

    fn answer(&mut self, response: &Response, with_body: bool) {
        self.shared.queue_raw(Frame::raw(response.encode(with_body)));
        self.end();
    }

    /// Tells the handler, once, that the connection is over.
    fn leave(&mut self, reason: Closed) {
        self.shared.seal();
        if let Stage::Open(session) = &mut self.stage
            && let Some(mut handler) = session.handler.take()
        {
            let conn = Conn(self.shared.clone());
            if catch_unwind(AssertUnwindSafe(move || handler.closed(&conn, &reason))).is_err() {
                log::error!("a connection's handler panicked at its end");
            }
        }
    }

    fn tell(&mut self, f: impl FnOnce(&mut dyn Handler, &Conn)) {
        if let Stage::Open(session) = &mut self.stage {
            session.call(&Conn(self.shared.clone()), f);
        }
    }
}

/// What reading came to.
enum Outcome {
    /// Nothing more is there.
    Dry,
    /// Reading stopped early: the turn was over, or the outbox or the requests in flight are full.
    More,
    Request(Parsed),
    /// The stream is at its end, or what came cannot be understood.
    End {
        reply: Option<(Option<u16>, &'static str)>,
        reason: Closed,
    },
}

impl Outcome {
    fn broken(code: u16, words: &'static str, error: Error) -> Outcome {
        Outcome::End { reply: Some((Some(code), words)), reason: Closed::Lost(error) }
    }

    fn lost(e: &io::Error) -> Outcome {
        Outcome::End { reply: None, reason: Closed::Lost(lost(e)) }
    }
}

impl Session {
    fn new(shared: &Shared, rest: Vec<u8>, handler: Box<dyn Handler>) -> Session {
        let role = match shared.role {
            Role::Server => protocol::Role::Server,
            Role::Client => protocol::Role::Client,
        };
        let max = Some(shared.max_message.load(Ordering::Relaxed));
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_message_size(max)
            .max_frame_size(max);
        let context = WebSocketContext::from_partially_read(rest, role, Some(config));
        Session { context, handler: Some(handler), pinged: false, close_by: None }
    }

    fn read(&mut self, shared: &Arc<Shared>, source: &mut Source<'_>) -> Outcome {
        let conn = Conn(shared.clone());
        for _ in 0..TURN_MESSAGES {
            match shared.gate() {
                Gate::Paused => return Outcome::More,
                // The handler has closed: it hears of no more messages.
                Gate::Closing if self.handler.is_some() => return Outcome::More,
                Gate::Open | Gate::Closing => {}
            }
            let max = Some(shared.max_message.load(Ordering::Relaxed));
            if self.context.get_config().max_message_size != max {
                self.context.set_config(|c| (c.max_message_size, c.max_frame_size) = (max, max));
            }
            match self.context.read(source) {
                Ok(tungstenite::Message::Text(text)) => self.message(&conn, Message::Text(text)),
                Ok(tungstenite::Message::Binary(data)) => {
                    self.message(&conn, Message::Binary(data));
                }
                Ok(tungstenite::Message::Ping(payload)) => {
                    if self.handler.is_some() {
                        shared.queue_raw(Frame::pong(payload, shared.role));
                    }
                }
                Ok(tungstenite::Message::Close(frame)) => return closed_by_peer(frame),
                Ok(_) => {}
                Err(tungstenite::Error::Io(e)) if e.kind() == ErrorKind::WouldBlock => {
                    return if source.spent() { Outcome::More } else { Outcome::Dry };
                }
                Err(e) => return failed(e),
            }
        }
        Outcome::More
    }

    fn message(&mut self, conn: &Conn, message: Message) {
        conn.0.port.received.add(1);
        self.call(conn, |handler, conn| handler.message(conn, message));
    }

    /// A handler that panics loses its connection, and nothing else happens.
    fn call(&mut self, conn: &Conn, f: impl FnOnce(&mut dyn Handler, &Conn)) {
        let Some(handler) = self.handler.as_deref_mut() else { return };
        if catch_unwind(AssertUnwindSafe(|| f(handler, conn))).is_err() {
            log::error!(
                "the handler of the connection with {} panicked; it is closed",
                conn.peer()
            );
            conn.close(Some(1011), "internal error");
        }
    }
}

/// Our answer to a close frame is empty, as the original's (spec: control 2.3), unless the peer's
/// was malformed.
fn closed_by_peer(frame: Option<protocol::CloseFrame>) -> Outcome {
    let code = frame.as_ref().map(|f| u16::from(f.code));
    let reply = match &frame {
        // What tungstenite makes of a code that may not be sent.
        Some(f) if f.code == CloseCode::Protocol => (Some(1002), ""),
        _ => (None, ""),
    };
    let reason = frame.map(|f| f.reason).unwrap_or_default();
    Outcome::End { reply: Some(reply), reason: Closed::Peer { code, reason } }
}

fn failed(e: tungstenite::Error) -> Outcome {
    use tungstenite::Error as E;
    match e {
        E::Io(e) => Outcome::lost(&e),
        E::Capacity(e) => {
            Outcome::broken(1009, "message too big", Error::new(Code::LimitExceeded, e.to_string()))
        }
        E::Utf8(e) => Outcome::broken(1007, "invalid UTF-8", Error::invalid(e)),
        E::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake)
        | E::ConnectionClosed
        | E::AlreadyClosed => Outcome::lost(&ErrorKind::UnexpectedEof.into()),
        e => Outcome::broken(1002, "protocol error", Error::invalid(e.to_string())),
    }
}

fn read_head(bytes: &mut Vec<u8>, source: &mut Source<'_>) -> Outcome {
    let mut buffer = [0u8; READ_BUFFER];
    loop {
        let room = (HEAD_MAX - bytes.len()).min(buffer.len());
        let fresh = bytes.len().saturating_sub(2);
        match source.read(&mut buffer[..room]) {
            Ok(0) => return Outcome::lost(&ErrorKind::UnexpectedEof.into()),
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Outcome::Dry,
            Err(e) => return Outcome::lost(&e),
        }
        let fresh = &bytes[fresh..];
        // Parsed only where a head can have ended, so that a trickle of bytes costs little.
        let ended =
            fresh.windows(2).any(|w| w == b"\n\n") || fresh.windows(3).any(|w| w == b"\n\r\n");
        if ended || bytes.len() == HEAD_MAX {
            match head::parse(bytes) {
                Parsed::Incomplete => {}
                parsed => return Outcome::Request(parsed),
            }
        }
    }
}

fn discard(source: &mut Source<'_>) -> Outcome {
    let mut buffer = [0u8; READ_BUFFER];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return Outcome::lost(&ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                return if source.spent() { Outcome::More } else { Outcome::Dry };
            }
            Err(e) => return Outcome::lost(&e),
        }
    }
}

/// The incoming bytes of one turn, bounded. What tungstenite writes goes nowhere.
struct Source<'a> {
    transport: &'a Transport,
    got: usize,
    dry: bool,
}

impl<'a> Source<'a> {
    fn new(transport: &'a Transport) -> Source<'a> {
        Source { transport, got: 0, dry: false }
    }

    /// The turn's share is used up; there may be more.
    fn spent(&self) -> bool {
        self.got >= TURN_BYTES
    }
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.dry || self.spent() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let n = loop {
            match self.transport.read(buffer) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                done => break done?,
            }
        };
        self.got += n;
        self.dry = n > 0 && n < buffer.len() && self.transport.short_read_is_dry();
        Ok(n)
    }
}

impl Write for Source<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
